//! The xDS server over real connections on loopback: plaintext and mutual TLS, both forms of the protocol.

use mesh_config::{Snapshot, source::Reader};
use mesh_identity::{
    CertStore, grpc,
    testkit::TestCa,
    tls::{ClientAuth, ClientTls, ServerTls},
};
use mesh_runtime::drain;
use pilot::{
    ads::{Type, server::Ads},
    push::Pusher,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};
use xds::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, Node,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};

const PILOT: &str = "spiffe://cluster.local/ns/istio-system/sa/pilot";
/// Far longer than anything here takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

fn mesh(services: usize, tag: &str) -> Snapshot {
    let mut yaml =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web-1, namespace: default, labels: {app: web}}\nspec: \
                    {serviceAccountName: web, containers: []}\nstatus: {phase: Running, podIP: 10.1.0.1}\n"
            .to_owned();
    for n in 0..services {
        yaml += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, namespace: default}}\nspec: {{clusterIP: 10.0.0.{n}, \
             ports: [{{name: http, port: 80}}]}}\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: \
             {{name: s{n}}}\nspec: {{host: s{n}, trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {tag}}}}}}}}}\n"
        );
    }
    Snapshot::from_yaml(&yaml)
}

struct Running {
    pusher: Pusher,
    address: SocketAddr,
    _trigger: drain::Trigger,
}

async fn running(tls: Option<CertStore>) -> Running {
    let (trigger, watch) = drain::new();
    let pusher = Pusher::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let incoming = match tls {
        None => grpc::incoming_plain(listener, grpc::Limits::default(), watch.clone()),
        Some(store) => {
            let tls = ServerTls::grpc(ClientAuth::Required);
            grpc::incoming(listener, store, tls, grpc::Limits::default(), watch.clone())
        }
    };
    let service = Ads::new(Arc::new(pusher.clone()), watch);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    Running { pusher, address, _trigger: trigger }
}

async fn plaintext(address: SocketAddr) -> AggregatedDiscoveryServiceClient<Channel> {
    let target = grpc::Target::Plaintext;
    let channel =
        grpc::channel(&address.to_string(), target, &grpc::ChannelOptions::default()).expect("an address");
    AggregatedDiscoveryServiceClient::new(channel)
}

fn node(pod: &str) -> Option<Node> {
    let id = format!("sidecar~10.1.0.1~{pod}.default~default.svc.cluster.local");
    Some(Node { id, user_agent_name: "test".to_owned(), ..Node::default() })
}

struct Delta {
    send: mpsc::Sender<DeltaDiscoveryRequest>,
    receive: Streaming<DeltaDiscoveryResponse>,
}

impl Delta {
    async fn open(
        mut client: AggregatedDiscoveryServiceClient<Channel>,
        first: DeltaDiscoveryRequest,
    ) -> Result<Self, Status> {
        let (send, requests) = mpsc::channel(16);
        send.send(first).await.expect("room for one");
        let receive = client.delta_aggregated_resources(ReceiverStream::new(requests)).await?.into_inner();
        Ok(Self { send, receive })
    }

    async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let message =
            tokio::time::timeout(PATIENCE, self.receive.message()).await.expect("an answer in time")?;
        message.ok_or_else(|| Status::cancelled("the stream has ended"))
    }

    async fn answer(&self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: error.map(|e| xds::discovery::Status { code: 13, message: e.to_owned() }),
            ..Default::default()
        };
        self.send.send(request).await.expect("the stream is open");
    }
}

fn clusters(pod: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { node: node(pod), type_url: Type::Cluster.url().to_owned(), ..Default::default() }
}

