//! Lines of access logs: Envoy's `%COMMAND%` texts and JSON objects, compiled once.
//!
//! In: a [`LogFormat`], an [`Entry`]. Out: bytes of one line. Kept true: what a client sent cannot end a line, close a quote or move a
//! cursor; an unknown command prints `-`. Not here: writing (`access_log`).

use std::{fmt::Write as _, net::SocketAddr, time::SystemTime};

use mesh_traffic::{ResponseFlags, listener::LogFormat};
use time::{OffsetDateTime, macros::format_description};

use crate::codec::Head;

/// Everything that a line may show.
#[derive(Debug)]
pub struct Entry<'a> {
    /// When the first byte came.
    pub start: SystemTime,
    /// The request; `None` for TCP.
    pub request: Option<&'a Head>,
    /// The response, if there was one.
    pub response: Option<&'a Head>,
    /// Status; 0 for none.
    pub code: u16,
    /// Flags.
    pub flags: ResponseFlags,
    /// Response code details.
    pub detail: &'a str,
    /// Why the connection ended, if the proxy ended it.
    pub termination: &'a str,
    /// Why no upstream connection was made.
    pub transport_failure: &'a str,
    /// Body bytes from the client.
    pub received: u64,
    /// Body bytes to the client.
    pub sent: u64,
    /// Milliseconds from the first byte to the last.
    pub duration_ms: u128,
    /// Endpoint.
    pub upstream: Option<SocketAddr>,
    /// Cluster.
    pub cluster: &'a str,
    /// Our end of the upstream connection.
    pub upstream_local: Option<SocketAddr>,
    /// Where the client connected to.
    pub local: SocketAddr,
    /// Client.
    pub remote: SocketAddr,
    /// Server name of TLS.
    pub server_name: &'a str,
    /// Route.
    pub route: &'a str,
    /// Verified identity of the client.
    pub peer: &'a str,
}

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Request(String, Option<String>, Option<usize>),
    Response(String, Option<String>, Option<usize>),
    Command(String),
}

/// A format, compiled.
#[derive(Debug)]
pub struct Compiled {
    text: Vec<Piece>,
    json: Vec<(String, Vec<Piece>)>,
}

impl Compiled {
    /// Compiles a format. What is not a command stays text.
    #[must_use]
    pub fn new(format: &LogFormat) -> Self {
        match format {
            LogFormat::Text(text) => Self { text: pieces(text), json: Vec::new() },
            LogFormat::Json(fields) => {
                let field = |(name, text): &(_, _)| -> (String, Vec<Piece>) {
                    let (name, text): (&std::sync::Arc<str>, &std::sync::Arc<str>) = (name, text);
                    (name.to_string(), pieces(text))
                };
                Self { text: Vec::new(), json: fields.iter().map(field).collect() }
            }
        }
    }

