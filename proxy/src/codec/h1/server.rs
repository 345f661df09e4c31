//! The server side of an HTTP/1.1 connection: read a head, let the handler answer, write, and again.
//! In: a socket and a [`Handler`]. Out: answered requests, refusals answered by ourselves, and a [`ConnEnd`].
//! Kept true: one request at a time; no body of one request is read as the next; every wait for the peer has a deadline.
//! Not here: parsing (`parse`), framing of what is written (`encode`), choosing the protocol (`codec::serve`).

use std::future::{Future, poll_fn};
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use tokio::time::Instant;

use super::decode::{Decoded, Decoder};
use super::encode::{Asked, Pump, PumpError, response_head};
use super::parse::{Framing, HeadParser, NOT_HTTP, Parsed, Side};
use super::wire::{H1Body, Role, Wire, refusal_of};
use crate::codec::body::Body;
use crate::codec::head::{Scheme, Version};
use crate::codec::limits::{Limits, Phase, Refusal};
use crate::codec::message::{Handler, Io, Request, Response};
use crate::codec::name::Known;
use crate::codec::serve::{ConnEnd, Drain};
use crate::codec::timer::Deadline;
use crate::codec::tunnel::{self, Upgraded};

/// How long a refused client may take to read the answer before the connection is cut.
const LINGER: Duration = Duration::from_secs(1);

/// Serves one connection on which these bytes have already been read. Dropping the future closes it and cancels what is under way.
/// `guessed` when nobody said that the peer speaks HTTP/1: what is no HTTP at all gets no answer in HTTP/1 then.
pub(crate) async fn serve<H: Handler, D: Future<Output = ()>>(
    io: Box<dyn Io>,
    read: BytesMut,
    scheme: Scheme,
    limits: Rc<Limits>,
    mut guessed: bool,
    drain: &mut Drain<'_, D>,
    handler: &H,
) -> ConnEnd {
    let wire = Rc::new(Wire::new(io, read, limits));
    let _closer = Closer(&wire);
    let mut server =
        Server { wire: &wire, parser: HeadParser::new(Side::Request(scheme)), deadline: Deadline::default() };
    loop {
        let parsed = match server.next_head(drain).await {
            Ok(parsed) => parsed,
            Err(HeadEnd::Over(end)) => {
                if !matches!(end, ConnEnd::Failed(_)) {
                    server.shut_down().await;
                }
                return end;
            }
            Err(HeadEnd::Refused(refusal)) => {
                handler.refused(&refusal);
                if guessed && refusal == NOT_HTTP {
                    server.linger().await;
                } else {
                    server.refuse(refusal).await;
                }
                return ConnEnd::Refused(refusal);
            }
            Err(HeadEnd::TimedOut(phase)) => {
                let refusal = Refusal::with(StatusCode::REQUEST_TIMEOUT, "request head timeout");
                handler.refused(&refusal);
                server.refuse(refusal).await;
                return ConnEnd::TimedOut(phase);
            }
        };
        guessed = false;
        match server.exchange(parsed, drain, handler).await {
            Ok(()) => {}
            Err(end) => return end,
        }
    }
}

/// Closes the wire when the connection's future ends or is dropped, even if a body is still held elsewhere.
struct Closer<'a>(&'a Wire);

impl Drop for Closer<'_> {
    fn drop(&mut self) {
        self.0.exchange.set(self.0.exchange.get() + 1);
        self.0.close();
    }
}

enum HeadEnd {
    Over(ConnEnd),
    Refused(Refusal),
    TimedOut(Phase),
}

struct Server<'a> {
    wire: &'a Rc<Wire>,
    parser: HeadParser,
    deadline: Deadline,
}

