//! What an operator sets for all pods: addresses, images, defaults, and which pods to leave alone.
//!
//! In: a YAML file, flags. Out: [`Settings`]. Kept true: an unknown key is an error that names it.
//! Not here: what one pod sets for itself (`annotations`).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Settings of the injector; every key has a default, so an empty file is complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// What happens to pods that neither a label, an annotation nor a selector decides: `enabled` (default) or `disabled`.
    pub policy: Policy,
    /// Namespaces that are never injected.
    pub ignored_namespaces: Vec<String>,
    /// Pods that one of these matches are not injected, unless their own label or annotation asks for it.
    pub never_inject_selector: Vec<Selector>,
    /// Pods that one of these matches are injected, whatever the policy.
    pub always_inject_selector: Vec<Selector>,
    /// Image of the proxy. Default `crema/proxy`.
    pub image: String,
    /// Default: the kubelet's own rule.
    pub image_pull_policy: Option<String>,
    /// Run the proxy as an init container that restarts (Kubernetes 1.29). Default true.
    pub native_sidecars: bool,
    /// `REDIRECT` (default: the node captures traffic) or `NONE` (applications speak to the proxy themselves).
    pub interception_mode: InterceptionMode,
    /// Move the application's probes to the proxy's health port, so that they work under strict mTLS. Default true.
    pub rewrite_app_http_probe: bool,
    /// How long applications serve on after their pod was told to end, in seconds, so that callers have heard of it before a port closes:
    /// a `preStop` hook `sleep` (Kubernetes 1.30) for containers that have none. Default 0: none is added.
    pub app_pre_stop_seconds: u32,
    /// The proxy's health port. Default 15021; 0 turns the proxy's own probes off.
    pub status_port: u16,
    /// Name of this configuration, written as `istio.io/rev`. Default `default`.
    pub revision: String,
    /// Istio's ProxyConfig for all pods; a pod's annotation `proxy.istio.io/config` is laid over it.
    pub proxy_config: Map<String, Value>,
    /// Where certificates are issued.
    pub ca_addr: String,
    /// Where the proxy reports to; empty for nowhere.
    pub telemetry_addr: String,
    /// Trust domain of all identities. Default `cluster.local`.
    pub trust_domain: String,
    /// Name of this cluster. Default `Kubernetes`.
    pub cluster_id: String,
    /// Requests and limits of the proxy's container.
    pub resources: Value,
    /// Further environment variables of the proxy.
    pub env: Map<String, Value>,
    /// Capture defaults, as the annotations of the same names take them.
    pub include_outbound_ip_ranges: String,
    /// See [`Settings::include_outbound_ip_ranges`].
    pub exclude_outbound_ip_ranges: String,
    /// See [`Settings::include_outbound_ip_ranges`].
    pub include_inbound_ports: String,
    /// See [`Settings::include_outbound_ip_ranges`].
    pub exclude_inbound_ports: String,
}

/// What happens to a pod that nothing else decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Policy {
    /// It is injected.
    Enabled,
    /// It is not.
    Disabled,
}

/// How traffic reaches the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum InterceptionMode {
    /// The node's packet filter sends it there.
    Redirect,
    /// The application does.
    None,
}

impl InterceptionMode {
    /// Its name in annotations and in `ISTIO_META_INTERCEPTION_MODE`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Redirect => "REDIRECT",
            Self::None => "NONE",
        }
    }
}

/// A Kubernetes label selector.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// All of these must be on the pod.
    pub match_labels: std::collections::BTreeMap<String, String>,
    /// All of these must hold.
    pub match_expressions: Vec<Expression>,
}

/// One requirement of a [`Selector`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expression {
    /// The label's name.
    pub key: String,
    /// How it is compared.
    pub operator: Operator,
    /// With what.
    #[serde(default)]
    pub values: Vec<String>,
}

/// How an [`Expression`] compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// The value is one of the list.
    In,
    /// There is no such label, or its value is none of the list.
    NotIn,
    /// There is such a label.
    Exists,
    /// There is no such label.
    DoesNotExist,
}

