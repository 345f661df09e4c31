//! The differential cases: for every first-tier row of Istio's API at least eight (configuration, request) pairs.
//!
//! In: nothing. Out: [`all`]. Kept true: names are unique (each is a service). Not here: what the right answer is; Envoy says that.

use super::{
    Case, Probe,
    upstream::{DEAD, Pod, V1A, V1B, V2},
};

const HEALTHY: &[Pod] = &[V1A, V1B, V2];
const SUBSETS: &str = "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: HOST, namespace: default}
spec:
  host: HOST
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
  - {name: dead, labels: {version: dead}}
  - {name: none, labels: {version: nobody}}
";

/// Every case.
#[must_use]
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(hosts());
    cases.extend(headers());
    cases.extend(uri());
    cases.extend(weights());
    cases.extend(timeouts());
    cases.extend(faults());
    cases.extend(retries());
    cases.extend(subsets());
    cases.extend(limits());
    cases.extend(outliers());
    cases.extend(rewrites());
    cases.extend(header_operations());
    cases.push(policy_checks());
    cases
}

/// Cases of some rows only.
#[must_use]
pub fn of_rows(rows: &[&str]) -> Vec<Case> {
    all().into_iter().filter(|case| rows.contains(&case.row)).collect()
}

/// A VirtualService for `HOST` whose `http` list is `http`, written with two spaces of indent less than its place.
fn virtual_service(http: &str) -> String {
    let http = http.replace('\n', "\n  ");
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: HOST, namespace: \
         default}}\nspec:\n  hosts: [HOST]\n  http:\n  {http}\n"
    )
}

fn to(subset: &str) -> String {
    format!("route: [{{destination: {{host: HOST, subset: {subset}}}}}]")
}

fn case(name: String, row: &'static str, http: &str, probes: Vec<Probe>) -> Case {
    Case { name, row, yaml: format!("{SUBSETS}{}", virtual_service(http)), pods: HEALTHY, probes }
}

fn hosts() -> Vec<Case> {
    let spellings = ["HOST", "HOST.default", "HOST.default.svc", "HOST.default.svc.cluster.local"];
    let plain = || vec![Probe::get("/"), Probe::get("/a/b?c=d"), Probe::get("/").method("POST")];
    let mut cases: Vec<Case> = spellings
        .iter()
        .enumerate()
        .map(|(i, host)| {
            let yaml = format!(
                "{SUBSETS}---\napiVersion: networking.istio.io/v1alpha3\nkind: VirtualService\nmetadata: {{name: HOST, \
                 namespace: default}}\nspec:\n  hosts: [{host}]\n  http:\n  - {}\n",
                to("v2")
            );
            // `HOST.default` and `HOST.default.svc` are no names of the service in Istio: nothing is routed, so chance decides.
            let probes = if (1..=2).contains(&i) { vec![Probe::get("/").times(60, 4)] } else { plain() };
            Case { name: format!("hosts-{i}"), row: "hosts", yaml, pods: HEALTHY, probes }
        })
        .collect();
    cases.push(Case {
        name: "hosts-plain".into(),
        row: "hosts",
        yaml: String::new(),
        pods: HEALTHY,
        probes: plain(),
    });
    let empty =
        Case { name: "hosts-empty".into(), row: "hosts", yaml: String::new(), pods: &[], probes: plain() };
    cases.push(empty);
    let dead =
        Case { name: "hosts-dead".into(), row: "hosts", yaml: String::new(), pods: &[DEAD], probes: plain() };
    cases.push(dead);
    cases
}

