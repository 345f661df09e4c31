//! One mesh to measure: pilot, citadel and mixer, and under them the same pairs of sidecars twice: Crema's and Envoy's.
//!
//! In: a [`Setup`]. Out: a [`World`] whose proxies have taken their configuration and answer. Kept true: both kinds of proxy read the same
//! directory through the same pilot from the same bootstrap; proxies run on a core of their own. Not here: the load (`generate`).

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;

use super::{
    config,
    process::{Child, OTHER_CORE, PROXY_CORE},
};
use crate::{backends::free_port, node::tokens::Mint};

/// Second byte of the addresses that benchmarks use: `127.203.<run>.x`.
const NET: u8 = 203;
/// Port of a sidecar for outgoing HTTP.
pub const EGRESS: u16 = 15080;
/// Port of a sidecar for an outgoing byte stream.
pub const STREAM: u16 = 9000;
/// Port of a sidecar for requests to its application.
pub const INBOUND: u16 = 8088;
/// Port of every HTTP/1.1 service, and of the application.
pub const HTTP: u16 = 8080;
/// Port of the HTTP/2 and gRPC service, and of the application.
pub const GRPC: u16 = 8081;

/// What the mesh of a row looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct Setup {
    /// Services with an HTTP port, a retry policy and a timeout each.
    pub services: usize,
    /// Each request is reported to mixer: natively by Crema, through the access log service by Envoy.
    pub telemetry: bool,
    /// Percentage of requests that are traced.
    pub sampling: f64,
    /// An access log in a file.
    pub access_log: bool,
    /// Mutual TLS between sidecars, strictly.
    pub mtls: bool,
    /// Rules of an `AuthorizationPolicy` at the servers; the last one lets the client in. None without.
    pub rbac: usize,
    /// More of Istio's YAML; `TARGET` is the service that the load goes to.
    pub yaml: &'static str,
}

impl Setup {
    /// What "full function" means: 200 services, stats, telemetry, tracing headers, retry policy.
    pub const FULL: Self = Self {
        services: 200,
        telemetry: true,
        sampling: 0.0,
        access_log: false,
        mtls: false,
        rbac: 0,
        yaml: "",
    };
}

/// Where the programs of a run lie.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Directory of our binaries.
    pub bin: PathBuf,
    /// A real Envoy, where there is one.
    pub envoy: Option<PathBuf>,
    /// HAProxy, where it is installed.
    pub haproxy: Option<PathBuf>,
    /// nginx, which is also the application.
    pub nginx: PathBuf,
}

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// Our proxy.
    Crema,
    /// Envoy 1.40.
    Envoy,
    /// HAProxy as an HTTP proxy.
    Haproxy,
    /// HAProxy passing bytes.
    HaproxyTcp,
    /// nginx as an HTTP proxy.
    Nginx,
}

impl Who {
    /// As it stands in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Crema => "Crema",
            Self::Envoy => "Envoy",
            Self::Haproxy => "HAProxy http",
            Self::HaproxyTcp => "HAProxy tcp",
            Self::Nginx => "nginx",
        }
    }
}

/// A running mesh with its competitors.
#[derive(Debug)]
pub struct World {
    /// Addresses of this run.
    pub places: Places,
    children: Vec<(String, Child)>,
    /// The directory that pilot watches.
    pub config: PathBuf,
    /// Directory of our binaries.
    pub bin: PathBuf,
    _dir: tempfile::TempDir,
}

/// Addresses and directories of one run.
#[derive(Debug, Clone)]
pub struct Places {
    dir: PathBuf,
    run: u8,
    /// The application's port on 127.0.0.1, which is where a sidecar reaches it.
    pub app: u16,
}

impl Places {
    /// The address with last byte `host`.
    #[must_use]
    pub fn ip(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, NET, self.run, host)
    }

    /// Address and port as text.
    #[must_use]
    pub fn at(&self, host: u8, port: u16) -> SocketAddr {
        SocketAddr::from((self.ip(host), port))
    }
}

/// Last bytes of addresses.
pub mod host {
    /// pilot.
    pub const PILOT: u8 = 1;
    /// citadel.
    pub const CITADEL: u8 = 2;
    /// mixer.
    pub const MIXER: u8 = 3;
    /// The application.
    pub const APP: u8 = 4;
    /// Our client and server sidecars.
    pub const CREMA: [u8; 2] = [11, 12];
    /// Envoy's.
    pub const ENVOY: [u8; 2] = [21, 22];
    /// HAProxy.
    pub const HAPROXY: u8 = 31;
    /// nginx as a proxy.
    pub const NGINX: u8 = 32;
}

