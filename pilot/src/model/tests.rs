//! The model, table by table; [`model`] and [`POD`] are shared with the tests of other modules.

use super::{
    Model,
    auth::{self, Mode, ServerPort},
    destination::Rules,
    policy, routing,
    scope::{Capture, Proxy, Role, View, egress_of, sidecar_of, view_key},
    service::{Protocol, Resolution},
};
use mesh_config::Snapshot;
use std::{collections::BTreeMap, sync::Arc};

/// A model of one YAML text.
pub(crate) fn model(yaml: &str) -> Arc<Model> {
    Arc::new(Model::new(Arc::new(Snapshot::from_yaml(yaml))))
}

/// A pod in `default` with labels `app` and `version`, in the mesh.
pub(crate) fn pod(name: &str, app: &str, version: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, labels: {{app: {app}, version: \
         {version}, security.istio.io/tlsMode: istio}}}}\nspec: {{serviceAccountName: {app}, containers: [{{name: c, \
         image: i}}]}}\nstatus: {{phase: Running, podIP: {ip}}}\n"
    )
}

/// A service in `default` that selects `app: <name>`.
pub(crate) fn service(name: &str, ports: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec: {{clusterIP: \
         10.0.0.1, selector: {{app: {name}}}, ports: [{ports}]}}\n"
    )
}

pub(crate) const POD: &str = "10.1.0.1";

/// A sidecar of a pod in `default`.
pub(crate) fn sidecar(model: &Model, pod: &str) -> Proxy {
    Proxy::for_workload(model.workload("default", pod).expect("the pod is in the text"), Role::Sidecar)
}

pub(crate) fn view(model: &Model, proxy: &Proxy) -> View {
    let sidecar = sidecar_of(model, proxy);
    let egress = egress_of(proxy, sidecar.as_ref().map(|s| &s.spec));
    View::of(model, &view_key(model, proxy, &egress))
}

#[test]
fn protocols_come_from_app_protocol_then_name_then_well_known_ports() {
    for (app, name, transport, port, want) in [
        (None, "http", "TCP", 80, Protocol::Http),
        (None, "http-web", "TCP", 80, Protocol::Http),
        (None, "http2", "TCP", 80, Protocol::Http2),
        (None, "grpc-api", "TCP", 80, Protocol::Http2),
        (None, "grpc-web", "TCP", 80, Protocol::Http2),
        (None, "https", "TCP", 443, Protocol::Tls),
        (None, "tcp-x", "TCP", 1, Protocol::Tcp),
        (None, "mysql", "TCP", 1, Protocol::Tcp),
        (None, "web", "TCP", 80, Protocol::Unknown),
        (None, "", "TCP", 3306, Protocol::Tcp),
        (None, "dns", "UDP", 53, Protocol::Udp),
        (Some("tcp"), "http", "TCP", 80, Protocol::Tcp),
        (Some("kubernetes.io/h2c"), "x", "TCP", 80, Protocol::Http2),
    ] {
        assert_eq!(Protocol::select(app, name, transport, port), want, "{app:?} {name} {transport} {port}");
    }
}

#[test]
fn endpoints_come_from_slices_and_only_ready_ones_count() {
    let yaml = service("web", "{name: http, port: 80, targetPort: 8080}")
        + &pod("web-1", "web", "v1", POD)
        + "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nmetadata: {name: web-1, labels: \
           {kubernetes.io/service-name: web}}\nports: [{name: http, port: 9090}]\nendpoints:\n- addresses: [10.1.0.1]\n  \
           targetRef: {kind: Pod, name: web-1}\n- addresses: [10.1.0.2]\n  conditions: {ready: false}\n";
    let model = model(&yaml);
    let service = &model.services["web.default.svc.cluster.local"];
    let seen: Vec<_> =
        service.endpoints.iter().map(|e| (&*e.address, e.port, e.service_port, e.takes_mtls)).collect();
    assert_eq!(seen, [("10.1.0.1", 9090, 80, true)]);
    assert_eq!(service.endpoints[0].labels["version"], "v1");
}

#[test]
fn without_slices_the_selected_pods_are_the_endpoints() {
    let yaml = service("web", "{name: http, port: 80, targetPort: 8080}")
        + &pod("web-1", "web", "v1", POD)
        + &pod("other", "other", "v1", "10.1.0.2");
    let model = model(&yaml);
    let service = &model.services["web.default.svc.cluster.local"];
    assert_eq!(service.endpoints.iter().map(|e| (&*e.address, e.port)).collect::<Vec<_>>(), [(POD, 8080)]);
}

