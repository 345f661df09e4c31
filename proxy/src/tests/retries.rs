//! Retries: which outcomes are tried again, how often, where, and what is kept for it.
//! In: failing upstreams and policies. Out: what they saw, what the client got.
//! Kept true: a request that an application may have seen goes again only by its policy.
//! Not here: the policy's conditions themselves (`mesh_traffic::retry`).

use super::*;
use crate::http::replay::KEPT;
use mesh_traffic::retry::{RetryOn, RetryPolicy};
use tokio::time::Instant;

fn policy(on: &str, attempts: u32) -> RetryPolicy {
    let (on, codes) = RetryOn::parse(on).expect("known words");
    RetryPolicy { on, codes, attempts, avoid_previous: true, max_picks: 5, ..RetryPolicy::default() }
}

async fn retrying(policy: RetryPolicy, endpoints: &[SocketAddr]) -> Mesh {
    let one = route("c", |forward| forward.retry = Some(policy));
    Mesh::start(snapshot(manager(vec![]), routes(vec![one]), vec![cluster(endpoints)])).await
}

#[test]
fn a_retriable_answer_is_tried_again_and_tries_are_numbered() {
    block_on(async {
        for (on, status, attempts, tries, want, flags) in [
            ("5xx", 500, 3, 3, 200, "-"),
            ("5xx", 500, 1, 2, 500, "URX"),
            ("503", 500, 3, 1, 500, "-"),
            ("gateway-error", 503, 3, 3, 200, "-"),
            ("retriable-4xx", 409, 2, 3, 200, "-"),
        ] {
            let (up, seen) = upstream(move |number, _| async move {
                let code = if number < 2 { status } else { 200 };
                Response::new(StatusCode::from_u16(code).expect("a status"))
            })
            .await;
            let mesh = retrying(policy(on, attempts), &[up]).await;
            let answer = mesh.get("/").await;
            assert_eq!((answer.status, seen.borrow().len()), (want, tries), "{on} {status} x{attempts}");
            let counts: Vec<_> = seen
                .borrow()
                .iter()
                .map(|head| head.get_str("x-envoy-attempt-count").map(str::to_owned))
                .collect();
            let want: Vec<_> = (1..=tries).map(|n| Some(n.to_string())).collect();
            assert_eq!(counts, want, "{on}");
            assert_eq!(mesh.flags().await, flags, "{on} {status} x{attempts}");
        }
    });
}

#[test]
fn a_refused_connection_goes_to_another_endpoint_with_the_whole_body() {
    block_on(async {
        let (up, _) = upstream(|_, request| async move {
            let (body, _) = request.body.collect(1 << 20).await.expect("whole");
            Response::text(StatusCode::OK, &body.len().to_string())
        })
        .await;
        let dead = nobody().await;
        let mesh = retrying(RetryPolicy { max_picks: 50, ..RetryPolicy::istio_default() }, &[dead, up]).await;
        for size in [0, 1, KEPT] {
            for _ in 0..8 {
                let head = Head::request(Method::POST, "shop", "/");
                let answer = mesh.send(Request { head, body: Body::full(vec![b'x'; size]) }).await;
                assert_eq!((answer.status, answer.body), (200, size.to_string()));
            }
        }
    });
}

#[test]
fn a_sidecar_that_did_not_reach_its_application_is_tried_elsewhere_and_its_word_goes_no_further() {
    block_on(async {
        for (policy, says, want, tries) in [
            (RetryPolicy::istio_default(), true, 200, 2),
            (RetryPolicy::istio_default(), false, 503, 1),
            (policy("retriable-4xx", 2), true, 503, 1),
            (RetryPolicy { attempts: 0, ..RetryPolicy::istio_default() }, true, 503, 1),
        ] {
            let (up, seen) = upstream(move |number, _| async move {
                let mut response = Response::new(StatusCode::OK);
                if number == 0 {
                    response = Response::new(StatusCode::SERVICE_UNAVAILABLE);
                }
                if says {
                    response.head.set("x-crema-unreached", "true");
                }
                response
            })
            .await;
            let mesh = retrying(policy, &[up]).await;
            let answer = mesh
                .send(Request { head: Head::request(Method::POST, "shop", "/"), body: Body::empty() })
                .await;
            assert_eq!((answer.status, seen.borrow().len()), (want, tries));
            assert_eq!(answer.head.get_str("x-crema-unreached"), None);
        }
    });
}

