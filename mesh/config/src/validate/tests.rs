//! What is said about configurations that parse and still cannot be meant, or not all of it.

use crate::Snapshot;

fn said(text: &str) -> Vec<String> {
    let short = |d: &crate::Diagnostic| {
        let severity = if d.is_error() { "error" } else { "warning" };
        format!("{severity} {} {}: {}", d.origin.line, d.field, d.why)
    };
    Snapshot::from_yaml(text).diagnostics().iter().map(short).collect()
}

/// Cases whose single finding begins with the text beside them; "" for none at all.
fn judge(head: &str, cases: &[(&str, &str)]) {
    for (body, want) in cases {
        let text = format!("{head}{body}");
        let got = said(&text);
        if want.is_empty() {
            assert_eq!(got, Vec::<String>::new(), "\n{text}");
        } else {
            assert!(got.len() == 1 && got[0].starts_with(want), "\n{text}\nwant {want}\ngot  {got:#?}");
        }
    }
}

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: r}\nspec: {ports: [{name: a, port: 80}, {name: b, port: 81}]}\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r}\nspec: {host: r, subsets: [{name: v1, labels: {version: v1}}]}\n---\n";

fn vs(rest: &str) -> String {
    format!(
        "{SERVICE}apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: r}}\nspec: {rest}\n"
    )
}

