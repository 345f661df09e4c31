//! TLS contexts and secrets → `crate::tls`.
//!
//! In: transport sockets and SDS secrets. Out: the model. Kept true: unknown tags are refused; keys stay in [`KeyPair`].
//! Not here: using them (`mesh-identity`).

use std::sync::Arc;

use xds::{
    envoy::{
        config::core::v3::{self as core, data_source::Specifier},
        extensions::transport_sockets::tls::v3 as pb,
    },
    google::protobuf::Any,
};

use super::{Decoded, Reject, bool_of, each, matchers, refuse, strict};
use crate::{
    names::Name,
    tls::{Certificate, DownstreamTls, KeyPair, Roots, Secret, UpstreamTls, Validation, Version, Versions},
};

/// What a cluster's transport socket says: `None` is plaintext.
pub(super) fn upstream(wire: &core::TransportSocket) -> Decoded<Option<UpstreamTls>> {
    let Some(any) = typed(wire)? else { return Ok(None) };
    let wire: pb::UpstreamTlsContext = strict(any)?;
    refuse!(wire, allow_renegotiation, auto_host_sni, auto_sni_san_validation);
    let common = common(wire.common_tls_context.unwrap_or_default())?;
    Ok(Some(UpstreamTls {
        certificate: common.certificates.into_iter().next(),
        validation: common.validation.unwrap_or_default(),
        sni: Some(wire.sni).filter(|s| !s.is_empty()).map(Name::from),
        alpn: common.alpn,
        versions: common.versions,
    }))
}

/// What a filter chain's transport socket says: `None` is plaintext.
pub(super) fn downstream(wire: &core::TransportSocket) -> Decoded<Option<DownstreamTls>> {
    let Some(any) = typed(wire)? else { return Ok(None) };
    let wire: pb::DownstreamTlsContext = strict(any)?;
    refuse!(wire, ocsp_staple_policy, session_timeout);
    if bool_of(wire.require_sni, false) {
        return Err(Reject::new("not supported").at("require_sni"));
    }
    let common = common(wire.common_tls_context.unwrap_or_default())?;
    if common.certificates.is_empty() {
        return Err(Reject::new("a server needs a certificate").at("common_tls_context"));
    }
    Ok(Some(DownstreamTls {
        certificates: common.certificates,
        validation: common.validation,
        require_client_certificate: bool_of(wire.require_client_certificate, false),
        alpn: common.alpn,
        versions: common.versions,
    }))
}

fn typed(wire: &core::TransportSocket) -> Decoded<Option<&Any>> {
    use core::transport_socket::ConfigType::TypedConfig;
    let Some(TypedConfig(any)) = &wire.config_type else {
        return match wire.name.as_str() {
            "envoy.transport_sockets.raw_buffer" => Ok(None),
            other => {
                Err(Reject::new(format!("transport socket {other:?} has no configuration"))
                    .at("typed_config"))
            }
        };
    };
    match any.type_url.rsplit('.').next() {
        Some("RawBuffer") => Ok(None),
        _ => Ok(Some(any)),
    }
}

struct Common {
    certificates: Vec<Certificate>,
    validation: Option<Validation>,
    alpn: Vec<Name>,
    versions: Versions,
}

#[allow(deprecated, reason = "deprecated fields are looked at only to refuse them")]
fn common(wire: pb::CommonTlsContext) -> Decoded<Common> {
    use pb::common_tls_context::ValidationContextType as V;
    let wrap = |e: Reject| e.at("common_tls_context");
    if wire.custom_handshaker.is_some()
        || wire.tls_certificate_provider_instance.is_some()
        || wire.custom_tls_certificate_selector.is_some()
    {
        return Err(wrap(Reject::new("certificate providers and handshakers are not supported")));
    }
    let mut certificates =
        each(wire.tls_certificate_sds_secret_configs, "tls_certificate_sds_secret_configs", |one| {
            Ok(Certificate::Sds(one.name.into()))
        })?;
    certificates
        .extend(each(wire.tls_certificates, "tls_certificates", |one| certificate(&one)).map_err(wrap)?);
    let validation = match wire.validation_context_type {
        None => None,
        Some(V::ValidationContext(context)) => Some(validation(context).map_err(wrap)?),
        Some(V::ValidationContextSdsSecretConfig(secret)) => {
            Some(Validation { roots: Some(Roots::Sds(secret.name.into())), names: Vec::new() })
        }
        Some(V::CombinedValidationContext(combined)) => {
            let mut all =
                validation(combined.default_validation_context.unwrap_or_default()).map_err(wrap)?;
            if let Some(secret) = combined.validation_context_sds_secret_config {
                all.roots = Some(Roots::Sds(secret.name.into()));
            }
            Some(all)
        }
        Some(_) => return Err(wrap(Reject::new("this validation context is not supported"))),
    };
    Ok(Common {
        certificates,
        validation,
        alpn: wire.alpn_protocols.into_iter().map(Name::from).collect(),
        versions: wire.tls_params.as_ref().map_or(Ok(Versions::default()), versions).map_err(wrap)?,
    })
}

