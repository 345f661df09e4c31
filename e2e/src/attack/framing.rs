//! Smuggling and framing as data: bytes that servers read differently, and the requests that may reach the application for them.
//!
//! In: the [`cases`], a listener, the recording application behind it. Out: a [`Verdict`] per case. Kept true: a case says which whole
//! requests may arrive, so a hidden one can never pass. Not here: how bytes are cut into packets (`proxy/tests/raw_bytes.rs`).

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::recorder::{Record, Recorder};

/// Bytes, and what may come of them.
#[derive(Debug, Clone)]
pub struct Case {
    /// What is odd about them.
    pub name: String,
    /// Written at once, then this direction is closed.
    pub bytes: Vec<u8>,
    /// The whole requests that the application sees, in order: method and target.
    pub want: &'static [&'static str],
}

/// What came of a case.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The case.
    pub case: String,
    /// True when the application saw the wanted requests and nothing else, and as many answers with 200 came back.
    pub good: bool,
    /// True when the application saw a hidden request, or could not read what it got.
    pub misread: bool,
    /// What was seen and answered.
    pub text: String,
}

const NOTHING: &[&str] = &[];
const FIRST: &[&str] = &["POST /first"];
/// What stands behind the first request, for a server that ends it too early.
const HIDDEN: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// All of them.
#[must_use]
pub fn cases() -> Vec<Case> {
    [codings(), lengths(), fields(), endings(), chunks(), request_lines(), hosts(), pipelines()].concat()
}

/// A POST with these field lines and this body, then [`HIDDEN`].
fn post(name: String, lines: &[u8], body: &str, want: &'static [&'static str]) -> Case {
    let bytes = [
        b"POST /first HTTP/1.1\r\nHost: a\r\n" as &[u8],
        lines,
        b"\r\n\r\n",
        body.as_bytes(),
        HIDDEN.as_bytes(),
    ];
    Case { name, bytes: bytes.concat(), want }
}

fn codings() -> Vec<Case> {
    let values = [
        "xchunked",
        "chunkedx",
        "chunke",
        "chunked;q=1",
        "chunked;",
        "chunked, identity",
        "identity, chunked",
        "identity",
        "gzip",
        "gzip, chunked",
        "chunked, gzip",
        "chunked, chunked",
        "chunked,",
        ",chunked",
        ", chunked",
        ",",
        "",
        " ",
        "\"chunked\"",
        "'chunked'",
        "chunked chunked",
        "chunk ed",
        "\u{b}chunked",
        "chunked\u{b}",
        "\u{c}chunked",
        "chunked\u{c}",
        "\0chunked",
        "chunked\0",
        "chunked\r",
        "\rchunked",
        "chun\nked",
        "\nchunked",
        "cow, chunked",
        "chunked, cow",
        "x=chunked",
        "none",
        "null",
        "0",
        "deflate",
        "compress, chunked",
        "chunked=1",
    ];
    let mut all = Vec::new();
    for value in values {
        let coding = format!("Transfer-Encoding: {value}");
        for (how, lines) in [
            ("alone", coding.clone()),
            ("before a length", format!("{coding}\r\nContent-Length: 4")),
            ("behind a length", format!("Content-Length: 4\r\n{coding}")),
            ("before chunked", format!("{coding}\r\nTransfer-Encoding: chunked")),
            ("behind chunked", format!("Transfer-Encoding: chunked\r\n{coding}")),
        ] {
            all.push(post(format!("coding {value:?} {how}"), lines.as_bytes(), "0\r\n\r\n", NOTHING));
        }
    }
    for lines in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 0\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 0",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        " Transfer-Encoding: chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: chun\r\n ked",
        "Transfer_Encoding: chunked",
        "Transfer-Encoding chunked",
        "Transfer-Encoding\0: chunked",
        "X: y\nTransfer-Encoding: chunked",
        "X: y\rTransfer-Encoding: chunked",
        "\u{b}Transfer-Encoding: chunked",
        "Transfer-Encoding\u{a0}: chunked",
        "Content-Length: 4\r\nTransfer-Encoding : chunked",
        "Content-Length: 4\r\n Transfer-Encoding: chunked",
    ] {
        all.push(post(format!("lines {lines:?}"), lines.as_bytes(), "0\r\n\r\n", NOTHING));
    }
    all
}

