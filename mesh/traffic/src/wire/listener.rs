//! LDS → `crate::listener`.
//!
//! In: Listener messages with their filters. Out: the model. Kept true: the last network filter ends the connection; what stands before it is RBAC
//! or something that Istio's proxies carry for statistics. Not here: sockets (`proxy`).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use xds::{
    envoy::{
        config::{accesslog::v3 as log_pb, core::v3 as core, listener::v3 as pb},
        extensions::{
            access_loggers::{file::v3 as file_pb, grpc::v3 as grpc_pb, stream::v3 as stream_pb},
            filters::network::{
                http_connection_manager::v3 as hcm, rbac::v3 as rbac_pb, tcp_proxy::v3 as tcp_pb,
            },
        },
    },
    google::protobuf::{Any, value::Kind},
};

use super::{
    Decoded, Reject, bool_of, cluster::address, duration, each, filter, limit, metadata_text, rbac, refuse,
    route, strict, tls, u32_of,
};
use crate::{
    endpoint::Address,
    filter::FilterConfig,
    listener::{
        AccessLog, ChainMatch, Codec, FilterChain, ForwardClientCert, HttpManager, ISTIO_LOG_FORMAT, Inspect,
        Listener, LogFormat, RouteSource, TcpProxy, Terminal, Tracing, Transport,
    },
    names::{Direction, Name, SourceObject},
    rbac::Rbac,
    route::{Arm, HeaderOps, Split, Target},
};

/// Network filters that only add statistics or peer metadata in Istio's proxies: this proxy does those natively.
const NATIVE: [&str; 4] =
    ["istio.stats", "istio.metadata_exchange", "envoy.filters.network.metadata_exchange", "istio_authn"];

/// A listener.
///
/// # Errors
/// The first field that cannot be honoured.
#[allow(deprecated, reason = "deprecated fields are looked at only to refuse them")]
pub fn listener(wire: pb::Listener) -> Decoded<Listener> {
    refuse!(wire, filter_chain_matcher, udp_listener_config, api_listener, fcds_config, listener_specifier);
    if bool_of(wire.transparent, false) {
        return Err(Reject::new("transparent sockets are not supported").at("transparent"));
    }
    let direction = if wire.traffic_direction == 1 { Direction::Inbound } else { Direction::Outbound };
    let main = wire.address.as_ref().ok_or_else(|| Reject::new("missing").at("address"))?;
    let additional = each(wire.additional_addresses, "additional_addresses", |one| {
        socket(one.address.as_ref().ok_or_else(|| Reject::new("missing").at("address"))?)
    })?;
    let chains = each(wire.filter_chains, "filter_chains", |one| chain(one, direction).map(Arc::new))?;
    let default_chain = wire.default_filter_chain.map(|one| chain(one, direction).map(Arc::new));
    let mut inspect = inspect(&wire.listener_filters)?;
    inspect.timeout = duration(wire.listener_filters_timeout.as_ref(), "listener_filters_timeout")?;
    Ok(Listener {
        address: socket(main).map_err(|e| e.at("address"))?,
        additional,
        bind: bool_of(wire.bind_to_port, true),
        use_original_dst: bool_of(wire.use_original_dst, false),
        direction,
        inspect,
        chains,
        default_chain: default_chain.transpose().map_err(|e| e.at("default_filter_chain"))?,
        access_log: access_logs(wire.access_log)?,
        name: wire.name.into(),
    })
}

fn socket(wire: &core::Address) -> Decoded<SocketAddr> {
    match address(wire)? {
        Address::Ip(address) => Ok(address),
        other => Err(Reject::new(format!("{other} is not an IP address and port"))),
    }
}

