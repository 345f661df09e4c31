//! What the tests share: a mixer with pods and rules, and requests for it.
#![allow(dead_code, missing_docs, reason = "each test file uses a part")]

use std::sync::Arc;

use envoy_types::pb::envoy::{
    config::core::v3::{Address, SocketAddress, address, socket_address},
    service::auth::v3::{
        AttributeContext, CheckRequest,
        attribute_context::{HttpRequest, Peer, Request},
    },
};
use mesh_config::Snapshot;
use mixer::{config::Options, core::Mixer};

/// The Espresso Shop's policy, as its author has it.
pub const POLICY: &str = r#"
apiVersion: "config.istio.io/v1alpha2"
kind: denier
metadata:
  name: deny-reviews-v2-handler
spec:
  status:
    code: 7
    message: Not allowed
---
apiVersion: "config.istio.io/v1alpha2"
kind: checknothing
metadata:
  name: deny-reviews-v2-request
spec:
---
apiVersion: "config.istio.io/v1alpha2"
kind: rule
metadata:
  name: deny-reviews
spec:
  match: destination.labels["app"] == "espresso-shop-reviews" && destination.labels["version"] == "v2"  && source.labels["app"]=="espresso-shop-web" 
  actions:
  - handler: deny-reviews-v2-handler.denier
    instances: [ deny-reviews-v2-request.checknothing ]
"#;

fn pod(name: &str, ip: &str, app: &str, version: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: default
  labels: {{app: {app}, version: {version}, pod-template-hash: abc}}
  ownerReferences: [{{apiVersion: apps/v1, kind: ReplicaSet, name: {app}-{version}-abc, uid: u, controller: true}}]
spec: {{serviceAccountName: default, containers: [{{name: app, image: x}}]}}
status: {{podIP: {ip}}}
---
"#
    )
}

/// Web, a second client, and both versions of reviews; all run as service account `default`.
pub fn pods() -> String {
    [
        pod("web-1", "10.0.0.1", "espresso-shop-web", "v1"),
        pod("test-1", "10.0.0.2", "test", "v1"),
        pod("reviews-v1-1", "10.0.0.3", "espresso-shop-reviews", "v1"),
        pod("reviews-v2-1", "10.0.0.4", "espresso-shop-reviews", "v2"),
    ]
    .concat()
}

/// The snapshot of some texts.
pub fn snapshot(texts: &[&str]) -> Snapshot {
    let files: Vec<(String, &str)> =
        texts.iter().enumerate().map(|(i, text)| (format!("{i}.yaml"), *text)).collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), *text)).collect();
    Snapshot::from_texts(&files)
}

/// A mixer configured by some texts.
pub fn mixer(texts: &[&str]) -> Arc<Mixer> {
    Mixer::new(&snapshot(texts), Options::default())
}

/// What a proxy asks about a request.
pub fn authz_request(
    ip: &str,
    principal: &str,
    headers: &[(&str, &str)],
    extensions: &[(&str, &str)],
) -> CheckRequest {
    let socket = SocketAddress {
        address: ip.to_owned(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(40_000)),
        ..Default::default()
    };
    let address = Address { address: Some(address::Address::SocketAddress(socket)) };
    let own =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    let http = HttpRequest {
        id: "1".into(),
        method: "GET".into(),
        path: "/api/reviews/1?x=y".into(),
        host: "reviews".into(),
        headers: own(headers),
        ..Default::default()
    };
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(Peer {
                address: Some(address),
                principal: principal.to_owned(),
                ..Default::default()
            }),
            request: Some(Request { time: None, http: Some(http) }),
            context_extensions: own(extensions),
            ..Default::default()
        }),
    }
}
