//! Checks of one security or telemetry object.
//!
//! In: their specs. Out: findings. Kept true: a policy that would silently allow more than it says is refused.
//! Not here: scopes that overlap (`set`).

use super::routes::cidr;
use super::{Findings, nth};
use crate::kinds::*;
use crate::resource::Kind;

pub(super) fn peer_authentication(pa: &PeerAuthentication, f: &mut Findings<'_>) {
    selector(pa.selector.as_ref(), f);
    let selective = pa.selector.as_ref().is_some_and(|s| !s.match_labels.is_empty());
    if !pa.port_level_mtls.is_empty() && !selective {
        f.error("spec.portLevelMtls", "needs spec.selector.matchLabels, since ports are those of a workload");
    }
    for port in pa.port_level_mtls.keys() {
        f.port(*port, format!("spec.portLevelMtls.{port}"));
    }
}

fn selector(selector: Option<&MatchSelector>, f: &mut Findings<'_>) {
    labels(selector, "spec.selector.matchLabels", f);
}

pub(super) fn labels(selector: Option<&MatchSelector>, field: &str, f: &mut Findings<'_>) {
    let labels = selector.into_iter().flat_map(|s| &s.match_labels);
    f.most(labels.clone().count(), 4096, field);
    for (key, value) in labels {
        if key.is_empty() || key.contains('*') {
            f.error(field, format!("{key:?} is no label: wildcards are not supported"));
        }
        if value.contains('*') || value.len() > 63 {
            let why =
                format!("{value:?} is no label value: wildcards are not supported, nor more than 63 letters");
            f.error(super::entry(field, key), why);
        }
    }
}

fn target(one: Option<&TargetRef>, many: &[TargetRef], selector: bool, f: &mut Findings<'_>) {
    f.at_most_one(
        "spec",
        &[("selector", selector), ("targetRef", one.is_some()), ("targetRefs", !many.is_empty())],
    );
    f.unsupported(one.is_some(), "spec.targetRef");
    f.unsupported(!many.is_empty(), "spec.targetRefs");
}

pub(super) fn authorization_policy(policy: &AuthorizationPolicy, f: &mut Findings<'_>) {
    selector(policy.selector.as_ref(), f);
    target(policy.target_ref.as_ref(), &policy.target_refs, policy.selector.is_some(), f);
    let custom = policy.action == AuthorizationAction::Custom;
    match &policy.provider {
        None if custom => {
            f.error("spec.provider", "is missing: CUSTOM needs the name of an external authorizer");
        }
        Some(p) if custom && p.name.is_empty() => {
            f.error("spec.provider.name", "is empty: name an external authorizer");
        }
        Some(_) if !custom => f.error("spec.provider", "belongs to action CUSTOM only: remove it"),
        _ => {}
    }
    f.unsupported(policy.action == AuthorizationAction::Audit, "spec.action");
    if policy.rules.is_empty() && policy.action == AuthorizationAction::Deny {
        f.error("spec.rules", "is empty, so nothing is denied: write rules, [{}] to deny everything");
    }
    for (i, rule) in policy.rules.iter().enumerate() {
        let at = nth("spec.rules", i);
        for (j, from) in rule.from.iter().enumerate() {
            source(&from.source, &format!("{at}.from[{j}].source"), f);
        }
        for (j, to) in rule.to.iter().enumerate() {
            operation(&to.operation, &format!("{at}.to[{j}].operation"), f);
        }
        for (j, when) in rule.when.iter().enumerate() {
            condition(when, &format!("{at}.when[{j}]"), f);
        }
    }
}

fn source(s: &AuthorizationSource, field: &str, f: &mut Findings<'_>) {
    if *s == AuthorizationSource::default() {
        f.error(field, "is empty: write principals, namespaces or another condition");
    }
    let lists = [
        ("principals", &s.principals),
        ("notPrincipals", &s.not_principals),
        ("requestPrincipals", &s.request_principals),
        ("notRequestPrincipals", &s.not_request_principals),
        ("namespaces", &s.namespaces),
        ("notNamespaces", &s.not_namespaces),
        ("serviceAccounts", &s.service_accounts),
        ("notServiceAccounts", &s.not_service_accounts),
        ("trustDomains", &s.trust_domains),
        ("notTrustDomains", &s.not_trust_domains),
    ];
    for (part, values) in lists {
        values_of(values, &format!("{field}.{part}"), f);
    }
    for (part, values) in [("principals", &s.principals), ("notPrincipals", &s.not_principals)] {
        for (i, value) in values.iter().enumerate().filter(|(_, v)| v.starts_with("spiffe://")) {
            let bare = value.trim_start_matches("spiffe://");
            f.error(format!("{field}.{part}[{i}]"), format!("is written without its scheme: {bare}"));
        }
    }
    for (part, blocks) in [
        ("ipBlocks", &s.ip_blocks),
        ("notIpBlocks", &s.not_ip_blocks),
        ("remoteIpBlocks", &s.remote_ip_blocks),
        ("notRemoteIpBlocks", &s.not_remote_ip_blocks),
    ] {
        for (i, block) in blocks.iter().enumerate() {
            cidr(block, &format!("{field}.{part}[{i}]"), f);
        }
    }
}

