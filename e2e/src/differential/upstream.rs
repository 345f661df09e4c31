//! The pods behind every differential case: small HTTP servers that say who answered and what they received.
//!
//! In: requests whose path tells the server what to do. Out: a JSON [`Echo`], or the failure that was asked for.
//! Kept true: failures are counted per request id, so two proxies never disturb each other's count.
//! Not here: the shop's services (`espresso-shop`).

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

/// Port on which every pod of the differential mesh serves.
pub const PORT: u16 = 9000;

/// A pod behind the cases' services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pod {
    /// Its name; answers carry it.
    pub name: &'static str,
    /// Its label `version`, which subsets select.
    pub version: &'static str,
    /// Last byte of its address in the 127.x network that [`Upstreams`] serves on.
    pub host: u8,
    /// False for a pod whose port nobody listens on.
    pub alive: bool,
}

/// Two replicas of version 1.
pub const V1A: Pod = Pod { name: "v1-a", version: "v1", host: 11, alive: true };
/// See [`V1A`].
pub const V1B: Pod = Pod { name: "v1-b", version: "v1", host: 12, alive: true };
/// The only replica of version 2.
pub const V2: Pod = Pod { name: "v2-a", version: "v2", host: 21, alive: true };
/// A pod that refuses connections.
pub const DEAD: Pod = Pod { name: "dead-a", version: "dead", host: 31, alive: false };
/// The application behind the proxies' own inbound ports; it listens on a free port of 127.0.0.1, like every application of a pod.
pub const APP: Pod = Pod { name: "app", version: "app", host: 0, alive: true };
/// All pods behind services.
pub const ALL: [Pod; 4] = [V1A, V1B, V2, DEAD];

/// What a pod answers when nothing else was asked of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Echo {
    /// [`Pod::name`].
    pub pod: String,
    /// How many times this request id has been here, from 1.
    pub attempt: usize,
    /// Method as received.
    pub method: String,
    /// Path and query as received.
    pub path: String,
    /// Fields as received, names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// Length of the request's body in bytes.
    pub body: usize,
}

/// The running pods. Dropping it stops them.
#[derive(Debug)]
pub struct Upstreams {
    net: [u8; 2],
    app: SocketAddr,
    tasks: tokio::task::JoinSet<()>,
}

type Counts = Arc<Mutex<HashMap<String, usize>>>;

impl Upstreams {
    /// Starts every living pod on `127.<a>.<b>.<host>:9000`.
    ///
    /// # Errors
    /// When an address is taken.
    pub async fn start(a: u8, b: u8) -> anyhow::Result<Self> {
        let mut tasks = tokio::task::JoinSet::new();
        let counts = Counts::default();
        for pod in ALL.into_iter().filter(|pod| pod.alive) {
            let listener = TcpListener::bind(address_in([a, b], pod)).await?;
            tasks.spawn(serve(pod, listener, Arc::clone(&counts)));
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let app = listener.local_addr()?;
        tasks.spawn(serve(APP, listener, counts));
        Ok(Self { net: [a, b], app, tasks })
    }

    /// Where [`APP`] listens.
    #[must_use]
    pub fn app(&self) -> SocketAddr {
        self.app
    }

    /// Where a pod listens.
    #[must_use]
    pub fn address(&self, pod: Pod) -> SocketAddr {
        debug_assert!(!self.tasks.is_empty());
        address_in(self.net, pod)
    }
}

fn address_in(net: [u8; 2], pod: Pod) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, net[0], net[1], pod.host)), PORT)
}

async fn serve(pod: Pod, listener: TcpListener, counts: Counts) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let counts = Arc::clone(&counts);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(|request| answer(pod, Arc::clone(&counts), request));
            let io = hyper_util::rt::TokioIo::new(stream);
            let server = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            // A connection that the proxy closes, or that `/reset` breaks, is what the case asked for.
            let _ended = server.serve_connection(io, service).await;
        });
    }
}

/// Why the connection is cut instead of answering.
#[derive(Debug, thiserror::Error)]
#[error("the request asked for a reset")]
struct Reset;

async fn answer(
    pod: Pod,
    counts: Counts,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Reset> {
    let (head, body) = request.into_parts();
    let id = head.headers.get("x-request-id").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let attempt = {
        let mut counts = counts.lock().expect("no holder panics");
        let count = counts.entry(id).or_default();
        *count += 1;
        *count
    };
    let path = head.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let body = body.collect().await.map(|b| b.to_bytes().len()).unwrap_or_default();
    let echo = Echo {
        pod: pod.name.to_owned(),
        attempt,
        method: head.method.to_string(),
        path: path.clone(),
        headers: head
            .headers
            .iter()
            .map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
            .collect(),
        body,
    };
    let ok = |status: u16| {
        let body = serde_json::to_vec(&echo).expect("an echo is JSON");
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
        Response::builder()
            .status(status)
            .header("content-type", "application/json")
            .header("x-pod", pod.name)
            .body(Full::new(body.into()))
            .expect("a plain response")
    };
    let words: Vec<&str> = path.split(['/', '?']).skip(1).collect();
    let number = |at: usize| words.get(at).and_then(|w| w.parse::<u16>().ok());
    match words.first().copied() {
        Some("status") => Ok(ok(number(1).unwrap_or(500))),
        Some("delay") => {
            tokio::time::sleep(Duration::from_millis(number(1).unwrap_or(0).into())).await;
            Ok(ok(200))
        }
        // /fail/N/CODE: the first N attempts of a request id fail with CODE.
        Some("fail") if attempt <= usize::from(number(1).unwrap_or(1)) => Ok(ok(number(2).unwrap_or(503))),
        // /slow/N/MS: the first N attempts take MS milliseconds.
        Some("slow") if attempt <= usize::from(number(1).unwrap_or(1)) => {
            tokio::time::sleep(Duration::from_millis(number(2).unwrap_or(0).into())).await;
            Ok(ok(200))
        }
        // /reset/N: the first N attempts lose their connection without an answer.
        Some("reset") if attempt <= usize::from(number(1).unwrap_or(u16::MAX)) => Err(Reset),
        _ => Ok(ok(200)),
    }
}
