//! The incremental form: names and versions per type, changes only.
//!
//! In: delta requests. Out: delta responses. Kept true: a name just subscribed is always answered, if only with its
//! absence; what a client holds is remembered as one shared map plus a few differences.
//! Not here: the state-of-the-world form (`sotw`).

use super::{REMOVAL_ORDER, Sent, Standing, may_remove, shared_name};
use crate::ads::{
    catalog::{Catalog, Encoded, Resources, Type},
    wire,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// State of one delta stream.
#[derive(Debug, Default)]
pub struct Delta {
    types: [Option<Subscription>; 6],
    nonce: u64,
}

#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// Just subscribed: to be answered even if absent.
    owed: BTreeSet<Arc<str>>,
    /// The first answer was given.
    answered: bool,
    /// What the client holds, except where `differs` says otherwise.
    base: Arc<Resources>,
    /// Version held, or `None` for "does not hold it".
    differs: BTreeMap<Arc<str>, Option<Arc<str>>>,
    under_way: Option<Sent>,
    standing: Standing,
}

impl Subscription {
    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    fn holds(&self, name: &str) -> Option<&str> {
        match self.differs.get(name) {
            Some(version) => version.as_deref(),
            None => self.base.get(name).map(|r| &*r.version),
        }
    }

    /// Whether nothing can be due: what it holds is the current set.
    fn settled(&self, now: &Arc<Resources>) -> bool {
        self.answered && self.owed.is_empty() && self.differs.is_empty() && Arc::ptr_eq(&self.base, now)
    }

    fn changed(&self, now: &Resources) -> Vec<(Arc<str>, Arc<Encoded>)> {
        let fresh = |name: &Arc<str>, body: &Arc<Encoded>| {
            (self.holds(name) != Some(&*body.version)).then(|| (name.clone(), body.clone()))
        };
        if self.wildcard {
            now.iter().filter_map(|(name, body)| fresh(name, body)).collect()
        } else {
            let known = self.names.iter().filter_map(|name| now.get_key_value(name));
            known.filter_map(|(name, body)| fresh(name, body)).collect()
        }
    }

    fn gone(&self, now: &Resources) -> Vec<Arc<str>> {
        let held = self.base.keys().chain(self.differs.keys());
        let gone: BTreeSet<_> = held
            .filter(|name| self.wants(name) && !now.contains_key(*name) && self.holds(name).is_some())
            .cloned()
            .collect();
        gone.into_iter().collect()
    }
}

impl Delta {
    /// How many names are kept of what the client has asked for and says it has; they grow with its requests.
    #[must_use]
    pub fn names_kept(&self) -> usize {
        self.types.iter().flatten().map(|sub| sub.names.len() + sub.differs.len()).sum()
    }

    /// Takes in one request. The caller has checked the type.
    pub fn request(&mut self, kind: Type, request: &wire::DeltaDiscoveryRequest, catalog: &Catalog) {
        let first = self.types[kind.index()].is_none();
        let sub = self.types[kind.index()].get_or_insert_default();
        if !request.response_nonce.is_empty()
            && let Some(sent) = sub.under_way.take_if(|s| s.nonce == request.response_nonce)
        {
            let error = request.error_detail.as_ref().map(|e| e.message.as_str());
            sent.settle(error, &mut sub.standing);
        }
        if first && request.resource_names_subscribe.is_empty() && kind.empty_means_all() {
            sub.wildcard = true;
        }
        for name in &request.resource_names_subscribe {
            if name == "*" {
                sub.wildcard = true;
                continue;
            }
            let name = shared_name(catalog, kind, name);
            sub.differs.insert(name.clone(), None);
            sub.owed.insert(name.clone());
            sub.names.insert(name);
        }
        for name in &request.resource_names_unsubscribe {
            if name == "*" {
                sub.wildcard = false;
                continue;
            }
            sub.names.remove(name.as_str());
            sub.owed.remove(name.as_str());
            if !sub.wildcard {
                sub.standing.refused.remove(name.as_str());
            }
        }
        if first {
            for (name, version) in &request.initial_resource_versions {
                let name = shared_name(catalog, kind, name);
                sub.owed.remove(&name);
                sub.differs.insert(name, Some(version.as_str().into()));
            }
        }
    }

