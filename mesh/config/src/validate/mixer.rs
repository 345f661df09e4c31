//! Checks of one object of `config.istio.io`, as far as its shape is common to all adapters.
//!
//! In: [`MixerObject`]. Out: findings. Kept true: a rule that can never do anything is refused.
//! Not here: expressions, adapter settings (`mixer`), references (`set`).

use super::{Findings, nth};
use crate::kinds::MixerObject;
use serde_json::Value;

pub(super) fn check(object: &MixerObject, f: &mut Findings<'_>) {
    let text = |key: &str| object.spec.get(key).and_then(Value::as_str).filter(|s| !s.is_empty());
    match object.kind.as_str() {
        "rule" => rule(&object.spec, f),
        "handler" if text("compiledAdapter").is_none() && text("adapter").is_none() => {
            f.error("spec.compiledAdapter", "is missing: name the adapter, e.g. prometheus");
        }
        "instance" if text("compiledTemplate").is_none() && text("template").is_none() => {
            f.error("spec.compiledTemplate", "is missing: name the template, e.g. metric");
        }
        "attributemanifest" if !object.spec.get("attributes").is_some_and(Value::is_object) => {
            f.error("spec.attributes", "is missing: map attribute names to {valueType: …}");
        }
        _ => {}
    }
}

fn rule(spec: &Value, f: &mut Findings<'_>) {
    if spec.get("match").is_some_and(|m| !m.is_string()) {
        f.error("spec.match", "wrong type: expected an expression in text");
    }
    let operations =
        ["requestHeaderOperations", "responseHeaderOperations"].iter().any(|k| spec.get(k).is_some());
    let Some(actions) = spec.get("actions") else {
        if !operations {
            f.error("spec.actions", "is missing: name a handler and its instances");
        }
        return;
    };
    let Some(actions) = actions.as_array() else {
        return f.error("spec.actions", "wrong type: expected a list: start its items with a dash");
    };
    for (i, action) in actions.iter().enumerate() {
        let at = nth("spec.actions", i);
        if action.get("handler").and_then(Value::as_str).is_none_or(str::is_empty) {
            f.error(format!("{at}.handler"), "is missing: write e.g. deny.denier");
        }
        let instances = action.get("instances").and_then(Value::as_array);
        if instances.is_none_or(|list| list.is_empty() || !list.iter().all(Value::is_string)) {
            f.error(format!("{at}.instances"), "names no instances: write e.g. [nothing.checknothing]");
        }
    }
}
