//! The attacks as data: what a hostile client writes, how long it stays, and whether it reads.
//!
//! In: nothing. Out: [`all`] of them. Kept true: each is bounded in connections, bytes and time; request paths begin with `/attack`, so that
//! the application's record tells them from the bystander's. Not here: running and measuring them (`measure`).

use std::time::Duration;

/// One attack, against a gateway's plaintext listener.
#[derive(Debug, Clone)]
pub struct Attack {
    /// Row of the attack list, e.g. `H2-01`.
    pub id: &'static str,
    /// What is sent.
    pub what: &'static str,
    /// Connections at once.
    pub connections: usize,
    /// Written first.
    pub opening: Vec<u8>,
    /// Written after it, one after the other; the argument is the number from 0.
    pub piece: fn(usize) -> Vec<u8>,
    /// How many pieces.
    pub pieces: usize,
    /// Pause between pieces.
    pub every: Duration,
    /// Whether the client reads what comes back.
    pub reads: bool,
    /// True when the proxy is given its 30 s to close; else five.
    pub patient: bool,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RESET: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const WINDOW: u8 = 8;
    pub const CONTINUATION: u8 = 9;
    pub const UNKNOWN: u8 = 0x4d;
}

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head as &[u8], &stream.to_be_bytes(), payload].concat()
}

/// The stream of the `n`th request.
fn stream(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(0) * 2 + 1
}

/// `GET path` or `POST path`, without table.
fn request(method: u8, path: &str) -> Vec<u8> {
    let length = u8::try_from(path.len()).unwrap_or(0);
    [&[method, 0x86, 0x01, 1, b'a', 0x04, length] as &[u8], path.as_bytes()].concat()
}

const GET: u8 = 0x82;
const POST: u8 = 0x83;

fn get(n: usize, path: &str) -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS | END_STREAM, stream(n), &request(GET, path))
}

fn post(n: usize, path: &str) -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS, stream(n), &request(POST, path))
}

