//! What becomes of objects, as data: judged by pilot's webhook, and by a real API server with our definitions.
//!
//! The second half needs `KUBECONFIG` of a cluster with `deploy/crds` applied, and `kubectl`; without them its tests
//! show as ignored with the reason. With the webhook installed there, its words are looked for in kubectl's as well.

use libtest_mimic::{Arguments, Failed, Trial};
use pilot::admission::{Verdict, judge};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const OBJECTS: &str = include_str!("data/objects.yaml");

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
    let cases: Vec<Case> = serde_saphyr::from_str(OBJECTS).expect("the table is as its head says");
    assert!(cases.len() >= 150, "only {} objects", cases.len());
    let cluster = Cluster::find();
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
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
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

#[derive(Clone, Debug)]
struct Cluster {
    kubectl: String,
    /// Whether pilot's webhook refuses there.
    webhook: bool,
}

impl Cluster {
    fn find() -> Result<Self, String> {
        if std::env::var_os("KUBECONFIG").is_none() {
            return Err("no KUBECONFIG".to_owned());
        }
        let kubectl = std::env::var("KUBECTL").unwrap_or_else(|_| "kubectl".to_owned());
        let mut cluster = Self { kubectl, webhook: false };
        let get = cluster
            .run(&["get", "crd", "virtualservices.networking.istio.io", "rules.config.istio.io"], None);
        match get {
            Err(e) => return Err(format!("no kubectl: {e}")),
            Ok(out) if !out.status.success() => {
                return Err("the cluster has no definitions of deploy/crds".to_owned());
            }
            Ok(_) => {}
        }
        let path = "jsonpath={.webhooks[0].failurePolicy}";
        let policy =
            cluster.run(&["get", "validatingwebhookconfiguration", "crema-validator", "-o", path], None);
        cluster.webhook = policy.is_ok_and(|out| out.stdout == b"Fail");
        Ok(cluster)
    }

    fn run(&self, args: &[&str], input: Option<&str>) -> std::io::Result<Output> {
        let mut child = Command::new(&self.kubectl)
            .args(["--request-timeout=20s"])
            .args(args)
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let (Some(mut pipe), Some(text)) = (child.stdin.take(), input) {
            pipe.write_all(text.as_bytes())?;
        }
        child.wait_with_output()
    }

    fn apply(&self, file: &str, input: Option<&str>) -> Result<(bool, String), Failed> {
        let out = self.run(&["apply", "--dry-run=server", "--validate=strict", "-f", file], input)?;
        Ok((out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned()))
    }

    fn judge(&self, case: &Case) -> Result<(), Failed> {
        let (passed, said) = self.apply("-", Some(&case.object().to_string()))?;
        let by_webhook = said.contains("denied the request");
        let good = match case.is {
            Is::Ok => passed && !said.contains("Warning:"),
            Is::Warn => passed && (!self.webhook || said.contains("Warning:") && said.contains(&case.says)),
            Is::Unknown => !passed && said.contains("unknown field"),
            Is::Schema => !passed && !by_webhook && !said.contains("unknown field"),
            Is::Pilot if self.webhook => by_webhook && said.contains(&case.says),
            Is::Pilot => passed,
        };
        if good { Ok(()) } else { Err(format!("{case:?}\npassed: {passed}\n{said}").into()) }
    }

    fn file(&self, file: &Path) -> Result<(), Failed> {
        let (passed, said) = self.apply(&file.to_string_lossy(), None)?;
        // A namespace that the manifest makes may not be there yet.
        let other = said
            .lines()
            .filter(|l| l.contains("rror") && !l.contains("namespaces \"istio-system\" not found"));
        if passed || other.count() == 0 { Ok(()) } else { Err(said.into()) }
    }
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
