//! Threads of the workers: one single-threaded runtime per core.
//!
//! In: what all workers share, snapshots. Out: [`Workers`], to be joined after the drain. Kept true: a worker that cannot start is told
//! of; control-plane work never runs here. Not here: what a worker does (`listen`).

use std::{io, rc::Rc, sync::Arc, thread::JoinHandle};

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

async fn quiet(worker: &Worker) {
    while worker.busy.get() > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
