//! One head for requests and responses of HTTP/1.1 and HTTP/2; routing, filters and telemetry know only this.
//! In: what a parser found, or a head made here. Out: start line and fields to read and edit, and canonical HTTP/1 text.
//! Kept true: the authority is never a field; framing and connection fields are written by the codec, not copied.
//! Not here: parsing (`h1::parse`), HTTP/2 pseudo-headers (`h2::convert`).

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};
use http::{Method, StatusCode};

use super::fields::{Fields, Span};
use super::name::{Known, Name};

/// The protocol a head came in on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

impl Version {
    /// As it stands in access logs: `HTTP/1.1`, `HTTP/2`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Version::Http10 => "HTTP/1.0",
            Version::Http11 => "HTTP/1.1",
            Version::Http2 => "HTTP/2",
        }
    }
}

/// What the client says it speaks towards the origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Scheme {
    /// `http`.
    Http,
    /// `https`.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

#[derive(Clone)]
enum Start {
    Request { method: Method, scheme: Scheme, authority: Span, path: Span },
    Response { status: StatusCode },
}

/// The head of a request or of a response.
#[derive(Clone)]
pub struct Head {
    version: Version,
    start: Start,
    fields: Fields,
}

impl Head {
    /// A request over HTTP/1.1 and scheme `http`. `path` carries the query; it and `authority` are taken as they are,
    /// except that controls and spaces are dropped.
    pub fn request(method: Method, authority: &str, path: &str) -> Head {
        let mut head = Head::received_request(method, Version::Http11, Scheme::Http, Fields::new());
        head.set_authority(authority);
        head.set_path(path);
        head
    }

    /// A response over HTTP/1.1 without fields.
    pub fn response(status: StatusCode) -> Head {
        Head { version: Version::Http11, start: Start::Response { status }, fields: Fields::new() }
    }

    pub(crate) fn received_request(method: Method, version: Version, scheme: Scheme, fields: Fields) -> Head {
        let start = Start::Request { method, scheme, authority: Span::default(), path: Span::default() };
        Head { version, start, fields }
    }

    pub(crate) fn received_response(status: StatusCode, version: Version, fields: Fields) -> Head {
        Head { version, start: Start::Response { status }, fields }
    }

    pub(crate) fn set_received_target(&mut self, new_authority: Span, new_path: Span) {
        if let Start::Request { authority, path, .. } = &mut self.start {
            *authority = new_authority;
            *path = new_path;
        }
    }

    /// Whether this is the head of a request.
    pub fn is_request(&self) -> bool {
        matches!(self.start, Start::Request { .. })
    }

    /// The protocol it came in on. It says nothing about how it will be sent.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Changes the version that is shown.
    pub fn set_version(&mut self, version: Version) {
        self.version = version;
    }

    /// The method; of a response GET.
    pub fn method(&self) -> &Method {
        match &self.start {
            Start::Request { method, .. } => method,
            Start::Response { .. } => &Method::GET,
        }
    }

    /// Changes the method of a request.
    pub fn set_method(&mut self, new: Method) {
        if let Start::Request { method, .. } = &mut self.start {
            *method = new;
        }
    }

    /// The scheme; of a response `http`. On HTTP/1 it is the connection's, on HTTP/2 what `:scheme` said.
    pub fn scheme(&self) -> Scheme {
        match &self.start {
            Start::Request { scheme, .. } => *scheme,
            Start::Response { .. } => Scheme::Http,
        }
    }

    /// Changes the scheme of a request.
    pub fn set_scheme(&mut self, new: Scheme) {
        if let Start::Request { scheme, .. } = &mut self.start {
            *scheme = new;
        }
    }

    /// `Host` or `:authority`, host and optional port; empty for a response.
    pub fn authority(&self) -> &str {
        match &self.start {
            Start::Request { authority, .. } => self.start_text(*authority),
            Start::Response { .. } => "",
        }
    }

    /// Changes the authority of a request; controls and spaces are dropped.
    pub fn set_authority(&mut self, new: &str) {
        let span = self.add_start_text(new);
        if let Start::Request { authority, .. } = &mut self.start {
            *authority = span;
        }
    }

    /// Path and query as received: `/a?b`, `*` for `OPTIONS *`, empty for CONNECT and responses.
    pub fn path(&self) -> &str {
        match &self.start {
            Start::Request { path, .. } => self.start_text(*path),
            Start::Response { .. } => "",
        }
    }

    /// Changes path and query of a request; controls and spaces are dropped.
    pub fn set_path(&mut self, new: &str) {
        let span = self.add_start_text(new);
        if let Start::Request { path, .. } = &mut self.start {
            *path = span;
        }
    }

    /// The path before the first `?`.
    pub fn path_only(&self) -> &str {
        let path = self.path();
        path.split_once('?').map_or(path, |(path, _)| path)
    }

