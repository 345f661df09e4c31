//! `mixer serve`: the servers, and the task that follows the configuration.
//!
//! In: flags, a directory of configuration, a certificate from citadel. Out: listening servers until the drain.
//! Kept true: nothing is served before the configuration has been read once; plaintext gRPC is for loopback unless the
//! flags say else. Not here: what requests mean (`ingest`).

use std::{future::Future, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use axum::{Json, Router, http::header, routing::get};
use envoy_types::pb::envoy::service::{
    accesslog::v3::access_log_service_server::AccessLogServiceServer,
    auth::v3::authorization_server::AuthorizationServer,
};
use mesh_config::source::{self, DirOptions, Reader};
use mesh_identity::{
    grpc,
    tls::{ClientAuth, ServerTls},
    workload,
};
use mesh_kube::{
    KubeArgs,
    source::{MIXER_GROUP, Wanted},
};
use mesh_runtime::{CaClientArgs, CommonArgs, Metrics, Readiness, admin::Admin, drain, listen, shutdown};
use mixer_api::v1::mixer_server::MixerServer;
use otlp::collector::{
    logs::v1::logs_service_server::LogsServiceServer,
    metrics::v1::metrics_service_server::MetricsServiceServer,
    trace::v1::trace_service_server::TraceServiceServer,
};
use serde_json::json;
use telemetry_api::telemetry_server::TelemetryServer;
use tonic::codec::CompressionEncoding;

use crate::{
    config::{Action, Options, Variety},
    core::Mixer,
    ingest, recorder,
};

/// Largest gRPC message.
const MOST_BYTES: usize = 16 << 20;

/// Flags of `mixer serve`.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    ca: CaClientArgs,
    /// Directory of YAML files: rules, handlers, instances, and the Pods that requests are joined with. Watched.
    /// Without it, mixer works with its built-in standard metrics only.
    #[arg(long, env = "CONFIG", value_name = "DIR", conflicts_with = "kube")]
    config: Option<PathBuf>,
    #[command(flatten)]
    cluster: KubeArgs,
    /// Plaintext gRPC: istio.mixer.v1, Envoy access logs, OTLP, ext_authz and the native stream, all on one port.
    #[arg(long, env = "LISTEN", value_name = "ADDR", default_value = "127.0.0.1:9091")]
    listen: SocketAddr,
    /// The same over mutual TLS, with a certificate from --ca-addr. 0.0.0.0:15004 if --ca-addr is given.
    #[arg(long, env = "LISTEN_TLS", value_name = "ADDR")]
    listen_tls: Option<SocketAddr>,
    /// Metrics of the prometheus handlers, at /metrics.
    #[arg(long, env = "PROMETHEUS", value_name = "ADDR", default_value = "0.0.0.0:42422")]
    prometheus: SocketAddr,
    /// Dashboard, and the recorder's Zipkin v2 API.
    #[arg(long, env = "ZIPKIN", value_name = "ADDR", default_value = "127.0.0.1:9411")]
    zipkin: SocketAddr,
    /// Leave out the built-in standard metrics.
    #[arg(long, env = "NO_DEFAULT_METRICS")]
    no_default_metrics: bool,
}

/// All gRPC services of both ports.
pub fn grpc_services(mixer: &Arc<Mixer>) -> tonic::transport::server::Router {
    let m = || mixer.clone();
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .max_concurrent_streams(1_024)
        .add_service(
            TelemetryServer::new(ingest::native::NativeService(m())).max_decoding_message_size(MOST_BYTES),
        )
        .add_service(MixerServer::new(ingest::mixer::MixerService(m())).max_decoding_message_size(MOST_BYTES))
        .add_service(AuthorizationServer::new(ingest::authz::AuthzService(m())))
        .add_service(
            AccessLogServiceServer::new(ingest::als::AlsService(m()))
                .accept_compressed(CompressionEncoding::Gzip)
                .max_decoding_message_size(MOST_BYTES),
        )
        .add_service(
            TraceServiceServer::new(ingest::otlp::OtlpService(m()))
                .accept_compressed(CompressionEncoding::Gzip)
                .max_decoding_message_size(MOST_BYTES),
        )
        .add_service(
            LogsServiceServer::new(ingest::otlp::OtlpService(m()))
                .accept_compressed(CompressionEncoding::Gzip)
                .max_decoding_message_size(MOST_BYTES),
        )
        .add_service(
            MetricsServiceServer::new(ingest::otlp::OtlpService(m()))
                .accept_compressed(CompressionEncoding::Gzip)
                .max_decoding_message_size(MOST_BYTES),
        )
}

