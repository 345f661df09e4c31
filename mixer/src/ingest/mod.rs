//! The protocols mixer is spoken to in.
//!
//! In: gRPC and HTTP requests. Out: bags for [`crate::core::Mixer`], spans for the recorder and for handlers.
//! Kept true: every size a peer decides is bounded; what a peer says of itself counts as far as TLS proves it.
//! Not here: listening (`serve`), what bags lead to (`dispatch`).

pub mod als;
pub mod authz;
pub mod mixer;
pub mod native;
pub mod otlp;

use std::sync::Arc;

use mesh_identity::grpc::ConnInfo;
use tonic::{Extensions, Status};

use crate::{
    adapters::item::{Item, Span},
    attributes::{StringMap, Text},
    config::Template,
    core::Mixer,
    workload::Workloads,
};

/// Words of a SPIFFE id without its scheme, as attributes have it.
pub(crate) fn principal(id: &str) -> &str {
    id.strip_prefix("spiffe://").unwrap_or(id)
}

/// Makes sure that the peer may speak for pod `uid`: over mTLS its identity must be that pod's. In plaintext, which is
/// for loopback and for meshes without certificates, the peer's word stands.
pub(crate) fn speaks_for(extensions: &Extensions, uid: &str, workloads: &Workloads) -> Result<(), Status> {
    let Some(peer) = extensions.get::<ConnInfo>().and_then(|info| info.peer.as_ref()) else { return Ok(()) };
    let principal = peer.id().principal().to_string();
    match workloads.by_uid(uid) {
        Some(pod) if pod.is(&principal) => Ok(()),
        Some(_) => Err(Status::permission_denied(format!("{principal} is not the identity of {uid}"))),
        None => Ok(()),
    }
}

/// `kubernetes://pod.ns` from an xDS node id `sidecar~IP~pod.ns~domain`.
pub(crate) fn node_uid(node_id: &str) -> Option<Text> {
    let pod = node_id.split('~').nth(2).filter(|pod| !pod.is_empty())?;
    Some(format!("kubernetes://{pod}").into())
}

/// Takes a span as it was received: keeps it, and hands it to every handler that some rule gives spans to.
pub fn pass_span(mixer: &Mixer, span: &Arc<Span>) {
    mixer.recorder.span(span.clone());
    for handler in mixer.generation().handlers_of(Template::TraceSpan) {
        handler.push(Item::Span(span.clone()));
    }
}

/// The parameters of a query string, percent-decoded; of a repeated one the last stays.
pub(crate) fn query_params(query: &str) -> StringMap {
    let decode = |text: &str| {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.bytes();
        while let Some(byte) = rest.next() {
            let hex = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
            bytes.push(match byte {
                b'+' => b' ',
                b'%' => {
                    let mut ahead = rest.clone();
                    match (hex(ahead.next()), hex(ahead.next())) {
                        (Some(high), Some(low)) => {
                            rest = ahead;
                            u8::try_from(high * 16 + low).unwrap_or(b'%')
                        }
                        _ => b'%',
                    }
                }
                other => other,
            });
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_parameters_are_decoded_and_broken_escapes_left_alone() {
        let map = query_params("a=1&b=x%20y+z&a=2&c&d=%zz%4");
        let get = |name: &str| map.get(name).map(|value| value.to_string());
        assert_eq!((get("a"), get("b")), (Some("2".into()), Some("x y z".into())));
        assert_eq!((get("c"), get("d")), (Some(String::new()), Some("%zz%4".into())));
    }

    #[test]
    fn a_node_id_names_its_pod() {
        let uid = node_uid("sidecar~10.0.0.1~web-1.default~default.svc.cluster.local");
        assert_eq!(uid.as_deref(), Some("kubernetes://web-1.default"));
        assert_eq!(node_uid("sidecar"), None);
    }
}
