//! Handshakes between real certificates: who is let in, who is refused, and what changes when certificates do.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    KeyUsagePurpose, NameConstraints, OtherNameValue, SanType,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::{
    CertStore, Credentials, SpiffeId, TrustBundle, TrustDomain,
    testkit::{TestCa, uri},
    tls::client::Roots,
};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

type Sides = (Result<Accepted<DuplexStream>, TlsError>, Result<Connected<DuplexStream>, TlsError>);

async fn handshake(server: &CertStore, tls: &ServerTls, client: &CertStore, expected: Expected) -> Sides {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let client_tls = ClientTls { expected, alpn: tls.alpn.clone(), min: MinTls::V13 };
    tokio::join!(server.accept(tls, far), client.connect(&client_tls, Some("cart.shop"), near))
}

fn required() -> ServerTls {
    ServerTls { alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()], ..ServerTls::default() }
}

fn holding(credentials: Credentials, bundle: TrustBundle) -> CertStore {
    let store = CertStore::new(TrustDomain::default(), []);
    store.publish(credentials, bundle);
    store
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

/// What the server said to a client that shows this certificate.
async fn refusal(server: &CertStore, credentials: Credentials, bundle: &TrustBundle) -> Option<String> {
    let client = holding(credentials, bundle.clone());
    let (accepted, _) = handshake(server, &required(), &client, Expected::AnyInMesh).await;
    accepted.err().map(|e| e.to_string())
}

#[tokio::test]
async fn both_sides_learn_the_verified_identity_of_the_other() {
    let ca = TestCa::new("root");
    let (server, client) = (ca.store(CART), ca.store(WEB));
    let (accepted, connected) = handshake(&server, &required(), &client, Expected::one(id(CART))).await;
    let (mut accepted, mut connected) = (accepted.unwrap(), connected.unwrap());
    let peer = accepted.peer.unwrap();
    assert_eq!((peer.id().as_str(), accepted.sni.as_deref()), (WEB, Some("cart.shop")));
    assert_eq!(connected.peer.unwrap().id().as_str(), CART);
    assert_eq!(accepted.alpn.as_deref(), Some(&b"h2"[..]));
    assert_eq!(peer.leaf_hash().len(), 64);
    connected.stream.write_all(b"hello").await.unwrap();
    connected.stream.flush().await.unwrap();
    let mut bytes = [0; 5];
    accepted.stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"hello");
}

#[tokio::test]
async fn a_client_accepts_only_the_identities_it_expects() {
    let ca = TestCa::new("root");
    let (server, client) = (ca.store(CART), ca.store(WEB));
    for (expected, ok) in [
        (Expected::AnyInMesh, true),
        (Expected::one(id(CART)), true),
        (Expected::OneOf([id(WEB), id(CART)].into()), true),
        (Expected::one(id(WEB)), false),
        (Expected::OneOf([].into()), false),
    ] {
        let (_, connected) = handshake(&server, &required(), &client, expected.clone()).await;
        assert_eq!(connected.is_ok(), ok, "{expected:?}");
        if let Err(error) = connected {
            assert!(error.to_string().contains(CART), "{error}");
        }
    }
}

#[tokio::test]
async fn clients_without_a_certificate_are_treated_as_the_server_says() {
    let ca = TestCa::new("root");
    let server = ca.store(CART);
    for (client_auth, ok) in
        [(ClientAuth::Required, false), (ClientAuth::Optional, true), (ClientAuth::None, true)]
    {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let bare = OriginTls {
            roots: Some(Roots::Bundle(ca.bundle())),
            names: Names::OneOf(vec![CART.into()]),
            credentials: None,
            alpn: Vec::new(),
            min: MinTls::V13,
        };
        let tls = ServerTls { client_auth, ..ServerTls::default() };
        let (accepted, _) =
            tokio::join!(server.accept(&tls, far), client::connect(bare.config().unwrap(), &[], None, near));
        assert_eq!(accepted.is_ok(), ok, "{client_auth:?}");
        assert!(accepted.is_err() || accepted.unwrap().peer.is_none(), "{client_auth:?}");
    }
}