impl Selector {
    /// True when `labels` meet every requirement. An empty selector matches nothing here: it would name every pod by accident.
    #[must_use]
    pub fn matches(&self, labels: &Map<String, Value>) -> bool {
        let value = |key: &str| labels.get(key).and_then(Value::as_str);
        let some = !(self.match_labels.is_empty() && self.match_expressions.is_empty());
        some && self.match_labels.iter().all(|(k, v)| value(k) == Some(v))
            && self.match_expressions.iter().all(|e| {
                let held = value(&e.key);
                let listed = held.is_some_and(|v| e.values.iter().any(|w| w == v));
                match e.operator {
                    Operator::In => listed,
                    Operator::NotIn => !listed,
                    Operator::Exists => held.is_some(),
                    Operator::DoesNotExist => held.is_none(),
                }
            })
    }
}

impl Default for Settings {
    fn default() -> Self {
        let names = |list: &[&str]| list.iter().map(|n| (*n).to_owned()).collect();
        let proxy_config =
            Map::from_iter([("discoveryAddress".to_owned(), Value::from("pilot.istio-system.svc:15012"))]);
        Self {
            policy: Policy::Enabled,
            ignored_namespaces: names(&[
                "kube-system",
                "kube-public",
                "kube-node-lease",
                "local-path-storage",
            ]),
            never_inject_selector: Vec::new(),
            always_inject_selector: Vec::new(),
            image: "crema/proxy".to_owned(),
            image_pull_policy: None,
            native_sidecars: true,
            interception_mode: InterceptionMode::Redirect,
            rewrite_app_http_probe: true,
            app_pre_stop_seconds: 0,
            status_port: 15021,
            revision: "default".to_owned(),
            proxy_config,
            ca_addr: "citadel.istio-system.svc:8060".to_owned(),
            telemetry_addr: "mixer.istio-system.svc:15004".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            cluster_id: "Kubernetes".to_owned(),
            resources: json!({
                "requests": { "cpu": "10m", "memory": "20Mi" },
                "limits": { "cpu": "2", "memory": "1Gi" },
            }),
            env: Map::new(),
            include_outbound_ip_ranges: "*".to_owned(),
            exclude_outbound_ip_ranges: String::new(),
            include_inbound_ports: "*".to_owned(),
            exclude_inbound_ports: String::new(),
        }
    }
}

impl Settings {
    /// Reads a settings file.
    ///
    /// # Errors
    /// When the text is not YAML, or a key is unknown or of the wrong type; the message names it.
    pub fn read(text: &str) -> Result<Self, String> {
        match crate::yaml::read(text)? {
            Value::Null => Ok(Self::default()),
            value => serde_json::from_value(value).map_err(|e| e.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_complete_and_an_unknown_key_is_named() {
        assert_eq!(Settings::read("# nothing\n"), Ok(Settings::default()));
        assert!(Settings::read("caAdr: x").expect_err("a typo").contains("caAdr"));
    }

    #[test]
    fn selectors_match_as_in_kubernetes() {
        let labels = Map::from_iter([("app".to_owned(), json!("web")), ("tier".to_owned(), json!("front"))]);
        let cases = [
            ("{}", false),
            ("{matchLabels: {app: web}}", true),
            ("{matchLabels: {app: web, tier: back}}", false),
            ("{matchExpressions: [{key: app, operator: In, values: [web, api]}]}", true),
            ("{matchExpressions: [{key: app, operator: NotIn, values: [web]}]}", false),
            ("{matchExpressions: [{key: other, operator: NotIn, values: [web]}]}", true),
            ("{matchExpressions: [{key: tier, operator: Exists}]}", true),
            ("{matchExpressions: [{key: tier, operator: DoesNotExist}]}", false),
        ];
        for (text, want) in cases {
            let settings = Settings::read(&format!("neverInjectSelector: [{text}]")).expect("settings");
            assert_eq!(settings.never_inject_selector[0].matches(&labels), want, "{text}");
        }
    }
}
