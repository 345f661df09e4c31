//! Outlier ejection: an endpoint that fails again and again is left out for a while, whichever worker saw it fail.
//!
//! In: how each try ended, the time. Out: whether an endpoint is out now. Kept true: an endpoint comes back at the first sweep after its
//! time is over, by arithmetic alone: no task sweeps. Not here: picking (`mesh_traffic::balance`).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use mesh_traffic::{cluster::Outlier, endpoint::Address};

/// How one try ended, as far as ejection cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// An answer with this status.
    Status(u16),
    /// No connection, a timeout or a reset: seen by us, not said by the endpoint.
    Local,
}

/// What is known of one endpoint, over all workers.
#[derive(Debug, Default)]
pub struct Record {
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
    /// Milliseconds since the detector began at which it comes back; 0 while it was never out.
    back_at: AtomicU64,
    /// How often it was ejected, less one for each quiet interval since.
    times: AtomicU32,
    /// Connections, for limits on them.
    pub connections: Arc<AtomicU32>,
}

impl Record {
    /// True while the endpoint is out, `now` in milliseconds since the detector began.
    #[must_use]
    pub fn ejected(&self, now: u64) -> bool {
        now < self.back_at.load(Ordering::Acquire)
    }
}

/// The endpoints of one cluster.
#[derive(Debug, Default)]
pub struct Detector {
    settings: Option<Outlier>,
    records: Mutex<HashMap<Address, Arc<Record>>>,
}

impl Detector {
    /// With these settings; `None` never ejects.
    #[must_use]
    pub fn new(settings: Option<Outlier>) -> Self {
        Self { settings, records: Mutex::default() }
    }

