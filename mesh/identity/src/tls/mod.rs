//! TLS of the mesh: verified peers, server and client sides.
//!
//! In: byte streams with [`server`] or [`client`] settings. Out: TLS streams and who is at the other end.
//! Kept true: TLS 1.3 unless 1.2 is asked for; no resumption and no 0-RTT, so every connection is verified anew.
//! Not here: when certificates change (`store`), detection of TLS on a port (the proxy's listener).

use std::{
    io,
    sync::{Arc, LazyLock},
    time::Duration,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, ServerConfig, SupportedProtocolVersion,
    client::{ResolvesClientCert, Resumption},
    crypto::CryptoProvider,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};

pub mod client;
pub mod server;
pub mod verify;

pub use client::{ClientTls, Connected, Expected, Names, OriginTls};
pub use server::{Accepted, ClientAuth, ServerTls};
pub use verify::{BadPeer, Peer, Verified};

/// How long a handshake may take.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// The oldest version of TLS that is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MinTls {
    /// TLS 1.3 only.
    #[default]
    V13,
    /// TLS 1.2 as well, for peers outside the mesh.
    V12,
}

impl MinTls {
    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static ONLY_13: [&SupportedProtocolVersion; 1] = [&TLS13];
        static FROM_12: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match self {
            Self::V13 => &ONLY_13,
            Self::V12 => &FROM_12,
        }
    }
}

/// Why a TLS connection did not come about.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// We have no certificate yet.
    #[error("no certificate yet (waiting for the certificate authority)")]
    NoCredentials,
    /// The settings cannot be used with the certificates at hand.
    #[error("tls settings: {0}")]
    Settings(String),
    /// The handshake failed; the text names the alert or the check.
    #[error("tls handshake: {0}")]
    Handshake(#[source] io::Error),
    /// The peer took too long.
    #[error("tls handshake not finished after {} s", HANDSHAKE_DEADLINE.as_secs())]
    Deadline,
    /// The peer's certificate is not one of a mesh identity.
    #[error("peer certificate: {0}")]
    Peer(#[from] BadPeer),
}

impl TlsError {
    /// rustls wraps our own verdict three times, and prints it badly.
    fn of_handshake(error: io::Error) -> Self {
        let verdict = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()).and_then(|e| match e {
            rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => {
                other.0.downcast_ref::<BadPeer>().cloned()
            }
            _ => None,
        });
        match verdict {
            Some(bad) => Self::Peer(bad),
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                Self::Handshake(io::Error::new(error.kind(), "the peer closed the connection"))
            }
            None => Self::Handshake(error),
        }
    }
}

/// The one crypto provider.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    &PROVIDER
}

/// Makes the provider rustls's default, for libraries that build their own configuration. Harmless when repeated.
pub fn install_provider() {
    let _ = CryptoProvider::install_default((**provider()).clone());
}

/// SHA-256, from the TLS provider: what XFCC calls `Hash`.
pub fn sha256(data: &[u8]) -> [u8; 32] {
    let rustls::SupportedCipherSuite::Tls13(suite) =
        rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256
    else {
        unreachable!("TLS13_AES_128_GCM_SHA256 is a TLS 1.3 suite");
    };
    let mut out = [0; 32];
    out.copy_from_slice(suite.common.hash_provider.hash(data).as_ref());
    out
}

/// Always the same certificate, whatever the other side names or hints.
#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl ResolvesClientCert for Fixed {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn server_config(
    min: MinTls,
    verifier: Arc<dyn rustls::server::danger::ClientCertVerifier>,
    certificate: Arc<CertifiedKey>,
    alpn: &[Vec<u8>],
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(min.versions())
        .map_err(|e| TlsError::Settings(e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Fixed(certificate)));
    // A resumed session would carry an identity that was verified against an older bundle.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = alpn.to_vec();
    Ok(config)
}

fn client_config(
    min: MinTls,
    verifier: Arc<dyn rustls::client::danger::ServerCertVerifier>,
    certificate: Option<Arc<CertifiedKey>>,
    alpn: &[Vec<u8>],
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(min.versions())
        .map_err(|e| TlsError::Settings(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match certificate {
        Some(certificate) => builder.with_client_cert_resolver(Arc::new(Fixed(certificate))),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.alpn_protocols = alpn.to_vec();
    Ok(config)
}

/// Signature checks, the same on both sides.
fn verify_tls13(
    message: &[u8],
    cert: &rustls_pki_types::CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
    rustls::crypto::verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
}

fn verify_tls12(
    message: &[u8],
    cert: &rustls_pki_types::CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
    rustls::crypto::verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
}

#[cfg(test)]
mod tests;
