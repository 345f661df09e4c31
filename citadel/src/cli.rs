//! The command line of citadel, and the two programs behind it.
//!
//! In: flags, environment, settings file. Out: a running authority or agent, until a signal.
//! Kept true: what an operator got wrong is said with the flag's name, before anything listens.
//! Not here: the work itself (`serve`, `agent`).

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use mesh_identity::{TrustDomain, workload};
use mesh_kube::{
    KubeArgs,
    k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference,
    kube::Client,
    lease::{self, Leader},
};
use mesh_runtime::{
    CaClientArgs, CommonArgs, Metrics, Readiness, admin::Admin, drain, listen, secrets::protect_memory,
    shutdown::Signals,
};

use crate::{
    agent::{self, sds::Sds},
    ca::{
        Lifetimes,
        self_signed::SelfSigned,
        source::{POLL, Source},
    },
    caller::{
        TokenVerifier,
        jwks::{Accept, DEFAULT_AUDIENCE, Jwks},
    },
    kube::{LEASE, review::Reviews, roots, secrets::Secrets},
    serve::{Citadel, Options},
};

/// Certificate authority of the Crema mesh
///
/// Workloads send a certificate request with their service account token and get a short-lived certificate with
/// their SPIFFE identity, spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT. The identity comes from the token
/// (or from the mesh certificate of the connection), never from the request.
#[derive(Parser, Debug)]
#[command(name = "citadel", version, max_term_width = 100)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// What citadel can do.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Run the certificate authority
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(Box<ServeArgs>),
    /// Give certificates to an Envoy on this machine: SDS on a unix socket, with a key made here
    #[command(after_help = AGENT_EXAMPLES)]
    Agent(Box<AgentArgs>),
}

const SERVE_EXAMPLES: &str = "\
Examples:
  A root of its own, kept in ./ca; tokens checked with the issuer's public keys:
    citadel serve --ca-dir ./ca --token-keys jwks.json --root-out root-cert.pem

  An intermediate of your own authority (ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem):
    citadel serve --plugged-ca /etc/cacerts --token-keys jwks.json

  To replace a root, put the old and the new one into root-cert.pem, wait until all workloads have renewed, put the
  new signing key in place, wait again, then remove the old root. Files are reloaded while citadel runs.";

const AGENT_EXAMPLES: &str = "\
Example:
    citadel agent --ca-addr citadel.istio-system.svc:8060 --socket /var/run/secrets/workload-spiffe-uds/socket

  In Envoy, point an SDS config at a cluster with this socket (`pipe: {path: …}`, HTTP/2) and ask for the secrets
  `default` (certificate and key) and `ROOTCA` (roots).";

/// Flags of `citadel serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Flags of all programs.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Where certificate requests are taken (gRPC over TLS)
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:8060", value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// Directory of the self-signed root; made when missing
    #[arg(long, visible_alias = "state-dir", env = "CA_DIR", default_value = "ca", value_name = "DIR")]
    pub ca_dir: PathBuf,
    /// Directory of an authority of your own, used instead of a self-signed root
    #[arg(long, env = "PLUGGED_CA", value_name = "DIR")]
    pub plugged_ca: Option<PathBuf>,
    /// File to keep the root certificates in, for workloads to check citadel against
    #[arg(long, visible_alias = "root-cert-out", env = "ROOT_OUT", value_name = "FILE")]
    pub root_out: Option<PathBuf>,
    /// Public keys of the token issuer (JSON Web Key Set); without it only certificates of the mesh are accepted
    #[arg(long, env = "TOKEN_KEYS", value_name = "FILE")]
    pub token_keys: Option<PathBuf>,
    /// Audience that a token must have; several are allowed
    #[arg(long, env = "TOKEN_AUDIENCE", default_value = DEFAULT_AUDIENCE, value_delimiter = ',', value_name = "NAME")]
    pub token_audience: Vec<String>,
    /// Issuer that a token must have [default: any whose key is in --token-keys]
    #[arg(long, env = "TOKEN_ISSUER", value_name = "URL")]
    pub token_issuer: Option<String>,
    /// Trust domain of this mesh
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local", value_name = "NAME")]
    pub trust_domain: String,
    /// Lifetime of certificates when a request names none: 90m, 24h, 7d
    #[arg(long, env = "DEFAULT_TTL", default_value = "24h", value_parser = duration, value_name = "TIME")]
    pub default_ttl: Duration,
    /// Longest lifetime that is given
    #[arg(long, env = "MAX_TTL", default_value = "90d", value_parser = duration, value_name = "TIME")]
    pub max_ttl: Duration,
    /// Or a cluster: the authority in Secrets, callers by TokenReview, roots as ConfigMaps
    #[command(flatten)]
    pub cluster: KubeArgs,
    /// Certificates per second that one identity may ask for on average (twice as many at once)
    #[arg(long, env = "RATE_PER_IDENTITY", default_value_t = 50, value_name = "N")]
    pub rate_per_identity: u32,
}

