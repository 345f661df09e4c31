//! Status of the mesh's objects: conditions and messages, written where `kubectl` shows them.
//!
//! In: what is to be said of each object. Out: patches of the `status` subresource. Kept true: only a difference is written, at
//! most [`PER_SECOND`] a second and one per object in [`APART`]; conditions of others stay. Not here: what is to be said.

use crate::source::Generation;
use anyhow::Context as _;
use k8s_openapi::jiff::{Timestamp, Unit};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams},
};
use mesh_config::{ObjectKey, resource::Scope};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Patches per second, over all objects.
pub const PER_SECOND: u32 = 20;
/// Least time between two patches of one object.
pub const APART: Duration = Duration::from_secs(5);

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its type, e.g. `Accepted`.
    pub kind: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// One word in CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Message {
    /// `ERROR` or `WARNING`.
    pub level: &'static str,
    /// One word in CamelCase.
    pub name: &'static str,
    /// Path of the field; empty for the whole object.
    pub field: String,
    /// What is wrong and what to do.
    pub why: String,
}

/// All that is to be said of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Conditions, each type once.
    pub conditions: Vec<Condition>,
    /// Findings.
    pub messages: Vec<Message>,
}

/// An object, which form of it is judged, and the judgement.
pub type Judged = BTreeMap<ObjectKey, (Generation, Judgement)>;

struct Known {
    status: Value,
    written: Option<Instant>,
}

/// The one writer; use it while leading, and a new one for each term.
pub struct Writer {
    client: Client,
    listed: BTreeSet<(String, String)>,
    known: BTreeMap<ObjectKey, Known>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("known", &self.known.len()).finish_non_exhaustive()
    }
}

impl Writer {
    /// Knows nothing yet: the first round reads what is written.
    pub fn new(client: Client) -> Self {
        Self { client, listed: BTreeSet::new(), known: BTreeMap::new() }
    }

    /// Writes what differs. What could not be written, or not yet, is left to the next round; returns whether there is any.
    /// Dropping the future loses nothing but the rest of the round.
    ///
    /// # Errors
    /// When the API server does not take it; the text names the object.
    pub async fn round(&mut self, judged: &Judged) -> anyhow::Result<bool> {
        self.known.retain(|key, _| judged.contains_key(key));
        for (key, (generation, _)) in judged {
            self.list(key, &generation.resource).await?;
        }
        let mut left = false;
        for (key, (generation, judgement)) in judged {
            let known = self.known.get(key);
            let before = known.map_or(&Value::Null, |known| &known.status);
            let Some(status) = status(before, generation.number, judgement, Timestamp::now()) else {
                continue;
            };
            if known.and_then(|known| known.written).is_some_and(|at| at.elapsed() < APART) {
                left = true;
                continue;
            }
            let api = api(&self.client, key, &generation.resource);
            let patch = Patch::Merge(json!({ "status": status }));
            match api.patch_status(&key.name, &PatchParams::default(), &patch).await {
                Ok(_) => {}
                // It went away, or its kind has no status: nothing to say it to.
                Err(kube::Error::Api(answer)) if answer.code == 404 => {}
                Err(error) => return Err(error).with_context(|| format!("status of {key}")),
            }
            self.known.insert(key.clone(), Known { status, written: Some(Instant::now()) });
            tokio::time::sleep(Duration::from_secs(1) / PER_SECOND).await;
        }
        Ok(left)
    }

