//! Envoy's secret discovery service v3, state of the world and delta, over one certificate store.
//!
//! In: subscriptions to `default` (certificate and key) and `ROOTCA` (roots). Out: secrets now and at each rotation.
//! Kept true: a subscriber gets what it named and nothing else; a secret that it refused is not sent again unchanged.
//! Not here: where certificates come from.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::BoxStream;
use mesh_identity::{CertStore, pem, store::Identity};
use mesh_runtime::{Metrics, drain::Watch};
use prometheus_client::metrics::counter::Counter;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use xds::{
    envoy::{
        config::core::v3::{DataSource, data_source::Specifier},
        extensions::transport_sockets::tls::v3::{
            CertificateValidationContext, Secret, TlsCertificate, secret::Type as SecretType,
        },
        service::{
            discovery::v3::{
                DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
            },
            secret::v3::secret_discovery_service_server::SecretDiscoveryService,
        },
    },
    google::protobuf::Any,
};

/// Name of the secret with certificate and key, as Istio's bootstrap asks for it.
pub const CERTIFICATE: &str = "default";
/// Name of the secret with the roots.
pub const ROOTS: &str = "ROOTCA";
/// Type of all resources here.
pub const SECRET_TYPE: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sds {
    store: CertStore,
    drain: Watch,
    pushes: Counter,
    refused: Counter,
}

impl Sds {
    /// Serves what is in `store`; streams end with the drain.
    pub fn new(store: CertStore, drain: Watch) -> Self {
        Self { store, drain, pushes: Counter::default(), refused: Counter::default() }
    }

    /// Shows pushes and refusals.
    #[must_use]
    pub fn metrics(self, metrics: &Metrics) -> Self {
        metrics.register("citadel_agent_pushes", "Secrets sent to Envoys", self.pushes.clone());
        metrics.register(
            "citadel_agent_pushes_refused",
            "Secrets that an Envoy refused",
            self.refused.clone(),
        );
        self
    }

    fn note_refusal(&self, why: &str) {
        self.refused.inc();
        tracing::warn!(why, "an Envoy refused a secret; it keeps its last one");
    }
}