/// Flags of `citadel agent`.
#[derive(Args, Debug)]
pub struct AgentArgs {
    /// Flags of all programs.
    #[command(flatten)]
    pub common: CommonArgs,
    /// How to get certificates.
    #[command(flatten)]
    pub ca: CaClientArgs,
    /// Unix socket to serve Envoys on
    #[arg(
        long,
        env = "SOCKET",
        default_value = "/var/run/secrets/workload-spiffe-uds/socket",
        value_name = "PATH"
    )]
    pub socket: PathBuf,
    /// Permissions of the socket, octal: who may open it gets the private key
    #[arg(long, env = "SOCKET_MODE", default_value = "600", value_parser = octal, value_name = "MODE")]
    pub socket_mode: u32,
}

/// `90s`, `30m`, `24h`, `90d`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        other => return Err(format!("unknown unit `{other}`; use s, m, h or d")),
    };
    let number: u64 = digits.parse().map_err(|_| "use a number with s, m, h or d, such as 24h".to_owned())?;
    match number.checked_mul(unit) {
        Some(seconds) if (60..=10 * 365 * 24 * 3600).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err("must be between 60s and 3650d".into()),
    }
}

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("use an octal mode such as 600 or 660".into()),
    }
}

/// Runs a parsed command until it is told to stop.
///
/// # Errors
/// What the operator has to change, naming flag or file.
pub async fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.verb {
        Verb::Serve(args) => serve(*args).await,
        Verb::Agent(args) => run_agent(*args).await,
    }
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let log = args.common.init_logs()?;
    protect_memory();
    let signals = Signals::new().context("signals")?;
    let (trigger, watch) = drain::new();
    let metrics = Metrics::for_process("citadel");
    let readiness = Readiness::new();
    let domain = TrustDomain::from_config(&args.trust_domain).context("--trust-domain")?;
    if args.default_ttl > args.max_ttl {
        bail!("--default-ttl is longer than --max-ttl");
    }
    let cluster = match args.cluster.kube {
        true => match in_cluster(&args, &domain, &watch).await? {
            Some(cluster) => Some(cluster),
            None => return Ok(()),
        },
        false => None,
    };
    let (source, tokens) = match &cluster {
        Some(cluster) => {
            let reviews = Reviews::new(cluster.client.clone(), args.token_audience.clone());
            let tokens = Some(Arc::new(reviews) as Arc<dyn TokenVerifier>);
            (Source::Secrets(cluster.secrets.clone()), tokens)
        }
        None => (files(&args, &domain), keys(&args, &watch)?),
    };
    let citadel = Citadel::load(Options {
        source,
        domain: domain.clone(),
        lifetimes: Lifetimes { default: args.default_ttl, max: args.max_ttl },
        root_out: args.root_out.clone(),
        tokens,
        per_second: args.rate_per_identity,
        poll: POLL,
        clock: Arc::new(SystemTime::now),
        mesh_namespace: args.cluster.mesh_namespace.clone(),
    })?;
    if let Some(Cluster { client, secrets, owner, leader }) = cluster {
        let current = citadel.current().clone();
        tokio::spawn(secrets.follow(leader.clone(), SystemTime::now, watch.clone()));
        tokio::spawn(roots::keep(client, current, owner, leader, watch.clone()));
    }
    let admin = Admin::new("citadel", readiness.clone(), metrics.clone(), log)
        .routes(citadel.routes())
        .bind(args.common.admin_or_loopback(8061))
        .context("--admin")?;
    let listener = listen::bind(args.listen).context("--listen")?;
    tracing::info!(listen = %args.listen, admin = %admin.local_addr(), trust_domain = %domain, "citadel serves");
    tokio::spawn(admin.serve(watch.clone()));
    let server = tokio::spawn(async move { citadel.serve(listener, &readiness, &metrics, watch).await });
    signals.drain_on_signal(trigger, args.common.grace()).await;
    if server.is_finished() {
        server.await??;
    }
    Ok(())
}

