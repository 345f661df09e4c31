//! Metrics fed from cumulative series: exact, whatever is lost or repeated on the way.
//!
//! In: the series of the native stream, cumulative since a proxy's epoch. Out: differences, as metric items.
//! Kept true: what was counted once for (proxy, epoch, series) is never counted again, across reconnections; a mixer
//! that has just started counts all of it. Not here: the stream (`ingest::native`), single events (`dispatch`).

use std::sync::Arc;

use ahash::AHashMap;
use telemetry_api::{Histogram, HttpSeries, TcpSeries};

use crate::{
    adapters::{
        Handler,
        item::{Item, Labels, Metric, Observations, Sample, Unit},
    },
    attributes::{AttributeId, Bag, Builtin, Text, Value},
    config::{Action, Generation, Instance, Rule, Template},
    dispatch::{self, Counters},
    join,
    lang::Expression,
};

/// What of a series an instance's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// One per request, or per connection event.
    Count,
    /// `response.duration`.
    Duration,
    /// `request.size`.
    RequestBytes,
    /// `response.size`.
    ResponseBytes,
    /// `request.messages`.
    RequestMessages,
    /// `response.messages`.
    ResponseMessages,
    /// `connection.received.bytes`.
    Received,
    /// `connection.sent.bytes`.
    Sent,
}

/// How `instance` under `matcher` can be fed from series; `None` if it needs records.
#[must_use]
pub fn measure(matcher: Option<&Expression>, instance: &Instance, handler: &Handler) -> Option<Measure> {
    if instance.template != Template::Metric {
        return None;
    }
    let mut known = true;
    let mut visit = |id: AttributeId, _: Option<&str>| known &= join::series_attribute(id);
    matcher.into_iter().for_each(|matcher| matcher.visit_attributes(&mut visit));
    for (_, expression) in instance.map("dimensions") {
        expression.visit_attributes(&mut visit);
    }
    if !known {
        return None;
    }
    let value = instance.field("value")?;
    if value.constant() == Some(&Value::Int64(1)) {
        return Some(Measure::Count);
    }
    let id = value.attribute_or_default()?;
    let (measure, unit) = [
        (Builtin::ResponseDuration, Measure::Duration, Some(Unit::Milliseconds)),
        (Builtin::RequestSize, Measure::RequestBytes, Some(Unit::Bytes)),
        (Builtin::ResponseSize, Measure::ResponseBytes, Some(Unit::Bytes)),
        (Builtin::RequestMessages, Measure::RequestMessages, None),
        (Builtin::ResponseMessages, Measure::ResponseMessages, None),
        (Builtin::ConnectionReceivedBytes, Measure::Received, None),
        (Builtin::ConnectionSentBytes, Measure::Sent, None),
    ]
    .into_iter()
    .find_map(|(attribute, measure, unit)| (AttributeId::from(attribute) == id).then_some((measure, unit)))?;
    unit.is_none_or(|unit| handler.takes_buckets(&instance.name, unit)).then_some(measure)
}

/// What a series has counted so far.
#[derive(Clone, Debug, Default)]
enum Counted {
    #[default]
    Nothing,
    Http(HttpSeries),
    Tcp(TcpSeries),
}

/// Where a series' differences go under one generation.
struct Target {
    handler: Arc<Handler>,
    instance: Text,
    labels: Labels,
    measure: Measure,
    /// For TCP counts: `open` or `close`.
    event: &'static str,
}

/// One series of one proxy.
#[derive(Default)]
pub struct SeriesState {
    counted: Counted,
    targets: Vec<Target>,
    /// Of which generation the targets are; 0 before the first.
    generation: u64,
    /// Attributes before the join, to find the targets again under another generation.
    facts: Option<Box<[(AttributeId, Value)]>>,
}

/// The series of one proxy's epoch.
#[derive(Default)]
pub struct ProxySeries(AHashMap<u64, SeriesState>);

/// Most series that one proxy may have; more are counted as refused.
pub const MOST_SERIES: usize = 100_000;