    /// Reads the status of all objects of a kind, once.
    async fn list(&mut self, like: &ObjectKey, resource: &Arc<ApiResource>) -> anyhow::Result<()> {
        let id = (resource.group.clone(), resource.plural.clone());
        if self.listed.contains(&id) {
            return Ok(());
        }
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), resource.as_ref());
        let mut params = ListParams::default().limit(250);
        loop {
            let page = api.list(&params).await.with_context(|| format!("status of {}", resource.plural))?;
            for mut object in page.items {
                let Some(name) = &object.metadata.name else { continue };
                let namespace = match like.kind.scope(&like.kind_name) {
                    Scope::Cluster => "",
                    Scope::Namespaced => object.metadata.namespace.as_deref().unwrap_or("default"),
                };
                let key =
                    ObjectKey { namespace: namespace.into(), name: name.as_str().into(), ..like.clone() };
                let status = object.data.get_mut("status").map(Value::take).unwrap_or_default();
                self.known.insert(key, Known { status, written: None });
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break,
            }
        }
        self.listed.insert(id);
        Ok(())
    }
}

fn api(client: &Client, key: &ObjectKey, resource: &ApiResource) -> Api<DynamicObject> {
    match &*key.namespace {
        "" => Api::all_with(client.clone(), resource),
        namespace => Api::namespaced_with(client.clone(), namespace, resource),
    }
}

/// The status to write over `before`; `None` if it says the same already.
fn status(before: &Value, generation: i64, judgement: &Judgement, now: Timestamp) -> Option<Value> {
    let empty = Vec::new();
    let standing = before.get("conditions").and_then(Value::as_array).unwrap_or(&empty);
    let of_type = |kind: &str| standing.iter().find(|c| c.get("type").and_then(Value::as_str) == Some(kind));
    let now = now.round(Unit::Second).unwrap_or(now).to_string();
    let ours = judgement.conditions.iter().map(|condition| {
        let holds = if condition.holds { "True" } else { "False" };
        let old = of_type(condition.kind).filter(|c| c.get("status").and_then(Value::as_str) == Some(holds));
        let since = old.and_then(|c| c.get("lastTransitionTime")).cloned().unwrap_or_else(|| json!(now));
        json!({
            "type": condition.kind, "status": holds, "reason": condition.reason, "message": condition.message,
            "observedGeneration": generation, "lastTransitionTime": since,
        })
    });
    let is_ours = |c: &&Value| {
        judgement.conditions.iter().any(|o| c.get("type").and_then(Value::as_str) == Some(o.kind))
    };
    let mut conditions: Vec<Value> = standing.iter().filter(|c| !is_ours(c)).cloned().collect();
    conditions.extend(ours);
    let messages: Vec<Value> = judgement
        .messages
        .iter()
        .map(|m| {
            json!({
                "level": m.level, "type": {"code": m.name, "name": m.name}, "field": m.field, "message": m.why,
            })
        })
        .collect();
    let after = json!({
        "observedGeneration": generation, "conditions": conditions, "validationMessages": messages,
    });
    let same = ["observedGeneration", "conditions", "validationMessages"]
        .iter()
        .all(|field| before.get(field).unwrap_or(&Value::Null) == &after[*field]);
    (!same).then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judgement(holds: bool) -> Judgement {
        let reason = if holds { "Accepted" } else { "Invalid" };
        let conditions = vec![Condition { kind: "Accepted", holds, reason, message: String::new() }];
        Judgement { conditions, messages: Vec::new() }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn the_same_judgement_is_written_once() {
        let first = status(&Value::Null, 1, &judgement(true), at(10)).expect("nothing was said before");
        assert_eq!(status(&first, 1, &judgement(true), at(20)), None, "time alone is no news");
        let newer = status(&first, 2, &judgement(true), at(20)).expect("another generation is news");
        assert_eq!(newer["observedGeneration"], 2);
        assert_eq!(newer["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:10Z", "it held all along");
        let turned = status(&newer, 2, &judgement(false), at(30)).expect("it holds no more");
        assert_eq!(turned["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:30Z");
    }

    #[test]
    fn conditions_of_others_stay() {
        let theirs = json!({"type": "Theirs", "status": "True", "more": [1]});
        let before = json!({"conditions": [theirs], "theirField": 1});
        let after = status(&before, 1, &judgement(true), at(1)).unwrap();
        assert_eq!(after["conditions"][0], theirs);
        assert_eq!(after["conditions"][1]["type"], "Accepted");
    }
}
