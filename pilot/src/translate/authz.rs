//! AuthorizationPolicy as rules that the proxy checks itself.
//!
//! In: policies that apply to a workload. Out: DENY rules, then ALLOW rules, for HTTP and for raw connections.
//! Kept true: a condition that cannot be evaluated never allows; on raw connections HTTP conditions never allow and do
//! not hold back a denial. Not here: mixer's policy (`inbound`).

use super::Translator;
use super::http::filter;
use crate::model::{label_of, workload::selects};
use mesh_config::{
    Object,
    kinds::{
        AuthorizationAction, AuthorizationPolicy, AuthorizationRule, AuthorizationSource, Condition,
        Operation,
    },
};
use mesh_traffic::{
    filter::{FilterConfig, HttpFilter},
    listener::Cidr,
    matchers::{FullRegex, HeaderMatch, HeaderValue, StringMatch},
    rbac::{Effect, Policy, Rbac, Rule},
};
use std::{collections::BTreeMap, sync::Arc};

/// Rules in force at a workload.
#[derive(Debug, Default)]
pub struct Layer {
    http: Vec<Arc<Rbac>>,
    network: Vec<Arc<Rbac>>,
    /// Policies it was made from.
    pub sources: Vec<Arc<str>>,
}

impl Layer {
    /// As HTTP filters, in order.
    pub fn http(&self) -> Vec<HttpFilter> {
        self.http.iter().map(|r| filter("envoy.filters.http.rbac", FilterConfig::Rbac(r.clone()))).collect()
    }

    /// As rules on connections, in order.
    pub fn network(&self) -> Vec<Arc<Rbac>> {
        self.network.clone()
    }
}

/// What a rule is written for.
#[derive(Clone, Copy)]
struct Form {
    raw: bool,
    deny: bool,
}

impl Form {
    /// A condition on a request: without a request it never allows, and a denial holds without it.
    fn http(self, rule: Rule) -> Rule {
        match self {
            Form { raw: false, .. } => rule,
            Form { deny: true, .. } => Rule::Any,
            Form { deny: false, .. } => never(),
        }
    }
}

impl Form {
    /// A condition that cannot be judged: it never allows, and does not hold back a denial.
    fn unknown(self) -> Rule {
        if self.deny { Rule::Any } else { never() }
    }
}

fn never() -> Rule {
    Rule::Not(Box::new(Rule::Any))
}

