//! The fault table: what breaks while requests run, and how many of them fail.
//!
//! In: a running shop. Out: one [`Row`] per fault. Kept true: load is open-loop, bounded, from a pod's own address, with new connections among
//! the requests; every kill is counted. Not here: the load itself (`load`), starting the mesh (`node`).

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, ensure};
use rustix::process::Signal;

use crate::{
    backends,
    load::{self, Load, Report},
    node::{Node, files, objects::EGRESS_PORT, until},
    scenarios::Shop,
};

/// What one fault did to the requests.
#[derive(Debug)]
pub struct Row {
    /// What was broken.
    pub fault: String,
    /// How often.
    pub times: u32,
    /// The requests meanwhile.
    pub report: Report,
    /// What else had to hold, and whether it did.
    pub also: Vec<(String, bool)>,
}

impl Row {
    /// True when no request failed and everything else held.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.report.failures() == 0 && self.also.iter().all(|(_, held)| *held)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {}: {}", self.fault, self.times, self.report)?;
        for (what, held) in &self.also {
            write!(f, "; {what}: {}", if *held { "yes" } else { "NO" })?;
        }
        Ok(())
    }
}

/// How hard the table is played.
#[derive(Debug, Clone, Copy)]
pub struct Strength {
    /// Requests per second.
    pub rate: u32,
    /// How long each fault lasts.
    pub lasting: Duration,
}

/// One line of the played table.
#[derive(Debug)]
pub struct Line {
    /// For people.
    pub text: String,
    /// No request failed, and everything else held.
    pub good: bool,
}

/// Plays the whole table, one fault after the other; `told` hears each line when it is there.
///
/// # Errors
/// When the mesh cannot be driven; failed requests are in the lines.
pub async fn run(shop: &Shop, strength: Strength, mut told: impl FnMut(&str)) -> anyhow::Result<Vec<Line>> {
    let (node, Strength { rate, lasting }) = (shop.node()?, strength);
    let seconds = lasting.as_secs().max(1);
    let mut lines = Vec::new();
    let mut tell = |row: &Row| {
        told(&row.to_string());
        lines.push(Line { text: row.to_string(), good: row.passed() });
    };
    tell(&edit_while_pilot_is_away(node, rate).await?);
    tell(&refused_configuration(node, rate).await?);
    tell(&kill_control_plane(node, rate, seconds).await?);
    let (calm, frozen) = freeze_control_plane(node, rate, seconds.min(30)).await?;
    tell(&calm);
    tell(&frozen);
    tell(&churn(node, rate, seconds.min(10)).await?);
    tell(&replaced_proxies(node, rate).await?);
    for row in policy_without_mixer(node, rate).await? {
        tell(&row);
    }
    Ok(lines)
}

/// The three whose absence no request may notice.
const CONTROL_PLANE: [&str; 3] = ["pilot", "citadel", "mixer"];
/// A Service that every version of the shop has, and that waits for nothing.
const CATALOG: &str = "espresso-shop-product-catalog-svc";

/// Requests from the web pod's own address, through its sidecar, to the catalog.
///
/// # Errors
/// When the shop has no web pod.
pub fn load_in_mesh(node: &Node, rate: u32, seconds: u64, id: &str) -> anyhow::Result<Load> {
    let web = node.pods_of("espresso-shop-web");
    let pod = web.first().context("the shop has no web pod")?;
    let ip = IpAddr::V4(pod.ip);
    Ok(Load {
        to: SocketAddr::new(ip, EGRESS_PORT),
        from: Some(SocketAddr::new(ip, 0)),
        target: format!("http://{CATALOG}:8091/api/products/1?{id}"),
        host: format!("{CATALOG}:8091"),
        headers: vec![("user-agent".to_owned(), format!("faults-{id}"))],
        rate,
        lasting: Duration::from_secs(seconds),
        fresh_every: 10,
        expect: 200,
    })
}

