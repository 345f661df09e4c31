//! `zipkin`: spans to a Zipkin server.
//!
//! In: `tracespan` instances and spans that were received as such. Out: `POST` of Zipkin v2 JSON.
//! Kept true: a trace is sampled whole or not at all. Not here: the JSON itself (`recorder::zipkin`).

use std::sync::Arc;

use http::{Method, Uri};

use super::{Adapter, AdapterKind, BoxFuture, ExportError, QueueLimits, http as client, item::Item};
use crate::{
    config::{Fields, Template},
    recorder::zipkin::ZipkinSpan,
};

pub(super) const KIND: AdapterKind = AdapterKind { name: "zipkin", templates: &[Template::TraceSpan], build };

struct Zipkin {
    url: Uri,
    /// Share of traces, as a bound on the last 32 bits of the trace id.
    most: u64,
}

fn build(fields: &Fields<'_>, _: &super::Shared) -> Option<Arc<dyn Adapter>> {
    let Some(url) = fields.text("url") else {
        let why = "is missing; for example http://zipkin.istio-system:9411/api/v2/spans";
        fields.problems().error(fields.at("url"), why);
        return None;
    };
    let probability = fields.number("sample_probability").unwrap_or(1.0).clamp(0.0, 1.0);
    match client::check_url(url) {
        // The product is between 0 and 2^32.
        Ok(url) => Some(Arc::new(Zipkin { url, most: (probability * 4_294_967_296.0) as u64 })),
        Err(why) => {
            fields.problems().error(fields.at("url"), why);
            None
        }
    }
}

impl Zipkin {
    fn samples(&self, trace_id: &str) -> bool {
        let tail = trace_id.get(trace_id.len().saturating_sub(8)..).unwrap_or_default();
        u64::from_str_radix(tail, 16).is_ok_and(|tail| tail < self.most)
    }
}

impl Adapter for Zipkin {
    fn queue(&self) -> Option<QueueLimits> {
        Some(QueueLimits::default())
    }

    fn export<'a>(&'a self, batch: &'a [Item]) -> BoxFuture<'a, Result<(), ExportError>> {
        Box::pin(async move {
            let spans: Vec<ZipkinSpan> = batch
                .iter()
                .filter_map(|item| match item {
                    Item::Span(span) if self.samples(&span.trace_id) => Some(ZipkinSpan::from(&**span)),
                    _ => None,
                })
                .collect();
            if spans.is_empty() {
                return Ok(());
            }
            let body = serde_json::to_vec(&spans).map_err(ExportError::fatal)?;
            let headers = [("content-type".to_owned(), "application/json".to_owned())];
            let (status, _) = client::send(Method::POST, &self.url, &headers, body.into())
                .await
                .map_err(ExportError::retry)?;
            if status.is_success() {
                Ok(())
            } else if status.is_server_error() || status.as_u16() == 429 {
                Err(ExportError::retry(format!("{} answered {status}", self.url)))
            } else {
                Err(ExportError::fatal(format!("{} answered {status}", self.url)))
            }
        })
    }
}
