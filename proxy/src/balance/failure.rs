//! Why a try to reach an upstream failed, in one type; and the one place that maps it to status, flag, body and detail.
//!
//! In: what went wrong. Out: [`Failure`], its [`Reply`] as Envoy words it, its retry [`Outcome`] and ejection [`Sign`].
//! Kept true: one function decides the answer. Not here: deciding on a retry (`http::router`).

use std::borrow::Cow;

use mesh_traffic::{Reply, ResponseFlags, retry::Outcome};

use super::outlier::Sign;
use crate::codec::{SendError, SendErrorKind};

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No endpoint may be picked.
    NoHealthyUpstream,
    /// A limit of the cluster was reached.
    Overflow,
    /// No connection: refused, unreachable, or TLS failed.
    Connect,
    /// No connection in time.
    ConnectTimeout,
    /// The connection closed before the answer.
    Terminated,
    /// The upstream reset the stream.
    RemoteReset,
    /// The upstream says that it did not process the stream.
    Refused,
    /// The upstream broke HTTP.
    Protocol,
    /// The client's body broke while it was sent.
    RequestBody,
    /// The route's timeout passed.
    Timeout,
    /// The try's timeout passed.
    TryTimeout,
}

/// Why a try failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What went wrong.
    pub kind: Kind,
    /// Why, for the access log; names the object.
    pub why: String,
    /// The application has surely not seen the request.
    pub never_seen: bool,
}

impl Failure {
    /// A failure before anything was sent.
    pub fn new(kind: Kind, why: impl Into<String>) -> Self {
        Self { kind, why: why.into(), never_seen: true }
    }

    /// From the codec's word.
    #[must_use]
    pub fn of_send(error: &SendError) -> Self {
        let kind = match error.kind {
            SendErrorKind::Closed | SendErrorKind::Io | SendErrorKind::TooManyStreams => Kind::Terminated,
            SendErrorKind::Protocol => Kind::Protocol,
            SendErrorKind::RefusedStream => Kind::Refused,
            SendErrorKind::Reset => Kind::RemoteReset,
            SendErrorKind::RequestBody => Kind::RequestBody,
        };
        Self { kind, why: error.detail.clone(), never_seen: error.never_seen() }
    }

    /// As retry conditions see it; `None` is never retried.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        Some(match self.kind {
            Kind::Connect | Kind::ConnectTimeout => Outcome::ConnectFailure,
            Kind::Terminated | Kind::RemoteReset | Kind::Protocol => {
                Outcome::Reset { before_request: self.never_seen }
            }
            Kind::Refused => Outcome::Refused,
            Kind::TryTimeout => Outcome::TryTimeout,
            Kind::NoHealthyUpstream | Kind::Overflow | Kind::RequestBody | Kind::Timeout => return None,
        })
    }

    /// As ejection sees it; `None` says nothing about the endpoint.
    #[must_use]
    pub fn sign(&self) -> Option<Sign> {
        match self.kind {
            Kind::Connect
            | Kind::ConnectTimeout
            | Kind::Terminated
            | Kind::RemoteReset
            | Kind::Protocol
            | Kind::Timeout
            | Kind::TryTimeout => Some(Sign::Local),
            Kind::NoHealthyUpstream | Kind::Overflow | Kind::RequestBody | Kind::Refused => None,
        }
    }

    /// [`Self::reply`] when this was not the first try: Envoy's text says so.
    #[must_use]
    pub fn reply_after_retries(&self) -> Reply {
        const FIRST: &str = "before headers. reset reason:";
        const AGAIN: &str = "before headers. retried and the latest reset reason:";
        let mut reply = self.reply();
        if let Ok(text) = std::str::from_utf8(&reply.body)
            && text.contains(FIRST)
        {
            reply.body = Cow::Owned(text.replacen(FIRST, AGAIN, 1).into_bytes());
        }
        reply
    }

    /// The answer to the client.
    #[must_use]
    pub fn reply(&self) -> Reply {
        use ResponseFlags as Flag;
        let reset = |status, flag, reason: &str, transport: Option<&str>| {
            let extra = transport.map_or(String::new(), |t| format!(", transport failure reason: {t}"));
            let body = format!(
                "upstream connect error or disconnect/reset before headers. reset reason: {reason}{extra}"
            );
            let detail = match transport {
                None => format!("upstream_reset_before_response_started{{{}}}", underscored(reason)),
                Some(t) => format!(
                    "upstream_reset_before_response_started{{{}|{}}}",
                    underscored(reason),
                    underscored(t)
                ),
            };
            let mut reply = Reply::new(status, flag, "", "");
            reply.body = Cow::Owned(body.into_bytes());
            reply.detail = Cow::Owned(detail);
            reply
        };
        let timed_out =
            |detail| Reply::new(504, Flag::UPSTREAM_REQUEST_TIMEOUT, detail, "upstream request timeout");
        match self.kind {
            Kind::NoHealthyUpstream => {
                Reply::new(503, Flag::NO_HEALTHY_UPSTREAM, "no_healthy_upstream", "no healthy upstream")
            }
            Kind::Overflow => reset(503, Flag::UPSTREAM_OVERFLOW, "overflow", None),
            Kind::Connect => {
                reset(503, Flag::UPSTREAM_CONNECTION_FAILURE, "remote connection failure", Some(&self.why))
            }
            Kind::ConnectTimeout => reset(503, Flag::UPSTREAM_CONNECTION_FAILURE, "connection timeout", None),
            Kind::Terminated => {
                reset(503, Flag::UPSTREAM_CONNECTION_TERMINATION, "connection termination", None)
            }
            Kind::RemoteReset => reset(503, Flag::UPSTREAM_REMOTE_RESET, "remote reset", None),
            Kind::Refused => reset(503, Flag::UPSTREAM_REMOTE_RESET, "remote refused stream reset", None),
            Kind::Protocol => reset(502, Flag::UPSTREAM_PROTOCOL_ERROR, "protocol error", None),
            Kind::RequestBody => Reply::new(400, Flag::DOWNSTREAM_PROTOCOL_ERROR, "request_body_broken", ""),
            Kind::Timeout => timed_out("response_timeout"),
            Kind::TryTimeout => timed_out("upstream_per_try_timeout"),
        }
    }
}

fn underscored(text: &str) -> String {
    text.replace(' ', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_answers_as_envoy_does() {
        for (kind, status, flag, body) in [
            (Kind::NoHealthyUpstream, 503, "UH", "no healthy upstream"),
            (Kind::Overflow, 503, "UO", "reset reason: overflow"),
            (Kind::Connect, 503, "UF", "transport failure reason: delayed connect error: Connection refused"),
            (Kind::ConnectTimeout, 503, "UF", "reset reason: connection timeout"),
            (Kind::Terminated, 503, "UC", "reset reason: connection termination"),
            (Kind::RemoteReset, 503, "UR", "reset reason: remote reset"),
            (Kind::Protocol, 502, "UPE", "reset reason: protocol error"),
            (Kind::Timeout, 504, "UT", "upstream request timeout"),
            (Kind::TryTimeout, 504, "UT", "upstream request timeout"),
        ] {
            let reply = Failure::new(kind, "delayed connect error: Connection refused").reply();
            assert_eq!((reply.status, reply.flags.to_string().as_str()), (status, flag), "{kind:?}");
            let text = String::from_utf8_lossy(&reply.body).into_owned();
            assert!(text.ends_with(body), "{kind:?} {text}");
            assert!(!reply.detail.contains(' '), "{kind:?} {}", reply.detail);
        }
    }
}
