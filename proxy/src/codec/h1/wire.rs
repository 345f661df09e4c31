//! One HTTP/1 connection's socket and buffers, shared by whoever reads a body from it and whoever writes to it.
//! In: an [`Io`]. Out: body frames ([`H1Body`]), flushed output, and facts (closed, starved, unread) for the deadlines.
//! Kept true: one exchange at a time; a body of an exchange that is over reads nothing; closing drops the socket at once.
//! Not here: heads (`parse`), the order of things (`server`, `client`).

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::time::Instant;

use super::client::ClientConn;
use super::decode::{Decoded, Decoder};
use super::encode::{Out, Pump, PumpError};
use super::parse::Framing;
use crate::codec::body::{BodyError, Frame};
use crate::codec::limits::{Limits, Refusal};
use crate::codec::message::{Home, Io};
use crate::codec::scratch;

/// How much is read at once while a head is expected: a head and a small body come together.
const HEAD_READ: usize = 8192;

/// What has come in and how the body within it ends.
pub(crate) struct ReadSide {
    pub buffer: BytesMut,
    pub decoder: Decoder,
    /// The peer has finished its direction.
    pub eof: bool,
}

/// A connection. Lives in an `Rc`; only one task's worth of work touches it at a time.
pub(crate) struct Wire {
    io: RefCell<Option<Box<dyn Io>>>,
    pub read: RefCell<ReadSide>,
    pub out: RefCell<Out>,
    pub limits: Rc<Limits>,
    /// Which exchange is under way; bodies of earlier ones are dead.
    pub exchange: Cell<u64>,
    /// Server: the reader of the request body is gone.
    pub reader_gone: Cell<bool>,
    /// Server: `100 Continue` is owed at the first read of the body.
    pub owes_continue: Cell<bool>,
    /// Since when a body reader has waited for bytes.
    pub starved_since: Cell<Option<Instant>>,
    /// Since when output has waited for the peer.
    pub unread_since: Cell<Option<Instant>>,
    /// Server: the body deadline has passed.
    pub timed_out: Cell<bool>,
    /// Server: the connection's own task, and a body reader in another one.
    owner: RefCell<Option<Waker>>,
    reader: RefCell<Option<Waker>>,
    /// Whether any byte of the present exchange left or came.
    pub wrote: Cell<bool>,
    pub answered: Cell<bool>,
    /// Client: the rest of the request.
    pub upload: RefCell<Option<Pump>>,
    /// Client: the peer lets the connection live on.
    pub reusable: Cell<bool>,
    pub home: RefCell<Option<Weak<dyn Home>>>,
}

impl Wire {
    pub(crate) fn new(io: Box<dyn Io>, buffer: BytesMut, limits: Rc<Limits>) -> Wire {
        Wire {
            io: RefCell::new(Some(io)),
            read: RefCell::new(ReadSide { buffer, decoder: Decoder::new(Framing::Empty), eof: false }),
            out: RefCell::new(Out::default()),
            limits,
            exchange: Cell::new(0),
            reader_gone: Cell::new(false),
            owes_continue: Cell::new(false),
            starved_since: Cell::new(None),
            unread_since: Cell::new(None),
            timed_out: Cell::new(false),
            owner: RefCell::new(None),
            reader: RefCell::new(None),
            wrote: Cell::new(false),
            answered: Cell::new(false),
            upload: RefCell::new(None),
            reusable: Cell::new(false),
            home: RefCell::new(None),
        }
    }

    /// Drops the socket. Every later use fails as closed.
    pub(crate) fn close(&self) {
        let io = self.io.borrow_mut().take();
        let upload = self.upload.borrow_mut().take();
        drop((io, upload));
        self.wake_reader();
    }

    /// Drops the socket after a goodbye (TLS close_notify, FIN), as far as that goes without waiting.
    pub(crate) fn close_in_order(&self) {
        let _ = self.poll_shutdown(&mut Context::from_waker(Waker::noop()));
        self.close();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.io.borrow().is_none()
    }

    /// Takes the socket and what has been read beyond the last message.
    pub(crate) fn take_io(&self) -> Option<(Box<dyn Io>, BytesMut)> {
        let io = self.io.borrow_mut().take()?;
        Some((io, std::mem::take(&mut self.read.borrow_mut().buffer)))
    }

