//! Objects to traffic, field by field, asserted by what the model of traffic then says.

use super::*;
use crate::model::{
    scope::{Capture, Proxy, Role},
    tests::{POD, model, pod, service, sidecar},
};
use mesh_traffic::{
    cluster::{Balance, Discovery, Protocol},
    filter::{AbortWith, FilterConfig},
    listener::{Terminal, Transport},
    retry::{RetryOn, RetryPolicy},
    route::{Action, Forward, HeaderOp, PathRewrite, Route},
};
use std::time::Duration;

const HOST: &str = "web.default.svc.cluster.local";

fn base() -> String {
    service("web", "{name: http, port: 80, targetPort: 8080}")
        + &pod("web-1", "web", "v1", POD)
        + &pod("web-2", "web", "v2", "10.1.0.2")
        + &pod("c", "c", "v1", "10.1.0.3")
}

fn rule(spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1alpha3\nkind: DestinationRule\nmetadata: {{name: web}}\nspec:\n  host: web\n  {spec}\n"
    )
}

fn subsets() -> String {
    rule("subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]")
}

fn vs(http: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1alpha3\nkind: VirtualService\nmetadata: {{name: web}}\nspec:\n  hosts: \
         [web]\n  http:\n  {}\n",
        http.replace('\n', "\n  ")
    )
}

const TO: &str = "route: [{destination: {host: web, subset: v1}}]";

struct Made1 {
    part: Part,
    problems: Vec<Problem>,
}

fn made(yaml: &str) -> Made1 {
    let translator = Translator::new(model(yaml));
    let proxy = sidecar(&translator.model, "c");
    let part = translator.whole(&proxy);
    Made1 { part, problems: translator.problems() }
}

impl Made1 {
    fn routes(&self) -> Vec<Arc<Route>> {
        let table = &self.part.routes["80"].value;
        let host = table.virtual_hosts.iter().find(|h| *h.name == format!("{HOST}:80"));
        host.expect("the service has a virtual host").routes.clone()
    }

    fn forward(&self) -> Forward {
        match &self.routes()[0].action {
            Action::Forward(forward) => (**forward).clone(),
            other => panic!("{other:?} does not forward"),
        }
    }

    fn cluster(&self, subset: &str) -> &Cluster {
        &self.part.clusters[format!("outbound|80|{subset}|{HOST}").as_str()].value
    }

    fn addresses(&self, subset: &str) -> Vec<String> {
        let all = &self.part.endpoints[format!("outbound|80|{subset}|{HOST}").as_str()].value;
        all.iter().map(|e| e.address.to_string()).collect()
    }
}

#[test]
fn a_service_alone_has_a_cluster_endpoints_and_a_route_with_istios_names_and_defaults() {
    let made = made(&base());
    let forward = made.forward();
    assert_eq!(forward.target, mesh_traffic::route::Target::Cluster(format!("outbound|80||{HOST}").into()));
    assert_eq!((forward.timeout, forward.retry), (None, Some(RetryPolicy::istio_default())));
    assert_eq!(made.addresses(""), ["10.1.0.1:8080", "10.1.0.2:8080"]);
    assert_eq!(&*made.routes()[0].name, "default");
    let host = &made.part.routes["80"].value.virtual_hosts[0];
    for domain in [HOST, "web", "web.default", "web.default.svc", "web:80", "10.0.0.1", "10.0.0.1:80"] {
        assert!(host.domains.iter().any(|d| &**d == domain), "{domain} in {:?}", host.domains);
    }
    let names: Vec<_> = made.part.listeners.keys().map(|n| &**n).collect();
    assert_eq!(names, ["0.0.0.0_80", "virtualInbound", "virtualOutbound"]);
    for name in ["PassthroughCluster", "BlackHoleCluster", "InboundPassthroughCluster"] {
        assert!(made.part.clusters.contains_key(name), "{name}");
    }
}

