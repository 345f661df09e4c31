//! Disturbances: what operators do to a mesh and what happens to it, while requests flow through the gateway and between pods.
//!
//! In: a [`World`]. Out: a [`Line`] per disturbance: requests sent and failed on both ways. Kept true: load runs from before the first
//! action until after the last; a failed request is counted with its reason and never retried by the client. Not here: what a pass is.

use std::{
    fmt,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::Context;
use espresso_shop::agent::{LoadReport, LoadSpec};

use super::{
    Cluster, OUTSIDE, SYSTEM,
    agent::Agent,
    api::ApiServer,
    world::{World, next_tag},
};
use crate::{manifest::ManifestArgs, node::until, scenarios::shop::REVIEWS};

type Act = for<'a> fn(&'a World) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + 'a>>;

/// Something that is done to the mesh.
#[derive(Clone, Copy)]
pub struct Disturbance {
    /// Short name.
    pub id: &'static str,
    /// For people.
    pub title: &'static str,
    /// Does it.
    pub act: Act,
    /// Who sends meanwhile.
    pub senders: Senders,
}

/// Who sends while a disturbance lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Senders {
    /// Agents that this suite talks to with `kubectl exec`: for as long as it takes.
    Agents,
    /// Pods that send for `ALONE` and write down what came of it: for what `kubectl exec` does not survive.
    Alone,
}

impl fmt::Debug for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id)
    }
}

/// What came of one.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its title.
    pub title: &'static str,
    /// From outside through the gateway to the shop's pages.
    pub gateway: LoadReport,
    /// From a pod of the mesh to reviews.
    pub pods: LoadReport,
    /// How long the disturbance lasted.
    pub took: Duration,
}

impl Line {
    /// Requests that failed, on both ways.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.gateway.failures() + self.pods.failures()
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({:.0} s): gateway {}; pods {}",
            self.title,
            self.took.as_secs_f64(),
            self.gateway,
            self.pods
        )
    }
}

macro_rules! act {
    ($world:ident => $body:expr) => {
        |$world| Box::pin($body)
    };
}

const SHOP: [&str; 4] = [
    "espresso-shop-web",
    "espresso-shop-product-catalog",
    "espresso-shop-reviews-v1",
    "espresso-shop-reviews-v2",
];
const CONTROL: [&str; 4] = ["pilot", "citadel", "mixer", "injector"];

/// All of them, in the order in which they are run.
pub const DISTURBANCES: [Disturbance; 10] = [
    Disturbance {
        id: "calm",
        title: "nothing",
        act: act!(_w => async { pause(10).await; Ok(()) }),
        senders: Senders::Agents,
    },
    Disturbance {
        id: "shop",
        title: "rolling restart of the shop, five times",
        act: act!(w => async {
            for _ in 0..5 {
                restart(&w.cluster, "default", &SHOP).await?;
            }
            Ok(())
        }),
        senders: Senders::Agents,
    },
    Disturbance {
        id: "gateway",
        title: "rolling restart of the gateway",
        act: act!(w => restart(&w.cluster, SYSTEM, &["istio-ingressgateway"])),
        senders: Senders::Agents,
    },
    Disturbance {
        id: "control",
        title: "rolling restart of pilot, citadel, mixer and injector, one after the other",
        act: act!(w => async {
            for name in CONTROL {
                restart(&w.cluster, SYSTEM, &[name]).await?;
            }
            Ok(())
        }),
        senders: Senders::Agents,
    },
    Disturbance {
        id: "delete",
        title: "pods of all control-plane Deployments deleted at once",
        act: act!(w => async {
            let selector = format!("app in ({})", CONTROL.join(","));
            let args = ["-n", SYSTEM, "delete", "pods", "-l", &selector, "--wait=true"];
            w.cluster.kubectl().run(&args).await?;
            w.cluster.rolled_out(SYSTEM, &CONTROL).await
        }),
        senders: Senders::Agents,
    },
    Disturbance {
        id: "scale",
        title: "pilot scaled 1 → 3 → 1, and one of three deleted",
        act: act!(w => async {
            scale(&w.cluster, &["pilot"], 3).await?;
            delete_one(&w.cluster, "pilot").await?;
            scale(&w.cluster, &["pilot"], 1).await
        }),
        senders: Senders::Agents,
    },
    Disturbance {
        id: "replicas",
        title: "every control-plane component at 3 and at 2 replicas, one of each deleted",
        act: act!(w => async {
            for replicas in [3, 2] {
                scale(&w.cluster, &CONTROL, replicas).await?;
                for name in CONTROL {
                    delete_one(&w.cluster, name).await?;
                }
            }
            scale(&w.cluster, &CONTROL, 1).await
        }),
        senders: Senders::Agents,
    },
    Disturbance {
        id: "roots",
        title: "a new root rotated in, in three steps",
        act: act!(w => super::roots::rotate(&w.cluster)),
        senders: Senders::Agents,
    },
    Disturbance {
        id: "upgrade",
        title: "the manifest applied again with another image tag, and back",
        act: act!(w => async {
            w.cluster.install(Some(&next_tag())).await?;
            w.cluster.install(None).await
        }),
        senders: Senders::Agents,
    },
    Disturbance {
        id: "api",
        title: "the API server killed, away for 10 s, started again; then a change, which takes effect",
        act: act!(w => api_server_away(w)),
        senders: Senders::Alone,
    },
];

