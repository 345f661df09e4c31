//! The proxy's admin pages about its configuration, in the shapes that Envoy's users and tools know.
//!
//! In: a [`crate::xds::Handle`] and the pages of the data path. Out: axum routes, mounted by `mesh_runtime::admin`.
//! Kept true: nothing here changes anything except `POST /drain`-like pages that the caller mounts. Not here: health, metrics, log level (`mesh_runtime`).

pub mod certs;
pub mod dump;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};

use crate::xds::Handle;

/// Routes about configuration: `/config_dump`, `/listeners`, `/server_info`.
pub fn routes(handle: Handle) -> Router {
    Router::new()
        .route("/config_dump", get(config_dump))
        .route("/listeners", get(listeners))
        .route("/server_info", get(server_info))
        .with_state(handle)
}

async fn config_dump(State(handle): State<Handle>) -> Response {
    match handle.dump().await {
        Some(dump) => Json(dump).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the proxy is shutting down\n").into_response(),
    }
}

/// One line per listener, `name::address`, as Envoy prints them.
async fn listeners(State(handle): State<Handle>) -> String {
    let snapshot = handle.snapshots().borrow().clone();
    snapshot.listeners.values().map(|listener| format!("{}::{}\n", listener.name, listener.address)).collect()
}

async fn server_info() -> Json<serde_json::Value> {
    Json(serde_json::json!({
        "version": mesh_runtime::cli::VERSION,
        "state": "LIVE",
        "command_line_options": {"concurrency": std::thread::available_parallelism().map_or(1, usize::from)},
    }))
}
