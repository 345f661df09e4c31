//! Identity, permissive and strict listeners, headers that clients may not set, the explicit proxy's bounds.
//! In: certificates of a test authority. Out: who was let in, and what the application was told of it.
//! Kept true: an identity counts only when TLS verified it.
//! Not here: handshakes themselves (`mesh_identity`).

use super::*;
use mesh_identity::{
    testkit::TestCa,
    tls::{ClientTls, Expected, MinTls},
};
use mesh_traffic::{
    cluster::{ClusterTls, Discovery},
    listener::{ForwardClientCert, Transport},
    matchers::StringMatch,
    rbac::{Effect, Policy, Rbac, Rule},
    tls::{Certificate, DownstreamTls, Roots, UpstreamTls, Validation, Versions},
};

const WEB: &str = "spiffe://cluster.local/ns/default/sa/web";
const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";

fn mesh_tls() -> DownstreamTls {
    DownstreamTls {
        certificates: vec![Certificate::Sds("default".into())],
        validation: Some(Validation { roots: Some(Roots::Sds("ROOTCA".into())), names: vec![] }),
        require_client_certificate: true,
        alpn: vec!["istio-http/1.1".into(), "istio-h2".into(), "h2".into(), "http/1.1".into()],
        versions: Versions::default(),
    }
}

/// An inbound listener: mutual TLS, and plaintext too when permissive.
fn inbound(manager: &HttpManager, app: SocketAddr, permissive: bool) -> Snapshot {
    let manager = HttpManager {
        direction: Direction::Inbound,
        forward_client_cert: ForwardClientCert::AppendForward,
        server_name: Some("istio-envoy".into()),
        ..manager.clone()
    };
    let http = Terminal::Http(Arc::new(manager));
    let secured = FilterChain {
        matcher: ChainMatch { transport: Some(Transport::Tls), ..ChainMatch::default() },
        tls: Some(mesh_tls()),
        ..(*chain(http.clone())).clone()
    };
    let plain = FilterChain {
        matcher: ChainMatch { transport: Some(Transport::Raw), ..ChainMatch::default() },
        ..(*chain(http)).clone()
    };
    let mut chains = vec![Arc::new(secured)];
    if permissive {
        chains.push(Arc::new(plain));
    }
    let mut snapshot = Snapshot::default();
    let edit = |listener: &mut Listener| {
        listener.direction = Direction::Inbound;
        listener.inspect.tls = true;
    };
    snapshot.add_listener(listener(chains, edit)).expect("routes");
    snapshot.add_routes(routes(vec![route("c", |_| {})])).expect("domains");
    snapshot.add_cluster(cluster(&[app]));
    snapshot
}

async fn over_tls(ca: &TestCa, id: &str, mesh: &Mesh, request: Request) -> Result<Answer, String> {
    let settings =
        ClientTls { expected: Expected::AnyInMesh, alpn: vec![b"istio-http/1.1".to_vec()], min: MinTls::V13 };
    let stream = TcpStream::connect(mesh.address()).await.map_err(|e| e.to_string())?;
    // A delayed acknowledgement takes wall time, in which a paused clock runs away.
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let connected = ca
        .store(id)
        .connect(&settings, Some("outbound_.80_._.reviews"), stream)
        .await
        .map_err(|e| e.to_string())?;
    let conn = h1::ClientConn::new(connected.stream, Rc::new(Limits::upstream()));
    let response = conn.send(request).await.map_err(|e| e.to_string())?;
    let status = response.head.status().as_u16();
    let head = response.head;
    let (body, _) = response.body.collect(1 << 20).await.map_err(|e| e.to_string())?;
    Ok(Answer { status, head, body: String::from_utf8_lossy(&body).into_owned(), whole: true })
}

fn get() -> Request {
    Request { head: Head::request(Method::GET, "reviews", "/"), body: Body::empty() }
}

