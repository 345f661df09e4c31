//! A strict push parser for the heads of HTTP/1 requests and responses.
//! In: a growing buffer. Out: [`Parsed`] head, body framing and connection wishes, or the [`Refusal`] to answer with.
//! Kept true: each line is judged once, when it is complete, so the result does not depend on how the bytes arrived.
//! Not here: bodies (`decode`), writing (`encode`), what a path means (`http`).

use bytes::BytesMut;
use http::{Method, StatusCode};

use super::target;
use crate::codec::fields::{Fields, Span};
use crate::codec::head::{Head, Scheme, Version, digits};
use crate::codec::limits::{Limits, Refusal};
use crate::codec::name::{Known, MAX_NAME, is_token};

/// A line of text that is not of this protocol.
pub(crate) const NOT_HTTP: Refusal = Refusal::bad("not http");

/// Which kind of head is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Requests, over a connection of this scheme.
    Request(Scheme),
    /// The response to a request; `head` if that was HEAD, `connect` if CONNECT.
    Response {
        /// The request was HEAD: the response has no body whatever it says.
        head: bool,
        /// The request was CONNECT: a 2xx response has no body.
        connect: bool,
    },
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// After so many bytes, more than zero.
    Length(u64),
    /// After the last chunk and its trailers.
    Chunked,
    /// When the connection closes (responses only).
    UntilClose,
}

/// A complete head.
#[derive(Debug)]
pub struct Parsed {
    /// Start line and end-to-end fields; connection fields are gone.
    pub head: Head,
    /// How the body ends.
    pub framing: Framing,
    /// Whether the peer wants the connection to live on.
    pub keep_alive: bool,
    /// Whether a client waits for `100 Continue`.
    pub expect_continue: bool,
}

/// Reads one head after another from a buffer. `parse` with more bytes until it gives a head.
#[derive(Debug)]
pub struct HeadParser {
    side: Side,
    draft: Draft,
}

#[derive(Debug, Default)]
struct Draft {
    /// Where the line that is being read starts, and up to where no line end was found.
    line: usize,
    scanned: usize,
    start: Option<StartLine>,
    blank_lines: u8,
    lines: usize,
    fields: Fields,
    host: Option<Span>,
    lengths: u8,
    length: u64,
    codings: u8,
    chunked: bool,
    close: bool,
    keep: bool,
    upgrade_wanted: bool,
    upgrade: Option<Span>,
    nominated: Vec<Span>,
    expect_continue: bool,
}

#[derive(Debug)]
enum StartLine {
    Request { method: Method, version: Version, scheme: Option<Scheme>, authority: Option<Span>, path: Span },
    Response { status: StatusCode, version: Version },
}

impl StartLine {
    fn version(&self) -> Version {
        match self {
            StartLine::Request { version, .. } | StartLine::Response { version, .. } => *version,
        }
    }
}

impl HeadParser {
    /// A parser for heads of this kind.
    pub fn new(side: Side) -> HeadParser {
        HeadParser { side, draft: Draft::default() }
    }

    /// Begins anew for another kind of head.
    pub fn expect(&mut self, side: Side) {
        *self = HeadParser::new(side);
    }

    /// Whether nothing of a head has been seen yet.
    pub fn is_fresh(&self, buffer: &BytesMut) -> bool {
        buffer.is_empty() && self.draft.line == 0
    }

