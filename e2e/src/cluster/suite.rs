//! What only a cluster can show: webhooks, Jobs, first lines, strangers, nothing left behind.
//!
//! In: a [`World`]. Out: [`Seen`] per check. Kept true: every check cleans up what it made. Not here: the talk's steps (`crate::scenarios`),
//! disturbances (`disturb`).

use std::{fmt, pin::Pin, time::Duration};

use anyhow::Context;
use serde_json::Value;

use super::{Cluster, SYSTEM, corners, edge, kubectl::Kubectl, trespass, world::World};
use crate::{
    manifest::ManifestArgs,
    node::until,
    scenarios::{Seen, shop::REVIEWS},
};

type Look = for<'a> fn(&'a World) -> Pin<Box<dyn Future<Output = anyhow::Result<Seen>> + Send + 'a>>;

/// One thing to look at.
#[derive(Clone, Copy)]
pub struct Check {
    /// Short name.
    pub id: &'static str,
    /// What must be seen.
    pub expected: &'static str,
    /// Looks.
    pub look: Look,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id)
    }
}

/// All of them.
pub const CHECKS: [Check; 9] = [
    Check { id: "job", expected: "a Job whose pod has a sidecar completes", look: |w| Box::pin(job(w)) },
    Check {
        id: "first-line",
        expected: "an application that connects in its first line succeeds in every one of its starts",
        look: |w| Box::pin(first_line(w)),
    },
    Check {
        id: "refusal",
        expected: "kubectl is told why an object cannot be meant, and warned of a field that is not honoured",
        look: |w| Box::pin(refusal(w)),
    },
    Check {
        id: "status",
        expected: "objects say in their status whether they are accepted and in force, for the generation that was looked at",
        look: |w| Box::pin(status(w)),
    },
    Check {
        id: "stranger",
        expected: "a pod without an identity gets no configuration and no certificate",
        look: |w| Box::pin(stranger(w)),
    },
    Check {
        id: "trespass",
        expected: "a pod gets no certificate, no configuration and no keys that are another's",
        look: |w| Box::pin(trespass::look(w)),
    },
    Check {
        id: "edge",
        expected: "the gateway serves TLS by credentialName and SNI, asks for client certificates, redirects, and takes a changed Secret",
        look: |w| Box::pin(edge::look(w)),
    },
    Check {
        id: "corners",
        expected: "headless Services, a StatefulSet's own pods, ExternalName and unknown addresses are reached; the last not under REGISTRY_ONLY",
        look: |w| Box::pin(corners::look(w)),
    },
    Check {
        id: "mesh-namespaces",
        expected: "with the injector away, pods of the mesh's own namespace still start",
        look: |w| Box::pin(without_injector(w)),
    },
];

/// Runs one; what cannot even be done has not passed.
pub async fn run(world: &World, check: &Check) -> Seen {
    (check.look)(world).await.unwrap_or_else(|error| Seen::new(false, format!("{error:#}")))
}

/// How often the application that cannot wait is started.
const STARTS: usize = 50;

fn job_text(name: &str, completions: usize, parallel: usize) -> String {
    let tag = ManifestArgs::default().tag;
    let url = format!("{REVIEWS}/api/version");
    format!(
        "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: {name}}}\nspec:\n  completions: {completions}\n  parallelism: {parallel}\n  \
         backoffLimit: 0\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n      restartPolicy: Never\n      \
         containers: [{{name: {name}, image: 'crema/espresso-shop:{tag}', args: [get, '{url}'], imagePullPolicy: IfNotPresent, resources: {{requests: {{cpu: 1m}}}}}}]\n"
    )
}

