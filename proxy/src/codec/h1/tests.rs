//! HTTP/1 connections in motion: server and client over pipes, on a paused clock.
//! In: handlers and clients of `testkit`. Out: sentences about behaviour.
//! Kept true: nothing here waits on wall time.
//! Not here: what single heads and bodies mean (`tests/raw_bytes`).

#![allow(clippy::large_futures, reason = "whole meshes in one future, once per test")]

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;

use crate::codec::testkit::*;
use crate::codec::*;

fn http1() -> Serve {
    server(Protocol::Http1, Limits::sidecar())
}

async fn echo(request: Request) -> Response {
    let mut response = Response::new(StatusCode::OK);
    response.head.append("x-path", request.head.path());
    response.body = request.body;
    response
}

async fn hello(_: Request) -> Response {
    Response::text(StatusCode::OK, "hello")
}

fn post(path: &str, shape: Shape) -> Request {
    Request { head: Head::request(Method::POST, "app", path), body: body(shape) }
}

#[tokio::test(start_paused = true)]
async fn bodies_of_every_shape_pass_both_ways_on_one_connection() {
    let (end, conns) = beside(&http1(), &echo, |io| async move {
        let (mut conn, shelf) = client(io);
        for shape in SHAPES {
            let response = conn.send(post("/e", shape)).await.expect("an answer");
            assert_eq!(response.head.get_str("x-path"), Some("/e"), "{shape:?}");
            assert_eq!(read(response.body).await, Ok(content(shape)), "{shape:?}");
            conn = shelf.conns.borrow_mut().pop().expect("the connection comes home");
            assert!(conn.is_open(), "{shape:?}");
        }
        shelf.conns.borrow().len()
    })
    .await;
    assert!(matches!(end, ConnEnd::Closed), "{end:?}");
    assert_eq!(conns, 0);
}

#[tokio::test(start_paused = true)]
async fn a_proxy_in_between_changes_no_body() {
    for shape in SHAPES {
        let (near, far) = tokio::io::duplex(4096);
        let app = http1();
        let upstream = RefCell::new(Some(client(near).0));
        let forward = async |request: Request| {
            let conn = upstream.borrow_mut().take().expect("one request");
            conn.send(request).await.expect("an answer")
        };
        let forward = |request| forward(request);
        let (middle_near, middle_far) = tokio::io::duplex(4096);
        let middle = http1();
        let serve_app = app.run(far, std::future::pending(), &echo);
        let serve_middle = middle.run(middle_far, std::future::pending(), &forward);
        let ask = async {
            let response = client(middle_near).0.send(post("/x", shape)).await.expect("an answer");
            assert_eq!(read(response.body).await, Ok(content(shape)), "{shape:?}");
        };
        tokio::join!(serve_app, serve_middle, ask);
    }
}