#[test]
fn service_entries_take_static_dns_and_passthrough_forms() {
    let entry = |name: &str, rest: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec: {{hosts: \
             [{name}.example], ports: [{{number: 443, name: tls, protocol: TLS}}], {rest}}}\n"
        )
    };
    let yaml = entry("a", "resolution: STATIC, endpoints: [{address: 1.2.3.4, ports: {tls: 8443}}]")
        + &entry("b", "resolution: DNS")
        + &entry("c", "resolution: NONE");
    let model = model(&yaml);
    for (host, resolution, endpoint) in [
        ("a.example", Resolution::Static, Some(("1.2.3.4", 8443))),
        ("b.example", Resolution::Dns, Some(("b.example", 443))),
        ("c.example", Resolution::Passthrough, None),
    ] {
        let service = &model.services[host];
        assert_eq!(service.resolution, resolution, "{host}");
        assert_eq!(service.endpoints.first().map(|e| (&*e.address, e.port)), endpoint, "{host}");
        assert!(service.external, "{host}");
    }
}

/// What stands in the namespace, what mode results and which object says so.
#[test]
fn mutual_tls_modes_narrower_first_newer_api_first_default_permissive() {
    let pa = |name: &str, ns: &str, spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: \
             {ns}}}\nspec: {spec}\n"
        )
    };
    let legacy = |kind: &str, name: &str, spec: &str| {
        format!(
            "---\napiVersion: authentication.istio.io/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"
        )
    };
    let strict = "{mtls: {mode: STRICT}}";
    for (what, yaml, mode, source) in [
        ("nothing", String::new(), Mode::Permissive, None),
        ("mesh", pa("m", "istio-system", strict), Mode::Strict, Some("PeerAuthentication istio-system/m")),
        (
            "namespace over mesh",
            pa("m", "istio-system", strict) + &pa("ns", "default", "{mtls: {mode: DISABLE}}"),
            Mode::Disable,
            Some("PeerAuthentication default/ns"),
        ),
        (
            "workload over namespace",
            pa("ns", "default", strict)
                + &pa("w", "default", "{selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE}}"),
            Mode::Permissive,
            Some("PeerAuthentication default/w"),
        ),
        (
            "port over workload",
            pa(
                "w",
                "default",
                "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}",
            ),
            Mode::Disable,
            Some("PeerAuthentication default/w"),
        ),
        (
            "unset inherits",
            pa("ns", "default", strict) + &pa("w", "default", "{selector: {matchLabels: {app: web}}}"),
            Mode::Strict,
            Some("PeerAuthentication default/ns"),
        ),
        (
            "another workload's policy",
            pa("w", "default", "{selector: {matchLabels: {app: other}}, mtls: {mode: STRICT}}"),
            Mode::Permissive,
            None,
        ),
        (
            "legacy service policy without a mode is strict",
            legacy("Policy", "p", "{targets: [{name: web}], peers: [{mtls: {}}]}"),
            Mode::Strict,
            Some("Policy default/p"),
        ),
        (
            "legacy permissive",
            legacy("Policy", "p", "{targets: [{name: web}], peers: [{mtls: {mode: PERMISSIVE}}]}"),
            Mode::Permissive,
            Some("Policy default/p"),
        ),
        (
            "legacy policy without peers is plaintext",
            legacy("Policy", "default", "{peers: []}"),
            Mode::Disable,
            Some("Policy default/default"),
        ),
        (
            "legacy port beats legacy service",
            legacy("Policy", "a", "{targets: [{name: web}], peers: [{mtls: {}}]}")
                + &legacy(
                    "Policy",
                    "b",
                    "{targets: [{name: web, ports: [{number: 80}]}], peers: [{mtls: {mode: PERMISSIVE}}]}",
                ),
            Mode::Permissive,
            Some("Policy default/b"),
        ),
        (
            "legacy mesh policy",
            legacy("MeshPolicy", "default", "{peers: [{mtls: {}}]}"),
            Mode::Strict,
            Some("MeshPolicy default"),
        ),
        (
            "newer namespace policy beats the older one",
            legacy("Policy", "default", "{peers: [{mtls: {}}]}")
                + &pa("ns", "default", "{mtls: {mode: DISABLE}}"),
            Mode::Disable,
            Some("PeerAuthentication default/ns"),
        ),
    ] {
        let model = model(&yaml);
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let server = ServerPort {
            namespace: "default",
            labels: &labels,
            port: 8080,
            services: vec![("web", 80, "http")],
        };
        let found = auth::effective(&model, &server);
        assert_eq!((found.mode, found.source.as_deref()), (mode, source), "{what}");
    }
}

