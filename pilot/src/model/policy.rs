//! Which workloads must ask mixer before they let a request in.
//!
//! In: rules of `config.istio.io`. Out: yes or no per namespace. Kept true: a rule counts only where it can apply (its
//! own namespace, or everywhere from the root namespace) and only if one of its instances is of a checking template.
//! Not here: what the rules decide (`mixer`).

use super::Model;
use serde_json::Value;

/// Templates whose instances are asked before a request, rather than told after it.
const CHECKING: [&str; 5] = ["checknothing", "listentry", "quota", "authorization", "apikey"];

/// The rule that makes workloads in `namespace` ask, if any: the first by name.
pub fn checked(model: &Model, namespace: &str) -> Option<std::sync::Arc<str>> {
    if model.mesh().disable_policy_checks == Some(true) {
        return None;
    }
    let root = model.snapshot.root_namespace();
    let mut places = vec![root];
    if namespace != root {
        places.push(namespace);
    }
    let mut rules = places.into_iter().flat_map(|ns| model.snapshot.mixer.in_namespace(ns));
    let rule = rules.find(|r| r.spec.kind == "rule" && asks(model, r.namespace(), &r.spec.spec))?;
    Some(super::label_of(rule))
}

fn asks(model: &Model, namespace: &str, rule: &Value) -> bool {
    let actions = rule.get("actions").and_then(Value::as_array).into_iter().flatten();
    let instances = actions.filter_map(|a| a.get("instances").and_then(Value::as_array)).flatten();
    instances.filter_map(Value::as_str).any(|instance| checking(model, namespace, instance))
}

/// `name.template[.namespace]` in the old form, else the name of an `instance` object with a compiled template.
fn checking(model: &Model, namespace: &str, reference: &str) -> bool {
    let mut parts = reference.split('.');
    let (name, second) = (parts.next().unwrap_or_default(), parts.next());
    if second.is_some_and(|template| CHECKING.contains(&template)) {
        return true;
    }
    let home = match second {
        Some("instance") => parts.next().unwrap_or(namespace),
        Some(other) => other,
        None => namespace,
    };
    let instance = model.snapshot.mixer.get(home, &format!("{name}.instance"));
    let template = instance.and_then(|i| i.spec.spec.get("compiledTemplate")).and_then(Value::as_str);
    template.is_some_and(|t| CHECKING.contains(&t.to_ascii_lowercase().as_str()))
}
