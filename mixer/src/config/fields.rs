//! Reading an object's `spec` field by field.
//!
//! In: JSON as the user wrote it. Out: typed settings, and a [`Problem`] for each field that is wrong or unknown.
//! Kept true: every field is either read or reported; null is absent; `snake_case` and `camelCase` are one name.
//! Not here: where the object was written (`mesh-config` knows).

use std::{cell::RefCell, rc::Rc, time::Duration};

use serde_json::{Map, Value};

use crate::attributes::duration;

/// One finding about a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path of the field, such as `spec.match`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub why: String,
    /// Whether the object cannot be used.
    pub fatal: bool,
}

/// Findings of one object, shared by everything that reads it.
#[derive(Clone, Debug, Default)]
pub struct Problems(Rc<RefCell<Vec<Problem>>>);

impl Problems {
    /// Reports something that makes the object unusable.
    pub fn error(&self, field: impl Into<String>, why: impl Into<String>) {
        self.0.borrow_mut().push(Problem { field: field.into(), why: why.into(), fatal: true });
    }

    /// Reports something that the object works without.
    pub fn warning(&self, field: impl Into<String>, why: impl Into<String>) {
        self.0.borrow_mut().push(Problem { field: field.into(), why: why.into(), fatal: false });
    }

    /// Whether anything reported so far is fatal.
    #[must_use]
    pub fn fatal(&self) -> bool {
        self.0.borrow().iter().any(|problem| problem.fatal)
    }

    /// Everything reported so far.
    #[must_use]
    pub fn take(&self) -> Vec<Problem> {
        self.0.take()
    }
}

/// A JSON object that is being read. Dropping it reports the fields nobody asked for.
pub struct Fields<'a> {
    map: Option<&'a Map<String, Value>>,
    path: String,
    used: RefCell<Vec<&'a str>>,
    problems: Problems,
}

fn plain(name: &str) -> String {
    name.chars().filter(|c| *c != '_').flat_map(char::to_lowercase).collect()
}

impl<'a> Fields<'a> {
    /// Reads `value`, which is the field at `path`. Null and absence are an object without fields.
    #[must_use]
    pub fn new(value: &'a Value, path: impl Into<String>, problems: &Problems) -> Self {
        let path = path.into();
        if !value.is_object() && !value.is_null() {
            problems.error(path.clone(), "must be an object");
        }
        Self { map: value.as_object(), path, used: RefCell::default(), problems: problems.clone() }
    }

    /// The path of one of this object's fields.
    #[must_use]
    pub fn at(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Where findings go.
    #[must_use]
    pub fn problems(&self) -> &Problems {
        &self.problems
    }

    /// The field's value as written.
    pub fn raw(&self, name: &str) -> Option<&'a Value> {
        let wanted = plain(name);
        let (key, value) = self.map?.iter().find(|(key, _)| plain(key) == wanted)?;
        self.used.borrow_mut().push(key);
        Some(value).filter(|value| !value.is_null())
    }

    fn read<T>(&self, name: &str, what: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Option<T> {
        let value = self.raw(name)?;
        let out = read(value);
        if out.is_none() {
            self.problems.error(self.at(name), format!("must be {what}, not {value}"));
        }
        out
    }

    /// Text.
    pub fn text(&self, name: &str) -> Option<&'a str> {
        self.read(name, "text", Value::as_str)
    }

    /// `true` or `false`.
    pub fn boolean(&self, name: &str) -> Option<bool> {
        self.read(name, "true or false", Value::as_bool)
    }

    /// A whole number; text of digits counts, as protobuf's JSON writes 64-bit numbers.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.read(name, "a whole number", |value| value.as_i64().or_else(|| value.as_str()?.parse().ok()))
    }

    /// A number.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.read(name, "a number", Value::as_f64)
    }

    /// A length of time such as `5s`; not negative.
    pub fn duration(&self, name: &str) -> Option<Duration> {
        self.read(name, "a duration such as \"5s\"", |value| {
            duration::parse(value.as_str()?)
                .and_then(|nanos| u64::try_from(nanos).ok())
                .map(Duration::from_nanos)
        })
    }

    /// A list; each element with its path.
    pub fn list(&self, name: &str) -> Vec<(String, &'a Value)> {
        let list = self.read(name, "a list", Value::as_array);
        let at = self.at(name);
        list.into_iter().flatten().enumerate().map(|(i, value)| (format!("{at}[{i}]"), value)).collect()
    }

    /// A list of text.
    pub fn texts(&self, name: &str) -> Vec<&'a str> {
        let mut out = Vec::new();
        for (path, value) in self.list(name) {
            match value.as_str() {
                Some(text) => out.push(text),
                None => self.problems.error(path, format!("must be text, not {value}")),
            }
        }
        out
    }

    /// A list of numbers.
    pub fn numbers(&self, name: &str) -> Vec<f64> {
        let mut out = Vec::new();
        for (path, value) in self.list(name) {
            match value.as_f64() {
                Some(number) => out.push(number),
                None => self.problems.error(path, format!("must be a number, not {value}")),
            }
        }
        out
    }

    /// A list of objects.
    pub fn objects(&self, name: &str) -> Vec<Fields<'a>> {
        self.list(name).into_iter().map(|(path, value)| Fields::new(value, path, &self.problems)).collect()
    }

    /// An object; one without fields if it is absent.
    #[must_use]
    pub fn object(&self, name: &str) -> Fields<'a> {
        static NULL: Value = Value::Null;
        Fields::new(self.raw(name).unwrap_or(&NULL), self.at(name), &self.problems)
    }

    /// Entries of a map whose keys are the user's own.
    pub fn entries(&self, name: &str) -> Vec<(&'a str, &'a Value, String)> {
        let at = self.at(name);
        let map = self.read(name, "an object", Value::as_object);
        map.into_iter().flatten().map(|(key, value)| (key.as_str(), value, format!("{at}.{key}"))).collect()
    }

    /// Takes every remaining field as known.
    pub fn ignore_rest(&self) {
        self.used.borrow_mut().extend(self.map.into_iter().flatten().map(|(key, _)| key.as_str()));
    }
}

impl Drop for Fields<'_> {
    fn drop(&mut self) {
        let used = self.used.borrow();
        for (key, _) in self.map.into_iter().flatten() {
            if !used.contains(&key.as_str()) {
                self.problems.warning(self.at(key), "unknown field, ignored; check its spelling");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_read_or_reported() {
        let json = serde_json::json!({
            "valid_duration": "5s", "validUseCount": "7", "status": {"code": "x"}, "oops": 1, "nothing": null
        });
        let problems = Problems::default();
        let fields = Fields::new(&json, "spec", &problems);
        assert_eq!(fields.duration("validDuration"), Some(Duration::from_secs(5)));
        assert_eq!(fields.int("valid_use_count"), Some(7));
        assert_eq!(fields.object("status").int("code"), None);
        assert_eq!(fields.text("nothing"), None);
        drop(fields);
        let found: Vec<String> = problems.take().iter().map(|p| format!("{}: {}", p.field, p.why)).collect();
        assert_eq!(
            found,
            [
                "spec.status.code: must be a whole number, not \"x\"",
                "spec.oops: unknown field, ignored; check its spelling"
            ]
        );
    }
}
