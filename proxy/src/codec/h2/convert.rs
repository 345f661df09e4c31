//! HTTP/2 heads to and from [`Head`], with the rules that `h2` leaves to its users.
//! In: `http` requests, responses and trailers as `h2` hands them out. Out: [`Head`], [`Fields`], or the [`Refusal`] to answer with; and back.
//! Kept true: one authority, which `host` may only repeat; names and values obey the rules of HTTP/1 heads; no connection fields.
//! Not here: bodies (`body`), pseudo-header syntax (the `h2` crate).

use bytes::BytesMut;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode, Uri};

use crate::codec::fields::{Fields, Span};
use crate::codec::h1::{valid_authority, valid_path};
use crate::codec::head::{Head, Scheme, Version, digits};
use crate::codec::limits::{Limits, Refusal};
use crate::codec::name::Known;

/// A request's head; also whether the client waits for `100 Continue`.
pub(crate) fn request(
    parts: &http::request::Parts,
    wire_scheme: Scheme,
    limits: &Limits,
) -> Result<(Head, bool), Refusal> {
    if parts.method == Method::CONNECT {
        return Err(Refusal::with(StatusCode::METHOD_NOT_ALLOWED, "connect is not served over http/2"));
    }
    if parts.method == Method::TRACE && !limits.allow_trace {
        return Err(Refusal::with(StatusCode::METHOD_NOT_ALLOWED, "trace is not allowed here"));
    }
    let scheme = match parts.uri.scheme_str() {
        Some("http") => Scheme::Http,
        Some("https") => Scheme::Https,
        // `h2` drops a scheme that it has checked if there is no `:authority` beside it.
        None if parts.uri.authority().is_none() => wire_scheme,
        _ => return Err(Refusal::bad("scheme is neither http nor https")),
    };
    if limits.strict_scheme && scheme != wire_scheme {
        return Err(Refusal::bad("scheme is not the connection's"));
    }
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    if path.len() > limits.target_bytes {
        return Err(Refusal::with(StatusCode::URI_TOO_LONG, "request target too long"));
    }
    if path == "*" {
        if parts.method != Method::OPTIONS {
            return Err(Refusal::bad("target * is for OPTIONS only"));
        }
    } else {
        valid_path(path.as_bytes())?;
    }

    let mut hosts = parts.headers.get_all(http::header::HOST).iter().map(HeaderValue::as_bytes);
    let (host, second) = (hosts.next(), hosts.next());
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    let authority = match (authority, host) {
        (_, Some(_)) if second.is_some() => return Err(Refusal::bad("more than one host")),
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
            return Err(Refusal::bad("authority and host differ"));
        }
        (Some(authority), _) => authority,
        (None, Some(host)) => host,
        (None, None) => return Err(Refusal::bad("no authority")),
    };
    if !valid_authority(authority) {
        return Err(Refusal::bad("invalid authority"));
    }

    let rules = Rules { underscores: limits.allow_underscores, obs_text: limits.allow_obs_text };
    let mut block = BytesMut::with_capacity(1024);
    let path = put(&mut block, path.as_bytes());
    let authority = put(&mut block, authority);
    let mut expect_continue = false;
    let mut fields = take_fields(&parts.headers, block, limits, rules)?;
    if let Some(expect) = fields.get(Known::Expect) {
        if !expect.eq_ignore_ascii_case(b"100-continue") {
            return Err(Refusal::with(StatusCode::EXPECTATION_FAILED, "unknown expectation"));
        }
        expect_continue = true;
        fields.remove(Known::Expect);
    }
    let mut head = Head::received_request(parts.method.clone(), Version::Http2, scheme, fields);
    head.set_received_target(authority, path);
    Ok((head, expect_continue))
}

/// A response's head.
pub(crate) fn response(parts: &http::response::Parts, limits: &Limits) -> Result<Head, Refusal> {
    let rules = Rules { underscores: true, obs_text: true };
    let fields = take_fields(&parts.headers, BytesMut::with_capacity(512), limits, rules)?;
    Ok(Head::received_response(parts.status, Version::Http2, fields))
}

/// Trailers, without the names that trailers may not bring.
pub(crate) fn trailers(map: &HeaderMap, limits: &Limits) -> Result<Fields, Refusal> {
    let rules = Rules { underscores: true, obs_text: true };
    let mut fields = take_fields(map, BytesMut::new(), limits, rules)?;
    fields.retain_known(|known, _| !known.is_some_and(Known::is_forbidden_in_trailers));
    Ok(fields)
}

#[derive(Clone, Copy)]
struct Rules {
    underscores: bool,
    obs_text: bool,
}

