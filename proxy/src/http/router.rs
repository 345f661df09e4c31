//! The end of the filters: the route's action, with retries and timeouts around the tries.
//!
//! In: a chosen route and the request. Out: the upstream's answer, or one of our own that says why there is none. Kept true: the route's
//! timeout spans all tries and the whole answer; a request is sent again only by its policy, or when the application surely
//! never saw it. Not here: picking and pooling (`balance`).

use std::{
    borrow::Cow,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use mesh_traffic::{
    Choice, Reply, ResponseFlags, RouteConfiguration,
    balance::hash,
    cluster::{Discovery, Protocol},
    names::Direction,
    plan,
    retry::{Outcome, RetryOn, RetryPolicy},
    route::{Action, Arm, Forward, HashPolicy, HeaderOps},
};
use tokio::time::{Instant, Sleep};

use super::{
    connect::original_destination,
    cors,
    exchange::{Exchange, Upstream},
    headers, local, mirror,
    replay::Replay,
};
use crate::{
    balance::{ClusterState, Failure, Host, InFlight, Kind, connect::Spoken, outlier::Sign, overflow, pool},
    codec::{Body, BodyError, Frame, Head, Known, Method, Request, Response, Source, StatusCode, Version},
    worker::View,
};

/// Says, on a sidecar's own answer to another of the mesh, that the request may be sent elsewhere: its application has not seen it, or it
/// only asks for something, and the application broke off without a word of an answer. Never passed on.
const UNREACHED: &str = "x-crema-unreached";

/// How long a request waits for the successor of an application that has ended: what a cluster takes to tell everybody, several times over.
const MOMENT: Duration = Duration::from_millis(500);

/// Carries out a route: an answer of our own, or the cluster's, asked as the route says.
pub async fn route(
    exchange: &Rc<Exchange>,
    view: &Rc<View>,
    configuration: &RouteConfiguration,
    choice: &Choice<'_>,
    mut request: Request,
) -> Response {
    if let Some(reply) = to_tls(exchange, choice, &request.head) {
        return local(exchange, reply);
    }
    let Action::Forward(forward) = &choice.route.action else {
        return own_answer(exchange, configuration, choice, &request.head);
    };
    let worker = &exchange.conn.worker;
    let (name, arm) = plan::target(forward, worker.random());
    let Some(state) = worker.cluster(view, name) else {
        exchange.story.borrow_mut().cluster = Some(name.clone());
        let status = if forward.cluster_not_found == 0 { 503 } else { forward.cluster_not_found };
        return local(exchange, Reply::no_cluster(status));
    };
    exchange.chosen(&state);
    let words = Words { configuration, choice, forward, arm };
    let timeout = overrides(exchange, &mut request.head).or_else(|| plan::timeout(forward, &request.head));
    let policy = policy(exchange, forward, &mut request.head);
    let hash = hash_of(exchange, forward, &request.head);
    let asked = forward.cors.as_ref().map(|_| request.head.clone());
    words.rewrite(exchange, timeout, &mut request.head);
    if !forward.mirrors.is_empty() {
        request = mirror::send(exchange, view, forward, request);
    }

    let started = Instant::now();
    let attempt_count = choice.host.include_attempt_count;
    let own = Rc::clone(&state);
    let mut tries =
        Tries { exchange, view, state: own, policy: &policy, hash, timeout, deadline: None, attempt_count };
    match tries.run(request).await {
        Ok(response) => {
            let mut response = limit(exchange, response, tries.deadline);
            words.answered(exchange, started, asked.as_ref(), &mut response.head);
            response
        }
        Err(failure) => failed(exchange, &state, &failure),
    }
}

/// The way to TLS, where the virtual host asks for it.
fn to_tls(exchange: &Exchange, choice: &Choice<'_>, head: &Head) -> Option<Reply> {
    if !choice.host.require_tls || exchange.conn.tls {
        return None;
    }
    let mut reply = Reply::new(301, ResponseFlags::NONE, "https_redirect", "");
    let host = head.authority();
    let host = host.strip_suffix(":80").unwrap_or(host);
    reply.location = Some(format!("https://{host}{}", head.path()));
    Some(reply)
}

/// The answer of a route that asks nobody: a redirect or a fixed answer.
fn own_answer(
    exchange: &Exchange,
    configuration: &RouteConfiguration,
    choice: &Choice<'_>,
    head: &Head,
) -> Response {
    let reply = plan::own_answer(choice.route, head).unwrap_or_else(Reply::no_route);
    let mut response = local(exchange, reply);
    let ops = [&choice.route.headers, &choice.host.headers, &configuration.headers];
    ops.iter().for_each(|ops| headers::apply(&mut response.head, &ops.response));
    response
}

/// Everything that has a say in what is sent, and in what is answered.
struct Words<'a> {
    configuration: &'a RouteConfiguration,
    choice: &'a Choice<'a>,
    forward: &'a Forward,
    /// The weighted target that was drawn.
    arm: Option<&'a Arm>,
}

