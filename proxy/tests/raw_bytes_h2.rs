//! Raw frames against the HTTP/2 server: what is refused and how, and what the application behind it sees.
//! In: a table of header lists and frame sequences, written byte by byte. Out: what the peer gets back, and requests as a recording handler saw them.
//! Kept true: how the bytes arrive never changes what they mean; floods end the connection, not the memory.
//! Not here: streams in motion (`codec::h2::tests`), HTTP/1 (`raw_bytes`).

use std::cell::RefCell;
use std::rc::Rc;

use proxy::codec::{ConnEnd, Limits, Protocol, Request, Response, Scheme, Serve, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// HPACK without table and Huffman: literals, never indexed.
fn block(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0x10);
        integer(&mut out, name.len());
        out.extend_from_slice(name.as_bytes());
        integer(&mut out, value.len());
        out.extend_from_slice(value);
    }
    out
}

fn integer(out: &mut Vec<u8>, value: usize) {
    match u8::try_from(value) {
        Ok(value) if value < 127 => out.push(value),
        _ => {
            out.push(127);
            let mut rest = value - 127;
            while rest >= 128 {
                out.push(u8::try_from(rest % 128).expect("below 128") | 0x80);
                rest /= 128;
            }
            out.push(u8::try_from(rest).expect("below 128"));
        }
    }
}

/// What comes back on stream 1, or on the connection.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Got {
    Status(u16),
    Reset(u32),
    GoAway(u32),
    Nothing,
}

/// Plays bytes behind preface and settings in pieces of this size; gives what came back and what was seen.
async fn play(limits: Limits, bytes: &[u8], step: usize) -> (Got, Vec<String>, ConnEnd) {
    let (client, server) = tokio::io::duplex(1 << 20);
    let seen = Rc::new(RefCell::new(Vec::new()));
    let record = Rc::clone(&seen);
    let handler = move |request: Request| {
        let seen = Rc::clone(&record);
        async move {
            let head = request.head;
            let mut line =
                format!("{} {}://{}{}", head.method(), head.scheme().as_str(), head.authority(), head.path());
            for (name, value) in head.iter() {
                line += &format!(" {name}={}", value.escape_ascii());
            }
            match request.body.collect(1 << 20).await {
                Ok((body, trailers)) => {
                    if !body.is_empty() {
                        line += &format!(" |{}|", body.escape_ascii());
                    }
                    for (name, value) in trailers.iter().flat_map(|trailers| trailers.iter()) {
                        line += &format!(" {name}={}", value.escape_ascii());
                    }
                }
                Err(_) => line += " broken",
            }
            seen.borrow_mut().push(line);
            Response::new(StatusCode::OK)
        }
    };
    let serve = Serve { protocol: Protocol::Detect, scheme: Scheme::Http, limits: Rc::new(limits) };
    let client = async {
        let (mut from, mut to) = tokio::io::split(client);
        let all = [PREFACE, &frame(SETTINGS, 0, 0, &[]), bytes].concat();
        let send = async {
            for piece in all.chunks(step) {
                if to.write_all(piece).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            let _ = to.shutdown().await;
        };
        let mut answer = Vec::new();
        let read = async {
            let _ = from.read_to_end(&mut answer).await;
        };
        tokio::join!(send, read);
        answer
    };
    let (end, answer) = tokio::join!(serve.run(server, std::future::pending(), &handler), client);
    let seen = seen.borrow().clone();
    (first_word(&answer), seen, end)
}

/// The first frame that answers: HEADERS or RST_STREAM of a stream, or a GOAWAY with an error.
fn first_word(mut bytes: &[u8]) -> Got {
    while bytes.len() >= 9 {
        let length = usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2]);
        let kind = bytes[3];
        let payload = &bytes[9..(9 + length).min(bytes.len())];
        let code = |at: usize| {
            payload.get(at..at + 4).map_or(0, |code| u32::from_be_bytes([code[0], code[1], code[2], code[3]]))
        };
        match kind {
            HEADERS => return Got::Status(status(payload)),
            RST_STREAM => return Got::Reset(code(0)),
            GOAWAY if code(4) != 0 => return Got::GoAway(code(4)),
            _ => bytes = &bytes[(9 + length).min(bytes.len())..],
        }
    }
    Got::Nothing
}