fn inspect(filters: &[pb::ListenerFilter]) -> Decoded<Inspect> {
    let mut inspect = Inspect::default();
    for (i, filter) in filters.iter().enumerate() {
        match filter.name.as_str() {
            "envoy.filters.listener.original_dst" => inspect.original_dst = true,
            "envoy.filters.listener.tls_inspector" => inspect.tls = true,
            "envoy.filters.listener.http_inspector" => inspect.http = true,
            other => {
                let why = format!("listener filter {other:?} is not supported");
                return Err(Reject::new(why).at(format!("listener_filters[{i}]")));
            }
        }
    }
    Ok(inspect)
}

#[allow(deprecated, reason = "deprecated fields are looked at only to refuse them")]
fn chain(wire: pb::FilterChain, direction: Direction) -> Decoded<FilterChain> {
    refuse!(wire, use_proxy_proto);
    let matcher =
        wire.filter_chain_match.map(chain_match).transpose().map_err(|e| e.at("filter_chain_match"))?;
    let tls = wire.transport_socket.as_ref().map(tls::downstream).transpose();
    let (mut rules, mut terminal) = (Vec::new(), None);
    for (i, one) in wire.filters.into_iter().enumerate() {
        let at = |e: Reject| e.at(format!("filters[{i}]"));
        if terminal.is_some() {
            return Err(at(Reject::new("follows a filter that ends the connection")));
        }
        match network(one, direction).map_err(at)? {
            Network::Rules(Some(rbac)) => rules.push(Arc::new(rbac)),
            Network::Rules(None) => {}
            Network::End(end) => terminal = Some(end),
        }
    }
    Ok(FilterChain {
        name: wire.name.into(),
        matcher: matcher.unwrap_or_default(),
        tls: tls.map_err(|e| e.at("transport_socket"))?.flatten(),
        rbac: rules,
        terminal: terminal
            .ok_or_else(|| Reject::new("no HTTP connection manager or TCP proxy").at("filters"))?,
        source: metadata_text(wire.metadata.as_ref(), "istio", "config").and_then(SourceObject::parse),
    })
}

fn chain_match(wire: pb::FilterChainMatch) -> Decoded<ChainMatch> {
    refuse!(wire, source_type, source_ports, address_suffix, suffix_len, direct_source_prefix_ranges);
    let transport = match wire.transport_protocol.as_str() {
        "" => None,
        "tls" => Some(Transport::Tls),
        "raw_buffer" => Some(Transport::Raw),
        other => return Err(Reject::new(format!("unknown protocol {other:?}")).at("transport_protocol")),
    };
    let port = u32_of(wire.destination_port).map(|number| super::port(number, "destination_port"));
    Ok(ChainMatch {
        port: port.transpose()?,
        destinations: each(wire.prefix_ranges, "prefix_ranges", |one| rbac::cidr(&one))?,
        server_names: wire.server_names.into_iter().map(|n| n.to_ascii_lowercase().into()).collect(),
        transport,
        protocols: wire.application_protocols.into_iter().map(Name::from).collect(),
        sources: each(wire.source_prefix_ranges, "source_prefix_ranges", |one| rbac::cidr(&one))?,
    })
}

enum Network {
    Rules(Option<Rbac>),
    End(Terminal),
}

fn network(wire: pb::Filter, direction: Direction) -> Decoded<Network> {
    let Some(pb::filter::ConfigType::TypedConfig(any)) = wire.config_type else {
        return Err(Reject::new(format!("filter {:?} has no configuration here", wire.name)));
    };
    let converted = match any.type_url.rsplit('/').next().unwrap_or_default() {
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
            http_manager(&any, direction).map(|m| Network::End(Terminal::Http(Arc::new(m))))
        }
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => {
            tcp_proxy(&any).map(|t| Network::End(Terminal::Tcp(Arc::new(t))))
        }
        "envoy.extensions.filters.network.rbac.v3.RBAC" => {
            strict::<rbac_pb::Rbac>(&any).and_then(rbac::network).map(Network::Rules)
        }
        _ if NATIVE.contains(&wire.name.as_str()) => Ok(Network::Rules(None)),
        other => return Err(Reject::new(format!("network filter {other:?} is not supported"))),
    };
    converted.map_err(|e| e.at("typed_config"))
}

