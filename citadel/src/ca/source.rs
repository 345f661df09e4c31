//! The authority in force, and its replacement while citadel runs.
//!
//! In: files that an operator (or citadel itself) changes. Out: [`Current`], read by every request.
//! Kept true: a set of files that does not make an authority changes nothing, and is said once.
//! Not here: what the files are (`self_signed`, `plugged`).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use mesh_identity::tls::sha256;
use mesh_runtime::{Outage, drain::Watch};
use tokio::sync::watch;

use super::{Authority, AuthorityError, plugged, self_signed, self_signed::SelfSigned};
use crate::kube::secrets::Secrets;

/// How often the files are looked at, usually.
pub const POLL: Duration = Duration::from_secs(2);

/// Where the authority comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Citadel's own root.
    SelfSigned(SelfSigned),
    /// The operator's files.
    Plugged(PathBuf),
    /// Secrets of a cluster.
    Secrets(Secrets),
}

impl Source {
    /// Loads (or makes) the authority.
    ///
    /// # Errors
    /// When the files do not make one.
    pub fn load(&self, now: SystemTime) -> Result<Authority, AuthorityError> {
        match self {
            Self::SelfSigned(own) => own.load(now),
            Self::Plugged(dir) => plugged::load(dir, now),
            Self::Secrets(secrets) => secrets.load(now),
        }
    }

    /// Changes when any file does. Whole contents, because mounted Secrets change by symlink and keep their times.
    fn fingerprint(&self) -> [u8; 32] {
        let (dir, names): (&Path, &[&str]) = match self {
            Self::SelfSigned(own) => (own.dir(), &[self_signed::CERT, self_signed::KEY, self_signed::EXTRA]),
            Self::Plugged(dir) => {
                (dir, &[self_signed::CERT, self_signed::KEY, plugged::CHAIN, plugged::ROOTS])
            }
            Self::Secrets(secrets) => return sha256(&secrets.parts()),
        };
        let mut all = Vec::new();
        for name in names {
            let mut content = std::fs::read(dir.join(name)).unwrap_or_default();
            all.extend_from_slice(&sha256(&content));
            zeroize::Zeroize::zeroize(&mut content);
        }
        sha256(&all)
    }

    fn renewal_due(&self, now: SystemTime) -> bool {
        let Self::SelfSigned(own) = self else { return false };
        let path = own.dir().join(self_signed::CERT);
        let place = path.display().to_string();
        mesh_identity::pem::certificates_file(&path)
            .and_then(|certs| mesh_identity::credentials::LeafFacts::of(&place, &certs[0]))
            .is_ok_and(|facts| SelfSigned::renewal_due(&facts, now))
    }
}

/// The authority in force. Clones see the same.
#[derive(Clone, Debug)]
pub struct Current {
    authority: Arc<ArcSwap<Authority>>,
    changes: watch::Sender<u64>,
}

impl Current {
    /// Starts with a loaded authority.
    pub fn new(authority: Authority) -> Self {
        Self { authority: Arc::new(ArcSwap::from_pointee(authority)), changes: watch::Sender::new(0) }
    }

    /// The authority of this moment.
    pub fn now(&self) -> Arc<Authority> {
        self.authority.load_full()
    }

    /// Changes with every replacement.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Puts another authority in force for all requests from now on.
    pub fn replace(&self, authority: Authority) {
        self.authority.store(Arc::new(authority));
        self.changes.send_modify(|n| *n += 1);
    }

    /// Follows the files until the drain, looking every `poll`: reloads when they change, renews a self-signed root in time.
    pub async fn follow(self, source: Source, poll: Duration, clock: impl Fn() -> SystemTime, drain: Watch) {
        let mut outage = Outage::new("certificate authority files");
        let mut loaded = source.fingerprint();
        while drain.until_drain(tokio::time::sleep(poll)).await.is_some() {
            let seen = source.fingerprint();
            if seen == loaded && !source.renewal_due(clock()) {
                continue;
            }
            match source.load(clock()) {
                Ok(authority) => {
                    outage.recovered();
                    // Loading may have renewed the root, and so have changed the files.
                    loaded = source.fingerprint();
                    let roots = authority.bundle().roots().len();
                    self.replace(authority);
                    tracing::info!(roots, "certificate authority replaced");
                }
                Err(error) => {
                    outage.failed(&error);
                }
            }
        }
    }
}
