//! A cluster with the mesh and the shop in it, made once for all scenarios.
//!
//! In: a kubeconfig, a way to bring images in. Out: a [`World`]. Kept true: it begins with nothing of the mesh in the cluster; what took how
//! long is noted. Not here: the scenarios (`suite`, `crate::scenarios`).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::{Cluster, SYSTEM, agent::Agent};
use crate::{
    images::Profile,
    manifest::ManifestArgs,
    node::until,
    peers,
    scenarios::{Shop, Source, place::Place},
};

/// What to test in, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The cluster.
    pub kubeconfig: PathBuf,
    /// Command that takes image archives and brings them into the cluster; `None`: they are there.
    pub loader: Option<String>,
    /// How images are built.
    pub profile: Profile,
    /// Whose shop.
    pub source: Source,
}

/// The mesh, the shop, and who calls.
#[derive(Debug)]
pub struct World {
    /// The cluster.
    pub cluster: Cluster,
    /// The shop in it.
    pub shop: Shop,
    /// From `kubectl apply` of the manifest until every component was ready, and of the shop until it answered through the gateway.
    pub took: Option<(Duration, Duration)>,
}

/// A second tag that every image has: an upgrade without a second build.
#[must_use]
pub fn next_tag() -> String {
    format!("{}-next", ManifestArgs::default().tag)
}

/// How images get into the cluster of `kubeconfig`: kind's way, or that of the node that `../shared/cluster` starts.
#[must_use]
pub fn loader_for(kubeconfig: &Path) -> Option<String> {
    let text = std::fs::read_to_string(kubeconfig).ok()?;
    let context = text.lines().find_map(|l| l.strip_prefix("current-context:"))?.trim().to_owned();
    if let Some(name) = context.strip_prefix("kind-") {
        return Some(format!("{} {name}", peers::root().join("deploy/kind/load").display()));
    }
    let node = peers::root().join("../shared/cluster/cluster");
    (context == "crema" && node.is_file()).then(|| format!("{} load", node.display()))
}

impl World {
    /// Installs everything.
    ///
    /// # Errors
    /// When something does not come up; with what kubectl says.
    pub async fn open(plan: &Plan, told: &(dyn Fn(&str) + Sync)) -> anyhow::Result<Self> {
        let cluster = Cluster::new(plan.kubeconfig.clone())?;
        if let Some(loader) = &plan.loader {
            told("building images and loading them");
            let tags = [ManifestArgs::default().tag, next_tag()];
            cluster.load_images(plan.profile, &tags, loader).await?;
        }
        told("removing what an earlier run left");
        clean(&cluster).await?;
        told("kubectl apply -f deploy/crema.yaml");
        let began = Instant::now();
        cluster.install(None).await?;
        let installed = began.elapsed();
        cluster.trace_everything().await?;
        cluster.start_outsider().await?;
        injection_works(&cluster).await?;
        told("kubectl label namespace default istio-injection=enabled");
        let label = ["label", "namespace", "default", "istio-injection=enabled", "--overwrite"];
        cluster.kubectl().run(&label).await?;
        told("kubectl apply -f espresso-shop.yaml");
        let began = Instant::now();
        let shop = Shop::open_in(cluster.clone(), plan.source).await?;
        start_caller(&cluster).await?;
        let answered = first_page(&shop, began).await?;
        // The talk opens it again.
        shop.place.take(GATEWAY).await?;
        Ok(Self { cluster, shop, took: Some((installed, answered)) })
    }

    /// What an earlier run has left, without the objects of its scenarios.
    ///
    /// # Errors
    /// When kubectl fails.
    pub async fn found(plan: &Plan) -> anyhow::Result<Self> {
        let cluster = Cluster::new(plan.kubeconfig.clone())?;
        let kinds = "virtualservices.networking.istio.io,destinationrules.networking.istio.io,gateways.networking.istio.io,\
                     rules.config.istio.io,deniers.config.istio.io,checknothings.config.istio.io,policies.authentication.istio.io";
        cluster.kubectl().run(&["delete", kinds, "--all", "-n", "default"]).await?;
        let shop = Shop { place: Place::Cluster(cluster.clone()), source: plan.source };
        Ok(Self { cluster, shop, took: None })
    }

