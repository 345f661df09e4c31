//! Our proxy and a real Envoy, started from one static bootstrap, before one recording application.
//!
//! In: where the programs are. Out: a [`World`] whose proxies listen. Kept true: both get the same listeners: a sidecar's and a gateway's, each
//! in plaintext and with TLS, and a pair of hops with TLS between them. `/slow` is behind limits. Not here: what is sent.

use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::Context;

use super::recorder::Recorder;
use crate::backends::{Running, free_port};

/// One proxy under attack.
#[derive(Debug)]
pub struct Target {
    /// `Crema` or `Envoy`.
    pub name: &'static str,
    /// As a sidecar listens: peers are taken at their word.
    pub sidecar: SocketAddr,
    /// As a gateway listens: clients are strangers.
    pub gateway: SocketAddr,
    /// The sidecar's with TLS; protocols by ALPN.
    pub sidecar_tls: SocketAddr,
    /// The gateway's with TLS.
    pub gateway_tls: SocketAddr,
    /// A first hop whose upstream is `sidecar_tls`.
    pub pair: SocketAddr,
    process: Running,
}

impl Target {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// The proxies and what is behind them.
#[derive(Debug)]
pub struct World {
    /// The application.
    pub recorder: Recorder,
    /// Ours.
    pub crema: Target,
    /// A real Envoy, where there is one and it was asked for.
    pub envoy: Option<Target>,
    _dir: tempfile::TempDir,
}

impl World {
    /// Starts the application, our proxy, and Envoy where its path is given.
    ///
    /// # Errors
    /// When a process does not listen within 30 s; the error holds the end of its log.
    pub async fn start(proxy: &Path, envoy: Option<&Path>) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("crema-attack-").tempdir()?;
        let signed = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
        std::fs::write(dir.path().join("cert.pem"), signed.cert.pem())?;
        std::fs::write(dir.path().join("key.pem"), signed.signing_key.serialize_pem())?;
        let recorder = Recorder::start().await?;
        let mut command = Command::new(proxy);
        command.args(["run", "--concurrency", "1"]);
        let crema = target("Crema", command, dir.path(), recorder.address).await?;
        let envoy = match envoy {
            None => None,
            Some(envoy) => {
                let mut command = Command::new(envoy);
                command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "-c"]);
                Some(target("Envoy", command, dir.path(), recorder.address).await?)
            }
        };
        Ok(Self { recorder, crema, envoy, _dir: dir })
    }

    /// Ours, then Envoy.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        std::iter::once(&self.crema).chain(&self.envoy)
    }
}

async fn target(
    name: &'static str,
    mut command: Command,
    dir: &Path,
    application: SocketAddr,
) -> anyhow::Result<Target> {
    let mut ports = [0; 5];
    for port in &mut ports {
        *port = free_port()?;
    }
    let [sidecar, gateway, sidecar_tls, gateway_tls, pair] =
        ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let file = dir.join(format!("{name}.yaml"));
    let listeners = [
        listener("sidecar", sidecar, None, false, "application"),
        listener("gateway", gateway, None, true, "application"),
        listener("sidecar-tls", sidecar_tls, Some(dir), false, "application"),
        listener("gateway-tls", gateway_tls, Some(dir), true, "application"),
        listener("pair", pair, None, false, "second-hop"),
    ];
    let clusters = [
        cluster("application", application, ""),
        cluster("limited", application, LIMITS),
        cluster("second-hop", sidecar_tls, SECOND_HOP),
    ];
    let text = format!(
        "node: {{id: attacked, cluster: attacked}}\nstatic_resources:\n  listeners:\n{}  clusters:\n{}",
        listeners.concat(),
        clusters.concat()
    );
    std::fs::write(&file, text)?;
    let log = dir.join(format!("{name}.log"));
    let process = Running::start(command.arg(&file).current_dir(dir), &log)?;
    for address in [sidecar, gateway, sidecar_tls, gateway_tls, pair] {
        listening(address, &log).await.with_context(|| name.to_owned())?;
    }
    Ok(Target { name, sidecar, gateway, sidecar_tls, gateway_tls, pair, process })
}

async fn listening(address: SocketAddr, log: &Path) -> anyhow::Result<()> {
    for _ in 0..300 {
        if tokio::net::TcpStream::connect(address).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("nothing listens on {address} after 30 s:\n{}", crate::node::process::tail(log, 8))
}

fn listener(name: &str, at: SocketAddr, tls: Option<&Path>, gateway: bool, cluster: &str) -> String {
    let transport = tls.map_or_else(String::new, |dir| {
        format!(
            r#"      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            alpn_protocols: [h2, http/1.1]
            tls_certificates: [{{certificate_chain: {{filename: {dir}/cert.pem}}, private_key: {{filename: {dir}/key.pem}}}}]
"#,
            dir = dir.display()
        )
    });
    format!(
        r#"  - name: {name}
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {name}
          use_remote_address: {gateway}
          upgrade_configs: [{{upgrade_type: websocket}}]
          route_config:
            name: {name}
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - {{match: {{prefix: "/slow"}}, route: {{cluster: limited, timeout: 0s}}}}
              - {{match: {{prefix: "/"}}, route: {{cluster: {cluster}, timeout: 0s}}}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
{transport}"#,
        port = at.port()
    )
}

/// Twice what the application serves at once, and as many that wait.
const LIMITS: &str =
    "    circuit_breakers: {thresholds: [{max_connections: 16, max_pending_requests: 16}]}\n";

const SECOND_HOP: &str = r#"    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: localhost
        common_tls_context: {alpn_protocols: [http/1.1], validation_context: {trusted_ca: {filename: cert.pem}}}
"#;

fn cluster(name: &str, to: SocketAddr, transport: &str) -> String {
    format!(
        r#"  - name: {name}
    type: STATIC
    connect_timeout: 5s
    load_assignment:
      cluster_name: {name}
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]
{transport}"#,
        port = to.port()
    )
}
