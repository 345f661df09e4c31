//! `otlp`: metrics, log entries and spans to anything that speaks OpenTelemetry.
//!
//! In: `metric`, `logentry`, `tracespan`. Out: OTLP over gRPC, or over HTTP with protobuf bodies.
//! Kept true: metrics are added up per batch and sent as differences, so a lost batch loses its own share only.
//! Not here: conversion of single items (`convert`), receiving OTLP (`ingest::otlp`).

mod convert;

use std::sync::Arc;

use ::otlp::collector::{
    logs::v1::{ExportLogsServiceRequest, logs_service_client::LogsServiceClient},
    metrics::v1::{ExportMetricsServiceRequest, metrics_service_client::MetricsServiceClient},
    trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
};
use convert::Batch;
use http::{Method, Uri};
use mesh_identity::grpc;
use prost::Message as _;
use tonic::{
    Code, Status,
    metadata::{MetadataKey, MetadataMap},
    transport::Channel,
};

use super::{Adapter, AdapterKind, BoxFuture, ExportError, QueueLimits, http as client, item::Item};
use crate::config::{Fields, Template};

pub(super) const KIND: AdapterKind = AdapterKind {
    name: "otlp",
    templates: &[Template::Metric, Template::LogEntry, Template::TraceSpan],
    build,
};

enum Transport {
    Grpc(Channel),
    /// URL without `/v1/traces`.
    Http(Uri),
}

struct Otlp {
    transport: Transport,
    headers: Vec<(String, String)>,
    settings: convert::Settings,
}

fn build(fields: &Fields<'_>, _: &super::Shared) -> Option<Arc<dyn Adapter>> {
    let problems = fields.problems();
    let Some(endpoint) = fields.text("endpoint") else {
        problems.error(fields.at("endpoint"), "is missing; for example http://collector.observability:4317");
        return None;
    };
    let uri = match client::check_url(endpoint) {
        Ok(uri) => uri,
        Err(why) => {
            problems.error(fields.at("endpoint"), why);
            return None;
        }
    };
    let mut headers = Vec::new();
    for (name, json, at) in fields.entries("headers") {
        match json.as_str() {
            Some(value) => headers.push((name.to_lowercase(), value.to_owned())),
            None => problems.error(at, "must be text"),
        }
    }
    let default = if uri.port_u16() == Some(4318) { "HTTP" } else { "GRPC" };
    let transport = match fields.text("protocol").unwrap_or(default) {
        "HTTP" => Transport::Http(uri),
        "GRPC" if uri.scheme_str() == Some("https") => {
            let why =
                "gRPC over TLS is not supported yet; use protocol: HTTP with https, or a collector nearby";
            problems.error(fields.at("endpoint"), why);
            return None;
        }
        "GRPC" => {
            let address = format!("{}:{}", uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(4317));
            match grpc::channel(&address, grpc::Target::Plaintext, &grpc::ChannelOptions::default()) {
                Ok(channel) => Transport::Grpc(channel),
                Err(why) => {
                    problems.error(fields.at("endpoint"), why);
                    return None;
                }
            }
        }
        other => {
            problems.error(fields.at("protocol"), format!("must be GRPC or HTTP, not \"{other}\""));
            return None;
        }
    };
    let settings = convert::Settings::read(fields)?;
    Some(Arc::new(Otlp { transport, headers, settings }))
}

/// Which codes may be tried again, by OTLP's specification.
fn grpc_error(status: &Status) -> ExportError {
    let again = matches!(
        status.code(),
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
    );
    ExportError { retry: again, why: grpc::reason(status) }
}

impl Otlp {
    fn metadata(&self) -> MetadataMap {
        let mut map = MetadataMap::new();
        for (name, value) in &self.headers {
            if let (Ok(name), Ok(value)) = (MetadataKey::from_bytes(name.as_bytes()), value.parse()) {
                map.insert(name, value);
            }
        }
        map
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        tonic::Request::from_parts(self.metadata(), tonic::Extensions::default(), message)
    }

    async fn post(&self, base: &Uri, path: &str, body: Vec<u8>) -> Result<(), ExportError> {
        let url = format!("{}/v1/{path}", base.to_string().trim_end_matches('/'));
        let url: Uri = url.parse().map_err(ExportError::fatal)?;
        let mut headers = self.headers.clone();
        headers.push(("content-type".to_owned(), "application/x-protobuf".to_owned()));
        let (status, _) =
            client::send(Method::POST, &url, &headers, body.into()).await.map_err(ExportError::retry)?;
        match status.as_u16() {
            200..=299 => Ok(()),
            429 | 502 | 503 | 504 => Err(ExportError::retry(format!("{url} answered {status}"))),
            _ => Err(ExportError::fatal(format!("{url} answered {status}"))),
        }
    }

    async fn traces(&self, message: ExportTraceServiceRequest) -> Result<(), ExportError> {
        match &self.transport {
            Transport::Grpc(channel) => {
                let sent = TraceServiceClient::new(channel.clone()).export(self.request(message)).await;
                sent.map(drop).map_err(|status| grpc_error(&status))
            }
            Transport::Http(base) => self.post(base, "traces", message.encode_to_vec()).await,
        }
    }

    async fn logs(&self, message: ExportLogsServiceRequest) -> Result<(), ExportError> {
        match &self.transport {
            Transport::Grpc(channel) => {
                let sent = LogsServiceClient::new(channel.clone()).export(self.request(message)).await;
                sent.map(drop).map_err(|status| grpc_error(&status))
            }
            Transport::Http(base) => self.post(base, "logs", message.encode_to_vec()).await,
        }
    }

    async fn metrics(&self, message: ExportMetricsServiceRequest) -> Result<(), ExportError> {
        match &self.transport {
            Transport::Grpc(channel) => {
                let sent = MetricsServiceClient::new(channel.clone()).export(self.request(message)).await;
                sent.map(drop).map_err(|status| grpc_error(&status))
            }
            Transport::Http(base) => self.post(base, "metrics", message.encode_to_vec()).await,
        }
    }
}

impl Adapter for Otlp {
    fn queue(&self) -> Option<QueueLimits> {
        Some(QueueLimits::default())
    }

    fn export<'a>(&'a self, batch: &'a [Item]) -> BoxFuture<'a, Result<(), ExportError>> {
        Box::pin(async move {
            let Batch { traces, logs, metrics } = convert::batch(batch, &self.settings);
            // A batch that fails half-way is sent again whole: backends see spans and entries at least once. Metrics go
            // last, since sums must not be repeated.
            if let Some(traces) = traces {
                self.traces(traces).await?;
            }
            if let Some(logs) = logs {
                self.logs(logs).await?;
            }
            if let Some(metrics) = metrics {
                self.metrics(metrics).await?;
            }
            Ok(())
        })
    }
}
