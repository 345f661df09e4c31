//! What happens to a request between its head and its answer, in order, in one place.
//!
//! In: a [`Request`] and the connection it came on. Out: a [`Response`], and its story told once. Kept true: one view of the
//! configuration from first to last byte; every filter of the listener runs, in its order. Not here: sockets (`listen`), pools (`balance`).

use std::{borrow::Cow, rc::Rc, sync::Arc};

use mesh_traffic::{
    Choice, Reply, RequestFacts, ResponseFlags, RouteTable,
    filter::{ExtAuthzPerRoute, Fault, FilterConfig, PerRoute},
    listener::HttpManager,
    names::Direction,
    plan::plan,
    rbac::{Rbac, Verdict},
};

pub mod connect;
pub mod cors;
pub mod exchange;
pub mod ext_authz;
pub mod fault;
pub mod headers;
pub mod mirror;
pub mod replay;
pub mod router;
pub mod trace;

use exchange::{Exchange, Received, Sent};

use crate::{
    codec::{Body, Head, Known, Method, Request, Response, Scheme, StatusCode},
    listen::Downstream,
    worker::View,
};

impl RequestFacts for Head {
    fn method(&self) -> &str {
        Head::method(self).as_str()
    }
    fn path(&self) -> &str {
        Head::path(self)
    }
    fn authority(&self) -> &str {
        Head::authority(self)
    }
    fn scheme(&self) -> &str {
        if Head::scheme(self) == Scheme::Https { "https" } else { "http" }
    }
    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.get_joined(name)
    }
    fn any_line(&self, name: &str, test: &dyn Fn(&[u8]) -> bool) -> Option<bool> {
        let mut lines = self.get_all(name).map(test);
        let first = lines.next()?;
        Some(first || lines.any(|passes| passes))
    }
}

/// What a filter wants: to go on, or to answer itself.
#[allow(clippy::large_enum_variant, reason = "lives for one match; a box would cost more than the move")]
pub enum Flow {
    /// The next filter.
    Continue,
    /// This answer, and no further filter.
    Reply(Response),
}

/// Answers one request, by `routes` where they are given, else by those that the manager names. Dropping the future cancels it upstream
/// and gives back what it holds.
pub async fn handle(
    conn: &Rc<Downstream>,
    manager: &Arc<HttpManager>,
    routes: Option<&Arc<RouteTable>>,
    request: Request,
) -> Response {
    let exchange = Exchange::new(conn, manager);
    let view = conn.worker.view();
    let Request { head, body } = request;
    let body = if body.is_empty() { body } else { body.watch(Rc::new(Received(Rc::clone(&exchange)))) };
    let response = serve(&exchange, &view, routes, Request { head, body }).await;
    finish(&exchange, response)
}

async fn serve(
    exchange: &Rc<Exchange>,
    view: &Rc<View>,
    routes: Option<&Arc<RouteTable>>,
    mut request: Request,
) -> Response {
    let (conn, manager) = (&exchange.conn, &exchange.manager);
    let worker = &conn.worker;
    let head = &mut request.head;
    if manager.normalize_path && *head.method() != Method::CONNECT {
        match headers::normalize_path(head.path(), manager.merge_slashes) {
            Ok(None) => {}
            Ok(Some(path)) => head.set_path(&path),
            Err(why) => {
                exchange.story.borrow_mut().request = Some(head.clone());
                exchange.detail(format!("path_normalization_failed{{{}}}", why.replace(' ', "_")));
                return Response::new(StatusCode::BAD_REQUEST);
            }
        }
    }
    headers::arrive(head, conn, manager, || worker.random());
    let chosen = manager.tracing.map(|tracing| worker.draw() < tracing.per_million);
    let span = chosen.map(|chosen| trace::propagate(head, || worker.random(), chosen));
    {
        let mut story = exchange.story.borrow_mut();
        story.request = Some(head.clone());
        story.span = span;
    }
    let Some(table) = routes.or_else(|| view.snapshot.routes_of(manager)) else {
        return local(exchange, Reply::no_route());
    };
    if *head.method() == Method::CONNECT {
        return Box::pin(connect::serve(exchange, view, table, request)).await;
    }
    let choice = plan(table, head);
    if let Ok(choice) = &choice {
        exchange.story.borrow_mut().route = Some(Arc::clone(choice.route));
    }
    for filter in &manager.filters {
        let flow = run(exchange, view, choice.as_ref().ok(), &filter.config, &mut request).await;
        if let Flow::Reply(response) = flow {
            return response;
        }
    }
    match choice {
        Err(reply) => local(exchange, reply),
        Ok(choice) => router::route(exchange, view, table.configuration(), &choice, request).await,
    }
}

