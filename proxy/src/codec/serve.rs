//! Serving one accepted connection: which protocol it speaks, then that protocol.
//! In: an [`Io`], a [`Handler`], a drain signal. Out: [`ConnEnd`], the one word on how the connection ended.
//! Kept true: the protocol is known within a deadline; draining lets what is under way finish.
//! Not here: accepting, TLS (ALPN decides there: pass [`Protocol::Http1`] or [`Protocol::Http2`]), and both protocols (`h1`, `h2`).

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use tokio::time::Instant;

use super::head::Scheme;
use super::limits::{Limits, Phase, Refusal};
use super::message::{Handler, Io};
use super::scratch;
use super::timer::Deadline;
use super::{h1, h2};

/// What an HTTP/2 client with prior knowledge sends first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How much is read at once before the protocol is known, in bytes.
const DETECT_READ: usize = 8192;

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, and 1.0 if the limits allow.
    Http1,
    /// HTTP/2.
    Http2,
    /// HTTP/2 if the client's first bytes are its preface, else HTTP/1.
    Detect,
}

/// How a connection ended.
#[derive(Debug)]
pub enum ConnEnd {
    /// By either side, in order, or because a response could not be finished.
    Closed,
    /// By the drain signal.
    Drained,
    /// What the peer sent was refused.
    Refused(Refusal),
    /// The peer took too long.
    TimedOut(Phase),
    /// The socket broke.
    Failed(io::Error),
    /// It left HTTP, and both directions have ended.
    Upgraded,
}

/// How to serve connections of one kind.
#[derive(Clone, Debug)]
pub struct Serve {
    /// Which protocol they speak.
    pub protocol: Protocol,
    /// `https` if they came in over TLS.
    pub scheme: Scheme,
    /// What their peers may ask.
    pub limits: Rc<Limits>,
}

impl Serve {
    /// Serves one connection to its end. When `drain` is ready, idle connections close and busy ones end with their present exchanges.
    /// How long that may take is the caller's to decide: dropping the future closes the connection and cancels every exchange on it.
    pub fn run<H: Handler>(
        &self,
        io: impl Io,
        drain: impl Future<Output = ()>,
        handler: &H,
    ) -> impl Future<Output = ConnEnd> {
        self.run_boxed(Box::new(io), drain, handler)
    }

    /// [`Self::run`] over a stream whose kind the caller has forgotten.
    pub async fn run_boxed<H: Handler>(
        &self,
        mut io: Box<dyn Io>,
        drain: impl Future<Output = ()>,
        handler: &H,
    ) -> ConnEnd {
        let drain = pin!(drain);
        let mut drain = Drain { signal: drain, done: false };
        let mut read = BytesMut::new();
        let guessed = matches!(self.protocol, Protocol::Detect);
        let http2 = match self.protocol {
            Protocol::Http1 => false,
            Protocol::Http2 => true,
            Protocol::Detect => match self.detect(&mut io, &mut read, &mut drain).await {
                Ok(http2) => http2,
                Err(end) => return end,
            },
        };
        let limits = Rc::clone(&self.limits);
        // Boxed, so that a connection holds the state of its own protocol only, and none while it is silent.
        if http2 {
            Box::pin(h2::serve(io, read, self.scheme, limits, &mut drain, handler)).await
        } else {
            Box::pin(h1::serve(io, read, self.scheme, limits, guessed, &mut drain, handler)).await
        }
    }

    /// Reads until the preface is seen or ruled out.
    async fn detect<D: Future<Output = ()>>(
        &self,
        io: &mut Box<dyn Io>,
        read: &mut BytesMut,
        drain: &mut Drain<'_, D>,
    ) -> Result<bool, ConnEnd> {
        let mut deadline = Deadline::default();
        deadline.set(Some(Instant::now() + self.limits.detect_timeout));
        poll_fn(|cx| {
            loop {
                let seen = read.len().min(PREFACE.len());
                if read[..seen] != PREFACE[..seen] {
                    return Poll::Ready(Ok(false));
                }
                if seen == PREFACE.len() {
                    return Poll::Ready(Ok(true));
                }
                match scratch::poll_read_onto(io.as_mut(), cx, read, DETECT_READ) {
                    Poll::Ready(Ok(0)) if read.is_empty() => return Poll::Ready(Err(ConnEnd::Closed)),
                    // A beginning of the preface and then the end: HTTP/1 finds the words for it.
                    Poll::Ready(Ok(0)) => return Poll::Ready(Ok(false)),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(ConnEnd::Failed(error))),
                    Poll::Pending => break,
                }
            }
            if read.is_empty() && drain.poll(cx) {
                return Poll::Ready(Err(ConnEnd::Drained));
            }
            deadline.poll(cx).map(|()| Err(ConnEnd::TimedOut(Phase::Detect)))
        })
        .await
    }
}

/// The drain signal, asked as often as one likes.
pub(crate) struct Drain<'a, D> {
    signal: Pin<&'a mut D>,
    done: bool,
}

impl<D: Future<Output = ()>> Drain<'_, D> {
    /// Whether it was given; if not, this task is woken then.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        self.done = self.done || self.signal.as_mut().poll(cx).is_ready();
        self.done
    }

    /// Whether it was given, without waiting for it.
    pub(crate) fn poll_now(&mut self) -> bool {
        self.poll(&mut Context::from_waker(Waker::noop()))
    }
}
