//! Listeners → LDS.
//!
//! In: `crate::listener`. Out: Listener messages with their filters. Kept true: a client that waits for the server to speak first is not held up
//! longer than the model says, nor closed. Not here: HTTP filters (`filter`), TLS (`tls`).

use std::time::Duration;

use xds::{
    envoy::{
        config::{accesslog::v3 as log_pb, core::v3 as core, listener::v3 as pb},
        extensions::{
            access_loggers::{file::v3 as file_pb, grpc::v3 as grpc_pb},
            filters::{
                listener as inspectors,
                network::{http_connection_manager::v3 as hcm, tcp_proxy::v3 as tcp_pb},
            },
        },
        r#type::{tracing::v3 as tag_pb, v3::Percent},
    },
    google::protobuf::Any,
};

use super::{
    ads, boolean,
    canonical::{Field, METADATA, Maps, STRUCT},
    cluster::address,
    duration, filter, object, packed, plain, rbac, route, source, text, tls, uint,
};
use crate::{
    endpoint::Address,
    listener::{
        AccessLog, ChainMatch, Codec, FilterChain, ForwardClientCert, HttpManager, Inspect, Listener,
        LogFormat, RouteSource, TcpProxy, Terminal, Transport,
    },
    names::{Direction, Name},
    route::Target,
};

/// Maps of a listener. Filters are sorted where they are packed.
pub(super) static MAPS: Maps = Maps(&[(3, Field::Message(&CHAIN)), (25, Field::Message(&CHAIN))]);
static CHAIN: Maps = Maps(&[(5, Field::Message(&METADATA))]);
static MANAGER: Maps = Maps(&[(4, Field::Message(&route::MAPS))]);
static FILE_LOG: Maps = Maps(&[(5, Field::Message(&LOG_FORMAT))]);
static LOG_FORMAT: Maps = Maps(&[(2, Field::Message(&STRUCT))]);

/// How long a plain chain waits for a client's first bytes when the model leaves it open (see [`Inspect::timeout`]).
const SHORT_PEEK: Duration = Duration::from_millis(100);

/// A listener.
#[must_use]
pub fn listener(from: &Listener) -> pb::Listener {
    let inspects = from.inspect.tls || from.inspect.http;
    let plain_chain =
        from.all_chains().any(|chain| chain.tls.is_none() && chain.matcher.transport != Some(Transport::Tls));
    let timeout = from.inspect.timeout.or((inspects && plain_chain).then_some(SHORT_PEEK));
    pb::Listener {
        name: from.name.to_string(),
        address: Some(address(&Address::Ip(from.address))),
        additional_addresses: from
            .additional
            .iter()
            .map(|at| pb::AdditionalAddress {
                address: Some(address(&Address::Ip(*at))),
                ..Default::default()
            })
            .collect(),
        filter_chains: from.chains.iter().map(|one| chain(one)).collect(),
        use_original_dst: if from.use_original_dst { boolean(true) } else { None },
        default_filter_chain: from.default_chain.as_ref().map(|one| chain(one)),
        listener_filters: listener_filters(from.inspect),
        listener_filters_timeout: timeout.map(duration),
        continue_on_listener_filters_timeout: timeout.is_some(),
        traffic_direction: match from.direction {
            Direction::Inbound => core::TrafficDirection::Inbound,
            Direction::Outbound => core::TrafficDirection::Outbound,
        }
        .into(),
        access_log: from.access_log.iter().map(|log| access_log(log, Some(no_chain()))).collect(),
        bind_to_port: if from.bind { None } else { boolean(false) },
        ..Default::default()
    }
}

