//! From the schema of a struct to the structural form Kubernetes takes.
//!
//! In: a JSON schema with definitions, as derived. Out: one tree without references, nulls or defaults.
//! Kept true: every level has a type or is open; every row of `rules` about a type lands where the type is used.
//! Not here: the rows themselves (`rules`), which kinds there are (`table`).

use super::rules::{Rule, rules_of};
use serde_json::{Map, Value, json};

/// How a schema is written down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// Whether descriptions are kept.
    pub described: bool,
    /// Whether fields nobody knows are kept at every level, as legacy kinds need.
    pub open: bool,
}

/// The structural schema of a struct's derived one.
pub(super) fn structural(schema: &schemars::Schema, style: Style) -> Value {
    let root = schema.as_value();
    let none = Map::new();
    let defs = root.get("$defs").and_then(Value::as_object).unwrap_or(&none);
    let name = root.get("title").and_then(Value::as_str).unwrap_or_default();
    let mut out = Writer { defs, style }.node(root);
    decorate(&mut out, name);
    out
}

struct Writer<'a> {
    defs: &'a Map<String, Value>,
    style: Style,
}

impl Writer<'_> {
    fn node(&self, node: &Value) -> Value {
        let Some(map) = node.as_object() else {
            // `true`: anything goes.
            return json!({ "x-kubernetes-preserve-unknown-fields": true });
        };
        if let Some(name) = map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix("#/$defs/")) {
            let mut out = self.defs.get(name).map_or(json!({}), |def| self.node(def));
            decorate(&mut out, name);
            self.describe(&mut out, map);
            return out;
        }
        if let Some(inner) = not_null(map) {
            let mut out = self.node(inner);
            self.describe(&mut out, map);
            return out;
        }
        let mut out = self.plain(map);
        self.describe(&mut out, map);
        out
    }

    fn plain(&self, map: &Map<String, Value>) -> Value {
        if let Some((values, words)) = choices(map) {
            let mut out = json!({ "type": "string", "enum": values });
            if self.style.described && !words.is_empty() {
                out["description"] = json!(words);
            }
            return out;
        }
        let kind = match map.get("type") {
            Some(Value::String(one)) => one.as_str(),
            Some(Value::Array(many)) => {
                many.iter().filter_map(Value::as_str).find(|t| *t != "null").unwrap_or("object")
            }
            _ => return json!({ "x-kubernetes-preserve-unknown-fields": true }),
        };
        let mut out = json!({ "type": kind });
        match kind {
            "object" => self.object(map, &mut out),
            "array" => out["items"] = map.get("items").map_or(json!({ "type": "string" }), |i| self.node(i)),
            "integer" => integer(map, &mut out),
            "number" => out["format"] = json!("double"),
            _ => {}
        }
        out
    }

    fn object(&self, map: &Map<String, Value>, out: &mut Value) {
        if let Some(properties) = map.get("properties").and_then(Value::as_object) {
            let fields = properties.iter().map(|(name, field)| (name.clone(), self.node(field)));
            out["properties"] = Value::Object(fields.collect());
            if self.style.open {
                out["x-kubernetes-preserve-unknown-fields"] = json!(true);
            }
        }
        // Keys that are numbers come as a pattern of keys, which Kubernetes does not take.
        let by_pattern =
            map.get("patternProperties").and_then(Value::as_object).and_then(|p| p.values().next());
        let values = by_pattern.or_else(|| map.get("additionalProperties").filter(|v| **v != json!(false)));
        if let Some(values) = values {
            out["additionalProperties"] = self.node(values);
        }
    }

    /// Words at the place of use beat those of the type.
    fn describe(&self, out: &mut Value, map: &Map<String, Value>) {
        let Some(words) = map.get("description").and_then(Value::as_str) else { return };
        if !self.style.described {
            return;
        }
        let words = plain_words(words);
        let choices = out.get("enum").and_then(|_| out["description"].as_str());
        out["description"] = match choices.and_then(|c| c.find("One of: ").map(|at| &c[at..])) {
            Some(choices) => json!(format!("{words} {choices}")),
            None => json!(words),
        };
    }
}

