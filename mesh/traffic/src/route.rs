//! Routes: which request goes where, and what is done to it on the way.
//!
//! In: pilot's translation or xDS. Out: [`RouteConfiguration`] and its parts, immutable and shared. Kept true: a split has a positive total weight.
//! Not here: finding the virtual host (`table`), the decision (`plan`).

use std::{sync::Arc, time::Duration};

use crate::{
    filter::PerRoute,
    matchers::{FullRegex, HeaderMatch, QueryMatch},
    names::{Name, SourceObject},
    retry::RetryPolicy,
};

/// A named set of virtual hosts (Envoy's RouteConfiguration).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RouteConfiguration {
    /// Name, e.g. `8080` or `inbound|80||`.
    pub name: Name,
    /// Virtual hosts, in order.
    pub virtual_hosts: Vec<Arc<VirtualHost>>,
    /// More virtual hosts come as resources of their own (VHDS).
    pub vhds: bool,
    /// Refuses the configuration when a route names a cluster that does not exist.
    pub validate_clusters: bool,
    /// The port of Host is ignored when a virtual host is searched.
    pub ignore_port: bool,
    /// Applied to every request and response of this configuration.
    pub headers: HeaderOps,
}

/// Routes of a set of domains.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VirtualHost {
    /// Name, `host:port` in Istio.
    pub name: Name,
    /// Exact names, `*.suffix`, `prefix.*` or `*`. Compared without case.
    pub domains: Vec<Name>,
    /// Routes; the first that matches wins.
    pub routes: Vec<Arc<Route>>,
    /// Sends `x-envoy-attempt-count` upstream.
    pub include_attempt_count: bool,
    /// Redirects plaintext requests to https.
    pub require_tls: bool,
    /// Applied to every request and response of this host.
    pub headers: HeaderOps,
    /// Filters' settings for this host.
    pub filters: PerRoute,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Name; Istio: the VirtualService route's, else `default`.
    pub name: Name,
    /// What must hold.
    pub matcher: RouteMatch,
    /// What happens then.
    pub action: Action,
    /// Applied to the request and the response.
    pub headers: HeaderOps,
    /// Filters' settings for this route.
    pub filters: PerRoute,
    /// The object that the route was made from.
    pub source: Option<SourceObject>,
    /// Operation name of spans, e.g. `reviews.default.svc.cluster.local:8092/*`.
    pub operation: Option<Name>,
}

/// Conditions of a route: all must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RouteMatch {
    /// On the path without its query.
    pub path: PathMatch,
    /// Folds ASCII case of the path (never of a regex).
    pub ignore_case: bool,
    /// On headers.
    pub headers: Vec<HeaderMatch>,
    /// On query parameters.
    pub query: Vec<QueryMatch>,
    /// Only gRPC requests.
    pub grpc: bool,
}

impl RouteMatch {
    /// True when every request matches, so that nothing after this route can be reached.
    #[must_use]
    pub fn is_catch_all(&self) -> bool {
        let any_path = matches!(&self.path, PathMatch::Prefix(p) if &**p == "/" || p.is_empty());
        any_path && self.headers.is_empty() && self.query.is_empty() && !self.grpc
    }
}

/// Condition on the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// Raw string prefix: `/foo` matches `/foobar`.
    Prefix(Name),
    /// Prefix of whole segments: `/foo` matches `/foo` and `/foo/bar`.
    Segments(Name),
    /// The whole path.
    Exact(Name),
    /// A regex over the whole path.
    Regex(FullRegex),
    /// CONNECT requests.
    Connect,
}

impl Default for PathMatch {
    fn default() -> Self {
        Self::Prefix("/".into())
    }
}

/// What a route does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Sends the request on.
    Forward(Box<Forward>),
    /// Answers with a redirect.
    Redirect(Redirect),
    /// Answers with a fixed response.
    Direct(Direct),
}

/// Sending on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forward {
    /// Cluster or split.
    pub target: Target,
    /// From the request's end to the response's end; `None` for no limit.
    pub timeout: Option<Duration>,
    /// Longest silence of the stream; `None` takes the listener's.
    pub idle_timeout: Option<Duration>,
    /// Upper limit of a `grpc-timeout` the client asks for; `Some(0)` takes it as it is.
    pub max_grpc_timeout: Option<Duration>,
    /// Retries.
    pub retry: Option<RetryPolicy>,
    /// Where the key of a consistent hash comes from, in order.
    pub hash: Vec<HashPolicy>,
    /// Copies of the request.
    pub mirrors: Vec<Mirror>,
    /// Replaces the Host.
    pub host_rewrite: Option<Name>,
    /// Replaces part of the path.
    pub path_rewrite: Option<PathRewrite>,
    /// Status when the cluster does not exist: 503, or 500 for Gateway API back ends.
    pub cluster_not_found: u16,
    /// Cross-origin rules.
    pub cors: Option<Box<Cors>>,
}

/// Where a request is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// One cluster.
    Cluster(Name),
    /// Several, by weight.
    Split(Split),
}

impl Default for Target {
    fn default() -> Self {
        Self::Cluster(Name::default())
    }
}

