//! The gRPC service: one task per stream between a client and its catalog.
//!
//! In: streams of either form, the peer's verified identity if it has one. Out: responses, one held back at most.
//! Kept true: nothing is sent before the mesh is known; a client that reads slowly costs one response of memory and
//! delays nobody. Not here: state of a stream (`stream`), choice of the catalog (`crate::push`).

use super::{
    catalog::{Catalog, Type},
    stream::{Delta, Sotw, Standing},
    wire,
};
use mesh_identity::grpc::ConnInfo;
use mesh_runtime::drain::Watch;
use std::{
    collections::BTreeMap,
    convert::Infallible,
    marker::PhantomData,
    net::SocketAddr,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    codegen::{Body, BoxFuture, Service, StdError, http},
    server::{Grpc, NamedService, StreamingService},
};

/// How long a new stream may take to say who it is.
const FIRST_REQUEST: Duration = Duration::from_secs(30);

/// The client's end of a connection.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// Its address.
    pub address: Option<SocketAddr>,
    /// Namespace and service account from its verified certificate; `None` on the plaintext port.
    pub identity: Option<(Arc<str>, Arc<str>)>,
}

impl Peer {
    fn of(connection: &ConnInfo) -> Self {
        let identity = connection.peer.as_ref().map(|peer| {
            let id = peer.id();
            (id.namespace().into(), id.service_account().into())
        });
        Self { address: Some(connection.remote), identity }
    }
}

/// Standings of one stream, shared with whoever shows them.
pub type Board = Arc<Mutex<BTreeMap<Type, Standing>>>;

/// What a client is given once it has said who it is.
pub struct Attached {
    /// Its catalog, now and later; `None` until the mesh is known.
    pub catalogs: watch::Receiver<Option<Arc<Catalog>>>,
    /// Where to note how far it is.
    pub board: Board,
    /// Dropped when the stream ends.
    pub guard: Box<dyn Send>,
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attached").finish_non_exhaustive()
    }
}

/// Finds the catalog of a client.
pub trait Directory: Send + Sync + 'static {
    /// Called once per stream, with the first request's node.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` when the identity is not the node's own; `INVALID_ARGUMENT` for a node id of another form.
    fn attach(&self, node: &wire::Node, peer: &Peer) -> Result<Attached, Status>;
}

/// One form of the protocol.
trait Form: Default + Send + 'static {
    type Request: prost::Message + Default + Send + 'static;
    type Response: prost::Message + Send + 'static;
    fn node(request: &Self::Request) -> Option<&wire::Node>;
    fn type_url(request: &Self::Request) -> &str;
    fn take(&mut self, kind: Type, request: &Self::Request, catalog: &Catalog);
    /// Names that are kept for this stream.
    fn names(&self) -> usize;
    fn due(&mut self, catalog: &Catalog) -> Option<Self::Response>;
    fn show(&self) -> BTreeMap<Type, Standing>;
}

impl Form for Delta {
    type Request = wire::DeltaDiscoveryRequest;
    type Response = wire::DeltaDiscoveryResponse;
    fn node(request: &Self::Request) -> Option<&wire::Node> {
        request.node.as_ref()
    }
    fn type_url(request: &Self::Request) -> &str {
        &request.type_url
    }
    fn take(&mut self, kind: Type, request: &Self::Request, catalog: &Catalog) {
        self.request(kind, request, catalog);
    }
    fn names(&self) -> usize {
        self.names_kept()
    }
    fn due(&mut self, catalog: &Catalog) -> Option<Self::Response> {
        self.next(catalog)
    }
    fn show(&self) -> BTreeMap<Type, Standing> {
        self.standings().map(|(t, s)| (t, s.clone())).collect()
    }
}

impl Form for Sotw {
    type Request = wire::DiscoveryRequest;
    type Response = wire::DiscoveryResponse;
    fn node(request: &Self::Request) -> Option<&wire::Node> {
        request.node.as_ref()
    }
    fn type_url(request: &Self::Request) -> &str {
        &request.type_url
    }
    fn take(&mut self, kind: Type, request: &Self::Request, _: &Catalog) {
        self.request(kind, request);
    }
    fn names(&self) -> usize {
        // Each request replaces the names of the one before; its size is bounded.
        0
    }
    fn due(&mut self, catalog: &Catalog) -> Option<Self::Response> {
        self.next(catalog)
    }
    fn show(&self) -> BTreeMap<Type, Standing> {
        self.standings().map(|(t, s)| (t, s.clone())).collect()
    }
}

/// Most names that one stream may have asked for: ten times what the largest mesh of the design needs.
const MOST_NAMES: usize = 500_000;