impl Server<'_> {
    /// Waits for a request. Between requests the drain signal and the idle deadline count, within a head its own deadline.
    async fn next_head<D: Future<Output = ()>>(
        &mut self,
        drain: &mut Drain<'_, D>,
    ) -> Result<Parsed, HeadEnd> {
        let idle_since = Instant::now();
        let mut head_since = None;
        poll_fn(|cx| {
            let wire = self.wire;
            let mut read = wire.read.borrow_mut();
            loop {
                match self.parser.parse(&mut read.buffer, &wire.limits) {
                    Ok(Some(parsed)) => return Poll::Ready(Ok(parsed)),
                    Ok(None) => {}
                    Err(refusal) => return Poll::Ready(Err(HeadEnd::Refused(refusal))),
                }
                if read.eof {
                    return Poll::Ready(Err(HeadEnd::Over(ConnEnd::Closed)));
                }
                match wire.poll_fill(cx, &mut read) {
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(error)) => {
                        // A TLS peer that leaves between requests without a close_notify harms nobody.
                        let harmless = error.kind() == io::ErrorKind::UnexpectedEof;
                        let end = match harmless && self.parser.is_fresh(&read.buffer) {
                            true => ConnEnd::Closed,
                            false => ConnEnd::Failed(error),
                        };
                        return Poll::Ready(Err(HeadEnd::Over(end)));
                    }
                    Poll::Pending => break,
                }
            }
            let limits = &wire.limits;
            let (due, phase) = if self.parser.is_fresh(&read.buffer) {
                if drain.poll(cx) {
                    return Poll::Ready(Err(HeadEnd::Over(ConnEnd::Drained)));
                }
                (idle_since + limits.idle_timeout, Phase::Idle)
            } else {
                (*head_since.get_or_insert_with(Instant::now) + limits.head_timeout, Phase::Head)
            };
            self.deadline.set(Some(due));
            self.deadline.poll(cx).map(|()| {
                Err(match phase {
                    Phase::Idle => HeadEnd::Over(ConnEnd::TimedOut(Phase::Idle)),
                    phase => HeadEnd::TimedOut(phase),
                })
            })
        })
        .await
    }

    /// One request and its response. `Err` ends the connection.
    async fn exchange<H: Handler, D: Future<Output = ()>>(
        &mut self,
        parsed: Parsed,
        drain: &mut Drain<'_, D>,
        handler: &H,
    ) -> Result<(), ConnEnd> {
        let wire = self.wire;
        let Parsed { head, framing, keep_alive, expect_continue } = parsed;
        let asked_upgrade = head.upgrade().is_some();
        let connect = *head.method() == Method::CONNECT;
        let mut asked = Asked {
            head: *head.method() == Method::HEAD,
            http10: head.version() == Version::Http10,
            leaves_http: false,
            close: !keep_alive,
        };
        wire.read.borrow_mut().decoder = Decoder::new(framing);
        wire.exchange.set(wire.exchange.get() + 1);
        wire.reader_gone.set(false);
        wire.owes_continue.set(expect_continue);
        wire.starved_since.set(None);
        wire.unread_since.set(None);
        wire.timed_out.set(false);
        let body = match framing {
            Framing::Empty => Body::empty(),
            _ => Body::h1(H1Body::new(wire, Role::Server)),
        };

        let answer = {
            // Boxed, so that a connection holds no room for a request while it has none.
            let mut answer = Box::pin(handler.handle(Request { head, body }));
            poll_fn(|cx| {
                wire.set_owner(cx.waker());
                loop {
                    if let Poll::Ready(response) = answer.as_mut().poll(cx) {
                        return Poll::Ready(Ok(response));
                    }
                    if !self.body_is_late(cx) {
                        break;
                    }
                }
                if let Poll::Ready(error) = wire.poll_broken(cx) {
                    return Poll::Ready(Err(ConnEnd::Failed(error)));
                }
                Poll::Pending
            })
            .await
        };
        let mut response = answer?;
        if response.abort {
            return Err(ConnEnd::Closed);
        }

        let status = response.head.status();
        let switching = status == StatusCode::SWITCHING_PROTOCOLS;
        let tunnel = response.upgraded.take();
        asked.leaves_http =
            tunnel.is_some() && ((switching && asked_upgrade) || (connect && status.is_success()));
        if (switching || (connect && status.is_success())) && !asked.leaves_http {
            response = Response::text(StatusCode::BAD_GATEWAY, "upstream switched protocols unasked");
        } else if status.is_informational() && !switching {
            response = Response::text(StatusCode::BAD_GATEWAY, "upstream gave no final response");
        }
        // A client that was never told to go on may or may not send the body: the next bytes cannot be judged (0.CL desync).
        asked.close |=
            wire.owes_continue.take() || drain.poll_now() || wire.read.borrow().eof || wants_close(&response);
        let out_framing = response_head(wire.out.borrow_mut().small(), &response.head, &response.body, asked);
        let until_close = out_framing == super::encode::OutFraming::UntilClose;
        let mut pump = Pump::new(std::mem::take(&mut response.body), out_framing);
        self.write(&mut pump).await?;
        drop(pump);

        if let (true, Some(upstream)) = (asked.leaves_http, tunnel) {
            let Some((io, rest)) = wire.take_io() else { return Err(ConnEnd::Closed) };
            return Err(match tunnel::join(Upgraded::with_prefix(io, rest.freeze()), upstream).await {
                Ok(_) => ConnEnd::Upgraded,
                Err(error) => ConnEnd::Failed(error),
            });
        }
        // From here on, nobody else reads this request's body.
        wire.exchange.set(wire.exchange.get() + 1);
        wire.wake_reader();
        if !asked.close && !until_close && self.discard().await {
            return Ok(());
        }
        self.linger().await;
        Err(if drain.poll_now() { ConnEnd::Drained } else { ConnEnd::Closed })
    }

    /// Whether the body deadline has just passed; the reader learns of it at its next poll.
    fn body_is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let wire = self.wire;
        let due = match (wire.limits.body_timeout, wire.starved_since.get()) {
            (Some(timeout), Some(since)) if !wire.timed_out.get() => Some(since + timeout),
            _ => None,
        };
        self.deadline.set(due);
        let late = self.deadline.poll(cx).is_ready();
        if late {
            wire.timed_out.set(true);
            wire.wake_reader();
        }
        late
    }

    /// Writes a response to its end.
    async fn write(&mut self, pump: &mut Pump) -> Result<(), ConnEnd> {
        let wire = self.wire;
        poll_fn(|cx| {
            wire.set_owner(cx.waker());
            loop {
                match pump.poll(cx, wire) {
                    Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                    Poll::Ready(Err(PumpError::Io(error))) => {
                        return Poll::Ready(Err(ConnEnd::Failed(error)));
                    }
                    Poll::Ready(Err(PumpError::Body(error))) => {
                        return Poll::Ready(Err(match refusal_of(&error) {
                            Some(refusal) => ConnEnd::Refused(refusal),
                            None => ConnEnd::Closed,
                        }));
                    }
                    Poll::Ready(Err(PumpError::Length)) => return Poll::Ready(Err(ConnEnd::Closed)),
                    Poll::Pending => {}
                }
                if let Some(since) = wire.unread_since.get() {
                    self.deadline.set(Some(since + wire.limits.unread_timeout));
                    if self.deadline.poll(cx).is_ready() {
                        return Poll::Ready(Err(ConnEnd::TimedOut(Phase::Unread)));
                    }
                } else if self.body_is_late(cx) {
                    continue;
                }
                return wire.poll_broken(cx).map(|error| Err(ConnEnd::Failed(error)));
            }
        })
        .await
    }

    /// Throws the rest of an unread request body away, if it is little and comes soon. Says whether the connection is at a message's start.
    async fn discard(&mut self) -> bool {
        let wire = self.wire;
        if wire.read.borrow().decoder.is_done() {
            return true;
        }
        if wire.read.borrow().decoder.remaining().is_some_and(|left| left > wire.limits.discard_bytes) {
            return false;
        }
        let mut budget = wire.limits.discard_bytes;
        self.deadline.set(Some(Instant::now() + wire.limits.head_timeout));
        poll_fn(|cx| {
            let mut read = wire.read.borrow_mut();
            let read = &mut *read;
            loop {
                match read.decoder.decode(&mut read.buffer, &wire.limits) {
                    Ok(Decoded::End | Decoded::Trailers(_)) => return Poll::Ready(true),
                    Ok(Decoded::Data(data)) => {
                        match budget.checked_sub(u64::try_from(data.len()).unwrap_or(u64::MAX)) {
                            Some(left) => budget = left,
                            None => return Poll::Ready(false),
                        }
                        continue;
                    }
                    Ok(Decoded::NeedMore) if read.eof => return Poll::Ready(false),
                    Ok(Decoded::NeedMore) => {}
                    Err(_) => return Poll::Ready(false),
                }
                match wire.poll_fill(cx, read) {
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(false),
                    Poll::Pending => return self.deadline.poll(cx).map(|()| false),
                }
            }
        })
        .await
    }

    /// Answers what is not a request, and closes.
    async fn refuse(&mut self, refusal: Refusal) {
        let mut head = crate::codec::Head::response(refusal.status);
        head.append(Known::ContentType, "text/plain");
        let body = Body::full(Bytes::from_static(refusal.detail.as_bytes()));
        let asked = Asked { head: false, http10: false, leaves_http: false, close: true };
        let framing = response_head(self.wire.out.borrow_mut().small(), &head, &body, asked);
        if self.write(&mut Pump::new(body, framing)).await.is_ok() {
            self.linger().await;
        }
    }

    /// Closes our direction in order (TLS says goodbye), if that goes at once or nearly so.
    async fn shut_down(&mut self) {
        self.deadline.set(Some(Instant::now() + LINGER));
        poll_fn(|cx| match self.wire.poll_shutdown(cx) {
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => self.deadline.poll(cx),
        })
        .await;
    }

    /// Closes our direction, then gives the client a moment to read: a socket closed over unread input would reset the answer away.
    async fn linger(&mut self) {
        let wire = self.wire;
        let mut budget = usize::try_from(wire.limits.discard_bytes).unwrap_or(usize::MAX).max(1 << 20);
        let mut shut = false;
        let until = Instant::now() + LINGER;
        poll_fn(|cx| {
            self.deadline.set(Some(until));
            if self.deadline.poll(cx).is_ready() {
                return Poll::Ready(());
            }
            if !shut {
                match wire.poll_shutdown(cx) {
                    Poll::Ready(Ok(())) => shut = true,
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
            let mut read = wire.read.borrow_mut();
            loop {
                budget = budget.saturating_sub(read.buffer.len());
                read.buffer.clear();
                if read.eof || budget == 0 {
                    return Poll::Ready(());
                }
                match wire.poll_fill(cx, &mut read) {
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
    }
}

/// A handler may ask for the connection to be closed by a `connection: close` of its own.
fn wants_close(response: &Response) -> bool {
    response.head.get(Known::Connection).is_some_and(|value| value.eq_ignore_ascii_case(b"close"))
}
