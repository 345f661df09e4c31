//! Applying and deleting: what `kubectl` and the kubelet do for Deployments and Services.
//!
//! In: Kubernetes documents. Out: pods that run, objects and files. Kept true: everything with pods goes through the real injector; a pod
//! leaves the endpoints before its processes end. Not here: readiness and endpoints (`super`), processes (`super::process`).

use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{
    Deployment, Node, Running,
    files::{documents, remove, write_objects},
    follow,
    forward::Forwarder,
    network::bound_port,
    objects::{PROXY, Pod, Port, list, name, short_hash},
};

impl Node {
    /// Applies a file as `injector inject -f FILE | kubectl apply -f -` does on a cluster.
    ///
    /// # Errors
    /// When the injector refuses the file, or a container cannot be started.
    pub async fn apply_file(&self, path: &Path) -> anyhow::Result<()> {
        self.apply_injected(&self.inject(path).await?).await
    }

    /// As [`Node::apply_file`], from text.
    ///
    /// # Errors
    /// See [`Node::apply_file`].
    pub async fn apply(&self, text: &str) -> anyhow::Result<()> {
        let made = self.state().made;
        let path = self.layout().run().join(format!("apply-{made}-{}.yaml", short_hash(text, 8)));
        std::fs::write(&path, text)?;
        self.apply_file(&path).await
    }

