//! A whole citadel on loopback, asked over real TLS by the client that workloads use.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::future::BoxFuture;
use istio_auth::{
    IstioCertificateRequest, Kind, Struct, Value,
    istio_certificate_service_client::IstioCertificateServiceClient,
};
use mesh_identity::{
    Credentials, TrustBundle,
    grpc::{ChannelOptions, ServerCheck, Target, channel},
    testkit::TestCa,
    tls::{ClientTls, Expected, MinTls},
    workload::{CaClient, Certifier, SignError, Signer},
};
use mesh_runtime::{drain, listen};
use rcgen::{CertificateParams, KeyPair};
use tonic::{Code, Request, Status};

use super::*;
use crate::{ca::self_signed::SelfSigned, caller::ServiceAccount, refusal::Refusal};

/// Real sockets and real time here, so files are looked at often.
const POLL: Duration = Duration::from_millis(20);

/// Accepts `NAMESPACE/NAME` as the token of that account.
struct PlainTokens;

impl TokenVerifier for PlainTokens {
    fn verify<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<ServiceAccount, Refusal>> {
        let account = token
            .split_once('/')
            .map(|(namespace, name)| ServiceAccount { namespace: namespace.into(), name: name.into() })
            .ok_or(Refusal::TokenSignature);
        Box::pin(std::future::ready(account))
    }
}

struct Bench {
    dir: tempfile::TempDir,
    addr: String,
    metrics: Metrics,
    readiness: Readiness,
    trigger: drain::Trigger,
}

impl Bench {
    fn start(dir: tempfile::TempDir, source: Source, per_second: u32) -> Self {
        let (trigger, watch) = drain::new();
        let citadel = Citadel::load(Options {
            source,
            domain: TrustDomain::default(),
            lifetimes: Lifetimes::default(),
            root_out: Some(dir.path().join("roots.pem")),
            tokens: Some(Arc::new(PlainTokens)),
            per_second,
            poll: POLL,
            clock: Arc::new(SystemTime::now),
            mesh_namespace: "istio-system".to_owned(),
        })
        .unwrap();
        fs::write(dir.path().join("roots.pem"), citadel.current().now().bundle().to_pem()).unwrap();
        let listener = listen::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (metrics, readiness) = (Metrics::new(), Readiness::new());
        let (for_task, ready) = (metrics.clone(), readiness.clone());
        tokio::spawn(async move { citadel.serve(listener, &ready, &for_task, watch).await.unwrap() });
        Self { dir, addr, metrics, readiness, trigger }
    }

    fn self_signed() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = Source::SelfSigned(SelfSigned::new(&dir.path().join("ca"), &TrustDomain::default()));
        Self::start(dir, source, 50)
    }

    fn roots(&self) -> PathBuf {
        self.dir.path().join("roots.pem")
    }

    fn token(&self, text: &str) -> PathBuf {
        let file = self.dir.path().join(format!("token-{}", text.replace('/', "-")));
        fs::write(&file, format!("{text}\n")).unwrap();
        file
    }

    fn signer(&self, token: &str) -> CaClient {
        let options = ChannelOptions::default();
        CaClient::new(&self.addr, &self.roots(), server(), &self.token(token), &options).unwrap()
    }

    /// A workload that keeps itself certified, with its store once it has its first certificate.
    async fn workload(&self, token: &str) -> CertStore {
        let store = CertStore::new(TrustDomain::default(), []);
        let certifier = Certifier::new(self.signer(token), store.clone())
            .watch_roots(self.roots())
            .poll_roots_every(POLL);
        tokio::spawn(certifier.run(self.trigger.watch()));
        store.first().await;
        store
    }

    /// One request with everything under the caller's control.
    async fn ask(
        &self,
        target: Target,
        token: Option<&str>,
        wanted: IstioCertificateRequest,
    ) -> Result<Vec<String>, Status> {
        let channel = channel(&self.addr, target, &ChannelOptions::default()).unwrap();
        let mut request = Request::new(wanted);
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await?;
        Ok(answer.into_inner().cert_chain)
    }

    fn pinned(&self) -> Target {
        Target::Pinned { roots: self.roots(), server: server() }
    }
}

