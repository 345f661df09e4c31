//! Proof of identity: a certificate chain is checked here, and only here a [`Verified`] can be made.
//!
//! In: the chain that a peer sent, roots, expected names. Out: [`Verified<SpiffeId>`] within a [`Peer`], or [`BadPeer`].
//! Kept true: a mesh peer has exactly one URI name, a SPIFFE identity of an accepted trust domain; anything less, or more than DNS names,
//! is refused.
//! Not here: authorization, which takes the proof and nothing else.

use std::{fmt, ops::Deref, sync::Arc, time::SystemTime};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    client::{verify_server_cert_signed_by_trust_anchor, verify_server_name},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::{extensions::GeneralName, prelude::X509Certificate};

use super::{
    TlsError,
    client::{Expected, Names},
    provider, verify_tls12, verify_tls13,
};
use crate::{
    bundle::TrustBundle,
    spiffe::{SpiffeId, TrustDomain},
};

/// Intermediates a peer may send. Meshes use one to three; more only costs path-building time.
const MAX_INTERMEDIATES: usize = 8;
/// Bytes of all certificates a peer may send.
const MAX_CHAIN_BYTES: usize = 32 * 1024;

/// Something that a TLS handshake has proven. Only this module makes one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Verified<T>(T);

impl<T> Verified<T> {
    /// What was proven.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: fmt::Display> fmt::Display for Verified<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The verified other end of a mutual TLS connection.
#[derive(Clone, PartialEq, Eq)]
pub struct Peer {
    id: Verified<SpiffeId>,
    chain: Arc<[CertificateDer<'static>]>,
}

impl Peer {
    /// Its identity.
    pub fn id(&self) -> &Verified<SpiffeId> {
        &self.id
    }

    /// The chain it showed, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// SHA-256 of the leaf in lower-case hexadecimal: `Hash` of x-forwarded-client-cert.
    pub fn leaf_hash(&self) -> String {
        let leaf = self.chain.first().map_or(&[][..], |c| c.as_ref());
        super::sha256(leaf).iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Peer").field(&self.id).finish()
    }
}

/// Why a peer's certificate is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPeer {
    /// It sent none.
    #[error("no certificate was shown")]
    Missing,
    /// It is not X.509 as we read it.
    #[error("the certificate is malformed")]
    Malformed,
    /// It has no subject alternative name, or several, or another kind.
    #[error("the certificate must carry exactly one URI name, a SPIFFE identity; {0}")]
    Names(String),
    /// The chain does not lead to a trusted root, or is over, or not allowed for this use.
    #[error("the certificate chain is not trusted: {0}")]
    Chain(String),
    /// A trust domain this mesh does not accept.
    #[error("trust domain `{0}` is not accepted here")]
    TrustDomain(TrustDomain),
    /// Verified, but not who was expected.
    #[error("the server is `{actual}`, expected {expected}")]
    Unexpected {
        /// Who it is.
        actual: String,
        /// Who it should be.
        expected: String,
    },
    /// More certificates or bytes than any mesh needs.
    #[error("the certificate chain is too long")]
    TooLong,
}

impl From<BadPeer> for Error {
    fn from(bad: BadPeer) -> Self {
        Self::InvalidCertificate(CertificateError::Other(rustls::OtherError(Arc::new(bad))))
    }
}

/// The one SPIFFE identity of a certificate (X.509-SVID, section 2: exactly one URI name; DNS names may stand beside it, as on
/// the certificates of components that serve webhooks too, and mean nothing here).
///
/// # Errors
/// When the certificate carries a name of another kind, or the URI is not an identity of the mesh's form.
pub fn sole_spiffe_id(cert: &X509Certificate<'_>) -> Result<SpiffeId, BadPeer> {
    let names = |why: &str| BadPeer::Names(why.to_owned());
    let san = cert
        .subject_alternative_name()
        .map_err(|_| names("its names cannot be read"))?
        .ok_or_else(|| names("it has none"))?;
    let mut others = san.value.general_names.iter().filter(|name| !matches!(name, GeneralName::DNSName(_)));
    match (others.next(), others.next()) {
        (Some(GeneralName::URI(uri)), None) => {
            uri.parse().map_err(|e: crate::spiffe::BadId| BadPeer::Names(e.to_string()))
        }
        (Some(_), None) => Err(names("its name is of another kind")),
        (None, _) => Err(names("it has none")),
        (Some(_), Some(_)) => Err(names("it has several")),
    }
}

fn identity(end_entity: &CertificateDer<'_>, domains: &[TrustDomain]) -> Result<SpiffeId, BadPeer> {
    let (rest, cert) = x509_parser::parse_x509_certificate(end_entity).map_err(|_| BadPeer::Malformed)?;
    if !rest.is_empty() {
        return Err(BadPeer::Malformed);
    }
    let id = sole_spiffe_id(&cert)?;
    if !domains.contains(id.trust_domain()) {
        return Err(BadPeer::TrustDomain(id.trust_domain().clone()));
    }
    Ok(id)
}

fn check_size(end_entity: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(), BadPeer> {
    let bytes = end_entity.len() + intermediates.iter().map(|c| c.len()).sum::<usize>();
    if intermediates.len() > MAX_INTERMEDIATES || bytes > MAX_CHAIN_BYTES {
        Err(BadPeer::TooLong)
    } else {
        Ok(())
    }
}

/// The proof, from what rustls kept of a handshake that one of the verifiers below has accepted.
pub(super) fn peer_of_handshake(
    chain: Option<&[CertificateDer<'_>]>,
    domains: &[TrustDomain],
) -> Result<Peer, BadPeer> {
    let chain = chain.filter(|c| !c.is_empty()).ok_or(BadPeer::Missing)?;
    let id = identity(&chain[0], domains)?;
    Ok(Peer { id: Verified(id), chain: chain.iter().map(|c| c.clone().into_owned()).collect() })
}

/// Checks a client's chain as a handshake at `now` would: for certificates just received, and for re-checking live
/// connections after the bundle has changed.
///
/// # Errors
/// Why the peer would be refused.
pub fn check_client(
    chain: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    domains: &[TrustDomain],
    now: SystemTime,
) -> Result<Peer, BadPeer> {
    let (leaf, rest) = chain.split_first().ok_or(BadPeer::Missing)?;
    let verifier =
        MeshClients::new(bundle, domains.into(), true).map_err(|e| BadPeer::Chain(e.to_string()))?;
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    verifier.check(leaf, rest, UnixTime::since_unix_epoch(since_epoch))?;
    peer_of_handshake(Some(chain), domains)
}

/// Server side: clients of the mesh.
#[derive(Debug)]
pub(super) struct MeshClients {
    chain: Arc<dyn ClientCertVerifier>,
    domains: Arc<[TrustDomain]>,
    required: bool,
}

impl MeshClients {
    pub(super) fn new(
        bundle: &TrustBundle,
        domains: Arc<[TrustDomain]>,
        required: bool,
    ) -> Result<Self, TlsError> {
        Ok(Self { chain: chain_verifier(bundle, required)?, domains, required })
    }

    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), BadPeer> {
        check_size(end_entity, intermediates)?;
        identity(end_entity, &self.domains)?;
        self.chain
            .verify_client_cert(end_entity, intermediates, now)
            .map_err(|e| BadPeer::Chain(chain_reason(&e)))?;
        Ok(())
    }
}

/// Any client whose chain leads to the bundle, whatever its names (gateways with `tls.mode: MUTUAL`).
pub(super) fn chain_verifier(
    bundle: &TrustBundle,
    required: bool,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    // No hints: they would tell strangers our roots' names, and mislead clients during a rotation.
    let builder = WebPkiClientVerifier::builder_with_provider(bundle.anchors(), provider().clone())
        .clear_root_hint_subjects();
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    let verifier = builder.build().map_err(|e| TlsError::Settings(e.to_string()))?;
    Ok(verifier)
}

fn chain_reason(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(why) => match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "it leads to no root of this mesh".into()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired".into(),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "it is not valid yet".into()
            }
            other => format!("{other:?}"),
        },
        other => other.to_string(),
    }
}

