//! What handlers are given: instances whose expressions have been evaluated.
//!
//! In: `dispatch`. Out: the argument types of [`super::Adapter`].
//! Kept true: items are small, shared where they repeat, and know their weight. Not here: expressions (`config`).

use std::{sync::Arc, time::Duration};

use crate::attributes::{Text, Timestamp, Value};

/// Labels of a metric or fields of a log entry: names with values, in the instance's order.
pub type Labels = Arc<[(Text, Value)]>;

/// A report instance.
#[derive(Clone, Debug)]
pub enum Item {
    /// Template `metric`.
    Metric(Metric),
    /// Template `logentry`.
    Log(Arc<LogEntry>),
    /// Template `tracespan`, or a span that was received as such.
    Span(Arc<Span>),
    /// Template `reportnothing`.
    Nothing,
}

impl Item {
    /// About how many bytes the item holds, for bounded queues.
    #[must_use]
    pub fn weight(&self) -> usize {
        let labels = |labels: &Labels| {
            labels.iter().map(|(name, value)| name.len() + value.weight() + 48).sum::<usize>()
        };
        64 + match self {
            Self::Metric(metric) => labels(&metric.labels),
            Self::Log(entry) => labels(&entry.variables),
            Self::Span(span) => span.name.len() + labels(&span.tags),
            Self::Nothing => 0,
        }
    }
}

/// One change of a metric.
#[derive(Clone, Debug)]
pub struct Metric {
    /// Full name of the instance, `name.kind.namespace`.
    pub instance: Text,
    /// Dimensions.
    pub labels: Labels,
    /// What to add or observe.
    pub sample: Sample,
}

/// How a metric changes.
#[derive(Clone, Debug, PartialEq)]
pub enum Sample {
    /// One observation: added to counters, set on gauges, put in a distribution's bucket.
    One(Value),
    /// That many events at once.
    Count(u64),
    /// Many observations, already counted by bucket.
    Many(Arc<Observations>),
}

/// Observations by bucket, as the native stream carries them.
#[derive(Clone, Debug, PartialEq)]
pub struct Observations {
    /// What was observed.
    pub unit: Unit,
    /// Count per bound of `unit`, plus one for everything above.
    pub counts: Vec<u64>,
    /// Sum of the observed values.
    pub sum: f64,
}

/// What a distribution measures, and so its bounds on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Milliseconds.
    Milliseconds,
    /// Bytes.
    Bytes,
}

impl Unit {
    /// Upper bounds of the buckets.
    #[must_use]
    pub fn bounds(self) -> &'static [f64] {
        match self {
            Self::Milliseconds => &telemetry_api::bounds::DURATION_MS,
            Self::Bytes => &telemetry_api::bounds::BYTES,
        }
    }
}

/// A log entry.
#[derive(Clone, Debug, PartialEq)]
pub struct LogEntry {
    /// Full name of the instance.
    pub instance: Text,
    /// When it happened.
    pub timestamp: Timestamp,
    /// Severity as the instance says it, such as `Info`.
    pub severity: Text,
    /// Fields.
    pub variables: Labels,
}

/// A span.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// 16 or 32 lower-case hex digits.
    pub trace_id: Text,
    /// 16 lower-case hex digits.
    pub id: Text,
    /// 16 lower-case hex digits; empty for a root.
    pub parent_id: Text,
    /// Operation.
    pub name: Text,
    /// Start.
    pub start: Timestamp,
    /// End.
    pub end: Timestamp,
    /// The caller's side (client) or the callee's.
    pub client: bool,
    /// HTTP status; 0 if there is none.
    pub status: i64,
    /// Service that recorded the span.
    pub service: Text,
    /// Service at the other end; empty if unknown.
    pub peer: Text,
    /// Tags.
    pub tags: Labels,
}

/// A check instance.
#[derive(Clone, Debug)]
pub enum CheckInstance {
    /// Template `checknothing`.
    Nothing,
    /// Template `listentry`.
    ListEntry(Value),
}

/// A quota instance and what is asked of it.
#[derive(Clone, Debug)]
pub struct QuotaInstance {
    /// Full name of the instance, which is the quota's name.
    pub name: Text,
    /// Dimensions.
    pub labels: Labels,
    /// How much is wanted.
    pub amount: i64,
    /// Whether less than `amount` is better than nothing.
    pub best_effort: bool,
    /// Repeats of one request carry the same id; empty for none.
    pub deduplication_id: Text,
}

/// An adapter's answer to a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckResult {
    /// Canonical gRPC code; 0 lets the request pass.
    pub code: i32,
    /// Why not.
    pub message: String,
    /// How long the answer holds.
    pub valid_for: Duration,
    /// For how many requests the answer holds.
    pub valid_uses: i32,
}

/// How long the answer holds when nobody says otherwise.
pub const DEFAULT_VALIDITY: (Duration, i32) = (Duration::from_secs(60), 10_000);

impl CheckResult {
    /// Lets the request pass, for a minute and ten thousand uses.
    #[must_use]
    pub fn pass() -> Self {
        let (valid_for, valid_uses) = DEFAULT_VALIDITY;
        Self { code: 0, message: String::new(), valid_for, valid_uses }
    }
}

/// An adapter's answer to a quota request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaResult {
    /// Canonical gRPC code; 0 unless the adapter refuses altogether.
    pub code: i32,
    /// Why not.
    pub message: String,
    /// How much is granted.
    pub granted: i64,
    /// How long the grant holds.
    pub valid_for: Duration,
}
