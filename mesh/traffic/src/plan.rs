//! The one decision: which virtual host, route and cluster a request takes, or what it is told instead.
//!
//! In: a route table, the facts of a request, a random draw. Out: a [`Choice`] that borrows from the snapshot, or a [`Reply`].
//! Kept true: no socket, clock or metric; the proxy and `pilot explain` run this very code. Not here: carrying it out (`proxy`).

use std::{borrow::Cow, sync::Arc, time::Duration};

use crate::{
    flags::ResponseFlags,
    matchers::FullRegex,
    names::Name,
    route::{
        Action, Direct, Forward, HeaderOp, PathMatch, PathRewrite, Redirect, RedirectPath, Route, RouteMatch,
        Split, Target, VirtualHost,
    },
    table::RouteTable,
};

/// What a decision may look at. Implemented by the proxy's request head.
pub trait RequestFacts {
    /// Method, e.g. `GET`.
    fn method(&self) -> &str;
    /// Path with its query.
    fn path(&self) -> &str;
    /// Host, as received.
    fn authority(&self) -> &str;
    /// `http` or `https`.
    fn scheme(&self) -> &str;
    /// The value of a header by lower-case name; several lines joined by commas.
    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>>;
    /// Whether some line of a header passes the test; `None` when it has none. Implement it where a header may have several lines.
    fn any_line(&self, name: &str, test: &dyn Fn(&[u8]) -> bool) -> Option<bool> {
        self.header(name).map(|value| test(&value))
    }
}

/// The facts of a request that exists only as a question (`pilot explain`, tests).
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Method.
    pub method: String,
    /// Path with its query.
    pub path: String,
    /// Host.
    pub authority: String,
    /// Scheme.
    pub scheme: String,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Facts {
    /// A plain GET.
    #[must_use]
    pub fn get(authority: &str, path: &str) -> Self {
        Self {
            method: "GET".to_owned(),
            path: path.to_owned(),
            authority: authority.to_owned(),
            scheme: "http".to_owned(),
            headers: Vec::new(),
        }
    }

    /// The same with one more header.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_ascii_lowercase(), value.to_owned()));
        self
    }
}

impl RequestFacts for Facts {
    fn method(&self) -> &str {
        &self.method
    }
    fn path(&self) -> &str {
        &self.path
    }
    fn authority(&self) -> &str {
        &self.authority
    }
    fn scheme(&self) -> &str {
        &self.scheme
    }
    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let mut values = self.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v);
        let first = values.next()?;
        let rest: Vec<_> = values.map(String::as_str).collect();
        match rest.is_empty() {
            true => Some(Cow::Borrowed(first.as_bytes())),
            false => Some(Cow::Owned(format!("{first},{}", rest.join(",")).into_bytes())),
        }
    }
    fn any_line(&self, name: &str, test: &dyn Fn(&[u8]) -> bool) -> Option<bool> {
        let mut lines = self.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| test(v.as_bytes()));
        let first = lines.next()?;
        Some(first || lines.any(|passes| passes))
    }
}

/// What a request takes.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'s> {
    /// The virtual host.
    pub host: &'s Arc<VirtualHost>,
    /// The route.
    pub route: &'s Arc<Route>,
}

/// An answer that the proxy gives itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Status.
    pub status: u16,
    /// Why, for the access log.
    pub flags: ResponseFlags,
    /// Why, in a word that may name the object (Envoy's response code details).
    pub detail: Cow<'static, str>,
    /// Body; empty for none.
    pub body: Cow<'static, [u8]>,
    /// `location`, for redirects.
    pub location: Option<String>,
}

impl Reply {
    /// A reply with a text body.
    #[must_use]
    pub fn new(status: u16, flags: ResponseFlags, detail: &'static str, body: &'static str) -> Self {
        let body = Cow::Borrowed(body.as_bytes());
        Self { status, flags, detail: Cow::Borrowed(detail), body, location: None }
    }

