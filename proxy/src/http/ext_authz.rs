//! The question to an authorization service: Envoy's ext_authz v3 over a cluster of the mesh, its verdict remembered while it may be.
//!
//! In: a request, what TLS proved about its sender, the route's context. Out: the request, changed as the service says, or its denial.
//! Kept true: without a verdict the request passes only where the configuration says so; bodies are not sent. Not here: the rules (`mixer`).

use std::{borrow::Cow, cell::RefCell, collections::HashMap, net::IpAddr, rc::Rc};

use ahash::AHashMap;
use bytes::{BufMut, Bytes, BytesMut};
use mesh_traffic::{
    ResponseFlags,
    filter::ExtAuthz,
    names::Name,
    retry::{RetryOn, RetryPolicy},
};
use prost::Message;
use tokio::time::{Duration, Instant};
use xds::{
    envoy::{
        config::core::v3::{
            Address, HeaderValueOption, SocketAddress, address, header_value_option::HeaderAppendAction,
            socket_address::PortSpecifier,
        },
        service::auth::v3::{
            AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
            attribute_context::{HttpRequest, Peer, Request as Asked},
            check_response::HttpResponse,
        },
    },
    google::protobuf::{Struct, value},
};

use super::{Flow, exchange::Exchange, router::Tries};
use crate::{
    balance::Kind,
    codec::{Body, Head, Known, Method, Request, Response, StatusCode},
    worker::View,
};

/// What a worker knows of each authorization service.
#[derive(Default)]
pub struct Verdicts(RefCell<AHashMap<Name, Service>>);

/// What is known of one service.
#[derive(Default)]
struct Service {
    verdicts: Vec<Remembered>,
    /// It could not be reached: until then nobody tries again.
    away_until: Option<Instant>,
}

