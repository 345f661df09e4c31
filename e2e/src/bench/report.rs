//! What was measured, as tables for people: on the screen while it runs, and as Markdown for `docs/performance.md`.
//!
//! In: [`Measured`] rows. Out: text. Kept true: a ratio stands in a table only when its rounds agree; every target says met or not.
//! Not here: the plot (`plot`), the prose of the page.

use std::fmt::Write as _;

use super::{
    measure::{Figures, Measured},
    rows::{Kind, Target},
    world::Who,
};

/// The unit of a row's figures.
#[must_use]
pub fn unit(kind: Kind) -> &'static str {
    match kind {
        Kind::CpuPerRequest(_) => "CPU µs/request",
        Kind::CpuPerMib(_) => "CPU µs/MiB",
        Kind::Latency { .. } => "µs",
        Kind::Idle => "MB",
        Kind::PerConnection { .. } => "KB",
        Kind::Churn { .. } => "× p99 without changes",
        Kind::Lookup(_) => "ns",
        Kind::Syscalls(_) => "calls/request",
    }
}

/// Our figure as part of another's, or why there is none.
#[must_use]
pub fn ratio(measured: &Measured, over: Who) -> String {
    let (Some(ours), Some(theirs)) = (measured.figures.get(&Who::Crema), measured.figures.get(&over)) else {
        return "not measured".to_owned();
    };
    let ratio = ours.main.over(&theirs.main);
    match ratio.trusted() {
        Some(_) => format!("{ratio}"),
        None => format!("too wide ({:.2}–{:.2})", ratio.min(), ratio.max()),
    }
}

/// A target, what was measured, and whether it was met.
#[must_use]
pub fn verdict(measured: &Measured, target: &Target) -> (String, String, &'static str) {
    let Some(ours) = measured.figures.get(&Who::Crema) else {
        return (String::new(), "not measured".to_owned(), "—");
    };
    let (aim, value) = match target.over {
        None => (format!("≤ {} {}", target.at_most, unit(measured.row.kind)), ours.main.trusted()),
        Some(who) => {
            let theirs = measured.figures.get(&who).map(|f| ours.main.over(&f.main));
            (format!("≤ {:.2} × {}", target.at_most, who.name()), theirs.and_then(|r| r.trusted()))
        }
    };
    let seen = match target.over {
        None => format!("{}", ours.main),
        Some(who) => ratio(measured, who),
    };
    let met = match value {
        // Printed with two digits, judged with two digits.
        Some(value) if value <= target.at_most + 0.005 => "met",
        Some(_) => "not met",
        None => "undecided",
    };
    (aim, seen, met)
}

/// One row for the screen.
#[must_use]
pub fn screen(measured: &Measured) -> String {
    let mut text = format!("{}: {}, {}\n", measured.row.id, measured.row.title, unit(measured.row.kind));
    for (who, figures) in &measured.figures {
        let ours = if *who == Who::Crema { String::new() } else { ratio(measured, *who) };
        let line =
            format!("{:<13} {:<24} {:<24} {}", who.name(), figures.main.to_string(), ours, beside(figures));
        writeln!(text, "    {}", line.trim_end()).expect("writing to a string");
    }
    for target in &measured.row.targets {
        let (aim, seen, met) = verdict(measured, target);
        writeln!(text, "    target {aim}: {seen}, {met}").expect("writing to a string");
    }
    text
}

fn beside(figures: &Figures) -> String {
    if figures.user.0.is_empty() {
        return String::new();
    }
    format!(
        "{:.0}/s, {:.0} % in user space, {:.2} switches/request",
        figures.rate.median(),
        figures.user.median() * 100.0,
        figures.switches.median()
    )
}

/// The table of targets.
#[must_use]
pub fn targets(rows: &[Measured]) -> String {
    let mut text = String::from("| work | target | measured | |\n|---|---|---|---|\n");
    for measured in rows {
        for target in &measured.row.targets {
            let (aim, seen, met) = verdict(measured, target);
            writeln!(text, "| {} | {aim} | {seen} | {met} |", measured.row.title)
                .expect("writing to a string");
        }
    }
    text
}

/// The table of figures.
#[must_use]
pub fn figures(rows: &[Measured]) -> String {
    let mut text = String::from(
        "| row | work | unit | who | median (min–max) | Crema ÷ this | answers/s | in user space | switches/request |\n",
    );
    text.push_str("|---|---|---|---|---|---|---|---|---|\n");
    for measured in rows {
        for (index, (who, figures)) in measured.figures.iter().enumerate() {
            let first = |text: &str| if index == 0 { text.to_owned() } else { String::new() };
            let cell = |series: &super::stats::Series, scale: f64, digits: usize, unit: &str| match series
                .0
                .as_slice()
            {
                [] => String::new(),
                _ => format!("{:.digits$}{unit}", series.median() * scale),
            };
            writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                first(&format!("`{}`", measured.row.id)),
                first(measured.row.title),
                first(unit(measured.row.kind)),
                who.name(),
                figures.main,
                if *who == Who::Crema { String::new() } else { ratio(measured, *who) },
                cell(&figures.rate, 1.0, 0, ""),
                cell(&figures.user, 100.0, 0, " %"),
                cell(&figures.switches, 1.0, 2, ""),
            )
            .expect("writing to a string");
        }
    }
    text
}
