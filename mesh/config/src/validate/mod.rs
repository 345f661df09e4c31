//! What a configuration means that its types cannot say.
//!
//! In: one [`Resource`], or a whole [`Snapshot`](crate::Snapshot). Out: [`Diagnostic`]s.
//! Kept true: an error only where the object cannot be meant; dangling references and legacy forms are warnings.
//! Not here: shapes and unknown fields (`parse`).

mod core;
mod destination_rule;
mod gateway;
mod mesh;
mod mixer;
mod routes;
mod security;
mod set;
mod virtual_service;

#[cfg(test)]
mod tests;

pub use mesh::mesh_config;
pub use set::{find_mixer, set};

use crate::diagnostic::{Diagnostic, Severity};
use crate::duration::GoDuration;
use crate::kinds::{MESH_CONFIG_MAP, ROOT_NAMESPACE};
use crate::object::{Meta, ObjectKey, Origin};
use crate::resource::{Kind, Resource};
use std::fmt::Display;
use std::time::Duration;

/// Checks one object by itself. An error refuses it.
pub fn object(resource: &Resource) -> Vec<Diagnostic> {
    let mut f = Findings::of(resource.kind(), resource.meta());
    match resource {
        Resource::VirtualService(o) => virtual_service::check(&o.spec, &mut f),
        Resource::DestinationRule(o) => destination_rule::check(&o.spec, &mut f),
        Resource::Gateway(o) => gateway::gateway(&o.spec, &mut f),
        Resource::ServiceEntry(o) => gateway::service_entry(&o.spec, &mut f),
        Resource::Sidecar(o) => gateway::sidecar(&o.spec, &mut f),
        Resource::WorkloadEntry(o) => gateway::workload_entry(&o.spec, "spec", &mut f),
        Resource::PeerAuthentication(o) => security::peer_authentication(&o.spec, &mut f),
        Resource::AuthorizationPolicy(o) => security::authorization_policy(&o.spec, &mut f),
        Resource::RequestAuthentication(o) => security::request_authentication(&o.spec, &mut f),
        Resource::Telemetry(o) => security::telemetry(&o.spec, &mut f),
        Resource::Policy(o) | Resource::MeshPolicy(o) => security::legacy_policy(&o.spec, &mut f),
        Resource::Service(o) => core::service(&o.spec, &mut f),
        Resource::EndpointSlice(o) => core::endpoint_slice(&o.spec, &mut f),
        Resource::Mixer(o) => mixer::check(&o.spec, &mut f),
        Resource::ConfigMap(o) if o.name() == MESH_CONFIG_MAP && o.namespace() == ROOT_NAMESPACE => {
            f.found.extend(mesh_config(o).1);
        }
        _ => {}
    }
    f.found
}

/// Findings about one object while it is looked at.
pub(crate) struct Findings<'a> {
    meta: Option<&'a Meta>,
    key: Option<ObjectKey>,
    found: Vec<Diagnostic>,
}

impl<'a> Findings<'a> {
    fn of(kind: Kind, meta: &'a Meta) -> Self {
        Self { meta: Some(meta), key: Some(ObjectKey::of(kind, meta)), found: Vec::new() }
    }

    /// Findings about something inside an object, whose places the caller knows.
    fn loose() -> Self {
        Self { meta: None, key: None, found: Vec::new() }
    }

    fn add(&mut self, severity: Severity, field: &str, why: String) {
        let origin = self.meta.map_or_else(|| Origin::new("", 0), |meta| meta.field_origin(field));
        let key = self.key.clone();
        self.found.push(match severity {
            Severity::Error => Diagnostic::error(origin, key, field, why),
            Severity::Warning => Diagnostic::warning(origin, key, field, why),
        });
    }

    /// The object cannot be meant.
    fn error(&mut self, field: impl AsRef<str>, why: impl Into<String>) {
        self.add(Severity::Error, field.as_ref(), why.into());
    }

    /// The object is used, but not all of it as written.
    fn warn(&mut self, field: impl AsRef<str>, why: impl Into<String>) {
        self.add(Severity::Warning, field.as_ref(), why.into());
    }

    /// A form of Istio 1.1 that still works.
    fn legacy(&mut self, present: bool, field: impl AsRef<str>, instead: &str) {
        if present {
            self.warn(field, format!("deprecated, still in force: {instead}"));
        }
    }

    /// A field that has no effect here.
    fn unsupported(&mut self, present: bool, field: impl AsRef<str>) {
        if present {
            self.warn(field, "is not supported yet and has no effect: remove it");
        }
    }

    /// A port number, 1–65535.
    fn port(&mut self, port: u32, field: impl AsRef<str>) {
        if !(1..=65535).contains(&port) {
            self.error(field, format!("{port} is no port: write a number from 1 to 65535"));
        }
    }

