//! The native stream: what proxies counted is what Prometheus reads.
//!
//! In: frames. Out: metrics text, spans. Kept true: sums survive lost, repeated and reordered frames and a new mixer.
//! Not here: the proxy's side of the stream (`proxy`).

mod common;

use std::sync::Arc;

use common::{mixer, pods, snapshot};
use mixer::{core::Mixer, ingest::native::Session, recorder};
use telemetry_api::{
    Direction, Facts, Frame, Hello, Histogram, HttpSeries, Loss, Record, Series, Span, TcpSeries,
    series::Kind,
};

const WORDS: [&str; 9] = [
    "http",
    "10.0.0.1",
    "cluster.local/ns/default/sa/default",
    "10.0.0.4",
    "reviews.default.svc.cluster.local",
    "reviews",
    "default",
    "GET",
    "tcp",
];

fn hello(epoch: u64) -> Hello {
    Hello {
        node_id: "sidecar~10.0.0.4~reviews-v2-1.default~default.svc.cluster.local".into(),
        epoch,
        role: "sidecar".into(),
        version: "test".into(),
    }
}

fn facts() -> Facts {
    Facts {
        direction: Direction::Inbound.into(),
        protocol: 1,
        source_ip: 2,
        source_principal: 3,
        destination_ip: 4,
        destination_port: 9080,
        destination_principal: 3,
        destination_service_host: 5,
        destination_service_name: 6,
        destination_service_namespace: 7,
        response_code: 200,
        mutual_tls: true,
        ..Default::default()
    }
}

fn histogram(size: usize, at: usize, count: u64, sum: f64) -> Histogram {
    let mut counts = vec![0; size];
    counts[at] = count;
    Histogram { counts, sum }
}

fn http(requests: u64) -> HttpSeries {
    HttpSeries {
        requests,
        duration_ms: Some(histogram(21, 4, requests, 7.0 * requests as f64)),
        request_bytes: Some(histogram(10, 0, requests, 0.0)),
        response_bytes: Some(histogram(10, 3, requests, 500.0 * requests as f64)),
        ..Default::default()
    }
}

fn frame(seq: u64, requests: u64, first: bool) -> Frame {
    Frame {
        seq,
        words: if first { WORDS.iter().map(ToString::to_string).collect() } else { Vec::new() },
        series: vec![Series { id: 7, facts: first.then(facts), kind: Some(Kind::Http(http(requests))) }],
        ..Default::default()
    }
}

