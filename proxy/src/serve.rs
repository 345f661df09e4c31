//! Puts a proxy together: certificate, configuration, workers, telemetry, admin pages, drain.
//!
//! In: the command line. Out: a running proxy, until a signal. Kept true: workers run on threads of their own; everything here is on the
//! control runtime and never on the path of a request. Not here: the data path (`listen`, `http`), the stream (`xds`).

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Weak, atomic::Ordering},
    thread::available_parallelism,
    time::Duration,
};

use anyhow::Context;
use axum::{Router, routing::get};
use mesh_identity::{CertStore, TrustDomain, grpc, tls::ClientTls, workload};
use mesh_runtime::{
    CommonArgs, LogLevel, Metrics, Readiness, admin::Admin, drain, listen as sockets, readiness::Condition,
    shutdown,
};
use mesh_traffic::{Snapshot, names::Name};
use tokio::sync::{mpsc, watch};
use tonic::transport::Channel;

use crate::{
    admin, bootstrap,
    cli::{MeshArgs, PortArgs, RunArgs},
    pod::{
        Pod,
        leave::Leave,
        pages::{self, Places},
        probers::Probers,
    },
    restart::{self, Takeover},
    telemetry::uplink,
    worker::{self, Node, Settings, Shared},
    xds,
};

/// Reports of workers that may wait for the uplink.
const REPORTS: usize = 64;

/// How long a successor may take to get ready.
const TAKEOVER: Duration = Duration::from_secs(60);

/// How long readiness waits for listeners to be bound.
const BINDING: Duration = Duration::from_secs(5);

/// What both ways of running share.
struct Base {
    common: CommonArgs,
    log: LogLevel,
    readiness: Readiness,
    metrics: Metrics,
    trigger: drain::Trigger,
    watch: drain::Watch,
    signals: shutdown::Signals,
}

impl Base {
    fn new(common: CommonArgs) -> anyhow::Result<Self> {
        let log = common.init_logs()?;
        mesh_runtime::secrets::protect_memory();
        let (trigger, watch) = drain::new();
        let signals = shutdown::Signals::new()?;
        let metrics = Metrics::for_process("proxy");
        Ok(Self { common, log, readiness: Readiness::new(), metrics, trigger, watch, signals })
    }
}

/// What the pages of a proxy show, and where.
struct Pages {
    places: Places,
    probers: Arc<Probers>,
    /// Where the application is.
    ip: IpAddr,
    /// How long connections are still taken after SIGTERM.
    drain_delay: Duration,
}

/// Runs as a sidecar or gateway until a signal.
///
/// # Errors
/// When something that was asked for cannot be: the text names the flag.
pub async fn mesh(args: MeshArgs, gateway: bool) -> anyhow::Result<()> {
    let MeshArgs { common, ca, pod, ports } = args;
    let base = Base::new(common)?;
    let pod = Pod::new(pod, gateway)?;
    let ip = pod.args.instance_ip;
    let pages = Pages {
        places: Places::of(ip, &ports, base.common.admin),
        probers: Arc::clone(&pod.probers),
        ip,
        drain_delay: ports.drain_delay_seconds.map_or(pod.drain_delay, Duration::from_secs),
    };
    let domain =
        TrustDomain::from_config(&ca.trust_domain).map_err(|e| anyhow::anyhow!("--trust-domain: {e}"))?;
    let own = domain.service_account(&pod.args.pod_namespace, &pod.args.service_account);
    let own = own.map_err(|e| anyhow::anyhow!("--service-account: {e}"))?;
    let certified = base.readiness.condition("certificate", "citadel has not answered yet");
    let identity = workload::start(&ca, Some(own), Some(ip), &base.metrics, certified, base.watch.clone())
        .map_err(anyhow::Error::msg)?;
    let channel = |address: &str, account: &str| -> anyhow::Result<Channel> {
        let id = domain.service_account("istio-system", account).map_err(anyhow::Error::msg)?;
        let target = grpc::Target::Mesh(identity.clone(), ClientTls::grpc(id));
        let options = grpc::ChannelOptions { local: Some(ip), ..grpc::ChannelOptions::default() };
        grpc::channel(address, target, &options).map_err(anyhow::Error::msg)
    };
    let telemetry = match &pod.args.telemetry_addr {
        Some(address) => Some(channel(address, "mixer").context("--telemetry-addr")?),
        None => None,
    };
    let source = xds::Source {
        channel: channel(&pod.discovery, "pilot").context("PROXY_CONFIG: discoveryAddress")?,
        name: format!("pilot at {}", pod.discovery),
        node: pod.node(),
        variant: xds::Variant::Delta,
        virtual_hosts: true,
        token: None,
    };
    let node = Node { id: pod.node_id(), uid: Name::from(pod.uid()), gateway };
    let settings = settings(node, Some(ip), ports.concurrency.or(pod.concurrency), &ports);
    run(base, settings, identity, telemetry, xds::Store::default(), Some(source), Vec::new(), pages).await
}

