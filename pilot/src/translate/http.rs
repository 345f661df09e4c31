//! HTTP listeners' settings that do not depend on the port: filters, headers, logs, tracing.
//!
//! In: mesh config. Out: [`HttpManager`]s for outbound, inbound and gateway listeners, and access logs.
//! Kept true: Istio's defaults, e.g. what `server` and `x-forwarded-client-cert` become on which side.
//! Not here: routes (`virtual_host`), chains (`outbound`, `inbound`, `gateway`).

use super::Translator;
use mesh_config::kinds::{AccessLogEncoding, NormalizationType};
use mesh_traffic::{
    filter::{Fault, FilterConfig, HttpFilter},
    listener::{
        AccessLog, ForwardClientCert, HttpManager, ISTIO_LOG_FORMAT, LogFormat, RouteSource, Tracing,
    },
    names::{Direction, Name},
};
use std::time::Duration;

/// Fields of Istio's JSON access log: name and command.
const JSON_LOG: &[(&str, &str)] = &[
    ("start_time", "%START_TIME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("route_name", "%ROUTE_NAME%"),
];

/// A filter by its well-known name.
pub fn filter(name: &str, config: FilterConfig) -> HttpFilter {
    HttpFilter { name: name.into(), config }
}

impl Translator {
    /// Where requests and connections are logged, as mesh config says.
    pub fn access_log(&self) -> Vec<AccessLog> {
        let mesh = self.model.mesh();
        if mesh.access_log_file.is_empty() {
            return Vec::new();
        }
        let format = match mesh.access_log_encoding {
            AccessLogEncoding::Text if mesh.access_log_format.is_empty() => {
                LogFormat::Text(ISTIO_LOG_FORMAT.into())
            }
            AccessLogEncoding::Text => LogFormat::Text(mesh.access_log_format.as_str().into()),
            AccessLogEncoding::Json => LogFormat::Json(json_fields(&mesh.access_log_format)),
        };
        vec![AccessLog { path: mesh.access_log_file.as_str().into(), format }]
    }

    /// The cluster that Istio's bootstrap has for an access log service, when mesh config asks for one.
    pub fn log_service(&self) -> Option<Name> {
        self.model.mesh().enable_envoy_access_log_service.then(|| "envoy_accesslog_service".into())
    }

    fn manager(&self, stat_prefix: Name, routes: RouteSource, direction: Direction) -> HttpManager {
        let mesh = self.model.mesh();
        let normalization = mesh.path_normalization.map(|p| p.normalization).unwrap_or_default();
        let tracing = mesh
            .enable_tracing
            .then(|| Tracing { per_million: super::route::per_million(mesh.default_config.sampling()) });
        HttpManager {
            stat_prefix,
            routes,
            upgrades: vec!["websocket".into()],
            tracing,
            access_log: self.access_log(),
            log_service: self.log_service(),
            // Streams may be silent as long as their applications like, as in Istio.
            stream_idle_timeout: Duration::ZERO,
            normalize_path: normalization != NormalizationType::None,
            merge_slashes: matches!(
                normalization,
                NormalizationType::MergeSlashes | NormalizationType::DecodeAndMergeSlashes
            ),
            direction,
            ..HttpManager::default()
        }
    }

    /// For requests that leave the workload.
    pub fn outbound_manager(&self, stat_prefix: impl Into<Name>, routes: RouteSource) -> HttpManager {
        HttpManager {
            filters: vec![
                filter("envoy.filters.http.fault", FilterConfig::Fault(Fault::default())),
                filter("envoy.filters.http.cors", FilterConfig::Cors),
                filter("envoy.filters.http.router", FilterConfig::Router),
            ],
            server_name: Some("envoy".into()),
            ..self.manager(stat_prefix.into(), routes, Direction::Outbound)
        }
    }

    /// For requests that come to the workload; `before` are the filters that may refuse them.
    pub fn inbound_manager(
        &self,
        stat_prefix: impl Into<Name>,
        routes: RouteSource,
        before: Vec<HttpFilter>,
    ) -> HttpManager {
        let mut filters = before;
        filters.push(filter("envoy.filters.http.router", FilterConfig::Router));
        HttpManager {
            filters,
            server_name: Some("istio-envoy".into()),
            forward_client_cert: ForwardClientCert::AppendForward,
            ..self.manager(stat_prefix.into(), routes, Direction::Inbound)
        }
    }

    /// For requests from outside the mesh.
    pub fn gateway_manager(
        &self,
        stat_prefix: impl Into<Name>,
        routes: RouteSource,
        before: Vec<HttpFilter>,
    ) -> HttpManager {
        let hops =
            self.model.mesh().default_config.gateway_topology.as_ref().map_or(0, |t| t.num_trusted_proxies);
        let base = self.outbound_manager(stat_prefix, routes);
        HttpManager {
            filters: before.into_iter().chain(base.filters.clone()).collect(),
            server_name: Some("istio-envoy".into()),
            forward_client_cert: ForwardClientCert::SanitizeSet,
            use_remote_address: true,
            xff_trusted_hops: hops,
            ..base
        }
    }
}

fn json_fields(written: &str) -> Vec<(Name, Name)> {
    let parsed = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(written);
    match parsed {
        Ok(map) if !map.is_empty() => map
            .iter()
            .map(|(k, v)| (k.as_str().into(), v.as_str().map_or_else(|| v.to_string().into(), Name::from)))
            .collect(),
        _ => JSON_LOG.iter().map(|(k, v)| (Name::from(*k), Name::from(*v))).collect(),
    }
}
