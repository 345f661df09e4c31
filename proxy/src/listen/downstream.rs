//! What is known of an accepted connection.
//!
//! In: a socket, its TLS session. Out: [`Downstream`], shared by the requests on it. Kept true: an identity is there only when TLS verified
//! it. Not here: requests (`http`).

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use mesh_identity::Peer;
use mesh_traffic::{names::Name, rbac};

use crate::{telemetry::stats::ListenerStats, worker::Worker};

/// An accepted connection.
pub struct Downstream {
    /// The worker that serves it.
    pub worker: Rc<Worker>,
    /// Counters of its listener.
    pub stats: Arc<ListenerStats>,
    /// The client.
    pub remote: SocketAddr,
    /// Where the client connected to: before capture, if it was captured.
    pub local: SocketAddr,
    /// The address that it was captured from.
    pub captured: Option<SocketAddr>,
    /// The verified client.
    pub peer: Option<Peer>,
    /// Its identity as a URI.
    pub identity: Option<String>,
    /// Its identity without the scheme.
    pub principal: Option<Name>,
    /// Server name that it asked for; empty for none.
    pub server_name: String,
    /// Its listener takes traffic for the workload.
    pub inbound: bool,
    /// It speaks TLS to us.
    pub tls: bool,
    /// Number, unique in the process.
    pub id: u64,
}

impl Downstream {
    /// What access rules look at.
    #[must_use]
    pub fn rbac_peer(&self) -> rbac::Peer<'_> {
        rbac::Peer {
            identity: self.identity.as_deref(),
            direct: self.remote.ip(),
            remote: self.remote.ip(),
            destination: self.local,
            server_name: &self.server_name,
        }
    }
}
