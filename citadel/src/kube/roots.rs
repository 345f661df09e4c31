//! The root bundle as ConfigMap `istio-ca-root-cert` of every namespace: what pods mount to know citadel by.
//!
//! In: namespaces, the authority in force. Out: one ConfigMap each, put right when somebody edits or deletes it. Kept true: only the
//! leader writes, and only what differs. Not here: the bundle in a file (`serve`).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::StreamExt as _;
use mesh_kube::{
    FIELD_MANAGER,
    k8s_openapi::{
        api::core::v1::{ConfigMap, Namespace},
        apimachinery::pkg::apis::meta::v1::OwnerReference,
    },
    kube::{
        self, Api, Client,
        api::{Patch, PatchParams},
        runtime::{WatchStreamExt as _, watcher},
    },
    lease::Leader,
    source::Retry,
};
use mesh_runtime::{Outage, drain::Watch};
use serde_json::json;

use crate::ca::source::Current;

/// Its name in every namespace.
pub const NAME: &str = "istio-ca-root-cert";
/// The key with the bundle, PEM.
pub const KEY: &str = "root-cert.pem";
/// How long after a failure the next attempt is made.
const AGAIN: Duration = Duration::from_secs(2);

/// Writes root bundles whenever this citadel leads, until the drain.
pub async fn keep(
    client: Client,
    current: Current,
    owner: Option<OwnerReference>,
    mut leader: Leader,
    drain: Watch,
) {
    loop {
        let mut led = leader.clone();
        if drain.until_drain(leader.elected()).await.is_none() {
            return;
        }
        let work = async {
            tokio::select! {
                () = led.deposed() => {}
                () = distribute(client.clone(), &current, owner.as_ref()) => {}
            }
        };
        if drain.until_drain(work).await.is_none() {
            return;
        }
    }
}

/// What the cluster has.
#[derive(Default)]
struct Spaces {
    living: BTreeSet<String>,
    bundles: BTreeMap<String, String>,
    listed: [bool; 2],
}

impl Spaces {
    fn namespace(&mut self, event: watcher::Event<Namespace>) {
        match event {
            watcher::Event::Apply(space) | watcher::Event::InitApply(space) => {
                let Some(name) = space.metadata.name else { return };
                // Nothing can be made in one that is on its way out.
                match space.metadata.deletion_timestamp {
                    None => self.living.insert(name),
                    Some(_) => self.living.remove(&name),
                };
            }
            watcher::Event::Delete(space) => {
                self.living.remove(space.metadata.name.as_deref().unwrap_or_default());
            }
            watcher::Event::Init => self.living.clear(),
            watcher::Event::InitDone => self.listed[0] = true,
        }
    }

    fn config_map(&mut self, event: watcher::Event<ConfigMap>) {
        match event {
            watcher::Event::Apply(map) | watcher::Event::InitApply(map) => {
                let bundle = map.data.and_then(|mut data| data.remove(KEY)).unwrap_or_default();
                self.bundles.insert(map.metadata.namespace.unwrap_or_default(), bundle);
            }
            watcher::Event::Delete(map) => {
                self.bundles.remove(&map.metadata.namespace.unwrap_or_default());
            }
            watcher::Event::Init => self.bundles.clear(),
            watcher::Event::InitDone => self.listed[1] = true,
        }
    }

    /// Namespaces that have no bundle, or another one.
    fn due(&self, bundle: &str) -> Vec<String> {
        if self.listed != [true, true] {
            return Vec::new();
        }
        let differs = |name: &&String| self.bundles.get(*name).map(String::as_str) != Some(bundle);
        self.living.iter().filter(differs).cloned().collect()
    }
}

