//! Services: Kubernetes' and ServiceEntry's, with ports, protocols and endpoints.
//!
//! In: Service, EndpointSlice, Pod, ServiceEntry, WorkloadEntry. Out: [`Service`] per host name.
//! Kept true: a host has one owner (Kubernetes first, then the oldest entry); endpoints are sorted, so that
//! equal objects give equal tables. Not here: subsets and policies (`destination`).

use super::{
    DOMAIN, Model, hosts, label_of,
    workload::{Workload, selects},
};
use mesh_config::{
    Object,
    k8s_openapi::{
        api::{core::v1 as core, discovery::v1::EndpointSlice},
        apimachinery::pkg::util::intstr::IntOrString,
    },
    kinds,
};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP/1.
    Http,
    /// HTTP/2 without TLS, gRPC included.
    Http2,
    /// TLS that is not ours to end.
    Tls,
    /// Bytes.
    Tcp,
    /// Not declared: to be detected.
    Unknown,
    /// An explicit HTTP proxy (Sidecar egress).
    HttpProxy,
    /// Datagrams: not served.
    Udp,
}

impl Protocol {
    /// Whether requests are seen, declared or detected.
    pub fn is_http(self) -> bool {
        matches!(self, Protocol::Http | Protocol::Http2 | Protocol::HttpProxy)
    }

    /// By Istio's names (`HTTP`, `grpc-web`, …); `None` for an unknown one.
    pub fn named(name: &str) -> Option<Protocol> {
        Some(match name.to_ascii_lowercase().as_str() {
            "http" | "http1" | "kubernetes.io/ws" => Protocol::Http,
            "http2" | "grpc" | "grpc-web" | "kubernetes.io/h2c" | "h2c" => Protocol::Http2,
            "https" | "tls" | "kubernetes.io/wss" => Protocol::Tls,
            "tcp" | "mongo" | "redis" | "mysql" => Protocol::Tcp,
            "http_proxy" => Protocol::HttpProxy,
            "udp" => Protocol::Udp,
            _ => return None,
        })
    }

    /// By `appProtocol`, else the port name's prefix, else the port number's well-known server-first protocols.
    pub fn select(app_protocol: Option<&str>, name: &str, transport: &str, port: u16) -> Protocol {
        if transport.eq_ignore_ascii_case("udp") {
            return Protocol::Udp;
        }
        if let Some(declared) = app_protocol.and_then(Protocol::named) {
            return declared;
        }
        let name = name.to_ascii_lowercase();
        if name.starts_with("grpc-web") {
            return Protocol::Http2;
        }
        let prefix = name.split('-').next().unwrap_or_default();
        match Protocol::named(prefix) {
            Some(declared) => declared,
            None if matches!(port, 25 | 53 | 3306 | 27017) => Protocol::Tcp,
            None => Protocol::Unknown,
        }
    }
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Number clients use.
    pub number: u16,
    /// Name.
    pub name: Arc<str>,
    /// What is spoken.
    pub protocol: Protocol,
    /// `targetPort` as written: number, or the name of a container port.
    pub target: Target,
}

/// Where a service port leads on the workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A port number.
    Number(u16),
    /// The name of a container port.
    Name(Arc<str>),
}

/// How endpoints of a service are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Known addresses, balanced.
    Static,
    /// Known addresses, and clients name one of them (headless; HTTP is still balanced).
    Headless,
    /// Names to be looked up.
    Dns,
    /// Wherever the client was going.
    Passthrough,
}

/// One endpoint of one service port.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// Address, or a name for [`Resolution::Dns`].
    pub address: Arc<str>,
    /// Port at that address.
    pub port: u16,
    /// Service port it stands behind.
    pub service_port: u16,
    /// Labels, for subsets.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Namespace and name of its pod.
    pub workload: Option<(Arc<str>, Arc<str>)>,
    /// Namespace and service account of its identity.
    pub identity: Option<(Arc<str>, Arc<str>)>,
    /// Whether its proxy takes mutual TLS.
    pub takes_mtls: bool,
    /// `region/zone/subzone`.
    pub locality: Arc<str>,
    /// Relative weight, from 1.
    pub weight: u32,
}

impl Endpoint {
    /// The address, if it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.address.parse().ok()
    }
}

/// A service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Full host name.
    pub host: Arc<str>,
    /// Short name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Ports, as written.
    pub ports: Vec<Port>,
    /// Addresses that stand for the service as a whole.
    pub addresses: Vec<IpAddr>,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// Outside the mesh: no mutual TLS.
    pub external: bool,
    /// Pod labels it selects; empty for none.
    pub selector: BTreeMap<String, String>,
    /// Where it may be seen.
    pub export_to: Vec<String>,
    /// Identities that its endpoints must prove, besides those of their pods.
    pub subject_alt_names: Vec<String>,
    /// Endpoints of all ports, sorted.
    pub endpoints: Arc<[Endpoint]>,
    /// Endpoints that clients are not sent to, since their pods are not ready.
    pub unready: Arc<[Endpoint]>,
    /// The object it comes from.
    pub source: Arc<str>,
    /// Whether Kubernetes' own short names apply.
    pub kubernetes: bool,
}

