//! A deadline that is cheap to move: the timer wheel is touched only when a deadline comes nearer.
//! In: the instant by which something must happen, or none. Out: ready once it has passed.
//! Kept true: at most one timer per connection.
//! Not here: what the deadlines are (`limits`).

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep};

/// One movable deadline.
#[derive(Debug, Default)]
pub(crate) struct Deadline {
    due: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// Moves the deadline. Moving it away costs nothing.
    pub(crate) fn set(&mut self, due: Option<Instant>) {
        self.due = due;
    }

    /// Ready when the deadline has passed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(due) = self.due else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if due < sleep.deadline() {
            sleep.as_mut().reset(due);
        }
        loop {
            std::task::ready!(sleep.as_mut().poll(cx));
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(due);
        }
    }
}
