//! The `mixer` binary: `serve` and `eval`.
//!
//! In: the command line. Out: a running mixer, or one expression's value.
//! Kept true: exit code 2 for an expression that cannot be evaluated. Not here: anything else (the library).

use std::process::ExitCode;

use mixer::{
    eval::{self, EvalArgs},
    serve::{self, ServeArgs},
};

/// Takes reports from proxies, decides policy, and hands telemetry to adapters.
#[derive(clap::Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Serve proxies, and fan out to the configured handlers.
    Serve(Box<ServeArgs>),
    /// Evaluate one expression of the rule language: prints its type, value and references as JSON.
    Eval(EvalArgs),
}

fn main() -> ExitCode {
    match mesh_runtime::cli::parse::<Cli>().verb {
        Verb::Serve(args) => match run(*args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("mixer: {error:#}");
                ExitCode::FAILURE
            }
        },
        Verb::Eval(args) => match eval::eval(&args) {
            Ok(json) => {
                println!("{json}");
                ExitCode::SUCCESS
            }
            Err(why) => {
                eprintln!("{why}");
                ExitCode::from(2)
            }
        },
    }
}

fn run(args: ServeArgs) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve::run(args))
}