impl ClientCertVerifier for MeshClients {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Client side: what a server must show.
#[derive(Debug)]
pub(super) enum Servers {
    /// A mesh identity out of an expected set.
    Mesh { bundle: TrustBundle, domains: Arc<[TrustDomain]>, expected: Expected },
    /// A chain to these roots, and names as said.
    Names { roots: Arc<rustls::RootCertStore>, names: Names },
    /// Anything (`insecureSkipVerify`): encryption without identity.
    Anyone,
}

impl Servers {
    fn check_names(names: &Names, cert: &CertificateDer<'_>, asked: &ServerName<'_>) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(cert)?;
        match names {
            Names::Asked => verify_server_name(&parsed, asked),
            Names::Any => Ok(()),
            Names::OneOf(wanted) => {
                let (_, x509) = x509_parser::parse_x509_certificate(cert).map_err(|_| BadPeer::Malformed)?;
                let san = x509.subject_alternative_name().map_err(|_| BadPeer::Malformed)?;
                let has_uri = |wanted: &str| {
                    san.as_ref().is_some_and(|san| {
                        san.value
                            .general_names
                            .iter()
                            .any(|n| matches!(n, GeneralName::URI(uri) if *uri == wanted))
                    })
                };
                let matches = |wanted: &String| {
                    has_uri(wanted)
                        || ServerName::try_from(wanted.as_str())
                            .is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
                };
                if wanted.iter().any(matches) {
                    return Ok(());
                }
                Err(BadPeer::Unexpected {
                    actual: "a certificate with other names".into(),
                    expected: wanted.join(" or "),
                }
                .into())
            }
        }
    }
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = |roots: &rustls::RootCertStore| {
            check_size(end_entity, intermediates)?;
            verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(end_entity)?,
                roots,
                intermediates,
                now,
                provider().signature_verification_algorithms.all,
            )
            .map_err(|e| Error::from(BadPeer::Chain(chain_reason(&e))))
        };
        match self {
            Self::Anyone => {}
            Self::Names { roots, names } => {
                chain(roots)?;
                Self::check_names(names, end_entity, server_name)?;
            }
            Self::Mesh { bundle, domains, expected } => {
                let id = identity(end_entity, domains)?;
                chain(&bundle.anchors())?;
                if !expected.allows(&id) {
                    let bad = BadPeer::Unexpected { actual: id.to_string(), expected: expected.to_string() };
                    return Err(bad.into());
                }
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
