//! Messages to bytes: the framing lines, the output buffer, and the pump that moves a body into it.
//! In: a [`Head`] and a [`Body`]. Out: bytes on the wire; head and first body part leave in one write.
//! Kept true: framing follows the body that is really sent; a length that was promised is kept or the connection breaks.
//! Not here: the socket (`wire`), what a head may hold (`parse`).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{Method, StatusCode};
use tokio::io::AsyncWrite;

use super::wire::Wire;
use crate::codec::body::{Body, BodyError, Frame};
use crate::codec::fields::Fields;
use crate::codec::head::{Head, digits};
use crate::codec::message::Io;
use crate::codec::name::Known;

/// From this size a piece is written from where it lies (`writev`); below, copying is cheaper.
const COPY_BELOW: usize = 4096;
/// How much an idle connection keeps for its next output, in bytes.
const KEPT: usize = 2048;
/// How much small output gathers before it is written.
const GATHER: usize = 16 * 1024;

/// How the body that is being written ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutFraming {
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

/// Bytes on their way out: small ones gathered, at most one large piece left where it lies.
#[derive(Debug, Default)]
pub(crate) struct Out {
    front: BytesMut,
    large: Bytes,
    back: BytesMut,
}

impl Out {
    pub(crate) fn is_empty(&self) -> bool {
        self.front.is_empty() && self.large.is_empty() && self.back.is_empty()
    }

    /// Whether more may be added before writing.
    fn has_room(&self) -> bool {
        self.large.is_empty() && self.front.len() < GATHER
    }

    /// Where small output goes.
    pub(crate) fn small(&mut self) -> &mut BytesMut {
        if self.large.is_empty() { &mut self.front } else { &mut self.back }
    }

    fn add(&mut self, data: Bytes) {
        if data.len() < COPY_BELOW || !self.large.is_empty() {
            self.small().put_slice(&data);
        } else {
            self.large = data;
        }
    }

    /// Writes all there is. `progress` is told when bytes have left.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut dyn Io,
        mut progress: impl FnMut(),
    ) -> Poll<io::Result<()>> {
        let mut io = io;
        while !self.is_empty() {
            let written = if self.large.is_empty() {
                std::task::ready!(Pin::new(&mut io).poll_write(cx, &self.front))?
            } else {
                let parts = [IoSlice::new(&self.front), IoSlice::new(&self.large), IoSlice::new(&self.back)];
                std::task::ready!(Pin::new(&mut io).poll_write_vectored(cx, &parts))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            progress();
            self.advance(written);
        }
        Pin::new(&mut io).poll_flush(cx)
    }

    fn advance(&mut self, mut written: usize) {
        let front = written.min(self.front.len());
        self.front.advance(front);
        written -= front;
        let large = written.min(self.large.len());
        self.large.advance(large);
        written -= large;
        self.back.advance(written.min(self.back.len()));
        if self.front.is_empty() && self.large.is_empty() && !self.back.is_empty() {
            std::mem::swap(&mut self.front, &mut self.back);
        }
        if self.large.is_empty() {
            self.large = Bytes::new();
        }
        for part in [&mut self.front, &mut self.back] {
            if part.is_empty() && part.capacity() > KEPT {
                *part = BytesMut::new();
            }
        }
    }
}

/// Writes a request's head; gives the framing of the body that must follow.
pub(crate) fn request_head(out: &mut BytesMut, head: &Head, body: &Body) -> OutFraming {
    out.reserve(head.wire_size() + 64);
    head.write_h1(out, false);
    if let Some(protocol) = head.upgrade() {
        out.put_slice(b"connection: upgrade\r\nupgrade: ");
        out.put_slice(protocol);
        out.put_slice(b"\r\n\r\n");
        return OutFraming::None;
    }
    if head.contains(Known::Te) {
        out.put_slice(b"connection: te\r\n");
    }
    let framing = match body.exact_len() {
        Some(0) => {
            if matches!(*head.method(), Method::POST | Method::PUT | Method::PATCH) {
                out.put_slice(b"content-length: 0\r\n");
            }
            OutFraming::None
        }
        Some(length) => {
            write_length(out, length);
            OutFraming::Length(length)
        }
        None => {
            out.put_slice(b"transfer-encoding: chunked\r\n");
            OutFraming::Chunked
        }
    };
    out.put_slice(b"\r\n");
    framing
}

/// What a server must know about the request to frame its response.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// The request was HEAD.
    pub head: bool,
    /// The client is HTTP/1.0.
    pub http10: bool,
    /// The connection leaves HTTP with this response.
    pub leaves_http: bool,
    /// The connection closes after this response.
    pub close: bool,
}