    /// A client in the mesh that no disturbance restarts.
    #[must_use]
    pub fn caller(&self) -> Arc<Agent> {
        self.cluster.agent("default", "deploy/caller")
    }
}

/// Removes the mesh and the shop, as far as they are there.
///
/// # Errors
/// When kubectl fails.
pub async fn clean(cluster: &Cluster) -> anyhow::Result<()> {
    let kubectl = cluster.kubectl();
    kubectl.run(&["label", "namespace", "default", "istio-injection-"]).await?;
    cluster.uninstall().await?;
    let all = "deployments,jobs,services,pods";
    let except = "--field-selector=metadata.name!=kubernetes";
    kubectl.run(&["delete", all, "--wait=true", "--ignore-not-found", except, "-n", "default"]).await?;
    Ok(())
}

/// The API server learns of the webhook's certificate a moment after the injector has it.
async fn injection_works(cluster: &Cluster) -> anyhow::Result<()> {
    let ready = || async {
        let args = ["mutatingwebhookconfiguration", "crema-injector"];
        let Ok(found) = cluster.kubectl().get(&args).await else { return false };
        let hooks = found["webhooks"].as_array().cloned().unwrap_or_default();
        !hooks.is_empty() && hooks.iter().all(|h| h.pointer("/clientConfig/caBundle").is_some())
    };
    until(Cluster::PATIENCE, ready, || "the injector's webhook never got its caBundle".to_owned()).await
}

/// A Deployment of the shop's image that only sends.
async fn start_caller(cluster: &Cluster) -> anyhow::Result<()> {
    let tag = ManifestArgs::default().tag;
    let text = format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: caller}}\nspec:\n  \
         selector: {{matchLabels: {{app: caller}}}}\n  template:\n    metadata: {{labels: {{app: caller, version: v1}}}}\n    \
         spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: caller, image: 'crema/espresso-shop:{tag}', args: [echo], imagePullPolicy: IfNotPresent}}]}}\n"
    );
    cluster.kubectl().apply(&text).await?;
    cluster.rolled_out("default", &["caller"]).await
}

/// Name of the file that opens the gateway, as the talk names it.
const GATEWAY: &str = "gateway-gateway.yaml";

/// Opens the gateway for the shop.
async fn open_gateway(shop: &Shop) -> anyhow::Result<()> {
    let path = peers::root().join("deploy/espresso-shop/gateway.yaml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    shop.place.put(GATEWAY, &text).await
}

/// Opens the gateway and asks for the first page until it comes; how long that took since `began`.
///
/// # Errors
/// When it never comes; with the pods as they are.
pub async fn first_page(shop: &Shop, began: Instant) -> anyhow::Result<Duration> {
    open_gateway(shop).await?;
    let mut last = String::new();
    while began.elapsed() < Duration::from_secs(120) {
        match shop.at_gateway("/")?.send().await {
            Ok(reply) if reply.status == 200 && reply.body.contains("class=\"card\"") => {
                return Ok(began.elapsed());
            }
            Ok(reply) => last = format!("{} {:.200}", reply.status, reply.body),
            Err(error) => last = format!("{error:#}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let pods = shop_pods(shop).await;
    bail!("the shop does not answer through the gateway of {SYSTEM}: {last}\n{pods}")
}

async fn shop_pods(shop: &Shop) -> String {
    match &shop.place {
        Place::Cluster(cluster) => {
            cluster.kubectl().run(&["get", "pods", "-A", "-o", "wide"]).await.unwrap_or_default()
        }
        Place::Local(_) => String::new(),
    }
}
