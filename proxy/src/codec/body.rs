//! One streaming body type for both protocols and both directions.
//! In: an HTTP/1 wire, an HTTP/2 stream, a channel, bytes at hand, or a [`Source`]. Out: [`Frame`]s, one at a time.
//! Kept true: trailers come last; after an error or the end there is nothing; dropping a body early cancels its exchange.
//! Not here: framing (`h1::decode`, `h1::encode`), flow control (`h2::stream`).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};

use super::fields::Fields;
use super::h1::H1Body;
use super::h2::H2Body;
use super::limits::Refusal;

/// A piece of a body.
#[derive(Debug, Clone)]
pub enum Frame {
    /// Payload.
    Data(Bytes),
    /// Trailer fields; nothing follows.
    Trailers(Fields),
}

/// Why a body ended early.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The peer closed the connection before the end.
    #[error("connection closed before the body's end")]
    Closed,
    /// The peer broke the framing.
    #[error("invalid body: {0}")]
    Invalid(Refusal),
    /// An HTTP/2 stream was reset with this code.
    #[error("stream reset with code {0}")]
    Reset(u32),
    /// Reading failed.
    #[error("reading the body: {0}")]
    Io(std::io::ErrorKind),
    /// Nothing came for too long.
    #[error("body made no progress in time")]
    TimedOut,
    /// The writing end of a channel was dropped without finishing.
    #[error("body was abandoned by its producer")]
    Abandoned,
    /// The body is larger than the reader takes.
    #[error("body is too large")]
    TooLarge,
    /// Anything a [`Source`] wants to say.
    #[error("{0}")]
    Other(String),
}

/// How a watched body ended. Told exactly once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyEnd {
    /// All of it was read.
    Complete,
    /// It broke.
    Error(BodyError),
    /// The reader dropped it before its end.
    Dropped,
}

/// Counts a body as it passes, without a box around it.
pub trait BodyWatch {
    /// So many bytes of payload were read.
    fn data(&self, _bytes: usize) {}
    /// Trailers were read.
    fn trailers(&self, _trailers: &Fields) {}
    /// It is over. Called exactly once.
    fn end(&self, end: BodyEnd);
}

/// A body of one's own making, for [`Body::from_source`].
pub trait Source {
    /// The next frame, the end (`None`), or an error, after which it is not polled again.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>>;

    /// Payload bytes that are still to come, if known.
    fn exact_len(&self) -> Option<u64> {
        None
    }

    /// Does work that must go on while the reader cannot take a frame. A source that wraps a body passes this on.
    fn poll_progress(&mut self, _cx: &mut Context<'_>) {}
}

enum Kind {
    Empty,
    Full(Bytes),
    H1(H1Body),
    H2(H2Body),
    Channel(Receiver),
    Source(Box<dyn Source>),
}

/// A streaming body.
pub struct Body {
    kind: Kind,
    watch: Option<Rc<dyn BodyWatch>>,
}

impl Body {
    /// No body.
    pub fn empty() -> Body {
        Body { kind: Kind::Empty, watch: None }
    }

    /// A body that is at hand.
    pub fn full(data: impl Into<Bytes>) -> Body {
        let data = data.into();
        Body { kind: if data.is_empty() { Kind::Empty } else { Kind::Full(data) }, watch: None }
    }

    /// A body that is written elsewhere; up to `slots` (at least one) frames wait for the reader.
    pub fn channel(slots: usize) -> (BodySender, Body) {
        let channel = Rc::new(RefCell::new(Channel { slots: slots.max(1), ..Channel::default() }));
        let receiver = Receiver(Rc::clone(&channel));
        (BodySender(channel), Body { kind: Kind::Channel(receiver), watch: None })
    }

    /// A body of one's own making.
    pub fn from_source(source: Box<dyn Source>) -> Body {
        Body { kind: Kind::Source(source), watch: None }
    }

    pub(crate) fn h1(body: H1Body) -> Body {
        Body { kind: Kind::H1(body), watch: None }
    }

    pub(crate) fn h2(body: H2Body) -> Body {
        Body { kind: Kind::H2(body), watch: None }
    }

