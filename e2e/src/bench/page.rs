//! The generated part of `docs/performance.md`: machine, versions, tables, sizes, plot.
//!
//! In: what was measured. Out: the page, rewritten between its two markers. Kept true: no path or name of the machine that measured;
//! prose outside of the markers stays as people wrote it. Not here: the tables themselves (`report`).

use std::{fmt::Write as _, fs, path::Path, process::Command};

use anyhow::Context;

use super::{
    measure::{Measured, Pace},
    plot, report,
    world::Programs,
};
use crate::peers;

/// The five binaries, each a package of its own.
pub const BINARIES: [&str; 5] = ["proxy", "pilot", "citadel", "mixer", "injector"];

const BEGIN: &str = "<!-- written by `bench --write`: begin -->";
const END: &str = "<!-- written by `bench --write`: end -->";

/// Rewrites the generated part of `docs`/performance.md, and its plot.
///
/// # Errors
/// When the page has lost its markers, or the file system refuses.
pub fn write(
    docs: &Path,
    programs: &Programs,
    pace: Pace,
    rows: &[Measured],
    failed: &[String],
) -> anyhow::Result<()> {
    let path = docs.join("performance.md");
    let page = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let lost = || format!("{} has lost its markers {BEGIN} and {END}", path.display());
    let (before, rest) = page.split_once(BEGIN).with_context(lost)?;
    let (_, after) = rest.split_once(END).with_context(lost)?;
    fs::create_dir_all(docs.join("pictures"))?;
    fs::write(docs.join("pictures/performance.svg"), plot::svg(rows))?;
    let text = generated(programs, pace, rows, failed)?;
    fs::write(&path, format!("{before}{BEGIN}\n\n{text}\n{END}{after}"))?;
    Ok(())
}

fn generated(
    programs: &Programs,
    pace: Pace,
    rows: &[Measured],
    failed: &[String],
) -> anyhow::Result<String> {
    let mut text = format!(
        "{}. {} rounds, {} s for each competitor in a round.\n\n",
        machine(programs),
        pace.rounds,
        pace.part.as_secs()
    );
    write!(text, "## Targets\n\n{}\n", report::targets(rows))?;
    text.push_str("![CPU per request of each proxy](pictures/performance.svg)\n\n");
    write!(text, "## Figures\n\n{}\n", report::figures(rows))?;
    if !failed.is_empty() {
        text.push_str("Not measured in this run:\n\n");
        for why in failed {
            let line: String = why.chars().take(200).collect();
            writeln!(text, "- {}", line.replace('\n', " "))?;
        }
        text.push('\n');
    }
    write!(text, "## Sizes\n\n{}", sizes(programs)?)?;
    Ok(text)
}

/// Cores, memory, kernel and versions, in one sentence.
fn machine(programs: &Programs) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let value = |text: &str, key: &str| {
        let line = text.lines().find(|l| l.starts_with(key));
        line.and_then(|l| l.split_once(':')).map(|(_, v)| v.trim().to_owned()).unwrap_or_default()
    };
    let memory = value(&read("/proc/meminfo"), "MemTotal");
    let kib: u64 = memory.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or_default();
    let release = read("/proc/sys/kernel/osrelease");
    let kernel = release.split('-').next().unwrap_or_default().trim().to_owned();
    let first = |program: &Path, flag: &str| {
        let out = Command::new(program).arg(flag).output();
        // nginx says its version on the other stream.
        let out = out.map(|o| [o.stdout, o.stderr].concat()).unwrap_or_default();
        let text = String::from_utf8_lossy(&out).into_owned();
        let words = text.split(|c: char| c.is_whitespace() || c == '/' || c == '-');
        let version = words.filter(|w| w.contains('.') && w.starts_with(|c: char| c.is_ascii_digit()));
        version.map(str::to_owned).next().unwrap_or_else(|| "of unknown version".to_owned())
    };
    let mut beside = vec![format!("nginx {}", first(&programs.nginx, "-v"))];
    if let Some(haproxy) = &programs.haproxy {
        beside.push(format!("HAProxy {}", first(haproxy, "-v")));
    }
    if programs.envoy.is_some() {
        beside.push("Envoy 1.40.0".to_owned());
    }
    format!(
        "{} cores of {}, {} GB, Linux {kernel}, shared with other work; {}",
        std::fs::read_to_string("/proc/cpuinfo")
            .map(|t| t.matches("processor\t").count())
            .unwrap_or_default(),
        value(&read("/proc/cpuinfo"), "model name"),
        kib / 1_000_000,
        beside.join(", ")
    )
}

/// Size of each binary, and how many packages stand in the lock file.
fn sizes(programs: &Programs) -> anyhow::Result<String> {
    let mut text = String::from("| binary (`dist` profile) | MB |\n|---|---|\n");
    for name in BINARIES {
        let bytes = fs::metadata(programs.bin.join(name))?.len();
        writeln!(text, "| {name} | {}.{} |", bytes / 1_000_000, bytes % 1_000_000 / 100_000)?;
    }
    let lock = fs::read_to_string(peers::root().join("Cargo.lock"))?;
    writeln!(
        text,
        "\n{} packages in `Cargo.lock`, our own among them.",
        lock.matches("[[package]]").count()
    )?;
    Ok(text)
}