    /// 404: no virtual host or route matched.
    #[must_use]
    pub fn no_route() -> Self {
        Self::new(404, ResponseFlags::NO_ROUTE_FOUND, "route_not_found", "")
    }

    /// The route's cluster does not exist.
    #[must_use]
    pub fn no_cluster(status: u16) -> Self {
        Self::new(status, ResponseFlags::NO_CLUSTER_FOUND, "cluster_not_found", "")
    }
}

/// Finds the virtual host and route of a request.
///
/// # Errors
/// The reply to give when nothing matches.
pub fn plan<'s>(table: &'s RouteTable, request: &impl RequestFacts) -> Result<Choice<'s>, Reply> {
    let host = table.find(request.authority()).ok_or_else(Reply::no_route)?;
    let route =
        host.routes.iter().find(|route| matches(&route.matcher, request)).ok_or_else(Reply::no_route)?;
    Ok(Choice { host, route })
}

/// True when a request meets every condition of a route.
#[must_use]
pub fn matches(matcher: &RouteMatch, request: &impl RequestFacts) -> bool {
    let connect = request.method() == "CONNECT";
    path_matches(&matcher.path, bare(request.path()), matcher.ignore_case, connect)
        && matcher.headers.iter().all(|header| header.matches(request))
        && matcher.query.iter().all(|query| query.matches(request.path()))
        && (!matcher.grpc || is_grpc(request))
}

/// True for requests whose content type is gRPC's.
#[must_use]
pub fn is_grpc(request: &impl RequestFacts) -> bool {
    let kind = request.header("content-type");
    kind.is_some_and(|kind| {
        kind.strip_prefix(b"application/grpc").is_some_and(|rest| rest.is_empty() || rest[0] == b'+')
    })
}

fn bare(path: &str) -> &str {
    path.split(['?', '#']).next().unwrap_or_default()
}

/// True when `path` (without its query) meets the condition. CONNECT requests have no path: only [`PathMatch::Connect`] takes them.
#[must_use]
pub fn path_matches(matcher: &PathMatch, path: &str, ignore_case: bool, connect: bool) -> bool {
    let begins = |prefix: &str| match path.get(..prefix.len()) {
        Some(head) if ignore_case => head.eq_ignore_ascii_case(prefix),
        Some(head) => head == prefix,
        None => false,
    };
    match matcher {
        PathMatch::Connect => connect,
        _ if connect => false,
        PathMatch::Prefix(prefix) => begins(prefix),
        PathMatch::Segments(prefix) => {
            let prefix = prefix.trim_end_matches('/');
            begins(prefix) && (path.len() == prefix.len() || path.as_bytes()[prefix.len()] == b'/')
        }
        PathMatch::Exact(exact) if ignore_case => path.eq_ignore_ascii_case(exact),
        PathMatch::Exact(exact) => path == &**exact,
        PathMatch::Regex(regex) => regex.matches(path.as_bytes()),
    }
}

/// The cluster of a forwarding route for a uniformly drawn number, and the arm when it is a split.
#[must_use]
pub fn target(forward: &Forward, draw: u64) -> (&Name, Option<&crate::route::Arm>) {
    match &forward.target {
        Target::Cluster(name) => (name, None),
        Target::Split(split) => {
            let arm = Split::pick(split, draw);
            (&arm.cluster, Some(arm))
        }
    }
}

/// How long a request may take; `None` for no limit. Where the route sets a limit for gRPC requests, it takes the place of the
/// route's timeout: a client may ask for less, and for anything when the limit is zero.
#[must_use]
pub fn timeout(forward: &Forward, request: &impl RequestFacts) -> Option<Duration> {
    let Some(cap) = forward.max_grpc_timeout.filter(|_| is_grpc(request)) else { return forward.timeout };
    let asked = request.header("grpc-timeout").and_then(|value| grpc_timeout(&value));
    let limits = [Some(cap), asked].into_iter().flatten();
    limits.filter(|limit| !limit.is_zero()).min()
}