/// The service `envoy.service.discovery.v3.AggregatedDiscoveryService`.
#[derive(Clone)]
pub struct Ads {
    directory: Arc<dyn Directory>,
    drain: Watch,
}

impl std::fmt::Debug for Ads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ads").finish_non_exhaustive()
    }
}

impl Ads {
    /// A service over a directory; streams end when the drain begins, so that clients go elsewhere at once.
    pub fn new(directory: Arc<dyn Directory>, drain: Watch) -> Self {
        Self { directory, drain }
    }
}

struct Call<F>(Ads, PhantomData<F>);

impl<F: Form> StreamingService<F::Request> for Call<F> {
    type Response = F::Response;
    type ResponseStream = ReceiverStream<Result<F::Response, Status>>;
    type Future = BoxFuture<tonic::Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: tonic::Request<Streaming<F::Request>>) -> Self::Future {
        let Ads { directory, drain } = self.0.clone();
        Box::pin(async move {
            let peer = request.extensions().get::<ConnInfo>().map(Peer::of).unwrap_or_default();
            let (out, responses) = mpsc::channel(1);
            tokio::spawn(async move {
                tokio::select! {
                    () = drain.signaled() => {
                        out.try_send(Err(Status::unavailable("pilot is shutting down: connect again"))).ok();
                    }
                    end = converse::<F>(&*directory, &peer, request.into_inner(), &out) => {
                        if let Err(status) = end {
                            out.send(Err(status)).await.ok();
                        }
                    }
                }
            });
            Ok(tonic::Response::new(ReceiverStream::new(responses)))
        })
    }
}

/// Serves one stream until the client or the catalog's owner goes away. Dropping it ends the stream.
async fn converse<F: Form>(
    directory: &dyn Directory,
    peer: &Peer,
    mut requests: Streaming<F::Request>,
    out: &mpsc::Sender<Result<F::Response, Status>>,
) -> Result<(), Status> {
    let first = tokio::time::timeout(FIRST_REQUEST, requests.message());
    let Some(first) = first.await.map_err(|_| Status::deadline_exceeded("no request within 30 s"))?? else {
        return Ok(());
    };
    let node = F::node(&first)
        .ok_or_else(|| Status::invalid_argument("node: missing in the first request of the stream"))?;
    let Attached { mut catalogs, board, guard: _guard } = directory.attach(node, peer)?;
    let node_id = node.id.clone();
    let nothing_yet = Arc::new(Catalog::default());
    let mut state = F::default();
    let take = |state: &mut F, request: &F::Request, catalog: &Catalog| {
        match Type::of(F::type_url(request)) {
            Some(kind) => state.take(kind, request, catalog),
            None => tracing::debug!(node = node_id, type_url = F::type_url(request), "type not served"),
        }
        match state.names() > MOST_NAMES {
            true => Err(Status::resource_exhausted(format!("more than {MOST_NAMES} names on one stream"))),
            false => Ok(()),
        }
    };
    take(&mut state, &first, catalogs.borrow_and_update().as_ref().unwrap_or(&nothing_yet))?;
    let mut due = true;
    loop {
        tokio::select! {
            biased;
            request = requests.message() => match request {
                Ok(Some(request)) => {
                    take(&mut state, &request, catalogs.borrow().as_ref().unwrap_or(&nothing_yet))?;
                    due = true;
                }
                Ok(None) => return Ok(()),
                Err(gone) => {
                    tracing::debug!(%gone, "stream ended");
                    return Ok(());
                }
            },
            changed = catalogs.changed() => {
                changed.map_err(|_| Status::unavailable("pilot is shutting down: connect again"))?;
                due = true;
            }
            permit = out.reserve(), if due => {
                let Ok(permit) = permit else { return Ok(()) };
                let catalog = catalogs.borrow_and_update().clone();
                match catalog.and_then(|catalog| state.due(&catalog)) {
                    Some(response) => permit.send(Ok(response)),
                    None => due = false,
                }
                *board.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = state.show();
            }
        }
    }
}

impl NamedService for Ads {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl<B> Service<http::Request<B>> for Ads
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let ads = self.clone();
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        Box::pin(async move {
            Ok(match method.as_str() {
                "StreamAggregatedResources" => answer::<Sotw, B>(ads, request).await,
                "DeltaAggregatedResources" => answer::<Delta, B>(ads, request).await,
                other => Status::unimplemented(format!("no method {other}")).into_http(),
            })
        })
    }
}

async fn answer<F: Form, B>(ads: Ads, request: http::Request<B>) -> http::Response<tonic::body::Body>
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    let codec = tonic_prost::ProstCodec::<F::Response, F::Request>::default();
    Grpc::new(codec).streaming(Call::<F>(ads, PhantomData), request).await
}
