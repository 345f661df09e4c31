//! What the mesh must do with the Espresso Shop: the talk, step by step, each with a check that fails before its YAML and passes after.
//!
//! In: a running [`Shop`] and a set of YAML. Out: a [`Row`] per step. Kept true: the demo and the tests run this one list; no step
//! passes whose check held before its YAML was applied. Not here: how it is shown (`demo`), what each check looks at (`checks`).

pub mod checks;
pub mod place;
pub mod shop;

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

pub use shop::{Shop, Source};

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// In words, with figures.
    pub text: String,
    /// It is what should be seen.
    pub good: bool,
}

impl Seen {
    /// A finding.
    pub fn new(good: bool, text: impl Into<String>) -> Self {
        Self { good, text: text.into() }
    }
}

/// A check: sends real traffic and looks.
pub type Check = for<'a> fn(&'a Shop) -> Pin<Box<dyn Future<Output = anyhow::Result<Seen>> + Send + 'a>>;

/// What a step does besides applying files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Also {
    /// Nothing.
    Nothing,
    /// A replica of reviews v1 that fails every request runs meanwhile.
    BrokenReplica,
    /// The application of reviews v1 is stopped under its living sidecar before the check, and comes back afterwards.
    DeadApplication,
    /// `PERMISSIVE` in the files is applied first; then it is edited to `STRICT`, which is what is judged.
    Strict,
}

/// One step of the talk.
#[derive(Clone, Copy)]
pub struct Step {
    /// Short name, also of its files in the mesh.
    pub id: &'static str,
    /// One line for people.
    pub title: &'static str,
    /// The project's own files.
    pub own: &'static [&'static str],
    /// The author's files that say the same; empty where there are none.
    pub author: &'static [&'static str],
    /// What should be seen.
    pub expected: &'static str,
    /// Looks.
    pub check: Check,
    /// What else it does.
    pub also: Also,
    /// Its files stay for the steps after it.
    pub stays: bool,
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Step").field("id", &self.id).finish_non_exhaustive()
    }
}

macro_rules! check {
    ($name:ident) => {
        |shop| Box::pin(checks::$name(shop))
    };
}

const PLAIN: Step = Step {
    id: "",
    title: "",
    own: &[],
    author: &[],
    expected: "",
    check: check!(all_v1),
    also: Also::Nothing,
    stays: false,
};

/// The steps, in the order of the talk.
pub const STEPS: [Step; 16] = [
    Step {
        id: "all-v1",
        title: "Routing: everything to version 1",
        own: &["destination-rules.yaml", "all-v1.yaml"],
        author: &["all-destination-rules.yaml", "all-virtual-services.yaml"],
        expected: "20 of 20 calls answered by v1",
        check: check!(all_v1),
        stays: true,
        ..PLAIN
    },
    Step {
        id: "split",
        title: "Traffic splitting: 80 % v1, 20 % v2",
        own: &["split-80-20.yaml"],
        author: &["80-20.yaml"],
        expected: "of 500 calls, 13 % to 27 % answered by v2",
        check: check!(split),
        ..PLAIN
    },
    Step {
        id: "browser",
        title: "Routing by browser",
        own: &["browser.yaml"],
        author: &["browser-based-routing.yaml"],
        expected: "Firefox sees stars (v2), Chrome does not (v1)",
        check: check!(browser),
        ..PLAIN
    },
    Step {
        id: "user",
        title: "Routing by user",
        own: &["user.yaml"],
        author: &["user-based-routing.yaml"],
        expected: "the Administrator sees stars (v2), a User does not (v1)",
        check: check!(user),
        ..PLAIN
    },
    Step {
        id: "delay",
        title: "Fault injection: a delay",
        own: &["delay.yaml"],
        author: &["delay.yaml"],
        expected: "200, but only after the delay; other services as fast as ever",
        check: check!(delay),
        ..PLAIN
    },
    Step {
        id: "fault",
        title: "Fault injection: an error",
        own: &["fault.yaml"],
        author: &["fault.yaml"],
        expected: "500 \"fault filter abort\"; the page lives without its reviews",
        check: check!(fault),
        ..PLAIN
    },
    Step {
        id: "timeout",
        title: "Timeout",
        own: &["timeout.yaml"],
        author: &["timeout.yaml"],
        expected: "slow product: 504 \"upstream request timeout\" after 0.5 s; quick product: 200",
        check: check!(timeout),
        ..PLAIN
    },
    Step {
        id: "retry",
        title: "Retry around a broken replica",
        own: &["retry.yaml"],
        expected: "30 of 30 calls succeed although a replica fails every request",
        check: check!(retry),
        also: Also::BrokenReplica,
        ..PLAIN
    },
    Step {
        id: "circuit-breaker",
        title: "Circuit breaker: one at a time, one in the queue",
        own: &["circuit-breaker.yaml"],
        author: &["circuit-breaker.yaml"],
        expected: "of 6 slow calls at once, 2 answered and 4 turned away with 503 and x-envoy-overloaded",
        check: check!(circuit_breaker),
        ..PLAIN
    },
    Step {
        id: "ejection",
        title: "Circuit breaker: an endpoint that fails rests",
        own: &["circuit-breaker.yaml"],
        author: &["circuit-breaker.yaml"],
        expected: "after two gateway errors 503 \"no healthy upstream\", without asking the endpoint again",
        check: check!(ejection),
        also: Also::DeadApplication,
        ..PLAIN
    },
    Step {
        id: "denier",
        title: "Policy: mixer denies the web service reviews v2",
        own: &["denier.yaml"],
        author: &["policy/mixer-rule-deny-label.yaml"],
        expected: "web: 403 PERMISSION_DENIED:deny-reviews-v2-handler.denier.default:Not allowed; catalog: 200",
        check: check!(denier),
        ..PLAIN
    },
    Step {
        id: "mtls",
        title: "TLS migration: the catalog takes mutual TLS only",
        own: &["mtls-strict.yaml"],
        author: &["security/tls-migration.yaml"],
        expected: "plaintext from outside is reset, calls within the mesh still 200, tls-check says mTLS",
        check: check!(strict_mtls),
        also: Also::Strict,
        ..PLAIN
    },
    Step {
        id: "gateway",
        title: "Ingress gateway",
        own: &["gateway.yaml"],
        author: &["gateway.yaml"],
        expected: "the shop's first page with six products at the gateway's port",
        check: check!(gateway),
        stays: true,
        ..PLAIN
    },
    Step {
        id: "trace",
        title: "Tracing: one page, one trace",
        expected: "client and server spans of web, catalog and reviews under one trace id",
        check: check!(trace),
        ..PLAIN
    },
    Step {
        id: "metrics",
        title: "Success rate, volume, duration and latency per version",
        own: &["split-80-20.yaml"],
        author: &["80-20.yaml"],
        expected: "mixer's counters grew by exactly the calls sent, for v1 and for v2",
        check: check!(metrics),
        ..PLAIN
    },
    Step {
        id: "fan-out",
        title: "Telemetry fan-out: one request in log, trace and counter",
        own: &["request-log.yaml"],
        expected: "the request's id in mixer's log and in a span; its counter one higher",
        check: check!(fan_out),
        ..PLAIN
    },
];

