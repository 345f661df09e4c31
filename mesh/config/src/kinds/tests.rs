//! Every field the kinds have, once: none is unknown, and what is written out again reads as the same.

use crate::parse::parse_text;
use crate::resource::Resource;
use serde_json::json;

pub(crate) const EVERYTHING: &str = r#"
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: full}
spec:
  hosts: [reviews, example.com]
  gateways: [mesh, edge]
  exportTo: ["*"]
  http:
  - name: canary
    match:
    - name: m
      uri: {prefix: /a}
      ignoreUriCase: true
      scheme: {exact: http}
      method: {exact: GET}
      authority: {regex: .*}
      headers: {end-user: {exact: jason}, x-any: {}}
      withoutHeaders: {x-not: {prefix: a}}
      queryParams: {q: {exact: "1"}}
      port: 80
      sourceLabels: {app: web}
      sourceNamespace: shop
      statPrefix: p
    - gateways: [edge]
    route:
    - destination: {host: reviews, subset: v1, port: {number: 8080}}
      weight: 80
      headers: {request: {set: {a: b}, add: {c: d}, remove: [e]}, response: {set: {}, add: {}, remove: []}}
    - destination: {host: reviews, port: {name: http}}
      weight: 20
      appendRequestHeaders: {a: b}
      removeRequestHeaders: [c]
      appendResponseHeaders: {d: e}
      removeResponseHeaders: [f]
    rewrite: {uri: /b, authority: x.com}
    timeout: 1m30s
    retries:
      attempts: 3
      perTryTimeout: 2s
      retryOn: 5xx,503
      retryRemoteLocalities: true
      retryIgnorePreviousHosts: false
      backoff: 10ms
    fault:
      delay: {fixedDelay: 5s, percentage: {value: 0.1}}
      abort: {httpStatus: 400, percent: 10}
    mirror: {host: reviews}
    mirrorPercentage: {value: 50.5}
    corsPolicy:
      allowOrigins: [{exact: a}]
      allowOrigin: [b]
      allowMethods: [GET]
      allowHeaders: [x]
      exposeHeaders: [z]
      maxAge: 24h
      allowCredentials: true
      unmatchedPreflights: IGNORE
    headers: {request: {set: {h: i}}}
    websocketUpgrade: true
    appendHeaders: {j: k}
    appendRequestHeaders: {l: m}
    removeRequestHeaders: [o]
    appendResponseHeaders: {p: q}
    removeResponseHeaders: [r]
  - match: [{uri: {exact: /r}}]
    redirect: {uri: /x, authority: a, port: 80, scheme: https, redirectCode: 308}
  - match: [{uri: {exact: /s}}]
    redirect: {prefixRewrite: /x, derivePort: FROM_REQUEST_PORT}
  - match: [{uri: {exact: /d}}]
    directResponse: {status: 503, body: {string: down}}
  - match: [{uri: {regex: /w/.*}}]
    rewrite: {uriRegexRewrite: {match: "^/w/(.*)$", rewrite: "/\\1"}}
    route: [{destination: {host: reviews}}]
    mirrors: [{destination: {host: reviews}, percentage: {value: 1}}]
    mirrorPercent: 3
  - match: [{uri: {exact: /del}}]
    delegate: {name: other, namespace: ns}
  tls:
  - match: [{sniHosts: [example.com], destinationSubnets: [10.0.0.0/8], port: 443, sourceLabels: {a: b}, sourceNamespace: s, gateways: [mesh], sourceSubnet: 10.0.0.0/8}]
    route: [{destination: {host: reviews}, weight: 1}]
  tcp:
  - match: [{destinationSubnets: [10.0.0.0/8], port: 27017, sourceLabels: {a: b}, sourceNamespace: s, gateways: [mesh], sourceSubnet: 10.0.0.0/8}]
    route: [{destination: {host: reviews}}]
