//! Wire types of `istio.v1.auth`: how a workload asks for its certificate.
//!
//! In: `proto/istio_auth.proto`. Out: messages, client and server as tonic generates them.
//! Kept true: field numbers and names are those of the field's clients and servers.
//! Not here: any logic; the client is `mesh_identity::workload`, the server is `citadel`.

#![allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated code")]

tonic::include_proto!("istio.v1.auth");

/// What `metadata` is made of.
pub use prost_types::{ListValue, Struct, Value, value::Kind};
