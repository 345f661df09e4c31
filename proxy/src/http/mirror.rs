//! Copies of requests: sent, and forgotten.
//!
//! In: a request about to be sent. Out: the same request; its copies run by themselves. Kept true: an answer to a copy reaches nobody; a body
//! too large to keep is not mirrored. Not here: the request itself (`router`).

use std::{rc::Rc, sync::atomic::Ordering, time::Duration};

use mesh_traffic::{retry::RetryPolicy, route::Forward};

use super::{
    exchange::Exchange,
    replay::{KEPT, Replay},
    router::Tries,
};
use crate::{
    codec::{Body, Frame, Known, Request},
    worker::View,
};

/// A copy is given up after this.
const LONGEST: Duration = Duration::from_secs(60);

/// Sends what copies the route asks for, and gives the request back.
pub async fn send(exchange: &Rc<Exchange>, view: &Rc<View>, forward: &Forward, request: Request) -> Request {
    let worker = &exchange.conn.worker;
    let chosen: Vec<_> = forward.mirrors.iter().filter(|mirror| worker.draw() < mirror.per_million).collect();
    if chosen.is_empty() || request.head.upgrade().is_some() {
        return request;
    }
    let Request { head, body } = request;
    let replay = Replay::new(body);
    let mut copy = None;
    if replay.again() {
        // The copy needs the whole body, and waits for it; so does the request.
        let mut whole = Vec::new();
        let mut reader = replay.body();
        let mut size = 0;
        while let Some(Ok(frame)) = reader.next_frame().await {
            if let Frame::Data(data) = &frame {
                size += data.len();
                whole.extend_from_slice(data);
            }
            if size > KEPT {
                break;
            }
        }
        drop(reader);
        copy = replay.again().then_some(whole);
    }
    for mirror in chosen {
        let (Some(state), Some(whole)) = (worker.cluster(view, &mirror.cluster), &copy) else { continue };
        let mut head = head.clone();
        head.remove(Known::XEnvoyExpectedRqTimeoutMs);
        let request = Request { head, body: Body::full(whole.clone()) };
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
                deadline: None,
                attempt_count: false,
            };
            let asking = async {
                if let Ok(response) = tries.run(request).await {
                    let _ = response.body.collect(usize::MAX).await;
                }
            };
            if tokio::time::timeout(LONGEST, asking).await.is_err() {
                state.common.stats.timeouts.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    Request { head, body: replay.body() }
}
