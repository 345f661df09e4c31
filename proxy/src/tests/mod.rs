//! The data path as a whole, in process: real sockets on loopback, fake upstreams, a configuration built by hand, paused time.
//! In: [`Mesh::start`] and [`upstream`]. Out: answers, flags, what upstreams saw.
//! Kept true: one thread, ports drawn by the system, no wall time.
//! Not here: xDS (`xds`), the codec's own tests (`codec`).

use std::{cell::RefCell, future::Future, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use mesh_identity::{CertStore, TrustDomain};
use mesh_runtime::drain::{self, Trigger};
use mesh_traffic::{
    Cluster, Endpoint, Listener, Route, RouteConfiguration, Snapshot, VirtualHost,
    filter::{FilterConfig, HttpFilter},
    listener::{ChainMatch, FilterChain, HttpManager, Inspect, RouteSource, Terminal},
    names::Direction,
    route::{Action, Forward, RouteMatch, Target},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::LocalSet,
};

use crate::{
    codec::{Body, Head, Limits, Method, Protocol, Request, Response, Scheme, Serve, StatusCode, h1},
    telemetry::local::Report,
    worker::{Settings, Shared, Worker, run_worker},
};

mod authz;
mod cost;
mod faults;
mod limits;
mod retries;
mod security;
mod tcp;
mod ways;

/// What an upstream saw.
pub(crate) type Seen = Rc<RefCell<Vec<Head>>>;

/// An HTTP/1 and HTTP/2 server on loopback. The handler gets the number of the request, from 0.
pub(crate) async fn upstream<F, A>(handler: F) -> (SocketAddr, Seen)
where
    F: Fn(usize, Request) -> A + 'static,
    A: Future<Output = Response> + 'static,
{
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("bound");
    let seen = Seen::default();
    let (log, handler) = (Rc::clone(&seen), Rc::new(handler));
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = socket.accept().await {
            let (log, handler) = (Rc::clone(&log), Rc::clone(&handler));
            // A delayed acknowledgement takes wall time, in which a paused clock runs away.
            stream.set_nodelay(true).expect("an option");
            tokio::task::spawn_local(async move {
                let serve = Serve {
                    protocol: Protocol::Detect,
                    scheme: Scheme::Http,
                    limits: Rc::new(Limits::sidecar()),
                };
                let answer = |request: Request| {
                    let number = log.borrow().len();
                    log.borrow_mut().push(request.head.clone());
                    handler(number, request)
                };
                serve.run(stream, std::future::pending(), &answer).await;
            });
        }
    });
    (address, seen)
}

/// An upstream that answers everything with 200 and its name.
pub(crate) async fn echo(name: &'static str) -> (SocketAddr, Seen) {
    upstream(move |_, _| async move { Response::text(StatusCode::OK, name) }).await
}

/// An address where nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    socket.local_addr().expect("bound")
}

/// A route that forwards everything.
pub(crate) fn route(cluster: &str, edit: impl FnOnce(&mut Forward)) -> Route {
    let mut forward =
        Forward { target: Target::Cluster(cluster.into()), cluster_not_found: 503, ..Forward::default() };
    edit(&mut forward);
    Route {
        name: "default".into(),
        matcher: RouteMatch::default(),
        action: Action::Forward(Box::new(forward)),
        headers: Default::default(),
        filters: Default::default(),
        source: None,
        operation: None,
    }
}

/// One virtual host for everybody.
pub(crate) fn routes(routes: Vec<Route>) -> RouteConfiguration {
    let host = VirtualHost {
        name: "any".into(),
        domains: vec!["*".into()],
        routes: routes.into_iter().map(Arc::new).collect(),
        include_attempt_count: true,
        ..VirtualHost::default()
    };
    RouteConfiguration { name: "routes".into(), virtual_hosts: vec![Arc::new(host)], ..Default::default() }
}

/// A manager of RDS routes with these filters before the router.
pub(crate) fn manager(filters: Vec<FilterConfig>) -> HttpManager {
    let named = |config| HttpFilter { name: "f".into(), config };
    let filters = filters.into_iter().chain([FilterConfig::Router]).map(named).collect();
    HttpManager { routes: RouteSource::Rds("routes".into()), filters, ..HttpManager::default() }
}

/// A plain chain.
pub(crate) fn chain(terminal: Terminal) -> Arc<FilterChain> {
    Arc::new(FilterChain {
        name: "chain".into(),
        matcher: ChainMatch::default(),
        tls: None,
        rbac: Vec::new(),
        terminal,
        source: None,
    })
}