/// X.509-SVID, section 2: DNS names beside the one URI change nothing about who it is.
#[tokio::test]
async fn dns_names_beside_the_identity_are_passed_over() {
    let ca = TestCa::new("root");
    let server = ca.store(CART);
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    for names in
        [vec![uri(WEB), dns("cart.shop.svc")], vec![dns("a.b"), uri(WEB), dns("spiffe.cluster.local")]]
    {
        let credentials = ca.issue_with(|params| params.subject_alt_names = names);
        assert_eq!(credentials.id().map(SpiffeId::as_str), Some(WEB));
        assert_eq!(refusal(&server, credentials, &ca.bundle()).await, None);
    }
}

/// TL-02: a certificate with any other set of names than one well-formed identity is nobody.
#[tokio::test]
async fn name_games_are_refused() {
    let ca = TestCa::new("root");
    let server = ca.store(CART);
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let long = format!("{WEB}{}", "x".repeat(2048));
    let games: Vec<(&str, Vec<SanType>)> = vec![
        ("none", vec![]),
        ("two uris", vec![uri(WEB), uri(CART)]),
        ("the same uri twice", vec![uri(WEB), uri(WEB)]),
        ("two uris and dns", vec![uri(WEB), dns("web.shop"), uri(CART)]),
        ("uri and ip", vec![uri(WEB), SanType::IpAddress("10.0.0.1".parse().unwrap())]),
        ("uri and email", vec![uri(WEB), SanType::Rfc822Name("a@b.c".try_into().unwrap())]),
        ("uri as dns", vec![dns("spiffe.cluster.local")]),
        ("other name", vec![SanType::OtherName((vec![1, 2, 3], OtherNameValue::Utf8String(WEB.into())))]),
        ("nul byte", vec![uri(&format!("{WEB}\0.evil"))]),
        ("escaped slash", vec![uri("spiffe://cluster.local/ns/shop%2fsa/sa/web")]),
        ("case of scheme", vec![uri("SPIFFE://cluster.local/ns/shop/sa/web")]),
        ("case of path", vec![uri("spiffe://cluster.local/ns/shop/sa/Web")]),
        ("trailing slash", vec![uri(&format!("{WEB}/"))]),
        ("wildcard", vec![uri("spiffe://cluster.local/ns/shop/sa/*")]),
        ("too long", vec![uri(&long)]),
        ("punycode domain of another", vec![uri("spiffe://xn--clster-3ya.local/ns/shop/sa/web")]),
        ("other trust domain", vec![uri("spiffe://evil.local/ns/shop/sa/web")]),
        ("dotted domain", vec![uri("spiffe://cluster.local./ns/shop/sa/web")]),
        ("port", vec![uri("spiffe://cluster.local:443/ns/shop/sa/web")]),
        ("not spiffe", vec![uri("https://cluster.local/ns/shop/sa/web")]),
    ];
    for (what, names) in games {
        let credentials = ca.issue_with(|params| params.subject_alt_names = names);
        assert!(refusal(&server, credentials, &ca.bundle()).await.is_some(), "{what}");
    }
    let twice = ca.issue_with(|params| {
        params.subject_alt_names = vec![uri(WEB)];
        // A second subjectAltName extension, by hand: GeneralNames { [6] "spiffe://cluster.local/ns/shop/sa/cart" }.
        let mut content =
            vec![0x30, u8::try_from(CART.len() + 2).unwrap(), 0x86, u8::try_from(CART.len()).unwrap()];
        content.extend_from_slice(CART.as_bytes());
        params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 17], content));
    });
    assert!(refusal(&server, twice, &ca.bundle()).await.is_some(), "two extensions");
    assert_eq!(refusal(&server, ca.issue(WEB), &ca.bundle()).await, None, "and the honest one is let in");
}