fn listener_filters(from: Inspect) -> Vec<pb::ListenerFilter> {
    let filter = |name: &str, config: Any| pb::ListenerFilter {
        name: format!("envoy.filters.listener.{name}"),
        config_type: Some(pb::listener_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    };
    let mut all = Vec::new();
    if from.original_dst {
        all.push(filter("original_dst", plain(&inspectors::original_dst::v3::OriginalDst {})));
    }
    if from.tls {
        all.push(filter("tls_inspector", plain(&inspectors::tls_inspector::v3::TlsInspector::default())));
    }
    if from.http {
        all.push(filter("http_inspector", plain(&inspectors::http_inspector::v3::HttpInspector {})));
    }
    all
}

/// Only connections that no chain took: the others are logged by their chain.
fn no_chain() -> log_pb::AccessLogFilter {
    let flags = log_pb::ResponseFlagFilter { flags: vec!["NR".to_owned()] };
    let filter = log_pb::access_log_filter::FilterSpecifier::ResponseFlagFilter(flags);
    log_pb::AccessLogFilter { filter_specifier: Some(filter) }
}

fn chain(from: &FilterChain) -> pb::FilterChain {
    let rules = from
        .rbac
        .iter()
        .map(|rules| network("envoy.filters.network.rbac", packed(&rbac::network(rules), &rbac::MAPS)));
    let end = match &from.terminal {
        Terminal::Http(manager) => {
            network("envoy.filters.network.http_connection_manager", packed(&http_manager(manager), &MANAGER))
        }
        Terminal::Tcp(proxy) => network("envoy.filters.network.tcp_proxy", plain(&tcp_proxy(proxy))),
    };
    pb::FilterChain {
        filter_chain_match: (from.matcher != ChainMatch::default()).then(|| chain_match(&from.matcher)),
        filters: rules.chain([end]).collect(),
        metadata: source(from.source.as_ref()),
        transport_socket: from.tls.as_ref().map(tls::downstream),
        name: from.name.to_string(),
        ..Default::default()
    }
}

fn network(name: &str, config: Any) -> pb::Filter {
    pb::Filter { name: name.to_owned(), config_type: Some(pb::filter::ConfigType::TypedConfig(config)) }
}

fn chain_match(from: &ChainMatch) -> pb::FilterChainMatch {
    pb::FilterChainMatch {
        destination_port: from.port.and_then(|port| uint(u32::from(port))),
        prefix_ranges: from.destinations.iter().map(|block| rbac::cidr(*block)).collect(),
        source_prefix_ranges: from.sources.iter().map(|block| rbac::cidr(*block)).collect(),
        server_names: from.server_names.iter().map(Name::to_string).collect(),
        transport_protocol: match from.transport {
            None => "",
            Some(Transport::Tls) => "tls",
            Some(Transport::Raw) => "raw_buffer",
        }
        .to_owned(),
        application_protocols: from.protocols.iter().map(Name::to_string).collect(),
        ..Default::default()
    }
}

/// Envoy refuses an empty prefix.
fn stat_prefix(from: &Name, otherwise: &str) -> String {
    if from.is_empty() { otherwise.to_owned() } else { from.to_string() }
}

fn tcp_proxy(from: &TcpProxy) -> tcp_pb::TcpProxy {
    use tcp_pb::tcp_proxy::{ClusterSpecifier as C, WeightedCluster, weighted_cluster::ClusterWeight};
    let target = match &from.target {
        Target::Cluster(name) => C::Cluster(name.to_string()),
        Target::Split(split) => {
            // Envoy refuses a weight of zero here.
            let arms = split.arms().iter().filter(|arm| arm.weight > 0).map(|arm| ClusterWeight {
                name: arm.cluster.to_string(),
                weight: arm.weight,
                metadata_match: None,
            });
            C::WeightedClusters(WeightedCluster { clusters: arms.collect() })
        }
    };
    tcp_pb::TcpProxy {
        stat_prefix: stat_prefix(&from.stat_prefix, "tcp"),
        idle_timeout: Some(duration(from.idle_timeout)),
        access_log: from
            .access_log
            .iter()
            .map(|log| access_log(log, None))
            .chain(from.log_service.as_deref().map(tcp_log_service))
            .collect(),
        cluster_specifier: Some(target),
        ..Default::default()
    }
}

fn http_manager(from: &HttpManager) -> hcm::HttpConnectionManager {
    use hcm::http_connection_manager::{
        CodecType, ForwardClientCertDetails as F, RouteSpecifier as R, ServerHeaderTransformation as S,
        SetCurrentClientCertDetails, Tracing, UpgradeConfig,
    };
    let percent = |value: f64| Some(Percent { value });
    let certificate = match from.forward_client_cert {
        ForwardClientCert::Sanitize => F::Sanitize,
        ForwardClientCert::ForwardOnly => F::ForwardOnly,
        ForwardClientCert::AppendForward => F::AppendForward,
        ForwardClientCert::SanitizeSet => F::SanitizeSet,
        ForwardClientCert::AlwaysForwardOnly => F::AlwaysForwardOnly,
    };
    let ours = matches!(certificate, F::AppendForward | F::SanitizeSet);
    hcm::HttpConnectionManager {
        codec_type: match from.codec {
            Codec::Auto => CodecType::Auto,
            Codec::Http1 => CodecType::Http1,
            Codec::Http2 => CodecType::Http2,
        }
        .into(),
        stat_prefix: stat_prefix(&from.stat_prefix, "http"),
        http_filters: from.filters.iter().filter_map(filter::http_filter).collect(),
        tracing: from.tracing.map(|tracing| Tracing {
            client_sampling: percent(100.0),
            random_sampling: percent(f64::from(tracing.per_million) / 10_000.0),
            overall_sampling: percent(100.0),
            ..Default::default()
        }),
        common_http_protocol_options: Some(core::HttpProtocolOptions {
            idle_timeout: Some(duration(from.idle_timeout)),
            ..Default::default()
        }),
        server_name: from.server_name.as_deref().unwrap_or_default().to_owned(),
        server_header_transformation: match from.server_name {
            Some(_) => S::Overwrite,
            None => S::PassThrough,
        }
        .into(),
        max_request_headers_kb: uint(from.max_head_kib),
        stream_idle_timeout: Some(duration(from.stream_idle_timeout)),
        request_timeout: Some(duration(from.request_timeout)),
        request_headers_timeout: Some(duration(from.headers_timeout)),
        access_log: from
            .access_log
            .iter()
            .map(|log| access_log(log, None))
            .chain(from.log_service.as_deref().map(|cluster| http_log_service(cluster, from.direction)))
            .collect(),
        use_remote_address: boolean(from.use_remote_address),
        xff_num_trusted_hops: from.xff_trusted_hops,
        skip_xff_append: from.skip_xff_append,
        forward_client_cert_details: certificate.into(),
        set_current_client_cert_details: ours.then(|| SetCurrentClientCertDetails {
            subject: boolean(true),
            dns: true,
            uri: true,
            ..Default::default()
        }),
        // "100 Continue" is the application's to say.
        proxy_100_continue: true,
        upgrade_configs: from
            .upgrades
            .iter()
            .map(|upgrade| UpgradeConfig {
                upgrade_type: if &**upgrade == "connect" {
                    "CONNECT".to_owned()
                } else {
                    upgrade.to_string()
                },
                ..Default::default()
            })
            .collect(),
        normalize_path: boolean(from.normalize_path),
        merge_slashes: from.merge_slashes,
        route_specifier: Some(match &from.routes {
            RouteSource::Inline(routes) => R::RouteConfig(route::route_configuration(routes)),
            RouteSource::Rds(name) => {
                R::Rds(hcm::Rds { config_source: Some(ads()), route_config_name: name.to_string() })
            }
        }),
        ..Default::default()
    }
}

fn access_log(from: &AccessLog, filter: Option<log_pb::AccessLogFilter>) -> log_pb::AccessLog {
    use core::{data_source::Specifier, substitution_format_string::Format};
    let format = match &from.format {
        LogFormat::Text(line) => Format::TextFormatSource(core::DataSource {
            specifier: Some(Specifier::InlineString(line.to_string())),
            ..Default::default()
        }),
        LogFormat::Json(fields) => {
            Format::JsonFormat(object(fields.iter().map(|(name, command)| (&**name, text(&**command)))))
        }
    };
    let format = core::SubstitutionFormatString { format: Some(format), ..Default::default() };
    let file = file_pb::FileAccessLog {
        path: from.path.to_string(),
        access_log_format: Some(file_pb::file_access_log::AccessLogFormat::LogFormat(format)),
    };
    log_pb::AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        filter,
        config_type: Some(log_pb::access_log::ConfigType::TypedConfig(packed(&file, &FILE_LOG))),
    }
}

