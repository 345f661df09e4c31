//! The traffic model → xDS.
//!
//! In: the model. Out: Envoy's messages, and [`bytes()`] of them. Kept true: an unmodified Envoy takes what is made here, `wire` reads it back as
//! it was, and equal models give equal bytes. Not here: which resources a proxy gets (pilot).

mod canonical;
mod cluster;
mod filter;
mod listener;
mod matchers;
mod rbac;
mod route;
#[cfg(test)]
mod tests;
mod tls;

use std::{collections::HashMap, time::Duration};

use prost::Message;
use xds::{
    envoy::{
        config::{
            cluster::v3 as cds, core::v3 as core, endpoint::v3 as eds, listener::v3 as lds, route::v3 as rds,
        },
        extensions::transport_sockets::tls::v3 as sds,
        r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
    },
    google::protobuf::{self, Any, Struct, Value, value::Kind},
};

use crate::names::SourceObject;
use canonical::Maps;

pub use cluster::{cluster, endpoints};
pub use listener::listener;
pub use route::{route_configuration, virtual_host};
pub use tls::secret;

/// A message that is a resource of the discovery protocol.
pub trait Resource: Message + prost::Name + sealed::Mapped {}

mod sealed {
    /// Knows where the maps of a message are.
    pub trait Mapped {
        /// Where they are.
        fn maps() -> &'static super::Maps;
    }
}

macro_rules! resources {
    ($($message:ty => $maps:expr;)*) => {$(
        impl sealed::Mapped for $message {
            fn maps() -> &'static Maps {
                &$maps
            }
        }
        impl Resource for $message {}
    )*};
}

resources! {
    lds::Listener => listener::MAPS;
    rds::RouteConfiguration => route::MAPS;
    rds::VirtualHost => route::HOST_MAPS;
    cds::Cluster => cluster::MAPS;
    eds::ClusterLoadAssignment => cluster::ENDPOINTS_MAPS;
    sds::Secret => canonical::NONE;
}

/// A resource's bytes. Equal messages give equal bytes, in every process.
#[must_use]
pub fn bytes<M: Resource>(message: &M) -> Vec<u8> {
    canonical::sorted(message.encode_to_vec(), M::maps())
}

/// Packs a message whose maps are known.
fn packed<M: Message + prost::Name>(message: &M, maps: &Maps) -> Any {
    Any { type_url: M::type_url(), value: canonical::sorted(message.encode_to_vec(), maps) }
}

/// Packs a message that has no maps.
fn plain<M: Message + prost::Name>(message: &M) -> Any {
    packed(message, &canonical::NONE)
}

fn duration(time: Duration) -> protobuf::Duration {
    // Protobuf's own limit is about 10,000 years.
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX).min(315_576_000_000);
    protobuf::Duration { seconds, nanos: i32::try_from(time.subsec_nanos()).unwrap_or(0) }
}

fn uint(value: u32) -> Option<protobuf::UInt32Value> {
    Some(protobuf::UInt32Value { value })
}

fn boolean(value: bool) -> Option<protobuf::BoolValue> {
    Some(protobuf::BoolValue { value })
}

fn millionths(numerator: u32) -> FractionalPercent {
    FractionalPercent { numerator, denominator: DenominatorType::Million.into() }
}

fn share(numerator: u32) -> core::RuntimeFractionalPercent {
    core::RuntimeFractionalPercent { default_value: Some(millionths(numerator)), runtime_key: String::new() }
}

fn text(text: impl Into<String>) -> Value {
    Value { kind: Some(Kind::StringValue(text.into())) }
}

fn object<'a>(fields: impl IntoIterator<Item = (&'a str, Value)>) -> Struct {
    Struct { fields: fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect() }
}

/// `filter_metadata`, without the filters that have nothing to say.
fn metadata<const N: usize>(filters: [(&str, Struct); N]) -> Option<core::Metadata> {
    let told = filters.into_iter().filter(|(_, fields)| !fields.fields.is_empty());
    let filter_metadata: HashMap<_, _> = told.map(|(filter, fields)| (filter.to_owned(), fields)).collect();
    (!filter_metadata.is_empty()).then(|| core::Metadata { filter_metadata, ..Default::default() })
}

fn source(source: Option<&SourceObject>) -> Option<core::Metadata> {
    metadata([("istio", object(source.map(|source| ("config", text(source.to_string())))))])
}

/// "On this very stream". Waits for the first answer as long as it takes, as Istio's proxies do.
fn ads() -> core::ConfigSource {
    core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource {},
        )),
        initial_fetch_timeout: Some(duration(Duration::ZERO)),
        resource_api_version: core::ApiVersion::V3.into(),
        ..Default::default()
    }
}

/// A service that is asked over gRPC, by its cluster.
fn grpc(cluster: &str, timeout: Option<Duration>) -> core::GrpcService {
    core::GrpcService {
        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(
            core::grpc_service::EnvoyGrpc {
                cluster_name: cluster.to_owned(),
                // By default the cluster's name would be the authority, and `|` is no character of one.
                authority: cluster.rsplit('|').next().unwrap_or(cluster).to_owned(),
                ..Default::default()
            },
        )),
        timeout: timeout.map(duration),
        ..Default::default()
    }
}
