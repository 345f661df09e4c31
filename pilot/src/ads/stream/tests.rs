//! Behaviour of both forms, request by request.

use super::*;
use crate::ads::wire;
use bytes::Bytes;

fn catalog(push: u64, resources: &[(Type, &[(&str, &str)])]) -> Catalog {
    resources.iter().fold(Catalog::new(push), |catalog, (kind, pairs)| {
        let map = pairs
            .iter()
            .map(|(name, body)| {
                let sources = vec![Arc::from(format!("Object default/{name}"))];
                (Arc::from(*name), Encoded::raw(Bytes::from(body.as_bytes().to_vec()), sources))
            })
            .collect();
        catalog.with(*kind, Arc::new(map))
    })
}

fn ask(names: &[&str]) -> wire::DeltaDiscoveryRequest {
    wire::DeltaDiscoveryRequest {
        resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

fn answer(nonce: &str, error: Option<&str>) -> wire::DeltaDiscoveryRequest {
    wire::DeltaDiscoveryRequest {
        response_nonce: nonce.to_owned(),
        error_detail: error.map(|e| wire::Status { code: 13, message: e.to_owned() }),
        ..Default::default()
    }
}

/// What a response brings and takes: `+name`, `-name`.
fn gist(response: Option<wire::DeltaDiscoveryResponse>) -> String {
    response.map_or_else(
        || "nothing".to_owned(),
        |r| {
            let kind = Type::of(&r.type_url).expect("a known type").short();
            let plus = r.resources.iter().map(|x| format!(" +{}", x.name));
            let minus = r.removed_resources.iter().map(|x| format!(" -{x}"));
            format!("{kind}{}", plus.chain(minus).collect::<String>())
        },
    )
}

/// Takes responses, acknowledging each, until nothing is due.
fn drain(stream: &mut Delta, catalog: &Catalog) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(response) = stream.next(catalog) {
        let kind = Type::of(&response.type_url).expect("a known type");
        stream.request(kind, &answer(&response.nonce, None), catalog);
        all.push(gist(Some(response)));
    }
    all
}

const ALL_TYPES: &[(Type, &[(&str, &str)])] = &[
    (Type::Listener, &[("l1", "1")]),
    (Type::Cluster, &[("c1", "1"), ("c2", "1")]),
    (Type::Endpoints, &[("c1", "1"), ("c2", "1")]),
    (Type::Routes, &[("r1", "1")]),
];

fn subscribed(catalog: &Catalog) -> Delta {
    let mut stream = Delta::default();
    stream.request(Type::Listener, &ask(&[]), catalog);
    stream.request(Type::Routes, &ask(&["r1"]), catalog);
    stream.request(Type::Endpoints, &ask(&["c1", "c2"]), catalog);
    stream.request(Type::Cluster, &ask(&[]), catalog);
    stream
}

#[test]
fn first_answers_come_clusters_first_and_then_nothing_is_due() {
    let catalog = catalog(1, ALL_TYPES);
    let mut stream = subscribed(&catalog);
    assert_eq!(drain(&mut stream, &catalog), ["CDS +c1 +c2", "EDS +c1 +c2", "LDS +l1", "RDS +r1"]);
    assert_eq!(gist(stream.next(&catalog)), "nothing");
}

#[test]
fn a_change_sends_what_it_touched_and_a_changed_cluster_its_endpoints() {
    let one = catalog(1, ALL_TYPES);
    let mut stream = subscribed(&one);
    drain(&mut stream, &one);
    let two = catalog(
        2,
        &[
            (Type::Listener, &[("l1", "1")]),
            (Type::Cluster, &[("c1", "2"), ("c2", "1")]),
            (Type::Endpoints, &[("c1", "1"), ("c2", "1")]),
            (Type::Routes, &[("r1", "1")]),
        ],
    );
    assert_eq!(drain(&mut stream, &two), ["CDS +c1", "EDS +c1"]);
}

#[test]
fn a_virtual_host_comes_together_with_the_end_of_the_one_it_replaces() {
    let one = catalog(1, &[(Type::VirtualHost, &[("80/allow_any", "1"), ("80/shop", "1")])]);
    let mut stream = Delta::default();
    stream.request(Type::VirtualHost, &ask(&["*"]), &one);
    assert_eq!(drain(&mut stream, &one), ["VHDS +80/allow_any +80/shop"]);
    let two = catalog(2, &[(Type::VirtualHost, &[("80/block_all", "1"), ("80/shop", "1")])]);
    assert_eq!(drain(&mut stream, &two), ["VHDS +80/block_all -80/allow_any"]);
    let three = catalog(3, &[(Type::VirtualHost, &[("80/block_all", "1")])]);
    assert_eq!(drain(&mut stream, &three), ["VHDS -80/shop"]);
    assert_eq!(gist(stream.next(&three)), "nothing");
}

#[test]
fn additions_go_down_the_chain_and_removals_come_last_from_the_top() {
    let one = catalog(1, ALL_TYPES);
    let mut stream = subscribed(&one);
    drain(&mut stream, &one);
    let two = catalog(
        2,
        &[
            (Type::Listener, &[("l2", "1")]),
            (Type::Cluster, &[("c2", "1"), ("c3", "1")]),
            (Type::Endpoints, &[("c2", "1"), ("c3", "1")]),
            (Type::Routes, &[("r1", "2")]),
        ],
    );
    assert_eq!(drain(&mut stream, &two), ["CDS +c3", "LDS +l2", "RDS +r1", "LDS -l1", "CDS -c1", "EDS -c1"]);
}

#[test]
fn clusters_stay_while_the_routes_that_replace_their_users_are_refused() {
    let one = catalog(1, ALL_TYPES);
    let mut stream = subscribed(&one);
    drain(&mut stream, &one);
    let two = catalog(2, &[(Type::Listener, &[("l1", "1")]), (Type::Routes, &[("r1", "bad")])]);
    let routes = stream.next(&two).expect("the route changed");
    stream.request(Type::Routes, &answer(&routes.nonce, Some("r1: no such field")), &two);
    assert_eq!(gist(stream.next(&two)), "nothing");
    let three = catalog(3, &[(Type::Listener, &[("l1", "1")]), (Type::Routes, &[("r1", "good")])]);
    assert_eq!(drain(&mut stream, &three), ["RDS +r1", "CDS -c1 -c2", "EDS -c1 -c2"]);
}

#[test]
fn a_refusal_is_kept_against_the_object_and_the_resource_is_not_sent_again() {
    let catalog = catalog(1, ALL_TYPES);
    let mut stream = Delta::default();
    stream.request(Type::Cluster, &ask(&[]), &catalog);
    let response = stream.next(&catalog).expect("clusters");
    stream.request(Type::Cluster, &answer(&response.nonce, Some("cluster c2: bad")), &catalog);
    assert_eq!(gist(stream.next(&catalog)), "nothing");
    let (_, standing) = stream.standings().next().expect("asked for clusters");
    assert_eq!(standing.word(), "REFUSED");
    let names: Vec<_> = standing.refused.iter().map(|(n, r)| (&**n, &*r.sources[0])).collect();
    assert_eq!(names, [("c2", "Object default/c2")]);
}

#[test]
fn a_client_that_does_not_answer_gets_no_second_response_and_then_the_latest_state() {
    let one = catalog(1, &[(Type::Cluster, &[("c1", "1")])]);
    let mut stream = Delta::default();
    stream.request(Type::Cluster, &ask(&[]), &one);
    let first = stream.next(&one).expect("clusters");
    for push in 2..50 {
        let body = push.to_string();
        let later = catalog(push, &[(Type::Cluster, &[("c1", &body)])]);
        assert_eq!(gist(stream.next(&later)), "nothing");
    }
    let last = catalog(50, &[(Type::Cluster, &[("c1", "50")])]);
    stream.request(Type::Cluster, &answer(&first.nonce, None), &last);
    let second = stream.next(&last).expect("the latest");
    assert_eq!(second.resources[0].resource.as_ref().map(|r| &r.value[..]), Some(&b"50"[..]));
    assert_eq!(second.system_version_info, "50");
}

#[test]
fn after_a_reconnect_only_what_changed_or_went_is_sent() {
    let now = catalog(9, &[(Type::Cluster, &[("same", "1"), ("changed", "2"), ("new", "1")])]);
    let version = |body: &str| Encoded::raw(Bytes::from(body.to_owned()), vec![]).version.to_string();
    let mut stream = Delta::default();
    let mut hello = ask(&[]);
    hello.initial_resource_versions = [("same", "1"), ("changed", "1"), ("gone", "1")]
        .map(|(name, body)| (name.to_owned(), version(body)))
        .into();
    stream.request(Type::Cluster, &hello, &now);
    assert_eq!(drain(&mut stream, &now), ["CDS +changed +new", "CDS -gone"]);
}

#[test]
fn names_that_do_not_exist_are_answered_and_come_when_they_appear() {
    let one = catalog(1, &[(Type::Endpoints, &[("c1", "1")])]);
    let mut stream = Delta::default();
    stream.request(Type::Endpoints, &ask(&["c1", "ghost"]), &one);
    assert_eq!(drain(&mut stream, &one), ["EDS +c1 -ghost"]);
    let two = catalog(2, &[(Type::Endpoints, &[("c1", "1"), ("ghost", "1"), ("other", "1")])]);
    assert_eq!(drain(&mut stream, &two), ["EDS +ghost"]);
}

#[test]
fn a_name_asked_for_again_is_sent_again_and_one_given_up_is_not_sent() {
    let one = catalog(1, &[(Type::Endpoints, &[("c1", "1")])]);
    let mut stream = Delta::default();
    stream.request(Type::Endpoints, &ask(&["c1"]), &one);
    drain(&mut stream, &one);
    stream.request(Type::Endpoints, &ask(&["c1"]), &one);
    assert_eq!(drain(&mut stream, &one), ["EDS +c1"]);
    let drop = wire::DeltaDiscoveryRequest {
        resource_names_unsubscribe: vec!["c1".to_owned()],
        ..Default::default()
    };
    stream.request(Type::Endpoints, &drop, &one);
    let two = catalog(2, &[(Type::Endpoints, &[("c1", "2")])]);
    assert_eq!(gist(stream.next(&two)), "nothing");
}

#[test]
fn an_empty_set_is_answered_so_that_the_client_knows_it_is_complete() {
    let empty = Catalog::new(1);
    let mut stream = Delta::default();
    stream.request(Type::Cluster, &ask(&[]), &empty);
    stream.request(Type::VirtualHost, &ask(&["*"]), &empty);
    assert_eq!(drain(&mut stream, &empty), ["CDS", "VHDS"]);
}

fn sotw(names: &[&str], nonce: &str, error: Option<&str>) -> wire::DiscoveryRequest {
    wire::DiscoveryRequest {
        resource_names: names.iter().map(ToString::to_string).collect(),
        response_nonce: nonce.to_owned(),
        error_detail: error.map(|e| wire::Status { code: 13, message: e.to_owned() }),
        ..Default::default()
    }
}

/// Takes responses, acknowledging each with the names of that type, until nothing is due.
fn drain_sotw(stream: &mut Sotw, catalog: &Catalog, names: &[(Type, &[&str])]) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(response) = stream.next(catalog) {
        let kind = Type::of(&response.type_url).expect("a known type");
        let names = names.iter().find(|(t, _)| *t == kind).map_or(&[][..], |(_, n)| n);
        stream.request(kind, &sotw(names, &response.nonce, None));
        let bodies = response.resources.iter().map(|r| format!(" {}", String::from_utf8_lossy(&r.value)));
        all.push(format!("{}{}", kind.short(), bodies.collect::<String>()));
    }
    all
}

