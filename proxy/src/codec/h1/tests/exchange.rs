//! One exchange at a time: bodies, framing, 100-continue, upgrade, CONNECT.
//! In: handlers and clients of `testkit`. Out: sentences about behaviour.
//! Kept true: nothing here waits on wall time.
//! Not here: how long things may take (`lifetime`).

use super::*;

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
        let far = Counted { io: far, writes: Rc::clone(&writes), goodbyes: Rc::default() };
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
async fn what_leaves_is_framed_anew_whatever_came_in() {
    let start = "POST /p HTTP/1.1\nHost: App:80\n";
    for (came, left) in [
        ("\n", "content-length: 0\n\n"),
        ("Content-Length: 0\n\n", "content-length: 0\n\n"),
        ("Content-Length: 2\n\nhi", "content-length: 2\n\nhi"),
        ("X-A: 1\nContent-Length: 2\nX-B:\t2  \n\nhi", "x-a: 1\nx-b: 2\ncontent-length: 2\n\nhi"),
        ("Transfer-Encoding: CHUNKED\n\n0002;x=y\nhi\n000\n\n", "transfer-encoding: chunked\n\n2\nhi\n0\n\n"),
        (
            "Transfer-Encoding: chunked\n\n1\nh\n1\ni\n0\nX-Sum: 3\nContent-Length: 9\n\n",
            "transfer-encoding: chunked\n\n2\nhi\n0\nx-sum: 3\n\n",
        ),
        (
            "Connection: close, x-hop\nX-Hop: 1\nKeep-Alive: 5\nContent-Length: 2\n\nhi",
            "content-length: 2\n\nhi",
        ),
        ("Expect: 100-Continue\nContent-Length: 2\n\nhi", "content-length: 2\n\nhi"),
        ("TE: trailers\nContent-Length: 2\n\nhi", "te: trailers\nconnection: te\ncontent-length: 2\n\nhi"),
        (
            "Upgrade: h2c\nConnection: upgrade, http2-settings\nHTTP2-Settings: x\nContent-Length: 2\n\nhi",
            "content-length: 2\n\nhi",
        ),
        ("Trailer: x\nProxy-Connection: close\nContent-Length: 2\n\nhi", "content-length: 2\n\nhi"),
    ] {
        let (near, mut app) = tokio::io::duplex(4096);
        let upstream = RefCell::new(Some(client(near).0));
        let forward = async |request: Request| {
            let conn = upstream.borrow_mut().take().expect("one request");
            conn.send(request).await.unwrap_or_else(|_| Response::new(StatusCode::BAD_GATEWAY))
        };
        let forward = |request| forward(request);
        let want = format!("POST /p HTTP/1.1\nhost: App:80\n{left}");
        let application = async {
            let got = read_until(&mut app, &want).await;
            app.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("open");
            got
        };
        let serve = http1();
        let text = format!("{start}{came}");
        let (got, (_, answer)) = tokio::join!(application, beside(&serve, &forward, |io| talk(io, &text)));
        assert_eq!(got, want);
        assert!(answer.contains("HTTP/1.1 204 No Content\n"), "{came}: {answer}");
    }
}
