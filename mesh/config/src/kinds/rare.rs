//! Bodies of settings and kinds that are accepted and not in force, so that their shape is checked all the same.
//!
//! In: parts of today's Istio API. Out: plain structs for the schema; their owners warn that they have no effect.
//! Kept true: a field of Istio's that we do not act on is still known, so strict validation takes it.
//! Not here: the warnings (`validate`, `parse::registry`).

use super::common::{MatchSelector, TargetRef, WorkloadSelector};
use super::service_entry::WorkloadEntry;
use crate::duration::GoDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Tunnelling of connections through a proxy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Tunnel {
    /// CONNECT (default) or POST.
    pub protocol: Option<String>,
    /// Host the connection is tunnelled to.
    pub target_host: String,
    /// Port the connection is tunnelled to, 1–65535.
    pub target_port: u32,
}

/// The PROXY protocol towards endpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyProtocol {
    /// V1 (default) or V2.
    pub version: Option<ProxyProtocolVersion>,
}

/// Version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProxyProtocolVersion {
    /// The text form.
    V1,
    /// The binary form.
    V2,
}

/// How many retries may be in flight, relative to the requests in flight.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryBudget {
    /// Share of the requests in flight, 0–100; default 20.
    pub percent: Option<f64>,
    /// Retries that are always allowed; default 3.
    pub min_retry_concurrency: Option<u32>,
}

/// Slow start of new endpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Warmup {
    /// How long an endpoint's share grows.
    pub duration: Option<GoDuration>,
    /// Share it starts with, 0–100.
    pub minimum_percent: Option<f64>,
    /// How fast the share grows; 1 is linear.
    pub aggression: Option<f64>,
}

/// A certificate with its key, as files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsCertificate {
    /// Certificate chain file.
    pub server_certificate: Option<String>,
    /// Key file.
    pub private_key: Option<String>,
    /// CA bundle file for client certificates.
    pub ca_certificates: Option<String>,
}

/// Workloads of virtual machines that are made from one template.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadGroup {
    /// Labels and annotations of the WorkloadEntries made.
    pub metadata: Option<GroupMetadata>,
    /// What the WorkloadEntries have in common.
    pub template: WorkloadEntry,
    /// How readiness is found out.
    pub probe: Option<Value>,
}

/// Labels and annotations given to the members of a WorkloadGroup.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GroupMetadata {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// Settings of proxies, for the workloads selected.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyConfigObject {
    /// Workloads; absent: the namespace, or the mesh in the root namespace.
    pub selector: Option<MatchSelector>,
    /// Worker threads; 0: one per core.
    pub concurrency: Option<u32>,
    /// Environment of the proxy.
    pub environment_variables: BTreeMap<String, String>,
    /// Which image is used.
    pub image: Option<ProxyImage>,
}

/// Which proxy image is used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyImage {
    /// `default`, `debug` or `distroless`.
    pub image_type: Option<String>,
}

/// Raw patches of an Envoy's configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvoyFilter {
    /// Workloads; absent: the namespace.
    pub workload_selector: Option<WorkloadSelector>,
    /// Resources it is attached to instead.
    pub target_refs: Vec<TargetRef>,
    /// The patches.
    pub config_patches: Vec<Value>,
    /// Order among several, lowest first; default 0.
    pub priority: Option<i32>,
    /// Filters in the form of Istio 1.1.
    pub filters: Vec<Value>,
    /// Workload labels in the form of Istio 1.1.
    pub workload_labels: BTreeMap<String, String>,
}

/// A WebAssembly extension of proxies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WasmPlugin {
    /// Workloads; absent: the namespace, or the mesh in the root namespace.
    pub selector: Option<MatchSelector>,
    /// Resource it is attached to (older single form).
    pub target_ref: Option<TargetRef>,
    /// Resources it is attached to instead.
    pub target_refs: Vec<TargetRef>,
    /// Where the module is: `oci://`, `http://`, `https://` or `file://`.
    pub url: String,
    /// SHA-256 of the module.
    pub sha256: Option<String>,
    /// IfNotPresent or Always.
    pub image_pull_policy: Option<String>,
    /// Secret for the registry.
    pub image_pull_secret: Option<String>,
    /// Public key that signed the module.
    pub verification_key: Option<String>,
    /// Settings handed to the module.
    pub plugin_config: Option<Value>,
    /// Name of the module inside its VM.
    pub plugin_name: Option<String>,
    /// Where in the chain it runs.
    pub phase: Option<String>,
    /// Order within its phase, highest first.
    pub priority: Option<Value>,
    /// FAIL_CLOSE or FAIL_OPEN.
    pub fail_strategy: Option<String>,
    /// Environment of the VM.
    pub vm_config: Option<Value>,
    /// Which traffic it sees.
    #[serde(rename = "match")]
    pub traffic: Vec<Value>,
    /// HTTP or NETWORK.
    pub r#type: Option<String>,
}

/// An extension of proxies, WebAssembly or Lua.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficExtension {
    /// Workloads; absent: the namespace, or the mesh in the root namespace.
    pub selector: Option<MatchSelector>,
    /// Resources it is attached to instead.
    pub target_refs: Vec<TargetRef>,
    /// Where in the chain it runs.
    pub phase: Option<String>,
    /// Order within its phase, highest first.
    pub priority: Option<Value>,
    /// Which traffic it sees.
    #[serde(rename = "match")]
    pub traffic: Vec<Value>,
    /// A WebAssembly module.
    pub wasm: Option<Value>,
    /// A Lua script.
    pub lua: Option<Value>,
}