#[test]
fn state_of_the_world_sends_whole_sets_and_takes_clusters_away_last() {
    let names: &[(Type, &[&str])] = &[(Type::Endpoints, &["c1", "c2"]), (Type::Routes, &["r1"])];
    let one = catalog(
        1,
        &[
            (Type::Cluster, &[("c1", "c1"), ("c2", "c2")]),
            (Type::Endpoints, &[("c1", "e1"), ("c2", "e2")]),
            (Type::Listener, &[("l1", "l1")]),
            (Type::Routes, &[("r1", "r1")]),
        ],
    );
    let mut stream = Sotw::default();
    stream.request(Type::Cluster, &sotw(&[], "", None));
    assert_eq!(drain_sotw(&mut stream, &one, names), ["CDS c1 c2"]);
    stream.request(Type::Endpoints, &sotw(&["c1", "c2"], "", None));
    stream.request(Type::Listener, &sotw(&[], "", None));
    stream.request(Type::Routes, &sotw(&["r1"], "", None));
    assert_eq!(drain_sotw(&mut stream, &one, names), ["EDS e1 e2", "LDS l1", "RDS r1"]);
    let two = catalog(
        2,
        &[
            (Type::Cluster, &[("c2", "c2"), ("c3", "c3")]),
            (Type::Endpoints, &[("c2", "e2")]),
            (Type::Listener, &[("l1", "l1")]),
            (Type::Routes, &[("r1", "r1b")]),
        ],
    );
    let seen = drain_sotw(&mut stream, &two, names);
    assert_eq!(seen[0], "CDS c1 c2 c3", "{seen:?}");
    assert!(
        seen.iter().position(|s| s == "RDS r1b") < seen.iter().position(|s| s == "CDS c2 c3"),
        "{seen:?}"
    );
    assert!(drain_sotw(&mut stream, &two, names).is_empty());
}

#[test]
fn state_of_the_world_ignores_stale_answers_and_keeps_refusals() {
    let one = catalog(1, &[(Type::Routes, &[("r1", "1"), ("r2", "1")])]);
    let mut stream = Sotw::default();
    stream.request(Type::Routes, &sotw(&["r1"], "", None));
    let first = stream.next(&one).expect("r1");
    stream.request(Type::Routes, &sotw(&["r1", "r2"], "older", None));
    assert!(stream.next(&one).is_none());
    stream.request(Type::Routes, &sotw(&["r1"], &first.nonce, Some("r1 is bad")));
    assert!(stream.next(&one).is_none(), "a refused response is not repeated");
    let (_, standing) = stream.standings().next().expect("asked for routes");
    assert!(standing.refused.contains_key("r1"));
    stream.request(Type::Routes, &sotw(&["r1", "r2"], &first.nonce, None));
    assert_eq!(stream.next(&one).expect("r2 as well").resources.len(), 2);
}