impl World {
    /// Starts everything and waits until each competitor answers.
    ///
    /// # Errors
    /// When a process does not start or does not answer within a minute; the error holds the end of its log.
    pub async fn start(programs: &Programs, setup: &Setup) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("crema-bench-").tempdir()?;
        let run = u8::try_from(std::process::id() % 250)? + 1;
        let places = Places { dir: dir.path().to_path_buf(), run, app: free_port()? };
        let config = dir.path().join("config");
        fs::create_dir(&config)?;
        fs::write(config.join("mesh.yaml"), config::mesh(&places, setup))?;
        let mut world = Self { places, children: Vec::new(), config, bin: programs.bin.clone(), _dir: dir };
        world.application(programs)?;
        world.control_plane(programs, setup).await?;
        world.plain(programs)?;
        for (index, role) in ["client", "server"].into_iter().enumerate() {
            world.crema(programs, setup, role, host::CREMA[index])?;
            if programs.envoy.is_some() {
                world.envoy(programs, setup, role, host::ENVOY[index])?;
            }
        }
        world.wait(programs).await?;
        Ok(world)
    }

    /// Process ids of those who work for `who`: one proxy, or client and server.
    #[must_use]
    pub fn pids(&self, who: Who, pair: bool) -> Vec<u32> {
        let names: &[&str] = match (who, pair) {
            (Who::Crema, false) => &["crema-client"],
            (Who::Crema, true) => &["crema-client", "crema-server"],
            (Who::Envoy, false) => &["envoy-client"],
            (Who::Envoy, true) => &["envoy-client", "envoy-server"],
            (Who::Haproxy | Who::HaproxyTcp, _) => &["haproxy"],
            (Who::Nginx, _) => &["nginx"],
        };
        self.named(names)
    }

    /// Process ids by name.
    #[must_use]
    pub fn named(&self, names: &[&str]) -> Vec<u32> {
        self.children
            .iter()
            .filter(|(name, _)| names.contains(&name.as_str()))
            .map(|(_, c)| c.pid())
            .collect()
    }

    /// True when this competitor runs.
    #[must_use]
    pub fn has(&self, who: Who) -> bool {
        !self.pids(who, false).is_empty()
    }

    fn start_child(
        &mut self,
        name: &str,
        core: &str,
        program: &Path,
        args: Vec<String>,
    ) -> anyhow::Result<()> {
        let child = Child::start(core, &self.places.dir.join(name), program, args)?;
        self.children.push((name.to_owned(), child));
        Ok(())
    }

    /// Writes a file into a process's directory; its path.
    fn file(&self, name: &str, file: &str, text: &str) -> anyhow::Result<String> {
        let dir = self.places.dir.join(name);
        fs::create_dir_all(&dir)?;
        let path = dir.join(file);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    fn application(&mut self, programs: &Programs) -> anyhow::Result<()> {
        let text = include_str!("backend.conf").replace("ADDRESS", &self.places.ip(host::APP).to_string());
        let text = text.replace("LOCAL", &format!("127.0.0.1:{}", self.places.app));
        let path = self.file("app", "nginx.conf", &text)?;
        let files = self.places.dir.join("app/files");
        fs::create_dir_all(files.join("bench.Echo"))?;
        for (name, size) in [("1k", 1 << 10), ("64k", 64 << 10), ("10m", 10 << 20)] {
            fs::write(files.join(name), vec![b'x'; size])?;
        }
        // A gRPC frame: not compressed, then the length of the message.
        for (name, size) in [("Unary", 100_u32), ("Stream", 1 << 20)] {
            let mut frame = vec![0];
            frame.extend(size.to_be_bytes());
            frame.resize(5 + usize::try_from(size)?, b'x');
            fs::write(files.join("bench.Echo").join(name), frame)?;
        }
        let prefix = self.places.dir.join("app").display().to_string();
        let args = ["-p", &prefix, "-c", &path].map(String::from).to_vec();
        self.start_child("app", OTHER_CORE, &programs.nginx, args)
    }

    async fn control_plane(&mut self, programs: &Programs, setup: &Setup) -> anyhow::Result<()> {
        let mint = Mint::new()?;
        let keys = self.file("secrets", "token-keys.json", &mint.jwks().to_string())?;
        for (namespace, account) in
            [("istio-system", "pilot"), ("istio-system", "mixer"), ("default", "bench")]
        {
            let token = mint.token(namespace, account, account, account)?;
            self.file("secrets", &format!("{account}.token"), &token)?;
        }
        let config = self.config.display().to_string();
        let at = |host, port| self.places.at(host, port).to_string();
        let citadel = words(&[
            ("serve", ""),
            ("--listen", &at(host::CITADEL, 8060)),
            ("--admin", &at(host::CITADEL, 8061)),
            ("--token-keys", &keys),
            ("--state-dir", &self.secret("citadel")),
            ("--root-cert-out", &self.secret("root-cert.pem")),
        ]);
        let mut pilot = words(&[
            ("serve", ""),
            ("--config", &config),
            ("--xds-plaintext", &at(host::PILOT, 15010)),
            ("--admin", &at(host::PILOT, 15014)),
        ]);
        let mut mixer = words(&[
            ("serve", ""),
            ("--config", &config),
            ("--listen", &at(host::MIXER, 9091)),
            ("--prometheus", &at(host::MIXER, 42422)),
            ("--zipkin", &at(host::MIXER, 9411)),
            ("--admin", &at(host::MIXER, 9093)),
        ]);
        pilot.extend(self.identity("pilot"));
        mixer.extend(self.identity("mixer"));
        self.start_child("citadel", OTHER_CORE, &programs.bin.join("citadel"), citadel)?;
        self.answers(self.places.at(host::CITADEL, 8060), "citadel").await?;
        self.start_child("pilot", OTHER_CORE, &programs.bin.join("pilot"), pilot)?;
        self.answers(self.places.at(host::PILOT, 15010), "pilot").await?;
        if setup.telemetry {
            self.start_child("mixer", OTHER_CORE, &programs.bin.join("mixer"), mixer)?;
            self.answers(self.places.at(host::MIXER, 9091), "mixer").await?;
        }
        Ok(())
    }

    fn secret(&self, name: &str) -> String {
        self.places.dir.join("secrets").join(name).display().to_string()
    }

    fn identity(&self, account: &str) -> Vec<String> {
        words(&[
            ("--ca-addr", &self.places.at(host::CITADEL, 8060).to_string()),
            ("--token-file", &self.secret(&format!("{account}.token"))),
            ("--root-cert-file", &self.secret("root-cert.pem")),
        ])
    }

    fn plain(&mut self, programs: &Programs) -> anyhow::Result<()> {
        let (proxy, app) = (self.places.ip(host::HAPROXY).to_string(), self.places.ip(host::APP).to_string());
        if let Some(haproxy) = &programs.haproxy {
            let text = include_str!("haproxy.cfg").replace("ADDRESS", &proxy).replace("BACKEND", &app);
            let path = self.file("haproxy", "haproxy.cfg", &text)?;
            self.start_child("haproxy", PROXY_CORE, haproxy, words(&[("-db", ""), ("-f", &path)]))?;
        }
        let text = include_str!("nginx.conf");
        let text = text.replace("ADDRESS", &self.places.ip(host::NGINX).to_string()).replace("BACKEND", &app);
        let path = self.file("nginx", "nginx.conf", &text)?;
        let prefix = self.places.dir.join("nginx").display().to_string();
        self.start_child("nginx", PROXY_CORE, &programs.nginx, words(&[("-p", &prefix), ("-c", &path)]))
    }

    fn crema(&mut self, programs: &Programs, setup: &Setup, role: &str, host: u8) -> anyhow::Result<()> {
        let name = format!("crema-{role}");
        let path =
            self.file(&name, "bootstrap.yaml", &config::bootstrap(&self.places, &name, host, setup, None))?;
        let mut args = words(&[("run", ""), ("--concurrency", "1")]);
        args.extend(self.identity("bench"));
        if setup.telemetry {
            args.extend(words(&[("--telemetry-addr", &self.places.at(host::MIXER, 9091).to_string())]));
        }
        args.push(path);
        self.start_child(&name, PROXY_CORE, &programs.bin.join("proxy"), args)
    }

    /// An Envoy, and the agent that gets its certificate.
    fn envoy(&mut self, programs: &Programs, setup: &Setup, role: &str, host: u8) -> anyhow::Result<()> {
        let envoy = programs.envoy.clone().context("no envoy")?;
        let name = format!("envoy-{role}");
        let socket = self.places.dir.join(format!("{name}.sock")).display().to_string();
        let text = config::bootstrap(&self.places, &name, host, setup, Some(&socket));
        let path = self.file(&name, "bootstrap.yaml", &text)?;
        let mut agent = words(&[("agent", ""), ("--socket", &socket)]);
        agent.extend(self.identity("bench"));
        self.start_child(&format!("{name}-agent"), OTHER_CORE, &programs.bin.join("citadel"), agent)?;
        let args = words(&[
            ("-c", &path),
            ("--concurrency", "1"),
            ("--disable-hot-restart", ""),
            ("--log-level", "warning"),
        ]);
        self.start_child(&name, PROXY_CORE, &envoy, args)
    }

    async fn wait(&self, programs: &Programs) -> anyhow::Result<()> {
        let mut all = vec![("crema", host::CREMA)];
        if programs.envoy.is_some() {
            all.push(("envoy", host::ENVOY));
        }
        for (kind, [client, server]) in all {
            self.answers(self.places.at(client, EGRESS), &format!("{kind}-client")).await?;
            self.answers(self.places.at(server, INBOUND), &format!("{kind}-server")).await?;
        }
        self.answers(self.places.at(host::NGINX, HTTP), "nginx").await
    }

    /// Waits until something accepts on `address`.
    async fn answers(&self, address: SocketAddr, name: &str) -> anyhow::Result<()> {
        for _ in 0..600 {
            if tokio::net::TcpStream::connect(address).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::bail!(
            "{name} does not listen on {address} after a minute; the end of its log: {}",
            self.tail(name)
        )
    }

    /// The end of a process's log.
    #[must_use]
    pub fn tail(&self, name: &str) -> String {
        self.children.iter().find(|(n, _)| n == name).map(|(_, child)| child.tail()).unwrap_or_default()
    }
}

/// Flags and values as words; an empty value is none.
fn words(pairs: &[(&str, &str)]) -> Vec<String> {
    pairs.iter().flat_map(|(a, b)| [*a, *b]).filter(|w| !w.is_empty()).map(String::from).collect()
}
