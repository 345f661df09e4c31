//! A pilot with two clients of the same rank: a real Envoy and our proxy, both started from one Envoy bootstrap.
//!
//! In: the [`Case`]s and where the binaries are. Out: a [`Pair`] whose proxies have taken all configuration.
//! Kept true: both read the same directory through the same pilot over plaintext ADS; all processes die with the [`Pair`].
//! Not here: what is sent (`send`).

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::backends::Running;

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
    /// Our `mixer`.
    pub mixer: PathBuf,
    /// A real Envoy.
    pub envoy: PathBuf,
}

/// What is run.
#[derive(Debug)]
pub struct Setup {
    /// What both proxies are configured with.
    pub cases: Vec<Case>,
    /// What ours is configured with instead, by a pilot of its own: a mistake that must be seen.
    pub mistaken: Option<Vec<Case>>,
    /// Worker threads of ours; Envoy always has one, since its limits count per worker.
    pub workers: u8,
    /// Third byte of the addresses: one for each run of a process.
    pub run: u8,
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
    _children: Vec<Running>,
    _dir: tempfile::TempDir,
}

/// Second byte of the addresses that this harness uses: `127.201.<run>.x`, apart from the local node's.
const NET: u8 = 201;
const EGRESS_PORT: u16 = 15080;
const INBOUND_PORT: u16 = 8088;

/// Where everything of one run is.
struct Places {
    dir: PathBuf,
    run: u8,
}

impl Places {
    fn ip(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, NET, self.run, host)
    }

    fn at(&self, host: u8, port: u16) -> SocketAddr {
        SocketAddr::from((self.ip(host), port))
    }

    /// Starts a program in a directory of its own: the access log's name is the same for both proxies.
    fn start(&self, name: &str, command: &mut Command) -> anyhow::Result<Running> {
        let dir = self.dir.join(name);
        std::fs::create_dir(&dir)?;
        Running::start(command.current_dir(&dir), &self.log(name))
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(name).join("output.log")
    }

    /// A pilot that serves `cases` from a directory of its own, on host `host` of the run's network.
    async fn pilot(
        &self,
        program: &Path,
        name: &str,
        host: u8,
        cases: &[Case],
        upstreams: &Upstreams,
    ) -> anyhow::Result<(Running, PathBuf)> {
        let config = self.dir.join(format!("config-{name}"));
        std::fs::create_dir(&config)?;
        std::fs::write(config.join("base.yaml"), base(self, upstreams))?;
        std::fs::write(
            config.join("cases.yaml"),
            cases.iter().map(|c| service(c, upstreams)).collect::<String>(),
        )?;
        let (xds, admin) = (self.at(host, 15010), self.at(host, 15014));
        let mut command = Command::new(program);
        command.args(["serve", "--config"]).arg(&config);
        command.args(["--xds-plaintext", &xds.to_string(), "--admin", &admin.to_string()]);
        let pilot = self.start(name, &mut command)?;
        listening(xds, &self.log(name)).await?;
        Ok((pilot, config))
    }
}

