//! Snapshots: the whole configuration at one moment, immutable, indexed by kind, namespace and name.
//!
//! In: resources from [`crate::source::Store`]. Out: [`Snapshot`] behind an `Arc`, with one [`Table`] per kind.
//! Kept true: untouched objects, namespaces and tables are shared with the snapshot before, by pointer.
//! Not here: who writes (`source`), what it means (`pilot`, `mixer`).

use crate::diagnostic::Diagnostic;
use crate::kinds::{self, MeshConfig, MixerObject};
use crate::object::{Object, ObjectKey};
use crate::resource::{Kind, Resource, for_each_kind};
use crate::source::Store;
use crate::source::files::{list_by_age, read};
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

type ByName<T> = BTreeMap<Arc<str>, Arc<Object<T>>>;

/// All objects of one kind, by namespace and name. Cloning copies one pointer.
#[derive(Debug)]
pub struct Table<T>(Arc<BTreeMap<Arc<str>, Arc<ByName<T>>>>);

impl<T> Clone for Table<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// How one object differs between two tables.
#[derive(Debug)]
pub enum Change<T> {
    /// New in the later table.
    Added(Arc<Object<T>>),
    /// In both, not the same: before, after.
    Changed(Arc<Object<T>>, Arc<Object<T>>),
    /// Gone from the later table.
    Removed(Arc<Object<T>>),
}

impl<T> Table<T> {
    /// One object. Cluster-scoped kinds have the namespace "".
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Object<T>>> {
        self.0.get(namespace)?.get(name)
    }

