//! Conditions on texts, headers and queries, and shares of requests.
//!
//! In: the model's matchers. Out: Envoy's. Kept true: a regex is written bare; Envoy matches the whole value.
//! Not here: the routes that hold them (`route`).

use mesh_traffic::matchers::{FullRegex, HeaderMatch, HeaderValue, QueryMatch, StringMatch};
use xds::envoy::{
    config::{core::v3 as core, route::v3 as route},
    r#type::{matcher::v3 as pb, v3 as kinds},
};

pub(super) fn regex(from: &FullRegex) -> pb::RegexMatcher {
    pb::RegexMatcher { regex: from.pattern().to_owned(), ..Default::default() }
}

pub(super) fn string(from: &StringMatch, ignore_case: bool) -> pb::StringMatcher {
    use pb::string_matcher::MatchPattern as P;
    let pattern = match from {
        StringMatch::Exact(s) => P::Exact(s.to_string()),
        StringMatch::Prefix(s) => P::Prefix(s.to_string()),
        StringMatch::Suffix(s) => P::Suffix(s.to_string()),
        StringMatch::Contains(s) => P::Contains(s.to_string()),
        StringMatch::Regex(r) => P::SafeRegex(regex(r)),
    };
    // Envoy refuses folding case in a regex, and the model never does it there.
    let ignore_case = ignore_case && !matches!(from, StringMatch::Regex(_));
    pb::StringMatcher { ignore_case, match_pattern: Some(pattern) }
}

pub(super) fn header(from: &HeaderMatch) -> route::HeaderMatcher {
    use route::header_matcher::HeaderMatchSpecifier as S;
    let specifier = match &from.value {
        HeaderValue::Present(present) => S::PresentMatch(*present),
        HeaderValue::Text { matcher, ignore_case } => S::StringMatch(string(matcher, *ignore_case)),
        HeaderValue::Range { start, end } => S::RangeMatch(kinds::Int64Range { start: *start, end: *end }),
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
    let specifier = match &from.value {
        None => S::PresentMatch(true),
        Some(matcher) => S::StringMatch(string(matcher, false)),
    };
    route::QueryParameterMatcher {
        name: from.name.to_string(),
        query_parameter_match_specifier: Some(specifier),
    }
}

pub(super) fn path(matcher: &StringMatch, ignore_case: bool) -> pb::PathMatcher {
    pb::PathMatcher { rule: Some(pb::path_matcher::Rule::Path(string(matcher, ignore_case))) }
}

/// Millionths.
pub(super) fn share(per_million: u32) -> kinds::FractionalPercent {
    kinds::FractionalPercent {
        numerator: per_million,
        denominator: kinds::fractional_percent::DenominatorType::Million.into(),
    }
}

pub(super) fn runtime_share(per_million: u32) -> core::RuntimeFractionalPercent {
    core::RuntimeFractionalPercent { default_value: Some(share(per_million)), runtime_key: String::new() }
}
