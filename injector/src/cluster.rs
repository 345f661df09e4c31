//! `injector serve --kube`: a certificate from citadel, its roots in the webhook's configuration, Events for pods that were refused.
//!
//! In: flags, an API server. Out: HTTPS with a certificate that renews itself; `caBundle` and `failurePolicy` of [`CONFIGURATION`].
//! Kept true: until an injection was served, a dead injector stops nobody; nothing of a review waits for the API server.
//! Not here: what is injected (`pod`), the configuration's selectors (the manifest).

use std::{path::PathBuf, sync::Arc};

use anyhow::Context as _;
use axum::Router;
use clap::Args;
use mesh_identity::{
    CertStore,
    tls::{ClientAuth, MinTls, ServerTls},
    workload,
};
use mesh_kube::{
    events::Events,
    k8s_openapi::api::core::v1::ObjectReference,
    webhook::{self, Kind, Settings},
};
use mesh_runtime::{CaClientArgs, Condition, Metrics, drain::Watch, listen};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, watch},
};

/// The manifest's MutatingWebhookConfiguration.
pub const CONFIGURATION: &str = "crema-injector";
/// Most connections at once; API servers keep a few.
const MOST_CONNECTIONS: usize = 256;

/// Where the webhook's own certificate comes from. Its names differ from those of pods, which are flags as well.
#[derive(Debug, Clone, Args)]
pub struct OwnCertArgs {
    /// Certificate authority (citadel) for the webhook's own certificate, as host:port
    #[arg(long, env = "CA_ADDR", value_name = "HOST:PORT", help_heading = "Identity")]
    pub own_ca_addr: Option<String>,
    /// File with the service account token; read again for every request
    #[arg(
        long,
        env = "TOKEN_FILE",
        default_value = "/var/run/secrets/tokens/istio-token",
        value_name = "FILE",
        help_heading = "Identity"
    )]
    pub token_file: PathBuf,
    /// File with the root certificates that the certificate authority is checked against
    #[arg(
        long,
        env = "ROOT_CERT_FILE",
        default_value = "/var/run/secrets/istio/root-cert.pem",
        value_name = "FILE",
        help_heading = "Identity"
    )]
    pub root_cert_file: PathBuf,
    /// Name that the certificate authority's own certificate must carry
    /// [default: spiffe://TRUST_DOMAIN/ns/istio-system/sa/citadel]
    #[arg(long, env = "CA_SAN", value_name = "NAME", help_heading = "Identity")]
    pub ca_san: Option<String>,
    /// Trust domain of this mesh
    #[arg(
        long,
        env = "TRUST_DOMAIN",
        default_value = "cluster.local",
        value_name = "NAME",
        help_heading = "Identity"
    )]
    pub trust_domain: String,
}

impl OwnCertArgs {
    fn client(&self) -> CaClientArgs {
        CaClientArgs {
            ca_addr: self.own_ca_addr.clone(),
            token_file: self.token_file.clone(),
            root_cert_file: self.root_cert_file.clone(),
            ca_san: self.ca_san.clone(),
            trust_domain: self.trust_domain.clone(),
            trust_domain_aliases: Vec::new(),
        }
    }
}

/// What happened to a pod, as the webhook tells it.
#[derive(Debug, Clone)]
pub enum Told {
    /// A review was answered: the API server reaches us and trusts our certificate.
    Served,
    /// A pod was refused.
    Refused {
        /// Its controller, or whoever made it; an object that exists, which the pod does not.
        about: Box<ObjectReference>,
        /// Why.
        why: String,
    },
}

/// Starts to get the certificate.
///
/// # Errors
/// When a flag is not what it should be; the text names it.
pub fn certificate(
    args: &OwnCertArgs,
    metrics: &Metrics,
    ready: Condition,
    drain: Watch,
) -> anyhow::Result<CertStore> {
    let started = workload::start(&args.client(), None, None, metrics, ready, drain);
    // The flag of the shared part has another name here.
    started.map_err(|why| anyhow::Error::msg(why.replace("--ca-addr", "--own-ca-addr")))
}

/// Keeps the webhook's configuration and writes Events, until the drain.
///
/// # Errors
/// When there is no cluster.
pub async fn keep(store: CertStore, mut told: mpsc::Receiver<Told>, drain: Watch) -> anyhow::Result<()> {
    let client = mesh_kube::client().await.context("--kube")?;
    let (settings, follow) = watch::channel(Settings { roots: Arc::from(""), closed: false });
    let keeper = webhook::keep(client.clone(), Kind::Mutating, CONFIGURATION, follow);
    let drained = drain.clone();
    tokio::spawn(async move { drained.until_drain(keeper).await });
    tokio::spawn(async move {
        let events = Events::new(client, "crema-injector");
        let mut changed = store.subscribe();
        loop {
            if let Some(identity) = store.current() {
                let roots: Arc<str> = identity.bundle.to_pem().into();
                settings.send_if_modified(|now| {
                    let differs = now.roots != roots;
                    now.roots = roots;
                    differs
                });
            }
            let next = async {
                tokio::select! {
                    // The store lives as long as this injector.
                    _ = changed.changed() => None,
                    told = told.recv() => told,
                }
            };
            match drain.until_drain(next).await {
                None => return,
                Some(None) => {}
                Some(Some(Told::Served)) => {
                    let closes = settings.send_if_modified(|now| !std::mem::replace(&mut now.closed, true));
                    if closes {
                        tracing::info!("injection works: from now on no pod starts that it did not see");
                    }
                }
                Some(Some(Told::Refused { about, why })) => {
                    events.warn(&about, "InjectionFailed", "Inject", &why).await;
                }
            }
        }
    });
    Ok(())
}

/// Serves the webhook with the latest certificate until the drain.
pub async fn serve(listener: TcpListener, store: CertStore, router: Router, drain: Watch) {
    let tls = ServerTls {
        client_auth: ClientAuth::None,
        alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        min: MinTls::V12,
    };
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    while let Some((stream, peer)) = drain.until_drain(listen::accept(&listener)).await {
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(%peer, "webhook connection refused: {MOST_CONNECTIONS} are open");
            continue;
        };
        let (store, tls, router, drain) = (store.clone(), tls.clone(), router.clone(), drain.clone());
        tokio::spawn(async move {
            let end = match store.accept(&tls, stream).await {
                Ok(accepted) => listen::serve_connection(accepted.stream, router, drain).await,
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = end {
                tracing::debug!(%peer, error, "webhook connection ended");
            }
            drop(place);
        });
    }
}