impl ProxySeries {
    /// The state of series `id`; `None` if the proxy has too many.
    pub fn state(&mut self, id: u64) -> Option<&mut SeriesState> {
        if self.0.len() >= MOST_SERIES && !self.0.contains_key(&id) {
            return None;
        }
        Some(self.0.entry(id).or_default())
    }

    /// How many series there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl SeriesState {
    /// Whether the series' facts are known.
    #[must_use]
    pub fn has_facts(&self) -> bool {
        self.facts.is_some()
    }

    /// Takes the series' facts.
    pub fn set_facts(&mut self, facts: &Bag) {
        self.facts = Some(facts.iter().map(|(id, value)| (id, value.clone())).collect());
        self.generation = 0;
    }

    /// Takes cumulative HTTP values.
    pub fn http(&mut self, mut now: HttpSeries, generation: &Generation, counters: &Counters) {
        self.aim(generation, counters);
        fold(&mut now.duration_ms, Unit::Milliseconds);
        fold(&mut now.request_bytes, Unit::Bytes);
        fold(&mut now.response_bytes, Unit::Bytes);
        let before = match &self.counted {
            Counted::Http(before) => before.clone(),
            _ => HttpSeries::default(),
        };
        if now.requests < before.requests {
            return; // A late frame of a stream that has been replaced.
        }
        for target in &self.targets {
            let sample = match target.measure {
                Measure::Count => Sample::Count(now.requests.saturating_sub(before.requests)),
                Measure::RequestMessages => {
                    Sample::Count(now.request_messages.saturating_sub(before.request_messages))
                }
                Measure::ResponseMessages => {
                    Sample::Count(now.response_messages.saturating_sub(before.response_messages))
                }
                Measure::Duration => {
                    difference(now.duration_ms.as_ref(), before.duration_ms.as_ref(), Unit::Milliseconds)
                }
                Measure::RequestBytes => {
                    difference(now.request_bytes.as_ref(), before.request_bytes.as_ref(), Unit::Bytes)
                }
                Measure::ResponseBytes => {
                    difference(now.response_bytes.as_ref(), before.response_bytes.as_ref(), Unit::Bytes)
                }
                Measure::Received | Measure::Sent => continue,
            };
            target.push(sample);
        }
        self.counted = Counted::Http(now);
    }

    /// Takes cumulative TCP values.
    pub fn tcp(&mut self, now: TcpSeries, generation: &Generation, counters: &Counters) {
        self.aim(generation, counters);
        let before = match &self.counted {
            Counted::Tcp(before) => *before,
            _ => TcpSeries::default(),
        };
        if now.opened < before.opened || now.closed < before.closed {
            return;
        }
        for target in &self.targets {
            target.push(Sample::Count(match (target.measure, target.event) {
                (Measure::Count, "open") => now.opened.saturating_sub(before.opened),
                (Measure::Count, "close") => now.closed.saturating_sub(before.closed),
                (Measure::Received, _) => now.received_bytes.saturating_sub(before.received_bytes),
                (Measure::Sent, _) => now.sent_bytes.saturating_sub(before.sent_bytes),
                _ => continue,
            }));
        }
        self.counted = Counted::Tcp(now);
    }

    /// Finds the targets, unless they are of this generation already.
    fn aim(&mut self, generation: &Generation, counters: &Counters) {
        if self.generation == generation.number {
            return;
        }
        self.targets.clear();
        let Some(facts) = &self.facts else { return };
        // Attribute ids of a new vocabulary may differ beyond the built-in ones; facts hold built-in ones only.
        let mut bag = Bag::new(&generation.vocabulary);
        for (id, value) in facts.iter() {
            bag.set(*id, value.clone());
        }
        let ends = join::join(&mut bag, &generation.workloads);
        join::generate(generation, &mut bag, &ends);
        let tcp = bag.text(Builtin::ContextProtocol).is_some_and(|protocol| &**protocol == "tcp");
        let events: &[&str] = if tcp { &["open", "close", "continue"] } else { &[""] };
        for event in events {
            if tcp {
                bag.set_text(Builtin::ConnectionEvent, *event);
            }
            for rule in &generation.rules {
                for mut target in targets(rule, &bag, event, counters) {
                    // Most metrics have the same labels; they are held once.
                    if let Some(same) = self.targets.iter().find(|other| other.labels == target.labels) {
                        target.labels = same.labels.clone();
                    }
                    self.targets.push(target);
                }
            }
        }
        self.generation = generation.number;
    }
}

