//! `istio.v1.auth.IstioCertificateService`: one request, one certificate.
//!
//! In: gRPC requests with the connection's verified peer. Out: chains, or a status that says what to fix.
//! Kept true: caller first, then its limit, then the request; nothing is signed for a caller who was not identified.
//! Not here: the order of a chain (`ca`), the checks of tokens (`caller`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use istio_auth::{
    IstioCertificateRequest, IstioCertificateResponse, Kind, Struct,
    istio_certificate_service_server::IstioCertificateService,
};
use mesh_identity::{SpiffeId, TrustDomain, grpc::ConnInfo};
use mesh_runtime::Metrics;
use prometheus_client::metrics::{counter::Counter, family::Family};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::{
    ca::{Issued, Lifetimes, request, source::Current},
    caller::{TokenVerifier, identify},
    limit::PerIdentity,
    refusal::Refusal,
};

/// Reads the time of day; replaced in tests.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The service.
pub struct CaService {
    current: Current,
    domain: TrustDomain,
    tokens: Option<Arc<dyn TokenVerifier>>,
    lifetimes: Lifetimes,
    limit: PerIdentity,
    clock: Clock,
    issued: Counter,
    refused: Family<[(&'static str, &'static str); 1], Counter>,
    complaints: Complaints,
    /// Namespace of the mesh's own components.
    mesh_namespace: String,
}

impl CaService {
    /// Certifies callers of `domain`; without `tokens` only holders of a certificate.
    pub fn new(
        current: Current,
        domain: TrustDomain,
        tokens: Option<Arc<dyn TokenVerifier>>,
        lifetimes: Lifetimes,
    ) -> Self {
        Self {
            current,
            domain,
            tokens,
            lifetimes,
            limit: PerIdentity::new(50),
            clock: Arc::new(SystemTime::now),
            issued: Counter::default(),
            refused: Family::default(),
            complaints: Complaints::default(),
            mesh_namespace: "istio-system".to_owned(),
        }
    }

    /// Another namespace of the mesh's own components.
    #[must_use]
    pub fn mesh_namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.mesh_namespace);
        self
    }

    /// What a component of the mesh is called by those who are not in it, as the API server, which calls webhooks by the names of
    /// their Services: Service and service account have one name. Others get no names.
    fn names(&self, id: &SpiffeId) -> Vec<String> {
        if id.namespace() != self.mesh_namespace {
            return Vec::new();
        }
        let base = format!("{}.{}.svc", id.service_account(), id.namespace());
        vec![format!("{base}.cluster.local"), base]
    }

    /// Another limit per identity.
    #[must_use]
    pub fn limit(mut self, limit: PerIdentity) -> Self {
        self.limit = limit;
        self
    }

    /// Reads the time from elsewhere.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Shows what was issued and refused.
    #[must_use]
    pub fn metrics(self, metrics: &Metrics) -> Self {
        metrics.register("citadel_certificates_issued", "Workload certificates issued", self.issued.clone());
        metrics.register(
            "citadel_requests_refused",
            "Certificate requests refused, by reason",
            self.refused.clone(),
        );
        self
    }

    async fn issue(
        &self,
        authorization: Option<&str>,
        connection: Option<&ConnInfo>,
        wanted: &IstioCertificateRequest,
    ) -> Result<(SpiffeId, Issued, Vec<String>), Refusal> {
        let peer = connection.and_then(|c| c.peer.as_ref());
        let id = identify(authorization, peer, self.tokens.as_deref(), &self.domain).await?;
        if !self.limit.allow(&id) {
            return Err(Refusal::TooMany(id.to_string()));
        }
        if impersonated(wanted.metadata.as_ref()).is_some_and(|other| other != id.as_str()) {
            return Err(Refusal::Impersonation);
        }
        let key = request::public_key(&wanted.csr)?;
        let ttl = self.lifetimes.grant(wanted.validity_duration);
        let authority = self.current.now();
        let issued = authority.sign_named(&key, &id, &self.names(&id), ttl, (self.clock)());
        let issued = issued.map_err(|e| Refusal::Unable(e.to_string()))?;
        let answer = authority.answer(&issued);
        Ok((id, issued, answer))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CaService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let (metadata, extensions, wanted) = request.into_parts();
        // A header that is not text is a token that is not one.
        let authorization = metadata.get("authorization").map(|v| v.to_str().unwrap_or("?"));
        let connection = extensions.get::<ConnInfo>();
        match self.issue(authorization, connection, &wanted).await {
            Ok((id, issued, cert_chain)) => {
                self.issued.inc();
                tracing::debug!(%id, serial = issued.serial, "certificate issued");
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(refusal) => {
                self.refused.get_or_create(&[("reason", refusal.label())]).inc();
                self.complaints.say(connection, &refusal);
                Err(Status::from(&refusal))
            }
        }
    }
}

/// Istio's node agents ask for others in this field.
fn impersonated(metadata: Option<&Struct>) -> Option<&str> {
    match metadata?.fields.get("ImpersonatedIdentity")?.kind.as_ref()? {
        Kind::StringValue(text) if !text.is_empty() => Some(text),
        _ => None,
    }
}

/// Refusals in the log, at most one line a second: callers must not be able to fill a disk.
struct Complaints {
    start: Instant,
    /// Second (since start) of the last line, plus one.
    last: AtomicU64,
    unsaid: AtomicU64,
}

impl Default for Complaints {
    fn default() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0), unsaid: AtomicU64::new(0) }
    }
}

impl Complaints {
    fn say(&self, connection: Option<&ConnInfo>, refusal: &Refusal) {
        let second = self.start.elapsed().as_secs() + 1;
        if self.last.swap(second, Ordering::Relaxed) == second {
            self.unsaid.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let more = self.unsaid.swap(0, Ordering::Relaxed);
        let remote = connection.map(|c| c.remote.to_string()).unwrap_or_default();
        tracing::warn!(remote, reason = refusal.label(), more, "request refused: {refusal}");
    }
}