/// Requests per second on each of the two ways.
const RATE: u32 = 40;
/// One stretch of load.
const STRETCH: u64 = 5;
/// How long senders send that are alone: longer than what they are there for.
const ALONE: Duration = Duration::from_secs(75);
/// How long the API server is away.
const AWAY: u64 = 10;

/// Runs one under load.
///
/// # Errors
/// When it could not be done, or no load could be sent.
pub async fn run(world: &World, disturbance: &Disturbance) -> anyhow::Result<Line> {
    if disturbance.senders == Senders::Alone {
        return alone(world, disturbance).await;
    }
    let over = AtomicBool::new(false);
    let gateway = format!("http://istio-ingressgateway.{SYSTEM}/Home/Product/1");
    let reviews = format!("{REVIEWS}/api/reviews/1");
    let (outside, caller) = (world.cluster.outside(), world.caller());
    let began = Instant::now();
    let acted = async {
        pause(2).await;
        let end = (disturbance.act)(world).await;
        pause(3).await;
        over.store(true, Ordering::Relaxed);
        end.map(|()| began.elapsed())
    };
    let (took, gateway, pods) =
        tokio::join!(acted, stretches(&outside, gateway, &over), stretches(&caller, reviews, &over));
    let took = took.with_context(|| disturbance.title)?;
    Ok(Line { title: disturbance.title, gateway: gateway?, pods: pods?, took })
}

async fn stretches(agent: &Agent, url: String, over: &AtomicBool) -> anyhow::Result<LoadReport> {
    let mut sum = LoadReport { sent: 0, good: 0, failed: Default::default(), latency_us: [0; 3] };
    while !over.load(Ordering::Relaxed) {
        let spec = LoadSpec { url: url.clone(), rate: RATE, seconds: STRETCH, fresh_every: 4, expect: 200 };
        let part = agent.load(spec).await?;
        sum.sent += part.sent;
        sum.good += part.good;
        part.failed.into_iter().for_each(|(why, n)| *sum.failed.entry(why).or_default() += n);
        // The worst stretch: an upper bound of the whole.
        for (all, one) in sum.latency_us.iter_mut().zip(part.latency_us) {
            *all = (*all).max(one);
        }
    }
    Ok(sum)
}

/// Senders in pods of their own, one outside the mesh and one in it.
async fn alone(world: &World, disturbance: &Disturbance) -> anyhow::Result<Line> {
    let kubectl = world.cluster.kubectl();
    let ways = [
        (OUTSIDE, format!("http://istio-ingressgateway.{SYSTEM}/Home/Product/1")),
        ("default", format!("{REVIEWS}/api/reviews/1")),
    ];
    for (namespace, url) in &ways {
        kubectl.apply(&sender(namespace, url)).await?;
    }
    for (namespace, _) in &ways {
        kubectl
            .run(&["-n", namespace, "wait", "pod/sender", "--for=condition=Ready", "--timeout=60s"])
            .await?;
    }
    let began = Instant::now();
    pause(3).await;
    let acted = (disturbance.act)(world).await;
    let took = began.elapsed();
    anyhow::ensure!(took < ALONE, "{}: {took:?} is longer than the load", disturbance.title);
    let mut reports = Vec::new();
    for (namespace, _) in &ways {
        reports.push(report(world, namespace).await.with_context(|| format!("pod sender of {namespace}"))?);
        kubectl.run(&["-n", namespace, "delete", "pod", "sender", "--wait=false"]).await?;
    }
    acted.with_context(|| disturbance.title)?;
    let [gateway, pods] = <[LoadReport; 2]>::try_from(reports).ok().context("two reports")?;
    Ok(Line { title: disturbance.title, gateway, pods, took })
}