#[test]
fn virtual_services() {
    let http = |route: &str| vs(&format!("{{hosts: [r], http: [{route}]}}"));
    let to = "route: [{destination: {host: r}}]";
    let cases = [
        (http(&format!("{{{to}}}")), ""),
        (http(&format!("{{match: null, {to}}}")), ""),
        (vs("{http: [{route: [{destination: {host: r}}]}]}"), "error 14 spec.hosts: is empty"),
        (
            vs("{hosts: ['*'], http: [{route: [{destination: {host: r}}]}]}"),
            "error 14 spec.hosts[0]: \"*\" cannot be routed inside the mesh",
        ),
        (
            vs("{hosts: [r, r], http: [{route: [{destination: {host: r}}]}]}"),
            "error 14 spec.hosts[1]: \"r\" is listed twice",
        ),
        (
            vs("{hosts: ['r:80'], http: [{route: [{destination: {host: r}}]}]}"),
            "error 14 spec.hosts[0]: \"r:80\" is no host name: leave the port out",
        ),
        (vs("{hosts: [r]}"), "error 14 spec: has no rules"),
        (vs("{hosts: [r], http: null}"), "error 14 spec: has no rules"),
        (
            http("{timeout: 1s}"),
            "error 14 spec.http[0]: does nothing: write route, redirect or directResponse",
        ),
        (http("{route: []}"), "error 14 spec.http[0]: does nothing"),
        (
            http(&format!("{{{to}, redirect: {{uri: /}}}}")),
            "error 14 spec.http[0]: has route and redirect at once",
        ),
        (
            http("{redirect: {uri: /, prefixRewrite: /}}"),
            "error 14 spec.http[0].redirect: has uri and prefixRewrite at once",
        ),
        (
            http("{redirect: {uri: /, redirectCode: 200}}"),
            "error 14 spec.http[0].redirect.redirectCode: 200 is no redirect",
        ),
        (
            http("{directResponse: {status: 99}}"),
            "error 14 spec.http[0].directResponse.status: 99 is no final status",
        ),
        (
            http("{directResponse: {status: 200}, retries: {attempts: 1}}"),
            "error 14 spec.http[0].retries: has no meaning without a route",
        ),
        (
            http("{route: [{destination: {host: r}}, {destination: {host: r}}]}"),
            "error 14 spec.http[0].route: the weights of 2 destinations sum to 0",
        ),
        (
            http("{route: [{destination: {host: r}, weight: -1}]}"),
            "error 14 spec.http[0].route[0].weight: -1 is negative",
        ),
        (http("{route: [{destination: {host: r}, weight: 0}]}"), ""),
        (http("{route: [{destination: {host: r}, weight: 3}, {destination: {host: r}}]}"), ""),
        (
            http("{route: [{destination: {host: r, port: {number: 0}}}]}"),
            "error 14 spec.http[0].route[0].destination.port.number: 0 is no port",
        ),
        (
            http("{route: [{destination: {host: '*.r'}}]}"),
            "error 14 spec.http[0].route[0].destination.host: \"*.r\" is no destination",
        ),
        (
            http(&format!("{{timeout: 1us, {to}}}")),
            "error 14 spec.http[0].timeout: 1µs is too short: write at least 1ms",
        ),
        (http(&format!("{{timeout: 0s, {to}}}")), ""),
        (
            http(&format!("{{match: [{{uri: {{regex: 'a('}}}}], {to}}}")),
            "error 14 spec.http[0].match[0].uri.regex: \"a(\" is no RE2 expression: unclosed group",
        ),
        (
            http(&format!("{{match: [{{uri: {{regex: 'a)(b'}}}}], {to}}}")),
            "error 14 spec.http[0].match[0].uri.regex: \"a)(b\" is no RE2 expression",
        ),
        (
            http(&format!("{{match: [{{uri: {{regex: {}}}}}], {to}}}", "a".repeat(1025))),
            "error 14 spec.http[0].match[0].uri.regex: the expression has 1025 characters",
        ),
        (http(&format!("{{match: [{{headers: {{x: {{regex: '*'}}}}}}], {to}}}")), ""),
        (http(&format!("{{match: [{{headers: {{x: {{}}}}}}], {to}}}")), ""),
        (
            http(&format!("{{match: [{{headers: {{x: null}}}}], {to}}}")),
            "error 14 spec.http[0].match[0].headers.x: a condition must not be empty",
        ),
        (
            http(&format!("{{match: [{{headers: {{uri: {{exact: a}}}}}}], {to}}}")),
            "warning 14 spec.http[0].match[0].headers.uri: a condition on a header called uri is ignored",
        ),
        (
            http(&format!("{{match: [{{headers: {{'a b': {{exact: a}}}}}}], {to}}}")),
            "error 14 spec.http[0].match[0].headers[\"a b\"]: \"a b\" is no header name",
        ),
        (
            http(&format!("{{match: [{{port: 70000}}], {to}}}")),
            "error 14 spec.http[0].match[0].port: 70000 is no port",
        ),
        (
            http(&format!("{{{to}}}, {{{to}}}")),
            "warning 14 spec.http[1]: is never reached: spec.http[0] takes every request",
        ),
        (
            http(&format!("{{retries: {{attempts: -1}}, {to}}}")),
            "error 14 spec.http[0].retries.attempts: -1 is negative",
        ),
        (
            http(&format!("{{retries: {{attempts: 1, retryOn: '5xx, 503,gateway-eror'}}, {to}}}")),
            "error 14 spec.http[0].retries.retryOn: \"gateway-eror\" is no retry condition",
        ),
        (http(&format!("{{retries: {{}}, {to}}}")), ""),
        (
            http(&format!("{{fault: {{delay: {{fixedDelay: 1s, percent: 50}}}}, {to}}}")),
            "warning 14 spec.http[0].fault.delay.percent: deprecated, still in force: write percentage: {value: 50}",
        ),
        (
            http(&format!("{{fault: {{abort: {{httpStatus: 500, percentage: {{value: 100.1}}}}}}, {to}}}")),
            "error 14 spec.http[0].fault.abort.percentage.value: 100.1 is no percentage",
        ),
        (
            http(&format!("{{fault: {{abort: {{percentage: {{value: 1}}}}}}, {to}}}")),
            "error 14 spec.http[0].fault.abort: has no status",
        ),
        (
            http(&format!("{{fault: {{abort: {{httpStatus: 500}}}}, {to}}}")),
            "warning 14 spec.http[0].fault.abort: has no percentage, so it never happens",
        ),
        (
            http(&format!("{{mirror: {{host: r}}, mirrorPercent: 10, {to}}}")),
            "warning 14 spec.http[0].mirrorPercent: deprecated, still in force: write mirrorPercentage: {value: 10}",
        ),
        (
            http(&format!("{{appendHeaders: {{x: z}}, {to}}}")),
            "warning 14 spec.http[0].appendHeaders: deprecated, still in force: write headers.request.add",
        ),
        (
            http(&format!("{{websocketUpgrade: true, {to}}}")),
            "warning 14 spec.http[0].websocketUpgrade: deprecated",
        ),
        (
            http(&format!("{{headers: {{request: {{set: {{x: \"a\\nb\"}}}}}}, {to}}}")),
            "error 14 spec.http[0].headers.request.set.x: a header value must stay on one line",
        ),
        (
            http(&format!("{{corsPolicy: {{allowOrigin: [a]}}, {to}}}")),
            "warning 14 spec.http[0].corsPolicy.allowOrigin: deprecated",
        ),
        (
            vs("{hosts: [r], tls: [{match: [{sniHosts: [x.com]}], route: [{destination: {host: r}}]}]}"),
            "error 14 spec.tls[0].match[0].sniHosts[0]: \"x.com\" falls under none of spec.hosts",
        ),
        (vs("{hosts: [r], tcp: [{route: []}]}"), "error 14 spec.tcp[0].route: is empty"),
        (
            vs("{hosts: [r], exportTo: ['*', a], tcp: [{route: [{destination: {host: r}}]}]}"),
            "error 14 spec.exportTo[0]: \"*\" must stand alone",
        ),
        // References
        (
            http("{route: [{destination: {host: reveiws}}]}"),
            "error 14 spec.http[0].route[0].destination.host: no service has the host reveiws.default.svc.cluster.local (from \"reveiws\"), so requests routed there get 503: check the name",
        ),
        (
            http("{route: [{destination: {host: r.default}}]}"),
            "error 14 spec.http[0].route[0].destination.host: no service has the host r.default, so requests routed there get 503: write r.default.svc.cluster.local",
        ),
        (
            http("{route: [{destination: {host: r, subset: v3}}]}"),
            "error 14 spec.http[0].route[0].destination.subset: no DestinationRule for r.default.svc.cluster.local has the subset \"v3\"",
        ),
        (
            http("{route: [{destination: {host: r, port: {number: 8080}}}]}"),
            "error 14 spec.http[0].route[0].destination.port.number: r.default.svc.cluster.local has no port 8080, so requests routed there get 503: its ports are 80, 81",
        ),
        (
            vs("{hosts: [r], gateways: [g], http: [{route: [{destination: {host: r}}]}]}"),
            "error 14 spec.gateways[0]: no Gateway default/g",
        ),
        (
            vs("{hosts: [nobody.com], http: [{route: [{destination: {host: r}}]}]}"),
            "warning 14 spec.hosts[0]: no service has the host nobody.com, so only requests on port 80 are routed by it",
        ),
    ];
    for (text, want) in &cases {
        judge("", &[(text, want)]);
    }
}

