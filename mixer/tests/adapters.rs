//! Handlers and their backends: what arrives, what is lost, and who is not disturbed.
//!
//! In: items and rules. Out: counters, and what stub backends received. Kept true: time is paused where time matters.
//! Not here: each adapter's own format (beside its code).

mod common;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{mixer, pods};
use mixer::{
    adapters::{
        Adapter, AdapterKind, BoxFuture, ExportError, Handler, QueueLimits, Totals,
        item::{Item, Metric, Sample},
    },
    attributes::Value,
    config::Template,
    ingest::mixer::MixerService,
};
use mixer_api::{
    codec::{self, Attributes, WireValue},
    v1::{CheckRequest, check_request::QuotaParams, mixer_server::Mixer as _},
};
use tonic::Request;

static TEST_KIND: AdapterKind = AdapterKind { name: "test", templates: Template::ALL, build: |_, _| None };

enum Backend {
    Works,
    Hangs,
    FailsTimes(AtomicUsize),
    Refuses,
}

struct Stub {
    backend: Backend,
    limits: QueueLimits,
    taken: AtomicUsize,
    tries: AtomicUsize,
}

impl Adapter for Stub {
    fn queue(&self) -> Option<QueueLimits> {
        Some(self.limits)
    }

    fn export<'a>(&'a self, batch: &'a [Item]) -> BoxFuture<'a, Result<(), ExportError>> {
        Box::pin(async move {
            self.tries.fetch_add(1, Ordering::Relaxed);
            match &self.backend {
                Backend::Works => {}
                Backend::Hangs => std::future::pending::<()>().await,
                Backend::Refuses => return Err(ExportError::fatal("never")),
                Backend::FailsTimes(left) => {
                    if left.load(Ordering::Relaxed) > 0 {
                        left.fetch_sub(1, Ordering::Relaxed);
                        return Err(ExportError::retry("not yet"));
                    }
                }
            }
            self.taken.fetch_add(batch.len(), Ordering::Relaxed);
            Ok(())
        })
    }
}

fn handler(backend: Backend, limits: QueueLimits) -> (Arc<Handler>, Arc<Stub>) {
    let stub = Arc::new(Stub { backend, limits, taken: AtomicUsize::new(0), tries: AtomicUsize::new(0) });
    let totals = Totals::default();
    (Handler::start("stub.test.default".into(), &TEST_KIND, String::new(), stub.clone(), &totals), stub)
}

fn item() -> Item {
    Item::Metric(Metric {
        instance: "m".into(),
        labels: Vec::new().into(),
        sample: Sample::One(Value::Int64(1)),
    })
}

async fn after(seconds: u64) {
    // In steps, so that every timer on the way fires and its task runs.
    for _ in 0..seconds * 10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_backend_disturbs_no_other_and_its_loss_is_counted() {
    let limits = QueueLimits { items: 100, give_up: Duration::from_secs(20), ..QueueLimits::default() };
    let (dead, dead_stub) = handler(Backend::Hangs, limits);
    let (alive, alive_stub) = handler(Backend::Works, limits);
    for _ in 0..50 {
        for _ in 0..10 {
            dead.push(item());
            alive.push(item());
        }
        after(2).await;
    }
    after(60).await;
    assert_eq!((alive_stub.taken.load(Ordering::Relaxed), alive.stats().dropped_total()), (500, 0));
    assert_eq!(dead_stub.taken.load(Ordering::Relaxed), 0);
    after(200).await;
    assert_eq!(dead.stats().dropped_total(), 500, "each item was given up, and counted");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_drops_by_items_and_by_bytes_and_counts_each() {
    let (by_items, _) = handler(Backend::Hangs, QueueLimits { items: 10, ..QueueLimits::default() });
    let (by_bytes, _) = handler(Backend::Hangs, QueueLimits { bytes: 640, ..QueueLimits::default() });
    for _ in 0..25 {
        by_items.push(item());
        by_bytes.push(item());
    }
    assert_eq!(by_items.stats().dropped_total(), 15);
    assert_eq!(by_bytes.stats().dropped_total(), 15, "an item without labels weighs 64 bytes");
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_retried_until_the_backend_takes_it_and_not_at_all_if_it_refuses() {
    let (comes_back, stub) = handler(Backend::FailsTimes(AtomicUsize::new(3)), QueueLimits::default());
    comes_back.push(item());
    let (refused, refusing) = handler(Backend::Refuses, QueueLimits::default());
    refused.push(item());
    after(30).await;
    assert_eq!((stub.taken.load(Ordering::Relaxed), stub.tries.load(Ordering::Relaxed)), (1, 4));
    assert_eq!((refused.stats().dropped_total(), refusing.tries.load(Ordering::Relaxed)), (1, 1));
}

const FAN_OUT: &str = r#"
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: log}
spec: {compiledAdapter: stdio, params: {logStream: FILE, outputPath: "LOG", outputAsJson: true}}
---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: traces}
spec: {compiledAdapter: zipkin, params: {url: "ZIPKIN"}}
---
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: collector}
spec: {compiledAdapter: otlp, params: {endpoint: "OTLP"}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: fan-out}
spec:
  actions:
  - {handler: log, instances: [accesslog.instance.istio-system]}
  - {handler: traces, instances: [span.instance.istio-system]}
  - {handler: collector, instances: [span.instance.istio-system, accesslog.instance.istio-system, requestcount.instance.istio-system]}