    /// The line of an entry, with its line break.
    #[must_use]
    pub fn line(&self, entry: &Entry<'_>) -> Vec<u8> {
        if self.json.is_empty() {
            let mut line = String::with_capacity(384);
            for piece in &self.text {
                let mut value = String::new();
                match piece {
                    Piece::Text(text) => line.push_str(text),
                    _ => {
                        write_piece(piece, entry, &mut value);
                        push_safe(&mut line, if value.is_empty() { "-" } else { &value });
                    }
                }
            }
            if !line.ends_with('\n') {
                line.push('\n');
            }
            return line.into_bytes();
        }
        let mut object = serde_json::Map::new();
        for (name, pieces) in &self.json {
            let mut value = String::new();
            for piece in pieces {
                write_piece(piece, entry, &mut value);
            }
            let single = match pieces.as_slice() {
                [Piece::Command(command)] => Some(command.as_str()),
                _ => None,
            };
            let numeric =
                matches!(single, Some("RESPONSE_CODE" | "BYTES_RECEIVED" | "BYTES_SENT" | "DURATION"));
            let value = match (numeric, value.parse::<u64>()) {
                (true, Ok(number)) => number.into(),
                _ if value.is_empty() || value == "-" && single != Some("RESPONSE_FLAGS") => {
                    serde_json::Value::Null
                }
                _ => value.into(),
            };
            object.insert(name.clone(), value);
        }
        let mut line = serde_json::to_vec(&object).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

fn pieces(text: &str) -> Vec<Piece> {
    let mut out = Vec::new();
    let mut rest = text;
    let mut plain = String::new();
    while let Some(at) = rest.find('%') {
        plain.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            plain.push('%');
            rest = after;
            continue;
        }
        let Some(end) = rest.find('%') else {
            plain.push('%');
            break;
        };
        if !plain.is_empty() {
            out.push(Piece::Text(std::mem::take(&mut plain)));
        }
        out.push(command(&rest[..end]));
        rest = &rest[end + 1..];
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        out.push(Piece::Text(plain));
    }
    out
}

fn command(text: &str) -> Piece {
    let (name, argument) = match text.split_once('(') {
        Some((name, argument)) => (name, Some(argument)),
        None => (text, None),
    };
    let Some((argument, tail)) = argument.and_then(|a| a.rsplit_once(')')) else {
        return Piece::Command(text.to_owned());
    };
    let longest = tail.strip_prefix(':').and_then(|n| n.parse().ok());
    let (main, other) = match argument.split_once('?') {
        Some((main, other)) => (main, Some(other.to_ascii_lowercase())),
        None => (argument, None),
    };
    match name {
        "REQ" => Piece::Request(main.to_ascii_lowercase(), other, longest),
        "RESP" => Piece::Response(main.to_ascii_lowercase(), other, longest),
        _ => Piece::Command(name.to_owned()),
    }
}

fn write_piece(piece: &Piece, entry: &Entry<'_>, out: &mut String) {
    match piece {
        Piece::Text(text) => out.push_str(text),
        Piece::Request(name, other, longest) => {
            field(entry.request, name, other.as_deref(), *longest, out);
        }
        Piece::Response(name, other, longest) => {
            field(entry.response, name, other.as_deref(), *longest, out);
        }
        Piece::Command(name) => write_command(name, entry, out),
    }
}

fn field(head: Option<&Head>, name: &str, other: Option<&str>, longest: Option<usize>, out: &mut String) {
    let Some(head) = head else { return };
    let value = |name: &str| -> Option<String> {
        match name {
            ":method" => Some(head.method().to_string()),
            ":path" => Some(head.path().to_owned()),
            ":authority" | "host" => Some(head.authority().to_owned()),
            ":scheme" => Some(format!("{:?}", head.scheme()).to_ascii_lowercase()),
            ":status" => Some(head.status().as_u16().to_string()),
            _ => head.get_joined(name).map(|value| String::from_utf8_lossy(&value).into_owned()),
        }
    };
    let Some(mut value) = value(name).or_else(|| other.and_then(value)) else { return };
    if let Some(longest) = longest {
        let mut end = longest.min(value.len());
        while !value.is_char_boundary(end) {
            end -= 1;
        }
        value.truncate(end);
    }
    out.push_str(&value);
}

fn write_command(name: &str, entry: &Entry<'_>, out: &mut String) {
    let mut number = |value: u128| {
        let _ = write!(out, "{value}");
    };
    match name {
        "RESPONSE_CODE" => number(u128::from(entry.code)),
        "BYTES_RECEIVED" => number(u128::from(entry.received)),
        "BYTES_SENT" => number(u128::from(entry.sent)),
        "DURATION" => number(entry.duration_ms),
        "START_TIME" => out.push_str(&timestamp(entry.start)),
        "PROTOCOL" => {
            if let Some(head) = entry.request {
                out.push_str(match head.version() {
                    crate::codec::Version::Http10 => "HTTP/1.0",
                    crate::codec::Version::Http11 => "HTTP/1.1",
                    crate::codec::Version::Http2 => "HTTP/2",
                });
            }
        }
        "RESPONSE_FLAGS" => {
            let _ = write!(out, "{}", entry.flags);
        }
        "RESPONSE_CODE_DETAILS" => out.push_str(entry.detail),
        "CONNECTION_TERMINATION_DETAILS" => out.push_str(entry.termination),
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => out.push_str(entry.transport_failure),
        "UPSTREAM_HOST" => address(entry.upstream, out),
        "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => out.push_str(entry.cluster),
        "UPSTREAM_LOCAL_ADDRESS" => address(entry.upstream_local, out),
        "DOWNSTREAM_LOCAL_ADDRESS" => address(Some(entry.local), out),
        "DOWNSTREAM_REMOTE_ADDRESS" => address(Some(entry.remote), out),
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => {
            let _ = write!(out, "{}", entry.remote.ip());
        }
        "REQUESTED_SERVER_NAME" => out.push_str(entry.server_name),
        "ROUTE_NAME" => out.push_str(entry.route),
        "DOWNSTREAM_PEER_URI_SAN" => out.push_str(entry.peer),
        _ => {}
    }
}

fn address(address: Option<SocketAddr>, out: &mut String) {
    if let Some(address) = address {
        let _ = write!(out, "{address}");
    }
}

fn timestamp(time: SystemTime) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::from(time).format(&format).unwrap_or_default()
}

