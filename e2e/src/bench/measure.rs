//! Measuring one row: competitors in turn, round after round, over the same mesh.
//!
//! In: a [`Row`] and a [`World`]. Out: [`Measured`]. Kept true: each round visits every competitor once; CPU time is what the kernel
//! accounted to the proxies' processes between start and end of the load. Not here: tables (`report`).

use std::{collections::BTreeMap, io, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    config,
    generate::{self, To, Work},
    process::{PROXY_CORE, Usage},
    rows::{Kind, Row},
    stats::Series,
    world::{EGRESS, GRPC, HTTP, Places, STREAM, Who, World, host},
};
use crate::load::{self, Load};

/// What was measured of one competitor in one row.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// What the row is about, in the unit of its kind.
    pub main: Series,
    /// Requests per second.
    pub rate: Series,
    /// Part of the CPU time that was spent in user space.
    pub user: Series,
    /// Context switches per request.
    pub switches: Series,
}

/// What was measured in one row.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The row.
    pub row: Row,
    /// By competitor.
    pub figures: BTreeMap<Who, Figures>,
}

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Rounds.
    pub rounds: usize,
    /// Length of one competitor's part of a round.
    pub part: Duration,
}

/// Where the load of a row goes for one competitor.
#[must_use]
pub fn to(world: &World, row: &Row, who: Who) -> To {
    let service = |name: &str, port: u16| format!("{name}.default.svc.cluster.local:{port}");
    let http2 =
        matches!(row.kind, Kind::CpuPerRequest(Work::Http2 { .. }) | Kind::CpuPerMib(Work::Http2 { .. }));
    let stream = row.id == "tcp";
    let (kind, [client, _]) = if who == Who::Envoy { ("envoy", host::ENVOY) } else { ("crema", host::CREMA) };
    let host = match (row.pair, http2) {
        (true, _) => service(&format!("pair-{kind}"), HTTP),
        (false, true) => service("rpc", GRPC),
        (false, false) => service(&config::target(&row.setup), HTTP),
    };
    let at = |host, port| world.places.at(host, port);
    let address = match who {
        Who::Crema | Who::Envoy if stream => at(client, STREAM),
        Who::Crema | Who::Envoy => at(client, EGRESS),
        Who::Haproxy if http2 => at(host::HAPROXY, GRPC),
        Who::Haproxy => at(host::HAPROXY, HTTP),
        Who::HaproxyTcp => at(host::HAPROXY, STREAM),
        Who::Nginx => at(host::NGINX, HTTP),
    };
    To { address, host }
}

/// Measures one row.
///
/// # Errors
/// When an answer is not good, a process is gone, or a tool is missing.
pub async fn row(world: &World, row: &Row, pace: Pace) -> anyhow::Result<Measured> {
    let who: Vec<Who> = row.who.iter().copied().filter(|who| world.has(*who)).collect();
    let mut figures: BTreeMap<Who, Figures> = who.iter().map(|who| (*who, Figures::default())).collect();
    if !matches!(row.kind, Kind::Idle | Kind::Lookup(_)) {
        same_bytes(world, row, &who).await?;
    }
    if let Kind::CpuPerRequest(work) | Kind::CpuPerMib(work) = row.kind {
        for who in &who {
            // Warm-up: connections, caches, branch predictors. What fails here fails in the rounds as well.
            let _warm = generate::run(work, &to(world, row, *who), Duration::from_secs(1)).await;
        }
    }
    let once =
        matches!(row.kind, Kind::Idle | Kind::PerConnection { .. } | Kind::Lookup(_) | Kind::Syscalls(_));
    for _ in 0..if once { 1 } else { pace.rounds } {
        for who in &who {
            let mine = figures.get_mut(who).context("figures for each competitor")?;
            // Another program may have held a core for longer than a whole part: once more, then it is an error.
            if part(world, row, *who, pace, mine).await.is_err() {
                part(world, row, *who, pace, mine).await.with_context(|| who.name())?;
            }
        }
    }
    Ok(Measured { row: row.clone(), figures })
}

