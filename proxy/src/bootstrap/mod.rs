//! An Envoy v3 bootstrap, as Envoy's users have it: static resources, an ADS server, or files that are watched.
//!
//! In: YAML or JSON. Out: [`Bootstrap`]. Kept true: an unknown field, or one that cannot be honoured, is an error that names it.
//! Not here: the environment of an injected pod (`cli`), the discovery stream (`xds`).

pub mod files;

use std::{net::SocketAddr, path::Path, path::PathBuf};

use anyhow::{Context, bail, ensure};
use mesh_traffic::{
    Cluster,
    cluster::Discovery,
    endpoint::Address,
    tls::{Certificate, Roots},
};
use prost::Message;
use xds::{
    discovery::Node,
    envoy::config::{
        bootstrap::v3::Bootstrap as Wire,
        core::v3::{
            ApiConfigSource, ConfigSource, api_config_source::ApiType, config_source::ConfigSourceSpecifier,
        },
    },
};

use crate::xds::{Kind, Resource, Store, Variant};

const BOOTSTRAP: &str = "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap";

/// What a bootstrap asks for.
#[derive(Debug)]
pub struct Bootstrap {
    /// Who we are.
    pub node: Node,
    /// Where the admin pages are served; `None` for nowhere.
    pub admin: Option<SocketAddr>,
    /// Static resources.
    pub store: Store,
    /// The management server.
    pub ads: Option<Ads>,
    /// Files with listeners and clusters.
    pub files: Vec<(Kind, PathBuf)>,
}

/// A management server, as a bootstrap names it.
#[derive(Debug)]
pub struct Ads {
    /// `host:port`.
    pub address: String,
    /// Delta or state of the world.
    pub variant: Variant,
    /// TLS towards it; `None` for plaintext.
    pub tls: Option<AdsTls>,
    /// Value of `authorization`'s bearer token, when the bootstrap has one.
    pub token: Option<String>,
}

/// TLS towards a management server.
#[derive(Debug, PartialEq, Eq)]
pub struct AdsTls {
    /// PEM file with its roots.
    pub roots: PathBuf,
    /// Our certificate chain and key, for mutual TLS.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Server name to send and to find in its certificate.
    pub name: Option<String>,
}

/// Reads a bootstrap file.
///
/// # Errors
/// Names the file and the field.
pub fn read(path: &Path) -> anyhow::Result<Bootstrap> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

/// Reads a bootstrap.
///
/// # Errors
/// Names the field.
pub fn parse(text: &str) -> anyhow::Result<Bootstrap> {
    let json: serde_json::Value = serde_saphyr::from_str(text).context("not valid YAML")?;
    let bytes = xds::reflect::from_json(BOOTSTRAP, &json).map_err(anyhow::Error::msg)?;
    let wire = Wire::decode(&*bytes).context("bootstrap")?;
    let node = match wire.node.clone() {
        // The same message with fewer fields: the wire is the conversion.
        Some(node) => Node::decode(&*node.encode_to_vec()).context("node")?,
        None => Node::default(),
    };
    let admin = match wire.admin.as_ref().and_then(|admin| admin.address.as_ref()) {
        Some(address) => Some(socket(address).context("admin.address")?),
        None => None,
    };
    let mut store = Store::default();
    let fixed = wire.static_resources.clone().unwrap_or_default();
    for (i, cluster) in fixed.clusters.iter().enumerate() {
        add(&mut store, Kind::Cluster, cluster.encode_to_vec())
            .with_context(|| format!("static_resources.clusters[{i}]"))?;
    }
    for (i, secret) in fixed.secrets.iter().enumerate() {
        add(&mut store, Kind::Secret, secret.encode_to_vec())
            .with_context(|| format!("static_resources.secrets[{i}]"))?;
    }
    for (i, listener) in fixed.listeners.iter().enumerate() {
        add(&mut store, Kind::Listener, listener.encode_to_vec())
            .with_context(|| format!("static_resources.listeners[{i}]"))?;
    }
    let dynamic = wire.dynamic_resources.unwrap_or_default();
    let ads = match &dynamic.ads_config {
        Some(config) => Some(ads(config, &store).context("dynamic_resources.ads_config")?),
        None => None,
    };
    let mut files = Vec::new();
    for (kind, field, source) in [
        (Kind::Listener, "lds_config", &dynamic.lds_config),
        (Kind::Cluster, "cds_config", &dynamic.cds_config),
    ] {
        let Some(source) = source else { continue };
        match path_of(source).with_context(|| format!("dynamic_resources.{field}"))? {
            Some(path) => files.push((kind, path)),
            None => {
                ensure!(ads.is_some(), "dynamic_resources.{field}: ads needs dynamic_resources.ads_config");
            }
        }
    }
    Ok(Bootstrap { node, admin, store, ads, files })
}