#[test]
fn subsets_take_their_labels_and_unknown_ones_spoil_only_their_route() {
    let made = made(
        &(base()
            + &subsets()
            + &vs(
                "- match: [{uri: {prefix: /bad}}]\n  route: [{destination: {host: web, subset: nope}}]\n- match: [{uri: {prefix: \
         /gone}}]\n  route: [{destination: {host: nowhere}}]\n- route: [{destination: {host: web, subset: v2}}]",
            )),
    );
    assert_eq!(made.addresses("v1"), ["10.1.0.1:8080"]);
    assert_eq!(made.addresses("v2"), ["10.1.0.2:8080"]);
    assert_eq!(made.routes().len(), 3);
    let fields: Vec<_> = made.problems.iter().map(|p| p.field.as_str()).collect();
    assert_eq!(
        fields,
        ["spec.http[0].route[0].destination.subset", "spec.http[1].route[0].destination.host"]
    );
    assert_eq!(&*made.problems[0].object, "VirtualService default/web");
}

#[test]
fn weights_are_relative_zero_is_dropped_and_one_destination_needs_none() {
    for (routes, want) in [
        (
            "{destination: {host: web, subset: v1}, weight: 80}, {destination: {host: web, subset: v2}, weight: 20}",
            vec![80, 20],
        ),
        (
            "{destination: {host: web, subset: v1}, weight: 0}, {destination: {host: web, subset: v2}, weight: 7}",
            vec![1],
        ),
        ("{destination: {host: web, subset: v1}, weight: 0}", vec![1]),
        (
            "{destination: {host: web, subset: v1}, weight: 1}, {destination: {host: web, subset: v2}, weight: 3}",
            vec![1, 3],
        ),
    ] {
        let made = made(&(base() + &subsets() + &vs(&format!("- route: [{routes}]"))));
        let weights: Vec<_> = made.forward().target.arms().map(|(_, w)| w).collect();
        assert_eq!(weights, want, "{routes}");
    }
}

#[test]
fn timeouts_faults_and_retries_mean_what_istio_says() {
    for (rest, timeout) in [("", None), ("timeout: 0.5s", Some(500)), ("timeout: 0s", None)] {
        let made = made(&(base() + &subsets() + &vs(&format!("- {TO}\n  {rest}"))));
        assert_eq!(made.forward().timeout, timeout.map(Duration::from_millis), "{rest}");
    }
    for (fault, delay, abort) in [
        ("delay: {percent: 100, fixedDelay: 10s}", Some((10, 1_000_000)), None),
        ("delay: {fixedDelay: 1s}", Some((1, 0)), None),
        ("abort: {percent: 100, httpStatus: 500}", None, Some((AbortWith::Http(500), 1_000_000))),
        (
            "abort: {percentage: {value: 0.5}, percent: 100, httpStatus: 418}",
            None,
            Some((AbortWith::Http(418), 5_000)),
        ),
        (
            "abort: {percentage: {value: 100}, grpcStatus: UNAVAILABLE}",
            None,
            Some((AbortWith::Grpc(14), 1_000_000)),
        ),
    ] {
        let made = made(&(base() + &subsets() + &vs(&format!("- fault: {{{fault}}}\n  {TO}"))));
        let found = made.routes()[0].filters.fault.clone().expect("a fault");
        assert_eq!(found.delay.map(|d| (d.fixed.as_secs(), d.per_million)), delay, "{fault}");
        assert_eq!(found.abort.map(|a| (a.with, a.per_million)), abort, "{fault}");
    }
    for (retries, want) in [
        ("", Some((2, "connect-failure,refused-stream,cancelled,unavailable", vec![], None))),
        ("retries: {}", None),
        ("retries: {attempts: 0}", None),
        (
            "retries: {attempts: 3, retryOn: '5xx,418', perTryTimeout: 2s}",
            Some((3, "5xx,retriable-status-codes", vec![418], Some(2))),
        ),
        (
            "retries: {attempts: 4}",
            Some((4, "connect-failure,refused-stream,cancelled,unavailable", vec![], None)),
        ),
    ] {
        let made = made(&(base() + &subsets() + &vs(&format!("- {TO}\n  {retries}"))));
        let found =
            made.forward().retry.map(|r| (r.attempts, r.on.words(), r.codes, r.per_try.map(|d| d.as_secs())));
        let want = want.map(|(n, on, codes, per_try)| (n, on.to_owned(), codes, per_try));
        assert_eq!(found, want, "{retries}");
    }
}