    /// True when endpoints can be ejected.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.settings.is_some()
    }

    /// The record of an endpoint; the same for every worker.
    #[must_use]
    pub fn record(&self, address: &Address) -> Arc<Record> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(records.entry(address.clone()).or_default())
    }

    /// Forgets endpoints that have gone.
    pub fn keep(&self, stays: impl Fn(&Address) -> bool) {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.retain(|address, record| stays(address) || Arc::strong_count(record) > 1);
    }

    /// Takes note of a try. True when it ejected the endpoint. `total`: endpoints of the cluster.
    pub fn note(&self, record: &Record, sign: Sign, now: u64, total: usize) -> bool {
        let Some(settings) = &self.settings else { return false };
        let bad_gateway = matches!(sign, Sign::Status(502..=504));
        let bad = matches!(sign, Sign::Status(500..));
        let split = settings.split_local && sign == Sign::Local;
        let count = |counter: &AtomicU32, failed: bool, limit: Option<u32>| {
            if !failed {
                if counter.load(Ordering::Relaxed) != 0 {
                    counter.store(0, Ordering::Relaxed);
                }
                return false;
            }
            let seen = counter.fetch_add(1, Ordering::AcqRel) + 1;
            limit.is_some_and(|limit| limit > 0 && seen >= limit)
        };
        let due = if split {
            count(&record.consecutive_local, true, settings.consecutive_local)
        } else {
            let local = sign == Sign::Local;
            if settings.split_local {
                count(&record.consecutive_local, false, None);
            }
            // Both are counted, so no short-circuit.
            count(&record.consecutive_5xx, bad || local, settings.consecutive_5xx)
                | count(&record.consecutive_gateway, bad_gateway || local, settings.consecutive_gateway)
        };
        due && self.eject(settings, record, now, total)
    }

    fn eject(&self, settings: &Outlier, record: &Record, now: u64, total: usize) -> bool {
        // Ejections are rare and must agree on the share that is out: one at a time.
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if record.ejected(now) {
            return false;
        }
        let out = records.values().filter(|record| record.ejected(now)).count();
        let percent = usize::try_from(settings.max_percent).unwrap_or(100);
        if out > 0 && out * 100 >= percent * total.max(1) {
            return false;
        }
        let interval = millis(settings.interval).max(1);
        let quiet = now.saturating_sub(record.back_at.load(Ordering::Acquire)) / interval;
        let times = record.times.load(Ordering::Acquire);
        let times = times.saturating_sub(u32::try_from(quiet).unwrap_or(u32::MAX)).saturating_add(1);
        record.times.store(times, Ordering::Release);
        let longest = settings.max_ejection.max(settings.base_ejection);
        let stays = millis(settings.base_ejection.saturating_mul(times).min(longest));
        // The sweep that finds its time over lets it back in.
        let back_at = now.saturating_add(stays).div_ceil(interval).saturating_mul(interval);
        record.back_at.store(back_at.max(1), Ordering::Release);
        for counter in [&record.consecutive_5xx, &record.consecutive_gateway, &record.consecutive_local] {
            counter.store(0, Ordering::Release);
        }
        true
    }

    /// How many endpoints are out.
    #[must_use]
    pub fn out(&self, now: u64) -> usize {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.values().filter(|record| record.ejected(now)).count()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Address {
        Address::Ip(([127, 0, 0, last], 80).into())
    }

    /// What the Espresso Shop's circuit breaker asks for.
    fn gateway_errors() -> Outlier {
        Outlier {
            consecutive_5xx: None,
            consecutive_gateway: Some(2),
            interval: Duration::from_secs(1),
            base_ejection: Duration::from_secs(180),
            max_ejection: Duration::from_secs(3600),
            max_percent: 100,
            ..Outlier::default()
        }
    }

    #[test]
    fn consecutive_gateway_errors_eject_and_a_success_starts_the_count_anew() {
        let detector = Detector::new(Some(gateway_errors()));
        let record = detector.record(&address(1));
        for (status, want) in
            [(503, false), (200, false), (502, false), (500, false), (504, false), (503, true)]
        {
            assert_eq!(detector.note(&record, Sign::Status(status), 500, 1), want, "{status}");
        }
        assert!(record.ejected(180_000) && !record.ejected(181_000), "back at the sweep after 180.5 s");
    }

    #[test]
    fn each_ejection_lasts_longer_and_quiet_intervals_forgive() {
        let detector = Detector::new(Some(gateway_errors()));
        let record = detector.record(&address(1));
        let eject = |now| {
            detector.note(&record, Sign::Local, now, 1);
            assert!(detector.note(&record, Sign::Local, now, 1), "ejected at {now}");
            record.back_at.load(Ordering::Acquire) - now
        };
        assert_eq!(eject(0), 180_000);
        assert_eq!(eject(180_000), 360_000, "at once again: twice as long");
        assert_eq!(eject(540_000 + 60_000), 180_000, "a quiet minute: as the first time");
    }

    #[test]
    fn no_more_than_the_allowed_share_is_out_but_one_always_may_be() {
        for (percent, total, want) in [(10, 2, 1), (50, 4, 2), (100, 3, 3), (0, 3, 1)] {
            let settings = Outlier { max_percent: percent, ..gateway_errors() };
            let detector = Detector::new(Some(settings));
            for last in 0..total {
                let record = detector.record(&address(last));
                (0..2).for_each(|_| {
                    detector.note(&record, Sign::Local, 10, usize::from(total));
                });
            }
            assert_eq!(detector.out(11), want, "{percent} % of {total}");
        }
    }

    #[test]
    fn local_failures_can_be_counted_apart() {
        let settings = Outlier { split_local: true, consecutive_local: Some(1), ..gateway_errors() };
        let detector = Detector::new(Some(settings));
        let record = detector.record(&address(1));
        assert!(!detector.note(&record, Sign::Status(503), 0, 1));
        assert!(detector.note(&record, Sign::Local, 0, 1));
    }

    #[test]
    fn workers_share_one_count() {
        let detector = Arc::new(Detector::new(Some(gateway_errors())));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let detector = Arc::clone(&detector);
                std::thread::spawn(move || {
                    detector.note(&detector.record(&address(1)), Sign::Status(503), 5, 2)
                })
            })
            .collect();
        let ejected =
            threads.into_iter().filter(|_| true).map(|t| t.join().expect("no panic")).filter(|e| *e);
        assert_eq!(ejected.count(), 1, "two failures on two workers are two in a row");
    }
}
