//! A YAML document as a tree that knows the line of every value.
//!
//! In: one [`Document`]. Out: a [`Node`]; from it JSON without nulls, and [`Lines`] to find a field's line again.
//! Kept true: one shared set of limits for every text of the mesh, so a bomb is refused and 10 MB is not.
//! Not here: cutting (`split`), typing (`parse`).

use super::split::Document;
use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Number, Value};
use serde_saphyr::{Options, Spanned};
use std::fmt;
use std::hash::{Hash, Hasher};

/// Largest text read, in bytes: 64 MiB.
pub const MAX_FILE_BYTES: usize = 64 * 1024 * 1024;
/// Deepest nesting read. The deepest CRD schemas in the field stay under 60.
const MAX_DEPTH: usize = 96;
/// Stack for a parse: an unoptimised build needs up to 40 kB a level, more than threads have by default.
const STACK_BYTES: usize = 16 * 1024 * 1024;

/// A value and the line it stands on, counted from the start of its document.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    line: u32,
    raw: Raw,
}

#[derive(Clone, Debug, PartialEq)]
enum Raw {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// Why a document is no YAML.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not valid yaml: {why}")]
pub struct SyntaxError {
    /// Line of the file, from 1.
    pub line: u32,
    /// The parser's reason, one line.
    pub why: String,
}

/// A null that was taken as absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NullAt {
    /// Path of the field.
    pub path: String,
    /// Whether it is an item of a list rather than a field.
    pub item: bool,
    /// Line of the file, from 1.
    pub line: u32,
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 16_000_000,
            max_nodes: 8_000_000,
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_documents: 1,
            max_aliases: 10_000,
            max_anchors: 10_000,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 200_000 },
        emit_comments: false,
        legacy_octal_numbers: true,
        with_snippet: false,
    }
}

/// Parses one document, on a stack of its own.
///
/// # Errors
/// [`SyntaxError`] with the line in the file, if the text is no YAML, repeats a key, or passes the limits.
pub fn parse(document: &Document<'_>) -> Result<Node, SyntaxError> {
    let no_thread = |e| SyntaxError { line: document.line, why: format!("no thread to read it with: {e}") };
    with_stack(|| parse_here(document)).map_err(no_thread)?
}

