//! `e2e cluster`: the talk and the suite in a real cluster.
//!
//! In: a kubeconfig. Out: a verdict per step and per disturbance, and an exit code. Kept true: what `e2e/tests/cluster.rs` runs is the same
//! list. Not here: the scenarios themselves.

use std::{path::PathBuf, time::Instant};

use anyhow::Context;

use super::{
    api::ApiServer,
    disturb::{self, DISTURBANCES, Senders},
    suite::{self, CHECKS},
    world::{self, Plan, World, loader_for},
};
use crate::{
    images::Profile,
    scenarios::{self, Nobody, STEPS, Source},
};

/// How the suite is run.
#[derive(Debug, Clone, clap::Args)]
pub struct ClusterArgs {
    /// The cluster
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// Command that takes image archives and brings them into the cluster [default: kind's or the local node's, by the context's name]
    #[arg(long, value_name = "COMMAND")]
    pub load: Option<String>,
    /// The images are in the cluster, or can be pulled
    #[arg(long)]
    pub no_images: bool,
    /// How images are built
    #[arg(long, value_enum, default_value_t = Profile::Dev)]
    pub profile: Profile,
    /// Apply the files of the shop's author instead of the project's own, where they are
    #[arg(long)]
    pub author: bool,
    /// Only the steps, checks and disturbances whose name contains one of these (the first step always runs)
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
    /// Leave everything running at the end
    #[arg(long)]
    pub keep: bool,
    /// Take the mesh and the shop that an earlier run with --keep has left
    #[arg(long)]
    pub again: bool,
}

/// Runs everything; true when all of it held.
///
/// # Errors
/// When the mesh cannot be installed.
pub async fn play(args: ClusterArgs) -> anyhow::Result<bool> {
    let loader = match (&args.load, args.no_images) {
        (_, true) => None,
        (Some(loader), false) => Some(loader.clone()),
        (None, false) => Some(
            loader_for(&args.kubeconfig)
                .context("how do images get into this cluster? --load COMMAND, or --no-images")?,
        ),
    };
    let source = if args.author { Source::Author } else { Source::Own };
    let plan = Plan { kubeconfig: args.kubeconfig.clone(), loader, profile: args.profile, source };
    let world = match args.again {
        true => World::found(&plan).await?,
        false => World::open(&plan, &|text| println!("{text}")).await?,
    };
    if let Some((installed, answered)) = world.took {
        let (installed, answered) = (installed.as_secs_f64(), answered.as_secs_f64());
        println!("installed in {installed:.1} s; the shop answered {answered:.1} s after its apply");
    }
    let wanted = |id: &str| args.only.is_empty() || args.only.iter().any(|name| id.contains(name.as_str()));
    let mut bad = 0;
    let mut told = |good: bool, id: &str, text: &str| {
        println!("{} {id}: {text}", if good { "ok  " } else { "FAIL" });
        bad += usize::from(!good);
    };
    for step in STEPS.iter().filter(|s| s.id == STEPS[0].id || wanted(s.id)) {
        let row = scenarios::run(&world.shop, step, &mut Nobody).await?;
        let before = row.before.as_ref().map_or("-", |b| b.text.as_str());
        told(row.passed, step.id, &format!("before: {before}; after: {}", row.after.text));
    }
    for check in CHECKS.iter().filter(|c| wanted(c.id)) {
        let seen = suite::run(&world, check).await;
        told(seen.good, check.id, &seen.text);
    }
    // Load begins at an open gateway: the steps may have left it closed.
    world::first_page(&world.shop, Instant::now()).await?;
    let restartable = ApiServer::of(world.cluster.kubectl().kubeconfig());
    for disturbance in DISTURBANCES.iter().filter(|d| wanted(d.id)) {
        if let (Senders::Alone, Err(why)) = (disturbance.senders, &restartable) {
            println!("skip {}: {why}", disturbance.id);
            continue;
        }
        match disturb::run(&world, disturbance).await {
            Ok(line) => told(line.failures() == 0, disturbance.id, &line.to_string()),
            Err(error) => told(false, disturbance.id, &format!("{error:#}")),
        }
    }
    if !args.keep {
        world::clean(&world.cluster).await?;
        let left = suite::leftovers(&world.cluster).await?;
        told(
            left.is_empty(),
            "uninstall",
            &if left.is_empty() { "nothing is left".to_owned() } else { left.join(", ") },
        );
    }
    println!("{}", if bad == 0 { "everything held".to_owned() } else { format!("{bad} failed") });
    Ok(bad == 0)
}
