//! Who is connected, and what each gets: catalogs made from shared parts, pushed when the mesh changes.
//!
//! In: snapshots, and nodes that connect. Out: a catalog per client through a watch channel, and the table of clients.
//! Kept true: parts are made once per key and push; what did not change keeps its bytes and its pointer.
//! Not here: streams (`ads`), the content of parts (`translate`).

pub mod node;
pub mod parts;
#[cfg(test)]
mod tests;

use crate::{
    ads::{
        Type,
        catalog::{Catalog, Resources},
        server::{Attached, Board, Directory, Peer},
        stream::Standing,
        wire,
    },
    model::{
        Model,
        scope::{Proxy, Role},
    },
    translate::{
        Problem, Translator,
        outline::{ClusterKey, RouteKey},
    },
};
use mesh_config::{Snapshot, source::Reader};
use node::Claim;
use parts::Encoded;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::watch;
use tonic::Status;

/// A change waits this long for more.
pub const QUIET: Duration = Duration::from_millis(100);
/// Under constant change, a push comes at least this often.
pub const AT_MOST: Duration = Duration::from_secs(10);

/// One connected client, as the status tables show it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ClientStatus {
    /// Number of the stream, from 1.
    pub stream: u64,
    /// Node id.
    pub node: String,
    /// `namespace/pod` it is served as.
    pub workload: String,
    /// Sidecar or gateway.
    pub role: Role,
    /// What it calls itself, e.g. `envoy`.
    pub agent: String,
    /// Its address.
    pub address: Option<String>,
    /// Whether it proved its identity.
    pub verified: bool,
    /// Seconds since it connected.
    pub connected_seconds: u64,
    /// Standing by type of resource.
    pub types: BTreeMap<&'static str, Standing>,
}

/// The maps that were merged last, and the result.
type Memory = Option<(Vec<Arc<Resources>>, Arc<Resources>)>;

/// How long a gateway with a certificate is not served before its pod is known. A cluster says where a pod is a moment after it runs; until
/// then pilot cannot tell which of its ports the Service's are, and a gateway that opened the wrong ones would call itself ready.
const POD_PATIENCE: Duration = Duration::from_secs(5);

struct Client {
    claim: Claim,
    peer: Peer,
    proxy: Option<Proxy>,
    tx: watch::Sender<Option<Arc<Catalog>>>,
    board: Board,
    since: SystemTime,
    /// Until when its pod may stay unknown.
    patience: tokio::time::Instant,
    own: Option<Arc<Encoded>>,
    merged: [Memory; 6],
}

#[derive(Default)]
struct Shared {
    clusters: HashMap<ClusterKey, Arc<Encoded>>,
    routes: HashMap<(RouteKey, bool), Arc<Encoded>>,
}

#[derive(Default)]
struct State {
    translator: Option<Arc<Translator>>,
    push: u64,
    next: u64,
    clients: BTreeMap<u64, Client>,
    shared: Shared,
    before: Shared,
    last: Option<(SystemTime, Duration)>,
}

/// The owner of all catalogs. Cloning gives another handle.
#[derive(Clone, Default)]
pub struct Pusher(Arc<Mutex<State>>);

impl std::fmt::Debug for Pusher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pusher").finish_non_exhaustive()
    }
}

/// Figures for people and metrics.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Figures {
    /// Pushes so far.
    pub pushes: u64,
    /// Connected clients.
    pub clients: usize,
    /// Resources that clients refuse at the moment.
    pub refused: usize,
    /// How long the last push took to make, in milliseconds.
    pub last_push_ms: u128,
}

impl Pusher {
    /// No mesh yet, no clients.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a snapshot into force: makes and hands out the catalogs of all connected clients.
    pub fn push(&self, snapshot: Arc<Snapshot>) {
        let started = Instant::now();
        let translator = Arc::new(Translator::new(Arc::new(Model::new(snapshot))));
        let mut state = self.lock();
        state.push += 1;
        state.translator = Some(translator);
        state.before = std::mem::take(&mut state.shared);
        let streams: Vec<u64> = state.clients.keys().copied().collect();
        for stream in streams {
            state.serve(stream);
        }
        state.before = Shared::default();
        state.last = Some((SystemTime::now(), started.elapsed()));
        let (push, clients) = (state.push, state.clients.len());
        drop(state);
        tracing::info!(push, clients, took_ms = started.elapsed().as_millis(), "pushed");
    }

