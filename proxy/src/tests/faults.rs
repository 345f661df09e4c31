//! Every way in which the proxy answers itself: status, flag, detail, body.
//! In: configurations that fail in one way each. Out: what Envoy in Istio answers.
//! Kept true: one row per flag.
//! Not here: retries (`retries`), limits (`limits`).

use super::*;
use mesh_traffic::{
    cluster::{Discovery, Limits as ClusterLimits},
    filter::{Abort, AbortWith, Delay, ExtAuthz, Fault},
    rbac::{Effect, Policy, Rbac, Rule},
    retry::RetryPolicy,
    route::{Direct, Redirect},
};
use tokio::time::Instant;

fn fault(delay: Option<u64>, abort: Option<AbortWith>) -> FilterConfig {
    FilterConfig::Fault(Fault {
        delay: delay.map(|s| Delay { fixed: Duration::from_secs(s), per_million: 1_000_000 }),
        abort: abort.map(|with| Abort { with, per_million: 1_000_000 }),
        headers: Vec::new(),
    })
}

#[test]
fn each_local_answer_has_its_status_flag_detail_and_body() {
    block_on(async {
        let (up, _) = echo("ok").await;
        let dead = nobody().await;
        let (slow, _) = upstream(|_, _| async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            Response::new(StatusCode::OK)
        })
        .await;
        let (rude, _) = upstream(|_, _| async { Response::abort() }).await;
        let second = |forward: &mut Forward| forward.timeout = Some(Duration::from_secs(1));
        let none: Vec<SocketAddr> = Vec::new();
        let full =
            Cluster { limits: ClusterLimits { requests: Some(0), ..Default::default() }, ..cluster(&[up]) };
        let deny = Rbac {
            action: Effect::Deny,
            policies: vec![Policy {
                name: "p".into(),
                permissions: vec![Rule::Any],
                principals: vec![Rule::Any],
            }],
            shadow: false,
        };
        let authz = |status_on_error| {
            FilterConfig::ExtAuthz(Arc::new(ExtAuthz {
                cluster: "gone".into(),
                status_on_error,
                ..Default::default()
            }))
        };
        type Row =
            (&'static str, Vec<FilterConfig>, Route, Cluster, u16, &'static str, &'static str, &'static str);
        let rows: Vec<Row> = vec![
            (
                "DI",
                vec![fault(Some(10), None)],
                route("c", second),
                cluster(&[up]),
                200,
                "DI",
                "via_upstream",
                "ok",
            ),
            (
                "FI",
                vec![fault(None, Some(AbortWith::Http(500)))],
                route("c", |_| {}),
                cluster(&[up]),
                500,
                "FI",
                "fault_filter_abort",
                "fault filter abort",
            ),
            (
                "DI,FI",
                vec![fault(Some(1), Some(AbortWith::Http(418)))],
                route("c", |_| {}),
                cluster(&[up]),
                418,
                "DI,FI",
                "fault_filter_abort",
                "fault filter abort",
            ),
            (
                "UT",
                vec![],
                route("c", second),
                cluster(&[slow]),
                504,
                "UT",
                "response_timeout",
                "upstream request timeout",
            ),
            (
                "UO",
                vec![],
                route("c", |_| {}),
                full,
                503,
                "UO",
                "upstream_reset_before_response_started{overflow}",
                "upstream connect error or disconnect/reset before headers. reset reason: overflow",
            ),
            (
                "UH",
                vec![],
                route("c", |_| {}),
                cluster(&none),
                503,
                "UH",
                "no_healthy_upstream",
                "no healthy upstream",
            ),
            (
                "UF",
                vec![],
                route("c", |_| {}),
                cluster(&[dead]),
                503,
                "UF",
                "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}",
                "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure, transport failure reason: delayed connect error: Connection refused",
            ),
            (
                "UC",
                vec![],
                route("c", |_| {}),
                cluster(&[rude]),
                503,
                "UC",
                "upstream_reset_before_response_started{connection_termination}",
                "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
            ),
            ("NC", vec![], route("other", |_| {}), cluster(&[up]), 503, "NC", "cluster_not_found", ""),
            (
                "UAEX",
                vec![authz(503)],
                route("c", |_| {}),
                cluster(&[up]),
                503,
                "UAEX",
                "ext_authz_error",
                "",
            ),
            (
                "RBAC",
                vec![FilterConfig::Rbac(Arc::new(deny))],
                route("c", |_| {}),
                cluster(&[up]),
                403,
                "-",
                "rbac_access_denied_matched_policy[p]",
                "RBAC: access denied",
            ),
        ];
        for (name, filters, route, cluster, status, flags, detail, body) in rows {
            let mesh = Mesh::start(snapshot(manager(filters), routes(vec![route]), vec![cluster])).await;
            let began = Instant::now();
            let answer = mesh.get("/").await;
            assert_eq!((answer.status, answer.body.as_str()), (status, body), "{name}");
            let told = mesh.told();
            assert_eq!(told, [(status, flags.to_owned(), detail.to_owned())], "{name}");
            assert_eq!(answer.head.get_str("x-envoy-overloaded"), (name == "UO").then_some("true"), "{name}");
            match name {
                "DI" => assert_eq!(began.elapsed().as_secs(), 10, "a delay never trips the route's timeout"),
                "UT" => assert_eq!(began.elapsed().as_secs(), 1),
                _ => {}
            }
        }
    });
}