/// The status at the start of a header block as `h2` writes it: indexed, or a literal with an indexed name.
fn status(block: &[u8]) -> u16 {
    match block {
        [0x88, ..] => 200,
        [0x89, ..] => 204,
        [0x8c, ..] => 400,
        [0x8d, ..] => 404,
        [0x8e, ..] => 500,
        [0x48, length, rest @ ..] => {
            let text = &rest[..usize::from(length & 0x7f)];
            match length & 0x80 {
                0 => std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).unwrap_or(1),
                _ => huffman_digits(text),
            }
        }
        _ => 0,
    }
}

/// Three digits in HPACK's Huffman code: 0, 1, 2 take five bits, 3 to 9 six.
fn huffman_digits(bytes: &[u8]) -> u16 {
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)).collect();
    let mut at = 0;
    let mut value = 0;
    for _ in 0..3 {
        let five = bits[at..at + 5].iter().fold(0, |sum, bit| sum * 2 + u16::from(*bit));
        if five <= 2 {
            value = value * 10 + five;
            at += 5;
        } else {
            let six = five * 2 + u16::from(bits[at + 5]);
            value = value * 10 + six - 0x19 + 3;
            at += 6;
        }
    }
    value
}

/// A header list.
type List = Vec<(&'static str, &'static [u8])>;

const GET: [(&str, &[u8]); 4] =
    [(":method", b"GET"), (":scheme", b"http"), (":authority", b"a"), (":path", b"/")];
const GOOD: &str = "GET http://a/";

/// The plain request with some fields replaced (by name) and others added.
fn with(changes: &[(&'static str, &'static [u8])]) -> List {
    let mut all: Vec<(&str, &[u8])> = GET
        .iter()
        .filter(|(name, _)| !changes.iter().any(|(changed, _)| changed == name))
        .map(|field| (field.0, field.1))
        .collect();
    let at = all.iter().take_while(|(name, _)| name.starts_with(':')).count();
    for (name, value) in changes.iter().rev().filter(|(name, _)| name.starts_with(':')) {
        all.insert(at, (name, value));
    }
    all.extend(changes.iter().filter(|(name, _)| !name.starts_with(':')));
    all
}

fn without(name: &str) -> List {
    GET.iter().filter(|(have, _)| *have != name).map(|field| (field.0, field.1)).collect()
}