#[test]
fn a_retry_leaves_an_endpoint_that_fails_fast_though_it_is_the_least_loaded() {
    block_on(async {
        let (dead, _) = upstream(|_, _| async {
            let mut response = Response::new(StatusCode::SERVICE_UNAVAILABLE);
            response.head.set("x-crema-unreached", "true");
            response
        })
        .await;
        let (slow, _) = upstream(|_, _| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Response::new(StatusCode::OK)
        })
        .await;
        let mesh = retrying(RetryPolicy::istio_default(), &[dead, slow]).await;
        let answers = futures::future::join_all((0..40).map(|_| mesh.get("/"))).await;
        assert!(answers.iter().all(|answer| answer.status == 200));
    });
}

#[test]
fn a_body_too_large_to_keep_is_sent_once_and_counted() {
    block_on(async {
        let (up, seen) = upstream(|_, request| async move {
            let _ = request.body.collect(1 << 20).await;
            Response::new(StatusCode::SERVICE_UNAVAILABLE)
        })
        .await;
        let mesh = retrying(policy("5xx", 3), &[up]).await;
        let head = Head::request(Method::POST, "shop", "/");
        let answer = mesh.send(Request { head, body: Body::full(vec![b'x'; KEPT + 1]) }).await;
        assert_eq!((answer.status, seen.borrow().len()), (503, 1));
        let stats = mesh.shared.stats.cluster(&"c".into());
        assert_eq!(stats.retry_body_too_large.load(std::sync::atomic::Ordering::Relaxed), 1);
    });
}

#[test]
fn each_try_has_its_own_timeout_within_the_routes() {
    block_on(async {
        let (up, seen) = upstream(|number, _| async move {
            if number < 1 {
                std::future::pending::<()>().await;
            }
            Response::text(StatusCode::OK, "late")
        })
        .await;
        let per_try = RetryPolicy { per_try: Some(Duration::from_secs(2)), ..policy("5xx", 2) };
        let mesh = retrying(per_try, &[up]).await;
        let began = Instant::now();
        let answer = mesh.get("/").await;
        assert_eq!((answer.status, seen.borrow().len(), began.elapsed().as_secs()), (200, 2, 2));
        mesh.told();

        let (stuck, seen) = upstream(|_, _| async { std::future::pending::<Response>().await }).await;
        let per_try = RetryPolicy { per_try: Some(Duration::from_secs(2)), ..policy("5xx", 2) };
        let mesh = retrying(per_try, &[stuck]).await;
        let answer = mesh.get("/").await;
        assert_eq!(
            (answer.status, answer.body.as_str(), seen.borrow().len()),
            (504, "upstream request timeout", 3)
        );
        let told = mesh.told();
        assert_eq!((told[0].1.as_str(), told[0].2.as_str()), ("UT,URX", "upstream_per_try_timeout"));
    });
}

#[test]
fn an_overall_timeout_spans_all_tries() {
    block_on(async {
        let (stuck, _) = upstream(|_, _| async { std::future::pending::<Response>().await }).await;
        let one = route("c", |forward| {
            forward.timeout = Some(Duration::from_secs(5));
            forward.retry = Some(RetryPolicy { per_try: Some(Duration::from_secs(2)), ..policy("5xx", 9) });
        });
        let mesh = Mesh::start(snapshot(manager(vec![]), routes(vec![one]), vec![cluster(&[stuck])])).await;
        let began = Instant::now();
        assert_eq!(mesh.get("/").await.status, 504);
        assert_eq!((mesh.flags().await.as_str(), began.elapsed().as_secs()), ("UT", 5));
    });
}

#[test]
fn an_idle_connection_that_died_costs_no_request() {
    block_on(async {
        // Answers one request per connection, says nothing of it, and closes a moment later.
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let up = socket.local_addr().expect("bound");
        tokio::task::spawn_local(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            while let Ok((mut stream, _)) = socket.accept().await {
                let mut buffer = [0; 4096];
                if stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                }
            }
        });
        let mesh =
            Mesh::start(snapshot(manager(vec![]), routes(vec![route("c", |_| {})]), vec![cluster(&[up])]))
                .await;
        for round in 0..20 {
            assert_eq!(mesh.get("/").await.status, 200, "round {round}");
        }
    });
}
