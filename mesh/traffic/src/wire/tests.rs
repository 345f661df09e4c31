//! What is accepted and what is refused, written as proto3 JSON: the form in which people see xDS.

use std::time::Duration;

use prost::Message;
use serde_json::{Value, json};
use xds::{envoy, type_url};

use super::*;
use crate::{
    cluster::{Discovery, Protocol},
    filter::FilterConfig,
    listener::Terminal,
    route::{Action, PathMatch, Target},
};

fn message<M: Message + Default>(url: &str, json: &Value) -> M {
    let bytes = xds::reflect::from_json(url, json).expect("valid JSON of the message");
    M::decode(&*bytes).expect("what was encoded")
}

fn cluster_of(json: &Value) -> Decoded<crate::Cluster> {
    cluster(message::<envoy::config::cluster::v3::Cluster>(type_url::CLUSTER, json))
}

fn listener_of(json: &Value) -> Decoded<crate::Listener> {
    listener(message::<envoy::config::listener::v3::Listener>(type_url::LISTENER, json))
}

fn routes_of(json: &Value) -> Decoded<crate::RouteConfiguration> {
    route_configuration(message(type_url::ROUTE, json))
}

const HCM: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// A listener with one HTTP chain that has `filters` before the router.
fn http_listener(filters: &[Value]) -> Value {
    let router = json!({"name": "envoy.filters.http.router", "typed_config":
        {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}});
    let filters: Vec<_> = filters.iter().cloned().chain([router]).collect();
    json!({
        "name": "0.0.0.0_8080",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": 8080}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": {
            "@type": HCM, "stat_prefix": "outbound", "rds": {"route_config_name": "8080"}, "http_filters": filters,
            "tracing": {"random_sampling": {"value": 1.0}},
        }}]}],
    })
}

