//! The proxy as images ship it: one static file in an empty root finds names and verifies certificates.
//!
//! In: a statically linked proxy (made here, in this build's profile), a DNS server and a TLS server of the test. Out: one trial. Kept true: the
//! root holds the proxy, its bootstrap, a CA, and what every container runtime adds (`/etc/resolv.conf`, `/dev`), nothing else.
//! Not here: images.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};
use e2e::{
    backends::Running,
    http::Call,
    images::{self, Profile},
    node::until,
    peers,
};
use libtest_mimic::{Arguments, Failed, Trial};
use mesh_identity::{Credentials, tls};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// Addresses of this test: `127.203.x.y`, apart from other harnesses.
const DNS: Ipv4Addr = Ipv4Addr::new(127, 203, 0, 1);
const PROXY: Ipv4Addr = Ipv4Addr::new(127, 203, 0, 2);
const BACKEND: Ipv4Addr = Ipv4Addr::new(127, 203, 0, 3);
const PORT: u16 = 8443;

fn main() {
    let arguments = Arguments::from_args();
    let reason = obstacle();
    let name = "a_static_proxy_in_an_empty_root_finds_names_and_verifies_certificates";
    let trial = match &reason {
        None => Trial::test(name, || alone().map_err(|e| Failed::from(format!("{e:#}")))),
        Some(why) => Trial::test(format!("{name} (ignored: {why})"), || Ok(())).with_ignored_flag(true),
    };
    libtest_mimic::run(&arguments, vec![trial]).exit();
}

/// Why the test cannot run here.
fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("chroot and port 53 need root".to_owned());
    }
    UdpSocket::bind((DNS, 53)).err().map(|e| format!("port 53 of {DNS}: {e}"))
}

/// Links the proxy statically and puts it into `root`.
fn static_proxy(root: &Path) -> anyhow::Result<()> {
    let dir = images::linked(Profile::Dev)?;
    fs::copy(dir.join("proxy"), root.join("proxy")).context("copying the proxy")?;
    // What other tests start comes back: linked as ever.
    peers::build()
}

/// A DNS server that knows `backend.test`, and says of everything else that it does not exist.
fn dns() -> anyhow::Result<()> {
    let socket = UdpSocket::bind((DNS, 53))?;
    let answer = move || {
        let mut packet = [0; 512];
        while let Ok((size, peer)) = socket.recv_from(&mut packet) {
            // The resolver waits for its own deadline when a packet is lost.
            let _sent = socket.send_to(&reply(&packet[..size]), peer);
        }
    };
    std::thread::Builder::new().name("dns".into()).spawn(answer)?;
    Ok(())
}

/// The answer to one question (RFC 1035 §4): the same header and question, and an A record when it is ours.
fn reply(question: &[u8]) -> Vec<u8> {
    const NAME: &[u8] = b"\x07backend\x04test\x00";
    let asked = question.get(12..).unwrap_or_default();
    let end = asked.iter().position(|byte| *byte == 0).map_or(0, |at| at + 1);
    let ours = asked.get(..end).is_some_and(|name| name.eq_ignore_ascii_case(NAME));
    let for_a = asked.get(end..end + 2) == Some(&[0, 1]);
    let mut out = question.get(..2).unwrap_or(&[0, 0]).to_vec();
    out.extend([0x81, if ours { 0x80 } else { 0x83 }, 0, 1, 0, u8::from(ours && for_a), 0, 0, 0, 0]);
    out.extend(asked.get(..end + 4).unwrap_or_default());
    if ours && for_a {
        out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        out.extend(BACKEND.octets());
    }
    out
}

