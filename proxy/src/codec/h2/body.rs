//! HTTP/2 stream bodies: reading one, and the pump that sends one.
//! In: `h2` receive and send streams. Out: frames for [`Body`](crate::codec::Body), and DATA and trailers on the wire.
//! Kept true: window is given back only when the reader asks for more; no more is sent than the peer's window has room for.
//! Not here: heads (`convert`), the connection (`server`, `client`).

use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use tokio::time::Instant;

use super::client::Slot;
use super::convert;
use crate::codec::body::{Body, BodyError, Frame};
use crate::codec::limits::Limits;
use crate::codec::timer::Deadline;

/// The body of a received message.
pub(crate) struct H2Body(Option<Box<Receiving>>);

struct Receiving {
    stream: RecvStream,
    limits: Rc<Limits>,
    /// Window that the frame handed out last has used.
    owed: usize,
    /// What `content-length` leaves to come.
    left: Option<u64>,
    data_over: bool,
    /// Client: the rest of the request.
    upload: Option<Pump>,
    /// Client: the place that the stream takes on its connection.
    _slot: Option<Slot>,
    timeout: Option<Timeout>,
}

struct Timeout {
    after: Duration,
    since: Option<Instant>,
    deadline: Deadline,
}

impl H2Body {
    /// The body of a request. A body of announced length must come without long pauses, if the limits say so;
    /// streams of unknown length (gRPC) may pause.
    pub(crate) fn of_request(stream: RecvStream, length: Option<u64>, limits: &Rc<Limits>) -> H2Body {
        let timeout = limits.body_timeout.filter(|_| length.is_some());
        H2Body(Some(Box::new(Receiving {
            stream,
            limits: Rc::clone(limits),
            owed: 0,
            left: length,
            data_over: false,
            upload: None,
            _slot: None,
            timeout: timeout.map(|after| Timeout { after, since: None, deadline: Deadline::default() }),
        })))
    }

    /// The body of a response, which also moves what is left of the request.
    pub(crate) fn of_response(
        stream: RecvStream,
        length: Option<u64>,
        limits: &Rc<Limits>,
        upload: Option<Pump>,
        slot: Slot,
    ) -> H2Body {
        H2Body(Some(Box::new(Receiving {
            stream,
            limits: Rc::clone(limits),
            owed: 0,
            left: length,
            data_over: false,
            upload,
            _slot: Some(slot),
            timeout: None,
        })))
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let Some(receiving) = &mut self.0 else { return Poll::Ready(None) };
        let next = std::task::ready!(receiving.poll_frame(cx));
        let over = match &next {
            Some(Ok(Frame::Data(_))) => receiving.is_over(),
            _ => true,
        };
        if over {
            self.0 = None;
        }
        Poll::Ready(next)
    }

    pub(crate) fn poll_progress(&mut self, cx: &mut Context<'_>) {
        if let Some(receiving) = &mut self.0 {
            // A failed upload shows at the next frame as the stream's reset.
            let _ = receiving.poll_upload(cx);
        }
    }

    pub(crate) fn exact_len(&self) -> Option<u64> {
        match &self.0 {
            Some(receiving) if receiving.stream.is_end_stream() => Some(0),
            Some(receiving) => receiving.left,
            None => Some(0),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.as_ref().is_none_or(|receiving| receiving.is_over())
    }
}

impl Receiving {
    fn is_over(&self) -> bool {
        self.upload.is_none() && self.stream.is_end_stream()
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), BodyError> {
        let Some(upload) = &mut self.upload else { return Ok(()) };
        match upload.poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(result) => {
                self.upload = None;
                match result {
                    // The peer may answer without wanting the rest of the request (RFC 9113 §8.1).
                    Err(PumpError::Body(error)) => Err(error),
                    Ok(()) | Err(PumpError::Stream | PumpError::TimedOut) => Ok(()),
                }
            }
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if self.owed > 0 {
            // Fails only if the stream is gone, which the next read tells.
            let _ = self.stream.flow_control().release_capacity(self.owed);
            self.owed = 0;
        }
        if let Err(error) = self.poll_upload(cx) {
            return Poll::Ready(Some(Err(error)));
        }
        while !self.data_over {
            match self.stream.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => {
                    if let Some(timeout) = &mut self.timeout {
                        timeout.since = None;
                    }
                    if data.is_empty() {
                        continue;
                    }
                    self.owed = data.len();
                    let size = u64::try_from(data.len()).unwrap_or(u64::MAX);
                    self.left = self.left.map(|left| left.saturating_sub(size));
                    return Poll::Ready(Some(Ok(Frame::Data(data))));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(self.ended_by(&error)),
                Poll::Ready(None) => self.data_over = true,
                Poll::Pending => return self.poll_late(cx),
            }
        }
        match std::task::ready!(self.stream.poll_trailers(cx)) {
            Ok(Some(map)) => Poll::Ready(match convert::trailers(&map, &self.limits) {
                Ok(fields) if fields.is_empty() => None,
                Ok(fields) => Some(Ok(Frame::Trailers(fields))),
                Err(refusal) => Some(Err(BodyError::Invalid(refusal))),
            }),
            Ok(None) => Poll::Ready(None),
            Err(error) => Poll::Ready(self.ended_by(&error)),
        }
    }

