//! The difference of two JSON documents as an RFC 6902 patch: what the webhook answers with.
//!
//! In: a pod before and after. Out: a list of `add`, `remove` and `replace`. Kept true: applying the patch to the first gives the second.
//! Not here: minimality; list elements are matched by their `name`, and a list whose order changed is replaced whole.

use std::collections::HashSet;

use serde_json::{Value, json};

/// The patch that turns `old` into `new`; empty when they are equal.
#[must_use]
pub fn diff(old: &Value, new: &Value) -> Vec<Value> {
    let mut patch = Vec::new();
    differ(old, new, "", &mut patch);
    patch
}

fn differ(old: &Value, new: &Value, path: &str, patch: &mut Vec<Value>) {
    match (old, new) {
        (a, b) if a == b => {}
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().filter(|k| !b.contains_key(*k)) {
                patch.push(json!({ "op": "remove", "path": at(path, key) }));
            }
            for (key, value) in b {
                match a.get(key) {
                    Some(before) => differ(before, value, &at(path, key), patch),
                    None => patch.push(json!({ "op": "add", "path": at(path, key), "value": value })),
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if lists(a, b, path, patch) => {}
        (_, value) => patch.push(json!({ "op": "replace", "path": path, "value": value })),
    }
}

/// Patches a list element by element; false, and nothing done, when kept elements changed their order.
fn lists(old: &[Value], new: &[Value], path: &str, patch: &mut Vec<Value>) -> bool {
    let (from, to): (Vec<_>, Vec<_>) = (old.iter().map(key).collect(), new.iter().map(key).collect());
    let (had, has): (HashSet<_>, HashSet<_>) = (from.iter().collect(), to.iter().collect());
    let unique = had.len() == from.len() && has.len() == to.len();
    let kept = |keys: &[String], other: &HashSet<&String>| {
        keys.iter().filter(|k| other.contains(k)).cloned().collect::<Vec<_>>()
    };
    if !unique || kept(&from, &has) != kept(&to, &had) {
        return false;
    }
    for (index, name) in from.iter().enumerate().rev() {
        if !has.contains(name) {
            patch.push(json!({ "op": "remove", "path": at(path, &index.to_string()) }));
        }
    }
    for (index, (name, value)) in to.iter().zip(new).enumerate() {
        let here = at(path, &index.to_string());
        match old.iter().zip(&from).find(|(_, k)| *k == name) {
            Some((before, _)) => differ(before, value, &here, patch),
            None => patch.push(json!({ "op": "add", "path": here, "value": value })),
        }
    }
    true
}

/// What makes a list element the same one: its name, else all of it.
fn key(value: &Value) -> String {
    match value.get("name").and_then(Value::as_str) {
        Some(name) => format!("name {name}"),
        None => value.to_string(),
    }
}

fn at(path: &str, key: &str) -> String {
    format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Applies a patch of the three operations that [`diff`] writes.
    pub(crate) fn apply(document: &Value, patch: &[Value]) -> Value {
        let mut document = document.clone();
        for step in patch {
            let path = step["path"].as_str().expect("a path");
            let Some((parent, last)) = path.rsplit_once('/') else {
                document = step["value"].clone();
                continue;
            };
            let last = last.replace("~1", "/").replace("~0", "~");
            let parent = document.pointer_mut(parent).expect("the parent is there");
            match (step["op"].as_str().expect("an operation"), parent) {
                ("remove", Value::Object(map)) => drop(map.shift_remove(&last).expect("it was there")),
                (_, Value::Object(map)) => drop(map.insert(last, step["value"].clone())),
                ("add", Value::Array(list)) => {
                    list.insert(last.parse().expect("an index"), step["value"].clone());
                }
                ("remove", Value::Array(list)) => drop(list.remove(last.parse().expect("an index"))),
                (_, Value::Array(list)) => {
                    list[last.parse::<usize>().expect("an index")] = step["value"].clone();
                }
                other => panic!("{other:?}"),
            }
        }
        document
    }

    #[test]
    fn list_elements_are_matched_by_name() {
        let old = json!({ "c": [{ "name": "app", "probe": 1 }, { "name": "log" }] });
        let new = json!({ "c": [{ "name": "proxy" }, { "name": "app", "probe": 2 }, { "name": "log" }] });
        let want = [
            json!({ "op": "add", "path": "/c/0", "value": { "name": "proxy" } }),
            json!({ "op": "replace", "path": "/c/1/probe", "value": 2 }),
        ];
        assert_eq!(diff(&old, &new), want);
    }

    #[test]
    fn slashes_and_tildes_in_keys_are_escaped() {
        let patch = diff(&json!({ "a": {} }), &json!({ "a": { "sidecar.istio.io/x~y": "1" } }));
        assert_eq!(patch[0]["path"], "/a/sidecar.istio.io~1x~0y");
    }

    fn document() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            "[a-c/~]{0,3}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c/~]|name", inner, 0..4)
                    .prop_map(|m| Value::from(m.into_iter().collect::<serde_json::Map<_, _>>())),
            ]
        })
    }

    proptest! {
        #[test]
        fn applying_the_difference_gives_the_new_document(old in document(), new in document()) {
            prop_assert_eq!(apply(&old, &diff(&old, &new)), new);
        }
    }
}
