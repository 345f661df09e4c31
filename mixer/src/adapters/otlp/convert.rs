//! Items as OTLP messages.
//!
//! In: a batch. Out: at most one request of each signal.
//! Kept true: ids that are no ids of OTLP are left out; metrics of one name and one set of labels are one data point.
//! Not here: sending (`mod`).

use std::collections::BTreeMap;

use ::otlp::{
    collector::{
        logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest,
        trace::v1::ExportTraceServiceRequest,
    },
    common::v1::{AnyValue, InstrumentationScope, KeyValue, KeyValueList, any_value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric as OtlpMetric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point,
    },
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span as OtlpSpan, Status, span::SpanKind, status::StatusCode},
};

use crate::{
    adapters::item::{Item, Labels, LogEntry, Metric, Sample, Span, Unit},
    attributes::{Timestamp, Value},
    config::Fields,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Distribution,
}

struct Named {
    instance: String,
    name: String,
    kind: Kind,
    unit: String,
}

/// How metrics are called and what they are.
pub(super) struct Settings {
    service: String,
    metrics: Vec<Named>,
}

impl Settings {
    pub(super) fn read(fields: &Fields<'_>) -> Option<Self> {
        let mut metrics = Vec::new();
        for metric in fields.objects("metrics") {
            let Some(instance) = metric.text("instance_name") else {
                metric
                    .problems()
                    .error(metric.at("instance_name"), "is missing; give the full name of a metric instance");
                return None;
            };
            let kind = match metric.text("kind").unwrap_or("COUNTER") {
                "COUNTER" => Kind::Counter,
                "GAUGE" => Kind::Gauge,
                "DISTRIBUTION" => Kind::Distribution,
                other => {
                    let why = format!("must be COUNTER, GAUGE or DISTRIBUTION, not \"{other}\"");
                    metric.problems().error(metric.at("kind"), why);
                    return None;
                }
            };
            let name = metric.text("name").unwrap_or_else(|| short(instance)).to_owned();
            let unit = metric.text("unit").unwrap_or_default().to_owned();
            metrics.push(Named { instance: instance.to_owned(), name, kind, unit });
        }
        Some(Self { service: fields.text("service_name").unwrap_or("mixer").to_owned(), metrics })
    }

    fn resource(&self, service: &str) -> Resource {
        let name = if service.is_empty() { &self.service } else { service };
        Resource { attributes: vec![attribute("service.name", &Value::text(name))], ..Default::default() }
    }
}

fn short(instance: &str) -> &str {
    instance.split('.').next().unwrap_or(instance)
}

fn any(value: &Value) -> AnyValue {
    let value = match value {
        Value::Int64(number) => any_value::Value::IntValue(*number),
        Value::Double(number) => any_value::Value::DoubleValue(*number),
        Value::Bool(truth) => any_value::Value::BoolValue(*truth),
        Value::StringMap(map) => any_value::Value::KvlistValue(KeyValueList {
            values: map.iter().map(|(key, value)| attribute(key, &Value::String(value.clone()))).collect(),
        }),
        other => any_value::Value::StringValue(other.to_string()),
    };
    AnyValue { value: Some(value) }
}

fn attribute(key: &str, value: &Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(any(value)), ..Default::default() }
}

fn attributes(labels: &Labels) -> Vec<KeyValue> {
    labels.iter().map(|(name, value)| attribute(name, value)).collect()
}

fn nanos(time: Timestamp) -> u64 {
    u64::try_from(time.0).unwrap_or(0)
}

fn bytes(hex: &str, length: usize) -> Option<Vec<u8>> {
    let padded = format!("{hex:0>width$}", width = length * 2);
    if hex.is_empty() || padded.len() != length * 2 || !padded.is_ascii() {
        return None;
    }
    (0..length).map(|at| u8::from_str_radix(&padded[at * 2..at * 2 + 2], 16).ok()).collect()
}

