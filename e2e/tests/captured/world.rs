//! Pods as Kubernetes has them, each in a network namespace of its own, with captured traffic and the real control plane.
//!
//! In: root's rights, `ip` and `setpriv`, the binaries. Out: [`World`]: two pods with sidecars, one neighbour without, one wire between
//! all. Kept true: every process and namespace is gone with the world; nothing outside it is touched. Not here: what is expected (`main`).

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use e2e::{backends::Running, node::tokens::Mint, peers};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where citadel and pilot are.
pub const HUB: &str = "10.79.0.1";
/// The pod that calls.
pub const WEB: &str = "10.79.0.2";
/// The pod that is called.
pub const SHOP: &str = "10.79.0.3";
/// Two pods behind one service.
pub const PAIR: [&str; 2] = ["10.79.0.5", "10.79.0.6"];
/// The gateway at the edge.
pub const EDGE: &str = "10.79.0.7";
/// The neighbour without a sidecar.
pub const PLAIN: &str = "10.79.0.4";
/// How long one exchange may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the mesh may take to get ready, or a change to come into force.
const SETTLE: Duration = Duration::from_secs(60);

/// The IPv6 address of whoever has this IPv4 address: its last number in another network.
#[must_use]
pub fn six(four: &str) -> String {
    format!("fd79::{}", four.rsplit('.').next().unwrap_or(four))
}

/// A network namespace, removed when dropped.
#[derive(Debug)]
pub struct Place(String);

impl Place {
    fn new(name: &str) -> anyhow::Result<Self> {
        let place = Self(format!("crema-{name}-{}", std::process::id()));
        ip(&format!("netns add {}", place.0))?;
        place.ip("link set lo up")?;
        Ok(place)
    }

    fn ip(&self, words: &str) -> anyhow::Result<()> {
        ip(&format!("-n {} {words}", self.0))
    }

    /// A program in this place; `user` and group have the same number.
    fn command(&self, user: u32, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, "setpriv", "--clear-groups"]);
        command.arg(format!("--reuid={user}")).arg(format!("--regid={user}")).arg(program);
        command
    }

    /// Runs `work` on a thread that belongs here.
    fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
        let space = File::open(format!("/run/netns/{}", self.0))?;
        let running = thread::spawn(move || {
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))?;
            anyhow::Ok(work())
        });
        running.join().map_err(|_| anyhow::anyhow!("a panic in {}", self.0))?
    }

    /// An HTTP application that says who it is, who asks, and what it was told.
    pub fn http(&self, port: u16, name: &'static str) -> anyhow::Result<App> {
        self.slow(port, name, Duration::ZERO)
    }

    /// The same, after some thought. Dropped, it dies as a process would, in the middle of whatever it does.
    pub fn slow(&self, port: u16, name: &'static str, thought: Duration) -> anyhow::Result<App> {
        let listener = self.inside(move || TcpListener::bind(("::", port)))??;
        let app = App { listener: listener.try_clone()?, open: Arc::default() };
        let open = Arc::clone(&app.open);
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let Ok(copy) = stream.try_clone() else { return };
                open.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
                thread::spawn(move || converse(stream, name, thought));
            }
        });
        Ok(app)
    }

    /// Asks `url` at `to` again and again, over kept and over new connections, until told to stop. What went wrong, and how many went well.
    pub fn load(&self, to: &str, url: &str, stop: &Arc<AtomicBool>) -> anyhow::Result<Load> {
        let to: SocketAddr = to.parse()?;
        let space = self.0.clone();
        let (url, stop) = (url.to_owned(), Arc::clone(stop));
        Ok(thread::spawn(move || {
            let space = File::open(format!("/run/netns/{space}"))?;
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))?;
            let (mut good, mut bad) = (0, Vec::new());
            let mut kept = None;
            while !stop.load(Ordering::Acquire) {
                let fresh = (good + bad.len()) % 3 == 0;
                match once(if fresh { None } else { kept.take() }, to, &url) {
                    Ok((200, stream)) => {
                        good += 1;
                        kept = stream.or(kept);
                    }
                    Ok((status, _)) => bad.push(format!("status {status}")),
                    Err(error) => bad.push(format!("{error:#}")),
                }
            }
            Ok((good, bad))
        }))
    }

    /// A verb of the proxy, as the kubelet runs it in the proxy's container.
    pub fn proxy(&self, args: &[&str]) -> anyhow::Result<()> {
        let output = self.command(1337, &peers::program("proxy")?).args(args).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "proxy {}: {said}", args.join(" "));
        Ok(())
    }

    /// A server that speaks first, and then repeats what it hears.
    pub fn greeter(&self, port: u16, greeting: &'static str) -> anyhow::Result<()> {
        let listener = self.inside(move || TcpListener::bind(("::", port)))??;
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let _ = stream.write_all(greeting.as_bytes());
                    let mut bytes = [0; 256];
                    while let Ok(size @ 1..) = stream.read(&mut bytes) {
                        let _ = stream.write_all(&bytes[..size]);
                    }
                });
            }
        });
        Ok(())
    }

    /// GET `host/path` at the address `to`, from here: status and text. An error says what became of the connection.
    pub fn get(&self, to: &str, url: &str) -> anyhow::Result<(u16, String)> {
        let to: SocketAddr = to.parse()?;
        let (host, path) = url.split_once('/').unwrap_or((url, ""));
        let (host, path) = (host.to_owned(), path.to_owned());
        self.inside(move || {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "GET /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
            Ok((status.with_context(|| format!("no answer: {text:?}"))?, text))
        })?
    }

    /// What a server says before it is told anything, and its answer to `more`.
    pub fn greeted(&self, to: &str) -> anyhow::Result<String> {
        let to: SocketAddr = to.parse()?;
        self.inside(move || {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut bytes = [0; 256];
            let first = stream.read(&mut bytes)?;
            ensure!(first > 0, "closed without a word");
            let mut text = String::from_utf8_lossy(&bytes[..first]).into_owned();
            stream.write_all(b"more")?;
            let second = stream.read(&mut bytes)?;
            text.push_str(&String::from_utf8_lossy(&bytes[..second]));
            Ok(text)
        })?
    }
}

