//! RDS and VHDS → `crate::route`.
//!
//! In: RouteConfiguration and VirtualHost messages. Out: the model. Kept true: every field is honoured, known to be harmless, or refused.
//! Not here: finding a route (`crate::plan`).

use std::{sync::Arc, time::Duration};

use xds::{
    envoy::config::{core::v3 as core, route::v3 as pb},
    google::protobuf,
};

use super::{
    Decoded, Reject, bool_of, duration, each, filter, limit, matchers, metadata_text, refuse, status, u32_of,
};
use crate::{
    filter::MILLION,
    matchers::StringMatch,
    names::{Name, SourceObject},
    retry::{RetryOn, RetryPolicy},
    route::{
        Action, Arm, Cors, Direct, Forward, HashPolicy, HeaderOp, HeaderOps, Mirror, PathMatch, PathRewrite,
        Redirect, RedirectPath, Route, RouteConfiguration, RouteMatch, Split, Target, VirtualHost,
    },
};

/// A route configuration.
///
/// # Errors
/// The first field that cannot be honoured.
pub fn route_configuration(wire: pb::RouteConfiguration) -> Decoded<RouteConfiguration> {
    refuse!(
        wire,
        cluster_specifier_plugins,
        request_mirror_policies,
        typed_per_filter_config,
        most_specific_header_mutations_wins,
        internal_only_headers,
        vhost_header,
        ignore_path_parameters_in_path_matching,
        route_specifiers,
    );
    let headers = header_ops(
        wire.request_headers_to_add,
        wire.request_headers_to_remove,
        wire.response_headers_to_add,
        wire.response_headers_to_remove,
    )?;
    let virtual_hosts = each(wire.virtual_hosts, "virtual_hosts", |host| virtual_host(host).map(Arc::new))?;
    Ok(RouteConfiguration {
        name: wire.name.into(),
        virtual_hosts,
        vhds: wire.vhds.is_some(),
        validate_clusters: bool_of(wire.validate_clusters, false),
        ignore_port: wire.ignore_port_in_host_matching,
        headers,
    })
}

/// A virtual host.
///
/// # Errors
/// The first field that cannot be honoured.
#[allow(deprecated, reason = "the deprecated fields are looked at only to refuse them")]
pub fn virtual_host(wire: pb::VirtualHost) -> Decoded<VirtualHost> {
    refuse!(
        wire,
        virtual_clusters,
        rate_limits,
        cors,
        matcher,
        retry_policy,
        hedge_policy,
        request_mirror_policies,
        retry_policy_typed_config,
        include_attempt_count_in_response,
        route_specifiers,
    );
    if wire.domains.is_empty() {
        return Err(Reject::new("at least one domain is needed").at("domains"));
    }
    let require_tls = match wire.require_tls {
        0 => false,
        2 => true,
        other => return Err(Reject::new(format!("value {other} is not supported")).at("require_tls")),
    };
    let headers = header_ops(
        wire.request_headers_to_add,
        wire.request_headers_to_remove,
        wire.response_headers_to_add,
        wire.response_headers_to_remove,
    )?;
    Ok(VirtualHost {
        name: wire.name.into(),
        domains: wire.domains.iter().map(|domain| Name::from(domain.as_str())).collect(),
        routes: each(wire.routes, "routes", |one| route(one).map(Arc::new))?,
        include_attempt_count: wire.include_request_attempt_count,
        require_tls,
        headers,
        filters: filter::per_route(&wire.typed_per_filter_config)?,
    })
}

