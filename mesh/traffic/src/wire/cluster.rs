//! CDS and EDS → `crate::cluster` and `crate::endpoint`.
//!
//! In: Cluster and ClusterLoadAssignment messages. Out: the model. Kept true: 2^32-1, which control planes send for "unlimited", becomes `None`.
//! Not here: warming (`proxy`).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use xds::envoy::{
    config::{cluster::v3 as pb, core::v3 as core, endpoint::v3 as eds},
    extensions::upstreams::http::v3::{HttpProtocolOptions, http_protocol_options as options},
};

use super::{Decoded, Reject, duration, each, limit, metadata_text, port, refuse, text, tls, u32_of};
use crate::{
    balance::{MAX_MAGLEV, MAX_RING},
    cluster::{
        Balance, Cluster, ClusterTls, Discovery, Keepalive, Limits, Outlier, Protocol, Service, TlsMatch,
    },
    endpoint::{Address, Endpoint, Endpoints, Health, Locality},
    names::{Name, SourceObject},
};

/// Key of `typed_extension_protocol_options` for HTTP.
pub(super) const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Metadata whose values select a TLS context.
pub(super) const TLS_METADATA: &str = "envoy.transport_socket_match";

/// Upstream filters that only exchange peer metadata in Istio's proxies: this proxy does that natively.
const NATIVE: [&str; 2] = ["istio.metadata_exchange", "envoy.filters.network.upstream.metadata_exchange"];

/// A cluster.
///
/// # Errors
/// The first field that cannot be honoured.
#[allow(deprecated, reason = "Envoy's older HTTP options are still what many bootstraps say")]
pub fn cluster(wire: pb::Cluster) -> Decoded<Cluster> {
    refuse!(wire, load_balancing_policy, lb_subset_config, health_checks, upstream_config);
    refuse!(wire, transport_socket_matcher, queuing_policies, connection_pool_per_downstream_connection);
    refuse_sni(wire.upstream_http_protocol_options.as_ref())?;
    if let Some(i) = wire.filters.iter().position(|f| !NATIVE.contains(&f.name.as_str())) {
        let why = format!("upstream filter {:?} is not supported", wire.filters[i].name);
        return Err(Reject::new(why).at(format!("filters[{i}]")));
    }
    if wire.common_lb_config.as_ref().is_some_and(|c| c.consistent_hashing_lb_config.is_some()) {
        let path = "common_lb_config.consistent_hashing_lb_config";
        return Err(Reject::new("bounded loads are not supported").at(path));
    }
    let discovery = discovery(&wire)?;
    let http = match wire.typed_extension_protocol_options.get(HTTP_OPTIONS) {
        Some(any) => http_options(xds::unpack(any).map_err(Reject::new)?)
            .map_err(|e| e.at(format!("typed_extension_protocol_options[{HTTP_OPTIONS:?}]")))?,
        None => HttpOptions::default(),
    };
    let protocol = match (http.protocol, &wire.http2_protocol_options) {
        (Some(protocol), _) => protocol,
        (None, Some(_)) => Protocol::Http2,
        (None, None) if wire.protocol_selection == 1 => Protocol::Downstream,
        (None, None) => Protocol::Http1,
    };
    let default = wire.transport_socket.as_ref().map(tls::upstream).transpose();
    let default = default.map_err(|e| e.at("transport_socket"))?.flatten().map(Arc::new);
    let outlier =
        wire.outlier_detection.as_ref().map(outlier).transpose().map_err(|e| e.at("outlier_detection"))?;
    let panic = wire.common_lb_config.as_ref().and_then(|c| c.healthy_panic_threshold.as_ref());
    let source_address = match wire.upstream_bind_config.and_then(|b| b.source_address) {
        Some(source) => Some(source.address.parse().map_err(|_| {
            Reject::new(format!("{:?} is not an address", source.address))
                .at("upstream_bind_config.source_address")
        })?),
        None => None,
    };
    let keepalive = wire.upstream_connection_options.and_then(|o| o.tcp_keepalive).map(|k| Keepalive {
        probes: u32_of(k.keepalive_probes),
        time: u32_of(k.keepalive_time),
        interval: u32_of(k.keepalive_interval),
    });
    Ok(Cluster {
        balance: balance(wire.lb_policy, wire.lb_config.as_ref(), &discovery)?,
        connect_timeout: limit(wire.connect_timeout.as_ref(), "connect_timeout")?
            .unwrap_or(Duration::from_secs(5)),
        limits: limits(wire.circuit_breakers.as_ref())?,
        outlier,
        panic_percent: panic.map_or(50, |p| whole_percent(p.value)),
        tls: ClusterTls {
            default,
            matches: each(wire.transport_socket_matches, "transport_socket_matches", tls_match)?,
        },
        protocol,
        max_requests_per_connection: http
            .max_requests
            .or(u32_of(wire.max_requests_per_connection))
            .unwrap_or(0),
        idle_timeout: http.idle_timeout.unwrap_or(Duration::from_secs(3600)),
        source_address,
        keepalive,
        service: service(wire.metadata.as_ref()),
        source: metadata_text(wire.metadata.as_ref(), "istio", "config").and_then(SourceObject::parse),
        name: wire.name.into(),
        discovery,
    })
}