impl Service {
    /// A port by number.
    pub fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|p| p.number == number)
    }

    /// Endpoints of one port.
    pub fn at(&self, port: u16) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().filter(move |e| e.service_port == port)
    }

    /// Whether a workload in `namespace` may see it.
    pub fn visible(&self, model: &Model, namespace: &str) -> bool {
        hosts::exported(&self.export_to, &model.mesh().default_service_export_to, &self.namespace, namespace)
    }
}

/// All services by host. Kubernetes' come first; of several entries for one host the oldest has it.
pub(super) fn all(model: &Model) -> BTreeMap<Arc<str>, Arc<Service>> {
    let snapshot = &model.snapshot;
    let mut slices: HashMap<(&str, &str), Vec<&Object<EndpointSlice>>> = HashMap::new();
    for slice in snapshot.endpoint_slices.iter() {
        if let Some(service) = slice.meta.labels.get("kubernetes.io/service-name") {
            slices.entry((slice.namespace(), service)).or_default().push(slice);
        }
    }
    let mut services = BTreeMap::new();
    for object in snapshot.services.iter() {
        let of_service = slices.remove(&(object.namespace(), object.name())).unwrap_or_default();
        if let Some(service) = kubernetes(model, object, &of_service) {
            services.insert(service.host.clone(), Arc::new(service));
        }
    }
    for entry in snapshot.service_entries.by_age() {
        for service in from_entry(model, entry) {
            services.entry(service.host.clone()).or_insert_with(|| Arc::new(service));
        }
    }
    services
}

fn kubernetes(
    model: &Model,
    object: &Object<core::Service>,
    slices: &[&Object<EndpointSlice>],
) -> Option<Service> {
    let spec = object.spec.spec.as_ref()?;
    let (namespace, name) = (object.meta.namespace.clone(), object.meta.name.clone());
    let ports: Vec<Port> = spec
        .ports
        .iter()
        .flatten()
        .filter_map(|p| {
            let number = u16::try_from(p.port).ok()?;
            let port_name = p.name.as_deref().unwrap_or_default();
            let transport = p.protocol.as_deref().unwrap_or("TCP");
            Some(Port {
                number,
                name: port_name.into(),
                protocol: Protocol::select(p.app_protocol.as_deref(), port_name, transport, number),
                target: match &p.target_port {
                    Some(IntOrString::Int(n)) => Target::Number(u16::try_from(*n).ok()?),
                    Some(IntOrString::String(s)) => match s.parse() {
                        Ok(n) => Target::Number(n),
                        Err(_) => Target::Name(s.as_str().into()),
                    },
                    None => Target::Number(number),
                },
            })
        })
        .collect();
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let external_name =
        spec.external_name.as_deref().filter(|_| spec.type_.as_deref() == Some("ExternalName"));
    let resolution = match (external_name, headless) {
        (Some(_), _) => Resolution::Dns,
        (None, true) => Resolution::Headless,
        (None, false) => Resolution::Static,
    };
    let addresses = spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter());
    let mut addresses: Vec<IpAddr> = addresses.filter_map(|ip| ip.parse().ok()).collect();
    addresses.dedup();
    let not_ready_too = spec.publish_not_ready_addresses.unwrap_or(false);
    let selector = spec.selector.clone().unwrap_or_default();
    let all: Vec<(bool, Endpoint)> = if let Some(target) = external_name {
        ports.iter().map(|p| (true, plain_endpoint(target, p.number, p.number))).collect()
    } else if slices.is_empty() {
        from_pods(model, &namespace, &selector, &ports)
    } else {
        from_slices(model, &namespace, slices, &ports)
    };
    let (endpoints, unready): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(ready, _)| *ready || not_ready_too);
    let bare = |all: Vec<(bool, Endpoint)>| -> Vec<Endpoint> { all.into_iter().map(|(_, e)| e).collect() };
    let (mut endpoints, unready) = (bare(endpoints), bare(unready));
    sort(&mut endpoints);
    let export = object.meta.annotations.get("networking.istio.io/exportTo");
    Some(Service {
        host: format!("{name}.{namespace}.svc.{DOMAIN}").into(),
        source: label_of(object),
        name,
        namespace,
        ports,
        addresses,
        resolution,
        external: external_name.is_some(),
        selector,
        export_to: export.map(|e| e.split(',').map(|t| t.trim().to_owned()).collect()).unwrap_or_default(),
        subject_alt_names: Vec::new(),
        endpoints: endpoints.into(),
        unready: unready.into(),
        kubernetes: true,
    })
}

