//! The one writer: objects by source and file, which of them is in force, and what is published.
//!
//! In: texts of files, or single objects. Out: snapshots to every [`Reader`], only when something changed.
//! Kept true: a refused or unreadable text never takes away what its file gave before; of two files with the
//! same object the one modified last wins. Not here: watching files (`dir`).

use crate::diagnostic::Diagnostic;
use crate::kinds::{MESH_CONFIG_MAP, MeshConfig, ROOT_NAMESPACE};
use crate::object::{ObjectKey, Origin};
use crate::parse::{Parsed, parse_json, parse_text};
use crate::resource::Resource;
use crate::snapshot::Snapshot;
use crate::validate;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;
use tokio::sync::watch;

/// The only way to change a configuration. Not `Clone`: two writers would interleave batches.
///
/// Changes gather until [`Store::publish`]; what is gathered between two publications is one batch.
#[derive(Debug)]
pub struct Store {
    sources: BTreeMap<Arc<str>, Held>,
    holders: HashMap<ObjectKey, BTreeSet<Arc<str>>>,
    shared: BTreeSet<ObjectKey>,
    seen: HashMap<ObjectKey, u64>,
    batch: u64,
    touched: BTreeSet<ObjectKey>,
    stale_findings: bool,
    draft: Snapshot,
    /// Where the mesh config is, and mesh-wide objects if it does not say else.
    mesh_namespace: Arc<str>,
    out: watch::Sender<Arc<Snapshot>>,
}

/// What one file or other source gives.
#[derive(Debug)]
struct Held {
    modified: SystemTime,
    objects: BTreeMap<ObjectKey, Resource>,
    findings: Vec<Diagnostic>,
}