    /// What is in force; `None` before the first push.
    pub fn translator(&self) -> Option<Arc<Translator>> {
        self.lock().translator.clone()
    }

    /// Problems found while making what is in force.
    pub fn problems(&self) -> Vec<Problem> {
        self.translator().map(|t| t.problems()).unwrap_or_default()
    }

    /// All connected clients.
    pub fn clients(&self) -> Vec<ClientStatus> {
        let state = self.lock();
        let one = |(stream, client): (&u64, &Client)| {
            let types = client.board.lock().unwrap_or_else(PoisonError::into_inner);
            ClientStatus {
                stream: *stream,
                node: client.claim.id.clone(),
                workload: client.proxy.as_ref().map_or_else(
                    || format!("{}/{}", client.claim.namespace, client.claim.name),
                    |p| format!("{}/{}", p.namespace, p.name),
                ),
                role: client.claim.role,
                agent: client.claim.agent.clone(),
                address: client.peer.address.map(|a| a.to_string()),
                verified: client.peer.identity.is_some(),
                connected_seconds: client.since.elapsed().unwrap_or_default().as_secs(),
                types: types.iter().map(|(t, s)| (t.short(), s.clone())).collect(),
            }
        };
        state.clients.iter().map(one).collect()
    }

    /// The catalog in force for a connected client, by node id or by `namespace/pod` or `pod.namespace`.
    pub fn catalog(&self, who: &str) -> Option<(String, Arc<Catalog>)> {
        let state = self.lock();
        let client = state.clients.values().find(|c| {
            let (ns, name) = (&c.claim.namespace, &c.claim.name);
            c.claim.id == who || format!("{ns}/{name}") == who || format!("{name}.{ns}") == who
        })?;
        let catalog = client.tx.borrow().clone()?;
        Some((client.claim.id.clone(), catalog))
    }

    /// Figures.
    pub fn figures(&self) -> Figures {
        let refused = self.clients().iter().flat_map(|c| c.types.values()).map(|s| s.refused.len()).sum();
        let state = self.lock();
        Figures {
            pushes: state.push,
            clients: state.clients.len(),
            refused,
            last_push_ms: state.last.map_or(0, |(_, took)| took.as_millis()),
        }
    }

    /// Pushes what `reader` brings, first once it has read everything, then after each change has settled.
    /// Ends when the reader's source does; dropping it stops pushing.
    pub async fn follow(self, mut reader: Reader) {
        let mut snapshot = reader.synced().await;
        loop {
            let pusher = self.clone();
            let made = tokio::task::spawn_blocking(move || pusher.push(snapshot)).await;
            if let Err(error) = made {
                tracing::error!(%error, "a push failed: proxies keep what they have");
            }
            let Some(mut latest) = reader.changed().await else { return };
            let deadline = tokio::time::Instant::now() + AT_MOST;
            loop {
                let quiet = (tokio::time::Instant::now() + QUIET).min(deadline);
                match tokio::time::timeout_at(quiet, reader.changed()).await {
                    Ok(Some(newer)) => latest = newer,
                    Ok(None) => return,
                    Err(_) => break,
                }
            }
            snapshot = latest;
        }
    }
}

impl Client {
    /// Whether its ports depend on a pod that should exist: a gateway of the mesh.
    fn has_a_pod(&self) -> bool {
        self.claim.role == Role::Router && self.peer.identity.is_some()
    }

    /// Whether it is better served a little later: see [`POD_PATIENCE`].
    fn waits_for_its_pod(&self, model: &Model) -> bool {
        let pod = model.workload(&self.claim.namespace, &self.claim.name);
        let known = pod.is_some_and(|pod| !pod.addresses.is_empty());
        self.own.is_none() && self.has_a_pod() && !known && tokio::time::Instant::now() < self.patience
    }
}

impl State {
    /// Serves a client whose patience has ended before its pod came.
    fn serve_unserved(&mut self, stream: u64) {
        if self.clients.get(&stream).is_some_and(|client| client.own.is_none()) {
            self.serve(stream);
        }
    }

