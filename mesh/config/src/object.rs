//! What every object has, whatever its kind: name, origin, age, labels.
//!
//! In: the metadata of a document. Out: [`Object`] around a typed body, found again by [`ObjectKey`].
//! Kept true: a namespaced object always has a namespace; a cluster-scoped one has the empty namespace.
//! Not here: which kinds there are (`resource`), their bodies (`kinds`).

use crate::resource::Kind;
use crate::yaml::Lines;
use serde::Serialize;
use std::{collections::BTreeMap, fmt, sync::Arc};

/// Group, version and kind as written, e.g. `networking.istio.io` / `v1alpha3` / `VirtualService`; core has group "".
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Gvk {
    /// API group, empty for the core group.
    pub group: Arc<str>,
    /// API version, e.g. `v1`.
    pub version: Arc<str>,
    /// Kind as written, e.g. `rule` in lower case for mixer's kinds.
    pub kind: Arc<str>,
}

impl Gvk {
    /// Takes apart `apiVersion` (`group/version`, or `version` for the core group).
    pub fn new(api_version: &str, kind: &str) -> Self {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        Self { group: group.into(), version: version.into(), kind: kind.into() }
    }

    /// `group/version`, or `version` for the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// Where a document or field was read. Line 0: not from a text (an API server, a test).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Origin {
    /// File path as given or found, or a source's own name.
    pub file: Arc<str>,
    /// Line from 1; 0 if unknown.
    pub line: u32,
}

impl Origin {
    /// A place in a file.
    pub fn new(file: impl Into<Arc<str>>, line: u32) -> Self {
        Self { file: file.into(), line }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 { f.write_str(&self.file) } else { write!(f, "{}:{}", self.file, self.line) }
    }
}

/// Names one object: kind, namespace, name. Versions of one API group share keys, as in Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Kind; for [`Kind::Mixer`] and [`Kind::Other`] the pair (group, kind) tells them apart.
    pub kind: Kind,
    /// API group; different versions of a group name the same object.
    pub group: Arc<str>,
    /// Kind as written.
    pub kind_name: Arc<str>,
    /// Namespace; empty for cluster-scoped kinds.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// The key of an object of this kind with this metadata.
    pub fn of(kind: Kind, meta: &Meta) -> Self {
        Self {
            kind,
            group: meta.gvk.group.clone(),
            kind_name: meta.gvk.kind.clone(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind_name, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind_name, self.namespace, self.name)
        }
    }
}

impl Serialize for ObjectKey {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// How old an object is, for the rules that let the oldest win. Smaller is older.
///
/// An object with a `creationTimestamp` is as old as that says, and older than any without one; the others
/// are as old as the batch in which this process first saw them. Ties are broken by name, then namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Age {
    /// `creationTimestamp` in Unix seconds; `i64::MAX` if the object has none.
    pub created: i64,
    /// Number of the batch (a directory scan, a command line) that first brought it, from 0.
    pub seen: u64,
}

impl Default for Age {
    fn default() -> Self {
        Self { created: i64::MAX, seen: 0 }
    }
}

/// The metadata of one object.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Meta {
    /// Group, version and kind as written.
    pub gvk: Gvk,
    /// Namespace (`default` when a namespaced object names none); empty for cluster-scoped kinds.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// `metadata.uid`, if given.
    pub uid: Option<Arc<str>>,
    /// `metadata.resourceVersion`, if given.
    pub resource_version: Option<Arc<str>>,
    /// `metadata.generation`, if given.
    pub generation: Option<i64>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Age, for oldest-wins rules.
    pub age: Age,
    /// Where it was read.
    pub origin: Origin,
    /// Lines of its fields, for findings; empty for objects without a text.
    #[serde(skip)]
    pub(crate) lines: Arc<Lines>,
}

impl Meta {
    /// Metadata of an object without labels, as old as can be said of one that has no timestamp.
    pub fn new(gvk: Gvk, namespace: &str, name: &str) -> Self {
        Self {
            gvk,
            namespace: namespace.into(),
            name: name.into(),
            uid: None,
            resource_version: None,
            generation: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            age: Age::default(),
            origin: Origin::new("", 0),
            lines: Arc::default(),
        }
    }

    /// Where a field was read: its own line if known, else that of the object.
    pub fn field_origin(&self, field: &str) -> Origin {
        Origin { file: self.origin.file.clone(), line: self.lines.find(field).unwrap_or(self.origin.line) }
    }
}

/// One object: metadata and its typed body.
///
/// For Istio's kinds `spec` is the document's `spec`; for core kinds it is the whole resource as `k8s-openapi`
/// types it, since those keep their content beside `spec` as well (`data`, `endpoints`, `status`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Object<T> {
    /// Name, origin, age, labels.
    #[serde(flatten)]
    pub meta: Meta,
    /// The body.
    pub spec: T,
}

impl<T> Object<T> {
    /// Namespace; empty for cluster-scoped kinds.
    pub fn namespace(&self) -> &str {
        &self.meta.namespace
    }

    /// Name.
    pub fn name(&self) -> &str {
        &self.meta.name
    }

    /// Order of Istio's oldest-wins rules: age, then name, then namespace.
    pub fn seniority(&self) -> (Age, &str, &str) {
        (self.meta.age, &self.meta.name, &self.meta.namespace)
    }
}
