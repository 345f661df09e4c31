//! Adapters: where instances go.
//!
//! In: evaluated instances from `dispatch`. Out: each backend's own protocol.
//! Kept true: a handler that exports has its own task, its own bounded queue and its own counters, so a dead backend
//! slows nobody else. Not here: which instances go to which handler (`config`). `README.md` says how to add one.

mod denier;
mod handler;
mod http;
pub mod item;
mod kubernetesenv;
mod listchecker;
mod memquota;
mod noop;
mod otlp;
pub mod prometheus;
mod queue;
mod stdio;
mod zipkin;

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

pub use handler::{Handler, HandlerStats, Totals};
use item::{CheckInstance, CheckResult, Item, QuotaInstance, QuotaResult, Unit};
pub use queue::QueueLimits;

use crate::config::{Fields, Template};

/// A future that an object-safe trait can return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why a batch was not exported.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct ExportError {
    /// Whether trying again can help.
    pub retry: bool,
    /// What went wrong.
    pub why: String,
}

impl ExportError {
    /// The backend may take the batch later.
    pub fn retry(why: impl fmt::Display) -> Self {
        Self { retry: true, why: why.to_string() }
    }

    /// The backend will never take this batch.
    pub fn fatal(why: impl fmt::Display) -> Self {
        Self { retry: false, why: why.to_string() }
    }
}

/// The one trait behind every adapter. An adapter overrides what its templates need and nothing else.
pub trait Adapter: Send + Sync + 'static {
    /// Answers a check. Must not wait.
    fn check(&self, instance: &CheckInstance) -> CheckResult {
        let _ = instance;
        CheckResult::pass()
    }

    /// Answers a quota request. Must not wait.
    fn quota(&self, instance: &QuotaInstance) -> QuotaResult {
        QuotaResult {
            code: 0,
            message: String::new(),
            granted: instance.amount,
            valid_for: Duration::from_secs(60),
        }
    }

    /// Limits of the queue in front of [`Adapter::export`]; `None` if items are [`take`](Adapter::take)n at once.
    fn queue(&self) -> Option<QueueLimits> {
        None
    }

    /// Takes one item in memory. Must not wait. Only called if there is no queue.
    fn take(&self, item: Item) {
        let _ = item;
    }

    /// Sends a batch. Dropping the future may leave the batch sent or not. Only called if there is a queue.
    fn export<'a>(&'a self, batch: &'a [Item]) -> BoxFuture<'a, Result<(), ExportError>> {
        let _ = batch;
        Box::pin(std::future::ready(Ok(())))
    }

    /// Whether observations of `unit` that are already in buckets can be taken for `instance` without losing precision.
    fn takes_buckets(&self, instance: &str, unit: Unit) -> bool {
        let _ = (instance, unit);
        true
    }
}

/// What handlers of one process share.
#[derive(Clone, Debug, Default)]
pub struct Shared {
    /// The metrics of all `prometheus` handlers.
    pub prometheus: prometheus::Registry,
    /// Counters of all handlers.
    pub totals: Totals,
}

/// An adapter as configuration knows it.
#[derive(Clone, Copy)]
pub struct AdapterKind {
    /// Name in `compiledAdapter`, and the legacy kind.
    pub name: &'static str,
    /// Templates it takes.
    pub templates: &'static [Template],
    /// Reads its settings. Problems are reported through the fields; `None` if there is a fatal one.
    pub build: fn(&Fields<'_>, &Shared) -> Option<Arc<dyn Adapter>>,
}

impl fmt::Debug for AdapterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Every adapter, by name.
pub const ALL: &[AdapterKind] = &[
    denier::KIND,
    kubernetesenv::KIND,
    listchecker::KIND,
    memquota::KIND,
    noop::KIND,
    otlp::KIND,
    prometheus::KIND,
    stdio::KIND,
    zipkin::KIND,
];

/// The adapter called `name`, as in `compiledAdapter` or as a legacy kind.
#[must_use]
pub fn named(name: &str) -> Option<&'static AdapterKind> {
    ALL.iter().find(|kind| kind.name.eq_ignore_ascii_case(name))
}
