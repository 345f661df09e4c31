//! ext_authz v3: Envoy and our proxy ask whether a request may pass.
//!
//! In: `CheckRequest`. Out: OK, or a denial with Mixer's HTTP code and body.
//! Kept true: the client is the pod of its address with that pod's identity, or nobody; headers about workloads count
//! for nothing. Not here: the rules (`dispatch`).

use std::{collections::HashMap, sync::Arc};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            Address, HeaderValue, HeaderValueOption, address, header_value_option, socket_address,
        },
        service::auth::v3::{
            AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
            authorization_server::Authorization, check_response::HttpResponse,
        },
        r#type::v3::HttpStatus,
    },
    google::{
        protobuf::{ListValue, Struct, Value as ProtoValue, value::Kind},
        rpc,
    },
};
use tonic::{Request, Response, Status};

use super::{principal, query_params};
use crate::{
    attributes::{Bag, Builtin, StringMap, Text, Timestamp, Value},
    config::{Generation, HeaderChange},
    core::Mixer,
    dispatch::Verdict,
    lang::{Condition, Reference},
};

/// The gRPC service.
#[derive(Clone, Debug)]
pub struct AuthzService(pub Arc<Mixer>);

#[tonic::async_trait]
impl Authorization for AuthzService {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let generation = self.0.generation();
        let context = request.into_inner().attributes.unwrap_or_default();
        let mut bag = bag(&context, &generation);
        let mut verdict = self.0.check(&generation, &mut bag);
        charge(&self.0, &generation, &bag, &mut verdict);
        Ok(Response::new(response(&verdict, &generation)))
    }
}

/// Takes the quotas that the request's service is bound to; a quota that is used up refuses the request.
fn charge(mixer: &Mixer, generation: &Generation, bag: &Bag, verdict: &mut Verdict) {
    if verdict.code != 0 {
        return;
    }
    for (name, amount) in generation.quotas.charges(bag) {
        let (result, _) = mixer.quota(generation, bag, &name, amount, false, "");
        // Each request counts, so no verdict may be kept.
        verdict.valid_for = std::time::Duration::ZERO;
        verdict.valid_uses = 1;
        if result.code != 0 || result.granted < amount {
            const RESOURCE_EXHAUSTED: i32 = 8;
            verdict.code = if result.code == 0 { RESOURCE_EXHAUSTED } else { result.code };
            verdict.message = result.message;
            return;
        }
    }
}

/// The canonical code's name, as it stands in bodies.
#[must_use]
pub fn code_name(code: i32) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    usize::try_from(code).ok().and_then(|code| NAMES.get(code).copied()).unwrap_or("UNKNOWN")
}

/// The HTTP status of a canonical code, by Mixer's table.
#[must_use]
pub fn http_status(code: i32) -> i32 {
    match code {
        0 => 200,
        3 | 11 => 400,
        16 => 401,
        7 => 403,
        5 => 404,
        6 | 10 => 409,
        9 => 412,
        8 => 429,
        12 => 501,
        14 => 503,
        4 => 504,
        _ => 500,
    }
}

fn socket(address: Option<&Address>) -> Option<(std::net::IpAddr, Option<u32>)> {
    let Some(address::Address::SocketAddress(socket)) = address.and_then(|address| address.address.as_ref())
    else {
        return None;
    };
    let port = match socket.port_specifier {
        Some(socket_address::PortSpecifier::PortValue(port)) => Some(port),
        _ => None,
    };
    Some((socket.address.parse().ok()?, port))
}