fn headers() -> Vec<Case> {
    // (kind of match, pattern, values to try)
    let matches: [(&str, &str, &[&str]); 7] = [
        ("exact", "Administrator", &["Administrator", "administrator", "Administrator2", ""]),
        ("prefix", "Admin", &["Administrator", "Admin", "admin", "xAdmin"]),
        ("regex", ".*Firefox.*", &["Mozilla/5.0 Firefox/1", "Firefox", "firefox", "Chrome"]),
        ("regex", "v[0-9]+", &["v1", "v12", "xv1", "v1x"]),
        ("regex", "a|b", &["a", "b", "ab", "c"]),
        ("exact", "a,b", &["a,b", "a", "b", "a, b"]),
        ("prefix", "1", &["1", "10", "01", "1 1"]),
    ];
    let mut cases = Vec::new();
    for (i, (kind, pattern, values)) in matches.iter().enumerate() {
        let http = format!(
            "- match: [{{headers: {{UserRole: {{{kind}: \"{pattern}\"}}}}}}]\n  {}\n- {}",
            to("v2"),
            to("v1")
        );
        let mut probes: Vec<Probe> = values.iter().map(|v| Probe::get("/").header("userrole", v)).collect();
        probes.push(Probe::get("/").header("USERROLE", values[0]));
        probes.push(Probe::get("/"));
        probes.push(Probe::get("/").header("userrole", values[0]).header("userrole", "other"));
        cases.push(case(format!("headers-{i}"), "match.headers", &http, probes));
    }
    let present = format!("- match: [{{headers: {{x-flag: {{}}}}}}]\n  {}\n- {}", to("v2"), to("v1"));
    let asked =
        vec![Probe::get("/").header("x-flag", "1"), Probe::get("/").header("x-flag", ""), Probe::get("/")];
    cases.push(case("headers-present".into(), "match.headers", &present, asked));
    let both = format!(
        "- match:\n  - headers: {{x-a: {{exact: '1'}}, x-b: {{exact: '2'}}}}\n  - headers: {{x-c: {{exact: \
         '3'}}}}\n  {}\n- {}",
        to("v2"),
        to("v1")
    );
    let asked = vec![
        Probe::get("/").header("x-a", "1"),
        Probe::get("/").header("x-a", "1").header("x-b", "2"),
        Probe::get("/").header("x-c", "3"),
        Probe::get("/").header("x-b", "2").header("x-c", "4"),
    ];
    cases.push(case("headers-and-or".into(), "match.headers", &both, asked));
    let without = format!(
        "- match: [{{withoutHeaders: {{x-skip: {{exact: 'yes'}}}}}}]\n  {}\n- {}",
        to("v2"),
        to("v1")
    );
    let asked = vec![
        Probe::get("/"),
        Probe::get("/").header("x-skip", "yes"),
        Probe::get("/").header("x-skip", "no"),
    ];
    cases.push(case("headers-without".into(), "match.headers", &without, asked));
    cases
}

fn uri() -> Vec<Case> {
    let matches: [(&str, &[&str]); 8] = [
        ("uri: {exact: /a/b}", &["/a/b", "/a/b/", "/a/b?x=1", "/A/b", "/a"]),
        ("uri: {prefix: /foo}", &["/foo", "/foobar", "/foo/bar", "/fo", "/Foo"]),
        ("uri: {prefix: /foo}, ignoreUriCase: true", &["/FOO", "/fOobar", "/fo"]),
        ("uri: {regex: '/v[0-9]+/.*'}", &["/v1/x", "/v1/", "/v1", "/x/v1/x", "/v10/?q=/"]),
        ("method: {exact: POST}", &["/"]),
        (
            "queryParams: {version: {exact: '2'}}",
            &["/?version=2", "/?version=22", "/", "/?a=1&version=2", "/?version="],
        ),
        ("queryParams: {version: {regex: '[0-9]+'}}", &["/?version=2", "/?version=2x", "/?version"]),
        ("authority: {prefix: uri-}", &["/", "/x"]),
    ];
    let mut cases = Vec::new();
    for (i, (condition, paths)) in matches.iter().enumerate() {
        let http = format!("- match: [{{{condition}}}]\n  {}\n- {}", to("v2"), to("v1"));
        let mut probes: Vec<Probe> = paths.iter().map(|p| Probe::get(p)).collect();
        probes.push(Probe::get(paths[0]).method("POST"));
        cases.push(case(format!("uri-{i}"), "match.uri", &http, probes));
    }
    let nothing_else = format!("- match: [{{uri: {{prefix: /only}}}}]\n  {}", to("v1"));
    let asked = ["/only", "/only/x", "/other", "/"].map(Probe::get).to_vec();
    cases.push(case("uri-no-route".into(), "match.uri", &nothing_else, asked));
    cases
}

