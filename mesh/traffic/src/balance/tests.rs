//! Picks as tables: who gets how much, who is left out, what moves.

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

/// One endpoint for each (priority, health, weight).
fn set_of(endpoints: &[(u32, Health, u32)], balance: Balance) -> HostSet {
    let localities = endpoints.iter().enumerate().map(|(n, (priority, health, weight))| {
        let last = u8::try_from(n).expect("few endpoints") + 1;
        let at = Endpoint::at(([127, 0, 0, last], 80).into());
        let endpoint = Arc::new(Endpoint { health: *health, weight: *weight, ..at });
        Locality { priority: *priority, endpoints: vec![endpoint], ..Locality::default() }
    });
    HostSet::new(&Endpoints { name: "e".into(), localities: localities.collect() }, balance)
}

fn set(priorities: &[u32], balance: Balance) -> HostSet {
    set_of(&priorities.iter().map(|p| (*p, Health::Healthy, 1)).collect::<Vec<_>>(), balance)
}

fn draw(n: u64) -> Draw {
    let random = spread(n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    Draw { random, turn: n, hash: Some(hash(&n.to_le_bytes())) }
}

fn shares(set: &HostSet, load: &impl Load, panic: u32) -> Vec<u32> {
    let mut seen = vec![0; set.endpoints().len()];
    for n in 0..10_000 {
        if let Some(index) = set.pick(load, panic, Draw { hash: None, ..draw(n) }) {
            seen[index] += 1;
        }
    }
    seen
}

fn near(seen: &[u32], want: &[u32]) -> bool {
    seen.len() == want.len() && seen.iter().zip(want).all(|(seen, want)| seen.abs_diff(*want) <= 250)
}

const POLICIES: [Balance; 5] = [
    Balance::LeastRequest,
    Balance::RoundRobin,
    Balance::Random,
    Balance::RingHash { minimum: 8192 },
    Balance::Maglev { size: 65_537 },
];

#[test]
fn every_endpoint_is_reached_by_every_policy() {
    for balance in POLICIES {
        let set = set(&[0, 0, 0], balance);
        let mut seen = [0; 3];
        for n in 0..3000 {
            seen[set.pick(&Idle, 50, draw(n)).expect("a healthy endpoint")] += 1;
        }
        assert!(seen.iter().all(|count| *count > 600), "{balance:?} {seen:?}");
    }
}

#[test]
fn idle_endpoints_share_by_weight_under_every_policy() {
    use Health::Healthy;
    for balance in POLICIES {
        let set = set_of(&[(0, Healthy, 1), (0, Healthy, 9)], balance);
        let seen = shares(&set, &Idle, 50);
        assert!(near(&seen, &[1000, 9000]), "{balance:?} {seen:?}");
        let equal = set_of(&[(0, Healthy, 7), (0, Healthy, 7)], balance);
        assert!(near(&shares(&equal, &Idle, 50), &[5000, 5000]), "{balance:?}");
    }
}

#[test]
fn least_request_prefers_the_idle_one_of_two() {
    let set = set(&[0, 0], Balance::LeastRequest);
    let loads = Loads(vec![5, 0], vec![false, false]);
    assert!((0..100).all(|n| set.pick(&loads, 50, draw(n)) == Some(1)));
}

#[test]
fn least_request_compares_two_different_endpoints_also_when_one_is_out() {
    let set = set(&[0, 0, 0], Balance::LeastRequest);
    let loads = Loads(vec![5, 0, 0], vec![false, false, true]);
    assert!((0..100).all(|n| set.pick(&loads, 0, draw(n)) == Some(1)));
}

#[test]
fn ejected_endpoints_are_left_out_until_panic() {
    let set = set(&[0, 0], Balance::RoundRobin);
    let one_out = Loads(vec![0, 0], vec![true, false]);
    let all_out = Loads(vec![0, 0], vec![true, true]);
    assert!((0..10).all(|n| set.pick(&one_out, 0, draw(n)) == Some(1)));
    assert!((0..10).all(|n| set.pick(&one_out, 50, draw(n)) == Some(1)), "half is not below 50 %");
    assert!((0..10).any(|n| set.pick(&one_out, 51, draw(n)) == Some(0)), "half is below 51 %");
    assert_eq!(set.pick(&all_out, 0, draw(1)), None);
    assert!(set.pick(&all_out, 50, draw(1)).is_some(), "below the panic threshold all are used");
}

#[test]
fn what_is_said_of_health_is_heeded() {
    use Health::{Degraded, Draining, Healthy, Unhealthy};
    for (states, panic, want) in [
        // 140 % of three quarters is whole, so the degraded one is spared.
        (vec![Healthy, Healthy, Healthy, Degraded], 0, [3333, 3333, 3333, 0]),
        // Half: 70 points of healthy and 70 of degraded fill 100, in that order.
        (vec![Healthy, Healthy, Degraded, Degraded], 0, [3500, 3500, 1500, 1500]),
        (vec![Healthy, Draining, Unhealthy, Unhealthy], 0, [10_000, 0, 0, 0]),
        (vec![Draining, Draining, Unhealthy, Unhealthy], 0, [0, 0, 0, 0]),
        (vec![Healthy, Draining, Unhealthy, Unhealthy], 50, [2500, 2500, 2500, 2500]),
        (vec![Degraded, Degraded, Degraded, Unhealthy], 50, [3333, 3333, 3333, 0]),
    ] {
        let endpoints: Vec<_> = states.iter().map(|health| (0, *health, 1)).collect();
        let seen = shares(&set_of(&endpoints, Balance::Random), &Idle, panic);
        assert!(near(&seen, &want), "{states:?} {panic}: {seen:?}");
    }
}

#[test]
fn a_priority_that_is_not_whole_hands_on_part_of_its_load() {
    let set = set(&[0, 0, 0, 0, 1, 1], Balance::Random);
    for (out, panic, want) in [
        (0, 50, [2500, 2500, 2500, 2500, 0, 0]),
        (1, 50, [0, 3333, 3333, 3333, 0, 0]),
        // Half of the first: 70 points stay, 30 go to the second.
        (2, 50, [0, 0, 3500, 3500, 1500, 1500]),
        (3, 0, [0, 0, 0, 3500, 3250, 3250]),
        (4, 50, [0, 0, 0, 0, 5000, 5000]),
        // Nothing is left of either: all, by size.
        (6, 50, [1667, 1667, 1667, 1667, 1667, 1667]),
        (6, 0, [0; 6]),
    ] {
        let loads = Loads(vec![0; 6], (0..6).map(|n| n < out).collect());
        let seen = shares(&set, &loads, panic);
        assert!(near(&seen, &want), "{out} out, panic below {panic} %: {seen:?}");
    }
}

#[test]
fn a_lower_priority_is_used_only_when_the_higher_is_gone() {
    for balance in POLICIES {
        let set = set(&[0, 1], balance);
        let first_out = Loads(vec![0, 0], vec![true, false]);
        assert!((0..10).all(|n| set.pick(&Idle, 0, draw(n)) == Some(0)), "{balance:?}");
        assert!((0..10).all(|n| set.pick(&first_out, 0, draw(n)) == Some(1)), "{balance:?}");
    }
}

#[test]
fn a_hash_keeps_its_endpoint_when_another_leaves() {
    for balance in [Balance::RingHash { minimum: 1024 }, Balance::Maglev { size: 65_537 }] {
        let three = set(&[0, 0, 0], balance);
        let last_out = Loads(vec![0; 3], vec![false, false, true]);
        for n in 0..200 {
            let before = three.pick(&Idle, 0, draw(n));
            if before != Some(2) {
                assert_eq!(three.pick(&last_out, 0, draw(n)), before, "{balance:?} key {n}");
            }
        }
    }
}

#[test]
fn without_endpoints_nothing_is_picked() {
    for balance in POLICIES {
        assert_eq!(set(&[], balance).pick(&Idle, 50, draw(1)), None, "{balance:?}");
    }
}

/// Recorded from Envoy 1.40: the header values `key0`, `key1`, … over endpoints 127.0.0.1:29101 to 29103, by XX_HASH.
#[test]
fn keys_go_where_envoy_sends_them() {
    for (balance, weights, want) in [
        (
            Balance::RingHash { minimum: 1024 },
            [1, 1, 1],
            "0112211211102222212100222221211001121221111200011211012111201222022200022102221210110012212012211111",
        ),
        (
            Balance::RingHash { minimum: 1024 },
            [1, 2, 5],
            "1122221221102222222122222222211221121222111222012211222112222222222222222122222221121112212222212211",
        ),
        (
            Balance::Maglev { size: 65_537 },
            [1, 1, 1],
            "2100100101021221012120202102011220100101020111011202022000220011200222010121101120111021201022000021",
        ),
        (
            Balance::Maglev { size: 65_537 },
            [1, 2, 5],
            "2101122101021221222220202102212220122121120212211202222022222111220222212121102220111221221222122021",
        ),
    ] {
        let endpoints = (29_101..).zip(weights).map(|(port, weight)| {
            let at = Endpoint::at(([127, 0, 0, 1], port).into());
            Endpoint { weight, ..at }
        });
        let set = HostSet::new(&Endpoints::flat("e", endpoints.collect()), balance);
        let got: String = (0..want.len())
            .map(|n| {
                let draw = Draw { hash: Some(hash(format!("key{n}").as_bytes())), ..draw(0) };
                set.pick(&Idle, 50, draw).map_or_else(|| "-".to_owned(), |index| index.to_string())
            })
            .collect();
        assert_eq!(got, want, "{balance:?} {weights:?}");
    }
}
