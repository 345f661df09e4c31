//! `e2e manifest`: one file that installs the mesh, made from small parts.
//!
//! In: `deploy/manifest` (with `${NAME}` for parameters and `#@name` lines for what several parts share) and `deploy/crds`.
//! Out: YAML for `kubectl apply`. Kept true: `deploy/crema.yaml` is what the default parameters give; RBAC names every kind, no wildcard.
//! Not here: images (`images`).

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::{Context, bail};

use serde_json::Value;

use crate::{node::files::documents, peers};

/// What an installation may choose.
#[derive(Debug, Clone, clap::Args)]
pub struct ManifestArgs {
    /// Namespace of the mesh's components; the root namespace of its configuration
    #[arg(long, default_value = "istio-system", value_name = "NAME")]
    pub namespace: String,
    /// Where images come from: the part of their names before the last slash
    #[arg(long, default_value = "crema", value_name = "PREFIX")]
    pub hub: String,
    /// Tag of the images
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"), value_name = "TAG")]
    pub tag: String,
    /// Leave the kinds (CustomResourceDefinitions) out: deleting what is left keeps everybody's objects
    #[arg(long, conflicts_with = "write")]
    pub without_kinds: bool,
    /// Write deploy/crema.yaml instead of printing
    #[arg(long)]
    pub write: bool,
}

impl Default for ManifestArgs {
    fn default() -> Self {
        Self {
            namespace: "istio-system".to_owned(),
            hub: "crema".to_owned(),
            tag: env!("CARGO_PKG_VERSION").to_owned(),
            without_kinds: false,
            write: false,
        }
    }
}

/// Prints the manifest, or writes it to its place.
///
/// # Errors
/// When a part is missing or wrong, or the file cannot be written.
pub fn run(args: &ManifestArgs) -> anyhow::Result<()> {
    let text = manifest(args)?;
    if args.write {
        let path = peers::root().join("deploy/crema.yaml");
        return fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()));
    }
    print!("{text}");
    Ok(())
}

/// The whole manifest.
///
/// # Errors
/// When a part cannot be read, or uses a name that there is not.
pub fn manifest(args: &ManifestArgs) -> anyhow::Result<String> {
    let deploy = peers::root().join("deploy");
    let crds = texts(&deploy.join("crds"))?;
    let kinds = kinds(&crds)?;
    let mut parts = Vec::new();
    for (file, text) in texts(&deploy.join("manifest"))? {
        let text = filled(&text, args, &kinds).with_context(|| format!("deploy/manifest/{file}"))?;
        parts.push(text);
        // The kinds come right after the namespace: what follows may be about them.
        if parts.len() == 1 && !args.without_kinds {
            parts.extend(crds.iter().map(|(_, text)| text.clone()));
        }
    }
    let mut all = String::new();
    for part in parts {
        let part = part.trim().trim_start_matches("---").trim_start();
        if !all.is_empty() {
            all.push_str("---\n");
        }
        all.push_str(part);
        all.push('\n');
    }
    Ok(all)
}

/// The YAML files of a directory by name, in its order.
fn texts(dir: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut paths = entries.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.retain(|p| p.extension().is_some_and(|e| e == "yaml"));
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok((name, text))
    };
    paths.iter().map(read).collect()
}

/// Plural names of all kinds, by group.
fn kinds(crds: &[(String, String)]) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (file, text) in crds {
        for crd in documents(text).with_context(|| file.clone())? {
            let (plural, group) =
                name(&crd).split_once('.').context("a CustomResourceDefinition is named PLURAL.GROUP")?;
            kinds.entry(group.to_owned()).or_default().push(plural.to_owned());
        }
    }
    kinds.values_mut().for_each(|plurals| plurals.sort());
    Ok(kinds)
}

fn name(object: &Value) -> &str {
    object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
}

