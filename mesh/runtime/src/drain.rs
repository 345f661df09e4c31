//! Graceful drain: one trigger tells many tasks to finish, and waits until they have.
//!
//! In: a call of [`Trigger::drain`]. Out: [`Watch::signaled`] in every task that holds a watch.
//! Kept true: a drain ends when the last watch is dropped, or at its deadline, whichever is first.
//! Not here: what a task does when told (stop accepting, GOAWAY, …), and signals (`shutdown`).

use std::time::Duration;

use tokio::{sync::watch, time::Instant};

/// Makes a connected pair.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let (trigger, watch) = mesh_runtime::drain::new();
/// let task = tokio::spawn(async move {
///     watch.signaled().await; // finish what is open, then drop the watch
/// });
/// let end = trigger.drain(std::time::Duration::from_secs(5)).await;
/// assert!(end.is_clean());
/// task.await.unwrap();
/// # });
/// ```
pub fn new() -> (Trigger, Watch) {
    let (tx, rx) = watch::channel(Phase::Running);
    (Trigger { tx }, Watch { rx })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Draining { until: Instant },
    Forced,
}

/// Starts the drain. Dropping it without draining counts as a drain that is over: every watch is told at once.
#[derive(Debug)]
pub struct Trigger {
    tx: watch::Sender<Phase>,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every watch was dropped within the grace time.
    Clean,
    /// The grace time ended with this many watches still held; they have been told to stop at once.
    Forced {
        /// Watches that were still held.
        left: usize,
    },
}

impl Drained {
    /// True when nothing had to be cut off.
    pub fn is_clean(self) -> bool {
        self == Self::Clean
    }
}

impl Trigger {
    /// Tells every watch to finish and waits at most `grace` for all of them to be dropped.
    ///
    /// Dropping the future leaves the drain signaled and tells every watch to stop at once.
    pub async fn drain(self, grace: Duration) -> Drained {
        self.tx.send_replace(Phase::Draining { until: Instant::now() + grace });
        if tokio::time::timeout(grace, self.tx.closed()).await.is_ok() {
            return Drained::Clean;
        }
        let left = self.tx.receiver_count();
        self.tx.send_replace(Phase::Forced);
        if left == 0 { Drained::Clean } else { Drained::Forced { left } }
    }

    /// Another watch of this drain.
    pub fn watch(&self) -> Watch {
        Watch { rx: self.tx.subscribe() }
    }
}

/// Held by everything that must finish before the process ends. Clones count separately.
#[derive(Clone, Debug)]
pub struct Watch {
    rx: watch::Receiver<Phase>,
}

impl Watch {
    /// Resolves when the drain has started (at once if it already has). Cancel safe.
    ///
    /// The watch is only borrowed: the drain goes on waiting until the watch itself is dropped.
    pub async fn signaled(&self) {
        let mut rx = self.rx.clone();
        let _ = rx.wait_for(|phase| *phase != Phase::Running).await;
    }

    /// Resolves when the grace time is over and open work must be cut off. Cancel safe.
    pub async fn forced(&self) {
        let mut rx = self.rx.clone();
        let _ = rx.wait_for(|phase| *phase == Phase::Forced).await;
    }

    /// True once the drain has started.
    pub fn is_draining(&self) -> bool {
        *self.rx.borrow() != Phase::Running || self.rx.has_changed().is_err()
    }

    /// When open work will be cut off; `None` before the drain and after its end.
    pub fn deadline(&self) -> Option<Instant> {
        match *self.rx.borrow() {
            Phase::Draining { until } => Some(until),
            Phase::Running | Phase::Forced => None,
        }
    }

    /// Runs `work` until it ends or the drain starts; `None` means that the drain came first and `work` was dropped.
    pub async fn until_drain<F: Future>(&self, work: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            () = self.signaled() => None,
            out = work => Some(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn drain_waits_for_every_clone_of_the_watch() {
        let (trigger, watch) = new();
        for wait in [1, 2, 3] {
            let watch = watch.clone();
            tokio::spawn(async move {
                watch.signaled().await;
                tokio::time::sleep(Duration::from_secs(wait)).await;
                drop(watch);
            });
        }
        drop(watch);
        let start = Instant::now();
        assert_eq!(trigger.drain(GRACE).await, Drained::Clean);
        assert_eq!(start.elapsed(), Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn drain_cuts_off_what_is_left_at_the_deadline() {
        let (trigger, watch) = new();
        let held = watch.clone();
        let forced = tokio::spawn(async move {
            watch.signaled().await;
            assert!(watch.deadline().is_some());
            watch.forced().await;
        });
        assert_eq!(trigger.drain(GRACE).await, Drained::Forced { left: 2 + 1 });
        forced.await.unwrap();
        assert!(held.is_draining());
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_made_during_the_drain_is_told_at_once() {
        let (trigger, watch) = new();
        let late = watch.clone();
        let drain = tokio::spawn(trigger.drain(GRACE));
        watch.signaled().await;
        late.clone().signaled().await;
        drop((watch, late));
        assert!(drain.await.unwrap().is_clean());
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_trigger_ends_every_wait() {
        let (trigger, watch) = new();
        drop(trigger);
        watch.signaled().await;
        watch.forced().await;
        assert!(watch.is_draining());
        assert_eq!(watch.until_drain(std::future::pending::<()>()).await, None);
    }
}
