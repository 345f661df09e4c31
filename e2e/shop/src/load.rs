//! A bounded, open-loop HTTP load: a fixed rate, new connections among the requests, every failure with its reason.
//!
//! In: a [`Load`]. Out: a [`Report`]. Kept true: requests start on schedule whether or not earlier ones have been answered,
//! so a stall shows as latency of every request it delays; targets are loopback addresses unless it runs in a pod. Not here: what is
//! broken meanwhile.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::ensure;
use bytes::Bytes;
use hdrhistogram::Histogram;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::Semaphore,
    time::Instant,
};

/// What to send, and how much of it.
#[derive(Debug, Clone)]
pub struct Load {
    /// Where to connect: an HTTP proxy or a server. Loopback only, see [`run`].
    pub to: SocketAddr,
    /// Address to connect from, e.g. a pod's; `None` for any.
    pub from: Option<SocketAddr>,
    /// Request target as sent: absolute form through a proxy, a path otherwise.
    pub target: String,
    /// Value of `Host`.
    pub host: String,
    /// More request headers.
    pub headers: Vec<(String, String)>,
    /// Requests per second.
    pub rate: u32,
    /// How long.
    pub lasting: Duration,
    /// Every n-th request opens a connection of its own and closes it; 0 for never.
    pub fresh_every: u32,
    /// The status that counts as success.
    pub expect: u16,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Report {
    /// Requests sent.
    pub sent: u64,
    /// Answers with the expected status.
    pub good: u64,
    /// Everything else, by reason.
    pub failed: BTreeMap<String, u64>,
    /// Latency in microseconds, from the moment a request was due.
    pub latency: Histogram<u64>,
    /// The same of the answers with the expected status alone.
    pub served: Histogram<u64>,
}

impl Report {
    /// Requests that failed.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |quantile: f64| Duration::from_micros(self.latency.value_at_quantile(quantile));
        write!(
            f,
            "{} sent, {} failed, p50 {:?}, p99 {:?}, max {:?}",
            self.sent,
            self.failures(),
            ms(0.5),
            ms(0.99),
            Duration::from_micros(self.latency.max())
        )?;
        for (why, times) in &self.failed {
            write!(f, "; {times} × {why}")?;
        }
        Ok(())
    }
}

/// How long one request may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(15);
/// Upper bound of requests in flight: a stalled target must not exhaust this machine.
const IN_FLIGHT: usize = 2000;

struct Shared {
    load: Load,
    idle: Mutex<Vec<SendRequest<Empty<Bytes>>>>,
    report: Mutex<Report>,
    permits: Semaphore,
}

/// Runs the load to its end.
///
/// # Errors
/// When the target is not a loopback address.
pub async fn run(load: Load) -> anyhow::Result<Report> {
    ensure!(load.to.ip().is_loopback(), "load goes to loopback addresses only, not {}", load.to);
    run_in_pod(load).await
}

/// As [`run`], to any address: only for a process in a pod, whose network is the test's own.
///
/// # Errors
/// None today.
pub async fn run_in_pod(load: Load) -> anyhow::Result<Report> {
    let report = Report {
        sent: 0,
        good: 0,
        failed: BTreeMap::new(),
        latency: Histogram::new_with_bounds(1, 60_000_000, 3)?,
        served: Histogram::new_with_bounds(1, 60_000_000, 3)?,
    };
    let total = u64::from(load.rate) * load.lasting.as_secs();
    let gap = Duration::from_secs(1) / load.rate.max(1);
    let shared = Arc::new(Shared {
        load,
        idle: Mutex::default(),
        report: Mutex::new(report),
        permits: Semaphore::new(IN_FLIGHT),
    });
    let begin = Instant::now();
    let mut requests = tokio::task::JoinSet::new();
    for number in 0..total {
        let due = begin + gap * u32::try_from(number).unwrap_or(u32::MAX);
        tokio::time::sleep_until(due).await;
        requests.spawn(one(Arc::clone(&shared), number, due));
        while requests.try_join_next().is_some() {}
    }
    while requests.join_next().await.is_some() {}
    let report = shared.report.lock().expect("no holder panics").clone();
    Ok(report)
}

