//! Endpoints of a cluster, by locality and priority.
//!
//! In: pilot or EDS. Out: [`Endpoints`], immutable. Kept true: addresses are parsed once.
//! Not here: which one is picked (`balance`), what has been ejected (`proxy`).

use std::{fmt, net::SocketAddr, sync::Arc};

use crate::names::Name;

/// All endpoints of one EDS resource (Envoy's ClusterLoadAssignment).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Endpoints {
    /// Name of the resource.
    pub name: Name,
    /// Groups of equal priority and locality.
    pub localities: Vec<Locality>,
}

impl Endpoints {
    /// Every endpoint, whatever its locality.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.localities.iter().flat_map(|locality| &locality.endpoints)
    }

    /// One locality of priority 0 with `endpoints`.
    #[must_use]
    pub fn flat(name: &str, endpoints: Vec<Endpoint>) -> Self {
        let endpoints = endpoints.into_iter().map(Arc::new).collect();
        Self { name: name.into(), localities: vec![Locality { endpoints, ..Locality::default() }] }
    }
}

/// Endpoints of one place.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Locality {
    /// `region/zone/subzone`, empty when unknown.
    pub name: Name,
    /// 0 is used first.
    pub priority: u32,
    /// Share among localities of one priority; `None` weighs by the number of endpoints.
    pub weight: Option<u32>,
    /// The endpoints.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IP address and port.
    Ip(SocketAddr),
    /// A DNS name and port, resolved by the cluster.
    Dns(Name, u16),
    /// A unix socket.
    Pipe(Name),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Dns(host, port) => write!(f, "{host}:{port}"),
            Self::Pipe(path) => f.write_str(path),
        }
    }
}

/// Whether an endpoint may be picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    /// Yes.
    #[default]
    Healthy,
    /// Only when not enough are healthy.
    Degraded,
    /// No: it keeps its connections but gets no new requests.
    Draining,
    /// No.
    Unhealthy,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it is.
    pub address: Address,
    /// Whether it may be picked.
    pub health: Health,
    /// Share among its locality's endpoints, at least 1.
    pub weight: u32,
    /// Values that [`crate::cluster::ClusterTls`] selects a TLS context by, e.g. `tlsMode: istio`.
    pub tls_labels: Vec<(Name, Name)>,
    /// Istio's description of the workload: `name;namespace;service;revision;cluster`. Empty when unknown.
    pub workload: Name,
}

impl Endpoint {
    /// A healthy endpoint of weight 1.
    #[must_use]
    pub fn at(address: SocketAddr) -> Self {
        Self {
            address: Address::Ip(address),
            health: Health::Healthy,
            weight: 1,
            tls_labels: Vec::new(),
            workload: Name::default(),
        }
    }
}
