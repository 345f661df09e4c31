//! Inbound: the ports of a workload, what they take (mutual TLS, plaintext, both), and who is asked first.
//!
//! In: a proxy, its Sidecar's ingress listeners or the services it backs. Out: listeners and `inbound|port||` clusters.
//! Kept true: a STRICT port has no chain for plaintext; a port nobody declared goes to the workload as it came, under
//! the same mode. Not here: what clients send (`tls::client_mode`).

use super::{
    Made, Part, Translator,
    authz::Layer,
    outbound::{chain, listener, plain_http},
    tls::server_context,
};
use crate::model::{
    Model,
    auth::{self, Mode, ServerPort},
    policy,
    scope::{Capture, Proxy},
    service::{Protocol, Service},
};
use mesh_config::kinds::{self, IngressListener, ServerTlsMode};
use mesh_traffic::{
    cluster::{self, Balance, Cluster, Discovery},
    endpoint::{Address, Endpoint, Endpoints},
    filter::{ExtAuthz, ExtAuthzPerRoute, FilterConfig, HttpFilter, PerRoute},
    listener::{FilterChain, Inspect, RouteSource, Terminal, Transport},
    names::{BLACK_HOLE, ClusterName, Direction, INBOUND_PASSTHROUGH, Name, VIRTUAL_INBOUND},
    route::{Action, Forward, HeaderOps, Route, RouteConfiguration, RouteMatch, Target, VirtualHost},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

/// How long mixer may take to answer before a request is refused for it.
const POLICY_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for the first bytes where a server may have to speak first.
const SERVER_MAY_SPEAK: Duration = Duration::from_secs(1);
/// Longest wait for the first bytes where clients speak first.
const CLIENT_SPEAKS: Duration = Duration::from_secs(15);
/// Where captured connections to the workload come from, so that capture lets them through.
const INBOUND_SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6));

/// One port of the workload.
struct Inbound {
    port: u16,
    protocol: Protocol,
    /// Services behind it: host, name, namespace, service port, port name.
    services: Vec<(Arc<Service>, u16, Arc<str>)>,
    sources: Vec<Arc<str>>,
}

/// Host and port of the policy service: `mixerCheckServer` of mesh config, else the `mixer` of the root namespace.
pub fn policy_host(model: &Model) -> Option<(Arc<str>, u16)> {
    let written = model.mesh().mixer_check_server.as_deref().and_then(|s| {
        let (host, port) = s.rsplit_once(':')?;
        Some((Arc::from(host), port.parse().ok()?))
    });
    let root = model.snapshot.root_namespace();
    let own = || (Arc::from(format!("mixer.{root}.svc.{}", crate::model::DOMAIN)), 9091);
    let known =
        |(host, port): &(Arc<str>, u16)| model.services.get(host).is_some_and(|s| s.port(*port).is_some());
    written.filter(known).or_else(|| Some(own()).filter(known))
}

impl Translator {
    /// Inbound listeners and clusters of a proxy.
    pub fn inbound(&self, proxy: &Proxy, sidecar: Option<&kinds::Sidecar>) -> Part {
        let mut part = Part::default();
        let backed = self.model.backed_by(&proxy.addresses);
        let ingress = sidecar.map(|s| &s.ingress[..]).unwrap_or_default();
        let mut chains = Vec::new();
        let mut sources = Vec::new();
        if ingress.is_empty() {
            let mut ports: BTreeMap<u16, Inbound> = BTreeMap::new();
            for (service, service_port, port) in backed.clone() {
                let one = ports.entry(port).or_insert_with(|| Inbound {
                    port,
                    protocol: service_port.protocol,
                    services: Vec::new(),
                    sources: Vec::new(),
                });
                one.sources.push(service.source.clone());
                one.services.push((service, service_port.number, service_port.name));
            }
            if proxy.capture == Capture::Redirect {
                for one in ports.into_values().filter(|p| p.protocol != Protocol::Udp) {
                    part.cluster(Made::from(
                        self.captured_cluster(&ClusterName::inbound(one.port).to_string()),
                        one.sources.clone(),
                    ));
                    let (made, from) = self.port_chains(proxy, &one, None, Some(one.port));
                    chains.extend(made);
                    sources.extend(from);
                }
            }
        }
        for written in ingress {
            let Ok(port) = u16::try_from(written.port.number) else { continue };
            let one = Inbound {
                port,
                protocol: match Protocol::named(&written.port.protocol) {
                    Some(declared) => declared,
                    None => Protocol::select(None, &written.port.name, "TCP", port),
                },
                services: backed
                    .iter()
                    .filter(|(_, _, at)| *at == port)
                    .map(|(s, p, _)| (s.clone(), p.number, p.name.clone()))
                    .collect(),
                sources: Vec::new(),
            };
            let pool = sidecar.and_then(|s| s.inbound_connection_pool.as_ref());
            part.cluster(Made::from(self.ingress_cluster(proxy, written, port, pool), Vec::new()));
            let bind = written.bind.as_deref().and_then(|b| b.parse::<IpAddr>().ok());
            if proxy.capture == Capture::Redirect && bind.is_none() {
                let (made, from) = self.port_chains(proxy, &one, written.tls.as_ref(), Some(port));
                chains.extend(made);
                sources.extend(from);
                continue;
            }
            let bind = bind.unwrap_or_else(|| proxy.address());
            let (made, from) = self.port_chains(proxy, &one, written.tls.as_ref(), None);
            let name = format!("{bind}_{port}");
            let mut own = listener(name.as_str(), SocketAddr::new(bind, port), Direction::Inbound, true);
            own.inspect = inspection(&made);
            own.chains = made;
            own.access_log = self.access_log();
            part.listener(Made::from(own, from));
        }
        if proxy.capture == Capture::Redirect {
            self.catch_all(&mut part, proxy, chains, sources);
        }
        part
    }

