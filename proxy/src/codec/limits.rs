//! What a peer may ask of one connection: sizes, counts, deadlines, and which odd forms are taken.
//! In: a role ([`Limits::sidecar`], [`Limits::gateway`], [`Limits::upstream`]) and edits. Out: plain numbers, read by the codec.
//! Kept true: every phase in which a peer can make us wait or hold memory has a bound.
//! Not here: limits over many connections (`listen`, `balance`).

use std::time::Duration;

use http::StatusCode;

/// Limits of one connection.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest head in bytes, start line included; beyond it 431. Default 60 KiB (Envoy's).
    pub head_bytes: usize,
    /// Most fields in a head or trailer section; beyond it 431. Default 100.
    pub head_fields: usize,
    /// Longest request target in bytes; beyond it 414. Default 16 KiB at gateways, 60 KiB elsewhere.
    pub target_bytes: usize,
    /// From the first byte of a head to its last. Runs only while a head is incomplete. Default 30 s.
    pub head_timeout: Duration,
    /// From accepting to knowing the protocol. Default 30 s.
    pub detect_timeout: Duration,
    /// How long a connection may stay without any exchange. Default 1 h, at gateways 5 min.
    pub idle_timeout: Duration,
    /// How long a request body that the handler waits for may bring nothing. `None` waits for ever. Default none, at gateways 30 s.
    /// Over HTTP/2 it holds for bodies of announced length only, so that gRPC streams may pause.
    pub body_timeout: Option<Duration>,
    /// How long bytes that we have written may stay unread. Default 5 min, at gateways 30 s.
    pub unread_timeout: Duration,
    /// How much of an unread request body is thrown away to keep the connection after an early answer. Default 64 KiB.
    pub discard_bytes: u64,
    /// How much of a body is read at once, in bytes; of one with much more to come four times that. Heads are read in pieces of 4 KiB.
    /// Default 16 KiB. At least 1 KiB makes sense.
    pub read_buffer: usize,
    /// Whether a client that has closed its direction (FIN) still waits for its answer; else that cancels the request.
    /// Default yes: closing one direction is legal, and a client that is really gone answers our first byte with a reset.
    pub half_close: bool,
    /// Whether CONNECT reaches the handler; else 405. Default no.
    pub allow_connect: bool,
    /// Whether TRACE reaches the handler; else 405. Default no.
    pub allow_trace: bool,
    /// Whether HTTP/1.0 requests are taken; else 426, as Envoy answers. Default no.
    pub allow_http10: bool,
    /// Whether `Upgrade` reaches the handler; else it is dropped. Default yes.
    pub allow_upgrade: bool,
    /// Whether request field names may hold `_`. Default no: many servers read `a_b` as `a-b`.
    pub allow_underscores: bool,
    /// Whether request field values may hold bytes from 0x80. Default yes in the mesh, no at gateways.
    pub allow_obs_text: bool,
    /// Whether `:scheme` must be the connection's. Default no in the mesh (peers forward what they were told), yes at gateways.
    pub strict_scheme: bool,
    /// HTTP/2: most streams at once. Default 100 at gateways, 1000 in the mesh.
    pub h2_streams: u32,
    /// HTTP/2: receive window of a stream, in bytes. Default 256 KiB.
    pub h2_stream_window: u32,
    /// HTTP/2: receive window of a connection, in bytes. Default 1 MiB.
    pub h2_connection_window: u32,
    /// HTTP/2: bytes of request heads that the streams under way on one connection may hold together; beyond it 431.
    /// A few bytes on the wire can name large fields many times (HPACK). Default 1 MiB at gateways, 8 MiB in the mesh.
    pub h2_head_bytes: usize,
    /// HTTP/2: bytes held for sending per stream. Default 64 KiB, at gateways 16 KiB.
    pub h2_send_buffer: usize,
    /// HTTP/2: control frames (PING, SETTINGS, PRIORITY, RST_STREAM, empty and unknown ones) that a peer has in credit. Default 1000.
    pub h2_control_burst: u32,
    /// HTTP/2: control frames per second that are given back to the credit. Default 100.
    pub h2_control_rate: u32,
}

impl Limits {
    /// Between workloads of the mesh.
    pub fn sidecar() -> Limits {
        Limits {
            head_bytes: 60 * 1024,
            head_fields: 100,
            target_bytes: 60 * 1024,
            head_timeout: Duration::from_secs(30),
            detect_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(3600),
            body_timeout: None,
            unread_timeout: Duration::from_secs(300),
            discard_bytes: 64 * 1024,
            read_buffer: 16 * 1024,
            half_close: true,
            allow_connect: false,
            allow_trace: false,
            allow_http10: false,
            allow_upgrade: true,
            allow_underscores: false,
            allow_obs_text: true,
            strict_scheme: false,
            h2_streams: 1000,
            h2_stream_window: 256 * 1024,
            h2_connection_window: 1024 * 1024,
            h2_head_bytes: 8 << 20,
            h2_send_buffer: 64 * 1024,
            h2_control_burst: 1000,
            h2_control_rate: 100,
        }
    }

    /// Towards clients outside the mesh.
    pub fn gateway() -> Limits {
        Limits {
            target_bytes: 16 * 1024,
            idle_timeout: Duration::from_secs(300),
            body_timeout: Some(Duration::from_secs(30)),
            unread_timeout: Duration::from_secs(30),
            allow_obs_text: false,
            strict_scheme: true,
            h2_streams: 100,
            h2_head_bytes: 1 << 20,
            h2_send_buffer: 16 * 1024,
            ..Limits::sidecar()
        }
    }

    /// Towards upstreams: what their answers may be.
    pub fn upstream() -> Limits {
        Limits { allow_http10: true, allow_underscores: true, ..Limits::sidecar() }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits::sidecar()
    }
}

/// Why the codec refused what a peer sent, and the status it answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {detail}", status = .status.as_u16())]
pub struct Refusal {
    /// 400, 405, 408, 414, 417, 426, 431, 501 or 505 towards clients; of an upstream's answer it only classifies.
    pub status: StatusCode,
    /// What was wrong, in a few words.
    pub detail: &'static str,
}

impl Refusal {
    pub(crate) const fn bad(detail: &'static str) -> Refusal {
        Refusal { status: StatusCode::BAD_REQUEST, detail }
    }

    pub(crate) const fn with(status: StatusCode, detail: &'static str) -> Refusal {
        Refusal { status, detail }
    }
}

/// The phase in which a connection ran out of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before the protocol was known.
    Detect,
    /// While a head was incomplete.
    Head,
    /// While the handler waited for request body.
    Body,
    /// While our bytes stayed unread.
    Unread,
    /// Without any exchange.
    Idle,
}
