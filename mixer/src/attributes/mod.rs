//! Attributes: the facts about a request or connection that rules speak of.
//!
//! In: any ingest protocol. Out: [`Bag`], typed by a [`Vocabulary`].
//! Kept true: a bag never holds a value of another type than its vocabulary says. Not here: expressions (`lang`).

mod bag;
pub mod duration;
mod value;
mod vocabulary;

pub use bag::Bag;
pub use value::{StringMap, Text, Timestamp, Value, ValueType};
pub use vocabulary::{AttributeId, Builtin, Vocabulary};
