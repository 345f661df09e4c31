//! Mixer's expression language: what rules match on and instances are made of.
//!
//! In: source text and a vocabulary. Out: [`Expression`], compiled once, evaluated against bags.
//! Kept true: what compiles cannot fail on types. Not here: which objects hold expressions (`config`).

mod check;
mod eval;
mod externs;
mod parse;
mod refs;
#[cfg(test)]
mod tests;

pub use eval::EvalError;
pub use refs::{Condition, Reference, References, Track};

use crate::attributes::{AttributeId, Bag, Value, ValueType, Vocabulary};

/// Longest expression that is read, in bytes.
pub const MAX_SOURCE: usize = 64 * 1024;

/// Why an expression was refused, in Mixer's words.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct CompileError(pub String);

/// A compiled expression. Immutable and shareable; evaluation allocates only for new text.
#[derive(Debug)]
pub struct Expression {
    source: String,
    node: check::Node,
    kind: ValueType,
}

impl Expression {
    /// Parses and type-checks `source` against the attributes of `vocabulary`.
    pub fn compile(source: &str, vocabulary: &Vocabulary) -> Result<Self, CompileError> {
        let ast = parse::parse(source)?;
        let (node, kind) = check::check(&ast, vocabulary)?;
        Ok(Self { source: source.to_owned(), node, kind })
    }

    /// The expression's type.
    #[must_use]
    pub fn kind(&self) -> ValueType {
        self.kind
    }

    /// The text it was compiled from.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The expression's value for `bag`.
    pub fn eval(&self, bag: &Bag) -> Result<Value, EvalError> {
        eval::eval(&self.node, bag, &mut ())
    }

    /// The same, telling `refs` which attributes the value depends on.
    pub fn eval_tracked(&self, bag: &Bag, refs: &mut impl Track) -> Result<Value, EvalError> {
        eval::eval(&self.node, bag, refs)
    }

    /// The value of an expression of type BOOL; `false` for any other type.
    pub fn eval_bool(&self, bag: &Bag, refs: &mut impl Track) -> Result<bool, EvalError> {
        Ok(matches!(eval::eval(&self.node, bag, refs)?, Value::Bool(true)))
    }

    /// Every attribute the expression could ever look at.
    pub fn visit_attributes(&self, visit: &mut dyn FnMut(AttributeId, Option<&str>)) {
        self.node.visit(visit);
    }

    /// The value, if the expression is a literal.
    #[must_use]
    pub fn constant(&self) -> Option<&Value> {
        match &self.node {
            check::Node::Const(value) => Some(value),
            _ => None,
        }
    }

    /// The attribute `x` of an expression `x` or `x | literal`.
    #[must_use]
    pub fn attribute_or_default(&self) -> Option<AttributeId> {
        match &self.node {
            check::Node::Var(id) => Some(*id),
            check::Node::Or(left, right) => match (&**left, &**right) {
                (check::Node::Var(id), check::Node::Const(_)) => Some(*id),
                _ => None,
            },
            _ => None,
        }
    }
}