#[test]
fn matches_are_alternatives_in_file_order_and_a_catch_all_ends_the_list() {
    let made = made(
        &(base()
            + &subsets()
            + &vs(&format!(
                "- match: [{{headers: {{User-Agent: {{regex: '.*Firefox.*'}}}}}}, {{uri: {{exact: /x}}, method: {{exact: PUT}}}}]\n  \
         {TO}\n- {TO}\n- match: [{{uri: {{prefix: /never}}}}]\n  {TO}",
            ))),
    );
    let routes = made.routes();
    assert_eq!(routes.len(), 3, "two matches, then the catch-all; nothing behind it can be reached");
    assert_eq!(&*routes[0].matcher.headers[0].name, "user-agent");
    assert_eq!(&*routes[1].matcher.headers[0].name, ":method");
    assert!(routes[2].matcher.is_catch_all());
}

#[test]
fn conditions_on_the_client_are_settled_here() {
    for (condition, counts) in [
        ("sourceLabels: {app: c}", true),
        ("sourceLabels: {app: other}", false),
        ("sourceNamespace: default", true),
        ("sourceNamespace: other", false),
        ("port: 80", true),
        ("port: 81", false),
        ("gateways: [mesh]", true),
        ("gateways: [other]", false),
    ] {
        let made = made(&(base() + &subsets() + &vs(&format!("- match: [{{{condition}}}]\n  {TO}"))));
        assert_eq!(made.routes().len(), usize::from(counts), "{condition}");
    }
}

#[test]
fn headers_rewrites_redirects_and_direct_responses() {
    let made = made(
        &(base()
            + &subsets()
            + &vs(&format!(
                "- match: [{{uri: {{prefix: /a}}}}]\n  headers: {{request: {{set: {{X-Set: s, Host: other.example}}, add: {{x-add: \
         a}}, remove: [x-gone]}}, response: {{set: {{y: z}}}}}}\n  rewrite: {{uri: /b}}\n  {TO}\n- match: [{{uri: {{prefix: \
         /r}}}}]\n  redirect: {{uri: /n, redirectCode: 302}}\n- directResponse: {{status: 418, body: {{string: tea}}}}"
            ))),
    );
    let routes = made.routes();
    let Action::Forward(forward) = &routes[0].action else { panic!("the first forwards") };
    assert_eq!(forward.host_rewrite.as_deref(), Some("other.example"));
    assert_eq!(forward.path_rewrite, Some(PathRewrite::Prefix("/b".into())));
    assert_eq!(
        routes[0].headers.request,
        [
            HeaderOp::Remove("x-gone".into()),
            HeaderOp::Set("x-set".into(), "s".into()),
            HeaderOp::Add("x-add".into(), "a".into())
        ]
    );
    assert!(matches!(&routes[1].action, Action::Redirect(r) if r.status == 302));
    assert!(matches!(&routes[2].action, Action::Direct(d) if d.status == 418 && &*d.body == b"tea"));
}

#[test]
fn pools_limit_and_absent_limits_are_unlimited() {
    let made = made(
        &(base()
            + &rule(
                "trafficPolicy: {connectionPool: {tcp: {maxConnections: 1, connectTimeout: 3s}, http: {http1MaxPendingRequests: 1, \
         maxRequestsPerConnection: 1}}}",
            )),
    );
    let cluster = made.cluster("");
    assert_eq!((cluster.limits.connections, cluster.limits.pending), (Some(1), Some(1)));
    assert_eq!((cluster.limits.requests, cluster.limits.retries), (None, None));
    assert_eq!((cluster.max_requests_per_connection, cluster.connect_timeout.as_secs()), (1, 3));
}

#[test]
fn outlier_detection_old_and_new() {
    for (spec, fives, gateway) in [
        ("consecutiveErrors: 2", None, Some(2)),
        ("consecutive5xxErrors: 3", Some(3), None),
        ("consecutiveGatewayErrors: 4, consecutive5xxErrors: 0", None, Some(4)),
        ("interval: 30s", Some(5), None),
    ] {
        let made = made(
            &(base()
                + &rule(&format!(
                    "trafficPolicy: {{outlierDetection: {{{spec}, baseEjectionTime: 3m, maxEjectionPercent: 100}}}}"
                ))),
        );
        let cluster = made.cluster("");
        let found = cluster.outlier.clone().expect("written");
        assert_eq!((found.consecutive_5xx, found.consecutive_gateway), (fives, gateway), "{spec}");
        assert_eq!((found.base_ejection.as_secs(), found.max_percent, cluster.panic_percent), (180, 100, 0));
    }
}

