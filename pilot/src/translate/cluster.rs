//! Clusters: one per service port and subset, with limits, ejection, balancing and TLS from DestinationRules.
//!
//! In: a view; the address that connections leave from. Out: clusters `outbound|port|subset|host` and their endpoints.
//! Kept true: limits nobody wrote are unlimited; ejection by gateway errors only for the older `consecutiveErrors`.
//! Not here: inbound clusters (`inbound`).

use super::{
    Made, Part, Translator, source_of,
    tls::{client_mode, cluster_tls},
};
use crate::model::{
    destination::{Blocks, Rule},
    scope::View,
    service::{Port, Protocol, Resolution, Service},
};
use mesh_config::kinds::{
    ConnectionPool, H2Upgrade, LoadBalancer, OutlierDetection, SimpleLb, Subset, TcpKeepalive,
};
use mesh_traffic::{
    cluster::{self, Balance, Cluster, ClusterTls, Discovery, Keepalive, Limits, Outlier},
    endpoint::Endpoints,
    names::{BLACK_HOLE, ClusterName, Name, PASSTHROUGH},
};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

/// Largest Maglev table that is taken.
const MAGLEV: u64 = 65_537;

impl Translator {
    /// Clusters and endpoints of everything in a view. `source` is where connections leave from.
    pub fn outbound_clusters(&self, view: &View, source: Option<IpAddr>) -> Part {
        let mut part = Part::default();
        let root_mixer = super::inbound::policy_host(&self.model);
        let mixer = root_mixer.as_ref().and_then(|(host, _)| self.model.services.get(&**host));
        let hidden = mixer.filter(|s| !view.services.contains_key(&s.host));
        for service in view.services.values().chain(view.targets.values()).chain(hidden) {
            let rule = self.rule(view, service);
            for port in service.ports.iter().filter(|p| p.protocol != Protocol::Udp) {
                self.service_cluster(&mut part, service, port, &rule, None, source);
                for subset in &rule.subsets {
                    self.service_cluster(&mut part, service, port, &rule, Some(subset), source);
                }
            }
        }
        for name in [PASSTHROUGH, BLACK_HOLE] {
            let mut cluster = match name {
                PASSTHROUGH => Cluster {
                    discovery: Discovery::OriginalDst,
                    balance: Balance::Provided,
                    protocol: cluster::Protocol::Downstream,
                    ..Cluster::eds(name)
                },
                _ => Cluster::fixed(name, Vec::new()),
            };
            cluster.connect_timeout = self.model.mesh().connect_timeout.0;
            cluster.source_address = beyond_the_host(source);
            part.cluster(Made::from(cluster, Vec::new()));
        }
        part
    }

    fn service_cluster(
        &self,
        part: &mut Part,
        service: &Arc<Service>,
        port: &Port,
        rule: &Rule,
        subset: Option<&Subset>,
        source: Option<IpAddr>,
    ) {
        let name =
            ClusterName::outbound(port.number, subset.map(|s| &*s.name).unwrap_or_default(), &service.host);
        let key: Name = name.to_string().into();
        let nothing = BTreeMap::new();
        let labels = subset.map_or(&nothing, |s| &s.labels);
        let made = self.assignment(&key, service, port.number, labels);
        let blocks = rule.blocks(subset, port.number, &port.name);
        let tcp = !port.protocol.is_http() && port.protocol != Protocol::Unknown;
        let discovery = match service.resolution {
            Resolution::Static => Discovery::Eds { service: key.clone() },
            Resolution::Headless if !tcp => Discovery::Eds { service: key.clone() },
            Resolution::Headless | Resolution::Passthrough => Discovery::OriginalDst,
            Resolution::Dns => Discovery::StrictDns(Arc::new(made.value.clone())),
        };
        let is_eds = matches!(discovery, Discovery::Eds { .. });
        let protocol = protocol_of(port.protocol, &blocks, self.model.mesh().h2_upgrade_policy);
        let mode = client_mode(self.model.mesh(), service, blocks.tls.clone());
        let http = port.protocol.is_http() || port.protocol == Protocol::Unknown;
        let mut cluster = Cluster {
            discovery,
            connect_timeout: self.model.mesh().connect_timeout.0,
            balance: balance_of(blocks.balancer.as_ref()),
            tls: cluster_tls(
                self.model.mesh(),
                &mode,
                &name.sni(),
                http,
                protocol,
                service,
                service.at(port.number),
            ),
            protocol,
            source_address: if service.external { beyond_the_host(source) } else { source },
            keepalive: self.model.mesh().tcp_keepalive.as_ref().map(keepalive_of),
            service: Some(cluster::Service {
                host: service.host.clone(),
                name: service.name.clone(),
                namespace: service.namespace.clone(),
            }),
            source: rule.objects.first().map(|o| source_of(o)),
            ..Cluster::eds(&key)
        };
        // Whoever leaves the choice to the client's own destination gets no table of endpoints.
        if cluster.balance == Balance::Provided || cluster.discovery == Discovery::OriginalDst {
            cluster.discovery = Discovery::OriginalDst;
            cluster.balance = Balance::Provided;
            together(&mut cluster.tls, &made.value);
        }
        let is_eds = is_eds && cluster.discovery != Discovery::OriginalDst;
        if let Some(pool) = &blocks.pool {
            apply_pool(&mut cluster, pool);
        }
        if let Some(outlier) = &blocks.outlier {
            apply_outlier(&mut cluster, outlier);
        } else {
            // Istio leaves panic mode off where nothing can be ejected: there is nothing to panic about.
            cluster.panic_percent = 0;
        }
        let mut sources = vec![service.source.clone()];
        sources.extend(rule.sources());
        part.cluster(Made::from(cluster, sources));
        if is_eds {
            part.assignment(made);
        }
    }
}

