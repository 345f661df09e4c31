//! A container as a process: which program an image is, what its variables and volumes are.
//!
//! In: a pod and one of its containers. Out: [`Spec`]. Kept true: only images that the node knows; every path below a mount leads into the
//! pod's own directory. Not here: starting it (`process`).

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde_json::{Map, Value};

use super::{
    files::Layout,
    objects::{EGRESS_PORT, PROXY, Pod, list, map, name},
    process::Spec,
    tokens::Mint,
};

/// What the node needs to run containers.
#[derive(Debug)]
pub struct Kubelet {
    /// Directory of the programs.
    pub bin: PathBuf,
    /// The mesh's directory.
    pub layout: Layout,
    /// Mints the tokens that pods mount.
    pub mint: Mint,
}

impl Kubelet {
    /// The process for `container` of `pod`; its volumes are made.
    ///
    /// # Errors
    /// When the node does not know the image, or a variable refers to what does not exist.
    pub fn spec(&self, pod: &Pod, container: &Value) -> anyhow::Result<Spec> {
        let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
        let (program, mut args) = self.program(image)?;
        let words = |key: &str| list(container, key).iter().filter_map(Value::as_str).map(str::to_owned);
        args.extend(words("/args"));
        let mounts = self.mounts(pod, container)?;
        let mut env = BTreeMap::new();
        for variable in list(container, "/env") {
            let Some(value) = value_of(pod, variable)? else { continue };
            env.insert(name(variable).to_owned(), mounted(&value, &mounts));
        }
        if name(container) == PROXY {
            env.entry("DRAIN_SECONDS".to_owned()).or_insert_with(|| "2".to_owned());
            let socket = self.layout.pod(&pod.name).join("restart.sock");
            env.entry("RESTART_SOCKET".to_owned()).or_insert_with(|| socket.display().to_string());
        } else {
            let port = pod.ports.iter().find(|p| p.container == name(container));
            if let Some(port) = port {
                let listen = port
                    .app
                    .map_or_else(|| format!("{}:{}", pod.ip, port.bound), |p| format!("127.0.0.1:{p}"));
                env.insert("LISTEN".to_owned(), listen);
            }
            if pod.has_sidecar() {
                env.insert("HTTP_PROXY".to_owned(), format!("http://{}:{EGRESS_PORT}", pod.ip));
            }
        }
        Ok(Spec {
            name: format!("{}.{}.{}", pod.namespace, pod.name, name(container)),
            program,
            args: args.into_iter().map(Into::into).collect(),
            env: env.into_iter().map(|(k, v)| (k, v.into())).collect(),
        })
    }

    /// The program and first arguments that stand for an image.
    fn program(&self, image: &str) -> anyhow::Result<(PathBuf, Vec<String>)> {
        let last = image.rsplit('/').next().unwrap_or_default();
        let plain = last.split(['@', ':']).next().unwrap_or_default();
        let (program, args) = match plain {
            "espresso-shop-web" => ("espresso-shop", vec!["web".to_owned()]),
            "espresso-shop-product-catalog" => ("espresso-shop", vec!["product-catalog".to_owned()]),
            "espresso-shop-reviews" => ("espresso-shop", vec!["reviews".to_owned()]),
            "echo" => ("espresso-shop", vec!["echo".to_owned()]),
            "proxy" => ("proxy", vec![]),
            _ => bail!(
                "image {image:?} is no program of the local node: it knows espresso-shop-web, espresso-shop-product-catalog, \
                 espresso-shop-reviews, echo and crema/proxy"
            ),
        };
        Ok((self.bin.join(program), args))
    }

    /// Makes the volumes that a container mounts; mount path → directory.
    fn mounts(&self, pod: &Pod, container: &Value) -> anyhow::Result<Vec<(String, PathBuf)>> {
        let mut made = Vec::new();
        for mount in list(container, "/volumeMounts") {
            let volume = list(&pod.template, "/spec/volumes").iter().find(|v| name(v) == name(mount));
            let volume =
                volume.with_context(|| format!("pod {} has no volume {:?}", pod.name, name(mount)))?;
            let dir = self.layout.pod(&pod.name).join(name(mount));
            self.volume(pod, volume, &dir)?;
            let path = mount.get("mountPath").and_then(Value::as_str).unwrap_or_default();
            made.push((path.to_owned(), dir));
        }
        Ok(made)
    }

