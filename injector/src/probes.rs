//! Probes of the application, moved to the proxy: the kubelet has no certificate, so under strict mTLS it could not ask the application.
//!
//! In: a pod. Out: the pod with probes on the proxy's health port, and the originals as JSON for the proxy. Kept true: [`restore`] undoes
//! [`rewrite`] exactly. Not here: answering them (the proxy does).

use serde_json::{Map, Value, json};

/// Name of the proxy's container; its own probes are left alone.
const PROXY: &str = "istio-proxy";
const PROBES: [(&str, &str); 3] =
    [("readinessProbe", "readyz"), ("livenessProbe", "livez"), ("startupProbe", "startupz")];
const HOOKS: [(&str, &str); 2] = [("postStart", "poststartz"), ("preStop", "prestopz")];

/// Moves every probe and HTTP lifecycle hook of `pod` to `port`; returns what they were, by their new path.
pub fn rewrite(pod: &mut Value, port: u16) -> Map<String, Value> {
    let mut originals = Map::new();
    for container in containers(pod) {
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let ports = container.get("ports").cloned().unwrap_or_default();
        for (probe, path) in PROBES {
            if let Some(probe) = container.get_mut(probe).and_then(Value::as_object_mut) {
                let timeout = probe.get("timeoutSeconds").cloned();
                moved(probe, &format!("/app-health/{name}/{path}"), port, &ports, timeout, &mut originals);
            }
        }
        for (hook, path) in HOOKS {
            let hook =
                container.get_mut("lifecycle").and_then(|l| l.get_mut(hook)).and_then(Value::as_object_mut);
            if let Some(hook) = hook.filter(|h| h.contains_key("httpGet")) {
                moved(hook, &format!("/app-lifecycle/{name}/{path}"), port, &ports, None, &mut originals);
            }
        }
    }
    originals
}

fn moved(
    probe: &mut Map<String, Value>,
    path: &str,
    port: u16,
    ports: &Value,
    timeout: Option<Value>,
    originals: &mut Map<String, Value>,
) {
    let Some(kind) = ["httpGet", "tcpSocket", "grpc"].into_iter().find(|k| probe.contains_key(*k)) else {
        return;
    };
    let handler = probe.get(kind).cloned().unwrap_or_default();
    // A probe with a host of its own does not ask this pod.
    if handler.get("host").and_then(Value::as_str).is_some_and(|h| !h.is_empty()) {
        return;
    }
    let mut kept = handler.clone();
    if let Some(number) = handler.get("port").and_then(|p| numbered(p, ports)) {
        kept["port"] = json!(number);
    }
    let mut original = Map::from_iter([(kind.to_owned(), kept)]);
    original.extend(timeout.map(|t| ("timeoutSeconds".to_owned(), t)));
    originals.insert(path.to_owned(), Value::Object(original));
    probe.shift_remove(kind);
    let mut get = Map::from_iter([("path".to_owned(), json!(path)), ("port".to_owned(), json!(port))]);
    if let Some(headers) = handler.get("httpHeaders") {
        get.insert("httpHeaders".to_owned(), headers.clone());
    }
    probe.insert("httpGet".to_owned(), Value::Object(get));
}

/// A port by number: itself, or the container port of that name.
fn numbered(port: &Value, ports: &Value) -> Option<u64> {
    let name = match port {
        Value::Number(n) => return n.as_u64(),
        Value::String(text) => text,
        _ => return None,
    };
    let named = ports.as_array()?.iter().find(|p| p.get("name").and_then(Value::as_str) == Some(name));
    named.and_then(|p| p.get("containerPort")?.as_u64()).or_else(|| name.parse().ok())
}

/// Puts back what [`rewrite`] moved.
pub fn restore(pod: &mut Value, originals: &Map<String, Value>) {
    for container in containers(pod) {
        let probes = PROBES.iter().map(|(probe, _)| (*probe).to_owned());
        for name in probes {
            if let Some(probe) = container.get_mut(&name).and_then(Value::as_object_mut) {
                put_back(probe, originals);
            }
        }
        for (hook, _) in HOOKS {
            let hook =
                container.get_mut("lifecycle").and_then(|l| l.get_mut(hook)).and_then(Value::as_object_mut);
            if let Some(hook) = hook {
                put_back(hook, originals);
            }
        }
    }
}