fn weights() -> Vec<Case> {
    let splits: [(u32, u32); 9] =
        [(80, 20), (50, 50), (100, 0), (0, 100), (99, 1), (1, 3), (30, 70), (1, 1), (200, 50)];
    splits
        .iter()
        .enumerate()
        .map(|(i, (one, two))| {
            let http = format!(
                "- route:\n  - {{destination: {{host: HOST, subset: v1}}, weight: {one}}}\n  - {{destination: {{host: \
                 HOST, subset: v2}}, weight: {two}}}"
            );
            let probes = vec![Probe::get("/").times(200, 8)];
            case(format!("weights-{i}"), "route.weight", &http, probes)
        })
        .collect()
}

fn timeouts() -> Vec<Case> {
    let limits = ["0.3s", "500ms", "1s", "0s", "0.25s"];
    let mut cases: Vec<Case> = limits
        .iter()
        .enumerate()
        .map(|(i, limit)| {
            let http = format!("- {}\n  timeout: {limit}", to("v1"));
            let probes = ["/", "/delay/100", "/delay/700", "/delay/1300"].map(Probe::get).to_vec();
            case(format!("timeout-{i}"), "timeout", &http, probes)
        })
        .collect();
    let none = format!("- {}", to("v1"));
    cases.push(case("timeout-none".into(), "timeout", &none, vec![Probe::get("/delay/1500")]));
    cases
}

fn faults() -> Vec<Case> {
    let faults = [
        "abort: {httpStatus: 500, percentage: {value: 100}}",
        "abort: {httpStatus: 503, percentage: {value: 100}}",
        "abort: {httpStatus: 418, percent: 100}",
        "abort: {httpStatus: 400, percentage: {value: 0}}",
        "abort: {httpStatus: 500}",
        "delay: {fixedDelay: 300ms, percentage: {value: 100}}",
        "delay: {fixedDelay: 0.2s, percent: 100}",
        "delay: {fixedDelay: 1s, percentage: {value: 0}}",
        "delay: {fixedDelay: 200ms, percentage: {value: 100}}, abort: {httpStatus: 404, percentage: {value: 100}}",
    ];
    let mut cases: Vec<Case> = faults
        .iter()
        .enumerate()
        .map(|(i, fault)| {
            let http = format!("- fault: {{{fault}}}\n  {}", to("v1"));
            let probes = vec![Probe::get("/"), Probe::get("/x").method("POST"), Probe::get("/status/404")];
            case(format!("fault-{i}"), "fault", &http, probes)
        })
        .collect();
    let half = format!("- fault: {{abort: {{httpStatus: 500, percentage: {{value: 50}}}}}}\n  {}", to("v1"));
    cases.push(case("fault-half".into(), "fault", &half, vec![Probe::get("/").times(200, 8)]));
    let matched = format!(
        "- match: [{{headers: {{x-test: {{exact: 'on'}}}}}}]\n  fault: {{abort: {{httpStatus: 555, percentage: {{value: \
         100}}}}}}\n  {}\n- {}",
        to("v1"),
        to("v1")
    );
    let asked = vec![Probe::get("/"), Probe::get("/").header("x-test", "on")];
    cases.push(case("fault-matched".into(), "fault", &matched, asked));
    let capped = format!(
        "- fault: {{delay: {{fixedDelay: 600ms, percentage: {{value: 100}}}}}}\n  timeout: 0.3s\n  {}",
        to("v1")
    );
    cases.push(case(
        "fault-delay-timeout".into(),
        "fault",
        &capped,
        vec![Probe::get("/"), Probe::get("/delay/500")],
    ));
    cases
}

fn retries() -> Vec<Case> {
    let policies = [
        "",
        "retries: {}",
        "retries: {attempts: 0}",
        "retries: {attempts: 1, retryOn: 5xx}",
        "retries: {attempts: 3, retryOn: 5xx}",
        "retries: {attempts: 3, retryOn: 'gateway-error'}",
        "retries: {attempts: 2, retryOn: 'retriable-status-codes,418'}",
        "retries: {attempts: 2, retryOn: 'connect-failure,reset'}",
        "retries: {attempts: 2, retryOn: 'retriable-4xx'}",
        "retries: {attempts: 2, perTryTimeout: 0.3s, retryOn: 5xx}",
        "retries: {attempts: 3}",
    ];
    policies
        .iter()
        .enumerate()
        .map(|(i, policy)| {
            let http = format!("- {}\n  {policy}", to("v1"));
            let paths =
                ["/fail/1/503", "/fail/2/500", "/fail/5/502", "/fail/1/418", "/fail/1/409", "/reset/1"];
            let mut probes: Vec<Probe> = paths.iter().map(|p| Probe::get(p)).collect();
            probes.push(Probe::get("/fail/1/503").method("POST"));
            if policy.contains("perTry") {
                probes.push(Probe::get("/slow/1/900"));
                probes.push(Probe::get("/slow/9/900"));
            }
            case(format!("retries-{i}"), "retries", &http, probes)
        })
        .collect()
}

