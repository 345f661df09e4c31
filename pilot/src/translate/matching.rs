//! Conditions of HTTP routes: paths, headers, methods, query parameters.
//!
//! In: Istio's HTTPMatchRequest. Out: [`RouteMatch`]. Kept true: header names ignore case, values do not; a regex must
//! match the whole value. Not here: conditions on the client, which are settled before (`route`).

use mesh_config::kinds::{HttpMatch, StringMatch};
use mesh_traffic::{
    matchers::{self, FullRegex, HeaderMatch, HeaderValue},
    route::{PathMatch, RouteMatch},
};

/// Translates one match.
///
/// # Errors
/// The field and why it cannot be used.
pub fn route_match(from: &HttpMatch) -> Result<RouteMatch, (String, String)> {
    let path = match &from.uri {
        None | Some(StringMatch::Present) => PathMatch::default(),
        Some(StringMatch::Exact(s)) => PathMatch::Exact(s.as_str().into()),
        Some(StringMatch::Prefix(s)) => PathMatch::Prefix(s.as_str().into()),
        Some(StringMatch::Regex(s)) if s == "*" => PathMatch::default(),
        Some(StringMatch::Regex(s)) => {
            PathMatch::Regex(FullRegex::new(s).map_err(|e| ("uri.regex".to_owned(), e))?)
        }
    };
    let mut headers = Vec::new();
    // The pseudo headers have fields of their own; under `headers` Istio ignores them.
    let own_field = |name: &str| matches!(name, "uri" | "scheme" | "method" | "authority");
    for (name, value) in from.headers.iter().filter(|(n, _)| !own_field(n)) {
        headers.push(header(name, value, false).map_err(|e| (format!("headers[{name}]"), e))?);
    }
    for (name, value) in from.without_headers.iter().filter(|(n, _)| !own_field(n)) {
        headers.push(header(name, value, true).map_err(|e| (format!("withoutHeaders[{name}]"), e))?);
    }
    for (name, field, value) in [
        (":method", "method", &from.method),
        (":authority", "authority", &from.authority),
        (":scheme", "scheme", &from.scheme),
    ] {
        if let Some(value) = value {
            headers.push(header(name, value, false).map_err(|e| (field.to_owned(), e))?);
        }
    }
    let mut query = Vec::new();
    for (name, value) in &from.query_params {
        let value = text(value).map_err(|e| (format!("queryParams[{name}]"), e))?;
        query.push(matchers::QueryMatch { name: name.as_str().into(), value });
    }
    Ok(RouteMatch { path, ignore_case: from.ignore_uri_case.unwrap_or(false), headers, query, grpc: false })
}

/// A condition on a header; with `without` it must not hold, and a missing header passes.
fn header(name: &str, value: &StringMatch, without: bool) -> Result<HeaderMatch, String> {
    let value = match text(value)? {
        None => HeaderValue::Present(true),
        Some(matcher) => HeaderValue::Text { matcher, ignore_case: false },
    };
    Ok(HeaderMatch {
        name: name.to_ascii_lowercase().into(),
        // An inverted match of a missing header fails, unless it counts as an empty one (Envoy, and what istiod sends).
        missing_as_empty: without && value != HeaderValue::Present(true),
        value,
        invert: without,
    })
}

/// A condition on a text; `None` for "present, whatever it is".
pub fn text(value: &StringMatch) -> Result<Option<matchers::StringMatch>, String> {
    Ok(match value {
        StringMatch::Present => None,
        StringMatch::Regex(s) if s == "*" => None,
        StringMatch::Exact(s) => Some(matchers::StringMatch::Exact(s.as_str().into())),
        StringMatch::Prefix(s) => Some(matchers::StringMatch::Prefix(s.as_str().into())),
        StringMatch::Regex(s) => Some(matchers::StringMatch::Regex(FullRegex::new(s)?)),
    })
}
