//! Hostile applications as data: answers that clients read differently, and what of them may reach whom.
//!
//! In: the [`cases`], played by the recording application when `/answer/N` is asked for. Out: a [`Verdict`] per case. Kept true: after each
//! answer two bystanders ask for something of their own, over the connections that the proxy kept. Not here: hostile requests (`framing`).

use std::{net::SocketAddr, sync::LazyLock, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// What may come of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// 502 or 503 of the proxy's own.
    Refused,
    /// This status and exactly this body, wholly framed.
    Is(u16, &'static str),
    /// An answer that visibly has no end.
    Cut,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Case {
    /// What is odd about it.
    pub name: String,
    /// Method of the request that it answers.
    pub method: &'static str,
    /// The answer's bytes.
    pub bytes: Vec<u8>,
    /// The application closes behind it.
    pub closes: bool,
    /// What may come of it.
    pub want: &'static [Want],
}

/// What came of a case.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The case.
    pub case: String,
    /// The client got what it may, and nobody got anything else.
    pub good: bool,
    /// A bystander got something that was not its own, or a hidden answer came through.
    pub mixed: bool,
    /// What was seen.
    pub text: String,
}

const REFUSED: &[Want] = &[Want::Refused];
const BROKEN: &[Want] = &[Want::Cut, Want::Refused];
const HELLO: &[Want] = &[Want::Is(200, "hello")];
/// Stands behind an answer, for a proxy that ends it too early.
const HIDDEN: &str = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled";

static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| [lengths(), heads(), bodies(), interim()].concat());

/// All of them; `/answer/N` is the N-th.
#[must_use]
pub fn cases() -> &'static [Case] {
    &CASES
}

fn case(name: impl Into<String>, bytes: impl Into<Vec<u8>>, want: &'static [Want]) -> Case {
    Case { name: name.into(), method: "GET", bytes: bytes.into(), closes: false, want }
}