/// SIGKILL of pilot, citadel and mixer each second, for `seconds`; then the counters must equal the requests sent.
///
/// # Errors
/// When the mesh cannot be driven; failed requests are in the row.
pub async fn kill_control_plane(node: &Node, rate: u32, seconds: u64) -> anyhow::Result<Row> {
    let before = settled_requests(node).await?;
    let running = tokio::spawn(load::run(load_in_mesh(node, rate, seconds, "kill")?));
    let mut times = 0;
    for _ in 0..seconds {
        for name in CONTROL_PLANE {
            node.component(name)?.signal(Signal::KILL);
            times += 1;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let report = running.await??;
    let sent = u32::try_from(report.sent).map(f64::from)?;
    let equal = async || catalog_requests(node).await.is_ok_and(|now| (now - before - sent).abs() < 0.5);
    let why = || "istio_requests_total did not settle".to_owned();
    let settled = until(Duration::from_secs(60), equal, why).await.is_ok();
    let now = catalog_requests(node).await.unwrap_or(f64::NAN);
    let counters = format!("counters equal requests sent ({} of {sent})", now - before);
    Ok(Row {
        fault: "SIGKILL pilot, citadel, mixer".to_owned(),
        times,
        report,
        also: vec![(counters, settled)],
    })
}

/// The counter once what was sent before has been told: unchanged for three seconds.
async fn settled_requests(node: &Node) -> anyhow::Result<f64> {
    let (mut last, mut quiet) = (catalog_requests(node).await?, 0);
    while quiet < 3 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = catalog_requests(node).await?;
        quiet = if (now - last).abs() < 0.5 { quiet + 1 } else { 0 };
        last = now;
    }
    Ok(last)
}

/// `istio_requests_total` of the catalog as its callers report it.
async fn catalog_requests(node: &Node) -> anyhow::Result<f64> {
    let (status, body) = backends::get(node.addresses().prometheus, "/metrics").await?;
    ensure!(status == 200, "mixer's /metrics: status {status}");
    let text = String::from_utf8_lossy(&body);
    let mine = text.lines().filter(|line| {
        line.starts_with("istio_requests_total{")
            && line.contains("reporter=\"source\"")
            && line.contains(&format!("destination_service_name=\"{CATALOG}\""))
    });
    Ok(mine.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

/// Pilot away while a route is edited: the route is in force once pilot is back, and no request notices.
///
/// # Errors
/// When the mesh cannot be driven.
pub async fn edit_while_pilot_is_away(node: &Node, rate: u32) -> anyhow::Result<Row> {
    let path = rule(node, "pilot-away.yaml");
    let running = tokio::spawn(load::run(load_in_mesh(node, rate, 12, "away")?));
    let pilot = node.component("pilot")?;
    pilot.hold().await;
    files::write_text(&path, &answer_418("/pilot-was-away"))?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    pilot.resume();
    let obeyed = async || status_of(node, "/pilot-was-away").await.is_ok_and(|status| status == 418);
    let in_force =
        until(Duration::from_secs(30), obeyed, || "the route is not in force".to_owned()).await.is_ok();
    let report = running.await??;
    files::remove(&path)?;
    let also = vec![("the route edited meanwhile is in force".to_owned(), in_force)];
    Ok(Row { fault: "pilot away for 3 s, a route edited".to_owned(), times: 1, report, also })
}

/// A document that is refused: the routes that were good stay in force.
///
/// # Errors
/// When the mesh cannot be driven.
pub async fn refused_configuration(node: &Node, rate: u32) -> anyhow::Result<Row> {
    let path = rule(node, "refused.yaml");
    files::write_text(&path, &answer_418("/last-good"))?;
    let obeyed = async || status_of(node, "/last-good").await.is_ok_and(|status| status == 418);
    until(Duration::from_secs(30), obeyed, || "the good route is not in force".to_owned()).await?;
    let running = tokio::spawn(load::run(load_in_mesh(node, rate, 4, "refused")?));
    for broken in ["http: [{route: 7}]", "http: [{match: [{uri: {regex: '('}}]}]", ": : not yaml ["] {
        files::write_text(&path, &answer_418("/last-good").replace("http:", broken))?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let stays = status_of(node, "/last-good").await? == 418;
    let report = running.await??;
    files::remove(&path)?;
    let also = vec![("the last good route stays".to_owned(), stays)];
    Ok(Row { fault: "a refused configuration".to_owned(), times: 3, report, also })
}

/// A hundred changes of the catalog's endpoints each second, one of its pods always there.
///
/// # Errors
/// When the mesh cannot be driven.
pub async fn churn(node: &Node, rate: u32, seconds: u64) -> anyhow::Result<Row> {
    node.scale("default", "espresso-shop-product-catalog", 2).await?;
    node.ready(Duration::from_secs(60)).await?;
    let pods = node.pods_of("espresso-shop-product-catalog");
    let [stays, comes_and_goes] = &pods[..] else {
        anyhow::bail!("expected two catalog pods, found {}", pods.len())
    };
    let port = stays.ports.first().context("a port")?.bound;
    let path = node.layout().node().join("churn.yaml");
    let running = tokio::spawn(load::run(load_in_mesh(node, rate, seconds, "churn")?));
    let mut changes = 0;
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    for n in 0..seconds * 100 {
        tick.tick().await;
        let extra = format!("- addresses: [{}]\n  conditions: {{ready: true}}\n", comes_and_goes.ip);
        let extra = if n % 2 == 0 { extra.as_str() } else { "" };
        let text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nmetadata: {{name: churn, namespace: \
             default, labels: {{kubernetes.io/service-name: {CATALOG}}}}}\nports: [{{name: http, port: {port}, protocol: \
             TCP}}]\nendpoints:\n- addresses: [{}]\n  conditions: {{ready: true}}\n{extra}",
            stays.ip
        );
        files::write_text(&path, &text)?;
        changes += 1;
    }
    let report = running.await??;
    files::remove(&path)?;
    node.scale("default", "espresso-shop-product-catalog", 1).await?;
    Ok(Row { fault: "an endpoint that comes and goes".to_owned(), times: changes, report, also: Vec::new() })
}

/// SIGSTOP of the whole control plane for `seconds`: no request may be slower for it.
///
/// # Errors
/// When the mesh cannot be driven.
pub async fn freeze_control_plane(node: &Node, rate: u32, seconds: u64) -> anyhow::Result<(Row, Row)> {
    let calm = load::run(load_in_mesh(node, rate, seconds, "calm")?).await?;
    let running = tokio::spawn(load::run(load_in_mesh(node, rate, seconds, "frozen")?));
    for name in CONTROL_PLANE {
        node.component(name)?.signal(Signal::STOP);
    }
    let report = running.await?;
    for name in CONTROL_PLANE {
        node.component(name)?.signal(Signal::CONT);
    }
    let row = |fault: &str, times, report| Row { fault: fault.to_owned(), times, report, also: Vec::new() };
    Ok((row("nothing (to compare with)", 0, calm), row("SIGSTOP pilot, citadel, mixer", 3, report?)))
}

/// The sidecars of both ends replaced in place, twice each.
///
/// # Errors
/// When the mesh cannot be driven.
pub async fn replaced_proxies(node: &Node, rate: u32) -> anyhow::Result<Row> {
    let mut sidecars = Vec::new();
    for deployment in ["espresso-shop-web", "espresso-shop-product-catalog"] {
        let pods = node.pods_of(deployment);
        let pod = pods.first().with_context(|| format!("{deployment} has no pod"))?;
        sidecars.push(node.process(&pod.name, "istio-proxy")?);
    }
    let running = tokio::spawn(load::run(load_in_mesh(node, rate, 16, "replaced")?));
    let (mut times, mut crashes) = (0, 0);
    for _ in 0..2 {
        for sidecar in &sidecars {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let before = sidecar.status().starts;
            sidecar.replace().await?;
            times += 1;
            // A successor takes over once it is configured; the old one then drains for two seconds.
            tokio::time::sleep(Duration::from_millis(2500)).await;
            crashes += sidecar.status().starts - before - 1;
        }
    }
    let report = running.await??;
    let also = vec![("successors stay".to_owned(), crashes == 0)];
    Ok(Row { fault: "a sidecar restarted in place".to_owned(), times, report, also })
}

/// A denier at the catalog that stops nobody but requests with `x-deny: yes`; every other request there must be asked about.
const DENIER: &str = "apiVersion: config.istio.io/v1alpha2\nkind: denier\nmetadata: {name: faults}\nspec: {status: {code: 7, \
                      message: Not allowed}}\n---\napiVersion: config.istio.io/v1alpha2\nkind: checknothing\nmetadata: {name: \
                      faults}\n---\napiVersion: config.istio.io/v1alpha2\nkind: rule\nmetadata: {name: faults}\nspec:\n  match: \
                      destination.labels[\"app\"] == \"espresso-shop-product-catalog\" && request.headers[\"x-deny\"] == \
                      \"yes\"\n  actions: [{handler: faults.denier, instances: [faults.checknothing]}]\n";

/// Mixer dead with a denier in force. Matching requests fail closed once the verdicts on them have expired, others never notice;
/// with `policyCheckFailOpen` none fails.
///
/// # Errors
/// When the mesh cannot be driven.
pub async fn policy_without_mixer(node: &Node, rate: u32) -> anyhow::Result<Vec<Row>> {
    let (denier, open) = (rule(node, "denier.yaml"), rule(node, "mesh-config.yaml"));
    files::write_text(&denier, DENIER)?;
    let denied = async || policy_status(node, "yes").await.is_ok_and(|status| status == 403);
    until(Duration::from_secs(30), denied, || "the denier is not in force".to_owned()).await?;
    let mixer = node.component("mixer")?;

    let plain = |expect, seconds, id| -> anyhow::Result<Load> {
        let headers = vec![("x-deny".to_owned(), "no".to_owned())];
        Ok(Load { headers, expect, ..load_in_mesh(node, rate, seconds, id)? })
    };
    // Every worker of the proxy has a verdict by the end of this.
    let alive = load::run(plain(200, 2, "alive")?).await?;
    mixer.signal(Signal::KILL);
    let dead = tokio::time::Instant::now();
    mixer.hold().await;
    let closed = async || policy_status(node, "no").await.is_ok_and(|status| status == 503);
    until(Duration::from_secs(60), closed, || "matching requests still pass".to_owned()).await?;
    let after = dead.elapsed();
    // Each worker keeps verdicts of its own; all of them were made during the two seconds of the load above, so the last ends soon.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let matching = plain(503, 4, "closed")?;
    let others = Load {
        target: format!("http://{REVIEWS}:8092/api/reviews/1"),
        host: format!("{REVIEWS}:8092"),
        ..load_in_mesh(node, rate, 4, "unasked")?
    };
    let (matching, others) = tokio::join!(load::run(matching), load::run(others));
    let (matching, others) = (matching?, others?);
    let closed_row = Row {
        fault: "mixer dead, a denier in force: 503 expected where its rule can match".to_owned(),
        times: 1,
        report: matching,
        also: vec![
            ("200 while mixer lived".to_owned(), alive.failures() == 0),
            (format!("the first verdict expired {:.1} s after its death", after.as_secs_f64()), true),
        ],
    };
    let others_row = Row {
        fault: "the same, where no rule can match".to_owned(),
        times: 1,
        report: others,
        also: Vec::new(),
    };

    files::write_text(&open, &fail_open(node)?)?;
    let passes = async || policy_status(node, "no").await.is_ok_and(|status| status == 200);
    until(Duration::from_secs(30), passes, || "policyCheckFailOpen is not in force".to_owned()).await?;
    mixer.resume();
    until(Duration::from_secs(30), denied, || "mixer is back, and denies nothing".to_owned()).await?;
    let running = tokio::spawn(load::run(plain(200, 16, "open")?));
    tokio::time::sleep(Duration::from_secs(2)).await;
    mixer.hold().await;
    let report = running.await??;
    mixer.resume();
    let back =
        until(Duration::from_secs(30), denied, || "mixer is back, and denies nothing".to_owned()).await;
    let also = vec![("denies again once mixer is back".to_owned(), back.is_ok())];
    let open_row = Row {
        fault: "mixer dies, a denier in force, policyCheckFailOpen: true".to_owned(),
        times: 1,
        report,
        also,
    };
    files::remove(&open)?;
    files::remove(&denier)?;
    Ok(vec![closed_row, others_row, open_row])
}

const REVIEWS: &str = "espresso-shop-reviews-svc";

/// The status of a request to the catalog with this `x-deny`.
async fn policy_status(node: &Node, deny: &str) -> anyhow::Result<u16> {
    let call = node.call_from("espresso-shop-web", &format!("http://{CATALOG}:8091/api/products/1"))?;
    Ok(call.header("x-deny", deny).send().await?.status)
}

/// The mesh's configuration, failing open; in a later file, which wins.
fn fail_open(node: &Node) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(node.layout().node().join("mesh-config.yaml"))?;
    let mut config: serde_json::Value = serde_saphyr::from_str(&text)?;
    let mesh = config["data"]["mesh"].as_str().context("the mesh config has a key mesh")?.to_owned();
    config["data"]["mesh"] = format!("{mesh}\npolicyCheckFailOpen: true\n").into();
    Ok(serde_saphyr::to_string(&config)?)
}

fn rule(node: &Node, name: &str) -> PathBuf {
    node.layout().mesh().join(name)
}

/// A VirtualService by which one path of the catalog answers 418; everything else is as before.
fn answer_418(path: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: faults, namespace: \
         default}}\nspec:\n  hosts: [{CATALOG}]\n  http:\n  - match: [{{uri: {{exact: {path}}}}}]\n    directResponse: \
         {{status: 418}}\n  - route: [{{destination: {{host: {CATALOG}}}}}]\n"
    )
}

async fn status_of(node: &Node, path: &str) -> anyhow::Result<u16> {
    let reply = node.call_from("espresso-shop-web", &format!("http://{CATALOG}:8091{path}"))?.send().await?;
    Ok(reply.status)
}
