//! What each step of the talk looks at.
//!
//! In: a [`Shop`]. Out: [`Seen`], with figures. Kept true: every check sends its own traffic; statistical ones have bounds of more than
//! three standard deviations. Not here: when they run (`super::run`).

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::{StreamExt, stream};
use http::Method;

use super::{Seen, Shop, Source, shop::REVIEWS};
use crate::{http::Reply, node::until};

const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
const CHROME: &str =
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36";
/// How long figures and spans may take to arrive at mixer.
const ARRIVAL: Duration = Duration::from_secs(12);

/// Versions that answered `count` calls of the web pod.
async fn versions(shop: &Shop, count: usize) -> anyhow::Result<Vec<String>> {
    let call = shop.reviews("/api/version")?;
    let replies = stream::iter(0..count).map(|_| call.send()).buffer_unordered(8).collect::<Vec<_>>().await;
    let versions = replies.into_iter().map(|reply| {
        let reply = reply?;
        Ok(if reply.status == 200 { reply.body } else { format!("{} {}", reply.status, reply.body) })
    });
    versions.collect()
}

fn tally(versions: &[String]) -> String {
    let mut counts = std::collections::BTreeMap::new();
    for version in versions {
        *counts.entry(version.as_str()).or_insert(0_usize) += 1;
    }
    counts.iter().map(|(version, count)| format!("{version} × {count}")).collect::<Vec<_>>().join(", ")
}

/// What holds between the steps: every service answers at once, and once there are routes, reviews is v1.
pub(super) async fn calm(shop: &Shop) -> anyhow::Result<Seen> {
    let routed = shop.place.has_files()?;
    let versions = versions(shop, 12).await?;
    let reviews = versions.iter().all(|v| v == "v1" || (v == "v2" && !routed));
    let list = shop.reviews("/api/reviews/1")?.send().await?;
    let product = shop.catalog("/api/products/1")?.send().await?;
    let quick = |r: &Reply| r.status == 200 && r.took < Duration::from_secs(1);
    Ok(Seen::new(reviews && quick(&list) && quick(&product), tally(&versions)))
}

pub(super) async fn all_v1(shop: &Shop) -> anyhow::Result<Seen> {
    let versions = versions(shop, 20).await?;
    Ok(Seen::new(versions.iter().all(|v| v == "v1"), tally(&versions)))
}

pub(super) async fn split(shop: &Shop) -> anyhow::Result<Seen> {
    let versions = versions(shop, 500).await?;
    let stars = versions.iter().filter(|v| *v == "v2").count();
    let plain = versions.iter().filter(|v| *v == "v1").count();
    let good = (65..=135).contains(&stars) && stars + plain == versions.len();
    Ok(Seen::new(good, format!("{} ({:.1} % v2)", tally(&versions), 100.0 * ratio(stars, versions.len()))))
}

fn ratio(part: usize, whole: usize) -> f64 {
    let number = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
    number(part) / number(whole.max(1))
}

/// What a page shows of the reviews.
fn shown(page: &Reply) -> &'static str {
    let body = &page.body;
    match () {
        () if body.contains("reviews-unavailable") => "reviews unavailable",
        () if body.contains("class=\"stars\"") => "stars (v2)",
        () if body.contains("class=\"review\"") => "no stars (v1)",
        () => "no reviews at all",
    }
}

pub(super) async fn browser(shop: &Shop) -> anyhow::Result<Seen> {
    let mut good = true;
    let mut text = Vec::new();
    // Three times each: without the rule, chance would have to side with both browsers three times.
    for (name, agent, want) in [("Firefox", FIREFOX, "stars (v2)"), ("Chrome", CHROME, "no stars (v1)")] {
        let mut saw = Vec::new();
        for _ in 0..3 {
            saw.push(shown(&shop.page("/Home/Product/1")?.header("user-agent", agent).send().await?));
        }
        good &= saw.iter().all(|s| *s == want);
        saw.dedup();
        text.push(format!("{name} sees {}", saw.join(" / ")));
    }
    Ok(Seen::new(good, text.join(", ")))
}

