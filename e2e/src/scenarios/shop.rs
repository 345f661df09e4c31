//! The Espresso Shop in a mesh, as the steps need it: its YAML, its callers, its figures.
//!
//! In: a [`Place`] and a [`Source`] of YAML. Out: objects in the mesh, calls, counters. Kept true: what a step applied is what
//! its undo removes. Not here: what is right (`checks`), how a place does it (`place`).

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use serde_json::Value;

use super::{
    Also, Step,
    place::{MixerPort, Place},
};
use crate::{
    cluster::Cluster,
    http::Call,
    node::{Node, until},
    peers,
};

/// Whose YAML is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The project's own sample.
    Own,
    /// The files of the shop's author, unchanged.
    Author,
}

/// Where the author's files lie, when they are there.
#[must_use]
pub fn author_files() -> Option<PathBuf> {
    let given = std::env::var_os("ESPRESSO_SHOP").map(PathBuf::from);
    let dir = given.unwrap_or_else(|| peers::root().join("../shared/espresso-shop"));
    dir.join("istio/gateway.yaml").is_file().then_some(dir)
}

/// The shop, running.
#[derive(Debug)]
pub struct Shop {
    /// Where it runs.
    pub place: Place,
    /// Whose YAML is applied.
    pub source: Source,
}

/// Names of the shop's Services, with their ports.
pub const CATALOG: &str = "http://espresso-shop-product-catalog-svc:8091";
/// See [`CATALOG`].
pub const REVIEWS: &str = "http://espresso-shop-reviews-svc:8092";

impl Shop {
    /// Applies gateway and shop to a node and waits until every pod is ready.
    ///
    /// # Errors
    /// When a pod does not come up.
    pub async fn open(node: Node, source: Source) -> anyhow::Result<Self> {
        let deploy = peers::root().join("deploy");
        let place = Place::Local(node);
        // In a cluster the gateway is part of the mesh's manifest.
        place.run_file(&deploy.join("ingress-gateway.yaml")).await?;
        Self::run(place, source).await
    }

    /// The same in a cluster where the mesh is installed and namespace `default` is labelled.
    ///
    /// # Errors
    /// When a pod does not come up.
    pub async fn open_in(cluster: Cluster, source: Source) -> anyhow::Result<Self> {
        Self::run(Place::Cluster(cluster), source).await
    }

    async fn run(place: Place, source: Source) -> anyhow::Result<Self> {
        place.run_file(&manifest(source)?).await?;
        Ok(Self { place, source })
    }

    /// The local mesh, for what only processes on this machine can show.
    ///
    /// # Errors
    /// In a cluster.
    pub fn node(&self) -> anyhow::Result<&Node> {
        match &self.place {
            Place::Local(node) => Ok(node),
            Place::Cluster(_) => bail!("this needs a mesh of local processes"),
        }
    }

    fn dir(&self) -> anyhow::Result<PathBuf> {
        match self.source {
            Source::Own => Ok(peers::root().join("deploy/espresso-shop")),
            Source::Author => Ok(author_files().context("the author's files are not there")?.join("istio")),
        }
    }

