//! Who gets what, and what is shared and kept over pushes.

use super::*;
use crate::{
    ads::wire::{Kind, Node, Struct, Value},
    model::tests::{POD, pod, service},
};

fn node(id: &str, metadata: &[(&str, &str)]) -> Node {
    let fields = metadata
        .iter()
        .map(|(k, v)| ((*k).to_owned(), Value { kind: Some(Kind::StringValue((*v).to_owned())) }));
    Node { id: id.to_owned(), metadata: Some(Struct { fields: fields.collect() }), ..Node::default() }
}

fn id(pod: &str) -> String {
    format!("sidecar~10.1.0.1~{pod}.default~default.svc.cluster.local")
}

fn certified(namespace: &str, account: &str) -> Peer {
    Peer { address: None, identity: Some((namespace.into(), account.into())) }
}

fn snapshot(yaml: &str) -> Arc<Snapshot> {
    Arc::new(Snapshot::from_yaml(yaml))
}

fn shop() -> String {
    service("web", "{name: http, port: 80}")
        + &service("far", "{name: http, port: 81}")
        + &pod("web-1", "web", "v1", POD)
        + &pod("c-1", "c", "v1", "10.1.0.2")
        + &pod("c-2", "c", "v1", "10.1.0.3")
}

fn now(attached: &Attached) -> Arc<Catalog> {
    attached.catalogs.borrow().clone().expect("pushed")
}

#[test]
fn nothing_is_given_before_the_first_push() {
    let pusher = Pusher::new();
    let attached = pusher.attach(&node(&id("c-1"), &[]), &Peer::default()).expect("known form");
    assert!(attached.catalogs.borrow().is_none());
    pusher.push(snapshot(&shop()));
    assert!(!now(&attached).of(Type::Cluster).is_empty());
}

#[test]
fn a_certificate_must_be_that_of_the_pod() {
    let pusher = Pusher::new();
    pusher.push(snapshot(&shop()));
    for (peer, metadata, allowed) in [
        (Peer::default(), vec![], true),
        (certified("default", "c"), vec![], true),
        (certified("default", "web"), vec![], false),
        (certified("other", "c"), vec![], false),
        (certified("default", "c"), vec![("SERVICE_ACCOUNT", "web")], false),
    ] {
        let answer = pusher.attach(&node(&id("c-1"), &metadata), &peer);
        match answer {
            Ok(_) => assert!(allowed, "{peer:?} {metadata:?}"),
            Err(status) => {
                assert!(!allowed, "{peer:?}: {status}");
                assert_eq!(status.code(), tonic::Code::PermissionDenied);
            }
        }
    }
}

#[test]
fn a_client_that_turns_out_to_be_another_pods_is_dropped_when_the_pod_appears() {
    let pusher = Pusher::new();
    let mut attached =
        pusher.attach(&node(&id("c-1"), &[]), &certified("default", "web")).expect("not known yet");
    pusher.push(snapshot(&shop()));
    assert!(attached.catalogs.borrow_and_update().is_none());
    assert!(attached.catalogs.has_changed().is_err(), "the channel is closed, which ends the stream");
    assert!(pusher.clients().is_empty());
}

#[test]
fn ids_of_another_form_are_refused_with_the_form_expected() {
    let pusher = Pusher::new();
    for wrong in ["", "sidecar~1.1.1.1~x", "robot~1.1.1.1~a.b~b.svc.cluster.local"] {
        let error = pusher.attach(&node(wrong, &[]), &Peer::default()).expect_err(wrong);
        assert!(error.message().contains("sidecar~IP~pod.namespace"), "{wrong}: {error}");
    }
}

#[test]
fn without_a_pod_a_plaintext_node_is_what_its_metadata_says() {
    let pusher = Pusher::new();
    let own = "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: s}\nspec: {workloadSelector: {labels: \
               {app: guest}}, egress: [{hosts: ['~/*']}]}\n";
    pusher.push(snapshot(&(shop() + own)));
    let mut guest = node(&id("guest"), &[]);
    let labels = Struct {
        fields: [("app".to_owned(), Value { kind: Some(Kind::StringValue("guest".to_owned())) })].into(),
    };
    let fields = &mut guest.metadata.as_mut().expect("made above").fields;
    fields.insert("LABELS".to_owned(), Value { kind: Some(Kind::StructValue(labels)) });
    let seen = now(&pusher.attach(&guest, &Peer::default()).expect("served"));
    assert!(seen.of(Type::Endpoints).is_empty(), "its Sidecar, chosen by its labels, shows it nothing");
}