    /// Makes the catalog of one client and hands it out. A client that may not be who it says is dropped, which ends
    /// its stream.
    fn serve(&mut self, stream: u64) {
        let Some(translator) = self.translator.clone() else { return };
        let Some(mut client) = self.clients.remove(&stream) else { return };
        let proxy = match client.claim.resolve(&translator.model, &client.peer) {
            Ok(proxy) => proxy,
            Err(why) => {
                tracing::warn!(node = client.claim.id, why = why.message(), "client dropped");
                return;
            }
        };
        if client.waits_for_its_pod(&translator.model) {
            self.clients.insert(stream, client);
            return;
        }
        let outline = translator.outline(&proxy);
        let clusters = match self.shared.clusters.get(&outline.clusters) {
            Some(made) => made.clone(),
            None => {
                let before = self.before.clusters.get(&outline.clusters);
                let made = Encoded::of(translator.cluster_part(&outline), false, before);
                self.shared.clusters.insert(outline.clusters.clone(), made.clone());
                made
            }
        };
        let key = (outline.routes.clone(), proxy.vhds);
        let routes = match self.shared.routes.get(&key) {
            Some(made) => made.clone(),
            None => {
                let before = self.before.routes.get(&key);
                let made = Encoded::of(translator.route_part(&proxy, &outline), proxy.vhds, before);
                self.shared.routes.insert(key, made.clone());
                made
            }
        };
        let own = Encoded::of(translator.own_part(&proxy, &outline), proxy.vhds, client.own.as_ref());
        let mut catalog = Catalog::new(self.push);
        for kind in Type::ALL {
            let sources: Vec<_> = [&clusters, &routes, &own]
                .iter()
                .map(|p| p.of_type(kind).clone())
                .filter(|r| !r.is_empty())
                .collect();
            catalog = catalog.with(kind, merge(&mut client.merged[kind.index()], sources));
        }
        client.own = Some(own);
        client.proxy = Some(proxy);
        client.tx.send_replace(Some(Arc::new(catalog)));
        self.clients.insert(stream, client);
    }
}

/// One map of several; the same pointer as last time if the sources are.
fn merge(memory: &mut Memory, mut sources: Vec<Arc<Resources>>) -> Arc<Resources> {
    if let Some((before, merged)) = memory
        && before.len() == sources.len()
        && before.iter().zip(&sources).all(|(a, b)| Arc::ptr_eq(a, b))
    {
        return merged.clone();
    }
    let merged = match sources.len() {
        0 => Arc::default(),
        1 => sources.remove(0),
        _ => {
            let mut all = Resources::clone(&sources[0]);
            for more in &sources[1..] {
                all.extend(more.iter().map(|(k, v)| (k.clone(), v.clone())));
            }
            Arc::new(all)
        }
    };
    if sources.is_empty() {
        sources.push(merged.clone());
    }
    *memory = Some((sources, merged.clone()));
    merged
}

/// Takes the client off the table when its stream ends.
struct Leave {
    pusher: Pusher,
    stream: u64,
}

impl Drop for Leave {
    fn drop(&mut self) {
        let gone = self.pusher.lock().clients.remove(&self.stream);
        if let Some(client) = gone {
            tracing::info!(node = client.claim.id, stream = self.stream, "disconnected");
        }
    }
}

impl Directory for Pusher {
    fn attach(&self, node: &wire::Node, peer: &Peer) -> Result<Attached, Status> {
        let claim = Claim::read(node)?;
        let mut state = self.lock();
        match &state.translator {
            Some(translator) => {
                claim.resolve(&translator.model, peer)?;
            }
            None => claim.check_alone(peer)?,
        }
        let (tx, catalogs) = watch::channel(None);
        let board = Board::default();
        state.next += 1;
        let stream = state.next;
        tracing::info!(node = claim.id, stream, verified = peer.identity.is_some(), "connected");
        let client = Client {
            claim,
            peer: peer.clone(),
            proxy: None,
            tx,
            board: board.clone(),
            since: SystemTime::now(),
            patience: tokio::time::Instant::now() + POD_PATIENCE,
            own: None,
            merged: Default::default(),
        };
        state.clients.insert(stream, client);
        state.serve(stream);
        let unserved =
            state.clients.get(&stream).is_some_and(|client| client.own.is_none() && client.has_a_pod());
        drop(state);
        if unserved {
            let pusher = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(POD_PATIENCE).await;
                pusher.lock().serve_unserved(stream);
            });
        }
        Ok(Attached { catalogs, board, guard: Box::new(Leave { pusher: self.clone(), stream }) })
    }
}
