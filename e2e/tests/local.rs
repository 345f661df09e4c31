//! The local mesh as people use it: the whole talk with both sets of YAML, and `up` as a process.
//!
//! In: the real binaries. Out: one trial per story. Kept true: what cannot run here is ignored with its reason, never passed; trials
//! run one after the other, since each is a whole mesh. Not here: what each step looks at (`e2e::scenarios`).

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use e2e::{
    http::Call,
    node::{Node, Options, network::Network, objects::EGRESS_PORT},
    peers,
    scenarios::{Nobody, STEPS, Shop, Source, run, shop::author_files},
};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let author = author_files().is_some();
    let named = |name: &str| match author {
        true => name.to_owned(),
        false => format!("{name} (ignored: ../shared/espresso-shop is not there)"),
    };
    let name = named("the_talk_with_the_authors_own_files");
    let injected = named("the_authors_manifest_gets_four_proxies_and_keeps_its_services");
    let trials = vec![
        Trial::test("the_talk_with_our_own_files", || story(talk(Source::Own))),
        Trial::test(name, || story(talk(Source::Author))).with_ignored_flag(!author),
        Trial::test(injected, || told(manifest)).with_ignored_flag(!author),
        Trial::test("a_second_instance_says_why_and_sigterm_leaves_nothing_behind", || told(up_twice)),
        Trial::test("a_killed_node_takes_its_processes_with_it", || told(killed)),
    ];
    libtest_mimic::run(&arguments, trials).exit();
}

fn told(story: impl FnOnce() -> anyhow::Result<()>) -> Result<(), Failed> {
    story().map_err(|e| Failed::from(format!("{e:#}")))
}

fn story(story: impl Future<Output = anyhow::Result<()>>) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(story).map_err(|e| Failed::from(format!("{e:#}")))
}

async fn talk(source: Source) -> anyhow::Result<()> {
    peers::build()?;
    let dir = tempfile::Builder::new().prefix("crema-test-").tempdir()?;
    let options = Options {
        dir: dir.path().to_path_buf(),
        net: None,
        bin: peers::bin_dir(),
        sampling: 100.0,
        progress: Arc::new(|text| println!("{text}")),
    };
    let node = Node::start(options).await?;
    let end = steps(&node, source).await;
    node.stop().await;
    if end.is_err() {
        println!("logs: {}", dir.keep().join("logs").display());
    }
    end
}

async fn steps(node: &Node, source: Source) -> anyhow::Result<()> {
    let shop = Shop::open(node.clone(), source).await?;
    let mut failed = Vec::new();
    for step in &STEPS {
        let row = run(&shop, step, &mut Nobody).await?;
        let before = row.before.as_ref().map_or("-", |b| b.text.as_str());
        println!(
            "{} {}: before: {before}; after: {}",
            if row.passed { "ok  " } else { "FAIL" },
            step.id,
            row.after.text
        );
        if !row.passed {
            failed.push(format!(
                "{}: expected {}; before {before}; after {}",
                step.id, step.expected, row.after.text
            ));
        }
        if step.id == "all-v1" {
            outside_sees_both_versions(node).await?;
            tunnels_lead_into_the_mesh_only(node).await?;
        }
    }
    ensure!(failed.is_empty(), "{} steps failed:\n{}", failed.len(), failed.join("\n"));
    Ok(())
}

/// `injector inject` on the author's manifest: what holds no pod comes out byte for byte.
fn manifest() -> anyhow::Result<()> {
    peers::build()?;
    let file = author_files().context("ignored without them")?.join("kubernetes/espresso-shop.yaml");
    let out = Command::new(peers::bin_dir().join("injector"))
        .env_clear()
        .args(["inject", "-f"])
        .arg(&file)
        .output()?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let (before, after) = (std::fs::read_to_string(&file)?, String::from_utf8(out.stdout)?);
    let services: Vec<_> = before.split("---\n").filter(|part| part.contains("kind: Service\n")).collect();
    ensure!(services.len() == 3, "{} Services", services.len());
    for service in services {
        ensure!(after.contains(service), "a Service was changed: {service}");
    }
    let proxies = after.matches("name: istio-proxy").count();
    ensure!(proxies == 4, "{proxies} proxies");
    Ok(())
}

/// VirtualServices bind callers in the mesh; a caller from outside reaches whatever the Service selects.
async fn outside_sees_both_versions(node: &Node) -> anyhow::Result<()> {
    let address =
        node.outside("default", "espresso-shop-reviews-svc").context("reviews has no port outside")?;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..10 {
        seen.insert(Call::get(format!("http://{address}/api/version")).send().await?.body);
    }
    ensure!(seen.iter().eq(["v1", "v2"]), "from outside: {seen:?}");
    Ok(())
}