fn server() -> ServerCheck {
    "spiffe://cluster.local/ns/istio-system/sa/citadel".parse().unwrap()
}

fn csr() -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

fn wanted() -> IstioCertificateRequest {
    IstioCertificateRequest { csr: csr(), validity_duration: 3600, metadata: None }
}

/// Whether two workloads can talk to each other.
async fn talk(server: &CertStore, client: &CertStore) -> bool {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let tls = ClientTls { expected: Expected::AnyInMesh, alpn: vec![], min: MinTls::V13 };
    let accept = ServerTls::default();
    let (accepted, connected) = tokio::join!(server.accept(&accept, far), client.connect(&tls, None, near));
    accepted.is_ok() && connected.is_ok()
}

#[tokio::test]
async fn workloads_get_certificates_and_talk_to_each_other() {
    let citadel = Bench::self_signed();
    let (web, cart) = (citadel.workload("shop/web").await, citadel.workload("shop/cart").await);
    let identity = web.current().unwrap();
    assert_eq!(identity.credentials.id().unwrap().as_str(), "spiffe://cluster.local/ns/shop/sa/web");
    assert!(talk(&web, &cart).await && talk(&cart, &web).await);
    citadel.readiness.wait().await;
    let text = citadel.metrics.encode();
    assert!(text.contains("citadel_certificates_issued_total 2"), "{text}");
    assert!(text.contains("citadel_root_cert_expiry_seconds 3"), "{text}");
    assert_eq!(fs::read_to_string(citadel.roots()).unwrap(), identity.bundle.to_pem());
}

#[tokio::test]
async fn a_certificate_can_be_renewed_with_itself_and_only_for_itself() {
    let citadel = Bench::self_signed();
    let web = citadel.workload("shop/web").await;
    let tls = ClientTls::grpc("spiffe://cluster.local/ns/istio-system/sa/citadel".parse().unwrap());
    let answer = citadel.ask(Target::Mesh(web, tls), None, wanted()).await.unwrap();
    let leaf = mesh_identity::pem::certificates("answer", answer[0].as_bytes()).unwrap().remove(0);
    let facts = mesh_identity::credentials::LeafFacts::of("answer", &leaf).unwrap();
    assert_eq!(facts.id.unwrap().as_str(), "spiffe://cluster.local/ns/shop/sa/web");
    let stranger = TestCa::new("root").store("spiffe://cluster.local/ns/shop/sa/web");
    stranger
        .publish(stranger.current().unwrap().credentials, TrustBundle::from_file(&citadel.roots()).unwrap());
    let tls = ClientTls::grpc("spiffe://cluster.local/ns/istio-system/sa/citadel".parse().unwrap());
    let refused = citadel.ask(Target::Mesh(stranger, tls), None, wanted()).await;
    assert!(refused.is_err(), "a certificate of another root does not get in");
}