/// Reads `grpc-timeout`: at most eight digits and a unit (gRPC over HTTP/2).
#[must_use]
pub fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    if digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// The reply of a route that answers itself; `None` when it forwards.
#[must_use]
pub fn own_answer(route: &Route, request: &impl RequestFacts) -> Option<Reply> {
    match &route.action {
        Action::Forward(_) => None,
        Action::Direct(Direct { status, body }) => Some(Reply {
            status: *status,
            flags: ResponseFlags::NONE,
            detail: "direct_response".into(),
            body: Cow::Owned(body.to_vec()),
            location: None,
        }),
        Action::Redirect(redirect) => Some(Reply {
            status: redirect.status,
            flags: ResponseFlags::NONE,
            detail: "direct_response".into(),
            body: Cow::Borrowed(b""),
            location: Some(location(redirect, &route.matcher, request)),
        }),
    }
}

fn location(redirect: &Redirect, matcher: &RouteMatch, request: &impl RequestFacts) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or_else(|| request.scheme());
    let (host, own_port) = split_port(request.authority());
    // The request's own port goes when the route names one, or when it was the standard one of a scheme that changes (Envoy).
    let stays = |port: &u16| scheme == request.scheme() || Some(*port) != standard_port(request.scheme());
    let (host, port) = match &redirect.host {
        Some(host) => (&**host, redirect.port),
        None => (host, redirect.port.or(own_port.filter(stays))),
    };
    let (path, query) = match request.path().split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (request.path(), None),
    };
    let path = match &redirect.path {
        None => Cow::Borrowed(path),
        Some(RedirectPath::Full(full)) => Cow::Borrowed(&**full),
        Some(RedirectPath::Prefix(prefix)) => Cow::Owned(replace_prefix(&matcher.path, path, prefix)),
    };
    let mut location = format!("{scheme}://{host}");
    if let Some(port) = port {
        location.push_str(&format!(":{port}"));
    }
    location.push_str(&path);
    if let Some(query) = query.filter(|_| !redirect.strip_query && !path.contains('?')) {
        location.push('?');
        location.push_str(query);
    }
    location
}

fn standard_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

fn split_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (authority, None),
        },
        _ => (authority, None),
    }
}

/// The path that is sent upstream, when the route changes it.
#[must_use]
pub fn rewritten_path(forward: &Forward, matcher: &RouteMatch, path: &str) -> Option<String> {
    let rewrite = forward.path_rewrite.as_ref()?;
    let (bare, query) = match path.find(['?', '#']) {
        Some(at) => path.split_at(at),
        None => (path, ""),
    };
    let new = match rewrite {
        PathRewrite::Prefix(prefix) => replace_prefix(&matcher.path, bare, prefix),
        PathRewrite::Regex { pattern, substitution } => FullRegex::replace_all(pattern, bare, substitution),
    };
    Some(new + query)
}

fn replace_prefix(matcher: &PathMatch, path: &str, with: &str) -> String {
    let matched = match matcher {
        PathMatch::Prefix(prefix) | PathMatch::Segments(prefix) => prefix.len(),
        PathMatch::Exact(exact) => exact.len(),
        PathMatch::Regex(_) | PathMatch::Connect => path.len(),
    };
    format!("{with}{}", path.get(matched..).unwrap_or_default())
}

/// The value of a [`HeaderOp`]'s text: `%%` is a percent sign; commands of Envoy's formatter are left to the proxy.
#[must_use]
pub fn literal_value(op: &HeaderOp) -> Option<Cow<'_, str>> {
    let (HeaderOp::Set(_, value) | HeaderOp::Add(_, value)) = op else { return None };
    if value.contains("%%") { Some(Cow::Owned(value.replace("%%", "%"))) } else { Some(Cow::Borrowed(value)) }
}

#[cfg(test)]
mod tests;
