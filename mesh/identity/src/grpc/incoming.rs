//! The accepting side of gRPC: listener → handshake in a task of its own → stream for `serve_with_incoming`.
//!
//! In: a TCP listener, server settings, limits. Out: [`Incoming`], whose streams carry [`ConnInfo`].
//! Kept true: accept errors and failed or slow handshakes never end the stream nor hold up others.
//! Not here: what the server does with the peer's identity.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use mesh_runtime::{drain::Watch, listen};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::{
    store::CertStore,
    tls::{BadPeer, Peer, ServerTls},
};

/// How much a listener takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Handshakes at the same time; further connections wait in the kernel's queue.
    pub handshakes: usize,
    /// Handshakes at the same time from one address; further connections of it are closed, so that one client that
    /// leaves handshakes open cannot keep the others out.
    pub handshakes_per_address: usize,
    /// Connections at the same time; further ones wait likewise.
    pub connections: usize,
}

impl Default for Limits {
    /// 4,096 handshakes, 256 of one address, 16,384 connections.
    fn default() -> Self {
        Self { handshakes: 4_096, handshakes_per_address: 256, connections: 16_384 }
    }
}

/// Open handshakes per address.
#[derive(Clone, Default)]
struct Shares(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One handshake's part of its address's share.
struct Share {
    of: Shares,
    address: IpAddr,
}

impl Shares {
    fn take(&self, address: IpAddr, most: usize) -> Option<Share> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Share { of: self.clone(), address })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// Who is at the other end of a connection: `request.extensions().get::<ConnInfo>()` in a tonic service.
#[derive(Clone, Debug)]
pub struct ConnInfo {
    /// Address of the client.
    pub remote: SocketAddr,
    /// Address it connected to.
    pub local: SocketAddr,
    /// The verified client; `None` on plaintext ports and for clients without a certificate.
    pub peer: Option<Peer>,
    /// Whether the connection is encrypted.
    pub tls: bool,
}

/// An accepted connection. It is reset when the trust bundle changes and its client would no longer be let in.
pub struct Io {
    stream: Stream,
    info: ConnInfo,
    cut: Option<Cut>,
    _slot: OwnedSemaphorePermit,
}

/// Resolves with the reason once a client is no longer trusted.
type Cut = Pin<Box<dyn Future<Output = BadPeer> + Send + Sync>>;

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Io").field("info", &self.info).finish_non_exhaustive()
    }
}

/// Re-checks a live client at each change of certificates (CVE-2022-21654: what was verified once is not good for ever).
async fn no_longer_trusted(store: CertStore, peer: Peer) -> BadPeer {
    let mut changes = store.subscribe();
    let mut bundle = store.current().map(|now| now.bundle);
    loop {
        // The sender lives in `store`: it cannot be gone.
        let _ = changes.changed().await;
        let now = store.current().map(|now| now.bundle);
        if now == bundle {
            continue;
        }
        bundle = now;
        if let Err(bad) = store.recheck(&peer) {
            return bad;
        }
    }
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Io {
    type ConnectInfo = ConnInfo;

    fn connect_info(&self) -> ConnInfo {
        self.info.clone()
    }
}

/// Ready connections; ends when the drain starts.
#[derive(Debug)]
pub struct Incoming {
    ready: mpsc::Receiver<Io>,
}

impl futures::Stream for Incoming {
    type Item = Result<Io, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(cx).map(|io| io.map(Ok))
    }
}

/// TLS connections with the certificates of `store`. While there is no certificate, clients are turned away.
///
/// Spawns the accept loop, which ends with the drain or when the stream is dropped.
pub fn incoming(
    listener: TcpListener,
    store: CertStore,
    tls: ServerTls,
    limits: Limits,
    drain: Watch,
) -> Incoming {
    start(listener, Some((store, tls)), limits, drain)
}

/// Plaintext connections.
pub fn incoming_plain(listener: TcpListener, limits: Limits, drain: Watch) -> Incoming {
    start(listener, None, limits, drain)
}

fn start(
    listener: TcpListener,
    tls: Option<(CertStore, ServerTls)>,
    limits: Limits,
    drain: Watch,
) -> Incoming {
    let (tx, ready) = mpsc::channel(64);
    let tls = tls.map(Arc::new);
    tokio::spawn(async move {
        let handshakes = Arc::new(Semaphore::new(limits.handshakes));
        let connections = Arc::new(Semaphore::new(limits.connections));
        let shares = Shares::default();
        loop {
            let next = async {
                let slot = connections.clone().acquire_owned().await.expect("this semaphore is never closed");
                let handshake =
                    handshakes.clone().acquire_owned().await.expect("this semaphore is never closed");
                let (stream, remote) = listen::accept(&listener).await;
                (slot, handshake, stream, remote)
            };
            let (slot, handshake, stream, remote) = tokio::select! {
                biased;
                () = drain.signaled() => return,
                () = tx.closed() => return,
                next = next => next,
            };
            let Some(share) = shares.take(remote.ip(), limits.handshakes_per_address) else {
                tracing::debug!(%remote, "too many open handshakes of one address: closed");
                continue;
            };
            let (tx, tls) = (tx.clone(), tls.clone());
            tokio::spawn(async move {
                match establish(stream, remote, tls.as_deref(), slot).await {
                    Ok(io) => {
                        drop((handshake, share));
                        let _ = tx.send(io).await;
                    }
                    Err(error) => tracing::debug!(%remote, error, "connection refused"),
                }
            });
        }
    });
    Incoming { ready }
}

async fn establish(
    stream: TcpStream,
    remote: SocketAddr,
    tls: Option<&(CertStore, ServerTls)>,
    slot: OwnedSemaphorePermit,
) -> Result<Io, String> {
    let local = stream.local_addr().map_err(|e| e.to_string())?;
    let (stream, peer, cut, tls) = match tls {
        None => (Stream::Plain(stream), None, None, false),
        Some((store, tls)) => {
            let accepted = store.accept(tls, stream).await.map_err(|e| e.to_string())?;
            let peer = accepted.peer;
            let cut = peer.clone().map(|peer| Box::pin(no_longer_trusted(store.clone(), peer)) as Cut);
            (Stream::Tls(Box::new(accepted.stream)), peer, cut, true)
        }
    };
    Ok(Io { stream, info: ConnInfo { remote, local, peer, tls }, cut, _slot: slot })
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(cut) = &mut self.cut
            && let Poll::Ready(why) = cut.as_mut().poll(cx)
        {
            self.cut = None;
            tracing::info!(remote = %self.info.remote, "connection cut: {why}");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, why)));
        }
        match &mut self.stream {
            Stream::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Stream::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Stream::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Stream::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(io) => io.is_write_vectored(),
            Stream::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(io) => Pin::new(io).poll_flush(cx),
            Stream::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Stream::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
