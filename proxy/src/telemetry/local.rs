//! One worker's side of telemetry: series and single events gathered without anything shared, handed over once a second.
//!
//! In: ended requests. Out: [`Report`]s into a bounded queue. Kept true: a request on a warm series allocates nothing; what does not
//! fit is counted as lost. Not here: the stream (`uplink`).

use std::{
    cell::RefCell,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::mpsc;

use super::series::{Facts, Numbers, Table};
use crate::worker::Shared;

/// Texts of an event, in the order in which they are kept.
pub const TEXTS: usize = 16;
/// Longest text that is kept.
const LONGEST: usize = 1024;
/// Most bytes of texts that wait for the next report.
const MAX_TEXT: usize = 1 << 20;
/// Most events that wait for the next report.
const MAX_EVENTS: usize = 4096;

/// The fixed part of an event.
#[derive(Debug, Clone)]
pub struct Head {
    /// The worker's number of its series.
    pub series: u32,
    /// Microseconds since the Unix epoch.
    pub start_us: u64,
    /// How long it took, in microseconds.
    pub duration_us: u64,
    /// Body bytes from the client.
    pub request_size: u64,
    /// Body bytes to the client.
    pub response_size: u64,
    /// With heads.
    pub request_total: u64,
    /// With heads.
    pub response_total: u64,
    /// Port of the client.
    pub source_port: u16,
    /// Number of the connection.
    pub connection: u64,
    /// Tries made.
    pub attempts: u32,
    /// 0 for a request; else opened, continues, closed.
    pub event: i32,
    /// The request is traced.
    pub sampled: bool,
    lengths: [u16; TEXTS],
    truncated: bool,
}

/// Events that wait to be reported.
#[derive(Debug, Default)]
pub struct Batch {
    heads: Vec<Head>,
    text: Vec<u8>,
}

/// Texts of an event. See [`TEXTS`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Texts<'a> {
    /// Method.
    pub method: &'a str,
    /// Scheme.
    pub scheme: &'a str,
    /// Host.
    pub authority: &'a str,
    /// Path without its query.
    pub path: &'a str,
    /// Query.
    pub query: &'a str,
    /// `user-agent`.
    pub user_agent: &'a str,
    /// `x-request-id`.
    pub request_id: &'a str,
    /// `referer`.
    pub referer: &'a str,
    /// `x-forwarded-for`.
    pub forwarded_for: &'a str,
    /// Response code details.
    pub detail: &'a str,
    /// Server name of TLS.
    pub server_name: &'a str,
    /// Route.
    pub route: &'a str,
    /// Trace id.
    pub trace: &'a str,
    /// Span id.
    pub span: &'a str,
    /// Parent's span id.
    pub parent: &'a str,
    /// Name of the span.
    pub operation: &'a str,
}

impl<'a> Texts<'a> {
    fn all(&self) -> [&'a str; TEXTS] {
        [
            self.method,
            self.scheme,
            self.authority,
            self.path,
            self.query,
            self.user_agent,
            self.request_id,
            self.referer,
            self.forwarded_for,
            self.detail,
            self.server_name,
            self.route,
            self.trace,
            self.span,
            self.parent,
            self.operation,
        ]
    }

    fn from_all(all: [&'a str; TEXTS]) -> Self {
        let [method, scheme, authority, path, query, user_agent, request_id, referer, rest @ ..] = all;
        let [forwarded_for, detail, server_name, route, trace, span, parent, operation] = rest;
        Self {
            method,
            scheme,
            authority,
            path,
            query,
            user_agent,
            request_id,
            referer,
            forwarded_for,
            detail,
            server_name,
            route,
            trace,
            span,
            parent,
            operation,
        }
    }
}

impl Head {
    /// An event of a series, everything else empty.
    #[must_use]
    pub fn new(start: SystemTime, duration: Duration) -> Self {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Self {
            series: 0,
            start_us: micros(start.duration_since(UNIX_EPOCH).unwrap_or_default()),
            duration_us: micros(duration),
            request_size: 0,
            response_size: 0,
            request_total: 0,
            response_total: 0,
            source_port: 0,
            connection: 0,
            attempts: 0,
            event: 0,
            sampled: false,
            lengths: [0; TEXTS],
            truncated: false,
        }
    }

