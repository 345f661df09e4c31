//! I-01: which tokens prove a service account. All are signed with real keys and checked by the real verifier.

use std::{
    io::Write,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use mesh_identity::testkit;
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::{
    jwks::{Accept, Jwks},
    *,
};

/// An issuer of ES256 tokens, as the local node and Kubernetes are.
struct Issuer {
    key: KeyPair,
    kid: &'static str,
}

impl Issuer {
    fn new(kid: &'static str) -> Self {
        Self { key: KeyPair::generate().unwrap(), kid }
    }

    fn jwk(&self) -> Value {
        use rcgen::PublicKeyData;
        let point = self.key.der_bytes();
        let part = |range: std::ops::Range<usize>| BASE64_URL_SAFE_NO_PAD.encode(&point[range]);
        json!({ "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.kid, "x": part(1..33), "y": part(33..65) })
    }

    fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.kid.into());
        encode(&header, claims, &EncodingKey::from_ec_der(&self.key.serialize_der())).unwrap()
    }
}

fn keys(set: &Value) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(set.to_string().as_bytes()).unwrap();
    file
}

fn accept() -> Accept {
    Accept { audiences: vec!["istio-ca".into()], issuer: Some("https://kubernetes.default.svc".into()) }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A good token's claims, with some replaced (null removes).
fn claims(changes: &Value) -> Value {
    let mut claims = json!({
        "iss": "https://kubernetes.default.svc",
        "aud": ["istio-ca"],
        "sub": "system:serviceaccount:shop:web",
        "exp": now() + 3600,
        "nbf": now() - 10,
        "iat": now() - 10,
        "kubernetes.io": { "namespace": "shop", "pod": { "name": "web-1", "uid": "u" }, "serviceaccount": { "name": "web" } },
    });
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

async fn verdict(tokens: &Jwks, header: Option<&str>) -> Result<String, &'static str> {
    let domain = TrustDomain::default();
    identify(header, None, Some(tokens), &domain).await.map(|id| id.to_string()).map_err(|e| e.label())
}

#[tokio::test]
async fn only_a_live_token_of_a_service_account_for_this_audience_counts() {
    let (issuer, stranger) = (Issuer::new("k1"), Issuer::new("k1"));
    let file = keys(&json!({ "keys": [issuer.jwk()] }));
    let tokens = Jwks::open(file.path(), accept()).unwrap();
    let web = Ok("spiffe://cluster.local/ns/shop/sa/web".to_owned());
    for (what, changes, want) in [
        ("a good one", json!({}), web.clone()),
        ("audience as text", json!({ "aud": "istio-ca" }), web.clone()),
        ("one audience of two", json!({ "aud": ["vault", "istio-ca"] }), web.clone()),
        ("no Kubernetes claims", json!({ "kubernetes.io": null }), web),
        ("expired", json!({ "exp": now() - 3600 }), Err("token_expired")),
        ("no expiry", json!({ "exp": null }), Err("token_expired")),
        ("not valid yet", json!({ "nbf": now() + 3600 }), Err("token_early")),
        (
            "the API server's audience",
            json!({ "aud": ["https://kubernetes.default.svc"] }),
            Err("token_audience"),
        ),
        ("no audience (legacy secret)", json!({ "aud": null }), Err("token_audience")),
        ("empty audience", json!({ "aud": [] }), Err("token_audience")),
        ("another issuer", json!({ "iss": "https://evil" }), Err("token_issuer")),
        ("no issuer", json!({ "iss": null }), Err("token_issuer")),
        ("a user", json!({ "sub": "kubernetes-admin" }), Err("token_subject")),
        ("a node", json!({ "sub": "system:node:a" }), Err("token_subject")),
        ("no subject", json!({ "sub": null }), Err("token_subject")),
        ("three parts", json!({ "sub": "system:serviceaccount:shop" }), Err("token_subject")),
        ("five parts", json!({ "sub": "system:serviceaccount:shop:web:x" }), Err("token_subject")),
        (
            "a slash in the name",
            json!({ "sub": "system:serviceaccount:shop:web/sa/admin", "kubernetes.io": null }),
            Err("token_subject"),
        ),
        (
            "empty name",
            json!({ "sub": "system:serviceaccount:shop:", "kubernetes.io": null }),
            Err("token_subject"),
        ),
        (
            "claims of another namespace",
            json!({ "kubernetes.io": { "namespace": "bank" } }),
            Err("token_subject"),
        ),
        (
            "claims of another account",
            json!({ "kubernetes.io": { "serviceaccount": { "name": "admin" } } }),
            Err("token_subject"),
        ),
    ] {
        let token = issuer.sign(&claims(&changes));
        assert_eq!(verdict(&tokens, Some(&format!("Bearer {token}"))).await, want, "{what}");
    }
    let good = issuer.sign(&claims(&json!({})));
    let forged = stranger.sign(&claims(&json!({})));
    let mut cut = good.clone();
    cut.truncate(good.len() - 2);
    let unsigned = format!(
        "{}.{}.",
        BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#),
        good.split('.').nth(1).unwrap()
    );
    let hmac = encode(
        &Header::new(Algorithm::HS256),
        &claims(&json!({})),
        &EncodingKey::from_secret(issuer.jwk().to_string().as_bytes()),
    )
    .unwrap();
    for (what, header, want) in [
        ("nobody", None, "anonymous"),
        ("no scheme", Some(good.clone()), "token_malformed"),
        ("basic", Some(format!("Basic {good}")), "token_malformed"),
        ("empty", Some("Bearer ".into()), "token_malformed"),
        ("text", Some("Bearer hello".into()), "token_malformed"),
        ("another's key of the same id", Some(format!("Bearer {forged}")), "token_signature"),
        ("cut short", Some(format!("Bearer {cut}")), "token_signature"),
        ("algorithm none", Some(format!("Bearer {unsigned}")), "token_malformed"),
        ("HMAC with the public key", Some(format!("Bearer {hmac}")), "token_malformed"),
        ("a megabyte", Some(format!("Bearer {}", "a".repeat(1 << 20))), "token_malformed"),
    ] {
        assert_eq!(verdict(&tokens, header.as_deref()).await, Err(want), "{what}");
    }
    assert_eq!(
        verdict(&tokens, Some(&format!("bearer {good}"))).await.unwrap().len(),
        37,
        "the scheme has no case"
    );
}

#[tokio::test]
async fn a_certificate_counts_only_without_a_token() {
    let (issuer, domain) = (Issuer::new("k1"), TrustDomain::default());
    let file = keys(&json!({ "keys": [issuer.jwk()] }));
    let tokens = Jwks::open(file.path(), accept()).unwrap();
    let peer = testkit::peer("spiffe://cluster.local/ns/shop/sa/cart");
    let foreign = testkit::peer("spiffe://other.local/ns/shop/sa/cart");
    let ask = async |header: Option<&str>, peer: Option<&Peer>, tokens: Option<&dyn TokenVerifier>| {
        identify(header, peer, tokens, &domain)
            .await
            .map(|id| id.service_account().to_owned())
            .map_err(|e| e.label())
    };
    assert_eq!(ask(None, Some(&peer), Some(&tokens)).await.as_deref(), Ok("cart"));
    assert_eq!(ask(None, Some(&foreign), Some(&tokens)).await, Err("trust_domain"));
    assert_eq!(ask(Some("Bearer x"), Some(&peer), Some(&tokens)).await, Err("token_malformed"));
    assert_eq!(ask(Some("Bearer x"), Some(&peer), None).await, Err("tokens_off"));
    let token = format!("Bearer {}", issuer.sign(&claims(&json!({}))));
    assert_eq!(
        ask(Some(&token), Some(&peer), Some(&tokens)).await.as_deref(),
        Ok("web"),
        "the token decides"
    );
}

#[tokio::test(start_paused = true)]
async fn keys_are_replaced_while_running_and_a_broken_file_changes_nothing() {
    let (old, new) = (Issuer::new("old"), Issuer::new("new"));
    let file = keys(&json!({ "keys": [old.jwk()] }));
    let tokens = Arc::new(Jwks::open(file.path(), accept()).unwrap());
    let (_trigger, watch) = mesh_runtime::drain::new();
    tokio::spawn(tokens.clone().follow(watch));
    let bearer = |issuer: &Issuer| format!("Bearer {}", issuer.sign(&claims(&json!({}))));
    let wait = || tokio::time::sleep(std::time::Duration::from_secs(12));
    wait().await;
    assert_eq!(verdict(&tokens, Some(&bearer(&new))).await, Err("token_signature"));
    std::fs::write(file.path(), "{ half").unwrap();
    wait().await;
    assert!(verdict(&tokens, Some(&bearer(&old))).await.is_ok());
    std::fs::write(file.path(), json!({ "keys": [old.jwk(), new.jwk()] }).to_string()).unwrap();
    wait().await;
    assert!(verdict(&tokens, Some(&bearer(&old))).await.is_ok());
    assert!(verdict(&tokens, Some(&bearer(&new))).await.is_ok());
}

#[test]
fn key_files_without_a_public_key_are_refused() {
    for (set, part) in [
        (json!({ "keys": [] }), "no key in it"),
        (json!({ "keys": [{ "kty": "oct", "k": "c2VjcmV0" }] }), "no key in it"),
        (json!([]), "not a JSON Web Key Set"),
    ] {
        let file = keys(&set);
        let error = Jwks::open(file.path(), accept()).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("--token-keys"), "{error}");
    }
}
