//! The citadel program as operators start it: flags, files, exit codes, and an agent that gets its certificate from it.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hyper_util::rt::TokioIo;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PublicKeyData};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};
use tonic::transport::Endpoint;
use xds::envoy::service::{
    discovery::v3::DiscoveryRequest,
    secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
};

/// A running citadel; killed when dropped.
struct Running(Child);

impl Running {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_citadel"));
        command.args(args).env_clear().stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// SIGTERM, and what came of it.
    fn stop(mut self) -> (Option<i32>, String) {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let code = self.0.wait().unwrap().code();
        let mut log = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (code, log)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An address that was free a moment ago, on a loopback address that only this process uses.
fn free() -> SocketAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    TcpListener::bind((Ipv4Addr::new(127, 33, high, low.max(1)), 0)).unwrap().local_addr().unwrap()
}

/// The run of a command that ends by itself: exit code, then standard output and error together.
fn output(args: &[&str]) -> (Option<i32>, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_citadel")).args(args).env_clear().output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    (out.status.code(), text)
}

async fn get(addr: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(addr).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: citadel\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

async fn until<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(done) = attempt().await {
            return done;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} did not happen");
}

/// Key set and a token of service account `shop/web`, as the local node writes them.
fn write_tokens(dir: &Path) {
    let key = KeyPair::generate().unwrap();
    let point = key.der_bytes();
    let part = |range: std::ops::Range<usize>| BASE64_URL_SAFE_NO_PAD.encode(&point[range]);
    let jwk = json!({ "kty": "EC", "crv": "P-256", "kid": "node", "x": part(1..33), "y": part(33..65) });
    fs::write(dir.join("keys.json"), json!({ "keys": [jwk] }).to_string()).unwrap();
    let exp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 3600;
    let claims = json!({ "aud": ["istio-ca"], "sub": "system:serviceaccount:shop:web", "exp": exp });
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some("node".into());
    let token = encode(&header, &claims, &EncodingKey::from_ec_der(&key.serialize_der())).unwrap();
    fs::write(dir.join("token"), token).unwrap();
}

#[tokio::test]
async fn an_agent_gets_a_certificate_from_a_citadel_and_hands_it_to_envoys() {
    let dir = tempfile::tempdir().unwrap();
    write_tokens(dir.path());
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (listen, admin) = (free(), free());
    fs::write(
        dir.path().join("settings.yaml"),
        format!("listen: {listen}\nadmin: {admin}\ntoken-keys: {}\nlog-level: debug\n", path("keys.json")),
    )
    .unwrap();
    let (ca_dir, roots) = (path("ca"), path("roots.pem"));
    let citadel = Running::start(&[
        "serve",
        "--settings",
        &path("settings.yaml"),
        "--state-dir",
        &ca_dir,
        "--root-cert-out",
        &roots,
    ]);
    until("readiness", async || get(admin, "/healthz/ready").await.filter(|a| a.0 == 200)).await;
    assert_eq!(get(admin, "/root-cert.pem").await.unwrap().1, fs::read_to_string(&roots).unwrap());

    let socket = path("agent.sock");
    let ca_addr = listen.to_string();
    let agent = Running::start(&[
        "agent",
        "--socket",
        &socket,
        "--ca-addr",
        &ca_addr,
        "--token-file",
        &path("token"),
        "--root-cert-file",
        &roots,
    ]);
    let secret = until("a secret", async || {
        let socket = socket.clone();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://agent").connect_with_connector_lazy(connector);
        let wanted = DiscoveryRequest { resource_names: vec!["default".into()], ..Default::default() };
        let answer = SecretDiscoveryServiceClient::new(channel).fetch_secrets(wanted).await.ok()?;
        answer.into_inner().resources.pop()
    })
    .await;
    let text = String::from_utf8_lossy(&secret.value).into_owned();
    assert!(text.contains("BEGIN CERTIFICATE") && text.contains("PRIVATE KEY"));
    let metrics = get(admin, "/metrics").await.unwrap().1;
    assert!(metrics.contains("citadel_certificates_issued_total 1"), "{metrics}");

    let key = text.lines().skip_while(|l| !l.contains("PRIVATE KEY")).nth(1).unwrap().to_owned();
    let ca_key = fs::read_to_string(dir.path().join("ca/ca-key.pem")).unwrap();
    let token = fs::read_to_string(dir.path().join("token")).unwrap();
    for (who, (code, log)) in [("agent", agent.stop()), ("citadel", citadel.stop())] {
        assert_eq!(code, Some(0), "{who}: {log}");
        assert!(log.contains("drained"), "{who}: {log}");
        for secret in [key.as_str(), ca_key.lines().nth(1).unwrap(), token.as_str()] {
            assert!(!log.contains(secret), "{who} logs a secret");
        }
    }
    assert!(!Path::new(&socket).exists(), "the agent removes its socket");
}

#[test]
fn mistakes_of_operators_are_named_and_fail() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::write(path("keys.json"), "{}").unwrap();
    fs::write(path("typo.yaml"), "listne: 127.0.0.1:1\n").unwrap();
    fs::create_dir(path("empty")).unwrap();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let (ca, keys, typo, empty) = (path("ca"), path("keys.json"), path("typo.yaml"), path("empty"));
    for (args, part) in [
        (&["serve", "--token-keys", &keys, "--ca-dir", &ca][..], "--token-keys"),
        (&["serve", "--settings", &typo], "unknown setting `listne`"),
        (&["serve", "--plugged-ca", &empty], "ca-key.pem"),
        (&["serve", "--ca-dir", &ca, "--trust-domain", "Cluster.Local"], "--trust-domain"),
        (&["serve", "--ca-dir", &ca, "--default-ttl", "100d"], "--default-ttl is longer than --max-ttl"),
        (&["serve", "--ca-dir", &ca, "--max-ttl", "soon"], "use s, m, h or d"),
        (&["serve", "--ca-dir", &ca, "--admin", "127.0.0.1:0", "--listen", &taken], "another process has it"),
        (&["serve", "--ca-dir", &ca, "--log-level", "loud"], "`loud` is not a level"),
        (&["agent", "--socket", &path("s")], "--ca-addr is needed"),
        (&["agent", "--socket", &path("s"), "--ca-addr", "nowhere"], "HOST:PORT"),
        (&["agent", "--socket", &keys, "--ca-addr", "127.0.0.1:1"], "not a socket"),
    ] {
        let (code, text) = output(args);
        assert!(code.is_some_and(|c| c != 0), "{args:?}: {code:?}");
        assert!(text.contains(part), "{args:?}: {text}");
        assert!(!text.contains("panicked"), "{args:?}: {text}");
    }
}

#[test]
fn help_explains_every_verb() {
    for (args, part) in [
        (&["--help"][..], "Certificate authority of the Crema mesh"),
        (&["serve", "--help"], "--plugged-ca"),
        (&["agent", "--help"], "--socket"),
        (&["--version"], env!("CARGO_PKG_VERSION")),
    ] {
        let (code, text) = output(args);
        assert_eq!(code, Some(0));
        assert!(text.contains(part), "{args:?}: {text}");
        let widest =
            BufReader::new(text.as_bytes()).lines().map(|l| l.unwrap().chars().count()).max().unwrap();
        assert!(widest <= 120, "{args:?}: {widest} columns");
    }
}
