//! Picking an endpoint: pure functions over a compiled host set and a random draw.
//!
//! In: [`Endpoints`], which of them are out, loads in flight, a hash or a draw. Out: the index of an endpoint. Kept true: a
//! host set is compiled once per endpoint change; a pick does not allocate for up to four priorities. Not here: counting loads and
//! ejections (`proxy`).

mod table;
mod xxh64;

use std::{ops::Range, sync::Arc};

use smallvec::SmallVec;

use crate::{
    cluster::Balance,
    endpoint::{Endpoint, Endpoints, Health},
};
use table::Table;
pub use table::{MAX_MAGLEV, MAX_RING};

/// The endpoints of a cluster, prepared for picking.
#[derive(Debug, Clone)]
pub struct HostSet {
    endpoints: Vec<Arc<Endpoint>>,
    /// Priorities that have endpoints, the most wanted first.
    levels: Vec<Level>,
    balance: Balance,
}

/// The endpoints of one priority.
#[derive(Debug, Clone)]
struct Level {
    range: Range<usize>,
    /// Endpoints by what was said of their health, when none is ejected.
    said: Counts,
    weighted: bool,
    table: Option<Table>,
}

/// How many endpoints of a level are in which state.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    total: usize,
    healthy: usize,
    degraded: usize,
}

/// Which endpoints of a level a pick is made among.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Among {
    Healthy,
    Degraded,
    /// Panic: too few may be used, so all are.
    All,
}

