//! The client side: answers judged, uploads beside answers, connections reused or not.
//! In: handlers and clients of `testkit`. Out: sentences about behaviour.
//! Kept true: nothing here waits on wall time.
//! Not here: the server side (`exchange`).

use super::*;

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
    let (near, mut app) = tokio::io::duplex(1024);
    let upstream = RefCell::new(Some(client(near).0));
    let forward = async |request: Request| {
        let conn = upstream.borrow_mut().take().expect("one request");
        conn.send(request).await.expect("an answer")
    };
    let forward = |request| forward(request);
    let application = async {
        read_until(&mut app, "\n\n").await;
        let (mut from, mut to) = tokio::io::split(app);
        let write = async {
            to.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n").await.expect("open");
            to.write_all(&vec![b'a'; 100_000]).await.expect("open");
        };
        let read = async {
            let mut all = vec![0; 110_000];
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
    let storm = async {
        read_until(&mut far, "\n\n").await;
        far.write_all("HTTP/1.1 102 Processing\r\n\r\n".repeat(1000).as_bytes()).await.expect("room");
    };
    let (error, ()) = tokio::join!(conn.send(post("/", Shape::Empty)), storm);
    assert_eq!(error.expect_err("refused").kind, SendErrorKind::Protocol);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_died_while_idle_sends_nothing_or_says_that_it_was_written() {
    // Seen before use: not open, and a send sends nothing.
    let (near, far) = tokio::io::duplex(64);
    let (conn, _shelf) = client(near);
    assert!(conn.is_open());
    drop(far);
    assert!(!conn.is_open());
    let error = conn.send(post("/x", Shape::Full(3))).await.expect_err("closed");
    assert!(error.never_seen(), "{error}");

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

#[tokio::test(start_paused = true)]
async fn a_connection_says_goodbye_unless_its_exchange_is_cut_off() {
    for (name, answer, want) in [
        ("dropped while idle", None, 1),
        ("asked to close", Some("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi"), 1),
        ("answer dropped half-way", Some("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi"), 0),
    ] {
        let (near, mut far) = tokio::io::duplex(4096);
        let goodbyes = Rc::new(Cell::new(0));
        let near = Counted { io: near, writes: Rc::default(), goodbyes: Rc::clone(&goodbyes) };
        let (conn, _shelf) = client(near);
        match answer {
            None => drop(conn),
            Some(answer) => {
                let upstream = async {
                    read_until(&mut far, "\n\n").await;
                    far.write_all(answer.as_bytes()).await.expect("room");
                };
                let (response, ()) = tokio::join!(conn.send(post("/", Shape::Empty)), upstream);
                let mut body = response.expect("an answer").body;
                body.next_frame().await.expect("a frame").expect("data");
            }
        }
        assert_eq!(goodbyes.get(), want, "{name}");
        assert_eq!(read_all(&mut far).await, "", "{name}: closed either way");
    }
}