/// What callers are told: code and text for each mistake.
#[tokio::test]
async fn refusals_say_what_to_fix() {
    let citadel = Bench::self_signed();
    let impersonate = |who: &str| {
        let value = Value { kind: Some(Kind::StringValue(who.into())) };
        let fields = [("ImpersonatedIdentity".to_owned(), value)].into();
        IstioCertificateRequest { metadata: Some(Struct { fields }), ..wanted() }
    };
    for (what, token, wanted, code, part) in [
        ("nobody", None, wanted(), Code::Unauthenticated, "authorization: Bearer"),
        ("a bad token", Some("forged"), wanted(), Code::Unauthenticated, "matches no known key"),
        ("an odd account", Some("shop/a_b"), wanted(), Code::Unauthenticated, "not a Kubernetes name"),
        (
            "no request",
            Some("shop/web"),
            IstioCertificateRequest::default(),
            Code::InvalidArgument,
            "csr: not a PEM",
        ),
        (
            "somebody else",
            Some("shop/web"),
            impersonate("spiffe://cluster.local/ns/bank/sa/teller"),
            Code::PermissionDenied,
            "impersonation",
        ),
        (
            "a huge request",
            Some("shop/web"),
            IstioCertificateRequest { csr: "x".repeat(1 << 20), ..wanted() },
            Code::OutOfRange,
            "too large",
        ),
    ] {
        let status = citadel.ask(citadel.pinned(), token, wanted).await.expect_err(what);
        assert_eq!(status.code(), code, "{what}: {status:?}");
        assert!(status.message().contains(part), "{what}: {}", status.message());
    }
    let text = citadel.metrics.encode();
    assert!(text.contains("citadel_requests_refused_total{reason=\"anonymous\"} 1"), "{text}");
    assert!(citadel.ask(citadel.pinned(), Some("shop/web"), wanted()).await.is_ok(), "and it still serves");
}

#[tokio::test]
async fn a_flood_of_one_identity_does_not_reach_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let source = Source::SelfSigned(SelfSigned::new(&dir.path().join("ca"), &TrustDomain::default()));
    let citadel = Bench::start(dir, source, 1);
    let mut codes = Vec::new();
    for _ in 0..20 {
        codes
            .push(citadel.ask(citadel.pinned(), Some("shop/greedy"), wanted()).await.err().map(|s| s.code()));
    }
    assert!(codes.contains(&Some(Code::ResourceExhausted)), "{codes:?}");
    assert!(citadel.ask(citadel.pinned(), Some("shop/web"), wanted()).await.is_ok());
}

#[tokio::test]
async fn a_client_with_other_roots_does_not_send_its_token() {
    let citadel = Bench::self_signed();
    let other = TestCa::new("root");
    let roots = citadel.dir.path().join("other.pem");
    fs::write(&roots, other.bundle().to_pem()).unwrap();
    let token = citadel.token("shop/web");
    for (roots, server, part) in [
        (&roots, server(), "no root of this mesh"),
        (
            &citadel.roots(),
            ServerCheck::Dns("citadel.istio-system.svc".into()),
            "expected citadel.istio-system.svc",
        ),
        (&citadel.dir.path().join("missing.pem"), server(), "missing.pem"),
    ] {
        let client = CaClient::new(&citadel.addr, roots, server, &token, &ChannelOptions::default()).unwrap();
        let error = client.sign(csr(), Duration::from_secs(3600)).await.unwrap_err();
        assert!(matches!(&error, SignError::Unreachable(why) if why.contains(part)), "{error}");
    }
    let missing = citadel.dir.path().join("no-token");
    let client =
        CaClient::new(&citadel.addr, &citadel.roots(), self::server(), &missing, &ChannelOptions::default());
    let error = client.unwrap().sign(csr(), Duration::from_secs(3600)).await.unwrap_err();
    assert!(error.to_string().contains("no-token"), "{error}");
}

/// Writes an operator's authority: a root used directly.
fn plug(dir: &Path, authority: &Credentials, roots: &[&TrustBundle]) {
    let roots: String = roots.iter().map(|b| b.to_pem()).collect();
    let cert = mesh_identity::pem::encode(&authority.chain()[0]);
    for (name, content) in
        [("ca-cert.pem", cert.as_str()), ("ca-key.pem", &authority.key().to_pem()), ("root-cert.pem", &roots)]
    {
        fs::write(dir.join(name), content).unwrap();
    }
}

/// An intermediate below a root, as an operator plugs it in.
fn below(root: &TestCa) -> Credentials {
    root.issue_with(|params| {
        params.distinguished_name.push(rcgen::DnType::CommonName, "intermediate");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages = vec![];
    })
}

