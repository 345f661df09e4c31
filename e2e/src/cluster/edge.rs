//! The gateway's TLS as people use it: certificates by `credentialName`, names by SNI, client certificates, redirects, a changed Secret.
//!
//! In: a [`World`]. Out: [`Seen`]. Kept true: every answer is read through a verified handshake with the name that was asked for; what was
//! made is removed. Not here: the gateway's routes (`crate::scenarios`).

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use mesh_identity::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    rustls::{ClientConfig, RootCertStore},
    tls::provider,
    tokio_rustls::TlsConnector,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use serde_json::json;

use super::{Cluster, SYSTEM, kubectl::Forward, world::World};
use crate::{node::until, scenarios::Seen};

/// Secrets of the gateway, by the host that they are for.
const HOSTS: [(&str, &str); 3] =
    [("one.example", "edge-one"), ("two.example", "edge-two"), ("clients.example", "edge-clients")];

const OBJECTS: &str = r#"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: default}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: [one.example], tls: {httpsRedirect: true}}
  - {port: {number: 443, name: one, protocol: HTTPS}, hosts: [one.example], tls: {mode: SIMPLE, credentialName: edge-one}}
  - {port: {number: 443, name: two, protocol: HTTPS}, hosts: [two.example], tls: {mode: SIMPLE, credentialName: edge-two}}
  - {port: {number: 443, name: clients, protocol: HTTPS}, hosts: [clients.example], tls: {mode: MUTUAL, credentialName: edge-clients}}
  - {port: {number: 443, name: nothing, protocol: HTTPS}, hosts: [nothing.example], tls: {mode: SIMPLE, credentialName: edge-nothing}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: edge, namespace: default}
spec:
  hosts: ["one.example", "two.example", "clients.example", "nothing.example"]
  gateways: [edge]
  http: [{route: [{destination: {host: espresso-shop-reviews-svc, port: {number: 8092}}}]}]
"#;

/// Plays all of it.
///
/// # Errors
/// When something could not be made or the gateway never opens the port.
pub async fn look(world: &World) -> anyhow::Result<Seen> {
    let (cluster, authority) = (&world.cluster, Authority::new()?);
    for (host, secret) in HOSTS {
        cluster.kubectl().apply(&authority.secret(secret, host)?).await?;
    }
    cluster.put("edge.yaml", OBJECTS).await?;
    let seen = played(cluster, &authority).await;
    cluster.take("edge.yaml").await?;
    for (_, secret) in HOSTS {
        cluster.kubectl().run(&["-n", SYSTEM, "delete", "secret", secret]).await?;
    }
    seen
}

async fn played(cluster: &Cluster, authority: &Authority) -> anyhow::Result<Seen> {
    let (mut good, mut text) = (true, Vec::new());
    for (name, with_certificate, wanted) in [
        ("one.example", false, true),
        ("two.example", false, true),
        ("clients.example", true, true),
        ("clients.example", false, false),
        ("nothing.example", false, false),
        ("unknown.example", false, false),
    ] {
        let said = settled(cluster, authority, name, with_certificate, wanted).await?;
        good &= wanted == (said == "200");
        let who = if with_certificate { " with a certificate" } else { "" };
        text.push(format!("{name}{who}: {said}"));
    }
    let plain = cluster.outside().get(&format!("http://istio-ingressgateway.{SYSTEM}/api/version?x=1"));
    let plain = plain.header("host", "one.example").send().await?;
    let location = plain.header("location").to_owned();
    good &= plain.status == 301 && location == "https://one.example/api/version?x=1";
    text.push(format!("over port 80: {} {location}", plain.status));
    let (fresh, sent, failed) = changed(cluster, authority).await?;
    good &= failed == 0 && sent > 0;
    text.push(format!(
        "a changed Secret is served after {:.1} s, {failed} of {sent} calls failed",
        fresh.as_secs_f64()
    ));
    Ok(Seen::new(good, text.join("; ")))
}

/// kubectl gives a forwarded port up when a connection through it is refused: each attempt has its own.
async fn port(cluster: &Cluster) -> anyhow::Result<Forward> {
    cluster.kubectl().forward(SYSTEM, "service/istio-ingressgateway", 443).await
}

