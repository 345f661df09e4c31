//! The bodies of Istio's kinds as serde structs, camelCase as in YAML.
//!
//! In: JSON values without nulls. Out: plain structs; an absent field is `None`, an empty list or an empty map.
//! Kept true: every T1 and T2 field has a place here, removed ones of Istio 1.1 included, so none is dropped.
//! Not here: defaults that depend on other objects, and whether a value makes sense (`validate`).

pub mod common;
pub mod destination_rule;
pub mod gateway;
pub mod mesh;
pub mod mixer;
pub mod rare;
pub mod security;
pub mod service_entry;
pub mod sidecar;
pub mod telemetry;
pub mod virtual_service;

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::EVERYTHING;

pub use common::*;
pub use destination_rule::*;
pub use gateway::*;
pub use mesh::*;
pub use mixer::*;
pub use rare::*;
pub use security::*;
pub use service_entry::*;
pub use sidecar::*;
pub use telemetry::*;
pub use virtual_service::*;
