//! OTLP, over gRPC and HTTP: traces, logs and metrics of anything that speaks OpenTelemetry.
//!
//! In: export requests. Out: spans and log entries for the recorder and for handlers that rules give such instances to;
//! numbers for handlers of metrics. Kept true: what is not taken is said in `partial_success`.
//! Not here: sending OTLP (`adapters::otlp`).

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::post,
};
use otlp::{
    collector::{
        logs::v1::{
            ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
            logs_service_server::LogsService,
        },
        metrics::v1::{
            ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::MetricsService,
        },
        trace::v1::{
            ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::TraceService,
        },
    },
    common::v1::{AnyValue, KeyValue, any_value},
    logs::v1::LogRecord,
    metrics::v1::{NumberDataPoint, metric::Data, number_data_point},
    resource::v1::Resource,
    trace::v1::{Span as OtlpSpan, span::SpanKind},
};
use prost::Message;
use tonic::{Request, Response, Status};

use crate::{
    adapters::item::{Item, Labels, LogEntry, Metric, Sample, Span},
    attributes::{StringMap, Text, Timestamp, Value},
    config::Template,
    core::Mixer,
    ingest,
};

/// The three gRPC services.
#[derive(Clone, Debug)]
pub struct OtlpService(pub Arc<Mixer>);

/// OTLP over HTTP with protobuf bodies: `/v1/traces`, `/v1/logs`, `/v1/metrics`.
pub fn http_router(mixer: Arc<Mixer>) -> Router {
    Router::new()
        .route(
            "/v1/traces",
            post(async |State(to): State<OtlpService>, body: Bytes| {
                answer(body, async |request| TraceService::export(&to, request).await).await
            }),
        )
        .route(
            "/v1/logs",
            post(async |State(to): State<OtlpService>, body: Bytes| {
                answer(body, async |request| LogsService::export(&to, request).await).await
            }),
        )
        .route(
            "/v1/metrics",
            post(async |State(to): State<OtlpService>, body: Bytes| {
                answer(body, async |request| MetricsService::export(&to, request).await).await
            }),
        )
        .with_state(OtlpService(mixer))
}

async fn answer<I: Message + Default, O: Message>(
    body: Bytes,
    export: impl AsyncFnOnce(Request<I>) -> Result<Response<O>, Status>,
) -> axum::response::Response {
    let request = match I::decode(body) {
        Ok(request) => Request::new(request),
        Err(error) => {
            let why = format!("not an OTLP request as protobuf: {error}\n");
            return (StatusCode::BAD_REQUEST, why).into_response();
        }
    };
    match export(request).await {
        Ok(response) => {
            ([(header::CONTENT_TYPE, "application/x-protobuf")], response.into_inner().encode_to_vec())
                .into_response()
        }
        Err(status) => (StatusCode::SERVICE_UNAVAILABLE, format!("{status}\n")).into_response(),
    }
}

fn value(any: Option<&AnyValue>) -> Value {
    match any.and_then(|any| any.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => Value::text(text.as_str()),
        Some(any_value::Value::BoolValue(truth)) => Value::Bool(*truth),
        Some(any_value::Value::IntValue(number)) => Value::Int64(*number),
        Some(any_value::Value::DoubleValue(number)) => Value::Double(*number),
        Some(any_value::Value::KvlistValue(list)) => {
            let entries =
                list.values.iter().map(|entry| (entry.key.clone(), value(entry.value.as_ref()).to_string()));
            Value::StringMap(entries.collect::<StringMap>())
        }
        Some(any_value::Value::ArrayValue(list)) => {
            let parts: Vec<String> = list.values.iter().map(|part| value(Some(part)).to_string()).collect();
            Value::text(parts.join(","))
        }
        Some(any_value::Value::BytesValue(bytes)) => Value::text(hex(bytes)),
        _ => Value::text(""),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn labels(attributes: &[KeyValue]) -> Labels {
    attributes.iter().map(|entry| (Text::from(entry.key.as_str()), value(entry.value.as_ref()))).collect()
}

fn time(nanos: u64) -> Timestamp {
    Timestamp(i64::try_from(nanos).unwrap_or(i64::MAX))
}

fn service(resource: Option<&Resource>) -> Text {
    let attributes = resource.map(|resource| resource.attributes.as_slice()).unwrap_or_default();
    let name = attributes.iter().find(|entry| entry.key == "service.name");
    name.map_or_else(|| "unknown".into(), |entry| value(entry.value.as_ref()).to_string().into())
}

fn span(span: &OtlpSpan, service: &Text) -> Option<Span> {
    if span.trace_id.len() != 16 || span.span_id.len() != 8 {
        return None;
    }
    let attribute = |names: &[&str]| {
        let found = span.attributes.iter().find(|entry| names.contains(&entry.key.as_str()));
        found.map(|entry| value(entry.value.as_ref()))
    };
    Some(Span {
        trace_id: hex(&span.trace_id).into(),
        id: hex(&span.span_id).into(),
        parent_id: if span.parent_span_id.len() == 8 { hex(&span.parent_span_id).into() } else { "".into() },
        name: span.name.as_str().into(),
        start: time(span.start_time_unix_nano),
        end: time(span.end_time_unix_nano.max(span.start_time_unix_nano)),
        client: matches!(span.kind(), SpanKind::Client | SpanKind::Producer),
        status: match attribute(&["http.response.status_code", "http.status_code"]) {
            Some(Value::Int64(code)) => code,
            Some(Value::String(text)) => text.parse().unwrap_or(0),
            _ => 0,
        },
        service: service.clone(),
        peer: attribute(&["peer.service", "server.address"])
            .map_or_else(|| "".into(), |peer| peer.to_string().into()),
        tags: labels(&span.attributes),
    })
}

#[tonic::async_trait]
impl TraceService for OtlpService {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut refused = 0;
        for resource in request.into_inner().resource_spans {
            let service = service(resource.resource.as_ref());
            for found in resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
                match span(found, &service) {
                    Some(span) => ingest::pass_span(&self.0, &Arc::new(span)),
                    None => refused += 1,
                }
            }
        }
        let partial_success = (refused > 0).then(|| ExportTracePartialSuccess {
            rejected_spans: refused,
            error_message: "trace ids must have 16 bytes, span ids 8".to_owned(),
        });
        Ok(Response::new(ExportTraceServiceResponse { partial_success }))
    }
}

