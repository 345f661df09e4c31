//! The Espresso Shop: three small services and an echo, used to show what a mesh does to real traffic.
//!
//! In: HTTP requests. Out: HTML pages (`web`), JSON (`product-catalog`, `reviews`, `echo`).
//! Kept true: names, paths, ports and environment variables are those that the published shop's manifests expect.
//! Not here: anything of the mesh; the services only pass trace headers on and honour `HTTP_PROXY`.

pub mod agent;
pub mod call;
pub mod catalog;
pub mod client;
pub mod echo;
pub mod load;
pub mod pages;
pub mod picture;
pub mod reviews;
pub mod session;
pub mod web;

use std::net::SocketAddr;

use axum::{
    Router,
    extract::{Request, State},
    http::HeaderValue,
    middleware::{self, Next},
    response::Response,
};

/// Names the version that answered; clients and tests read it.
pub const VERSION_HEADER: &str = "x-service-version";

/// Adds [`VERSION_HEADER`] to every answer of `router`, when the service knows its version.
pub fn versioned(router: Router, version: Option<&str>) -> Router {
    match version.map(HeaderValue::from_str) {
        Some(Ok(value)) => router.layer(middleware::from_fn_with_state(value, stamp)),
        _ => router,
    }
}

async fn stamp(State(version): State<HeaderValue>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(VERSION_HEADER, version);
    response
}

/// Serves `router` on `listen` until SIGTERM or Ctrl-C, then lets running requests finish.
///
/// # Errors
/// When the address cannot be bound; the error names it.
pub async fn serve(listen: SocketAddr, router: Router) -> anyhow::Result<()> {
    use anyhow::Context;

    let listener =
        tokio::net::TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    let address = listener.local_addr()?;
    eprintln!("listening on {address}");
    axum::serve(listener, router).with_graceful_shutdown(asked_to_stop()).await?;
    Ok(())
}

async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};

    let interrupt = tokio::signal::ctrl_c();
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = interrupt => {}
                _ = terminate.recv() => {}
            }
        }
        // Without a handler the default action of SIGTERM ends the process, which is what it asks for.
        Err(_) => drop(interrupt.await),
    }
}