    /// A share in percent, 0–100.
    fn percent(&mut self, share: impl Into<f64>, field: impl AsRef<str>) {
        let share = share.into();
        if !(0.0..=100.0).contains(&share) {
            self.error(field, format!("{share} is no percentage: write a number from 0 to 100"));
        }
    }

    /// A duration of at least a millisecond, if given.
    fn at_least_1ms(&mut self, duration: Option<GoDuration>, field: impl AsRef<str>) {
        if let Some(d) = duration
            && d.0 < Duration::from_millis(1)
        {
            self.error(field, format!("{d} is too short: write at least 1ms"));
        }
    }

    /// A duration of at least a millisecond or zero, if given.
    fn zero_or_1ms(&mut self, duration: Option<GoDuration>, field: impl AsRef<str>) {
        if duration.is_some_and(|d| !d.0.is_zero()) {
            self.at_least_1ms(duration, field);
        }
    }

    /// A count that must not be negative, if given.
    fn count(&mut self, count: Option<i32>, field: impl AsRef<str>) {
        if let Some(n) = count.filter(|n| *n < 0) {
            self.error(field, format!("{n} is negative: write 0 (no limit) or more"));
        }
    }

    /// At most so many items or keys, as the API server's schemas have it.
    fn most(&mut self, count: usize, most: usize, field: impl AsRef<str>) {
        if count > most {
            self.error(field, format!("has {count} items: use at most {most}, or several objects"));
        }
    }

    /// A host name: DNS labels, optionally with a leading `*` label; `ip` and `*` as allowed.
    fn host(&mut self, host: &str, field: impl AsRef<str>) {
        if let Err(why) = check_host(host) {
            self.error(field, why);
        }
    }

    /// An RE2 expression for full matches.
    fn regex(&mut self, text: &str, field: impl AsRef<str>) {
        if let Err(why) = full_match(text) {
            self.error(field, why);
        }
    }

    /// At most one of several alternatives may be there.
    fn at_most_one(&mut self, field: impl AsRef<str>, given: &[(&str, bool)]) {
        let names: Vec<_> = given.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
        if names.len() > 1 {
            self.error(field, format!("has {} at once: keep one of them", names.join(" and ")));
        }
    }
}

/// Longest expression accepted, in characters.
pub const MAX_REGEX_CHARS: usize = 1024;
/// Largest compiled expression accepted, in bytes: 1 MiB.
const MAX_REGEX_BYTES: usize = 1 << 20;

/// Compiles an RE2 expression so that it matches whole values only. `*` alone means any value, as in Istio.
///
/// # Errors
/// With the reason and the fix, when it is no expression, is too long or compiles to too much.
pub fn full_match(text: &str) -> Result<regex::Regex, String> {
    let length = text.chars().count();
    if length > MAX_REGEX_CHARS {
        return Err(format!("the expression has {length} characters: use at most {MAX_REGEX_CHARS}"));
    }
    let inner = if text == "*" { ".*" } else { text };
    // Compile it alone first, so that "a)(b" cannot break out of the group around it.
    let build = |pattern: &str| regex::RegexBuilder::new(pattern).size_limit(MAX_REGEX_BYTES).build();
    build(inner).and_then(|_| build(&format!("^(?:{inner})$"))).map_err(|e| {
        let reason = e.to_string();
        let last = reason.lines().last().unwrap_or_default().trim().trim_start_matches("error: ");
        format!("{text:?} is no RE2 expression: {last}")
    })
}

fn check_host(host: &str) -> Result<(), String> {
    if host == "*" || host.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    let name = host.strip_prefix("*.").unwrap_or(host);
    let label = |l: &str| {
        let bytes = l.as_bytes();
        !bytes.is_empty()
            && bytes.len() <= 63
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-' || *b == b'_')
            && bytes[0] != b'-'
            && bytes[bytes.len() - 1] != b'-'
    };
    let trimmed = name.strip_suffix('.').unwrap_or(name);
    if host.len() <= 255 && trimmed.split('.').all(label) {
        return Ok(());
    }
    Err(match host {
        "" => "is empty: write the host it is for".to_owned(),
        _ if host.contains(':') => format!("{host:?} is no host name: leave the port out"),
        _ if host.contains('*') => {
            format!("{host:?} is no host name: a '*' may only stand alone or as the first label")
        }
        _ => format!("{host:?} is no host name: use letters, digits, '-' and '.'"),
    })
}

fn covers_any(patterns: &[String], host: &str) -> bool {
    patterns.iter().any(|pattern| crate::hosts::covers(pattern, host))
}

fn nth(field: impl Display, index: usize) -> String {
    format!("{field}[{index}]")
}

/// Path of a map entry, quoted where its key is not plain.
fn entry(field: &str, key: &str) -> String {
    let tail = crate::yaml::field_path([Ok(key)]);
    if tail.starts_with('[') { format!("{field}{tail}") } else { format!("{field}.{tail}") }
}
