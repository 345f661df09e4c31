//! A mesh to play with, until Ctrl-C: people edit YAML in a directory and watch the mesh obey.
//!
//! In: flags. Out: a running shop, one status line. Kept true: Ctrl-C and SIGTERM leave no process behind.
//! Not here: the node (`node`), what is judged (`scenarios`).

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use mesh_runtime::shutdown::Signals;

use crate::{
    node::{Node, Options},
    peers,
    scenarios::{Shop, Source},
};

/// A line for people on standard error; whether anybody still reads it is no reason to stop.
macro_rules! say {
    ($($text:tt)*) => {{
        let _shown = writeln!(std::io::stderr(), $($text)*);
    }};
}

/// How the mesh is run.
#[derive(Debug, Clone, clap::Args)]
pub struct UpArgs {
    /// Directory of the mesh; YAML in `config/mesh` below it takes effect within a second
    #[arg(long, default_value = "target/crema-local", value_name = "DIR")]
    pub dir: PathBuf,
    /// N of 127.N.0.0/16, where all of it lives (64 to 127)
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u8).range(64..=127))]
    pub net: u8,
    /// Files with Deployments and Services to run instead of the Espresso Shop
    #[arg(short, long = "filename", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Share of requests that are traced, in percent
    #[arg(long, default_value_t = 100.0, value_name = "PERCENT")]
    pub sampling: f64,
}

/// Runs until a signal comes.
///
/// # Errors
/// When the mesh cannot be started: names what is missing, or who has the network.
pub async fn up(args: UpArgs) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    say!("building the binaries (nothing to do when they are there)");
    peers::build()?;
    let options = Options {
        dir: args.dir,
        net: Some(args.net),
        bin: peers::bin_dir(),
        sampling: args.sampling,
        progress: Arc::new(|text| say!("  {text}")),
    };
    let starting = async {
        let node = Node::start(options).await?;
        let started = match args.files.is_empty() {
            true => Shop::open(node.clone(), Source::Own).await.map(drop),
            false => files(&node, &args.files).await,
        };
        if let Err(error) = started {
            node.stop().await;
            return Err(error);
        }
        anyhow::Ok(node)
    };
    let node = tokio::select! {
        node = starting => node?,
        cause = signals.recv() => anyhow::bail!("{cause} while starting"),
    };
    welcome(&node);
    let interactive = std::io::stderr().is_terminal();
    let mut shown = String::new();
    loop {
        tokio::select! {
            cause = signals.recv() => {
                say!("\n{cause}: stopping everything");
                node.stop().await;
                return Ok(());
            }
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                let line = node.status_line();
                if interactive {
                    let mut terminal = std::io::stderr();
                    // A status line that cannot be shown is no reason to stop.
                    let _shown = write!(terminal, "\r\x1b[K{line}").and_then(|()| terminal.flush());
                } else if line != shown {
                    say!("{line}");
                }
                shown = line;
            }
        }
    }
}

async fn files(node: &Node, files: &[PathBuf]) -> anyhow::Result<()> {
    for file in files {
        node.apply_file(file).await?;
    }
    node.ready(Duration::from_secs(60)).await
}

fn welcome(node: &Node) {
    let (layout, addresses) = (node.layout(), node.addresses());
    say!("\nThe mesh is up.");
    for (service, port, address) in node.ports_outside() {
        say!("  http://{address:<18} {service}, port {port}");
    }
    say!("  http://{:<18} mixer: traces and dashboard", addresses.zipkin.to_string());
    say!("  http://{}/metrics  mixer: Prometheus", addresses.prometheus);
    say!("\nPut YAML into {} and take it out again, e.g.", layout.mesh().display());
    let samples = peers::root().join("deploy/espresso-shop");
    say!("  cp {}/{{destination-rules,all-v1}}.yaml {}/", samples.display(), layout.mesh().display());
    say!("Logs of every process: {}\nCtrl-C ends it all.\n", layout.logs().display());
}