/// Attributes of a request that is asked about.
#[must_use]
pub fn bag(context: &AttributeContext, generation: &Generation) -> Bag {
    let mut bag = Bag::new(&generation.vocabulary);
    bag.set(Builtin::ContextTime, Value::Timestamp(Timestamp::now()));
    bag.set_text(Builtin::ContextReporterKind, "inbound");
    if let Some((ip, port)) = context.source.as_ref().and_then(|peer| socket(peer.address.as_ref())) {
        bag.set(Builtin::SourceIp, Value::ip(ip));
        bag.set(Builtin::OriginIp, Value::ip(ip));
        if let Some(port) = port {
            bag.set(Builtin::SourcePort, Value::Int64(i64::from(port)));
        }
    }
    if let Some((ip, port)) = context.destination.as_ref().and_then(|peer| socket(peer.address.as_ref())) {
        bag.set(Builtin::DestinationIp, Value::ip(ip));
        if let Some(port) = port {
            bag.set(Builtin::DestinationPort, Value::Int64(i64::from(port)));
        }
    }
    let source = context.source.as_ref().map_or("", |peer| principal(&peer.principal));
    bag.set_text(Builtin::SourcePrincipal, source);
    bag.set_text(Builtin::SourceUser, source);
    bag.set(Builtin::ConnectionMtls, Value::Bool(!source.is_empty()));
    let destination = context.destination.as_ref().map_or("", |peer| principal(&peer.principal));
    bag.set_text(Builtin::DestinationPrincipal, destination);
    if let Some(session) = &context.tls_session {
        bag.set_text(Builtin::ConnectionRequestedServerName, session.sni.as_str());
    }
    let mut tcp = true;
    if let Some(request) = &context.request {
        let time = request
            .time
            .as_ref()
            .and_then(|time| time.seconds.checked_mul(1_000_000_000)?.checked_add(i64::from(time.nanos)));
        if let Some(nanos) = time {
            bag.set(Builtin::RequestTime, Value::Timestamp(Timestamp(nanos)));
        }
        if let Some(http) = &request.http {
            tcp = false;
            let header = |name: &str| http.headers.get(name).map_or("", String::as_str);
            let path = http.path.split(['?', '#']).next().unwrap_or_default();
            for (attribute, text) in [
                (Builtin::RequestMethod, http.method.as_str()),
                (Builtin::RequestPath, &http.path),
                (Builtin::RequestUrlPath, path),
                (Builtin::RequestHost, &http.host),
                (Builtin::RequestScheme, &http.scheme),
                (Builtin::RequestId, header("x-request-id")),
                (Builtin::RequestUseragent, header("user-agent")),
                (Builtin::RequestReferer, header("referer")),
            ] {
                bag.set_text(attribute, text);
            }
            if http.size >= 0 {
                bag.set(Builtin::RequestSize, Value::Int64(http.size));
            }
            let grpc = header("content-type").starts_with("application/grpc");
            bag.set_text(Builtin::ContextProtocol, if grpc { "grpc" } else { "http" });
            let headers: StringMap =
                http.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            bag.set(Builtin::RequestHeaders, Value::StringMap(headers));
            if let Some((_, query)) = http.path.split_once('?') {
                bag.set(Builtin::RequestQueryParams, Value::StringMap(query_params(query)));
            }
        }
    }
    if tcp {
        bag.set_text(Builtin::ContextProtocol, "tcp");
    }
    // Pilot's own words, per route: they come with the proxy's configuration, not from the client.
    for (name, value) in &context.context_extensions {
        let attribute = match name.as_str() {
            "destination.uid" => Builtin::DestinationUid,
            "destination.namespace" => Builtin::DestinationNamespace,
            "destination.service.host" => Builtin::DestinationServiceHost,
            "destination.service.name" => Builtin::DestinationServiceName,
            "destination.service.namespace" => Builtin::DestinationServiceNamespace,
            "destination.service.uid" => Builtin::DestinationServiceUid,
            "context.reporter.kind" => Builtin::ContextReporterKind,
            "context.reporter.uid" => Builtin::ContextReporterUid,
            "context.protocol" => Builtin::ContextProtocol,
            "source.uid" => Builtin::SourceUid,
            _ => continue,
        };
        bag.set_text(attribute, value.as_str());
    }
    bag
}

fn header(name: &str, change: HeaderChange, value: &Text) -> HeaderValueOption {
    use header_value_option::HeaderAppendAction::{AppendIfExistsOrAdd, OverwriteIfExistsOrAdd};
    let action = if change == HeaderChange::Append { AppendIfExistsOrAdd } else { OverwriteIfExistsOrAdd };
    HeaderValueOption {
        header: Some(HeaderValue { key: name.to_owned(), value: value.to_string(), ..Default::default() }),
        append_action: action.into(),
        ..Default::default()
    }
}

