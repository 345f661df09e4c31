//! Pictures of coffee, drawn: one SVG per product, from what is in the cup.
//!
//! In: a product id. Out: SVG text without scripts or links. Kept true: layers fill the cup from the bottom, shares sum to one.
//! Not here: the page around it (`pages`).

use std::fmt::Write as _;

/// What a layer of the drink is made of, bottom up.
struct Layer {
    colour: &'static str,
    share: f32,
}

const COFFEE: &str = "#3b2013";
const CREMA: &str = "#b9763a";
const MILK: &str = "#e2c39d";
const FOAM: &str = "#fbf3e4";

/// Cup width and height in picture units, and the layers in it.
fn drink(id: u32) -> (f32, f32, Vec<Layer>) {
    let layers = |parts: &[(&'static str, f32)]| {
        parts.iter().map(|(colour, share)| Layer { colour, share: *share }).collect::<Vec<_>>()
    };
    match id {
        1 => (108.0, 62.0, layers(&[(COFFEE, 0.42), (MILK, 0.48), (FOAM, 0.10)])),
        2 => (80.0, 104.0, layers(&[(COFFEE, 0.18), (MILK, 0.64), (FOAM, 0.18)])),
        3 => (72.0, 52.0, layers(&[(COFFEE, 0.66), (CREMA, 0.14), (FOAM, 0.20)])),
        4 => (112.0, 72.0, layers(&[(COFFEE, 0.34), (MILK, 0.33), (FOAM, 0.33)])),
        5 => (70.0, 50.0, layers(&[(COFFEE, 0.80), (CREMA, 0.20)])),
        _ => (66.0, 74.0, layers(&[(COFFEE, 0.45), (MILK, 0.42), (FOAM, 0.13)])),
    }
}

/// The picture of a product, 200 × 160 units.
#[must_use]
pub fn svg(id: u32) -> String {
    let (width, height, layers) = drink(id);
    let (left, bottom) = (96.0 - width / 2.0, 132.0);
    let top = bottom - height;
    let mut out = String::from(
        r#"<svg viewBox="0 0 200 160" role="img" aria-hidden="true" xmlns="http://www.w3.org/2000/svg">"#,
    );
    // The cup narrows towards its foot; everything in it is cut to that shape.
    let foot = width * 0.14;
    let cup = format!(
        "M{left} {top} L{} {top} L{} {bottom} Q{} {} {} {bottom} Z",
        left + width,
        left + width - foot,
        left + width / 2.0,
        bottom + 7.0,
        left + foot
    );
    write!(out, r##"<defs><clipPath id="cup{id}"><path d="{cup}"/></clipPath></defs>"##).ok();
    write!(out, r##"<ellipse cx="96" cy="138" rx="{}" ry="7" fill="#d9c4aa"/>"##, width * 0.62).ok();
    write!(
        out,
        r##"<path d="M{x} {y1} q30 4 22 24 q-6 14 -28 12" fill="none" stroke="#f4ebe0" stroke-width="7"/>"##,
        x = left + width - 4.0,
        y1 = top + height * 0.18
    )
    .ok();
    write!(out, r#"<g clip-path="url(#cup{id})">"#).ok();
    let mut level = bottom + 8.0;
    let full = height + 8.0;
    for layer in &layers {
        let high = full * layer.share;
        level -= high;
        write!(
            out,
            r#"<rect x="{left}" y="{level}" width="{width}" height="{}" fill="{}"/>"#,
            high + 1.0,
            layer.colour
        )
        .ok();
    }
    write!(out, r##"<path d="{cup}" fill="#ffffff" opacity=".13"/></g>"##).ok();
    write!(out, r##"<path d="{cup}" fill="none" stroke="#f4ebe0" stroke-width="4"/>"##).ok();
    for (x, delay) in [(-16.0, 0.0), (0.0, 0.6), (16.0, 1.2)] {
        write!(
            out,
            r##"<path class="steam" style="animation-delay:{delay}s" d="M{} {} q-6 -9 0 -17 q6 -8 0 -17" fill="none" stroke="#c9ab89" stroke-width="3" stroke-linecap="round"/>"##,
            96.0 + x,
            top - 6.0
        )
        .ok();
    }
    out.push_str("</svg>");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cup_is_exactly_full() {
        for id in 1..=6 {
            let sum: f32 = drink(id).2.iter().map(|l| l.share).sum();
            assert!((sum - 1.0).abs() < 1e-3, "product {id}: {sum}");
            assert!(svg(id).starts_with("<svg") && svg(id).ends_with("</svg>"));
        }
    }
}