    /// The next response that is due, if any.
    pub fn next(&mut self, catalog: &Catalog) -> Option<wire::DeltaDiscoveryResponse> {
        for kind in Type::ALL {
            let now = catalog.of(kind);
            let Some(sub) = self.types[kind.index()].as_mut().filter(|s| s.under_way.is_none()) else {
                continue;
            };
            if sub.settled(now) {
                // Nothing of this type was touched; the client is up to date with this push as well.
                if sub.standing.sent == sub.standing.acknowledged {
                    sub.standing.sent = catalog.push;
                    sub.standing.acknowledged = catalog.push;
                }
                continue;
            }
            let changed = sub.changed(now);
            let mut absent: Vec<_> = sub.owed.iter().filter(|n| !now.contains_key(*n)).cloned().collect();
            if kind == Type::VirtualHost && !changed.is_empty() {
                // A domain has one virtual host: the new one comes together with the end of the old one, or the client must refuse it.
                absent.extend(sub.gone(now));
            }
            if changed.is_empty() && absent.is_empty() && (sub.answered || !sub.wildcard) {
                continue;
            }
            return Some(self.send(kind, catalog, changed, &absent));
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
            if sub.settled(now) {
                continue;
            }
            let gone = sub.gone(now);
            if gone.is_empty() {
                // All changes of this type are sent: from here on it holds the current set, by one pointer.
                sub.differs.clear();
                sub.base = now.clone();
                sub.answered = true;
                continue;
            }
            if free || super::POINTERS.contains(&kind) {
                return Some(self.send(kind, catalog, Vec::new(), &gone));
            }
        }
        None
    }

    fn send(
        &mut self,
        kind: Type,
        catalog: &Catalog,
        changed: Vec<(Arc<str>, Arc<Encoded>)>,
        gone: &[Arc<str>],
    ) -> wire::DeltaDiscoveryResponse {
        if kind == Type::Cluster {
            self.resend_endpoints(&changed);
        }
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        let sub = self.types[kind.index()].as_mut().expect("only subscribed types are sent");
        sub.answered = true;
        for (name, body) in &changed {
            sub.owed.remove(name);
            sub.differs.insert(name.clone(), Some(body.version.clone()));
        }
        for name in gone {
            sub.owed.remove(name);
            sub.differs.insert(name.clone(), None);
            sub.standing.refused.remove(name);
        }
        sub.standing.sent = catalog.push;
        sub.standing.resources_sent += u64::try_from(changed.len()).unwrap_or(u64::MAX);
        let resources = changed
            .iter()
            .map(|(name, body)| wire::Resource {
                version: body.version.to_string(),
                resource: Some(wire::Any { type_url: kind.url().to_owned(), value: body.bytes.clone() }),
                name: name.to_string(),
                ..Default::default()
            })
            .collect();
        sub.under_way = Some(Sent { nonce: nonce.clone(), push: catalog.push, resources: changed });
        wire::DeltaDiscoveryResponse {
            system_version_info: catalog.push.to_string(),
            resources,
            type_url: kind.url().to_owned(),
            nonce,
            removed_resources: gone.iter().map(ToString::to_string).collect(),
        }
    }

    /// A changed cluster waits for its endpoints anew, and Envoy does not ask again for a name it already watches.
    fn resend_endpoints(&mut self, clusters: &[(Arc<str>, Arc<Encoded>)]) {
        if let Some(sub) = self.types[Type::Endpoints.index()].as_mut() {
            for (name, _) in clusters.iter().filter(|(name, _)| sub.names.contains(name)) {
                sub.differs.insert(name.clone(), None);
            }
        }
    }

    /// Where the stream stands with each type it asked for.
    pub fn standings(&self) -> impl Iterator<Item = (Type, &Standing)> {
        Type::ALL.into_iter().filter_map(|t| self.types[t.index()].as_ref().map(|s| (t, &s.standing)))
    }
}
