//! What one stream holds, wants and is owed: the two forms of the protocol as pure state, without sockets.
//!
//! In: requests of one client and the latest [`Catalog`]. Out: the next response, if one is due.
//! Kept true: one response per type is under way at a time, so a slow client gets the latest state and never a queue;
//! clusters and endpoints come before what points at them and go after it. Not here: sockets and tasks (`server`).

mod delta;
mod sotw;
#[cfg(test)]
mod tests;

pub use delta::Delta;
pub use sotw::Sotw;

use super::catalog::{Catalog, Encoded, Type};
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc};

/// Order in which resources that exist no more are taken away: users before what they use.
const REMOVAL_ORDER: [Type; 6] =
    [Type::Listener, Type::Routes, Type::VirtualHost, Type::Cluster, Type::Endpoints, Type::Secret];

/// Types whose resources point at clusters.
const POINTERS: [Type; 3] = [Type::Listener, Type::Routes, Type::VirtualHost];

/// A resource that a client refused, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// The client's text.
    pub why: String,
    /// Version refused.
    pub version: String,
    /// Objects the resource was made from.
    pub sources: Vec<Arc<str>>,
}

/// Where a stream stands with one type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Number of the push sent last.
    pub sent: u64,
    /// Number of the push acknowledged last; behind [`Standing::sent`] while the client has not answered.
    pub acknowledged: u64,
    /// Number of resources sent in all.
    pub resources_sent: u64,
    /// Resources refused and not yet replaced by accepted ones.
    pub refused: BTreeMap<Arc<str>, Refusal>,
}

impl Standing {
    /// `SYNCED`, `STALE` (sent, not acknowledged), `REFUSED`, or `NOT SENT`, as the status tables say it.
    pub fn word(&self) -> &'static str {
        match self {
            s if !s.refused.is_empty() => "REFUSED",
            s if s.sent == 0 => "NOT SENT",
            s if s.sent != s.acknowledged => "STALE",
            _ => "SYNCED",
        }
    }
}

/// A response under way.
#[derive(Debug)]
struct Sent {
    nonce: String,
    push: u64,
    resources: Vec<(Arc<str>, Arc<Encoded>)>,
}

impl Sent {
    /// Notes the client's answer in `standing`.
    fn settle(self, error: Option<&str>, standing: &mut Standing) {
        standing.acknowledged = self.push;
        let Some(why) = error else {
            for (name, _) in &self.resources {
                standing.refused.remove(name);
            }
            return;
        };
        // The text of a refusal names the resources it is about; if it names none, all of them are suspects.
        let named = |name: &str| why.contains(name);
        let any = self.resources.iter().any(|(name, _)| named(name));
        for (name, body) in self.resources {
            if any && !named(&name) {
                standing.refused.remove(&name);
                continue;
            }
            let refusal = Refusal {
                why: why.to_owned(),
                version: body.version.to_string(),
                sources: body.sources.clone(),
            };
            standing.refused.insert(name, refusal);
        }
    }
}

/// Whether clusters, endpoints and secrets may be taken away: all that could point at them has been accepted.
fn may_remove<'a>(pointers: impl Iterator<Item = (Type, bool, &'a Standing)>) -> bool {
    pointers
        .into_iter()
        .all(|(kind, busy, standing)| !POINTERS.contains(&kind) || (!busy && standing.refused.is_empty()))
}

/// The key of a name in the catalog, shared; else a new string.
fn shared_name(catalog: &Catalog, kind: Type, name: &str) -> Arc<str> {
    catalog.of(kind).get_key_value(name).map_or_else(|| name.into(), |(key, _)| key.clone())
}