/// The page that Prometheus scrapes.
pub fn prometheus_router(mixer: Arc<Mixer>) -> Router {
    const TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
    let page = async move || ([(header::CONTENT_TYPE, TYPE)], mixer.shared().prometheus.text());
    Router::new().route("/metrics", get(page))
}

/// Follows the configuration until its source ends or the drain begins.
pub async fn follow(mixer: Arc<Mixer>, mut reader: Reader, drain: drain::Watch) {
    let mut before = reader.now();
    while let Some(Some(next)) = drain.until_drain(reader.changed()).await {
        if !next.mixer.same(&before.mixer) || next.root_namespace() != before.root_namespace() {
            mixer.replace(&next);
        } else if !next.pods.same(&before.pods) || !next.services.same(&before.services) {
            mixer.rejoin(&next);
        }
        before = next;
    }
}

/// Runs until a signal asks to stop.
pub async fn run(args: ServeArgs) -> anyhow::Result<()> {
    let log = args.common.init_logs()?;
    let readiness = Readiness::new();
    let configured = readiness.condition("configuration", "the configuration is being read");
    let metrics = Metrics::for_process("mixer");
    let (trigger, watch) = drain::new();
    let signals = shutdown::Signals::new()?;

    // Every address first, so that a taken port is said before anything else starts.
    let plain = listen::bind(args.listen)?;
    let prometheus = listen::bind(args.prometheus)?;
    let zipkin = listen::bind(args.zipkin)?;
    let tls_address = match (args.listen_tls, &args.ca.ca_addr) {
        (Some(address), _) => Some(address),
        (None, Some(_)) => Some(SocketAddr::from(([0, 0, 0, 0], 15_004))),
        (None, None) => None,
    };
    let tls = tls_address.map(listen::bind).transpose()?;

    let stop = watch.clone();
    let ended = async move { stop.signaled().await };
    let reader = match &args.config {
        _ if args.cluster.kube => {
            let wanted = Wanted::new(&args.cluster.mesh_namespace).services().pods().groups([MIXER_GROUP]);
            let (reader, _seen, task) = mesh_kube::source::watch(mesh_kube::client().await?, wanted, ended);
            tokio::spawn(task);
            reader
        }
        None => Reader::fixed(mesh_config::Snapshot::default()),
        Some(dir) => {
            let (reader, task) = source::watch_dir(dir.clone(), DirOptions::default(), ended);
            tokio::spawn(task);
            reader
        }
    };
    let mut first = reader.clone();
    let snapshot =
        if args.config.is_some() || args.cluster.kube { first.synced().await } else { reader.now() };
    let mixer = Mixer::new(&snapshot, Options { default_metrics: !args.no_default_metrics });
    configured.met();
    tokio::spawn(follow(mixer.clone(), reader, watch.clone()));
    let (stop, stopping) = (mixer.stop.clone(), watch.clone());
    tokio::spawn(async move {
        stopping.signaled().await;
        stop.cancel();
    });

    let counted = mixer.clone();
    metrics.add_text(move |out: &mut String| {
        out.push_str(&counted.prometheus_text());
    });
    let debugged = mixer.clone();
    let routes = Router::new().route("/debug/config", get(async move || Json(describe(&debugged))));
    let admin = Admin::new("mixer", readiness.clone(), metrics.clone(), log).routes(routes);
    let admin = admin.bind(args.common.admin_or_loopback(9093))?;
    tokio::spawn(admin.serve(watch.clone()));
    tokio::spawn(listen::serve_http(prometheus, prometheus_router(mixer.clone()), watch.clone()));
    tokio::spawn(listen::serve_http(zipkin, recorder::http::router(mixer.clone()), watch.clone()));

    let incoming = grpc::incoming_plain(plain, grpc::Limits::default(), watch.clone());
    let server = grpc_services(&mixer).serve_with_incoming_shutdown(incoming, signaled(watch.clone()));
    spawn_server("plaintext gRPC", server);
    if let Some(listener) = tls {
        let certificate = readiness.condition("certificate", "citadel has not answered yet");
        let local = tls_address.map(|address| address.ip()).filter(|ip| !ip.is_unspecified());
        let store = workload::start(&args.ca, None, local, &metrics, certificate, watch.clone())
            .map_err(anyhow::Error::msg)?;
        let tls = ServerTls::grpc(ClientAuth::Required);
        let incoming = grpc::incoming(listener, store, tls, grpc::Limits::default(), watch.clone());
        let server = grpc_services(&mixer).serve_with_incoming_shutdown(incoming, signaled(watch.clone()));
        spawn_server("mutual TLS gRPC", server);
    }
    tracing::info!(listen = %args.listen, prometheus = %args.prometheus, zipkin = %args.zipkin, "mixer serves");
    drop(watch);
    signals.drain_on_signal(trigger, args.common.grace()).await;
    flush(&mixer).await;
    Ok(())
}

