//! The mutating webhook of Kubernetes: `POST /inject`, AdmissionReview in and out.
//!
//! In: an admission review of a pod. Out: the review's answer with an RFC 6902 patch. Kept true: a pod that cannot be injected as it asks
//! is refused with the reason; anything but a pod passes. Not here: TLS (`serve`), the patch's making (`pod`, `patch`).

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use mesh_kube::k8s_openapi::api::core::v1::ObjectReference;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    cluster::Told,
    patch,
    pod::{Outcome, Owner, inject},
    settings::Settings,
    template::Templates,
    workload,
};

/// Largest review taken, in bytes: an object of the API server's limit, twice over.
const MOST: usize = 4 << 20;

/// What the webhook needs for every review.
#[derive(Debug)]
pub struct Webhook {
    /// The operator's settings.
    pub settings: Settings,
    /// What is added.
    pub templates: Templates,
    /// Hears what became of reviews; never waited for.
    pub told: Option<mpsc::Sender<Told>>,
}

/// The webhook's routes: `/inject` (also below it, as Istio's configurations have it) and `/ready`.
pub fn router(webhook: Arc<Webhook>) -> Router {
    Router::new()
        .route("/inject", post(handle))
        .route("/inject/{*rest}", post(handle))
        .route("/ready", get(|| async { "ready\n" }))
        .layer(DefaultBodyLimit::max(MOST))
        .with_state(webhook)
}

async fn handle(State(webhook): State<Arc<Webhook>>, body: Bytes) -> Response {
    match serde_json::from_slice::<Value>(&body) {
        Ok(review) => match answer(&webhook, &review) {
            Ok(answer) => {
                webhook.tell(Told::Served);
                Json(answer).into_response()
            }
            Err(why) => (StatusCode::BAD_REQUEST, why).into_response(),
        },
        Err(error) => (StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}\n")).into_response(),
    }
}

impl Webhook {
    fn tell(&self, what: Told) {
        if let Some(told) = &self.told {
            // A full queue loses an Event, never a review.
            let _full = told.try_send(what);
        }
    }
}

/// Answers one review.
///
/// # Errors
/// When it is not an AdmissionReview with a request.
pub fn answer(webhook: &Webhook, review: &Value) -> Result<Value, String> {
    let text = |path: &str| review.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let version = text("/apiVersion");
    if text("/kind") != "AdmissionReview" || !version.starts_with("admission.k8s.io/") {
        return Err("the body is not an admission.k8s.io AdmissionReview\n".to_owned());
    }
    let uid = text("/request/uid");
    if uid.is_empty() {
        return Err("the review has no request.uid\n".to_owned());
    }
    let mut response = json!({ "uid": uid, "allowed": true });
    let is_pod = text("/request/kind/kind") == "Pod" && text("/request/kind/group").is_empty();
    if is_pod && !review.pointer("/request/object").is_none_or(Value::is_null) {
        reviewed(webhook, &review["request"], &mut response);
    }
    Ok(json!({ "apiVersion": version, "kind": "AdmissionReview", "response": response }))
}

fn reviewed(webhook: &Webhook, request: &Value, response: &mut Value) {
    let pod = &request["object"];
    let owner = owner(pod, request.get("namespace").and_then(Value::as_str).unwrap_or("default"));
    let at = format!("pod {}/{}", owner.namespace, owner.workload);
    match inject(pod, &owner, &webhook.settings, &webhook.templates) {
        Ok(Outcome::Injected { pod: with, warnings }) => {
            let patch = patch::diff(pod, &with);
            if !patch.is_empty() {
                response["patchType"] = json!("JSONPatch");
                response["patch"] = json!(STANDARD.encode(Value::Array(patch).to_string()));
            }
            if !warnings.is_empty() {
                response["warnings"] = json!(warnings);
            }
            tracing::info!("{at}: injected");
        }
        Ok(Outcome::Skipped(why)) => tracing::info!("{at}: not injected: {why}"),
        Err(error) => {
            tracing::warn!("{at}: refused: {error}");
            if request.get("dryRun") != Some(&Value::Bool(true)) {
                let about = Box::new(about(pod, request));
                webhook.tell(Told::Refused { about, why: format!("{at}: injection failed: {error}") });
            }
            response["allowed"] = json!(false);
            response["status"] =
                json!({ "code": 422, "reason": "Invalid", "message": format!("injection failed: {error}") });
        }
    }
}

