//! Gateways: what a gateway pod listens on, and the routes of the VirtualServices bound to it.
//!
//! In: a gateway proxy. Out: a listener per port, tables `http.<port>` and `https.…`, and the secrets they name.
//! Kept true: a server's port is that of the gateway's Service, listened on at its target port; routes of all
//! VirtualServices of a host count, catch-alls last; secrets go to verified proxies of their own namespace only.
//! Not here: sidecars (`outbound`, `inbound`).

use super::{
    Made, Part, Translator,
    outbound::{chain, listener},
    route::Place,
    tls::server_context,
};
use crate::model::{
    hosts, label_of,
    routing::Routing,
    scope::{Capture, Proxy, View},
    workload::selects,
};
use mesh_config::{
    Object,
    kinds::{Gateway, MeshConfig, Server, ServerTls, ServerTlsMode, TlsVersion},
};
use mesh_traffic::{
    RouteConfiguration,
    listener::{FilterChain, Inspect, RouteSource, Terminal, Transport},
    matchers::StringMatch,
    names::{Direction, Name},
    route::{Route, RouteMatch, VirtualHost},
    tls::{
        Certificate, DownstreamTls, KeyPair, Roots, Secret, Validation, Version, Versions,
        WORKLOAD_CERTIFICATE, WORKLOAD_ROOTS,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

/// Routes of a host, its server's port, whether plaintext is redirected.
type Hosted = (Vec<Arc<Route>>, u16, bool);

/// A server of a Gateway that applies to a proxy.
struct Open<'a> {
    gateway: &'a Arc<Object<Gateway>>,
    server: &'a Server,
    /// `namespace/name`.
    name: String,
}

impl Open<'_> {
    fn kind(&self) -> String {
        self.server.port.protocol.to_ascii_uppercase()
    }

    /// Hosts it serves for VirtualServices of `namespace`.
    fn hosts(&self, namespace: &str) -> Vec<String> {
        let of = |written: &String| match written.split_once('/') {
            Some((".", host)) => (self.gateway.namespace() == namespace).then(|| host.to_owned()),
            Some(("*", host)) => Some(host.to_owned()),
            Some((ns, host)) => (ns == namespace).then(|| host.to_owned()),
            None => Some(written.clone()),
        };
        self.server.hosts.iter().filter_map(of).map(|h| h.to_ascii_lowercase()).collect()
    }

    /// Server names that its TLS is chosen by; none for all.
    fn server_names(&self) -> Vec<Name> {
        let bare = self.server.hosts.iter().map(|h| h.split_once('/').map_or(h.as_str(), |(_, host)| host));
        let names: Vec<Name> = bare.map(|h| h.to_ascii_lowercase().into()).collect();
        if names.iter().any(|n| &**n == "*") { Vec::new() } else { names }
    }
}

/// Name of the secret with a gateway's certificate.
pub fn secret_name(credential: &str) -> Name {
    format!("kubernetes://{credential}").into()
}

/// Name of the secret with the roots that clients of a gateway are checked against.
pub fn roots_name(credential: &str) -> Name {
    format!("kubernetes://{credential}-cacert").into()
}

impl Translator {
    /// Listeners, tables and secrets of a gateway proxy.
    pub fn gateway(&self, proxy: &Proxy, view: &View) -> Part {
        let mut part = Part::default();
        let gateways: Vec<_> = self
            .model
            .snapshot
            .gateways
            .by_age()
            .into_iter()
            .filter(|g| selects(&g.spec.selector, &proxy.labels))
            .collect();
        let mut ports: BTreeMap<(u16, Option<IpAddr>), Vec<Open<'_>>> = BTreeMap::new();
        let backed = self.model.backed_by(&proxy.addresses);
        for gateway in &gateways {
            for server in &gateway.spec.servers {
                let Ok(number) = u16::try_from(server.port.number) else { continue };
                let target =
                    backed.iter().find(|(_, p, _)| p.number == number).map_or(number, |(_, _, at)| *at);
                let bind = server.bind.as_deref().and_then(|b| b.parse().ok());
                let name = format!("{}/{}", gateway.namespace(), gateway.name());
                ports.entry((target, bind)).or_default().push(Open { gateway, server, name });
            }
        }
        if proxy.verified {
            self.gateway_secrets(&mut part, proxy, &gateways);
        }
        for ((port, bind), servers) in ports {
            self.gateway_port(&mut part, proxy, view, port, bind, &servers);
        }
        part
    }

