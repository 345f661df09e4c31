//! `pilot explain`: what would become of a request, by the proxy's own decision.
//!
//! In: a model, who asks, a method, a URL, headers. Out: [`Answer`]. Kept true: nothing is decided here; the route is found
//! by `mesh_traffic::plan`, TLS by the cluster's own choice. Not here: sending anything.

mod request;
#[cfg(test)]
mod tests;

pub use request::Request;

use crate::{
    model::{
        Model, label_of,
        routing::MESH,
        scope::{Capture, Proxy, Role, View, egress_of, sidecar_of},
        workload::selects,
    },
    translate::{Part, Translator, route::Place},
};
use mesh_traffic::{
    filter::{AbortWith, MILLION},
    names::ClusterName,
    plan::{Reply, own_answer, plan, timeout},
    route::{Action, Forward, Route},
    snapshot::Snapshot,
    table::RouteTable,
};
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// Who sends the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sender {
    /// A pod: namespace, name.
    Pod(String, String),
    /// Somebody outside, through a Gateway: namespace, name.
    Gateway(String, String),
}

/// An answer that the proxy gives itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Own {
    /// Status.
    pub code: u16,
    /// Response flag, `-` for none.
    pub flag: String,
}

/// Where the request may go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Destination {
    /// Host of the service.
    pub host: String,
    /// Subset, if one is named.
    pub subset: Option<String>,
    /// Port.
    pub port: u16,
    /// Share among the destinations.
    pub weight: u32,
    /// Cluster.
    pub cluster: String,
    /// `ip:port` of each endpoint.
    pub endpoints: Vec<String>,
}

/// Retries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Retries {
    /// Tries after the first.
    pub attempts: u32,
    /// Limit of one try.
    pub per_try_timeout: Option<String>,
    /// Conditions.
    pub on: String,
}

/// A delay on purpose.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Delay {
    /// How long.
    pub fixed: String,
    /// For how many of a hundred requests.
    pub percent: f64,
}

/// An abort on purpose.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Abort {
    /// HTTP status; for gRPC the gRPC status.
    pub status: u16,
    /// For how many of a hundred requests.
    pub percent: f64,
}

/// Faults on purpose.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fault {
    /// Before anything else.
    pub delay: Option<Delay>,
    /// Instead of the upstream.
    pub abort: Option<Abort>,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// `namespace/name` of the VirtualService that decides.
    pub virtual_service: Option<String>,
    /// 0-based index of its rule.
    pub rule: Option<usize>,
    /// What the proxy answers itself, where that is certain.
    pub response: Option<Own>,
    /// Where the request may go.
    pub destinations: Vec<Destination>,
    /// Overall timeout.
    pub timeout: Option<String>,
    /// Retries.
    pub retries: Option<Retries>,
    /// Faults.
    pub fault: Option<Fault>,
    /// `mtls`, `plaintext`, `simple` or `mutual`, to the first destination.
    pub tls: &'static str,
}

/// Answers for a request.
///
/// # Errors
/// When the sender is not known, or has no port that takes the request.
pub fn explain(model: Arc<Model>, sender: &Sender, request: &Request) -> Result<Answer, String> {
    let translator = Translator::new(model);
    let (proxy, gateway) = sender_of(&translator.model, sender)?;
    let part = translator.whole(&proxy);
    let name = table_name(&translator.model, &part, &proxy, gateway.as_deref(), request)?;
    let mut snapshot = Snapshot::default();
    for made in part.clusters.values() {
        snapshot.add_cluster(made.value.clone());
    }
    for made in part.endpoints.values() {
        snapshot.add_endpoints(made.value.clone());
    }
    let Some(table) = part.routes.get(name.as_str()) else {
        return Ok(unknown_port(&snapshot, request));
    };
    let table = RouteTable::new(table.value.clone())?;
    let facts = request.facts();
    let choice = match plan(&table, &facts) {
        Ok(choice) => choice,
        Err(reply) => return Ok(replied(&reply)),
    };
    let (virtual_service, rule) = rule_of(&translator, &proxy, gateway.as_deref(), request, choice.route);
    let mut answer = Answer { virtual_service, rule, ..nothing() };
    answer.fault = choice.route.filters.fault.as_ref().map(|f| fault_of(f));
    if choice.host.require_tls && request.scheme == "http" {
        answer.response = Some(Own { code: 301, flag: "-".to_owned() });
        return Ok(answer);
    }
    if let Some(reply) = own_answer(choice.route, &facts) {
        answer.response = replied(&reply).response;
        return Ok(answer);
    }
    if let Action::Forward(forward) = &choice.route.action {
        fill(&mut answer, &snapshot, forward, &request.host, request.port);
        answer.timeout = timeout(forward, &facts).map(seconds);
    }
    let certain =
        choice.route.filters.fault.as_ref().and_then(|f| f.abort).filter(|a| a.per_million >= MILLION);
    if let Some(abort) = certain {
        let code = match abort.with {
            AbortWith::Http(code) => code,
            AbortWith::Grpc(_) => 200,
        };
        answer.response = Some(Own { code, flag: "FI".to_owned() });
    }
    Ok(answer)
}

