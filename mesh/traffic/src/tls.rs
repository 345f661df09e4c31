//! TLS of listeners and clusters, and the secrets they name.
//!
//! In: pilot or xDS. Out: settings that `mesh-identity` turns into sessions. Kept true: private keys never print.
//! Not here: handshakes and verification (`mesh-identity`).

use std::{fmt, sync::Arc};

use crate::{matchers::StringMatch, names::Name};

/// The secret that holds a workload's own certificate and key.
pub const WORKLOAD_CERTIFICATE: &str = "default";
/// The secret that holds the mesh's roots.
pub const WORKLOAD_ROOTS: &str = "ROOTCA";

/// Where a certificate with its key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Certificate {
    /// A secret by name.
    Sds(Name),
    /// Files.
    Files {
        /// PEM chain, leaf first.
        chain: Name,
        /// PEM key.
        key: Name,
    },
    /// In the message itself.
    Inline(Arc<KeyPair>),
}

/// A certificate chain and its private key, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// Leaf first.
    pub chain: Vec<u8>,
    /// PKCS#8, PKCS#1 or SEC1.
    pub key: Vec<u8>,
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}

/// Where trusted roots come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// A secret by name.
    Sds(Name),
    /// A PEM file.
    File(Name),
    /// PEM in the message itself.
    Inline(Arc<[u8]>),
    /// The public roots that this proxy ships.
    System,
}

/// How the peer's certificate is judged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Validation {
    /// Roots; `None` accepts any certificate (`insecureSkipVerify`).
    pub roots: Option<Roots>,
    /// At least one name of the certificate must match one of these; empty for any name.
    pub names: Vec<StringMatch>,
}

/// TLS versions, oldest and newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// Oldest that is accepted.
    pub min: Version,
    /// Newest that is offered.
    pub max: Version,
}

impl Default for Versions {
    fn default() -> Self {
        Self { min: Version::Tls12, max: Version::Tls13 }
    }
}

/// A TLS version. Older ones are not spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// TLS towards clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownstreamTls {
    /// Our certificates; by SNI when there are several.
    pub certificates: Vec<Certificate>,
    /// How clients' certificates are judged; `None` never asks for one.
    pub validation: Option<Validation>,
    /// Refuses clients without a certificate.
    pub require_client_certificate: bool,
    /// Protocols, most wanted first.
    pub alpn: Vec<Name>,
    /// Versions.
    pub versions: Versions,
}

/// TLS towards upstreams.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UpstreamTls {
    /// Our certificate, for mutual TLS.
    pub certificate: Option<Certificate>,
    /// How the server's certificate is judged.
    pub validation: Validation,
    /// Server name to send; `None` sends none.
    pub sni: Option<Name>,
    /// Protocols, most wanted first.
    pub alpn: Vec<Name>,
    /// Versions.
    pub versions: Versions,
}

impl UpstreamTls {
    /// What `pilot explain` calls it: `mtls` with a mesh certificate, `mutual` with another, else `simple`.
    #[must_use]
    pub fn mode(&self) -> &'static str {
        match &self.certificate {
            Some(Certificate::Sds(name)) if &**name == WORKLOAD_CERTIFICATE => "mtls",
            Some(_) => "mutual",
            None => "simple",
        }
    }
}

/// A secret as SDS delivers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// A certificate with its key.
    Certificate(Arc<KeyPair>),
    /// Roots, PEM.
    Roots(Arc<[u8]>),
}
