//! CustomResourceDefinitions of every kind we know, made from the structs that read them.
//!
//! In: `kinds`, the tables of `table` and `rules`. Out: [`crds`], [`yaml`] as kept in `deploy/crds`.
//! Kept true: a field that is read is in the schema and the other way round, since both are one definition.
//! Not here: what values mean together beyond a few rules (`validate`), who applies the files (`deploy`).

mod rules;
mod structural;
mod table;

pub use table::{Columns, Definition, definitions};

use serde_json::{Value, json};

/// A CustomResourceDefinition and the file it is kept in.
#[derive(Clone, Debug)]
pub struct Crd {
    /// `plural.group`, the object's name.
    pub name: String,
    /// The object.
    pub object: Value,
}

/// All definitions, by group and then by name.
pub fn crds() -> Vec<Crd> {
    definitions().iter().map(crd).collect()
}

/// Files of `deploy/crds` with their text: one per group, its definitions in the order of [`crds`].
///
/// # Errors
/// If an object cannot be written as YAML, which no object here causes.
pub fn files() -> Result<Vec<(String, String)>, String> {
    let mut files: Vec<(String, String)> = Vec::new();
    for (definition, crd) in definitions().iter().zip(crds()) {
        let name = format!("{}.yaml", definition.group);
        if files.last().is_none_or(|(last, _)| *last != name) {
            files.push((name, HEAD.to_owned()));
        }
        let Some((_, text)) = files.last_mut() else { continue };
        text.push_str("---\n");
        text.push_str(&yaml(&crd.object)?);
    }
    Ok(files)
}

const HEAD: &str = "# Made from mesh/config/src/kinds by `UPDATE_GOLDEN=1 cargo test -p mesh-config --test crds`; do not edit.\n";

/// An object as YAML, one line per scalar.
///
/// # Errors
/// If it cannot be written.
pub fn yaml(object: &Value) -> Result<String, String> {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: true, folded_wrap_chars: 1_000_000 };
    let mut text = serde_saphyr::to_string_with_options(object, options).map_err(|e| e.to_string())?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

fn crd(definition: &Definition) -> Crd {
    let name = format!("{}.{}", definition.plural, definition.group);
    let mut names = json!({
        "kind": definition.kind,
        "listKind": format!("{}List", definition.kind),
        "plural": definition.plural,
        "singular": definition.kind.to_ascii_lowercase(),
        "categories": definition.categories,
    });
    if !definition.short.is_empty() {
        names["shortNames"] = json!(definition.short);
    }
    let versions: Vec<Value> = definition
        .versions
        .iter()
        .enumerate()
        // The same words three times would not fit into the annotation that `kubectl apply` keeps.
        .map(|(i, version)| self::version(definition, version, i == 0))
        .collect();
    let object = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": name,
            "labels": { "app.kubernetes.io/part-of": "crema" },
            // Deleting a definition deletes everybody's objects of it; package managers respect this.
            "annotations": { "helm.sh/resource-policy": "keep" },
        },
        "spec": {
            "group": definition.group,
            "names": names,
            "scope": if definition.cluster_scoped { "Cluster" } else { "Namespaced" },
            "versions": versions,
        },
    });
    Crd { name, object }
}

fn version(definition: &Definition, version: &str, storage: bool) -> Value {
    let mut columns: Vec<Value> = definition
        .columns
        .iter()
        .map(|(name, path, about)| {
            json!({ "name": name, "jsonPath": path, "type": "string", "description": about })
        })
        .collect();
    columns.push(json!({
        "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp", "description": "Since when it exists.",
    }));
    json!({
        "name": version,
        "served": true,
        "storage": storage,
        "additionalPrinterColumns": columns,
        "subresources": { "status": {} },
        "schema": { "openAPIV3Schema": root(definition, storage) },
    })
}

fn root(definition: &Definition, described: bool) -> Value {
    let mut root = json!({
        "type": "object",
        "properties": { "spec": definition.spec(described), "status": status(described) },
    });
    if described {
        root["description"] = json!(definition.about);
    }
    if !definition.rules.is_empty() {
        let rules = definition.rules.iter().map(|(rule, why)| json!({ "rule": rule, "message": why }));
        root["x-kubernetes-validations"] = rules.collect();
    }
    root
}

/// What the mesh says about an object. Other tools may add to it.
fn status(described: bool) -> Value {
    let text = json!({ "type": "string" });
    let mut status = json!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": {
            "observedGeneration": { "x-kubernetes-int-or-string": true },
            "conditions": { "type": "array", "items": { "type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                "type": text, "status": text, "reason": text, "message": text,
                "observedGeneration": { "x-kubernetes-int-or-string": true },
                "lastTransitionTime": { "type": "string", "format": "date-time" },
                "lastProbeTime": { "type": "string", "format": "date-time" },
            } } },
            "validationMessages": { "type": "array", "items": { "type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                "documentationUrl": text, "level": text,
                "type": { "type": "object", "properties": { "code": text, "name": text } },
            } } },
        },
    });
    if described {
        status["description"] = json!("What the mesh made of it; written by the mesh.");
    }
    status
}

#[cfg(test)]
mod tests;
