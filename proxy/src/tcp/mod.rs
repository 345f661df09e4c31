//! Connections that are not HTTP: copied both ways to an endpoint of a cluster.
//!
//! In: an accepted stream, a [`TcpProxy`]. Out: its bytes at the other end. Kept true: each direction closes by itself; a connection counts
//! against the cluster's limit as long as it is open; told when it opens, every 10 s, and when it closes. Not here: chains (`listen`).

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use mesh_traffic::{
    ResponseFlags,
    cluster::Discovery,
    listener::{AccessLog, TcpProxy},
    names::{ClusterName, Direction},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::{
    balance::{
        ClusterState, Failure, InFlight, Kind,
        connect::{self, Ends, Spoken},
        limits::ConnectionPermit,
        outlier::Sign,
        overflow,
    },
    codec::{Io, relay},
    listen::Downstream,
    telemetry::{
        format::Entry,
        local::{Head as Event, Texts},
        series::{Facts, Numbers},
    },
    worker::{View, Worker},
};

/// How often an open connection is told of.
const REPORT: Duration = Duration::from_secs(10);

/// An open upstream connection, with what ends with it.
pub struct Opened {
    io: Box<dyn Io>,
    /// What is known of it.
    pub ends: Ends,
    _permit: ConnectionPermit,
    _in_flight: InFlight,
}

/// Opens a connection to an endpoint of a cluster, or to `target` if the cluster leaves that to the client.
///
/// # Errors
/// Why there is none.
pub async fn open(
    worker: &Worker,
    view: &View,
    state: &Rc<ClusterState>,
    target: Option<SocketAddr>,
) -> Result<Opened, Failure> {
    let host = match (&state.cluster().discovery, target) {
        (Discovery::OriginalDst, Some(target)) => state.original(target),
        (Discovery::OriginalDst, None) => {
            return Err(Failure::new(Kind::NoHealthyUpstream, "the client named no destination"));
        }
        _ => state.pick(|| worker.random(), None, &[], 1)?,
    };
    let permit = host.permit(state).ok_or_else(|| overflow(state, "maxConnections"))?;
    let in_flight = InFlight::new(state, &host)?;
    let Some(address) = host.address() else {
        return Err(Failure::new(Kind::Connect, format!("{} has no IP address", host.endpoint.address)));
    };
    let tls = state.cluster().tls_for(&host.endpoint);
    let link = connect::open(&worker.shared, view, state.cluster(), address, tls, Spoken::Tcp).await;
    match link {
        Ok(link) => Ok(Opened { io: link.io, ends: link.ends, _permit: permit, _in_flight: in_flight }),
        Err(failure) => {
            state.note(&host, Sign::Local);
            Err(failure)
        }
    }
}

/// Serves one connection to its end. Dropping the future closes both sides.
pub async fn serve(conn: &Rc<Downstream>, view: &Rc<View>, proxy: &TcpProxy, mut io: impl Io) {
    let worker = &conn.worker;
    let _busy = worker.begin();
    let story = Story::new(conn, proxy);
    let name = proxy.pick(worker.random());
    let Some(state) = worker.cluster(view, name) else {
        story.borrow_mut().flags = ResponseFlags::NO_CLUSTER_FOUND;
        return story.borrow().close(conn, proxy, name);
    };
    let service = state.cluster().service.clone();
    let mut upstream = match open(worker, view, &state, Some(conn.local)).await {
        Ok(upstream) => upstream,
        Err(failure) => {
            let mut story = story.borrow_mut();
            story.flags = failure.reply().flags;
            story.failure = failure.why;
            return story.close(conn, proxy, name);
        }
    };
    {
        let mut story = story.borrow_mut();
        story.upstream = Some(upstream.ends.clone());
        story.service = service.or_else(|| service_of(name));
        story.note(conn, name, 1, |n| n.opened += 1);
    }
    let activity = Rc::new(Activity::default());
    let mut near = Watched { io: &mut io, bytes: &activity.received, last: &activity.last };
    let mut far = Watched { io: &mut upstream.io, bytes: &activity.sent, last: &activity.last };
    let copying = relay(&mut near, &mut far);
    let watching = async {
        let mut told = (0, 0);
        loop {
            let idle = activity.last.get().elapsed();
            if !proxy.idle_timeout.is_zero() && idle >= proxy.idle_timeout {
                return;
            }
            let rest = if proxy.idle_timeout.is_zero() { REPORT } else { proxy.idle_timeout - idle };
            tokio::time::sleep(rest.min(REPORT)).await;
            told = story.borrow().progress(conn, name, &activity, told);
        }
    };
    let story_flags = tokio::select! {
        done = copying => match done {
            Ok(_) => ResponseFlags::NONE,
            Err(_) => ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
        },
        () = watching => ResponseFlags::STREAM_IDLE_TIMEOUT,
    };
    let mut story = story.borrow_mut();
    // An ending by either side is an end like any other for TCP; only silence is worth a flag.
    story.flags =
        if story_flags == ResponseFlags::STREAM_IDLE_TIMEOUT { story_flags } else { ResponseFlags::NONE };
    story.received = activity.received.get();
    story.sent = activity.sent.get();
    story.close(conn, proxy, name);
}

fn service_of(cluster: &str) -> Option<mesh_traffic::cluster::Service> {
    let host = ClusterName::parse(cluster).map(|name| name.host).filter(|host| !host.is_empty())?;
    let mut parts = host.split('.');
    Some(mesh_traffic::cluster::Service {
        name: parts.next().unwrap_or_default().into(),
        namespace: parts.next().unwrap_or_default().into(),
        host: host.as_str().into(),
    })
}

/// Logs a connection that no chain took.
pub fn refused(
    worker: &Worker,
    logs: &[AccessLog],
    remote: SocketAddr,
    local: SocketAddr,
    server_name: &str,
) {
    for log in logs {
        let entry = Entry {
            start: SystemTime::now(),
            request: None,
            response: None,
            code: 0,
            flags: ResponseFlags::NO_ROUTE_FOUND,
            detail: "filter_chain_not_found",
            termination: "",
            transport_failure: "",
            received: 0,
            sent: 0,
            duration_ms: 0,
            upstream: None,
            cluster: "",
            upstream_local: None,
            local,
            remote,
            server_name,
            route: "",
            peer: "",
        };
        worker.logs.write(&log.path, worker.logs.format(&log.format).line(&entry));
    }
}

struct Story {
    clock: SystemTime,
    started: Instant,
    flags: ResponseFlags,
    failure: String,
    upstream: Option<Ends>,
    service: Option<mesh_traffic::cluster::Service>,
    direction: Direction,
    received: u64,
    sent: u64,
    told: Cell<(u64, u64)>,
}

impl Story {
    fn new(conn: &Downstream, _proxy: &TcpProxy) -> Rc<RefCell<Self>> {
        let direction = if conn.inbound { Direction::Inbound } else { Direction::Outbound };
        Rc::new(RefCell::new(Self {
            clock: SystemTime::now(),
            started: Instant::now(),
            flags: ResponseFlags::NONE,
            failure: String::new(),
            upstream: None,
            service: None,
            direction,
            received: 0,
            sent: 0,
            told: Cell::new((0, 0)),
        }))
    }

    fn facts(&self, conn: &Downstream, cluster: &mesh_traffic::names::Name) -> Facts {
        let inbound = self.direction == Direction::Inbound;
        let pod = conn.worker.shared.local_ip;
        let upstream = self.upstream.as_ref();
        let mutual = if inbound { conn.peer.is_some() } else { upstream.is_some_and(|u| u.mutual) };
        let own = conn.worker.own_principal().filter(|_| mutual);
        let (source_ip, destination_ip, destination_port) = if inbound {
            (Some(conn.remote.ip()), pod.or(Some(conn.local.ip())), conn.local.port())
        } else {
            let source = pod.or(Some(conn.remote.ip()));
            (source, upstream.map(|u| u.remote.ip()), upstream.map_or(0, |u| u.remote.port()))
        };
        let (source_principal, destination_principal) = if inbound {
            (conn.principal.clone(), own)
        } else {
            (own, upstream.and_then(|u| u.principal.clone()))
        };
        Facts {
            direction: self.direction,
            protocol: "tcp",
            source_ip,
            source_principal,
            destination_ip,
            destination_port,
            destination_principal,
            service: self.service.clone(),
            code: 0,
            // Flags are known only at the end: a series must not change its name in between.
            flags: ResponseFlags::NONE,
            grpc: None,
            mutual,
            cluster: cluster.clone(),
        }
    }

    fn note(
        &self,
        conn: &Downstream,
        cluster: &mesh_traffic::names::Name,
        event: i32,
        change: impl FnOnce(&mut Numbers),
    ) {
        let telemetry = &conn.worker.telemetry;
        if !telemetry.is_on() {
            return;
        }
        let mut head = Event::new(self.clock, self.started.elapsed());
        head.event = event;
        head.connection = conn.id;
        head.source_port = conn.remote.port();
        head.request_total = self.received;
        head.response_total = self.sent;
        let texts = Texts { server_name: &conn.server_name, ..Texts::default() };
        telemetry.note(self.facts(conn, cluster), change, Some((head, texts)));
    }

    fn progress(
        &self,
        conn: &Downstream,
        cluster: &mesh_traffic::names::Name,
        activity: &Activity,
        told: (u64, u64),
    ) -> (u64, u64) {
        let now = (activity.received.get(), activity.sent.get());
        if now != told {
            self.note(conn, cluster, 2, |n| {
                n.received += now.0 - told.0;
                n.sent += now.1 - told.1;
            });
            self.told.set(now);
        }
        now
    }

    fn close(&self, conn: &Downstream, proxy: &TcpProxy, cluster: &mesh_traffic::names::Name) {
        if self.upstream.is_some() {
            let (received, sent) = self.told.get();
            self.note(conn, cluster, 3, |n| {
                n.closed += 1;
                n.received += self.received.saturating_sub(received);
                n.sent += self.sent.saturating_sub(sent);
            });
        }
        for log in &proxy.access_log {
            let entry = Entry {
                start: self.clock,
                request: None,
                response: None,
                code: 0,
                flags: self.flags,
                detail: "",
                termination: "",
                transport_failure: &self.failure,
                received: self.received,
                sent: self.sent,
                duration_ms: self.started.elapsed().as_millis(),
                upstream: self.upstream.as_ref().map(|ends| ends.remote),
                cluster,
                upstream_local: self.upstream.as_ref().map(|ends| ends.local),
                local: conn.local,
                remote: conn.remote,
                server_name: &conn.server_name,
                route: "",
                peer: conn.identity.as_deref().unwrap_or(""),
            };
            conn.worker.logs.write(&log.path, conn.worker.logs.format(&log.format).line(&entry));
        }
    }
}

struct Activity {
    received: Cell<u64>,
    sent: Cell<u64>,
    last: Cell<Instant>,
}

impl Default for Activity {
    fn default() -> Self {
        Self { received: Cell::new(0), sent: Cell::new(0), last: Cell::new(Instant::now()) }
    }
}

/// Counts what is read from a stream.
struct Watched<'a, IO> {
    io: &'a mut IO,
    bytes: &'a Cell<u64>,
    last: &'a Cell<Instant>,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<'_, IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut *self.io).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        if read > 0 {
            self.bytes.set(self.bytes.get() + u64::try_from(read).unwrap_or(0));
            self.last.set(Instant::now());
        }
        poll
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<'_, IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_shutdown(cx)
    }
}

impl AsyncRead for Opened {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Opened {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
