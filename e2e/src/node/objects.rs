//! The objects that a cluster would have for running pods, made from what people apply.
//!
//! In: injected workloads and Services. Out: Pods, Sidecars, EndpointSlices and friends, as JSON values. Kept true: pure; EndpointSlices
//! carry the ports that are really bound. Not here: writing them (`files`), running anything (`mod`).

use std::net::Ipv4Addr;

use serde_json::{Map, Value, json};

use super::network::bound_port;

/// Label by which a pod's own Sidecar finds it.
pub const POD_LABEL: &str = "local.crema.dev/pod";
/// Name of the proxy's container.
pub const PROXY: &str = "istio-proxy";
/// Port of the proxy's HTTP_PROXY listener on every pod's address.
pub const EGRESS_PORT: u16 = 15080;

/// One container port of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name, if it has one.
    pub name: String,
    /// What the pod's author wrote.
    pub container_port: u16,
    /// What is bound on the pod's address.
    pub bound: u16,
    /// Where the application listens on 127.0.0.1, when a proxy stands before it.
    pub app: Option<u16>,
    /// The container that has it.
    pub container: String,
}

/// A pod of the local node.
#[derive(Debug, Clone, PartialEq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its unique id.
    pub uid: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// All its ports.
    pub ports: Vec<Port>,
    /// Deployment, and ReplicaSet, it belongs to; none for a bare pod.
    pub owner: Option<(String, String)>,
    /// The template after injection: `metadata` and `spec`.
    pub template: Value,
    /// All containers are up.
    pub ready: bool,
}

impl Pod {
    /// Its service account.
    #[must_use]
    pub fn account(&self) -> &str {
        self.template.pointer("/spec/serviceAccountName").and_then(Value::as_str).unwrap_or("default")
    }

    /// Its labels, with those that the node adds.
    #[must_use]
    pub fn labels(&self) -> Map<String, Value> {
        let mut labels = map(&self.template, "/metadata/labels");
        labels.insert(POD_LABEL.to_owned(), json!(self.name));
        if let Some((deployment, set)) = &self.owner {
            let hash = set.strip_prefix(deployment).unwrap_or(set).trim_start_matches('-');
            labels.insert("pod-template-hash".to_owned(), json!(hash));
        }
        labels
    }

    /// All containers: those that run before and beside the others first.
    pub fn containers(&self) -> impl Iterator<Item = &Value> {
        let list = |path| self.template.pointer(path).and_then(Value::as_array).into_iter().flatten();
        list("/spec/initContainers").chain(list("/spec/containers"))
    }

    /// True when a proxy was injected beside an application.
    #[must_use]
    pub fn has_sidecar(&self) -> bool {
        self.containers().any(|c| name(c) == PROXY) && self.containers().any(|c| name(c) != PROXY)
    }