/// Names taken from the request restrict whom we trust, so they may not be passed over.
fn refuse_sni(wire: Option<&core::UpstreamHttpProtocolOptions>) -> Decoded<()> {
    let Some(wire) = wire else { return Ok(()) };
    let check = || -> Decoded<()> {
        refuse!(wire, auto_sni, auto_san_validation, override_auto_sni_header);
        Ok(())
    };
    check().map_err(|e| e.at("upstream_http_protocol_options"))
}

fn discovery(wire: &pb::Cluster) -> Decoded<Discovery> {
    use pb::cluster::{ClusterDiscoveryType as D, DiscoveryType as T};
    let kind = match wire.cluster_discovery_type.as_ref() {
        None => T::Static,
        Some(D::Type(number)) => {
            T::try_from(*number).map_err(|_| Reject::new(format!("unknown value {number}")).at("type"))?
        }
        Some(D::ClusterType(custom)) => {
            return Err(
                Reject::new(format!("cluster type {:?} is not supported", custom.name)).at("cluster_type")
            );
        }
    };
    let fixed = || -> Decoded<Arc<Endpoints>> {
        let mut assignment = wire.load_assignment.clone().unwrap_or_default();
        if assignment.cluster_name.is_empty() {
            assignment.cluster_name.clone_from(&wire.name);
        }
        endpoints(assignment).map(Arc::new).map_err(|e| e.at("load_assignment"))
    };
    Ok(match kind {
        T::Static => Discovery::Static(fixed()?),
        T::StrictDns => Discovery::StrictDns(fixed()?),
        T::LogicalDns => Discovery::LogicalDns(fixed()?),
        T::OriginalDst => Discovery::OriginalDst,
        T::Eds => {
            let service =
                wire.eds_cluster_config.as_ref().map(|e| e.service_name.as_str()).filter(|s| !s.is_empty());
            Discovery::Eds { service: service.unwrap_or(&wire.name).into() }
        }
    })
}

fn balance(policy: i32, config: Option<&pb::cluster::LbConfig>, discovery: &Discovery) -> Decoded<Balance> {
    use pb::cluster::{LbConfig, LbPolicy};
    let policy = LbPolicy::try_from(policy)
        .map_err(|_| Reject::new(format!("unknown value {policy}")).at("lb_policy"))?;
    if matches!(discovery, Discovery::OriginalDst) {
        return Ok(Balance::Provided);
    }
    Ok(match (policy, config) {
        (LbPolicy::RoundRobin, _) => Balance::RoundRobin,
        (LbPolicy::LeastRequest, _) => Balance::LeastRequest,
        (LbPolicy::Random, _) => Balance::Random,
        (LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(ring))) => {
            if ring.hash_function != 0 {
                return Err(Reject::new("only XX_HASH is supported").at("ring_hash_lb_config.hash_function"));
            }
            let minimum = ring.minimum_ring_size.map_or(1024, |m| m.value);
            Balance::RingHash {
                minimum: at_most(minimum, MAX_RING, "ring_hash_lb_config.minimum_ring_size")?,
            }
        }
        (LbPolicy::RingHash, _) => Balance::RingHash { minimum: 1024 },
        (LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(maglev))) => {
            let size = maglev.table_size.map_or(65_537, |s| s.value);
            Balance::Maglev { size: at_most(size, MAX_MAGLEV, "maglev_lb_config.table_size")? }
        }
        (LbPolicy::Maglev, _) => Balance::Maglev { size: 65_537 },
        (LbPolicy::ClusterProvided, _) => Balance::Provided,
        (LbPolicy::LoadBalancingPolicyConfig, _) => return Err(Reject::new("not supported").at("lb_policy")),
    })
}

fn at_most(value: u64, limit: u64, field: &str) -> Decoded<u64> {
    match value <= limit {
        true => Ok(value),
        false => Err(Reject::new(format!("{value} is above {limit}")).at(field)),
    }
}

/// "Unlimited" as control planes write it.
fn finite(limit: Option<u32>) -> Option<u32> {
    limit.filter(|limit| *limit != u32::MAX)
}