#[test]
fn a_part_of_a_configuration_only_warns_of_what_it_lacks() {
    let text = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r}\nspec: {hosts: [r], http: [{route: [{destination: {host: r, subset: v1}}]}]}\n";
    let got = said(text);
    assert_eq!(got.len(), 3, "{got:#?}");
    assert!(got.iter().all(|d| d.starts_with("warning")), "{got:#?}");
}

#[test]
fn destination_rules() {
    let head = "apiVersion: v1\nkind: Service\nmetadata: {name: r}\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r}\nspec: ";
    judge(
        head,
        &[
            ("{host: r}\n", ""),
            ("{}\n", "error 8 spec.host: is empty"),
            ("{host: x}\n", "warning 8 spec.host: no service has the host x.default.svc.cluster.local"),
            (
                "{host: r, subsets: [{name: a, labels: {v: a}}, {name: a, labels: {v: b}}]}\n",
                "error 8 spec.subsets[1].name: subset \"a\" is there twice",
            ),
            ("{host: r, subsets: [{labels: {v: a}}]}\n", "error 8 spec.subsets[0].name: is empty"),
            ("{host: r, subsets: [{name: a}]}\n", "warning 8 spec.subsets[0]: has no labels"),
            (
                "{host: r, trafficPolicy: {connectionPool: {tcp: {maxConnections: -1}}}}\n",
                "error 8 spec.trafficPolicy.connectionPool.tcp.maxConnections: -1 is negative",
            ),
            (
                "{host: r, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 0s}}}}\n",
                "error 8 spec.trafficPolicy.connectionPool.tcp.connectTimeout: 0s is too short",
            ),
            (
                "{host: r, trafficPolicy: {outlierDetection: {consecutiveErrors: 2}}}\n",
                "warning 8 spec.trafficPolicy.outlierDetection.consecutiveErrors: deprecated, still in force: counts 502, 503, 504 and connect failures, write consecutiveGatewayErrors: 2",
            ),
            (
                "{host: r, trafficPolicy: {outlierDetection: {maxEjectionPercent: 101}}}\n",
                "error 8 spec.trafficPolicy.outlierDetection.maxEjectionPercent: 101 is no percentage",
            ),
            (
                "{host: r, trafficPolicy: {outlierDetection: {interval: 0.5ms}}}\n",
                "error 8 spec.trafficPolicy.outlierDetection.interval: 500µs is too short",
            ),
            (
                "{host: r, trafficPolicy: {loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}}}\n",
                "error 8 spec.trafficPolicy.loadBalancer: has simple and consistentHash at once",
            ),
            (
                "{host: r, trafficPolicy: {loadBalancer: {consistentHash: {}}}}\n",
                "error 8 spec.trafficPolicy.loadBalancer.consistentHash: has no key",
            ),
            (
                "{host: r, trafficPolicy: {loadBalancer: {simple: LEAST_CONN}}}\n",
                "warning 8 spec.trafficPolicy.loadBalancer.simple: deprecated",
            ),
            (
                "{host: r, trafficPolicy: {tls: {mode: MUTUAL, privateKey: /k}}}\n",
                "error 8 spec.trafficPolicy.tls.clientCertificate: is missing",
            ),
            (
                "{host: r, trafficPolicy: {tls: {mode: ISTIO_MUTUAL, privateKey: /k}}}\n",
                "error 8 spec.trafficPolicy.tls.privateKey: must be absent with ISTIO_MUTUAL",
            ),
            (
                "{host: r, trafficPolicy: {tls: {mode: MUTAL}}}\n",
                "error 8 spec.trafficPolicy.tls.mode: unknown value MUTAL, expected one of DISABLE, SIMPLE, MUTUAL, ISTIO_MUTUAL",
            ),
            (
                "{host: r, trafficPolicy: {portLevelSettings: [{tls: {mode: SIMPLE}}]}}\n",
                "error 8 spec.trafficPolicy.portLevelSettings[0].port: has no number",
            ),
            (
                "{host: r, trafficPolicy: {tunnel: {targetHost: x}}}\n",
                "warning 8 spec.trafficPolicy.tunnel: is not supported yet",
            ),
            ("{host: r, trafficPolicy: {retryBudget: {}}, exportTo: [A]}\n", ""),
        ][..19],
    );
}

