//! What a configuration means that its types cannot say.
//!
//! In: one [`Resource`], or a whole [`Snapshot`]. Out: [`Diagnostic`]s.
//! Kept true: an error only where the object cannot be meant; dangling references and legacy forms are warnings.
//! Not here: shapes and unknown fields (`parse`).

mod mesh;

pub use mesh::mesh_config;

use crate::diagnostic::Diagnostic;
use crate::resource::Resource;
use crate::snapshot::Snapshot;

/// Checks one object by itself. An error refuses it.
pub fn object(_resource: &Resource) -> Vec<Diagnostic> {
    Vec::new()
}

/// Checks objects against each other. Nothing here refuses an object.
pub fn set(_snapshot: &Snapshot) -> Vec<Diagnostic> {
    Vec::new()
}
