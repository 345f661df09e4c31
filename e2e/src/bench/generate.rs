//! Load from programs that others know: wrk for HTTP/1.1 and byte streams, h2load for HTTP/2 and gRPC.
//!
//! In: a [`Work`] and where to. Out: how many answers were good, and their bytes. Kept true: one failed answer spoils the round, since
//! refusing is cheaper than serving; loads go to loopback and end by themselves. Not here: latency at a fixed rate (`crate::load`).

use std::{net::SocketAddr, process::Stdio, time::Duration};

use anyhow::{Context, bail, ensure};
use tokio::process::Command;

/// A kind of load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    /// HTTP/1.1 GET at saturation.
    Http1 {
        /// What is asked for.
        path: &'static str,
        /// Connections, each with one request at a time.
        connections: u16,
        /// A new connection for each request.
        close: bool,
    },
    /// HTTP/2 with prior knowledge at saturation.
    Http2 {
        /// What is asked for.
        path: &'static str,
        /// Connections.
        connections: u16,
        /// Streams of each at a time.
        streams: u16,
        /// POST a gRPC message, else GET.
        grpc: bool,
    },
}

/// What came of a round.
#[derive(Debug, Clone, Copy, Default)]
pub struct Done {
    /// Good answers.
    pub requests: u64,
    /// Bytes read by the generator, heads included.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// Where a load goes.
#[derive(Debug, Clone)]
pub struct To {
    /// The proxy's listener.
    pub address: SocketAddr,
    /// Name of the service, with its port.
    pub host: String,
}

/// Runs `work` for `lasting`.
///
/// # Errors
/// When the generator is not installed, or an answer was not good.
pub async fn run(work: Work, to: &To, lasting: Duration) -> anyhow::Result<Done> {
    ensure!(to.address.ip().is_loopback(), "load goes to loopback addresses only, not {}", to.address);
    let seconds = format!("{}", lasting.as_secs().max(1));
    match work {
        Work::Http1 { path, connections, close } => {
            let mut command = Command::new("wrk");
            command.args([
                "-t1",
                "-c",
                &connections.to_string(),
                "-d",
                &format!("{seconds}s"),
                "--timeout",
                "10s",
            ]);
            command.args(["-H", &format!("Host: {}", to.host)]);
            if close {
                command.args(["-H", "Connection: close"]);
            }
            command.arg(format!("http://{}{path}", to.address));
            wrk(&output(command, "wrk", lasting).await?)
        }
        Work::Http2 { path, connections, streams, grpc } => {
            let mut command = Command::new("h2load");
            command.args(["-t1", "-c", &connections.to_string(), "-m", &streams.to_string(), "-D", &seconds]);
            command.args(["-H", &format!(":authority: {}", to.host)]);
            let message = tempfile::NamedTempFile::new()?;
            if grpc {
                // One frame with an empty message.
                std::fs::write(message.path(), [0; 5])?;
                command
                    .args(["-H", "content-type: application/grpc", "-H", "te: trailers", "-d"])
                    .arg(message.path());
            }
            command.arg(format!("http://{}{path}", to.address));
            h2load(&output(command, "h2load", lasting).await?)
        }
    }
}

async fn output(mut command: Command, name: &str, lasting: Duration) -> anyhow::Result<String> {
    let out = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let out = tokio::time::timeout(lasting + Duration::from_secs(30), out);
    let out = out.await.with_context(|| format!("{name} does not end"))?;
    let out = out.with_context(|| format!("{name} does not start; Debian has it (wrk, nghttp2-client)"))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    ensure!(out.status.success(), "{name}: {}: {text}{}", out.status, String::from_utf8_lossy(&out.stderr));
    Ok(text)
}

fn wrk(text: &str) -> anyhow::Result<Done> {
    for line in text.lines().map(str::trim) {
        if line.starts_with("Non-2xx") {
            bail!("wrk: {line}");
        }
        // "Socket errors: connect 0, read 3, write 0, timeout 0"
        if let Some(errors) = line.strip_prefix("Socket errors:") {
            bail!("wrk: socket errors:{errors}");
        }
    }
    // "  90000 requests in 3.00s, 12.34MB read"
    let line =
        text.lines().find(|l| l.contains(" requests in ")).with_context(|| format!("wrk said: {text}"))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let [requests, _, _, seconds, read, ..] = words.as_slice() else { bail!("wrk said: {line}") };
    let done = Done {
        requests: requests.parse()?,
        bytes: size(read).with_context(|| format!("wrk said: {line}"))?,
        seconds: duration(seconds.trim_end_matches(',')).with_context(|| format!("wrk said: {line}"))?,
    };
    ensure!(done.requests > 0, "wrk: no request was answered");
    Ok(done)
}

fn h2load(text: &str) -> anyhow::Result<Done> {
    let line = |start: &str| {
        text.lines().find(|l| l.starts_with(start)).with_context(|| format!("h2load said: {text}"))
    };
    // "finished in 3.00s, 1234.00 req/s, 1.2MB/s"
    let finished = line("finished in ")?;
    let seconds = finished.split_whitespace().nth(2).and_then(|w| duration(w.trim_end_matches(',')));
    // "requests: 100 total, 100 started, 100 done, 100 succeeded, 0 failed, 0 errored, 0 timeout"
    let requests = line("requests: ")?;
    let number = |what: &str| {
        let part = requests.trim_start_matches("requests: ").split(", ").find(|p| p.ends_with(what));
        part.and_then(|p| p.split(' ').next()).and_then(|n| n.parse::<u64>().ok())
    };
    let bad = line("status codes: ")?;
    // What was still under way at the end counts as neither.
    ensure!(number(" failed") == Some(0) && bad.contains(" 0 4xx, 0 5xx"), "h2load: {requests}; {bad}");
    // "traffic: 1.00MB (1048576) total, ..."
    let traffic = line("traffic: ")?;
    let bytes = traffic.split(['(', ')']).nth(1).and_then(|n| n.parse().ok());
    let done = Done {
        requests: number(" succeeded").with_context(|| format!("h2load said: {requests}"))?,
        bytes: bytes.with_context(|| format!("h2load said: {traffic}"))?,
        seconds: seconds.with_context(|| format!("h2load said: {finished}"))?,
    };
    ensure!(done.requests > 0, "h2load: no request was answered");
    Ok(done)
}

/// "1.50s", "300.00ms", "1.00m" in seconds.
fn duration(text: &str) -> Option<f64> {
    for (unit, factor) in [("ms", 0.001), ("us", 0.000_001), ("s", 1.0), ("m", 60.0)] {
        if let Some(number) = text.strip_suffix(unit) {
            return number.parse::<f64>().ok().map(|n| n * factor);
        }
    }
    None
}

/// "1.50MB" in bytes; wrk's units are powers of 1024.
fn size(text: &str) -> Option<u64> {
    let scale = [("TB", 40), ("GB", 30), ("MB", 20), ("KB", 10), ("B", 0)];
    let (number, power) = scale.iter().find_map(|(unit, p)| text.strip_suffix(unit).map(|n| (n, *p)))?;
    // Two decimals are all that wrk prints.
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let hundredths =
        whole.parse::<u64>().ok()? * 100 + format!("{part:0<2}").get(..2)?.parse::<u64>().ok()?;
    Some((hundredths << power) / 100)
}

#[cfg(test)]
mod tests {
    use super::{h2load, wrk};

