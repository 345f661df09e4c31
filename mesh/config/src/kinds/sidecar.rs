//! Sidecar: what a workload's proxy may see and which ports it opens.
//!
//! In: the `spec` of `networking.istio.io` Sidecar, any version. Out: [`Sidecar`].
//! Kept true: an absent `ingress` and an empty one are the same: ports come from the pod's services.
//! Not here: choice of the Sidecar for a workload (`pilot`).

use super::common::{Port, WorkloadSelector};
use super::destination_rule::ConnectionPool;
use super::gateway::ServerTls;
use super::virtual_service::Destination;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Scope and ports of a workload's proxy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Sidecar {
    /// Workloads it is for; absent: all of the namespace.
    pub workload_selector: Option<WorkloadSelector>,
    /// Inbound listeners; empty: derived from the workload's services.
    pub ingress: Vec<IngressListener>,
    /// Outbound listeners; empty: everything exported to the namespace.
    pub egress: Vec<EgressListener>,
    /// Limits for inbound connections.
    pub inbound_connection_pool: Option<ConnectionPool>,
    /// What happens to unknown destinations; absent: the mesh's setting.
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

/// An inbound listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressListener {
    /// Port it listens on.
    pub port: Port,
    /// Address it binds; absent: the pod's address.
    pub bind: Option<String>,
    /// How traffic reaches it.
    pub capture_mode: CaptureMode,
    /// Where the app listens: `127.0.0.1:PORT`, `0.0.0.0:PORT` or `unix:///path`.
    pub default_endpoint: Option<String>,
    /// TLS of this port.
    pub tls: Option<ServerTls>,
    /// Limits for this port.
    pub connection_pool: Option<ConnectionPool>,
}

/// An outbound listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EgressListener {
    /// Port it listens on; absent: all ports of the hosts. Protocol HTTP_PROXY serves as explicit proxy.
    pub port: Option<Port>,
    /// Address it binds.
    pub bind: Option<String>,
    /// How traffic reaches it.
    pub capture_mode: CaptureMode,
    /// Hosts seen: `namespace/dns`, where namespace is `*`, `.`, `~` or a name.
    pub hosts: Vec<String>,
}

/// How traffic reaches a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CaptureMode {
    /// As the environment does it.
    #[default]
    Default,
    /// By redirection rules.
    Iptables,
    /// Not captured: the app connects to it.
    None,
}

/// What happens to destinations nobody declared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OutboundTrafficPolicy {
    /// Mode.
    pub mode: OutboundMode,
    /// Where unknown traffic goes (T3).
    pub egress_proxy: Option<Destination>,
}

/// Mode of [`OutboundTrafficPolicy`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundMode {
    /// Refused. The zero value: what a policy block without a mode means.
    #[default]
    RegistryOnly,
    /// Passed through.
    AllowAny,
}
