//! Checks of one VirtualService.
//!
//! In: [`VirtualService`]. Out: findings. Kept true: what Istio's webhook refuses is refused, what Istio 1.1
//! had and we honour is a warning. Not here: other objects it names (`set`).

use super::routes::{
    cidr, destination, export_to, header_name, header_names, header_values, headers, string_match, weights,
};
use super::{Findings, entry, nth};
use crate::hosts::covers;
use crate::kinds::*;

pub(super) fn check(vs: &VirtualService, f: &mut Findings<'_>) {
    if vs.hosts.is_empty() {
        f.error("spec.hosts", "is empty: name at least one host");
    }
    let on_mesh = vs.gateways.is_empty() || vs.gateways.iter().any(|g| g == "mesh");
    for (i, host) in vs.hosts.iter().enumerate() {
        let field = nth("spec.hosts", i);
        f.host(host, &field);
        if host == "*" && on_mesh {
            f.error(&field, "\"*\" cannot be routed inside the mesh: name the hosts, or bind to a gateway with spec.gateways");
        }
        if vs.hosts[..i].contains(host) {
            f.error(&field, format!("{host:?} is listed twice: remove one"));
        }
    }
    for (i, gateway) in vs.gateways.iter().enumerate() {
        let parts: Vec<_> = gateway.split('/').collect();
        if parts.len() > 2 || parts.iter().any(|p| p.is_empty()) {
            f.error(
                nth("spec.gateways", i),
                format!("{gateway:?} names no gateway: write name, namespace/name or mesh"),
            );
        }
    }
    if vs.http.is_empty() && vs.tls.is_empty() && vs.tcp.is_empty() {
        f.error("spec", "has no rules: write spec.http, spec.tls or spec.tcp");
    }
    export_to(&vs.export_to, "spec.exportTo", f);
    for (i, route) in vs.http.iter().enumerate() {
        http(route, &nth("spec.http", i), f);
    }
    unreachable(vs, f);
    for (i, route) in vs.tls.iter().enumerate() {
        tls(vs, route, &nth("spec.tls", i), f);
    }
    for (i, route) in vs.tcp.iter().enumerate() {
        tcp(route, &nth("spec.tcp", i), f);
    }
}

fn http(route: &HttpRoute, field: &str, f: &mut Findings<'_>) {
    f.at_most_one(
        field,
        &[
            ("route", !route.route.is_empty()),
            ("redirect", route.redirect.is_some()),
            ("directResponse", route.direct_response.is_some()),
            ("delegate", route.delegate.is_some()),
        ],
    );
    if route.route.is_empty()
        && route.redirect.is_none()
        && route.direct_response.is_none()
        && route.delegate.is_none()
    {
        f.error(field, "does nothing: write route, redirect or directResponse");
    }
    f.unsupported(route.delegate.is_some(), format!("{field}.delegate"));
    if route.redirect.is_some() || route.direct_response.is_some() {
        for (part, there) in [
            ("rewrite", route.rewrite.is_some()),
            ("retries", route.retries.is_some()),
            ("mirror", route.mirror.is_some() || !route.mirrors.is_empty()),
        ] {
            if there {
                f.error(format!("{field}.{part}"), "has no meaning without a route: remove it");
            }
        }
    }
    for (i, m) in route.r#match.iter().enumerate() {
        http_match(m, &format!("{field}.match[{i}]"), f);
    }
    for (i, arm) in route.route.iter().enumerate() {
        let at = format!("{field}.route[{i}]");
        destination(&arm.destination, &format!("{at}.destination"), f);
        headers(arm.headers.as_ref(), &format!("{at}.headers"), f);
        legacy_headers(
            &at,
            [&arm.append_request_headers, &arm.append_response_headers],
            [&arm.remove_request_headers, &arm.remove_response_headers],
            f,
        );
    }
    weights(&route.route.iter().map(|r| r.weight).collect::<Vec<_>>(), &format!("{field}.route"), f);
    actions(route, field, f);
    f.zero_or_1ms(route.timeout, format!("{field}.timeout"));
    if let Some(retries) = &route.retries {
        retry(retries, &format!("{field}.retries"), f);
    }
    if let Some(fault) = &route.fault {
        faults(fault, &format!("{field}.fault"), f);
    }
    mirrors(route, field, f);
    if let Some(cors) = &route.cors_policy {
        let at = format!("{field}.corsPolicy");
        for (i, origin) in cors.allow_origins.iter().enumerate() {
            string_match(origin, &format!("{at}.allowOrigins[{i}]"), f);
        }
        f.legacy(
            !cors.allow_origin.is_empty(),
            format!("{at}.allowOrigin"),
            "write allowOrigins: [{exact: …}]",
        );
        header_names(&cors.allow_headers, &format!("{at}.allowHeaders"), f);
        header_names(&cors.expose_headers, &format!("{at}.exposeHeaders"), f);
        f.zero_or_1ms(cors.max_age, format!("{at}.maxAge"));
    }
    headers(route.headers.as_ref(), &format!("{field}.headers"), f);
    f.legacy(
        route.websocket_upgrade.is_some(),
        format!("{field}.websocketUpgrade"),
        "websockets always work, remove it",
    );
    header_values(&route.append_headers, &format!("{field}.appendHeaders"), f);
    f.legacy(!route.append_headers.is_empty(), format!("{field}.appendHeaders"), "write headers.request.add");
    legacy_headers(
        field,
        [&route.append_request_headers, &route.append_response_headers],
        [&route.remove_request_headers, &route.remove_response_headers],
        f,
    );
}