/// What became of a step.
#[derive(Debug, Clone)]
pub struct Row {
    /// The step.
    pub step: Step,
    /// What was seen before its YAML; none for a step that applies none.
    pub before: Option<Seen>,
    /// What was seen after.
    pub after: Seen,
    /// From writing the files until the check passed.
    pub took: Duration,
    /// Failed before, passed after.
    pub passed: bool,
}

/// Hears what a step is doing.
pub trait Audience {
    /// A step begins; with the text of the YAML that it will apply.
    fn begins(&mut self, step: &Step, yaml: &[(String, String)]);
    /// The check ran before the YAML.
    fn before(&mut self, seen: &Seen);
    /// Something takes a moment.
    fn waits(&mut self, what: &str);
    /// The step is over.
    fn ends(&mut self, row: &Row);
}

/// How long a change may take until its check passes.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(300);

/// Runs one step: check, apply, check until it passes or time is up, undo.
///
/// # Errors
/// When the environment fails; a check that does not pass is a row, not an error.
pub async fn run(shop: &Shop, step: &Step, audience: &mut impl Audience) -> anyhow::Result<Row> {
    let yaml = shop.yaml(step)?;
    audience.begins(step, &yaml);
    settle(shop).await;
    shop.prepare(step).await?;
    let before = if yaml.is_empty() {
        None
    } else {
        if step.also == Also::Strict {
            shop.apply(step, &shop::permissive(&yaml)).await?;
        }
        let seen = looked(shop, step).await;
        audience.before(&seen);
        Some(seen)
    };
    shop.apply(step, &yaml).await?;
    let started = Instant::now();
    let after = loop {
        let seen = looked(shop, step).await;
        if seen.good || started.elapsed() > PATIENCE {
            break seen;
        }
        audience.waits(&seen.text);
        tokio::time::sleep(PAUSE).await;
    };
    let took = started.elapsed();
    if !step.stays {
        shop.undo(step).await?;
    }
    let passed = after.good && !before.as_ref().is_some_and(|b| b.good);
    let row = Row { step: *step, before, after, took, passed };
    audience.ends(&row);
    Ok(row)
}

/// Waits until nothing of an earlier step is felt any more. If that never comes, the step's own check will say so.
async fn settle(shop: &Shop) {
    // A file that is gone is forgotten within this time; what it said may look calm too.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let calm = || async { looked_at(checks::calm(shop).await).good };
    // Its error says only that the time is up.
    let _late = crate::node::until(PATIENCE, calm, String::new).await;
}

fn looked_at(seen: anyhow::Result<Seen>) -> Seen {
    seen.unwrap_or_else(|error| Seen::new(false, format!("{error:#}")))
}

/// A check that cannot even be done has not passed.
async fn looked(shop: &Shop, step: &Step) -> Seen {
    looked_at((step.check)(shop).await)
}

/// Hears nothing.
#[derive(Debug, Default)]
pub struct Nobody;

impl Audience for Nobody {
    fn begins(&mut self, _: &Step, _: &[(String, String)]) {}
    fn before(&mut self, _: &Seen) {}
    fn waits(&mut self, _: &str) {}
    fn ends(&mut self, _: &Row) {}
}