fn operation(o: &Operation, field: &str, f: &mut Findings<'_>) {
    if *o == Operation::default() {
        f.error(field, "is empty: write paths, methods or another condition");
    }
    for (part, values) in [
        ("hosts", &o.hosts),
        ("notHosts", &o.not_hosts),
        ("methods", &o.methods),
        ("notMethods", &o.not_methods),
    ] {
        values_of(values, &format!("{field}.{part}"), f);
    }
    for (part, values) in [("paths", &o.paths), ("notPaths", &o.not_paths)] {
        for (i, value) in values.iter().enumerate() {
            let at = format!("{field}.{part}[{i}]");
            if value.contains('{') || value.contains('}') {
                path_template(value, &at, f);
            } else {
                value_of(value, &at, f);
            }
        }
    }
    for (part, ports) in [("ports", &o.ports), ("notPorts", &o.not_ports)] {
        for (i, port) in ports.iter().enumerate() {
            match port.parse::<u32>() {
                Ok(number) => f.port(number, format!("{field}.{part}[{i}]")),
                Err(_) => {
                    f.error(format!("{field}.{part}[{i}]"), format!("{port:?} is no port: write a number"));
                }
            }
        }
    }
}

fn path_template(value: &str, field: &str, f: &mut Findings<'_>) {
    let segments: Vec<_> = value.split('/').collect();
    let bad = segments.iter().any(|s| (s.contains('{') || s.contains('}')) && *s != "{*}" && *s != "{**}")
        || value.replace("{*}", "").replace("{**}", "").contains('*')
        || !value.starts_with('/');
    let last_wild =
        segments.iter().position(|s| *s == "{**}").is_some_and(|i| segments[i + 1..].contains(&"{**}"));
    if bad || last_wild {
        f.error(
            field,
            format!("{value:?} is no path template: use {{*}} for one segment and {{**}} once for several"),
        );
    }
}

fn values_of(values: &[String], field: &str, f: &mut Findings<'_>) {
    for (i, value) in values.iter().enumerate() {
        value_of(value, &nth(field, i), f);
    }
}

/// Exact, `prefix*`, `*suffix` or `*`.
fn value_of(value: &str, field: &str, f: &mut Findings<'_>) {
    let inner = value.strip_prefix('*').unwrap_or(value);
    let inner = inner.strip_suffix('*').unwrap_or(inner);
    if value.is_empty() {
        f.error(field, "is empty: write a value, or \"*\" for any");
    } else if inner.contains('*') || value.len() > 1 && value.starts_with('*') && value.ends_with('*') {
        f.error(field, format!("{value:?} has a '*' in the middle: it may stand first or last only"));
    }
}

/// Condition keys that stand alone.
const KEYS: &[&str] = &[
    "source.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "remote.ip",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "destination.ip",
    "destination.port",
    "connection.sni",
];

fn condition(c: &Condition, field: &str, f: &mut Findings<'_>) {
    let indexed = ["request.headers[", "request.auth.claims["]
        .iter()
        .any(|p| c.key.starts_with(p) && c.key.ends_with(']'));
    if c.key.starts_with("experimental.") {
        f.error(format!("{field}.key"), format!("{} is not supported: remove the condition", c.key));
    } else if !indexed && !KEYS.contains(&c.key.as_str()) {
        let why =
            format!("{:?} is no condition: write e.g. request.headers[name] or source.namespace", c.key);
        f.error(format!("{field}.key"), why);
    }
    if c.values.is_empty() && c.not_values.is_empty() {
        f.error(field, "has no values: write values or notValues");
    }
    for (part, values) in [("values", &c.values), ("notValues", &c.not_values)] {
        for (i, value) in values.iter().enumerate() {
            let at = format!("{field}.{part}[{i}]");
            match c.key.as_str() {
                "source.ip" | "remote.ip" | "destination.ip" => cidr(value, &at, f),
                "destination.port" if value.parse::<u16>().is_err() => {
                    f.error(at, format!("{value:?} is no port: write a number from 1 to 65535"));
                }
                _ => value_of(value, &at, f),
            }
        }
    }
}