#[tokio::test(start_paused = true)]
async fn heads_over_http2_obey_the_rules_of_heads_over_http1() {
    use Got::{GoAway, Reset, Status};
    let ok = Status(200);
    let bad = Status(400);
    let protocol = Reset(1);
    #[rustfmt::skip]
    let cases: Vec<(&str, List, Got, &str)> = vec![
        ("plain", with(&[]), ok, GOOD),
        ("https on plaintext, as peers forward it", with(&[(":scheme", b"https")]), ok, "GET https://a/"),
        ("host that agrees", with(&[("host", b"a")]), ok, GOOD),
        ("host that agrees in capitals", with(&[("host", b"A")]), ok, GOOD),
        ("host without authority", [without(":authority"), vec![("host", b"b")]].concat(), ok, "GET http://b/"),
        ("cookie crumbs", with(&[("cookie", b"a=1"), ("x", b"1"), ("cookie", b"b=2")]), ok, "GET http://a/ x=1 cookie=a=1; b=2"),
        ("te trailers", with(&[("te", b"trailers")]), ok, "GET http://a/ te=trailers"),
        ("path with query", with(&[(":path", b"/a?b=%20&c")]), ok, "GET http://a/a?b=%20&c"),
        ("options asterisk", with(&[(":method", b"OPTIONS"), (":path", b"*")]), ok, "OPTIONS http://a*"),
        ("expect", with(&[("expect", b"100-continue")]), ok, GOOD),
        ("bytes above 0x7f in a value", with(&[("x", b"\xe4")]), ok, "GET http://a/ x=\\xe4"),
        ("host that differs", with(&[("host", b"b")]), bad, ""),
        ("host with another port", with(&[("host", b"a:80")]), bad, ""),
        ("two hosts", with(&[("host", b"a"), ("host", b"a")]), bad, ""),
        ("neither host nor authority", without(":authority"), bad, ""),
        ("empty host without authority", [without(":authority"), vec![("host", b"")]].concat(), bad, ""),
        ("user in authority", with(&[(":authority", b"u@a")]), bad, ""),
        ("comma in authority", with(&[(":authority", b"a,b")]), bad, ""),
        ("port 0 in authority", with(&[(":authority", b"a:0")]), bad, ""),
        ("odd scheme", with(&[(":scheme", b"ftp")]), bad, ""),
        ("scheme in capitals", with(&[(":scheme", b"HtTp")]), bad, ""),
        ("raw utf-8 in path", with(&[(":path", b"/\xc3\xa4")]), bad, ""),
        ("backslash in path", with(&[(":path", b"/a\\b")]), bad, ""),
        ("get asterisk", with(&[(":path", b"*")]), bad, ""),
        ("leading space in a value", with(&[("x", b" 1")]), bad, ""),
        ("trailing tab in a value", with(&[("x", b"1\t")]), bad, ""),
        ("underscore in a name", with(&[("x_y", b"1")]), bad, ""),
        ("connect", vec![(":method", b"CONNECT"), (":authority", b"a:443")], Status(405), ""),
        ("trace", with(&[(":method", b"TRACE")]), Status(405), ""),
        ("other expectation", with(&[("expect", b"y")]), Status(417), ""),
        ("space in path", with(&[(":path", b"/a b")]), protocol, ""),
        ("path without slash", with(&[(":path", b"a")]), protocol, ""),
        ("empty path", with(&[(":path", b"")]), protocol, ""),
        ("no path", without(":path"), protocol, ""),
        ("no scheme", without(":scheme"), protocol, ""),
        ("no method", without(":method"), protocol, ""),
        ("two paths", with(&[(":path", b"/"), (":path", b"/b")]), protocol, ""),
        ("unknown pseudo-header", with(&[(":foo", b"1")]), protocol, ""),
        ("status in a request", with(&[(":status", b"200")]), protocol, ""),
        ("pseudo-header behind a field", [with(&[]), vec![("x", b"1"), (":method", b"GET")]].concat(), protocol, ""),
        ("name in capitals", with(&[("X", b"1")]), protocol, ""),
        ("connection", with(&[("connection", b"close")]), protocol, ""),
        ("transfer-encoding", with(&[("transfer-encoding", b"chunked")]), protocol, ""),
        ("upgrade", with(&[("upgrade", b"h2c")]), protocol, ""),
        ("keep-alive", with(&[("keep-alive", b"1")]), protocol, ""),
        ("proxy-connection", with(&[("proxy-connection", b"1")]), protocol, ""),
        ("te gzip", with(&[("te", b"gzip")]), protocol, ""),
        ("crlf in a value", with(&[("x", b"1\r\ny: 2")]), protocol, ""),
        ("nul in a value", with(&[("x", b"\0")]), protocol, ""),
        ("length that the stream does not keep", with(&[("content-length", b"5")]), protocol, ""),
        ("length with plus", with(&[("content-length", b"+0")]), protocol, ""),
        ("crlf in method", with(&[(":method", b"GET / HTTP/1.1\r\nx:")]), protocol, ""),
        ("empty name", with(&[("", b"1")]), protocol, ""),
        ("101 fields", with(&[("x", &b"1"[..]); 101]), Status(431), ""),
        ("100 fields", with(&[("grpc-status", &b"1"[..]); 100]), ok, ""),
    ];
    let mut wrong = Vec::new();
    for (name, fields, want, want_seen) in &cases {
        let bytes = frame(HEADERS, 5, 1, &block(fields));
        for step in [1, 10, bytes.len() + 100] {
            let (got, seen, end) = play(Limits::sidecar(), &bytes, step).await;
            // Malformed heads may cost the stream or the whole connection.
            let agrees = got == *want || (*want == protocol && matches!(got, GoAway(1) | Status(400)));
            let saw = match (want, want_seen.is_empty()) {
                (Status(200), true) => seen.len() == 1,
                (Status(200), false) => seen == [*want_seen],
                _ => seen.is_empty(),
            };
            if !agrees || !saw {
                wrong.push(format!(
                    "{name} (pieces of {step}): {got:?}, saw {seen:?}, {end:?}; want {want:?} {want_seen:?}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[tokio::test(start_paused = true)]
async fn gateways_are_stricter() {
    #[rustfmt::skip]
    let cases: Vec<(&str, List)> = vec![
        ("https on plaintext", with(&[(":scheme", b"https")])),
        ("bytes above 0x7f in a value", with(&[("x", b"\xe4")])),
    ];
    for (name, fields) in cases {
        let (got, seen, _) = play(Limits::gateway(), &frame(HEADERS, 5, 1, &block(&fields)), 1000).await;
        assert_eq!((got, seen.len()), (Got::Status(400), 0), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn frames_out_of_order_are_refused_and_bodies_pass() {
    let post = block(&with(&[(":method", b"POST")]));
    let sized = block(&with(&[(":method", b"POST"), ("content-length", b"5")]));
    let get = block(&GET);
    let trailers = block(&[
        ("x-sum", b"1"),
        ("content-length", b"9"),
        ("x-forwarded-client-cert", b"c"),
        ("authorization", b"d"),
    ]);
    #[rustfmt::skip]
    let cases: Vec<(&str, Vec<u8>, Got, &[&str])> = vec![
        ("data", [frame(HEADERS, 4, 1, &post), frame(DATA, 1, 1, b"hello")].concat(), Got::Status(200), &["POST http://a/ |hello|"]),
        ("data in two frames", [frame(HEADERS, 4, 1, &sized), frame(DATA, 0, 1, b"he"), frame(DATA, 1, 1, b"llo")].concat(), Got::Status(200), &["POST http://a/ content-length=5 |hello|"]),
        ("trailers lose what would change the message", [frame(HEADERS, 4, 1, &post), frame(DATA, 0, 1, b"hi"), frame(HEADERS, 5, 1, &trailers)].concat(), Got::Status(200), &["POST http://a/ |hi| x-sum=1"]),
        ("continuation", [frame(HEADERS, 1, 1, &get[..9]), frame(CONTINUATION, 4, 1, &get[9..])].concat(), Got::Status(200), &[GOOD]),
        ("unknown frame types", [frame(0x4d, 0, 0, b"m"), frame(HEADERS, 5, 1, &get)].concat(), Got::Status(200), &[GOOD]),
        ("more than the length", [frame(HEADERS, 4, 1, &sized), frame(DATA, 1, 1, b"hello!")].concat(), Got::Reset(1), &[]),
        ("less than the length", [frame(HEADERS, 4, 1, &sized), frame(DATA, 1, 1, b"hell")].concat(), Got::Reset(1), &[]),
        ("pseudo-header in trailers, which h2 drops", [frame(HEADERS, 4, 1, &post), frame(HEADERS, 5, 1, &block(&[(":path", b"/b")]))].concat(), Got::Status(200), &["POST http://a/"]),
        ("data on stream 0", frame(DATA, 1, 0, b"x"), Got::GoAway(1), &[]),
        ("data on an idle stream", frame(DATA, 1, 1, b"x"), Got::GoAway(1), &[]),
        ("headers on an even stream", frame(HEADERS, 5, 2, &get), Got::GoAway(1), &[]),
        ("ping of 7 bytes", frame(PING, 0, 0, b"1234567"), Got::GoAway(1), &[]),
        ("settings of 5 bytes", frame(SETTINGS, 0, 0, b"12345"), Got::GoAway(1), &[]),
        ("frame larger than allowed", frame(DATA, 0, 1, &[0; 16_385]), Got::GoAway(6), &[]),
        ("window update of 0", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), Got::GoAway(1), &[]),
        ("interrupted continuation", [frame(HEADERS, 1, 1, &get), frame(PING, 0, 0, &[0; 8])].concat(), Got::GoAway(1), &[]),
        ("garbage in hpack", frame(HEADERS, 5, 1, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), Got::GoAway(1), &[]),
        ("push promise from a client", frame(5, 4, 1, &[0, 0, 0, 2]), Got::GoAway(1), &[]),
    ];
    let mut wrong = Vec::new();
    for (name, bytes, want, want_seen) in &cases {
        for step in [1, 13, bytes.len() + 100] {
            let (got, seen, end) = play(Limits::sidecar(), bytes, step).await;
            let seen: Vec<_> = seen.iter().filter(|line| !line.ends_with("broken")).collect();
            if got != *want || seen != *want_seen {
                wrong.push(format!(
                    "{name} (pieces of {step}): {got:?}, saw {seen:?}, {end:?}; want {want:?} {want_seen:?}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[tokio::test(start_paused = true)]
async fn floods_of_control_frames_end_the_connection() {
    let get = block(&GET);
    let opened = frame(HEADERS, 4, 1, &block(&with(&[(":method", b"POST")])));
    let reset: Vec<u8> = (0..10_000u32)
        .flat_map(|n| {
            [frame(HEADERS, 5, 2 * n + 1, &get), frame(RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8])].concat()
        })
        .collect();
    #[rustfmt::skip]
    let floods: Vec<(&str, Vec<u8>)> = vec![
        ("ping", frame(PING, 0, 0, &[7; 8]).repeat(10_000)),
        ("ping answers", frame(PING, 1, 0, &[7; 8]).repeat(10_000)),
        ("settings", frame(SETTINGS, 0, 0, &[]).repeat(10_000)),
        ("settings with values", frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255].repeat(10)).repeat(10_000)),
        ("settings of 2,000 values", frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 16, 0].repeat(2000))),
        ("priority", frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1]).repeat(10_000)),
        ("window updates", [opened.clone(), frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]).repeat(10_000)].concat()),
        ("unknown frames", frame(0x4d, 0, 0, b"m").repeat(10_000)),
        ("empty data", [opened.clone(), frame(DATA, 0, 1, &[]).repeat(10_000)].concat()),
        ("padding-only data", [opened, frame(DATA, 8, 1, &[3, 0, 0, 0]).repeat(40_000)].concat()),
        ("empty continuation", [frame(HEADERS, 1, 1, &get), frame(CONTINUATION, 0, 1, &[]).repeat(10_000)].concat()),
        ("continuation", [frame(HEADERS, 1, 1, &get), frame(CONTINUATION, 0, 1, &block(&[("x", &[b'x'; 1000])])).repeat(1000)].concat()),
        ("rapid reset", reset),
    ];
    for (name, bytes) in floods {
        let (got, seen, end) = play(Limits::sidecar(), &bytes, 16 * 1024).await;
        if name == "rapid reset" {
            assert!(seen.len() <= 100, "{name}: {} requests seen", seen.len());
            assert!(!matches!(end, ConnEnd::Closed), "{name}: {end:?}");
            continue;
        }
        assert!(matches!(got, Got::GoAway(_)), "{name}: {got:?}, {end:?}");
        assert!(seen.iter().all(|line| line.ends_with("broken")), "{name}: {seen:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn ordinary_control_frames_never_end_a_connection() {
    let get = block(&GET);
    // As many requests as one likes, each with a ping, a priority and an update.
    let mut busy = Vec::new();
    for n in 0..2000u32 {
        busy.extend(frame(HEADERS, 5, 2 * n + 1, &get));
        busy.extend(frame(PRIORITY, 0, 2 * n + 1, &[0, 0, 0, 0, 1]));
        busy.extend(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]));
        busy.extend(frame(PING, 0, 0, &[0; 8]));
    }
    let (_, seen, end) = play(Limits::sidecar(), &busy, 2000).await;
    assert_eq!(seen.len(), 2000, "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_grows_too_large_is_refused() {
    let value = vec![b'v'; 10_000];
    let fields: Vec<(&str, &[u8])> =
        GET.iter().map(|field| (field.0, field.1)).chain((0..7).map(|_| ("x", &value[..]))).collect();
    let whole = block(&fields);
    let mut bytes = Vec::new();
    for (at, part) in whole.chunks(16_000).enumerate() {
        let last = (at + 1) * 16_000 >= whole.len();
        let flags = if last { 4 } else { 0 };
        bytes.extend(match at {
            0 => frame(HEADERS, flags | 1, 1, part),
            _ => frame(CONTINUATION, flags, 1, part),
        });
    }
    let (got, seen, _) = play(Limits::sidecar(), &bytes, 5000).await;
    assert_eq!((got, seen.len()), (Got::Status(431), 0));
}

#[tokio::test(start_paused = true)]
async fn heads_that_wait_together_are_bounded() {
    // One large field goes into the table, then each head names it fifty times by one byte: a few bytes that would be megabytes.
    let large = [b"x".as_slice(), &[b'v'; 1000]].concat();
    let mut first = block(&with(&[(":method", b"POST")]));
    first.push(0x40);
    integer(&mut first, 1);
    first.push(b'x');
    integer(&mut first, large.len());
    first.extend_from_slice(&large);
    let mut later = block(&with(&[(":method", b"POST")]));
    later.extend([0xbe; 50]);
    let mut bytes = frame(HEADERS, 4, 1, &first);
    for n in 1..90u32 {
        bytes.extend(frame(HEADERS, 4, 2 * n + 1, &later));
    }
    let (got, _, _) = play(Limits::gateway(), &bytes, 1000).await;
    assert_eq!(got, Got::Status(431), "the later ones of 90 × 50 kB are refused");
    let (got, _, _) = play(Limits::gateway(), &bytes[..bytes.len() / 6], 1000).await;
    assert_ne!(got, Got::Status(431), "the first few are not");
}

#[tokio::test(start_paused = true)]
async fn phases_of_a_connection_have_deadlines() {
    for (name, sent) in [
        ("half a preface", PREFACE[..10].to_vec()),
        (
            "half a header block",
            [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, 1, 1, &block(&GET))].concat(),
        ),
        (
            "half a frame",
            [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, 5, 1, &block(&GET))[..12]].concat(),
        ),
    ] {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let serve =
            Serve { protocol: Protocol::Detect, scheme: Scheme::Http, limits: Rc::new(Limits::gateway()) };
        client.write_all(&sent).await.expect("room");
        let started = tokio::time::Instant::now();
        let handler = async |_: Request| Response::new(StatusCode::OK);
        let handler = |request| handler(request);
        let end = serve.run(server, std::future::pending(), &handler).await;
        assert!(matches!(end, ConnEnd::TimedOut(_)), "{name}: {end:?}");
        assert!((30..=32).contains(&started.elapsed().as_secs()), "{name}: {:?}", started.elapsed());
    }
}
