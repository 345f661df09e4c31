//! TLS towards clients: the mesh's own certificate, or one from files or secrets.
//!
//! In: a chain's [`DownstreamTls`], what the client offered. Out: an accepted session. Kept true: a protocol is agreed on only if both
//! sides named it; a client that must show a certificate is refused without one. Not here: verification (`mesh_identity`).

use mesh_identity::{
    TrustBundle,
    tls::{Accepted, ClientAuth, MinTls, ServerTls, server},
};
use mesh_traffic::{
    Snapshot,
    tls::{Certificate, DownstreamTls, Roots, Secret, Version, WORKLOAD_CERTIFICATE},
};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{balance::connect::credentials, worker::Shared};

/// Accepts one session.
///
/// # Errors
/// Why there is none.
pub async fn accept<IO: AsyncRead + AsyncWrite + Unpin>(
    shared: &Shared,
    snapshot: &Snapshot,
    tls: &DownstreamTls,
    offered: &[String],
    io: IO,
) -> Result<Accepted<IO>, String> {
    let min = if tls.versions.min == Version::Tls13 { MinTls::V13 } else { MinTls::V12 };
    // Where nothing is common, Envoy goes on without a protocol; rustls would refuse, so it is given no list then.
    let alpn: Vec<Vec<u8>> = tls
        .alpn
        .iter()
        .filter(|name| offered.iter().any(|offer| **offer == ***name))
        .map(|name| name.as_bytes().to_vec())
        .collect();
    let own = tls.certificates.first().ok_or("the chain has no certificate")?;
    if matches!(own, Certificate::Sds(name) if &**name == WORKLOAD_CERTIFICATE) {
        let client_auth = match (&tls.validation, tls.require_client_certificate) {
            (_, true) => ClientAuth::Required,
            (Some(_), false) => ClientAuth::Optional,
            (None, false) => ClientAuth::None,
        };
        let settings = ServerTls { client_auth, alpn, min };
        return shared.identity.accept(&settings, io).await.map_err(|e| e.to_string());
    }
    let credentials = credentials(snapshot, own)?;
    let clients = match &tls.validation {
        Some(validation) if tls.require_client_certificate => match &validation.roots {
            Some(roots) => Some(bundle(snapshot, roots)?),
            None => return Err("client certificates are required, but no roots are named".to_owned()),
        },
        _ => None,
    };
    let config =
        server::file_config(&credentials, clients.as_ref(), &alpn, min).map_err(|e| e.to_string())?;
    server::accept(config, &[], io).await.map_err(|e| e.to_string())
}

fn bundle(snapshot: &Snapshot, roots: &Roots) -> Result<TrustBundle, String> {
    let text = |e: mesh_identity::pem::PemError| e.to_string();
    match roots {
        Roots::File(path) => TrustBundle::from_file(std::path::Path::new(&**path)).map_err(text),
        Roots::Inline(pem) => TrustBundle::from_pem("inline roots", pem).map_err(text),
        Roots::Sds(name) => match snapshot.secrets.get(name).map(|secret| &**secret) {
            Some(Secret::Roots(pem)) => TrustBundle::from_pem(name, pem).map_err(text),
            _ => Err(format!("secret {name} with roots has not arrived")),
        },
        Roots::System => Err("public roots cannot verify clients".to_owned()),
    }
}