impl Words<'_> {
    /// The most specific level first, so that the route beats the destination (Istio).
    fn levels(&self) -> impl Iterator<Item = &HeaderOps> {
        let route = [&self.choice.route.headers, &self.choice.host.headers, &self.configuration.headers];
        self.arm.map(|arm| &arm.headers).into_iter().chain(route)
    }

    /// Makes of the request what is sent upstream.
    fn rewrite(&self, exchange: &Exchange, timeout: Option<Duration>, head: &mut Head) {
        let host = self.arm.and_then(|arm| arm.host_rewrite.as_ref());
        if let Some(host) = host.or(self.forward.host_rewrite.as_ref()) {
            let original = head.authority().to_owned();
            head.set("x-envoy-original-host", original);
            head.set_authority(host);
        }
        self.levels().for_each(|level| headers::apply(head, &level.request));
        let route = self.choice.route;
        if let Some(path) = plan::rewritten_path(self.forward, &route.matcher, head.path()) {
            let original = head.path().to_owned();
            head.set("x-envoy-original-path", original);
            head.set_path(&path);
        }
        if let Some(timeout) = timeout {
            head.set(Known::XEnvoyExpectedRqTimeoutMs, itoa::Buffer::new().format(timeout.as_millis()));
        }
        let manager = &exchange.manager;
        if manager.direction == Direction::Inbound {
            head.remove(Known::XEnvoyDecoratorOperation);
        } else if let Some(operation) = route.operation.as_ref().filter(|_| manager.tracing.is_some()) {
            head.set(Known::XEnvoyDecoratorOperation, &**operation);
        }
        let takes =
            |wanted: &[u8]| manager.upgrades.iter().any(|u| u.as_bytes().eq_ignore_ascii_case(wanted));
        if head.upgrade().is_some_and(|wanted| !takes(wanted)) {
            head.clear_upgrade();
        }
    }

    /// Makes of the upstream's answer what is given to the client.
    fn answered(&self, exchange: &Exchange, started: Instant, asked: Option<&Head>, head: &mut Head) {
        {
            let mut story = exchange.story.borrow_mut();
            if story.detail.is_empty() {
                story.detail = "via_upstream".into();
            }
        }
        let millis = started.elapsed().as_millis();
        head.set("x-envoy-upstream-service-time", itoa::Buffer::new().format(millis));
        self.levels().for_each(|level| headers::apply(head, &level.response));
        if let (Some(cors), Some(asked)) = (&self.forward.cors, asked) {
            cors::grant(cors, asked, head);
        }
    }
}

/// Whether the request changes nothing by its method.
fn is_safe(exchange: &Exchange) -> bool {
    let story = exchange.story.borrow();
    story
        .request
        .as_ref()
        .is_some_and(|head| matches!(*head.method(), Method::GET | Method::HEAD | Method::OPTIONS))
}

/// What is answered when the last try has failed.
fn failed(exchange: &Exchange, state: &ClusterState, failure: &Failure) -> Response {
    if failure.kind == Kind::Timeout {
        state.common.stats.timeouts.fetch_add(1, Ordering::Relaxed);
    }
    let retried = {
        let mut story = exchange.story.borrow_mut();
        if matches!(failure.kind, Kind::Connect | Kind::ConnectTimeout) {
            story.transport_failure.clone_from(&failure.why);
        }
        story.attempts > 1
    };
    tracing::debug!(cluster = %state.cluster().name, kind = ?failure.kind, why = %failure.why, "no answer");
    let reply = if retried { failure.reply_after_retries() } else { failure.reply() };
    let mut response = local(exchange, reply);
    let inbound = exchange.manager.direction == Direction::Inbound;
    let harmless = match failure.outcome() {
        Some(Outcome::ConnectFailure | Outcome::Refused) => true,
        Some(Outcome::Reset { before_request }) => before_request || is_safe(exchange),
        _ => false,
    };
    if inbound && exchange.conn.peer.is_some() && harmless {
        response.head.set(UNREACHED, "true");
    }
    response
}

