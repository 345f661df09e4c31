//! SPIFFE identities as the mesh uses them: `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`.
//!
//! In: text from certificates, tokens and configuration. Out: [`SpiffeId`], [`TrustDomain`].
//! Kept true: one spelling per identity (no case, escape, dot or slash games), so that equality is identity.
//! Not here: proof that a peer has the identity (`tls::verify`).

use std::{fmt, str::FromStr, sync::Arc};

/// Longest SPIFFE ID in bytes (SPIFFE-ID specification, section 2.3).
pub const MAX_ID: usize = 2048;
/// Longest trust domain in bytes (same section).
const MAX_TRUST_DOMAIN: usize = 255;

/// Why a text is not an identity of this mesh's form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a SPIFFE identity: {why}")]
pub struct BadId {
    given: String,
    why: &'static str,
}

impl BadId {
    fn new(given: &str, why: &'static str) -> Self {
        // What peers send goes to logs: short, and without control characters.
        Self { given: given.chars().take(100).map(|c| if c.is_control() { '?' } else { c }).collect(), why }
    }
}

/// The host part of SPIFFE identities: one certificate authority's realm.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a trust domain: 1 to 255 of `a-z 0-9 . - _`.
    ///
    /// # Errors
    /// [`BadId`] names what is wrong.
    pub fn parse(text: &str) -> Result<Self, BadId> {
        let bad = |why| Err(BadId::new(text, why));
        match text {
            "" => bad("the trust domain is empty"),
            _ if text.len() > MAX_TRUST_DOMAIN => bad("the trust domain is longer than 255 bytes"),
            _ if !text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_')) => {
                bad("a trust domain has only a-z, 0-9, `.`, `-` and `_`")
            }
            _ => Ok(Self(text.into())),
        }
    }

    /// As configured by an operator: Istio allows `@` there and means `.` by it.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn from_config(text: &str) -> Result<Self, BadId> {
        Self::parse(&text.replace('@', "."))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The identity of a service account in this domain.
    ///
    /// # Errors
    /// When a name is not a Kubernetes name.
    pub fn service_account(&self, namespace: &str, name: &str) -> Result<SpiffeId, BadId> {
        format!("spiffe://{self}/ns/{namespace}/sa/{name}").parse()
    }
}

impl Default for TrustDomain {
    /// `cluster.local`.
    fn default() -> Self {
        Self("cluster.local".into())
    }
}

impl FromStr for TrustDomain {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        Self::parse(text)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// An identity: a service account in a namespace of a trust domain. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    domain: TrustDomain,
    namespace: (usize, usize),
    account: usize,
}

impl SpiffeId {
    /// The whole URI, as it stands in certificates.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// Whose realm it is in.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.uri[self.namespace.0..self.namespace.1]
    }

    /// Kubernetes service account.
    pub fn service_account(&self) -> &str {
        &self.uri[self.account..]
    }

    /// The form without scheme, `cluster.local/ns/default/sa/web`: what Istio calls a principal.
    pub fn principal(&self) -> &str {
        &self.uri["spiffe://".len()..]
    }
}

impl FromStr for SpiffeId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = |why| BadId::new(text, why);
        if text.len() > MAX_ID {
            return Err(bad("longer than 2048 bytes"));
        }
        let rest = text.strip_prefix("spiffe://").ok_or_else(|| bad("it does not start with `spiffe://`"))?;
        let mut parts = rest.split('/');
        let domain = parts.next().unwrap_or_default();
        let (Some("ns"), Some(namespace), Some("sa"), Some(account), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad("its path is not /ns/NAMESPACE/sa/SERVICE_ACCOUNT"));
        };
        let domain = TrustDomain::parse(domain).map_err(|e| bad(e.why))?;
        if !is_label(namespace) {
            return Err(bad("the namespace is not a Kubernetes name"));
        }
        if account.len() > 253 || !account.split('.').all(is_label) {
            return Err(bad("the service account is not a Kubernetes name"));
        }
        let account_at = text.len() - account.len();
        let namespace_end = account_at - "/sa/".len();
        Ok(Self {
            namespace: (namespace_end - namespace.len(), namespace_end),
            account: account_at,
            uri: text.into(),
            domain,
        })
    }
}

/// RFC 1123 label: 1 to 63 of `a-z 0-9 -`, no `-` at either end.
fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !text.starts_with('-')
        && !text.ends_with('-')
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_has_its_three_parts() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web.front".parse().unwrap();
        assert_eq!(
            (id.trust_domain().as_str(), id.namespace(), id.service_account(), id.principal()),
            ("cluster.local", "shop", "web.front", "cluster.local/ns/shop/sa/web.front")
        );
        assert_eq!(TrustDomain::default().service_account("shop", "web.front").unwrap(), id);
        assert_eq!(TrustDomain::from_config("ops@example.com").unwrap().as_str(), "ops.example.com");
    }

    #[test]
    fn there_is_no_second_spelling_of_an_identity() {
        let long = format!("spiffe://td/ns/a/sa/{}", "a".repeat(2048));
        for text in [
            "",
            "https://td/ns/a/sa/b",
            "SPIFFE://td/ns/a/sa/b",
            "spiffe://TD/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://td:443/ns/a/sa/b",
            "spiffe://user@td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b/",
            "spiffe://td//ns/a/sa/b",
            "spiffe://td/ns/a/sa/b?x=1",
            "spiffe://td/ns/a/sa/b#x",
            "spiffe://td/ns/a/sa/B",
            "spiffe://td/ns/a%2fb/sa/c",
            "spiffe://td/ns/../sa/b",
            "spiffe://td/ns/a/sa/.",
            "spiffe://td/ns/a/sa/*",
            "spiffe://td/ns/*/sa/b",
            "spiffe://td/ns/a/sa/b\0",
            "spiffe://td/ns/a/sa/b\n",
            "spiffe://t\u{e4}/ns/a/sa/b",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns/a",
            "spiffe://td/sa/a/ns/b",
            "spiffe://td/workload",
            &long,
        ] {
            let error = text.parse::<SpiffeId>().expect_err(text);
            assert!(!error.to_string().contains(['\0', '\n']), "{error:?}");
        }
    }
}
