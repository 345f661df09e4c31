//! Zipkin v2 JSON, both ways.
//!
//! In: JSON spans, or [`Span`]s. Out: the other one.
//! Kept true: what is read is written back with the same ids, names, times and tags. Not here: HTTP (`http`).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::{
    adapters::item::Span,
    attributes::{Text, Timestamp, Value},
};

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Endpoint {
    #[serde(skip_serializing_if = "String::is_empty")]
    service_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv4: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

/// A span of Zipkin's API v2.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ZipkinSpan {
    trace_id: String,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    local_endpoint: Option<Endpoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_endpoint: Option<Endpoint>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    tags: Map<String, Json>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    shared: bool,
}

fn endpoint(name: &str) -> Option<Endpoint> {
    (!name.is_empty()).then(|| Endpoint { service_name: name.to_owned(), ..Default::default() })
}

impl From<&Span> for ZipkinSpan {
    fn from(span: &Span) -> Self {
        let mut tags: Map<String, Json> =
            span.tags.iter().map(|(name, value)| (name.to_string(), value.to_string().into())).collect();
        if span.status != 0 {
            tags.entry("http.status_code").or_insert_with(|| span.status.to_string().into());
            if span.status >= 500 {
                tags.entry("error").or_insert_with(|| "true".into());
            }
        }
        Self {
            trace_id: span.trace_id.to_string(),
            id: span.id.to_string(),
            parent_id: (!span.parent_id.is_empty()).then(|| span.parent_id.to_string()),
            kind: Some(if span.client { "CLIENT" } else { "SERVER" }.to_owned()),
            name: Some(span.name.to_string()),
            timestamp: Some(span.start.micros().max(1)),
            duration: Some(span.end.micros().saturating_sub(span.start.micros()).max(1)),
            local_endpoint: endpoint(&span.service),
            remote_endpoint: endpoint(&span.peer),
            tags,
            // A server span may carry the id of the client span it answers.
            shared: false,
        }
    }
}

impl ZipkinSpan {
    /// The span as mixer has it, or why it is none.
    pub fn read(self) -> Result<Span, String> {
        let id = |text: &str, what: &str, most: usize| {
            let hex =
                !text.is_empty() && text.len() <= most && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            if hex {
                Ok(Text::from(text.to_ascii_lowercase()))
            } else {
                Err(format!("{what} must be 1 to {most} hex digits, not {text:?}"))
            }
        };
        let pad = |text: Text| if text.len() < 16 { Text::from(format!("{text:0>16}")) } else { text };
        let start = Timestamp::from_micros(self.timestamp.unwrap_or(0));
        let nanos = i64::try_from(self.duration.unwrap_or(0)).ok().and_then(|us| us.checked_mul(1_000));
        let client = matches!(self.kind.as_deref(), Some("CLIENT" | "PRODUCER"));
        let status =
            self.tags.get("http.status_code").and_then(Json::as_str).and_then(|code| code.parse().ok());
        let tags = self.tags.into_iter().map(|(name, value)| {
            let value = match value {
                Json::String(text) => text,
                other => other.to_string(),
            };
            (Text::from(name), Value::text(value))
        });
        let service = |endpoint: Option<Endpoint>| Text::from(endpoint.unwrap_or_default().service_name);
        Ok(Span {
            trace_id: pad(id(&self.trace_id, "traceId", 32)?),
            id: pad(id(&self.id, "id", 16)?),
            parent_id: match self.parent_id.as_deref() {
                Some(parent) if !parent.is_empty() => pad(id(parent, "parentId", 16)?),
                _ => "".into(),
            },
            name: self.name.unwrap_or_default().into(),
            start,
            end: Timestamp(start.0.saturating_add(nanos.unwrap_or(i64::MAX))),
            client,
            status: status.unwrap_or(0),
            service: service(self.local_endpoint),
            peer: service(self.remote_endpoint),
            tags: tags.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_read_and_written_back() {
        let json = r#"{"traceId":"00000000000000af","id":"00000000000000b0","parentId":"00000000000000b1","kind":"CLIENT",
            "name":"get","timestamp":1500000000000000,"duration":1500,"localEndpoint":{"serviceName":"web"},
            "remoteEndpoint":{"serviceName":"reviews"},"tags":{"a":"b","http.status_code":"200"}}"#;
        let before: Json = serde_json::from_str(json).expect("JSON");
        let span = serde_json::from_str::<ZipkinSpan>(json).expect("a span").read().expect("valid");
        assert_eq!((span.status, span.client, span.end.0 - span.start.0), (200, true, 1_500_000));
        assert_eq!(serde_json::to_value(ZipkinSpan::from(&span)).expect("JSON"), before);
    }

    #[test]
    fn an_id_that_is_no_hex_is_refused() {
        let span = ZipkinSpan { trace_id: "xyz".into(), id: "1".into(), ..Default::default() };
        assert_eq!(span.read(), Err("traceId must be 1 to 32 hex digits, not \"xyz\"".to_owned()));
    }
}
