//! The state-of-the-world form: every response carries all resources asked for.
//!
//! In: discovery requests. Out: discovery responses. Kept true: a response that would take clusters away is first sent
//! with them, and without them once nothing points there. Not here: the incremental form (`delta`).

use super::{REMOVAL_ORDER, Sent, Standing, may_remove};
use crate::ads::{
    catalog::{Catalog, Resources, Type, fingerprint},
    wire,
};
use std::{collections::BTreeSet, sync::Arc};

/// State of one state-of-the-world stream.
#[derive(Debug, Default)]
pub struct Sotw {
    types: [Option<Subscription>; 6],
    nonce: u64,
}

#[derive(Debug, Default)]
struct Subscription {
    names: BTreeSet<String>,
    wildcard: bool,
    /// What was sent last.
    held: Resources,
    /// The catalog's set at that time; quick way to see that nothing changed.
    seen: Option<Arc<Resources>>,
    /// The names changed, or clusters were sent: answer even if nothing else changed.
    owed: bool,
    last_nonce: String,
    under_way: Option<Sent>,
    standing: Standing,
}

impl Subscription {
    fn wanted(&self, now: &Resources) -> Resources {
        let pairs = now.iter().filter(|(name, _)| self.wildcard || self.names.contains(&***name));
        pairs.map(|(name, body)| (name.clone(), body.clone())).collect()
    }
}

impl Sotw {
    /// Takes in one request. The caller has checked the type.
    pub fn request(&mut self, kind: Type, request: &wire::DiscoveryRequest) {
        let first = self.types[kind.index()].is_none();
        let sub = self.types[kind.index()].get_or_insert_default();
        if !first && request.response_nonce != sub.last_nonce {
            return; // answers an older response: its names are out of date as well
        }
        if let Some(sent) = sub.under_way.take_if(|s| s.nonce == request.response_nonce) {
            let error = request.error_detail.as_ref().map(|e| e.message.as_str());
            sent.settle(error, &mut sub.standing);
        }
        let names: BTreeSet<_> = request.resource_names.iter().filter(|n| *n != "*").cloned().collect();
        let star = request.resource_names.iter().any(|n| n == "*");
        let wildcard = star || kind.empty_means_all() && names.is_empty();
        if first || names.iter().any(|n| !sub.names.contains(n)) || wildcard != sub.wildcard {
            sub.owed = true;
        }
        sub.held.retain(|name, _| wildcard || names.contains(&**name));
        sub.names = names;
        sub.wildcard = wildcard;
        sub.seen = None;
    }

    /// The next response that is due, if any.
    pub fn next(&mut self, catalog: &Catalog) -> Option<wire::DiscoveryResponse> {
        for kind in Type::ALL {
            let now = catalog.of(kind);
            let Some(sub) = self.types[kind.index()].as_mut().filter(|s| s.under_way.is_none()) else {
                continue;
            };
            if !sub.owed && sub.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, now)) {
                if sub.standing.sent == sub.standing.acknowledged && sub.standing.sent > 0 {
                    sub.standing.sent = catalog.push;
                    sub.standing.acknowledged = catalog.push;
                }
                continue;
            }
            let mut set = sub.wanted(now);
            for (name, body) in &sub.held {
                set.entry(name.clone()).or_insert_with(|| body.clone());
            }
            if sub.owed && (sub.wildcard || !set.is_empty()) || !same(&set, &sub.held) {
                return Some(self.send(kind, catalog, set));
            }
        }
        let pointers = Type::ALL.into_iter().filter_map(|t| {
            let sub = self.types[t.index()].as_ref()?;
            Some((t, sub.under_way.is_some(), &sub.standing))
        });
        let free = may_remove(pointers);
        for kind in REMOVAL_ORDER {
            let now = catalog.of(kind);
            let Some(sub) = self.types[kind.index()].as_mut().filter(|s| s.under_way.is_none()) else {
                continue;
            };
            if sub.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, now)) {
                continue;
            }
            let set = sub.wanted(now);
            if same(&set, &sub.held) {
                sub.seen = Some(now.clone());
            } else if kind.empty_means_all() {
                if free || kind == Type::Listener {
                    return Some(self.send(kind, catalog, set));
                }
            } else {
                // Only listeners and clusters are removed by being left out; the rest go with their users.
                sub.held = set;
                sub.seen = Some(now.clone());
            }
        }
        None
    }

    fn send(&mut self, kind: Type, catalog: &Catalog, set: Resources) -> wire::DiscoveryResponse {
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        if kind == Type::Cluster {
            // A changed cluster waits for its endpoints anew, and Envoy does not ask again for names it watches.
            if let Some(endpoints) = self.types[Type::Endpoints.index()].as_mut() {
                endpoints.owed = true;
            }
        }
        let sub = self.types[kind.index()].as_mut().expect("only subscribed types are sent");
        sub.owed = false;
        sub.last_nonce.clone_from(&nonce);
        sub.standing.sent = catalog.push;
        sub.standing.resources_sent += u64::try_from(set.len()).unwrap_or(u64::MAX);
        sub.standing.refused.retain(|name, _| set.contains_key(name));
        let versions: Vec<_> = set.iter().map(|(name, body)| (&**name, &*body.version)).collect();
        let version_info = format!("{:016x}", fingerprint(&versions));
        let resources = set
            .values()
            .map(|body| wire::Any { type_url: kind.url().to_owned(), value: body.bytes.clone() })
            .collect();
        let all = set.iter().map(|(name, body)| (name.clone(), body.clone())).collect();
        sub.under_way = Some(Sent { nonce: nonce.clone(), push: catalog.push, resources: all });
        sub.held = set;
        wire::DiscoveryResponse { version_info, resources, type_url: kind.url().to_owned(), nonce }
    }

    /// Where the stream stands with each type it asked for.
    pub fn standings(&self) -> impl Iterator<Item = (Type, &Standing)> {
        Type::ALL.into_iter().filter_map(|t| self.types[t.index()].as_ref().map(|s| (t, &s.standing)))
    }
}

fn same(a: &Resources, b: &Resources) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.0 == y.0 && x.1.version == y.1.version)
}
