//! Attackers before the proxy: hostile bytes at its listeners, an upstream behind it that records every byte, and Envoy beside it.
//!
//! In: our `proxy`, a real Envoy where there is one, both started from one bootstrap. Out: verdicts and tables.
//! Kept true: everything is on loopback and bounded in count and time; all processes die with the [`world::World`].
//! Not here: the codec against bytes without sockets (`proxy/tests/raw_bytes.rs`), faults of the control plane (`faults`).

pub mod framing;
pub mod h2spec;
pub mod hostile;
pub mod measure;
pub mod overload;
pub mod recorder;
pub mod report;
pub mod rows;
pub mod world;
