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
        (Redirect { port: Some(8443), ..base() }, "h:80", "http://h:8443/old/x?q"),
        (Redirect { port: Some(80), ..base() }, "h:8080", "http://h:80/old/x?q"),
        (Redirect { scheme: Some("https".into()), ..base() }, "h:443", "https://h:443/old/x?q"),
        (Redirect { scheme: Some("https".into()), ..base() }, "[::1]:80", "https://[::1]/old/x?q"),
        (Redirect { scheme: Some("https".into()), ..base() }, "[::1]", "https://[::1]/old/x?q"),
        (Redirect { scheme: Some("http".into()), ..base() }, "h:80", "http://h:80/old/x?q"),
        (Redirect { host: Some("o:1".into()), port: Some(2), ..base() }, "h", "http://o:1:2/old/x?q"),
        (Redirect { path: Some(RedirectPath::Full("/n?own".into())), ..base() }, "h", "http://h/n?own"),
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
        // What cannot be read, and zero, ask for nothing; the route's limit for gRPC is then all there is.
        (seconds(0), "999999999S", None),
        (seconds(0), "+3S", None),
        (seconds(2), "+3S", seconds(2)),
        (seconds(2), "0S", seconds(2)),
        (seconds(2), "1500m", Some(Duration::from_millis(1500))),
    ] {
        let forward = Forward { timeout: seconds(9), max_grpc_timeout: cap, ..Forward::default() };
        let request =
            Facts::get("h", "/").with("content-type", "application/grpc").with("grpc-timeout", asked);
        assert_eq!(timeout(&forward, &request), want, "{cap:?} {asked}");
    }
}

#[test]
fn only_grpc_requests_count_as_grpc() {
    for (kind, want) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc-web", false),
        ("application/json", false),
        ("", false),
    ] {
        assert_eq!(is_grpc(&Facts::get("h", "/").with("content-type", kind)), want, "{kind:?}");
    }
    let forward = Forward { timeout: None, max_grpc_timeout: Some(Duration::ZERO), ..Forward::default() };
    assert_eq!(timeout(&forward, &Facts::get("h", "/").with("grpc-timeout", "1S")), None);
}

#[test]
fn paths_are_compared_in_each_form() {
    let regex = |pattern| PathMatch::Regex(FullRegex::new(pattern).expect("valid"));
    for (matcher, path, fold, want) in [
        (PathMatch::Prefix("/foo".into()), "/foobar", false, true),
        (PathMatch::Prefix("/foo".into()), "/FOO", false, false),
        (PathMatch::Prefix("/foo".into()), "/FOO/x", true, true),
        (PathMatch::Prefix("/ö".into()), "/\u{f6}x", false, true),
        (PathMatch::Segments("/foo".into()), "/foobar", false, false),
        (PathMatch::Segments("/foo".into()), "/foo", false, true),
        (PathMatch::Segments("/foo".into()), "/foo/", false, true),
        (PathMatch::Segments("/foo".into()), "/FOO/x", true, true),
        (PathMatch::Segments("/".into()), "/foo", false, true),
        (PathMatch::Segments("/foo/".into()), "/foo/bar", false, true),
        (PathMatch::Exact("/foo".into()), "/foo/", false, false),
        (PathMatch::Exact("/foo".into()), "/Foo", true, true),
        (regex("/a|/b"), "/b", false, true),
        (regex("/a"), "/ab", false, false),
        (regex("/a"), "/A", true, false),
        (PathMatch::Connect, "/", false, false),
    ] {
        assert_eq!(path_matches(&matcher, path, fold, false), want, "{matcher:?} {path} {fold}");
    }
}

#[test]
fn paths_are_rewritten_by_regex_with_their_query_kept() {
    let pattern = FullRegex::new("/v([0-9]+)").expect("valid");
    let rewrite = PathRewrite::Regex { pattern, substitution: r"/api/\1".into() };
    let forward = Forward { path_rewrite: Some(rewrite), ..Forward::default() };
    for (path, want) in
        [("/v1/x?a=/v2", "/api/1/x?a=/v2"), ("/v1/v2", "/api/1/api/2"), ("/x", "/x"), ("/$1", "/$1")]
    {
        assert_eq!(rewritten_path(&forward, &RouteMatch::default(), path).as_deref(), Some(want));
    }
}

/// Recorded from Envoy 1.40: the same route configuration and the same requests, and what each was answered.
#[test]
fn requests_are_answered_as_envoy_answered_them() {
    let recorded: serde_json::Value =
        serde_json::from_str(include_str!("testdata/envoy_routes.json")).expect("valid JSON");
    let bytes = xds::reflect::from_json(xds::type_url::ROUTE, &recorded["routes"]).expect("known fields");
    let message = prost::Message::decode(&*bytes).expect("what was encoded");
    let routes = crate::wire::route_configuration(message).expect("accepted");
    let table = RouteTable::new(routes).expect("distinct domains");
    let mut different = Vec::new();
    let requests = recorded["requests"].as_array().expect("a list");
    for request in requests {
        let text = |key: &str| request[key].as_str().expect("a text").to_owned();
        let headers = request["headers"].as_array().expect("a list").iter().map(|pair| {
            let part = |at: usize| pair[at].as_str().expect("a text").trim().to_owned();
            (part(0), part(1))
        });
        let facts = Facts {
            method: text("method"),
            headers: headers.collect(),
            ..Facts::get(&text("authority"), &text("path"))
        };
        let reply = match plan(&table, &facts) {
            Ok(choice) => own_answer(choice.route, &facts).expect("its own answer"),
            Err(reply) => reply,
        };
        let said = reply.location.unwrap_or_else(|| String::from_utf8_lossy(&reply.body).into_owned());
        // Envoy dresses its own answers to gRPC as trailers, under 200; here the proxy does that.
        let status = if is_grpc(&facts) { 200 } else { reply.status };
        let got = format!("{status} {said}");
        if got.trim() != text("envoy") {
            different.push(format!("{request}: {got}"));
        }
    }
    assert!(requests.len() > 150 && different.is_empty(), "{}", different.join("\n"));
}
