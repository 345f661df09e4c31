//! The native stream: series and records of our own proxies.
//!
//! In: frames of `crema.telemetry.v1`. Out: metric differences, bags of records, spans; acknowledgements with credit.
//! Kept true: a series is counted once per (proxy, epoch, series) however often it is sent; loss that proxies report is
//! exported. Not here: what series feed (`series`), what records lead to (`dispatch`).

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ahash::AHashMap;
use futures::Stream;
use telemetry_api::{
    Ack, ConnectionEvent, Direction, Facts, Frame, Hello, Record, Series, series::Kind,
    telemetry_server::Telemetry,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::{node_uid, speaks_for};
use crate::{
    adapters::item::Span,
    attributes::{Bag, Builtin, StringMap, Text, Timestamp, Value},
    config::Generation,
    core::Mixer,
    dispatch::Feed,
    series::ProxySeries,
};

/// Bytes of records that a proxy may send beyond each acknowledged frame. Handing out a frame never waits and every
/// queue behind it is bounded, so the credit is a constant.
const CREDIT: u64 = 4 << 20;
/// Most bytes of words that one stream may hold here.
const MOST_WORD_BYTES: usize = 16 << 20;
/// Most proxies that are remembered; beyond them, those without a stream are forgotten.
const MOST_PROXIES: usize = 50_000;
/// Longest node id, in bytes.
const MOST_NODE_ID: usize = 1_024;
/// Most reasons for loss that one proxy may give.
const MOST_REASONS: usize = 64;
/// How long a proxy that has gone is remembered, so that its return does not count twice.
const MEMORY: Duration = Duration::from_secs(3_600);

/// Node id and epoch.
type ProxyKey = (String, u64);

/// What mixer knows of proxies, across their streams.
#[derive(Default)]
pub struct Proxies {
    known: Mutex<AHashMap<ProxyKey, Arc<Mutex<Proxy>>>>,
    totals: Mutex<Totals>,
}

impl std::fmt::Debug for Proxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proxies")
    }
}

#[derive(Default)]
struct Proxy {
    series: ProxySeries,
    lost: BTreeMap<String, u64>,
    streams: usize,
    seen: Option<Instant>,
}

#[derive(Default)]
struct Totals {
    frames: u64,
    series: u64,
    records: u64,
    gaps: u64,
    refused_series: u64,
    lost: BTreeMap<String, u64>,
}

impl Proxies {
    fn proxy(&self, node: &str, epoch: u64) -> Arc<Mutex<Proxy>> {
        let now = Instant::now();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains_key(&(node.to_owned(), epoch)) {
            let crowded = known.len() >= MOST_PROXIES;
            known.retain(|_, proxy| {
                let proxy = proxy.lock().unwrap_or_else(PoisonError::into_inner);
                let fresh = !crowded && proxy.seen.is_none_or(|seen| now.duration_since(seen) < MEMORY);
                proxy.streams > 0 || fresh
            });
        }
        known.entry((node.to_owned(), epoch)).or_default().clone()
    }

    /// Counters as Prometheus text.
    #[must_use]
    pub fn prometheus_text(&self) -> String {
        use std::fmt::Write as _;
        let connected = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let streams =
                |proxy: &Arc<Mutex<Proxy>>| proxy.lock().unwrap_or_else(PoisonError::into_inner).streams;
            known.values().map(streams).sum::<usize>()
        };
        let totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = format!("# TYPE mixer_streams gauge\nmixer_streams {connected}\n");
        for (name, value) in [
            ("mixer_stream_frames_total", totals.frames),
            ("mixer_stream_series_total", totals.series),
            ("mixer_stream_records_total", totals.records),
            ("mixer_stream_gaps_total", totals.gaps),
            ("mixer_stream_series_refused_total", totals.refused_series),
        ] {
            let _ = writeln!(out, "# TYPE {name} counter\n{name} {value}");
        }
        let _ = writeln!(out, "# TYPE mixer_proxy_records_lost_total counter");
        for (reason, count) in &totals.lost {
            let _ = writeln!(out, "mixer_proxy_records_lost_total{{reason=\"{reason}\"}} {count}");
        }
        out
    }
}

