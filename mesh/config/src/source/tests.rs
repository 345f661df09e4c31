//! How a configuration changes while files come, change, break and go.

use super::files::Scanner;
use super::*;
use crate::object::Age;
use crate::snapshot::{Change, Snapshot};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

fn vs(name: &str, subset: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec: {{hosts: [{name}], http: [{{route: [{{destination: {{host: r, subset: {subset}}}}}]}}]}}\n---\n"
    )
}

fn at(second: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(second)
}

fn subset(snapshot: &Snapshot, name: &str) -> Option<String> {
    let vs = snapshot.virtual_services.get("default", name)?;
    vs.spec.http[0].route[0].destination.subset.clone()
}

#[test]
fn a_broken_edit_keeps_what_the_file_gave_before() {
    let mut store = Store::new();
    let reader = store.reader();
    store.set_file("a.yaml", at(1), &(vs("x", "v1") + &vs("z", "v1")));
    assert!(store.publish());
    store.set_file("a.yaml", at(2), &(vs("x", "v2") + "kind: [\n"));
    assert!(store.publish());
    let snap = reader.now();
    assert_eq!(subset(&snap, "x").as_deref(), Some("v2"), "documents that read are taken");
    assert_eq!(subset(&snap, "z").as_deref(), Some("v1"), "what may be behind the broken one stays");
    assert!(snap.diagnostics().iter().any(|d| d.is_error() && d.why.contains("not valid yaml")));
    store.set_file("a.yaml", at(3), &vs("x", "v3"));
    store.publish();
    let snap = reader.now();
    assert_eq!((subset(&snap, "x").as_deref(), subset(&snap, "z")), (Some("v3"), None));
    assert!(!snap.diagnostics().iter().any(|d| d.why.contains("not valid yaml")));
}

#[test]
fn an_object_whose_kind_is_misspelt_keeps_its_last_good_form() {
    let mut store = Store::new();
    for (kind, kept) in [("VirtualServce", Some("v1")), ("DestinationRule", None), ("EnvoyFilter", None)] {
        store.set_file("a.yaml", at(1), &vs("x", "v1"));
        store.publish();
        store.set_file("a.yaml", at(2), &vs("x", "v2").replace("VirtualService", kind));
        store.publish();
        let snap = store.reader().now();
        assert_eq!(subset(&snap, "x").as_deref(), kept, "{kind}");
    }
}

#[test]
fn a_refused_object_keeps_its_last_good_form() {
    let mut store = Store::new();
    store.set_file("a.yaml", at(1), &(vs("x", "v1") + &vs("z", "v1")));
    store.publish();
    for bad in ["timeout: 5", "timeout: 1us", "retries: {attempts: -1}"] {
        let broken = vs("x", "v2").replace("[{route", &format!("[{{{bad}, route"));
        store.set_file("a.yaml", at(2), &broken);
        store.publish();
        let snap = store.reader().now();
        assert_eq!(subset(&snap, "x").as_deref(), Some("v1"), "{bad}");
        assert_eq!(subset(&snap, "z"), None, "what the file no longer names is gone");
        assert!(snap.diagnostics().iter().any(|d| d.is_error()), "{bad}");
        store.set_file("a.yaml", at(1), &(vs("x", "v1") + &vs("z", "v1")));
        store.publish();
    }
}

#[test]
fn of_two_files_with_one_object_the_one_modified_last_wins() {
    let mut store = Store::new();
    store.set_file("all.yaml", at(1), &vs("x", "v1"));
    store.set_file("80-20.yaml", at(2), &vs("x", "v2"));
    store.publish();
    let snap = store.reader().now();
    assert_eq!(subset(&snap, "x").as_deref(), Some("v2"));
    let said: Vec<_> = snap.diagnostics().into_iter().filter(|d| d.why.contains("comes later")).collect();
    assert_eq!(said.len(), 1);
    assert_eq!(
        said[0].to_string(),
        "all.yaml:1: VirtualService default/x: is also in 80-20.yaml:1, which comes later and is in force: keep it in one file only"
    );
    store.set_file("all.yaml", at(3), &vs("x", "v3"));
    store.publish();
    assert_eq!(subset(&store.reader().now(), "x").as_deref(), Some("v3"), "an edit makes it the last");
    store.remove_file("all.yaml");
    store.publish();
    assert_eq!(subset(&store.reader().now(), "x").as_deref(), Some("v2"), "the other comes back");
    assert!(!store.reader().now().diagnostics().iter().any(|d| d.why.contains("comes later")));
    let both = vs("x", "v1") + &vs("x", "v2");
    let snap = Snapshot::from_yaml(&both);
    assert_eq!(subset(&snap, "x").as_deref(), Some("v2"), "in one file the later document wins");
    assert!(snap.diagnostics().iter().any(|d| d.why.contains("appears again on line 6")));
}

