//! A real API server, asked with `kubectl` and dry runs: nothing is stored.

use crate::{Case, Is};
use libtest_mimic::Failed;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

#[derive(Clone, Debug)]
pub struct Cluster {
    kubectl: String,
    /// Whether pilot's webhook refuses there.
    pub webhook: bool,
    /// Whether the manifest's object for the webhook is there.
    pub installed: bool,
}

impl Cluster {
    /// The cluster of `KUBECONFIG`, or why there is none.
    pub fn find() -> Result<Self, String> {
        if std::env::var_os("KUBECONFIG").is_none() {
            return Err("no KUBECONFIG".to_owned());
        }
        let kubectl = std::env::var("KUBECTL").unwrap_or_else(|_| "kubectl".to_owned());
        let mut cluster = Self { kubectl, webhook: false, installed: false };
        let get = cluster
            .run(&["get", "crd", "virtualservices.networking.istio.io", "rules.config.istio.io"], None);
        match get {
            Err(e) => return Err(format!("no kubectl: {e}")),
            Ok(out) if !out.status.success() => {
                return Err("the cluster has no definitions of deploy/crds".to_owned());
            }
            Ok(_) => {}
        }
        match cluster.failure_policy() {
            None => {}
            Some(policy) => (cluster.installed, cluster.webhook) = (true, policy == "Fail"),
        }
        Ok(cluster)
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
