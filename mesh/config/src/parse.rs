//! From documents to typed objects: metadata, kind, body, and a finding for everything that did not fit.
//!
//! In: the text of one file. Out: [`Parsed`]: resources, keys of refused objects, diagnostics.
//! Kept true: every document ends up as a resource or in a diagnostic; every unknown field is in a diagnostic.
//! Not here: what values mean together (`validate`), which file wins (`source`).

use crate::diagnostic::Diagnostic;
use crate::kinds::{HANDLER_KINDS, INSTANCE_KINDS, MixerObject, OTHER_MIXER_KINDS, is_mixer_kind};
use crate::object::{Age, Gvk, Meta, Object, ObjectKey, Origin};
use crate::resource::{Kind, Resource, Scope, for_each_kind};
use crate::validate;
use crate::yaml::{self, Document, Node};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::sync::Arc;

/// Kinds and versions known, apart from those with a type.
mod registry;

/// What one text holds.
#[derive(Debug, Default)]
pub struct Parsed {
    /// Objects that can be used, in the order of the text.
    pub resources: Vec<Resource>,
    /// Objects that were named but refused: what they were before stays in force.
    pub refused: Vec<ObjectKey>,
    /// Whether some document could not be read far enough to say which object it is, so that any object of
    /// this file may be behind it.
    pub unreadable: bool,
    /// Findings, in the order of the text.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads all documents of a text. `file` is only used in diagnostics.
pub fn parse_text(file: &str, text: &str) -> Parsed {
    let file: Arc<str> = file.into();
    let whole_file = |why: String| Parsed {
        unreadable: true,
        diagnostics: vec![Diagnostic::error(Origin::new(file.clone(), 1), None, "", why)],
        ..Parsed::default()
    };
    if text.len() > yaml::MAX_FILE_BYTES {
        let (size, most) = (text.len() >> 20, yaml::MAX_FILE_BYTES >> 20);
        return whole_file(format!("the file has {size} MiB and at most {most} are read: split it"));
    }
    let read = yaml::with_stack(|| {
        let mut out = Parsed::default();
        for document in yaml::split(text) {
            read_document(&file, &document, &mut out);
        }
        out
    });
    read.unwrap_or_else(|e| whole_file(format!("no thread to read it with: {e}")))
}

/// Reads one object that came as JSON, e.g. from an API server. `source` names it in diagnostics.
pub fn parse_json(source: &str, value: &Value) -> Parsed {
    let mut out = Parsed::default();
    read_node(&source.into(), 0, &Node::from_json(value), None, &mut out);
    out
}

fn read_document(file: &Arc<str>, document: &Document<'_>, out: &mut Parsed) {
    match yaml::parse_here(document) {
        Ok(node) if node.is_null() => {}
        Ok(node) => read_node(file, document.line, &node, None, out),
        Err(e) => {
            out.unreadable = true;
            out.diagnostics.push(Diagnostic::error(
                Origin::new(file.clone(), e.line),
                None,
                "",
                format!("{e}: mend the syntax; until then the objects this file gave before stay in force"),
            ));
        }
    }
}

fn read_node(file: &Arc<str>, line: u32, node: &Node, list_of: Option<&Gvk>, out: &mut Parsed) {
    let text = |key: &str| node.get(key).and_then(Node::as_str);
    let mut fail = |field: &str, why: &str| {
        out.unreadable = true;
        let line = node.get(field).map_or(line, Node::line);
        out.diagnostics.push(Diagnostic::error(Origin::new(file.clone(), line), None, field, why));
    };
    if !node.is_map() {
        return fail("", "a document must be a mapping with apiVersion, kind and metadata");
    }
    let gvk = match (text("apiVersion"), text("kind"), list_of) {
        (Some(version), Some(kind), _) => Gvk::new(version, kind),
        (None, None, Some(gvk)) => gvk.clone(),
        (None, _, _) => {
            return fail("apiVersion", "missing or no text: write e.g. apiVersion: networking.istio.io/v1");
        }
        (_, None, _) => return fail("kind", "missing or no text: write e.g. kind: VirtualService"),
    };
    if let Some(items) = node.get("items").and_then(Node::items)
        && let Some(item_kind) = gvk.kind.strip_suffix("List")
    {
        let item = Gvk { kind: item_kind.into(), ..gvk.clone() };
        for node in items.iter().filter(|n| !n.is_null()) {
            read_node(file, node.line(), node, (!item_kind.is_empty()).then_some(&item), out);
        }
        return;
    }
    if node.get("items").is_none() && &*gvk.kind == "List" {
        return; // an empty list
    }
    read_object(file, line, node, gvk, out);
}

/// One object on its way to a [`Resource`].
struct Draft<'a> {
    node: &'a Node,
    json: Value,
    meta: Meta,
    key: ObjectKey,
    findings: Vec<Diagnostic>,
}

