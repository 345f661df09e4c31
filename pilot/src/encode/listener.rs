//! Listeners with their chains, HTTP managers, TCP proxies and logs.
//!
//! In: the model's listeners. Out: Envoy's. Kept true: what looks at the first bytes is listed in the order in which Envoy
//! must run it. Not here: routes (`route`), HTTP filters (`filter`).

use super::{ads, duration, fields, filter, number, rbac, route, socket, source, text, tls, truth};
use mesh_traffic::{
    Listener,
    listener::{
        AccessLog, ChainMatch, Codec, FilterChain, ForwardClientCert, HttpManager, LogFormat, RouteSource, TcpProxy,
        Terminal, Transport,
    },
    names::Direction,
    route::Target,
};
use xds::{
    envoy::{
        config::{accesslog::v3 as log_pb, core::v3 as core, listener::v3 as pb},
        extensions::{
            access_loggers::file::v3 as file_pb,
            filters::{
                listener::{
                    http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst, tls_inspector::v3::TlsInspector,
                },
                network::{http_connection_manager::v3 as hcm, rbac::v3 as rbac_pb, tcp_proxy::v3 as tcp_pb},
            },
        },
        r#type::v3::Percent,
    },
    google::protobuf::Any,
};

/// A listener.
#[allow(deprecated, reason = "the struct has deprecated fields, none of which is set")]
pub fn listener(from: &Listener) -> pb::Listener {
    let direction = match from.direction {
        Direction::Inbound => core::TrafficDirection::Inbound,
        Direction::Outbound => core::TrafficDirection::Outbound,
    };
    let mut inspectors = Vec::new();
    let mut inspector = |on: bool, name: &str, config: Any| {
        if on {
            inspectors.push(pb::ListenerFilter {
                name: name.to_owned(),
                config_type: Some(pb::listener_filter::ConfigType::TypedConfig(config)),
                ..Default::default()
            });
        }
    };
    inspector(
        from.inspect.original_dst,
        "envoy.filters.listener.original_dst",
        xds::pack(&OriginalDst::default()),
    );
    inspector(from.inspect.tls, "envoy.filters.listener.tls_inspector", xds::pack(&TlsInspector::default()));
    inspector(from.inspect.http, "envoy.filters.listener.http_inspector", xds::pack(&HttpInspector::default()));
    pb::Listener {
        name: from.name.to_string(),
        address: Some(socket(from.address)),
        additional_addresses: from
            .additional
            .iter()
            .map(|a| pb::AdditionalAddress { address: Some(socket(*a)), ..Default::default() })
            .collect(),
        filter_chains: from.chains.iter().map(|c| chain(c)).collect(),
        default_filter_chain: from.default_chain.as_ref().map(|c| chain(c)),
        use_original_dst: from.use_original_dst.then(|| truth(true)),
        bind_to_port: (!from.bind).then(|| truth(false)),
        listener_filters: inspectors,
        listener_filters_timeout: from.inspect.timeout.map(duration),
        continue_on_listener_filters_timeout: from.inspect.tls || from.inspect.http,
        traffic_direction: direction.into(),
        access_log: from.access_log.iter().map(no_chain_log).collect(),
        ..Default::default()
    }
}

#[allow(deprecated, reason = "the struct has deprecated fields, none of which is set")]
fn chain(from: &FilterChain) -> pb::FilterChain {
    let mut filters: Vec<pb::Filter> = from
        .rbac
        .iter()
        .map(|rules| {
            let wire = Some(rbac::rules(rules));
            let (rules, shadow_rules) = if rules.shadow { (None, wire) } else { (wire, None) };
            let wire = rbac_pb::Rbac { rules, shadow_rules, stat_prefix: "tcp.".to_owned(), ..Default::default() };
            network("envoy.filters.network.rbac", xds::pack(&wire))
        })
        .collect();
    filters.push(match &from.terminal {
        Terminal::Http(manager) => {
            network("envoy.filters.network.http_connection_manager", xds::pack(&http(manager)))
        }
        Terminal::Tcp(proxy) => network("envoy.filters.network.tcp_proxy", xds::pack(&tcp(proxy))),
    });
    pb::FilterChain {
        name: from.name.to_string(),
        filter_chain_match: (from.matcher != ChainMatch::default()).then(|| chain_match(&from.matcher)),
        filters,
        transport_socket: from.tls.as_ref().map(tls::downstream),
        metadata: source(from.source.as_ref()),
        ..Default::default()
    }
}

fn network(name: &str, config: Any) -> pb::Filter {
    pb::Filter { name: name.to_owned(), config_type: Some(pb::filter::ConfigType::TypedConfig(config)) }
}

fn chain_match(from: &ChainMatch) -> pb::FilterChainMatch {
    pb::FilterChainMatch {
        destination_port: from.port.map(|p| number(u32::from(p))),
        prefix_ranges: from.destinations.iter().map(rbac::cidr).collect(),
        server_names: from.server_names.iter().map(ToString::to_string).collect(),
        transport_protocol: match from.transport {
            None => "",
            Some(Transport::Tls) => "tls",
            Some(Transport::Raw) => "raw_buffer",
        }
        .to_owned(),
        application_protocols: from.protocols.iter().map(ToString::to_string).collect(),
        source_prefix_ranges: from.sources.iter().map(rbac::cidr).collect(),
        ..Default::default()
    }
}

