//! Configuration over xDS: what is subscribed to, accepted, warmed, and given to the workers.
//!
//! In: discovery responses (delta or state of the world) and static resources. Out: `watch::Receiver<Arc<Snapshot>>`.
//! Kept true: one task owns the [`store::Store`]; a refused resource keeps its last good form and is NACKed by name and path.
//! Not here: what messages mean (`mesh_traffic::wire`), sockets and requests (`listen`, `http`).

mod client;
mod delta;
mod hosts;
mod resource;
mod sotw;
pub mod store;

use std::sync::Arc;

use mesh_runtime::{drain::Watch, readiness::Condition};
use mesh_traffic::Snapshot;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::transport::Channel;
use xds::discovery::Node;

pub use resource::{Kind, Resource};
pub use store::Store;

/// How resources are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Variant {
    /// Only changes travel. What pilot, istiod and Envoy prefer.
    #[default]
    Delta,
    /// Every response holds all resources of its type.
    StateOfTheWorld,
}

/// Where configuration comes from.
#[derive(Debug, Clone)]
pub struct Source {
    /// A channel to the management server. It reconnects by itself.
    pub channel: Channel,
    /// What the server is called in logs, e.g. `pilot at 127.0.0.1:15012`.
    pub name: String,
    /// Who we are.
    pub node: Node,
    /// Delta or state of the world.
    pub variant: Variant,
    /// The server sends each virtual host as a resource of its own (our pilot).
    pub virtual_hosts: bool,
    /// Sent as `authorization` with each stream, when the server wants a token instead of a certificate.
    pub token: Option<String>,
}

/// What others may ask of the task that owns the configuration.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// A question or a change from outside the discovery stream.
#[derive(Debug)]
pub(crate) enum Request {
    /// The configuration as proto3 JSON.
    Dump(oneshot::Sender<serde_json::Value>),
    /// Replaces all resources of a kind by these (file sources).
    Replace(Kind, Vec<Resource>, oneshot::Sender<Result<(), String>>),
}

impl Handle {
    /// The configuration in force, and its changes.
    #[must_use]
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// Everything accepted, as Envoy's `/config_dump` shows it. `None` while shutting down.
    pub async fn dump(&self) -> Option<serde_json::Value> {
        let (answer, dump) = oneshot::channel();
        self.requests.send(Request::Dump(answer)).await.ok()?;
        dump.await.ok()
    }

    /// Replaces all resources of a kind that came from files.
    ///
    /// # Errors
    /// Which resource was refused, and why; its last good form stays in force.
    pub async fn replace(&self, kind: Kind, resources: Vec<Resource>) -> Result<(), String> {
        let (answer, result) = oneshot::channel();
        let gone = || "the proxy is shutting down".to_owned();
        self.requests.send(Request::Replace(kind, resources, answer)).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}

/// Starts the task that owns the configuration: `store` holds static resources, `source` is absent when there are only those and files.
/// `synced` is met once every listener of the first answer is in force.
pub fn start(store: Store, source: Option<Source>, synced: Condition, drain: Watch) -> Handle {
    let (requests, inbox) = mpsc::channel(16);
    let (publisher, snapshots) = watch::channel(store.snapshot());
    let owner = client::Owner { store, publisher, inbox, synced, listeners_answered: false };
    tokio::spawn(client::run(owner, source, drain));
    Handle { requests, snapshots }
}