/// Decides on TLS for all endpoints of a cluster without a table of them, where nothing is known of one alone: mutual TLS if each takes it.
fn together(tls: &mut ClusterTls, endpoints: &Endpoints) {
    let Some(mutual) = tls.matches.iter().find(|one| !one.labels.is_empty()) else { return };
    let mut all = endpoints.iter().peekable();
    let taken = all.peek().is_some()
        && all.all(|one| mutual.labels.iter().all(|label| one.tls_labels.contains(label)));
    *tls = ClusterTls { default: mutual.tls.clone().filter(|_| taken), matches: Vec::new() };
}

/// Where connections to anywhere leave from: a loopback address reaches nothing beyond this host, so none is chosen.
fn beyond_the_host(source: Option<IpAddr>) -> Option<IpAddr> {
    source.filter(|ip| !ip.is_loopback())
}

fn protocol_of(port: Protocol, blocks: &Blocks, mesh: Option<H2Upgrade>) -> cluster::Protocol {
    let http = blocks.pool.as_ref().and_then(|p| p.http.as_ref());
    if http.and_then(|h| h.use_client_protocol) == Some(true) {
        return cluster::Protocol::Downstream;
    }
    let written = http.and_then(|h| h.h2_upgrade_policy).filter(|p| *p != H2Upgrade::Default);
    let upgrade = written.or(mesh) == Some(H2Upgrade::Upgrade);
    match port {
        Protocol::Http2 => cluster::Protocol::Http2,
        Protocol::Http | Protocol::HttpProxy if upgrade => cluster::Protocol::Http2,
        // What is detected on the way in is spoken on the way out.
        Protocol::Unknown => cluster::Protocol::Downstream,
        _ => cluster::Protocol::Http1,
    }
}

fn positive(value: Option<i32>) -> Option<u32> {
    value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0)
}

fn keepalive_of(from: &TcpKeepalive) -> Keepalive {
    let seconds = |d: Option<mesh_config::GoDuration>| {
        d.and_then(|d| u32::try_from(d.as_secs()).ok()).filter(|s| *s > 0)
    };
    Keepalive {
        probes: from.probes.filter(|p| *p > 0),
        time: seconds(from.time),
        interval: seconds(from.interval),
    }
}

pub(super) fn apply_pool(cluster: &mut Cluster, pool: &ConnectionPool) {
    if let Some(tcp) = &pool.tcp {
        cluster.limits.connections = positive(tcp.max_connections);
        if let Some(timeout) = tcp.connect_timeout.filter(|t| !t.is_zero()) {
            cluster.connect_timeout = timeout.0;
        }
        if let Some(keepalive) = &tcp.tcp_keepalive {
            cluster.keepalive = Some(keepalive_of(keepalive));
        }
        if let Some(idle) = tcp.idle_timeout.filter(|t| !t.is_zero()) {
            cluster.idle_timeout = idle.0;
        }
    }
    if let Some(http) = &pool.http {
        cluster.limits = Limits {
            connections: cluster.limits.connections,
            pending: positive(http.http1_max_pending_requests),
            requests: positive(http.http2_max_requests),
            retries: positive(http.max_retries),
        };
        cluster.max_requests_per_connection = positive(http.max_requests_per_connection).unwrap_or(0);
        if let Some(idle) = http.idle_timeout.filter(|t| !t.is_zero()) {
            cluster.idle_timeout = idle.0;
        }
    }
}

