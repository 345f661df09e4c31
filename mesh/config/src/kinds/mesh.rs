//! Mesh config: the settings of the whole mesh, from ConfigMap `istio` in the root namespace.
//!
//! In: YAML under the key `mesh`. Out: [`MeshConfig`] with Istio's defaults filled in.
//! Kept true: every field has the default Istio documents; absent YAML gives `MeshConfig::default()`.
//! Not here: per-pod overrides (`proxy.istio.io/config`; the injector merges them).

use super::destination_rule::LocalityLb;
use super::sidecar::{OutboundMode, OutboundTrafficPolicy};
use super::virtual_service::Retries;
use crate::duration::GoDuration;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The namespace mesh config is read from and mesh-wide objects live in, unless it says otherwise.
pub const ROOT_NAMESPACE: &str = "istio-system";
/// Name of the ConfigMap with the mesh config.
pub const MESH_CONFIG_MAP: &str = "istio";
/// Key of the ConfigMap with the mesh config.
pub const MESH_CONFIG_KEY: &str = "mesh";

/// Settings of the whole mesh.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshConfig {
    /// Namespace of mesh-wide objects; default `istio-system`.
    pub root_namespace: String,
    /// SPIFFE trust domain; default `cluster.local`.
    pub trust_domain: String,
    /// Further trust domains whose identities count as ours.
    pub trust_domain_aliases: Vec<String>,
    /// Unknown destinations; default ALLOW_ANY.
    pub outbound_traffic_policy: OutboundTrafficPolicy,
    /// Unknown inbound ports; default as Istio's (pass through).
    pub inbound_traffic_policy: Option<serde_json::Value>,
    /// Where access logs go, e.g. `/dev/stdout`; empty (default): off.
    pub access_log_file: String,
    /// Format string or JSON template; empty: Istio's default.
    pub access_log_format: String,
    /// TEXT (default) or JSON.
    pub access_log_encoding: AccessLogEncoding,
    /// Also send access logs to an Envoy access log service.
    pub enable_envoy_access_log_service: bool,
    /// Whether proxies record spans; default true.
    pub enable_tracing: bool,
    /// Settings of every proxy.
    pub default_config: ProxyConfig,
    /// Retry policy of routes that have none; absent: 2 retries on
    /// `connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes` (503).
    pub default_http_retry_policy: Option<Retries>,
    /// How long the protocol of an undeclared port is sniffed; Istio's `0s` waits forever, so 0 means our bound.
    pub protocol_detection_timeout: Option<GoDuration>,
    /// Whether clients use mutual TLS where the endpoint can; default true.
    pub enable_auto_mtls: bool,
    /// Whether requests pass when mixer's policy check cannot be reached; default false.
    pub policy_check_fail_open: bool,
    /// Whether policy checks are off; absent: on exactly where a CHECK rule exists.
    pub disable_policy_checks: Option<bool>,
    /// Port of an explicit HTTP proxy on every sidecar; 0 (default): none.
    pub proxy_http_port: u32,
    /// Port traffic is captured on; default 15001.
    pub proxy_listen_port: u32,
    /// Port inbound traffic is captured on; default 15006.
    pub proxy_inbound_listen_port: u32,
    /// Connect deadline of clusters without one; default 10s.
    pub connect_timeout: GoDuration,
    /// TCP keepalive of clusters without one.
    pub tcp_keepalive: Option<super::destination_rule::TcpKeepalive>,
    /// `exportTo` of services without one; empty: `*`.
    pub default_service_export_to: Vec<String>,
    /// `exportTo` of VirtualServices without one; empty: `*`.
    pub default_virtual_service_export_to: Vec<String>,
    /// `exportTo` of DestinationRules without one; empty: `*`.
    pub default_destination_rule_export_to: Vec<String>,
    /// Locality preferences of rules without any.
    pub locality_lb_setting: Option<LocalityLb>,
    /// Which Ingress objects are served: DEFAULT, STRICT or OFF.
    pub ingress_controller_mode: Option<String>,
    /// Class of Ingress objects served; default `istio`.
    pub ingress_class: String,
    /// Service of the gateway that serves Ingress objects; default `istio-ingressgateway`.
    pub ingress_service: String,
    /// Label of that gateway's pods; default `ingressgateway`.
    pub ingress_selector: String,
    /// Providers that Telemetry and AuthorizationPolicy may name.
    pub extension_providers: Vec<serde_json::Value>,
    /// Providers used when Telemetry names none.
    pub default_providers: Option<serde_json::Value>,
    /// Upgrade HTTP/1.1 to HTTP/2 between sidecars; default DO_NOT_UPGRADE.
    pub h2_upgrade_policy: Option<super::destination_rule::H2Upgrade>,
    /// How paths are normalised before routing and authorization.
    pub path_normalization: Option<PathNormalization>,
    /// Whether the app's own metrics are merged into the proxy's.
    pub enable_prometheus_merge: Option<bool>,
    /// TLS settings between sidecars (versions, ciphers).
    #[serde(rename = "meshMTLS")]
    pub mesh_mtls: Option<serde_json::Value>,
    /// Mixer's policy server (1.1 form), `host:port`; absent: the Service `mixer` of the root namespace.
    pub mixer_check_server: Option<String>,
    /// Mixer's telemetry server (1.1 form), `host:port`.
    pub mixer_report_server: Option<String>,
    /// Whether reports to mixer are off (1.1 form).
    pub disable_mixer_http_reports: Option<bool>,
    /// 1.1 form of the workload credential socket; ignored.
    pub sds_uds_path: Option<String>,
    /// 1.1 form; ignored.
    pub sds_refresh_delay: Option<GoDuration>,
    /// 1.1 form; ignored.
    pub enable_client_side_policy_check: Option<bool>,
    /// 1.1 form of the default mTLS setting: NONE or MUTUAL_TLS; ignored.
    pub auth_policy: Option<String>,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            root_namespace: ROOT_NAMESPACE.to_owned(),
            trust_domain: "cluster.local".to_owned(),
            trust_domain_aliases: Vec::new(),
            outbound_traffic_policy: OutboundTrafficPolicy {
                mode: OutboundMode::AllowAny,
                egress_proxy: None,
            },
            inbound_traffic_policy: None,
            access_log_file: String::new(),
            access_log_format: String::new(),
            access_log_encoding: AccessLogEncoding::Text,
            enable_envoy_access_log_service: false,
            enable_tracing: true,
            default_config: ProxyConfig::default(),
            default_http_retry_policy: None,
            protocol_detection_timeout: None,
            enable_auto_mtls: true,
            policy_check_fail_open: false,
            disable_policy_checks: None,
            proxy_http_port: 0,
            proxy_listen_port: 15001,
            proxy_inbound_listen_port: 15006,
            connect_timeout: GoDuration::from_secs(10),
            tcp_keepalive: None,
            default_service_export_to: Vec::new(),
            default_virtual_service_export_to: Vec::new(),
            default_destination_rule_export_to: Vec::new(),
            locality_lb_setting: None,
            ingress_controller_mode: None,
            ingress_class: "istio".to_owned(),
            ingress_service: "istio-ingressgateway".to_owned(),
            ingress_selector: "ingressgateway".to_owned(),
            extension_providers: Vec::new(),
            default_providers: None,
            h2_upgrade_policy: None,
            path_normalization: None,
            enable_prometheus_merge: None,
            mesh_mtls: None,
            mixer_check_server: None,
            mixer_report_server: None,
            disable_mixer_http_reports: None,
            sds_uds_path: None,
            sds_refresh_delay: None,
            enable_client_side_policy_check: None,
            auth_policy: None,
        }
    }
}

