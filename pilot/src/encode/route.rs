//! Route tables and virtual hosts.
//!
//! In: the model's routes. Out: Envoy's. Kept true: no timeout is written as zero, which is Envoy's "none".
//! Not here: filter settings (`filter`).

use super::{ads, duration, filter, inline, matchers, number, source, truth};
use mesh_traffic::{
    RouteConfiguration, VirtualHost,
    retry::RetryPolicy,
    route::{
        Action, Arm, Forward, HashPolicy, HeaderOp, HeaderOps, PathMatch, PathRewrite, Redirect, RedirectPath, Route,
        RouteMatch, Target,
    },
};
use std::time::Duration;
use xds::envoy::{
    config::{core::v3 as core, route::v3 as pb},
    extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate,
    r#type::matcher::v3::RegexMatchAndSubstitute,
};

/// A route table.
pub fn route_configuration(from: &RouteConfiguration) -> pb::RouteConfiguration {
    let headers = Headers::of(&from.headers);
    pb::RouteConfiguration {
        name: from.name.to_string(),
        virtual_hosts: from.virtual_hosts.iter().map(|h| virtual_host(h)).collect(),
        vhds: from.vhds.then(|| pb::Vhds { config_source: Some(ads()) }),
        validate_clusters: Some(truth(from.validate_clusters)),
        ignore_port_in_host_matching: from.ignore_port,
        request_headers_to_add: headers.request_add,
        request_headers_to_remove: headers.request_remove,
        response_headers_to_add: headers.response_add,
        response_headers_to_remove: headers.response_remove,
        max_direct_response_body_size_bytes: Some(number(1 << 20)),
        ..Default::default()
    }
}

/// A virtual host.
pub fn virtual_host(from: &VirtualHost) -> pb::VirtualHost {
    use pb::virtual_host::TlsRequirementType as T;
    let headers = Headers::of(&from.headers);
    pb::VirtualHost {
        name: from.name.to_string(),
        domains: from.domains.iter().map(ToString::to_string).collect(),
        routes: from.routes.iter().map(|r| route(r)).collect(),
        require_tls: if from.require_tls { T::All } else { T::None }.into(),
        include_request_attempt_count: from.include_attempt_count,
        typed_per_filter_config: filter::per_route(&from.filters, None),
        request_headers_to_add: headers.request_add,
        request_headers_to_remove: headers.request_remove,
        response_headers_to_add: headers.response_add,
        response_headers_to_remove: headers.response_remove,
        ..Default::default()
    }
}