fn versions(wire: &pb::TlsParameters) -> Decoded<Versions> {
    let version = |number, default, field: &str| match number {
        0 => Ok(default),
        // 1.0 and 1.1 as a lower bound: this proxy's own lower bound is higher.
        1..=3 => Ok(Version::Tls12),
        4 => Ok(Version::Tls13),
        other => Err(Reject::new(format!("unknown version {other}")).at(field)),
    };
    Ok(Versions {
        min: version(wire.tls_minimum_protocol_version, Version::Tls12, "tls_minimum_protocol_version")?,
        max: version(wire.tls_maximum_protocol_version, Version::Tls13, "tls_maximum_protocol_version")?,
    })
}

#[allow(deprecated, reason = "match_subject_alt_names is deprecated, and still what istiod sends")]
fn validation(wire: pb::CertificateValidationContext) -> Decoded<Validation> {
    refuse!(wire, max_verify_depth);
    refuse!(wire, crl, custom_validator_config, verify_certificate_hash, verify_certificate_spki);
    refuse!(
        wire,
        require_signed_certificate_timestamp,
        ca_certificate_provider_instance,
        only_verify_leaf_cert_crl
    );
    let roots = match (wire.trusted_ca, wire.system_root_certs) {
        (Some(source), _) => Some(roots(source).map_err(|e| e.at("trusted_ca"))?),
        (None, Some(_)) => Some(Roots::System),
        (None, None) => None,
    };
    let mut names =
        each(wire.match_subject_alt_names, "match_subject_alt_names", |one| matchers::plain(&one))?;
    names.extend(each(wire.match_typed_subject_alt_names, "match_typed_subject_alt_names", |one| {
        let matcher = one.matcher.ok_or_else(|| Reject::new("missing").at("matcher"))?;
        matchers::plain(&matcher)
    })?);
    Ok(Validation { roots, names })
}

fn roots(source: core::DataSource) -> Decoded<Roots> {
    match source.specifier {
        Some(Specifier::Filename(path)) if path == "system" || path.ends_with("/ca-certificates.crt") => {
            Ok(Roots::System)
        }
        Some(Specifier::Filename(path)) => Ok(Roots::File(path.into())),
        _ => Ok(Roots::Inline(inline(source)?.into())),
    }
}

fn certificate(wire: &pb::TlsCertificate) -> Decoded<Certificate> {
    refuse!(wire, private_key_provider, pkcs12, password, ocsp_staple);
    let part = |source: &Option<core::DataSource>, field: &str| {
        source.clone().ok_or_else(|| Reject::new("missing").at(field))
    };
    let (chain, key) =
        (part(&wire.certificate_chain, "certificate_chain")?, part(&wire.private_key, "private_key")?);
    if let (Some(Specifier::Filename(chain)), Some(Specifier::Filename(key))) =
        (&chain.specifier, &key.specifier)
    {
        return Ok(Certificate::Files { chain: chain.as_str().into(), key: key.as_str().into() });
    }
    Ok(Certificate::Inline(Arc::new(KeyPair { chain: inline(chain)?, key: inline(key)? })))
}

fn inline(source: core::DataSource) -> Decoded<Vec<u8>> {
    match source.specifier {
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes),
        Some(Specifier::InlineString(text)) => Ok(text.into_bytes()),
        Some(Specifier::Filename(path)) => std::fs::read(&path)
            .map_err(|e| Reject::new(format!("{path} cannot be read: {e}")).at("filename")),
        Some(Specifier::EnvironmentVariable(_)) | None => {
            Err(Reject::new("only files and inline data are supported"))
        }
    }
}

/// A secret.
///
/// # Errors
/// When it is of a kind that this proxy does not use.
pub fn secret(wire: pb::Secret) -> Decoded<Secret> {
    use pb::secret::Type;
    match wire.r#type.ok_or_else(|| Reject::new("empty").at("type"))? {
        Type::TlsCertificate(wire) => match certificate(&wire).map_err(|e| e.at("tls_certificate"))? {
            Certificate::Inline(pair) => Ok(Secret::Certificate(pair)),
            Certificate::Files { chain, key } => {
                let read = |path: &str| {
                    inline(core::DataSource {
                        specifier: Some(Specifier::Filename(path.to_owned())),
                        watched_directory: None,
                    })
                };
                Ok(Secret::Certificate(Arc::new(KeyPair { chain: read(&chain)?, key: read(&key)? })))
            }
            Certificate::Sds(_) => Err(Reject::new("a secret cannot name another").at("tls_certificate")),
        },
        Type::ValidationContext(wire) => {
            let source =
                wire.trusted_ca.ok_or_else(|| Reject::new("missing").at("validation_context.trusted_ca"))?;
            Ok(Secret::Roots(inline(source).map_err(|e| e.at("validation_context.trusted_ca"))?.into()))
        }
        _ => Err(Reject::new("only certificates and validation contexts are supported").at("type")),
    }
}