    fn gateway_port(
        &self,
        part: &mut Part,
        proxy: &Proxy,
        view: &View,
        port: u16,
        bind: Option<IpAddr>,
        servers: &[Open<'_>],
    ) {
        // Everywhere in the pod, as `kubectl port-forward` needs it. Pods that are addresses of one machine must keep apart.
        let address = bind.unwrap_or(match (proxy.capture, proxy.address()) {
            (Capture::None, own) if own.is_loopback() => own,
            (_, IpAddr::V4(_)) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            (_, IpAddr::V6(_)) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        });
        let name = format!("{address}_{port}");
        let mut one = listener(name.as_str(), SocketAddr::new(address, port), Direction::Outbound, true);
        one.access_log = self.access_log();
        let mut sources: Vec<Arc<str>> = servers.iter().map(|s| label_of(s.gateway)).collect();
        let layer = self.authorization(&proxy.namespace, &proxy.labels);
        sources.extend(layer.sources.iter().cloned());
        let http: Vec<_> = servers.iter().filter(|s| plain_http(&s.kind())).collect();
        let (tls, other): (Vec<_>, Vec<_>) =
            servers.iter().filter(|s| !plain_http(&s.kind())).partition(|s| s.server.tls.is_some());
        if !http.is_empty() {
            let table_name = format!("http.{port}");
            let table = self.gateway_table(&table_name, proxy, view, &http);
            let manager = self.gateway_manager(
                format!("outbound_{name}"),
                RouteSource::Rds(table_name.into()),
                layer.http(),
            );
            let mut plain = chain(name.as_str(), Terminal::Http(Arc::new(manager)));
            if !tls.is_empty() {
                plain.matcher.transport = Some(Transport::Raw);
            }
            one.chains.push(Arc::new(plain));
            part.table(table);
        }
        let mut taken: BTreeSet<Vec<Name>> = BTreeSet::new();
        for server in tls {
            let settings = server.server.tls.as_ref().expect("partitioned by having TLS settings");
            let passthrough =
                matches!(settings.mode, ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough);
            if passthrough {
                one.chains.extend(self.passthrough(proxy, view, server, &name, &mut taken));
                continue;
            }
            let Some(tls) = downstream(settings, self.model.mesh()) else { continue };
            // A listener waits for every secret that it names: one that is missing would hold back all servers of the port.
            if let Some(missing) = secrets_of(&tls).find(|name| !part.secrets.contains_key(*name)) {
                if missing.ends_with("-cacert") && proxy.verified {
                    let why = "the Secret has no `ca.crt` to check clients with: the port takes no TLS until it has";
                    self.problem(
                        &label_of(server.gateway),
                        "spec.servers.tls.credentialName",
                        why.to_owned(),
                    );
                }
                continue;
            }
            let names = server.server_names();
            if !taken.insert(names.clone()) {
                let why = format!("its hosts on port {port} are served by an older server already: left out");
                self.problem(&label_of(server.gateway), "spec.servers", why);
                continue;
            }
            let mut ended = if matches!(server.kind().as_str(), "HTTPS" | "HTTP" | "HTTP2" | "GRPC") {
                let table_name = format!(
                    "https.{}.{}.{}.{}",
                    server.server.port.number,
                    server.server.port.name,
                    server.gateway.name(),
                    server.gateway.namespace()
                );
                let table = self.gateway_table(&table_name, proxy, view, &[server]);
                part.table(table);
                let routes = RouteSource::Rds(table_name.into());
                let manager = self.gateway_manager(format!("outbound_{name}"), routes, layer.http());
                chain(format!("{name}-{}", server.server.port.name), Terminal::Http(Arc::new(manager)))
            } else {
                let Some(target) = self.gateway_tcp(proxy, server) else { continue };
                chain(format!("{name}-{}", server.server.port.name), self.tcp(&name, target))
            };
            ended.tls = Some(tls);
            ended.matcher.transport = Some(Transport::Tls);
            ended.matcher.server_names = names;
            one.chains.push(Arc::new(ended));
        }
        for server in other {
            if let Some(target) = self.gateway_tcp(proxy, server) {
                let mut bytes: FilterChain = chain(name.as_str(), self.tcp(&name, target));
                bytes.rbac = layer.network();
                one.chains.push(Arc::new(bytes));
                break;
            }
        }
        one.inspect =
            Inspect { tls: one.chains.iter().any(|c| c.matcher.transport.is_some()), ..Inspect::default() };
        if !one.chains.is_empty() {
            part.listener(Made::from(one, sources));
        }
    }

    /// VirtualServices bound to a server's gateway that a proxy may use, oldest first.
    fn bound<'a>(&'a self, proxy: &'a Proxy, server: &'a Open<'_>) -> impl Iterator<Item = &'a Arc<Routing>> {
        self.model.routing.iter().filter(|r| r.bound_to(&server.name) && r.visible(&proxy.namespace))
    }

    fn gateway_table(
        &self,
        name: &str,
        proxy: &Proxy,
        view: &View,
        servers: &[&Open<'_>],
    ) -> Made<RouteConfiguration> {
        let mut hosts_: BTreeMap<Arc<str>, Hosted> = BTreeMap::new();
        let mut sources = Vec::new();
        let mut used: BTreeSet<(Arc<str>, Arc<str>)> = BTreeSet::new();
        for server in servers {
            let port = u16::try_from(server.server.port.number).unwrap_or(80);
            let redirect = server.server.tls.as_ref().and_then(|t| t.https_redirect) == Some(true);
            sources.push(label_of(server.gateway));
            if redirect {
                for host in server.hosts(&proxy.namespace) {
                    hosts_.entry(host.into()).or_insert((Vec::new(), port, true)).2 = true;
                }
            }
            for routing in self.bound(proxy, server) {
                let served = server.hosts(routing.object.namespace());
                let place = Place { view, labels: &proxy.labels, port, gateway: &server.name };
                let mut routes = None;
                for own in &routing.hosts {
                    for asked in served.iter().filter(|s| hosts::overlap(s, own)) {
                        let host: Arc<str> = hosts::narrower(own, asked).into();
                        if !used.insert((host.clone(), routing.label.clone())) {
                            continue;
                        }
                        let made = routes.get_or_insert_with(|| self.routes(place, routing));
                        let entry = hosts_.entry(host).or_insert((Vec::new(), port, redirect));
                        entry.0.extend(made.iter().cloned());
                        entry.2 |= redirect;
                    }
                }
                if routes.is_some() {
                    sources.push(routing.label.clone());
                }
            }
        }
        let virtual_hosts = hosts_
            .into_iter()
            .map(|(host, (routes, port, require_tls))| {
                let (last, mut first): (Vec<_>, Vec<_>) =
                    routes.into_iter().partition(|r| RouteMatch::is_catch_all(&r.matcher));
                first.extend(last.into_iter().take(1));
                Arc::new(VirtualHost {
                    name: format!("{host}:{port}").into(),
                    domains: vec![host],
                    routes: first,
                    include_attempt_count: true,
                    require_tls,
                    ..VirtualHost::default()
                })
            })
            .collect();
        let table = RouteConfiguration {
            name: name.into(),
            virtual_hosts,
            ignore_port: true,
            ..RouteConfiguration::default()
        };
        Made::from(table, sources)
    }

    /// Where a TCP server's bytes go: the first TCP route of the VirtualServices bound to it.
    fn gateway_tcp(&self, proxy: &Proxy, server: &Open<'_>) -> Option<mesh_traffic::route::Target> {
        let port = server.server.port.number;
        self.bound(proxy, server).find_map(|routing| {
            let fits = |m: &mesh_config::kinds::TcpMatch| m.port.is_none_or(|p| p == port);
            let tcp = &routing.object.spec.tcp;
            let route = tcp.iter().find(|r| r.r#match.is_empty() || r.r#match.iter().any(fits))?;
            self.weighted(&route.route, routing.object.namespace(), u16::try_from(port).unwrap_or(0))
        })
    }

    /// TLS that is not ended here: by server name to the destinations of TLS routes.
    fn passthrough(
        &self,
        proxy: &Proxy,
        _view: &View,
        server: &Open<'_>,
        name: &str,
        taken: &mut BTreeSet<Vec<Name>>,
    ) -> Vec<Arc<FilterChain>> {
        let port = server.server.port.number;
        let mut out = Vec::new();
        for routing in self.bound(proxy, server) {
            let served = server.hosts(routing.object.namespace());
            for route in &routing.object.spec.tls {
                for one in route.r#match.iter().filter(|m| m.port.is_none_or(|p| p == port)) {
                    let names: Vec<Name> = one
                        .sni_hosts
                        .iter()
                        .filter(|sni| served.iter().any(|s| hosts::covers(s, sni)))
                        .map(|sni| Name::from(sni.to_ascii_lowercase()))
                        .collect();
                    let target = self.weighted(
                        &route.route,
                        routing.object.namespace(),
                        u16::try_from(port).unwrap_or(0),
                    );
                    let Some(target) = target.filter(|_| !names.is_empty() && taken.insert(names.clone()))
                    else {
                        continue;
                    };
                    let mut whole = chain(format!("{name}-{}", names[0]), self.tcp(name, target));
                    whole.matcher.transport = Some(Transport::Tls);
                    whole.matcher.server_names =
                        if names.iter().any(|n| &**n == "*") { Vec::new() } else { names };
                    out.push(Arc::new(whole));
                }
            }
        }
        out
    }

    fn gateway_secrets(&self, part: &mut Part, proxy: &Proxy, gateways: &[&Arc<Object<Gateway>>]) {
        for gateway in gateways {
            for credential in gateway.spec.servers.iter().filter_map(|s| s.tls.as_ref()).flat_map(credentials)
            {
                let secrets = &self.model.snapshot.secrets;
                let found = secrets.get(&proxy.namespace, credential);
                let Some(secret) = found else {
                    let why = format!(
                        "no Secret {}/{credential}: the port takes no TLS until there is one",
                        proxy.namespace
                    );
                    self.problem(&label_of(gateway), "spec.servers.tls.credentialName", why);
                    continue;
                };
                let source = label_of(secret);
                let entry = |names: &[&str]| {
                    let data = secret.spec.data.as_ref()?;
                    names.iter().find_map(|n| data.get(*n)).map(|b| b.0.clone())
                };
                if let (Some(chain), Some(key)) = (entry(&["tls.crt", "cert"]), entry(&["tls.key", "key"])) {
                    let value = Secret::Certificate(Arc::new(KeyPair { chain, key }));
                    part.secrets.insert(secret_name(credential), Made::from(value, vec![source.clone()]));
                }
                let apart = secrets.get(&proxy.namespace, &format!("{credential}-cacert"));
                let roots = apart
                    .and_then(|s| s.spec.data.as_ref())
                    .and_then(|d| d.get("ca.crt").or_else(|| d.get("cacert")))
                    .map(|b| b.0.clone())
                    .or_else(|| entry(&["ca.crt", "cacert"]));
                if let Some(roots) = roots {
                    part.secrets.insert(
                        roots_name(credential),
                        Made::from(Secret::Roots(roots.into()), vec![source]),
                    );
                }
            }
        }
    }
}

fn plain_http(kind: &str) -> bool {
    matches!(kind, "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB")
}

fn credentials(tls: &ServerTls) -> impl Iterator<Item = &str> {
    let single = tls.credential_name.as_deref().filter(|c| !c.is_empty());
    single.into_iter().chain(tls.credential_names.iter().map(String::as_str))
}

/// The secrets that TLS of a server needs from us.
fn secrets_of(tls: &DownstreamTls) -> impl Iterator<Item = &Name> {
    let certificates = tls.certificates.iter().filter_map(|c| match c {
        Certificate::Sds(name) => Some(name),
        _ => None,
    });
    let roots = tls.validation.iter().filter_map(|validation| match &validation.roots {
        Some(Roots::Sds(name)) => Some(name),
        _ => None,
    });
    // The proxy's own come from its agent.
    let own = |name: &&Name| [WORKLOAD_CERTIFICATE, WORKLOAD_ROOTS].contains(&&***name);
    certificates.chain(roots).filter(move |name| !own(name))
}

/// TLS that a server ends; `None` when it ends none.
pub fn downstream(tls: &ServerTls, mesh: &MeshConfig) -> Option<DownstreamTls> {
    let text = |s: &Option<String>| s.as_deref().filter(|s| !s.is_empty()).map(Name::from);
    let mode = tls.mode;
    match mode {
        ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => return None,
        ServerTlsMode::IstioMutual => return Some(server_context(mesh, true)),
        ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual => {}
    }
    let mut certificates: Vec<_> = credentials(tls).map(|c| Certificate::Sds(secret_name(c))).collect();
    if certificates.is_empty() {
        certificates.push(Certificate::Files {
            chain: text(&tls.server_certificate).unwrap_or_default(),
            key: text(&tls.private_key).unwrap_or_default(),
        });
    }
    let asks = mode != ServerTlsMode::Simple;
    let roots = match credentials(tls).next() {
        Some(credential) => Roots::Sds(roots_name(credential)),
        None => Roots::File(text(&tls.ca_certificates).unwrap_or_default()),
    };
    let version = |v: Option<TlsVersion>, default| match v {
        Some(TlsVersion::V1_3) => Version::Tls13,
        Some(TlsVersion::V1_2) => Version::Tls12,
        _ => default,
    };
    Some(DownstreamTls {
        certificates,
        validation: asks.then(|| Validation {
            roots: Some(roots),
            names: tls.subject_alt_names.iter().map(|n| StringMatch::Exact(n.as_str().into())).collect(),
        }),
        require_client_certificate: mode == ServerTlsMode::Mutual,
        alpn: vec!["h2".into(), "http/1.1".into()],
        versions: Versions {
            min: version(tls.min_protocol_version, Version::Tls12),
            max: version(tls.max_protocol_version, Version::Tls13),
        },
    })
}
