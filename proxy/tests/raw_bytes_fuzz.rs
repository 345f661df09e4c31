//! Properties of the HTTP/1 parser over bytes that nobody chose: it never panics, cuts do not matter, what it takes an independent parser takes too.
//! In: random bytes, and requests made and then damaged; `corpus/` holds inputs that once went wrong or are worth keeping.
//! Out: verdicts compared between whole and cut input, with `httparse`, and with what was written.
//! Not here: single rules (`raw_bytes`).

use bytes::BytesMut;
use proptest::prelude::*;
use proxy::codec::h1::{Decoded, Decoder, Framing, HeadParser, Side};
use proxy::codec::{Limits, Scheme};

/// What came of some bytes: each head with its body, then why it stopped.
#[derive(Debug, PartialEq, Eq, Clone)]
struct Verdict {
    messages: Vec<(String, Vec<u8>, String)>,
    end: String,
}

/// Reads message after message from bytes that arrive in pieces of these sizes (the last one repeats).
fn judge(bytes: &[u8], pieces: &[usize], side: Side) -> Verdict {
    let limits = Limits { allow_connect: true, allow_http10: true, ..Limits::sidecar() };
    let mut parser = HeadParser::new(side);
    let mut decoder: Option<Decoder> = None;
    let mut buffer = BytesMut::new();
    let mut verdict = Verdict { messages: Vec::new(), end: String::new() };
    let mut rest = bytes;
    let mut piece = 0;
    loop {
        let refusal = 'more: {
            loop {
                match &mut decoder {
                    None => match parser.parse(&mut buffer, &limits) {
                        Ok(Some(parsed)) => {
                            let head =
                                format!("{:?} {:?} keep={}", parsed.head, parsed.framing, parsed.keep_alive);
                            verdict.messages.push((head, Vec::new(), String::new()));
                            decoder =
                                (parsed.framing != Framing::Empty).then(|| Decoder::new(parsed.framing));
                        }
                        Ok(None) => break 'more None,
                        Err(refusal) => break 'more Some(refusal),
                    },
                    Some(body) => {
                        let (_, data, trailers) = verdict.messages.last_mut().expect("a head came first");
                        match body.decode(&mut buffer, &limits) {
                            Ok(Decoded::Data(more)) => data.extend_from_slice(&more),
                            Ok(Decoded::Trailers(fields)) => *trailers = format!("{fields:?}"),
                            Ok(Decoded::End) => decoder = None,
                            Ok(Decoded::NeedMore) => break 'more None,
                            Err(refusal) => break 'more Some(refusal),
                        }
                    }
                }
            }
        };
        if let Some(refusal) = refusal {
            verdict.end = refusal.to_string();
            // How much of a broken body was handed out before the break depends on the cuts.
            if decoder.is_some()
                && let Some((_, data, _)) = verdict.messages.last_mut()
            {
                data.clear();
            }
            return verdict;
        }
        if rest.is_empty() {
            verdict.end = "more".to_owned();
            return verdict;
        }
        let size = pieces.get(piece).or(pieces.last()).copied().unwrap_or(1).clamp(1, rest.len());
        piece += 1;
        buffer.extend_from_slice(&rest[..size]);
        rest = &rest[size..];
    }
}

const REQUEST: Side = Side::Request(Scheme::Http);
const RESPONSE: Side = Side::Response { head: false, connect: false };

/// Text that a message might be made of, some of it wrong.
fn scrap() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => prop::sample::select(vec![
            "GET / HTTP/1.1\r\n", "POST /a?b HTTP/1.1\r\n", "GET http://a/ HTTP/1.1\r\n", "CONNECT a:1 HTTP/1.1\r\n", "OPTIONS * HTTP/1.0\r\n",
            "HTTP/1.1 200 OK\r\n", "HTTP/1.1 204 \r\n", "Host: a\r\n", "host: b\r\n", "Content-Length: 5\r\n", "content-length: 05\r\n",
            "Transfer-Encoding: chunked\r\n", "transfer-encoding: gzip\r\n", "Connection: close, x\r\n", "Upgrade: websocket\r\n", "Expect: 100-continue\r\n",
            "x: y\r\n", "\r\n", "\n", "\r", " ", ":", "5\r\nhello\r\n", "0\r\n\r\n", "0\r\nx: 1\r\n\r\n", "a;b=c\r\n0123456789\r\n", "hello",
        ]).prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..6),
    ]
}

fn scraps() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(scrap(), 0..14).prop_map(|scraps| scraps.concat())
}

