//! HTTP/2 connections in motion: our server and client against each other and against `h2` itself, on a paused clock.
//! In: handlers and clients of `testkit`. Out: sentences about behaviour.
//! Kept true: nothing here waits on wall time.
//! Not here: single heads and frames (`tests/raw_bytes_h2`).

#![allow(clippy::large_futures, reason = "whole meshes in one future, once per test")]

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::codec::testkit::*;
use crate::codec::*;

fn http2(limits: Limits) -> Serve {
    server(Protocol::Http2, limits)
}

async fn echo(request: Request) -> Response {
    let mut response = Response::new(StatusCode::OK);
    response.head.append("x-path", request.head.path());
    response.body = request.body;
    response
}

fn post(path: &str, shape: Shape) -> Request {
    Request { head: Head::request(Method::POST, "app", path), body: body(shape) }
}

/// A client over this stream, its driver spawned.
async fn dial(io: impl Io) -> h2::ClientConn {
    let (conn, driver) =
        h2::ClientConn::handshake(io, Rc::new(Limits::upstream())).await.expect("a handshake");
    tokio::task::spawn_local(driver);
    conn
}

#[tokio::test(start_paused = true)]
async fn bodies_of_every_shape_pass_both_ways_at_once() {
    LocalSet::new()
        .run_until(async {
            let (end, ()) = beside(&http2(Limits::sidecar()), &echo, |io| async move {
                let conn = dial(io).await;
                let all = SHAPES.iter().map(|shape| {
                    let conn = conn.clone();
                    async move {
                        let response = conn.send(post("/e", *shape)).await.expect("an answer");
                        assert_eq!(response.head.get_str("x-path"), Some("/e"), "{shape:?}");
                        assert_eq!(response.head.version(), Version::Http2);
                        assert_eq!(read(response.body).await, Ok(content(*shape)), "{shape:?}");
                    }
                });
                futures::future::join_all(all).await;
                assert_eq!(conn.in_flight(), 0);
            })
            .await;
            assert!(matches!(end, ConnEnd::Closed), "{end:?}");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn messages_keep_their_meaning_from_one_protocol_to_the_other() {
    for first_is_h2 in [true, false] {
        for shape in SHAPES {
            let local = LocalSet::new();
            let forwarded = local.run_until(async {
                let (near, far) = tokio::io::duplex(4096);
                let (app, middle) = match first_is_h2 {
                    true => (Protocol::Http1, Protocol::Http2),
                    false => (Protocol::Http2, Protocol::Http1),
                };
                let app = server(app, Limits::sidecar());
                let middle = server(middle, Limits::sidecar());
                let near = RefCell::new(Some(near));
                let forward = async |mut request: Request| {
                    assert_eq!(request.head.get_str("x-kept"), Some("1"));
                    request.head.set("x-added", "2");
                    let io = near.borrow_mut().take().expect("one request");
                    let sent = match first_is_h2 {
                        true => client(io).0.send(request).await,
                        false => dial(io).await.send(request).await,
                    };
                    sent.expect("an answer")
                };
                let forward = |request| forward(request);
                let check = async |request: Request| {
                    assert_eq!(request.head.get_str("x-added"), Some("2"));
                    assert_eq!((request.head.authority(), request.head.path()), ("app", "/x?y"));
                    echo(request).await
                };
                let check = |request| check(request);
                let (asker, middle_far) = tokio::io::duplex(4096);
                let ask = async {
                    let mut request = post("/x?y", shape);
                    request.head.set("x-kept", "1");
                    let sent = match first_is_h2 {
                        true => dial(asker).await.send(request).await,
                        false => client(asker).0.send(request).await,
                    };
                    let response = sent.expect("an answer");
                    assert_eq!(read(response.body).await, Ok(content(shape)), "{shape:?}");
                };
                tokio::join!(
                    app.run(far, std::future::pending(), &check),
                    middle.run(middle_far, std::future::pending(), &forward),
                    ask
                );
            });
            tokio::time::timeout(Duration::from_secs(60), forwarded)
                .await
                .unwrap_or_else(|_| panic!("{shape:?} stands still"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_grpc_like_stream_flows_both_ways_and_ends_in_trailers() {
    LocalSet::new()
        .run_until(async {
            let chat = async |mut request: Request| {
                assert_eq!(request.head.get_str(Known::Te), Some("trailers"));
                let (mut sender, body) = Body::channel(1);
                tokio::task::spawn_local(async move {
                    let mut rounds = 0;
                    while let Some(Ok(Frame::Data(data))) = request.body.next_frame().await {
                        rounds += 1;
                        let answer = [b"re:", &data[..]].concat();
                        if sender.send(Frame::Data(answer.into())).await.is_err() {
                            return;
                        }
                    }
                    let trailers = [("grpc-status", "0".to_owned()), ("x-rounds", format!("{rounds}"))];
                    let _ = sender.send(Frame::Trailers(trailers.into_iter().collect())).await;
                    sender.finish();
                });
                let mut response = Response::new(StatusCode::OK);
                response.head.append(Known::ContentType, "application/grpc");
                response.body = body;
                response
            };
            let chat = |request| chat(request);
            let (_, ()) = beside(&http2(Limits::gateway()), &chat, |io| async move {
                let conn = dial(io).await;
                let (mut sender, upload) = Body::channel(1);
                let mut head = Head::request(Method::POST, "app", "/pkg.Svc/Chat");
                head.append(Known::Te, "trailers");
                let mut response = conn.send(Request { head, body: upload }).await.expect("an answer");
                for round in 0..10 {
                    // Idle streams live, at gateways too.
                    tokio::time::sleep(Duration::from_secs(600)).await;
                    sender.send(Frame::Data(Bytes::from(format!("{round}")))).await.expect("a reader");
                    match response.body.next_frame().await {
                        Some(Ok(Frame::Data(data))) => assert_eq!(data, format!("re:{round}")),
                        other => panic!("{other:?}"),
                    }
                }
                sender.finish();
                match response.body.next_frame().await {
                    Some(Ok(Frame::Trailers(trailers))) => {
                        assert_eq!(trailers.get_str(Known::GrpcStatus), Some("0"));
                        assert_eq!(trailers.get_str("x-rounds"), Some("10"));
                    }
                    other => panic!("{other:?}"),
                }
                assert!(response.body.next_frame().await.is_none());
            })
            .await;
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_trailers_only_answer_has_no_body() {
    LocalSet::new()
        .run_until(async {
            let refuse = async |_: Request| {
                let mut response = Response::new(StatusCode::OK);
                response.head.append(Known::GrpcStatus, "7");
                response
            };
            let refuse = |request| refuse(request);
            let (_, ()) = beside(&http2(Limits::sidecar()), &refuse, |io| async move {
                let response =
                    dial(io).await.send(post("/s/M", Shape::Streamed(10))).await.expect("an answer");
                assert_eq!(response.head.get_str(Known::GrpcStatus), Some("7"));
                assert_eq!(read(response.body).await, Ok((Bytes::new(), None)));
            })
            .await;
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn the_first_bytes_tell_the_protocol() {
    LocalSet::new()
        .run_until(async {
            let serve = server(Protocol::Detect, Limits::sidecar());
            let (_, ()) = beside(&serve, &echo, |io| async move {
                let response = dial(io).await.send(post("/2", Shape::Full(3))).await.expect("an answer");
                assert_eq!(response.head.get_str("x-path"), Some("/2"));
            })
            .await;
            for text in
                ["GET /1 HTTP/1.1\nhost: a\n\n", "PUT /1 HTTP/1.1\nhost: a\n\n", "P /1 HTTP/1.1\nhost: a\n\n"]
            {
                let (_, got) = beside(&serve, &echo, |io| talk(io, text)).await;
                assert!(got.starts_with("HTTP/1.1 200 OK\nx-path: /1\n"), "{text}: {got}");
            }
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn draining_says_goaway_and_lets_streams_finish() {
    LocalSet::new()
        .run_until(async {
            let slow = async |request: Request| {
                tokio::time::sleep(Duration::from_secs(10)).await;
                echo(request).await
            };
            let slow = |request| slow(request);
            let (near, far) = tokio::io::duplex(4096);
            let serve = http2(Limits::sidecar());
            let ask = async {
                let conn = dial(near).await;
                let first = conn.send(post("/1", Shape::Full(4)));
                let late = async {
                    tokio::time::sleep(Duration::from_secs(7)).await;
                    assert!(!conn.is_open(), "the peer is going away");
                    conn.send(post("/2", Shape::Empty)).await
                };
                let (first, late) = tokio::join!(first, late);
                assert_eq!(read(first.expect("an answer").body).await, Ok(content(Shape::Full(4))));
                let late = late.expect_err("too late");
                assert!(late.never_seen(), "{late:?}");
            };
            let (end, ()) =
                tokio::join!(serve.run(far, tokio::time::sleep(Duration::from_secs(5)), &slow), ask);
            assert!(matches!(end, ConnEnd::Drained), "{end:?}");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn no_more_streams_run_than_the_limit_allows() {
    LocalSet::new()
        .run_until(async {
            let running = Rc::new(Cell::new(0));
            let most = Rc::new(Cell::new(0));
            let slow = async |_: Request| {
                let _permit = Permit::take(&running);
                most.set(most.get().max(running.get()));
                tokio::time::sleep(Duration::from_secs(1)).await;
                Response::new(StatusCode::OK)
            };
            let slow = |request| slow(request);
            let limits = Limits { h2_streams: 3, ..Limits::sidecar() };
            let (_, refused) = beside(&http2(limits), &slow, |io| async move {
                let conn = dial(io).await;
                // The first exchange lets the peer's settings arrive.
                conn.send(post("/", Shape::Empty)).await.expect("an answer");
                let all = (0..10).map(|_| conn.send(post("/", Shape::Empty)));
                let all = futures::future::join_all(all).await;
                all.into_iter().filter(|result| matches!(result, Err(error) if error.kind == SendErrorKind::TooManyStreams && error.never_seen())).count()
            })
            .await;
            assert_eq!((refused, most.get(), running.get()), (7, 3, 0));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_reset_stream_drops_its_handler_at_once() {
    LocalSet::new()
        .run_until(async {
            let permits = Rc::new(Cell::new(0));
            let never = async |_: Request| {
                let _permit = Permit::take(&permits);
                std::future::pending::<Response>().await
            };
            let never = |request| never(request);
            let permits = &permits;
            let (_, ()) = beside(&http2(Limits::sidecar()), &never, |io| async move {
                let conn = dial(io).await;
                let send = conn.send(post("/", Shape::Streamed(10)));
                assert!(tokio::time::timeout(Duration::from_secs(1), send).await.is_err());
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert_eq!((permits.get(), conn.in_flight()), (0, 0));
            })
            .await;
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_dropped_half_way_resets_its_stream_and_frees_its_place() {
    LocalSet::new()
        .run_until(async {
            let ended = Rc::new(RefCell::new(Vec::new()));
            struct Ends(Rc<RefCell<Vec<BodyEnd>>>);
            impl BodyWatch for Ends {
                fn end(&self, end: BodyEnd) {
                    self.0.borrow_mut().push(end);
                }
            }
            let endless = async |_: Request| {
                let (mut sender, body) = Body::channel(1);
                tokio::task::spawn_local(async move {
                    while sender.send(Frame::Data(Bytes::from_static(b"more"))).await.is_ok() {}
                });
                let body = body.watch(Rc::new(Ends(Rc::clone(&ended))));
                Response { body, ..Response::new(StatusCode::OK) }
            };
            let endless = |request| endless(request);
            let ended = &ended;
            let (_, ()) = beside(&http2(Limits::sidecar()), &endless, |io| async move {
                let conn = dial(io).await;
                let mut response = conn.send(post("/", Shape::Empty)).await.expect("an answer");
                response.body.next_frame().await.expect("a frame").expect("data");
                drop(response);
                assert_eq!(conn.in_flight(), 0);
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert_eq!(*ended.borrow(), [BodyEnd::Dropped]);
                assert!(conn.is_open());
            })
            .await;
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_slow_is_waited_for_and_holds_little() {
    LocalSet::new()
        .run_until(async {
            let given = Rc::new(Cell::new(0usize));
            let count = Rc::clone(&given);
            struct Counts(Rc<Cell<usize>>);
            impl BodyWatch for Counts {
                fn data(&self, bytes: usize) {
                    self.0.set(self.0.get() + bytes);
                }
                fn end(&self, _: BodyEnd) {}
            }
            let large = async |_: Request| {
                let body = body(Shape::Streamed(4 << 20)).watch(Rc::new(Counts(Rc::clone(&count))));
                Response { body, ..Response::new(StatusCode::OK) }
            };
            let large = |request| large(request);
            let limits = Limits { h2_stream_window: 65_535, ..Limits::upstream() };
            let (_, total) = beside(&http2(Limits::sidecar()), &large, |io| async move {
                let (conn, driver) =
                    h2::ClientConn::handshake(io, Rc::new(limits)).await.expect("a handshake");
                tokio::task::spawn_local(driver);
                let mut response = conn.send(post("/", Shape::Empty)).await.expect("an answer");
                let mut total = 0;
                let mut checked = false;
                while let Some(Ok(frame)) = response.body.next_frame().await {
                    if !checked {
                        checked = true;
                        tokio::time::sleep(Duration::from_secs(5)).await;
                        assert!(given.get() < 3 << 20, "the producer ran ahead: {}", given.get());
                    }
                    if let Frame::Data(data) = frame {
                        total += data.len();
                    }
                }
                total
            })
            .await;
            assert_eq!(total, 4 << 20);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_gives_no_window_loses_its_stream_in_time() {
    LocalSet::new()
        .run_until(async {
            let large = async |_: Request| Response {
                body: body(Shape::Full(100_000)),
                ..Response::new(StatusCode::OK)
            };
            let large = |request| large(request);
            let (near, far) = tokio::io::duplex(64 * 1024);
            let serve = http2(Limits::gateway());
            let ask = async {
                let mut builder = ::h2::client::Builder::new();
                let (send, connection) =
                    builder.initial_window_size(0).handshake::<_, Bytes>(near).await.expect("a handshake");
                tokio::task::spawn_local(async move {
                    let _ = connection.await;
                });
                let mut send = send.ready().await.expect("open");
                let request = http::Request::get("http://a/").body(()).expect("a request");
                let (response, _) = send.send_request(request, true).expect("open");
                let mut body = response.await.expect("a head").into_body();
                let started = Instant::now();
                let error = body.data().await.expect("not the end").expect_err("a reset");
                assert_eq!(error.reason(), Some(::h2::Reason::CANCEL));
                assert_eq!(started.elapsed().as_secs(), 30);
            };
            tokio::join!(serve.run(far, std::future::pending(), &large), ask);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_body_of_announced_length_may_not_stall_at_gateways_but_a_stream_may() {
    LocalSet::new()
        .run_until(async {
            for (announced, want) in [(true, "body made no progress in time"), (false, "whole")] {
                let reader = async |request: Request| match request.body.collect(100).await {
                    Ok(_) => Response::text(StatusCode::OK, "whole"),
                    Err(error) => Response::text(StatusCode::REQUEST_TIMEOUT, &error.to_string()),
                };
                let reader = |request| reader(request);
                let (_, ()) = beside(&http2(Limits::gateway()), &reader, |io| async move {
                    let (send, connection) = ::h2::client::handshake(io).await.expect("a handshake");
                    tokio::task::spawn_local(async move {
                        let _ = connection.await;
                    });
                    let mut send = send.ready().await.expect("open");
                    let mut request = http::Request::post("http://a/").body(()).expect("a request");
                    if announced {
                        request.headers_mut().insert("content-length", 4.into());
                    }
                    let (response, mut upload) = send.send_request(request, false).expect("open");
                    upload.send_data(Bytes::from_static(b"ab"), false).expect("open");
                    let rest = async {
                        tokio::time::sleep(Duration::from_secs(120)).await;
                        let _ = upload.send_data(Bytes::from_static(b"cd"), true);
                    };
                    let read = async {
                        let mut body = response.await.expect("a head").into_body();
                        body.data().await.expect("not the end").expect("data")
                    };
                    let (got, ()) = tokio::join!(read, rest);
                    assert_eq!(got, want);
                })
                .await;
            }
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_told_to_go_away() {
    LocalSet::new()
        .run_until(async {
            let (end, idle) = beside(&http2(Limits::gateway()), &echo, |io| async move {
                let conn = dial(io).await;
                conn.send(post("/", Shape::Empty)).await.expect("an answer");
                let started = Instant::now();
                while conn.is_open() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                started.elapsed().as_secs()
            })
            .await;
            assert!(matches!(end, ConnEnd::TimedOut(Phase::Idle)), "{end:?}");
            assert!((300..=302).contains(&idle), "{idle}");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_is_not_sent() {
    LocalSet::new()
        .run_until(async {
            let (_, ()) = beside(&http2(Limits::sidecar()), &echo, |io| async move {
                let mut head = Head::request(Method::GET, "app", "/ws");
                head.append(Known::Upgrade, "websocket");
                let error = dial(io).await.send(Request { head, body: Body::empty() }).await.expect_err("no");
                assert!(error.never_seen(), "{error}");
            })
            .await;
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_breaks_its_promises_fails_one_request() {
    LocalSet::new()
        .run_until(async {
            for (name, want) in [
                ("refused stream", SendErrorKind::RefusedStream),
                ("reset", SendErrorKind::Reset),
                ("closed", SendErrorKind::Io),
            ] {
                let (near, far) = tokio::io::duplex(4096);
                let upstream = async move {
                    let mut connection = ::h2::server::handshake(far).await.expect("a handshake");
                    let (_request, mut respond) =
                        connection.accept().await.expect("open").expect("a request");
                    match name {
                        "refused stream" => respond.send_reset(::h2::Reason::REFUSED_STREAM),
                        "reset" => respond.send_reset(::h2::Reason::INTERNAL_ERROR),
                        _ => return,
                    }
                    while connection.accept().await.is_some() {}
                };
                let ask = async {
                    let conn = dial(near).await;
                    let error = conn.send(post("/", Shape::Empty)).await.expect_err(name);
                    assert_eq!(error.kind, want, "{name}: {error}");
                    assert_eq!(error.never_seen(), want == SendErrorKind::RefusedStream, "{name}");
                    assert_eq!(conn.in_flight(), 0);
                };
                tokio::join!(upstream, ask);
            }
        })
        .await;
}

async fn poll_some<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(move |cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn cancelled_at_any_poll_streams_leave_nothing_behind() {
    let shapes = [Shape::Empty, Shape::Full(100_000), Shape::WithTrailers(20_000)];
    // Whose future is dropped: the proxy's, or the one that sends to it and reads the answer.
    for (shape, proxy_dropped) in shapes.into_iter().flat_map(|shape| [(shape, true), (shape, false)]) {
        let mut finished = false;
        for polls in 0..3000 {
            let (proxy_polls, asker_polls) =
                if proxy_dropped { (polls, usize::MAX) } else { (usize::MAX, polls) };
            let done = LocalSet::new()
                .run_until(async {
                    let permits = Rc::new(Cell::new(0));
                    let (near, app) = tokio::io::duplex(700);
                    let (middle_near, middle_far) = tokio::io::duplex(700);
                    let app_side = http2(Limits::sidecar());
                    let middle = http2(Limits::sidecar());
                    let ask = async move {
                        let Ok((conn, driver)) =
                            h2::ClientConn::handshake(middle_near, Rc::new(Limits::upstream())).await
                        else {
                            return;
                        };
                        tokio::task::spawn_local(driver);
                        if let Ok(response) = conn.send(post("/x", shape)).await {
                            let _ = read(response.body).await;
                        }
                    };
                    let ask = async { poll_some(ask, asker_polls).await.is_some() };
                    let serve_middle = async {
                        let upstream = dial(near).await;
                        let forward = async |request: Request| {
                            let _permit = Permit::take(&permits);
                            upstream
                                .send(request)
                                .await
                                .unwrap_or_else(|_| Response::new(StatusCode::BAD_GATEWAY))
                        };
                        let forward = |request| forward(request);
                        let done =
                            poll_some(middle.run(middle_far, std::future::pending(), &forward), proxy_polls)
                                .await;
                        assert_eq!(
                            (permits.get(), upstream.in_flight()),
                            (0, 0),
                            "{shape:?} after {polls} polls"
                        );
                        done.is_some()
                    };
                    let all = async {
                        tokio::join!(app_side.run(app, std::future::pending(), &echo), serve_middle, ask)
                    };
                    let (_, proxy_done, asker_done) =
                        tokio::time::timeout(Duration::from_secs(60), all).await.unwrap_or_else(|_| {
                            panic!("{shape:?} after {polls} polls: a connection was left open")
                        });
                    proxy_done && asker_done
                })
                .await;
            if done {
                finished = true;
                break;
            }
        }
        assert!(finished, "{shape:?}: never ran to its end");
    }
}
