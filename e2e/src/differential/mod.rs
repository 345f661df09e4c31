//! Envoy as oracle: one pilot drives a real Envoy and our proxy, the same requests go through both, the answers must agree.
//!
//! In: [`cases`] (Istio YAML plus requests, as data). Out: a list of [`Difference`]s; the written exceptions are in [`compare`].
//! Kept true: a case has its own service, so all cases are configured at once and none waits for another's push.
//! Not here: judging Istio's semantics from the outside (`scenarios`); here only "the same as Envoy" counts.

pub mod cases;
pub mod compare;
pub mod mesh;
pub mod send;
pub mod upstream;

pub use compare::{Difference, Seen};

use std::collections::BTreeMap;

/// One service with its configuration, and what is asked of it.
#[derive(Debug, Clone)]
pub struct Case {
    /// Unique; becomes the service's name, so lower-case letters, digits and dashes.
    pub name: String,
    /// The row of the behaviour tables that this case belongs to, e.g. `retries`.
    pub row: &'static str,
    /// Documents to apply. `HOST` stands for the service's name.
    pub yaml: String,
    /// The pods behind the service.
    pub pods: &'static [upstream::Pod],
    /// Requests, in order.
    pub probes: Vec<Probe>,
}

/// One request, maybe repeated.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Method, e.g. `GET`.
    pub method: &'static str,
    /// Path and query.
    pub path: String,
    /// Request headers besides Host and the request id.
    pub headers: Vec<(String, String)>,
    /// How many times; with more than one, the shares are compared instead of the single answers.
    pub times: usize,
    /// How many of them at once.
    pub at_once: usize,
    /// Sent to the proxy's own inbound port, as a client of its pod does, instead of through it to the case's service.
    pub inbound: bool,
}

impl Probe {
    /// A GET sent once.
    #[must_use]
    pub fn get(path: &str) -> Self {
        Self {
            method: "GET",
            path: path.to_owned(),
            headers: Vec::new(),
            times: 1,
            at_once: 1,
            inbound: false,
        }
    }

    /// The same with one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same with another method.
    #[must_use]
    pub fn method(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }

    /// The same to the proxy's own pod.
    #[must_use]
    pub fn inbound(mut self) -> Self {
        self.inbound = true;
        self
    }

    /// Sent `times` times, `at_once` of them in flight together.
    #[must_use]
    pub fn times(mut self, times: usize, at_once: usize) -> Self {
        (self.times, self.at_once) = (times, at_once);
        self
    }
}

/// What one run of the whole list gave.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Distinct (configuration, request) pairs that both proxies answered.
    pub pairs: usize,
    /// Requests sent, to both proxies together.
    pub requests: usize,
    /// Pairs per row.
    pub rows: BTreeMap<&'static str, usize>,
    /// Response flags seen on Envoy and on ours.
    pub flags: BTreeMap<String, (usize, usize)>,
    /// What did not agree.
    pub differences: Vec<Difference>,
}

impl Outcome {
    /// A few lines for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut text = format!(
            "{} pairs, {} requests, {} differences\n",
            self.pairs,
            self.requests,
            self.differences.len()
        );
        for (row, pairs) in &self.rows {
            text.push_str(&format!("  {row:<28} {pairs:>4} pairs\n"));
        }
        for (flag, (envoy, ours)) in &self.flags {
            text.push_str(&format!("  flag {flag:<6} envoy {envoy:>5}  crema {ours:>5}\n"));
        }
        for difference in &self.differences {
            text.push_str(&format!("  {difference}\n"));
        }
        text
    }
}

/// Sends every probe of `cases` through both proxies of a running [`mesh::Pair`] and compares.
///
/// # Errors
/// When a proxy cannot be reached at all; a wrong answer is a [`Difference`], not an error.
pub async fn run(pair: &mesh::Pair, cases: &[Case]) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    for case in cases {
        for (index, probe) in case.probes.iter().enumerate() {
            // One proxy after the other: the upstreams count per request id, and limits are per proxy.
            let envoy = send::probe(&pair.envoy, case, probe).await?;
            let ours = send::probe(&pair.crema, case, probe).await?;
            outcome.pairs += 1;
            outcome.requests += 2 * probe.times;
            *outcome.rows.entry(case.row).or_default() += 1;
            for seen in &envoy {
                outcome.flags.entry(seen.flags.clone()).or_default().0 += 1;
            }
            for seen in &ours {
                outcome.flags.entry(seen.flags.clone()).or_default().1 += 1;
            }
            outcome.differences.extend(compare::compare(case, index, &envoy, &ours));
        }
    }
    Ok(outcome)
}
