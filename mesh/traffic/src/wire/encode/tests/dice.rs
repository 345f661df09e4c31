//! Models by chance, for property tests.
//!
//! In: random bytes; when they are used up, zeros, so that fewer bytes give simpler models. Out: valid models of every kind. Kept true: only what
//! xDS can say, e.g. headers are removed before others are set. Not here: what must hold of them (`super`).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use crate::{
    cluster::{
        Balance, Cluster, ClusterTls, Discovery, Keepalive, Limits, Outlier, Protocol, Service, TlsMatch,
    },
    endpoint::{Address, Endpoint, Endpoints, Health, Locality},
    filter::{
        Abort, AbortWith, Delay, ExtAuthz, ExtAuthzPerRoute, Fault, FilterConfig, HttpFilter, MILLION,
        PerRoute,
    },
    listener::{
        AccessLog, ChainMatch, Cidr, Codec, FilterChain, ForwardClientCert, HttpManager, Inspect, Listener,
        LogFormat, RouteSource, TcpProxy, Terminal, Tracing, Transport,
    },
    matchers::{FullRegex, HeaderMatch, HeaderValue, QueryMatch, StringMatch},
    names::{Direction, Name, SourceObject},
    rbac::{Effect, Policy, Rbac, Rule},
    retry::{RetryOn, RetryPolicy},
    route::{
        Action, Arm, Cors, Direct, Forward, HashPolicy, HeaderOp, HeaderOps, Mirror, PathMatch, PathRewrite,
        Redirect, RedirectPath, Route, RouteConfiguration, RouteMatch, Split, Target, VirtualHost,
    },
    tls::{Certificate, DownstreamTls, KeyPair, Roots, Secret, UpstreamTls, Validation, Version, Versions},
};

/// Random bytes, used from the front.
pub(super) struct Dice {
    left: std::vec::IntoIter<u8>,
}

impl Dice {
    pub(super) fn new(entropy: Vec<u8>) -> Self {
        Self { left: entropy.into_iter() }
    }

    fn byte(&mut self) -> u8 {
        self.left.next().unwrap_or(0)
    }

    fn flag(&mut self) -> bool {
        self.byte() % 2 == 1
    }

    fn number(&mut self) -> u32 {
        u32::from_be_bytes([0, self.byte(), self.byte(), self.byte()])
    }