fn integer(map: &Map<String, Value>, out: &mut Value) {
    let format = map.get("format").and_then(Value::as_str).unwrap_or("int64");
    out["format"] = json!(if format == "int32" { "int32" } else { "int64" });
    if format.starts_with('u') {
        out["minimum"] = json!(0);
    }
    if format == "uint32" {
        out["maximum"] = json!(u32::MAX);
    }
}

/// The other side of a choice between something and null.
fn not_null(map: &Map<String, Value>) -> Option<&Value> {
    let null = json!({ "type": "null" });
    let sides = map.get("anyOf")?.as_array()?;
    sides.iter().find(|side| **side != null)
}

/// The values of an enumeration, and words about them.
fn choices(map: &Map<String, Value>) -> Option<(Vec<Value>, String)> {
    if let Some(values) = map.get("enum").and_then(Value::as_array) {
        return Some((values.iter().filter(|v| !v.is_null()).cloned().collect(), String::new()));
    }
    let (mut values, mut words) = (Vec::new(), Vec::new());
    for one in map.get("oneOf")?.as_array()? {
        if let Some(value) = one.get("const") {
            let about = one.get("description").and_then(Value::as_str).unwrap_or_default();
            words.push(format!("{}: {}", value.as_str().unwrap_or_default(), plain_words(about)));
            values.push(value.clone());
        } else {
            values.extend(one.get("enum")?.as_array()?.iter().cloned());
        }
    }
    let words = if words.is_empty() { String::new() } else { format!("One of: {}", words.join(" ")) };
    Some((values, words))
}

/// Rust's documentation as a sentence for users of the API.
fn plain_words(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace(" (T3)", "")
        .replace("[`", "`")
        .replace("`]", "`")
}

/// Puts the rules of a type on its schema.
fn decorate(out: &mut Value, name: &str) {
    for (field, rule) in rules_of(name) {
        let target = match field {
            "" => Some(&mut *out),
            _ => match field.strip_suffix("{}") {
                Some(map) => out.pointer_mut(&format!("/properties/{map}/additionalProperties")),
                None => out.pointer_mut(&format!("/properties/{field}")),
            },
        };
        if let Some(target) = target {
            apply(target, rule);
        }
    }
}

fn apply(target: &mut Value, rule: &Rule<'_>) {
    match rule {
        Rule::Required(fields) => target["required"] = json!(fields),
        Rule::Range(low, high) => {
            target["minimum"] = json!(low);
            target["maximum"] = json!(high);
        }
        Rule::Numbers(values) => target["enum"] = json!(values),
        Rule::Least(low) => target["minimum"] = json!(low),
        Rule::Items(low, high) => {
            target["minItems"] = json!(low);
            target["maxItems"] = json!(high);
        }
        Rule::MostItems(high) => target["maxItems"] = json!(high),
        Rule::MostKeys(high) => target["maxProperties"] = json!(high),
        Rule::Length(low, high) => {
            target["minLength"] = json!(low);
            target["maxLength"] = json!(high);
        }
        Rule::Keyed(field) => {
            target["x-kubernetes-list-type"] = json!("map");
            target["x-kubernetes-list-map-keys"] = json!([field]);
        }
        Rule::Cel(rule, why) => {
            let rules =
                target.as_object_mut().map(|t| t.entry("x-kubernetes-validations").or_insert(json!([])));
            if let Some(rules) = rules.and_then(Value::as_array_mut) {
                rules.push(json!({ "rule": rule, "message": why }));
            }
        }
        Rule::AtMostOne(fields) => {
            let count: Vec<_> = fields.iter().map(|f| format!("(has(self.{f}) ? 1 : 0)")).collect();
            let why = format!("at most one of {} may be set", fields.join(", "));
            apply(target, &Rule::Cel(&format!("{} <= 1", count.join(" + ")), &why));
        }
        Rule::Duration(low) => {
            let why = match *low {
                "0s" => "must be a duration such as 0.5s, 10ms or 1m30s, not negative".to_owned(),
                low => format!("must be a duration such as 0.5s or 1m30s, at least {low}"),
            };
            apply(target, &Rule::Cel(&format!("duration(self) >= duration('{low}')"), &why));
        }
    }
}
