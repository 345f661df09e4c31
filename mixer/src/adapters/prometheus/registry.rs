//! Metric families and their series.
//!
//! In: labels and samples. Out: text in Prometheus' exposition format.
//! Kept true: series per family are bounded, and what exceeds the bound is counted. Not here: settings (`mod`).

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt::Write as _,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ahash::AHashMap;
use tokio::time::Instant;

use crate::{
    adapters::item::{Labels, Observations, Sample, Unit},
    attributes::Value,
};

/// Most series of one family.
const MOST_SERIES: usize = 100_000;

/// What a family is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum FamilyKind {
    #[default]
    Counter,
    Gauge,
    /// A histogram with these upper bounds.
    Distribution(Vec<f64>),
}

pub(super) struct Series {
    /// Value of a counter or gauge, sum of a distribution.
    value: f64,
    /// Counts per bucket, the last for everything above; empty unless a distribution.
    counts: Vec<u64>,
    updated: Instant,
}

/// Series of one name.
#[derive(Default)]
pub(super) struct Family {
    pub(super) name: String,
    pub(super) help: String,
    pub(super) kind: FamilyKind,
    pub(super) labels: Vec<String>,
    /// Durations are observed in milliseconds, not seconds.
    pub(super) milliseconds: bool,
    pub(super) expiry: Duration,
    /// By their labels as text.
    pub(super) series: Mutex<AHashMap<String, Series>>,
    pub(super) refused: AtomicU64,
}

impl Family {
    fn same(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.labels == other.labels
            && self.milliseconds == other.milliseconds
            && self.expiry == other.expiry
            && self.help == other.help
    }

    fn scale(&self, unit: Unit) -> f64 {
        if unit == Unit::Milliseconds && !self.milliseconds { 1_000.0 } else { 1.0 }
    }

    pub(super) fn takes_buckets(&self, unit: Unit) -> bool {
        let FamilyKind::Distribution(bounds) = &self.kind else { return true };
        let scale = self.scale(unit);
        let near = |a: f64, b: f64| (a - b).abs() <= b.abs() * 1e-9;
        bounds.iter().all(|bound| unit.bounds().iter().any(|known| near(bound * scale, *known)))
    }

    pub(super) fn update(&self, labels: &Labels, sample: &Sample) {
        let key = self.label_text(labels);
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if !series.contains_key(&key) && series.len() >= MOST_SERIES {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let now = Instant::now();
        let series = series.entry(key).or_insert_with(|| {
            let buckets =
                if let FamilyKind::Distribution(bounds) = &self.kind { bounds.len() + 1 } else { 0 };
            Series { value: 0.0, counts: vec![0; buckets], updated: now }
        });
        if now.duration_since(series.updated) > self.expiry {
            series.value = 0.0;
            series.counts.fill(0);
        }
        series.updated = now;
        match (&self.kind, sample) {
            (FamilyKind::Counter, sample) => series.value += self.sum(sample),
            (FamilyKind::Gauge, sample) => series.value = self.sum(sample),
            (FamilyKind::Distribution(bounds), Sample::Many(observations)) => {
                self.merge(series, bounds, observations);
            }
            (FamilyKind::Distribution(bounds), sample) => {
                let value = self.sum(sample);
                series.value += value;
                series.counts[bounds.partition_point(|bound| *bound < value)] += 1;
            }
        }
    }

    fn sum(&self, sample: &Sample) -> f64 {
        match sample {
            Sample::One(value) => self.number(value),
            Sample::Count(count) => number(*count),
            Sample::Many(observations) => observations.sum / self.scale(observations.unit),
        }
    }

    fn merge(&self, series: &mut Series, bounds: &[f64], observations: &Observations) {
        let scale = self.scale(observations.unit);
        series.value += observations.sum / scale;
        for (i, count) in observations.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let at = match observations.unit.bounds().get(i) {
                // A hair of slack, so that 0.01 * 1000 and 10 are one bound.
                Some(upper) => bounds.partition_point(|bound| bound * scale * (1.0 + 1e-9) < *upper),
                None => bounds.len(),
            };
            series.counts[at] += count;
        }
    }

