//! The recorder's HTTP API and dashboard, on Zipkin's port.
//!
//! In: Zipkin v2 and OTLP/HTTP requests. Out: JSON as Zipkin answers, metrics and logs for the page at `/`.
//! Kept true: reading never changes anything; a body is at most 8 MiB. Not here: storage (`mod`), listening (`serve`).

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State},
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::json;

use super::{Query, zipkin::ZipkinSpan};
use crate::{core::Mixer, ingest};

/// Largest body of `POST /api/v2/spans`.
const MOST_BYTES: usize = 8 << 20;

/// The routes of port 9411.
pub fn router(mixer: Arc<Mixer>) -> Router {
    Router::new()
        .route("/", get(async || Html(include_str!("dashboard.html"))))
        .route("/health", get(async || Json(json!({"status": "UP"}))))
        .route("/api/v2/spans", post(take).get(span_names))
        .route("/api/v2/services", get(services))
        .route("/api/v2/traces", get(traces))
        .route("/api/v2/trace/{id}", get(trace))
        .route("/api/v2/dependencies", get(async || Json(json!([]))))
        .route("/api/metrics", get(metrics))
        .route("/api/logs", get(logs))
        .with_state(mixer.clone())
        .merge(ingest::otlp::http_router(mixer))
        .layer(DefaultBodyLimit::max(MOST_BYTES))
}

async fn take(State(mixer): State<Arc<Mixer>>, body: Bytes) -> Response {
    let spans: Vec<ZipkinSpan> = match serde_json::from_slice(&body) {
        Ok(spans) => spans,
        Err(error) => {
            return (StatusCode::BAD_REQUEST, format!("not a list of Zipkin v2 spans: {error}\n"))
                .into_response();
        }
    };
    let mut refused = None;
    for span in spans {
        match span.read() {
            Ok(span) => ingest::pass_span(&mixer, &Arc::new(span)),
            Err(why) => refused = Some(why),
        }
    }
    match refused {
        None => StatusCode::ACCEPTED.into_response(),
        Some(why) => {
            (StatusCode::BAD_REQUEST, format!("{why}; the other spans were taken\n")).into_response()
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TracesQuery {
    service_name: Option<String>,
    span_name: Option<String>,
    annotation_query: Option<String>,
    min_duration: Option<u64>,
    max_duration: Option<u64>,
    end_ts: Option<u64>,
    lookback: Option<u64>,
    limit: Option<usize>,
}

fn some(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty() && text != "all")
}

async fn traces(State(mixer): State<Arc<Mixer>>, query: axum::extract::Query<TracesQuery>) -> Response {
    let query = query.0;
    let annotations = some(query.annotation_query).unwrap_or_default();
    let query = Query {
        service: some(query.service_name),
        span: some(query.span_name),
        annotations: annotations
            .split(" and ")
            .filter(|part| !part.is_empty())
            .map(|part| part.trim().to_owned())
            .collect(),
        end_ms: query.end_ts,
        lookback_ms: query.lookback,
        min_us: query.min_duration,
        max_us: query.max_duration,
        limit: query.limit,
    };
    let traces = mixer.recorder.traces(&query);
    let json: Vec<Vec<ZipkinSpan>> =
        traces.iter().map(|trace| trace.iter().map(|span| ZipkinSpan::from(&**span)).collect()).collect();
    Json(json).into_response()
}

async fn trace(State(mixer): State<Arc<Mixer>>, Path(id): Path<String>) -> Response {
    let spans = mixer.recorder.trace(&id);
    if spans.is_empty() {
        return (StatusCode::NOT_FOUND, format!("no trace {id}\n")).into_response();
    }
    Json(spans.iter().map(|span| ZipkinSpan::from(&**span)).collect::<Vec<_>>()).into_response()
}

async fn services(State(mixer): State<Arc<Mixer>>) -> Response {
    Json(mixer.recorder.services().iter().map(ToString::to_string).collect::<Vec<_>>()).into_response()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpanNamesQuery {
    service_name: Option<String>,
}

async fn span_names(
    State(mixer): State<Arc<Mixer>>,
    query: axum::extract::Query<SpanNamesQuery>,
) -> Response {
    let names = mixer.recorder.span_names(&query.0.service_name.unwrap_or_default());
    Json(names.iter().map(ToString::to_string).collect::<Vec<_>>()).into_response()
}

/// The prometheus handlers' text, for the dashboard, which must not depend on another port.
async fn metrics(State(mixer): State<Arc<Mixer>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], mixer.shared().prometheus.text()).into_response()
}

#[derive(Deserialize)]
struct LogsQuery {
    limit: Option<usize>,
}

async fn logs(State(mixer): State<Arc<Mixer>>, query: axum::extract::Query<LogsQuery>) -> Response {
    let entries = mixer.recorder.logs(query.0.limit.unwrap_or(100).min(10_000));
    let json: Vec<_> = entries
        .iter()
        .map(|entry| {
            let fields: serde_json::Map<_, _> =
                entry.variables.iter().map(|(name, value)| (name.to_string(), value.json())).collect();
            json!({
                "instance": &*entry.instance,
                "time": entry.timestamp.to_string(),
                "severity": &*entry.severity,
                "fields": fields,
            })
        })
        .collect();
    Json(json).into_response()
}
