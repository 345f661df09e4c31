use std::{
    pin::Pin,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use mesh_identity::{CertStore, TrustDomain, grpc};
use mesh_runtime::drain;
use telemetry_api::{
    Ack,
    telemetry_server::{Telemetry, TelemetryServer},
};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::{
    telemetry::{local::Local, series::tests::facts},
    worker::{Settings, Shared},
};

/// Keeps frames; each stream is cut after as many frames as `cuts` says, the last one goes on.
struct Mixer {
    frames: mpsc::UnboundedSender<Frame>,
    cuts: Mutex<VecDeque<usize>>,
    credit: u64,
}

#[tonic::async_trait]
impl Telemetry for Mixer {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<Ack, Status>> + Send>>;

    async fn stream(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let (frames, credit_bytes) = (self.frames.clone(), self.credit);
        let cut = self.cuts.lock().expect("no panic").pop_front().unwrap_or(usize::MAX);
        let acks = request.into_inner().take(cut).map(move |frame| {
            let frame = frame?;
            let last_seq = frame.seq;
            let _ = frames.send(frame);
            Ok(Ack { last_seq, credit_bytes })
        });
        Ok(Response::new(Box::pin(acks)))
    }
}

async fn mixer(cuts: &[usize], credit: u64) -> (Channel, mpsc::UnboundedReceiver<Frame>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let (frames, seen) = mpsc::unbounded_channel();
    let service = Mixer { frames, cuts: Mutex::new(cuts.iter().copied().collect()), credit };
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(TelemetryServer::new(service))
            .serve_with_incoming(incoming),
    );
    let channel = grpc::channel(&address, grpc::Target::Plaintext, &grpc::ChannelOptions::default());
    (channel.expect("an address"), seen)
}

fn speaker() -> Speaker {
    Speaker { node_id: "sidecar~x".into(), uid: "kubernetes://a.b".into(), role: "sidecar".into(), epoch: 7 }
}

fn event<'a>() -> (Head, Texts<'a>) {
    let head = Head::new(SystemTime::UNIX_EPOCH, Duration::from_millis(3));
    (head, Texts { method: "GET", path: "/p", request_id: "r", ..Texts::default() })
}

#[tokio::test(start_paused = true)]
async fn after_a_reconnect_every_series_is_told_again_in_full_and_words_begin_anew() {
    let (channel, mut seen) = mixer(&[2], 1 << 20).await;
    let (trigger, watch) = drain::new();
    let (out, reports) = mpsc::channel(8);
    let store = CertStore::new(TrustDomain::default(), []);
    let shared = Shared::new(Settings::default(), store, Some(out), watch.clone());
    let local = Local::new(3, &shared);
    let uplink = tokio::spawn(run(channel, speaker(), reports, watch));
    let hello = seen.recv().await.expect("a frame");
    assert_eq!((hello.seq, hello.hello.map(|h| (h.epoch, h.role))), (1, Some((7, "sidecar".to_owned()))));
    local.note(facts(200), |n| n.request(Duration::from_millis(3), 1, 2), Some(event()));
    local.flush();
    let first = seen.recv().await.expect("a frame");
    let word = |frame: &Frame, number: u32| frame.words[usize::try_from(number).expect("small") - 1].clone();
    let told = first.series[0].facts.as_ref().expect("named the first time");
    assert_eq!(word(&first, told.cluster), "c");
    assert_eq!(word(&first, told.reporter_uid), "kubernetes://a.b");
    assert_eq!((first.records.len(), word(&first, first.records[0].method).as_str()), (1, "GET"));

    // The stream is cut now; what is told meanwhile waits.
    local.note(facts(200), |n| n.request(Duration::from_millis(3), 1, 2), None);
    local.note(facts(503), |n| n.request(Duration::from_millis(1), 1, 2), None);
    local.flush();
    let hello = seen.recv().await.expect("a new stream");
    assert!(hello.hello.is_some() && hello.seq == 1);
    let mut counts = BTreeMap::new();
    let mut known: HashSet<u64> = HashSet::new();
    while counts.values().sum::<u64>() < 3 {
        let frame = seen.recv().await.expect("a frame");
        for series in frame.series {
            assert_eq!(
                series.facts.is_some(),
                known.insert(series.id),
                "facts the first time in this stream"
            );
            let Some(pb::series::Kind::Http(http)) = series.kind else { panic!("http") };
            counts.insert(series.id, http.requests);
        }
    }
    assert_eq!(counts.values().copied().collect::<Vec<_>>(), [2, 1]);

    drop((local, shared));
    uplink.await.expect("ends when there is nothing more to tell");
    drop(trigger);
}

#[tokio::test(start_paused = true)]
async fn without_credit_records_wait_and_series_do_not() {
    let (channel, mut seen) = mixer(&[], 0).await;
    let (_trigger, watch) = drain::new();
    let (out, reports) = mpsc::channel(8);
    let store = CertStore::new(TrustDomain::default(), []);
    let shared = Shared::new(Settings::default(), store, Some(out), watch.clone());
    let local = Local::new(0, &shared);
    tokio::spawn(run(channel, speaker(), reports, watch));
    seen.recv().await.expect("hello");
    tokio::time::sleep(Duration::from_secs(5)).await;
    local.note(facts(200), |n| n.request(Duration::from_millis(3), 1, 2), Some(event()));
    local.flush();
    let frame = seen.recv().await.expect("a frame");
    assert_eq!((frame.series.len(), frame.records.len()), (1, 0));
}

#[test]
fn what_does_not_fit_is_counted_by_reason() {
    let (out, mut reports) = mpsc::channel(8);
    let (_trigger, watch) = drain::new();
    let store = CertStore::new(TrustDomain::default(), []);
    let shared = Shared::new(Settings::default(), store, Some(out), watch);
    let local = Local::new(0, &shared);
    let mut book = Book::default();
    let long = "x".repeat(1000);
    for _ in 0..20_000 {
        let (head, texts) = event();
        local.note(facts(200), |n| n.requests += 1, Some((head, Texts { authority: &long, ..texts })));
        while let Ok(report) = reports.try_recv() {
            book.take(report, false);
        }
    }
    local.flush();
    while let Ok(report) = reports.try_recv() {
        book.take(report, false);
    }
    let waiting: usize = book.waiting.iter().map(|(_, batch)| batch.len()).sum();
    let lost: u64 = book.lost.values().sum();
    assert!(book.bytes <= MAX_WAITING);
    assert_eq!(u64::try_from(waiting).expect("small") + lost, 20_000, "{:?}", book.lost);
    assert!(book.lost["no_upstream"] > 0);
    let (_, numbers) = book.series.values().next().expect("one series");
    assert_eq!(numbers.requests, 20_000, "series lose nothing");
}