fn limits(wire: Option<&pb::CircuitBreakers>) -> Decoded<Limits> {
    // Envoy's own defaults where a control plane says nothing.
    let mut limits =
        Limits { connections: Some(1024), pending: Some(1024), requests: Some(1024), retries: Some(3) };
    let Some(wire) = wire else { return Ok(limits) };
    refuse!(wire, per_host_thresholds);
    for threshold in wire.thresholds.iter().filter(|t| t.priority == 0) {
        refuse!(threshold, retry_budget, max_connection_pools);
        let set = |limit, default| finite(Some(u32_of(limit).unwrap_or(default)));
        limits = Limits {
            connections: set(threshold.max_connections, 1024),
            pending: set(threshold.max_pending_requests, 1024),
            requests: set(threshold.max_requests, 1024),
            retries: set(threshold.max_retries, 3),
        };
    }
    Ok(limits)
}

fn outlier(wire: &pb::OutlierDetection) -> Decoded<Outlier> {
    refuse!(wire, monitors);
    let default = Outlier::default();
    // An enforcement below 100 % is honoured as on or off.
    let enforced = |percent, default: u32| u32_of(percent).unwrap_or(default) > 0;
    let count =
        |count, default: u32, on: bool| Some(u32_of(count).unwrap_or(default)).filter(|c| on && *c > 0);
    let base =
        limit(wire.base_ejection_time.as_ref(), "base_ejection_time")?.unwrap_or(default.base_ejection);
    let max = limit(wire.max_ejection_time.as_ref(), "max_ejection_time")?.unwrap_or(default.max_ejection);
    let split_local = wire.split_external_local_origin_errors;
    Ok(Outlier {
        consecutive_5xx: count(wire.consecutive_5xx, 5, enforced(wire.enforcing_consecutive_5xx, 100)),
        consecutive_gateway: count(
            wire.consecutive_gateway_failure,
            5,
            enforced(wire.enforcing_consecutive_gateway_failure, 0),
        ),
        consecutive_local: count(
            wire.consecutive_local_origin_failure,
            5,
            split_local && enforced(wire.enforcing_consecutive_local_origin_failure, 100),
        ),
        split_local,
        interval: limit(wire.interval.as_ref(), "interval")?.unwrap_or(default.interval),
        base_ejection: base,
        max_ejection: max.max(base),
        max_percent: u32_of(wire.max_ejection_percent).unwrap_or(10),
    })
}

fn whole_percent(value: f64) -> u32 {
    // 0..=100 after the clamp, so every value has its whole number among these.
    (0..=100).rev().find(|whole| f64::from(*whole) <= value.clamp(0.0, 100.0)).unwrap_or(0)
}

fn tls_match(wire: pb::cluster::TransportSocketMatch) -> Decoded<TlsMatch> {
    let fields = wire.r#match.map(|s| s.fields).unwrap_or_default();
    let socket = wire.transport_socket.ok_or_else(|| Reject::new("missing").at("transport_socket"))?;
    let tls = tls::upstream(&socket).map_err(|e| e.at("transport_socket"))?.map(Arc::new);
    Ok(TlsMatch { name: wire.name.into(), labels: labels(&fields)?, tls })
}

fn labels(
    fields: &std::collections::HashMap<String, xds::google::protobuf::Value>,
) -> Decoded<Vec<(Name, Name)>> {
    let mut labels = Vec::with_capacity(fields.len());
    for (key, value) in fields {
        let value = text(value).ok_or_else(|| Reject::new("must be a text").at(format!("match[{key:?}]")))?;
        labels.push((key.as_str().into(), value.into()));
    }
    labels.sort();
    Ok(labels)
}

/// The service as Istio describes it: `filter_metadata.istio.services[0]`.
fn service(metadata: Option<&core::Metadata>) -> Option<Service> {
    use xds::google::protobuf::value::Kind;
    let services = metadata?.filter_metadata.get("istio")?.fields.get("services")?;
    let Some(Kind::ListValue(list)) = &services.kind else { return None };
    let Some(Kind::StructValue(service)) = &list.values.first()?.kind else { return None };
    let get = |key| service.fields.get(key).and_then(text).map(Name::from);
    Some(Service { host: get("host")?, name: get("name")?, namespace: get("namespace").unwrap_or_default() })
}

#[derive(Default)]
struct HttpOptions {
    protocol: Option<Protocol>,
    max_requests: Option<u32>,
    idle_timeout: Option<Duration>,
}