/// Runs an Envoy bootstrap until a signal.
///
/// # Errors
/// When the bootstrap cannot be honoured: the text names the file and the field.
pub async fn envoy(args: RunArgs) -> anyhow::Result<()> {
    let base = Base::new(args.common)?;
    let bootstrap = bootstrap::read(&args.bootstrap)?;
    let identity = match &args.ca.ca_addr {
        None => CertStore::new(TrustDomain::default(), Vec::new()),
        Some(_) => {
            let certified = base.readiness.condition("certificate", "citadel has not answered yet");
            workload::start(&args.ca, None, None, &base.metrics, certified, base.watch.clone())
                .map_err(anyhow::Error::msg)?
        }
    };
    let telemetry = match &args.telemetry_addr {
        Some(address) => {
            let channel = grpc::channel(address, grpc::Target::Plaintext, &grpc::ChannelOptions::default());
            Some(channel.map_err(anyhow::Error::msg).context("--telemetry-addr")?)
        }
        None => None,
    };
    let node_id = bootstrap.node.id.clone();
    let source = match bootstrap.ads {
        Some(ads) => Some(management_server(&ads, bootstrap.node)?),
        None => None,
    };
    // A node id in Istio's form says where we are: `sidecar~IP~pod.namespace~domain`.
    let parts: Vec<&str> = node_id.split('~').collect();
    let local_ip = parts.get(1).and_then(|ip| ip.parse().ok());
    let uid = parts.get(2).map(|pod| Name::from(format!("kubernetes://{pod}"))).unwrap_or_default();
    let node = Node { uid, gateway: parts.first() == Some(&"router"), id: node_id.clone() };
    let ports = PortArgs {
        health_port: args.health.map_or(0, |address| address.port()),
        agent_port: 0,
        stats_port: 0,
        admin_port: bootstrap.admin.map_or(0, |address| address.port()),
        concurrency: args.concurrency,
        max_connections: args.max_connections,
        restart_socket: args.restart_socket,
        drain_delay_seconds: None,
    };
    let admin = base.common.admin.or(bootstrap.admin);
    let pages = Pages {
        places: Places { admin, health: args.health, agent: None, stats: None },
        probers: Arc::default(),
        ip: local_ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        drain_delay: Duration::ZERO,
    };
    let settings = settings(node, local_ip, args.concurrency, &ports);
    run(base, settings, identity, telemetry, bootstrap.store, source, bootstrap.files, pages).await
}