fn tcp_proxy(any: &Any) -> Decoded<TcpProxy> {
    use tcp_pb::tcp_proxy::ClusterSpecifier as C;
    let wire: tcp_pb::TcpProxy = xds::unpack(any).map_err(Reject::new)?;
    refuse!(wire, metadata_match, tunneling_config, on_demand, hash_policy, proxy_protocol_tlvs);
    refuse!(wire, downstream_idle_timeout, upstream_idle_timeout, max_downstream_connection_duration);
    refuse!(wire, upstream_connect_mode, max_early_data_bytes);
    let target = match wire.cluster_specifier.ok_or_else(|| Reject::new("missing").at("cluster_specifier"))? {
        C::Cluster(name) => Target::Cluster(name.into()),
        C::WeightedClusters(split) => {
            let arms = split.clusters.into_iter().map(|arm| Arm {
                cluster: arm.name.into(),
                weight: arm.weight,
                headers: HeaderOps::default(),
                host_rewrite: None,
            });
            let split = Split::new(arms.collect()).map_err(|why| Reject::new(why).at("weighted_clusters"))?;
            Target::Split(split)
        }
    };
    Ok(TcpProxy {
        stat_prefix: wire.stat_prefix.into(),
        target,
        idle_timeout: duration(wire.idle_timeout.as_ref(), "idle_timeout")?
            .unwrap_or(Duration::from_secs(3600)),
        log_service: log_service(&wire.access_log)?,
        access_log: access_logs(wire.access_log)?,
    })
}