    /// What follows the first `?`.
    pub fn query(&self) -> Option<&str> {
        self.path().split_once('?').map(|(_, query)| query)
    }

    /// The status; of a request 200.
    pub fn status(&self) -> StatusCode {
        match self.start {
            Start::Response { status } => status,
            Start::Request { .. } => StatusCode::OK,
        }
    }

    /// Changes the status of a response.
    pub fn set_status(&mut self, new: StatusCode) {
        if let Start::Response { status } = &mut self.start {
            *status = new;
        }
    }

    /// The protocol that `Upgrade` names, if this asks for (or, with status 101, agrees to) leaving HTTP.
    /// `h2c` never shows: it is not offered and not forwarded.
    pub fn upgrade(&self) -> Option<&[u8]> {
        let value = self.fields.get(Known::Upgrade)?;
        (self.is_request() || self.status() == StatusCode::SWITCHING_PROTOCOLS).then_some(value)
    }

    /// Makes it an ordinary exchange.
    pub fn clear_upgrade(&mut self) {
        self.fields.remove(Known::Upgrade);
    }

    /// All fields, for reading. The authority is not among them.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// All fields, for editing. NOTE: a `host` field set here is not sent; use [`Head::set_authority`].
    pub fn fields_mut(&mut self) -> &mut Fields {
        &mut self.fields
    }

    /// The first value of a name; `host` of a request gives the authority.
    pub fn get<'a>(&self, name: impl Into<Name<'a>>) -> Option<&[u8]> {
        match name.into() {
            Name::Known(Known::Host) if self.is_request() => {
                Some(self.authority().as_bytes()).filter(|authority| !authority.is_empty())
            }
            name => self.fields.get(name),
        }
    }

    /// The first value of a name, if it is UTF-8.
    pub fn get_str<'a>(&self, name: impl Into<Name<'a>>) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// All values of a name, in order.
    pub fn get_all<'a>(&self, name: impl Into<Name<'a>>) -> impl Iterator<Item = &[u8]> {
        let name = name.into();
        let host = matches!(name, Name::Known(Known::Host)).then(|| self.get(Known::Host)).flatten();
        host.into_iter().chain(self.fields.get_all(name))
    }

    /// All values of a name joined with `,`, the form that header matching judges.
    pub fn get_joined<'a>(&self, name: impl Into<Name<'a>>) -> Option<Cow<'_, [u8]>> {
        match name.into() {
            Name::Known(Known::Host) => self.get(Known::Host).map(Cow::Borrowed),
            name => self.fields.get_joined(name),
        }
    }

    /// Whether a name is there.
    pub fn contains<'a>(&self, name: impl Into<Name<'a>>) -> bool {
        self.get(name).is_some()
    }

    /// Replaces every field of this name by one ([`Fields::set`]); `host` of a request sets the authority.
    pub fn set<'a>(&mut self, name: impl Into<Name<'a>>, value: impl AsRef<[u8]>) {
        match name.into() {
            Name::Known(Known::Host) if self.is_request() => {
                let authority = String::from_utf8_lossy(value.as_ref()).into_owned();
                self.set_authority(&authority);
            }
            name => self.fields.set(name, value),
        }
    }

    /// Adds a field at the end ([`Fields::append`]); `host` of a request sets the authority.
    pub fn append<'a>(&mut self, name: impl Into<Name<'a>>, value: impl AsRef<[u8]>) {
        match name.into() {
            name @ Name::Known(Known::Host) => self.set(name, value),
            name => self.fields.append(name, value),
        }
    }

    /// Adds a field if the name is not there.
    pub fn set_if_absent<'a>(&mut self, name: impl Into<Name<'a>>, value: impl AsRef<[u8]>) {
        let name = name.into();
        if !self.contains(name) {
            self.append(name, value);
        }
    }

    /// Removes every field of this name; says whether there was one. The authority stays.
    pub fn remove<'a>(&mut self, name: impl Into<Name<'a>>) -> bool {
        self.fields.remove(name)
    }

    /// Keeps the fields that the function wants.
    pub fn retain(&mut self, keep: impl FnMut(&str, &[u8]) -> bool) {
        self.fields.retain(keep);
    }

    /// The fields in order, names lower-case, without the authority.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.fields.iter()
    }

    /// The fields in order with the number of the known ones.
    pub fn iter_known(&self) -> impl Iterator<Item = (Option<Known>, &str, &[u8])> {
        self.fields.iter_known()
    }

    /// How many fields there are.
    pub fn field_count(&self) -> usize {
        self.fields.field_count()
    }

    /// Its size as HTTP/1 text in bytes, near enough for statistics.
    pub fn wire_size(&self) -> usize {
        let start = match &self.start {
            Start::Request { method, authority, path, .. } => {
                method.as_str().len() + path.len() + authority.len() + 22
            }
            Start::Response { status } => 15 + status.canonical_reason().map_or(0, str::len),
        };
        start + self.fields.wire_size() + 2
    }

    /// What `content-length` said when the head was received. What is sent follows the body instead.
    pub fn content_length(&self) -> Option<u64> {
        digits(self.fields.get(Known::ContentLength)?)
    }

    /// Writes start line, authority and the fields that may be copied, in HTTP/1.1 form; framing lines and the empty line are the caller's.
    pub(crate) fn write_h1(&self, out: &mut BytesMut, keep_content_length: bool) {
        match &self.start {
            Start::Request { method, authority, path, .. } => {
                out.put_slice(method.as_str().as_bytes());
                out.put_u8(b' ');
                let target = if *method == Method::CONNECT { *authority } else { *path };
                out.put_slice(self.fields.text(target));
                out.put_slice(b" HTTP/1.1\r\nhost: ");
                out.put_slice(self.fields.text(*authority));
                out.put_slice(b"\r\n");
            }
            Start::Response { status } => {
                out.put_slice(b"HTTP/1.1 ");
                out.put_slice(status.as_str().as_bytes());
                out.put_u8(b' ');
                out.put_slice(status.canonical_reason().unwrap_or("Unknown").as_bytes());
                out.put_slice(b"\r\n");
            }
        }
        self.fields.write_lines(out, |known, value| match known {
            Some(Known::ContentLength) => keep_content_length,
            Some(Known::Host | Known::Expect) => false,
            Some(Known::Te) => value.eq_ignore_ascii_case(b"trailers"),
            Some(known) => !known.is_hop_by_hop(),
            None => true,
        });
    }

    /// Text of the start line was checked when it was received or set.
    fn start_text(&self, span: Span) -> &str {
        std::str::from_utf8(self.fields.text(span)).unwrap_or_default()
    }

    fn add_start_text(&mut self, text: &str) -> Span {
        if text.bytes().all(|byte| byte > b' ' && byte != 0x7f) {
            return self.fields.add_text(text.as_bytes());
        }
        let clean: Vec<u8> = text.bytes().filter(|byte| *byte > b' ' && *byte != 0x7f).collect();
        self.fields.add_text(&clean)
    }
}

