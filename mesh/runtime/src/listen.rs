//! Listening: bind with a useful error, accept for ever, serve small HTTP on any stream with a drain.
//!
//! In: an address; connections. Out: a tokio listener; requests handed to an axum router.
//! Kept true: no accept error ends a loop, every phase of a connection has a deadline, connections are capped.
//! Not here: the proxy's listeners (its own codec) and TLS (`mesh-identity`).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{Extension, Router, extract::ConnectInfo};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use crate::{backoff::Backoff, drain::Watch};

/// Waiting connections the kernel may hold for us.
const BACKLOG: i32 = 1024;
/// How long a client may take to send a request head.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// Connections served at the same time by [`serve_http`]; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 512;

/// An address could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr}: {source}{}", hint(.source, .addr))]
pub struct BindError {
    /// What was asked for.
    pub addr: SocketAddr,
    source: io::Error,
}

fn hint(error: &io::Error, addr: &SocketAddr) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => " (another process has it; stop that one or choose another port)",
        io::ErrorKind::PermissionDenied if addr.port() < 1024 => " (ports below 1024 need privileges)",
        io::ErrorKind::AddrNotAvailable => " (this machine has no such address)",
        _ => "",
    }
}

/// Binds and listens, with address reuse so that a restart does not wait for old connections to time out.
///
/// # Errors
/// [`BindError`] names the address and the usual fix. Must be called inside a tokio runtime.
pub fn bind(addr: SocketAddr) -> Result<TcpListener, BindError> {
    let bind = || {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    bind().map_err(|source| BindError { addr, source })
}

/// The next connection, with `TCP_NODELAY` set. Errors are survived: those of one connection at once, those of the
/// process (no file descriptors left) after a jittered wait. Cancel safe.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(500));
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let _ = stream.set_nodelay(true);
                return (stream, peer);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "accept failed; pausing");
                backoff.wait().await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Whether an address can be reached from this machine only.
pub fn is_loopback(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback()),
    }
}

/// Serves `router` on `listener` until the drain; then finishes open requests and returns.
///
/// Connections still open when the grace time ends are cut. Dropping the future stops accepting only. Handlers that must know who
/// asks take [`ConnectInfo<SocketAddr>`](ConnectInfo).
pub async fn serve_http(listener: TcpListener, router: Router, drain: Watch) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Some((slot, (stream, peer))) = drain
            .until_drain(async {
                let slot = slots.clone().acquire_owned().await.expect("this semaphore is never closed");
                (slot, accept(&listener).await)
            })
            .await
        else {
            return;
        };
        let (router, drain) = (router.clone().layer(Extension(ConnectInfo(peer))), drain.clone());
        tokio::spawn(async move {
            if let Err(error) = serve_connection(stream, router, drain).await {
                tracing::debug!(%peer, error, "http connection ended");
            }
            drop(slot);
        });
    }
}

/// Serves one connection, HTTP/1.1 or HTTP/2 by its first bytes, until it ends or the drain has finished it.
///
/// # Errors
/// The text of what the peer did wrong, for a debug log.
pub async fn serve_connection<I>(io: I, router: Router, drain: Watch) -> Result<(), String>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE).max_buf_size(64 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(100)
        .max_header_list_size(64 * 1024);
    let service = TowerToHyperService::new(router);
    let connection = builder.serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    let end = tokio::select! {
        end = connection.as_mut() => end,
        () = drain.signaled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                end = connection => end,
                () = drain.forced() => return Err("cut off at the end of the drain".into()),
            }
        }
    };
    end.map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_named_with_the_fix() {
        let taken = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = taken.local_addr().unwrap();
        let text = bind(addr).unwrap_err().to_string();
        assert!(text.contains(&addr.to_string()) && text.contains("another process"), "{text}");
    }

    #[test]
    fn loopback_in_all_its_spellings() {
        for (ip, yes) in [
            ("127.0.0.1", true),
            ("127.200.3.4", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(ip.parse().unwrap()), yes, "{ip}");
        }
    }
}
