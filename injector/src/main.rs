//! The injector's command line: `serve` for Kubernetes, `inject` for files.
//!
//! In: flags, environment, settings file. Out: a webhook that runs until SIGTERM, or injected YAML on standard output.
//! Kept true: exit code 0 only when everything asked for was done. Not here: anything else (library).

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc};

use clap::{Args, Parser, Subcommand};
use injector::{
    cluster::{self, OwnCertArgs},
    command::{FileArgs, InjectArgs},
    serve::{Certificate, Files, serve_tls},
    webhook::{Webhook, router},
};
use mesh_kube::KubeArgs;
use mesh_runtime::{CommonArgs, Metrics, Readiness, admin::Admin, cli, drain, listen, shutdown::Signals};
use tokio::sync::mpsc;

/// Adds Crema's proxy to pods: as a webhook of Kubernetes, or as a filter on YAML files.
#[derive(Debug, Parser)]
#[command(name = "injector", version)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Answer Kubernetes' admission reviews over HTTPS (`POST /inject`).
    Serve(Box<ServeArgs>),
    /// Add the proxy to the pods of YAML files; every other byte stays as it is.
    Inject(Box<FileArgs>),
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Where the webhook listens
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:9443", value_name = "IP:PORT")]
    listen: SocketAddr,
    /// Certificate chain of the webhook, PEM; read again when it changes
    #[arg(long, env = "TLS_CERT", default_value = "/etc/crema/webhook/tls.crt", value_name = "FILE")]
    tls_cert: PathBuf,
    /// Key of that certificate, PEM
    #[arg(long, env = "TLS_KEY", default_value = "/etc/crema/webhook/tls.key", value_name = "FILE")]
    tls_key: PathBuf,
    /// Or, in a cluster: from citadel.
    #[command(flatten)]
    own: OwnCertArgs,
    #[command(flatten)]
    cluster: KubeArgs,
    #[command(flatten)]
    inject: InjectArgs,
    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    match cli::parse::<Command>().verb {
        Verb::Inject(args) => args.run(),
        Verb::Serve(args) => {
            tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(*args))
        }
    }
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let level = args.common.init_logs()?;
    let signals = Signals::new()?;
    let (settings, templates) = args.inject.load()?;
    let (trigger, watch) = drain::new();
    let (readiness, metrics) = (Readiness::new(), Metrics::for_process("injector"));
    let admin = Admin::new("injector", readiness.clone(), metrics.clone(), level)
        .bind(args.common.admin_or_loopback(9444))?;
    let listener = listen::bind(args.listen)?;
    tracing::info!(listen = %listener.local_addr()?, admin = %admin.local_addr(), "webhook is up");
    tokio::spawn(admin.serve(watch.clone()));
    let webhook = |told| router(Arc::new(Webhook { settings, templates, told }));
    if args.cluster.kube {
        let ready = readiness.condition("certificate", "citadel has not answered yet");
        let store = cluster::certificate(&args.own, &metrics, ready, watch.clone())?;
        let (tell, told) = mpsc::channel(64);
        cluster::keep(store.clone(), told, watch.clone()).await?;
        tokio::spawn(cluster::serve(listener, store, webhook(Some(tell)), watch));
    } else {
        let certificate = Certificate::read(Files { cert: args.tls_cert, key: args.tls_key })?;
        let following = certificate.clone();
        tokio::spawn(async move { following.follow().await });
        tokio::spawn(serve_tls(listener, certificate, webhook(None), watch));
    }
    signals.drain_on_signal(trigger, args.common.grace()).await;
    Ok(())
}