    /// Looks at what has come in. `buffer` holds everything since the end of the last message, and must only grow between calls.
    /// A complete head is split off it. After a refusal neither parser nor buffer is of use.
    pub fn parse(&mut self, buffer: &mut BytesMut, limits: &Limits) -> Result<Option<Parsed>, Refusal> {
        if self.draft.start.is_none() {
            not_another_protocol(self.side, buffer)?;
        }
        loop {
            let draft = &mut self.draft;
            let end = memchr::memchr(b'\n', &buffer[draft.scanned..]).map(|at| draft.scanned + at + 1);
            let reached = end.unwrap_or(buffer.len());
            let in_start_line = draft.start.is_none();
            if in_start_line && reached - draft.line > limits.head_bytes.min(limits.target_bytes + 64) {
                return Err(Refusal::with(StatusCode::URI_TOO_LONG, "request target too long"));
            }
            if reached > limits.head_bytes {
                return Err(Refusal::with(
                    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                    "header section too large",
                ));
            }
            let Some(end) = end else {
                draft.scanned = buffer.len();
                return Ok(None);
            };
            let from = draft.line;
            draft.line = end;
            draft.scanned = end;
            if end - from < 2 || buffer[end - 2] != b'\r' {
                return Err(Refusal::bad("line ends without cr"));
            }
            let line = from..end - 2;
            if in_start_line {
                if line.is_empty() {
                    // RFC 9112 §2.2: one empty line before a request line is forgiven.
                    draft.blank_lines += 1;
                    if draft.blank_lines > 1 || matches!(self.side, Side::Response { .. }) {
                        return Err(Refusal::bad("empty line instead of a start line"));
                    }
                    continue;
                }
                draft.start = Some(match self.side {
                    Side::Request(_) => request_line(&buffer[line.clone()], from, limits)?,
                    Side::Response { .. } => status_line(&buffer[line.clone()])?,
                });
                draft.fields = Fields::with_capacity(16);
            } else if line.is_empty() {
                let draft = std::mem::take(&mut self.draft);
                return finish(draft, self.side, buffer, limits).map(Some);
            } else {
                draft.lines += 1;
                if draft.lines > limits.head_fields {
                    return Err(Refusal::with(
                        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                        "too many header fields",
                    ));
                }
                let rules = match self.side {
                    Side::Request(_) => FieldRules::request(limits),
                    Side::Response { .. } => FieldRules::LENIENT,
                };
                let field = field_line(&mut buffer[line], from, rules)?;
                take_field(draft, self.side, &field, buffer)?;
            }
        }
    }
}

/// Refuses what can be seen not to be HTTP/1 before its first line is whole: it may never have one.
fn not_another_protocol(side: Side, begin: &[u8]) -> Result<(), Refusal> {
    const VERSION: &[u8] = b"HTTP/";
    let Some(first) = begin.first() else { return Ok(()) };
    match side {
        Side::Request(_) if !is_token(*first) && *first != b'\r' => Err(Refusal::bad("not an http request")),
        Side::Response { .. } if !begin.iter().zip(VERSION).all(|(is, should)| is == should) => {
            Err(Refusal::bad("not an http response"))
        }
        _ => Ok(()),
    }
}

/// What field names and values may hold.
#[derive(Clone, Copy)]
pub(crate) struct FieldRules {
    underscores: bool,
    obs_text: bool,
}

impl FieldRules {
    pub(crate) const LENIENT: FieldRules = FieldRules { underscores: true, obs_text: true };

    pub(crate) fn request(limits: &Limits) -> FieldRules {
        FieldRules { underscores: limits.allow_underscores, obs_text: limits.allow_obs_text }
    }
}

/// A field line taken apart.
pub(crate) struct FieldLine {
    pub known: Option<Known>,
    pub name: Span,
    pub value: Span,
}

/// Judges one field line (without its line end) that starts at `from` of the block; lower-cases the name in place.
pub(crate) fn field_line(line: &mut [u8], from: usize, rules: FieldRules) -> Result<FieldLine, Refusal> {
    let colon = line.iter().position(|byte| !is_token(*byte)).unwrap_or(line.len());
    match line.get(colon) {
        Some(b':') if colon > 0 && colon <= MAX_NAME => {}
        Some(b':') if colon == 0 => return Err(Refusal::bad("empty header name")),
        Some(b':') => {
            return Err(Refusal::with(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "header name too long"));
        }
        Some(b' ' | b'\t') if colon == 0 => return Err(Refusal::bad("folded header line")),
        Some(b' ' | b'\t') => return Err(Refusal::bad("space in header name")),
        Some(_) => return Err(Refusal::bad("invalid byte in header name")),
        None => return Err(Refusal::bad("header line without colon")),
    }
    let (name, value) = line.split_at_mut(colon);
    if !rules.underscores && name.contains(&b'_') {
        return Err(Refusal::bad("underscore in header name"));
    }
    name.make_ascii_lowercase();
    let value = &value[1..];
    // One pass without early exit, so that it vectorises.
    let control =
        value.iter().fold(false, |bad, byte| bad | ((*byte < 0x20) & (*byte != b'\t')) | (*byte == 0x7f));
    if control {
        return Err(Refusal::bad("control byte in header value"));
    }
    if !rules.obs_text && !value.is_ascii() {
        return Err(Refusal::bad("byte above 0x7f in header value"));
    }
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let lead = value.iter().take_while(|byte| is_space(byte)).count();
    let tail = value[lead..].iter().rev().take_while(|byte| is_space(byte)).count();
    Ok(FieldLine {
        known: Known::from_lower(name),
        name: Span::received(from, colon),
        value: Span::received(from + colon + 1 + lead, value.len() - lead - tail),
    })
}

