//! Clusters at work: which endpoint takes a request, over which connection, within which limits.
//!
//! In: a [`Cluster`] with its endpoints, from the snapshot. Out: [`ClusterState`], per worker, and [`Common`], over all workers.
//! Kept true: a pick sees the endpoints of one snapshot; connections of endpoints that stay are kept. Not here: routes (`http`).

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
};

use ahash::AHashMap;
use mesh_traffic::{
    Cluster, Endpoint, Endpoints,
    balance::{Draw, HostSet, Load},
    cluster::Service,
    endpoint::Address,
    names::Name,
};
use tokio::time::Instant;

pub mod connect;
pub mod dns;
pub mod failure;
pub mod limits;
pub mod outlier;
pub mod pool;

pub use failure::{Failure, Kind};
use outlier::{Record, Sign};
use pool::Pool;

use crate::telemetry::stats::ClusterStats;

/// More requests than an endpoint ever has in flight.
const FULL: u32 = u32::MAX / 2;

/// Draws for an endpoint that a request has not tried, where it is to avoid those that it has: practically always finds one if there is one.
const ENOUGH: u32 = 48;

/// What all workers share about one cluster, for as long as its settings stand.
#[derive(Debug)]
pub struct Common {
    /// The settings.
    pub cluster: Arc<Cluster>,
    /// Limited resources.
    pub usage: limits::Usage,
    /// Ejections.
    pub detector: outlier::Detector,
    /// Counters.
    pub stats: Arc<ClusterStats>,
    began: Instant,
}

impl Common {
    /// Fresh state for a cluster's settings.
    #[must_use]
    pub fn new(cluster: Arc<Cluster>, stats: Arc<ClusterStats>) -> Self {
        Self {
            usage: limits::Usage::new(&cluster.limits),
            detector: outlier::Detector::new(cluster.outlier.clone()),
            stats,
            began: Instant::now(),
            cluster,
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// One endpoint, as one worker uses it.
#[derive(Debug)]
pub struct Host {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Its connections.
    pub pool: Pool,
    /// Requests of this worker in flight to it.
    pub active: Cell<u32>,
    record: Arc<Record>,
}

impl Host {
    /// A place for one more connection to it.
    #[must_use]
    pub fn permit(&self, state: &ClusterState) -> Option<limits::ConnectionPermit> {
        state.common.usage.connection(&self.record.connections)
    }

    /// Where it is; `None` for a name that DNS has not resolved or a unix socket.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self.endpoint.address {
            Address::Ip(address) => Some(address),
            Address::Dns(..) | Address::Pipe(_) => None,
        }
    }
}

/// One cluster, as one worker uses it under one snapshot.
#[derive(Debug)]
pub struct ClusterState {
    /// What all workers share.
    pub common: Arc<Common>,
    /// Its name, in memory that only this worker counts references to.
    pub name: Name,
    /// The service behind it, likewise.
    pub service: Option<Service>,
    /// The endpoints it was made from.
    pub endpoints: Option<Arc<Endpoints>>,
    set: HostSet,
    hosts: Vec<Rc<Host>>,
    /// For original destinations: endpoints made on demand.
    originals: RefCell<AHashMap<SocketAddr, Rc<Host>>>,
    turn: Cell<u64>,
}

/// Most endpoints of original destinations that are remembered per worker.
const MAX_ORIGINALS: usize = 1024;

impl ClusterState {
    /// Prepares a cluster; connections of `earlier` are taken over when the settings are the same.
    #[must_use]
    pub fn new(common: Arc<Common>, endpoints: Option<Arc<Endpoints>>, earlier: Option<&Self>) -> Self {
        let earlier = earlier.filter(|earlier| Arc::ptr_eq(&earlier.common, &common));
        let mut known: AHashMap<&Address, &Rc<Host>> = AHashMap::new();
        if let Some(earlier) = earlier {
            known.extend(earlier.hosts.iter().map(|host| (&host.endpoint.address, host)));
        }
        let none = Endpoints::default();
        let set = HostSet::new(endpoints.as_deref().unwrap_or(&none), common.cluster.balance);
        let hosts: Vec<_> = set
            .endpoints()
            .iter()
            .map(|endpoint| match known.get(&endpoint.address) {
                Some(host) if host.endpoint.tls_labels == endpoint.tls_labels => Rc::clone(host),
                _ => Self::host(&common, Arc::clone(endpoint)),
            })
            .collect();
        if Self::remembers(&common) {
            common.detector.keep(|address| hosts.iter().any(|host| host.endpoint.address == *address));
        }
        let turn = Cell::new(earlier.map_or(0, |earlier| earlier.turn.get()));
        let originals = RefCell::new(earlier.map(|e| e.originals.borrow().clone()).unwrap_or_default());
        let own = |name: &Name| Name::from(&**name);
        let service = common.cluster.service.as_ref().map(|service| Service {
            host: own(&service.host),
            name: own(&service.name),
            namespace: own(&service.namespace),
        });
        let name = own(&common.cluster.name);
        Self { common, name, service, endpoints, set, hosts, originals, turn }
    }

