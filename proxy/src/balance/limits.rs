//! What a cluster may use at once, counted over all workers of the proxy.
//!
//! In: [`Limits`] of the cluster. Out: permits that give back what they hold when dropped. Kept true: an unlimited resource costs
//! no shared write; a permit dropped at any await gives back exactly once. Not here: waiting for a connection (`pool`).

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use mesh_traffic::cluster::Limits;
use tokio::sync::Notify;

/// A count on a cache line of its own, with a ceiling.
#[derive(Debug)]
#[repr(align(128))]
struct Gauge {
    held: AtomicU32,
    limit: u32,
}

impl Gauge {
    fn try_take(&self) -> bool {
        let below = |held| (held < self.limit).then(|| held + 1);
        self.held.fetch_update(Ordering::AcqRel, Ordering::Relaxed, below).is_ok()
    }

    fn give_back(&self) {
        self.held.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Gives one unit back when dropped. The unlimited permit holds nothing.
#[derive(Debug, Default)]
pub struct Permit(Option<Arc<Gauge>>);

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(gauge) = self.0.take() {
            gauge.give_back();
        }
    }
}

fn take(gauge: &Option<Arc<Gauge>>) -> Option<Permit> {
    match gauge {
        None => Some(Permit(None)),
        Some(gauge) => gauge.try_take().then(|| Permit(Some(Arc::clone(gauge)))),
    }
}

/// The limited resources of one cluster, shared by all workers.
#[derive(Debug, Default)]
pub struct Usage {
    connections: Option<Arc<Gauge>>,
    pending: Option<Arc<Gauge>>,
    requests: Option<Arc<Gauge>>,
    retries: Option<Arc<Gauge>>,
    /// Told when a connection closed or became idle: whoever waits may try again.
    pub freed: Arc<Notify>,
    /// Told when somebody waits: workers with idle connections let one go.
    pub wanted: Arc<Notify>,
}

impl Usage {
    /// Nothing held yet.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        let gauge =
            |limit: Option<u32>| limit.map(|limit| Arc::new(Gauge { held: AtomicU32::new(0), limit }));
        Self {
            connections: gauge(limits.connections),
            pending: gauge(limits.pending),
            requests: gauge(limits.requests),
            retries: gauge(limits.retries),
            ..Self::default()
        }
    }

    /// True when connections are counted at all.
    #[must_use]
    pub fn counts_connections(&self) -> bool {
        self.connections.is_some()
    }

    /// A place among the waiting, `None` when they are too many.
    #[must_use]
    pub fn pending(&self) -> Option<Permit> {
        take(&self.pending)
    }

    /// A place among the requests in flight.
    #[must_use]
    pub fn request(&self) -> Option<Permit> {
        take(&self.requests)
    }

    /// A place among the retries in flight.
    #[must_use]
    pub fn retry(&self) -> Option<Permit> {
        take(&self.retries)
    }

    /// A place for a connection to `host`. As in Envoy, an endpoint without any connection always gets its first,
    /// or endpoints of a cluster at its limit would starve one another.
    #[must_use]
    pub fn connection(&self, host: &Arc<AtomicU32>) -> Option<ConnectionPermit> {
        let Some(gauge) = &self.connections else { return Some(ConnectionPermit::default()) };
        let first = host.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if first {
            gauge.held.fetch_add(1, Ordering::AcqRel);
        } else if gauge.try_take() {
            host.fetch_add(1, Ordering::AcqRel);
        } else {
            return None;
        }
        let held = (Arc::clone(gauge), Arc::clone(host), Arc::clone(&self.freed));
        Some(ConnectionPermit(Some(held)))
    }
}

/// Held as long as a connection's socket is open.
#[derive(Debug, Default)]
pub struct ConnectionPermit(Option<(Arc<Gauge>, Arc<AtomicU32>, Arc<Notify>)>);

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        if let Some((gauge, host, freed)) = self.0.take() {
            host.fetch_sub(1, Ordering::AcqRel);
            gauge.give_back();
            freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_over_threads_and_every_permit_comes_back() {
        for workers in [1, 2, 4] {
            let limits = Limits { requests: Some(3), ..Limits::default() };
            let usage = Arc::new(Usage::new(&limits));
            let most = Arc::new(AtomicU32::new(0));
            let threads: Vec<_> = (0..workers)
                .map(|_| {
                    let (usage, most) = (Arc::clone(&usage), Arc::clone(&most));
                    std::thread::spawn(move || {
                        for _ in 0..2000 {
                            let Some(permit) = usage.request() else { continue };
                            let gauge = usage.requests.as_ref().expect("limited");
                            most.fetch_max(gauge.held.load(Ordering::Acquire), Ordering::AcqRel);
                            drop(permit);
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
            assert!(most.load(Ordering::Acquire) <= 3, "{workers} workers");
            let all: Vec<_> = std::iter::from_fn(|| usage.request()).take(10).collect();
            assert_eq!(all.len(), 3, "{workers} workers");
        }
    }

    #[test]
    fn each_endpoint_gets_its_first_connection_and_no_second_at_the_limit() {
        let usage = Usage::new(&Limits { connections: Some(1), ..Limits::default() });
        let (a, b) = (Arc::default(), Arc::default());
        let first = usage.connection(&a).expect("the first of all");
        assert!(usage.connection(&a).is_none(), "the limit");
        let other = usage.connection(&b).expect("the first to this endpoint");
        drop((first, other));
        assert!(usage.connection(&a).is_some(), "given back");
    }

    #[test]
    fn an_unlimited_cluster_always_has_room() {
        let usage = Usage::new(&Limits::default());
        let held: Vec<_> = (0..100).map(|_| (usage.request(), usage.pending(), usage.retry())).collect();
        assert!(held.iter().all(|(a, b, c)| a.is_some() && b.is_some() && c.is_some()));
        assert!(!usage.counts_connections());
    }
}
