//! The citadel binary: parse, run, say what went wrong.

use std::process::ExitCode;

use citadel::cli::{Cli, run};

#[tokio::main]
async fn main() -> ExitCode {
    let cli: Cli = mesh_runtime::cli::parse();
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("citadel: {error:#}");
            ExitCode::FAILURE
        }
    }
}
