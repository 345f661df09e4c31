//! Matching of strings, headers and query parameters, compiled when configuration arrives.
//!
//! In: patterns. Out: `matches(value) -> bool`. Kept true: a regex must match the whole value (RE2 full match, as Istio and Envoy).
//! Not here: which route a match belongs to (`route`).

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use regex::bytes::{Regex, RegexBuilder};

use crate::plan::RequestFacts;

/// Compiled regex programs may take this many bytes; larger patterns are refused.
const REGEX_SIZE: usize = 1 << 20;

/// A regular expression that must match all of a value.
#[derive(Clone)]
pub struct FullRegex {
    pattern: Arc<str>,
    compiled: Regex,
    /// The same pattern, free to match anywhere: made when it is first asked for.
    free: Arc<OnceLock<Option<regex::Regex>>>,
}

impl FullRegex {
    /// Compiles a pattern of RE2's syntax.
    ///
    /// # Errors
    /// The reason why the pattern is not valid, or too large.
    pub fn new(pattern: &str) -> Result<Self, String> {
        let anchored = format!("^(?:{pattern})$");
        let compiled = RegexBuilder::new(&anchored).size_limit(REGEX_SIZE).build();
        let compiled = compiled.map_err(|e| format!("not a usable regex {pattern:?}: {e}"))?;
        Ok(Self { pattern: pattern.into(), compiled, free: Arc::default() })
    }

    /// True when the whole of `value` matches.
    #[must_use]
    pub fn matches(&self, value: &[u8]) -> bool {
        self.compiled.is_match(value)
    }

    /// The pattern as written.
    #[must_use]
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Replaces every match inside `value` (not anchored), as `regex_rewrite` does. `\1` names a group.
    #[must_use]
    pub fn replace_all(&self, value: &str, substitution: &str) -> String {
        let compile = || regex::RegexBuilder::new(&self.pattern).size_limit(REGEX_SIZE).build().ok();
        let Some(free) = self.free.get_or_init(compile) else { return value.to_owned() };
        let mut template = String::with_capacity(substitution.len() + 8);
        let mut chars = substitution.chars();
        while let Some(c) = chars.next() {
            match c {
                '\\' => match chars.next() {
                    Some(d) if d.is_ascii_digit() => {
                        template.push_str("${");
                        template.push(d);
                        template.push('}');
                    }
                    Some(other) => template.push(other),
                    None => template.push('\\'),
                },
                '$' => template.push_str("$$"),
                other => template.push(other),
            }
        }
        free.replace_all(value, template.as_str()).into_owned()
    }
}

impl fmt::Debug for FullRegex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.pattern)
    }
}

impl PartialEq for FullRegex {
    fn eq(&self, other: &Self) -> bool {
        self.pattern == other.pattern
    }
}

impl Eq for FullRegex {}

/// How a string is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StringMatch {
    /// Equal.
    Exact(Arc<str>),
    /// Begins with.
    Prefix(Arc<str>),
    /// Ends with.
    Suffix(Arc<str>),
    /// Has inside.
    Contains(Arc<str>),
    /// Matches as a whole.
    Regex(FullRegex),
}

impl StringMatch {
    /// Compares `value`, with ASCII case folded when `ignore_case` (a regex never folds).
    #[must_use]
    pub fn matches(&self, value: &[u8], ignore_case: bool) -> bool {
        let same = |a: &[u8], b: &[u8]| if ignore_case { a.eq_ignore_ascii_case(b) } else { a == b };
        match self {
            Self::Exact(want) => same(value, want.as_bytes()),
            Self::Prefix(want) => value.get(..want.len()).is_some_and(|head| same(head, want.as_bytes())),
            Self::Suffix(want) => {
                let start = value.len().checked_sub(want.len());
                start.is_some_and(|start| same(&value[start..], want.as_bytes()))
            }
            Self::Contains(want) => {
                want.is_empty() || value.windows(want.len()).any(|window| same(window, want.as_bytes()))
            }
            Self::Regex(regex) => regex.matches(value),
        }
    }
}

/// What a header's value must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderValue {
    /// There (`true`) or not there (`false`), whatever its value.
    Present(bool),
    /// Compared as a string.
    Text {
        /// The comparison.
        matcher: StringMatch,
        /// Folds ASCII case.
        ignore_case: bool,
    },
    /// A decimal number in `start..end`.
    Range {
        /// Smallest number that matches.
        start: i64,
        /// First number above the range.
        end: i64,
    },
}

/// One condition on a header, or on a pseudo header (`:path`, `:method`, `:authority`, `:scheme`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderMatch {
    /// Lower-case name.
    pub name: Arc<str>,
    /// The comparison.
    pub value: HeaderValue,
    /// Turns the answer around.
    pub invert: bool,
    /// Treats a missing header as an empty one.
    pub missing_as_empty: bool,
}

impl HeaderMatch {
    /// True when the request meets the condition. Of several lines of one name, one that matches is enough; the inverse then asks
    /// that none does. A missing header matches neither way, unless it counts as an empty one (all of this as Envoy 1.40 does).
    #[must_use]
    pub fn matches(&self, request: &impl RequestFacts) -> bool {
        let found = match &*self.name {
            ":method" => Some(self.value.matches(request.method().as_bytes())),
            ":path" => Some(self.value.matches(request.path().as_bytes())),
            ":authority" | "host" => Some(self.value.matches(request.authority().as_bytes())),
            ":scheme" => Some(self.value.matches(request.scheme().as_bytes())),
            name => request.any_line(name, &|line| self.value.matches(line)),
        };
        let found = found.or_else(|| self.missing_as_empty.then(|| self.value.matches(b"")));
        match (&self.value, found) {
            (HeaderValue::Present(want), found) => (found.is_some() == *want) != self.invert,
            (_, None) => false,
            (_, Some(matched)) => matched != self.invert,
        }
    }
}