impl Target {
    /// The arms with their weights.
    pub fn arms(&self) -> impl Iterator<Item = (&Name, u32)> {
        let (one, many) = match self {
            Self::Cluster(name) => (Some((name, 1)), None),
            Self::Split(split) => (None, Some(split.arms.iter().map(|arm| (&arm.cluster, arm.weight)))),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

/// Clusters by weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    arms: Vec<Arm>,
    total: u64,
}

/// One cluster of a [`Split`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arm {
    /// The cluster.
    pub cluster: Name,
    /// Its share of the total.
    pub weight: u32,
    /// Applied to requests and responses that take this arm.
    pub headers: HeaderOps,
    /// Replaces the Host for this arm.
    pub host_rewrite: Option<Name>,
}

impl Split {
    /// A split over `arms`.
    ///
    /// # Errors
    /// When the weights sum to zero.
    pub fn new(arms: Vec<Arm>) -> Result<Self, &'static str> {
        match arms.iter().map(|arm| u64::from(arm.weight)).sum() {
            0 => Err("weights sum to zero"),
            total => Ok(Self { arms, total }),
        }
    }

    /// Its arms.
    #[must_use]
    pub fn arms(&self) -> &[Arm] {
        &self.arms
    }

    /// The arm for a uniformly drawn number.
    #[must_use]
    pub fn pick(&self, draw: u64) -> &Arm {
        let mut left = draw % self.total;
        for arm in &self.arms {
            if left < u64::from(arm.weight) {
                return arm;
            }
            left -= u64::from(arm.weight);
        }
        // The weights sum to `total`, so the loop has returned; the last arm is the harmless answer.
        &self.arms[self.arms.len() - 1]
    }
}

/// Where a consistent hash takes its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashPolicy {
    /// Value of a header.
    Header(Name),
    /// Value of a cookie; made and set when absent and a lifetime is given.
    Cookie {
        /// Name of the cookie.
        name: Name,
        /// Lifetime of a cookie that we make; zero for a session cookie, `None` never makes one.
        ttl: Option<Duration>,
        /// Its path.
        path: Option<Name>,
    },
    /// The client's address.
    SourceIp,
    /// Value of a query parameter.
    Query(Name),
}

/// A copy of requests, sent and forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Where to.
    pub cluster: Name,
    /// How many of a million requests.
    pub per_million: u32,
}

/// A replacement in the path. The query is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathRewrite {
    /// Replaces the matched prefix (or the whole exact path).
    Prefix(Name),
    /// Replaces what a regex finds.
    Regex {
        /// What is searched.
        pattern: FullRegex,
        /// What takes its place; `\1` names a group.
        substitution: Name,
    },
}

/// A redirect answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// New scheme.
    pub scheme: Option<Name>,
    /// New host.
    pub host: Option<Name>,
    /// New port.
    pub port: Option<u16>,
    /// New path.
    pub path: Option<RedirectPath>,
    /// Drops the query.
    pub strip_query: bool,
}

/// How a redirect changes the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedirectPath {
    /// The whole path (with a query, if it has one).
    Full(Name),
    /// Only the prefix that matched.
    Prefix(Name),
}

/// A fixed answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Direct {
    /// Status.
    pub status: u16,
    /// Body, at most 1 MiB.
    pub body: Arc<[u8]>,
}

/// Cross-origin rules of a route.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cors {
    /// Origins that may ask.
    pub origins: Vec<crate::matchers::StringMatch>,
    /// Value of `access-control-allow-methods`.
    pub methods: Name,
    /// Value of `access-control-allow-headers`.
    pub headers: Name,
    /// Value of `access-control-expose-headers`.
    pub expose: Name,
    /// Value of `access-control-max-age`, in seconds.
    pub max_age: Name,
    /// Sends `access-control-allow-credentials: true`.
    pub credentials: bool,
    /// Forwards a preflight whose origin matches nothing. Istio's default.
    pub forward_unmatched_preflights: bool,
}

/// Changes of request and response headers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderOps {
    /// Before the request is sent upstream.
    pub request: Vec<HeaderOp>,
    /// Before the response is sent downstream.
    pub response: Vec<HeaderOp>,
}

impl HeaderOps {
    /// True when nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }
}

/// One change of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderOp {
    /// Replaces all lines of the name.
    Set(Name, Name),
    /// Adds a line.
    Add(Name, Name),
    /// Removes all lines of the name.
    Remove(Name),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arm(cluster: &str, weight: u32) -> Arm {
        Arm { cluster: cluster.into(), weight, headers: HeaderOps::default(), host_rewrite: None }
    }

    #[test]
    fn a_split_gives_each_arm_exactly_its_weight() {
        let split = Split::new(vec![arm("a", 80), arm("b", 20), arm("c", 0)]).expect("positive");
        let picked = |name: &str| (0..100).filter(|draw| &*split.pick(*draw).cluster == name).count();
        assert_eq!((picked("a"), picked("b"), picked("c")), (80, 20, 0));
        assert_eq!(Split::new(vec![arm("a", 0)]), Err("weights sum to zero"));
    }
}