/// The authority in files.
fn files(args: &ServeArgs, domain: &TrustDomain) -> Source {
    match &args.plugged_ca {
        Some(dir) => Source::Plugged(dir.clone()),
        None => Source::SelfSigned(SelfSigned::new(&args.ca_dir, domain)),
    }
}

/// Tokens by the issuer's keys.
fn keys(args: &ServeArgs, watch: &drain::Watch) -> anyhow::Result<Option<Arc<dyn TokenVerifier>>> {
    let Some(path) = &args.token_keys else {
        tracing::warn!("no --token-keys: only holders of a mesh certificate get new ones");
        return Ok(None);
    };
    let accept = Accept { audiences: args.token_audience.clone(), issuer: args.token_issuer.clone() };
    let keys = Arc::new(Jwks::open(path, accept)?);
    tokio::spawn(keys.clone().follow(watch.clone()));
    Ok(Some(keys as Arc<dyn TokenVerifier>))
}

/// What citadel has of its cluster.
struct Cluster {
    client: Client,
    secrets: Secrets,
    owner: Option<OwnerReference>,
    leader: Leader,
}

/// Waits for the authority; `None` when the drain came first.
async fn in_cluster(
    args: &ServeArgs,
    domain: &TrustDomain,
    watch: &drain::Watch,
) -> anyhow::Result<Option<Cluster>> {
    let namespace = &args.cluster.mesh_namespace;
    let client = mesh_kube::client().await?;
    let owner = mesh_kube::owner(&client).await;
    let drained = watch.clone();
    let stop = async move { drained.signaled().await };
    let (leader, election) =
        lease::lead(client.clone(), namespace, LEASE, &mesh_kube::identity(), owner.clone(), stop);
    tokio::spawn(election);
    let opened = Secrets::open(client.clone(), namespace, domain, owner.clone(), &leader, watch).await;
    Ok(opened.map(|secrets| Cluster { client, secrets, owner, leader }))
}

async fn run_agent(args: AgentArgs) -> anyhow::Result<()> {
    let log = args.common.init_logs()?;
    protect_memory();
    let signals = Signals::new().context("signals")?;
    let (trigger, watch) = drain::new();
    let metrics = Metrics::for_process("citadel-agent");
    let readiness = Readiness::new();
    if args.ca.ca_addr.is_none() {
        bail!("--ca-addr is needed: the certificate authority to ask, as host:port");
    }
    let ready = readiness.condition("certificate", "the certificate authority has not answered yet");
    let store =
        workload::start(&args.ca, None, None, &metrics, ready, watch.clone()).map_err(anyhow::Error::msg)?;
    let listener = agent::bind(&args.socket, args.socket_mode).await.context("--socket")?;
    if let Some(addr) = args.common.admin {
        let admin =
            Admin::new("citadel-agent", readiness, metrics.clone(), log).bind(addr).context("--admin")?;
        tokio::spawn(admin.serve(watch.clone()));
    }
    tracing::info!(socket = %args.socket.display(), "agent serves secrets");
    let sds = Sds::new(store, watch.clone()).metrics(&metrics);
    let server = tokio::spawn(agent::serve(listener, sds, watch));
    signals.drain_on_signal(trigger, args.common.grace()).await;
    let _ = std::fs::remove_file(&args.socket);
    if server.is_finished() {
        server.await??;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_documented() {
        Cli::command().debug_assert();
        for verb in Cli::command().get_subcommands() {
            for arg in verb.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {}", verb.get_name(), arg.get_id());
            }
        }
    }

    #[test]
    fn durations_have_units_and_bounds() {
        for (text, seconds) in [
            ("24h", Some(86_400)),
            ("90m", Some(5_400)),
            ("7d", Some(604_800)),
            ("3600", Some(3600)),
            ("60s", Some(60)),
        ] {
            assert_eq!(duration(text).ok().map(|d| d.as_secs()), seconds, "{text}");
        }
        for text in ["", "h", "1y", "-1h", "1s", "99999d", "99999999999999999999d", "1.5h"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(octal("660"), Ok(0o660));
        assert!(octal("1777").is_err() && octal("rw").is_err());
    }
}
