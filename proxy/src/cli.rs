//! The command line of the proxy.
//!
//! In: arguments and environment. Out: the way to run. Kept true: the same names as flag, variable and settings key.
//! Not here: running (`serve`).

use std::{net::SocketAddr, path::PathBuf};

use mesh_runtime::{CaClientArgs, CommonArgs};

use crate::{
    capture::CaptureArgs,
    pod::{
        PodArgs,
        verbs::{DrainArgs, WaitArgs},
    },
};

/// Crema's data plane: a sidecar beside an application, an ingress gateway, or a proxy of its own
///
/// In a pod, the injector sets everything. Alone, `proxy run envoy.yaml` takes an Envoy v3 bootstrap.
#[derive(Debug, clap::Parser)]
#[command(name = "proxy", version, about)]
pub struct Cli {
    /// What to be.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Ways to run.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Stand beside an application: configuration from pilot, a certificate from citadel, reports to mixer
    Sidecar(Box<MeshArgs>),
    /// Be a gateway at the edge of the mesh
    Router(Box<MeshArgs>),
    /// Run an Envoy v3 bootstrap: static resources, watched files, or an ADS server
    Run(Box<RunArgs>),
    /// In an init container: lead the pod's connections to the proxy, with nftables
    Capture(Box<CaptureArgs>),
    /// In the proxy's container, before the application starts: wait until the proxy is ready
    Wait(WaitArgs),
    /// In the proxy's container, when the pod ends: tell clients to go elsewhere and wait for their connections
    Drain(DrainArgs),
}

/// Flags of `sidecar` and `router`.
#[derive(Debug, clap::Args)]
pub struct MeshArgs {
    /// What every binary has.
    #[command(flatten)]
    pub common: CommonArgs,
    /// How to get a certificate.
    #[command(flatten)]
    pub ca: CaClientArgs,
    /// Who we are.
    #[command(flatten)]
    pub pod: PodArgs,
    /// Sockets and threads.
    #[command(flatten)]
    pub ports: PortArgs,
}

/// Sockets and threads.
#[derive(Debug, Clone, clap::Args)]
pub struct PortArgs {
    /// Port of readiness, `/healthz/ready`, and of the application's probes; 0 for none
    #[arg(long, env = "HEALTH_PORT", default_value_t = 15021, value_name = "PORT")]
    pub health_port: u16,
    /// Port of the same pages, of `/stats/prometheus` and of `/quitquitquit`; 0 for none
    #[arg(long, env = "AGENT_PORT", default_value_t = 15020, value_name = "PORT")]
    pub agent_port: u16,
    /// Port of `/stats/prometheus` for scrapers; 0 for none
    #[arg(long, env = "STATS_PORT", default_value_t = 15090, value_name = "PORT")]
    pub stats_port: u16,
    /// Port of the admin pages, in a pod on 127.0.0.1
    #[arg(long, env = "ADMIN_PORT", default_value_t = 15000, value_name = "PORT")]
    pub admin_port: u16,
    /// Worker threads; one per core unless given here or in PROXY_CONFIG
    #[arg(long, env = "CONCURRENCY", value_name = "N")]
    pub concurrency: Option<usize>,
    /// Connections that are taken at once; more are closed
    #[arg(long, env = "MAX_CONNECTIONS", default_value_t = 100_000, value_name = "N")]
    pub max_connections: u64,
    /// Unix socket for restarts in place: a process started with the same path takes the listening sockets over, then this one drains
    #[arg(long, env = "RESTART_SOCKET", value_name = "PATH")]
    pub restart_socket: Option<PathBuf>,
    /// How long connections are still taken after SIGTERM, until all who route here know
    /// [default: terminationDrainDuration of PROXY_CONFIG, else 5; 0 where pods share a host on loopback addresses]
    #[arg(long, env = "TERMINATION_DRAIN_DURATION_SECONDS", value_name = "SECONDS")]
    pub drain_delay_seconds: Option<u64>,
}

/// Flags of `run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// What every binary has.
    #[command(flatten)]
    pub common: CommonArgs,
    /// How to get a mesh certificate, for TLS contexts that name the secrets `default` and `ROOTCA`.
    #[command(flatten)]
    pub ca: CaClientArgs,
    /// Where mixer takes telemetry in plaintext; without it nothing is reported
    #[arg(long, env = "TELEMETRY_ADDR", value_name = "HOST:PORT")]
    pub telemetry_addr: Option<String>,
    /// Worker threads; one per core unless given
    #[arg(long, env = "CONCURRENCY", value_name = "N")]
    pub concurrency: Option<usize>,
    /// Where readiness answers, `/healthz/ready`; nowhere unless given
    #[arg(long, env = "HEALTH", value_name = "IP:PORT")]
    pub health: Option<SocketAddr>,
    /// Connections that are taken at once; more are closed
    #[arg(long, env = "MAX_CONNECTIONS", default_value_t = 100_000, value_name = "N")]
    pub max_connections: u64,
    /// Unix socket for restarts in place: a process started with the same path takes the listening sockets over, then this one drains
    #[arg(long, env = "RESTART_SOCKET", value_name = "PATH")]
    pub restart_socket: Option<PathBuf>,
    /// The bootstrap, YAML or JSON
    #[arg(value_name = "FILE")]
    pub bootstrap: PathBuf,
}
