//! The ways of a healthy request: routing, splits, headers, mirrors, upgrades, HTTP/2, changes of configuration, drain.
//! In: routes. Out: where requests went and what they looked like there.
//! Kept true: a change of configuration loses no request.
//! Not here: failures (`faults`), identity (`security`).

use super::*;
use crate::codec::{Frame, Upgraded};
use mesh_traffic::{
    cluster::Protocol as Spoken,
    listener::Tracing,
    route::{Arm, HeaderOp, HeaderOps, Mirror, PathMatch, PathRewrite, Split},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
fn a_split_sends_each_version_its_share() {
    block_on(async {
        let (a, seen_a) = echo("a").await;
        let (b, seen_b) = echo("b").await;
        let arm = |cluster: &str, weight| Arm {
            cluster: cluster.into(),
            weight,
            headers: HeaderOps::default(),
            host_rewrite: None,
        };
        let split = Split::new(vec![arm("a", 80), arm("b", 20)]).expect("weights");
        let named = |name: &str, address| Cluster { name: name.into(), ..cluster(&[address]) };
        let one = route("c", |forward| forward.target = Target::Split(split));
        let mesh =
            Mesh::start(snapshot(manager(vec![]), routes(vec![one]), vec![named("a", a), named("b", b)]))
                .await;
        for _ in 0..500 {
            mesh.get("/").await;
        }
        let (a, b) = (seen_a.borrow().len(), seen_b.borrow().len());
        assert_eq!(a + b, 500);
        assert!((350..450).contains(&a), "{a} of 500");
    });
}

#[test]
fn headers_paths_and_hosts_are_changed_as_the_route_says() {
    block_on(async {
        let (up, seen) = echo("ok").await;
        let mut one = route("c", |forward| {
            forward.host_rewrite = Some("inner".into());
            forward.path_rewrite = Some(PathRewrite::Prefix("/new".into()));
            forward.timeout = Some(Duration::from_secs(3));
        });
        one.matcher.path = PathMatch::Prefix("/old".into());
        one.headers.request = vec![
            HeaderOp::Set("x-set".into(), "1".into()),
            HeaderOp::Remove("x-gone".into()),
            HeaderOp::Add("x-add".into(), "100%%".into()),
        ];
        one.headers.response = vec![HeaderOp::Set("x-answer".into(), "y".into())];
        let mesh = Mesh::start(snapshot(manager(vec![]), routes(vec![one]), vec![cluster(&[up])])).await;
        let mut head = Head::request(Method::GET, "shop", "/old/a?b=c");
        head.set("x-gone", "x");
        let answer = mesh.send(Request { head, body: Body::empty() }).await;
        assert_eq!(answer.head.get_str("x-answer"), Some("y"));
        assert!(answer.head.get_str("x-envoy-upstream-service-time").is_some());
        let seen = &seen.borrow()[0];
        assert_eq!((seen.authority(), seen.path()), ("inner", "/new/a?b=c"));
        for (name, want) in [
            ("x-set", Some("1")),
            ("x-gone", None),
            ("x-add", Some("100%")),
            ("x-envoy-original-path", Some("/old/a?b=c")),
            ("x-envoy-expected-rq-timeout-ms", Some("3000")),
            ("x-envoy-attempt-count", Some("1")),
            ("x-forwarded-proto", Some("http")),
            ("x-b3-traceid", None),
        ] {
            assert_eq!(seen.get_str(name), want, "{name}");
        }
        assert_eq!(seen.get_str("x-request-id").map(str::len), Some(36));
    });
}

#[test]
fn traces_begin_at_the_first_hop_and_go_on_at_the_next() {
    block_on(async {
        let (up, seen) = echo("ok").await;
        let traced = HttpManager { tracing: Some(Tracing { per_million: 1_000_000 }), ..manager(vec![]) };
        let table = routes(vec![route("c", |_| {})]);
        let second = Mesh::start(snapshot(traced.clone(), table.clone(), vec![cluster(&[up])])).await;
        let first = Mesh::start(snapshot(traced, table, vec![cluster(&[second.address()])])).await;
        first.get("/").await;
        let seen = &seen.borrow()[0];
        let spans = |mesh: &Mesh| {
            mesh.worker.telemetry.flush();
            let report = mesh.reports.borrow_mut().try_recv().expect("a report");
            let (_, texts) = report.events.iter().next().expect("an event");
            (texts.trace.to_owned(), texts.span.to_owned(), texts.parent.to_owned())
        };
        let (a, b) = (spans(&first), spans(&second));
        assert_eq!((a.0.as_str(), a.2.as_str()), (b.0.as_str(), ""), "one trace, from its root");
        assert_eq!(b.2, a.1, "the second hop's parent is the first");
        assert_eq!(seen.get_str("x-b3-spanid"), Some(b.1.as_str()));
        assert_eq!(seen.get_str("x-b3-sampled"), Some("1"));
    });
}

#[test]
fn a_mirrored_body_of_unknown_length_reaches_the_request_and_the_copy_whole() {
    const PARTS: usize = 20;
    let part = |n: usize| vec![b'a' + u8::try_from(n).expect("few"); 10_000];
    let whole: Vec<u8> = (0..PARTS).flat_map(part).collect();
    block_on(async {
        let arrived = Rc::new(RefCell::new(Vec::new()));
        let serve = |name: &'static str| {
            let arrived = Rc::clone(&arrived);
            upstream(move |_, request| {
                let arrived = Rc::clone(&arrived);
                async move {
                    let (body, _) = request.body.collect(1 << 20).await.expect("whole");
                    arrived.borrow_mut().push((name, body.to_vec()));
                    Response::new(StatusCode::OK)
                }
            })
        };
        let ((up, _), (copy, _)) = (serve("request").await, serve("copy").await);
        let one = route("c", |forward| {
            forward.mirrors = vec![Mirror { cluster: "m".into(), per_million: 1_000_000 }];
        });
        let mirror = Cluster { name: "m".into(), ..cluster(&[copy]) };
        let mesh =
            Mesh::start(snapshot(manager(vec![]), routes(vec![one]), vec![cluster(&[up]), mirror])).await;
        let (mut sender, body) = Body::channel(1);
        let writer = async {
            for n in 0..PARTS {
                assert!(sender.send(Frame::Data(part(n).into())).await.is_ok());
            }
            sender.finish();
        };
        let head = Head::request(Method::POST, "shop", "/");
        let (answer, ()) = tokio::join!(mesh.send(Request { head, body }), writer);
        assert_eq!(answer.status, 200);
        while arrived.borrow().len() < 2 {
            tokio::task::yield_now().await;
        }
        for (name, body) in &*arrived.borrow() {
            assert!(*body == whole, "{name}: {} bytes", body.len());
        }
    });
}

