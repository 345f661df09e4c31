//! Routes → RDS and VHDS.
//!
//! In: `crate::route`. Out: RouteConfiguration and VirtualHost messages. Kept true: what Envoy would take a default for is always said.
//! Not here: filters' settings per route (`filter`).

use std::collections::HashMap;

use xds::{
    envoy::{
        config::{core::v3 as core, route::v3 as pb},
        extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate,
        r#type::matcher::v3 as matcher_pb,
    },
    google::protobuf::Any,
};

use super::{
    ads, boolean,
    canonical::{Field, METADATA, Maps, NONE},
    duration, filter, matchers, plain, share, source, uint,
};
use crate::{
    filter::PerRoute,
    names::Name,
    retry::RetryPolicy,
    route::{
        Action, Arm, Cors, Direct, Forward, HashPolicy, HeaderOp, HeaderOps, Mirror, PathMatch, PathRewrite,
        Redirect, RedirectPath, Route, RouteConfiguration, RouteMatch, Target, VirtualHost,
    },
};

/// Maps of a route configuration.
pub(super) static MAPS: Maps = Maps(&[(2, Field::Message(&HOST_MAPS))]);
/// Maps of a virtual host. The values of `typed_per_filter_config` are sorted where they are packed.
pub(super) static HOST_MAPS: Maps = Maps(&[(3, Field::Message(&ROUTE_MAPS)), (15, Field::Map(&NONE))]);
static ROUTE_MAPS: Maps = Maps(&[(4, Field::Message(&METADATA)), (13, Field::Map(&NONE))]);

/// Longest body of a fixed answer: the model's limit, far above Envoy's default of 4 KiB.
const MAX_BODY: u32 = 1 << 20;

/// A route configuration.
#[must_use]
pub fn route_configuration(from: &RouteConfiguration) -> pb::RouteConfiguration {
    let headers = headers(&from.headers);
    pb::RouteConfiguration {
        name: from.name.to_string(),
        virtual_hosts: from.virtual_hosts.iter().map(|host| virtual_host(host)).collect(),
        vhds: from.vhds.then(|| pb::Vhds { config_source: Some(ads()) }),
        request_headers_to_add: headers.request_add,
        request_headers_to_remove: headers.request_remove,
        response_headers_to_add: headers.response_add,
        response_headers_to_remove: headers.response_remove,
        validate_clusters: boolean(from.validate_clusters),
        max_direct_response_body_size_bytes: uint(MAX_BODY),
        ignore_port_in_host_matching: from.ignore_port,
        ..Default::default()
    }
}

/// A virtual host.
#[must_use]
pub fn virtual_host(from: &VirtualHost) -> pb::VirtualHost {
    use pb::virtual_host::TlsRequirementType as T;
    let headers = headers(&from.headers);
    pb::VirtualHost {
        name: from.name.to_string(),
        domains: from.domains.iter().map(Name::to_string).collect(),
        routes: from.routes.iter().map(|one| route(one)).collect(),
        require_tls: if from.require_tls { T::All } else { T::None }.into(),
        request_headers_to_add: headers.request_add,
        request_headers_to_remove: headers.request_remove,
        response_headers_to_add: headers.response_add,
        response_headers_to_remove: headers.response_remove,
        typed_per_filter_config: per_filter(&from.filters, None),
        include_request_attempt_count: from.include_attempt_count,
        ..Default::default()
    }
}

fn route(from: &Route) -> pb::Route {
    let headers = headers(&from.headers);
    let (action, cors) = match &from.action {
        Action::Forward(to) => (pb::route::Action::Route(forward(to)), to.cors.as_deref()),
        Action::Redirect(to) => (pb::route::Action::Redirect(redirect(to)), None),
        Action::Direct(answer) => (pb::route::Action::DirectResponse(direct(answer)), None),
    };
    pb::Route {
        name: from.name.to_string(),
        r#match: Some(route_match(&from.matcher)),
        metadata: source(from.source.as_ref()),
        decorator: from
            .operation
            .as_ref()
            .map(|operation| pb::Decorator { operation: operation.to_string(), ..Default::default() }),
        typed_per_filter_config: per_filter(&from.filters, cors),
        request_headers_to_add: headers.request_add,
        request_headers_to_remove: headers.request_remove,
        response_headers_to_add: headers.response_add,
        response_headers_to_remove: headers.response_remove,
        action: Some(action),
        ..Default::default()
    }
}

