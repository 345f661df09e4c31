//! Mutual TLS that servers ask for: PeerAuthentication, and the older Policy and MeshPolicy.
//!
//! In: a workload, one of its ports. Out: the mode in force and the object that says so.
//! Kept true: narrower scope wins, then the newer API, then the older object; nothing said means PERMISSIVE.
//! Not here: what clients send (`translate::tls`).

use super::{Model, label_of, workload::selects};
use mesh_config::kinds::MutualTlsMode;
use std::{collections::BTreeMap, sync::Arc};

/// What a server port takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Plaintext only.
    Disable,
    /// Both.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

/// A mode and where it was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The mode.
    pub mode: Mode,
    /// Object that sets it; `None` for the default.
    pub source: Option<Arc<str>>,
}

/// A server port, as policies may name it.
#[derive(Clone, Debug)]
pub struct ServerPort<'a> {
    /// Namespace of the workload.
    pub namespace: &'a str,
    /// Labels of the workload.
    pub labels: &'a BTreeMap<String, String>,
    /// Port on the workload.
    pub port: u16,
    /// Services it backs there: short name, service port, port name.
    pub services: Vec<(&'a str, u16, &'a str)>,
}

fn mode(of: MutualTlsMode) -> Option<Mode> {
    match of {
        MutualTlsMode::Unset => None,
        MutualTlsMode::Disable => Some(Mode::Disable),
        MutualTlsMode::Permissive => Some(Mode::Permissive),
        MutualTlsMode::Strict => Some(Mode::Strict),
    }
}

/// The mode in force at `server`.
pub fn effective(model: &Model, server: &ServerPort<'_>) -> Effective {
    let snapshot = &model.snapshot;
    let said =
        |mode: Option<Mode>, source: Arc<str>| mode.map(|mode| Effective { mode, source: Some(source) });
    let oldest_first = |namespace: &str| {
        let mut all: Vec<_> = snapshot.peer_authentications.in_namespace(namespace).collect();
        all.sort_by(|a, b| a.seniority().cmp(&b.seniority()));
        all
    };
    let own = oldest_first(server.namespace);
    let root = snapshot.root_namespace();
    // Workload, from PeerAuthentication; in the root namespace a selector has no meaning.
    if server.namespace != root {
        for policy in &own {
            let Some(selector) = &policy.spec.selector else { continue };
            if selector.match_labels.is_empty() || !selects(&selector.match_labels, server.labels) {
                continue;
            }
            let port = policy.spec.port_level_mtls.get(&u32::from(server.port)).and_then(|m| mode(m.mode));
            let whole = policy.spec.mtls.and_then(|m| mode(m.mode));
            if let Some(found) = said(port.or(whole), label_of(policy)) {
                return found;
            }
        }
    }
    // Service, from Policy.
    let mut policies: Vec<_> = snapshot.policies.in_namespace(server.namespace).collect();
    policies.sort_by(|a, b| a.seniority().cmp(&b.seniority()));
    for by_port in [true, false] {
        for policy in &policies {
            let hit = policy.spec.targets.iter().any(|target| {
                let named = |(name, number, port_name): &(&str, u16, &str)| {
                    let ports = &target.ports;
                    *name == target.name
                        && ports.is_empty() != by_port
                        && (ports.is_empty()
                            || ports.iter().any(|p| {
                                p.number == Some(u32::from(*number)) || p.name.as_deref() == Some(*port_name)
                            }))
                };
                server.services.iter().any(named)
            });
            if hit {
                return Effective { mode: legacy(&policy.spec), source: Some(label_of(policy)) };
            }
        }
    }
    // Namespace, then mesh: the newer API before the older.
    let wide = |list: &[&Arc<mesh_config::Object<mesh_config::kinds::PeerAuthentication>>]| {
        list.iter()
            .filter(|p| p.spec.selector.as_ref().is_none_or(|s| s.match_labels.is_empty()))
            .find_map(|p| said(p.spec.mtls.and_then(|m| mode(m.mode)), label_of(p)))
    };
    if server.namespace != root
        && let Some(found) = wide(&own)
    {
        return found;
    }
    if let Some(policy) = policies.iter().find(|p| p.name() == "default" && p.spec.targets.is_empty()) {
        return Effective { mode: legacy(&policy.spec), source: Some(label_of(policy)) };
    }
    if let Some(found) = wide(&oldest_first(root)) {
        return found;
    }
    if let Some(policy) = snapshot.mesh_policies.get("", "default") {
        return Effective { mode: legacy(&policy.spec), source: Some(label_of(policy)) };
    }
    Effective { mode: Mode::Permissive, source: None }
}

fn legacy(policy: &mesh_config::kinds::AuthenticationPolicy) -> Mode {
    mode(policy.transport()).unwrap_or(Mode::Permissive)
}
