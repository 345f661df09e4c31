//! Routes of a VirtualService: conditions, destinations with weights, and what is done on the way.
//!
//! In: VirtualServices, and the port and client they are for. Out: routes in file order.
//! Kept true: a destination that does not exist costs its own requests only (503 NC), and is reported; file order is
//! evaluation order. Not here: virtual hosts and their domains (`virtual_host`).

use super::{Translator, matching, source_of};
use crate::model::{
    destination::Rule,
    hosts,
    routing::{MESH, Routing, gateway_name},
    scope::View,
    service::Service,
    workload::selects,
};
use mesh_config::kinds::{self, HttpMatch, HttpRoute};
use mesh_traffic::{
    filter::{Abort, AbortWith, Delay, Fault, PerRoute},
    names::{ClusterName, Name, SourceObject},
    retry::{RetryOn, RetryPolicy},
    route::{
        Action, Arm, Cors, Direct, Forward, HashPolicy, HeaderOp, HeaderOps, Mirror, PathRewrite, Redirect,
        RedirectPath, Route, RouteMatch, Split, Target,
    },
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// What routes are made for.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Who asks, and what it sees.
    pub view: &'a View,
    /// Labels of the client.
    pub labels: &'a BTreeMap<String, String>,
    /// Port that the client speaks to: the service port, or the gateway's server port.
    pub port: u16,
    /// [`MESH`], or the gateway as `namespace/name`.
    pub gateway: &'a str,
}

impl Translator {
    /// The routes of one VirtualService, in order.
    pub fn routes(&self, place: Place<'_>, routing: &Routing) -> Vec<Arc<Route>> {
        self.numbered_routes(place, routing).into_iter().map(|(_, route)| route).collect()
    }