async fn distribute(client: Client, current: &Current, owner: Option<&OwnerReference>) {
    let mut changes = current.subscribe();
    let spaces = watcher::watcher(Api::<Namespace>::all(client.clone()), watcher::Config::default());
    let mut spaces = std::pin::pin!(spaces.backoff(Retry::default()));
    let named = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let maps = watcher::watcher(Api::<ConfigMap>::all(client.clone()), named);
    let mut maps = std::pin::pin!(maps.backoff(Retry::default()));
    let mut seen = Spaces::default();
    let mut outage = Outage::new(format!("ConfigMaps {NAME}"));
    loop {
        let bundle = current.now().bundle().to_pem();
        let mut failed = false;
        for namespace in seen.due(&bundle) {
            match write(&client, &namespace, &bundle, owner).await {
                Ok(()) => {
                    tracing::debug!(namespace, "root bundle written");
                    seen.bundles.insert(namespace, bundle.clone());
                }
                Err(error) => {
                    outage.failed(&format!("{namespace}: {error}"));
                    failed = true;
                }
            }
        }
        if !failed {
            outage.recovered();
        }
        tokio::select! {
            event = spaces.next() => match event {
                Some(Ok(event)) => seen.namespace(event),
                Some(Err(error)) => { outage.failed(&format!("watching namespaces: {error}")); }
                None => return,
            },
            event = maps.next() => match event {
                Some(Ok(event)) => seen.config_map(event),
                Some(Err(error)) => { outage.failed(&format!("watching ConfigMaps: {error}")); }
                None => return,
            },
            _ = changes.changed() => {}
            () = tokio::time::sleep(AGAIN), if failed => {}
        }
    }
}

async fn write(
    client: &Client,
    namespace: &str,
    bundle: &str,
    owner: Option<&OwnerReference>,
) -> kube::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let mut map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": NAME, "labels": { "istio.io/config": "true", "app.kubernetes.io/part-of": "crema" } },
        "data": { KEY: bundle },
    });
    if let Some(owner) = owner {
        map["metadata"]["ownerReferences"] = json!([owner]);
    }
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(NAME, &params, &Patch::Apply(&map)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_kube::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use mesh_kube::kube::api::ObjectMeta;

    fn space(name: &str, ending: bool) -> Namespace {
        let deletion_timestamp = ending.then_some(Time(mesh_kube::k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        let metadata =
            ObjectMeta { name: Some(name.to_owned()), deletion_timestamp, ..ObjectMeta::default() };
        Namespace { metadata, ..Namespace::default() }
    }

    fn map(namespace: &str, bundle: &str) -> ConfigMap {
        let data = BTreeMap::from([(KEY.to_owned(), bundle.to_owned())]);
        let metadata = ObjectMeta { namespace: Some(namespace.to_owned()), ..ObjectMeta::default() };
        ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }
    }

    #[test]
    fn a_bundle_is_due_where_it_is_missing_or_another_and_only_once_everything_was_listed() {
        use watcher::Event;
        let mut seen = Spaces::default();
        seen.namespace(Event::Init);
        for (name, ending) in [("a", false), ("b", false), ("c", false), ("d", true)] {
            seen.namespace(Event::InitApply(space(name, ending)));
        }
        seen.namespace(Event::InitDone);
        assert!(seen.due("new").is_empty(), "what is there is not known yet");
        seen.config_map(Event::Init);
        seen.config_map(Event::InitApply(map("a", "new")));
        seen.config_map(Event::InitApply(map("b", "old")));
        seen.config_map(Event::InitDone);
        assert_eq!(seen.due("new"), ["b", "c"]);
        seen.config_map(Event::Apply(map("b", "new")));
        seen.namespace(Event::Apply(space("c", true)));
        assert!(seen.due("new").is_empty(), "c is going away");
        seen.config_map(Event::Apply(map("a", "edited")));
        assert_eq!(seen.due("new"), ["a"], "an edit is put right");
        seen.config_map(Event::Delete(map("b", "new")));
        assert_eq!(seen.due("new"), ["a", "b"], "so is a deletion");
        assert_eq!(seen.due("next").len(), 2);
    }
}
