//! Leaving: first clients are told, then nothing new is taken, then what is under way ends.
//!
//! In: SIGTERM, `POST /drain`, `POST /quitquitquit`. Out: the moment at which the sockets close. Kept true: the delay counts from the
//! first word that we leave, whoever said it, and is waited once. Not here: what happens then (`mesh_runtime::drain`, `listen`).
//!
//! While we leave, connections are still taken: whoever routes to this pod hears of its end a moment after us. Answers ask their clients
//! to go elsewhere, and readiness says no.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use mesh_runtime::{Readiness, shutdown::Cause};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

/// How long a pod's proxy goes on taking connections, unless `terminationDrainDuration` says otherwise: Istio's default.
pub const DELAY: Duration = Duration::from_secs(5);

/// The way out. Clones share it.
#[derive(Debug, Clone)]
pub struct Leave(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    readiness: Readiness,
    told: watch::Sender<bool>,
    began: OnceLock<Instant>,
    quit: Notify,
}

impl Leave {
    /// Nobody leaves yet. `told` becomes true when we do.
    #[must_use]
    pub fn new(readiness: Readiness, told: watch::Sender<bool>) -> Self {
        Self(Arc::new(Inner { readiness, told, began: OnceLock::new(), quit: Notify::new() }))
    }

    /// Tells clients and whoever asks for readiness. Nothing ends by this alone.
    pub fn begin(&self, why: &str) {
        let mut first = false;
        self.0.began.get_or_init(|| {
            first = true;
            Instant::now()
        });
        if first {
            tracing::info!(why, "leaving: not ready any more, still taking connections");
            drop(self.0.readiness.condition("leaving", why));
            self.0.told.send_replace(true);
        }
    }

    /// Ends the process as soon as what is under way has ended.
    pub fn quit(&self) {
        self.begin("asked to quit");
        self.0.quit.notify_one();
    }

    /// True once [`Self::begin`] was called.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.0.began.get().is_some()
    }

    /// Resolves when the sockets are to be closed: at once when asked to quit, and `delay` after the begin when told to end by a signal of
    /// an orchestrator. `next` gives signals; a second one, and any other, ends the delay. Returns how long the delay took.
    pub async fn time_to_go(
        &self,
        mut next: impl AsyncFnMut() -> Cause,
        delay: impl Fn() -> Duration,
    ) -> Duration {
        let cause = tokio::select! {
            cause = next() => Some(cause),
            () = self.0.quit.notified() => None,
        };
        let asked = Instant::now();
        let Some(cause) = cause else { return Duration::ZERO };
        self.begin(&cause.to_string());
        if cause == Cause::Terminate {
            let left = delay().saturating_sub(self.since());
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                _ = next() => {}
                () = self.0.quit.notified() => {}
            }
        }
        asked.elapsed()
    }

    fn since(&self) -> Duration {
        self.0.began.get().map(Instant::elapsed).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    struct Scene {
        leave: Leave,
        told: watch::Receiver<bool>,
        readiness: Readiness,
        signals: mpsc::Sender<Cause>,
        went: tokio::task::JoinHandle<Duration>,
    }

    fn scene(delay: u64) -> Scene {
        let readiness = Readiness::new();
        let told = watch::Sender::new(false);
        let heard = told.subscribe();
        let leave = Leave::new(readiness.clone(), told);
        let (signals, mut causes) = mpsc::channel(2);
        let going = leave.clone();
        let went = tokio::task::spawn_local(async move {
            let next = async || match causes.recv().await {
                Some(cause) => cause,
                None => std::future::pending().await,
            };
            going.time_to_go(next, || Duration::from_secs(delay)).await
        });
        Scene { leave, told: heard, readiness, signals, went }
    }

    #[tokio::test(start_paused = true, flavor = "local")]
    async fn a_pod_that_ends_takes_connections_for_a_while() {
        let scene = scene(5);
        let began = Instant::now();
        assert!(scene.readiness.is_ready() && !scene.leave.has_begun());
        scene.signals.send(Cause::Terminate).await.expect("listened to");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!scene.readiness.is_ready() && *scene.told.borrow() && !scene.went.is_finished());
        scene.went.await.expect("no panic");
        assert_eq!(began.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true, flavor = "local")]
    async fn a_drain_before_the_signal_counts() {
        for (before, total, after) in [(2, 5, 3), (9, 9, 0)] {
            let scene = scene(5);
            let began = Instant::now();
            scene.leave.begin("preStop");
            tokio::time::sleep(Duration::from_secs(before)).await;
            assert!(!scene.went.is_finished(), "a drain alone ends nothing");
            scene.signals.send(Cause::Terminate).await.expect("listened to");
            let took = scene.went.await.expect("no panic");
            assert_eq!((began.elapsed(), took), (Duration::from_secs(total), Duration::from_secs(after)));
        }
    }

    #[tokio::test(start_paused = true, flavor = "local")]
    async fn quitting_interrupting_and_a_second_signal_do_not_wait() {
        for case in 0..4 {
            let scene = scene(5);
            let began = Instant::now();
            match case {
                0 => scene.leave.quit(),
                1 => scene.signals.send(Cause::Interrupt).await.expect("listened to"),
                2 => {
                    for _ in 0..2 {
                        scene.signals.send(Cause::Terminate).await.expect("listened to");
                    }
                }
                _ => {
                    scene.signals.send(Cause::Terminate).await.expect("listened to");
                    tokio::task::yield_now().await;
                    scene.leave.quit();
                }
            }
            scene.went.await.expect("no panic");
            assert_eq!(began.elapsed(), Duration::ZERO, "case {case}");
            assert!(*scene.told.borrow(), "case {case}");
        }
    }
}
