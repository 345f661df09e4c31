//! A pilot with two clients of the same rank: a real Envoy and our proxy, both started from one Envoy bootstrap.
//!
//! In: the [`Case`]s and where the binaries are. Out: a [`Pair`] whose proxies have taken all configuration.
//! Kept true: both read the same directory through the same pilot over plaintext ADS; all processes die with the [`Pair`].
//! Not here: what is sent (`send`).

use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context;

use super::{
    Case,
    send::{SERVICE_PORT, Side},
    upstream::{self, Pod, Upstreams},
};

/// Where the programs of a run lie.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Our `pilot`.
    pub pilot: PathBuf,
    /// Our `proxy`.
    pub proxy: PathBuf,
    /// A real Envoy.
    pub envoy: PathBuf,
}

/// The running pair.
#[derive(Debug)]
pub struct Pair {
    /// A real Envoy.
    pub envoy: Side,
    /// Ours.
    pub crema: Side,
    /// The directory that pilot watches.
    pub config: PathBuf,
    _upstreams: Upstreams,
    _children: Vec<Child>,
    _dir: tempfile::TempDir,
}

/// A process that is killed and reaped when it goes out of scope.
#[derive(Debug)]
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        // Already gone is as good as killed.
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Second byte of the addresses that this harness uses: `127.201.<run>.x`, apart from the local node's.
const NET: u8 = 201;
const EGRESS_PORT: u16 = 15080;

impl Pair {
    /// Writes the configuration of all `cases`, starts everything and waits until both proxies listen.
    ///
    /// # Errors
    /// When a process does not start or does not take its configuration within 60 s; the error names its log.
    pub async fn start(programs: &Programs, cases: &[Case], run: u8) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("crema-differential-").tempdir()?;
        let config = dir.path().join("config");
        std::fs::create_dir(&config)?;
        let upstreams = Upstreams::start(NET, run).await?;
        let ip = |host: u8| format!("127.{NET}.{run}.{host}");
        std::fs::write(config.join("base.yaml"), base(&ip, &upstreams))?;
        std::fs::write(
            config.join("cases.yaml"),
            cases.iter().map(|c| service(c, &upstreams)).collect::<String>(),
        )?;
        let xds: SocketAddr = format!("{}:15010", ip(1)).parse()?;
        let mut children = Vec::new();
        // A directory each: the access log's name is the same for both proxies.
        for name in ["pilot", "envoy", "crema"] {
            std::fs::create_dir(dir.path().join(name))?;
        }
        let log = |name: &str| dir.path().join(name).join("output.log");
        children.push(spawn(
            Command::new(&programs.pilot).args(["serve", "--config"]).arg(&config).args([
                "--xds-plaintext",
                &xds.to_string(),
                "--admin",
                &format!("{}:15014", ip(1)),
            ]),
            &log("pilot"),
        )?);
        listening(xds, &log("pilot")).await?;
        let side = |name: &'static str, host: u8| Side {
            name,
            address: SocketAddr::new(ip(host).parse().expect("an address"), EGRESS_PORT),
            log: dir.path().join(name).join("access.log"),
        };
        let (envoy, crema) = (side("envoy", 2), side("crema", 3));
        for (side, host) in [(&envoy, 2), (&crema, 3)] {
            let bootstrap = dir.path().join(format!("{}.yaml", side.name));
            std::fs::write(&bootstrap, self::bootstrap(side.name, &ip(host), xds))?;
            let mut command = match side.name {
                "envoy" => {
                    let mut command = Command::new(&programs.envoy);
                    command.args([
                        "--concurrency",
                        "1",
                        "--disable-hot-restart",
                        "--log-level",
                        "warning",
                        // Its default is to write the access log every ten seconds.
                        "--file-flush-interval-msec",
                        "20",
                        "-c",
                    ]);
                    command
                }
                _ => {
                    let mut command = Command::new(&programs.proxy);
                    command.arg("run");
                    command
                }
            };
            children.push(spawn(command.arg(&bootstrap), &log(side.name))?);
        }
        for side in [&envoy, &crema] {
            listening(side.address, &log(side.name)).await?;
        }
        Ok(Self { envoy, crema, config, _upstreams: upstreams, _children: children, _dir: dir })
    }
}

