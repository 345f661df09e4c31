//! What is left of a connection once it has left HTTP: a byte stream, after 101 or CONNECT.
//! In: an [`Io`] and bytes already read from it. Out: [`Upgraded`], and [`join`], which copies both ways.
//! Kept true: no byte that came with the head is lost; each direction closes by itself.
//! Not here: deciding to upgrade (`h1::server`).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::message::Io;
use super::relay;

/// A byte stream that was an HTTP connection, or is to be joined with one.
pub struct Upgraded {
    before: Bytes,
    io: Box<dyn Io>,
}

impl Upgraded {
    /// Any stream.
    pub fn new(io: impl Io) -> Upgraded {
        Upgraded::with_prefix(Box::new(io), Bytes::new())
    }

    /// A stream from which these bytes have been read already.
    pub(crate) fn with_prefix(io: Box<dyn Io>, before: Bytes) -> Upgraded {
        Upgraded { before, io }
    }
}

/// Copies both ways until both ends have finished; an end that finishes closes only its own direction.
/// Gives the bytes copied from `a` to `b` and back.
pub(crate) async fn join(mut a: Upgraded, mut b: Upgraded) -> io::Result<(u64, u64)> {
    relay(&mut a, &mut b).await
}

impl std::fmt::Debug for Upgraded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upgraded").field("before", &self.before.len()).finish_non_exhaustive()
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.before.has_remaining() {
            let size = self.before.len().min(buf.remaining());
            buf.put_slice(&self.before.split_to(size));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Upgraded {
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
