//! VirtualService: which requests go where, and what happens on the way.
//!
//! In: the `spec` of `networking.istio.io` VirtualService, any version. Out: [`VirtualService`].
//! Kept true: lists keep file order, since the first matching route wins.
//! Not here: host resolution and conflicts between services (`pilot`), checks (`validate::virtual_service`).

use super::common::{HeaderOperations, Headers, Percent, PortSelector, StringMatch};
use crate::duration::GoDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Routing rules for a set of hosts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualService {
    /// Hosts: short names resolve in the object's namespace; `*` and `*.x` only make sense at gateways.
    pub hosts: Vec<String>,
    /// Gateways (`name`, `ns/name`) and the reserved word `mesh`. Empty means `[mesh]`.
    pub gateways: Vec<String>,
    /// HTTP routes; the first that matches answers.
    pub http: Vec<HttpRoute>,
    /// TLS routes by SNI, for passthrough traffic.
    pub tls: Vec<TlsRoute>,
    /// TCP routes, decided per connection.
    pub tcp: Vec<TcpRoute>,
    /// Namespaces that see this object: `*`, `.`, `~` or names. Empty: the mesh's default (`*`).
    pub export_to: Vec<String>,
}

/// One HTTP rule: conditions, then exactly one of route, redirect, direct response or delegate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRoute {
    /// Route name for logs and metrics.
    pub name: Option<String>,
    /// Alternatives; one must match. Empty matches every request.
    pub r#match: Vec<HttpMatch>,
    /// Weighted destinations.
    pub route: Vec<HttpRouteDestination>,
    /// Answer with a redirect.
    pub redirect: Option<Redirect>,
    /// Answer with a fixed response.
    pub direct_response: Option<DirectResponse>,
    /// Take the rules of another VirtualService (T3).
    pub delegate: Option<Delegate>,
    /// Change path or authority before forwarding.
    pub rewrite: Option<Rewrite>,
    /// Whole-request deadline; absent or `0s`: none.
    pub timeout: Option<GoDuration>,
    /// Retry policy; absent: the mesh's default; `attempts: 0` or `{}`: none.
    pub retries: Option<Retries>,
    /// Injected faults.
    pub fault: Option<Fault>,
    /// Copy requests to one more destination.
    pub mirror: Option<Destination>,
    /// Share of requests mirrored to `mirror`; absent: all.
    pub mirror_percentage: Option<Percent>,
    /// Share in whole percent (legacy form of `mirrorPercentage`).
    pub mirror_percent: Option<u32>,
    /// Copies to several destinations.
    pub mirrors: Vec<Mirror>,
    /// Cross-origin policy.
    pub cors_policy: Option<CorsPolicy>,
    /// Header changes for all destinations of the rule.
    pub headers: Option<Headers>,
    /// Legacy, always on now.
    pub websocket_upgrade: Option<bool>,
    /// Legacy form of `headers.request.add`.
    pub append_headers: BTreeMap<String, String>,
    /// Legacy form of `headers.request.add`.
    pub append_request_headers: BTreeMap<String, String>,
    /// Legacy form of `headers.request.remove`.
    pub remove_request_headers: Vec<String>,
    /// Legacy form of `headers.response.add`.
    pub append_response_headers: BTreeMap<String, String>,
    /// Legacy form of `headers.response.remove`.
    pub remove_response_headers: Vec<String>,
}

impl HttpRoute {
    /// Header changes of the rule with the legacy fields folded in.
    pub fn header_operations(&self) -> Headers {
        let mut ops = self.headers.clone().unwrap_or_default();
        fold(&mut ops.request, &self.append_headers, &[]);
        fold(&mut ops.request, &self.append_request_headers, &self.remove_request_headers);
        fold(&mut ops.response, &self.append_response_headers, &self.remove_response_headers);
        ops
    }

    /// All mirrors, the single legacy one first, each with its share in percent.
    pub fn all_mirrors(&self) -> Vec<(Destination, f64)> {
        let single = self.mirror.clone().map(|to| {
            let legacy = self.mirror_percent.map(f64::from);
            (to, self.mirror_percentage.map(|p| p.value).or(legacy).unwrap_or(100.0))
        });
        let many = self
            .mirrors
            .iter()
            .filter_map(|m| m.destination.clone().map(|to| (to, m.percentage.map_or(100.0, |p| p.value))));
        single.into_iter().chain(many).collect()
    }
}

fn fold(ops: &mut HeaderOperations, add: &BTreeMap<String, String>, remove: &[String]) {
    for (name, value) in add {
        ops.add.entry(name.clone()).or_insert_with(|| value.clone());
    }
    ops.remove.extend(remove.iter().cloned());
}

