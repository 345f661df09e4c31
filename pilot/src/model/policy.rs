//! Which workloads must ask mixer before they let a request in.
//!
//! In: rules of `config.istio.io`. Out: yes or no per workload. Kept true: a rule counts only where it can apply (its
//! own namespace, or everywhere from the root namespace; labels that its match demands) and only if one of its
//! instances is of a checking template; in doubt mixer is asked. Not here: what the rules decide (`mixer`).

use super::Model;
use regex::Regex;
use serde_json::Value;
use std::{collections::BTreeMap, sync::LazyLock};

/// Templates whose instances are asked before a request, rather than told after it.
const CHECKING: [&str; 5] = ["checknothing", "listentry", "quota", "authorization", "apikey"];

/// The rule that makes a workload of `namespace` with `labels` ask, if any: the first by name.
pub fn checked(
    model: &Model,
    namespace: &str,
    labels: &BTreeMap<String, String>,
) -> Option<std::sync::Arc<str>> {
    if model.mesh().disable_policy_checks == Some(true) {
        return None;
    }
    let root = model.snapshot.root_namespace();
    let mut places = vec![root];
    if namespace != root {
        places.push(namespace);
    }
    let mut rules = places.into_iter().flat_map(|ns| model.snapshot.mixer.in_namespace(ns));
    let rule = rules.find(|r| {
        r.spec.kind == "rule" && asks(model, r.namespace(), &r.spec.spec) && can_match(&r.spec.spec, labels)
    })?;
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

/// False when the rule's match demands a label of the destination that the workload does not have.
fn can_match(rule: &Value, labels: &BTreeMap<String, String>) -> bool {
    static DEMAND: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r#"^\s*destination\.labels\["([^"\\]+)"\]\s*==\s*"([^"\\]*)"\s*$"#)
            .expect("a constant pattern")
    });
    let expression = rule.get("match").and_then(Value::as_str).unwrap_or_default();
    let mut demands = conjuncts(expression).into_iter().filter_map(|part| DEMAND.captures(part));
    demands.all(|d| labels.get(&d[1]).is_some_and(|value| *value == d[2]))
}

/// The parts of an expression that must all hold: split at `&&` outside brackets and literals. Nothing can be said of
/// an expression with `||` outside brackets: no parts.
fn conjuncts(expression: &str) -> Vec<&str> {
    let (mut parts, mut from, mut depth) = (Vec::new(), 0, 0_usize);
    let mut literal = None;
    let mut chars = expression.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let twice = chars.peek().is_some_and(|(_, next)| *next == c);
        match (literal, c) {
            (Some('"'), '\\') => drop(chars.next()),
            (Some(quote), _) if c == quote => literal = None,
            (Some(_), _) => {}
            (None, '"' | '`') => literal = Some(c),
            (None, '(' | '[') => depth += 1,
            (None, ')' | ']') => depth = depth.saturating_sub(1),
            (None, '|') if depth == 0 && twice => return Vec::new(),
            (None, '&') if depth == 0 && twice => {
                parts.push(&expression[from..at]);
                chars.next();
                from = at + 2;
            }
            (None, _) => {}
        }
    }
    parts.push(&expression[from..]);
    parts
}
