//! The client side of an HTTP/2 connection: many requests at once over one stream.
//! In: an [`Io`] and [`Request`]s. Out: [`Response`]s whose bodies stream while the requests still do, or [`SendError`]s.
//! Kept true: no more streams than the peer allows; dropping a response's body resets its stream and frees its place.
//! Not here: pools and retries (`http`), head rules (`convert`).

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use h2::Reason;
use h2::client::{Builder, Connection, SendRequest};

use super::body::{H2Body, Pump, PumpError};
use super::convert;
use super::guard::{Guard, Watch, due};
use crate::codec::body::Body;
use crate::codec::head::Head;
use crate::codec::limits::Limits;
use crate::codec::message::{Io, Request, Response, SendError, SendErrorKind};
use crate::codec::timer::Deadline;

/// A handle to an upstream HTTP/2 connection. Clones share it; when the last one and the last stream are gone it closes.
#[derive(Clone)]
pub struct ClientConn {
    send: SendRequest<Bytes>,
    state: Rc<State>,
    limits: Rc<Limits>,
}

struct State {
    closed: Cell<bool>,
    in_flight: Cell<usize>,
}

/// A stream's place on its connection.
pub(crate) struct Slot(Rc<State>);

impl Slot {
    fn take(state: &Rc<State>) -> Slot {
        state.in_flight.set(state.in_flight.get() + 1);
        Slot(Rc::clone(state))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get().saturating_sub(1));
    }
}

impl ClientConn {
    /// Sends the preface and settings. The [`Driver`] must be polled (spawned locally) for anything to move; dropping it closes the connection.
    /// Dropping this future closes it too.
    pub async fn handshake(io: impl Io, limits: Rc<Limits>) -> Result<(ClientConn, Driver), SendError> {
        let guard = Guard::new(Box::new(io), BytesMut::new(), &limits, false);
        let watch = guard.watch();
        let streams = usize::try_from(limits.h2_streams).unwrap_or(usize::MAX);
        let (send, connection) = Builder::new()
            .enable_push(false)
            .initial_window_size(limits.h2_stream_window)
            .initial_connection_window_size(limits.h2_connection_window)
            .initial_max_send_streams(streams)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
            .max_send_buffer_size(limits.h2_send_buffer)
            .handshake(guard)
            .await
            .map_err(|error| SendError { wrote: false, ..send_error(&error) })?;
        let state = Rc::new(State { closed: Cell::new(false), in_flight: Cell::new(0) });
        let driver = Driver {
            connection,
            watch,
            state: Rc::clone(&state),
            deadline: Deadline::default(),
            limits: Rc::clone(&limits),
        };
        Ok((ClientConn { send, state, limits }, driver))
    }