fn per_filter(from: &PerRoute, cors: Option<&Cors>) -> HashMap<String, Any> {
    let mut all = filter::per_route(from);
    all.extend(cors.map(|cors| ("envoy.filters.http.cors".to_owned(), filter::cors(cors))));
    all
}

fn route_match(from: &RouteMatch) -> pb::RouteMatch {
    use pb::route_match::PathSpecifier as P;
    let path = match &from.path {
        PathMatch::Prefix(prefix) => P::Prefix(prefix.to_string()),
        PathMatch::Segments(prefix) => P::PathSeparatedPrefix(prefix.to_string()),
        PathMatch::Exact(path) => P::Path(path.to_string()),
        PathMatch::Regex(pattern) => P::SafeRegex(matchers::regex(pattern)),
        PathMatch::Connect => P::ConnectMatcher(pb::route_match::ConnectMatcher {}),
    };
    pb::RouteMatch {
        case_sensitive: if from.ignore_case { boolean(false) } else { None },
        headers: from.headers.iter().map(matchers::header).collect(),
        query_parameters: from.query.iter().map(matchers::query).collect(),
        grpc: from.grpc.then_some(pb::route_match::GrpcRouteMatchOptions {}),
        path_specifier: Some(path),
        ..Default::default()
    }
}

#[allow(
    deprecated,
    reason = "max_stream_duration ends the whole stream; only max_grpc_timeout acts as the route's timeout"
)]
fn forward(from: &Forward) -> pb::RouteAction {
    use pb::route_action::{
        ClusterNotFoundResponseCode as N, ClusterSpecifier as C, HostRewriteSpecifier as H,
    };
    let target = match &from.target {
        Target::Cluster(name) => C::Cluster(name.to_string()),
        Target::Split(split) => C::WeightedClusters(pb::WeightedCluster {
            clusters: split.arms().iter().map(arm).collect(),
            ..Default::default()
        }),
    };
    let (prefix_rewrite, regex_rewrite) = match &from.path_rewrite {
        None => (String::new(), None),
        Some(PathRewrite::Prefix(prefix)) => (prefix.to_string(), None),
        Some(PathRewrite::Regex { pattern, substitution }) => {
            let pattern = Some(matchers::regex(pattern));
            let substitution = substitution.to_string();
            (String::new(), Some(matcher_pb::RegexMatchAndSubstitute { pattern, substitution }))
        }
    };
    pb::RouteAction {
        cluster_not_found_response_code: match from.cluster_not_found {
            404 => N::NotFound,
            500 => N::InternalServerError,
            _ => N::ServiceUnavailable,
        }
        .into(),
        prefix_rewrite,
        regex_rewrite,
        // Absent would mean 15 s.
        timeout: Some(duration(from.timeout.unwrap_or_default())),
        idle_timeout: from.idle_timeout.map(duration),
        max_grpc_timeout: from.max_grpc_timeout.map(duration),
        retry_policy: from.retry.as_ref().map(retry),
        request_mirror_policies: from.mirrors.iter().map(mirror).collect(),
        hash_policy: from.hash.iter().map(hash).collect(),
        cluster_specifier: Some(target),
        host_rewrite_specifier: from
            .host_rewrite
            .as_ref()
            .map(|host| H::HostRewriteLiteral(host.to_string())),
        ..Default::default()
    }
}

fn arm(from: &Arm) -> pb::weighted_cluster::ClusterWeight {
    use pb::weighted_cluster::cluster_weight::HostRewriteSpecifier as H;
    let headers = headers(&from.headers);
    pb::weighted_cluster::ClusterWeight {
        name: from.cluster.to_string(),
        weight: uint(from.weight),
        request_headers_to_add: headers.request_add,
        request_headers_to_remove: headers.request_remove,
        response_headers_to_add: headers.response_add,
        response_headers_to_remove: headers.response_remove,
        host_rewrite_specifier: from
            .host_rewrite
            .as_ref()
            .map(|host| H::HostRewriteLiteral(host.to_string())),
        ..Default::default()
    }
}

