//! What a request and an idle connection cost in memory and in writes, as recorded bounds: a regression shows without a clock.
//! In: a proxy, an upstream and a client of bytes, on one thread. Out: allocations, bytes and sizes, compared with what they were.
//! Kept true: client and upstream allocate nothing once they are warm, so what is counted is the proxy's.
//! Not here: time (`e2e`'s bench).

use std::{cell::Cell, net::SocketAddr, rc::Rc, time::Duration};

use allocation_counter::{AllocationInfo, measure};
use mesh_traffic::{listener::Tracing, retry::RetryPolicy};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    task::LocalSet,
};

use super::{Mesh, cluster, manager, route, routes, snapshot};
use crate::{balance, http};

const ASK: &[u8] = b"GET /products?id=1 HTTP/1.1\r\nhost: shop\r\nuser-agent: test\r\naccept: */*\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello";

/// An upstream that answers each head with the same bytes, and counts the reads that brought them.
async fn upstream_of_bytes(reads: Rc<Cell<u32>>) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("bound");
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            let reads = Rc::clone(&reads);
            tokio::task::spawn_local(async move {
                let mut buffer = [0; 2048];
                let mut have = 0;
                while let Ok(size @ 1..) = stream.read(&mut buffer[have..]).await {
                    reads.set(reads.get() + 1);
                    have += size;
                    if buffer[..have].ends_with(b"\r\n\r\n") {
                        have = 0;
                        stream.write_all(ANSWER).await.expect("taken");
                    }
                }
            });
        }
    });
    address
}

/// One exchange; gives the number of reads that brought the answer.
async fn ask(stream: &mut TcpStream) -> u32 {
    stream.write_all(ASK).await.expect("taken");
    let mut buffer = [0; 2048];
    let (mut have, mut reads) = (0, 0);
    while !buffer[..have].ends_with(b"hello") {
        let size = stream.read(&mut buffer[have..]).await.expect("an answer");
        assert!(size > 0, "closed: {}", String::from_utf8_lossy(&buffer[..have]));
        (have, reads) = (have + size, reads + 1);
    }
    reads
}

/// A proxy with retries, a timeout, tracing and telemetry, as a mesh has them.
struct World {
    local: LocalSet,
    runtime: Runtime,
    mesh: Mesh,
    upstream_reads: Rc<Cell<u32>>,
}

impl World {
    fn new() -> World {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let local = LocalSet::new();
        let upstream_reads = Rc::new(Cell::new(0));
        let mesh = local.block_on(&runtime, async {
            let address = upstream_of_bytes(Rc::clone(&upstream_reads)).await;
            let route = route("c", |forward| {
                forward.timeout = Some(Duration::from_secs(15));
                forward.retry = Some(RetryPolicy { attempts: 2, ..RetryPolicy::default() });
            });
            let mut manager = manager(Vec::new());
            manager.tracing = Some(Tracing { per_million: 10_000 });
            Mesh::start(snapshot(manager, routes(vec![route]), vec![cluster(&[address])])).await
        });
        World { local, runtime, mesh, upstream_reads }
    }

    fn run<T>(&self, task: impl Future<Output = T>) -> T {
        self.local.block_on(&self.runtime, task)
    }

    fn connect(&self) -> TcpStream {
        self.run(async { TcpStream::connect(self.mesh.address()).await.expect("the proxy listens") })
    }

    /// What a piece of work allocates on this thread, which is the proxy's too.
    fn measure(&self, task: impl Future<Output = ()>) -> AllocationInfo {
        let mut task = Some(task);
        measure(|| {
            if let Some(task) = task.take() {
                self.run(task);
            }
        })
    }
}

#[test]
fn a_warm_request_allocates_little_and_is_one_write_each_way() {
    const REQUESTS: u32 = 500;
    let world = World::new();
    let mut stream = world.connect();
    world.run(async {
        for _ in 0..100 {
            ask(&mut stream).await;
        }
    });
    world.upstream_reads.set(0);
    let answer_reads = Cell::new(0);
    let info = world.measure(async {
        for _ in 0..REQUESTS {
            answer_reads.set(answer_reads.get() + ask(&mut stream).await);
        }
    });
    let (count, bytes) = (info.count_total / u64::from(REQUESTS), info.bytes_total / u64::from(REQUESTS));
    println!("per request: {count} allocations, {bytes} bytes");
    assert!(count <= 18, "{count} allocations per warm request");
    assert!(bytes <= 8200, "{bytes} bytes allocated per warm request");
    assert_eq!((world.upstream_reads.get(), answer_reads.get()), (REQUESTS, REQUESTS), "one write each way");
}

#[test]
fn an_idle_connection_holds_no_buffers() {
    const CONNECTIONS: i64 = 100;
    let world = World::new();
    let mut first = world.connect();
    world.run(async {
        ask(&mut first).await;
    });
    let mut open = Vec::with_capacity(100);
    let info = world.measure(async {
        for _ in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(world.mesh.address()).await.expect("the proxy listens");
            ask(&mut stream).await;
            open.push(stream);
        }
    });
    let held = info.bytes_current / CONNECTIONS;
    println!("per idle connection: {held} bytes");
    assert!(held <= 8000, "{held} bytes per idle connection");
}

/// The size of what a function gives, without calling it.
fn size<F: Future>(_: impl FnOnce() -> F) -> usize {
    size_of::<F>()
}

fn any<T>() -> T {
    unreachable!("only the type is wanted")
}

#[test]
fn what_a_request_keeps_while_it_waits_is_small() {
    let sizes = [
        ("the whole request", 4200, size(|| http::handle(any(), any(), any(), any()))),
        ("the route", 3100, size(|| http::router::route(any(), any(), any(), any(), any()))),
        ("a pooled connection", 256, size(|| balance::pool::acquire(any(), any(), any(), any(), any()))),
        ("asking for permission", 160, size(|| http::ext_authz::run(any(), any(), any(), any(), any()))),
        ("CONNECT", 3000, size(|| http::connect::serve(any(), any(), any(), any()))),
        ("a new connection", 2300, size(|| balance::connect::open(any(), any(), any(), any(), any(), any()))),
    ];
    println!("{sizes:?}");
    for (what, most, size) in sizes {
        assert!(size <= most, "{what}: {size} bytes, {most} were enough");
    }
}