fn from_slices(
    model: &Model,
    namespace: &str,
    slices: &[&Object<EndpointSlice>],
    ports: &[Port],
) -> Vec<(bool, Endpoint)> {
    let mut out = Vec::new();
    for slice in slices.iter().filter(|s| s.spec.address_type != "FQDN") {
        for slice_port in slice.spec.ports.iter().flatten() {
            let name = slice_port.name.as_deref().unwrap_or_default();
            let Some(number) = slice_port.port.and_then(|p| u16::try_from(p).ok()) else { continue };
            let Some(port) = ports.iter().find(|p| &*p.name == name) else { continue };
            for endpoint in &slice.spec.endpoints {
                let conditions = endpoint.conditions.as_ref();
                let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
                let target = endpoint.target_ref.as_ref().filter(|t| t.kind.as_deref() == Some("Pod"));
                let zone = endpoint.zone.as_deref();
                for address in &endpoint.addresses {
                    let by_name = target.and_then(|t| {
                        model.workload(t.namespace.as_deref().unwrap_or(namespace), t.name.as_deref()?)
                    });
                    let by_ip = || address.parse().ok().and_then(|ip| model.workload_at(ip));
                    let workload = by_name.or_else(by_ip);
                    out.push((ready, pod_endpoint(address, number, port.number, workload, zone)));
                }
            }
        }
    }
    out
}

/// Without slices (a directory of plain manifests) the pods that the selector names stand in for them.
fn from_pods(
    model: &Model,
    namespace: &str,
    selector: &BTreeMap<String, String>,
    ports: &[Port],
) -> Vec<(bool, Endpoint)> {
    if selector.is_empty() {
        return Vec::new();
    }
    let pods = model
        .workloads
        .values()
        .filter(|w| &*w.namespace == namespace && !w.ended && selects(selector, &w.labels));
    let mut out = Vec::new();
    for pod in pods {
        for port in ports {
            let number = match &port.target {
                Target::Number(n) => Some(*n),
                Target::Name(name) => pod.ports.get(&**name).copied(),
            };
            if let (Some(number), Some(ip)) = (number, pod.addresses.first()) {
                out.push((pod.ready, pod_endpoint(&ip.to_string(), number, port.number, Some(pod), None)));
            }
        }
    }
    out
}

/// What pods back of a service that no endpoint tells of yet: a proxy connects as soon as its pod has an address, and
/// should be told its ports then. `known` says whether there is an endpoint for an address and port of the service.
pub(super) fn selected(
    model: &Model,
    service: &Arc<Service>,
    known: impl Fn(IpAddr, u16) -> bool,
) -> Vec<(IpAddr, super::Backed)> {
    let mut out = Vec::new();
    if !service.kubernetes || service.selector.is_empty() {
        return out;
    }
    let chosen = model.workloads.values().filter(|w| {
        w.namespace == service.namespace
            && !w.ended
            && !w.host_network
            && selects(&service.selector, &w.labels)
    });
    for pod in chosen {
        for port in service.ports.iter() {
            let number = match &port.target {
                Target::Number(n) => Some(*n),
                Target::Name(name) => pod.ports.get(&**name).copied(),
            };
            let Some(number) = number else { continue };
            let addresses = pod.addresses.iter().filter(|ip| !known(**ip, port.number));
            out.extend(addresses.map(|ip| (*ip, (service.clone(), port.clone(), number))));
        }
    }
    out
}

fn pod_endpoint(
    address: &str,
    port: u16,
    service_port: u16,
    pod: Option<&Arc<Workload>>,
    zone: Option<&str>,
) -> Endpoint {
    let labels = pod.map(|p| p.labels.clone()).unwrap_or_default();
    let locality = labels.get("topology.istio.io/locality").map(|l| l.replace('.', "/"));
    Endpoint {
        address: address.into(),
        port,
        service_port,
        workload: pod.map(|p| (p.namespace.clone(), p.name.clone())),
        identity: pod.map(|p| (p.namespace.clone(), p.service_account.clone())),
        takes_mtls: pod.is_some_and(|p| p.takes_mtls()),
        locality: locality.unwrap_or_else(|| zone.map(|z| format!("/{z}")).unwrap_or_default()).into(),
        weight: 1,
        labels,
    }
}

fn plain_endpoint(address: &str, port: u16, service_port: u16) -> Endpoint {
    Endpoint {
        address: address.into(),
        port,
        service_port,
        labels: Arc::default(),
        workload: None,
        identity: None,
        takes_mtls: false,
        locality: "".into(),
        weight: 1,
    }
}