/// A secret by name; `None` for names that we do not have.
fn secret(name: &str, now: &Identity) -> Option<Secret> {
    let inline = |text: String| {
        Some(DataSource { specifier: Some(Specifier::InlineBytes(text.into_bytes())), ..Default::default() })
    };
    let content = match name {
        CERTIFICATE => SecretType::TlsCertificate(TlsCertificate {
            certificate_chain: inline(pem::encode_all(now.credentials.chain())),
            private_key: inline(now.credentials.key().to_pem().to_string()),
            ..Default::default()
        }),
        ROOTS => SecretType::ValidationContext(CertificateValidationContext {
            trusted_ca: inline(now.bundle.to_pem()),
            ..Default::default()
        }),
        _ => return None,
    };
    Some(Secret { name: name.into(), r#type: Some(content) })
}

fn wrapped(secret: &Secret) -> Any {
    Any { type_url: SECRET_TYPE.into(), value: secret.encode_to_vec() }
}

fn check_type(type_url: &str) -> Result<(), Status> {
    if type_url.is_empty() || type_url == SECRET_TYPE {
        return Ok(());
    }
    Err(Status::invalid_argument(format!("type_url `{type_url}`: only {SECRET_TYPE} is served here")))
}

fn note_unknown(names: &BTreeSet<String>) {
    for name in names.iter().filter(|n| ![CERTIFICATE, ROOTS].contains(&n.as_str())) {
        tracing::warn!(
            name,
            "an Envoy asks for a secret that is not here; there are {CERTIFICATE} and {ROOTS}"
        );
    }
}

/// One state-of-the-world stream.
struct SotwStream {
    sds: Sds,
    names: BTreeSet<String>,
    nonce: u64,
}

impl SotwStream {
    /// True when the request is to be answered now.
    fn takes(&mut self, request: DiscoveryRequest) -> Result<bool, Status> {
        check_type(&request.type_url)?;
        if !request.response_nonce.is_empty() && request.response_nonce != self.nonce.to_string() {
            return Ok(false);
        }
        if let Some(why) = request.error_detail {
            self.sds.note_refusal(&why.message);
        }
        let names: BTreeSet<String> = request.resource_names.into_iter().collect();
        let changed = names != self.names;
        if changed {
            note_unknown(&names);
            self.names = names;
        }
        Ok(changed)
    }

    fn response(&mut self, version: u64) -> Option<DiscoveryResponse> {
        let now = self.sds.store.current()?;
        let resources: Vec<Any> =
            self.names.iter().filter_map(|name| secret(name, &now)).map(|s| wrapped(&s)).collect();
        if resources.is_empty() {
            return None;
        }
        self.nonce += 1;
        self.sds.pushes.inc();
        Some(DiscoveryResponse {
            version_info: version.to_string(),
            resources,
            type_url: SECRET_TYPE.into(),
            nonce: self.nonce.to_string(),
            ..Default::default()
        })
    }

    async fn run(
        mut self,
        mut requests: Streaming<DiscoveryRequest>,
        out: mpsc::Sender<Result<DiscoveryResponse, Status>>,
    ) {
        let mut changes = self.sds.store.subscribe();
        let drain = self.sds.drain.clone();
        loop {
            let answer = tokio::select! {
                () = drain.signaled() => return,
                request = requests.message() => match request {
                    Ok(Some(request)) => self.takes(request),
                    Ok(None) | Err(_) => return,
                },
                changed = changes.changed() => Ok(changed.is_ok()),
            };
            let version = *changes.borrow_and_update();
            let message = match answer {
                Ok(false) => continue,
                Ok(true) => self.response(version).map(Ok),
                Err(status) => Some(Err(status)),
            };
            let Some(message) = message else { continue };
            let last = message.is_err();
            if out.send(message).await.is_err() || last {
                return;
            }
        }
    }
}

/// One delta stream.
struct DeltaStream {
    sds: Sds,
    /// Subscribed names and the version that the client has, if any.
    names: BTreeMap<String, Option<String>>,
    nonce: u64,
}

impl DeltaStream {
    fn takes(&mut self, request: DeltaDiscoveryRequest) -> Result<bool, Status> {
        check_type(&request.type_url)?;
        if let Some(why) = request.error_detail {
            self.sds.note_refusal(&why.message);
        }
        for name in request.resource_names_unsubscribe {
            self.names.remove(&name);
        }
        let subscribed: BTreeSet<String> = request.resource_names_subscribe.into_iter().collect();
        note_unknown(&subscribed);
        let new = !subscribed.is_empty();
        for name in subscribed {
            let has = request.initial_resource_versions.get(&name).cloned();
            self.names.insert(name, has);
        }
        Ok(new)
    }

    fn response(&mut self) -> Option<DeltaDiscoveryResponse> {
        let now = self.sds.store.current()?;
        let mut response = DeltaDiscoveryResponse { type_url: SECRET_TYPE.into(), ..Default::default() };
        for (name, has) in &mut self.names {
            let Some(secret) = secret(name, &now) else {
                if has.as_deref() != Some("") {
                    *has = Some(String::new());
                    response.removed_resources.push(name.clone());
                }
                continue;
            };
            // The version follows the content, so that a client that returns gets only what it lacks.
            let any = wrapped(&secret);
            let version: String =
                mesh_identity::tls::sha256(&any.value)[..8].iter().map(|b| format!("{b:02x}")).collect();
            if has.as_deref() != Some(&version) {
                *has = Some(version.clone());
                response.resources.push(Resource {
                    name: name.clone(),
                    version,
                    resource: Some(any),
                    ..Default::default()
                });
            }
        }
        if response.resources.is_empty() && response.removed_resources.is_empty() {
            return None;
        }
        self.nonce += 1;
        response.nonce = self.nonce.to_string();
        self.sds.pushes.inc();
        Some(response)
    }

    async fn run(
        mut self,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        out: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) {
        let mut changes = self.sds.store.subscribe();
        let drain = self.sds.drain.clone();
        loop {
            let answer = tokio::select! {
                () = drain.signaled() => return,
                request = requests.message() => match request {
                    Ok(Some(request)) => self.takes(request),
                    Ok(None) | Err(_) => return,
                },
                changed = changes.changed() => Ok(changed.is_ok()),
            };
            let message = match answer {
                Ok(false) => continue,
                Ok(true) => self.response().map(Ok),
                Err(status) => Some(Err(status)),
            };
            let Some(message) = message else { continue };
            let last = message.is_err();
            if out.send(message).await.is_err() || last {
                return;
            }
        }
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Sds {
    type DeltaSecretsStream = BoxStream<'static, Result<DeltaDiscoveryResponse, Status>>;
    type StreamSecretsStream = BoxStream<'static, Result<DiscoveryResponse, Status>>;

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        let (out, answers) = mpsc::channel(4);
        let stream = DeltaStream { sds: self.clone(), names: BTreeMap::new(), nonce: 0 };
        tokio::spawn(stream.run(request.into_inner(), out));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let (out, answers) = mpsc::channel(4);
        let stream = SotwStream { sds: self.clone(), names: BTreeSet::new(), nonce: 0 };
        tokio::spawn(stream.run(request.into_inner(), out));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        let request = request.into_inner();
        check_type(&request.type_url)?;
        let mut once =
            SotwStream { sds: self.clone(), names: request.resource_names.into_iter().collect(), nonce: 0 };
        let version = *self.store.subscribe().borrow();
        once.response(version).map(Response::new).ok_or_else(|| {
            Status::unavailable(format!("no such secret yet; there will be {CERTIFICATE} and {ROOTS}"))
        })
    }
}
