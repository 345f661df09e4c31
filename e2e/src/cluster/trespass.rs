//! A workload that wants what is another's: certificate, configuration, keys of the gateway. With tokens of the real API server.
//!
//! In: a [`World`]. Out: [`Seen`]. Kept true: the same calls with what is the workload's own succeed, so that a refusal says something.
//! Not here: callers without any identity (`suite`).

use std::{path::Path, time::Duration};

use anyhow::Context;
use futures::stream;
use mesh_identity::{
    CertStore, Credentials, PrivateKey, TrustBundle, TrustDomain,
    grpc::{self, ChannelOptions, ServerCheck, Target},
    pem,
    pki_types::PrivatePkcs8KeyDer,
    tls::ClientTls,
    workload::{CaClient, SignError, Signer},
};
use rcgen::{CertificateParams, KeyPair, SanType};

use serde_json::Value;
use tonic::{Code, Status};
use xds::discovery::{
    DeltaDiscoveryRequest, Node, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};

use super::{SYSTEM, kubectl::Kubectl, world::World};
use crate::scenarios::Seen;

/// Who tries: a ServiceAccount that no pod runs as but its own.
const WHO: &str = "mallory";
const DOMAIN: &str = "cluster.local";

/// Asks citadel and pilot for another's, with mallory's token and certificate.
///
/// # Errors
/// When mallory cannot even get what is theirs.
pub async fn look(world: &World) -> anyhow::Result<Seen> {
    let kubectl = world.cluster.kubectl();
    let account = format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {WHO}}}\n");
    kubectl.apply(&account).await?;
    let seen = tried(kubectl).await;
    kubectl.run(&["delete", "serviceaccount", WHO]).await?;
    seen
}

async fn tried(kubectl: &Kubectl) -> anyhow::Result<Seen> {
    let dir = tempfile::tempdir()?;
    let roots = root_certificate(kubectl, dir.path()).await?;
    let citadel = kubectl.forward(SYSTEM, "service/citadel", 8060).await?;
    let ca = CitadelAt { address: citadel.address.to_string(), roots: dir.path().join("root.pem") };
    let mut text = Vec::new();
    let mut good = true;

    // A certificate says who the token's account is, whatever the request names.
    let token = kubectl.run(&["create", "token", WHO, "--audience", "istio-ca"]).await?;
    let own = ca.sign(&token, dir.path()).await.map_err(|e| anyhow::anyhow!("{e}"))?;
    let id = own.id().context("a certificate without an identity")?.to_string();
    good &= id == format!("spiffe://{DOMAIN}/ns/default/sa/{WHO}");
    text.push(format!("a request that names another account: {id}"));

    // A token that is meant for somebody else, and one that nobody made.
    let other = kubectl.run(&["create", "token", WHO]).await?;
    for (what, token) in [("a token for the API server", other.as_str()), ("a made-up token", "e30.e30.e30")]
    {
        let end = ca.sign(token, dir.path()).await;
        good &= matches!(end, Err(SignError::Refused(_)));
        text.push(format!("{what}: {}", end.map_or_else(|e| e.to_string(), |_| "signed".to_owned())));
    }

    // Pilot serves mallory as themselves, and as nobody else.
    let pilot = kubectl.forward(SYSTEM, "service/pilot", 15_012).await?;
    let store = CertStore::new(TrustDomain::parse(DOMAIN)?, []);
    store.publish(own, TrustBundle::from_pem("istio-ca-root-cert", roots.as_bytes())?);
    let names = |namespace, app| pod_name(kubectl, namespace, app);
    let (caller, gateway) = (names("default", "caller").await?, names(SYSTEM, "istio-ingressgateway").await?);
    for (what, id, served) in [
        ("their own", format!("sidecar~10.9.9.9~{WHO}.default~default.svc.{DOMAIN}"), true),
        ("another pod's", format!("sidecar~10.9.9.9~{caller}.default~default.svc.{DOMAIN}"), false),
        ("the gateway's", format!("router~10.9.9.9~{gateway}.{SYSTEM}~{SYSTEM}.svc.{DOMAIN}"), false),
        ("another namespace's", format!("sidecar~10.9.9.9~x.{SYSTEM}~{SYSTEM}.svc.{DOMAIN}"), false),
    ] {
        let end = configuration(&pilot.address.to_string(), &store, id).await;
        good &= match &end {
            Ok(count) => served && *count > 0,
            Err(status) => !served && status.code() == Code::PermissionDenied,
        };
        let said = end.map_or_else(|s| format!("{:?}", s.code()), |n| format!("{n} clusters"));
        text.push(format!("{what} configuration: {said}"));
    }
    Ok(Seen::new(good, text.join("; ")))
}

