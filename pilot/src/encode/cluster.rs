//! Clusters and endpoints.
//!
//! In: the model's clusters. Out: Envoy's. Kept true: an absent limit is written as 2^32-1, since Envoy's own default is
//! 1024. Not here: TLS contexts (`tls`).

use super::{ads, duration, fields, host, metadata, number, socket, text, tls};
use mesh_traffic::{
    cluster::{Balance, Cluster, Discovery, Limits, Outlier, Protocol},
    endpoint::{Address, Endpoint, Endpoints, Health},
};
use std::time::Duration;
use xds::{
    envoy::{
        config::{cluster::v3 as pb, core::v3 as core, endpoint::v3 as eds},
        extensions::upstreams::http::v3::{HttpProtocolOptions, http_protocol_options as options},
        r#type::v3::Percent,
    },
    google::protobuf::{ListValue, UInt64Value, Value, value::Kind},
};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// A cluster.
#[allow(deprecated, reason = "the struct has deprecated fields, none of which is set")]
pub fn cluster(from: &Cluster) -> pb::Cluster {
    use pb::cluster::{ClusterDiscoveryType, DiscoveryType as T, LbConfig, LbPolicy, MaglevLbConfig, RingHashLbConfig};
    let (kind, eds_name, assignment) = match &from.discovery {
        Discovery::Eds { service } => (T::Eds, Some(service), None),
        Discovery::Static(all) => (T::Static, None, Some(all)),
        Discovery::StrictDns(all) => (T::StrictDns, None, Some(all)),
        Discovery::LogicalDns(all) => (T::LogicalDns, None, Some(all)),
        Discovery::OriginalDst => (T::OriginalDst, None, None),
    };
    let (policy, config) = match from.balance {
        Balance::LeastRequest => (LbPolicy::LeastRequest, None),
        Balance::RoundRobin => (LbPolicy::RoundRobin, None),
        Balance::Random => (LbPolicy::Random, None),
        Balance::RingHash { minimum } => {
            let ring =
                RingHashLbConfig { minimum_ring_size: Some(UInt64Value { value: minimum }), ..Default::default() };
            (LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(ring)))
        }
        Balance::Maglev { size } => {
            let table = MaglevLbConfig { table_size: Some(UInt64Value { value: size }), ..Default::default() };
            (LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(table)))
        }
        Balance::Provided => (LbPolicy::ClusterProvided, None),
    };
    let keepalive = from.keepalive.map(|k| core::TcpKeepalive {
        keepalive_probes: k.probes.map(number),
        keepalive_time: k.time.map(number),
        keepalive_interval: k.interval.map(number),
    });
    pb::Cluster {
        name: from.name.to_string(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind.into())),
        eds_cluster_config: eds_name
            .map(|name| pb::cluster::EdsClusterConfig { eds_config: Some(ads()), service_name: name.to_string() }),
        load_assignment: assignment.map(|all| endpoints(all)),
        connect_timeout: Some(duration(from.connect_timeout)),
        lb_policy: policy.into(),
        lb_config: config,
        circuit_breakers: Some(limits(from.limits)),
        outlier_detection: from.outlier.as_ref().map(outlier),
        common_lb_config: (from.panic_percent != 50).then(|| pb::cluster::CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: f64::from(from.panic_percent) }),
            ..Default::default()
        }),
        typed_extension_protocol_options: [(HTTP_OPTIONS.to_owned(), xds::pack(&http_options(from)))].into(),
        transport_socket: from.tls.default.as_ref().map(|t| tls::upstream(t)),
        transport_socket_matches: from
            .tls
            .matches
            .iter()
            .map(|m| pb::cluster::TransportSocketMatch {
                name: m.name.to_string(),
                r#match: Some(fields(m.labels.iter().map(|(k, v)| (&**k, text(v))))),
                transport_socket: Some(m.tls.as_ref().map_or_else(tls::raw, |t| tls::upstream(t))),
            })
            .collect(),
        upstream_bind_config: from.source_address.map(|ip| core::BindConfig {
            source_address: Some(host(&ip.to_string(), 0)),
            ..Default::default()
        }),
        upstream_connection_options: keepalive
            .map(|k| pb::UpstreamConnectionOptions { tcp_keepalive: Some(k), ..Default::default() }),
        dns_lookup_family: if matches!(from.discovery, Discovery::StrictDns(_) | Discovery::LogicalDns(_)) {
            pb::cluster::DnsLookupFamily::V4Preferred.into()
        } else {
            0
        },
        metadata: description(from),
        ..Default::default()
    }
}

/// The service and the object behind a cluster, where Istio's tools look for them.
fn description(from: &Cluster) -> Option<core::Metadata> {
    let mut all = Vec::new();
    if let Some(object) = &from.source {
        all.push(("config", text(&object.to_string())));
    }
    if let Some(service) = &from.service {
        let one = fields([
            ("host", text(&service.host)),
            ("name", text(&service.name)),
            ("namespace", text(&service.namespace)),
        ]);
        let list = ListValue { values: vec![Value { kind: Some(Kind::StructValue(one)) }] };
        all.push(("services", Value { kind: Some(Kind::ListValue(list)) }));
    }
    (!all.is_empty()).then(|| metadata("istio", fields(all)))
}