fn add(store: &mut Store, kind: Kind, raw: Vec<u8>) -> anyhow::Result<()> {
    let resource = Resource::decode(kind, "", "", raw.into())?;
    store.add_fixed(resource).map_err(anyhow::Error::msg)
}

fn socket(address: &xds::envoy::config::core::v3::Address) -> anyhow::Result<SocketAddr> {
    use xds::envoy::config::core::v3::{address::Address as A, socket_address::PortSpecifier};
    let Some(A::SocketAddress(socket)) = &address.address else {
        bail!("only a socket_address is supported")
    };
    let port = match socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(port).context("port_value")?,
        _ => bail!("port_value is missing"),
    };
    let ip = socket.address.parse().with_context(|| format!("{:?} is not an IP address", socket.address))?;
    Ok(SocketAddr::new(ip, port))
}

/// The file of a config source; `None` for ADS.
#[allow(deprecated, reason = "`path` is deprecated, and what many bootstraps still say")]
fn path_of(source: &ConfigSource) -> anyhow::Result<Option<PathBuf>> {
    match source.config_source_specifier.as_ref() {
        Some(ConfigSourceSpecifier::Ads(_)) => Ok(None),
        Some(ConfigSourceSpecifier::PathConfigSource(path)) => Ok(Some(PathBuf::from(&path.path))),
        Some(ConfigSourceSpecifier::Path(path)) => Ok(Some(PathBuf::from(path))),
        _ => bail!("only ads and path_config_source are supported"),
    }
}

fn ads(config: &ApiConfigSource, store: &Store) -> anyhow::Result<Ads> {
    use xds::envoy::config::core::v3::grpc_service::TargetSpecifier;
    let variant = match ApiType::try_from(config.api_type) {
        Ok(ApiType::DeltaGrpc | ApiType::AggregatedDeltaGrpc) => Variant::Delta,
        Ok(ApiType::Grpc | ApiType::AggregatedGrpc) => Variant::StateOfTheWorld,
        _ => bail!("api_type: only GRPC and DELTA_GRPC are supported"),
    };
    let service = config.grpc_services.first().context("grpc_services: at least one is needed")?;
    let Some(TargetSpecifier::EnvoyGrpc(target)) = &service.target_specifier else {
        bail!("grpc_services[0]: only envoy_grpc is supported");
    };
    let snapshot = store.snapshot();
    let cluster = snapshot.clusters.get(target.cluster_name.as_str());
    let cluster = cluster
        .with_context(|| format!("cluster {:?} is not among static_resources", target.cluster_name))?;
    let bearer = service.initial_metadata.iter().find(|h| h.key.eq_ignore_ascii_case("authorization"));
    let token = bearer.and_then(|h| h.value.strip_prefix("Bearer ")).map(str::to_owned);
    Ok(Ads { address: address_of(cluster)?, variant, tls: tls_of(cluster)?, token })
}

