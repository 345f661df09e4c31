//! Envoy's RBAC messages → `crate::rbac`.
//!
//! In: `envoy.config.rbac.v3` and the two filters that hold it. Out: rules. Kept true: whatever is not understood refuses the resource.
//! Not here: judging (`crate::rbac`).

use xds::envoy::{
    config::{core::v3 as core, rbac::v3 as pb},
    extensions::filters::{http::rbac::v3 as http_pb, network::rbac::v3 as network_pb},
};

use super::{Decoded, Reject, each, matchers, port, refuse};
use crate::{
    listener::Cidr,
    rbac::{Effect, Policy, Rbac, Rule},
};

/// The HTTP filter; `None` when it has no rules and lets everything pass.
pub(super) fn http(wire: http_pb::Rbac) -> Decoded<Option<Rbac>> {
    refuse!(wire, matcher, shadow_matcher);
    match (wire.rules, wire.shadow_rules) {
        (Some(rules), None) => rules_of(rules, false).map(Some).map_err(|e| e.at("rules")),
        (None, Some(rules)) => rules_of(rules, true).map(Some).map_err(|e| e.at("shadow_rules")),
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(Reject::new("not supported beside rules").at("shadow_rules")),
    }
}

/// The network filter.
pub(super) fn network(wire: network_pb::Rbac) -> Decoded<Option<Rbac>> {
    refuse!(wire, matcher, shadow_matcher, enforcement_type);
    match (wire.rules, wire.shadow_rules) {
        (Some(rules), None) => rules_of(rules, false).map(Some).map_err(|e| e.at("rules")),
        (None, Some(rules)) => rules_of(rules, true).map(Some).map_err(|e| e.at("shadow_rules")),
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(Reject::new("not supported beside rules").at("shadow_rules")),
    }
}

fn rules_of(wire: pb::Rbac, shadow: bool) -> Decoded<Rbac> {
    let action = match wire.action {
        0 => Effect::Allow,
        1 => Effect::Deny,
        2 => Effect::Log,
        other => return Err(Reject::new(format!("unknown value {other}")).at("action")),
    };
    let mut policies: Vec<_> = wire.policies.into_iter().collect();
    policies.sort_by(|a, b| a.0.cmp(&b.0));
    let policies = policies.into_iter().map(|(name, wire)| {
        let at = format!("policies[{name:?}]");
        policy(name, wire).map_err(|e| e.at(at))
    });
    Ok(Rbac { action, policies: policies.collect::<Decoded<_>>()?, shadow })
}

fn policy(name: String, wire: pb::Policy) -> Decoded<Policy> {
    refuse!(wire, condition, checked_condition, cel_config);
    Ok(Policy {
        name: name.into(),
        permissions: each(wire.permissions, "permissions", permission)?,
        principals: each(wire.principals, "principals", principal)?,
    })
}

#[allow(deprecated, reason = "metadata is deprecated, and only looked at to refuse it")]
fn permission(wire: pb::Permission) -> Decoded<Rule> {
    use pb::permission::Rule as R;
    Ok(match wire.rule.ok_or_else(|| Reject::new("no rule"))? {
        R::Any(true) => Rule::Any,
        R::Any(false) => return Err(Reject::new("must be true").at("any")),
        R::AndRules(set) => Rule::All(each(set.rules, "and_rules.rules", permission)?),
        R::OrRules(set) => Rule::OneOf(each(set.rules, "or_rules.rules", permission)?),
        R::NotRule(inner) => Rule::Not(Box::new(permission(*inner).map_err(|e| e.at("not_rule"))?)),
        R::Header(wire) => Rule::Header(matchers::header(&wire).map_err(|e| e.at("header"))?),
        R::UrlPath(wire) => {
            let (matcher, ignore_case) = matchers::path(&wire).map_err(|e| e.at("url_path"))?;
            Rule::Path { matcher, ignore_case }
        }
        R::DestinationIp(wire) => Rule::DestinationIp(cidr(&wire)?),
        R::DestinationPort(number) => Rule::DestinationPort(port(number, "destination_port")?),
        R::RequestedServerName(wire) => {
            Rule::ServerName(matchers::plain(&wire).map_err(|e| e.at("requested_server_name"))?)
        }
        R::Metadata(wire) => return Err(matchers::no_metadata(&wire).at("metadata")),
        _ => return Err(Reject::new("this kind of permission is not supported").at("rule")),
    })
}

#[allow(deprecated, reason = "source_ip is deprecated, and only looked at to treat it as its successor")]
fn principal(wire: pb::Principal) -> Decoded<Rule> {
    use pb::principal::Identifier as I;
    Ok(match wire.identifier.ok_or_else(|| Reject::new("no identifier"))? {
        I::Any(true) => Rule::Any,
        I::Any(false) => return Err(Reject::new("must be true").at("any")),
        I::AndIds(set) => Rule::All(each(set.ids, "and_ids.ids", principal)?),
        I::OrIds(set) => Rule::OneOf(each(set.ids, "or_ids.ids", principal)?),
        I::NotId(inner) => Rule::Not(Box::new(principal(*inner).map_err(|e| e.at("not_id"))?)),
        I::Authenticated(wire) => {
            let name = wire.principal_name.as_ref().map(matchers::plain).transpose();
            Rule::Authenticated(name.map_err(|e| e.at("authenticated.principal_name"))?)
        }
        I::DirectRemoteIp(wire) | I::SourceIp(wire) => Rule::DirectRemoteIp(cidr(&wire)?),
        I::RemoteIp(wire) => Rule::RemoteIp(cidr(&wire)?),
        I::Header(wire) => Rule::Header(matchers::header(&wire).map_err(|e| e.at("header"))?),
        I::UrlPath(wire) => {
            let (matcher, ignore_case) = matchers::path(&wire).map_err(|e| e.at("url_path"))?;
            Rule::Path { matcher, ignore_case }
        }
        I::Metadata(wire) => return Err(matchers::no_metadata(&wire).at("metadata")),
        _ => return Err(Reject::new("this kind of principal is not supported").at("identifier")),
    })
}

pub(super) fn cidr(wire: &core::CidrRange) -> Decoded<Cidr> {
    let length = wire.prefix_len.map_or(0, |l| l.value);
    Cidr::parse(&format!("{}/{length}", wire.address_prefix)).map_err(Reject::new)
}
