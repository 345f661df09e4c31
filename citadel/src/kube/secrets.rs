//! The authority in Secrets of the mesh's namespace: `cacerts`, which people bring, or else `istio-ca-secret`, which citadel makes.
//!
//! In: both Secrets. Out: [`Secrets`], a source of the authority. Kept true: a root is made only by the leader and only where there is
//! neither; a `cacerts` that goes away leaves what it held in force; the key of a root never changes. Not here: what the parts mean (`ca`).

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use mesh_identity::{TrustDomain, pem};
use mesh_kube::{
    k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::OwnerReference},
    kube::{
        self, Api, Client,
        api::{ObjectMeta, PostParams},
    },
    lease::Leader,
};
use mesh_runtime::{Backoff, Outage, drain::Watch};

use crate::ca::{
    Authority, AuthorityError,
    files::Files,
    self_signed::{self, CERT, KEY},
};

/// The Secret that people bring.
pub const PLUGGED: &str = "cacerts";
/// The Secret that citadel makes.
pub const OWN: &str = "istio-ca-secret";
/// Its type, Istio's.
const OWN_TYPE: &str = "istio.io/ca-root";
/// How often the Secrets are looked at.
const POLL: Duration = Duration::from_secs(5);

/// What the Secrets held when they were last read. Clones share it.
#[derive(Clone, Debug)]
pub struct Secrets {
    held: Arc<ArcSwap<Held>>,
    cluster: Arc<Cluster>,
}

struct Cluster {
    api: Api<Secret>,
    namespace: String,
    organization: String,
    owner: Option<OwnerReference>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    plugged: bool,
    files: Files,
}

impl Secrets {
    /// Waits until there is an authority, making one if this citadel leads and there is none; `None` when the drain came first.
    pub async fn open(
        client: Client,
        namespace: &str,
        domain: &TrustDomain,
        owner: Option<OwnerReference>,
        leader: &Leader,
        drain: &Watch,
    ) -> Option<Self> {
        let cluster = Cluster {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            organization: domain.as_str().to_owned(),
            owner,
        };
        let mut outage = Outage::new(format!("Secrets of {namespace}"));
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            match drain.until_drain(cluster.read_or_make(leader)).await? {
                Ok(Some(held)) => {
                    outage.recovered();
                    tracing::info!(secret = held.name(), namespace, "authority read");
                    let held = Arc::new(ArcSwap::from_pointee(held));
                    return Some(Self { held, cluster: Arc::new(cluster) });
                }
                // Another citadel leads, and is about to make it.
                Ok(None) => backoff.reset(),
                Err(error) => {
                    outage.failed(&format!("{error:#}"));
                }
            }
            drain.until_drain(backoff.wait()).await?;
        }
    }

    /// The authority that the Secret makes.
    ///
    /// # Errors
    /// When a key is missing or broken, or the parts do not fit together.
    pub fn load(&self, now: SystemTime) -> Result<Authority, AuthorityError> {
        let held = self.held.load();
        let place = format!("Secret {}/{}", self.cluster.namespace, held.name());
        match held.plugged {
            true => held.files.plugged(&place, now),
            false => held.files.self_signed(&place, now),
        }
    }

    /// Changes with the content.
    pub(crate) fn parts(&self) -> Vec<u8> {
        let held = self.held.load();
        let mut all = vec![u8::from(held.plugged)];
        for (name, content) in held.files.iter() {
            all.extend_from_slice(name.as_bytes());
            all.extend_from_slice(&mesh_identity::tls::sha256(content));
        }
        all
    }

    /// Follows the Secrets until the drain; the leader also renews its own root, with the same key.
    pub async fn follow(self, leader: Leader, clock: impl Fn() -> SystemTime, drain: Watch) {
        let mut outage = Outage::new(format!("Secrets of {}", self.cluster.namespace));
        while drain.until_drain(tokio::time::sleep(POLL)).await.is_some() {
            let Some(looked) = drain.until_drain(self.look(&leader, clock())).await else { return };
            match looked {
                Ok(()) => outage.recovered(),
                Err(error) => {
                    outage.failed(&format!("{error:#}"));
                }
            }
        }
    }

    async fn look(&self, leader: &Leader, now: SystemTime) -> anyhow::Result<()> {
        let before = self.held.load_full();
        let found = self.cluster.read().await?;
        let gone = || {
            let name = before.name();
            anyhow::anyhow!(
                "{name} is gone: staying with what it held; restore it, or restart citadel to do without"
            )
        };
        let (held, secret) = found.with_context(gone)?;
        anyhow::ensure!(held.plugged || !before.plugged, gone());
        if !held.plugged && held.files.renewal_due(now) && leader.is_leader() {
            return self.cluster.renew(secret, &held, now).await;
        }
        if *before != held {
            tracing::info!(secret = held.name(), "the authority's Secret has changed");
            self.held.store(Arc::new(held));
        }
        Ok(())
    }
}

impl Held {
    fn name(&self) -> &'static str {
        if self.plugged { PLUGGED } else { OWN }
    }
}

impl Cluster {
    async fn read(&self) -> anyhow::Result<Option<(Held, Secret)>> {
        for (name, plugged) in [(PLUGGED, true), (OWN, false)] {
            let found = self.api.get_opt(name).await.with_context(|| format!("reading {name}"))?;
            let Some(secret) = found else { continue };
            let data = secret.data.clone().unwrap_or_default();
            let files: Files = data.into_iter().map(|(name, content)| (name, content.0)).collect();
            // An empty cacerts is somebody's preparation.
            if files.get(KEY).is_some() {
                return Ok(Some((Held { plugged, files }, secret)));
            }
        }
        Ok(None)
    }

    async fn read_or_make(&self, leader: &Leader) -> anyhow::Result<Option<Held>> {
        if let Some((held, _)) = self.read().await? {
            return Ok(Some(held));
        }
        if !leader.is_leader() {
            return Ok(None);
        }
        let key = self_signed::new_key()?;
        let root = self_signed::root_of(&key, &self.organization, OWN, SystemTime::now())?;
        let data = [(CERT, pem::encode(&root).into_bytes()), (KEY, key.to_pem().as_bytes().to_vec())];
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(OWN.to_owned()),
                owner_references: self.owner.clone().map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            type_: Some(OWN_TYPE.to_owned()),
            data: Some(data.into_iter().map(|(name, bytes)| (name.to_owned(), ByteString(bytes))).collect()),
            ..Secret::default()
        };
        match self.api.create(&PostParams::default(), &secret).await {
            Ok(_) => tracing::info!(secret = OWN, namespace = self.namespace, "made a new root"),
            // Somebody was faster: theirs is read next.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error).with_context(|| format!("creating {OWN}")),
        }
        Ok(self.read().await?.map(|(held, _)| held))
    }

    /// Another certificate for the same key; the change comes back with the next look.
    async fn renew(&self, mut secret: Secret, held: &Held, now: SystemTime) -> anyhow::Result<()> {
        let key = pem::private_key(OWN, held.files.get(KEY).unwrap_or_default())?;
        let root = self_signed::root_of(&key, &self.organization, OWN, now)?;
        let data = secret.data.get_or_insert_default();
        data.insert(CERT.to_owned(), ByteString(pem::encode(&root).into_bytes()));
        // The version that was read goes along: a change in between is not overwritten.
        self.api.replace(OWN, &PostParams::default(), &secret).await.context("renewing the root")?;
        tracing::info!(secret = OWN, "root renewed, same key");
        Ok(())
    }
}