    fn volume(&self, pod: &Pod, volume: &Value, dir: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(dir)?;
        for item in list(volume, "/downwardAPI/items") {
            let field = item.pointer("/fieldRef/fieldPath").and_then(Value::as_str).unwrap_or_default();
            let path = item.get("path").and_then(Value::as_str).unwrap_or_default();
            fs::write(dir.join(path), field_file(pod, field))?;
        }
        for source in list(volume, "/projected/sources") {
            let Some(path) = source.pointer("/serviceAccountToken/path").and_then(Value::as_str) else {
                continue;
            };
            let token = self.mint.token(&pod.namespace, pod.account(), &pod.name, &pod.uid)?;
            fs::write(dir.join(path), token)?;
        }
        if volume.pointer("/configMap/name").and_then(Value::as_str) == Some("istio-ca-root-cert") {
            let link = dir.join("root-cert.pem");
            if !link.is_symlink() {
                symlink(self.layout.root_cert(), link)?;
            }
        }
        Ok(())
    }
}

/// A value whose path lies below a mount leads into the volume's directory instead.
fn mounted(value: &str, mounts: &[(String, PathBuf)]) -> String {
    let inside = mounts.iter().find_map(|(path, dir)| {
        let rest = value.strip_prefix(path.as_str())?;
        (rest.is_empty() || rest.starts_with('/')).then(|| format!("{}{rest}", dir.display()))
    });
    inside.unwrap_or_else(|| value.to_owned())
}

fn value_of(pod: &Pod, variable: &Value) -> anyhow::Result<Option<String>> {
    if let Some(path) = variable.pointer("/valueFrom/fieldRef/fieldPath").and_then(Value::as_str) {
        let Some(value) = field(pod, path) else {
            bail!(
                "variable {} of pod {} refers to {path}, which the local node does not know",
                name(variable),
                pod.name
            )
        };
        return Ok(Some(value));
    }
    if variable.get("valueFrom").is_some() {
        bail!(
            "variable {} of pod {} takes its value from what the local node has not",
            name(variable),
            pod.name
        );
    }
    Ok(match variable.get("value") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Null) | None => Some(String::new()),
        Some(other) => Some(other.to_string()),
    })
}

/// A field of a pod as the downward API gives it.
fn field(pod: &Pod, path: &str) -> Option<String> {
    let entry = |group: &Map<String, Value>, rest: &str| {
        let key = rest.strip_prefix("['")?.strip_suffix("']")?;
        Some(group.get(key).and_then(Value::as_str).unwrap_or_default().to_owned())
    };
    Some(match path {
        "metadata.name" => pod.name.clone(),
        "metadata.namespace" => pod.namespace.clone(),
        "metadata.uid" => pod.uid.clone(),
        "spec.serviceAccountName" => pod.account().to_owned(),
        "spec.nodeName" => "local".to_owned(),
        "status.podIP" | "status.podIPs" => pod.ip.to_string(),
        "status.hostIP" => "127.0.0.1".to_owned(),
        other => {
            let labels = other.strip_prefix("metadata.labels").and_then(|rest| entry(&pod.labels(), rest));
            let annotations = || {
                entry(
                    &map(&pod.template, "/metadata/annotations"),
                    other.strip_prefix("metadata.annotations")?,
                )
            };
            return labels.or_else(annotations);
        }
    })
}

