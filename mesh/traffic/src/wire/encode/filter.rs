//! HTTP filters and their settings per route → Envoy's.
//!
//! In: `crate::filter`. Out: filters of a connection manager, and `typed_per_filter_config`. Kept true: keys are the names that the filters have
//! in the listener, else Envoy would look past them. Not here: RBAC's rules (`rbac`).

use std::collections::HashMap;

use xds::{
    envoy::{
        config::core::v3::ApiVersion,
        extensions::filters::{
            common::fault::v3 as delay_pb,
            http::{
                cors::v3 as cors_pb, ext_authz::v3 as authz_pb, fault::v3 as fault_pb, rbac::v3 as rbac_pb,
                router::v3 as router_pb,
            },
            network::http_connection_manager::v3::{HttpFilter as FilterPb, http_filter::ConfigType},
        },
        r#type::{matcher::v3 as matcher_pb, v3 as type_pb},
    },
    google::protobuf::Any,
};

use super::{
    boolean,
    canonical::{Field, Maps, NONE},
    duration, grpc, matchers, millionths, packed, plain, rbac,
};
use crate::{
    filter::{AbortWith, ExtAuthz, ExtAuthzPerRoute, Fault, FilterConfig, HttpFilter, PerRoute},
    route::Cors,
};

static AUTHZ_PER_ROUTE: Maps = Maps(&[(2, Field::Message(&CHECK_SETTINGS))]);
static CHECK_SETTINGS: Maps = Maps(&[(1, Field::Map(&NONE))]);
static RBAC_PER_ROUTE: Maps = Maps(&[(2, Field::Message(&rbac::MAPS))]);

/// One filter of a listener; `None` for what was passed over when it was read.
pub(super) fn http_filter(from: &HttpFilter) -> Option<FilterPb> {
    let config = match &from.config {
        FilterConfig::Router => plain(&router_pb::Router::default()),
        FilterConfig::Fault(from) => fault(from),
        FilterConfig::Rbac(rules) => packed(&rbac::http(rules), &rbac::MAPS),
        FilterConfig::ExtAuthz(from) => plain(&ext_authz(from)),
        FilterConfig::Cors => plain(&cors_pb::Cors {}),
        FilterConfig::Ignored { .. } => return None,
    };
    Some(FilterPb {
        name: from.name.to_string(),
        config_type: Some(ConfigType::TypedConfig(config)),
        ..Default::default()
    })
}

fn fault(from: &Fault) -> Any {
    use delay_pb::fault_delay::FaultDelaySecifier as D;
    use fault_pb::fault_abort::ErrorType as E;
    // Envoy refuses a delay of nothing.
    let delay = from.delay.filter(|delay| !delay.fixed.is_zero()).map(|delay| delay_pb::FaultDelay {
        percentage: Some(millionths(delay.per_million)),
        fault_delay_secifier: Some(D::FixedDelay(duration(delay.fixed))),
    });
    let abort = from.abort.map(|abort| fault_pb::FaultAbort {
        percentage: Some(millionths(abort.per_million)),
        error_type: Some(match abort.with {
            AbortWith::Http(status) => E::HttpStatus(u32::from(status)),
            AbortWith::Grpc(status) => E::GrpcStatus(u32::from(status)),
        }),
        ..Default::default()
    });
    let headers = from.headers.iter().map(matchers::header).collect();
    plain(&fault_pb::HttpFault { delay, abort, headers, ..Default::default() })
}

fn ext_authz(from: &ExtAuthz) -> authz_pb::ExtAuthz {
    let allowed = (!from.allowed_headers.is_empty()).then(|| matcher_pb::ListStringMatcher {
        patterns: from.allowed_headers.iter().map(matchers::plain).collect(),
    });
    authz_pb::ExtAuthz {
        transport_api_version: ApiVersion::V3.into(),
        failure_mode_allow: from.fail_open,
        status_on_error: Some(type_pb::HttpStatus { code: i32::from(from.status_on_error) }),
        include_peer_certificate: from.include_peer_certificate,
        allowed_headers: allowed,
        services: Some(authz_pb::ext_authz::Services::GrpcService(grpc(&from.cluster, Some(from.timeout)))),
        ..Default::default()
    }
}

/// What a virtual host or route changes.
pub(super) fn per_route(from: &PerRoute) -> HashMap<String, Any> {
    use authz_pb::ext_authz_per_route::Override;
    let mut all = HashMap::new();
    let mut set = |filter: &str, config| all.insert(format!("envoy.filters.http.{filter}"), config);
    if let Some(from) = &from.fault {
        set("fault", fault(from));
    }
    if let Some(rules) = &from.rbac {
        let rbac = rules.as_ref().map(|rules| rbac::http(rules));
        set("rbac", packed(&rbac_pb::RbacPerRoute { rbac }, &RBAC_PER_ROUTE));
    }
    if let Some(settings) = &from.ext_authz {
        let settings = match settings {
            ExtAuthzPerRoute::Disabled => Override::Disabled(true),
            ExtAuthzPerRoute::Context(context) => Override::CheckSettings(authz_pb::CheckSettings {
                context_extensions: context.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
                ..Default::default()
            }),
        };
        let settings = authz_pb::ExtAuthzPerRoute { r#override: Some(settings) };
        set("ext_authz", packed(&settings, &AUTHZ_PER_ROUTE));
    }
    all
}

/// A route's cross-origin rules.
pub(super) fn cors(from: &Cors) -> Any {
    plain(&cors_pb::CorsPolicy {
        allow_origin_string_match: from.origins.iter().map(matchers::plain).collect(),
        allow_methods: from.methods.to_string(),
        allow_headers: from.headers.to_string(),
        expose_headers: from.expose.to_string(),
        max_age: from.max_age.to_string(),
        allow_credentials: boolean(from.credentials),
        forward_not_matching_preflights: boolean(from.forward_unmatched_preflights),
        ..Default::default()
    })
}