impl Translator {
    /// Authorization of a workload: policies of its namespace and of the root namespace that select it.
    pub fn authorization(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Layer {
        let root = self.model.snapshot.root_namespace();
        let mut places = vec![root];
        if root != namespace {
            places.push(namespace);
        }
        let mut layer = Layer::default();
        for place in &places {
            for tokens in self.model.snapshot.request_authentications.in_namespace(place) {
                if tokens.spec.selector.as_ref().is_none_or(|s| selects(&s.match_labels, labels)) {
                    let why =
                        "tokens are not checked yet: a request with a bad one is let in as if it had none";
                    self.problem(&label_of(tokens), "spec.jwtRules", why);
                }
            }
        }
        let policies: Vec<_> = places
            .into_iter()
            .flat_map(|ns| self.model.snapshot.authorization_policies.in_namespace(ns))
            .filter(|p| {
                let general = p.spec.target_refs.is_empty() && p.spec.target_ref.is_none();
                general && p.spec.selector.as_ref().is_none_or(|s| selects(&s.match_labels, labels))
            })
            .collect();
        for (action, effect) in
            [(AuthorizationAction::Deny, Effect::Deny), (AuthorizationAction::Allow, Effect::Allow)]
        {
            for shadow in [false, true] {
                let chosen: Vec<_> =
                    policies.iter().filter(|p| p.spec.action == action && dry_run(p) == shadow).collect();
                if chosen.is_empty() {
                    continue;
                }
                layer.sources.extend(chosen.iter().map(|p| label_of(p)));
                for raw in [false, true] {
                    let form = Form { raw, deny: action == AuthorizationAction::Deny };
                    let rules = chosen.iter().flat_map(|p| self.policies(p, form)).collect();
                    let rbac = Arc::new(Rbac { action: effect, policies: rules, shadow });
                    if raw { layer.network.push(rbac) } else { layer.http.push(rbac) }
                }
            }
        }
        for policy in policies.iter().filter(|p| p.spec.action == AuthorizationAction::Custom) {
            let why = "CUSTOM is not supported: everything it could match is refused";
            self.problem(&label_of(policy), "spec.action", why);
            let form = |raw| Form { raw, deny: true };
            for (raw, list) in [(false, &mut layer.http), (true, &mut layer.network)] {
                let rules = self.policies(policy, form(raw));
                list.push(Arc::new(Rbac { action: Effect::Deny, policies: rules, shadow: false }));
            }
            layer.sources.push(label_of(policy));
        }
        layer
    }

    fn policies(&self, object: &Arc<Object<AuthorizationPolicy>>, form: Form) -> Vec<Policy> {
        let label = label_of(object);
        let one = |(index, rule): (usize, &AuthorizationRule)| {
            let (mut permissions, mut principals) = (Vec::new(), Vec::new());
            if !rule.to.is_empty() {
                permissions
                    .push(Rule::OneOf(rule.to.iter().map(|t| operation(&t.operation, form)).collect()));
            }
            if !rule.from.is_empty() {
                let home = object.namespace();
                principals
                    .push(Rule::OneOf(rule.from.iter().map(|f| source(&f.source, home, form)).collect()));
            }
            for (at, when) in rule.when.iter().enumerate() {
                match condition(when, object.namespace(), form) {
                    Some((true, rule)) => principals.push(rule),
                    Some((false, rule)) => permissions.push(rule),
                    None => {
                        let field = format!("spec.rules[{index}].when[{at}].key");
                        let why = format!(
                            "{:?} is not supported: the rule never allows, and denies as if the condition held",
                            when.key
                        );
                        self.problem(&label, field, why);
                        permissions.push(form.unknown());
                    }
                }
            }
            let all = |rules: Vec<Rule>| vec![if rules.is_empty() { Rule::Any } else { Rule::All(rules) }];
            Policy {
                name: format!("ns[{}]-policy[{}]-rule[{index}]", object.namespace(), object.name()).into(),
                permissions: all(permissions),
                principals: all(principals),
            }
        };
        object.spec.rules.iter().enumerate().map(one).collect()
    }
}

fn dry_run(policy: &Object<AuthorizationPolicy>) -> bool {
    policy.meta.annotations.get("istio.io/dry-run").is_some_and(|v| v == "true")
}

/// One of `values` and none of `not`, each made into a rule by `make`.
fn values(out: &mut Vec<Rule>, values: &[String], not: &[String], make: impl Fn(&str) -> Rule) {
    if !values.is_empty() {
        out.push(Rule::OneOf(values.iter().map(|v| make(v)).collect()));
    }
    if !not.is_empty() {
        out.push(Rule::Not(Box::new(Rule::OneOf(not.iter().map(|v| make(v)).collect()))));
    }
}

fn all(rules: Vec<Rule>) -> Rule {
    if rules.is_empty() { Rule::Any } else { Rule::All(rules) }
}

/// `*` is "not empty", `pre*` and `*suf` are what they look like, everything else is exact.
fn text(value: &str) -> StringMatch {
    match value {
        "*" => StringMatch::Regex(FullRegex::new(".+").expect("a constant pattern")),
        v if v.ends_with('*') => StringMatch::Prefix(v.trim_end_matches('*').into()),
        v if v.starts_with('*') => StringMatch::Suffix(v.trim_start_matches('*').into()),
        v => StringMatch::Exact(v.into()),
    }
}

fn principal(value: &str) -> Rule {
    Rule::Authenticated(match value {
        "*" => None,
        v if v.starts_with('*') => Some(StringMatch::Suffix(v.trim_start_matches('*').into())),
        v if v.ends_with('*') => {
            Some(StringMatch::Prefix(format!("spiffe://{}", v.trim_end_matches('*')).into()))
        }
        v => Some(StringMatch::Exact(format!("spiffe://{v}").into())),
    })
}

/// The namespace stands between `/ns/` and `/sa/` of an identity; neither part may hold a slash.
fn namespace(value: &str) -> Rule {
    let part = match value {
        "*" => return Rule::Authenticated(None),
        v if v.ends_with('*') => format!("/ns/{}", v.trim_end_matches('*')),
        v if v.starts_with('*') => format!("{}/sa/", v.trim_start_matches('*')),
        v => format!("/ns/{v}/sa/"),
    };
    Rule::Authenticated(Some(StringMatch::Contains(part.into())))
}

fn service_account(value: &str, home: &str) -> Rule {
    let (ns, account) = value.split_once('/').unwrap_or((home, value));
    Rule::Authenticated(Some(StringMatch::Suffix(format!("/ns/{ns}/sa/{account}").into())))
}

fn trust_domain(value: &str) -> Rule {
    match value {
        "*" => Rule::Authenticated(None),
        v if v.ends_with('*') => Rule::Authenticated(Some(StringMatch::Prefix(
            format!("spiffe://{}", v.trim_end_matches('*')).into(),
        ))),
        v if v.starts_with('*') => Rule::Authenticated(Some(StringMatch::Contains(
            format!("{}/ns/", v.trim_start_matches('*')).into(),
        ))),
        v => Rule::Authenticated(Some(StringMatch::Prefix(format!("spiffe://{v}/").into()))),
    }
}

fn block(value: &str, make: impl Fn(Cidr) -> Rule) -> Rule {
    Cidr::parse(value).map_or_else(|_| never(), make)
}

fn source(from: &AuthorizationSource, home: &str, form: Form) -> Rule {
    let mut out = Vec::new();
    values(&mut out, &from.principals, &from.not_principals, principal);
    values(&mut out, &from.namespaces, &from.not_namespaces, namespace);
    values(&mut out, &from.service_accounts, &from.not_service_accounts, |v| service_account(v, home));
    values(&mut out, &from.trust_domains, &from.not_trust_domains, trust_domain);
    values(&mut out, &from.ip_blocks, &from.not_ip_blocks, |v| block(v, Rule::DirectRemoteIp));
    values(&mut out, &from.remote_ip_blocks, &from.not_remote_ip_blocks, |v| block(v, Rule::RemoteIp));
    // No token is verified yet, so nothing can be said about who it speaks for.
    if !from.request_principals.is_empty() || !from.not_request_principals.is_empty() {
        out.push(form.unknown());
    }
    all(out)
}

fn header(name: &str, value: &str, ignore_case: bool) -> Rule {
    let value = HeaderValue::Text { matcher: text(value), ignore_case };
    Rule::Header(HeaderMatch {
        name: name.to_ascii_lowercase().into(),
        value,
        invert: false,
        missing_as_empty: false,
    })
}

fn path(value: &str) -> Rule {
    if !value.contains('{') {
        return Rule::Path { matcher: text(value), ignore_case: false };
    }
    let mut pattern = String::new();
    for part in value.split_inclusive('}') {
        match part.find('{') {
            Some(at) => {
                pattern.push_str(&regex::escape(&part[..at]));
                pattern.push_str(if &part[at..] == "{**}" { ".*" } else { "[^/]+" });
            }
            None => pattern.push_str(&regex::escape(part)),
        }
    }
    FullRegex::new(&pattern)
        .map_or_else(|_| never(), |p| Rule::Path { matcher: StringMatch::Regex(p), ignore_case: false })
}

fn operation(to: &Operation, form: Form) -> Rule {
    let mut out = Vec::new();
    // Clients may write the port after the host; what is compared is the host alone or with the port as written.
    values(&mut out, &to.hosts, &to.not_hosts, |v| {
        let exact = header(":authority", v, true);
        let with_port = (!v.contains([':', '*'])).then(|| header(":authority", &format!("{v}:*"), true));
        form.http(with_port.map_or(exact.clone(), |p| Rule::OneOf(vec![exact, p])))
    });
    values(&mut out, &to.methods, &to.not_methods, |v| form.http(header(":method", v, false)));
    values(&mut out, &to.paths, &to.not_paths, |v| form.http(path(v)));
    values(&mut out, &to.ports, &to.not_ports, |v| v.parse().map_or_else(|_| never(), Rule::DestinationPort));
    all(out)
}

/// A condition: whether it is about who asks, and the rule. `None` for a key that is not supported.
fn condition(when: &Condition, home: &str, form: Form) -> Option<(bool, Rule)> {
    let mut out = Vec::new();
    let (yes, no) = (&when.values, &when.not_values);
    if let Some(name) = when.key.strip_prefix("request.headers[").and_then(|k| k.strip_suffix(']')) {
        values(&mut out, yes, no, |v| form.http(header(name, v, false)));
        return Some((false, all(out)));
    }
    let about_client = match when.key.as_str() {
        "source.ip" => {
            values(&mut out, yes, no, |v| block(v, Rule::DirectRemoteIp));
            true
        }
        "remote.ip" => {
            values(&mut out, yes, no, |v| block(v, Rule::RemoteIp));
            true
        }
        "source.namespace" => {
            values(&mut out, yes, no, namespace);
            true
        }
        "source.principal" => {
            values(&mut out, yes, no, principal);
            true
        }
        "source.serviceAccount" => {
            values(&mut out, yes, no, |v| service_account(v, home));
            true
        }
        "source.trustDomain" => {
            values(&mut out, yes, no, trust_domain);
            true
        }
        "destination.ip" => {
            values(&mut out, yes, no, |v| block(v, Rule::DestinationIp));
            false
        }
        "destination.port" => {
            values(&mut out, yes, no, |v| v.parse().map_or_else(|_| never(), Rule::DestinationPort));
            false
        }
        "connection.sni" => {
            values(&mut out, yes, no, |v| Rule::ServerName(text(v)));
            false
        }
        _ => return None,
    };
    Some((about_client, all(out)))
}
