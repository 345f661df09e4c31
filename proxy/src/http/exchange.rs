//! The story of one request, from its first byte to the last of its answer, told exactly once.
//!
//! In: what each step found out. Out: one series update, one event, one log line, counters. Kept true: told when the response body ends,
//! breaks or is dropped, or when the request is cancelled. Not here: deciding anything.

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::SystemTime,
};

use mesh_traffic::{
    ResponseFlags, Route,
    cluster::Service,
    listener::{AccessLog, HttpManager},
    names::{Direction, Name},
};
use tokio::time::Instant;
use xds::envoy::config::core::v3::HeaderValueOption;

use super::trace::Span;
use crate::{
    balance::{ClusterState, InFlight},
    codec::{BodyEnd, BodyWatch, Fields, Head, Known, Scheme, Version},
    listen::Downstream,
    telemetry::{
        format::Entry,
        local::{Head as Event, Texts},
        series::Facts,
    },
    worker::Busy,
};

/// What is known of the upstream that answered.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// The endpoint.
    pub address: SocketAddr,
    /// Our end.
    pub local: SocketAddr,
    /// Its verified identity.
    pub principal: Option<Name>,
    /// Mutual TLS of the mesh.
    pub mutual: bool,
}

/// What the steps find out.
#[derive(Default)]
pub struct Story {
    /// Flags.
    pub flags: ResponseFlags,
    /// Response code details.
    pub detail: Cow<'static, str>,
    /// Why the last try made no connection.
    pub transport_failure: String,
    /// Status of the answer, 0 before there is one.
    pub code: u16,
    /// gRPC status.
    pub grpc: Option<u16>,
    /// The answer, for logs.
    pub response: Option<Head>,
    /// The cluster chosen.
    pub cluster: Option<Name>,
    /// The service behind it.
    pub service: Option<Service>,
    /// The endpoint that took the last try.
    pub upstream: Option<Upstream>,
    /// The route.
    pub route: Option<Arc<Route>>,
    /// Tries made.
    pub attempts: u32,
    /// Tracing.
    pub span: Option<Span>,
    /// Headers that an authorization service adds to the answer.
    pub granted: Vec<HeaderValueOption>,
    /// The request as it is told: after its headers were cleaned, before the route changed it.
    pub request: Option<Head>,
}

/// One request under way.
pub struct Exchange {
    /// Its connection.
    pub conn: Rc<Downstream>,
    /// How its listener treats it.
    pub manager: Arc<HttpManager>,
    /// When its head had come.
    pub started: Instant,
    clock: SystemTime,
    /// What is known.
    pub story: RefCell<Story>,
    received: Cell<u64>,
    sent: Cell<u64>,
    told: Cell<bool>,
    /// Places that are held until the answer has been read.
    pub held: RefCell<Option<InFlight>>,
    _busy: Busy,
}

impl Exchange {
    /// A request whose head has come.
    #[must_use]
    pub fn new(conn: &Rc<Downstream>, manager: &Arc<HttpManager>) -> Rc<Self> {
        Rc::new(Self {
            conn: Rc::clone(conn),
            manager: Arc::clone(manager),
            started: Instant::now(),
            clock: SystemTime::now(),
            story: RefCell::default(),
            received: Cell::new(0),
            sent: Cell::new(0),
            told: Cell::new(false),
            held: RefCell::new(None),
            _busy: conn.worker.begin(),
        })
    }

    /// Adds a flag.
    pub fn flag(&self, flag: ResponseFlags) {
        self.story.borrow_mut().flags.insert(flag);
    }

    /// Says why, unless something said so before.
    pub fn detail(&self, detail: impl Into<Cow<'static, str>>) {
        self.story.borrow_mut().detail = detail.into();
    }

    /// Takes note of the cluster that is asked.
    pub fn chosen(&self, state: &ClusterState) {
        let mut story = self.story.borrow_mut();
        story.cluster = Some(state.name.clone());
        story.service.clone_from(&state.service);
    }

    fn logs(&self) -> &[AccessLog] {
        &self.manager.access_log
    }

    /// Takes note of the answer's head, as it goes to the client.
    pub fn answered(&self, head: &Head) {
        let mut story = self.story.borrow_mut();
        story.code = head.status().as_u16();
        story.grpc = grpc_status(head.fields()).or(story.grpc);
        if !self.logs().is_empty() {
            story.response = Some(head.clone());
        }
    }