fn limits(from: Limits) -> pb::CircuitBreakers {
    let or_all = |limit: Option<u32>| Some(number(limit.unwrap_or(u32::MAX)));
    pb::CircuitBreakers {
        thresholds: vec![pb::circuit_breakers::Thresholds {
            max_connections: or_all(from.connections),
            max_pending_requests: or_all(from.pending),
            max_requests: or_all(from.requests),
            max_retries: or_all(from.retries),
            track_remaining: true,
            ..Default::default()
        }],
        per_host_thresholds: Vec::new(),
    }
}

/// Counts that never eject are written as not enforced.
fn outlier(from: &Outlier) -> pb::OutlierDetection {
    let enforce = |count: Option<u32>| Some(number(if count.is_some() { 100 } else { 0 }));
    let mut wire = pb::OutlierDetection {
        consecutive_5xx: from.consecutive_5xx.map(number),
        enforcing_consecutive_5xx: enforce(from.consecutive_5xx),
        consecutive_gateway_failure: from.consecutive_gateway.map(number),
        enforcing_consecutive_gateway_failure: enforce(from.consecutive_gateway),
        enforcing_success_rate: Some(number(0)),
        interval: Some(duration(from.interval)),
        base_ejection_time: Some(duration(from.base_ejection)),
        max_ejection_time: Some(duration(from.max_ejection)),
        max_ejection_percent: Some(number(from.max_percent)),
        ..Default::default()
    };
    if from.split_local {
        wire.split_external_local_origin_errors = true;
        wire.consecutive_local_origin_failure = from.consecutive_local.map(number);
        wire.enforcing_consecutive_local_origin_failure = enforce(from.consecutive_local);
        wire.enforcing_local_origin_success_rate = Some(number(0));
    }
    wire
}

fn http_options(from: &Cluster) -> HttpProtocolOptions {
    use options::{
        AutoHttpConfig, ExplicitHttpConfig, UpstreamProtocolOptions as P, UseDownstreamHttpConfig,
        explicit_http_config::ProtocolConfig as E,
    };
    let explicit = |config| P::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(config) });
    let h1 = core::Http1ProtocolOptions::default;
    let h2 = core::Http2ProtocolOptions::default;
    let protocol = match from.protocol {
        Protocol::Http1 => explicit(E::HttpProtocolOptions(h1())),
        Protocol::Http2 => explicit(E::Http2ProtocolOptions(h2())),
        Protocol::Downstream => P::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options: Some(h1()),
            http2_protocol_options: Some(h2()),
            ..Default::default()
        }),
        Protocol::Auto => P::AutoConfig(AutoHttpConfig {
            http_protocol_options: Some(h1()),
            http2_protocol_options: Some(h2()),
            ..Default::default()
        }),
    };
    HttpProtocolOptions {
        common_http_protocol_options: Some(core::HttpProtocolOptions {
            idle_timeout: (from.idle_timeout != Duration::from_secs(3600)).then(|| duration(from.idle_timeout)),
            max_requests_per_connection: (from.max_requests_per_connection > 0)
                .then(|| number(from.max_requests_per_connection)),
            ..Default::default()
        }),
        upstream_protocol_options: Some(protocol),
        ..Default::default()
    }
}

/// Endpoints of a cluster.
pub fn endpoints(from: &Endpoints) -> eds::ClusterLoadAssignment {
    let locality = |l: &mesh_traffic::endpoint::Locality| {
        let mut parts = l.name.splitn(3, '/').map(str::to_owned);
        let place = core::Locality {
            region: parts.next().unwrap_or_default(),
            zone: parts.next().unwrap_or_default(),
            sub_zone: parts.next().unwrap_or_default(),
        };
        eds::LocalityLbEndpoints {
            locality: Some(place),
            lb_endpoints: l.endpoints.iter().map(|e| endpoint(e)).collect(),
            load_balancing_weight: Some(number(l.weight.unwrap_or_else(|| {
                l.endpoints.iter().map(|e| e.weight).fold(0, u32::saturating_add).max(1)
            }))),
            priority: l.priority,
            ..Default::default()
        }
    };
    eds::ClusterLoadAssignment {
        cluster_name: from.name.to_string(),
        endpoints: from.localities.iter().map(locality).collect(),
        ..Default::default()
    }
}

fn endpoint(from: &Endpoint) -> eds::LbEndpoint {
    let address = match &from.address {
        Address::Ip(address) => socket(*address),
        Address::Dns(name, port) => {
            core::Address { address: Some(core::address::Address::SocketAddress(host(name, *port))) }
        }
        Address::Pipe(path) => core::Address {
            address: Some(core::address::Address::Pipe(core::Pipe { path: path.to_string(), mode: 0 })),
        },
    };
    let health = match from.health {
        Health::Healthy => core::HealthStatus::Healthy,
        Health::Degraded => core::HealthStatus::Degraded,
        Health::Draining => core::HealthStatus::Draining,
        Health::Unhealthy => core::HealthStatus::Unhealthy,
    };
    let mut about = core::Metadata::default();
    if !from.tls_labels.is_empty() {
        let labels = fields(from.tls_labels.iter().map(|(k, v)| (&**k, text(v))));
        about.filter_metadata.insert("envoy.transport_socket_match".to_owned(), labels);
    }
    if !from.workload.is_empty() {
        about.filter_metadata.insert("istio".to_owned(), fields([("workload", text(&from.workload))]));
    }
    eds::LbEndpoint {
        health_status: health.into(),
        load_balancing_weight: Some(number(from.weight)),
        metadata: (!about.filter_metadata.is_empty()).then_some(about),
        host_identifier: Some(eds::lb_endpoint::HostIdentifier::Endpoint(eds::Endpoint {
            address: Some(address),
            ..Default::default()
        })),
    }
}
