//! Clusters and endpoints → CDS and EDS.
//!
//! In: `crate::cluster` and `crate::endpoint`. Out: Cluster and ClusterLoadAssignment messages. Kept true: every limit is said, since Envoy's own
//! defaults are far lower than the model's "unlimited". Not here: TLS contexts (`tls`).

use std::{collections::HashMap, time::Duration};

use xds::{
    envoy::{
        config::{cluster::v3 as pb, core::v3 as core, endpoint::v3 as eds},
        extensions::upstreams::http::v3::{HttpProtocolOptions, http_protocol_options as options},
        r#type::v3::Percent,
    },
    google::protobuf::{Any, ListValue, Struct, UInt64Value, Value, value::Kind},
};

use super::{
    ads,
    canonical::{Field, METADATA, Maps, NONE, STRUCT},
    duration, metadata, object, plain, text, tls, uint,
};
use crate::{
    cluster::{Balance, Cluster, Discovery, Limits, Outlier, Protocol, Service, TlsMatch},
    endpoint::{Address, Endpoint, Endpoints, Health, Locality},
    names::Name,
    wire::cluster::{HTTP_OPTIONS, TLS_METADATA},
};

/// Maps of a cluster.
pub(super) static MAPS: Maps = Maps(&[
    (25, Field::Message(&METADATA)),
    (33, Field::Message(&ENDPOINTS_MAPS)),
    (36, Field::Map(&NONE)),
    (43, Field::Message(&TLS_MATCH)),
]);
static TLS_MATCH: Maps = Maps(&[(2, Field::Message(&STRUCT))]);
/// Maps of endpoints.
pub(super) static ENDPOINTS_MAPS: Maps = Maps(&[(2, Field::Message(&LOCALITY))]);
static LOCALITY: Maps = Maps(&[(2, Field::Message(&ENDPOINT))]);
static ENDPOINT: Maps = Maps(&[(3, Field::Message(&METADATA))]);

/// How Envoy idles upstream connections when nothing is said.
const USUAL_IDLE: Duration = Duration::from_secs(3600);

/// A cluster.
#[must_use]
#[allow(deprecated, reason = "DNS settings have a newer place, in an extension that older Envoys lack")]
pub fn cluster(from: &Cluster) -> pb::Cluster {
    use pb::cluster::{ClusterDiscoveryType, CommonLbConfig, DiscoveryType as T, DnsLookupFamily};
    let (kind, fixed) = match &from.discovery {
        Discovery::Eds { .. } => (T::Eds, None),
        Discovery::Static(endpoints) => (T::Static, Some(endpoints)),
        Discovery::StrictDns(endpoints) => (T::StrictDns, Some(endpoints)),
        Discovery::LogicalDns(endpoints) => (T::LogicalDns, Some(endpoints)),
        Discovery::OriginalDst => (T::OriginalDst, None),
    };
    let dns = matches!(kind, T::StrictDns | T::LogicalDns);
    let (lb_policy, lb_config) = balance(from);
    let panic = Percent { value: f64::from(from.panic_percent) };
    pb::Cluster {
        transport_socket_matches: from.tls.matches.iter().map(tls_match).collect(),
        name: from.name.to_string(),
        eds_cluster_config: match &from.discovery {
            Discovery::Eds { service } => Some(pb::cluster::EdsClusterConfig {
                eds_config: Some(ads()),
                service_name: service.to_string(),
            }),
            _ => None,
        },
        connect_timeout: Some(duration(from.connect_timeout)),
        lb_policy: lb_policy.into(),
        load_assignment: fixed.map(|fixed| endpoints(fixed)),
        circuit_breakers: Some(limits(from.limits)),
        typed_extension_protocol_options: http_options(from),
        // As Istio's proxies: what the answer says, else every minute.
        dns_refresh_rate: dns.then(|| duration(Duration::from_secs(60))),
        respect_dns_ttl: dns,
        dns_lookup_family: if dns { DnsLookupFamily::V4Preferred } else { DnsLookupFamily::Auto }.into(),
        outlier_detection: from.outlier.as_ref().map(outlier),
        upstream_bind_config: from.source_address.map(|ip| core::BindConfig {
            source_address: Some(socket(&ip.to_string(), 0)),
            ..Default::default()
        }),
        common_lb_config: Some(CommonLbConfig { healthy_panic_threshold: Some(panic), ..Default::default() }),
        transport_socket: from.tls.default.as_ref().map(|context| tls::upstream(Some(context))),
        metadata: metadata([("istio", about(from))]),
        upstream_connection_options: from.keepalive.map(|k| pb::UpstreamConnectionOptions {
            tcp_keepalive: Some(core::TcpKeepalive {
                keepalive_probes: k.probes.and_then(uint),
                keepalive_time: k.time.and_then(uint),
                keepalive_interval: k.interval.and_then(uint),
            }),
            ..Default::default()
        }),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind.into())),
        lb_config,
        ..Default::default()
    }
}

