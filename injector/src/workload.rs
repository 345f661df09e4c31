//! The kinds of Kubernetes that hold pods, and where in them the pod is.
//!
//! In: one object. Out: the object with its pods injected, and a notice for each that was not. Kept true: an object of another kind, or
//! of another API group, is returned untouched. Not here: text (`file`).

use serde_json::Value;

use crate::{
    InjectError,
    pod::{Outcome, Owner, inject},
    settings::Settings,
    template::Templates,
};

/// Kind, API groups, and the path of the pod template.
const KINDS: [(&str, &[&str], &str); 9] = [
    ("Pod", &[""], ""),
    ("ReplicationController", &[""], "/spec/template"),
    ("Deployment", &["apps", "extensions"], "/spec/template"),
    ("DaemonSet", &["apps", "extensions"], "/spec/template"),
    ("ReplicaSet", &["apps", "extensions"], "/spec/template"),
    ("StatefulSet", &["apps"], "/spec/template"),
    ("Job", &["batch"], "/spec/template"),
    ("CronJob", &["batch"], "/spec/jobTemplate/spec/template"),
    ("DeploymentConfig", &["apps.openshift.io", ""], "/spec/template"),
];

/// What injection needs besides the object.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The operator's settings.
    pub settings: &'a Settings,
    /// What is added.
    pub templates: &'a Templates,
    /// Namespace of objects that name none.
    pub namespace: &'a str,
}

/// An object after injection.
#[derive(Debug, Clone, PartialEq)]
pub struct Injected {
    /// The object, or nothing when it is to stay as it was written.
    pub object: Option<Value>,
    /// Pods that were skipped, and warnings, one sentence each.
    pub notices: Vec<String>,
}

/// Injects every pod in `object`, also in lists.
///
/// # Errors
/// When a pod cannot be injected as its annotations ask; the error names the object.
pub fn inject_object(object: &Value, context: &Context<'_>) -> Result<Injected, InjectError> {
    let mut result = object.clone();
    let mut notices = Vec::new();
    one(&mut result, "", context, &mut notices)?;
    Ok(Injected { object: (result != *object).then_some(result), notices })
}

fn one(
    object: &mut Value,
    inherited: &str,
    context: &Context<'_>,
    notices: &mut Vec<String>,
) -> Result<(), InjectError> {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let kind = match text("/kind") {
        "" => inherited.to_owned(),
        kind => kind.to_owned(),
    };
    if let Some(item) = kind.strip_suffix("List") {
        let item = item.to_owned();
        let items = object.get_mut("items").and_then(Value::as_array_mut);
        return items.into_iter().flatten().try_for_each(|object| one(object, &item, context, notices));
    }
    let version = text("/apiVersion");
    let group = version.split_once('/').map_or("", |(group, _)| group);
    // Items of a typed list may leave both names out.
    let known =
        KINDS.iter().find(|(k, groups, _)| *k == kind && (version.is_empty() || groups.contains(&group)));
    let Some((_, groups, path)) = known else { return Ok(()) };
    let version = if version.is_empty() { format!("{}/v1", groups[0]) } else { version.to_owned() };
    let named = match text("/metadata/name") {
        "" => text("/metadata/generateName").trim_end_matches('-').to_owned(),
        name => name.to_owned(),
    };
    let inner = object.pointer(&format!("{path}/metadata/namespace")).and_then(Value::as_str);
    let namespace = match inner.unwrap_or(text("/metadata/namespace")) {
        "" => context.namespace.to_owned(),
        namespace => namespace.to_owned(),
    };
    let owner = owner(&kind, &version, &namespace, &named);
    // A DeploymentConfig may have no template at all.
    let Some(pod) = object.pointer_mut(path).filter(|p| !p.is_null()) else { return Ok(()) };
    let at = format!("{kind} {namespace}/{named}");
    match inject(pod, &owner, context.settings, context.templates) {
        Ok(Outcome::Injected { pod: with, warnings }) => {
            notices.extend(warnings.into_iter().map(|w| format!("{at}: {w}")));
            *pod = with;
            Ok(())
        }
        Ok(Outcome::Skipped(why)) => {
            notices.push(format!("{at} is not injected: {why}"));
            Ok(())
        }
        Err(error) => Err(InjectError::In { object: at, why: Box::new(error) }),
    }
}

