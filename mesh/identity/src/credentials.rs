//! A certificate chain with its private key: what one side of a TLS connection shows.
//!
//! In: PEM or DER. Out: [`Credentials`], immutable, shared by all connections of a process.
//! Kept true: the key belongs to the leaf; key bytes are never printed and are wiped when dropped.
//! Not here: trust in other parties (`bundle`), replacement over time (`store`, `workload`).

use std::{
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{crypto::aws_lc_rs::sign::any_supported_type, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::X509Certificate;
use zeroize::{Zeroize, Zeroizing};

use crate::{
    pem::{self, PemError},
    spiffe::SpiffeId,
    tls::verify,
};

/// A private key in memory. Its `Debug` shows nothing, and its bytes are wiped on drop.
pub struct PrivateKey(PrivateKeyDer<'static>);

impl PrivateKey {
    /// Takes over key bytes.
    pub fn from_der(der: PrivateKeyDer<'static>) -> Self {
        Self(der)
    }

    /// The key as PEM, for handing to the program it was made for (SDS). The text is wiped on drop too.
    pub fn to_pem(&self) -> Zeroizing<String> {
        let label = match self.0 {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        Zeroizing::new(pem::encode_block(label, self.0.secret_der()))
    }

    /// The raw bytes, for a signing library.
    pub fn der(&self) -> &PrivateKeyDer<'static> {
        &self.0
    }
}

impl Clone for PrivateKey {
    fn clone(&self) -> Self {
        Self(self.0.clone_key())
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(hidden)")
    }
}

/// What a leaf certificate says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafFacts {
    /// The mesh identity, when the certificate carries exactly one name and that is one.
    pub id: Option<SpiffeId>,
    /// Not valid before.
    pub not_before: SystemTime,
    /// Not valid after.
    pub not_after: SystemTime,
    /// Serial number in lower-case hexadecimal.
    pub serial: String,
}

impl LeafFacts {
    /// Reads them from a certificate, without judging it.
    ///
    /// # Errors
    /// When it is not X.509; `place` names its origin.
    pub fn of(place: &str, der: &CertificateDer<'_>) -> Result<Self, PemError> {
        let (_, cert) = x509_parser::parse_x509_certificate(der)
            .map_err(|_| PemError::content(place, "the leaf certificate is not X.509"))?;
        Ok(Self {
            id: verify::sole_spiffe_id(&cert).ok(),
            not_before: instant(cert.validity().not_before.timestamp()),
            not_after: instant(cert.validity().not_after.timestamp()),
            serial: serial(&cert),
        })
    }

    /// How long the certificate is valid from `now`; zero when it is over.
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }
}

fn instant(unix_seconds: i64) -> SystemTime {
    u64::try_from(unix_seconds)
        .ok()
        .and_then(|s| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(s)))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

fn serial(cert: &X509Certificate<'_>) -> String {
    cert.raw_serial().iter().map(|b| format!("{b:02x}")).collect()
}

/// A chain, leaf first, and its key.
#[derive(Clone)]
pub struct Credentials {
    certified: Arc<CertifiedKey>,
    key: PrivateKey,
    facts: LeafFacts,
}

impl Credentials {
    /// Puts chain and key together; `place` names their origin in errors.
    ///
    /// # Errors
    /// When the chain is empty, the key is of no supported kind, or key and leaf do not belong together.
    pub fn new(place: &str, chain: Vec<CertificateDer<'static>>, key: PrivateKey) -> Result<Self, PemError> {
        let leaf = chain.first().ok_or_else(|| PemError::content(place, "the certificate chain is empty"))?;
        let facts = LeafFacts::of(place, leaf)?;
        let unfit = |e: rustls::Error| {
            PemError::content(place, format!("certificate and key do not fit together: {e}"))
        };
        // From a reference: rustls's other way takes a copy of the key that nobody would wipe.
        let signing = any_supported_type(key.der()).map_err(unfit)?;
        let certified = CertifiedKey::new(chain, signing);
        certified.keys_match().map_err(unfit)?;
        Ok(Self { certified: Arc::new(certified), key, facts })
    }

    /// Without the check that key and leaf fit: certificates that rustls cannot read, for tests of refusals.
    #[cfg(any(test, feature = "testkit"))]
    pub(crate) fn unmatched(chain: Vec<CertificateDer<'static>>, key: PrivateKey) -> Self {
        let facts = LeafFacts::of("test certificate", &chain[0]).expect("X.509");
        let signing = any_supported_type(key.der()).expect("a key");
        Self { certified: Arc::new(CertifiedKey::new(chain, signing)), key, facts }
    }

    /// From PEM texts.
    ///
    /// # Errors
    /// As [`Self::new`], and when a text is not PEM.
    pub fn from_pem(place: &str, chain: &[u8], key: &[u8]) -> Result<Self, PemError> {
        Self::new(place, pem::certificates(place, chain)?, pem::private_key(place, key)?)
    }

    /// From two PEM files, as DestinationRules and Gateways name them.
    ///
    /// # Errors
    /// As [`Self::new`], naming the file.
    pub fn from_files(chain: &Path, key: &Path) -> Result<Self, PemError> {
        let place = format!("{} with {}", chain.display(), key.display());
        Self::new(&place, pem::certificates_file(chain)?, pem::private_key_file(key)?)
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// What the leaf says.
    pub fn facts(&self) -> &LeafFacts {
        &self.facts
    }

    /// The identity of the leaf, if it is a mesh identity.
    pub fn id(&self) -> Option<&SpiffeId> {
        self.facts.id.as_ref()
    }

    /// The private key, for SDS only.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// For rustls.
    pub fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("id", &self.facts.id)
            .field("serial", &self.facts.serial)
            .field("not_after", &self.facts.not_after)
            .finish_non_exhaustive()
    }
}
