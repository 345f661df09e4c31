//! Feeds a running mixer with made-up traffic over the native stream, and says how much it took per second.
//!
//! In: `feed ADDR [SECONDS]`. Out: frames of series and records, and the rate at which they were acknowledged.
//! Kept true: what mixer counts afterwards is what was sent. Not here: a benchmark's verdict; it prints and no more.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use telemetry_api::{
    Facts, Frame, Hello, Histogram, HttpSeries, Record, Series, Span, bounds, series::Kind,
    telemetry_client::TelemetryClient,
};
use tokio_stream::wrappers::ReceiverStream;

const WORDS: [&str; 10] = [
    "http",
    "10.0.0.1",
    "cluster.local/ns/default/sa/default",
    "10.0.0.4",
    "reviews.default.svc.cluster.local",
    "reviews",
    "default",
    "GET",
    "-",
    "curl/8",
];
const BATCH: u64 = 500;

fn facts(code: u32) -> Facts {
    Facts {
        protocol: 1,
        source_ip: 2,
        source_principal: 3,
        destination_ip: 4,
        destination_port: 9080,
        destination_service_host: 5,
        destination_service_name: 6,
        destination_service_namespace: 7,
        response_code: code,
        response_flags: 9,
        mutual_tls: true,
        ..Default::default()
    }
}

fn record(number: u64, now: u64) -> Record {
    Record {
        facts: Some(facts(200)),
        start_us: now,
        duration_us: 1_000 + number % 9_000,
        method: 8,
        user_agent: 10,
        path: format!("/api/reviews/{}", number % 100),
        request_id: format!("id-{number}"),
        span: (number.is_multiple_of(100)).then(|| Span {
            trace_id: format!("{number:032x}"),
            span_id: format!("{number:016x}"),
            client: number.is_multiple_of(200),
            name: "reviews:9080/*".into(),
            sampled: true,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn histogram(bounds: &[f64], count: u64, value: f64) -> Option<Histogram> {
    let mut counts = vec![0; bounds.len() + 1];
    counts[bounds::index(bounds, value)] = count;
    Some(Histogram { counts, sum: value * f64::from(u32::try_from(count).unwrap_or(u32::MAX)) })
}

fn series(id: u64, code: u32, requests: u64, first: bool) -> Series {
    let numbers = HttpSeries {
        requests,
        duration_ms: histogram(&bounds::DURATION_MS, requests, 4.0),
        request_bytes: histogram(&bounds::BYTES, requests, 0.0),
        response_bytes: histogram(&bounds::BYTES, requests, 640.0),
        ..Default::default()
    };
    Series { id, facts: first.then(|| facts(code)), kind: Some(Kind::Http(numbers)) }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:9091".to_owned());
    let seconds: u64 = arguments.next().map_or(Ok(10), |text| text.parse())?;
    let (frames, receiver) = tokio::sync::mpsc::channel(8);
    let mut client = TelemetryClient::connect(format!("http://{address}")).await?;
    let started = Instant::now();
    tokio::spawn(async move {
        let mut sent = 0;
        let mut seq = 0;
        while started.elapsed() < Duration::from_secs(seconds) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let now = u64::try_from(now.as_micros()).unwrap_or(0);
            seq += 1;
            let hello = Hello {
                node_id: "sidecar~10.0.0.4~reviews-v2-1.default~default.svc.cluster.local".into(),
                epoch: now,
                role: "sidecar".into(),
                version: "feed".into(),
            };
            let records = (sent..sent + BATCH).map(|number| record(number, now)).collect();
            sent += BATCH;
            let frame = Frame {
                seq,
                hello: (seq == 1).then_some(hello),
                words: if seq == 1 { WORDS.iter().map(ToString::to_string).collect() } else { Vec::new() },
                series: vec![series(1, 200, sent - sent / 50, seq == 1), series(2, 503, sent / 50, seq == 1)],
                records,
                losses: Vec::new(),
            };
            if frames.send(frame).await.is_err() {
                return;
            }
        }
    });
    let mut acks = client.stream(ReceiverStream::new(receiver)).await?.into_inner();
    let mut last = 0;
    while let Some(ack) = acks.message().await? {
        last = ack.last_seq;
    }
    let rate = last * BATCH * 1_000 / u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
    println!("{} records in {last} frames acknowledged, {rate} records/s", last * BATCH);
    Ok(())
}
