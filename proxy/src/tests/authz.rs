//! The question to an authorization service: what it is told, what its verdict does, how long it is remembered.
//! In: a fake service on HTTP/2. Out: requests let through, changed or refused.
//! Kept true: what the client says about itself is not an identity.
//! Not here: the service's rules (`mixer`).

use super::*;
use bytes::{BufMut, BytesMut};
use mesh_traffic::{
    cluster::Protocol as Spoken,
    filter::{ExtAuthz, ExtAuthzPerRoute},
};
use prost::Message;
use xds::{
    envoy::{
        config::core::v3::{HeaderValue, HeaderValueOption},
        service::auth::v3::{
            CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse, check_response::HttpResponse,
        },
        r#type::v3::HttpStatus,
    },
    google::{
        protobuf::{ListValue, Struct, Value, value::Kind},
        rpc,
    },
};

type Asked = Rc<RefCell<Vec<CheckRequest>>>;

async fn service(answer: impl Fn(&CheckRequest) -> CheckResponse + 'static) -> (SocketAddr, Asked) {
    let asked = Asked::default();
    let (log, answer) = (Rc::clone(&asked), Rc::new(answer));
    let (address, _) = upstream(move |_, request| {
        let (log, answer) = (Rc::clone(&log), Rc::clone(&answer));
        async move {
            assert_eq!(request.head.path(), "/envoy.service.auth.v3.Authorization/Check");
            let (body, _) = request.body.collect(1 << 20).await.expect("whole");
            let question = CheckRequest::decode(&body[5..]).expect("a question");
            let message = answer(&question).encode_to_vec();
            log.borrow_mut().push(question);
            let mut frame = BytesMut::new();
            frame.put_u8(0);
            frame.put_u32(u32::try_from(message.len()).expect("small"));
            frame.extend_from_slice(&message);
            let mut head = Head::response(StatusCode::OK);
            head.set("content-type", "application/grpc");
            let (mut sender, body) = Body::channel(2);
            tokio::task::spawn_local(async move {
                let _ = sender.send(crate::codec::Frame::Data(frame.freeze())).await;
                let trailers = [("grpc-status", "0")].into_iter().collect();
                let _ = sender.send(crate::codec::Frame::Trailers(trailers)).await;
                sender.finish();
            });
            Response::from_head(head, body)
        }
    })
    .await;
    (address, asked)
}

fn allow() -> CheckResponse {
    let ok = OkHttpResponse {
        headers: vec![HeaderValueOption {
            header: Some(HeaderValue { key: "X-User".into(), value: "ann".into(), ..Default::default() }),
            ..Default::default()
        }],
        headers_to_remove: vec!["x-secret".into()],
        response_headers_to_add: vec![HeaderValueOption {
            header: Some(HeaderValue { key: "X-Checked".into(), value: "yes".into(), ..Default::default() }),
            ..Default::default()
        }],
        ..Default::default()
    };
    CheckResponse {
        status: Some(rpc::Status::default()),
        http_response: Some(HttpResponse::OkResponse(ok)),
        dynamic_metadata: None,
    }
}

fn deny(body: &str) -> CheckResponse {
    let denied = DeniedHttpResponse {
        status: Some(HttpStatus { code: 403 }),
        body: body.to_owned(),
        ..Default::default()
    };
    CheckResponse {
        status: Some(rpc::Status { code: 7, ..Default::default() }),
        http_response: Some(HttpResponse::DeniedResponse(denied)),
        dynamic_metadata: None,
    }
}

fn remembered(mut answer: CheckResponse, seconds: f64, uses: f64, references: &[&str]) -> CheckResponse {
    let number = |n| Value { kind: Some(Kind::NumberValue(n)) };
    let values =
        references.iter().map(|r| Value { kind: Some(Kind::StringValue((*r).to_owned())) }).collect();
    answer.dynamic_metadata = Some(Struct {
        fields: [
            ("valid_seconds".to_owned(), number(seconds)),
            ("valid_uses".to_owned(), number(uses)),
            ("references".to_owned(), Value { kind: Some(Kind::ListValue(ListValue { values })) }),
        ]
        .into(),
    });
    answer
}

async fn guarded(service: SocketAddr, app: SocketAddr, fail_open: bool) -> Mesh {
    let settings = ExtAuthz {
        cluster: "authz".into(),
        timeout: Duration::from_secs(5),
        fail_open,
        status_on_error: 503,
        ..ExtAuthz::default()
    };
    let authz = Cluster { name: "authz".into(), protocol: Spoken::Http2, ..cluster(&[service]) };
    let mut one = route("c", |_| {});
    let context = vec![("destination.uid".into(), "kubernetes://reviews.default".into())];
    one.filters.ext_authz = Some(ExtAuthzPerRoute::Context(context));
    let filters = vec![FilterConfig::ExtAuthz(Arc::new(settings))];
    Mesh::start(snapshot(manager(filters), routes(vec![one]), vec![cluster(&[app]), authz])).await
}

