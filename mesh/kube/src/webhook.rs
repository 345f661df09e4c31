//! Webhook configurations: the root that the API server checks our certificate against, kept in place.
//!
//! In: the roots, and whether failures close. Out: `caBundle` and `failurePolicy` of every webhook of one configuration.
//! Kept true: only these fields are ours, by server-side apply; whatever resets them is answered. Not here: the webhook.

use crate::FIELD_MANAGER;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::StreamExt as _;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    runtime::{WatchStreamExt as _, watcher},
};
use mesh_runtime::backoff::Outage;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// Which kind of configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// MutatingWebhookConfiguration.
    Mutating,
    /// ValidatingWebhookConfiguration.
    Validating,
}

/// What the webhooks of a configuration should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Roots as PEM; empty while they are not known, which changes nothing at the API server.
    pub roots: Arc<str>,
    /// `failurePolicy: Fail`; while false the policy is left to whoever wrote the configuration.
    pub closed: bool,
}

impl Kind {
    fn resource(self) -> ApiResource {
        use k8s_openapi::api::admissionregistration::v1 as admission;
        match self {
            Kind::Mutating => ApiResource::erase::<admission::MutatingWebhookConfiguration>(&()),
            Kind::Validating => ApiResource::erase::<admission::ValidatingWebhookConfiguration>(&()),
        }
    }
}

/// Keeps `caBundle` of all webhooks of a configuration equal to the latest roots (PEM), until the sender is gone.
/// A configuration that does not exist yet is waited for.
pub async fn keep_ca_bundle(client: Client, kind: Kind, name: &str, mut roots: watch::Receiver<Arc<str>>) {
    let (tx, rx) = watch::channel(Settings { roots: roots.borrow_and_update().clone(), closed: false });
    let follow = async move {
        while roots.changed().await.is_ok() {
            let roots = roots.borrow_and_update().clone();
            tx.send_modify(|settings| settings.roots = roots);
        }
    };
    tokio::join!(follow, keep(client, kind, name, rx));
}

/// Keeps a configuration as the latest settings say, until the sender is gone.
pub async fn keep(client: Client, kind: Kind, name: &str, mut settings: watch::Receiver<Settings>) {
    let resource = kind.resource();
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let mut outage = Outage::new(format!("{} {name}", resource.kind));
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let events = watcher::watcher(api.clone(), config).backoff(crate::source::Retry::default());
    let mut events = std::pin::pin!(events);
    let mut latest: Option<Value> = None;
    loop {
        let mut again = false;
        if let Some(object) = &latest {
            let wanted = settings.borrow_and_update().clone();
            if let Some(patch) = patch(&resource, name, object, &wanted) {
                let params = PatchParams::apply(FIELD_MANAGER).force();
                match api.patch(name, &params, &Patch::Apply(&patch)).await {
                    Ok(_) => {
                        outage.recovered();
                        tracing::info!(
                            configuration = name,
                            closed = wanted.closed,
                            "webhook configuration updated"
                        );
                        // The watch brings the result; until then there is nothing to compare with.
                        latest = None;
                    }
                    Err(error) => {
                        outage.failed(&error);
                        again = true;
                    }
                }
            }
        }
        tokio::select! {
            event = events.next() => match event {
                None => return,
                Some(Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object))) => {
                    latest = Some(object.data);
                }
                Some(Ok(watcher::Event::Delete(_))) => latest = None,
                Some(Ok(watcher::Event::Init | watcher::Event::InitDone)) => {}
                Some(Err(error)) => {
                    outage.failed(&error);
                }
            },
            changed = settings.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(Duration::from_secs(2)), if again => {}
        }
    }
}

/// What to apply so that a configuration is as wanted; `None` if it is, or if there is nothing to say.
fn patch(resource: &ApiResource, name: &str, object: &Value, wanted: &Settings) -> Option<Value> {
    if wanted.roots.is_empty() {
        return None;
    }
    let bundle = STANDARD.encode(wanted.roots.as_bytes());
    let webhooks = object.get("webhooks")?.as_array()?;
    let as_wanted = |hook: &Value| {
        hook.pointer("/clientConfig/caBundle").and_then(Value::as_str) == Some(&bundle)
            && (!wanted.closed || hook.get("failurePolicy").and_then(Value::as_str) == Some("Fail"))
    };
    if webhooks.iter().all(as_wanted) {
        return None;
    }
    let ours: Vec<Value> = webhooks
        .iter()
        .filter_map(|hook| hook.get("name"))
        .map(|hook| {
            let mut ours = json!({"name": hook, "clientConfig": {"caBundle": bundle}});
            if wanted.closed {
                ours["failurePolicy"] = json!("Fail");
            }
            ours
        })
        .collect();
    Some(json!({
        "apiVersion": resource.api_version, "kind": resource.kind,
        "metadata": {"name": name}, "webhooks": ours,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_patched_and_only_our_fields() {
        let resource = Kind::Mutating.resource();
        let object = |bundle: &str, policy: &str| {
            json!({"webhooks": [
            {"name": "a.example", "clientConfig": {"caBundle": bundle, "service": {"name": "x"}}, "failurePolicy": policy}]})
        };
        let settings = |roots: &str, closed| Settings { roots: roots.into(), closed };
        let cases = [
            ("unknown roots change nothing", object("", "Ignore"), settings("", true), None),
            ("as wanted", object("cGVt", "Ignore"), settings("pem", false), None),
            ("as wanted and closed", object("cGVt", "Fail"), settings("pem", true), None),
            (
                "another root",
                object("b2xk", "Ignore"),
                settings("pem", false),
                Some(json!([{"name": "a.example", "clientConfig": {"caBundle": "cGVt"}}])),
            ),
            (
                "reset to open",
                object("cGVt", "Ignore"),
                settings("pem", true),
                Some(
                    json!([{"name": "a.example", "clientConfig": {"caBundle": "cGVt"}, "failurePolicy": "Fail"}]),
                ),
            ),
        ];
        for (what, object, wanted, expected) in cases {
            let made = patch(&resource, "x", &object, &wanted);
            assert_eq!(made.map(|p| p["webhooks"].clone()), expected, "{what}");
        }
    }
}
