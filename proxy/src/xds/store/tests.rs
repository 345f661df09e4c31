//! What may be used, and when: warming, last good forms, subscriptions.

use mesh_traffic::{
    Endpoint, VirtualHost,
    listener::{ChainMatch, FilterChain, HttpManager, Inspect, Terminal},
    names::Direction,
    tls::{Certificate, DownstreamTls, Versions},
};

use super::*;

fn resource(name: &str, body: Body) -> Resource {
    Resource { name: name.into(), version: "1".to_owned(), raw: bytes::Bytes::new(), body }
}

fn listener(name: &str, routes: &str) -> Resource {
    let manager = HttpManager { routes: RouteSource::Rds(routes.into()), ..HttpManager::default() };
    let chain = FilterChain {
        name: "c".into(),
        matcher: ChainMatch::default(),
        tls: None,
        rbac: Vec::new(),
        terminal: Terminal::Http(Arc::new(manager)),
        source: None,
    };
    let listener = Listener {
        name: name.into(),
        address: ([127, 0, 0, 1], 0).into(),
        additional: Vec::new(),
        bind: true,
        use_original_dst: false,
        direction: Direction::Outbound,
        inspect: Inspect::default(),
        chains: vec![Arc::new(chain)],
        default_chain: None,
        access_log: Vec::new(),
    };
    resource(name, Body::Listener(Arc::new(listener)))
}

fn routes(name: &str, vhds: bool) -> Resource {
    let routes = RouteConfiguration { name: name.into(), vhds, ..RouteConfiguration::default() };
    resource(name, Body::Route(Arc::new(routes)))
}

fn host(name: &str, domain: &str) -> Resource {
    let host = VirtualHost { name: name.into(), domains: vec![domain.into()], ..VirtualHost::default() };
    resource(name, Body::VirtualHost(Arc::new(host)))
}

fn cluster(name: &str) -> Resource {
    resource(name, Body::Cluster(Arc::new(Cluster::eds(name))))
}

fn endpoints(name: &str) -> Resource {
    let one = Endpoint::at(([127, 0, 0, 1], 1).into());
    resource(name, Body::Endpoints(Arc::new(Endpoints::flat(name, vec![one]))))
}

#[test]
fn a_listener_waits_for_its_routes_and_a_cluster_for_its_endpoints() {
    let mut store = Store::default();
    store.apply(listener("l", "8080")).expect("accepted");
    store.apply(cluster("c")).expect("accepted");
    store.refresh();
    assert!(store.snapshot().listeners.is_empty() && store.snapshot().clusters.is_empty());
    assert_eq!(store.waiting().len(), 2);
    assert_eq!(store.wanted(Kind::Route), BTreeSet::from(["8080".into()]));
    assert_eq!(store.wanted(Kind::Endpoints), BTreeSet::from(["c".into()]));
    store.apply(routes("8080", false)).expect("accepted");
    store.apply(endpoints("c")).expect("accepted");
    assert!(store.refresh());
    assert_eq!((store.snapshot().listeners.len(), store.snapshot().clusters.len()), (1, 1));
    assert!(store.waiting().is_empty());
    assert!(!store.refresh(), "nothing changed since");
}

#[test]
fn a_changed_listener_serves_in_its_old_form_until_the_new_routes_are_there() {
    let mut store = Store::default();
    store.apply(listener("l", "old")).expect("accepted");
    store.apply(routes("old", false)).expect("accepted");
    store.refresh();
    store.apply(listener("l", "new")).expect("accepted");
    store.refresh();
    let names = |store: &Store| rds_names(&store.snapshot().listeners["l"]);
    assert_eq!(names(&store), BTreeSet::from(["old".into()]));
    store.apply(routes("new", false)).expect("accepted");
    store.refresh();
    assert_eq!(names(&store), BTreeSet::from(["new".into()]));
}

#[test]
fn routes_of_single_hosts_are_complete_only_after_the_first_answer() {
    let mut store = Store::default();
    store.apply(listener("l", "8080")).expect("accepted");
    store.apply(routes("8080", true)).expect("accepted");
    store.apply(host("8080/a:8080", "a")).expect("accepted");
    store.refresh();
    assert!(store.snapshot().listeners.is_empty());
    store.complete_hosts();
    store.refresh();
    assert!(store.snapshot().routes["8080"].find("a").is_some());
    store.apply(host("8080/b:8080", "b")).expect("accepted");
    store.remove(Kind::VirtualHost, "8080/a:8080");
    store.refresh();
    let table = Arc::clone(&store.snapshot().routes["8080"]);
    assert!(table.find("a").is_none() && table.find("b").is_some());
}

#[test]
fn a_domain_that_is_taken_refuses_the_later_host_only() {
    let mut store = Store::default();
    store.apply(routes("8080", true)).expect("accepted");
    store.apply(host("8080/a", "x")).expect("accepted");
    let refused = store.apply(host("8080/b", "x"));
    assert_eq!(refused, Err("domain \"x\" belongs to another virtual host".to_owned()));
    store.apply(host("8080/a", "x")).expect("its own domain is no conflict");
}

#[test]
fn static_resources_outlive_removals_and_are_not_resumed() {
    let mut store = Store::default();
    store.add_fixed(endpoints("c")).expect("accepted");
    store.add_fixed(cluster("c")).expect("accepted");
    store.remove(Kind::Cluster, "c");
    store.refresh();
    assert!(store.snapshot().clusters.contains_key("c"));
    assert!(store.versions(Kind::Cluster).is_empty());
}

#[test]
fn waiting_for_endpoints_ends() {
    let mut store = Store::default();
    store.apply(cluster("c")).expect("accepted");
    store.refresh();
    assert!(store.snapshot().clusters.is_empty());
    store.stop_waiting();
    store.refresh();
    assert!(store.snapshot().clusters.contains_key("c"));
}

#[test]
fn a_secret_that_never_comes_holds_its_listener_back_for_a_while_only() {
    let Body::Listener(plain) = listener("l", "8080").body else { panic!("a listener") };
    let naming = |secret: &str| {
        let mut one = Listener::clone(&plain);
        let mut chain = FilterChain::clone(&one.chains[0]);
        chain.tls = Some(DownstreamTls {
            certificates: vec![Certificate::Sds(secret.into())],
            validation: None,
            require_client_certificate: false,
            alpn: Vec::new(),
            versions: Versions::default(),
        });
        one.chains.push(Arc::new(chain));
        resource("l", Body::Listener(Arc::new(one)))
    };
    let mut store = Store::default();
    store.apply(routes("8080", false)).expect("accepted");
    store.apply(naming("never")).expect("accepted");
    store.refresh();
    assert!(store.snapshot().listeners.is_empty());
    store.stop_waiting();
    store.refresh();
    assert_eq!(store.snapshot().listeners["l"].chains.len(), 2, "what can be served is served");
    assert_eq!(store.wanted(Kind::Secret), BTreeSet::from(["never".into()]), "and it may still come");
    store.apply(naming("another")).expect("accepted");
    assert!(!store.refresh(), "a secret that was not asked for before is waited for");
}