#[test]
fn balancers_and_hash_keys() {
    for (spec, want, hashes) in [
        ("simple: ROUND_ROBIN", Balance::RoundRobin, 0),
        ("simple: LEAST_CONN", Balance::LeastRequest, 0),
        ("simple: RANDOM", Balance::Random, 0),
        ("consistentHash: {httpHeaderName: X-User}", Balance::RingHash { minimum: 1024 }, 1),
        ("consistentHash: {useSourceIp: true, maglev: {tableSize: 5}}", Balance::Maglev { size: 5 }, 1),
    ] {
        let made = made(&(base() + &rule(&format!("trafficPolicy: {{loadBalancer: {{{spec}}}}}"))));
        assert_eq!(made.cluster("").balance, want, "{spec}");
        assert_eq!(made.forward().hash.len(), hashes, "{spec}");
        assert_eq!(made.forward().retry.is_some_and(|r| r.avoid_previous), hashes == 0, "{spec}");
    }
}

#[test]
fn client_tls_by_rule_and_automatic_by_endpoint() {
    for (tls, default, matches) in [
        ("", None, 2),
        ("tls: {mode: DISABLE}", None, 0),
        ("tls: {mode: SIMPLE, sni: x}", Some("simple"), 0),
        ("tls: {mode: MUTUAL, clientCertificate: /c, privateKey: /k}", Some("mutual"), 0),
        ("tls: {mode: ISTIO_MUTUAL}", Some("mtls"), 0),
    ] {
        let made = made(&(base() + &rule(&format!("trafficPolicy: {{{tls}}}"))));
        let found = &made.cluster("").tls;
        assert_eq!(found.default.as_ref().map(|t| t.mode()), default, "{tls}");
        assert_eq!(found.matches.len(), matches, "{tls}");
    }
    let made = made(&base());
    let tls = made.cluster("").tls.matches[0].tls.clone().expect("mutual TLS");
    assert_eq!(tls.sni.as_deref(), Some(&*format!("outbound_.80_._.{HOST}")));
    assert_eq!(tls.validation.names.len(), 1, "the service account of the pods");
    let endpoints = &made.part.endpoints[format!("outbound|80||{HOST}").as_str()].value;
    assert!(endpoints.iter().all(|e| !e.tls_labels.is_empty()));
}

/// Mode, then chains of a declared HTTP port in virtualInbound: (TLS ended, transport).
#[test]
fn inbound_chains_follow_the_mode() {
    for (mode, want) in [
        ("PERMISSIVE", vec![(true, Some(Transport::Tls)), (false, Some(Transport::Raw))]),
        ("STRICT", vec![(true, Some(Transport::Tls))]),
        ("DISABLE", vec![(false, None)]),
    ] {
        let yaml = base()
            + &format!(
                "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: pa}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
            );
        let translator = Translator::new(model(&yaml));
        let part = translator.whole(&sidecar(&translator.model, "web-1"));
        let chains: Vec<_> = part.listeners["virtualInbound"]
            .value
            .chains
            .iter()
            .filter(|c| c.matcher.port == Some(8080))
            .map(|c| (c.tls.is_some(), c.matcher.transport))
            .collect();
        assert_eq!(chains, want, "{mode}");
        assert!(part.clusters.contains_key("inbound|8080||"), "{mode}");
    }
}

fn local(pod: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: {pod}}}\nspec:\n  workloadSelector: \
         {{labels: {{app: {pod}}}}}\n  ingress: [{{port: {{number: 10080, protocol: HTTP, name: http}}, bind: {ip}, \
         defaultEndpoint: 127.0.0.1:7070}}]\n  egress: [{{port: {{number: 15080, protocol: HTTP_PROXY, name: p}}, bind: \
         {ip}, hosts: ['*/*']}}]\n"
    )
}

