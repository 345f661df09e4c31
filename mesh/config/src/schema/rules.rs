//! What the API server itself checks about single fields, beside their types.
//!
//! In: nothing. Out: [`rules_of`] a struct, as rows of field and rule.
//! Kept true: what these rules refuse, `validate` refuses as well, so files and clusters are held to the same.
//! Not here: rules over several objects or with long reasons (`validate`, said by the webhook).

/// One rule of a field, or of the struct itself where the field is "". `field{}` means the values of a map.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rule<'a> {
    /// Fields that must be there.
    Required(&'a [&'a str]),
    /// Smallest and largest number.
    Range(u32, u32),
    /// The numbers allowed.
    Numbers(&'a [u32]),
    /// Smallest number.
    Least(u32),
    /// Fewest and most items.
    Items(u32, u32),
    /// Most items.
    MostItems(u32),
    /// Most keys of a map or fields of an object.
    MostKeys(u32),
    /// Shortest and longest text, in characters.
    Length(u32, u32),
    /// A list whose items are told apart by a field.
    Keyed(&'a str),
    /// Of these fields no two.
    AtMostOne(&'a [&'a str]),
    /// A duration of at least this.
    Duration(&'a str),
    /// A CEL expression, and what is said when it is false.
    Cel(&'a str, &'a str),
}

use Rule::{
    AtMostOne, Cel, Duration, Items, Keyed, Least, Length, MostItems, MostKeys, Numbers, Range, Required,
};

type Row = (&'static str, &'static str, Rule<'static>);

/// The rules of a struct.
pub(super) fn rules_of(name: &str) -> impl Iterator<Item = (&'static str, &'static Rule<'static>)> {
    let of = move |row: &&'static Row| row.0 == name;
    tables().filter(of).map(|(_, field, rule)| (*field, rule))
}

/// All rows.
pub(super) fn tables() -> impl Iterator<Item = &'static Row> {
    COMMON.iter().chain(ROUTES).chain(DESTINATIONS).chain(EDGES).chain(SECURITY).chain(TELEMETRY)
}

const PORT: Rule<'static> = Range(1, 65535);
const PERCENT: Rule<'static> = Range(0, 100);
const HOST: Rule<'static> = Length(1, 255);
const ATTACHED: Rule<'static> = AtMostOne(&["selector", "targetRef", "targetRefs"]);

const COMMON: &[Row] = &[
    ("StringMatch", "", MostKeys(1)),
    ("PortSelector", "number", PORT),
    ("Percent", "value", PERCENT),
    ("Port", "", Required(&["number", "protocol"])),
    ("Port", "number", PORT),
    ("Port", "targetPort", PORT),
    ("TargetRef", "", Required(&["kind", "name"])),
    ("MatchSelector", "matchLabels", MostKeys(4096)),
    ("MatchSelector", "matchLabels", Cel("self.all(key, key.size() != 0)", "a label must have a name")),
    (
        "MatchSelector",
        "matchLabels",
        Cel("self.all(key, !key.contains('*'))", "wildcards are not supported in labels"),
    ),
    ("MatchSelector", "matchLabels{}", Length(0, 63)),
    ("MatchSelector", "matchLabels{}", Cel("!self.contains('*')", "wildcards are not supported in labels")),
];

const ROUTES: &[Row] = &[
    ("HttpRoute", "", AtMostOne(&["mirror", "mirrors"])),
    ("HttpRoute", "timeout", Duration("0s")),
    ("HttpRoute", "mirrorPercent", PERCENT),
    ("HttpMatch", "port", PORT),
    ("Destination", "", Required(&["host"])),
    ("Destination", "host", HOST),
    ("HttpRouteDestination", "", Required(&["destination"])),
    ("HttpRouteDestination", "weight", Least(0)),
    ("RouteDestination", "", Required(&["destination"])),
    ("RouteDestination", "weight", Least(0)),
    ("Redirect", "", AtMostOne(&["uri", "prefixRewrite"])),
    ("Redirect", "", AtMostOne(&["port", "derivePort"])),
    ("Redirect", "port", PORT),
    ("Redirect", "redirectCode", Numbers(&[0, 301, 302, 303, 307, 308])),
    ("DirectResponse", "", Required(&["status"])),
    ("DirectResponse", "status", Range(200, 599)),
    ("HttpBody", "", AtMostOne(&["string", "bytes"])),
    ("HttpBody", "string", Length(0, 1 << 20)),
    ("Rewrite", "", AtMostOne(&["uri", "uriRegexRewrite"])),
    ("Retries", "attempts", Least(0)),
    ("Retries", "perTryTimeout", Duration("0s")),
    ("Retries", "backoff", Duration("1ms")),
    ("Delay", "fixedDelay", Duration("1ms")),
    ("Delay", "exponentialDelay", Duration("0s")),
    ("Delay", "percent", PERCENT),
    ("Abort", "", AtMostOne(&["httpStatus", "grpcStatus"])),
    ("Abort", "httpStatus", Range(200, 599)),
    ("Abort", "percent", PERCENT),
    ("Mirror", "", Required(&["destination"])),
    ("CorsPolicy", "maxAge", Duration("0s")),
    ("TlsRoute", "", Required(&["match"])),
    ("TlsMatch", "", Required(&["sniHosts"])),
    ("TlsMatch", "port", PORT),
    ("TcpMatch", "port", PORT),
];

const DESTINATIONS: &[Row] = &[
    ("DestinationRule", "", Required(&["host"])),
    ("DestinationRule", "host", HOST),
    // Rules cost by the number of places they may be checked at, and the API server bounds the sum.
    ("DestinationRule", "subsets", MostItems(1024)),
    ("TrafficPolicy", "portLevelSettings", MostItems(256)),
    ("Subset", "", Required(&["name"])),
    ("Subset", "name", Length(1, 255)),
    ("PortTrafficPolicy", "", Required(&["port"])),
    ("LoadBalancer", "", AtMostOne(&["simple", "consistentHash"])),
    ("LoadBalancer", "warmupDurationSecs", Duration("0s")),
    ("Warmup", "duration", Duration("0s")),
    (
        "ConsistentHash",
        "",
        AtMostOne(&["httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName"]),
    ),
    ("ConsistentHash", "", AtMostOne(&["ringHash", "maglev"])),
    ("HttpCookie", "", Required(&["name"])),
    ("HttpCookie", "ttl", Duration("0s")),
    ("TcpPool", "maxConnections", Least(0)),
    ("TcpPool", "connectTimeout", Duration("1ms")),
    ("TcpPool", "maxConnectionDuration", Duration("1ms")),
    ("TcpPool", "idleTimeout", Duration("0s")),
    ("TcpKeepalive", "time", Duration("0s")),
    ("TcpKeepalive", "interval", Duration("0s")),
    ("HttpPool", "http1MaxPendingRequests", Least(0)),
    ("HttpPool", "http2MaxRequests", Least(0)),
    ("HttpPool", "maxRequestsPerConnection", Least(0)),
    ("HttpPool", "maxRetries", Least(0)),
    ("HttpPool", "maxConcurrentStreams", Least(0)),
    ("HttpPool", "idleTimeout", Duration("0s")),
    ("OutlierDetection", "consecutiveErrors", Least(0)),
    ("OutlierDetection", "interval", Duration("1ms")),
    ("OutlierDetection", "baseEjectionTime", Duration("1ms")),
    ("OutlierDetection", "maxEjectionPercent", PERCENT),
    ("OutlierDetection", "minHealthPercent", PERCENT),
];

const EDGES: &[Row] = &[
    ("Server", "", Required(&["port", "hosts"])),
    ("Server", "hosts", Items(1, 4096)),
    ("ServiceEntry", "", Required(&["hosts"])),
    ("ServiceEntry", "hosts", Items(1, 256)),
    ("ServiceEntry", "addresses", MostItems(256)),
    ("ServiceEntry", "endpoints", MostItems(4096)),
    ("ServiceEntry", "ports", MostItems(256)),
    ("ServiceEntry", "ports", Keyed("number")),
    (
        "ServiceEntry",
        "",
        Cel(
            "!(has(self.workloadSelector) && has(self.endpoints) && size(self.endpoints) > 0)",
            "workloadSelector and endpoints exclude each other",
        ),
    ),
    (
        "ServiceEntry",
        "",
        Cel(
            "!(has(self.endpoints) && size(self.endpoints) > 0 && (!has(self.resolution) || self.resolution == 'NONE'))",
            "resolution NONE goes to the address asked for, so endpoints have no use: write STATIC or DNS",
        ),
    ),
    ("EgressListener", "", Required(&["hosts"])),
    ("EgressListener", "hosts", Items(1, 4096)),
    ("IngressListener", "", Required(&["port"])),
    ("WorkloadGroup", "", Required(&["template"])),
    ("WasmPlugin", "", Required(&["url"])),
    ("WasmPlugin", "", ATTACHED),
];

const SECURITY: &[Row] = &[
    (
        "PeerAuthentication",
        "",
        Cel(
            "!has(self.portLevelMtls) || size(self.portLevelMtls) == 0 || (has(self.selector) && has(self.selector.matchLabels) && size(self.selector.matchLabels) > 0)",
            "portLevelMtls needs selector.matchLabels, since ports are those of a workload",
        ),
    ),
    (
        "PeerAuthentication",
        "portLevelMtls",
        Cel("self.all(key, 0 < int(key) && int(key) <= 65535)", "a port is a number from 1 to 65535"),
    ),
    ("AuthorizationPolicy", "", ATTACHED),
    (
        "AuthorizationPolicy",
        "",
        Cel(
            "has(self.provider) == (has(self.action) && self.action == 'CUSTOM')",
            "action CUSTOM needs provider, and no other action has one",
        ),
    ),
    ("ProviderRef", "", Required(&["name"])),
    ("ProviderRef", "name", Length(1, 1024)),
    ("Condition", "", Required(&["key"])),
    ("Condition", "", Cel("has(self.values) || has(self.notValues)", "write values or notValues")),
    ("RequestAuthentication", "", ATTACHED),
    ("JwtRule", "", Required(&["issuer"])),
    ("JwtRule", "", AtMostOne(&["jwksUri", "jwks"])),
    ("JwtRule", "issuer", Length(1, 4096)),
    ("JwtRule", "timeout", Duration("1ms")),
    ("JwtHeader", "", Required(&["name"])),
    ("JwtHeader", "name", Length(1, 1024)),
    ("PolicyTarget", "", Required(&["name"])),
    ("PolicyPort", "number", PORT),
];

const TELEMETRY: &[Row] = &[
    ("Telemetry", "", ATTACHED),
    ("Tracing", "randomSamplingPercentage", PERCENT),
    ("CustomTag", "", AtMostOne(&["literal", "environment", "header", "formatter"])),
    ("LogFilter", "expression", Length(1, 65536)),
    ("Metrics", "reportingInterval", Duration("0s")),
];
