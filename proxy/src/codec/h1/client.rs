//! The client side of an HTTP/1.1 connection: one request, one response, and the connection goes home.
//! In: an [`Io`] and a [`Request`]. Out: a [`Response`] whose body streams while the request still does, or a [`SendError`].
//! Kept true: a connection is reused only if both messages ended where their framing says, with no stray byte.
//! Not here: pools (`http`), retries (`http`), deadlines of a request (whoever sends).

use std::future::poll_fn;
use std::io;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use http::{Method, StatusCode};

use super::decode::Decoder;
use super::encode::{Pump, request_head};
use super::parse::{Framing, HeadParser, Parsed, Side};
use super::wire::{H1Body, Role, Wire};
use crate::codec::body::Body;
use crate::codec::head::Head;
use crate::codec::limits::Limits;
use crate::codec::message::{Home, Io, Request, Response, SendError, SendErrorKind};
use crate::codec::tunnel::Upgraded;

/// How many interim (1xx) responses may precede one final response.
const INTERIM: usize = 16;

/// An idle upstream connection. Dropping it closes the connection in order.
pub struct ClientConn {
    /// Taken by `send`.
    wire: Option<Rc<Wire>>,
}

impl ClientConn {
    /// Over this stream. `limits` bound what the upstream may answer.
    pub fn new(io: impl Io, limits: Rc<Limits>) -> ClientConn {
        ClientConn::from_wire(Rc::new(Wire::new(Box::new(io), BytesMut::new(), limits)))
    }

    pub(crate) fn from_wire(wire: Rc<Wire>) -> ClientConn {
        ClientConn { wire: Some(wire) }
    }

    /// Says where the connection goes when an exchange has left it usable. Without a home it is closed then.
    pub fn set_home(&self, home: Weak<dyn Home>) {
        if let Some(wire) = &self.wire {
            *wire.home.borrow_mut() = Some(home);
        }
    }

    /// Whether it can still be used, as far as can be seen without waiting: not closed by the peer, no stray bytes.
    pub fn is_open(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.poll_unusable(&mut cx).is_pending()
    }

    /// Ready when an idle connection has become unusable, so that a pool can let go of it.
    pub fn poll_unusable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(wire) = self.wire.as_ref().filter(|wire| !wire.is_closed()) else { return Poll::Ready(()) };
        let mut read = wire.read.borrow_mut();
        if read.eof || !read.buffer.is_empty() {
            return Poll::Ready(());
        }
        wire.poll_fill(cx, &mut read).map(|_| ())
    }

    /// Sends a request and gives the response when its head has come; both bodies go on streaming.
    /// The rest of the request is moved by polling the response's body. Dropping this future, or the body before its end, closes the connection.
    pub async fn send(self, request: Request) -> Result<Response, SendError> {
        self.send_parts(&request.head, request.body).await
    }

    /// [`Self::send`] with a head that the caller keeps, to send it again.
    pub async fn send_parts(mut self, head: &Head, body: Body) -> Result<Response, SendError> {
        let alive = self.is_open();
        let Some(wire) = self.wire.take().filter(|_| alive) else {
            return Err(SendError {
                wrote: false,
                ..SendError::new(SendErrorKind::Closed, "connection is closed")
            });
        };
        wire.wrote.set(false);
        wire.answered.set(false);
        wire.reusable.set(true);
        let mut closer = CloseUnlessDone(Some(&wire));
        let upgrading = head.upgrade().is_some();
        let connect = *head.method() == Method::CONNECT;
        let to_head = *head.method() == Method::HEAD;
        let framing = request_head(wire.out.borrow_mut().small(), head, &body);
        *wire.upload.borrow_mut() = Some(Pump::new(body, framing));

        let mut parser = HeadParser::new(Side::Response { head: to_head, connect });
        let mut interim = 0;
        let parsed = loop {
            let parsed = poll_fn(|cx| poll_head(&wire, &mut parser, cx)).await?;
            let status = parsed.head.status();
            if status == StatusCode::SWITCHING_PROTOCOLS && upgrading && parsed.head.upgrade().is_some() {
                break parsed;
            }
            if !status.is_informational() {
                break parsed;
            }
            interim += 1;
            if status == StatusCode::SWITCHING_PROTOCOLS || interim > INTERIM {
                return Err(fail(
                    &wire,
                    SendErrorKind::Protocol,
                    "upstream sent an interim response out of place",
                ));
            }
        };
        closer.0 = None;

        let Parsed { head, framing, keep_alive, .. } = parsed;
        if !keep_alive {
            wire.reusable.set(false);
        }
        let leaves_http = (upgrading && head.status() == StatusCode::SWITCHING_PROTOCOLS)
            || (connect && head.status().is_success());
        if leaves_http {
            let Some((io, rest)) = wire.take_io() else {
                return Err(fail(
                    &wire,
                    SendErrorKind::Closed,
                    "connection closed while switching protocols",
                ));
            };
            let mut response = Response::from_head(head, Body::empty());
            response.upgraded = Some(Upgraded::with_prefix(io, rest.freeze()));
            return Ok(response);
        }
        wire.read.borrow_mut().decoder = Decoder::new(framing);
        let body = match framing {
            Framing::Empty => {
                wire.finish_exchange();
                Body::empty()
            }
            _ => Body::h1(H1Body::new(&wire, Role::Client)),
        };
        Ok(Response::from_head(head, body))
    }
}

impl Drop for ClientConn {
    fn drop(&mut self) {
        if let Some(wire) = self.wire.take() {
            wire.close_in_order();
        }
    }
}

/// Moves the request and waits for a response head.
fn poll_head(
    wire: &Rc<Wire>,
    parser: &mut HeadParser,
    cx: &mut Context<'_>,
) -> Poll<Result<Parsed, SendError>> {
    if let Err(error) = wire.poll_upload(cx) {
        return Poll::Ready(Err(fail(wire, SendErrorKind::RequestBody, error.to_string())));
    }
    let mut read = wire.read.borrow_mut();
    loop {
        match parser.parse(&mut read.buffer, &wire.limits) {
            Ok(Some(parsed)) => return Poll::Ready(Ok(parsed)),
            Ok(None) => {}
            Err(refusal) => {
                let detail = format!("invalid response from upstream: {}", refusal.detail);
                return Poll::Ready(Err(fail(wire, SendErrorKind::Protocol, detail)));
            }
        }
        if read.eof {
            return Poll::Ready(Err(fail(
                wire,
                SendErrorKind::Closed,
                "upstream closed the connection before answering",
            )));
        }
        match wire.poll_fill(cx, &mut read) {
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => {
                let kind = match error.kind() {
                    io::ErrorKind::NotConnected => SendErrorKind::Closed,
                    _ => SendErrorKind::Io,
                };
                return Poll::Ready(Err(fail(wire, kind, format!("upstream connection failed: {error}"))));
            }
            Poll::Pending => return Poll::Pending,
        }
    }
}

fn fail(wire: &Wire, kind: SendErrorKind, detail: impl Into<String>) -> SendError {
    SendError { wrote: wire.wrote.get(), answered: wire.answered.get(), ..SendError::new(kind, detail) }
}

/// Closes the connection if sending fails or is given up.
struct CloseUnlessDone<'a>(Option<&'a Wire>);

impl Drop for CloseUnlessDone<'_> {
    fn drop(&mut self) {
        if let Some(wire) = self.0 {
            wire.close();
        }
    }
}