fn legacy_headers(
    field: &str,
    add: [&std::collections::BTreeMap<String, String>; 2],
    remove: [&Vec<String>; 2],
    f: &mut Findings<'_>,
) {
    for (side, (add, remove)) in ["request", "response"].into_iter().zip(add.into_iter().zip(remove)) {
        let title = if side == "request" { "Request" } else { "Response" };
        let (append_at, remove_at) =
            (format!("{field}.append{title}Headers"), format!("{field}.remove{title}Headers"));
        header_values(add, &append_at, f);
        header_names(remove, &remove_at, f);
        f.legacy(!add.is_empty(), append_at, &format!("write headers.{side}.add"));
        f.legacy(!remove.is_empty(), remove_at, &format!("write headers.{side}.remove"));
    }
}

fn http_match(m: &HttpMatch, field: &str, f: &mut Findings<'_>) {
    for (part, condition) in
        [("uri", &m.uri), ("scheme", &m.scheme), ("method", &m.method), ("authority", &m.authority)]
    {
        if let Some(condition) = condition {
            string_match(condition, &format!("{field}.{part}"), f);
        }
    }
    for (part, conditions) in [("headers", &m.headers), ("withoutHeaders", &m.without_headers)] {
        for (name, condition) in conditions {
            let at = entry(&format!("{field}.{part}"), name);
            if ["uri", "scheme", "method", "authority"].contains(&name.as_str()) {
                let why =
                    format!("a condition on a header called {name} is ignored: write {name} beside headers");
                f.warn(&at, why);
            } else if !name.starts_with("@request.auth.") {
                header_name(name, &at, f);
            }
            string_match(condition, &at, f);
        }
    }
    for (name, condition) in &m.query_params {
        let at = entry(&format!("{field}.queryParams"), name);
        string_match(condition, &at, f);
    }
    if let Some(port) = m.port {
        f.port(port, format!("{field}.port"));
    }
    if !m.gateways.is_empty() && !m.source_labels.is_empty() {
        f.warn(format!("{field}.sourceLabels"), "is ignored because gateways is set: keep one of them");
    }
}