fn sort(endpoints: &mut Vec<Endpoint>) {
    let key = |e: &Endpoint| (e.service_port, e.ip(), e.address.clone(), e.port);
    endpoints.sort_by_key(key);
    endpoints.dedup_by_key(|e| key(e));
}

fn from_entry(model: &Model, object: &Object<kinds::ServiceEntry>) -> Vec<Service> {
    let entry = &object.spec;
    let external = entry.location == kinds::Location::MeshExternal;
    let ports: Vec<Port> = entry
        .ports
        .iter()
        .filter_map(|p| {
            let number = u16::try_from(p.number).ok()?;
            Some(Port {
                number,
                name: p.name.as_str().into(),
                protocol: match p.protocol.as_str() {
                    "" => Protocol::select(None, &p.name, "TCP", number),
                    declared => Protocol::named(declared).unwrap_or(Protocol::Tcp),
                },
                target: Target::Number(p.target_port.and_then(|t| u16::try_from(t).ok()).unwrap_or(number)),
            })
        })
        .collect();
    let resolution = match entry.resolution {
        kinds::Resolution::None => Resolution::Passthrough,
        kinds::Resolution::Static => Resolution::Static,
        _ => Resolution::Dns,
    };
    let addresses =
        entry.addresses.iter().filter_map(|a| a.split('/').next()?.parse().ok()).collect::<Vec<_>>();
    let selected = entry.workload_selector.as_ref().map(|s| &s.labels);
    let make = |host: &String| {
        let mut endpoints = Vec::new();
        for port in &ports {
            let Target::Number(target) = port.target else { continue };
            for given in &entry.endpoints {
                let number =
                    given.ports.get(&*port.name).and_then(|p| u16::try_from(*p).ok()).unwrap_or(target);
                endpoints.push(given_endpoint(model, object.namespace(), given, number, port.number));
            }
            if let Some(labels) = selected {
                let entries = model.snapshot.workload_entries.in_namespace(object.namespace());
                for given in entries.filter(|w| selects(labels, &w.spec.labels)) {
                    let own = given.spec.ports.get(&*port.name).and_then(|p| u16::try_from(*p).ok());
                    let ns = object.namespace();
                    endpoints.push(given_endpoint(
                        model,
                        ns,
                        &given.spec,
                        own.unwrap_or(target),
                        port.number,
                    ));
                }
                let pods = model
                    .workloads
                    .values()
                    .filter(|w| &*w.namespace == object.namespace() && w.ready && selects(labels, &w.labels));
                for pod in pods {
                    let ips = pod.addresses.first().map(ToString::to_string);
                    endpoints.extend(ips.map(|ip| pod_endpoint(&ip, target, port.number, Some(pod), None)));
                }
            }
        }
        // DNS entries without endpoints look up their own host, on every port.
        if resolution == Resolution::Dns && entry.endpoints.is_empty() && selected.is_none() {
            endpoints = ports
                .iter()
                .filter_map(|p| match p.target {
                    Target::Number(n) => Some(plain_endpoint(host, n, p.number)),
                    Target::Name(_) => None,
                })
                .collect();
        }
        sort(&mut endpoints);
        Service {
            host: host.to_ascii_lowercase().into(),
            name: host.as_str().into(),
            namespace: object.meta.namespace.clone(),
            ports: ports.clone(),
            addresses: addresses.clone(),
            resolution,
            external,
            selector: selected.cloned().unwrap_or_default(),
            export_to: entry.export_to.clone(),
            subject_alt_names: entry.subject_alt_names.clone(),
            endpoints: endpoints.into(),
            source: label_of(object),
            unready: Arc::default(),
            kubernetes: false,
        }
    };
    entry.hosts.iter().map(make).collect()
}

fn given_endpoint(
    model: &Model,
    namespace: &str,
    given: &kinds::WorkloadEntry,
    port: u16,
    service_port: u16,
) -> Endpoint {
    let pod = given.address.parse().ok().and_then(|ip| model.workload_at(ip));
    let account = given.service_account.as_deref().map(|sa| (namespace.into(), sa.into()));
    Endpoint {
        labels: if given.labels.is_empty() {
            pod.map(|p| p.labels.clone()).unwrap_or_default()
        } else {
            Arc::new(given.labels.clone())
        },
        workload: pod.map(|p| (p.namespace.clone(), p.name.clone())),
        identity: account.or_else(|| pod.map(|p| (p.namespace.clone(), p.service_account.clone()))),
        takes_mtls: given.labels.get(super::workload::TLS_MODE_LABEL).is_some_and(|v| v == "istio")
            || pod.is_some_and(|p| p.takes_mtls()),
        locality: given.locality.as_deref().unwrap_or_default().into(),
        weight: given.weight.unwrap_or(1).max(1),
        ..plain_endpoint(&given.address, port, service_port)
    }
}
