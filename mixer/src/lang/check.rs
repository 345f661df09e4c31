//! From an untyped to a typed tree.
//!
//! In: [`Ast`] and a vocabulary. Out: [`Node`] and its type.
//! Kept true: evaluation of a node can meet absence and bad text, never a wrong type. Not here: evaluation (`eval`).

use regex::Regex;

use super::{CompileError, externs, externs::Extern, parse::Ast};
use crate::attributes::{AttributeId, Value, ValueType, Vocabulary};

/// A typed expression.
#[derive(Debug)]
pub(super) enum Node {
    Const(Value),
    Var(AttributeId),
    Index(Box<Node>, Box<Node>),
    /// The first operand that is present.
    Or(Box<Node>, Box<Node>),
    All(Box<Node>, Box<Node>),
    Any(Box<Node>, Box<Node>),
    Equal {
        left: Box<Node>,
        right: Box<Node>,
        negate: bool,
    },
    Compare {
        left: Box<Node>,
        right: Box<Node>,
        op: Order,
    },
    Add(Box<Node>, Box<Node>),
    Conditional(Box<Node>, Box<Node>, Box<Node>),
    /// A pattern that was compiled with the expression.
    Matches(Regex, Box<Node>),
    Extern(Extern, Vec<Node>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Node {
    pub(super) fn visit(&self, visit: &mut dyn FnMut(AttributeId, Option<&str>)) {
        match self {
            Self::Const(_) => {}
            Self::Var(id) => visit(*id, None),
            Self::Index(map, key) => {
                match (&**map, &**key) {
                    (Self::Var(id), Self::Const(Value::String(key))) => visit(*id, Some(key)),
                    _ => map.visit(visit),
                }
                key.visit(visit);
            }
            Self::Or(a, b) | Self::All(a, b) | Self::Any(a, b) | Self::Add(a, b) => {
                a.visit(visit);
                b.visit(visit);
            }
            Self::Equal { left, right, .. } | Self::Compare { left, right, .. } => {
                left.visit(visit);
                right.visit(visit);
            }
            Self::Conditional(a, b, c) => {
                a.visit(visit);
                b.visit(visit);
                c.visit(visit);
            }
            Self::Matches(_, text) => text.visit(visit),
            Self::Extern(_, args) => args.iter().for_each(|arg| arg.visit(visit)),
        }
    }
}

/// Argument and result types of a function. `None` is a type parameter: all such places have the same type.
struct Signature {
    target: Option<ValueType>,
    args: &'static [Option<ValueType>],
    result: Option<ValueType>,
}

const fn plain(args: &'static [Option<ValueType>], result: ValueType) -> Signature {
    Signature { target: None, args, result: Some(result) }
}

const fn method(args: &'static [Option<ValueType>], result: ValueType) -> Signature {
    Signature { target: Some(ValueType::String), args, result: Some(result) }
}

const STRING: Option<ValueType> = Some(ValueType::String);
const BOOL: Option<ValueType> = Some(ValueType::Bool);

fn signature(name: &str) -> Option<Signature> {
    Some(match name {
        "EQ" | "NEQ" | "LT" | "LE" | "GT" | "GE" => plain(&[None, None], ValueType::Bool),
        "LAND" | "LOR" => plain(&[BOOL, BOOL], ValueType::Bool),
        "OR" | "ADD" => Signature { target: None, args: &[None, None], result: None },
        "INDEX" => plain(&[Some(ValueType::StringMap), STRING], ValueType::String),
        "conditional" => Signature { target: None, args: &[BOOL, None, None], result: None },
        "size" => plain(&[STRING], ValueType::Int64),
        "ip" => plain(&[STRING], ValueType::IpAddress),
        "timestamp" => plain(&[STRING], ValueType::Timestamp),
        "dnsName" => plain(&[STRING], ValueType::DnsName),
        "email" => plain(&[STRING], ValueType::EmailAddress),
        "uri" => plain(&[STRING], ValueType::Uri),
        "match" => plain(&[STRING, STRING], ValueType::Bool),
        "matches" | "startsWith" | "endsWith" => method(&[STRING], ValueType::Bool),
        "emptyStringMap" => plain(&[], ValueType::StringMap),
        "conditionalString" => plain(&[BOOL, STRING, STRING], ValueType::String),
        "toLower" => plain(&[STRING], ValueType::String),
        _ => return None,
    })
}

/// Types `ast` by `vocabulary`.
pub(super) fn check(ast: &Ast, vocabulary: &Vocabulary) -> Result<(Node, ValueType), CompileError> {
    let fail = |what: String| Err(CompileError(what));
    let (name, target, args) = match ast {
        Ast::Const { value, .. } => return Ok((Node::Const(value.clone()), value.value_type())),
        Ast::Var(name) => {
            let id = vocabulary.id(name).ok_or_else(|| CompileError(format!("unknown attribute {name}")))?;
            return Ok((Node::Var(id), vocabulary.kind(id)));
        }
        Ast::Call { name, target, args } => (name.as_str(), target.as_deref(), args),
    };
    let Some(signature) = signature(name) else { return fail(format!("unknown function: {name}")) };
    match (target, signature.target) {
        (Some(_), None) => return fail(format!("invoking regular function on instance method: {name}")),
        (None, Some(_)) => return fail(format!("invoking instance method without an instance: {name}")),
        _ => {}
    }
    if args.len() < signature.args.len() {
        return fail(format!(
            "{ast} arity mismatch. Got {} arg(s), expected {} arg(s)",
            args.len(),
            signature.args.len()
        ));
    }
    let mut nodes = Vec::with_capacity(args.len() + 1);
    if let (Some(target), Some(expected)) = (target, signature.target) {
        let (node, kind) = check(target, vocabulary)?;
        if kind != expected {
            return fail(format!("{ast} target ({target}) typeError got {kind}, expected {expected}"));
        }
        nodes.push(node);
    }
    let mut parameter = None;
    // Arguments beyond the signature are read by nobody, as in Mixer.
    for (i, (arg, expected)) in args.iter().zip(signature.args).enumerate() {
        let (node, kind) = check(arg, vocabulary)?;
        let expected = match expected {
            Some(expected) => *expected,
            None => *parameter.get_or_insert(kind),
        };
        if kind != expected {
            return fail(format!("{ast} arg {} ({arg}) typeError got {kind}, expected {expected}", i + 1));
        }
        nodes.push(node);
    }
    let result = signature.result.or(parameter).unwrap_or(ValueType::String);
    Ok((build(name, nodes, parameter.unwrap_or(result))?, result))
}

/// The node of a call whose arguments are known to fit. `operand` is the type of the free parameter.
fn build(name: &str, nodes: Vec<Node>, operand: ValueType) -> Result<Node, CompileError> {
    let mut nodes = nodes.into_iter().map(Box::new);
    let mut next = || nodes.next().unwrap_or_else(|| Box::new(Node::Const(Value::text(""))));
    let internal = |what: &str| {
        Err(CompileError(format!(
            "internal compiler error -- {what} for type not yet implemented: {operand}"
        )))
    };
    let ordered =
        matches!(operand, ValueType::String | ValueType::Int64 | ValueType::Double | ValueType::Timestamp);
    let order = |op| if ordered { Ok(op) } else { internal("comparison").map(|()| op) };
    let name = match name {
        "EQ" | "NEQ" if matches!(operand, ValueType::Duration | ValueType::StringMap) => {
            return internal("equality").map(|()| Node::Const(Value::Bool(false)));
        }
        "ADD" if !matches!(operand, ValueType::String | ValueType::Int64 | ValueType::Double) => {
            return internal("addition").map(|()| Node::Const(Value::Bool(false)));
        }
        other => other,
    };
    Ok(match name {
        "EQ" => Node::Equal { left: next(), right: next(), negate: false },
        "NEQ" => Node::Equal { left: next(), right: next(), negate: true },
        "LT" => Node::Compare { left: next(), right: next(), op: order(Order::Less)? },
        "LE" => Node::Compare { left: next(), right: next(), op: order(Order::LessOrEqual)? },
        "GT" => Node::Compare { left: next(), right: next(), op: order(Order::Greater)? },
        "GE" => Node::Compare { left: next(), right: next(), op: order(Order::GreaterOrEqual)? },
        "LAND" => Node::All(next(), next()),
        "LOR" => Node::Any(next(), next()),
        "OR" => Node::Or(next(), next()),
        "ADD" => Node::Add(next(), next()),
        "INDEX" => Node::Index(next(), next()),
        "conditional" => Node::Conditional(next(), next(), next()),
        "matches" => {
            let pattern = next();
            let text = next();
            match &*pattern {
                Node::Const(Value::String(source)) => {
                    Node::Matches(externs::regex(source).map_err(CompileError)?, text)
                }
                _ => Node::Extern(Extern::Matches, vec![*pattern, *text]),
            }
        }
        other => {
            let function =
                Extern::named(other).ok_or_else(|| CompileError(format!("unknown function: {other}")))?;
            Node::Extern(function, nodes.map(|node| *node).collect())
        }
    })
}
