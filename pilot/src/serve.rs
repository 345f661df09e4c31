//! `pilot serve`: reads a directory or a cluster, serves xDS on its ports, answers questions on the admin port.
//!
//! In: flags. Out: a process that runs until SIGTERM. Kept true: nothing is served before everything was read once;
//! readiness says what is missing. Not here: what is served (`push`), the questions (`admin`).

use crate::{admin, admission, ads::server::Ads, push::Pusher, status};
use anyhow::Context as _;
use mesh_config::source::{DirOptions, Reader, watch_dir};
use mesh_identity::{
    grpc,
    tls::{ClientAuth, ServerTls},
    workload,
};
use mesh_kube::{
    KubeArgs, lease,
    source::{ISTIO_GROUPS, MIXER_GROUP, Seen, Wanted},
};
use mesh_runtime::{CaClientArgs, CommonArgs, Metrics, Readiness, admin::Admin, drain, listen, shutdown};
use std::{net::SocketAddr, path::PathBuf};

/// Flags of `pilot serve`.
#[derive(clap::Args, Clone, Debug)]
pub struct ServeArgs {
    /// Flags of every command that runs.
    #[command(flatten)]
    pub common: CommonArgs,
    /// How pilot gets its own certificate.
    #[command(flatten)]
    pub ca: CaClientArgs,
    /// Directory with the mesh's YAML: Istio's kinds, Services, EndpointSlices, Pods; watched while running
    #[arg(
        long,
        env = "CONFIG",
        value_name = "DIR",
        required_unless_present = "kube",
        conflicts_with = "kube"
    )]
    pub config: Option<PathBuf>,
    /// Or a cluster.
    #[command(flatten)]
    pub cluster: KubeArgs,
    /// Where to serve xDS without TLS; proxies are taken at their word there, so keep it on loopback
    #[arg(long, env = "XDS_PLAINTEXT", value_name = "IP:PORT")]
    pub xds_plaintext: Option<SocketAddr>,
    /// Where to serve xDS over mutual TLS; a proxy gets only what is its own there
    #[arg(long, env = "XDS_TLS", value_name = "IP:PORT")]
    pub xds_tls: Option<SocketAddr>,
    /// Where to serve the validating webhook over HTTPS, path /validate
    #[arg(long, env = "WEBHOOK", value_name = "IP:PORT")]
    pub webhook: Option<SocketAddr>,
}