/// Control characters, quotes and backslashes are written as `\xNN`.
fn push_safe(out: &mut String, text: &str) {
    for character in text.chars() {
        if character.is_control() || matches!(character, '"' | '\\') {
            let _ = write!(out, "\\x{:02x}", u32::from(character));
        } else {
            out.push(character);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Method, StatusCode};
    use mesh_traffic::listener::ISTIO_LOG_FORMAT;
    use std::time::{Duration, UNIX_EPOCH};

    fn line(format: &LogFormat, request: &Head) -> String {
        let mut response = Head::response(StatusCode::OK);
        response.set("x-envoy-upstream-service-time", "3");
        let entry = Entry {
            start: UNIX_EPOCH + Duration::from_millis(1_600_000_000_123),
            request: Some(request),
            response: Some(&response),
            code: 200,
            flags: ResponseFlags::NONE,
            detail: "via_upstream",
            termination: "",
            transport_failure: "",
            received: 1,
            sent: 2,
            duration_ms: 4,
            upstream: Some(([10, 0, 0, 2], 8092).into()),
            cluster: "outbound|8092|v1|reviews",
            upstream_local: None,
            local: ([10, 0, 0, 1], 80).into(),
            remote: ([10, 0, 0, 9], 1234).into(),
            server_name: "",
            route: "default",
            peer: "",
        };
        String::from_utf8(Compiled::new(format).line(&entry)).expect("text")
    }

    #[test]
    fn istios_default_line_is_written_as_istio_writes_it() {
        let mut request = Head::request(Method::GET, "reviews:8092", "/reviews/1?x=y");
        request.set("user-agent", "curl");
        assert_eq!(
            line(&LogFormat::Text(ISTIO_LOG_FORMAT.into()), &request),
            "[2020-09-13T12:26:40.123Z] \"GET /reviews/1?x=y HTTP/1.1\" 200 - via_upstream - \"-\" 1 2 4 3 \"-\" \"curl\" \
             \"-\" \"reviews:8092\" \"10.0.0.2:8092\" outbound|8092|v1|reviews - 10.0.0.1:80 10.0.0.9:1234 - default\n"
        );
    }

    #[test]
    fn a_client_cannot_forge_lines_or_quotes() {
        let mut request = Head::request(Method::GET, "a", "/");
        request.set("user-agent", "x\" 200\r\n\\");
        let text = line(&LogFormat::Text("\"%REQ(User-Agent)%\"".into()), &request);
        assert_eq!(text, "\"x\\x22 200  \\x5c\"\n");
    }

    #[test]
    fn json_lines_keep_order_numbers_and_absence() {
        let request = Head::request(Method::GET, "a", "/");
        let fields =
            [("code", "%RESPONSE_CODE%"), ("agent", "%REQ(USER-AGENT)%"), ("flags", "%RESPONSE_FLAGS%")];
        let format = LogFormat::Json(fields.iter().map(|(n, t)| ((*n).into(), (*t).into())).collect());
        assert_eq!(line(&format, &request), "{\"code\":200,\"agent\":null,\"flags\":\"-\"}\n");
    }

    #[test]
    fn cut_and_alternative_fields_and_percent_signs() {
        let mut request = Head::request(Method::GET, "a", "/long");
        request.set("x-a", "abcdef");
        for (format, want) in [
            ("%REQ(X-A):3%", "abc\n"),
            ("%REQ(X-B?X-A)%", "abcdef\n"),
            ("100%% %NO_SUCH%", "100% -\n"),
            ("%REQ(:PATH)%", "/long\n"),
        ] {
            assert_eq!(line(&LogFormat::Text(format.into()), &request), want, "{format}");
        }
    }
}
