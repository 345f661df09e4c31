//! kubectl, as people use it.
//!
//! In: arguments, text for its standard input. Out: what it printed. Kept true: every call names the cluster; a failure says which command
//! failed and what it said. Not here: what is applied.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
};

use crate::peers;

/// A cluster's kubectl.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

/// A port of this machine that leads into the cluster.
#[derive(Debug)]
pub struct Forward {
    /// Where to connect.
    pub address: SocketAddr,
    _child: Child,
}

/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(300);

impl Kubectl {
    /// The kubectl of the path, or the one that `cluster build` left in its cache.
    ///
    /// # Errors
    /// When there is none, or no such kubeconfig.
    pub fn new(kubeconfig: PathBuf) -> anyhow::Result<Self> {
        anyhow::ensure!(kubeconfig.is_file(), "no kubeconfig at {}", kubeconfig.display());
        let cached = || {
            let home = std::env::var_os("HOME").map(PathBuf::from)?;
            let cache = std::env::var_os("CLUSTER_CACHE").map(PathBuf::from);
            let path = cache.unwrap_or_else(|| home.join(".cache/crema-cluster")).join("bin/kubectl");
            path.is_file().then_some(path)
        };
        let program = peers::installed("kubectl").or_else(cached).context("kubectl is not installed")?;
        Ok(Self { program, kubeconfig })
    }

    /// The file that says where the cluster is.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Leads a port of this machine to a port of `target` (`service/NAME`, `pod/NAME`) until the value is dropped.
    ///
    /// # Errors
    /// When kubectl cannot; with what it said.
    pub async fn forward(&self, namespace: &str, target: &str, port: u16) -> anyhow::Result<Forward> {
        let mut command = self.command(&["-n", namespace, "port-forward", target, &format!(":{port}")]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("kubectl does not start")?;
        let mut lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        let first = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await;
        let first = first.with_context(|| format!("no port of {target} in 30 s"))??;
        let port =
            first.as_deref().and_then(|l| l.strip_prefix("Forwarding from 127.0.0.1:")?.split(' ').next());
        let Some(port) = port.and_then(|p| p.parse().ok()) else {
            bail!("kubectl port-forward {target}: {}", first.unwrap_or_default());
        };
        // It says a line per connection and would stop at a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Forward { address: SocketAddr::from(([127, 0, 0, 1], port)), _child: child })
    }

    /// A command to start.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(args).kill_on_drop(true);
        command
    }

    /// Runs to its end; returns what it printed.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub async fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        self.with_input(args, "").await
    }

    /// Runs to its end with `input`; returns what it printed.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub async fn with_input(&self, args: &[&str], input: &str) -> anyhow::Result<String> {
        let (good, out, err) = self.outcome(args, input).await?;
        if !good {
            bail!("kubectl {}: {}", args.join(" "), err.trim());
        }
        Ok(out)
    }

    /// Runs to its end with `input`: whether it succeeded, what it printed, what it complained of.
    ///
    /// # Errors
    /// When it does not start or does not end.
    pub async fn outcome(&self, args: &[&str], input: &str) -> anyhow::Result<(bool, String, String)> {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("kubectl does not start")?;
        let mut stdin = child.stdin.take().context("a pipe")?;
        let text = input.to_owned();
        let writer = tokio::spawn(async move { stdin.write_all(text.as_bytes()).await });
        let ended = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
        let output = ended.with_context(|| format!("kubectl {} does not end", args.join(" ")))??;
        // A command that did not read its input says so itself.
        let _unread = writer.await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.success(), text(&output.stdout), text(&output.stderr)))
    }

    /// What a `get` finds, as JSON.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub async fn get(&self, args: &[&str]) -> anyhow::Result<Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(args);
        Ok(serde_json::from_str(&self.run(&all).await?)?)
    }

    /// The items that a `get` finds.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub async fn list(&self, args: &[&str]) -> anyhow::Result<Vec<Value>> {
        let found = self.get(args).await?;
        Ok(found["items"].as_array().cloned().unwrap_or_default())
    }

    /// Applies documents as people do, with strict validation; returns the warnings.
    ///
    /// # Errors
    /// When something is refused.
    pub async fn apply(&self, text: &str) -> anyhow::Result<String> {
        let (good, _, err) = self.outcome(&["apply", "--validate=strict", "-f", "-"], text).await?;
        if !good {
            bail!("kubectl apply: {}", err.trim());
        }
        Ok(err)
    }
}