fn route(wire: pb::Route) -> Decoded<Route> {
    refuse!(wire, tracing, route_specifiers);
    let matcher = wire.r#match.ok_or_else(|| Reject::new("missing").at("match"))?;
    let matcher = route_match(matcher).map_err(|e| e.at("match"))?;
    let cors = filter::cors(&wire.typed_per_filter_config)?;
    let action = match wire.action.ok_or_else(|| Reject::new("missing").at("action"))? {
        pb::route::Action::Route(wire) => {
            let forward = forward(wire, cors).map_err(|e| e.at("route"))?;
            Action::Forward(Box::new(forward))
        }
        pb::route::Action::Redirect(wire) => Action::Redirect(redirect(wire).map_err(|e| e.at("redirect"))?),
        pb::route::Action::DirectResponse(wire) => {
            Action::Direct(direct(wire).map_err(|e| e.at("direct_response"))?)
        }
        _ => return Err(Reject::new("only route, redirect and direct_response are supported").at("action")),
    };
    let source = metadata_text(wire.metadata.as_ref(), "istio", "config").and_then(SourceObject::parse);
    let headers = header_ops(
        wire.request_headers_to_add,
        wire.request_headers_to_remove,
        wire.response_headers_to_add,
        wire.response_headers_to_remove,
    )?;
    Ok(Route {
        name: wire.name.into(),
        matcher,
        action,
        headers,
        filters: filter::per_route(&wire.typed_per_filter_config)?,
        source,
        operation: wire.decorator.map(|d| d.operation.into()),
    })
}

fn route_match(wire: pb::RouteMatch) -> Decoded<RouteMatch> {
    use pb::route_match::PathSpecifier as P;
    matchers::nothing_else(&wire)?;
    let share = wire.runtime_fraction.as_ref().map(matchers::runtime_fraction).transpose()?;
    if share.is_some_and(|share| share != MILLION) {
        return Err(Reject::new("a share of requests is not supported").at("runtime_fraction"));
    }
    let path = match wire.path_specifier.ok_or_else(|| Reject::new("missing").at("path_specifier"))? {
        P::Prefix(text) => PathMatch::Prefix(text.into()),
        P::Path(text) => PathMatch::Exact(text.into()),
        P::SafeRegex(wire) => PathMatch::Regex(matchers::regex(&wire).map_err(|e| e.at("safe_regex"))?),
        P::PathSeparatedPrefix(text) => PathMatch::Segments(text.into()),
        P::ConnectMatcher(_) => PathMatch::Connect,
        P::PathMatchPolicy(_) => {
            return Err(Reject::new("URL templates are not supported").at("path_match_policy"));
        }
    };
    Ok(RouteMatch {
        path,
        ignore_case: !bool_of(wire.case_sensitive, true),
        headers: each(wire.headers, "headers", |one| matchers::header(&one))?,
        query: each(wire.query_parameters, "query_parameters", |one| matchers::query(&one))?,
        grpc: wire.grpc.is_some(),
    })
}