/// Logs in; returns the cookie.
async fn login(shop: &Shop, email: &str) -> anyhow::Result<String> {
    let mut call = shop.page("/Account/Login")?.header("content-type", "application/x-www-form-urlencoded");
    call.method = Method::POST;
    call.body = format!("email={}&password=x", email.replace('@', "%40"));
    let reply = call.send().await?;
    let cookie = reply.header("set-cookie").split(';').next().unwrap_or_default();
    if cookie.is_empty() {
        bail!("logging in as {email} gave {} and no cookie", reply.status);
    }
    Ok(cookie.to_owned())
}

pub(super) async fn user(shop: &Shop) -> anyhow::Result<Seen> {
    let mut good = true;
    let mut text = Vec::new();
    for (email, want) in [("admin@example.com", "stars (v2)"), ("hossam@example.com", "no stars (v1)")] {
        let cookie = login(shop, email).await?;
        let mut saw = Vec::new();
        for _ in 0..3 {
            saw.push(shown(&shop.page("/Home/Product/1")?.header("cookie", &cookie).send().await?));
        }
        good &= saw.iter().all(|s| *s == want);
        saw.dedup();
        text.push(format!("{email} sees {}", saw.join(" / ")));
    }
    Ok(Seen::new(good, text.join(", ")))
}

pub(super) async fn delay(shop: &Shop) -> anyhow::Result<Seen> {
    let want = match shop.source {
        Source::Own => Duration::from_secs(3),
        Source::Author => Duration::from_secs(10),
    };
    let reviews = shop.reviews("/api/reviews/1")?.send().await?;
    let catalog = shop.catalog("/api/products/1")?.send().await?;
    let late = reviews.took >= want && reviews.took < want + Duration::from_secs(3);
    let good = late && reviews.status == 200 && catalog.status == 200 && catalog.took < want;
    let text = format!(
        "reviews {} after {:.1} s, catalog {} after {:.2} s",
        reviews.status,
        reviews.took.as_secs_f64(),
        catalog.status,
        catalog.took.as_secs_f64()
    );
    Ok(Seen::new(good, text))
}

pub(super) async fn fault(shop: &Shop) -> anyhow::Result<Seen> {
    let reply = shop.reviews("/api/reviews/1")?.send().await?;
    let page = shop.page("/Home/Product/1")?.send().await?;
    let good = reply.status == 500
        && reply.body == "fault filter abort"
        && page.status == 200
        && shown(&page) == "reviews unavailable"
        && page.body.contains("id=\"product\"");
    Ok(Seen::new(
        good,
        format!("{} {:?}; page {} with {}", reply.status, start(&reply.body), page.status, shown(&page)),
    ))
}

/// The first line of a body, short enough for a table.
fn start(body: &str) -> String {
    let line = body.lines().next().unwrap_or_default();
    if line.chars().count() > 70 { line.chars().take(70).chain(['…']).collect() } else { line.to_owned() }
}

pub(super) async fn timeout(shop: &Shop) -> anyhow::Result<Seen> {
    let slow = shop.reviews("/api/reviews/2")?.send().await?;
    let quick = shop.reviews("/api/reviews/1")?.send().await?;
    let took = slow.took.as_secs_f64();
    let good = slow.status == 504
        && slow.body == "upstream request timeout"
        && (0.45..3.0).contains(&took)
        && quick.status == 200;
    Ok(Seen::new(
        good,
        format!(
            "slow product {} {:?} after {took:.1} s; quick product {}",
            slow.status,
            start(&slow.body),
            quick.status
        ),
    ))
}

pub(super) async fn retry(shop: &Shop) -> anyhow::Result<Seen> {
    let call = shop.reviews("/api/version")?;
    let mut statuses = Vec::new();
    for _ in 0..30 {
        statuses.push(call.send().await?.status.to_string());
    }
    Ok(Seen::new(statuses.iter().all(|s| s == "200"), tally(&statuses)))
}

pub(super) async fn circuit_breaker(shop: &Shop) -> anyhow::Result<Seen> {
    let call = shop.reviews("/api/reviews/2")?;
    let replies = futures::future::join_all((0..6).map(|_| call.send())).await;
    let replies = replies.into_iter().collect::<Result<Vec<_>, _>>()?;
    let answered = replies.iter().filter(|r| r.status == 200).count();
    let away = replies.iter().filter(|r| r.status == 503 && r.header("x-envoy-overloaded") == "true").count();
    let statuses: Vec<_> = replies.iter().map(|r| r.status.to_string()).collect();
    let text = format!("{}; {away} turned away with x-envoy-overloaded", tally(&statuses));
    Ok(Seen::new((answered, away) == (2, 4), text))
}

