//! YAML as `kubectl apply` takes it: many documents in one text, comments, odd separators, nulls as absent.
//!
//! In: text. Out: [`split`] documents, each a [`Node`] tree that knows its lines; trees become JSON without nulls.
//! Kept true: no input panics, hangs or expands without bound; one bad document spoils no other.
//! Not here: what a document means (`parse`).

mod split;
mod tree;

pub use split::{Document, split};
pub use tree::{Lines, MAX_FILE_BYTES, Node, NullAt, SyntaxError, field_path, parse};
pub(crate) use tree::{parse_here, with_stack};