    /// The routes of one VirtualService, each with the 0-based index in `spec.http` of the rule it was made from.
    pub fn numbered_routes(&self, place: Place<'_>, routing: &Routing) -> Vec<(usize, Arc<Route>)> {
        let mut out = Vec::new();
        for (index, http) in routing.object.spec.http.iter().enumerate() {
            if http.delegate.is_some() {
                let field = format!("spec.http[{index}].delegate");
                self.problem(&routing.label, field, "delegation is not supported: this rule is left out");
                continue;
            }
            let matches: Vec<_> =
                http.r#match.iter().enumerate().filter(|(_, m)| applies(place, routing, m)).collect();
            if matches.is_empty() && !http.r#match.is_empty() {
                continue;
            }
            let mut conditions = Vec::new();
            if http.r#match.is_empty() {
                conditions.push((RouteMatch::default(), None));
            }
            for (at, one) in matches {
                match matching::route_match(one) {
                    Ok(matcher) => conditions.push((matcher, one.name.as_deref())),
                    Err((field, why)) => {
                        let field = format!("spec.http[{index}].match[{at}].{field}");
                        self.problem(&routing.label, field, format!("{why}: this match is left out"));
                    }
                }
            }
            for (matcher, match_name) in conditions {
                let last = matcher.is_catch_all();
                out.push((index, Arc::new(self.route(place, routing, index, http, matcher, match_name))));
                if last {
                    return out;
                }
            }
        }
        out
    }

    fn route(
        &self,
        place: Place<'_>,
        routing: &Routing,
        index: usize,
        http: &HttpRoute,
        matcher: RouteMatch,
        match_name: Option<&str>,
    ) -> Route {
        let operations = http.header_operations();
        let mut headers = header_ops(&operations);
        let action = if let Some(redirect) = &http.redirect {
            Action::Redirect(redirect_of(redirect))
        } else if let Some(direct) = &http.direct_response {
            let body = direct.body.as_ref();
            let text = body.and_then(|b| b.string.clone().map(String::into_bytes));
            let bytes = || body.and_then(|b| decode_base64(b.bytes.as_deref()?));
            let status = u16::try_from(direct.status).unwrap_or(200);
            Action::Direct(Direct { status, body: text.or_else(bytes).unwrap_or_default().into() })
        } else {
            Action::Forward(Box::new(self.forward(place, routing, index, http, &operations, &mut headers)))
        };
        let name = match (&http.name, match_name) {
            (Some(rule), Some(one)) => format!("{rule}.{one}").into(),
            (Some(rule), None) => rule.as_str().into(),
            (None, _) => "default".into(),
        };
        let operation = match &action {
            Action::Forward(forward) => operation_of(forward),
            _ => None,
        };
        Route {
            name,
            matcher,
            action,
            headers,
            filters: PerRoute {
                fault: http.fault.as_ref().map(|f| Arc::new(self.fault(routing, index, f))),
                ..PerRoute::default()
            },
            source: Some(source_of(&routing.object)),
            operation,
        }
    }

    fn forward(
        &self,
        place: Place<'_>,
        routing: &Routing,
        index: usize,
        http: &HttpRoute,
        operations: &kinds::Headers,
        headers: &mut HeaderOps,
    ) -> Forward {
        let namespace = routing.object.namespace();
        let mut arms = Vec::new();
        let mut hash = Vec::new();
        for (at, to) in http.route.iter().enumerate() {
            let weight =
                to.weight.map_or(u32::from(http.route.len() == 1), |w| u32::try_from(w).unwrap_or(0));
            let weight = if http.route.len() == 1 { 1 } else { weight };
            if weight == 0 {
                continue;
            }
            let field = || format!("spec.http[{index}].route[{at}].destination");
            let (cluster, rule) = self.destination(place, routing, namespace, &to.destination, &field);
            if hash.is_empty() {
                hash = rule
                    .map(|(rule, service, port)| hash_of(&rule, &to.destination, &service, port))
                    .unwrap_or_default();
            }
            let own = to.header_operations();
            arms.push(Arm { cluster, weight, headers: header_ops(&own), host_rewrite: host_of(&own) });
        }
        let mut host_rewrite = host_of(operations).or_else(|| {
            http.rewrite
                .as_ref()
                .and_then(|r| r.authority.as_deref())
                .filter(|a| !a.is_empty())
                .map(Into::into)
        });
        let target = match arms.len() {
            0 => {
                let why = "no destination has a weight above zero: requests get 503";
                self.problem(&routing.label, format!("spec.http[{index}].route"), why);
                Target::Cluster("UnknownService".into())
            }
            1 => {
                let arm = arms.remove(0);
                headers.request.extend(arm.headers.request);
                headers.response.extend(arm.headers.response);
                host_rewrite = host_rewrite.or(arm.host_rewrite);
                Target::Cluster(arm.cluster)
            }
            _ => Target::Split(Split::new(arms).expect("every arm left has a positive weight")),
        };
        let timeout = http.timeout.map(|t| t.0).filter(|t| !t.is_zero());
        let mirrors = http
            .all_mirrors()
            .iter()
            .filter(|(_, percent)| *percent > 0.0)
            .map(|(to, percent)| {
                let field = || format!("spec.http[{index}].mirror");
                let (cluster, _) = self.destination(place, routing, namespace, to, &field);
                Mirror { cluster, per_million: per_million(*percent) }
            })
            .collect();
        let retry = self.retry(routing, index, http.retries.as_ref(), !hash.is_empty());
        Forward {
            target,
            timeout,
            idle_timeout: None,
            max_grpc_timeout: Some(timeout.unwrap_or(Duration::ZERO)),
            retry,
            hash,
            mirrors,
            host_rewrite,
            path_rewrite: http.rewrite.as_ref().and_then(|r| self.rewrite(routing, index, r)),
            cluster_not_found: 503,
            cors: http.cors_policy.as_ref().map(|c| Box::new(self.cors(routing, index, c))),
        }
    }

    /// The cluster of a destination, and the rule in force there if the service is known.
    fn destination(
        &self,
        place: Place<'_>,
        routing: &Routing,
        namespace: &str,
        to: &kinds::Destination,
        field: &dyn Fn() -> String,
    ) -> (Name, Option<(Rule, Arc<Service>, u16)>) {
        let host = hosts::full(&to.host, namespace);
        let service =
            self.model.services.get(&host).filter(|s| s.visible(&self.model, &place.view.key.namespace));
        let asked = to.port.as_ref().and_then(|p| p.number).and_then(|n| u16::try_from(n).ok());
        let by_name = to.port.as_ref().and_then(|p| p.name.as_deref()).and_then(|name| {
            service.and_then(|s| s.ports.iter().find(|p| &*p.name == name)).map(|p| p.number)
        });
        let only = service.filter(|s| s.ports.len() == 1).map(|s| s.ports[0].number);
        let port = asked.or(by_name).or(only).unwrap_or(place.port);
        let subset = to.subset.as_deref().unwrap_or_default();
        let name: Name = ClusterName::outbound(port, subset, &host).to_string().into();
        let Some(service) = service else {
            let why = format!("no service {host} is known: requests get 503 NC");
            self.problem(&routing.label, format!("{}.host", field()), why);
            return (name, None);
        };
        if service.port(port).is_none() {
            let why = format!("service {host} has no port {port}: requests get 503 NC");
            self.problem(&routing.label, format!("{}.port", field()), why);
        }
        let rule = self.rule(place.view, service);
        if !subset.is_empty() && rule.subset(subset).is_none() {
            let why = format!("no DestinationRule of {host} has a subset {subset}: requests get 503 NC");
            self.problem(&routing.label, format!("{}.subset", field()), why);
        }
        (name, Some((rule, service.clone(), port)))
    }

    /// Retries: written ones, else the mesh's, else Istio's default. No attempts means none.
    pub fn retry(
        &self,
        routing: &Routing,
        index: usize,
        written: Option<&kinds::Retries>,
        hashed: bool,
    ) -> Option<RetryPolicy> {
        let default = || RetryPolicy { avoid_previous: !hashed, ..RetryPolicy::istio_default() };
        let Some(retries) = written.or(self.model.mesh().default_http_retry_policy.as_ref()) else {
            return Some(default());
        };
        let attempts = retries.attempts.and_then(|a| u32::try_from(a).ok()).filter(|a| *a > 0)?;
        let mut policy = RetryPolicy { attempts, ..default() };
        if let Some(words) = retries.retry_on.as_deref().filter(|w| !w.is_empty()) {
            match RetryOn::parse(words) {
                Ok((on, codes)) => (policy.on, policy.codes) = (on, codes),
                Err(why) => {
                    let field = format!("spec.http[{index}].retries.retryOn");
                    self.problem(&routing.label, field, format!("{why}: the default conditions are used"));
                }
            }
        }
        policy.per_try = retries.per_try_timeout.map(|t| t.0).filter(|t| !t.is_zero());
        if let Some(backoff) = retries.backoff.map(|b| b.0).filter(|b| !b.is_zero()) {
            policy.base_backoff = backoff;
            policy.max_backoff = backoff * 10;
        }
        if retries.retry_ignore_previous_hosts == Some(false) {
            policy.avoid_previous = false;
        }
        Some(policy)
    }

    fn fault(&self, routing: &Routing, index: usize, from: &kinds::Fault) -> Fault {
        let field = |f: &str| format!("spec.http[{index}].fault.{f}");
        let delay = from.delay.as_ref().and_then(|d| {
            if d.exponential_delay.is_some() {
                self.problem(&routing.label, field("delay.exponentialDelay"), "not supported: left out");
            }
            Some(Delay { fixed: d.fixed_delay?.0, per_million: per_million(d.share()) })
        });
        let abort = from.abort.as_ref().and_then(|a| {
            let http = a.http_status.and_then(|s| u16::try_from(s).ok()).map(AbortWith::Http);
            let grpc = || a.grpc_status.as_deref().and_then(grpc_code).map(AbortWith::Grpc);
            let with = http.or_else(grpc);
            if with.is_none() {
                self.problem(&routing.label, field("abort"), "no usable status: the abort is left out");
            }
            Some(Abort { with: with?, per_million: per_million(a.share()) })
        });
        Fault { delay, abort, headers: Vec::new() }
    }

    fn rewrite(&self, routing: &Routing, index: usize, from: &kinds::Rewrite) -> Option<PathRewrite> {
        if let Some(regex) = &from.uri_regex_rewrite {
            return match mesh_traffic::matchers::FullRegex::new(&regex.r#match) {
                Ok(pattern) => {
                    Some(PathRewrite::Regex { pattern, substitution: regex.rewrite.as_str().into() })
                }
                Err(why) => {
                    let field = format!("spec.http[{index}].rewrite.uriRegexRewrite.match");
                    self.problem(&routing.label, field, format!("{why}: the path is not rewritten"));
                    None
                }
            };
        }
        from.uri.as_deref().filter(|u| !u.is_empty()).map(|u| PathRewrite::Prefix(u.into()))
    }

    fn cors(&self, routing: &Routing, index: usize, from: &kinds::CorsPolicy) -> Cors {
        let origins = from
            .origins()
            .iter()
            .filter_map(|o| match matching::text(o) {
                Ok(found) => found,
                Err(why) => {
                    let field = format!("spec.http[{index}].corsPolicy.allowOrigins");
                    self.problem(&routing.label, field, format!("{why}: this origin is left out"));
                    None
                }
            })
            .collect();
        Cors {
            origins,
            methods: from.allow_methods.join(",").into(),
            headers: from.allow_headers.join(",").into(),
            expose: from.expose_headers.join(",").into(),
            max_age: from.max_age.map(|m| m.as_secs().to_string()).unwrap_or_default().into(),
            credentials: from.allow_credentials.unwrap_or(false),
            forward_unmatched_preflights: from.unmatched_preflights
                != Some(kinds::UnmatchedPreflights::Ignore),
        }
    }
}