#[test]
fn without_capture_a_sidecar_opens_its_ports_on_the_pods_address() {
    let yaml = base() + &local("c", "10.1.0.3");
    let translator = Translator::new(model(&yaml));
    let mut proxy = sidecar(&translator.model, "c");
    proxy.capture = Capture::None;
    let part = translator.whole(&proxy);
    assert_eq!(part.listeners.keys().map(|n| &**n).collect::<Vec<_>>(), ["10.1.0.3_10080", "10.1.0.3_15080"]);
    for (name, tunnels) in [("10.1.0.3_10080", false), ("10.1.0.3_15080", true)] {
        let listener = &part.listeners[name].value;
        let connect = listener.managers().any(|m| m.upgrades.iter().any(|upgrade| &**upgrade == "connect"));
        assert_eq!(connect, tunnels, "CONNECT at {name}");
    }
    let inbound = &part.clusters["inbound|10080||"].value;
    let Discovery::Static(endpoints) = &inbound.discovery else { panic!("a fixed endpoint") };
    assert_eq!(endpoints.iter().map(|e| e.address.to_string()).collect::<Vec<_>>(), ["127.0.0.1:7070"]);
    assert_eq!(
        part.clusters[format!("outbound|80||{HOST}").as_str()].value.source_address,
        Some(proxy.address())
    );
    let table = &part.routes["15080"].value;
    let web = table.virtual_hosts.iter().find(|h| *h.name == format!("{HOST}:80")).expect("the service");
    assert!(web.domains.iter().any(|d| &**d == "web:80") && web.domains.iter().any(|d| &**d == "web"));
    assert_eq!(&*table.virtual_hosts.last().expect("the rest").name, "allow_any");
}

#[test]
fn no_domain_stands_twice_in_a_table() {
    let odd = service("web", "{name: http, port: 80}, {name: http-b, port: 81}")
        + "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: twin}\nspec: {hosts: [web.default], \
           ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}\n"
        + "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v}\nspec: {hosts: [web.default, \
           unknown.example], http: [{route: [{destination: {host: web}}]}]}\n"
        + &pod("c", "c", "v1", "10.1.0.3")
        + &local("c", "10.1.0.3");
    let translator = Translator::new(model(&odd));
    let mut proxy = sidecar(&translator.model, "c");
    for capture in [Capture::None, Capture::Redirect] {
        proxy.capture = capture;
        for table in translator.whole(&proxy).routes.into_values() {
            let name = table.value.name.clone();
            mesh_traffic::RouteTable::new(table.value).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
}

const DENIER: &str = "---\napiVersion: config.istio.io/v1alpha2\nkind: rule\nmetadata: {name: r}\nspec: {actions: [{handler: \
                      h.denier, instances: [x.checknothing]}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: mixer, \
                      namespace: istio-system}\nspec: {ports: [{name: grpc-policy, port: 9091}]}\n";

#[test]
fn mixer_is_asked_before_requests_only_where_a_rule_can_apply() {
    for (yaml, asked) in [(base(), false), (base() + DENIER, true)] {
        let translator = Translator::new(model(&yaml));
        let part = translator.whole(&sidecar(&translator.model, "web-1"));
        let listener = &part.listeners["virtualInbound"].value;
        let ask = listener.managers().flat_map(|m| &m.filters).find_map(|f| match &f.config {
            FilterConfig::ExtAuthz(ask) => Some(ask.clone()),
            _ => None,
        });
        assert_eq!(ask.is_some(), asked);
        let Some(ask) = ask else { continue };
        assert_eq!(&*ask.cluster, "outbound|9091||mixer.istio-system.svc.cluster.local");
        assert_eq!((ask.fail_open, ask.status_on_error), (false, 503));
        assert_eq!(part.clusters[&ask.cluster].value.protocol, Protocol::Http2);
        let outbound = &part.listeners["0.0.0.0_80"].value;
        assert!(
            outbound
                .managers()
                .flat_map(|m| &m.filters)
                .all(|f| !matches!(f.config, FilterConfig::ExtAuthz(_)))
        );
    }
}

#[test]
fn a_rule_that_nobody_can_be_asked_about_closes_and_is_reported() {
    let (rule, _) = DENIER.split_once("\n---\napiVersion: v1\n").expect("the rule, then its Service");
    let translator = Translator::new(model(&(base() + rule + "\n")));
    let part = translator.whole(&sidecar(&translator.model, "web-1"));
    let listener = &part.listeners["virtualInbound"].value;
    let asked = listener.managers().flat_map(|m| &m.filters).find_map(|f| match &f.config {
        FilterConfig::ExtAuthz(ask) => Some((ask.cluster.clone(), ask.fail_open, ask.status_on_error)),
        _ => None,
    });
    assert_eq!(asked, Some(("BlackHoleCluster".into(), false, 503)));
    let problems = translator.problems();
    assert!(
        problems.iter().any(|p| p.field == "spec.actions" && p.why.contains("no Service mixer")),
        "{problems:?}"
    );
}

#[test]
fn a_gateway_listens_at_the_target_port_and_merges_services_of_one_host_catch_alls_last() {
    let gateway = "---\napiVersion: v1\nkind: Service\nmetadata: {name: gw, namespace: istio-system}\nspec: {selector: {istio: \
                   gw}, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: \
                   gw-1, namespace: istio-system, labels: {istio: gw}}\nspec: {containers: []}\nstatus: {phase: Running, \
                   podIP: 10.1.0.9}\n---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec: \
                   {selector: {istio: gw}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}\n";
    let bound = |name: &str, http: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1alpha3\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec: {{hosts: \
             ['*'], gateways: [g], http: [{http}]}}\n"
        )
    };
    let to = "route: [{destination: {host: web, port: {number: 80}}}]";
    let yaml = base()
        + gateway
        + &bound("a", &format!("{{match: null, {to}}}"))
        + &bound("b", &format!("{{match: [{{uri: {{prefix: /b}}}}], {to}}}"));
    let translator = Translator::new(model(&yaml));
    let pod = translator.model.workload("istio-system", "gw-1").expect("the gateway");
    let part = translator.whole(&Proxy::for_workload(pod, Role::Router));
    assert_eq!(part.listeners.keys().map(|n| &**n).collect::<Vec<_>>(), ["0.0.0.0_8080"]);
    let hosts = &part.routes["http.8080"].value.virtual_hosts;
    assert_eq!(hosts.iter().map(|h| &*h.name).collect::<Vec<_>>(), ["*:80"]);
    let from: Vec<_> = hosts[0].routes.iter().filter_map(|r| r.source.as_ref()).map(|s| &*s.name).collect();
    assert_eq!(from, ["b", "a"], "the catch-all stands last although it is older");
}

