//! Consistent hashing: which endpoint owns a key.
//!
//! In: endpoints with weights. Out: a ring (ketama) or a Maglev table, built as Envoy builds them. Kept true: a key keeps its endpoint while that
//! one may be used, whatever happens to the others. Not here: which endpoints may be used (`super`).

use super::xxh64::xxh64;
use crate::cluster::Balance;

/// Largest ring that may be asked for: Envoy's limit.
pub const MAX_RING: u64 = 8_388_608;
/// Largest Maglev table that may be asked for: Envoy's limit.
pub const MAX_MAGLEV: u64 = 5_000_011;

/// Who owns which keys, among the endpoints of one priority.
#[derive(Debug, Clone)]
pub(super) enum Table {
    /// Places on a ring: (place, endpoint), sorted.
    Ring(Vec<(u64, u32)>),
    /// An endpoint for each slot.
    Maglev(Vec<u32>),
}

impl Table {
    /// A table for endpoints by address and weight; `None` when the policy does not hash, or there are none.
    pub(super) fn new(balance: Balance, hosts: &[(String, u32)]) -> Option<Self> {
        if hosts.is_empty() {
            return None;
        }
        match balance {
            Balance::RingHash { minimum } => Some(ring(hosts, minimum)),
            Balance::Maglev { size } => Some(maglev(hosts, size)),
            _ => None,
        }
    }

    /// The endpoint of a key: the first from the key's place on that may be used.
    pub(super) fn owner(&self, key: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let index = |index: &u32| usize::try_from(*index).ok().filter(|index| usable(*index));
        match self {
            Self::Ring(places) => {
                let start = places.partition_point(|(place, _)| *place < key);
                let (before, after) = places.split_at(start);
                after.iter().chain(before).find_map(|(_, host)| index(host))
            }
            Self::Maglev(slots) => {
                let size = u64::try_from(slots.len()).ok()?;
                let start = usize::try_from(key.checked_rem(size)?).ok()?;
                let (before, after) = slots.split_at(start);
                after.iter().chain(before).find_map(index)
            }
        }
    }
}

/// As many places as the smallest weight needs for a ring of `minimum` places, in proportion to the weights.
fn ring(hosts: &[(String, u32)], minimum: u64) -> Table {
    let weights: Vec<f64> = normalized(hosts);
    let least = weights.iter().copied().fold(f64::INFINITY, f64::min);
    let number = |places: u64| f64::from(u32::try_from(places).unwrap_or(u32::MAX));
    let (minimum, most) = (number(minimum.clamp(1, MAX_RING)), number(MAX_RING));
    let scale = ((least * minimum).ceil() / least).min(most);
    let (mut places, mut placed, mut target) = (Vec::new(), 0.0, 0.0);
    for ((address, _), (weight, index)) in hosts.iter().zip(weights.iter().zip(0_u32..)) {
        target += scale * weight;
        let mut copy = 0_u32;
        while placed < target {
            places.push((xxh64(format!("{address}_{copy}").as_bytes(), 0), index));
            copy += 1;
            placed += 1.0;
        }
    }
    places.sort_unstable();
    Table::Ring(places)
}

fn normalized(hosts: &[(String, u32)]) -> Vec<f64> {
    let total: f64 = hosts.iter().map(|(_, weight)| f64::from((*weight).max(1))).sum();
    hosts.iter().map(|(_, weight)| f64::from((*weight).max(1)) / total).collect()
}

struct Entry {
    index: u32,
    offset: u64,
    skip: u64,
    weight: f64,
    target: f64,
    next: u64,
}

