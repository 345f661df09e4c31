//! What users see when they give something bad: the real programs, their words, their exit codes, and what stays in force.
//!
//! In: the table below. Out: `docs/bad-input.md`, which must be equal to what the programs say (`WRITE_DOCS=1` writes it).
//! Kept true: each message names file, object and field; nothing accepted before is lost. Not here: every rule there is (tests of the crates).

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context, ensure};
use e2e::{
    backends::{self, Running},
    node::tokens::{LIFETIME, Mint},
    peers,
};
use mesh_identity::{
    Credentials,
    grpc::{ChannelOptions, ServerCheck},
    workload::{CaClient, Signer},
};
use regex::Regex;
use serde_json::Value;

/// A file that pilot is given, in place of [`GOOD`].
struct BadFile {
    title: &'static str,
    /// The file; shown in the docs unless it is made by [`made`].
    text: &'static str,
    /// True when the objects of the good file stay in force; false when the new ones replace them, with a warning.
    stays: bool,
}

const GOOD: &str = "\
# The good one.

apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec: {hosts: [reviews], http: [{timeout: 5s, route: [{destination: {host: reviews}}]}]}
";

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {ports: [{name: http, port: 80}]}
";

const FILES: &[BadFile] = &[
    BadFile {
        title: "YAML that does not parse",
        text: "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews\nspec:\n  hosts: [reviews]\n",
        stays: true,
    },
    BadFile {
        title: "A half-written file",
        text: "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec: {hosts: [reviews], http: [{timeout: 5s, route: [{desti",
        stays: true,
    },
    BadFile {
        title: "A wrong type",
        text: "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec:\n  hosts: reviews\n  http:\n  - route: [{destination: {host: reviews}}]\n",
        stays: true,
    },
    BadFile {
        title: "A duration that is none",
        text: "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec:\n  hosts: [reviews]\n  http:\n  - timeout: 5 seconds\n    route: [{destination: {host: reviews}}]\n",
        stays: true,
    },
    BadFile {
        title: "Weights that cannot be meant",
        text: "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec:\n  hosts: [reviews]\n  http:\n  - route:\n    - {destination: {host: reviews, subset: v1}, weight: 0}\n    - {destination: {host: reviews, subset: v2}, weight: -5}\n",
        stays: true,
    },
    BadFile {
        title: "A null spec",
        text: "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec: null\n",
        stays: true,
    },
    BadFile {
        title: "A spec that contains itself",
        text: "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec: &spec\n  hosts: [reviews]\n  http: [*spec]\n",
        stays: true,
    },
    BadFile { title: "Aliases that multiply", text: "", stays: true },
    BadFile { title: "A file of 65 MiB", text: "", stays: true },
    BadFile {
        title: "An unknown field",
        text: "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec:\n  hosts: [reviews]\n  http:\n  - timeot: 1s\n    route: [{destination: {host: reviews}}]\n",
        stays: false,
    },
    BadFile {
        title: "Dangling references",
        text: "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec:\n  hosts: [reviews]\n  gateways: [nowhere, mesh]\n  http:\n  - route: [{destination: {host: reviews, subset: v9}}]\n  - route: [{destination: {host: revews}}]\n",
        stays: false,
    },
    BadFile {
        title: "An unknown kind",
        text: "apiVersion: networking.istio.io/v1\nkind: VirtualServce\nmetadata: {name: reviews}\nspec: {hosts: [reviews]}\n",
        stays: true,
    },
];

/// The text of a file; the large ones are made here.
fn made(bad: &BadFile) -> String {
    match bad.title {
        "Aliases that multiply" => {
            let mut text =
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bomb}\ndata:\n  a0: &a0 x\n".to_owned();
            for i in 1..30 {
                let inner = vec![format!("*a{}", i - 1); 9].join(", ");
                let _ = writeln!(text, "  a{i}: &a{i} [{inner}]");
            }
            text
        }
        "A file of 65 MiB" => {
            let mut text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: big}\ndata:\n".to_owned();
            for i in 0..65 {
                let _ = writeln!(text, "  k{i}: {}", "x".repeat(1 << 20));
            }
            text
        }
        _ => bad.text.to_owned(),
    }
}

/// A command that is given something bad.
struct BadCall {
    title: &'static str,
    files: &'static [(&'static str, &'static str)],
    command: &'static [&'static str],
}