fn subsets() -> Vec<Case> {
    let mut cases = Vec::new();
    for (i, subset) in ["v1", "v2", "none", "unknown"].iter().enumerate() {
        let probes = vec![Probe::get("/"), Probe::get("/status/201"), Probe::get("/").method("DELETE")];
        cases.push(case(format!("subset-{i}"), "subsets", &format!("- {}", to(subset)), probes));
    }
    let mut dead = case("subset-dead".into(), "subsets", &format!("- {}", to("dead")), vec![Probe::get("/")]);
    dead.pods = &[V1A, DEAD];
    cases.push(dead);
    let elsewhere = "- route: [{destination: {host: nowhere.example}}]";
    cases.push(case("subset-no-host".into(), "subsets", elsewhere, vec![Probe::get("/"), Probe::get("/x")]));
    let mixed = format!("- match: [{{uri: {{prefix: /bad}}}}]\n  {}\n- {}", to("unknown"), to("v1"));
    cases.push(case("subset-mixed".into(), "subsets", &mixed, vec![Probe::get("/"), Probe::get("/bad")]));
    cases
}

/// A DestinationRule with a traffic policy for the whole host, and no VirtualService.
fn policy(name: String, row: &'static str, policy: &str, pods: &'static [Pod], probes: Vec<Probe>) -> Case {
    let yaml = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: HOST, namespace: \
         default}}\nspec:\n  host: HOST\n  trafficPolicy:\n    {policy}\n"
    );
    Case { name, row, yaml, pods, probes }
}

fn limits() -> Vec<Case> {
    let policies = [
        "connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}",
        "connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1, maxRequestsPerConnection: 1}}",
        "connectionPool: {tcp: {maxConnections: 2}, http: {http1MaxPendingRequests: 1}}",
        "connectionPool: {tcp: {maxConnections: 100}}",
    ];
    let mut cases = Vec::new();
    for (i, text) in policies.iter().enumerate() {
        let probes =
            vec![Probe::get("/"), Probe::get("/delay/300").times(6, 6), Probe::get("/").method("PUT")];
        cases.push(policy(format!("limits-{i}"), "connectionPool", text, &[V1A], probes));
    }
    cases
}

fn outliers() -> Vec<Case> {
    let eject = "outlierDetection: {consecutiveErrors: 2, interval: 30s, baseEjectionTime: 3m, maxEjectionPercent: 100}";
    let fives = "outlierDetection: {consecutive5xxErrors: 2, interval: 30s, baseEjectionTime: 3m, maxEjectionPercent: 100}";
    let gateway = "outlierDetection: {consecutiveGatewayErrors: 2, consecutive5xxErrors: 0, interval: 30s, \
                   baseEjectionTime: 3m, maxEjectionPercent: 100}";
    let three = |path: &str| vec![Probe::get(path), Probe::get(path), Probe::get("/"), Probe::get("/x")];
    vec![
        policy("outlier-legacy-502".into(), "outlierDetection", eject, &[V2], three("/status/502")),
        policy("outlier-legacy-500".into(), "outlierDetection", eject, &[V2], three("/status/500")),
        policy("outlier-5xx-500".into(), "outlierDetection", fives, &[V2], three("/status/500")),
        policy("outlier-5xx-404".into(), "outlierDetection", fives, &[V2], three("/status/404")),
        policy("outlier-gateway-500".into(), "outlierDetection", gateway, &[V2], three("/status/500")),
        policy("outlier-gateway-504".into(), "outlierDetection", gateway, &[V2], three("/status/504")),
    ]
}

