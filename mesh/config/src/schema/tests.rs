//! The definitions know the fields the parser knows, and are what Kubernetes takes.

use super::*;
use crate::kinds::is_mixer_kind;
use crate::parse::parse_json;
use crate::resource::Kind;
use std::collections::BTreeSet;

/// Every path of a schema with the smallest value that has it.
fn samples(schema: &Value) -> Vec<Value> {
    let mut out = Vec::new();
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        for (name, field) in properties {
            out.extend(samples(field).into_iter().map(|inner| json!({ name.as_str(): inner })));
        }
    } else if let Some(items) = schema.get("items") {
        out.extend(samples(items).into_iter().map(|inner| json!([inner])));
    } else if let Some(values) = schema.get("additionalProperties") {
        out.extend(samples(values).into_iter().map(|inner| json!({ "80": inner })));
    } else {
        out.push(match schema.get("type").and_then(Value::as_str) {
            Some("string") if schema.get("enum").is_some() => schema["enum"][0].clone(),
            Some("string") => json!("1s"),
            Some("integer" | "number") => json!(1),
            Some("boolean") => json!(true),
            _ => json!({}),
        });
    }
    out
}

#[test]
fn the_parser_reads_every_field_of_the_schemas() {
    let mut count = 0;
    for definition in definitions().iter().filter(|d| Kind::of(d.group, d.kind) != Kind::Other) {
        for spec in samples(&definition.spec(false)) {
            count += 1;
            let object = json!({
                "apiVersion": format!("{}/{}", definition.group, definition.versions[0]), "kind": definition.kind,
                "metadata": { "name": "default" }, "spec": spec,
            });
            let said = parse_json("sample", &object).diagnostics;
            let unknown: Vec<_> = said.iter().filter(|d| d.why.contains("unknown field")).collect();
            assert!(unknown.is_empty(), "{object}: {unknown:?}");
            let shape: Vec<_> = said.iter().filter(|d| d.why.contains("wrong type")).collect();
            assert!(shape.is_empty(), "{object}: {shape:?}");
        }
    }
    assert!(count > 400, "only {count} fields were seen");
}

#[test]
fn the_schemas_have_every_field_the_parser_reads() {
    // Fields are derived from the structs, so a name that the parser reads and the schema lacks can only come from
    // an alias; this walks the document that has every field once.
    fn walk(path: &str, schema: &Value, value: &Value, missing: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    let at = format!("{path}.{key}");
                    match schema["properties"].get(key).or_else(|| schema.get("additionalProperties")) {
                        Some(schema) => walk(&at, schema, value, missing),
                        None if schema.get("x-kubernetes-preserve-unknown-fields").is_some()
                            && schema.get("properties").is_none() => {}
                        None => missing.push(at),
                    }
                }
            }
            Value::Array(list) => list.iter().for_each(|v| walk(path, &schema["items"], v, missing)),
            _ => {}
        }
    }
    let mut missing = Vec::new();
    for document in crate::yaml::split(crate::kinds::EVERYTHING) {
        let object = crate::yaml::parse(&document).expect("the document is YAML").to_json();
        let (api, kind) =
            (object["apiVersion"].as_str().unwrap_or(""), object["kind"].as_str().unwrap_or(""));
        if let Some(d) = definitions().iter().find(|d| api.starts_with(d.group) && d.kind == kind) {
            walk(kind, &d.spec(false), &object["spec"], &mut missing);
        }
    }
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn every_rule_is_about_a_field_that_exists() {
    let mut structs = std::collections::BTreeMap::<String, Value>::new();
    for definition in definitions() {
        let Some(schema) = definition.derived() else { continue };
        let root = schema.as_value();
        structs.insert(root["title"].as_str().unwrap_or_default().to_owned(), root.clone());
        for (name, def) in root["$defs"].as_object().into_iter().flatten() {
            structs.insert(name.clone(), def.clone());
        }
    }
    for (name, field, rule) in rules::tables() {
        let properties =
            structs.get(*name).unwrap_or_else(|| panic!("no struct {name}"))["properties"].clone();
        let field = field.trim_end_matches("{}");
        assert!(field.is_empty() || properties.get(field).is_some(), "{name} has no field {field}");
        if let rules::Rule::Required(fields) | rules::Rule::AtMostOne(fields) = rule {
            for field in *fields {
                assert!(properties.get(*field).is_some(), "{name} has no field {field}");
            }
        }
    }
}

#[test]
fn every_level_has_a_type_or_is_open() {
    fn check(path: &str, schema: &Value) {
        let open = schema.get("x-kubernetes-preserve-unknown-fields") == Some(&json!(true))
            || schema.get("x-kubernetes-int-or-string").is_some();
        assert!(schema.get("type").is_some() || open, "{path}: {schema}");
        for banned in ["$ref", "anyOf", "oneOf", "default", "nullable", "$defs", "title", "patternProperties"]
        {
            assert!(schema.get(banned).is_none(), "{path} has {banned}");
        }
        assert!(
            schema.get("properties").is_none() || schema.get("additionalProperties").is_none(),
            "{path} has properties and additionalProperties"
        );
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            check(&format!("{path}.{name}"), field);
        }
        for inner in ["items", "additionalProperties"] {
            if let Some(schema) = schema.get(inner) {
                check(&format!("{path}.{inner}"), schema);
            }
        }
    }
    for crd in crds() {
        for version in crd.object["spec"]["versions"].as_array().into_iter().flatten() {
            check(&crd.name, &version["schema"]["openAPIV3Schema"]);
        }
    }
}

#[test]
fn names_are_those_kubernetes_takes_and_istio_had() {
    let all = definitions();
    let names: BTreeSet<_> = all.iter().map(|d| format!("{}.{}", d.plural, d.group)).collect();
    assert_eq!(names.len(), all.len(), "two definitions share a name");
    for name in [
        "virtualservices.networking.istio.io",
        "serviceentries.networking.istio.io",
        "proxyconfigs.networking.istio.io",
        "peerauthentications.security.istio.io",
        "authorizationpolicies.security.istio.io",
        "telemetries.telemetry.istio.io",
        "policies.authentication.istio.io",
        "meshpolicies.authentication.istio.io",
        "rules.config.istio.io",
        "deniers.config.istio.io",
        "checknothings.config.istio.io",
        "kuberneteses.config.istio.io",
        "kubernetesenvs.config.istio.io",
        "listentries.config.istio.io",
        "logentries.config.istio.io",
        "prometheuses.config.istio.io",
        "bypasses.config.istio.io",
        "circonuses.config.istio.io",
        "solarwindses.config.istio.io",
        "cloudwatches.config.istio.io",
        "apikeys.config.istio.io",
        "httpapispecbindings.config.istio.io",
    ] {
        assert!(names.contains(name), "{name} is missing");
    }
    for d in &all {
        let known = Kind::of(d.group, d.kind);
        assert!(known != Kind::Mixer || is_mixer_kind(d.kind), "{}", d.kind);
    }
}

#[test]
fn kubectl_can_keep_each_definition_in_its_annotation() {
    for crd in crds() {
        let size = crd.object.to_string().len();
        assert!(size < 240_000, "{} has {size} bytes; the annotation takes 262144", crd.name);
    }
}

#[test]
fn no_spec_is_required_and_no_field_may_be_null() {
    // checknothing has `spec:` with nothing behind it, and other fields are null in files of 2019.
    for crd in crds() {
        for version in crd.object["spec"]["versions"].as_array().into_iter().flatten() {
            let root = &version["schema"]["openAPIV3Schema"];
            assert!(root.get("required").is_none(), "{}", crd.name);
        }
    }
}