#[allow(
    deprecated,
    reason = "deprecated fields are looked at to refuse them, or because istiod still sends them"
)]
fn forward(wire: pb::RouteAction, cors: Option<Box<Cors>>) -> Decoded<Forward> {
    use pb::route_action::{ClusterSpecifier as C, HostRewriteSpecifier as H};
    refuse!(
        wire,
        metadata_match,
        path_rewrite_policy,
        path_rewrite,
        append_x_forwarded_host,
        early_data_policy,
        retry_policy_typed_config,
        priority,
        rate_limits,
        include_vh_rate_limits,
        cors,
        grpc_timeout_offset,
        internal_redirect_policy,
        internal_redirect_action,
        max_internal_redirects,
        hedge_policy,
        flush_timeout,
    );
    let target = match wire.cluster_specifier.ok_or_else(|| Reject::new("missing").at("cluster_specifier"))? {
        C::Cluster(name) => Target::Cluster(name.into()),
        C::WeightedClusters(wire) => split(wire).map_err(|e| e.at("weighted_clusters"))?,
        _ => {
            return Err(
                Reject::new("only cluster and weighted_clusters are supported").at("cluster_specifier")
            );
        }
    };
    let host_rewrite = match wire.host_rewrite_specifier {
        None | Some(H::AutoHostRewrite(protobuf::BoolValue { value: false })) => None,
        Some(H::HostRewriteLiteral(host)) => Some(host.into()),
        Some(_) => return Err(Reject::new("only a literal is supported").at("host_rewrite_specifier")),
    };
    let path_rewrite = match (wire.prefix_rewrite.is_empty(), wire.regex_rewrite) {
        (true, None) => None,
        (false, None) => Some(PathRewrite::Prefix(wire.prefix_rewrite.into())),
        (true, Some(rewrite)) => {
            let pattern =
                rewrite.pattern.ok_or_else(|| Reject::new("missing").at("regex_rewrite.pattern"))?;
            let pattern = matchers::regex(&pattern).map_err(|e| e.at("regex_rewrite.pattern"))?;
            Some(PathRewrite::Regex { pattern, substitution: rewrite.substitution.into() })
        }
        (false, Some(_)) => return Err(Reject::new("excludes prefix_rewrite").at("regex_rewrite")),
    };
    // Absent means 15 s in Envoy; zero means none.
    let timeout = match duration(wire.timeout.as_ref(), "timeout")? {
        None => Some(Duration::from_secs(15)),
        Some(timeout) => Some(timeout).filter(|t| !t.is_zero()),
    };
    if let Some(stream) = &wire.max_stream_duration {
        let at = |e: Reject| e.at("max_stream_duration");
        if limit(stream.max_stream_duration.as_ref(), "max_stream_duration").map_err(at)?.is_some() {
            return Err(at(Reject::new("only zero is supported").at("max_stream_duration")));
        }
        if stream.grpc_timeout_header_offset.is_some() {
            return Err(at(Reject::new("not supported").at("grpc_timeout_header_offset")));
        }
    }
    let max_grpc_timeout = match wire.max_stream_duration.and_then(|m| m.grpc_timeout_header_max) {
        Some(max) => duration(Some(&max), "max_stream_duration.grpc_timeout_header_max")?,
        None => duration(wire.max_grpc_timeout.as_ref(), "max_grpc_timeout")?,
    };
    Ok(Forward {
        target,
        timeout,
        idle_timeout: limit(wire.idle_timeout.as_ref(), "idle_timeout")?,
        max_grpc_timeout,
        retry: wire.retry_policy.map(|policy| retry(policy).map_err(|e| e.at("retry_policy"))).transpose()?,
        hash: each(wire.hash_policy, "hash_policy", hash)?,
        mirrors: each(wire.request_mirror_policies, "request_mirror_policies", mirror)?,
        host_rewrite,
        path_rewrite,
        cluster_not_found: match wire.cluster_not_found_response_code {
            0 => 503,
            1 => 404,
            2 => 500,
            other => {
                return Err(
                    Reject::new(format!("unknown value {other}")).at("cluster_not_found_response_code")
                );
            }
        },
        cors,
    })
}

#[allow(deprecated, reason = "total_weight is deprecated, and only looked at")]
fn split(wire: pb::WeightedCluster) -> Decoded<Target> {
    let arms = each(wire.clusters, "clusters", |arm| {
        refuse!(arm, metadata_match, typed_per_filter_config, cluster_header);
        let headers = header_ops(
            arm.request_headers_to_add,
            arm.request_headers_to_remove,
            arm.response_headers_to_add,
            arm.response_headers_to_remove,
        )?;
        use pb::weighted_cluster::cluster_weight::HostRewriteSpecifier as H;
        let host_rewrite = arm.host_rewrite_specifier.map(|H::HostRewriteLiteral(host)| host.into());
        Ok(Arm { cluster: arm.name.into(), weight: u32_of(arm.weight).unwrap_or(0), headers, host_rewrite })
    })?;
    Split::new(arms).map(Target::Split).map_err(|why| Reject::new(why).at("clusters"))
}