#[test]
fn a_gateways_secret_goes_to_a_verified_proxy_of_its_namespace_only() {
    let yaml = |ns: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: gw-1, namespace: istio-system, labels: {{istio: gw}}}}\nspec: \
             {{containers: []}}\n---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: g}}\nspec: \
             {{selector: {{istio: gw}}, servers: [{{port: {{number: 443, name: https, protocol: HTTPS}}, hosts: [a.example], \
             tls: {{mode: SIMPLE, credentialName: shop}}}}]}}\n---\napiVersion: v1\nkind: Secret\nmetadata: {{name: shop, \
             namespace: {ns}}}\nstringData: {{tls.crt: c, tls.key: k}}\n"
        )
    };
    for (ns, verified, count) in [("istio-system", true, 1), ("istio-system", false, 0), ("default", true, 0)]
    {
        let translator = Translator::new(model(&yaml(ns)));
        let pod = translator.model.workload("istio-system", "gw-1").expect("the gateway");
        let proxy = Proxy { verified, ..Proxy::for_workload(pod, Role::Router) };
        assert_eq!(translator.whole(&proxy).secrets.len(), count, "{ns} {verified}");
    }
}

#[test]
fn a_gateway_listens_everywhere_in_its_pod_and_on_its_own_address_where_pods_share_a_machine() {
    let yaml = |ip: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: gw-1, namespace: istio-system, labels: {{istio: gw}}}}\nspec: {{containers: []}}\n\
             status: {{podIP: '{ip}'}}\n---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: g}}\nspec: \
             {{selector: {{istio: gw}}, servers: [{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: ['*']}}]}}\n"
        )
    };
    for (ip, capture, listens) in [
        ("10.0.0.7", Capture::Redirect, "0.0.0.0_80"),
        ("10.0.0.7", Capture::None, "0.0.0.0_80"),
        ("fd00::7", Capture::None, "::_80"),
        ("127.64.0.7", Capture::None, "127.64.0.7_80"),
    ] {
        let translator = Translator::new(model(&yaml(ip)));
        let pod = translator.model.workload("istio-system", "gw-1").expect("the gateway");
        let part = translator.whole(&Proxy { capture, ..Proxy::for_workload(pod, Role::Router) });
        assert_eq!(part.listeners.keys().map(|n| &**n).collect::<Vec<_>>(), [listens], "{ip} {capture:?}");
    }
}