/// A TLS server for `backend.test` whose authority only `/ca.pem` in the root knows.
async fn backend(root: &Path) -> anyhow::Result<()> {
    let authority_key = rcgen::KeyPair::generate()?;
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.distinguished_name.push(rcgen::DnType::CommonName, "a private authority");
    let certificate = authority.self_signed(&authority_key)?;
    fs::write(root.join("ca.pem"), certificate.pem())?;
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate()?;
    let leaf = rcgen::CertificateParams::new(vec!["backend.test".to_owned()])?.signed_by(&key, &issuer)?;
    let credentials =
        Credentials::from_pem("backend", leaf.pem().as_bytes(), key.serialize_pem().as_bytes())?;
    let config = tls::server::file_config(&credentials, None, &[], tls::MinTls::V13)?;
    let listener = TcpListener::bind((BACKEND, PORT)).await?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let config = config.clone();
            tokio::spawn(async move {
                // A client that does not trust us ends the handshake.
                let Ok(mut accepted) = tls::server::accept(config, &[], stream).await else { return };
                let mut head = [0; 2048];
                if matches!(accepted.stream.read(&mut head).await, Ok(size) if size > 0) {
                    let text = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
                    let _gone = accepted.stream.write_all(text).await;
                    let _gone = accepted.stream.shutdown().await;
                }
            });
        }
    });
    Ok(())
}

/// Port 8081 trusts `/ca.pem`, port 8082 the public roots that the binary carries.
fn bootstrap() -> String {
    let manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let context = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    let listener = |name: &str, port: u16| {
        format!(
            "  - name: {name}\n    address: {{socket_address: {{address: {PROXY}, port_value: {port}}}}}\n    filter_chains:\n    - \
             filters:\n      - name: http\n        typed_config:\n          \"@type\": {manager}\n          stat_prefix: {name}\n          \
             route_config: {{virtual_hosts: [{{name: all, domains: [\"*\"], routes: [{{match: {{prefix: /}}, route: {{cluster: \
             {name}}}}}]}}]}}\n          http_filters:\n          - name: envoy.filters.http.router\n            typed_config: \
             {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}\n"
        )
    };
    let cluster = |name: &str, roots: &str| {
        format!(
            "  - name: {name}\n    type: STRICT_DNS\n    connect_timeout: 2s\n    load_assignment:\n      cluster_name: {name}\n      \
             endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: backend.test, port_value: \
             {PORT}}}}}}}}}]}}]\n    transport_socket:\n      name: tls\n      typed_config:\n        \"@type\": {context}\n        sni: \
             backend.test\n        common_tls_context:\n          validation_context: {{{roots}, match_typed_subject_alt_names: \
             [{{san_type: DNS, matcher: {{exact: backend.test}}}}]}}\n"
        )
    };
    format!(
        "static_resources:\n  listeners:\n{}{}  clusters:\n{}{}",
        listener("private", 8081),
        listener("public", 8082),
        cluster("private", "trusted_ca: {filename: /ca.pem}"),
        cluster("public", "system_root_certs: {}"),
    )
}

fn alone() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let dir = tempfile::tempdir()?;
        let root: PathBuf = dir.path().join("root");
        fs::create_dir_all(root.join("etc"))?;
        fs::write(root.join("etc/resolv.conf"), format!("nameserver {DNS}\n"))?;
        fs::write(root.join("envoy.yaml"), bootstrap())?;
        fs::create_dir(root.join("dev"))?;
        for (name, minor) in [("null", "3"), ("random", "8"), ("urandom", "9")] {
            let device =
                Command::new("mknod").arg(root.join("dev").join(name)).args(["c", "1", minor]).status()?;
            ensure!(device.success(), "mknod {name}: {device}");
        }
        static_proxy(&root)?;
        dns()?;
        backend(&root).await?;
        let log = dir.path().join("proxy.log");
        let mut command = Command::new("chroot");
        command.arg(&root).args(["/proxy", "run", "/envoy.yaml", "--concurrency", "1"]).env_clear();
        let _proxy = Running::start(&mut command, &log)?;
        let call = |port: u16| Call::get(format!("http://{}/", SocketAddr::from((PROXY, port))));
        let said = || format!("no answer; the proxy's log: {}", fs::read_to_string(&log).unwrap_or_default());
        let hello =
            async || call(8081).send().await.is_ok_and(|reply| reply.status == 200 && reply.body == "hello");
        until(Duration::from_secs(20), hello, said).await?;
        let public = call(8082).send().await?;
        ensure!(
            public.status == 503,
            "a private authority passes as a public one: {} {}",
            public.status,
            public.body
        );
        ensure!(
            public.body.contains("not trusted"),
            "the public roots are not what refused it: {}",
            public.body
        );
        Ok(())
    })
}
