//! Decisions as tables: which route a request takes, what it is told, how its path changes.

use std::time::Duration;

use super::*;
use crate::{
    matchers::{HeaderMatch, HeaderValue, StringMatch},
    route::{HeaderOps, RouteConfiguration},
};

fn route(name: &str, matcher: RouteMatch) -> Arc<Route> {
    let forward = Forward { target: Target::Cluster(name.into()), ..Forward::default() };
    Arc::new(Route {
        name: name.into(),
        matcher,
        action: Action::Forward(Box::new(forward)),
        headers: HeaderOps::default(),
        filters: crate::filter::PerRoute::default(),
        source: None,
        operation: None,
    })
}

fn table(routes: Vec<Arc<Route>>) -> RouteTable {
    let host = VirtualHost { name: "h".into(), domains: vec!["h".into()], routes, ..VirtualHost::default() };
    RouteTable::new(RouteConfiguration {
        virtual_hosts: vec![Arc::new(host)],
        ..RouteConfiguration::default()
    })
    .expect("one host")
}

fn header(name: &str, matcher: StringMatch) -> HeaderMatch {
    let value = HeaderValue::Text { matcher, ignore_case: false };
    HeaderMatch { name: name.into(), value, invert: false, missing_as_empty: false }
}

#[test]
fn the_first_route_whose_conditions_hold_wins() {
    let firefox = StringMatch::Regex(FullRegex::new(".*Firefox.*").expect("valid"));
    let table = table(vec![
        route("v2", RouteMatch { headers: vec![header("user-agent", firefox)], ..RouteMatch::default() }),
        route("exact", RouteMatch { path: PathMatch::Exact("/a".into()), ..RouteMatch::default() }),
        route("segments", RouteMatch { path: PathMatch::Segments("/s".into()), ..RouteMatch::default() }),
        route("v1", RouteMatch::default()),
    ]);
    for (request, want) in [
        (Facts::get("h", "/").with("User-Agent", "Mozilla Firefox/1"), "v2"),
        (Facts::get("h", "/").with("User-Agent", "firefox"), "v1"),
        (Facts::get("h", "/a?x"), "exact"),
        (Facts::get("h", "/a/"), "v1"),
        (Facts::get("h", "/s/x"), "segments"),
        (Facts::get("h", "/sx"), "v1"),
    ] {
        let choice = plan(&table, &request).expect("a route");
        assert_eq!(&*choice.route.name, want, "{request:?}");
    }
    assert_eq!(plan(&table, &Facts::get("other", "/")).err(), Some(Reply::no_route()));
}

#[test]
fn connect_is_matched_by_no_path() {
    let table = table(vec![route("all", RouteMatch::default())]);
    let request = Facts { method: "CONNECT".to_owned(), ..Facts::get("h", "") };
    assert!(plan(&table, &request).is_err());
}

#[test]
fn prefixes_are_replaced_and_queries_kept() {
    let rewrite =
        |to: &str| Forward { path_rewrite: Some(PathRewrite::Prefix(to.into())), ..Forward::default() };
    for (matched, to, path, want) in [
        (PathMatch::Prefix("/old".into()), "/new", "/old/x?y=z", "/new/x?y=z"),
        (PathMatch::Prefix("/old".into()), "/new", "/older", "/newer"),
        (PathMatch::Prefix("/old/".into()), "/", "/old/x", "/x"),
        (PathMatch::Exact("/old".into()), "/new", "/old?q", "/new?q"),
    ] {
        let matcher = RouteMatch { path: matched, ..RouteMatch::default() };
        assert_eq!(rewritten_path(&rewrite(to), &matcher, path).as_deref(), Some(want));
    }
}

#[test]
fn redirects_name_the_new_place() {
    let matcher = RouteMatch { path: PathMatch::Prefix("/old".into()), ..RouteMatch::default() };
    let base = || Redirect { status: 301, ..Redirect::default() };
    for (redirect, authority, want) in [
        (
            Redirect { path: Some(RedirectPath::Full("/new".into())), ..base() },
            "h:8080",
            "http://h:8080/new?q",
        ),
        (Redirect { host: Some("other".into()), ..base() }, "h:8080", "http://other/old/x?q"),
        (Redirect { scheme: Some("https".into()), ..base() }, "h", "https://h/old/x?q"),
        (Redirect { scheme: Some("https".into()), ..base() }, "h:80", "https://h/old/x?q"),
        (Redirect { scheme: Some("https".into()), ..base() }, "h:8080", "https://h:8080/old/x?q"),
        (Redirect { port: Some(8443), ..base() }, "h", "http://h:8443/old/x?q"),
        (Redirect { path: Some(RedirectPath::Prefix("/new".into())), ..base() }, "h", "http://h/new/x?q"),
        (Redirect { strip_query: true, ..base() }, "h", "http://h/old/x"),
    ] {
        assert_eq!(location(&redirect, &matcher, &Facts::get(authority, "/old/x?q")), want, "{redirect:?}");
    }
}

#[test]
fn a_grpc_timeout_is_capped_by_the_route() {
    let seconds = |n| Some(Duration::from_secs(n));
    for (cap, asked, want) in [
        (seconds(0), "3S", seconds(3)),
        (seconds(2), "3S", seconds(2)),
        (seconds(2), "1M", seconds(2)),
        (None, "3S", seconds(9)),
        (seconds(0), "999999999S", seconds(9)),
        (seconds(0), "+3S", seconds(9)),
    ] {
        let forward = Forward { timeout: seconds(9), max_grpc_timeout: cap, ..Forward::default() };
        let request =
            Facts::get("h", "/").with("content-type", "application/grpc").with("grpc-timeout", asked);
        assert_eq!(timeout(&forward, &request), want, "{cap:?} {asked}");
    }
}
