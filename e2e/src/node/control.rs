//! The control plane of a local mesh: which processes with which flags, and the objects that a cluster would have for them.
//!
//! In: a network and a layout. Out: objects, process specs, readiness checks. Kept true: each component has its own address and its own
//! service account in istio-system. Not here: workloads (`mod`).

use std::{ffi::OsString, fs, net::SocketAddr, path::Path};

use anyhow::Context;
use serde_json::{Value, json};

use super::{
    container::Kubelet,
    files::{write_objects, write_text},
    network::Network,
    process::Spec,
};

/// Namespace of the control plane.
pub const SYSTEM: &str = "istio-system";

/// Where the control plane answers.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// pilot, xDS in plaintext.
    pub xds: SocketAddr,
    /// pilot, xDS over mTLS.
    pub xds_tls: SocketAddr,
    /// pilot's admin server.
    pub pilot_admin: SocketAddr,
    /// citadel, certificate requests.
    pub ca: SocketAddr,
    /// citadel's admin server.
    pub ca_admin: SocketAddr,
    /// mixer, all its APIs in plaintext.
    pub mixer: SocketAddr,
    /// The same over mTLS.
    pub mixer_tls: SocketAddr,
    /// mixer's prometheus adapter.
    pub prometheus: SocketAddr,
    /// mixer's recorder: Zipkin v2 and the dashboard.
    pub zipkin: SocketAddr,
    /// mixer's admin server.
    pub mixer_admin: SocketAddr,
}

impl Addresses {
    /// All addresses in `network`.
    #[must_use]
    pub fn of(network: &Network) -> Self {
        let at = |host: u8, port: u16| SocketAddr::from((network.control(host), port));
        Self {
            xds: at(2, 15_010),
            xds_tls: at(2, 15_012),
            pilot_admin: at(2, 15_014),
            ca: at(3, 8060),
            ca_admin: at(3, 8061),
            mixer: at(4, 9091),
            mixer_tls: at(4, 15_004),
            prometheus: at(4, 42_422),
            zipkin: at(4, 9411),
            mixer_admin: at(4, 9093),
        }
    }
}

/// Writes the objects that exist before any workload: namespaces, mesh config, the control plane's own Services and Pods.
///
/// # Errors
/// When the file system refuses.
pub fn write_base(kubelet: &Kubelet, addresses: &Addresses, sampling: f64) -> anyhow::Result<()> {
    let node = kubelet.layout.node();
    let namespace = |name: &str, injected: bool| {
        let labels = if injected { json!({ "istio-injection": "enabled" }) } else { json!({}) };
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
    };
    write_objects(&node.join("namespaces.yaml"), &[namespace("default", true), namespace(SYSTEM, false)])?;
    let mesh = json!({
        "rootNamespace": SYSTEM,
        "trustDomain": "cluster.local",
        "enableAutoMtls": true,
        "enableTracing": true,
        "accessLogFile": "/dev/stdout",
        "defaultConfig": {
            "discoveryAddress": addresses.xds_tls.to_string(),
            "tracing": { "sampling": sampling, "zipkin": { "address": addresses.zipkin.to_string() } },
        },
    });
    let config = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "istio", "namespace": SYSTEM },
        "data": { "mesh": serde_saphyr::to_string(&mesh)? },
    });
    write_objects(&node.join("mesh-config.yaml"), &[config])?;
    for (name, address, ports) in [
        ("pilot", addresses.xds, &[("grpc-xds", 15_010_u16), ("https-dns", 15_012)][..]),
        ("citadel", addresses.ca, &[("grpc-citadel", 8060)]),
        (
            "mixer",
            addresses.mixer,
            &[
                ("grpc-mixer", 9091),
                ("grpc-mixer-mtls", 15_004),
                ("http-zipkin", 9411),
                ("prometheus", 42_422),
            ],
        ),
    ] {
        write_objects(&node.join(format!("control-{name}.yaml")), &component(name, address, ports))?;
    }
    let keys = serde_json::to_string_pretty(kubelet.mint.jwks())?;
    write_text(&kubelet.layout.secrets().join("token-keys.json"), &keys)
}