fn lengths() -> Vec<Case> {
    let values = [
        "+5",
        "-5",
        "-0",
        "+0",
        "005",
        "00",
        "5 5",
        "5,5",
        "5, 5",
        "5,6",
        ",5",
        "5,",
        "0x5",
        "5.0",
        "5e0",
        "5;",
        "\"5\"",
        "",
        " ",
        "five",
        "5\0",
        "\x005",
        "5\u{b}",
        "\u{c}5",
        "18446744073709551616",
        "9223372036854775808",
        "99999999999999999999",
        "5\r\n 6",
        "5\r",
        "\u{ff15}",
        "1_0",
        "0b1",
        "0o5",
        "5\u{a0}",
    ];
    let mut all = Vec::new();
    for value in values {
        let length = format!("Content-Length: {value}");
        for (how, lines) in [
            ("alone", length.clone()),
            ("before another", format!("{length}\r\nContent-Length: 5")),
            ("behind another", format!("Content-Length: 5\r\n{length}")),
        ] {
            all.push(post(format!("length {value:?} {how}"), lines.as_bytes(), "hello", NOTHING));
        }
    }
    for lines in [
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 0\r\nContent-Length: 5",
        "Content-Length : 5",
        "Content-Length\t: 5",
        " Content-Length: 5",
        "Content-Length:\r\n 5",
        "Content_Length: 5",
        "Content-Length\0: 5",
        "X: y\nContent-Length: 5",
        "X: y\rContent-Length: 5",
        "Content Length: 5",
    ] {
        all.push(post(format!("lines {lines:?}"), lines.as_bytes(), "hello", NOTHING));
    }
    all
}

fn fields() -> Vec<Case> {
    let mut all = Vec::new();
    // Delimiters and everything outside ASCII's visible part, in a name.
    let odd = (0_u8..=32).chain([127, 128, 160, 255]).chain(*b"\"(),/;<=>?@[\\]{}_");
    for byte in odd {
        let name = format!("byte {byte:#04x} in a field's name");
        all.push(post(name, &[b"Content-Length: 0\r\nX", &[byte][..], b"Y: 1"].concat(), "", NOTHING));
    }
    for byte in (0_u8..32).filter(|byte| *byte != b'\t').chain([127]) {
        let name = format!("byte {byte:#04x} in a field's value");
        all.push(post(name, &[b"Content-Length: 0\r\nX: a", &[byte][..], b"b"].concat(), "", NOTHING));
    }
    for lines in [": 1", "X", "X 1", "X:1\r\n\tfolded", "X: 1\r\n folded", "\t: 1", "X : 1", "\u{feff}X: 1"] {
        let lines = format!("Content-Length: 0\r\n{lines}");
        all.push(post(format!("lines {lines:?}"), lines.as_bytes(), "", NOTHING));
    }
    all
}

/// Heads whose lines do not all end in CRLF.
fn endings() -> Vec<Case> {
    let lines = ["POST /first HTTP/1.1", "Host: a", "Content-Length: 0", ""];
    let mut all = Vec::new();
    for odd in ["\n", "\r", "\r\r\n", "\n\r", "\0\r\n", "\r\0\n", "\u{b}\r\n"] {
        for at in 0..lines.len() {
            let mut head = String::new();
            for (number, line) in lines.iter().enumerate() {
                head += line;
                head += if number == at { odd } else { "\r\n" };
            }
            let name = format!("line {at} ends in {odd:?}");
            all.push(Case { name, bytes: [head.as_bytes(), HIDDEN.as_bytes()].concat(), want: NOTHING });
        }
    }
    all
}

fn chunks() -> Vec<Case> {
    let bad = [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\rhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "\t5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "5h\r\nhello\r\n0\r\n\r\n",
        "5_\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        ";a\r\nhello\r\n0\r\n\r\n",
        "4\r\nhello\r\n0\r\n\r\n",
        "6\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5;a\0\r\nhello\r\n0\r\n\r\n",
        "5\0\r\nhello\r\n0\r\n\r\n",
        "00000000000000005\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "100000005\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nx\r\n\r\n",
        "5\r\nhello\r\n0\r\n: 1\r\n\r\n",
        "5\r\nhello\r\n0\r\nx: 1\r\n 2\r\n\r\n",
        "5\r\nhello\r\n0\r\nx : 1\r\n\r\n",
        "5\r\nhello\r\n0\r\nx: 1\n\r\n",
        "5\r\nhello\r\n0\r\nx: \0\r\n\r\n",
        "5\r\nhello\r\n0\r\nx(: 1\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\n\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n\r\n0\r\n\r\n",
        "5,5\r\nhello\r\n0\r\n\r\n",
        "\"5\"\r\nhello\r\n0\r\n\r\n",
        "5\u{b}\r\nhello\r\n0\r\n\r\n",
        "5\r\r\nhello\r\n0\r\n\r\n",
        "5;\u{7f}\r\nhello\r\n0\r\n\r\n",
    ];
    let good = [
        "0\r\n\r\n",
        "000\r\n\r\n",
        "5\r\nhello\r\n0\r\n\r\n",
        "05\r\nhello\r\n0\r\n\r\n",
        "5;a=b\r\nhello\r\n0;c\r\n\r\n",
        "5;a=\"b;c\"\r\nhello\r\n0\r\n\r\n",
        "A\r\n0123456789\r\n0\r\n\r\n",
        "a\r\n0123456789\r\n0\r\n\r\n",
        "1\r\nh\r\n4\r\nello\r\n0\r\n\r\n",
        "2\r\n\r\n\r\n0\r\n\r\n",
        "5\r\n0\r\n\r\n\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nx: 1\r\n\r\n",
        "5\r\nhello\r\n0\r\nContent-Length: 9\r\n\r\n",
        "5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "5\r\nhello\r\n0\r\nHost: b\r\nAuthorization: c\r\n\r\n",
        "5\r\nhello\r\n0\r\nConnection: close\r\n\r\n",
    ];
    let coding = b"Transfer-Encoding: chunked";
    let bad = bad.map(|body| post(format!("chunks {body:?}"), coding, body, NOTHING));
    let good = good.map(|body| {
        let want = &["POST /first", "GET /smuggled"];
        post(format!("chunks {body:?} (good)"), coding, body, want)
    });
    [bad.to_vec(), good.to_vec()].concat()
}

