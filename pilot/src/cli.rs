//! The command line of `pilot`.
//!
//! In: arguments. Out: an exit code; answers on standard output, everything else on standard error.
//! Kept true: exit code 0 only when what was asked about is right. Not here: the work behind each verb.

use crate::{
    explain::{self, Answer, Request, Sender},
    model::Model,
    push::ClientStatus,
    serve::{self, ServeArgs},
    tls_check::{self, COLUMNS, Row},
    translate::Translator,
};
use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use mesh_config::Snapshot;
use std::{io::Read as _, net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc};

/// Reads services, endpoints and mesh configuration, and tells every proxy its routes over xDS.
#[derive(Debug, Parser)]
#[command(name = "pilot", version, about)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve xDS to proxies from a watched directory or a cluster
    Serve(Box<ServeArgs>),
    /// Check files: one line per problem, exit code 1 if there is an error
    ///
    /// Example: pilot validate -f mesh/
    Validate(ValidateArgs),
    /// Show who is connected, and how far each proxy is
    Status(StatusArgs),
    /// Show what servers ask for and what clients send: mutual TLS or plaintext
    ///
    /// Example: pilot tls-check reviews.default.svc.cluster.local, or pilot tls-check web-1.default
    TlsCheck(TlsCheckArgs),
    /// Say what would become of a request, without sending it
    ///
    /// Example: pilot explain -f mesh/ --from default/web GET http://reviews:8080/api -H 'user-agent: Firefox'
    Explain(ExplainArgs),
}

#[derive(Debug, Args)]
struct ValidateArgs {
    /// File or directory; may be repeated. `-` is standard input
    #[arg(short = 'f', long = "filename", value_name = "PATH", required = true)]
    files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// Admin address of pilot
    #[arg(long, visible_alias = "admin", default_value = "127.0.0.1:15014", value_name = "IP:PORT")]
    addr: SocketAddr,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Args)]
