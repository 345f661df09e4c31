//! Headers that the proxy itself answers for: what a client may not say, and what is said about it.
//!
//! In: a request as received, the connection it came on. Out: the same request, cleaned and completed. Kept true: no header that the mesh
//! trusts survives from a peer that is not trusted to set it. Not here: the route's own changes (`router`).

use std::fmt::Write;

use mesh_traffic::{
    listener::{ForwardClientCert, HttpManager},
    names::Direction,
    plan::literal_value,
    route::HeaderOp,
};

use super::trace;
use crate::{
    codec::{Head, Known, Scheme},
    listen::Downstream,
};

/// Headers of Envoy's that a client inside the mesh may set for its own sidecar.
const FROM_APPS: &[Known] = &[
    Known::XEnvoyExpectedRqTimeoutMs,
    Known::XEnvoyAttemptCount,
    Known::XEnvoyDecoratorOperation,
    Known::XEnvoyExternalAddress,
    Known::XEnvoyInternal,
    Known::XEnvoyDownstreamServiceCluster,
    Known::XEnvoyDownstreamServiceNode,
    Known::XEnvoyForceTrace,
    Known::XEnvoyIpTags,
];

/// Cleans and completes a request's head. `random` gives the request id.
pub fn arrive(head: &mut Head, conn: &Downstream, manager: &HttpManager, mut random: impl FnMut() -> u64) {
    let edge = manager.use_remote_address;
    // Mixer joins by verified identity and address; what anyone says about its workload in a header counts for nothing.
    if conn.peer.is_none() || manager.direction == Direction::Outbound {
        head.remove(Known::XIstioAttributes);
    }
    if edge {
        // The edge of the mesh: nothing of this kind is believed.
        head.retain(|name, _| {
            !(name.starts_with("x-envoy-") || name == "x-istio-attributes" || name.starts_with("x-b3-envoy"))
        });
        head.remove("x-envoy-peer-metadata");
        head.remove(Known::XRequestId);
    } else if conn.peer.is_none() {
        // Plaintext: an application of our own pod, or someone outside the mesh.
        for name in FROM_APPS {
            head.remove(*name);
        }
        head.remove("x-envoy-original-path");
        head.remove("x-envoy-original-host");
        head.remove("x-envoy-peer-metadata");
        head.remove("x-envoy-peer-metadata-id");
    }
    client_cert(head, conn, manager);
    let peer = conn.remote.ip();
    if edge && !manager.skip_xff_append {
        if manager.xff_trusted_hops == 0 {
            head.remove(Known::XForwardedFor);
        }
        let value = match head.get_joined(Known::XForwardedFor) {
            Some(before) => format!("{},{peer}", String::from_utf8_lossy(&before)),
            None => peer.to_string(),
        };
        head.set(Known::XForwardedFor, value);
    }
    let scheme = if conn.tls && head.scheme() == Scheme::Https { "https" } else { "http" };
    if edge {
        head.set(Known::XForwardedProto, if conn.tls { "https" } else { "http" });
        head.remove(Known::XForwardedHost);
    } else {
        head.set_if_absent(Known::XForwardedProto, scheme);
    }
    if !head.contains(Known::XRequestId) {
        head.set(Known::XRequestId, request_id(random(), random()));
    }
}

/// A random UUID.
fn request_id(high: u64, low: u64) -> [u8; 36] {
    let high = high & 0xffff_ffff_ffff_0fff | 0x4000;
    let low = low & 0x3fff_ffff_ffff_ffff | 0x8000_0000_0000_0000;
    let digits = trace::Id::of(&[high, low]);
    let mut id = [b'-'; 36];
    for (to, from) in [(0..8, 0..8), (9..13, 8..12), (14..18, 12..16), (19..23, 16..20), (24..36, 20..32)] {
        id[to].copy_from_slice(&digits.as_bytes()[from]);
    }
    id
}

/// `x-forwarded-client-cert`, by the listener's rule (Envoy's HttpConnectionManager).
fn client_cert(head: &mut Head, conn: &Downstream, manager: &HttpManager) {
    use ForwardClientCert as Rule;
    let mutual = conn.peer.is_some();
    match manager.forward_client_cert {
        Rule::AlwaysForwardOnly => {}
        Rule::Sanitize => {
            head.remove(Known::XForwardedClientCert);
        }
        _ if !mutual => {
            head.remove(Known::XForwardedClientCert);
        }
        Rule::ForwardOnly => {}
        rule @ (Rule::AppendForward | Rule::SanitizeSet) => {
            let own = own_element(conn);
            let before = match rule {
                Rule::AppendForward => head.get_joined(Known::XForwardedClientCert),
                _ => None,
            };
            let value = match before {
                Some(before) => format!("{},{own}", String::from_utf8_lossy(&before)),
                None => own,
            };
            head.set(Known::XForwardedClientCert, value);
        }
    }
}

