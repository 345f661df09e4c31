//! Pilot: reads the mesh's configuration and tells every proxy its routes, over xDS v3.
//!
//! In: snapshots of Istio's and Kubernetes' objects (`mesh-config`). Out: encoded resources per proxy, streams, answers.
//! Kept true: no proxy is told anything before everything was read once; one bad object spoils nothing but itself.
//! Not here: YAML and its checks (`mesh-config`), the decision per request (`mesh-traffic`).

pub mod admin;
pub mod admission;
pub mod ads;
pub mod cli;
pub mod explain;
pub mod model;
pub mod push;
pub mod serve;
pub mod status;
pub mod tls_check;
pub mod translate;
