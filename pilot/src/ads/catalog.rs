//! What one proxy may have: six types of resources by name, encoded once and shared.
//!
//! In: encoded resources from `translate`. Out: [`Catalog`], compared by `stream` with what a client holds.
//! Kept true: equal versions mean equal bytes; a catalog never changes after it was made.
//! Not here: who gets which catalog (`crate::push`).

use bytes::Bytes;
use std::{
    collections::BTreeMap,
    hash::{Hash, Hasher},
    sync::Arc,
};

/// A type of resource, in the order in which types are sent so that nothing points at what is not there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Type {
    /// Clusters.
    Cluster,
    /// Endpoints of clusters.
    Endpoints,
    /// Listeners.
    Listener,
    /// Route tables.
    Routes,
    /// Single virtual hosts.
    VirtualHost,
    /// Certificates and keys.
    Secret,
}

impl Type {
    /// All types, in sending order.
    pub const ALL: [Type; 6] =
        [Type::Cluster, Type::Endpoints, Type::Listener, Type::Routes, Type::VirtualHost, Type::Secret];

    /// The protocol's name of this type.
    pub const fn url(self) -> &'static str {
        match self {
            Type::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Type::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Type::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Type::Routes => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Type::VirtualHost => "type.googleapis.com/envoy.config.route.v3.VirtualHost",
            Type::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        }
    }

    /// The type with this name.
    pub fn of(url: &str) -> Option<Type> {
        Type::ALL.into_iter().find(|t| t.url() == url)
    }

    /// The abbreviation people use.
    pub const fn short(self) -> &'static str {
        match self {
            Type::Cluster => "CDS",
            Type::Endpoints => "EDS",
            Type::Listener => "LDS",
            Type::Routes => "RDS",
            Type::VirtualHost => "VHDS",
            Type::Secret => "SDS",
        }
    }

    /// Whether an empty list of names asks for all (the two types that a proxy starts from).
    pub const fn empty_means_all(self) -> bool {
        matches!(self, Type::Cluster | Type::Listener)
    }

    /// Place in [`Type::ALL`].
    pub const fn index(self) -> usize {
        match self {
            Type::Cluster => 0,
            Type::Endpoints => 1,
            Type::Listener => 2,
            Type::Routes => 3,
            Type::VirtualHost => 4,
            Type::Secret => 5,
        }
    }
}

/// One encoded resource.
#[derive(Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Hash of the bytes, in hexadecimal.
    pub version: Arc<str>,
    /// The encoded message.
    pub bytes: Bytes,
    /// Objects this resource was made from (`VirtualService ns/name`), for blame when a client refuses it.
    pub sources: Vec<Arc<str>>,
}

impl Encoded {
    /// From bytes. If `before` holds the same it is kept.
    pub fn of(bytes: Bytes, sources: Vec<Arc<str>>, before: Option<&Arc<Encoded>>) -> Arc<Encoded> {
        match before {
            Some(before) if before.bytes == bytes && before.sources == sources => before.clone(),
            _ => Self::raw(bytes, sources),
        }
    }

    /// From bytes.
    pub fn raw(bytes: Bytes, sources: Vec<Arc<str>>) -> Arc<Encoded> {
        let version = format!("{:016x}", fingerprint(&bytes)).into();
        Arc::new(Encoded { version, bytes, sources })
    }
}

/// A 64-bit hash that is the same in every process of this build.
pub fn fingerprint(value: &(impl Hash + ?Sized)) -> u64 {
    #[allow(deprecated, reason = "the keyless hasher is wanted: versions must agree between processes")]
    let mut hasher = std::hash::SipHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Resources of one type by name.
pub type Resources = BTreeMap<Arc<str>, Arc<Encoded>>;

/// Everything one proxy may have.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Number of the push that made it, for people.
    pub push: u64,
    types: [Arc<Resources>; 6],
}

impl Catalog {
    /// An empty catalog of push number `push`.
    pub fn new(push: u64) -> Self {
        Self { push, types: Default::default() }
    }

    /// With the resources of one type replaced.
    #[must_use]
    pub fn with(mut self, kind: Type, resources: Arc<Resources>) -> Self {
        self.types[kind.index()] = resources;
        self
    }

    /// The resources of one type.
    pub fn of(&self, kind: Type) -> &Arc<Resources> {
        &self.types[kind.index()]
    }

    /// Whether both hold the very same resources, by pointer.
    pub fn same(&self, other: &Catalog) -> bool {
        self.types.iter().zip(&other.types).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_bytes_of_equal_objects_keep_their_pointer() {
        let make = |source: &str, before| Encoded::of(Bytes::from_static(b"x"), vec![source.into()], before);
        let first = make("a", None);
        assert!(Arc::ptr_eq(&first, &make("a", Some(&first))));
        assert!(!Arc::ptr_eq(&first, &make("b", Some(&first))));
    }

    #[test]
    fn versions_follow_content() {
        let a = Encoded::raw(Bytes::from_static(b"ab"), vec![]);
        let b = Encoded::raw(Bytes::from_static(b"ba"), vec![]);
        assert_ne!(a.version, b.version);
        assert_eq!(a.version, Encoded::raw(Bytes::from_static(b"ab"), vec![]).version);
    }

    #[test]
    fn every_type_is_found_by_its_url_and_stands_at_its_index() {
        for (i, kind) in Type::ALL.into_iter().enumerate() {
            assert_eq!(Type::of(kind.url()), Some(kind));
            assert_eq!(kind.index(), i);
        }
    }
}
