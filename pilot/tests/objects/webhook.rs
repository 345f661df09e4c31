//! Pilot's webhook, served by this program to a real API server that has no mesh installed.
//!
//! The API server must reach this host under its own address, and route webhooks to endpoints
//! (`--enable-aggregator-routing`, as control planes outside the Service network have it).

use crate::cluster::Cluster;
use mesh_identity::{
    CertStore,
    testkit::{TestCa, domain, uri},
};
use mesh_runtime::drain;
use pilot::admission::{register, server};
use serde_json::json;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

/// No namespace of our own: where nothing deletes namespaces, it would stay.
const NAMESPACE: &str = "default";

const SLICE: &str = "pilot-webhook-test";

/// Who answers the API server's reviews.
pub enum Served {
    /// A mesh, or nobody: there is no cluster.
    NotByUs,
    /// This program.
    ByUs,
    /// Nobody, though this program should.
    Failed(String),
}

/// The webhook while it is served.
pub struct Webhook {
    cluster: Cluster,
    _runtime: tokio::runtime::Runtime,
}

impl Drop for Webhook {
    fn drop(&mut self) {
        let objects = [
            ["validatingwebhookconfiguration", register::CONFIGURATION],
            ["service", "pilot"],
            ["endpointslice", SLICE],
        ];
        for [kind, name] in objects {
            let _ = self.cluster.run(&["delete", "--ignore-not-found", "-n", NAMESPACE, kind, name], None);
        }
    }
}

/// Serves the webhook and waits until it has closed itself, where no mesh is installed.
pub fn serve_where_nobody_does(cluster: &mut Result<Cluster, String>) -> (Served, Option<Webhook>) {
    let Ok(cluster) = cluster else { return (Served::NotByUs, None) };
    // Only a listing of the tests is asked for, or one that needs no cluster.
    let args: Vec<_> = std::env::args().collect();
    if cluster.installed || args.iter().any(|a| a == "--list") {
        return (Served::NotByUs, None);
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    let started = runtime.block_on(start(cluster));
    let webhook = Webhook { cluster: cluster.clone(), _runtime: runtime };
    if let Err(why) = started {
        return (Served::Failed(format!("{why:#}")), None);
    }
    cluster.webhook = true;
    (Served::ByUs, Some(webhook))
}

async fn start(cluster: &Cluster) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await?;
    let here = SocketAddr::new(own_address()?, listener.local_addr()?.port());
    let (trigger, watch) = drain::new();
    // The process ends without a drain.
    std::mem::forget(trigger);
    let store = store()?;
    tokio::spawn(server::serve(listener, store.clone(), watch.clone()));
    for object in objects(here) {
        let out = cluster.run(&["apply", "-f", "-"], Some(&object.to_string()))?;
        anyhow::ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    tokio::spawn(register::keep(mesh_kube::client().await?, NAMESPACE.to_owned(), store, watch));
    let mut seen = Vec::new();
    for _ in 0..120 {
        let policy = cluster.failure_policy().unwrap_or_default();
        if seen.last() != Some(&policy) {
            seen.push(policy);
        }
        if seen.last().is_some_and(|p| p == "Fail") {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    anyhow::bail!(
        "after a minute the failure policy has only been {seen:?}: can the API server reach {here}?"
    )
}

fn store() -> anyhow::Result<CertStore> {
    let ca = TestCa::new("webhook test");
    let name = rcgen::string::Ia5String::try_from(format!("pilot.{NAMESPACE}.svc"))?;
    let id = format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/pilot");
    let credentials =
        ca.issue_with(|params| params.subject_alt_names = vec![uri(&id), rcgen::SanType::DnsName(name)]);
    let store = CertStore::new(domain(), []);
    store.publish(credentials, ca.bundle());
    Ok(store)
}

/// The address of this host on its way to others; no packet is sent.
fn own_address() -> anyhow::Result<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("192.0.2.1:9")?;
    Ok(socket.local_addr()?.ip())
}

fn objects(here: SocketAddr) -> Vec<serde_json::Value> {
    let port = json!({ "name": "webhook", "port": here.port() });
    vec![
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "pilot", "namespace": NAMESPACE },
            "spec": { "ports": [{ "name": "webhook", "port": 443, "targetPort": here.port() }] },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": SLICE, "namespace": NAMESPACE, "labels": { "kubernetes.io/service-name": "pilot" },
            },
            "endpoints": [{ "addresses": [here.ip()], "conditions": { "ready": true } }], "ports": [port],
        }),
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
            "metadata": { "name": register::CONFIGURATION },
        }),
    ]
}
