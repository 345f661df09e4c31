//! HTTP filters and their per-route settings → `crate::filter`.
//!
//! In: HttpFilter messages and `typed_per_filter_config`. Out: the model. Kept true: a filter that is not known is refused unless it is
//! optional; security filters refuse unknown tags. Not here: RBAC's rules (`rbac`).

use std::{collections::HashMap, sync::Arc, time::Duration};

use xds::{
    envoy::extensions::filters::{
        http::{
            cors::v3 as cors_pb, ext_authz::v3 as authz_pb, fault::v3 as fault_pb, rbac::v3 as rbac_pb,
            router::v3 as router_pb,
        },
        network::http_connection_manager::v3::{HttpFilter as FilterPb, http_filter::ConfigType},
    },
    google::protobuf::Any,
};

use super::{Decoded, Reject, duration, each, matchers, rbac, refuse, route, strict};
use crate::{
    filter::{
        Abort, AbortWith, Delay, ExtAuthz, ExtAuthzPerRoute, Fault, FilterConfig, HttpFilter, PerRoute,
    },
    route::Cors,
};

const PREFIX: &str = "type.googleapis.com/";

/// Filters that this proxy does natively, so that their configuration may be passed over: Istio's stats and peer metadata, gRPC counters, ALPN.
const NATIVE: [&str; 7] = [
    "istio.stats",
    "istio.metadata_exchange",
    "istio.alpn",
    "envoy.filters.http.istio_stats",
    "envoy.filters.http.peer_metadata",
    "envoy.filters.http.grpc_stats",
    "envoy.filters.http.alpn",
];

/// One filter of a listener.
pub(super) fn http_filter(wire: FilterPb) -> Decoded<HttpFilter> {
    let name = wire.name.as_str().into();
    let config = match wire.config_type {
        Some(ConfigType::TypedConfig(any)) => match config(&any) {
            Err(unknown)
                if (wire.is_optional && unknown.path.is_empty()) || NATIVE.contains(&wire.name.as_str()) =>
            {
                FilterConfig::Ignored { type_url: any.type_url.into() }
            }
            known => known.map_err(|e| e.at("typed_config"))?,
        },
        None if wire.name == "envoy.filters.http.router" => FilterConfig::Router,
        None if wire.name == "envoy.filters.http.cors" => FilterConfig::Cors,
        _ if wire.is_optional => FilterConfig::Ignored { type_url: "".into() },
        _ => return Err(Reject::new(format!("filter {:?} has no configuration here", wire.name))),
    };
    if wire.disabled {
        return Err(Reject::new("filters that a route switches on are not supported").at("disabled"));
    }
    Ok(HttpFilter { name, config })
}

fn config(any: &Any) -> Decoded<FilterConfig> {
    let name = any.type_url.strip_prefix(PREFIX).unwrap_or(&any.type_url);
    Ok(match name {
        "envoy.extensions.filters.http.router.v3.Router" => {
            let router: router_pb::Router = xds::unpack(any).map_err(Reject::new)?;
            refuse!(router, upstream_http_filters, strict_check_headers);
            FilterConfig::Router
        }
        "envoy.extensions.filters.http.fault.v3.HTTPFault" => FilterConfig::Fault(fault(any)?),
        "envoy.extensions.filters.http.rbac.v3.RBAC" => {
            let wire: rbac_pb::Rbac = strict(any)?;
            match rbac::http(wire)? {
                Some(rules) => FilterConfig::Rbac(Arc::new(rules)),
                None => FilterConfig::Ignored { type_url: any.type_url.as_str().into() },
            }
        }
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz" => {
            FilterConfig::ExtAuthz(Arc::new(ext_authz(strict(any)?)?))
        }
        "envoy.extensions.filters.http.cors.v3.Cors" => FilterConfig::Cors,
        other => return Err(Reject::new(format!("filter type {other:?} is not supported"))),
    })
}

fn fault(any: &Any) -> Decoded<Fault> {
    use fault_pb::fault_abort::ErrorType as E;
    use xds::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier as D;
    let wire: fault_pb::HttpFault = xds::unpack(any).map_err(Reject::new)?;
    refuse!(wire, upstream_cluster, downstream_nodes, max_active_faults, response_rate_limit);
    let share = |percentage: Option<_>| percentage.as_ref().map_or(Ok(0), matchers::per_million);
    let delay = match wire.delay {
        None => None,
        Some(delay) => match delay.fault_delay_secifier {
            Some(D::FixedDelay(fixed)) => {
                let fixed = duration(Some(&fixed), "delay.fixed_delay")?.unwrap_or_default();
                let per_million = share(delay.percentage).map_err(|e| e.at("delay.percentage"))?;
                Some(Delay { fixed, per_million })
            }
            _ => return Err(Reject::new("only a fixed delay is supported").at("delay")),
        },
    };
    let abort = match wire.abort {
        None => None,
        Some(abort) => {
            let with = match abort.error_type {
                Some(E::HttpStatus(code)) => AbortWith::Http(super::status(code, "abort.http_status")?),
                Some(E::GrpcStatus(code)) => AbortWith::Grpc(
                    u16::try_from(code)
                        .map_err(|_| Reject::new("not a gRPC status").at("abort.grpc_status"))?,
                ),
                _ => return Err(Reject::new("only a status is supported").at("abort")),
            };
            Some(Abort { with, per_million: share(abort.percentage).map_err(|e| e.at("abort.percentage"))? })
        }
    };
    Ok(Fault { delay, abort, headers: each(wire.headers, "headers", |one| matchers::header(&one))? })
}

