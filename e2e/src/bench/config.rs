//! What a mesh under measurement is configured with: Istio's YAML for pilot, and the bootstrap of its proxies.
//!
//! In: a [`Setup`]. Out: text. Kept true: Crema and Envoy get the same objects and the same bootstrap, up to what only one of them needs
//! (Envoy: where certificates come from and where access logs go to). Not here: starting anything (`world`).

use std::fmt::Write as _;

use super::world::{EGRESS, GRPC, HTTP, INBOUND, Places, STREAM, Setup, host};

/// The service that load goes to: in the middle of the others.
#[must_use]
pub fn target(setup: &Setup) -> String {
    format!("s{}", setup.services / 2)
}

/// Everything pilot reads.
#[must_use]
pub fn mesh(places: &Places, setup: &Setup) -> String {
    let mut yaml = mesh_config(setup);
    pod(&mut yaml, places, "app", host::APP);
    for (kind, [client, server]) in [("crema", host::CREMA), ("envoy", host::ENVOY)] {
        sidecar(&mut yaml, places, &format!("{kind}-client"), client);
        sidecar(&mut yaml, places, &format!("{kind}-server"), server);
        let name = format!("pair-{kind}");
        service(&mut yaml, &name, "http", HTTP, INBOUND, &places.ip(server).to_string());
        routes(&mut yaml, &name);
    }
    for number in 0..setup.services {
        let name = format!("s{number}");
        service(&mut yaml, &name, "http", HTTP, HTTP, &places.ip(host::APP).to_string());
        routes(&mut yaml, &name);
    }
    service(&mut yaml, "rpc", "grpc", GRPC, GRPC, &places.ip(host::APP).to_string());
    service(&mut yaml, "stream", "tcp", STREAM, HTTP, &places.ip(host::APP).to_string());
    if setup.rbac > 0 {
        rbac(&mut yaml, setup.rbac);
    }
    yaml.push_str(&setup.yaml.replace("TARGET", &target(setup)));
    yaml
}

fn mesh_config(setup: &Setup) -> String {
    let mode = if setup.mtls { "STRICT" } else { "DISABLE" };
    let log = if setup.access_log { "access.log" } else { "\"\"" };
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    \
         accessLogFile: {log}\n    enableAutoMtls: {mtls}\n    enableTracing: true\n    enableEnvoyAccessLogService: {als}\n    \
         defaultConfig: {{tracing: {{sampling: {sampling}}}}}\n---\napiVersion: security.istio.io/v1\nkind: \
         PeerAuthentication\nmetadata: {{name: default, namespace: istio-system}}\nspec: {{mtls: {{mode: {mode}}}}}\n",
        mtls = setup.mtls,
        als = setup.telemetry,
        sampling = setup.sampling,
    )
}