/// CONNECT: from an application to services through its own sidecar, never to what else listens on this host, and
/// not at other ports.
async fn tunnels_lead_into_the_mesh_only(node: &Node) -> anyhow::Result<()> {
    let pods = node.pods_of("espresso-shop-web");
    let pod = pods.first().context("a web pod")?;
    let own = SocketAddr::from((pod.ip, EGRESS_PORT));
    let (status, mut tunnel) = connect(own, "espresso-shop-product-catalog-svc:8091").await?;
    ensure!(status == 200, "CONNECT to the catalog: {status}");
    let request = "GET /api/products/1 HTTP/1.1\r\nhost: espresso-shop-product-catalog-svc\r\nconnection: close\r\n\r\n";
    tunnel.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    tunnel.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "through the tunnel: {answer}");

    let app = pod.ports.first().and_then(|port| port.app).context("an application's port")?;
    for forbidden in [format!("127.0.0.1:{app}"), format!("{}:15000", pod.ip)] {
        let (status, _) = connect(own, &forbidden).await?;
        ensure!(status != 200, "CONNECT to {forbidden} is let through");
    }
    // Only what applications use as their proxy tunnels; a pod's port does not.
    let port = pod.ports.first().context("the web pod's port")?.bound;
    let (status, _) =
        connect(SocketAddr::from((pod.ip, port)), "espresso-shop-product-catalog-svc:8091").await?;
    ensure!(status == 405, "CONNECT at a pod's port: {status}");
    Ok(())
}

/// Sends a CONNECT: the status, and the tunnel.
async fn connect(proxy: SocketAddr, target: &str) -> anyhow::Result<(u16, TcpStream)> {
    let mut stream = TcpStream::connect(proxy).await?;
    stream.write_all(format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await.with_context(|| format!("CONNECT {target}: no whole answer"))?;
        head.push(byte);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let status = text.split(' ').nth(1).and_then(|word| word.parse().ok());
    Ok((status.with_context(|| format!("CONNECT {target}: {text}"))?, stream))
}

/// `e2e up` as a process, until dropped.
struct Up {
    child: Child,
    net: u8,
    dir: tempfile::TempDir,
}

impl Drop for Up {
    fn drop(&mut self) {
        // Already gone is as good as killed.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn command(dir: &Path, net: u8) -> Command {
    let mut command = Command::new(peers::bin_dir().join("e2e"));
    command
        .args(["up", "--net", &net.to_string(), "--dir"])
        .arg(dir)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn up() -> anyhow::Result<Up> {
    peers::build()?;
    // Free now; whoever takes it in between makes the start fail loudly.
    let net = Network::take(None)?.number();
    let dir = tempfile::Builder::new().prefix("crema-up-").tempdir()?;
    let mut child = command(dir.path(), net).spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("piped")?).lines();
    let up = Up { child, net, dir };
    let mut said = Vec::new();
    while let Some(line) = lines.next() {
        let line = line?;
        if line.contains("The mesh is up") {
            // Somebody has to read on, or the pipe fills.
            std::thread::spawn(move || lines.for_each(drop));
            return Ok(up);
        }
        said.push(line);
    }
    bail!("`e2e up` ended: {}", said.join("\n"))
}

/// Processes that mention `dir` in their command line or environment.
fn processes_of(dir: &Path) -> usize {
    let text = dir.display().to_string();
    let here = std::process::id().to_string();
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter(|entry| entry.file_name().to_string_lossy() != here)
        .filter(|entry| {
            let mentions = |file| {
                let bytes = std::fs::read(entry.path().join(file)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).contains(&text)
            };
            mentions("cmdline") || mentions("environ")
        })
        .count()
}

fn gone(dir: &Path) -> anyhow::Result<()> {
    let started = Instant::now();
    while processes_of(dir) > 0 {
        ensure!(started.elapsed() < Duration::from_secs(20), "{} processes are left", processes_of(dir));
        std::thread::park_timeout(Duration::from_millis(100));
    }
    Ok(())
}

fn up_twice() -> anyhow::Result<()> {
    let mut first = up()?;
    ensure!(processes_of(first.dir.path()) > 8, "only {} processes", processes_of(first.dir.path()));
    let other = tempfile::tempdir()?;
    let second = command(other.path(), first.net).output()?;
    let said = String::from_utf8_lossy(&second.stderr);
    ensure!(
        !second.status.success() && said.contains("is taken by a local mesh in"),
        "the second said {said}"
    );
    let pid = rustix::process::Pid::from_child(&first.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let status = first.child.wait()?;
    ensure!(status.success(), "after SIGTERM: {status}");
    gone(first.dir.path())
}

fn killed() -> anyhow::Result<()> {
    let mut up = up()?;
    up.child.kill()?;
    up.child.wait()?;
    gone(up.dir.path())
}