/// Conditions of an HTTP rule; all must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpMatch {
    /// Name of this condition, joined to the route's name in logs.
    pub name: Option<String>,
    /// Path without query.
    pub uri: Option<StringMatch>,
    /// `http` or `https`.
    pub scheme: Option<StringMatch>,
    /// Request method.
    pub method: Option<StringMatch>,
    /// Host with port as sent.
    pub authority: Option<StringMatch>,
    /// Header fields; names are compared without case, values with case.
    pub headers: BTreeMap<String, StringMatch>,
    /// Header fields that must not match; an absent field passes.
    pub without_headers: BTreeMap<String, StringMatch>,
    /// Query parameters.
    pub query_params: BTreeMap<String, StringMatch>,
    /// Port of the service addressed.
    pub port: Option<u32>,
    /// Labels of the client's pod; ignored when `gateways` is set.
    pub source_labels: BTreeMap<String, String>,
    /// Namespace of the client's pod.
    pub source_namespace: Option<String>,
    /// Gateways this condition is for; empty: those of the object.
    pub gateways: Vec<String>,
    /// Compare `uri` (exact and prefix) without case.
    pub ignore_uri_case: Option<bool>,
    /// Prefix of the metric names for this route (T3).
    pub stat_prefix: Option<String>,
}

/// A place to send requests: a host, and optionally one of its subsets and ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Destination {
    /// Service host; short names resolve in the object's namespace.
    pub host: String,
    /// Subset of the host's DestinationRule.
    pub subset: Option<String>,
    /// Port; absent: the service's only port, else the port the request came in on.
    pub port: Option<PortSelector>,
}

/// One arm of a weighted HTTP route.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteDestination {
    /// Where to.
    pub destination: Destination,
    /// Relative share; ignored for a single destination; 0 drops the arm.
    pub weight: Option<i32>,
    /// Header changes for this arm.
    pub headers: Option<Headers>,
    /// Legacy form of `headers.request.add`.
    pub append_request_headers: BTreeMap<String, String>,
    /// Legacy form of `headers.request.remove`.
    pub remove_request_headers: Vec<String>,
    /// Legacy form of `headers.response.add`.
    pub append_response_headers: BTreeMap<String, String>,
    /// Legacy form of `headers.response.remove`.
    pub remove_response_headers: Vec<String>,
}

impl HttpRouteDestination {
    /// Header changes of the arm with the legacy fields folded in.
    pub fn header_operations(&self) -> Headers {
        let mut ops = self.headers.clone().unwrap_or_default();
        fold(&mut ops.request, &self.append_request_headers, &self.remove_request_headers);
        fold(&mut ops.response, &self.append_response_headers, &self.remove_response_headers);
        ops
    }
}

/// A redirect answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Redirect {
    /// Whole new path; excludes `prefixRewrite`.
    pub uri: Option<String>,
    /// Replaces the matched prefix; `%PREFIX()%` of Istio's uri form.
    pub prefix_rewrite: Option<String>,
    /// New authority.
    pub authority: Option<String>,
    /// New port; excludes `derivePort`.
    pub port: Option<u32>,
    /// Where a port comes from when none is given.
    pub derive_port: Option<RedirectPort>,
    /// New scheme.
    pub scheme: Option<String>,
    /// 301 (default), 302, 303, 307 or 308.
    pub redirect_code: Option<u32>,
}

/// Where a redirect takes its port from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RedirectPort {
    /// The default port of the new scheme.
    FromProtocolDefault,
    /// The port the request came in on.
    FromRequestPort,
}

/// A fixed answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DirectResponse {
    /// Status code, 200–599.
    pub status: u32,
    /// Body; at most 1 MiB.
    pub body: Option<HttpBody>,
}

/// A body given as text or as base64 bytes; not both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpBody {
    /// Body as text.
    pub string: Option<String>,
    /// Body as standard base64.
    pub bytes: Option<String>,
}

/// A reference to another VirtualService.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Delegate {
    /// Name.
    pub name: String,
    /// Namespace; absent: the object's own.
    pub namespace: Option<String>,
}

/// Changes of path and authority before forwarding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Rewrite {
    /// Replaces the path, or only the matched prefix when the match was a prefix.
    pub uri: Option<String>,
    /// Replaces the authority.
    pub authority: Option<String>,
    /// Replaces parts of the path by regular expression; excludes `uri`.
    pub uri_regex_rewrite: Option<RegexRewrite>,
}

/// A regular-expression rewrite.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RegexRewrite {
    /// RE2 expression.
    pub r#match: String,
    /// Replacement; `\1` refers to a group.
    pub rewrite: String,
}

/// Retry policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Retries {
    /// Retries after the first try; 0 or absent: none.
    pub attempts: Option<i32>,
    /// Deadline of each try; absent: the route's timeout.
    pub per_try_timeout: Option<GoDuration>,
    /// Comma-separated conditions and status codes; absent: the mesh's default set.
    pub retry_on: Option<String>,
    /// Whether retries may go to other localities.
    pub retry_remote_localities: Option<bool>,
    /// Whether hosts already tried are skipped (default true).
    pub retry_ignore_previous_hosts: Option<bool>,
    /// Base interval between tries (default 25ms).
    pub backoff: Option<GoDuration>,
}