/// One stream's state.
pub struct Session {
    mixer: Arc<Mixer>,
    node: String,
    uid: Option<Text>,
    words: Vec<Text>,
    word_bytes: usize,
    last_seq: u64,
    proxy: Arc<Mutex<Proxy>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut proxy = self.proxy.lock().unwrap_or_else(PoisonError::into_inner);
        proxy.streams = proxy.streams.saturating_sub(1);
        proxy.seen = Some(Instant::now());
    }
}

impl Session {
    /// Opens a session for the proxy that says hello.
    #[must_use]
    pub fn open(mixer: &Arc<Mixer>, hello: &Hello) -> Self {
        let proxy = mixer.proxies.proxy(&hello.node_id, hello.epoch);
        proxy.lock().unwrap_or_else(PoisonError::into_inner).streams += 1;
        Self {
            mixer: mixer.clone(),
            node: hello.node_id.clone(),
            uid: node_uid(&hello.node_id),
            words: vec![Text::from("")],
            word_bytes: 0,
            last_seq: 0,
            proxy,
        }
    }

    /// Takes one frame.
    pub fn frame(&mut self, frame: Frame) -> Result<Ack, Status> {
        self.word_bytes += frame.words.iter().map(|word| word.len() + 32).sum::<usize>();
        if self.word_bytes > MOST_WORD_BYTES {
            return Err(Status::resource_exhausted(format!(
                "the stream's dictionary exceeds {MOST_WORD_BYTES} bytes; open a new stream"
            )));
        }
        self.words.extend(frame.words.iter().map(|word| Text::from(word.as_str())));
        let generation = self.mixer.generation();
        let mut refused = 0;
        let mut lost = Vec::new();
        let (series_count, record_count) = (frame.series.len(), frame.records.len());
        {
            let proxy = self.proxy.clone();
            let mut proxy = proxy.lock().unwrap_or_else(PoisonError::into_inner);
            for series in frame.series {
                refused += u64::from(!self.series(series, &mut proxy, &generation)?);
            }
            for loss in frame.losses {
                if proxy.lost.len() >= MOST_REASONS && !proxy.lost.contains_key(&loss.reason) {
                    continue;
                }
                let before = proxy.lost.insert(loss.reason.clone(), loss.records).unwrap_or(0);
                lost.push((loss.reason, loss.records.saturating_sub(before)));
            }
        }
        for record in frame.records {
            self.record(record, &generation)?;
        }
        let mut totals = self.mixer.proxies.totals.lock().unwrap_or_else(PoisonError::into_inner);
        totals.frames += 1;
        totals.series += u64::try_from(series_count).unwrap_or(0);
        totals.records += u64::try_from(record_count).unwrap_or(0);
        totals.refused_series += refused;
        if self.last_seq != 0 {
            totals.gaps += frame.seq.saturating_sub(self.last_seq.saturating_add(1));
        }
        for (reason, count) in lost {
            // Reasons are few; a proxy that invents them does not fill memory.
            let known = totals.lost.len() < MOST_REASONS || totals.lost.contains_key(&reason);
            *totals.lost.entry(if known { reason } else { "other".to_owned() }).or_default() += count;
        }
        self.last_seq = frame.seq;
        Ok(Ack { last_seq: frame.seq, credit_bytes: CREDIT })
    }

    fn word(&self, index: u32) -> Result<&Text, Status> {
        let word = usize::try_from(index).ok().and_then(|index| self.words.get(index));
        word.ok_or_else(|| Status::invalid_argument(format!("word {index} has not been sent on this stream")))
    }

    fn series(&self, series: Series, proxy: &mut Proxy, generation: &Generation) -> Result<bool, Status> {
        let Some(state) = proxy.series.state(series.id) else { return Ok(false) };
        if let Some(facts) = &series.facts {
            let mut bag = Bag::new(&generation.vocabulary);
            self.facts(facts, &mut bag)?;
            state.set_facts(&bag);
        }
        if !state.has_facts() {
            return Err(Status::failed_precondition(format!(
                "series {} came without facts, which this mixer has never seen",
                series.id
            )));
        }
        match series.kind {
            Some(Kind::Http(http)) => state.http(http, generation, &self.mixer.counters),
            Some(Kind::Tcp(tcp)) => state.tcp(tcp, generation, &self.mixer.counters),
            None => {}
        }
        Ok(true)
    }

