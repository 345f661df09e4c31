//! The model's matchers → Envoy's.
//!
//! In: `crate::matchers`. Out: messages of `envoy.type.matcher.v3` and `envoy.config.route.v3`. Kept true: only forms that are not deprecated.
//! Not here: the messages that hold them.

use xds::envoy::{
    config::route::v3 as route,
    r#type::{
        matcher::v3::{self as pb, string_matcher::MatchPattern},
        v3::Int64Range,
    },
};

use crate::matchers::{FullRegex, HeaderMatch, HeaderValue, QueryMatch, StringMatch};

pub(super) fn regex(from: &FullRegex) -> pb::RegexMatcher {
    pb::RegexMatcher { regex: from.pattern().to_owned(), ..Default::default() }
}

pub(super) fn string(from: &StringMatch, ignore_case: bool) -> pb::StringMatcher {
    let pattern = match from {
        StringMatch::Exact(text) => MatchPattern::Exact(text.to_string()),
        StringMatch::Prefix(text) => MatchPattern::Prefix(text.to_string()),
        StringMatch::Suffix(text) => MatchPattern::Suffix(text.to_string()),
        StringMatch::Contains(text) => MatchPattern::Contains(text.to_string()),
        StringMatch::Regex(pattern) => MatchPattern::SafeRegex(regex(pattern)),
    };
    pb::StringMatcher { match_pattern: Some(pattern), ignore_case }
}

/// A matcher that heeds case.
pub(super) fn plain(from: &StringMatch) -> pb::StringMatcher {
    string(from, false)
}

pub(super) fn path(matcher: pb::StringMatcher) -> pb::PathMatcher {
    pb::PathMatcher { rule: Some(pb::path_matcher::Rule::Path(matcher)) }
}

pub(super) fn header(from: &HeaderMatch) -> route::HeaderMatcher {
    use route::header_matcher::HeaderMatchSpecifier as S;
    let specifier = match &from.value {
        HeaderValue::Present(present) => S::PresentMatch(*present),
        HeaderValue::Text { matcher, ignore_case } => S::StringMatch(string(matcher, *ignore_case)),
        HeaderValue::Range { start, end } => S::RangeMatch(Int64Range { start: *start, end: *end }),
    };
    route::HeaderMatcher {
        name: from.name.to_string(),
        invert_match: from.invert,
        treat_missing_header_as_empty: from.missing_as_empty,
        header_match_specifier: Some(specifier),
    }
}

pub(super) fn query(from: &QueryMatch) -> route::QueryParameterMatcher {
    use route::query_parameter_matcher::QueryParameterMatchSpecifier as S;
    let specifier = from.value.as_ref().map_or(S::PresentMatch(true), |value| S::StringMatch(plain(value)));
    route::QueryParameterMatcher {
        name: from.name.to_string(),
        query_parameter_match_specifier: Some(specifier),
    }
}