fn text(text: impl Into<String>) -> ProtoValue {
    ProtoValue { kind: Some(Kind::StringValue(text.into())) }
}

/// How long the verdict holds and what it depends on, for a proxy that caches verdicts. Attributes that mixer fills in
/// itself appear as what they are derived from.
fn cache_metadata(verdict: &Verdict, generation: &Generation) -> Struct {
    let number = |number: f64| ProtoValue { kind: Some(Kind::NumberValue(number)) };
    let mut inputs: Vec<String> = Vec::new();
    let list = verdict.references.list();
    for input in list.iter().flat_map(|reference| inputs_of(reference, generation)) {
        if !inputs.contains(&input) {
            inputs.push(input);
        }
    }
    let known = inputs.iter().all(|input| cacheable(input)) && !verdict.references.incomplete();
    let seconds = if known { verdict.valid_for.as_secs_f64() } else { 0.0 };
    let values = inputs.into_iter().map(text).collect();
    Struct {
        fields: HashMap::from([
            ("valid_seconds".to_owned(), number(seconds)),
            ("valid_uses".to_owned(), number(f64::from(verdict.valid_uses))),
            ("references".to_owned(), ProtoValue { kind: Some(Kind::ListValue(ListValue { values })) }),
        ]),
    }
}

/// Whether a proxy can tell if an input is the same for another request.
fn cacheable(input: &str) -> bool {
    let name = input.strip_prefix('-').unwrap_or(input);
    let name = name.split('[').next().unwrap_or(name);
    matches!(
        name,
        "source.ip"
            | "source.principal"
            | "destination.uid"
            | "route"
            | "request.method"
            | "request.path"
            | "request.url_path"
            | "request.host"
            | "request.scheme"
            | "request.useragent"
            | "request.referer"
            | "request.headers"
            | "request.query_params"
            | "connection.requested_server_name"
    )
}

fn inputs_of(reference: &Reference, generation: &Generation) -> Vec<String> {
    let name = generation.vocabulary.name(reference.id);
    let end = if name.starts_with("source.") || matches!(&**name, "connection.mtls" | "origin.ip") {
        &["source.ip", "source.principal"][..]
    } else if name.starts_with("destination.") && !name.starts_with("destination.service.") {
        &["destination.uid"][..]
    } else if (name.starts_with("context.") && !name.starts_with("context.time"))
        || name.starts_with("destination.service.")
    {
        &["route"][..]
    } else {
        let sign = if reference.condition == Condition::Absence { "-" } else { "" };
        return vec![match &reference.key {
            Some(key) => format!("{sign}{name}[{key}]"),
            None => format!("{sign}{name}"),
        }];
    };
    end.iter().map(|input| (*input).to_owned()).collect()
}

fn response(verdict: &Verdict, generation: &Generation) -> CheckResponse {
    let sets = |changes: &[(String, HeaderChange, Text)]| -> Vec<HeaderValueOption> {
        let kept = changes.iter().filter(|(_, change, _)| *change != HeaderChange::Remove);
        kept.map(|(name, change, value)| header(name, *change, value)).collect()
    };
    let http_response = if verdict.code == 0 {
        let removed = verdict.request_headers.iter().filter(|(_, change, _)| *change == HeaderChange::Remove);
        HttpResponse::OkResponse(OkHttpResponse {
            headers: sets(&verdict.request_headers),
            headers_to_remove: removed.map(|(name, _, _)| name.clone()).collect(),
            response_headers_to_add: sets(&verdict.response_headers),
            ..Default::default()
        })
    } else {
        HttpResponse::DeniedResponse(DeniedHttpResponse {
            status: Some(HttpStatus { code: http_status(verdict.code) }),
            headers: sets(&verdict.response_headers),
            body: format!("{}:{}", code_name(verdict.code), verdict.message),
        })
    };
    CheckResponse {
        status: Some(rpc::Status {
            code: verdict.code,
            message: verdict.message.clone(),
            details: Vec::new(),
        }),
        dynamic_metadata: Some(cache_metadata(verdict, generation)),
        http_response: Some(http_response),
    }
}
