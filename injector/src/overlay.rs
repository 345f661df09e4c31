//! Laying one container over another, as Kubernetes' strategic merge does it.
//!
//! In: a template's container and what a pod's author wrote for it. Out: the merged container. Kept true: lists with a merge key are
//! merged by it, all others replaced; null removes. Not here: which containers meet (`pod`).

use serde_json::{Map, Value};

/// Lists of a container that are merged, and by which key.
const KEYS: [(&str, &str); 4] = [
    ("env", "name"),
    ("volumeMounts", "mountPath"),
    ("ports", "containerPort"),
    ("volumeDevices", "devicePath"),
];

/// Lays `own` over `base`. The image `auto` stands for "as the template says".
pub fn container(base: &mut Map<String, Value>, own: &Map<String, Value>) {
    for (key, value) in own {
        if key == "image" && value == "auto" {
            continue;
        }
        match (KEYS.iter().find(|(list, _)| list == key), base.get_mut(key), value) {
            (Some((_, id)), Some(Value::Array(base)), Value::Array(own)) => by_key(base, own, id),
            (_, _, Value::Null) => drop(base.shift_remove(key)),
            (_, Some(base), value) => value_over(base, value),
            (_, None, value) => drop(base.insert(key.clone(), value.clone())),
        }
    }
}

/// Adds each of `own` to `base`, in place of the one with the same `id`.
pub fn by_key(base: &mut Vec<Value>, own: &[Value], id: &str) {
    for item in own {
        let same = |other: &Value| other.get(id).is_some() && other.get(id) == item.get(id);
        match base.iter_mut().find(|other| same(other)) {
            Some(slot) => *slot = item.clone(),
            None => base.push(item.clone()),
        }
    }
}

fn value_over(base: &mut Value, own: &Value) {
    match (base, own) {
        (Value::Object(base), Value::Object(own)) => {
            for (key, value) in own {
                match base.get_mut(key) {
                    _ if value.is_null() => drop(base.shift_remove(key)),
                    Some(base) => value_over(base, value),
                    None => drop(base.insert(key.clone(), value.clone())),
                }
            }
        }
        (base, own) => *base = own.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_authors_fields_win_and_lists_are_merged_by_key() {
        let mut base = json!({
            "image": "crema/proxy", "args": ["sidecar"], "env": [{ "name": "A", "value": "1" }, { "name": "B", "value": "2" }],
            "resources": { "limits": { "cpu": "2", "memory": "1Gi" } }, "readinessProbe": { "periodSeconds": 2 },
        });
        let own = json!({
            "image": "auto", "args": ["router"], "env": [{ "name": "B", "value": "9" }, { "name": "C", "value": "3" }],
            "resources": { "limits": { "cpu": "4" } }, "readinessProbe": null, "ports": [{ "containerPort": 8080 }],
        });
        container(base.as_object_mut().expect("a map"), own.as_object().expect("a map"));
        let want = json!({
            "image": "crema/proxy", "args": ["router"],
            "env": [{ "name": "A", "value": "1" }, { "name": "B", "value": "9" }, { "name": "C", "value": "3" }],
            "resources": { "limits": { "cpu": "4", "memory": "1Gi" } }, "ports": [{ "containerPort": 8080 }],
        });
        assert_eq!(base, want);
    }
}