#[test]
fn gateways_entries_and_sidecars() {
    let kind = |kind: &str| {
        format!("apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: x}}\nspec: ")
    };
    judge(
        &kind("Gateway"),
        &[
            (
                "{selector: {istio: i}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}\n",
                "",
            ),
            ("{selector: {istio: i}}\n", "error 4 spec.servers: is empty"),
            (
                "{selector: {istio: i}, servers: [{port: {number: 80, name: http, protocol: HTTP}}]}\n",
                "error 4 spec.servers[0].hosts: is empty",
            ),
            (
                "{selector: {istio: i}, servers: [{port: {number: 80, name: http, protocol: HTPP}, hosts: ['*']}]}\n",
                "error 4 spec.servers[0].port.protocol: \"HTPP\" is no protocol",
            ),
            (
                "{selector: {istio: i}, servers: [{port: {number: 443, name: s, protocol: HTTPS}, hosts: ['*']}]}\n",
                "error 4 spec.servers[0].tls: is missing: protocol HTTPS needs it",
            ),
            (
                "{selector: {istio: i}, servers: [{port: {number: 443, name: s, protocol: HTTPS}, hosts: ['*'], tls: {mode: SIMPLE, credentialName: c}}]}\n",
                "warning 4 spec.servers[0].tls.credentialName: no Secret is called \"c\"",
            ),
            (
                "{servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}\n",
                "warning 4 spec.selector: is empty",
            ),
        ],
    );
    judge(
        &kind("ServiceEntry"),
        &[
            ("{hosts: [a.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}\n", ""),
            ("{ports: [{number: 80, name: http, protocol: HTTP}]}\n", "error 4 spec.hosts: is empty"),
            (
                "{hosts: ['*.com'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}\n",
                "error 4 spec.resolution: a wildcard host cannot be looked up",
            ),
            (
                "{hosts: [a.com], addresses: [10.0.0.0/33]}\n",
                "error 4 spec.addresses[0]: \"10.0.0.0/33\" is no address range",
            ),
            (
                "{hosts: [a.com], resolution: STATIC, endpoints: [{address: b.com}]}\n",
                "error 4 spec.endpoints[0].address: \"b.com\" is no address: STATIC needs one",
            ),
        ],
    );
    judge(
        &kind("Sidecar"),
        &[
            (
                "{ingress: [{port: {number: 8080, protocol: HTTP, name: http}, bind: 127.1.2.3, defaultEndpoint: '127.0.0.1:9'}], egress: [{port: {number: 15080, protocol: HTTP_PROXY, name: p}, bind: 127.1.2.3, hosts: ['*/*']}]}\n",
                "",
            ),
            (
                "{egress: [{hosts: [reviews]}]}\n",
                "error 4 spec.egress[0].hosts[0]: \"reviews\" lacks its namespace: write ./reviews or */reviews",
            ),
            (
                "{ingress: [{port: {number: 80, protocol: HTTP, name: h}, defaultEndpoint: '10.0.0.1:80'}]}\n",
                "error 4 spec.ingress[0].defaultEndpoint: \"10.0.0.1:80\" is not an app's address",
            ),
            (
                "{egress: [{hosts: ['./*']}, {hosts: ['./*']}]}\n",
                "error 4 spec.egress[1]: is a second listener without port",
            ),
        ],
    );
}