#[test]
fn no_route_is_404_without_a_body() {
    block_on(async {
        let (up, _) = echo("ok").await;
        let mut table = routes(vec![route("c", |_| {})]);
        let host = VirtualHost { domains: vec!["elsewhere".into()], ..(*table.virtual_hosts[0]).clone() };
        table.virtual_hosts = vec![Arc::new(host)];
        let mesh = Mesh::start(snapshot(manager(vec![]), table, vec![cluster(&[up])])).await;
        let answer = mesh.get("/").await;
        assert_eq!((answer.status, answer.body.as_str()), (404, ""));
        assert_eq!(mesh.told(), [(404, "NR".to_owned(), "route_not_found".to_owned())]);
    });
}

#[test]
fn redirects_and_direct_answers_reach_no_upstream() {
    block_on(async {
        let (up, seen) = echo("ok").await;
        let redirect = Redirect { status: 302, host: Some("other".into()), ..Redirect::default() };
        for (action, status, body, location) in [
            (Action::Redirect(redirect), 302, "", Some("http://other/a?b")),
            (Action::Direct(Direct { status: 418, body: Arc::from(&b"tea"[..]) }), 418, "tea", None),
        ] {
            let one = Route { action, ..route("c", |_| {}) };
            let mesh = Mesh::start(snapshot(manager(vec![]), routes(vec![one]), vec![cluster(&[up])])).await;
            let answer = mesh.get("/a?b").await;
            assert_eq!((answer.status, answer.body.as_str()), (status, body));
            assert_eq!(answer.head.get_str("location"), location);
        }
        assert!(seen.borrow().is_empty());
    });
}

/// Envoy's clocks begin with the end of the request: an upload takes as long as it takes.
#[test]
fn timeouts_of_route_and_try_begin_when_the_whole_request_has_arrived() {
    block_on(async {
        let (quick, _) = upstream(|_, request| async {
            request.body.collect(1 << 20).await.expect("whole");
            Response::new(StatusCode::OK)
        })
        .await;
        let (slow, _) = upstream(|_, request| async {
            request.body.collect(1 << 20).await.expect("whole");
            tokio::time::sleep(Duration::from_secs(600)).await;
            Response::new(StatusCode::OK)
        })
        .await;
        let whole = |forward: &mut Forward| forward.timeout = Some(Duration::from_secs(1));
        let each = |forward: &mut Forward| {
            let per_try = Some(Duration::from_secs(1));
            forward.retry = Some(RetryPolicy { attempts: 0, per_try, ..RetryPolicy::default() });
        };
        for (what, up, one, status, seconds) in [
            ("a slow upload in time", quick, route("c", whole), 200, 5),
            ("a slow upload, and a try in time", quick, route("c", each), 200, 5),
            ("a slow upload, then a slow upstream", slow, route("c", whole), 504, 6),
            ("a slow upload, then a slow try", slow, route("c", each), 504, 6),
        ] {
            let mesh = Mesh::start(snapshot(manager(vec![]), routes(vec![one]), vec![cluster(&[up])])).await;
            let (mut sender, body) = Body::channel(1);
            let began = tokio::time::Instant::now();
            let upload = async {
                for _ in 0..5 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    assert!(sender.send(crate::codec::Frame::Data("part".into())).await.is_ok());
                }
                sender.finish();
            };
            let head = Head::request(Method::POST, "shop", "/");
            let (answer, ()) = tokio::join!(mesh.send(Request { head, body }), upload);
            assert_eq!((answer.status, began.elapsed().as_secs()), (status, seconds), "{what}");
        }
    });
}