fn span(span: &Span) -> Option<OtlpSpan> {
    let mut attributes = attributes(&span.tags);
    if span.status != 0 {
        attributes.push(attribute("http.response.status_code", &Value::Int64(span.status)));
    }
    if !span.peer.is_empty() {
        attributes.push(attribute("peer.service", &Value::String(span.peer.clone())));
    }
    let failed = span.status >= 500 || (span.client && span.status >= 400);
    Some(OtlpSpan {
        trace_id: bytes(&span.trace_id, 16)?,
        span_id: bytes(&span.id, 8)?,
        parent_span_id: bytes(&span.parent_id, 8).unwrap_or_default(),
        name: span.name.to_string(),
        kind: if span.client { SpanKind::Client } else { SpanKind::Server }.into(),
        start_time_unix_nano: nanos(span.start),
        end_time_unix_nano: nanos(span.end),
        attributes,
        status: failed.then(|| Status { code: StatusCode::Error.into(), message: String::new() }),
        ..Default::default()
    })
}

fn log(entry: &LogEntry) -> LogRecord {
    let id = |name: &str, length: usize| {
        let found = entry.variables.iter().find(|(variable, _)| **variable == *name);
        found.and_then(|(_, value)| bytes(&value.to_string(), length)).unwrap_or_default()
    };
    LogRecord {
        time_unix_nano: nanos(entry.timestamp),
        observed_time_unix_nano: nanos(Timestamp::now()),
        severity_text: entry.severity.to_string(),
        body: Some(any(&Value::text(short(&entry.instance)))),
        attributes: attributes(&entry.variables),
        trace_id: id("traceId", 16),
        span_id: id("spanId", 8),
        ..Default::default()
    }
}

/// One data point while it is added up.
struct Point {
    labels: Labels,
    number: f64,
    /// Bounds and counts of a distribution.
    buckets: Option<(&'static [f64], Vec<u64>)>,
}

impl Point {
    fn add(&mut self, kind: Kind, sample: &Sample) {
        let (number, unit) = match sample {
            Sample::Count(count) => (*count as f64, Unit::Bytes),
            Sample::Many(observations) => {
                let (_, counts) = self.buckets(observations.unit);
                for (to, from) in counts.iter_mut().zip(&observations.counts) {
                    *to += from;
                }
                self.number += observations.sum;
                return;
            }
            Sample::One(Value::Int64(number)) => (*number as f64, Unit::Bytes),
            Sample::One(Value::Double(number)) => (*number, Unit::Bytes),
            Sample::One(Value::Duration(nanos)) => (*nanos as f64 / 1e6, Unit::Milliseconds),
            Sample::One(_) => return,
        };
        match kind {
            Kind::Gauge => self.number = number,
            Kind::Counter => self.number += number,
            Kind::Distribution => {
                self.number += number;
                let (bounds, counts) = self.buckets(unit);
                counts[bounds.partition_point(|bound| *bound < number)] += 1;
            }
        }
    }

