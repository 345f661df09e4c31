//! The built-in recorder: the last spans and log entries, kept in memory, so that a mesh needs no tracing server.
//!
//! In: spans and log entries. Out: traces as Zipkin v2 has them, and a small dashboard (`http`).
//! Kept true: memory is bounded; the oldest goes first, and is counted. Not here: exporting (`adapters`).

pub mod http;
pub mod zipkin;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    adapters::item::{Item, LogEntry, Span},
    attributes::Text,
};

/// Most bytes of spans, as [`Item::weight`] counts them.
const SPAN_BYTES: usize = 32 << 20;
/// Most log entries.
const LOG_ENTRIES: usize = 10_000;

#[derive(Debug, Default)]
struct Spans {
    ring: VecDeque<Arc<Span>>,
    bytes: usize,
}

/// The recorder.
#[derive(Debug, Default)]
pub struct Recorder {
    spans: Mutex<Spans>,
    logs: Mutex<VecDeque<Arc<LogEntry>>>,
    forgotten: AtomicU64,
}

/// Which traces are asked for.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// A service that must take part.
    pub service: Option<String>,
    /// A span name that must occur.
    pub span: Option<String>,
    /// Tags that one span each must have: `key` or `key=value`, joined by ` and `.
    pub annotations: Vec<String>,
    /// Latest end, in milliseconds since the Unix epoch.
    pub end_ms: Option<u64>,
    /// How far back from the end, in milliseconds.
    pub lookback_ms: Option<u64>,
    /// Shortest duration of a span, in microseconds.
    pub min_us: Option<u64>,
    /// Longest duration of a span, in microseconds.
    pub max_us: Option<u64>,
    /// Most traces; 10 by default.
    pub limit: Option<usize>,
}

impl Recorder {
    /// Keeps a span.
    pub fn span(&self, span: Arc<Span>) {
        let weight = |span: &Arc<Span>| Item::Span(span.clone()).weight();
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans.bytes += weight(&span);
        spans.ring.push_back(span);
        while spans.bytes > SPAN_BYTES {
            let Some(oldest) = spans.ring.pop_front() else { break };
            spans.bytes -= weight(&oldest).min(spans.bytes);
            self.forgotten.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Keeps a log entry.
    pub fn log(&self, entry: Arc<LogEntry>) {
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        if logs.len() >= LOG_ENTRIES {
            logs.pop_front();
            self.forgotten.fetch_add(1, Ordering::Relaxed);
        }
        logs.push_back(entry);
    }

    /// How many spans and entries have been forgotten to make room.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed)
    }

    /// The last log entries, newest first.
    #[must_use]
    pub fn logs(&self, limit: usize) -> Vec<Arc<LogEntry>> {
        let logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        logs.iter().rev().take(limit).cloned().collect()
    }

    /// Service names, sorted.
    #[must_use]
    pub fn services(&self) -> Vec<Text> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<Text> = spans.ring.iter().map(|span| span.service.clone()).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Names of a service's spans, sorted.
    #[must_use]
    pub fn span_names(&self, service: &str) -> Vec<Text> {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let own = spans.ring.iter().filter(|span| *span.service == *service);
        let mut names: Vec<Text> = own.map(|span| span.name.clone()).collect();
        names.sort();
        names.dedup();
        names
    }

    /// The spans of one trace, by start; empty if there is none. A 64-bit id also finds the 128-bit one that ends in it.
    #[must_use]
    pub fn trace(&self, id: &str) -> Vec<Arc<Span>> {
        let id = id.to_ascii_lowercase();
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |span: &&Arc<Span>| {
            let own = &*span.trace_id;
            own == id || (id.len() == 16 && own.ends_with(&id)) || (own.len() == 16 && id.ends_with(own))
        };
        let mut found: Vec<_> = spans.ring.iter().filter(same).cloned().collect();
        found.sort_by_key(|span| span.start);
        found
    }

    /// The newest traces that answer to `query`, newest first.
    #[must_use]
    pub fn traces(&self, query: &Query) -> Vec<Vec<Arc<Span>>> {
        let spans: Vec<_> =
            self.spans.lock().unwrap_or_else(PoisonError::into_inner).ring.iter().cloned().collect();
        let mut traces: ahash::AHashMap<Text, Vec<Arc<Span>>> = ahash::AHashMap::new();
        for span in spans {
            traces.entry(span.trace_id.clone()).or_default().push(span);
        }
        let mut found: Vec<_> = traces.into_values().filter(|trace| query.takes(trace)).collect();
        let start = |trace: &Vec<Arc<Span>>| trace.iter().map(|span| span.start).min();
        found.sort_by_key(|trace| std::cmp::Reverse(start(trace)));
        found.truncate(query.limit.unwrap_or(10).min(1_000));
        for trace in &mut found {
            trace.sort_by_key(|span| span.start);
        }
        found
    }
}

impl Query {
    fn takes(&self, trace: &[Arc<Span>]) -> bool {
        let own = |span: &&Arc<Span>| self.service.as_ref().is_none_or(|service| *span.service == **service);
        let duration = |span: &Span| span.end.micros().saturating_sub(span.start.micros());
        let fits = |span: &Arc<Span>| {
            self.span.as_ref().is_none_or(|name| *span.name == **name)
                && self.min_us.is_none_or(|min| duration(span) >= min)
                && self.max_us.is_none_or(|max| duration(span) <= max)
        };
        let tagged = |annotation: &String| {
            let (key, value) = annotation.split_once('=').unwrap_or((annotation, ""));
            trace.iter().any(|span| {
                span.tags
                    .iter()
                    .any(|(name, tag)| **name == *key && (value.is_empty() || tag.to_string() == value))
            })
        };
        let start = trace.iter().map(|span| span.start.micros()).min().unwrap_or(0) / 1_000;
        let in_time = self.end_ms.is_none_or(|end| {
            start <= end && self.lookback_ms.is_none_or(|lookback| start >= end.saturating_sub(lookback))
        });
        in_time && trace.iter().filter(own).any(fits) && self.annotations.iter().all(tagged)
    }
}