/// The preface, settings with these parameters, and what follows.
fn h2(parameters: &[(u16, u32)], then: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (name, value) in parameters {
        payload.extend_from_slice(&name.to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    [PREFACE, &frame(kind::SETTINGS, 0, 0, &payload), then].concat()
}

/// A hundred frames, numbered on.
fn hundred(n: usize, one: impl Fn(usize) -> Vec<u8>) -> Vec<u8> {
    (n * 100..(n + 1) * 100).flat_map(one).collect()
}

/// A request whose block names one entry of 4,000 bytes this often.
fn bomb(n: usize, references: usize) -> Vec<u8> {
    let mut block = request(GET, "/hold/attack");
    if n == 0 {
        // Literal with indexing: name `x`, value of 4,000 bytes (127 + 3,873, as HPACK writes integers).
        block.extend_from_slice(&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
        block.extend_from_slice(&[b'v'; 4000]);
    }
    block.extend(std::iter::repeat_n(0xbe, references));
    frame(kind::HEADERS, END_HEADERS | END_STREAM, stream(n), &block)
}

const INITIAL_WINDOW: u16 = 4;
const TABLE_SIZE: u16 = 1;

/// All attacks, in the order of the list.
#[must_use]
pub fn all() -> Vec<Attack> {
    [over_http1(), slow(), streams(), frames(), memory()].concat()
}

const BASE: Attack = Attack {
    id: "",
    what: "",
    connections: 1,
    opening: Vec::new(),
    piece: |_| Vec::new(),
    pieces: 0,
    every: Duration::ZERO,
    reads: true,
    patient: false,
};

fn over_http1() -> Vec<Attack> {
    let get = b"GET /attack HTTP/1.1\r\nHost: a\r\n";
    let chunked = b"POST /attack HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    vec![
        Attack {
            id: "H1-10",
            what: "a head of 1 MiB",
            connections: 50,
            opening: [get as &[u8], b"x: "].concat(),
            piece: |_| vec![b'v'; 16 * 1024],
            pieces: 64,
            ..BASE
        },
        Attack {
            id: "H1-10",
            what: "10,000 fields",
            connections: 50,
            opening: get.to_vec(),
            piece: |_| b"x: 1\r\n".repeat(100),
            pieces: 100,
            ..BASE
        },
        Attack {
            id: "H1-10",
            what: "a target of 1 MiB",
            connections: 50,
            opening: b"GET /attack".to_vec(),
            piece: |_| vec![b'a'; 16 * 1024],
            pieces: 64,
            ..BASE
        },
        Attack {
            id: "H1-10",
            what: "1 MB in chunks of one byte",
            opening: chunked,
            piece: |n| if n == 999 { b"0\r\n\r\n".to_vec() } else { b"1\r\nx\r\n".repeat(1000) },
            pieces: 1000,
            ..BASE
        },
        Attack {
            id: "H1-10",
            what: "10,000 requests in a row, no answer read",
            connections: 10,
            piece: |_| b"GET /size/10000/attack HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100),
            pieces: 100,
            reads: false,
            ..BASE
        },
        Attack {
            id: "H1-10",
            what: "10,000 bad requests in a row, no answer read",
            connections: 10,
            piece: |_| b"GET attack HTTP/1.1\r\n\r\n".repeat(100),
            pieces: 100,
            reads: false,
            ..BASE
        },
    ]
}

fn slow() -> Vec<Attack> {
    let second = Duration::from_secs(1);
    vec![
        Attack { id: "H1-11", what: "silent", connections: 500, patient: true, ..BASE },
        Attack {
            id: "H1-11",
            what: "a head, one byte a second",
            connections: 500,
            opening: b"GET /attack HTTP/1.1\r\nHost: a\r\nx: ".to_vec(),
            piece: |_| b"v".to_vec(),
            pieces: 40,
            every: second,
            patient: true,
            ..BASE
        },
        Attack {
            id: "H1-11",
            what: "a body that stops after one byte",
            connections: 500,
            opening: b"POST /attack HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nx".to_vec(),
            patient: true,
            ..BASE
        },
        Attack {
            id: "H1-11",
            what: "answers of 10 MiB, never read",
            connections: 100,
            opening: b"GET /size/10485760/attack HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            reads: false,
            patient: true,
            ..BASE
        },
        Attack {
            id: "H2-00",
            what: "half a preface",
            connections: 200,
            opening: PREFACE[..10].to_vec(),
            patient: true,
            ..BASE
        },
    ]
}

/// A request, taken back at once.
fn reset(n: usize) -> Vec<u8> {
    [get(n, "/attack"), frame(kind::RESET, 0, stream(n), &8_u32.to_be_bytes())].concat()
}

fn streams() -> Vec<Attack> {
    let rapid = Attack {
        id: "H2-01",
        what: "20,000 × HEADERS and RST_STREAM",
        opening: h2(&[], &[]),
        piece: |n| hundred(n, reset),
        pieces: 200,
        ..BASE
    };
    vec![
        rapid.clone(),
        Attack { what: "the same on 50 connections, 400 each", connections: 50, pieces: 4, ..rapid.clone() },
        Attack {
            id: "H2-02",
            what: "20,000 × a stream that the server must reset",
            piece: |n| {
                hundred(n, |n| [post(n, "/attack"), frame(kind::WINDOW, 0, stream(n), &[0; 4])].concat())
            },
            ..rapid.clone()
        },
        Attack {
            id: "H2-09",
            what: "10,000 streams at once, none answered",
            piece: |n| hundred(n, |n| get(n, "/hold/attack")),
            pieces: 100,
            ..rapid
        },
    ]
}

fn frames() -> Vec<Attack> {
    let flood = Attack { id: "H2-04", opening: h2(&[], &[]), pieces: 1000, ..BASE };
    let opened = |n: usize| h2(&[], &post(n, "/attack"));
    vec![
        Attack {
            id: "H2-03",
            what: "CONTINUATION for ever, 1 KiB each",
            opening: h2(&[], &frame(kind::HEADERS, 0, 1, &request(GET, "/attack"))),
            piece: |_| frame(kind::CONTINUATION, 0, 1, &[0x82; 1024]),
            pieces: 2000,
            ..BASE
        },
        Attack {
            id: "H2-03",
            what: "100,000 × empty CONTINUATION",
            opening: h2(&[], &frame(kind::HEADERS, 0, 1, &request(GET, "/attack"))),
            piece: |n| hundred(n, |_| frame(kind::CONTINUATION, 0, 1, &[])),
            pieces: 1000,
            ..BASE
        },
        Attack {
            what: "100,000 × PING",
            piece: |n| hundred(n, |_| frame(kind::PING, 0, 0, &[0; 8])),
            ..flood.clone()
        },
        Attack {
            what: "100,000 × PING, no answer read",
            piece: |n| hundred(n, |_| frame(kind::PING, 0, 0, &[0; 8])),
            reads: false,
            ..flood.clone()
        },
        Attack {
            what: "100,000 × SETTINGS",
            piece: |n| hundred(n, |_| frame(kind::SETTINGS, 0, 0, &[])),
            ..flood.clone()
        },
        Attack {
            what: "100,000 × PRIORITY",
            piece: |n| hundred(n, |n| frame(kind::PRIORITY, 0, stream(n), &[0, 0, 0, 0, 1])),
            ..flood.clone()
        },
        Attack {
            what: "100,000 × WINDOW_UPDATE",
            piece: |n| hundred(n, |_| frame(kind::WINDOW, 0, 0, &[0, 0, 0, 1])),
            ..flood.clone()
        },
        Attack {
            what: "100,000 × a frame of an unknown kind",
            piece: |n| hundred(n, |_| frame(kind::UNKNOWN, 0, 0, &[])),
            ..flood.clone()
        },
        Attack {
            id: "H2-05",
            what: "100 × SETTINGS with 2,000 parameters",
            piece: |_| frame(kind::SETTINGS, 0, 0, &[0, 1, 0, 0, 16, 0].repeat(2000)),
            pieces: 100,
            ..flood.clone()
        },
        Attack {
            id: "H2-08",
            what: "100,000 × empty DATA",
            opening: opened(0),
            piece: |n| hundred(n, |_| frame(kind::DATA, 0, 1, &[])),
            ..flood.clone()
        },
        Attack {
            id: "H2-08",
            what: "50,000 × DATA of one byte",
            opening: opened(0),
            piece: |n| hundred(n, |_| frame(kind::DATA, 0, 1, b"x")),
            pieces: 500,
            ..flood.clone()
        },
        Attack {
            id: "H2-08",
            what: "200 × DATA of padding only",
            opening: opened(0),
            piece: |_| frame(kind::DATA, 8, 1, &[&[255_u8] as &[u8], &[0; 255]].concat()),
            pieces: 200,
            ..flood.clone()
        },
        Attack {
            id: "H2-10",
            what: "trailers of 10,000 fields",
            opening: opened(0),
            piece: |_| {
                let block = [0x10, 1, b'x', 1, b'1'].repeat(3000);
                [
                    frame(kind::HEADERS, END_STREAM, 1, &block),
                    frame(kind::CONTINUATION, 0, 1, &block),
                    frame(kind::CONTINUATION, END_HEADERS, 1, &block),
                ]
                .concat()
            },
            pieces: 1,
            ..flood
        },
    ]
}

fn memory() -> Vec<Attack> {
    vec![
        Attack {
            id: "H2-06",
            what: "HPACK: 4,000 references to 4,000 bytes, 100 streams",
            connections: 10,
            opening: h2(&[(INITIAL_WINDOW, 0)], &[]),
            piece: |n| bomb(n, 4000),
            pieces: 100,
            ..BASE
        },
        Attack {
            id: "H2-06",
            what: "HPACK: 13 references to 4,000 bytes, 100 streams that wait",
            connections: 10,
            opening: h2(&[(TABLE_SIZE, 4096)], &[]),
            piece: |n| bomb(n, 13),
            pieces: 100,
            ..BASE
        },
        Attack {
            id: "H2-07",
            what: "window 0 before 100 answers of 10 MiB",
            connections: 5,
            opening: h2(&[(INITIAL_WINDOW, 0)], &[]),
            piece: |n| get(n, "/size/10485760/attack"),
            pieces: 100,
            patient: true,
            ..BASE
        },
        Attack {
            id: "H2-07",
            what: "a window of one byte a second before 100 answers",
            connections: 5,
            opening: h2(
                &[(INITIAL_WINDOW, 1)],
                &(0..100).flat_map(|n| get(n, "/size/10485760/attack")).collect::<Vec<u8>>(),
            ),
            piece: |_| (0..100).flat_map(|n| frame(kind::WINDOW, 0, stream(n), &[0, 0, 0, 1])).collect(),
            pieces: 40,
            every: Duration::from_secs(1),
            patient: true,
            ..BASE
        },
    ]
}
