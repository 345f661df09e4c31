//! TLS contexts: mutual TLS within the mesh, and what DestinationRules and Gateways write.
//!
//! In: a client's rule and the servers' identities; a server's mode. Out: contexts of the traffic model.
//! Kept true: a written TLS block turns automatic mutual TLS off for that host; automatic TLS is decided per endpoint.
//! Not here: the modes that servers ask for (`model::auth`).

use crate::model::service::{Endpoint, Service};
use mesh_config::kinds::{ClientTls, ClientTlsMode, MeshConfig};
use mesh_traffic::{
    cluster::{ClusterTls, Protocol, TlsMatch},
    matchers::StringMatch,
    names::Name,
    tls::{
        Certificate, DownstreamTls, Roots, UpstreamTls, Validation, Versions, WORKLOAD_CERTIFICATE,
        WORKLOAD_ROOTS,
    },
};
use std::{collections::BTreeSet, sync::Arc};

/// Label of an endpoint whose proxy takes mutual TLS.
pub const TLS_MODE: (&str, &str) = ("tlsMode", "istio");

/// What a client sends to the endpoints of one cluster.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientMode {
    /// Decided per endpoint.
    Automatic,
    /// Never TLS.
    Plaintext,
    /// As written.
    Written(ClientTls),
}

/// What a client does towards a service, given the TLS block in force.
pub fn client_mode(mesh: &MeshConfig, service: &Service, written: Option<ClientTls>) -> ClientMode {
    match written {
        Some(tls) if tls.mode == ClientTlsMode::Disable => ClientMode::Plaintext,
        Some(tls) => ClientMode::Written(tls),
        None if mesh.enable_auto_mtls && !service.external => ClientMode::Automatic,
        None => ClientMode::Plaintext,
    }
}

/// TLS of a cluster.
pub fn cluster_tls<'a>(
    mesh: &MeshConfig,
    mode: &ClientMode,
    sni: &str,
    http: bool,
    protocol: Protocol,
    service: &Service,
    endpoints: impl Iterator<Item = &'a Endpoint>,
) -> ClusterTls {
    match mode {
        ClientMode::Plaintext => ClusterTls::default(),
        ClientMode::Automatic => {
            let names = identities(mesh, endpoints, &service.subject_alt_names);
            let tls = mesh_context(names, sni, alpn(http, protocol));
            ClusterTls {
                default: None,
                matches: vec![
                    TlsMatch {
                        name: "tlsMode-istio".into(),
                        labels: vec![(TLS_MODE.0.into(), TLS_MODE.1.into())],
                        tls: Some(Arc::new(tls)),
                    },
                    TlsMatch { name: "tlsMode-disabled".into(), labels: Vec::new(), tls: None },
                ],
            }
        }
        ClientMode::Written(tls) => {
            let context = match tls.mode {
                ClientTlsMode::IstioMutual => {
                    let names = if tls.subject_alt_names.is_empty() {
                        identities(mesh, endpoints, &service.subject_alt_names)
                    } else {
                        tls.subject_alt_names.iter().map(|n| StringMatch::Exact(n.as_str().into())).collect()
                    };
                    let sni = tls.sni.as_deref().filter(|s| !s.is_empty()).unwrap_or(sni);
                    mesh_context(names, sni, alpn(http, protocol))
                }
                _ => origin_context(tls, protocol),
            };
            ClusterTls { default: Some(Arc::new(context)), matches: Vec::new() }
        }
    }
}

/// Identities that a server may prove: those of its pods' service accounts.
fn identities<'a>(
    mesh: &MeshConfig,
    endpoints: impl Iterator<Item = &'a Endpoint>,
    written: &[String],
) -> Vec<StringMatch> {
    let accounts: BTreeSet<String> = endpoints
        .filter_map(|e| e.identity.as_ref())
        .flat_map(|(namespace, account)| {
            let domains = std::iter::once(&mesh.trust_domain).chain(&mesh.trust_domain_aliases);
            domains.map(move |domain| format!("spiffe://{domain}/ns/{namespace}/sa/{account}"))
        })
        .chain(written.iter().cloned())
        .collect();
    accounts.into_iter().map(|id| StringMatch::Exact(id.into())).collect()
}

/// Protocols that a client offers: Istio's own names tell a server's proxy what is inside before it has ended TLS.
fn alpn(http: bool, protocol: Protocol) -> Vec<Name> {
    let names: &[&str] = match (http, protocol) {
        (false, _) => &["istio"],
        (true, Protocol::Http2) => &["istio-h2", "h2"],
        (true, _) => &["istio-http/1.1", "http/1.1"],
    };
    names.iter().map(|n| Name::from(*n)).collect()
}

fn mesh_context(names: Vec<StringMatch>, sni: &str, alpn: Vec<Name>) -> UpstreamTls {
    UpstreamTls {
        certificate: Some(Certificate::Sds(WORKLOAD_CERTIFICATE.into())),
        validation: Validation { roots: Some(Roots::Sds(WORKLOAD_ROOTS.into())), names },
        sni: Some(sni.into()),
        alpn,
        versions: Versions::default(),
    }
}

/// TLS to a server outside the mesh (SIMPLE, MUTUAL).
fn origin_context(tls: &ClientTls, protocol: Protocol) -> UpstreamTls {
    let text = |s: &Option<String>| s.as_deref().filter(|s| !s.is_empty()).map(Name::from);
    let credential = text(&tls.credential_name);
    let certificate = match (&credential, tls.mode) {
        (_, ClientTlsMode::Simple) => None,
        (Some(name), _) => Some(Certificate::Sds(super::gateway::secret_name(name))),
        (None, _) => Some(Certificate::Files {
            chain: text(&tls.client_certificate).unwrap_or_default(),
            key: text(&tls.private_key).unwrap_or_default(),
        }),
    };
    let roots = if tls.insecure_skip_verify == Some(true) {
        None
    } else if let Some(name) = &credential {
        Some(Roots::Sds(super::gateway::roots_name(name)))
    } else {
        Some(text(&tls.ca_certificates).filter(|f| &**f != "system").map_or(Roots::System, Roots::File))
    };
    UpstreamTls {
        certificate,
        validation: Validation {
            roots,
            names: tls.subject_alt_names.iter().map(|n| StringMatch::Exact(n.as_str().into())).collect(),
        },
        sni: text(&tls.sni),
        alpn: if protocol == Protocol::Http2 { vec!["h2".into()] } else { Vec::new() },
        versions: Versions::default(),
    }
}

/// TLS that an inbound port ends: mesh certificates only.
pub fn server_context(mesh: &MeshConfig, http: bool) -> DownstreamTls {
    let domains = std::iter::once(&mesh.trust_domain).chain(&mesh.trust_domain_aliases);
    let names = domains.map(|d| StringMatch::Prefix(format!("spiffe://{d}/").into())).collect();
    let alpn: &[&str] = if http {
        &["h2", "http/1.1", "istio-h2", "istio-http/1.1", "istio"]
    } else {
        &["istio", "istio-peer-exchange", "h2", "http/1.1"]
    };
    DownstreamTls {
        certificates: vec![Certificate::Sds(WORKLOAD_CERTIFICATE.into())],
        validation: Some(Validation { roots: Some(Roots::Sds(WORKLOAD_ROOTS.into())), names }),
        require_client_certificate: true,
        alpn: alpn.iter().map(|n| Name::from(*n)).collect(),
        versions: Versions::default(),
    }
}
