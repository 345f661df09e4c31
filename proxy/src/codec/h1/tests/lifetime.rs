//! How connections live and end: half-close, drain, deadlines, cancellation.
//! In: handlers and clients of `testkit`. Out: sentences about behaviour.
//! Kept true: nothing here waits on wall time.
//! Not here: what is exchanged (`exchange`).

use super::*;

#[tokio::test(start_paused = true)]
async fn a_client_that_has_closed_its_direction_still_gets_its_answer() {
    let slow = async |_: Request| {
        tokio::time::sleep(Duration::from_secs(60)).await;
        Response::text(StatusCode::OK, "late")
    };
    let slow = |request| slow(request);
    let (_, got) = beside(&http1(), &slow, |io| talk(io, "GET / HTTP/1.1\nhost: a\n\n")).await;
    assert!(got.ends_with("connection: close\n\nlate"), "{got}");

    // Where half-closing is not wanted, it takes the handler along.
    let strict = server(Protocol::Http1, Limits { half_close: false, ..Limits::sidecar() });
    let started = Instant::now();
    let (end, got) = beside(&strict, &slow, |io| talk(io, "GET / HTTP/1.1\nhost: a\n\n")).await;
    assert!(matches!(end, ConnEnd::Failed(_)) && got.is_empty(), "{end:?} {got}");
    assert!(started.elapsed() < Duration::from_secs(1));
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
    let shapes = [Shape::Empty, Shape::Full(100_000), Shape::Streamed(100_000), Shape::WithTrailers(20_000)];
    // Whose future is dropped: the proxy's, or the one that sends to it and reads the answer.
    for (shape, proxy_dropped) in shapes.into_iter().flat_map(|shape| [(shape, true), (shape, false)]) {
        let mut finished = false;
        for polls in 0..2000 {
            let (proxy_polls, asker_polls) =
                if proxy_dropped { (polls, usize::MAX) } else { (usize::MAX, polls) };
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
            let ask = async { poll_some(ask, asker_polls).await.is_some() };
            let serve_middle = async {
                let done =
                    poll_some(middle.run(middle_far, std::future::pending(), &forward), proxy_polls).await;
                // Gone, whether it ended or was dropped: no permit, no upstream connection out of its home.
                assert_eq!(permits.get(), 0, "{shape:?} after {polls} polls");
                let home = shelf.conns.borrow().len() + usize::from(upstream.borrow().is_some());
                shelf.conns.borrow_mut().clear();
                upstream.borrow_mut().take();
                (done.is_some(), home)
            };
            // The application's server ends only if the upstream connection was really closed.
            let (_, (proxy_done, home), asker_done) = tokio::time::timeout(Duration::from_secs(60), async {
                tokio::join!(serve_app.run(app, std::future::pending(), &echo), serve_middle, ask)
            })
            .await
            .unwrap_or_else(|_| panic!("{shape:?} after {polls} polls: a connection was left open"));
            if proxy_done && asker_done {
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

#[test]
fn a_client_that_resets_its_connection_takes_its_handler_along() {
    // Over real sockets: pipes have no reset. Nothing waits on the clock; the reset is what ends the connection.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        for answered in [false, true] {
            let permits = Rc::new(Cell::new(0));
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("bound");
            let asked = tokio::sync::Notify::new();
            let stuck = async |_: Request| {
                let permit = Permit::take(&permits);
                asked.notify_one();
                if !answered {
                    std::future::pending::<()>().await;
                }
                // A response that has begun and then says nothing.
                let source = Stuck { _permit: permit, begun: false };
                Response { body: Body::from_source(Box::new(source)), ..Response::new(StatusCode::OK) }
            };
            let stuck = |request| stuck(request);
            let client = async {
                let mut io = tokio::net::TcpStream::connect(address).await.expect("listening");
                io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("open");
                asked.notified().await;
                if answered {
                    let mut head = [0; 15];
                    io.read_exact(&mut head).await.expect("a head");
                }
                io.set_zero_linger().expect("a socket");
            };
            let serve = http1();
            let server = async {
                let (io, _) = listener.accept().await.expect("a client");
                serve.run(io, std::future::pending(), &stuck).await
            };
            let (end, ()) = tokio::join!(server, client);
            assert!(matches!(end, ConnEnd::Failed(_)), "{end:?}");
            assert_eq!(permits.get(), 0);
        }
    });
}

struct Stuck {
    _permit: Permit,
    begun: bool,
}

impl Source for Stuck {
    fn poll_frame(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if self.begun {
            return Poll::Pending;
        }
        self.begun = true;
        Poll::Ready(Some(Ok(Frame::Data(Bytes::from_static(b"begun")))))
    }
}
