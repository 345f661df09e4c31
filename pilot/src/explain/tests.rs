//! The Espresso Shop's own files, row by row of the acceptance list, answered by the proxy's decision.

use super::*;
use crate::model::tests::model;
use serde_json::{Value, json};

const REVIEWS: &str = "espresso-shop-reviews-svc.default.svc.cluster.local";
const URL: &str = "http://espresso-shop-reviews-svc:8092/api/reviews/1";

/// The shop's services and pods, as a node writes them.
fn shop() -> String {
    let mut yaml = String::new();
    for (name, port) in [("web", 8090), ("product-catalog", 8091), ("reviews", 8092)] {
        yaml += &format!(
            "---\nkind: Service\napiVersion: v1\nmetadata: {{name: espresso-shop-{name}-svc}}\nspec: {{selector: {{app: \
             espresso-shop-{name}}}, type: LoadBalancer, ports: [{{port: {port}, targetPort: 80, name: http}}]}}\n"
        );
    }
    for (name, app, version, ip) in [
        ("web-1", "espresso-shop-web", "v1", "10.1.0.1"),
        ("catalog-1", "espresso-shop-product-catalog", "v1", "10.1.0.2"),
        ("reviews-v1", "espresso-shop-reviews", "v1", "10.1.0.3"),
        ("reviews-v2", "espresso-shop-reviews", "v2", "10.1.0.4"),
    ] {
        yaml += &crate::model::tests::pod(name, app, version, ip);
    }
    yaml += "---\napiVersion: networking.istio.io/v1alpha3\nkind: DestinationRule\nmetadata: {name: espresso-shop-reviews}\n\
             spec: {host: espresso-shop-reviews-svc, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: \
             {version: v2}}]}\n";
    yaml
}

/// A VirtualService as the author writes them, with `http` as its list.
fn reviews(http: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1alpha3\nkind: VirtualService\nmetadata:\n  name: espresso-shop-reviews\nspec:\n  \
         hosts:\n  - espresso-shop-reviews-svc\n  http:\n{http}"
    )
}

fn to(subset: &str) -> String {
    format!(
        "    route:\n    - destination:\n        host: espresso-shop-reviews-svc\n        subset: {subset}\n"
    )
}

fn ask(yaml: &str, headers: &[&str]) -> Value {
    let headers: Vec<_> = headers.iter().map(|h| (*h).to_owned()).collect();
    let request = Request::parse("get", URL, &headers).expect("a request");
    let sender = Sender::Pod("default".to_owned(), "web-1".to_owned());
    let answer = explain(model(&(shop() + yaml)), &sender, &request).expect("an answer");
    serde_json::to_value(answer).expect("plain data")
}

#[test]
fn all_to_version_one_is_answered_in_full() {
    let answer = ask(&reviews(&format!("  - match: null\n{}", to("v1"))), &[]);
    assert_eq!(
        answer,
        json!({
            "virtualService": "default/espresso-shop-reviews",
            "rule": 0,
            "response": null,
            "destinations": [{
                "host": REVIEWS, "subset": "v1", "port": 8092, "weight": 100,
                "cluster": format!("outbound|8092|v1|{REVIEWS}"), "endpoints": ["10.1.0.3:80"],
            }],
            "timeout": null,
            "retries": {
                "attempts": 2, "perTryTimeout": null,
                "on": "connect-failure,refused-stream,cancelled,unavailable",
            },
            "fault": null,
            "tls": "mtls",
        })
    );
}

#[test]
fn without_a_virtual_service_all_versions_answer() {
    let answer = ask("", &[]);
    assert_eq!(answer["virtualService"], Value::Null);
    assert_eq!(answer["destinations"][0]["endpoints"], json!(["10.1.0.3:80", "10.1.0.4:80"]));
}

#[test]
fn eighty_twenty_shows_both_with_their_weights() {
    let http = "  - route:\n    - destination: {host: espresso-shop-reviews-svc, subset: v1}\n      weight: 80\n    - \
                destination: {host: espresso-shop-reviews-svc, subset: v2}\n      weight: 20\n";
    let answer = ask(&reviews(http), &[]);
    let seen: Vec<_> = answer["destinations"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|d| (&d["subset"], &d["weight"]))
        .collect();
    assert_eq!(seen, [(&json!("v1"), &json!(80)), (&json!("v2"), &json!(20))]);
}

#[test]
fn browsers_and_users_are_told_apart_by_whole_values_and_any_case_of_names() {
    let by = |header: &str, value: &str| {
        reviews(&format!(
            "  - match:\n    - headers:\n        {header}:\n          regex: .*{value}.*\n{}  - match: null\n{}",
            to("v2"),
            to("v1")
        ))
    };
    for (yaml, header, rule) in [
        (by("User-Agent", "Firefox"), "user-agent: Mozilla Firefox/1", 0),
        (by("User-Agent", "Firefox"), "USER-AGENT: Firefox", 0),
        (by("User-Agent", "Firefox"), "user-agent: Chrome", 1),
        (by("UserRole", "Administrator"), "userrole: Administrator", 0),
        (by("UserRole", "Administrator"), "userrole: administrator", 1),
        (by("UserRole", "Administrator"), "x-other: Administrator", 1),
    ] {
        let answer = ask(&yaml, &[header]);
        assert_eq!(answer["rule"], json!(rule), "{header}");
        assert_eq!(
            answer["destinations"][0]["subset"],
            json!(if rule == 0 { "v2" } else { "v1" }),
            "{header}"
        );
    }
}

