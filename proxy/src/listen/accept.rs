//! From the accept queue to a filter chain.
//!
//! In: a listening socket. Out: each connection inspected, matched, secured and served. Kept true: the loop survives every accept error
//! without spinning; one bad connection ends alone. Not here: sockets' lifecycle (`listen`), HTTP (`http`), bytes (`tcp`).

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mesh_traffic::{
    Listener, RouteTable,
    listener::{Codec, ConnectionFacts, FilterChain, HttpManager, RouteSource, Terminal, Transport},
    names::{Direction, Name},
    rbac::Verdict,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use super::{Active, Downstream, Rewound, inspect, tls};
use crate::{
    codec::{Handler, Io, Limits, Protocol, Refusal, Request, Response, Scheme, Serve},
    http, tcp,
    telemetry::stats::ListenerStats,
    worker::{LINGER, View, Worker},
};

/// Accepts until the listener is removed or the proxy drains; what already waits in the queue is still served.
pub async fn run(worker: Rc<Worker>, active: Rc<Active>, socket: TcpListener) {
    let name = active.now.borrow().name.clone();
    let stats = worker.shared.stats.listener(&name);
    let offer = worker.shared.sockets.offer(std::os::fd::AsFd::as_fd(&socket));
    let mut pause = Duration::from_millis(5);
    loop {
        let accepted = tokio::select! {
            () = active.until_removed() => break,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, remote)) => {
                pause = Duration::from_millis(5);
                start(&worker, &active, &stats, stream, remote);
            }
            // The client was faster in leaving than we in accepting.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => {
                stats.accept_errors.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(listener = %name, %error, "accepting failed; raise the limit of open files if there are too many");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(500));
            }
        }
    }
    drop(offer);
    if worker.shared.sockets.handed_over() {
        return;
    }
    // Closing a socket resets what waits in its queue.
    while let Some(Ok((stream, remote))) = futures::FutureExt::now_or_never(socket.accept()) {
        start(&worker, &active, &stats, stream, remote);
    }
}

/// Open connections of the process, counted down when dropped.
struct Open(Arc<crate::worker::Shared>, Arc<ListenerStats>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
        self.1.connections_active.fetch_sub(1, Ordering::Relaxed);
    }
}

