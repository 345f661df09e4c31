//! The parts of an authority by file name, wherever they lie: in a directory, or in a Secret.
//!
//! In: names as Istio has them, contents. Out: [`Authority`]. Kept true: what is wrong is said with the place and the name.
//! Not here: reading a directory (`plugged`, `self_signed`), reading Secrets (`crate::kube`).

use std::{collections::BTreeMap, time::SystemTime};

use mesh_identity::{TrustBundle, credentials::LeafFacts, pem};

use super::{
    Authority, AuthorityError,
    plugged::{CHAIN, ROOTS},
    self_signed::{CERT, KEY},
};

/// Contents by name. Wiped when dropped, for one of them is a key.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Files(BTreeMap<String, Vec<u8>>);

impl Drop for Files {
    fn drop(&mut self) {
        self.0.values_mut().for_each(zeroize::Zeroize::zeroize);
    }
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl FromIterator<(String, Vec<u8>)> for Files {
    fn from_iter<I: IntoIterator<Item = (String, Vec<u8>)>>(files: I) -> Self {
        Self(files.into_iter().collect())
    }
}

/// The TLS form of a Secret (`tls.crt`, `tls.key`, `ca.crt`), as cert-manager writes it, beside Istio's own names.
const TLS_NAMES: [(&str, &str); 3] = [(CERT, "tls.crt"), (KEY, "tls.key"), (ROOTS, "ca.crt")];

impl Files {
    /// The content under a name, or under its name in the TLS form; empty counts as missing.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let other = TLS_NAMES.iter().find(|(ours, _)| *ours == name).map(|(_, theirs)| *theirs);
        let held = self.0.get(name).or_else(|| self.0.get(other?))?;
        (!held.is_empty()).then_some(held)
    }

    /// Names and contents, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Vec<u8>)> {
        self.0.iter()
    }

    fn need(&self, place: &str, name: &str) -> Result<&[u8], AuthorityError> {
        let unfit =
            || AuthorityError::Unfit { place: place.to_owned(), why: format!("key {name} is missing") };
        self.get(name).ok_or_else(unfit)
    }

    /// An authority of the operator; the rules are those of [`super::plugged::load`].
    ///
    /// # Errors
    /// When a part is missing or broken, or the parts do not fit together.
    pub fn plugged(&self, place: &str, now: SystemTime) -> Result<Authority, AuthorityError> {
        let at = |name: &str| format!("{place}, key {name}");
        let key = pem::private_key(&at(KEY), self.need(place, KEY)?)?;
        let certificates = pem::certificates(&at(CERT), self.need(place, CERT)?)?;
        let signing = certificates[0].clone();
        let bundle = TrustBundle::from_pem(&at(ROOTS), self.need(place, ROOTS)?)?;
        let mut chain = match self.get(CHAIN) {
            Some(text) => pem::certificates(&at(CHAIN), text)?,
            // In the TLS form the chain follows the certificate.
            None => certificates,
        };
        chain.retain(|c| *c != signing && !bundle.roots().contains(c));
        if !bundle.roots().contains(&signing) {
            chain.insert(0, signing.clone());
        }
        Authority::new(place, &signing, &key, chain, bundle, now)
    }

    /// A root that citadel made.
    ///
    /// # Errors
    /// When a part is missing or broken, or the parts do not fit together.
    pub fn self_signed(&self, place: &str, now: SystemTime) -> Result<Authority, AuthorityError> {
        let at = |name: &str| format!("{place}, key {name}");
        let key = pem::private_key(&at(KEY), self.need(place, KEY)?)?;
        let roots = pem::certificates(&at(CERT), self.need(place, CERT)?)?;
        let (root, bundle) = (roots[0].clone(), TrustBundle::new(place, roots)?);
        Authority::new(place, &root, &key, Vec::new(), bundle, now)
    }

    /// Whether the root that citadel made is in the last fifth of its life. False for what cannot be read: that is said elsewhere.
    #[must_use]
    pub fn renewal_due(&self, now: SystemTime) -> bool {
        let root = self.get(CERT).and_then(|text| pem::certificates(CERT, text).ok());
        let facts = root.and_then(|certs| LeafFacts::of(CERT, &certs[0]).ok());
        facts.is_some_and(|facts| super::self_signed::SelfSigned::renewal_due(&facts, now))
    }
}