"#;

fn report() -> Attributes {
    let headers = [
        ("x-request-id", "id-7"),
        ("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124"),
        ("x-b3-spanid", "a2fb4a1d1a96d312"),
    ];
    let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Attributes::from([
        ("context.protocol".to_owned(), "http".into()),
        ("context.reporter.kind".to_owned(), "inbound".into()),
        ("destination.uid".to_owned(), "kubernetes://reviews-v2-1.default".into()),
        ("request.headers".to_owned(), WireValue::StringMap(headers)),
        ("request.path".to_owned(), "/api".into()),
        ("request.time".to_owned(), WireValue::Timestamp(1_700_000_000_000_000_000)),
        ("response.time".to_owned(), WireValue::Timestamp(1_700_000_000_002_000_000)),
        ("response.duration".to_owned(), WireValue::Duration(2_000_000)),
        ("response.code".to_owned(), WireValue::Int64(200)),
    ])
}

#[tokio::test]
async fn one_request_reaches_every_handler_of_its_rule() {
    use otlp::collector::{
        logs::v1::logs_service_server::LogsServiceServer, trace::v1::trace_service_server::TraceServiceServer,
    };
    // The collector is a second mixer: it keeps what OTLP brings it.
    let collector = mixer(&[]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let otlp_url = format!("http://{}", listener.local_addr().expect("an address"));
    let service = mixer::ingest::otlp::OtlpService(collector.clone());
    let server = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(service.clone()))
        .add_service(LogsServiceServer::new(service.clone()))
        .add_service(otlp::collector::metrics::v1::metrics_service_server::MetricsServiceServer::new(
            service,
        ));
    tokio::spawn(server.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));

    let received: Arc<Mutex<Vec<serde_json::Value>>> = Arc::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let zipkin_url = format!("http://{}/api/v2/spans", listener.local_addr().expect("an address"));
    let sink = received.clone();
    let take = async move |axum::Json(spans): axum::Json<Vec<serde_json::Value>>| {
        sink.lock().expect("not poisoned").extend(spans);
        axum::http::StatusCode::ACCEPTED
    };
    let router = axum::Router::new().route("/api/v2/spans", axum::routing::post(take));
    tokio::spawn(async move { axum::serve(listener, router).await });

    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("access.log");
    let rules = FAN_OUT
        .replace("LOG", &path.to_string_lossy())
        .replace("ZIPKIN", &zipkin_url)
        .replace("OTLP", &otlp_url);
    let mixer = mixer(&[&pods(), &rules]);
    assert_eq!(mixer.generation().diagnostics, []);
    let request = codec::encode_report(&[report()]);
    MixerService(mixer.clone()).report(Request::new(request)).await.expect("taken");

    let metrics = mixer.shared().prometheus.text();
    assert!(metrics.lines().any(|line| line.starts_with("istio_requests_total{") && line.ends_with(" 1")));
    let all_there = || {
        let log = std::fs::read_to_string(&path).unwrap_or_default().contains("\"requestId\":\"id-7\"");
        let span = received
            .lock()
            .expect("not poisoned")
            .iter()
            .any(|span| span["tags"]["guid:x-request-id"] == "id-7");
        let collected = !collector.recorder.trace("463ac35c9f6413ad48485a3953bb6124").is_empty();
        let entry = collector.recorder.logs(10).iter().any(|entry| {
            entry.variables.iter().any(|(name, value)| &**name == "requestId" && value.to_string() == "id-7")
        });
        log && span && collected && entry
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !all_there() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "log, Zipkin and collector all have the request");
    assert_eq!(mixer.recorder.logs(10).len(), 2, "the recorder keeps log entries as rules make them");
}

#[tokio::test]
async fn a_quota_is_granted_until_it_is_used_up() {
    let rules = r#"
apiVersion: config.istio.io/v1alpha2
kind: memquota
metadata: {name: handler}
spec: {quotas: [{name: calls.quota.default, maxAmount: 2, validDuration: 60s}]}
---
apiVersion: config.istio.io/v1alpha2
kind: quota
metadata: {name: calls}
spec: {dimensions: {source: 'source.labels["app"] | "unknown"'}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: quota}
spec: {actions: [{handler: handler.memquota, instances: [calls.quota]}]}
"#;
    let mixer = mixer(&[&pods(), rules]);
    assert_eq!(mixer.generation().diagnostics, []);
    let mut granted = Vec::new();
    for name in ["calls", "calls.quota.default", "calls", "unknown"] {
        let request = CheckRequest {
            attributes: Some(codec::encode(&report())),
            quotas: [(name.to_owned(), QuotaParams { amount: 1, best_effort: false })].into(),
            ..Default::default()
        };
        let answer =
            MixerService(mixer.clone()).check(Request::new(request)).await.expect("an answer").into_inner();
        granted.push(answer.quotas[name].granted_amount);
    }
    assert_eq!(granted, [1, 1, 0, 1], "a quota that no rule makes is granted");
}
