//! The real h2spec against one listener.
//!
//! In: the program and an address. Out: how many of its cases passed, and what it says of those that did not.
//! Kept true: the count comes from its own summary line. Not here: installing it (`.ci/run`).

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, ensure};

use crate::peers;

/// What h2spec said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Score {
    /// Cases that it ran.
    pub all: u32,
    /// Those that passed.
    pub passed: u32,
    /// Its report on the others.
    pub failures: String,
}

/// h2spec: `H2SPEC`, else on the path, in Go's directory, or where `.ci/run` puts it.
#[must_use]
pub fn program() -> Option<PathBuf> {
    let named = std::env::var_os("H2SPEC").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join("go/bin/h2spec"));
    let candidates =
        [named, peers::installed("h2spec"), home, Some(peers::root().join("target/peers/h2spec"))];
    candidates.into_iter().flatten().find(|path| path.is_file())
}

/// Runs all its cases.
///
/// # Errors
/// When it does not start or prints no summary.
pub async fn run(program: &Path, at: SocketAddr, tls: bool) -> anyhow::Result<Score> {
    // Some cases need an answer of a few bytes.
    let mut command = tokio::process::Command::new(program);
    command.args(["-h", "127.0.0.1", "-p", &at.port().to_string(), "-o", "2", "-P", "/size/64"]);
    if tls {
        command.args(["-t", "-k"]);
    }
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output = output.with_context(|| format!("starting {}", program.display()))?;
    parse(&String::from_utf8_lossy(&output.stdout))
}

fn parse(text: &str) -> anyhow::Result<Score> {
    let summary = text.lines().rev().find(|line| line.contains(" tests, ") && line.contains(" passed"));
    let summary = summary.with_context(|| format!("h2spec printed no summary:\n{text}"))?;
    let numbers: Vec<u32> = summary.split(' ').filter_map(|word| word.parse().ok()).collect();
    ensure!(numbers.len() >= 2, "h2spec's summary has changed: {summary:?}");
    let failures = text.split_once("Failures:").map(|(_, failures)| failures.to_owned()).unwrap_or_default();
    Ok(Score { all: numbers[0], passed: numbers[1], failures })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_line_gives_the_score() {
        let text = "Hypertext...\nFailures: \n\n1 case\n\nFinished in 1.2 seconds\n145 tests, 133 passed, 1 skipped, 11 failed\n";
        let score = parse(text).expect("a summary");
        assert_eq!((score.all, score.passed), (145, 133));
        assert!(score.failures.contains("1 case"));
        assert!(parse("connection refused").is_err());
    }
}
