//! The plot: bars of CPU time per answer, one group for each row, Crema beside the others.
//!
//! In: [`Measured`] rows. Out: an SVG that stands alone. Kept true: each group has its own scale, whose longest bar is as wide as the plot,
//! and every bar carries its figure, with a line from minimum to maximum. Not here: which rows there are.

use std::fmt::Write as _;

use super::{measure::Measured, report, rows::Kind, world::Who};

const LEFT: f64 = 130.0;
const WIDTH: f64 = 520.0;
const BAR: f64 = 16.0;

/// An SVG of all rows that are about CPU time.
#[must_use]
pub fn svg(rows: &[Measured]) -> String {
    let (mut body, mut y) = (String::new(), 20.0);
    for measured in rows.iter().filter(|m| matches!(m.row.kind, Kind::CpuPerRequest(_) | Kind::CpuPerMib(_)))
    {
        let longest = measured.figures.values().map(|f| f.main.max()).fold(f64::MIN_POSITIVE, f64::max);
        let scale = |value: f64| value / longest * WIDTH;
        text(
            &mut body,
            10.0,
            y,
            "title",
            &format!("{} — {}", measured.row.title, report::unit(measured.row.kind)),
        );
        y += 8.0;
        for (who, figures) in &measured.figures {
            let (median, middle) = (figures.main.median(), y + BAR / 2.0);
            text(&mut body, 10.0, middle + 4.0, "who", who.name());
            writeln!(
                body,
                "<rect class=\"{}\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                if *who == Who::Crema { "ours" } else { "theirs" },
                scale(median),
                BAR - 3.0
            )
            .expect("writing to a string");
            writeln!(
                body,
                "<path class=\"spread\" d=\"M{:.1} {:.1}H{:.1}\"/>",
                LEFT + scale(figures.main.min()),
                middle - 1.5,
                LEFT + scale(figures.main.max())
            )
            .expect("writing to a string");
            text(&mut body, LEFT + WIDTH + 8.0, middle + 4.0, "who", &figures.main.to_string());
            y += BAR;
        }
        y += 24.0;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 800 {y:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <style>.title{{font-weight:bold}}.who,.title{{fill:#333}}.ours{{fill:#8b5a2b}}.theirs{{fill:#c9c2b8}}.spread{{stroke:#333;fill:none}}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{body}</svg>\n"
    )
}

fn text(body: &mut String, x: f64, y: f64, class: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    writeln!(body, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{words}</text>")
        .expect("writing to a string");
}