#[test]
fn faults_and_timeouts_are_shown() {
    let delay = ask(
        &reviews(&format!(
            "  - fault:\n      delay:\n        percent: 100\n        fixedDelay: 10s\n{}",
            to("v1")
        )),
        &[],
    );
    assert_eq!(delay["fault"], json!({"delay": {"fixed": "10s", "percent": 100.0}, "abort": null}));
    assert_eq!(delay["response"], Value::Null);
    let abort = ask(
        &reviews(&format!(
            "  - fault:\n      abort:\n        percent: 100\n        httpStatus: 500\n{}",
            to("v1")
        )),
        &[],
    );
    assert_eq!(abort["fault"], json!({"delay": null, "abort": {"status": 500, "percent": 100.0}}));
    assert_eq!(abort["response"], json!({"code": 500, "flag": "FI"}));
    let timeout = ask(&reviews(&format!("  - timeout: 0.5s\n{}", to("v1"))), &[]);
    assert_eq!(timeout["timeout"], json!("0.5s"));
}

#[test]
fn an_unknown_subset_or_no_endpoint_is_the_proxys_own_503() {
    let unknown = ask(&reviews(&format!("  - match: null\n{}", to("v9"))), &[]);
    assert_eq!(unknown["response"], json!({"code": 503, "flag": "NC"}));
    let rule = "---\napiVersion: networking.istio.io/v1alpha3\nkind: DestinationRule\nmetadata: {name: more}\nspec: {host: \
                espresso-shop-reviews-svc, subsets: [{name: v9, labels: {version: v9}}]}\n";
    let empty = ask(&(reviews(&format!("  - match: null\n{}", to("v9"))) + rule), &[]);
    assert_eq!(empty["response"], json!({"code": 503, "flag": "UH"}));
}

#[test]
fn tls_is_what_is_really_sent() {
    let policy = |spec: &str| {
        format!(
            "---\napiVersion: authentication.istio.io/v1alpha1\nkind: Policy\nmetadata: {{name: default}}\nspec: {spec}\n"
        )
    };
    let rule = |mode: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1alpha3\nkind: DestinationRule\nmetadata: {{name: tls}}\nspec: {{host: espresso-shop-reviews-svc, trafficPolicy: {{tls: {{mode: {mode}}}}}}}\n"
        )
    };
    for (yaml, want) in [
        (policy("{peers: [{mtls: {mode: PERMISSIVE}}]}"), "mtls"),
        (policy("{peers: []}"), "plaintext"),
        (rule("DISABLE"), "plaintext"),
        (rule("ISTIO_MUTUAL"), "mtls"),
        (rule("SIMPLE"), "simple"),
    ] {
        assert_eq!(ask(&yaml, &[])["tls"], json!(want), "{yaml}");
    }
}

#[test]
fn a_gateway_takes_its_own_routes_and_not_the_meshs() {
    let gateway = "---\napiVersion: networking.istio.io/v1alpha3\nkind: Gateway\nmetadata:\n  name: espresso-shop-gateway\nspec:\n  \
                   selector:\n    istio: ingressgateway\n  servers:\n  - port:\n      number: 80\n      name: http\n      protocol: \
                   HTTP\n    hosts:\n    - \"*\"\n---\napiVersion: networking.istio.io/v1alpha3\nkind: VirtualService\nmetadata:\n  \
                   name: espresso-shop\nspec:\n  hosts:\n  - \"*\"\n  gateways:\n  - espresso-shop-gateway\n  http:\n  - match:\n    \
                   route:\n    - destination:\n        host: espresso-shop-web-svc\n        port:\n          number: 8090\n";
    let sender = Sender::Gateway("default".to_owned(), "espresso-shop-gateway".to_owned());
    let request = Request::parse("GET", "http://localhost:8080/", &[]).expect("a request");
    let answer = explain(model(&(shop() + gateway)), &sender, &request).expect("an answer");
    assert_eq!((answer.virtual_service.as_deref(), answer.rule), (Some("default/espresso-shop"), Some(0)));
    assert_eq!(answer.destinations[0].endpoints, ["10.1.0.1:80"]);
    let alone = gateway.split("---\n").nth(1).expect("the gateway");
    let bare = explain(model(&(shop() + "---\n" + alone)), &sender, &request);
    let bare = bare.expect("an answer");
    assert_eq!(bare.response, Some(Own { code: 404, flag: "NR".to_owned() }));
}

#[test]
fn urls_and_headers_are_read_and_mistakes_named() {
    let request = Request::parse("GET", "reviews:8080?x=1", &["Host: other".to_owned()]).expect("a request");
    assert_eq!((request.path.as_str(), request.facts().authority.as_str()), ("/?x=1", "other"));
    for (url, why) in [("ftp://x", "unknown scheme"), ("http://x:y/", "not a port"), ("http:///", "no host")]
    {
        let error = Request::parse("GET", url, &[]).expect_err(url);
        assert!(error.contains(why), "{url}: {error}");
    }
    assert!(Request::parse("GET", "http://x", &["novalue".to_owned()]).is_err());
}
