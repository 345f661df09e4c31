//! Picking an endpoint: pure functions over a compiled host set and a random draw.
//!
//! In: [`Endpoints`], which of them are out, loads in flight, a hash or a draw. Out: the index of an endpoint. Kept true: a
//! host set is compiled once per endpoint change; a pick does not allocate. Not here: counting loads and ejections (`proxy`).

use std::sync::Arc;

use crate::{
    cluster::Balance,
    endpoint::{Endpoint, Endpoints, Health},
};

/// The endpoints of a cluster, prepared for picking.
#[derive(Debug, Clone)]
pub struct HostSet {
    endpoints: Vec<Arc<Endpoint>>,
    /// First and one-past-last index of each priority, in order.
    priorities: Vec<(usize, usize)>,
    /// For consistent hashing: (place, index), sorted by place.
    ring: Vec<(u64, u32)>,
    balance: Balance,
    weighted: bool,
}

/// What the caller knows of the endpoints right now.
pub trait Load {
    /// Requests in flight to endpoint `index`.
    fn active(&self, index: usize) -> u32;
    /// True while endpoint `index` is ejected.
    fn ejected(&self, index: usize) -> bool;
}

/// No loads and no ejections.
#[derive(Debug, Clone, Copy, Default)]
pub struct Idle;

impl Load for Idle {
    fn active(&self, _: usize) -> u32 {
        0
    }
    fn ejected(&self, _: usize) -> bool {
        false
    }
}

/// One pick's inputs.
#[derive(Debug, Clone, Copy)]
pub struct Draw {
    /// Uniformly random.
    pub random: u64,
    /// Rises by one with each pick (round robin).
    pub turn: u64,
    /// Key of a consistent hash, if the route found one.
    pub hash: Option<u64>,
}

/// Places of one unit of weight on a ring, so that small sets still spread.
const PLACES: u64 = 160;
/// Largest ring.
const MAX_RING: u64 = 8_388_608;

impl HostSet {
    /// Prepares endpoints for picking.
    #[must_use]
    pub fn new(endpoints: &Endpoints, balance: Balance) -> Self {
        let mut localities: Vec<_> =
            endpoints.localities.iter().filter(|l| !l.endpoints.is_empty()).collect();
        localities.sort_by_key(|locality| locality.priority);
        let (mut all, mut priorities, mut last) = (Vec::new(), Vec::<(usize, usize)>::new(), None);
        for locality in localities {
            let start = all.len();
            all.extend(locality.endpoints.iter().filter(|e| e.health != Health::Unhealthy).cloned());
            match priorities.last_mut() {
                Some(range) if last == Some(locality.priority) => range.1 = all.len(),
                _ => priorities.push((start, all.len())),
            }
            last = Some(locality.priority);
        }
        let weighted = all.iter().any(|endpoint| endpoint.weight > 1);
        let mut set = Self { endpoints: all, priorities, ring: Vec::new(), balance, weighted };
        set.ring = set.make_ring();
        set
    }

    /// The endpoints, in the order that indexes refer to.
    #[must_use]
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    fn make_ring(&self) -> Vec<(u64, u32)> {
        let minimum = match self.balance {
            Balance::RingHash { minimum } => minimum,
            Balance::Maglev { size } => size,
            _ => return Vec::new(),
        };
        let total: u64 = self.endpoints.iter().map(|e| u64::from(e.weight.max(1))).sum();
        let per_weight = minimum.div_ceil(total.max(1)).max(PLACES).min(MAX_RING / total.max(1)).max(1);
        let mut ring = Vec::new();
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let Ok(index) = u32::try_from(index) else { break };
            for place in 0..per_weight * u64::from(endpoint.weight.max(1)) {
                ring.push((hash(format!("{}_{place}", endpoint.address).as_bytes()), index));
            }
        }
        ring.sort_unstable();
        ring
    }

    /// Picks an endpoint, `None` when none may be used. `panic_percent`: when a smaller share of a priority's endpoints
    /// is usable, all of them are (0 never).
    #[must_use]
    pub fn pick(&self, load: &impl Load, panic_percent: u32, draw: Draw) -> Option<usize> {
        let usable = |index: usize| self.endpoints[index].health != Health::Draining && !load.ejected(index);
        for &(from, to) in &self.priorities {
            let healthy = (from..to).filter(|index| usable(*index)).count();
            if healthy == to - from {
                return self.pick_in(load, from, to, healthy, |_| true, draw);
            }
            if healthy > 0 && healthy * 100 >= usize::try_from(panic_percent).unwrap_or(100) * (to - from) {
                return self.pick_in(load, from, to, healthy, usable, draw);
            }
            if panic_percent > 0 && self.priorities.len() == 1 && to > from {
                return self.pick_in(load, from, to, to - from, |_| true, draw);
            }
            if healthy > 0 {
                return self.pick_in(load, from, to, healthy, usable, draw);
            }
        }
        None
    }

    fn pick_in(
        &self,
        load: &impl Load,
        from: usize,
        to: usize,
        count: usize,
        usable: impl Fn(usize) -> bool,
        draw: Draw,
    ) -> Option<usize> {
        let nth = |n: usize| {
            if count == to - from { Some(from + n) } else { (from..to).filter(|i| usable(*i)).nth(n) }
        };
        let below = |number: u64, limit: usize| {
            let limit = u64::try_from(limit).unwrap_or(u64::MAX).max(1);
            usize::try_from(number % limit).unwrap_or(0)
        };
        match (self.balance, draw.hash) {
            (Balance::RingHash { .. } | Balance::Maglev { .. }, Some(key)) => {
                self.on_ring(key, from, to, usable)
            }
            (Balance::LeastRequest, _) if count > 1 => {
                let first = nth(below(draw.random, count))?;
                let mut other = below(draw.random >> 32, count - 1);
                if from + other >= first && count == to - from {
                    other += 1;
                }
                let second = nth(other.min(count - 1))?;
                let cost = |i: usize| {
                    f64::from(load.active(i).saturating_add(1)) / f64::from(self.endpoints[i].weight.max(1))
                };
                Some(if cost(second) < cost(first) { second } else { first })
            }
            (Balance::RoundRobin, _) if self.weighted => self.by_weight(from, to, usable, draw.turn),
            (Balance::RoundRobin, _) => nth(below(draw.turn, count)),
            (Balance::Random, _) if self.weighted => self.by_weight(from, to, usable, draw.random),
            _ => nth(below(draw.random, count)),
        }
    }

    fn by_weight(
        &self,
        from: usize,
        to: usize,
        usable: impl Fn(usize) -> bool,
        number: u64,
    ) -> Option<usize> {
        let weight = |i: &usize| u64::from(self.endpoints[*i].weight.max(1));
        let total: u64 = (from..to).filter(|i| usable(*i)).map(|i| weight(&i)).sum();
        let mut left = number.checked_rem(total)?;
        for index in (from..to).filter(|i| usable(*i)) {
            match left.checked_sub(weight(&index)) {
                None => return Some(index),
                Some(rest) => left = rest,
            }
        }
        None
    }

    fn on_ring(&self, key: u64, from: usize, to: usize, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let start = self.ring.partition_point(|(place, _)| *place < key);
        let places = self.ring[start..].iter().chain(&self.ring[..start]);
        let mut indexes = places.filter_map(|(_, index)| usize::try_from(*index).ok());
        indexes.find(|index| (from..to).contains(index) && usable(*index))
    }
}

