//! Evaluation of typed trees.
//!
//! In: [`Node`] and a bag. Out: a value, or why there is none.
//! Kept true: absence is caught by `|` only, and only where it arises directly. Not here: types (`check`).

use super::{
    check::{Node, Order},
    externs,
    refs::Track,
};
use crate::attributes::{Bag, StringMap, Text, Value};

/// Why an expression has no value for a bag.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum EvalError {
    /// An attribute is absent, and no `|` offers another value.
    #[error("lookup failed: '{0}'")]
    Absent(Text),
    /// A function could not use its argument.
    #[error("{0}")]
    Function(String),
}

pub(super) fn eval(node: &Node, bag: &Bag, refs: &mut impl Track) -> Result<Value, EvalError> {
    Ok(match node {
        Node::Const(value) => value.clone(),
        Node::Var(id) => match bag.get(*id) {
            Some(value) => {
                if matches!(value, Value::StringMap(_)) {
                    refs.saw_map(*id);
                } else {
                    refs.saw(*id, None, true);
                }
                value.clone()
            }
            None => {
                refs.saw(*id, None, false);
                return Err(EvalError::Absent(bag.vocabulary().name(*id).clone()));
            }
        },
        Node::Index(map, key) => {
            // A present map without the entry is the empty string.
            let entry = match &**map {
                Node::Var(id) => {
                    let Some(Value::StringMap(map)) = bag.get(*id) else {
                        refs.saw(*id, None, false);
                        return Err(EvalError::Absent(bag.vocabulary().name(*id).clone()));
                    };
                    let key = text(eval(key, bag, refs)?);
                    let entry = map.get(&key);
                    refs.saw(*id, Some(&key), entry.is_some());
                    entry.cloned()
                }
                map => {
                    let map = string_map(eval(map, bag, refs)?);
                    map.get(&text(eval(key, bag, refs)?)).cloned()
                }
            };
            Value::String(entry.unwrap_or_else(|| Text::from("")))
        }
        Node::Or(left, right) => match maybe(left, bag, refs)? {
            Some(value) => value,
            None => eval(right, bag, refs)?,
        },
        Node::All(left, right) => Value::Bool(truth(left, bag, refs)? && truth(right, bag, refs)?),
        Node::Any(left, right) => Value::Bool(truth(left, bag, refs)? || truth(right, bag, refs)?),
        Node::Equal { left, right, negate } => {
            let (left, right) = (eval(left, bag, refs)?, eval(right, bag, refs)?);
            Value::Bool(externs::equal(&left, &right) != *negate)
        }
        Node::Compare { left, right, op } => {
            let (left, right) = (eval(left, bag, refs)?, eval(right, bag, refs)?);
            let order = match (&left, &right) {
                (Value::String(a), Value::String(b)) => a.partial_cmp(b),
                (Value::Int64(a), Value::Int64(b)) => a.partial_cmp(b),
                (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
                (Value::Timestamp(a), Value::Timestamp(b)) => a.partial_cmp(b),
                _ => None,
            };
            Value::Bool(order.is_some_and(|order| match op {
                Order::Less => order.is_lt(),
                Order::LessOrEqual => order.is_le(),
                Order::Greater => order.is_gt(),
                Order::GreaterOrEqual => order.is_ge(),
            }))
        }
        Node::Add(left, right) => match (eval(left, bag, refs)?, eval(right, bag, refs)?) {
            (Value::Int64(a), Value::Int64(b)) => Value::Int64(a.wrapping_add(b)),
            (Value::Double(a), Value::Double(b)) => Value::Double(a + b),
            (a, b) => Value::text(format!("{a}{b}")),
        },
        Node::Conditional(condition, yes, no) => {
            eval(if truth(condition, bag, refs)? { yes } else { no }, bag, refs)?
        }
        Node::Matches(pattern, subject) => Value::Bool(pattern.is_match(&text(eval(subject, bag, refs)?))),
        Node::Extern(function, args) => {
            let args = args.iter().map(|arg| eval(arg, bag, refs)).collect::<Result<Vec<_>, _>>()?;
            function.call(&args).map_err(EvalError::Function)?
        }
    })
}

/// The left side of `|`: absence of a variable, map or entry is `None`; everything else is as in [`eval`].
fn maybe(node: &Node, bag: &Bag, refs: &mut impl Track) -> Result<Option<Value>, EvalError> {
    Ok(match node {
        Node::Var(id) if bag.get(*id).is_none() => {
            refs.saw(*id, None, false);
            None
        }
        Node::Index(map, key) => match &**map {
            Node::Var(id) => {
                let Some(Value::StringMap(map)) = bag.get(*id) else {
                    refs.saw(*id, None, false);
                    return Ok(None);
                };
                let Some(key) = maybe(key, bag, refs)? else { return Ok(None) };
                let key = text(key);
                let entry = map.get(&key);
                refs.saw(*id, Some(&key), entry.is_some());
                entry.cloned().map(Value::String)
            }
            map => {
                let Some(map) = maybe(map, bag, refs)? else { return Ok(None) };
                let Some(key) = maybe(key, bag, refs)? else { return Ok(None) };
                string_map(map).get(&text(key)).cloned().map(Value::String)
            }
        },
        Node::Or(left, right) => match maybe(left, bag, refs)? {
            Some(value) => Some(value),
            None => maybe(right, bag, refs)?,
        },
        other => Some(eval(other, bag, refs)?),
    })
}

fn truth(node: &Node, bag: &Bag, refs: &mut impl Track) -> Result<bool, EvalError> {
    Ok(matches!(eval(node, bag, refs)?, Value::Bool(true)))
}

// The checker has made sure of these types.
fn text(value: Value) -> Text {
    match value {
        Value::String(text) => text,
        other => other.to_string().into(),
    }
}

fn string_map(value: Value) -> StringMap {
    match value {
        Value::StringMap(map) => map,
        _ => StringMap::default(),
    }
}
