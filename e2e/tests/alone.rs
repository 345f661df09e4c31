//! The stories of docs/a-la-carte.md: each binary without the other four, with the page's own commands and files.
//!
//! In: docs/a-la-carte.md, docs/examples/alone. Out: one trial per story; what is not installed is ignored, with the reason. Kept true: a
//! command that is run here stands on the page word for word; only its ports are others. Not here: the binaries together (`local`).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};
use e2e::{
    backends::{Running, free_port},
    http::{Call, Reply},
    node::until,
    peers,
};
use libtest_mimic::{Arguments, Failed, Trial};

/// Ports that the page uses. None is part of another number in the files.
const PORTS: [&str; 16] = [
    "9101", "9102", "15010", "15014", "8080", "8090", "15000", "8070", "9091", "42422", "9411", "15024",
    "8060", "15034", "15035", "8443",
];
const ECHOES: [&str; 2] = [
    "espresso-shop echo --listen 127.0.0.1:9101 --service-version v1",
    "espresso-shop echo --listen 127.0.0.1:9102 --service-version v2",
];

fn main() {
    let arguments = Arguments::from_args();
    let envoy = || peers::envoy().map_or(Some("envoy"), |_| None);
    let openssl = || peers::installed("openssl").map_or(Some("openssl"), |_| None);
    let trials = vec![
        trial("pilot_drives_a_plain_envoy", envoy(), || {
            Box::pin(routed("envoy -c docs/examples/alone/ads.yaml --use-dynamic-base-id"))
        }),
        trial("proxy_takes_the_envoys_bootstrap", None, || {
            Box::pin(routed("proxy run docs/examples/alone/ads.yaml"))
        }),
        trial("proxy_serves_from_one_file", None, || Box::pin(one_file())),
        trial("citadel_certifies_an_envoy", envoy().or(openssl()), || Box::pin(certified())),
        trial("mixer_counts_and_refuses_for_an_envoy", envoy(), || Box::pin(observed())),
        trial("injector_adds_what_the_template_says", None, || Box::pin(injected())),
    ];
    libtest_mimic::run(&arguments, trials).exit();
}

type Story = std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>>>>;

fn trial(name: &str, missing: Option<&str>, story: impl FnOnce() -> Story + Send + 'static) -> Trial {
    let name = missing.map_or_else(|| name.to_owned(), |what| format!("{name} (ignored: no {what})"));
    let go = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(story()).map_err(|e| Failed::from(format!("{e:#}")))
    };
    Trial::test(name, go).with_ignored_flag(missing.is_some())
}

/// A copy of the page's files in a directory of its own, with ports that are free.
struct Stage {
    page: String,
    ports: Vec<(String, String)>,
    running: Vec<Running>,
    dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> anyhow::Result<Self> {
        peers::build()?;
        let page = fs::read_to_string(peers::root().join("docs/a-la-carte.md"))?;
        let mut ports = Vec::new();
        for port in PORTS {
            ports.push((port.to_owned(), free_port()?.to_string()));
        }
        let stage = Self { page, ports, running: Vec::new(), dir: tempfile::tempdir()? };
        fs::create_dir(stage.dir.path().join("alone"))?;
        stage.copy(Path::new("docs/examples/alone"))?;
        Ok(stage)
    }

