//! The task that owns the configuration: keeps a discovery stream open, applies what comes, publishes what is complete.
//!
//! In: a [`Source`], requests of a [`super::Handle`]. Out: snapshots. Kept true: the last good configuration stays in force while the
//! server is away; reconnects are jittered, and an outage is said once. Not here: what a stream says (`delta`, `sotw`).

use std::{sync::Arc, time::Duration};

use mesh_runtime::{Backoff, Outage, drain::Watch, readiness::Condition};
use mesh_traffic::Snapshot;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{metadata::MetadataValue, transport::Channel};
use xds::discovery::Node;
use xds::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient as Client;

use super::{Kind, Request, Source, Variant, delta, sotw, store::Store};

/// What the task owns.
pub(super) struct Owner {
    pub(super) store: Store,
    pub(super) publisher: watch::Sender<Arc<Snapshot>>,
    pub(super) inbox: mpsc::Receiver<Request>,
    pub(super) synced: Condition,
    /// The server has answered for listeners, perhaps that there are none (a gateway that no Gateway names yet).
    pub(super) listeners_answered: bool,
}

/// What differs between delta and state of the world.
pub(super) trait Protocol {
    type Request: Send + 'static;
    type Response;
    /// The requests that open a stream.
    fn open(&mut self, node: &Node, store: &Store) -> Vec<Self::Request>;
    /// Applies an answer, gives what to send back.
    fn take(&mut self, response: Self::Response, store: &mut Store) -> Vec<Self::Request>;
    fn type_url(response: &Self::Response) -> &str;
    async fn call(
        client: Client<Channel>,
        requests: tonic::Request<ReceiverStream<Self::Request>>,
    ) -> Result<tonic::Streaming<Self::Response>, tonic::Status>;
}

/// How the server's absence is borne.
struct Outages {
    backoff: Backoff,
    outage: Outage,
}

impl Outages {
    fn over(&mut self) {
        self.backoff.reset();
        self.outage.recovered();
    }
}

/// Envoy's initial_fetch_timeout: so long a new cluster may wait for its endpoints.
const PATIENCE: Duration = Duration::from_secs(15);
/// Longest message that is taken: all resources of a large mesh in one answer.
const MAX_MESSAGE: usize = 256 << 20;

/// Runs until drained. Dropping the future ends the stream; the last snapshot stays with the receivers.
pub(super) async fn run(mut owner: Owner, source: Option<Source>, drain: Watch) {
    let Some(source) = source else {
        owner.synced.met();
        while let Some(Some(request)) = drain.until_drain(owner.inbox.recv()).await {
            owner.answer(request);
        }
        return;
    };
    let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut outages = Outages { backoff, outage: Outage::new(&source.name) };
    loop {
        let session = async {
            match source.variant {
                Variant::Delta => {
                    owner.session(delta::Stream::new(source.virtual_hosts), &source, &mut outages).await
                }
                Variant::StateOfTheWorld => {
                    owner.session(sotw::Stream::default(), &source, &mut outages).await
                }
            }
        };
        match drain.until_drain(session).await {
            None => return,
            Some(error) => drop(outages.outage.failed(&error)),
        }
        let wait = tokio::time::sleep(outages.backoff.next_wait());
        tokio::pin!(wait);
        loop {
            tokio::select! {
                () = &mut wait => break,
                () = drain.signaled() => return,
                Some(request) = owner.inbox.recv() => owner.answer(request),
            }
        }
    }
}

impl Owner {
    fn publish(&mut self) {
        let snapshot = self.store.snapshot();
        if snapshot.version != self.publisher.borrow().version {
            tracing::debug!(
                version = snapshot.version,
                listeners = snapshot.listeners.len(),
                "configuration in force"
            );
            self.publisher.send_replace(snapshot);
        }
    }

    fn answer(&mut self, request: Request) {
        match request {
            // Whoever asked may have gone meanwhile.
            Request::Dump(answer) => drop(answer.send(crate::admin::dump::configs(&self.store))),
            Request::Replace(kind, resources, answer) => {
                let mut refused = Vec::new();
                let names: Vec<_> = resources.iter().map(|r| r.name.clone()).collect();
                for resource in resources {
                    let name = resource.name.clone();
                    if let Err(why) = self.store.apply(resource) {
                        refused.push(format!("{name}: {why}"));
                    }
                }
                let gone: Vec<_> =
                    self.store.names(kind).filter(|name| !names.contains(name)).cloned().collect();
                for name in gone {
                    self.store.remove(kind, &name);
                }
                self.store.refresh();
                self.publish();
                let result = if refused.is_empty() { Ok(()) } else { Err(refused.join("; ")) };
                drop(answer.send(result));
            }
        }
    }

    /// One stream, from its opening to its end. Gives the reason why it ended.
    async fn session<P: Protocol>(
        &mut self,
        mut stream: P,
        source: &Source,
        outages: &mut Outages,
    ) -> String {
        let (sender, receiver) = mpsc::channel(64);
        for request in stream.open(&source.node, &self.store) {
            if sender.send(request).await.is_err() {
                return "the stream closed at once".to_owned();
            }
        }
        let client = Client::new(source.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let request = authorized(tonic::Request::new(ReceiverStream::new(receiver)), source);
        let mut responses = match P::call(client, request).await {
            Ok(responses) => responses,
            Err(status) => return describe(&status),
        };
        let mut waiting_since = Instant::now();
        loop {
            let patience = tokio::time::sleep_until(waiting_since + PATIENCE);
            tokio::select! {
                response = responses.message() => match response {
                    Ok(Some(response)) => {
                        let kind = Kind::of(P::type_url(&response));
                        let requests = stream.take(response, &mut self.store);
                        self.settle(kind);
                        for request in requests {
                            if sender.send(request).await.is_err() {
                                return "the stream was closed".to_owned();
                            }
                        }
                        outages.over();
                        waiting_since = Instant::now();
                    }
                    Ok(None) => return "the server ended the stream".to_owned(),
                    Err(status) => return describe(&status),
                },
                () = patience, if !self.store.waiting().is_empty() => {
                    self.lose_patience();
                    waiting_since = Instant::now() + PATIENCE;
                }
                Some(request) = self.inbox.recv() => self.answer(request),
            }
        }
    }

    /// After an answer: publishes, and reports readiness once all listeners that were sent are in force.
    fn settle(&mut self, kind: Option<Kind>) {
        self.publish();
        self.listeners_answered |= kind == Some(Kind::Listener);
        if self.listeners_answered && self.store.waiting().is_empty() {
            self.synced.met();
        }
    }

    fn lose_patience(&mut self) {
        for what in self.store.waiting() {
            tracing::warn!(%what, "not answered for 15 s");
        }
        self.store.stop_waiting();
        self.store.refresh();
        self.publish();
    }
}

fn authorized<T>(mut request: tonic::Request<T>, source: &Source) -> tonic::Request<T> {
    if let Some(value) =
        source.token.as_ref().and_then(|t| MetadataValue::try_from(format!("Bearer {t}")).ok())
    {
        request.metadata_mut().insert("authorization", value);
    }
    request
}

fn describe(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), mesh_identity::grpc::reason(status))
}
