//! What is said of each object in its status: accepted, refused by a proxy, conflicting or not honoured.
//!
//! In: the configuration, what is served, what proxies answered. Out: a judgement per object, written by the one pilot that
//! leads. Kept true: equal facts give an equal judgement, so nothing is written twice. Not here: writing (`mesh-kube`).

use crate::{push::Pusher, translate::Problem};
use mesh_config::{Diagnostic, ObjectKey, Snapshot, source::Reader};
use mesh_kube::{
    lease::Leader,
    source::{Generation, Seen},
    status::{Condition, Judged, Judgement, Message, Writer},
};
use mesh_runtime::{backoff::Outage, drain};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// How often what is to be said is looked at.
const EVERY: Duration = Duration::from_secs(2);
/// Messages per object, at most: the most severe come first.
const MESSAGES: usize = 20;

/// Writes status while this process leads, until the drain.
pub async fn write(
    client: mesh_kube::kube::Client,
    mut leader: Leader,
    reader: Reader,
    seen: Seen,
    pusher: Pusher,
    drain: drain::Watch,
) {
    let mut outage = Outage::new("status of objects");
    while drain.until_drain(leader.elected()).await.is_some() {
        let mut writer = Writer::new(client.clone());
        let mut deposed = leader.clone();
        let term = async {
            loop {
                tokio::time::sleep(EVERY).await;
                // Before the first push nobody can say what is honoured.
                let Some(translator) = pusher.translator() else { continue };
                let refusals = refusals(&pusher);
                let (snapshot, seen) = (reader.now(), seen.all());
                let problems = translator.problems();
                let made =
                    tokio::task::spawn_blocking(move || judge(&snapshot, &problems, &refusals, &seen)).await;
                let Ok(judged) = made else { continue };
                match writer.round(&judged).await {
                    Ok(_) => outage.recovered(),
                    Err(error) => {
                        outage.failed(&format_args!("{error:#}"));
                    }
                }
            }
        };
        tokio::select! {
            () = term => {}
            () = deposed.deposed() => {}
            () = drain.signaled() => return,
        }
    }
}

/// What proxies refuse, as `Kind namespace/name` of the object and why.
pub type Refusals = BTreeMap<Arc<str>, String>;

fn refusals(pusher: &Pusher) -> Refusals {
    let mut all = Refusals::new();
    for client in pusher.clients() {
        for refusal in client.types.into_values().flat_map(|standing| standing.refused.into_values()) {
            for source in refusal.sources {
                all.entry(source).or_insert_with(|| format!("{}: {}", client.workload, refusal.why));
            }
        }
    }
    all
}

/// The judgement of every object that the API server has.
pub fn judge(
    snapshot: &Snapshot,
    problems: &[Problem],
    refusals: &Refusals,
    seen: &BTreeMap<ObjectKey, Generation>,
) -> Judged {
    let mut findings: BTreeMap<ObjectKey, Vec<Diagnostic>> = BTreeMap::new();
    for finding in snapshot.diagnostics() {
        if let Some(key) = &finding.object {
            findings.entry(key.clone()).or_default().push(finding);
        }
    }
    let mut by_label: BTreeMap<&str, Vec<&Problem>> = BTreeMap::new();
    for problem in problems {
        by_label.entry(&problem.object).or_default().push(problem);
    }
    seen.iter()
        .map(|(key, generation)| {
            let label = key.to_string();
            let found = findings.get(key).map(Vec::as_slice).unwrap_or_default();
            let troubled = by_label.get(label.as_str()).map(Vec::as_slice).unwrap_or_default();
            let in_force = snapshot.get(key).map(|resource| resource.meta().generation);
            let facts = Facts {
                in_force: in_force.map(|number| number.unwrap_or(0) == generation.number),
                found,
                troubled,
                refused: refusals.get(label.as_str()).map(String::as_str),
            };
            (key.clone(), (generation.clone(), facts.judgement()))
        })
        .collect()
}

/// What is known about one object.
struct Facts<'a> {
    /// Whether the form judged is in force; `None` when no form is.
    in_force: Option<bool>,
    found: &'a [Diagnostic],
    troubled: &'a [&'a Problem],
    refused: Option<&'a str>,
}