pub(super) async fn ejection(shop: &Shop) -> anyhow::Result<Seen> {
    let call = shop.reviews("/api/version")?;
    let mut said = Vec::new();
    for _ in 0..6 {
        let reply = call.send().await?;
        said.push(format!("{} {}", reply.status, start(&reply.body)));
    }
    let good = said[2..].iter().all(|s| s == "503 no healthy upstream");
    Ok(Seen::new(good, tally(&said)))
}

pub(super) async fn denier(shop: &Shop) -> anyhow::Result<Seen> {
    const BODY: &str = "PERMISSION_DENIED:deny-reviews-v2-handler.denier.default:Not allowed";
    let web = shop.reviews("/api/reviews/1")?.send().await?;
    let other = shop
        .place
        .call_from("espresso-shop-product-catalog", &format!("{REVIEWS}/api/version"))?
        .send()
        .await?;
    let good = web.status == 403 && web.body == BODY && other.status == 200 && other.body == "v2";
    Ok(Seen::new(
        good,
        format!(
            "web: {} {:?}; catalog: {} {:?}",
            web.status,
            start(&web.body),
            other.status,
            start(&other.body)
        ),
    ))
}

pub(super) async fn strict_mtls(shop: &Shop) -> anyhow::Result<Seen> {
    let outside = shop.place.at_pod("espresso-shop-product-catalog", "/api/version").await?.send().await;
    let inside = shop.catalog("/api/version")?.send().await?;
    let table = tls_check(shop).await?;
    let server = table.split_whitespace().nth(2).unwrap_or("?").to_owned();
    let text = format!(
        "plaintext from outside: {}; within the mesh: {}; tls-check: server {server}",
        outside.as_ref().map_or_else(|_| "reset".to_owned(), |r| r.status.to_string()),
        inside.status
    );
    Ok(Seen::new(outside.is_err() && inside.status == 200 && server == "mTLS", text))
}

/// The line that `pilot tls-check` prints for the catalog.
async fn tls_check(shop: &Shop) -> anyhow::Result<String> {
    let service = "espresso-shop-product-catalog-svc.default.svc.cluster.local";
    let text = shop.place.tls_check(service).await?;
    let line = text.lines().find(|l| l.starts_with(service)).map(str::to_owned);
    line.with_context(|| format!("pilot tls-check printed {text:?}"))
}

pub(super) async fn gateway(shop: &Shop) -> anyhow::Result<Seen> {
    let page = shop.at_gateway("/")?.send().await?;
    let products = page.body.matches("class=\"card\"").count();
    Ok(Seen::new(page.status == 200 && products == 6, format!("{} with {products} products", page.status)))
}