fn retry(from: &RetryPolicy) -> pb::RetryPolicy {
    use pb::retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate::ConfigType};
    let usual = RetryPolicy::default();
    let back_off = (from.base_backoff, from.max_backoff) != (usual.base_backoff, usual.max_backoff);
    let previous = from.avoid_previous.then(|| RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(ConfigType::TypedConfig(plain(&PreviousHostsPredicate {}))),
    });
    pb::RetryPolicy {
        retry_on: from.on.words(),
        num_retries: uint(from.attempts),
        per_try_timeout: from.per_try.map(duration),
        retry_host_predicate: previous.into_iter().collect(),
        host_selection_retry_max_attempts: i64::from(from.max_picks),
        retriable_status_codes: from.codes.iter().map(|code| u32::from(*code)).collect(),
        retry_back_off: back_off.then(|| RetryBackOff {
            base_interval: Some(duration(from.base_backoff)),
            // Envoy refuses a limit below the first wait.
            max_interval: Some(duration(from.max_backoff.max(from.base_backoff))),
        }),
        ..Default::default()
    }
}

fn hash(from: &HashPolicy) -> pb::route_action::HashPolicy {
    use pb::route_action::hash_policy::{
        ConnectionProperties, Cookie, Header, PolicySpecifier as P, QueryParameter,
    };
    let policy = match from {
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
    pb::route_action::HashPolicy { terminal: false, policy_specifier: Some(policy) }
}

fn mirror(from: &Mirror) -> pb::route_action::RequestMirrorPolicy {
    pb::route_action::RequestMirrorPolicy {
        cluster: from.cluster.to_string(),
        runtime_fraction: Some(share(from.per_million)),
        disable_shadow_host_suffix_append: true,
        ..Default::default()
    }
}

fn redirect(from: &Redirect) -> pb::RedirectAction {
    use pb::redirect_action::{
        PathRewriteSpecifier as P, RedirectResponseCode as R, SchemeRewriteSpecifier as S,
    };
    pb::RedirectAction {
        host_redirect: from.host.as_deref().unwrap_or_default().to_owned(),
        port_redirect: from.port.map_or(0, u32::from),
        response_code: match from.status {
            302 => R::Found,
            303 => R::SeeOther,
            307 => R::TemporaryRedirect,
            308 => R::PermanentRedirect,
            _ => R::MovedPermanently,
        }
        .into(),
        strip_query: from.strip_query,
        scheme_rewrite_specifier: from.scheme.as_ref().map(|scheme| S::SchemeRedirect(scheme.to_string())),
        path_rewrite_specifier: from.path.as_ref().map(|path| match path {
            RedirectPath::Full(path) => P::PathRedirect(path.to_string()),
            RedirectPath::Prefix(prefix) => P::PrefixRewrite(prefix.to_string()),
        }),
    }
}

fn direct(from: &Direct) -> pb::DirectResponseAction {
    use core::data_source::Specifier as S;
    let specifier = match std::str::from_utf8(&from.body) {
        Ok(text) => S::InlineString(text.to_owned()),
        Err(_) => S::InlineBytes(from.body.to_vec()),
    };
    let body = core::DataSource { specifier: Some(specifier), ..Default::default() };
    pb::DirectResponseAction {
        status: u32::from(from.status),
        body: (!from.body.is_empty()).then_some(body),
        ..Default::default()
    }
}

/// Header changes in the four lists that every message of a route has.
struct Headers {
    request_add: Vec<core::HeaderValueOption>,
    request_remove: Vec<String>,
    response_add: Vec<core::HeaderValueOption>,
    response_remove: Vec<String>,
}

fn headers(from: &HeaderOps) -> Headers {
    let removed = |ops: &[HeaderOp]| {
        let names = ops.iter().filter_map(|op| match op {
            HeaderOp::Remove(name) => Some(name.to_string()),
            HeaderOp::Set(..) | HeaderOp::Add(..) => None,
        });
        names.collect()
    };
    let added = |ops: &[HeaderOp]| ops.iter().filter_map(addition).collect();
    Headers {
        request_add: added(&from.request),
        request_remove: removed(&from.request),
        response_add: added(&from.response),
        response_remove: removed(&from.response),
    }
}

fn addition(op: &HeaderOp) -> Option<core::HeaderValueOption> {
    use core::header_value_option::HeaderAppendAction as A;
    let (name, value, action) = match op {
        HeaderOp::Set(name, value) => (name, value, A::OverwriteIfExistsOrAdd),
        HeaderOp::Add(name, value) => (name, value, A::AppendIfExistsOrAdd),
        HeaderOp::Remove(_) => return None,
    };
    let (key, value) = (name.to_string(), value.to_string());
    Some(core::HeaderValueOption {
        header: Some(core::HeaderValue { key, value, ..Default::default() }),
        append_action: action.into(),
        ..Default::default()
    })
}
