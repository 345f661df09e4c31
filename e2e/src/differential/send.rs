//! Sends one probe through one proxy and gathers everything that can be seen of it.
//!
//! In: a [`Case`] and its [`Probe`]. Out: one [`Seen`] per request, with the response flag from the access log.
//! Kept true: every request has an id of its own, by which its log line is found. Not here: what counts as equal (`compare`).

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Case, Probe, Seen, upstream::Echo};

/// One proxy under test.
#[derive(Debug)]
pub struct Side {
    /// "envoy" or "crema".
    pub name: &'static str,
    /// Its HTTP_PROXY listener.
    pub address: SocketAddr,
    /// Its pod's port, behind which an application listens.
    pub inbound: SocketAddr,
    /// File that holds its access log.
    pub log: std::path::PathBuf,
}

/// Port of every case's Service.
pub const SERVICE_PORT: u16 = 8080;

/// Sends `probe` as often as it says, and looks the answers up in the proxy's access log.
///
/// # Errors
/// When the proxy cannot be reached.
pub async fn probe(side: &Side, case: &Case, probe: &Probe) -> anyhow::Result<Vec<Seen>> {
    let mut seen: Vec<(String, Seen)> = stream::iter(0..probe.times)
        .map(|_| one(side, case, probe))
        .buffer_unordered(probe.at_once)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect::<anyhow::Result<_>>()
        .with_context(|| format!("{} {} through {}", case.name, probe.path, side.name))?;
    flags(side, &mut seen).await?;
    Ok(seen.into_iter().map(|(_, seen)| seen).collect())
}

async fn one(side: &Side, case: &Case, probe: &Probe) -> anyhow::Result<(String, Seen)> {
    let id = request_id();
    let to = if probe.inbound { side.inbound } else { side.address };
    let stream = TcpStream::connect(to).await.with_context(|| format!("connecting to {to}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let host = format!("{}:{SERVICE_PORT}", case.name);
    let mut request = Request::builder()
        .method(probe.method)
        .uri(if probe.inbound { probe.path.clone() } else { format!("http://{host}{}", probe.path) })
        .header("host", &host)
        .header("x-request-id", &id);
    for (name, value) in &probe.headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new())?;
    let answer = tokio::time::timeout(Duration::from_secs(30), sender.send_request(request)).await;
    let response = answer.context("no answer within 30 s")??;
    let status = response.status().as_u16();
    let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let (pod, overloaded, location) = (header("x-pod"), header("x-envoy-overloaded"), header("location"));
    let body = response.into_body().collect().await?.to_bytes();
    driver.abort();
    let echo = pod.is_some().then(|| serde_json::from_slice::<Echo>(&body).ok()).flatten();
    let text = String::from_utf8_lossy(&body).into_owned();
    let seen = Seen { status, flags: String::new(), pod, overloaded, location, body: text, echo };
    Ok((id, seen))
}

/// A random id in the form of a version-4 UUID, which both proxies keep as it is.
fn request_id() -> String {
    let (a, b) = (rand::random::<u64>(), rand::random::<u64>());
    format!(
        "{:08x}-{:04x}-4{:03x}-9{:03x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        b >> 52,
        b & 0xffff_ffff_ffff
    )
}

/// The part of a request id that no proxy changes: Envoy writes into the version digit whether it traced the request.
fn kept(id: &str) -> &str {
    id.get(15..).unwrap_or(id)
}

/// Reads the response flags of `seen` from the proxy's access log, waiting for the log to be written.
async fn flags(side: &Side, seen: &mut [(String, Seen)]) -> anyhow::Result<()> {
    for _ in 0..60 {
        let log = tokio::fs::read_to_string(&side.log).await.unwrap_or_default();
        let mut missing = false;
        for (id, seen) in seen.iter_mut().filter(|(_, s)| s.flags.is_empty()) {
            match log.lines().rev().find(|line| line.contains(kept(id))).and_then(flags_of) {
                Some(flags) => seen.flags = flags,
                None => missing = true,
            }
        }
        if !missing {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // A request that one proxy does not log is a difference of its own, not the end of the run.
    for (_, seen) in seen.iter_mut().filter(|(_, s)| s.flags.is_empty()) {
        seen.flags = "not logged".to_owned();
    }
    Ok(())
}

/// The response flags of a line in Istio's default text format: the second word after the quoted request line.
fn flags_of(line: &str) -> Option<String> {
    let after = line.split('"').nth(2)?;
    after.split_whitespace().nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::flags_of;

    #[test]
    fn flags_are_read_from_istios_default_line() {
        let line =
            r#"[2026-01-01T00:00:00.000Z] "GET /x HTTP/1.1" 503 UF,URX upstream_reset - "-" 0 91 3 - "-""#;
        assert_eq!(flags_of(line).as_deref(), Some("UF,URX"));
    }
}