---
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: full}
spec:
  host: reviews
  exportTo: [.]
  workloadSelector: {matchLabels: {app: web}}
  trafficPolicy: &policy
    loadBalancer:
      consistentHash:
        httpCookie: {name: c, path: /, ttl: 0s, attributes: [{name: SameSite, value: Lax}]}
        ringHash: {minimumRingSize: 10}
      localityLbSetting: {enabled: true, distribute: [{from: a/*, to: {"b/*": 100}}]}
      warmup: {duration: 1s}
      warmupDurationSecs: 5s
    connectionPool:
      tcp:
        maxConnections: 1
        connectTimeout: 30ms
        maxConnectionDuration: 1h
        idleTimeout: 30s
        tcpKeepalive: {probes: 3, time: 7200s, interval: 75s}
      http:
        http1MaxPendingRequests: 1
        http2MaxRequests: 2
        maxRequestsPerConnection: 3
        maxRetries: 4
        idleTimeout: 1h
        h2UpgradePolicy: UPGRADE
        useClientProtocol: false
        maxConcurrentStreams: 5
    outlierDetection:
      consecutiveErrors: 1
      consecutive5xxErrors: 2
      consecutiveGatewayErrors: 3
      splitExternalLocalOriginErrors: true
      consecutiveLocalOriginFailures: 4
      interval: 1s
      baseEjectionTime: 3m
      maxEjectionPercent: 100
      minHealthPercent: 0
    tls: {mode: MUTUAL, clientCertificate: /c, privateKey: /k, caCertificates: /a, sni: s, subjectAltNames: [x], insecureSkipVerify: false}
  subsets:
  - name: v1
    labels: {version: v1}
    trafficPolicy:
      portLevelSettings:
      - port: {number: 80}
        loadBalancer: {simple: LEAST_CONN}
        connectionPool: {tcp: {maxConnections: 3}}
        outlierDetection: {consecutive5xxErrors: 0}
        tls: {mode: ISTIO_MUTUAL}
      tls: {mode: SIMPLE, credentialName: s}
      loadBalancer:
        consistentHash: {httpHeaderName: x, maglev: {tableSize: 65537}, minimumRingSize: 1}
        localityLbSetting: {failover: [{from: a, to: b}], failoverPriority: [topology.kubernetes.io/region]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: full}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 443, name: https, protocol: HTTPS, targetPort: 8443}
    name: s
    bind: 0.0.0.0
    hosts: ["shop/*.x.com", "./a.com"]
    tls:
      mode: OPTIONAL_MUTUAL
      serverCertificate: /etc/istio/ingressgateway-certs/tls.crt
      privateKey: /etc/istio/ingressgateway-certs/tls.key
      caCertificates: /ca
      subjectAltNames: [a]
      minProtocolVersion: TLSV1_2
      maxProtocolVersion: TLSV1_3
      cipherSuites: [ECDHE-RSA-AES128-GCM-SHA256]
      credentialNames: [a, b]
  - port: {number: 80, name: http, protocol: HTTP}
    hosts: ["*"]
    tls: {httpsRedirect: true}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: full}
spec:
  hosts: [db.example.com]
  addresses: [240.1.2.3, 10.0.0.0/24]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  location: MESH_INTERNAL
  resolution: STATIC
  endpoints:
  - {address: 10.0.0.1, ports: {http: 8080}, labels: {a: b}, network: net, locality: r/z, weight: 2, serviceAccount: sa}
  exportTo: ["*"]
  subjectAltNames: [spiffe://a]
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: full}
spec:
  workloadSelector: {labels: {app: web}}
  ingress:
  - port: {number: 9080, protocol: HTTP, name: http}
    bind: 127.0.0.9
    captureMode: NONE
    defaultEndpoint: 127.0.0.1:8080
    tls: {mode: SIMPLE, serverCertificate: /c, privateKey: /k}
    connectionPool: {http: {http2MaxRequests: 1}}
  egress:
  - port: {number: 15080, protocol: HTTP_PROXY, name: p}
    bind: 127.0.0.9
    captureMode: DEFAULT
    hosts: ["*/*", "./reviews", "~/*"]
  inboundConnectionPool: {tcp: {maxConnections: 3}}
  outboundTrafficPolicy: {mode: ALLOW_ANY}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: full}
spec: {address: vm.example.com, labels: {a: b}, serviceAccount: sa}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: full}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}, "9090": {mode: UNSET}}}
---
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: full}
spec:
  selector: {matchLabels: {app: web}}
  action: DENY
  rules:
  - from:
    - source: {principals: [a], notPrincipals: [b], requestPrincipals: ["*"], notRequestPrincipals: [c], namespaces: [d], notNamespaces: [e], serviceAccounts: [f], notServiceAccounts: [g], trustDomains: [h], notTrustDomains: [i], ipBlocks: [10.0.0.0/8], notIpBlocks: ["::1"], remoteIpBlocks: [1.2.3.4], notRemoteIpBlocks: [5.6.7.8]}
    to:
    - operation: {hosts: [a], notHosts: [b], ports: ["80"], notPorts: ["81"], methods: [GET], notMethods: [PUT], paths: [/x*], notPaths: ["*.js"]}
    when:
    - {key: "request.headers[x]", values: [a], notValues: [b]}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: full}
spec:
  selector: {matchLabels: {app: web}}
  jwtRules:
  - issuer: i
    audiences: [a]
    jwksUri: https://k
    fromHeaders: [{name: x, prefix: "Bearer "}]
    fromParams: [p]
    fromCookies: [c]
    outputPayloadToHeader: h
    outputClaimToHeaders: [{header: h, claim: c}]
    forwardOriginalToken: true
    timeout: 5s
---
apiVersion: telemetry.istio.io/v1alpha1
kind: Telemetry
metadata: {name: full}
spec:
  selector: {matchLabels: {app: web}}
  tracing:
  - match: {mode: SERVER}
    providers: [{name: zipkin}]
    randomSamplingPercentage: 12.5
    disableSpanReporting: false
    useRequestIdForTraceSampling: true
    enableIstioTags: true
    customTags: {a: {literal: {value: x}}, b: {environment: {name: E, defaultValue: d}}, c: {header: {name: h}}}
  metrics:
  - providers: [{name: prometheus}]
    reportingInterval: 5s
    overrides:
    - match: {metric: REQUEST_COUNT, mode: CLIENT}
      disabled: true
      tagOverrides: {a: {operation: REMOVE}, b: {operation: UPSERT, value: "x"}}
  accessLogging:
  - match: {mode: CLIENT_AND_SERVER}
    providers: [{name: envoy}]
    disabled: false
    filter: {expression: "response.code >= 400"}
---
apiVersion: authentication.istio.io/v1alpha1
kind: Policy
metadata: {name: full}
spec:
  targets: [{name: reviews, ports: [{number: 80}, {name: http}]}]
  peers: [{mtls: {mode: PERMISSIVE}}]
  principalBinding: USE_PEER
---
apiVersion: authentication.istio.io/v1alpha1
kind: MeshPolicy
metadata: {name: default}
spec: {peers: [{mtls: {}}]}
"#;

#[test]
fn every_field_has_a_place() {
    let parsed = parse_text("all.yaml", EVERYTHING);
    let unknown: Vec<_> = parsed
        .diagnostics
        .iter()
        .filter(|d| d.why.contains("unknown field"))
        .map(|d| d.to_string())
        .collect();
    assert_eq!(unknown, Vec::<String>::new());
    let errors: Vec<_> = parsed.diagnostics.iter().filter(|d| d.is_error()).map(|d| d.to_string()).collect();
    assert_eq!(errors, Vec::<String>::new());
    assert_eq!(parsed.resources.len(), 12);
}

#[test]
fn what_is_written_out_reads_as_the_same() {
    for resource in parse_text("all.yaml", EVERYTHING).resources {
        macro_rules! spec {
            ($($kind:ident)*) => {
                match &resource {
                    $(Resource::$kind(o) => serde_json::to_value(&o.spec),)*
                    other => panic!("{:?} is not in this list", other.kind()),
                }
            };
        }
        let spec = spec!(VirtualService DestinationRule Gateway ServiceEntry Sidecar WorkloadEntry PeerAuthentication
            AuthorizationPolicy RequestAuthentication Telemetry Policy MeshPolicy)
        .unwrap();
        let meta = resource.meta();
        let document = json!({"apiVersion": meta.gvk.api_version(), "kind": &*meta.gvk.kind,
            "metadata": {"name": &*meta.name}, "spec": spec});
        let again = parse_text("again.json", &document.to_string());
        let mut again =
            again.resources.into_iter().next().unwrap_or_else(|| panic!("{:?}", again.diagnostics));
        *again.meta_mut() = meta.clone();
        assert_eq!(again, resource);
    }
}

#[test]
fn legacy_fields_mean_what_they_meant() {
    let parsed = parse_text("all.yaml", EVERYTHING);
    let Resource::VirtualService(vs) = &parsed.resources[0] else { panic!() };
    let first = &vs.spec.http[0];
    let ops = serde_json::to_value(first.header_operations()).unwrap();
    assert_eq!(ops["request"], json!({"set": {"h": "i"}, "add": {"j": "k", "l": "m"}, "remove": ["o"]}));
    assert_eq!(ops["response"], json!({"set": {}, "add": {"p": "q"}, "remove": ["r"]}));
    let arm = serde_json::to_value(first.route[1].header_operations()).unwrap();
    assert_eq!(arm["request"], json!({"set": {}, "add": {"a": "b"}, "remove": ["c"]}));
    let fault = first.fault.clone().unwrap();
    assert_eq!((fault.delay.unwrap().share(), fault.abort.unwrap().share()), (0.1, 10.0));
    let origins = first.cors_policy.clone().unwrap().origins();
    assert_eq!(serde_json::to_value(origins).unwrap()[1]["exact"], "b");
    assert_eq!(first.all_mirrors()[0].1, 50.5);
    assert_eq!(vs.spec.http[4].all_mirrors()[0].1, 1.0);
}
