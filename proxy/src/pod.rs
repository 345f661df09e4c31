//! The environment of an injected pod: who this proxy is and whom it reports to.
//!
//! In: flags and environment variables, as the injector writes them, and the downward API's files. Out: [`Pod`] and its xDS node.
//! Kept true: what is missing is named with its variable. Not here: an Envoy bootstrap (`bootstrap`).

pub mod ask;
pub mod leave;
pub mod pages;
pub mod probers;
pub mod verbs;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, ensure};
use mesh_config::duration::GoDuration;
use probers::Probers;
use serde_json::Value;
use xds::{
    discovery::Node,
    prost_types::{Struct, Value as PbValue, value::Kind},
};

/// Flags of `proxy sidecar` and `proxy router`; the injector sets their variables.
#[derive(Debug, Clone, clap::Args)]
pub struct PodArgs {
    /// Name of the pod
    #[arg(long, env = "POD_NAME", value_name = "NAME", help_heading = "Pod")]
    pub pod_name: String,
    /// Namespace of the pod
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME", help_heading = "Pod")]
    pub pod_namespace: String,
    /// Address of the pod: upstream connections leave from it; a loopback address is bound by every socket of this proxy
    #[arg(long, env = "INSTANCE_IP", value_name = "IP", help_heading = "Pod")]
    pub instance_ip: IpAddr,
    /// Service account of the pod
    #[arg(
        long,
        env = "SERVICE_ACCOUNT",
        default_value = "default",
        value_name = "NAME",
        help_heading = "Pod"
    )]
    pub service_account: String,
    /// Directory with the downward API's files `labels` and `annotations`
    #[arg(
        long,
        env = "POD_INFO_DIR",
        default_value = "/etc/istio/pod",
        value_name = "DIR",
        help_heading = "Pod"
    )]
    pub pod_info_dir: PathBuf,
    /// Istio's ProxyConfig as JSON: discoveryAddress, concurrency, …
    #[arg(long, env = "PROXY_CONFIG", default_value = "{}", value_name = "JSON", help_heading = "Pod")]
    pub proxy_config: String,
    /// Where mixer takes telemetry over mTLS; without it nothing is reported
    #[arg(long, env = "TELEMETRY_ADDR", value_name = "HOST:PORT", help_heading = "Pod")]
    pub telemetry_addr: Option<String>,
    /// How traffic reaches this proxy: REDIRECT or NONE
    #[arg(long, env = "ISTIO_META_INTERCEPTION_MODE", default_value = "REDIRECT", help_heading = "Pod")]
    pub interception_mode: String,
    /// Name of the cluster, for multi-cluster meshes
    #[arg(long, env = "ISTIO_META_CLUSTER_ID", default_value = "Kubernetes", help_heading = "Pod")]
    pub cluster_id: String,
    /// The application's probes, which the kubelet asks the proxy for: JSON by path, as the injector writes it
    #[arg(
        long,
        env = "ISTIO_KUBE_APP_PROBERS",
        default_value = "{}",
        value_name = "JSON",
        help_heading = "Pod"
    )]
    pub app_probers: String,
    /// Name of the workload (Deployment, …) that owns the pod
    #[arg(long, env = "ISTIO_META_WORKLOAD_NAME", default_value = "", help_heading = "Pod")]
    pub workload_name: String,
}

/// A pod, as its proxy knows it.
#[derive(Debug, Clone)]
pub struct Pod {
    /// What the injector said.
    pub args: PodArgs,
    /// Labels of the pod.
    pub labels: BTreeMap<String, String>,
    /// `host:port` of pilot.
    pub discovery: String,
    /// Worker threads that were asked for; `None` for one per core.
    pub concurrency: Option<usize>,
    /// How long connections are still taken after SIGTERM.
    pub drain_delay: Duration,
    /// The application's probes.
    pub probers: Arc<Probers>,
    /// True at gateways.
    pub gateway: bool,
}

/// Where Istio's proxies find the control plane when nothing else is said.
const DISCOVERY: &str = "pilot.istio-system.svc:15012";

impl Pod {
    /// Reads what flags and environment do not hold.
    ///
    /// # Errors
    /// Names the variable or file that is wrong.
    pub fn new(args: PodArgs, gateway: bool) -> anyhow::Result<Self> {
        let config = config(&args.proxy_config)?;
        let discovery = config["discoveryAddress"].as_str().unwrap_or(DISCOVERY).to_owned();
        let concurrency = match &config["concurrency"] {
            Value::Null => None,
            value => {
                let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
                number.context("PROXY_CONFIG: concurrency is not a number")?
            }
            .into(),
        };
        let labels = downward(&args.pod_info_dir.join("labels"))?;
        let own_host = !args.instance_ip.is_loopback();
        Ok(Self {
            labels,
            discovery,
            concurrency: concurrency.filter(|n| *n > 0),
            drain_delay: drain_delay(&config)?.or(own_host.then_some(leave::DELAY)).unwrap_or_default(),
            probers: Arc::new(Probers::read(&args.app_probers)?),
            gateway,
            args,
        })
    }