    /// The Pod as the API server would show it.
    #[must_use]
    pub fn object(&self) -> Value {
        let mut spec = map(&self.template, "/spec");
        spec.insert("serviceAccountName".to_owned(), json!(self.account()));
        spec.insert("nodeName".to_owned(), json!("local"));
        let mut metadata = json!({
            "name": self.name, "namespace": self.namespace, "uid": self.uid,
            "labels": self.labels(), "annotations": map(&self.template, "/metadata/annotations"),
        });
        if let Some((_, set)) = &self.owner {
            metadata["ownerReferences"] = json!([{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "uid": format!("{}-set", self.uid),
                "controller": true,
            }]);
        }
        let status = if self.ready { "True" } else { "False" };
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec,
            "status": {
                "phase": "Running", "podIP": self.ip.to_string(), "podIPs": [{ "ip": self.ip.to_string() }],
                "hostIP": "127.0.0.1",
                "conditions": [
                    { "type": "Ready", "status": status },
                    { "type": "ContainersReady", "status": status },
                ],
            },
        })
    }

    /// What Istio wants where nothing captures traffic: bound pod port → the application's own, and an HTTP proxy for its calls.
    #[must_use]
    pub fn sidecar(&self) -> Option<Value> {
        if !self.has_sidecar() {
            return None;
        }
        let ip = self.ip.to_string();
        let ingress: Vec<_> = self
            .ports
            .iter()
            .filter_map(|port| {
                let number = port.bound;
                let unnamed = format!("http-{number}");
                let name = if port.name.is_empty() { &unnamed } else { &port.name };
                Some(json!({
                    "port": { "number": number, "protocol": protocol(&port.name), "name": name },
                    "bind": ip,
                    "defaultEndpoint": format!("127.0.0.1:{}", port.app?),
                }))
            })
            .collect();
        let mut spec = json!({
            "workloadSelector": { "labels": { POD_LABEL: self.name } },
            "egress": [{
                "port": { "number": EGRESS_PORT, "protocol": "HTTP_PROXY", "name": "http-proxy" },
                "bind": ip, "captureMode": "NONE", "hosts": ["*/*"],
            }],
        });
        if !ingress.is_empty() {
            spec["ingress"] = json!(ingress);
        }
        Some(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "Sidecar",
            "metadata": { "name": self.name, "namespace": self.namespace }, "spec": spec,
        }))
    }

    /// The bound port behind a Service's `targetPort`, by number or by name.
    #[must_use]
    pub fn target(&self, target: &Value) -> Option<u16> {
        let number = target.as_u64().and_then(|n| u16::try_from(n).ok());
        match (number, target.as_str()) {
            (Some(number), _) => Some(bound_port(number)),
            (None, Some(name)) => self.ports.iter().find(|p| p.name == name).map(|p| p.bound),
            (None, None) => None,
        }
    }
}

/// Protocol of a port as its name says it, in the spelling of a Sidecar.
fn protocol(name: &str) -> &'static str {
    match name.split('-').next().unwrap_or_default() {
        "tcp" | "mongo" | "redis" | "mysql" => "TCP",
        "grpc" => "GRPC",
        "http2" => "HTTP2",
        "tls" | "https" => "TLS",
        _ => "HTTP",
    }
}

/// The EndpointSlice of a Service over the node's pods; `None` for a Service without a selector.
#[must_use]
pub fn endpoint_slice(service: &Value, pods: &[&Pod]) -> Option<Value> {
    let selector = map(service, "/spec/selector");
    if selector.is_empty() {
        return None;
    }
    let text = |path: &str| service.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let (service_name, namespace) = (text("/metadata/name"), text("/metadata/namespace"));
    let chosen: Vec<_> = pods.iter().filter(|p| p.namespace == namespace && selected(&selector, p)).collect();
    let mut ports = Vec::new();
    for port in list(service, "/spec/ports") {
        // Pods of one Service have the same template here, or at least the same ports; the first that knows the port decides.
        let target = port.get("targetPort").or_else(|| port.get("port")).cloned().unwrap_or_default();
        if let Some(bound) = chosen.iter().find_map(|p| p.target(&target)) {
            let mut entry = json!({ "port": bound, "protocol": "TCP" });
            for key in ["name", "appProtocol"] {
                if let Some(value) = port.get(key) {
                    entry[key] = value.clone();
                }
            }
            ports.push(entry);
        }
    }
    let endpoints: Vec<_> = chosen
        .iter()
        .map(|pod| {
            json!({
                "addresses": [pod.ip.to_string()],
                "conditions": { "ready": pod.ready, "serving": pod.ready, "terminating": false },
                "nodeName": "local",
                "targetRef": { "kind": "Pod", "name": pod.name, "namespace": pod.namespace, "uid": pod.uid },
            })
        })
        .collect();
    Some(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("{service_name}-local"), "namespace": namespace,
            "labels": { "kubernetes.io/service-name": service_name },
        },
        "endpoints": endpoints, "ports": ports,
    }))
}