fn actions(route: &HttpRoute, field: &str, f: &mut Findings<'_>) {
    if let Some(redirect) = &route.redirect {
        let at = format!("{field}.redirect");
        f.at_most_one(
            &at,
            &[("uri", redirect.uri.is_some()), ("prefixRewrite", redirect.prefix_rewrite.is_some())],
        );
        f.at_most_one(
            &at,
            &[("port", redirect.port.is_some()), ("derivePort", redirect.derive_port.is_some())],
        );
        if let Some(port) = redirect.port {
            f.port(port, format!("{at}.port"));
        }
        if let Some(code) = redirect.redirect_code.filter(|c| ![0, 301, 302, 303, 307, 308].contains(c)) {
            f.error(
                format!("{at}.redirectCode"),
                format!("{code} is no redirect: write 301, 302, 303, 307 or 308"),
            );
        }
    }
    if let Some(direct) = &route.direct_response {
        let at = format!("{field}.directResponse");
        if !(200..=599).contains(&direct.status) {
            f.error(
                format!("{at}.status"),
                format!("{} is no final status: write a number from 200 to 599", direct.status),
            );
        }
        if let Some(body) = &direct.body {
            f.at_most_one(
                format!("{at}.body"),
                &[("string", body.string.is_some()), ("bytes", body.bytes.is_some())],
            );
            let size = body.string.as_deref().or(body.bytes.as_deref()).map_or(0, str::len);
            if size > 1 << 20 {
                f.error(format!("{at}.body"), format!("has {size} bytes: use at most 1 MiB"));
            }
        }
    }
    if let Some(rewrite) = &route.rewrite {
        let at = format!("{field}.rewrite");
        f.at_most_one(
            &at,
            &[("uri", rewrite.uri.is_some()), ("uriRegexRewrite", rewrite.uri_regex_rewrite.is_some())],
        );
        if let Some(regex) = &rewrite.uri_regex_rewrite {
            f.regex(&regex.r#match, format!("{at}.uriRegexRewrite.match"));
        }
        if rewrite.uri.is_none() && rewrite.authority.is_none() && rewrite.uri_regex_rewrite.is_none() {
            f.error(at, "is empty: write uri, authority or uriRegexRewrite");
        }
    }
}

pub(super) fn retry(retries: &Retries, field: &str, f: &mut Findings<'_>) {
    if let Some(n) = retries.attempts.filter(|n| *n < 0) {
        f.error(format!("{field}.attempts"), format!("{n} is negative: write 0 (none) or more"));
    }
    if retries.attempts.unwrap_or(0) == 0 && (retries.per_try_timeout.is_some() || retries.retry_on.is_some())
    {
        f.warn(field, "attempts is 0, so nothing is retried: set attempts");
    }
    f.zero_or_1ms(retries.per_try_timeout, format!("{field}.perTryTimeout"));
    f.at_least_1ms(retries.backoff, format!("{field}.backoff"));
    for condition in
        retries.retry_on.iter().flat_map(|on| on.split(',')).map(str::trim).filter(|c| !c.is_empty())
    {
        let status = condition.parse::<u16>().is_ok_and(|code| (100..=599).contains(&code));
        if !status && !RETRY_CONDITIONS.contains(&condition) {
            f.error(
                format!("{field}.retryOn"),
                format!("{condition:?} is no retry condition: write e.g. 5xx, connect-failure or 503"),
            );
        }
    }
}

/// Retry conditions of the field, HTTP and gRPC.
const RETRY_CONDITIONS: &[&str] = &[
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

fn faults(fault: &Fault, field: &str, f: &mut Findings<'_>) {
    if fault.delay.is_none() && fault.abort.is_none() {
        f.error(field, "is empty: write delay or abort");
    }
    if let Some(delay) = &fault.delay {
        let at = format!("{field}.delay");
        f.unsupported(delay.exponential_delay.is_some(), format!("{at}.exponentialDelay"));
        if delay.fixed_delay.is_none() {
            f.error(&at, "has no length: write fixedDelay");
        }
        f.at_least_1ms(delay.fixed_delay, format!("{at}.fixedDelay"));
        share(delay.percentage, delay.percent, &at, f);
    }
    if let Some(abort) = &fault.abort {
        let at = format!("{field}.abort");
        f.unsupported(abort.http2_error.is_some(), format!("{at}.http2Error"));
        match (abort.http_status, &abort.grpc_status) {
            (None, None) => f.error(&at, "has no status: write httpStatus or grpcStatus"),
            (Some(_), Some(_)) => f.error(&at, "has httpStatus and grpcStatus at once: keep one of them"),
            (Some(code), None) if !(200..=599).contains(&code) => {
                f.error(
                    format!("{at}.httpStatus"),
                    format!("{code} is no final status: write a number from 200 to 599"),
                );
            }
            (None, Some(code)) if !is_grpc_status(code) => {
                f.error(
                    format!("{at}.grpcStatus"),
                    format!("{code:?} is no gRPC status: write e.g. UNAVAILABLE"),
                );
            }
            _ => {}
        }
        share(abort.percentage, abort.percent, &at, f);
    }
}

fn share(percentage: Option<Percent>, percent: Option<i32>, field: &str, f: &mut Findings<'_>) {
    if let Some(p) = percentage {
        f.percent(p.value, format!("{field}.percentage.value"));
    }
    if let Some(p) = percent {
        f.percent(p, format!("{field}.percent"));
        match percentage {
            None => f.legacy(true, format!("{field}.percent"), &format!("write percentage: {{value: {p}}}")),
            Some(_) => f.warn(format!("{field}.percent"), "is ignored because percentage is set: remove it"),
        }
    }
    if percentage.is_none() && percent.is_none() {
        f.warn(field, "has no percentage, so it never happens: write percentage: {value: 100}");
    }
}

fn is_grpc_status(text: &str) -> bool {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES.contains(&text) || text.parse::<u8>().is_ok_and(|n| n <= 16)
}

fn mirrors(route: &HttpRoute, field: &str, f: &mut Findings<'_>) {
    f.at_most_one(field, &[("mirror", route.mirror.is_some()), ("mirrors", !route.mirrors.is_empty())]);
    if let Some(to) = &route.mirror {
        destination(to, &format!("{field}.mirror"), f);
    }
    if let Some(p) = route.mirror_percentage {
        f.percent(p.value, format!("{field}.mirrorPercentage.value"));
    }
    if let Some(p) = route.mirror_percent {
        f.percent(p, format!("{field}.mirrorPercent"));
        f.legacy(true, format!("{field}.mirrorPercent"), &format!("write mirrorPercentage: {{value: {p}}}"));
    }
    for (i, mirror) in route.mirrors.iter().enumerate() {
        let at = format!("{field}.mirrors[{i}]");
        match &mirror.destination {
            Some(to) => destination(to, &format!("{at}.destination"), f),
            None => f.error(&at, "has no destination: write destination.host"),
        }
        if let Some(p) = mirror.percentage {
            f.percent(p.value, format!("{at}.percentage.value"));
        }
    }
}

/// Rules behind one that takes every request are never reached.
fn unreachable(vs: &VirtualService, f: &mut Findings<'_>) {
    let catches_all = |r: &HttpRoute| {
        r.r#match.is_empty()
            || r.r#match.iter().any(|m| *m == HttpMatch { name: m.name.clone(), ..HttpMatch::default() })
    };
    if let Some(first) = vs.http.iter().position(catches_all)
        && first + 1 < vs.http.len()
    {
        let why = format!(
            "is never reached: spec.http[{first}] takes every request. Put it last, or give it a match"
        );
        f.warn(nth("spec.http", first + 1), why);
    }
}

fn tls(vs: &VirtualService, route: &TlsRoute, field: &str, f: &mut Findings<'_>) {
    if route.r#match.is_empty() {
        f.error(field, "has no match: write match[].sniHosts");
    }
    for (i, m) in route.r#match.iter().enumerate() {
        let at = format!("{field}.match[{i}]");
        if m.sni_hosts.is_empty() {
            f.error(format!("{at}.sniHosts"), "is empty: name at least one server name");
        }
        for (j, sni) in m.sni_hosts.iter().enumerate() {
            let at = format!("{at}.sniHosts[{j}]");
            f.host(sni, &at);
            if !vs.hosts.iter().any(|host| covers(host, sni)) {
                f.error(&at, format!("{sni:?} falls under none of spec.hosts: add it there"));
            }
        }
        connection_match(&m.destination_subnets, m.port, m.source_subnet.as_deref(), &at, f);
    }
    arms(&route.route, field, f);
}

