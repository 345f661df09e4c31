//! A request body that can be sent again: the first bytes are kept while they stream through.
//!
//! In: a body. Out: [`Replay::body`], as often as one likes, until more than the limit has passed. Kept true: only one reader at a time
//! draws from the client; a body that outgrew its buffer is never sent again from its middle. Not here: deciding to retry.

use std::{
    cell::RefCell,
    rc::Rc,
    task::{Context, Poll, ready},
};

use crate::codec::{Body, BodyError, Frame, Source};

/// Bytes that are kept of a request that may be retried.
pub const KEPT: usize = 64 * 1024;

struct State {
    rest: Body,
    frames: Vec<Frame>,
    size: usize,
    over: bool,
    too_large: bool,
    /// A failure of the client's body is final.
    broken: Option<BodyError>,
}

/// A body that can be read again.
pub struct Replay(Rc<RefCell<State>>);

impl Replay {
    /// Keeps up to [`KEPT`] bytes.
    #[must_use]
    pub fn new(body: Body) -> Self {
        let over = body.is_empty();
        let too_large = body.exact_len().is_some_and(|len| usize::try_from(len).map_or(true, |l| l > KEPT));
        let state = State { rest: body, frames: Vec::new(), size: 0, over, too_large, broken: None };
        Self(Rc::new(RefCell::new(state)))
    }

    /// The body from its beginning. An earlier reader must have been dropped.
    #[must_use]
    pub fn body(&self) -> Body {
        let state = self.0.borrow();
        if state.over && state.frames.is_empty() {
            return Body::empty();
        }
        drop(state);
        Body::from_source(Box::new(Reader { state: Rc::clone(&self.0), at: 0 }))
    }

    /// Whether the body can be sent once more.
    #[must_use]
    pub fn again(&self) -> bool {
        let state = self.0.borrow();
        !state.too_large && state.broken.is_none()
    }
}

struct Reader {
    state: Rc<RefCell<State>>,
    at: usize,
}

impl Source for Reader {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let state = &mut *self.state.borrow_mut();
        if let Some(frame) = state.frames.get(self.at) {
            self.at += 1;
            return Poll::Ready(Some(Ok(frame.clone())));
        }
        if state.over {
            return Poll::Ready(state.broken.clone().map(Err));
        }
        let next = ready!(state.rest.poll_frame(cx));
        match &next {
            None => state.over = true,
            Some(Err(error)) => {
                (state.over, state.broken) = (true, Some(error.clone()));
            }
            Some(Ok(frame)) => {
                if let Frame::Data(data) = frame {
                    state.size += data.len();
                }
                if state.size > KEPT || state.too_large {
                    state.too_large = true;
                    state.frames.clear();
                    self.at = 0;
                } else {
                    state.frames.push(frame.clone());
                    self.at += 1;
                }
            }
        }
        Poll::Ready(next)
    }

    fn exact_len(&self) -> Option<u64> {
        let state = self.state.borrow();
        let kept: usize = state.frames[self.at.min(state.frames.len())..]
            .iter()
            .map(|frame| if let Frame::Data(data) = frame { data.len() } else { 0 })
            .sum();
        let rest = if state.over { 0 } else { state.rest.exact_len()? };
        Some(rest + u64::try_from(kept).ok()?)
    }

    fn poll_progress(&mut self, cx: &mut Context<'_>) {
        self.state.borrow_mut().rest.poll_progress(cx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[tokio::test]
    async fn a_small_body_is_read_twice_even_when_the_first_reader_stopped_in_the_middle() {
        let (mut sender, body) = Body::channel(4);
        for part in ["ab", "cd"] {
            assert!(sender.send(Frame::Data(Bytes::from(part))).await.is_ok());
        }
        sender.finish();
        let replay = Replay::new(body);
        let mut first = replay.body();
        assert!(matches!(first.next_frame().await, Some(Ok(Frame::Data(d))) if d == "ab"));
        drop(first);
        for _ in 0..2 {
            assert!(replay.again());
            assert_eq!(replay.body().collect(100).await.expect("whole").0, "abcd");
        }
    }

    #[tokio::test]
    async fn a_large_body_streams_once_and_is_not_sent_again() {
        let replay = Replay::new(Body::full(vec![b'x'; KEPT + 1]));
        assert!(!replay.again(), "known from its length");
        assert_eq!(replay.body().collect(KEPT * 2).await.expect("whole").0.len(), KEPT + 1);
        let (mut sender, body) = Body::channel(4);
        let replay = Replay::new(body);
        assert!(sender.send(Frame::Data(Bytes::from(vec![b'x'; KEPT]))).await.is_ok());
        assert!(sender.send(Frame::Data(Bytes::from_static(b"y"))).await.is_ok());
        sender.finish();
        assert!(replay.again());
        assert_eq!(replay.body().collect(KEPT * 2).await.expect("whole").0.len(), KEPT + 1);
        assert!(!replay.again(), "found while it streamed");
    }
}
