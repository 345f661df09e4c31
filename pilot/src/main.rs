//! The pilot binary: parse, run, say what went wrong.

use std::process::ExitCode;

fn main() -> ExitCode {
    let cli: pilot::cli::Cli = mesh_runtime::cli::parse();
    match pilot::cli::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pilot: {error:#}");
            ExitCode::FAILURE
        }
    }
}
