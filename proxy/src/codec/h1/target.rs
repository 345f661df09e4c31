//! Request targets and authorities: which forms are taken, and what `Host` must say then.
//! In: the target's bytes and the method. Out: ranges of authority and path, or a refusal.
//! Kept true: a path begins with `/` (or is `*`), holds visible ASCII only, no fragment, no backslash; an authority has no user info.
//! Not here: normalising a path (`http`), header fields (`parse`).

use std::ops::Range;

use http::Method;

use crate::codec::Refusal;
use crate::codec::head::Scheme;

/// A request target taken apart; ranges count within it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The scheme of an absolute form.
    pub scheme: Option<Scheme>,
    /// The authority of an absolute or authority form.
    pub authority: Option<Range<usize>>,
    /// Path and query; empty for the authority form, and for an absolute form without path.
    pub path: Range<usize>,
}

/// Takes a request target apart (RFC 9112 §3.2).
pub(crate) fn parse(method: &Method, target: &[u8]) -> Result<Target, Refusal> {
    if *method == Method::CONNECT {
        let port = authority_port(target).ok_or(Refusal::bad("connect target is not host:port"))?;
        if port.is_none() {
            return Err(Refusal::bad("connect target has no port"));
        }
        return Ok(Target { scheme: None, authority: Some(0..target.len()), path: 0..0 });
    }
    if target.first() == Some(&b'/') {
        return valid_path(target).map(|()| Target { scheme: None, authority: None, path: 0..target.len() });
    }
    if target == b"*" {
        return match *method == Method::OPTIONS {
            true => Ok(Target { scheme: None, authority: None, path: 0..1 }),
            false => Err(Refusal::bad("target * is for OPTIONS only")),
        };
    }
    let (scheme, start) = match target {
        [head @ .., _] if starts_with(head, b"http://") => (Scheme::Http, 7),
        [head @ .., _] if starts_with(head, b"https://") => (Scheme::Https, 8),
        _ => return Err(Refusal::bad("target is neither a path nor an http url")),
    };
    let end = target[start..]
        .iter()
        .position(|byte| matches!(byte, b'/' | b'?'))
        .map_or(target.len(), |at| start + at);
    if authority_port(&target[start..end]).is_none() {
        return Err(Refusal::bad("target url has an invalid authority"));
    }
    if end < target.len() {
        if target[end] == b'?' {
            return Err(Refusal::bad("target url has a query without a path"));
        }
        valid_path(&target[end..])?;
    }
    Ok(Target { scheme: Some(scheme), authority: Some(start..end), path: end..target.len() })
}

/// Whether these bytes may be a path with query: visible ASCII, begins with `/`, no fragment, no backslash.
pub(crate) fn valid_path(path: &[u8]) -> Result<(), Refusal> {
    if path.first() != Some(&b'/') {
        return Err(Refusal::bad("path does not begin with /"));
    }
    match path.iter().find(|byte| !(0x21..0x7f).contains(*byte) || matches!(byte, b'#' | b'\\')) {
        None => Ok(()),
        Some(b'#') => Err(Refusal::bad("path has a fragment")),
        Some(b'\\') => Err(Refusal::bad("path has a backslash")),
        Some(_) => Err(Refusal::bad("path has a byte that is not visible ascii")),
    }
}

/// Whether these bytes may be an authority: host (name, IPv4, bracketed IPv6) and optional port, no user info.
pub(crate) fn valid_authority(authority: &[u8]) -> bool {
    authority_port(authority).is_some()
}

/// The port of a valid authority: `Some(None)` if it names none, `None` if the authority is invalid.
pub(crate) fn authority_port(authority: &[u8]) -> Option<Option<u16>> {
    let (host, port) = if authority.first() == Some(&b'[') {
        let end = authority.iter().position(|byte| *byte == b']')?;
        let inside = std::str::from_utf8(&authority[1..end]).ok()?;
        inside.parse::<std::net::Ipv6Addr>().ok()?;
        (&authority[..=end], &authority[end + 1..])
    } else {
        let end = authority.iter().position(|byte| *byte == b':').unwrap_or(authority.len());
        if authority[..end].iter().any(|byte| !is_host(*byte)) {
            return None;
        }
        (&authority[..end], &authority[end..])
    };
    if host.is_empty() || host.len() > 255 {
        return None;
    }
    match port {
        [] => Some(None),
        [b':', digits @ ..] if !digits.is_empty() && digits.len() <= 5 => {
            let port = digits.iter().try_fold(0u32, |sum, byte| {
                byte.is_ascii_digit().then(|| sum * 10 + u32::from(byte - b'0'))
            })?;
            u16::try_from(port).ok().filter(|port| *port != 0).map(Some)
        }
        _ => None,
    }
}

/// Whether two authorities name the same place when one may spell out the scheme's default port.
pub(crate) fn same_authority(a: &[u8], b: &[u8], scheme: Scheme) -> bool {
    let default: &[u8] = match scheme {
        Scheme::Http => b":80",
        Scheme::Https => b":443",
    };
    let bare = |text: &[u8]| text.strip_suffix(default).unwrap_or(text).to_ascii_lowercase();
    a == b || bare(a) == bare(b)
}

fn is_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'.'
                | b'_'
                | b'~'
                | b'%'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b';'
                | b'='
        )
}

fn starts_with(text: &[u8], prefix: &[u8]) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_four_target_forms_are_taken_each_with_its_method() {
        for (method, target, want) in [
            ("GET", "/", true),
            ("GET", "/a/b?c=d&e", true),
            ("GET", "//x", true),
            ("OPTIONS", "*", true),
            ("GET", "*", false),
            ("GET", "http://a/b", true),
            ("GET", "HTTP://a:80", true),
            ("GET", "https://a/b?c", true),
            ("GET", "http://", false),
            ("GET", "http://a?b", false),
            ("GET", "http://u@a/", false),
            ("GET", "ftp://a/", false),
            ("GET", "foo", false),
            ("GET", "a:80", false),
            ("GET", "@evil", false),
            ("GET", "/a#b", false),
            ("GET", "/a\\b", false),
            ("GET", "/\u{e4}", false),
            ("GET", "", false),
            ("CONNECT", "a:443", true),
            ("CONNECT", "[::1]:443", true),
            ("CONNECT", "a", false),
            ("CONNECT", "/a", false),
        ] {
            let method = Method::from_bytes(method.as_bytes()).expect("a token");
            assert_eq!(parse(&method, target.as_bytes()).is_ok(), want, "{method} {target}");
        }
    }

    #[test]
    fn an_authority_is_one_host_and_perhaps_a_port() {
        for (authority, want) in [
            ("reviews", Some(None)),
            ("reviews.default.svc:9080", Some(Some(9080))),
            ("10.0.0.1:1", Some(Some(1))),
            ("[::1]", Some(None)),
            ("[::1]:65535", Some(Some(65535))),
            ("", None),
            (":80", None),
            ("a:", None),
            ("a:0", None),
            ("a:65536", None),
            ("a:8o", None),
            ("a,b", None),
            ("a b", None),
            ("u@a", None),
            ("a/b", None),
            ("[::1", None),
            ("[x]", None),
            ("::1", None),
        ] {
            assert_eq!(authority_port(authority.as_bytes()), want, "{authority}");
        }
        assert!(same_authority(b"a:80", b"A", Scheme::Http));
        assert!(!same_authority(b"a:443", b"a", Scheme::Http));
    }
}