    fn facts(&self, facts: &Facts, bag: &mut Bag) -> Result<(), Status> {
        let outbound = facts.direction() == Direction::Outbound;
        let (kind, own_uid) =
            if outbound { ("outbound", Builtin::SourceUid) } else { ("inbound", Builtin::DestinationUid) };
        bag.set_text(Builtin::ContextReporterKind, kind);
        // Who reports is what TLS or the node id says, not what a frame says.
        let uid = match &self.uid {
            Some(uid) => uid.clone(),
            None => self.word(facts.reporter_uid)?.clone(),
        };
        bag.set_text(own_uid, uid.clone());
        bag.set_text(Builtin::ContextReporterUid, uid);
        let protocol = match &**self.word(facts.protocol)? {
            "http2" | "http/1.1" | "" => Text::from("http"),
            other => Text::from(other),
        };
        let tcp = &*protocol == "tcp";
        bag.set_text(Builtin::ContextProtocol, protocol);
        for (attribute, index) in
            [(Builtin::SourceIp, facts.source_ip), (Builtin::DestinationIp, facts.destination_ip)]
        {
            if let Ok(ip) = self.word(index)?.parse() {
                bag.set(attribute, Value::ip(ip));
            }
        }
        for (attribute, index) in [
            (Builtin::SourcePrincipal, facts.source_principal),
            (Builtin::SourceUser, facts.source_principal),
            (Builtin::DestinationPrincipal, facts.destination_principal),
            (Builtin::DestinationServiceHost, facts.destination_service_host),
            (Builtin::DestinationServiceName, facts.destination_service_name),
            (Builtin::DestinationServiceNamespace, facts.destination_service_namespace),
            (Builtin::ResponseGrpcStatus, facts.grpc_status),
            (Builtin::ContextProxyErrorCode, facts.response_flags),
        ] {
            let word = self.word(index)?;
            if !word.is_empty() {
                let word = word.strip_prefix("spiffe://").map_or_else(|| word.clone(), Text::from);
                bag.set(attribute, Value::String(word));
            }
        }
        let name = self.word(facts.destination_service_name)?;
        if !name.is_empty() {
            let namespace = self.word(facts.destination_service_namespace)?;
            bag.set_text(Builtin::DestinationServiceUid, format!("istio://{namespace}/services/{name}"));
        }
        if facts.destination_port != 0 {
            bag.set(Builtin::DestinationPort, Value::Int64(i64::from(facts.destination_port)));
        }
        if !tcp {
            bag.set(Builtin::ResponseCode, Value::Int64(i64::from(facts.response_code)));
        }
        bag.set(Builtin::ConnectionMtls, Value::Bool(facts.mutual_tls));
        Ok(())
    }