fn request_line(line: &[u8], from: usize, limits: &Limits) -> Result<StartLine, Refusal> {
    let first = line.iter().position(|byte| !is_token(*byte)).unwrap_or(line.len());
    if first == 0 || line.get(first) != Some(&b' ') {
        return Err(Refusal::bad("invalid method"));
    }
    if first > 32 {
        return Err(Refusal::with(StatusCode::NOT_IMPLEMENTED, "method too long"));
    }
    let rest = &line[first + 1..];
    let Some(second) = memchr::memchr(b' ', rest) else {
        return Err(Refusal::bad("request line without version"));
    };
    let (target, version) = (&rest[..second], &rest[second + 1..]);
    if target.len() > limits.target_bytes {
        return Err(Refusal::with(StatusCode::URI_TOO_LONG, "request target too long"));
    }
    let version = http_version(version)?;
    let method = Method::from_bytes(&line[..first]).map_err(|_| Refusal::bad("invalid method"))?;
    if method == Method::CONNECT && !limits.allow_connect {
        return Err(Refusal::with(StatusCode::METHOD_NOT_ALLOWED, "connect is not allowed here"));
    }
    if method == Method::TRACE && !limits.allow_trace {
        return Err(Refusal::with(StatusCode::METHOD_NOT_ALLOWED, "trace is not allowed here"));
    }
    if version == Version::Http10 && !limits.allow_http10 {
        return Err(Refusal::with(StatusCode::UPGRADE_REQUIRED, "http/1.0 is not served"));
    }
    let parts = target::parse(&method, target)?;
    let at = from + first + 1;
    let span = |range: std::ops::Range<usize>| Span::received(at + range.start, range.len());
    Ok(StartLine::Request {
        method,
        version,
        scheme: parts.scheme,
        authority: parts.authority.map(span),
        path: span(parts.path),
    })
}

fn status_line(line: &[u8]) -> Result<StartLine, Refusal> {
    let (Some(version), Some(rest)) = (line.get(..8), line.get(8..)) else {
        return Err(Refusal::bad("not an http response"));
    };
    let version = http_version(version)?;
    let [b' ', status @ ..] = rest else { return Err(Refusal::bad("invalid status line")) };
    let (code, reason) = status.split_at_checked(3).ok_or(Refusal::bad("invalid status"))?;
    if !matches!(reason.first(), None | Some(b' '))
        || reason.iter().any(|byte| *byte < 0x20 && *byte != b'\t')
    {
        return Err(Refusal::bad("invalid reason phrase"));
    }
    let status = StatusCode::from_bytes(code).map_err(|_| Refusal::bad("invalid status"))?;
    if status.as_u16() > 599 {
        return Err(Refusal::bad("status above 599"));
    }
    Ok(StartLine::Response { status, version })
}

fn http_version(text: &[u8]) -> Result<Version, Refusal> {
    match text {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Err(Refusal::with(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "http version not supported"))
        }
        _ if !text.starts_with(b"HTTP/") => Err(NOT_HTTP),
        _ => Err(Refusal::bad("invalid http version")),
    }
}

