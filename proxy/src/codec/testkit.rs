//! What the codec's tests share: pipes, servers beside clients, bodies of many shapes.
//! In: a handler and a client future. Out: both run to their end on one paused clock.
//! Kept true: no socket, no wall time.
//! Not here: the tests.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};

use super::*;

/// A server's settings.
pub(crate) fn server(protocol: Protocol, limits: Limits) -> Serve {
    Serve { protocol, scheme: Scheme::Http, limits: Rc::new(limits) }
}

/// Serves one end of a pipe while the client runs with the other; gives both results. The client's end is dropped when it finishes.
pub(crate) async fn beside<H: Handler, F, T>(
    serve: &Serve,
    handler: &H,
    client: impl FnOnce(DuplexStream) -> F,
) -> (ConnEnd, T)
where
    F: Future<Output = T>,
{
    let (near, far) = tokio::io::duplex(64 * 1024);
    tokio::join!(serve.run(far, std::future::pending(), handler), client(near))
}

/// Sends text (`\n` is CRLF), half-closes, gives all that comes back.
pub(crate) async fn talk(mut io: DuplexStream, text: &str) -> String {
    let _ = io.write_all(text.replace('\n', "\r\n").as_bytes()).await;
    let _ = io.shutdown().await;
    read_all(&mut io).await
}

/// Reads to the end.
pub(crate) async fn read_all(io: &mut DuplexStream) -> String {
    let mut all = Vec::new();
    let _ = io.read_to_end(&mut all).await;
    String::from_utf8_lossy(&all).replace("\r\n", "\n")
}

/// Reads until the text has come.
pub(crate) async fn read_until(io: &mut DuplexStream, end: &str) -> String {
    let mut all = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&all).replace("\r\n", "\n");
        if text.ends_with(end) {
            return text;
        }
        match io.read_u8().await {
            Ok(byte) => all.push(byte),
            Err(_) => return text + "<end>",
        }
    }
}

/// The shapes of bodies that a message may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Empty,
    Full(usize),
    Streamed(usize),
    WithTrailers(usize),
}

pub(crate) const SHAPES: [Shape; 8] = [
    Shape::Empty,
    Shape::Full(5),
    Shape::Full(5000),
    Shape::Full(300_000),
    Shape::Streamed(0),
    Shape::Streamed(5),
    Shape::Streamed(300_000),
    Shape::WithTrailers(70_000),
];

/// A body of this shape; streamed ones come in pieces, some after a wait.
pub(crate) fn body(shape: Shape) -> Body {
    match shape {
        Shape::Empty => Body::empty(),
        Shape::Full(size) => Body::full(vec![b'f'; size]),
        Shape::Streamed(size) => {
            Body::from_source(Box::new(Pieces { left: size, waited: false, trailers: None }))
        }
        Shape::WithTrailers(size) => Body::from_source(Box::new(Pieces {
            left: size,
            waited: false,
            trailers: Some([("x-sum", "42"), ("grpc-status", "0")].into_iter().collect()),
        })),
    }
}

/// A body read whole: payload and trailers.
pub(crate) type Content = (Bytes, Option<Vec<(String, Vec<u8>)>>);

/// What a body of this shape gives.
pub(crate) fn content(shape: Shape) -> Content {
    match shape {
        Shape::Empty => (Bytes::new(), None),
        Shape::Full(size) => (vec![b'f'; size].into(), None),
        Shape::Streamed(size) => (vec![b's'; size].into(), None),
        Shape::WithTrailers(size) => (
            vec![b's'; size].into(),
            Some(vec![("x-sum".into(), b"42".to_vec()), ("grpc-status".into(), b"0".to_vec())]),
        ),
    }
}

/// Reads a body whole, in the form of [`content`].
pub(crate) async fn read(body: Body) -> Result<Content, BodyError> {
    let (data, trailers) = body.collect(1 << 20).await?;
    let trailers =
        trailers.map(|fields| fields.iter().map(|(name, value)| (name.to_owned(), value.to_vec())).collect());
    Ok((data, trailers))
}

struct Pieces {
    left: usize,
    waited: bool,
    trailers: Option<Fields>,
}

impl Source for Pieces {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        self.waited = !self.waited;
        if self.waited {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.left > 0 {
            let size = self.left.min(1000 + self.left / 3);
            self.left -= size;
            return Poll::Ready(Some(Ok(Frame::Data(vec![b's'; size].into()))));
        }
        Poll::Ready(self.trailers.take().map(|fields| Ok(Frame::Trailers(fields))))
    }
}

/// A home that keeps what comes back.
#[derive(Default)]
pub(crate) struct Shelf {
    pub conns: RefCell<Vec<h1::ClientConn>>,
}

impl Home for Shelf {
    fn idle(&self, conn: h1::ClientConn) {
        self.conns.borrow_mut().push(conn);
    }
}

/// A client connection over this stream, and its home.
pub(crate) fn client(io: impl Io) -> (h1::ClientConn, Rc<Shelf>) {
    let shelf = Rc::new(Shelf::default());
    let conn = h1::ClientConn::new(io, Rc::new(Limits::upstream()));
    let home: Rc<dyn Home> = shelf.clone();
    conn.set_home(Rc::downgrade(&home));
    (conn, shelf)
}

/// Something whose number alive is counted.
pub(crate) struct Permit(Rc<Cell<usize>>);

impl Permit {
    pub(crate) fn take(count: &Rc<Cell<usize>>) -> Permit {
        count.set(count.get() + 1);
        Permit(Rc::clone(count))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// A stream that counts the writes made to it, and goodbyes.
pub(crate) struct Counted<T> {
    pub io: T,
    pub writes: Rc<Cell<usize>>,
    pub goodbyes: Rc<Cell<usize>>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.writes.set(self.writes.get() + 1);
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        self.writes.set(self.writes.get() + 1);
        Pin::new(&mut self.io).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.goodbyes.set(self.goodbyes.get() + 1);
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