/// The hash of a consistent-hash key: the same in every process and version.
#[must_use]
pub fn hash(key: &[u8]) -> u64 {
    ahash::RandomState::with_seeds(0x6372, 0x656d, 0x6121, 0x2026).hash_one(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Locality;

    struct Loads(Vec<u32>, Vec<bool>);

    impl Load for Loads {
        fn active(&self, index: usize) -> u32 {
            self.0[index]
        }
        fn ejected(&self, index: usize) -> bool {
            self.1[index]
        }
    }

    fn set(priorities: &[u32], balance: Balance) -> HostSet {
        let localities = priorities.iter().enumerate().map(|(n, priority)| {
            let last = u8::try_from(n).expect("few endpoints") + 1;
            let endpoint = Arc::new(Endpoint::at(([127, 0, 0, last], 80).into()));
            Locality { priority: *priority, endpoints: vec![endpoint], ..Locality::default() }
        });
        HostSet::new(&Endpoints { name: "e".into(), localities: localities.collect() }, balance)
    }

    fn draw(n: u64) -> Draw {
        Draw { random: n.wrapping_mul(0x9E37_79B9_7F4A_7C15), turn: n, hash: Some(hash(&n.to_le_bytes())) }
    }

    #[test]
    fn every_endpoint_is_reached_by_every_policy() {
        for balance in [
            Balance::LeastRequest,
            Balance::RoundRobin,
            Balance::Random,
            Balance::RingHash { minimum: 1024 },
            Balance::Maglev { size: 65_537 },
        ] {
            let set = set(&[0, 0, 0], balance);
            let mut seen = [0; 3];
            for n in 0..3000 {
                seen[set.pick(&Idle, 50, draw(n)).expect("a healthy endpoint")] += 1;
            }
            assert!(seen.iter().all(|count| *count > 600), "{balance:?} {seen:?}");
        }
    }

    #[test]
    fn least_request_prefers_the_idle_one_of_two() {
        let set = set(&[0, 0], Balance::LeastRequest);
        let loads = Loads(vec![5, 0], vec![false, false]);
        assert!((0..100).all(|n| set.pick(&loads, 50, draw(n)) == Some(1)));
    }

    #[test]
    fn ejected_endpoints_are_left_out_until_panic() {
        let set = set(&[0, 0], Balance::RoundRobin);
        let one_out = Loads(vec![0, 0], vec![true, false]);
        let all_out = Loads(vec![0, 0], vec![true, true]);
        assert!((0..10).all(|n| set.pick(&one_out, 0, draw(n)) == Some(1)));
        assert_eq!(set.pick(&all_out, 0, draw(1)), None);
        assert!(set.pick(&all_out, 50, draw(1)).is_some(), "below the panic threshold all are used");
    }

    #[test]
    fn a_lower_priority_is_used_only_when_the_higher_is_gone() {
        let set = set(&[0, 1], Balance::Random);
        let first_out = Loads(vec![0, 0], vec![true, false]);
        assert!((0..10).all(|n| set.pick(&Idle, 0, draw(n)) == Some(0)));
        assert!((0..10).all(|n| set.pick(&first_out, 0, draw(n)) == Some(1)));
    }

    #[test]
    fn a_hash_keeps_its_endpoint_when_another_leaves() {
        let three = set(&[0, 0, 0], Balance::RingHash { minimum: 1024 });
        let last_out = Loads(vec![0; 3], vec![false, false, true]);
        for n in 0..200 {
            let before = three.pick(&Idle, 0, draw(n));
            if before != Some(2) {
                assert_eq!(three.pick(&last_out, 0, draw(n)), before, "key {n}");
            }
        }
    }
}
