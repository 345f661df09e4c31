//! Connections of one worker to one endpoint, and their safe reuse.
//!
//! In: a wish for a connection. Out: [`Leased`]. Kept true: an HTTP/1 connection has one exchange at a time and comes back only when
//! request and response are wholly done; a permit lives as long as its socket. Not here: dialling (`connect`), retries (`http::router`).

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    pin::{Pin, pin},
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::Instant,
};

use super::{
    ClusterState, Common, Failure, Host, Kind,
    connect::{self, Ends, Spoken},
    limits::ConnectionPermit,
    overflow,
};
use crate::{
    codec::{Body, Head, Home, Io, Response, SendError, h1, h2},
    worker::{View, Worker},
};

/// Connections of one worker to one endpoint.
#[derive(Default)]
pub struct Pool {
    /// Last in, first out: the warmest is used, the coldest time out.
    idle: RefCell<Vec<Idle>>,
    streams: RefCell<Vec<Shared2>>,
    /// An HTTP/2 connection is being made: others wait for it.
    connecting: Cell<bool>,
    connected: Notify,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (idle, http2) = (self.idle.borrow().len(), self.streams.borrow().len());
        f.debug_struct("Pool").field("idle", &idle).field("http2", &http2).finish()
    }
}

struct Idle {
    conn: h1::ClientConn,
    ends: Rc<Ends>,
    since: Instant,
}

struct Shared2 {
    conn: h2::ClientConn,
    ends: Rc<Ends>,
    served: u32,
    used: Instant,
}

/// A connection to send one request on.
pub struct Leased {
    conn: Conn,
    /// What is known of it.
    pub ends: Rc<Ends>,
    /// It has carried a request before.
    pub reused: bool,
}

enum Conn {
    Http1(h1::ClientConn),
    Http2(h2::ClientConn),
}

impl Leased {
    /// Sends the request. Dropping the future cancels it: an HTTP/1 connection is closed, an HTTP/2 stream reset.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn send(self, head: &Head, body: Body) -> Result<Response, SendError> {
        match self.conn {
            Conn::Http1(conn) => conn.send_parts(head, body).await,
            Conn::Http2(conn) => conn.send_parts(head, body).await,
        }
    }
}

/// Where an HTTP/1 connection goes between exchanges. The connection's own stream keeps it alive.
struct Berth {
    me: Weak<Berth>,
    host: Weak<Host>,
    common: Arc<Common>,
    ends: Rc<Ends>,
    served: Cell<u32>,
}

impl Home for Berth {
    fn idle(&self, conn: h1::ClientConn) {
        let served = self.served.get() + 1;
        self.served.set(served);
        let most = self.common.cluster.max_requests_per_connection;
        let Some(host) = self.host.upgrade() else { return };
        if most != 0 && served >= most {
            return;
        }
        let idle = Idle { conn, ends: Rc::clone(&self.ends), since: Instant::now() };
        host.pool.idle.borrow_mut().push(idle);
        if self.common.usage.counts_connections() {
            self.common.usage.freed.notify_waiters();
        }
    }
}