fn balance(from: &Cluster) -> (pb::cluster::LbPolicy, Option<pb::cluster::LbConfig>) {
    use pb::cluster::{LbConfig, LbPolicy, MaglevLbConfig, RingHashLbConfig};
    if from.discovery == Discovery::OriginalDst {
        return (LbPolicy::ClusterProvided, None);
    }
    match from.balance {
        Balance::LeastRequest => (LbPolicy::LeastRequest, None),
        Balance::RoundRobin => (LbPolicy::RoundRobin, None),
        Balance::Random => (LbPolicy::Random, None),
        Balance::RingHash { minimum } => {
            let minimum_ring_size = Some(UInt64Value { value: minimum });
            let ring = RingHashLbConfig { minimum_ring_size, ..Default::default() };
            (LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(ring)))
        }
        Balance::Maglev { size } => {
            let maglev = MaglevLbConfig { table_size: Some(UInt64Value { value: size }) };
            (LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(maglev)))
        }
        Balance::Provided => (LbPolicy::ClusterProvided, None),
    }
}

fn limits(from: Limits) -> pb::CircuitBreakers {
    let limit = |limit: Option<u32>| uint(limit.unwrap_or(u32::MAX));
    pb::CircuitBreakers {
        thresholds: vec![pb::circuit_breakers::Thresholds {
            max_connections: limit(from.connections),
            max_pending_requests: limit(from.pending),
            max_requests: limit(from.requests),
            max_retries: limit(from.retries),
            track_remaining: true,
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn outlier(from: &Outlier) -> pb::OutlierDetection {
    let enforced = |count: Option<u32>| uint(if count.is_some() { 100 } else { 0 });
    pb::OutlierDetection {
        consecutive_5xx: from.consecutive_5xx.and_then(uint),
        enforcing_consecutive_5xx: enforced(from.consecutive_5xx),
        consecutive_gateway_failure: from.consecutive_gateway.and_then(uint),
        enforcing_consecutive_gateway_failure: enforced(from.consecutive_gateway),
        consecutive_local_origin_failure: from.consecutive_local.and_then(uint),
        enforcing_consecutive_local_origin_failure: enforced(from.consecutive_local),
        split_external_local_origin_errors: from.split_local,
        interval: Some(duration(from.interval)),
        base_ejection_time: Some(duration(from.base_ejection)),
        max_ejection_time: Some(duration(from.max_ejection.max(from.base_ejection))),
        max_ejection_percent: uint(from.max_percent),
        // Success rates never eject, as in Istio.
        enforcing_success_rate: uint(0),
        enforcing_local_origin_success_rate: uint(0),
        // One endpoint always may be ejected, however few there are.
        always_eject_one_host: super::boolean(true),
        ..Default::default()
    }
}

fn http_options(from: &Cluster) -> HashMap<String, Any> {
    use core::{Http1ProtocolOptions, Http2ProtocolOptions};
    use options::{
        AutoHttpConfig, ExplicitHttpConfig, UpstreamProtocolOptions as P, UseDownstreamHttpConfig,
        explicit_http_config::ProtocolConfig as E,
    };
    let requests = Some(from.max_requests_per_connection).filter(|n| *n > 0);
    let idle = Some(from.idle_timeout).filter(|idle| *idle != USUAL_IDLE);
    if from.protocol == Protocol::Http1 && requests.is_none() && idle.is_none() {
        return HashMap::new();
    }
    let (one, two) = (Http1ProtocolOptions::default(), Http2ProtocolOptions::default());
    let explicit = |config| P::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(config) });
    let protocol = match from.protocol {
        Protocol::Http1 => explicit(E::HttpProtocolOptions(one)),
        Protocol::Http2 => explicit(E::Http2ProtocolOptions(two)),
        Protocol::Downstream => P::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options: Some(one),
            http2_protocol_options: Some(two),
            ..Default::default()
        }),
        Protocol::Auto => P::AutoConfig(AutoHttpConfig {
            http_protocol_options: Some(one),
            http2_protocol_options: Some(two),
            ..Default::default()
        }),
    };
    let common = core::HttpProtocolOptions {
        idle_timeout: idle.map(duration),
        max_requests_per_connection: requests.and_then(uint),
        ..Default::default()
    };
    let options = HttpProtocolOptions {
        common_http_protocol_options: (requests.is_some() || idle.is_some()).then_some(common),
        upstream_protocol_options: Some(protocol),
        ..Default::default()
    };
    HashMap::from([(HTTP_OPTIONS.to_owned(), plain(&options))])
}

