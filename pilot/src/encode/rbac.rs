//! Access rules.
//!
//! In: the model's rules. Out: Envoy's RBAC messages. Kept true: a rule that Envoy has no form for on that side becomes one
//! that never holds. Not here: the filters around them (`filter`, `listener`).

use super::{matchers, number};
use mesh_traffic::{
    listener::Cidr,
    matchers::StringMatch,
    rbac::{Effect, Rbac, Rule},
    route::PathMatch,
};
use xds::envoy::config::{core::v3 as core, rbac::v3 as pb};

pub(super) fn rules(from: &Rbac) -> pb::Rbac {
    let action = match from.action {
        Effect::Allow => pb::rbac::Action::Allow,
        Effect::Deny => pb::rbac::Action::Deny,
        Effect::Log => pb::rbac::Action::Log,
    };
    let policies = from.policies.iter().map(|policy| {
        let wire = pb::Policy {
            permissions: policy.permissions.iter().map(permission).collect(),
            principals: policy.principals.iter().map(principal).collect(),
            ..Default::default()
        };
        (policy.name.to_string(), wire)
    });
    pb::Rbac { action: action.into(), policies: policies.collect(), audit_logging_options: None }
}

pub(super) fn cidr(from: &Cidr) -> core::CidrRange {
    core::CidrRange { address_prefix: from.address.to_string(), prefix_len: Some(number(u32::from(from.length))) }
}

/// A path condition as a text condition.
fn path_text(path: &PathMatch) -> Option<StringMatch> {
    match path {
        PathMatch::Prefix(p) => Some(StringMatch::Prefix(p.clone())),
        PathMatch::Exact(p) => Some(StringMatch::Exact(p.clone())),
        PathMatch::Regex(r) => Some(StringMatch::Regex(r.clone())),
        PathMatch::Segments(_) | PathMatch::Connect => None,
    }
}

fn permission(from: &Rule) -> pb::Permission {
    use pb::permission::{Rule as R, Set};
    let set = |rules: &[Rule]| Set { rules: rules.iter().map(permission).collect() };
    let never = || R::NotRule(Box::new(pb::Permission { rule: Some(R::Any(true)) }));
    let rule = match from {
        Rule::Any => R::Any(true),
        Rule::All(all) => R::AndRules(set(all)),
        Rule::OneOf(some) => R::OrRules(set(some)),
        Rule::Not(inner) => R::NotRule(Box::new(permission(inner))),
        Rule::Header(one) => R::Header(matchers::header(one)),
        Rule::Path { matcher, ignore_case } => R::UrlPath(matchers::path(matcher, *ignore_case)),
        Rule::UrlPath(path) => path_text(path).map_or_else(never, |m| R::UrlPath(matchers::path(&m, false))),
        Rule::DestinationIp(block) => R::DestinationIp(cidr(block)),
        Rule::DestinationPort(port) => R::DestinationPort(u32::from(*port)),
        Rule::ServerName(name) => R::RequestedServerName(matchers::string(name, false)),
        Rule::DirectRemoteIp(_) | Rule::RemoteIp(_) | Rule::Authenticated(_) => never(),
    };
    pb::Permission { rule: Some(rule) }
}

fn principal(from: &Rule) -> pb::Principal {
    use pb::principal::{Authenticated, Identifier as I, Set};
    let set = |rules: &[Rule]| Set { ids: rules.iter().map(principal).collect() };
    let never = || I::NotId(Box::new(pb::Principal { identifier: Some(I::Any(true)) }));
    let identifier = match from {
        Rule::Any => I::Any(true),
        Rule::All(all) => I::AndIds(set(all)),
        Rule::OneOf(some) => I::OrIds(set(some)),
        Rule::Not(inner) => I::NotId(Box::new(principal(inner))),
        Rule::Header(one) => I::Header(matchers::header(one)),
        Rule::Path { matcher, ignore_case } => I::UrlPath(matchers::path(matcher, *ignore_case)),
        Rule::UrlPath(path) => path_text(path).map_or_else(never, |m| I::UrlPath(matchers::path(&m, false))),
        Rule::DirectRemoteIp(block) => I::DirectRemoteIp(cidr(block)),
        Rule::RemoteIp(block) => I::RemoteIp(cidr(block)),
        Rule::Authenticated(name) => {
            I::Authenticated(Authenticated { principal_name: name.as_ref().map(|n| matchers::string(n, false)) })
        }
        Rule::DestinationIp(_) | Rule::DestinationPort(_) | Rule::ServerName(_) => never(),
    };
    pb::Principal { identifier: Some(identifier) }
}