fn rewrites() -> Vec<Case> {
    let actions = [
        format!("- match: [{{uri: {{prefix: /old}}}}]\n  rewrite: {{uri: /new}}\n  {}", to("v1")),
        format!("- match: [{{uri: {{prefix: /old/}}}}]\n  rewrite: {{uri: /}}\n  {}", to("v1")),
        format!(
            "- match: [{{uri: {{exact: /old}}}}]\n  rewrite: {{uri: /new, authority: other.example}}\n  {}",
            to("v1")
        ),
        "- match: [{uri: {prefix: /old}}]\n  redirect: {uri: /new}".to_owned(),
        "- match: [{uri: {prefix: /old}}]\n  redirect: {authority: other.example, redirectCode: 302}"
            .to_owned(),
        "- match: [{uri: {prefix: /old}}]\n  redirect: {scheme: https, redirectCode: 308}".to_owned(),
        "- match: [{uri: {prefix: /old}}]\n  directResponse: {status: 418, body: {string: teapot}}"
            .to_owned(),
    ];
    actions
        .iter()
        .enumerate()
        .map(|(i, http)| {
            let probes = ["/old", "/old/x?y=z", "/older"].map(Probe::get).to_vec();
            case(format!("rewrite-{i}"), "rewrite/redirect", http, probes)
        })
        .collect()
}

fn header_operations() -> Vec<Case> {
    let operations = [
        "headers: {request: {set: {x-set: new}, add: {x-add: one}, remove: [x-gone]}}",
        "headers: {request: {set: {x-set: new}}, response: {add: {x-resp: '1'}}}",
        "headers: {request: {remove: [user-agent, x-gone]}}",
        "headers: {request: {set: {Host: other.example}}}",
    ];
    operations
        .iter()
        .enumerate()
        .map(|(i, operation)| {
            let probes = vec![
                Probe::get("/"),
                Probe::get("/").header("x-set", "old").header("x-add", "zero").header("x-gone", "1"),
                Probe::get("/").header("user-agent", "probe"),
            ];
            case(format!("headerops-{i}"), "headers", &format!("- {}\n  {operation}", to("v1")), probes)
        })
        .collect()
}

/// Mixer asked by the proxy in front of an application: a denier that stops requests with `x-deny: yes`, and `/quiet` whoever asks.
fn policy_checks() -> Case {
    let yaml = "---\napiVersion: config.istio.io/v1alpha2\nkind: denier\nmetadata: {name: deny, namespace: default}\nspec: \
                {status: {code: 7, message: Not allowed}}\n---\napiVersion: config.istio.io/v1alpha2\nkind: \
                checknothing\nmetadata: {name: ask, namespace: default}\n---\napiVersion: config.istio.io/v1alpha2\nkind: \
                rule\nmetadata: {name: deny, namespace: default}\nspec:\n  match: destination.labels[\"role\"] == \"guarded\" && \
                (request.headers[\"x-deny\"] == \"yes\" || request.path == \"/quiet\")\n  actions: [{handler: deny.denier, \
                instances: [ask.checknothing]}]\n";
    let plain = ["/", "/a?b=c", "/quiet", "/quiet/not", "/status/418"].map(|path| Probe::get(path).inbound());
    let mut probes = plain.to_vec();
    for (method, deny) in [("GET", "yes"), ("POST", "yes"), ("DELETE", "yes"), ("POST", "no"), ("GET", "Yes")]
    {
        probes.push(Probe::get("/").method(method).header("x-deny", deny).inbound());
    }
    Case { name: "policy-checks".into(), row: "policy", yaml: yaml.to_owned(), pods: HEALTHY, probes }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn there_are_three_hundred_pairs_and_eight_in_every_row() {
        let cases = super::all();
        let names: BTreeSet<_> = cases.iter().map(|c| &c.name).collect();
        assert_eq!(names.len(), cases.len(), "names are unique");
        let mut rows: BTreeMap<&str, usize> = BTreeMap::new();
        for case in &cases {
            *rows.entry(case.row).or_default() += case.probes.len();
        }
        let pairs: usize = rows.values().sum();
        assert!(pairs >= 300, "{pairs} pairs");
        for (row, pairs) in rows {
            assert!(pairs >= 8, "row {row} has {pairs} pairs");
        }
    }
}