    /// Whether new requests may be sent: not closed, and the peer is not going away.
    pub fn is_open(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        !self.state.closed.get() && !matches!(self.send.clone().poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    /// Whether another stream fits within the peer's and our own limit.
    pub fn has_room(&self) -> bool {
        let ours = usize::try_from(self.limits.h2_streams).unwrap_or(usize::MAX);
        self.state.in_flight.get() < ours.min(self.send.current_max_send_streams())
    }

    /// How many exchanges are under way.
    pub fn in_flight(&self) -> usize {
        self.state.in_flight.get()
    }

    /// Sends a request and gives the response when its head has come; both bodies go on streaming.
    /// The rest of the request is moved by polling the response's body. Dropping this future, or the body before its end, resets the stream.
    pub async fn send(&self, request: Request) -> Result<Response, SendError> {
        self.send_parts(&request.head, request.body).await
    }

    /// [`Self::send`] with a head that the caller keeps, to send it again.
    pub async fn send_parts(&self, head: &Head, body: Body) -> Result<Response, SendError> {
        let unsent = |kind, detail: String| SendError { wrote: false, ..SendError::new(kind, detail) };
        if self.state.closed.get() {
            return Err(unsent(SendErrorKind::Closed, "connection is closed".to_owned()));
        }
        if head.upgrade().is_some() {
            let detail = "an upgrade needs an http/1.1 upstream".to_owned();
            return Err(unsent(SendErrorKind::Protocol, detail));
        }
        if !self.has_room() {
            let detail = "upstream connection has no room for another stream".to_owned();
            return Err(unsent(SendErrorKind::TooManyStreams, detail));
        }
        let slot = Slot::take(&self.state);
        let length = body.exact_len();
        let message = match convert::to_request(head, length) {
            Ok(message) => message,
            Err(error) => {
                let detail = format!("request cannot be sent over http/2: {error}");
                return Err(unsent(SendErrorKind::Protocol, detail));
            }
        };
        let mut send = match self.send.clone().ready().await {
            Ok(send) => send,
            Err(error) => {
                let detail = format!("upstream connection is going away: {error}");
                return Err(unsent(SendErrorKind::Closed, detail));
            }
        };
        let end = length == Some(0);
        let (mut response, stream) = match send.send_request(message, end) {
            Ok(sent) => sent,
            Err(error) => {
                let detail = format!("upstream connection takes no request: {error}");
                return Err(unsent(SendErrorKind::Closed, detail));
            }
        };
        let mut upload = (!end).then(|| Pump::new(body, stream, None));
        let received = poll_fn(|cx| {
            if let Some(pump) = &mut upload
                && let Poll::Ready(result) = pump.poll(cx)
            {
                upload = None;
                if let Err(PumpError::Body(error)) = result {
                    return Poll::Ready(Err(SendError::new(SendErrorKind::RequestBody, error.to_string())));
                }
                // A broken stream shows in the response.
            }
            Pin::new(&mut response).poll(cx).map(|response| response.map_err(|error| send_error(&error)))
        })
        .await?;
        let (parts, body) = received.into_parts();
        let head = convert::response(&parts, &self.limits).map_err(|refusal| SendError {
            answered: true,
            ..SendError::new(
                SendErrorKind::Protocol,
                format!("invalid response from upstream: {}", refusal.detail),
            )
        })?;
        let body = if body.is_end_stream() && upload.is_none() {
            Body::empty()
        } else {
            Body::h2(H2Body::of_response(body, head.content_length(), &self.limits, upload, slot))
        };
        Ok(Response::from_head(head, body))
    }
}

fn send_error(error: &h2::Error) -> SendError {
    let kind = match error.reason() {
        Some(Reason::REFUSED_STREAM) => SendErrorKind::RefusedStream,
        // A peer that goes away in order names the last stream that it will process; ours came after it.
        Some(Reason::NO_ERROR) if error.is_go_away() && error.is_remote() => SendErrorKind::RefusedStream,
        Some(_) if error.is_remote() => SendErrorKind::Reset,
        Some(_) => SendErrorKind::Protocol,
        None if error.is_io() => SendErrorKind::Io,
        None => SendErrorKind::Closed,
    };
    SendError::new(kind, format!("upstream http/2 stream failed: {error}"))
}

/// Moves an upstream connection's bytes. Ends when the connection does.
pub struct Driver {
    connection: Connection<Guard, Bytes>,
    watch: Rc<Watch>,
    state: Rc<State>,
    deadline: Deadline,
    limits: Rc<Limits>,
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if Pin::new(&mut this.connection).poll(cx).is_ready() || this.watch.is_flooded() {
            this.state.closed.set(true);
            return Poll::Ready(());
        }
        let unread = due(this.watch.unread_since(), this.limits.unread_timeout);
        let partial = due(this.watch.partial_since(), this.limits.head_timeout);
        this.deadline.set(unread.into_iter().chain(partial).min());
        if this.deadline.poll(cx).is_ready() {
            this.state.closed.set(true);
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.state.closed.set(true);
    }
}
