//! A proxy replaced under load by a process that takes its sockets over: every request is answered.
//!
//! In: two processes of the binary with one bootstrap, clients with new and with kept connections. Out: no failure.
//! Kept true: no fixed port, no wall-clock assertion. Not here: the hand-over alone (`restart`).

#![allow(clippy::disallowed_methods, reason = "real processes have no clock that could be paused")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

fn bootstrap(listen: SocketAddr, upstream: SocketAddr) -> String {
    const TYPES: &str = "type.googleapis.com/envoy.extensions.filters";
    format!(
        r#"
node: {{id: "sidecar~127.0.0.1~a.b~b.svc.cluster.local", cluster: a}}
static_resources:
  listeners:
  - name: in
    address: {{socket_address: {{address: {}, port_value: {}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": {TYPES}.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          route_config:
            name: r
            virtual_hosts: [{{name: v, domains: ["*"], routes: [{{match: {{prefix: "/"}}, route: {{cluster: c}}}}]}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": {TYPES}.http.router.v3.Router}}
  clusters:
  - name: c
    type: STATIC
    load_assignment:
      cluster_name: c
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}
"#,
        listen.ip(),
        listen.port(),
        upstream.ip(),
        upstream.port()
    )
}

/// Answers every request with `ok`, keeping connections.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
                let mut stream = stream;
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|n| n > 0) {
                    if line == "\r\n"
                        && stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").is_err()
                    {
                        return;
                    }
                    line.clear();
                }
            });
        }
    });
    address
}

struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(dir: &Path, listen: SocketAddr) -> Proxy {
    let child = Command::new(env!("CARGO_BIN_EXE_proxy"))
        .args(["run", "--concurrency", "2", "--restart-socket"])
        .arg(dir.join("restart.sock"))
        .arg(dir.join("envoy.yaml"))
        .env("LOG_LEVEL", "warn")
        .stdout(Stdio::null())
        .spawn()
        .expect("the binary starts");
    while TcpStream::connect(listen).is_err() {
        thread::sleep(Duration::from_millis(10));
    }
    Proxy(child)
}

/// One request. `Ok(false)` when the answer asked to close the connection.
fn ask(stream: &mut TcpStream) -> Result<bool, String> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").map_err(|e| format!("write: {e}"))?;
    let mut answer = Vec::new();
    let mut byte = [0; 256];
    while !answer.ends_with(b"\r\n\r\nok") {
        match stream.read(&mut byte) {
            Ok(0) => return Err(format!("closed after {:?}", String::from_utf8_lossy(&answer))),
            Ok(size) => answer.extend_from_slice(&byte[..size]),
            Err(error) => return Err(format!("read: {error}")),
        }
    }
    let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    if !text.starts_with("http/1.1 200") {
        return Err(text);
    }
    Ok(!text.contains("connection: close"))
}

#[test]
fn a_proxy_is_replaced_under_load_without_a_failed_request() {
    let dir = std::env::temp_dir().join(format!("crema-restart-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let listen = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
    std::fs::write(dir.join("envoy.yaml"), bootstrap(listen, upstream())).expect("written");
    let mut old = start(&dir, listen);

    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..6)
        .map(|number| {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            thread::spawn(move || -> Result<(), String> {
                let keep = number % 2 == 0;
                let mut kept: Option<TcpStream> = None;
                while !stop.load(Ordering::Acquire) {
                    let mut stream = match kept.take() {
                        Some(stream) => stream,
                        None => TcpStream::connect(listen).map_err(|e| format!("connect: {e}"))?,
                    };
                    let goes_on = ask(&mut stream)?;
                    done.fetch_add(1, Ordering::AcqRel);
                    kept = (keep && goes_on).then_some(stream);
                    thread::sleep(Duration::from_millis(1));
                }
                Ok(())
            })
        })
        .collect();
    let after = |more: usize| {
        let want = done.load(Ordering::Acquire) + more;
        while done.load(Ordering::Acquire) < want && !clients.iter().any(thread::JoinHandle::is_finished) {
            thread::sleep(Duration::from_millis(5));
        }
    };
    after(300);
    let mut next = None;
    for _ in 0..2 {
        let new = start(&dir, listen);
        let ended = old.0.wait().expect("the old one drains");
        assert!(ended.success(), "{ended}");
        after(300);
        old = new;
        next = Some(());
    }
    assert!(next.is_some());
    stop.store(true, Ordering::Release);
    for client in clients {
        client.join().expect("no panic").expect("every request is answered");
    }
    drop(old);
    let _ = std::fs::remove_dir_all(&dir);
}
