//! xDS v3 on the wire: the discovery envelope, Envoy's messages, and what is known of them at run time.
//!
//! In: `discovery.proto` and the `envoy-types` crate. Out: [`discovery`] (bytes shared), [`envoy`] (typed messages), [`type_url`].
//! Kept true: resources inside the envelope are opaque and never copied. Not here: their meaning (`mesh_traffic::wire`).

/// Envoy's messages, with their own `google.protobuf` types.
pub use envoy_types::pb as messages;
/// Envoy's messages, below `envoy`.
pub use envoy_types::pb::envoy;
/// `google.protobuf` as Envoy's messages use it.
pub use envoy_types::pb::google;
/// Well-known types as the envelope uses them.
pub use prost_types;

/// The discovery protocol's envelope, with client and server.
#[allow(missing_docs, clippy::all)]
pub mod discovery {
    tonic::include_proto!("envoy.service.discovery.v3");
}

pub mod reflect;

/// Type URLs of the resources that the discovery protocol carries.
pub mod type_url {
    /// Listeners (LDS).
    pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
    /// Route configurations (RDS).
    pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
    /// Virtual hosts (VHDS), named `route configuration/virtual host`.
    pub const VIRTUAL_HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
    /// Clusters (CDS).
    pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    /// Endpoints (EDS).
    pub const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
    /// Secrets (SDS).
    pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    /// Every resource type in the order in which additions are safe: what is pointed at comes before what points.
    pub const ALL: [&str; 6] = [CLUSTER, ENDPOINTS, SECRET, LISTENER, ROUTE, VIRTUAL_HOST];
}

/// Packs a message with its type URL.
pub fn pack<M: prost::Message + prost::Name>(message: &M) -> google::protobuf::Any {
    google::protobuf::Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// Unpacks a message of exactly this type.
///
/// # Errors
/// The type URL that was found instead, or why the bytes do not decode.
pub fn unpack<M: prost::Message + prost::Name + Default>(any: &google::protobuf::Any) -> Result<M, String> {
    if any.type_url != M::type_url() {
        return Err(format!("expected {}, found {}", M::type_url(), any.type_url));
    }
    M::decode(&*any.value).map_err(|e| format!("{} does not decode: {e}", any.type_url))
}
