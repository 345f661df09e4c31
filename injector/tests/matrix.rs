//! Sixty and more pods, each injected by both ways: the webhook's patch and the filter on files must agree.
//!
//! In: a pod, and what each case changes about it. Out: `golden/matrix.txt`, how each differs from the plain one after injection
//! (`UPDATE_GOLDEN=1` rewrites it); with `CREMA_TEST_KUBECONFIG` every result is taken by a real API server, as a dry run.
//! Kept true: a case that changes nothing is a case that says so in the golden file. Not here: what each annotation means (`annotations`).

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf, process::ExitCode};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use injector::{
    file::inject_text,
    settings::{InterceptionMode, Settings},
    template::Templates,
    webhook::{self, Webhook},
    workload::Context,
};
use libtest_mimic::{Arguments, Failed, Trial};
use mesh_kube::kube::{
    Api, Client, Config,
    api::{ApiResource, DynamicObject, GroupVersionKind, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

const CASES: &str = include_str!("matrix.yaml");
const VARIABLE: &str = "CREMA_TEST_KUBECONFIG";

/// One pod: its name, what it lays over the plain pod, what the operator has set.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Keys of the pod's spec, instead of the plain ones.
    #[serde(default)]
    spec: BTreeMap<String, Value>,
    /// Keys of the only container, instead of the plain ones.
    #[serde(default)]
    container: BTreeMap<String, Value>,
    #[serde(default)]
    settings: Set,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Set {
    classic: bool,
    uncaptured: bool,
    pre_stop: u32,
}

impl Case {
    fn pod(&self) -> Value {
        let mut container = json!({
            "name": "app", "image": "docker.io/crema/pause:1", "ports": [{ "name": "http", "containerPort": 80 }],
            "readinessProbe": { "httpGet": { "path": "/ready", "port": "http" } },
        });
        self.container.iter().for_each(|(key, value)| container[key] = value.clone());
        let mut spec = json!({ "containers": [container], "serviceAccountName": "default" });
        self.spec.iter().for_each(|(key, value)| spec[key] = value.clone());
        let mut labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        labels.extend(self.labels.clone());
        let mut metadata = json!({ "name": "web", "namespace": "default", "labels": labels });
        if !self.annotations.is_empty() {
            metadata["annotations"] = json!(self.annotations);
        }
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec })
    }

    fn settings(&self) -> Settings {
        Settings {
            native_sidecars: !self.settings.classic,
            interception_mode: match self.settings.uncaptured {
                true => InterceptionMode::None,
                false => InterceptionMode::Redirect,
            },
            app_pre_stop_seconds: self.settings.pre_stop,
            ..Settings::default()
        }
    }

    /// What the webhook makes of it: the pod, or why not.
    fn reviewed(&self) -> Result<Value, String> {
        let webhook = Webhook { settings: self.settings(), templates: Templates::default(), told: None };
        let pod = self.pod();
        let review = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "u", "kind": { "group": "", "version": "v1", "kind": "Pod" }, "namespace": "default",
            "operation": "CREATE", "object": pod,
        } });
        let answer = webhook::answer(&webhook, &review)?;
        let response = &answer["response"];
        if response["allowed"] != true {
            return Err(response["status"]["message"].as_str().unwrap_or_default().to_owned());
        }
        let Some(patch) = response["patch"].as_str() else { return Ok(pod) };
        let patch = STANDARD.decode(patch).map_err(|e| e.to_string())?;
        let patch: Vec<Value> = serde_json::from_slice(&patch).map_err(|e| e.to_string())?;
        patch.iter().try_fold(pod, apply)
    }

    /// What the filter on files makes of it.
    fn filtered(&self) -> Result<Value, String> {
        let (settings, templates) = (self.settings(), Templates::default());
        let context = Context { settings: &settings, templates: &templates, namespace: "default" };
        let text = serde_saphyr::to_string(&self.pod()).map_err(|e| e.to_string())?;
        let (text, _) = inject_text(&text, "pod.yaml", &context).map_err(|e| e.to_string())?;
        serde_saphyr::from_str(&text).map_err(|e| e.to_string())
    }
}

/// One operation of RFC 6902.
fn apply(mut document: Value, operation: &Value) -> Result<Value, String> {
    let text = |key: &str| operation[key].as_str().ok_or_else(|| format!("{operation}: no {key}"));
    let (op, path) = (text("op")?, text("path")?);
    let (parent, last) = path.rsplit_once('/').ok_or_else(|| format!("{path}: the whole document"))?;
    let last = last.replace("~1", "/").replace("~0", "~");
    let at = document.pointer_mut(parent).ok_or_else(|| format!("{parent} is not there"))?;
    let value = operation.get("value").cloned().unwrap_or_default();
    match (at, op) {
        (Value::Object(map), "add") => drop(map.insert(last, value)),
        (Value::Object(map), "replace") if map.contains_key(&last) => drop(map.insert(last, value)),
        (Value::Object(map), "remove") if map.contains_key(&last) => drop(map.remove(&last)),
        (Value::Array(list), "add") if last == "-" => list.push(value),
        (Value::Array(list), _) => {
            let index: usize = last.parse().map_err(|_| format!("{path}: not an index"))?;
            match op {
                "add" if index <= list.len() => list.insert(index, value),
                "replace" if index < list.len() => list[index] = value,
                "remove" if index < list.len() => drop(list.remove(index)),
                _ => return Err(format!("{operation}: out of the list")),
            }
        }
        _ => return Err(format!("{operation}: cannot be applied")),
    }
    Ok(document)
}

