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
    Cluster, SYSTEM,
    agent::Agent,
    world::{World, next_tag},
};
use crate::{node::until, scenarios::shop::REVIEWS};

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
pub const DISTURBANCES: [Disturbance; 9] = [
    Disturbance { id: "calm", title: "nothing", act: act!(_w => async { pause(10).await; Ok(()) }) },
    Disturbance {
        id: "shop",
        title: "rolling restart of the shop, five times",
        act: act!(w => async {
            for _ in 0..5 {
                restart(&w.cluster, "default", &SHOP).await?;
            }
            Ok(())
        }),
    },
    Disturbance {
        id: "gateway",
        title: "rolling restart of the gateway",
        act: act!(w => restart(&w.cluster, SYSTEM, &["istio-ingressgateway"])),
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
    },
    Disturbance {
        id: "scale",
        title: "pilot scaled 1 → 3 → 1, and one of three deleted",
        act: act!(w => async {
            scale(&w.cluster, &["pilot"], 3).await?;
            delete_one(&w.cluster, "pilot").await?;
            scale(&w.cluster, &["pilot"], 1).await
        }),
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
    },
    Disturbance {
        id: "roots",
        title: "a new root rotated in, in three steps",
        act: act!(w => super::roots::rotate(&w.cluster)),
    },
    Disturbance {
        id: "upgrade",
        title: "the manifest applied again with another image tag, and back",
        act: act!(w => async {
            w.cluster.install(Some(&next_tag())).await?;
            w.cluster.install(None).await
        }),
    },
];

/// Requests per second on each of the two ways.
const RATE: u32 = 40;
/// One stretch of load.
const STRETCH: u64 = 5;

/// Runs one under load.
///
/// # Errors
/// When it could not be done, or no load could be sent.
pub async fn run(world: &World, disturbance: &Disturbance) -> anyhow::Result<Line> {
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
