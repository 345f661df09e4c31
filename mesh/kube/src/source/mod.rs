//! A Kubernetes cluster as source of configuration: watches of many kinds, one writer, the same snapshots as a directory.
//!
//! In: an API server and what is wanted of it ([`Wanted`]). Out: a [`Reader`], and what was last seen of each object ([`Seen`]).
//! Kept true: nothing is published before every kind that is there was listed once; a server that is away, a failed list
//! or a broken object takes nothing away. Not here: typing and validation (`mesh-config`).

#[cfg(test)]
mod tests;
mod trim;
mod watched;

use futures::{StreamExt as _, stream};
use k8s_openapi::{
    api::{core::v1 as core, discovery::v1::EndpointSlice},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject},
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use mesh_config::source::{Reader, Store};
use mesh_runtime::backoff::Outage;
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::pin,
    time::Duration,
};
use tokio::time::Instant;
pub use watched::Retry;
use watched::Watched;
pub use watched::{Generation, Seen};

/// What findings call the source.
pub const SOURCE: &str = "kubernetes";

/// A change waits this long for others before it is published.
const GATHER: Duration = Duration::from_millis(20);
/// How long a group of kinds that is announced but not served yet is left alone.
const NOT_YET: Duration = Duration::from_secs(1);
/// A watch is renewed at the server after this long, so that a connection that died silently is noticed; seconds.
const WATCH_SECONDS: u32 = 120;
/// Objects per page of a list: bounds what is held untrimmed.
const PAGE: u32 = 250;

/// One set of objects to read.
#[derive(Clone, Debug)]
struct Set {
    resource: ApiResource,
    namespace: Option<String>,
    fields: Option<String>,
    /// Whether the rest is published although this one may not be read.
    optional: bool,
}

/// What is read of a cluster.
#[derive(Clone, Debug)]
pub struct Wanted {
    mesh_namespace: String,
    sets: Vec<Set>,
    groups: Vec<String>,
}

/// Groups of Istio's kinds of traffic, security and telemetry, today's and the legacy ones; without mixer's.
pub const ISTIO_GROUPS: &[&str] = &[
    "networking.istio.io",
    "security.istio.io",
    "telemetry.istio.io",
    "extensions.istio.io",
    "authentication.istio.io",
    "rbac.istio.io",
];
/// The group of mixer's kinds.
pub const MIXER_GROUP: &str = "config.istio.io";

impl Wanted {
    /// The mesh config only: ConfigMap `istio` of the mesh's namespace.
    pub fn new(mesh_namespace: &str) -> Self {
        let fields = format!("metadata.name={}", mesh_config::kinds::MESH_CONFIG_MAP);
        let set = Set {
            resource: ApiResource::erase::<core::ConfigMap>(&()),
            namespace: Some(mesh_namespace.to_owned()),
            fields: Some(fields),
            optional: false,
        };
        Self { mesh_namespace: mesh_namespace.to_owned(), sets: vec![set], groups: Vec::new() }
    }

    fn all(mut self, resource: ApiResource) -> Self {
        self.sets.push(Set { resource, namespace: None, fields: None, optional: false });
        self
    }

    /// All Services.
    #[must_use]
    pub fn services(self) -> Self {
        self.all(ApiResource::erase::<core::Service>(&()))
    }

    /// All EndpointSlices.
    #[must_use]
    pub fn endpoint_slices(self) -> Self {
        self.all(ApiResource::erase::<EndpointSlice>(&()))
    }

    /// All Pods, cut down to names, labels, ports, addresses, service account and readiness.
    #[must_use]
    pub fn pods(self) -> Self {
        self.all(ApiResource::erase::<core::Pod>(&()))
    }

    /// All Namespaces.
    #[must_use]
    pub fn namespaces(self) -> Self {
        self.all(ApiResource::erase::<core::Namespace>(&()))
    }