fn management_server(ads: &bootstrap::Ads, node: ::xds::discovery::Node) -> anyhow::Result<xds::Source> {
    let target = match &ads.tls {
        None => grpc::Target::Plaintext,
        Some(tls) => {
            anyhow::ensure!(
                tls.certificate.is_none(),
                "dynamic_resources.ads_config: a client certificate in files is not supported; use --ca-addr or a token"
            );
            let name = tls.name.clone().unwrap_or_else(|| host_of(&ads.address).to_owned());
            let server =
                name.parse().map_err(anyhow::Error::msg).context("dynamic_resources.ads_config: sni")?;
            grpc::Target::Pinned { roots: tls.roots.clone(), server }
        }
    };
    let channel = grpc::channel(&ads.address, target, &grpc::ChannelOptions::default());
    let channel = channel.map_err(anyhow::Error::msg).context("dynamic_resources.ads_config")?;
    let name = format!("management server at {}", ads.address);
    let virtual_hosts = wants_virtual_hosts(&node);
    Ok(xds::Source { channel, name, node, variant: ads.variant, virtual_hosts, token: ads.token.clone() })
}

/// A bootstrap may ask for virtual hosts as resources of their own, as our sidecars do.
fn wants_virtual_hosts(node: &::xds::discovery::Node) -> bool {
    use ::xds::prost_types::value::Kind;
    let asked = node.metadata.as_ref().and_then(|m| m.fields.get("CREMA_VHDS")).and_then(|v| v.kind.as_ref());
    matches!(asked, Some(Kind::StringValue(text)) if text == "true")
}

fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

fn settings(
    node: Node,
    local_ip: Option<std::net::IpAddr>,
    concurrency: Option<usize>,
    ports: &PortArgs,
) -> Settings {
    Settings {
        node,
        local_ip,
        workers: concurrency.unwrap_or_else(|| available_parallelism().map_or(1, usize::from)),
        max_connections: ports.max_connections,
        restart_socket: ports.restart_socket.clone(),
        own_ports: [ports.admin_port, ports.health_port, ports.agent_port, ports.stats_port]
            .into_iter()
            .filter(|p| *p != 0)
            .collect(),
    }
}