/// A decimal number of digits only, without sign or leading zeros.
pub(crate) fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 || (text.len() > 1 && text[0] == b'0') {
        return None;
    }
    text.iter().try_fold(0u64, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + u64::from(byte - b'0')))
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.start {
            Start::Request { method, .. } => {
                write!(f, "{method} {} {} host={} ", self.path(), self.version.as_str(), self.authority())?;
            }
            Start::Response { status } => write!(f, "{} {} ", self.version.as_str(), status.as_u16())?,
        }
        self.fields.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_is_the_authority_and_never_a_field() {
        let mut head = Head::request(Method::GET, "reviews:9080", "/a?b=1&c");
        head.set("Host", "ratings");
        head.append("x-a", "1");
        assert_eq!((head.authority(), head.get_str("HOST")), ("ratings", Some("ratings")));
        assert_eq!((head.path_only(), head.query()), ("/a", Some("b=1&c")));
        assert_eq!(head.iter().count(), 1);
        let mut out = BytesMut::new();
        head.write_h1(&mut out, false);
        assert_eq!(&out[..], b"GET /a?b=1&c HTTP/1.1\r\nhost: ratings\r\nx-a: 1\r\n");
    }

    #[test]
    fn connection_fields_and_framing_are_never_copied() {
        let mut head = Head::response(StatusCode::OK);
        for (name, value) in [
            ("connection", "close"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("te", "gzip"),
            ("keep-alive", "1"),
            ("expect", "100-continue"),
            ("upgrade", "h2c"),
            ("x-kept", "1"),
        ] {
            head.append(name, value);
        }
        let mut out = BytesMut::new();
        head.write_h1(&mut out, false);
        assert_eq!(&out[..], b"HTTP/1.1 200 OK\r\nx-kept: 1\r\n");
    }

    #[test]
    fn start_line_edits_cannot_smuggle() {
        let head = Head::request(Method::GET, "a b\r\nx: 1", "/a b\r\n");
        assert_eq!((head.authority(), head.path()), ("abx:1", "/ab"));
    }

    #[test]
    fn content_length_is_digits_only() {
        for (text, want) in [
            ("0", Some(0)),
            ("5", Some(5)),
            ("9999999999999999999", Some(9_999_999_999_999_999_999)),
            ("", None),
            ("+5", None),
            ("-0", None),
            ("005", None),
            ("5,5", None),
            ("0x5", None),
            ("18446744073709551616", None),
        ] {
            assert_eq!(digits(text.as_bytes()), want, "{text}");
        }
    }
}
