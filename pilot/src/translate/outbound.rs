//! Outbound listeners: one per service port, the catch-all, and the ports a Sidecar opens itself.
//!
//! In: a proxy, its egress listeners and views. Out: listeners, and the route tables they name.
//! Kept true: an HTTP port has one listener for all its services, a TCP port one per service address.
//! Not here: gateways (`gateway`), what comes in (`inbound`).

use super::{
    Made, Part, Translator,
    virtual_host::{TableKind, rest_cluster},
};
use crate::model::{
    routing::MESH,
    scope::{Capture, Egress, Proxy, View},
    service::{Port, Protocol, Resolution, Service},
    workload::selects,
};
use mesh_config::kinds::OutboundMode;
use mesh_traffic::{
    Listener,
    listener::{ChainMatch, FilterChain, Inspect, RouteSource, TcpProxy, Terminal, Transport},
    names::{ClusterName, Direction, Name, VIRTUAL_OUTBOUND},
    route::{Arm, HeaderOps, Split, Target},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

/// A listener with every default.
pub fn listener(name: impl Into<Name>, address: SocketAddr, direction: Direction, bind: bool) -> Listener {
    Listener {
        name: name.into(),
        address,
        additional: Vec::new(),
        bind,
        use_original_dst: false,
        direction,
        inspect: Inspect::default(),
        chains: Vec::new(),
        default_chain: None,
        access_log: Vec::new(),
    }
}

/// A chain without conditions.
pub fn chain(name: impl Into<Name>, terminal: Terminal) -> FilterChain {
    FilterChain {
        name: name.into(),
        matcher: ChainMatch::default(),
        tls: None,
        rbac: Vec::new(),
        terminal,
        source: None,
    }
}

/// The names by which HTTP inspection marks plaintext HTTP.
pub fn plain_http() -> Vec<Name> {
    ["http/1.0", "http/1.1", "h2c"].map(Name::from).to_vec()
}

impl Translator {
    /// Bytes to a target.
    pub fn tcp(&self, stat_prefix: &str, target: Target) -> Terminal {
        Terminal::Tcp(Arc::new(TcpProxy {
            stat_prefix: stat_prefix.into(),
            target,
            idle_timeout: Duration::from_secs(3600),
            access_log: self.access_log(),
            log_service: self.log_service(),
        }))
    }

    /// Outbound listeners and route tables of a proxy.
    pub fn outbound(&self, proxy: &Proxy, egress: &[(Egress, Arc<View>)], policy: OutboundMode) -> Part {
        let mut part = Part::default();
        for (one, view) in egress {
            match one.port {
                Some((port, protocol)) if protocol.is_http() => {
                    self.http_port(&mut part, proxy, one, view, port, protocol, policy);
                }
                Some((port, _)) => self.tcp_port(&mut part, proxy, one, view, port),
                None if proxy.capture == Capture::Redirect => {
                    self.captured(&mut part, proxy, one, view, policy);
                }
                None => {}
            }
        }
        if proxy.capture == Capture::Redirect {
            let port = u16::try_from(self.model.mesh().proxy_listen_port).unwrap_or(15001);
            let mut catch_all = listener(
                VIRTUAL_OUTBOUND,
                SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
                Direction::Outbound,
                true,
            );
            catch_all.use_original_dst = true;
            catch_all.inspect.original_dst = true;
            catch_all.access_log = self.access_log();
            let rest = rest_cluster(policy);
            catch_all.default_chain = Some(Arc::new(chain(
                "virtualOutbound-catchall-tcp",
                self.tcp(rest, Target::Cluster(rest.into())),
            )));
            part.listener(Made::from(catch_all, Vec::new()));
        }
        part
    }

    /// A port that a Sidecar opens for HTTP: an explicit proxy, or one service port.
    #[allow(clippy::too_many_arguments, reason = "one listener's whole context")]
    fn http_port(
        &self,
        part: &mut Part,
        proxy: &Proxy,
        egress: &Egress,
        view: &View,
        port: u16,
        protocol: Protocol,
        policy: OutboundMode,
    ) {
        let bind = egress.bind.unwrap_or(match proxy.capture {
            Capture::None => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Capture::Redirect => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        });
        let explicit = protocol == Protocol::HttpProxy;
        let kind = if explicit { TableKind::Proxy(port) } else { TableKind::Port(port) };
        let table = self.outbound_table(proxy, egress, view, kind, policy);
        let name = format!("{bind}_{port}");
        let mut manager =
            self.outbound_manager(format!("outbound_{name}"), RouteSource::Rds(table.value.name.clone()));
        if explicit {
            manager.upgrades.push("connect".into());
        }
        let binds = explicit || proxy.capture == Capture::None;
        let mut one = listener(name.as_str(), SocketAddr::new(bind, port), Direction::Outbound, binds);
        one.chains.push(Arc::new(chain(name, Terminal::Http(Arc::new(manager)))));
        part.listener(Made::from(one, Vec::new()));
        part.table(table);
    }

    /// A port that a Sidecar opens for bytes: to the first service it may see on that port.
    fn tcp_port(&self, part: &mut Part, proxy: &Proxy, egress: &Egress, view: &View, port: u16) {
        let found = view
            .services
            .values()
            .filter(|s| egress.sees(&s.namespace, &s.host))
            .find_map(|s| s.ports.iter().find(|p| p.number == port).map(|p| (s, p)));
        let Some((service, service_port)) = found else { return };
        let bind = egress.bind.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let name = format!("{bind}_{port}");
        let binds = proxy.capture == Capture::None;
        let mut one = listener(name.as_str(), SocketAddr::new(bind, port), Direction::Outbound, binds);
        let (target, sources) = self.tcp_target(proxy, view, service, service_port);
        one.chains.push(Arc::new(chain(name.as_str(), self.tcp(&name, target))));
        part.listener(Made::from(one, sources));
    }

    /// Captured traffic: every service port has its listener.
    fn captured(&self, part: &mut Part, proxy: &Proxy, egress: &Egress, view: &View, policy: OutboundMode) {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let mut http: BTreeMap<u16, Vec<Arc<str>>> = BTreeMap::new();
        let seen = || view.services.values().filter(|s| egress.sees(&s.namespace, &s.host));
        for service in seen() {
            for port in service.ports.iter().filter(|p| p.protocol.is_http()) {
                http.entry(port.number).or_default().push(service.source.clone());
            }
        }
        for service in seen() {
            for port in service.ports.iter().filter(|p| !p.protocol.is_http() && p.protocol != Protocol::Udp)
            {
                let addresses = match service.resolution {
                    Resolution::Headless => service.at(port.number).filter_map(|e| e.ip()).collect(),
                    _ => service.addresses.clone(),
                };
                let own =
                    |ip: &IpAddr| service.resolution != Resolution::Headless || !proxy.addresses.contains(ip);
                let usable: Vec<_> =
                    addresses.into_iter().filter(|ip| !ip.is_unspecified()).filter(own).collect();
                if usable.is_empty() && service.resolution != Resolution::Headless {
                    if let Some(others) = http.get(&port.number) {
                        let why = format!(
                            "port {} has no address of its own and is taken by HTTP of {}: not reachable by capture",
                            port.number, others[0]
                        );
                        self.problem(&service.source, "spec.ports", why);
                        continue;
                    }
                    self.captured_tcp(part, proxy, view, service, port, any, policy);
                }
                for ip in usable {
                    self.captured_tcp(part, proxy, view, service, port, ip, policy);
                }
            }
        }
        for (port, sources) in http {
            let table = self.outbound_table(proxy, egress, view, TableKind::Port(port), policy);
            let name = format!("{any}_{port}");
            let manager =
                self.outbound_manager(format!("outbound_{name}"), RouteSource::Rds(table.value.name.clone()));
            let mut one = listener(name.as_str(), SocketAddr::new(any, port), Direction::Outbound, false);
            one.inspect.http = true;
            one.inspect.tls = true;
            one.inspect.timeout = Some(Duration::from_millis(100));
            let mut plain = chain(name.as_str(), Terminal::Http(Arc::new(manager)));
            plain.matcher.transport = Some(Transport::Raw);
            plain.matcher.protocols = plain_http();
            one.chains.push(Arc::new(plain));
            let rest = rest_cluster(policy);
            one.default_chain =
                Some(Arc::new(chain("PassthroughFilterChain", self.tcp(rest, Target::Cluster(rest.into())))));
            part.listener(Made::from(one, sources));
            part.table(table);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "one listener's whole context")]
    fn captured_tcp(
        &self,
        part: &mut Part,
        proxy: &Proxy,
        view: &View,
        service: &Arc<Service>,
        port: &Port,
        ip: IpAddr,
        policy: OutboundMode,
    ) {
        let name = format!("{ip}_{}", port.number);
        let mut one = listener(name.as_str(), SocketAddr::new(ip, port.number), Direction::Outbound, false);
        let (target, mut sources) = self.tcp_target(proxy, view, service, port);
        sources.push(service.source.clone());
        let bytes = chain(name.as_str(), self.tcp(&name, target));
        if port.protocol == Protocol::Unknown {
            one.inspect = Inspect {
                http: true,
                tls: true,
                original_dst: false,
                timeout: Some(Duration::from_millis(100)),
            };
            let egress = Egress::one(&service.namespace, &service.host);
            let mut table = self.outbound_table(proxy, &egress, view, TableKind::Port(port.number), policy);
            table.value.name = format!("{}:{}", service.host, port.number).into();
            let routes = RouteSource::Rds(table.value.name.clone());
            let manager = self.outbound_manager(format!("outbound_{name}"), routes);
            let mut plain = chain(format!("{name}-http"), Terminal::Http(Arc::new(manager)));
            plain.matcher.transport = Some(Transport::Raw);
            plain.matcher.protocols = plain_http();
            one.chains.push(Arc::new(plain));
            one.default_chain = Some(Arc::new(bytes));
            part.table(table);
        } else {
            one.chains.push(Arc::new(bytes));
        }
        part.listener(Made::from(one, sources));
    }

    /// Where bytes for a service port go: the first TCP or TLS route that can apply, else the service itself.
    fn tcp_target(
        &self,
        proxy: &Proxy,
        view: &View,
        service: &Arc<Service>,
        port: &Port,
    ) -> (Target, Vec<Arc<str>>) {
        let own =
            || Target::Cluster(ClusterName::outbound(port.number, "", &service.host).to_string().into());
        let Some(routing) = view.routes.lookup(&service.host) else { return (own(), Vec::new()) };
        let spec = &routing.object.spec;
        let client = |labels: &BTreeMap<String, String>, namespace: &Option<String>, gateways: &[String]| {
            (gateways.is_empty() || gateways.iter().any(|g| g == MESH))
                && selects(labels, &proxy.labels)
                && namespace.as_deref().is_none_or(|ns| ns.is_empty() || ns == &*proxy.namespace)
        };
        let on_port = |asked: Option<u32>| asked.is_none_or(|p| p == u32::from(port.number));
        let tcp = spec.tcp.iter().find(|r| {
            r.r#match.is_empty()
                || r.r#match
                    .iter()
                    .any(|m| on_port(m.port) && client(&m.source_labels, &m.source_namespace, &m.gateways))
        });
        let tls = || {
            spec.tls.iter().find(|r| {
                r.r#match
                    .iter()
                    .any(|m| on_port(m.port) && client(&m.source_labels, &m.source_namespace, &m.gateways))
            })
        };
        let route = match tcp {
            Some(route) => Some(&route.route),
            None if port.protocol == Protocol::Tls => tls().map(|r| &r.route),
            None => None,
        };
        match route.and_then(|r| self.weighted(r, routing.object.namespace(), port.number)) {
            Some(target) => (target, vec![routing.label.clone()]),
            None => (own(), Vec::new()),
        }
    }

    /// Destinations of a TCP or TLS route by weight; `None` if there is none.
    pub fn weighted(
        &self,
        routes: &[mesh_config::kinds::RouteDestination],
        namespace: &str,
        port: u16,
    ) -> Option<Target> {
        let mut arms: Vec<Arm> = routes
            .iter()
            .map(|to| {
                let host = crate::model::hosts::full(&to.destination.host, namespace);
                let asked =
                    to.destination.port.as_ref().and_then(|p| p.number).and_then(|n| u16::try_from(n).ok());
                let only =
                    self.model.services.get(&host).filter(|s| s.ports.len() == 1).map(|s| s.ports[0].number);
                let subset = to.destination.subset.as_deref().unwrap_or_default();
                let name = ClusterName::outbound(asked.or(only).unwrap_or(port), subset, &host);
                let weight = if routes.len() == 1 {
                    1
                } else {
                    to.weight.and_then(|w| u32::try_from(w).ok()).unwrap_or(0)
                };
                Arm {
                    cluster: name.to_string().into(),
                    weight,
                    headers: HeaderOps::default(),
                    host_rewrite: None,
                }
            })
            .filter(|arm| arm.weight > 0)
            .collect();
        match arms.len() {
            0 => None,
            1 => Some(Target::Cluster(arms.remove(0).cluster)),
            _ => Split::new(arms).ok().map(Target::Split),
        }
    }
}