#[test]
fn a_server_whose_secret_is_missing_does_not_hold_back_its_port() {
    let server = |name: &str, more: &str| {
        format!(
            "{{port: {{number: 443, name: {name}, protocol: HTTPS}}, hosts: [{name}.example], tls: {{{more}}}}}"
        )
    };
    let servers = [
        server("there", "mode: SIMPLE, credentialName: there"),
        server("missing", "mode: SIMPLE, credentialName: missing"),
        server("rootless", "mode: MUTUAL, credentialName: there"),
    ];
    let yaml = format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: gw-1, namespace: istio-system, labels: {{istio: gw}}}}\nspec: {{containers: []}}\n\
         ---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: g}}\nspec: {{selector: {{istio: gw}}, servers: [{}]}}\n\
         ---\napiVersion: v1\nkind: Secret\nmetadata: {{name: there, namespace: istio-system}}\nstringData: {{tls.crt: c, tls.key: k}}\n",
        servers.join(", ")
    );
    let translator = Translator::new(model(&yaml));
    let pod = translator.model.workload("istio-system", "gw-1").expect("the gateway");
    let part = translator.whole(&Proxy { verified: true, ..Proxy::for_workload(pod, Role::Router) });
    let chains = &part.listeners["0.0.0.0_443"].value.chains;
    assert_eq!(chains.iter().map(|c| &*c.name).collect::<Vec<_>>(), ["0.0.0.0_443-there"]);
    let problems: String = translator.problems().iter().map(|p| format!("{} {}\n", p.field, p.why)).collect();
    assert!(
        problems.contains("no Secret istio-system/missing") && problems.contains("no `ca.crt`"),
        "{problems}"
    );
}

#[test]
fn registry_only_refuses_what_is_not_known() {
    let yaml = base()
        + "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    \
           outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n";
    let made = made(&yaml);
    let table = &made.part.routes["80"].value;
    let rest = table.virtual_hosts.last().expect("the rest");
    assert!(matches!(&rest.routes[0].action, Action::Direct(d) if d.status == 502));
    let Some(Terminal::Tcp(tcp)) =
        made.part.listeners["virtualOutbound"].value.default_chain.as_ref().map(|c| c.terminal.clone())
    else {
        panic!("bytes have a way out or none");
    };
    assert_eq!(&**tcp.pick(0), "BlackHoleCluster");
}

#[test]
fn authorization_denies_before_it_allows_and_an_empty_allow_lets_nobody_in() {
    let policy = |name: &str, spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n"
        )
    };
    use mesh_traffic::rbac::Effect;
    for (yaml, want) in [
        (String::new(), vec![]),
        (policy("none", "{}"), vec![(Effect::Allow, 0)]),
        (policy("all", "{rules: [{}]}"), vec![(Effect::Allow, 1)]),
        (
            policy("allow", "{rules: [{}]}")
                + &policy("deny", "{action: DENY, rules: [{to: [{operation: {methods: [PUT]}}]}]}"),
            vec![(Effect::Deny, 1), (Effect::Allow, 1)],
        ),
        (policy("other", "{selector: {matchLabels: {app: other}}}"), vec![]),
    ] {
        let translator = Translator::new(model(&(base() + &yaml)));
        let part = translator.whole(&sidecar(&translator.model, "web-1"));
        let chain =
            part.listeners["virtualInbound"].value.chains.iter().find(|c| c.matcher.port == Some(8080));
        let Some(Terminal::Http(manager)) = chain.map(|c| c.terminal.clone()) else { panic!("an HTTP port") };
        let found: Vec<_> = manager
            .filters
            .iter()
            .filter_map(|f| match &f.config {
                FilterConfig::Rbac(rules) => Some((rules.action, rules.policies.len())),
                _ => None,
            })
            .collect();
        assert_eq!(found, want, "{yaml}");
    }
}

