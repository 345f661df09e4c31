//! The admin server that every binary has: health, readiness, metrics, log level, version, and routes of its own.
//!
//! In: HTTP on a port that faces the operator. Out: JSON and text about this process.
//! Kept true: nothing here changes state on a GET, and no answer holds a key or a token.
//! Not here: the pages of a single binary; they are mounted with [`Admin::routes`].

use std::net::SocketAddr;

use axum::{
    Json, Router,
    extract::Query,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;

use crate::{
    cli::VERSION,
    drain::Watch,
    listen::{self, BindError},
    logs::LogLevel,
    metrics::{self, Metrics},
    readiness::Readiness,
};

/// What the admin server shows. Build it, then [`Admin::bind`] and [`Bound::serve`].
#[derive(Clone, Debug)]
pub struct Admin {
    component: &'static str,
    readiness: Readiness,
    metrics: Metrics,
    log_level: LogLevel,
    extra: Router,
}

/// The admin server with its port taken.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    router: Router,
    addr: SocketAddr,
}

#[derive(Deserialize)]
struct LevelQuery {
    level: Option<String>,
}

impl Admin {
    /// `component` is the binary's name as shown by `/version`.
    pub fn new(component: &'static str, readiness: Readiness, metrics: Metrics, log_level: LogLevel) -> Self {
        Self { component, readiness, metrics, log_level, extra: Router::new() }
    }

    /// Mounts further routes; a path that exists already is a programming error and panics at start.
    #[must_use]
    pub fn routes(mut self, routes: Router) -> Self {
        self.extra = self.extra.merge(routes);
        self
    }

    /// All routes, for mounting on a server of one's own or for tests.
    pub fn router(&self) -> Router {
        let (readiness, metrics, level) =
            (self.readiness.clone(), self.metrics.clone(), self.log_level.clone());
        let (shown, component) = (self.log_level.clone(), self.component);
        Router::new()
            .route("/healthz/live", get(async || "live\n"))
            .route("/healthz/ready", get(async move || ready(&readiness)))
            .route(
                "/metrics",
                get(async move || ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.encode())),
            )
            .route(
                "/logging",
                get(async move || Json(json!({ "level": shown.current() })))
                    .post(async move |query: Query<LevelQuery>| set_level(&level, query.0)),
            )
            .route("/version", get(async move || Json(json!({ "component": component, "version": VERSION }))))
            .merge(self.extra.clone())
    }

    /// Takes the port.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn bind(&self, addr: SocketAddr) -> Result<Bound, BindError> {
        let listener = listen::bind(addr)?;
        let addr = listener.local_addr().unwrap_or(addr);
        Ok(Bound { listener, router: self.router(), addr })
    }
}

impl Bound {
    /// The address really bound (the port, when 0 was asked for).
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until the drain, then finishes open requests.
    pub async fn serve(self, drain: Watch) {
        listen::serve_http(self.listener, self.router, drain).await;
    }
}

/// 200 when ready; else 503 and one line per missing condition.
fn ready(readiness: &Readiness) -> Response {
    let missing = readiness.missing();
    if missing.is_empty() {
        return "ready\n".into_response();
    }
    let text: String = missing.iter().map(|(name, why)| format!("not ready: {name}: {why}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

fn set_level(level: &LogLevel, query: LevelQuery) -> Response {
    let Some(wanted) = query.level else {
        return (StatusCode::BAD_REQUEST, "say which: POST /logging?level=debug\n").into_response();
    };
    match level.set(&wanted) {
        Ok(()) => {
            tracing::info!(level = %level.current(), "log level changed");
            Json(json!({ "level": level.current() })).into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    fn admin() -> (Admin, Readiness) {
        let readiness = Readiness::new();
        let admin = Admin::new("test", readiness.clone(), Metrics::new(), LogLevel::detached("info"))
            .routes(Router::new().route("/own", get(async || "own")));
        (admin, readiness)
    }

    async fn ask(admin: &Admin, method: &str, path: &str) -> (u16, String) {
        let request = http::Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let response = admin.router().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn every_route_answers_as_documented() {
        let (admin, readiness) = admin();
        let certificate = readiness.condition("certificate", "citadel has not answered yet");
        for (method, path, status, part) in [
            ("GET", "/healthz/live", 200, "live"),
            ("GET", "/healthz/ready", 503, "certificate: citadel has not answered yet"),
            ("GET", "/metrics", 200, "# EOF"),
            ("GET", "/logging", 200, "\"info\""),
            ("POST", "/logging?level=debug", 200, "\"debug\""),
            ("POST", "/logging?level=loud", 400, "`loud` is not a level"),
            ("POST", "/logging", 400, "level="),
            ("GET", "/logging?level=trace", 200, "\"debug\""),
            ("GET", "/version", 200, "\"test\""),
            ("GET", "/own", 200, "own"),
            ("GET", "/quitquitquit", 404, ""),
        ] {
            let (got, body) = ask(&admin, method, path).await;
            assert_eq!(got, status, "{method} {path}: {body}");
            assert!(body.contains(part), "{method} {path}: {body}");
        }
        certificate.met();
        assert_eq!(ask(&admin, "GET", "/healthz/ready").await.0, 200);
    }

    #[tokio::test]
    async fn the_server_stops_accepting_when_drained() {
        let (trigger, watch) = crate::drain::new();
        let bound = admin().0.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = bound.local_addr();
        let server = tokio::spawn(bound.serve(watch));
        let idle = tokio::net::TcpStream::connect(addr).await.unwrap();
        let end = trigger.drain(std::time::Duration::from_secs(30)).await;
        assert!(end.is_clean(), "an idle connection does not hold up the drain");
        server.await.unwrap();
        drop(idle);
    }
}