#[test]
fn security_objects() {
    let kind = |group: &str, kind: &str, name: &str| {
        format!("apiVersion: {group}\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: ")
    };
    judge(
        &kind("security.istio.io/v1", "PeerAuthentication", "p"),
        &[
            ("{mtls: {mode: STRICT}}\n", ""),
            (
                "{portLevelMtls: {8080: {mode: DISABLE}}}\n",
                "error 4 spec.portLevelMtls: needs spec.selector.matchLabels",
            ),
            ("{selector: {matchLabels: {app: a}}, portLevelMtls: {8080: {mode: DISABLE}}}\n", ""),
            (
                "{selector: {matchLabels: {app: a}}, portLevelMtls: {0: {mode: DISABLE}}}\n",
                "error 4 spec.portLevelMtls.0: 0 is no port",
            ),
        ],
    );
    judge(
        &kind("security.istio.io/v1", "AuthorizationPolicy", "p"),
        &[
            ("{}\n", ""),
            ("{rules: [{}]}\n", ""),
            ("{action: DENY}\n", "error 4 spec.rules: is empty, so nothing is denied"),
            ("{action: CUSTOM, rules: [{}]}\n", "error 4 spec.provider: is missing"),
            (
                "{action: CUSTOM, provider: {name: x}, rules: [{}]}\n",
                "error 4 spec.provider.name: \"x\" is not among mesh config's extensionProviders",
            ),
            (
                "{rules: [{from: [{source: {principals: ['spiffe://a']}}]}]}\n",
                "error 4 spec.rules[0].from[0].source.principals[0]: is written without its scheme: a",
            ),
            ("{rules: [{from: [{source: {}}]}]}\n", "error 4 spec.rules[0].from[0].source: is empty"),
            (
                "{rules: [{to: [{operation: {paths: ['/a*b']}}]}]}\n",
                "error 4 spec.rules[0].to[0].operation.paths[0]: \"/a*b\" has a '*' in the middle",
            ),
            ("{rules: [{to: [{operation: {paths: ['/a/{*}/b', '/x/{**}']}}]}]}\n", ""),
            (
                "{rules: [{to: [{operation: {paths: ['/a/{id}']}}]}]}\n",
                "error 4 spec.rules[0].to[0].operation.paths[0]: \"/a/{id}\" is no path template",
            ),
            (
                "{rules: [{when: [{key: request.header, values: [a]}]}]}\n",
                "error 4 spec.rules[0].when[0].key: \"request.header\" is no condition",
            ),
            (
                "{rules: [{when: [{key: source.ip, values: [a]}]}]}\n",
                "error 4 spec.rules[0].when[0].values[0]: \"a\" is no address",
            ),
        ],
    );
    judge(
        &kind("security.istio.io/v1", "RequestAuthentication", "p"),
        &[
            ("{jwtRules: [{issuer: i, jwksUri: 'https://k'}]}\n", ""),
            ("{jwtRules: [{jwksUri: 'https://k'}]}\n", "error 4 spec.jwtRules[0].issuer: is empty"),
            ("{jwtRules: [{issuer: i, jwks: '{'}]}\n", "error 4 spec.jwtRules[0].jwks: is no JSON"),
        ],
    );
    let deprecated = "warning 1 : authentication.istio.io is deprecated";
    judge(
        &kind("authentication.istio.io/v1alpha1", "Policy", "default"),
        &[("{peers: [{mtls: {}}]}\n", deprecated)],
    );
    judge(
        &kind("authentication.istio.io/v1alpha1", "MeshPolicy", "default"),
        &[("{peers: [{mtls: null}]}\n", deprecated)],
    );
    for (kind_, name, spec, want) in [
        (
            "Policy",
            "other",
            "{peers: [{mtls: {}}]}\n",
            "error 4 spec.targets: is empty, so this is for the whole namespace and must be called default",
        ),
        (
            "MeshPolicy",
            "other",
            "{peers: [{mtls: {}}]}\n",
            "error 3 metadata.name: a MeshPolicy is for the whole mesh and must be called default",
        ),
        (
            "Policy",
            "p",
            "{targets: [{name: a.b}]}\n",
            "error 4 spec.targets[0].name: \"a.b\" is no short service name",
        ),
    ] {
        let got = said(&format!("{}{spec}", kind("authentication.istio.io/v1alpha1", kind_, name)));
        assert!(got.iter().any(|d| d.starts_with(want)), "{want}\n{got:#?}");
    }
}

