//! Scopes: what one proxy is, and which services and routes it may see.
//!
//! In: a node's id and metadata, the pod behind it, the Sidecar that applies. Out: [`Proxy`], [`View`].
//! Kept true: proxies with equal views get the same shared resources. Not here: the resources (`translate`).

use super::{
    Model, hosts,
    routing::MeshRoutes,
    service::{Protocol, Service},
    workload::{Workload, selects},
};
use mesh_config::{Object, kinds};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

/// Sidecar or gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Next to an application.
    Sidecar,
    /// A gateway.
    Router,
}

/// How traffic reaches a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Capture {
    /// It does not: applications name the proxy.
    None,
    /// By redirection to 15001 and 15006.
    Redirect,
}

/// One proxy, as configuration sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Proxy {
    /// Sidecar or gateway.
    pub role: Role,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
    /// Labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Service account.
    pub service_account: Arc<str>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// How it gets traffic.
    pub capture: Capture,
    /// Whether it takes virtual hosts one by one.
    pub vhds: bool,
    /// Whether it proved its identity.
    pub verified: bool,
}

impl Proxy {
    /// A proxy for a pod, in the mode that the mesh uses by default; for explanations and tests.
    pub fn for_workload(workload: &Workload, role: Role) -> Self {
        Self {
            role,
            namespace: workload.namespace.clone(),
            name: workload.name.clone(),
            labels: workload.labels.clone(),
            service_account: workload.service_account.clone(),
            addresses: workload.addresses.clone(),
            capture: Capture::Redirect,
            vhds: false,
            verified: true,
        }
    }

    /// Its first address.
    pub fn address(&self) -> IpAddr {
        self.addresses.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }
}

/// An egress listener of a Sidecar, or the implicit one that sees everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Egress {
    /// Port it opens; `None` for "all service ports".
    pub port: Option<(u16, Protocol)>,
    /// Address it opens the port on.
    pub bind: Option<IpAddr>,
    /// `namespace/host` patterns, `.` resolved.
    pub hosts: Vec<(String, String)>,
    excluded: Vec<(String, String)>,
}

impl Egress {
    fn all(port: Option<(u16, Protocol)>, bind: Option<IpAddr>) -> Self {
        Self { port, bind, hosts: vec![("*".to_owned(), "*".to_owned())], excluded: Vec::new() }
    }

    /// Sees one host only.
    pub fn one(namespace: &str, host: &str) -> Self {
        Self { hosts: vec![(namespace.to_owned(), host.to_owned())], ..Self::all(None, None) }
    }

    /// Whether something in `namespace` for `host` may be seen.
    pub fn sees(&self, namespace: &str, host: &str) -> bool {
        let hit = |(ns, pattern): &(String, String)| {
            (ns == "*" || ns == namespace) && hosts::overlap(pattern, host)
        };
        self.hosts.iter().any(hit) && !self.excluded.iter().any(hit)
    }
}

/// What a proxy may see. Equal keys give equal resources.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ViewKey {
    /// Namespace of the client.
    pub namespace: Arc<str>,
    /// Its labels, where rules look at them; else empty.
    pub labels: Vec<(String, String)>,
    /// Patterns of `namespace/host`.
    pub hosts: Vec<(String, String)>,
    excluded: Vec<(String, String)>,
}

/// The services and routes behind one [`ViewKey`].
#[derive(Debug)]
pub struct View {
    /// Which.
    pub key: ViewKey,
    /// Services, by host.
    pub services: BTreeMap<Arc<str>, Arc<Service>>,
    /// Services outside the view that its VirtualServices send to: they get clusters, but no names of their own.
    pub targets: BTreeMap<Arc<str>, Arc<Service>>,
    /// VirtualServices by host.
    pub routes: MeshRoutes,
}