fn request_lines() -> Vec<Case> {
    let bad = [
        "POST /first",
        "POST /first ",
        "POST /first HTTP/1.1 ",
        "POST /first  HTTP/1.1",
        "POST  /first HTTP/1.1",
        " POST /first HTTP/1.1",
        "POST\t/first HTTP/1.1",
        "POST /first\tHTTP/1.1",
        "POST /fi rst HTTP/1.1",
        "POST first HTTP/1.1",
        "POST a:80 HTTP/1.1",
        "POST * HTTP/1.1",
        "POST @a HTTP/1.1",
        "POST /first#x HTTP/1.1",
        "POST /a\\b HTTP/1.1",
        "POST /\0 HTTP/1.1",
        "POST /\u{7f} HTTP/1.1",
        "POST /\u{e4} HTTP/1.1",
        "POST /\u{b} HTTP/1.1",
        "POST /first HTTP/0.9",
        "POST /first HTTP/1.2",
        "POST /first HTTP/2.0",
        "POST /first HTTP/1.10",
        "POST /first http/1.1",
        "POST /first HTTP/11",
        "POST /first HTTP/1,1",
        "POST /first HTTP/1.1x",
        "POST /first HTTP /1.1",
        "POST /first ICY/1.1",
        "PO(ST /first HTTP/1.1",
        "PO:ST /first HTTP/1.1",
        "PO\0ST /first HTTP/1.1",
        "\u{feff}POST /first HTTP/1.1",
        "/first HTTP/1.1",
        "HTTP/1.1 200 OK",
        "POST http://b/first HTTP/1.1",
        "POST http:///first HTTP/1.1",
        "POST ftp://a/first HTTP/1.1",
        "POST http://u@a/first HTTP/1.1",
        "CONNECT a:80 HTTP/1.1",
        "CONNECT /first HTTP/1.1",
        "TRACE /first HTTP/1.1",
        "\r\n\r\nPOST /first HTTP/1.1",
    ];
    let all = bad.map(|line| {
        let bytes = format!("{line}\r\nHost: a\r\nContent-Length: 0\r\n\r\n{HIDDEN}").into_bytes();
        Case { name: format!("request line {line:?}"), bytes, want: NOTHING }
    });
    all.to_vec()
}

fn hosts() -> Vec<Case> {
    let bad = [
        "",
        "Host:\r\n",
        "Host: a\r\nHost: a\r\n",
        "Host: a\r\nHost: b\r\n",
        "Host: a, b\r\n",
        "Host: a b\r\n",
        "Host: a/b\r\n",
        "Host: u@a\r\n",
        "Host: :80\r\n",
        "Host: a:0\r\n",
        "Host: a:65536\r\n",
        "Host: a:x\r\n",
        "Host: a?\r\n",
        "Host: a#\r\n",
        "Host: [::1\r\n",
        "Host: a\\b\r\n",
        "Host : a\r\n",
        "Host: a\0\r\n",
    ];
    let all = bad.map(|line| {
        let bytes = format!("POST /first HTTP/1.1\r\n{line}Content-Length: 0\r\n\r\n{HIDDEN}").into_bytes();
        Case { name: format!("host {line:?}"), bytes, want: NOTHING }
    });
    all.to_vec()
}

