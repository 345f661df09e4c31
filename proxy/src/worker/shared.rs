//! What all workers share: identity, limits and ejections per cluster, counters, writers of logs.
//!
//! In: settings of the process. Out: [`Shared`]. Kept true: on the request path it is only read, except for counters and
//! configured limits. Not here: anything of one core ([`super::Worker`]).

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use mesh_identity::CertStore;
use mesh_runtime::drain::Watch;
use mesh_traffic::{Cluster, Snapshot, names::Name};
use tokio::sync::{mpsc, watch};

use crate::{
    balance::{Common, dns::Dns},
    restart::Sockets,
    telemetry::{access_log::Files, local::Report, stats::Stats},
};

/// Who this proxy is.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// xDS node id.
    pub id: String,
    /// `kubernetes://pod.namespace`, empty when unknown.
    pub uid: Name,
    /// A gateway: clients are not trusted.
    pub gateway: bool,
}

/// Settings of the process that the data path obeys.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who this proxy is.
    pub node: Node,
    /// The pod's address: upstream connections leave from it.
    pub local_ip: Option<IpAddr>,
    /// Number of worker threads, at least 1.
    pub workers: usize,
    /// Most downstream connections of the process; more are closed at once.
    pub max_connections: u64,
    /// Where a successor asks for our listening sockets.
    pub restart_socket: Option<PathBuf>,
    /// Our own ports, which an explicit proxy never connects to.
    pub own_ports: Vec<u16>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            node: Node::default(),
            local_ip: None,
            workers: 1,
            max_connections: 100_000,
            restart_socket: None,
            own_ports: vec![15000, 15020, 15021, 15090],
        }
    }
}

/// What all workers share.
pub struct Shared {
    /// Certificates of the workload.
    pub identity: CertStore,
    /// Settings.
    pub settings: Settings,
    /// The pod's address.
    pub local_ip: Option<IpAddr>,
    /// Resolved names.
    pub dns: Arc<Dns>,
    /// Counters.
    pub stats: Arc<Stats>,
    /// Access log files.
    pub logs: Arc<Files>,
    /// Where workers report what happened; `None` when nobody listens.
    pub reports: Option<mpsc::Sender<Report>>,
    /// Tells that the proxy drains.
    pub drain: Watch,
    /// True once clients should go elsewhere, though they are still served.
    pub leaving: watch::Sender<bool>,
    /// Listeners at work, counted once per worker.
    pub listening: AtomicUsize,
    /// Downstream connections open now.
    pub connections: AtomicU64,
    /// Listening sockets that come from a predecessor and go to a successor.
    pub sockets: Arc<Sockets>,
    /// Addresses that listeners are bound to, told by worker 0; for tests and the admin server.
    pub bound: Mutex<HashMap<Name, SocketAddr>>,
    commons: Mutex<HashMap<Name, Arc<Common>>>,
}

impl Shared {
    /// Fresh state.
    #[must_use]
    pub fn new(
        settings: Settings,
        identity: CertStore,
        reports: Option<mpsc::Sender<Report>>,
        drain: Watch,
    ) -> Arc<Self> {
        let stats = Arc::<Stats>::default();
        Arc::new(Self {
            identity,
            local_ip: settings.local_ip,
            settings,
            dns: Arc::default(),
            logs: Arc::new(Files::counting(Arc::clone(&stats.log_lines_lost))),
            stats,
            reports,
            drain,
            leaving: watch::Sender::new(false),
            listening: AtomicUsize::new(0),
            connections: AtomicU64::new(0),
            sockets: Arc::default(),
            bound: Mutex::default(),
            commons: Mutex::default(),
        })
    }

    /// What workers share about a cluster; new when its settings changed.
    #[must_use]
    pub fn common(&self, cluster: &Arc<Cluster>) -> Arc<Common> {
        let mut commons = self.commons.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(common) = commons.get(&cluster.name)
            && (Arc::ptr_eq(&common.cluster, cluster) || common.cluster == *cluster)
        {
            return Arc::clone(common);
        }
        let common = Arc::new(Common::new(Arc::clone(cluster), self.stats.cluster(&cluster.name)));
        commons.insert(cluster.name.clone(), Arc::clone(&common));
        common
    }

    /// Forgets clusters that a snapshot no longer has.
    pub fn forget(&self, snapshot: &Snapshot) {
        let mut commons = self.commons.lock().unwrap_or_else(PoisonError::into_inner);
        commons.retain(|name, _| snapshot.clusters.contains_key(name));
    }

    /// Waits until every worker listens where the newest configuration says.
    pub async fn until_listening(&self, snapshots: &watch::Receiver<Arc<Snapshot>>) {
        loop {
            let wanted: usize = {
                let snapshot = snapshots.borrow();
                let bound = snapshot.listeners.values().filter(|listener| listener.bind);
                bound.map(|listener| crate::listen::addresses(listener).count()).sum()
            };
            if self.listening.load(Ordering::Acquire) >= wanted * self.settings.workers.max(1) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Where a listener is bound.
    #[must_use]
    pub fn address_of(&self, listener: &str) -> Option<SocketAddr> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner).get(listener).copied()
    }
}