/// A verdict, and what must be true again of a request that it is used for.
struct Remembered {
    /// Whatever a verdict refers to, it belongs to the route that it was asked for.
    context: Vec<(Name, Name)>,
    inputs: Vec<(Input, Value<'static>)>,
    until: Instant,
    uses: u32,
    answer: Rc<CheckResponse>,
}

/// Most verdicts that are remembered per service and worker.
const MAX_REMEMBERED: usize = 512;
/// Largest answer.
const MAX_ANSWER: usize = 256 * 1024;
/// How long nobody dials a service that could not be reached: requests learn at once that there is no verdict, and the service is found
/// again this soon after it is back.
const AWAY: Duration = Duration::from_millis(100);

/// Asks, or remembers.
pub async fn run(
    exchange: &Rc<Exchange>,
    view: &Rc<View>,
    settings: &ExtAuthz,
    context: &[(Name, Name)],
    request: &mut Request,
) -> Flow {
    let verdicts = &exchange.conn.worker.verdicts;
    let answer = match verdicts.find(settings, exchange, context, &request.head) {
        Some(answer) => Ok(answer),
        None => {
            let asked = Box::pin(ask(exchange, view, settings, context, &request.head)).await;
            if let Ok(answer) = &asked {
                verdicts.remember(settings, exchange, context, &request.head, answer);
            }
            asked
        }
    };
    match answer {
        Ok(answer) => obey(exchange, settings, &answer, &mut request.head),
        Err(why) => {
            tracing::debug!(cluster = %settings.cluster, %why, "authorization service gave no verdict");
            unanswered(exchange, settings)
        }
    }
}

fn unanswered(exchange: &Exchange, settings: &ExtAuthz) -> Flow {
    if settings.fail_open {
        return Flow::Continue;
    }
    exchange.flag(ResponseFlags::UNAUTHORIZED_EXTERNAL);
    exchange.detail("ext_authz_error");
    let status = StatusCode::from_u16(settings.status_on_error).unwrap_or(StatusCode::FORBIDDEN);
    Flow::Reply(Response::new(status))
}

fn obey(exchange: &Exchange, settings: &ExtAuthz, answer: &CheckResponse, head: &mut Head) -> Flow {
    let allowed = answer.status.as_ref().is_some_and(|status| status.code == 0);
    match &answer.http_response {
        Some(HttpResponse::OkResponse(ok)) if allowed => {
            let OkHttpResponse { headers, headers_to_remove, response_headers_to_add, .. } = ok;
            for name in headers_to_remove {
                // The service may not take away what frames or routes the request.
                if !name.starts_with(':') && !name.eq_ignore_ascii_case("host") {
                    head.remove(name.to_ascii_lowercase().as_str());
                }
            }
            headers.iter().for_each(|option| set(head, option));
            if !response_headers_to_add.is_empty() {
                exchange.story.borrow_mut().granted.extend_from_slice(response_headers_to_add);
            }
            Flow::Continue
        }
        None if allowed => Flow::Continue,
        Some(HttpResponse::DeniedResponse(denied)) if !allowed => {
            exchange.flag(ResponseFlags::UNAUTHORIZED_EXTERNAL);
            exchange.detail("ext_authz_denied");
            Flow::Reply(denial(denied))
        }
        None => {
            exchange.flag(ResponseFlags::UNAUTHORIZED_EXTERNAL);
            exchange.detail("ext_authz_denied");
            Flow::Reply(Response::new(StatusCode::FORBIDDEN))
        }
        // An answer that contradicts itself is none.
        Some(_) => unanswered(exchange, settings),
    }
}

fn denial(denied: &DeniedHttpResponse) -> Response {
    let code = denied.status.as_ref().and_then(|status| u16::try_from(status.code).ok());
    let status = code.and_then(|code| StatusCode::from_u16(code).ok()).filter(|s| s.as_u16() >= 200);
    let mut head = Head::response(status.unwrap_or(StatusCode::FORBIDDEN));
    denied.headers.iter().for_each(|option| set(&mut head, option));
    if !denied.body.is_empty() {
        head.set_if_absent(Known::ContentType, "text/plain");
    }
    Response::from_head(head, Body::full(denied.body.clone().into_bytes()))
}

/// Adds to the answer what the service wants its client to see.
pub fn grant(exchange: &Exchange, head: &mut Head) {
    let granted = std::mem::take(&mut exchange.story.borrow_mut().granted);
    granted.iter().for_each(|option| set(head, option));
}

fn set(head: &mut Head, option: &HeaderValueOption) {
    let Some(header) = &option.header else { return };
    let name = header.key.to_ascii_lowercase();
    if name.starts_with(':') {
        return;
    }
    let value = if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
    #[allow(deprecated, reason = "older services say it with the older field")]
    let append = option.append.as_ref().is_some_and(|append| append.value);
    if append || option.append_action == HeaderAppendAction::AddIfAbsent as i32 && !head.contains(&*name) {
        head.append(&*name, value);
    } else if option.append_action != HeaderAppendAction::AddIfAbsent as i32 {
        head.set(&*name, value);
    }
}

async fn ask(
    exchange: &Rc<Exchange>,
    view: &Rc<View>,
    settings: &ExtAuthz,
    context: &[(Name, Name)],
    head: &Head,
) -> Result<Rc<CheckResponse>, String> {
    let worker = &exchange.conn.worker;
    if worker.verdicts.is_away(&settings.cluster) {
        return Err("the service could not be reached a moment ago".to_owned());
    }
    let state = worker
        .cluster(view, &settings.cluster)
        .ok_or_else(|| format!("cluster {} does not exist", settings.cluster))?;
    let check = question(exchange, settings, context, head);
    let mut body = BytesMut::with_capacity(check.encoded_len() + 5);
    body.put_u8(0);
    body.put_u32(u32::try_from(check.encoded_len()).map_err(|_| "question too large")?);
    check.encode(&mut body).map_err(|e| e.to_string())?;
    // `outbound|9091||mixer.istio-system.svc.cluster.local`: `|` is no character of an authority.
    let authority = settings.cluster.rsplit('|').next().unwrap_or_default();
    let mut ask = Head::request(Method::POST, authority, "/envoy.service.auth.v3.Authorization/Check");
    ask.set(Known::ContentType, "application/grpc");
    ask.set(Known::Te, "trailers");
    ask.set(Known::GrpcTimeout, format!("{}m", settings.timeout.as_millis().clamp(1, 99_999_999)));
    for name in [Known::XB3TraceId, Known::XB3SpanId, Known::XB3Sampled, Known::XRequestId] {
        if let Some(value) = head.get(name) {
            let value = value.to_vec();
            ask.set(name, value);
        }
    }
    // A question may be asked again when the service surely did not take it.
    let on = RetryOn::CONNECT_FAILURE.with(RetryOn::REFUSED_STREAM).with(RetryOn::RESET_BEFORE_REQUEST);
    let base_backoff = Duration::from_millis(1);
    let policy =
        RetryPolicy { on, base_backoff, avoid_previous: true, max_picks: 5, ..RetryPolicy::default() };
    let shadow = Exchange::shadow(exchange);
    let mut tries = Tries {
        exchange: &shadow,
        view,
        state: Rc::clone(&state),
        policy: &policy,
        hash: None,
        timeout: Some(settings.timeout),
        deadline: None,
        attempt_count: false,
    };
    let request = Request { head: ask, body: Body::full(body.freeze()) };
    let asking = async {
        let response = tries.run(request).await.map_err(|failure| {
            if matches!(failure.kind, Kind::Connect | Kind::ConnectTimeout | Kind::NoHealthyUpstream) {
                worker.verdicts.note_away(&settings.cluster);
            }
            failure.why
        })?;
        let status = response.head.get_str(Known::GrpcStatus).map(str::to_owned);
        let (data, trailers) = response.body.collect(MAX_ANSWER).await.map_err(|e| e.to_string())?;
        let status =
            trailers.as_ref().and_then(|t| t.get_str(Known::GrpcStatus).map(str::to_owned)).or(status);
        if status.as_deref() != Some("0") {
            return Err(format!("gRPC status {}", status.as_deref().unwrap_or("missing")));
        }
        decode(&data)
    };
    tokio::time::timeout(settings.timeout, asking).await.map_err(|_| "no answer in time".to_owned())?
}

fn decode(data: &Bytes) -> Result<Rc<CheckResponse>, String> {
    let (prefix, message) = data.split_at_checked(5).ok_or("answer too short")?;
    if prefix[0] != 0 {
        return Err("compressed answer".to_owned());
    }
    CheckResponse::decode(message).map(Rc::new).map_err(|e| e.to_string())
}

fn question(exchange: &Exchange, settings: &ExtAuthz, context: &[(Name, Name)], head: &Head) -> CheckRequest {
    let conn = &exchange.conn;
    let socket = |socket: std::net::SocketAddr| Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: socket.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(u32::from(socket.port()))),
            ..SocketAddress::default()
        })),
    };
    let peer = |address, principal: Option<String>| Peer {
        address: Some(socket(address)),
        principal: principal.unwrap_or_default(),
        ..Peer::default()
    };
    let mut headers = HashMap::new();
    let wanted = |name: &str| {
        settings.allowed_headers.is_empty()
            || settings.allowed_headers.iter().any(|rule| rule.matches(name.as_bytes(), true))
    };
    for (name, value) in head.iter().filter(|(name, _)| wanted(name)) {
        let value = String::from_utf8_lossy(value);
        headers
            .entry(name.to_owned())
            .and_modify(|before: &mut String| {
                before.push(',');
                before.push_str(&value);
            })
            .or_insert_with(|| value.clone().into_owned());
    }
    for (name, value) in
        [(":method", head.method().as_str()), (":path", head.path()), (":authority", head.authority())]
    {
        headers.insert(name.to_owned(), value.to_owned());
    }
    let http = HttpRequest {
        id: head.get_str(Known::XRequestId).unwrap_or_default().to_owned(),
        method: head.method().to_string(),
        headers,
        path: head.path().to_owned(),
        host: head.authority().to_owned(),
        scheme: if conn.tls { "https" } else { "http" }.to_owned(),
        protocol: format!(
            "HTTP/{}",
            if head.version() == crate::codec::Version::Http2 { "2" } else { "1.1" }
        ),
        size: head.content_length().and_then(|n| i64::try_from(n).ok()).unwrap_or(-1),
        ..HttpRequest::default()
    };
    let own = conn.worker.own_principal().map(|own| format!("spiffe://{own}"));
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(peer(conn.remote, conn.identity.clone())),
            destination: Some(peer(conn.local, own.filter(|_| conn.peer.is_some()))),
            request: Some(Asked { http: Some(http), ..Asked::default() }),
            context_extensions: context.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            ..AttributeContext::default()
        }),
    }
}

