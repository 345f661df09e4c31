//! Istio's names for xDS resources, which people's tools read.
//!
//! In: the parts of a name. Out: [`ClusterName`] and plain functions. Kept true: `parse(format(x)) == x`.
//! Not here: which resources exist (pilot).

use std::{fmt, sync::Arc};

/// A shared, immutable resource name.
pub type Name = Arc<str>;

/// Forwards to the address that the client asked for.
pub const PASSTHROUGH: &str = "PassthroughCluster";
/// Has no endpoints: what is sent here is refused.
pub const BLACK_HOLE: &str = "BlackHoleCluster";
/// Forwards inbound traffic for ports that no Service declares to the pod itself.
pub const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";
/// The listener that takes captured outbound traffic.
pub const VIRTUAL_OUTBOUND: &str = "virtualOutbound";
/// The listener that takes captured inbound traffic.
pub const VIRTUAL_INBOUND: &str = "virtualInbound";

/// Which way a cluster's traffic goes, seen from the proxy's own workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Direction {
    /// From others to the workload.
    Inbound,
    /// From the workload to others.
    #[default]
    Outbound,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        })
    }
}

/// The parts of `outbound|8080|v1|reviews.default.svc.cluster.local`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClusterName {
    /// Way of the traffic.
    pub direction: Direction,
    /// Service port (outbound) or workload port (inbound).
    pub port: u16,
    /// Subset of a DestinationRule; empty for the whole service.
    pub subset: String,
    /// Service host; empty for inbound clusters.
    pub host: String,
}

impl ClusterName {
    /// The name of an outbound cluster.
    #[must_use]
    pub fn outbound(port: u16, subset: &str, host: &str) -> Self {
        Self { direction: Direction::Outbound, port, subset: subset.to_owned(), host: host.to_owned() }
    }

    /// The name of an inbound cluster: `inbound|80||`.
    #[must_use]
    pub fn inbound(port: u16) -> Self {
        Self { direction: Direction::Inbound, port, subset: String::new(), host: String::new() }
    }

    /// Takes a name apart; `None` for names of another form, such as [`PASSTHROUGH`].
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.splitn(4, '|');
        let direction = match parts.next()? {
            "inbound" => Direction::Inbound,
            "outbound" => Direction::Outbound,
            _ => return None,
        };
        let port = parts.next()?.parse().ok()?;
        Some(Self { direction, port, subset: parts.next()?.to_owned(), host: parts.next()?.to_owned() })
    }

    /// The server name that a client sends in TLS: `outbound_.8092_.v1_.reviews.default.svc.cluster.local`.
    #[must_use]
    pub fn sni(&self) -> String {
        format!("{}_.{}_.{}_.{}", self.direction, self.port, self.subset, self.host)
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}|{}|{}|{}", self.direction, self.port, self.subset, self.host)
    }
}

/// The Istio object that a resource was made from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourceObject {
    /// Kind in the path's spelling, e.g. `virtual-service` or `destination-rule`.
    pub kind: Name,
    /// Its namespace.
    pub namespace: Name,
    /// Its name.
    pub name: Name,
}

impl SourceObject {
    /// A VirtualService.
    #[must_use]
    pub fn virtual_service(namespace: &str, name: &str) -> Self {
        Self { kind: "virtual-service".into(), namespace: namespace.into(), name: name.into() }
    }

    /// A DestinationRule.
    #[must_use]
    pub fn destination_rule(namespace: &str, name: &str) -> Self {
        Self { kind: "destination-rule".into(), namespace: namespace.into(), name: name.into() }
    }

    /// Reads the form that [`fmt::Display`] writes.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        let rest = path.strip_prefix("/apis/networking.istio.io/")?;
        let mut parts = rest.split('/').skip(1);
        if parts.next()? != "namespaces" {
            return None;
        }
        Some(Self { namespace: parts.next()?.into(), kind: parts.next()?.into(), name: parts.next()?.into() })
    }
}

/// As in Istio's `metadata.filter_metadata.istio.config`.
impl fmt::Display for SourceObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/apis/networking.istio.io/v1/namespaces/{}/{}/{}", self.namespace, self.kind, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_names_survive_a_round_trip() {
        for text in ["outbound|8080|v1|reviews.default.svc.cluster.local", "inbound|80||", "outbound|80||a.b"]
        {
            assert_eq!(ClusterName::parse(text).map(|n| n.to_string()).as_deref(), Some(text));
        }
        assert_eq!(ClusterName::parse(PASSTHROUGH), None);
        let sni = ClusterName::outbound(8092, "v1", "a.b").sni();
        assert_eq!(sni, "outbound_.8092_.v1_.a.b");
    }

    #[test]
    fn source_objects_survive_a_round_trip() {
        let object = SourceObject::virtual_service("default", "reviews");
        let text = object.to_string();
        assert_eq!(text, "/apis/networking.istio.io/v1/namespaces/default/virtual-service/reviews");
        assert_eq!(SourceObject::parse(&text), Some(object));
    }
}