#[test]
fn destination_rules_client_namespace_first_then_the_services_then_root() {
    let rule = |name: &str, ns: &str, host: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: \
             {ns}}}\nspec: {{host: {host}, subsets: [{{name: {name}, labels: {{v: '1'}}}}]}}\n"
        )
    };
    let web = "web.default.svc.cluster.local";
    let base = service("web", "{name: http, port: 80}");
    for (what, yaml, client, want) in [
        ("none", String::new(), "default", vec![]),
        ("own", rule("a", "default", "web"), "default", vec!["a"]),
        ("the service's", rule("a", "default", "web"), "other", vec!["a"]),
        ("the client's", rule("a", "default", "web") + &rule("b", "other", web), "other", vec!["b"]),
        ("root's", rule("r", "istio-system", web), "other", vec!["r"]),
        (
            "narrower",
            rule("a", "default", "'*.default.svc.cluster.local'") + &rule("b", "default", web),
            "default",
            vec!["b"],
        ),
        (
            "same host: all subsets",
            rule("a", "default", "web") + &rule("b", "default", web),
            "default",
            vec!["a", "b"],
        ),
        ("a short name is of its own namespace", rule("a", "other", "web"), "default", vec![]),
    ] {
        let model = model(&(base.clone() + &yaml));
        let rules = Rules::of(&model);
        let found = rules.lookup(&model, client, &BTreeMap::new(), &model.services[web]);
        assert_eq!(found.subsets.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), want, "{what}");
    }
}

#[test]
fn blocks_override_whole_and_a_port_entry_inherits_nothing() {
    let yaml = service("web", "{name: http, port: 80}")
        + "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web}\nspec:\n  host: web\n  \
           trafficPolicy:\n    connectionPool: {tcp: {maxConnections: 5}}\n    loadBalancer: {simple: RANDOM}\n    \
           portLevelSettings: [{port: {number: 81}, outlierDetection: {}}]\n  subsets:\n  - name: v1\n    trafficPolicy: \
           {connectionPool: {http: {maxRetries: 1}}}\n";
    let model = model(&yaml);
    let web = &model.services["web.default.svc.cluster.local"];
    let rule = Rules::of(&model).lookup(&model, "default", &BTreeMap::new(), web);
    let subset = rule.blocks(rule.subset("v1"), 80, "http");
    assert!(subset.pool.as_ref().is_some_and(|p| p.tcp.is_none()), "the subset's block replaces the host's");
    assert!(subset.balancer.is_some(), "a block the subset leaves out is the host's");
    let port = rule.blocks(None, 81, "");
    assert!(port.outlier.is_some() && port.pool.is_none() && port.balancer.is_none());
}

#[test]
fn the_oldest_virtual_service_has_the_host_and_exact_beats_wildcard() {
    let vs = |name: &str, created: &str, host: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, \
             creationTimestamp: '{created}'}}\nspec: {{hosts: ['{host}'], http: [{{route: [{{destination: {{host: \
             web}}}}]}}]}}\n"
        )
    };
    let young = vs("young", "2024-01-02T00:00:00Z", "web");
    let old = vs("old", "2024-01-01T00:00:00Z", "web");
    let wild = vs("wild", "2020-01-01T00:00:00Z", "*.default.svc.cluster.local");
    let documents = [service("web", "{name: http, port: 80}"), young, old, wild, pod("c", "c", "v1", POD)];
    for shift in 0..documents.len() {
        let mut shuffled = documents.to_vec();
        shuffled.rotate_left(shift);
        let model = model(&shuffled.concat());
        let view = view(&model, &sidecar(&model, "c"));
        let found = view.routes.lookup("web.default.svc.cluster.local").map(|r| r.label.to_string());
        assert_eq!(found.as_deref(), Some("VirtualService default/old"), "shuffle {shift}");
        let other = view.routes.lookup("x.default.svc.cluster.local").map(|r| r.label.to_string());
        assert_eq!(other.as_deref(), Some("VirtualService default/wild"), "shuffle {shift}");
    }
}

#[test]
fn gateway_names_resolve_in_all_their_forms() {
    for (written, want) in [
        ("mesh", "mesh"),
        ("gw", "ns/gw"),
        ("other/gw", "other/gw"),
        ("gw.other", "other/gw"),
        ("gw.other.svc.cluster.local", "other/gw"),
    ] {
        assert_eq!(routing::gateway_name(written, "ns"), want);
    }
}

#[test]
fn a_sidecar_narrows_what_is_seen() {
    let side = |hosts: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: s}}\nspec: {{egress: [{{hosts: \
             [{hosts}]}}]}}\n"
        )
    };
    let far = "---\napiVersion: v1\nkind: Service\nmetadata: {name: far, namespace: other}\nspec: {ports: [{name: http, port: 80}]}\n";
    let base = service("web", "{name: http, port: 80}") + far + &pod("c", "c", "v1", POD);
    for (hosts, want) in [
        ("'*/*'", vec!["far", "web"]),
        ("'./*'", vec!["web"]),
        ("'other/*'", vec!["far"]),
        ("'~/*'", vec![]),
        ("'*/web.default.svc.cluster.local'", vec!["web"]),
        ("'*/*', '~other/*'", vec!["web"]),
    ] {
        let model = model(&(base.clone() + &side(hosts)));
        let view = view(&model, &sidecar(&model, "c"));
        assert_eq!(view.services.values().map(|s| &*s.name).collect::<Vec<_>>(), want, "{hosts}");
    }
}