/// Every endpoint claims slots in an order of its own, in turn; a lighter one sits out some turns (Maglev paper, listing 1, with weights).
fn maglev(hosts: &[(String, u32)], size: u64) -> Table {
    let size = size.clamp(2, MAX_MAGLEV);
    let weights = normalized(hosts);
    let most = weights.iter().copied().fold(0.0, f64::max);
    let mut entries: Vec<Entry> = hosts
        .iter()
        .zip(weights.iter().zip(0_u32..))
        .map(|((address, _), (weight, index))| Entry {
            index,
            offset: xxh64(address.as_bytes(), 0) % size,
            skip: xxh64(address.as_bytes(), 1) % (size - 1) + 1,
            weight: *weight,
            target: 0.0,
            next: 0,
        })
        .collect();
    let mut slots: Vec<Option<u32>> = (0..size).map(|_| None).collect();
    let (mut left, mut turn) = (size, 1.0);
    while left > 0 {
        for entry in &mut entries {
            if turn * entry.weight < entry.target || left == 0 {
                continue;
            }
            entry.target += most;
            // A size that is no prime may never reach some slots by skipping: after one round, any free slot will do.
            while entry.next < size && slot(&slots, entry, size).is_some() {
                entry.next += 1;
            }
            let at = match entry.next < size {
                true => usize::try_from(place(entry, size)).ok(),
                false => slots.iter().position(Option::is_none),
            };
            if let Some(free) = at.and_then(|at| slots.get_mut(at)) {
                *free = Some(entry.index);
                left -= 1;
            }
            entry.next += 1;
        }
        turn += 1.0;
    }
    Table::Maglev(slots.into_iter().flatten().collect())
}

fn place(entry: &Entry, size: u64) -> u64 {
    (entry.offset + entry.skip * entry.next) % size
}

fn slot(slots: &[Option<u32>], entry: &Entry, size: u64) -> Option<u32> {
    usize::try_from(place(entry, size)).ok().and_then(|at| slots.get(at).copied().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(weights: &[u32]) -> Vec<(String, u32)> {
        weights.iter().enumerate().map(|(n, weight)| (format!("10.0.0.{n}:80"), *weight)).collect()
    }

    fn shares(table: &Table, hosts: usize) -> Vec<u32> {
        let mut seen = vec![0; hosts];
        for key in 0..10_000_u64 {
            seen[table.owner(xxh64(&key.to_le_bytes(), 0), |_| true).expect("an owner")] += 1;
        }
        seen
    }

    #[test]
    fn keys_spread_by_weight() {
        for balance in [Balance::RingHash { minimum: 8192 }, Balance::Maglev { size: 65_537 }] {
            for weights in [vec![1, 1, 1], vec![1, 3], vec![100, 100], vec![1]] {
                let table = Table::new(balance, &hosts(&weights)).expect("a table");
                let seen = shares(&table, weights.len());
                let total: u32 = weights.iter().sum();
                for (seen, weight) in seen.iter().zip(&weights) {
                    let want = f64::from(10_000 * weight) / f64::from(total);
                    let off = (f64::from(*seen) - want).abs() / want;
                    assert!(off < 0.15, "{balance:?} {weights:?}: {seen} is far from {want}");
                }
            }
        }
    }

    #[test]
    fn only_the_keys_of_an_endpoint_that_is_out_move() {
        for balance in [Balance::RingHash { minimum: 1024 }, Balance::Maglev { size: 65_537 }] {
            let table = Table::new(balance, &hosts(&[1, 1, 1])).expect("a table");
            for key in (0..500_u64).map(|key| xxh64(&key.to_le_bytes(), 0)) {
                let before = table.owner(key, |_| true);
                let after = table.owner(key, |host| host != 2);
                assert!(after != Some(2) && (before == Some(2) || before == after), "{balance:?} key {key}");
                assert_eq!(table.owner(key, |_| false), None);
            }
        }
    }

    #[test]
    fn sizes_out_of_range_still_end() {
        for size in [0, 1, 2, 4, 100] {
            let table = Table::new(Balance::Maglev { size }, &hosts(&[1, 1])).expect("a table");
            assert!(table.owner(7, |_| true).is_some(), "{size}");
        }
        for minimum in [0, 1] {
            let table = Table::new(Balance::RingHash { minimum }, &hosts(&[1, 1, 7])).expect("a table");
            assert!(table.owner(7, |_| true).is_some(), "{minimum}");
        }
    }
}
