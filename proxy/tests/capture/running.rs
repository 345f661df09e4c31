//! The running proxy behind its captured ports.
//!
//! In: a world, the binary as user 1337 with listeners as pilot makes them. Out: who answered, and that nothing circles. Kept true: the
//! process is gone when a trial ends. Not here: configuration from pilot itself (the e2e suite).

use std::{
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    time::Instant,
};

use libtest_mimic::Failed;

use super::{APP, PROXY, apply, at, expect, world::*};

/// `virtualOutbound` and `virtualInbound`, as pilot makes them for a mesh without services: everything passes through.
const BOOTSTRAP: &str = r#"
node: {id: "sidecar~10.77.0.2~a.b~b.svc.cluster.local", cluster: a}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 15000}}}
static_resources:
  listeners:
  - name: virtualOutbound
    traffic_direction: OUTBOUND
    use_original_dst: true
    address: {socket_address: {address: 0.0.0.0, port_value: 15001}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: out
          cluster: PassthroughCluster
  - name: virtualInbound
    traffic_direction: INBOUND
    address: {socket_address: {address: 0.0.0.0, port_value: 15006}}
    listener_filters:
    - name: envoy.filters.listener.original_dst
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}
    filter_chains:
    - filter_chain_match: {destination_port: 15006}
      filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: none
          cluster: BlackHoleCluster
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: in
          cluster: InboundPassthroughCluster
  clusters:
  - {name: PassthroughCluster, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, connect_timeout: 2s}
  - {name: BlackHoleCluster, type: STATIC, connect_timeout: 2s}
  - name: InboundPassthroughCluster
    type: ORIGINAL_DST
    lb_policy: CLUSTER_PROVIDED
    connect_timeout: 2s
    upstream_bind_config: {source_address: {address: 127.0.0.6, port_value: 0}}
"#;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the proxy as the injector would, and waits until it listens.
fn start(world: &World) -> Result<Running, Failed> {
    world.pod.serve(8080, "app");
    world.outside.serve(80, "outside");
    apply(world, &[])?;
    let dir = std::env::temp_dir().join(format!("crema-{}", world.pod.0));
    std::fs::create_dir_all(&dir)?;
    let file = dir.join("envoy.yaml");
    std::fs::write(&file, BOOTSTRAP)?;
    let child = world.pod.run(0, 0, move || {
        Command::new(env!("CARGO_BIN_EXE_proxy"))
            .args(["run", "--concurrency", "1"])
            .arg(file)
            .env("LOG_LEVEL", "warn")
            .uid(PROXY)
            .gid(PROXY)
            .stdout(Stdio::null())
            .spawn()
    })?;
    let running = Running(child);
    let began = Instant::now();
    // A connection that is reset at once is answered by the listener: nobody captured it.
    while world.pod.ask(APP, APP, None, at("127.0.0.1", 15001)) == "ConnectionRefused"
        || world.pod.ask(APP, APP, None, at("::1", 15006)) == "ConnectionRefused"
    {
        if began.elapsed() > PATIENCE * 4 {
            return Err("the proxy does not listen".into());
        }
    }
    let _ = std::fs::remove_dir_all(dir);
    Ok(running)
}

pub fn passes_on(world: &World) -> Result<(), Failed> {
    let _running = start(world)?;
    for (outside, (pod, source)) in OUTSIDE.into_iter().zip(POD.into_iter().zip(["127.0.0.6", "::6"])) {
        let got = world.pod.ask(APP, APP, None, at(outside, 80));
        assert_eq!(got, format!("outside {} from {pod}", at(outside, 80)), "the pod's own address is seen");
        let got = world.outside.ask(APP, APP, None, at(pod, 8080));
        assert_eq!(got, format!("app {} from {source}", at(pod, 8080)), "the application is reached once");
        // The application calls its own pod without the proxy.
        expect(&world.pod, APP, at(pod, 8080), "app")?;
    }
    Ok(())
}

