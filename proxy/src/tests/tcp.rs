//! Connections that are not HTTP: copied, half-closed, weighted, timed out; and server-first protocols beside HTTP.
//! In: bytes. Out: the same bytes at the other end.
//! Kept true: each direction closes by itself.
//! Not here: TLS passthrough by SNI alone (`mesh_traffic::listener`).

use super::*;
use mesh_traffic::{
    listener::TcpProxy,
    route::{Arm, HeaderOps, Split},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn tcp(target: Target, idle: u64) -> Terminal {
    Terminal::Tcp(Arc::new(TcpProxy {
        stat_prefix: "t".into(),
        target,
        idle_timeout: Duration::from_secs(idle),
        access_log: Vec::new(),
        log_service: None,
    }))
}

fn tcp_snapshot(terminal: Terminal, clusters: Vec<Cluster>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.add_listener(listener(vec![chain(terminal)], |_| {})).expect("no routes");
    clusters.into_iter().for_each(|cluster| snapshot.add_cluster(cluster));
    snapshot
}

/// Greets, then answers with what it got once the client has finished.
async fn greeter(greeting: &'static str) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("bound");
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            tokio::task::spawn_local(async move {
                let _ = stream.write_all(greeting.as_bytes()).await;
                let mut all = Vec::new();
                let _ = stream.read_to_end(&mut all).await;
                let _ = stream.write_all(&all).await;
            });
        }
    });
    address
}

async fn talk(address: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("listening");
    let mut all = String::new();
    stream.write_all(text.as_bytes()).await.expect("open");
    stream.shutdown().await.expect("half closed");
    let _ = stream.read_to_string(&mut all).await;
    all
}

#[test]
fn bytes_and_half_closes_pass_both_ways_and_are_counted() {
    block_on(async {
        let up = greeter("hello ").await;
        let mesh = Mesh::start(tcp_snapshot(tcp(Target::Cluster("c".into()), 0), vec![cluster(&[up])])).await;
        assert_eq!(talk(mesh.address(), "world").await, "hello world");
        while mesh.worker.busy.get() > 0 {
            tokio::task::yield_now().await;
        }
        mesh.worker.telemetry.flush();
        let report = mesh.reports.borrow_mut().try_recv().expect("a report");
        let (_, facts, numbers) = &report.series[0];
        assert_eq!(facts.protocol, "tcp");
        assert_eq!((numbers.opened, numbers.closed, numbers.received, numbers.sent), (1, 1, 5, 11));
        let events: Vec<_> = report.events.iter().map(|(head, _)| head.event).collect();
        assert_eq!(events, [1, 3]);
    });
}

#[test]
fn a_split_is_drawn_per_connection() {
    block_on(async {
        let (a, b) = (greeter("a").await, greeter("b").await);
        let arm = |cluster: &str, weight| Arm {
            cluster: cluster.into(),
            weight,
            headers: HeaderOps::default(),
            host_rewrite: None,
        };
        let split = Split::new(vec![arm("a", 75), arm("b", 25)]).expect("weights");
        let named = |name: &str, address| Cluster { name: name.into(), ..cluster(&[address]) };
        let mesh =
            Mesh::start(tcp_snapshot(tcp(Target::Split(split), 0), vec![named("a", a), named("b", b)])).await;
        let mut got = [0, 0];
        for _ in 0..200 {
            got[usize::from(talk(mesh.address(), "").await == "b")] += 1;
        }
        assert!((110..190).contains(&got[0]), "{got:?}");
    });
}

#[test]
fn silence_ends_a_connection_after_its_time() {
    block_on(async {
        let up = greeter("hello").await;
        let mesh =
            Mesh::start(tcp_snapshot(tcp(Target::Cluster("c".into()), 30), vec![cluster(&[up])])).await;
        let mut stream = TcpStream::connect(mesh.address()).await.expect("listening");
        let began = tokio::time::Instant::now();
        let mut all = String::new();
        let _ = stream.read_to_string(&mut all).await;
        assert_eq!((all.as_str(), began.elapsed().as_secs()), ("hello", 30));
    });
}

#[test]
fn a_server_first_protocol_on_an_inspected_port_waits_a_tenth_of_a_second() {
    block_on(async {
        let up = greeter("220 ready").await;
        let (web, _) = echo("web").await;
        let mut http = (*chain(Terminal::Http(Arc::new(manager(vec![]))))).clone();
        http.matcher.protocols = vec!["http/1.1".into(), "h2c".into()];
        let mut snapshot = Snapshot::default();
        let chains = vec![Arc::new(http), chain(tcp(Target::Cluster("t".into()), 0))];
        snapshot.add_listener(listener(chains, |l| l.inspect.http = true)).expect("routes");
        snapshot.add_routes(routes(vec![route("c", |_| {})])).expect("domains");
        snapshot.add_cluster(cluster(&[web]));
        snapshot.add_cluster(Cluster { name: "t".into(), ..cluster(&[up]) });
        let mesh = Mesh::start(snapshot).await;
        assert_eq!(mesh.get("/").await.body, "web");
        let mut stream = TcpStream::connect(mesh.address()).await.expect("listening");
        let began = tokio::time::Instant::now();
        let mut greeting = [0; 9];
        stream.read_exact(&mut greeting).await.expect("a greeting");
        assert_eq!((&greeting[..], began.elapsed().as_millis()), (&b"220 ready"[..], 100));
    });
}

#[test]
fn a_connection_that_nobody_takes_is_reset() {
    block_on(async {
        let dead = nobody().await;
        for clusters in [vec![], vec![cluster(&[dead])]] {
            let mesh = Mesh::start(tcp_snapshot(tcp(Target::Cluster("c".into()), 0), clusters)).await;
            assert_eq!(talk(mesh.address(), "x").await, "");
        }
    });
}
