//! One reading buffer per worker: whoever waits for bytes holds no memory for them.
//! In: a stream that may have bytes. Out: those bytes, while the caller looks at them or takes a copy that fits.
//! Kept true: the buffer is lent to one reader at a time; a reader inside a reader gets one of its own.
//! Not here: what the bytes mean (`h1`, `tunnel`).

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};

/// Size of the buffer, in bytes: what one read of a fast stream brings.
pub(crate) const SIZE: usize = 64 * 1024;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The buffer, until it is dropped.
pub(crate) struct Scratch(Vec<u8>);

impl Scratch {
    /// Borrows this thread's buffer.
    pub(crate) fn lend() -> Scratch {
        let mut bytes = SCRATCH.take();
        bytes.resize(SIZE, 0);
        Scratch(bytes)
    }

    /// Reads once, at most `most` bytes. None is the peer's end.
    pub(crate) fn poll_read<R: AsyncRead + Unpin + ?Sized>(
        &mut self,
        io: &mut R,
        cx: &mut Context<'_>,
        most: usize,
    ) -> Poll<io::Result<&[u8]>> {
        let most = most.clamp(1, SIZE);
        let mut buffer = ReadBuf::new(&mut self.0[..most]);
        ready!(Pin::new(io).poll_read(cx, &mut buffer))?;
        let size = buffer.filled().len();
        Poll::Ready(Ok(&self.0[..size]))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        SCRATCH.set(std::mem::take(&mut self.0));
    }
}

/// Reads once, at most `most` bytes, onto the end of `onto`, which grows by what has come. Gives how much that was.
pub(crate) fn poll_read_onto<R: AsyncRead + Unpin + ?Sized>(
    io: &mut R,
    cx: &mut Context<'_>,
    onto: &mut BytesMut,
    most: usize,
) -> Poll<io::Result<usize>> {
    if onto.is_empty() {
        // What an earlier, larger read left behind.
        *onto = BytesMut::new();
    }
    let mut scratch = Scratch::lend();
    let bytes = ready!(scratch.poll_read(io, cx, most))?;
    onto.extend_from_slice(bytes);
    Poll::Ready(Ok(bytes.len()))
}
