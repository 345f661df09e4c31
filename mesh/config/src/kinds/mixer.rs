//! Mixer's `config.istio.io` kinds, carried without interpretation.
//!
//! In: any document of group `config.istio.io`. Out: [`MixerObject`], kind as written and the spec as JSON.
//! Kept true: the spec is what the user wrote, nulls removed; kind names are the lower-case ones of Istio 1.1.
//! Not here: the types behind them, references and expressions (`mixer`).

use serde::{Deserialize, Serialize};

/// One object of group `config.istio.io`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MixerObject {
    /// Kind as written: `rule`, `handler`, `denier`, `QuotaSpec`, …
    pub kind: String,
    /// The document's `spec`; an empty object when the document has none.
    pub spec: serde_json::Value,
}

/// Kinds whose objects are handlers, i.e. adapters with their settings.
pub const HANDLER_KINDS: &[&str] = &[
    "handler",
    "bypass",
    "circonus",
    "cloudwatch",
    "denier",
    "dogstatsd",
    "fluentd",
    "kubernetesenv",
    "listchecker",
    "memquota",
    "noop",
    "opa",
    "otlp",
    "prometheus",
    "rbac",
    "redisquota",
    "signalfx",
    "solarwinds",
    "stackdriver",
    "statsd",
    "stdio",
    "zipkin",
    "adapter",
];

/// Kinds whose objects are instances, i.e. templates filled by expressions.
pub const INSTANCE_KINDS: &[&str] = &[
    "instance",
    "apikey",
    "authorization",
    "checknothing",
    "edge",
    "kubernetes",
    "listentry",
    "logentry",
    "metric",
    "quota",
    "reportnothing",
    "tracespan",
    "template",
];

/// The remaining kinds of the group.
pub const OTHER_MIXER_KINDS: &[&str] =
    &["rule", "attributemanifest", "QuotaSpec", "QuotaSpecBinding", "HTTPAPISpec", "HTTPAPISpecBinding"];

/// Whether a kind of group `config.istio.io` is known.
pub fn is_mixer_kind(kind: &str) -> bool {
    HANDLER_KINDS.contains(&kind) || INSTANCE_KINDS.contains(&kind) || OTHER_MIXER_KINDS.contains(&kind)
}