/// Runs a Job to its end: how many pods succeeded, how many failed.
async fn run_job(
    world: &World,
    name: &str,
    completions: usize,
    parallel: usize,
) -> anyhow::Result<(u64, u64)> {
    let kubectl = world.cluster.kubectl();
    kubectl.apply(&job_text(name, completions, parallel)).await?;
    let over = || async {
        let Ok(job) = kubectl.get(&["job", name]).await else { return false };
        let conditions =
            job.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
        conditions.iter().any(|c| (c["type"] == "Complete" || c["type"] == "Failed") && c["status"] == "True")
    };
    let ended = until(Duration::from_secs(180), over, || format!("Job {name} does not end")).await;
    let job = kubectl.get(&["job", name]).await?;
    let count =
        |key: &str| job.pointer(&format!("/status/{key}")).and_then(Value::as_u64).unwrap_or_default();
    let pods = kubectl.list(&["pods", "-l", &format!("app={name}")]).await?;
    let proxied = pods.iter().filter(|p| p.to_string().contains("\"istio-proxy\"")).count();
    kubectl.run(&["delete", "job", name, "--wait=false"]).await?;
    ended?;
    anyhow::ensure!(proxied == pods.len(), "{proxied} of {} pods had a sidecar", pods.len());
    Ok((count("succeeded"), count("failed")))
}

async fn job(world: &World) -> anyhow::Result<Seen> {
    let (good, bad) = run_job(world, "once", 1, 1).await?;
    Ok(Seen::new((good, bad) == (1, 0), format!("{good} completed, {bad} failed")))
}

async fn first_line(world: &World) -> anyhow::Result<Seen> {
    let (good, bad) = run_job(world, "hasty", STARTS, 8).await?;
    Ok(Seen::new(
        (good, bad) == (STARTS as u64, 0),
        format!("{good} of {STARTS} starts succeeded, {bad} failed"),
    ))
}

async fn refusal(world: &World) -> anyhow::Result<Seen> {
    let kubectl = world.cluster.kubectl();
    let (mut good, mut text) = (true, Vec::new());
    // The first is refused by the schema's rules, the second by pilot's webhook, the third taken with a warning.
    for (what, object, taken, said) in [
        (
            "weights that sum to 0",
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: refused}\nspec: {hosts: [a.example], http: \
             [{route: [{destination: {host: a}, weight: 0}, {destination: {host: b}, weight: 0}]}]}\n",
            false,
            "spec.http[0].route",
        ),
        (
            "a Gateway without servers",
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: refused}\nspec: {selector: {app: none}, servers: []}\n",
            false,
            "spec.servers: is empty",
        ),
        (
            "a Policy of 1.1",
            "apiVersion: authentication.istio.io/v1alpha1\nkind: Policy\nmetadata: {name: default}\nspec: {peers: [{mtls: {}}]}\n",
            true,
            "Warning: authentication.istio.io is deprecated",
        ),
    ] {
        let (was, _, heard) = kubectl.outcome(&["apply", "--dry-run=server", "-f", "-"], object).await?;
        good &= was == taken && heard.contains(said);
        text.push(format!("{what}: {} {:?}", if was { "taken" } else { "refused" }, heard.trim()));
    }
    Ok(Seen::new(good, text.join("; ")))
}

async fn status(world: &World) -> anyhow::Result<Seen> {
    let kubectl = world.cluster.kubectl();
    let service = |name: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\n\
             spec: {{hosts: [seen.example], http: [{{route: [{{destination: {{host: seen.example}}}}]}}]}}\n"
        )
    };
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: seen}\nspec: {hosts: [seen.example], \
                 ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}\n";
    kubectl.apply(entry).await?;
    kubectl.apply(&service("seen-first")).await?;
    // The age of an object is counted in seconds.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    kubectl.apply(&service("seen-second")).await?;
    let mut text = Vec::new();
    let mut good = true;
    for (kind, name, condition) in [
        ("serviceentry", "seen", ("Accepted", "True", "")),
        ("virtualservice", "seen-first", ("Honoured", "True", "")),
        ("virtualservice", "seen-second", ("Honoured", "False", "Conflicted")),
    ] {
        let (held, last) = has_condition(kubectl, kind, name, condition).await?;
        good &= held;
        text.push(format!("{name}: {last}"));
    }
    kubectl
        .run(&["delete", "serviceentry/seen", "virtualservice/seen-first", "virtualservice/seen-second"])
        .await?;
    Ok(Seen::new(good, text.join("; ")))
}

