//! `proxy wait` and `proxy drain`: what the kubelet runs in the proxy's container before the application starts and when the pod ends.
//!
//! In: the environment of that container. Out: success, or the reason. Kept true: neither waits longer than it was told. Not here: the
//! proxy's side (`pages`, `leave`).

use std::{net::IpAddr, time::Duration};

use anyhow::bail;
use http::{Method, StatusCode};
use tokio::time::Instant;

use super::{ask, leave};

/// How often a page is asked.
const EVERY: Duration = Duration::from_millis(100);
/// How long a page may take.
const PAGE: Duration = Duration::from_secs(1);

/// Flags of `proxy wait`.
#[derive(Debug, Clone, clap::Args)]
pub struct WaitArgs {
    /// Address of the pod: a loopback address (where pods share a host) is asked, else 127.0.0.1
    #[arg(long, env = "INSTANCE_IP", value_name = "IP")]
    pub instance_ip: Option<IpAddr>,
    /// Port of readiness
    #[arg(long, env = "HEALTH_PORT", default_value_t = 15021, value_name = "PORT")]
    pub health_port: u16,
    /// How long to wait before giving up
    #[arg(long, env = "WAIT_SECONDS", default_value_t = 60, value_name = "SECONDS")]
    pub timeout_seconds: u64,
}

/// Waits until the proxy of this pod is ready.
///
/// # Errors
/// When it was not in time: what it said last.
pub async fn wait(args: WaitArgs) -> anyhow::Result<()> {
    let address = ask::own_page(args.instance_ip, args.health_port);
    let end = Instant::now() + Duration::from_secs(args.timeout_seconds);
    loop {
        let asked = ask::page(Method::GET, address, "/healthz/ready");
        let why = match tokio::time::timeout(PAGE, asked).await {
            Ok(Ok((StatusCode::OK, _))) => return Ok(()),
            Ok(Ok((_, text))) => String::from_utf8_lossy(&text).trim().to_owned(),
            Ok(Err(why)) => why,
            Err(_) => format!("no answer from {address}"),
        };
        if Instant::now() + EVERY > end {
            bail!("the proxy was not ready within {} s: {why}", args.timeout_seconds);
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Flags of `proxy drain`.
#[derive(Debug, Clone, clap::Args)]
pub struct DrainArgs {
    /// Address of the pod: a loopback address (where pods share a host) is asked, else 127.0.0.1
    #[arg(long, env = "INSTANCE_IP", value_name = "IP")]
    pub instance_ip: Option<IpAddr>,
    /// Port of the admin pages
    #[arg(long, env = "ADMIN_PORT", default_value_t = 15000, value_name = "PORT")]
    pub admin_port: u16,
    /// How long to wait for connections to end [default: terminationDrainDuration of PROXY_CONFIG, else 5]
    #[arg(long, env = "TERMINATION_DRAIN_DURATION_SECONDS", value_name = "SECONDS")]
    pub drain_delay_seconds: Option<u64>,
    /// Istio's ProxyConfig as JSON
    #[arg(long, env = "PROXY_CONFIG", default_value = "{}", value_name = "JSON")]
    pub proxy_config: String,
}

/// Tells the proxy of this pod to leave, and waits until its connections have ended or the time has passed. The proxy itself ends by a
/// signal; one that is gone already has nothing to drain.
///
/// # Errors
/// When the flags cannot be meant, or the proxy answers with an error.
pub async fn drain(args: DrainArgs) -> anyhow::Result<()> {
    let config = super::config(&args.proxy_config)?;
    let delay = match args.drain_delay_seconds {
        Some(seconds) => Duration::from_secs(seconds),
        None => super::drain_delay(&config)?.unwrap_or(leave::DELAY),
    };
    let address = ask::own_page(args.instance_ip, args.admin_port);
    let end = Instant::now() + delay;
    let mut method = Method::POST;
    loop {
        let asked = tokio::time::timeout(PAGE, ask::page(method, address, "/drain")).await;
        match asked {
            Ok(Ok((StatusCode::OK, text))) => {
                let page: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
                if page["connections"].as_u64() == Some(0) {
                    return Ok(());
                }
            }
            Ok(Ok((status, text))) => {
                bail!("{address}/drain: {status}: {}", String::from_utf8_lossy(&text).trim())
            }
            Ok(Err(why)) => {
                eprintln!("proxy: nothing to drain: {why}");
                return Ok(());
            }
            Err(_) => eprintln!("proxy: {address} does not answer"),
        }
        if Instant::now() + EVERY > end {
            return Ok(());
        }
        tokio::time::sleep(EVERY).await;
        method = Method::GET;
    }
}