fn sender(namespace: &str, url: &str) -> String {
    let (tag, seconds) = (ManifestArgs::default().tag, ALONE.as_secs());
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: sender, namespace: {namespace}, labels: {{app: sender}}}}\nspec:\n  restartPolicy: Never\n  \
         containers: [{{name: sender, image: 'crema/espresso-shop:{tag}', imagePullPolicy: IfNotPresent, \
         args: [load, '{url}', --rate, '{RATE}', --seconds, '{seconds}']}}]\n"
    )
}

/// What a sender wrote at its end.
async fn report(world: &World, namespace: &str) -> anyhow::Result<LoadReport> {
    let kubectl = world.cluster.kubectl();
    let args = ["-n", namespace, "logs", "sender", "-c", "sender"];
    let written = || async { kubectl.run(&args).await.is_ok_and(|text| text.contains("\"sent\"")) };
    until(ALONE + Duration::from_secs(30), written, || "it has written no report".to_owned()).await?;
    Ok(serde_json::from_str(kubectl.run(&args).await?.trim())?)
}

/// Ends the API server, starts it again, and changes something: whoever watches must have found its way back.
async fn api_server_away(world: &World) -> anyhow::Result<()> {
    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: teapot}\nspec: {selector: {app: caller}, ports: [{name: http, port: 80}]}\n";
    const ROUTE: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: teapot}\nspec:\n  hosts: [teapot]\n  http:\n  \
                         - fault: {abort: {httpStatus: 418, percentage: {value: 100}}}\n    route: [{destination: {host: teapot}}]\n";
    let (cluster, caller) = (&world.cluster, world.caller());
    let server = ApiServer::of(cluster.kubectl().kubeconfig()).map_err(anyhow::Error::msg)?;
    let answers = async |status: u16, why: &str| {
        let now = || async { caller.get("http://teapot/").send().await.is_ok_and(|r| r.status == status) };
        until(Duration::from_secs(30), now, || why.to_owned()).await
    };
    // It is there before: the cluster's DNS takes its own time to come back.
    cluster.put("teapot-service.yaml", SERVICE).await?;
    answers(200, "the Service teapot does not answer").await?;
    server.kill()?;
    pause(AWAY).await;
    server.start().await?;
    cluster.put("teapot.yaml", ROUTE).await?;
    let end = answers(418, "the change took no effect").await;
    cluster.take("teapot.yaml").await?;
    cluster.take("teapot-service.yaml").await?;
    end
}

async fn pause(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

async fn restart(cluster: &Cluster, namespace: &str, names: &[&str]) -> anyhow::Result<()> {
    for name in names {
        let target = format!("deploy/{name}");
        cluster.kubectl().run(&["-n", namespace, "rollout", "restart", &target]).await?;
    }
    cluster.rolled_out(namespace, names).await?;
    gone(cluster, namespace).await
}

async fn scale(cluster: &Cluster, names: &[&str], replicas: u8) -> anyhow::Result<()> {
    for name in names {
        let (target, replicas) = (format!("deploy/{name}"), format!("--replicas={replicas}"));
        cluster.kubectl().run(&["-n", SYSTEM, "scale", &target, &replicas]).await?;
    }
    cluster.rolled_out(SYSTEM, names).await?;
    gone(cluster, SYSTEM).await
}

async fn delete_one(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let selector = format!("app={name}");
    let pods = cluster.kubectl().run(&["-n", SYSTEM, "get", "pods", "-l", &selector, "-o", "name"]).await?;
    let pod = pods.lines().next().with_context(|| format!("{name} has no pod"))?;
    cluster.kubectl().run(&["-n", SYSTEM, "delete", pod, "--wait=true"]).await?;
    cluster.rolled_out(SYSTEM, &[name]).await
}

/// Waits until no pod is on its way out: the old ones are part of the disturbance.
async fn gone(cluster: &Cluster, namespace: &str) -> anyhow::Result<()> {
    let none = || async {
        let pods = cluster.kubectl().list(&["-n", namespace, "pods"]).await.unwrap_or_default();
        pods.iter().all(|p| p.pointer("/metadata/deletionTimestamp").is_none())
    };
    until(Duration::from_secs(90), none, || format!("pods of {namespace} do not end")).await
}