struct TlsCheckArgs {
    /// A service's full name, or the client: POD or POD.NAMESPACE
    #[arg(value_name = "SERVICE|POD[.NS]")]
    first: Option<String>,
    /// With a client: only this service
    #[arg(value_name = "SERVICE")]
    second: Option<String>,
    /// Admin address of pilot
    #[arg(long, visible_alias = "admin", default_value = "127.0.0.1:15014", value_name = "IP:PORT")]
    addr: SocketAddr,
    /// Ask files and directories instead of a running pilot; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Args)]
struct ExplainArgs {
    /// File or directory with the configuration; may be repeated. `-` is standard input
    #[arg(short = 'f', long = "filename", value_name = "PATH", required = true)]
    files: Vec<PathBuf>,
    /// The pod that sends, as NAMESPACE/POD (or the name of its Deployment)
    #[arg(long, value_name = "NS/POD", required_unless_present = "gateway", conflicts_with = "gateway")]
    from: Option<String>,
    /// The Gateway through which a request from outside comes, as NAMESPACE/NAME
    #[arg(long, value_name = "NS/NAME")]
    gateway: Option<String>,
    /// Method, e.g. GET
    method: String,
    /// URL, e.g. http://reviews:8080/api/reviews/1
    url: String,
    /// A header, `name: value`; may be repeated
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// Does what the arguments say.
///
/// # Errors
/// When it cannot be done; what was found wrong in files is no error here but exit code 1.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.verb {
        Verb::Serve(args) => {
            runtime()?.block_on(serve::run(*args))?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Validate(args) => validate(&args),
        Verb::Status(args) => status(&args),
        Verb::TlsCheck(args) => tls_check(&args),
        Verb::Explain(args) => explain(&args),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Files and directories, or standard input.
fn load(paths: &[PathBuf]) -> anyhow::Result<Snapshot> {
    if paths.iter().any(|p| p.as_os_str() == "-") {
        anyhow::ensure!(paths.len() == 1, "-f -: standard input cannot be combined with files");
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input")?;
        return Ok(Snapshot::from_texts(&[("stdin", &text)]));
    }
    Ok(Snapshot::load(paths)?)
}

fn validate(args: &ValidateArgs) -> anyhow::Result<ExitCode> {
    let snapshot = load(&args.files)?;
    let findings = snapshot.diagnostics();
    say(&findings.iter().map(|f| format!("{f:#}\n")).collect::<String>())?;
    let wrong = findings.iter().filter(|f| f.is_error() || f.is_unknown()).count();
    let objects = snapshot.resources().len();
    if wrong > 0 {
        eprintln!("{wrong} error(s), {} warning(s)", findings.len() - wrong);
        return Ok(ExitCode::FAILURE);
    }
    eprintln!("{objects} object(s), no errors, {} warning(s)", findings.len());
    Ok(ExitCode::SUCCESS)
}

/// Asks pilot's admin port.
fn ask(addr: SocketAddr, path: &str) -> anyhow::Result<String> {
    use http_body_util::{BodyExt as _, Empty};
    use hyper_util::{
        client::legacy::{Client, connect::HttpConnector},
        rt::TokioExecutor,
    };
    runtime()?.block_on(async {
        let client: Client<HttpConnector, Empty<bytes::Bytes>> =
            Client::builder(TokioExecutor::new()).build_http();
        let uri = format!("http://{addr}{path}").parse().context("address of pilot")?;
        let answer = client.get(uri).await.with_context(|| {
            format!("pilot's admin port {addr} does not answer: is pilot running, is --addr right?")
        })?;
        let status = answer.status();
        let body = answer.into_body().collect().await.context("pilot's answer")?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        if !status.is_success() {
            bail!("{}", text.trim());
        }
        Ok(text)
    })
}

fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let text = ask(args.addr, "/debug/syncz")?;
    if args.output == Output::Json {
        say(&format!("{text}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let clients: Vec<serde_json::Value> = serde_json::from_str(&text).context("pilot's answer")?;
    let short = ["CDS", "LDS", "EDS", "RDS", "VHDS"];
    let mut rows =
        vec![["NAME", "CDS", "LDS", "EDS", "RDS", "VHDS", "VERIFIED", "AGENT"].map(str::to_owned).to_vec()];
    let mut refusals = Vec::new();
    for client in &clients {
        let get = |key: &str| client.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        let mut row = vec![get("workload")];
        for kind in short {
            let standing = client.pointer(&format!("/types/{kind}"));
            row.push(standing.map_or("-".to_owned(), |s| word(s).to_owned()));
            let refused = standing.and_then(|s| s.get("refused")).and_then(|r| r.as_object());
            for (name, refusal) in refused.into_iter().flatten() {
                let why = refusal.get("why").and_then(|w| w.as_str()).unwrap_or_default();
                let sources = refusal.get("sources").and_then(|s| s.as_array()).cloned().unwrap_or_default();
                let sources: Vec<_> = sources.iter().filter_map(|s| s.as_str()).collect();
                refusals.push(format!(
                    "{} refused {kind} {name} ({}): {why}",
                    get("workload"),
                    sources.join(", ")
                ));
            }
        }
        let verified = client.get("verified").and_then(serde_json::Value::as_bool).unwrap_or(false);
        row.push(if verified { "yes" } else { "no" }.to_owned());
        row.push(get("agent"));
        rows.push(row);
    }
    let refusals: String = refusals.iter().map(|r| format!("{r}\n")).collect();
    say(&(table(&rows) + &refusals))?;
    Ok(ExitCode::SUCCESS)
}

/// As [`crate::ads::stream::Standing::word`], from its JSON.
fn word(standing: &serde_json::Value) -> &'static str {
    let number = |key: &str| standing.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0);
    let refused = standing.get("refused").and_then(|r| r.as_object()).is_some_and(|r| !r.is_empty());
    match (refused, number("sent"), number("acknowledged")) {
        (true, ..) => "REFUSED",
        (_, 0, _) => "NOT SENT",
        (_, sent, acknowledged) if sent != acknowledged => "STALE",
        _ => "SYNCED",
    }
}

fn tls_check(args: &TlsCheckArgs) -> anyhow::Result<ExitCode> {
    let is_service = |name: &str| name.contains(".svc.") || name.ends_with(".svc");
    let (client, service) = match (&args.first, &args.second) {
        (Some(one), None) if is_service(one) => (None, Some(one.as_str())),
        (first, second) => (first.as_deref(), second.as_deref()),
    };
    let rows: Vec<Row> = if args.files.is_empty() {
        let mut path = "/debug/authenticationz?".to_owned();
        for (key, value) in [("proxyID", client), ("service", service)] {
            if let Some(value) = value {
                anyhow::ensure!(
                    value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-./_".contains(&b)),
                    "{value:?} is not the name of a pod or service"
                );
                path.push_str(&format!("{key}={value}&"));
            }
        }
        serde_json::from_str(&ask(args.addr, &path)?).context("pilot's answer")?
    } else {
        let translator = Translator::new(Arc::new(Model::new(Arc::new(load(&args.files)?))));
        tls_check::check(&translator, client, service).map_err(anyhow::Error::msg)?
    };
    if args.output == Output::Json {
        say(&(serde_json::to_string_pretty(&rows)? + "\n"))?;
    } else {
        let mut lines = vec![COLUMNS.map(str::to_owned).to_vec()];
        lines.extend(rows.iter().map(|r| r.cells().map(str::to_owned).to_vec()));
        say(&table(&lines))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn explain(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let pair = |text: &str| {
        let (ns, name) = text.split_once('/').unwrap_or(("default", text));
        (ns.to_owned(), name.to_owned())
    };
    let sender = match (&args.from, &args.gateway) {
        (Some(from), _) => {
            let (ns, name) = pair(from);
            Sender::Pod(ns, name)
        }
        (None, Some(gateway)) => {
            let (ns, name) = pair(gateway);
            Sender::Gateway(ns, name)
        }
        (None, None) => bail!("say who sends: --from NS/POD or --gateway NS/NAME"),
    };
    let request = Request::parse(&args.method, &args.url, &args.headers).map_err(anyhow::Error::msg)?;
    let snapshot = load(&args.files)?;
    // What was refused decides nothing: say so, or the answer misleads.
    let refused: Vec<_> =
        snapshot.diagnostics().into_iter().filter(|f| f.is_error() || f.is_unknown()).collect();
    refused.iter().for_each(|finding| eprintln!("not in force: {finding:#}"));
    let model = Arc::new(Model::new(Arc::new(snapshot)));
    let answer = explain::explain(model, &sender, &request).map_err(anyhow::Error::msg)?;
    match args.output {
        Output::Json => say(&(serde_json::to_string(&answer)? + "\n"))?,
        Output::Text => say(&in_words(&answer))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn in_words(answer: &Answer) -> String {
    let mut lines = Vec::new();
    lines.push(match (&answer.virtual_service, answer.rule) {
        (Some(name), Some(rule)) => format!("decided by   VirtualService {name}, rule {rule}"),
        (Some(name), None) => format!("decided by   VirtualService {name}"),
        _ => "decided by   no VirtualService".to_owned(),
    });
    if let Some(fault) = &answer.fault {
        if let Some(delay) = &fault.delay {
            lines.push(format!("delayed by   {} for {} % of requests", delay.fixed, delay.percent));
        }
        if let Some(abort) = &fault.abort {
            lines.push(format!("aborted with {} for {} % of requests", abort.status, abort.percent));
        }
    }
    if let Some(own) = &answer.response {
        lines.push(format!("answered by  the proxy itself: {} {}", own.code, own.flag));
    }
    for to in &answer.destinations {
        let subset = to.subset.as_ref().map(|s| format!(" subset {s}")).unwrap_or_default();
        let endpoints =
            if to.endpoints.is_empty() { "no endpoints".to_owned() } else { to.endpoints.join(", ") };
        lines.push(format!(
            "goes to      {}:{}{subset}, weight {} ({endpoints})",
            to.host, to.port, to.weight
        ));
    }
    if !answer.destinations.is_empty() {
        lines.push(format!("timeout      {}", answer.timeout.as_deref().unwrap_or("none")));
        lines.push(match &answer.retries {
            Some(r) => {
                let limit = r.per_try_timeout.as_ref().map(|t| format!(", {t} per try")).unwrap_or_default();
                format!("retries      {} on {}{limit}", r.attempts, r.on)
            }
            None => "retries      none".to_owned(),
        });
        lines.push(format!("sent as      {}", answer.tls));
    }
    lines.join("\n") + "\n"
}

/// Writes an answer. A reader that has seen enough (`| head`) is no error.
fn say(text: &str) -> anyhow::Result<()> {
    use std::io::{ErrorKind, Write as _};
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e).context("standard output"),
        _ => Ok(()),
    }
}

/// Rows in aligned columns.
fn table(rows: &[Vec<String>]) -> String {
    let mut out = String::new();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| rows.iter().filter_map(|r| r.get(i)).map(String::len).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns).map(width).collect();
    for row in rows {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        out.push_str(cells.join("     ").trim_end());
        out.push('\n');
    }
    out
}

/// The shape of the status answer, so that a change of it breaks the build here.
const _: fn(
    &ClientStatus,
) -> (&String, &std::collections::BTreeMap<&'static str, crate::ads::stream::Standing>) =
    |s| (&s.workload, &s.types);
