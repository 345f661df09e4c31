//! The server side of an HTTP/2 connection: streams run side by side within the connection's own future.
//! In: a socket and a [`Handler`]. Out: answered requests, and a [`ConnEnd`].
//! Kept true: dropping the future cancels every stream; a reset stream's handler is dropped at once; floods end the connection.
//! Not here: head rules (`convert`), bodies (`body`), counting (`guard`).

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, StatusCode};
use tokio::time::Instant;

use super::body::{H2Body, Pump};
use super::convert;
use super::guard::{Guard, Watch, due};
use crate::codec::body::Body;
use crate::codec::head::{Head, Scheme, digits};
use crate::codec::limits::{Limits, Phase, Refusal};
use crate::codec::message::{Handler, Io, Request, Response};
use crate::codec::name::Known;
use crate::codec::serve::{ConnEnd, Drain};
use crate::codec::timer::Deadline;

/// How long a connection that is being ended may take to read the GOAWAY.
const LINGER: Duration = Duration::from_secs(1);

/// Serves one connection on which these bytes have already been read.
pub(crate) async fn serve<H: Handler, D: Future<Output = ()>>(
    io: Box<dyn Io>,
    read: BytesMut,
    scheme: Scheme,
    limits: Rc<Limits>,
    drain: &mut Drain<'_, D>,
    handler: &H,
) -> ConnEnd {
    let guard = Guard::new(io, read, &limits, true);
    let watch = guard.watch();
    let mut builder = Builder::new();
    builder
        .initial_window_size(limits.h2_stream_window)
        .initial_connection_window_size(limits.h2_connection_window)
        .max_concurrent_streams(limits.h2_streams)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(limits.h2_send_buffer);
    let handshake = tokio::time::timeout(limits.detect_timeout, builder.handshake::<_, Bytes>(guard)).await;
    let connection = match handshake {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return ended_by(error),
        Err(_) => return ConnEnd::TimedOut(Phase::Detect),
    };
    let end = drive(connection, &watch, scheme, &limits, drain, handler).await;
    if let ConnEnd::Refused(refusal) = &end {
        handler.refused(refusal);
    }
    end
}

/// Runs the connection and its streams.
async fn drive<H: Handler, D: Future<Output = ()>>(
    mut connection: Connection<Guard, Bytes>,
    watch: &Watch,
    scheme: Scheme,
    limits: &Rc<Limits>,
    drain: &mut Drain<'_, D>,
    handler: &H,
) -> ConnEnd {
    // What the heads of streams under way hold, in bytes.
    let heads = Cell::new(0);
    let mut streams = FuturesUnordered::new();
    let mut clock = Clock { deadline: Deadline::default(), idle_since: Instant::now() };
    let mut draining = false;
    let mut ending: Option<(ConnEnd, Instant)> = None;
    poll_fn(|cx| {
        loop {
            while let Poll::Ready(Some(())) = streams.poll_next_unpin(cx) {
                clock.idle_since = Instant::now();
            }
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    streams.push(stream(request, respond, scheme, limits, &heads, handler));
                    continue;
                }
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(ending.take().map_or_else(|| ended_by(error), |(end, _)| end));
                }
                Poll::Ready(None) => {
                    let end = if draining { ConnEnd::Drained } else { ConnEnd::Closed };
                    return Poll::Ready(ending.take().map_or(end, |(end, _)| end));
                }
                Poll::Pending => {}
            }
            if let Some((_, since)) = &ending {
                clock.deadline.set(Some(*since + LINGER));
                std::task::ready!(clock.deadline.poll(cx));
                return Poll::Ready(ending.take().map_or(ConnEnd::Closed, |(end, _)| end));
            }
            if watch.is_flooded() {
                streams.clear();
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                let refusal = Refusal::with(StatusCode::TOO_MANY_REQUESTS, "too many http/2 control frames");
                ending = Some((ConnEnd::Refused(refusal), Instant::now()));
                continue;
            }
            if !draining && drain.poll(cx) {
                connection.graceful_shutdown();
                draining = true;
                continue;
            }
            let late = std::task::ready!(clock.poll(cx, streams.is_empty(), watch, limits));
            if late == Phase::Idle {
                connection.graceful_shutdown();
            } else {
                streams.clear();
                connection.abrupt_shutdown(Reason::NO_ERROR);
            }
            ending = Some((ConnEnd::TimedOut(late), Instant::now()));
        }
    })
    .await
}

/// The deadlines of a connection, of which the nearest counts.
struct Clock {
    deadline: Deadline,
    idle_since: Instant,
}

