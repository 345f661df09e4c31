//! A mesh in a Kubernetes cluster, as the scenarios need it: installed from the manifest, driven by kubectl, called from pods.
//!
//! In: a kubeconfig. Out: an installed mesh and shop, calls from inside and outside the mesh. Kept true: what the tests apply is what
//! people apply; nothing reaches into a pod except `kubectl exec`. Not here: what must be seen (`scenarios`).

pub mod agent;
pub mod api;
pub mod command;
pub mod corners;
pub mod disturb;
pub mod edge;
pub mod kubectl;
pub mod roots;
pub mod suite;
pub mod trespass;
pub mod world;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail};
use serde_json::Value;

use self::{agent::Agent, kubectl::Kubectl};
use crate::{
    images::{self, ImagesArgs, Profile},
    manifest::{ManifestArgs, manifest},
    node::files::documents,
};

/// Namespace of the mesh.
pub const SYSTEM: &str = "istio-system";
/// Namespace of what stands outside the mesh.
pub const OUTSIDE: &str = "outside";

/// A cluster. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cluster(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kubectl: Kubectl,
    agents: Mutex<HashMap<(String, String), Arc<Agent>>>,
    /// Files that are in force, in the order in which they came: name and text.
    standing: Mutex<Vec<(String, String)>>,
}

/// Where the test cluster is, when somebody named one: `CREMA_TEST_KUBECONFIG`.
#[must_use]
pub fn test_kubeconfig() -> Option<PathBuf> {
    std::env::var_os("CREMA_TEST_KUBECONFIG").map(PathBuf::from).filter(|p| p.is_file())
}

impl Cluster {
    /// The cluster of `kubeconfig`.
    ///
    /// # Errors
    /// When there is no such file, or no kubectl.
    pub fn new(kubeconfig: PathBuf) -> anyhow::Result<Self> {
        let kubectl = Kubectl::new(kubeconfig)?;
        Ok(Self(Arc::new(Inner { kubectl, agents: Mutex::default(), standing: Mutex::default() })))
    }