    /// Whether workers share a record of each endpoint: only then is there anything to keep, and to forget.
    fn remembers(common: &Common) -> bool {
        common.detector.is_on() || common.usage.counts_connections()
    }

    fn host(common: &Common, endpoint: Arc<Endpoint>) -> Rc<Host> {
        let record =
            if Self::remembers(common) { common.detector.record(&endpoint.address) } else { Arc::default() };
        Rc::new(Host { endpoint, pool: Pool::default(), active: Cell::new(0), record })
    }

    /// The cluster's settings.
    #[must_use]
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.common.cluster
    }

    /// Picks an endpoint. `avoid`: endpoints that this request has tried, left out for up to `picks` draws.
    ///
    /// # Errors
    /// When none may be used.
    pub fn pick(
        &self,
        mut random: impl FnMut() -> u64,
        hash: Option<u64>,
        avoid: &[Rc<Host>],
        picks: u32,
    ) -> Result<Rc<Host>, Failure> {
        let watched = self.common.detector.is_on();
        let load = Loads { hosts: &self.hosts, now: self.common.now(), watched, avoid };
        let mut draw = || {
            let turn = self.turn.get();
            self.turn.set(turn.wrapping_add(1));
            let draw = Draw { random: random(), turn, hash };
            self.set.pick(&load, self.cluster().panic_percent, draw).map(|index| &self.hosts[index])
        };
        let none = || {
            let why = format!("cluster {} has no endpoint that may be used", self.cluster().name);
            Failure::new(Kind::NoHealthyUpstream, why)
        };
        let mut host = draw().ok_or_else(none)?;
        let picks = if picks > 1 { picks.max(ENOUGH) } else { picks };
        for _ in 1..picks {
            if !avoid.iter().any(|tried| Rc::ptr_eq(tried, host)) {
                break;
            }
            host = draw().ok_or_else(none)?;
        }
        Ok(Rc::clone(host))
    }

    /// The endpoint of an original destination.
    #[must_use]
    pub fn original(&self, address: SocketAddr) -> Rc<Host> {
        let mut originals = self.originals.borrow_mut();
        if originals.len() >= MAX_ORIGINALS {
            originals.retain(|_, host| host.active.get() > 0);
        }
        let make = || Self::host(&self.common, Arc::new(Endpoint::at(address)));
        Rc::clone(originals.entry(address).or_insert_with(make))
    }

    /// Takes note of how a try ended.
    pub fn note(&self, host: &Host, sign: Sign) {
        if self.common.detector.is_on()
            && self.common.detector.note(&host.record, sign, self.common.now(), self.hosts.len())
        {
            self.common.stats.ejections.fetch_add(1, Ordering::Relaxed);
            tracing::info!(cluster = %self.cluster().name, endpoint = %host.endpoint.address, "endpoint ejected");
        }
    }

    /// Every endpoint, with whether it is out now; for the admin server and sweeps.
    pub fn hosts(&self) -> impl Iterator<Item = (Rc<Host>, bool)> {
        let now = self.common.now();
        let originals: Vec<_> = self.originals.borrow().values().cloned().collect();
        let hosts = self.hosts.iter().cloned().chain(originals);
        hosts.map(move |host| {
            let out = host.record.ejected(now);
            (host, out)
        })
    }
}

struct Loads<'a> {
    hosts: &'a [Rc<Host>],
    now: u64,
    /// Endpoints are ejected in this cluster, so that a pick has to look.
    watched: bool,
    /// Endpoints that count as fully loaded: one that fails fast is the least loaded, and would be drawn again and again.
    avoid: &'a [Rc<Host>],
}

impl Load for Loads<'_> {
    fn active(&self, index: usize) -> u32 {
        let host = &self.hosts[index];
        match self.avoid.iter().any(|tried| Rc::ptr_eq(tried, host)) {
            true => FULL,
            false => host.active.get(),
        }
    }

    fn ejected(&self, index: usize) -> bool {
        self.hosts[index].record.ejected(self.now)
    }

    fn any_ejected(&self) -> bool {
        self.watched
    }
}

/// A request in flight to an endpoint. Gives back its places when dropped.
#[derive(Debug)]
pub struct InFlight {
    host: Rc<Host>,
    _permit: limits::Permit,
}

impl InFlight {
    /// Counts a request to `host`.
    ///
    /// # Errors
    /// When the cluster has too many requests in flight.
    pub fn new(state: &ClusterState, host: &Rc<Host>) -> Result<Self, Failure> {
        let Some(permit) = state.common.usage.request() else {
            return Err(overflow(state, "maxRequests"));
        };
        host.active.set(host.active.get() + 1);
        Ok(Self { host: Rc::clone(host), _permit: permit })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.host.active.set(self.host.active.get().saturating_sub(1));
    }
}

/// A limit was reached.
#[must_use]
pub fn overflow(state: &ClusterState, limit: &str) -> Failure {
    state.common.stats.overflows.fetch_add(1, Ordering::Relaxed);
    Failure::new(Kind::Overflow, format!("cluster {} has reached {limit}", state.cluster().name))
}