pub(super) fn request_authentication(ra: &RequestAuthentication, f: &mut Findings<'_>) {
    selector(ra.selector.as_ref(), f);
    target(ra.target_ref.as_ref(), &ra.target_refs, ra.selector.is_some(), f);
    for (i, rule) in ra.jwt_rules.iter().enumerate() {
        let at = nth("spec.jwtRules", i);
        if rule.issuer.is_empty() {
            f.error(format!("{at}.issuer"), "is empty: name the issuer of the tokens");
        }
        f.at_most_one(&at, &[("jwksUri", rule.jwks_uri.is_some()), ("jwks", rule.jwks.is_some())]);
        if let Some(uri) =
            rule.jwks_uri.as_deref().filter(|u| !u.starts_with("https://") && !u.starts_with("http://"))
        {
            f.error(format!("{at}.jwksUri"), format!("{uri:?} is no http or https URL"));
        }
        if let Some(jwks) = &rule.jwks
            && serde_json::from_str::<serde_json::Value>(jwks).is_err()
        {
            f.error(format!("{at}.jwks"), "is no JSON: paste the key set as it is published");
        }
        for (j, header) in rule.from_headers.iter().enumerate() {
            super::routes::header_name(&header.name, &format!("{at}.fromHeaders[{j}].name"), f);
        }
        f.at_least_1ms(rule.timeout, format!("{at}.timeout"));
        f.unsupported(!rule.space_delimited_claims.is_empty(), format!("{at}.spaceDelimitedClaims"));
    }
}

pub(super) fn legacy_policy(policy: &AuthenticationPolicy, f: &mut Findings<'_>) {
    let kind = f.key.as_ref().map_or(Kind::Policy, |key| key.kind);
    let named_default = f.key.as_ref().is_some_and(|key| &*key.name == "default");
    match (kind, policy.targets.is_empty()) {
        (Kind::MeshPolicy, _) if !named_default => {
            f.error("metadata.name", "a MeshPolicy is for the whole mesh and must be called default");
        }
        (Kind::MeshPolicy, false) => {
            f.error("spec.targets", "a MeshPolicy is for the whole mesh: remove targets");
        }
        (Kind::Policy, true) if !named_default => {
            f.error("spec.targets", "is empty, so this is for the whole namespace and must be called default: rename it or name targets");
        }
        (Kind::Policy, false) if named_default => {
            f.error(
                "metadata.name",
                "default is the name of the namespace's policy, which has no targets: rename it",
            );
        }
        _ => {}
    }
    for (i, target) in policy.targets.iter().enumerate() {
        let at = nth("spec.targets", i);
        if target.name.is_empty() || target.name.contains(['.', '*', '/']) {
            let why = format!(
                "{:?} is no short service name: write the name of a Service of this namespace",
                target.name
            );
            f.error(format!("{at}.name"), why);
        }
        for (j, port) in target.ports.iter().enumerate() {
            let at = format!("{at}.ports[{j}]");
            match port.number {
                Some(number) => f.port(number, format!("{at}.number")),
                None if port.name.is_none() => f.error(at, "has neither number nor name: write one of them"),
                None => {}
            }
        }
        f.unsupported(!target.labels.is_empty(), format!("{at}.labels"));
    }
    for (i, peer) in policy.peers.iter().enumerate() {
        f.unsupported(peer.jwt.is_some(), format!("spec.peers[{i}].jwt"));
        f.unsupported(
            peer.mtls.is_some_and(|m| m.allow_tls == Some(true)),
            format!("spec.peers[{i}].mtls.allowTls"),
        );
    }
    if !policy.origins.is_empty() {
        f.error("spec.origins", "tokens in legacy policies are not supported, and leaving them out would let everyone in: use RequestAuthentication");
    }
    f.unsupported(policy.peer_is_optional == Some(true), "spec.peerIsOptional");
    f.warn("", "authentication.istio.io is deprecated, still in force: write a PeerAuthentication");
}

pub(super) fn telemetry(t: &Telemetry, f: &mut Findings<'_>) {
    selector(t.selector.as_ref(), f);
    target(t.target_ref.as_ref(), &t.target_refs, t.selector.is_some(), f);
    for (i, tracing) in t.tracing.iter().enumerate() {
        let at = nth("spec.tracing", i);
        if let Some(share) = tracing.random_sampling_percentage {
            f.percent(share, format!("{at}.randomSamplingPercentage"));
        }
        if tracing.providers.len() > 1 {
            f.error(format!("{at}.providers"), "names several tracers: only one is supported");
        }
        for (j, _) in tracing.providers.iter().enumerate().filter(|(_, p)| p.name.is_empty()) {
            f.error(
                format!("{at}.providers[{j}].name"),
                "is empty: name a provider of the mesh configuration",
            );
        }
        for (name, tag) in &tracing.custom_tags {
            let at = super::entry(&format!("{at}.customTags"), name);
            let forms = [
                ("literal", tag.literal.is_some()),
                ("environment", tag.environment.is_some()),
                ("header", tag.header.is_some()),
                ("formatter", tag.formatter.is_some()),
            ];
            f.at_most_one(&at, &forms);
            if forms.iter().all(|(_, there)| !there) {
                f.error(at, "is empty: write literal, environment or header");
            }
        }
    }
    for (i, log) in t.access_logging.iter().enumerate() {
        if log.filter.as_ref().is_some_and(|filter| filter.expression.is_empty()) {
            f.error(format!("spec.accessLogging[{i}].filter.expression"), "is empty: write a CEL expression");
        }
    }
}
