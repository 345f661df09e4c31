//! Names of endpoints: STRICT_DNS and LOGICAL_DNS clusters are resolved off the request path, hosts of an explicit proxy on demand.
//!
//! In: clusters with names. Out: [`Endpoints`] with addresses, told by a counter. Kept true: what DNS last answered stays in force while it
//! does not answer. Not here: EDS (`xds`).

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use arc_swap::ArcSwap;
use hickory_resolver::TokioResolver;
use mesh_traffic::{
    Cluster, Endpoint, Endpoints, Snapshot,
    cluster::Discovery,
    endpoint::{Address, Locality},
    names::Name,
};
use tokio::sync::watch;

/// Resolved clusters by name.
type Resolved = HashMap<Name, Arc<Endpoints>>;

/// How often names are asked for again. Envoy: 5 s.
const REFRESH: Duration = Duration::from_secs(5);

/// What DNS says, for all workers.
#[derive(Debug)]
pub struct Dns {
    resolved: ArcSwap<Resolved>,
    changes: watch::Sender<u64>,
}

impl Default for Dns {
    fn default() -> Self {
        Self { resolved: ArcSwap::default(), changes: watch::Sender::new(0) }
    }
}

impl Dns {
    /// The endpoints of a cluster, if they have been resolved.
    #[must_use]
    pub fn endpoints(&self, cluster: &Name) -> Option<Arc<Endpoints>> {
        self.resolved.load().get(cluster).cloned()
    }

    /// Counts changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Keeps the clusters of the newest snapshot resolved. Ends when the sender of snapshots is gone.
    pub async fn follow(self: Arc<Self>, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
        loop {
            let snapshot = snapshots.borrow_and_update().clone();
            self.refresh(&snapshot).await;
            let named = snapshot.clusters.values().any(|cluster| named(cluster).is_some());
            let changed = tokio::select! {
                changed = snapshots.changed() => changed,
                () = tokio::time::sleep(REFRESH), if named => Ok(()),
            };
            if changed.is_err() {
                return;
            }
        }
    }

    async fn refresh(&self, snapshot: &Snapshot) {
        let before = self.resolved.load_full();
        let mut after = Resolved::new();
        let wanted = snapshot.clusters.values().filter_map(|cluster| Some((cluster, named(cluster)?)));
        let answers = wanted.map(|(cluster, endpoints)| {
            let logical = matches!(cluster.discovery, Discovery::LogicalDns(_));
            let before = before.get(&cluster.name).cloned();
            async move {
                let answer = resolve_all(endpoints, logical).await;
                (
                    cluster.name.clone(),
                    if answer.iter().next().is_some() { Some(Arc::new(answer)) } else { before },
                )
            }
        });
        for (name, endpoints) in futures::future::join_all(answers).await {
            if let Some(endpoints) = endpoints {
                let kept = before.get(&name).filter(|old| ***old == *endpoints);
                after.insert(name, kept.cloned().unwrap_or(endpoints));
            }
        }
        if after != *before {
            self.resolved.store(Arc::new(after));
            self.changes.send_modify(|count| *count += 1);
        }
    }
}

fn named(cluster: &Cluster) -> Option<&Arc<Endpoints>> {
    match &cluster.discovery {
        Discovery::StrictDns(endpoints) | Discovery::LogicalDns(endpoints) => Some(endpoints),
        _ => None,
    }
}

async fn resolve_all(endpoints: &Endpoints, logical: bool) -> Endpoints {
    let mut resolved = Endpoints { name: endpoints.name.clone(), localities: Vec::new() };
    for locality in &endpoints.localities {
        let mut found = Vec::new();
        for endpoint in &locality.endpoints {
            let Address::Dns(host, port) = &endpoint.address else {
                found.push(Arc::clone(endpoint));
                continue;
            };
            let mut addresses = lookup(host).await.unwrap_or_default();
            addresses.sort_unstable();
            addresses.truncate(if logical { 1 } else { usize::MAX });
            found.extend(addresses.into_iter().map(|ip| {
                let address = Address::Ip(SocketAddr::new(ip, *port));
                Arc::new(Endpoint { address, ..Endpoint::clone(endpoint) })
            }));
        }
        resolved.localities.push(Locality { endpoints: found, ..locality.clone() });
    }
    resolved
}

/// Addresses of a host; a literal address is its own.
///
/// # Errors
/// Why there are none.
pub async fn lookup(host: &str) -> Result<Vec<IpAddr>, String> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse() {
        return Ok(vec![ip]);
    }
    if bare.eq_ignore_ascii_case("localhost") {
        return Ok(vec![IpAddr::from([127, 0, 0, 1])]);
    }
    static RESOLVER: OnceLock<Result<TokioResolver, String>> = OnceLock::new();
    let make = || {
        let builder = TokioResolver::builder_tokio().map_err(|e| format!("/etc/resolv.conf: {e}"))?;
        builder.build().map_err(|e| e.to_string())
    };
    let resolver = RESOLVER.get_or_init(make).as_ref().map_err(Clone::clone)?;
    let answer = resolver.lookup_ip(bare).await.map_err(|e| format!("{bare}: {e}"))?;
    Ok(answer.iter().collect())
}
