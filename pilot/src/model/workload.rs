//! Workloads: pods, as a proxy or an endpoint sees them.
//!
//! In: a Pod. Out: [`Workload`]. Kept true: its identity is the pod's own service account, `default` if none is written.
//! Not here: which services it backs (`service`).

use mesh_config::{Object, k8s_openapi::api::core::v1::Pod};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// The label that says a pod's proxy takes mutual TLS, and its value.
pub const TLS_MODE_LABEL: &str = "security.istio.io/tlsMode";

/// A pod.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
    /// Labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Service account.
    pub service_account: Arc<str>,
    /// Pod addresses.
    pub addresses: Vec<IpAddr>,
    /// Container ports by name.
    pub ports: BTreeMap<String, u16>,
    /// All declared container ports.
    pub port_numbers: Vec<u16>,
    /// Ready, by its condition; a pod without status conditions counts as ready while it runs.
    pub ready: bool,
    /// Shares the node's addresses, so that an address says nothing about it.
    pub host_network: bool,
    /// Finished for good.
    pub ended: bool,
}

impl Workload {
    /// From a pod.
    pub fn of(pod: &Object<Pod>) -> Self {
        let spec = pod.spec.spec.as_ref();
        let status = pod.spec.status.as_ref();
        let mut addresses: Vec<IpAddr> = status
            .into_iter()
            .flat_map(|s| s.pod_ip.iter().chain(s.pod_ips.iter().flatten().map(|p| &p.ip)))
            .filter_map(|ip| ip.parse().ok())
            .collect();
        addresses.dedup();
        let phase = status.and_then(|s| s.phase.as_deref()).unwrap_or("Running");
        let condition = status
            .and_then(|s| s.conditions.as_ref())
            .and_then(|all| all.iter().find(|c| c.type_ == "Ready"))
            .map(|c| c.status == "True");
        let containers =
            spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
        let declared: Vec<_> = containers.flat_map(|c| c.ports.iter().flatten()).collect();
        let number = |p: i32| u16::try_from(p).ok();
        Self {
            namespace: pod.meta.namespace.clone(),
            name: pod.meta.name.clone(),
            labels: Arc::new(pod.meta.labels.clone()),
            service_account: spec
                .and_then(|s| s.service_account_name.as_deref())
                .filter(|s| !s.is_empty())
                .unwrap_or("default")
                .into(),
            addresses,
            ports: declared
                .iter()
                .filter_map(|p| Some((p.name.clone()?, number(p.container_port)?)))
                .collect(),
            port_numbers: declared.iter().filter_map(|p| number(p.container_port)).collect(),
            ready: condition.unwrap_or(phase == "Running"),
            host_network: spec.and_then(|s| s.host_network).unwrap_or(false),
            ended: matches!(phase, "Succeeded" | "Failed"),
        }
    }

    /// Whether its proxy takes mutual TLS.
    pub fn takes_mtls(&self) -> bool {
        self.labels.get(TLS_MODE_LABEL).is_some_and(|v| v == "istio")
    }
}

/// Whether `labels` have everything that `selector` asks for; an empty selector asks for nothing.
pub fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