impl Facts<'_> {
    fn judgement(&self) -> Judgement {
        Judgement {
            conditions: vec![self.accepted(), self.programmed(), self.honoured()],
            messages: self.messages(),
        }
    }

    fn accepted(&self) -> Condition {
        let first = self.found.iter().find(|f| f.is_error()).map(said).unwrap_or_default();
        let (holds, reason, message) = match self.in_force {
            Some(true) => (true, "Accepted", String::new()),
            Some(false) => (false, "Invalid", format!("what was accepted before stays in force: {first}")),
            None => (false, "Invalid", first),
        };
        Condition { kind: "Accepted", holds, reason, message }
    }

    fn programmed(&self) -> Condition {
        let (holds, reason, message) = match (self.refused, self.in_force) {
            (Some(why), _) => (false, "RefusedByProxy", why.to_owned()),
            (None, Some(true)) => (true, "Programmed", String::new()),
            (None, _) => (false, "NotAccepted", String::new()),
        };
        Condition { kind: "Programmed", holds, reason, message }
    }

    fn honoured(&self) -> Condition {
        let conflict = |why: &str| why.contains("older and in force") || why.contains("which is older");
        let found = self.found.iter().map(|f| (conflict(&f.why), said(f)));
        let troubled = self.troubled.iter().map(|p| (conflict(&p.why), told(p)));
        let all: Vec<_> = found.chain(troubled).collect();
        let of = all.iter().find(|(conflicting, _)| *conflicting).or_else(|| all.first());
        let (holds, reason, message) = match of {
            None => (true, "Honoured", String::new()),
            Some((true, why)) => (false, "Conflicted", why.clone()),
            Some((false, why)) => (false, "PartlyHonoured", why.clone()),
        };
        Condition { kind: "Honoured", holds, reason, message }
    }

    fn messages(&self) -> Vec<Message> {
        let found = self.found.iter().map(|f| Message {
            level: if f.is_error() { "ERROR" } else { "WARNING" },
            name: if f.is_error() { "Invalid" } else { "NotHonoured" },
            field: f.field.clone(),
            why: f.why.clone(),
        });
        let troubled = self.troubled.iter().map(|p| Message {
            level: "WARNING",
            name: "NotHonoured",
            field: p.field.clone(),
            why: p.why.clone(),
        });
        let refused = self.refused.map(|why| Message {
            level: "ERROR",
            name: "RefusedByProxy",
            field: String::new(),
            why: why.to_owned(),
        });
        let mut all: Vec<_> = found.chain(troubled).chain(refused).collect();
        all.sort();
        all.dedup();
        all.truncate(MESSAGES);
        all
    }
}

fn said(finding: &Diagnostic) -> String {
    placed(&finding.field, &finding.why)
}

fn told(problem: &Problem) -> String {
    placed(&problem.field, &problem.why)
}

fn placed(field: &str, why: &str) -> String {
    if field.is_empty() { why.to_owned() } else { format!("{field}: {why}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_config::{Kind, source::Store};
    use mesh_kube::kube::api::ApiResource;
    use serde_json::json;

    fn rule(name: &str, generation: i64, weight: i64) -> serde_json::Value {
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": name, "namespace": "default", "generation": generation,
                "creationTimestamp": format!("2026-01-0{}T00:00:00Z", if name == "old" { 1 } else { 2 })},
            "spec": {"hosts": ["web"], "http": [{"route": [{"destination": {"host": "web"}, "weight": weight}]}]}})
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey {
            kind: Kind::VirtualService,
            group: "networking.istio.io".into(),
            kind_name: "VirtualService".into(),
            namespace: "default".into(),
            name: name.into(),
        }
    }

    fn words(judged: &Judged, name: &str) -> Vec<(&'static str, bool, &'static str)> {
        let (_, judgement) = &judged[&key(name)];
        judgement.conditions.iter().map(|c| (c.kind, c.holds, c.reason)).collect()
    }

    #[test]
    fn every_way_an_object_can_fare_is_told_from_the_others() {
        let mut store = Store::new();
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
            "spec": {"ports": [{"name": "http", "port": 80}]}});
        store.apply_json("test", &service);
        store.apply_json("test", &rule("old", 1, 100));
        store.apply_json("test", &rule("young", 1, 100));
        store.apply_json("test", &rule("young", 2, -1));
        store.publish();
        let resource = Arc::new(ApiResource::from_gvk(&mesh_kube::kube::core::GroupVersionKind::gvk(
            "networking.istio.io",
            "v1",
            "VirtualService",
        )));
        let seen = [("old", 1), ("young", 2)]
            .map(|(name, number)| (key(name), Generation { number, resource: resource.clone() }))
            .into();
        let refusals =
            [("VirtualService default/old".into(), "default/web-1: no such filter".to_owned())].into();
        let judged = judge(&store.reader().now(), &[], &refusals, &seen);
        let old = words(&judged, "old");
        assert_eq!(old[..2], [("Accepted", true, "Accepted"), ("Programmed", false, "RefusedByProxy")]);
        let young = words(&judged, "young");
        assert_eq!(young[..2], [("Accepted", false, "Invalid"), ("Programmed", false, "NotAccepted")]);
        assert_eq!(young[2], ("Honoured", false, "Conflicted"), "it shares its host with an older one");
        let (_, judgement) = &judged[&key("young")];
        assert!(judgement.conditions[0].message.contains("stays in force"), "{:?}", judgement.conditions);
        assert_eq!(judgement.messages[0].level, "ERROR");
    }
}