async fn run(
    exchange: &Rc<Exchange>,
    view: &Rc<View>,
    choice: Option<&Choice<'_>>,
    config: &FilterConfig,
    request: &mut Request,
) -> Flow {
    match config {
        FilterConfig::Router | FilterConfig::Ignored { .. } => Flow::Continue,
        FilterConfig::Fault(listener) => {
            let own = of_route(choice, |per| per.fault.as_ref());
            let fault: &Fault = own.map_or(listener, |fault| fault);
            fault::run(exchange, fault, request).await
        }
        FilterConfig::Rbac(listener) => {
            let own = of_route(choice, |per| per.rbac.as_ref());
            match own {
                Some(None) => Flow::Continue,
                Some(Some(rbac)) => judge(exchange, rbac, &request.head),
                None => judge(exchange, listener, &request.head),
            }
        }
        FilterConfig::ExtAuthz(authz) => match of_route(choice, |per| per.ext_authz.as_ref()) {
            Some(ExtAuthzPerRoute::Disabled) => Flow::Continue,
            Some(ExtAuthzPerRoute::Context(context)) => {
                ext_authz::run(exchange, view, authz, context, request).await
            }
            None => ext_authz::run(exchange, view, authz, &[], request).await,
        },
        FilterConfig::Cors => cors::run(exchange, choice, request),
    }
}

/// A route's word on a filter, else its virtual host's.
fn of_route<'s, T>(
    choice: Option<&Choice<'s>>,
    word: impl Fn(&'s PerRoute) -> Option<&'s T>,
) -> Option<&'s T> {
    let choice = choice?;
    word(&choice.route.filters).or_else(|| word(&choice.host.filters))
}

fn judge(exchange: &Exchange, rbac: &Rbac, head: &Head) -> Flow {
    let verdict = rbac.check(head, &exchange.conn.rbac_peer());
    match verdict {
        Verdict::Denied(policy) if !rbac.shadow => {
            let policy = policy.map_or("none", |name| name);
            exchange.detail(format!("rbac_access_denied_matched_policy[{policy}]"));
            Flow::Reply(Response::text(StatusCode::FORBIDDEN, "RBAC: access denied"))
        }
        _ => Flow::Continue,
    }
}

/// An answer of our own.
pub fn local(exchange: &Exchange, reply: Reply) -> Response {
    {
        let mut story = exchange.story.borrow_mut();
        story.flags.insert(reply.flags);
        story.detail = reply.detail;
    }
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut head = Head::response(status);
    if let Some(location) = &reply.location {
        head.set(Known::Location, location);
    }
    let grpc = exchange.story.borrow().request.as_ref().is_some_and(mesh_traffic::plan::is_grpc);
    if grpc && reply.status != 200 && reply.location.is_none() {
        // Envoy's local replies to gRPC are trailers-only.
        let mut head = Head::response(StatusCode::OK);
        head.set(Known::ContentType, "application/grpc");
        head.set(Known::GrpcStatus, grpc_of(reply.status).to_string());
        if !reply.body.is_empty() {
            head.set(Known::GrpcMessage, percent_encode(&reply.body));
        }
        overloaded(&mut head, reply.flags);
        return Response::from_head(head, Body::empty());
    }
    overloaded(&mut head, reply.flags);
    if reply.body.is_empty() {
        return Response::from_head(head, Body::empty());
    }
    head.set(Known::ContentType, "text/plain");
    Response::from_head(head, Body::full(reply.body.into_owned()))
}

fn overloaded(head: &mut Head, flags: ResponseFlags) {
    if flags.contains(ResponseFlags::UPSTREAM_OVERFLOW) {
        head.set("x-envoy-overloaded", "true");
    }
}

/// gRPC's mapping of HTTP statuses.
fn grpc_of(status: u16) -> u16 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

fn percent_encode(text: &[u8]) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text {
        match byte {
            0x20..=0x7e if *byte != b'%' => out.push(char::from(*byte)),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// Completes the answer and sees to it that its end is told.
fn finish(exchange: &Rc<Exchange>, mut response: Response) -> Response {
    let manager = &exchange.manager;
    if exchange.conn.worker.draining.get() {
        response.head.set(Known::Connection, "close");
    }
    if let Some(name) = &manager.server_name {
        response.head.set(Known::Server, &**name);
    }
    if manager.direction == Direction::Outbound && manager.use_remote_address {
        response.head.remove(Known::XIstioAttributes);
    }
    ext_authz::grant(exchange, &mut response.head);
    exchange.answered(&response.head);
    if let Some(upgraded) = response.upgraded.take() {
        response.upgraded = Some(connect::counted(exchange, upgraded));
        return response;
    }
    let body = std::mem::take(&mut response.body);
    response.body = body.watch(Rc::new(Sent(Rc::clone(exchange))));
    response
}
