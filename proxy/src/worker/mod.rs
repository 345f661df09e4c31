//! One core's share of the proxy: its view of the configuration, its clusters, its random numbers, its tasks.
//!
//! In: snapshots. Out: [`Worker`], used by everything that runs on the core, and [`View`], held by a request from first to last byte.
//! Kept true: a worker is `!Send`; no lock is taken per request. Not here: what all workers share ([`Shared`]), accepting (`listen`).

use std::{
    cell::{Cell, RefCell},
    future::Future,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use ahash::AHashMap;
use mesh_traffic::{Snapshot, cluster::Discovery, names::Name};
use rand::{Rng, RngCore, SeedableRng, rngs::SmallRng};
use tokio::sync::{Notify, watch};

mod shared;
mod threads;

pub use shared::{Node, Settings, Shared};
pub use threads::{LINGER, Workers, run as run_worker, start};

use crate::{
    balance::ClusterState,
    codec::Limits,
    http::ext_authz::Verdicts,
    telemetry::{access_log::Writers, local::Local},
};

/// One core's share.
pub struct Worker {
    /// Number of the worker, from 0.
    pub id: usize,
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// Limits towards upstreams.
    pub upstream_limits: Rc<Limits>,
    /// Series and records of this worker.
    pub telemetry: Local,
    /// Access logs.
    pub logs: Writers,
    /// Remembered answers of authorization services.
    pub verdicts: Verdicts,
    view: RefCell<Rc<View>>,
    states: RefCell<AHashMap<Name, Rc<ClusterState>>>,
    random: RefCell<SmallRng>,
    connections: Cell<u64>,
    own: RefCell<Option<Name>>,
    /// Told when certificates or roots have changed: live connections look at their peers anew.
    pub trust_changed: Notify,
    /// The proxy drains: answers ask their clients to go elsewhere.
    pub draining: Cell<bool>,
    /// Exchanges and connections under way.
    pub busy: Cell<u64>,
}

/// One consistent view of the configuration.
pub struct View {
    /// The configuration.
    pub snapshot: Arc<Snapshot>,
    clusters: RefCell<AHashMap<Name, Rc<ClusterState>>>,
}

impl Worker {
    /// A worker without configuration.
    #[must_use]
    pub fn new(id: usize, shared: Arc<Shared>) -> Rc<Self> {
        let view = View { snapshot: Arc::default(), clusters: RefCell::default() };
        Rc::new(Self {
            id,
            upstream_limits: Rc::new(Limits::upstream()),
            telemetry: Local::new(id, &shared),
            logs: Writers::new(Arc::clone(&shared.logs)),
            verdicts: Verdicts::default(),
            view: RefCell::new(Rc::new(view)),
            states: RefCell::default(),
            random: RefCell::new(SmallRng::from_os_rng()),
            connections: Cell::new(0),
            own: RefCell::new(None),
            trust_changed: Notify::new(),
            draining: Cell::new(false),
            busy: Cell::new(0),
            shared,
        })
    }

    /// The newest configuration. A request takes it once.
    #[must_use]
    pub fn view(&self) -> Rc<View> {
        Rc::clone(&self.view.borrow())
    }

    /// Puts a configuration in force for requests that start from now on.
    pub fn adopt(&self, snapshot: Arc<Snapshot>) {
        let mut states = self.states.borrow_mut();
        let gone: Vec<_> = states
            .extract_if(|name, _| !snapshot.clusters.contains_key(name))
            .map(|(_, state)| state)
            .collect();
        drop(states);
        drop(gone);
        *self.view.borrow_mut() = Rc::new(View { snapshot, clusters: RefCell::default() });
    }

    /// A cluster under a view; `None` when the view has none of that name.
    #[must_use]
    pub fn cluster(self: &Rc<Self>, view: &Rc<View>, name: &Name) -> Option<Rc<ClusterState>> {
        if let Some(state) = view.clusters.borrow().get(name) {
            return Some(Rc::clone(state));
        }
        let cluster = view.snapshot.clusters.get(name)?;
        let endpoints = match cluster.discovery {
            Discovery::StrictDns(_) | Discovery::LogicalDns(_) => self.shared.dns.endpoints(name),
            _ => view.snapshot.endpoints_of(cluster).cloned(),
        };
        let common = self.shared.common(cluster);
        let earlier = self.states.borrow().get(name).cloned();
        let same = |earlier: &&Rc<ClusterState>| {
            let unchanged = match (&earlier.endpoints, &endpoints) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                (None, None) => true,
                _ => false,
            };
            unchanged && Arc::ptr_eq(&earlier.common, &common)
        };
        let state = match earlier.as_ref().filter(same) {
            Some(state) => Rc::clone(state),
            None => {
                let state = Rc::new(ClusterState::new(common, endpoints, earlier.as_deref()));
                self.shed_when_wanted(&state);
                state
            }
        };
        view.clusters.borrow_mut().insert(name.clone(), Rc::clone(&state));
        // An older view must not put its state in the place of a newer one.
        if Rc::ptr_eq(view, &self.view.borrow()) {
            self.states.borrow_mut().insert(name.clone(), Rc::clone(&state));
        }
        Some(state)
    }

    /// Idle connections of this worker count against a limit that another worker may wait for: it is told to let one go.
    fn shed_when_wanted(&self, state: &Rc<ClusterState>) {
        if !state.common.usage.counts_connections() {
            return;
        }
        let (weak, wanted) = (Rc::downgrade(state), Arc::clone(&state.common.usage.wanted));
        self.spawn(async move {
            loop {
                wanted.notified().await;
                let Some(state) = weak.upgrade() else { return };
                let _ = state.hosts().any(|(host, _)| host.pool.shed_one());
            }
        });
    }

    /// A uniformly random number.
    #[must_use]
    pub fn random(&self) -> u64 {
        self.random.borrow_mut().next_u64()
    }

    /// A uniformly random number for shares of a million.
    #[must_use]
    pub fn draw(&self) -> u32 {
        // Uniform over whole millions, so that a share is met exactly in the mean.
        self.random.borrow_mut().random_range(0..1_000_000)
    }

    /// A random number in `0.0..1.0`.
    #[must_use]
    pub fn fraction(&self) -> f64 {
        self.random.borrow_mut().random_range(0.0..1.0)
    }

    /// Our own identity without its scheme; `None` before the first certificate.
    #[must_use]
    pub fn own_principal(&self) -> Option<Name> {
        if let Some(own) = &*self.own.borrow() {
            return Some(own.clone());
        }
        let identity = self.shared.identity.current()?;
        let own: Name = identity.credentials.id()?.principal().into();
        *self.own.borrow_mut() = Some(own.clone());
        Some(own)
    }

    /// A new number for a connection, unique in the process.
    #[must_use]
    pub fn next_connection(&self) -> u64 {
        let number = self.connections.get();
        self.connections.set(number + 1);
        (u64::try_from(self.id).unwrap_or(0) << 48) | number
    }

    /// Runs a task on this worker's core until it ends.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(task);
    }

    /// Follows the configuration, DNS and certificates until the sender is gone. Dropping the future leaves the last configuration in force.
    pub async fn follow(self: Rc<Self>, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
        let mut dns = self.shared.dns.subscribe();
        let mut certificates = self.shared.identity.subscribe();
        let mut sweep = tokio::time::interval(Duration::from_secs(1));
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        self.adopt(snapshots.borrow_and_update().clone());
        loop {
            tokio::select! {
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.adopt(snapshots.borrow_and_update().clone());
                }
                Ok(()) = dns.changed() => {
                    dns.borrow_and_update();
                    let snapshot = snapshots.borrow().clone();
                    self.adopt(snapshot);
                }
                Ok(()) = certificates.changed() => {
                    certificates.borrow_and_update();
                    *self.own.borrow_mut() = None;
                    self.each_host(|_, host| host.pool.retire_mutual());
                    self.trust_changed.notify_waiters();
                }
                _ = sweep.tick() => {
                    self.each_host(|state, host| host.pool.sweep(state.cluster().idle_timeout));
                    self.telemetry.flush();
                }
            }
        }
    }

    fn each_host(&self, act: impl Fn(&ClusterState, &crate::balance::Host)) {
        let states: Vec<_> = self.states.borrow().values().cloned().collect();
        for state in states {
            for (host, _) in state.hosts() {
                act(&state, &host);
            }
        }
    }

    /// Counts something under way until the guard is dropped.
    #[must_use]
    pub fn begin(self: &Rc<Self>) -> Busy {
        self.busy.set(self.busy.get() + 1);
        Busy(Rc::clone(self))
    }
}

/// Something under way that a drain waits for.
pub struct Busy(Rc<Worker>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.set(self.0.busy.get().saturating_sub(1));
    }
}