/// `key="value"` lines, as the downward API writes maps; a single field as it is.
fn field_file(pod: &Pod, path: &str) -> String {
    let group = match path {
        "metadata.labels" => pod.labels(),
        "metadata.annotations" => map(&pod.template, "/metadata/annotations"),
        other => return field(pod, other).unwrap_or_default(),
    };
    let line = |(key, value): (&String, &Value)| format!("{key}={:?}\n", value.as_str().unwrap_or_default());
    group.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use serde_json::json;

    use super::*;
    use crate::node::objects::Port;

    fn pod() -> Pod {
        let port = Port {
            name: "http".into(),
            container_port: 80,
            bound: 10_080,
            app: Some(11_005),
            container: "app".into(),
        };
        Pod {
            namespace: "default".into(),
            name: "web-1".into(),
            uid: "u".into(),
            ip: Ipv4Addr::new(127, 64, 1, 1),
            ports: vec![port],
            owner: None,
            template: json!({
                "metadata": { "labels": { "app": "web" }, "annotations": { "note": "say \"hi\"" } },
                "spec": {
                    "initContainers": [{
                        "name": "istio-proxy", "image": "crema/proxy:1", "args": ["sidecar"],
                        "env": [
                            { "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                            { "name": "APP", "valueFrom": { "fieldRef": { "fieldPath": "metadata.labels['app']" } } },
                            { "name": "TOKEN_FILE", "value": "/var/run/secrets/tokens/istio-token" },
                            { "name": "OTHER", "value": "/var/run/secrets/tokensX" },
                        ],
                        "volumeMounts": [{ "name": "tok", "mountPath": "/var/run/secrets/tokens" }, { "name": "info", "mountPath": "/etc/istio/pod" }],
                    }],
                    "containers": [{ "name": "app", "image": "hossambarakat/espresso-shop-web", "env": [{ "name": "A", "value": "1" }] }],
                    "volumes": [
                        { "name": "tok", "projected": { "sources": [{ "serviceAccountToken": { "path": "istio-token" } }] } },
                        { "name": "info", "downwardAPI": { "items": [
                            { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
                            { "path": "annotations", "fieldRef": { "fieldPath": "metadata.annotations" } },
                        ] } },
                    ],
                },
            }),
            ready: false,
        }
    }

    fn kubelet(dir: &Path) -> Kubelet {
        let layout = Layout::create(dir).expect("made");
        Kubelet { bin: "/bin-dir".into(), layout, mint: Mint::new().expect("a mint") }
    }

    fn env(spec: &Spec, name: &str) -> Option<String> {
        spec.env.iter().find(|(k, _)| k == name).map(|(_, v)| v.to_string_lossy().into_owned())
    }

    #[test]
    fn the_proxys_paths_lead_into_the_pods_own_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let kubelet = kubelet(dir.path());
        let (pod, root) = (pod(), kubelet.layout.pod("web-1"));
        let proxy = kubelet.spec(&pod, pod.containers().next().expect("a proxy")).expect("a process");
        assert_eq!((proxy.program, proxy.args), ("/bin-dir/proxy".into(), vec!["sidecar".into()]));
        let spec = kubelet.spec(&pod, pod.containers().next().expect("a proxy")).expect("a process");
        assert_eq!(env(&spec, "POD_NAME").as_deref(), Some("web-1"));
        assert_eq!(env(&spec, "APP").as_deref(), Some("web"));
        assert_eq!(env(&spec, "OTHER").as_deref(), Some("/var/run/secrets/tokensX"));
        let token = env(&spec, "TOKEN_FILE").expect("set");
        assert_eq!(token, root.join("tok/istio-token").display().to_string());
        assert_eq!(fs::read_to_string(token).expect("a token").split('.').count(), 3);
        let annotations = fs::read_to_string(root.join("info/annotations")).expect("a file");
        assert_eq!(annotations, "note=\"say \\\"hi\\\"\"\n");
    }

    #[test]
    fn an_application_learns_where_to_listen_and_which_proxy_to_use() {
        let dir = tempfile::tempdir().expect("a directory");
        let kubelet = kubelet(dir.path());
        let pod = pod();
        let spec = kubelet.spec(&pod, pod.containers().last().expect("an application")).expect("a process");
        assert_eq!(
            (spec.program.clone(), spec.args.clone()),
            ("/bin-dir/espresso-shop".into(), vec!["web".into()])
        );
        assert_eq!(env(&spec, "LISTEN").as_deref(), Some("127.0.0.1:11005"));
        assert_eq!(env(&spec, "HTTP_PROXY").as_deref(), Some("http://127.64.1.1:15080"));
    }

    #[test]
    fn an_unknown_image_is_named_with_those_that_are_known() {
        let dir = tempfile::tempdir().expect("a directory");
        let error =
            kubelet(dir.path()).spec(&pod(), &json!({ "image": "nginx" })).expect_err("unknown").to_string();
        assert!(error.contains("nginx") && error.contains("espresso-shop-reviews"), "{error}");
    }
}