#[test]
fn a_cluster_of_istios_shape_is_understood() {
    let cluster = cluster_of(&json!({
        "name": "outbound|8080|v1|a.default.svc.cluster.local",
        "type": "EDS",
        "eds_cluster_config": {"eds_config": {"ads": {}}, "service_name": "outbound|8080|v1|a.default.svc.cluster.local"},
        "connect_timeout": "10s",
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [{"max_connections": 1, "max_pending_requests": 1,
            "max_requests": 4_294_967_295_u32, "max_retries": 4_294_967_295_u32}]},
        "outlier_detection": {"consecutive_gateway_failure": 2, "enforcing_consecutive_gateway_failure": 100,
            "enforcing_consecutive_5xx": 0, "interval": "30s", "base_ejection_time": "180s", "max_ejection_percent": 100},
        "common_lb_config": {"healthy_panic_threshold": {}},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "common_http_protocol_options": {"max_requests_per_connection": 1},
            "explicit_http_config": {"http2_protocol_options": {}}}},
        "metadata": {"filter_metadata": {"istio": {"services": [
            {"host": "a.default.svc.cluster.local", "name": "a", "namespace": "default"}]}}},
        "transport_socket_matches": [{"name": "tlsMode-disabled", "match": {},
            "transport_socket": {"name": "envoy.transport_sockets.raw_buffer", "typed_config":
                {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"}}}],
    }))
    .expect("accepted");
    assert!(matches!(cluster.discovery, Discovery::Eds { .. }));
    let limits = cluster.limits;
    assert_eq!(
        (limits.connections, limits.pending, limits.requests, limits.retries),
        (Some(1), Some(1), None, None)
    );
    let outlier = cluster.outlier.expect("outlier detection");
    assert_eq!((outlier.consecutive_5xx, outlier.consecutive_gateway), (None, Some(2)));
    assert_eq!((outlier.base_ejection, outlier.max_percent), (Duration::from_secs(180), 100));
    assert_eq!((cluster.panic_percent, cluster.max_requests_per_connection), (0, 1));
    assert_eq!(cluster.protocol, Protocol::Http2);
    assert_eq!(cluster.service.map(|s| s.name.to_string()).as_deref(), Some("a"));
}

#[test]
fn a_route_of_istios_shape_is_understood() {
    let routes = routes_of(&json!({
        "name": "8080",
        "virtual_hosts": [{"name": "a:8080", "domains": ["a", "a:8080"], "routes": [{
            "name": "default",
            "match": {"prefix": "/", "headers": [{"name": "UserRole", "string_match": {"safe_regex": {"regex": ".*Admin.*"}}}]},
            "route": {
                "weighted_clusters": {"clusters": [{"name": "v1", "weight": 80}, {"name": "v2", "weight": 20}]},
                "timeout": "0s", "max_grpc_timeout": "0s",
                "retry_policy": {"retry_on": "connect-failure,refused-stream,unavailable,cancelled", "num_retries": 2,
                    "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config":
                        {"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}],
                    "host_selection_retry_max_attempts": "5"},
            },
            "metadata": {"filter_metadata": {"istio": {"config":
                "/apis/networking.istio.io/v1/namespaces/default/virtual-service/reviews"}}},
            "typed_per_filter_config": {"envoy.filters.http.fault": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
                "abort": {"http_status": 500, "percentage": {"numerator": 1_000_000, "denominator": "MILLION"}}}},
        }]}],
    }))
    .expect("accepted");
    let route = &routes.virtual_hosts[0].routes[0];
    let Action::Forward(forward) = &route.action else { panic!("a forwarding route") };
    assert_eq!(forward.timeout, None, "0s is no limit");
    let retry = forward.retry.as_ref().expect("a policy");
    assert_eq!((retry.attempts, retry.avoid_previous, retry.max_picks), (2, true, 5));
    assert!(matches!(&forward.target, Target::Split(split) if split.arms().len() == 2));
    assert_eq!(&*route.matcher.headers[0].name, "userrole");
    assert_eq!(route.source.as_ref().map(|s| &*s.name), Some("reviews"));
    let fault = route.filters.fault.as_ref().and_then(|f| f.abort).expect("an abort");
    assert_eq!(fault.per_million, 1_000_000);
}

#[test]
fn a_listener_with_http_is_understood() {
    let listener = listener_of(&http_listener(&[])).expect("accepted");
    let Terminal::Http(manager) = &listener.chains[0].terminal else { panic!("HTTP") };
    assert_eq!(manager.tracing.map(|t| t.per_million), Some(10_000));
    assert_eq!(manager.filters.last().map(|f| &f.config), Some(&FilterConfig::Router));
}

#[test]
fn what_cannot_be_honoured_refuses_the_resource_and_names_the_path() {
    let lua = json!({"name": "envoy.filters.http.lua", "typed_config":
        {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy"}});
    let cases: Vec<(Decoded<()>, &str)> = vec![
        (
            listener_of(&http_listener(&[lua])).map(drop),
            "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config: filter type \
             \"envoy.extensions.filters.http.cors.v3.CorsPolicy\" is not supported",
        ),
        (
            routes_of(&json!({"virtual_hosts": [{"name": "a", "domains": ["a"], "routes": [{
                "match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": [{"name": "v1", "weight": 0}]}}}]}]}))
            .map(drop),
            "virtual_hosts[0].routes[0].route.weighted_clusters.clusters: weights sum to zero",
        ),
        (
            routes_of(&json!({"virtual_hosts": [{"name": "a", "domains": ["a"], "routes": [{
                "match": {"safe_regex": {"regex": "("}}, "route": {"cluster": "c"}}]}]}))
            .map_err(|e| Reject { why: e.why.chars().take(18).collect(), ..e })
            .map(drop),
            "virtual_hosts[0].routes[0].match.safe_regex.regex: not a usable regex",
        ),
        (
            cluster_of(&json!({"name": "c", "health_checks": [{"timeout": "1s"}]})).map(drop),
            "health_checks: this proxy does not honour this field",
        ),
        (
            cluster_of(&json!({"name": "c", "connect_timeout": "-1s"})).map(drop),
            "connect_timeout: a duration may not be negative",
        ),
    ];
    for (result, want) in cases {
        let text = result.expect_err("refused").to_string();
        assert_eq!(text.trim_end(), want);
    }
}

#[test]
fn an_unknown_optional_filter_is_passed_over() {
    let filter = json!({"name": "my.filter", "is_optional": true, "typed_config":
        {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy"}});
    let listener = listener_of(&http_listener(&[filter])).expect("accepted");
    let Terminal::Http(manager) = &listener.chains[0].terminal else { panic!("HTTP") };
    assert!(matches!(manager.filters[0].config, FilterConfig::Ignored { .. }));
}

#[test]
fn a_security_message_with_an_unknown_tag_is_refused() {
    use envoy::extensions::filters::http::rbac::v3::Rbac;
    let rbac = json!({"rules": {"action": "ALLOW", "policies": {"p": {
        "permissions": [{"any": true}], "principals": [{"any": true}]}}}});
    let url = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
    let mut bytes = xds::reflect::from_json(url, &rbac).expect("valid");
    let any = |value: &[u8]| Any { type_url: url.to_owned(), value: value.to_vec() };
    assert!(strict::<Rbac>(&any(&bytes)).is_ok());
    bytes.extend([0x98, 0x06, 0x01]);
    let refused = strict::<Rbac>(&any(&bytes)).expect_err("refused");
    assert_eq!(refused.path, "#99");
}

#[test]
fn paths_are_read_in_each_form() {
    for (json, want) in [
        (json!({"prefix": "/a"}), PathMatch::Prefix("/a".into())),
        (json!({"path": "/a"}), PathMatch::Exact("/a".into())),
        (json!({"path_separated_prefix": "/a"}), PathMatch::Segments("/a".into())),
        (json!({"connect_matcher": {}}), PathMatch::Connect),
    ] {
        let routes = json!({"virtual_hosts": [{"name": "a", "domains": ["a"], "routes": [
            {"match": json, "route": {"cluster": "c"}}]}]});
        let routes = routes_of(&routes).expect("accepted");
        assert_eq!(routes.virtual_hosts[0].routes[0].matcher.path, want);
    }
}

/// `base` with the members of `patch`, at the place that `path` names.
fn patched(mut base: Value, path: &[&str], patch: &Value) -> Value {
    let mut at = &mut base;
    for step in path {
        at = match step.parse::<usize>() {
            Ok(index) => &mut at[index],
            Err(_) => &mut at[*step],
        };
    }
    let Some(members) = patch.as_object() else { panic!("a patch is an object") };
    for (key, value) in members {
        at[key] = value.clone();
    }
    base
}

#[test]
fn every_field_that_would_change_what_is_done_is_refused_with_its_path() {
    let route = || {
        json!({"name": "r", "virtual_hosts": [{"name": "a", "domains": ["a"], "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": "c", "retry_policy": {}}}]}]})
    };
    let host = ["virtual_hosts", "0"];
    let one = ["virtual_hosts", "0", "routes", "0"];
    let action = ["virtual_hosts", "0", "routes", "0", "route"];
    let retry = ["virtual_hosts", "0", "routes", "0", "route", "retry_policy"];
    for (path, patch, want) in [
        (
            &[][..],
            json!({"ignore_path_parameters_in_path_matching": true}),
            "ignore_path_parameters_in_path_matching",
        ),
        (&[], json!({"internal_only_headers": ["x"]}), "internal_only_headers"),
        (&host, json!({"require_tls": "EXTERNAL_ONLY"}), "virtual_hosts[0].require_tls"),
        (&host, json!({"domains": []}), "virtual_hosts[0].domains"),
        (
            &host,
            json!({"rate_limits": [{"actions": [{"remote_address": {}}]}]}),
            "virtual_hosts[0].rate_limits",
        ),
        (&one, json!({"tracing": {}}), "virtual_hosts[0].routes[0].tracing"),
        (&action, json!({"priority": "HIGH"}), "virtual_hosts[0].routes[0].route.priority"),
        (
            &action,
            json!({"max_stream_duration": {"max_stream_duration": "1s"}}),
            "virtual_hosts[0].routes[0].route.max_stream_duration.max_stream_duration",
        ),
        (
            &action,
            json!({"auto_host_rewrite": true}),
            "virtual_hosts[0].routes[0].route.host_rewrite_specifier",
        ),
        (
            &action,
            json!({"request_mirror_policies": [{"cluster": "m", "cluster_header": "x"}]}),
            "virtual_hosts[0].routes[0].route.request_mirror_policies[0].cluster_header",
        ),
        (
            &retry,
            json!({"retry_on": "5xx,sometimes"}),
            "virtual_hosts[0].routes[0].route.retry_policy.retry_on",
        ),
        (
            &retry,
            json!({"per_try_idle_timeout": "1s"}),
            "virtual_hosts[0].routes[0].route.retry_policy.per_try_idle_timeout",
        ),
    ] {
        let refused = routes_of(&patched(route(), path, &patch)).expect_err("refused");
        assert_eq!(refused.path, want, "{patch}");
    }
    assert!(
        routes_of(&patched(route(), &action, &json!({"max_stream_duration": {"max_stream_duration": "0s"}})))
            .is_ok()
    );
}

#[test]
fn clusters_and_listeners_refuse_what_they_would_not_honour() {
    let base = || json!({"name": "c", "type": "STATIC"});
    for (patch, want) in [
        (
            json!({"type": "LOGICAL_DNS", "load_assignment": {"cluster_name": "c", "policy": {"drop_overloads": [{"category": "x"}]}}}),
            "load_assignment.policy.drop_overloads",
        ),
        (json!({"filters": [{"name": "other"}]}), "filters[0]"),
        (
            json!({"upstream_http_protocol_options": {"auto_san_validation": true}}),
            "upstream_http_protocol_options.auto_san_validation",
        ),
        (
            json!({"lb_policy": "RING_HASH", "ring_hash_lb_config": {"hash_function": "MURMUR_HASH_2"}}),
            "ring_hash_lb_config.hash_function",
        ),
        (
            json!({"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": "8388609"}}),
            "ring_hash_lb_config.minimum_ring_size",
        ),
        (
            json!({"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": "5000012"}}),
            "maglev_lb_config.table_size",
        ),
        (json!({"connect_timeout": "315576000000s"}), "connect_timeout"),
        (json!({"circuit_breakers": {"per_host_thresholds": [{}]}}), "per_host_thresholds"),
        (json!({"transport_socket": {"name": "x"}}), "transport_socket.typed_config"),
    ] {
        let refused = cluster_of(&patched(base(), &[], &patch)).expect_err("refused");
        assert_eq!(refused.path, want, "{patch}");
    }
    let istios = json!({"filters": [{"name": "istio.metadata_exchange"}]});
    assert!(cluster_of(&patched(base(), &[], &istios)).is_ok(), "done natively");
    let manager = ["filter_chains", "0", "filters", "0", "typed_config"];
    let chain = ["filter_chains", "0"];
    let inside = "filter_chains[0].filters[0].typed_config";
    for (path, patch, want) in [
        (&[][..], json!({"transparent": true}), "transparent".to_owned()),
        (
            &[],
            json!({"listener_filters": [{"name": "envoy.filters.listener.proxy_protocol"}]}),
            "listener_filters[0]".to_owned(),
        ),
        (
            &chain,
            json!({"filter_chain_match": {"source_ports": [1]}}),
            "filter_chains[0].filter_chain_match.source_ports".to_owned(),
        ),
        (
            &chain,
            json!({"filter_chain_match": {"prefix_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 33}]}}),
            "filter_chains[0].filter_chain_match.prefix_ranges[0]".to_owned(),
        ),
        (
            &manager,
            json!({"path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD"}),
            format!("{inside}.path_with_escaped_slashes_action"),
        ),
        (&manager, json!({"strip_any_host_port": true}), format!("{inside}.strip_port_mode")),
        (&manager, json!({"codec_type": "HTTP3"}), format!("{inside}.codec_type")),
        (&manager, json!({"http_filters": []}), format!("{inside}.http_filters")),
        (
            &manager,
            json!({"common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"}}),
            format!("{inside}.common_http_protocol_options.headers_with_underscores_action"),
        ),
    ] {
        let refused = listener_of(&patched(http_listener(&[]), path, &patch)).expect_err("refused");
        assert_eq!(refused.path, want, "{patch}");
    }
    let kept = json!({"path_with_escaped_slashes_action": "KEEP_UNCHANGED"});
    assert!(listener_of(&patched(http_listener(&[]), &manager, &kept)).is_ok());
}

#[test]
fn an_empty_header_value_is_set_only_when_it_is_to_be_kept() {
    use crate::route::HeaderOp;
    for (kept, want) in [(false, vec![]), (true, vec![HeaderOp::Set("x".into(), "".into())])] {
        let header = json!({"header": {"key": "X", "value": ""}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            "keep_empty_value": kept});
        let routes = routes_of(&json!({"name": "r", "request_headers_to_add": [header]})).expect("accepted");
        assert_eq!(routes.headers.request, want);
    }
}
