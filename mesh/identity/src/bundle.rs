//! Trust bundles: the root certificates that identities of the mesh may chain to.
//!
//! In: PEM with one or several roots (several while a root is being replaced). Out: [`TrustBundle`], cheap to clone.
//! Kept true: never empty, every member is a certificate webpki can use as an anchor, duplicates are dropped.
//! Not here: the check of a chain (`tls::verify`) and where bundles come from (`workload`, files).

use std::{fmt, path::Path, sync::Arc};

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;

use crate::pem::{self, PemError};

/// One or several trusted roots.
#[derive(Clone)]
pub struct TrustBundle {
    roots: Arc<[CertificateDer<'static>]>,
    anchors: Arc<RootCertStore>,
}

impl TrustBundle {
    /// From certificates; `place` names their origin in errors.
    ///
    /// # Errors
    /// When there is none, or one cannot be a trust anchor.
    pub fn new(place: &str, roots: Vec<CertificateDer<'static>>) -> Result<Self, PemError> {
        let mut kept: Vec<CertificateDer<'static>> = Vec::with_capacity(roots.len());
        let mut anchors = RootCertStore::empty();
        for (i, root) in roots.into_iter().enumerate() {
            if kept.contains(&root) {
                continue;
            }
            anchors.add(root.clone()).map_err(|e| {
                PemError::content(place, format!("root certificate {} cannot be used: {e}", i + 1))
            })?;
            kept.push(root);
        }
        if kept.is_empty() {
            return Err(PemError::content(place, "no root certificate"));
        }
        Ok(Self { roots: kept.into(), anchors: Arc::new(anchors) })
    }

    /// From PEM text.
    ///
    /// # Errors
    /// As [`Self::new`], and when the text is not PEM.
    pub fn from_pem(place: &str, pem: &[u8]) -> Result<Self, PemError> {
        Self::new(place, pem::certificates(place, pem)?)
    }

    /// From a PEM file.
    ///
    /// # Errors
    /// As [`Self::from_pem`], and when the file cannot be read.
    pub fn from_file(path: &Path) -> Result<Self, PemError> {
        Self::new(&path.display().to_string(), pem::certificates_file(path)?)
    }

    /// The roots, in the order given.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The roots as PEM text.
    pub fn to_pem(&self) -> String {
        pem::encode_all(&self.roots)
    }

    pub(crate) fn anchors(&self) -> Arc<RootCertStore> {
        self.anchors.clone()
    }
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.roots == other.roots
    }
}

impl Eq for TrustBundle {}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustBundle({} roots)", self.roots.len())
    }
}