fn start(
    worker: &Rc<Worker>,
    active: &Rc<Active>,
    stats: &Arc<ListenerStats>,
    stream: TcpStream,
    remote: SocketAddr,
) {
    let shared = &worker.shared;
    stats.connections_total.fetch_add(1, Ordering::Relaxed);
    let open = AtomicU64::fetch_add(&shared.connections, 1, Ordering::AcqRel);
    stats.connections_active.fetch_add(1, Ordering::Relaxed);
    let guard = Open(Arc::clone(shared), Arc::clone(stats));
    if open >= shared.settings.max_connections {
        stats.overflows.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let (worker, active, stats) = (Rc::clone(worker), Rc::clone(active), Arc::clone(stats));
    tokio::task::spawn_local(async move {
        let _guard = guard;
        let _ = stream.set_nodelay(true);
        connection(worker, active, stats, stream, remote).await;
    });
}

/// A connection that its listener takes: what is known of it, the chain that serves it, its bytes.
struct Admitted {
    conn: Downstream,
    listener: Arc<Listener>,
    view: Rc<View>,
    chain: Arc<FilterChain>,
    protocol: Protocol,
    io: Box<dyn Io>,
}

async fn connection(
    worker: Rc<Worker>,
    active: Rc<Active>,
    stats: Arc<ListenerStats>,
    stream: TcpStream,
    remote: SocketAddr,
) {
    // Boxed, so that the room for a handshake is given back when it is over.
    let admitted = Box::pin(admit(worker, &active, stats, stream, remote)).await;
    if let Some(admitted) = admitted {
        serve(admitted, &active).await;
    }
}

/// Looks at the first bytes as far as the listener needs them, chooses the chain, and shakes hands. `None` when the connection is over.
async fn admit(
    worker: Rc<Worker>,
    active: &Active,
    stats: Arc<ListenerStats>,
    mut stream: TcpStream,
    remote: SocketAddr,
) -> Option<Admitted> {
    let mut listener = Arc::clone(&active.now.borrow());
    let bound = stream.local_addr().ok()?;
    let captured = (listener.inspect.original_dst || listener.use_original_dst)
        .then(|| original_destination(&stream))
        .flatten()
        .filter(|original| *original != bound);
    let local = captured.unwrap_or(bound);
    let view = worker.view();
    if listener.use_original_dst && captured.is_none() {
        // Nobody sent it elsewhere: passing it on to where it was sent would bring it back here, for ever.
        stats.no_chain.fetch_add(1, Ordering::Relaxed);
        reset(&stream);
        tcp::refused(&worker, &listener.access_log, remote, local, "");
        return None;
    }
    if listener.use_original_dst
        && let Some(other) = hand_over(&view, &listener, local)
    {
        listener = other;
    }
    let looks = listener.inspect;
    // A chain with TLS agrees on a protocol out of those that the ClientHello names, also where none of this chooses the chain.
    let secured = listener.all_chains().any(|chain| chain.tls.is_some());
    let mut offers = Vec::new();
    let (transport, server_name, protocols, before) = if looks.tls || looks.http || secured {
        let wait = inspect::patience(&listener);
        let tls = looks.tls || secured;
        let seen = inspect::look(&mut stream, wait, tls, looks.http).await?;
        if seen.transport == Transport::Tls && !looks.tls {
            offers = seen.protocols;
            (Transport::Raw, String::new(), Vec::new(), seen.before)
        } else {
            offers.clone_from(&seen.protocols);
            (seen.transport, seen.server_name, seen.protocols, seen.before)
        }
    } else {
        (Transport::Raw, String::new(), Vec::new(), bytes::Bytes::new())
    };
    let offered: Vec<&str> = protocols.iter().map(String::as_str).collect();
    let facts = ConnectionFacts {
        destination: local,
        source: remote,
        transport,
        server_name: &server_name,
        protocols: &offered,
    };
    let Some(chain) = listener.chain_or_default(&facts).cloned() else {
        stats.no_chain.fetch_add(1, Ordering::Relaxed);
        reset(&stream);
        tcp::refused(&worker, &listener.access_log, remote, local, &server_name);
        return None;
    };
    let stream = Rewound::new(before, stream);
    let mut conn = Downstream {
        id: worker.next_connection(),
        worker,
        stats,
        remote,
        local,
        captured,
        peer: None,
        identity: None,
        principal: None,
        server_name,
        inbound: listener.direction == Direction::Inbound,
        tls: false,
    };
    match &chain.tls {
        None => {
            let io = Box::new(stream);
            Some(Admitted { conn, listener, view, chain, protocol: Protocol::Detect, io })
        }
        Some(settings) => {
            let accepted = tls::accept(&conn.worker.shared, &view.snapshot, settings, &offers, stream).await;
            let accepted = match accepted {
                Ok(accepted) => accepted,
                Err(why) => {
                    conn.stats.tls_errors.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(listener = %listener.name, %remote, %why, "TLS handshake failed");
                    return None;
                }
            };
            conn.tls = true;
            if let Some(peer) = &accepted.peer {
                conn.identity = Some(peer.id().as_str().to_owned());
                conn.principal = Some(peer.id().principal().into());
            }
            conn.peer = accepted.peer;
            if conn.server_name.is_empty() {
                conn.server_name = accepted.sni.unwrap_or_default();
            }
            let protocol = match accepted.alpn.as_deref() {
                Some(b"h2" | b"istio-h2") => Protocol::Http2,
                Some(b"http/1.1" | b"istio-http/1.1") => Protocol::Http1,
                _ => Protocol::Detect,
            };
            Some(Admitted { conn, listener, view, chain, protocol, io: Box::new(accepted.stream) })
        }
    }
}

async fn serve(admitted: Admitted, active: &Active) {
    let Admitted { conn, listener, view, chain, protocol, io } = admitted;
    for rbac in &chain.rbac {
        if matches!(rbac.check_connection(&conn.rbac_peer()), Verdict::Denied(_)) && !rbac.shadow {
            tracing::debug!(remote = %conn.remote, chain = %chain.name, "connection denied by policy");
            return;
        }
    }
    let conn = Rc::new(conn);
    let drain = conn.worker.shared.drain.clone();
    let ending = async {
        tokio::select! {
            () = drain.signaled() => tokio::time::sleep(LINGER).await,
            () = active.until_removed() => {
                if drain.is_draining() {
                    tokio::time::sleep(LINGER).await;
                }
            }
        }
    };
    let serving = async {
        let view = view;
        match &chain.terminal {
            Terminal::Tcp(proxy) => Box::pin(tcp::serve(&conn, &view, proxy, io)).await,
            Terminal::Http(manager) => {
                let protocol = match manager.codec {
                    Codec::Auto => protocol,
                    Codec::Http1 => Protocol::Http1,
                    Codec::Http2 => Protocol::Http2,
                };
                let scheme = if conn.tls { Scheme::Https } else { Scheme::Http };
                let limits = Rc::new(limits(manager));
                let handler = Http {
                    conn: Rc::clone(&conn),
                    listener: listener.name.clone(),
                    chain: Arc::clone(&chain),
                    held: RefCell::new(Held::new(&view, &listener, manager)),
                    outlived: Notify::new(),
                };
                // A connection that lives long keeps no configuration alive that has gone.
                drop(view);
                let ending = async {
                    tokio::select! {
                        () = ending => {}
                        () = handler.outlived.notified() => {}
                    }
                };
                let end = Serve { protocol, scheme, limits }.run_boxed(io, ending, &handler).await;
                tracing::trace!(remote = %conn.remote, ?end, "connection ended");
            }
        }
    };
    tokio::select! {
        () = serving => {}
        () = until_distrusted(&conn) => {}
    }
}

/// Resolves once the client's certificate would be refused now, for want of its root (CVE-2022-21654).
async fn until_distrusted(conn: &Downstream) {
    let Some(peer) = &conn.peer else { return std::future::pending().await };
    loop {
        conn.worker.trust_changed.notified().await;
        if let Err(why) = conn.worker.shared.identity.recheck(peer) {
            tracing::info!(remote = %conn.remote, %why, "connection cut: its certificate is no longer trusted");
            return;
        }
    }
}

/// What clients of a listener may ask.
fn limits(manager: &HttpManager) -> Limits {
    let base = if manager.use_remote_address { Limits::gateway() } else { Limits::sidecar() };
    let given = |time: Duration, or: Duration| if time.is_zero() { or } else { time };
    Limits {
        head_bytes: usize::try_from(manager.max_head_kib).unwrap_or(60).max(1) * 1024,
        head_timeout: given(manager.headers_timeout, base.head_timeout),
        idle_timeout: given(manager.idle_timeout, base.idle_timeout),
        allow_connect: http::connect::is_explicit(manager),
        allow_upgrade: !manager.upgrades.is_empty(),
        ..base
    }
}

/// What serves a connection: the settings of its chain, followed through changes of the listener.
struct Http {
    conn: Rc<Downstream>,
    listener: Name,
    /// The chain that admitted the connection.
    chain: Arc<FilterChain>,
    held: RefCell<Held>,
    /// Told when the listener no longer has that chain: the connection ends in order, its last requests as it was admitted.
    outlived: Notify,
}

/// Settings in use, and the listener they are of.
struct Held {
    listener: Arc<Listener>,
    manager: Arc<HttpManager>,
    /// Routes inside the listener leave the snapshot with it, so they are held.
    routes: Option<Arc<RouteTable>>,
}

impl Held {
    fn new(view: &View, listener: &Arc<Listener>, manager: &Arc<HttpManager>) -> Self {
        let inline = matches!(manager.routes, RouteSource::Inline(_));
        let routes = if inline { view.snapshot.routes_of(manager).cloned() } else { None };
        Self { listener: Arc::clone(listener), manager: Arc::clone(manager), routes }
    }
}

impl Http {
    /// The settings for the next request: those in force now, so that a policy binds connections that were there before it.
    fn settings(&self) -> (Arc<HttpManager>, Option<Arc<RouteTable>>) {
        let view = self.conn.worker.view();
        let mut held = self.held.borrow_mut();
        if let Some(now) = view.snapshot.listeners.get(&self.listener)
            && !Arc::ptr_eq(now, &held.listener)
        {
            let same = |chain: &&Arc<FilterChain>| {
                let of = |c: &FilterChain| (c.name.clone(), c.matcher.clone(), c.tls.clone(), c.rbac.clone());
                of(chain) == of(&self.chain)
            };
            match now.chains.iter().chain(&now.default_chain).find(same).map(|chain| &chain.terminal) {
                Some(Terminal::Http(manager)) => *held = Held::new(&view, now, manager),
                _ => self.outlived.notify_one(),
            }
        }
        (Arc::clone(&held.manager), held.routes.clone())
    }
}

impl Handler for Http {
    async fn handle(&self, request: Request) -> Response {
        let (manager, routes) = self.settings();
        http::handle(&self.conn, &manager, routes.as_ref(), request).await
    }

    fn refused(&self, why: &Refusal) {
        self.conn.stats.protocol_errors.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(remote = %self.conn.remote, %why, "request refused");
    }
}

/// The address that a captured connection was sent to.
#[must_use]
pub fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    if let Ok(v4) = rustix::net::sockopt::ip_original_dst(stream) {
        return Some(SocketAddr::V4(v4));
    }
    rustix::net::sockopt::ipv6_original_dst(stream).ok().map(SocketAddr::V6)
}

/// The listener of an original destination: of exactly that address, else of the port on any address. Only of the same direction: a
/// connection of the application to port 15006 elsewhere is not inbound.
fn hand_over(view: &View, own: &Listener, original: SocketAddr) -> Option<Arc<Listener>> {
    let others = || {
        let all = view.snapshot.listeners.values();
        all.filter(|listener| listener.name != own.name && listener.direction == own.direction)
    };
    let exact = others().find(|listener| listener.address == original);
    let any = |listener: &&Arc<Listener>| {
        listener.address.port() == original.port() && listener.address.ip().is_unspecified()
    };
    exact.or_else(|| others().find(any)).cloned()
}

/// Closes with RST, as Envoy does where no chain matches: the client must not take it for an answer.
fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