/// Keeps an end-to-end field; turns one about framing or the connection into a fact.
fn take_field(draft: &mut Draft, side: Side, field: &FieldLine, buffer: &BytesMut) -> Result<(), Refusal> {
    let value = || {
        let at = field.value.start();
        &buffer[at..at + field.value.len()]
    };
    match field.known {
        Some(Known::Host) if matches!(side, Side::Request(_)) => {
            if draft.host.replace(field.value).is_some() {
                return Err(Refusal::bad("more than one host"));
            }
        }
        Some(Known::ContentLength) => {
            draft.lengths = draft.lengths.saturating_add(1);
            if draft.lengths > 1 {
                return Err(Refusal::bad("more than one content-length"));
            }
            draft.length = digits(value()).ok_or(Refusal::bad("invalid content-length"))?;
            draft.fields.push_received(field.known, field.name, field.value);
        }
        Some(Known::TransferEncoding) => {
            draft.codings = draft.codings.saturating_add(1);
            if draft.codings > 1 {
                return Err(Refusal::bad("more than one transfer-encoding"));
            }
            if !value().eq_ignore_ascii_case(b"chunked") {
                return Err(Refusal::with(StatusCode::NOT_IMPLEMENTED, "transfer-encoding is not chunked"));
            }
            draft.chunked = true;
        }
        Some(Known::Connection) => {
            for (at, item) in list_items(value()) {
                if item.eq_ignore_ascii_case(b"close") {
                    draft.close = true;
                } else if item.eq_ignore_ascii_case(b"keep-alive") {
                    draft.keep = true;
                } else if item.eq_ignore_ascii_case(b"upgrade") {
                    draft.upgrade_wanted = true;
                } else {
                    draft.nominated.push(Span::received(field.value.start() + at, item.len()));
                }
            }
        }
        Some(Known::Upgrade) => {
            if draft.upgrade.replace(field.value).is_some() {
                return Err(Refusal::bad("more than one upgrade"));
            }
        }
        Some(Known::Expect) => {
            if matches!(side, Side::Request(_)) {
                if !value().eq_ignore_ascii_case(b"100-continue") {
                    return Err(Refusal::with(StatusCode::EXPECTATION_FAILED, "unknown expectation"));
                }
                draft.expect_continue = true;
            }
        }
        Some(Known::Te) => {
            let trailers = list_items(value()).find(|(_, item)| item.eq_ignore_ascii_case(b"trailers"));
            if let Some((at, item)) = trailers {
                let span = Span::received(field.value.start() + at, item.len());
                draft.fields.push_received(field.known, field.name, span);
            }
        }
        Some(known) if known.is_hop_by_hop() => {}
        known => draft.fields.push_received(known, field.name, field.value),
    }
    Ok(())
}