#[tokio::test(start_paused = true)]
async fn answers_without_a_body_have_none_on_the_wire() {
    for (status, method, shape, want) in [
        (200, "HEAD", Shape::Full(5), "HTTP/1.1 200 OK\ncontent-length: 5\n\n"),
        (200, "HEAD", Shape::Streamed(5), "HTTP/1.1 200 OK\n\n"),
        (204, "GET", Shape::Full(5), "HTTP/1.1 204 No Content\n\n"),
        (304, "GET", Shape::Full(5), "HTTP/1.1 304 Not Modified\ncontent-length: 5\n\n"),
        (304, "GET", Shape::Empty, "HTTP/1.1 304 Not Modified\n\n"),
        (200, "GET", Shape::Empty, "HTTP/1.1 200 OK\ncontent-length: 0\n\n"),
        (200, "GET", Shape::Full(2), "HTTP/1.1 200 OK\ncontent-length: 2\n\nff"),
        (200, "GET", Shape::Streamed(2), "HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n2\nss\n0\n\n"),
    ] {
        let answer = async |_: Request| {
            let mut response = Response::new(StatusCode::from_u16(status).expect("a status"));
            response.body = body(shape);
            response
        };
        let answer = |request| answer(request);
        let (_, got) = beside(&http1(), &answer, |mut io| async move {
            io.write_all(format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.expect("room");
            let first = read_until(&mut io, want).await;
            // The connection is at a message's start: the next answer follows at once.
            io.write_all(b"GET /2 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.expect("room");
            let second = read_all(&mut io).await;
            assert!(second.starts_with("HTTP/1.1 "), "{status} {method}: {second}");
            first
        })
        .await;
        assert_eq!(got, want, "{status} {method} {shape:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_answer_keeps_the_length_that_the_application_gave() {
    let answer = async |_: Request| {
        let mut response = Response::new(StatusCode::OK);
        response.head.append(Known::ContentLength, "1234");
        response
    };
    let answer = |request| answer(request);
    let (_, got) = beside(&http1(), &answer, |io| talk(io, "HEAD / HTTP/1.1\nhost: a\n\n")).await;
    assert_eq!(got, "HTTP/1.1 200 OK\ncontent-length: 1234\n\n");
}

#[tokio::test(start_paused = true)]
async fn an_unread_body_is_thrown_away_if_short_and_ends_the_connection_if_long() {
    for (length, sent, reused) in [(10, 10, true), (60_000, 60_000, true), (1_000_000, 60_000, false)] {
        let (_, reuse) = beside(&http1(), &hello, |mut io| async move {
            let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n");
            io.write_all(head.as_bytes()).await.expect("room");
            read_until(&mut io, "hello").await;
            io.write_all(&vec![b'x'; sent]).await.expect("room");
            let _ = io.write_all(b"GET /2 HTTP/1.1\r\nhost: a\r\n\r\n").await;
            read_until(&mut io, "hello").await.ends_with("hello")
        })
        .await;
        assert_eq!(reuse, reused, "{length}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_client_is_told_to_continue_when_the_handler_reads_and_not_before() {
    let ask = "POST / HTTP/1.1\nhost: a\nexpect: 100-continue\ncontent-length: 2\n\n";
    let (_, got) = beside(&http1(), &echo, |mut io| async move {
        io.write_all(ask.replace('\n', "\r\n").as_bytes()).await.expect("room");
        // The echo answers with the body it has not read, so its head comes first: no 100 after that.
        read_until(&mut io, "content-length: 2\nconnection: close\n\n").await
    })
    .await;
    assert!(got.starts_with("HTTP/1.1 200 OK\n"), "{got}");

    let reader = async |request: Request| {
        let (data, _) = request.body.collect(10).await.expect("a body");
        Response::text(StatusCode::OK, &String::from_utf8_lossy(&data))
    };
    let reader = |request| reader(request);
    let (_, got) = beside(&http1(), &reader, |mut io| async move {
        io.write_all(ask.replace('\n', "\r\n").as_bytes()).await.expect("room");
        assert_eq!(read_until(&mut io, "\n\n").await, "HTTP/1.1 100 Continue\n\n");
        io.write_all(b"hi").await.expect("room");
        read_until(&mut io, "hi").await
    })
    .await;
    assert!(got.starts_with("HTTP/1.1 200 OK\n") && !got.contains("close"), "{got}");

    // A handler that never reads: the body may or may not follow, so the connection ends.
    let (_, got) = beside(&http1(), &hello, |mut io| async move {
        io.write_all(ask.replace('\n', "\r\n").as_bytes()).await.expect("room");
        read_all(&mut io).await
    })
    .await;
    assert!(got.starts_with("HTTP/1.1 200 OK\n") && got.contains("connection: close"), "{got}");
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_joins_both_ends_and_loses_no_byte() {
    let (near, mut app) = tokio::io::duplex(4096);
    let upstream = RefCell::new(Some(client(near).0));
    let forward = async |request: Request| {
        let conn = upstream.borrow_mut().take().expect("one request");
        conn.send(request).await.expect("an answer")
    };
    let forward = |request| forward(request);
    let application = async {
        let seen = read_until(&mut app, "\n\n").await;
        assert_eq!(seen, "GET /ws HTTP/1.1\nhost: a\nx: 1\nconnection: upgrade\nupgrade: websocket\n\n");
        let answer =
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nfirst";
        app.write_all(answer).await.expect("room");
        assert_eq!(read_until(&mut app, "early late").await, "early late");
        app.write_all(b" second").await.expect("room");
        // The client's end of its direction arrives as such; ours is still open.
        assert_eq!(read_all(&mut app).await, "");
        app.write_all(b" third").await.expect("room");
        app.shutdown().await.expect("open");
    };
    let serve = http1();
    let ((end, got), ()) = tokio::join!(
        beside(&serve, &forward, |mut io| async move {
            io.write_all(b"GET /ws HTTP/1.1\r\nhost: a\r\nx: 1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nearly")
                .await
                .expect("room");
            let head = read_until(&mut io, "first").await;
            io.write_all(b" late").await.expect("room");
            io.shutdown().await.expect("open");
            head + &read_all(&mut io).await
        }),
        application,
    );
    assert_eq!(
        got,
        "HTTP/1.1 101 Switching Protocols\nconnection: upgrade\nupgrade: websocket\n\nfirst second third"
    );
    assert!(matches!(end, ConnEnd::Upgraded), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn a_protocol_switch_that_nobody_asked_for_is_a_bad_gateway() {
    let switch = async |_: Request| {
        let mut response = Response::new(StatusCode::SWITCHING_PROTOCOLS);
        response.upgraded = Some(Upgraded::new(tokio::io::duplex(1).0));
        response
    };
    let switch = |request| switch(request);
    let (_, got) = beside(&http1(), &switch, |io| talk(io, "GET / HTTP/1.1\nhost: a\n\n")).await;
    assert!(got.starts_with("HTTP/1.1 502 "), "{got}");
}

#[tokio::test(start_paused = true)]
async fn connect_joins_the_client_with_the_stream_that_the_handler_gives() {
    let serve = server(Protocol::Http1, Limits { allow_connect: true, ..Limits::sidecar() });
    let far_end: RefCell<Option<DuplexStream>> = RefCell::new(None);
    let connect = async |request: Request| {
        assert_eq!((request.head.authority(), request.head.path()), ("db:5432", ""));
        let (near, far) = tokio::io::duplex(64);
        *far_end.borrow_mut() = Some(far);
        Response::connected(Upgraded::new(near))
    };
    let connect = |request| connect(request);
    let far_end = &far_end;
    let (end, got) = beside(&serve, &connect, |mut io| async move {
        io.write_all(b"CONNECT db:5432 HTTP/1.1\r\nhost: db:5432\r\n\r\n").await.expect("room");
        let head = read_until(&mut io, "\n\n").await;
        let mut far = far_end.borrow_mut().take().expect("connected");
        far.write_all(b"pong").await.expect("room");
        io.write_all(b"ping").await.expect("room");
        let mut ping = [0; 4];
        far.read_exact(&mut ping).await.expect("open");
        drop(far);
        io.shutdown().await.expect("open");
        head + &read_all(&mut io).await
    })
    .await;
    assert_eq!(got, "HTTP/1.1 200 OK\n\npong");
    assert!(matches!(end, ConnEnd::Upgraded), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_closed_its_direction_still_gets_its_answer() {
    let slow = async |_: Request| {
        tokio::time::sleep(Duration::from_secs(60)).await;
        Response::text(StatusCode::OK, "late")
    };
    let slow = |request| slow(request);
    let (_, got) = beside(&http1(), &slow, |io| talk(io, "GET / HTTP/1.1\nhost: a\n\n")).await;
    assert!(got.ends_with("connection: close\n\nlate"), "{got}");
}

#[tokio::test(start_paused = true)]
async fn a_second_request_is_not_handled_before_the_first_is_answered() {
    let running = Rc::new(Cell::new(0));
    let most = Rc::new(Cell::new(0));
    let slow = async |_: Request| {
        let _permit = Permit::take(&running);
        most.set(most.get().max(running.get()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        Response::new(StatusCode::OK)
    };
    let slow = |request| slow(request);
    let pipeline = "GET / HTTP/1.1\nhost: a\n\n".repeat(20);
    let (_, got) = beside(&http1(), &slow, |io| talk(io, &pipeline)).await;
    assert_eq!(got.matches("200 OK").count(), 20);
    assert_eq!((most.get(), running.get()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn draining_closes_idle_connections_and_lets_a_request_finish() {
    let serve = http1();
    let slow = async |_: Request| {
        tokio::time::sleep(Duration::from_secs(10)).await;
        Response::text(StatusCode::OK, "done")
    };
    let slow = |request| slow(request);
    for (send, want) in [
        ("", ""),
        (
            "GET / HTTP/1.1\nhost: a\n\n",
            "HTTP/1.1 200 OK\ncontent-type: text/plain\ncontent-length: 4\nconnection: close\n\ndone",
        ),
    ] {
        let (mut near, far) = tokio::io::duplex(4096);
        let drain = tokio::time::sleep(Duration::from_secs(5));
        let started = Instant::now();
        let ask = async {
            near.write_all(send.replace('\n', "\r\n").as_bytes()).await.expect("room");
            let got = read_all(&mut near).await;
            drop(near);
            got
        };
        let (end, got) = tokio::join!(serve.run(far, drain, &slow), ask);
        assert_eq!(got, want);
        assert!(matches!(end, ConnEnd::Drained), "{end:?}");
        assert!(started.elapsed() <= Duration::from_secs(11));
    }
}

#[tokio::test(start_paused = true)]
async fn every_phase_has_its_deadline() {
    let limits = Limits::gateway();
    let stuck = async |request: Request| match request.head.path() {
        "/read" => match request.body.collect(1 << 20).await {
            Err(BodyError::TimedOut) => Response::new(StatusCode::REQUEST_TIMEOUT),
            other => Response::text(StatusCode::OK, &format!("{other:?}")),
        },
        "/big" => Response { body: body(Shape::Full(1 << 20)), ..Response::new(StatusCode::OK) },
        _ => Response::new(StatusCode::OK),
    };
    let stuck = |request| stuck(request);
    let detect = Protocol::Detect;
    for (name, protocol, send, phase, seconds, answer) in [
        ("silence before the protocol is known", detect, "", Some(Phase::Detect), 30, ""),
        ("half a preface", detect, "PRI * HT", Some(Phase::Detect), 30, ""),
        ("half a head", detect, "GET / HTTP/1.1\nho", Some(Phase::Head), 30, "408"),
        ("silence where http/1 is known", Protocol::Http1, "", Some(Phase::Idle), 300, ""),
        ("idle after an answer", detect, "GET / HTTP/1.1\nhost: a\n\n", Some(Phase::Idle), 300, "200"),
        (
            "a body that stops",
            detect,
            "POST /read HTTP/1.1\nhost: a\ncontent-length: 9\n\nabc",
            None,
            60,
            "408",
        ),
        (
            "an answer that nobody reads",
            detect,
            "GET /big HTTP/1.1\nhost: a\n\n",
            Some(Phase::Unread),
            30,
            "",
        ),
    ] {
        let serve = server(protocol, limits.clone());
        let started = Instant::now();
        let (near, far) = tokio::io::duplex(4096);
        let (mut from, mut to) = tokio::io::split(near);
        to.write_all(send.replace('\n', "\r\n").as_bytes()).await.expect("room");
        let end = serve.run(far, std::future::pending(), &stuck).await;
        let seconds_taken = started.elapsed().as_secs();
        assert!(
            seconds_taken >= seconds.min(30) && seconds_taken <= seconds + 1,
            "{name}: {seconds_taken} s"
        );
        match (phase, &end) {
            (Some(want), ConnEnd::TimedOut(got)) => assert_eq!(*got, want, "{name}"),
            (None, ConnEnd::Closed) => {}
            _ => panic!("{name}: {end:?}"),
        }
        let mut got = vec![0; 12];
        if !answer.is_empty() {
            from.read_exact(&mut got).await.expect("an answer");
            assert!(String::from_utf8_lossy(&got).ends_with(answer), "{name}: {got:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_but_steady_head_is_cut_at_its_deadline_and_streams_may_pause() {
    let (end, ()) = beside(&http1(), &hello, |mut io| async move {
        for byte in b"GET / HTTP/1.1\r\nhost: a\r\nx: 1234567890123456789\r\n\r\n" {
            if io.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
    .await;
    assert!(matches!(end, ConnEnd::TimedOut(Phase::Head)), "{end:?}");

    // A response that pauses for an hour between frames is none of the codec's business, nor is a request body in the mesh.
    let patient = async |mut request: Request| {
        let (mut sender, body) = Body::channel(1);
        let write = async move {
            while let Some(Ok(frame)) = request.body.next_frame().await {
                if sender.send(frame).await.is_err() {
                    return;
                }
            }
            sender.finish();
        };
        tokio::task::spawn_local(write);
        Response { body, ..Response::new(StatusCode::OK) }
    };
    let patient = |request| patient(request);
    tokio::task::LocalSet::new()
        .run_until(async {
            let (_, got) = beside(&http1(), &patient, |mut io| async move {
                io.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
                    .await
                    .expect("room");
                for _ in 0..3 {
                    tokio::time::sleep(Duration::from_secs(3600)).await;
                    io.write_all(b"2\r\nhi\r\n").await.expect("room");
                }
                io.write_all(b"0\r\n\r\n").await.expect("room");
                read_until(&mut io, "0\n\n").await
            })
            .await;
            assert_eq!(got.matches("\nhi\n").count(), 3, "{got}");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_never_looks_complete() {
    for chunked in [false, true] {
        let broken = async |_: Request| {
            let (mut sender, body) = Body::channel(2);
            sender.send(Frame::Data(Bytes::from_static(b"half"))).await.expect("a reader");
            drop(sender);
            let source = Lying { body, length: (!chunked).then_some(8) };
            Response { body: Body::from_source(Box::new(source)), ..Response::new(StatusCode::OK) }
        };
        let broken = |request| broken(request);
        let (_, error) = beside(&http1(), &broken, |io| async move {
            let response = client(io).0.send(post("/", Shape::Empty)).await;
            match response {
                Ok(response) => read(response.body).await.expect_err("half a body").to_string(),
                Err(error) => error.to_string(),
            }
        })
        .await;
        assert!(error.contains("closed"), "{error}");
    }
}

struct Lying {
    body: Body,
    length: Option<u64>,
}

impl Source for Lying {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        self.body.poll_frame(cx)
    }

    fn exact_len(&self) -> Option<u64> {
        self.length
    }
}

#[tokio::test(start_paused = true)]
async fn a_length_that_does_not_hold_breaks_the_connection() {
    for (length, said) in [(3u64, "more than was announced"), (9, "less than was announced")] {
        let lie = async |_: Request| {
            let source = Lying { body: Body::full("hello"), length: Some(length) };
            Response { body: Body::from_source(Box::new(source)), ..Response::new(StatusCode::OK) }
        };
        let lie = |request| lie(request);
        let (end, got) = beside(&http1(), &lie, |mut io| async move {
            io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n")
                .await
                .expect("room");
            read_all(&mut io).await
        })
        .await;
        assert!(matches!(end, ConnEnd::Closed), "{said}: {end:?}");
        assert!(got.matches("HTTP/1.1").count() <= 1 && !got.ends_with("hello"), "{said}: {got}");
    }
}

#[tokio::test(start_paused = true)]
async fn head_and_first_body_part_leave_in_one_write() {
    for (shape, most) in
        [(Shape::Empty, 1), (Shape::Full(100), 1), (Shape::Full(60_000), 1), (Shape::Full(3000), 1)]
    {
        let answer = async |_: Request| Response { body: body(shape), ..Response::new(StatusCode::OK) };
        let answer = |request| answer(request);
        let (mut near, far) = tokio::io::duplex(128 * 1024);
        let writes = Rc::new(Cell::new(0));
        let far = Counted { io: far, writes: Rc::clone(&writes) };
        let serve = http1();
        let ask = async {
            near.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("room");
            near.shutdown().await.expect("open");
            read_all(&mut near).await
        };
        tokio::join!(serve.run(far, std::future::pending(), &answer), ask);
        // A pipe without vectored writes would need one write per part.
        assert!(writes.get() <= most + 2, "{shape:?}: {} writes", writes.get());
        if !matches!(shape, Shape::Full(60_000)) {
            assert_eq!(writes.get(), most, "{shape:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_answer_may_come_before_the_request_has_ended() {
    let (near, mut app) = tokio::io::duplex(256);
    let (conn, shelf) = client(near);
    let (mut sender, upload) = Body::channel(1);
    let request = Request { head: Head::request(Method::POST, "app", "/chat"), body: upload };
    let chat = async {
        let mut response = conn.send(request).await.expect("an answer");
        let mut got = String::new();
        for round in 0..5 {
            sender.send(Frame::Data(Bytes::from(format!("q{round}")))).await.expect("a reader");
            match response.body.next_frame().await {
                Some(Ok(Frame::Data(data))) => got += &String::from_utf8_lossy(&data),
                other => panic!("{other:?}"),
            }
        }
        sender.finish();
        assert!(response.body.next_frame().await.is_none());
        got
    };
    let answer = async {
        let head = read_until(&mut app, "\n\n").await;
        assert!(head.contains("transfer-encoding: chunked"), "{head}");
        app.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.expect("room");
        for round in 0..5 {
            assert_eq!(read_until(&mut app, &format!("q{round}\n")).await, format!("2\nq{round}\n"));
            app.write_all(format!("2\r\na{round}\r\n").as_bytes()).await.expect("room");
        }
        assert_eq!(read_until(&mut app, "0\n\n").await, "0\n\n");
        app.write_all(b"0\r\n\r\n").await.expect("room");
    };
    let (got, ()) = tokio::join!(chat, answer);
    assert_eq!(got, "a0a1a2a3a4");
    assert_eq!(shelf.conns.borrow().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_upload_goes_on_while_nobody_reads_the_answer() {
    // The application answers at once with more than fits, and only then reads: without progress on both sides all would stand still.
    let (near, app) = tokio::io::duplex(1024);
    let upstream = RefCell::new(Some(client(near).0));
    let forward = async |request: Request| {
        let conn = upstream.borrow_mut().take().expect("one request");
        conn.send(request).await.expect("an answer")
    };
    let forward = |request| forward(request);
    let application = async {
        let (mut from, mut to) = tokio::io::split(app);
        let write = async {
            to.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n").await.expect("open");
            to.write_all(&vec![b'a'; 100_000]).await.expect("open");
        };
        let read = async {
            let mut all = vec![0; 100_000];
            from.read_exact(&mut all).await.expect("open");
        };
        tokio::join!(write, read);
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    let serve = http1();
    let (mut near, far) = tokio::io::duplex(1024);
    let ask = async {
        near.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 110000\r\n\r\n").await.expect("open");
        near.write_all(&vec![b'q'; 110_000]).await.expect("open");
        let mut answer = vec![0; 100_000];
        near.read_exact(&mut answer).await.expect("open");
        drop(near);
    };
    let all = async { tokio::join!(serve.run(far, std::future::pending(), &forward), application, ask) };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("nothing stands still");
}

/// What an upstream's bytes must come to.
enum Upstream {
    /// This body, and whether the connection is kept.
    Body(&'static str, bool),
    /// Sending fails so; whether an answer had begun.
    Fails(SendErrorKind, bool),
    /// The head comes, the body breaks.
    Breaks,
}

#[tokio::test(start_paused = true)]
async fn upstream_answers_are_judged_as_strictly_as_requests() {
    use SendErrorKind::{Closed, Protocol as Bad};
    use Upstream::{Body as Good, Breaks, Fails};
    for (name, answer, want) in [
        ("length", "HTTP/1.1 200 OK\ncontent-length: 2\n\nhi", Good("hi", true)),
        ("chunks", "HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n2\nhi\n0\n\n", Good("hi", true)),
        ("no reason phrase", "HTTP/1.1 200\ncontent-length: 0\n\n", Good("", true)),
        ("until close", "HTTP/1.1 200 OK\n\nhi", Good("hi", false)),
        ("http/1.0", "HTTP/1.0 200 OK\ncontent-length: 2\n\nhi", Good("hi", false)),
        ("asked to close", "HTTP/1.1 200 OK\ncontent-length: 2\nconnection: close\n\nhi", Good("hi", false)),
        ("204", "HTTP/1.1 204 No Content\n\n", Good("", true)),
        ("204 with a body", "HTTP/1.1 204 No Content\ncontent-length: 2\n\nhi", Good("", false)),
        ("304 with a length", "HTTP/1.1 304 Not Modified\ncontent-length: 2\n\n", Good("", true)),
        ("bytes behind the body", "HTTP/1.1 200 OK\ncontent-length: 2\n\nhi!", Good("hi", false)),
        (
            "interim first",
            "HTTP/1.1 100 Continue\n\nHTTP/1.1 103 Early Hints\nlink: x\n\nHTTP/1.1 200 OK\ncontent-length: 2\n\nhi",
            Good("hi", true),
        ),
        (
            "switch that was not asked for",
            "HTTP/1.1 101 Switching Protocols\nupgrade: x\n\n",
            Fails(Bad, true),
        ),
        ("nothing", "", Fails(Closed, false)),
        ("half a head", "HTTP/1.1 200 OK\nconte", Fails(Closed, true)),
        ("body cut short", "HTTP/1.1 200 OK\ncontent-length: 3\n\nhi", Breaks),
        ("chunks cut short", "HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n2\nhi\n", Breaks),
        ("bad chunk", "HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n+2\nhi\n0\n\n", Breaks),
        (
            "length and coding",
            "HTTP/1.1 200 OK\ncontent-length: 2\ntransfer-encoding: chunked\n\n2\nhi\n0\n\n",
            Fails(Bad, true),
        ),
        ("two lengths", "HTTP/1.1 200 OK\ncontent-length: 2\ncontent-length: 2\n\nhi", Fails(Bad, true)),
        ("odd length", "HTTP/1.1 200 OK\ncontent-length: +2\n\nhi", Fails(Bad, true)),
        ("unknown coding", "HTTP/1.1 200 OK\ntransfer-encoding: gzip\n\nhi", Fails(Bad, true)),
        ("folded line", "HTTP/1.1 200 OK\nx: 1\n 2\ncontent-length: 2\n\nhi", Fails(Bad, true)),
        ("space before colon", "HTTP/1.1 200 OK\ncontent-length : 2\n\nhi", Fails(Bad, true)),
        ("other protocol", "ICY 200 OK\n\n", Fails(Bad, true)),
        ("status 99", "HTTP/1.1 099 X\n\n", Fails(Bad, true)),
        ("status 600", "HTTP/1.1 600 X\n\n", Fails(Bad, true)),
        ("status of two digits", "HTTP/1.1 20 X\n\n", Fails(Bad, true)),
        ("http/2 version", "HTTP/2.0 200 OK\n\n", Fails(Bad, true)),
    ] {
        let (near, mut far) = tokio::io::duplex(4096);
        let (conn, shelf) = client(near);
        let upstream = async {
            read_until(&mut far, "\n\n").await;
            far.write_all(answer.replace('\n', "\r\n").as_bytes()).await.expect("room");
            if !matches!(want, Good(_, true)) {
                far.shutdown().await.expect("open");
            }
            far
        };
        let send = async {
            match conn.send(Request { head: Head::request(Method::GET, "a", "/"), body: Body::empty() }).await
            {
                Ok(response) => Ok(response.body.collect(100).await),
                Err(error) => Err(error),
            }
        };
        let (_far, got) = tokio::join!(upstream, send);
        let kept = !shelf.conns.borrow().is_empty();
        match (want, got) {
            (Good(body, keep), Ok(Ok((got, _)))) => {
                assert_eq!((&got[..], kept), (body.as_bytes(), keep), "{name}");
            }
            (Fails(kind, answered), Err(error)) => {
                assert_eq!(
                    (error.kind, error.wrote, error.answered, kept),
                    (kind, true, answered, false),
                    "{name}: {error}"
                );
                assert!(!error.never_seen(), "{name}");
            }
            (Breaks, Ok(Err(_))) => assert!(!kept, "{name}"),
            (_, got) => panic!("{name}: {got:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_interim_answers_ends() {
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    let conn = client(near).0;
    far.write_all("HTTP/1.1 102 Processing\r\n\r\n".repeat(1000).as_bytes()).await.expect("room");
    let error = conn.send(post("/", Shape::Empty)).await.expect_err("refused");
    assert_eq!(error.kind, SendErrorKind::Protocol);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_died_while_idle_gives_the_request_back_or_says_that_it_was_written() {
    // Seen before use: not open, and a send gives the request back.
    let (near, far) = tokio::io::duplex(64);
    let (conn, _shelf) = client(near);
    assert!(conn.is_open());
    drop(far);
    assert!(!conn.is_open());
    let error = conn.send(post("/x", Shape::Full(3))).await.expect_err("closed");
    assert!(!error.answered, "{error}");

    // Stray bytes on an idle connection make it unusable.
    let (near, mut far) = tokio::io::duplex(64);
    let (conn, _shelf) = client(near);
    far.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.expect("room");
    assert!(!conn.is_open());
}

#[tokio::test(start_paused = true)]
async fn a_request_body_that_breaks_closes_the_upstream_connection() {
    let (near, mut far) = tokio::io::duplex(1024);
    let (conn, shelf) = client(near);
    let (mut sender, upload) = Body::channel(1);
    let request = Request { head: Head::request(Method::POST, "app", "/"), body: upload };
    let feed = async {
        sender.send(Frame::Data(Bytes::from_static(b"half"))).await.expect("a reader");
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(sender);
    };
    let (error, ()) = tokio::join!(conn.send(request), feed);
    assert_eq!(error.expect_err("broken").kind, SendErrorKind::RequestBody);
    let seen = read_all(&mut far).await;
    assert!(seen.ends_with("4\nhalf\n"), "no last chunk: {seen}");
    assert!(shelf.conns.borrow().is_empty());
}

/// Polls a future up to `polls` times, letting others run in between, then drops it.
async fn poll_some<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(move |cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn cancelled_at_any_poll_a_proxied_exchange_leaves_nothing_behind() {
    for shape in [Shape::Empty, Shape::Full(100_000), Shape::Streamed(100_000), Shape::WithTrailers(20_000)] {
        let mut finished = false;
        for polls in 0..2000 {
            let permits = Rc::new(Cell::new(0));
            let (near, app) = tokio::io::duplex(700);
            let (conn, shelf) = client(near);
            let upstream = RefCell::new(Some(conn));
            let forward = async |request: Request| {
                let _permit = Permit::take(&permits);
                let Some(conn) = upstream.borrow_mut().take() else { return Response::abort() };
                conn.send(request).await.unwrap_or_else(|_| Response::new(StatusCode::BAD_GATEWAY))
            };
            let forward = |request| forward(request);
            let (middle_near, middle_far) = tokio::io::duplex(700);
            let middle = http1();
            let serve_app = http1();
            let asker = client(middle_near).0;
            let ask = async {
                if let Ok(response) = asker.send(post("/x", shape)).await {
                    let _ = read(response.body).await;
                }
            };
            let serve_middle = async {
                let done = poll_some(middle.run(middle_far, std::future::pending(), &forward), polls).await;
                // Gone, whether it ended or was dropped: no permit, no upstream connection out of its home.
                assert_eq!(permits.get(), 0, "{shape:?} after {polls} polls");
                let home = shelf.conns.borrow().len() + usize::from(upstream.borrow().is_some());
                shelf.conns.borrow_mut().clear();
                upstream.borrow_mut().take();
                (done.is_some(), home)
            };
            // The application's server ends only if the upstream connection was really closed.
            let (_, (done, home), ()) = tokio::time::timeout(Duration::from_secs(60), async {
                tokio::join!(serve_app.run(app, std::future::pending(), &echo), serve_middle, ask)
            })
            .await
            .unwrap_or_else(|_| panic!("{shape:?} after {polls} polls: a connection was left open"));
            if done {
                assert_eq!(home, 1, "{shape:?}: the upstream connection came home");
                finished = true;
                break;
            }
        }
        assert!(finished, "{shape:?}: never ran to its end");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_kept_after_its_connection_has_gone_reads_nothing() {
    let kept: RefCell<Option<Body>> = RefCell::new(None);
    let keep = async |request: Request| {
        *kept.borrow_mut() = Some(request.body);
        Response::new(StatusCode::OK)
    };
    let keep = |request| keep(request);
    let (_, ()) = beside(&http1(), &keep, |mut io| async move {
        io.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello").await.expect("room");
        read_until(&mut io, "content-length: 0\n\n").await;
        // The next request works though the old body was never read.
        io.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nworld").await.expect("room");
        read_until(&mut io, "content-length: 0\n\n").await;
    })
    .await;
    let mut body = kept.borrow_mut().take().expect("kept");
    assert!(matches!(body.next_frame().await, Some(Err(BodyError::Closed))));
    assert!(body.next_frame().await.is_none());
}

#[test]
fn an_idle_deadline_costs_no_timer_per_request() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut deadline = crate::codec::timer::Deadline::default();
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..100 {
            deadline.set(Some(Instant::now() + Duration::from_secs(10)));
            assert!(deadline.poll(&mut cx).is_pending());
            tokio::time::advance(Duration::from_secs(9)).await;
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(deadline.poll(&mut cx).is_ready());
    });
}

#[tokio::test(start_paused = true)]
async fn an_http10_client_gets_what_it_understands() {
    let limits = Limits { allow_http10: true, ..Limits::sidecar() };
    for (ask, shape, want) in [
        ("GET / HTTP/1.0\n\n", Shape::Full(2), "HTTP/1.1 200 OK\ncontent-length: 2\nconnection: close\n\nff"),
        ("GET / HTTP/1.0\nhost: a\n\n", Shape::Streamed(2), "HTTP/1.1 200 OK\nconnection: close\n\nss"),
        (
            "GET / HTTP/1.0\nconnection: keep-alive\n\n",
            Shape::Full(2),
            "HTTP/1.1 200 OK\ncontent-length: 2\nconnection: keep-alive\n\nff",
        ),
    ] {
        let answer = async |_: Request| Response { body: body(shape), ..Response::new(StatusCode::OK) };
        let answer = |request| answer(request);
        let serve = server(Protocol::Http1, limits.clone());
        let (_, got) = beside(&serve, &answer, |mut io| async move {
            io.write_all(ask.replace('\n', "\r\n").as_bytes()).await.expect("room");
            read_until(&mut io, want).await
        })
        .await;
        assert_eq!(got, want, "{ask}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_costs_little_memory_before_it_speaks() {
    let (_near, far) = tokio::io::duplex(64);
    let serve = server(Protocol::Detect, Limits::sidecar());
    let run = serve.run(far, std::future::pending(), &hello);
    let size = std::mem::size_of_val(&run);
    assert!(size <= 1024, "a silent connection's future has {size} bytes");
}

#[tokio::test(start_paused = true)]
async fn a_body_deadline_of_one_request_is_not_held_against_the_next() {
    let limits = Limits { body_timeout: Some(Duration::from_secs(5)), ..Limits::sidecar() };
    let lenient = async |request: Request| match request.body.collect(100).await {
        Ok(_) => Response::text(StatusCode::OK, "whole"),
        Err(error) => Response::text(StatusCode::REQUEST_TIMEOUT, &error.to_string()),
    };
    let lenient = |request| lenient(request);
    let serve = server(Protocol::Http1, limits);
    let (_, got) = beside(&serve, &lenient, |mut io| async move {
        let post = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n";
        io.write_all(post).await.expect("room");
        let first = read_until(&mut io, "in time").await;
        // The rest of the first body comes late but little; the connection lives on.
        io.write_all(b"hi").await.expect("room");
        io.write_all(post).await.expect("room");
        tokio::time::sleep(Duration::from_secs(3)).await;
        io.write_all(b"hi").await.expect("room");
        first + &read_until(&mut io, "whole").await
    })
    .await;
    assert!(got.starts_with("HTTP/1.1 408 ") && got.ends_with("whole"), "{got}");
}
