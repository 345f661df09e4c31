//! Matching of strings, headers and query parameters, compiled when configuration arrives.
//!
//! In: patterns. Out: `matches(value) -> bool`. Kept true: a regex must match the whole value (RE2 full match, as Istio and Envoy).
//! Not here: which route a match belongs to (`route`).

use std::{borrow::Cow, fmt, sync::Arc};

use regex::bytes::{Regex, RegexBuilder};

use crate::plan::RequestFacts;

/// Compiled regex programs may take this many bytes; larger patterns are refused.
const REGEX_SIZE: usize = 1 << 20;

/// A regular expression that must match all of a value.
#[derive(Clone)]
pub struct FullRegex {
    pattern: Arc<str>,
    compiled: Regex,
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
        Ok(Self { pattern: pattern.into(), compiled })
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
        let Ok(free) = regex::Regex::new(&self.pattern) else { return value.to_owned() };
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
        if ignore_case && !matches!(self, Self::Regex(_)) {
            let lower = value.to_ascii_lowercase();
            return self.lower().matches(&lower, false);
        }
        match self {
            Self::Exact(want) => value == want.as_bytes(),
            Self::Prefix(want) => value.starts_with(want.as_bytes()),
            Self::Suffix(want) => value.ends_with(want.as_bytes()),
            Self::Contains(want) => memchr_find(value, want.as_bytes()),
            Self::Regex(regex) => regex.matches(value),
        }
    }

    fn lower(&self) -> Cow<'_, Self> {
        let fold = |s: &Arc<str>| -> Arc<str> { s.to_ascii_lowercase().into() };
        match self {
            Self::Exact(s) => Cow::Owned(Self::Exact(fold(s))),
            Self::Prefix(s) => Cow::Owned(Self::Prefix(fold(s))),
            Self::Suffix(s) => Cow::Owned(Self::Suffix(fold(s))),
            Self::Contains(s) => Cow::Owned(Self::Contains(fold(s))),
            Self::Regex(_) => Cow::Borrowed(self),
        }
    }
}

fn memchr_find(hay: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || hay.windows(needle.len()).any(|window| window == needle)
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
    /// Turns the answer around. A missing header then matches, except for [`HeaderValue::Present`].
    pub invert: bool,
    /// Treats a missing header as an empty one.
    pub missing_as_empty: bool,
}

impl HeaderMatch {
    /// True when the request meets the condition. Several lines of one name count as one, joined by commas.
    #[must_use]
    pub fn matches(&self, request: &impl RequestFacts) -> bool {
        let value = match &*self.name {
            ":method" => Some(Cow::Borrowed(request.method().as_bytes())),
            ":path" => Some(Cow::Borrowed(request.path().as_bytes())),
            ":authority" | "host" => Some(Cow::Borrowed(request.authority().as_bytes())),
            ":scheme" => Some(Cow::Borrowed(request.scheme().as_bytes())),
            name => request.header(name),
        };
        let value = match value {
            None if self.missing_as_empty => Some(Cow::Borrowed(&b""[..])),
            value => value,
        };
        let matched = match (&self.value, value) {
            (HeaderValue::Present(want), value) => value.is_some() == *want,
            (_, None) => false,
            (HeaderValue::Text { matcher, ignore_case }, Some(value)) => {
                matcher.matches(&value, *ignore_case)
            }
            (HeaderValue::Range { start, end }, Some(value)) => std::str::from_utf8(&value)
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .is_some_and(|number| (*start..*end).contains(&number)),
        };
        matched != self.invert
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
        let exact = StringMatch::Exact("Ab".into());
        assert!(exact.matches(b"Ab", false) && !exact.matches(b"ab", false) && exact.matches(b"aB", true));
        assert!(StringMatch::Contains("b".into()).matches(b"abc", false));
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
