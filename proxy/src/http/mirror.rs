//! Copies of requests: sent, and forgotten.
//!
//! In: a request about to be sent. Out: the same request; its copies run by themselves. Kept true: an answer to a copy reaches nobody, and
//! no copy holds the request up: one whose target cannot keep up is given up. Not here: the request itself (`router`).

use std::{
    rc::Rc,
    sync::atomic::Ordering,
    task::{Context, Poll, ready},
    time::Duration,
};

use mesh_traffic::{retry::RetryPolicy, route::Forward};

use super::{exchange::Exchange, router::Tries};
use crate::{
    codec::{Body, BodyError, BodySender, Frame, Known, Request, Source},
    worker::View,
};

/// Frames of a body that may wait for a copy's target.
const BEHIND: usize = 16;
/// A copy is given up after this.
const LONGEST: Duration = Duration::from_secs(60);

/// Sends what copies the route asks for, and gives the request back.
pub fn send(exchange: &Rc<Exchange>, view: &Rc<View>, forward: &Forward, request: Request) -> Request {
    let worker = &exchange.conn.worker;
    let chosen = forward.mirrors.iter().filter(|mirror| worker.draw() < mirror.per_million);
    let chosen: Vec<_> = chosen.filter_map(|mirror| worker.cluster(view, &mirror.cluster)).collect();
    if chosen.is_empty() || request.head.upgrade().is_some() {
        return request;
    }
    let Request { head, body } = request;
    let length = body.exact_len();
    let mut copies = Vec::with_capacity(chosen.len());
    for state in chosen {
        let mut head = head.clone();
        head.remove(Known::XEnvoyExpectedRqTimeoutMs);
        let (sender, copied) = Body::channel(BEHIND);
        copies.push(Some(sender));
        let body = match length {
            Some(0) => Body::empty(),
            left => Body::from_source(Box::new(Copied { body: copied, left })),
        };
        let request = Request { head, body };
        let shadow = Exchange::shadow(exchange);
        let view = Rc::clone(view);
        worker.spawn(async move {
            let policy = RetryPolicy { attempts: 0, ..RetryPolicy::default() };
            let mut tries = Tries {
                exchange: &shadow,
                view: &view,
                state: Rc::clone(&state),
                policy: &policy,
                hash: None,
                timeout: None,
                deadline: None,
                attempt_count: false,
            };
            let asking = async {
                if let Ok(mut response) = tries.run(request).await {
                    // Read, so that the connection can serve again; kept, it would be the target's to fill this process.
                    while let Some(Ok(_)) = response.body.next_frame().await {}
                }
            };
            if tokio::time::timeout(LONGEST, asking).await.is_err() {
                state.common.stats.timeouts.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let body = if length == Some(0) { body } else { Body::from_source(Box::new(Tee { body, copies })) };
    Request { head, body }
}

/// The request's body; what passes goes to the copies as well.
struct Tee {
    body: Body,
    /// `None` for one that was given up.
    copies: Vec<Option<BodySender>>,
}

impl Source for Tee {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let next = ready!(self.body.poll_frame(cx));
        match &next {
            None => self.copies.drain(..).flatten().for_each(BodySender::finish),
            Some(Err(error)) => self.copies.drain(..).flatten().for_each(|copy| copy.fail(error.clone())),
            Some(Ok(frame)) => {
                for copy in &mut self.copies {
                    if copy.as_mut().is_some_and(|copy| !copy.try_send(frame.clone())) {
                        *copy = None;
                    }
                }
            }
        }
        Poll::Ready(next)
    }

    fn exact_len(&self) -> Option<u64> {
        self.body.exact_len()
    }

    fn poll_progress(&mut self, cx: &mut Context<'_>) {
        self.body.poll_progress(cx);
    }
}

/// A copy's body, with the length that the request's has.
struct Copied {
    body: Body,
    left: Option<u64>,
}

impl Source for Copied {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let next = ready!(self.body.poll_frame(cx));
        if let (Some(left), Some(Ok(Frame::Data(data)))) = (&mut self.left, &next) {
            *left = left.saturating_sub(u64::try_from(data.len()).unwrap_or(u64::MAX));
        }
        Poll::Ready(next)
    }

    fn exact_len(&self) -> Option<u64> {
        self.left
    }
}
