//! Where configuration comes from: one writer, any number of readers of immutable snapshots.
//!
//! In: files of a directory ([`watch_dir`]), or objects from elsewhere ([`Store::apply`], e.g. an API server).
//! Out: [`Reader`]s of `Arc<`[`Snapshot`](crate::Snapshot)`>`.
//! Kept true: one [`Store`] per configuration, owned by one task; readers never see half a batch.
//! Not here: decoding (`parse`).

mod dir;
pub(crate) mod files;
mod store;

pub use dir::{DirOptions, watch_dir};
pub use store::{Reader, Store};

#[cfg(test)]
mod tests;
