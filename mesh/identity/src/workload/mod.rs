//! Keeping a workload certified: own key in memory, certificate from the CA, renewed before it is needed.
//!
//! In: a [`Signer`] (usually [`CaClient`]) and a [`CertStore`]. Out: [`Certifier::run`], which publishes into the store.
//! Kept true: a valid certificate stays in force while renewal fails; a CA that refuses hears from us at most once in 10 s.
//! Not here: the CA (`citadel`), and certificates from SDS or files, which publish into the same store.

mod ca_client;

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicI64},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub use ca_client::CaClient;
use mesh_runtime::{Backoff, CaClientArgs, Condition, Metrics, Outage, drain::Watch};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use rand::Rng;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::time::Instant;
use zeroize::Zeroize;

use crate::{
    bundle::TrustBundle,
    credentials::{Credentials, PrivateKey},
    grpc::{ChannelOptions, ServerCheck},
    pem,
    spiffe::{SpiffeId, TrustDomain},
    store::CertStore,
    tls::verify,
};

/// Lifetime that is asked for.
pub const DEFAULT_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// Least time between two requests that the CA has answered.
const ANSWERED_INTERVAL: Duration = Duration::from_secs(10);
/// Longest wait between attempts.
const MAX_WAIT: Duration = Duration::from_secs(150);
/// How often the root file is looked at: new roots should be in force long before a certificate of theirs appears.
const ROOT_POLL: Duration = Duration::from_secs(10);

/// Why no certificate came.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The request did not reach the CA; asking again soon costs it nothing.
    #[error("cannot reach the certificate authority: {0}")]
    Unreachable(String),
    /// We have nothing to show to the CA.
    #[error("service account token {}: {why}", .path.display())]
    Token {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The CA said no.
    #[error("the certificate authority refused: {0}")]
    Refused(String),
    /// The CA's answer cannot be used.
    #[error("the certificate authority's answer cannot be used: {0}")]
    Answer(String),
}

/// Turns a certificate request into a chain.
pub trait Signer: Send + Sync + 'static {
    /// Sends a PKCS#10 request in PEM; the answer is the leaf, intermediates, and the root bundle as the last element.
    fn sign(
        &self,
        csr_pem: String,
        ttl: Duration,
    ) -> impl Future<Output = Result<Vec<String>, SignError>> + Send;
}

/// Reads the time of day; replaced in tests.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The renewing task of a workload.
pub struct Certifier<S> {
    signer: S,
    store: CertStore,
    ttl: Duration,
    expected: Option<SpiffeId>,
    root_file: Option<PathBuf>,
    root_poll: Duration,
    ready: Option<Condition>,
    clock: Clock,
    figures: Figures,
}

#[derive(Clone, Default)]
struct Figures {
    renewed: Counter,
    failed: Counter,
    expiry: Gauge<i64, AtomicI64>,
}

impl<S: Signer> Certifier<S> {
    /// Certificates of [`DEFAULT_TTL`], published into `store`.
    pub fn new(signer: S, store: CertStore) -> Self {
        Self {
            signer,
            store,
            ttl: DEFAULT_TTL,
            expected: None,
            root_file: None,
            root_poll: ROOT_POLL,
            ready: None,
            clock: Arc::new(SystemTime::now),
            figures: Figures::default(),
        }
    }

    /// Asks for another lifetime.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Refuses certificates of any other identity than this.
    #[must_use]
    pub fn expect(mut self, id: Option<SpiffeId>) -> Self {
        self.expected = id;
        self
    }

    /// Renews at once when this file changes: the sign of new roots.
    #[must_use]
    pub fn watch_roots(mut self, file: PathBuf) -> Self {
        self.root_file = Some(file);
        self
    }

    /// Looks at the root file this often instead of every 10 s.
    #[must_use]
    pub fn poll_roots_every(mut self, interval: Duration) -> Self {
        self.root_poll = interval;
        self
    }