/// Who owns the pods of an object.
#[must_use]
pub fn owner(kind: &str, version: &str, namespace: &str, name: &str) -> Owner {
    Owner {
        namespace: namespace.to_owned(),
        workload: name.to_owned(),
        reference: format!(
            "kubernetes://apis/{version}/namespaces/{namespace}/{}s/{name}",
            kind.to_ascii_lowercase()
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn injected(object: &Value) -> Injected {
        let (settings, templates) = (Settings::default(), Templates::default());
        let context = Context { settings: &settings, templates: &templates, namespace: "shop" };
        inject_object(object, &context).expect("injectable")
    }

    fn pod() -> Value {
        json!({ "metadata": { "labels": { "app": "a" } }, "spec": { "containers": [{ "name": "app", "image": "i" }] } })
    }

    #[test]
    fn every_kind_that_holds_pods_is_injected() {
        let of = |template: Value| json!({ "template": template });
        let cases = [
            ("v1", "Pod", None, ""),
            ("v1", "ReplicationController", Some(of(pod())), "/spec/template"),
            ("apps/v1", "Deployment", Some(of(pod())), "/spec/template"),
            ("extensions/v1beta1", "Deployment", Some(of(pod())), "/spec/template"),
            ("apps/v1", "DaemonSet", Some(of(pod())), "/spec/template"),
            ("apps/v1", "ReplicaSet", Some(of(pod())), "/spec/template"),
            ("apps/v1", "StatefulSet", Some(of(pod())), "/spec/template"),
            ("batch/v1", "Job", Some(of(pod())), "/spec/template"),
            (
                "batch/v1",
                "CronJob",
                Some(json!({ "jobTemplate": { "spec": of(pod()) } })),
                "/spec/jobTemplate/spec/template",
            ),
            ("apps.openshift.io/v1", "DeploymentConfig", Some(of(pod())), "/spec/template"),
        ];
        for (version, kind, spec, path) in cases {
            let mut object = json!({ "apiVersion": version, "kind": kind, "metadata": { "name": "x" } });
            object["spec"] = spec.unwrap_or_else(|| pod()["spec"].clone());
            let got = injected(&object).object.unwrap_or_else(|| panic!("{kind} is untouched"));
            let proxy =
                got.pointer(&format!("{path}/spec/initContainers/1")).unwrap_or_else(|| panic!("{kind}"));
            assert_eq!(proxy["name"], "istio-proxy", "{kind}");
            let env = proxy["env"].as_array().expect("a list");
            let owner = env.iter().find(|e| e["name"] == "ISTIO_META_OWNER").expect("set")["value"].clone();
            let plural = format!("{}s", kind.to_lowercase());
            assert_eq!(owner, format!("kubernetes://apis/{version}/namespaces/shop/{plural}/x"));
        }
    }

    #[test]
    fn other_kinds_and_groups_stay_as_they_are() {
        let cases = [
            json!({ "apiVersion": "v1", "kind": "Service", "spec": { "ports": [] } }),
            json!({ "apiVersion": "example.com/v1", "kind": "Job", "spec": { "template": pod() } }),
            json!({ "apiVersion": "apps.openshift.io/v1", "kind": "DeploymentConfig", "spec": { "template": null } }),
            json!({ "no": "kubernetes" }),
            json!("text"),
            Value::Null,
        ];
        for object in cases {
            assert_eq!(injected(&object), Injected { object: None, notices: vec![] }, "{object}");
        }
    }

    #[test]
    fn lists_are_injected_item_by_item_typed_or_not() {
        let deployment = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "d" }, "spec": { "template": pod() } });
        let service = json!({ "apiVersion": "v1", "kind": "Service" });
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": [service, deployment] });
        let got = injected(&list).object.expect("changed");
        assert_eq!(got["items"][0], service);
        assert!(got.pointer("/items/1/spec/template/spec/initContainers").is_some());
        let typed = json!({ "apiVersion": "apps/v1", "kind": "DeploymentList", "items": [{ "metadata": { "name": "d" }, "spec": { "template": pod() } }] });
        assert!(
            injected(&typed)
                .object
                .expect("changed")
                .pointer("/items/0/spec/template/spec/initContainers")
                .is_some()
        );
    }

    #[test]
    fn an_error_names_the_object() {
        let mut object = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "annotations": {
            "sidecar.istio.io/interceptionMode": "TPROXY" } }, "spec": { "containers": [] } });
        object["metadata"]["namespace"] = json!("blue");
        let (settings, templates) = (Settings::default(), Templates::default());
        let context = Context { settings: &settings, templates: &templates, namespace: "shop" };
        let error = inject_object(&object, &context).expect_err("no such mode").to_string();
        assert!(error.starts_with("Pod blue/p: annotation sidecar.istio.io/interceptionMode"), "{error}");
    }
}