/// What a server answers in the end: a status, or that it refuses.
async fn settled(
    cluster: &Cluster,
    authority: &Authority,
    name: &str,
    with_certificate: bool,
    wanted: bool,
) -> anyhow::Result<String> {
    let mut last = String::new();
    for _ in 0..if wanted { 60 } else { 1 } {
        let gateway = port(cluster).await?;
        match authority.get(gateway.address, name, with_certificate).await {
            Ok(answer) => return Ok(answer.status.to_string()),
            Err(error) => last = format!("refused ({error:#})"),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(last)
}

/// Changes a certificate while calls go on: until the new one is served, calls, failed calls.
async fn changed(cluster: &Cluster, authority: &Authority) -> anyhow::Result<(Duration, u64, u64)> {
    let gateway = port(cluster).await?;
    let at = gateway.address;
    let before = authority.get(at, "one.example", false).await?.certificate;
    let (over, sent, failed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let calls = async {
        while !over.load(Ordering::Relaxed) {
            let end = authority.get(at, "one.example", false).await;
            sent.fetch_add(1, Ordering::Relaxed);
            failed.fetch_add(u64::from(!end.is_ok_and(|a| a.status == 200)), Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let change = async {
        let began = tokio::time::Instant::now();
        cluster.kubectl().apply(&authority.secret(HOSTS[0].1, HOSTS[0].0)?).await?;
        let new =
            || async { authority.get(at, "one.example", false).await.is_ok_and(|a| a.certificate != before) };
        let end = until(Cluster::PATIENCE, new, || "the old certificate is still served".to_owned()).await;
        let took = began.elapsed();
        tokio::time::sleep(Duration::from_secs(1)).await;
        end.map(|()| took)
    };
    let change = async {
        let end = change.await;
        over.store(true, Ordering::Relaxed);
        end
    };
    let (took, ()) = tokio::join!(change, calls);
    Ok((took?, sent.into_inner(), failed.into_inner()))
}

/// What came through a handshake.
struct Answer {
    status: u16,
    certificate: Vec<u8>,
}

/// Signs for servers and clients.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    fn issue(
        &self,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
    ) -> anyhow::Result<(rcgen::Certificate, KeyPair)> {
        let mut params = CertificateParams::new([name.to_owned()])?;
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.0)?, key))
    }

    /// A Secret of the gateway with a new certificate for `host`, as `kubectl create secret tls` makes it, and the roots of clients.
    fn secret(&self, name: &str, host: &str) -> anyhow::Result<String> {
        let (certificate, key) = self.issue(host, ExtendedKeyUsagePurpose::ServerAuth)?;
        let coded = |text: String| STANDARD.encode(text);
        let data = json!({
            "tls.crt": coded(certificate.pem()), "tls.key": coded(key.serialize_pem()), "ca.crt": coded(self.0.pem()),
        });
        Ok(json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": { "name": name, "namespace": SYSTEM }, "data": data,
        })
        .to_string())
    }

    /// One request over a connection of its own, to the server of this name.
    async fn get(&self, at: SocketAddr, name: &str, with_certificate: bool) -> anyhow::Result<Answer> {
        let end =
            tokio::time::timeout(Duration::from_secs(10), self.exchange(at, name, with_certificate)).await;
        end.with_context(|| format!("{name}: no answer in 10 s"))?
    }

    async fn exchange(&self, at: SocketAddr, name: &str, with_certificate: bool) -> anyhow::Result<Answer> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone())?;
        let config = ClientConfig::builder_with_provider(Arc::clone(provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let config = match with_certificate {
            false => config.with_no_client_auth(),
            true => {
                let (certificate, key) = self.issue("client.example", ExtendedKeyUsagePurpose::ClientAuth)?;
                let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
                config.with_client_auth_cert(vec![certificate.der().clone()], key)?
            }
        };
        let tcp = tokio::net::TcpStream::connect(at).await?;
        let name_of_server = ServerName::try_from(name.to_owned())?;
        let tls = TlsConnector::from(Arc::new(config)).connect(name_of_server, tcp).await?;
        let peer = tls.get_ref().1.peer_certificates().and_then(<[CertificateDer<'_>]>::first);
        let certificate = peer.context("a server without a certificate")?.to_vec();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
        let driver = tokio::spawn(connection);
        let request = http::Request::get("/api/version").header("host", name).body(Empty::<Bytes>::new())?;
        let answer = sender.send_request(request).await?;
        let status = answer.status().as_u16();
        answer.into_body().collect().await?;
        driver.abort();
        Ok(Answer { status, certificate })
    }
}