    /// Reads once into the buffer. `Ok(0)` is the peer's end.
    pub(crate) fn poll_fill(&self, cx: &mut Context<'_>, read: &mut ReadSide) -> Poll<io::Result<usize>> {
        let mut io = self.io.borrow_mut();
        let Some(io) = io.as_mut() else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        let most = self.limits.read_buffer;
        let size = match read.decoder.remaining() {
            // Nothing is held for a head that may never come; a long body is read in large pieces, where it will lie.
            Some(0) => std::task::ready!(scratch::poll_read_onto(
                io.as_mut(),
                cx,
                &mut read.buffer,
                HEAD_READ.min(most)
            ))?,
            left => {
                let left = left.map_or(most, |left| usize::try_from(left).unwrap_or(usize::MAX));
                let want = left.clamp(HEAD_READ.min(most), 4 * most);
                if read.buffer.capacity() - read.buffer.len() < want / 4 {
                    read.buffer.reserve(want);
                }
                std::task::ready!(pin!(io.read_buf(&mut read.buffer)).poll(cx))?
            }
        };
        if size == 0 {
            read.eof = true;
        } else {
            self.answered.set(true);
        }
        Poll::Ready(Ok(size))
    }

    /// Writes all output.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut out = self.out.borrow_mut();
        let mut io = self.io.borrow_mut();
        let Some(io) = io.as_mut() else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        let result = out.poll_write(cx, io.as_mut(), || {
            self.wrote.set(true);
            self.unread_since.set(None);
        });
        if result.is_ready() {
            self.unread_since.set(None);
        } else if self.unread_since.get().is_none() {
            self.unread_since.set(Some(Instant::now()));
        }
        result
    }

    /// Tells the peer that no more will be written.
    pub(crate) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.io.borrow_mut().as_mut() {
            Some(io) => std::pin::Pin::new(io).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Remembers the connection's own task, which must look again when a body reader in another task starves or leaves.
    pub(crate) fn set_owner(&self, waker: &Waker) {
        let mut owner = self.owner.borrow_mut();
        if !owner.as_ref().is_some_and(|owner| owner.will_wake(waker)) {
            *owner = Some(waker.clone());
        }
    }

    fn wake_owner_unless(&self, waker: Option<&Waker>) {
        if let Some(owner) = self.owner.borrow().as_ref()
            && !waker.is_some_and(|waker| waker.will_wake(owner))
        {
            owner.wake_by_ref();
        }
    }

    /// Makes a body reader look again.
    pub(crate) fn wake_reader(&self) {
        if let Some(reader) = self.reader.borrow_mut().take() {
            reader.wake();
        }
    }

    /// While no body is being read: takes in at most a buffer of what follows, to notice a connection that broke.
    /// A finished direction is no break, unless the limits say so.
    pub(crate) fn poll_broken(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let mut read = self.read.borrow_mut();
        while read.decoder.is_done() && read.buffer.is_empty() && !read.eof {
            if let Err(error) = std::task::ready!(self.poll_fill(cx, &mut read)) {
                return Poll::Ready(error);
            }
        }
        if read.eof && !self.limits.half_close {
            return Poll::Ready(io::ErrorKind::UnexpectedEof.into());
        }
        Poll::Pending
    }

    /// The next frame of the body being read.
    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let mut read = self.read.borrow_mut();
        let read = &mut *read;
        loop {
            match read.decoder.decode(&mut read.buffer, &self.limits) {
                Ok(Decoded::Data(data)) => return Poll::Ready(Some(Ok(Frame::Data(data)))),
                Ok(Decoded::Trailers(fields)) => return Poll::Ready(Some(Ok(Frame::Trailers(fields)))),
                Ok(Decoded::End) => return Poll::Ready(None),
                Err(refusal) => return Poll::Ready(Some(Err(BodyError::Invalid(refusal)))),
                Ok(Decoded::NeedMore) => {}
            }
            if read.eof {
                return Poll::Ready(match read.decoder.close() {
                    true => None,
                    false => Some(Err(BodyError::Closed)),
                });
            }
            if self.timed_out.get() {
                return Poll::Ready(Some(Err(BodyError::TimedOut)));
            }
            if self.owes_continue.take() {
                self.out.borrow_mut().small().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                let _ = self.poll_flush(cx);
            }
            match self.poll_fill(cx, read) {
                Poll::Ready(Ok(_)) => self.starved_since.set(None),
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(body_error(&error)))),
                Poll::Pending => {
                    if self.limits.body_timeout.is_some() {
                        *self.reader.borrow_mut() = Some(cx.waker().clone());
                    }
                    if self.starved_since.get().is_none() {
                        self.starved_since.set(Some(Instant::now()));
                        self.wake_owner_unless(Some(cx.waker()));
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Client: moves the rest of the request. An upload that fails leaves the answer readable, but not the connection reusable.
    pub(crate) fn poll_upload(&self, cx: &mut Context<'_>) -> Result<(), BodyError> {
        let mut upload = self.upload.borrow_mut();
        let Some(pump) = upload.as_mut() else { return Ok(()) };
        match pump.poll(cx, self) {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(())) => {
                *upload = None;
                Ok(())
            }
            Poll::Ready(Err(error)) => {
                *upload = None;
                self.reusable.set(false);
                match error {
                    PumpError::Io(_) => Ok(()),
                    PumpError::Body(error) => Err(error),
                    PumpError::Length => {
                        Err(BodyError::Other("request body is not as long as announced".into()))
                    }
                }
            }
        }
    }

    /// Client: the response has been read. The connection goes home, or is closed.
    pub(crate) fn finish_exchange(self: &Rc<Self>) {
        let clean = {
            let read = self.read.borrow();
            self.reusable.get()
                && read.decoder.is_done()
                && read.buffer.is_empty()
                && !read.eof
                && self.upload.borrow().is_none()
                && self.out.borrow().is_empty()
        };
        if clean {
            // An idle connection holds no memory of its last answer.
            self.read.borrow_mut().buffer = BytesMut::new();
        }
        self.exchange.set(self.exchange.get() + 1);
        let home = self.home.borrow().as_ref().and_then(Weak::upgrade);
        match home {
            Some(home) if clean => home.idle(ClientConn::from_wire(Rc::clone(self))),
            _ if self.upload.borrow().is_none() => self.close_in_order(),
            _ => self.close(),
        }
    }
}

fn body_error(error: &io::Error) -> BodyError {
    match error.kind() {
        io::ErrorKind::NotConnected | io::ErrorKind::UnexpectedEof => BodyError::Closed,
        kind => BodyError::Io(kind),
    }
}

/// Which end of the wire we are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Server,
    Client,
}

