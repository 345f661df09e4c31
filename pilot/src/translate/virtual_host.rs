//! Virtual hosts: which names a service answers to, and the tables they stand in.
//!
//! In: a view and a port. Out: route tables `8080`, with virtual hosts `host:port`.
//! Kept true: no domain stands in two virtual hosts of a table (the first keeps it), since one double would make a proxy
//! refuse the whole table. Not here: the routes (`route`).

use super::{
    Made, Translator,
    route::{Place, default_route},
};
use crate::model::{
    DOMAIN,
    routing::MESH,
    scope::{Egress, Proxy, View},
    service::{Protocol, Resolution, Service},
};
use mesh_config::kinds::OutboundMode;
use mesh_traffic::{
    RouteConfiguration,
    names::{BLACK_HOLE, Name, PASSTHROUGH},
    route::{Action, Direct, Forward, HeaderOps, Route, RouteMatch, Target, VirtualHost},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// Which requests a table is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// Those captured for one service port; names with and without the port lead there.
    Port(u16),
    /// Those an application hands to an explicit HTTP proxy on this port; names carry the port unless it is 80.
    Proxy(u16),
}

impl TableKind {
    /// The table's name: its port.
    pub fn name(self) -> Name {
        let (TableKind::Port(port) | TableKind::Proxy(port)) = self;
        port.to_string().into()
    }
}

/// Builds one table.
struct Table<'a> {
    translator: &'a Translator,
    view: &'a View,
    labels: &'a BTreeMap<String, String>,
    kind: TableKind,
    taken: BTreeSet<Name>,
    hosts: Vec<Arc<VirtualHost>>,
    sources: Vec<Arc<str>>,
}

impl Translator {
    /// The table for requests of `proxy` over one of its egress listeners.
    pub fn outbound_table(
        &self,
        proxy: &Proxy,
        egress: &Egress,
        view: &View,
        kind: TableKind,
        policy: OutboundMode,
    ) -> Made<RouteConfiguration> {
        let mut table = Table {
            translator: self,
            view,
            labels: &proxy.labels,
            kind,
            taken: BTreeSet::new(),
            hosts: Vec::new(),
            sources: Vec::new(),
        };
        for service in view.services.values().filter(|s| egress.sees(&s.namespace, &s.host)) {
            for port in
                service.ports.iter().filter(|p| p.protocol.is_http() || p.protocol == Protocol::Unknown)
            {
                if matches!(kind, TableKind::Port(number) if number != port.number) {
                    continue;
                }
                table.service(service, port.number);
            }
        }
        // Hosts that no service has take effect on port 80 only.
        if matches!(kind, TableKind::Port(80) | TableKind::Proxy(_)) {
            table.unknown_hosts(egress);
        }
        table.rest(policy);
        let configuration = RouteConfiguration {
            name: kind.name(),
            virtual_hosts: table.hosts,
            ..RouteConfiguration::default()
        };
        Made::from(configuration, table.sources)
    }
}