    /// Marks a readiness condition: met while there is a valid certificate.
    #[must_use]
    pub fn ready(mut self, condition: Condition) -> Self {
        self.ready = Some(condition);
        self
    }

    /// Shows renewals and the expiry of the certificate.
    #[must_use]
    pub fn metrics(self, metrics: &Metrics) -> Self {
        let Figures { renewed, failed, expiry } = self.figures.clone();
        metrics.register("crema_certificate_renewals", "Workload certificates received", renewed);
        metrics.register("crema_certificate_renewal_failures", "Failed certificate requests", failed);
        metrics.register(
            "crema_certificate_expiry_timestamp_seconds",
            "When the workload certificate ends, Unix time",
            expiry,
        );
        self
    }

    /// Reads the time from elsewhere.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Runs until the drain. The first request goes out at once. Dropping the future stops renewal and nothing else.
    pub async fn run(self, drain: Watch) {
        drain.until_drain(self.renew_for_ever()).await;
    }

    async fn renew_for_ever(self) {
        let mut soon = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut patient = Backoff::new(ANSWERED_INTERVAL, MAX_WAIT);
        let mut outage = Outage::new("certificate");
        let mut roots_seen = self.read_roots();
        loop {
            let wait = match self.renew().await {
                Ok(credentials) => {
                    outage.recovered();
                    soon.reset();
                    patient.reset();
                    self.figures.renewed.inc();
                    let remaining = credentials.facts().remaining((self.clock)());
                    tracing::info!(
                        id = %credentials.id().map_or("none", SpiffeId::as_str),
                        serial = credentials.facts().serial,
                        valid_s = remaining.as_secs(),
                        "certificate received"
                    );
                    half_life(remaining).max(ANSWERED_INTERVAL)
                }
                Err(error) => {
                    self.figures.failed.inc();
                    outage.failed(&error);
                    match error {
                        SignError::Unreachable(_) | SignError::Token { .. } => soon.next_wait(),
                        SignError::Refused(_) | SignError::Answer(_) => patient.next_wait(),
                    }
                }
            };
            self.wait(wait, &mut roots_seen).await;
        }
    }

    /// Waits, but not longer than the next change of the root file, and keeps readiness true meanwhile.
    async fn wait(&self, wait: Duration, roots_seen: &mut Option<Vec<u8>>) {
        let until = Instant::now() + wait;
        loop {
            self.mark_ready();
            let now = Instant::now();
            if now >= until {
                return;
            }
            tokio::time::sleep_until(until.min(now + self.root_poll)).await;
            let roots = self.read_roots();
            if roots.is_some() && roots != *roots_seen {
                *roots_seen = roots;
                tracing::info!("root certificates changed: renewing");
                return;
            }
        }
    }

    fn mark_ready(&self) {
        let Some(ready) = &self.ready else { return };
        match self.store.current() {
            None => ready.missing("the certificate authority has not answered yet"),
            Some(now) if now.credentials.facts().remaining((self.clock)()).is_zero() => {
                ready.missing("the certificate has expired and could not be renewed");
            }
            Some(_) => ready.met(),
        }
    }

    fn read_roots(&self) -> Option<Vec<u8>> {
        self.root_file.as_ref().and_then(|file| pem::read(file).ok())
    }

    async fn renew(&self) -> Result<Credentials, SignError> {
        let (key, csr) = new_key_and_request().map_err(|e| SignError::Answer(format!("own key: {e}")))?;
        let answer = self.signer.sign(csr, self.ttl).await?;
        let (credentials, bundle) = self.read_answer(&answer, key)?;
        let expiry = credentials.facts().not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.figures.expiry.set(i64::try_from(expiry).unwrap_or(i64::MAX));
        self.store.publish(credentials.clone(), bundle);
        Ok(credentials)
    }