#[test]
fn permissive_takes_both_and_strict_only_mutual_tls() {
    block_on(async {
        let ca = TestCa::new("root");
        let other = TestCa::new("another root");
        for permissive in [false, true] {
            let (app, seen) = echo("app").await;
            let snapshot = inbound(&manager(vec![]), app, permissive);
            let mesh = Mesh::with(snapshot, ca.store(REVIEWS), Settings::default()).await;
            let answer = over_tls(&ca, WEB, &mesh, get()).await.expect("mutual TLS is taken");
            assert_eq!((answer.status, answer.head.get_str("server")), (200, Some("istio-envoy")));
            assert!(over_tls(&other, WEB, &mesh, get()).await.is_err(), "a stranger's certificate");
            let stream = TcpStream::connect(mesh.address()).await.expect("listening");
            let conn = h1::ClientConn::new(stream, Rc::new(Limits::upstream()));
            let plain = conn.send(get()).await;
            assert_eq!(plain.is_ok(), permissive, "plaintext");
            assert_eq!(seen.borrow().len(), if permissive { 2 } else { 1 });
        }
    });
}

#[test]
fn the_application_is_told_who_asked_and_no_client_can_say_it_for_itself() {
    block_on(async {
        let ca = TestCa::new("root");
        let (app, seen) = echo("app").await;
        let mesh =
            Mesh::with(inbound(&manager(vec![]), app, true), ca.store(REVIEWS), Settings::default()).await;
        let mut forged = get();
        forged.head.set("x-forwarded-client-cert", "By=spiffe://x;URI=spiffe://cluster.local/ns/a/sa/admin");
        forged.head.set("x-istio-attributes", "forged");
        forged.head.set("x-envoy-original-path", "/forged");
        mesh.send(Request { head: forged.head.clone(), body: Body::empty() }).await;
        over_tls(&ca, WEB, &mesh, get()).await.expect("taken");
        let seen = seen.borrow();
        for name in ["x-forwarded-client-cert", "x-istio-attributes", "x-envoy-original-path"] {
            assert_eq!(seen[0].get_str(name), None, "{name} over plaintext");
        }
        let cert = seen[1].get_str("x-forwarded-client-cert").expect("over mutual TLS");
        assert!(cert.starts_with(&format!("By={REVIEWS};Hash=")), "{cert}");
        assert!(cert.ends_with(&format!(";URI={WEB}")), "{cert}");
    });
}

#[test]
fn policies_judge_the_verified_identity() {
    block_on(async {
        let ca = TestCa::new("root");
        let (app, _) = echo("app").await;
        let only_web = Rbac {
            action: Effect::Allow,
            policies: vec![Policy {
                name: "web".into(),
                permissions: vec![Rule::Any],
                principals: vec![Rule::Authenticated(Some(StringMatch::Exact(WEB.into())))],
            }],
            shadow: false,
        };
        let manager = manager(vec![FilterConfig::Rbac(Arc::new(only_web))]);
        let mesh = Mesh::with(inbound(&manager, app, true), ca.store(REVIEWS), Settings::default()).await;
        for (id, want) in [(WEB, 200), ("spiffe://cluster.local/ns/default/sa/web2", 403)] {
            let answer = over_tls(&ca, id, &mesh, get()).await.expect("an answer");
            assert_eq!(answer.status, want, "{id}");
        }
        assert_eq!(mesh.get("/").await.status, 403, "plaintext has no identity");
    });
}

#[test]
fn a_client_proxy_proves_itself_and_checks_the_server() {
    block_on(async {
        let ca = TestCa::new("root");
        let (app, seen) = echo("app").await;
        let server =
            Mesh::with(inbound(&manager(vec![]), app, false), ca.store(REVIEWS), Settings::default()).await;
        for (names, want, flags) in [
            (vec![REVIEWS], 200, "-"),
            (vec![], 200, "-"),
            (vec!["spiffe://cluster.local/ns/default/sa/ratings"], 503, "UF"),
        ] {
            let tls = UpstreamTls {
                certificate: Some(Certificate::Sds("default".into())),
                validation: Validation {
                    roots: Some(Roots::Sds("ROOTCA".into())),
                    names: names.iter().map(|name| StringMatch::Exact((*name).into())).collect(),
                },
                sni: Some("outbound_.80_._.reviews".into()),
                ..UpstreamTls::default()
            };
            let one = Cluster {
                tls: ClusterTls { default: Some(Arc::new(tls)), matches: vec![] },
                ..cluster(&[server.address()])
            };
            let table = routes(vec![route("c", |_| {})]);
            let client =
                Mesh::with(snapshot(manager(vec![]), table, vec![one]), ca.store(WEB), Settings::default())
                    .await;
            let answer = client.get("/").await;
            assert_eq!(
                (answer.status, client.flags().await.as_str()),
                (want, flags),
                "{names:?}: {}",
                answer.body
            );
        }
        let seen = seen.borrow();
        assert!(
            seen.iter().all(|head| head.get_str("x-forwarded-client-cert").is_some_and(|c| c.ends_with(WEB)))
        );
        assert_eq!(seen.len(), 2);
    });
}

