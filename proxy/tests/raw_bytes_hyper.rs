//! What we forward is read by an independent server exactly as our handler saw it: the test against request smuggling.
//! In: requests of good and bad scraps, several on a connection. Out: two lists of requests, ours and hyper's, which must be equal.
//! Kept true: framing that leaves us is canonical, so two parsers in a row cannot disagree.
//! Not here: whether a request should have been refused (`raw_bytes`).

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::rc::Rc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use proxy::codec::{Body, Frame, Limits, Protocol, Request, Response, Scheme, Serve, StatusCode, h1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type Seen = Rc<RefCell<Vec<String>>>;

/// Plays bytes to our server, whose handler forwards each request to hyper. Gives what each saw.
fn play(bytes: &[u8]) -> (Vec<String>, Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let ours = Seen::default();
    let theirs = Seen::default();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let handler = async |request: Request| {
            let head = request.head;
            let Ok((body, trailers)) = request.body.collect(1 << 20).await else { return Response::abort() };
            let mut line = format!("{} {} {}", head.method(), head.path(), head.authority());
            for (name, value) in head.iter().filter(|(name, _)| name.starts_with('x')) {
                line += &format!(" {name}={}", value.escape_ascii());
            }
            line += &format!(" |{}|", body.escape_ascii());
            ours.borrow_mut().push(line);

            let (near, far) = tokio::io::duplex(1 << 16);
            let seen = Rc::clone(&theirs);
            tokio::task::spawn_local(async move {
                let service = service_fn(move |request| record(Rc::clone(&seen), request));
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(far), service)
                    .await;
            });
            // As a stream, so that the framing is chunked; every other one with its length known.
            let body = if body.len() % 2 == 0 {
                Body::full(body)
            } else {
                let (mut sender, stream) = Body::channel(2);
                let _ = sender.send(Frame::Data(body)).await;
                if let Some(trailers) = trailers {
                    let _ = sender.send(Frame::Trailers(trailers)).await;
                }
                // Left open until sent, else the length would be known.
                tokio::task::spawn_local(async move {
                    tokio::task::yield_now().await;
                    sender.finish();
                });
                stream
            };
            match h1::ClientConn::new(near, Rc::new(Limits::upstream())).send(Request { head, body }).await {
                Ok(response) => Response::new(response.head.status()),
                Err(_) => Response::new(StatusCode::BAD_GATEWAY),
            }
        };
        let handler = |request| handler(request);
        let (client, server) = tokio::io::duplex(1 << 16);
        let serve =
            Serve { protocol: Protocol::Http1, scheme: Scheme::Http, limits: Rc::new(Limits::sidecar()) };
        let client = async {
            let (mut from, mut to) = tokio::io::split(client);
            let send = async {
                let _ = to.write_all(bytes).await;
                let _ = to.shutdown().await;
            };
            let mut answer = Vec::new();
            let _ = tokio::join!(send, from.read_to_end(&mut answer));
        };
        tokio::join!(serve.run(server, std::future::pending(), &handler), client);
    });
    (ours.take(), theirs.take())
}

async fn record(
    seen: Seen,
    request: hyper::Request<hyper::body::Incoming>,
) -> Result<hyper::Response<Empty<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let host = parts.headers.get("host").map_or("", |host| host.to_str().unwrap_or("?"));
    let mut line = format!("{} {} {host}", parts.method, parts.uri);
    for (name, value) in parts.headers.iter().filter(|(name, _)| name.as_str().starts_with('x')) {
        line += &format!(" {name}={}", value.as_bytes().escape_ascii());
    }
    if let Ok(body) = body.collect().await {
        line += &format!(" |{}|", body.to_bytes().escape_ascii());
    }
    seen.borrow_mut().push(line);
    Ok(hyper::Response::new(Empty::new()))
}

/// A request that is right, in many ways.
fn whole() -> impl Strategy<Value = Vec<u8>> {
    let start = prop::sample::select(vec![
        "GET / HTTP/1.1\r\nHost: a\r\n",
        "POST /a?b HTTP/1.1\r\nHost: a:80\r\n",
        "GET http://a/c HTTP/1.1\r\nHost: a\r\n",
        "OPTIONS * HTTP/1.1\r\nhost: [::1]\r\n",
    ]);
    let field = prop::sample::select(vec![
        "Connection: x-a, keep-alive\r\n",
        "Upgrade: h2c\r\n",
        "Connection: upgrade\r\n",
        "Expect: 100-continue\r\n",
        "x-a: b\r\n",
        "x-c:  d  \r\n",
        "TE: trailers\r\n",
        "X-Long: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n",
    ]);
    let body = prop::sample::select(vec![
        "\r\n",
        "Content-Length: 0\r\n\r\n",
        "Content-Length: 5\r\n\r\nhello",
        "Content-Length: 37\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: abcd\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n1;x=y\r\n!\r\n000a\r\n0123456789\r\n0\r\nx-t: 1\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ]);
    (start, prop::collection::vec(field, 0..3), body)
        .prop_map(|(start, fields, body)| [start, &fields.concat(), body].concat().into_bytes())
}

/// What may come between, most of it fatal.
fn damage() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::sample::select(vec![
            "\r\n",
            "\r\n\r\n",
            "\n",
            "0\r\n\r\n",
            "Content-Length: 5\r\n",
            "Transfer-Encoding: chunked\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n32\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z: w\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 1..4),
    ]
}

#[test]
fn two_parsers_in_a_row_see_the_same_requests() {
    let piece = prop_oneof![5 => whole(), 1 => damage()];
    let mut runner = TestRunner::new(Config { cases: 500, failure_persistence: None, ..Config::default() });
    let passed = Cell::new(0);
    let outcome = runner.run(&prop::collection::vec(piece, 1..8), |pieces| {
        let (ours, theirs) = play(&pieces.concat());
        passed.set(passed.get() + ours.len());
        prop_assert_eq!(ours, theirs);
        Ok(())
    });
    assert!(outcome.is_ok(), "{outcome:?}");
    assert!(passed.get() >= 500, "only {} requests passed", passed.get());
}

#[test]
fn the_corpus_passes_through_unchanged() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut requests = 0;
    for entry in std::fs::read_dir(&folder).expect("tests/corpus is there") {
        let path = entry.expect("a file").path();
        let (ours, theirs) = play(&std::fs::read(&path).expect("readable"));
        assert_eq!(ours, theirs, "{}", path.display());
        requests += ours.len();
    }
    assert!(requests >= 3, "{requests} requests passed");
}