/// Gives handlers a moment to export what still waits; says what is lost.
async fn flush(mixer: &Mixer) {
    let generation = mixer.generation();
    let waiting = || generation.handlers.iter().filter(|handler| handler.pending() > 0);
    for _ in 0..50 {
        if waiting().next().is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for handler in waiting() {
        tracing::warn!(
            handler = &*handler.name,
            bytes = handler.pending(),
            "stopping with items not exported"
        );
    }
}

async fn signaled(watch: drain::Watch) {
    watch.signaled().await;
}

fn spawn_server(
    what: &'static str,
    server: impl Future<Output = Result<(), tonic::transport::Error>> + Send + 'static,
) {
    tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!("{what}: {error}");
        }
    });
}

fn fed_from(action: &Action) -> &'static str {
    match (action.instance.template.variety(), action.series) {
        (Variety::Report, Some(_)) => "series",
        (Variety::Report, None) => "records",
        (Variety::Check | Variety::Quota, _) => "checks",
        (Variety::AttributeGenerator, _) => "everything",
    }
}

/// What is in force, for people.
fn describe(mixer: &Mixer) -> serde_json::Value {
    let generation = mixer.generation();
    let rules: Vec<_> = generation
        .rules
        .iter()
        .map(|rule| {
            let actions: Vec<_> = rule
                .actions
                .iter()
                .map(|action| {
                    json!({
                        "handler": &*action.handler.name,
                        "instance": &*action.instance.name,
                        "fedFrom": fed_from(action),
                    })
                })
                .collect();
            json!({
                "name": &*rule.name,
                "namespace": &*rule.namespace,
                "match": rule.matcher.as_ref().map(|matcher| matcher.source()),
                "actions": actions,
            })
        })
        .collect();
    let handlers: Vec<_> = generation
        .handlers
        .iter()
        .map(|handler| {
            let stats = handler.stats();
            json!({
                "name": &*handler.name,
                "adapter": handler.kind.name,
                "sent": stats.sent_total(),
                "dropped": stats.dropped_total(),
            })
        })
        .collect();
    let diagnostics: Vec<_> =
        generation.diagnostics.iter().map(|diagnostic| format!("{diagnostic:#}")).collect();
    json!({"generation": generation.number, "rules": rules, "handlers": handlers, "diagnostics": diagnostics})
}
