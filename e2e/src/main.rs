//! The e2e binary: the demo, and a mesh to play with.
//!
//! In: a verb. Out: an exit code that says whether everything held. Kept true: nothing it started outlives it.
//! Not here: anything else (library).

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use e2e::{
    attack::report::{self as attack, AttackArgs},
    bench::{self, BenchArgs},
    cluster::command::{self as cluster, ClusterArgs},
    demo::{self, DemoArgs},
    images::{self, ImagesArgs},
    manifest::{self, ManifestArgs},
    node::process,
    up::{self, UpArgs},
};

/// Crema on this machine: no root, no containers, no Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "e2e", version)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Play the whole talk, step by step, with a verdict for each.
    Demo(DemoArgs),
    /// Run the Espresso Shop in a mesh until Ctrl-C.
    Up(UpArgs),
    /// Measure the proxy beside Envoy, HAProxy and nginx: CPU per request, memory, latency.
    Bench(BenchArgs),
    /// Attack our proxy and a real Envoy, and print what it did to both.
    Attack(AttackArgs),
    /// Install the mesh in a Kubernetes cluster, play the talk and the suite there, and remove it.
    Cluster(ClusterArgs),
    /// Build container images without a container engine: target/images/*.tar.
    Images(ImagesArgs),
    /// Print the manifest that installs the mesh in a cluster.
    Manifest(ManifestArgs),
    /// First stage of a child process (used by the other verbs).
    #[command(hide = true)]
    ExecChild {
        /// Process that must still be the parent.
        #[arg(long)]
        parent: u32,
        /// Program and arguments.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run() -> anyhow::Result<ExitCode> {
    let verb = Command::parse().verb;
    if let Verb::ExecChild { parent, command } = verb {
        let (program, args) = command.split_first().ok_or_else(|| anyhow::anyhow!("no program"))?;
        process::exec_child(parent, &PathBuf::from(program), args)?;
        return Ok(ExitCode::FAILURE);
    }
    match &verb {
        Verb::Images(args) => return images::run(args).map(|()| ExitCode::SUCCESS),
        Verb::Manifest(args) => return manifest::run(args).map(|()| ExitCode::SUCCESS),
        _ => {}
    }
    let bin = match &verb {
        Verb::Bench(args) => bench::prepare(args)?,
        _ => PathBuf::new(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match verb {
            Verb::Demo(args) => {
                let mut signals = mesh_runtime::shutdown::Signals::new()?;
                tokio::select! {
                    all = demo::play(args) => Ok(if all? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
                    // Children die with this process.
                    cause = signals.recv() => anyhow::bail!("{cause}"),
                }
            }
            Verb::Bench(args) => {
                Ok(if bench::run(args, bin).await? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Verb::Attack(args) => {
                Ok(if attack::play(args).await? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Verb::Cluster(args) => {
                Ok(if cluster::play(args).await? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Verb::Up(args) => up::up(args).await.map(|()| ExitCode::SUCCESS),
            Verb::ExecChild { .. } | Verb::Images(_) | Verb::Manifest(_) => Ok(ExitCode::FAILURE),
        }
    })
}