    /// Secrets of gateways in one namespace. The mesh's own keys and tokens of service accounts are not asked for.
    /// If they may not be read, the rest is published nevertheless.
    #[must_use]
    pub fn gateway_secrets(mut self, namespace: &str) -> Self {
        let fields = "type!=kubernetes.io/service-account-token,type!=istio.io/ca-root,\
                      type!=istio.io/key-and-cert,type!=helm.sh/release.v1,\
                      metadata.name!=istio-ca-secret,metadata.name!=cacerts";
        self.sets.push(Set {
            resource: ApiResource::erase::<core::Secret>(&()),
            namespace: Some(namespace.to_owned()),
            fields: Some(fields.to_owned()),
            optional: true,
        });
        self
    }

    /// All kinds of these groups that CustomResourceDefinitions define, now or later.
    #[must_use]
    pub fn groups<'a>(mut self, groups: impl IntoIterator<Item = &'a str>) -> Self {
        self.groups.extend(groups.into_iter().map(str::to_owned));
        self
    }
}

/// Watches a cluster until `shutdown` is ready. Spawn the returned future; the reader is synced once every kind that
/// is there has been listed. Dropping the future ends the watch at once; readers keep the last snapshot.
pub fn watch(
    client: Client,
    wanted: Wanted,
    shutdown: impl Future<Output = ()> + Send,
) -> (Reader, Seen, impl Future<Output = ()> + Send) {
    let store = Store::in_namespace(&wanted.mesh_namespace);
    let (reader, seen) = (store.reader(), Seen::default());
    (reader, seen.clone(), run(client, wanted, store, seen, shutdown))
}

/// What one of the streams brought.
enum News {
    /// About objects of the set with this number.
    Object(usize, Box<watcher::Result<Event<DynamicObject>>>),
    /// About the definitions of kinds.
    Definition(Box<watcher::Result<Event<PartialObjectMeta<CustomResourceDefinition>>>>),
    /// The kinds of a group.
    Kinds(String, kube::Result<Vec<ApiResource>>),
}

type Streams = stream::SelectAll<stream::BoxStream<'static, News>>;

struct Source {
    client: Client,
    store: Store,
    seen: Seen,
    sets: Vec<Watched>,
    streams: Streams,
    /// Names of definitions (`plural.group`) by group, of the groups wanted.
    defined: BTreeMap<String, BTreeSet<String>>,
    /// Whether the definitions have been listed once; true where no group is wanted.
    definitions_listed: bool,
    definitions: Outage,
    /// Groups that are being asked for.
    asking: BTreeSet<String>,
    synced: bool,
}

