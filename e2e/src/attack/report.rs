//! `e2e attack`: all rows against ours and Envoy in one run, and one table.
//!
//! In: where the proxies are. Out: Markdown on standard output, and whether ours kept its promises. Kept true: both are hit one after the
//! other with the same bytes, behind the same bootstrap. Not here: the rows (`rows`), measuring (`measure`), verdicts in the suite (`tests`).

use std::{path::PathBuf, time::Duration};

use super::{
    framing, h2spec, hostile,
    measure::{self, Row},
    overload, rows,
    world::World,
};
use crate::peers;

/// What to play.
#[derive(Debug, clap::Args)]
pub struct AttackArgs {
    /// Give slow attacks five seconds instead of 35, and leave h2spec out
    #[arg(long)]
    quick: bool,
    /// Only rows whose id or text holds this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Our proxy, e.g. a `dist` build; built in this program's profile unless given
    #[arg(long, value_name = "FILE")]
    proxy: Option<PathBuf>,
}

/// What one hostile connection may pin.
const PINNED: u64 = 2 << 20;

/// Plays everything and prints the tables; true when ours kept its promises.
///
/// # Errors
/// When a proxy cannot be started or dies.
pub async fn play(args: AttackArgs) -> anyhow::Result<bool> {
    let proxy = args.proxy.map_or_else(|| peers::program("proxy"), Ok)?;
    let envoy = peers::envoy();
    let world = World::start(&proxy, envoy.as_deref()).await?;
    let mut good = true;
    let wanted = |text: &str| args.only.as_ref().is_none_or(|only| text.contains(only.as_str()));
    if wanted("framing") {
        good &= smuggling(&world).await?;
    }
    if wanted("hostile") {
        good &= answers(&world).await?;
    }
    if wanted("overload") {
        good &= too_much(&world).await?;
    }
    if wanted("h2spec") && !args.quick {
        conformance(&world).await?;
    }
    println!(
        "\n| row | attack | proxy | connections | sent | closed | how | upstream | pinned each | left | CPU proxy : attacker | bystander p99 | errors |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    for attack in rows::all() {
        if !wanted(&format!("{} {}", attack.id, attack.what)) {
            continue;
        }
        for target in world.targets() {
            let row = measure::play(&attack, target, &world.recorder, args.quick).await?;
            println!("{}", line(&row));
            good &= target.name != world.crema.name || kept(&row);
        }
    }
    Ok(good)
}

/// True when a row of ours is within what is promised.
#[must_use]
pub fn kept(row: &Row) -> bool {
    row.pinned <= PINNED && row.errors == 0 && row.misread == 0
}

fn line(row: &Row) -> String {
    let ratio = row.proxy_cpu.as_secs_f64() / row.attacker_cpu.as_secs_f64().max(1e-6);
    let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e3);
    format!(
        "| {} | {} | {} | {} | {} KiB | {} in {:.1} s | {} | {} | {} KiB | {} KiB | {} : {} ms = {ratio:.1} | {} → {} ms | {} |",
        row.id,
        row.what,
        row.target,
        row.connections,
        row.sent >> 10,
        row.closed,
        row.after.as_secs_f64(),
        row.ending,
        row.upstream,
        row.pinned >> 10,
        row.left >> 10,
        ms(row.proxy_cpu),
        ms(row.attacker_cpu),
        ms(row.bystander[0]),
        ms(row.bystander[1]),
        row.errors,
    )
}

/// Smuggling and framing: how many cases each proxy lets through otherwise than the case allows.
async fn smuggling(world: &World) -> anyhow::Result<bool> {
    let cases = framing::cases();
    println!(
        "\n| proxy | listener | framing cases | as the case allows | misread by the application |\n|---|---|---|---|---|"
    );
    let mut good = true;
    for target in world.targets() {
        for (listener, at) in [("sidecar", target.sidecar), ("gateway", target.gateway)] {
            let verdicts = framing::play(&cases, at, &world.recorder).await?;
            let right = verdicts.iter().filter(|verdict| verdict.good).count();
            let misread = verdicts.iter().filter(|verdict| verdict.misread).count();
            println!("| {} | {listener} | {} | {right} | {misread} |", target.name, cases.len());
            good &= target.name != world.crema.name || (right == cases.len() && misread == 0);
        }
    }
    Ok(good)
}

/// Hostile applications: how many of their answers each proxy passes on otherwise than the case allows.
async fn answers(world: &World) -> anyhow::Result<bool> {
    println!("\n| proxy | hostile answers | as the case allows | mixed up |\n|---|---|---|---|");
    let mut good = true;
    for target in world.targets() {
        let verdicts = hostile::play(target.sidecar).await?;
        let right = verdicts.iter().filter(|verdict| verdict.good).count();
        let mixed = verdicts.iter().filter(|verdict| verdict.mixed).count();
        println!("| {} | {} | {right} | {mixed} |", target.name, verdicts.len());
        for verdict in verdicts.iter().filter(|verdict| !verdict.good) {
            eprintln!("{}: {}: {}", target.name, verdict.case, verdict.text);
        }
        good &= target.name != world.crema.name || right == verdicts.len();
    }
    Ok(good)
}

/// Overload: what is still served when more is asked than the application can do.
async fn too_much(world: &World) -> anyhow::Result<bool> {
    println!(
        "\n| proxy | offered/s | served/s | p99 of the served | 503 | p50 of all | lost | memory |\n|---|---|---|---|---|---|---|---|"
    );
    let mut good = true;
    for target in world.targets() {
        let rows = overload::play(target).await?;
        for row in &rows {
            println!(
                "| {} | {} | {:.0} | {:.1} ms | {} | {:.1} ms | {} | {} KiB |",
                row.target,
                row.offered,
                row.served,
                row.p99.as_secs_f64() * 1e3,
                row.refused,
                row.p50_all.as_secs_f64() * 1e3,
                row.lost,
                row.grown >> 10
            );
        }
        good &= target.name != world.crema.name || overload::kept(&rows);
    }
    Ok(good)
}

async fn conformance(world: &World) -> anyhow::Result<()> {
    let Some(program) = h2spec::program() else {
        println!("\nh2spec: not installed");
        return Ok(());
    };
    println!("\n| proxy | listener | h2spec |\n|---|---|---|");
    for target in world.targets() {
        for (listener, at, tls) in [
            ("sidecar", target.sidecar, false),
            ("gateway", target.gateway, false),
            ("sidecar, TLS", target.sidecar_tls, true),
            ("gateway, TLS", target.gateway_tls, true),
        ] {
            let score = h2spec::run(&program, at, tls).await?;
            println!("| {} | {listener} | {} of {} |", target.name, score.passed, score.all);
        }
    }
    Ok(())
}