/// Something of a request that a verdict may depend on.
enum Input {
    SourceIp,
    SourcePrincipal,
    DestinationUid,
    Path,
    UrlPath,
    Method,
    Authority,
    Header(Box<str>),
}

/// What an [`Input`] is for a request.
#[derive(PartialEq)]
enum Value<'a> {
    Ip(IpAddr),
    Text(Option<Cow<'a, [u8]>>),
}

impl Input {
    /// Mixer's word for it; `None` is an input that we cannot compare. `-` before it says that it was absent, which its value says too.
    fn parse(name: &str) -> Option<Self> {
        let name = name.strip_prefix('-').unwrap_or(name);
        Some(match name {
            "source.ip" => Self::SourceIp,
            "source.principal" => Self::SourcePrincipal,
            "destination.uid" => Self::DestinationUid,
            "request.path" => Self::Path,
            "request.url_path" => Self::UrlPath,
            "request.method" => Self::Method,
            "request.host" => Self::Authority,
            "request.useragent" => Self::Header("user-agent".into()),
            _ => match name.strip_prefix("request.headers[")?.strip_suffix(']')? {
                ":method" => Self::Method,
                ":path" => Self::Path,
                ":authority" | "host" => Self::Authority,
                header => Self::Header(header.into()),
            },
        })
    }