fn nothing() -> Answer {
    Answer {
        virtual_service: None,
        rule: None,
        response: None,
        destinations: Vec::new(),
        timeout: None,
        retries: None,
        fault: None,
        tls: "plaintext",
    }
}

fn replied(reply: &Reply) -> Answer {
    let flag = reply.flags.to_string();
    let flag = if flag.is_empty() { "-".to_owned() } else { flag };
    Answer { response: Some(Own { code: reply.status, flag }), ..nothing() }
}

/// No listener takes the port: the connection passes through as it is.
fn unknown_port(snapshot: &Snapshot, request: &Request) -> Answer {
    let mut answer = nothing();
    let forward = Forward {
        target: mesh_traffic::route::Target::Cluster(mesh_traffic::names::PASSTHROUGH.into()),
        ..Forward::default()
    };
    fill(&mut answer, snapshot, &forward, &request.host, request.port);
    answer
}

fn fill(answer: &mut Answer, snapshot: &Snapshot, forward: &Forward, host: &str, port: u16) {
    let arms: Vec<_> = forward.target.arms().collect();
    let single = arms.len() == 1;
    for (index, (cluster, weight)) in arms.iter().enumerate() {
        let parsed = ClusterName::parse(cluster);
        let known = snapshot.clusters.get(*cluster);
        let endpoints = known.and_then(|c| snapshot.endpoints_of(c));
        let list: Vec<_> = endpoints.iter().flat_map(|e| e.iter()).map(|e| e.address.to_string()).collect();
        let flag = match known {
            None => Some("NC"),
            Some(_) if endpoints.is_some() && list.is_empty() => Some("UH"),
            Some(_) => None,
        };
        if let (true, Some(flag)) = (single, flag) {
            let code = if flag == "NC" { forward.cluster_not_found } else { 503 };
            answer.response = Some(Own { code, flag: flag.to_owned() });
        }
        if index == 0 {
            let first = endpoints.and_then(|e| e.iter().next());
            let context = match (known, first) {
                (Some(cluster), Some(endpoint)) => cluster.tls_for(endpoint),
                (Some(cluster), None) => cluster.tls.default.as_ref(),
                (None, _) => None,
            };
            answer.tls = context.map_or("plaintext", |t| t.mode());
        }
        answer.destinations.push(Destination {
            host: parsed.as_ref().map_or_else(|| host.to_owned(), |p| p.host.clone()),
            subset: parsed.as_ref().map(|p| p.subset.clone()).filter(|s| !s.is_empty()),
            port: parsed.as_ref().map_or(port, |p| p.port),
            weight: if single { 100 } else { *weight },
            cluster: cluster.to_string(),
            endpoints: list,
        });
    }
    answer.retries = forward.retry.as_ref().map(|r| {
        let codes = r.codes.iter().map(u16::to_string);
        let words: Vec<_> = Some(r.on.words()).into_iter().filter(|w| !w.is_empty()).chain(codes).collect();
        Retries { attempts: r.attempts, per_try_timeout: r.per_try.map(seconds), on: words.join(",") }
    });
}

fn fault_of(from: &mesh_traffic::filter::Fault) -> Fault {
    let percent = |per_million: u32| f64::from(per_million) / 10_000.0;
    Fault {
        delay: from.delay.map(|d| Delay { fixed: seconds(d.fixed), percent: percent(d.per_million) }),
        abort: from.abort.map(|a| Abort {
            status: match a.with {
                AbortWith::Http(status) | AbortWith::Grpc(status) => status,
            },
            percent: percent(a.per_million),
        }),
    }
}

fn seconds(time: Duration) -> String {
    format!("{}s", time.as_secs_f64())
}

/// The proxy that sends, and the gateway's `namespace/name` if it is one.
fn sender_of(model: &Model, sender: &Sender) -> Result<(Proxy, Option<String>), String> {
    match sender {
        Sender::Pod(namespace, name) => {
            let mut proxy =
                match model.workload(namespace, name).or_else(|| by_prefix(model, namespace, name)) {
                    Some(workload) => Proxy::for_workload(workload, Role::Sidecar),
                    None => blank(
                        Role::Sidecar,
                        namespace,
                        name,
                        template_labels(model, namespace, name)
                            .ok_or_else(|| format!("no pod (nor Deployment) {namespace}/{name} is known"))?,
                    ),
                };
            let sidecar = sidecar_of(model, &proxy);
            let egress = egress_of(&proxy, sidecar.as_ref().map(|s| &s.spec));
            // Where a Sidecar opens a proxy port, applications name the proxy instead of being captured.
            if egress.iter().any(|e| e.port.is_some()) && egress.iter().all(|e| e.port.is_some()) {
                proxy.capture = Capture::None;
            }
            Ok((proxy, None))
        }
        Sender::Gateway(namespace, name) => {
            let gateway = model.snapshot.gateways.get(namespace, name);
            let gateway = gateway.ok_or_else(|| format!("no Gateway {namespace}/{name} is known"))?;
            let pod = model.workloads.values().find(|w| selects(&gateway.spec.selector, &w.labels));
            let proxy = match pod {
                Some(workload) => Proxy::for_workload(workload, Role::Router),
                None => blank(Role::Router, namespace, name, gateway.spec.selector.clone()),
            };
            Ok((proxy, Some(format!("{namespace}/{name}"))))
        }
    }
}