/// The route of a service without a VirtualService.
pub fn default_route(translator: &Translator, view: &View, service: &Arc<Service>, port: u16) -> Arc<Route> {
    let rule = translator.rule(view, service);
    let blank = kinds::Destination { host: service.host.to_string(), ..kinds::Destination::default() };
    let hash = hash_of(&rule, &blank, service, port);
    let retry = match &translator.model.mesh().default_http_retry_policy {
        None => Some(RetryPolicy { avoid_previous: hash.is_empty(), ..RetryPolicy::istio_default() }),
        Some(retries) => {
            retries.attempts.and_then(|a| u32::try_from(a).ok()).filter(|a| *a > 0).map(|attempts| {
                let (on, codes) =
                    RetryOn::parse(retries.retry_on.as_deref().unwrap_or_default()).unwrap_or_default();
                let default = RetryPolicy::istio_default();
                let on = if on.is_empty() { default.on } else { on };
                let per_try = retries.per_try_timeout.map(|t| t.0).filter(|t| !t.is_zero());
                RetryPolicy { on, codes, attempts, per_try, ..default }
            })
        }
    };
    let cluster: Name = ClusterName::outbound(port, "", &service.host).to_string().into();
    let forward = Forward {
        target: Target::Cluster(cluster),
        max_grpc_timeout: Some(Duration::ZERO),
        retry,
        hash,
        cluster_not_found: 503,
        ..Forward::default()
    };
    Arc::new(Route {
        name: "default".into(),
        matcher: RouteMatch::default(),
        operation: operation_of(&forward),
        action: Action::Forward(Box::new(forward)),
        headers: HeaderOps::default(),
        filters: PerRoute::default(),
        source: None,
    })
}