/// Form of access-log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AccessLogEncoding {
    /// One text line per request.
    #[default]
    Text,
    /// One JSON object per request.
    Json,
}

/// How request paths are normalised before routing and authorization.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathNormalization {
    /// Which steps.
    pub normalization: NormalizationType,
}

/// Steps of path normalisation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum NormalizationType {
    /// BASE.
    #[default]
    Default,
    /// None.
    None,
    /// Dot segments and backslashes.
    Base,
    /// BASE and runs of slashes.
    MergeSlashes,
    /// MERGE_SLASHES and percent-encoded slashes.
    DecodeAndMergeSlashes,
}

/// Settings of one proxy. Unset fields keep the defaults named here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyConfig {
    /// xDS server, `host:port`; default `pilot.istio-system.svc:15012`.
    pub discovery_address: String,
    /// Worker threads; absent: one per core available; 0 the same.
    pub concurrency: Option<u32>,
    /// Tracing.
    pub tracing: Option<ProxyTracing>,
    /// Hold the app's containers until the proxy is ready; default false.
    pub hold_application_until_proxy_starts: Option<bool>,
    /// How long a proxy drains before it ends; default 5s.
    pub termination_drain_duration: GoDuration,
    /// How long connections drain when a listener goes; default 45s.
    pub drain_duration: GoDuration,
    /// Longest life of the old process after a restart in place (1.1 form); default 1m.
    pub parent_shutdown_duration: GoDuration,
    /// Extra environment of the proxy.
    pub proxy_metadata: BTreeMap<String, String>,
    /// Admin port; default 15000.
    pub proxy_admin_port: u32,
    /// Port of the health and merged-metrics server; default 15020.
    pub status_port: u32,
    /// How traffic is captured: REDIRECT (default), TPROXY, NONE.
    pub interception_mode: InterceptionMode,
    /// Where the certificates' authority is, if not the xDS server.
    pub ca_addr: Option<String>,
    /// Directory for generated files (1.1 form); ignored.
    pub config_path: Option<String>,
    /// Program path (1.1 form); ignored.
    pub binary_path: Option<String>,
    /// Name of the proxied service (1.1 form); ignored.
    pub service_cluster: Option<String>,
    /// Control-plane authentication (1.1 form): NONE or MUTUAL_TLS; ignored.
    pub control_plane_auth_policy: Option<String>,
    /// Zipkin server (1.1 form of `tracing.zipkin.address`).
    pub zipkin_address: Option<String>,
    /// Connect deadline (1.1 form); ignored.
    pub connect_timeout: Option<GoDuration>,
    /// Readiness probe of the app carried by the proxy.
    pub readiness_probe: Option<serde_json::Value>,
    /// Extra metric matchers.
    pub proxy_stats_matcher: Option<serde_json::Value>,
    /// How forwarded headers are treated at gateways.
    pub gateway_topology: Option<GatewayTopology>,
    /// Image settings.
    pub image: Option<serde_json::Value>,
    /// Which header fields the proxy adds.
    pub proxy_headers: Option<serde_json::Value>,
    /// Extra tags of stats.
    pub extra_stat_tags: Vec<String>,
    /// Hardware key provider (T3).
    pub private_key_provider: Option<serde_json::Value>,
    /// Access log service (T3).
    pub envoy_access_log_service: Option<serde_json::Value>,
    /// Metrics service (T3).
    pub envoy_metrics_service: Option<serde_json::Value>,
    /// Run-time feature values (T3).
    pub runtime_values: BTreeMap<String, String>,
    /// Name of the mesh, for several meshes in one trust domain (T3).
    pub mesh_id: Option<String>,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            discovery_address: "pilot.istio-system.svc:15012".to_owned(),
            concurrency: None,
            tracing: None,
            hold_application_until_proxy_starts: None,
            termination_drain_duration: GoDuration::from_secs(5),
            drain_duration: GoDuration::from_secs(45),
            parent_shutdown_duration: GoDuration::from_secs(60),
            proxy_metadata: BTreeMap::new(),
            proxy_admin_port: 15000,
            status_port: 15020,
            interception_mode: InterceptionMode::Redirect,
            ca_addr: None,
            config_path: None,
            binary_path: None,
            service_cluster: None,
            control_plane_auth_policy: None,
            zipkin_address: None,
            connect_timeout: None,
            readiness_probe: None,
            proxy_stats_matcher: None,
            gateway_topology: None,
            image: None,
            proxy_headers: None,
            extra_stat_tags: Vec::new(),
            private_key_provider: None,
            envoy_access_log_service: None,
            envoy_metrics_service: None,
            runtime_values: BTreeMap::new(),
            mesh_id: None,
        }
    }
}

