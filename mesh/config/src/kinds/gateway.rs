//! Gateway: ports that gateway pods open, and the hosts they serve.
//!
//! In: the `spec` of `networking.istio.io` Gateway, any version. Out: [`Gateway`].
//! Kept true: server order is file order. Not here: routes (VirtualService), listeners (`pilot`).

use super::common::Port;
use super::rare::TlsCertificate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A load balancer at the edge of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Gateway {
    /// Labels of the gateway pods, in any namespace.
    pub selector: BTreeMap<String, String>,
    /// Ports served.
    pub servers: Vec<Server>,
}

/// One port of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Server {
    /// The port of the gateway's Service.
    pub port: Port,
    /// Address or socket to bind (T3).
    pub bind: Option<String>,
    /// Hosts served: `host`, `*.x`, `*`, each optionally `namespace/host` to limit whose routes bind.
    pub hosts: Vec<String>,
    /// TLS settings; required for HTTPS and TLS.
    pub tls: Option<ServerTls>,
    /// Legacy, not honoured.
    pub default_endpoint: Option<String>,
    /// Name of the server.
    pub name: Option<String>,
}

/// TLS settings of a server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerTls {
    /// Answer plain HTTP with 301 to https.
    pub https_redirect: Option<bool>,
    /// Mode; absent: PASSTHROUGH as protobuf's zero value.
    pub mode: ServerTlsMode,
    /// Certificate chain file.
    pub server_certificate: Option<String>,
    /// Key file.
    pub private_key: Option<String>,
    /// CA bundle file for client certificates.
    pub ca_certificates: Option<String>,
    /// Revocation list file (T3).
    pub ca_crl: Option<String>,
    /// Secret with key and chain, in the gateway pod's namespace.
    pub credential_name: Option<String>,
    /// Several secrets, e.g. RSA and ECDSA.
    pub credential_names: Vec<String>,
    /// File pairs (T3).
    pub tls_certificates: Vec<TlsCertificate>,
    /// Names of which a client's certificate must have one.
    pub subject_alt_names: Vec<String>,
    /// Base64 SHA-256 of client keys (T3).
    pub verify_certificate_spki: Vec<String>,
    /// Hex SHA-256 of client certificates (T3).
    pub verify_certificate_hash: Vec<String>,
    /// Lowest TLS version.
    pub min_protocol_version: Option<TlsVersion>,
    /// Highest TLS version.
    pub max_protocol_version: Option<TlsVersion>,
    /// Cipher suites for TLS 1.2 and below.
    pub cipher_suites: Vec<String>,
}

/// TLS mode of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ServerTlsMode {
    /// Forwarded by SNI without termination.
    #[default]
    Passthrough,
    /// Terminated; no client certificate.
    Simple,
    /// Terminated; client certificate required.
    Mutual,
    /// Forwarded by Istio's SNI encoding.
    AutoPassthrough,
    /// Terminated with the mesh's own certificates.
    IstioMutual,
    /// Terminated; client certificate checked when there is one.
    OptionalMutual,
}

/// TLS versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TlsVersion {
    /// The default.
    #[serde(rename = "TLS_AUTO")]
    Auto,
    /// TLS 1.0 (not supported).
    #[serde(rename = "TLSV1_0")]
    V1_0,
    /// TLS 1.1 (not supported).
    #[serde(rename = "TLSV1_1")]
    V1_1,
    /// TLS 1.2.
    #[serde(rename = "TLSV1_2")]
    V1_2,
    /// TLS 1.3.
    #[serde(rename = "TLSV1_3")]
    V1_3,
}