/// Whether a match can apply to this client at all: gateways, or labels and namespace of the source, and the port.
fn applies(place: Place<'_>, routing: &Routing, one: &HttpMatch) -> bool {
    let home = routing.object.namespace();
    if one.port.is_some_and(|port| port != u32::from(place.port)) {
        return false;
    }
    if !one.gateways.is_empty() {
        return one.gateways.iter().any(|g| gateway_name(g, home) == place.gateway);
    }
    if place.gateway != MESH {
        return true;
    }
    one.source_namespace.as_deref().is_none_or(|ns| ns.is_empty() || ns == &*place.view.key.namespace)
        && selects(&one.source_labels, place.labels)
}

fn operation_of(forward: &Forward) -> Option<Name> {
    let (cluster, _) = forward.target.arms().next()?;
    let name = ClusterName::parse(cluster)?;
    Some(format!("{}:{}/*", name.host, name.port).into())
}

/// Percent (0–100, four decimals) as millionths.
pub fn per_million(percent: f64) -> u32 {
    let scaled = (percent.clamp(0.0, 100.0) * 10_000.0).round();
    // At most 1,000,000 and never negative or NaN: the text form is a plain number.
    format!("{scaled:.0}").parse().unwrap_or(0)
}

fn redirect_of(from: &kinds::Redirect) -> Redirect {
    let path = match (&from.prefix_rewrite, &from.uri) {
        (Some(prefix), _) if !prefix.is_empty() => Some(RedirectPath::Prefix(prefix.as_str().into())),
        (_, Some(uri)) if !uri.is_empty() => Some(RedirectPath::Full(uri.as_str().into())),
        _ => None,
    };
    let text = |s: &Option<String>| s.as_deref().filter(|s| !s.is_empty()).map(Name::from);
    let standard = if from.scheme.as_deref() == Some("https") { 443 } else { 80 };
    Redirect {
        status: from.redirect_code.and_then(|c| u16::try_from(c).ok()).filter(|c| *c != 0).unwrap_or(301),
        scheme: text(&from.scheme),
        host: text(&from.authority),
        // A scheme's own port is left out of the new place, as in Istio; Envoy would spell it out.
        port: from.port.and_then(|p| u16::try_from(p).ok()).filter(|p| ![0, standard].contains(p)),
        path,
        strip_query: false,
    }
}