fn tcp(route: &TcpRoute, field: &str, f: &mut Findings<'_>) {
    for (i, m) in route.r#match.iter().enumerate() {
        connection_match(
            &m.destination_subnets,
            m.port,
            m.source_subnet.as_deref(),
            &format!("{field}.match[{i}]"),
            f,
        );
    }
    arms(&route.route, field, f);
}

fn connection_match(
    subnets: &[String],
    port: Option<u32>,
    source: Option<&str>,
    field: &str,
    f: &mut Findings<'_>,
) {
    for (i, subnet) in subnets.iter().enumerate() {
        cidr(subnet, &format!("{field}.destinationSubnets[{i}]"), f);
    }
    if let Some(port) = port {
        f.port(port, format!("{field}.port"));
    }
    f.unsupported(source.is_some(), format!("{field}.sourceSubnet"));
}

fn arms(arms: &[RouteDestination], field: &str, f: &mut Findings<'_>) {
    if arms.is_empty() {
        f.error(format!("{field}.route"), "is empty: name a destination");
    }
    for (i, arm) in arms.iter().enumerate() {
        destination(&arm.destination, &format!("{field}.route[{i}].destination"), f);
    }
    weights(&arms.iter().map(|r| r.weight).collect::<Vec<_>>(), &format!("{field}.route"), f);
}