impl Clock {
    fn poll(&mut self, cx: &mut Context<'_>, idle: bool, watch: &Watch, limits: &Limits) -> Poll<Phase> {
        let nearest = [
            (due(watch.unread_since(), limits.unread_timeout), Phase::Unread),
            (due(watch.partial_since(), limits.head_timeout), Phase::Head),
            (idle.then(|| self.idle_since + limits.idle_timeout), Phase::Idle),
        ]
        .into_iter()
        .filter_map(|(due, phase)| due.map(|due| (due, phase)))
        .min_by_key(|(due, _)| *due);
        self.deadline.set(nearest.map(|(due, _)| due));
        std::task::ready!(self.deadline.poll(cx));
        nearest.map_or(Poll::Pending, |(_, phase)| Poll::Ready(phase))
    }
}

/// One request and its response.
async fn stream<H: Handler>(
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    scheme: Scheme,
    limits: &Rc<Limits>,
    heads: &Cell<usize>,
    handler: &H,
) {
    let (parts, body) = request.into_parts();
    let (head, expect_continue, _held) = match take_head(&parts, scheme, limits, heads) {
        Ok(taken) => taken,
        Err(refusal) => {
            handler.refused(&refusal);
            let mut response = http::Response::new(());
            *response.status_mut() = refusal.status;
            // Fails only if the stream is gone.
            let _ = respond.send_response(response, true);
            return;
        }
    };
    drop(parts);
    if expect_continue && !body.is_end_stream() {
        let mut interim = http::Response::new(());
        *interim.status_mut() = StatusCode::CONTINUE;
        let _ = respond.send_informational(interim);
    }
    let to_head = *head.method() == Method::HEAD;
    let body = match body.is_end_stream() {
        true => Body::empty(),
        false => Body::h2(H2Body::of_request(body, head.content_length(), limits)),
    };
    let answer = {
        let mut answer = pin!(handler.handle(Request { head, body }));
        poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            Poll::Pending => respond.poll_reset(cx).map(|_| None),
        })
        .await
    };
    let Some(mut response) = answer else { return };
    if response.abort {
        return respond.send_reset(Reason::INTERNAL_ERROR);
    }
    if response.head.status().is_informational() || response.upgraded.is_some() {
        response = Response::text(StatusCode::BAD_GATEWAY, "upstream switched protocols");
    }
    let status = response.head.status();
    let without_body = to_head || status == StatusCode::NOT_MODIFIED;
    let described =
        without_body && response.head.get(Known::ContentLength).is_some_and(|value| digits(value).is_some());
    let length = match status {
        StatusCode::NO_CONTENT => None,
        StatusCode::NOT_MODIFIED => response.body.exact_len().filter(|length| *length > 0),
        _ if to_head => response.body.exact_len().filter(|length| *length > 0),
        _ => response.body.exact_len(),
    };
    let end = without_body || status == StatusCode::NO_CONTENT || response.body.exact_len() == Some(0);
    let head = convert::to_response(&response.head, length, described);
    let Ok(sender) = respond.send_response(head, end) else { return };
    if end {
        return;
    }
    let mut pump = Pump::new(std::mem::take(&mut response.body), sender, Some(limits.unread_timeout));
    // However it ends, the stream has been told.
    let _ = poll_fn(|cx| pump.poll(cx)).await;
}

/// Takes a request's head, if the heads of this connection leave room for it.
fn take_head<'a>(
    parts: &http::request::Parts,
    scheme: Scheme,
    limits: &Limits,
    heads: &'a Cell<usize>,
) -> Result<(Head, bool, Held<'a>), Refusal> {
    let (head, expect_continue) = convert::request(parts, scheme, limits)?;
    let size = head.wire_size();
    if heads.get() + size > limits.h2_head_bytes {
        return Err(Refusal::with(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "heads of this connection too large together",
        ));
    }
    heads.set(heads.get() + size);
    Ok((head, expect_continue, Held { heads, size }))
}

/// A head's share of what its connection's heads may hold.
struct Held<'a> {
    heads: &'a Cell<usize>,
    size: usize,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.heads.set(self.heads.get() - self.size);
    }
}

fn ended_by(error: h2::Error) -> ConnEnd {
    if error.is_io() {
        return match error.into_io() {
            Some(io) => ConnEnd::Failed(io),
            None => ConnEnd::Closed,
        };
    }
    match error.reason() {
        Some(Reason::NO_ERROR) => ConnEnd::Closed,
        _ if error.is_remote() => ConnEnd::Closed,
        _ => ConnEnd::Refused(Refusal::bad("http/2 protocol error")),
    }
}
