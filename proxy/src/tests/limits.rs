//! Limits of a cluster over all workers, ejection, reuse of connections.
//! In: slow or failing upstreams. Out: overflow, no healthy endpoint, connection counts.
//! Kept true: the same limits hold with one worker and with four.
//! Not here: the gauges alone (`balance::limits`).

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use mesh_traffic::cluster::{Limits as ClusterLimits, Outlier};

#[test]
fn one_active_and_one_pending_then_overflow() {
    block_on(async {
        let (up, seen) = upstream(|_, _| async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Response::text(StatusCode::OK, "ok")
        })
        .await;
        let limits = ClusterLimits { connections: Some(1), pending: Some(1), ..Default::default() };
        let one = Cluster { limits, max_requests_per_connection: 1, ..cluster(&[up]) };
        let mesh = Mesh::start(snapshot(manager(vec![]), routes(vec![route("c", |_| {})]), vec![one])).await;
        let later = |ms| {
            let mesh = &mesh;
            async move {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                mesh.get("/").await
            }
        };
        let (a, b, c, d) = tokio::join!(later(0), later(100), later(200), later(300));
        assert_eq!([a.status, b.status, c.status, d.status], [200, 200, 503, 503]);
        assert!(
            c.body.ends_with("reset reason: overflow")
                && c.head.get_str("x-envoy-overloaded") == Some("true")
        );
        assert_eq!(seen.borrow().len(), 2);
        let flags: Vec<_> = mesh.told().into_iter().map(|(_, flags, _)| flags).collect();
        assert_eq!(flags, ["UO", "UO", "-", "-"], "in the order in which they ended");
        assert_eq!(mesh.get("/").await.status, 200, "everything was given back");
    });
}

#[test]
fn connections_are_reused_up_to_their_number_of_requests() {
    block_on(async {
        for (most, want) in [(0, 1), (1, 6), (2, 3)] {
            let (up, _) = echo("ok").await;
            let one = Cluster { max_requests_per_connection: most, ..cluster(&[up]) };
            let mesh =
                Mesh::start(snapshot(manager(vec![]), routes(vec![route("c", |_| {})]), vec![one])).await;
            for _ in 0..6 {
                assert_eq!(mesh.get("/").await.status, 200);
            }
            let made = mesh.shared.stats.cluster(&"c".into()).connections_total.load(Ordering::Relaxed);
            assert_eq!(made, want, "maxRequestsPerConnection {most}");
        }
    });
}

#[test]
fn an_idle_connection_is_closed_after_its_time() {
    block_on(async {
        let (up, _) = echo("ok").await;
        let one = Cluster { idle_timeout: Duration::from_secs(10), ..cluster(&[up]) };
        let mesh = Mesh::start(snapshot(manager(vec![]), routes(vec![route("c", |_| {})]), vec![one])).await;
        assert_eq!(mesh.get("/").await.status, 200);
        let stats = mesh.shared.stats.cluster(&"c".into());
        assert_eq!(stats.connections_active.load(Ordering::Relaxed), 1);
        tokio::time::sleep(Duration::from_secs(12)).await;
        assert_eq!(stats.connections_active.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn failing_endpoints_are_ejected_until_their_time_is_over() {
    block_on(async {
        let (up, seen) = upstream(|number, _| async move {
            Response::new(if number < 2 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK })
        })
        .await;
        let outlier = Outlier {
            consecutive_5xx: None,
            consecutive_gateway: Some(2),
            interval: Duration::from_secs(1),
            base_ejection: Duration::from_secs(180),
            max_percent: 100,
            ..Outlier::default()
        };
        let one = Cluster { outlier: Some(outlier), panic_percent: 0, ..cluster(&[up]) };
        let mesh = Mesh::start(snapshot(manager(vec![]), routes(vec![route("c", |_| {})]), vec![one])).await;
        let mut got = Vec::new();
        for _ in 0..4 {
            got.push(mesh.get("/").await.status);
        }
        assert_eq!((got, seen.borrow().len()), (vec![503; 4], 2), "the last two reach nobody");
        let told = mesh.told();
        assert_eq!((told[1].1.as_str(), told[2].1.as_str(), told[3].1.as_str()), ("-", "UH", "UH"));
        tokio::time::sleep(Duration::from_secs(182)).await;
        assert_eq!(mesh.get("/").await.status, 200);
    });
}

/// Limits are per proxy: the same number of requests is in flight at most, however many workers there are.
#[test]
fn limits_hold_over_all_workers() {
    for workers in [1, 2, 4] {
        let most = 3;
        let in_flight = Arc::new(AtomicUsize::new(0));
        let peak = Arc::new(AtomicUsize::new(0));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            let (now, highest) = (Arc::clone(&in_flight), Arc::clone(&peak));
            let gate = Rc::new(tokio::sync::Notify::new());
            let open = Rc::clone(&gate);
            let (up, _) = upstream(move |_, _| {
                let (now, highest, open) = (Arc::clone(&now), Arc::clone(&highest), Rc::clone(&open));
                async move {
                    highest.fetch_max(now.fetch_add(1, Ordering::AcqRel) + 1, Ordering::AcqRel);
                    open.notified().await;
                    now.fetch_sub(1, Ordering::AcqRel);
                    Response::text(StatusCode::OK, "ok")
                }
            })
            .await;
            let limits = ClusterLimits { requests: Some(most), ..Default::default() };
            let one = Cluster { limits, ..cluster(&[up]) };
            let table = routes(vec![route("c", |_| {})]);
            let (trigger, watch) = drain::new();
            let settings = Settings { workers, ..Settings::default() };
            let store = CertStore::new(TrustDomain::default(), []);
            let shared = Shared::new(settings, store, None, watch);
            let (_keep, follow) = watch::channel(Arc::new(snapshot(manager(vec![]), table, vec![one])));
            let running = crate::worker::start(&shared, &follow).expect("threads");
            let address = loop {
                if let Some(address) = shared.address_of("in") {
                    break address;
                }
                tokio::task::yield_now().await;
            };
            let clients: Vec<_> = (0..24)
                .map(|_| {
                    tokio::task::spawn_local(async move {
                        let stream = TcpStream::connect(address).await.expect("listening");
                        let head = Head::request(Method::GET, "shop", "/");
                        send_over(stream, Request { head, body: Body::empty() }).await.status
                    })
                })
                .collect();
            // Those over the limit are answered while the others wait at the gate.
            while clients.iter().filter(|client| client.is_finished()).count() < 24 - 3 {
                tokio::task::yield_now().await;
            }
            // A request may hold its place and still be on its way to the gate.
            while in_flight.load(Ordering::Acquire) < 3 {
                tokio::task::yield_now().await;
            }
            while clients.iter().any(|client| !client.is_finished()) {
                gate.notify_waiters();
                tokio::task::yield_now().await;
            }
            let mut answers = Vec::new();
            for client in clients {
                answers.push(client.await.expect("no panic"));
            }
            assert_eq!(answers.iter().filter(|status| **status == 200).count(), 3, "{workers} workers");
            assert_eq!(answers.iter().filter(|status| **status == 503).count(), 21, "{workers} workers");
            assert_eq!(peak.load(Ordering::Acquire), 3, "{workers} workers");
            drop(shared);
            let ended = trigger.drain(Duration::from_secs(5)).await;
            assert!(ended.is_clean(), "{workers} workers");
            running.join();
        });
    }
}
