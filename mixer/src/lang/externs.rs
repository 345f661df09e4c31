//! The language's functions, and equality of typed text.
//!
//! In: values of the types that `check` has made sure of. Out: a value, or what is wrong with the argument.
//! Kept true: no function panics or loops on any text. Not here: laziness and absence (`eval`).

use std::borrow::Cow;

use regex::{Regex, RegexBuilder};

use crate::attributes::{StringMap, Timestamp, Value};

/// Largest compiled pattern, in bytes.
const REGEX_LIMIT: usize = 1 << 20;

/// A function by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extern {
    Size,
    Ip,
    Timestamp,
    DnsName,
    Email,
    Uri,
    Match,
    Matches,
    StartsWith,
    EndsWith,
    EmptyStringMap,
    ConditionalString,
    ToLower,
}

impl Extern {
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "size" => Self::Size,
            "ip" => Self::Ip,
            "timestamp" => Self::Timestamp,
            "dnsName" => Self::DnsName,
            "email" => Self::Email,
            "uri" => Self::Uri,
            "match" => Self::Match,
            "matches" => Self::Matches,
            "startsWith" => Self::StartsWith,
            "endsWith" => Self::EndsWith,
            "emptyStringMap" => Self::EmptyStringMap,
            "conditionalString" => Self::ConditionalString,
            "toLower" => Self::ToLower,
            _ => return None,
        })
    }

    pub(super) fn call(self, args: &[Value]) -> Result<Value, String> {
        let text = |at: usize| match args.get(at) {
            Some(Value::String(text)) => &**text,
            _ => "",
        };
        let first = text(0);
        Ok(match self {
            Self::Size => Value::Int64(i64::try_from(first.len()).unwrap_or(i64::MAX)),
            Self::Ip => {
                Value::ip(first.parse().map_err(|_| format!("could not convert {first} to IP_ADDRESS"))?)
            }
            Self::Timestamp => Value::Timestamp(Timestamp::parse(first).ok_or_else(|| {
                format!(
                    "could not convert '{first}' to TIMESTAMP. expected format: '2006-01-02T15:04:05Z07:00'"
                )
            })?),
            Self::DnsName => {
                idna::domain_to_ascii_strict(first.strip_suffix('.').unwrap_or(first))
                    .ok()
                    .filter(|name| !name.is_empty())
                    .ok_or_else(|| format!("error converting '{first}' to dns name: not a domain name"))?;
                Value::Dns(first.into())
            }
            Self::Email => {
                check_email(first).map_err(|why| format!("error converting '{first}' to e-mail: '{why}'"))?;
                Value::Email(first.into())
            }
            Self::Uri => {
                if first.is_empty() {
                    return Err("error converting string to uri: empty string".to_owned());
                }
                check_uri(first)
                    .map_err(|why| format!("error converting string to uri '{first}': '{why}'"))?;
                Value::Uri(first.into())
            }
            Self::Match => Value::Bool(glob(first, text(1))),
            Self::Matches => Value::Bool(regex(first)?.is_match(text(1))),
            Self::StartsWith => Value::Bool(first.starts_with(text(1))),
            Self::EndsWith => Value::Bool(first.ends_with(text(1))),
            Self::EmptyStringMap => Value::StringMap(StringMap::default()),
            Self::ConditionalString => {
                let yes = matches!(args.first(), Some(Value::Bool(true)));
                Value::text(text(if yes { 1 } else { 2 }))
            }
            Self::ToLower => Value::text(first.to_lowercase()),
        })
    }
}

/// Compiles an RE2-style pattern.
pub(super) fn regex(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern)
        .size_limit(REGEX_LIMIT)
        .build()
        .map_err(|error| format!("invalid regular expression `{pattern}`: {error}"))
}

/// `match()`: a trailing `*` makes a prefix, else a leading `*` makes a suffix, else the texts must be equal.
pub(super) fn glob(text: &str, pattern: &str) -> bool {
    if let Some(prefix) = pattern.strip_suffix('*') {
        text.starts_with(prefix)
    } else if let Some(suffix) = pattern.strip_prefix('*') {
        text.ends_with(suffix)
    } else {
        text == pattern
    }
}