/// Polls what is shown of the only client until `done` likes it.
async fn shown(pusher: &Pusher, done: impl Fn(&pilot::push::ClientStatus) -> bool) {
    let poll = async {
        loop {
            if pusher.clients().first().is_some_and(&done) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, poll).await.expect("the status shows it in time");
}

#[tokio::test]
async fn a_stream_waits_for_the_first_push_then_gets_changes_only() {
    let server = running(None).await;
    let mut stream = Delta::open(plaintext(server.address).await, clusters("web-1")).await.expect("open");
    shown(&server.pusher, |c| c.workload == "default/web-1").await;
    server.pusher.push(Arc::new(mesh(3, "1")));
    let first = stream.next().await.expect("clusters");
    let names: Vec<_> =
        first.resources.iter().map(|r| r.name.as_str()).filter(|n| n.contains("|s")).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    stream.answer(&first, None).await;
    shown(&server.pusher, |c| c.types["CDS"].word() == "SYNCED").await;
    server.pusher.push(Arc::new(mesh(4, "1")));
    let second = stream.next().await.expect("the change");
    assert_eq!(
        second.resources.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(),
        ["outbound|80||s3.default.svc.cluster.local"]
    );
}

#[tokio::test]
async fn a_refusal_is_shown_against_its_objects_and_others_go_on() {
    let server = running(None).await;
    server.pusher.push(Arc::new(mesh(2, "1")));
    let mut stream = Delta::open(plaintext(server.address).await, clusters("web-1")).await.expect("open");
    let first = stream.next().await.expect("clusters");
    stream.answer(&first, Some("cluster outbound|80||s1.default.svc.cluster.local: bad limit")).await;
    shown(&server.pusher, |c| c.types["CDS"].word() == "REFUSED").await;
    let client = server.pusher.clients().remove(0);
    let (name, refusal) = client.types["CDS"].refused.iter().next().expect("one");
    assert!(name.contains("|s1."), "{name}");
    assert!(refusal.sources.iter().any(|s| &**s == "DestinationRule default/s1"), "{:?}", refusal.sources);
    server.pusher.push(Arc::new(mesh(3, "1")));
    let next = stream.next().await.expect("the new service comes although another was refused");
    assert!(next.resources.iter().any(|r| r.name.contains("|s2.")));
}

#[tokio::test]
async fn a_stream_that_asks_for_ever_more_names_is_ended() {
    let server = running(None).await;
    server.pusher.push(Arc::new(mesh(1, "1")));
    let mut stream = Delta::open(plaintext(server.address).await, clusters("web-1")).await.expect("open");
    let asking = async {
        for round in 0_u32.. {
            let names = (0..50_000).map(|n| format!("x{round}-{n}")).collect();
            let request = DeltaDiscoveryRequest {
                type_url: Type::Endpoints.url().to_owned(),
                resource_names_subscribe: names,
                ..Default::default()
            };
            if stream.send.send(request).await.is_err() {
                break; // The word is on its way.
            }
        }
        std::future::pending::<()>().await;
    };
    let answers = async {
        loop {
            if let Err(end) = stream.receive.message().await {
                return end;
            }
        }
    };
    let end = tokio::time::timeout(PATIENCE, async {
        tokio::select! {
            end = answers => end,
            () = asking => unreachable!("it waits for the end"),
        }
    });
    assert_eq!(end.await.expect("ended in time").code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_reconnect_with_versions_is_sent_nothing_it_holds() {
    let server = running(None).await;
    server.pusher.push(Arc::new(mesh(5, "1")));
    let mut stream = Delta::open(plaintext(server.address).await, clusters("web-1")).await.expect("open");
    let first = stream.next().await.expect("clusters");
    let held = first.resources.iter().map(|r| (r.name.clone(), r.version.clone())).collect();
    drop(stream);
    server.pusher.push(Arc::new(mesh(6, "1")));
    let hello = DeltaDiscoveryRequest { initial_resource_versions: held, ..clusters("web-1") };
    let mut again = Delta::open(plaintext(server.address).await, hello).await.expect("open");
    let second = again.next().await.expect("what changed meanwhile");
    assert_eq!(
        second.resources.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(),
        ["outbound|80||s5.default.svc.cluster.local"]
    );
}

#[tokio::test]
async fn one_that_does_not_read_delays_nobody_and_then_gets_the_latest() {
    let server = running(None).await;
    server.pusher.push(Arc::new(mesh(50, "1")));
    let mut slow = Delta::open(plaintext(server.address).await, clusters("web-1")).await.expect("open");
    let mut quick = Delta::open(plaintext(server.address).await, clusters("web-2")).await.expect("open");
    for push in 2..30 {
        let response = quick.next().await.expect("every state in turn");
        quick.answer(&response, None).await;
        server.pusher.push(Arc::new(mesh(50, &push.to_string())));
    }
    let first = slow.next().await.expect("what was under way");
    slow.answer(&first, None).await;
    let second = slow.next().await.expect("the latest");
    assert_eq!(second.system_version_info, "29", "nothing between is sent");
}

#[tokio::test]
async fn state_of_the_world_works_on_the_same_port() {
    let server = running(None).await;
    server.pusher.push(Arc::new(mesh(2, "1")));
    let (send, requests) = mpsc::channel(4);
    let first = DiscoveryRequest {
        node: node("web-1"),
        type_url: Type::Cluster.url().to_owned(),
        ..Default::default()
    };
    send.send(first).await.expect("room");
    let mut client = plaintext(server.address).await;
    let mut stream =
        client.stream_aggregated_resources(ReceiverStream::new(requests)).await.expect("open").into_inner();
    let response = stream.message().await.expect("open").expect("clusters");
    assert_eq!(response.resources.len(), 5, "two services, passthrough, black hole, inbound passthrough");
}

#[tokio::test]
async fn over_mutual_tls_a_proxy_gets_only_what_is_its_own() {
    let ca = TestCa::new("root");
    let server = running(Some(ca.store(PILOT))).await;
    server.pusher.push(Arc::new(mesh(1, "1")));
    for (account, pod, want) in [("web", "web-1", Code::Ok), ("other", "web-1", Code::PermissionDenied)] {
        let store = ca.store(&format!("spiffe://cluster.local/ns/default/sa/{account}"));
        let tls = ClientTls::grpc(PILOT.parse().expect("an id"));
        let options = grpc::ChannelOptions::default();
        let channel = grpc::channel(&server.address.to_string(), grpc::Target::Mesh(store, tls), &options);
        let client = AggregatedDiscoveryServiceClient::new(channel.expect("an address"));
        let got = match Delta::open(client, clusters(pod)).await {
            Ok(mut stream) => stream.next().await.map_or_else(|status| status.code(), |_| Code::Ok),
            Err(status) => status.code(),
        };
        assert_eq!(got, want, "{account} as {pod}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_changes_is_pushed_once() {
    let mut store = mesh_config::source::Store::new();
    let reader: Reader = store.reader();
    let pusher = Pusher::new();
    tokio::spawn(pusher.clone().follow(reader));
    store.set_synced();
    store.publish();
    let pushes = |n: u64| {
        let pusher = pusher.clone();
        async move {
            while pusher.figures().pushes < n {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    pushes(1).await;
    for n in 0..20_u64 {
        let text = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: ns{n}}}\n");
        store.set_file("a.yaml", std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(n), &text);
        store.publish();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    pushes(2).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(pusher.figures().pushes, 2);
}
