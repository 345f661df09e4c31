//! The certificates in force: one place that a workload's connections take them from, and that changes under them.
//!
//! In: [`CertStore::publish`] from whoever renews. Out: TLS configurations, rebuilt once per change and shared.
//! Kept true: chain, key and bundle change together; a connection in progress keeps what it started with.
//! Not here: renewal (`workload`), files and SDS (their readers call `publish`).

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use rustls::{ClientConfig, ServerConfig};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};

use crate::{
    bundle::TrustBundle,
    credentials::Credentials,
    spiffe::TrustDomain,
    tls::{
        Accepted, BadPeer, ClientTls, Connected, Peer, ServerTls, TlsError,
        client::{self, connect},
        server::{self, accept},
        verify,
    },
};

/// Configurations kept per kind; beyond that the cache starts anew (it only saves work).
const MAX_CACHED: usize = 4096;

/// What is in force at one moment.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Our chain and key.
    pub credentials: Credentials,
    /// Whom we trust.
    pub bundle: TrustBundle,
}

/// Shared by all connections of a workload. Clones share it.
#[derive(Clone)]
pub struct CertStore {
    inner: Arc<Inner>,
}

struct Inner {
    domains: Arc<[TrustDomain]>,
    state: ArcSwap<State>,
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    identity: Option<Identity>,
    servers: Mutex<HashMap<ServerTls, Arc<ServerConfig>>>,
    clients: Mutex<HashMap<ClientTls, Arc<ClientConfig>>>,
}

impl CertStore {
    /// Empty; connections fail with [`TlsError::NoCredentials`] until the first [`Self::publish`].
    ///
    /// `domain` is our own trust domain, `aliases` others whose identities are accepted if their chain verifies.
    pub fn new(domain: TrustDomain, aliases: impl IntoIterator<Item = TrustDomain>) -> Self {
        let domains = std::iter::once(domain).chain(aliases).collect();
        let inner = Inner { domains, state: ArcSwap::default(), changes: watch::Sender::new(0) };
        Self { inner: Arc::new(inner) }
    }

    /// Puts new certificates in force for all connections that start from now on.
    pub fn publish(&self, credentials: Credentials, bundle: TrustBundle) {
        let identity = Identity { credentials, bundle };
        self.inner.state.store(Arc::new(State { identity: Some(identity), ..State::default() }));
        self.inner.changes.send_modify(|generation| *generation += 1);
    }

    /// What is in force; `None` before the first certificate.
    pub fn current(&self) -> Option<Identity> {
        self.inner.state.load().identity.clone()
    }

    /// Counts publications; its value changes after each. For SDS, pools and re-checks of live connections.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Resolves once there is a certificate. Cancel safe.
    pub async fn first(&self) -> Identity {
        let mut changes = self.subscribe();
        loop {
            if let Some(identity) = self.current() {
                return identity;
            }
            // The sender lives in `self`: it cannot be gone.
            let _ = changes.changed().await;
        }
    }

    /// Trust domains whose identities are accepted, our own first.
    pub fn domains(&self) -> &[TrustDomain] {
        &self.inner.domains
    }

    /// Our own trust domain.
    pub fn domain(&self) -> &TrustDomain {
        &self.inner.domains[0]
    }

    /// The configuration for accepting, with the certificates in force.
    ///
    /// # Errors
    /// [`TlsError::NoCredentials`] before the first certificate.
    pub fn server_config(&self, tls: &ServerTls) -> Result<Arc<ServerConfig>, TlsError> {
        let state = self.inner.state.load();
        let identity = state.identity.as_ref().ok_or(TlsError::NoCredentials)?;
        cached(&state.servers, tls, || {
            server::mesh_config(tls, &identity.credentials, &identity.bundle, self.inner.domains.clone())
        })
    }

    /// The configuration for connecting, with the certificates in force.
    ///
    /// # Errors
    /// [`TlsError::NoCredentials`] before the first certificate.
    pub fn client_config(&self, tls: &ClientTls) -> Result<Arc<ClientConfig>, TlsError> {
        let state = self.inner.state.load();
        let identity = state.identity.as_ref().ok_or(TlsError::NoCredentials)?;
        cached(&state.clients, tls, || {
            client::mesh_config(
                tls,
                Some(&identity.credentials),
                &identity.bundle,
                self.inner.domains.clone(),
            )
        })
    }

    /// Accepts one connection. Dropping the future closes it.
    ///
    /// # Errors
    /// When the handshake fails or the client is refused.
    pub async fn accept<IO>(&self, tls: &ServerTls, io: IO) -> Result<Accepted<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        accept(self.server_config(tls)?, &self.inner.domains, io).await
    }

    /// Connects to a peer of the mesh. `sni` is what the server may choose a filter chain by; it proves nothing.
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// When the handshake fails or the server is not one of those expected.
    pub async fn connect<IO>(
        &self,
        tls: &ClientTls,
        sni: Option<&str>,
        io: IO,
    ) -> Result<Connected<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        connect(self.client_config(tls)?, &self.inner.domains, sni, io).await
    }

    /// Whether a peer that was verified earlier still would be: for live connections after the bundle has changed
    /// (CVE-2022-21654). Costs one chain verification.
    ///
    /// # Errors
    /// Why it would be refused now.
    pub fn recheck(&self, peer: &Peer) -> Result<(), BadPeer> {
        let state = self.inner.state.load();
        let identity = state.identity.as_ref().ok_or(BadPeer::Missing)?;
        verify::check_client(peer.chain(), &identity.bundle, &self.inner.domains, SystemTime::now())
            .map(|_| ())
    }
}

impl fmt::Debug for CertStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertStore").field("identity", &self.current()).finish_non_exhaustive()
    }
}

fn cached<K: Clone + Eq + Hash, V: Clone>(
    cache: &Mutex<HashMap<K, V>>,
    key: &K,
    build: impl FnOnce() -> Result<V, TlsError>,
) -> Result<V, TlsError> {
    if let Some(found) = cache.lock().unwrap_or_else(PoisonError::into_inner).get(key) {
        return Ok(found.clone());
    }
    let built = build()?;
    let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
    if cache.len() >= MAX_CACHED {
        cache.clear();
    }
    cache.insert(key.clone(), built.clone());
    Ok(built)
}
