//! The injector as a process: `inject` on files, `serve` over TLS.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::Arc,
};

use serde_json::{Value, json};

fn injector(args: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_injector"))
        .args(args)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the injector starts");
    child.stdin.take().expect("piped").write_all(stdin.as_bytes()).expect("written");
    child.wait_with_output().expect("it ends")
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Compares with a file; `UPDATE_GOLDEN=1` writes it instead.
fn same_as_golden(name: &str, got: &str) {
    let path = golden(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, got).expect("the golden file is writable");
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(got == want, "{} differs (UPDATE_GOLDEN=1 rewrites it); got:\n{got}", path.display());
}

#[test]
fn files_are_injected_as_the_golden_files_show() {
    let cases: [(&str, &[&str]); 3] = [
        ("deployment", &[]),
        ("classic", &["--native-sidecars=false"]),
        ("none", &["--interception-mode", "none", "--discovery-address", "127.64.0.2:15012"]),
    ];
    for (name, flags) in cases {
        let input = golden("input.yaml").display().to_string();
        let out = injector(&[&["inject", "-f", &input], flags].concat(), "");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8(out.stdout).expect("text");
        same_as_golden(&format!("{name}.yaml"), &text);
        // What came out goes in again and comes out the same.
        let again = injector(&[&["inject", "-f", "-"], flags].concat(), &text);
        assert_eq!(String::from_utf8(again.stdout).expect("text"), text, "{name}");
    }
}

#[test]
fn mistakes_end_with_a_message_and_no_output() {
    let pod = |annotation: &str| {
        format!(
            "kind: Pod\napiVersion: v1\nmetadata: {{name: p, annotations: {{{annotation}}}}}\nspec: {{containers: []}}\n"
        )
    };
    let cases = [
        ("a: [1\n".to_owned(), "stdin:1"),
        (
            format!("kind: Service\n---\n{}", pod("traffic.sidecar.istio.io/excludeInboundPorts: http")),
            "stdin:3: Pod default/p: annotation traffic.sidecar.istio.io/excludeInboundPorts is \"http\": must be ports",
        ),
        (pod("inject.istio.io/templates: nope"), "there are only gateway, sidecar"),
    ];
    for (text, want) in cases {
        let out = injector(&["inject", "-f", "-"], &text);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && out.stdout.is_empty() && said.contains(want), "{said}");
    }
    let out = injector(&["inject", "-f", "/no/such/file"], "");
    assert!(String::from_utf8_lossy(&out.stderr).contains("/no/such/file"));
}

struct Server(Child, SocketAddr);

impl Drop for Server {
    fn drop(&mut self) {
        // Already gone is as good as killed.
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Starts `injector serve` on a free port with a fresh certificate for `localhost`; returns it and the certificate.
fn serve(dir: &std::path::Path) -> (Server, Vec<u8>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (cert, key) = (dir.join("tls.crt"), dir.join("tls.key"));
    std::fs::write(&cert, made.cert.pem()).expect("written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
    let free = || TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let (listen, admin) = (free(), free());
    let child = Command::new(env!("CARGO_BIN_EXE_injector"))
        .args(["serve", "--listen", &listen.to_string(), "--admin", &admin.to_string()])
        .arg("--tls-cert")
        .arg(&cert)
        .arg("--tls-key")
        .arg(&key)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the injector starts");
    let server = Server(child, listen);
    let mut left = 200;
    while TcpStream::connect(listen).is_err() {
        left -= 1;
        assert!(left > 0, "the webhook does not listen");
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    }
    (server, made.cert.der().to_vec())
}

/// One request over TLS, HTTP/1.1, read until the server closes.
fn post(server: &Server, root: &[u8], path: &str, body: &str) -> String {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.to_vec().into()).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "localhost".try_into().expect("a name");
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut tcp = TcpStream::connect(server.1).expect("a connection");
    let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("sent");
    let mut answer = Vec::new();
    // The end of the answer is known by content-length; how the connection ends does not matter.
    let _end = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn the_webhook_answers_over_tls() {
    let dir = tempfile::tempdir().expect("a directory");
    let (server, root) = serve(dir.path());
    let review = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "u", "kind": { "group": "", "version": "v1", "kind": "Pod" }, "namespace": "default",
        "object": { "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "a" }] } },
    } });
    let answer = post(&server, &root, "/inject", &review.to_string());
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let body: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).expect("a body")).expect("JSON");
    assert_eq!(
        (&body["response"]["uid"], &body["response"]["patchType"]),
        (&json!("u"), &json!("JSONPatch"))
    );
    assert!(post(&server, &root, "/inject", "not json").starts_with("HTTP/1.1 400"));
}
