//! From text to an untyped tree, with Go's tokens and operator precedence.
//!
//! In: source text. Out: [`Ast`].
//! Kept true: depth is bounded, so no input can exhaust the stack. Not here: types (`check`).

use std::fmt;

use super::{CompileError, MAX_SOURCE};
use crate::attributes::{Value, duration};

/// Deepest nesting that is read.
const MAX_DEPTH: usize = 200;

/// An untyped expression. Operators are functions with Mixer's names: `EQ`, `LAND`, `OR`, `INDEX`, …
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ast {
    Const { text: String, value: Value },
    Var(String),
    Call { name: String, target: Option<Box<Ast>>, args: Vec<Ast> },
}

impl fmt::Display for Ast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Const { text, .. } => f.write_str(text),
            Self::Var(name) => write!(f, "${name}"),
            Self::Call { name, target, args } => {
                if let Some(target) = target {
                    write!(f, "{target}:")?;
                }
                write!(f, "{name}(")?;
                for (i, arg) in args.iter().enumerate() {
                    write!(f, "{}{arg}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str(")")
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Ident(String),
    Literal {
        text: String,
        value: Value,
    },
    /// A literal that Go reads and Mixer does not: a rune or an imaginary number.
    OtherLiteral(String),
    Op(&'static str),
    End,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ident(text) | Self::Literal { text, .. } | Self::OtherLiteral(text) => f.write_str(text),
            Self::Op(op) => write!(f, "'{op}'"),
            Self::End => f.write_str("end of expression"),
        }
    }
}

/// Longest first, so that `<=` is not read as `<`.
const OPERATORS: [&str; 34] = [
    "...", "&^", "<<", ">>", "&&", "||", "==", "!=", "<=", ">=", "<-", ":=", "++", "--", "+", "-", "*", "/",
    "%", "&", "|", "^", "<", ">", "=", "!", "(", ")", "[", "]", "{", "}", ",", ".",
];

/// Words that Go reserves, so they cannot be part of an attribute's name.
const KEYWORDS: [&str; 25] = [
    "break",
    "case",
    "chan",
    "const",
    "continue",
    "default",
    "defer",
    "else",
    "fallthrough",
    "for",
    "func",
    "go",
    "goto",
    "if",
    "import",
    "interface",
    "map",
    "package",
    "range",
    "return",
    "select",
    "struct",
    "switch",
    "type",
    "var",
];

/// Precedence and function name of a binary operator, as in Go: `|` binds like `+`, above comparisons.
fn binary(op: &str) -> Option<(u8, &'static str)> {
    Some(match op {
        "||" => (1, "LOR"),
        "&&" => (2, "LAND"),
        "==" => (3, "EQ"),
        "!=" => (3, "NEQ"),
        "<" => (3, "LT"),
        "<=" => (3, "LE"),
        ">" => (3, "GT"),
        ">=" => (3, "GE"),
        "+" => (4, "ADD"),
        "-" => (4, "SUB"),
        "|" => (4, "OR"),
        "^" => (4, "XOR"),
        "*" => (5, "MUL"),
        "/" => (5, "QUO"),
        "%" => (5, "REM"),
        "<<" => (5, "SHL"),
        ">>" => (5, "SHR"),
        "&" => (5, "AND"),
        "&^" => (5, "AND_NOT"),
        _ => return None,
    })
}

fn unary(op: &str) -> Option<&'static str> {
    Some(match op {
        "!" => "NOT",
        "-" => "SUB",
        "+" => "ADD",
        "^" => "XOR",
        "&" => "AND",
        "<-" => "ARROW",
        _ => return None,
    })
}