    fn of<'a>(&self, exchange: &'a Exchange, context: &'a [(Name, Name)], head: &'a Head) -> Value<'a> {
        let conn = &exchange.conn;
        let text = |text: Option<&'a str>| Value::Text(text.map(|text| Cow::Borrowed(text.as_bytes())));
        match self {
            Self::SourceIp => Value::Ip(conn.remote.ip()),
            Self::SourcePrincipal => text(conn.identity.as_deref()),
            Self::DestinationUid => {
                text(context.iter().find(|(key, _)| &**key == "destination.uid").map(|(_, uid)| &**uid))
            }
            Self::Path => text(Some(head.path())),
            Self::UrlPath => text(Some(head.path_only())),
            Self::Method => text(Some(head.method().as_str())),
            Self::Authority => text(Some(head.authority())),
            Self::Header(name) => Value::Text(head.get_joined(&**name)),
        }
    }
}

impl Value<'_> {
    fn into_owned(self) -> Value<'static> {
        match self {
            Value::Ip(ip) => Value::Ip(ip),
            Value::Text(text) => Value::Text(text.map(|text| Cow::Owned(text.into_owned()))),
        }
    }
}

impl Verdicts {
    fn is_away(&self, cluster: &Name) -> bool {
        let all = self.0.borrow();
        all.get(cluster).and_then(|service| service.away_until).is_some_and(|until| Instant::now() < until)
    }

    fn note_away(&self, cluster: &Name) {
        let mut all = self.0.borrow_mut();
        all.entry(cluster.clone()).or_default().away_until = Some(Instant::now() + AWAY);
    }

    fn find(
        &self,
        settings: &ExtAuthz,
        exchange: &Exchange,
        context: &[(Name, Name)],
        head: &Head,
    ) -> Option<Rc<CheckResponse>> {
        let mut all = self.0.borrow_mut();
        let known = &mut all.get_mut(&settings.cluster)?.verdicts;
        let now = Instant::now();
        known.retain(|one| one.until > now && one.uses > 0);
        let hit = known.iter_mut().find(|one| {
            one.context == context
                && one.inputs.iter().all(|(input, value)| input.of(exchange, context, head) == *value)
        })?;
        hit.uses -= 1;
        Some(Rc::clone(&hit.answer))
    }

    fn remember(
        &self,
        settings: &ExtAuthz,
        exchange: &Exchange,
        context: &[(Name, Name)],
        head: &Head,
        answer: &Rc<CheckResponse>,
    ) {
        let Some(validity) = answer.dynamic_metadata.as_ref().and_then(validity) else { return };
        let value = |input: Input| {
            let value = input.of(exchange, context, head).into_owned();
            (input, value)
        };
        let inputs: Option<Vec<_>> =
            validity.references.iter().map(|name| Input::parse(name).map(value)).collect();
        let Some(inputs) = inputs else { return };
        let mut all = self.0.borrow_mut();
        let known = &mut all.entry(settings.cluster.clone()).or_default().verdicts;
        if known.len() >= MAX_REMEMBERED {
            known.remove(0);
        }
        let until = Instant::now() + validity.time;
        let (context, answer) = (context.to_vec(), Rc::clone(answer));
        known.push(Remembered { context, inputs, until, uses: validity.uses, answer });
    }
}

struct Validity {
    time: Duration,
    uses: u32,
    references: Vec<String>,
}

/// How long and for what a verdict holds, as mixer says it in the answer's metadata; `None` is not remembered.
fn validity(metadata: &Struct) -> Option<Validity> {
    let number = |name: &str| match metadata.fields.get(name)?.kind.as_ref()? {
        value::Kind::NumberValue(number) => Some(*number),
        _ => None,
    };
    let seconds = number("valid_seconds").filter(|s| s.is_finite() && *s > 0.0)?;
    let uses = number("valid_uses").filter(|uses| *uses >= 2.0)?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the type's range")]
    let uses = uses.min(f64::from(u32::MAX)) as u32 - 1;
    let value::Kind::ListValue(list) = metadata.fields.get("references")?.kind.as_ref()? else { return None };
    let mut references = Vec::new();
    for value in &list.values {
        match value.kind.as_ref()? {
            value::Kind::StringValue(name) => references.push(name.clone()),
            _ => return None,
        }
    }
    Some(Validity { time: Duration::from_secs_f64(seconds.min(3600.0)), uses, references })
}