fn route(from: &Route) -> pb::Route {
    let headers = Headers::of(&from.headers);
    let cors = match &from.action {
        Action::Forward(forward) => forward.cors.as_deref(),
        _ => None,
    };
    pb::Route {
        name: from.name.to_string(),
        r#match: Some(route_match(&from.matcher)),
        metadata: source(from.source.as_ref()),
        decorator: from
            .operation
            .as_ref()
            .map(|o| pb::Decorator { operation: o.to_string(), ..Default::default() }),
        typed_per_filter_config: filter::per_route(&from.filters, cors),
        request_headers_to_add: headers.request_add,
        request_headers_to_remove: headers.request_remove,
        response_headers_to_add: headers.response_add,
        response_headers_to_remove: headers.response_remove,
        action: Some(match &from.action {
            Action::Forward(f) => pb::route::Action::Route(forward(f)),
            Action::Redirect(r) => pb::route::Action::Redirect(redirect(r)),
            Action::Direct(d) => pb::route::Action::DirectResponse(pb::DirectResponseAction {
                status: u32::from(d.status),
                body: (!d.body.is_empty()).then(|| inline(&d.body)),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

fn route_match(from: &RouteMatch) -> pb::RouteMatch {
    use pb::route_match::{ConnectMatcher, GrpcRouteMatchOptions, PathSpecifier as P};
    let path = match &from.path {
        PathMatch::Prefix(p) => P::Prefix(p.to_string()),
        PathMatch::Segments(p) => P::PathSeparatedPrefix(p.to_string()),
        PathMatch::Exact(p) => P::Path(p.to_string()),
        PathMatch::Regex(r) => P::SafeRegex(matchers::regex(r)),
        PathMatch::Connect => P::ConnectMatcher(ConnectMatcher::default()),
    };
    pb::RouteMatch {
        path_specifier: Some(path),
        case_sensitive: from.ignore_case.then(|| truth(false)),
        headers: from.headers.iter().map(matchers::header).collect(),
        query_parameters: from.query.iter().map(matchers::query).collect(),
        grpc: from.grpc.then(GrpcRouteMatchOptions::default),
        ..Default::default()
    }
}

fn forward(from: &Forward) -> pb::RouteAction {
    use pb::route_action::{
        ClusterNotFoundResponseCode as N, ClusterSpecifier as C, HostRewriteSpecifier as H, MaxStreamDuration,
        RequestMirrorPolicy,
    };
    let (prefix_rewrite, regex_rewrite) = match &from.path_rewrite {
        None => (String::new(), None),
        Some(PathRewrite::Prefix(p)) => (p.to_string(), None),
        Some(PathRewrite::Regex { pattern, substitution }) => (
            String::new(),
            Some(RegexMatchAndSubstitute {
                pattern: Some(matchers::regex(pattern)),
                substitution: substitution.to_string(),
            }),
        ),
    };
    pb::RouteAction {
        cluster_not_found_response_code: match from.cluster_not_found {
            404 => N::NotFound,
            500 => N::InternalServerError,
            _ => N::ServiceUnavailable,
        }
        .into(),
        cluster_specifier: Some(match &from.target {
            Target::Cluster(name) => C::Cluster(name.to_string()),
            Target::Split(split) => C::WeightedClusters(pb::WeightedCluster {
                clusters: split.arms().iter().map(arm).collect(),
                ..Default::default()
            }),
        }),
        prefix_rewrite,
        regex_rewrite,
        host_rewrite_specifier: from.host_rewrite.as_ref().map(|h| H::HostRewriteLiteral(h.to_string())),
        timeout: Some(duration(from.timeout.unwrap_or(Duration::ZERO))),
        idle_timeout: from.idle_timeout.map(duration),
        max_stream_duration: from.max_grpc_timeout.map(|max| MaxStreamDuration {
            max_stream_duration: Some(duration(Duration::ZERO)),
            grpc_timeout_header_max: Some(duration(max)),
            ..Default::default()
        }),
        retry_policy: from.retry.as_ref().map(retry),
        hash_policy: from.hash.iter().map(hash).collect(),
        request_mirror_policies: from
            .mirrors
            .iter()
            .map(|m| RequestMirrorPolicy {
                cluster: m.cluster.to_string(),
                runtime_fraction: Some(matchers::runtime_share(m.per_million)),
                trace_sampled: Some(truth(false)),
                disable_shadow_host_suffix_append: true,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

fn arm(from: &Arm) -> pb::weighted_cluster::ClusterWeight {
    use pb::weighted_cluster::cluster_weight::HostRewriteSpecifier as H;
    let headers = Headers::of(&from.headers);
    pb::weighted_cluster::ClusterWeight {
        name: from.cluster.to_string(),
        weight: Some(number(from.weight)),
        request_headers_to_add: headers.request_add,
        request_headers_to_remove: headers.request_remove,
        response_headers_to_add: headers.response_add,
        response_headers_to_remove: headers.response_remove,
        host_rewrite_specifier: from.host_rewrite.as_ref().map(|h| H::HostRewriteLiteral(h.to_string())),
        ..Default::default()
    }
}

fn retry(from: &RetryPolicy) -> pb::RetryPolicy {
    use pb::retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate::ConfigType};
    let default = RetryPolicy::default();
    let predicate = from.avoid_previous.then(|| RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(ConfigType::TypedConfig(xds::pack(&PreviousHostsPredicate {}))),
    });
    pb::RetryPolicy {
        retry_on: from.on.words(),
        num_retries: Some(number(from.attempts)),
        per_try_timeout: from.per_try.map(duration),
        retry_host_predicate: predicate.into_iter().collect(),
        host_selection_retry_max_attempts: i64::from(from.max_picks),
        retriable_status_codes: from.codes.iter().map(|c| u32::from(*c)).collect(),
        retry_back_off: (from.base_backoff != default.base_backoff || from.max_backoff != default.max_backoff).then(
            || RetryBackOff {
                base_interval: Some(duration(from.base_backoff)),
                max_interval: Some(duration(from.max_backoff)),
            },
        ),
        ..Default::default()
    }
}

fn hash(from: &HashPolicy) -> pb::route_action::HashPolicy {
    use pb::route_action::hash_policy::{ConnectionProperties, Cookie, Header, PolicySpecifier as P, QueryParameter};
    let specifier = match from {
        HashPolicy::Header(name) => P::Header(Header { header_name: name.to_string(), regex_rewrite: None }),
        HashPolicy::Cookie { name, ttl, path } => P::Cookie(Cookie {
            name: name.to_string(),
            ttl: ttl.map(duration),
            path: path.as_deref().unwrap_or_default().to_owned(),
            attributes: Vec::new(),
        }),
        HashPolicy::SourceIp => P::ConnectionProperties(ConnectionProperties { source_ip: true }),
        HashPolicy::Query(name) => P::QueryParameter(QueryParameter { name: name.to_string() }),
    };
    pb::route_action::HashPolicy { terminal: false, policy_specifier: Some(specifier) }
}

fn redirect(from: &Redirect) -> pb::RedirectAction {
    use pb::redirect_action::{PathRewriteSpecifier as P, RedirectResponseCode as R, SchemeRewriteSpecifier as S};
    let code = match from.status {
        302 => R::Found,
        303 => R::SeeOther,
        307 => R::TemporaryRedirect,
        308 => R::PermanentRedirect,
        _ => R::MovedPermanently,
    };
    pb::RedirectAction {
        host_redirect: from.host.as_deref().unwrap_or_default().to_owned(),
        port_redirect: from.port.map_or(0, u32::from),
        response_code: code.into(),
        strip_query: from.strip_query,
        scheme_rewrite_specifier: from.scheme.as_ref().map(|s| S::SchemeRedirect(s.to_string())),
        path_rewrite_specifier: from.path.as_ref().map(|p| match p {
            RedirectPath::Full(p) => P::PathRedirect(p.to_string()),
            RedirectPath::Prefix(p) => P::PrefixRewrite(p.to_string()),
        }),
    }
}

/// Header changes in Envoy's four lists.
#[derive(Default)]
struct Headers {
    request_add: Vec<core::HeaderValueOption>,
    request_remove: Vec<String>,
    response_add: Vec<core::HeaderValueOption>,
    response_remove: Vec<String>,
}

impl Headers {
    fn of(from: &HeaderOps) -> Self {
        let (request_add, request_remove) = lists(&from.request);
        let (response_add, response_remove) = lists(&from.response);
        Self { request_add, request_remove, response_add, response_remove }
    }
}

fn lists(ops: &[HeaderOp]) -> (Vec<core::HeaderValueOption>, Vec<String>) {
    use core::header_value_option::HeaderAppendAction as A;
    let (mut add, mut remove) = (Vec::new(), Vec::new());
    for op in ops {
        let (name, value, action) = match op {
            HeaderOp::Remove(name) => {
                remove.push(name.to_string());
                continue;
            }
            HeaderOp::Set(name, value) => (name, value, A::OverwriteIfExistsOrAdd),
            HeaderOp::Add(name, value) => (name, value, A::AppendIfExistsOrAdd),
        };
        add.push(core::HeaderValueOption {
            header: Some(core::HeaderValue {
                key: name.to_string(),
                value: value.to_string(),
                ..Default::default()
            }),
            append_action: action.into(),
            ..Default::default()
        });
    }
    (add, remove)
}
