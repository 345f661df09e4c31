//! What every Crema process needs around its real work: drain, signals, logs, admin server, metrics, retry.
//!
//! In: command line, signals, HTTP on the admin port. Out: small handles that each binary passes to its tasks.
//! Kept true: nothing here knows a mesh concept, and nothing here ends the process by itself.
//! Not here: TLS and identity (`mesh-identity`), configuration objects (`mesh-config`).

pub mod admin;
pub mod backoff;
pub mod cli;
pub mod drain;
pub mod listen;
pub mod logs;
pub mod metrics;
pub mod readiness;
pub mod secrets;
pub mod shutdown;

pub use backoff::{Backoff, Outage};
pub use cli::{CaClientArgs, CommonArgs};
pub use logs::LogLevel;
pub use metrics::Metrics;
pub use readiness::{Condition, Readiness};