fn with(name: &'static str, value: &str) -> Request {
    let mut head = Head::request(Method::GET, "shop", "/a?b");
    head.set(name, value);
    Request { head, body: Body::empty() }
}

#[test]
fn an_allowed_request_goes_on_as_the_service_changed_it() {
    block_on(async {
        let (app, seen) = echo("app").await;
        let (authz, asked) = service(|_| allow()).await;
        let mesh = guarded(authz, app, false).await;
        let answer = mesh.send(with("x-secret", "s")).await;
        assert_eq!((answer.body.as_str(), answer.head.get_str("x-checked")), ("app", Some("yes")));
        assert_eq!(
            (seen.borrow()[0].get_str("x-user"), seen.borrow()[0].get_str("x-secret")),
            (Some("ann"), None)
        );
        let asked = asked.borrow();
        let attributes = asked[0].attributes.as_ref().expect("attributes");
        assert_eq!(attributes.context_extensions["destination.uid"], "kubernetes://reviews.default");
        assert_eq!(attributes.source.as_ref().expect("a source").principal, "", "plaintext has no principal");
        let http = attributes.request.as_ref().and_then(|r| r.http.as_ref()).expect("http");
        assert_eq!(
            (http.path.as_str(), http.host.as_str(), http.headers["x-secret"].as_str()),
            ("/a?b", "shop", "s")
        );
    });
}

#[test]
fn a_denial_is_given_as_it_is() {
    block_on(async {
        let (app, seen) = echo("app").await;
        let body = "PERMISSION_DENIED:deny-reviews-v2-handler.denier.default:Not allowed";
        let (authz, _) = service(move |_| deny(body)).await;
        let mesh = guarded(authz, app, true).await;
        let answer = mesh.get("/").await;
        assert_eq!((answer.status, answer.body.as_str()), (403, body));
        assert_eq!(mesh.told(), [(403, "UAEX".to_owned(), "ext_authz_denied".to_owned())]);
        assert!(seen.borrow().is_empty());
    });
}

#[test]
fn no_verdict_closes_or_opens_as_configured() {
    block_on(async {
        let (app, _) = echo("app").await;
        let dead = nobody().await;
        for (open, want) in [(false, 503), (true, 200)] {
            assert_eq!(guarded(dead, app, open).await.get("/").await.status, want, "fail_open {open}");
        }
    });
}

#[test]
fn a_verdict_is_remembered_for_its_inputs_its_time_and_its_uses() {
    block_on(async {
        let (app, _) = echo("app").await;
        let inputs = ["source.ip", "request.headers[user-agent]", "-request.headers[x-none]"];
        let (authz, asked) = service(move |_| remembered(allow(), 10.0, 3.0, &inputs)).await;
        let mesh = guarded(authz, app, false).await;
        for (agent, after, want) in
            [("a", 0, 1), ("a", 1, 1), ("a", 1, 1), ("a", 0, 2), ("b", 0, 3), ("a", 20, 4)]
        {
            tokio::time::sleep(Duration::from_secs(after)).await;
            assert_eq!(mesh.send(with("user-agent", agent)).await.status, 200);
            assert_eq!(asked.borrow().len(), want, "{agent} after {after} s");
        }
        mesh.send(with("x-none", "there now")).await;
        assert_eq!(asked.borrow().len(), 5, "another user agent and a header that was absent");
        let (authz, asked) = service(|_| remembered(allow(), 10.0, 100.0, &["api.operation"])).await;
        let mesh = guarded(authz, app, false).await;
        for _ in 0..3 {
            mesh.get("/").await;
        }
        assert_eq!(asked.borrow().len(), 3, "an input that cannot be compared is asked each time");
    });
}

#[test]
fn a_service_that_is_away_is_not_dialled_for_each_request() {
    block_on(async {
        let (app, _) = echo("app").await;
        let mesh = guarded(nobody().await, app, false).await;
        let view = mesh.worker.view();
        let authz = mesh.worker.cluster(&view, &"authz".into()).expect("configured");
        let authz = || authz.common.stats.connect_failures.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(mesh.get("/").await.status, 503);
        let first = authz();
        for _ in 0..10 {
            assert_eq!(mesh.get("/").await.status, 503);
        }
        assert_eq!(authz(), first, "known to be away");
        tokio::time::sleep(Duration::from_millis(101)).await;
        assert_eq!(mesh.get("/").await.status, 503);
        assert!(authz() > first, "asked again after a while");
    });
}