/// Injected faults; delay first, then abort.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Fault {
    /// Wait before forwarding.
    pub delay: Option<Delay>,
    /// Answer with an error instead of forwarding.
    pub abort: Option<Abort>,
}

/// An injected delay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Delay {
    /// How long, at least 1ms.
    pub fixed_delay: Option<GoDuration>,
    /// Not supported anywhere; reported.
    pub exponential_delay: Option<GoDuration>,
    /// Share of requests; beats `percent`.
    pub percentage: Option<Percent>,
    /// Share in whole percent (legacy).
    pub percent: Option<i32>,
}

/// An injected error answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Abort {
    /// HTTP status, 200–599.
    pub http_status: Option<i32>,
    /// gRPC status as a name (`UNAVAILABLE`) or a number in text.
    pub grpc_status: Option<String>,
    /// Not supported anywhere; reported.
    pub http2_error: Option<String>,
    /// Share of requests; beats `percent`.
    pub percentage: Option<Percent>,
    /// Share in whole percent (removed from Istio, in force here).
    pub percent: Option<i32>,
}

impl Delay {
    /// Share of requests in percent: `percentage`, else `percent`, else 0.
    pub fn share(&self) -> f64 {
        share(self.percentage, self.percent)
    }
}

impl Abort {
    /// Share of requests in percent: `percentage`, else `percent`, else 0.
    pub fn share(&self) -> f64 {
        share(self.percentage, self.percent)
    }
}

fn share(percentage: Option<Percent>, percent: Option<i32>) -> f64 {
    percentage.map_or_else(|| percent.map_or(0.0, f64::from), |p| p.value)
}

/// One of several mirror destinations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Mirror {
    /// Where copies go.
    pub destination: Option<Destination>,
    /// Share of requests; absent: all.
    pub percentage: Option<Percent>,
}

/// Cross-origin resource sharing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CorsPolicy {
    /// Origins allowed.
    pub allow_origins: Vec<StringMatch>,
    /// Origins allowed, exact (legacy).
    pub allow_origin: Vec<String>,
    /// Methods allowed.
    pub allow_methods: Vec<String>,
    /// Request headers allowed.
    pub allow_headers: Vec<String>,
    /// Response headers shown to the page.
    pub expose_headers: Vec<String>,
    /// How long a preflight answer may be kept.
    pub max_age: Option<GoDuration>,
    /// Whether credentials may be sent.
    pub allow_credentials: Option<bool>,
    /// What happens to preflights of other origins; absent: FORWARD.
    pub unmatched_preflights: Option<UnmatchedPreflights>,
}

impl CorsPolicy {
    /// Origins allowed, the legacy exact ones included.
    pub fn origins(&self) -> Vec<StringMatch> {
        let legacy = self.allow_origin.iter().map(|o| match o.as_str() {
            "*" => StringMatch::Regex(".*".to_owned()),
            _ => StringMatch::Exact(o.clone()),
        });
        self.allow_origins.iter().cloned().chain(legacy).collect()
    }
}

/// What happens to a preflight request that no allowed origin matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum UnmatchedPreflights {
    /// The default (FORWARD).
    Unspecified,
    /// Sent to the destination.
    Forward,
    /// Answered by the proxy without CORS headers.
    Ignore,
}

/// One TLS rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsRoute {
    /// Alternatives; one must match.
    pub r#match: Vec<TlsMatch>,
    /// Weighted destinations.
    pub route: Vec<RouteDestination>,
}

/// Conditions of a TLS rule; all must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsMatch {
    /// Server names; each must fall under one of the object's hosts.
    pub sni_hosts: Vec<String>,
    /// Destination CIDRs.
    pub destination_subnets: Vec<String>,
    /// Destination port.
    pub port: Option<u32>,
    /// Labels of the client's pod.
    pub source_labels: BTreeMap<String, String>,
    /// Namespace of the client's pod.
    pub source_namespace: Option<String>,
    /// Gateways this condition is for; empty: those of the object.
    pub gateways: Vec<String>,
    /// Client CIDR (legacy, not honoured).
    pub source_subnet: Option<String>,
}

/// One TCP rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpRoute {
    /// Alternatives; one must match. Empty matches every connection.
    pub r#match: Vec<TcpMatch>,
    /// Weighted destinations.
    pub route: Vec<RouteDestination>,
}

/// Conditions of a TCP rule; all must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpMatch {
    /// Destination CIDRs.
    pub destination_subnets: Vec<String>,
    /// Destination port.
    pub port: Option<u32>,
    /// Client CIDR (legacy, not honoured).
    pub source_subnet: Option<String>,
    /// Labels of the client's pod.
    pub source_labels: BTreeMap<String, String>,
    /// Namespace of the client's pod.
    pub source_namespace: Option<String>,
    /// Gateways this condition is for; empty: those of the object.
    pub gateways: Vec<String>,
}

/// One arm of a weighted TLS or TCP route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteDestination {
    /// Where to.
    pub destination: Destination,
    /// Relative share; ignored for a single destination.
    pub weight: Option<i32>,
}