impl HeaderValue {
    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Present(want) => *want,
            Self::Text { matcher, ignore_case } => matcher.matches(value, *ignore_case),
            Self::Range { start, end } => std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .is_some_and(|number| (*start..*end).contains(&number)),
        }
    }
}

/// One condition on a query parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryMatch {
    /// Name of the parameter.
    pub name: Arc<str>,
    /// The comparison; `None` asks only that it is there.
    pub value: Option<StringMatch>,
}

impl QueryMatch {
    /// True when the query of `path` meets the condition; the first parameter of the name counts, as in Envoy.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let query = path.split_once('?').map_or("", |(_, query)| query);
        let query = query.split('#').next().unwrap_or_default();
        let value = query.split('&').find_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name == &*self.name).then_some(value)
        });
        match (&self.value, value) {
            (None, value) => value.is_some(),
            (Some(_), None) => false,
            (Some(matcher), Some(value)) => matcher.matches(value.as_bytes(), false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_regex_must_match_the_whole_value() {
        let regex = FullRegex::new("a|b").expect("valid");
        for (value, want) in [("a", true), ("b", true), ("ab", false), ("", false)] {
            assert_eq!(regex.matches(value.as_bytes()), want, "{value}");
        }
        assert!(FullRegex::new("*").is_err());
    }

    #[test]
    fn strings_compare_with_and_without_case() {
        for (matcher, value, same_case, any_case) in [
            (StringMatch::Exact("Ab".into()), "Ab", true, true),
            (StringMatch::Exact("Ab".into()), "aB", false, true),
            (StringMatch::Exact("Ab".into()), "Abc", false, false),
            (StringMatch::Prefix("Ab".into()), "abC", false, true),
            (StringMatch::Prefix("Ab".into()), "A", false, false),
            (StringMatch::Suffix("Ab".into()), "xaB", false, true),
            (StringMatch::Suffix("Ab".into()), "b", false, false),
            (StringMatch::Contains("b".into()), "aBc", false, true),
            (StringMatch::Contains("".into()), "", true, true),
            (StringMatch::Regex(FullRegex::new("a+").expect("valid")), "AA", false, false),
        ] {
            let got = [false, true].map(|fold| matcher.matches(value.as_bytes(), fold));
            assert_eq!(got, [same_case, any_case], "{matcher:?} {value}");
        }
    }

    #[test]
    fn headers_match_as_in_envoy() {
        use crate::plan::Facts;
        let text =
            |text: &str| HeaderValue::Text { matcher: StringMatch::Exact(text.into()), ignore_case: false };
        let range = HeaderValue::Range { start: 1, end: 3 };
        let one = |value, invert, missing_as_empty| HeaderMatch {
            name: "x".into(),
            value,
            invert,
            missing_as_empty,
        };
        let (none, a, ab) = (vec![], vec!["a"], vec!["a", "b"]);
        for (matcher, lines, want) in [
            (one(text("a"), false, false), &a, true),
            (one(text("a"), false, false), &none, false),
            (one(text("a"), true, false), &none, false),
            (one(text("a"), true, true), &none, true),
            (one(text("a"), true, false), &a, false),
            // Each line is a value of its own.
            (one(text("a"), false, false), &ab, true),
            (one(text("b"), false, false), &ab, true),
            (one(text("a,b"), false, false), &ab, false),
            (one(text("b"), true, false), &ab, false),
            (one(text("c"), true, false), &ab, true),
            (one(text(""), false, true), &none, true),
            (one(text(""), true, true), &none, false),
            (one(HeaderValue::Present(true), false, false), &a, true),
            (one(HeaderValue::Present(true), true, false), &a, false),
            (one(HeaderValue::Present(false), false, false), &none, true),
            (one(HeaderValue::Present(true), false, true), &none, true),
            (one(range.clone(), false, false), &vec!["1"], true),
            (one(range.clone(), false, false), &vec!["3"], false),
            (one(range.clone(), false, false), &vec!["x"], false),
            (one(range, false, true), &none, false),
        ] {
            let facts = lines.iter().fold(Facts::get("h", "/"), |facts, line| facts.with("X", line));
            assert_eq!(matcher.matches(&facts), want, "{matcher:?} {lines:?}");
        }
        let method = HeaderMatch { name: ":method".into(), ..one(text("GET"), false, false) };
        assert!(method.matches(&Facts::get("h", "/")));
    }

    #[test]
    fn the_first_query_parameter_of_a_name_counts() {
        let matcher = |value: Option<&str>| QueryMatch {
            name: "v".into(),
            value: value.map(|v| StringMatch::Exact(v.into())),
        };
        for (path, value, want) in [
            ("/?v=2", Some("2"), true),
            ("/?v=1&v=2", Some("2"), false),
            ("/?x=1&v=2", Some("2"), true),
            ("/?v", None, true),
            ("/", None, false),
        ] {
            assert_eq!(matcher(value).matches(path), want, "{path} {value:?}");
        }
    }

    #[test]
    fn rewriting_by_regex_knows_groups() {
        let regex = FullRegex::new("^/service/([^/]+)(/.*)$").expect("valid");
        assert_eq!(regex.replace_all("/service/foo/v1", r"\2/instance/\1"), "/v1/instance/foo");
    }
}