/// Requests under way on a thread: how many went well, and what became of the others.
pub type Load = thread::JoinHandle<anyhow::Result<(usize, Vec<String>)>>;

/// A running application.
pub struct App {
    listener: TcpListener,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Drop for App {
    fn drop(&mut self) {
        // Wakes the thread in `accept`, whatever holds the socket; the port refuses from now on.
        let _closed = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _closed = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// One request, on a connection that is kept or new; the connection if it goes on.
fn once(kept: Option<TcpStream>, to: SocketAddr, url: &str) -> anyhow::Result<(u16, Option<TcpStream>)> {
    let mut stream = match kept {
        Some(stream) => stream,
        None => TcpStream::connect_timeout(&to, PATIENCE)?,
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET / HTTP/1.1\r\nhost: {url}\r\n\r\n")?;
    let mut text = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        let head = text.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4);
        if let Some(head) = head {
            let said = String::from_utf8_lossy(&text[..head]).to_ascii_lowercase();
            let field =
                |name: &str| said.split("\r\n").find_map(|line| line.strip_prefix(name)).map(str::trim);
            let length: usize = field("content-length:").context("no length")?.parse()?;
            if text.len() >= head + length {
                let status = said.split(' ').nth(1).context("no status")?.parse()?;
                return Ok((status, Some(stream).filter(|_| field("connection:") != Some("close"))));
            }
        }
        let size = stream.read(&mut bytes)?;
        ensure!(size > 0, "closed after {} bytes", text.len());
        text.extend(&bytes[..size]);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _gone = ip(&format!("netns del {}", self.0));
    }
}

/// Answers requests of one connection with the application's name, the caller's address and the request's headers.
fn converse(stream: TcpStream, name: &str, thought: Duration) -> Option<()> {
    let from = stream.peer_addr().ok()?.ip().to_canonical();
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        #[allow(
            clippy::disallowed_methods,
            reason = "a server that takes its time, in a process of real ones"
        )]
        thread::sleep(thought);
        let body = format!("{name} heard from {from}:\n{}", head.replace('\r', ""));
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).ok()?;
        if head.contains("connection: close") {
            return stream.shutdown(std::net::Shutdown::Both).ok();
        }
    }
}

/// The mesh.
pub struct World {
    /// Citadel and pilot; no node's proxy is there.
    pub hub: Place,
    /// The pod that calls.
    pub web: Place,
    /// The pod that is called.
    pub shop: Place,
    /// Two pods behind one service.
    pub pair: [Place; 2],
    /// The gateway's pod; nothing is captured there.
    pub edge: Place,
    /// No sidecar.
    pub plain: Place,
    /// Applications that stay.
    pub apps: Vec<App>,
    mint: Mint,
    dir: tempfile::TempDir,
    running: Vec<Running>,
}

