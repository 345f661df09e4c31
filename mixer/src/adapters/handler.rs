//! A running handler: an adapter with its settings, its queue and its counters.
//!
//! In: instances, without waiting. Out: answers to checks; everything else goes on to the adapter.
//! Kept true: no call here waits for a backend, and nothing is lost without being counted.
//! Not here: when handlers are made and replaced (`config`).

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    Adapter, AdapterKind,
    item::{CheckInstance, CheckResult, Item, QuotaInstance, QuotaResult, Unit},
    queue::Queue,
};
use crate::attributes::Text;

/// An adapter at work.
pub struct Handler {
    /// Full name, `name.kind.namespace`.
    pub name: Text,
    /// Which adapter.
    pub kind: &'static AdapterKind,
    /// Its settings as written; a handler whose settings have not changed outlives a change of configuration.
    pub settings: String,
    adapter: Arc<dyn Adapter>,
    queue: Option<Queue>,
    stats: Arc<HandlerStats>,
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handler({})", self.name)
    }
}

impl Handler {
    /// Starts a handler. Needs a runtime if the adapter has a queue.
    #[must_use]
    pub fn start(
        name: Text,
        kind: &'static AdapterKind,
        settings: String,
        adapter: Arc<dyn Adapter>,
        totals: &Totals,
    ) -> Arc<Self> {
        let stats = totals.handler(&name, kind.name);
        let queue = adapter.queue().map(|limits| Queue::start(adapter.clone(), limits, stats.clone()));
        Arc::new(Self { name, kind, settings, adapter, queue, stats })
    }

    /// Answers a check.
    pub fn check(&self, instance: &CheckInstance) -> CheckResult {
        self.stats.sent(1);
        self.adapter.check(instance)
    }

    /// Answers a quota request.
    pub fn quota(&self, instance: &QuotaInstance) -> QuotaResult {
        self.stats.sent(1);
        self.adapter.quota(instance)
    }

    /// Takes an item, now or in its queue; if there is no room, drops and counts it.
    pub fn push(&self, item: Item) {
        match &self.queue {
            None => {
                self.adapter.take(item);
                self.stats.sent(1);
            }
            Some(queue) => {
                if let Err(reason) = queue.push(item) {
                    self.stats.dropped(reason, 1);
                }
                self.stats
                    .queue_bytes
                    .store(u64::try_from(queue.bytes()).unwrap_or(u64::MAX), Ordering::Relaxed);
            }
        }
    }

    /// Bytes that wait to be exported, those of the batch under way included.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.queue.as_ref().map_or(0, Queue::bytes)
    }

    /// See [`Adapter::takes_buckets`].
    #[must_use]
    pub fn takes_buckets(&self, instance: &str, unit: Unit) -> bool {
        self.adapter.takes_buckets(instance, unit)
    }

    /// This handler's counters.
    #[must_use]
    pub fn stats(&self) -> &HandlerStats {
        &self.stats
    }
}

/// Counters of one handler, from process start.
#[derive(Debug, Default)]
pub struct HandlerStats {
    name: String,
    adapter: String,
    sent: AtomicU64,
    retried: AtomicU64,
    queue_bytes: AtomicU64,
    exports: AtomicU64,
    export_micros: AtomicU64,
    dropped: Mutex<BTreeMap<&'static str, u64>>,
    last_error: Mutex<String>,
}

impl HandlerStats {
    pub(super) fn sent(&self, items: u64) {
        self.sent.fetch_add(items, Ordering::Relaxed);
    }

    pub(super) fn retried(&self, items: u64) {
        self.retried.fetch_add(items, Ordering::Relaxed);
    }

    pub(super) fn dropped(&self, reason: &'static str, items: u64) {
        *self.dropped.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += items;
    }

    pub(super) fn took(&self, time: Duration) {
        self.exports.fetch_add(1, Ordering::Relaxed);
        self.export_micros.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Says an error once, until another one comes.
    pub(super) fn failed(&self, why: &str) {
        let mut last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != why {
            tracing::warn!(handler = self.name, "{why}; will keep trying, and count what is lost");
            why.clone_into(&mut last);
        }
    }

    /// Items that reached the backend.
    #[must_use]
    pub fn sent_total(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Items that were lost, for any reason.
    #[must_use]
    pub fn dropped_total(&self) -> u64 {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }
}

/// The counters of every handler there has been, by full name.
#[derive(Clone, Debug, Default)]
pub struct Totals(Arc<Mutex<BTreeMap<Text, Arc<HandlerStats>>>>);

impl Totals {
    /// The counters of `name`, which go on if the handler is made anew.
    #[must_use]
    pub fn handler(&self, name: &Text, adapter: &str) -> Arc<HandlerStats> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            Arc::new(HandlerStats {
                name: name.to_string(),
                adapter: adapter.to_owned(),
                ..Default::default()
            })
        };
        all.entry(name.clone()).or_insert_with(new).clone()
    }

    /// All counters as Prometheus text.
    #[must_use]
    pub fn prometheus_text(&self) -> String {
        use std::fmt::Write as _;
        type Read = fn(&HandlerStats) -> u64;
        let families: [(&str, &str, Read); 4] = [
            ("mixer_adapter_sent_total", "counter", |stats| stats.sent.load(Ordering::Relaxed)),
            ("mixer_adapter_retried_total", "counter", |stats| stats.retried.load(Ordering::Relaxed)),
            ("mixer_adapter_queue_bytes", "gauge", |stats| stats.queue_bytes.load(Ordering::Relaxed)),
            ("mixer_adapter_export_seconds_count", "counter", |stats| stats.exports.load(Ordering::Relaxed)),
        ];
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut out = String::new();
        for (name, kind, read) in families {
            let _ = writeln!(out, "# TYPE {name} {kind}");
            for stats in all.values() {
                let _ = writeln!(
                    out,
                    "{name}{{handler=\"{}\",adapter=\"{}\"}} {}",
                    stats.name,
                    stats.adapter,
                    read(stats)
                );
            }
        }
        let _ = writeln!(out, "# TYPE mixer_adapter_export_seconds_sum counter");
        for stats in all.values() {
            let seconds = Duration::from_micros(stats.export_micros.load(Ordering::Relaxed)).as_secs_f64();
            let (name, adapter) = (&stats.name, &stats.adapter);
            let _ = writeln!(
                out,
                "mixer_adapter_export_seconds_sum{{handler=\"{name}\",adapter=\"{adapter}\"}} {seconds}"
            );
        }
        let _ = writeln!(out, "# TYPE mixer_adapter_dropped_total counter");
        for stats in all.values() {
            for (reason, count) in &*stats.dropped.lock().unwrap_or_else(PoisonError::into_inner) {
                let (name, adapter) = (&stats.name, &stats.adapter);
                let _ = writeln!(
                    out,
                    "mixer_adapter_dropped_total{{handler=\"{name}\",adapter=\"{adapter}\",reason=\"{reason}\"}} {count}"
                );
            }
        }
        out
    }
}