impl Draft<'_> {
    fn origin(&self, field: &str) -> Origin {
        self.meta.field_origin(field)
    }

    fn error(&mut self, field: &str, why: impl Into<String>) {
        self.findings.push(Diagnostic::error(self.origin(field), Some(self.key.clone()), field, why));
    }

    fn warn(&mut self, field: &str, why: impl Into<String>) {
        self.findings.push(Diagnostic::warning(self.origin(field), Some(self.key.clone()), field, why));
    }

    /// Types `self.json[part]` (or the whole document), reporting unknown fields and the first wrong type.
    fn typed<T: DeserializeOwned>(&mut self, part: &str) -> Option<T> {
        let empty = Value::Object(serde_json::Map::new());
        let value = match part {
            "" => std::mem::take(&mut self.json),
            _ => self.json.get_mut(part).map_or(empty, Value::take),
        };
        let typed = typed(part, value);
        for field in typed.unknown {
            self.warn(&field, UNKNOWN_FIELD);
        }
        let secret = self.key.kind == Kind::Secret;
        typed
            .body
            .map_err(|(field, why)| match secret {
                // A message may quote the value, and this one must not be seen.
                true => self.error(&field, "wrong type: expected base64 text (stringData takes plain text)"),
                false => self.error(&field, why),
            })
            .ok()
    }
}

/// Said of every field that no type has.
pub(crate) const UNKNOWN_FIELD: &str = "unknown field, it has no effect: check its spelling and its place";

/// A typed value, or the path and reason of the first wrong type; and the paths of unknown fields.
pub(crate) struct Typed<T> {
    pub body: Result<T, (String, String)>,
    pub unknown: Vec<String>,
}

/// Types a JSON value; paths begin with `part`.
pub(crate) fn typed<T: DeserializeOwned>(part: &str, value: Value) -> Typed<T> {
    let (mut unknown, mut track) = (Vec::new(), serde_path_to_error::Track::new());
    let result = T::deserialize(serde_ignored::Deserializer::new(
        serde_path_to_error::Deserializer::new(value, &mut track),
        &mut |path: serde_ignored::Path<'_>| unknown.push(ignored_path(part, &path)),
    ));
    let body = result.map_err(|e| (error_path(part, &track.path()), plain_words(&e.to_string())));
    Typed { body, unknown }
}

fn read_object(file: &Arc<str>, line: u32, node: &Node, gvk: Gvk, out: &mut Parsed) {
    let name = node.get("metadata").and_then(|m| m.get("name"));
    let origin = Origin::new(file.clone(), line);
    let Some(name) = name.and_then(Node::as_str).filter(|n| !n.is_empty()) else {
        out.unreadable = true;
        let at = Origin { line: node.get("metadata").map_or(line, Node::line), ..origin };
        let why = match name.and_then(Node::as_str) {
            None if name.is_some() => format!("the name of a {} must be text: put it in quotes", gvk.kind),
            _ => format!("a {} needs a name: write metadata.name", gvk.kind),
        };
        out.diagnostics.push(Diagnostic::error(at, None, "metadata.name", why));
        return;
    };
    let kind = Kind::of(&gvk.group, &gvk.kind);
    let mut meta = Meta::new(gvk, "", name);
    meta.origin = origin;
    if kind.scope(&meta.gvk.kind) == Scope::Namespaced {
        let written = node.get("metadata").and_then(|m| m.get("namespace")).and_then(Node::as_str);
        meta.namespace = written.filter(|n| !n.is_empty()).unwrap_or("default").into();
    }
    meta.lines = Arc::new(node.lines());
    let key = ObjectKey::of(kind, &meta);
    let mut draft = Draft { node, json: node.to_json(), meta, key, findings: Vec::new() };
    registry::check(kind, &draft.meta.gvk.clone(), &mut draft);
    let resource = read_metadata(&mut draft).then(|| read_body(kind, &mut draft)).flatten();
    if kind != Kind::Other {
        report_nulls(&mut draft);
    }
    if let Some(resource) = &resource {
        draft.findings.extend(validate::object(resource));
    }
    let key = draft.key.clone();
    match resource {
        Some(mut resource) if !draft.findings.iter().any(Diagnostic::is_error) => {
            if !keeps_lines(kind) {
                resource.meta_mut().lines = Arc::default();
            }
            out.resources.push(resource);
        }
        _ => out.refused.push(key),
    }
    // Metadata of core kinds is typed twice, so the same finding may be there twice.
    draft.findings.sort_by(|a, b| (a.origin.line, &a.field, &a.why).cmp(&(b.origin.line, &b.field, &b.why)));
    draft.findings.dedup();
    out.diagnostics.append(&mut draft.findings);
}