    /// Has `watch` told of every frame and of the end. A body that already has a watch keeps both.
    pub fn watch(mut self, watch: Rc<dyn BodyWatch>) -> Body {
        self.watch = Some(match self.watch.take() {
            Some(inner) => Rc::new(Both(inner, watch)),
            None => watch,
        });
        self
    }

    /// The next frame; `None` at the end. Dropping the future loses nothing.
    pub async fn next_frame(&mut self) -> Option<Result<Frame, BodyError>> {
        poll_fn(|cx| self.poll_frame(cx)).await
    }

    /// [`Body::next_frame`] for hand-written futures.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let next = match &mut self.kind {
            Kind::Empty => None,
            Kind::Full(data) => Some(Ok(Frame::Data(std::mem::take(data)))),
            Kind::H1(body) => std::task::ready!(body.poll_frame(cx)),
            Kind::H2(body) => std::task::ready!(body.poll_frame(cx)),
            Kind::Channel(receiver) => std::task::ready!(receiver.poll_frame(cx)),
            Kind::Source(source) => std::task::ready!(source.poll_frame(cx)),
        };
        if matches!(self.kind, Kind::Full(_)) || !matches!(next, Some(Ok(_))) {
            self.kind = Kind::Empty;
        }
        if let Some(watch) = &self.watch {
            match &next {
                Some(Ok(Frame::Data(data))) => watch.data(data.len()),
                Some(Ok(Frame::Trailers(trailers))) => watch.trailers(trailers),
                Some(Err(_)) | None => {}
            }
            let end = match &next {
                Some(Err(error)) => Some(BodyEnd::Error(error.clone())),
                None => Some(BodyEnd::Complete),
                Some(Ok(_)) if self.is_empty() => Some(BodyEnd::Complete),
                Some(Ok(_)) => None,
            };
            if let Some(end) = end
                && let Some(watch) = self.watch.take()
            {
                watch.end(end);
            }
        }
        Poll::Ready(next)
    }

    /// Lets the rest of an upload go on while the reader of this answer is stuck. Servers call it when their own write is blocked.
    pub fn poll_progress(&mut self, cx: &mut Context<'_>) {
        match &mut self.kind {
            Kind::H1(body) => body.poll_progress(cx),
            Kind::H2(body) => body.poll_progress(cx),
            Kind::Source(source) => source.poll_progress(cx),
            Kind::Empty | Kind::Full(_) | Kind::Channel(_) => {}
        }
    }

    /// Payload bytes that are still to come, if known.
    pub fn exact_len(&self) -> Option<u64> {
        match &self.kind {
            Kind::Empty => Some(0),
            Kind::Full(data) => u64::try_from(data.len()).ok(),
            Kind::H1(body) => body.exact_len(),
            Kind::H2(body) => body.exact_len(),
            Kind::Channel(receiver) => receiver.exact_len(),
            Kind::Source(source) => source.exact_len(),
        }
    }

    /// Whether there is surely nothing more. `false` may still turn out to be the end.
    pub fn is_empty(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(data) => data.is_empty(),
            Kind::H1(body) => body.is_over(),
            Kind::H2(body) => body.is_over(),
            Kind::Channel(_) | Kind::Source(_) => false,
        }
    }

    /// Reads all of it. Fails if it breaks, or with [`BodyError::TooLarge`] beyond `limit` bytes.
    pub async fn collect(mut self, limit: usize) -> Result<(Bytes, Option<Fields>), BodyError> {
        let mut first = Bytes::new();
        let mut rest = BytesMut::new();
        let mut trailers = None;
        while let Some(frame) = self.next_frame().await {
            match frame? {
                Frame::Data(data) => {
                    if first.len() + rest.len() + data.len() > limit {
                        return Err(BodyError::TooLarge);
                    }
                    if first.is_empty() {
                        first = data;
                    } else {
                        rest.extend_from_slice(&data);
                    }
                }
                Frame::Trailers(fields) => trailers = Some(fields),
            }
        }
        if !rest.is_empty() {
            let mut all = BytesMut::with_capacity(first.len() + rest.len());
            all.extend_from_slice(&first);
            all.extend_from_slice(&rest);
            first = all.freeze();
        }
        Ok((first, trailers))
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(watch) = self.watch.take() {
            // A body without content is complete whether or not anyone asked for it.
            watch.end(if self.is_empty() { BodyEnd::Complete } else { BodyEnd::Dropped });
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.exact_len() {
            Some(length) => write!(f, "Body({length} bytes)"),
            None => f.write_str("Body(streaming)"),
        }
    }
}