struct CitadelAt {
    address: String,
    roots: std::path::PathBuf,
}

impl CitadelAt {
    /// Asks for a certificate of `sa/default` with `token`.
    async fn sign(&self, token: &str, dir: &Path) -> Result<Credentials, SignError> {
        let broken = |e: &dyn std::fmt::Display| SignError::Unreachable(e.to_string());
        let file = dir.join("token");
        std::fs::write(&file, token).map_err(|e| broken(&e))?;
        let server = ServerCheck::Id(control_plane("citadel").map_err(|e| broken(&e))?);
        let client = CaClient::new(&self.address, &self.roots, server, &file, &ChannelOptions::default());
        let key = KeyPair::generate().map_err(|e| broken(&e))?;
        let mut wish = CertificateParams::default();
        let name = format!("spiffe://{DOMAIN}/ns/default/sa/default").try_into().map_err(|e| broken(&e))?;
        wish.subject_alt_names = vec![SanType::URI(name)];
        let csr = wish.serialize_request(&key).and_then(|csr| csr.pem()).map_err(|e| broken(&e))?;
        let chain = client.map_err(|e| broken(&e))?.sign(csr, Duration::from_secs(3600)).await?;
        let chain =
            pem::certificates("citadel's answer", chain.concat().as_bytes()).map_err(|e| broken(&e))?;
        let key = PrivateKey::from_der(PrivatePkcs8KeyDer::from(key.serialize_der()).into());
        Credentials::new("citadel's answer", chain, key).map_err(|e| broken(&e))
    }
}

fn control_plane(name: &str) -> anyhow::Result<mesh_identity::SpiffeId> {
    Ok(TrustDomain::parse(DOMAIN)?.service_account(SYSTEM, name)?)
}

/// The mesh's roots, as every namespace has them; also as a file in `dir`.
async fn root_certificate(kubectl: &Kubectl, dir: &Path) -> anyhow::Result<String> {
    let map = kubectl.get(&["-n", "default", "configmap", "istio-ca-root-cert"]).await?;
    let roots = map.pointer("/data/root-cert.pem").and_then(Value::as_str).context("no root-cert.pem")?;
    std::fs::write(dir.join("root.pem"), roots)?;
    Ok(roots.to_owned())
}

async fn pod_name(kubectl: &Kubectl, namespace: &str, app: &str) -> anyhow::Result<String> {
    let pods = kubectl.list(&["-n", namespace, "pods", "-l", &format!("app={app}")]).await?;
    let name = pods.first().and_then(|p| p.pointer("/metadata/name")?.as_str());
    Ok(name.with_context(|| format!("no pod of {app}"))?.to_owned())
}

/// How many clusters pilot sends to node `id`.
async fn configuration(address: &str, store: &CertStore, id: String) -> Result<usize, Status> {
    let server = control_plane("pilot").map_err(|e| Status::internal(e.to_string()))?;
    let target = Target::Mesh(store.clone(), ClientTls::grpc(server));
    let channel = grpc::channel(address, target, &ChannelOptions::default()).map_err(Status::internal)?;
    let request = DeltaDiscoveryRequest {
        node: Some(Node { id, ..Node::default() }),
        type_url: xds::type_url::CLUSTER.to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(64 << 20);
    // The stream stays open: its end would be the client's goodbye.
    let requests = futures::StreamExt::chain(stream::iter([request]), stream::pending());
    let first = async { client.delta_aggregated_resources(requests).await?.into_inner().message().await };
    let first = tokio::time::timeout(Duration::from_secs(20), first).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no answer in 20 s"))??;
    Ok(first.map_or(0, |answer| answer.resources.len()))
}
