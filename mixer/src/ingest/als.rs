//! Envoy's access log service, v3: what unmodified Envoys report.
//!
//! In: `StreamAccessLogs`. Out: bags, as Istio's proxies would have reported them.
//! Kept true: an entry is reported once, whole. Envoy itself drops entries beyond its buffer (`buffer_size_bytes`,
//! 16 KiB unless raised) and tells nobody here. Not here: what bags lead to (`dispatch`).

use std::{net::IpAddr, sync::Arc};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{Address, RequestMethod, address, socket_address},
        data::accesslog::v3::{
            AccessLogCommon, AccessLogType, HttpAccessLogEntry, ResponseFlags, TcpAccessLogEntry,
            tls_properties::{CertificateProperties, certificate_properties::subject_alt_name::San},
        },
        service::accesslog::v3::{
            StreamAccessLogsMessage, StreamAccessLogsResponse,
            access_log_service_server::AccessLogService,
            stream_access_logs_message::{Identifier, LogEntries},
        },
    },
    google::protobuf::Duration,
};
use tonic::{Request, Response, Status, Streaming};

use super::{node_uid, principal, query_params, speaks_for};
use crate::{
    attributes::{Bag, Builtin, StringMap, Text, Timestamp, Value},
    config::Generation,
    core::Mixer,
    dispatch::Feed,
};

/// The gRPC service.
#[derive(Clone, Debug)]
pub struct AlsService(pub Arc<Mixer>);

#[tonic::async_trait]
impl AccessLogService for AlsService {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let extensions = request.extensions().clone();
        let mut messages = request.into_inner();
        let mut identifier = Identifier::default();
        while let Some(message) =
            self.0.stop.run_until_cancelled(messages.message()).await.transpose()?.flatten()
        {
            let generation = self.0.generation();
            if let Some(first) = message.identifier {
                let node = first.node.as_ref().map_or("", |node| node.id.as_str());
                if let Some(uid) = node_uid(node) {
                    speaks_for(&extensions, &uid, &generation.workloads)?;
                }
                identifier = first;
            }
            match message.log_entries {
                Some(LogEntries::HttpLogs(entries)) => {
                    for entry in &entries.log_entry {
                        self.0.report(&generation, http(entry, &identifier, &generation), Feed::All);
                    }
                }
                Some(LogEntries::TcpLogs(entries)) => {
                    for entry in &entries.log_entry {
                        self.0.report(&generation, tcp(entry, &identifier, &generation), Feed::All);
                    }
                }
                None => {}
            }
        }
        Ok(Response::new(StreamAccessLogsResponse {}))
    }
}

fn socket(address: Option<&Address>) -> Option<(IpAddr, i64)> {
    let Some(address::Address::SocketAddress(socket)) = address?.address.as_ref() else { return None };
    let port = match socket.port_specifier {
        Some(socket_address::PortSpecifier::PortValue(port)) => i64::from(port),
        _ => 0,
    };
    Some((socket.address.parse().ok()?, port))
}

fn nanos(duration: Option<&Duration>) -> Option<i64> {
    let duration = duration?;
    duration.seconds.checked_mul(1_000_000_000)?.checked_add(i64::from(duration.nanos))
}

fn spiffe(certificate: Option<&CertificateProperties>) -> Option<&str> {
    certificate?.subject_alt_name.iter().find_map(|name| match &name.san {
        Some(San::Uri(uri)) => Some(principal(uri)),
        _ => None,
    })
}

/// Envoy's short names, joined by commas; `-` for none.
#[must_use]
pub fn flags(flags: Option<&ResponseFlags>) -> String {
    let Some(f) = flags else { return "-".to_owned() };
    let names: Vec<&str> = [
        (f.failed_local_healthcheck, "LH"),
        (f.no_healthy_upstream, "UH"),
        (f.upstream_request_timeout, "UT"),
        (f.local_reset, "LR"),
        (f.upstream_remote_reset, "UR"),
        (f.upstream_connection_failure, "UF"),
        (f.upstream_connection_termination, "UC"),
        (f.upstream_overflow, "UO"),
        (f.no_route_found, "NR"),
        (f.delay_injected, "DI"),
        (f.fault_injected, "FI"),
        (f.rate_limited, "RL"),
        (f.unauthorized_details.is_some(), "UAEX"),
        (f.rate_limit_service_error, "RLSE"),
        (f.downstream_connection_termination, "DC"),
        (f.upstream_retry_limit_exceeded, "URX"),
        (f.stream_idle_timeout, "SI"),
        (f.invalid_envoy_request_headers, "IH"),
        (f.downstream_protocol_error, "DPE"),
        (f.upstream_max_stream_duration_reached, "UMSDR"),
        (f.response_from_cache_filter, "RFCF"),
        (f.no_filter_config_found, "NFCF"),
        (f.duration_timeout, "DT"),
        (f.upstream_protocol_error, "UPE"),
        (f.no_cluster_found, "NC"),
        (f.overload_manager, "OM"),
        (f.dns_resolution_failure, "DF"),
        (f.downstream_remote_reset, "DR"),
    ]
    .into_iter()
    .filter_map(|(set, name)| set.then_some(name))
    .collect();
    if names.is_empty() { "-".to_owned() } else { names.join(",") }
}