impl ProxyConfig {
    /// Share of requests traced, in percent: `tracing.sampling`, else 1.0.
    pub fn sampling(&self) -> f64 {
        self.tracing.as_ref().and_then(|t| t.sampling).unwrap_or(1.0)
    }
}

/// Tracing settings of a proxy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyTracing {
    /// Share of requests traced, 0.0–100.0; default 1.0.
    pub sampling: Option<f64>,
    /// Zipkin server.
    pub zipkin: Option<ZipkinTracing>,
    /// Extra span tags.
    pub custom_tags: BTreeMap<String, super::telemetry::CustomTag>,
    /// Longest path kept in a span; default 256.
    pub max_path_tag_length: Option<u32>,
    /// TLS towards the tracing server (T3).
    pub tls_settings: Option<serde_json::Value>,
    /// Add Istio's standard tags.
    pub enable_istio_tags: Option<bool>,
}

/// A Zipkin server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ZipkinTracing {
    /// `host:port`.
    pub address: String,
}

/// How gateways treat forwarded headers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayTopology {
    /// Trusted proxies in front of the gateway; default 0.
    pub num_trusted_proxies: u32,
    /// Treatment of `x-forwarded-client-cert`.
    pub forward_client_cert_details: Option<String>,
    /// Accept the PROXY protocol.
    pub proxy_protocol: Option<serde_json::Value>,
}

/// How a pod's traffic reaches its proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum InterceptionMode {
    /// Redirected, source address lost.
    #[default]
    Redirect,
    /// Redirected, source address kept.
    Tproxy,
    /// Not captured: apps use the proxy explicitly.
    None,
}
