//! Raw bytes against the HTTP/1 server: what is refused and how, and what the application behind it sees.
//! In: a table of byte strings, each sent whole and cut into single bytes. Out: statuses, and the requests as a recording handler saw them.
//! Kept true: how the bytes arrive never changes what they mean; nothing of a refused request is seen.
//! Not here: deadlines and bodies in motion (`codec::h1::tests`), HTTP/2 (`raw_bytes_h2`).

use std::cell::RefCell;
use std::rc::Rc;

use proxy::codec::{Limits, Protocol, Request, Response, Scheme, Serve, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What must come of the bytes.
enum Want {
    /// These requests are seen and answered with 200; nothing is refused.
    Seen(&'static [&'static str]),
    /// These requests are seen, then this status is answered and the connection closed.
    Refused(&'static [&'static str], u16),
    /// These requests reach the handler, but the last one's body breaks: no answer to it.
    Broken(&'static [&'static str]),
}
use Want::{Broken, Refused, Seen};

struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    want: Want,
}

/// A case whose `\n` stand for CRLF.
fn t(name: &'static str, text: &str, want: Want) -> Case {
    Case { name, bytes: text.replace('\n', "\r\n").into_bytes(), want }
}

/// A case byte for byte.
fn raw(name: &'static str, bytes: impl AsRef<[u8]>, want: Want) -> Case {
    Case { name, bytes: bytes.as_ref().to_vec(), want }
}

const GET: &str = "GET / host=a";

