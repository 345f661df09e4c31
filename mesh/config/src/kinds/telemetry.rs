//! Telemetry: which traces, metrics and access logs a workload produces.
//!
//! In: the `spec` of `telemetry.istio.io` Telemetry, any version. Out: [`Telemetry`].
//! Kept true: sections stay lists, since the closest scope wins per section.
//! Not here: providers (`MeshConfig::extension_providers`), evaluation of filters (`mixer`).

use super::common::{MatchSelector, TargetRef};
use super::security::ProviderRef;
use crate::duration::GoDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Telemetry settings of a scope.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Telemetry {
    /// Workloads; absent: the namespace, or the mesh in the root namespace.
    pub selector: Option<MatchSelector>,
    /// Resources it is attached to instead of `selector`.
    pub target_refs: Vec<TargetRef>,
    /// Resource it is attached to (older single form).
    pub target_ref: Option<TargetRef>,
    /// Tracing.
    pub tracing: Vec<Tracing>,
    /// Metrics.
    pub metrics: Vec<Metrics>,
    /// Access logs.
    pub access_logging: Vec<AccessLogging>,
}

/// Which side of a request a setting is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WorkloadMode {
    /// Both.
    #[default]
    ClientAndServer,
    /// Outbound and gateways.
    Client,
    /// Inbound.
    Server,
}

/// Tracing settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Tracing {
    /// Which side.
    pub r#match: Option<ModeMatch>,
    /// Providers; empty: inherited.
    pub providers: Vec<ProviderRef>,
    /// Share of requests sampled, 0.0–100.0; absent: inherited.
    pub random_sampling_percentage: Option<f64>,
    /// Record no spans, but pass headers on.
    pub disable_span_reporting: Option<bool>,
    /// Extra span tags.
    pub custom_tags: BTreeMap<String, CustomTag>,
    /// Match x-request-id sampling (T3).
    pub use_request_id_for_trace_sampling: Option<bool>,
    /// Add Istio's standard tags.
    pub enable_istio_tags: Option<bool>,
    /// Legacy name of `disableSpanReporting: false`'s context propagation switch (T3).
    pub disable_context_propagation: Option<bool>,
}

/// Which side a section is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ModeMatch {
    /// Side.
    pub mode: WorkloadMode,
}

/// A span tag; one of its forms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CustomTag {
    /// A constant.
    pub literal: Option<TagLiteral>,
    /// A variable of the proxy's environment.
    pub environment: Option<TagSource>,
    /// A request header.
    pub header: Option<TagSource>,
    /// A formatter expression (T3).
    pub formatter: Option<TagLiteral>,
}

/// A constant tag value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TagLiteral {
    /// Value.
    pub value: String,
}

/// A named source of a tag value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TagSource {
    /// Name.
    pub name: String,
    /// Value when the source has none.
    pub default_value: Option<String>,
}

/// Metric settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Metrics {
    /// Providers; empty: inherited.
    pub providers: Vec<ProviderRef>,
    /// Changes of the standard metrics.
    pub overrides: Vec<MetricOverride>,
    /// How often metrics are reported (T3).
    pub reporting_interval: Option<GoDuration>,
}

/// A change of one or all standard metrics.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MetricOverride {
    /// Which metric and side; absent: all.
    pub r#match: Option<MetricMatch>,
    /// Turn it off.
    pub disabled: Option<bool>,
    /// Tag changes by tag name.
    pub tag_overrides: BTreeMap<String, TagOverride>,
}

/// Which metric a change is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MetricMatch {
    /// Standard name, e.g. `REQUEST_COUNT`, or `ALL_METRICS`.
    pub metric: Option<String>,
    /// Name of a metric that is not standard.
    pub custom_metric: Option<String>,
    /// Side.
    pub mode: WorkloadMode,
}

/// A change of one tag.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TagOverride {
    /// What to do with the tag.
    pub operation: TagOperation,
    /// New value, an expression over attributes.
    pub value: Option<String>,
}

/// What to do with a tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TagOperation {
    /// Add or replace.
    #[default]
    Upsert,
    /// Leave out.
    Remove,
}

/// Access-log settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AccessLogging {
    /// Which side.
    pub r#match: Option<ModeMatch>,
    /// Providers; empty: inherited.
    pub providers: Vec<ProviderRef>,
    /// Turn it off.
    pub disabled: Option<bool>,
    /// Which requests are logged.
    pub filter: Option<LogFilter>,
}

/// Which requests are logged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LogFilter {
    /// CEL expression.
    pub expression: String,
}
