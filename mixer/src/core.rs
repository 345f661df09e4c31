//! The core that every server shares: the current generation and what is counted.
//!
//! In: bags from `ingest`. Out: reports handed out, verdicts.
//! Kept true: one call sees one generation from start to end. Not here: protocols (`ingest`), rules (`dispatch`).

use std::sync::Arc;

use arc_swap::ArcSwap;
use mesh_config::Snapshot;
use tokio_util::sync::CancellationToken;

use crate::{
    adapters::{Shared, item::QuotaResult},
    attributes::Bag,
    config::{self, Generation, Options},
    dispatch::{self, Counters, Feed, Verdict},
    ingest::native::Proxies,
    join,
    lang::References,
    recorder::Recorder,
};

/// Mixer itself. Cheap to share; every method returns without waiting.
#[derive(Debug)]
pub struct Mixer {
    current: ArcSwap<Generation>,
    options: Options,
    shared: Shared,
    /// What dispatching counts.
    pub counters: Counters,
    /// The built-in recorder.
    pub recorder: Recorder,
    /// What is known of connected proxies.
    pub proxies: Proxies,
    /// Cancelled when the process is asked to stop: streams that never end by themselves end then.
    pub stop: CancellationToken,
}

impl Mixer {
    /// Starts with `snapshot`. Needs a runtime, since handlers are tasks.
    #[must_use]
    pub fn new(snapshot: &Snapshot, options: Options) -> Arc<Self> {
        let shared = Shared::default();
        let first = config::compile(snapshot, &options, &shared, None);
        say(&first, None);
        Arc::new(Self {
            current: ArcSwap::from_pointee(first),
            options,
            shared,
            counters: Counters::default(),
            recorder: Recorder::default(),
            proxies: Proxies::default(),
            stop: CancellationToken::new(),
        })
    }

    /// Takes other Pods under the same configuration. Only one task may call this or [`Mixer::replace`].
    pub fn rejoin(&self, snapshot: &Snapshot) {
        let next = config::rejoin(snapshot, &self.current.load());
        self.current.store(Arc::new(next));
    }

    /// Replaces the configuration. Only one task may call this.
    pub fn replace(&self, snapshot: &Snapshot) {
        let before = self.current.load_full();
        let next = config::compile(snapshot, &self.options, &self.shared, Some(&before));
        say(&next, Some(&before));
        self.current.store(Arc::new(next));
    }

    /// The configuration in force.
    #[must_use]
    pub fn generation(&self) -> Arc<Generation> {
        self.current.load_full()
    }

    /// What handlers share.
    #[must_use]
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Joins and hands out a report; `false` if an instance had to be dropped. The joined bag is given back.
    pub fn report(&self, generation: &Generation, mut bag: Bag, feed: Feed) -> (Bag, bool) {
        self.complete(generation, &mut bag);
        let sound = dispatch::report(generation, &bag, feed, &self.counters, &self.recorder);
        (bag, sound)
    }

    /// Joins, and answers a check.
    pub fn check(&self, generation: &Generation, bag: &mut Bag) -> Verdict {
        self.complete(generation, bag);
        dispatch::check(generation, bag, &self.counters)
    }

    /// Answers a quota request for a bag that [`Mixer::check`] has joined.
    pub fn quota(
        &self,
        generation: &Generation,
        bag: &Bag,
        name: &str,
        amount: i64,
        best_effort: bool,
        id: &str,
    ) -> (QuotaResult, References) {
        dispatch::quota(generation, bag, name, amount, best_effort, id, &self.counters)
    }

    /// Mixer's own counters as Prometheus text.
    #[must_use]
    pub fn prometheus_text(&self) -> String {
        use std::{fmt::Write as _, sync::atomic::Ordering};
        let mut out = String::new();
        let generation = self.generation();
        for (name, value) in [
            ("mixer_reports_total", self.counters.reports.load(Ordering::Relaxed)),
            ("mixer_checks_total", self.counters.checks.load(Ordering::Relaxed)),
            ("mixer_denials_total", self.counters.denials.load(Ordering::Relaxed)),
            ("mixer_rule_condition_errors_total", self.counters.condition_errors.load(Ordering::Relaxed)),
            ("mixer_instance_errors_total", self.counters.instance_errors.load(Ordering::Relaxed)),
            ("mixer_recorder_forgotten_total", self.recorder.forgotten()),
        ] {
            let _ = writeln!(out, "# TYPE {name} counter\n{name} {value}");
        }
        for (name, value) in [
            ("mixer_config_generation", generation.number),
            ("mixer_config_rules", count(generation.rules.len())),
            ("mixer_config_handlers", count(generation.handlers.len())),
            ("mixer_config_diagnostics", count(generation.diagnostics.len())),
        ] {
            let _ = writeln!(out, "# TYPE {name} gauge\n{name} {value}");
        }
        out + &self.shared.totals.prometheus_text() + &self.proxies.prometheus_text()
    }

    fn complete(&self, generation: &Generation, bag: &mut Bag) {
        let ends = join::join(bag, &generation.workloads);
        join::generate(generation, bag, &ends);
    }
}

/// Logs what is new among the diagnostics.
fn say(next: &Generation, before: Option<&Generation>) {
    for diagnostic in &next.diagnostics {
        if before.is_none_or(|before| !before.diagnostics.contains(diagnostic)) {
            tracing::warn!("{diagnostic:#}");
        }
    }
    if before.is_none_or(|before| before.rules.len() != next.rules.len()) {
        tracing::info!(rules = next.rules.len(), handlers = next.handlers.len(), "configuration in force");
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