const BOOTSTRAP: &str = "\
static_resources:
  listeners:
  - name: web
    address: {socket_address: {address: 127.0.0.1, port_value: 8080}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          route_config: {virtual_hosts: [{name: all, domains: [\"*\"], routes: [{match: {prefix: /}, route: {clustr: app}}]}]}
";

const LUA: &str = "\
static_resources:
  listeners:
  - name: web
    address: {socket_address: {address: 127.0.0.1, port_value: 8080}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          route_config: {virtual_hosts: [{name: all, domains: [\"*\"], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}]}
          http_filters:
          - name: envoy.filters.http.lua
            typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}
";

const CALLS: &[BadCall] = &[
    BadCall {
        title: "A proxy's bootstrap that is not there",
        files: &[],
        command: &["proxy", "run", "envoy.yaml"],
    },
    BadCall {
        title: "A proxy's bootstrap with an unknown field",
        files: &[("envoy.yaml", BOOTSTRAP)],
        command: &["proxy", "run", "envoy.yaml"],
    },
    BadCall {
        title: "A proxy's bootstrap with a filter that is not supported",
        files: &[("envoy.yaml", LUA)],
        command: &["proxy", "run", "envoy.yaml"],
    },
    BadCall {
        title: "An annotation that cannot be obeyed",
        files: &[(
            "pod.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: web, annotations: {traffic.sidecar.istio.io/includeInboundPorts: \"80,http\"}}\nspec: {containers: [{name: web, image: web}]}\n",
        )],
        command: &["injector", "inject", "-f", "pod.yaml"],
    },
    BadCall {
        title: "An expression that compares different types",
        files: &[
            (
                "manifest.yaml",
                "apiVersion: config.istio.io/v1alpha2\nkind: attributemanifest\nmetadata: {name: m}\nspec: {attributes: {source.labels: {valueType: STRING_MAP}}}\n",
            ),
            ("attributes.json", "{\"source.labels\": {\"app\": \"web\"}}\n"),
        ],
        command: &[
            "mixer",
            "eval",
            "--manifest",
            "manifest.yaml",
            "--attributes",
            "attributes.json",
            "source.labels[\"app\"] == 5",
        ],
    },
    BadCall {
        title: "A setting that does not exist",
        files: &[("citadel.yaml", "listne: 127.0.0.1:8060\n")],
        command: &["citadel", "serve", "--settings", "citadel.yaml"],
    },
];

const HEAD: &str = "\
# What you see when something is wrong

Every message below was printed by the real programs in a test (`cargo test -p e2e --test bad_input`), which fails when one of them
changes. `WRITE_DOCS=1` before that command writes this page.

The rule: a message names the file and line, the object and the field, says why, and what to do. What cannot be meant is an error
(exit code 1) and leaves in force what was accepted before; what can be served but will surprise is a warning.
";

/// Runs a program of ours in `dir`: exit code and what it printed.
fn run(dir: &Path, command: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
    let (program, args) = command.split_first().context("a command has a program")?;
    let out = Command::new(peers::program(program)?).args(args).current_dir(dir).output()?;
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    Ok((out.status.code(), text))
}

fn shown(command: &[&str]) -> String {
    let quoted = |word: &&str| if word.contains(' ') { format!("'{word}'") } else { (*word).to_owned() };
    command.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

fn block(kind: &str, text: &str) -> String {
    format!("```{kind}\n{}\n```\n", text.trim_end())
}

async fn json(server: SocketAddr, path: &str) -> anyhow::Result<Value> {
    let (_, body) = backends::get(server, path).await?;
    Ok(serde_json::from_slice(&body)?)
}

/// Asks until `good` says yes.
async fn until(
    server: SocketAddr,
    path: &str,
    what: &str,
    good: impl Fn(&Value) -> bool,
) -> anyhow::Result<Value> {
    let mut last = Value::Null;
    for _ in 0..300 {
        last = json(server, path).await.unwrap_or_default();
        if good(&last) {
            return Ok(last);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("{what} did not happen; {path} says {last}")
}

fn findings(status: &Value) -> String {
    status["findings"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect::<Vec<_>>()
        .join("\n")
}

/// True when the VirtualService in force is the one of [`GOOD`]: it begins on another line than those of the bad files.
fn has_good(objects: &Value) -> bool {
    objects.to_string().contains("reviews.yaml:3")
}

/// Each bad file, given to `pilot validate` and to a pilot that serves the good one.
async fn files(page: &mut String) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mesh = dir.path().join("mesh");
    fs::create_dir(&mesh)?;
    fs::write(mesh.join("service.yaml"), SERVICE)?;
    let mut pilot = Command::new(peers::program("pilot")?);
    let (xds, admin) = (backends::free_port()?, backends::free_port()?);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, admin));
    pilot.args(["serve", "--config", "mesh", "--xds-plaintext", &format!("127.0.0.1:{xds}")]);
    pilot.args(["--admin", &address.to_string()]).current_dir(dir.path());
    let _pilot = Running::start(&mut pilot, &dir.path().join("pilot.log"))?;
    page.push_str("\n## Files for pilot\n\nBefore each of these, pilot serves this as `reviews.yaml`, beside a Service `reviews`:\n\n");
    page.push_str(&block("yaml", GOOD));
    for bad in FILES {
        let file = mesh.join("reviews.yaml");
        fs::write(&file, GOOD)?;
        until(address, "/debug/configz", "the good file in force", has_good).await?;
        until(address, "/debug/push_status", "no finding", |s| !findings(s).contains("reviews.yaml")).await?;
        // As editors do it: in one step.
        let (text, draft) = (made(bad), dir.path().join("draft"));
        fs::write(&draft, &text)?;
        fs::rename(&draft, &file)?;
        let status =
            until(address, "/debug/push_status", bad.title, |s| findings(s).contains("reviews.yaml")).await?;
        let stays = has_good(&json(address, "/debug/configz").await?);
        ensure!(stays == bad.stays, "{}: what was in force stays: {stays}", bad.title);
        let (code, said) = run(dir.path(), &["pilot", "validate", "-f", "mesh"])?;
        let messages: Vec<_> = said.lines().filter(|l| l.contains("reviews.yaml")).collect();
        let said = messages.join("\n");
        ensure!(
            code == Some(i32::from(said.contains("error: ") || said.contains("unknown"))),
            "{}: exit {code:?}: {said}",
            bad.title
        );
        ensure!(
            findings(&status).contains(messages[0]),
            "{}: served: {}; validate: {said}",
            bad.title,
            findings(&status)
        );
        let _ = writeln!(page, "\n### {}\n", bad.title);
        if !bad.text.is_empty() {
            page.push_str(&block("yaml", bad.text));
        }
        page.push_str(&block("text", &said));
        let kept = if stays {
            "The good object stays in force."
        } else {
            "It is in force, as far as it can be; the rest has no effect."
        };
        let _ = writeln!(page, "Exit code of `pilot validate`: {}. {kept}", code.unwrap_or(-1));
    }
    Ok(())
}

fn calls(page: &mut String) -> anyhow::Result<()> {
    page.push_str("\n## Commands\n");
    for bad in CALLS {
        let dir = tempfile::tempdir()?;
        let _ = writeln!(page, "\n### {}\n", bad.title);
        for (name, text) in bad.files {
            fs::write(dir.path().join(name), text)?;
            let _ = writeln!(page, "`{name}`:\n\n{}", block("yaml", text));
        }
        let (code, said) = run(dir.path(), bad.command)?;
        ensure!(code.is_some_and(|c| c != 0), "{}: exit {code:?}: {said}", bad.title);
        ensure!(!said.contains("panicked") && !said.contains("stack backtrace"), "{}: {said}", bad.title);
        page.push_str(&block("text", &format!("$ {}\n{said}", shown(bad.command))));
        let _ = writeln!(page, "Exit code: {}.", code.unwrap_or(-1));
    }
    Ok(())
}

/// Requests that citadel does not grant as they are.
async fn certificates(page: &mut String) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mint = Mint::new()?;
    fs::write(dir.path().join("keys.json"), mint.jwks().to_string())?;
    let (listen, admin) = (backends::free_port()?, backends::free_port()?);
    let (listen, admin) = (format!("127.0.0.1:{listen}"), SocketAddr::from((Ipv4Addr::LOCALHOST, admin)));
    let mut citadel = Command::new(peers::program("citadel")?);
    citadel.args(["serve", "--listen", &listen, "--admin", &admin.to_string(), "--ca-dir", "ca"]);
    citadel.args(["--token-keys", "keys.json", "--root-out", "root.pem"]).current_dir(dir.path());
    let _citadel = Running::start(&mut citadel, &dir.path().join("citadel.log"))?;
    let mut ready = false;
    for _ in 0..200 {
        ready = matches!(backends::get(admin, "/healthz/ready").await, Ok((200, _)));
        if ready {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(ready, "citadel is not ready: {}", fs::read_to_string(dir.path().join("citadel.log"))?);

    let token = dir.path().join("token");
    let server = ServerCheck::Id("spiffe://cluster.local/ns/istio-system/sa/citadel".parse()?);
    let client =
        CaClient::new(&listen, &dir.path().join("root.pem"), server, &token, &ChannelOptions::default())
            .map_err(anyhow::Error::msg)?;
    let key = rcgen::KeyPair::generate()?;
    let csr = |uri: &str| -> anyhow::Result<String> {
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into()?)];
        Ok(params.serialize_request(&key)?.pem()?)
    };
    page.push_str("\n## Certificate requests\n\nThe caller is the service account `web` of namespace `shop`, as its token says.\n");

    let asked = "spiffe://cluster.local/ns/istio-system/sa/pilot";
    fs::write(&token, mint.token("shop", "web", "web-1", "1")?)?;
    let chain = client.sign(csr(asked)?, Duration::from_secs(3600)).await?;
    let credentials =
        Credentials::from_pem("citadel", chain.concat().as_bytes(), key.serialize_pem().as_bytes())?;
    let got = credentials.id().context("the certificate has no SPIFFE id")?.to_string();
    ensure!(got == "spiffe://cluster.local/ns/shop/sa/web", "the certificate is for {got}");
    let _ = writeln!(
        page,
        "\n### A request with somebody else's identity\n\nNames in a request are never looked at: the certificate is for the caller.\n\n{}",
        block("text", &format!("asked for: {asked}\nissued:    {got}"))
    );

    let over = SystemTime::now() - LIFETIME - Duration::from_secs(3600);
    let tokens = [
        ("An expired token", mint.token_issued(over, "shop", "web", "web-1", "1")?),
        ("A token of a stranger's making", Mint::new()?.token("shop", "web", "web-1", "1")?),
        ("No token at all", String::new()),
    ];
    for (title, text) in tokens {
        fs::write(&token, text)?;
        let refused = client.sign(csr(&got)?, Duration::from_secs(3600)).await;
        let why = refused.err().with_context(|| format!("{title}: a certificate was issued"))?.to_string();
        let why = why.replace(&format!("{}/", dir.path().display()), "");
        let _ = writeln!(page, "\n### {title}\n\n{}", block("text", &why));
    }
    // A workload says the same in its log, and goes on trying.
    fs::write(&token, mint.token_issued(over, "shop", "web", "web-1", "1")?)?;
    let log = dir.path().join("agent.log");
    let mut agent = Command::new(peers::program("citadel")?);
    agent.args(["agent", "--socket", "sds.sock", "--ca-addr", &listen, "--token-file", "token"]);
    agent.args(["--root-cert-file", "root.pem"]).current_dir(dir.path());
    let _agent = Running::start(&mut agent, &log)?;
    let mut line = None;
    for _ in 0..200 {
        let text = fs::read_to_string(&log)?;
        line = text.lines().find(|l| l.contains("expired")).map(str::to_owned);
        if line.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let line = line.with_context(|| {
        format!("the agent says nothing: {}", fs::read_to_string(&log).unwrap_or_default())
    })?;
    let plain = Regex::new(r"\x1b\[[0-9;]*m|^\S+Z +")?.replace_all(&line, "").into_owned();
    let plain = Regex::new(r"retry_in_\w+=\S+|127\.0\.0\.1:\d+")?.replace_all(&plain, "…").into_owned();
    let _ = writeln!(page, "The log of `citadel agent` with the expired token:\n\n{}", block("text", &plain));
    Ok(())
}

async fn page() -> anyhow::Result<String> {
    peers::build()?;
    let mut page = HEAD.to_owned();
    files(&mut page).await?;
    calls(&mut page)?;
    certificates(&mut page).await?;
    Ok(page)
}

#[tokio::test]
async fn every_bad_input_gets_the_message_that_the_docs_show_and_loses_nothing() {
    let page = page().await.unwrap_or_else(|error| panic!("{error:#}"));
    let file = peers::root().join("docs/bad-input.md");
    if std::env::var_os("WRITE_DOCS").is_some() {
        fs::write(&file, &page).expect("docs are writable");
    }
    let written = fs::read_to_string(&file).unwrap_or_default();
    for (number, (want, got)) in written.lines().zip(page.lines()).enumerate() {
        assert_eq!(want, got, "docs/bad-input.md:{}", number + 1);
    }
    assert_eq!(written.lines().count(), page.lines().count(), "docs/bad-input.md");
}
