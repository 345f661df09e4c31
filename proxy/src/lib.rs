//! The data plane: Crema's sidecar and gateway proxy.
//! In: connections of applications and peers, configuration over xDS. Out: their requests, routed, secured and told of.
//! Kept true: arrows go down, `listen` to `codec`; a request sees one configuration snapshot.
//! Not here: where configuration comes from (`pilot`), certificates' issuer (`citadel`).

pub mod admin;
pub mod balance;
pub mod bootstrap;
pub mod capture;
pub mod cli;
pub mod codec;
pub mod http;
pub mod listen;
pub mod pod;
pub mod restart;
pub mod serve;
pub mod tcp;
pub mod telemetry;
pub mod worker;
pub mod xds;

#[cfg(test)]
mod tests;