/// Runs `work` on a thread whose stack is deep enough for the deepest document, and waits for it.
///
/// # Errors
/// When the system gives no more threads.
pub(crate) fn with_stack<T: Send>(work: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("yaml".to_owned()).stack_size(STACK_BYTES);
        match thread.spawn_scoped(scope, work)?.join() {
            Ok(out) => Ok(out),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

pub(crate) fn parse_here(document: &Document<'_>) -> Result<Node, SyntaxError> {
    let before = document.first_line - 1;
    let mut node = serde_saphyr::from_str_with_options::<Node>(document.text, options()).map_err(|e| {
        let line = e.location().map_or(0, |l| clamp(l.line()));
        let why = e.without_snippet().to_string();
        let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
        SyntaxError { line: if line == 0 { document.line } else { before.saturating_add(line) }, why }
    })?;
    node.shift(before);
    Ok(node)
}

fn clamp(line: u64) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

impl Node {
    fn shift(&mut self, by: u32) {
        self.line = self.line.saturating_add(by);
        match &mut self.raw {
            Raw::List(items) => items.iter_mut().for_each(|n| n.shift(by)),
            Raw::Map(fields) => fields.iter_mut().for_each(|(_, n)| n.shift(by)),
            _ => {}
        }
    }

    /// A tree without lines.
    pub fn from_json(value: &Value) -> Self {
        let raw = match value {
            Value::Null => Raw::Null,
            Value::Bool(b) => Raw::Bool(*b),
            Value::Number(n) => Raw::Number(n.clone()),
            Value::String(s) => Raw::Text(s.clone()),
            Value::Array(items) => Raw::List(items.iter().map(Self::from_json).collect()),
            Value::Object(map) => {
                Raw::Map(map.iter().map(|(k, v)| (k.clone(), Self::from_json(v))).collect())
            }
        };
        Self { line: 0, raw }
    }

    /// Line of the file, from 1.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// A field of a mapping; `None` if absent, null, or this is no mapping.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.raw {
            Raw::Map(fields) => fields.iter().find(|(k, n)| k == key && n.raw != Raw::Null).map(|(_, n)| n),
            _ => None,
        }
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match &self.raw {
            Raw::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a list.
    pub fn items(&self) -> Option<&[Node]> {
        match &self.raw {
            Raw::List(items) => Some(items),
            _ => None,
        }
    }

    /// Names of a mapping's fields.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        match &self.raw {
            Raw::Map(fields) => fields.iter(),
            _ => [].iter(),
        }
        .map(|(k, _)| k.as_str())
    }

    /// Whether this is a mapping.
    pub fn is_map(&self) -> bool {
        matches!(self.raw, Raw::Map(_))
    }

    /// Whether this is a null.
    pub fn is_null(&self) -> bool {
        self.raw == Raw::Null
    }

    /// JSON without nulls: null fields and null items are left out.
    pub fn to_json(&self) -> Value {
        match &self.raw {
            Raw::Null => Value::Null,
            Raw::Bool(b) => Value::Bool(*b),
            Raw::Number(n) => Value::Number(n.clone()),
            Raw::Text(t) => Value::String(t.clone()),
            Raw::List(items) => {
                Value::Array(items.iter().filter(|n| !n.is_null()).map(Node::to_json).collect())
            }
            Raw::Map(fields) => {
                let fields = fields.iter().filter(|(_, n)| !n.is_null());
                Value::Object(fields.map(|(k, n)| (k.clone(), n.to_json())).collect::<Map<_, _>>())
            }
        }
    }

    /// The nulls that [`Node::to_json`] leaves out.
    pub fn nulls(&self) -> Vec<NullAt> {
        let mut out = Vec::new();
        self.walk(&mut String::new(), &mut |path, node, item| {
            if node.is_null() {
                out.push(NullAt { path: path.to_owned(), item, line: node.line });
            }
        });
        out
    }

    /// Lines of all fields below this node, null items not counted, as in the JSON.
    pub fn lines(&self) -> Lines {
        let mut out = Vec::new();
        self.walk_kept(&mut String::new(), &mut |path, node| out.push((digest(path), node.line)));
        out.sort_unstable();
        Lines(out.into_boxed_slice())
    }

    fn walk(&self, path: &mut String, visit: &mut impl FnMut(&str, &Node, bool)) {
        let len = path.len();
        match &self.raw {
            Raw::List(items) => {
                for (i, node) in items.iter().enumerate() {
                    push_index(path, i);
                    visit(path, node, true);
                    node.walk(path, visit);
                    path.truncate(len);
                }
            }
            Raw::Map(fields) => {
                for (key, node) in fields {
                    push_key(path, key);
                    visit(path, node, false);
                    node.walk(path, visit);
                    path.truncate(len);
                }
            }
            _ => {}
        }
    }

    fn walk_kept(&self, path: &mut String, visit: &mut impl FnMut(&str, &Node)) {
        let len = path.len();
        match &self.raw {
            Raw::List(items) => {
                for (i, node) in items.iter().filter(|n| !n.is_null()).enumerate() {
                    push_index(path, i);
                    visit(path, node);
                    node.walk_kept(path, visit);
                    path.truncate(len);
                }
            }
            Raw::Map(fields) => {
                for (key, node) in fields {
                    push_key(path, key);
                    visit(path, node);
                    node.walk_kept(path, visit);
                    path.truncate(len);
                }
            }
            _ => {}
        }
    }
}

/// Where the fields of one object stand. 16 bytes per field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines(Box<[(u64, u32)]>);

impl Lines {
    /// Line of a field, or of the closest field around it; `None` if nothing is known.
    pub fn find(&self, path: &str) -> Option<u32> {
        let mut path = path;
        loop {
            if path.is_empty() {
                return None;
            }
            if let Ok(i) = self.0.binary_search_by_key(&digest(path), |(hash, _)| *hash) {
                return Some(self.0[i].1);
            }
            path = &path[..path.rfind(['.', '[']).unwrap_or(0)];
        }
    }
}

fn digest(path: &str) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

/// Joins path steps as users write them: `spec.http[0].headers["x.y"]`.
pub fn field_path<'a>(steps: impl IntoIterator<Item = Result<&'a str, usize>>) -> String {
    let mut path = String::new();
    for step in steps {
        match step {
            Ok(key) => push_key(&mut path, key),
            Err(index) => push_index(&mut path, index),
        }
    }
    path
}

fn push_key(path: &mut String, key: &str) {
    use fmt::Write;
    let plain = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || "-_/".contains(c));
    let done = match (plain, path.is_empty()) {
        (true, true) => write!(path, "{key}"),
        (true, false) => write!(path, ".{key}"),
        (false, _) => write!(path, "[{key:?}]"),
    };
    done.expect("writing to a string cannot fail");
}

