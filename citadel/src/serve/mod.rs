//! `citadel serve`: the authority as a gRPC server with an admin port.
//!
//! In: [`Options`], a listener. Out: certificates on the wire, the root bundle in a file and over HTTP.
//! Kept true: it starts with a working authority or not at all; afterwards no broken file stops it.
//! Not here: command-line parsing (`cli`), signing (`ca`).

mod own;
mod roots;
mod service;

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use axum::{Router, http::header, routing::get};
use istio_auth::istio_certificate_service_server::IstioCertificateServiceServer;
use mesh_identity::{
    CertStore, SpiffeId, TrustDomain,
    grpc::{Limits, incoming},
    tls::{ClientAuth, ServerTls},
};
use mesh_runtime::{Metrics, Readiness, drain::Watch};
use tokio::net::TcpListener;

use crate::{
    ca::{
        AuthorityError, Lifetimes,
        source::{Current, Source},
    },
    caller::TokenVerifier,
    limit::PerIdentity,
};

pub use service::{CaService, Clock};

/// Bytes of a message that are read: a request is far smaller, and nobody is authenticated yet.
const MAX_MESSAGE: usize = 64 * 1024;

/// Everything that `citadel serve` is told.
pub struct Options {
    /// Where the authority comes from.
    pub source: Source,
    /// The trust domain it certifies.
    pub domain: TrustDomain,
    /// Lifetimes of certificates.
    pub lifetimes: Lifetimes,
    /// File to keep the root bundle in.
    pub root_out: Option<PathBuf>,
    /// How tokens are checked; `None` accepts certificates only.
    pub tokens: Option<Arc<dyn TokenVerifier>>,
    /// Requests per second that one identity may send on average.
    pub per_second: u32,
    /// How often changes of files are looked for ([`crate::ca::source::POLL`]).
    pub poll: std::time::Duration,
    /// Reads the time of day.
    pub clock: Clock,
    /// Namespace of the mesh's own components, citadel among them.
    pub mesh_namespace: String,
}

/// A loaded authority, ready to serve.
pub struct Citadel {
    options: Options,
    current: Current,
    store: CertStore,
    id: SpiffeId,
}

impl Citadel {
    /// Loads the authority and issues citadel's own certificate.
    ///
    /// # Errors
    /// When the files do not make an authority; the text names file and fix.
    pub fn load(options: Options) -> Result<Self, AuthorityError> {
        let now = (options.clock)();
        let current = Current::new(options.source.load(now)?);
        let id = options
            .domain
            .service_account(&options.mesh_namespace, "citadel")
            .map_err(|e| AuthorityError::Unfit { place: "--trust-domain".into(), why: e.to_string() })?;
        let store = CertStore::new(options.domain.clone(), []);
        own::issue(&current, &store, &id, now)?;
        Ok(Self { options, current, store, id })
    }

    /// The authority in force.
    pub fn current(&self) -> &Current {
        &self.current
    }

    /// What the admin server shows besides the usual: `/root-cert.pem`.
    pub fn routes(&self) -> Router {
        let current = self.current.clone();
        Router::new().route(
            "/root-cert.pem",
            get(async move || {
                ([(header::CONTENT_TYPE, "application/x-pem-file")], current.now().bundle().to_pem())
            }),
        )
    }

    /// Serves until the drain; then finishes open requests and returns.
    ///
    /// # Errors
    /// When the HTTP/2 server cannot start.
    pub async fn serve(
        self,
        listener: TcpListener,
        readiness: &Readiness,
        metrics: &Metrics,
        drain: Watch,
    ) -> Result<(), tonic::transport::Error> {
        let Self { options, current, store, id } = self;
        let (clock, for_metrics) = (options.clock.clone(), current.clone());
        metrics.add_text(move |out| expiry_text(out, &for_metrics, clock()));
        let written = readiness.condition("root-bundle", "the root bundle has not been written yet");
        tokio::spawn(roots::keep(options.root_out, options.poll, current.clone(), written, drain.clone()));
        let clock = options.clock.clone();
        tokio::spawn(current.clone().follow(options.source, options.poll, move || clock(), drain.clone()));
        let signing = readiness.condition("signing", "the authority has not signed yet");
        let clock = options.clock.clone();
        tokio::spawn(own::keep(current.clone(), store.clone(), id, clock, signing, drain.clone()));

        let service = CaService::new(current, options.domain, options.tokens, options.lifetimes)
            .limit(PerIdentity::new(options.per_second))
            .mesh_namespace(&options.mesh_namespace)
            .clock(options.clock)
            .metrics(metrics);
        let service = IstioCertificateServiceServer::new(service).max_decoding_message_size(MAX_MESSAGE);
        let tls = ServerTls::grpc(ClientAuth::Optional);
        let incoming = incoming(listener, store, tls, Limits::default(), drain.clone());
        tonic::transport::Server::builder()
            .timeout(std::time::Duration::from_secs(10))
            .max_concurrent_streams(100)
            .http2_max_header_list_size(u32::try_from(MAX_MESSAGE).unwrap_or(u32::MAX))
            .http2_keepalive_interval(Some(std::time::Duration::from_secs(30)))
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, async move { drain.signaled().await })
            .await
    }
}

fn expiry_text(out: &mut String, current: &Current, now: SystemTime) {
    let authority = current.now();
    for (name, help, end) in [
        (
            "citadel_root_cert_expiry_seconds",
            "Seconds until the last root certificate ends",
            authority.roots_not_after(),
        ),
        (
            "citadel_signing_cert_expiry_seconds",
            "Seconds until the signing chain ends",
            authority.not_after(),
        ),
    ] {
        let seconds = end.duration_since(now).unwrap_or_default().as_secs();
        out.push_str(&format!("# HELP {name} {help}.\n# TYPE {name} gauge\n{name} {seconds}\n"));
    }
}

#[cfg(test)]
mod tests;