    fn port(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()]).max(1)
    }

    fn time(&mut self) -> Duration {
        Duration::from_millis(u64::from(self.number()) + 1)
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.flag().then(|| make(self))
    }

    fn many<T>(&mut self, most: u8, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = self.byte() % (most + 1);
        (0..count).map(|_| make(self)).collect()
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()]
    }

    fn name(&mut self) -> Name {
        let words = ["a", "reviews", "x-user", "spiffe://cluster.local/ns/a/sa/b", "/p/q", "ö", "%%", "b*"];
        let word = self.one(&words);
        if self.flag() { format!("{word}{}", self.byte()).into() } else { word.into() }
    }

    fn token(&mut self) -> Name {
        format!("t{}", self.byte()).into()
    }

    fn pairs(&mut self) -> Vec<(Name, Name)> {
        let mut pairs = self.many(3, |d| (d.token(), d.name()));
        pairs.sort();
        pairs.dedup_by(|a, b| a.0 == b.0);
        pairs
    }

    fn share(&mut self) -> u32 {
        self.number() % (MILLION + 1)
    }

    fn source(&mut self) -> SourceObject {
        SourceObject { kind: "virtual-service".into(), namespace: self.token(), name: self.token() }
    }

    fn ip(&mut self) -> IpAddr {
        match self.flag() {
            true => Ipv6Addr::from(u128::from(self.number()) << 64).into(),
            false => Ipv4Addr::from(self.number()).into(),
        }
    }

    fn socket(&mut self) -> SocketAddr {
        SocketAddr::new(self.ip(), self.port())
    }

    fn cidr(&mut self) -> Cidr {
        let whole = Cidr::host(self.ip());
        Cidr { length: self.byte() % (whole.length + 1), ..whole }
    }

    fn regex(&mut self) -> FullRegex {
        FullRegex::new(self.one(&["a|b", "[0-9]+", "^/x/.*", "(?i)q"])).expect("a valid pattern")
    }

    fn matcher(&mut self) -> StringMatch {
        match self.byte() % 5 {
            0 => StringMatch::Exact(self.name()),
            1 => StringMatch::Prefix(self.name()),
            2 => StringMatch::Suffix(self.name()),
            3 => StringMatch::Contains(self.name()),
            _ => StringMatch::Regex(self.regex()),
        }
    }

    fn header(&mut self) -> HeaderMatch {
        let value = match self.byte() % 3 {
            0 => HeaderValue::Present(self.flag()),
            1 => HeaderValue::Text { matcher: self.matcher(), ignore_case: self.flag() },
            _ => HeaderValue::Range { start: -i64::from(self.number()), end: i64::from(self.number()) },
        };
        HeaderMatch { name: self.token(), value, invert: self.flag(), missing_as_empty: self.flag() }
    }

    fn ops(&mut self) -> HeaderOps {
        let side = |d: &mut Self| {
            let mut ops = d.many(2, |d| HeaderOp::Remove(d.token()));
            ops.extend(d.many(2, |d| match d.flag() {
                true => HeaderOp::Add(d.token(), d.name()),
                false => HeaderOp::Set(d.token(), d.name()),
            }));
            ops
        };
        HeaderOps { request: side(self), response: side(self) }
    }

    fn path(&mut self) -> PathMatch {
        match self.byte() % 5 {
            0 => PathMatch::Prefix(self.name()),
            1 => PathMatch::Segments(self.name()),
            2 => PathMatch::Exact(self.name()),
            3 => PathMatch::Regex(self.regex()),
            _ => PathMatch::Connect,
        }
    }

    pub(super) fn routes(&mut self) -> RouteConfiguration {
        RouteConfiguration {
            name: self.name(),
            virtual_hosts: self.many(3, |d| Arc::new(d.host())),
            vhds: self.flag(),
            validate_clusters: self.flag(),
            ignore_port: self.flag(),
            headers: self.ops(),
        }
    }

    pub(super) fn host(&mut self) -> VirtualHost {
        let mut domains = self.many(2, Self::name);
        domains.push(self.token());
        VirtualHost {
            name: self.name(),
            domains,
            routes: self.many(3, |d| Arc::new(d.route())),
            include_attempt_count: self.flag(),
            require_tls: self.flag(),
            headers: self.ops(),
            filters: self.per_route(),
        }
    }

    fn route(&mut self) -> Route {
        let matcher = RouteMatch {
            path: self.path(),
            ignore_case: self.flag(),
            headers: self.many(2, Self::header),
            query: self.many(2, |d| QueryMatch { name: d.name(), value: d.maybe(Self::matcher) }),
            grpc: self.flag(),
        };
        let action = match self.byte() % 4 {
            0 | 1 => Action::Forward(Box::new(self.forward())),
            2 => Action::Redirect(Redirect {
                status: self.one(&[301, 302, 303, 307, 308]),
                scheme: self.maybe(Self::token),
                host: self.maybe(Self::token),
                port: self.maybe(Self::port),
                path: self.maybe(|d| match d.flag() {
                    true => RedirectPath::Full(d.name()),
                    false => RedirectPath::Prefix(d.name()),
                }),
                strip_query: self.flag(),
            }),
            _ => Action::Direct(Direct {
                status: self.one(&[200, 404, 503, 599]),
                body: self.many(4, Self::byte).into(),
            }),
        };
        Route {
            name: self.name(),
            matcher,
            action,
            headers: self.ops(),
            filters: self.per_route(),
            source: self.maybe(Self::source),
            operation: self.maybe(Self::name),
        }
    }

    fn arm(&mut self) -> Arm {
        Arm {
            cluster: self.name(),
            weight: self.number(),
            headers: self.ops(),
            host_rewrite: self.maybe(Self::name),
        }
    }

    fn forward(&mut self) -> Forward {
        let mut arms = self.many(3, Self::arm);
        let first = self.arm();
        arms.push(Arm { weight: first.weight.max(1), ..first });
        let target = match self.flag() {
            true => Target::Split(Split::new(arms).expect("a positive weight")),
            false => Target::Cluster(self.name()),
        };
        Forward {
            target,
            timeout: self.maybe(Self::time),
            idle_timeout: self.maybe(Self::time),
            max_grpc_timeout: self.maybe(|d| if d.flag() { d.time() } else { Duration::ZERO }),
            retry: self.maybe(Self::retry),
            hash: self.many(2, Self::hash),
            mirrors: self.many(2, |d| Mirror { cluster: d.name(), per_million: d.share() }),
            host_rewrite: self.maybe(Self::name),
            path_rewrite: self.maybe(|d| match d.flag() {
                true => PathRewrite::Regex { pattern: d.regex(), substitution: d.name() },
                false => PathRewrite::Prefix(d.name()),
            }),
            cluster_not_found: self.one(&[503, 404, 500]),
            cors: self.maybe(|d| {
                Box::new(Cors {
                    origins: d.many(2, Self::matcher),
                    methods: d.name(),
                    headers: d.name(),
                    expose: d.name(),
                    max_age: d.name(),
                    credentials: d.flag(),
                    forward_unmatched_preflights: d.flag(),
                })
            }),
        }
    }

    fn retry(&mut self) -> RetryPolicy {
        let words = ["5xx", "gateway-error,retriable-status-codes", "connect-failure,unavailable", ""];
        let (on, _) = RetryOn::parse(self.one(&words)).expect("known words");
        let base = self.time();
        RetryPolicy {
            on,
            codes: self.many(2, |d| 200 + u16::from(d.byte())),
            attempts: self.number(),
            per_try: self.maybe(Self::time),
            base_backoff: base,
            max_backoff: base + self.time(),
            avoid_previous: self.flag(),
            max_picks: self.number().max(1),
        }
    }

    fn hash(&mut self) -> HashPolicy {
        match self.byte() % 4 {
            0 => HashPolicy::Header(self.token()),
            1 => HashPolicy::Cookie {
                name: self.name(),
                ttl: self.maybe(|d| if d.flag() { d.time() } else { Duration::ZERO }),
                path: self.maybe(Self::name),
            },
            2 => HashPolicy::SourceIp,
            _ => HashPolicy::Query(self.name()),
        }
    }

    fn fault(&mut self) -> Fault {
        Fault {
            delay: self.maybe(|d| Delay { fixed: d.time(), per_million: d.share() }),
            abort: self.maybe(|d| Abort {
                with: if d.flag() { AbortWith::Http(d.one(&[200, 503])) } else { AbortWith::Grpc(d.port()) },
                per_million: d.share(),
            }),
            headers: self.many(1, Self::header),
        }
    }

    fn per_route(&mut self) -> PerRoute {
        if self.byte() % 4 != 3 {
            return PerRoute::default();
        }
        PerRoute {
            fault: self.maybe(|d| Arc::new(d.fault())),
            ext_authz: self.maybe(|d| match d.flag() {
                true => ExtAuthzPerRoute::Context(d.pairs()),
                false => ExtAuthzPerRoute::Disabled,
            }),
            rbac: self.maybe(|d| d.maybe(|d| Arc::new(d.rbac(false)))),
        }
    }

    /// Rules of an HTTP filter, or of a network filter.
    fn rbac(&mut self, network: bool) -> Rbac {
        let mut policies = self.many(4, |d| Policy {
            name: d.token(),
            permissions: vec![d.rule(2, network, false)],
            principals: vec![d.rule(2, network, true)],
        });
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        policies.dedup_by(|a, b| a.name == b.name);
        let action = self.one(&[Effect::Allow, Effect::Deny, Effect::Log]);
        Rbac { action, policies, shadow: self.flag() }
    }

    fn rule(&mut self, depth: u8, network: bool, principal: bool) -> Rule {
        let inner = |d: &mut Self| d.rule(depth - 1, network, principal);
        match self.byte() % if depth == 0 { 6 } else { 9 } {
            0 => Rule::Any,
            1 if !network => Rule::Header(self.header()),
            2 if !network => Rule::Path { matcher: self.matcher(), ignore_case: self.flag() },
            1..=3 if principal => Rule::DirectRemoteIp(self.cidr()),
            1..=3 => Rule::DestinationIp(self.cidr()),
            4 if principal => Rule::RemoteIp(self.cidr()),
            4 => Rule::DestinationPort(self.port()),
            5 if principal => Rule::Authenticated(self.maybe(Self::matcher)),
            5 => Rule::ServerName(self.matcher()),
            6 => Rule::All(vec![inner(self), inner(self)]),
            7 => Rule::OneOf(vec![inner(self)]),
            _ => Rule::Not(Box::new(inner(self))),
        }
    }

    pub(super) fn listener(&mut self) -> Listener {
        let direction = self.one(&[Direction::Outbound, Direction::Inbound]);
        Listener {
            name: self.name(),
            address: self.socket(),
            additional: self.many(2, Self::socket),
            bind: self.flag(),
            use_original_dst: self.flag(),
            direction,
            inspect: Inspect {
                original_dst: self.flag(),
                tls: self.flag(),
                http: self.flag(),
                timeout: Some(self.time()),
            },
            chains: self.many(3, |d| Arc::new(d.chain(direction))),
            default_chain: self.maybe(|d| Arc::new(d.chain(direction))),
            access_log: self.many(1, Self::log),
        }
    }

    pub(super) fn chain(&mut self, direction: Direction) -> FilterChain {
        let matcher = ChainMatch {
            port: self.maybe(Self::port),
            destinations: self.many(2, Self::cidr),
            server_names: self.many(2, Self::token),
            transport: self.maybe(|d| d.one(&[Transport::Tls, Transport::Raw])),
            protocols: self.many(2, Self::name),
            sources: self.many(2, Self::cidr),
        };
        let terminal = match self.flag() {
            true => Terminal::Http(Arc::new(self.manager(direction))),
            false => Terminal::Tcp(Arc::new(self.tcp())),
        };
        FilterChain {
            name: self.name(),
            matcher,
            tls: self.maybe(Self::downstream),
            rbac: self.many(2, |d| Arc::new(d.rbac(true))),
            terminal,
            source: self.maybe(Self::source),
        }
    }

    fn tcp(&mut self) -> TcpProxy {
        let plain = |d: &mut Self| Arm {
            cluster: d.name(),
            weight: d.number().max(1),
            headers: HeaderOps::default(),
            host_rewrite: None,
        };
        let arms = vec![plain(self), plain(self)];
        let target = match self.flag() {
            true => Target::Split(Split::new(arms).expect("a positive weight")),
            false => Target::Cluster(self.name()),
        };
        TcpProxy {
            stat_prefix: self.name(),
            target,
            idle_timeout: self.time(),
            access_log: self.many(1, Self::log),
            log_service: self.maybe(Self::name),
        }
    }

    fn log(&mut self) -> AccessLog {
        let format = match self.flag() {
            true => LogFormat::Json(self.pairs()),
            false => LogFormat::Text(self.name()),
        };
        AccessLog { path: self.name(), format }
    }

    fn manager(&mut self, direction: Direction) -> HttpManager {
        let mut filters = self.many(3, |d| {
            let config = match d.byte() % 4 {
                0 => FilterConfig::Cors,
                1 => FilterConfig::Fault(d.fault()),
                2 => FilterConfig::Rbac(Arc::new(d.rbac(false))),
                _ => FilterConfig::ExtAuthz(Arc::new(ExtAuthz {
                    cluster: d.name(),
                    timeout: d.time(),
                    fail_open: d.flag(),
                    status_on_error: d.one(&[403, 503]),
                    include_peer_certificate: d.flag(),
                    allowed_headers: d.many(2, Self::matcher),
                })),
            };
            HttpFilter { name: d.name(), config }
        });
        filters.push(HttpFilter { name: "envoy.filters.http.router".into(), config: FilterConfig::Router });
        HttpManager {
            stat_prefix: self.name(),
            codec: self.one(&[Codec::Auto, Codec::Http1, Codec::Http2]),
            routes: match self.flag() {
                true => RouteSource::Inline(Arc::new(self.routes())),
                false => RouteSource::Rds(self.name()),
            },
            filters,
            server_name: self.maybe(Self::name),
            forward_client_cert: self.one(&[
                ForwardClientCert::Sanitize,
                ForwardClientCert::ForwardOnly,
                ForwardClientCert::AppendForward,
                ForwardClientCert::SanitizeSet,
                ForwardClientCert::AlwaysForwardOnly,
            ]),
            use_remote_address: self.flag(),
            xff_trusted_hops: self.number(),
            skip_xff_append: self.flag(),
            upgrades: self.many(2, |d| d.one(&["websocket", "connect"]).into()),
            tracing: self.maybe(|d| Tracing { per_million: d.share() / 100 * 100 }),
            access_log: self.many(2, Self::log),
            log_service: self.maybe(Self::name),
            stream_idle_timeout: self.time(),
            request_timeout: self.time(),
            headers_timeout: self.time(),
            idle_timeout: self.time(),
            max_head_kib: self.number(),
            normalize_path: self.flag(),
            merge_slashes: self.flag(),
            direction,
        }
    }

    fn versions(&mut self) -> Versions {
        let min = self.one(&[Version::Tls12, Version::Tls13]);
        Versions { min, max: Version::Tls13 }
    }

    fn key_pair(&mut self) -> Arc<KeyPair> {
        Arc::new(KeyPair { chain: self.many(4, Self::byte), key: self.many(4, Self::byte) })
    }

    fn validation(&mut self) -> Validation {
        let roots = self.maybe(|d| match d.byte() % 4 {
            0 => Roots::Sds(d.one(&["ROOTCA", "other"]).into()),
            1 => Roots::File(d.name()),
            2 => Roots::Inline(d.many(4, Self::byte).into()),
            _ => Roots::System,
        });
        Validation { roots, names: self.many(2, Self::matcher) }
    }

    fn own_certificate(&mut self) -> Certificate {
        match self.flag() {
            true => Certificate::Files { chain: self.name(), key: self.name() },
            false => Certificate::Inline(self.key_pair()),
        }
    }

    fn downstream(&mut self) -> DownstreamTls {
        let mut certificates = match self.flag() {
            true => self.many(2, |d| Certificate::Sds(d.name())),
            false => self.many(2, Self::own_certificate),
        };
        if certificates.is_empty() {
            certificates.push(Certificate::Sds("default".into()));
        }
        DownstreamTls {
            certificates,
            validation: self.maybe(Self::validation),
            require_client_certificate: self.flag(),
            alpn: self.many(2, Self::name),
            versions: self.versions(),
        }
    }

    fn upstream(&mut self) -> UpstreamTls {
        UpstreamTls {
            certificate: self.maybe(|d| match d.flag() {
                true => Certificate::Sds("default".into()),
                false => d.own_certificate(),
            }),
            validation: self.validation(),
            sni: self.maybe(Self::name),
            alpn: self.many(2, Self::name),
            versions: self.versions(),
        }
    }

    pub(super) fn secret(&mut self) -> Secret {
        match self.flag() {
            true => Secret::Certificate(self.key_pair()),
            false => Secret::Roots(self.many(9, Self::byte).into()),
        }
    }

    pub(super) fn endpoints(&mut self) -> Endpoints {
        Endpoints {
            name: self.name(),
            localities: self.many(3, |d| Locality {
                name: d.one(&["", "r", "r/z", "r/z/s"]).into(),
                priority: u32::from(d.byte() % 4),
                weight: d.maybe(Self::number),
                endpoints: d.many(3, |d| Arc::new(d.endpoint())),
            }),
        }
    }

    fn endpoint(&mut self) -> Endpoint {
        let address = match self.byte() % 3 {
            0 => Address::Ip(self.socket()),
            1 => Address::Dns(self.token(), self.port()),
            _ => Address::Pipe(self.name()),
        };
        Endpoint {
            address,
            health: self.one(&[Health::Healthy, Health::Degraded, Health::Draining, Health::Unhealthy]),
            weight: self.number().max(1),
            tls_labels: self.pairs(),
            workload: self.maybe(Self::name).unwrap_or_default(),
        }
    }

    pub(super) fn cluster(&mut self) -> Cluster {
        let discovery = match self.byte() % 5 {
            0 => Discovery::Eds { service: self.name() },
            1 => Discovery::Static(Arc::new(self.endpoints())),
            2 => Discovery::StrictDns(Arc::new(self.endpoints())),
            3 => Discovery::LogicalDns(Arc::new(self.endpoints())),
            _ => Discovery::OriginalDst,
        };
        let balance = match self.byte() % 5 {
            _ if discovery == Discovery::OriginalDst => Balance::Provided,
            0 => Balance::LeastRequest,
            1 => Balance::RoundRobin,
            2 => Balance::Random,
            3 => Balance::RingHash { minimum: u64::from(self.number() / 2) },
            _ => Balance::Maglev { size: u64::from(self.number() / 4) },
        };
        Cluster {
            name: self.name(),
            discovery,
            connect_timeout: self.time(),
            balance,
            limits: Limits {
                connections: self.maybe(Self::number),
                pending: self.maybe(Self::number),
                requests: self.maybe(Self::number),
                retries: self.maybe(Self::number),
            },
            outlier: self.maybe(Self::outlier),
            panic_percent: u32::from(self.byte() % 101),
            tls: ClusterTls {
                default: self.maybe(|d| Arc::new(d.upstream())),
                matches: self.many(2, |d| TlsMatch {
                    name: d.name(),
                    labels: d.pairs(),
                    tls: d.maybe(|d| Arc::new(d.upstream())),
                }),
            },
            protocol: self.one(&[Protocol::Http1, Protocol::Http2, Protocol::Downstream, Protocol::Auto]),
            max_requests_per_connection: u32::from(self.byte()),
            idle_timeout: if self.flag() { self.time() } else { Duration::from_secs(3600) },
            source_address: self.maybe(Self::ip),
            keepalive: self.maybe(|d| Keepalive {
                probes: d.maybe(Self::number),
                time: d.maybe(Self::number),
                interval: d.maybe(Self::number),
            }),
            service: self.maybe(|d| Service { host: d.name(), name: d.name(), namespace: d.name() }),
            source: self.maybe(Self::source),
        }
    }

    fn outlier(&mut self) -> Outlier {
        let split_local = self.flag();
        let count = |d: &mut Self| d.number().max(1);
        let base = self.time();
        Outlier {
            consecutive_5xx: self.maybe(count),
            consecutive_gateway: self.maybe(count),
            consecutive_local: self.maybe(count).filter(|_| split_local),
            split_local,
            interval: self.time(),
            base_ejection: base,
            max_ejection: base + self.time(),
            max_percent: u32::from(self.byte() % 101),
        }
    }
}