fn http_options(wire: HttpProtocolOptions) -> Decoded<HttpOptions> {
    refuse!(wire, http_filters, hash_policy, retry_policy, outlier_detection, request_mirror_policies);
    refuse_sni(wire.upstream_http_protocol_options.as_ref())?;
    use options::{UpstreamProtocolOptions as P, explicit_http_config::ProtocolConfig as E};
    let protocol = match wire.upstream_protocol_options {
        None => None,
        Some(P::ExplicitHttpConfig(explicit)) => Some(match explicit.protocol_config {
            Some(E::Http2ProtocolOptions(_)) => Protocol::Http2,
            None | Some(E::HttpProtocolOptions(_)) => Protocol::Http1,
            Some(E::Http3ProtocolOptions(_)) => {
                return Err(Reject::new("HTTP/3 is not spoken").at("explicit_http_config"));
            }
        }),
        Some(P::UseDownstreamProtocolConfig(_)) => Some(Protocol::Downstream),
        Some(P::AutoConfig(_)) => Some(Protocol::Auto),
    };
    let common = wire.common_http_protocol_options.unwrap_or_default();
    Ok(HttpOptions {
        protocol,
        max_requests: u32_of(common.max_requests_per_connection),
        idle_timeout: duration(common.idle_timeout.as_ref(), "common_http_protocol_options.idle_timeout")?,
    })
}

/// Endpoints.
///
/// # Errors
/// The first field that cannot be honoured.
pub fn endpoints(wire: eds::ClusterLoadAssignment) -> Decoded<Endpoints> {
    refuse!(wire, named_endpoints);
    let drops = wire.policy.as_ref().is_some_and(|p| !p.drop_overloads.is_empty());
    if drops {
        return Err(Reject::new("dropping a share of requests is not supported").at("policy.drop_overloads"));
    }
    Ok(Endpoints { name: wire.cluster_name.into(), localities: each(wire.endpoints, "endpoints", locality)? })
}

fn locality(wire: eds::LocalityLbEndpoints) -> Decoded<Locality> {
    refuse!(wire, lb_config);
    let name = wire.locality.map(|l| match (l.zone.is_empty(), l.sub_zone.is_empty()) {
        (true, _) => l.region,
        (false, true) => format!("{}/{}", l.region, l.zone),
        (false, false) => format!("{}/{}/{}", l.region, l.zone, l.sub_zone),
    });
    Ok(Locality {
        name: name.unwrap_or_default().into(),
        priority: wire.priority,
        weight: u32_of(wire.load_balancing_weight),
        endpoints: each(wire.lb_endpoints, "lb_endpoints", |one| endpoint(one).map(Arc::new))?,
    })
}

fn endpoint(wire: eds::LbEndpoint) -> Decoded<Endpoint> {
    use eds::lb_endpoint::HostIdentifier as H;
    let Some(H::Endpoint(inner)) = wire.host_identifier else {
        return Err(Reject::new("only an endpoint is supported").at("host_identifier"));
    };
    refuse!(inner, additional_addresses);
    let address = inner.address.ok_or_else(|| Reject::new("missing").at("endpoint.address"))?;
    let health = match wire.health_status {
        0 | 1 => Health::Healthy,
        3 => Health::Draining,
        5 => Health::Degraded,
        _ => Health::Unhealthy,
    };
    let fields = wire.metadata.as_ref().and_then(|m| m.filter_metadata.get(TLS_METADATA)).map(|s| &s.fields);
    Ok(Endpoint {
        address: self::address(&address).map_err(|e| e.at("endpoint.address"))?,
        health,
        weight: u32_of(wire.load_balancing_weight).unwrap_or(1).max(1),
        tls_labels: fields.map(labels).transpose().map_err(|e| e.at("metadata"))?.unwrap_or_default(),
        workload: metadata_text(wire.metadata.as_ref(), "istio", "workload").unwrap_or_default().into(),
    })
}

/// An address of an endpoint or a listener.
pub(super) fn address(wire: &core::Address) -> Decoded<Address> {
    use core::{address::Address as A, socket_address::PortSpecifier as P};
    match wire.address.as_ref().ok_or_else(|| Reject::new("empty"))? {
        A::SocketAddress(socket) => {
            if socket.protocol != 0 {
                return Err(Reject::new("only TCP is supported").at("socket_address.protocol"));
            }
            let number = match socket.port_specifier {
                Some(P::PortValue(number)) => port(number, "socket_address.port_value")?,
                Some(P::NamedPort(_)) => {
                    return Err(Reject::new("not supported").at("socket_address.named_port"));
                }
                None => 0,
            };
            Ok(match socket.address.parse() {
                Ok(ip) => Address::Ip(SocketAddr::new(ip, number)),
                Err(_) => Address::Dns(socket.address.as_str().into(), number),
            })
        }
        A::Pipe(pipe) => Ok(Address::Pipe(pipe.path.as_str().into())),
        A::EnvoyInternalAddress(_) => Err(Reject::new("internal addresses are not supported")),
    }
}
