//! What is wrong with a configuration, said so that its owner can mend it.
//!
//! In: findings of `yaml`, `parse`, `validate` and `source`. Out: [`Diagnostic`], one line each when displayed.
//! Kept true: every diagnostic names its file and line, and where known the object and the field.
//! Not here: the rules themselves (`validate`).

use crate::object::{ObjectKey, Origin};
use serde::Serialize;
use std::fmt;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// What is written cannot be done. A document that is wrong by itself is refused, and what was accepted under
    /// its name before stays in force; of an object that refers to nothing, the rest stays in force.
    Error,
    /// The object is in force, but a part of it does not do what its author may expect.
    Warning,
}

/// One finding about one place in the configuration.
///
/// `{}` shows `file:line: VirtualService ns/name: spec.http[0].route: why`; `{:#}` puts the severity in front.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// File and line of the field if known, else of the document.
    #[serde(flatten)]
    pub origin: Origin,
    /// The object spoken of; absent when a document could not be read far enough to name one.
    pub object: Option<ObjectKey>,
    /// Path of the field, such as `spec.http[0].route[1].weight`; empty for the whole object.
    pub field: String,
    /// What is wrong and how to mend it, lower-case, one line.
    pub why: String,
}

impl Diagnostic {
    /// An error: what is written cannot be done.
    pub fn error(origin: Origin, object: Option<ObjectKey>, field: &str, why: impl Into<String>) -> Self {
        Self { severity: Severity::Error, origin, object, field: field.to_owned(), why: one_line(why.into()) }
    }

    /// A warning: the object is used as far as it can be.
    pub fn warning(origin: Origin, object: Option<ObjectKey>, field: &str, why: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(origin, object, field, why) }
    }

    /// Whether this is an error.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// Whether this is about a field, kind or value nobody knows. An unknown field is only a warning, since the rest
    /// of the object works; `kubectl`'s strict validation refuses it, and commands that validate should fail on it.
    pub fn is_unknown(&self) -> bool {
        self.why.starts_with("unknown ")
    }
}

fn one_line(text: String) -> String {
    if text.contains(['\n', '\r']) { text.split_whitespace().collect::<Vec<_>>().join(" ") } else { text }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            f.write_str(match self.severity {
                Severity::Error => "error: ",
                Severity::Warning => "warning: ",
            })?;
        }
        write!(f, "{}: ", self.origin)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.why)
    }
}
