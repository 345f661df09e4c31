//! A real Envoy with the agent's secrets joins the mesh: it and a workload of ours recognise each other over mTLS.
//! Shown as ignored where no Envoy is installed (`ENVOY`, or the Python package in `target/peers/venv`).

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, SystemTime},
};

use citadel::{
    agent::{self, sds::Sds},
    ca::{Lifetimes, self_signed::SelfSigned, source::Source},
    serve::{Citadel, Options},
};
use libtest_mimic::{Arguments, Failed, Trial};
use mesh_identity::{
    CertStore, SpiffeId, TrustDomain,
    tls::{ClientTls, Expected, MinTls},
};
use mesh_runtime::drain;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

fn main() {
    let arguments = Arguments::from_args();
    let envoy = envoy();
    let ignored = envoy.is_none();
    let trial = Trial::test("an_envoy_with_the_agents_secrets_joins_the_mesh", move || {
        let envoy = envoy.ok_or("no Envoy here: set ENVOY to its path")?;
        let runtime = tokio::runtime::Runtime::new().map_err(|e| e.to_string())?;
        runtime.block_on(joins(&envoy)).map_err(Failed::from)
    });
    libtest_mimic::run(&arguments, vec![trial.with_ignored_flag(ignored)]).exit();
}

fn envoy() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("ENVOY") {
        return Some(path.into());
    }
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.join("target/peers/venv/lib");
    let pythons = fs::read_dir(lib).ok()?.flatten();
    pythons.map(|p| p.path().join("site-packages/envoy/_bin/envoy")).find(|p| p.is_file())
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A mutual TLS server that repeats the verified identity of its client in a header.
fn bootstrap(listen: SocketAddr, socket: &Path) -> String {
    let sds = "{resource_api_version: V3, api_config_source: {api_type: GRPC, transport_api_version: V3, \
               grpc_services: [{envoy_grpc: {cluster_name: agent}}]}}";
    format!(
        r#"
node: {{id: envoy, cluster: envoy}}
static_resources:
  listeners:
  - name: server
    address: {{socket_address: {{address: {ip}, port_value: {port}}}}}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            tls_params: {{tls_minimum_protocol_version: TLSv1_3}}
            tls_certificate_sds_secret_configs: [{{name: default, sds_config: {sds}}}]
            validation_context_sds_secret_config: {{name: ROOTCA, sds_config: {sds}}}
      filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              response_headers_to_add: [{{header: {{key: x-peer, value: "%DOWNSTREAM_PEER_URI_SAN%"}}}}]
              routes: [{{match: {{prefix: /}}, direct_response: {{status: 200}}}}]
          http_filters:
          - name: router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: agent
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: agent
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: {socket}}}}}}}}}]}}]
"#,
        ip = listen.ip(),
        port = listen.port(),
        socket = socket.display(),
    )
}

async fn joins(envoy: &Path) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let clock = Arc::new(SystemTime::now);
    let citadel = Citadel::load(Options {
        source: Source::SelfSigned(SelfSigned::new(&dir.path().join("ca"), &TrustDomain::default())),
        domain: TrustDomain::default(),
        lifetimes: Lifetimes::default(),
        root_out: None,
        tokens: None,
        per_second: 50,
        poll: Duration::from_secs(1),
        clock,
        mesh_namespace: "istio-system".to_owned(),
    })
    .map_err(|e| e.to_string())?;
    let authority = citadel.current().now();
    let certified = |id: &str| {
        let id: SpiffeId = id.parse().expect("an identity");
        let credentials =
            authority.credentials(&id, Duration::from_secs(3600), SystemTime::now()).expect("signed");
        let store = CertStore::new(TrustDomain::default(), []);
        store.publish(credentials, authority.bundle().clone());
        store
    };
    let (cart, web) = (
        certified("spiffe://cluster.local/ns/shop/sa/cart"),
        certified("spiffe://cluster.local/ns/shop/sa/web"),
    );

    let (_trigger, watch) = drain::new();
    let socket = dir.path().join("sds.sock");
    let listener = agent::bind(&socket, 0o600).await.map_err(|e| e.to_string())?;
    tokio::spawn(agent::serve(listener, Sds::new(cart.clone(), watch.clone()), watch));

    let [.., high, low] = std::process::id().to_be_bytes();
    let free = TcpListener::bind((Ipv4Addr::new(127, 34, high, low.max(1)), 0)).and_then(|l| l.local_addr());
    let listen = free.map_err(|e| e.to_string())?;
    let (config, log) = (dir.path().join("envoy.yaml"), dir.path().join("envoy.log"));
    fs::write(&config, bootstrap(listen, &socket)).map_err(|e| e.to_string())?;
    let mut command = Command::new(envoy);
    command
        .arg("-c")
        .arg(&config)
        .args(["--concurrency", "1", "--disable-hot-restart", "--log-path"])
        .arg(&log);
    let _envoy = Running(
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(|e| format!("envoy: {e}"))?,
    );

    let mut last = String::new();
    for _ in 0..300 {
        match ask(&web, listen, "cart").await {
            Ok(answer) if answer.contains("x-peer: spiffe://cluster.local/ns/shop/sa/web") => {
                // And the other way round: an Envoy of another identity is not taken for the one expected.
                let wrong = ask(&web, listen, "admin").await;
                return if wrong.is_err() {
                    Ok(())
                } else {
                    Err("any identity would have been accepted".into())
                };
            }
            Ok(answer) => last = answer,
            Err(error) => last = error,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(format!("no answer from Envoy: {last}\n{}", fs::read_to_string(log).unwrap_or_default()))
}

async fn ask(web: &CertStore, addr: SocketAddr, account: &str) -> Result<String, String> {
    let stream = TcpStream::connect(addr).await.map_err(|e| e.to_string())?;
    let expected = TrustDomain::default().service_account("shop", account).map_err(|e| e.to_string())?;
    let tls = ClientTls { expected: Expected::one(expected), alpn: vec![], min: MinTls::V13 };
    let mut connected = web.connect(&tls, None, stream).await.map_err(|e| e.to_string())?;
    let request = b"GET / HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n\r\n";
    connected.stream.write_all(request).await.map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    connected.stream.read_to_end(&mut answer).await.map_err(|e| e.to_string())?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
