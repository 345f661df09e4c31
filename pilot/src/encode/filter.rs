//! HTTP filters, and what routes change about them.
//!
//! In: the model's filters. Out: Envoy's. Kept true: a filter that pilot does not use has no form here.
//! Not here: access rules (`rbac`).

use super::{duration, matchers, rbac, truth};
use mesh_traffic::{
    filter::{AbortWith, ExtAuthz, ExtAuthzPerRoute, Fault, FilterConfig, HttpFilter, PerRoute},
    rbac::Rbac,
    route::Cors,
};
use std::collections::HashMap;
use xds::{
    envoy::{
        config::core::v3 as core,
        extensions::filters::{
            common::fault::v3 as common_fault,
            http::{
                cors::v3 as cors_pb, ext_authz::v3 as authz_pb, fault::v3 as fault_pb, rbac::v3 as rbac_pb,
                router::v3 as router_pb,
            },
            network::http_connection_manager::v3 as hcm,
        },
        r#type::{matcher::v3 as match_pb, v3 as kinds},
    },
    google::protobuf::Any,
};

pub(super) fn http_filter(from: &HttpFilter) -> Option<hcm::HttpFilter> {
    let config = match &from.config {
        FilterConfig::Router => xds::pack(&router_pb::Router::default()),
        FilterConfig::Fault(fault) => xds::pack(&self::fault(fault)),
        FilterConfig::Rbac(rules) => xds::pack(&http_rbac(rules)),
        FilterConfig::ExtAuthz(ask) => xds::pack(&ext_authz(ask)),
        FilterConfig::Cors => xds::pack(&cors_pb::Cors {}),
        FilterConfig::Ignored { .. } => return None,
    };
    Some(hcm::HttpFilter {
        name: from.name.to_string(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    })
}

fn fault(from: &Fault) -> fault_pb::HttpFault {
    use common_fault::fault_delay::FaultDelaySecifier;
    fault_pb::HttpFault {
        delay: from.delay.map(|d| common_fault::FaultDelay {
            percentage: Some(matchers::share(d.per_million)),
            fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(duration(d.fixed))),
        }),
        abort: from.abort.map(|a| fault_pb::FaultAbort {
            percentage: Some(matchers::share(a.per_million)),
            error_type: Some(match a.with {
                AbortWith::Http(status) => fault_pb::fault_abort::ErrorType::HttpStatus(u32::from(status)),
                AbortWith::Grpc(status) => fault_pb::fault_abort::ErrorType::GrpcStatus(u32::from(status)),
            }),
            ..Default::default()
        }),
        headers: from.headers.iter().map(matchers::header).collect(),
        ..Default::default()
    }
}

fn http_rbac(from: &Rbac) -> rbac_pb::Rbac {
    let rules = Some(rbac::rules(from));
    if from.shadow {
        rbac_pb::Rbac { shadow_rules: rules, ..Default::default() }
    } else {
        rbac_pb::Rbac { rules, ..Default::default() }
    }
}

fn ext_authz(from: &ExtAuthz) -> authz_pb::ExtAuthz {
    use core::grpc_service::{EnvoyGrpc, TargetSpecifier};
    let target = EnvoyGrpc { cluster_name: from.cluster.to_string(), ..Default::default() };
    let allowed = match &from.allowed_headers[..] {
        [] => None,
        some => Some(match_pb::ListStringMatcher {
            patterns: some.iter().map(|m| matchers::string(m, false)).collect(),
        }),
    };
    authz_pb::ExtAuthz {
        transport_api_version: 2,
        failure_mode_allow: from.fail_open,
        status_on_error: Some(kinds::HttpStatus { code: i32::from(from.status_on_error) }),
        include_peer_certificate: from.include_peer_certificate,
        allowed_headers: allowed,
        services: Some(authz_pb::ext_authz::Services::GrpcService(core::GrpcService {
            timeout: Some(duration(from.timeout)),
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(target)),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn cors(from: &Cors) -> cors_pb::CorsPolicy {
    cors_pb::CorsPolicy {
        allow_origin_string_match: from.origins.iter().map(|o| matchers::string(o, false)).collect(),
        allow_methods: from.methods.to_string(),
        allow_headers: from.headers.to_string(),
        expose_headers: from.expose.to_string(),
        max_age: from.max_age.to_string(),
        allow_credentials: Some(truth(from.credentials)),
        forward_not_matching_preflights: Some(truth(from.forward_unmatched_preflights)),
        ..Default::default()
    }
}

/// Filter settings of a virtual host or route.
pub(super) fn per_route(from: &PerRoute, cors_: Option<&Cors>) -> HashMap<String, Any> {
    let mut out = HashMap::new();
    if let Some(fault) = &from.fault {
        out.insert("envoy.filters.http.fault".to_owned(), xds::pack(&self::fault(fault)));
    }
    if let Some(policy) = cors_ {
        out.insert("envoy.filters.http.cors".to_owned(), xds::pack(&cors(policy)));
    }
    if let Some(rules) = &from.rbac {
        let wire = rbac_pb::RbacPerRoute { rbac: rules.as_ref().map(|r| http_rbac(r)) };
        out.insert("envoy.filters.http.rbac".to_owned(), xds::pack(&wire));
    }
    if let Some(settings) = &from.ext_authz {
        use authz_pb::ext_authz_per_route::Override;
        let wire = match settings {
            ExtAuthzPerRoute::Disabled => Override::Disabled(true),
            ExtAuthzPerRoute::Context(facts) => Override::CheckSettings(authz_pb::CheckSettings {
                context_extensions: facts.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
                ..Default::default()
            }),
        };
        let wire = authz_pb::ExtAuthzPerRoute { r#override: Some(wire) };
        out.insert("envoy.filters.http.ext_authz".to_owned(), xds::pack(&wire));
    }
    out
}
