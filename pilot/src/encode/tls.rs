//! TLS contexts and secrets.
//!
//! In: the model's settings. Out: transport sockets, secrets. Kept true: the workload's own certificate comes from its
//! agent, never from pilot; gateways' certificates come over the stream they asked on. Not here: who may have a secret.

use super::{AGENT_CLUSTER, ads, file, inline, matchers, truth};
use mesh_traffic::{
    matchers::StringMatch,
    tls::{Certificate, DownstreamTls, Roots, Secret, UpstreamTls, Validation, Version, Versions, WORKLOAD_CERTIFICATE, WORKLOAD_ROOTS},
};
use xds::envoy::{
    config::core::v3 as core,
    extensions::transport_sockets::{raw_buffer::v3::RawBuffer, tls::v3 as pb},
};

/// Plaintext, written out.
pub(super) fn raw() -> core::TransportSocket {
    wrap("envoy.transport_sockets.raw_buffer", &RawBuffer {})
}

fn wrap<M: prost::Message + prost::Name>(name: &str, message: &M) -> core::TransportSocket {
    core::TransportSocket {
        name: name.to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(xds::pack(message))),
    }
}

pub(super) fn upstream(from: &UpstreamTls) -> core::TransportSocket {
    let certificates = from.certificate.as_ref().map(std::slice::from_ref).unwrap_or_default();
    let wire = pb::UpstreamTlsContext {
        common_tls_context: Some(common(certificates, Some(&from.validation), &from.alpn, from.versions)),
        sni: from.sni.as_deref().unwrap_or_default().to_owned(),
        ..Default::default()
    };
    wrap("envoy.transport_sockets.tls", &wire)
}

pub(super) fn downstream(from: &DownstreamTls) -> core::TransportSocket {
    let wire = pb::DownstreamTlsContext {
        common_tls_context: Some(common(&from.certificates, from.validation.as_ref(), &from.alpn, from.versions)),
        require_client_certificate: Some(truth(from.require_client_certificate)),
        ..Default::default()
    };
    wrap("envoy.transport_sockets.tls", &wire)
}

fn common(
    certificates: &[Certificate],
    validation: Option<&Validation>,
    alpn: &[mesh_traffic::names::Name],
    versions: Versions,
) -> pb::CommonTlsContext {
    let mut wire = pb::CommonTlsContext {
        alpn_protocols: alpn.iter().map(ToString::to_string).collect(),
        validation_context_type: validation.and_then(validation_of),
        ..Default::default()
    };
    for certificate in certificates {
        match certificate {
            Certificate::Sds(name) => wire.tls_certificate_sds_secret_configs.push(sds(name)),
            Certificate::Files { chain, key } => wire.tls_certificates.push(pb::TlsCertificate {
                certificate_chain: Some(file(chain)),
                private_key: Some(file(key)),
                ..Default::default()
            }),
            Certificate::Inline(pair) => wire.tls_certificates.push(pb::TlsCertificate {
                certificate_chain: Some(inline(&pair.chain)),
                private_key: Some(inline(&pair.key)),
                ..Default::default()
            }),
        }
    }
    if versions != Versions::default() {
        let number = |v| match v {
            Version::Tls12 => pb::tls_parameters::TlsProtocol::TlSv12,
            Version::Tls13 => pb::tls_parameters::TlsProtocol::TlSv13,
        };
        wire.tls_params = Some(pb::TlsParameters {
            tls_minimum_protocol_version: number(versions.min).into(),
            tls_maximum_protocol_version: number(versions.max).into(),
            ..Default::default()
        });
    }
    wire
}

fn validation_of(from: &Validation) -> Option<pb::common_tls_context::ValidationContextType> {
    use pb::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType as V};
    let names = from.names.iter().map(|name| pb::SubjectAltNameMatcher {
        san_type: san_type(name).into(),
        matcher: Some(matchers::string(name, false)),
        ..Default::default()
    });
    let mut context =
        pb::CertificateValidationContext { match_typed_subject_alt_names: names.collect(), ..Default::default() };
    match from.roots.as_ref()? {
        Roots::Sds(name) => Some(V::CombinedValidationContext(CombinedCertificateValidationContext {
            default_validation_context: Some(context),
            validation_context_sds_secret_config: Some(sds(name)),
            ..Default::default()
        })),
        Roots::File(path) => {
            context.trusted_ca = Some(file(path));
            Some(V::ValidationContext(context))
        }
        Roots::Inline(pem) => {
            context.trusted_ca = Some(inline(pem));
            Some(V::ValidationContext(context))
        }
        Roots::System => {
            context.system_root_certs = Some(pb::certificate_validation_context::SystemRootCerts {});
            Some(V::ValidationContext(context))
        }
    }
}

/// Identities are URIs, everything else that a certificate may name is a DNS name here.
fn san_type(name: &StringMatch) -> pb::subject_alt_name_matcher::SanType {
    let uri = match name {
        StringMatch::Exact(s) | StringMatch::Prefix(s) => s.starts_with("spiffe://"),
        StringMatch::Suffix(_) | StringMatch::Contains(_) => true,
        StringMatch::Regex(r) => r.pattern().contains("spiffe"),
    };
    if uri { pb::subject_alt_name_matcher::SanType::Uri } else { pb::subject_alt_name_matcher::SanType::Dns }
}

fn sds(name: &str) -> pb::SdsSecretConfig {
    let source = if name == WORKLOAD_CERTIFICATE || name == WORKLOAD_ROOTS { agent() } else { ads() };
    pb::SdsSecretConfig { name: name.to_owned(), sds_config: Some(source) }
}

/// The agent next to an Envoy; our own proxy answers these names itself.
fn agent() -> core::ConfigSource {
    use core::{config_source::ConfigSourceSpecifier, grpc_service};
    let target = grpc_service::EnvoyGrpc { cluster_name: AGENT_CLUSTER.to_owned(), ..Default::default() };
    let api = core::ApiConfigSource {
        api_type: core::api_config_source::ApiType::Grpc.into(),
        transport_api_version: 2,
        set_node_on_first_message_only: true,
        grpc_services: vec![core::GrpcService {
            target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(target)),
            ..Default::default()
        }],
        ..Default::default()
    };
    core::ConfigSource {
        initial_fetch_timeout: Some(super::duration(std::time::Duration::ZERO)),
        resource_api_version: 2,
        config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(api)),
        ..Default::default()
    }
}

/// A secret under its name.
pub fn secret(name: &str, from: &Secret) -> pb::Secret {
    let kind = match from {
        Secret::Certificate(pair) => pb::secret::Type::TlsCertificate(pb::TlsCertificate {
            certificate_chain: Some(inline(&pair.chain)),
            private_key: Some(inline(&pair.key)),
            ..Default::default()
        }),
        Secret::Roots(pem) => pb::secret::Type::ValidationContext(pb::CertificateValidationContext {
            trusted_ca: Some(inline(pem)),
            ..Default::default()
        }),
    };
    pb::Secret { name: name.to_owned(), r#type: Some(kind) }
}