#[test]
fn proxies_that_see_the_same_share_one_key() {
    let yaml = service("web", "{name: http, port: 80}")
        + &pod("a", "a", "v1", POD)
        + &pod("b", "b", "v1", "10.1.0.2");
    let model = model(&yaml);
    let key = |pod: &str| {
        let mut proxy = sidecar(&model, pod);
        proxy.capture = Capture::Redirect;
        view_key(&model, &proxy, &egress_of(&proxy, None))
    };
    assert_eq!(key("a"), key("b"));
}

#[test]
fn mixer_is_asked_only_where_a_checking_rule_can_apply() {
    let rule = |ns: &str, instance: &str| {
        format!(
            "---\napiVersion: config.istio.io/v1alpha2\nkind: rule\nmetadata: {{name: r, namespace: {ns}}}\nspec: \
             {{actions: [{{handler: h.denier, instances: [{instance}]}}]}}\n"
        )
    };
    let instance = "---\napiVersion: config.istio.io/v1alpha2\nkind: instance\nmetadata: {name: i}\nspec: {compiledTemplate: \
                    checknothing}\n";
    for (what, yaml, want) in [
        ("nothing", String::new(), false),
        ("own namespace", rule("default", "x.checknothing"), true),
        ("another namespace", rule("other", "x.checknothing"), false),
        ("root namespace", rule("istio-system", "x.listentry"), true),
        ("quota", rule("default", "x.quota"), true),
        ("report only", rule("default", "x.metric"), false),
        ("the newer form", rule("default", "i") + instance, true),
    ] {
        let labels = BTreeMap::default();
        assert_eq!(policy::checked(&model(&yaml), "default", &labels).is_some(), want, "{what}");
    }
}

#[test]
fn a_rule_that_demands_labels_of_the_destination_is_asked_about_by_those_workloads_only() {
    let labels = [("app", "reviews"), ("version", "v2")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    for (expression, want) in [
        (r#""#, true),
        (r#"destination.labels["app"] == "reviews""#, true),
        (r#"destination.labels["app"] == "web""#, false),
        (r#"destination.labels["team"] == "a""#, false),
        (
            r#"destination.labels["app"] == "reviews" && source.labels["app"]=="web" && destination.labels["version"] == "v2""#,
            true,
        ),
        (
            r#"destination.labels["app"] == "reviews" && source.labels["app"]=="web" && destination.labels["version"]=="v1""#,
            false,
        ),
        (r#"destination.labels["app"] == "web" || source.labels["app"] == "web""#, true),
        (r#"(destination.labels["app"] == "web" || true) && destination.labels["version"] == "v1""#, false),
        (r#"destination.labels["app"] == "web" | "x""#, true),
        (r#"destination.labels["app"] != "web""#, true),
        (r#"match(request.path, "a && b") && destination.labels["app"] == "reviews""#, true),
        (r#"request.path == `a" && ` && destination.labels["app"] == "web""#, false),
        (r#"request.path == "a\" && destination.labels[\"app\"] == \"web""#, true),
    ] {
        let yaml = serde_json::json!({
            "apiVersion": "config.istio.io/v1alpha2", "kind": "rule", "metadata": {"name": "r"},
            "spec": {"match": expression, "actions": [{"handler": "h.denier", "instances": ["x.checknothing"]}]}
        });
        let model = model(&yaml.to_string());
        assert_eq!(policy::checked(&model, "default", &labels).is_some(), want, "{expression}");
    }
}

#[test]
fn services_that_visible_routes_send_to_are_reached_without_being_seen() {
    let far = "---\napiVersion: v1\nkind: Service\nmetadata: {name: far, namespace: other}\nspec: {ports: [{name: http, port: 80}]}\n";
    let side = "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: s}\nspec: {egress: [{hosts: ['./*']}]}\n";
    let vs = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v}\nspec: {hosts: [web], http: \
              [{route: [{destination: {host: far.other.svc.cluster.local}}]}]}\n";
    let base = service("web", "{name: http, port: 80}") + far + side + &pod("c", "c", "v1", POD);
    for (yaml, want) in [(base.clone(), vec![]), (base + vs, vec!["far"])] {
        let model = model(&yaml);
        let view = view(&model, &sidecar(&model, "c"));
        assert_eq!(view.services.len(), 1);
        assert_eq!(view.targets.values().map(|s| &*s.name).collect::<Vec<_>>(), want);
    }
}