    fn record(&self, record: Record, generation: &Generation) -> Result<(), Status> {
        let traced = record.span.as_ref().is_some_and(|span| !span.trace_id.is_empty() && span.sampled);
        if !traced && !generation.wants_records() {
            return Ok(());
        }
        let mut bag = Bag::new(&generation.vocabulary);
        let facts = record.facts.unwrap_or_default();
        self.facts(&facts, &mut bag)?;
        let http = record.connection_event() == ConnectionEvent::Http;
        let start = Timestamp::from_micros(record.start_us);
        let duration =
            i64::try_from(record.duration_us).ok().and_then(|us| us.checked_mul(1_000)).unwrap_or(i64::MAX);
        let end = Timestamp(start.0.saturating_add(duration));
        let int = |value: u64| Value::Int64(i64::try_from(value).unwrap_or(i64::MAX));
        bag.set(Builtin::ContextTime, Value::Timestamp(end));
        bag.set(Builtin::ContextTimestamp, Value::Timestamp(end));
        if record.source_port != 0 {
            bag.set(Builtin::SourcePort, Value::Int64(i64::from(record.source_port)));
        }
        bag.set_text(
            Builtin::ConnectionRequestedServerName,
            self.word(record.requested_server_name)?.clone(),
        );
        bag.set_text(Builtin::RouteName, self.word(record.route)?.clone());
        bag.set_text(Builtin::ResponseCodeDetails, record.response_detail.as_str());
        let method = self.word(record.method)?;
        let authority = self.word(record.authority)?;
        if http {
            bag.set(Builtin::RequestTime, Value::Timestamp(start));
            bag.set(Builtin::ResponseTime, Value::Timestamp(end));
            bag.set(Builtin::ResponseDuration, Value::Duration(duration));
            bag.set(Builtin::RequestSize, int(record.request_size));
            bag.set(Builtin::ResponseSize, int(record.response_size));
            bag.set(Builtin::RequestTotalSize, int(record.request_total_size));
            bag.set(Builtin::ResponseTotalSize, int(record.response_total_size));
            let target = if record.query.is_empty() {
                record.path.clone()
            } else {
                format!("{}?{}", record.path, record.query)
            };
            let user_agent = self.word(record.user_agent)?;
            for (attribute, text) in [
                (Builtin::RequestMethod, &**method),
                (Builtin::RequestScheme, self.word(record.scheme)?),
                (Builtin::RequestHost, authority),
                (Builtin::RequestPath, &target),
                (Builtin::RequestUrlPath, &record.path),
                (Builtin::RequestUseragent, user_agent),
                (Builtin::RequestId, &record.request_id),
                (Builtin::RequestReferer, &record.referer),
            ] {
                bag.set_text(attribute, text);
            }
            let mut headers: Vec<(Text, Text)> = Vec::with_capacity(12 + record.request_headers.len());
            let span = record.span.clone().unwrap_or_default();
            for (name, value) in [
                (":method", &**method),
                (":path", &target),
                (":authority", authority),
                ("user-agent", user_agent),
                ("referer", &record.referer),
                ("x-request-id", &record.request_id),
                ("x-forwarded-for", &record.forwarded_for),
                ("x-b3-traceid", &span.trace_id),
                ("x-b3-spanid", &span.span_id),
                ("x-b3-parentspanid", &span.parent_span_id),
                (
                    "x-b3-sampled",
                    if span.trace_id.is_empty() {
                        ""
                    } else if span.sampled {
                        "1"
                    } else {
                        "0"
                    },
                ),
            ] {
                if !value.is_empty() {
                    headers.push((name.into(), value.into()));
                }
            }
            let more = record.request_headers.iter();
            headers.extend(more.map(|(name, value)| (Text::from(name.as_str()), Text::from(value.as_str()))));
            bag.set(Builtin::RequestHeaders, Value::StringMap(headers.into_iter().collect()));
            let headers: StringMap =
                record.response_headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            bag.set(Builtin::ResponseHeaders, Value::StringMap(headers));
            if !record.query.is_empty() {
                bag.set(Builtin::RequestQueryParams, Value::StringMap(super::query_params(&record.query)));
            }
        } else {
            let event = match record.connection_event() {
                ConnectionEvent::Open => "open",
                ConnectionEvent::Close => "close",
                _ => "continue",
            };
            bag.set_text(Builtin::ConnectionEvent, event);
            bag.set_text(Builtin::ConnectionId, record.connection_id.to_string());
            bag.set(Builtin::ConnectionDuration, Value::Duration(duration));
            bag.set(Builtin::ConnectionReceivedBytes, int(record.request_size));
            bag.set(Builtin::ConnectionSentBytes, int(record.response_size));
            bag.set(Builtin::ConnectionReceivedBytesTotal, int(record.request_total_size));
            bag.set(Builtin::ConnectionSentBytesTotal, int(record.response_total_size));
        }
        let method = method.clone();
        let (bag, _) = self.mixer.report(generation, bag, Feed::Records);
        if let Some(span) = record.span.filter(|_| traced) {
            let cluster = self.word(facts.cluster)?.clone();
            self.mixer
                .recorder
                .span(Arc::new(recorded(&bag, span, &self.node, &method, &cluster, start, end)));
        }
        Ok(())
    }
}