fn apply_outlier(cluster: &mut Cluster, from: &OutlierDetection) {
    let percent =
        |p: Option<i32>, default: u32| p.and_then(|p| u32::try_from(p).ok()).map_or(default, |p| p.min(100));
    let mut outlier = Outlier {
        split_local: from.split_external_local_origin_errors.unwrap_or(false),
        consecutive_local: from.consecutive_local_origin_failures.filter(|n| *n > 0),
        interval: from.interval.map_or(Duration::from_secs(10), |d| d.0),
        base_ejection: from.base_ejection_time.map_or(Duration::from_secs(30), |d| d.0),
        max_percent: percent(from.max_ejection_percent, 10),
        ..Outlier::default()
    };
    outlier.max_ejection = outlier.max_ejection.max(outlier.base_ejection);
    outlier.consecutive_gateway = from.consecutive_gateway_errors.filter(|n| *n > 0);
    outlier.consecutive_5xx = match from.consecutive_5xx_errors {
        Some(n) => Some(n).filter(|n| *n > 0),
        None => Some(5),
    };
    // The older field counts gateway errors, and nothing else then counts.
    if let Some(errors) = positive(from.consecutive_errors)
        && from.consecutive_gateway_errors.is_none()
        && from.consecutive_5xx_errors.is_none()
    {
        outlier.consecutive_gateway = Some(errors);
        outlier.consecutive_5xx = None;
    }
    if outlier.split_local
        && outlier.consecutive_local.is_none()
        && from.consecutive_local_origin_failures.is_none()
    {
        outlier.consecutive_local = Some(5);
    }
    cluster.outlier = Some(outlier);
    cluster.panic_percent = percent(from.min_health_percent, 0);
}

fn balance_of(from: Option<&LoadBalancer>) -> Balance {
    let Some(from) = from else { return Balance::LeastRequest };
    if let Some(hash) = &from.consistent_hash {
        if let Some(maglev) = &hash.maglev {
            return Balance::Maglev { size: maglev.table_size.unwrap_or(MAGLEV) };
        }
        let ring = hash.ring_hash.as_ref().and_then(|r| r.minimum_ring_size).or(hash.minimum_ring_size);
        return Balance::RingHash { minimum: ring.filter(|n| *n > 0).unwrap_or(1024) };
    }
    match from.simple {
        Some(SimpleLb::RoundRobin) => Balance::RoundRobin,
        Some(SimpleLb::Random) => Balance::Random,
        Some(SimpleLb::Passthrough) => Balance::Provided,
        _ => Balance::LeastRequest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_traffic::{cluster::TlsMatch, endpoint::Endpoint, tls::UpstreamTls};

    #[test]
    fn a_cluster_without_a_table_is_mutual_where_every_endpoint_takes_it() {
        let label = || (Name::from("tlsMode"), Name::from("istio"));
        let one = |takes: bool| Endpoint {
            tls_labels: if takes { vec![label()] } else { Vec::new() },
            ..Endpoint::at(([10, 0, 0, 1], 80).into())
        };
        let automatic = || ClusterTls {
            default: None,
            matches: vec![
                TlsMatch {
                    name: "on".into(),
                    labels: vec![label()],
                    tls: Some(Arc::new(UpstreamTls::default())),
                },
                TlsMatch { name: "off".into(), labels: Vec::new(), tls: None },
            ],
        };
        for (endpoints, mutual) in [
            (vec![one(true), one(true)], true),
            (vec![one(true), one(false)], false),
            (vec![one(false)], false),
            (Vec::new(), false),
        ] {
            let mut tls = automatic();
            together(&mut tls, &Endpoints::flat("c", endpoints));
            assert_eq!((tls.default.is_some(), tls.matches.len()), (mutual, 0));
        }
        let mut written = ClusterTls { default: Some(Arc::default()), matches: Vec::new() };
        together(&mut written, &Endpoints::flat("c", vec![one(false)]));
        assert!(written.default.is_some(), "what a DestinationRule says stands");
    }
}