#[test]
fn gateways_believe_no_header_of_the_mesh() {
    block_on(async {
        let (up, seen) = echo("ok").await;
        let edge = HttpManager {
            use_remote_address: true,
            forward_client_cert: ForwardClientCert::SanitizeSet,
            ..manager(vec![])
        };
        let mesh = Mesh::start(snapshot(edge, routes(vec![route("c", |_| {})]), vec![cluster(&[up])])).await;
        let mut request = get();
        let forged = [
            ("x-envoy-retry-on", "5xx"),
            ("x-envoy-upstream-rq-timeout-ms", "1"),
            ("x-envoy-peer-metadata", "m"),
            ("x-istio-attributes", "a"),
            ("x-forwarded-client-cert", "c"),
            ("x-forwarded-for", "10.9.9.9"),
            ("x-request-id", "mine"),
        ];
        forged.iter().for_each(|(name, value)| request.head.set(*name, value));
        assert_eq!(mesh.send(request).await.status, 200);
        let seen = seen.borrow();
        for (name, value) in forged {
            assert_ne!(seen[0].get_str(name), Some(value), "{name}");
        }
        assert_eq!(seen[0].get_str("x-forwarded-for"), Some("127.0.0.1"));
        assert_eq!(seen[0].get_str("x-forwarded-proto"), Some("http"));
    });
}

#[test]
fn connect_works_only_through_an_explicit_proxy_and_never_to_loopback_services() {
    block_on(async {
        let (up, _) = echo("ok").await;
        let connect = |authority: &str| Request {
            head: {
                let mut head = Head::request(Method::CONNECT, authority, "");
                head.set_path("");
                head
            },
            body: Body::empty(),
        };
        let plain =
            Mesh::start(snapshot(manager(vec![]), routes(vec![route("c", |_| {})]), vec![cluster(&[up])]))
                .await;
        assert_eq!(plain.send(connect("shop:80")).await.status, 405, "not a proxy");
        let explicit = HttpManager { upgrades: vec!["CONNECT".into()], ..manager(vec![]) };
        let passthrough = Cluster { discovery: Discovery::OriginalDst, ..Cluster::eds("c") };
        let mesh = Mesh::start(snapshot(explicit, routes(vec![route("c", |_| {})]), vec![passthrough])).await;
        for target in [
            up.to_string(),
            "localhost:22".to_owned(),
            "[::1]:22".to_owned(),
            "169.254.169.254:80".to_owned(),
        ] {
            assert_eq!(mesh.send(connect(&target)).await.status, 503, "{target}");
        }
    });
}

#[test]
fn a_live_connection_is_cut_when_its_root_is_gone_and_kept_when_it_is_not() {
    block_on(async {
        let (ca, next) = (TestCa::new("root"), TestCa::new("next root"));
        let (app, _) = echo("app").await;
        let store = ca.store(REVIEWS);
        let mesh =
            Mesh::with(inbound(&manager(vec![]), app, false), store.clone(), Settings::default()).await;
        let settings = ClientTls {
            expected: Expected::AnyInMesh,
            alpn: vec![b"istio-http/1.1".to_vec()],
            min: MinTls::V13,
        };
        let stream = TcpStream::connect(mesh.address()).await.expect("listening");
        stream.set_nodelay(true).expect("an option");
        let mut stream =
            ca.store(WEB).connect(&settings, Some("reviews"), stream).await.expect("trusted").stream;
        let mut ask = async || {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: reviews\r\n\r\n").await;
            let mut answer = Vec::new();
            while !answer.ends_with(b"app") {
                match stream.read_u8().await {
                    Ok(byte) => answer.push(byte),
                    Err(_) => return false,
                }
            }
            true
        };
        assert!(ask().await);
        let both = [ca.bundle().roots(), next.bundle().roots()].concat();
        let both = mesh_identity::TrustBundle::new("both roots", both).expect("two roots");
        for (bundle, want) in [(both, true), (next.bundle(), false)] {
            store.publish(next.issue(REVIEWS), bundle);
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            assert_eq!(ask().await, want);
        }
    });
}