    /// `virtualInbound`: the declared ports' chains, then everything else under the workload's own mode.
    fn catch_all(
        &self,
        part: &mut Part,
        proxy: &Proxy,
        mut chains: Vec<Arc<FilterChain>>,
        mut sources: Vec<Arc<str>>,
    ) {
        let port = u16::try_from(self.model.mesh().proxy_inbound_listen_port).unwrap_or(15006);
        part.cluster(Made::from(self.captured_cluster(INBOUND_PASSTHROUGH), Vec::new()));
        let rest =
            Inbound { port: 0, protocol: Protocol::Unknown, services: Vec::new(), sources: Vec::new() };
        let (made, from) = self.port_chains(proxy, &rest, None, None);
        chains.extend(made);
        sources.extend(from);
        let mut all = listener(
            VIRTUAL_INBOUND,
            SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
            Direction::Inbound,
            true,
        );
        // A connection to the listener's own port would come back to it for ever.
        let mut own =
            chain("virtualInbound-blackhole", self.tcp(BLACK_HOLE, Target::Cluster(BLACK_HOLE.into())));
        own.matcher.port = Some(port);
        all.chains.push(Arc::new(own));
        all.chains.extend(chains);
        all.inspect = Inspect { original_dst: true, ..inspection(&all.chains) };
        all.access_log = self.access_log();
        part.listener(Made::from(all, sources));
    }

    fn captured_cluster(&self, name: &str) -> Cluster {
        Cluster {
            discovery: Discovery::OriginalDst,
            balance: Balance::Provided,
            connect_timeout: self.model.mesh().connect_timeout.0,
            protocol: cluster::Protocol::Downstream,
            source_address: Some(INBOUND_SOURCE),
            ..Cluster::eds(name)
        }
    }

    fn ingress_cluster(
        &self,
        proxy: &Proxy,
        written: &IngressListener,
        port: u16,
        pool: Option<&kinds::ConnectionPool>,
    ) -> Cluster {
        let target = written.default_endpoint.as_deref().unwrap_or_default();
        let address = match target.strip_prefix("unix://") {
            Some(path) => Address::Pipe(path.into()),
            None => Address::Ip(match target.parse::<SocketAddr>() {
                Ok(at) if at.ip().is_unspecified() => SocketAddr::new(proxy.address(), at.port()),
                Ok(at) => at,
                Err(_) => SocketAddr::new(proxy.address(), port),
            }),
        };
        let name = ClusterName::inbound(port).to_string();
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let endpoint = Endpoint { address, ..Endpoint::at(loopback) };
        let mut cluster = Cluster {
            discovery: Discovery::Static(Arc::new(Endpoints::flat(&name, vec![endpoint]))),
            connect_timeout: self.model.mesh().connect_timeout.0,
            protocol: cluster::Protocol::Downstream,
            panic_percent: 0,
            ..Cluster::eds(&name)
        };
        if let Some(pool) = written.connection_pool.as_ref().or(pool) {
            super::cluster::apply_pool(&mut cluster, pool);
        }
        cluster
    }

