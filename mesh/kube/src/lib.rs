//! What the mesh's components do with a Kubernetes API server: read configuration, write what belongs to it.
//!
//! In: an API server. Out: a client ([`client`]), snapshots of the cluster's objects, leases, events, status.
//! Kept true: an API server that is away changes nothing that is served; writes are small, rare, and say whose they are.
//! Not here: what objects mean (`mesh-config` and the components).

mod args;
mod client;
pub mod events;
pub mod lease;
pub mod source;
pub mod status;
pub mod webhook;

pub use args::KubeArgs;
pub use client::{FIELD_MANAGER, OWNER, client, identity, owner};
pub use k8s_openapi;
pub use kube;
