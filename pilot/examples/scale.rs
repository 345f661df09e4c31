//! How long a change takes to reach every proxy: `cargo run -p pilot --example scale [SERVICES] [CLIENTS] [envoy]`.
//!
//! In: numbers of services and clients; `envoy` for whole route tables instead of single virtual hosts. Out: a table:
//! first sync, one endpoint, one route, each from the change to the last acknowledgement, with bytes per client.
//! Kept true: clients speak delta xDS over loopback and acknowledge everything. Not here: targets; figures are for people.

use anyhow::Context as _;
use mesh_config::Snapshot;
use mesh_identity::grpc;
use mesh_runtime::drain;
use pilot::{
    ads::{Type, server::Ads},
    push::Pusher,
};
use prost::Message as _;
use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use xds::{
    discovery::{
        DeltaDiscoveryRequest, Node, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    prost_types::{Struct, Value, value::Kind},
};

/// Every service has two versions with one pod each, a DestinationRule with two subsets, and a VirtualService.
fn mesh(services: usize, moved: bool, timeout: &str) -> Snapshot {
    let mut yaml = String::new();
    for n in 0..services {
        let (hi, lo) = (n / 250, n % 250 + 1);
        let first = if moved && n == 0 { "10.99.0.1".to_owned() } else { format!("10.1.{hi}.{lo}") };
        write!(
            yaml,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, namespace: default}}\nspec: {{clusterIP: \
             10.3.{hi}.{lo}, ports: [{{name: http, port: 80}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: \
             EndpointSlice\naddressType: IPv4\nmetadata: {{name: s{n}-1, namespace: default, labels: \
             {{kubernetes.io/service-name: s{n}}}}}\nports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: \
             [{first}]}}, {{addresses: [10.2.{hi}.{lo}]}}]\n---\napiVersion: networking.istio.io/v1\nkind: \
             DestinationRule\nmetadata: {{name: s{n}}}\nspec: {{host: s{n}, subsets: [{{name: v1, labels: {{version: \
             v1}}}}, {{name: v2, labels: {{version: v2}}}}]}}\n---\napiVersion: networking.istio.io/v1\nkind: \
             VirtualService\nmetadata: {{name: s{n}}}\nspec: {{hosts: [s{n}], http: [{{timeout: {}, route: \
             [{{destination: {{host: s{n}, subset: v1}}}}]}}]}}\n",
            if n == 0 { timeout } else { "5s" }
        )
        .expect("writing to a string");
    }
    Snapshot::from_yaml(&yaml)
}

async fn client(address: String, index: usize, vhds: bool, bytes: Arc<AtomicU64>) -> anyhow::Result<()> {
    let channel = grpc::channel(&address, grpc::Target::Plaintext, &grpc::ChannelOptions::default())
        .map_err(|e| anyhow::anyhow!("{e}"))?;
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(256 << 20);
    let (send, requests) = mpsc::channel(64);
    let text = |s: &str| Value { kind: Some(Kind::StringValue(s.to_owned())) };
    let fields = [("CREMA_VHDS".to_owned(), text(if vhds { "true" } else { "false" }))];
    let node = Node {
        id: format!("sidecar~10.9.0.1~client-{index}.default~default.svc.cluster.local"),
        metadata: Some(Struct { fields: fields.into() }),
        ..Node::default()
    };
    let ask = |kind: Type, names: Vec<String>| DeltaDiscoveryRequest {
        type_url: kind.url().to_owned(),
        resource_names_subscribe: names,
        ..Default::default()
    };
    send.send(DeltaDiscoveryRequest { node: Some(node), ..ask(Type::Cluster, Vec::new()) }).await?;
    send.send(ask(Type::Listener, Vec::new())).await?;
    if vhds {
        send.send(ask(Type::VirtualHost, vec!["*".to_owned()])).await?;
    }
    let mut stream = client.delta_aggregated_resources(ReceiverStream::new(requests)).await?.into_inner();
    let (mut endpoints, mut routes) = (false, false);
    while let Some(response) = stream.message().await? {
        bytes.fetch_add(u64::try_from(response.encoded_len())?, Ordering::Relaxed);
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        };
        send.send(ack).await?;
        let kind = Type::of(&response.type_url);
        if kind == Some(Type::Cluster) && !endpoints {
            endpoints = true;
            let names =
                response.resources.iter().map(|r| r.name.clone()).filter(|n| n.starts_with("outbound"));
            send.send(ask(Type::Endpoints, names.collect())).await?;
        }
        if kind == Some(Type::Listener) && !routes {
            routes = true;
            send.send(ask(Type::Routes, vec!["80".to_owned()])).await?;
        }
    }
    Ok(())
}

/// Waits until all clients have acknowledged push number `push` in all types they asked for.
async fn settled(pusher: &Pusher, clients: usize, push: u64, types: usize) {
    loop {
        let all = pusher.clients();
        let done = all.iter().filter(|c| {
            c.types.len() == types && c.types.values().all(|s| s.acknowledged == push && s.sent == push)
        });
        if done.count() == clients {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<_> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let services: usize = args.next().map_or(Ok(1000), |a| a.parse()).context("SERVICES")?;
    let clients: usize = args.next().map_or(Ok(200), |a| a.parse()).context("CLIENTS")?;
    let vhds = args.next().as_deref() != Some("envoy");
    let (_trigger, watch) = drain::new();
    let pusher = Pusher::new();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let incoming = grpc::incoming_plain(listener, grpc::Limits::default(), watch.clone());
    let service = Ads::new(Arc::new(pusher.clone()), watch);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let bytes = Arc::new(AtomicU64::new(0));
    for index in 0..clients {
        tokio::spawn(client(address.clone(), index, vhds, bytes.clone()));
    }
    while pusher.clients().len() < clients {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!(
        "{services} services, {clients} clients, {}",
        if vhds { "virtual hosts" } else { "whole tables" }
    );
    println!("{:<16}{:>12}{:>12}{:>20}", "", "seconds", "CPU-s", "bytes per client");
    let states = [
        ("first sync", mesh(services, false, "5s")),
        ("one endpoint", mesh(services, true, "5s")),
        ("one route", mesh(services, true, "7s")),
    ];
    let types = if vhds { 5 } else { 4 };
    for (push, (what, snapshot)) in (1..).zip(states) {
        bytes.store(0, Ordering::Relaxed);
        let (start, cpu) = (Instant::now(), cpu_seconds());
        let (own, snapshot) = (pusher.clone(), Arc::new(snapshot));
        tokio::task::spawn_blocking(move || own.push(snapshot)).await?;
        settled(&pusher, clients, push, types).await;
        let each = bytes.load(Ordering::Relaxed) / u64::try_from(clients)?;
        let took = start.elapsed().as_secs_f64();
        println!("{what:<16}{took:>12.3}{:>12.2}{each:>20}", cpu_seconds() - cpu);
    }
    Ok(())
}