/// `x-envoy-upstream-rq-timeout-ms`, from an application that may say so.
fn overrides(exchange: &Exchange, head: &mut Head) -> Option<Duration> {
    let asked = head.get_str("x-envoy-upstream-rq-timeout-ms").and_then(|ms| ms.parse().ok());
    head.remove("x-envoy-upstream-rq-timeout-ms");
    asked.filter(|ms| *ms > 0 && !exchange.manager.use_remote_address).map(Duration::from_millis)
}

/// Never tries again; what an application may add to.
static ONCE: RetryPolicy = RetryPolicy {
    on: RetryOn::NONE,
    codes: Vec::new(),
    attempts: 0,
    per_try: None,
    base_backoff: Duration::from_millis(25),
    max_backoff: Duration::from_millis(250),
    avoid_previous: false,
    max_picks: 1,
};

/// The route's policy, with what the application asks for in its headers, if it may.
fn policy<'a>(exchange: &Exchange, forward: &'a Forward, head: &mut Head) -> Cow<'a, RetryPolicy> {
    let mut policy = Cow::Borrowed(forward.retry.as_ref().unwrap_or(&ONCE));
    let asked = head.get_str("x-envoy-retry-on").and_then(|on| RetryOn::parse(on).ok());
    let most = head.get_str("x-envoy-max-retries").and_then(|n| n.parse::<u32>().ok());
    head.remove("x-envoy-retry-on");
    head.remove("x-envoy-max-retries");
    if exchange.manager.use_remote_address {
        return policy;
    }
    if let Some((on, codes)) = asked {
        let policy = policy.to_mut();
        policy.on = policy.on.with(on);
        policy.codes.extend(codes);
        policy.attempts = policy.attempts.max(1);
    }
    if let Some(most) = most {
        policy.to_mut().attempts = most.min(25);
    }
    policy
}

fn hash_of(exchange: &Exchange, forward: &Forward, head: &Head) -> Option<u64> {
    forward.hash.iter().find_map(|policy| match policy {
        HashPolicy::Header(name) => head.get_joined(&**name).map(|value| hash(&value)),
        HashPolicy::SourceIp => Some(hash(exchange.conn.remote.ip().to_string().as_bytes())),
        HashPolicy::Query(name) => head.query().and_then(|query| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == &**name).map(|(_, value)| hash(value.as_bytes()))
        }),
        HashPolicy::Cookie { name, .. } => head.get_all(Known::Cookie).find_map(|line| {
            let line = std::str::from_utf8(line).ok()?;
            let mut pairs = line.split(';').filter_map(|pair| pair.trim().split_once('='));
            pairs.find(|(key, _)| *key == &**name).map(|(_, value)| hash(value.as_bytes()))
        }),
    })
}

/// The tries of one request.
pub struct Tries<'a> {
    /// Whose request it is.
    pub exchange: &'a Rc<Exchange>,
    /// The configuration.
    pub view: &'a Rc<View>,
    /// The cluster, as it is now: a retry may find it changed.
    pub state: Rc<ClusterState>,
    /// When to try again.
    pub policy: &'a RetryPolicy,
    /// Key of a consistent hash.
    pub hash: Option<u64>,
    /// The route's timeout, which begins when the whole request has arrived (Envoy).
    pub timeout: Option<Duration>,
    /// When it is over; known once there is an answer.
    pub deadline: Option<Instant>,
    /// Numbers the tries for the upstream.
    pub attempt_count: bool,
}

