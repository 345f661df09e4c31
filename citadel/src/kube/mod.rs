//! citadel in a Kubernetes cluster: its authority in Secrets, callers known by TokenReview, roots in every namespace.
//!
//! In: an API server. Out: a [`Source`](crate::ca::source::Source) of the authority, a verifier of tokens, a task that distributes roots.
//! Kept true: only the elected citadel writes; an API server that is away changes nothing that is served; no Secret outside the mesh's
//! own namespace is ever asked for. Not here: signing (`ca`), the election itself (`mesh-kube`).

pub mod review;
pub mod roots;
pub mod secrets;

/// Lease of the one citadel that creates the authority and writes root bundles.
pub const LEASE: &str = "citadel-leader";