/// True when a pod has every label of a Service's selector.
#[must_use]
pub fn selected(selector: &Map<String, Value>, pod: &Pod) -> bool {
    let labels = map(&pod.template, "/metadata/labels");
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// A name's last part in the alphabet that Kubernetes uses: no vowels, no digits that look like letters.
#[must_use]
pub fn short_hash(text: &str, length: usize) -> String {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let mut hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    (0..length)
        .map(|_| {
            let index = usize::try_from(hash % 27).unwrap_or_default();
            hash /= 27;
            char::from(LETTERS[index])
        })
        .collect()
}

/// The object at `path`, or an empty one.
#[must_use]
pub fn map(value: &Value, path: &str) -> Map<String, Value> {
    value.pointer(path).and_then(Value::as_object).cloned().unwrap_or_default()
}

/// The list at `path`, or an empty one.
#[must_use]
pub fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    value.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// `name` of an object in a list.
#[must_use]
pub fn name(value: &Value) -> &str {
    value.get("name").and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, version: &str, ready: bool) -> Pod {
        Pod {
            namespace: "default".into(),
            name: name.into(),
            uid: "u".into(),
            ip: Ipv4Addr::new(127, 64, 1, 1),
            ports: vec![Port {
                name: "http".into(),
                container_port: 80,
                bound: 10_080,
                app: Some(11_000),
                container: "app".into(),
            }],
            owner: Some(("reviews-v1".into(), "reviews-v1-abc".into())),
            template: json!({
                "metadata": { "labels": { "app": "reviews", "version": version } },
                "spec": { "initContainers": [{ "name": "istio-proxy" }], "containers": [{ "name": "app" }] },
            }),
            ready,
        }
    }

    #[test]
    fn a_sidecar_leads_the_pods_port_to_the_applications() {
        let sidecar = pod("p", "v1", true).sidecar().expect("injected");
        let want = json!({
            "workloadSelector": { "labels": { POD_LABEL: "p" } },
            "egress": [{
                "port": { "number": 15080, "protocol": "HTTP_PROXY", "name": "http-proxy" },
                "bind": "127.64.1.1", "captureMode": "NONE", "hosts": ["*/*"],
            }],
            "ingress": [{
                "port": { "number": 10080, "protocol": "HTTP", "name": "http" },
                "bind": "127.64.1.1", "defaultEndpoint": "127.0.0.1:11000",
            }],
        });
        assert_eq!(sidecar["spec"], want);
        let mut bare = pod("p", "v1", true);
        bare.template["spec"]["initContainers"] = json!([]);
        assert_eq!(bare.sidecar(), None);
    }

    #[test]
    fn slices_carry_bound_ports_and_readiness() {
        let (one, two, other) = (pod("a", "v1", true), pod("b", "v2", false), pod("c", "v1", true));
        let mut elsewhere = other;
        elsewhere.namespace = "elsewhere".into();
        for (target, want) in
            [(json!(80), json!(10_080)), (json!("http"), json!(10_080)), (json!(9000), json!(9000))]
        {
            let service = json!({
                "metadata": { "name": "reviews", "namespace": "default" },
                "spec": { "selector": { "app": "reviews" }, "ports": [{ "name": "http", "port": 8092, "targetPort": target }] },
            });
            let slice = endpoint_slice(&service, &[&one, &two, &elsewhere]).expect("a slice");
            assert_eq!(slice["ports"][0]["port"], want);
            let ready: Vec<_> =
                list(&slice, "/endpoints").iter().map(|e| e["conditions"]["ready"].clone()).collect();
            assert_eq!(ready, [json!(true), json!(false)]);
        }
        assert_eq!(endpoint_slice(&json!({ "spec": {} }), &[&one]), None);
    }

    #[test]
    fn pods_look_as_the_api_server_shows_them() {
        let object = pod("p", "v1", true).object();
        assert_eq!(object["status"]["podIP"], "127.64.1.1");
        assert_eq!(object["metadata"]["ownerReferences"][0]["name"], "reviews-v1-abc");
        assert_eq!(object["metadata"]["labels"]["pod-template-hash"], "abc");
        assert_eq!(object["spec"]["serviceAccountName"], "default");
    }
}
