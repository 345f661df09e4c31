//! Mixer: takes reports, decides policy, fans out to adapters.
//!
//! In: the native telemetry stream, Envoy ALS v3, OTLP, Zipkin, `istio.mixer.v1`, ext_authz v3. Out: each backend's
//! own protocol. Kept true: a dead backend slows nobody else, and what is lost is counted.
//! Not here: reading configuration objects (`mesh-config`), identity and TLS (`mesh-identity`).

pub mod adapters;
pub mod attributes;
pub mod config;
pub mod core;
pub mod dispatch;
pub mod eval;
pub mod ingest;
pub mod join;
pub mod lang;
pub mod recorder;
pub mod series;
pub mod serve;
pub mod workload;
