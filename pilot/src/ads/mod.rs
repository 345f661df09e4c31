//! The xDS v3 server: aggregated discovery, incremental and state of the world.
//!
//! In: catalogs of encoded resources, one per proxy, from [`crate::push`]. Out: gRPC streams, and where each stands.
//! Kept true: only what changed is sent; a refused resource is noted against the objects it was made from.
//! Not here: what the resources say (`crate::translate`).

pub mod catalog;
pub mod server;
pub mod stream;
pub mod wire;

pub use catalog::{Catalog, Encoded, Resources, Type};
