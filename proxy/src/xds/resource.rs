//! One resource of the discovery protocol: its kind, name, version, and what it means.
//!
//! In: a type URL and bytes. Out: [`Resource`], decoded. Kept true: the bytes are kept as received, for `/config_dump`.
//! Not here: whether it may be used yet (`store`).

use std::sync::Arc;

use bytes::Bytes;
use mesh_traffic::{
    Cluster, Endpoints, Listener, RouteConfiguration, VirtualHost,
    names::Name,
    tls::Secret,
    wire::{self, Reject},
};
use prost::Message;
use xds::{
    envoy::{
        config::{
            cluster::v3 as cluster, endpoint::v3 as endpoint, listener::v3 as listener, route::v3 as route,
        },
        extensions::transport_sockets::tls::v3 as tls,
    },
    type_url,
};

/// The kinds of resources that this proxy takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
    /// SDS.
    Secret,
    /// LDS.
    Listener,
    /// RDS.
    Route,
    /// VHDS.
    VirtualHost,
}

impl Kind {
    /// All kinds, in the order in which additions are safe.
    pub const ALL: [Self; 6] =
        [Self::Cluster, Self::Endpoints, Self::Secret, Self::Listener, Self::Route, Self::VirtualHost];

    /// Its type URL.
    #[must_use]
    pub fn url(self) -> &'static str {
        match self {
            Self::Cluster => type_url::CLUSTER,
            Self::Endpoints => type_url::ENDPOINTS,
            Self::Secret => type_url::SECRET,
            Self::Listener => type_url::LISTENER,
            Self::Route => type_url::ROUTE,
            Self::VirtualHost => type_url::VIRTUAL_HOST,
        }
    }

    /// The kind of a type URL.
    #[must_use]
    pub fn of(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }

    /// True for kinds that are subscribed to as a whole.
    #[must_use]
    pub fn is_wildcard(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener | Self::VirtualHost)
    }
}

/// A resource, decoded.
#[derive(Debug, Clone)]
pub struct Resource {
    /// Its name.
    pub name: Name,
    /// The server's version; empty for static resources.
    pub version: String,
    /// As received.
    pub raw: Bytes,
    /// What it means.
    pub body: Body,
}

/// What a resource means.
#[derive(Debug, Clone)]
pub enum Body {
    /// A cluster.
    Cluster(Arc<Cluster>),
    /// Endpoints.
    Endpoints(Arc<Endpoints>),
    /// A secret.
    Secret(Arc<Secret>),
    /// A listener.
    Listener(Arc<Listener>),
    /// A route configuration.
    Route(Arc<RouteConfiguration>),
    /// A virtual host.
    VirtualHost(Arc<VirtualHost>),
}

impl Resource {
    /// Decodes a resource. `name` is the envelope's; empty takes the one inside.
    ///
    /// # Errors
    /// The field that cannot be honoured.
    pub fn decode(kind: Kind, name: &str, version: &str, raw: Bytes) -> Result<Self, Reject> {
        fn message<M: Message + Default>(raw: &Bytes) -> Result<M, Reject> {
            M::decode(raw.clone()).map_err(|e| Reject::new(format!("does not decode: {e}")))
        }
        let (inner, body): (Name, Body) = match kind {
            Kind::Cluster => {
                let one = wire::cluster(message::<cluster::Cluster>(&raw)?)?;
                (one.name.clone(), Body::Cluster(Arc::new(one)))
            }
            Kind::Endpoints => {
                let one = wire::endpoints(message::<endpoint::ClusterLoadAssignment>(&raw)?)?;
                (one.name.clone(), Body::Endpoints(Arc::new(one)))
            }
            Kind::Secret => {
                let one: tls::Secret = message(&raw)?;
                (one.name.as_str().into(), Body::Secret(Arc::new(wire::secret(one)?)))
            }
            Kind::Listener => {
                let one = wire::listener(message::<listener::Listener>(&raw)?)?;
                (one.name.clone(), Body::Listener(Arc::new(one)))
            }
            Kind::Route => {
                let one = wire::route_configuration(message::<route::RouteConfiguration>(&raw)?)?;
                (one.name.clone(), Body::Route(Arc::new(one)))
            }
            Kind::VirtualHost => {
                let one = wire::virtual_host(message::<route::VirtualHost>(&raw)?)?;
                (one.name.clone(), Body::VirtualHost(Arc::new(one)))
            }
        };
        let name = if name.is_empty() { inner } else { name.into() };
        Ok(Self { name, version: version.to_owned(), raw, body })
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.body {
            Body::Cluster(_) => Kind::Cluster,
            Body::Endpoints(_) => Kind::Endpoints,
            Body::Secret(_) => Kind::Secret,
            Body::Listener(_) => Kind::Listener,
            Body::Route(_) => Kind::Route,
            Body::VirtualHost(_) => Kind::VirtualHost,
        }
    }
}