fn common(common: &AccessLogCommon, identifier: &Identifier, generation: &Generation) -> Bag {
    let mut bag = Bag::new(&generation.vocabulary);
    let cluster = common.upstream_cluster.as_str();
    let says = |text: &str| text.contains("outbound") || text.contains("inbound");
    let direction = common.custom_tags.get("direction").map(String::as_str).filter(|tag| says(tag));
    let direction =
        direction.or(Some(identifier.log_name.as_str()).filter(|name| says(name))).unwrap_or(cluster);
    let inbound = direction.contains("inbound");
    bag.set_text(Builtin::ContextReporterKind, if inbound { "inbound" } else { "outbound" });
    let node = identifier.node.as_ref().map_or("", |node| node.id.as_str());
    if let Some(uid) = node_uid(node) {
        bag.set_text(if inbound { Builtin::DestinationUid } else { Builtin::SourceUid }, uid.clone());
        bag.set_text(Builtin::ContextReporterUid, uid);
    }
    let source = socket(common.downstream_direct_remote_address.as_ref())
        .or_else(|| socket(common.downstream_remote_address.as_ref()));
    if let Some((ip, port)) = source {
        bag.set(Builtin::SourceIp, Value::ip(ip));
        bag.set(Builtin::SourcePort, Value::Int64(port));
    }
    if let Some((ip, _)) = socket(common.downstream_remote_address.as_ref()) {
        bag.set(Builtin::OriginIp, Value::ip(ip));
    }
    let server = if inbound { &common.downstream_local_address } else { &common.upstream_remote_address };
    if let Some((ip, port)) = socket(server.as_ref()) {
        bag.set(Builtin::DestinationIp, Value::ip(ip));
        bag.set(Builtin::DestinationPort, Value::Int64(port));
    }
    // `outbound|port|subset|host`; inbound clusters carry no host today.
    let host = cluster.rsplit('|').next().filter(|host| cluster.contains('|') && !host.is_empty());
    if let Some(host) = host {
        bag.set_text(Builtin::DestinationServiceHost, host);
        let mut parts = host.split('.');
        if let (Some(name), Some(namespace), Some("svc")) = (parts.next(), parts.next(), parts.next()) {
            bag.set_text(Builtin::DestinationServiceName, name);
            bag.set_text(Builtin::DestinationServiceNamespace, namespace);
            bag.set_text(Builtin::DestinationServiceUid, format!("istio://{namespace}/services/{name}"));
        } else {
            bag.set_text(Builtin::DestinationServiceName, host);
        }
    }
    if let Some(tls) = &common.tls_properties {
        let peer = spiffe(tls.peer_certificate_properties.as_ref());
        let local = spiffe(tls.local_certificate_properties.as_ref());
        if inbound {
            bag.set_text(Builtin::SourcePrincipal, peer.unwrap_or_default());
            bag.set_text(Builtin::SourceUser, peer.unwrap_or_default());
            bag.set_text(Builtin::DestinationPrincipal, local.unwrap_or_default());
            bag.set(Builtin::ConnectionMtls, Value::Bool(peer.is_some()));
        }
        bag.set_text(Builtin::ConnectionRequestedServerName, tls.tls_sni_hostname.as_str());
    } else if inbound {
        bag.set(Builtin::ConnectionMtls, Value::Bool(false));
    }
    bag.set_text(Builtin::ContextProxyErrorCode, flags(common.response_flags.as_ref()));
    bag.set_text(Builtin::RouteName, common.route_name.as_str());
    bag
}

fn times(common: &AccessLogCommon) -> (Timestamp, i64, Timestamp) {
    let start = common
        .start_time
        .as_ref()
        .and_then(|time| time.seconds.checked_mul(1_000_000_000)?.checked_add(i64::from(time.nanos)));
    let start = start.map_or_else(Timestamp::now, Timestamp);
    let duration = nanos(common.duration.as_ref())
        .or_else(|| nanos(common.time_to_last_downstream_tx_byte.as_ref()))
        .unwrap_or(0);
    (start, duration, Timestamp(start.0.saturating_add(duration)))
}

