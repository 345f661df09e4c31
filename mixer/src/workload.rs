//! Which workload is behind an address: what reports do not say, mixer knows from Pods.
//!
//! In: the Pods of a configuration snapshot. Out: [`Workloads`], looked up by address, uid and identity.
//! Kept true: a peer is a workload only if its verified identity is that workload's; nobody's word counts.
//! Not here: reading Pods (`mesh-config`), which side of a request is which (`join`).

use std::{net::IpAddr, sync::Arc, time::Duration};

use ahash::AHashMap;
use k8s_openapi::{
    api::core::v1::{Pod, Service, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::time::Instant;

use crate::attributes::{StringMap, Text};

/// One pod, in the words of Istio's attributes.
#[derive(Debug, PartialEq)]
pub struct Workload {
    /// Pod name.
    pub name: Text,
    /// Namespace.
    pub namespace: Text,
    /// `kubernetes://pod.namespace`.
    pub uid: Text,
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
    /// Pod labels.
    pub labels: StringMap,
    /// Pod annotations.
    pub annotations: StringMap,
    /// Name of the service account.
    pub service_account: Text,
    /// `kubernetes://apis/apps/v1/namespaces/ns/deployments/name`; empty for a pod that nothing owns.
    pub owner: Text,
    /// Name of the Deployment, StatefulSet, …; the pod's own name for a bare pod.
    pub workload: Text,
    /// `istio://ns/workloads/name`.
    pub workload_uid: Text,
    /// Container names by the ports they declare.
    pub containers: Vec<(u16, Text)>,
    /// Ports that have a name.
    port_names: Vec<(Text, u16)>,
    /// Services that select the pod, by name, with the pod's ports they lead to.
    pub services: Vec<(Text, Vec<u16>)>,
}

impl Workload {
    /// Reads a Pod.
    #[must_use]
    pub fn from_pod(namespace: &str, name: &str, pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        let mut ips: Vec<IpAddr> = Vec::new();
        // A pod that has ended owns its address no more.
        let ended = matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"));
        let listed = status.and_then(|status| status.pod_ips.as_deref()).unwrap_or_default();
        let texts = status
            .and_then(|status| status.pod_ip.clone())
            .into_iter()
            .chain(listed.iter().map(|ip| ip.ip.clone()));
        for ip in texts.filter(|_| !ended).filter_map(|text| text.parse::<IpAddr>().ok()) {
            if !ips.contains(&ip.to_canonical()) {
                ips.push(ip.to_canonical());
            }
        }
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
        let controller =
            owners.iter().find(|owner| owner.controller == Some(true)).or_else(|| owners.first());
        let (owner, workload) = match controller {
            None => (String::new(), name.to_owned()),
            Some(owner) => {
                let hash = labels.get("pod-template-hash").map(|hash| format!("-{hash}"));
                let (api, plural, workload) = match owner.kind.as_str() {
                    "ReplicaSet" => {
                        let deployment = match &hash {
                            Some(hash) => owner.name.strip_suffix(hash.as_str()),
                            None => owner.name.rsplit_once('-').map(|(name, _)| name),
                        };
                        match deployment {
                            Some(name) => ("apps/v1", "deployments".to_owned(), name),
                            None => ("apps/v1", "replicasets".to_owned(), owner.name.as_str()),
                        }
                    }
                    kind => {
                        (owner.api_version.as_str(), format!("{}s", kind.to_lowercase()), owner.name.as_str())
                    }
                };
                let uid = format!("kubernetes://apis/{api}/namespaces/{namespace}/{plural}/{workload}");
                (uid, workload.to_owned())
            }
        };
        let containers = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
        let ports = containers.iter().flat_map(|container| container.ports.as_deref().unwrap_or_default());
        let port_names = ports.filter_map(|port| {
            Some((Text::from(port.name.as_deref()?), u16::try_from(port.container_port).ok()?))
        });
        let containers = containers.iter().flat_map(|container| {
            let ports = container.ports.as_deref().unwrap_or_default();
            ports.iter().filter_map(|port| {
                Some((u16::try_from(port.container_port).ok()?, Text::from(container.name.as_str())))
            })
        });
        Self {
            name: name.into(),
            namespace: namespace.into(),
            uid: format!("kubernetes://{name}.{namespace}").into(),
            ips,
            labels: labels.into_iter().collect(),
            annotations: pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
            service_account: spec
                .and_then(|spec| spec.service_account_name.as_deref())
                .filter(|name| !name.is_empty())
                .unwrap_or("default")
                .into(),
            owner: owner.into(),
            workload_uid: format!("istio://{namespace}/workloads/{workload}").into(),
            workload: workload.into(),
            containers: containers.collect(),
            port_names: port_names.collect(),
            services: Vec::new(),
        }
    }

    /// Notes `service`, called `name`, if it selects the pod.
    pub fn serves(&mut self, name: &str, service: &Service) {
        let Some(spec) = &service.spec else { return };
        let selector = spec.selector.clone().unwrap_or_default();
        let selects =
            |(key, value): (&String, &String)| self.labels.get(key).is_some_and(|label| **label == **value);
        if selector.is_empty() || !selector.iter().all(selects) {
            return;
        }
        let port = |port: &ServicePort| match &port.target_port {
            Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
            Some(IntOrString::String(name)) => {
                self.port_names.iter().find(|(known, _)| **known == **name).map(|(_, number)| *number)
            }
            None => u16::try_from(port.port).ok(),
        };
        let ports = spec.ports.as_deref().unwrap_or_default().iter().filter_map(port).collect();
        self.services.push((name.into(), ports));
    }

    /// The service behind `port`: the one that leads there, else the only one there is.
    #[must_use]
    pub fn service(&self, port: Option<i64>) -> Option<&Text> {
        let leads =
            |(_, ports): &&(Text, Vec<u16>)| ports.iter().any(|known| port == Some(i64::from(*known)));
        let found = self.services.iter().find(leads).or(match self.services.as_slice() {
            [only] => Some(only),
            _ => None,
        });
        found.map(|(name, _)| name)
    }

    /// Whether `principal` (`td/ns/NS/sa/SA`, with or without `spiffe://`) is this workload's identity.
    #[must_use]
    pub fn is(&self, principal: &str) -> bool {
        let path = principal.strip_prefix("spiffe://").unwrap_or(principal);
        let mut parts = path.split('/').skip(1);
        parts.next() == Some("ns")
            && parts.next() == Some(&*self.namespace)
            && parts.next() == Some("sa")
            && parts.next() == Some(&*self.service_account)
            && parts.next().is_none()
    }
}

/// All workloads at one moment.
#[derive(Debug, Default)]
pub struct Workloads {
    /// Pods of the host's network share an address.
    by_ip: AHashMap<IpAddr, Vec<Arc<Workload>>>,
    by_uid: AHashMap<Text, Arc<Workload>>,
    /// Pods that are gone, each with the moment it was first missed.
    departed: Vec<(Instant, Arc<Workload>)>,
}

/// How long a deleted pod is remembered.
const MEMORY: Duration = Duration::from_secs(600);
/// How many deleted pods are remembered.
const MOST_DEPARTED: usize = 10_000;

impl Workloads {
    /// Indexes `pods`.
    #[must_use]
    pub fn new(pods: impl IntoIterator<Item = Workload>) -> Self {
        let mut out = Self::default();
        for pod in pods {
            let pod = Arc::new(pod);
            for ip in &pod.ips {
                out.by_ip.entry(*ip).or_default().push(pod.clone());
            }
            out.by_uid.insert(pod.uid.clone(), pod);
        }
        out
    }

    /// Adds the pods of `before` that are gone and whose address nobody has taken, for ten minutes: their last reports
    /// still come in.
    #[must_use]
    pub fn remembering(mut self, before: &Self) -> Self {
        let now = Instant::now();
        let old = before.departed.iter().filter(|(since, _)| now.duration_since(*since) < MEMORY).cloned();
        let gone = before.by_uid.values().map(|pod| (now, pod.clone()));
        for (since, pod) in old.chain(gone) {
            if self.by_uid.contains_key(&pod.uid) || self.departed.len() >= MOST_DEPARTED {
                continue;
            }
            for ip in &pod.ips {
                self.by_ip.entry(*ip).or_insert_with(|| vec![pod.clone()]);
            }
            self.by_uid.insert(pod.uid.clone(), pod.clone());
            self.departed.push((since, pod));
        }
        self
    }

    /// Whether mixer knows no pod at all, and so has nothing to hold against what reporters say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_uid.is_empty()
    }

    /// The pod that has `ip`; nobody if several share it.
    #[must_use]
    pub fn by_ip(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        match self.by_ip.get(&ip.to_canonical())?.as_slice() {
            [one] => Some(one),
            _ => None,
        }
    }

    /// The pod called `kubernetes://pod.namespace`.
    #[must_use]
    pub fn by_uid(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.by_uid.get(uid)
    }

    /// The pod that has `ip` and runs as `principal`; a peer without an identity is nobody, and so is one that could be
    /// any of several.
    #[must_use]
    pub fn peer(&self, ip: IpAddr, principal: Option<&str>) -> Option<&Arc<Workload>> {
        let mut same =
            self.by_ip.get(&ip.to_canonical())?.iter().filter(|pod| pod.is(principal.unwrap_or_default()));
        let found = same.next();
        if same.next().is_some() { None } else { found }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A pod of Deployment `app` with labels `app` and `version`, service account `default`.
    pub(crate) fn pod(name: &str, ip: &str, app: &str, version: &str) -> Workload {
        let json = serde_json::json!({
            "metadata": {
                "labels": {"app": app, "version": version, "pod-template-hash": "5d4f"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-{version}-5d4f"), "uid": "u", "controller": true}],
            },
            "spec": {"serviceAccountName": "default", "containers": [{"name": "app", "ports": [{"containerPort": 8080}]}]},
            "status": {"podIP": ip, "podIPs": [{"ip": ip}]},
        });
        Workload::from_pod("default", name, &serde_json::from_value(json).expect("a Pod"))
    }

    #[test]
    fn a_pod_of_a_deployment_is_named_after_it() {
        let pod = pod("web-1", "10.0.0.1", "web", "v1");
        assert_eq!(&*pod.workload, "web-v1");
        assert_eq!(&*pod.owner, "kubernetes://apis/apps/v1/namespaces/default/deployments/web-v1");
        assert_eq!(&*pod.workload_uid, "istio://default/workloads/web-v1");
        assert_eq!(&*pod.uid, "kubernetes://web-1.default");
        assert_eq!(pod.ips.len(), 1);
    }

    #[test]
    fn the_service_behind_a_port_is_the_one_that_leads_there_or_the_only_one() {
        let service = |app: &str, port: u16| {
            let json = serde_json::json!({"spec": {"selector": {"app": app}, "ports": [{"port": 80, "targetPort": port}]}});
            serde_json::from_value::<Service>(json).expect("a Service")
        };
        let mut pod = pod("web-1", "10.0.0.1", "web", "v1");
        let name = |pod: &Workload, port| pod.service(Some(port)).map(ToString::to_string);
        pod.serves("other", &service("other", 8080));
        assert_eq!(name(&pod, 8080), None);
        pod.serves("web", &service("web", 8080));
        assert_eq!((name(&pod, 8080), name(&pod, 18_080)), (Some("web".into()), Some("web".into())));
        pod.serves("web-admin", &service("web", 9090));
        assert_eq!((name(&pod, 9090), name(&pod, 18_080)), (Some("web-admin".into()), None));
    }

    #[test]
    fn a_peer_is_a_workload_only_with_that_workloads_identity() {
        let all = Workloads::new([pod("web-1", "10.0.0.1", "web", "v1")]);
        let ip = |text: &str| text.parse().expect("address");
        for (address, principal, known) in [
            ("10.0.0.1", Some("cluster.local/ns/default/sa/default"), true),
            ("::ffff:10.0.0.1", Some("spiffe://other.domain/ns/default/sa/default"), true),
            ("10.0.0.1", Some("cluster.local/ns/default/sa/other"), false),
            ("10.0.0.1", Some("cluster.local/ns/other/sa/default"), false),
            ("10.0.0.1", Some("cluster.local/ns/default/sa/default/more"), false),
            ("10.0.0.1", None, false),
            ("10.0.0.2", Some("cluster.local/ns/default/sa/default"), false),
        ] {
            assert_eq!(all.peer(ip(address), principal).is_some(), known, "{address} {principal:?}");
        }
    }

    #[test]
    fn pods_that_share_an_address_are_told_apart_by_identity_or_not_at_all() {
        let mut other = pod("node-1", "10.0.0.1", "agent", "v1");
        other.service_account = "agent".into();
        let all = Workloads::new([pod("web-1", "10.0.0.1", "web", "v1"), other]);
        let ip = "10.0.0.1".parse().expect("address");
        assert!(all.by_ip(ip).is_none());
        let peer = |principal: &str| all.peer(ip, Some(principal)).map(|pod| pod.name.to_string());
        assert_eq!(peer("cluster.local/ns/default/sa/agent"), Some("node-1".into()));
        assert_eq!(peer("cluster.local/ns/default/sa/default"), Some("web-1".into()));
        let twins = Workloads::new([pod("a", "10.0.0.1", "a", "v1"), pod("b", "10.0.0.1", "b", "v1")]);
        assert!(twins.peer(ip, Some("cluster.local/ns/default/sa/default")).is_none());
    }

    #[test]
    fn a_deleted_pod_is_remembered_until_its_address_is_taken() {
        let before =
            Workloads::new([pod("web-1", "10.0.0.1", "web", "v1"), pod("web-2", "10.0.0.2", "web", "v1")]);
        let after = Workloads::new([pod("web-3", "10.0.0.1", "web", "v2")]).remembering(&before);
        let name = |ip: &str| after.by_ip(ip.parse().expect("address")).map(|pod| pod.name.to_string());
        assert_eq!((name("10.0.0.1"), name("10.0.0.2")), (Some("web-3".into()), Some("web-2".into())));
    }
}