fn address_of(cluster: &Cluster) -> anyhow::Result<String> {
    let (Discovery::Static(endpoints) | Discovery::StrictDns(endpoints) | Discovery::LogicalDns(endpoints)) =
        &cluster.discovery
    else {
        bail!("cluster {:?}: the management server must be STATIC, STRICT_DNS or LOGICAL_DNS", cluster.name);
    };
    let first =
        endpoints.iter().next().with_context(|| format!("cluster {:?} has no endpoint", cluster.name))?;
    ensure!(
        !matches!(first.address, Address::Pipe(_)),
        "cluster {:?}: pipes are not supported here",
        cluster.name
    );
    Ok(first.address.to_string())
}

fn tls_of(cluster: &Cluster) -> anyhow::Result<Option<AdsTls>> {
    let Some(tls) = &cluster.tls.default else { return Ok(None) };
    let Some(Roots::File(roots)) = &tls.validation.roots else {
        bail!("cluster {:?}: trusted_ca must name a file for the management server", cluster.name);
    };
    let certificate = match &tls.certificate {
        None => None,
        Some(Certificate::Files { chain, key }) => Some((PathBuf::from(&**chain), PathBuf::from(&**key))),
        Some(_) => bail!("cluster {:?}: the certificate must be in files", cluster.name),
    };
    let name = tls.sni.as_ref().map(ToString::to_string);
    Ok(Some(AdsTls { roots: PathBuf::from(&**roots), certificate, name }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATIC: &str = r#"
node: {id: n1, cluster: c1, metadata: {NAMESPACE: default}}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}
static_resources:
  clusters:
  - name: local
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: local
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 8080}}}}]}]
  listeners:
  - name: main
    address: {socket_address: {address: 127.0.0.1, port_value: 10000}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          route_config:
            name: local
            virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: local}}]}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
"#;

    #[test]
    fn a_static_bootstrap_is_a_complete_configuration() {
        let bootstrap = parse(STATIC).expect("a valid bootstrap");
        assert_eq!(bootstrap.node.id, "n1");
        assert_eq!(bootstrap.admin, Some(([127, 0, 0, 1], 9901).into()));
        let snapshot = bootstrap.store.snapshot();
        assert!(snapshot.listeners.contains_key("main") && snapshot.clusters.contains_key("local"));
        let manager = snapshot.listeners["main"].managers().next().expect("HTTP").clone();
        assert!(snapshot.routes_of(&manager).is_some_and(|table| table.find("any").is_some()));
    }

    #[test]
    fn mistakes_are_named_with_their_field() {
        for (from, to, want) in [
            ("connect_timeout", "connect_timeoutt", "connect_timeoutt"),
            ("cluster: local}", "cluster: local, priority: HIGH}", "route.priority"),
            ("port_value: 10000", "port_value: 100000", "static_resources.listeners[0]"),
            ("http_connection_manager.v3.Http", "http_connection_manager.v3.Nope", "HttpConnectionManager"),
        ] {
            let broken = STATIC.replacen(from, to, 1);
            let broken =
                if to.contains("Nope") { broken.replace("NopeConnectionManager", "Nope") } else { broken };
            let error = format!("{:#}", parse(&broken).expect_err("refused"));
            let named = error.contains(want) || (to.contains("Nope") && error.contains("Nope"));
            assert!(named, "{to}: {error}");
        }
    }

    #[test]
    fn a_management_server_is_found_through_its_cluster() {
        let text = STATIC.replace("- name: local\n    type", "- name: xds\n    type").replace("\nadmin", "\ndynamic_resources:\n  lds_config: {ads: {}}\n  ads_config: {api_type: DELTA_GRPC, grpc_services: [{envoy_grpc: {cluster_name: xds}}]}\nadmin");
        let ads = parse(&text).expect("valid").ads.expect("a server");
        assert_eq!((ads.address.as_str(), ads.variant, ads.tls), ("127.0.0.1:8080", Variant::Delta, None));
        let missing = text.replace("cluster_name: xds}", "cluster_name: nowhere}");
        let error = format!("{:#}", parse(&missing).expect_err("refused"));
        assert!(error.contains("cluster \"nowhere\" is not among static_resources"), "{error}");
    }
}
