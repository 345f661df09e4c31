//! Real backends beside the local mesh: Prometheus, Zipkin, Chromium and Firefox. What is not installed is ignored, with the reason.
//!
//! In: the real binaries, `.ci/run`'s peers. Out: one trial per backend, over one mesh. Kept true: nothing missing is ever "passed".
//! Not here: starting the backends (`e2e::backends`), the shop (`e2e::scenarios`).

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context, ensure};
use e2e::{
    backends::{Browser, Prometheus, Zipkin},
    node::{Node, Options, files, until},
    peers,
    scenarios::{Nobody, STEPS, Shop, Source, Step, run},
};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let world: Arc<World> = Arc::default();
    let browsers = peers::installed("chromium")
        .zip(peers::installed("firefox-esr").or_else(|| peers::installed("firefox")));
    let trials = vec![
        trial(
            "prometheus_scrapes_what_was_sent",
            peers::installed("prometheus"),
            "prometheus",
            &world,
            |world, program| world.block_on(|shop| Box::pin(prometheus(shop, program))),
        ),
        trial("zipkin_joins_the_trace", peers::zipkin(), "zipkin.jar or java", &world, |world, jar| {
            world.block_on(|shop| Box::pin(zipkin(shop, jar)))
        }),
        trial("each_browser_gets_its_own_reviews", browsers, "chromium or firefox", &world, |world, both| {
            world.block_on(|shop| Box::pin(browse(shop, both)))
        }),
    ];
    let conclusion = libtest_mimic::run(&arguments, trials);
    world.close();
    conclusion.exit();
}

fn trial<P: Send + 'static>(
    name: &str,
    peer: Option<P>,
    missing: &str,
    world: &Arc<World>,
    story: impl FnOnce(&World, P) -> anyhow::Result<()> + Send + 'static,
) -> Trial {
    let ignored = peer.is_none();
    let name = if ignored { format!("{name} (ignored: no {missing})") } else { name.to_owned() };
    let world = Arc::clone(world);
    let go = move || {
        let peer = peer.ok_or("it is not installed")?;
        story(&world, peer).map_err(|e| Failed::from(format!("{e:#}")))
    };
    Trial::test(name, go).with_ignored_flag(ignored)
}

/// One mesh for all trials, started by the first that needs it.
#[derive(Default)]
struct World(OnceLock<Result<(Runtime, Shop, tempfile::TempDir), String>>);

type Story<'a> = std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

impl World {
    fn block_on(&self, story: impl for<'a> FnOnce(&'a Shop) -> Story<'a>) -> anyhow::Result<()> {
        let made = self.0.get_or_init(|| open().map_err(|e| format!("{e:#}")));
        let (runtime, shop, _) = made.as_ref().map_err(|e| anyhow::Error::msg(e.clone()))?;
        runtime.block_on(story(shop))
    }

    fn close(&self) {
        if let Some(Ok((runtime, shop, _))) = self.0.get() {
            shop.node().into_iter().for_each(|node| runtime.block_on(node.stop()));
        }
    }
}

fn open() -> anyhow::Result<(Runtime, Shop, tempfile::TempDir)> {
    peers::build()?;
    let dir = tempfile::Builder::new().prefix("crema-real-").tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let options = Options {
        dir: dir.path().to_path_buf(),
        net: None,
        bin: peers::bin_dir(),
        sampling: 100.0,
        progress: Arc::new(|_| ()),
    };
    let shop = runtime.block_on(async {
        let shop = Shop::open(Node::start(options).await?, Source::Own).await?;
        for id in ["all-v1", "gateway"] {
            let row = run(&shop, step(id)?, &mut Nobody).await?;
            ensure!(row.passed, "{id}: {}", row.after.text);
        }
        anyhow::Ok(shop)
    })?;
    Ok((runtime, shop, dir))
}

fn step(id: &str) -> anyhow::Result<&'static Step> {
    STEPS.iter().find(|s| s.id == id).with_context(|| format!("no step {id}"))
}

