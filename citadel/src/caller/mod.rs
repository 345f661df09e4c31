//! Who is asking: a service account by token, or a workload by its present certificate.
//!
//! In: the authorization header and the verified TLS peer. Out: the [`SpiffeId`] to certify, or a [`Refusal`].
//! Kept true: a token that is sent decides alone; a bad one is never made good by a certificate.
//! Not here: what the caller wants (`ca::request`).

pub mod jwks;

use futures::future::BoxFuture;
use mesh_identity::{Peer, SpiffeId, TrustDomain};

use crate::refusal::Refusal;

/// Largest token in bytes. Kubernetes' have about 1,000.
pub const MAX_TOKEN: usize = 16 * 1024;

/// A Kubernetes service account that a token was issued to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ServiceAccount {
    /// From a token's subject, `system:serviceaccount:NAMESPACE:NAME`.
    ///
    /// # Errors
    /// When the subject is a user or anything else.
    pub fn from_subject(subject: &str) -> Result<Self, Refusal> {
        let mut parts = subject.split(':');
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("system"), Some("serviceaccount"), Some(namespace), Some(name), None)
                if !namespace.is_empty() && !name.is_empty() =>
            {
                Ok(Self { namespace: namespace.into(), name: name.into() })
            }
            _ => Err(Refusal::TokenSubject("its subject is not a service account".into())),
        }
    }
}

/// Checks tokens: by keys in a file here, by asking the Kubernetes API (TokenReview) elsewhere.
pub trait TokenVerifier: Send + Sync + 'static {
    /// The service account that this token proves, by a key, for our audience, now.
    fn verify<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<ServiceAccount, Refusal>>;
}

/// Finds out who is asking.
///
/// # Errors
/// The reason, as the caller is told it.
pub async fn identify(
    authorization: Option<&str>,
    peer: Option<&Peer>,
    tokens: Option<&dyn TokenVerifier>,
    domain: &TrustDomain,
) -> Result<SpiffeId, Refusal> {
    if let Some(header) = authorization {
        let token = bearer(header).ok_or(Refusal::TokenShape)?;
        if token.len() > MAX_TOKEN {
            return Err(Refusal::TokenSize(token.len()));
        }
        let account = tokens.ok_or(Refusal::TokensOff)?.verify(token).await?;
        return domain
            .service_account(&account.namespace, &account.name)
            .map_err(|e| Refusal::TokenSubject(e.to_string()));
    }
    let peer = peer.ok_or(Refusal::Anonymous)?;
    if peer.id().trust_domain() != domain {
        return Err(Refusal::PeerDomain(peer.id().trust_domain().to_string()));
    }
    Ok((**peer.id()).clone())
}

fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.trim())
}

#[cfg(test)]
mod tests;