/// What we know of the peer, as Istio asks for it: by, hash, subject, URI.
fn own_element(conn: &Downstream) -> String {
    let mut element = String::new();
    if let Some(own) = conn.worker.own_principal() {
        let _ = write!(element, "By=spiffe://{own};");
    }
    if let Some(peer) = &conn.peer {
        let _ = write!(element, "Hash={};Subject=\"\";URI={}", peer.leaf_hash(), peer.id().as_str());
    }
    element
}

/// Applies a route's changes to a head.
pub fn apply<'a>(head: &mut Head, ops: impl IntoIterator<Item = &'a HeaderOp>) {
    for op in ops {
        match op {
            HeaderOp::Remove(name) => {
                head.remove(&**name);
            }
            HeaderOp::Set(name, _) | HeaderOp::Add(name, _) => {
                let value = literal_value(op).unwrap_or_default();
                match (&**name, op) {
                    (":authority" | "host", _) => head.set_authority(&value),
                    (name, _) if name.starts_with(':') => {}
                    (name, HeaderOp::Add(..)) => head.append(name, &*value),
                    (name, _) => head.set(name, &*value),
                }
            }
        }
    }
}

/// The path in the form that is judged and forwarded: dot segments resolved, unreserved letters decoded (RFC 3986 §6.2.2).
/// `None` when it stays as it is.
///
/// # Errors
/// Why the path cannot be judged.
pub fn normalize_path(path: &str, merge_slashes: bool) -> Result<Option<String>, &'static str> {
    let (bare, query) = match path.find(['?', '#']) {
        Some(at) => path.split_at(at),
        None => (path, ""),
    };
    if path.contains('#') {
        return Err("fragment in the request target");
    }
    if !bare.starts_with('/') {
        return Ok(None);
    }
    let odd = bare.contains(['%', '\\']) || bare.contains("/.") || (merge_slashes && bare.contains("//"));
    if !odd {
        return Ok(None);
    }
    let decoded = decode_unreserved(bare)?;
    let mut segments: Vec<&str> = Vec::new();
    let mut parts = decoded[1..].split('/').peekable();
    while let Some(segment) = parts.next() {
        let last = parts.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." && segments.pop().is_none() {
                    return Err("path leaves its root");
                }
                if last {
                    segments.push("");
                }
            }
            "" if merge_slashes && !last => {}
            _ => segments.push(segment),
        }
    }
    let normal = format!("/{}{query}", segments.join("/"));
    Ok((normal != path).then_some(normal))
}

fn decode_unreserved(path: &str) -> Result<String, &'static str> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find(['%', '\\']) {
        out.push_str(&rest[..at]);
        if rest.as_bytes()[at] == b'\\' {
            out.push('/');
            rest = &rest[at + 1..];
            continue;
        }
        let code = rest.get(at + 1..at + 3).ok_or("broken percent-encoding")?;
        let byte = u8::from_str_radix(code, 16).map_err(|_| "broken percent-encoding")?;
        match byte {
            0 => return Err("NUL in the path"),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => {
                out.push('%');
                out.push_str(&code.to_ascii_uppercase());
            }
        }
        rest = &rest[at + 3..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_that_is_judged_is_the_path_that_is_forwarded() {
        for (path, merge, want) in [
            ("/a", false, "/a"),
            ("/a/../b", false, "/b"),
            ("/a/./b/", false, "/a/b/"),
            ("/%61dmin", false, "/admin"),
            ("/a/%2e%2E/b?x=%61", false, "/b?x=%61"),
            ("/a\\b", false, "/a/b"),
            ("//a", false, "//a"),
            ("//a//b", true, "/a/b"),
            ("/a%2fb", false, "/a%2Fb"),
            ("/a/..", false, "/"),
            ("/a/b/.", false, "/a/b/"),
            ("/a?x=/../y", false, "/a?x=/../y"),
        ] {
            let got = normalize_path(path, merge).expect("judged").unwrap_or_else(|| path.to_owned());
            assert_eq!(got, want, "{path}");
        }
        for path in ["/..", "/a/../../b", "/%", "/%zz", "/%00", "/a#b"] {
            assert!(normalize_path(path, false).is_err(), "{path}");
        }
    }

    #[test]
    fn request_ids_are_version_4_uuids() {
        let id = request_id(u64::MAX, u64::MAX);
        assert_eq!(id, *b"ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(request_id(0, 0), *b"00000000-0000-4000-8000-000000000000");
    }
}