fn entry(record: &LogRecord, service: &Text) -> LogEntry {
    let at = if record.time_unix_nano == 0 { record.observed_time_unix_nano } else { record.time_unix_nano };
    let mut variables: Vec<(Text, Value)> = vec![("service".into(), Value::String(service.clone()))];
    if record.body.is_some() {
        variables.push(("body".into(), value(record.body.as_ref())));
    }
    for (name, bytes) in [("trace_id", &record.trace_id), ("span_id", &record.span_id)] {
        if !bytes.is_empty() {
            variables.push((name.into(), Value::text(hex(bytes))));
        }
    }
    variables.extend(labels(&record.attributes).iter().cloned());
    LogEntry {
        instance: "otlp".into(),
        timestamp: if at == 0 { Timestamp::now() } else { time(at) },
        severity: record.severity_text.as_str().into(),
        variables: variables.into(),
    }
}

#[tonic::async_trait]
impl LogsService for OtlpService {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let handlers = self.0.generation().handlers_of(Template::LogEntry);
        for resource in request.into_inner().resource_logs {
            let service = service(resource.resource.as_ref());
            for record in resource.scope_logs.iter().flat_map(|scope| &scope.log_records) {
                let entry = Arc::new(entry(record, &service));
                self.0.recorder.log(entry.clone());
                for handler in &handlers {
                    handler.push(Item::Log(entry.clone()));
                }
            }
        }
        Ok(Response::new(ExportLogsServiceResponse { partial_success: None::<ExportLogsPartialSuccess> }))
    }
}

#[tonic::async_trait]
impl MetricsService for OtlpService {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let handlers = self.0.generation().handlers_of(Template::Metric);
        let mut refused = 0;
        let metrics =
            request.into_inner().resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
        for metric in metrics.flat_map(|scope| scope.metrics) {
            let points: Vec<NumberDataPoint> = match metric.data {
                Some(Data::Gauge(gauge)) => gauge.data_points,
                Some(Data::Sum(sum)) => sum.data_points,
                Some(Data::Histogram(other)) => {
                    refused += other.data_points.len();
                    continue;
                }
                Some(Data::ExponentialHistogram(other)) => {
                    refused += other.data_points.len();
                    continue;
                }
                Some(Data::Summary(other)) => {
                    refused += other.data_points.len();
                    continue;
                }
                None => continue,
            };
            for point in points {
                let value = match point.value {
                    Some(number_data_point::Value::AsInt(number)) => Value::Int64(number),
                    Some(number_data_point::Value::AsDouble(number)) => Value::Double(number),
                    None => continue,
                };
                let (instance, labels) = (Text::from(metric.name.as_str()), labels(&point.attributes));
                for handler in &handlers {
                    let (instance, labels) = (instance.clone(), labels.clone());
                    handler.push(Item::Metric(Metric {
                        instance,
                        labels,
                        sample: Sample::One(value.clone()),
                    }));
                }
            }
        }
        let partial_success = (refused > 0).then(|| ExportMetricsPartialSuccess {
            rejected_data_points: i64::try_from(refused).unwrap_or(i64::MAX),
            error_message: "histograms and summaries are not passed on; send gauges and sums".to_owned(),
        });
        Ok(Response::new(ExportMetricsServiceResponse { partial_success }))
    }
}
