//! Mesh config: YAML inside a ConfigMap.
//!
//! In: ConfigMap `istio` of the root namespace. Out: [`MeshConfig`] and findings.
//! Kept true: lines of findings are those of the file that holds the ConfigMap, as far as it is a block text.
//! Not here: defaults (`kinds::mesh`).

use super::Findings;
use super::virtual_service::retry;
use crate::diagnostic::Diagnostic;
use crate::kinds::{MESH_CONFIG_KEY, MeshConfig};
use crate::object::{Object, ObjectKey, Origin};
use crate::resource::Kind;
use crate::yaml;
use k8s_openapi::api::core::v1::ConfigMap;

/// Reads mesh config out of its ConfigMap. With an error among the findings the config is the default one.
pub fn mesh_config(map: &Object<ConfigMap>) -> (MeshConfig, Vec<Diagnostic>) {
    let text = map.spec.data.as_ref().and_then(|data| data.get(MESH_CONFIG_KEY));
    let mut findings = Vec::new();
    let Some(text) = text else { return (MeshConfig::default(), findings) };
    let field = format!("data.{MESH_CONFIG_KEY}");
    let key = ObjectKey::of(Kind::ConfigMap, &map.meta);
    let at = |line: u32| {
        // The value stands where its text begins: on the first line of a block, or beside its key.
        let start = map.meta.field_origin(&field);
        if start.line == 0 {
            start
        } else {
            Origin { line: start.line.saturating_add(line.saturating_sub(1)), ..start }
        }
    };
    let documents = yaml::split(text);
    let Some(document) = documents.first() else { return (MeshConfig::default(), findings) };
    let node = match yaml::parse(document) {
        Ok(node) => node,
        Err(e) => {
            findings.push(Diagnostic::error(at(e.line), Some(key), &field, e.to_string()));
            return (MeshConfig::default(), findings);
        }
    };
    let lines = node.lines();
    let typed = crate::parse::typed::<MeshConfig>("", node.to_json());
    let inner = |path: &str| format!("{field}: {path}");
    for path in typed.unknown {
        let origin = at(lines.find(&path).unwrap_or(0));
        findings.push(Diagnostic::warning(
            origin,
            Some(key.clone()),
            &inner(&path),
            crate::parse::UNKNOWN_FIELD,
        ));
    }
    for path in IGNORED.iter().copied().filter(|path| is_set(&node, path)) {
        let origin = at(lines.find(path).unwrap_or(0));
        let why = "a setting of Istio 1.1 that has no effect here: remove it";
        findings.push(Diagnostic::warning(origin, Some(key.clone()), &inner(path), why));
    }
    let (mesh, wrong) = match typed.body {
        Ok(mesh) => {
            let wrong = check(&mesh);
            (mesh, wrong)
        }
        Err(wrong) => (MeshConfig::default(), vec![wrong]),
    };
    let good = wrong.is_empty();
    for (path, why) in wrong {
        let origin = at(lines.find(&path).unwrap_or(0));
        findings.push(Diagnostic::error(origin, Some(key.clone()), &inner(&path), why));
    }
    (if good { mesh } else { MeshConfig::default() }, findings)
}

/// Settings of Istio 1.1 that mean nothing here.
const IGNORED: [&str; 9] = [
    "sdsUdsPath",
    "sdsRefreshDelay",
    "authPolicy",
    "enableClientSidePolicyCheck",
    "defaultConfig.configPath",
    "defaultConfig.binaryPath",
    "defaultConfig.serviceCluster",
    "defaultConfig.controlPlaneAuthPolicy",
    "defaultConfig.connectTimeout",
];

fn is_set(node: &yaml::Node, path: &str) -> bool {
    path.split('.').try_fold(node, |node, key| node.get(key)).is_some()
}

/// What the types cannot say: path and reason.
fn check(mesh: &MeshConfig) -> Vec<(String, String)> {
    let mut f = Findings::loose();
    if let Some(retries) = &mesh.default_http_retry_policy {
        retry(retries, "defaultHttpRetryPolicy", &mut f);
    }
    if let Some(share) = mesh.default_config.tracing.as_ref().and_then(|t| t.sampling) {
        f.percent(share, "defaultConfig.tracing.sampling");
    }
    f.at_least_1ms(Some(mesh.connect_timeout), "connectTimeout");
    if mesh.proxy_http_port != 0 {
        f.port(mesh.proxy_http_port, "proxyHttpPort");
    }
    for (name, text) in [("rootNamespace", &mesh.root_namespace), ("trustDomain", &mesh.trust_domain)] {
        if text.is_empty() {
            f.error(name, "is empty: leave it out for the default");
        }
    }
    f.found.into_iter().filter(Diagnostic::is_error).map(|d| (d.field, d.why)).collect()
}
