//! Host names as Istio's kinds write them.
//!
//! In: short names, full names, patterns. Out: full names, answers about coverage.
//! Kept true: only a name without dots is short; anything with a dot, a `*` or an address is meant as it stands.
//! Not here: which hosts exist (`validate::set`, `pilot`).

use std::borrow::Cow;

/// DNS suffix of Services.
pub const SERVICE_DOMAIN: &str = "svc.cluster.local";

/// The full name of a host written in an object of `namespace`: short names become
/// `<host>.<namespace>.svc.cluster.local`; others stay, in lower case and without a trailing dot.
pub fn resolve(host: &str, namespace: &str) -> String {
    if host.contains(['.', '*', ':']) || host.is_empty() {
        host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
    } else {
        format!("{}.{namespace}.{SERVICE_DOMAIN}", host.to_ascii_lowercase())
    }
}

/// Whether a pattern (`*`, `*.x` or a name) covers a name or a narrower pattern. Case does not count.
pub fn covers(pattern: &str, name: &str) -> bool {
    let lower = |text: &str| -> Cow<'_, str> {
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            text.to_ascii_lowercase().into()
        } else {
            text.to_owned().into()
        }
    };
    match pattern.strip_prefix('*') {
        None => pattern.eq_ignore_ascii_case(name),
        Some("") => true,
        Some(suffix) => name.len() >= suffix.len() && lower(name).ends_with(&*lower(suffix)),
    }
}

/// Whether two patterns have a name in common.
pub fn overlap(a: &str, b: &str) -> bool {
    covers(a, b) || covers(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_without_dots_are_short() {
        for (host, want) in [
            ("reviews", "reviews.shop.svc.cluster.local"),
            ("Reviews", "reviews.shop.svc.cluster.local"),
            ("reviews.other", "reviews.other"),
            ("www.example.com.", "www.example.com"),
            ("*", "*"),
            ("10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(resolve(host, "shop"), want, "{host}");
        }
    }

    #[test]
    fn patterns_cover_names_and_narrower_patterns() {
        for (pattern, name, want) in [
            ("*", "a.b", true),
            ("*.b", "a.b", true),
            ("*.B", "x.a.b", true),
            ("*.b", "b", false),
            ("*.b", "*.a.b", true),
            ("*.a.b", "*.b", false),
            ("a.b", "A.b", true),
            ("a.b", "*.b", false),
        ] {
            assert_eq!(covers(pattern, name), want, "{pattern} {name}");
        }
        assert!(overlap("a.b", "*.b"));
        assert!(!overlap("a.b", "*.c"));
    }
}