pub(super) async fn trace(shop: &Shop) -> anyhow::Result<Seen> {
    let page = shop.at_gateway("/Home/Product/1")?.send().await?;
    let id = page.header("x-b3-traceid").to_owned();
    if id.is_empty() {
        return Ok(Seen::new(false, format!("page {} without a trace id", page.status)));
    }
    let services = ["espresso-shop-web", "espresso-shop-product-catalog", "espresso-shop-reviews"];
    let started = Instant::now();
    loop {
        let spans = shop.trace(&id).await?;
        let has = |kind: &str, service: &str| {
            spans.iter().any(|s| {
                let name =
                    s.pointer("/localEndpoint/serviceName").and_then(|n| n.as_str()).unwrap_or_default();
                s["kind"] == kind && name.starts_with(service)
            })
        };
        // Every service was served once; the calls of web to the other two are client spans of web.
        let servers = services.iter().filter(|s| has("SERVER", s)).count();
        let clients = spans.iter().filter(|s| s["kind"] == "CLIENT").count();
        let rootless = spans.iter().filter(|s| {
            let parent = s.get("parentId");
            parent.is_some_and(|p| !spans.iter().any(|o| o.get("id") == Some(p)))
        });
        let orphans = rootless.count();
        let good = servers == 3 && clients >= 2 && has("CLIENT", services[0]) && orphans == 0;
        if good || started.elapsed() > ARRIVAL {
            let text = format!(
                "trace {id}: {} spans, {servers} of 3 services served, {clients} client spans, {orphans} orphans",
                spans.len()
            );
            return Ok(Seen::new(good, text));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Labels of a request counter as the called sidecar reports it.
fn served(version: &str) -> [(&'static str, &str); 3] {
    [
        ("reporter", "destination"),
        ("destination_app", "espresso-shop-reviews"),
        ("destination_version", version),
    ]
}

pub(super) async fn metrics(shop: &Shop) -> anyhow::Result<Seen> {
    // Figures of earlier calls may still be on their way; wait until they stand.
    let before = settled(shop).await?;
    let started = Instant::now();
    let versions = versions(shop, 100).await?;
    let rate = ratio(versions.len(), 1) / started.elapsed().as_secs_f64();
    let sent = |version: &str| ratio(versions.iter().filter(|v| *v == version).count(), 1);
    let total = "istio_requests_total";
    let arrived = || async {
        let Ok(now) = shop.metrics().await else { return false };
        let grown = |v: &str| now.sum(total, &served(v)) - before.sum(total, &served(v));
        grown("v1") + grown("v2") >= sent("v1") + sent("v2")
    };
    let waited = until(ARRIVAL, arrived, || "mixer's counters stay behind".to_owned()).await;
    let after = shop.metrics().await?;
    let mut good = waited.is_ok() && sent("v1") > 0.0 && sent("v2") > 0.0;
    let mut text = Vec::new();
    for version in ["v1", "v2"] {
        let labels = served(version);
        let count = after.sum(total, &labels) - before.sum(total, &labels);
        let mut fine = labels.to_vec();
        fine.push(("response_code", "200"));
        let success = after.sum(total, &fine) - before.sum(total, &fine);
        let ms = |quantile| {
            let name = "istio_request_duration_milliseconds";
            let bound = after.quantile_since(&before, name, &labels, quantile);
            bound.map_or_else(|| "?".to_owned(), |b| format!("≤ {b} ms"))
        };
        good &= (count - sent(version)).abs() < 0.5 && (success - count).abs() < 0.5 && ms(0.5) != "?";
        let share = if count > 0.0 { 100.0 * success / count } else { 0.0 };
        text.push(format!(
            "{version}: {count} of {} sent, {share:.0} % good, p50 {}, p99 {}",
            sent(version),
            ms(0.5),
            ms(0.99)
        ));
    }
    Ok(Seen::new(good, format!("{}; {rate:.0} calls/s", text.join("; "))))
}

/// Mixer's metrics once two looks, a second apart, count the same.
async fn settled(shop: &Shop) -> anyhow::Result<super::shop::Metrics> {
    let mut last = shop.metrics().await?;
    for _ in 0..15 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = shop.metrics().await?;
        let same = (now.sum("istio_requests_total", &[]) - last.sum("istio_requests_total", &[])).abs() < 0.5;
        last = now;
        if same {
            break;
        }
    }
    Ok(last)
}

pub(super) async fn fan_out(shop: &Shop) -> anyhow::Result<Seen> {
    let total = "istio_requests_total";
    let labels = [("reporter", "destination"), ("destination_app", "espresso-shop-product-catalog")];
    let before = settled(shop).await?.sum(total, &labels);
    let id = format!("fan-out-{:016x}", rand::random::<u64>());
    let trace = format!("{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>());
    let call = shop.catalog("/api/version")?;
    let call = call
        .header("x-request-id", &id)
        .header("x-b3-traceid", &trace)
        .header("x-b3-spanid", &trace[..16])
        .header("x-b3-sampled", "1");
    let reply = call.send().await?;
    let started = Instant::now();
    loop {
        let lines = shop.place.mixer_log().await?;
        let logged = lines.lines().filter(|l| l.contains(&id)).count();
        let spans = shop.trace(&trace).await?.iter().filter(|s| s.to_string().contains(&id)).count();
        let counted = shop.metrics().await?.sum(total, &labels) - before;
        let good = reply.status == 200 && logged > 0 && spans > 0 && (counted - 1.0).abs() < 0.5;
        if good || started.elapsed() > ARRIVAL {
            let text = format!("{}: {logged} log lines, {spans} spans, counter +{counted}", reply.status);
            return Ok(Seen::new(good, text));
        }
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
}
