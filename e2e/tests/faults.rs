//! The fault table over the local mesh: how many requests fail when its parts do.
//!
//! In: the real binaries; `FAULT_SECONDS` (default 15; 60 for the full table) and `FAULT_RATE` (default 500). Out: one trial per row.
//! Kept true: load goes to loopback, bounded in count and time. Not here: what each fault does (`e2e::faults`).

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use e2e::{
    faults::{self, Strength},
    node::{Node, Options},
    peers,
    scenarios::{Shop, Source},
};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let rows = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&rows);
    let trial = Trial::test("no_request_fails_while_the_mesh_does", move || table(&told));
    let conclusion = libtest_mimic::run(&arguments, vec![trial]);
    for row in rows.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("{row}");
    }
    conclusion.exit();
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn table(rows: &Mutex<Vec<String>>) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(async {
        peers::build()?;
        let dir = tempfile::Builder::new().prefix("crema-faults-").tempdir()?;
        let options = Options {
            dir: dir.path().to_path_buf(),
            net: None,
            bin: peers::bin_dir(),
            sampling: 1.0,
            progress: Arc::new(|text| println!("{text}")),
        };
        let node = Node::start(options).await?;
        let outcome = run(&node, rows).await;
        node.stop().await;
        if !matches!(outcome, Ok(true)) {
            println!("logs: {}", dir.keep().join("logs").display());
        }
        outcome
    });
    match outcome {
        Ok(true) => Ok(()),
        Ok(false) => Err("a row of the table failed".into()),
        Err(error) => Err(Failed::from(format!("{error:#}"))),
    }
}

async fn run(node: &Node, rows: &Mutex<Vec<String>>) -> anyhow::Result<bool> {
    let rate = u32::try_from(number("FAULT_RATE", 500))?;
    let strength = Strength { rate, lasting: Duration::from_secs(number("FAULT_SECONDS", 15)) };
    let shop = Shop::open(node.clone(), Source::Own).await?;
    // The first requests meet proxies that have just started.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let lines = faults::run(&shop, strength, |line| println!("{line}")).await?;
    let mut told = rows.lock().unwrap_or_else(PoisonError::into_inner);
    told.extend(lines.iter().map(|line| line.text.clone()));
    Ok(lines.iter().all(|line| line.good))
}
