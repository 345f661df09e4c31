//! What becomes of objects, as data: judged by pilot's webhook, and by a real API server with our definitions.
//!
//! The second half needs `CREMA_TEST_KUBECONFIG` (it brings `deploy/crds` and takes them back), or `KUBECONFIG` of a cluster that has them;
//! without, its tests show as ignored with the reason. Where no mesh is installed, this program serves the webhook while it runs.

mod cluster;
mod webhook;

use cluster::Cluster;
use libtest_mimic::{Arguments, Failed, Trial};
use pilot::admission::{Verdict, judge};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use webhook::Served;

const OBJECTS: &str = include_str!("../data/objects.yaml");

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    kind: String,
    is: Is,
    #[serde(default)]
    says: String,
    api: Option<String>,
    name: Option<String>,
    #[serde(default = "absent")]
    spec: Value,
    more: Option<serde_json::Map<String, Value>>,
}

fn absent() -> Value {
    json!({ "absent": true })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Is {
    Ok,
    Warn,
    Unknown,
    Schema,
    Pilot,
}

impl Case {
    fn object(&self) -> Value {
        let all = mesh_config::schema::definitions();
        let definition =
            all.iter().find(|d| d.kind == self.kind).expect("every kind of the table has a schema");
        let version = self.api.as_deref().unwrap_or(definition.versions[0]);
        assert!(definition.versions.contains(&version), "{} has no version {version}", self.kind);
        let mut object = json!({
            "apiVersion": format!("{}/{version}", definition.group),
            "kind": self.kind,
            "metadata": { "name": self.name.as_deref().unwrap_or("sample") },
        });
        if self.spec != absent() {
            object["spec"] = self.spec.clone();
        }
        for (key, value) in self.more.iter().flatten() {
            object[key] = value.clone();
        }
        object
    }
}

fn main() {
    if let Some(code) = cluster::again_with_the_test_cluster() {
        std::process::exit(code);
    }
    let cases: Vec<Case> = serde_saphyr::from_str(OBJECTS).expect("the table is as its head says");
    assert!(cases.len() >= 150, "only {} objects", cases.len());
    let mut cluster = Cluster::find();
    let (served, webhook) = webhook::serve_where_nobody_does(&mut cluster);
    let mut trials = vec![Trial::test("the table has accepted and refused objects of every kind", {
        let cases = cases.clone();
        move || every_kind(&cases)
    })];
    for (i, case) in cases.into_iter().enumerate() {
        let title = format!("{:03} {} {:?} {}", i + 1, case.kind, case.is, case.says).to_lowercase();
        let judged = case.clone();
        trials.push(Trial::test(format!("pilot: {title}"), move || by_pilot(&judged)));
        trials.push(match cluster.clone() {
            Ok(cluster) => Trial::test(format!("cluster: {title}"), move || cluster.judge(&case)),
            Err(why) => ignored(&format!("cluster: {title}"), &why),
        });
    }
    for file in sample_files() {
        let title = format!("cluster: {} passes strict validation", file.display());
        trials.push(match cluster.clone() {
            Ok(cluster) => Trial::test(title, move || cluster.file(&file)),
            Err(why) => ignored(&title, &why),
        });
    }
    trials.push(match (&served, &cluster) {
        (_, Err(why)) => ignored("cluster: the webhook closes itself", why),
        (Served::NotByUs, Ok(_)) => {
            ignored("cluster: the webhook closes itself", "a mesh is installed there")
        }
        (Served::Failed(why), Ok(_)) => {
            let why = why.clone();
            Trial::test("cluster: the webhook closes itself", move || Err(why.into()))
        }
        (Served::ByUs, Ok(_)) => Trial::test("cluster: the webhook closes itself", || Ok(())),
    });
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    drop(webhook);
    if let Ok(cluster) = &cluster {
        cluster.leave();
    }
    conclusion.exit();
}

fn ignored(title: &str, why: &str) -> Trial {
    Trial::test(format!("{title} (ignored: {why})"), || Ok(())).with_ignored_flag(true)
}

fn every_kind(cases: &[Case]) -> Result<(), Failed> {
    for definition in mesh_config::schema::definitions().iter().filter(|d| d.group != "config.istio.io") {
        let of = |good: bool| {
            let is_good = |is: Is| matches!(is, Is::Ok | Is::Warn) == good;
            cases.iter().any(|c| c.kind == definition.kind && is_good(c.is))
        };
        if !of(true) {
            return Err(format!("no accepted {}", definition.kind).into());
        }
        if definition.is_closed() && definition.group != "extensions.istio.io" && !of(false) {
            return Err(format!("no refused {}", definition.kind).into());
        }
    }
    Ok(())
}

fn by_pilot(case: &Case) -> Result<(), Failed> {
    let Verdict { errors, warnings } =
        judge(&json!({ "operation": "CREATE", "namespace": "default", "object": case.object() }));
    let errors: Vec<_> = errors.iter().map(|e| format!("{}: {}", e.field, e.why)).collect();
    let said = |list: &[String]| list.iter().any(|text| text.contains(&case.says));
    let good = match case.is {
        Is::Ok => errors.is_empty() && warnings.is_empty(),
        Is::Warn => errors.is_empty() && said(&warnings),
        Is::Unknown => {
            errors.is_empty()
                && warnings.iter().any(|w| w.contains("unknown field") && w.contains(&case.says))
        }
        Is::Schema | Is::Pilot => said(&errors),
    };
    if good { Ok(()) } else { Err(format!("{case:?}\nerrors {errors:#?}\nwarnings {warnings:#?}").into()) }
}

/// The sample author's files where they lie beside the workspace, and our own of the talk.
fn sample_files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    let mut dirs = vec![root.join("../shared/espresso-shop"), root.join("deploy/espresso-shop")];
    while let Some(dir) = dirs.pop() {
        for path in std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()) {
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "yaml") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}
