use std::{collections::HashMap, time::Duration};

use axum::{Router, http::HeaderMap as Headers, response::Redirect, routing::get};
use mesh_identity::tls::server::file_config;
use tokio::net::TcpListener;

use super::*;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn http(port: u16, path: &str, headers: &[(&'static str, &'static str)]) -> Probe {
    let headers = headers
        .iter()
        .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect();
    probe(Question::Http { port, path: path.to_owned(), tls: false, headers })
}

fn probe(question: Question) -> Probe {
    Probe { question, patience: Duration::from_secs(5) }
}

/// An application that says what it was asked.
async fn application() -> u16 {
    let echo = async |headers: Headers| {
        let text: HashMap<_, _> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default())).collect();
        let mut lines: Vec<_> = text.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        lines.sort();
        lines.join("\n")
    };
    let router = Router::new()
        .route("/echo", get(echo))
        .route("/bad", get(async || (StatusCode::SERVICE_UNAVAILABLE, "not yet")))
        .route("/long", get(async || "x".repeat(SHOWN * 3)))
        .route("/here", get(async || Redirect::temporary("/bad")))
        .route("/away", get(async || Redirect::temporary("http://elsewhere.example/")))
        .route("/round", get(async || Redirect::temporary("/round")))
        .route("/never", get(async || std::future::pending::<()>().await));
    let listener = TcpListener::bind((LOCAL, 0)).await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move { axum::serve(listener, router).await });
    port
}

#[tokio::test]
async fn an_http_probe_passes_the_answer_on() {
    let port = application().await;
    let mut heard = HeaderMap::new();
    heard.insert("user-agent", HeaderValue::from_static("kube-probe/1.34"));
    heard.insert("cookie", HeaderValue::from_static("none of the application's business"));
    for (path, headers, status, part) in [
        ("/echo", &[][..], 200, "user-agent: kube-probe/1.34"),
        (
            "/echo?x=1",
            &[("host", "shop"), ("x-role", "probe")],
            200,
            "host: shop\nuser-agent: kube-probe/1.34\nx-role: probe",
        ),
        ("/bad", &[], 503, "not yet"),
        ("/nowhere", &[], 404, ""),
        ("/here", &[], 503, "not yet"),
        ("/away", &[], 307, ""),
        ("/round", &[], 500, "stopped after 10 redirects"),
    ] {
        let (got, text) = ask(&http(port, path, headers), LOCAL, &heard).await;
        let text = String::from_utf8_lossy(&text).into_owned();
        assert_eq!(got.as_u16(), status, "{path}: {text}");
        assert!(text.contains(part) && !text.contains("cookie"), "{path}: {text}");
    }
    let (_, text) = ask(&http(port, "/long", &[]), LOCAL, &heard).await;
    assert_eq!(text.len(), SHOWN);
}

#[tokio::test]
async fn what_does_not_answer_in_time_has_failed() {
    let port = application().await;
    let late = Probe { patience: Duration::from_millis(50), ..http(port, "/never", &[]) };
    let (status, text) = ask(&late, LOCAL, &HeaderMap::new()).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(text.starts_with(b"no answer within"), "{text:?}");
}

#[tokio::test]
async fn a_port_that_takes_connections_is_alive() {
    let open = TcpListener::bind((LOCAL, 0)).await.expect("a port");
    let port = open.local_addr().expect("bound").port();
    let tcp = probe(Question::Tcp { port });
    assert_eq!(ask(&tcp, LOCAL, &HeaderMap::new()).await.0, StatusCode::OK);
    drop(open);
    let (status, text) = ask(&tcp, LOCAL, &HeaderMap::new()).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{text:?}");
}

/// Serves `router` as servers of applications do, HTTP/1.1 or HTTP/2, with TLS if asked for.
async fn serve(router: Router, tls: bool) -> u16 {
    let ca = mesh_identity::testkit::TestCa::new("nobody knows this one");
    let settings =
        file_config(&ca.issue("spiffe://any/thing"), None, &[], MinTls::V12).expect("settings fit");
    let acceptor = tokio_rustls::TlsAcceptor::from(settings);
    let listener = TcpListener::bind((LOCAL, 0)).await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        let (_trigger, watch) = mesh_runtime::drain::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (router, watch) = (router.clone(), watch.clone());
            if tls {
                let stream = acceptor.accept(stream).await.expect("a handshake");
                tokio::spawn(mesh_runtime::listen::serve_connection(stream, router, watch));
            } else {
                tokio::spawn(mesh_runtime::listen::serve_connection(stream, router, watch));
            }
        }
    });
    port
}

#[tokio::test]
async fn https_takes_any_certificate() {
    let port = serve(Router::new().route("/", get(async || "secret")), true).await;
    let https = probe(Question::Http { port, path: "/".to_owned(), tls: true, headers: Vec::new() });
    let (status, text) = ask(&https, LOCAL, &HeaderMap::new()).await;
    assert_eq!((status, &*text), (StatusCode::OK, &b"secret"[..]), "{text:?}");
}

#[tokio::test]
async fn a_grpc_probe_asks_for_its_service() {
    let check = async |request: tonic::Request<HealthCheckRequest>| {
        let status = match request.get_ref().service.as_str() {
            "" => SERVING,
            "down" => 2,
            _ => return Err(tonic::Status::not_found("unknown service")),
        };
        Ok(tonic::Response::new(HealthCheckResponse { status }))
    };
    let answer = async move |request: axum::extract::Request| {
        let codec = tonic_prost::ProstCodec::<HealthCheckResponse, HealthCheckRequest>::default();
        tonic::server::Grpc::new(codec).unary(tower::service_fn(check), request).await
    };
    let port =
        serve(Router::new().route("/grpc.health.v1.Health/Check", axum::routing::post(answer)), false).await;
    for (service, status, part) in
        [("", 200, "SERVING"), ("down", 500, "status 2 of service `down`"), ("other", 500, "unknown service")]
    {
        let grpc = probe(Question::Grpc { port, service: service.to_owned() });
        let (got, text) = ask(&grpc, LOCAL, &HeaderMap::new()).await;
        let text = String::from_utf8_lossy(&text);
        assert!(got.as_u16() == status && text.contains(part), "{service}: {got} {text}");
    }
}
