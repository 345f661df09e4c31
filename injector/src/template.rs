//! Templates: what injection adds, as data with placeholders that are filled structurally, never as text of YAML.
//!
//! In: a YAML file of named templates, and values. Out: one filled template. Kept true: an unknown placeholder is an error when the
//! file is read, not when a pod needs it. Not here: how a filled template meets a pod (`pod`).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// The templates that Crema ships.
pub const BUILT_IN: &str = include_str!("../templates/crema.yaml");

/// Names that a template may use.
pub const NAMES: [&str; 36] = [
    "appProbers",
    "caAddr",
    "canonicalName",
    "canonicalRevision",
    "capture",
    "clusterId",
    "defaultContainer",
    "excludeInboundPorts",
    "excludeInterfaces",
    "excludeOutboundIPRanges",
    "excludeOutboundPorts",
    "extraEnv",
    "health",
    "healthPort",
    "hold",
    "image",
    "imagePullPolicy",
    "includeInboundPorts",
    "includeOutboundIPRanges",
    "includeOutboundPorts",
    "interceptionMode",
    "kubevirtInterfaces",
    "logLevel",
    "namespace",
    "native",
    "owner",
    "proxyConfig",
    "readinessFailureThreshold",
    "readinessInitialDelaySeconds",
    "readinessPeriodSeconds",
    "resources",
    "revision",
    "statusPort",
    "telemetryAddr",
    "trustDomain",
    "workloadName",
];

/// Values by name. One that is missing or null is absent.
pub type Values = Map<String, Value>;

/// Named templates.
#[derive(Debug, Clone, PartialEq)]
pub struct Templates(BTreeMap<String, Value>);

impl Templates {
    /// Reads a file of templates.
    ///
    /// # Errors
    /// When it is not a map of maps, or uses a placeholder that is not one of [`NAMES`].
    pub fn read(text: &str) -> Result<Self, String> {
        let Value::Object(map) = crate::yaml::read(text)? else {
            return Err("a template file maps names to templates".to_owned());
        };
        for (name, template) in &map {
            if !template.is_object() {
                return Err(format!("template {name} is not a map"));
            }
            check(template).map_err(|why| format!("template {name}: {why}"))?;
        }
        Ok(Self(map.into_iter().collect()))
    }

    /// Fills the template `name`; `None` when there is no such template.
    #[must_use]
    pub fn fill(&self, name: &str, values: &Values) -> Option<Value> {
        let filled = fill(self.0.get(name)?, values);
        Some(filled.unwrap_or_else(|| Value::Object(Map::new())))
    }

    /// The names of all templates.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl Default for Templates {
    fn default() -> Self {
        Self::read(BUILT_IN).expect("a test reads the built-in templates")
    }
}

fn check(template: &Value) -> Result<(), String> {
    let known = |name: &str| match NAMES.contains(&name) {
        true => Ok(()),
        false => Err(format!("no value is called {name:?}; known: {}", NAMES.join(", "))),
    };
    match template {
        Value::String(text) => names_in(text).try_for_each(known),
        Value::Array(list) => list.iter().try_for_each(check),
        Value::Object(map) => map.iter().try_for_each(|(key, value)| match (key.as_str(), value) {
            ("$when", Value::String(name)) => known(name.trim_start_matches('!')),
            ("$when", _) => Err("$when takes a name".to_owned()),
            _ => check(value),
        }),
        _ => Ok(()),
    }
}

fn names_in(text: &str) -> impl Iterator<Item = &str> {
    text.split("${").skip(1).filter_map(|rest| rest.split_once('}')).map(|(name, _)| name)
}

fn fill(template: &Value, values: &Values) -> Option<Value> {
    match template {
        Value::String(text) => text_filled(text, values),
        Value::Array(list) => {
            let spliced = |item: &Value| match (item, fill(item, values)) {
                (Value::String(_), Some(Value::Array(items))) => items,
                (_, filled) => Vec::from_iter(filled),
            };
            Some(Value::Array(list.iter().flat_map(spliced).collect()))
        }
        Value::Object(map) => {
            if map.get("$when").and_then(Value::as_str).is_some_and(|name| !holds(name, values)) {
                return None;
            }
            let entries = map.iter().filter(|(key, _)| *key != "$when");
            Some(Value::Object(entries.filter_map(|(k, v)| Some((k.clone(), fill(v, values)?))).collect()))
        }
        other => Some(other.clone()),
    }
}

fn holds(name: &str, values: &Values) -> bool {
    let (name, want) = match name.strip_prefix('!') {
        Some(name) => (name, false),
        None => (name, true),
    };
    let is = !matches!(values.get(name), None | Some(Value::Null | Value::Bool(false)));
    is == want
}

fn text_filled(text: &str, values: &Values) -> Option<Value> {
    let whole = text.strip_prefix("${").and_then(|t| t.strip_suffix('}')).filter(|name| !name.contains('}'));
    if let Some(name) = whole {
        return values.get(name).filter(|v| !v.is_null()).cloned();
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        out.push_str(before);
        let (name, tail) = after.split_once('}')?;
        match values.get(name)? {
            Value::String(value) => out.push_str(value),
            other => out.push_str(&other.to_string()),
        }
        rest = tail;
    }
    out.push_str(rest);
    Some(Value::String(out))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_built_in_templates_are_sidecar_and_gateway() {
        assert_eq!(Templates::default().names().collect::<Vec<_>>(), ["gateway", "sidecar"]);
    }

    #[test]
    fn placeholders_are_filled_by_structure() {
        let text = "t:\n  whole: ${resources}\n  number: ${statusPort}\n  part: x-${image}-${statusPort}\n  gone: ${owner}\n  \
                    list: [a, '${extraEnv}', {$when: capture, n: 1}, {$when: '!capture', n: 2}, '${owner}']\n";
        let values = json!({
            "resources": { "a: b": "- c" }, "statusPort": 15021, "image": "i: \"j\"", "extraEnv": ["b", "c"], "capture": false,
        });
        let Value::Object(values) = values else { unreachable!("written above") };
        let got = Templates::read(text).expect("templates").fill("t", &values);
        let want = json!({
            "whole": { "a: b": "- c" }, "number": 15021, "part": "x-i: \"j\"-15021", "list": ["a", "b", "c", { "n": 2 }],
        });
        assert_eq!(got, Some(want));
    }

    #[test]
    fn an_unknown_placeholder_is_found_when_the_file_is_read() {
        for text in ["t: {a: '${imge}'}", "t: {a: [{$when: captur, b: 1}]}", "t: {a: 'x ${imge} y'}"] {
            let why = Templates::read(text).expect_err(text);
            assert!(why.contains("template t: no value is called"), "{why}");
        }
        assert!(Templates::read("- a").is_err() && Templates::read("t: 1").is_err());
    }
}