    /// A reset with NO_ERROR after the whole answer only says that the rest of the request is not wanted.
    fn ended_by(&mut self, error: &h2::Error) -> Option<Result<Frame, BodyError>> {
        let complete = error.reason() == Some(Reason::NO_ERROR) && self.left == Some(0);
        (!complete).then(|| Err(body_error(error)))
    }

    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let Some(timeout) = &mut self.timeout else { return Poll::Pending };
        let since = *timeout.since.get_or_insert_with(Instant::now);
        timeout.deadline.set(Some(since + timeout.after));
        timeout.deadline.poll(cx).map(|()| Some(Err(BodyError::TimedOut)))
    }
}

pub(crate) fn body_error(error: &h2::Error) -> BodyError {
    match (error.reason(), error.get_io()) {
        (_, Some(io)) => BodyError::Io(io.kind()),
        (Some(reason), None) => BodyError::Reset(reason.into()),
        (None, None) => BodyError::Closed,
    }
}

/// Why a body could not be sent to its end.
#[derive(Debug)]
pub(crate) enum PumpError {
    /// The body broke; the stream has been reset.
    Body(BodyError),
    /// The peer reset the stream, or the connection broke.
    Stream,
    /// The peer gave no window for too long; the stream has been reset.
    TimedOut,
}

/// Sends one body.
pub(crate) struct Pump {
    body: Body,
    stream: SendStream<Bytes>,
    waiting: Bytes,
    unread_timeout: Option<Duration>,
    stalled: Option<Box<(Instant, Deadline)>>,
}

impl Pump {
    /// `unread_timeout` bounds how long the peer may give no window.
    pub(crate) fn new(body: Body, stream: SendStream<Bytes>, unread_timeout: Option<Duration>) -> Pump {
        Pump { body, stream, waiting: Bytes::new(), unread_timeout, stalled: None }
    }

    /// Sends what can be sent. Ready when the end has been handed to the connection.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        loop {
            if !self.waiting.is_empty() {
                std::task::ready!(self.poll_send(cx))?;
                if self.waiting.is_empty() && self.body.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            match self.body.poll_frame(cx) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => self.waiting = data,
                Poll::Ready(Some(Ok(Frame::Trailers(fields)))) => {
                    let sent = self.stream.send_trailers(convert::to_trailers(&fields));
                    return Poll::Ready(sent.map_err(|_| PumpError::Stream));
                }
                Poll::Ready(Some(Err(error))) => {
                    self.stream.send_reset(match error {
                        BodyError::Closed | BodyError::Abandoned => Reason::CANCEL,
                        _ => Reason::INTERNAL_ERROR,
                    });
                    return Poll::Ready(Err(PumpError::Body(error)));
                }
                Poll::Ready(None) => {
                    let sent = self.stream.send_data(Bytes::new(), true);
                    return Poll::Ready(sent.map_err(|_| PumpError::Stream));
                }
                Poll::Pending => {
                    return match self.stream.poll_reset(cx) {
                        Poll::Ready(_) => Poll::Ready(Err(PumpError::Stream)),
                        Poll::Pending => Poll::Pending,
                    };
                }
            }
        }
    }

    /// Sends from `waiting` what the window allows.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        self.stream.reserve_capacity(self.waiting.len());
        while self.stream.capacity() == 0 {
            match self.stream.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Err(PumpError::Stream)),
                Poll::Pending => {
                    self.body.poll_progress(cx);
                    let Some(timeout) = self.unread_timeout else { return Poll::Pending };
                    let (since, deadline) = &mut **self
                        .stalled
                        .get_or_insert_with(|| Box::new((Instant::now(), Deadline::default())));
                    deadline.set(Some(*since + timeout));
                    std::task::ready!(deadline.poll(cx));
                    self.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(Err(PumpError::TimedOut));
                }
            }
        }
        self.stalled = None;
        let part = self.waiting.split_to(self.stream.capacity().min(self.waiting.len()));
        let end = self.waiting.is_empty() && self.body.is_empty();
        let sent = self.stream.send_data(part, end);
        Poll::Ready(sent.map_err(|_| PumpError::Stream))
    }
}