/// Kinds about which something may be found later, when all objects are known.
fn keeps_lines(kind: Kind) -> bool {
    !matches!(
        kind,
        Kind::Other | Kind::Pod | Kind::EndpointSlice | Kind::Secret | Kind::ServiceAccount | Kind::Namespace
    )
}

fn read_metadata(draft: &mut Draft<'_>) -> bool {
    // The body of core kinds needs its metadata as well, so work on a copy.
    let copy = draft.json.get("metadata").cloned().unwrap_or_default();
    let whole = std::mem::replace(&mut draft.json, serde_json::json!({ "metadata": copy }));
    let typed = draft.typed::<ObjectMeta>("metadata");
    draft.json = whole;
    let Some(typed) = typed else { return false };
    if draft.key.kind != Kind::Other && !is_dns_name(&draft.meta.name) {
        draft.error(
            "metadata.name",
            "not a name kubernetes takes: use lower-case letters, digits, '-' and '.'",
        );
    }
    let meta = &mut draft.meta;
    meta.uid = typed.uid.map(Into::into);
    meta.resource_version = typed.resource_version.map(Into::into);
    meta.generation = typed.generation;
    meta.labels = typed.labels.unwrap_or_default();
    meta.annotations = typed.annotations.unwrap_or_default();
    meta.age = Age { created: typed.creation_timestamp.map_or(i64::MAX, |t| t.0.as_second()), seen: 0 };
    true
}

fn is_dns_name(name: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-.".contains(&c);
    let edge = |c: Option<&u8>| c.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    name.len() <= 253 && bytes.iter().all(|c| allowed(*c)) && edge(bytes.first()) && edge(bytes.last())
}

macro_rules! read_typed {
    ($($variant:ident, $body:ty, $index:ident, $group:literal, $kind:literal, $scope:ident, $shape:ident;)*) => {
        fn read_body(kind: Kind, draft: &mut Draft<'_>) -> Option<Resource> {
            match kind {
                $(Kind::$variant => {
                    let spec = read_typed!(@$shape draft)?;
                    Some(Resource::$variant(Arc::new(Object { meta: draft.meta.clone(), spec })))
                })*
                Kind::Mixer => read_mixer(draft),
                Kind::Other => {
                    let spec = std::mem::take(&mut draft.json);
                    Some(Resource::Other(Arc::new(Object { meta: draft.meta.clone(), spec })))
                }
            }
        }
    };
    (@spec $draft:ident) => {{
        report_strangers($draft);
        $draft.typed("spec")
    }};
    (@whole $draft:ident) => {{
        fold_string_data($draft);
        $draft.typed("")
    }};
}
for_each_kind!(read_typed);

fn read_mixer(draft: &mut Draft<'_>) -> Option<Resource> {
    report_strangers(draft);
    let kind = draft.meta.gvk.kind.to_string();
    if !is_mixer_kind(&kind) {
        let known = HANDLER_KINDS.iter().chain(OTHER_MIXER_KINDS).chain(INSTANCE_KINDS);
        let near = known.copied().find(|k| k.eq_ignore_ascii_case(&kind));
        draft.warn(
            "kind",
            match near {
                Some(near) => {
                    format!("unknown kind {kind} of config.istio.io, it has no effect: write {near}")
                }
                None => {
                    format!("unknown kind {kind} of config.istio.io, it has no effect: check its spelling")
                }
            },
        );
    }
    let spec = match draft.json.get_mut("spec").map(Value::take) {
        None => Value::Object(serde_json::Map::new()),
        Some(spec @ Value::Object(_)) => spec,
        Some(_) => {
            draft.error("spec", "wrong type: expected a mapping");
            return None;
        }
    };
    Some(Resource::Mixer(Arc::new(Object { meta: draft.meta.clone(), spec: MixerObject { kind, spec } })))
}

/// Top-level fields beside those every object of Istio has.
fn report_strangers(draft: &mut Draft<'_>) {
    let known = ["apiVersion", "kind", "metadata", "spec", "status"];
    let node = draft.node;
    for key in node.keys().filter(|k| !known.contains(k)) {
        let field = yaml::field_path([Ok(key)]);
        draft.warn(&field, UNKNOWN_FIELD);
    }
}

/// Kubernetes folds `stringData` of a Secret into `data` when it stores it; we do so when we read it.
fn fold_string_data(draft: &mut Draft<'_>) {
    if draft.key.kind != Kind::Secret {
        return;
    }
    let Some(Value::Object(text)) = draft.json.get_mut("stringData").map(Value::take) else { return };
    let Some(secret) = draft.json.as_object_mut() else { return };
    secret.remove("stringData");
    let data = secret.entry("data").or_insert_with(|| Value::Object(serde_json::Map::new()));
    let Some(data) = data.as_object_mut() else { return };
    for (key, value) in text {
        if let Value::String(text) = value {
            let bytes = k8s_openapi::ByteString(text.into_bytes());
            data.insert(key, serde_json::to_value(bytes).unwrap_or_default());
        }
    }
}

