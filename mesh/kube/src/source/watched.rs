//! One watched set of objects: which of them are there, and what its events mean for the store.
//!
//! In: events of a watch. Out: changes of the store, and [`Seen`]. Kept true: a new list replaces the old one only when it is
//! complete, and never empties it in between. Not here: the connection, publication (`source`).

use super::{SOURCE, trim};
use kube::{
    api::{ApiResource, DynamicObject},
    runtime::{utils::Backoff as BackoffTrait, watcher},
};
use mesh_config::{Kind, ObjectKey, resource::Scope, source::Store};
use mesh_runtime::backoff::{Backoff, Outage};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// What an API server said last about an object, in force or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// `metadata.generation`.
    pub number: i64,
    /// Where to write about it.
    pub resource: Arc<ApiResource>,
}

/// The last generation of every object of a custom kind, also of those that were refused. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Seen(Arc<Mutex<BTreeMap<ObjectKey, Generation>>>);

impl Seen {
    /// All of them, by key.
    pub fn all(&self) -> BTreeMap<ObjectKey, Generation> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn put(&self, key: &ObjectKey, generation: Option<Generation>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match generation {
            Some(generation) => all.insert(key.clone(), generation),
            None => all.remove(key),
        };
    }
}

/// One set.
pub(super) struct Watched {
    resource: Arc<ApiResource>,
    kind: Kind,
    held: BTreeSet<ObjectKey>,
    /// What a list under way has brought so far.
    arriving: Option<BTreeSet<ObjectKey>>,
    /// Whether it was listed once, or need not be.
    pub listed: bool,
    optional: bool,
    outage: Outage,
}

impl Watched {
    pub fn new(resource: ApiResource, optional: bool) -> Self {
        let kind = Kind::of(&resource.group, &resource.kind);
        let what = if resource.group.is_empty() {
            format!("{} at the API server", resource.plural)
        } else {
            format!("{}.{} at the API server", resource.plural, resource.group)
        };
        Self {
            resource: Arc::new(resource),
            kind,
            held: BTreeSet::new(),
            arriving: None,
            listed: false,
            optional,
            outage: Outage::new(what),
        }
    }

    /// Whether it holds objects of this kind.
    pub fn is_for(&self, group: &str, kind: &str) -> bool {
        self.resource.group == group && self.resource.kind == kind
    }

    /// Takes one event.
    pub fn take(
        &mut self,
        event: watcher::Result<watcher::Event<DynamicObject>>,
        store: &mut Store,
        seen: &Seen,
    ) {
        let event = match event {
            Ok(event) => event,
            Err(error) => return self.failed(&error),
        };
        if !matches!(event, watcher::Event::Init) {
            self.outage.recovered();
        }
        match event {
            watcher::Event::Init => self.arriving = Some(BTreeSet::new()),
            watcher::Event::InitApply(object) => {
                if let Some(key) = self.apply(object, store, seen)
                    && let Some(arriving) = &mut self.arriving
                {
                    arriving.insert(key);
                }
            }
            watcher::Event::InitDone => {
                self.listed = true;
                let Some(arrived) = self.arriving.take() else { return };
                for key in self.held.difference(&arrived) {
                    store.delete(SOURCE, key);
                    seen.put(key, None);
                }
                self.held = arrived;
            }
            watcher::Event::Apply(object) => {
                self.apply(object, store, seen);
            }
            watcher::Event::Delete(object) => {
                let Some(key) = self.key(&object) else { return };
                self.held.remove(&key);
                store.delete(SOURCE, &key);
                seen.put(&key, None);
            }
        }
    }

    fn failed(&mut self, error: &watcher::Error) {
        // A version that is too old is a server's everyday answer after a restart: the next list mends it.
        if matches!(error, watcher::Error::WatchError(status) if status.code == 410) {
            return tracing::debug!(kind = self.resource.kind, "watch is too old, listing again");
        }
        self.outage.failed(error);
        let forbidden = matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 403);
        if forbidden && self.optional {
            self.listed = true;
        }
    }

    fn apply(&mut self, mut object: DynamicObject, store: &mut Store, seen: &Seen) -> Option<ObjectKey> {
        let key = self.key(&object)?;
        if self.resource.group.ends_with("istio.io") {
            let number = object.metadata.generation.unwrap_or(0);
            seen.put(&key, Some(Generation { number, resource: self.resource.clone() }));
        }
        trim::trim(self.kind, &mut object);
        match trim::document(&self.resource, &object) {
            Ok(document) => store.apply_json(SOURCE, &document),
            Err(error) => tracing::warn!(object = %key, %error, "object cannot be read"),
        }
        self.held.insert(key.clone());
        Some(key)
    }

    fn key(&self, object: &DynamicObject) -> Option<ObjectKey> {
        let name = object.metadata.name.as_deref()?;
        let namespace = match self.kind.scope(&self.resource.kind) {
            Scope::Cluster => "",
            Scope::Namespaced => object.metadata.namespace.as_deref().unwrap_or("default"),
        };
        Some(ObjectKey {
            kind: self.kind,
            group: self.resource.group.as_str().into(),
            kind_name: self.resource.kind.as_str().into(),
            namespace: namespace.into(),
            name: name.into(),
        })
    }
}

/// Waits between attempts of one watch: 200 ms to 5 s, drawn at random, so that many watches do not return together.
pub struct Retry(Backoff);

impl Default for Retry {
    fn default() -> Self {
        Self(Backoff::new(Duration::from_millis(200), Duration::from_secs(5)))
    }
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.0.next_wait())
    }
}

impl BackoffTrait for Retry {
    fn reset(&mut self) {
        self.0.reset();
    }
}