    /// The files of a step: name and text.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn yaml(&self, step: &Step) -> anyhow::Result<Vec<(String, String)>> {
        let (dir, names) = match self.source {
            Source::Author if !step.author.is_empty() => (self.dir()?, step.author),
            _ => (peers::root().join("deploy/espresso-shop"), step.own),
        };
        let read = |name: &&str| {
            let path = dir.join(name);
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let strict = step.also == Also::Strict;
            let shown = path.strip_prefix(peers::root()).unwrap_or(&path).display().to_string();
            Ok((shown, if strict { text.replace("mode: PERMISSIVE", "mode: STRICT") } else { text }))
        };
        names.iter().map(read).collect()
    }

    /// Puts a step's files into the mesh's directory.
    ///
    /// # Errors
    /// When the file system refuses.
    pub async fn apply(&self, step: &Step, yaml: &[(String, String)]) -> anyhow::Result<()> {
        for (name, text) in yaml {
            self.place.put(&target(step, name), text).await?;
        }
        if step.also == Also::DeadApplication && !yaml.is_empty() {
            self.place.hold_reviews(true).await?;
        }
        Ok(())
    }

    /// Takes a step's files out again, and what ran only for it.
    ///
    /// # Errors
    /// When the file system refuses.
    pub async fn undo(&self, step: &Step) -> anyhow::Result<()> {
        for (name, _) in self.yaml(step)? {
            self.place.take(&target(step, &name)).await?;
        }
        match step.also {
            Also::BrokenReplica => {
                self.place.delete_deployment("espresso-shop-reviews-broken").await?;
            }
            Also::DeadApplication => self.place.hold_reviews(false).await?,
            Also::Nothing | Also::Strict => {}
        }
        Ok(())
    }

    /// What has to run before the first look.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn prepare(&self, step: &Step) -> anyhow::Result<()> {
        if step.also == Also::BrokenReplica {
            let file = peers::root().join("deploy/espresso-shop/broken-replica.yaml");
            self.place.run_file(&file).await?;
            // Its endpoint has to reach the callers' proxies too: then one of the next calls fails.
            let seen = || async {
                let call = self.reviews("/api/version");
                matches!(call, Ok(call) if call.send().await.is_ok_and(|r| r.status == 503))
            };
            until(Duration::from_secs(15), seen, || "the broken replica never answered".to_owned()).await?;
        }
        if step.also == Also::DeadApplication {
            self.place.hold_reviews(true).await?;
        }
        Ok(())
    }

    /// A call of the web pod to reviews, through its sidecar.
    ///
    /// # Errors
    /// When the web service has no pod.
    pub fn reviews(&self, path: &str) -> anyhow::Result<Call> {
        self.place.call_from("espresso-shop-web", &format!("{REVIEWS}{path}"))
    }

    /// A call of the web pod to the catalog, through its sidecar.
    ///
    /// # Errors
    /// When the web service has no pod.
    pub fn catalog(&self, path: &str) -> anyhow::Result<Call> {
        self.place.call_from("espresso-shop-web", &format!("{CATALOG}{path}"))
    }

    /// A page of the shop, as a browser on this machine asks for it.
    ///
    /// # Errors
    /// When the web service has no port outside.
    pub fn page(&self, path: &str) -> anyhow::Result<Call> {
        self.place.page(path)
    }

    /// A page of the shop at the ingress gateway.
    ///
    /// # Errors
    /// When there is no gateway.
    pub fn at_gateway(&self, path: &str) -> anyhow::Result<Call> {
        self.place.at_gateway(path)
    }

    /// A trace as mixer's recorder has it: a list of Zipkin v2 spans; empty when it knows none.
    ///
    /// # Errors
    /// When mixer does not answer.
    pub async fn trace(&self, id: &str) -> anyhow::Result<Vec<Value>> {
        let reply = self.place.at_mixer(MixerPort::Zipkin, &format!("/api/v2/trace/{id}")).send().await?;
        match reply.status {
            200 => Ok(serde_json::from_str(&reply.body)?),
            404 => Ok(Vec::new()),
            other => bail!("mixer's recorder answers {other}: {}", reply.body),
        }
    }

    /// Mixer's metrics as they are now.
    ///
    /// # Errors
    /// When mixer does not answer.
    pub async fn metrics(&self) -> anyhow::Result<Metrics> {
        let reply = self.place.at_mixer(MixerPort::Prometheus, "/metrics").send().await?;
        Ok(Metrics::read(&reply.body))
    }
}

/// The shop's Deployments and Services.
fn manifest(source: Source) -> anyhow::Result<PathBuf> {
    match source {
        Source::Own => Ok(peers::root().join("deploy/espresso-shop/espresso-shop.yaml")),
        Source::Author => {
            let dir = author_files().context("the author's files are not there")?;
            Ok(dir.join("kubernetes/espresso-shop.yaml"))
        }
    }
}

/// The name under which a step's file is applied.
fn target(step: &Step, name: &str) -> String {
    let base = Path::new(name).file_name().unwrap_or_default().to_string_lossy().into_owned();
    format!("{}-{base}", step.id)
}

/// The edit that the talk begins with: the same files, but both kinds of traffic are taken.
#[must_use]
pub fn permissive(yaml: &[(String, String)]) -> Vec<(String, String)> {
    let edit =
        |(name, text): &(String, String)| (name.clone(), text.replace("mode: STRICT", "mode: PERMISSIVE"));
    yaml.iter().map(edit).collect()
}

/// Samples in Prometheus' text format.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Vec<(String, BTreeMap<String, String>, f64)>);

impl Metrics {
    /// Reads a scrape; lines that are no samples are left out.
    #[must_use]
    pub fn read(text: &str) -> Self {
        Self(text.lines().filter(|l| !l.starts_with('#')).filter_map(sample).collect())
    }

