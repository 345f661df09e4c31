//! Which attributes an evaluation looked at: what a cached verdict depends on.
//!
//! In: look-ups during evaluation. Out: [`References`], each once, in the order first seen.
//! Kept true: a map entry is referred to by key, a whole map only when it is absent. Not here: caches (`policy`).

use crate::attributes::{AttributeId, Text, Vocabulary};

/// Told of each look-up.
pub trait Track {
    /// `id`, or `id[key]`, was looked up and was `present` or not.
    fn saw(&mut self, id: AttributeId, key: Option<&Text>, present: bool);
    /// A map was used as a whole, which no reference can express.
    fn saw_map(&mut self, id: AttributeId) {
        let _ = id;
    }
}

/// Tracks nothing.
impl Track for () {
    fn saw(&mut self, _: AttributeId, _: Option<&Text>, _: bool) {}
}

/// How a reference binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The value must be the same.
    Exact,
    /// The attribute, or the entry of the map, must be absent.
    Absence,
}

/// One dependency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The attribute.
    pub id: AttributeId,
    /// The entry, when the attribute is a map.
    pub key: Option<Text>,
    /// How it binds.
    pub condition: Condition,
}

/// Everything an evaluation depended on.
#[derive(Clone, Debug, Default)]
pub struct References {
    seen: Vec<Reference>,
    whole_map: bool,
}

impl References {
    /// The references, in the order they were first made.
    #[must_use]
    pub fn list(&self) -> &[Reference] {
        &self.seen
    }

    /// Whether a map was used as a whole: then the references do not say everything, and nothing may be cached by them.
    #[must_use]
    pub fn incomplete(&self) -> bool {
        self.whole_map
    }

    /// The references as text: `a`, `ar[key]`, `-absent`, `-ar[absent]`.
    #[must_use]
    pub fn text(&self, vocabulary: &Vocabulary) -> Vec<String> {
        self.seen.iter().map(|reference| reference.text(vocabulary)).collect()
    }
}

impl Reference {
    /// As text: `a`, `ar[key]`, `-absent`, `-ar[absent]`.
    #[must_use]
    pub fn text(&self, vocabulary: &Vocabulary) -> String {
        let sign = if self.condition == Condition::Absence { "-" } else { "" };
        let name = vocabulary.name(self.id);
        match &self.key {
            Some(key) => format!("{sign}{name}[{key}]"),
            None => format!("{sign}{name}"),
        }
    }
}

impl Track for References {
    fn saw(&mut self, id: AttributeId, key: Option<&Text>, present: bool) {
        if !self.seen.iter().any(|reference| reference.id == id && reference.key.as_ref() == key) {
            let condition = if present { Condition::Exact } else { Condition::Absence };
            self.seen.push(Reference { id, key: key.cloned(), condition });
        }
    }

    fn saw_map(&mut self, _: AttributeId) {
        self.whole_map = true;
    }
}
