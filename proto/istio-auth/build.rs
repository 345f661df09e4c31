//! Generates `istio.v1.auth` from our own text of the protocol, without protoc.
use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["istio_auth.proto"], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    tonic_prost_build::configure().out_dir(out).compile_fds(files)?;
    Ok(())
}