/// TL-01 and TL-03: chains that prove nothing.
#[tokio::test]
async fn chains_that_prove_nothing_are_refused() {
    let ca = TestCa::new("root");
    let server = ca.store(CART);
    let hour = Duration::from_secs(3600);
    let now = SystemTime::now();
    type Edit = Box<dyn Fn(&mut CertificateParams)>;
    let leaves: Vec<(&str, Edit)> = vec![
        ("expired", Box::new(move |p| p.not_after = (now - hour / 2).into())),
        ("not yet valid", Box::new(move |p| p.not_before = (now + hour / 2).into())),
        ("server only", Box::new(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])),
        ("an authority as leaf", Box::new(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        (
            "unknown critical extension",
            Box::new(|p| {
                let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
                extension.set_criticality(true);
                p.custom_extensions.push(extension);
            }),
        ),
    ];
    for (what, edit) in leaves {
        let credentials = ca.issue_with(|params| {
            params.subject_alt_names = vec![uri(WEB)];
            if what == "expired" {
                params.not_before = (now - hour).into();
            }
            edit(params);
        });
        assert!(refusal(&server, credentials, &ca.bundle()).await.is_some(), "{what}");
    }

    let other = TestCa::new("root");
    assert!(
        refusal(&server, other.issue(WEB), &ca.bundle()).await.is_some(),
        "another root of the same name"
    );

    let authorities: Vec<(&str, Edit, bool)> = vec![
        ("a good intermediate", Box::new(|_| {}), true),
        ("a leaf as authority", Box::new(|p| p.is_ca = IsCa::ExplicitNoCa), false),
        ("no basic constraints", Box::new(|p| p.is_ca = IsCa::NoCa), false),
        ("may not sign", Box::new(|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]), true),
        ("expired", Box::new(move |p| p.not_after = (now - hour).into()), false),
        (
            "constrained to other names",
            Box::new(|p| {
                p.name_constraints = Some(NameConstraints {
                    permitted_subtrees: vec![GeneralSubtree::DnsName("example.com".into())],
                    excluded_subtrees: vec![],
                });
            }),
            true,
        ),
    ];
    for (what, edit, ok) in authorities {
        let (below, certificate) = ca.intermediate("intermediate", |params| edit(params));
        let leaf = below.issue(WEB);
        let chain = vec![leaf.chain()[0].clone(), certificate];
        let credentials = Credentials::unmatched(chain, leaf.key().clone());
        let refused = refusal(&server, credentials, &ca.bundle()).await;
        assert_eq!(refused.is_none(), ok, "{what}: {refused:?}");
    }
}

/// TL-04: more certificates than any mesh has are not even looked at.
#[tokio::test]
async fn chain_bombs_are_refused() {
    let ca = TestCa::new("root");
    let server = ca.store(CART);
    let leaf = ca.issue(WEB);
    let mut chain = vec![leaf.chain()[0].clone()];
    chain.extend((0..40).map(|_| ca.intermediate("root", |_| {}).1));
    let credentials = Credentials::new("bomb", chain, leaf.key().clone()).unwrap();
    let refused = refusal(&server, credentials, &ca.bundle()).await.unwrap();
    assert!(refused.contains("too long"), "{refused}");
}

#[tokio::test]
async fn aliases_of_the_trust_domain_are_accepted_when_named() {
    let ca = TestCa::new("root");
    let old = "spiffe://old.local/ns/shop/sa/web";
    let client = CertStore::new(TrustDomain::parse("old.local").unwrap(), [TrustDomain::default()]);
    client.publish(ca.issue(old), ca.bundle());
    for (aliases, ok) in [(vec![], false), (vec![TrustDomain::parse("old.local").unwrap()], true)] {
        let server = CertStore::new(TrustDomain::default(), aliases);
        server.publish(ca.issue(CART), ca.bundle());
        let (accepted, _) = handshake(&server, &required(), &client, Expected::AnyInMesh).await;
        assert_eq!(accepted.is_ok(), ok);
    }
}