fn put_back(probe: &mut Map<String, Value>, originals: &Map<String, Value>) {
    let path = probe.get("httpGet").and_then(|get| get.get("path")).and_then(Value::as_str);
    let Some(Value::Object(original)) = path.and_then(|p| originals.get(p)) else { return };
    let handlers: Vec<_> = original.iter().filter(|(key, _)| *key != "timeoutSeconds").collect();
    probe.shift_remove("httpGet");
    for (kind, handler) in handlers {
        probe.insert(kind.clone(), handler.clone());
    }
}

/// Every container of the application that may have probes: also init containers that stay.
fn containers(pod: &mut Value) -> impl Iterator<Item = &mut Map<String, Value>> {
    let spec = pod.get_mut("spec").and_then(Value::as_object_mut);
    let lists = spec.into_iter().flat_map(|spec| spec.iter_mut());
    lists
        .filter(|(key, _)| *key == "containers" || *key == "initContainers")
        .filter_map(|(_, list)| list.as_array_mut())
        .flatten()
        .filter_map(Value::as_object_mut)
        .filter(|c| c.get("name").and_then(Value::as_str) != Some(PROXY))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Value {
        json!({ "spec": { "containers": [{
            "name": "app",
            "ports": [{ "name": "http", "containerPort": 8080 }],
            "readinessProbe": { "periodSeconds": 3, "timeoutSeconds": 2, "httpGet": { "path": "/ready", "port": "http", "scheme": "HTTPS" } },
            "livenessProbe": { "tcpSocket": { "port": 8080 } },
            "startupProbe": { "grpc": { "port": 9000, "service": "s" } },
            "lifecycle": { "preStop": { "httpGet": { "path": "/bye", "port": 8080 } }, "postStart": { "exec": { "command": ["x"] } } },
        }, {
            "name": "other",
            "livenessProbe": { "exec": { "command": ["true"] } },
            "readinessProbe": { "httpGet": { "path": "/", "port": 80, "host": "example.com" } },
        }, {
            "name": "istio-proxy", "readinessProbe": { "httpGet": { "path": "/healthz/ready", "port": 15021 } },
        }] } })
    }

    #[test]
    fn probes_that_ask_the_application_are_moved() {
        let mut moved = pod();
        let originals = rewrite(&mut moved, 15021);
        let want = json!({
            "/app-health/app/readyz": { "httpGet": { "path": "/ready", "port": 8080, "scheme": "HTTPS" }, "timeoutSeconds": 2 },
            "/app-health/app/livez": { "tcpSocket": { "port": 8080 } },
            "/app-health/app/startupz": { "grpc": { "port": 9000, "service": "s" } },
            "/app-lifecycle/app/prestopz": { "httpGet": { "path": "/bye", "port": 8080 } },
        });
        assert_eq!(Value::Object(originals), want);
        let app = &moved["spec"]["containers"][0];
        assert_eq!(
            app["readinessProbe"]["httpGet"],
            json!({ "path": "/app-health/app/readyz", "port": 15021 })
        );
        assert_eq!(app["readinessProbe"]["periodSeconds"], 3);
        assert_eq!(app["livenessProbe"].get("tcpSocket"), None);
        assert_eq!(moved["spec"]["containers"][1], pod()["spec"]["containers"][1]);
        assert_eq!(moved["spec"]["containers"][2], pod()["spec"]["containers"][2]);
    }

    #[test]
    fn restoring_and_moving_again_changes_nothing() {
        let mut once = pod();
        let originals = rewrite(&mut once, 15021);
        let mut twice = once.clone();
        restore(&mut twice, &originals);
        assert_eq!(
            twice["spec"]["containers"][0]["livenessProbe"],
            pod()["spec"]["containers"][0]["livenessProbe"]
        );
        assert_eq!(rewrite(&mut twice, 15021), originals);
        assert_eq!(twice, once);
    }
}
