//! Service account tokens, as a cluster's API server would mint them.
//!
//! In: namespace, account, pod. Out: ES256 tokens and the key set that verifies them. Kept true: the private key never leaves this process.
//! Not here: who checks them (citadel).

use std::time::{Duration, SystemTime};

use anyhow::Context;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

/// Issuer of all tokens, as on Kubernetes.
const ISSUER: &str = "https://kubernetes.default.svc";
/// Whom the tokens are for.
const AUDIENCE: &str = "istio-ca";
const KEY_ID: &str = "local-node";
/// Longer than any run of a local mesh that does not renew its tokens.
pub const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// Mints tokens with a key of its own.
pub struct Mint {
    key: EncodingKey,
    jwks: Value,
}

impl std::fmt::Debug for Mint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mint")
    }
}

impl Mint {
    /// A mint with a fresh P-256 key.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new() -> anyhow::Result<Self> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).context("the mint's key")?;
        // An uncompressed point: 0x04, then 32 bytes each of x and y.
        let point = pair.public_key_raw();
        anyhow::ensure!(point.len() == 65 && point[0] == 4, "the mint's public key has an unknown form");
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let jwks = json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": KEY_ID,
            "x": part(&point[1..33]), "y": part(&point[33..]),
        }] });
        Ok(Self { key, jwks })
    }

    /// The public half, as a JSON Web Key Set.
    #[must_use]
    pub fn jwks(&self) -> &Value {
        &self.jwks
    }

    /// A token of `account` in `namespace`, bound to a pod.
    ///
    /// # Errors
    /// When signing fails.
    pub fn token(&self, namespace: &str, account: &str, pod: &str, uid: &str) -> anyhow::Result<String> {
        self.token_issued(SystemTime::now(), namespace, account, pod, uid)
    }

    /// A token as if it had been made at `issued`: one that is over, or not yet valid.
    ///
    /// # Errors
    /// When signing fails.
    pub fn token_issued(
        &self,
        issued: SystemTime,
        namespace: &str,
        account: &str,
        pod: &str,
        uid: &str,
    ) -> anyhow::Result<String> {
        let now = issued.duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let claims = json!({
            "iss": ISSUER,
            "aud": [AUDIENCE],
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
            "iat": now,
            "nbf": now,
            "exp": now + LIFETIME.as_secs(),
            "kubernetes.io": {
                "namespace": namespace,
                "pod": { "name": pod, "uid": uid },
                "serviceaccount": { "name": account },
            },
        });
        let header = Header { kid: Some(KEY_ID.to_owned()), ..Header::new(Algorithm::ES256) };
        Ok(jsonwebtoken::encode(&header, &claims, &self.key)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_verifies_with_the_published_key_and_names_the_account() {
        let mint = Mint::new().expect("a mint");
        let token = mint.token("default", "web", "web-1", "u").expect("a token");
        let set: jsonwebtoken::jwk::JwkSet = serde_json::from_value(mint.jwks().clone()).expect("a key set");
        let key = jsonwebtoken::DecodingKey::from_jwk(set.find(KEY_ID).expect("our key")).expect("usable");
        let mut rules = jsonwebtoken::Validation::new(Algorithm::ES256);
        rules.set_audience(&[AUDIENCE]);
        rules.set_issuer(&[ISSUER]);
        let claims = jsonwebtoken::decode::<Value>(&token, &key, &rules).expect("a valid token").claims;
        assert_eq!(claims["sub"], "system:serviceaccount:default:web");
        assert_eq!(claims["kubernetes.io"]["pod"]["name"], "web-1");
    }
}