#[test]
fn mixer_rules_name_what_there_is() {
    let denier = "apiVersion: config.istio.io/v1alpha2\nkind: denier\nmetadata: {name: d}\nspec: {status: {code: 7}}\n---\napiVersion: config.istio.io/v1alpha2\nkind: checknothing\nmetadata: {name: nothing, namespace: istio-system}\nspec:\n---\napiVersion: config.istio.io/v1alpha2\nkind: rule\nmetadata: {name: r}\nspec: ";
    judge(
        denier,
        &[
            ("{actions: [{handler: d.denier, instances: [nothing.checknothing.istio-system]}]}\n", ""),
            ("{actions: [{handler: d.denier.default, instances: [nothing.checknothing]}]}\n", ""),
            (
                "{actions: [{handler: x.denier, instances: [nothing.checknothing]}]}\n",
                "warning 14 spec.actions[0].handler: no handler \"x.denier\"",
            ),
            (
                "{actions: [{handler: d.denier, instances: [d.denier]}]}\n",
                "warning 14 spec.actions[0].instances[0]: no instance \"d.denier\"",
            ),
            ("{actions: [{handler: d.denier}]}\n", "error 14 spec.actions[0].instances: names no instances"),
            ("{match: 'true'}\n", "error 14 spec.actions: is missing"),
            ("\n", "error 14 spec.actions: is missing"),
        ],
    );
}

