//! Generates the stream's types from `telemetry.proto`, without protoc.
use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=telemetry.proto");
    let files = protox::compile(["telemetry.proto"], ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    tonic_prost_build::configure().out_dir(out).compile_fds(files)?;
    Ok(())
}