/// Removals first, as Envoy does them, then replacements, then additions. `host` is a rewrite, other pseudo headers
/// cannot be changed.
fn header_ops(from: &kinds::Headers) -> HeaderOps {
    HeaderOps { request: ops(&from.request), response: ops(&from.response) }
}

fn ops(from: &kinds::HeaderOperations) -> Vec<HeaderOp> {
    let usable = |name: &&String| !name.starts_with(':') && !name.eq_ignore_ascii_case("host");
    let lower = |name: &String| Name::from(name.to_ascii_lowercase());
    let remove = from.remove.iter().filter(usable).map(|n| HeaderOp::Remove(lower(n)));
    let set =
        from.set.iter().filter(|(n, _)| usable(n)).map(|(n, v)| HeaderOp::Set(lower(n), v.as_str().into()));
    let add =
        from.add.iter().filter(|(n, _)| usable(n)).map(|(n, v)| HeaderOp::Add(lower(n), v.as_str().into()));
    remove.chain(set).chain(add).collect()
}

fn host_of(from: &kinds::Headers) -> Option<Name> {
    let is_host = |name: &str| name.eq_ignore_ascii_case("host") || name == ":authority";
    let set = from.request.set.iter().find(|(n, _)| is_host(n));
    let add = || from.request.add.iter().find(|(n, _)| is_host(n));
    set.or_else(add).map(|(_, v)| v.as_str().into())
}

/// Where a consistent hash takes its key, from the DestinationRule of the destination.
fn hash_of(rule: &Rule, to: &kinds::Destination, service: &Service, port: u16) -> Vec<HashPolicy> {
    let subset = to.subset.as_deref().and_then(|s| rule.subset(s));
    let port_name = service.port(port).map(|p| &*p.name).unwrap_or_default();
    let Some(hash) = rule.blocks(subset, port, port_name).balancer.and_then(|b| b.consistent_hash) else {
        return Vec::new();
    };
    let policy = if let Some(header) = hash.http_header_name {
        HashPolicy::Header(header.to_ascii_lowercase().into())
    } else if let Some(cookie) = hash.http_cookie {
        HashPolicy::Cookie {
            name: cookie.name.into(),
            ttl: cookie.ttl.map(|t| t.0),
            path: cookie.path.map(Into::into),
        }
    } else if let Some(query) = hash.http_query_parameter_name {
        HashPolicy::Query(query.into())
    } else if hash.use_source_ip == Some(true) {
        HashPolicy::SourceIp
    } else {
        return Vec::new();
    };
    vec![policy]
}

const GRPC_CODES: [&str; 17] = [
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

fn grpc_code(text: &str) -> Option<u16> {
    let by_name = GRPC_CODES.iter().position(|name| name.eq_ignore_ascii_case(text));
    by_name.and_then(|at| u16::try_from(at).ok()).or_else(|| text.parse().ok().filter(|code| *code <= 16))
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

/// The source of a route, if it is a VirtualService.
pub fn virtual_service_of(route: &Route) -> Option<&SourceObject> {
    route.source.as_ref().filter(|s| &*s.kind == "virtual-service")
}
