//! Generates the discovery envelope from `discovery.proto`, without protoc, with shared bytes.
use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=discovery.proto");
    let files = protox::compile(["discovery.proto"], ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    tonic_prost_build::configure().out_dir(out).bytes(".").compile_fds(files)?;
    Ok(())
}