/// What an Event about a refused pod is attached to: its controller, for the pod itself never exists.
fn about(pod: &Value, request: &Value) -> ObjectReference {
    let text = |value: &Value, path: &str| value.pointer(path).and_then(Value::as_str).map(str::to_owned);
    let namespace = text(request, "/namespace");
    let refs = pod.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    match refs.into_iter().flatten().find(|r| r.get("controller") == Some(&Value::Bool(true))) {
        Some(owner) => ObjectReference {
            api_version: text(owner, "/apiVersion"),
            kind: text(owner, "/kind"),
            name: text(owner, "/name"),
            uid: text(owner, "/uid"),
            namespace,
            ..ObjectReference::default()
        },
        None => ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: text(pod, "/metadata/name"),
            namespace,
            ..ObjectReference::default()
        },
    }
}

/// Who is behind a pod: the Deployment of its ReplicaSet, the CronJob of its Job, its controller, or itself.
fn owner(pod: &Value, namespace: &str) -> Owner {
    let text = |value: &Value, path: &str| {
        value.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let own = match text(pod, "/metadata/name") {
        name if name.is_empty() => text(pod, "/metadata/generateName").trim_end_matches('-').to_owned(),
        name => name,
    };
    let refs = pod.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    let Some(controller) =
        refs.into_iter().flatten().find(|r| r.get("controller") == Some(&Value::Bool(true)))
    else {
        return workload::owner("Pod", "v1", namespace, &own);
    };
    let (version, kind, name) =
        (text(controller, "/apiVersion"), text(controller, "/kind"), text(controller, "/name"));
    let hash = text(pod, "/metadata/labels/pod-template-hash");
    let last = name.rsplit_once('-');
    match (kind.as_str(), last) {
        ("ReplicaSet", Some((deployment, suffix))) if suffix == hash => {
            workload::owner("Deployment", &version, namespace, deployment)
        }
        ("Job", Some((cron, suffix))) if suffix.len() >= 8 && suffix.bytes().all(|b| b.is_ascii_digit()) => {
            workload::owner("CronJob", &version, namespace, cron)
        }
        ("ReplicationController", Some((config, suffix)))
            if pod.pointer("/metadata/labels/deploymentconfig").is_some()
                && suffix.bytes().all(|b| b.is_ascii_digit()) =>
        {
            workload::owner("DeploymentConfig", "apps.openshift.io/v1", namespace, config)
        }
        _ => workload::owner(&kind, &version, namespace, &name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook() -> Webhook {
        Webhook { settings: Settings::default(), templates: Templates::default(), told: None }
    }

    fn review(kind: &str, object: &Value) -> Value {
        json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "u-1", "kind": { "group": "", "version": "v1", "kind": kind }, "namespace": "shop", "operation": "CREATE", "object": object,
        } })
    }

    fn pod() -> Value {
        json!({ "metadata": { "generateName": "web-5d4f-", "labels": { "app": "web", "pod-template-hash": "5d4f" }, "ownerReferences": [
            { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f", "controller": true } ] },
            "spec": { "containers": [{ "name": "app", "image": "i" }] } })
    }

    #[test]
    fn the_patch_gives_what_the_filter_on_files_gives() {
        let answer = answer(&webhook(), &review("Pod", &pod())).expect("a review");
        assert_eq!(
            (&answer["response"]["uid"], &answer["response"]["allowed"]),
            (&json!("u-1"), &json!(true))
        );
        let patch = STANDARD.decode(answer["response"]["patch"].as_str().expect("a patch")).expect("base64");
        let patch: Vec<Value> = serde_json::from_slice(&patch).expect("a list");
        let patched = crate::patch::tests::apply(&pod(), &patch);
        let owner = workload::owner("Deployment", "apps/v1", "shop", "web");
        let want = inject(&pod(), &owner, &Settings::default(), &Templates::default());
        assert_eq!(want, Ok(Outcome::Injected { pod: patched, warnings: vec![] }));
    }

    #[test]
    fn a_wish_that_cannot_be_honoured_refuses_the_pod_with_the_reason() {
        let mut bad = pod();
        bad["metadata"]["annotations"] = json!({ "traffic.sidecar.istio.io/excludeInboundPorts": "http" });
        let answer = answer(&webhook(), &review("Pod", &bad)).expect("a review");
        assert_eq!(answer["response"]["allowed"], false);
        assert!(
            answer["response"]["status"]["message"].as_str().expect("text").contains("excludeInboundPorts")
        );
    }

    #[tokio::test]
    async fn a_refused_pod_is_told_about_its_controller_unless_it_was_a_dry_run() {
        let (told, mut heard) = mpsc::channel(4);
        let webhook = Webhook { told: Some(told), ..webhook() };
        let mut bad = pod();
        bad["metadata"]["annotations"] = json!({ "traffic.sidecar.istio.io/excludeInboundPorts": "http" });
        let mut dry = review("Pod", &bad);
        dry["request"]["dryRun"] = json!(true);
        for review in [dry, review("Pod", &bad)] {
            answer(&webhook, &review).expect("a review");
        }
        let Ok(Told::Refused { about, why }) = heard.try_recv() else { panic!("nothing was told") };
        assert_eq!((about.kind.as_deref(), about.name.as_deref()), (Some("ReplicaSet"), Some("web-5d4f")));
        assert_eq!(about.namespace.as_deref(), Some("shop"));
        assert!(why.contains("pod shop/web") && why.contains("excludeInboundPorts"), "{why}");
        assert!(heard.try_recv().is_err(), "told twice");
    }

    #[test]
    fn what_is_not_a_pod_or_not_to_be_injected_passes_unchanged() {
        let mut host = pod();
        host["spec"]["hostNetwork"] = json!(true);
        let done = inject(&pod(), &owner(&pod(), "shop"), &Settings::default(), &Templates::default());
        let Ok(Outcome::Injected { pod: done, .. }) = done else { panic!("injectable") };
        for review in [
            review("Service", &json!({})),
            review("Pod", &Value::Null),
            review("Pod", &host),
            review("Pod", &done),
        ] {
            let answer = answer(&webhook(), &review).expect("a review");
            assert_eq!(answer["response"], json!({ "uid": "u-1", "allowed": true }));
        }
        for nonsense in
            [json!({}), json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1" }), json!([])]
        {
            assert!(answer(&webhook(), &nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn owners_are_found_through_their_helpers() {
        let of = |kind: &str, name: &str, labels: Value| {
            let pod = json!({ "metadata": { "name": "p", "labels": labels, "ownerReferences": [
                { "apiVersion": "g/v1", "kind": kind, "name": name, "controller": true } ] } });
            let owner = owner(&pod, "n");
            (owner.workload, owner.reference.rsplit('/').nth(1).unwrap_or_default().to_owned())
        };
        let cases = [
            (of("ReplicaSet", "web-5d", json!({ "pod-template-hash": "5d" })), ("web", "deployments")),
            (of("ReplicaSet", "web-5d", json!({})), ("web-5d", "replicasets")),
            (of("Job", "nightly-29012345", json!({})), ("nightly", "cronjobs")),
            (of("Job", "once-7", json!({})), ("once-7", "jobs")),
            (of("StatefulSet", "db", json!({})), ("db", "statefulsets")),
            (
                of("ReplicationController", "d-3", json!({ "deploymentconfig": "d" })),
                ("d", "deploymentconfigs"),
            ),
        ];
        for ((name, kind), want) in cases {
            assert_eq!((name.as_str(), kind.as_str()), want);
        }
    }
}