impl Drop for Berth {
    fn drop(&mut self) {
        debug_assert!(self.me.strong_count() == 0, "dropped by its last owner");
        self.common.stats.connections_active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that holds what must end with it.
struct Held {
    io: Box<dyn Io>,
    _berth: Rc<Berth>,
    _permit: ConnectionPermit,
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Held {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl Pool {
    fn take(&self, spoken: Spoken, common: &Common) -> Option<Leased> {
        let (most, idle_timeout) = (common.cluster.max_requests_per_connection, common.cluster.idle_timeout);
        if matches!(spoken, Spoken::Http2 | Spoken::Either) {
            let mut streams = self.streams.borrow_mut();
            streams.retain(|one| one.conn.is_open() && (most == 0 || one.served < most));
            if let Some(one) = streams.iter_mut().find(|one| one.conn.has_room()) {
                one.served += 1;
                one.used = Instant::now();
                let conn = Conn::Http2(one.conn.clone());
                return Some(Leased { conn, ends: Rc::clone(&one.ends), reused: true });
            }
        }
        if matches!(spoken, Spoken::Http1 | Spoken::Either) {
            let mut idle = self.idle.borrow_mut();
            while let Some(one) = idle.pop() {
                let fresh = idle_timeout.is_zero() || one.since.elapsed() < idle_timeout;
                if fresh && one.conn.is_open() {
                    return Some(Leased { conn: Conn::Http1(one.conn), ends: one.ends, reused: true });
                }
            }
        }
        None
    }

    /// Closes idle connections that have been so for `timeout`, or that the peer has closed.
    pub fn sweep(&self, timeout: Duration) {
        let stays = |since: Instant| timeout.is_zero() || since.elapsed() < timeout;
        let keep = |one: &Idle| stays(one.since) && one.conn.is_open();
        let gone: Vec<Idle> = self.idle.borrow_mut().extract_if(.., |one| !keep(one)).collect();
        drop(gone);
        self.streams
            .borrow_mut()
            .retain(|one| one.conn.is_open() && (stays(one.used) || one.conn.in_flight() > 0));
    }

    /// Closes the connection that has been idle longest. True when there was one.
    pub fn shed_one(&self) -> bool {
        let mut idle = self.idle.borrow_mut();
        let oldest = if idle.is_empty() { None } else { Some(idle.remove(0)) };
        drop(idle);
        oldest.is_some()
    }

    /// Stops reusing what exists: new certificates are in force. Exchanges under way go on.
    pub fn retire_mutual(&self) {
        let gone: Vec<Idle> = self.idle.borrow_mut().extract_if(.., |one| one.ends.mutual).collect();
        drop(gone);
        self.streams.borrow_mut().retain(|one| !one.ends.mutual);
    }
}

/// A connection to `host` for one request: a warm one, else a new one, within the cluster's limits.
/// Dropping the future gives up the place in the queue and any half-made connection.
///
/// # Errors
/// When a limit is reached or no connection can be made.
pub async fn acquire(
    worker: &Worker,
    view: &View,
    state: &ClusterState,
    host: &Rc<Host>,
    spoken: Spoken,
) -> Result<Leased, Failure> {
    let usage = &state.common.usage;
    let mut waiting = None;
    loop {
        if let Some(leased) = host.pool.take(spoken, &state.common) {
            return Ok(leased);
        }
        if matches!(spoken, Spoken::Http2 | Spoken::Either) && host.pool.connecting.get() {
            let connected = host.pool.connected.notified();
            connected.await;
            continue;
        }
        let freed = pin!(usage.freed.notified());
        let mut freed = freed;
        freed.as_mut().enable();
        if let Some(permit) = usage.connection(&host.record.connections) {
            // Rare and large: a waiting request does not carry the room for it.
            return Box::pin(connect(worker, view, state, host, spoken, permit)).await;
        }
        if waiting.is_none() {
            let place =
                usage.pending().ok_or_else(|| overflow(state, "maxConnections and maxPendingRequests"))?;
            waiting = Some(place);
        }
        usage.wanted.notify_waiters();
        freed.await;
    }
}

/// Tells those who wait for an HTTP/2 connection that the attempt is over, however it ended.
struct Connecting<'a>(&'a Pool);

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.0.connecting.set(false);
        self.0.connected.notify_waiters();
    }
}

async fn connect(
    worker: &Worker,
    view: &View,
    state: &ClusterState,
    host: &Rc<Host>,
    spoken: Spoken,
    permit: ConnectionPermit,
) -> Result<Leased, Failure> {
    let common = &state.common;
    let shares = matches!(spoken, Spoken::Http2 | Spoken::Either);
    let _connecting = shares.then(|| {
        host.pool.connecting.set(true);
        Connecting(&host.pool)
    });
    let Some(address) = host.address() else {
        let why = format!(
            "endpoint {} of cluster {} has no IP address",
            host.endpoint.address, common.cluster.name
        );
        return Err(Failure::new(Kind::Connect, why));
    };
    let tls = common.cluster.tls_for(&host.endpoint);
    let link = match connect::open(&worker.shared, view, &common.cluster, address, tls, spoken).await {
        Ok(link) => link,
        Err(failure) => {
            common.stats.connect_failures.fetch_add(1, Ordering::Relaxed);
            return Err(failure);
        }
    };
    common.stats.connections_total.fetch_add(1, Ordering::Relaxed);
    common.stats.connections_active.fetch_add(1, Ordering::Relaxed);
    let ends = Rc::new(link.ends);
    let berth = Rc::new_cyclic(|me| Berth {
        me: me.clone(),
        host: Rc::downgrade(host),
        common: Arc::clone(common),
        ends: Rc::clone(&ends),
        served: Cell::new(0),
    });
    let home: Rc<dyn Home> = berth.clone();
    let home = Rc::downgrade(&home);
    let held = Held { io: link.io, _berth: berth, _permit: permit };
    let limits = Rc::clone(&worker.upstream_limits);
    let http2 = match spoken {
        Spoken::Http2 => true,
        Spoken::Either => ends.http2,
        Spoken::Http1 | Spoken::Tcp => false,
    };
    if !http2 {
        let conn = h1::ClientConn::new(held, limits);
        conn.set_home(home);
        return Ok(Leased { conn: Conn::Http1(conn), ends, reused: false });
    }
    let (conn, driver) = h2::ClientConn::handshake(held, limits)
        .await
        .map_err(|error| Failure::new(Kind::Connect, format!("HTTP/2: {error}")))?;
    worker.spawn(driver);
    let one = Shared2 { conn: conn.clone(), ends: Rc::clone(&ends), served: 1, used: Instant::now() };
    host.pool.streams.borrow_mut().push(one);
    Ok(Leased { conn: Conn::Http2(conn), ends, reused: false })
}
