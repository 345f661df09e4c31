//! The stream to mixer: everything that workers report, told in order, again in full after every reconnect.
//!
//! In: [`Report`]s. Out: [`Frame`]s of the native stream. Kept true: series are cumulative and never lost; events are bounded in bytes, sent
//! within the receiver's credit, and what is dropped is counted. Not here: gathering (`local`).

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use ahash::AHashMap;
use mesh_runtime::{Backoff, Outage, drain::Watch};
use mesh_traffic::names::Direction;
use telemetry_api::{self as pb, Frame, telemetry_client::TelemetryClient};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::{
    local::{Batch, Head, Report, Texts},
    series::{Facts, Numbers},
};

/// Most bytes of events that wait.
const MAX_WAITING: usize = 8 * 1024 * 1024;

/// Most bytes of words that one stream carries.
const MAX_WORDS: usize = 4 * 1024 * 1024;
/// Most series of one frame.
const SERIES_PER_FRAME: usize = 500;

/// Who is speaking.
#[derive(Debug, Clone)]
pub struct Speaker {
    /// xDS node id.
    pub node_id: String,
    /// `kubernetes://pod.namespace`.
    pub uid: String,
    /// `sidecar` or `router`.
    pub role: String,
    /// Drawn when the process starts.
    pub epoch: u64,
}

type SeriesId = (usize, u32);

/// Everything that is to be told.
#[derive(Default)]
struct Book {
    series: BTreeMap<SeriesId, (Arc<Facts>, Numbers)>,
    changed: HashSet<SeriesId>,
    waiting: VecDeque<(usize, Batch)>,
    bytes: usize,
    lost: BTreeMap<&'static str, u64>,
}

impl Book {
    fn take(&mut self, report: Report, connected: bool) {
        for (number, facts, numbers) in report.series {
            let id = (report.worker, number);
            self.series.insert(id, (facts, numbers));
            self.changed.insert(id);
        }
        *self.lost.entry("ring_full").or_default() += report.lost;
        if report.events.is_empty() {
            return;
        }
        self.bytes += report.events.bytes();
        self.waiting.push_back((report.worker, report.events));
        while self.bytes > MAX_WAITING {
            let Some((_, oldest)) = self.waiting.pop_front() else { break };
            self.bytes -= oldest.bytes();
            let reason = if connected { "window_full" } else { "no_upstream" };
            *self.lost.entry(reason).or_default() += u64::try_from(oldest.len()).unwrap_or(0);
        }
    }
}

/// What one stream has said so far.
struct Stream {
    seq: u64,
    words: AHashMap<String, u32>,
    new_words: Vec<String>,
    word_bytes: usize,
    named: HashSet<SeriesId>,
    /// Facts in this stream's words, so that a record names them without putting them into text again.
    facts: AHashMap<SeriesId, pb::Facts>,
    credit: i64,
}

impl Stream {
    fn word(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        if let Some(word) = self.words.get(text) {
            return *word;
        }
        let word = u32::try_from(self.words.len() + 1).unwrap_or(0);
        self.word_bytes += text.len();
        self.words.insert(text.to_owned(), word);
        self.new_words.push(text.to_owned());
        word
    }

    fn facts(&mut self, id: SeriesId, facts: &Facts, uid: &str) -> pb::Facts {
        if let Some(known) = self.facts.get(&id) {
            return *known;
        }
        let known = self.put_in_words(facts, uid);
        self.facts.insert(id, known);
        known
    }

    fn put_in_words(&mut self, facts: &Facts, uid: &str) -> pb::Facts {
        let mut ip = |ip: Option<IpAddr>| ip.map_or(0, |ip| self.word(&ip.to_string()));
        let (source_ip, destination_ip) = (ip(facts.source_ip), ip(facts.destination_ip));
        let mut word = |text: Option<&str>| text.map_or(0, |text| self.word(text));
        let service = facts.service.as_ref();
        pb::Facts {
            direction: match facts.direction {
                Direction::Inbound => pb::Direction::Inbound.into(),
                Direction::Outbound => pb::Direction::Outbound.into(),
            },
            protocol: word(Some(facts.protocol)),
            source_ip,
            source_principal: word(facts.source_principal.as_deref()),
            destination_ip,
            destination_port: facts.destination_port.into(),
            destination_principal: word(facts.destination_principal.as_deref()),
            destination_service_host: word(service.map(|s| &*s.host)),
            destination_service_name: word(service.map(|s| &*s.name)),
            destination_service_namespace: word(service.map(|s| &*s.namespace)),
            response_code: facts.code.into(),
            response_flags: word(Some(&facts.flags.to_string())),
            grpc_status: word(facts.grpc.map(|code| code.to_string()).as_deref()),
            mutual_tls: facts.mutual,
            cluster: word(Some(&facts.cluster)),
            reporter_uid: word(Some(uid)),
        }
    }