impl Tries<'_> {
    /// Sends the request until there is an answer to give.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn run(&mut self, request: Request) -> Result<Response, Failure> {
        let Request { head, body } = request;
        let replay = Replay::new(body);
        let Some(timeout) = self.timeout else { return self.all(head, &replay).await };
        let over = after(&replay, timeout);
        let answered = tokio::select! {
            biased;
            result = self.all(head, &replay) => Some(result),
            () = over => None,
        };
        self.deadline = Some(replay.completed().unwrap_or_else(Instant::now) + timeout);
        answered.unwrap_or_else(|| {
            if let Some(upstream) = &self.exchange.story.borrow().upstream {
                let slow = self.state.hosts().find(|(host, _)| host.address() == Some(upstream.address));
                if let Some((host, _)) = slow {
                    self.state.note(&host, Sign::Local);
                }
            }
            Err(Failure::new(Kind::Timeout, "the route's timeout has passed"))
        })
    }

    async fn all(&mut self, mut head: Head, replay: &Replay) -> Result<Response, Failure> {
        let mut tried: Vec<Rc<Host>> = Vec::new();
        let mut retry = 0;
        let stats = Arc::clone(&self.state.common.stats);
        let mut _place = None;
        loop {
            self.exchange.story.borrow_mut().attempts = retry + 1;
            if self.attempt_count {
                head.set(Known::XEnvoyAttemptCount, itoa::Buffer::new().format(retry + 1));
            }
            let mut result = self.one(&head, replay, &mut tried).await;
            let unreached = result.as_mut().is_ok_and(|response| {
                response.head.remove(UNREACHED) && response.head.status() == StatusCode::SERVICE_UNAVAILABLE
            });
            let outcome = match &result {
                Ok(response) => Some(Outcome::Answered {
                    status: response.head.status().as_u16(),
                    grpc: response.head.get_str(Known::GrpcStatus).and_then(|code| code.parse().ok()),
                }),
                Err(failure) => failure.outcome(),
            };
            let wants = |outcome| self.policy.wants(outcome);
            let wanted = self.policy.attempts > 0
                && (outcome.is_some_and(wants) || unreached && wants(Outcome::ConnectFailure));
            if !wanted {
                return result;
            }
            if retry >= self.policy.attempts {
                self.exchange.flag(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
                return result;
            }
            if !replay.again() {
                stats.retry_body_too_large.fetch_add(1, Ordering::Relaxed);
                return result;
            }
            _place = None;
            _place = self.state.common.usage.retry();
            if _place.is_none() {
                let _ = overflow(&self.state, "maxRetries");
                self.exchange.flag(ResponseFlags::UPSTREAM_OVERFLOW);
                return result;
            }
            retry += 1;
            stats.retries.fetch_add(1, Ordering::Relaxed);
            drop(self.exchange.held.borrow_mut().take());
            drop(result);
            if unreached && retry == 1 {
                self.successor(&tried).await;
            }
            let wait = self.policy.backoff(retry, self.exchange.conn.worker.fraction());
            tokio::time::sleep(wait).await;
        }
    }

    /// An application that has ended has a successor, or will in a moment: waits until the newest configuration knows an endpoint that was
    /// not tried, and not for ever.
    async fn successor(&mut self, tried: &[Rc<Host>]) {
        let end = Instant::now() + MOMENT;
        loop {
            let worker = &self.exchange.conn.worker;
            if let Some(now) = worker.cluster(&worker.view(), &self.state.name) {
                self.state = now;
            }
            let known = |host: &Host| tried.iter().any(|tried| tried.address() == host.address());
            let other = self.state.hosts().any(|(host, out)| !out && !known(&host));
            if other || Instant::now() >= end {
                return;
            }
            tokio::time::sleep(MOMENT / 50).await;
        }
    }

    /// One try, within its own timeout.
    async fn one(
        &self,
        head: &Head,
        replay: &Replay,
        tried: &mut Vec<Rc<Host>>,
    ) -> Result<Response, Failure> {
        let host = self.pick(head, tried).await?;
        tried.push(Rc::clone(&host));
        let sending = self.send(&host, head, replay);
        let result = match self.policy.per_try {
            None => sending.await,
            Some(limit) => tokio::select! {
                biased;
                result = sending => result,
                () = after(replay, limit) => Err(Failure::new(Kind::TryTimeout, "the try's timeout has passed")),
            },
        };
        let sign = match &result {
            Ok(response) => Some(Sign::Status(response.head.status().as_u16())),
            Err(failure) => failure.sign(),
        };
        if let Some(sign) = sign {
            self.state.note(&host, sign);
        }
        result
    }

    async fn pick(&self, head: &Head, tried: &[Rc<Host>]) -> Result<Rc<Host>, Failure> {
        if matches!(self.state.cluster().discovery, Discovery::OriginalDst) {
            let found = original_destination(&self.exchange.conn, head.authority(), false);
            let address = Box::pin(found).await?;
            return Ok(self.state.original(address));
        }
        let avoid = if self.policy.avoid_previous && self.hash.is_none() { tried } else { &[] };
        let picks = self.policy.max_picks.max(1);
        self.state.pick(|| self.exchange.conn.worker.random(), self.hash, avoid, picks)
    }

    async fn send(&self, host: &Rc<Host>, head: &Head, replay: &Replay) -> Result<Response, Failure> {
        let worker = &self.exchange.conn.worker;
        let spoken = spoken(&self.state, head);
        let in_flight = InFlight::new(&self.state, host)?;
        *self.exchange.held.borrow_mut() = Some(in_flight);
        let mut again = true;
        loop {
            let leased = pool::acquire(worker, self.view, &self.state, host, spoken).await?;
            {
                let mut story = self.exchange.story.borrow_mut();
                story.upstream = Some(Upstream {
                    address: leased.ends.remote,
                    local: leased.ends.local,
                    principal: leased.ends.principal.clone(),
                    mutual: leased.ends.mutual,
                });
            }
            self.state.common.stats.requests.fetch_add(1, Ordering::Relaxed);
            let reused = leased.reused;
            let error = match leased.send(head, replay.body()).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            // A warm connection may have been closed just as it was taken. RFC 9110 §9.2.2 lets safe methods go again.
            let safe = matches!(*head.method(), Method::GET | Method::HEAD | Method::OPTIONS);
            let unseen = error.never_seen() || (safe && !error.answered);
            if !(reused && again && unseen && replay.again()) {
                return Err(Failure::of_send(&error));
            }
            again = false;
        }
    }
}