fn retry(wire: pb::RetryPolicy) -> Decoded<RetryPolicy> {
    refuse!(wire, retry_priority, rate_limited_retry_back_off, retriable_request_headers, retriable_headers);
    refuse!(wire, retry_options_predicates, per_try_idle_timeout);
    let (on, _) = RetryOn::parse(&wire.retry_on).map_err(|why| Reject::new(why).at("retry_on"))?;
    let codes = each(wire.retriable_status_codes, "retriable_status_codes", |code| status(code, ""))?;
    let mut avoid_previous = false;
    for predicate in &wire.retry_host_predicate {
        match predicate.name.as_str() {
            "envoy.retry_host_predicates.previous_hosts" => avoid_previous = true,
            other => {
                return Err(Reject::new(format!("{other:?} is not supported")).at("retry_host_predicate"));
            }
        }
    }
    let (base, max) = match wire.retry_back_off {
        None => (None, None),
        Some(back_off) => (
            limit(back_off.base_interval.as_ref(), "retry_back_off.base_interval")?,
            limit(back_off.max_interval.as_ref(), "retry_back_off.max_interval")?,
        ),
    };
    let base_backoff = base.unwrap_or(Duration::from_millis(25));
    Ok(RetryPolicy {
        on,
        codes,
        attempts: u32_of(wire.num_retries).unwrap_or(1),
        per_try: limit(wire.per_try_timeout.as_ref(), "per_try_timeout")?,
        base_backoff,
        max_backoff: max.unwrap_or(base_backoff * 10),
        avoid_previous,
        max_picks: u32::try_from(wire.host_selection_retry_max_attempts).unwrap_or(1).max(1),
    })
}

fn hash(wire: pb::route_action::HashPolicy) -> Decoded<HashPolicy> {
    use pb::route_action::hash_policy::PolicySpecifier as P;
    Ok(match wire.policy_specifier.ok_or_else(|| Reject::new("missing").at("policy_specifier"))? {
        P::Header(header) if header.regex_rewrite.is_none() => {
            HashPolicy::Header(header.header_name.to_ascii_lowercase().into())
        }
        P::Cookie(cookie) => HashPolicy::Cookie {
            name: cookie.name.into(),
            ttl: duration(cookie.ttl.as_ref(), "cookie.ttl")?,
            path: Some(cookie.path).filter(|p| !p.is_empty()).map(Name::from),
        },
        P::ConnectionProperties(connection) if connection.source_ip => HashPolicy::SourceIp,
        P::QueryParameter(parameter) => HashPolicy::Query(parameter.name.into()),
        _ => return Err(Reject::new("this key of a hash is not supported").at("policy_specifier")),
    })
}

fn mirror(wire: pb::route_action::RequestMirrorPolicy) -> Decoded<Mirror> {
    refuse!(wire, cluster_header, request_headers_mutations, host_rewrite_literal);
    let fraction = wire.runtime_fraction.as_ref().map(matchers::runtime_fraction).transpose()?;
    Ok(Mirror { cluster: wire.cluster.into(), per_million: fraction.unwrap_or(MILLION) })
}

fn redirect(wire: pb::RedirectAction) -> Decoded<Redirect> {
    use pb::redirect_action::{PathRewriteSpecifier as P, SchemeRewriteSpecifier as S};
    let text = |text: String| Some(text).filter(|t| !t.is_empty()).map(Name::from);
    let scheme = match wire.scheme_rewrite_specifier {
        None | Some(S::HttpsRedirect(false)) => None,
        Some(S::HttpsRedirect(true)) => Some("https".into()),
        Some(S::SchemeRedirect(scheme)) => text(scheme),
    };
    let path = match wire.path_rewrite_specifier {
        None => None,
        Some(P::PathRedirect(path)) => Some(RedirectPath::Full(path.into())),
        Some(P::PrefixRewrite(path)) => Some(RedirectPath::Prefix(path.into())),
        Some(_) => return Err(Reject::new("only a path or prefix is supported").at("path_rewrite_specifier")),
    };
    let status = match wire.response_code {
        0 => 301,
        1 => 302,
        2 => 303,
        3 => 307,
        4 => 308,
        other => return Err(Reject::new(format!("unknown value {other}")).at("response_code")),
    };
    let port = match wire.port_redirect {
        0 => None,
        number => Some(super::port(number, "port_redirect")?),
    };
    Ok(Redirect { status, scheme, host: text(wire.host_redirect), port, path, strip_query: wire.strip_query })
}