    #[test]
    fn figures_are_read_from_wrk_and_a_bad_answer_spoils_the_round() {
        let good = "Running 3s test @ http://127.0.0.1:1/\n  1 threads and 32 connections\n  90000 requests in 3.01s, 12.50MB \
                    read\nRequests/sec:  30000.00\n";
        let done = wrk(good).expect("a result");
        assert_eq!((done.requests, done.bytes), (90_000, 13_107_200));
        assert!((done.seconds - 3.01).abs() < 1e-9);
        for bad in ["  Non-2xx or 3xx responses: 3", "  Socket errors: connect 0, read 1, write 0, timeout 0"]
        {
            assert!(wrk(&format!("{good}{bad}\n")).is_err(), "{bad}");
        }
        assert!(wrk("  0 requests in 3.01s, 0.00B read\n").is_err());
    }

    #[test]
    fn figures_are_read_from_h2load_and_a_bad_answer_spoils_the_round() {
        let text = |failed: u32, status: &str| {
            format!(
                "finished in 2.00s, 500.00 req/s, 1.00MB/s\nrequests: 1000 total, 1032 started, 1000 done, 1000 succeeded, \
                 {failed} failed, 0 errored, 0 timeout\nstatus codes: 1000 2xx, 0 3xx, {status}\ntraffic: 2.00MB (2097152) \
                 total, 10.00KB (10240) headers (space savings 95.00%), 1.90MB (2000000) data\n"
            )
        };
        let done = h2load(&text(0, "0 4xx, 0 5xx")).expect("a result");
        assert_eq!((done.requests, done.bytes), (1000, 2_097_152));
        assert!(h2load(&text(1, "0 4xx, 0 5xx")).is_err());
        assert!(h2load(&text(0, "0 4xx, 7 5xx")).is_err());
    }
}