#[test]
fn nothing_is_published_when_nothing_changed() {
    let mut store = Store::new();
    let text = vs("x", "v1") + &vs("z", "v1");
    store.set_file("a.yaml", at(1), &text);
    assert!(store.publish());
    let first = store.reader().now();
    store.set_file("a.yaml", at(2), &text);
    assert!(!store.publish(), "a touched file is no change");
    assert!(!store.publish());
    store.set_file("a.yaml", at(3), &(vs("x", "v1") + &vs("z", "v2")));
    assert!(store.publish());
    let second = store.reader().now();
    assert_eq!(second.generation, first.generation + 1);
    assert!(second.services.same(&first.services), "untouched kinds are the same table");
    let x = |s: &Snapshot| Arc::clone(s.virtual_services.get("default", "x").unwrap());
    assert!(Arc::ptr_eq(&x(&first), &x(&second)), "untouched objects are the same object");
    let changes = second.virtual_services.changes(&first.virtual_services);
    assert!(matches!(&changes[..], [Change::Changed(_, after)] if after.name() == "z"), "{changes:?}");
    assert_eq!(second.changed_kinds(&first), [crate::Kind::VirtualService]);
}

#[test]
fn an_object_keeps_its_age_over_edits_and_loses_it_with_its_file() {
    let mut store = Store::new();
    let age = |store: &Store| store.reader().now().virtual_services.get("default", "x").unwrap().meta.age;
    store.set_file("a.yaml", at(1), &vs("x", "v1"));
    store.publish();
    store.set_file("b.yaml", at(2), &vs("z", "v1"));
    store.publish();
    store.set_file("a.yaml", at(3), &vs("x", "v2"));
    store.publish();
    assert_eq!(age(&store), Age { created: i64::MAX, seen: 0 });
    store.remove_file("a.yaml");
    store.set_file("c.yaml", at(4), &vs("x", "v2"));
    store.publish();
    assert_eq!(age(&store).seen, 0, "moved to another file in one batch");
    store.remove_file("c.yaml");
    store.publish();
    store.set_file("c.yaml", at(5), &vs("x", "v2"));
    store.publish();
    assert!(age(&store).seen > 1, "created again");
    let order: Vec<_> =
        store.reader().now().virtual_services.by_age().iter().map(|o| o.name().to_owned()).collect();
    assert_eq!(order, ["z", "x"]);
}

#[test]
fn objects_from_elsewhere_come_one_by_one() {
    let mut store = Store::new();
    let parsed = crate::parse::parse_text("k", &vs("x", "v1"));
    let resource = parsed.resources[0].clone();
    let key = resource.key();
    store.apply("kubernetes", resource);
    store.set_synced();
    assert!(store.publish());
    assert!(store.reader().now().synced);
    let refused = crate::parse::parse_text("k", &vs("x", "v1")).resources[0].clone();
    let crate::Resource::VirtualService(mut vs) = refused else { panic!() };
    Arc::make_mut(&mut vs).spec.http.clear();
    store.apply("kubernetes", crate::Resource::VirtualService(vs));
    store.publish();
    assert_eq!(subset(&store.reader().now(), "x").as_deref(), Some("v1"), "a refused form changes nothing");
    assert!(store.reader().now().diagnostics().iter().any(|d| d.is_error()));
    store.delete("kubernetes", &key);
    assert!(store.publish());
    assert!(store.reader().now().virtual_services.is_empty());
    assert_eq!(store.reader().now().diagnostics(), []);
}