#[test]
fn a_timeout_ends_an_answer_that_has_begun() {
    block_on(async {
        let (up, _) = upstream(|_, _| async {
            let (mut sender, body) = Body::channel(2);
            tokio::task::spawn_local(async move {
                let _ = sender.send(crate::codec::Frame::Data("begun".into())).await;
                tokio::time::sleep(Duration::from_secs(600)).await;
                sender.finish();
            });
            Response::from_head(Head::response(StatusCode::OK), body)
        })
        .await;
        let second = |forward: &mut Forward| forward.timeout = Some(Duration::from_secs(1));
        let mesh =
            Mesh::start(snapshot(manager(vec![]), routes(vec![route("c", second)]), vec![cluster(&[up])]))
                .await;
        let answer = mesh.get("/").await;
        assert_eq!((answer.status, answer.body.as_str(), answer.whole), (200, "begun", false));
        assert!(mesh.told()[0].1.contains("UT"));
    });
}

#[test]
fn a_client_that_leaves_is_told_of_and_holds_nothing() {
    block_on(async {
        let (up, _) = upstream(|_, _| async {
            std::future::pending::<()>().await;
            Response::new(StatusCode::OK)
        })
        .await;
        let limited =
            Cluster { limits: ClusterLimits { requests: Some(1), ..Default::default() }, ..cluster(&[up]) };
        let mesh =
            Mesh::start(snapshot(manager(vec![]), routes(vec![route("c", |_| {})]), vec![limited])).await;
        for round in 0..5 {
            // Left at another moment each time. A reset, since a half-close still waits for its answer.
            let stream = TcpStream::connect(mesh.address()).await.expect("listening");
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("an option");
            let head = Head::request(Method::GET, "shop", "/");
            let asking = send_over(stream, Request { head, body: Body::empty() });
            assert!(tokio::time::timeout(Duration::from_millis(1 + round * 7), asking).await.is_err());
            let mut told = Vec::new();
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                told.extend(mesh.told());
            }
            assert_eq!(told.len(), 1, "round {round}: {told:?}");
            assert_eq!((told[0].0, told[0].1.as_str()), (0, "DC"), "round {round}");
        }
        let view = mesh.worker.view();
        let state = mesh.worker.cluster(&view, &"c".into()).expect("the cluster");
        assert!(state.common.usage.request().is_some(), "every permit came back");
        assert!(state.hosts().all(|(host, _)| host.active.get() == 0));
    });
}

#[test]
fn an_original_destination_that_nobody_named_is_refused() {
    block_on(async {
        let passthrough = Cluster { discovery: Discovery::OriginalDst, ..Cluster::eds("c") };
        let mesh =
            Mesh::start(snapshot(manager(vec![]), routes(vec![route("c", |_| {})]), vec![passthrough])).await;
        let head = Head::request(Method::GET, "127.0.0.1:1", "/");
        let answer = mesh.send(Request { head, body: Body::empty() }).await;
        assert_eq!((answer.status, mesh.flags().await.as_str()), (503, "UH"), "loopback is out of bounds");
    });
}
