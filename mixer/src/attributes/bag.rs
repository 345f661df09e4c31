//! One request's attributes.
//!
//! In: values by id. Out: the same, by id.
//! Kept true: every value has the type its vocabulary declares. Not here: where values come from (`ingest`).

use std::sync::Arc;

use super::{AttributeId, Text, Value, Vocabulary};

/// Attributes of one request or connection event, indexed by id: no hashing, no copies of names.
#[derive(Clone, Debug)]
pub struct Bag {
    vocabulary: Arc<Vocabulary>,
    values: Vec<Option<Value>>,
}

impl Bag {
    /// A bag that holds nothing yet.
    #[must_use]
    pub fn new(vocabulary: &Arc<Vocabulary>) -> Self {
        Self { vocabulary: vocabulary.clone(), values: vec![None; vocabulary.len()] }
    }

    /// What the bag is typed by.
    #[must_use]
    pub fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    /// The value of an attribute, if it is known.
    #[must_use]
    pub fn get(&self, id: impl Into<AttributeId>) -> Option<&Value> {
        self.values.get(id.into().index())?.as_ref()
    }

    /// The value of an attribute that is text.
    #[must_use]
    pub fn text(&self, id: impl Into<AttributeId>) -> Option<&Text> {
        match self.get(id) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// Sets an attribute. A value of the wrong type is not taken, and `false` returned.
    pub fn set(&mut self, id: impl Into<AttributeId>, value: Value) -> bool {
        let id = id.into();
        let fits = id.index() < self.values.len() && self.vocabulary.kind(id) == value.value_type();
        if fits {
            self.values[id.index()] = Some(value);
        }
        fits
    }

    /// Sets a text attribute, unless the text is empty.
    pub fn set_text(&mut self, id: impl Into<AttributeId>, text: impl Into<Text> + AsRef<str>) {
        if !text.as_ref().is_empty() {
            self.set(id, Value::String(text.into()));
        }
    }

    /// Forgets an attribute.
    pub fn clear(&mut self, id: impl Into<AttributeId>) {
        if let Some(value) = self.values.get_mut(id.into().index()) {
            *value = None;
        }
    }

    /// Everything that is known, by id.
    pub fn iter(&self) -> impl Iterator<Item = (AttributeId, &Value)> {
        (0u16..).zip(&self.values).filter_map(|(id, value)| Some((AttributeId(id), value.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Builtin, *};

    #[test]
    fn a_value_of_the_wrong_type_is_not_taken() {
        let mut bag = Bag::new(&Arc::new(Vocabulary::builtin()));
        assert!(!bag.set(Builtin::ResponseCode, Value::text("200")));
        assert!(bag.set(Builtin::ResponseCode, Value::Int64(200)));
        assert_eq!(bag.iter().count(), 1);
    }
}
