//! Injection itself: a pod without a proxy becomes one with it.
//!
//! In: a pod (`metadata`, `spec`), who owns it, settings, templates. Out: [`Outcome`]. Kept true: pure, and injecting twice is injecting
//! once; what the pod's author wrote wins over the template. Not here: where pods are found (`workload`, `webhook`).

use serde_json::{Map, Value, json};

use crate::{
    InjectError, annotations,
    annotations::Wishes,
    decide::{Decision, decide},
    overlay, probes,
    settings::{InterceptionMode, Settings},
    template::{Templates, Values},
};

/// Name of the proxy's container.
pub const PROXY: &str = "istio-proxy";
/// Ports of the proxy's pages, which `proxy capture` leaves alone by itself.
const PROXY_PORTS: [u16; 3] = [15020, 15021, 15090];
/// Says what injection added, as JSON; by it the next injection takes it away again.
pub const STATUS: &str = "sidecar.istio.io/status";
/// Keeps what the author wrote for the proxy's container, as JSON.
pub const OVERRIDES: &str = "proxy.istio.io/overrides";

/// Containers and volumes that injectors since Istio 1.0 have added.
const OLD_CONTAINERS: [&str; 4] = [PROXY, "istio-init", "istio-validation", "enable-core-dump"];
const OLD_VOLUMES: [&str; 11] = [
    "istio-envoy",
    "istio-certs",
    "istio-data",
    "istio-podinfo",
    "istio-token",
    "istio-ca-cert",
    "istiod-ca-cert",
    "istio-ca-crl",
    "workload-socket",
    "credential-socket",
    "workload-certs",
];

/// Whose pod it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner {
    /// Namespace that the pod will live in.
    pub namespace: String,
    /// Name of the Deployment (or the like) behind it.
    pub workload: String,
    /// The same as a reference: `kubernetes://apis/apps/v1/namespaces/NS/deployments/NAME`.
    pub reference: String,
}

/// What became of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It has a proxy now.
    Injected {
        /// The whole pod.
        pod: Value,
        /// What its author should know.
        warnings: Vec<String>,
    },
    /// It stays as it is; the text says why.
    Skipped(String),
}

/// Adds the proxy to `pod`, if it is to have one.
///
/// # Errors
/// When an annotation cannot be honoured, or the pod is not one.
pub fn inject(
    pod: &Value,
    owner: &Owner,
    settings: &Settings,
    templates: &Templates,
) -> Result<Outcome, InjectError> {
    if !pod.get("spec").is_some_and(Value::is_object) {
        return Err(InjectError::NotAPod("it has no spec".to_owned()));
    }
    if let Decision::Skip(why) = decide(pod, &owner.namespace, settings) {
        return Ok(Outcome::Skipped(why));
    }
    let mut pod = without_proxy(pod);
    let own = own_proxy(&mut pod)?;
    let wishes = annotations::read(&map_at(&pod, "annotations"), settings)?;
    let probers = match wishes.rewrite_probes && wishes.status_port != 0 {
        true => probes::rewrite(&mut pod, wishes.status_port),
        false => Map::new(),
    };
    let values = values(&pod, owner, settings, &wishes, &probers)?;
    user_volumes(&mut pod, &wishes);
    stop_later(&mut pod, settings.app_pre_stop_seconds);
    let mut added = Added::default();
    for name in &wishes.templates {
        let Some(filled) = templates.fill(name, &values) else {
            let known = templates.names().collect::<Vec<_>>().join(", ");
            return Err(InjectError::Template { name: name.clone(), known });
        };
        apply(&mut pod, &filled, own.as_ref(), &wishes, &mut added)?;
    }
    metadata(&mut pod, "annotations").insert(STATUS.to_owned(), json!(added.status(settings)));
    Ok(Outcome::Injected { pod, warnings: wishes.warnings })
}

/// What a template put into the pod.
#[derive(Default)]
struct Added {
    init: Vec<String>,
    containers: Vec<String>,
    volumes: Vec<String>,
}

impl Added {
    fn status(&self, settings: &Settings) -> String {
        json!({
            "initContainers": self.init, "containers": self.containers, "volumes": self.volumes,
            "imagePullSecrets": null, "revision": settings.revision,
        })
        .to_string()
    }
}