/// Runs until a signal.
///
/// # Errors
/// When a port cannot be opened, or a flag is not what it should be; the text names it.
pub async fn run(args: ServeArgs) -> anyhow::Result<()> {
    let log = args.common.init_logs()?;
    anyhow::ensure!(
        args.xds_plaintext.is_some() || args.xds_tls.is_some(),
        "nothing to serve: set --xds-plaintext or --xds-tls"
    );
    if let Some(dir) = &args.config {
        anyhow::ensure!(dir.is_dir(), "--config {}: not a directory", dir.display());
    }
    let readiness = Readiness::new();
    let metrics = Metrics::for_process("pilot");
    let (trigger, watch) = drain::new();
    let signals = shutdown::Signals::new()?;

    let pusher = Pusher::new();
    admin::metrics(&metrics, &pusher);
    let synced = readiness.condition("configuration", "it has not been read completely yet");
    let (reader, cluster) = source(&args, &watch).await?;
    if let Some((client, seen)) = cluster {
        let namespace = &args.cluster.mesh_namespace;
        let drained = watch.clone();
        let stop = async move { drained.signaled().await };
        let owner = mesh_kube::owner(&client).await;
        let (leader, election) =
            lease::lead(client.clone(), namespace, STATUS_LEASE, &mesh_kube::identity(), owner, stop);
        tokio::spawn(election);
        tokio::spawn(status::write(client, leader, reader.clone(), seen, pusher.clone(), watch.clone()));
    }
    let mut first = reader.clone();
    tokio::spawn(async move {
        first.synced().await;
        synced.met();
    });
    tokio::spawn(pusher.clone().follow(reader.clone()));

    let bound = Admin::new("pilot", readiness.clone(), metrics.clone(), log)
        .routes(admin::router(pusher.clone(), reader))
        .bind(args.common.admin_or_loopback(15014))?;
    tokio::spawn(bound.serve(watch.clone()));

    let service = Ads::new(std::sync::Arc::new(pusher), watch.clone());
    let server = || {
        tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(std::time::Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(std::time::Duration::from_secs(10)))
            .add_service(service.clone())
    };
    if let Some(address) = args.xds_plaintext {
        let listener = listen::bind(address)?;
        if !listen::is_loopback(address.ip()) {
            tracing::warn!(%address, "xDS without TLS is open beyond this host: whoever reaches it is taken at its word");
        }
        let incoming = grpc::incoming_plain(listener, grpc::Limits::default(), watch.clone());
        let (server, drained) = (server(), watch.clone());
        tracing::info!(%address, "serving xDS without TLS");
        tokio::spawn(async move {
            let end = server.serve_with_incoming_shutdown(incoming, async { drained.signaled().await }).await;
            report(end);
        });
    }
    let store = match args.xds_tls.or(args.webhook) {
        Some(address) => {
            let condition = readiness.condition("certificate", "citadel has not answered yet");
            let started =
                workload::start(&args.ca, None, Some(address.ip()), &metrics, condition, watch.clone());
            Some(started.map_err(anyhow::Error::msg).context("certificate of pilot")?)
        }
        None => None,
    };
    if let (Some(address), Some(store)) = (args.webhook, store.clone()) {
        let listener = listen::bind(address)?;
        tracing::info!(%address, "serving the validating webhook");
        if args.cluster.kube {
            let (client, namespace) = (mesh_kube::client().await?, args.cluster.mesh_namespace.clone());
            tokio::spawn(admission::register::keep(client, namespace, store.clone(), watch.clone()));
        }
        tokio::spawn(admission::server::serve(listener, store, watch.clone()));
    }
    if let (Some(address), Some(store)) = (args.xds_tls, store) {
        let listener = listen::bind(address)?;
        let tls = ServerTls::grpc(ClientAuth::Required);
        let incoming = grpc::incoming(listener, store, tls, grpc::Limits::default(), watch.clone());
        let (server, drained) = (server(), watch.clone());
        tracing::info!(%address, "serving xDS over mutual TLS");
        tokio::spawn(async move {
            let end = server.serve_with_incoming_shutdown(incoming, async { drained.signaled().await }).await;
            report(end);
        });
    }
    // Whoever holds a watch counts as busy: from here on only what was spawned does.
    drop(service);
    drop(watch);
    signals.drain_on_signal(trigger, args.common.grace()).await;
    Ok(())
}

/// Lease of the one pilot that writes the status of objects.
const STATUS_LEASE: &str = "pilot-status-leader";

/// Starts to read the configuration; of a cluster, also what its status is written with.
async fn source(
    args: &ServeArgs,
    watch: &drain::Watch,
) -> anyhow::Result<(Reader, Option<(mesh_kube::kube::Client, Seen)>)> {
    let drained = watch.clone();
    let stop = async move { drained.signaled().await };
    if let Some(dir) = &args.config {
        let (reader, reading) = watch_dir(dir.clone(), DirOptions::default(), stop);
        tokio::spawn(reading);
        return Ok((reader, None));
    }
    let namespace = &args.cluster.mesh_namespace;
    let wanted = Wanted::new(namespace)
        .services()
        .endpoint_slices()
        .pods()
        .namespaces()
        .gateway_secrets(namespace)
        .groups(ISTIO_GROUPS.iter().copied().chain([MIXER_GROUP]));
    let client = mesh_kube::client().await?;
    let (reader, seen, reading) = mesh_kube::source::watch(client.clone(), wanted, stop);
    tokio::spawn(reading);
    Ok((reader, Some((client, seen))))
}

fn report(end: Result<(), tonic::transport::Error>) {
    if let Err(error) = end {
        tracing::error!(error = grpc::causes(&error), "an xDS port has stopped");
    }
}