fn filled(text: &str, args: &ManifestArgs, kinds: &BTreeMap<String, Vec<String>>) -> anyhow::Result<String> {
    let mut out = String::new();
    for line in text.lines() {
        match line.trim_start().strip_prefix("#@") {
            None => writeln!(out, "{line}")?,
            Some(call) => {
                let indent = &line[..line.len() - line.trim_start().len()];
                shared(call, kinds)?.lines().try_for_each(|l| writeln!(out, "{indent}{l}"))?;
            }
        }
    }
    for (name, value) in [("NAMESPACE", &args.namespace), ("HUB", &args.hub), ("TAG", &args.tag)] {
        out = out.replace(&format!("${{{name}}}"), value);
    }
    if let Some(at) = out.find("${") {
        bail!("no parameter for {:?}", out[at..].lines().next().unwrap_or_default());
    }
    Ok(out)
}

/// What several parts share.
fn shared(call: &str, kinds: &BTreeMap<String, Vec<String>>) -> anyhow::Result<String> {
    let words: Vec<&str> = call.split_whitespace().collect();
    Ok(match words.as_slice() {
        ["probes", port] => format!(
            "readinessProbe: {{httpGet: {{path: /healthz/ready, port: {port}}}, periodSeconds: 2, failureThreshold: 3}}\n\
             livenessProbe: {{httpGet: {{path: /healthz/live, port: {port}}}, periodSeconds: 10, failureThreshold: 6}}\n"
        ),
        ["container-security"] => CONTAINER_SECURITY.to_owned(),
        ["pod-security", app] => format!(
            "{POD_SECURITY}topologySpreadConstraints:\n\
             - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {{matchLabels: {{app: {app}}}}}}}\n"
        ),
        ["identity-mounts"] => MOUNTS.to_owned(),
        ["identity-mounts", "pod"] => format!("{MOUNTS}{POD_MOUNT}"),
        ["identity-volumes"] => VOLUMES.to_owned(),
        ["identity-volumes", "pod"] => format!("{VOLUMES}{POD_VOLUME}"),
        ["inject-common"] => INJECT.to_owned(),
        ["crd-rules", verbs] => rules(kinds, "", verbs),
        ["crd-rules", verbs, group] => {
            let of = kinds.get_key_value(*group).with_context(|| format!("no kinds of group {group}"))?;
            rules(&BTreeMap::from([(of.0.clone(), of.1.clone())]), "", verbs)
        }
        ["crd-status-rules", verbs] => rules(kinds, "/status", verbs),
        _ => bail!("nothing is called {call:?}"),
    })
}

fn rules(kinds: &BTreeMap<String, Vec<String>>, subresource: &str, verbs: &str) -> String {
    let verbs = verbs.replace(',', ", ");
    let rule = |(group, plurals): (&String, &Vec<String>)| {
        let resources: Vec<String> = plurals.iter().map(|p| format!("{p}{subresource}")).collect();
        format!("- {{apiGroups: [{group}], resources: [{}], verbs: [{verbs}]}}\n", resources.join(", "))
    };
    kinds.iter().map(rule).collect()
}

const CONTAINER_SECURITY: &str = "securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
";

const POD_SECURITY: &str = "securityContext:
  runAsNonRoot: true
  runAsUser: 1337
  runAsGroup: 1337
  seccompProfile: {type: RuntimeDefault}
";

const MOUNTS: &str = "volumeMounts:
- {name: istio-token, mountPath: /var/run/secrets/tokens, readOnly: true}
- {name: istio-ca-cert, mountPath: /var/run/secrets/istio, readOnly: true}
";

const POD_MOUNT: &str = "- {name: istio-podinfo, mountPath: /etc/istio/pod, readOnly: true}\n";

const VOLUMES: &str = "volumes:
- name: istio-token
  projected:
    sources:
    - serviceAccountToken: {path: istio-token, audience: istio-ca, expirationSeconds: 43200}
- name: istio-ca-cert
  configMap: {name: istio-ca-root-cert}
";

const POD_VOLUME: &str = "- name: istio-podinfo
  downwardAPI:
    items:
    - {path: labels, fieldRef: {fieldPath: metadata.labels}}
    - {path: annotations, fieldRef: {fieldPath: metadata.annotations}}
";

const INJECT: &str =
    "clientConfig: {service: {name: injector, namespace: \"${NAMESPACE}\", path: /inject, port: 443}}