    /// Its kubectl.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        &self.0.kubectl
    }

    /// Builds all images in the profile of tests, with `tags`, and brings them into the cluster with `loader`: a command that takes files.
    ///
    /// # Errors
    /// When a build or the loader fails.
    pub async fn load_images(&self, profile: Profile, tags: &[String], loader: &str) -> anyhow::Result<()> {
        let args = ImagesArgs { profile, out: "target/images".into(), tag: tags.to_vec(), only: Vec::new() };
        let archives = tokio::task::spawn_blocking(move || images::make(&args)).await??;
        let mut words = loader.split_whitespace();
        let program = words.next().context("no command to load images with")?;
        let mut command = tokio::process::Command::new(program);
        let output = command.args(words).args(&archives).output().await;
        let output = output.with_context(|| format!("{program} does not start"))?;
        if !output.status.success() {
            bail!("{loader}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Installs the mesh, as `kubectl apply -f deploy/crema.yaml` does, and waits until every component is ready.
    ///
    /// # Errors
    /// When something is refused or does not come up.
    pub async fn install(&self, tag: Option<&str>) -> anyhow::Result<()> {
        let mut args = ManifestArgs::default();
        if let Some(tag) = tag {
            tag.clone_into(&mut args.tag);
        }
        let warnings = self.0.kubectl.apply(&manifest(&args)?).await?;
        anyhow::ensure!(warnings.trim().is_empty(), "applying the manifest warns: {warnings}");
        self.rolled_out(SYSTEM, &["citadel", "pilot", "mixer", "injector", "istio-ingressgateway"]).await
    }

    /// Waits until these Deployments have all their pods ready.
    ///
    /// # Errors
    /// When one does not get there; with the events of its namespace.
    pub async fn rolled_out(&self, namespace: &str, deployments: &[&str]) -> anyhow::Result<()> {
        for name in deployments {
            let target = format!("deploy/{name}");
            let args = ["-n", namespace, "rollout", "status", &target, "--timeout=180s"];
            if let Err(error) = self.0.kubectl.run(&args).await {
                let pods = self.0.kubectl.run(&["-n", namespace, "get", "pods", "-o", "wide"]).await?;
                let logs = ["-n", namespace, "logs", &target, "--all-containers", "--tail=15"];
                let (_, logs, _) = self.0.kubectl.outcome(&logs, "").await?;
                bail!("{error:#}\n{pods}\n{logs}");
            }
        }
        Ok(())
    }

    /// Removes the mesh, as `kubectl delete -f deploy/crema.yaml` does.
    ///
    /// # Errors
    /// When kubectl fails.
    pub async fn uninstall(&self) -> anyhow::Result<()> {
        let text = manifest(&ManifestArgs::default())?;
        let args = ["delete", "--ignore-not-found", "--wait=true", "-f", "-"];
        self.0.kubectl.with_input(&args, &text).await.map(drop)
    }

    /// A client that is not in the mesh: a pod in a namespace of its own.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_outsider(&self) -> anyhow::Result<()> {
        let tag = ManifestArgs::default().tag;
        let text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {OUTSIDE}}}\n---\n\
             apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: client, namespace: {OUTSIDE}}}\nspec:\n  \
             selector: {{matchLabels: {{app: client}}}}\n  template:\n    metadata: {{labels: {{app: client}}}}\n    \
             spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: client, image: 'crema/espresso-shop:{tag}', args: [echo], imagePullPolicy: IfNotPresent}}]}}\n"
        );
        self.0.kubectl.apply(&text).await?;
        self.rolled_out(OUTSIDE, &["client"]).await
    }

    /// Calls from outside the mesh.
    #[must_use]
    pub fn outside(&self) -> Arc<Agent> {
        self.agent(OUTSIDE, "deploy/client")
    }

    /// Calls from a workload.
    #[must_use]
    pub fn agent(&self, namespace: &str, target: &str) -> Arc<Agent> {
        let mut agents = self.0.agents.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.to_owned(), target.to_owned());
        let made = || Agent::new(self.0.kubectl.clone(), namespace, target);
        Arc::clone(agents.entry(key).or_insert_with(made))
    }

    /// Applies a file and waits until the Deployments in it are ready.
    ///
    /// # Errors
    /// When it is refused or does not come up.
    pub async fn apply_file(&self, path: &Path) -> anyhow::Result<()> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.0.kubectl.apply(&text).await?;
        let deployments: Vec<_> =
            documents(&text)?.into_iter().filter(|d| d["kind"] == "Deployment").collect();
        for deployment in deployments {
            let of = |path| deployment.pointer(path).and_then(Value::as_str);
            let namespace = of("/metadata/namespace").unwrap_or("default");
            self.rolled_out(namespace, &[of("/metadata/name").unwrap_or_default()]).await?;
        }
        Ok(())
    }

    fn standing(&self) -> std::sync::MutexGuard<'_, Vec<(String, String)>> {
        self.0.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any file is in force.
    #[must_use]
    pub fn has_files(&self) -> bool {
        !self.standing().is_empty()
    }

    /// Puts a file into force; of the same object, the last file wins.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn put(&self, name: &str, text: &str) -> anyhow::Result<()> {
        self.0.kubectl.apply(text).await.with_context(|| name.to_owned())?;
        let mut standing = self.standing();
        standing.retain(|(n, _)| n != name);
        standing.push((name.to_owned(), text.to_owned()));
        Ok(())
    }

    /// Takes a file out of force: its objects go back to what an earlier file says, or away.
    ///
    /// # Errors
    /// When kubectl fails.
    pub async fn take(&self, name: &str) -> anyhow::Result<()> {
        let (removed, earlier) = {
            let mut standing = self.standing();
            let Some(at) = standing.iter().position(|(n, _)| n == name) else { return Ok(()) };
            (standing.remove(at).1, standing.clone())
        };
        for object in documents(&removed)? {
            let mut before = None;
            for (_, text) in &earlier {
                before = documents(text)?.into_iter().find(|o| same(o, &object)).or(before);
            }
            let (args, object) = match &before {
                Some(object) => (&["apply", "-f", "-"][..], object),
                None => (&["delete", "--ignore-not-found", "-f", "-"][..], &object),
            };
            self.0.kubectl.with_input(args, &object.to_string()).await?;
        }
        Ok(())
    }

    /// Addresses of a workload's pods.
    ///
    /// # Errors
    /// When kubectl fails.
    pub async fn pod_ips(&self, namespace: &str, app: &str) -> anyhow::Result<Vec<String>> {
        let selector = format!("app={app}");
        let pods = self.0.kubectl.list(&["-n", namespace, "pods", "-l", &selector]).await?;
        let ip = |pod: &Value| pod.pointer("/status/podIP").and_then(Value::as_str).map(str::to_owned);
        Ok(pods.iter().filter_map(ip).collect())
    }

    /// Runs a command of a component in one of its pods, e.g. `pilot tls-check`.
    ///
    /// # Errors
    /// When it fails.
    pub async fn command(&self, component: &str, args: &[&str]) -> anyhow::Result<String> {
        let (target, program) = (format!("deploy/{component}"), format!("/{component}"));
        let mut all = vec!["-n", SYSTEM, "exec", &target, "--", &program];
        all.extend(args);
        self.0.kubectl.run(&all).await
    }

    /// The log of a component, of all its pods.
    ///
    /// # Errors
    /// When kubectl fails.
    pub async fn log(&self, component: &str) -> anyhow::Result<String> {
        let selector = format!("app={component}");
        self.0.kubectl.run(&["-n", SYSTEM, "logs", "-l", &selector, "--tail=-1"]).await
    }

    /// Traces every request: what a demonstration wants, and the manifest does not.
    ///
    /// # Errors
    /// When kubectl fails.
    pub async fn trace_everything(&self) -> anyhow::Result<()> {
        let config = self.0.kubectl.get(&["-n", SYSTEM, "configmap", "istio"]).await?;
        let mesh = config.pointer("/data/mesh").and_then(Value::as_str).context("no key mesh")?;
        let mesh = mesh.replace("sampling: 1.0", "sampling: 100.0");
        let patch = serde_json::json!({ "data": { "mesh": mesh } }).to_string();
        self.0
            .kubectl
            .run(&["-n", SYSTEM, "patch", "configmap", "istio", "--type=merge", "-p", &patch])
            .await?;
        Ok(())
    }

    /// How long to wait for the cluster to settle after a change, at most.
    pub const PATIENCE: Duration = Duration::from_secs(60);
}

fn same(a: &Value, b: &Value) -> bool {
    let key = |o: &Value| {
        let at = |path| o.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let namespace = at("/metadata/namespace");
        let namespace = if namespace.is_empty() { "default".to_owned() } else { namespace };
        (
            at("/kind"),
            at("/apiVersion").split('/').next().unwrap_or_default().to_owned(),
            namespace,
            at("/metadata/name"),
        )
    };
    key(a) == key(b)
}