    fn copy(&self, at: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(self.dir.path().join(at))?;
        for entry in fs::read_dir(peers::root().join(at))? {
            let entry = entry?;
            let path = at.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                self.copy(&path)?;
                continue;
            }
            let target = self.dir.path().join(&path);
            fs::copy(entry.path(), &target)?;
            fs::write(&target, self.other_ports(&fs::read_to_string(entry.path())?))?;
        }
        Ok(())
    }

    fn other_ports(&self, text: &str) -> String {
        // In two steps: a free port may look like one that is still to be replaced.
        let mark = |n: usize| format!("\u{1}{n}\u{1}");
        let marked = self.ports.iter().enumerate();
        let marked =
            marked.fold(text.to_owned(), |text, (n, (from, _))| text.replace(from.as_str(), &mark(n)));
        self.ports.iter().enumerate().fold(marked, |text, (n, (_, to))| text.replace(&mark(n), to))
    }

    fn url(&self, url: &str) -> String {
        self.other_ports(url)
    }

    fn command(&self, line: &str) -> anyhow::Result<Command> {
        ensure!(self.page.contains(line), "docs/a-la-carte.md has no command `{line}`");
        let line = self.other_ports(line);
        let mut words = line.split_whitespace();
        let name = words.next().context("an empty command")?;
        let program: PathBuf = match name {
            "envoy" => peers::envoy().context("envoy is not installed")?,
            script if script.contains('/') => self.dir.path().join(script),
            ours => peers::program(ours)?,
        };
        let mut command = Command::new(program);
        command.args(words).current_dir(self.dir.path());
        Ok(command)
    }

    /// Starts a command of the page, to run until the story ends.
    fn start(&mut self, line: &str) -> anyhow::Result<()> {
        let log = self.dir.path().join(format!("{}.log", self.running.len()));
        let mut command = self.command(line)?;
        self.running.push(Running::start(&mut command, &log).with_context(|| line.to_owned())?);
        Ok(())
    }

    /// Runs a command of the page to its end; what it printed.
    fn run(&self, line: &str) -> anyhow::Result<String> {
        let output = self.command(line)?.output().with_context(|| line.to_owned())?;
        ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Waits for an answer that is wanted.
    async fn answered(&self, call: Call, wanted: impl Fn(&Reply) -> bool) -> anyhow::Result<()> {
        let wanted = &wanted;
        let now = || async { call.send().await.is_ok_and(|reply| wanted(&reply)) };
        let logs = || {
            let text = |n| fs::read_to_string(self.dir.path().join(format!("{n}.log"))).unwrap_or_default();
            (0..self.running.len()).map(text).collect::<String>()
        };
        until(Duration::from_secs(30), now, || {
            format!("{} does not answer as it should\n{}", call.url, logs())
        })
        .await
    }
}

fn version(reply: &Reply, version: &str) -> bool {
    reply.status == 200 && reply.body.contains(&format!("\"version\":\"{version}\""))
}

async fn routed(proxy: &str) -> anyhow::Result<()> {
    let mut stage = Stage::new()?;
    for echo in ECHOES {
        stage.start(echo)?;
    }
    stage.start("pilot serve --config docs/examples/alone/mesh --xds-plaintext 127.0.0.1:15010 --admin 127.0.0.1:15014")?;
    stage.start(proxy)?;
    let shop = stage.url("http://127.0.0.1:8080/");
    stage.answered(Call::get(&shop), |r| version(r, "v1")).await?;
    stage.answered(Call::get(&shop).header("end-user", "anna"), |r| version(r, "v2")).await?;
    let status = stage.run("pilot status --admin 127.0.0.1:15014")?;
    ensure!(status.contains("default/edge-1") && status.contains("SYNCED"), "{status}");
    let file = stage.dir.path().join("docs/examples/alone/mesh/reviews.yaml");
    fs::write(&file, fs::read_to_string(&file)?.replace("exact: anna", "exact: bertha"))?;
    stage.answered(Call::get(&shop).header("end-user", "anna"), |r| version(r, "v1")).await
}

async fn one_file() -> anyhow::Result<()> {
    let mut stage = Stage::new()?;
    for echo in ECHOES {
        stage.start(echo)?;
    }
    stage.start("proxy run docs/examples/alone/static.yaml")?;
    let url = stage.url("http://127.0.0.1:8090");
    for wanted in ["v1", "v2"] {
        stage.answered(Call::get(format!("{url}/")), |r| version(r, wanted)).await?;
    }
    stage.answered(Call::get(format!("{url}/v2")), |r| version(r, "v2")).await?;
    stage
        .answered(Call::get(stage.url("http://127.0.0.1:15000/config_dump")), |r| r.body.contains("\"web\""))
        .await
}

