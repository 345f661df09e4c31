//! Questions on the admin port: who is connected, what each has, what was read, what is wrong.
//!
//! In: the pusher and the source's reader. Out: `/debug/…` as JSON, and metrics. Kept true: keys of secrets are never
//! shown. Not here: health, logs, `/metrics` itself (`mesh-runtime`).

use crate::{ads::Type, push::Pusher};
use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use mesh_config::source::Reader;
use mesh_runtime::Metrics;
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt::Write as _};

#[derive(Clone)]
struct Answers {
    pusher: Pusher,
    reader: Reader,
}

/// The routes under `/debug`.
pub fn router(pusher: Pusher, reader: Reader) -> Router {
    Router::new()
        .route("/debug", get(index))
        .route("/debug/syncz", get(syncz))
        .route("/debug/config_dump", get(config_dump))
        .route("/debug/registryz", get(registryz))
        .route("/debug/endpointz", get(endpointz))
        .route("/debug/push_status", get(push_status))
        .route("/debug/configz", get(configz))
        .route("/debug/authenticationz", get(authenticationz))
        .route("/debug/mesh", get(mesh))
        .with_state(Answers { pusher, reader })
}

async fn index() -> &'static str {
    "/debug/syncz            who is connected, and how far each is\n\
     /debug/config_dump      ?proxyID=POD.NS: what a proxy has\n\
     /debug/registryz        services\n\
     /debug/endpointz        endpoints of services\n\
     /debug/push_status      findings in what was read, problems in what is served\n\
     /debug/configz          the objects in force\n\
     /debug/authenticationz  ?proxyID=POD.NS: mutual TLS of its services, as tls-check shows it\n\
     /debug/mesh             mesh config\n"
}

async fn syncz(State(answers): State<Answers>) -> Json<Value> {
    Json(json!(answers.pusher.clients()))
}

async fn config_dump(
    State(answers): State<Answers>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    let Some(who) = query.get("proxyID") else {
        return (StatusCode::BAD_REQUEST, "say which proxy: ?proxyID=POD.NAMESPACE\n").into_response();
    };
    let Some((node, catalog)) = answers.pusher.catalog(who) else {
        let text = format!("no proxy {who} is connected; /debug/syncz lists those that are\n");
        return (StatusCode::NOT_FOUND, text).into_response();
    };
    let mut types = serde_json::Map::new();
    for kind in Type::ALL {
        let entries = catalog.of(kind).iter().map(|(name, resource)| {
            let body = if kind == Type::Secret {
                Value::Null
            } else {
                xds::reflect::to_json(kind.url(), &resource.bytes).unwrap_or_else(|e| json!(e))
            };
            json!({"name": name, "version": resource.version, "sources": resource.sources, "resource": body})
        });
        types.insert(kind.short().to_owned(), entries.collect());
    }
    Json(json!({"node": node, "push": catalog.push, "configs": types})).into_response()
}

async fn registryz(State(answers): State<Answers>) -> Json<Value> {
    let Some(translator) = answers.pusher.translator() else { return Json(json!([])) };
    let one = |service: &std::sync::Arc<crate::model::service::Service>| {
        json!({
            "hostname": service.host,
            "namespace": service.namespace,
            "source": service.source,
            "addresses": service.addresses,
            "resolution": format!("{:?}", service.resolution),
            "meshExternal": service.external,
            "ports": service.ports.iter().map(|p| json!({
                "port": p.number, "name": p.name, "protocol": format!("{:?}", p.protocol),
            })).collect::<Vec<_>>(),
            "endpoints": service.endpoints.len(),
        })
    };
    Json(translator.model.services.values().map(one).collect())
}

async fn endpointz(State(answers): State<Answers>) -> Json<Value> {
    let Some(translator) = answers.pusher.translator() else { return Json(json!([])) };
    let services = translator.model.services.values().map(|service| {
        let endpoints = service.endpoints.iter().map(|e| {
            json!({
                "address": format!("{}:{}", e.address, e.port),
                "servicePort": e.service_port,
                "labels": *e.labels,
                "workload": e.workload.as_ref().map(|(ns, pod)| format!("{ns}/{pod}")),
                "takesMtls": e.takes_mtls,
                "locality": e.locality,
            })
        });
        json!({"hostname": service.host, "endpoints": endpoints.collect::<Vec<_>>()})
    });
    Json(services.collect())
}

async fn push_status(State(answers): State<Answers>) -> Json<Value> {
    let findings = answers.reader.now().diagnostics();
    let refused: Vec<_> = answers
        .pusher
        .clients()
        .into_iter()
        .flat_map(|client| {
            let node = client.node;
            client.types.into_iter().flat_map(move |(kind, standing)| {
                let node = node.clone();
                standing.refused.into_iter().map(move |(name, refusal)| {
                    json!({"node": node, "type": kind, "resource": name, "why": refusal.why, "sources": refusal.sources})
                })
            })
        })
        .collect();
    Json(json!({
        "figures": answers.pusher.figures(),
        "findings": findings.iter().map(|d| format!("{d:#}")).collect::<Vec<_>>(),
        "problems": answers.pusher.problems(),
        "refused": refused,
    }))
}

async fn configz(State(answers): State<Answers>) -> Json<Value> {
    let snapshot = answers.reader.now();
    let objects = snapshot.resources().into_iter().map(|resource| {
        let meta = resource.meta();
        json!({
            "apiVersion": meta.gvk.api_version(),
            "kind": meta.gvk.kind,
            "namespace": meta.namespace,
            "name": meta.name,
            "origin": meta.origin.to_string(),
        })
    });
    Json(objects.collect())
}

async fn authenticationz(
    State(answers): State<Answers>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    let Some(translator) = answers.pusher.translator() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the configuration has not been read yet\n")
            .into_response();
    };
    let text = |key: &str| query.get(key).map(String::as_str);
    match crate::tls_check::check(&translator, text("proxyID"), text("service")) {
        Ok(rows) => Json(json!(rows)).into_response(),
        Err(why) => (StatusCode::NOT_FOUND, format!("{why}\n")).into_response(),
    }
}

async fn mesh(State(answers): State<Answers>) -> Json<Value> {
    Json(json!(*answers.reader.now().mesh))
}

/// Adds pilot's own figures to each scrape.
pub fn metrics(metrics: &Metrics, pusher: &Pusher) {
    let pusher = pusher.clone();
    metrics.add_text(move |out| {
        let figures = pusher.figures();
        for (name, kind, help, value) in [
            ("pilot_xds", "gauge", "Clients connected", u64::try_from(figures.clients).unwrap_or(u64::MAX)),
            ("pilot_push_generation", "gauge", "Number of the push in force", figures.pushes),
            (
                "pilot_xds_refused_resources",
                "gauge",
                "Resources that clients refuse at the moment",
                u64::try_from(figures.refused).unwrap_or(u64::MAX),
            ),
            (
                "pilot_push_milliseconds",
                "gauge",
                "How long the last push took to make",
                u64::try_from(figures.last_push_ms).unwrap_or(u64::MAX),
            ),
        ] {
            // Writing to a string does not fail.
            let _ok = writeln!(out, "# TYPE {name} {kind}\n# HELP {name} {help}.\n{name} {value}");
        }
    });
}
