//! Mesh configuration: Istio's kinds and Kubernetes' core kinds, from YAML to immutable snapshots.
//!
//! In: files (`source`), or objects handed to [`source::Store`]. Out: `Arc<`[`Snapshot`]`>` and [`Diagnostic`]s.
//! Kept true: nothing a user wrote is dropped in silence, and a refused object never displaces its last good form.
//! Not here: what the objects mean for traffic (`pilot`), policy or telemetry (`mixer`).

pub mod diagnostic;
pub mod duration;
pub mod hosts;
pub mod kinds;
pub mod object;
pub mod parse;
pub mod resource;
pub mod schema;
pub mod snapshot;
pub mod source;
pub mod validate;
pub mod yaml;

pub use diagnostic::{Diagnostic, Severity};
pub use duration::GoDuration;
pub use k8s_openapi;
pub use object::{Age, Gvk, Meta, Object, ObjectKey, Origin};
pub use resource::{Kind, Resource};
pub use snapshot::{Snapshot, Table};