fn component(name: &str, address: SocketAddr, ports: &[(&str, u16)]) -> Vec<Value> {
    let labels = json!({ "app": name });
    let meta = |name: &str| json!({ "name": name, "namespace": SYSTEM, "labels": labels });
    let ip = address.ip().to_string();
    let list = |key: &str| {
        let port = |(name, number): &(&str, u16)| {
            let mut port = json!({ "name": name, "port": number, "protocol": "TCP" });
            if key == "service" {
                port["targetPort"] = json!(number);
            }
            port
        };
        ports.iter().map(port).collect::<Vec<_>>()
    };
    let mut slice = meta(&format!("{name}-local"));
    slice["labels"] = json!({ "kubernetes.io/service-name": name });
    vec![
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta(name) }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": meta(name),
            "spec": { "selector": labels, "ports": list("service"), "clusterIP": ip },
        }),
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": meta(&pod_name(name)),
            "spec": { "serviceAccountName": name, "containers": [{ "name": name, "image": format!("crema/{name}") }] },
            "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "conditions": [{ "type": "Ready", "status": "True" }] },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "metadata": slice,
            "endpoints": [{
                "addresses": [ip], "conditions": { "ready": true },
                "targetRef": { "kind": "Pod", "name": pod_name(name), "namespace": SYSTEM },
            }],
            "ports": list("slice"),
        }),
    ]
}

fn pod_name(component: &str) -> String {
    format!("{component}-0")
}

/// The three processes, in the order in which they are started.
///
/// # Errors
/// When a token cannot be written.
pub fn specs(kubelet: &Kubelet, addresses: &Addresses) -> anyhow::Result<Vec<(Spec, SocketAddr)>> {
    let layout = &kubelet.layout;
    let text = |address: SocketAddr| address.to_string();
    let path = |path: &Path| path.display().to_string();
    let flags = |pairs: &[(&str, String)]| {
        let words = pairs.iter().flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()]);
        std::iter::once("serve".to_owned()).chain(words).map(OsString::from).collect::<Vec<_>>()
    };
    let identity = |component: &str| -> anyhow::Result<Vec<(&'static str, String)>> {
        let token = layout.secrets().join(component).join("istio-token");
        fs::create_dir_all(layout.secrets().join(component))?;
        let pod = pod_name(component);
        fs::write(&token, kubelet.mint.token(SYSTEM, component, &pod, &pod)?)
            .context("a component's token")?;
        Ok(vec![
            ("--ca-addr", text(addresses.ca)),
            ("--token-file", path(&token)),
            ("--root-cert-file", path(&layout.root_cert())),
            ("--trust-domain", "cluster.local".to_owned()),
        ])
    };
    let spec = |name: &str, args| Spec {
        name: name.to_owned(),
        program: kubelet.bin.join(name),
        args,
        env: vec![("DRAIN_SECONDS".into(), "2".into())],
    };
    let citadel = flags(&[
        ("--listen", text(addresses.ca)),
        ("--admin", text(addresses.ca_admin)),
        ("--token-keys", path(&layout.secrets().join("token-keys.json"))),
        ("--state-dir", path(&layout.secrets().join("citadel"))),
        ("--root-cert-out", path(&layout.root_cert())),
        ("--trust-domain", "cluster.local".to_owned()),
    ]);
    let mut pilot = vec![
        ("--config", path(&layout.config())),
        ("--xds-plaintext", text(addresses.xds)),
        ("--xds-tls", text(addresses.xds_tls)),
        ("--admin", text(addresses.pilot_admin)),
    ];
    pilot.extend(identity("pilot")?);
    let mut mixer = vec![
        ("--config", path(&layout.config())),
        ("--listen", text(addresses.mixer)),
        ("--listen-tls", text(addresses.mixer_tls)),
        ("--prometheus", text(addresses.prometheus)),
        ("--zipkin", text(addresses.zipkin)),
        ("--admin", text(addresses.mixer_admin)),
    ];
    mixer.extend(identity("mixer")?);
    Ok(vec![
        (spec("citadel", citadel), addresses.ca_admin),
        (spec("mixer", flags(&mixer)), addresses.mixer_admin),
        (spec("pilot", flags(&pilot)), addresses.pilot_admin),
    ])
}