#[test]
fn mesh_config_keeps_its_last_good_form() {
    let map = |text: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata: {{mesh: '{text}'}}\n"
        )
    };
    let mut store = Store::new();
    store.set_file("m.yaml", at(1), &map("trustDomain: shop"));
    store.publish();
    store.set_file("m.yaml", at(2), &map("trustDomain: [1]"));
    store.publish();
    assert_eq!(store.reader().now().mesh.trust_domain, "shop");
    store.remove_file("m.yaml");
    store.publish();
    assert_eq!(store.reader().now().mesh.trust_domain, "cluster.local");
}

const SETTLE: Duration = Duration::from_millis(100);

struct Watch {
    scanner: Scanner,
    start: Instant,
}

impl Watch {
    fn new(dir: &Path) -> Self {
        Self { scanner: Scanner::new(dir.to_owned(), SETTLE), start: Instant::now() }
    }

    /// Names of files taken and removed by a scan `ms` after the start; no file counts as old.
    fn scan(&mut self, ms: u64) -> (Vec<String>, Vec<String>, Option<Duration>) {
        let scan = self.scanner.scan(self.start + Duration::from_millis(ms), SystemTime::UNIX_EPOCH).unwrap();
        let name = |p: &Path| p.file_name().unwrap().to_string_lossy().into_owned();
        let taken = scan.taken.iter().map(|t| name(&t.path)).collect();
        (taken, scan.removed.iter().map(|p| name(p)).collect(), scan.wait)
    }
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

#[test]
fn a_file_is_read_once_it_stands_still() {
    let dir = tempfile::tempdir().unwrap();
    let mut watch = Watch::new(dir.path());
    let file = dir.path().join("a.yaml");
    fs::write(&file, "a").unwrap();
    assert_eq!(watch.scan(0), (vec![], vec![], Some(SETTLE)));
    assert_eq!(watch.scan(99), (vec![], vec![], Some(Duration::from_millis(1))));
    fs::write(&file, "ab").unwrap();
    assert_eq!(watch.scan(100), (vec![], vec![], Some(SETTLE)), "it grew: the wait begins anew");
    assert_eq!(watch.scan(199).0, names(&[]));
    assert_eq!(watch.scan(200), (names(&["a.yaml"]), vec![], None));
    assert_eq!(watch.scan(400), (vec![], vec![], None), "once");
}

#[test]
fn a_removal_counts_once_it_lasts() {
    let dir = tempfile::tempdir().unwrap();
    let mut watch = Watch::new(dir.path());
    let file = dir.path().join("a.yaml");
    fs::write(&file, "a").unwrap();
    watch.scan(0);
    assert_eq!(watch.scan(100).0, names(&["a.yaml"]));
    fs::rename(&file, dir.path().join("a.yaml~")).unwrap();
    assert_eq!(watch.scan(150), (vec![], vec![], Some(SETTLE)));
    fs::write(&file, "b, as editors save").unwrap();
    assert_eq!(watch.scan(200).1, names(&[]));
    assert_eq!(watch.scan(300), (names(&["a.yaml"]), vec![], None));
    fs::remove_file(&file).unwrap();
    watch.scan(400);
    assert_eq!(watch.scan(500), (vec![], names(&["a.yaml"]), None));
    assert_eq!(watch.scan(700), (vec![], vec![], None));
}

#[test]
fn only_configuration_files_count_at_any_depth() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("x/y")).unwrap();
    fs::create_dir_all(dir.path().join(".hidden")).unwrap();
    for name in ["b.yml", "a.json", "x/y/c.yaml", "d.txt", ".e.yaml", ".hidden/f.yaml", "g.yaml.swp", "yaml"]
    {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    std::os::unix::fs::symlink(dir.path(), dir.path().join("x/loop")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("nowhere"), dir.path().join("gone.yaml")).unwrap();
    let mut watch = Watch::new(dir.path());
    watch.scan(0);
    let mut taken = watch.scan(100).0;
    taken.sort();
    taken.dedup();
    assert_eq!(taken, names(&["a.json", "b.yml", "c.yaml"]));
}

