//! A small node: runs the same Deployments and Services that people apply to a cluster, as processes on loopback addresses.
//!
//! In: Kubernetes documents. Out: processes, and in the watched directory the Pods, Sidecars and EndpointSlices that a cluster would have.
//! Kept true: the five binaries cannot tell it from a cluster's API; when the node ends, by whatever cause, so do all its processes.
//! Not here: what is shown or judged (`demo`, `scenarios`).

mod apply;
pub mod container;
pub mod control;
pub mod files;
pub mod forward;
pub mod network;
pub mod objects;
pub mod process;
pub mod tokens;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::Value;

use self::{
    container::Kubelet,
    control::{Addresses, SYSTEM},
    files::{Layout, write_objects},
    forward::Forwarder,
    network::Network,
    objects::{PROXY, Pod, endpoint_slice, list, map, name, selected},
    process::{Process, Spawner, Spec},
    tokens::Mint,
};
use crate::http::Call;

/// How often an unready, or a ready, pod is asked.
const ASK: [Duration; 2] = [Duration::from_millis(150), Duration::from_secs(1)];
/// A component of the control plane that was started more often than this, before it was ever ready, will not come up.
const CRASHES: u32 = 5;
/// How long the control plane may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Hears what the node is doing, one sentence at a time.
pub type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// How a node is started.
#[derive(Clone)]
pub struct Options {
    /// Its directory; made if missing.
    pub dir: PathBuf,
    /// N of 127.N.0.0/16; none for any free one.
    pub net: Option<u8>,
    /// Directory of the programs.
    pub bin: PathBuf,
    /// Share of requests that are traced, in percent.
    pub sampling: f64,
    /// Hears what the node is doing.
    pub progress: Progress,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("dir", &self.dir).field("net", &self.net).finish_non_exhaustive()
    }
}

/// A running local mesh. Cheap to clone; [`Node::stop`] ends it.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    options: Options,
    network: Network,
    addresses: Addresses,
    kubelet: Kubelet,
    spawner: Spawner,
    stopping: AtomicBool,
    frozen: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    control: Vec<Process>,
    services: BTreeMap<(String, String), Value>,
    forwarders: BTreeMap<(String, String, u16), Forwarder>,
    deployments: BTreeMap<(String, String), Deployment>,
    pods: BTreeMap<(String, String), Running>,
    made: u32,
}

struct Deployment {
    set: String,
    template: Value,
}

struct Running {
    pod: Pod,
    processes: Vec<(String, Process)>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("dir", &self.0.options.dir)
            .field("net", &self.0.network.number())
            .finish()
    }
}

