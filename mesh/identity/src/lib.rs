//! Who is who in the mesh: SPIFFE identities, certificates, mutual TLS, and gRPC over it.
//!
//! In: certificates and roots (from citadel, files or SDS), connections. Out: TLS streams with a [`Verified`] peer.
//! Kept true: one TLS provider (aws-lc-rs); identity is proven by a chain to a trusted root, never by a name that a peer claims.
//! Not here: who may do what (policy), and the signing of certificates (`citadel`).

pub mod bundle;
pub mod credentials;
pub mod grpc;
pub mod pem;
pub mod spiffe;
pub mod store;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
pub mod tls;
pub mod workload;

pub use bundle::TrustBundle;
pub use credentials::{Credentials, PrivateKey};
pub use spiffe::{SpiffeId, TrustDomain};
pub use store::CertStore;
pub use tls::{Peer, Verified};

/// The TLS library, for the types that meet other crates (`ServerConfig`, `ClientConfig`, streams).
pub use rustls;
pub use rustls_pki_types as pki_types;
pub use tokio_rustls;
