//! `pilot tls-check`: what servers ask for, what clients send, and whether the two agree.
//!
//! In: a model, a client pod, a service. Out: [`Row`]s with istioctl's columns. Kept true: CLIENT is what is really sent,
//! decided as the proxy decides it. Not here: HTTP and tables on the terminal (`cli`).

#[cfg(test)]
mod tests;

use crate::{
    model::{
        auth::Mode,
        scope::{Proxy, Role, View, egress_of, sidecar_of, view_key},
        service::{Port, Service},
    },
    translate::{
        Translator,
        tls::{ClientMode, client_mode},
    },
};
use mesh_config::kinds::ClientTlsMode;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// The head of the table.
pub const COLUMNS: [&str; 6] =
    ["HOST:PORT", "STATUS", "SERVER", "CLIENT", "AUTHN POLICY", "DESTINATION RULE"];

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// `host:port`.
    pub host: String,
    /// `OK`, or `CONFLICT` when what is sent is not taken.
    pub status: String,
    /// `HTTP`, `mTLS`, or `HTTP+mTLS`.
    pub server: String,
    /// `HTTP`, `mTLS`, `TLS`, or `HTTP+mTLS` when endpoints differ.
    pub client: String,
    /// `name/namespace` of the policy in force, `-` for the default.
    pub authn_policy: String,
    /// `name/namespace` of the DestinationRule in force, `-` for none.
    pub destination_rule: String,
}

impl Row {
    /// Its cells in the order of [`COLUMNS`].
    pub fn cells(&self) -> [&str; 6] {
        [&self.host, &self.status, &self.server, &self.client, &self.authn_policy, &self.destination_rule]
    }
}

/// The rows for a client pod (`pod`, `pod.namespace` or `namespace/pod`; `None`: a client in the service's namespace) and
/// a service (full or short name; `None`: all).
///
/// # Errors
/// When there is no such pod or service.
pub fn check(
    translator: &Translator,
    client: Option<&str>,
    service: Option<&str>,
) -> Result<Vec<Row>, String> {
    let model = &translator.model;
    let client = match client {
        None => None,
        Some(written) => {
            let (name, namespace) = match (written.split_once('/'), written.rsplit_once('.')) {
                (Some((namespace, name)), _) => (name, Some(namespace)),
                (None, Some((name, namespace))) if model.workload(namespace, name).is_some() => {
                    (name, Some(namespace))
                }
                _ => (written, None),
            };
            let found = match namespace {
                Some(namespace) => model.workload(namespace, name),
                None => model
                    .workload("default", name)
                    .or_else(|| model.workloads.values().find(|w| &*w.name == name)),
            };
            Some(Proxy::for_workload(
                found.ok_or_else(|| format!("no pod {written} is known"))?,
                Role::Sidecar,
            ))
        }
    };
    let services: Vec<&Arc<Service>> = match service {
        None => model.services.values().collect(),
        Some(written) => {
            let home = client.as_ref().map_or("default", |c| &c.namespace);
            let host = crate::model::hosts::full(written, home);
            vec![model.services.get(&host).ok_or_else(|| format!("no service {host} is known"))?]
        }
    };
    let mut rows = Vec::new();
    for service in services {
        let view = view_for(translator, client.as_ref(), service);
        if !view.services.contains_key(&service.host) {
            continue;
        }
        for port in service.ports.iter().filter(|p| p.protocol != crate::model::service::Protocol::Udp) {
            rows.push(row(translator, &view, service, port));
        }
    }
    Ok(rows)
}

/// What the client sees; without a client, what any pod of the service's namespace sees.
fn view_for(translator: &Translator, client: Option<&Proxy>, service: &Service) -> View {
    let model = &translator.model;
    let anyone = Proxy {
        role: Role::Router,
        namespace: service.namespace.clone(),
        name: "anyone".into(),
        labels: Arc::new(BTreeMap::new()),
        service_account: "default".into(),
        addresses: Vec::new(),
        capture: crate::model::scope::Capture::Redirect,
        vhds: false,
        verified: false,
    };
    let proxy = client.unwrap_or(&anyone);
    let sidecar = sidecar_of(model, proxy);
    let egress = egress_of(proxy, sidecar.as_ref().map(|s| &s.spec));
    View::of(model, &view_key(model, proxy, &egress))
}

fn row(translator: &Translator, view: &View, service: &Arc<Service>, port: &Port) -> Row {
    let rule = translator.rule(view, service);
    let blocks = rule.blocks(None, port.number, &port.name);
    let mut modes = Vec::new();
    let (mut encrypted, mut plain) = (false, false);
    let mut policy = None;
    for endpoint in service.at(port.number) {
        let effective = translator.server_mode(service, endpoint);
        let takes = endpoint.takes_mtls && effective.mode != Mode::Disable;
        encrypted |= takes;
        plain |= !takes;
        modes.push(effective.mode);
        policy = policy.or(effective.source);
    }
    if modes.is_empty() {
        // No endpoint to ask: what its policy says of any workload behind it, taken to be in the mesh.
        let target = match port.target {
            crate::model::service::Target::Number(n) => n,
            crate::model::service::Target::Name(_) => port.number,
        };
        let server = crate::model::auth::ServerPort {
            namespace: &service.namespace,
            labels: &service.selector,
            port: target,
            services: vec![(&service.name, port.number, &port.name)],
        };
        let effective = crate::model::auth::effective(&translator.model, &server);
        encrypted = effective.mode != Mode::Disable && !service.external;
        plain = !encrypted;
        modes.push(effective.mode);
        policy = effective.source;
    }
    let all = |mode: Mode| modes.iter().all(|m| *m == mode);
    let server = if service.external || all(Mode::Disable) {
        "HTTP"
    } else if all(Mode::Strict) {
        "mTLS"
    } else {
        "HTTP+mTLS"
    };
    let client = match client_mode(translator.model.mesh(), service, blocks.tls) {
        ClientMode::Plaintext => "HTTP",
        ClientMode::Written(tls) if tls.mode == ClientTlsMode::IstioMutual => "mTLS",
        ClientMode::Written(_) => "TLS",
        ClientMode::Automatic => match (encrypted, plain) {
            (true, false) => "mTLS",
            (true, true) => "HTTP+mTLS",
            (false, _) => "HTTP",
        },
    };
    let strict_somewhere = modes.contains(&Mode::Strict);
    let closed_somewhere = modes.contains(&Mode::Disable);
    let agrees = match client {
        "mTLS" => !closed_somewhere,
        "HTTP" => !strict_somewhere,
        "TLS" => service.external,
        // Decided per endpoint; only a strict one whose proxy is not there disagrees.
        _ => {
            !strict_somewhere
                || service
                    .at(port.number)
                    .all(|e| e.takes_mtls || translator.server_mode(service, e).mode != Mode::Strict)
        }
    };
    let turned = |label: &str| {
        let path = label.rsplit(' ').next().unwrap_or_default();
        match path.split_once('/') {
            Some((namespace, name)) => format!("{name}/{namespace}"),
            None => format!("{path}/"),
        }
    };
    Row {
        host: format!("{}:{}", service.host, port.number),
        status: if agrees { "OK" } else { "CONFLICT" }.to_owned(),
        server: server.to_owned(),
        client: client.to_owned(),
        authn_policy: policy.as_deref().map_or_else(|| "-".to_owned(), turned),
        destination_rule: rule.sources().first().map_or_else(|| "-".to_owned(), |l| turned(l)),
    }
}