async fn part(world: &World, row: &Row, who: Who, pace: Pace, figures: &mut Figures) -> anyhow::Result<()> {
    let (to, pids) = (to(world, row, who), world.pids(who, row.pair));
    match row.kind {
        Kind::CpuPerRequest(work) | Kind::CpuPerMib(work) => {
            let before = Usage::of(&pids)?;
            let done = generate::run(work, &to, pace.part).await?;
            let used = Usage::of(&pids)?.since(before);
            let units = match row.kind {
                Kind::CpuPerMib(_) => float(done.bytes) / f64::from(1 << 20),
                _ => float(done.requests),
            };
            figures.main.0.push(float(used.cpu_ns) / 1000.0 / units);
            figures.rate.0.push(float(done.requests) / done.seconds);
            figures.user.0.push(float(used.user_ticks) / float(used.ticks.max(1)));
            figures.switches.0.push(float(used.switches) / float(done.requests));
        }
        Kind::Latency { rate, quantile } => {
            figures.main.0.push(latency(&to, rate, quantile, pace.part).await?);
            figures.rate.0.push(f64::from(rate));
        }
        Kind::Churn { rate } => {
            let without = latency(&to, rate, 0.99, pace.part).await?;
            let changes = tokio::spawn(churn(world.config.clone(), world.places.clone()));
            let with = latency(&to, rate, 0.99, pace.part).await;
            changes.abort();
            figures.main.0.push(with? / without);
            figures.rate.0.push(f64::from(rate));
        }
        Kind::Lookup(services) => {
            let program = world.bin.join("examples/lookup");
            let mut command = tokio::process::Command::new("taskset");
            command.args(["-c", PROXY_CORE]).arg(&program).arg(services.to_string());
            let out = command.output().await?;
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            let figure = text.split_whitespace().nth(2).and_then(|n| n.parse().ok());
            let how = || {
                format!(
                    "{} says nothing: cargo build --profile dist -p mesh-traffic --example lookup",
                    program.display()
                )
            };
            figures.main.0.push(figure.with_context(how)?);
        }
        Kind::Idle => figures.main.0.push(float(Usage::of(&pids)?.rss_kib) * 1024.0 / 1e6),
        Kind::PerConnection { http2 } => {
            const CONNECTIONS: u32 = 1000;
            let before = Usage::of(&pids)?;
            let mut open = Vec::new();
            for _ in 0..CONNECTIONS {
                open.push(idle(to.address, &to.host, http2).await?);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            let grown = Usage::of(&pids)?.rss_kib.saturating_sub(before.rss_kib);
            figures.main.0.push(float(grown) * 1024.0 / 1000.0 / f64::from(CONNECTIONS));
        }
        Kind::Syscalls(work) => figures.main.0.push(syscalls(work, &to, &pids).await?),
    }
    Ok(())
}

/// A quantile of latency at a fixed rate, in microseconds.
async fn latency(to: &To, rate: u32, quantile: f64, lasting: Duration) -> anyhow::Result<f64> {
    let load = Load {
        to: to.address,
        from: None,
        target: "/1k".to_owned(),
        host: to.host.clone(),
        headers: Vec::new(),
        rate,
        lasting,
        fresh_every: 0,
        expect: 200,
    };
    let report = load::run(load).await?;
    ensure!(report.failures() == 0, "{report}");
    Ok(float(report.latency.value_at_quantile(quantile)))
}

/// A thousand endpoints that move once per second: ten files with a hundred services each, one file every tenth of a second, so
/// that each stands long enough to be read.
async fn churn(config: PathBuf, places: Places) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    for lap in 0_u8.. {
        for file in 0..10 {
            tick.tick().await;
            let yaml = config::moving(&places, file, 40 + lap % 2);
            let (hidden, path) = (config.join(".moving.tmp"), config.join(format!("moving-{file}.yaml")));
            tokio::fs::write(&hidden, yaml).await?;
            tokio::fs::rename(&hidden, &path).await?;
        }
    }
    Ok(())
}