/// The pod as its author wrote it: everything that an earlier injection added is taken out, and moved probes are put back.
fn without_proxy(pod: &Value) -> Value {
    let mut pod = pod.clone();
    let status = map_at(&pod, "annotations").get(STATUS).and_then(Value::as_str).map(str::to_owned);
    let legacy = containers(&pod, "initContainers").any(|c| name_of(c) == "istio-init");
    if status.is_none() && !legacy {
        return pod;
    }
    if let Some(Value::Object(originals)) = moved_probes(&pod) {
        probes::restore(&mut pod, &originals);
    }
    let status: Value = status.and_then(|s| serde_json::from_str(&s).ok()).unwrap_or_default();
    let listed = |key: &str, old: &[&str], name: &str| {
        let said = status.get(key).and_then(Value::as_array).is_some_and(|l| l.iter().any(|n| n == name));
        said || old.contains(&name)
    };
    if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
        for (list, old) in [
            ("initContainers", &OLD_CONTAINERS[..]),
            ("containers", &OLD_CONTAINERS),
            ("volumes", &OLD_VOLUMES),
        ] {
            let Some(items) = spec.get_mut(list).and_then(Value::as_array_mut) else { continue };
            // Native and classic proxies change lists, so either list of names may hold one.
            let other = if list == "initContainers" { "containers" } else { "initContainers" };
            items.retain(|i| {
                !listed(list, old, name_of(i)) && (list == "volumes" || !listed(other, &[], name_of(i)))
            });
            if items.is_empty() && list != "containers" {
                spec.shift_remove(list);
            }
        }
    }
    metadata(&mut pod, "annotations").shift_remove(STATUS);
    pod
}

/// Where the proxy of an earlier injection kept the application's own probes.
fn moved_probes(pod: &Value) -> Option<Value> {
    let mut proxies = containers(pod, "containers").chain(containers(pod, "initContainers"));
    let env = proxies.find(|c| name_of(c) == PROXY)?.get("env")?.as_array()?;
    let text = env.iter().find(|e| name_of(e) == "ISTIO_KUBE_APP_PROBERS")?.get("value")?.as_str()?;
    serde_json::from_str(text).ok()
}

/// Takes a proxy container that the author declared out of the pod, and remembers it in an annotation for the next injection.
fn own_proxy(pod: &mut Value) -> Result<Option<Map<String, Value>>, InjectError> {
    if let Some(text) = map_at(pod, "annotations").get(OVERRIDES).and_then(Value::as_str) {
        let kept: Value = serde_json::from_str(text).map_err(|e| InjectError::Annotation {
            name: OVERRIDES,
            value: text.to_owned(),
            want: format!("what injection wrote there ({e})"),
        })?;
        let lists = ["containers", "initContainers"].into_iter().filter_map(|l| kept.get(l)?.as_array());
        return Ok(lists.flatten().find(|c| name_of(c) == PROXY).and_then(Value::as_object).cloned());
    }
    for list in ["containers", "initContainers"] {
        let Some(items) = pod.pointer_mut(&format!("/spec/{list}")).and_then(Value::as_array_mut) else {
            continue;
        };
        if let Some(at) = items.iter().position(|c| name_of(c) == PROXY) {
            let own = items.remove(at);
            let kept = json!({ list: [own.clone()] }).to_string();
            metadata(pod, "annotations").insert(OVERRIDES.to_owned(), json!(kept));
            return Ok(own.as_object().cloned());
        }
    }
    Ok(None)
}