/// Nulls are absent; say so where that may surprise: list items, and header conditions that would widen a match.
fn report_nulls(draft: &mut Draft<'_>) {
    const CONDITIONS: [&str; 3] = [".headers", ".withoutHeaders", ".queryParams"];
    for null in draft.node.nulls() {
        let parent = null.path.rfind(['.', '[']).map_or("", |i| &null.path[..i]);
        let at = Origin { line: null.line, ..draft.meta.origin.clone() };
        let key = Some(draft.key.clone());
        if null.item {
            let why = "an empty list item counts as absent: remove the dash or write the item";
            // Leaving out a condition of a policy would let more through than its author meant.
            draft.findings.push(match is_policy(draft.key.kind) {
                true => Diagnostic::error(at, key, &null.path, why),
                false => Diagnostic::warning(at, key, &null.path, why),
            });
        } else if draft.key.kind == Kind::VirtualService
            && parent.contains(".match[")
            && CONDITIONS.iter().any(|c| parent.ends_with(c))
        {
            let why = "a condition must not be empty: write {} for \"present\", or exact, prefix or regex";
            draft.findings.push(Diagnostic::error(at, key, &null.path, why));
        }
    }
}

fn is_policy(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::AuthorizationPolicy
            | Kind::RequestAuthentication
            | Kind::PeerAuthentication
            | Kind::Policy
            | Kind::MeshPolicy
    )
}

fn ignored_path(part: &str, path: &serde_ignored::Path<'_>) -> String {
    fn collect<'a>(path: &'a serde_ignored::Path<'a>, out: &mut Vec<Result<&'a str, usize>>) {
        use serde_ignored::Path;
        match path {
            Path::Root => {}
            Path::Seq { parent, index } => {
                collect(parent, out);
                out.push(Err(*index));
            }
            Path::Map { parent, key } => {
                collect(parent, out);
                out.push(Ok(key));
            }
            Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
                collect(parent, out);
            }
        }
    }
    let mut steps = Vec::new();
    if !part.is_empty() {
        steps.push(Ok(part));
    }
    collect(path, &mut steps);
    yaml::field_path(steps)
}

fn error_path(part: &str, path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let steps = path.iter().filter_map(|segment| match segment {
        Segment::Seq { index } => Some(Err(*index)),
        Segment::Map { key } => Some(Ok(key.as_str())),
        Segment::Enum { .. } | Segment::Unknown => None,
    });
    yaml::field_path((!part.is_empty()).then_some(Ok(part)).into_iter().chain(steps))
}

/// Serde's words in the reader's: no Rust types, and the fix where it is plain.
fn plain_words(message: &str) -> String {
    let mut text = message.to_owned();
    for (serde, plain) in
        [("a sequence", "a list"), ("sequence", "a list"), ("a map", "a mapping"), ("map", "a mapping")]
    {
        if let Some(rest) = text.strip_prefix(&format!("invalid type: {serde},")) {
            text = format!("invalid type: {plain},{rest}");
        }
    }
    if let Some((found, expected)) =
        text.strip_prefix("invalid type: ").and_then(|t| t.split_once(", expected "))
    {
        let expected = match expected {
            "u8" | "u16" | "u32" | "u64" | "i32" | "i64" => "a whole number",
            "f32" | "f64" => "a number",
            "a sequence" => "a list",
            "a map" => "a mapping",
            other if other.starts_with("struct ") || other.contains("struct") => "a mapping",
            other if other.starts_with("a sequence") => "a list",
            other => other,
        };
        let hint = match (found.split(' ').next().unwrap_or_default(), expected) {
            ("string", "a whole number" | "a number" | "a boolean") => ": remove the quotes",
            ("integer" | "floating" | "boolean", "a string" | "a duration such as \"0.5s\"")
                if expected == "a string" =>
            {
                ": put it in quotes"
            }
            ("a", "a list") => ": start its items with a dash",
            _ => "",
        };
        return format!("wrong type: {found}, expected {expected}{hint}");
    }
    let number = ["u8", "u16", "u32", "u64", "i32", "i64"];
    if let Some((found, expected)) =
        text.strip_prefix("invalid value: ").and_then(|t| t.split_once(", expected "))
        && number.contains(&expected)
    {
        return format!("out of range: {found}, expected a whole number that fits the field");
    }
    if let Some((found, rest)) =
        text.strip_prefix("unknown variant ").and_then(|t| t.split_once(", expected "))
    {
        return format!("unknown value {found}, expected {rest}").replace('`', "");
    }
    text
}

#[cfg(test)]
mod tests;