fn ext_authz(wire: authz_pb::ExtAuthz) -> Decoded<ExtAuthz> {
    use authz_pb::ext_authz::Services;
    use xds::envoy::config::core::v3::grpc_service::TargetSpecifier;
    refuse!(wire, filter_enabled, filter_enabled_metadata, deny_at_disable, validate_mutations);
    refuse!(wire, metadata_context_namespaces, typed_metadata_context_namespaces, disallowed_headers);
    refuse!(wire, shadow_mode, decoder_header_mutation_rules, include_tls_session, encode_raw_headers);
    refuse!(wire, route_metadata_context_namespaces, route_typed_metadata_context_namespaces);
    if wire.with_request_body.is_some() {
        return Err(Reject::new("sending bodies is not supported").at("with_request_body"));
    }
    let Some(Services::GrpcService(service)) = wire.services else {
        return Err(Reject::new("only a gRPC service is supported").at("services"));
    };
    let Some(TargetSpecifier::EnvoyGrpc(target)) = service.target_specifier else {
        return Err(Reject::new("only envoy_grpc is supported").at("grpc_service.target_specifier"));
    };
    let allowed = wire.allowed_headers.map(|list| list.patterns).unwrap_or_default();
    Ok(ExtAuthz {
        cluster: target.cluster_name.into(),
        timeout: duration(service.timeout.as_ref(), "grpc_service.timeout")?
            .unwrap_or(Duration::from_millis(200)),
        fail_open: wire.failure_mode_allow,
        status_on_error: match wire.status_on_error.map(|s| s.code) {
            None | Some(0) => 403,
            Some(code) => {
                u16::try_from(code).map_err(|_| Reject::new("not a status").at("status_on_error"))?
            }
        },
        include_peer_certificate: wire.include_peer_certificate,
        allowed_headers: each(allowed, "allowed_headers.patterns", |one| matchers::plain(&one))?,
    })
}

/// A virtual host's or route's settings.
pub(super) fn per_route(wire: &HashMap<String, Any>) -> Decoded<PerRoute> {
    let mut settings = PerRoute::default();
    for (filter, any) in wire {
        one(&mut settings, filter, any).map_err(|e| e.at(format!("typed_per_filter_config[{filter:?}]")))?;
    }
    Ok(settings)
}

fn one(settings: &mut PerRoute, filter: &str, any: &Any) -> Decoded<()> {
    use authz_pb::ext_authz_per_route::Override;
    let name = any.type_url.strip_prefix(PREFIX).unwrap_or(&any.type_url);
    match name {
        "envoy.extensions.filters.http.fault.v3.HTTPFault" => settings.fault = Some(Arc::new(fault(any)?)),
        "envoy.extensions.filters.http.rbac.v3.RBACPerRoute" => {
            let wire: rbac_pb::RbacPerRoute = strict(any)?;
            let rules = wire.rbac.map(rbac::http).transpose()?.flatten();
            settings.rbac = Some(rules.map(Arc::new));
        }
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute" => {
            let wire: authz_pb::ExtAuthzPerRoute = strict(any)?;
            settings.ext_authz = match wire.r#override {
                None | Some(Override::Disabled(false)) => None,
                Some(Override::Disabled(true)) => Some(ExtAuthzPerRoute::Disabled),
                Some(Override::CheckSettings(check)) => {
                    refuse!(check, disable_request_body_buffering, with_request_body, service_override);
                    let mut context: Vec<_> =
                        check.context_extensions.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
                    context.sort();
                    Some(ExtAuthzPerRoute::Context(context))
                }
            };
        }
        // Read by `cors`.
        "envoy.extensions.filters.http.cors.v3.CorsPolicy" => {}
        _ if NATIVE.contains(&filter) => {}
        other => return Err(Reject::new(format!("filter type {other:?} is not supported"))),
    }
    Ok(())
}

/// A route's cross-origin rules.
pub(super) fn cors(wire: &HashMap<String, Any>) -> Decoded<Option<Box<Cors>>> {
    let path = "typed_per_filter_config[\"envoy.filters.http.cors\"]";
    let Some(any) = wire.get("envoy.filters.http.cors") else { return Ok(None) };
    let wire: cors_pb::CorsPolicy = xds::unpack(any).map_err(|why| Reject::new(why).at(path))?;
    route::cors(wire).map(|cors| Some(Box::new(cors))).map_err(|e| e.at(path))
}
