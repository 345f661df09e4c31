//! The cluster's API server, where this suite may end and start it: on the node that `../shared/cluster` runs on this machine.
//!
//! In: a kubeconfig. Out: an API server that goes and comes back. Kept true: the process is the one that the node's own pid file names;
//! somebody else's cluster is never touched. Not here: what must survive it (`disturb`).

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::peers;

/// An API server that may be ended.
#[derive(Debug, Clone)]
pub struct ApiServer {
    state: PathBuf,
    node: PathBuf,
}

impl ApiServer {
    /// That of the cluster of `kubeconfig`.
    ///
    /// # Errors
    /// Why this suite cannot end it.
    pub fn of(kubeconfig: &Path) -> Result<Self, String> {
        let state = kubeconfig.parent().unwrap_or(Path::new("/")).to_owned();
        let node = peers::root().join("../shared/cluster/cluster");
        let found = Self { state, node };
        match found.node.is_file() && found.pid().is_ok() {
            true => Ok(found),
            false => {
                Err("the API server is not a process of the node that ../shared/cluster starts here"
                    .to_owned())
            }
        }
    }

    fn pid(&self) -> anyhow::Result<Pid> {
        let path = self.state.join("apiserver.pid");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Pid::from_raw(text.trim().parse()?).context("not a process id")
    }

    /// Ends it without a goodbye.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&self) -> anyhow::Result<()> {
        Ok(kill_process(self.pid()?, Signal::KILL)?)
    }

    /// Starts it again, and returns once it answers.
    ///
    /// # Errors
    /// When it does not come up; with what the node's script says.
    pub async fn start(&self) -> anyhow::Result<()> {
        let output = tokio::process::Command::new(&self.node)
            .arg("up")
            .env("CLUSTER_DIR", &self.state)
            .output()
            .await?;
        if !output.status.success() {
            bail!("{} up: {}", self.node.display(), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}