/// A connection that has answered one request, HTTP/2 its settings, and stays open.
async fn idle(to: SocketAddr, host: &str, http2: bool) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(to).await?;
    let first: &[u8] =
        if http2 { b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00" } else { b"" };
    let request = format!("GET /0 HTTP/1.1\r\nhost: {host}\r\n\r\n");
    stream.write_all(if http2 { first } else { request.as_bytes() }).await?;
    let mut buffer = [0; 4096];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut buffer));
    let read = read.await.context("an idle connection is not answered")??;
    ensure!(read > 0, "an idle connection is closed");
    if !http2 {
        ensure!(buffer.starts_with(b"HTTP/1.1 200"), "an idle connection is answered with an error");
    }
    Ok(stream)
}

/// Nobody wins by doing less: each competitor passes the same body on.
async fn same_bytes(world: &World, row: &Row, all: &[Who]) -> anyhow::Result<()> {
    let path = match row.kind {
        Kind::CpuPerRequest(Work::Http1 { path, .. })
        | Kind::CpuPerMib(Work::Http1 { path, .. })
        | Kind::Syscalls(Work::Http1 { path, .. }) => path,
        // h2load judges the status, and its bytes are compared by the row's own rate.
        _ => return Ok(()),
    };
    let mut first: Option<(Who, Vec<u8>)> = None;
    for who in all {
        let to = to(world, row, *who);
        let body = body(&to, path).await.with_context(|| format!("{}: {}{path}", who.name(), to.host))?;
        match &first {
            None => first = Some((*who, body)),
            Some((other, theirs)) => {
                ensure!(*theirs == body, "{} and {} answer with different bodies", who.name(), other.name());
            }
        }
    }
    Ok(())
}

/// The body of one good answer. Configuration may still be on its way: asked again for half a minute.
async fn body(to: &To, path: &str) -> anyhow::Result<Vec<u8>> {
    let mut last = String::new();
    for _ in 0..60 {
        match exchange(to, path).await {
            Ok((200, body)) => return Ok(body),
            Ok((status, body)) => last = format!("status {status}: {}", String::from_utf8_lossy(&body)),
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    anyhow::bail!("no good answer within half a minute; the last was {last}")
}

async fn exchange(to: &To, path: &str) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(to.address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", to.host);
    stream.write_all(request.as_bytes()).await?;
    let mut all = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut all)).await??;
    let text = String::from_utf8_lossy(all.get(..12).unwrap_or_default()).into_owned();
    let status = text.get(9..12).and_then(|s| s.parse().ok()).unwrap_or_default();
    let end = all.windows(4).position(|w| w == b"\r\n\r\n").map_or(all.len(), |at| at + 4);
    Ok((status, all.split_off(end)))
}

/// System calls per request over three seconds, by `strace -c`. It slows the proxy down, so nothing else is taken from this run.
async fn syscalls(work: Work, to: &To, pids: &[u32]) -> anyhow::Result<f64> {
    let summary = tempfile::NamedTempFile::new()?;
    let mut command = tokio::process::Command::new("strace");
    command.args(["-c", "-f", "-q", "-o"]).arg(summary.path()).kill_on_drop(true);
    for pid in pids {
        command.args(["-p", &pid.to_string()]);
    }
    let mut tracer = command.spawn().context("strace does not start; Debian has it")?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let done = generate::run(work, to, Duration::from_secs(3)).await;
    let id = tracer.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(id.context("strace has ended early")?, rustix::process::Signal::INT)?;
    tracer.wait().await?;
    let text = std::fs::read_to_string(summary.path())?;
    let total =
        text.lines().rev().find(|l| l.ends_with(" total")).with_context(|| format!("strace said: {text}"))?;
    // "100.00    0.123456           3     12345        12 total"
    let calls = total.split_whitespace().nth(3).and_then(|word| word.parse().ok());
    Ok(float(calls.with_context(|| format!("strace said: {total}"))?) / float(done?.requests))
}

/// Counters here stay far below 2⁵³.
fn float(number: u64) -> f64 {
    let (high, low) = (number >> 32, number & 0xffff_ffff);
    let part = |n: u64| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
    part(high) * 4_294_967_296.0 + part(low)
}
