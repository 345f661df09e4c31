//! `/config_dump`: every accepted resource as proto3 JSON, in Envoy's arrangement.
//!
//! In: the [`Store`]. Out: JSON. Kept true: private keys are replaced by `[redacted]`. Not here: the HTTP page (`admin`).

use bytes::Bytes;
use mesh_traffic::names::Name;
use serde_json::{Map, Value, json};

use crate::xds::{Kind, Store};

/// The whole dump: `{"configs": [ClustersConfigDump, EndpointsConfigDump, ListenersConfigDump, RoutesConfigDump, SecretsConfigDump]}`.
#[must_use]
pub fn configs(store: &Store) -> Value {
    let of = |kind: Kind| store.dump().filter(move |one| one.0 == kind);
    let mut configs = Vec::new();
    for (kind, message, dynamic, fixed, inner) in [
        (Kind::Cluster, "ClustersConfigDump", "dynamic_active_clusters", "static_clusters", "cluster"),
        (
            Kind::Endpoints,
            "EndpointsConfigDump",
            "dynamic_endpoint_configs",
            "static_endpoint_configs",
            "endpoint_config",
        ),
        (Kind::Route, "RoutesConfigDump", "dynamic_route_configs", "static_route_configs", "route_config"),
        (
            Kind::VirtualHost,
            "VirtualHostsConfigDump",
            "dynamic_virtual_hosts",
            "static_virtual_hosts",
            "virtual_host",
        ),
        (Kind::Secret, "SecretsConfigDump", "dynamic_active_secrets", "static_secrets", "secret"),
    ] {
        let mut config = Map::new();
        config.insert("@type".to_owned(), json!(format!("type.googleapis.com/envoy.admin.v3.{message}")));
        for (list, is_fixed) in [(dynamic, false), (fixed, true)] {
            let entries: Vec<Value> = of(kind)
                .filter(|one| one.4 == is_fixed)
                .map(|one| json!({"name": &**one.1, "version_info": one.2, inner: resource(kind, one.3)}))
                .collect();
            if !entries.is_empty() {
                config.insert(list.to_owned(), Value::Array(entries));
            }
        }
        configs.push(Value::Object(config));
    }
    configs.insert(2, listeners(of(Kind::Listener)));
    json!({ "configs": configs })
}

fn listeners<'a>(all: impl Iterator<Item = (Kind, &'a Name, &'a str, &'a Bytes, bool)>) -> Value {
    let (mut dynamic, mut fixed) = (Vec::new(), Vec::new());
    for (kind, name, version, raw, is_fixed) in all {
        let listener = resource(kind, raw);
        match is_fixed {
            true => fixed.push(json!({"listener": listener})),
            false => dynamic.push(
                json!({"name": &**name, "active_state": {"version_info": version, "listener": listener}}),
            ),
        }
    }
    json!({
        "@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
        "dynamic_listeners": dynamic,
        "static_listeners": fixed,
    })
}

fn resource(kind: Kind, raw: &Bytes) -> Value {
    let mut json = match xds::reflect::to_json(kind.url(), raw) {
        Ok(json) => json,
        Err(why) => return json!({ "error": why }),
    };
    redact(&mut json);
    if let Value::Object(fields) = &mut json {
        fields.shift_insert(0, "@type".to_owned(), json!(kind.url()));
    }
    json
}

/// Takes private keys out, however deep they are.
fn redact(json: &mut Value) {
    match json {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                match name.as_str() {
                    "private_key" | "password" => *value = json!({"inline_bytes": "W3JlZGFjdGVkXQ=="}),
                    _ => redact(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xds::Resource;

    #[test]
    fn a_dump_shows_resources_by_name_and_no_private_key() {
        let secret = json!({"name": "s", "tls_certificate": {
            "certificate_chain": {"inline_string": "chain"}, "private_key": {"inline_string": "very secret"}}});
        let cluster = json!({"name": "c", "connect_timeout": "1s"});
        let mut store = Store::default();
        for (kind, json) in [(Kind::Secret, &secret), (Kind::Cluster, &cluster)] {
            let raw = xds::reflect::from_json(kind.url(), json).expect("valid");
            let resource = Resource::decode(kind, "", "7", raw.into()).expect("honoured");
            store.apply(resource).expect("accepted");
        }
        let text = configs(&store).to_string();
        assert!(!text.contains("very secret"), "{text}");
        assert!(text.contains(r#""cluster":{"@type":"type.googleapis.com/envoy.config.cluster.v3.Cluster","name":"c","connect_timeout":"1s"}"#), "{text}");
    }
}
