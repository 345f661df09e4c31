//! An authority of the operator: an intermediate (or root) with key, chain and roots in Istio's `cacerts` files.
//!
//! In: a directory with `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`, `root-cert.pem`. Out: [`Authority`].
//! Kept true: several roots in `root-cert.pem` are all distributed: old and new side by side is how roots are replaced.
//! Not here: hot reload (`source`).

use std::{path::Path, time::SystemTime};

use mesh_identity::{TrustBundle, pem};

use super::{
    Authority, AuthorityError,
    self_signed::{CERT, KEY, warn_if_readable},
};

/// Further file names in the directory.
pub(super) const CHAIN: &str = "cert-chain.pem";
pub(super) const ROOTS: &str = "root-cert.pem";

/// Loads the four files. `cert-chain.pem` may be missing when `ca-cert.pem` is itself one of the roots, and may or may
/// not repeat the signing certificate and the roots, as people's scripts differ.
///
/// # Errors
/// When a file is missing or broken, or the parts do not fit together.
pub fn load(dir: &Path, now: SystemTime) -> Result<Authority, AuthorityError> {
    let key_file = dir.join(KEY);
    warn_if_readable(&key_file);
    let key = pem::private_key_file(&key_file)?;
    let signing = pem::certificates_file(&dir.join(CERT))?.remove(0);
    let bundle = TrustBundle::from_file(&dir.join(ROOTS))?;
    let chain_file = dir.join(CHAIN);
    let mut chain = if chain_file.exists() { pem::certificates_file(&chain_file)? } else { Vec::new() };
    chain.retain(|c| *c != signing && !bundle.roots().contains(c));
    if !bundle.roots().contains(&signing) {
        chain.insert(0, signing.clone());
    }
    Authority::new(&dir.display().to_string(), &signing, &key, chain, bundle, now)
}
