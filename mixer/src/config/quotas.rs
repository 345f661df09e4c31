//! Which quotas a request is charged: `QuotaSpec` and `QuotaSpecBinding`.
//!
//! In: those objects. Out: quota names and charges for a bag.
//! Kept true: a service that no binding names is charged nothing. Not here: how quotas are counted (`memquota`).

use mesh_config::{Object, kinds::MixerObject};
use regex::Regex;

use super::{Fields, Problems};
use crate::attributes::{Bag, Builtin, Value};

enum Pattern {
    Exact(String),
    Prefix(String),
    Regex(Regex),
}

struct SpecRule {
    /// Alternatives of attribute patterns; none is always.
    matches: Vec<Vec<(String, Pattern)>>,
    charges: Vec<(String, i64)>,
}

struct Binding {
    /// FQDNs, or `*`.
    services: Vec<String>,
    rules: Vec<SpecRule>,
}

/// All bindings.
#[derive(Default)]
pub struct Quotas(Vec<Binding>);

impl std::fmt::Debug for Quotas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Quotas({})", self.0.len())
    }
}

impl Quotas {
    /// Reads one binding; `spec` finds a `QuotaSpec` by namespace and name.
    pub(super) fn bind<'a>(
        &mut self,
        object: &Object<MixerObject>,
        spec: impl Fn(&str, &str) -> Option<&'a Object<MixerObject>>,
        problems: &Problems,
    ) {
        let fields = Fields::new(&object.spec.spec, "spec", problems);
        let mut services = Vec::new();
        for service in fields.objects("services") {
            let namespace = service.text("namespace").unwrap_or(object.namespace());
            let domain = service.text("domain").unwrap_or("svc.cluster.local");
            match (service.text("service"), service.text("name")) {
                (Some(full), _) => services.push(full.to_owned()),
                (None, Some(name)) => services.push(format!("{name}.{namespace}.{domain}")),
                (None, None) => {
                    problems.error(service.at("name"), "is missing; name a service, or give service: '*'");
                }
            }
        }
        let mut rules = Vec::new();
        for named in fields.objects("quota_specs") {
            let namespace = named.text("namespace").unwrap_or(object.namespace());
            let name = named.text("name").unwrap_or_default();
            match spec(namespace, name) {
                Some(found) => rules.extend(read(&Fields::new(&found.spec.spec, "spec", problems))),
                None => problems.error(named.at("name"), format!("no QuotaSpec {namespace}/{name}")),
            }
        }
        self.0.push(Binding { services, rules });
    }

    /// What a request is charged.
    #[must_use]
    pub fn charges(&self, bag: &Bag) -> Vec<(String, i64)> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let host = bag.text(Builtin::DestinationServiceHost).map_or("", |host| host);
        let bound =
            self.0.iter().filter(|binding| binding.services.iter().any(|name| name == "*" || name == host));
        let rules = bound.flat_map(|binding| &binding.rules);
        let fits = |(name, pattern): &(String, Pattern)| {
            let value = match name.split_once('[') {
                Some((map, key)) => match bag.vocabulary().id(map).and_then(|id| bag.get(id)) {
                    Some(Value::StringMap(map)) => {
                        map.get(key.trim_end_matches(']')).map(ToString::to_string)
                    }
                    _ => None,
                },
                None => bag.vocabulary().id(name).and_then(|id| bag.get(id)).map(ToString::to_string),
            };
            value.is_some_and(|value| match pattern {
                Pattern::Exact(text) => value == *text,
                Pattern::Prefix(text) => value.starts_with(text.as_str()),
                Pattern::Regex(regex) => regex.is_match(&value),
            })
        };
        let applies =
            |rule: &&SpecRule| rule.matches.is_empty() || rule.matches.iter().any(|all| all.iter().all(fits));
        rules.filter(applies).flat_map(|rule| rule.charges.clone()).collect()
    }
}

fn read(spec: &Fields<'_>) -> Vec<SpecRule> {
    let mut out = Vec::new();
    for rule in spec.objects("rules") {
        let mut matches = Vec::new();
        for clause in rule.objects("match") {
            let mut all = Vec::new();
            for (name, json, at) in clause.entries("clause") {
                let pattern = Fields::new(json, at, spec.problems());
                let read = if let Some(text) = pattern.text("exact") {
                    Some(Pattern::Exact(text.to_owned()))
                } else if let Some(text) = pattern.text("prefix") {
                    Some(Pattern::Prefix(text.to_owned()))
                } else {
                    pattern
                        .text("regex")
                        .and_then(|text| Regex::new(&format!("^(?:{text})$")).ok())
                        .map(Pattern::Regex)
                };
                match read {
                    Some(read) => all.push((name.to_owned(), read)),
                    None => spec.problems().error(pattern.at("exact"), "give exact, prefix or a valid regex"),
                }
            }
            matches.push(all);
        }
        let mut charges = Vec::new();
        for quota in rule.objects("quotas") {
            let amount = quota.int("charge").unwrap_or(1);
            match quota.text("quota") {
                Some(name) => charges.push((name.to_owned(), amount)),
                None => spec.problems().error(quota.at("quota"), "is missing; name a quota instance"),
            }
        }
        out.push(SpecRule { matches, charges });
    }
    out
}