async fn certified() -> anyhow::Result<()> {
    let mut stage = Stage::new()?;
    stage.run("docs/examples/alone/token alone shop web")?;
    stage.start(
        "citadel serve --listen 127.0.0.1:8060 --ca-dir alone/ca --token-keys alone/keys.json --root-out alone/root-cert.pem --admin 127.0.0.1:15034",
    )?;
    let roots = stage.dir.path().join("alone/root-cert.pem");
    until(Duration::from_secs(20), || async { roots.is_file() }, || "citadel writes no roots".to_owned())
        .await?;
    stage.start(
        "citadel agent --socket alone/sds.sock --ca-addr 127.0.0.1:8060 --token-file alone/token --root-cert-file alone/root-cert.pem --admin 127.0.0.1:15035",
    )?;
    let socket = stage.dir.path().join("alone/sds.sock");
    until(Duration::from_secs(20), || async { socket.exists() }, || "the agent opens no socket".to_owned())
        .await?;
    stage.start("envoy -c docs/examples/alone/tls.yaml --use-dynamic-base-id")?;
    let shown = || {
        let mut client = Command::new("openssl");
        client.args(["s_client", "-verify_return_error", "-showcerts", "-CAfile"]).arg(&roots);
        client.arg("-connect").arg(stage.url("127.0.0.1:8443")).stdin(std::process::Stdio::null());
        let chain = client.output().ok().filter(|o| o.status.success())?.stdout;
        let pem = stage.dir.path().join("shown.pem");
        fs::write(&pem, chain).ok()?;
        let mut reader = Command::new("openssl");
        let text =
            reader.args(["x509", "-noout", "-ext", "subjectAltName", "-in"]).arg(&pem).output().ok()?;
        String::from_utf8(text.stdout).ok()
    };
    let certified =
        || async { shown().is_some_and(|t| t.contains("URI:spiffe://cluster.local/ns/shop/sa/web")) };
    until(Duration::from_secs(30), certified, || {
        "the Envoy shows no certificate of ns/shop/sa/web".to_owned()
    })
    .await
}

async fn observed() -> anyhow::Result<()> {
    let mut stage = Stage::new()?;
    stage.start(ECHOES[0])?;
    stage.start(
        "mixer serve --config docs/examples/alone/rules --listen 127.0.0.1:9091 --prometheus 127.0.0.1:42422 --zipkin 127.0.0.1:9411 --admin 127.0.0.1:15024",
    )?;
    stage.start("envoy -c docs/examples/alone/observed.yaml --use-dynamic-base-id")?;
    let web = stage.url("http://127.0.0.1:8070");
    stage.answered(Call::get(format!("{web}/hello")), |r| r.status == 200).await?;
    let refused =
        |r: &Reply| r.status == 403 && r.body == "PERMISSION_DENIED:refuse.handler.istio-system:not here";
    stage.answered(Call::get(format!("{web}/admin")), refused).await?;
    let counted = |r: &Reply| {
        let of = |code: &str| {
            r.body.lines().any(|l| {
                l.starts_with("istio_requests_total") && l.contains(&format!("response_code=\"{code}\""))
            })
        };
        of("200") && of("403")
    };
    stage.answered(Call::get(stage.url("http://127.0.0.1:42422/metrics")), counted).await
}

async fn injected() -> anyhow::Result<()> {
    let stage = Stage::new()?;
    let made = stage.run(
        "injector inject -f docs/examples/alone/deployment.yaml --template docs/examples/alone/template.yaml --image example/collector:1",
    )?;
    for wanted in
        ["image: example/collector:1", "--workload=web", "collected: \"true\"", "image: example/web"]
    {
        ensure!(made.contains(wanted), "no `{wanted}` in\n{made}");
    }
    ensure!(!made.contains("istio-proxy"), "a proxy was added\n{made}");
    Ok(())
}
