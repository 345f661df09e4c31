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
        self.judge(|rule| rule.holds(Some(request), peer))
    }

    /// Judges a connection whose bytes are not HTTP. Whether a condition on requests holds cannot be known then, nor whether its
    /// negation does: a policy that hangs on it does not allow, and does deny.
    #[must_use]
    pub fn check_connection(&self, peer: &Peer<'_>) -> Verdict<'_> {
        self.judge(|rule| rule.holds::<NoRequest>(None, peer))
    }

    fn judge(&self, holds: impl Fn(&Rule) -> Option<bool>) -> Verdict<'_> {
        let matches = |policy: &Policy| {
            let permitted = any(policy.permissions.iter().map(&holds));
            if permitted == Some(false) {
                return permitted;
            }
            all([permitted, any(policy.principals.iter().map(&holds))].into_iter())
        };
        let unknown = self.action == Effect::Deny;
        let found = self.policies.iter().find(|policy| matches(policy).unwrap_or(unknown));
        match (self.action, found) {
            (Effect::Allow, None) => Verdict::Denied(None),
            (Effect::Deny, Some(policy)) => Verdict::Denied(Some(&policy.name)),
            _ => Verdict::Allowed,
        }
    }
}

/// True when one is; unknown when none is but one might be.
fn any(mut parts: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut unknown = false;
    let hit = parts.any(|part| {
        unknown |= part.is_none();
        part == Some(true)
    });
    if !hit && unknown { None } else { Some(hit) }
}

/// False when one is; unknown when none is but one might be.
fn all(parts: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    any(parts.map(|part| part.map(|holds| !holds))).map(|miss| !miss)
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
    /// Whether the condition holds; `None` when that cannot be known.
    fn holds<R: RequestFacts>(&self, request: Option<&R>, peer: &Peer<'_>) -> Option<bool> {
        let of_request = |holds: &dyn Fn(&R) -> bool| request.map(holds);
        Some(match self {
            Self::Any => true,
            Self::All(rules) => return all(rules.iter().map(|rule| rule.holds(request, peer))),
            Self::OneOf(rules) => return any(rules.iter().map(|rule| rule.holds(request, peer))),
            Self::Not(rule) => !rule.holds(request, peer)?,
            Self::Header(header) => return of_request(&|request| header.matches(request)),
            Self::Path { matcher, ignore_case } => {
                return of_request(&|request| {
                    matcher.matches(bare_path(request.path()).as_bytes(), *ignore_case)
                });
            }
            Self::UrlPath(path) => {
                return of_request(&|request| {
                    crate::plan::path_matches(path, bare_path(request.path()), false, false)
                });
            }
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
        })
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

    #[test]
    fn a_condition_on_requests_counts_against_a_plain_connection_whichever_way_it_is_turned() {
        let path = || Rule::Path { matcher: StringMatch::Exact("/a".into()), ignore_case: false };
        let port = |port| Rule::DestinationPort(port);
        let not = |rule| Rule::Not(Box::new(rule));
        for (rule, allows, denies) in [
            (path(), false, true),
            (not(path()), false, true),
            (not(not(path())), false, true),
            (Rule::All(vec![path(), port(8080)]), false, true),
            // What is known decides where it can.
            (Rule::All(vec![path(), port(1)]), false, false),
            (Rule::OneOf(vec![path(), port(8080)]), true, true),
            (Rule::OneOf(vec![path(), port(1)]), false, true),
            (not(Rule::OneOf(vec![path(), port(8080)])), false, false),
            (Rule::All(Vec::new()), true, true),
            (Rule::OneOf(Vec::new()), false, false),
        ] {
            let peer = peer(None);
            let allow = rules(Effect::Allow, vec![rule.clone()], vec![Rule::Any]);
            assert_eq!(allow.check_connection(&peer) == Verdict::Allowed, allows, "allow {rule:?}");
            let deny = rules(Effect::Deny, vec![rule.clone()], vec![Rule::Any]);
            assert_eq!(deny.check_connection(&peer) != Verdict::Allowed, denies, "deny {rule:?}");
            let log = rules(Effect::Log, vec![rule], vec![Rule::Any]);
            assert_eq!(log.check_connection(&peer), Verdict::Allowed);
        }
    }

    #[test]
    fn every_kind_of_condition_looks_at_its_own_fact() {
        let id = "spiffe://cluster.local/ns/a/sa/b";
        let block = |text| Cidr::parse(text).expect("a block");
        let request = Facts::get("host.example", "/p?q").with("x-user", "ann");
        let peer = Peer {
            identity: Some(id),
            direct: [10, 0, 0, 9].into(),
            remote: [192, 168, 0, 1].into(),
            destination: ([10, 0, 0, 1], 8080).into(),
            server_name: "sni.example",
        };
        let header = |name: &str, text: &str| {
            Rule::Header(HeaderMatch {
                name: name.into(),
                value: crate::matchers::HeaderValue::Text {
                    matcher: StringMatch::Exact(text.into()),
                    ignore_case: false,
                },
                invert: false,
                missing_as_empty: false,
            })
        };
        for (rule, want) in [
            (header("x-user", "ann"), true),
            (header(":method", "GET"), true),
            (header(":authority", "host.example"), true),
            (header(":path", "/p"), false),
            (Rule::UrlPath(PathMatch::Segments("/p".into())), true),
            (Rule::DestinationIp(block("10.0.0.0/24")), true),
            (Rule::DestinationPort(80), false),
            (Rule::DirectRemoteIp(block("10.0.0.9")), true),
            (Rule::DirectRemoteIp(block("192.168.0.0/16")), false),
            (Rule::RemoteIp(block("192.168.0.0/16")), true),
            (Rule::Authenticated(None), true),
            (Rule::Authenticated(Some(StringMatch::Suffix("/ns/a/sa/b".into()))), true),
            (Rule::Authenticated(Some(StringMatch::Contains("/ns/b/".into()))), false),
            (Rule::ServerName(StringMatch::Exact("sni.example".into())), true),
        ] {
            let deny = rules(Effect::Deny, vec![rule.clone()], vec![Rule::Any]);
            let denied = deny.check(&request, &peer) == Verdict::Denied(Some(&"p".into()));
            assert_eq!(denied, want, "{rule:?}");
            let allow = rules(Effect::Allow, vec![Rule::Any], vec![Rule::Not(Box::new(rule.clone()))]);
            assert_eq!(allow.check(&request, &peer) == Verdict::Allowed, !want, "not {rule:?}");
        }
    }
}