    fn buckets(&mut self, unit: Unit) -> (&'static [f64], &mut Vec<u64>) {
        let bounds = unit.bounds();
        let (bounds, counts) = self.buckets.get_or_insert_with(|| (bounds, vec![0; bounds.len() + 1]));
        (bounds, counts)
    }
}

fn metrics(all: &[&Metric], settings: &Settings) -> Vec<OtlpMetric> {
    let mut families: BTreeMap<&str, (Kind, &str, BTreeMap<String, Point>)> = BTreeMap::new();
    for metric in all {
        let named = settings.metrics.iter().find(|named| named.instance == *metric.instance);
        let is_duration = matches!(metric.sample, Sample::One(Value::Duration(_)));
        let (name, kind, unit) = match (named, &metric.sample) {
            (Some(named), _) => (named.name.as_str(), named.kind, named.unit.as_str()),
            (None, Sample::Many(observations)) => {
                let unit = if observations.unit == Unit::Milliseconds { "ms" } else { "By" };
                (short(&metric.instance), Kind::Distribution, unit)
            }
            (None, _) if is_duration => (short(&metric.instance), Kind::Distribution, "ms"),
            (None, _) => (short(&metric.instance), Kind::Counter, ""),
        };
        let key: String = metric.labels.iter().map(|(name, value)| format!("{name}={value};")).collect();
        let (kind, _, points) = families.entry(name).or_insert((kind, unit, BTreeMap::new()));
        let new = || Point { labels: metric.labels.clone(), number: 0.0, buckets: None };
        points.entry(key).or_insert_with(new).add(*kind, &metric.sample);
    }
    let now = nanos(Timestamp::now());
    let delta = AggregationTemporality::Delta.into();
    let number = |point: &Point| NumberDataPoint {
        attributes: attributes(&point.labels),
        time_unix_nano: now,
        value: Some(number_data_point::Value::AsDouble(point.number)),
        ..Default::default()
    };
    families
        .into_iter()
        .map(|(name, (kind, unit, points))| {
            let points = points.values();
            let data = match kind {
                Kind::Gauge => Data::Gauge(Gauge { data_points: points.map(number).collect() }),
                Kind::Counter => Data::Sum(Sum {
                    data_points: points.map(number).collect(),
                    aggregation_temporality: delta,
                    is_monotonic: true,
                }),
                Kind::Distribution => Data::Histogram(Histogram {
                    data_points: points
                        .map(|point| {
                            let (bounds, counts) = point.buckets.clone().unwrap_or((&[], vec![0]));
                            HistogramDataPoint {
                                attributes: attributes(&point.labels),
                                time_unix_nano: now,
                                count: counts.iter().sum(),
                                sum: Some(point.number),
                                bucket_counts: counts,
                                explicit_bounds: bounds.to_vec(),
                                ..Default::default()
                            }
                        })
                        .collect(),
                    aggregation_temporality: delta,
                }),
            };
            OtlpMetric {
                name: name.to_owned(),
                unit: unit.to_owned(),
                data: Some(data),
                ..Default::default()
            }
        })
        .collect()
}

/// What a batch becomes.
pub(super) struct Batch {
    pub(super) traces: Option<ExportTraceServiceRequest>,
    pub(super) logs: Option<ExportLogsServiceRequest>,
    pub(super) metrics: Option<ExportMetricsServiceRequest>,
}

pub(super) fn batch(items: &[Item], settings: &Settings) -> Batch {
    let scope = || {
        Some(InstrumentationScope {
            name: "crema.mixer".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    };
    let mut spans: BTreeMap<&str, Vec<OtlpSpan>> = BTreeMap::new();
    let (mut entries, mut changes) = (Vec::new(), Vec::new());
    for item in items {
        match item {
            Item::Span(found) => spans.entry(&*found.service).or_default().extend(span(found)),
            Item::Log(entry) => entries.push(log(entry)),
            Item::Metric(metric) => changes.push(metric),
            Item::Nothing => {}
        }
    }
    let resource_spans =
        spans.into_iter().filter(|(_, spans)| !spans.is_empty()).map(|(service, spans)| ResourceSpans {
            resource: Some(settings.resource(service)),
            scope_spans: vec![ScopeSpans { scope: scope(), spans, ..Default::default() }],
            ..Default::default()
        });
    let resource_spans: Vec<_> = resource_spans.collect();
    Batch {
        traces: (!resource_spans.is_empty()).then_some(ExportTraceServiceRequest { resource_spans }),
        logs: (!entries.is_empty()).then(|| ExportLogsServiceRequest {
            resource_logs: vec![ResourceLogs {
                resource: Some(settings.resource("")),
                scope_logs: vec![ScopeLogs { scope: scope(), log_records: entries, ..Default::default() }],
                ..Default::default()
            }],
        }),
        metrics: (!changes.is_empty()).then(|| ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(settings.resource("")),
                scope_metrics: vec![ScopeMetrics {
                    scope: scope(),
                    metrics: metrics(&changes, settings),
                    ..Default::default()
                }],
                ..Default::default()
            }],
        }),
    }
}