#[allow(deprecated, reason = "deprecated fields are looked at only to refuse them")]
fn http_manager(any: &Any, direction: Direction) -> Decoded<HttpManager> {
    use hcm::http_connection_manager::{ForwardClientCertDetails as F, RouteSpecifier as R};
    let wire: hcm::HttpConnectionManager = xds::unpack(any).map_err(Reject::new)?;
    refuse!(wire, local_reply_config, original_ip_detection_extensions, early_header_mutation_extensions);
    refuse!(wire, proxy_status_config, scheme_header_transformation, forward_client_cert_matcher);
    refuse!(
        wire,
        strip_matching_host_port,
        strip_port_mode,
        strip_trailing_host_dot,
        path_normalization_options
    );
    refuse!(wire, typed_header_validation_config, forward_proto_config, via, append_x_forwarded_port);
    refuse!(wire, always_set_request_id_in_response);
    // 1 keeps `%2F` as it is, which is what this proxy does.
    if wire.path_with_escaped_slashes_action > 1 {
        return Err(Reject::new("only KEEP_UNCHANGED is supported").at("path_with_escaped_slashes_action"));
    }
    let routes = match wire.route_specifier.ok_or_else(|| Reject::new("missing").at("route_specifier"))? {
        R::Rds(rds) => RouteSource::Rds(rds.route_config_name.into()),
        R::RouteConfig(inline) => RouteSource::Inline(Arc::new(
            route::route_configuration(inline).map_err(|e| e.at("route_config"))?,
        )),
        R::ScopedRoutes(_) => return Err(Reject::new("not supported").at("scoped_routes")),
    };
    let filters = each(wire.http_filters, "http_filters", filter::http_filter)?;
    if !filters.last().is_some_and(|last| last.config == FilterConfig::Router) {
        return Err(Reject::new("the last filter must be the router").at("http_filters"));
    }
    let forward_client_cert = match F::try_from(wire.forward_client_cert_details) {
        Ok(F::Sanitize) => ForwardClientCert::Sanitize,
        Ok(F::ForwardOnly) => ForwardClientCert::ForwardOnly,
        Ok(F::AppendForward) => ForwardClientCert::AppendForward,
        Ok(F::SanitizeSet) => ForwardClientCert::SanitizeSet,
        Ok(F::AlwaysForwardOnly) => ForwardClientCert::AlwaysForwardOnly,
        Err(_) => return Err(Reject::new("unknown value").at("forward_client_cert_details")),
    };
    let tracing = match wire.tracing {
        None => None,
        Some(tracing) => {
            let percent =
                |p: Option<xds::envoy::r#type::v3::Percent>| p.map_or(100.0, |p| p.value.clamp(0.0, 100.0));
            let share = percent(tracing.random_sampling).min(percent(tracing.overall_sampling));
            Some(Tracing { per_million: per_million(share) })
        }
    };
    let common = wire.common_http_protocol_options.unwrap_or_default();
    common_options(&common).map_err(|e| e.at("common_http_protocol_options"))?;
    let upgrades = wire.upgrade_configs.into_iter().filter(|u| bool_of(u.enabled, true));
    Ok(HttpManager {
        stat_prefix: wire.stat_prefix.into(),
        codec: match wire.codec_type {
            0 => Codec::Auto,
            1 => Codec::Http1,
            2 => Codec::Http2,
            _ => return Err(Reject::new("HTTP/3 is not spoken").at("codec_type")),
        },
        routes,
        filters,
        server_name: match (wire.server_header_transformation, wire.server_name.as_str()) {
            (2, _) => None,
            (_, "") => Some("envoy".into()),
            (_, name) => Some(name.into()),
        },
        forward_client_cert,
        use_remote_address: bool_of(wire.use_remote_address, false),
        xff_trusted_hops: wire.xff_num_trusted_hops,
        skip_xff_append: wire.skip_xff_append,
        upgrades: upgrades.map(|u| u.upgrade_type.to_ascii_lowercase().into()).collect(),
        tracing,
        log_service: log_service(&wire.access_log)?,
        access_log: access_logs(wire.access_log)?,
        stream_idle_timeout: duration(wire.stream_idle_timeout.as_ref(), "stream_idle_timeout")?
            .unwrap_or(Duration::from_secs(300)),
        request_timeout: duration(wire.request_timeout.as_ref(), "request_timeout")?.unwrap_or_default(),
        headers_timeout: duration(wire.request_headers_timeout.as_ref(), "request_headers_timeout")?
            .unwrap_or_default(),
        idle_timeout: limit(common.idle_timeout.as_ref(), "common_http_protocol_options.idle_timeout")?
            .unwrap_or(Duration::from_secs(3600)),
        max_head_kib: u32_of(wire.max_request_headers_kb).unwrap_or(60),
        normalize_path: bool_of(wire.normalize_path, false),
        merge_slashes: wire.merge_slashes,
        direction,
    })
}

fn common_options(wire: &core::HttpProtocolOptions) -> Decoded<()> {
    refuse!(wire, max_connection_duration, max_stream_duration, headers_with_underscores_action);
    refuse!(wire, max_requests_per_connection);
    Ok(())
}

/// Millionths of a percentage. Envoy's resolution is a hundredth of a percent.
fn per_million(percent: f64) -> u32 {
    // Within 0..=10_000 after the clamp; a search avoids a cast that could truncate.
    let hundredths = (percent.clamp(0.0, 100.0) * 100.0).round();
    let (mut low, mut high) = (0_u32, 10_000_u32);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if f64::from(middle) <= hundredths { low = middle } else { high = middle - 1 }
    }
    low * 100
}

fn access_logs(wire: Vec<log_pb::AccessLog>) -> Decoded<Vec<AccessLog>> {
    let logs = each(wire, "access_log", access_log)?;
    Ok(logs.into_iter().flatten().collect())
}