    fn number(&self, value: &Value) -> f64 {
        match value {
            Value::Int64(number) => *number as f64,
            Value::Double(number) => *number,
            Value::Bool(truth) => f64::from(u8::from(*truth)),
            Value::Duration(nanos) => *nanos as f64 / if self.milliseconds { 1e6 } else { 1e9 },
            Value::String(text) => text.parse().unwrap_or(0.0),
            _ => 0.0,
        }
    }

    fn label_text(&self, labels: &Labels) -> String {
        let mut out = String::with_capacity(labels.len() * 32);
        for name in &self.labels {
            if !out.is_empty() {
                out.push(',');
            }
            out.push_str(name);
            out.push_str("=\"");
            if let Some((_, value)) = labels.iter().find(|(label, _)| **label == **name) {
                match value {
                    Value::String(text) => escape(text, &mut out),
                    Value::Int64(number) => drop(write!(out, "{number}")),
                    other => escape(&other.to_string(), &mut out),
                }
            }
            out.push('"');
        }
        out
    }

    fn text(&self, now: Instant, out: &mut String) {
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        series.retain(|_, series| now.duration_since(series.updated) <= self.expiry);
        if series.is_empty() {
            return;
        }
        let kind = match self.kind {
            FamilyKind::Counter => "counter",
            FamilyKind::Gauge => "gauge",
            FamilyKind::Distribution(_) => "histogram",
        };
        let name = &self.name;
        let _ = writeln!(out, "# HELP {name} {}", self.help.replace('\\', "\\\\").replace('\n', "\\n"));
        let _ = writeln!(out, "# TYPE {name} {kind}");
        let mut sorted: Vec<_> = series.iter().collect();
        sorted.sort_by_key(|(labels, _)| labels.as_str());
        for (labels, series) in sorted {
            match &self.kind {
                FamilyKind::Distribution(bounds) => {
                    let comma = if labels.is_empty() { "" } else { "," };
                    let mut total = 0;
                    for (i, count) in series.counts.iter().enumerate() {
                        total += count;
                        let le = bounds.get(i).map_or_else(|| "+Inf".to_owned(), ToString::to_string);
                        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{le}\"}} {total}");
                    }
                    let _ = writeln!(out, "{name}_sum{{{labels}}} {}", series.value);
                    let _ = writeln!(out, "{name}_count{{{labels}}} {total}");
                }
                _ => drop(writeln!(out, "{name}{{{labels}}} {}", series.value)),
            }
        }
    }
}

/// Counts beyond 2^53 lose their last digits, as everywhere in Prometheus.
fn number(count: u64) -> f64 {
    count as f64
}

fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

/// Every family of every `prometheus` handler of the process.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<BTreeMap<String, Weak<Family>>>>);

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Registry")
    }
}

impl Registry {
    /// Takes in a family, or returns the one of the same name and shape with its counts. A family whose shape has
    /// changed starts anew.
    pub(super) fn register(&self, family: Family) -> Arc<Family> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, family| family.strong_count() > 0);
        match all.entry(family.name.clone()) {
            Entry::Occupied(mut old) => match old.get().upgrade().filter(|old| old.same(&family)) {
                Some(same) => same,
                None => {
                    let new = Arc::new(family);
                    old.insert(Arc::downgrade(&new));
                    new
                }
            },
            Entry::Vacant(place) => {
                let new = Arc::new(family);
                place.insert(Arc::downgrade(&new));
                new
            }
        }
    }

    /// All series that have not expired, as Prometheus reads them.
    #[must_use]
    pub fn text(&self) -> String {
        let families: Vec<_> = {
            let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.values().filter_map(Weak::upgrade).collect()
        };
        let now = Instant::now();
        let mut out = format!(
            "# HELP istio_build Which release runs.\n# TYPE istio_build gauge\nistio_build{{component=\"mixer\",tag=\"{}\"}} 1\n",
            env!("CARGO_PKG_VERSION")
        );
        let mut refused = 0;
        for family in families {
            family.text(now, &mut out);
            refused += family.refused.load(Ordering::Relaxed);
        }
        let _ = writeln!(
            out,
            "# HELP mixer_prometheus_updates_refused_total Updates beyond the most series a family may have.\n# TYPE mixer_prometheus_updates_refused_total counter"
        );
        let _ = writeln!(out, "mixer_prometheus_updates_refused_total {refused}");
        out
    }
}