pub fn never_circles(world: &World) -> Result<(), Failed> {
    let mut running = start(world)?;
    for ip in POD {
        for port in [15001, 15006, 15000] {
            let got = world.outside.ask(APP, APP, None, at(ip, port));
            assert!(!got.contains(' '), "outside → {ip}:{port} answered {got}");
            let got = world.pod.ask(APP, APP, None, at(ip, port));
            assert!(!got.contains(' '), "app → {ip}:{port} answered {got}");
        }
    }
    // Each of these connections came to the proxy a bounded number of times; what circles would still be running.
    let open = std::fs::read_dir(format!("/proc/{}/fd", running.0.id()))?.count();
    assert!(open < 100, "{open} descriptors are open");
    assert!(running.0.try_wait()?.is_none(), "the proxy runs on");
    expect(&world.outside, APP, at(POD[0], 8080), "app")
}

/// The variables of an injected pod, with the application's probes.
fn sidecar(world: &World) -> Result<Running, Failed> {
    let probers = r#"{"/app-health/app/livez": {"tcpSocket": {"port": 8080}}, "/app-health/app/readyz": {"tcpSocket": {"port": 8081}}}"#;
    let child = world.pod.run(0, 0, move || {
        Command::new(env!("CARGO_BIN_EXE_proxy"))
            .arg("sidecar")
            .env_clear()
            .envs([("POD_NAME", "a"), ("POD_NAMESPACE", "b"), ("INSTANCE_IP", POD[0])])
            .envs([
                ("CA_ADDR", "127.0.0.1:8060"),
                ("PROXY_CONFIG", r#"{"discoveryAddress": "127.0.0.1:15012"}"#),
            ])
            .envs([("ISTIO_KUBE_APP_PROBERS", probers), ("LOG_LEVEL", "error"), ("CONCURRENCY", "1")])
            .uid(PROXY)
            .gid(PROXY)
            .stdout(Stdio::null())
            .spawn()
    })?;
    let running = Running(child);
    let began = Instant::now();
    while world.pod.ask(PROXY, PROXY, None, at("127.0.0.1", 15000)) == "ConnectionRefused" {
        if began.elapsed() > PATIENCE * 4 {
            return Err("the proxy does not answer".into());
        }
    }
    Ok(running)
}

pub fn pages(world: &World) -> Result<(), Failed> {
    world.pod.serve(8080, "app");
    apply(world, &[])?;
    let mut running = sidecar(world)?;
    for ip in POD {
        for (port, path, status) in [
            (15021, "/healthz/ready", 503),
            (15020, "/healthz/ready", 503),
            (15021, "/app-health/app/livez", 200),
            (15020, "/app-health/app/livez", 200),
            (15021, "/app-health/app/readyz", 500),
            (15021, "/app-health/app/startupz", 404),
            (15090, "/stats/prometheus", 200),
            (15020, "/stats/prometheus", 200),
            (15000, "/config_dump", 0),
        ] {
            let (got, text) = world.outside.http("GET", at(ip, port), path);
            assert_eq!(got, status, "{ip}:{port}{path}: {text}");
        }
        assert_eq!(world.outside.http("POST", at(ip, 15020), "/quitquitquit").0, 403);
        assert_eq!(world.pod.http("POST", at(ip, 15020), "/quitquitquit").0, 403);
    }
    assert_eq!(world.pod.http("GET", at("127.0.0.1", 15020), "/quitquitquit").0, 405);
    let late = world.pod.proxy(&["wait", "--timeout-seconds", "0"]);
    let why = String::from_utf8_lossy(&late.stderr).into_owned();
    assert!(!late.status.success() && why.contains("certificate: "), "{why}");

    let drained = world.pod.proxy(&["drain"]);
    assert!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
    let (_, text) = world.pod.http("GET", at("127.0.0.1", 15000), "/drain");
    assert_eq!(text, r#"{"leaving":true,"connections":0}"#);
    let (_, text) = world.outside.http("GET", at(POD[0], 15021), "/healthz/ready");
    assert!(text.contains("not ready: leaving"), "{text}");
    assert!(running.0.try_wait()?.is_none(), "a drain alone ends nothing");

    assert_eq!(world.pod.http("POST", at("127.0.0.1", 15020), "/quitquitquit").0, 200);
    assert!(running.0.wait()?.success());
    let gone = world.pod.proxy(&["drain"]);
    assert!(gone.status.success(), "one that is gone has nothing to drain");
    Ok(())
}