fn tls_match(from: &TlsMatch) -> pb::cluster::TransportSocketMatch {
    pb::cluster::TransportSocketMatch {
        name: from.name.to_string(),
        r#match: Some(labels(&from.labels)),
        transport_socket: Some(tls::upstream(from.tls.as_deref())),
    }
}

fn labels(from: &[(Name, Name)]) -> Struct {
    object(from.iter().map(|(key, value)| (&**key, text(&**value))))
}

/// What people's tools read about a cluster: its service, and the object that shaped it.
fn about(from: &Cluster) -> Struct {
    let services = from.service.as_ref().map(|service| ("services", list(service)));
    let config = from.source.as_ref().map(|source| ("config", text(source.to_string())));
    object(services.into_iter().chain(config))
}

fn list(service: &Service) -> Value {
    let service = object([
        ("host", text(&*service.host)),
        ("name", text(&*service.name)),
        ("namespace", text(&*service.namespace)),
    ]);
    let values = vec![Value { kind: Some(Kind::StructValue(service)) }];
    Value { kind: Some(Kind::ListValue(ListValue { values })) }
}

/// Endpoints.
#[must_use]
pub fn endpoints(from: &Endpoints) -> eds::ClusterLoadAssignment {
    eds::ClusterLoadAssignment {
        cluster_name: from.name.to_string(),
        endpoints: from.localities.iter().map(locality).collect(),
        ..Default::default()
    }
}

fn locality(from: &Locality) -> eds::LocalityLbEndpoints {
    let mut parts = from.name.splitn(3, '/').map(str::to_owned);
    let place = core::Locality {
        region: parts.next().unwrap_or_default(),
        zone: parts.next().unwrap_or_default(),
        sub_zone: parts.next().unwrap_or_default(),
    };
    eds::LocalityLbEndpoints {
        locality: (!from.name.is_empty()).then_some(place),
        lb_endpoints: from.endpoints.iter().map(|one| endpoint(one)).collect(),
        load_balancing_weight: from.weight.and_then(uint),
        priority: from.priority,
        ..Default::default()
    }
}

fn endpoint(from: &Endpoint) -> eds::LbEndpoint {
    let workload = Some(&from.workload).filter(|w| !w.is_empty()).map(|w| ("workload", text(&**w)));
    let health = match from.health {
        Health::Healthy => core::HealthStatus::Healthy,
        Health::Degraded => core::HealthStatus::Degraded,
        Health::Draining => core::HealthStatus::Draining,
        Health::Unhealthy => core::HealthStatus::Unhealthy,
    };
    let inner = eds::Endpoint { address: Some(address(&from.address)), ..Default::default() };
    eds::LbEndpoint {
        health_status: health.into(),
        metadata: metadata([(TLS_METADATA, labels(&from.tls_labels)), ("istio", object(workload))]),
        load_balancing_weight: uint(from.weight.max(1)),
        host_identifier: Some(eds::lb_endpoint::HostIdentifier::Endpoint(inner)),
    }
}

/// An address of an endpoint or a listener.
pub(super) fn address(from: &Address) -> core::Address {
    use core::address::Address as A;
    let address = match from {
        Address::Ip(at) => A::SocketAddress(socket(&at.ip().to_string(), at.port())),
        Address::Dns(host, port) => A::SocketAddress(socket(host, *port)),
        Address::Pipe(path) => A::Pipe(core::Pipe { path: path.to_string(), ..Default::default() }),
    };
    core::Address { address: Some(address) }
}

fn socket(address: &str, port: u16) -> core::SocketAddress {
    core::SocketAddress {
        address: address.to_owned(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(u32::from(port))),
        ..Default::default()
    }
}
