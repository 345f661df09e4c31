//! The discovery protocol's messages, under the names this crate uses.
//!
//! In/out: `xds::discovery`. Kept true: resource bodies are shared bytes. Not here: what is in a resource (`translate`).

pub use xds::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Locality, Node,
    Packed as Any, Resource, Status,
};
pub use xds::prost_types::{Struct, Value, value::Kind};