/// A pod of a workload by the workload's name, since pods have generated endings.
fn by_prefix<'a>(
    model: &'a Model,
    namespace: &str,
    name: &str,
) -> Option<&'a Arc<crate::model::workload::Workload>> {
    let prefix = format!("{name}-");
    model.workloads.values().find(|w| &*w.namespace == namespace && w.name.starts_with(&prefix))
}

/// Labels of the pods of a Deployment that has no pods yet, as in a directory of plain manifests.
fn template_labels(model: &Model, namespace: &str, name: &str) -> Option<BTreeMap<String, String>> {
    let kinds = ["Deployment.apps", "StatefulSet.apps", "DaemonSet.apps"];
    let object =
        kinds.iter().find_map(|kind| model.snapshot.other.get(namespace, &format!("{kind}/{name}")))?;
    let labels = object.spec.pointer("/spec/template/metadata/labels").and_then(|l| l.as_object());
    Some(
        labels.into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect(),
    )
}

fn blank(role: Role, namespace: &str, name: &str, labels: BTreeMap<String, String>) -> Proxy {
    Proxy {
        role,
        namespace: namespace.into(),
        name: name.into(),
        labels: Arc::new(labels),
        service_account: "default".into(),
        addresses: Vec::new(),
        capture: Capture::Redirect,
        vhds: false,
        verified: true,
    }
}

/// The route table that the request is looked up in.
fn table_name(
    model: &Model,
    part: &Part,
    proxy: &Proxy,
    gateway: Option<&str>,
    request: &Request,
) -> Result<String, String> {
    let Some(gateway) = gateway else {
        if proxy.capture == Capture::Redirect {
            let own = format!("{}:{}", request.host, request.port);
            return Ok(if part.routes.contains_key(own.as_str()) { own } else { request.port.to_string() });
        }
        // The explicit proxy port: the one table that is not a service's.
        let proxied = part.routes.keys().next();
        return proxied.map(ToString::to_string).ok_or_else(|| {
            format!("{}/{} opens no HTTP proxy port (Sidecar egress)", proxy.namespace, proxy.name)
        });
    };
    let (namespace, name) = gateway.split_once('/').unwrap_or(("default", gateway));
    let object =
        model.snapshot.gateways.get(namespace, name).ok_or_else(|| format!("no Gateway {gateway}"))?;
    let servers = &object.spec.servers;
    let on_port = servers.iter().find(|s| s.port.number == u32::from(request.port));
    let fits = |protocol: &str| (request.scheme == "https") == (protocol == "HTTPS" || protocol == "TLS");
    let server =
        on_port.or_else(|| servers.iter().find(|s| fits(&s.port.protocol.to_ascii_uppercase()))).ok_or_else(
            || format!("{} has no server for {} on port {}", label_of(object), request.scheme, request.port),
        )?;
    if server.tls.is_some() && server.port.protocol.eq_ignore_ascii_case("https") {
        return Ok(format!("https.{}.{}.{name}.{namespace}", server.port.number, server.port.name));
    }
    let backed = model.backed_by(&proxy.addresses);
    let target = backed
        .iter()
        .find(|(_, p, _)| u32::from(p.number) == server.port.number)
        .map_or(server.port.number, |(_, _, at)| u32::from(*at));
    Ok(format!("http.{target}"))
}

/// The VirtualService and the index of the rule that a route was made from.
fn rule_of(
    translator: &Translator,
    proxy: &Proxy,
    gateway: Option<&str>,
    request: &Request,
    route: &Route,
) -> (Option<String>, Option<usize>) {
    let Some(source) = &route.source else { return (None, None) };
    let name = format!("{}/{}", source.namespace, source.name);
    let routing = translator
        .model
        .routing
        .iter()
        .find(|r| *r.object.namespace() == *source.namespace && *r.object.name() == *source.name);
    let Some(routing) = routing else { return (Some(name), None) };
    let outline = translator.outline(proxy);
    let view = View::of(&translator.model, &outline.clusters.view);
    let port = gateway
        .and_then(|g| g.split_once('/'))
        .and_then(|(ns, n)| translator.model.snapshot.gateways.get(ns, n))
        .map_or(vec![request.port], |g| {
            g.spec.servers.iter().filter_map(|s| u16::try_from(s.port.number).ok()).collect()
        });
    let index = port.into_iter().find_map(|port| {
        let place = Place { view: &view, labels: &proxy.labels, port, gateway: gateway.unwrap_or(MESH) };
        let routes = translator.numbered_routes(place, routing);
        routes.into_iter().find(|(_, made)| **made == *route).map(|(index, _)| index)
    });
    (Some(name), index)
}
