//! Role-based access: who may do what, as compiled rules over verified facts.
//!
//! In: AuthorizationPolicy (through pilot) or Envoy's RBAC messages. Out: [`Rbac::check`]. Kept true: a principal is compared
//! only with an identity that TLS verified; a rule that cannot be evaluated never allows. Not here: answering (`proxy`).

use std::net::{IpAddr, SocketAddr};

use crate::{
    listener::Cidr,
    matchers::{HeaderMatch, StringMatch},
    names::Name,
    plan::RequestFacts,
    route::PathMatch,
};

/// One set of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rbac {
    /// What a matching policy does.
    pub action: Effect,
    /// Policies, by name.
    pub policies: Vec<Policy>,
    /// Only logs and counts; never refuses.
    pub shadow: bool,
}

/// What a matching policy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Only what matches may pass.
    Allow,
    /// What matches may not pass.
    Deny,
    /// Everything passes; matches are logged.
    Log,
}

/// Matches when some permission and some principal match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Name, e.g. `ns[default]-policy[deny-admin]-rule[0]`.
    pub name: Name,
    /// What is asked for.
    pub permissions: Vec<Rule>,
    /// Who asks.
    pub principals: Vec<Rule>,
}

/// One condition. Permissions and principals share it: each kind says what it looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// Always.
    Any,
    /// All of them.
    All(Vec<Rule>),
    /// One of them.
    OneOf(Vec<Rule>),
    /// Not this.
    Not(Box<Rule>),
    /// A header or pseudo header.
    Header(HeaderMatch),
    /// The path without its query.
    Path {
        /// The comparison.
        matcher: StringMatch,
        /// Folds ASCII case.
        ignore_case: bool,
    },
    /// The path as a URL template or prefix.
    UrlPath(PathMatch),
    /// The address that the connection came to.
    DestinationIp(Cidr),
    /// The port that the connection came to.
    DestinationPort(u16),
    /// The client's address: the connection's, whatever headers say.
    DirectRemoteIp(Cidr),
    /// The client's address as the listener determined it (`x-forwarded-for` from trusted proxies).
    RemoteIp(Cidr),
    /// The verified identity: the whole `spiffe://…` URI. `None` asks only that there is one.
    Authenticated(Option<StringMatch>),
    /// The server name that the client asked for in TLS.
    ServerName(StringMatch),
}

/// What rules look at, besides the request.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    /// The verified SPIFFE id as a URI; `None` for plaintext or an unverified certificate.
    pub identity: Option<&'a str>,
    /// Address of the connection's other end.
    pub direct: IpAddr,
    /// The client's address.
    pub remote: IpAddr,
    /// Where the connection came to.
    pub destination: SocketAddr,
    /// Server name of the TLS session; empty for none.
    pub server_name: &'a str,
}

/// The answer of [`Rbac::check`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// May pass.
    Allowed,
    /// May not pass; the policy that says so, or `None` when no ALLOW policy matched.
    Denied(Option<&'a Name>),
}

impl Rbac {
    /// Judges a request.
    #[must_use]
    pub fn check(&self, request: &impl RequestFacts, peer: &Peer<'_>) -> Verdict<'_> {
        self.judge(|rule| rule.matches(Some(request), peer))
    }

    /// Judges a connection whose bytes are not HTTP: conditions on requests do not hold.
    #[must_use]
    pub fn check_connection(&self, peer: &Peer<'_>) -> Verdict<'_> {
        self.judge(|rule| rule.matches::<NoRequest>(None, peer))
    }

    fn judge(&self, holds: impl Fn(&Rule) -> bool) -> Verdict<'_> {
        let hit =
            |policy: &&Policy| policy.permissions.iter().any(&holds) && policy.principals.iter().any(&holds);
        let found = self.policies.iter().find(hit);
        match (self.action, found) {
            (Effect::Allow, None) => Verdict::Denied(None),
            (Effect::Deny, Some(policy)) => Verdict::Denied(Some(&policy.name)),
            _ => Verdict::Allowed,
        }
    }
}

/// Stands for "there is no request" where a type is needed.
enum NoRequest {}

impl RequestFacts for NoRequest {
    fn method(&self) -> &str {
        match *self {}
    }
    fn path(&self) -> &str {
        match *self {}
    }
    fn authority(&self) -> &str {
        match *self {}
    }
    fn scheme(&self) -> &str {
        match *self {}
    }
    fn header(&self, _: &str) -> Option<std::borrow::Cow<'_, [u8]>> {
        match *self {}
    }
}

