//! VirtualServices: whose routes a host has, for a sidecar and for a gateway.
//!
//! In: VirtualServices, oldest first. Out: per host the one that counts (sidecars), or all of them (gateways).
//! Kept true: exact hosts before wildcards, longer wildcards before shorter, then the oldest.
//! Not here: the routes themselves (`translate::route`).

use super::{Model, hosts, label_of};
use mesh_config::{Object, Snapshot, kinds::VirtualService};
use std::{collections::BTreeMap, sync::Arc};

/// The gateway name that means "all sidecars".
pub const MESH: &str = "mesh";

/// A VirtualService with names resolved.
#[derive(Clone, Debug)]
pub struct Routing {
    /// The object.
    pub object: Arc<Object<VirtualService>>,
    /// Full host names.
    pub hosts: Vec<Arc<str>>,
    /// `mesh`, or `namespace/name`.
    pub gateways: Vec<String>,
    /// `VirtualService namespace/name`.
    pub label: Arc<str>,
    export_default: Vec<String>,
}

/// A gateway reference as written in an object of `namespace`.
pub fn gateway_name(written: &str, namespace: &str) -> String {
    if written == MESH || written.contains('/') {
        return written.to_owned();
    }
    // `name.namespace` and longer forms are the older way to name a gateway elsewhere.
    match written.split_once('.') {
        Some((name, rest)) => format!("{}/{name}", rest.split('.').next().unwrap_or(rest)),
        None => format!("{namespace}/{written}"),
    }
}

impl Routing {
    /// Resolves the names of one VirtualService.
    pub fn of(object: &Arc<Object<VirtualService>>, snapshot: &Snapshot) -> Self {
        let namespace = object.namespace();
        let gateways = match &object.spec.gateways[..] {
            [] => vec![MESH.to_owned()],
            listed => listed.iter().map(|g| gateway_name(g, namespace)).collect(),
        };
        Self {
            hosts: object.spec.hosts.iter().map(|h| hosts::full(h, namespace)).collect(),
            gateways,
            label: label_of(object),
            export_default: snapshot.mesh.default_virtual_service_export_to.clone(),
            object: object.clone(),
        }
    }

    /// Full host names of everything it may send to, mirrors included.
    pub fn destinations(&self) -> Vec<Arc<str>> {
        let spec = &self.object.spec;
        let http = spec.http.iter().flat_map(|r| {
            let routes = r.route.iter().map(|d| d.destination.host.clone());
            routes.chain(r.all_mirrors().into_iter().map(|(to, _)| to.host)).collect::<Vec<_>>()
        });
        let bytes = spec.tcp.iter().flat_map(|r| &r.route).chain(spec.tls.iter().flat_map(|r| &r.route));
        let all = http.chain(bytes.map(|d| d.destination.host.clone()));
        all.map(|host| hosts::full(&host, self.object.namespace())).collect()
    }

    /// Whether it is bound to a gateway (or to [`MESH`]).
    pub fn bound_to(&self, gateway: &str) -> bool {
        self.gateways.iter().any(|g| g == gateway)
    }

    /// Whether a proxy in `namespace` may use it.
    pub fn visible(&self, namespace: &str) -> bool {
        let home = self.object.namespace();
        hosts::exported(&self.object.spec.export_to, &self.export_default, home, namespace)
    }
}

/// For one scope: host as written to the VirtualService that has it.
#[derive(Debug, Default)]
pub struct MeshRoutes {
    exact: BTreeMap<Arc<str>, Arc<Routing>>,
    wildcards: Vec<(Arc<str>, Arc<Routing>)>,
}

impl MeshRoutes {
    /// Of the VirtualServices for sidecars in `namespace` that `sees` lets through (its namespace, one of its hosts).
    pub fn of(model: &Model, namespace: &str, sees: impl Fn(&str, &str) -> bool) -> Self {
        let mut routes = Self::default();
        let usable = model.routing.iter().filter(|r| r.bound_to(MESH) && r.visible(namespace));
        for routing in usable {
            for host in routing.hosts.iter().filter(|h| sees(routing.object.namespace(), h)) {
                if host.starts_with('*') {
                    if !routes.wildcards.iter().any(|(h, _)| h == host) {
                        routes.wildcards.push((host.clone(), routing.clone()));
                    }
                } else {
                    routes.exact.entry(host.clone()).or_insert_with(|| routing.clone());
                }
            }
        }
        routes.wildcards.sort_by_key(|(host, _)| std::cmp::Reverse(hosts::narrowness(host)));
        routes
    }

    /// The VirtualService for a host.
    pub fn lookup(&self, host: &str) -> Option<&Arc<Routing>> {
        self.exact.get(host).or_else(|| {
            self.wildcards
                .iter()
                .find(|(pattern, _)| hosts::covers(pattern, host))
                .map(|(_, routing)| routing)
        })
    }

    /// All hosts that have a VirtualService, exact ones first.
    pub fn hosts(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Routing>)> {
        self.exact.iter().chain(self.wildcards.iter().map(|(h, r)| (h, r)))
    }
}
