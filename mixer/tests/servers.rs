//! The servers over real sockets: who may speak for whom, and what each protocol leads to.
//!
//! In: clients on loopback. Out: answers, metrics, traces. Kept true: every port is one the system chose.
//! Not here: the command line (`e2e`).

mod common;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use common::{mixer, pods};
use envoy_types::pb::{
    envoy::{
        config::core::v3::{Address, Node, RequestMethod, SocketAddress, address, socket_address},
        data::accesslog::v3::{
            AccessLogCommon, AccessLogType, ConnectionProperties, HttpAccessLogEntry, HttpRequestProperties,
            HttpResponseProperties, ResponseFlags, TcpAccessLogEntry, TlsProperties,
            tls_properties::{
                CertificateProperties,
                certificate_properties::{SubjectAltName, subject_alt_name::San},
            },
        },
        service::accesslog::v3::{
            StreamAccessLogsMessage,
            access_log_service_client::AccessLogServiceClient,
            stream_access_logs_message::{HttpAccessLogEntries, Identifier, LogEntries, TcpAccessLogEntries},
        },
    },
    google::protobuf::{Duration, Timestamp, UInt32Value},
};
use http_body_util::BodyExt;
use mesh_identity::{
    grpc::{self, ChannelOptions, Limits, Target},
    testkit::TestCa,
    tls::{ClientAuth, ClientTls, ServerTls},
};
use mixer::{core::Mixer, recorder, serve};
use telemetry_api::{Frame, Hello, HttpSeries, Series, series::Kind, telemetry_client::TelemetryClient};
use tokio::net::TcpListener;
use tonic::Code;
use tower::ServiceExt;

const MIXER: &str = "spiffe://cluster.local/ns/istio-system/sa/mixer";
const REVIEWS: &str = "sidecar~10.0.0.4~reviews-v2-1.default~default.svc.cluster.local";

async fn plain(mixer: &Arc<Mixer>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (trigger, watch) = mesh_runtime::drain::new();
    let incoming = grpc::incoming_plain(listener, Limits::default(), watch);
    let server = serve::grpc_services(mixer).serve_with_incoming(incoming);
    tokio::spawn(async move {
        let _trigger = trigger;
        server.await
    });
    address
}

fn hello_frame(node: &str) -> Frame {
    Frame {
        seq: 1,
        hello: Some(Hello { node_id: node.to_owned(), epoch: 1, ..Default::default() }),
        words: vec!["http".into()],
        series: vec![Series {
            id: 1,
            facts: Some(telemetry_api::Facts { protocol: 1, response_code: 200, ..Default::default() }),
            kind: Some(Kind::Http(HttpSeries { requests: 4, ..Default::default() })),
        }],
        ..Default::default()
    }
}

fn line(mixer: &Mixer, name: &str) -> Option<String> {
    let text = mixer.shared().prometheus.text();
    text.lines().find(|line| line.starts_with(&format!("{name}{{"))).map(str::to_owned)
}

#[tokio::test]
async fn frames_are_acknowledged_with_credit_and_a_stream_without_hello_ends() {
    let mixer = mixer(&[&pods()]);
    let address = plain(&mixer).await;
    let mut client = TelemetryClient::connect(format!("http://{address}")).await.expect("connected");
    let frames = tokio_stream::iter([hello_frame(REVIEWS), Frame { seq: 2, ..Default::default() }]);
    let mut acks = client.stream(frames).await.expect("a stream").into_inner();
    for seq in [1, 2] {
        let ack = acks.message().await.expect("no error").expect("an acknowledgement");
        assert_eq!((ack.last_seq, ack.credit_bytes > 0), (seq, true));
    }
    assert!(acks.message().await.expect("no error").is_none());
    assert!(line(&mixer, "istio_requests_total").is_some_and(|line| line.ends_with(" 4")));
    let mut acks =
        client.stream(tokio_stream::iter([Frame::default()])).await.expect("a stream").into_inner();
    assert_eq!(acks.message().await.expect_err("refused").code(), Code::InvalidArgument);
}

#[tokio::test]
async fn over_mutual_tls_a_proxy_speaks_for_its_own_pod_only() {
    let ca = TestCa::new("root");
    let mixer = mixer(&[&pods()]);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (_trigger, watch) = mesh_runtime::drain::new();
    let tls = ServerTls::grpc(ClientAuth::Required);
    let incoming = grpc::incoming(listener, ca.store(MIXER), tls, Limits::default(), watch);
    tokio::spawn(serve::grpc_services(&mixer).serve_with_incoming(incoming));
    for (identity, want) in [
        ("spiffe://cluster.local/ns/default/sa/default", None),
        ("spiffe://cluster.local/ns/default/sa/other", Some(Code::PermissionDenied)),
        ("spiffe://cluster.local/ns/other/sa/default", Some(Code::PermissionDenied)),
    ] {
        let tls = ClientTls::grpc(MIXER.parse().expect("an id"));
        let target = Target::Mesh(ca.store(identity), tls);
        let channel =
            grpc::channel(&address.to_string(), target, &ChannelOptions::default()).expect("a channel");
        let frames = tokio_stream::iter([hello_frame(REVIEWS)]);
        let mut acks = TelemetryClient::new(channel).stream(frames).await.expect("a stream").into_inner();
        assert_eq!(acks.message().await.err().map(|status| status.code()), want, "{identity}");
    }
}

