//! Bytes both ways between two streams, as they come.
//! In: two streams. Out: each one's bytes at the other, and how many there were.
//! Kept true: a direction that ends closes only itself; bytes are kept for a stream only while it does not take them.
//! Not here: what ends with a connection (`tcp`, `http::connect`), deadlines.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};

use super::scratch::{SIZE, Scratch};

/// Copies both ways until both ends have finished. Gives the bytes copied from `a` to `b` and back.
///
/// # Errors
/// The first failure of either stream.
pub(crate) async fn relay<A, B>(a: &mut A, b: &mut B) -> io::Result<(u64, u64)>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut there, mut back) = (Direction::default(), Direction::default());
    poll_fn(|cx| {
        let there = there.poll(cx, a, b)?;
        let back = back.poll(cx, b, a)?;
        Poll::Ready(Ok((ready!(there), ready!(back))))
    })
    .await
}

/// Bytes from one stream to the other.
#[derive(Default)]
struct Direction {
    /// What the other stream did not take at once.
    waiting: BytesMut,
    copied: u64,
    /// Something was written since the last flush.
    unflushed: bool,
    /// Nothing more will be read.
    ended: bool,
    /// The other stream has been told.
    closed: bool,
}

impl Direction {
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<u64>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while !self.closed {
            while !self.waiting.is_empty() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.waiting))?;
                self.waiting.advance(some(written)?);
            }
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.closed = true;
            } else {
                ready!(self.poll_copy(cx, from, to))?;
            }
        }
        Poll::Ready(Ok(self.copied))
    }

    /// One read, and the write of what it brought.
    fn poll_copy<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut scratch = Scratch::lend();
        let bytes = match scratch.poll_read(from, cx, SIZE) {
            Poll::Ready(bytes) => bytes?,
            Poll::Pending => {
                if self.unflushed {
                    ready!(Pin::new(to).poll_flush(cx))?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
        };
        if bytes.is_empty() {
            self.ended = true;
            return Poll::Ready(Ok(()));
        }
        self.copied += u64::try_from(bytes.len()).unwrap_or(0);
        self.unflushed = true;
        let written = match Pin::new(to).poll_write(cx, bytes) {
            Poll::Ready(written) => some(written?)?,
            Poll::Pending => 0,
        };
        // New memory each time, so that a direction that flows again holds none.
        self.waiting = BytesMut::from(bytes.get(written..).unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

fn some(written: usize) -> io::Result<usize> {
    if written == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(written) }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn more_than_the_pipes_hold_goes_both_ways_and_each_direction_ends_by_itself() {
        let (mut near, mut a) = tokio::io::duplex(100);
        let (mut far, mut b) = tokio::io::duplex(7);
        let there: Vec<u8> = (0..200_000u32).map(|n| n.to_le_bytes()[0]).collect();
        let client = async {
            near.write_all(&there).await.expect("taken");
            near.shutdown().await.expect("ended");
            let mut answer = Vec::new();
            near.read_to_end(&mut answer).await.expect("answered");
            answer
        };
        let server = async {
            let mut request = Vec::new();
            far.read_to_end(&mut request).await.expect("whole");
            far.write_all(b"after the end of the request").await.expect("taken");
            far.shutdown().await.expect("ended");
            request
        };
        let (copied, answer, request) = tokio::join!(relay(&mut a, &mut b), client, server);
        assert_eq!(copied.expect("no failure"), (200_000, 28));
        assert!(request == there && answer == b"after the end of the request");
    }

    #[tokio::test]
    async fn a_stream_that_takes_nothing_more_ends_both_directions() {
        let (mut near, mut a) = tokio::io::duplex(100);
        let (far, mut b) = tokio::io::duplex(7);
        drop(far);
        near.write_all(b"to nobody").await.expect("taken");
        assert!(relay(&mut a, &mut b).await.is_err());
    }
}
