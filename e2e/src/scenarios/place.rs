//! Where the shop runs: on this machine as processes, or in a Kubernetes cluster. The scenarios are the same.
//!
//! In: what a scenario wants of its surroundings. Out: the same thing, done as that place does it. Kept true: whatever differs between the
//! two is in this file. Not here: what is right (`checks`), what is applied when (`shop`).

use std::{path::Path, time::Duration};

use anyhow::Context;

use crate::{
    cluster::{Cluster, SYSTEM},
    http::Call,
    node::{Node, SYSTEM_NAMESPACE, files, until},
};

/// A mesh with the shop in it.
#[derive(Debug, Clone)]
pub enum Place {
    /// Processes on this machine.
    Local(Node),
    /// Pods.
    Cluster(Cluster),
}

/// The `app` label of the shop's Deployments: their names, but for the versions of reviews.
fn app(deployment: &str) -> &str {
    deployment.trim_end_matches("-v1").trim_end_matches("-v2")
}

impl Place {
    /// Applies a file with workloads, and waits until they are ready.
    ///
    /// # Errors
    /// When one does not come up.
    pub async fn run_file(&self, path: &Path) -> anyhow::Result<()> {
        match self {
            Self::Local(node) => {
                node.apply_file(path).await?;
                node.ready(Duration::from_secs(60)).await
            }
            Self::Cluster(cluster) => cluster.apply_file(path).await,
        }
    }

    /// Takes a Deployment and its pods away.
    ///
    /// # Errors
    /// When the place refuses.
    pub async fn delete_deployment(&self, name: &str) -> anyhow::Result<()> {
        match self {
            Self::Local(node) => node.delete("Deployment", "default", name).await,
            Self::Cluster(cluster) => {
                let args = ["delete", "deployment", name, "--ignore-not-found", "--wait=true"];
                cluster.kubectl().run(&args).await.map(drop)
            }
        }
    }