impl World {
    /// Why there can be no such world here.
    pub fn missing() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("needs root for network namespaces".to_owned());
        }
        if let Some(missing) = ["ip", "setpriv"].iter().find(|name| peers::installed(name).is_none()) {
            return Some(format!("needs the program {missing}"));
        }
        let tried = Place::new("try").and_then(|place| place.ip("link add br0 type bridge"));
        tried.err().map(|error| format!("{error:#}"))
    }

    /// Starts everything and waits until both sidecars are ready.
    pub fn start() -> anyhow::Result<Self> {
        peers::build()?;
        let dir = tempfile::Builder::new().prefix("crema-captured-").tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let hub = Place::new("hub")?;
        for words in [
            "link add br0 type bridge",
            &format!("addr add {HUB}/24 dev br0"),
            &format!("addr add {}/64 dev br0 nodad", six(HUB)),
            // Stand for the rest of the world.
            "addr add 192.0.2.80/32 dev br0",
            "addr add 2001:db8::80/128 dev br0 nodad",
            "link set br0 up",
        ] {
            hub.ip(words)?;
        }
        let [left, right] = PAIR;
        let all = [
            ("web", WEB),
            ("shop", SHOP),
            ("left", left),
            ("right", right),
            ("edge", EDGE),
            ("plain", PLAIN),
        ];
        let places = all.map(|(name, address)| {
            let place = Place::new(name)?;
            hub.ip(&format!("link add {name} type veth peer name eth0 netns {}", place.0))?;
            hub.ip(&format!("link set {name} master br0 up"))?;
            place.ip(&format!("addr add {address}/24 dev eth0"))?;
            place.ip(&format!("addr add {}/64 dev eth0 nodad", six(address)))?;
            place.ip("link set eth0 up")?;
            place.ip(&format!("route add default via {HUB}"))?;
            place.ip(&format!("-6 route add default via {}", six(HUB)))?;
            anyhow::Ok(place)
        });
        let [web, shop, left, right, edge, plain] = places;
        let pair = [left?, right?];
        let (mint, running) = (Mint::new()?, Vec::new());
        let mut world = Self {
            hub,
            web: web?,
            shop: shop?,
            pair,
            edge: edge?,
            plain: plain?,
            apps: Vec::new(),
            mint,
            dir,
            running,
        };
        world.control_plane()?;
        for (place, name, address) in [(&world.web, "web", WEB), (&world.shop, "shop", SHOP)] {
            let running = world.pod(place, name, address)?;
            world.running.push(running);
        }
        for place in [&world.web, &world.shop] {
            place.proxy(&["wait"]).with_context(|| world.logs())?;
        }
        Ok(world)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Replaces objects that pilot watches.
    pub fn write(&self, name: &str, yaml: &str) -> anyhow::Result<()> {
        let config = self.file("config");
        fs::create_dir_all(&config)?;
        // Whole or not at all.
        let draft = self.file("draft");
        fs::write(&draft, yaml)?;
        fs::rename(draft, config.join(name)).context(name.to_owned())
    }

    fn control_plane(&mut self) -> anyhow::Result<()> {
        fs::write(self.file("token-keys.json"), self.mint.jwks().to_string())?;
        fs::write(self.file("pilot-token"), self.mint.token("istio-system", "pilot", "pilot-0", "pilot-0")?)?;
        let text = |path: PathBuf| path.display().to_string();
        let mut citadel = self.hub.command(0, &peers::program("citadel")?);
        citadel.args(["serve", "--listen", &format!("{HUB}:8060"), "--admin", &format!("{HUB}:8061")]);
        citadel.args(["--token-keys", &text(self.file("token-keys.json"))]);
        citadel.args(["--state-dir", &text(self.file("citadel"))]);
        citadel.args(["--root-cert-out", &text(self.file("root-cert.pem"))]);
        self.running.push(Running::start(&mut citadel, &self.file("citadel.log"))?);
        let root = self.file("root-cert.pem");
        until(|| root.exists()).with_context(|| self.logs())?;
        let mut pilot = self.hub.command(0, &peers::program("pilot")?);
        pilot.args(["serve", "--config", &text(self.file("config"))]);
        pilot.args(["--xds-plaintext", "127.0.0.1:15010", "--xds-tls", &format!("{HUB}:15012")]);
        pilot.args(["--admin", &format!("{HUB}:15014"), "--ca-addr", &format!("{HUB}:8060")]);
        pilot.args(["--token-file", &text(self.file("pilot-token")), "--root-cert-file", &text(root)]);
        fs::create_dir_all(self.file("config"))?;
        self.write("objects.yaml", super::OBJECTS)?;
        self.running.push(Running::start(&mut pilot, &self.file("pilot.log"))?);
        Ok(())
    }

    /// What the kubelet does with an injected pod: the init container, then the sidecar.
    pub fn pod(&self, place: &Place, name: &str, address: &str) -> anyhow::Result<Running> {
        let captured = place.command(0, &peers::program("proxy")?).args(["capture", "--check"]).output()?;
        ensure!(captured.status.success(), "{}", String::from_utf8_lossy(&captured.stderr));
        let labels = format!("app=\"{name}\"\nsecurity.istio.io/tlsMode=\"istio\"\n");
        let probers = r#"{"/app-health/app/livez": {"httpGet": {"path": "/", "port": 8080}}}"#;
        let mut sidecar = self.proxy(place, name, "default", address, &labels)?;
        sidecar
            .arg("sidecar")
            .envs([("ISTIO_META_INTERCEPTION_MODE", "REDIRECT"), ("ISTIO_KUBE_APP_PROBERS", probers)]);
        Running::start(&mut sidecar, &self.file(&format!("{name}.log")))
    }

    /// The gateway of the edge, as the manifest has it.
    pub fn gateway(&self) -> anyhow::Result<Running> {
        let labels = "app=\"istio-ingressgateway\"\nistio=\"ingressgateway\"\n";
        let mut router = self.proxy(&self.edge, "istio-ingressgateway", "istio-system", EDGE, labels)?;
        router.arg("router").env("ISTIO_META_INTERCEPTION_MODE", "NONE");
        Running::start(&mut router, &self.file("edge.log"))
    }

    /// A proxy with the environment of its pod. Name and service account are one.
    fn proxy(
        &self,
        place: &Place,
        name: &str,
        namespace: &str,
        address: &str,
        labels: &str,
    ) -> anyhow::Result<Command> {
        let token = self.file(&format!("{name}-token"));
        fs::write(&token, self.mint.token(namespace, name, name, name)?)?;
        let info = self.file(name);
        fs::create_dir_all(&info)?;
        fs::write(info.join("labels"), labels)?;
        let mut command = place.command(1337, &peers::program("proxy")?);
        command.envs([
            ("POD_NAME", name),
            ("POD_NAMESPACE", namespace),
            ("SERVICE_ACCOUNT", name),
            ("INSTANCE_IP", address),
            ("PROXY_CONFIG", &format!("{{\"discoveryAddress\": \"{HUB}:15012\", \"concurrency\": 1}}")),
            ("CA_ADDR", &format!("{HUB}:8060")),
            ("TOKEN_FILE", &token.display().to_string()),
            ("ROOT_CERT_FILE", &self.file("root-cert.pem").display().to_string()),
            ("POD_INFO_DIR", &info.display().to_string()),
        ]);
        Ok(command)
    }

    /// The last lines of every log.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for name in ["citadel", "pilot", "web", "shop", "left", "right", "edge"] {
            let log = fs::read_to_string(self.file(&format!("{name}.log"))).unwrap_or_default();
            let failed = log.lines().filter(|line| line.contains("\" 5")).take(6);
            let tail: Vec<&str> = failed.chain(log.lines().rev().take(6)).collect();
            text.extend([format!("{name}: "), tail.join("\n  "), "\n".to_owned()]);
        }
        text
    }
}

/// SIGTERM, and the end of the process.
pub fn terminate(running: Running) -> anyhow::Result<()> {
    let id = i32::try_from(running.pid())?;
    let process = rustix::process::Pid::from_raw(id).context("a process")?;
    rustix::process::kill_process(process, rustix::process::Signal::TERM)?;
    let gone = || fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    until(gone).context("the proxy does not end")?;
    drop(running);
    Ok(())
}

/// Asks again until `seen`.
pub fn until(mut seen: impl FnMut() -> bool) -> anyhow::Result<()> {
    let began = Instant::now();
    while !seen() {
        if began.elapsed() > SETTLE {
            bail!("not within {} s", SETTLE.as_secs());
        }
        #[allow(clippy::disallowed_methods, reason = "real processes have no clock that could be paused")]
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn ip(words: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(words.split(' ')).output().context("ip")?;
    ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
