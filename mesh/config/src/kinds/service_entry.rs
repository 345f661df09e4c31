//! ServiceEntry and WorkloadEntry: services and endpoints that Kubernetes does not know.
//!
//! In: their `spec`s, any version. Out: [`ServiceEntry`], [`WorkloadEntry`].
//! Kept true: nothing beyond the shape. Not here: DNS and address allocation (`pilot`).

use super::common::{Port, WorkloadSelector};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A service outside the registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntry {
    /// DNS names, wildcards allowed.
    pub hosts: Vec<String>,
    /// Virtual addresses or CIDRs.
    pub addresses: Vec<String>,
    /// Ports.
    pub ports: Vec<Port>,
    /// Inside or outside the mesh; outside means no mutual TLS.
    pub location: Location,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// Endpoints, for STATIC and DNS.
    pub endpoints: Vec<WorkloadEntry>,
    /// Pods and WorkloadEntries of the namespace that are its endpoints; excludes `endpoints`.
    pub workload_selector: Option<WorkloadSelector>,
    /// Namespaces that see it: `*`, `.`, `~` or names. Empty: the mesh's default.
    pub export_to: Vec<String>,
    /// Names of which an endpoint's certificate must have one.
    pub subject_alt_names: Vec<String>,
}

/// Whether a service is part of the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// Outside: no mutual TLS.
    #[default]
    MeshExternal,
    /// Inside.
    MeshInternal,
}

/// How the endpoints of a ServiceEntry are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// The address the client asked for.
    #[default]
    None,
    /// The endpoints given.
    Static,
    /// By DNS, all addresses.
    Dns,
    /// By DNS, one address at a time.
    DnsRoundRobin,
    /// By DNS, per request (wildcards).
    DynamicDns,
}

/// One endpoint outside the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEntry {
    /// IP address, DNS name or `unix:///path`.
    pub address: String,
    /// Port per service port name.
    pub ports: BTreeMap<String, u32>,
    /// Labels, as of a pod.
    pub labels: BTreeMap<String, String>,
    /// Network name.
    pub network: Option<String>,
    /// `region/zone/subzone`.
    pub locality: Option<String>,
    /// Share within its service; default 1.
    pub weight: Option<u32>,
    /// Service account of the workload.
    pub service_account: Option<String>,
}
