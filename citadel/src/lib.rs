//! citadel: the certificate authority of the mesh, and the agent that gives certificates to Envoys.
//!
//! In: `istio.v1.auth` requests with a token or a mesh certificate. Out: short-lived SPIFFE certificates, root bundles.
//! Kept true: the identity in a certificate is the authenticated caller's, whatever the request says.
//! Not here: the client side (`mesh_identity::workload`), TLS (`mesh_identity::tls`).

pub mod agent;
pub mod ca;
pub mod caller;
pub mod cli;
mod files;
pub mod kube;
pub mod limit;
pub mod refusal;
pub mod serve;