/// Replaces the root under running workloads, in the three steps of the manual; they talk at each of them.
#[tokio::test]
async fn a_root_is_replaced_in_three_steps_and_workloads_talk_throughout() {
    let (old, new) = (TestCa::new("old"), TestCa::new("new"));
    let dir = tempfile::tempdir().unwrap();
    let plugged = dir.path().join("cacerts");
    fs::create_dir(&plugged).unwrap();
    let (old_key, new_key) = (below(&old), below(&new));
    plug(&plugged, &old_key, &[&old.bundle()]);
    let citadel = Bench::start(dir, Source::Plugged(plugged.clone()), 50);
    let (web, cart) = (citadel.workload("shop/web").await, citadel.workload("shop/cart").await);
    assert!(talk(&web, &cart).await, "before");

    // A workload that has not renewed yet, at each step.
    let straggler = |store: &CertStore| {
        let now = store.current().unwrap();
        let copy = CertStore::new(TrustDomain::default(), []);
        copy.publish(now.credentials, now.bundle);
        copy
    };
    for (what, key, roots) in [
        ("both roots, old key", &old_key, vec![old.bundle(), new.bundle()]),
        ("both roots, new key", &new_key, vec![old.bundle(), new.bundle()]),
        ("new root only", &new_key, vec![new.bundle()]),
    ] {
        let late = straggler(&cart);
        let (mut web_changed, mut cart_changed) = (web.subscribe(), cart.subscribe());
        plug(&plugged, key, &roots.iter().collect::<Vec<_>>());
        // Roots change: workloads see the file and renew by themselves. Only the key changes: they do at half-life.
        let renewed = async {
            let _ = web_changed.changed().await;
            let _ = cart_changed.changed().await;
        };
        if what == "both roots, new key" {
            let signed_by_new = async || {
                let answer = citadel.ask(citadel.pinned(), Some("shop/probe"), wanted()).await.unwrap();
                answer[1] == mesh_identity::pem::encode(&new_key.chain()[0])
            };
            while !signed_by_new().await {
                tokio::task::yield_now().await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            for (store, token) in [(&web, "shop/web"), (&cart, "shop/cart")] {
                let fresh = citadel.workload(token).await.current().unwrap();
                store.publish(fresh.credentials, fresh.bundle);
            }
        } else {
            renewed.await;
        }
        assert!(talk(&web, &cart).await, "{what}");
        assert!(talk(&web, &late).await && talk(&late, &web).await, "{what}: with one that is a step behind");
    }
    let behind = CertStore::new(TrustDomain::default(), []);
    behind.publish(old.issue("spiffe://cluster.local/ns/shop/sa/late"), old.bundle());
    assert!(!talk(&web, &behind).await, "two steps behind is too late");
}

#[tokio::test]
async fn a_broken_change_of_the_files_keeps_the_authority() {
    let root = TestCa::new("root");
    let dir = tempfile::tempdir().unwrap();
    let plugged = dir.path().join("cacerts");
    fs::create_dir(&plugged).unwrap();
    plug(&plugged, &below(&root), &[&root.bundle()]);
    let source = Source::Plugged(plugged.clone());
    let current = Current::new(source.load(SystemTime::now()).unwrap());
    let before = current.now();
    let (_trigger, watch) = drain::new();
    tokio::time::pause();
    tokio::spawn(current.clone().follow(source, POLL, SystemTime::now, watch));
    let wait = || tokio::time::sleep(Duration::from_secs(5));
    wait().await;
    fs::write(plugged.join("root-cert.pem"), TestCa::new("another").bundle().to_pem()).unwrap();
    wait().await;
    assert!(Arc::ptr_eq(&before, &current.now()), "roots that do not fit the key");
    fs::remove_file(plugged.join("ca-key.pem")).unwrap();
    wait().await;
    assert!(Arc::ptr_eq(&before, &current.now()), "no key");
    plug(&plugged, &below(&root), &[&root.bundle()]);
    wait().await;
    assert!(!Arc::ptr_eq(&before, &current.now()), "and a good set is taken");
}
