//! Tells the API server of the webhook, and lets it refuse once it has been seen to work.
//!
//! In: the manifest's empty ValidatingWebhookConfiguration, pilot's roots. Out: its one webhook, kept as it should be.
//! Kept true: as long as no refusal has come back through the API server, the webhook cannot stop anybody; several
//! pilots write the same. Not here: the port (`server`), what is refused (`admission`).

use mesh_identity::{CertStore, TrustBundle};
use mesh_kube::{
    FIELD_MANAGER,
    k8s_openapi::api::admissionregistration::v1::{ValidatingWebhook, ValidatingWebhookConfiguration},
    kube::{
        self, Api, Client,
        api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
    },
};
use mesh_runtime::drain::Watch;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The object of the manifest that the webhook is written to. The manifest leaves its `webhooks` out: what is not
/// there cannot be in the way of an `apply` of the manifest later.
pub const CONFIGURATION: &str = "crema-validator";
/// Name of the one webhook in it.
pub const WEBHOOK: &str = "validate.pilot.crema";
/// How often the configuration is looked at while the webhook is not proven.
const SOON: Duration = Duration::from_secs(5);
/// How often it is looked at afterwards, for somebody may have changed it.
const LATER: Duration = Duration::from_secs(60);
/// How long a root that this pilot does not have is left in place: another pilot may just have got it.
const LET_GO: Duration = Duration::from_secs(600);

/// Writes the webhook and keeps it, until the drain. `namespace` is that of the mesh.
pub async fn keep(client: Client, namespace: String, store: CertStore, drain: Watch) {
    let mut keeper = Keeper {
        configurations: Api::all(client.clone()),
        client,
        namespace,
        store,
        strangers_since: None,
        proven: false,
        told: String::new(),
    };
    let mut changed = keeper.store.subscribe();
    if drain.until_drain(keeper.store.first()).await.is_none() {
        return;
    }
    loop {
        changed.mark_unchanged();
        match drain.until_drain(keeper.look()).await {
            None => return,
            Some(Ok(())) => keeper.told.clear(),
            Some(Err(error)) => keeper.tell(&format!("{error:#}")),
        }
        let wait = if keeper.proven { LATER } else { SOON };
        let woken = async {
            tokio::select! {
                () = sleep(wait) => {}
                // The store lives as long as this pilot; without it there is only the clock.
                changed = changed.changed() => if changed.is_err() { sleep(wait).await },
            }
        };
        if drain.until_drain(woken).await.is_none() {
            return;
        }
    }
}

struct Keeper {
    client: Client,
    configurations: Api<ValidatingWebhookConfiguration>,
    namespace: String,
    store: CertStore,
    /// Since when the configuration has roots that we do not have.
    strangers_since: Option<Instant>,
    /// Whether a refusal of ours has come back through the API server.
    proven: bool,
    told: String,
}

impl Keeper {
    /// Says a reason once, not at every look.
    fn tell(&mut self, why: &str) {
        if self.told != why {
            tracing::warn!(
                why,
                "the validating webhook is not registered: objects are not checked when they are stored"
            );
            why.clone_into(&mut self.told);
        }
    }

    async fn look(&mut self) -> anyhow::Result<()> {
        let Some(identity) = self.store.current() else { anyhow::bail!("pilot has no certificate yet") };
        let Some(found) = self.configurations.get_opt(CONFIGURATION).await? else {
            anyhow::bail!(
                "the manifest's ValidatingWebhookConfiguration {CONFIGURATION} is missing: apply the manifest"
            );
        };
        let webhook = found.webhooks.unwrap_or_default().into_iter().find(|w| w.name == WEBHOOK);
        let closed = webhook.as_ref().and_then(|w| w.failure_policy.as_deref()) == Some("Fail");
        let bundle = self.roots(webhook.as_ref(), &identity.bundle);
        let want = desired(&self.namespace, &bundle, closed || self.proven);
        if webhook.as_ref().is_none_or(|w| !same(w, &want)) {
            self.apply(&want).await?;
        }
        if !(closed && self.proven) {
            self.proven = self.refuses().await?;
            if self.proven && !closed {
                self.apply(&desired(&self.namespace, &bundle, true)).await?;
                tracing::info!(
                    "the validating webhook works: from now on nothing is stored that it did not see"
                );
            }
        }
        Ok(())
    }

    /// The roots to trust: ours, and for a while those somebody else has put there.
    fn roots(&mut self, webhook: Option<&ValidatingWebhook>, own: &TrustBundle) -> String {
        let theirs = webhook
            .and_then(|w| w.client_config.ca_bundle.as_ref())
            .and_then(|pem| TrustBundle::from_pem("caBundle", &pem.0).ok());
        let strangers = theirs.iter().any(|t| t.roots().iter().any(|root| !own.roots().contains(root)));
        self.strangers_since = strangers.then(|| self.strangers_since.unwrap_or_else(Instant::now));
        let keep = self.strangers_since.is_some_and(|since| since.elapsed() < LET_GO);
        union(own, theirs.as_ref().filter(|_| keep)).to_pem()
    }

