//! Real backends for tests: Prometheus, Zipkin, Chromium and Firefox, started on loopback and asked for what they saw.
//!
//! In: programs found by [`crate::peers`]. Out: query results and pages. Kept true: every process is killed and reaped with its value.
//! Not here: what the answers should be; that stands in the tests.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::peers;

/// A process that is killed and reaped when it goes out of scope.
#[derive(Debug)]
pub struct Running(std::process::Child);

impl Running {
    /// Starts `command` with its output appended to `log`. It dies with the thread that calls this, however that ends, where the `e2e`
    /// binary is there to ask the kernel for that.
    ///
    /// # Errors
    /// When the log cannot be made or the program does not start.
    pub fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        // Appending: a program may open /dev/stdout once more, e.g. for its access log, and would overwrite its own lines.
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log);
        let file = file.with_context(|| format!("creating {}", log.display()))?;
        let said = format!("starting {command:?}");
        let mut staged = peers::program("e2e").ok().map(|first| behind(&first, command));
        let child = staged
            .as_mut()
            .unwrap_or(command)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| said)?;
        Ok(Self(child))
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

/// The same command behind `e2e exec-child`, which asks for a signal at the parent's death and becomes the program.
fn behind(first_stage: &Path, command: &Command) -> Command {
    let mut staged = Command::new(first_stage);
    staged.args(["exec-child", "--parent", &std::process::id().to_string(), "--"]);
    staged.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => staged.env(name, value),
            None => staged.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        staged.current_dir(dir);
    }
    staged
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone is as good as killed.
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// GET `path` from a server on loopback: status and body.
///
/// # Errors
/// When there is no answer within ten seconds.
pub async fn get(server: SocketAddr, path: &str) -> anyhow::Result<(u16, Bytes)> {
    let exchange = async {
        let stream = TcpStream::connect(server).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request =
            Request::builder().uri(path).header("host", server.to_string()).body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        driver.abort();
        anyhow::Ok((status, body))
    };
    let answer = tokio::time::timeout(Duration::from_secs(10), exchange).await;
    answer
        .with_context(|| format!("{server}{path}: no answer within 10 s"))?
        .with_context(|| format!("{server}{path}"))
}

/// A free port of 127.0.0.1. Taken by whoever binds it next, so bind it at once.
///
/// # Errors
/// When there is none.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

async fn until_ready(server: SocketAddr, path: &str, seconds: u32, log: &Path) -> anyhow::Result<()> {
    for _ in 0..seconds * 5 {
        if matches!(get(server, path).await, Ok((200, _))) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let tail: Vec<_> = text.lines().rev().take(10).collect();
    bail!("{server}{path} is not ready after {seconds} s; the end of its log: {tail:#?}")
}

/// A Prometheus server that scrapes the given targets each second.
#[derive(Debug)]
pub struct Prometheus {
    address: SocketAddr,
    _process: Running,
}

impl Prometheus {
    /// Starts it with its data in `dir`; `targets` are `host:port` with path `/metrics`.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start(program: &Path, dir: &Path, targets: &[String]) -> anyhow::Result<Self> {
        let config = dir.join("prometheus.yaml");
        let targets = serde_json::to_string(targets)?;
        let text = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n- job_name: mesh\n  static_configs: \
             [{{targets: {targets}}}]\n"
        );
        std::fs::write(&config, text)?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let log = dir.join("prometheus.log");
        let process = Running::start(
            Command::new(program)
                .arg(format!("--config.file={}", config.display()))
                .arg(format!("--storage.tsdb.path={}", dir.join("prometheus-data").display()))
                .arg(format!("--web.listen-address={address}")),
            &log,
        )?;
        until_ready(address, "/-/ready", 60, &log).await?;
        Ok(Self { address, _process: process })
    }

    /// An instant query: labels and value of every series in the answer.
    ///
    /// # Errors
    /// When Prometheus refuses the expression.
    pub async fn query(&self, expression: &str) -> anyhow::Result<Vec<(Value, f64)>> {
        let encoded: String = expression.bytes().map(|b| format!("%{b:02X}")).collect();
        let (status, body) = get(self.address, &format!("/api/v1/query?query={encoded}")).await?;
        ensure!(status == 200, "{expression}: status {status}: {}", String::from_utf8_lossy(&body));
        let answer: Value = serde_json::from_slice(&body)?;
        let result = answer["data"]["result"].as_array().context("a result list")?;
        let series = result.iter().map(|series| {
            let value = series["value"][1].as_str().and_then(|v| v.parse().ok()).unwrap_or(f64::NAN);
            (series["metric"].clone(), value)
        });
        Ok(series.collect())
    }
}