fn pod(yaml: &mut String, places: &Places, name: &str, host: u8) {
    // Only sidecars take mutual TLS.
    let tls = if name == "app" { "" } else { ", security.istio.io/tlsMode: istio" };
    write!(
        yaml,
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, labels: {{app: {name}{tls}}}}}\n\
         spec: {{serviceAccountName: bench, containers: [{{name: app, image: app}}]}}\nstatus: {{phase: Running, podIP: \
         {ip}, conditions: [{{type: Ready, status: \"True\"}}]}}\n",
        ip = places.ip(host),
    )
    .expect("writing to a string");
}

/// A pod with its listeners: HTTP and a byte stream out, HTTP in.
fn sidecar(yaml: &mut String, places: &Places, name: &str, host: u8) {
    pod(yaml, places, name, host);
    write!(
        yaml,
        "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  \
         workloadSelector: {{labels: {{app: {name}}}}}\n  egress:\n  - port: {{number: {EGRESS}, protocol: HTTP_PROXY, name: \
         http-proxy}}\n    bind: {ip}\n    hosts: [\"*/*\"]\n  - port: {{number: {STREAM}, protocol: TCP, name: tcp}}\n    \
         bind: {ip}\n    hosts: [\"default/stream.default.svc.cluster.local\"]\n  ingress:\n  - port: {{number: {INBOUND}, protocol: HTTP, name: \
         http}}\n    bind: {ip}\n    defaultEndpoint: 127.0.0.1:{app}\n",
        ip = places.ip(host),
        app = places.app,
    )
    .expect("writing to a string");
}

fn service(yaml: &mut String, name: &str, protocol: &str, port: u16, at: u16, address: &str) {
    let pod = name.strip_prefix("pair-").map_or_else(|| "app".to_owned(), |kind| format!("{kind}-server"));
    write!(
        yaml,
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec: {{selector: {{app: {pod}}}, ports: \
         [{{name: {protocol}, port: {port}, targetPort: {at}}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: \
         EndpointSlice\naddressType: IPv4\nmetadata: {{name: {name}-1, namespace: default, labels: \
         {{kubernetes.io/service-name: {name}}}}}\nports: [{{name: {protocol}, port: {at}, protocol: TCP}}]\nendpoints: \
         [{{addresses: [{address}], conditions: {{ready: true}}, targetRef: {{kind: Pod, name: {pod}, namespace: \
         default}}}}]\n",
    )
    .expect("writing to a string");
}

/// A retry policy and a timeout.
fn routes(yaml: &mut String, name: &str) {
    write!(
        yaml,
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{hosts: [{name}], http: [{{timeout: 15s, retries: {{attempts: 2, perTryTimeout: 5s, retryOn: \
         \"5xx,reset,connect-failure\"}}, route: [{{destination: {{host: {name}}}}}]}}]}}\n",
    )
    .expect("writing to a string");
}

/// A hundred services whose one endpoint is at address `host`.
#[must_use]
pub fn moving(places: &Places, file: usize, host: u8) -> String {
    let mut yaml = String::new();
    for number in 0..100 {
        let name = format!("moving-{file}-{number}");
        service(&mut yaml, &name, "http", HTTP, HTTP, &places.ip(host).to_string());
    }
    yaml
}

/// Rules that do not match, and last the one that lets the client in.
fn rbac(yaml: &mut String, rules: usize) {
    yaml.push_str(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: rules, namespace: \
         default}\nspec:\n  action: ALLOW\n  rules:\n",
    );
    for number in 1..rules {
        write!(
            yaml,
            "  - from: [{{source: {{principals: [cluster.local/ns/other/sa/a{number}]}}}}]\n    to: [{{operation: {{methods: \
             [GET], paths: [\"/a{number}/*\"]}}}}]\n"
        )
        .expect("writing to a string");
    }
    yaml.push_str(
        "  - from: [{source: {principals: [cluster.local/ns/default/sa/bench]}}]\n    to: [{operation: {methods: [GET, \
         POST]}}]\n",
    );
}

/// The bootstrap of a proxy: Istio's shape, delta ADS over plaintext. `sds`: the socket of Envoy's agent.
#[must_use]
pub fn bootstrap(places: &Places, name: &str, host: u8, setup: &Setup, sds: Option<&str>) -> String {
    let ip = places.ip(host);
    let cluster = |name: &str, address: &str| {
        format!(
            "  - name: {name}\n    type: STATIC\n    connect_timeout: 1s\n    typed_extension_protocol_options:\n      \
             envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n        \"@type\": \
             type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n        explicit_http_config: \
             {{http2_protocol_options: {{}}}}\n    load_assignment:\n      cluster_name: {name}\n      endpoints: \
             [{{lb_endpoints: [{{endpoint: {{address: {address}}}}}]}}]\n"
        )
    };
    let socket = |host: u8, port: u16| {
        format!("{{socket_address: {{address: {}, port_value: {port}}}}}", places.ip(host))
    };
    let mut clusters = cluster("xds-grpc", &socket(host::PILOT, 15010));
    if let Some(path) = sds {
        clusters.push_str(&cluster("sds-grpc", &format!("{{pipe: {{path: {path}}}}}")));
        if setup.telemetry {
            clusters.push_str(&cluster("envoy_accesslog_service", &socket(host::MIXER, 9091)));
        }
    }
    format!(
        r#"node:
  id: sidecar~{ip}~{name}.default~default.svc.cluster.local
  cluster: {name}.default
  metadata:
    NAME: {name}
    NAMESPACE: default
    SERVICE_ACCOUNT: bench
    INTERCEPTION_MODE: NONE
    LABELS: {{app: {name}, security.istio.io/tlsMode: istio}}
admin: {{address: {admin}}}
dynamic_resources:
  lds_config: {{ads: {{}}, resource_api_version: V3}}
  cds_config: {{ads: {{}}, resource_api_version: V3}}
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services: [{{envoy_grpc: {{cluster_name: xds-grpc}}}}]
static_resources:
  clusters:
{clusters}"#,
        admin = socket(host, 15000),
    )
}
