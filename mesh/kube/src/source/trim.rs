//! Objects cut down to what the mesh reads, before they are kept.
//!
//! In: an object as the API server has it. Out: the same with less in it. Kept true: what is left out is read nowhere;
//! what changes without meaning (resource versions, our own status) makes no difference between two snapshots.
//! Not here: which objects are asked for (`source`).

use kube::api::{ApiResource, DynamicObject};
use mesh_config::Kind;
use serde_json::{Map, Value};

/// What `kubectl apply` keeps of the file: a second copy of the object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Leaves out what nobody reads.
pub(super) fn trim(kind: Kind, object: &mut DynamicObject) {
    let meta = &mut object.metadata;
    meta.managed_fields = None;
    meta.resource_version = None;
    meta.finalizers = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove(LAST_APPLIED);
    }
    let Some(data) = object.data.as_object_mut() else { return };
    match kind {
        Kind::Pod => pod(data),
        Kind::EndpointSlice => object.metadata.annotations = None,
        Kind::Secret => secret(data),
        _ => {
            data.remove("status");
        }
    }
}

/// The object as a document of its kind: items of lists come without version and kind.
pub(super) fn document(resource: &ApiResource, object: &DynamicObject) -> serde_json::Result<Value> {
    let mut document = serde_json::to_value(object)?;
    if let Some(fields) = document.as_object_mut() {
        fields.insert("apiVersion".into(), resource.api_version.clone().into());
        fields.insert("kind".into(), resource.kind.clone().into());
    }
    Ok(document)
}

fn pod(data: &mut Map<String, Value>) {
    if let Some(Value::Object(spec)) = data.get_mut("spec") {
        keep(
            spec,
            &[
                "serviceAccountName",
                "hostNetwork",
                "nodeName",
                "containers",
                "initContainers",
                "hostname",
                "subdomain",
            ],
        );
        for list in ["containers", "initContainers"] {
            for container in each(spec, list) {
                keep(container, &["name", "ports", "restartPolicy"]);
            }
        }
    }
    if let Some(Value::Object(status)) = data.get_mut("status") {
        keep(status, &["phase", "podIP", "podIPs", "conditions"]);
        if let Some(Value::Array(conditions)) = status.get_mut("conditions") {
            conditions.retain(|c| c.get("type").and_then(Value::as_str) == Some("Ready"));
        }
        for condition in each(status, "conditions") {
            keep(condition, &["type", "status"]);
        }
    }
}

/// Only what gateways use: certificates, keys and roots, under both sets of names.
fn secret(data: &mut Map<String, Value>) {
    if let Some(Value::Object(entries)) = data.get_mut("data") {
        keep(entries, &["tls.crt", "tls.key", "ca.crt", "cert", "key", "cacert", "ca.crl"]);
    }
}

fn keep(fields: &mut Map<String, Value>, names: &[&str]) {
    fields.retain(|name, _| names.contains(&name.as_str()));
}

fn each<'a>(
    fields: &'a mut Map<String, Value>,
    list: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    fields.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}
