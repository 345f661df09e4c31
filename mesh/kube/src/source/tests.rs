//! The source against an API server of a few lines: lists, watches, 410, absence, kinds that come later.

use super::*;
use bytes::Bytes;
use futures::channel::mpsc;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use kube::client::Body;
use mesh_config::Snapshot;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

type Answer = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;
type Frames = mpsc::UnboundedSender<Result<http_body::Frame<Bytes>, Infallible>>;

/// What the API server has, and the watches that are open, by path.
#[derive(Default)]
struct World {
    lists: HashMap<String, Value>,
    watches: HashMap<String, Frames>,
    /// Answered to everything while set.
    down: bool,
    lists_served: usize,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<World>>);

const SERVICES: &str = "/api/v1/services";
const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const RULES: &str = "/apis/networking.istio.io/v1/virtualservices";
const MESH: &str = "/api/v1/namespaces/istio-system/configmaps";

impl Fake {
    fn new() -> Self {
        let fake = Self::default();
        for path in [SERVICES, CRDS, MESH] {
            fake.list(path, &[]);
        }
        fake
    }

    fn list(&self, path: &str, items: &[Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "10"}, "items": items});
        self.0.lock().unwrap().lists.insert(path.to_owned(), list);
    }

    fn set_down(&self, down: bool) {
        let mut world = self.0.lock().unwrap();
        world.down = down;
        if down {
            world.watches.clear();
        }
    }

    fn send(&self, path: &str, kind: &str, object: &Value) {
        let line = format!("{}\n", json!({"type": kind, "object": object}));
        let world = self.0.lock().unwrap();
        let watch = world.watches.get(path).expect("the watch is open");
        watch.unbounded_send(Ok(http_body::Frame::data(line.into()))).expect("the watch is read");
    }

    fn client(&self) -> Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let answer = fake.answer(&request);
            async move { Ok::<_, Infallible>(answer) }
        });
        Client::new(service, "default")
    }

    fn answer(&self, request: &Request<Body>) -> Response<Answer> {
        let mut world = self.0.lock().unwrap();
        let path = request.uri().path().to_owned();
        let failure = |code: u16, reason: &str| -> Response<Answer> {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                "reason": reason, "message": reason});
            full(code, &status)
        };
        if world.down {
            return failure(503, "ServiceUnavailable");
        }
        if request.uri().query().is_some_and(|q| q.contains("watch=true")) {
            let (tx, rx) = mpsc::unbounded();
            world.watches.insert(path, tx);
            return Response::new(StreamBody::new(rx).boxed_unsync());
        }
        world.lists_served += 1;
        match world.lists.get(&path) {
            Some(list) => full(200, list),
            None => failure(404, "NotFound"),
        }
    }

    /// Announces and serves VirtualServices.
    fn define_rules(&self) {
        let mut world = self.0.lock().unwrap();
        let versions = json!([{"groupVersion": "networking.istio.io/v1", "version": "v1"}]);
        let group =
            json!({"name": "networking.istio.io", "versions": versions, "preferredVersion": versions[0]});
        world
            .lists
            .insert("/apis".into(), json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]}));
        let resource = json!({"name": "virtualservices", "singularName": "virtualservice", "namespaced": true,
            "kind": "VirtualService", "verbs": ["get", "list", "watch", "patch"]});
        world.lists.insert(
            "/apis/networking.istio.io/v1".into(),
            json!({"kind": "APIResourceList", "groupVersion": "networking.istio.io/v1", "resources": [resource]}),
        );
    }
}

fn full(code: u16, value: &Value) -> Response<Answer> {
    let body = Full::new(Bytes::from(value.to_string()));
    Response::builder().status(code).body(body.boxed_unsync()).unwrap()
}

fn service(name: &str, port: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "resourceVersion": "11", "managedFields": [{"manager": "x"}]},
        "spec": {"ports": [{"name": "http", "port": port}]}})
}

fn definition() -> Value {
    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
        "metadata": {"name": "virtualservices.networking.istio.io", "resourceVersion": "12"}})
}

fn rule(name: &str, generation: i64, spec: &Value) -> Value {
    json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": name, "namespace": "default", "generation": generation, "resourceVersion": "13"},
        "spec": spec})
}

fn start(fake: &Fake) -> (Reader, Seen) {
    let wanted = Wanted::new("istio-system").services().groups(["networking.istio.io"]);
    let (reader, seen, run) = watch(fake.client(), wanted, std::future::pending());
    tokio::spawn(run);
    (reader, seen)
}

fn names(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.services.iter().map(|s| s.name()).collect()
}

/// Waits until what is published is as described.
async fn until(reader: &mut Reader, what: &str, holds: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    let found = tokio::time::timeout(Duration::from_secs(600), async {
        let mut snapshot = reader.now();
        while !holds(&snapshot) {
            snapshot = reader.changed().await.expect("the source runs");
        }
        snapshot
    });
    found.await.unwrap_or_else(|_| panic!("never came: {what}"))
}

