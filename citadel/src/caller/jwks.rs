//! Tokens checked with the issuer's public keys, from a JSON Web Key Set in a file.
//!
//! In: `--token-keys FILE`, audience, issuer. Out: [`Jwks`], a [`TokenVerifier`].
//! Kept true: only signatures with public keys count (no HMAC, no `none`), each key only with its own algorithm.
//! Not here: revocation; a projected token lives an hour and dies with its pod, which only the Kubernetes API knows.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet},
};
use mesh_runtime::{Outage, drain::Watch};
use serde::Deserialize;

use super::{ServiceAccount, TokenVerifier};
use crate::refusal::Refusal;

/// The audience that Istio's workloads ask for.
pub const DEFAULT_AUDIENCE: &str = "istio-ca";
/// Clock difference to the issuer that is forgiven, in seconds.
const LEEWAY: u64 = 10;
/// How often the file is looked at.
const POLL: Duration = Duration::from_secs(5);

/// The key file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("--token-keys {}: {why}", .path.display())]
pub struct BadKeys {
    path: PathBuf,
    why: String,
}

/// Which tokens are accepted.
#[derive(Clone, Debug)]
pub struct Accept {
    /// One of these audiences must be in the token.
    pub audiences: Vec<String>,
    /// The issuer, if it matters.
    pub issuer: Option<String>,
}

/// Verifies tokens against a key file, which may change while running.
#[derive(Debug)]
pub struct Jwks {
    path: PathBuf,
    accept: Accept,
    keys: ArcSwap<Vec<Key>>,
}

struct Key {
    id: Option<String>,
    algorithms: &'static [Algorithm],
    key: DecodingKey,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<Kubernetes>,
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: Option<String>,
    serviceaccount: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: Option<String>,
}

impl Jwks {
    /// Reads the key file.
    ///
    /// # Errors
    /// When it cannot be read or holds no usable key.
    pub fn open(path: &Path, accept: Accept) -> Result<Self, BadKeys> {
        let keys = read(path).map_err(|why| BadKeys { path: path.into(), why })?;
        Ok(Self { path: path.into(), accept, keys: ArcSwap::from_pointee(keys) })
    }

    /// Follows changes of the file until the drain. A broken file changes nothing.
    pub async fn follow(self: Arc<Self>, drain: Watch) {
        let mut outage = Outage::new(format!("token keys {}", self.path.display()));
        let mut seen = std::fs::read(&self.path).ok();
        while drain.until_drain(tokio::time::sleep(POLL)).await.is_some() {
            let now = std::fs::read(&self.path).ok();
            if now == seen {
                continue;
            }
            match read(&self.path) {
                Ok(keys) => {
                    outage.recovered();
                    tracing::info!(keys = keys.len(), "token keys replaced");
                    self.keys.store(Arc::new(keys));
                    seen = now;
                }
                Err(why) => {
                    outage.failed(&why);
                }
            }
        }
    }

    fn check(&self, token: &str) -> Result<ServiceAccount, Refusal> {
        let header = decode_header(token).map_err(|_| Refusal::TokenShape)?;
        let keys = self.keys.load();
        let mut known = false;
        for key in keys.iter().filter(|k| k.algorithms.contains(&header.alg)) {
            if key.id.is_some() && header.kid.is_some() && key.id != header.kid {
                continue;
            }
            known = true;
            match decode::<Claims>(token, &key.key, &self.validation(header.alg)) {
                Ok(data) => return account(data.claims),
                Err(e) if matches!(e.kind(), ErrorKind::InvalidSignature) => {}
                Err(e) => return Err(self.refusal(e.kind())),
            }
        }
        let asymmetric = keys.iter().any(|k| k.algorithms.contains(&header.alg));
        Err(if known || asymmetric { Refusal::TokenSignature } else { Refusal::TokenShape })
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.set_audience(&self.accept.audiences);
        let mut required = vec!["exp", "aud", "sub"];
        if let Some(issuer) = &self.accept.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        validation
    }

    fn refusal(&self, kind: &ErrorKind) -> Refusal {
        let audience = || Refusal::TokenAudience(self.accept.audiences.join("` or `"));
        match kind {
            ErrorKind::ExpiredSignature => Refusal::TokenExpired,
            ErrorKind::ImmatureSignature => Refusal::TokenEarly,
            ErrorKind::InvalidAudience => audience(),
            ErrorKind::InvalidIssuer => Refusal::TokenIssuer,
            ErrorKind::MissingRequiredClaim(claim) => match claim.as_str() {
                "aud" => audience(),
                "iss" => Refusal::TokenIssuer,
                "sub" => Refusal::TokenSubject("it has no subject".into()),
                _ => Refusal::TokenExpired,
            },
            _ => Refusal::TokenShape,
        }
    }
}

impl TokenVerifier for Jwks {
    fn verify<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<ServiceAccount, Refusal>> {
        Box::pin(std::future::ready(self.check(token)))
    }
}

/// The subject, and the Kubernetes claims where they are: they must agree.
fn account(claims: Claims) -> Result<ServiceAccount, Refusal> {
    let account = ServiceAccount::from_subject(claims.sub.as_deref().unwrap_or_default())?;
    let Some(kubernetes) = claims.kubernetes else { return Ok(account) };
    let named = kubernetes.serviceaccount.and_then(|s| s.name);
    let agrees = kubernetes.namespace.is_none_or(|n| n == account.namespace)
        && named.is_none_or(|n| n == account.name);
    if agrees { Ok(account) } else { Err(Refusal::TokenSubject("its claims contradict each other".into())) }
}

fn read(path: &Path) -> Result<Vec<Key>, String> {
    let size = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > 1024 * 1024 {
        return Err(format!("{size} bytes are too many for a key set"));
    }
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let set: JwkSet = serde_json::from_str(&text).map_err(|e| format!("not a JSON Web Key Set: {e}"))?;
    let keys: Vec<Key> = set.keys.iter().filter_map(key).collect();
    if keys.is_empty() {
        return Err("no key in it that can verify (RSA, EC P-256 or P-384, Ed25519)".into());
    }
    Ok(keys)
}

/// Symmetric keys are left out: whoever can verify with them can also forge.
fn key(jwk: &Jwk) -> Option<Key> {
    let algorithms: &'static [Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512],
        AlgorithmParameters::EllipticCurve(ec) => match ec.curve {
            EllipticCurve::P256 => &[Algorithm::ES256],
            EllipticCurve::P384 => &[Algorithm::ES384],
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
            &[Algorithm::EdDSA]
        }
        _ => return None,
    };
    Some(Key { id: jwk.common.key_id.clone(), algorithms, key: DecodingKey::from_jwk(jwk).ok()? })
}