async fn one(shared: Arc<Shared>, number: u64, due: Instant) {
    let outcome = match shared.permits.acquire().await {
        Ok(_permit) => match tokio::time::timeout(PATIENCE, exchange(&shared, number)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no answer within {PATIENCE:?}")),
        },
        Err(_) => Err("the load was stopped".to_owned()),
    };
    let micros = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
    let mut report = shared.report.lock().expect("no holder panics");
    report.sent += 1;
    report.latency.saturating_record(micros);
    match outcome {
        Ok(status) if status == shared.load.expect => {
            report.good += 1;
            report.served.saturating_record(micros);
        }
        Ok(status) => *report.failed.entry(format!("status {status}")).or_default() += 1,
        Err(why) => *report.failed.entry(why).or_default() += 1,
    }
}

async fn exchange(shared: &Shared, number: u64) -> Result<u16, String> {
    let load = &shared.load;
    let fresh = load.fresh_every != 0 && number.is_multiple_of(u64::from(load.fresh_every));
    let pooled = if fresh { None } else { shared.idle.lock().expect("no holder panics").pop() };
    let mut sender = match pooled {
        Some(sender) if !sender.is_closed() => sender,
        _ => connect(load).await?,
    };
    if sender.ready().await.is_err() {
        // An idle connection that its server has closed: what every HTTP client retries by itself.
        sender = connect(load).await?;
    }
    let mut request = Request::builder().uri(&load.target).header("host", &load.host);
    for (name, value) in &load.headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::new()).map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| format!("request: {}", reason(&e)))?;
    let status = response.status().as_u16();
    let close =
        response.headers().get("connection").is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"close"));
    response.into_body().collect().await.map_err(|e| format!("body: {}", reason(&e)))?;
    if !fresh && !close {
        shared.idle.lock().expect("no holder panics").push(sender);
    }
    Ok(status)
}

async fn connect(load: &Load) -> Result<SendRequest<Empty<Bytes>>, String> {
    let stream = match load.from {
        None => TcpStream::connect(load.to).await,
        Some(from) => {
            let socket = TcpSocket::new_v4().map_err(|e| format!("socket: {e}"))?;
            socket.bind(from).map_err(|e| format!("bind: {e}"))?;
            socket.connect(load.to).await
        }
    };
    let stream = stream.map_err(|e| format!("connect: {}", e.kind()))?;
    stream.set_nodelay(true).map_err(|e| format!("socket: {e}"))?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| format!("handshake: {e}"))?;
    tokio::spawn(connection);
    Ok(sender)
}

/// hyper's error with its cause, without addresses, so that equal failures count together.
fn reason(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn load(to: SocketAddr) -> Load {
        Load {
            to,
            from: None,
            target: "/".to_owned(),
            host: "test".to_owned(),
            headers: Vec::new(),
            rate: 50,
            lasting: Duration::from_secs(1),
            fresh_every: 5,
            expect: 200,
        }
    }

    #[tokio::test]
    async fn every_request_is_counted_once_and_a_wrong_status_is_a_failure() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let to = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            let mut served = 0_u32;
            while let Ok((mut stream, _)) = listener.accept().await {
                served += 1;
                let answer = if served == 1 { "404 Not Found" } else { "200 OK" };
                tokio::spawn(async move {
                    let mut buffer = [0; 1024];
                    while matches!(stream.read(&mut buffer).await, Ok(n) if n > 0) {
                        let text = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n");
                        if stream.write_all(text.as_bytes()).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        let report = run(load(to)).await.expect("a loopback target");
        assert_eq!(report.sent, 50);
        assert_eq!(report.good + report.failures(), 50, "{report}");
        assert!(report.failed.contains_key("status 404"), "{report}");
    }

    #[tokio::test]
    async fn a_target_that_is_not_loopback_is_refused() {
        let refused = run(load("192.0.2.1:80".parse().expect("an address"))).await;
        assert!(refused.expect_err("refused").to_string().contains("loopback"));
    }
}