fn total(mixer: &Mixer, name: &str) -> f64 {
    let text = mixer.shared().prometheus.text();
    let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[tokio::test]
async fn the_standard_metrics_carry_both_workloads() {
    let mixer = mixer(&[&pods()]);
    let mut session = Session::open(&mixer, &hello(1));
    let ack = session.frame(frame(1, 3, true)).expect("taken");
    assert_eq!((ack.last_seq, ack.credit_bytes > 0), (1, true));
    let text = mixer.shared().prometheus.text();
    let line = text.lines().find(|line| line.starts_with("istio_requests_total{")).expect("a series");
    for label in [
        "reporter=\"destination\"",
        "source_workload=\"espresso-shop-web-v1\"",
        "source_app=\"espresso-shop-web\"",
        "source_principal=\"cluster.local/ns/default/sa/default\"",
        "destination_workload=\"espresso-shop-reviews-v2\"",
        "destination_version=\"v2\"",
        "destination_service=\"reviews.default.svc.cluster.local\"",
        "destination_service_name=\"reviews\"",
        "destination_service_namespace=\"default\"",
        "destination_canonical_service=\"espresso-shop-reviews\"",
        "request_protocol=\"http\"",
        "response_code=\"200\"",
        "response_flags=\"-\"",
        "connection_security_policy=\"mutual_tls\"",
        "destination_cluster=\"Kubernetes\"",
    ] {
        assert!(line.contains(label), "{label} is not in {line}");
    }
    assert!(line.ends_with(" 3"));
    assert_eq!(total(&mixer, "istio_request_duration_milliseconds_count"), 3.0);
    assert_eq!(total(&mixer, "istio_request_duration_milliseconds_sum"), 21.0);
    assert_eq!(total(&mixer, "istio_response_bytes_sum"), 1_500.0);
    let bucket = text.lines().find(|line| {
        line.starts_with("istio_request_duration_milliseconds_bucket") && line.contains("le=\"10\"")
    });
    assert!(bucket.is_some_and(|line| line.ends_with(" 0")), "{bucket:?}");
}

#[tokio::test]
async fn repeated_late_and_resent_values_are_counted_once() {
    let mixer = mixer(&[&pods()]);
    let mut session = Session::open(&mixer, &hello(1));
    for (seq, requests, first, want) in
        [(1, 3, true, 3.0), (2, 3, false, 3.0), (3, 10, false, 10.0), (4, 9, false, 10.0)]
    {
        session.frame(frame(seq, requests, first)).expect("taken");
        assert_eq!(total(&mixer, "istio_requests_total"), want, "frame {seq}");
    }
    drop(session);
    let mut again = Session::open(&mixer, &hello(1));
    again.frame(frame(1, 12, true)).expect("taken");
    assert_eq!(total(&mixer, "istio_requests_total"), 12.0, "a new stream of the same epoch goes on");
    let mut restarted = Session::open(&mixer, &hello(2));
    restarted.frame(frame(1, 5, true)).expect("taken");
    assert_eq!(total(&mixer, "istio_requests_total"), 17.0, "a new epoch starts from nothing");
}

#[tokio::test]
async fn a_mixer_that_has_just_started_counts_everything_the_proxies_resend() {
    let sent = 1_000;
    let before = mixer(&[&pods()]);
    Session::open(&before, &hello(1)).frame(frame(1, 400, true)).expect("taken");
    drop(before);
    let after = mixer(&[&pods()]);
    let mut session = Session::open(&after, &hello(1));
    session.frame(frame(1, 700, true)).expect("taken");
    session.frame(frame(2, sent, false)).expect("taken");
    assert_eq!(total(&after, "istio_requests_total"), sent as f64);
}

#[tokio::test]
async fn a_change_of_configuration_keeps_the_counts() {
    let mixer = mixer(&[&pods()]);
    let mut session = Session::open(&mixer, &hello(1));
    session.frame(frame(1, 3, true)).expect("taken");
    mixer.replace(&snapshot(&[&pods(), common::POLICY]));
    session.frame(frame(2, 5, false)).expect("taken");
    assert_eq!(total(&mixer, "istio_requests_total"), 5.0);
    let relabelled = pods().replace("version: v2", "version: v3");
    mixer.rejoin(&snapshot(&[&relabelled]));
    session.frame(frame(3, 6, false)).expect("taken");
    let text = mixer.shared().prometheus.text();
    let line = |version: &str| {
        let label = format!("destination_version=\"{version}\"");
        text.lines()
            .find(|line| line.starts_with("istio_requests_total{") && line.contains(&label))
            .map(str::to_owned)
    };
    assert!(line("v2").is_some_and(|line| line.ends_with(" 5")));
    assert!(line("v3").is_some_and(|line| line.ends_with(" 1")), "new labels take what comes after them");
}

#[tokio::test]
async fn tcp_connections_and_bytes_are_counted() {
    let mixer = mixer(&[&pods()]);
    let mut session = Session::open(&mixer, &hello(1));
    let tcp =
        |opened, closed, received_bytes, sent_bytes| TcpSeries { opened, closed, received_bytes, sent_bytes };
    let frame = |seq, kind: TcpSeries| Frame {
        seq,
        words: if seq == 1 { WORDS.iter().map(ToString::to_string).collect() } else { Vec::new() },
        series: vec![Series {
            id: 8,
            facts: (seq == 1).then(|| Facts { protocol: 9, ..facts() }),
            kind: Some(Kind::Tcp(kind)),
        }],
        ..Default::default()
    };
    session.frame(frame(1, tcp(2, 0, 10, 20))).expect("taken");
    session.frame(frame(2, tcp(3, 1, 110, 220))).expect("taken");
    for (name, want) in [
        ("istio_tcp_connections_opened_total", 3.0),
        ("istio_tcp_connections_closed_total", 1.0),
        ("istio_tcp_received_bytes_total", 110.0),
        ("istio_tcp_sent_bytes_total", 220.0),
        ("istio_requests_total", 0.0),
    ] {
        assert_eq!(total(&mixer, name), want, "{name}");
    }
}

#[tokio::test]
async fn what_a_stream_may_not_do_is_refused_with_a_reason() {
    let mixer = mixer(&[&pods()]);
    let refused = |frame: Frame| {
        Session::open(&mixer, &hello(9)).frame(frame).expect_err("refused").message().to_owned()
    };
    assert!(refused(frame(1, 1, false)).contains("came without facts"));
    let mut unknown = frame(1, 1, true);
    unknown.series[0].facts = Some(Facts { protocol: 99, ..facts() });
    assert!(refused(unknown).contains("word 99 has not been sent"));
    let flood = Frame { seq: 1, words: vec!["x".repeat(20 << 20)], ..Default::default() };
    assert!(refused(flood).contains("dictionary exceeds"));
}

fn record() -> Record {
    Record {
        facts: Some(facts()),
        start_us: 1_700_000_000_000_000,
        duration_us: 2_500,
        method: 8,
        path: "/api/reviews/1".into(),
        request_id: "id-1".into(),
        span: Some(Span {
            trace_id: "463ac35c9f6413ad48485a3953bb6124".into(),
            span_id: "a2fb4a1d1a96d312".into(),
            parent_span_id: "0020000000000001".into(),
            client: false,
            name: "reviews.default.svc.cluster.local:9080/*".into(),
            sampled: true,
        }),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_record_becomes_a_span_and_is_not_counted_twice() {
    let mixer = mixer(&[&pods()]);
    let mut session = Session::open(&mixer, &hello(1));
    let mut with_record = frame(1, 1, true);
    with_record.records.push(record());
    session.frame(with_record).expect("taken");
    assert_eq!(total(&mixer, "istio_requests_total"), 1.0);
    let spans = mixer.recorder.trace("463ac35c9f6413ad48485a3953bb6124");
    let span = spans.first().expect("a span");
    assert_eq!((&*span.service, &*span.peer), ("espresso-shop-reviews.default", "espresso-shop-web.default"));
    assert_eq!((span.end.0 - span.start.0, span.status, span.client), (2_500_000, 200, false));
    let tag =
        |name: &str| span.tags.iter().find(|(tag, _)| **tag == *name).map(|(_, value)| value.to_string());
    assert_eq!(tag("guid:x-request-id").as_deref(), Some("id-1"));
    assert_eq!(tag("version").as_deref(), Some("v2"));
    let found = mixer.recorder.traces(&recorder::Query {
        service: Some("espresso-shop-reviews.default".into()),
        annotations: vec!["guid:x-request-id=id-1".into()],
        ..Default::default()
    });
    assert_eq!(found.len(), 1);
}

#[tokio::test]
async fn loss_that_proxies_report_is_exported() {
    let mixer: Arc<Mixer> = mixer(&[]);
    let mut session = Session::open(&mixer, &hello(1));
    let loss = |records| vec![Loss { reason: "ring_full".into(), records }];
    session.frame(Frame { seq: 1, losses: loss(5), ..Default::default() }).expect("taken");
    session.frame(Frame { seq: 4, losses: loss(8), ..Default::default() }).expect("taken");
    let text = mixer.prometheus_text();
    assert!(text.contains("mixer_proxy_records_lost_total{reason=\"ring_full\"} 8"), "{text}");
    assert!(text.contains("mixer_stream_gaps_total 2"));
    assert!(text.contains("mixer_streams 1"));
}