    /// A CA that answers nonsense must not displace a working certificate.
    fn read_answer(
        &self,
        answer: &[String],
        key: PrivateKey,
    ) -> Result<(Credentials, TrustBundle), SignError> {
        let bad = |e: &dyn std::fmt::Display| SignError::Answer(e.to_string());
        let [chain @ .., roots] = answer else { return Err(bad(&"it is empty")) };
        let bundle = TrustBundle::from_pem("root bundle", roots.as_bytes()).map_err(|e| bad(&e))?;
        let mut certificates = Vec::new();
        for part in chain {
            certificates
                .extend(pem::certificates("certificate chain", part.as_bytes()).map_err(|e| bad(&e))?);
        }
        let credentials = Credentials::new("certificate chain", certificates, key).map_err(|e| bad(&e))?;
        let actual = credentials.id().ok_or_else(|| bad(&"the certificate has no SPIFFE identity"))?;
        if let Some(expected) = &self.expected
            && expected != actual
        {
            return Err(bad(&format!("it is for `{actual}`, we are `{expected}`")));
        }
        if credentials.facts().remaining((self.clock)()).is_zero() {
            return Err(bad(&"the certificate has expired already; compare the clocks of both machines"));
        }
        verify::check_client(credentials.chain(), &bundle, self.store.domains(), (self.clock)())
            .map_err(|e| bad(&e))?;
        Ok((credentials, bundle))
    }
}

/// Half of what remains, 5 % earlier or later, so that workloads started together do not renew together.
fn half_life(remaining: Duration) -> Duration {
    remaining.mul_f64(0.5 * rand::rng().random_range(0.95..=1.05))
}

/// A fresh P-256 key and a request for it. The request names nobody: the CA knows who is asking.
fn new_key_and_request() -> Result<(PrivateKey, String), rcgen::Error> {
    let mut pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let csr = params.serialize_request(&pair).and_then(|csr| csr.pem());
    let key = PrivateKey::from_der(PrivatePkcs8KeyDer::from(pair.serialize_der()).into());
    pair.zeroize();
    Ok((key, csr?))
}

/// Starts everything that a process of the mesh needs, from its command line: channel to the CA, renewal, store.
///
/// `expected` is our own identity if we know it; `local` the address to connect from. Without `--ca-addr` the store
/// stays empty and the condition stays missing. Spawns the renewing task, which ends with the drain.
///
/// # Errors
/// When an argument is not what it should be; the text names the flag.
pub fn start(
    args: &CaClientArgs,
    expected: Option<SpiffeId>,
    local: Option<std::net::IpAddr>,
    metrics: &Metrics,
    ready: Condition,
    drain: Watch,
) -> Result<CertStore, String> {
    let domain = TrustDomain::from_config(&args.trust_domain).map_err(|e| format!("--trust-domain: {e}"))?;
    let aliases = args.trust_domain_aliases.iter().map(|alias| TrustDomain::from_config(alias));
    let aliases =
        aliases.collect::<Result<Vec<_>, _>>().map_err(|e| format!("--trust-domain-aliases: {e}"))?;
    let store = CertStore::new(domain.clone(), aliases);
    let Some(address) = &args.ca_addr else {
        ready.missing("no certificate authority: --ca-addr is not set");
        return Ok(store);
    };
    let server = match &args.ca_san {
        Some(san) => san.parse().map_err(|e| format!("--ca-san: {e}"))?,
        None => ServerCheck::Id(
            domain.service_account("istio-system", "citadel").map_err(|e| format!("--trust-domain: {e}"))?,
        ),
    };
    let options = ChannelOptions { local, ..ChannelOptions::default() };
    let signer = CaClient::new(address, &args.root_cert_file, server, &args.token_file, &options)
        .map_err(|e| format!("--ca-addr: {e}"))?;
    let certifier = Certifier::new(signer, store.clone())
        .expect(expected)
        .watch_roots(args.root_cert_file.clone())
        .ready(ready)
        .metrics(metrics);
    tokio::spawn(certifier.run(drain));
    Ok(store)
}

#[cfg(test)]
mod tests;