    fn series(&mut self, id: SeriesId, facts: &Facts, numbers: &Numbers, uid: &str) -> pb::Series {
        let kind = if facts.protocol == "tcp" {
            pb::series::Kind::Tcp(pb::TcpSeries {
                opened: numbers.opened,
                closed: numbers.closed,
                received_bytes: numbers.received,
                sent_bytes: numbers.sent,
            })
        } else {
            pb::series::Kind::Http(pb::HttpSeries {
                requests: numbers.requests,
                duration_ms: Some(numbers.duration.to_wire()),
                request_bytes: Some(numbers.request_bytes.to_wire()),
                response_bytes: Some(numbers.response_bytes.to_wire()),
                request_messages: 0,
                response_messages: 0,
            })
        };
        let first = self.named.insert(id);
        pb::Series { id: wire_id(id), facts: first.then(|| self.facts(id, facts, uid)), kind: Some(kind) }
    }

    fn record(
        &mut self,
        id: SeriesId,
        facts: &Facts,
        head: &Head,
        texts: &Texts<'_>,
        uid: &str,
    ) -> pb::Record {
        let span = (!texts.trace.is_empty()).then(|| pb::Span {
            trace_id: texts.trace.to_owned(),
            span_id: texts.span.to_owned(),
            parent_span_id: texts.parent.to_owned(),
            client: facts.direction == Direction::Outbound,
            name: texts.operation.to_owned(),
            sampled: head.sampled,
        });
        pb::Record {
            facts: Some(self.facts(id, facts, uid)),
            start_us: head.start_us,
            duration_us: head.duration_us,
            request_size: head.request_size,
            response_size: head.response_size,
            request_total_size: head.request_total,
            response_total_size: head.response_total,
            method: self.word(texts.method),
            scheme: self.word(texts.scheme),
            authority: self.word(texts.authority),
            path: texts.path.to_owned(),
            query: texts.query.to_owned(),
            user_agent: self.word(texts.user_agent),
            request_id: texts.request_id.to_owned(),
            referer: texts.referer.to_owned(),
            forwarded_for: texts.forwarded_for.to_owned(),
            response_detail: texts.detail.to_owned(),
            requested_server_name: self.word(texts.server_name),
            source_port: head.source_port.into(),
            route: self.word(texts.route),
            span,
            truncated: head.truncated(),
            connection_event: head.event,
            connection_id: head.connection,
            attempts: head.attempts,
            ..pb::Record::default()
        }
    }
}

/// Bits 32 and up name the worker.
fn wire_id((worker, number): SeriesId) -> u64 {
    (u64::try_from(worker).unwrap_or(0) << 32) | u64::from(number) | 1 << 63
}

/// Tells mixer until there is nothing more to tell: reports have ended, or the drain is forced.
pub async fn run(channel: Channel, speaker: Speaker, mut reports: mpsc::Receiver<Report>, drain: Watch) {
    let mut book = Book::default();
    let mut backoff = Backoff::default();
    let mut outage = Outage::new("mixer's telemetry stream");
    let mut over = false;
    while !over {
        let ended = tokio::select! {
            ended = stream(&channel, &speaker, &mut reports, &mut book, &mut backoff, &mut outage) => ended,
            () = drain.forced() => return,
        };
        match ended {
            Ok(()) => over = true,
            Err(why) => {
                outage.failed(&why);
                let wait = tokio::time::sleep(backoff.next_wait());
                tokio::pin!(wait);
                loop {
                    tokio::select! {
                        () = &mut wait => break,
                        () = drain.forced() => return,
                        report = reports.recv() => match report {
                            Some(report) => book.take(report, false),
                            None => { over = true; break; }
                        },
                    }
                }
            }
        }
    }
}