    /// Something was cut.
    #[must_use]
    pub fn truncated(&self) -> bool {
        self.truncated
    }
}

impl Batch {
    fn push(&mut self, mut head: Head, texts: &Texts<'_>) -> bool {
        if self.heads.len() >= MAX_EVENTS || self.text.len() >= MAX_TEXT {
            return false;
        }
        for (text, length) in texts.all().iter().zip(&mut head.lengths) {
            let mut end = text.len().min(LONGEST);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            head.truncated |= end < text.len();
            self.text.extend_from_slice(&text.as_bytes()[..end]);
            *length = u16::try_from(end).unwrap_or(0);
        }
        self.heads.push(head);
        true
    }

    /// Events that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.heads.len()
    }

    /// True when nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.text.len() + self.heads.len() * std::mem::size_of::<Head>()
    }

    /// Each event with its texts.
    pub fn iter(&self) -> impl Iterator<Item = (&Head, Texts<'_>)> {
        let mut at = 0;
        self.heads.iter().map(move |head| {
            let mut all = [""; TEXTS];
            for (text, length) in all.iter_mut().zip(head.lengths) {
                let end = at + usize::from(length);
                *text = self.text.get(at..end).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or("");
                at = end;
            }
            (head, Texts::from_all(all))
        })
    }
}

/// What one worker has to tell.
#[derive(Debug)]
pub struct Report {
    /// Number of the worker.
    pub worker: usize,
    /// Series that changed, cumulative.
    pub series: Vec<(u32, Arc<Facts>, Numbers)>,
    /// Single events.
    pub events: Batch,
    /// Events that did not fit since the last report.
    pub lost: u64,
}

struct State {
    table: Table,
    events: Batch,
    lost: u64,
}

/// One worker's side.
pub struct Local {
    worker: usize,
    out: Option<mpsc::Sender<Report>>,
    state: RefCell<State>,
}

impl Local {
    /// Reports into what `shared` names; without it nothing is kept.
    #[must_use]
    pub fn new(worker: usize, shared: &Shared) -> Self {
        let state = State { table: Table::default(), events: Batch::default(), lost: 0 };
        Self { worker, out: shared.reports.clone(), state: RefCell::new(state) }
    }

    /// True when somebody listens.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.out.is_some()
    }

    /// Takes note of an event: `change` counts it in its series, `event` is told by itself.
    pub fn note(&self, facts: Facts, change: impl FnOnce(&mut Numbers), event: Option<(Head, Texts<'_>)>) {
        if self.out.is_none() {
            return;
        }
        let mut state = self.state.borrow_mut();
        let series = state.table.update(facts, change);
        if let Some((mut head, texts)) = event {
            head.series = series;
            if !state.events.push(head, &texts) {
                state.lost += 1;
            }
        }
        let full = state.events.heads.len() >= MAX_EVENTS / 2 || state.events.text.len() >= MAX_TEXT / 2;
        drop(state);
        if full {
            self.flush();
        }
    }

    /// Hands over what there is. When the queue is full, series wait for the next time and events go on filling their bounded space.
    pub fn flush(&self) {
        let Some(out) = &self.out else { return };
        let Ok(place) = out.try_reserve() else { return };
        let mut state = self.state.borrow_mut();
        let series = state.table.take_changed();
        if series.is_empty() && state.events.is_empty() {
            return;
        }
        let events = std::mem::take(&mut state.events);
        let lost = std::mem::take(&mut state.lost);
        place.send(Report { worker: self.worker, series, events, lost });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_as_they_went_in_and_long_ones_are_cut_at_a_character() {
        let mut batch = Batch::default();
        let long = "ä".repeat(1000);
        let head = || Head::new(UNIX_EPOCH + Duration::from_secs(1), Duration::from_millis(2));
        let texts = Texts { method: "GET", path: "/a", operation: "op", ..Texts::default() };
        assert!(batch.push(head(), &texts));
        assert!(batch.push(head(), &Texts { authority: &long, ..texts }));
        let all: Vec<_> = batch.iter().collect();
        assert_eq!((all[0].1.method, all[0].1.path, all[0].1.operation), ("GET", "/a", "op"));
        assert_eq!(all[0].0.start_us, 1_000_000);
        assert_eq!(all[1].1.authority.len(), 1024);
        assert!(all[1].0.truncated() && !all[0].0.truncated());
    }

    #[test]
    fn a_full_batch_refuses_and_says_so() {
        let mut batch = Batch::default();
        let head = || Head::new(UNIX_EPOCH, Duration::ZERO);
        let taken = (0..MAX_EVENTS + 5).filter(|_| batch.push(head(), &Texts::default())).count();
        assert_eq!(taken, MAX_EVENTS);
    }
}
