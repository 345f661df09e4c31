//! Host names: completion of short names, wildcards, and visibility lists.
//!
//! In: names as written in objects. Out: full names and yes/no. Kept true: comparison ignores case, as DNS does.
//! Not here: addresses.

use super::DOMAIN;
use std::{net::IpAddr, sync::Arc};

/// The full name of a host as written in an object of `namespace`: a name without dots is a service of that namespace.
pub fn full(host: &str, namespace: &str) -> Arc<str> {
    let host = host.to_ascii_lowercase();
    if host.contains(['.', '*']) || host.parse::<IpAddr>().is_ok() || host.is_empty() {
        return host.into();
    }
    format!("{host}.{namespace}.svc.{DOMAIN}").into()
}

/// Whether `pattern` (`*`, `*.suffix` or a plain name) covers `host`, which may itself be a wildcard.
pub fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => host.strip_prefix('*').unwrap_or(host).ends_with(suffix),
        None => pattern == host,
    }
}

/// Whether two names, each possibly a wildcard, have a host in common.
pub fn overlap(a: &str, b: &str) -> bool {
    covers(a, b) || covers(b, a)
}

/// The narrower of two overlapping names.
pub fn narrower<'a>(a: &'a str, b: &'a str) -> &'a str {
    if covers(a, b) { b } else { a }
}

/// How narrow a pattern is: plain names first, then longer suffixes. Larger is narrower.
pub fn narrowness(pattern: &str) -> (bool, usize) {
    (!pattern.starts_with('*'), pattern.len())
}

/// Whether an `exportTo` list of an object in `home` lets `viewer` see it; an empty list takes `default`.
pub fn exported(list: &[String], default: &[String], home: &str, viewer: &str) -> bool {
    let list = if list.is_empty() { default } else { list };
    list.is_empty()
        || list.iter().any(|to| match to.as_str() {
            "*" => true,
            "." => home == viewer,
            "~" => false,
            namespace => namespace == viewer,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_without_dots_are_completed() {
        for (host, want) in [
            ("reviews", "reviews.ns.svc.cluster.local"),
            ("Reviews", "reviews.ns.svc.cluster.local"),
            ("reviews.other", "reviews.other"),
            ("*", "*"),
            ("*.example.com", "*.example.com"),
            ("10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(&*full(host, "ns"), want, "{host}");
        }
    }

    #[test]
    fn wildcards_cover_suffixes() {
        for (pattern, host, want) in [
            ("*", "a.b", true),
            ("*.b", "a.b", true),
            ("*.b", "x.a.b", true),
            ("*.b", "b", false),
            ("*.b", "*.a.b", true),
            ("*.a.b", "*.b", false),
            ("a.b", "a.b", true),
            ("a.b", "*.b", false),
        ] {
            assert_eq!(covers(pattern, host), want, "{pattern} {host}");
        }
        assert!(overlap("a.b", "*.b") && overlap("*", "*.b") && !overlap("*.c", "*.b"));
        assert_eq!(narrower("*", "a.b"), "a.b");
    }

    #[test]
    fn export_lists_mean_what_istio_says() {
        let list = |s: &str| if s.is_empty() { vec![] } else { vec![s.to_owned()] };
        for (to, viewer, want) in [
            ("", "other", true),
            ("*", "other", true),
            (".", "home", true),
            (".", "other", false),
            ("~", "home", false),
            ("other", "other", true),
            ("other", "third", false),
        ] {
            assert_eq!(exported(&list(to), &[], "home", viewer), want, "{to} {viewer}");
        }
        assert!(!exported(&[], &list("."), "home", "other"), "the mesh default counts when none is written");
    }
}
