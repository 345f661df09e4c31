//! Clusters: how a group of endpoints is found, balanced, limited, watched and spoken to.
//!
//! In: pilot's DestinationRules or CDS. Out: [`Cluster`], immutable. Kept true: a limit that is absent is unlimited.
//! Not here: the endpoints of EDS clusters (`endpoint`), counting against limits (`proxy`).

use std::{net::IpAddr, sync::Arc, time::Duration};

use crate::{
    endpoint::{Endpoint, Endpoints},
    names::{Name, SourceObject},
    tls::UpstreamTls,
};

/// One cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Name.
    pub name: Name,
    /// Where its endpoints come from.
    pub discovery: Discovery,
    /// Time to make a connection. Istio: 10 s.
    pub connect_timeout: Duration,
    /// How an endpoint is picked.
    pub balance: Balance,
    /// Limits per proxy, over all its workers.
    pub limits: Limits,
    /// When an endpoint is left out for a while.
    pub outlier: Option<Outlier>,
    /// Below this share of healthy endpoints (percent) all are used. Envoy: 50; Istio: 0 with outlier detection.
    pub panic_percent: u32,
    /// TLS, chosen per endpoint.
    pub tls: ClusterTls,
    /// HTTP version spoken to endpoints.
    pub protocol: Protocol,
    /// A connection is closed after so many requests; 0 for never.
    pub max_requests_per_connection: u32,
    /// An idle connection is closed after this. Istio: 1 h.
    pub idle_timeout: Duration,
    /// Connections leave from this address.
    pub source_address: Option<IpAddr>,
    /// TCP keep-alive probes.
    pub keepalive: Option<Keepalive>,
    /// The service behind it.
    pub service: Option<Service>,
    /// The object that shaped it (a DestinationRule).
    pub source: Option<SourceObject>,
}

impl Cluster {
    /// An EDS cluster with every default.
    #[must_use]
    pub fn eds(name: &str) -> Self {
        Self {
            name: name.into(),
            discovery: Discovery::Eds { service: name.into() },
            connect_timeout: Duration::from_secs(10),
            balance: Balance::LeastRequest,
            limits: Limits::default(),
            outlier: None,
            panic_percent: 50,
            tls: ClusterTls::default(),
            protocol: Protocol::Http1,
            max_requests_per_connection: 0,
            idle_timeout: Duration::from_secs(3600),
            source_address: None,
            keepalive: None,
            service: None,
            source: None,
        }
    }

    /// A cluster with fixed endpoints.
    #[must_use]
    pub fn fixed(name: &str, endpoints: Vec<Endpoint>) -> Self {
        let endpoints = Arc::new(Endpoints::flat(name, endpoints));
        Self { discovery: Discovery::Static(endpoints), ..Self::eds(name) }
    }

    /// The TLS context for one endpoint; `None` for plaintext.
    #[must_use]
    pub fn tls_for(&self, endpoint: &Endpoint) -> Option<&Arc<UpstreamTls>> {
        let all = |labels: &[(Name, Name)]| labels.iter().all(|label| endpoint.tls_labels.contains(label));
        match self.tls.matches.iter().find(|one| all(&one.labels)) {
            Some(one) => one.tls.as_ref(),
            None => self.tls.default.as_ref(),
        }
    }
}

/// Where a cluster's endpoints come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    /// An EDS resource.
    Eds {
        /// Its name.
        service: Name,
    },
    /// In the cluster itself.
    Static(Arc<Endpoints>),
    /// Every address that DNS gives for each name.
    StrictDns(Arc<Endpoints>),
    /// The first address that DNS gives, for new connections.
    LogicalDns(Arc<Endpoints>),
    /// The address that the client asked for.
    OriginalDst,
}