/// The span of a joined record, with the tags that Istio's sidecars give theirs.
fn recorded(
    bag: &Bag,
    span: telemetry_api::Span,
    node: &str,
    method: &Text,
    cluster: &Text,
    start: Timestamp,
    end: Timestamp,
) -> Span {
    let service = |labels: Builtin, name: Builtin, namespace: Builtin, otherwise: &str| {
        let label = |key: &str| match bag.get(labels) {
            Some(Value::StringMap(map)) => map.get(key).cloned(),
            _ => None,
        };
        let canonical = label("service.istio.io/canonical-name").or_else(|| label("app"));
        match (canonical.or_else(|| bag.text(name).cloned()), bag.text(namespace)) {
            (Some(app), Some(namespace)) => Text::from(format!("{app}.{namespace}")),
            (Some(app), None) => app,
            (None, _) => otherwise.into(),
        }
    };
    let source =
        service(Builtin::SourceLabels, Builtin::SourceWorkloadName, Builtin::SourceNamespace, "unknown");
    let host = bag.text(Builtin::DestinationServiceHost).map_or("unknown", |host| host);
    let destination = service(
        Builtin::DestinationLabels,
        Builtin::DestinationWorkloadName,
        Builtin::DestinationNamespace,
        host,
    );
    let mut tags: Vec<(Text, Value)> = vec![("component".into(), Value::text("proxy"))];
    let mut tag = |name: &str, value: Option<&Value>| {
        if let Some(value) = value {
            tags.push((name.into(), value.clone()));
        }
    };
    tag("node_id", Some(&Value::text(node)));
    tag("http.method", Some(&Value::String(method.clone())));
    tag("upstream_cluster", Some(&Value::String(cluster.clone())).filter(|_| !cluster.is_empty()));
    for (name, attribute) in [
        ("http.url", Builtin::RequestPath),
        ("http.host", Builtin::RequestHost),
        ("http.status_code", Builtin::ResponseCode),
        ("response_flags", Builtin::ContextProxyErrorCode),
        ("guid:x-request-id", Builtin::RequestId),
        ("user_agent", Builtin::RequestUseragent),
        ("request_size", Builtin::RequestSize),
        ("response_size", Builtin::ResponseSize),
        ("peer.address", if span.client { Builtin::DestinationIp } else { Builtin::SourceIp }),
        ("destination.service", Builtin::DestinationServiceHost),
    ] {
        tag(name, bag.get(attribute));
    }
    let labels = if span.client { Builtin::SourceLabels } else { Builtin::DestinationLabels };
    if let Some(Value::StringMap(labels)) = bag.get(labels) {
        tag("version", labels.get("version").map(|version| Value::String(version.clone())).as_ref());
    }
    let (service, peer) = if span.client { (source, destination) } else { (destination, source) };
    let name = if span.name.is_empty() { host.to_owned() } else { span.name };
    Span {
        trace_id: span.trace_id.into(),
        id: span.span_id.into(),
        parent_id: span.parent_span_id.into(),
        name: name.into(),
        start,
        end,
        client: span.client,
        status: match bag.get(Builtin::ResponseCode) {
            Some(Value::Int64(code)) => *code,
            _ => 0,
        },
        service,
        peer,
        tags: tags.into(),
    }
}

/// The gRPC service.
#[derive(Clone, Debug)]
pub struct NativeService(pub Arc<Mixer>);

#[tonic::async_trait]
impl Telemetry for NativeService {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<Ack, Status>> + Send>>;

    async fn stream(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let mixer = self.0.clone();
        let extensions = request.extensions().clone();
        let frames = request.into_inner();
        let acks = futures::stream::try_unfold((frames, None::<Session>), move |(mut frames, session)| {
            let (mixer, extensions) = (mixer.clone(), extensions.clone());
            async move {
                let next = mixer.stop.run_until_cancelled(frames.message()).await;
                let Some(frame) = next.transpose()?.flatten() else { return Ok(None) };
                let mut session = match (session, &frame.hello) {
                    (Some(session), _) => session,
                    (None, Some(hello)) => {
                        if hello.node_id.len() > MOST_NODE_ID {
                            return Err(Status::invalid_argument(format!(
                                "node id is longer than {MOST_NODE_ID} bytes"
                            )));
                        }
                        if let Some(uid) = node_uid(&hello.node_id) {
                            speaks_for(&extensions, &uid, &mixer.generation().workloads)?;
                        }
                        Session::open(&mixer, hello)
                    }
                    (None, None) => return Err(Status::invalid_argument("the first frame must carry hello")),
                };
                let ack = session.frame(frame)?;
                Ok(Some((ack, (frames, Some(session)))))
            }
        });
        Ok(Response::new(Box::pin(acks)))
    }
}