#[test]
fn what_cannot_be_judged_never_allows_and_never_holds_back_a_denial() {
    use mesh_traffic::{
        plan::Facts,
        rbac::{Peer, Verdict},
    };
    let peer = Peer {
        identity: Some("spiffe://cluster.local/ns/default/sa/c"),
        direct: "10.1.0.3".parse().expect("an address"),
        remote: "10.1.0.3".parse().expect("an address"),
        destination: "10.1.0.1:8080".parse().expect("an address"),
        server_name: "",
    };
    for (rule, judged) in [
        ("from: [{source: {requestPrincipals: ['*']}}]", false),
        ("from: [{source: {notRequestPrincipals: ['*']}}]", false),
        ("from: [{source: {principals: [cluster.local/ns/default/sa/c]}}]", true),
        (
            "from: [{source: {namespaces: [default]}}], to: [{operation: {methods: [GET], paths: ['/x*']}}]",
            true,
        ),
    ] {
        for (action, want) in [("ALLOW", judged), ("DENY", false)] {
            let yaml = base()
                + &format!(
                    "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec: \
                     {{action: {action}, rules: [{{{rule}}}]}}\n"
                );
            let translator = Translator::new(model(&yaml));
            let pod = sidecar(&translator.model, "web-1");
            let layer = translator.authorization("default", &pod.labels);
            let passes = layer.http().iter().all(|f| match &f.config {
                FilterConfig::Rbac(rules) => {
                    rules.check(&Facts::get("web", "/x1"), &peer) == Verdict::Allowed
                }
                _ => true,
            });
            assert!(!layer.http().is_empty(), "{action} {rule}: the policy is in force");
            assert_eq!(passes, want, "{action} {rule}");
        }
    }
}

#[test]
fn the_older_retry_words_are_known() {
    let (on, _) = RetryOn::parse("gateway-error,connect-failure,refused-stream").expect("known");
    assert!(on.contains(RetryOn::GATEWAY_ERROR));
}

#[test]
fn everything_made_is_read_back_as_it_was() {
    let yaml = base()
        + &subsets()
        + DENIER
        + &vs(&format!(
            "- match: [{{uri: {{regex: '/a.*'}}, headers: {{x: {{exact: '1'}}}}}}]\n  fault: {{delay: {{fixedDelay: 1s, \
         percentage: {{value: 10}}}}}}\n  timeout: 2s\n  {TO}\n- {TO}"
        ));
    let translator = Translator::new(model(&yaml));
    for pod in ["c", "web-1"] {
        let part = translator.whole(&sidecar(&translator.model, pod));
        use mesh_traffic::wire::{self, encode};
        for made in part.clusters.values() {
            assert_eq!(wire::cluster(encode::cluster(&made.value)).as_ref(), Ok(&made.value));
        }
        for made in part.endpoints.values() {
            assert_eq!(wire::endpoints(encode::endpoints(&made.value)).as_ref(), Ok(&made.value));
        }
        for made in part.listeners.values() {
            assert_eq!(wire::listener(encode::listener(&made.value)).as_ref(), Ok(&made.value));
        }
        for made in part.routes.values() {
            assert_eq!(
                wire::route_configuration(encode::route_configuration(&made.value)).as_ref(),
                Ok(&made.value)
            );
        }
    }
}

#[test]
fn an_access_log_service_is_reported_to_when_mesh_config_asks_and_the_entry_says_which_way_it_went() {
    let config = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: \
                  'enableEnvoyAccessLogService: true'}\n";
    for (yaml, asked) in [(base(), false), (base() + config, true)] {
        let translator = Translator::new(model(&yaml));
        let part = translator.whole(&sidecar(&translator.model, "web-1"));
        for (name, way) in [("virtualInbound", "inbound"), ("0.0.0.0_80", "outbound")] {
            let wire = mesh_traffic::wire::encode::listener(&part.listeners[name].value);
            let json = xds::reflect::to_json(
                "envoy.config.listener.v3.Listener",
                &prost::Message::encode_to_vec(&wire),
            );
            let text = json.expect("known messages").to_string();
            let service = text.contains("envoy_accesslog_service");
            let tag = text.contains(&format!("\"direction\",\"literal\":{{\"value\":\"{way}\"}}"));
            assert_eq!((service, tag), (asked, asked), "{name}");
        }
    }
}