#[allow(clippy::too_many_arguments, reason = "each is one part of a proxy; a struct would only rename them")]
async fn run(
    base: Base,
    settings: Settings,
    identity: CertStore,
    telemetry: Option<Channel>,
    store: xds::Store,
    source: Option<xds::Source>,
    files: Vec<(xds::Kind, std::path::PathBuf)>,
    pages: Pages,
) -> anyhow::Result<()> {
    let Base { common, log, readiness, metrics, trigger, watch, mut signals } = base;
    let configured = readiness.condition("configuration", "the first configuration has not arrived yet");
    let arrived = Readiness::new();
    let first = arrived.condition("configuration", "");
    let handle = xds::start(store, source, first, watch.clone());
    for (kind, path) in files {
        tokio::spawn(bootstrap::files::watch(kind, path, handle.clone(), watch.clone()));
    }
    let reports = telemetry.map(|channel| {
        let speaker = uplink::Speaker {
            node_id: settings.node.id.clone(),
            uid: settings.node.uid.to_string(),
            role: if settings.node.gateway { "router" } else { "sidecar" }.to_owned(),
            epoch: rand::random(),
        };
        let (sender, reports) = mpsc::channel(REPORTS);
        tokio::spawn(uplink::run(channel, speaker, reports, watch.clone()));
        sender
    });
    let restart_socket = settings.restart_socket.clone();
    let shared = Shared::new(settings, identity, reports, watch.clone());
    let mut takeover = None;
    if let Some(path) = restart_socket.clone() {
        let (sockets, workers) = (Arc::clone(&shared.sockets), shared.settings.workers);
        let begin = move || Takeover::begin(&path, &sockets, workers);
        takeover = tokio::task::spawn_blocking(begin).await?.context("--restart-socket")?;
    }
    tokio::spawn(Arc::clone(&shared.dns).follow(handle.snapshots()));
    // Only workers keep `shared`: when they are done, so are the reports to mixer.
    tokio::spawn(forget(Arc::downgrade(&shared), handle.snapshots()));
    let workers = worker::start(&shared, &handle.snapshots()).context("starting worker threads")?;
    let stats = {
        let stats = Arc::clone(&shared.stats);
        metrics.add_text(move |out| stats.write(out));
        let metrics = metrics.clone();
        Router::new().route("/stats/prometheus", get(async move || metrics.encode()))
    };
    tokio::spawn(listening(arrived, configured, Arc::downgrade(&shared), handle.snapshots()));
    let replaces = takeover.is_some();
    if let Some(takeover) = takeover {
        let serving = async {
            readiness.wait().await;
            shared.until_listening(&handle.snapshots()).await;
        };
        tokio::time::timeout(TAKEOVER, serving)
            .await
            .context("not ready to take over in time: the predecessor goes on serving")?;
        shared.sockets.drop_rest();
        takeover.ready().context("telling the predecessor that we serve")?;
    }
    if let Some(path) = restart_socket {
        restart::serve(&path, Arc::clone(&shared.sockets)).context("--restart-socket")?;
    }
    let leave = Leave::new(readiness.clone(), shared.leaving.clone());
    let status = || pages::status(readiness.clone(), Arc::clone(&pages.probers), pages.ip);
    let places = pages.places;
    for (place, router) in [
        (places.stats, stats.clone()),
        (places.health, status()),
        (places.agent, status().merge(stats.clone()).merge(pages::quit(leave.clone()))),
    ] {
        let Some(address) = place else { continue };
        let listener = bind(address, replaces).await?;
        tokio::spawn(sockets::serve_http(listener, router, watch.clone()));
    }
    if let Some(address) = places.admin {
        let open = Arc::downgrade(&shared);
        let open = move || open.upgrade().map_or(0, |shared| shared.connections.load(Ordering::Acquire));
        let pages = Admin::new("proxy", readiness, metrics, log)
            .routes(admin::routes(handle))
            .routes(stats)
            .routes(admin::certs::routes(shared.identity.clone()))
            .routes(pages::drain(leave.clone(), open));
        if replaces {
            drop(bind(address, true).await?);
        }
        tokio::spawn(pages.bind(address)?.serve(watch.clone()));
    }
    let listening = Arc::clone(&shared.sockets);
    drop((watch, shared));
    // A successor takes new connections at once.
    let delay = || if listening.handed_over() { Duration::ZERO } else { pages.drain_delay };
    let delayed = leave.time_to_go(async || signals.recv().await, delay).await;
    let drained = signals.drain(trigger, common.grace().saturating_sub(delayed)).await;
    tracing::info!(?drained, "stopped");
    tokio::task::spawn_blocking(move || workers.join()).await.context("joining workers")
}

/// The configuration counts as in force once its ports are open: an application that was held back connects at once. A port that cannot
/// be had is no reason to wait for ever.
async fn listening(
    arrived: Readiness,
    configured: Condition,
    shared: Weak<Shared>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
) {
    arrived.wait().await;
    let Some(shared) = shared.upgrade() else { return };
    let bound = tokio::time::timeout(BINDING, shared.until_listening(&snapshots));
    match shared.drain.until_drain(bound).await {
        Some(Ok(())) => {}
        Some(Err(_)) => tracing::warn!("ready, though not every listener is: see the errors before"),
        None => return,
    }
    configured.met();
}

/// Binds a page's socket; a predecessor that is letting go of it is given some seconds. All addresses are those of IPv4 alone where there
/// is no IPv6.
async fn bind(address: SocketAddr, replaces: bool) -> anyhow::Result<tokio::net::TcpListener> {
    let mut tries = if replaces { 100 } else { 0 };
    let four = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    let all = address.is_ipv6() && address.ip().is_unspecified();
    loop {
        match sockets::bind(address).or_else(|error| if all { sockets::bind(four) } else { Err(error) }) {
            Err(_) if tries > 0 => tries -= 1,
            result => return Ok(result?),
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Lets go of what workers share about clusters that are gone.
async fn forget(shared: Weak<Shared>, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    while snapshots.changed().await.is_ok() {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let Some(shared) = shared.upgrade() else { return };
        shared.forget(&snapshot);
    }
}
