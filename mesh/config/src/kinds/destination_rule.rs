//! DestinationRule: subsets of a host, and how its endpoints are used.
//!
//! In: the `spec` of `networking.istio.io` DestinationRule, any version. Out: [`DestinationRule`].
//! Kept true: absent blocks stay absent, since blocks override each other whole, never field by field.
//! Not here: lookup and merging of rules (`pilot`), checks (`validate::destination_rule`).

use super::common::MatchSelector;
use super::rare::{ProxyProtocol, RetryBudget, Tunnel, Warmup};
use crate::duration::GoDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Policy for traffic to one host, after routing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DestinationRule {
    /// Host; short names resolve in the object's namespace, `*.x` is a wildcard.
    pub host: String,
    /// Policy for all subsets that have none of their own.
    pub traffic_policy: Option<TrafficPolicy>,
    /// Named groups of endpoints.
    pub subsets: Vec<Subset>,
    /// Namespaces that see this object: `*`, `.` or names. Empty: the mesh's default (`*`).
    pub export_to: Vec<String>,
    /// Client workloads it is for (`matchLabels`, unlike in the older networking kinds); absent: all.
    pub workload_selector: Option<MatchSelector>,
}

/// A named group of endpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Subset {
    /// Name, unique in the rule.
    pub name: String,
    /// Labels a pod must have to belong to it.
    pub labels: BTreeMap<String, String>,
    /// Overrides the rule's policy block by block.
    pub traffic_policy: Option<TrafficPolicy>,
}

/// How endpoints are used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicy {
    /// Load balancing.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits per client proxy.
    pub connection_pool: Option<ConnectionPool>,
    /// Ejection of failing endpoints.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards the endpoints; absent: automatic mutual TLS.
    pub tls: Option<ClientTls>,
    /// Policies of single ports; each replaces all blocks.
    pub port_level_settings: Vec<PortTrafficPolicy>,
    /// Tunnelling over CONNECT (T3).
    pub tunnel: Option<Tunnel>,
    /// PROXY protocol towards the endpoints (T3).
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Retry budget (T3).
    pub retry_budget: Option<RetryBudget>,
}

/// A policy for one port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PortTrafficPolicy {
    /// Which port.
    pub port: super::common::PortSelector,
    /// Load balancing.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits per client proxy.
    pub connection_pool: Option<ConnectionPool>,
    /// Ejection of failing endpoints.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS towards the endpoints.
    pub tls: Option<ClientTls>,
}

/// Load balancing: `simple` or `consistentHash`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancer {
    /// Algorithm; absent: LEAST_REQUEST.
    pub simple: Option<SimpleLb>,
    /// Hashing on a part of the request; excludes `simple`.
    pub consistent_hash: Option<ConsistentHash>,
    /// Locality preferences.
    pub locality_lb_setting: Option<LocalityLb>,
    /// Slow start of new endpoints.
    pub warmup: Option<Warmup>,
    /// Slow start of new endpoints (legacy form of `warmup`).
    pub warmup_duration_secs: Option<GoDuration>,
    /// Zone-aware routing (T3).
    pub zone_aware_lb_setting: Option<serde_json::Value>,
}

/// Simple load-balancing algorithms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SimpleLb {
    /// The default (LEAST_REQUEST).
    Unspecified,
    /// Of two random endpoints, the one with fewer requests in flight.
    LeastRequest,
    /// Legacy name of LEAST_REQUEST.
    LeastConn,
    /// In turn.
    RoundRobin,
    /// At random.
    Random,
    /// To the address the client asked for.
    Passthrough,
}

/// Hash-based load balancing: one key source, one table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsistentHash {
    /// Hash this request header.
    pub http_header_name: Option<String>,
    /// Hash this cookie; made if absent.
    pub http_cookie: Option<HttpCookie>,
    /// Hash the client's address.
    pub use_source_ip: Option<bool>,
    /// Hash this query parameter.
    pub http_query_parameter_name: Option<String>,
    /// Ring-hash table (default).
    pub ring_hash: Option<RingHash>,
    /// Maglev table.
    pub maglev: Option<Maglev>,
    /// Smallest ring (legacy form of `ringHash.minimumRingSize`); default 1024.
    pub minimum_ring_size: Option<u64>,
}

/// A session cookie.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpCookie {
    /// Cookie name.
    pub name: String,
    /// Cookie path.
    pub path: Option<String>,
    /// Life time; `0s`: session cookie.
    pub ttl: Option<GoDuration>,
    /// Extra cookie attributes.
    pub attributes: Vec<CookieAttribute>,
}

/// A cookie attribute such as `SameSite`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CookieAttribute {
    /// Attribute name.
    pub name: String,
    /// Attribute value.
    pub value: String,
}

/// Ring-hash settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RingHash {
    /// Smallest ring; default 1024.
    pub minimum_ring_size: Option<u64>,
}

/// Maglev settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Maglev {
    /// Table size, a prime; default 65537.
    pub table_size: Option<u64>,
}