#[test]
fn a_file_that_is_no_text_is_reported_and_a_missing_path_names_itself() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, b"a: 1\nb: \xff\n").unwrap();
    let snap = Snapshot::load(std::slice::from_ref(&file)).unwrap();
    let said = snap.diagnostics();
    assert_eq!(said.len(), 1);
    assert_eq!(
        said[0].to_string(),
        format!("{}: is not UTF-8 text on line 2: save it as UTF-8", file.display())
    );
    let missing = dir.path().join("nope.yaml");
    let err = Snapshot::load(std::slice::from_ref(&missing)).unwrap_err().to_string();
    assert!(err.starts_with(&format!("{}: ", missing.display())), "{err}");
}

#[tokio::test]
async fn a_directory_is_followed_through_edits_breaks_and_removals() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("a.yaml"), vs("x", "v1")).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async move { drop(stopped.await) };
    let (mut reader, task) = watch_dir(dir.path().to_owned(), DirOptions::default(), shutdown);
    let task = tokio::spawn(task);
    let snap = reader.synced().await;
    assert_eq!(subset(&snap, "x").as_deref(), Some("v1"));

    async fn until(reader: &mut Reader, what: &str, done: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let wait = async {
            loop {
                let now = reader.now();
                if done(&now) {
                    return now;
                }
                reader.changed().await.expect("the writer lives");
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("never: {what}"))
    }
    fs::write(path("a.yaml"), vs("x", "v2")).unwrap();
    until(&mut reader, "an edit", |s| subset(s, "x").as_deref() == Some("v2")).await;
    fs::write(path("a.yaml"), "kind: [").unwrap();
    let snap = until(&mut reader, "a finding", |s| s.diagnostics().iter().any(|d| d.is_error())).await;
    assert_eq!(subset(&snap, "x").as_deref(), Some("v2"), "a broken edit keeps the old objects");
    fs::create_dir(path("sub")).unwrap();
    fs::write(path("sub/b.json"), r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}"#)
        .unwrap();
    until(&mut reader, "a new file in a new directory", |s| s.namespaces.len() == 1).await;
    fs::remove_file(path("a.yaml")).unwrap();
    let snap = until(&mut reader, "a removal", |s| s.virtual_services.is_empty()).await;
    assert_eq!(snap.diagnostics(), []);
    drop(stop);
    task.await.unwrap();
    assert!(reader.changed().await.is_none(), "the writer is gone");
    assert_eq!(reader.now().namespaces.len(), 1, "and the last snapshot stays");
}

mod history {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever happened before, what is in force follows from the files as they are now.
        #[test]
        fn leaves_no_trace(steps in prop::collection::vec((0usize..3, prop::option::of(prop::collection::vec((0usize..3, 0u8..3), 0..3))), 1..12)) {
            let files = ["a.yaml", "b.yaml", "c.yaml"];
            let objects = ["k", "l", "m"];
            let mut store = Store::new();
            let mut now: std::collections::BTreeMap<&str, (SystemTime, String)> = Default::default();
            for (time, (file, content)) in (1..).zip(steps) {
                match content {
                    None => {
                        store.remove_file(files[file]);
                        now.remove(files[file]);
                    }
                    Some(list) => {
                        let text: String = list.iter().map(|(o, v)| vs(objects[*o], &format!("v{v}"))).collect();
                        store.set_file(files[file], at(time), &text);
                        now.insert(files[file], (at(time), text));
                    }
                }
                let before = store.reader().now();
                let published = store.publish();
                prop_assert_eq!(published, !Arc::ptr_eq(&before, &store.reader().now()));
            }
            let mut fresh = Store::new();
            for (file, (modified, text)) in &now {
                fresh.set_file(file, *modified, text);
            }
            fresh.publish();
            let bare = |store: &Store| -> Vec<_> {
                let mut all = store.reader().now().resources();
                for resource in &mut all {
                    resource.meta_mut().age = Age::default();
                }
                all
            };
            prop_assert_eq!(bare(&store), bare(&fresh));
            let said = |store: &Store| store.reader().now().diagnostics().into_iter().filter(|d| !d.why.contains("older")).collect::<Vec<_>>();
            prop_assert_eq!(said(&store), said(&fresh));
        }
    }
}