/// How an endpoint is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// The one with fewer requests in flight of two drawn. Istio's default.
    LeastRequest,
    /// In turn, by weight.
    RoundRobin,
    /// By chance.
    Random,
    /// Consistent hash on a ring.
    RingHash {
        /// Smallest number of places on the ring. Istio: 1024.
        minimum: u64,
    },
    /// Consistent hash by Maglev's table.
    Maglev {
        /// Size of the table, a prime.
        size: u64,
    },
    /// The cluster decides ([`Discovery::OriginalDst`]).
    Provided,
}

/// Limits of a cluster. `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Connections (HTTP/1 and TCP).
    pub connections: Option<u32>,
    /// Requests that wait for a connection.
    pub pending: Option<u32>,
    /// Requests in flight.
    pub requests: Option<u32>,
    /// Retries in flight.
    pub retries: Option<u32>,
}

/// When an endpoint is ejected. Counts of 0 or `None` never eject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlier {
    /// Consecutive 5xx (with local failures, unless split). Envoy: 5.
    pub consecutive_5xx: Option<u32>,
    /// Consecutive 502, 503, 504 (with local failures, unless split).
    pub consecutive_gateway: Option<u32>,
    /// Consecutive failures to connect or to get an answer; only when `split_local` is on.
    pub consecutive_local: Option<u32>,
    /// Local failures are counted apart.
    pub split_local: bool,
    /// How often ejected endpoints are looked at. Default 10 s.
    pub interval: Duration,
    /// An endpoint stays out for this times the number of its ejections. Default 30 s.
    pub base_ejection: Duration,
    /// Longest ejection. Default 300 s, at least `base_ejection`.
    pub max_ejection: Duration,
    /// Of all endpoints, so many percent may be out; one always may. Default 10.
    pub max_percent: u32,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive_5xx: Some(5),
            consecutive_gateway: None,
            consecutive_local: None,
            split_local: false,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_percent: 10,
        }
    }
}

/// TLS of a cluster: the first match whose labels an endpoint has, else the default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterTls {
    /// When nothing matches; `None` for plaintext.
    pub default: Option<Arc<UpstreamTls>>,
    /// By endpoint (Envoy's transport_socket_matches; Istio's auto-mTLS).
    pub matches: Vec<TlsMatch>,
}

/// One way to speak to endpoints with certain labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsMatch {
    /// Name of the match.
    pub name: Name,
    /// Labels that the endpoint must have; none matches every endpoint.
    pub labels: Vec<(Name, Name)>,
    /// TLS, or plaintext.
    pub tls: Option<Arc<UpstreamTls>>,
}

/// HTTP version spoken to endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2, by prior knowledge or ALPN.
    Http2,
    /// What the client speaks to us.
    Downstream,
    /// What ALPN says, else HTTP/1.1.
    Auto,
}

/// TCP keep-alive probes. `None` leaves the system's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keepalive {
    /// Probes before giving up.
    pub probes: Option<u32>,
    /// Seconds of silence before the first.
    pub time: Option<u32>,
    /// Seconds between them.
    pub interval: Option<u32>,
}

/// The service that a cluster stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Service {
    /// FQDN.
    pub host: Name,
    /// Short name.
    pub name: Name,
    /// Namespace.
    pub namespace: Name,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_is_chosen_by_the_endpoints_labels() {
        let istio: (Name, Name) = ("tlsMode".into(), "istio".into());
        let tls = Arc::new(UpstreamTls::default());
        let mut cluster = Cluster::eds("outbound|80||a.b");
        cluster.tls.matches = vec![
            TlsMatch { name: "tlsMode-istio".into(), labels: vec![istio.clone()], tls: Some(tls) },
            TlsMatch { name: "tlsMode-disabled".into(), labels: vec![], tls: None },
        ];
        let mut endpoint = Endpoint::at(([127, 0, 0, 1], 80).into());
        assert!(cluster.tls_for(&endpoint).is_none());
        endpoint.tls_labels.push(istio);
        assert!(cluster.tls_for(&endpoint).is_some());
    }
}