impl Table<'_> {
    fn service(&mut self, service: &Arc<Service>, port: u16) {
        let routing = self.view.routes.lookup(&service.host);
        let routes = match routing {
            Some(routing) => {
                let place = Place { view: self.view, labels: self.labels, port, gateway: MESH };
                self.sources.push(routing.label.clone());
                let routes = self.translator.routes(place, routing);
                // Only TCP or TLS routes: HTTP goes as if there were none.
                if routing.object.spec.http.is_empty() {
                    vec![default_route(self.translator, self.view, service, port)]
                } else {
                    routes
                }
            }
            None => vec![default_route(self.translator, self.view, service, port)],
        };
        let mut names = names_of(service, &self.view.key.namespace);
        if service.resolution == Resolution::Headless {
            let pods: Vec<_> = names.iter().map(|n| format!("*.{n}")).collect();
            names.extend(pods);
        }
        names.extend(service.addresses.iter().filter(|ip| !ip.is_unspecified()).map(|ip| match ip {
            std::net::IpAddr::V4(ip) => ip.to_string(),
            std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        }));
        self.add(&service.host.clone(), port, &names, routes);
    }

    fn unknown_hosts(&mut self, egress: &Egress) {
        let hosts: Vec<_> = self.view.routes.hosts().map(|(h, r)| (h.clone(), r.clone())).collect();
        for (host, routing) in hosts {
            let known = match host.starts_with('*') {
                true => self.view.services.keys().any(|service| crate::model::hosts::covers(&host, service)),
                false => self.view.services.contains_key(&host),
            };
            if known || &*host == "*" || !egress.sees(routing.object.namespace(), &host) {
                continue;
            }
            let place = Place { view: self.view, labels: self.labels, port: 80, gateway: MESH };
            self.sources.push(routing.label.clone());
            let routes = self.translator.routes(place, &routing);
            self.add(&host, 80, &[host.to_string()], routes);
        }
    }

    fn add(&mut self, host: &str, port: u16, names: &[String], routes: Vec<Arc<Route>>) {
        let bare = match self.kind {
            TableKind::Port(_) => true,
            TableKind::Proxy(_) => port == 80,
        };
        let mut domains: Vec<Name> = Vec::new();
        for name in names {
            let with_port = format!("{name}:{port}");
            let both = [bare.then(|| Name::from(name.as_str())), Some(with_port.into())];
            for domain in both.into_iter().flatten() {
                if self.taken.insert(domain.clone()) {
                    domains.push(domain);
                }
            }
        }
        if domains.is_empty() {
            return;
        }
        self.hosts.push(Arc::new(VirtualHost {
            name: format!("{host}:{port}").into(),
            domains,
            routes,
            include_attempt_count: true,
            ..VirtualHost::default()
        }));
    }

    /// Everything else: on to where the client was going, or refused.
    fn rest(&mut self, policy: OutboundMode) {
        self.hosts.push(Arc::new(rest_of(policy)));
    }
}

/// The virtual host for names that the mesh does not know.
pub fn rest_of(policy: OutboundMode) -> VirtualHost {
    let (name, action) = match policy {
        OutboundMode::AllowAny => {
            let forward = Forward {
                target: Target::Cluster(PASSTHROUGH.into()),
                max_grpc_timeout: Some(Duration::ZERO),
                cluster_not_found: 503,
                ..Forward::default()
            };
            ("allow_any", Action::Forward(Box::new(forward)))
        }
        OutboundMode::RegistryOnly => {
            ("block_all", Action::Direct(Direct { status: 502, body: Arc::default() }))
        }
    };
    let route = Route {
        name: name.into(),
        matcher: RouteMatch::default(),
        action,
        headers: HeaderOps::default(),
        filters: mesh_traffic::filter::PerRoute::default(),
        source: None,
        operation: None,
    };
    VirtualHost {
        name: name.into(),
        domains: vec!["*".into()],
        routes: vec![Arc::new(route)],
        include_attempt_count: true,
        ..VirtualHost::default()
    }
}

/// Where traffic that nothing else takes is sent.
pub fn rest_cluster(policy: OutboundMode) -> &'static str {
    match policy {
        OutboundMode::AllowAny => PASSTHROUGH,
        OutboundMode::RegistryOnly => BLACK_HOLE,
    }
}

/// Names by which clients in `namespace` may call a service: the full one, and the shorter ones that Kubernetes' DNS
/// completes there.
fn names_of(service: &Service, namespace: &str) -> Vec<String> {
    let mut names = vec![service.host.to_string()];
    if service.kubernetes {
        let Service { name, namespace: home, .. } = service;
        if &**home == namespace {
            names.push(name.to_string());
        }
        names.push(format!("{name}.{home}.svc"));
        names.push(format!("{name}.{home}"));
        debug_assert!(service.host.ends_with(DOMAIN));
    }
    names
}