    /// Sum of all samples of `name` that have these labels.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |have: &BTreeMap<String, String>| {
            labels.iter().all(|(k, v)| have.get(*k).is_some_and(|h| h == v))
        };
        self.0.iter().filter(|(n, have, _)| n == name && fits(have)).map(|(.., value)| value).sum()
    }

    /// The upper bound of the histogram bucket that holds this quantile (0 to 1), of what was added since `before`.
    #[must_use]
    pub fn quantile_since(
        &self,
        before: &Self,
        name: &str,
        labels: &[(&str, &str)],
        quantile: f64,
    ) -> Option<f64> {
        let bucket = format!("{name}_bucket");
        let mut bounds: Vec<f64> = self
            .0
            .iter()
            .filter(|(n, ..)| *n == bucket)
            .filter_map(|(_, have, _)| have.get("le")?.parse().ok())
            .collect();
        bounds.sort_by(f64::total_cmp);
        bounds.dedup();
        let count = |bound: f64| {
            let of = |metrics: &Self| {
                let fits = |have: &BTreeMap<String, String>| {
                    let le = have.get("le").and_then(|le| le.parse::<f64>().ok());
                    le == Some(bound) && labels.iter().all(|(k, v)| have.get(*k).is_some_and(|h| h == v))
                };
                metrics
                    .0
                    .iter()
                    .filter(|(n, have, _)| *n == bucket && fits(have))
                    .map(|(.., v)| v)
                    .sum::<f64>()
            };
            of(self) - of(before)
        };
        let total = count(*bounds.last()?);
        if total <= 0.0 {
            return None;
        }
        bounds.into_iter().find(|b| count(*b) >= total * quantile)
    }
}

fn sample(line: &str) -> Option<(String, BTreeMap<String, String>, f64)> {
    let (head, tail) = match line.split_once('{') {
        Some((name, rest)) => {
            let end = closing(rest)?;
            ((name, &rest[..end]), &rest[end + 1..])
        }
        None => {
            let (name, value) = line.split_once(' ')?;
            ((name, ""), value)
        }
    };
    let value = tail.split_whitespace().next()?.parse().ok()?;
    let mut labels = BTreeMap::new();
    let mut rest = head.1;
    while let Some((key, after)) = rest.split_once("=\"") {
        let end = unescaped_quote(after)?;
        labels.insert(key.trim_start_matches([',', ' ']).to_owned(), after[..end].replace("\\\"", "\""));
        rest = &after[end + 1..];
    }
    Some((head.0.trim().to_owned(), labels, value))
}

fn unescaped_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| {
        let end = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        end.then_some(at)
    })
}

fn closing(text: &str) -> Option<usize> {
    let mut quoted = false;
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| {
        if c == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = c == '\\' && !escaped;
        (c == '}' && !quoted).then_some(at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_the_labels_that_are_not_asked_for() {
        let text = "# HELP a b\nr_total{v=\"v1\",code=\"200\"} 3\nr_total{v=\"v1\",code=\"500\"} 1 1700\nr_total{v=\"v2\",x=\"} \\\" {\"} 4\nplain 7\n";
        let metrics = Metrics::read(text);
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], f64);
        let cases: [Case<'_>; 5] = [
            ("r_total", &[("v", "v1")], 4.0),
            ("r_total", &[("v", "v1"), ("code", "500")], 1.0),
            ("r_total", &[("v", "v2")], 4.0),
            ("plain", &[], 7.0),
            ("none", &[], 0.0),
        ];
        for (name, labels, want) in cases {
            assert!((metrics.sum(name, labels) - want).abs() < 1e-9, "{name} {labels:?}");
        }
    }

    #[test]
    fn quantiles_count_only_what_was_added() {
        let at = |a: u32, b: u32| {
            Metrics::read(&format!(
                "d_bucket{{le=\"10\"}} {a}\nd_bucket{{le=\"100\"}} {b}\nd_bucket{{le=\"+Inf\"}} {b}\n"
            ))
        };
        let (before, after) = (at(100, 100), at(101, 110));
        assert_eq!(after.quantile_since(&before, "d", &[], 0.5), Some(100.0));
        assert_eq!(after.quantile_since(&before, "d", &[], 0.05), Some(10.0));
        assert_eq!(before.quantile_since(&before, "d", &[], 0.5), None);
    }

    #[test]
    fn strict_and_permissive_are_one_edit_apart() {
        let strict = [("a".to_owned(), "mtls:\n  mode: STRICT\n".to_owned())];
        assert_eq!(permissive(&strict)[0].1, "mtls:\n  mode: PERMISSIVE\n");
    }
}