/// An answer with 200, these field lines, this body, and [`HIDDEN`] behind it.
fn ok(lines: &str, body: &str, want: &'static [Want]) -> Case {
    case(format!("lines {lines:?}"), format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n{body}{HIDDEN}"), want)
}

fn lengths() -> Vec<Case> {
    let mut all = Vec::new();
    for value in ["+5", "-1", "0x5", "5 5", "5, 6", "5;", "five", "99999999999999999999", "\u{b}5"] {
        all.push(ok(&format!("Content-Length: {value}"), "hello", REFUSED));
    }
    for coding in ["xchunked", "chunked, chunked", "chunked, identity", "chunked;q=1", "\u{b}chunked"] {
        all.push(ok(&format!("Transfer-Encoding: {coding}"), "5\r\nhello\r\n0\r\n\r\n", REFUSED));
    }
    for lines in [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding : chunked",
        "Content-Length : 5",
    ] {
        all.push(ok(lines, "0\r\n\r\n", REFUSED));
    }
    all.push(ok("Content-Length: 5", "hello", HELLO));
    all.push(ok("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n", HELLO));
    all.push(case(
        "no content, yet a body",
        format!("HTTP/1.1 204 No Content\r\nContent-Length: 8\r\n\r\nsmuggled{HIDDEN}"),
        &[Want::Is(204, ""), Want::Refused],
    ));
    all.push(case(
        "not modified, yet a body",
        format!("HTTP/1.1 304 Not Modified\r\nContent-Length: 8\r\n\r\nsmuggled{HIDDEN}"),
        &[Want::Is(304, ""), Want::Refused],
    ));
    all.push(Case {
        method: "HEAD",
        ..case(
            "a body for HEAD",
            "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled",
            &[Want::Is(200, ""), Want::Refused],
        )
    });
    all
}

fn heads() -> Vec<Case> {
    let mut all = Vec::new();
    for start in [
        "HTTP/1.1 99 Low",
        "HTTP/1.1 1000 High",
        "HTTP/1.1 abc",
        "HTTP/1.1 20 Short",
        "HTTP/1.1  200 OK",
        "HTTP/2.0 200 OK",
        "HTTP/9.9 200 OK",
        "HTTP/1.1",
        "http/1.1 200 OK",
        " HTTP/1.1 200 OK",
        "ICY 200 OK",
        "SSH-2.0-x",
        "GET / HTTP/1.1",
        "smuggled",
    ] {
        let bytes = format!("{start}\r\nContent-Length: 5\r\n\r\nhello");
        all.push(case(format!("start {start:?}"), bytes, REFUSED));
    }
    for line in [
        "x: a\0b",
        "x: a\rb",
        "x\0: a",
        "x : a",
        "x",
        ": a",
        "x y: a",
        "x: a\r\n folded",
        "x\u{b}: a",
        " x: a",
    ] {
        all.push(ok(&format!("{line}\r\nContent-Length: 5"), "hello", REFUSED));
    }
    all.push(case("a field of 1 MiB", format!("HTTP/1.1 200 OK\r\nx: {}", "v".repeat(1 << 20)), REFUSED));
    all.push(case("10,000 fields", format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: 1\r\n".repeat(10_000)), REFUSED));
    all.push(case("http/2 settings", b"\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0".to_vec(), REFUSED));
    let ended = |name: &str, bytes: &str| Case { closes: true, ..case(name, bytes, REFUSED) };
    all.push(ended("nothing", ""));
    all.push(ended("half a head", "HTTP/1.1 200 OK\r\nContent-Le"));
    all
}

fn bodies() -> Vec<Case> {
    let mut all = Vec::new();
    for chunks in [
        "zz\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloXX\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "\r\n5\r\nhello\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
    ] {
        let bytes = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}{HIDDEN}");
        all.push(case(format!("chunks {chunks:?}"), bytes, BROKEN));
    }
    for trailer in ["Content-Length: 3", "Transfer-Encoding: chunked", "Host: b", "x: 1"] {
        let body = format!("5\r\nhello\r\n0\r\n{trailer}\r\n\r\n");
        all.push(ok(
            "Transfer-Encoding: chunked",
            &body,
            &[Want::Is(200, "hello"), Want::Cut, Want::Refused],
        ));
    }
    let ended = |name: &str, bytes: &str, want| Case { closes: true, ..case(name, bytes, want) };
    all.push(ended("a body that ends early", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", BROKEN));
    all.push(ended(
        "chunks that end early",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        BROKEN,
    ));
    all.push(ended("a body until the end", "HTTP/1.1 200 OK\r\n\r\nhello", HELLO));
    all
}

fn interim() -> Vec<Case> {
    let hello = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    vec![
        case("100, then the answer", format!("HTTP/1.1 100 Continue\r\n\r\n{hello}"), HELLO),
        case("103, then the answer", format!("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n{hello}"), HELLO),
        case("1,000 × 102", format!("{}{hello}", "HTTP/1.1 102 Processing\r\n\r\n".repeat(1000)), REFUSED),
        case(
            "101 that nobody asked for",
            format!("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n{HIDDEN}"),
            REFUSED,
        ),
    ]
}

/// Plays the cases one after the other.
///
/// # Errors
/// When the listener cannot be reached.
pub async fn play(at: SocketAddr) -> anyhow::Result<Vec<Verdict>> {
    let mut verdicts = Vec::new();
    for (number, case) in cases().iter().enumerate() {
        let answer = ask(at, case.method, &format!("/answer/{number}")).await?;
        let mut bystanders = true;
        for which in 0..2 {
            let path = format!("/bystander/{number}/{which}");
            let own = read(&ask(at, "GET", &path).await?, false);
            bystanders &= own == (200, path, true);
        }
        verdicts.push(judge(case, &answer, bystanders));
    }
    Ok(verdicts)
}

fn judge(case: &Case, answer: &[u8], bystanders: bool) -> Verdict {
    let (status, body, whole) = read(answer, case.method == "HEAD");
    let fits = |want: &Want| match *want {
        Want::Refused => matches!(status, 502 | 503),
        Want::Is(code, text) => status == code && body == text && whole,
        Want::Cut => !whole,
    };
    let hidden = answer.windows(8).any(|part| part == b"smuggled");
    let fitting = case.want.iter().any(fits);
    Verdict {
        case: case.name.clone(),
        good: fitting && bystanders && !hidden,
        mixed: hidden || !bystanders,
        text: format!(
            "{status} {body:?}, whole: {whole}, bystanders unhurt: {bystanders}, want {:?}",
            case.want
        ),
    }
}

/// Everything that comes back for one request on a connection of its own.
async fn ask(at: SocketAddr, method: &str, path: &str) -> anyhow::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(at).await?;
    let head = format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    let _cut = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
    Ok(answer)
}

/// Status, body without framing, and whether the body is whole. Status 0 is no answer.
fn read(answer: &[u8], is_head: bool) -> (u16, String, bool) {
    let text = String::from_utf8_lossy(answer).into_owned();
    // Interim answers are no answer yet.
    let start = ["HTTP/1.1 100 ", "HTTP/1.1 103 "].iter().any(|interim| text.starts_with(interim));
    let text = match text.split_once("\r\n\r\n") {
        Some((_, rest)) if start => rest.to_owned(),
        _ => text,
    };
    let Some((head, rest)) = text.split_once("\r\n\r\n") else { return (0, text, false) };
    let status = head.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0);
    let head = head.to_ascii_lowercase();
    if is_head || matches!(status, 204 | 304) {
        return (status, rest.to_owned(), true);
    }
    if head.contains("\r\ntransfer-encoding: chunked") {
        let (body, whole) = chunks(rest);
        return (status, body, whole);
    }
    let length = head.split("\r\ncontent-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
    let whole = length.is_none_or(|length| length.parse() == Ok(rest.len()));
    (status, rest.to_owned(), whole)
}

fn chunks(mut rest: &str) -> (String, bool) {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size =
            usize::from_str_radix(size.split(';').next().unwrap_or_default(), 16).unwrap_or(usize::MAX);
        if size == 0 {
            // Trailers, if any, then an empty line and nothing more.
            return (body, after == "\r\n" || after.ends_with("\r\n\r\n"));
        }
        let (Some(data), Some(next)) = (after.get(..size), after.get(size.saturating_add(2)..)) else {
            break;
        };
        body.push_str(data);
        rest = next;
    }
    (body, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_with_their_framing_and_what_has_no_end_is_not_whole() {
        for (answer, want) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", (200, "hello", true)),
            ("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello", (200, "hello", false)),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
                (200, "hello", true),
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx: 1\r\n\r\n",
                (200, "hello", true),
            ),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", (200, "hello", false)),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 502 No\r\ncontent-length: 0\r\n\r\n", (502, "", true)),
            ("", (0, "", false)),
        ] {
            let (status, body, whole) = read(answer.as_bytes(), false);
            assert_eq!((status, body.as_str(), whole), want, "{answer:?}");
        }
    }

    #[test]
    fn each_case_has_its_own_name() {
        let names: std::collections::BTreeSet<_> =
            cases().iter().map(|case| (&case.name, &case.bytes)).collect();
        assert_eq!(names.len(), cases().len());
    }
}
