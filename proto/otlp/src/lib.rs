//! OTLP: OpenTelemetry's protocol for traces, metrics and logs.
//!
//! In: nothing. Out: the messages and services of the kept crate `opentelemetry-proto`.
//! Kept true: one version of these types in the workspace. Not here: any conversion (`mixer`).

pub use opentelemetry_proto::tonic::{collector, common, logs, metrics, resource, trace};
