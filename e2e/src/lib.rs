//! End to end: the local node, the demo, the scenarios that judge Crema, and Envoy beside it.
//!
//! In: the workspace's binaries and Istio's YAML. Out: verdicts. Kept true: everything here drives the binaries from outside.
//! Not here: anything a user's mesh needs at run time.

pub mod attack;
pub mod backends;
pub mod bench;
pub mod cluster;
pub mod demo;
pub mod differential;
pub mod faults;
pub mod images;
pub mod manifest;
pub mod node;
pub mod peers;
pub mod scenarios;
pub mod up;

pub use espresso_shop::{call as http, load};
