//! Pages for those around the proxy: readiness and probes for the kubelet, the way out for the pod's own containers.
//!
//! In: readiness, the application's probes, [`Leave`]. Out: axum routes for 15021, 15020 and the admin port, and where those are bound.
//! Kept true: only callers in the pod can end the proxy. Not here: asking the application (`ask`), statistics and configuration (`admin`).

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::ConnectInfo,
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use mesh_runtime::{Readiness, listen::is_loopback};
use serde_json::json;

use super::{ask, leave::Leave, probers::Probers};
use crate::cli::PortArgs;

/// Where the pages of a proxy listen. `None` for nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// Admin pages.
    pub admin: Option<SocketAddr>,
    /// Readiness and probes.
    pub health: Option<SocketAddr>,
    /// The same, statistics, and the way out.
    pub agent: Option<SocketAddr>,
    /// Statistics.
    pub stats: Option<SocketAddr>,
}

impl Places {
    /// In a pod, admin pages are for the pod alone, and others answer on every address. Where pods share a host, on loopback addresses,
    /// each has its own.
    #[must_use]
    pub fn of(instance: IpAddr, ports: &PortArgs, admin: Option<SocketAddr>) -> Self {
        let all = if instance.is_loopback() { instance } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        let at = |port: u16| (port != 0).then_some(SocketAddr::new(all, port));
        let health = at(ports.health_port);
        Self {
            admin: Some(admin.unwrap_or_else(|| ask::own_page(Some(instance), ports.admin_port))),
            health,
            agent: at(ports.agent_port).filter(|agent| Some(*agent) != health),
            stats: at(ports.stats_port),
        }
    }
}

/// `/healthz/ready` as the kubelet asks for it, and the application's probes at `ip`.
pub fn status(readiness: Readiness, probers: Arc<Probers>, ip: IpAddr) -> Router {
    let ready = async move || match readiness.is_ready() {
        true => (StatusCode::OK, "ready\n".to_owned()),
        false => {
            let missing = readiness.missing();
            let lines: String =
                missing.iter().map(|(name, why)| format!("not ready: {name}: {why}\n")).collect();
            (StatusCode::SERVICE_UNAVAILABLE, lines)
        }
    };
    let probe = async move |uri: Uri, headers: HeaderMap| match probers.get(uri.path()) {
        Some(Ok(probe)) => ask::ask(probe, ip, &headers).await,
        Some(Err(why)) => ask::failed(why),
        None => (StatusCode::NOT_FOUND, "no such probe: the pod's proxy was not told of it\n".into()),
    };
    Router::new()
        .route("/healthz/ready", get(ready))
        .route("/app-health/{container}/{probe}", get(probe.clone()))
        .route("/app-lifecycle/{container}/{hook}", get(probe))
}

/// `POST /quitquitquit`, for Jobs whose sidecar would outlive them: from inside the pod only.
pub fn quit(leave: Leave) -> Router {
    let quit = async move |ConnectInfo(peer): ConnectInfo<SocketAddr>| match is_loopback(peer.ip()) {
        true => {
            leave.quit();
            (StatusCode::OK, "quitting\n")
        }
        false => (StatusCode::FORBIDDEN, "only from inside the pod: POST to 127.0.0.1\n"),
    };
    Router::new().route("/quitquitquit", post(quit))
}

/// `/drain`: a POST tells clients to go elsewhere, a GET shows how many connections there still are.
pub fn drain(leave: Leave, connections: impl Fn() -> u64 + Clone + Send + Sync + 'static) -> Router {
    let page = move |leave: &Leave| -> Response {
        Json(json!({ "leaving": leave.has_begun(), "connections": connections() })).into_response()
    };
    let (shown, asked) = (page.clone(), leave.clone());
    let begin = async move || {
        leave.begin("asked to drain");
        page(&leave)
    };
    Router::new().route("/drain", get(async move || shown(&asked)).post(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(health: u16, agent: u16) -> PortArgs {
        PortArgs {
            health_port: health,
            agent_port: agent,
            stats_port: 15090,
            admin_port: 15000,
            concurrency: None,
            max_connections: 1,
            restart_socket: None,
            drain_delay_seconds: None,
        }
    }

    #[test]
    fn in_a_pod_admin_pages_are_for_the_pod_alone() {
        for (ip, ports, want) in [
            ("10.0.0.5", ports(15021, 15020), ["127.0.0.1:15000", "[::]:15021", "[::]:15020", "[::]:15090"]),
            ("fd00::5", ports(15021, 15020), ["127.0.0.1:15000", "[::]:15021", "[::]:15020", "[::]:15090"]),
            ("10.0.0.5", ports(15020, 15020), ["127.0.0.1:15000", "[::]:15020", "", "[::]:15090"]),
            ("10.0.0.5", ports(0, 15020), ["127.0.0.1:15000", "", "[::]:15020", "[::]:15090"]),
            (
                "127.64.1.3",
                ports(15021, 15020),
                ["127.64.1.3:15000", "127.64.1.3:15021", "127.64.1.3:15020", "127.64.1.3:15090"],
            ),
        ] {
            let places = Places::of(ip.parse().expect("an address"), &ports, None);
            let got = [places.admin, places.health, places.agent, places.stats];
            assert_eq!(got.map(|at| at.map(|at| at.to_string()).unwrap_or_default()), want, "{ip}");
        }
    }
}