impl Default for Body {
    fn default() -> Body {
        Body::empty()
    }
}

impl From<Bytes> for Body {
    fn from(data: Bytes) -> Body {
        Body::full(data)
    }
}

impl From<&'static str> for Body {
    fn from(data: &'static str) -> Body {
        Body::full(Bytes::from_static(data.as_bytes()))
    }
}

struct Both(Rc<dyn BodyWatch>, Rc<dyn BodyWatch>);

impl BodyWatch for Both {
    fn data(&self, bytes: usize) {
        self.0.data(bytes);
        self.1.data(bytes);
    }

    fn trailers(&self, trailers: &Fields) {
        self.0.trailers(trailers);
        self.1.trailers(trailers);
    }

    fn end(&self, end: BodyEnd) {
        self.0.end(end.clone());
        self.1.end(end);
    }
}

#[derive(Default)]
struct Channel {
    frames: VecDeque<Frame>,
    slots: usize,
    /// The producer's last word: `Some(None)` is a proper end.
    end: Option<Option<BodyError>>,
    reader_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Channel {
    fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    fn wake_writer(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }
}

/// The writing end of [`Body::channel`]. Dropping it without [`BodySender::finish`] makes the body end in an error.
pub struct BodySender(Rc<RefCell<Channel>>);

impl BodySender {
    /// Waits for a free slot and puts the frame there. Fails with the frame if the reader is gone. Dropping the future drops the frame.
    pub async fn send(&mut self, frame: Frame) -> Result<(), Frame> {
        match self.ready().await {
            true => {
                let mut channel = self.0.borrow_mut();
                channel.frames.push_back(frame);
                channel.wake_reader();
                Ok(())
            }
            false => Err(frame),
        }
    }

    /// Puts the frame into a free slot; `false` if there is none, or if the reader is gone.
    pub fn try_send(&mut self, frame: Frame) -> bool {
        let mut channel = self.0.borrow_mut();
        let free = !channel.reader_gone && channel.frames.len() < channel.slots;
        if free {
            channel.frames.push_back(frame);
            channel.wake_reader();
        }
        free
    }

    /// Waits until a frame can be sent without waiting; `false` if the reader is gone.
    pub async fn ready(&mut self) -> bool {
        poll_fn(|cx| {
            let mut channel = self.0.borrow_mut();
            if channel.reader_gone {
                return Poll::Ready(false);
            }
            if channel.frames.len() < channel.slots {
                return Poll::Ready(true);
            }
            channel.writer = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Ends the body properly.
    pub fn finish(self) {
        self.end(None);
    }

    /// Ends the body with an error.
    pub fn fail(self, error: BodyError) {
        self.end(Some(error));
    }

    fn end(&self, end: Option<BodyError>) {
        let mut channel = self.0.borrow_mut();
        if channel.end.is_none() {
            channel.end = Some(end);
            channel.wake_reader();
        }
    }
}

impl Drop for BodySender {
    fn drop(&mut self) {
        self.end(Some(BodyError::Abandoned));
    }
}

struct Receiver(Rc<RefCell<Channel>>);

impl Receiver {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let mut channel = self.0.borrow_mut();
        if let Some(frame) = channel.frames.pop_front() {
            channel.wake_writer();
            return Poll::Ready(Some(Ok(frame)));
        }
        match channel.end.clone() {
            Some(end) => Poll::Ready(end.map(Err)),
            None => {
                channel.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// A finished channel knows its length.
    fn exact_len(&self) -> Option<u64> {
        let channel = self.0.borrow();
        if channel.end != Some(None) {
            return None;
        }
        channel
            .frames
            .iter()
            .map(|frame| match frame {
                Frame::Data(data) => u64::try_from(data.len()).ok(),
                Frame::Trailers(_) => None,
            })
            .sum()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut channel = self.0.borrow_mut();
        channel.reader_gone = true;
        channel.frames.clear();
        channel.wake_writer();
    }
}
