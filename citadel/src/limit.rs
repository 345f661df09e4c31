//! One identity's requests do not take the authority away from the others.
//!
//! In: an identity per request. Out: go ahead, or too many.
//! Kept true: memory is bounded by the identities seen within one refill time.
//! Not here: limits on connections (`mesh_identity::grpc::Limits`).

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use mesh_identity::SpiffeId;
use tokio::time::Instant;

/// Identities remembered before full buckets are forgotten.
const SWEEP_AT: usize = 10_000;

/// A token bucket per identity.
#[derive(Debug)]
pub struct PerIdentity {
    rate: f64,
    burst: f64,
    buckets: Mutex<HashMap<SpiffeId, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl PerIdentity {
    /// `per_second` requests on average, twice as many (at least one) at once.
    pub fn new(per_second: u32) -> Self {
        let rate = f64::from(per_second.max(1));
        Self { rate, burst: rate * 2.0, buckets: Mutex::default() }
    }

    /// Whether this identity may have one more.
    pub fn allow(&self, id: &SpiffeId) -> bool {
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= SWEEP_AT && !buckets.contains_key(id) {
            let full_after = Duration::from_secs_f64(self.burst / self.rate);
            buckets.retain(|_, b| now.duration_since(b.at) < full_after);
        }
        let bucket = buckets.entry(id.clone()).or_insert(Bucket { tokens: self.burst, at: now });
        let refill = now.duration_since(bucket.at).as_secs_f64() * self.rate;
        bucket.tokens = (bucket.tokens + refill).min(self.burst);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> SpiffeId {
        format!("spiffe://td/ns/a/sa/w{n}").parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_greedy_identity_is_slowed_and_others_are_not() {
        let limit = PerIdentity::new(10);
        let granted = (0..10_000).filter(|_| limit.allow(&id(0))).count();
        assert_eq!(granted, 20, "the burst");
        assert!(limit.allow(&id(1)));
        tokio::time::advance(Duration::from_secs(1)).await;
        let granted = (0..10_000).filter(|_| limit.allow(&id(0))).count();
        assert_eq!(granted, 10, "the rate");
    }

    #[tokio::test(start_paused = true)]
    async fn identities_long_gone_are_forgotten() {
        let limit = PerIdentity::new(1);
        for n in 0..SWEEP_AT {
            assert!(limit.allow(&id(n)));
        }
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(limit.allow(&id(SWEEP_AT)));
        assert_eq!(limit.buckets.lock().unwrap().len(), 1);
    }
}