fn targets(rule: &Rule, bag: &Bag, event: &'static str, counters: &Counters) -> Vec<Target> {
    // Bytes flow between open and close; opening and closing is counted, going on is not.
    let fits = |measure: Measure| match event {
        "" => true,
        "continue" => measure != Measure::Count,
        _ => measure == Measure::Count,
    };
    let mut fed = rule
        .actions
        .iter()
        .filter_map(|action| Some((action, action.series.filter(|m| fits(*m))?)))
        .peekable();
    if fed.peek().is_none() {
        return Vec::new();
    }
    let attribute =
        if join::outbound(bag) { Builtin::SourceNamespace } else { Builtin::DestinationNamespace };
    if !dispatch::applies(rule, bag.text(attribute), bag, &mut (), counters) {
        return Vec::new();
    }
    fed.filter_map(|(Action { handler, instance, .. }, measure)| {
        let labels = dispatch::labels(instance, "dimensions", bag, &mut ()).ok()?;
        Some(Target { handler: handler.clone(), instance: instance.name.clone(), labels, measure, event })
    })
    .collect()
}

impl Target {
    fn push(&self, sample: Sample) {
        let nothing = match &sample {
            Sample::Count(count) => *count == 0,
            Sample::Many(observations) => observations.counts.iter().all(|count| *count == 0),
            Sample::One(_) => false,
        };
        if !nothing {
            let (instance, labels) = (self.instance.clone(), self.labels.clone());
            self.handler.push(Item::Metric(Metric { instance, labels, sample }));
        }
    }
}

/// Buckets beyond those that there are count as the last: what is kept of a peer's histogram has our length, not the peer's.
fn fold(histogram: &mut Option<Histogram>, unit: Unit) {
    let Some(histogram) = histogram else { return };
    let size = unit.bounds().len() + 1;
    if histogram.counts.len() > size {
        let beyond = histogram.counts[size..].iter().fold(0_u64, |sum, count| sum.saturating_add(*count));
        histogram.counts.truncate(size);
        histogram.counts[size - 1] = histogram.counts[size - 1].saturating_add(beyond);
        histogram.counts.shrink_to_fit();
    }
}

fn difference(now: Option<&Histogram>, before: Option<&Histogram>, unit: Unit) -> Sample {
    let size = unit.bounds().len() + 1;
    let (empty, mut counts) = (Histogram::default(), vec![0; size]);
    let (now, before) = (now.unwrap_or(&empty), before.unwrap_or(&empty));
    for (i, count) in now.counts.iter().enumerate() {
        let at = i.min(size - 1);
        counts[at] += count.saturating_sub(before.counts.get(i).copied().unwrap_or(0));
    }
    let sum = (now.sum - before.sum).max(0.0);
    Sample::Many(Arc::new(Observations { unit, counts, sum }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_of_any_length_is_kept_at_ours_and_loses_no_count() {
        for unit in [Unit::Milliseconds, Unit::Bytes] {
            let size = unit.bounds().len() + 1;
            for length in [0, 1, size, size + 1, 100_000] {
                let mut histogram = Some(Histogram { counts: vec![1; length], sum: 1.0 });
                fold(&mut histogram, unit);
                let counts = histogram.expect("it stays").counts;
                assert!(counts.len() <= size && counts.capacity() <= size.max(length.min(size)), "{length}");
                assert_eq!(counts.iter().sum::<u64>(), u64::try_from(length).expect("small"), "{length}");
            }
        }
    }
}