/// Copies fields into one block; cookie crumbs become one field again (RFC 9113 §8.2.3). `host` is left out.
fn take_fields(
    map: &HeaderMap,
    mut block: BytesMut,
    limits: &Limits,
    rules: Rules,
) -> Result<Fields, Refusal> {
    if map.len() > limits.head_fields {
        return Err(Refusal::with(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too many header fields"));
    }
    let mut fields = Fields::with_capacity(map.len() + 4);
    let mut cookies: Option<Vec<u8>> = None;
    let mut lengths = 0u8;
    for (name, value) in map {
        let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
        let known = Known::from_lower(name);
        if !rules.underscores && name.contains(&b'_') {
            return Err(Refusal::bad("underscore in header name"));
        }
        if !rules.obs_text && !value.is_ascii() {
            return Err(Refusal::bad("byte above 0x7f in header value"));
        }
        if matches!(value.first(), Some(b' ' | b'\t')) || matches!(value.last(), Some(b' ' | b'\t')) {
            return Err(Refusal::bad("space around header value"));
        }
        match known {
            Some(Known::Host) => continue,
            Some(Known::Cookie) => {
                let cookies = cookies.get_or_insert_default();
                if !cookies.is_empty() {
                    cookies.extend_from_slice(b"; ");
                }
                cookies.extend_from_slice(value);
                continue;
            }
            Some(Known::ContentLength) => {
                lengths = lengths.saturating_add(1);
                if lengths > 1 || digits(value).is_none() {
                    return Err(Refusal::bad("invalid content-length"));
                }
            }
            Some(Known::Te) if !value.eq_ignore_ascii_case(b"trailers") => continue,
            Some(Known::Te) => {}
            Some(known) if known.is_hop_by_hop() => continue,
            _ => {}
        }
        let name = if known.is_some() { Span::default() } else { put(&mut block, name) };
        let value = put(&mut block, value);
        fields.push_received(known, name, value);
    }
    if let Some(cookies) = cookies {
        let value = put(&mut block, &cookies);
        fields.push_received(Some(Known::Cookie), Span::default(), value);
    }
    fields.set_block(block.freeze());
    Ok(fields)
}

fn put(block: &mut BytesMut, text: &[u8]) -> Span {
    let at = block.len();
    block.extend_from_slice(text);
    Span::received(at, text.len())
}

/// A request for `h2` to send. Fails if authority or path do not make a URL.
pub(crate) fn to_request(head: &Head, length: Option<u64>) -> Result<http::Request<()>, http::Error> {
    let uri = Uri::builder()
        .scheme(head.scheme().as_str())
        .authority(head.authority())
        .path_and_query(head.path())
        .build()?;
    let mut request = http::Request::builder()
        .version(http::Version::HTTP_2)
        .method(head.method().clone())
        .uri(uri)
        .body(())?;
    *request.headers_mut() = to_map(head.fields(), |known, value| match known {
        Some(Known::ContentLength | Known::Host | Known::Expect) => false,
        Some(Known::Te) => value.eq_ignore_ascii_case(b"trailers"),
        Some(known) => !known.is_hop_by_hop(),
        None => true,
    });
    put_length(request.headers_mut(), length.filter(|length| *length > 0));
    Ok(request)
}

/// A response for `h2` to send. `keep_length` leaves `content-length` as it is in the head (HEAD, 304).
pub(crate) fn to_response(head: &Head, length: Option<u64>, keep_length: bool) -> http::Response<()> {
    let mut response = http::Response::new(());
    *response.version_mut() = http::Version::HTTP_2;
    *response.status_mut() = head.status();
    *response.headers_mut() = to_map(head.fields(), |known, _| match known {
        Some(Known::ContentLength) => keep_length,
        Some(Known::Host) => false,
        Some(known) => !known.is_hop_by_hop(),
        None => true,
    });
    if !keep_length {
        put_length(response.headers_mut(), length);
    }
    response
}

/// Trailers for `h2` to send.
pub(crate) fn to_trailers(fields: &Fields) -> HeaderMap {
    to_map(fields, |known, _| !known.is_some_and(Known::is_forbidden_in_trailers))
}

fn put_length(map: &mut HeaderMap, length: Option<u64>) {
    if let Some(length) = length {
        map.insert(http::header::CONTENT_LENGTH, HeaderValue::from(length));
    }
}

fn to_map(fields: &Fields, mut pass: impl FnMut(Option<Known>, &[u8]) -> bool) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(fields.field_count() + 1);
    for (known, name, value) in fields.iter_known() {
        if !pass(known, value) {
            continue;
        }
        let name = match known {
            Some(known) => Ok(HeaderName::from_static(known.as_str())),
            None => HeaderName::from_bytes(name.as_bytes()),
        };
        // Both were checked when they came into the head, so nothing is lost here.
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
            map.append(name, value);
        }
    }
    map
}