/// Equality of two values of the same type.
pub(super) fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Dns(a), Value::Dns(b)) => domain(a) == domain(b),
        (Value::Email(a), Value::Email(b)) => match (a.rsplit_once('@'), b.rsplit_once('@')) {
            (Some((a_local, a_domain)), Some((b_local, b_domain))) => {
                a_local == b_local && domain(a_domain) == domain(b_domain)
            }
            _ => a == b,
        },
        (Value::Uri(a), Value::Uri(b)) => uri(a) == uri(b),
        _ => left == right,
    }
}

fn domain(name: &str) -> String {
    let name = name.strip_suffix('.').unwrap_or(name);
    idna::domain_to_ascii(name).unwrap_or_else(|_| name.to_lowercase())
}

/// A URI with its scheme in lower case and, for HTTP, its host too.
fn uri(text: &str) -> Cow<'_, str> {
    let Some((scheme, rest)) = text.split_once(':') else { return text.into() };
    let scheme = scheme.to_ascii_lowercase();
    let http = scheme == "http" || scheme == "https";
    match rest.strip_prefix("//").filter(|_| http) {
        Some(rest) => {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let (authority, tail) = rest.split_at(end);
            let (user, host) =
                authority.rsplit_once('@').map_or(("", authority), |(user, host)| (user, host));
            let at = if user.is_empty() { "" } else { "@" };
            let (host, port) = match host.rsplit_once(':') {
                Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host, format!(":{port}")),
                _ => (host, String::new()),
            };
            format!("{scheme}://{user}{at}{}{port}{tail}", domain(host)).into()
        }
        None => format!("{scheme}:{rest}").into(),
    }
}

/// An address as RFC 5322 has it, without a display name.
fn check_email(text: &str) -> Result<(), &'static str> {
    let bare = match text.strip_prefix('<') {
        Some(inner) => inner.strip_suffix('>').ok_or("unclosed angle-addr")?,
        None => text,
    };
    if bare.contains(['<', '>']) {
        return Err("display names are not allowed");
    }
    let (local, domain) = bare.rsplit_once('@').ok_or("missing '@' or angle-addr")?;
    let atom = |c: char| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c);
    let dotted = |part: &str| part.split('.').all(|piece| !piece.is_empty() && piece.chars().all(atom));
    let quoted = local.len() >= 2
        && local.starts_with('"')
        && local.ends_with('"')
        && !local[1..local.len() - 1].replace("\\\"", "").contains('"');
    let literal = domain.starts_with('[') && domain.ends_with(']');
    match (dotted(local) || quoted, dotted(domain) || literal) {
        (true, true) => Ok(()),
        (false, _) => Err("no valid local part"),
        (_, false) => Err("no valid domain"),
    }
}

/// What Go's `url.Parse` takes: nearly anything without control characters, bad escapes or a broken authority.
fn check_uri(text: &str) -> Result<(), &'static str> {
    if text.chars().any(char::is_control) {
        return Err("invalid control character in URL");
    }
    let bytes = text.as_bytes();
    let before_query = text.split(['?', '#']).next().unwrap_or(text);
    let (scheme, rest) = match before_query.find(':') {
        Some(0) => return Err("missing protocol scheme"),
        Some(at) if before_query[..at].bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)) => {
            if bytes.first().is_some_and(u8::is_ascii_alphabetic) {
                (&before_query[..at], &before_query[at + 1..])
            } else {
                return Err("first path segment in URL cannot contain colon");
            }
        }
        Some(at) if !before_query[..at].contains('/') => {
            return Err("first path segment in URL cannot contain colon");
        }
        _ => ("", before_query),
    };
    let authority = rest.strip_prefix("//").map(|rest| rest.split('/').next().unwrap_or(rest));
    if let Some(host) = authority.map(|authority| authority.rsplit('@').next().unwrap_or(authority)) {
        let port = match host.rfind(']') {
            Some(end) => &host[end + 1..],
            None => host.find(':').map_or("", |at| &host[at..]),
        };
        let digits = port.strip_prefix(':').unwrap_or(port);
        if !digits.bytes().all(|b| b.is_ascii_digit()) || (!port.is_empty() && !port.starts_with(':')) {
            return Err("invalid port after host");
        }
        if host.contains(' ') {
            return Err("invalid character \" \" in host name");
        }
    } else if scheme.is_empty() && rest.is_empty() && before_query.is_empty() && !text.starts_with(['?', '#'])
    {
        return Err("empty url");
    }
    for (at, _) in before_query.match_indices('%') {
        let digits = bytes.get(at + 1..at + 3);
        if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return Err("invalid URL escape");
        }
    }
    Ok(())
}