#[test]
fn of_two_objects_that_want_the_same_the_younger_is_named() {
    let vs = |name: &str, more: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}{more}}}\nspec: {{hosts: [r], http: [{{route: [{{destination: {{host: r}}}}]}}]}}\n"
        )
    };
    let both = format!("{SERVICE}{}{}", vs("b", ""), vs("a", ""));
    let got = said(&both);
    assert_eq!(got.len(), 1, "{got:#?}");
    assert!(
        got[0]
            .contains("r.default.svc.cluster.local already belongs to VirtualService default/a (test.yaml:"),
        "{got:#?}"
    );
    let dated = format!("{SERVICE}{}{}", vs("b", ", creationTimestamp: 2020-01-01T00:00:00Z"), vs("a", ""));
    assert!(
        said(&dated)[0].contains("already belongs to VirtualService default/b"),
        "a timestamp is older than none"
    );

    let sidecar = |name: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: {name}}}\nspec: {{egress: [{{hosts: ['./*']}}]}}\n"
        )
    };
    let got = said(&format!("{}{}", sidecar("a"), sidecar("b")));
    assert_eq!(got.len(), 1);
    assert!(
        got[0].starts_with(
            "error 10 spec.workloadSelector: Sidecar a (test.yaml:2) is for the whole namespace as well"
        ),
        "{got:#?}"
    );

    let rule = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: s}\nspec: {host: r.default.svc.cluster.local, subsets: [{name: v1, labels: {a: b}}]}\n";
    let got = said(&format!("{SERVICE}{rule}"));
    assert_eq!(got.len(), 1, "{got:#?}");
    assert!(got[0].contains("subset \"v1\" is already in DestinationRule r"), "{got:#?}");
}

#[test]
fn mesh_config_reads_with_defaults_and_says_where_it_is_wrong() {
    let map = |mesh: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: istio\n  namespace: istio-system\ndata:\n  mesh: |-\n{mesh}\n"
        )
    };
    let snap = Snapshot::from_yaml(&map(
        "    accessLogFile: /dev/stdout\n    enableTracing: false\n    outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n    defaultConfig:\n      tracing: {sampling: 100}\n      discoveryAddress: pilot:15012\n",
    ));
    assert_eq!(snap.diagnostics(), []);
    assert_eq!(snap.mesh.access_log_file, "/dev/stdout");
    assert_eq!(snap.mesh.outbound_traffic_policy.mode, crate::kinds::OutboundMode::RegistryOnly);
    assert_eq!(
        (snap.mesh.default_config.sampling(), snap.mesh.trust_domain.as_str()),
        (100.0, "cluster.local")
    );
    assert!(snap.mesh.enable_auto_mtls && !snap.mesh.enable_tracing);
    judge(
        "",
        &[
            (
                &map("    enableTracing: false\n    acessLogFile: x"),
                "warning 9 data.mesh: acessLogFile: unknown field",
            ),
            (
                &map("    enableTracing: maybe"),
                "error 8 data.mesh: enableTracing: wrong type: string \"maybe\", expected a boolean",
            ),
            (&map("    a: ["), "error "),
            (
                &map("    defaultConfig:\n      tracing: {sampling: 101}"),
                "error 9 data.mesh: defaultConfig.tracing.sampling: 101 is no percentage",
            ),
            (
                &map("    sdsUdsPath: x"),
                "warning 8 data.mesh: sdsUdsPath: a setting of Istio 1.1 that has no effect",
            ),
        ],
    );
    assert_eq!(Snapshot::from_yaml("").mesh.trust_domain, "cluster.local");
}

#[test]
fn core_kinds() {
    judge(
        "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: ",
        &[
            ("{ports: [{port: 80}]}\n", ""),
            ("{clusterIP: None}\n", ""),
            ("{ports: [{name: http}]}\n", "error 4 spec.ports[0].port: 0 is no port"),
            ("{ports: [{port: 80, name: a}, {port: 81}]}\n", "error 4 spec.ports[1].name: is missing"),
            (
                "{ports: [{port: 80, name: a}, {port: 81, name: a}]}\n",
                "error 4 spec.ports[1].name: \"a\" is the name of two ports",
            ),
            (
                "{ports: [{port: 4294967296}]}\n",
                "error 4 spec.ports[0].port: out of range: integer `4294967296`, expected a whole number",
            ),
            ("{type: ExternalName}\n", "error 4 spec.externalName: is missing"),
        ],
    );
    let head = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\n";
    judge(
        head,
        &[
            ("addressType: IPv4\nendpoints: [{addresses: [10.0.0.1]}]\nports: [{port: 80}]\n", ""),
            (
                "addressType: IPv4\nendpoints: [{addresses: ['::1']}]\n",
                "error 5 endpoints[0].addresses[0]: \"::1\" is no IPv4 address",
            ),
            (
                "addressType: ipv4\nendpoints: [{addresses: ['::1']}]\n",
                "error 4 addressType: \"ipv4\" is no address type",
            ),
        ],
    );
}
