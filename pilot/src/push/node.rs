//! Nodes: who a client says it is, and whether that may be.
//!
//! In: the node of a stream's first request, the peer's verified identity, the mesh. Out: the [`Proxy`] to serve it as.
//! Kept true: with a certificate, the pod's own namespace and service account must be those of the certificate; without
//! one, a node that no pod describes is what its metadata says. Not here: TLS (`mesh-identity`).

use crate::{
    ads::{server::Peer, wire},
    model::{
        Model,
        scope::{Capture, Proxy, Role},
    },
};
use mesh_config::kinds::InterceptionMode;
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};
use tonic::Status;

/// What a node says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The whole id.
    pub id: String,
    /// Sidecar or gateway.
    pub role: Role,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
    /// What it calls itself.
    pub agent: String,
    addresses: Vec<IpAddr>,
    labels: Arc<BTreeMap<String, String>>,
    service_account: Option<Arc<str>>,
    capture: Option<Capture>,
    vhds: bool,
}

impl Claim {
    /// Reads `sidecar~IP~pod.ns~domain` and Istio's metadata keys.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an id of another form.
    pub fn read(node: &wire::Node) -> Result<Self, Status> {
        let wrong = |why: &str| {
            Status::invalid_argument(format!(
                "node.id {:?}: {why}; expected sidecar~IP~pod.namespace~namespace.svc.cluster.local or router~…",
                node.id
            ))
        };
        let parts: Vec<&str> = node.id.split('~').collect();
        let [role, address, name, domain] = parts[..] else { return Err(wrong("not four parts")) };
        let role = match role {
            "sidecar" => Role::Sidecar,
            "router" => Role::Router,
            _ => return Err(wrong("unknown role")),
        };
        let (pod, namespace_of_id) = name.rsplit_once('.').unwrap_or((name, ""));
        let field =
            |key: &str| node.metadata.as_ref().and_then(|m| m.fields.get(key)).and_then(|v| v.kind.as_ref());
        let text = |key: &str| match field(key) {
            Some(wire::Kind::StringValue(s)) if !s.is_empty() => Some(s.as_str()),
            _ => None,
        };
        let from_domain = domain.split('.').next().filter(|d| !d.is_empty());
        let namespace = match namespace_of_id {
            "" => text("NAMESPACE").or(from_domain).ok_or_else(|| wrong("no namespace"))?,
            of_id => of_id,
        };
        if text("NAMESPACE").is_some_and(|said| said != namespace) {
            return Err(wrong("the namespace differs from the one in metadata"));
        }
        let labels = match field("LABELS") {
            Some(wire::Kind::StructValue(map)) => map
                .fields
                .iter()
                .filter_map(|(k, v)| match &v.kind {
                    Some(wire::Kind::StringValue(s)) => Some((k.clone(), s.clone())),
                    _ => None,
                })
                .collect(),
            _ => BTreeMap::new(),
        };
        let listed = text("INSTANCE_IPS").unwrap_or_default();
        let address = address.parse().ok();
        let mut addresses: Vec<IpAddr> = address.into_iter().collect();
        for ip in listed.split(',').filter_map(|ip| ip.trim().parse().ok()) {
            if !addresses.contains(&ip) {
                addresses.push(ip);
            }
        }
        Ok(Self {
            id: node.id.clone(),
            role,
            namespace: namespace.into(),
            name: pod.into(),
            agent: node.user_agent_name.clone(),
            addresses,
            labels: Arc::new(labels),
            service_account: text("SERVICE_ACCOUNT").map(Into::into),
            capture: text("INTERCEPTION_MODE")
                .map(|m| if m == "NONE" { Capture::None } else { Capture::Redirect }),
            vhds: text("CREMA_VHDS") == Some("true"),
        })
    }

    /// What can be checked before the mesh is known.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` when the certificate is of another namespace, or of another service account than is said.
    pub fn check_alone(&self, peer: &Peer) -> Result<(), Status> {
        let Some((namespace, account)) = &peer.identity else { return Ok(()) };
        let denied = || {
            Status::permission_denied(format!(
                "{} asks as {}/{} but its certificate is that of {namespace}/{account}",
                self.id,
                self.namespace,
                self.service_account.as_deref().unwrap_or("?"),
            ))
        };
        let other = self.service_account.as_ref().is_some_and(|said| said != account);
        if *namespace != self.namespace || other { Err(denied()) } else { Ok(()) }
    }

    /// The proxy to serve it as.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` when the certificate is not that of the pod.
    pub fn resolve(&self, model: &Model, peer: &Peer) -> Result<Proxy, Status> {
        self.check_alone(peer)?;
        let pod = model.workload(&self.namespace, &self.name);
        if let (Some(pod), Some((namespace, account))) = (pod, &peer.identity)
            && (pod.namespace != *namespace || pod.service_account != *account)
        {
            return Err(Status::permission_denied(format!(
                "pod {}/{} runs as {}/{}, the certificate is that of {namespace}/{account}",
                pod.namespace, pod.name, pod.namespace, pod.service_account,
            )));
        }
        let account = peer.identity.as_ref().map(|(_, account)| account.clone());
        let capture = self.capture.unwrap_or_else(|| match model.mesh().default_config.interception_mode {
            InterceptionMode::None => Capture::None,
            _ => Capture::Redirect,
        });
        let mut addresses = pod.map(|p| p.addresses.clone()).filter(|a| !a.is_empty()).unwrap_or_default();
        if addresses.is_empty() {
            addresses.clone_from(&self.addresses);
        }
        Ok(Proxy {
            role: self.role,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            labels: pod.map_or_else(|| self.labels.clone(), |p| p.labels.clone()),
            service_account: pod
                .map(|p| p.service_account.clone())
                .or(account)
                .or_else(|| self.service_account.clone())
                .unwrap_or_else(|| "default".into()),
            addresses,
            capture,
            vhds: self.vhds,
            // Without a pod, role and labels are what the node says of itself: no ground to give private keys to.
            verified: peer.identity.is_some() && pod.is_some(),
        })
    }
}