    /// Istio's node id: `sidecar~IP~pod.namespace~namespace.svc.cluster.local`.
    #[must_use]
    pub fn node_id(&self) -> String {
        let role = if self.gateway { "router" } else { "sidecar" };
        let PodArgs { pod_name, pod_namespace: namespace, instance_ip, .. } = &self.args;
        format!("{role}~{instance_ip}~{pod_name}.{namespace}~{namespace}.svc.cluster.local")
    }

    /// `kubernetes://pod.namespace`, which mixer joins by.
    #[must_use]
    pub fn uid(&self) -> String {
        format!("kubernetes://{}.{}", self.args.pod_name, self.args.pod_namespace)
    }

    /// Who we are, for pilot.
    #[must_use]
    pub fn node(&self) -> Node {
        let text = |text: &str| PbValue { kind: Some(Kind::StringValue(text.to_owned())) };
        let labels = self.labels.iter().map(|(k, v)| (k.clone(), text(v))).collect();
        let labels = PbValue { kind: Some(Kind::StructValue(Struct { fields: labels })) };
        let args = &self.args;
        let fields = [
            ("NAME", text(&args.pod_name)),
            ("NAMESPACE", text(&args.pod_namespace)),
            ("SERVICE_ACCOUNT", text(&args.service_account)),
            ("INSTANCE_IPS", text(&args.instance_ip.to_string())),
            ("INTERCEPTION_MODE", text(&args.interception_mode)),
            ("CLUSTER_ID", text(&args.cluster_id)),
            ("WORKLOAD_NAME", text(&args.workload_name)),
            ("LABELS", labels),
            ("CREMA_VHDS", text("true")),
        ];
        let app = self.labels.get("app").map_or(args.pod_name.as_str(), String::as_str);
        Node {
            id: self.node_id(),
            cluster: format!("{app}.{}", args.pod_namespace),
            metadata: Some(Struct { fields: fields.map(|(k, v)| (k.to_owned(), v)).into_iter().collect() }),
            user_agent_name: "crema".to_owned(),
            user_agent_version: mesh_runtime::cli::VERSION.to_owned(),
            ..Node::default()
        }
    }
}

/// `PROXY_CONFIG`, unread.
fn config(text: &str) -> anyhow::Result<Value> {
    serde_json::from_str(text).context("PROXY_CONFIG: not valid JSON")
}

/// `terminationDrainDuration` of it: seconds with an `s`, as protobuf writes durations, or Go's `1m30s`.
fn drain_delay(config: &Value) -> anyhow::Result<Option<Duration>> {
    let Some(text) = config.get("terminationDrainDuration").filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let duration = text.as_str().and_then(|text| text.parse::<GoDuration>().ok());
    duration
        .map(|duration| Some(duration.0))
        .context("PROXY_CONFIG: terminationDrainDuration is not a duration such as 5s")
}

/// A file of the downward API: `key="value"` per line, values quoted as in Go. A missing file is an empty one.
fn downward(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let mut entries = BTreeMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = || format!("{}:{}", path.display(), number + 1);
        let (key, value) = line.split_once('=').with_context(|| format!("{}: not key=\"value\"", at()))?;
        // Go's quoting of printable text is JSON's.
        let value: String = serde_json::from_str(value).with_context(at)?;
        ensure!(!key.is_empty(), "{}: empty key", at());
        entries.insert(key.to_owned(), value);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(config: &str, dir: &Path) -> PodArgs {
        PodArgs {
            pod_name: "web-1".to_owned(),
            pod_namespace: "default".to_owned(),
            instance_ip: IpAddr::from([127, 64, 1, 3]),
            service_account: "web".to_owned(),
            pod_info_dir: dir.to_path_buf(),
            proxy_config: config.to_owned(),
            telemetry_addr: None,
            interception_mode: "NONE".to_owned(),
            cluster_id: "Kubernetes".to_owned(),
            app_probers: "{}".to_owned(),
            workload_name: "web".to_owned(),
        }
    }

    #[test]
    fn a_pod_names_itself_as_istio_does() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("labels"), "app=\"web\"\nversion=\"v1\"\n").expect("written");
        let config = r#"{"discoveryAddress": "127.64.0.2:15012", "concurrency": 2}"#;
        let pod = Pod::new(args(config, dir.path()), false).expect("complete");
        assert_eq!(pod.node_id(), "sidecar~127.64.1.3~web-1.default~default.svc.cluster.local");
        assert_eq!((pod.discovery.as_str(), pod.concurrency), ("127.64.0.2:15012", Some(2)));
        let node = pod.node();
        assert_eq!(node.cluster, "web.default");
        let labels = &node.metadata.expect("metadata").fields["LABELS"];
        assert!(matches!(&labels.kind, Some(Kind::StructValue(s)) if s.fields.len() == 2));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        for (config, labels, want) in [
            ("{", "", "PROXY_CONFIG: not valid JSON"),
            (r#"{"concurrency": "x"}"#, "", "PROXY_CONFIG: concurrency is not a number"),
            (r#"{"terminationDrainDuration": 5}"#, "", "PROXY_CONFIG: terminationDrainDuration is not"),
            ("{}", "app", "labels:1: not key=\"value\""),
        ] {
            std::fs::write(dir.path().join("labels"), labels).expect("written");
            let error = format!("{:#}", Pod::new(args(config, dir.path()), true).expect_err("refused"));
            assert!(error.contains(want), "{error}");
        }
    }
}