impl Node {
    /// Takes a network, starts citadel, pilot and mixer, and waits until they are ready.
    ///
    /// # Errors
    /// When the network is taken, a program is missing, or a component does not come up; names its log.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let network = Network::take(options.net)?;
        let layout = Layout::create(&options.dir)?;
        network.announce(format!(
            "a local mesh in {} (process {})",
            layout.root().display(),
            std::process::id()
        ))?;
        let addresses = Addresses::of(&network);
        let kubelet = Kubelet { bin: options.bin.clone(), layout, mint: Mint::new()? };
        let first_stage = Some(options.bin.join("e2e")).filter(|p| p.is_file());
        let spawner = Spawner::new(kubelet.layout.logs(), first_stage)?;
        let inner = Inner {
            options,
            network,
            addresses,
            kubelet,
            spawner,
            stopping: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
            state: Mutex::default(),
        };
        let node = Self(Arc::new(inner));
        match node.start_control_plane().await {
            Ok(()) => Ok(node),
            Err(error) => {
                node.stop().await;
                Err(error)
            }
        }
    }

    async fn start_control_plane(&self) -> anyhow::Result<()> {
        let inner = &self.0;
        control::write_base(&inner.kubelet, &inner.addresses, inner.options.sampling)?;
        for (spec, admin) in control::specs(&inner.kubelet, &inner.addresses)? {
            (inner.options.progress)(&format!("starting {}", spec.name));
            let process = inner.spawner.start(spec).await?;
            self.state().control.push(process.clone());
            let published = || process.name != "citadel" || inner.kubelet.layout.root_cert().is_file();
            let ready =
                || async { process.status().starts > CRASHES || (is_ready(admin).await && published()) };
            let why = || {
                format!(
                    "{} is not ready; the end of {}:\n{}",
                    process.name,
                    process.log.display(),
                    process.tail(15)
                )
            };
            until(PATIENCE, ready, why).await?;
            if process.status().starts > CRASHES {
                bail!("{}", why());
            }
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the control plane answers.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.0.addresses
    }

    /// The directory of this mesh.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.0.kubelet.layout
    }

    /// Directory of the programs.
    #[must_use]
    pub fn bin(&self) -> &Path {
        &self.0.options.bin
    }

    /// N of 127.N.0.0/16.
    #[must_use]
    pub fn net(&self) -> u8 {
        self.0.network.number()
    }

    /// Writes every EndpointSlice anew and tells the forwarders.
    fn refresh(&self) -> anyhow::Result<()> {
        let state = self.state();
        let pods: Vec<&Pod> = state.pods.values().map(|r| &r.pod).collect();
        for ((namespace, name), service) in &state.services {
            let file = self.layout().node().join(format!("endpointslice-{namespace}-{name}.yaml"));
            if let Some(slice) = endpoint_slice(service, &pods) {
                write_objects(&file, &[slice])?;
            }
        }
        for ((namespace, name, number), forwarder) in &state.forwarders {
            let Some(service) = state.services.get(&(namespace.clone(), name.clone())) else { continue };
            let selector = map(service, "/spec/selector");
            let is = |p: &&Value| p.get("port").and_then(Value::as_u64) == Some(u64::from(*number));
            let Some(port) = list(service, "/spec/ports").iter().find(is) else { continue };
            let target = port.get("targetPort").or_else(|| port.get("port")).cloned().unwrap_or_default();
            let ready =
                pods.iter().filter(|p| p.ready && p.namespace == *namespace && selected(&selector, p));
            forwarder.set(ready.filter_map(|p| Some(SocketAddr::from((p.ip, p.target(&target)?)))).collect());
        }
        Ok(())
    }

    fn set_ready(&self, key: &(String, String), ready: bool) -> anyhow::Result<()> {
        let pod = {
            let mut state = self.state();
            let Some(running) = state.pods.get_mut(key).filter(|r| r.pod.ready != ready) else {
                return Ok(());
            };
            running.pod.ready = ready;
            running.pod.clone()
        };
        self.write_pod(&pod)?;
        self.refresh()
    }

    /// Waits until all pods are ready.
    ///
    /// # Errors
    /// After `patience`: names the first pod that is not, with the end of its logs.
    pub async fn ready(&self, patience: Duration) -> anyhow::Result<()> {
        let all = || async { self.state().pods.values().all(|r| r.pod.ready) };
        let why = || {
            let state = self.state();
            let Some(running) = state.pods.values().find(|r| !r.pod.ready) else { return String::new() };
            let logs = running.processes.iter().map(|(_, p)| format!("{}:\n{}", p.log.display(), p.tail(12)));
            format!(
                "pod {} is not ready; the end of its logs:\n{}",
                running.pod.name,
                logs.collect::<Vec<_>>().join("\n")
            )
        };
        until(patience, all, why).await
    }

    /// All pods now.
    #[must_use]
    pub fn pods(&self) -> Vec<Pod> {
        self.state().pods.values().map(|r| r.pod.clone()).collect()
    }

    /// The pods of a Deployment.
    #[must_use]
    pub fn pods_of(&self, deployment: &str) -> Vec<Pod> {
        let mine = |pod: &Pod| pod.owner.as_ref().is_some_and(|(of, _)| of == deployment);
        self.pods().into_iter().filter(mine).collect()
    }

    /// The process of a container, e.g. to stop an application under its living sidecar.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn process(&self, pod: &str, container: &str) -> anyhow::Result<Process> {
        let state = self.state();
        let running = state.pods.values().find(|r| r.pod.name == pod);
        let mut processes = running.into_iter().flat_map(|r| &r.processes);
        let found = processes.find(|(name, _)| name == container).map(|(_, p)| p.clone());
        found.with_context(|| format!("pod {pod} runs no container {container}"))
    }

    /// A process of the control plane: `citadel`, `pilot` or `mixer`.
    ///
    /// # Errors
    /// When there is no such component.
    pub fn component(&self, name: &str) -> anyhow::Result<Process> {
        let found = self.state().control.iter().find(|p| p.name == name).cloned();
        found.with_context(|| format!("no component {name}"))
    }

    /// A token of a service account, as the node mounts it into pods: for a workload that joins the mesh without being a pod of the node.
    ///
    /// # Errors
    /// When signing fails.
    pub fn token(&self, namespace: &str, account: &str, pod: &str) -> anyhow::Result<String> {
        self.0.kubelet.mint.token(namespace, account, pod, &format!("{pod}-uid"))
    }

    /// Where a Service of type LoadBalancer, or the gateway, is reached from outside: the local port for a port of it.
    #[must_use]
    pub fn outside(&self, namespace: &str, service: &str) -> Option<SocketAddr> {
        let state = self.state();
        let mut all = state.forwarders.iter();
        all.find(|((ns, name, _), _)| ns == namespace && name == service).map(|(_, f)| f.address)
    }

    /// All local ports: Service, its port, the address on localhost.
    #[must_use]
    pub fn ports_outside(&self) -> Vec<(String, u16, SocketAddr)> {
        let state = self.state();
        state
            .forwarders
            .iter()
            .map(|((ns, name, port), f)| (format!("{name}.{ns}"), *port, f.address))
            .collect()
    }

    /// A call from within the mesh: through the sidecar of a Deployment's first pod, from that pod's address.
    ///
    /// # Errors
    /// When the Deployment has no pod.
    pub fn call_from(&self, deployment: &str, url: &str) -> anyhow::Result<Call> {
        let pods = self.pods_of(deployment);
        let pod = pods.first().with_context(|| format!("Deployment {deployment} has no pod"))?;
        let mut call = Call::get(url);
        call.proxy = Some(SocketAddr::from((pod.ip, objects::EGRESS_PORT)));
        call.from = Some(IpAddr::V4(pod.ip));
        Ok(call)
    }

    /// While frozen, pods keep the readiness they have: what a cluster does for a pod without a readiness probe of its own.
    pub fn freeze_readiness(&self, frozen: bool) {
        self.0.frozen.store(frozen, Ordering::Relaxed);
    }

    /// One line: what runs and what does not.
    #[must_use]
    pub fn status_line(&self) -> String {
        let state = self.state();
        let down: Vec<_> =
            state.control.iter().filter(|p| p.status().pid.is_none()).map(|p| p.name.clone()).collect();
        let ready = state.pods.values().filter(|r| r.pod.ready).count();
        let processes =
            state.control.iter().chain(state.pods.values().flat_map(|r| r.processes.iter().map(|(_, p)| p)));
        let restarts: u32 = processes.map(|p| p.status().starts.saturating_sub(1)).sum();
        let control = if down.is_empty() {
            "control plane up".to_owned()
        } else {
            format!("down: {}", down.join(", "))
        };
        format!(
            "{control} | pods {ready}/{} ready | {} services | {restarts} restarts",
            state.pods.len(),
            state.services.len()
        )
    }

    /// Ends every process: workloads first, then the control plane.
    pub async fn stop(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
        let (pods, control, forwarders) = {
            let mut state = self.state();
            (
                std::mem::take(&mut state.pods),
                std::mem::take(&mut state.control),
                std::mem::take(&mut state.forwarders),
            )
        };
        drop(forwarders);
        let workloads = pods.values().flat_map(|r| r.processes.iter().map(|(_, p)| p.stop()));
        futures::future::join_all(workloads).await;
        futures::future::join_all(control.iter().map(Process::stop)).await;
    }

    /// Starts a further process of the mesh, logged like the others; it lives as long as its handle.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn spawn(&self, spec: Spec) -> anyhow::Result<Process> {
        self.0.spawner.start(spec).await
    }
}