impl Default for Held {
    fn default() -> Self {
        Self { modified: SystemTime::UNIX_EPOCH, objects: BTreeMap::new(), findings: Vec::new() }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// An empty configuration, not yet synced, of a mesh that lives in `istio-system`.
    pub fn new() -> Self {
        Self::in_namespace(ROOT_NAMESPACE)
    }

    /// An empty configuration, not yet synced, of a mesh whose components live in this namespace.
    pub fn in_namespace(mesh_namespace: &str) -> Self {
        let mut draft = Snapshot::default();
        draft.mesh = Arc::new(rooted(draft.mesh.as_ref().clone(), mesh_namespace));
        Self {
            sources: BTreeMap::new(),
            holders: HashMap::new(),
            shared: BTreeSet::new(),
            seen: HashMap::new(),
            batch: 0,
            touched: BTreeSet::new(),
            stale_findings: false,
            out: watch::Sender::new(Arc::new(draft.clone())),
            draft,
            mesh_namespace: mesh_namespace.into(),
        }
    }

    /// A reader of what is published.
    pub fn reader(&self) -> Reader {
        Reader(self.out.subscribe())
    }

    /// Takes the text of a file in place of what the file gave before.
    ///
    /// Objects that are refused, and all objects of the file while some document is unreadable, keep the form
    /// they had; so does an object whose kind is misspelt now. `modified` decides between files that hold the
    /// same object: the later wins.
    pub fn set_file(&mut self, file: &str, modified: SystemTime, text: &str) {
        let parsed = parse_text(file, text);
        self.take(file, modified, parsed);
    }

    /// Says that a file cannot be read; what it gave before stays.
    pub fn set_unreadable(&mut self, file: &str, why: &str) {
        let finding = Diagnostic::error(Origin::new(file, 0), None, "", why);
        let modified = self.sources.get(file).map_or(SystemTime::UNIX_EPOCH, |held| held.modified);
        self.take(
            file,
            modified,
            Parsed { unreadable: true, diagnostics: vec![finding], ..Parsed::default() },
        );
    }

    fn take(&mut self, file: &str, modified: SystemTime, parsed: Parsed) {
        let file: Arc<str> = file.into();
        let mut old = self.sources.remove(&file).unwrap_or_default();
        let mut new = Held { modified, objects: BTreeMap::new(), findings: parsed.diagnostics };
        for resource in parsed.resources {
            let key = resource.key();
            if let Some(first) = new.objects.insert(key.clone(), resource) {
                let later = new.objects[&key].meta().origin.line;
                let why = format!("appears again on line {later}, which is in force: remove one of them");
                new.findings.push(Diagnostic::warning(first.meta().origin.clone(), Some(key), "", why));
            }
        }
        let kept: Vec<ObjectKey> = match parsed.unreadable {
            true => old.objects.keys().cloned().collect(),
            false => {
                let renamed = old.objects.keys().filter(|key| new.findings.iter().any(|d| misspells(d, key)));
                parsed.refused.into_iter().chain(renamed.cloned()).collect()
            }
        };
        for key in kept {
            if let (false, Some(before)) = (new.objects.contains_key(&key), old.objects.remove(&key)) {
                new.objects.insert(key, before);
            }
        }
        for (key, resource) in &mut new.objects {
            self.date(key, resource);
            let holders = self.holders.entry(key.clone()).or_default();
            holders.insert(file.clone());
            if holders.len() > 1 {
                self.shared.insert(key.clone());
            }
            self.touched.insert(key.clone());
        }
        for key in old.objects.keys().filter(|key| !new.objects.contains_key(key)) {
            self.release(&file, key);
        }
        self.stale_findings = true;
        self.sources.insert(file, new);
    }

    /// Forgets a file and what it gave.
    pub fn remove_file(&mut self, file: &str) {
        let Some((file, old)) = self.sources.remove_entry(file) else { return };
        for key in old.objects.keys() {
            self.release(&file, key);
        }
        self.stale_findings = true;
    }

    /// Takes one typed object from a source that is no text.
    ///
    /// Findings about it replace those this source had about the same object; an object with an error is refused.
    pub fn apply(&mut self, source: &str, mut resource: Resource) {
        if resource.meta().origin.file.is_empty() {
            resource.meta_mut().origin = Origin::new(source, 0);
        }
        let findings = validate::object(&resource);
        let refused = findings.iter().any(Diagnostic::is_error);
        let key = resource.key();
        self.take_one(source, key, (!refused).then_some(resource), findings);
    }

    /// Takes one object as JSON from a source that is no text, e.g. an API server's watch. As [`Store::apply`],
    /// with unknown fields and wrong types reported as well.
    pub fn apply_json(&mut self, source: &str, value: &serde_json::Value) {
        let mut parsed = parse_json(source, value);
        match (parsed.resources.pop(), parsed.refused.pop()) {
            (Some(resource), _) => self.take_one(source, resource.key(), Some(resource), parsed.diagnostics),
            (None, Some(key)) => self.take_one(source, key, None, parsed.diagnostics),
            // Nobody can say which object it is, so nothing can be kept about it.
            (None, None) => tracing::warn!(source, findings = ?parsed.diagnostics, "object cannot be read"),
        }
    }

    fn take_one(
        &mut self,
        source: &str,
        key: ObjectKey,
        resource: Option<Resource>,
        findings: Vec<Diagnostic>,
    ) {
        let source: Arc<str> = source.into();
        let held = self.sources.entry(source.clone()).or_default();
        let before = held.findings.len();
        held.findings.retain(|d| d.object.as_ref() != Some(&key));
        self.stale_findings |= before != held.findings.len() || !findings.is_empty();
        held.findings.extend(findings);
        let Some(mut resource) = resource else { return };
        self.date(&key, &mut resource);
        if let Some(held) = self.sources.get_mut(&source) {
            held.objects.insert(key.clone(), resource);
        }
        let holders = self.holders.entry(key.clone()).or_default();
        holders.insert(source);
        if holders.len() > 1 {
            self.shared.insert(key.clone());
        }
        self.touched.insert(key);
    }

    /// Forgets one object of a source that is no text.
    pub fn delete(&mut self, source: &str, key: &ObjectKey) {
        let Some(held) = self.sources.get_mut(source) else { return };
        held.findings.retain(|d| d.object.as_ref() != Some(key));
        self.stale_findings = true;
        if held.objects.remove(key).is_some() {
            self.release(&source.into(), key);
        }
    }

    /// Says that everything there was at the start has been taken.
    pub fn set_synced(&mut self) {
        self.draft.synced = true;
    }

    fn date(&mut self, key: &ObjectKey, resource: &mut Resource) {
        let seen = *self.seen.entry(key.clone()).or_insert(self.batch);
        if resource.meta().age.seen != seen {
            resource.meta_mut().age.seen = seen;
        }
    }

    fn release(&mut self, file: &Arc<str>, key: &ObjectKey) {
        if let Some(holders) = self.holders.get_mut(key) {
            holders.remove(file);
            if holders.len() < 2 {
                self.shared.remove(key);
            }
        }
        self.touched.insert(key.clone());
    }

    /// Ends the batch: readers get a new snapshot if any object or finding changed. Returns whether they did.
    pub fn publish(&mut self) -> bool {
        let mut changed = self.draft.synced != self.out.borrow().synced;
        let maps_before = self.draft.config_maps.clone();
        for key in std::mem::take(&mut self.touched) {
            let winner = self.winner(&key).and_then(|file| self.sources[&file].objects.get(&key)).cloned();
            if winner.is_none() {
                self.holders.remove(&key);
                self.seen.remove(&key);
            }
            let before = self.draft.get(&key);
            if before != winner {
                self.draft.put(&key, winner);
                changed = true;
            }
        }
        if !self.draft.config_maps.same(&maps_before) {
            let map = self.draft.config_maps.get(&self.mesh_namespace, MESH_CONFIG_MAP);
            let mesh = map.map(|map| validate::mesh_config(map).0).unwrap_or_default();
            let mesh = rooted(mesh, &self.mesh_namespace);
            if *self.draft.mesh != mesh {
                self.draft.mesh = Arc::new(mesh);
            }
        }
        if std::mem::take(&mut self.stale_findings) {
            let findings = self.findings();
            if *self.draft.reported != findings {
                self.draft.reported = Arc::new(findings);
                changed = true;
            }
        }
        self.batch += 1;
        if changed {
            self.draft.generation += 1;
            self.draft.judged = OnceLock::new();
            self.out.send_replace(Arc::new(self.draft.clone()));
        }
        changed
    }

    /// The file whose form of an object is in force: the one modified last, of equals the later name.
    fn winner(&self, key: &ObjectKey) -> Option<Arc<str>> {
        let holders = self.holders.get(key)?;
        holders.iter().max_by_key(|file| (self.sources.get(*file).map(|held| held.modified), *file)).cloned()
    }

    fn findings(&self) -> Vec<Diagnostic> {
        let mut all: Vec<_> = self.sources.values().flat_map(|held| held.findings.iter().cloned()).collect();
        for key in &self.shared {
            let Some(winner) = self.winner(key) else { continue };
            let in_force = &self.sources[&winner].objects[key].meta().origin;
            for file in self.holders[key].iter().filter(|file| **file != winner) {
                let Some(loser) = self.sources[file].objects.get(key) else { continue };
                let why = format!(
                    "is also in {in_force}, which comes later and is in force: keep it in one file only"
                );
                all.push(Diagnostic::warning(loser.meta().origin.clone(), Some(key.clone()), "", why));
            }
        }
        all
    }
}

/// Mesh config whose root namespace, where none is written, is that of the mesh.
fn rooted(mut mesh: MeshConfig, mesh_namespace: &str) -> MeshConfig {
    if mesh.root_namespace == ROOT_NAMESPACE {
        mesh_namespace.clone_into(&mut mesh.root_namespace);
    }
    mesh
}

/// True when a finding says that nobody knows the kind of an object that has the namespace and the name of `key`.
fn misspells(finding: &Diagnostic, key: &ObjectKey) -> bool {
    finding.field == "kind"
        && finding.is_unknown()
        && finding.object.as_ref().is_some_and(|o| o.namespace == key.namespace && o.name == key.name)
}

/// A reader of the published configuration. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reader(watch::Receiver<Arc<Snapshot>>);

impl Reader {
    /// A configuration that never changes.
    pub fn fixed(snapshot: Snapshot) -> Self {
        // The receiver keeps the value when the sender is gone.
        Self(watch::channel(Arc::new(snapshot)).1)
    }

    /// The configuration as it is now. Hold it for the length of a decision, so that the decision is consistent.
    pub fn now(&self) -> Arc<Snapshot> {
        self.0.borrow().clone()
    }

    /// Waits for a publication this reader has not seen, and returns it; `None` when the writer is gone.
    /// Dropping the future loses nothing.
    pub async fn changed(&mut self) -> Option<Arc<Snapshot>> {
        self.0.changed().await.ok()?;
        Some(self.0.borrow_and_update().clone())
    }

    /// Waits until the source has read all there was at its start; returns at once if the writer is gone.
    /// Dropping the future loses nothing.
    pub async fn synced(&mut self) -> Arc<Snapshot> {
        // An error means that no writer is left to wait for: what there is, is all there will be.
        let _ = self.0.wait_for(|snapshot| snapshot.synced).await;
        self.now()
    }
}