    async fn apply(&self, webhook: &Value) -> Result<(), kube::Error> {
        let patch = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": { "name": CONFIGURATION },
            "webhooks": [webhook],
        });
        let how = PatchParams::apply(&format!("{FIELD_MANAGER}-pilot")).force();
        self.configurations.patch(CONFIGURATION, &how, &Patch::Apply(&patch)).await.map(drop)
    }

    /// Whether an object that cannot be meant is refused, by us: asked with a dry run, so it is never stored.
    async fn refuses(&self) -> anyhow::Result<bool> {
        let kind = GroupVersionKind::gvk("networking.istio.io", "v1", "Gateway");
        let gateways: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &self.namespace, &ApiResource::from_gvk(&kind));
        let bad: DynamicObject = serde_json::from_value(cannot_be_meant(&self.namespace))?;
        match gateways.create(&PostParams { dry_run: true, field_manager: None }, &bad).await {
            Ok(_) => Ok(false),
            Err(kube::Error::Api(status)) if status.message.contains(WEBHOOK) => {
                // "failed calling webhook" names it as well, but is no refusal of ours.
                Ok(status.message.contains("denied the request"))
            }
            Err(error) => {
                Err(anyhow::Error::new(error).context("asking the API server for a refusal, as a dry run"))
            }
        }
    }
}

/// A Gateway that the schema takes and the webhook refuses.
fn cannot_be_meant(namespace: &str) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "Gateway",
        "metadata": { "name": "crema-validator-is-asked", "namespace": namespace },
        "spec": { "selector": { "crema": "none" }, "servers": [] },
    })
}

fn union(own: &TrustBundle, other: Option<&TrustBundle>) -> TrustBundle {
    let Some(other) = other else { return own.clone() };
    let roots = own.roots().iter().chain(other.roots()).cloned().collect();
    TrustBundle::new("caBundle", roots).unwrap_or_else(|_| own.clone())
}

/// The webhook as it should be: every group of ours, whatever version it is written in.
fn desired(namespace: &str, roots: &str, closed: bool) -> Value {
    let mut groups: Vec<_> = mesh_config::schema::definitions().iter().map(|d| d.group).collect();
    groups.sort_unstable();
    groups.dedup();
    json!({
        "name": WEBHOOK,
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "timeoutSeconds": 5,
        "matchPolicy": "Exact",
        "failurePolicy": if closed { "Fail" } else { "Ignore" },
        "clientConfig": {
            "caBundle": mesh_kube::k8s_openapi::ByteString(roots.as_bytes().to_vec()),
            "service": { "name": "pilot", "namespace": namespace, "path": "/validate", "port": 443 },
        },
        "rules": [{
            "apiGroups": groups, "apiVersions": ["*"], "resources": ["*"],
            "operations": ["CREATE", "UPDATE"], "scope": "*",
        }],
    })
}

/// Whether a webhook is as wanted, in everything that is wanted.
fn same(have: &ValidatingWebhook, want: &Value) -> bool {
    fn within(have: &Value, want: &Value) -> bool {
        match (have, want) {
            (Value::Object(have), Value::Object(want)) => {
                want.iter().all(|(key, want)| have.get(key).is_some_and(|have| within(have, want)))
            }
            (Value::Array(have), Value::Array(want)) => {
                have.len() == want.len() && have.iter().zip(want).all(|(have, want)| within(have, want))
            }
            _ => have == want,
        }
    }
    serde_json::to_value(have).is_ok_and(|have| within(&have, want))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_identity::testkit::TestCa;

    fn webhook(want: &Value) -> ValidatingWebhook {
        let mut full = want.clone();
        // What the API server adds by itself.
        full["namespaceSelector"] = json!({});
        full["objectSelector"] = json!({});
        serde_json::from_value(full).expect("a webhook")
    }

    #[test]
    fn what_the_api_server_adds_is_no_difference_and_what_somebody_changed_is() {
        let want = desired("istio-system", "roots", false);
        assert!(same(&webhook(&want), &want));
        for (path, other) in [
            ("/failurePolicy", json!("Fail")),
            ("/clientConfig/service/namespace", json!("elsewhere")),
            ("/rules/0/operations", json!(["CREATE"])),
            ("/clientConfig/caBundle", json!("AAAA")),
        ] {
            let mut changed = want.clone();
            *changed.pointer_mut(path).expect("it is there") = other;
            assert!(!same(&webhook(&changed), &want), "{path}");
        }
    }

    #[test]
    fn the_probe_is_refused_by_the_webhook_and_taken_by_the_schema() {
        let object = cannot_be_meant("istio-system");
        let verdict = crate::admission::judge(&json!({ "operation": "CREATE", "object": object }));
        assert_eq!(verdict.errors.len(), 1, "{verdict:?}");
        assert!(verdict.warnings.is_empty(), "{verdict:?}");
    }

    #[test]
    fn roots_of_another_pilot_stay_beside_ours() {
        let (old, new) = (TestCa::new("old").bundle(), TestCa::new("new").bundle());
        assert_eq!(union(&old, None).roots().len(), 1);
        assert_eq!(union(&old, Some(&new)).roots().len(), 2);
        assert_eq!(union(&old, Some(&old)).roots().len(), 1);
    }

    #[test]
    fn every_group_of_ours_is_asked_about() {
        let want = desired("istio-system", "roots", true);
        let groups = want["rules"][0]["apiGroups"].as_array().expect("groups").clone();
        for group in
            ["networking.istio.io", "security.istio.io", "config.istio.io", "authentication.istio.io"]
        {
            assert!(groups.contains(&json!(group)), "{group}");
        }
        assert_eq!(want["failurePolicy"], "Fail");
    }
}