fn finish(mut draft: Draft, side: Side, buffer: &mut BytesMut, limits: &Limits) -> Result<Parsed, Refusal> {
    let Some(start) = draft.start.take() else { return Err(Refusal::bad("no start line")) };
    let version = start.version();
    if draft.codings > 0 && (draft.lengths > 0 || version == Version::Http10) {
        return Err(Refusal::bad("transfer-encoding with content-length or http/1.0"));
    }
    // A head that came alone, as most do, keeps its memory without a count beside it.
    let block = match draft.line == buffer.len() {
        true => std::mem::take(buffer).freeze(),
        false => buffer.split_to(draft.line).freeze(),
    };
    draft.fields.set_block(block);
    // Names that `Connection` lists belong to this hop; but a name that we know is never one a peer may take away.
    for span in std::mem::take(&mut draft.nominated) {
        let name = draft.fields.text(span).to_ascii_lowercase();
        if Known::from_lower(&name).is_none()
            && let Ok(name) = std::str::from_utf8(&name)
        {
            draft.fields.remove(name);
        }
    }
    let keep_alive = !draft.close && (version == Version::Http11 || draft.keep);
    let mut framing = match (draft.chunked, draft.lengths > 0, draft.length) {
        (true, ..) => Framing::Chunked,
        (_, true, 0) => Framing::Empty,
        (_, true, length) => Framing::Length(length),
        _ => Framing::Empty,
    };
    match (start, side) {
        (StartLine::Request { method, version, scheme, authority, path }, Side::Request(wire_scheme)) => {
            let authority = request_authority(&draft, &method, version, scheme, authority, wire_scheme)?;
            if limits.strict_scheme && scheme.is_some_and(|scheme| scheme != wire_scheme) {
                return Err(Refusal::bad("scheme of the target is not the connection's"));
            }
            if method == Method::CONNECT && framing != Framing::Empty {
                return Err(Refusal::bad("connect with a body"));
            }
            let upgrade = draft.upgrade.filter(|span| {
                draft.upgrade_wanted
                    && limits.allow_upgrade
                    && framing == Framing::Empty
                    && version == Version::Http11
                    && !draft.fields.text(*span).eq_ignore_ascii_case(b"h2c")
                    && span.len() > 0
            });
            if let Some(span) = upgrade {
                draft.fields.push_received(Some(Known::Upgrade), Span::default(), span);
            }
            let path = match scheme {
                Some(_) if path.len() == 0 => draft.fields.add_text(b"/"),
                _ => path,
            };
            let mut head =
                Head::received_request(method, version, scheme.unwrap_or(wire_scheme), draft.fields);
            head.set_received_target(authority, path);
            let expect_continue = draft.expect_continue && framing != Framing::Empty;
            Ok(Parsed { head, framing, keep_alive, expect_continue })
        }
        (StartLine::Response { status, version }, Side::Response { head: to_head, connect }) => {
            let switching = status == StatusCode::SWITCHING_PROTOCOLS;
            let bodyless = to_head
                || status.is_informational()
                || status == StatusCode::NO_CONTENT
                || status == StatusCode::NOT_MODIFIED
                || (connect && status.is_success());
            if bodyless {
                framing = Framing::Empty;
            } else if draft.lengths == 0 && draft.codings == 0 {
                framing = Framing::UntilClose;
            }
            if let Some(span) = draft.upgrade.filter(|span| switching && span.len() > 0) {
                draft.fields.push_received(Some(Known::Upgrade), Span::default(), span);
            }
            let keep_alive = keep_alive && framing != Framing::UntilClose && !switching;
            let head = Head::received_response(status, version, draft.fields);
            Ok(Parsed { head, framing, keep_alive, expect_continue: false })
        }
        _ => Err(Refusal::bad("start line of the other kind")),
    }
}

/// Settles which authority a request is for: `Host`. An absolute form must agree with it (RFC 9112 §3.2.2 lets it win; we refuse),
/// a CONNECT target must too, except that it always names a port and wins.
fn request_authority(
    draft: &Draft,
    method: &Method,
    version: Version,
    scheme: Option<Scheme>,
    in_target: Option<Span>,
    wire_scheme: Scheme,
) -> Result<Span, Refusal> {
    let Some(host) = draft.host else {
        return match version {
            Version::Http10 => Ok(in_target.unwrap_or_default()),
            _ => Err(Refusal::bad("no host")),
        };
    };
    let host_text = draft.fields.text(host);
    if !target::valid_authority(host_text) {
        return Err(Refusal::bad("invalid host"));
    }
    let Some(authority) = in_target else { return Ok(host) };
    let text = draft.fields.text(authority);
    if *method == Method::CONNECT {
        let rest = text.get(host_text.len()..).unwrap_or_default();
        let agrees = text.get(..host_text.len()).is_some_and(|start| start.eq_ignore_ascii_case(host_text))
            && matches!(rest.first(), None | Some(b':'));
        return if agrees { Ok(authority) } else { Err(Refusal::bad("target and host differ")) };
    }
    match target::same_authority(host_text, text, scheme.unwrap_or(wire_scheme)) {
        true => Ok(host),
        false => Err(Refusal::bad("target and host differ")),
    }
}

/// The items of a comma list with their offsets, empty ones left out.
fn list_items(value: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0;
    value.split(|byte| *byte == b',').filter_map(move |item| {
        let start = at;
        at += item.len() + 1;
        let lead = item.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        let item = item.trim_ascii();
        (!item.is_empty()).then_some((start + lead, item))
    })
}