    /// All objects, by namespace, then name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Object<T>>> {
        self.0.values().flat_map(|names| names.values())
    }

    /// The objects of one namespace, by name.
    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<Object<T>>> {
        self.0.get(namespace).into_iter().flat_map(|names| names.values())
    }

    /// All objects, oldest first: the order of Istio's oldest-wins rules.
    pub fn by_age(&self) -> Vec<&Arc<Object<T>>> {
        let mut all: Vec<_> = self.iter().collect();
        all.sort_by(|a, b| a.seniority().cmp(&b.seniority()));
        all
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.0.values().map(|names| names.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether both are the same table; a quick way to see that nothing of a kind changed.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// What changed since `older`, by namespace and name. Costs nothing where tables share structure.
    pub fn changes(&self, older: &Self) -> Vec<Change<T>> {
        let mut out = Vec::new();
        if self.same(older) {
            return out;
        }
        let namespaces: std::collections::BTreeSet<_> = self.0.keys().chain(older.0.keys()).collect();
        for namespace in namespaces {
            let (new, old) = (self.0.get(namespace), older.0.get(namespace));
            if matches!((new, old), (Some(n), Some(o)) if Arc::ptr_eq(n, o)) {
                continue;
            }
            for (name, object) in new.into_iter().flat_map(|n| n.iter()) {
                match old.and_then(|o| o.get(name)) {
                    None => out.push(Change::Added(object.clone())),
                    Some(before) if Arc::ptr_eq(before, object) => {}
                    Some(before) => out.push(Change::Changed(before.clone(), object.clone())),
                }
            }
            for (name, before) in old.into_iter().flat_map(|o| o.iter()) {
                if new.is_none_or(|n| !n.contains_key(name)) {
                    out.push(Change::Removed(before.clone()));
                }
            }
        }
        out
    }

    pub(crate) fn put(&mut self, namespace: &Arc<str>, name: Arc<str>, object: Option<Arc<Object<T>>>) {
        let tables = Arc::make_mut(&mut self.0);
        let names = Arc::make_mut(tables.entry(namespace.clone()).or_default());
        match object {
            Some(object) => names.insert(name, object),
            None => names.remove(&name),
        };
        if names.is_empty() {
            tables.remove(namespace);
        }
    }
}

macro_rules! declare {
    ($($variant:ident, $body:ty, $index:ident, $group:literal, $kind:literal, $scope:ident, $shape:ident;)*) => {
        /// The configuration at one moment.
        #[derive(Clone, Debug, Default)]
        pub struct Snapshot {
            /// Counts publications; two snapshots of one source with the same number are the same.
            pub generation: u64,
            /// Whether the source has read everything there was at its start.
            pub synced: bool,
            /// Mesh config with defaults filled in.
            pub mesh: Arc<MeshConfig>,
            $(#[doc = concat!("Objects of kind ", $kind, ".")] pub $index: Table<$body>,)*
            /// Objects of `config.istio.io`; the name in this table is mixer's own `name.kind`
            /// (`get("default", "deny-reviews.rule")`).
            pub mixer: Table<MixerObject>,
            /// All other objects as JSON; the name in this table is `kind.group/name`
            /// (`get("default", "Deployment.apps/web")`).
            pub other: Table<Value>,
            pub(crate) reported: Arc<Vec<Diagnostic>>,
            pub(crate) judged: OnceLock<Arc<Vec<Diagnostic>>>,
        }

        impl Snapshot {
            pub(crate) fn put(&mut self, key: &ObjectKey, resource: Option<Resource>) {
                let ObjectKey { namespace, name, .. } = key;
                match (key.kind, resource) {
                    $((Kind::$variant, Some(Resource::$variant(o))) => self.$index.put(namespace, name.clone(), Some(o)),)*
                    $((Kind::$variant, _) => self.$index.put(namespace, name.clone(), None),)*
                    (Kind::Mixer, Some(Resource::Mixer(o))) => self.mixer.put(namespace, table_name(key), Some(o)),
                    (Kind::Mixer, _) => self.mixer.put(namespace, table_name(key), None),
                    (Kind::Other, Some(Resource::Other(o))) => self.other.put(namespace, table_name(key), Some(o)),
                    (Kind::Other, _) => self.other.put(namespace, table_name(key), None),
                }
            }

            /// One object by its key.
            pub fn get(&self, key: &ObjectKey) -> Option<Resource> {
                match key.kind {
                    $(Kind::$variant => self.$index.get(&key.namespace, &key.name).cloned().map(Resource::$variant),)*
                    Kind::Mixer => self.mixer.get(&key.namespace, &table_name(key)).cloned().map(Resource::Mixer),
                    Kind::Other => self.other.get(&key.namespace, &table_name(key)).cloned().map(Resource::Other),
                }
            }

            /// All objects of all kinds, kind by kind.
            pub fn resources(&self) -> Vec<Resource> {
                let mut all = Vec::new();
                $(all.extend(self.$index.iter().cloned().map(Resource::$variant));)*
                all.extend(self.mixer.iter().cloned().map(Resource::Mixer));
                all.extend(self.other.iter().cloned().map(Resource::Other));
                all
            }

            /// Kinds of which any object differs from `older`.
            pub fn changed_kinds(&self, older: &Snapshot) -> Vec<Kind> {
                let mut kinds = Vec::new();
                $(if !self.$index.same(&older.$index) { kinds.push(Kind::$variant); })*
                if !self.mixer.same(&older.mixer) { kinds.push(Kind::Mixer); }
                if !self.other.same(&older.other) { kinds.push(Kind::Other); }
                kinds
            }
        }
    };
}
for_each_kind!(declare);

fn table_name(key: &ObjectKey) -> Arc<str> {
    match key.kind {
        Kind::Mixer => format!("{}.{}", key.name, key.kind_name).into(),
        Kind::Other if key.group.is_empty() => format!("{}/{}", key.kind_name, key.name).into(),
        Kind::Other => format!("{}.{}/{}", key.kind_name, key.group, key.name).into(),
        _ => key.name.clone(),
    }
}

impl Snapshot {
    /// The namespace mesh-wide objects live in.
    pub fn root_namespace(&self) -> &str {
        &self.mesh.root_namespace
    }
}

impl Snapshot {
    /// The configuration in one text, in diagnostics called `test.yaml`.
    pub fn from_yaml(text: &str) -> Snapshot {
        Self::from_texts(&[("test.yaml", text)])
    }

    /// The configuration in several texts, each with the name diagnostics call it by. Of the same object in
    /// several texts the last is in force.
    pub fn from_texts(texts: &[(&str, &str)]) -> Snapshot {
        let mut store = Store::new();
        for (rank, (file, text)) in texts.iter().enumerate() {
            store.set_file(file, rank_time(rank), text);
        }
        Self::of(store)
    }

    /// The configuration in files and directories, read once. Of the same object in several files the last is in
    /// force; within a directory the order is that of modification, then of paths.
    ///
    /// # Errors
    /// When a path given cannot be opened; the message names it. What is wrong inside is in [`Snapshot::diagnostics`].
    pub fn load(paths: &[PathBuf]) -> io::Result<Snapshot> {
        let mut files = Vec::new();
        for path in paths {
            let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
            if std::fs::metadata(path).map_err(named)?.is_dir() {
                files.extend(list_by_age(path).map_err(named)?);
            } else {
                files.push(path.clone());
            }
        }
        let mut store = Store::new();
        for (rank, path) in files.iter().enumerate() {
            let name = path.to_string_lossy();
            match read(path) {
                Ok(text) => store.set_file(&name, rank_time(rank), &text),
                Err(why) => store.set_unreadable(&name, &why),
            }
        }
        Ok(Self::of(store))
    }

    fn of(mut store: Store) -> Snapshot {
        store.set_synced();
        store.publish();
        let snapshot = store.reader().now();
        drop(store);
        Arc::unwrap_or_clone(snapshot)
    }

    /// All findings: those of reading, then those between objects. The latter are worked out on the first call.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let between = self.judged.get_or_init(|| Arc::new(crate::validate::set(self)));
        let mut all: Vec<_> = self.reported.iter().chain(between.iter()).cloned().collect();
        all.sort_by(|a, b| (&a.origin, &a.field, &a.why).cmp(&(&b.origin, &b.field, &b.why)));
        all
    }
}

/// A moment for the `rank`th text, so that later ones win.
fn rank_time(rank: usize) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(rank).unwrap_or(u64::MAX >> 8))
}