/// Whether an object's status comes to say this of its newest generation: type, status, and reason unless empty. With what it says last.
async fn has_condition(
    kubectl: &Kubectl,
    kind: &str,
    name: &str,
    (of, holds, reason): (&str, &str, &str),
) -> anyhow::Result<(bool, Value)> {
    let mut last = Value::Null;
    for _ in 0..60 {
        let object = kubectl.get(&[kind, name]).await?;
        last = object["status"].clone();
        // A number of 64 bits is written as text by protobuf's JSON, and read as either.
        let number = |v: &Value| v.as_i64().or_else(|| v.as_str()?.parse().ok());
        let looked_at = number(&last["observedGeneration"]) == number(&object["metadata"]["generation"]);
        let said = |c: &Value| {
            c["type"] == of && c["status"] == holds && (reason.is_empty() || c["reason"] == reason)
        };
        if looked_at && last["conditions"].as_array().is_some_and(|all| all.iter().any(said)) {
            return Ok((true, last));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok((false, last))
}

async fn stranger(world: &World) -> anyhow::Result<Seen> {
    // Neither port answers a request that is not inside a handshake with a certificate, or a token that the API server knows.
    let outside = world.cluster.outside();
    let mut text = Vec::new();
    let mut good = true;
    for (who, port) in [("pilot", 15_012), ("pilot", 15_010), ("citadel", 8060)] {
        let mut call = outside.get(&format!("http://{who}.{SYSTEM}:{port}/"));
        call.patience = Duration::from_secs(5);
        let end = call.send().await;
        good &= end.is_err();
        text.push(format!(
            "{who}:{port} {}",
            end.map_or_else(|_| "refuses".to_owned(), |r| r.status.to_string())
        ));
    }
    Ok(Seen::new(good, text.join(", ")))
}

async fn without_injector(world: &World) -> anyhow::Result<Seen> {
    let kubectl = world.cluster.kubectl();
    kubectl.run(&["-n", SYSTEM, "scale", "deploy/injector", "--replicas=0"]).await?;
    kubectl
        .run(&["-n", SYSTEM, "wait", "--for=delete", "pod", "-l", "app=injector", "--timeout=60s"])
        .await?;
    kubectl.run(&["-n", SYSTEM, "rollout", "restart", "deploy/mixer"]).await?;
    let mixer = world.cluster.rolled_out(SYSTEM, &["mixer"]).await;
    kubectl.run(&["-n", SYSTEM, "scale", "deploy/injector", "--replicas=1"]).await?;
    world.cluster.rolled_out(SYSTEM, &["injector"]).await?;
    Ok(Seen::new(mixer.is_ok(), mixer.map_or_else(|e| format!("{e:#}"), |()| "mixer restarted".to_owned())))
}

/// What is still in the cluster of the mesh, after `kubectl delete -f`.
///
/// # Errors
/// When kubectl fails.
pub async fn leftovers(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let kubectl = cluster.kubectl();
    let look = || async {
        let mut left = Vec::new();
        let kinds = "namespaces,clusterroles,clusterrolebindings,priorityclasses,customresourcedefinitions,\
                     mutatingwebhookconfigurations,validatingwebhookconfigurations,configmaps,secrets,leases";
        let found = kubectl.list(&["-A", kinds]).await.context("looking for what is left")?;
        for object in found {
            let at = |path| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
            let (kind, name, space) = (at("/kind"), at("/metadata/name"), at("/metadata/namespace"));
            let ours = name.contains("crema") || name.contains("istio") || space == SYSTEM;
            if ours && !(kind == "ConfigMap" && name == "kube-root-ca.crt") {
                left.push(format!("{kind} {space}/{name}"));
            }
        }
        anyhow::Ok(left)
    };
    // The garbage collector takes its time.
    for _ in 0..30 {
        let left = look().await?;
        if left.is_empty() {
            return Ok(left);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    look().await
}