/// Writes a response's head; gives the framing of the body that must follow.
pub(crate) fn response_head(out: &mut BytesMut, head: &Head, body: &Body, asked: Asked) -> OutFraming {
    out.reserve(head.wire_size() + 64);
    let status = head.status();
    let no_length = status.is_informational() || status == StatusCode::NO_CONTENT;
    let bodyless = asked.head || status == StatusCode::NOT_MODIFIED;
    let described = bodyless && head.get(Known::ContentLength).is_some_and(|value| digits(value).is_some());
    head.write_h1(out, described);
    if asked.leaves_http {
        if let Some(protocol) = head.upgrade() {
            out.put_slice(b"connection: upgrade\r\nupgrade: ");
            out.put_slice(protocol);
            out.put_slice(b"\r\n");
        }
        out.put_slice(b"\r\n");
        return OutFraming::None;
    }
    let framing = match body.exact_len() {
        _ if no_length || described => OutFraming::None,
        Some(0) if bodyless => OutFraming::None,
        Some(length) => {
            write_length(out, length);
            if bodyless || length == 0 { OutFraming::None } else { OutFraming::Length(length) }
        }
        None if bodyless => OutFraming::None,
        None if asked.http10 => OutFraming::UntilClose,
        None => {
            out.put_slice(b"transfer-encoding: chunked\r\n");
            OutFraming::Chunked
        }
    };
    if asked.close || framing == OutFraming::UntilClose {
        out.put_slice(b"connection: close\r\n");
    } else if asked.http10 {
        out.put_slice(b"connection: keep-alive\r\n");
    }
    out.put_slice(b"\r\n");
    framing
}

fn write_length(out: &mut BytesMut, length: u64) {
    out.put_slice(b"content-length: ");
    out.put_slice(itoa::Buffer::new().format(length).as_bytes());
    out.put_slice(b"\r\n");
}

fn write_last_chunk(out: &mut BytesMut, trailers: Option<&Fields>) {
    out.put_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        trailers.write_lines(out, |known, _| !known.is_some_and(Known::is_forbidden_in_trailers));
    }
    out.put_slice(b"\r\n");
}

/// Why a body could not be written to its end.
#[derive(Debug)]
pub(crate) enum PumpError {
    /// The body broke.
    Body(BodyError),
    /// The wire broke.
    Io(io::Error),
    /// The body is shorter or longer than was promised.
    Length,
}

/// Moves one body onto a wire.
pub(crate) struct Pump {
    body: Body,
    framing: OutFraming,
    over: bool,
}

impl Pump {
    pub(crate) fn new(body: Body, framing: OutFraming) -> Pump {
        let over = framing == OutFraming::None;
        // A body that is not to be written is dropped now, which lets its producer stop.
        Pump { body: if over { Body::empty() } else { body }, framing, over }
    }

    /// Moves what can be moved. Ready when all of the body has been written.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, wire: &Wire) -> Poll<Result<(), PumpError>> {
        loop {
            let mut starved = false;
            while !self.over && !starved && wire.out.borrow().has_room() {
                match self.body.poll_frame(cx) {
                    Poll::Ready(frame) => self.put(frame, &mut wire.out.borrow_mut())?,
                    Poll::Pending => starved = true,
                }
            }
            match wire.poll_flush(cx) {
                Poll::Ready(Ok(())) if self.over => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) if starved => return Poll::Pending,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(PumpError::Io(error))),
                Poll::Pending => {
                    if !self.over && !starved {
                        self.body.poll_progress(cx);
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    fn put(&mut self, frame: Option<Result<Frame, BodyError>>, out: &mut Out) -> Result<(), PumpError> {
        match frame {
            Some(Ok(Frame::Data(data))) if data.is_empty() => {}
            Some(Ok(Frame::Data(data))) => {
                match &mut self.framing {
                    OutFraming::Length(left) => {
                        let size = u64::try_from(data.len()).unwrap_or(u64::MAX);
                        *left = left.checked_sub(size).ok_or(PumpError::Length)?;
                        out.add(data);
                    }
                    OutFraming::Chunked => {
                        write_chunk_size(out.small(), data.len());
                        out.add(data);
                        out.small().put_slice(b"\r\n");
                    }
                    OutFraming::UntilClose => out.add(data),
                    OutFraming::None => {}
                }
                if self.body.is_empty() {
                    self.end(None, out)?;
                }
            }
            Some(Ok(Frame::Trailers(trailers))) => self.end(Some(&trailers), out)?,
            Some(Err(error)) => return Err(PumpError::Body(error)),
            None => self.end(None, out)?,
        }
        Ok(())
    }

    fn end(&mut self, trailers: Option<&Fields>, out: &mut Out) -> Result<(), PumpError> {
        self.over = true;
        match self.framing {
            OutFraming::Length(left) if left > 0 => Err(PumpError::Length),
            OutFraming::Chunked => {
                write_last_chunk(out.small(), trailers);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn write_chunk_size(out: &mut BytesMut, size: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0u8; 16];
    let mut at = text.len();
    let mut left = size;
    loop {
        at -= 1;
        text[at] = DIGITS[left % 16];
        left /= 16;
        if left == 0 {
            break;
        }
    }
    out.put_slice(&text[at..]);
    out.put_slice(b"\r\n");
}
