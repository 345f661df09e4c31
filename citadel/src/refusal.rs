//! Why a certificate was not issued, as callers, metrics and logs see it.
//!
//! In: every check on the way to a certificate. Out: one gRPC status and one metric label per reason.
//! Kept true: the text tells an honest caller what to fix, and a dishonest one nothing about others.
//! Not here: the checks themselves.

use tonic::{Code, Status};

use crate::ca::request::BadRequest;

/// A refusal.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Neither token nor client certificate.
    #[error("no identity: send `authorization: Bearer TOKEN`, or connect with a certificate of this mesh")]
    Anonymous,
    /// No way to check tokens is configured.
    #[error("this citadel accepts no tokens (it was started without --token-keys and without --kube)")]
    TokensOff,
    /// Larger than any token.
    #[error("token: {0} bytes are too many")]
    TokenSize(usize),
    /// Not a signed JWT, or of an algorithm that is never accepted.
    #[error("token: not a signed JWT of an accepted algorithm")]
    TokenShape,
    /// No key that we know has signed it.
    #[error("token: its signature matches no known key")]
    TokenSignature,
    /// Over.
    #[error("token: it has expired; read the token file again for each request")]
    TokenExpired,
    /// Not yet valid.
    #[error("token: it is not valid yet; compare the clocks")]
    TokenEarly,
    /// For somebody else.
    #[error("token: its audience is not `{0}`; project the token with this audience")]
    TokenAudience(String),
    /// The API server does not know it, or knows better.
    #[error(
        "token: the API server does not accept it; it has expired, or its pod or service account is gone"
    )]
    TokenRejected,
    /// From somewhere else.
    #[error("token: its issuer is not accepted")]
    TokenIssuer,
    /// Not a service account's.
    #[error("token: {0}")]
    TokenSubject(String),
    /// A certificate of another trust domain.
    #[error("certificates of trust domain `{0}` cannot be renewed here")]
    PeerDomain(String),
    /// Asking for another's identity.
    #[error("metadata ImpersonatedIdentity: impersonation is not allowed")]
    Impersonation,
    /// The request itself.
    #[error(transparent)]
    Request(#[from] BadRequest),
    /// Too many requests of one identity.
    #[error("too many requests for `{0}`; wait and try again")]
    TooMany(String),
    /// We cannot sign now.
    #[error("cannot sign now: {0}")]
    Unable(String),
}

impl Refusal {
    /// Label for metrics; a small fixed set.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::TokensOff => "tokens_off",
            Self::TokenSize(_) | Self::TokenShape => "token_malformed",
            Self::TokenSignature => "token_signature",
            Self::TokenExpired => "token_expired",
            Self::TokenEarly => "token_early",
            Self::TokenAudience(_) => "token_audience",
            Self::TokenRejected => "token_rejected",
            Self::TokenIssuer => "token_issuer",
            Self::TokenSubject(_) => "token_subject",
            Self::PeerDomain(_) => "trust_domain",
            Self::Impersonation => "impersonation",
            Self::Request(_) => "csr",
            Self::TooMany(_) => "rate_limited",
            Self::Unable(_) => "unable",
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Request(_) => Code::InvalidArgument,
            Self::Impersonation | Self::PeerDomain(_) => Code::PermissionDenied,
            Self::TooMany(_) => Code::ResourceExhausted,
            Self::Unable(_) => Code::Unavailable,
            _ => Code::Unauthenticated,
        }
    }
}

impl From<&Refusal> for Status {
    fn from(refusal: &Refusal) -> Self {
        Self::new(refusal.code(), refusal.to_string())
    }
}
