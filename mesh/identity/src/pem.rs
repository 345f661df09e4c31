//! PEM text and files to certificates and keys, and back.
//!
//! In: bytes or paths. Out: DER types; PEM text of certificates.
//! Kept true: an error names the file and what was expected there; key bytes never enter an error.
//! Not here: whether a certificate is trusted or belongs to a key (`credentials`, `bundle`).

use std::path::{Path, PathBuf};

use base64::{Engine, prelude::BASE64_STANDARD};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::credentials::PrivateKey;

/// Largest PEM file or text that is looked at, in bytes.
pub const MAX_PEM: usize = 1024 * 1024;

/// PEM that does not hold what it should.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// The file could not be read.
    #[error("{}: {source}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not what was expected; `place` is the file, or what the text is.
    #[error("{place}: {why}")]
    Content {
        /// File or description.
        place: String,
        /// What is wrong.
        why: String,
    },
}

impl PemError {
    pub(crate) fn content(place: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Content { place: place.into(), why: why.into() }
    }
}

/// Reads a small file.
///
/// # Errors
/// When it cannot be read or is larger than [`MAX_PEM`].
pub fn read(path: &Path) -> Result<Vec<u8>, PemError> {
    let read = |source| PemError::Read { path: path.into(), source };
    let size = std::fs::metadata(path).map_err(read)?.len();
    if size > u64::try_from(MAX_PEM).unwrap_or(u64::MAX) {
        return Err(PemError::content(
            path.display().to_string(),
            format!("{size} bytes; at most {MAX_PEM} are read"),
        ));
    }
    std::fs::read(path).map_err(read)
}

/// All certificates of a text, at least one, in their order.
///
/// # Errors
/// When there is none, or a block is broken.
pub fn certificates(place: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let all = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| PemError::content(place, format!("broken PEM: {e}")))?;
    if all.is_empty() {
        return Err(PemError::content(place, "no `BEGIN CERTIFICATE` block"));
    }
    for (i, der) in all.iter().enumerate() {
        let (rest, _) = x509_parser::parse_x509_certificate(der)
            .map_err(|_| PemError::content(place, format!("certificate {} is not X.509", i + 1)))?;
        if !rest.is_empty() {
            return Err(PemError::content(place, format!("certificate {} has bytes after its end", i + 1)));
        }
    }
    Ok(all)
}

/// The certificates of a file.
///
/// # Errors
/// As [`certificates`], and when the file cannot be read.
pub fn certificates_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    certificates(&path.display().to_string(), &read(path)?)
}

/// The private key of a text (PKCS#8, PKCS#1 or SEC1).
///
/// # Errors
/// When there is none, or it is broken.
pub fn private_key(place: &str, pem: &[u8]) -> Result<PrivateKey, PemError> {
    rustls_pki_types::PrivateKeyDer::from_pem_slice(pem).map(PrivateKey::from_der).map_err(|_| {
        PemError::content(place, "no readable private key (PKCS#8, PKCS#1 or SEC1, not encrypted)")
    })
}

/// The private key of a file.
///
/// # Errors
/// As [`private_key`], and when the file cannot be read.
pub fn private_key_file(path: &Path) -> Result<PrivateKey, PemError> {
    let mut bytes = read(path)?;
    let key = private_key(&path.display().to_string(), &bytes);
    zeroize::Zeroize::zeroize(&mut bytes);
    key
}

/// One certificate as PEM, ending in a newline.
pub fn encode(der: &CertificateDer<'_>) -> String {
    encode_block("CERTIFICATE", der)
}

/// Several certificates as PEM, one after the other.
pub fn encode_all(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(encode).collect()
}

pub(crate) fn encode_block(label: &str, der: &[u8]) -> String {
    let mut out = format!("-----BEGIN {label}-----\n");
    let body = BASE64_STANDARD.encode(der);
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = more;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}
