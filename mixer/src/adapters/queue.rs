//! The queue in front of an exporting adapter.
//!
//! In: items, from any task, without waiting. Out: batches, to [`Adapter::export`], retried with jittered backoff.
//! Kept true: never more items or bytes than the limits; every item is exported, or counted as dropped with a reason.
//! Not here: what a batch looks like on the wire (each adapter).

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mesh_runtime::Backoff;
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::Instant,
};

use super::{Adapter, HandlerStats, item::Item};

/// Bounds of a queue and of what is done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Most items that wait.
    pub items: usize,
    /// Most bytes that wait, as [`Item::weight`] counts them.
    pub bytes: usize,
    /// Most items in one batch.
    pub batch: usize,
    /// How long the first item of a batch waits for company.
    pub linger: Duration,
    /// How long one try may take.
    pub timeout: Duration,
    /// How long a batch is tried before it is dropped.
    pub give_up: Duration,
}

impl Default for QueueLimits {
    /// 16,384 items or 8 MiB; batches of 512 or one second; tries of 5 s for a minute.
    fn default() -> Self {
        Self {
            items: 16_384,
            bytes: 8 << 20,
            batch: 512,
            linger: Duration::from_secs(1),
            timeout: Duration::from_secs(5),
            give_up: Duration::from_secs(60),
        }
    }
}

/// The sending end. Dropping it ends the task once it has tried to export what waits.
#[derive(Debug)]
pub(super) struct Queue {
    items: mpsc::Sender<Item>,
    bytes: Arc<AtomicUsize>,
    limits: QueueLimits,
}

impl Queue {
    /// Starts the adapter's task on the current runtime.
    pub(super) fn start(adapter: Arc<dyn Adapter>, limits: QueueLimits, stats: Arc<HandlerStats>) -> Self {
        let (sender, receiver) = mpsc::channel(limits.items.max(1));
        let bytes = Arc::new(AtomicUsize::new(0));
        tokio::spawn(run(adapter, limits, receiver, bytes.clone(), stats));
        Self { items: sender, bytes, limits }
    }

    /// Puts an item in line, or says why not.
    pub(super) fn push(&self, item: Item) -> Result<(), &'static str> {
        let weight = item.weight();
        if self.bytes.fetch_add(weight, Ordering::Relaxed).saturating_add(weight) > self.limits.bytes {
            self.bytes.fetch_sub(weight, Ordering::Relaxed);
            return Err("queue_bytes");
        }
        self.items.try_send(item).map_err(|error| {
            self.bytes.fetch_sub(weight, Ordering::Relaxed);
            match error {
                TrySendError::Full(_) => "queue_items",
                TrySendError::Closed(_) => "stopped",
            }
        })
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

async fn run(
    adapter: Arc<dyn Adapter>,
    limits: QueueLimits,
    mut items: mpsc::Receiver<Item>,
    bytes: Arc<AtomicUsize>,
    stats: Arc<HandlerStats>,
) {
    let mut batch = Vec::with_capacity(limits.batch.min(1_024));
    loop {
        if items.recv_many(&mut batch, limits.batch).await == 0 {
            return;
        }
        let full = Instant::now() + limits.linger;
        while batch.len() < limits.batch {
            let room = limits.batch - batch.len();
            match tokio::time::timeout_at(full, items.recv_many(&mut batch, room)).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        export(&*adapter, &limits, &batch, &stats).await;
        let weight = batch.iter().map(Item::weight).sum();
        bytes.fetch_sub(weight, Ordering::Relaxed);
        batch.clear();
    }
}

async fn export(adapter: &dyn Adapter, limits: &QueueLimits, batch: &[Item], stats: &HandlerStats) {
    let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
    let deadline = Instant::now() + limits.give_up;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    loop {
        let started = Instant::now();
        let result = tokio::time::timeout(limits.timeout, adapter.export(batch)).await;
        stats.took(started.elapsed());
        let (why, retry) = match result {
            Ok(Ok(())) => return stats.sent(count),
            Ok(Err(error)) => (error.why, error.retry),
            Err(_) => (format!("no answer within {:?}", limits.timeout), true),
        };
        if !retry {
            stats.failed(&why);
            return stats.dropped("refused", count);
        }
        stats.failed(&why);
        let wait = backoff.next_wait();
        if Instant::now() + wait > deadline {
            return stats.dropped("backend", count);
        }
        stats.retried(count);
        tokio::time::sleep(wait).await;
    }
}
