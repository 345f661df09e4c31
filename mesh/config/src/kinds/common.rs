//! Pieces that several kinds share: string matches, ports, selectors, percentages.
//!
//! In: JSON. Out: small structs. Kept true: a string match has at most one form.
//! Not here: evaluation of a match (`mesh-traffic`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a string is compared. In YAML exactly one of `exact`, `prefix`, `regex`; `{}` asks only for presence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "StringMatchFields", into = "StringMatchFields")]
pub enum StringMatch {
    /// `{}`: any value, as long as there is one.
    #[default]
    Present,
    /// Equal, case-sensitive.
    Exact(String),
    /// Starts with this text, case-sensitive; a raw string prefix, not a path segment.
    Prefix(String),
    /// RE2 expression that must match the whole value. `*` alone is taken as presence by Istio.
    Regex(String),
}

#[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct StringMatchFields {
    exact: Option<String>,
    prefix: Option<String>,
    regex: Option<String>,
}

impl TryFrom<StringMatchFields> for StringMatch {
    type Error = &'static str;
    fn try_from(f: StringMatchFields) -> Result<Self, Self::Error> {
        match (f.exact, f.prefix, f.regex) {
            (None, None, None) => Ok(Self::Present),
            (Some(s), None, None) => Ok(Self::Exact(s)),
            (None, Some(s), None) => Ok(Self::Prefix(s)),
            (None, None, Some(s)) => Ok(Self::Regex(s)),
            _ => Err("more than one of exact, prefix and regex is set: keep one of them"),
        }
    }
}

impl From<StringMatch> for StringMatchFields {
    fn from(m: StringMatch) -> Self {
        let mut f = Self::default();
        match m {
            StringMatch::Present => {}
            StringMatch::Exact(s) => f.exact = Some(s),
            StringMatch::Prefix(s) => f.prefix = Some(s),
            StringMatch::Regex(s) => f.regex = Some(s),
        }
        f
    }
}

/// A port of a destination. `name` is Istio 1.1's form, accepted with a deprecation warning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PortSelector {
    /// Port number of the Service, 1–65535.
    pub number: Option<u32>,
    /// Port name of the Service (legacy).
    pub name: Option<String>,
}

/// A share of requests in percent, 0.0–100.0, with a resolution of 0.0001.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Percent {
    /// 0.0–100.0; absent in YAML means 0.
    pub value: f64,
}

/// Selects workloads by pod labels (`networking.istio.io` form). Empty labels select all of the namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSelector {
    /// Labels a pod must have, all of them.
    pub labels: BTreeMap<String, String>,
}

/// Selects workloads by pod labels (`security.istio.io` and `telemetry.istio.io` form).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MatchSelector {
    /// Labels a pod must have, all of them.
    pub match_labels: BTreeMap<String, String>,
}

/// Attaches a policy to named resources (Gateway, Service) instead of by labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetRef {
    /// API group, empty for core.
    pub group: String,
    /// Kind, e.g. `Service`.
    pub kind: String,
    /// Name in the policy's namespace.
    pub name: String,
    /// Namespace; only the policy's own is allowed.
    pub namespace: Option<String>,
}

/// A port a gateway, sidecar or service entry serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    /// Port number, 1–65535.
    pub number: u32,
    /// Protocol name: HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP, TLS, HTTP_PROXY; case as written.
    pub protocol: String,
    /// Unique name within the object.
    pub name: String,
    /// Port of the endpoints, if it differs (ServiceEntry; deprecated on Gateway).
    pub target_port: Option<u32>,
}

/// Headers to change, for requests and responses apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Headers {
    /// On the way to the destination.
    pub request: HeaderOperations,
    /// On the way back.
    pub response: HeaderOperations,
}

/// Changes of header fields; `set` beats `add` for the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderOperations {
    /// Replaces the field. `Host` and `:authority` rewrite the authority.
    pub set: BTreeMap<String, String>,
    /// Appends a value.
    pub add: BTreeMap<String, String>,
    /// Removes fields of these names.
    pub remove: Vec<String>,
}
