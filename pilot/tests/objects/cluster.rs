//! A real API server, asked with `kubectl` and dry runs: nothing is stored.

use crate::{Case, Is};
use libtest_mimic::Failed;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Names the kubeconfig of a cluster that tests have for themselves, as for the other suites.
const VARIABLE: &str = "CREMA_TEST_KUBECONFIG";

/// Runs this program again with the test cluster as `KUBECONFIG`, which kubectl and pilot's own client read; its exit code, or `None` when
/// there is nothing to change.
pub fn again_with_the_test_cluster() -> Option<i32> {
    let test: OsString = std::env::var_os(VARIABLE)?;
    if std::env::var_os("KUBECONFIG").as_ref() == Some(&test) {
        return None;
    }
    let mut again = Command::new(std::env::current_exe().ok()?);
    again.args(std::env::args_os().skip(1)).env("KUBECONFIG", &test);
    let status = again.status().ok()?;
    Some(status.code().unwrap_or(101))
}

/// kubectl: `$KUBECTL`, that of the path, or the one that `../shared/cluster` has built.
fn kubectl() -> OsString {
    let cached = || {
        let cache = std::env::var_os("CLUSTER_CACHE").map(PathBuf::from);
        let cache =
            cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/crema-cluster")))?;
        let path = cache.join("bin/kubectl");
        path.is_file().then(|| path.into_os_string())
    };
    let on_path = Command::new("kubectl").arg("version").arg("--client").output().is_ok();
    std::env::var_os("KUBECTL")
        .or_else(|| if on_path { None } else { cached() })
        .unwrap_or_else(|| OsString::from("kubectl"))
}

fn definitions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds")
}

#[derive(Clone, Debug)]
pub struct Cluster {
    kubectl: OsString,
    /// Whether the definitions are here because of this run.
    brought: bool,
    /// Whether pilot's webhook refuses there.
    pub webhook: bool,
    /// Whether the manifest's object for the webhook is there.
    pub installed: bool,
}

impl Cluster {
    /// The cluster of `KUBECONFIG`, or why there is none. A test cluster without our definitions gets them.
    pub fn find() -> Result<Self, String> {
        if std::env::var_os("KUBECONFIG").is_none() {
            return Err(format!("no {VARIABLE}"));
        }
        let mut cluster = Self { kubectl: kubectl(), brought: false, webhook: false, installed: false };
        let there = cluster
            .run(&["get", "crd", "virtualservices.networking.istio.io", "rules.config.istio.io"], None)
            .map_err(|e| format!("no kubectl: {e}"))?;
        if !there.status.success() {
            if std::env::var_os(VARIABLE).is_none() || std::env::args().any(|a| a == "--list") {
                return Err("the cluster has no definitions of deploy/crds".to_owned());
            }
            cluster.bring()?;
        }
        match cluster.failure_policy() {
            None => {}
            Some(policy) => (cluster.installed, cluster.webhook) = (true, policy == "Fail"),
        }
        Ok(cluster)
    }

    fn bring(&mut self) -> Result<(), String> {
        let files = definitions();
        let files = files.to_string_lossy();
        for args in [
            &["apply", "--server-side", "-f", &files][..],
            &["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"],
        ] {
            let out = self.run(args, None).map_err(|e| format!("no kubectl: {e}"))?;
            if !out.status.success() {
                return Err(format!("deploy/crds: {}", String::from_utf8_lossy(&out.stderr).trim()));
            }
        }
        self.brought = true;
        Ok(())
    }

    /// Takes back what this run has brought.
    pub fn leave(&self) {
        if self.brought {
            let files = definitions();
            let _ = self.run(&["delete", "--ignore-not-found", "-f", &files.to_string_lossy()], None);
        }
    }

    /// What the API server does when pilot does not answer; empty when there is no webhook yet.
    pub fn failure_policy(&self) -> Option<String> {
        let path = "jsonpath={.webhooks[*].failurePolicy}";
        let out =
            self.run(&["get", "validatingwebhookconfiguration", "crema-validator", "-o", path], None).ok()?;
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Runs kubectl.
    pub fn run(&self, args: &[&str], input: Option<&str>) -> std::io::Result<Output> {
        let mut child = Command::new(&self.kubectl)
            .args(["--request-timeout=20s"])
            .args(args)
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let (Some(mut pipe), Some(text)) = (child.stdin.take(), input) {
            pipe.write_all(text.as_bytes())?;
        }
        child.wait_with_output()
    }

    fn apply(&self, file: &str, input: Option<&str>) -> Result<(bool, String), Failed> {
        let out = self.run(&["apply", "--dry-run=server", "--validate=strict", "-f", file], input)?;
        Ok((out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned()))
    }

    /// Whether an object fares there as the table says.
    pub fn judge(&self, case: &Case) -> Result<(), Failed> {
        let (passed, said) = self.apply("-", Some(&case.object().to_string()))?;
        // A refusal by the webhook looks like one of the schema: `The Gateway "x" is invalid: field: why`.
        let invalid =
            !passed && said.contains(&format!("The {} \"", case.kind)) && said.contains("is invalid");
        let good = match case.is {
            Is::Ok => passed && !said.contains("Warning:"),
            Is::Warn => passed && (!self.webhook || said.contains("Warning:") && said.contains(&case.says)),
            Is::Unknown => !passed && said.contains("unknown field"),
            // Schemas are asked first, so that this is one of theirs is seen where there is no webhook.
            Is::Schema => !passed && !said.contains("unknown field"),
            Is::Pilot if self.webhook => invalid && said.contains(&case.says),
            Is::Pilot => passed,
        };
        if good { Ok(()) } else { Err(format!("{case:?}\npassed: {passed}\n{said}").into()) }
    }

    /// Whether a file passes as a whole.
    pub fn file(&self, file: &Path) -> Result<(), Failed> {
        let (passed, said) = self.apply(&file.to_string_lossy(), None)?;
        // A namespace that the manifest makes may not be there yet.
        let other = said
            .lines()
            .filter(|l| l.contains("rror") && !l.contains("namespaces \"istio-system\" not found"));
        if passed || other.count() == 0 { Ok(()) } else { Err(said.into()) }
    }
}