    /// Puts a file of mesh objects into force; of the same object, the last one wins.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn put(&self, name: &str, text: &str) -> anyhow::Result<()> {
        match self {
            Self::Local(node) => files::write_text(&node.layout().mesh().join(name), text),
            Self::Cluster(cluster) => cluster.put(name, text).await,
        }
    }

    /// Takes it out of force.
    ///
    /// # Errors
    /// When the place refuses.
    pub async fn take(&self, name: &str) -> anyhow::Result<()> {
        match self {
            Self::Local(node) => files::remove(&node.layout().mesh().join(name)),
            Self::Cluster(cluster) => cluster.take(name).await,
        }
    }

    /// Whether any such file is in force.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn has_files(&self) -> anyhow::Result<bool> {
        match self {
            Self::Local(node) => Ok(node.layout().mesh().read_dir()?.next().is_some()),
            Self::Cluster(cluster) => Ok(cluster.has_files()),
        }
    }

    /// A call of a workload of namespace `default`, through its sidecar.
    ///
    /// # Errors
    /// When it has no pod.
    pub fn call_from(&self, deployment: &str, url: &str) -> anyhow::Result<Call> {
        match self {
            Self::Local(node) => node.call_from(deployment, url),
            Self::Cluster(cluster) => {
                let target = format!("deploy/{deployment}");
                Ok(cluster.agent("default", &target).get(url))
            }
        }
    }

    /// A page of the shop for a browser that is not in the mesh.
    ///
    /// # Errors
    /// When the shop has no port outside.
    pub fn page(&self, path: &str) -> anyhow::Result<Call> {
        match self {
            Self::Local(node) => {
                let address = node.outside("default", "espresso-shop-web-svc");
                Ok(Call::get(format!("http://{}{path}", address.context("the shop has no port outside")?)))
            }
            Self::Cluster(c) => {
                Ok(c.outside().get(&format!("http://espresso-shop-web-svc.default:8090{path}")))
            }
        }
    }

    /// A call to the ingress gateway.
    ///
    /// # Errors
    /// When there is no gateway.
    pub fn at_gateway(&self, path: &str) -> anyhow::Result<Call> {
        match self {
            Self::Local(node) => {
                let address = node.outside(SYSTEM_NAMESPACE, "istio-ingressgateway");
                Ok(Call::get(format!("http://{}{path}", address.context("there is no gateway")?)))
            }
            Self::Cluster(c) => Ok(c.outside().get(&format!("http://istio-ingressgateway.{SYSTEM}{path}"))),
        }
    }

    /// A plaintext call straight to a pod of a workload, from outside the mesh.
    ///
    /// # Errors
    /// When it has no pod.
    pub async fn at_pod(&self, deployment: &str, path: &str) -> anyhow::Result<Call> {
        match self {
            Self::Local(node) => {
                let pods = node.pods_of(deployment);
                let pod = pods.first().with_context(|| format!("{deployment} has no pod"))?;
                let port = pod.ports.first().with_context(|| format!("{deployment} has no port"))?.bound;
                Ok(Call::get(format!("http://{}:{port}{path}", pod.ip)))
            }
            Self::Cluster(cluster) => {
                let ips = cluster.pod_ips("default", app(deployment)).await?;
                let ip = ips.first().with_context(|| format!("{deployment} has no pod"))?;
                Ok(cluster.outside().get(&format!("http://{ip}:80{path}")))
            }
        }
    }

    /// A call to mixer: its recorder (Zipkin v2), or the metrics of its prometheus adapter.
    #[must_use]
    pub fn at_mixer(&self, port: MixerPort, path: &str) -> Call {
        match (self, port) {
            (Self::Local(node), MixerPort::Zipkin) => {
                Call::get(format!("http://{}{path}", node.addresses().zipkin))
            }
            (Self::Local(node), MixerPort::Prometheus) => {
                Call::get(format!("http://{}{path}", node.addresses().prometheus))
            }
            (Self::Cluster(cluster), _) => {
                let port = if port == MixerPort::Zipkin { 9411 } else { 42_422 };
                cluster.outside().get(&format!("http://mixer.{SYSTEM}:{port}{path}"))
            }
        }
    }

    /// What mixer has logged so far.
    ///
    /// # Errors
    /// When there is no such log.
    pub async fn mixer_log(&self) -> anyhow::Result<String> {
        match self {
            Self::Local(node) => {
                Ok(std::fs::read_to_string(node.component("mixer")?.log).unwrap_or_default())
            }
            Self::Cluster(cluster) => cluster.log("mixer").await,
        }
    }

    /// What `pilot tls-check SERVICE` prints.
    ///
    /// # Errors
    /// When it fails.
    pub async fn tls_check(&self, service: &str) -> anyhow::Result<String> {
        match self {
            Self::Local(node) => {
                let admin = node.addresses().pilot_admin.to_string();
                let mut command = tokio::process::Command::new(node.bin().join("pilot"));
                let output = command.args(["tls-check", service, "--admin", &admin]).output().await?;
                anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                Ok(String::from_utf8_lossy(&output.stdout).into_owned())
            }
            Self::Cluster(cluster) => cluster.command("pilot", &["tls-check", service]).await,
        }
    }

    /// Makes the application of reviews v1 unreachable under its living sidecar, or reachable again; its pod counts as ready all the while.
    ///
    /// # Errors
    /// When it does not come back.
    pub async fn hold_reviews(&self, hold: bool) -> anyhow::Result<()> {
        match self {
            Self::Local(node) => hold_process(node, hold).await,
            Self::Cluster(cluster) => {
                // The kubelet would restart a stopped application at once; a Service that leads to a port where nobody
                // listens gives its callers the same.
                let port = if hold { 81 } else { 80 };
                let patch =
                    format!(r#"[{{"op":"replace","path":"/spec/ports/0/targetPort","value":{port}}}]"#);
                let args = ["patch", "service", "espresso-shop-reviews-svc", "--type=json", "-p", &patch];
                cluster.kubectl().run(&args).await.map(drop)
            }
        }
    }
}

async fn hold_process(node: &Node, hold: bool) -> anyhow::Result<()> {
    let pods = node.pods_of("espresso-shop-reviews-v1");
    let pod = pods.first().context("reviews v1 has no pod")?;
    let port = pod.ports.first().context("reviews v1 has no port")?;
    let process = node.process(&pod.name, &port.container)?;
    node.freeze_readiness(true);
    if hold {
        process.hold().await;
        return Ok(());
    }
    process.resume();
    let app = format!("http://127.0.0.1:{}/api/version", port.app.unwrap_or(port.bound));
    let up = || async { Call::get(app.clone()).send().await.is_ok() };
    until(Duration::from_secs(10), up, || "reviews v1 does not come back".to_owned()).await?;
    node.freeze_readiness(false);
    Ok(())
}

/// Which of mixer's HTTP ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MixerPort {
    /// The recorder: Zipkin v2 and the dashboard.
    Zipkin,
    /// Metrics of the prometheus adapter.
    Prometheus,
}
