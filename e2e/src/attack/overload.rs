//! More than the application can serve: how much of it still gets done, how long that takes, and what the rest is told.
//!
//! In: the running proxies, whose `/slow` leads to an application of known capacity behind limits. Out: a [`Row`] per proxy and rate.
//! Kept true: the load comes at its rate whether or not it is answered, so waiting shows. Not here: hostile clients (`rows`).

use std::time::Duration;

use super::{measure, world::Target};
use crate::load::{self, Load};

/// Requests per second that the application can serve: see [`super::recorder::SERVED_AT_ONCE`].
const CAPACITY: u32 = 400;
/// What is offered, as multiples of half the capacity.
const OFFERED: [u32; 4] = [1, 2, 4, 20];
/// How long each rate lasts.
const LASTING: Duration = Duration::from_secs(5);

/// What came of one rate.
#[derive(Debug, Clone)]
pub struct Row {
    /// `Crema` or `Envoy`.
    pub target: &'static str,
    /// Requests per second that were sent.
    pub offered: u32,
    /// Requests per second that were served.
    pub served: f64,
    /// 99th percentile of those that were served.
    pub p99: Duration,
    /// Quick refusals: answers with 503.
    pub refused: u64,
    /// Median of all, refusals among them.
    pub p50_all: Duration,
    /// Everything that was neither.
    pub lost: u64,
    /// Growth of the proxy's memory, in bytes.
    pub grown: u64,
}

/// Plays all rates, the lowest first.
///
/// # Errors
/// When the proxy is gone.
pub async fn play(target: &Target) -> anyhow::Result<Vec<Row>> {
    let memory = measure::resident(target.pid())?;
    let mut rows = Vec::new();
    for half in OFFERED {
        let offered = CAPACITY / 2 * half;
        let report = load::run(Load {
            to: target.gateway,
            from: None,
            target: "/slow/overload".to_owned(),
            host: "a".to_owned(),
            headers: Vec::new(),
            rate: offered,
            lasting: LASTING,
            fresh_every: 0,
            expect: 200,
        })
        .await?;
        let refused = report.failed.get("status 503").copied().unwrap_or(0);
        let good = u32::try_from(report.good).unwrap_or(u32::MAX);
        rows.push(Row {
            target: target.name,
            offered,
            served: f64::from(good) / LASTING.as_secs_f64(),
            p99: Duration::from_micros(report.served.value_at_quantile(0.99)),
            refused,
            p50_all: Duration::from_micros(report.latency.value_at_quantile(0.5)),
            lost: report.failures() - refused,
            grown: measure::resident(target.pid())?.saturating_sub(memory),
        });
    }
    Ok(rows)
}

/// True when overload costs nothing of what is served: at least 90 % of the most, in bounded time, and every other request is told.
#[must_use]
pub fn kept(rows: &[Row]) -> bool {
    let most = rows.iter().map(|row| row.served).fold(0.0, f64::max);
    let over = rows.iter().filter(|row| row.offered > CAPACITY);
    over.clone().count() > 0
        && over
            .clone()
            .all(|row| row.served >= 0.9 * most && row.lost == 0 && row.p99 < Duration::from_secs(1))
}