impl Pair {
    /// Writes the configuration of all cases, starts everything and waits until both proxies listen.
    ///
    /// # Errors
    /// When a process does not start or does not take its configuration within 60 s; the error names its log.
    pub async fn start(programs: &Programs, setup: &Setup) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("crema-differential-").tempdir()?;
        let places = Places { dir: dir.path().to_path_buf(), run: setup.run };
        let upstreams = Upstreams::start(NET, setup.run).await?;
        let mut children = Vec::new();
        let (pilot, config) = places.pilot(&programs.pilot, "pilot", 1, &setup.cases, &upstreams).await?;
        children.push(pilot);
        let mut pilots = [1, 1];
        if let Some(cases) = &setup.mistaken {
            children.push(places.pilot(&programs.pilot, "mistaken-pilot", 4, cases, &upstreams).await?.0);
            pilots[1] = 4;
        }
        children.push(mixer(&places, &programs.mixer, &config).await?);
        let side = |name: &'static str, host: u8| Side {
            name,
            address: places.at(host, EGRESS_PORT),
            inbound: places.at(host, INBOUND_PORT),
            log: places.dir.join(name).join("access.log"),
        };
        let (envoy, crema) = (side("envoy", 2), side("crema", 3));
        for ((side, host), pilot) in [(&envoy, 2), (&crema, 3)].into_iter().zip(pilots) {
            let file = places.dir.join(format!("{}.yaml", side.name));
            let text = bootstrap(side.name, &places.ip(host).to_string(), places.at(pilot, 15010));
            std::fs::write(&file, text)?;
            let mut command = match side.name {
                "envoy" => {
                    let mut command = Command::new(&programs.envoy);
                    command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
                    // Its default is to write the access log every ten seconds.
                    command.args(["--file-flush-interval-msec", "20", "-c"]);
                    command
                }
                _ => {
                    let mut command = Command::new(&programs.proxy);
                    command.args(["run", "--concurrency", &setup.workers.to_string()]);
                    command
                }
            };
            children.push(places.start(side.name, command.arg(&file))?);
        }
        for side in [&envoy, &crema] {
            listening(side.address, &places.log(side.name)).await?;
            listening(side.inbound, &places.log(side.name)).await?;
        }
        Ok(Self { envoy, crema, config, _upstreams: upstreams, _children: children, _dir: dir })
    }
}

/// Mixer, which the proxies ask before a request to the application behind them.
async fn mixer(places: &Places, program: &Path, config: &Path) -> anyhow::Result<Running> {
    let at = |port| places.at(5, port).to_string();
    let mut command = Command::new(program);
    command.args(["serve", "--config"]).arg(config).args(["--listen", &at(9091), "--admin", &at(9093)]);
    command.args(["--prometheus", &at(42422), "--zipkin", &at(9411)]);
    let mixer = places.start("mixer", &mut command)?;
    listening(places.at(5, 9091), &places.log("mixer")).await?;
    Ok(mixer)
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
    let line = |line: &'_ str| line.chars().take(200).collect::<String>();
    let tail: Vec<_> = text.lines().rev().take(8).map(line).collect();
    anyhow::bail!("nothing listens on {address} after 60 s; the end of its log: {tail:#?}")
}

/// Mesh config, mixer's Service, the pods, and the two proxies with their egress and inbound ports.
fn base(places: &Places, upstreams: &Upstreams) -> String {
    let mut yaml = String::from(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    \
         accessLogFile: access.log\n    enableAutoMtls: false\n",
    );
    write!(
        yaml,
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: plaintext, namespace: \
         istio-system}}\nspec: {{mtls: {{mode: DISABLE}}}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: mixer, namespace: istio-system}}\nspec: {{ports: [{{name: \
         grpc-policy, port: 9091}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: mixer-1, namespace: istio-system, labels: {{kubernetes.io/service-name: mixer}}}}\nports: \
         [{{name: grpc-policy, port: 9091, protocol: TCP}}]\nendpoints: [{{addresses: [{}], conditions: {{ready: true}}}}]\n",
        places.ip(5)
    )
    .expect("writing to a string");
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
        let (address, app) = (places.ip(host), upstreams.app());
        write!(
            yaml,
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: default\n  labels: {{app: \
             {name}, role: guarded}}\nspec:\n  serviceAccountName: client\n  containers: [{{name: app, image: app}}]\nstatus: \
             {{phase: Running, podIP: {address}}}\n---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: \
             {{name: {name}, namespace: default}}\nspec:\n  workloadSelector:\n    labels: {{app: {name}}}\n  \
             egress:\n  - port: {{number: {EGRESS_PORT}, protocol: HTTP_PROXY, name: http-proxy}}\n    bind: \
             {address}\n    hosts: [\"*/*\"]\n  ingress:\n  - port: {{number: {INBOUND_PORT}, protocol: HTTP, name: http}}\n    \
             bind: {address}\n    defaultEndpoint: {app}\n",
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
    LABELS: {{app: client-{name}, role: guarded}}
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