    /// Runs the real injector on a file.
    async fn inject(&self, path: &Path) -> anyhow::Result<String> {
        let addresses = self.addresses();
        let mut command = tokio::process::Command::new(self.bin().join("injector"));
        // Variables of the people's shell are not for it.
        command.env_clear();
        command.arg("inject").arg("-f").arg(path).args(["--interception-mode", "none"]);
        for (flag, address) in [
            ("--discovery-address", addresses.xds_tls),
            ("--ca-addr", addresses.ca),
            ("--telemetry-addr", addresses.mixer_tls),
        ] {
            command.args([flag, &address.to_string()]);
        }
        let out = command.output().await.context("starting the injector")?;
        if !out.status.success() {
            bail!("{}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(String::from_utf8(out.stdout)?)
    }

    async fn apply_injected(&self, text: &str) -> anyhow::Result<()> {
        for mut object in documents(text)? {
            let text =
                |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
            let (kind, object_name) = (text("/kind"), text("/metadata/name"));
            let namespace = match text("/metadata/namespace") {
                none if none.is_empty() => "default".to_owned(),
                given => given,
            };
            if !["Namespace", "MeshPolicy"].contains(&kind.as_str()) {
                object["metadata"]["namespace"] = json!(namespace);
            }
            match kind.as_str() {
                "Deployment" => self.apply_deployment(&namespace, &object_name, &object).await?,
                "Service" => self.apply_service(&namespace, &object_name, object).await?,
                "" => bail!("a document has no kind"),
                _ => {
                    let file = format!("{}-{namespace}-{object_name}.yaml", kind.to_ascii_lowercase());
                    write_objects(&self.layout().node().join(file), &[object])?;
                }
            }
        }
        self.refresh()
    }

    async fn apply_service(&self, namespace: &str, name: &str, mut service: Value) -> anyhow::Result<()> {
        let key = (namespace.to_owned(), name.to_owned());
        let old = self.state().services.get(&key).and_then(|s| s.pointer("/spec/clusterIP").cloned());
        if service.pointer("/spec/clusterIP").is_none() {
            service["spec"]["clusterIP"] =
                old.unwrap_or_else(|| json!(self.0.network.next_service().to_string()));
        }
        if service.pointer("/spec/type").and_then(Value::as_str) == Some("LoadBalancer") {
            for port in list(&service, "/spec/ports") {
                let Some(number) =
                    port.get("port").and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok())
                else {
                    bail!("Service {namespace}/{name}: a port has no number");
                };
                let slot = (namespace.to_owned(), name.to_owned(), number);
                if !self.state().forwarders.contains_key(&slot) {
                    let forwarder = Forwarder::start(number, || self.0.network.next_port()).await?;
                    self.state().forwarders.insert(slot, forwarder);
                }
            }
            service["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "127.0.0.1" }] } });
        }
        write_objects(
            &self.layout().node().join(format!("service-{namespace}-{name}.yaml")),
            &[service.clone()],
        )?;
        self.state().services.insert(key, service);
        Ok(())
    }

    async fn apply_deployment(&self, namespace: &str, name: &str, object: &Value) -> anyhow::Result<()> {
        let template = object.pointer("/spec/template").cloned().unwrap_or_default();
        let wanted = object.pointer("/spec/replicas").and_then(Value::as_u64).unwrap_or(1);
        let set = format!("{name}-{}", short_hash(&template.to_string(), 10));
        let key = (namespace.to_owned(), name.to_owned());
        let old = self.state().deployments.insert(key, Deployment { set: set.clone(), template });
        if let Some(old) = old.filter(|old| old.set != set) {
            self.stop_pods(|pod| pod.owner.as_ref().is_some_and(|(_, of)| *of == old.set)).await?;
        }
        self.scale(namespace, name, wanted).await
    }

    /// Runs `wanted` pods of a Deployment.
    ///
    /// # Errors
    /// When there is no such Deployment, or a container cannot be started.
    pub async fn scale(&self, namespace: &str, name: &str, wanted: u64) -> anyhow::Result<()> {
        let key = (namespace.to_owned(), name.to_owned());
        let (set, template) = {
            let state = self.state();
            let found =
                state.deployments.get(&key).with_context(|| format!("no Deployment {namespace}/{name}"))?;
            (found.set.clone(), found.template.clone())
        };
        let mine =
            |pod: &Pod| pod.owner.as_ref().is_some_and(|(_, of)| *of == set) && pod.namespace == namespace;
        let running: Vec<_> =
            self.state().pods.values().filter(|r| mine(&r.pod)).map(|r| r.pod.name.clone()).collect();
        let wanted = usize::try_from(wanted)?;
        if running.len() > wanted {
            let surplus = running[wanted..].to_vec();
            self.stop_pods(|pod| mine(pod) && surplus.contains(&pod.name)).await?;
        }
        for _ in running.len()..wanted {
            self.start_pod(namespace, name, &set, &template).await?;
        }
        self.refresh()
    }

    async fn start_pod(
        &self,
        namespace: &str,
        owner: &str,
        set: &str,
        template: &Value,
    ) -> anyhow::Result<()> {
        let count = {
            let mut state = self.state();
            state.made += 1;
            state.made
        };
        let pod_name = format!("{set}-{}", short_hash(&format!("{set} {count}"), 5));
        (self.0.options.progress)(&format!("starting pod {pod_name}"));
        let uid = format!("{:08x}-0000-4000-8000-{count:012x}", rand::random::<u32>());
        let mut pod = Pod {
            namespace: namespace.to_owned(),
            name: pod_name,
            uid,
            ip: self.0.network.next_pod(),
            ports: Vec::new(),
            owner: Some((owner.to_owned(), set.to_owned())),
            template: template.clone(),
            ready: false,
        };
        pod.ports = self.ports(&pod)?;
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "name": pod.account(), "namespace": namespace },
        });
        let file = format!("serviceaccount-{namespace}-{}.yaml", pod.account());
        write_objects(&self.layout().node().join(file), &[account])?;
        self.write_pod(&pod)?;
        let mut processes = Vec::new();
        for container in pod.containers() {
            let spec = self.0.kubelet.spec(&pod, container)?;
            processes.push((name(container).to_owned(), self.0.spawner.start(spec).await?));
        }
        let key = (namespace.to_owned(), pod.name.clone());
        self.state().pods.insert(key.clone(), Running { pod: pod.clone(), processes });
        tokio::spawn(follow(self.clone(), key, pod));
        Ok(())
    }

    fn ports(&self, pod: &Pod) -> anyhow::Result<Vec<Port>> {
        let mut ports = Vec::new();
        for container in pod.containers() {
            // The proxy's own ports are its business, unless it is all there is: a gateway.
            if name(container) == PROXY && pod.has_sidecar() {
                continue;
            }
            for port in list(container, "/ports") {
                let number =
                    port.get("containerPort").and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok());
                let number = number.with_context(|| format!("a port of pod {} has no number", pod.name))?;
                let app = if pod.has_sidecar() { Some(self.0.network.next_port()?) } else { None };
                ports.push(Port {
                    name: name(port).to_owned(),
                    container_port: number,
                    bound: bound_port(number),
                    app,
                    container: name(container).to_owned(),
                });
            }
        }
        Ok(ports)
    }

    pub(super) fn write_pod(&self, pod: &Pod) -> anyhow::Result<()> {
        let objects: Vec<_> = std::iter::once(pod.object()).chain(pod.sidecar()).collect();
        write_objects(
            &self.layout().node().join(format!("pod-{}-{}.yaml", pod.namespace, pod.name)),
            &objects,
        )
    }

    /// Deletes a Deployment with its pods, or a Service, or any other object that was applied. What is not there is fine.
    ///
    /// # Errors
    /// When the file system refuses.
    pub async fn delete(&self, kind: &str, namespace: &str, name: &str) -> anyhow::Result<()> {
        let key = (namespace.to_owned(), name.to_owned());
        match kind {
            "Deployment" => {
                self.state().deployments.remove(&key);
                let mine = |pod: &Pod| {
                    pod.namespace == namespace && pod.owner.as_ref().is_some_and(|(of, _)| of == name)
                };
                self.stop_pods(mine).await?;
            }
            "Service" => {
                let mut state = self.state();
                state.services.remove(&key);
                state
                    .forwarders
                    .retain(|(ns, service, _), _| (ns.as_str(), service.as_str()) != (namespace, name));
                drop(state);
                remove(&self.layout().node().join(format!("endpointslice-{namespace}-{name}.yaml")))?;
            }
            _ => {}
        }
        let file = format!("{}-{namespace}-{name}.yaml", kind.to_ascii_lowercase());
        remove(&self.layout().node().join(file))?;
        self.refresh()
    }

    async fn stop_pods(&self, which: impl Fn(&Pod) -> bool) -> anyhow::Result<()> {
        let stopped: Vec<Running> = {
            let mut state = self.state();
            let keys: Vec<_> =
                state.pods.iter().filter(|(_, r)| which(&r.pod)).map(|(k, _)| k.clone()).collect();
            keys.iter().filter_map(|k| state.pods.remove(k)).collect()
        };
        // As on a cluster: out of the endpoints first, then the processes.
        self.refresh()?;
        for running in stopped {
            futures::future::join_all(running.processes.iter().map(|(_, p)| p.stop())).await;
            remove(
                &self
                    .layout()
                    .node()
                    .join(format!("pod-{}-{}.yaml", running.pod.namespace, running.pod.name)),
            )?;
        }
        Ok(())
    }
}
