//! Rules → Envoy's RBAC messages.
//!
//! In: `crate::rbac`. Out: the HTTP and the network filter. Kept true: a policy that has no form in Envoy's messages fails closed: it is left out
//! when it would allow, and matches everything when it denies. Not here: judging (`crate::rbac`).

use xds::envoy::{
    config::{core::v3 as core, rbac::v3 as pb},
    extensions::filters::{http::rbac::v3 as http_pb, network::rbac::v3 as network_pb},
};

use super::{
    canonical::{Field, Maps, NONE},
    matchers, uint,
};
use crate::{
    listener::Cidr,
    matchers::StringMatch,
    rbac::{Effect, Policy, Rbac, Rule},
    route::PathMatch,
};

/// Maps of both filters: `policies`, in `rules` and in `shadow_rules`.
pub(super) static MAPS: Maps = Maps(&[(1, Field::Message(&RULES)), (2, Field::Message(&RULES))]);
static RULES: Maps = Maps(&[(2, Field::Map(&NONE))]);

/// The HTTP filter.
pub(super) fn http(from: &Rbac) -> http_pb::Rbac {
    let (rules, shadow_rules) = split(from);
    http_pb::Rbac { rules, shadow_rules, ..Default::default() }
}

/// The network filter.
pub(super) fn network(from: &Rbac) -> network_pb::Rbac {
    let (rules, shadow_rules) = split(from);
    network_pb::Rbac { rules, shadow_rules, stat_prefix: "tcp.".to_owned(), ..Default::default() }
}

fn split(from: &Rbac) -> (Option<pb::Rbac>, Option<pb::Rbac>) {
    let rules = Some(rules(from));
    if from.shadow { (None, rules) } else { (rules, None) }
}

fn rules(from: &Rbac) -> pb::Rbac {
    use pb::rbac::Action as A;
    let action = match from.action {
        Effect::Allow => A::Allow,
        Effect::Deny => A::Deny,
        Effect::Log => A::Log,
    };
    let policies = from.policies.iter().filter_map(|one| {
        let converted = policy(one).or_else(|| (from.action == Effect::Deny).then(everything))?;
        // A policy without permissions or principals never matches, and Envoy refuses it.
        let matches = !converted.permissions.is_empty() && !converted.principals.is_empty();
        matches.then(|| (one.name.to_string(), converted))
    });
    pb::Rbac { action: action.into(), policies: policies.collect(), ..Default::default() }
}

/// `None` when a rule has no form where it stands.
fn policy(from: &Policy) -> Option<pb::Policy> {
    Some(pb::Policy {
        permissions: from.permissions.iter().map(permission).collect::<Option<_>>()?,
        principals: from.principals.iter().map(principal).collect::<Option<_>>()?,
        ..Default::default()
    })
}

fn everything() -> pb::Policy {
    pb::Policy {
        permissions: vec![permission_of(pb::permission::Rule::Any(true))],
        principals: vec![principal_of(pb::principal::Identifier::Any(true))],
        ..Default::default()
    }
}

fn permission_of(rule: pb::permission::Rule) -> pb::Permission {
    pb::Permission { rule: Some(rule) }
}

fn principal_of(identifier: pb::principal::Identifier) -> pb::Principal {
    pb::Principal { identifier: Some(identifier) }
}

fn permission(from: &Rule) -> Option<pb::Permission> {
    use pb::permission::{Rule as R, Set};
    let all = |rules: &[Rule]| rules.iter().map(permission).collect::<Option<_>>();
    Some(permission_of(match from {
        // Envoy refuses empty sets: all of nothing holds, one of nothing does not.
        Rule::All(rules) if rules.is_empty() => R::Any(true),
        Rule::OneOf(rules) if rules.is_empty() => R::NotRule(Box::new(permission_of(R::Any(true)))),
        Rule::Any => R::Any(true),
        Rule::All(rules) => R::AndRules(Set { rules: all(rules)? }),
        Rule::OneOf(rules) => R::OrRules(Set { rules: all(rules)? }),
        Rule::Not(rule) => R::NotRule(Box::new(permission(rule)?)),
        Rule::Header(header) => R::Header(matchers::header(header)),
        Rule::Path { matcher, ignore_case } => {
            R::UrlPath(matchers::path(matchers::string(matcher, *ignore_case)))
        }
        Rule::UrlPath(path) => return permission(&url_path(path)),
        Rule::DestinationIp(block) => R::DestinationIp(cidr(*block)),
        Rule::DestinationPort(port) => R::DestinationPort(u32::from(*port)),
        Rule::ServerName(matcher) => R::RequestedServerName(matchers::plain(matcher)),
        Rule::DirectRemoteIp(_) | Rule::RemoteIp(_) | Rule::Authenticated(_) => return None,
    }))
}

fn principal(from: &Rule) -> Option<pb::Principal> {
    use pb::principal::{Authenticated, Identifier as I, Set};
    let all = |rules: &[Rule]| rules.iter().map(principal).collect::<Option<_>>();
    Some(principal_of(match from {
        Rule::All(rules) if rules.is_empty() => I::Any(true),
        Rule::OneOf(rules) if rules.is_empty() => I::NotId(Box::new(principal_of(I::Any(true)))),
        Rule::Any => I::Any(true),
        Rule::All(rules) => I::AndIds(Set { ids: all(rules)? }),
        Rule::OneOf(rules) => I::OrIds(Set { ids: all(rules)? }),
        Rule::Not(rule) => I::NotId(Box::new(principal(rule)?)),
        Rule::Header(header) => I::Header(matchers::header(header)),
        Rule::Path { matcher, ignore_case } => {
            I::UrlPath(matchers::path(matchers::string(matcher, *ignore_case)))
        }
        Rule::UrlPath(path) => return principal(&url_path(path)),
        Rule::DirectRemoteIp(block) => I::DirectRemoteIp(cidr(*block)),
        Rule::RemoteIp(block) => I::RemoteIp(cidr(*block)),
        Rule::Authenticated(name) => {
            I::Authenticated(Authenticated { principal_name: name.as_ref().map(matchers::plain) })
        }
        Rule::DestinationIp(_) | Rule::DestinationPort(_) | Rule::ServerName(_) => return None,
    }))
}

/// A route's path condition in RBAC's words.
fn url_path(from: &PathMatch) -> Rule {
    let path = |matcher| Rule::Path { matcher, ignore_case: false };
    match from {
        PathMatch::Prefix(prefix) => path(StringMatch::Prefix(prefix.clone())),
        PathMatch::Exact(exact) => path(StringMatch::Exact(exact.clone())),
        PathMatch::Regex(pattern) => path(StringMatch::Regex(pattern.clone())),
        PathMatch::Segments(prefix) => {
            let below = format!("{prefix}/").into();
            Rule::OneOf(vec![path(StringMatch::Exact(prefix.clone())), path(StringMatch::Prefix(below))])
        }
        PathMatch::Connect => Rule::OneOf(Vec::new()),
    }
}

pub(super) fn cidr(from: Cidr) -> core::CidrRange {
    core::CidrRange { address_prefix: from.address.to_string(), prefix_len: uint(u32::from(from.length)) }
}
