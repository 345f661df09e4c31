//! Requests, responses, and who makes one of the other.
//! In: heads and bodies. Out: what a [`Handler`] gets and gives, and how sending upstream fails ([`SendError`]).
//! Kept true: a failure says whether the other side can have seen the request, so that retrying is a decision, not a guess.
//! Not here: connections (`h1`, `h2`), retry policy (`http`).

use std::future::Future;

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};

use super::body::Body;
use super::h1;
use super::head::Head;
use super::limits::Refusal;
use super::name::Known;
use super::tunnel::Upgraded;

/// A byte stream in both directions: a socket, TLS over one, or a test's pipe.
pub trait Io: AsyncRead + AsyncWrite + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + 'static> Io for T {}

/// A request. Dropping it unanswered drops the rest of its body.
#[derive(Debug)]
pub struct Request {
    /// Method, target and fields.
    pub head: Head,
    /// Its body, perhaps still on its way.
    pub body: Body,
}

/// A response.
#[derive(Debug)]
pub struct Response {
    /// Status and fields.
    pub head: Head,
    /// Its body, perhaps still on its way.
    pub body: Body,
    /// With status 101, or 2xx to CONNECT: the byte stream that the client is to be joined with.
    pub upgraded: Option<Upgraded>,
    pub(crate) abort: bool,
}

impl Response {
    /// An empty response.
    pub fn new(status: StatusCode) -> Response {
        Response::from_head(Head::response(status), Body::empty())
    }

    /// A `text/plain` response.
    pub fn text(status: StatusCode, text: &str) -> Response {
        let mut head = Head::response(status);
        head.append(Known::ContentType, "text/plain");
        Response::from_head(head, Body::full(text.as_bytes().to_vec()))
    }

    /// A response of these parts.
    pub fn from_head(head: Head, body: Body) -> Response {
        Response { head, body, upgraded: None, abort: false }
    }

    /// The answer to CONNECT: the client is joined with this stream.
    pub fn connected(stream: Upgraded) -> Response {
        Response { upgraded: Some(stream), ..Response::new(StatusCode::OK) }
    }

    /// No answer: the connection is closed (HTTP/1) or the stream reset (HTTP/2).
    pub fn abort() -> Response {
        Response { abort: true, ..Response::new(StatusCode::INTERNAL_SERVER_ERROR) }
    }
}

/// Answers requests. Any `Fn(Request) -> impl Future<Output = Response>` is one.
pub trait Handler {
    /// Answers one request. The future is dropped if the client goes away.
    fn handle(&self, request: Request) -> impl Future<Output = Response>;

    /// The codec has refused and already answered what is not a request. For statistics and the access log.
    fn refused(&self, _why: &Refusal) {}
}

impl<F, A> Handler for F
where
    F: Fn(Request) -> A,
    A: Future<Output = Response>,
{
    fn handle(&self, request: Request) -> impl Future<Output = Response> {
        self(request)
    }
}

/// Where an HTTP/1 upstream connection goes when it can be used again.
pub trait Home {
    /// The last exchange is over and the connection lives.
    fn idle(&self, conn: h1::ClientConn);
}

/// How sending a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendErrorKind {
    /// The connection was or became closed.
    Closed,
    /// Reading or writing failed.
    Io,
    /// The answer was not valid HTTP.
    Protocol,
    /// HTTP/2: the peer says that it did not process the request.
    RefusedStream,
    /// HTTP/2: the peer reset the stream.
    Reset,
    /// The request's own body broke.
    RequestBody,
    /// HTTP/2: the connection has no room for another stream, or is going away.
    TooManyStreams,
}

/// A request that got no answer.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub struct SendError {
    /// What happened.
    pub kind: SendErrorKind,
    /// Whether any byte of the request was written.
    pub wrote: bool,
    /// Whether any byte of an answer came.
    pub answered: bool,
    /// What happened, in words.
    pub detail: String,
}

impl SendError {
    pub(crate) fn new(kind: SendErrorKind, detail: impl Into<String>) -> SendError {
        SendError { kind, wrote: true, answered: false, detail: detail.into() }
    }

    /// Whether the application behind the upstream has surely not seen the request.
    pub fn never_seen(&self) -> bool {
        !self.answered && (!self.wrote || self.kind == SendErrorKind::RefusedStream)
    }
}