rules:
- {apiGroups: [\"\"], apiVersions: [v1], operations: [CREATE], resources: [pods], scope: Namespaced}
admissionReviewVersions: [v1]
sideEffects: NoneOnDryRun
reinvocationPolicy: IfNeeded
failurePolicy: Ignore
matchPolicy: Equivalent
timeoutSeconds: 10
";

#[cfg(test)]
mod tests {
    use super::*;

    fn objects() -> Vec<Value> {
        documents(&manifest(&ManifestArgs::default()).expect("the parts fit")).expect("YAML")
    }

    #[test]
    fn the_file_in_the_tree_is_what_the_parts_give() {
        let kept = fs::read_to_string(peers::root().join("deploy/crema.yaml")).expect("deploy/crema.yaml");
        let made = manifest(&ManifestArgs::default()).expect("the parts fit");
        assert!(kept == made, "deploy/crema.yaml is stale: cargo run -p e2e -- manifest --write");
    }

    #[test]
    fn no_role_has_a_wildcard_and_only_roles_of_the_mesh_namespace_see_secrets() {
        let (mut roles, mut secrets) = (0, 0);
        for role in objects().iter().filter(|o| o["kind"] == "ClusterRole" || o["kind"] == "Role") {
            roles += 1;
            for rule in role["rules"].as_array().expect("rules") {
                let text = rule.to_string();
                assert!(!text.contains('*'), "{}: {text}", name(role));
                if text.contains("\"secrets\"") {
                    assert_eq!(role["kind"], "Role", "{}: {text}", name(role));
                    secrets += 1;
                }
            }
        }
        assert!(roles >= 8 && secrets >= 2, "{roles} roles, {secrets} rules about Secrets");
    }

    #[test]
    fn every_deployment_is_restricted_spread_and_may_be_evicted_one_by_one() {
        let objects = objects();
        let deployments: Vec<_> = objects.iter().filter(|o| o["kind"] == "Deployment").collect();
        assert_eq!(deployments.len(), 5);
        for deployment in deployments {
            let pod = &deployment["spec"]["template"]["spec"];
            let container = &pod["containers"][0];
            let who = name(deployment);
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{who}");
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{who}");
            assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false, "{who}");
            assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true, "{who}");
            assert_eq!(container["securityContext"]["capabilities"]["drop"][0], "ALL", "{who}");
            assert!(container["resources"]["requests"]["memory"].is_string(), "{who}");
            assert!(container["readinessProbe"].is_object(), "{who}");
            assert!(pod["topologySpreadConstraints"].is_array(), "{who}");
            assert_eq!(pod["priorityClassName"], "crema-control-plane", "{who}");
            let budget = |o: &&Value| o["kind"] == "PodDisruptionBudget" && name(o) == who;
            assert!(objects.iter().any(|o| budget(&o)), "{who} has no disruption budget");
        }
    }

    #[test]
    fn another_namespace_reaches_every_place() {
        let args = ManifestArgs { namespace: "mesh".to_owned(), ..ManifestArgs::default() };
        let text = manifest(&args).expect("the parts fit");
        let left = text.lines().filter(|l| l.contains("istio-system") && !l.contains("description"));
        assert_eq!(left.collect::<Vec<_>>(), Vec::<&str>::new());
    }

    #[test]
    fn without_kinds_nothing_else_is_missing() {
        let args = ManifestArgs { without_kinds: true, ..ManifestArgs::default() };
        let rest = documents(&manifest(&args).expect("the parts fit")).expect("YAML");
        let kind = |o: &&Value| o["kind"] == "CustomResourceDefinition";
        let all = objects();
        assert!(all.iter().any(|o| kind(&o)) && !rest.iter().any(|o| kind(&o)));
        assert_eq!(rest, all.into_iter().filter(|o| !kind(&o)).collect::<Vec<_>>());
    }

    #[test]
    fn an_unknown_name_in_a_part_is_an_error() {
        let args = ManifestArgs::default();
        for text in ["a: ${NAMESPCE}\n", "#@probe 1\n", "#@crd-rules list none.example\n"] {
            assert!(filled(text, &args, &BTreeMap::new()).is_err(), "{text}");
        }
    }
}