async fn prometheus(shop: &Shop, program: PathBuf) -> anyhow::Result<()> {
    let dir = shop.node()?.layout().run();
    let server =
        Prometheus::start(&program, &dir, &[shop.node()?.addresses().prometheus.to_string()]).await?;
    let sum = r#"sum(istio_requests_total{reporter="destination",destination_app="espresso-shop-product-catalog",response_code="200"})"#;
    let value = || async {
        server.query(sum).await.ok().and_then(|s| s.first().map(|(_, v)| *v)).unwrap_or_default()
    };
    // What earlier calls left behind has to be there, and stand, before it is compared with.
    let stands = || async {
        let first = value().await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        first > 0.0 && (value().await - first).abs() < 0.5
    };
    until(Duration::from_secs(60), stands, || "Prometheus never saw the calls of the first steps".to_owned())
        .await?;
    let before = value().await;
    let call = shop.catalog("/api/version")?;
    for _ in 0..40 {
        ensure!(call.send().await?.status == 200, "the catalog fails");
    }
    let arrived = || async { (value().await - before - 40.0).abs() < 0.5 };
    let counted = until(Duration::from_secs(20), arrived, String::new).await.is_ok();
    ensure!(counted, "Prometheus counted {} requests before and {} after 40 more", before, value().await);
    let by = "sum by (source_workload, destination_service_name, connection_security_policy) (istio_requests_total{reporter=\"destination\",destination_app=\"espresso-shop-product-catalog\"})";
    let series = server.query(by).await?;
    let labels = series.iter().find(|(l, _)| l["source_workload"] == "espresso-shop-web").map(|(l, _)| l);
    let labels = labels.with_context(|| format!("no series from web: {series:?}"))?;
    ensure!(labels["connection_security_policy"] == "mutual_tls", "labels {labels}");
    ensure!(labels["destination_service_name"] == "espresso-shop-product-catalog-svc", "labels {labels}");
    Ok(())
}

async fn zipkin(shop: &Shop, jar: PathBuf) -> anyhow::Result<()> {
    let server = Zipkin::start(&jar, &shop.node()?.layout().run()).await?;
    // The span itself is mixer's built-in instance.
    let yaml = format!(
        "apiVersion: config.istio.io/v1alpha2\nkind: handler\nmetadata: {{name: real-zipkin, namespace: istio-system}}\nspec:\n  \
         compiledAdapter: zipkin\n  params: {{url: \"http://{}/api/v2/spans\"}}\n---\napiVersion: config.istio.io/v1alpha2\nkind: \
         rule\nmetadata: {{name: real-zipkin, namespace: istio-system}}\nspec:\n  match: (request.headers[\"x-b3-sampled\"] | \
         \"no\") == \"1\"\n  actions: [{{handler: real-zipkin, instances: [span.instance.istio-system]}}]\n",
        server.address,
    );
    let file = shop.node()?.layout().mesh().join("real-zipkin.yaml");
    files::write_text(&file, &yaml)?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let page = shop.at_gateway("/Home/Product/1")?.send().await?;
    let trace = page.header("x-b3-traceid").to_owned();
    ensure!(!trace.is_empty(), "the page came without a trace id");
    let spans = server.trace(&trace, 6).await;
    files::remove(&file)?;
    let spans = spans?;
    let served = |service: &str| {
        let is = |s: &&serde_json::Value| {
            s["localEndpoint"]["serviceName"].as_str().unwrap_or_default().starts_with(service)
        };
        spans.iter().any(|s| is(&s) && s["kind"] == "SERVER")
    };
    for service in ["espresso-shop-web", "espresso-shop-product-catalog", "espresso-shop-reviews"] {
        ensure!(served(service), "no server span of {service} in {spans:?}");
    }
    Ok(())
}

async fn browse(shop: &Shop, (chromium, firefox): (PathBuf, PathBuf)) -> anyhow::Result<()> {
    let browser = step("browser")?;
    shop.apply(browser, &shop.yaml(browser)?).await?;
    let agent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
    let page = shop.at_gateway("/Home/Product/1")?;
    let routed = || async {
        page.clone().header("user-agent", agent).send().await.is_ok_and(|r| r.body.contains("★"))
    };
    until(Duration::from_secs(15), routed, || "the browser rule never took effect".to_owned()).await?;
    let dir = shop.node()?.layout().run();
    let dirs = [dir.join("chromium"), dir.join("firefox")];
    for dir in &dirs {
        std::fs::create_dir_all(dir)?;
    }
    let dom = Browser::Chromium(chromium.clone()).page(&page.url, &dirs[0]).await?;
    ensure!(dom.contains("class=\"review\"") && !dom.contains("class=\"stars\""), "Chromium shows {dom}");
    let picture = |name: &str| pictures().join(name);
    std::fs::create_dir_all(pictures())?;
    Browser::Chromium(chromium).screenshot(&page.url, &picture("shop-chromium.png"), &dirs[0]).await?;
    // Firefox prints no page; what it asked for is told by who answered: reviews v2 served one request more.
    let served = || async {
        let labels = [
            ("reporter", "destination"),
            ("destination_app", "espresso-shop-reviews"),
            ("destination_version", "v2"),
        ];
        shop.metrics().await.map(|m| m.sum("istio_requests_total", &labels)).unwrap_or_default()
    };
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = served().await;
    Browser::Firefox(firefox).screenshot(&page.url, &picture("shop-firefox.png"), &dirs[1]).await?;
    let more = || async { served().await > before };
    until(Duration::from_secs(15), more, || "Firefox's request never reached reviews v2".to_owned()).await?;
    shop.undo(browser).await
}

/// Where the pictures are left for people.
fn pictures() -> PathBuf {
    let target = peers::bin_dir();
    target.parent().unwrap_or(Path::new(".")).join("pictures")
}
