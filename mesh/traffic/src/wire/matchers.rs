//! Envoy's matchers and percentages → the model's.
//!
//! In: messages of `envoy.type.matcher.v3` and `envoy.config.route.v3`. Out: `crate::matchers`. Kept true: a regex is compiled here, once.
//! Not here: the messages that hold them.

use xds::envoy::{
    config::route::v3 as route,
    r#type::{matcher::v3 as pb, v3::FractionalPercent},
};

use super::{Decoded, Reject, refuse};
use crate::{
    filter::MILLION,
    matchers::{FullRegex, HeaderMatch, HeaderValue, QueryMatch, StringMatch},
};

pub(super) fn regex(wire: &pb::RegexMatcher) -> Decoded<FullRegex> {
    FullRegex::new(&wire.regex).map_err(|why| Reject::new(why).at("regex"))
}

/// A string matcher and whether it folds case.
pub(super) fn string(wire: &pb::StringMatcher) -> Decoded<(StringMatch, bool)> {
    use pb::string_matcher::MatchPattern as P;
    let matcher = match wire.match_pattern.as_ref().ok_or_else(|| Reject::new("no pattern"))? {
        P::Exact(text) => StringMatch::Exact(text.as_str().into()),
        P::Prefix(text) => StringMatch::Prefix(text.as_str().into()),
        P::Suffix(text) => StringMatch::Suffix(text.as_str().into()),
        P::Contains(text) => StringMatch::Contains(text.as_str().into()),
        P::SafeRegex(wire) => StringMatch::Regex(regex(wire).map_err(|e| e.at("safe_regex"))?),
        P::Custom(_) => return Err(Reject::new("custom matchers are not supported").at("custom")),
    };
    Ok((matcher, wire.ignore_case))
}

/// A string matcher where folding case has no place.
pub(super) fn plain(wire: &pb::StringMatcher) -> Decoded<StringMatch> {
    match string(wire)? {
        (matcher, false) => Ok(matcher),
        (_, true) => Err(Reject::new("not supported here").at("ignore_case")),
    }
}

#[allow(deprecated, reason = "istiod and older control planes still send the deprecated forms")]
pub(super) fn header(wire: &route::HeaderMatcher) -> Decoded<HeaderMatch> {
    use route::header_matcher::HeaderMatchSpecifier as S;
    let exact = |matcher| HeaderValue::Text { matcher, ignore_case: false };
    let value = match wire.header_match_specifier.as_ref() {
        None => HeaderValue::Present(true),
        Some(S::PresentMatch(present)) => HeaderValue::Present(*present),
        Some(S::ExactMatch(text)) => exact(StringMatch::Exact(text.as_str().into())),
        Some(S::PrefixMatch(text)) => exact(StringMatch::Prefix(text.as_str().into())),
        Some(S::SuffixMatch(text)) => exact(StringMatch::Suffix(text.as_str().into())),
        Some(S::ContainsMatch(text)) => exact(StringMatch::Contains(text.as_str().into())),
        Some(S::SafeRegexMatch(wire)) => {
            exact(StringMatch::Regex(regex(wire).map_err(|e| e.at("safe_regex_match"))?))
        }
        Some(S::StringMatch(wire)) => {
            let (matcher, ignore_case) = string(wire).map_err(|e| e.at("string_match"))?;
            HeaderValue::Text { matcher, ignore_case }
        }
        Some(S::RangeMatch(range)) => HeaderValue::Range { start: range.start, end: range.end },
    };
    if wire.name.is_empty() {
        return Err(Reject::new("a header needs a name").at("name"));
    }
    Ok(HeaderMatch {
        name: wire.name.to_ascii_lowercase().into(),
        value,
        invert: wire.invert_match,
        missing_as_empty: wire.treat_missing_header_as_empty,
    })
}

pub(super) fn query(wire: &route::QueryParameterMatcher) -> Decoded<QueryMatch> {
    use route::query_parameter_matcher::QueryParameterMatchSpecifier as S;
    let value = match wire.query_parameter_match_specifier.as_ref() {
        None | Some(S::PresentMatch(true)) => None,
        Some(S::PresentMatch(false)) => {
            return Err(Reject::new("only presence is supported").at("present_match"));
        }
        Some(S::StringMatch(wire)) => Some(plain(wire).map_err(|e| e.at("string_match"))?),
    };
    Ok(QueryMatch { name: wire.name.as_str().into(), value })
}

/// A share in millionths. Absent is all (Envoy's default for a fault is none: see the caller).
pub(super) fn per_million(wire: &FractionalPercent) -> Decoded<u32> {
    let unit = match wire.denominator {
        0 => MILLION / 100,
        1 => MILLION / 10_000,
        2 => 1,
        other => return Err(Reject::new(format!("unknown denominator {other}")).at("denominator")),
    };
    Ok(wire.numerator.saturating_mul(unit).min(MILLION))
}

/// A runtime key has no meaning here; its default is taken.
pub(super) fn runtime_fraction(
    wire: &xds::envoy::config::core::v3::RuntimeFractionalPercent,
) -> Decoded<u32> {
    wire.default_value.as_ref().map_or(Ok(MILLION), per_million)
}

/// A path matcher of RBAC.
pub(super) fn path(wire: &pb::PathMatcher) -> Decoded<(StringMatch, bool)> {
    match wire.rule.as_ref().ok_or_else(|| Reject::new("no rule"))? {
        pb::path_matcher::Rule::Path(wire) => string(wire).map_err(|e| e.at("path")),
    }
}

/// A metadata matcher is always refused; it is named here so that the error says what it is.
pub(super) fn no_metadata<T>(_: &T) -> Reject {
    Reject::new("conditions on dynamic metadata are not supported")
}

/// Checks that a `GrpcRouteMatchOptions`-like message has nothing inside that we would drop.
pub(super) fn nothing_else(wire: &route::RouteMatch) -> Decoded<()> {
    refuse!(wire, tls_context, dynamic_metadata, filter_state, cookies);
    Ok(())
}