impl Rule {
    fn matches<R: RequestFacts>(&self, request: Option<&R>, peer: &Peer<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::All(rules) => rules.iter().all(|rule| rule.matches(request, peer)),
            Self::OneOf(rules) => rules.iter().any(|rule| rule.matches(request, peer)),
            Self::Not(rule) => !rule.matches(request, peer),
            Self::Header(header) => request.is_some_and(|request| header.matches(request)),
            Self::Path { matcher, ignore_case } => request
                .is_some_and(|request| matcher.matches(bare_path(request.path()).as_bytes(), *ignore_case)),
            Self::UrlPath(path) => request.is_some_and(|request| {
                crate::plan::path_matches(path, bare_path(request.path()), false, false)
            }),
            Self::DestinationIp(block) => block.contains(peer.destination.ip()),
            Self::DestinationPort(port) => peer.destination.port() == *port,
            Self::DirectRemoteIp(block) => block.contains(peer.direct),
            Self::RemoteIp(block) => block.contains(peer.remote),
            Self::Authenticated(want) => match (want, peer.identity) {
                (_, None) => false,
                (None, Some(_)) => true,
                (Some(matcher), Some(identity)) => matcher.matches(identity.as_bytes(), false),
            },
            Self::ServerName(matcher) => matcher.matches(peer.server_name.as_bytes(), false),
        }
    }
}

fn bare_path(path: &str) -> &str {
    path.split(['?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Facts;

    fn peer(identity: Option<&str>) -> Peer<'_> {
        Peer {
            identity,
            direct: IpAddr::from([10, 0, 0, 9]),
            remote: IpAddr::from([10, 0, 0, 9]),
            destination: ([10, 0, 0, 1], 8080).into(),
            server_name: "",
        }
    }

    fn rules(action: Effect, permissions: Vec<Rule>, principals: Vec<Rule>) -> Rbac {
        let policy = Policy { name: "p".into(), permissions, principals };
        Rbac { action, policies: vec![policy], shadow: false }
    }

    #[test]
    fn an_identity_counts_only_when_it_was_verified() {
        let want = StringMatch::Exact("spiffe://cluster.local/ns/a/sa/b".into());
        let allow = rules(Effect::Allow, vec![Rule::Any], vec![Rule::Authenticated(Some(want))]);
        let request = Facts::get("a", "/");
        for (identity, want) in [
            (Some("spiffe://cluster.local/ns/a/sa/b"), Verdict::Allowed),
            (Some("spiffe://cluster.local/ns/a/sa/bb"), Verdict::Denied(None)),
            (None, Verdict::Denied(None)),
        ] {
            assert_eq!(allow.check(&request, &peer(identity)), want, "{identity:?}");
        }
    }

    #[test]
    fn a_path_is_judged_without_its_query() {
        let matcher = StringMatch::Exact("/admin".into());
        let deny = rules(Effect::Deny, vec![Rule::Path { matcher, ignore_case: false }], vec![Rule::Any]);
        for (path, denied) in [("/admin", true), ("/admin?x", true), ("/admin/x", false), ("/", false)] {
            let verdict = deny.check(&Facts::get("a", path), &peer(None));
            assert_eq!(matches!(verdict, Verdict::Denied(_)), denied, "{path}");
        }
    }

    #[test]
    fn an_allow_rule_about_requests_never_lets_a_plain_connection_pass() {
        let matcher = StringMatch::Prefix("/".into());
        let rule = Rule::Path { matcher, ignore_case: false };
        let allow = rules(Effect::Allow, vec![rule], vec![Rule::Any]);
        assert_eq!(allow.check_connection(&peer(None)), Verdict::Denied(None));
        let empty = Rbac { action: Effect::Allow, policies: Vec::new(), shadow: false };
        assert_eq!(empty.check_connection(&peer(None)), Verdict::Denied(None));
    }
}
