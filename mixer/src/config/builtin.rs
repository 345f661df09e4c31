//! The configuration that is there before the user has written any: Istio's standard metrics.
//!
//! In: `builtin.yaml`. Out: objects of namespace `istio-system`.
//! Kept true: a user's object of the same kind, name and namespace replaces the built-in one. Not here: compiling.

use std::sync::{Arc, LazyLock};

use mesh_config::{Object, Snapshot, kinds::MixerObject};

use super::Options;

static OBJECTS: LazyLock<Vec<Arc<Object<MixerObject>>>> = LazyLock::new(|| {
    let snapshot = Snapshot::from_texts(&[("built-in", include_str!("builtin.yaml"))]);
    snapshot.mixer.iter().cloned().collect()
});

/// The built-in objects that `options` ask for.
pub(super) fn objects(options: &Options) -> &'static [Arc<Object<MixerObject>>] {
    if options.default_metrics { &OBJECTS } else { &[] }
}