fn http(entry: &HttpAccessLogEntry, identifier: &Identifier, generation: &Generation) -> Bag {
    let properties = entry.common_properties.clone().unwrap_or_default();
    let mut bag = common(&properties, identifier, generation);
    let request = entry.request.clone().unwrap_or_default();
    let response = entry.response.clone().unwrap_or_default();
    let (start, duration, end) = times(&properties);
    let int = |value: u64| Value::Int64(i64::try_from(value).unwrap_or(i64::MAX));
    let grpc = response
        .response_trailers
        .get("grpc-status")
        .or_else(|| response.response_headers.get("grpc-status"));
    let is_grpc = grpc.is_some()
        || request
            .request_headers
            .get("content-type")
            .is_some_and(|kind| kind.starts_with("application/grpc"));
    bag.set_text(Builtin::ContextProtocol, if is_grpc { "grpc" } else { "http" });
    if let Some(status) = grpc {
        bag.set_text(Builtin::ResponseGrpcStatus, status.as_str());
    }
    for (attribute, time) in [
        (Builtin::RequestTime, start),
        (Builtin::ResponseTime, end),
        (Builtin::ContextTime, end),
        (Builtin::ContextTimestamp, end),
    ] {
        bag.set(attribute, Value::Timestamp(time));
    }
    bag.set(Builtin::ResponseDuration, Value::Duration(duration));
    let code = response.response_code.as_ref().map_or(0, |code| i64::from(code.value));
    bag.set(Builtin::ResponseCode, Value::Int64(code));
    bag.set(Builtin::RequestSize, int(request.request_body_bytes));
    bag.set(Builtin::ResponseSize, int(response.response_body_bytes));
    bag.set(
        Builtin::RequestTotalSize,
        int(request.request_body_bytes.saturating_add(request.request_headers_bytes)),
    );
    bag.set(
        Builtin::ResponseTotalSize,
        int(response.response_body_bytes.saturating_add(response.response_headers_bytes)),
    );
    let method = match request.request_method() {
        RequestMethod::MethodUnspecified => "",
        other => other.as_str_name(),
    };
    let path = if request.original_path.is_empty() { &request.path } else { &request.original_path };
    let url_path = path.split('?').next().unwrap_or_default();
    for (attribute, text) in [
        (Builtin::RequestMethod, method),
        (Builtin::RequestScheme, &request.scheme),
        (Builtin::RequestHost, &request.authority),
        (Builtin::RequestPath, path),
        (Builtin::RequestUrlPath, url_path),
        (Builtin::RequestUseragent, &request.user_agent),
        (Builtin::RequestId, &request.request_id),
        (Builtin::RequestReferer, &request.referer),
        (Builtin::ResponseCodeDetails, &response.response_code_details),
    ] {
        bag.set_text(attribute, text);
    }
    if let Some((_, query)) = path.split_once('?') {
        bag.set(Builtin::RequestQueryParams, Value::StringMap(query_params(query)));
    }
    let own = [
        (":method", method),
        (":path", path),
        (":authority", &request.authority),
        ("user-agent", &request.user_agent),
        ("x-request-id", &request.request_id),
        ("x-forwarded-for", &request.forwarded_for),
        ("referer", &request.referer),
    ];
    let own = own
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (Text::from(name), Text::from(value)));
    let logged = request
        .request_headers
        .iter()
        .map(|(name, value)| (Text::from(name.as_str()), Text::from(value.as_str())));
    bag.set(Builtin::RequestHeaders, Value::StringMap(own.chain(logged).collect()));
    let headers: StringMap =
        response.response_headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    bag.set(Builtin::ResponseHeaders, Value::StringMap(headers));
    bag
}

fn tcp(entry: &TcpAccessLogEntry, identifier: &Identifier, generation: &Generation) -> Bag {
    let properties = entry.common_properties.clone().unwrap_or_default();
    let mut bag = common(&properties, identifier, generation);
    let (_, duration, end) = times(&properties);
    bag.set_text(Builtin::ContextProtocol, "tcp");
    bag.set(Builtin::ContextTime, Value::Timestamp(end));
    bag.set(Builtin::ContextTimestamp, Value::Timestamp(end));
    bag.set(Builtin::ConnectionDuration, Value::Duration(duration));
    bag.set_text(Builtin::ConnectionId, properties.stream_id.as_str());
    let event = match properties.access_log_type() {
        AccessLogType::TcpConnectionStart | AccessLogType::TcpUpstreamConnected => "open",
        AccessLogType::TcpPeriodic => "continue",
        _ => "close",
    };
    bag.set_text(Builtin::ConnectionEvent, event);
    let bytes = entry.connection_properties.unwrap_or_default();
    let int = |value: u64| Value::Int64(i64::try_from(value).unwrap_or(i64::MAX));
    bag.set(Builtin::ConnectionReceivedBytesTotal, int(bytes.received_bytes));
    bag.set(Builtin::ConnectionSentBytesTotal, int(bytes.sent_bytes));
    // Envoy's numbers are totals; adding them up once, at the end, counts every byte once.
    let once = |value: u64| int(if event == "close" { value } else { 0 });
    bag.set(Builtin::ConnectionReceivedBytes, once(bytes.received_bytes));
    bag.set(Builtin::ConnectionSentBytes, once(bytes.sent_bytes));
    bag
}
