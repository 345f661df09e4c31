//! Certificate requests: proof that the caller holds a private key, and nothing else.
//!
//! In: PKCS#10 in PEM from an authenticated caller. Out: the public key.
//! Kept true: names, extensions and lifetimes that a request asks for are never looked at.
//! Not here: the identity (`caller`), signing (`ca`).

use mesh_identity::{
    pki_types::{CertificateSigningRequestDer, pem::PemObject},
    tls,
};
use rcgen::SubjectPublicKeyInfo;
use x509_parser::{
    asn1_rs::Any, certification_request::X509CertificationRequest, prelude::FromDer, public_key::PublicKey,
};

/// Largest request in bytes; a P-256 request has 500, an RSA-8192 one 3,000.
pub const MAX_REQUEST: usize = 16 * 1024;
/// Smallest RSA key in bits.
const MIN_RSA: usize = 2048;

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// Too large to be honest.
    #[error("csr: {0} bytes; at most {MAX_REQUEST} are read")]
    TooLarge(usize),
    /// No PEM block `CERTIFICATE REQUEST`.
    #[error("csr: not a PEM `CERTIFICATE REQUEST`")]
    NotPem,
    /// Not PKCS#10.
    #[error("csr: not a PKCS#10 request")]
    Malformed,
    /// The key is too short or of an unknown kind.
    #[error("csr: {0}; use ECDSA P-256 or P-384, Ed25519, or RSA of at least {MIN_RSA} bits")]
    Key(&'static str),
    /// The request is not signed by the key it names.
    #[error("csr: its signature does not verify with its own public key")]
    Signature,
}

/// Checks the request's own signature and takes the public key out.
///
/// # Errors
/// [`BadRequest`] says what is wrong.
pub fn public_key(pem: &str) -> Result<SubjectPublicKeyInfo, BadRequest> {
    if pem.len() > MAX_REQUEST {
        return Err(BadRequest::TooLarge(pem.len()));
    }
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| BadRequest::NotPem)?;
    let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| BadRequest::Malformed)?;
    if !rest.is_empty() {
        return Err(BadRequest::Malformed);
    }
    let info = &request.certification_request_info;
    let spki = &info.subject_pki;
    if let Ok(PublicKey::RSA(rsa)) = spki.parsed()
        && rsa.key_size() < MIN_RSA
    {
        return Err(BadRequest::Key("the RSA key is too short"));
    }
    let key_algorithm = first_child(spki.raw).ok_or(BadRequest::Malformed)?;
    let signature_algorithm = second_child(request.as_raw()).ok_or(BadRequest::Malformed)?;
    let verifier = tls::provider()
        .signature_verification_algorithms
        .all
        .iter()
        .find(|a| {
            a.public_key_alg_id().as_ref() == key_algorithm
                && a.signature_alg_id().as_ref() == signature_algorithm
        })
        .ok_or(BadRequest::Key("the key or signature algorithm is not accepted"))?;
    verifier
        .verify_signature(&spki.subject_public_key.data, info.raw, &request.signature_value.data)
        .map_err(|_| BadRequest::Signature)?;
    SubjectPublicKeyInfo::from_der(spki.raw).map_err(|_| BadRequest::Key("the key algorithm is not accepted"))
}

/// Content of the first element of a sequence.
fn first_child(der: &[u8]) -> Option<&[u8]> {
    let (_, outer) = Any::from_der(der).ok()?;
    let (_, first) = Any::from_der(outer.data).ok()?;
    Some(first.data)
}

/// Content of the second element of a sequence.
fn second_child(der: &[u8]) -> Option<&[u8]> {
    let (_, outer) = Any::from_der(der).ok()?;
    let (rest, _) = Any::from_der(outer.data).ok()?;
    let (_, second) = Any::from_der(rest).ok()?;
    Some(second.data)
}