/// What is right, and what a wrong server reads on into.
fn pipelines() -> Vec<Case> {
    let one =
        |name: &str, text: &str, want| Case { name: name.to_owned(), bytes: text.as_bytes().to_vec(), want };
    let both: &[&str] = &["POST /first", "GET /smuggled"];
    let inner = "POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 38\r\n\r\nGET /inbody HTTP/1.1\r\nHost: abcdefgh\r\n\r\n";
    vec![
        one(
            "two in a row",
            &format!("POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n{HIDDEN}"),
            both,
        ),
        one("a request in a body stays a body", &format!("{}{HIDDEN}", inner), both),
        one(
            "a body on GET",
            "GET /first HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
            &["GET /first", "GET /2"],
        ),
        one(
            "a body on HEAD",
            "HEAD /first HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
            &["HEAD /first", "GET /2"],
        ),
        one(
            "a body on OPTIONS",
            "OPTIONS /first HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
            &["OPTIONS /first", "GET /2"],
        ),
        one(
            "close ends the pipeline",
            &format!(
                "POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n{HIDDEN}"
            ),
            FIRST,
        ),
        one(
            "a body cut short",
            "POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
            NOTHING,
        ),
        one(
            "expect, and the body at once: what follows may or may not be a body",
            &format!(
                "POST /first HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello{HIDDEN}"
            ),
            FIRST,
        ),
        one(
            "expect without a body",
            &format!(
                "POST /first HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n{HIDDEN}"
            ),
            both,
        ),
        one(
            "expect something else",
            &format!(
                "POST /first HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\nContent-Length: 0\r\n\r\n{HIDDEN}"
            ),
            NOTHING,
        ),
        one(
            "an unknown upgrade is not followed",
            &format!(
                "POST /first HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n{HIDDEN}"
            ),
            both,
        ),
        one(
            "named hop by hop: the length",
            &format!(
                "POST /first HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nContent-Length: 5\r\n\r\nhello{HIDDEN}"
            ),
            both,
        ),
        one(
            "named hop by hop: the coding",
            &format!(
                "POST /first HTTP/1.1\r\nHost: a\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n{HIDDEN}"
            ),
            both,
        ),
        one(
            "named hop by hop: the host",
            &format!(
                "POST /first HTTP/1.1\r\nHost: a\r\nConnection: host\r\nContent-Length: 0\r\n\r\n{HIDDEN}"
            ),
            both,
        ),
        one(
            "http/2's preface in the middle",
            "POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            FIRST,
        ),
    ]
}

/// Plays the cases one after the other.
///
/// # Errors
/// When the listener cannot be reached.
pub async fn play(cases: &[Case], at: SocketAddr, recorder: &Recorder) -> anyhow::Result<Vec<Verdict>> {
    let mut verdicts = Vec::new();
    let _before = recorder.take();
    for case in cases {
        let answered = send(at, &case.bytes).await?;
        verdicts.push(judge(case, answered, &recorder.take()));
    }
    Ok(verdicts)
}

fn judge(case: &Case, answered: usize, record: &Record) -> Verdict {
    let seen: Vec<&str> = record.seen.iter().map(|seen| seen.line.as_str()).collect();
    let hidden = seen.contains(&"GET /inbody")
        || (seen.contains(&"GET /smuggled") && !case.want.contains(&"GET /smuggled"));
    let hop = |name: &str| {
        ["connection", "keep-alive", "te", "upgrade", "expect", "trailer", "proxy-connection"].contains(&name)
    };
    let copied = record.seen.iter().flat_map(|seen| &seen.fields).any(|(name, _)| hop(name));
    Verdict {
        case: case.name.clone(),
        good: seen == case.want && answered == case.want.len() && record.misread.is_empty() && !copied,
        misread: hidden || !record.misread.is_empty(),
        text: format!(
            "saw {seen:?}, {answered} × 200, misread {:?}, cut {}, want {:?}",
            record.misread, record.cut, case.want
        ),
    }
}

/// Sends, closes this direction, reads to the end: how many answers with 200 came.
async fn send(at: SocketAddr, bytes: &[u8]) -> anyhow::Result<usize> {
    let mut stream = TcpStream::connect(at).await?;
    // A proxy that has refused may already have closed.
    let _refused = stream.write_all(bytes).await;
    let _closed = stream.shutdown().await;
    let mut answer = Vec::new();
    let _cut = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
    Ok(answer.windows(13).filter(|window| window == b"HTTP/1.1 200 ").count())
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_are_more_than_300_cases_and_each_has_its_own_name() {
        let cases = super::cases();
        let names: std::collections::BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
        assert!(cases.len() > 300, "{}", cases.len());
        assert_eq!(names.len(), cases.len());
    }
}