/// The body that is on a wire.
pub(crate) struct H1Body {
    wire: Option<Rc<Wire>>,
    exchange: u64,
    role: Role,
}

impl H1Body {
    pub(crate) fn new(wire: &Rc<Wire>, role: Role) -> H1Body {
        H1Body { wire: Some(Rc::clone(wire)), exchange: wire.exchange.get(), role }
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let Some(wire) = &self.wire else { return Poll::Ready(None) };
        if wire.exchange.get() != self.exchange {
            self.wire = None;
            return Poll::Ready(Some(Err(BodyError::Closed)));
        }
        if self.role == Role::Client
            && let Err(error) = wire.poll_upload(cx)
        {
            self.abandon();
            return Poll::Ready(Some(Err(error)));
        }
        let next = std::task::ready!(wire.poll_frame(cx));
        if matches!(next, Some(Err(_))) {
            self.abandon();
        } else if next.is_none() || wire.read.borrow().decoder.is_done() {
            self.complete(cx);
        }
        Poll::Ready(next)
    }

    pub(crate) fn poll_progress(&mut self, cx: &mut Context<'_>) {
        if let Some(wire) = &self.wire
            && self.role == Role::Client
            && wire.exchange.get() == self.exchange
            && wire.poll_upload(cx).is_err()
        {
            wire.close();
        }
    }

    pub(crate) fn exact_len(&self) -> Option<u64> {
        match &self.wire {
            Some(wire) if wire.exchange.get() == self.exchange => wire.read.borrow().decoder.remaining(),
            Some(_) => None,
            None => Some(0),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.wire.is_none()
    }

    fn complete(&mut self, cx: &mut Context<'_>) {
        let Some(wire) = self.wire.take() else { return };
        wire.starved_since.set(None);
        match self.role {
            Role::Server => wire.wake_owner_unless(Some(cx.waker())),
            Role::Client => wire.finish_exchange(),
        }
    }

    /// The body will not be read to its end.
    fn abandon(&mut self) {
        let Some(wire) = self.wire.take() else { return };
        if wire.exchange.get() != self.exchange {
            return;
        }
        match self.role {
            Role::Server => {
                wire.starved_since.set(None);
                wire.reader_gone.set(true);
                wire.wake_owner_unless(None);
            }
            Role::Client => wire.close(),
        }
    }
}

impl Drop for H1Body {
    fn drop(&mut self) {
        self.abandon();
    }
}

/// A refusal that a body read ran into, if that is what ended it.
pub(crate) fn refusal_of(error: &BodyError) -> Option<Refusal> {
    match error {
        BodyError::Invalid(refusal) => Some(*refusal),
        _ => None,
    }
}