/// Old root → both → new root: at each step the peers of the step before still get in, and in the end the old do not.
#[tokio::test]
async fn two_roots_bridge_a_rotation_and_dropping_the_old_cuts_it() {
    let (old, new) = (TestCa::new("old"), TestCa::new("new"));
    let both = TrustBundle::new("both", vec![old.root().clone(), new.root().clone()]).unwrap();
    let server = holding(old.issue(CART), old.bundle());
    let client = holding(old.issue(WEB), old.bundle());
    let works = async |server: &CertStore, client: &CertStore| {
        let (accepted, connected) = handshake(server, &required(), client, Expected::one(id(CART))).await;
        (accepted.is_ok() && connected.is_ok()).then(|| accepted.unwrap().peer.unwrap())
    };
    let first = works(&server, &client).await.expect("before");
    server.publish(old.issue(CART), both.clone());
    assert!(works(&server, &client).await.is_some(), "server knows the new root");
    client.publish(old.issue(WEB), both.clone());
    server.publish(new.issue(CART), both.clone());
    assert!(works(&server, &client).await.is_some(), "server has a new certificate");
    client.publish(new.issue(WEB), both);
    assert!(works(&server, &client).await.is_some(), "both have");
    assert!(server.recheck(&first).is_ok(), "live connections of the old root are still fine");
    server.publish(new.issue(CART), new.bundle());
    assert!(works(&server, &client).await.is_some(), "old root dropped");
    assert!(server.recheck(&first).is_err(), "and its live connections are to be cut");
    client.publish(old.issue(WEB), old.bundle());
    assert!(works(&server, &client).await.is_none(), "a straggler of the old root is refused");
}

/// TL-05: what was verified once is verified again.
#[tokio::test]
async fn no_session_is_ever_resumed() {
    let ca = TestCa::new("root");
    let (server, client) = (ca.store(CART), ca.store(WEB));
    for _ in 0..3 {
        let (accepted, connected) = handshake(&server, &required(), &client, Expected::AnyInMesh).await;
        let kinds = (
            accepted.unwrap().stream.get_ref().1.handshake_kind(),
            connected.unwrap().stream.get_ref().1.handshake_kind(),
        );
        assert_eq!(kinds, (Some(rustls::HandshakeKind::Full), Some(rustls::HandshakeKind::Full)));
    }
}

#[tokio::test]
async fn configurations_are_built_once_per_rotation() {
    let ca = TestCa::new("root");
    let store = ca.store(CART);
    let first = store.server_config(&required()).unwrap();
    assert!(Arc::ptr_eq(&first, &store.server_config(&required()).unwrap()));
    let mut changes = store.subscribe();
    store.publish(ca.issue(CART), ca.bundle());
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert!(!Arc::ptr_eq(&first, &store.server_config(&required()).unwrap()));
}

#[tokio::test]
async fn an_empty_store_says_that_it_waits() {
    let store = CertStore::new(TrustDomain::default(), []);
    assert!(matches!(store.server_config(&required()), Err(TlsError::NoCredentials)));
    let (near, _far) = tokio::io::duplex(1024);
    assert!(matches!(store.accept(&required(), near).await, Err(TlsError::NoCredentials)));
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_dropped_at_the_deadline() {
    let store = TestCa::new("root").store(CART);
    let (_near, far) = tokio::io::duplex(1024);
    assert!(matches!(store.accept(&required(), far).await, Err(TlsError::Deadline)));
}

#[tokio::test]
async fn tls_1_2_needs_to_be_allowed() {
    let ca = TestCa::new("root");
    let server =
        ca.issue_with(|p| p.subject_alt_names = vec![SanType::DnsName("shop.example".try_into().unwrap())]);
    let only_12 = |roots: TrustBundle| {
        let servers = verify::Servers::Names { roots: roots.anchors(), names: Names::Asked };
        let config = ClientConfig::builder_with_provider(provider().clone())
            .with_protocol_versions(&[&TLS12])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(servers))
            .with_no_client_auth();
        Arc::new(config)
    };
    for (min, ok) in [(MinTls::V13, false), (MinTls::V12, true)] {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let config = server::file_config(&server, None, &[], min).unwrap();
        let (accepted, _) = tokio::join!(
            server::accept(config, &[], far),
            client::connect(only_12(ca.bundle()), &[], Some("shop.example"), near)
        );
        assert_eq!(accepted.is_ok(), ok, "{min:?}");
    }
}

