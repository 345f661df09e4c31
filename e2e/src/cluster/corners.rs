//! Destinations that are not the plain Service: headless ones, a StatefulSet that calls itself, ExternalName, and what no registry knows.
//!
//! In: a [`World`]. Out: [`Seen`]. Kept true: the mesh is STRICT meanwhile, so that an answer from a pod is one over mutual TLS; what was
//! made is removed. Not here: what capture does with each (`e2e/tests/captured`).

use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use super::{Cluster, OUTSIDE, SYSTEM, agent::Agent, world::World};
use crate::{manifest::ManifestArgs, scenarios::Seen};

const FILE: &str = "corners.yaml";

fn objects() -> String {
    let tag = ManifestArgs::default().tag;
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: ring}}\nspec: {{clusterIP: None, selector: {{app: ring}}, ports: [{{name: http, port: 8080}}]}}\n---\n\
         apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: ring}}\nspec:\n  serviceName: ring\n  replicas: 2\n  podManagementPolicy: Parallel\n  \
         selector: {{matchLabels: {{app: ring}}}}\n  template:\n    metadata: {{labels: {{app: ring}}}}\n    \
         spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: ring, image: 'crema/espresso-shop:{tag}', imagePullPolicy: IfNotPresent, \
         args: [echo, --listen, '0.0.0.0:8080'], ports: [{{containerPort: 8080}}]}}]}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: client, namespace: {OUTSIDE}}}\nspec: {{selector: {{app: client}}, ports: [{{name: http, port: 80}}]}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: elsewhere}}\nspec: {{type: ExternalName, externalName: client.{OUTSIDE}.svc.cluster.local, ports: [{{name: http, port: 80}}]}}\n---\n\
         apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default}}\nspec: {{mtls: {{mode: STRICT}}}}\n"
    )
}

/// Plays all of it.
///
/// # Errors
/// When something does not come up.
pub async fn look(world: &World) -> anyhow::Result<Seen> {
    world.cluster.put(FILE, &objects()).await?;
    let kubectl = world.cluster.kubectl();
    let up = kubectl.run(&["rollout", "status", "statefulset/ring", "--timeout=120s"]).await;
    let seen = match up {
        Ok(_) => played(world).await,
        Err(error) => Err(error),
    };
    world.cluster.take(FILE).await?;
    seen
}

async fn played(world: &World) -> anyhow::Result<Seen> {
    let (caller, member) = (world.caller(), world.cluster.agent("default", "pod/ring-0"));
    let (mut good, mut text) = (true, Vec::new());
    for (who, from, to) in [
        ("another pod of its StatefulSet", &member, "http://ring-1.ring:8080/"),
        ("itself by its name", &member, "http://ring-0.ring:8080/"),
        ("its headless Service", &member, "http://ring:8080/"),
        (
            "a pod of a headless Service, from elsewhere",
            &caller,
            "http://ring-1.ring.default.svc.cluster.local:8080/",
        ),
        ("a headless Service, from elsewhere", &caller, "http://ring:8080/"),
        ("an ExternalName Service", &caller, "http://elsewhere/"),
    ] {
        let status = settled(from, to, "200").await;
        good &= status == "200";
        text.push(format!("{who}: {status}"));
    }
    // A client outside the mesh must not: otherwise the answers above say nothing of mutual TLS.
    let plain = world.cluster.outside().get("http://ring.default:8080/").send().await;
    good &= plain.is_err();
    text.push(format!(
        "in plaintext: {}",
        plain.map_or_else(|_| "reset".to_owned(), |r| r.status.to_string())
    ));
    // On a port that services of the mesh have, the mesh speaks HTTP and can say no; on another it can only hang up.
    for (port, refusal) in [(80, "502"), (4567, "hung up")] {
        let [open, closed, again] = unknown(world, port, refusal).await?;
        good &= (open.as_str(), closed.as_str(), again.as_str()) == ("200", refusal, "200");
        text.push(format!(
            "an unknown address, port {port}, under ALLOW_ANY: {open}, REGISTRY_ONLY: {closed}, ALLOW_ANY again: {again}"
        ));
    }
    Ok(Seen::new(good, text.join("; ")))
}

/// What is answered in the end, a status or `hung up`: names and endpoints need a moment.
async fn settled(from: &std::sync::Arc<Agent>, url: &str, wanted: &str) -> String {
    let mut last = String::new();
    for _ in 0..40 {
        last = match from.get(url).send().await {
            Ok(reply) => reply.status.to_string(),
            Err(error) => {
                // Whether a reset or the end is seen first is a matter of timing.
                let text = format!("{error:#}");
                let hung_up =
                    text.contains("reset by peer") || text.contains("closed before message completed");
                if hung_up { "hung up".to_owned() } else { text }
            }
        };
        if last == wanted {
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    last
}

/// What a caller is answered by a pod whose address is in no registry, since no Service selects it: open, closed, open again.
async fn unknown(world: &World, port: u16, refusal: &str) -> anyhow::Result<[String; 3]> {
    let cluster = &world.cluster;
    let tag = ManifestArgs::default().tag;
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: stray-{port}, namespace: {OUTSIDE}, labels: {{app: stray-{port}}}}}\n\
         spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: stray, image: 'crema/espresso-shop:{tag}', \
         imagePullPolicy: IfNotPresent, args: [echo, --listen, '0.0.0.0:{port}']}}]}}\n"
    );
    let (kubectl, name) = (cluster.kubectl(), format!("stray-{port}"));
    kubectl.apply(&pod).await?;
    let ready = ["-n", OUTSIDE, "wait", &format!("pod/{name}"), "--for=condition=Ready", "--timeout=60s"];
    kubectl.run(&ready).await?;
    let ip = cluster.pod_ips(OUTSIDE, &name).await?.pop().context("the stray pod has no address")?;
    let (caller, url) = (world.caller(), format!("http://{ip}:{port}/"));
    let open = settled(&caller, &url, "200").await;
    let before = policy(cluster, "REGISTRY_ONLY").await?;
    let closed = settled(&caller, &url, refusal).await;
    restore(cluster, &before).await?;
    let again = settled(&caller, &url, "200").await;
    kubectl.run(&["-n", OUTSIDE, "delete", "pod", &name, "--wait=false"]).await?;
    Ok([open, closed, again])
}

/// Sets `outboundTrafficPolicy` of the mesh; what the mesh's settings were.
async fn policy(cluster: &Cluster, mode: &str) -> anyhow::Result<String> {
    let map = cluster.kubectl().get(&["-n", SYSTEM, "configmap", "istio"]).await?;
    let before = map.pointer("/data/mesh").and_then(Value::as_str).context("no key mesh")?.to_owned();
    let mut mesh: Value = serde_saphyr::from_str(&before)?;
    mesh["outboundTrafficPolicy"] = json!({ "mode": mode });
    restore(cluster, &serde_json::to_string(&mesh)?).await?;
    Ok(before)
}

async fn restore(cluster: &Cluster, mesh: &str) -> anyhow::Result<()> {
    let patch = json!({ "data": { "mesh": mesh } }).to_string();
    let args = ["-n", SYSTEM, "patch", "configmap", "istio", "--type=merge", "-p", &patch];
    cluster.kubectl().run(&args).await.map(drop)
}
