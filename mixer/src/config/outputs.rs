//! The outputs of template `kubernetes`, as `attribute_bindings` name them: `$out.source_workload_name`.
//!
//! In: two workloads. Out: a bag of outputs, beside the attributes the bindings may also use.
//! Kept true: an output that is not known is absent. Not here: which workloads (`join`).

use std::{net::IpAddr, sync::Arc};

use crate::{
    attributes::{Bag, Value, ValueType, Vocabulary},
    workload::Workload,
};

const SIDE: &[(&str, ValueType)] = &[
    ("pod_uid", ValueType::String),
    ("pod_ip", ValueType::IpAddress),
    ("pod_name", ValueType::String),
    ("labels", ValueType::StringMap),
    ("namespace", ValueType::String),
    ("service_account_name", ValueType::String),
    ("host_ip", ValueType::IpAddress),
    ("owner", ValueType::String),
    ("workload_uid", ValueType::String),
    ("workload_name", ValueType::String),
    ("workload_namespace", ValueType::String),
];

/// `base` with the outputs declared as `output.*`.
#[must_use]
pub fn vocabulary(base: &Vocabulary) -> Vocabulary {
    let mut out = base.clone();
    let names = ["source", "destination"]
        .into_iter()
        .flat_map(|side| SIDE.iter().map(move |(name, kind)| (side, name, kind)));
    for (side, name, kind) in names {
        // A user's attribute of this name would keep its own type; nothing can be bound to it then.
        let _ = out.declare(&format!("output.{side}_{name}"), *kind);
    }
    let _ = out.declare("output.destination_container_name", ValueType::String);
    out
}

/// A bag with all of `bag`'s attributes and the outputs for two workloads.
#[must_use]
pub fn bag(
    bag: &Bag,
    vocabulary: &Arc<Vocabulary>,
    source: Option<&Workload>,
    destination: Option<&Workload>,
    port: Option<i64>,
) -> Bag {
    let mut out = Bag::new(vocabulary);
    for (id, value) in bag.iter() {
        out.set(id, value.clone());
    }
    for (side, pod) in [("source", source), ("destination", destination)] {
        let Some(pod) = pod else { continue };
        let mut put = |name: &str, value: Value| {
            if let Some(id) = vocabulary.id(&format!("output.{side}_{name}")) {
                out.set(id, value);
            }
        };
        put("pod_uid", Value::String(pod.uid.clone()));
        if let Some(ip) = pod.ips.first() {
            put("pod_ip", Value::Ip(IpAddr::to_canonical(ip)));
        }
        put("pod_name", Value::String(pod.name.clone()));
        put("labels", Value::StringMap(pod.labels.clone()));
        put("namespace", Value::String(pod.namespace.clone()));
        put("service_account_name", Value::String(pod.service_account.clone()));
        put("workload_uid", Value::String(pod.workload_uid.clone()));
        put("workload_name", Value::String(pod.workload.clone()));
        put("workload_namespace", Value::String(pod.namespace.clone()));
        if !pod.owner.is_empty() {
            put("owner", Value::String(pod.owner.clone()));
        }
    }
    let container = destination.and_then(|pod| {
        let (_, name) = pod.containers.iter().find(|(declared, _)| port == Some(i64::from(*declared)))?;
        Some(name.clone())
    });
    if let (Some(name), Some(id)) = (container, vocabulary.id("output.destination_container_name")) {
        out.set(id, Value::String(name));
    }
    out
}
