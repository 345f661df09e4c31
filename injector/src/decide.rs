//! Whether a pod is injected, and the reason when it is not.
//!
//! In: a pod, its namespace, settings. Out: [`Decision`]. Kept true: Istio's order — host network, ignored namespace, label before
//! annotation, never-selectors, always-selectors, policy. Not here: what is injected (`pod`).

use serde_json::{Map, Value};

use crate::settings::{Policy, Settings};

/// Name of the label and of the annotation by which a pod asks.
pub const INJECT: &str = "sidecar.istio.io/inject";

/// What is done with a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The proxy is added.
    Inject,
    /// It is not; the text says why.
    Skip(String),
}

/// Decides over a pod (`metadata` and `spec`) that will live in `namespace`.
#[must_use]
pub fn decide(pod: &Value, namespace: &str, settings: &Settings) -> Decision {
    let skip = |why: String| Decision::Skip(why);
    if pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)) {
        return skip("it uses the host's network".into());
    }
    if settings.ignored_namespaces.iter().any(|n| n == namespace) {
        return skip(format!("namespace {namespace} is ignored"));
    }
    let nothing = Map::new();
    let map = |path: &str| pod.pointer(path).and_then(Value::as_object).unwrap_or(&nothing);
    let (labels, annotations) = (map("/metadata/labels"), map("/metadata/annotations"));
    let (what, asked) = match (labels.get(INJECT), annotations.get(INJECT)) {
        (Some(value), _) => ("label", value),
        (None, Some(value)) => ("annotation", value),
        (None, None) => ("", &Value::Null),
    };
    let asked = match asked {
        Value::String(text) => text.to_ascii_lowercase(),
        Value::Bool(b) => b.to_string(),
        _ => String::new(),
    };
    match asked.as_str() {
        "y" | "yes" | "true" | "on" => return Decision::Inject,
        "" => {}
        other => return skip(format!("its {what} {INJECT} says {other:?}")),
    }
    if settings.never_inject_selector.iter().any(|s| s.matches(labels)) {
        return skip("neverInjectSelector matches it".into());
    }
    if settings.always_inject_selector.iter().any(|s| s.matches(labels)) {
        return Decision::Inject;
    }
    match settings.policy {
        Policy::Enabled => Decision::Inject,
        Policy::Disabled => skip("the policy is disabled and nothing asks for it".into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn decisions_follow_istios_order() {
        let enabled = Settings::read(
            "{neverInjectSelector: [{matchLabels: {never: x}}], alwaysInjectSelector: [{matchLabels: {always: x}}]}",
        )
        .expect("settings");
        let disabled = Settings { policy: Policy::Disabled, ..enabled.clone() };
        let pod = |labels: Value, annotations: Value, host: bool| json!({ "metadata": { "labels": labels, "annotations": annotations }, "spec": { "hostNetwork": host } });
        let ask = |value: &str| json!({ INJECT: value });
        let cases = [
            ("nothing said", pod(json!({}), json!({}), false), "default", true, false),
            ("host network beats a label", pod(ask("true"), json!({}), true), "default", false, false),
            (
                "ignored namespace beats a label",
                pod(ask("true"), json!({}), false),
                "kube-system",
                false,
                false,
            ),
            ("label true", pod(ask("true"), json!({}), false), "default", true, true),
            ("label beats annotation", pod(ask("false"), ask("true"), false), "default", false, false),
            (
                "label beats annotation, other way",
                pod(ask("true"), ask("false"), false),
                "default",
                true,
                true,
            ),
            ("annotation yes", pod(json!({}), ask("Yes"), false), "default", true, true),
            ("annotation off", pod(json!({}), ask("off"), false), "default", false, false),
            ("anything else is no", pod(json!({}), ask("maybe"), false), "default", false, false),
            ("empty is nothing", pod(json!({}), ask(""), false), "default", true, false),
            ("never", pod(json!({ "never": "x" }), json!({}), false), "default", false, false),
            (
                "asked for beats never",
                pod(json!({ "never": "x", INJECT: "true" }), json!({}), false),
                "default",
                true,
                true,
            ),
            ("always", pod(json!({ "always": "x" }), json!({}), false), "default", true, true),
            (
                "never beats always",
                pod(json!({ "always": "x", "never": "x" }), json!({}), false),
                "default",
                false,
                false,
            ),
        ];
        for (what, pod, namespace, by_default, by_request) in cases {
            for (settings, want) in [(&enabled, by_default), (&disabled, by_request)] {
                let got = decide(&pod, namespace, settings);
                assert_eq!(got == Decision::Inject, want, "{what}, {:?}: {got:?}", settings.policy);
            }
        }
    }
}