async fn run(
    client: Client,
    wanted: Wanted,
    store: Store,
    seen: Seen,
    shutdown: impl Future<Output = ()> + Send,
) {
    let mut source = Source {
        client,
        store,
        seen,
        sets: Vec::new(),
        streams: Streams::new(),
        defined: wanted.groups.iter().map(|group| (group.clone(), BTreeSet::new())).collect(),
        definitions_listed: wanted.groups.is_empty(),
        definitions: Outage::new("definitions of kinds at the API server"),
        asking: BTreeSet::new(),
        synced: false,
    };
    for set in wanted.sets {
        source.add(set);
    }
    if !wanted.groups.is_empty() {
        source.watch_definitions();
    }
    let mut shutdown = pin!(shutdown);
    let mut publish_at: Option<Instant> = None;
    loop {
        let due = publish_at;
        tokio::select! {
            biased;
            () = &mut shutdown => return,
            () = async { match due { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } => {
                publish_at = None;
                source.store.publish();
            }
            Some(news) = source.streams.next() => {
                source.take(news);
                if source.sync() {
                    publish_at.get_or_insert_with(|| Instant::now() + GATHER);
                }
            }
        }
    }
}

impl Source {
    fn add(&mut self, set: Set) {
        let number = self.sets.len();
        let api: Api<DynamicObject> = match &set.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &set.resource),
            None => Api::all_with(self.client.clone(), &set.resource),
        };
        let mut config = watch_config();
        if let Some(fields) = &set.fields {
            config = config.fields(fields);
        }
        let events = watcher::watcher(api, config).backoff(Retry::default());
        self.streams.push(events.map(move |event| News::Object(number, Box::new(event))).boxed());
        self.sets.push(Watched::new(set.resource, set.optional));
    }

    fn watch_definitions(&mut self) {
        let api: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(self.client.clone());
        let events = watcher::watcher(api, watch_config()).backoff(Retry::default());
        self.streams.push(events.map(|event| News::Definition(Box::new(event))).boxed());
    }

    fn take(&mut self, news: News) {
        match news {
            News::Object(number, event) => {
                let Some(set) = self.sets.get_mut(number) else { return };
                set.take(*event, &mut self.store, &self.seen);
            }
            News::Definition(event) => match *event {
                Ok(event) => {
                    self.definitions.recovered();
                    self.take_definition(event);
                }
                Err(error) => {
                    self.definitions.failed(&error);
                }
            },
            News::Kinds(group, kinds) => {
                self.asking.remove(&group);
                self.take_kinds(&group, kinds);
            }
        }
    }

    fn take_definition(&mut self, event: Event<PartialObjectMeta<CustomResourceDefinition>>) {
        let (definition, gone) = match event {
            Event::Apply(definition) | Event::InitApply(definition) => (definition, false),
            Event::Delete(definition) => (definition, true),
            Event::Init => return,
            Event::InitDone => {
                self.definitions_listed = true;
                return;
            }
        };
        let Some(name) = definition.metadata.name else { return };
        let Some((_, group)) = name.split_once('.') else { return };
        let Some(names) = self.defined.get_mut(group) else { return };
        let group = group.to_owned();
        if gone {
            // Its objects go one by one; the watch stays, and works again when the kind comes back.
            names.remove(&name);
        } else if names.insert(name) {
            self.ask(group, Duration::ZERO);
        }
    }

    fn ask(&mut self, group: String, after: Duration) {
        if !self.asking.insert(group.clone()) {
            return;
        }
        let client = self.client.clone();
        let asked = async move {
            tokio::time::sleep(after).await;
            let kinds = kinds(&client, &group).await;
            News::Kinds(group, kinds)
        };
        self.streams.push(stream::once(asked).boxed());
    }

    fn take_kinds(&mut self, group: &str, kinds: kube::Result<Vec<ApiResource>>) {
        let kinds = match kinds {
            Ok(kinds) => kinds,
            Err(error) => {
                self.definitions.failed(&format!("kinds of {group}: {error}"));
                return self.ask(group.to_owned(), NOT_YET);
            }
        };
        let mut waiting = self.defined.get(group).cloned().unwrap_or_default();
        for resource in kinds {
            waiting.remove(&format!("{}.{group}", resource.plural));
            if self.sets.iter().any(|set| set.is_for(group, &resource.kind)) {
                continue;
            }
            self.add(Set { resource, namespace: None, fields: None, optional: false });
        }
        if !waiting.is_empty() {
            self.ask(group.to_owned(), NOT_YET);
        }
    }

    /// Marks the configuration complete once it is. Whether it is, or was before.
    fn sync(&mut self) -> bool {
        let complete = self.definitions_listed && self.asking.is_empty();
        if !self.synced && complete && self.sets.iter().all(|set| set.listed) {
            self.synced = true;
            self.store.set_synced();
            self.store.publish();
            tracing::info!(kinds = self.sets.len(), "the cluster's configuration has been read");
        }
        self.synced
    }
}

fn watch_config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE)
}

/// The kinds of a group that can be watched, each in its most stable version; none if the group is not served yet.
async fn kinds(client: &Client, group: &str) -> kube::Result<Vec<ApiResource>> {
    use kube::discovery::verbs;
    match kube::discovery::group(client, group).await {
        Ok(found) => Ok(found
            .resources_by_stability()
            .into_iter()
            .filter(|(_, can)| can.supports_operation(verbs::LIST) && can.supports_operation(verbs::WATCH))
            .map(|(resource, _)| resource)
            .collect()),
        Err(kube::Error::Discovery(_)) => Ok(Vec::new()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