#[tokio::test(start_paused = true)]
async fn nothing_is_published_before_everything_was_listed() {
    let fake = Fake::new();
    fake.list(SERVICES, &[service("web", 80)]);
    fake.0.lock().unwrap().lists.remove(CRDS);
    let (mut reader, _) = start(&fake);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(reader.now().generation, 0, "the definitions could not be listed");
    fake.list(CRDS, &[]);
    let snapshot = reader.synced().await;
    assert_eq!(names(&snapshot), ["web"]);
    let web = snapshot.services.get("default", "web").unwrap();
    assert!(web.spec.metadata.managed_fields.is_none(), "what nobody reads is not kept");
    assert!(web.meta.resource_version.is_none());
}

#[tokio::test(start_paused = true)]
async fn objects_come_change_and_go_as_the_watch_says() {
    let fake = Fake::new();
    fake.list(SERVICES, &[service("web", 80)]);
    let (mut reader, _) = start(&fake);
    reader.synced().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    fake.send(SERVICES, "ADDED", &service("api", 80));
    until(&mut reader, "added", |s| names(s) == ["api", "web"]).await;
    fake.send(
        SERVICES,
        "BOOKMARK",
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"resourceVersion": "20"}}),
    );
    fake.send(SERVICES, "MODIFIED", &service("web", 81));
    let port = |s: &Snapshot| {
        s.services.get("default", "web").and_then(|s| s.spec.spec.as_ref()?.ports.as_ref()?[0].port.into())
    };
    until(&mut reader, "changed", |s| port(s) == Some(81)).await;
    fake.send(SERVICES, "DELETED", &service("api", 80));
    until(&mut reader, "gone", |s| names(s) == ["web"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_changes_nothing_and_a_new_list_brings_what_was_missed() {
    let fake = Fake::new();
    fake.list(SERVICES, &[service("gone", 80), service("web", 80)]);
    let (mut reader, _) = start(&fake);
    let before = reader.synced().await.generation;
    tokio::time::sleep(Duration::from_secs(1)).await;
    fake.set_down(true);
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert_eq!(reader.now().generation, before, "an hour without a server is no news");
    fake.list(SERVICES, &[service("new", 80), service("web", 80)]);
    fake.set_down(false);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let old = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"});
    fake.send(SERVICES, "ERROR", &old);
    let snapshot = until(&mut reader, "the new list", |s| names(s) == ["new", "web"]).await;
    assert!(snapshot.synced);
    assert!(snapshot.generation <= before + 2, "never empty in between");
}

#[tokio::test(start_paused = true)]
async fn kinds_that_are_defined_later_are_read_as_soon_as_they_are_served() {
    let fake = Fake::new();
    let (mut reader, seen) = start(&fake);
    reader.synced().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    fake.send(CRDS, "ADDED", &definition());
    tokio::time::sleep(Duration::from_secs(30)).await;
    let route = json!({"hosts": ["web"], "http": [{"route": [{"destination": {"host": "web"}}]}]});
    fake.list(RULES, &[rule("web", 3, &route)]);
    fake.define_rules();
    until(&mut reader, "the rule", |s| s.virtual_services.len() == 1).await;
    let all = seen.all();
    let (key, generation) = all.first_key_value().expect("it was seen");
    assert_eq!((key.to_string().as_str(), generation.number), ("VirtualService default/web", 3));
}

#[tokio::test(start_paused = true)]
async fn a_broken_object_stops_no_other_and_keeps_its_last_good_form() {
    let fake = Fake::new();
    let good = json!({"hosts": ["web"], "http": [{"route": [{"destination": {"host": "web"}}]}]});
    let broken = json!({"hosts": ["web"], "http": 7});
    fake.define_rules();
    fake.list(CRDS, &[definition()]);
    fake.list(RULES, &[rule("bad", 1, &broken), rule("good", 1, &good), rule("was-good", 1, &good)]);
    let (mut reader, seen) = start(&fake);
    let snapshot = reader.synced().await;
    let rules: Vec<_> = snapshot.virtual_services.iter().map(|v| v.name()).collect();
    assert_eq!(rules, ["good", "was-good"]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    fake.send(RULES, "MODIFIED", &rule("was-good", 2, &broken));
    let told = |s: &Snapshot| s.diagnostics().iter().filter(|d| d.is_error()).count() == 2;
    let snapshot = until(&mut reader, "both are told", told).await;
    let kept = snapshot.virtual_services.get("default", "was-good").expect("it stays in force");
    assert_eq!(kept.meta.generation, Some(1));
    assert!(
        seen.all().iter().any(|(key, g)| &*key.name == "was-good" && g.number == 2),
        "but the new one was seen"
    );
}

#[test]
fn a_pod_is_cut_down_to_what_is_read() {
    let mut pod: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web-1", "namespace": "default", "labels": {"app": "web"},
            "annotations": {"a": "1", "kubectl.kubernetes.io/last-applied-configuration": "{}"}},
        "spec": {"serviceAccountName": "web", "volumes": [{"name": "v"}], "containers": [
            {"name": "app", "image": "x", "env": [{"name": "SECRET", "value": "s"}], "ports": [{"containerPort": 80}]}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [{"name": "app"}],
            "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null}, {"type": "Initialized", "status": "True"}]}}))
    .unwrap();
    trim::trim(mesh_config::Kind::Pod, &mut pod);
    assert_eq!(pod.metadata.annotations.unwrap().into_keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(
        pod.data,
        json!({"spec": {"serviceAccountName": "web", "containers": [{"name": "app", "ports": [{"containerPort": 80}]}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}})
    );
}