    /// Tells the story. Only the first call does.
    fn tell(&self) {
        if self.told.replace(true) {
            return;
        }
        drop(self.held.borrow_mut().take());
        let story = self.story.borrow();
        let class = usize::from(story.code / 100).min(5);
        self.conn.stats.responses[class].fetch_add(1, Ordering::Relaxed);
        let duration = self.started.elapsed();
        let (received, sent) = (self.received.get(), self.sent.get());
        let none;
        let request = match &story.request {
            Some(request) => request,
            None => {
                none = Head::request(crate::codec::Method::GET, "", "/");
                &none
            }
        };
        let telemetry = &self.conn.worker.telemetry;
        if telemetry.is_on() {
            let mut event = Event::new(self.clock, duration);
            event.request_size = received;
            event.response_size = sent;
            let heads =
                |head: Option<&Head>| head.and_then(|head| u64::try_from(head.wire_size()).ok()).unwrap_or(0);
            event.request_total = received + heads(Some(request));
            event.response_total = sent + heads(story.response.as_ref());
            event.source_port = self.conn.remote.port();
            event.connection = self.conn.id;
            event.attempts = story.attempts;
            event.sampled = story.span.as_ref().is_some_and(|span| span.sampled);
            let text = |name| request.get_str(name).unwrap_or("");
            let mut texts = Texts {
                method: request.method().as_str(),
                scheme: if request.scheme() == Scheme::Https { "https" } else { "http" },
                authority: request.authority(),
                path: request.path_only(),
                query: request.query().unwrap_or(""),
                user_agent: text(Known::UserAgent),
                request_id: text(Known::XRequestId),
                referer: text(Known::Referer),
                forwarded_for: text(Known::XForwardedFor),
                detail: &story.detail,
                server_name: &self.conn.server_name,
                route: story.route.as_ref().map_or("", |route| &route.name),
                ..Texts::default()
            };
            if let Some(span) = &story.span {
                texts.trace = &span.trace;
                texts.span = &span.id;
                texts.parent = &span.parent;
                texts.operation =
                    story.route.as_ref().and_then(|r| r.operation.as_deref()).unwrap_or(request.authority());
            }
            let facts = self.facts(&story, request);
            telemetry.note(facts, |numbers| numbers.request(duration, received, sent), Some((event, texts)));
        }
        for log in self.logs() {
            let format = self.conn.worker.logs.format(&log.format);
            let entry = Entry {
                start: self.clock,
                request: story.request.as_ref(),
                response: story.response.as_ref(),
                code: story.code,
                flags: story.flags,
                detail: &story.detail,
                termination: "",
                transport_failure: &story.transport_failure,
                received,
                sent,
                duration_ms: duration.as_millis(),
                upstream: story.upstream.as_ref().map(|upstream| upstream.address),
                cluster: story.cluster.as_deref().unwrap_or(""),
                upstream_local: story.upstream.as_ref().map(|upstream| upstream.local),
                local: self.conn.local,
                remote: self.conn.remote,
                server_name: &self.conn.server_name,
                route: story.route.as_ref().map_or("", |route| &route.name),
                peer: self.conn.identity.as_deref().unwrap_or(""),
            };
            self.conn.worker.logs.write(&log.path, format.line(&entry));
        }
    }

    fn facts(&self, story: &Story, request: &Head) -> Facts {
        let inbound = self.manager.direction == Direction::Inbound;
        let grpc = request.get(Known::ContentType).is_some_and(|kind| kind.starts_with(b"application/grpc"));
        let protocol = match (grpc, request.version()) {
            (true, _) => "grpc",
            (false, Version::Http2) => "http2",
            (false, _) => "http",
        };
        let own = self.conn.worker.shared.settings.node.gateway;
        let pod = self.conn.worker.shared.local_ip;
        let upstream = story.upstream.as_ref();
        let local = Some(self.conn.local.ip());
        let (source_ip, destination_ip, port) = if inbound {
            (Some(self.conn.remote.ip()), pod.or(local), self.conn.local.port())
        } else {
            let source = if own { pod.or(local) } else { pod.or(Some(self.conn.remote.ip())) };
            (source, upstream.map(|u| u.address.ip()), upstream.map_or(0, |u| u.address.port()))
        };
        let own_id = self.conn.worker.own_principal();
        let mutual = if inbound { self.conn.peer.is_some() } else { upstream.is_some_and(|u| u.mutual) };
        let (source_principal, destination_principal) = match (inbound, mutual) {
            (_, false) => (None, None),
            (true, true) => (self.conn.principal.clone(), own_id),
            (false, true) => (own_id, upstream.and_then(|u| u.principal.clone())),
        };
        Facts {
            direction: self.manager.direction,
            protocol,
            source_ip,
            source_principal,
            destination_ip,
            destination_port: port,
            destination_principal,
            service: story.service.clone(),
            code: story.code,
            flags: story.flags,
            grpc: story.grpc,
            mutual,
            cluster: story.cluster.clone().unwrap_or_default(),
        }
    }
}

/// `grpc-status` of a head or trailers.
fn grpc_status(fields: &Fields) -> Option<u16> {
    fields.get_str(Known::GrpcStatus)?.parse().ok()
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.told.get() {
            // Nobody read an answer: the client has gone.
            let mut story = self.story.borrow_mut();
            story.flags.insert(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION);
            if story.detail.is_empty() || story.detail == "via_upstream" {
                story.detail = "downstream_remote_disconnect".into();
            }
            drop(story);
            self.tell();
        }
    }
}

/// Counts the request body.
pub struct Received(pub Rc<Exchange>);

impl BodyWatch for Received {
    fn data(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(0);
        self.0.received.set(self.0.received.get() + bytes);
    }

    fn end(&self, _: BodyEnd) {}
}

/// Counts the response body and tells the story at its end.
pub struct Sent(pub Rc<Exchange>);

impl BodyWatch for Sent {
    fn data(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(0);
        self.0.sent.set(self.0.sent.get() + bytes);
    }

    fn trailers(&self, trailers: &Fields) {
        let mut story = self.0.story.borrow_mut();
        story.grpc = grpc_status(trailers).or(story.grpc);
    }

    fn end(&self, end: BodyEnd) {
        match end {
            BodyEnd::Complete => {}
            BodyEnd::Error(_) => {
                self.0.flag(ResponseFlags::UPSTREAM_CONNECTION_TERMINATION);
                self.0.detail("upstream_reset_after_response_started{connection_termination}");
            }
            BodyEnd::Dropped => {
                self.0.flag(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION);
                self.0.detail("downstream_remote_disconnect");
            }
        }
        self.0.tell();
    }
}

impl Exchange {
    /// The bearer of a request that belongs to another one (a copy, a question): its story is never told.
    #[must_use]
    pub fn shadow(of: &Rc<Self>) -> Rc<Self> {
        let shadow = Self::new(&of.conn, &of.manager);
        shadow.told.set(true);
        shadow
    }
}