/// Longest body of a fixed answer.
const MAX_BODY: usize = 1 << 20;

fn direct(wire: pb::DirectResponseAction) -> Decoded<Direct> {
    use core::data_source::Specifier as S;
    refuse!(wire, body_format);
    let body: Arc<[u8]> = match wire.body.and_then(|b| b.specifier) {
        None => Arc::default(),
        Some(S::InlineString(text)) => text.into_bytes().into(),
        Some(S::InlineBytes(bytes)) => bytes.into(),
        Some(_) => return Err(Reject::new("only inline bodies are supported").at("body")),
    };
    if body.len() > MAX_BODY {
        return Err(Reject::new("longer than 1 MiB").at("body"));
    }
    Ok(Direct { status: status(wire.status, "status")?, body })
}

/// Header changes: Envoy adds after it removes; a "set" is an addition that overwrites.
pub(super) fn header_ops(
    request_add: Vec<core::HeaderValueOption>,
    request_remove: Vec<String>,
    response_add: Vec<core::HeaderValueOption>,
    response_remove: Vec<String>,
) -> Decoded<HeaderOps> {
    let ops = |add, remove: Vec<String>, field| -> Decoded<Vec<HeaderOp>> {
        let mut ops: Vec<_> =
            remove.into_iter().map(|name| HeaderOp::Remove(name.to_ascii_lowercase().into())).collect();
        ops.extend(each(add, field, header_op)?.into_iter().flatten());
        Ok(ops)
    };
    Ok(HeaderOps {
        request: ops(request_add, request_remove, "request_headers_to_add")?,
        response: ops(response_add, response_remove, "response_headers_to_add")?,
    })
}

/// A change; `None` for an empty value that is not to be kept, which changes nothing.
#[allow(deprecated, reason = "`append` is deprecated, and still what many control planes send")]
fn header_op(wire: core::HeaderValueOption) -> Decoded<Option<HeaderOp>> {
    let header = wire.header.ok_or_else(|| Reject::new("missing").at("header"))?;
    refuse!(header, raw_value);
    let (name, value): (Name, Name) = (header.key.to_ascii_lowercase().into(), header.value.into());
    let appends = wire.append.map(|a| a.value);
    let op = match (appends, wire.append_action) {
        (Some(false), 0) | (None, 2) => HeaderOp::Set(name, value),
        (None | Some(true), 0) => HeaderOp::Add(name, value),
        (_, other) => return Err(Reject::new(format!("value {other} is not supported")).at("append_action")),
    };
    let empty = matches!(&op, HeaderOp::Set(_, value) | HeaderOp::Add(_, value) if value.is_empty());
    Ok(Some(op).filter(|_| !empty || wire.keep_empty_value))
}

pub(super) fn cors(wire: xds::envoy::extensions::filters::http::cors::v3::CorsPolicy) -> Decoded<Cors> {
    refuse!(wire, shadow_enabled, allow_private_network_access);
    let origins: Vec<StringMatch> =
        each(wire.allow_origin_string_match, "allow_origin_string_match", |m| matchers::plain(&m))?;
    Ok(Cors {
        origins,
        methods: wire.allow_methods.into(),
        headers: wire.allow_headers.into(),
        expose: wire.expose_headers.into(),
        max_age: wire.max_age.into(),
        credentials: bool_of(wire.allow_credentials, false),
        forward_unmatched_preflights: bool_of(wire.forward_not_matching_preflights, true),
    })
}