fn tcp(from: &TcpProxy) -> tcp_pb::TcpProxy {
    use tcp_pb::tcp_proxy::{ClusterSpecifier as C, WeightedCluster, weighted_cluster::ClusterWeight};
    let cluster = match &from.target {
        Target::Cluster(name) => C::Cluster(name.to_string()),
        Target::Split(split) => C::WeightedClusters(WeightedCluster {
            clusters: split
                .arms()
                .iter()
                .map(|arm| ClusterWeight {
                    name: arm.cluster.to_string(),
                    weight: arm.weight,
                    ..Default::default()
                })
                .collect(),
        }),
    };
    tcp_pb::TcpProxy {
        stat_prefix: from.stat_prefix.to_string(),
        cluster_specifier: Some(cluster),
        idle_timeout: Some(duration(from.idle_timeout)),
        access_log: from.access_log.iter().map(log).collect(),
        ..Default::default()
    }
}

#[allow(deprecated, reason = "the struct has deprecated fields, none of which is set")]
fn http(from: &HttpManager) -> hcm::HttpConnectionManager {
    use hcm::http_connection_manager as manager;
    let (server_name, transformation) = match &from.server_name {
        Some(name) => (name.to_string(), manager::ServerHeaderTransformation::Overwrite),
        None => (String::new(), manager::ServerHeaderTransformation::PassThrough),
    };
    let shows = matches!(from.forward_client_cert, ForwardClientCert::AppendForward | ForwardClientCert::SanitizeSet);
    hcm::HttpConnectionManager {
        stat_prefix: from.stat_prefix.to_string(),
        codec_type: match from.codec {
            Codec::Auto => manager::CodecType::Auto,
            Codec::Http1 => manager::CodecType::Http1,
            Codec::Http2 => manager::CodecType::Http2,
        }
        .into(),
        route_specifier: Some(match &from.routes {
            RouteSource::Rds(name) => manager::RouteSpecifier::Rds(hcm::Rds {
                config_source: Some(ads()),
                route_config_name: name.to_string(),
            }),
            RouteSource::Inline(table) => manager::RouteSpecifier::RouteConfig(route::route_configuration(table)),
        }),
        http_filters: from.filters.iter().filter_map(filter::http_filter).collect(),
        server_name,
        server_header_transformation: transformation.into(),
        forward_client_cert_details: match from.forward_client_cert {
            ForwardClientCert::Sanitize => manager::ForwardClientCertDetails::Sanitize,
            ForwardClientCert::ForwardOnly => manager::ForwardClientCertDetails::ForwardOnly,
            ForwardClientCert::AppendForward => manager::ForwardClientCertDetails::AppendForward,
            ForwardClientCert::SanitizeSet => manager::ForwardClientCertDetails::SanitizeSet,
            ForwardClientCert::AlwaysForwardOnly => manager::ForwardClientCertDetails::AlwaysForwardOnly,
        }
        .into(),
        set_current_client_cert_details: shows.then(|| manager::SetCurrentClientCertDetails {
            subject: Some(truth(true)),
            dns: true,
            uri: true,
            ..Default::default()
        }),
        use_remote_address: Some(truth(from.use_remote_address)),
        xff_num_trusted_hops: from.xff_trusted_hops,
        skip_xff_append: from.skip_xff_append,
        upgrade_configs: from
            .upgrades
            .iter()
            .map(|u| manager::UpgradeConfig { upgrade_type: u.to_string(), ..Default::default() })
            .collect(),
        tracing: from.tracing.map(|t| manager::Tracing {
            client_sampling: Some(Percent { value: 100.0 }),
            random_sampling: Some(Percent { value: f64::from(t.per_million) / 10_000.0 }),
            overall_sampling: Some(Percent { value: 100.0 }),
            ..Default::default()
        }),
        access_log: from.access_log.iter().map(log).collect(),
        stream_idle_timeout: Some(duration(from.stream_idle_timeout)),
        request_timeout: (!from.request_timeout.is_zero()).then(|| duration(from.request_timeout)),
        request_headers_timeout: (!from.headers_timeout.is_zero()).then(|| duration(from.headers_timeout)),
        common_http_protocol_options: (from.idle_timeout != HttpManager::default().idle_timeout).then(|| {
            core::HttpProtocolOptions { idle_timeout: Some(duration(from.idle_timeout)), ..Default::default() }
        }),
        max_request_headers_kb: (from.max_head_kib != 60).then(|| number(from.max_head_kib)),
        normalize_path: Some(truth(from.normalize_path)),
        merge_slashes: from.merge_slashes,
        ..Default::default()
    }
}

fn log(from: &AccessLog) -> log_pb::AccessLog {
    use core::substitution_format_string::Format;
    use file_pb::file_access_log::AccessLogFormat;
    let format = match &from.format {
        LogFormat::Text(line) => {
            let inline = core::data_source::Specifier::InlineString(line.to_string());
            Format::TextFormatSource(core::DataSource { specifier: Some(inline), ..Default::default() })
        }
        LogFormat::Json(all) => Format::JsonFormat(fields(all.iter().map(|(k, v)| (&**k, text(v))))),
    };
    let format = core::SubstitutionFormatString { format: Some(format), ..Default::default() };
    let wire = file_pb::FileAccessLog {
        path: from.path.to_string(),
        access_log_format: Some(AccessLogFormat::LogFormat(format)),
    };
    log_pb::AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        config_type: Some(log_pb::access_log::ConfigType::TypedConfig(xds::pack(&wire))),
        filter: None,
    }
}

/// A listener's own log: only connections that no chain took, since each chain logs its own.
fn no_chain_log(from: &AccessLog) -> log_pb::AccessLog {
    use log_pb::access_log_filter::FilterSpecifier;
    let flags = log_pb::ResponseFlagFilter { flags: vec!["NR".to_owned()] };
    log_pb::AccessLog {
        filter: Some(log_pb::AccessLogFilter {
            filter_specifier: Some(FilterSpecifier::ResponseFlagFilter(flags)),
        }),
        ..log(from)
    }
}
