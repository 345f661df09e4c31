//! The webhook's HTTPS port, with pilot's own certificate.
//!
//! In: connections of the API server. Out: answers of `admission`. Kept true: a rotated certificate is used from the
//! next handshake on; connections and bodies are bounded, since anybody in the cluster may knock.
//! Not here: what is answered (`admission`), how the API server learns of it (`register`).

use axum::{
    Json, Router,
    body::Bytes,
    extract::DefaultBodyLimit,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use mesh_identity::{
    CertStore,
    tls::{ClientAuth, MinTls, ServerTls},
};
use mesh_runtime::{drain::Watch, listen};
use serde_json::Value;
use std::sync::Arc;
use tokio::{net::TcpListener, sync::Semaphore};

/// Largest review taken, in bytes: an object of the API server's limit (1.5 MiB), new and old, with room.
const MOST_BYTES: usize = 8 << 20;
/// Most connections at once; API servers keep a few.
const MOST_CONNECTIONS: usize = 256;

/// The webhook's routes: `/validate` and `/ready`.
pub fn router() -> Router {
    Router::new()
        .route("/validate", post(handle))
        .route("/ready", get(|| async { "ready\n" }))
        .layer(DefaultBodyLimit::max(MOST_BYTES))
}

async fn handle(body: Bytes) -> Response {
    // A large VirtualService takes milliseconds to judge; xDS streams share these threads.
    let judged = tokio::task::spawn_blocking(move || match serde_json::from_slice::<Value>(&body) {
        Ok(review) => super::answer(&review),
        Err(error) => Err(format!("the body is not JSON: {error}\n")),
    });
    match judged.await {
        Ok(Ok(answer)) => {
            log(&answer);
            Json(answer).into_response()
        }
        Ok(Err(why)) => (StatusCode::BAD_REQUEST, why).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the review could not be judged\n").into_response(),
    }
}

fn log(answer: &Value) {
    if let Some(why) = answer.pointer("/response/status/message").and_then(Value::as_str) {
        tracing::info!(why, "object refused");
    }
}

/// Serves the webhook until the drain.
pub async fn serve(listener: TcpListener, store: CertStore, drain: Watch) {
    let tls = ServerTls {
        client_auth: ClientAuth::None,
        alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        min: MinTls::V12,
    };
    let (router, places) = (router(), Arc::new(Semaphore::new(MOST_CONNECTIONS)));
    while let Some((stream, peer)) = drain.until_drain(listen::accept(&listener)).await {
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(%peer, "webhook connection refused: {MOST_CONNECTIONS} are open");
            continue;
        };
        let (store, tls, router, drain) = (store.clone(), tls.clone(), router.clone(), drain.clone());
        tokio::spawn(async move {
            let end = match store.accept(&tls, stream).await {
                Ok(accepted) => listen::serve_connection(accepted.stream, router, drain).await,
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = end {
                tracing::debug!(%peer, error, "webhook connection ended");
            }
            drop(place);
        });
    }
}
