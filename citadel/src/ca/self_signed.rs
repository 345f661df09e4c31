//! The authority that citadel makes for itself: one root, kept in a directory, renewed with the same key.
//!
//! In: a directory. Out: [`Authority`]; files `ca-cert.pem` and `ca-key.pem` (0600), Istio's names.
//! Kept true: the key never changes by itself, so certificates issued before a renewal verify with the new root too.
//! Not here: authorities of an operator (`plugged`), when to look again (`source`).

use std::{
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use mesh_identity::{
    PrivateKey, TrustBundle, TrustDomain,
    credentials::LeafFacts,
    pem,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SerialNumber,
};

use super::{Authority, AuthorityError, CLOCK_SKEW, CaKey, random_serial};
use crate::files::{self, Readers};

/// Lifetime of a root: ten years.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// File names in the directory.
pub(crate) const CERT: &str = "ca-cert.pem";
pub(crate) const KEY: &str = "ca-key.pem";
/// Roots of another authority that are to be trusted as well, while moving from or to it. Optional.
pub(super) const EXTRA: &str = "extra-roots.pem";

/// Where the root is kept, and whose it is.
#[derive(Clone, Debug)]
pub struct SelfSigned {
    dir: PathBuf,
    organization: String,
}

impl SelfSigned {
    /// A root for this trust domain in `dir`, which is made (0700) when missing.
    pub fn new(dir: &Path, domain: &TrustDomain) -> Self {
        Self { dir: dir.into(), organization: domain.as_str().into() }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Loads the root; makes it if there is none yet, and a new certificate for its key if it is in the last fifth of
    /// its life. A certificate without its key is an error: making another root would cut off every workload.
    ///
    /// # Errors
    /// When a file cannot be read, written, or is not what it should be.
    pub fn load(&self, now: SystemTime) -> Result<Authority, AuthorityError> {
        let (cert, key) = (self.dir.join(CERT), self.dir.join(KEY));
        let key = match (key.exists(), cert.exists()) {
            (true, _) => {
                warn_if_readable(&key);
                pem::private_key_file(&key)?
            }
            (false, true) => {
                return Err(AuthorityError::Unfit {
                    place: key.display().to_string(),
                    why: format!(
                        "missing, but {} is there; restore the key, or remove both to start a new root",
                        cert.display()
                    ),
                });
            }
            (false, false) => self.create_key()?,
        };
        let root = match self.usable_root(&cert, now)? {
            Some(root) => root,
            None => self.create_root(&cert, &key, now)?,
        };
        let mut roots = vec![root.clone()];
        let extra = self.dir.join(EXTRA);
        if extra.exists() {
            roots.extend(pem::certificates_file(&extra)?);
        }
        let place = self.dir.display().to_string();
        let bundle = TrustBundle::new(&place, roots)?;
        Authority::new(&place, &root, &key, Vec::new(), bundle, now)
    }

    /// True when the root should be renewed: in the last fifth of its life.
    pub fn renewal_due(facts: &LeafFacts, now: SystemTime) -> bool {
        let life = facts.not_after.duration_since(facts.not_before).unwrap_or_default();
        facts.remaining(now) <= life / 5
    }

    fn usable_root(
        &self,
        path: &Path,
        now: SystemTime,
    ) -> Result<Option<CertificateDer<'static>>, AuthorityError> {
        if !path.exists() {
            return Ok(None);
        }
        let root = pem::certificates_file(path)?.remove(0);
        let facts = LeafFacts::of(&path.display().to_string(), &root)?;
        if Self::renewal_due(&facts, now) {
            tracing::info!(file = %path.display(), "root certificate is in the last fifth of its life: renewing, same key");
            return Ok(None);
        }
        Ok(Some(root))
    }

    fn create_key(&self) -> Result<PrivateKey, AuthorityError> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.map_err(|source| AuthorityError::Write { path: self.dir.display().to_string(), source })?;
        let key = new_key()?;
        self.write(KEY, key.to_pem().as_bytes(), Readers::Owner)?;
        tracing::info!(dir = %self.dir.display(), "made a new root key");
        Ok(key)
    }

    fn create_root(
        &self,
        path: &Path,
        key: &PrivateKey,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let root = root_of(key, &self.organization, &path.display().to_string(), now)?;
        self.write(CERT, pem::encode(&root).as_bytes(), Readers::All)?;
        Ok(root)
    }

    fn write(&self, name: &str, content: &[u8], readers: Readers) -> Result<(), AuthorityError> {
        let path = self.dir.join(name);
        files::replace(&path, content, readers)
            .map_err(|source| AuthorityError::Write { path: path.display().to_string(), source })
    }
}

/// A new certificate for a root key, for [`ROOT_LIFETIME`]. `place` names it in errors.
///
/// # Errors
/// When the key cannot sign.
pub fn root_of(
    key: &PrivateKey,
    organization: &str,
    place: &str,
    now: SystemTime,
) -> Result<CertificateDer<'static>, AuthorityError> {
    let unfit = |e: rcgen::Error| AuthorityError::Unfit { place: place.to_owned(), why: e.to_string() };
    let pair = CaKey::of(key).map_err(unfit)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + ROOT_LIFETIME).into();
    params.serial_number = Some(SerialNumber::from_slice(&random_serial()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params.self_signed(&pair).map_err(unfit)?.der().clone())
}

/// A new root key.
///
/// # Errors
/// When the provider cannot make one.
pub fn new_key() -> Result<PrivateKey, AuthorityError> {
    let unfit = |e: rcgen::Error| AuthorityError::Unfit { place: "new key".into(), why: e.to_string() };
    let mut pair = KeyPair::generate().map_err(unfit)?;
    let key = PrivateKey::from_der(PrivatePkcs8KeyDer::from(pair.serialize_der()).into());
    zeroize::Zeroize::zeroize(&mut pair);
    Ok(key)
}

/// Group and others have no business with a CA key. Kubernetes mounts may be 0644 in a pod of one user: only a warning.
pub(super) fn warn_if_readable(key: &Path) {
    if std::fs::metadata(key).is_ok_and(|m| m.mode() & 0o077 != 0) {
        tracing::warn!(file = %key.display(), "the CA key can be read by other users; chmod 0600 it");
    }
}