/// A request that is right: method, path, fields, body, and whether it is chunked.
fn request() -> impl Strategy<Value = (String, String, Vec<(String, String)>, Vec<u8>, bool)> {
    (
        "[A-Z]{1,8}".prop_filter("has rules of its own", |method| method != "CONNECT" && method != "TRACE"),
        "/[!$-;=?-\\[\\]-z|~]{0,20}",
        prop::collection::vec(("x-[a-zA-Z0-9-]{1,8}", "[!-~]([ -~]{0,20}[!-~])?"), 0..6),
        prop::collection::vec(any::<u8>(), 0..300),
        any::<bool>(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn cuts_never_change_the_verdict(bytes in scraps(), pieces in prop::collection::vec(1usize..9, 1..20)) {
        for side in [REQUEST, RESPONSE] {
            let whole = judge(&bytes, &[usize::MAX], side);
            prop_assert_eq!(&judge(&bytes, &[1], side), &whole);
            prop_assert_eq!(&judge(&bytes, &pieces, side), &whole);
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for side in [REQUEST, RESPONSE] {
            prop_assert_eq!(judge(&bytes, &[1], side), judge(&bytes, &[usize::MAX], side));
        }
    }

    #[test]
    fn a_right_request_is_read_as_it_was_written((method, path, fields, body, chunked) in request()) {
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: a\r\n").into_bytes();
        for (name, value) in &fields {
            text.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        if chunked {
            text.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            for part in body.chunks(7) {
                text.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
                text.extend_from_slice(part);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\n\r\n");
        } else {
            text.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
            text.extend_from_slice(&body);
        }
        let mut buffer = BytesMut::from(&text[..]);
        let parsed = HeadParser::new(REQUEST).parse(&mut buffer, &Limits::sidecar());
        let parsed = parsed.map_err(|refusal| TestCaseError::fail(refusal.to_string()))?.expect("it is whole");
        prop_assert_eq!(parsed.head.method().as_str(), &method);
        prop_assert_eq!(parsed.head.path(), &path);
        let got: Vec<_> = parsed
            .head
            .iter()
            .filter(|(name, _)| name.starts_with("x-"))
            .map(|(name, value)| (name.to_owned(), String::from_utf8_lossy(value).into_owned()))
            .collect();
        let want: Vec<_> = fields.iter().map(|(name, value)| (name.to_lowercase(), value.clone())).collect();
        prop_assert_eq!(got, want);
        let verdict = judge(&text, &[3], REQUEST);
        prop_assert_eq!(verdict.end, "more");
        prop_assert_eq!(verdict.messages.len(), 1);
        prop_assert_eq!(&verdict.messages[0].1, &body);
    }

    #[test]
    fn a_damaged_request_is_refused_or_httparse_agrees((method, path, fields, _, _) in request(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: a\r\n").into_bytes();
        for (name, value) in &fields {
            text.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        text.extend_from_slice(b"\r\n");
        let at = at.index(text.len());
        text[at] = with;
        let mut buffer = BytesMut::from(&text[..]);
        let limits = Limits { allow_connect: true, ..Limits::sidecar() };
        if let Ok(Some(parsed)) = HeadParser::new(REQUEST).parse(&mut buffer, &limits) {
            let mut headers = [httparse::EMPTY_HEADER; 32];
            let mut other = httparse::Request::new(&mut headers);
            let status = other.parse(&text);
            prop_assert!(matches!(status, Ok(httparse::Status::Complete(_))), "httparse says {:?}", status);
            prop_assert_eq!(other.method, Some(parsed.head.method().as_str()));
            prop_assert!(other.path.is_some_and(|path| path == parsed.head.path() || path.ends_with(parsed.head.path())));
            for header in other.headers.iter().filter(|header| header.name.to_lowercase().starts_with("x-")) {
                prop_assert!(parsed.head.get_all(header.name).any(|value| value == header.value), "{}", header.name);
            }
        }
    }
}

#[test]
fn the_corpus_is_judged_the_same_however_it_is_cut() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut files = 0;
    for entry in std::fs::read_dir(&folder).expect("tests/corpus is there") {
        let path = entry.expect("a file").path();
        let bytes = std::fs::read(&path).expect("readable");
        files += 1;
        for side in [REQUEST, RESPONSE] {
            let whole = judge(&bytes, &[usize::MAX], side);
            for step in 1..bytes.len().min(64) {
                assert_eq!(judge(&bytes, &[step], side), whole, "{} in pieces of {step}", path.display());
            }
        }
    }
    assert!(files >= 5, "the corpus has {files} files");
}