/// Reads `source`.
pub(super) fn parse(source: &str) -> Result<Ast, CompileError> {
    let fail = |what: String| CompileError(format!("unable to parse expression '{source}': {what}"));
    if source.len() > MAX_SOURCE {
        return Err(CompileError(format!("unable to parse expression: longer than {MAX_SOURCE} bytes")));
    }
    let tokens =
        Lexer { source, at: 0 }.tokens().map_err(|(at, what)| fail(format!("1:{}: {what}", at + 1)))?;
    let mut parser = Parser { tokens, next: 0, depth: 0 };
    let tree = parser.binary(1).map_err(|error| match error {
        Error::Syntax(at, what) => fail(format!("1:{}: {what}", at + 1)),
        Error::Unexpected(what) => CompileError(format!("unexpected expression: {what}")),
    })?;
    match parser.peek() {
        (_, Token::End) => Ok(tree),
        (at, other) => Err(fail(format!("1:{}: expected end of expression, found {other}", at + 1))),
    }
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
}

type Spotted<T> = Result<T, (usize, String)>;

impl<'a> Lexer<'a> {
    fn tokens(mut self) -> Spotted<Vec<(usize, Token)>> {
        let mut out = Vec::new();
        loop {
            self.skip_blank()?;
            let start = self.at;
            let Some(first) = self.rest().chars().next() else {
                out.push((start, Token::End));
                return Ok(out);
            };
            let second_is_digit = self.rest()[first.len_utf8()..].starts_with(|c: char| c.is_ascii_digit());
            let token = match first {
                c if c.is_alphabetic() || c == '_' => self.word(),
                c if c.is_ascii_digit() || (c == '.' && second_is_digit) => self.number()?,
                '"' => self.quoted('"')?,
                '`' => self.raw()?,
                '\'' => self.quoted('\'')?,
                _ => self.operator()?,
            };
            out.push((start, token));
        }
    }

    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn skip_blank(&mut self) -> Spotted<()> {
        loop {
            let trimmed = self.rest().trim_start_matches([' ', '\t', '\r', '\n']);
            self.at = self.source.len() - trimmed.len();
            if let Some(comment) = trimmed.strip_prefix("//") {
                self.at += 2 + comment.find('\n').unwrap_or(comment.len());
            } else if let Some(comment) = trimmed.strip_prefix("/*") {
                let end = comment.find("*/").ok_or((self.at, "comment not terminated".to_owned()))?;
                self.at += 2 + end + 2;
            } else {
                return Ok(());
            }
        }
    }

    fn take(&mut self, more: impl FnMut(char) -> bool) -> String {
        let rest = self.rest();
        let text = rest[..rest.len() - rest.trim_start_matches(more).len()].to_owned();
        self.at += text.len();
        text
    }

    fn word(&mut self) -> Token {
        Token::Ident(self.take(|c| c.is_alphanumeric() || c == '_'))
    }

    fn number(&mut self) -> Spotted<Token> {
        let start = self.at;
        let mut after_exponent = false;
        let text = self.take(|c| {
            let sign = after_exponent && (c == '+' || c == '-');
            after_exponent = c == 'e' || c == 'E';
            c.is_ascii_alphanumeric() || c == '.' || c == '_' || sign
        });
        if text.ends_with('i') {
            return Ok(Token::OtherLiteral(text));
        }
        let value = if text.bytes().all(|b| b.is_ascii_digit()) {
            text.parse().map(Value::Int64).map_err(|_| (start, format!("{text} does not fit in INT64")))
        } else if text.starts_with("0x") || text.starts_with("0b") || text.starts_with("0o") {
            Err((start, format!("{text} is not a decimal number")))
        } else {
            text.parse().map(Value::Double).map_err(|_| (start, format!("{text} is not a number")))
        };
        Ok(Token::Literal { text, value: value? })
    }

    fn raw(&mut self) -> Spotted<Token> {
        let start = self.at;
        let body = &self.rest()[1..];
        let end = body.find('`').ok_or((start, "raw string literal not terminated".to_owned()))?;
        let content = body[..end].replace('\r', "");
        self.at += end + 2;
        Ok(Token::Literal { text: self.source[start..self.at].to_owned(), value: string_value(&content) })
    }