/// A Zipkin server with storage in memory.
#[derive(Debug)]
pub struct Zipkin {
    /// Where it takes spans (`/api/v2/spans`) and answers queries.
    pub address: SocketAddr,
    _process: Running,
}

impl Zipkin {
    /// Starts the server's exec jar with the Java that is installed.
    ///
    /// # Errors
    /// When it does not become ready within two minutes.
    pub async fn start(jar: &Path, dir: &Path) -> anyhow::Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let log = dir.join("zipkin.log");
        let process = Running::start(
            Command::new("java")
                .args(["-Xmx256m", "-Darmeria.useOpenSsl=false", "-jar"])
                .arg(jar)
                .env("QUERY_PORT", address.port().to_string())
                .env("SERVER_ADDRESS", "127.0.0.1")
                .env("STORAGE_TYPE", "mem"),
            &log,
        )?;
        until_ready(address, "/health", 120, &log).await?;
        Ok(Self { address, _process: process })
    }

    /// The spans of one trace, once Zipkin has at least `spans` of them.
    ///
    /// # Errors
    /// When they have not arrived within 30 s.
    pub async fn trace(&self, id: &str, spans: usize) -> anyhow::Result<Vec<Value>> {
        let mut last = Vec::new();
        for _ in 0..150 {
            if let (200, body) = get(self.address, &format!("/api/v2/trace/{id}")).await? {
                last = serde_json::from_slice::<Vec<Value>>(&body)?;
                if last.len() >= spans {
                    return Ok(last);
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        bail!("trace {id} has {} of {spans} spans after 30 s", last.len())
    }
}

/// A browser without a screen.
#[derive(Debug, Clone)]
pub enum Browser {
    /// Debian's Chromium.
    Chromium(PathBuf),
    /// Debian's Firefox ESR.
    Firefox(PathBuf),
}

impl Browser {
    /// Opens `url` and writes what a person would see to `picture` (PNG). `dir` holds the profile.
    ///
    /// # Errors
    /// When the browser fails, or leaves no picture within a minute.
    pub async fn screenshot(&self, url: &str, picture: &Path, dir: &Path) -> anyhow::Result<()> {
        let profile = dir.join("profile");
        std::fs::create_dir_all(&profile)?;
        let mut command = match self {
            Self::Chromium(program) => {
                let mut command = chromium(program, &profile);
                command
                    .arg("--window-size=1100,900")
                    .arg(format!("--screenshot={}", picture.display()))
                    .arg(url);
                command
            }
            Self::Firefox(program) => {
                let mut command = Command::new(program);
                command
                    .args(["--headless", "--no-remote", "--window-size=1100,900", "--profile"])
                    .arg(&profile)
                    .arg("--screenshot")
                    .arg(picture)
                    .arg(url)
                    .env("HOME", dir)
                    .env("MOZ_DISABLE_CONTENT_SANDBOX", "1");
                command
            }
        };
        run(&mut command, dir).await?;
        ensure!(picture.is_file(), "{command:?} left no picture; see {}", dir.join("browser.log").display());
        Ok(())
    }

    /// Opens `url` in Chromium and returns the page as it stands after its scripts ran. Firefox has no such switch.
    ///
    /// # Errors
    /// When the browser fails, or is not Chromium.
    pub async fn page(&self, url: &str, dir: &Path) -> anyhow::Result<String> {
        let Self::Chromium(program) = self else { bail!("only Chromium prints a page") };
        let profile = dir.join("profile");
        std::fs::create_dir_all(&profile)?;
        run(chromium(program, &profile).arg("--dump-dom").arg(url), dir).await?;
        Ok(std::fs::read_to_string(dir.join("browser.log"))?)
    }
}

fn chromium(program: &Path, profile: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg(format!("--user-data-dir={}", profile.display()));
    command
}

/// Runs a browser to its end, at most a minute; its output goes to `browser.log`.
async fn run(command: &mut Command, dir: &Path) -> anyhow::Result<()> {
    let mut process = Running::start(command, &dir.join("browser.log"))?;
    for _ in 0..300 {
        if let Some(status) = process.0.try_wait()? {
            ensure!(status.success(), "{command:?} ended with {status}");
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    bail!("{command:?} did not end within 60 s")
}
