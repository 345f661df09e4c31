//! A request body that can be sent again: the first bytes are kept while they stream through.
//!
//! In: a body. Out: [`Replay::body`], as often as one likes, until more than the limit has passed; the moment when all of it had arrived.
//! Kept true: every frame is drawn from the client once and read in order; a body that outgrew its buffer is never sent again from its
//! middle. Not here: deciding to retry.

use std::{
    cell::RefCell,
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use tokio::time::Instant;

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
    /// When the last of it had arrived.
    complete: Option<Instant>,
    /// Waits for that moment.
    waiter: Option<Waker>,
    /// A reader that has read everything there was.
    reader: Option<Waker>,
}

impl State {
    /// The client's next frame; what may be kept is kept.
    fn draw(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let next = ready!(self.rest.poll_frame(cx));
        match &next {
            None => self.over = true,
            Some(Err(error)) => (self.over, self.broken) = (true, Some(error.clone())),
            Some(Ok(Frame::Data(data))) => self.size += data.len(),
            Some(Ok(Frame::Trailers(_))) => {}
        }
        self.too_large |= self.size > KEPT;
        if self.over {
            self.complete = Some(Instant::now());
            self.waiter.take().into_iter().for_each(Waker::wake);
        }
        Poll::Ready(next)
    }
}

/// A body that can be read again.
pub struct Replay(Rc<RefCell<State>>);

impl Replay {
    /// Keeps up to [`KEPT`] bytes.
    #[must_use]
    pub fn new(body: Body) -> Self {
        let over = body.is_empty();
        let too_large = body.exact_len().is_some_and(|len| usize::try_from(len).map_or(true, |l| l > KEPT));
        let complete = over.then(Instant::now);
        let (frames, broken) = (Vec::new(), None);
        let state = State {
            rest: body,
            frames,
            size: 0,
            over,
            too_large,
            broken,
            complete,
            waiter: None,
            reader: None,
        };
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

    /// Waits until all of the body has arrived. As much as may be kept is taken from the client meanwhile, whether or not anybody reads it:
    /// an upstream that takes nothing does not hide from the clock that the request is complete. Only one waiter at a time.
    pub async fn complete(&self) -> Instant {
        poll_fn(|cx| {
            let state = &mut *self.0.borrow_mut();
            loop {
                if let Some(complete) = state.complete {
                    return Poll::Ready(complete);
                }
                state.waiter = Some(cx.waker().clone());
                if state.too_large || state.size >= KEPT {
                    return Poll::Pending;
                }
                // What is drawn here is read from the buffer, even where it outgrew it.
                if let Some(Ok(frame)) = ready!(state.draw(cx)) {
                    state.frames.push(frame);
                }
                state.reader.take().into_iter().for_each(Waker::wake);
            }
        })
        .await
    }

    /// When all of it had arrived, if it has.
    #[must_use]
    pub fn completed(&self) -> Option<Instant> {
        self.0.borrow().complete
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
        let Poll::Ready(next) = state.draw(cx) else {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        if state.too_large {
            // All that was kept has been read: nobody reads it again.
            state.frames.clear();
            self.at = 0;
        } else if let Some(Ok(frame)) = &next {
            state.frames.push(frame.clone());
            self.at += 1;
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

    #[tokio::test(start_paused = true)]
    async fn the_moment_of_completion_is_known_whether_or_not_anybody_reads() {
        let pause = std::time::Duration::from_secs(1);
        for parts in [2, 30] {
            let began = Instant::now();
            let (mut sender, body) = Body::channel(1);
            let replay = Replay::new(body);
            let writing = async {
                for _ in 0..parts {
                    assert!(sender.send(Frame::Data(Bytes::from(vec![b'x'; 10_000]))).await.is_ok());
                }
                tokio::time::sleep(pause).await;
                sender.finish();
            };
            let reading = async {
                // The small one is complete before anybody reads; the large one cannot be.
                tokio::time::sleep(2 * pause).await;
                replay.body().collect(1 << 20).await.expect("whole").0.len()
            };
            let (complete, (), size) = tokio::join!(replay.complete(), writing, reading);
            assert_eq!(size, parts * 10_000, "in order and once");
            let wanted = if parts == 2 { pause } else { 3 * pause };
            assert_eq!((complete - began, replay.completed()), (wanted, Some(complete)), "{parts} parts");
            assert_eq!(replay.again(), parts == 2);
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