#[test]
fn mirrors_get_a_copy_whose_answer_reaches_nobody() {
    block_on(async {
        let (up, _) = echo("real").await;
        let (copy, copies) = upstream(|_, request| async move {
            let (body, _) = request.body.collect(100).await.expect("whole");
            assert_eq!(&*body, b"question");
            Response::new(StatusCode::INTERNAL_SERVER_ERROR)
        })
        .await;
        let one = route("c", |forward| {
            forward.mirrors = vec![Mirror { cluster: "m".into(), per_million: 1_000_000 }];
        });
        let mirror = Cluster { name: "m".into(), ..cluster(&[copy]) };
        let mesh =
            Mesh::start(snapshot(manager(vec![]), routes(vec![one]), vec![cluster(&[up]), mirror])).await;
        let head = Head::request(Method::POST, "shop", "/");
        let answer = mesh.send(Request { head, body: Body::full("question") }).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "real"));
        while copies.borrow().is_empty() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn upgrades_become_tunnels_when_the_listener_allows_them() {
    block_on(async {
        let (up, _) = upstream(|_, request| async move {
            if request.head.upgrade() != Some(b"websocket") {
                return Response::text(StatusCode::OK, "plain");
            }
            let (near, mut far) = tokio::io::duplex(64);
            tokio::task::spawn_local(async move {
                let mut buffer = [0; 4];
                far.read_exact(&mut buffer).await.expect("four bytes");
                far.write_all(&buffer).await.expect("open");
            });
            let mut response = Response::new(StatusCode::SWITCHING_PROTOCOLS);
            response.head.set("upgrade", "websocket");
            response.upgraded = Some(Upgraded::new(near));
            response
        })
        .await;
        for (allowed, want) in [(true, "101"), (false, "200")] {
            let upgrades = if allowed { vec!["websocket".into()] } else { vec![] };
            let manager = HttpManager { upgrades, ..manager(vec![]) };
            let mesh =
                Mesh::start(snapshot(manager, routes(vec![route("c", |_| {})]), vec![cluster(&[up])])).await;
            let mut stream = TcpStream::connect(mesh.address()).await.expect("listening");
            let ask = "GET / HTTP/1.1\r\nhost: shop\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
            stream.write_all(ask.as_bytes()).await.expect("open");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a head"));
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            assert!(head.starts_with(&format!("HTTP/1.1 {want}")), "{head}");
            if allowed {
                stream.write_all(b"ping").await.expect("open");
                let mut buffer = [0; 4];
                stream.read_exact(&mut buffer).await.expect("an echo");
                assert_eq!(&buffer, b"ping");
            }
        }
    });
}

#[test]
fn many_streams_share_one_http2_connection() {
    block_on(async {
        let (up, seen) = upstream(|_, request| async move {
            assert_eq!(request.head.version(), crate::codec::Version::Http2);
            tokio::time::sleep(Duration::from_secs(1)).await;
            Response::text(StatusCode::OK, "ok")
        })
        .await;
        let one = Cluster { protocol: Spoken::Http2, ..cluster(&[up]) };
        let mesh = Mesh::start(snapshot(manager(vec![]), routes(vec![route("c", |_| {})]), vec![one])).await;
        let answers = futures::future::join_all((0..10).map(|_| mesh.get("/"))).await;
        assert!(answers.iter().all(|answer| answer.status == 200));
        assert_eq!(seen.borrow().len(), 10);
        let made = &mesh.shared.stats.cluster(&"c".into()).connections_total;
        assert_eq!(made.load(std::sync::atomic::Ordering::Relaxed), 1);
    });
}

#[test]
fn a_new_configuration_serves_new_requests_of_old_connections() {
    block_on(async {
        let (a, _) = echo("a").await;
        let (b, _) = echo("b").await;
        let with =
            |address| snapshot(manager(vec![]), routes(vec![route("c", |_| {})]), vec![cluster(&[address])]);
        let mesh = Mesh::start(with(a)).await;
        let mut stream = TcpStream::connect(mesh.address()).await.expect("listening");
        let ask = async |stream: &mut TcpStream| {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: shop\r\n\r\n").await.expect("open");
            let mut text = Vec::new();
            while !text.ends_with(b"\r\n\r\n") {
                text.push(stream.read_u8().await.expect("a head"));
            }
            char::from(stream.read_u8().await.expect("a body"))
        };
        assert_eq!(ask(&mut stream).await, 'a');
        mesh.snapshots.send_replace(Arc::new(with(b)));
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        assert_eq!(ask(&mut stream).await, 'b');
        mesh.snapshots.send_replace(Arc::new(Snapshot::default()));
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("closed in order");
        assert!(TcpStream::connect(mesh.address()).await.is_err(), "a removed listener is closed");
    });
}

#[test]
fn a_drain_finishes_what_is_under_way_and_closes_the_rest() {
    block_on(async {
        let (up, _) = upstream(|_, _| async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Response::text(StatusCode::OK, "late")
        })
        .await;
        let mesh = Rc::new(
            Mesh::start(snapshot(manager(vec![]), routes(vec![route("c", |_| {})]), vec![cluster(&[up])]))
                .await,
        );
        let busy: Vec<_> = (0..10)
            .map(|_| {
                let mesh = Rc::clone(&mesh);
                tokio::task::spawn_local(async move { mesh.get("/").await })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let trigger = mesh.trigger.borrow_mut().take().expect("once");
        let draining = tokio::task::spawn_local(trigger.drain(Duration::from_secs(30)));
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(TcpStream::connect(mesh.address()).await.is_err(), "no new connections");
        for one in busy {
            let answer = one.await.expect("no panic");
            assert_eq!((answer.status, answer.body.as_str(), answer.whole), (200, "late", true));
        }
        let running = mesh.running.borrow_mut().take().expect("once");
        running.await.expect("the worker ends by itself");
        draining.abort();
    });
}
