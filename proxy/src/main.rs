//! The `proxy` binary: running, and what a pod needs beside it.
//!
//! In: the command line. Out: a running proxy. Kept true: the control plane's work has a runtime of its own, beside the workers' threads.
//! Not here: anything else (the library).

use proxy::{
    capture,
    cli::{Cli, Verb},
    pod::verbs,
    serve,
};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let cli: Cli = mesh_runtime::cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        match cli.verb {
            Verb::Sidecar(args) => serve::mesh(*args, false).await,
            Verb::Router(args) => serve::mesh(*args, true).await,
            Verb::Run(args) => serve::envoy(*args).await,
            Verb::Capture(args) => capture::run(*args).await,
            Verb::Wait(args) => verbs::wait(args).await,
            Verb::Drain(args) => verbs::drain(args).await,
        }
    })
}