impl View {
    /// Resolves a key against a model.
    pub fn of(model: &Model, key: &ViewKey) -> Self {
        let egress =
            Egress { port: None, bind: None, hosts: key.hosts.clone(), excluded: key.excluded.clone() };
        let services: BTreeMap<_, _> = model
            .services
            .values()
            .filter(|s| s.visible(model, &key.namespace) && egress.sees(&s.namespace, &s.host))
            .map(|s| (s.host.clone(), s.clone()))
            .collect();
        let routes = MeshRoutes::of(model, &key.namespace, |ns, host| egress.sees(ns, host));
        let targets = routes
            .hosts()
            .flat_map(|(_, routing)| routing.destinations())
            .filter(|host| !services.contains_key(host))
            .filter_map(|host| Some((host.clone(), model.services.get(&host)?.clone())))
            .filter(|(_, service)| service.visible(model, &key.namespace))
            .collect();
        Self { key: key.clone(), services, targets, routes }
    }

    /// The client's labels, where rules look at them.
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.key.labels.iter().cloned().collect()
    }
}

/// The Sidecar that applies to a proxy: by selector, then the namespace's, then the root namespace's; oldest first.
pub fn sidecar_of(model: &Model, proxy: &Proxy) -> Option<Arc<Object<kinds::Sidecar>>> {
    if proxy.role == Role::Router {
        return None;
    }
    let oldest = |namespace: &str| model.sidecars.get(namespace).map(Vec::as_slice).unwrap_or_default();
    let own = oldest(&proxy.namespace);
    let selected = |s: &&Arc<Object<kinds::Sidecar>>| {
        let labels = s.spec.workload_selector.as_ref().map(|w| &w.labels);
        labels.is_some_and(|l| !l.is_empty() && selects(l, &proxy.labels))
    };
    let general = |s: &&Arc<Object<kinds::Sidecar>>| {
        s.spec.workload_selector.as_ref().is_none_or(|w| w.labels.is_empty())
    };
    own.iter()
        .find(selected)
        .or_else(|| own.iter().find(general))
        .cloned()
        .or_else(|| oldest(model.snapshot.root_namespace()).iter().find(general).cloned())
}

/// The egress listeners of a proxy: those of its Sidecar, else one for everything.
pub fn egress_of(proxy: &Proxy, sidecar: Option<&kinds::Sidecar>) -> Vec<Egress> {
    let listed = sidecar.map(|s| &s.egress[..]).unwrap_or_default();
    if listed.is_empty() {
        return vec![Egress::all(None, None)];
    }
    let listener = |written: &kinds::EgressListener| {
        let mut egress = Egress::all(
            written.port.as_ref().and_then(|p| {
                let number = u16::try_from(p.number).ok()?;
                Some((number, Protocol::named(&p.protocol).unwrap_or(Protocol::Tcp)))
            }),
            written.bind.as_deref().and_then(|b| b.parse().ok()),
        );
        egress.hosts.clear();
        for host in &written.hosts {
            let (namespace, host) = host.split_once('/').unwrap_or(("*", host));
            let host = host.to_ascii_lowercase();
            match namespace {
                "~" => {}
                "." => egress.hosts.push((proxy.namespace.to_string(), host)),
                other => match other.strip_prefix('~') {
                    Some(excluded) => egress.excluded.push((excluded.to_owned(), host)),
                    None => egress.hosts.push((other.to_owned(), host)),
                },
            }
        }
        egress
    };
    listed.iter().map(listener).collect()
}

/// The key of what a set of egress listeners lets a proxy see.
pub fn view_key(model: &Model, proxy: &Proxy, egress: &[Egress]) -> ViewKey {
    let mut hosts: Vec<_> = egress.iter().flat_map(|e| e.hosts.iter().cloned()).collect();
    let mut excluded: Vec<_> = egress.iter().flat_map(|e| e.excluded.iter().cloned()).collect();
    hosts.sort();
    hosts.dedup();
    excluded.sort();
    excluded.dedup();
    if hosts.iter().any(|h| h.0 == "*" && h.1 == "*") {
        hosts = vec![("*".to_owned(), "*".to_owned())];
    }
    let labels = if model.by_client_labels {
        proxy.labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
    } else {
        Vec::new()
    };
    ViewKey { namespace: proxy.namespace.clone(), labels, hosts, excluded }
}
