//! Threads of the workers: one single-threaded runtime per core.
//!
//! In: what all workers share, snapshots. Out: [`Workers`], to be joined after the drain. Kept true: a worker that cannot start is told
//! of; control-plane work never runs here. Not here: what a worker does (`listen`).

use std::{
    io,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
};

use mesh_traffic::Snapshot;
use tokio::{sync::watch, task::LocalSet};

use super::{Shared, Worker};
use crate::listen;

/// The running threads.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Waits until every worker has ended.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker ended in a panic");
            }
        }
    }
}

/// Starts the workers. They end when the drain is over or forced.
///
/// # Errors
/// When a thread or its runtime cannot be made.
pub fn start(shared: &Arc<Shared>, snapshots: &watch::Receiver<Arc<Snapshot>>) -> io::Result<Workers> {
    let mut threads = Vec::new();
    for id in 0..shared.settings.workers.max(1) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (shared, snapshots) = (Arc::clone(shared), snapshots.clone());
        let run = move || {
            let local = LocalSet::new();
            local.block_on(&runtime, async move {
                let worker = Worker::new(id, shared);
                run(worker, snapshots).await;
            });
        };
        threads.push(std::thread::Builder::new().name(format!("worker-{id}")).spawn(run)?);
    }
    Ok(Workers { threads })
}

/// Runs one worker until the proxy has drained. Must run inside a [`LocalSet`].
pub async fn run(worker: Rc<Worker>, snapshots: watch::Receiver<Arc<Snapshot>>) {
    let follow = tokio::task::spawn_local(Rc::clone(&worker).follow(snapshots.clone()));
    let listeners = listen::Listeners::new(Rc::clone(&worker));
    listeners.run(snapshots).await;
    let drain = worker.shared.drain.clone();
    tokio::select! {
        () = drain.forced() => {}
        () = quiet(&worker) => {}
    }
    worker.telemetry.flush();
    follow.abort();
}

/// Resolves when nothing is under way and clients have had the time to learn that they should go.
async fn quiet(worker: &Worker) {
    let began = tokio::time::Instant::now();
    let open = || worker.shared.connections.load(Ordering::Acquire) > 0 && began.elapsed() < LINGER * 2;
    while worker.busy.get() > 0 || open() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// How long a drain leaves idle connections open, so that their next answer, not a race, tells their clients to go.
pub const LINGER: std::time::Duration = std::time::Duration::from_secs(2);