fn request_lines() -> Vec<Case> {
    vec![
        t("plain get", "GET / HTTP/1.1\nHost: a\n\n", Seen(&[GET])),
        t("query is kept", "GET /a/b?c=d&e=%2f HTTP/1.1\nHost: a\n\n", Seen(&["GET /a/b?c=d&e=%2f host=a"])),
        t("two slashes are a path", "GET //a/b HTTP/1.1\nHost: a\n\n", Seen(&["GET //a/b host=a"])),
        t("unknown method", "BREW /pot HTTP/1.1\nHost: a\n\n", Seen(&["BREW /pot host=a"])),
        t("one empty line before is forgiven", "\nGET / HTTP/1.1\nHost: a\n\n", Seen(&[GET])),
        t("two empty lines are not", "\n\nGET / HTTP/1.1\nHost: a\n\n", Refused(&[], 400)),
        t("options asterisk", "OPTIONS * HTTP/1.1\nHost: a\n\n", Seen(&["OPTIONS * host=a"])),
        t("get asterisk", "GET * HTTP/1.1\nHost: a\n\n", Refused(&[], 400)),
        t("relative target", "GET foo HTTP/1.1\nHost: a\n\n", Refused(&[], 400)),
        t("authority target", "GET a:80 HTTP/1.1\nHost: a\n\n", Refused(&[], 400)),
        t("at-sign target", "GET @evil HTTP/1.1\nHost: a\n\n", Refused(&[], 400)),
        t("fragment", "GET /admin#x HTTP/1.1\nHost: a\n\n", Refused(&[], 400)),
        t("backslash", "GET /a\\..\\b HTTP/1.1\nHost: a\n\n", Refused(&[], 400)),
        t("raw utf-8 in path", "GET /\u{e4} HTTP/1.1\nHost: a\n\n", Refused(&[], 400)),
        raw("nul in path", b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", Refused(&[], 400)),
        raw("tab in path", b"GET /\t HTTP/1.1\r\nHost: a\r\n\r\n", Refused(&[], 400)),
        raw("del in path", b"GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", Refused(&[], 400)),
        t("empty target", "GET  HTTP/1.1\nHost: a\n\n", Refused(&[], 400)),
        t("two spaces", "GET  / HTTP/1.1\nHost: a\n\n", Refused(&[], 400)),
        t("tab as separator", "GET\t/ HTTP/1.1\nHost: a\n\n", Refused(&[], 400)),
        t("space after version", "GET / HTTP/1.1 \nHost: a\n\n", Refused(&[], 400)),
        t("leading space", " GET / HTTP/1.1\nHost: a\n\n", Refused(&[], 400)),
        t("no method", "/ HTTP/1.1\nHost: a\n\n", Refused(&[], 400)),
        t("colon in method", "GE:T / HTTP/1.1\nHost: a\n\n", Refused(&[], 400)),
        t("method too long", &format!("{} / HTTP/1.1\nHost: a\n\n", "A".repeat(33)), Refused(&[], 501)),
        t("http/0.9", "GET /\n\n", Refused(&[], 400)),
        t("http/1.0", "GET / HTTP/1.0\nHost: a\n\n", Refused(&[], 426)),
        t("http/1.2", "GET / HTTP/1.2\nHost: a\n\n", Refused(&[], 505)),
        t("http/2.0 in text", "GET / HTTP/2.0\nHost: a\n\n", Refused(&[], 505)),
        t("lower-case version", "GET / http/1.1\nHost: a\n\n", Refused(&[], 400)),
        t("version with more digits", "GET / HTTP/1.10\nHost: a\n\n", Refused(&[], 400)),
        t("other protocol", "GET / ICY/1.1\nHost: a\n\n", Refused(&[], 400)),
        raw("tls hello to a plaintext port", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", Refused(&[], 400)),
        t("connect", "CONNECT a:443 HTTP/1.1\nHost: a:443\n\n", Refused(&[], 405)),
        t("trace", "TRACE / HTTP/1.1\nHost: a\n\n", Refused(&[], 405)),
        t(
            "target of 60 KiB and more",
            &format!("GET /{} HTTP/1.1\nHost: a\n\n", "a".repeat(64 * 1024)),
            Refused(&[], 414),
        ),
        t("target without end", &format!("GET /{}", "a".repeat(70 * 1024)), Refused(&[], 414)),
    ]
}

fn hosts() -> Vec<Case> {
    vec![
        t("host with port", "GET / HTTP/1.1\nHost: a:8080\n\n", Seen(&["GET / host=a:8080"])),
        t("ipv6 host", "GET / HTTP/1.1\nHost: [::1]:80\n\n", Seen(&["GET / host=[::1]:80"])),
        t("no host", "GET / HTTP/1.1\n\n", Refused(&[], 400)),
        t("two hosts", "GET / HTTP/1.1\nHost: a\nHost: b\n\n", Refused(&[], 400)),
        t("the same host twice", "GET / HTTP/1.1\nHost: a\nHost: a\n\n", Refused(&[], 400)),
        t("empty host", "GET / HTTP/1.1\nHost:\n\n", Refused(&[], 400)),
        t("comma host", "GET / HTTP/1.1\nHost: a,b\n\n", Refused(&[], 400)),
        t("host with path", "GET / HTTP/1.1\nHost: a/b\n\n", Refused(&[], 400)),
        t("host with user", "GET / HTTP/1.1\nHost: u@a\n\n", Refused(&[], 400)),
        t("host with space", "GET / HTTP/1.1\nHost: a b\n\n", Refused(&[], 400)),
        t("host with port only", "GET / HTTP/1.1\nHost: :80\n\n", Refused(&[], 400)),
        t("host with port 0", "GET / HTTP/1.1\nHost: a:0\n\n", Refused(&[], 400)),
        t("host with huge port", "GET / HTTP/1.1\nHost: a:65536\n\n", Refused(&[], 400)),
        t("host with quote", "GET / HTTP/1.1\nHost: a\"\n\n", Refused(&[], 400)),
        t("absolute form", "GET http://a/b HTTP/1.1\nHost: a\n\n", Seen(&["GET /b host=a"])),
        t("absolute form without path", "GET http://a HTTP/1.1\nHost: a\n\n", Seen(&["GET / host=a"])),
        t(
            "absolute form with default port",
            "GET http://a:80/ HTTP/1.1\nHost: A\n\n",
            Seen(&["GET / host=A"]),
        ),
        t("absolute form for another host", "GET http://b/ HTTP/1.1\nHost: a\n\n", Refused(&[], 400)),
        t("absolute form for another port", "GET http://a:81/ HTTP/1.1\nHost: a\n\n", Refused(&[], 400)),
        t("absolute form without host", "GET http://a/ HTTP/1.1\n\n", Refused(&[], 400)),
        t("absolute form with user", "GET http://u@a/ HTTP/1.1\nHost: a\n\n", Refused(&[], 400)),
        t("absolute form of another scheme", "GET ftp://a/ HTTP/1.1\nHost: a\n\n", Refused(&[], 400)),
    ]
}

fn fields() -> Vec<Case> {
    vec![
        t(
            "names become lower-case, values stay",
            "GET / HTTP/1.1\nHost: a\nX-Foo: BaR\n\n",
            Seen(&["GET / host=a x-foo=BaR"]),
        ),
        t(
            "space around a value goes",
            "GET / HTTP/1.1\nHost: a\nx:  \t b c \t \n\n",
            Seen(&["GET / host=a x=b c"]),
        ),
        t("empty value", "GET / HTTP/1.1\nHost: a\nx:\n\n", Seen(&["GET / host=a x="])),
        t(
            "repeated names stay apart",
            "GET / HTTP/1.1\nHost: a\nx: 1\ny: 2\nX: 3\n\n",
            Seen(&["GET / host=a x=1 y=2 x=3"]),
        ),
        raw(
            "bytes above 0x7f in a value",
            b"GET / HTTP/1.1\r\nHost: a\r\nx: \xe4\r\n\r\n",
            Seen(&["GET / host=a x=\\xe4"]),
        ),
        t("obs-fold", "GET / HTTP/1.1\nHost: a\nx: 1\n 2\n\n", Refused(&[], 400)),
        t("obs-fold with tab", "GET / HTTP/1.1\nHost: a\nx: 1\n\t2\n\n", Refused(&[], 400)),
        t("fold before the first field", "GET / HTTP/1.1\n Host: a\n\n", Refused(&[], 400)),
        t("space before colon", "GET / HTTP/1.1\nHost : a\n\n", Refused(&[], 400)),
        t("tab before colon", "GET / HTTP/1.1\nHost: a\nx\t: 1\n\n", Refused(&[], 400)),
        t("empty name", "GET / HTTP/1.1\nHost: a\n: 1\n\n", Refused(&[], 400)),
        t("line without colon", "GET / HTTP/1.1\nHost: a\nfoo\n\n", Refused(&[], 400)),
        t("underscore in name", "GET / HTTP/1.1\nHost: a\nx_y: 1\n\n", Refused(&[], 400)),
        t("parenthesis in name", "GET / HTTP/1.1\nHost: a\nx(y: 1\n\n", Refused(&[], 400)),
        raw("byte above 0x7f in name", b"GET / HTTP/1.1\r\nHost: a\r\nx\xe4: 1\r\n\r\n", Refused(&[], 400)),
        raw("nul in value", b"GET / HTTP/1.1\r\nHost: a\r\nx: a\0b\r\n\r\n", Refused(&[], 400)),
        raw("nul in name", b"GET / HTTP/1.1\r\nHost: a\r\nx\0: a\r\n\r\n", Refused(&[], 400)),
        raw("bare cr in value", b"GET / HTTP/1.1\r\nHost: a\r\nx: a\rb\r\n\r\n", Refused(&[], 400)),
        raw("del in value", b"GET / HTTP/1.1\r\nHost: a\r\nx: \x7f\r\n\r\n", Refused(&[], 400)),
        raw("bare lf after the request line", b"GET / HTTP/1.1\nHost: a\r\n\r\n", Refused(&[], 400)),
        raw("bare lf after a field", b"GET / HTTP/1.1\r\nHost: a\nx: 1\r\n\r\n", Refused(&[], 400)),
        raw("bare lf at the end", b"GET / HTTP/1.1\r\nHost: a\r\n\n", Refused(&[], 400)),
        raw("cr cr lf", b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", Refused(&[], 400)),
        t(
            "100 fields",
            &format!("GET / HTTP/1.1\nHost: a\n{}\n", "x: 1\n".repeat(99)),
            Seen(&["GET / host=a +99"]),
        ),
        t("101 fields", &format!("GET / HTTP/1.1\nHost: a\n{}\n", "x: 1\n".repeat(100)), Refused(&[], 431)),
        t(
            "name of 300 bytes",
            &format!("GET / HTTP/1.1\nHost: a\n{}: 1\n\n", "x".repeat(300)),
            Refused(&[], 431),
        ),
        t("head of exactly 60 KiB", &head_of(60 * 1024), Seen(&["GET / host=a +1"])),
        t("head of 60 KiB and a byte", &head_of(60 * 1024 + 1), Refused(&[], 431)),
        t("head without end", &head_of(80 * 1024).replace("\n\n", ""), Refused(&[], 431)),
    ]
}

/// A request whose head has this many bytes once `\n` is CRLF.
fn head_of(size: usize) -> String {
    let frame = "GET / HTTP/1.1\nHost: a\nx: \n\n";
    let value = size - frame.len() - frame.matches('\n').count();
    frame.replace("x: ", &format!("x: {}", "v".repeat(value)))
}

fn lengths() -> Vec<Case> {
    let length = |name: &'static str, value: &str| {
        t(name, &format!("POST / HTTP/1.1\nHost: a\nContent-Length:{value}\n\nhello"), Refused(&[], 400))
    };
    vec![
        t(
            "body of a length",
            "POST / HTTP/1.1\nHost: a\nContent-Length: 5\n\nhello",
            Seen(&["POST / host=a content-length=5 |hello|"]),
        ),
        t(
            "length 0",
            "POST / HTTP/1.1\nHost: a\nContent-Length: 0\n\n",
            Seen(&["POST / host=a content-length=0"]),
        ),
        t(
            "get with a body",
            "GET / HTTP/1.1\nHost: a\nContent-Length: 2\n\nhiGET /b HTTP/1.1\nHost: a\n\n",
            Seen(&["GET / host=a content-length=2 |hi|", "GET /b host=a"]),
        ),
        t(
            "body cut short",
            "POST / HTTP/1.1\nHost: a\nContent-Length: 6\n\nhello",
            Broken(&["POST / host=a content-length=6 broken"]),
        ),
        length("length with plus", " +5"),
        length("length with minus", " -0"),
        length("length in hex", " 0x5"),
        length("length with leading zeros", " 005"),
        length("empty length", ""),
        length("length list", " 5, 5"),
        length("length list that differs", " 5,6"),
        length("length with inner space", " 5 5"),
        length("length of 2^64", " 18446744073709551616"),
        length("length with fraction", " 5.0"),
        t(
            "two lengths that differ",
            "POST / HTTP/1.1\nHost: a\nContent-Length: 5\nContent-Length: 6\n\nhello!",
            Refused(&[], 400),
        ),
        t(
            "two lengths that agree",
            "POST / HTTP/1.1\nHost: a\nContent-Length: 5\nContent-Length: 5\n\nhello",
            Refused(&[], 400),
        ),
    ]
}

fn codings() -> Vec<Case> {
    let coding = |name: &'static str, lines: &str, status: u16| {
        t(
            name,
            &format!("POST / HTTP/1.1\nHost: a\n{lines}\n\n0\n\nGET /smuggled HTTP/1.1\nHost: a\n\n"),
            Refused(&[], status),
        )
    };
    let chunks = |name: &'static str, body: &str| {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        raw(name, format!("{head}{body}"), Broken(&["POST / host=a broken"]))
    };
    let good = |name: &'static str, body: &str, seen: &'static [&'static str]| {
        t(name, &format!("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n{body}"), Seen(seen))
    };
    vec![
        good("chunks", "5\nhello\n1\n!\n0\n\n", &["POST / host=a |hello!|"]),
        good("upper-case hex and leading zeros", "000A\n0123456789\n0\n\n", &["POST / host=a |0123456789|"]),
        good("no chunk at all", "0\n\n", &["POST / host=a"]),
        good("extensions are dropped", "5;a=b;c=\"d\"\nhello\n0;z\n\n", &["POST / host=a |hello|"]),
        good("trailers", "2\nhi\n0\nX-Sum: 1\n\n", &["POST / host=a |hi| x-sum=1"]),
        good(
            "trailers that would change the message are dropped",
            "2\nhi\n0\nContent-Length: 3\nHost: b\nX-Forwarded-Client-Cert: c\nAuthorization: d\nTransfer-Encoding: e\nx: 1\n\n",
            &["POST / host=a |hi| x=1"],
        ),
        good(
            "a request behind chunks",
            "2\nhi\n0\n\nGET /b HTTP/1.1\nHost: a\n\n",
            &["POST / host=a |hi|", "GET /b host=a"],
        ),
        t(
            "coding in capitals",
            "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: Chunked\n\n0\n\n",
            Seen(&["POST / host=a"]),
        ),
        coding("length then coding", "Content-Length: 4\nTransfer-Encoding: chunked", 400),
        coding("coding then length", "Transfer-Encoding: chunked\nContent-Length: 4", 400),
        coding("unknown coding", "Transfer-Encoding: xchunked", 501),
        coding("gzip, chunked", "Transfer-Encoding: gzip, chunked", 501),
        coding("identity, chunked", "Transfer-Encoding: identity, chunked", 501),
        coding("chunked, identity", "Transfer-Encoding: chunked, identity", 501),
        coding("chunked with parameter", "Transfer-Encoding: chunked;q=1", 501),
        coding("chunked twice in a list", "Transfer-Encoding: chunked, chunked", 501),
        coding("chunked twice in lines", "Transfer-Encoding: chunked\nTransfer-Encoding: chunked", 400),
        coding("chunked and another line", "Transfer-Encoding: chunked\nTransfer-Encoding: identity", 400),
        coding("empty coding", "Transfer-Encoding:", 501),
        coding("coding with vertical tab", "Transfer-Encoding: \u{b}chunked", 400),
        coding("coding with space before colon", "Transfer-Encoding : chunked", 400),
        coding("coding folded", "Transfer-Encoding:\n chunked", 501),
        chunks("bare lf after the size", "5\nhello\r\n0\r\n\r\n"),
        chunks("bare lf after the data", "5\r\nhello\n0\r\n\r\n"),
        chunks("bare lf after the last chunk", "0\n\r\n"),
        chunks("bare lf after a trailer", "0\r\nx: 1\n\r\n"),
        chunks("size in 0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        chunks("space after the size", "5 \r\nhello\r\n0\r\n\r\n"),
        chunks("space before the size", " 5\r\nhello\r\n0\r\n\r\n"),
        chunks("negative size", "-1\r\nhello\r\n0\r\n\r\n"),
        chunks("plus size", "+5\r\nhello\r\n0\r\n\r\n"),
        chunks("size of 17 digits", "00000000000000005\r\nhello\r\n0\r\n\r\n"),
        chunks("size that overflows", "fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        chunks("no size", "\r\nhello\r\n0\r\n\r\n"),
        chunks("only an extension", ";a\r\n\r\n"),
        chunks("data longer than the size", "4\r\nhello\r\n0\r\n\r\n"),
        chunks("lf in an extension", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
        chunks("nul in an extension", "5;a\0b\r\nhello\r\n0\r\n\r\n"),
        chunks("bare cr in an extension", "5;a\rb\r\nhello\r\n0\r\n\r\n"),
        chunks("extension of 64 KiB", &format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(64 * 1024))),
        chunks("trailer without colon", "0\r\nfoo\r\n\r\n"),
        chunks("folded trailer", "0\r\nx: 1\r\n 2\r\n\r\n"),
        chunks("space before colon in trailer", "0\r\nx : 1\r\n\r\n"),
        chunks("101 trailers", &format!("0\r\n{}\r\n", "x: 1\r\n".repeat(101))),
        chunks("trailers of 80 KiB", &format!("0\r\nx: {}\r\n\r\n", "v".repeat(80 * 1024))),
        chunks("no last chunk", "5\r\nhello\r\n"),
        chunks("no end of trailers", "5\r\nhello\r\n0\r\n"),
    ]
}

fn connections() -> Vec<Case> {
    vec![
        t(
            "a pipeline",
            "GET /1 HTTP/1.1\nHost: a\n\nGET /2 HTTP/1.1\nHost: a\n\nGET /3 HTTP/1.1\nHost: a\n\n",
            Seen(&["GET /1 host=a", "GET /2 host=a", "GET /3 host=a"]),
        ),
        t(
            "close ends a pipeline",
            "GET /1 HTTP/1.1\nHost: a\nConnection: close\n\nGET /2 HTTP/1.1\nHost: a\n\n",
            Seen(&["GET /1 host=a"]),
        ),
        t("a bad second request", "GET /1 HTTP/1.1\nHost: a\n\nGET /2\n\n", Refused(&["GET /1 host=a"], 400)),
        t("half a second request", "GET /1 HTTP/1.1\nHost: a\n\nGET /2 HT", Seen(&["GET /1 host=a"])),
        t(
            "connection fields stay here",
            "GET / HTTP/1.1\nHost: a\nConnection: x-hop, keep-alive\nX-Hop: 1\nKeep-Alive: 5\nProxy-Connection: close\nTrailer: x\nTE: gzip\ny: 2\n\n",
            Seen(&["GET / host=a y=2"]),
        ),
        t(
            "te trailers goes on",
            "GET / HTTP/1.1\nHost: a\nConnection: te\nTE: trailers, gzip\n\n",
            Seen(&["GET / host=a te=trailers"]),
        ),
        t(
            "known names cannot be taken away",
            "POST / HTTP/1.1\nHost: a\nConnection: x-forwarded-client-cert, authorization, content-length, host\nAuthorization: b\nX-Forwarded-Client-Cert: c\nContent-Length: 1\n\nx",
            Seen(&["POST / host=a authorization=b x-forwarded-client-cert=c content-length=1 |x|"]),
        ),
        t(
            "h2c is not offered",
            "GET / HTTP/1.1\nHost: a\nConnection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAMAAABk\n\n",
            Seen(&[GET]),
        ),
        t("upgrade without connection", "GET / HTTP/1.1\nHost: a\nUpgrade: websocket\n\n", Seen(&[GET])),
        t(
            "upgrade",
            "GET / HTTP/1.1\nHost: a\nConnection: upgrade\nUpgrade: websocket\n\n",
            Seen(&["GET / host=a upgrade=websocket"]),
        ),
        t(
            "upgrade with a body",
            "POST / HTTP/1.1\nHost: a\nConnection: upgrade\nUpgrade: websocket\nContent-Length: 1\n\nx",
            Seen(&["POST / host=a content-length=1 |x|"]),
        ),
        t(
            "two upgrades",
            "GET / HTTP/1.1\nHost: a\nConnection: upgrade\nUpgrade: websocket\nUpgrade: foo\n\n",
            Refused(&[], 400),
        ),
        t(
            "upgrade refused by the application, then another request",
            "GET / HTTP/1.1\nHost: a\nConnection: upgrade\nUpgrade: foo\n\nGET /2 HTTP/1.1\nHost: a\n\n",
            Seen(&["GET / host=a upgrade=foo", "GET /2 host=a"]),
        ),
        t(
            "expect",
            "POST / HTTP/1.1\nHost: a\nExpect: 100-continue\nContent-Length: 2\n\nhi",
            Seen(&["POST / host=a content-length=2 |hi|"]),
        ),
        t("expect without a body", "GET / HTTP/1.1\nHost: a\nExpect: 100-continue\n\n", Seen(&[GET])),
        t(
            "expect something else",
            "POST / HTTP/1.1\nHost: a\nExpect: y\nContent-Length: 2\n\nhi",
            Refused(&[], 417),
        ),
        raw("nothing at all", b"", Seen(&[])),
        raw(
            "the http/2 preface where http/1 is spoken",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            Refused(&[], 505),
        ),
    ]
}

fn cases() -> Vec<Case> {
    [request_lines(), hosts(), fields(), lengths(), codings(), connections()].into_iter().flatten().collect()
}

/// As the handler saw it, in one line.
async fn render(request: Request) -> (String, bool) {
    let head = request.head;
    let mut line = format!("{} {} host={}", head.method(), head.path(), head.authority());
    if head.wire_size() > 400 {
        line += &format!(" +{}", head.field_count());
    } else {
        for (name, value) in head.iter() {
            line += &format!(" {name}={}", value.escape_ascii());
        }
    }
    match request.body.collect(1 << 20).await {
        Ok((body, trailers)) => {
            if !body.is_empty() {
                line += &format!(" |{}|", body.escape_ascii());
            }
            for (name, value) in trailers.iter().flat_map(|trailers| trailers.iter()) {
                line += &format!(" {name}={}", value.escape_ascii());
            }
            (line, true)
        }
        Err(_) => {
            let line = line.split(" |").next().unwrap_or_default().to_owned();
            (line + " broken", false)
        }
    }
}

/// Sends the bytes in pieces of this size, half-closes, reads to the end. Gives the statuses and what was seen.
async fn play(bytes: &[u8], step: usize) -> (Vec<u16>, Vec<String>, bool) {
    let (client, server) = tokio::io::duplex(256 * 1024);
    let seen = Rc::new(RefCell::new(Vec::new()));
    let record = Rc::clone(&seen);
    let handler = move |request: Request| {
        let seen = Rc::clone(&record);
        async move {
            let (line, whole) = render(request).await;
            seen.borrow_mut().push(line);
            match whole {
                true => Response::new(StatusCode::OK),
                false => Response::abort(),
            }
        }
    };
    let serve = Serve { protocol: Protocol::Http1, scheme: Scheme::Http, limits: Rc::new(Limits::sidecar()) };
    let client = async {
        let (mut from, mut to) = tokio::io::split(client);
        let send = async {
            for piece in bytes.chunks(step) {
                if to.write_all(piece).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
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
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let statuses = answer
        .split("\r\n")
        .filter_map(|line| line.split_once("HTTP/1.1 "))
        .filter_map(|(_, line)| line.get(..3)?.parse().ok())
        .filter(|status| *status != 100)
        .collect();
    let seen = seen.borrow().clone();
    (statuses, seen, matches!(end, proxy::codec::ConnEnd::Refused(_)))
}

#[tokio::test(start_paused = true)]
async fn raw_requests_mean_the_same_however_they_arrive() {
    let cases = cases();
    assert!(cases.len() >= 100, "the table has {} cases", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let pieces: &[usize] = if case.bytes.len() < 4096 { &[1, 7, usize::MAX] } else { &[997, usize::MAX] };
        for step in pieces {
            let (statuses, seen, refused) = play(&case.bytes, (*step).min(case.bytes.len().max(1))).await;
            let (want_seen, want_statuses, want_refused) = match &case.want {
                Seen(seen) => (seen, vec![200; seen.len()], false),
                Refused(seen, status) => (seen, [vec![200; seen.len()], vec![*status]].concat(), true),
                Broken(seen) => (seen, vec![200; seen.len() - 1], false),
            };
            if seen != **want_seen || statuses != want_statuses || refused != want_refused {
                wrong.push(format!(
                    "{} (pieces of {step}): saw {seen:?}, answered {statuses:?}, refused {refused}; want {want_seen:?}, {want_statuses:?}",
                    case.name
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// A handler that answers although the body broke, as a proxy does with its 400.
#[tokio::test(start_paused = true)]
async fn nothing_behind_a_broken_body_is_read_as_a_request() {
    for body in
        ["0\r\nx\r\n\r\n", "0\r\n: 1\r\n\r\n", "0\r\nx: 1\r\n 2\r\n\r\n", "0\r\nx: \0\r\n\r\n", "0x\r\n\r\n"]
    {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let record = Rc::clone(&seen);
        let handler = move |request: Request| {
            let seen = Rc::clone(&record);
            async move {
                seen.borrow_mut().push(request.head.path().to_owned());
                let broken = request.body.collect(1 << 20).await.is_err();
                Response::new(if broken { StatusCode::BAD_REQUEST } else { StatusCode::OK })
            }
        };
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let head = "POST /first HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let bytes = format!("{head}{body}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
        client.write_all(bytes.as_bytes()).await.expect("room");
        let serve =
            Serve { protocol: Protocol::Http1, scheme: Scheme::Http, limits: Rc::new(Limits::sidecar()) };
        let mut answer = Vec::new();
        let read = client.read_to_end(&mut answer);
        let (_, end) = tokio::join!(serve.run(server, std::future::pending(), &handler), read);
        end.expect("closed in order");
        assert_eq!(*seen.borrow(), ["/first"], "{body:?}");
        assert!(answer.starts_with(b"HTTP/1.1 400 "), "{body:?}: {}", answer.escape_ascii());
    }
}

/// HTTP/2's preface mistyped: neither protocol, so neither protocol's answer.
#[tokio::test(start_paused = true)]
async fn where_the_protocol_is_guessed_what_is_no_http_is_closed_without_an_answer() {
    let handler = |_: Request| async { Response::new(StatusCode::OK) };
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    client.write_all(b"INVALID CONNECTION PREFACE\r\n\r\n").await.expect("room");
    let serve =
        Serve { protocol: Protocol::Detect, scheme: Scheme::Http, limits: Rc::new(Limits::sidecar()) };
    let mut answer = Vec::new();
    let read = client.read_to_end(&mut answer);
    let (end, _) = tokio::join!(serve.run(server, std::future::pending(), &handler), read);
    assert!(matches!(end, proxy::codec::ConnEnd::Refused(_)), "{end:?}");
    assert!(answer.is_empty(), "{}", answer.escape_ascii());
}