/// The lines of one text that the other does not have, in their order.
fn only<'a>(these: &'a [String], those: &[String]) -> Vec<&'a str> {
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    those.iter().for_each(|line| *left.entry(line).or_default() += 1);
    let news = these.iter().filter(|line| match left.get_mut(line.as_str()) {
        Some(count) if *count > 0 => {
            *count -= 1;
            false
        }
        _ => true,
    });
    news.map(String::as_str).collect()
}

/// Every value of a document with its path: `spec.containers[app].image = "x"`.
fn facts(value: &Value, path: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(key, value)| facts(value, &format!("{path}.{key}"), out));
        }
        Value::Array(list) if !list.is_empty() => {
            for (index, item) in list.iter().enumerate() {
                let name =
                    item.get("name").and_then(Value::as_str).map_or_else(|| index.to_string(), str::to_owned);
                facts(item, &format!("{path}[{name}]"), out);
            }
        }
        scalar => out.push(format!("{} = {scalar}", path.trim_start_matches('.'))),
    }
}

fn facts_of(pod: &Value) -> Vec<String> {
    let mut out = Vec::new();
    facts(pod, "", &mut out);
    out
}

fn golden(cases: &[Case]) -> String {
    let plain = facts_of(&cases[0].reviewed().expect("the plain pod is injected"));
    let mut text = format!("## {}\n", cases[0].name);
    plain.iter().for_each(|line| writeln!(text, "  {line}").expect("a String takes all"));
    for case in &cases[1..] {
        write!(text, "\n## {}\n", case.name).expect("a String takes all");
        match case.reviewed() {
            Err(why) => writeln!(text, "! {why}").expect("a String takes all"),
            Ok(pod) if pod == case.pod() => text.push_str("(stays as it is)\n"),
            Ok(pod) => {
                let facts = facts_of(&pod);
                for (sign, lines) in [('-', only(&plain, &facts)), ('+', only(&facts, &plain))] {
                    lines
                        .iter()
                        .for_each(|line| writeln!(text, "{sign} {line}").expect("a String takes all"));
                }
            }
        }
    }
    text
}

fn same_as_golden(cases: &[Case]) -> Result<(), Failed> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/matrix.txt");
    let got = golden(cases);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &got)?;
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    if got == want {
        Ok(())
    } else {
        Err("golden/matrix.txt differs: UPDATE_GOLDEN=1, and review the diff".into())
    }
}

fn both_ways(case: &Case) -> Result<(), Failed> {
    match (case.reviewed(), case.filtered()) {
        (Ok(reviewed), Ok(filtered)) if reviewed == filtered => Ok(()),
        // The webhook's words stand around those of the filter, which name the file.
        (Err(_), Err(_)) => Ok(()),
        (reviewed, filtered) => {
            let lines = |r: &Result<Value, String>| r.as_ref().map_or_else(|e| vec![e.clone()], facts_of);
            let (a, b) = (lines(&reviewed), lines(&filtered));
            Err(format!("webhook only: {:#?}\nfilter only: {:#?}", only(&a, &b), only(&b, &a)).into())
        }
    }
}

fn taken(case: &Case, file: &str) -> Result<(), Failed> {
    let Ok(pod) = case.reviewed() else { return Ok(()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let config =
            Config::from_custom_kubeconfig(Kubeconfig::read_from(file)?, &KubeConfigOptions::default())
                .await?;
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Pod"));
        let api: Api<DynamicObject> = Api::namespaced_with(Client::try_from(config)?, "default", &kind);
        let params = PostParams { dry_run: true, field_manager: None };
        api.create(&params, &serde_json::from_value(pod)?).await?;
        Ok(())
    })
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let cases: Vec<Case> = serde_saphyr::from_str(CASES).expect("matrix.yaml");
    assert!(cases.len() >= 60, "only {} pods", cases.len());
    let cluster = std::env::var(VARIABLE).ok().filter(|file| std::path::Path::new(file).is_file());
    let reason = if cluster.is_none() {
        format!(" (ignored: ${VARIABLE} names no kubeconfig)")
    } else {
        String::new()
    };
    let mut trials = Vec::new();
    for case in &cases {
        let (one, two, file) = (case.clone(), case.clone(), cluster.clone().unwrap_or_default());
        trials.push(Trial::test(format!("both ways: {}", case.name), move || both_ways(&one)));
        let name = format!("API server: {}{reason}", case.name);
        trials.push(Trial::test(name, move || taken(&two, &file)).with_ignored_flag(!reason.is_empty()));
    }
    trials.push(Trial::test("all of them as in the golden file", move || same_as_golden(&cases)));
    libtest_mimic::run(&arguments, trials).exit_code()
}
