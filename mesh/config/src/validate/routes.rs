//! Checks that routes of all protocols share: destinations, weights, headers, export lists.
//!
//! In: parts of a VirtualService. Out: findings.
//! Kept true: weights are refused only when no request could be placed.
//! Not here: HTTP specifics (`virtual_service`), whether a destination exists (`set`).

use super::{Findings, entry, nth};
use crate::kinds::{Destination, HeaderOperations, Headers, StringMatch};
use std::collections::BTreeMap;

pub(super) fn destination(to: &Destination, field: &str, f: &mut Findings<'_>) {
    f.host(&to.host, format!("{field}.host"));
    if to.host.contains('*') {
        f.error(format!("{field}.host"), format!("{:?} is no destination: name one service", to.host));
    }
    if let Some(port) = &to.port {
        match (port.number, &port.name) {
            (Some(number), _) => f.port(number, format!("{field}.port.number")),
            (None, Some(_)) => f.legacy(true, format!("{field}.port.name"), "write port.number"),
            (None, None) => {
                f.error(format!("{field}.port"), "has no number: write port.number or leave port out");
            }
        }
    }
    if to.subset.as_deref() == Some("") {
        f.error(format!("{field}.subset"), "is empty: name a subset or leave it out");
    }
}

pub(super) fn weights(weights: &[Option<i32>], field: &str, f: &mut Findings<'_>) {
    for (i, weight) in weights.iter().enumerate() {
        if let Some(weight) = weight.filter(|w| *w < 0) {
            f.error(format!("{field}[{i}].weight"), format!("{weight} is negative: write 0 or more"));
        }
    }
    if weights.len() < 2 {
        return;
    }
    let total: i64 = weights.iter().map(|w| i64::from(w.unwrap_or(0))).sum();
    if total == 0 {
        let why = format!(
            "the weights of {} destinations sum to 0, so none is ever chosen: give each a weight",
            weights.len()
        );
        f.error(field, why);
    } else if total > i64::from(u32::MAX) {
        f.error(field, format!("the weights sum to {total}: keep the sum below 2^32"));
    }
}

pub(super) fn headers(headers: Option<&Headers>, field: &str, f: &mut Findings<'_>) {
    let Some(headers) = headers else { return };
    operations(&headers.request, &format!("{field}.request"), f);
    operations(&headers.response, &format!("{field}.response"), f);
}

fn operations(ops: &HeaderOperations, field: &str, f: &mut Findings<'_>) {
    for (part, values) in [("set", &ops.set), ("add", &ops.add)] {
        header_values(values, &format!("{field}.{part}"), f);
    }
    header_names(&ops.remove, &format!("{field}.remove"), f);
}

pub(super) fn header_values(values: &BTreeMap<String, String>, field: &str, f: &mut Findings<'_>) {
    for (name, value) in values {
        let at = entry(field, name);
        header_name(name, &at, f);
        if value.bytes().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
            f.error(at, "a header value must stay on one line");
        }
    }
}

pub(super) fn header_names(names: &[String], field: &str, f: &mut Findings<'_>) {
    for (i, name) in names.iter().enumerate() {
        header_name(name, &nth(field, i), f);
    }
}

pub(super) fn header_name(name: &str, field: &str, f: &mut Findings<'_>) {
    if name.starts_with(':') {
        if !name.eq_ignore_ascii_case(":authority") {
            f.warn(field, format!("{name} cannot be changed and is left alone: remove it"));
        }
    } else if !is_token(name) {
        f.error(field, format!("{name:?} is no header name: use letters, digits and '-'"));
    }
}

fn is_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

pub(super) fn string_match(m: &StringMatch, field: &str, f: &mut Findings<'_>) {
    match m {
        StringMatch::Regex(text) => f.regex(text, format!("{field}.regex")),
        StringMatch::Prefix(text) if text.is_empty() => {
            f.warn(format!("{field}.prefix"), "is empty and matches every value: write {} for \"present\"");
        }
        _ => {}
    }
}

pub(super) fn export_to(list: &[String], field: &str, f: &mut Findings<'_>) {
    for (i, to) in list.iter().enumerate() {
        let wild = matches!(to.as_str(), "*" | "." | "~");
        if !wild && to.contains(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'))
            || to.is_empty()
        {
            f.error(nth(field, i), format!("{to:?} is no namespace: write a name, \"*\" or \".\""));
        } else if matches!(to.as_str(), "*" | "~") && list.len() > 1 {
            f.error(nth(field, i), format!("{to:?} must stand alone: remove the other entries"));
        }
    }
}

/// CIDR or address.
pub(super) fn cidr(text: &str, field: &str, f: &mut Findings<'_>) {
    let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
    let most = match address.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(_)) => 32,
        Ok(std::net::IpAddr::V6(_)) => 128,
        Err(_) => return f.error(field, format!("{text:?} is no address: write e.g. 10.1.0.0/16")),
    };
    if bits.is_some_and(|bits| bits.parse::<u8>().map_or(true, |n| n > most)) {
        f.error(field, format!("{text:?} is no address range: the length after '/' goes from 0 to {most}"));
    }
}