/// Keeps a pod's readiness true to what its containers say, until the pod is gone.
async fn follow(node: Node, key: (String, String), pod: Pod) {
    let proxied = pod.containers().any(|c| name(c) == PROXY);
    loop {
        let ready = containers_ready(&pod, proxied).await;
        if node.0.stopping.load(Ordering::Relaxed) || !node.state().pods.contains_key(&key) {
            return;
        }
        let frozen = node.0.frozen.load(Ordering::Relaxed);
        if let Some(error) = (!frozen).then(|| node.set_ready(&key, ready).err()).flatten() {
            (node.0.options.progress)(&format!("{error:#}"));
        }
        tokio::time::sleep(ASK[usize::from(ready)]).await;
    }
}

async fn containers_ready(pod: &Pod, proxied: bool) -> bool {
    if proxied && !is_ready(SocketAddr::from((pod.ip, 15_021))).await {
        return false;
    }
    for port in &pod.ports {
        let address = match port.app {
            Some(app) => SocketAddr::from(([127, 0, 0, 1], app)),
            // A gateway opens its port when a Gateway asks for it; its proxy has been asked above.
            None if proxied => continue,
            None => SocketAddr::from((pod.ip, port.bound)),
        };
        if tokio::net::TcpStream::connect(address).await.is_err() {
            return false;
        }
    }
    true
}

/// True when `/healthz/ready` answers 200.
async fn is_ready(address: SocketAddr) -> bool {
    let mut call = Call::get(format!("http://{address}/healthz/ready"));
    call.patience = Duration::from_secs(2);
    call.send().await.is_ok_and(|r| r.status == 200)
}

/// Asks again and again until `check` holds.
///
/// # Errors
/// After `patience`, with `why`.
pub async fn until<F: Future<Output = bool>>(
    patience: Duration,
    check: impl Fn() -> F,
    why: impl Fn() -> String,
) -> anyhow::Result<()> {
    let started = Instant::now();
    while !check().await {
        if started.elapsed() > patience {
            bail!("{}", why());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Namespace of the control plane and of the gateway.
pub const SYSTEM_NAMESPACE: &str = SYSTEM;