fn socket(ip: &str, port: u32) -> Option<Address> {
    let address = SocketAddress {
        address: ip.to_owned(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(port)),
        ..Default::default()
    };
    Some(Address { address: Some(address::Address::SocketAddress(address)) })
}

fn certificate(id: &str) -> Option<CertificateProperties> {
    let san = SubjectAltName { san: Some(San::Uri(id.to_owned())) };
    Some(CertificateProperties { subject_alt_name: vec![san], ..Default::default() })
}

fn common_properties() -> AccessLogCommon {
    const DEFAULT: &str = "spiffe://cluster.local/ns/default/sa/default";
    AccessLogCommon {
        downstream_remote_address: socket("10.0.0.1", 40_000),
        downstream_direct_remote_address: socket("10.0.0.1", 40_000),
        downstream_local_address: socket("10.0.0.4", 9080),
        upstream_cluster: "inbound|9080||".into(),
        start_time: Some(Timestamp { seconds: 1_700_000_000, nanos: 0 }),
        duration: Some(Duration { seconds: 0, nanos: 3_000_000 }),
        tls_properties: Some(TlsProperties {
            peer_certificate_properties: certificate(DEFAULT),
            local_certificate_properties: certificate(DEFAULT),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[tokio::test]
async fn envoys_access_log_becomes_istios_metrics() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: reviews}\nspec: {selector: {app: espresso-shop-reviews}, ports: [{port: 80, targetPort: 9080}]}\n";
    let mixer = mixer(&[&pods(), service]);
    let address = plain(&mixer).await;
    let identifier = Identifier {
        node: Some(Node { id: REVIEWS.to_owned(), ..Default::default() }),
        log_name: "inbound".to_owned(),
    };
    let http = HttpAccessLogEntry {
        common_properties: Some(AccessLogCommon {
            response_flags: Some(ResponseFlags {
                delay_injected: true,
                fault_injected: true,
                ..Default::default()
            }),
            ..common_properties()
        }),
        request: Some(HttpRequestProperties {
            request_method: RequestMethod::Get.into(),
            path: "/api/reviews/1".into(),
            authority: "reviews".into(),
            ..Default::default()
        }),
        response: Some(HttpResponseProperties {
            response_code: Some(UInt32Value { value: 503 }),
            response_body_bytes: 120,
            ..Default::default()
        }),
        ..Default::default()
    };
    let tcp = |kind: AccessLogType, received_bytes| TcpAccessLogEntry {
        common_properties: Some(AccessLogCommon { access_log_type: kind.into(), ..common_properties() }),
        connection_properties: Some(ConnectionProperties { received_bytes, sent_bytes: 7 }),
    };
    let tcp = vec![
        tcp(AccessLogType::TcpConnectionStart, 0),
        tcp(AccessLogType::TcpPeriodic, 30),
        tcp(AccessLogType::TcpConnectionEnd, 50),
    ];
    let messages = [
        StreamAccessLogsMessage {
            identifier: Some(identifier),
            log_entries: Some(LogEntries::HttpLogs(HttpAccessLogEntries {
                log_entry: vec![http.clone(), http],
            })),
        },
        StreamAccessLogsMessage {
            identifier: None,
            log_entries: Some(LogEntries::TcpLogs(TcpAccessLogEntries { log_entry: tcp })),
        },
    ];
    let mut client = AccessLogServiceClient::connect(format!("http://{address}")).await.expect("connected");
    client.stream_access_logs(tokio_stream::iter(messages)).await.expect("taken");
    let requests = line(&mixer, "istio_requests_total").expect("counted");
    for part in [
        "reporter=\"destination\"",
        "source_app=\"espresso-shop-web\"",
        "destination_version=\"v2\"",
        "destination_service=\"reviews.default.svc.cluster.local\"",
        "response_code=\"503\"",
        "response_flags=\"DI,FI\"",
        "connection_security_policy=\"mutual_tls\"",
        "source_principal=\"cluster.local/ns/default/sa/default\"",
    ] {
        assert!(requests.contains(part), "{part} is not in {requests}");
    }
    assert!(requests.ends_with(" 2"));
    for (name, want) in [
        ("istio_response_bytes_sum", " 240"),
        ("istio_request_duration_milliseconds_sum", " 6"),
        ("istio_tcp_connections_opened_total", " 1"),
        ("istio_tcp_connections_closed_total", " 1"),
        ("istio_tcp_received_bytes_total", " 50"),
    ] {
        assert!(
            line(&mixer, name).is_some_and(|line| line.ends_with(want)),
            "{name} {:?}",
            line(&mixer, name)
        );
    }
}

async fn http(mixer: &Arc<Mixer>, request: Request<Body>) -> (StatusCode, serde_json::Value) {
    let response = recorder::http::router(mixer.clone()).oneshot(request).await.expect("an answer");
    let status = response.status();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or(serde_json::Value::Null))
}

#[tokio::test]
async fn spans_posted_by_envoy_come_back_as_one_trace() {
    let mixer = mixer(&[]);
    let span = |id: &str, parent: &str, kind: &str, service: &str, timestamp: u64| {
        serde_json::json!({
            "traceId": "463ac35c9f6413ad", "id": id, "parentId": parent, "kind": kind, "name": "get", "timestamp": timestamp,
            "duration": 100, "localEndpoint": {"serviceName": service}, "tags": {"http.status_code": "200"},
        })
    };
    let spans = serde_json::json!([
        span("000000000000000b", "000000000000000a", "SERVER", "reviews.default", 1_700_000_000_000_010),
        span("000000000000000a", "", "CLIENT", "web.default", 1_700_000_000_000_000),
    ]);
    let post = Request::post("/api/v2/spans").body(Body::from(spans.to_string())).expect("a request");
    assert_eq!(http(&mixer, post).await.0, StatusCode::ACCEPTED);
    let get = |path: &str| Request::get(path).body(Body::empty()).expect("a request");
    let (status, trace) = http(&mixer, get("/api/v2/trace/463ac35c9f6413ad")).await;
    assert_eq!(
        (status, trace[0]["id"].as_str(), trace[1]["parentId"].as_str()),
        (StatusCode::OK, Some("000000000000000a"), Some("000000000000000a"))
    );
    let (_, traces) = http(&mixer, get("/api/v2/traces?serviceName=web.default&limit=5")).await;
    assert_eq!(traces.as_array().map(Vec::len), Some(1));
    let (_, traces) = http(&mixer, get("/api/v2/traces?serviceName=nobody")).await;
    assert_eq!(traces, serde_json::json!([]));
    let (_, services) = http(&mixer, get("/api/v2/services")).await;
    assert_eq!(services, serde_json::json!(["reviews.default", "web.default"]));
    assert_eq!(http(&mixer, get("/api/v2/trace/0000000000000001")).await.0, StatusCode::NOT_FOUND);
    let broken = Request::post("/api/v2/spans").body(Body::from("{")).expect("a request");
    assert_eq!(http(&mixer, broken).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn otlp_over_http_is_taken_on_the_same_port() {
    use otlp::{
        collector::trace::v1::ExportTraceServiceRequest,
        trace::v1::{ResourceSpans, ScopeSpans, Span},
    };
    use prost::Message;
    let mixer = mixer(&[]);
    let span = Span { trace_id: vec![7; 16], span_id: vec![8; 8], name: "work".into(), ..Default::default() };
    let scope_spans = vec![ScopeSpans { spans: vec![span], ..Default::default() }];
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans { scope_spans, ..Default::default() }],
    };
    let post = |body: Vec<u8>| Request::post("/v1/traces").body(Body::from(body)).expect("a request");
    assert_eq!(http(&mixer, post(request.encode_to_vec())).await.0, StatusCode::OK);
    assert_eq!(mixer.recorder.trace(&"07".repeat(16)).len(), 1);
    assert_eq!(http(&mixer, post(b"not protobuf".to_vec())).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn streams_end_when_mixer_is_asked_to_stop() {
    let mixer = mixer(&[&pods()]);
    let address = plain(&mixer).await;
    let mut client = TelemetryClient::connect(format!("http://{address}")).await.expect("connected");
    let (frames, receiver) = tokio::sync::mpsc::channel(1);
    frames.send(hello_frame(REVIEWS)).await.expect("room");
    let frames_in = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut acks = client.stream(frames_in).await.expect("a stream").into_inner();
    assert!(acks.message().await.expect("no error").is_some());
    mixer.stop.cancel();
    assert!(
        acks.message().await.expect("no error").is_none(),
        "the stream ends in order, and the proxy comes back"
    );
    drop(frames);
}

#[tokio::test]
async fn the_page_prometheus_scrapes_is_there() {
    let response = serve::prometheus_router(mixer(&[]))
        .oneshot(Request::get("/metrics").body(Body::empty()).expect("a request"))
        .await
        .expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
}