fn spoken(state: &ClusterState, head: &Head) -> Spoken {
    if head.upgrade().is_some() {
        return Spoken::Http1;
    }
    match state.cluster().protocol {
        Protocol::Http1 => Spoken::Http1,
        Protocol::Http2 => Spoken::Http2,
        Protocol::Auto => Spoken::Either,
        Protocol::Downstream if head.version() == Version::Http2 => Spoken::Http2,
        Protocol::Downstream => Spoken::Http1,
    }
}

/// Waits for a time from now, but not before the whole request has arrived: an upload is not the upstream's slowness.
async fn after(replay: &Replay, time: Duration) {
    replay.complete().await;
    tokio::time::sleep(time).await;
}

/// Ends an answer that is still streaming when the route's timeout passes.
fn limit(exchange: &Rc<Exchange>, mut response: Response, deadline: Option<Instant>) -> Response {
    let Some(deadline) = deadline.filter(|_| response.upgraded.is_none() && !response.body.is_empty()) else {
        return response;
    };
    let rest = std::mem::take(&mut response.body);
    let limited = Limited { rest, deadline, sleep: None, exchange: Rc::clone(exchange) };
    response.body = Body::from_source(Box::new(limited));
    response
}

struct Limited {
    rest: Body,
    deadline: Instant,
    /// Made when the answer is first waited for: most are there whole.
    sleep: Option<std::pin::Pin<Box<Sleep>>>,
    exchange: Rc<Exchange>,
}

impl Source for Limited {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if let Poll::Ready(next) = self.rest.poll_frame(cx) {
            return Poll::Ready(next);
        }
        let deadline = self.deadline;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        std::task::ready!(std::future::Future::poll(sleep.as_mut(), cx));
        self.exchange.flag(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT);
        Poll::Ready(Some(Err(BodyError::TimedOut)))
    }

    fn exact_len(&self) -> Option<u64> {
        self.rest.exact_len()
    }

    fn poll_progress(&mut self, cx: &mut Context<'_>) {
        self.rest.poll_progress(cx);
    }
}