/// Istio's names for these logs. The way of the traffic is said in a tag: of a request that was answered before it had a cluster, nothing
/// else in the entry tells whose side reports it.
fn http_log_service(cluster: &str, direction: Direction) -> log_pb::AccessLog {
    use tag_pb::custom_tag::{Literal, Type};
    let value = match direction {
        Direction::Inbound => "inbound",
        _ => "outbound",
    };
    let tag = tag_pb::CustomTag {
        tag: "direction".to_owned(),
        r#type: Some(Type::Literal(Literal { value: value.to_owned() })),
    };
    let common_config = Some(grpc_pb::CommonGrpcAccessLogConfig {
        custom_tags: vec![tag],
        ..log_service("http_envoy_accesslog", cluster)
    });
    let config = grpc_pb::HttpGrpcAccessLogConfig { common_config, ..Default::default() };
    log_pb::AccessLog {
        name: "envoy.http_grpc_access_log".to_owned(),
        filter: None,
        config_type: Some(log_pb::access_log::ConfigType::TypedConfig(plain(&config))),
    }
}

fn tcp_log_service(cluster: &str) -> log_pb::AccessLog {
    let config =
        grpc_pb::TcpGrpcAccessLogConfig { common_config: Some(log_service("tcp_envoy_accesslog", cluster)) };
    log_pb::AccessLog {
        name: "envoy.tcp_grpc_access_log".to_owned(),
        filter: None,
        config_type: Some(log_pb::access_log::ConfigType::TypedConfig(plain(&config))),
    }
}

fn log_service(name: &str, cluster: &str) -> grpc_pb::CommonGrpcAccessLogConfig {
    use core::grpc_service::{EnvoyGrpc, TargetSpecifier};
    grpc_pb::CommonGrpcAccessLogConfig {
        log_name: name.to_owned(),
        transport_api_version: core::ApiVersion::V3.into(),
        grpc_service: Some(core::GrpcService {
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                cluster_name: cluster.to_owned(),
                ..Default::default()
            })),
            ..Default::default()
        }),
        ..Default::default()
    }
}