/// One stream, from its hello to its end. `Ok` when reports have ended and everything was taken.
async fn stream(
    channel: &Channel,
    speaker: &Speaker,
    reports: &mut mpsc::Receiver<Report>,
    book: &mut Book,
    backoff: &mut Backoff,
    outage: &mut Outage,
) -> Result<(), Refused> {
    let (out, frames) = mpsc::channel(4);
    let mut client = TelemetryClient::new(channel.clone());
    let mut state = Stream {
        seq: 0,
        words: AHashMap::new(),
        new_words: Vec::new(),
        word_bytes: 0,
        named: HashSet::new(),
        facts: AHashMap::new(),
        credit: 256 * 1024,
    };
    // The first frame waits in the channel before the call: the server answers its headers at once or with the first ack.
    let hello = pb::Hello {
        node_id: speaker.node_id.clone(),
        epoch: speaker.epoch,
        role: speaker.role.clone(),
        version: mesh_runtime::cli::VERSION.to_owned(),
    };
    state.seq = 1;
    let first = Frame { seq: 1, hello: Some(hello), ..Frame::default() };
    out.send(first).await.map_err(|_| Refused::closed())?;
    let mut acks =
        client.stream(ReceiverStream::new(frames)).await.map_err(|s| Refused(s.to_string()))?.into_inner();
    book.changed.extend(book.series.keys().copied());
    let mut ended = false;
    let mut acknowledged = 0;
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            ack = acks.message() => match ack.map_err(|s| Refused(s.to_string()))? {
                Some(ack) => {
                    if acknowledged == 0 {
                        backoff.reset();
                        outage.recovered();
                    }
                    acknowledged = ack.last_seq;
                    state.credit = i64::try_from(ack.credit_bytes).unwrap_or(i64::MAX);
                }
                None => return Err(Refused::closed()),
            },
            report = reports.recv(), if !ended => match report {
                Some(report) => {
                    book.take(report, true);
                    // Whatever else waits goes into the same frames.
                    while let Ok(report) = reports.try_recv() {
                        book.take(report, true);
                    }
                }
                None => ended = true,
            },
            _ = tick.tick() => {}
        }
        if state.word_bytes > MAX_WORDS {
            return Err(Refused("the dictionary is full: a new stream begins with an empty one".to_owned()));
        }
        while let Some(frame) = next_frame(&mut state, book, &speaker.uid) {
            out.send(frame).await.map_err(|_| Refused::closed())?;
        }
        if ended && acknowledged >= state.seq {
            return Ok(());
        }
    }
}

fn next_frame(state: &mut Stream, book: &mut Book, uid: &str) -> Option<Frame> {
    let mut frame = Frame::default();
    let ids: Vec<SeriesId> = book.changed.iter().copied().take(SERIES_PER_FRAME).collect();
    for id in ids {
        book.changed.remove(&id);
        if let Some((facts, numbers)) = book.series.get(&id) {
            frame.series.push(state.series(id, facts, numbers, uid));
        }
    }
    if state.credit > 0
        && let Some((worker, batch)) = book.waiting.pop_front()
    {
        book.bytes -= batch.bytes();
        for (head, texts) in batch.iter() {
            let id = (worker, head.series);
            match book.series.get(&id) {
                Some((facts, _)) => frame.records.push(state.record(id, facts, head, &texts, uid)),
                None => *book.lost.entry("too_large").or_default() += 1,
            }
        }
        state.credit -= i64::try_from(batch.bytes()).unwrap_or(i64::MAX);
    }
    if frame.series.is_empty() && frame.records.is_empty() {
        return None;
    }

    state.seq += 1;
    frame.seq = state.seq;
    frame.words = std::mem::take(&mut state.new_words);
    frame.losses = book
        .lost
        .iter()
        .filter(|(_, records)| **records > 0)
        .map(|(reason, records)| pb::Loss { reason: (*reason).to_owned(), records: *records })
        .collect();
    Some(frame)
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

impl Refused {
    fn closed() -> Self {
        Self("the stream was closed".to_owned())
    }
}

#[cfg(test)]
mod tests;