/// Locality preferences.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LocalityLb {
    /// Explicit shares between localities; excludes `failover`.
    pub distribute: Vec<LocalityDistribute>,
    /// Where traffic goes when a region fails.
    pub failover: Vec<LocalityFailover>,
    /// Labels in order of preference.
    pub failover_priority: Vec<String>,
    /// Whether it is on; absent: the mesh's default.
    pub enabled: Option<bool>,
}

/// Shares of traffic from one locality.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LocalityDistribute {
    /// Client locality, `region/zone/subzone` with `*`.
    pub from: String,
    /// Share per target locality; sums to 100.
    pub to: BTreeMap<String, u32>,
}

/// Failover from one region to another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LocalityFailover {
    /// Failing region.
    pub from: String,
    /// Region that takes over.
    pub to: String,
}

/// Limits per client proxy; 0 or absent: unlimited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionPool {
    /// For all connections.
    pub tcp: Option<TcpPool>,
    /// For HTTP.
    pub http: Option<HttpPool>,
}

/// Connection limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpPool {
    /// Connections per host; 0 or absent: unlimited.
    pub max_connections: Option<i32>,
    /// Connect deadline; default 10s.
    pub connect_timeout: Option<GoDuration>,
    /// TCP keepalive.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Longest life of a connection; absent: unlimited.
    pub max_connection_duration: Option<GoDuration>,
    /// Idle time after which a connection closes; default 1h, `0s` never.
    pub idle_timeout: Option<GoDuration>,
}

/// TCP keepalive; absent fields take the system's values.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpKeepalive {
    /// Unanswered probes before the connection is dead.
    pub probes: Option<u32>,
    /// Idle time before the first probe.
    pub time: Option<GoDuration>,
    /// Time between probes.
    pub interval: Option<GoDuration>,
}

/// HTTP limits; 0 or absent: unlimited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpPool {
    /// Requests waiting for a connection.
    pub http1_max_pending_requests: Option<i32>,
    /// Requests in flight.
    pub http2_max_requests: Option<i32>,
    /// Requests on one connection before it closes; 1 turns keep-alive off.
    pub max_requests_per_connection: Option<i32>,
    /// Retries in flight.
    pub max_retries: Option<i32>,
    /// Idle time after which a connection closes; default 1h.
    pub idle_timeout: Option<GoDuration>,
    /// Whether HTTP/1.1 is upgraded to HTTP/2 on the way.
    pub h2_upgrade_policy: Option<H2Upgrade>,
    /// Keep the client's protocol towards the endpoint.
    pub use_client_protocol: Option<bool>,
    /// Streams on one HTTP/2 connection.
    pub max_concurrent_streams: Option<i32>,
    /// HTTP/2 keepalive (T3).
    pub http2_keep_alive: Option<serde_json::Value>,
}

/// Whether connections are upgraded to HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum H2Upgrade {
    /// As the mesh says.
    Default,
    /// Never.
    DoNotUpgrade,
    /// Always.
    Upgrade,
}

/// Ejection of failing endpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OutlierDetection {
    /// Legacy: consecutive *gateway* errors (502, 503, 504 and connect failures); 5xx counting is then off.
    pub consecutive_errors: Option<i32>,
    /// Consecutive 5xx; default 5, 0 turns it off.
    pub consecutive_5xx_errors: Option<u32>,
    /// Consecutive gateway errors; default off.
    pub consecutive_gateway_errors: Option<u32>,
    /// Count local failures apart.
    pub split_external_local_origin_errors: Option<bool>,
    /// Consecutive local failures, when split; default 5.
    pub consecutive_local_origin_failures: Option<u32>,
    /// Sweep interval; default 10s.
    pub interval: Option<GoDuration>,
    /// First ejection time, times the number of ejections; default 30s.
    pub base_ejection_time: Option<GoDuration>,
    /// Most endpoints ejected at once, in percent; default 10.
    pub max_ejection_percent: Option<i32>,
    /// Below this share of healthy endpoints ejection is ignored, in percent; default 0.
    pub min_health_percent: Option<i32>,
    /// Status codes that count as errors (T3).
    pub outlier_detection_http_error_codes: Option<serde_json::Value>,
}

/// TLS towards an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientTls {
    /// Mode; absent: DISABLE.
    pub mode: ClientTlsMode,
    /// Certificate chain file (MUTUAL).
    pub client_certificate: Option<String>,
    /// Key file (MUTUAL).
    pub private_key: Option<String>,
    /// CA bundle file; absent: the system's roots.
    pub ca_certificates: Option<String>,
    /// Secret with key, chain and CA; gateways and selected workloads only.
    pub credential_name: Option<String>,
    /// Names of which the server's certificate must have one.
    pub subject_alt_names: Vec<String>,
    /// Server name to send.
    pub sni: Option<String>,
    /// Do not check the server's certificate.
    pub insecure_skip_verify: Option<bool>,
    /// Revocation list file (T3).
    pub ca_crl: Option<String>,
}

/// TLS mode of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ClientTlsMode {
    /// Plaintext.
    #[default]
    Disable,
    /// Server certificate only.
    Simple,
    /// Both sides, with the files or secret given.
    Mutual,
    /// Both sides, with the mesh's own certificates.
    IstioMutual,
}
