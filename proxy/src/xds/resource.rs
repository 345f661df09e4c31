//! One resource of the discovery protocol: its kind, name, version, and what it means.
//!
//! In: a type URL and bytes. Out: [`Resource`], decoded. Kept true: the bytes are kept as received, for `/config_dump`.
//! Not here: whether it may be used yet (`store`).

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use mesh_traffic::{
    Cluster, Endpoints, Listener, RouteConfiguration, VirtualHost,
    names::Name,
    tls::Secret,
    wire::{self, Reject},
};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};
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
        // Always of a slice: decoders are made once per type of buffer, and Envoy's are a tenth of this program.
        fn message<M: Message + Default>(raw: &[u8]) -> Result<M, Reject> {
            M::decode(raw).map_err(|e| Reject::new(format!("does not decode: {e}")))
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
                let one = route_configuration(&raw)?;
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

/// Tag of `RouteConfiguration.virtual_hosts`.
const VIRTUAL_HOSTS: u32 = 2;

/// Decodes routes one virtual host after the other: thousands of them as messages at once would take ten times the memory of what they mean.
fn route_configuration(raw: &Bytes) -> Result<RouteConfiguration, Reject> {
    let broken = |error: DecodeError| Reject::new(format!("does not decode: {error}"));
    let (mut rest, mut hosts, mut left) = (BytesMut::new(), Vec::new(), raw.clone());
    while left.has_remaining() {
        let field = left.clone();
        let (tag, kind) = decode_key(&mut left).map_err(broken)?;
        if tag != VIRTUAL_HOSTS || kind != WireType::LengthDelimited {
            skip_field(kind, tag, &mut left, DecodeContext::default()).map_err(broken)?;
            rest.extend_from_slice(&field[..field.len() - left.len()]);
            continue;
        }
        let length = usize::try_from(decode_varint(&mut left).map_err(broken)?).unwrap_or(usize::MAX);
        if length > left.remaining() {
            return Err(Reject::new("does not decode: a virtual host longer than its configuration"));
        }
        let host = route::VirtualHost::decode(&*left.split_to(length)).map_err(broken)?;
        let at = format!("virtual_hosts[{}]", hosts.len());
        hosts.push(Arc::new(wire::virtual_host(host).map_err(|reject| reject.at(at))?));
    }
    hosts.shrink_to_fit();
    let mut routes = wire::route_configuration(route::RouteConfiguration::decode(&*rest).map_err(broken)?)?;
    routes.virtual_hosts = hosts;
    Ok(routes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_decoded_host_by_host_are_the_routes_decoded_at_once() {
        let host = |name: &str| route::VirtualHost {
            name: name.to_owned(),
            domains: vec![name.to_owned(), format!("{name}:80")],
            ..route::VirtualHost::default()
        };
        let wire = route::RouteConfiguration {
            name: "8080".to_owned(),
            virtual_hosts: vec![host("a"), host("b")],
            ignore_port_in_host_matching: true,
            request_headers_to_remove: vec!["x-a".to_owned()],
            ..route::RouteConfiguration::default()
        };
        let raw = Bytes::from(wire.encode_to_vec());
        let one = route_configuration(&raw).expect("routes");
        assert_eq!(one, wire::route_configuration(wire).expect("routes"));
        for cut in 1..raw.len() {
            // Never a panic; a cut between two fields is a shorter configuration.
            let _ = route_configuration(&raw.slice(..cut));
        }
    }
}