    fn quoted(&mut self, quote: char) -> Spotted<Token> {
        let start = self.at;
        let unterminated = || (start, "string literal not terminated".to_owned());
        let mut bytes = Vec::new();
        let mut chars = self.source[start + 1..].char_indices();
        loop {
            let (at, c) = chars.next().ok_or_else(unterminated)?;
            if c == quote {
                self.at = start + 1 + at + 1;
                break;
            }
            match c {
                '\n' => return Err(unterminated()),
                '\\' => {
                    let (_, escape) = chars.next().ok_or_else(unterminated)?;
                    let digits = match escape {
                        'x' => 2,
                        'u' => 4,
                        'U' => 8,
                        '0'..='7' => 2,
                        _ => 0,
                    };
                    let bad = || (start + 1 + at, "unknown escape sequence".to_owned());
                    let mut code = String::new();
                    if escape.is_digit(8) {
                        code.push(escape);
                    }
                    for _ in 0..digits {
                        code.push(chars.next().ok_or_else(unterminated)?.1);
                    }
                    let radix = if escape.is_digit(8) { 8 } else { 16 };
                    match escape {
                        'x' | '0'..='7' => bytes.push(u8::from_str_radix(&code, radix).map_err(|_| bad())?),
                        'u' | 'U' => {
                            let code = u32::from_str_radix(&code, 16)
                                .ok()
                                .and_then(char::from_u32)
                                .ok_or_else(bad)?;
                            bytes.extend(code.encode_utf8(&mut [0; 4]).as_bytes());
                        }
                        _ => bytes.push(match escape {
                            'a' => 7,
                            'b' => 8,
                            'f' => 12,
                            'n' => b'\n',
                            'r' => b'\r',
                            't' => b'\t',
                            'v' => 11,
                            '\\' => b'\\',
                            '"' if quote == '"' => b'"',
                            '\'' if quote == '\'' => b'\'',
                            _ => return Err(bad()),
                        }),
                    }
                }
                _ => bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        let text = self.source[start..self.at].to_owned();
        if quote == '\'' {
            return Ok(Token::OtherLiteral(text));
        }
        Ok(Token::Literal { text, value: string_value(&String::from_utf8_lossy(&bytes)) })
    }

    fn operator(&mut self) -> Spotted<Token> {
        let rest = self.rest();
        if rest.starts_with([':', ';']) {
            return Err((self.at, format!("unexpected {:?}", &rest[..1])));
        }
        let found = OPERATORS.iter().find(|op| rest.starts_with(**op));
        let op = found.ok_or_else(|| {
            let c = rest.chars().next().unwrap_or(' ');
            (self.at, format!("illegal character {c:?}"))
        })?;
        self.at += op.len();
        Ok(Token::Op(op))
    }
}

/// Text that reads as a duration is a DURATION, whatever the author meant.
fn string_value(content: &str) -> Value {
    duration::parse(content).map_or_else(|| Value::text(content), Value::Duration)
}

enum Error {
    Syntax(usize, String),
    Unexpected(String),
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> (usize, &Token) {
        // The last token is `End`, and `advance` never steps past it.
        let (at, token) = &self.tokens[self.next.min(self.tokens.len() - 1)];
        (*at, token)
    }

    fn advance(&mut self) -> (usize, Token) {
        let (at, token) = self.peek();
        let out = (at, token.clone());
        self.next = (self.next + 1).min(self.tokens.len() - 1);
        out
    }

    fn accept(&mut self, op: &str) -> bool {
        let found = matches!(self.peek().1, Token::Op(next) if *next == op);
        if found {
            self.advance();
        }
        found
    }

    fn expect(&mut self, op: &str) -> Result<(), Error> {
        if self.accept(op) {
            return Ok(());
        }
        let (at, found) = self.peek();
        Err(Error::Syntax(at, format!("expected '{op}', found {found}")))
    }

    fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Error::Syntax(self.peek().0, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        let out = read(self);
        self.depth -= 1;
        out
    }

    fn binary(&mut self, floor: u8) -> Result<Ast, Error> {
        self.nested(|parser| {
            let mut left = parser.unary()?;
            let mut links = 0;
            while let Token::Op(op) = parser.peek().1 {
                let Some((precedence, name)) = binary(op).filter(|(precedence, _)| *precedence >= floor)
                else {
                    break;
                };
                links += 1;
                if links > MAX_DEPTH {
                    return Err(Error::Syntax(
                        parser.peek().0,
                        format!("more than {MAX_DEPTH} operators in a row"),
                    ));
                }
                parser.advance();
                let right = parser.binary(precedence + 1)?;
                left = call(name, vec![left, right]);
            }
            Ok(left)
        })
    }

    fn unary(&mut self) -> Result<Ast, Error> {
        let Token::Op(op) = *self.peek().1 else { return self.postfix() };
        if op == "*" {
            return Err(Error::Unexpected("dereference".to_owned()));
        }
        let Some(name) = unary(op) else { return self.postfix() };
        self.advance();
        let operand = self.nested(Self::unary)?;
        Ok(call(name, vec![operand]))
    }

    fn postfix(&mut self) -> Result<Ast, Error> {
        let (at, token) = self.advance();
        // Only a plain chain of names may be extended by a selector.
        let mut chain = false;
        let mut left = match token {
            Token::Ident(name) if KEYWORDS.contains(&name.as_str()) => {
                return Err(Error::Syntax(at, format!("expected operand, found '{name}'")));
            }
            Token::Ident(name) => {
                chain = true;
                Ast::Var(name)
            }
            Token::Literal { text, value } => Ast::Const { text, value },
            Token::OtherLiteral(text) => return Err(Error::Unexpected(text)),
            Token::Op("(") => {
                let inner = self.binary(1)?;
                self.expect(")")?;
                inner
            }
            other => return Err(Error::Syntax(at, format!("expected operand, found {other}"))),
        };
        let mut links = 0;
        loop {
            links += 1;
            if links > MAX_DEPTH {
                return Err(Error::Syntax(
                    self.peek().0,
                    format!("more than {MAX_DEPTH} selectors in a row"),
                ));
            }
            if self.accept(".") {
                let (at, token) = self.advance();
                let name = match token {
                    Token::Ident(name) if !KEYWORDS.contains(&name.as_str()) => name,
                    Token::Op("(") => return Err(Error::Unexpected("type assertion".to_owned())),
                    other => return Err(Error::Syntax(at, format!("expected selector, found {other}"))),
                };
                if matches!(self.peek().1, Token::Op("(")) {
                    let args = self.arguments()?;
                    left = Ast::Call { name, target: Some(Box::new(finish(left, chain))), args };
                    chain = false;
                } else if let (true, Ast::Var(path)) = (chain, &mut left) {
                    path.push('.');
                    path.push_str(&name);
                } else {
                    return Err(Error::Unexpected(format!("{left}.{name}")));
                }
            } else if matches!(self.peek().1, Token::Op("[")) {
                self.advance();
                let index = self.binary(1)?;
                self.expect("]")?;
                left = call("INDEX", vec![finish(left, chain), index]);
                chain = false;
            } else if matches!(self.peek().1, Token::Op("(")) {
                let name = match left {
                    Ast::Var(name) if chain => name,
                    other => return Err(Error::Unexpected(format!("{other}()"))),
                };
                let args = self.arguments()?;
                left = Ast::Call { name, target: None, args };
                chain = false;
            } else if matches!(self.peek().1, Token::Op("{")) {
                return Err(Error::Unexpected("composite literal".to_owned()));
            } else {
                return Ok(finish(left, chain));
            }
        }
    }

    fn arguments(&mut self) -> Result<Vec<Ast>, Error> {
        self.expect("(")?;
        let mut args = Vec::new();
        while !self.accept(")") {
            args.push(self.binary(1)?);
            if !self.accept(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(args)
    }
}

/// A complete chain of names: `true` and `false` in any letter case are literals.
fn finish(tree: Ast, chain: bool) -> Ast {
    match tree {
        Ast::Var(name) if chain && name.eq_ignore_ascii_case("true") => {
            Ast::Const { text: name, value: Value::Bool(true) }
        }
        Ast::Var(name) if chain && name.eq_ignore_ascii_case("false") => {
            Ast::Const { text: name, value: Value::Bool(false) }
        }
        other => other,
    }
}

fn call(name: &str, args: Vec<Ast>) -> Ast {
    Ast::Call { name: name.to_owned(), target: None, args }
}