/// A listener named `in` on a drawn port.
pub(crate) fn listener(chains: Vec<Arc<FilterChain>>, edit: impl FnOnce(&mut Listener)) -> Listener {
    let mut listener = Listener {
        name: "in".into(),
        address: ([127, 0, 0, 1], 0).into(),
        additional: Vec::new(),
        bind: true,
        use_original_dst: false,
        direction: Direction::Outbound,
        inspect: Inspect::default(),
        chains,
        default_chain: None,
        access_log: Vec::new(),
    };
    edit(&mut listener);
    listener
}

/// A configuration with one HTTP listener.
pub(crate) fn snapshot(manager: HttpManager, table: RouteConfiguration, clusters: Vec<Cluster>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let http = chain(Terminal::Http(Arc::new(manager)));
    snapshot.add_listener(listener(vec![http], |_| {})).expect("routes");
    snapshot.add_routes(table).expect("domains");
    clusters.into_iter().for_each(|cluster| snapshot.add_cluster(cluster));
    snapshot
}

/// A cluster `c` with these endpoints.
pub(crate) fn cluster(endpoints: &[SocketAddr]) -> Cluster {
    Cluster::fixed("c", endpoints.iter().map(|address| Endpoint::at(*address)).collect())
}

/// An answer as the client saw it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub head: Head,
    pub body: String,
    /// The body ended as it should.
    pub whole: bool,
}

/// A proxy with one worker on this thread.
pub(crate) struct Mesh {
    pub worker: Rc<Worker>,
    pub shared: Arc<Shared>,
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    reports: RefCell<mpsc::Receiver<Report>>,
    pub trigger: RefCell<Option<Trigger>>,
    pub running: RefCell<Option<tokio::task::JoinHandle<()>>>,
}

impl Mesh {
    pub(crate) async fn start(snapshot: Snapshot) -> Self {
        let store = CertStore::new(TrustDomain::default(), []);
        Self::with(snapshot, store, Settings::default()).await
    }

    pub(crate) async fn with(snapshot: Snapshot, store: CertStore, settings: Settings) -> Self {
        let (trigger, watch) = drain::new();
        let (out, reports) = mpsc::channel(64);
        let shared = Shared::new(settings, store, Some(out), watch);
        let worker = Worker::new(0, Arc::clone(&shared));
        let (snapshots, follow) = watch::channel(Arc::new(snapshot));
        let running = tokio::task::spawn_local(run_worker(Rc::clone(&worker), follow));
        let mesh = Self {
            worker,
            shared,
            snapshots,
            reports: RefCell::new(reports),
            trigger: RefCell::new(Some(trigger)),
            running: RefCell::new(Some(running)),
        };
        while mesh.shared.address_of("in").is_none() {
            tokio::task::yield_now().await;
        }
        mesh
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.shared.address_of("in").expect("bound")
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Request { head: Head::request(Method::GET, "shop", path), body: Body::empty() }).await
    }

    pub(crate) async fn send(&self, request: Request) -> Answer {
        let stream = TcpStream::connect(self.address()).await.expect("the proxy listens");
        send_over(stream, request).await
    }

    /// Flags and details of the requests that have ended since the last call, in order.
    pub(crate) fn told(&self) -> Vec<(u16, String, String)> {
        self.worker.telemetry.flush();
        let mut reports = self.reports.borrow_mut();
        let mut out = Vec::new();
        let mut facts = std::collections::HashMap::new();
        while let Ok(report) = reports.try_recv() {
            facts.extend(report.series.into_iter().map(|(number, facts, _)| (number, facts)));
            for (head, texts) in report.events.iter() {
                let facts = &facts[&head.series];
                out.push((facts.code, facts.flags.to_string(), texts.detail.to_owned()));
            }
        }
        out
    }

    /// The flags of the one request that has ended since the last call.
    pub(crate) async fn flags(&self) -> String {
        for _ in 0..50 {
            if let [(_, flags, _)] = self.told().as_slice() {
                return flags.clone();
            }
            tokio::task::yield_now().await;
        }
        panic!("not exactly one request has ended");
    }
}

pub(crate) async fn send_over(io: impl crate::codec::Io, request: Request) -> Answer {
    let conn = h1::ClientConn::new(io, Rc::new(Limits::upstream()));
    let response = conn.send(request).await.expect("an answer");
    let mut body = response.body;
    let (mut text, mut whole) = (String::new(), true);
    while let Some(frame) = body.next_frame().await {
        match frame {
            Ok(crate::codec::Frame::Data(data)) => text.push_str(&String::from_utf8_lossy(&data)),
            Ok(crate::codec::Frame::Trailers(_)) => {}
            Err(_) => whole = false,
        }
    }
    Answer { status: response.head.status().as_u16(), head: response.head, body: text, whole }
}

/// Runs a test on a paused clock in a set of local tasks.
pub(crate) fn block_on<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(100_000), test).await.expect("the test ends");
    });
}