#[tokio::test]
async fn protocols_are_agreed_on_or_left_open_as_envoy_does() {
    let ca = TestCa::new("root");
    let (server, client) = (ca.store(CART), ca.store(WEB));
    let list = |names: &[&str]| names.iter().map(|n| n.as_bytes().to_vec()).collect::<Vec<_>>();
    for (ours, offered, agreed) in [
        (&["h2", "http/1.1"][..], &["http/1.1", "h2"][..], Some("h2")),
        (&["h2"], &["istio", "h2"], Some("h2")),
        (&["h2"], &["istio-peer-exchange"], None),
        (&["h2"], &[], None),
        (&[], &["h2"], None),
    ] {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let tls = ServerTls { alpn: list(ours), ..ServerTls::default() };
        let client_tls = ClientTls { expected: Expected::AnyInMesh, alpn: list(offered), min: MinTls::V13 };
        let (accepted, connected) =
            tokio::join!(server.accept(&tls, far), client.connect(&client_tls, None, near));
        let agreed = agreed.map(|a| a.as_bytes().to_vec());
        assert_eq!(
            (&accepted.unwrap().alpn, &connected.unwrap().alpn),
            (&agreed, &agreed),
            "{ours:?} {offered:?}"
        );
    }
}

#[tokio::test]
async fn servers_outside_the_mesh_are_checked_by_name() {
    let ca = TestCa::new("root");
    let server = ca.issue_with(|p| {
        p.subject_alt_names =
            vec![SanType::DnsName("*.shop.example".try_into().unwrap()), uri("https://shop.example/id")];
    });
    let bundle = || Some(Roots::Bundle(ca.bundle()));
    let list = |names: &[&str]| Names::OneOf(names.iter().map(|n| (*n).to_owned()).collect());
    for (roots, names, sni, ok) in [
        (bundle(), Names::Asked, Some("www.shop.example"), true),
        (bundle(), Names::Asked, Some("shop.example"), false),
        (bundle(), Names::Asked, None, false),
        (bundle(), list(&["other", "www.shop.example"]), None, true),
        (bundle(), list(&["https://shop.example/id"]), None, true),
        (bundle(), list(&["https://shop.example/i"]), None, false),
        (bundle(), list(&[]), Some("www.shop.example"), false),
        (bundle(), Names::Any, None, true),
        (Some(Roots::Public), Names::Any, None, false),
        (None, Names::Asked, None, true),
    ] {
        let what = format!("{names:?} {sni:?}");
        let (near, far) = tokio::io::duplex(64 * 1024);
        let config = server::file_config(&server, None, &[], MinTls::V13).unwrap();
        let origin = OriginTls { roots, names, credentials: None, alpn: vec![], min: MinTls::V12 };
        let (_, connected) = tokio::join!(
            server::accept(config, &[], far),
            client::connect(origin.config().unwrap(), &[], sni, near)
        );
        assert_eq!(connected.is_ok(), ok, "{what}: {:?}", connected.err());
    }
}

#[test]
fn keys_never_show_in_debug_output() {
    let credentials = TestCa::new("root").issue(WEB);
    let pem = credentials.key().to_pem();
    let body = pem.lines().nth(1).unwrap().to_owned();
    let shown = format!("{credentials:?} {:?} {:?}", credentials.key(), credentials.facts());
    assert!(!shown.contains(&body) && shown.contains("hidden"), "{shown}");
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let ca = TestCa::new("root");
    let (a, b) = (ca.issue(WEB), ca.issue(WEB));
    let error = Credentials::new("web.pem", a.chain().to_vec(), b.key().clone()).unwrap_err().to_string();
    assert!(error.contains("web.pem") && error.contains("do not fit together"), "{error}");
}
