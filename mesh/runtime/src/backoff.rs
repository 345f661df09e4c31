//! Waiting between attempts, and saying once that something cannot be reached.
//!
//! In: failures and successes of one dependency. Out: how long to wait; one log line per outage.
//! Kept true: waits are drawn from the whole range (full jitter), so that many clients do not return together.
//! Not here: what is retried, and retries of user requests (the proxy's own, with budgets).

use std::{fmt, time::Duration};

use rand::Rng;
use tokio::time::Instant;

/// Exponential backoff with full jitter between two bounds.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    ceiling: Duration,
}

impl Backoff {
    /// Waits are at least `min`, and at most `max` after enough failures; `max` below `min` is taken as `min`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max: max.max(min), ceiling: min }
    }

    /// The wait before the next attempt: anywhere between `min` and a ceiling that doubles with every call.
    pub fn next_wait(&mut self) -> Duration {
        let ceiling = self.ceiling.saturating_mul(2).min(self.max);
        self.ceiling = ceiling;
        if ceiling <= self.min { self.min } else { rand::rng().random_range(self.min..=ceiling) }
    }

    /// Sleeps for [`Self::next_wait`]. Cancel safe; a cancelled sleep has counted as a failure.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_wait()).await;
    }

    /// Back to the shortest waits, after a success.
    pub fn reset(&mut self) {
        self.ceiling = self.min;
    }
}

impl Default for Backoff {
    /// 100 ms to 15 s: right for a connection to another part of the control plane.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(15))
    }
}

/// The voice of one dependency: a warning when it is lost, one line when it is back, silence in between.
#[derive(Debug)]
pub struct Outage {
    what: String,
    since: Option<Instant>,
    failures: u64,
    said: String,
}

impl Outage {
    /// `what` is named in the log, such as `citadel at 127.0.0.1:8060`.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), since: None, failures: 0, said: String::new() }
    }

    /// Notes a failure. Logged as a warning when it is the first, or says something new; otherwise at debug level.
    /// True when it was logged as a warning.
    pub fn failed(&mut self, error: &dyn fmt::Display) -> bool {
        let text = error.to_string();
        self.failures += 1;
        self.since.get_or_insert_with(Instant::now);
        let news = text != self.said;
        if news {
            tracing::warn!("{}: {text}; will keep trying", self.what);
            self.said = text;
        } else {
            tracing::debug!(failures = self.failures, "{}: {text}", self.what);
        }
        news
    }

    /// Notes a success; logs the end of the outage if there was one.
    pub fn recovered(&mut self) {
        if let Some(since) = self.since.take() {
            let seconds = since.elapsed().as_secs();
            tracing::info!(failures = self.failures, seconds, "{}: works again", self.what);
        }
        self.failures = 0;
        self.said.clear();
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// True between a failure and the next success.
    pub fn is_out(&self) -> bool {
        self.since.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_within_a_ceiling_that_doubles_up_to_the_maximum() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(2));
        let mut backoff = Backoff::new(min, max);
        for ceiling in [200, 400, 800, 1600, 2000, 2000] {
            let wait = backoff.next_wait();
            assert!(wait >= min && wait <= Duration::from_millis(ceiling), "{wait:?} for {ceiling} ms");
        }
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(200));
    }

    #[test]
    fn a_maximum_below_the_minimum_is_the_minimum() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::ZERO);
        assert_eq!(backoff.next_wait(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_said_once_until_it_changes_or_ends() {
        let mut outage = Outage::new("citadel");
        let said: Vec<bool> =
            ["refused", "refused", "timeout", "timeout"].map(|e| outage.failed(&e)).to_vec();
        assert_eq!(said, [true, false, true, false]);
        assert_eq!(outage.failures(), 4);
        outage.recovered();
        assert!(!outage.is_out());
        assert!(outage.failed(&"timeout"), "a new outage is said again");
    }
}
