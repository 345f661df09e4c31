//! The connection to the API server.
//!
//! In: a pod's service account, or a kubeconfig file. Out: a [`kube::Client`].
//! Kept true: no request waits for ever, watches excepted, which have their own deadline.
//! Not here: what is asked.

use anyhow::Context as _;
use k8s_openapi::{api::rbac::v1::ClusterRole, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{Api, Client, Config, Resource as _};
use std::time::Duration;

/// Name under which the mesh's components own fields they apply.
pub const FIELD_MANAGER: &str = "crema";

/// A client for the cluster this process runs in, or else for the current context of `$KUBECONFIG`
/// (`~/.kube/config` when that is not set). Nothing is asked yet: an API server that is away is no error here.
///
/// # Errors
/// When neither a service account nor a kubeconfig can be read; the text says what was tried.
pub async fn client() -> anyhow::Result<Client> {
    let mut config = match Config::incluster() {
        Ok(config) => config,
        Err(inside) => {
            Config::from_kubeconfig(&kube::config::KubeConfigOptions::default()).await.with_context(|| {
                format!("no cluster: not in a pod ({inside}), and $KUBECONFIG cannot be used")
            })?
        }
    };
    config.connect_timeout = Some(Duration::from_secs(5));
    // A watch is renewed after 290 s at the latest and sends bookmarks every minute.
    config.read_timeout = Some(Duration::from_secs(295));
    config.write_timeout = Some(Duration::from_secs(30));
    Client::try_from(config).context("the API server's address or certificate cannot be used")
}

/// Name of the ClusterRole that owns what components create, so that it goes with the manifest.
pub const OWNER: &str = "crema";

/// The owner of what components create; `None` where there is none, or it may not be read: then nothing owns it.
pub async fn owner(client: &Client) -> Option<OwnerReference> {
    let api: Api<ClusterRole> = Api::all(client.clone());
    let read = tokio::time::timeout(Duration::from_secs(5), api.get_metadata(OWNER)).await;
    match read {
        Ok(Ok(role)) => Some(OwnerReference {
            api_version: ClusterRole::api_version(&()).into_owned(),
            kind: ClusterRole::kind(&()).into_owned(),
            name: OWNER.to_owned(),
            uid: role.metadata.uid?,
            ..OwnerReference::default()
        }),
        Ok(Err(error)) => {
            tracing::debug!(%error, "ClusterRole {OWNER} cannot be read: what is created here has no owner");
            None
        }
        Err(_) => None,
    }
}

/// What tells this process from its siblings, e.g. as holder of a lease: the pod's name, or else the host's.
pub fn identity() -> String {
    std::env::var("POD_NAME")
        .or_else(|_| std::env::var("HOSTNAME"))
        .unwrap_or_else(|_| format!("process-{}", std::process::id()))
}