    /// The chains of one port. `match_port` is set where the port is told apart by the original destination.
    fn port_chains(
        &self,
        proxy: &Proxy,
        one: &Inbound,
        written: Option<&kinds::ServerTls>,
        match_port: Option<u16>,
    ) -> (Vec<Arc<FilterChain>>, Vec<Arc<str>>) {
        let server = ServerPort {
            namespace: &proxy.namespace,
            labels: &proxy.labels,
            port: one.port,
            services: one.services.iter().map(|(s, number, name)| (&*s.name, *number, &**name)).collect(),
        };
        let auth::Effective { mode, source } = auth::effective(&self.model, &server);
        let mut sources = one.sources.clone();
        sources.extend(source);
        // A port that ends TLS of its own is no business of peer authentication.
        let own_tls = written.filter(|t| matches!(t.mode, ServerTlsMode::Simple | ServerTlsMode::Mutual));
        let mode = if own_tls.is_some() { Mode::Disable } else { mode };
        let layer = self.authorization(&proxy.namespace, &proxy.labels);
        sources.extend(layer.sources.iter().cloned());
        let name = match one.port {
            0 => "virtualInbound".to_owned(),
            port => format!("0.0.0.0_{port}"),
        };
        let mesh = self.model.mesh();
        let mut out: Vec<FilterChain> = Vec::new();
        let http = |out: &mut Vec<FilterChain>, suffix: &str, tls: bool, protocols: Vec<Name>| {
            let terminal = Terminal::Http(Arc::new(self.inbound_http(proxy, one, &layer)));
            let mut chain = chain(format!("{name}{suffix}"), terminal);
            chain.tls = tls.then(|| server_context(mesh, true));
            chain.matcher.transport =
                (mode != Mode::Disable).then_some(if tls { Transport::Tls } else { Transport::Raw });
            chain.matcher.protocols = protocols;
            out.push(chain);
        };
        let target = match one.port {
            0 => Name::from(INBOUND_PASSTHROUGH),
            port => ClusterName::inbound(port).to_string().into(),
        };
        let bytes = |out: &mut Vec<FilterChain>, suffix: &str, tls: bool, transport, protocols: Vec<Name>| {
            let terminal = self.tcp(&target, Target::Cluster(target.clone()));
            let mut chain = chain(format!("{name}{suffix}"), terminal);
            chain.tls = tls.then(|| server_context(mesh, false));
            chain.rbac = layer.network();
            chain.matcher.transport = transport;
            chain.matcher.protocols = protocols;
            out.push(chain);
        };
        let istio_http = || ["istio-http/1.0", "istio-http/1.1", "istio-h2"].map(Name::from).to_vec();
        let istio_tcp = || ["istio", "istio-peer-exchange"].map(Name::from).to_vec();
        let (tls, raw) = (Some(Transport::Tls), Some(Transport::Raw));
        let takes_tls = mode != Mode::Disable;
        let takes_raw = mode != Mode::Strict;
        match one.protocol {
            Protocol::Http | Protocol::Http2 | Protocol::HttpProxy => {
                if takes_tls {
                    http(&mut out, "-mtls", true, Vec::new());
                }
                if takes_raw {
                    http(&mut out, "", false, Vec::new());
                }
            }
            Protocol::Unknown => {
                if takes_tls {
                    http(&mut out, "-mtls-http", true, istio_http());
                    let other = if takes_raw { istio_tcp() } else { Vec::new() };
                    bytes(&mut out, "-mtls", true, tls, other);
                }
                if takes_raw {
                    http(&mut out, "-http", false, plain_http());
                    bytes(&mut out, "", false, if takes_tls { raw } else { None }, Vec::new());
                }
                if takes_tls && takes_raw {
                    bytes(&mut out, "-tls", false, tls, Vec::new());
                }
            }
            _ => {
                if takes_tls && takes_raw {
                    bytes(&mut out, "-mtls", true, tls, istio_tcp());
                    bytes(&mut out, "-tls", false, tls, Vec::new());
                    bytes(&mut out, "", false, raw, Vec::new());
                } else if takes_tls {
                    bytes(&mut out, "-mtls", true, tls, Vec::new());
                } else {
                    bytes(&mut out, "", false, None, Vec::new());
                }
            }
        }
        for chain in &mut out {
            chain.matcher.port = match_port;
            if let Some(own) = own_tls {
                chain.tls = super::gateway::downstream(own, mesh);
            }
        }
        (out.into_iter().map(Arc::new).collect(), sources)
    }