/// What the caller knows of the endpoints right now.
pub trait Load {
    /// Requests in flight to endpoint `index`.
    fn active(&self, index: usize) -> u32;
    /// True while endpoint `index` is ejected.
    fn ejected(&self, index: usize) -> bool;
    /// False when surely none is ejected: a pick then looks at the endpoints it draws only.
    fn any_ejected(&self) -> bool {
        true
    }
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
    fn any_ejected(&self) -> bool {
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

/// A priority counts as whole while this many percent times its usable share reach 100 (Envoy's overprovisioning factor).
const OVERPROVISIONED: usize = 140;

impl HostSet {
    /// Prepares endpoints for picking.
    #[must_use]
    pub fn new(endpoints: &Endpoints, balance: Balance) -> Self {
        let mut localities: Vec<_> =
            endpoints.localities.iter().filter(|l| !l.endpoints.is_empty()).collect();
        localities.sort_by_key(|locality| locality.priority);
        let mut set = Self { endpoints: Vec::new(), levels: Vec::new(), balance };
        for same in localities.chunk_by(|a, b| a.priority == b.priority) {
            let start = set.endpoints.len();
            set.endpoints.extend(same.iter().flat_map(|locality| &locality.endpoints).cloned());
            let level = Level::new(start, &set.endpoints[start..], balance);
            set.levels.push(level);
        }
        set
    }

    /// The endpoints, in the order that indexes refer to.
    #[must_use]
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// Picks an endpoint, `None` when none may be used. `panic_percent`: when a smaller share of a priority's endpoints
    /// is usable, all of them are (0 never).
    ///
    /// As in Envoy, a priority that is not whole any more hands part of its load to the next one.
    #[must_use]
    pub fn pick(&self, load: &impl Load, panic_percent: u32, draw: Draw) -> Option<usize> {
        let quiet = !load.any_ejected();
        let panic = usize::try_from(panic_percent).unwrap_or(100).min(100);
        let (level, among) = match &self.levels[..] {
            [] => return None,
            [only] if quiet && only.said.healthy == only.said.total => (only, Among::Healthy),
            levels => {
                let counts: SmallVec<[Counts; 4]> =
                    levels.iter().map(|level| self.count(level, load, quiet)).collect();
                let (index, among) = choose(&counts, panic, draw.hash.unwrap_or(spread(draw.random)))?;
                (&levels[index], among)
            }
        };
        let counts = self.count(level, load, quiet);
        self.pick_in(level, among, counts, load, draw)
    }

    fn class(&self, index: usize, load: &impl Load) -> Option<Among> {
        match self.endpoints[index].health {
            Health::Healthy if !load.ejected(index) => Some(Among::Healthy),
            Health::Degraded if !load.ejected(index) => Some(Among::Degraded),
            Health::Healthy | Health::Degraded | Health::Draining | Health::Unhealthy => None,
        }
    }

    fn count(&self, level: &Level, load: &impl Load, quiet: bool) -> Counts {
        if quiet {
            return level.said;
        }
        let mut counts = Counts { total: level.range.len(), ..Counts::default() };
        for index in level.range.clone() {
            match self.class(index, load) {
                Some(Among::Healthy) => counts.healthy += 1,
                Some(Among::Degraded) => counts.degraded += 1,
                Some(Among::All) | None => {}
            }
        }
        counts
    }

    fn pick_in(
        &self,
        level: &Level,
        among: Among,
        counts: Counts,
        load: &impl Load,
        draw: Draw,
    ) -> Option<usize> {
        let (from, all) = (level.range.start, among == Among::All);
        let usable = |index: usize| all || self.class(index, load) == Some(among);
        let count = match among {
            Among::Healthy => counts.healthy,
            Among::Degraded => counts.degraded,
            Among::All => counts.total,
        };
        let nth = |n: usize| match count == counts.total {
            true => Some(from + n),
            false => level.range.clone().filter(|index| usable(*index)).nth(n),
        };
        let by_weight = |number: u64| {
            let weight = |index: &usize| u64::from(self.endpoints[*index].weight.max(1));
            let usable = || level.range.clone().filter(|index| usable(*index));
            let mut left = number.checked_rem(usable().map(|i| weight(&i)).sum())?;
            usable().find(|index| match left.checked_sub(weight(index)) {
                None => true,
                Some(rest) => {
                    left = rest;
                    false
                }
            })
        };
        if let (Some(table), Some(key)) = (&level.table, draw.hash) {
            return Some(from + table.owner(key, |index| usable(from + index))?);
        }
        match self.balance {
            Balance::LeastRequest if count > 1 && level.weighted => {
                // Drawn by weight, so that idle endpoints share by weight; then the one with less to do for its weight.
                let (first, second) = (by_weight(draw.random)?, by_weight(spread(draw.random))?);
                let other = |a: usize, b: usize| {
                    u64::from(load.active(a)) * u64::from(self.endpoints[b].weight.max(1))
                };
                Some(if other(second, first) < other(first, second) { second } else { first })
            }
            Balance::LeastRequest if count > 1 => {
                let (first, mut other) = (below(draw.random, count), below(draw.random >> 32, count - 1));
                if other >= first {
                    other += 1;
                }
                let (first, second) = (nth(first)?, nth(other)?);
                Some(if load.active(second) < load.active(first) { second } else { first })
            }
            Balance::RoundRobin if level.weighted => by_weight(draw.turn),
            Balance::RoundRobin => nth(below(draw.turn, count)),
            _ if level.weighted => by_weight(draw.random),
            _ => nth(below(draw.random, count)),
        }
    }
}

impl Level {
    fn new(start: usize, endpoints: &[Arc<Endpoint>], balance: Balance) -> Self {
        let with = |health: Health| endpoints.iter().filter(|e| e.health == health).count();
        let said = Counts {
            total: endpoints.len(),
            healthy: with(Health::Healthy),
            degraded: with(Health::Degraded),
        };
        let hashes = matches!(balance, Balance::RingHash { .. } | Balance::Maglev { .. });
        let named = endpoints.iter().map(|e| (e.address.to_string(), e.weight));
        let table = hashes.then(|| Table::new(balance, &named.collect::<Vec<_>>())).flatten();
        let weighted = endpoints.windows(2).any(|pair| pair[0].weight.max(1) != pair[1].weight.max(1));
        Self { range: start..start + endpoints.len(), said, weighted, table }
    }
}

/// Which priority takes a request, and among which of its endpoints. The healthy of all priorities come before the degraded of any.
fn choose(counts: &[Counts], panic: usize, random: u64) -> Option<(usize, Among)> {
    let share = |part: usize, total: usize| (OVERPROVISIONED * part).checked_div(total).unwrap_or(0).min(100);
    let whole: usize = counts.iter().map(|c| share(c.healthy, c.total) + share(c.degraded, c.total)).sum();
    let whole = whole.min(100);
    let panics = |c: &Counts| whole < 100 && c.total > 0 && 100 * (c.healthy + c.degraded) < panic * c.total;
    if counts.iter().all(panics) {
        // Everywhere too few: by size, whatever their state.
        let total: usize = counts.iter().map(|c| c.total).sum();
        let mut left = below(random, total);
        let level = counts.iter().position(|c| match left.checked_sub(c.total) {
            None => true,
            Some(rest) => {
                left = rest;
                false
            }
        });
        return level.map(|level| (level, Among::All));
    }
    if whole == 0 {
        return None;
    }
    let point = below(random, 100);
    let parts = (0..).zip(counts).map(|(i, c)| (i, Among::Healthy, share(c.healthy, c.total)));
    let parts = parts.chain((0..).zip(counts).map(|(i, c)| (i, Among::Degraded, share(c.degraded, c.total))));
    let (mut reached, mut last) = (0, None);
    for (level, among, part) in parts.filter(|(_, _, part)| *part > 0) {
        last = Some((level, among));
        reached += part * 100 / whole;
        if point < reached {
            break;
        }
    }
    let (level, among) = last?;
    Some((level, if panics(&counts[level]) { Among::All } else { among }))
}

fn below(number: u64, limit: usize) -> usize {
    let limit = u64::try_from(limit).unwrap_or(u64::MAX).max(1);
    usize::try_from(number % limit).unwrap_or(0)
}

/// Another number from a random one (splitmix64's finish), for a second draw that does not follow the first.
fn spread(random: u64) -> u64 {
    let z = (random ^ (random >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The hash of a consistent-hash key: XXH64, the same in every process and as Envoy computes it.
#[must_use]
pub fn hash(key: &[u8]) -> u64 {
    xxh64::xxh64(key, 0)
}

#[cfg(test)]
mod tests;
