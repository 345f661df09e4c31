//! The traffic model → xDS, as an unmodified Envoy and our proxy take it.
//!
//! In: the model's types. Out: Envoy's messages. Kept true: `mesh_traffic::wire` reads back what was written; defaults in
//! which Envoy and the model differ are written out (timeouts, limits). Not here: which resources there are (`translate`).

mod cluster;
mod filter;
mod listener;
mod matchers;
mod rbac;
mod route;
#[cfg(test)]
mod tests;
mod tls;

pub use cluster::{cluster, endpoints};
pub use listener::listener;
pub use route::{route_configuration, virtual_host};
pub use tls::secret;

use mesh_traffic::names::SourceObject;
use std::{net::SocketAddr, time::Duration};
use xds::{
    envoy::config::core::v3 as core,
    google::protobuf::{self, BoolValue, Struct, UInt32Value, Value, value::Kind},
};

/// Cluster in the bootstrap of an Envoy through which its agent delivers the workload's own certificate.
pub const AGENT_CLUSTER: &str = "sds-grpc";

fn duration(value: Duration) -> protobuf::Duration {
    protobuf::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(value.subsec_nanos()).unwrap_or(0),
    }
}

fn number(value: u32) -> UInt32Value {
    UInt32Value { value }
}

fn truth(value: bool) -> BoolValue {
    BoolValue { value }
}

fn text(value: &str) -> Value {
    Value { kind: Some(Kind::StringValue(value.to_owned())) }
}

fn fields<'a>(pairs: impl IntoIterator<Item = (&'a str, Value)>) -> Struct {
    Struct { fields: pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect() }
}

/// `filter_metadata` with one entry.
fn metadata(filter: &str, values: Struct) -> core::Metadata {
    core::Metadata { filter_metadata: [(filter.to_owned(), values)].into(), ..Default::default() }
}

/// The object a resource was made from, where Istio's tools look for it.
fn source(object: Option<&SourceObject>) -> Option<core::Metadata> {
    object.map(|o| metadata("istio", fields([("config", text(&o.to_string()))])))
}

fn socket(address: SocketAddr) -> core::Address {
    core::Address { address: Some(core::address::Address::SocketAddress(host(&address.ip().to_string(), address.port()))) }
}

fn host(address: &str, port: u16) -> core::SocketAddress {
    core::SocketAddress {
        address: address.to_owned(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(u32::from(port))),
        ..Default::default()
    }
}

/// "From the stream this came by", without giving up while it takes its time.
fn ads() -> core::ConfigSource {
    core::ConfigSource {
        initial_fetch_timeout: Some(duration(Duration::ZERO)),
        resource_api_version: 2,
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource {},
        )),
        ..Default::default()
    }
}

/// An inline text.
fn inline(bytes: &[u8]) -> core::DataSource {
    let specifier = match std::str::from_utf8(bytes) {
        Ok(text) => core::data_source::Specifier::InlineString(text.to_owned()),
        Err(_) => core::data_source::Specifier::InlineBytes(bytes.to_vec()),
    };
    core::DataSource { specifier: Some(specifier), ..Default::default() }
}

fn file(path: &str) -> core::DataSource {
    core::DataSource {
        specifier: Some(core::data_source::Specifier::Filename(path.to_owned())),
        ..Default::default()
    }
}