fn spawn(command: &mut Command, log: &Path) -> anyhow::Result<Child> {
    // Appending: the proxies open /dev/stdout once more for the access log, and would overwrite each other's lines.
    let file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
    let child = command
        .current_dir(log.parent().context("a log lies in a directory")?)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    Ok(Child(child))
}

/// Waits until something accepts on `address`.
async fn listening(address: SocketAddr, log: &Path) -> anyhow::Result<()> {
    for _ in 0..600 {
        if tokio::net::TcpStream::connect(address).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let tail: Vec<_> = text.lines().rev().take(15).collect();
    anyhow::bail!("nothing listens on {address} after 60 s; the end of its log: {tail:#?}")
}

/// Mesh config, the pods, and the two clients with their egress listeners.
fn base(ip: &impl Fn(u8) -> String, upstreams: &Upstreams) -> String {
    let mut yaml = String::from(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    \
         accessLogFile: access.log\n    enableAutoMtls: false\n",
    );
    for pod in upstream::ALL {
        let address = upstreams.address(pod).ip();
        write!(
            yaml,
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: default\n  labels: {{app: echo, \
             version: {version}}}\nspec:\n  serviceAccountName: echo\n  containers: [{{name: echo, image: echo}}]\n\
             status: {{phase: Running, podIP: {address}}}\n",
            name = pod.name,
            version = pod.version,
        )
        .expect("writing to a string");
    }
    for (name, host) in [("client-envoy", 2), ("client-crema", 3)] {
        let address = ip(host);
        write!(
            yaml,
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: default\n  labels: {{app: \
             {name}}}\nspec:\n  serviceAccountName: client\n  containers: [{{name: app, image: app}}]\nstatus: \
             {{phase: Running, podIP: {address}}}\n---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: \
             {{name: {name}, namespace: default}}\nspec:\n  workloadSelector:\n    labels: {{app: {name}}}\n  \
             egress:\n  - port: {{number: {EGRESS_PORT}, protocol: HTTP_PROXY, name: http-proxy}}\n    bind: \
             {address}\n    hosts: [\"*/*\"]\n",
        )
        .expect("writing to a string");
    }
    yaml
}

/// A case's Service, its EndpointSlice and its own documents.
fn service(case: &Case, upstreams: &Upstreams) -> String {
    let name = &case.name;
    let endpoint = |pod: &Pod| {
        format!(
            "- addresses: [{}]\n  conditions: {{ready: true}}\n  targetRef: {{kind: Pod, name: {}, namespace: \
             default}}\n",
            upstreams.address(*pod).ip(),
            pod.name
        )
    };
    let endpoints = match case.pods {
        [] => "endpoints: []\n".to_owned(),
        pods => format!("endpoints:\n{}", pods.iter().map(endpoint).collect::<String>()),
    };
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  selector: {{app: \
         echo}}\n  ports: [{{name: http, port: {SERVICE_PORT}, targetPort: {port}}}]\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nmetadata:\n  name: {name}-1\n  \
         namespace: default\n  labels: {{kubernetes.io/service-name: {name}}}\nports: [{{name: http, port: {port}, \
         protocol: TCP}}]\n{endpoints}---\n{yaml}\n",
        port = upstream::PORT,
        yaml = case.yaml.replace("HOST", name),
    )
}

/// The bootstrap that both proxies start from: Istio's shape, delta ADS over plaintext.
fn bootstrap(name: &str, ip: &str, xds: SocketAddr) -> String {
    format!(
        r#"node:
  id: sidecar~{ip}~client-{name}.default~default.svc.cluster.local
  cluster: client-{name}.default
  metadata:
    NAME: client-{name}
    NAMESPACE: default
    SERVICE_ACCOUNT: client
    INTERCEPTION_MODE: NONE
    LABELS: {{app: client-{name}}}
admin:
  address: {{socket_address: {{address: {ip}, port_value: 15000}}}}
dynamic_resources:
  lds_config: {{ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0s}}
  cds_config: {{ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0s}}
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services: [{{envoy_grpc: {{cluster_name: xds-grpc}}}}]
static_resources:
  clusters:
  - name: xds-grpc
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: xds-grpc
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: {host}, port_value: {port}}}}}}}
"#,
        host = xds.ip(),
        port = xds.port(),
    )
}
