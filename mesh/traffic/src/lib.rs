//! The traffic model: what pilot computes, xDS carries, and the proxy obeys, with the one decision made over it.
//!
//! In: Istio's objects (through pilot) or xDS (through [`wire`]). Out: an immutable [`Snapshot`] and [`plan()`].
//! Kept true: no runtime, socket or clock in here; everything is compiled when it arrives, so a decision only looks things up.
//! Not here: reading YAML (`mesh-config`), carrying a decision out (`proxy`).

pub mod balance;
pub mod cluster;
pub mod endpoint;
pub mod filter;
pub mod flags;
pub mod listener;
pub mod matchers;
pub mod names;
pub mod plan;
pub mod rbac;
pub mod retry;
pub mod route;
pub mod snapshot;
pub mod table;
pub mod tls;
pub mod wire;

pub use cluster::Cluster;
pub use endpoint::{Endpoint, Endpoints};
pub use flags::ResponseFlags;
pub use listener::Listener;
pub use plan::{Choice, Reply, RequestFacts, plan};
pub use route::{Route, RouteConfiguration, VirtualHost};
pub use snapshot::Snapshot;
pub use table::RouteTable;
