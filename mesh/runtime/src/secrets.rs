//! Keeping keys out of core dumps and out of reach of debuggers.
//!
//! In: a call at the start of a program that holds private keys. Out: nothing.
//! Kept true: where the kernel refuses, the program runs on and says so.
//! Not here: wiping keys from memory (the types that hold them do).

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// Makes the process undumpable (prctl PR_SET_DUMPABLE): no core dump, and no other process of the same user may read
/// its memory. Some files under `/proc/self` then belong to root, so a few process metrics go missing.
pub fn protect_memory() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "core dumps of this process cannot be switched off");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protected_process_leaves_no_core_dump() {
        protect_memory();
        let now = rustix::process::dumpable_behavior().unwrap();
        assert!(matches!(now, DumpableBehavior::NotDumpable), "{now:?}");
    }
}