    /// Whom a rule's requests are asked about. Without a policy service they go nowhere, and are refused unless `policyCheckFailOpen`
    /// says otherwise: a rule that is in force for nobody's knowledge would be worse.
    fn policy_cluster(&self, rule: &Arc<str>) -> Name {
        match policy_host(&self.model) {
            Some((host, port)) => ClusterName::outbound(port, "", &host).to_string().into(),
            None => {
                let root = self.model.snapshot.root_namespace();
                let why = format!(
                    "nobody can be asked: there is no Service mixer with port 9091 in {root}, and mixerCheckServer names no other"
                );
                self.problem(rule, "spec.actions", why);
                BLACK_HOLE.into()
            }
        }
    }

    fn inbound_http(
        &self,
        proxy: &Proxy,
        one: &Inbound,
        layer: &Layer,
    ) -> mesh_traffic::listener::HttpManager {
        let cluster = match one.port {
            0 => INBOUND_PASSTHROUGH.to_owned(),
            port => ClusterName::inbound(port).to_string(),
        };
        let host = one.services.first();
        let rule = policy::checked(&self.model, &proxy.namespace, &proxy.labels);
        let asks = rule.map(|rule| self.policy_cluster(&rule));
        let route = Route {
            name: "default".into(),
            matcher: RouteMatch::default(),
            action: Action::Forward(Box::new(Forward {
                target: Target::Cluster(cluster.as_str().into()),
                max_grpc_timeout: Some(Duration::ZERO),
                cluster_not_found: 503,
                ..Forward::default()
            })),
            headers: HeaderOps::default(),
            filters: PerRoute {
                ext_authz: asks
                    .as_ref()
                    .map(|_| ExtAuthzPerRoute::Context(context(proxy, host.map(|(s, ..)| s)))),
                ..PerRoute::default()
            },
            source: None,
            operation: host.map(|(s, port, _)| format!("{}:{port}/*", s.host).into()),
        };
        let table = RouteConfiguration {
            name: cluster.as_str().into(),
            virtual_hosts: vec![Arc::new(VirtualHost {
                name: format!("inbound|http|{}", one.port).into(),
                domains: vec!["*".into()],
                routes: vec![Arc::new(route)],
                ..VirtualHost::default()
            })],
            ..RouteConfiguration::default()
        };
        let mut filters: Vec<HttpFilter> = layer.http();
        if let Some(cluster) = asks {
            let ask = ExtAuthz {
                cluster,
                timeout: POLICY_TIMEOUT,
                fail_open: self.model.mesh().policy_check_fail_open,
                status_on_error: 503,
                include_peer_certificate: false,
                allowed_headers: Vec::new(),
            };
            filters.push(super::http::filter(
                "envoy.filters.http.ext_authz",
                FilterConfig::ExtAuthz(Arc::new(ask)),
            ));
        }
        let stat = format!("inbound_0.0.0.0_{}", one.port);
        self.inbound_manager(stat, RouteSource::Inline(Arc::new(table)), filters)
    }
}

/// What mixer is told about the destination, sorted by name.
fn context(proxy: &Proxy, service: Option<&Arc<Service>>) -> Vec<(Name, Name)> {
    let mut facts = vec![("context.reporter.kind".into(), Name::from("inbound"))];
    if let Some(service) = service {
        facts.push(("destination.service.host".into(), service.host.clone()));
        facts.push(("destination.service.name".into(), service.name.clone()));
        facts.push(("destination.service.namespace".into(), service.namespace.clone()));
    }
    facts.push(("destination.uid".into(), format!("kubernetes://{}.{}", proxy.name, proxy.namespace).into()));
    facts
}

/// What must be looked at to tell the chains apart, and how long that may take. Where every client speaks first there
/// is no hurry: a busy one must not be taken for plaintext. Where a server may speak first, waiting delays it.
fn inspection(chains: &[Arc<FilterChain>]) -> Inspect {
    let tls = chains.iter().any(|c| c.matcher.transport.is_some());
    let http = chains.iter().any(|c| c.tls.is_none() && !c.matcher.protocols.is_empty());
    let bytes = chains.iter().any(|c| matches!(c.terminal, Terminal::Tcp(_)) && c.tls.is_none());
    let patience = if bytes { SERVER_MAY_SPEAK } else { CLIENT_SPEAKS };
    Inspect { original_dst: false, tls, http, timeout: (tls || http).then_some(patience) }
}