fn push_index(path: &mut String, index: usize) {
    use fmt::Write;
    write!(path, "[{index}]").expect("writing to a string cannot fail");
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Raw>::deserialize(deserializer)?;
        Ok(Self { line: clamp(spanned.referenced.line()), raw: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> de::Visitor<'de> for AnyValue {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a yaml value")
    }
    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }
    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Raw, D::Error> {
        Raw::deserialize(d)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Raw, E> {
        Ok(Raw::Number(v.into()))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Raw, E> {
        Ok(Raw::Number(v.into()))
    }
    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Raw, E> {
        Number::from_f64(v).map(Raw::Number).ok_or_else(|| E::custom("numbers must be finite"))
    }
    fn visit_str<E>(self, v: &str) -> Result<Raw, E> {
        Ok(Raw::Text(v.to_owned()))
    }
    fn visit_string<E>(self, v: String) -> Result<Raw, E> {
        Ok(Raw::Text(v))
    }
    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }
    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry::<String, Node>()? {
            fields.push(field);
        }
        Ok(Raw::Map(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::split;
    use serde_json::json;

    fn one(text: &str) -> Result<Node, SyntaxError> {
        parse(&split(text)[0])
    }

    #[test]
    fn nulls_are_absent_at_every_depth() {
        let node = one("a: ~\nb:\n  c:\n  d: [1, null, {e: null}]\nf: null\ng: ''\n").unwrap();
        assert_eq!(node.to_json(), json!({"b": {"d": [1, {}]}, "g": ""}));
        let nulls: Vec<_> = node.nulls().into_iter().map(|n| (n.path, n.item)).collect();
        let want = [("a", false), ("b.c", false), ("b.d[1]", true), ("b.d[2].e", false), ("f", false)];
        assert_eq!(nulls, want.map(|(p, i)| (p.to_owned(), i)));
    }

    #[test]
    fn scalars_are_what_kubernetes_reads() {
        let node =
            one("a: 80\nb: \"80\"\nc: 0.5\nd: yes\ne: v1\nf: 0644\ng: 1.10\nh: .*x.*\ni: -3\nj: |\n  t\n")
                .unwrap();
        let want = json!({"a": 80, "b": "80", "c": 0.5, "d": true, "e": "v1", "f": 420, "g": 1.1, "h": ".*x.*",
            "i": -3, "j": "t\n"});
        assert_eq!(node.to_json(), want);
        assert_eq!(one("{\"a\": [true, 1e3, \"x\"]}").unwrap().to_json(), json!({"a": [true, 1000.0, "x"]}));
    }

    #[test]
    fn every_field_knows_its_line_in_the_file() {
        let text = "# head\n---\nspec:\n  http:\n  - route:\n    - weight: 1\n    -\n    - weight: 2\n  m: {a.b/c: 1}\n";
        let lines = parse(&split(text)[0]).unwrap().lines();
        assert_eq!(lines.find("spec.http[0].route[0].weight"), Some(6));
        assert_eq!(lines.find("spec.http[0].route[1].weight"), Some(8), "null items are not counted");
        assert_eq!(lines.find("spec.http[0].route[0].weight.unknown"), Some(6), "the field around it");
        assert_eq!(lines.find("spec.m[\"a.b/c\"]"), Some(9));
        assert_eq!(lines.find("nothing"), None);
    }

    #[test]
    fn broken_yaml_says_where() {
        for (text, line) in [
            ("a: 1\nb: [1, 2\nc: 3\n", 2..=4),
            ("---\na: 1\n a: 2\n", 3..=3),
            ("a: 1\nb: 2\na: 3\n", 3..=3),
            ("\n\na: \"x\n", 3..=5),
            ("a: *nobody\n", 1..=1),
            ("a: &x [*x]\n", 1..=1),
            ("a:\n\t- b\n", 1..=2),
        ] {
            let err = one(text).expect_err(text);
            assert!(line.contains(&err.line), "{text:?}: line {} of {err}", err.line);
            assert!(!err.to_string().contains('\n'), "{err}");
        }
    }

    #[test]
    fn bombs_are_refused_and_large_files_are_not() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..12 {
            let refs = vec![format!("*a{}", i - 1); 9].join(",");
            bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        assert!(one(&bomb).is_err());
        assert!(one(&"[".repeat(100_000)).is_err());
        assert!(one(&format!("{}x", "- ".repeat(50_000))).is_err());
        let mut large = "items:\n".to_owned();
        while large.len() < 10 * 1024 * 1024 {
            large
                .push_str("- {name: some-object-name, labels: {app: web, version: v1}, ports: [80, 8080]}\n");
        }
        assert!(one(&large).is_ok());
    }
}