fn values(
    pod: &Value,
    owner: &Owner,
    settings: &Settings,
    wishes: &Wishes,
    probers: &Map<String, Value>,
) -> Result<Values, InjectError> {
    let labels = map_at(pod, "labels");
    let label =
        |names: &[&str]| names.iter().find_map(|n| labels.get(*n)).and_then(Value::as_str).map(str::to_owned);
    let name = label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let revision = label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    let text = |text: &str| Some(text).filter(|t| !t.is_empty()).map(Value::from);
    let mut config = wishes.proxy_config.clone();
    let extra = extra_env(&mut config, settings);
    let capture = wishes.interception_mode == InterceptionMode::Redirect;
    let [delay, period, failures] = wishes.readiness;
    let mut values = Values::new();
    let mut set =
        |name: &str, value: Option<Value>| values.insert(name.to_owned(), value.unwrap_or_default());
    set("namespace", text(&owner.namespace));
    set("workloadName", text(&owner.workload));
    set("owner", text(&owner.reference));
    set("canonicalName", name.or_else(|| Some(owner.workload.clone())).map(Value::from));
    set("canonicalRevision", Some(revision.unwrap_or_else(|| "latest".to_owned()).into()));
    set("defaultContainer", containers(pod, "containers").next().map(|c| name_of(c).into()));
    set("revision", text(&settings.revision));
    set("image", text(&wishes.image));
    set("imagePullPolicy", settings.image_pull_policy.as_deref().and_then(text));
    set("resources", Some(wishes.resources.clone()));
    set("statusPort", Some(json!(wishes.status_port)));
    set("healthPort", Some(json!(wishes.status_port.to_string())));
    set("health", Some(json!(wishes.status_port != 0)));
    set("readinessInitialDelaySeconds", Some(json!(delay)));
    set("readinessPeriodSeconds", Some(json!(period)));
    set("readinessFailureThreshold", Some(json!(failures)));
    set("native", Some(json!(wishes.native)));
    set("hold", Some(json!(!wishes.native && holds(wishes) && wishes.status_port != 0)));
    set("capture", Some(json!(capture)));
    set("interceptionMode", text(wishes.interception_mode.name()));
    set("proxyConfig", Some(json!(Value::Object(config).to_string())));
    set("caAddr", Some(json!(settings.ca_addr)));
    set("telemetryAddr", Some(json!(settings.telemetry_addr)));
    set("trustDomain", Some(json!(settings.trust_domain)));
    set("clusterId", Some(json!(settings.cluster_id)));
    set("logLevel", wishes.log_level.as_deref().and_then(text));
    set("extraEnv", Some(json!(extra)));
    let probers = (!probers.is_empty()).then(|| json!(Value::Object(probers.clone()).to_string()));
    set("appProbers", probers);
    for (name, value) in &wishes.capture {
        set(name, Some(json!(value)));
    }
    // The kubelet's probes reach the proxy as they are, at whatever port.
    if wishes.status_port != 0 && !PROXY_PORTS.contains(&wishes.status_port) {
        let all =
            wishes.capture.iter().filter(|(name, list)| *name == "excludeInboundPorts" && !list.is_empty());
        let ports: Vec<_> =
            all.map(|(_, list)| list.clone()).chain([wishes.status_port.to_string()]).collect();
        set("excludeInboundPorts", Some(json!(ports.join(","))));
    }
    match containers(pod, "containers").any(|c| name_of(c).is_empty()) {
        true => Err(InjectError::NotAPod("a container has no name".to_owned())),
        false => Ok(values),
    }
}

/// `proxyMetadata` and the operator's own variables: Istio passes the former as environment, so does Crema.
fn extra_env(config: &mut Map<String, Value>, settings: &Settings) -> Vec<Value> {
    let metadata = config.get("proxyMetadata").and_then(Value::as_object).cloned().unwrap_or_default();
    let all = settings.env.iter().chain(metadata.iter());
    all.map(|(name, value)| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        json!({ "name": name, "value": text })
    })
    .collect()
}

