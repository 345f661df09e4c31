//! TLS and secrets → transport sockets and SDS.
//!
//! In: `crate::tls`. Out: transport sockets and Secret messages. Kept true: the workload's own certificate and the mesh's roots are asked of the
//! proxy's own agent, never of pilot. Not here: which context an endpoint gets (`cluster`).

use xds::envoy::{
    config::core::v3::{self as core, data_source::Specifier, transport_socket::ConfigType},
    extensions::transport_sockets::{raw_buffer::v3 as raw_pb, tls::v3 as pb},
};

use super::{ads, boolean, duration, grpc, matchers, plain};
use crate::{
    names::Name,
    tls::{
        Certificate, DownstreamTls, KeyPair, Roots, Secret, UpstreamTls, Validation, Version, Versions,
        WORKLOAD_CERTIFICATE, WORKLOAD_ROOTS,
    },
};

/// Cluster of a proxy's bootstrap that leads to its own agent.
const AGENT: &str = "sds-grpc";
/// Where most systems keep the public roots; our proxy takes the name for the roots that it ships.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Towards an endpoint; plaintext for `None`.
pub(super) fn upstream(from: Option<&UpstreamTls>) -> core::TransportSocket {
    let Some(from) = from else {
        return socket("envoy.transport_sockets.raw_buffer", plain(&raw_pb::RawBuffer {}));
    };
    let validation = Some(&from.validation).filter(|v| **v != Validation::default());
    let common = common(from.certificate.as_slice(), validation, &from.alpn, from.versions);
    let context = pb::UpstreamTlsContext {
        common_tls_context: Some(common),
        sni: from.sni.as_deref().unwrap_or_default().to_owned(),
        ..Default::default()
    };
    socket("envoy.transport_sockets.tls", plain(&context))
}

/// Towards clients.
pub(super) fn downstream(from: &DownstreamTls) -> core::TransportSocket {
    let context = pb::DownstreamTlsContext {
        common_tls_context: Some(common(
            &from.certificates,
            from.validation.as_ref(),
            &from.alpn,
            from.versions,
        )),
        require_client_certificate: boolean(from.require_client_certificate),
        ..Default::default()
    };
    socket("envoy.transport_sockets.tls", plain(&context))
}

fn socket(name: &str, config: xds::google::protobuf::Any) -> core::TransportSocket {
    core::TransportSocket { name: name.to_owned(), config_type: Some(ConfigType::TypedConfig(config)) }
}

fn common(
    certificates: &[Certificate],
    trust: Option<&Validation>,
    alpn: &[Name],
    versions: Versions,
) -> pb::CommonTlsContext {
    use pb::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType as V};
    let named = certificates.iter().filter_map(|one| match one {
        Certificate::Sds(name) => Some(sds(name)),
        Certificate::Files { .. } | Certificate::Inline(_) => None,
    });
    let validation = trust.map(|trust| match &trust.roots {
        Some(Roots::Sds(name)) => V::CombinedValidationContext(CombinedCertificateValidationContext {
            default_validation_context: Some(validation(trust)),
            validation_context_sds_secret_config: Some(sds(name)),
            ..Default::default()
        }),
        _ => V::ValidationContext(validation(trust)),
    });
    pb::CommonTlsContext {
        tls_params: Some(pb::TlsParameters {
            tls_minimum_protocol_version: version(versions.min).into(),
            tls_maximum_protocol_version: version(versions.max).into(),
            ..Default::default()
        }),
        tls_certificates: certificates.iter().filter_map(certificate).collect(),
        tls_certificate_sds_secret_configs: named.collect(),
        alpn_protocols: alpn.iter().map(Name::to_string).collect(),
        validation_context_type: validation,
        ..Default::default()
    }
}

fn version(from: Version) -> pb::tls_parameters::TlsProtocol {
    match from {
        Version::Tls12 => pb::tls_parameters::TlsProtocol::TlSv12,
        Version::Tls13 => pb::tls_parameters::TlsProtocol::TlSv13,
    }
}

/// Certificates that are not secrets of their own.
fn certificate(from: &Certificate) -> Option<pb::TlsCertificate> {
    match from {
        Certificate::Sds(_) => None,
        Certificate::Files { chain, key } => Some(pb::TlsCertificate {
            certificate_chain: Some(file(chain)),
            private_key: Some(file(key)),
            ..Default::default()
        }),
        Certificate::Inline(pair) => Some(key_pair(pair)),
    }
}

fn key_pair(from: &KeyPair) -> pb::TlsCertificate {
    pb::TlsCertificate {
        certificate_chain: Some(inline(&from.chain)),
        private_key: Some(inline(&from.key)),
        ..Default::default()
    }
}

#[allow(
    deprecated,
    reason = "a typed matcher would need to know which kind of name it compares; istiod sends this form too"
)]
fn validation(from: &Validation) -> pb::CertificateValidationContext {
    pb::CertificateValidationContext {
        trusted_ca: match &from.roots {
            None | Some(Roots::Sds(_)) => None,
            Some(Roots::File(path)) => Some(file(path)),
            Some(Roots::Inline(pem)) => Some(inline(pem)),
            Some(Roots::System) => Some(file(SYSTEM_ROOTS)),
        },
        match_subject_alt_names: from.names.iter().map(matchers::plain).collect(),
        ..Default::default()
    }
}

fn file(path: &str) -> core::DataSource {
    core::DataSource { specifier: Some(Specifier::Filename(path.to_owned())), ..Default::default() }
}

fn inline(bytes: &[u8]) -> core::DataSource {
    core::DataSource { specifier: Some(Specifier::InlineBytes(bytes.to_vec())), ..Default::default() }
}

/// A secret by name, and who is asked for it.
fn sds(name: &str) -> pb::SdsSecretConfig {
    let own = [WORKLOAD_CERTIFICATE, WORKLOAD_ROOTS].contains(&name);
    let config = if own { agent() } else { ads() };
    pb::SdsSecretConfig { name: name.to_owned(), sds_config: Some(config) }
}

fn agent() -> core::ConfigSource {
    use core::{ApiVersion, api_config_source::ApiType, config_source::ConfigSourceSpecifier};
    core::ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(core::ApiConfigSource {
            api_type: ApiType::Grpc.into(),
            transport_api_version: ApiVersion::V3.into(),
            grpc_services: vec![grpc(AGENT, None)],
            set_node_on_first_message_only: true,
            ..Default::default()
        })),
        initial_fetch_timeout: Some(duration(std::time::Duration::ZERO)),
        resource_api_version: ApiVersion::V3.into(),
        ..Default::default()
    }
}

/// A secret.
#[must_use]
pub fn secret(name: &str, from: &Secret) -> pb::Secret {
    use pb::secret::Type;
    let kind = match from {
        Secret::Certificate(pair) => Type::TlsCertificate(key_pair(pair)),
        Secret::Roots(pem) => Type::ValidationContext(pb::CertificateValidationContext {
            trusted_ca: Some(inline(pem)),
            ..Default::default()
        }),
    };
    pb::Secret { name: name.to_owned(), r#type: Some(kind) }
}