#[test]
fn proxies_that_see_the_same_share_their_bytes() {
    let pusher = Pusher::new();
    pusher.push(snapshot(&shop()));
    let one = pusher.attach(&node(&id("c-1"), &[]), &Peer::default()).expect("served");
    let two = pusher.attach(&node(&id("c-2"), &[]), &Peer::default()).expect("served");
    for kind in [Type::Endpoints, Type::Routes] {
        assert!(Arc::ptr_eq(now(&one).of(kind), now(&two).of(kind)), "{}", kind.short());
    }
    let name = "outbound|80||web.default.svc.cluster.local";
    assert!(Arc::ptr_eq(&now(&one).of(Type::Cluster)[name], &now(&two).of(Type::Cluster)[name]));
}

#[test]
fn a_change_keeps_everything_it_did_not_touch() {
    let pusher = Pusher::new();
    pusher.push(snapshot(&shop()));
    let attached =
        pusher.attach(&node(&id("c-1"), &[("CREMA_VHDS", "true")]), &Peer::default()).expect("served");
    let before = now(&attached);
    let vs = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web}\nspec: {hosts: [web], http: \
              [{timeout: 1s, route: [{destination: {host: web}}]}]}\n";
    pusher.push(snapshot(&(shop() + vs)));
    let after = now(&attached);
    for kind in [Type::Cluster, Type::Endpoints, Type::Listener, Type::Routes] {
        assert!(Arc::ptr_eq(before.of(kind), after.of(kind)), "{} was not touched", kind.short());
    }
    let changed: Vec<_> = after
        .of(Type::VirtualHost)
        .iter()
        .filter(|(name, body)| {
            before.of(Type::VirtualHost).get(*name).is_none_or(|old| old.version != body.version)
        })
        .map(|(name, body)| {
            (name.to_string(), body.sources.iter().map(ToString::to_string).collect::<Vec<_>>())
        })
        .collect();
    let name = "80/web.default.svc.cluster.local:80".to_owned();
    assert_eq!(changed, [(name, vec!["VirtualService default/web".to_owned()])]);
}

#[test]
fn envoys_get_whole_tables_and_ours_get_virtual_hosts_one_by_one() {
    let pusher = Pusher::new();
    pusher.push(snapshot(&shop()));
    for (vhds, hosts) in [("false", 0), ("true", 4)] {
        let attached =
            pusher.attach(&node(&id("c-1"), &[("CREMA_VHDS", vhds)]), &Peer::default()).expect("served");
        let catalog = now(&attached);
        assert_eq!(catalog.of(Type::VirtualHost).len(), hosts, "{vhds}");
        assert_eq!(catalog.of(Type::Routes).len(), 2, "{vhds}");
    }
}

#[test]
fn the_order_of_documents_does_not_matter() {
    let documents: Vec<String> = shop().split_inclusive("---\n").map(str::to_owned).collect();
    let names = |yaml: &str| {
        let pusher = Pusher::new();
        pusher.push(snapshot(yaml));
        let attached = pusher.attach(&node(&id("c-1"), &[]), &Peer::default()).expect("served");
        let catalog = now(&attached);
        Type::ALL.map(|kind| {
            catalog.of(kind).iter().map(|(n, b)| (n.to_string(), b.version.to_string())).collect::<Vec<_>>()
        })
    };
    let want = names(&documents.concat());
    let mut bodies: Vec<String> = documents
        .concat()
        .split("---\n")
        .filter(|d| !d.trim().is_empty())
        .map(|d| format!("---\n{d}"))
        .collect();
    for _ in 0..bodies.len() {
        bodies.rotate_left(1);
        assert_eq!(names(&bodies.concat()), want);
    }
}

#[test]
fn a_stream_that_ends_leaves_the_table() {
    let pusher = Pusher::new();
    let attached = pusher.attach(&node(&id("c-1"), &[]), &Peer::default()).expect("served");
    assert_eq!(pusher.clients().len(), 1);
    drop(attached);
    assert!(pusher.clients().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_gateway_is_served_once_its_pod_is_known_or_after_some_seconds() {
    let gateway = node("router~10.1.0.9~gw-1.default~default.svc.cluster.local", &[]);
    let pusher = Pusher::new();
    pusher.push(snapshot(&shop()));
    let open = |attached: &Attached| attached.catalogs.borrow().is_some();
    let attach = || pusher.attach(&gateway, &certified("default", "gw")).expect("allowed");
    let (early, plain) = (attach(), pusher.attach(&gateway, &Peer::default()).expect("allowed"));
    assert!(!open(&early), "its pod is not known yet");
    assert!(open(&plain), "who has no certificate may have no pod");
    pusher.push(snapshot(&(shop() + &pod("gw-1", "gw", "v1", ""))));
    assert!(!open(&early), "its pod has no address yet");
    pusher.push(snapshot(&(shop() + &pod("gw-1", "gw", "v1", "10.1.0.9"))));
    assert!(open(&early));
    pusher.push(snapshot(&shop()));
    assert!(open(&early), "who has been served goes on being served");
    let alone = attach();
    assert!(!open(&alone));
    tokio::time::sleep(POD_PATIENCE + Duration::from_millis(1)).await;
    assert!(open(&alone), "without a pod for long it is served as it says it is");
}