fn apply(
    pod: &mut Value,
    filled: &Value,
    own: Option<&Map<String, Value>>,
    wishes: &Wishes,
    added: &mut Added,
) -> Result<(), InjectError> {
    let list = |path: &str| filled.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default();
    for group in ["labels", "annotations"] {
        let Some(entries) = filled.pointer(&format!("/metadata/{group}")).and_then(Value::as_object) else {
            continue;
        };
        let into = metadata(pod, group);
        // A pod that says anything about its own metrics keeps them; half of each would be neither.
        let scraped = into.keys().any(|k| k.starts_with("prometheus.io/"));
        for (key, value) in entries {
            if !(scraped && key.starts_with("prometheus.io/")) {
                into.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
    }
    let (mut first, mut last) = (list("/spec/initContainers"), list("/spec/containers"));
    for container in first.iter_mut().filter_map(Value::as_object_mut) {
        // Older templates say `restartPolicy` on istio-init; since Kubernetes 1.29 that would never let the pod start.
        container.shift_remove("restartPolicy");
    }
    for proxy in last.iter_mut().filter_map(Value::as_object_mut) {
        if let Some(own) = own.filter(|own| own.get("name") == proxy.get("name")) {
            overlay::container(proxy, own);
        }
        if proxy.get("name").is_some_and(|n| n == PROXY) {
            let mounts = proxy.entry("volumeMounts").or_insert_with(|| json!([]));
            if let Some(mounts) = mounts.as_array_mut() {
                overlay::by_key(mounts, &wishes.mounts, "mountPath");
            }
        }
    }
    let gateway = containers(pod, "containers").next().is_none();
    let native = wishes.native && !gateway;
    if native {
        let (proxy, others) = last.into_iter().partition::<Vec<_>, _>(|c| name_of(c) == PROXY);
        last = others;
        for mut proxy in proxy {
            proxy["restartPolicy"] = json!("Always");
            first.push(proxy);
        }
    }
    added.init.extend(first.iter().map(|c| name_of(c).to_owned()));
    added.containers.extend(last.iter().map(|c| name_of(c).to_owned()));
    let hold = holds(wishes);
    let volumes = list("/spec/volumes");
    added.volumes.extend(volumes.iter().map(|v| name_of(v).to_owned()));
    place(pod, "initContainers", first, native)?;
    place(pod, "containers", last, hold)?;
    place(pod, "volumes", volumes, false)?;
    for (key, value) in filled.get("spec").and_then(Value::as_object).into_iter().flatten() {
        if !["initContainers", "containers", "volumes"].contains(&key.as_str()) {
            let spec = pod.get_mut("spec").and_then(Value::as_object_mut);
            spec.map(|spec| spec.entry(key.clone()).or_insert_with(|| value.clone()));
        }
    }
    Ok(())
}

/// Whether the application waits for the proxy where that takes more than the kubelet's order: `holdApplicationUntilProxyStarts`.
fn holds(wishes: &Wishes) -> bool {
    wishes.proxy_config.get("holdApplicationUntilProxyStarts") == Some(&Value::Bool(true))
}

/// Adds `items` before or after those of the pod's list; one with a name that is taken is a mistake of the pod.
fn place(pod: &mut Value, list: &str, items: Vec<Value>, before: bool) -> Result<(), InjectError> {
    if items.is_empty() {
        return Ok(());
    }
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    let slot = spec.entry(list).or_insert_with(|| json!([]));
    if slot.is_null() {
        *slot = json!([]);
    }
    let Some(there) = slot.as_array_mut() else {
        return Err(InjectError::NotAPod(format!("spec.{list} is not a list")));
    };
    if let Some(twice) = items.iter().find(|i| there.iter().any(|t| name_of(t) == name_of(i))) {
        return Err(InjectError::NotAPod(format!("spec.{list} already has a {:?}", name_of(twice))));
    }
    let at = if before { 0 } else { there.len() };
    there.splice(at..at, items);
    Ok(())
}

fn user_volumes(pod: &mut Value, wishes: &Wishes) {
    if wishes.volumes.is_empty() {
        return;
    }
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if let Some(volumes) = spec.entry("volumes").or_insert_with(|| json!([])).as_array_mut() {
        overlay::by_key(volumes, &wishes.volumes, "name");
    }
}

/// `metadata.labels` or `metadata.annotations`, made where missing.
/// Lets applications serve on for a moment when their pod is to end: until then its callers have not heard of it, and an application
/// that closes its port at once turns their last requests away. Who has a preStop hook of their own knows better; a pod that has
/// little time to end keeps it.
fn stop_later(pod: &mut Value, seconds: u32) {
    let grace = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_u64).unwrap_or(30);
    if seconds == 0 || grace < 4 * u64::from(seconds) {
        return;
    }
    let Some(list) = pod.pointer_mut("/spec/containers").and_then(Value::as_array_mut) else { return };
    for container in
        list.iter_mut().filter(|c| name_of(c) != PROXY && c.pointer("/lifecycle/preStop").is_none())
    {
        object_in(container, "lifecycle")
            .insert("preStop".to_owned(), json!({ "sleep": { "seconds": seconds } }));
    }
}

fn metadata<'a>(pod: &'a mut Value, group: &str) -> &'a mut Map<String, Value> {
    object(object_in(pod, "metadata"), group)
}

fn object_in<'a>(value: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    object(value.as_object_mut().expect("made an object above"), key)
}

fn object<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let slot = map.entry(key).or_insert_with(|| json!({}));
    if !slot.is_object() {
        *slot = json!({});
    }
    slot.as_object_mut().expect("made an object above")
}

fn map_at(pod: &Value, group: &str) -> Map<String, Value> {
    pod.pointer(&format!("/metadata/{group}")).and_then(Value::as_object).cloned().unwrap_or_default()
}

fn containers<'a>(pod: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    pod.pointer(&format!("/spec/{list}")).and_then(Value::as_array).into_iter().flatten()
}

fn name_of(item: &Value) -> &str {
    item.get("name").and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
#[path = "pod_tests.rs"]
mod tests;
