//! The mesh as pilot understands it: services, their endpoints, workloads, and the rules that apply to each.
//!
//! In: one snapshot of objects. Out: [`Model`], immutable, indexed for the questions that translation asks.
//! Kept true: the same objects give the same model whatever the order they came in; conflicts go to the oldest.
//! Not here: the wire (`translate`), who is connected (`push`).

pub mod auth;
pub mod destination;
pub mod hosts;
pub mod policy;
pub mod routing;
pub mod scope;
pub mod service;
#[cfg(test)]
pub(crate) mod tests;
pub mod workload;

use mesh_config::{Object, Snapshot, kinds};
use service::Service;
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};
use workload::Workload;

/// DNS domain of the cluster; short names of services are completed with it.
pub const DOMAIN: &str = "cluster.local";

/// `Kind namespace/name` of an object, for people.
pub fn label_of<T>(object: &Object<T>) -> Arc<str> {
    match object.namespace() {
        "" => format!("{} {}", object.meta.gvk.kind, object.name()).into(),
        ns => format!("{} {ns}/{}", object.meta.gvk.kind, object.name()).into(),
    }
}

/// A service port and the port at the address that backs it.
pub(crate) type Backed = (Arc<Service>, service::Port, u16);

/// Indexes over one snapshot.
#[derive(Debug)]
pub struct Model {
    /// The objects.
    pub snapshot: Arc<Snapshot>,
    /// Services by host name.
    pub services: BTreeMap<Arc<str>, Arc<Service>>,
    /// Workloads by namespace and pod name.
    pub workloads: BTreeMap<(Arc<str>, Arc<str>), Arc<Workload>>,
    by_ip: HashMap<IpAddr, Arc<Workload>>,
    /// Service ports behind each address: service, its port, the port at the address.
    backing: HashMap<IpAddr, Vec<Backed>>,
    /// Sidecars by namespace, oldest first.
    pub sidecars: BTreeMap<Arc<str>, Vec<Arc<Object<kinds::Sidecar>>>>,
    /// Whether clients may name single endpoints of any service.
    pub headless: bool,
    /// VirtualServices, oldest first, with their hosts and gateways resolved.
    pub routing: Vec<Arc<routing::Routing>>,
    /// Whether any rule looks at the labels of clients, so that scopes must be kept apart by them.
    pub by_client_labels: bool,
}

impl Model {
    /// Builds the indexes. Cost: linear in the number of objects.
    pub fn new(snapshot: Arc<Snapshot>) -> Self {
        let workloads: BTreeMap<_, _> = snapshot
            .pods
            .iter()
            .map(|pod| ((pod.meta.namespace.clone(), pod.meta.name.clone()), Arc::new(Workload::of(pod))))
            .collect();
        let mut by_ip = HashMap::new();
        for workload in workloads.values().filter(|w| !w.host_network && !w.ended) {
            for ip in &workload.addresses {
                by_ip.entry(*ip).or_insert_with(|| workload.clone());
            }
        }
        let mut model = Self {
            services: BTreeMap::new(),
            workloads,
            by_ip,
            backing: HashMap::new(),
            sidecars: BTreeMap::new(),
            headless: false,
            routing: Vec::new(),
            by_client_labels: by_client_labels(&snapshot),
            snapshot,
        };
        model.services = service::all(&model);
        model.headless = model.services.values().any(|s| s.resolution == service::Resolution::Headless);
        model.backing = backing(&model);
        for sidecar in model.snapshot.sidecars.by_age() {
            model.sidecars.entry(sidecar.meta.namespace.clone()).or_default().push(sidecar.clone());
        }
        let aged = model.snapshot.virtual_services.by_age();
        model.routing =
            aged.into_iter().map(|vs| Arc::new(routing::Routing::of(vs, &model.snapshot))).collect();
        model
    }

    /// Mesh config.
    pub fn mesh(&self) -> &kinds::MeshConfig {
        &self.snapshot.mesh
    }

    /// The workload that owns an address.
    pub fn workload_at(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.by_ip.get(&ip)
    }

    /// One workload.
    pub fn workload(&self, namespace: &str, pod: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(&(namespace.into(), pod.into()))
    }

    /// The service ports that a workload's address backs: service, its port, the workload's port.
    pub fn backed_by(&self, addresses: &[IpAddr]) -> Vec<(Arc<Service>, service::Port, u16)> {
        let mut out: Vec<Backed> =
            addresses.iter().filter_map(|ip| self.backing.get(ip)).flatten().cloned().collect();
        out.sort_by(|a, b| (a.2, &a.0.host, a.1.number).cmp(&(b.2, &b.0.host, b.1.number)));
        out.dedup_by(|a, b| a.2 == b.2 && a.0.host == b.0.host && a.1.number == b.1.number);
        out
    }
}

/// What each address backs. Readiness does not count: a proxy listens for its services before it is ready (a gateway could
/// not become ready otherwise), and goes on while it drains.
fn backing(model: &Model) -> HashMap<IpAddr, Vec<Backed>> {
    let mut backing: HashMap<IpAddr, Vec<Backed>> = HashMap::new();
    // Where nothing is captured, the endpoints alone know at which port a proxy listens.
    let captured = !matches!(model.mesh().default_config.interception_mode, kinds::InterceptionMode::None);
    for service in model.services.values() {
        for endpoint in service.endpoints.iter().chain(service.unready.iter()) {
            if let (Some(ip), Some(port)) = (endpoint.ip(), service.port(endpoint.service_port)) {
                backing.entry(ip).or_default().push((service.clone(), port.clone(), endpoint.port));
            }
        }
        if !captured {
            continue;
        }
        let known = |ip: IpAddr, number: u16| {
            backing
                .get(&ip)
                .is_some_and(|all| all.iter().any(|(s, p, _)| s.host == service.host && p.number == number))
        };
        let selected = service::selected(model, service, known);
        for (ip, backed) in selected {
            backing.entry(ip).or_default().push(backed);
        }
    }
    backing
}

fn by_client_labels(snapshot: &Snapshot) -> bool {
    let rules = snapshot.destination_rules.iter().any(|r| r.spec.workload_selector.is_some());
    rules
        || snapshot.virtual_services.iter().any(|vs| {
            let http = vs.spec.http.iter().flat_map(|r| &r.r#match).any(|m| !m.source_labels.is_empty());
            let tls = vs.spec.tls.iter().flat_map(|r| &r.r#match).any(|m| !m.source_labels.is_empty());
            let tcp = vs.spec.tcp.iter().flat_map(|r| &r.r#match).any(|m| !m.source_labels.is_empty());
            http || tls || tcp
        })
}