/// A log; `None` for those that only mixer's wires carry, which our proxies feed natively.
fn access_log(wire: log_pb::AccessLog) -> Decoded<Option<AccessLog>> {
    let Some(log_pb::access_log::ConfigType::TypedConfig(any)) = wire.config_type else {
        return Err(Reject::new(format!("log {:?} has no configuration", wire.name)).at("typed_config"));
    };
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    // A filter that only lets some connections through: Istio's "no filter chain matched" one is this proxy's own habit.
    let log = match name {
        "envoy.extensions.access_loggers.file.v3.FileAccessLog" => {
            let file: file_pb::FileAccessLog = xds::unpack(&any).map_err(Reject::new)?;
            let format = file_format(file.access_log_format).map_err(|e| e.at("typed_config"))?;
            AccessLog { path: file.path.into(), format }
        }
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
            let stdout: stream_pb::StdoutAccessLog = xds::unpack(&any).map_err(Reject::new)?;
            let format =
                stdout.access_log_format.map(|stream_pb::stdout_access_log::AccessLogFormat::LogFormat(f)| f);
            let format = format.map_or(Ok(LogFormat::Text(ISTIO_LOG_FORMAT.into())), substitution)?;
            AccessLog { path: "/dev/stdout".into(), format }
        }
        "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig"
        | "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig"
        | "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig" => {
            return Ok(None);
        }
        other => return Err(Reject::new(format!("log type {other:?} is not supported")).at("typed_config")),
    };
    Ok(Some(log))
}

/// The cluster of the first log that goes to an access log service.
fn log_service(wire: &[log_pb::AccessLog]) -> Decoded<Option<Name>> {
    for log in wire {
        let Some(log_pb::access_log::ConfigType::TypedConfig(any)) = &log.config_type else { continue };
        let common = match any.type_url.rsplit('/').next().unwrap_or_default() {
            "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig" => {
                xds::unpack::<grpc_pb::HttpGrpcAccessLogConfig>(any).map_err(Reject::new)?.common_config
            }
            "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig" => {
                xds::unpack::<grpc_pb::TcpGrpcAccessLogConfig>(any).map_err(Reject::new)?.common_config
            }
            _ => continue,
        };
        let service =
            common.and_then(|common| common.grpc_service).and_then(|service| service.target_specifier);
        if let Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(envoy)) = service {
            return Ok(Some(envoy.cluster_name.into()));
        }
    }
    Ok(None)
}

#[allow(deprecated, reason = "the deprecated forms are still common in bootstraps")]
fn file_format(wire: Option<file_pb::file_access_log::AccessLogFormat>) -> Decoded<LogFormat> {
    use file_pb::file_access_log::AccessLogFormat as F;
    match wire {
        None => Ok(LogFormat::Text(ISTIO_LOG_FORMAT.into())),
        Some(F::Format(text)) => Ok(LogFormat::Text(text.into())),
        Some(F::JsonFormat(fields) | F::TypedJsonFormat(fields)) => json(&fields),
        Some(F::LogFormat(format)) => substitution(format),
    }
}

#[allow(deprecated, reason = "text_format is deprecated, and still what istiod sends")]
fn substitution(wire: core::SubstitutionFormatString) -> Decoded<LogFormat> {
    use core::{data_source::Specifier, substitution_format_string::Format as F};
    match wire.format {
        None => Ok(LogFormat::Text(ISTIO_LOG_FORMAT.into())),
        Some(F::TextFormat(text)) => Ok(LogFormat::Text(text.into())),
        Some(F::JsonFormat(fields)) => json(&fields),
        Some(F::TextFormatSource(source)) => match source.specifier {
            Some(Specifier::InlineString(text)) => Ok(LogFormat::Text(text.into())),
            _ => Err(Reject::new("only an inline string is supported").at("text_format_source")),
        },
    }
}

fn json(fields: &xds::google::protobuf::Struct) -> Decoded<LogFormat> {
    let mut all = Vec::new();
    for (name, value) in &fields.fields {
        let Some(Kind::StringValue(text)) = &value.kind else {
            return Err(Reject::new("only texts are supported").at(format!("json_format[{name:?}]")));
        };
        all.push((name.as_str().into(), text.as_str().into()));
    }
    all.sort();
    Ok(LogFormat::Json(all))
}
