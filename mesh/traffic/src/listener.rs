//! Listeners: where the proxy accepts, how it tells connections apart, and what becomes of them.
//!
//! In: pilot or LDS. Out: [`Listener`], immutable, with [`Listener::chain_for`]. Kept true: chain choice follows Envoy's order of criteria.
//! Not here: sockets (`proxy`).

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use crate::{
    filter::HttpFilter,
    names::{Direction, Name, SourceObject},
    rbac::Rbac,
    route::{RouteConfiguration, Split, Target},
    tls::DownstreamTls,
};

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Name, e.g. `0.0.0.0_8080` or `virtualInbound`.
    pub name: Name,
    /// Where it binds.
    pub address: SocketAddr,
    /// Further addresses of the same listener.
    pub additional: Vec<SocketAddr>,
    /// Binds a socket. Off: only connections that `use_original_dst` of another listener hands over.
    pub bind: bool,
    /// Hands connections to the listener of their original destination, when there is one.
    pub use_original_dst: bool,
    /// Way of its traffic.
    pub direction: Direction,
    /// What is looked at before a chain is chosen.
    pub inspect: Inspect,
    /// Filter chains.
    pub chains: Vec<Arc<FilterChain>>,
    /// When no chain matches; `None` closes the connection.
    pub default_chain: Option<Arc<FilterChain>>,
    /// Logs connections that no chain took.
    pub access_log: Vec<AccessLog>,
}

/// What is looked at before a chain is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Inspect {
    /// The address that the connection was sent to before it was captured.
    pub original_dst: bool,
    /// The ClientHello: TLS or not, server name, ALPN.
    pub tls: bool,
    /// The first bytes: HTTP/1, HTTP/2 or neither.
    pub http: bool,
    /// Longest wait for those bytes. `None`: 100 ms when a plain chain can take over, else 15 s.
    pub timeout: Option<Duration>,
}

/// What a connection must be like, and what becomes of it then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterChain {
    /// Name.
    pub name: Name,
    /// Criteria.
    pub matcher: ChainMatch,
    /// TLS; `None` for plaintext or passthrough.
    pub tls: Option<DownstreamTls>,
    /// Rules on the connection itself, in order.
    pub rbac: Vec<Arc<Rbac>>,
    /// What is done with it.
    pub terminal: Terminal,
    /// The object it was made from.
    pub source: Option<SourceObject>,
}

/// Criteria of a chain. An empty list is no criterion.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChainMatch {
    /// Original destination port.
    pub port: Option<u16>,
    /// Original destination addresses.
    pub destinations: Vec<Cidr>,
    /// Server names: exact or `*.suffix`, in lower case.
    pub server_names: Vec<Name>,
    /// TLS or plaintext.
    pub transport: Option<Transport>,
    /// ALPN protocols, or what HTTP inspection found (`http/1.1`, `h2c`).
    pub protocols: Vec<Name>,
    /// Addresses of clients.
    pub sources: Vec<Cidr>,
}

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A TLS ClientHello.
    Tls,
    /// Anything else.
    Raw,
}

/// A block of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    /// Any address of the block.
    pub address: IpAddr,
    /// Leading bits that count.
    pub length: u8,
}

impl Cidr {
    /// A block of one address.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        Self { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Reads `10.0.0.0/8` or a single address.
    ///
    /// # Errors
    /// Why it is neither.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr =
            address.parse().map_err(|_| format!("{text:?} is not an address or CIDR block"))?;
        let full = Self::host(address);
        let Some(length) = length else { return Ok(full) };
        match length.parse::<u8>() {
            Ok(length) if length <= full.length => Ok(Self { address, length }),
            _ => Err(format!("{text:?} has a prefix length outside 0..={}", full.length)),
        }
    }

    /// True when `address` lies in the block.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let bits = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => u128::from(u32::from(ip)) << 96,
            IpAddr::V6(ip) => u128::from(ip),
        };
        if self.address.is_ipv4() != address.is_ipv4() {
            return false;
        }
        self.length == 0 || (bits(self.address) ^ bits(address)) >> (128 - u32::from(self.length)) == 0
    }
}

/// What is done with a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Terminal {
    /// Spoken to in HTTP.
    Http(Arc<HttpManager>),
    /// Copied to an upstream.
    Tcp(Arc<TcpProxy>),
}

/// Copies bytes to an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpProxy {
    /// Prefix of its counters.
    pub stat_prefix: Name,
    /// Where to; a split draws once per connection.
    pub target: Target,
    /// Closed after this much silence both ways. Envoy: 1 h; zero for never.
    pub idle_timeout: Duration,
    /// Logs.
    pub access_log: Vec<AccessLog>,
    /// Cluster of an Envoy access log service to report to. Our proxies report to mixer on a stream of their own instead.
    pub log_service: Option<Name>,
}

impl TcpProxy {
    /// The cluster for a draw.
    #[must_use]
    pub fn pick(&self, draw: u64) -> &Name {
        match &self.target {
            Target::Cluster(name) => name,
            Target::Split(split) => &Split::pick(split, draw).cluster,
        }
    }
}

/// Which HTTP versions a listener takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Codec {
    /// Whatever the client speaks.
    #[default]
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only.
    Http2,
}

/// Where an HTTP listener's routes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteSource {
    /// In the listener.
    Inline(Arc<RouteConfiguration>),
    /// An RDS resource by name.
    Rds(Name),
}

/// What becomes of a client's word about itself in `x-forwarded-client-cert`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForwardClientCert {
    /// Removed. Envoy's default.
    #[default]
    Sanitize,
    /// Passed on when the connection is mTLS, else removed.
    ForwardOnly,
    /// Ours is appended when the connection is mTLS, else removed.
    AppendForward,
    /// Replaced by ours when the connection is mTLS, else removed.
    SanitizeSet,
    /// Passed on whatever the connection is.
    AlwaysForwardOnly,
}

/// How an HTTP listener treats its requests (Envoy's HttpConnectionManager).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpManager {
    /// Prefix of its counters.
    pub stat_prefix: Name,
    /// HTTP versions.
    pub codec: Codec,
    /// Routes.
    pub routes: RouteSource,
    /// Filters in request order; the router is last.
    pub filters: Vec<HttpFilter>,
    /// What is sent as `server`; `None` passes the upstream's on.
    pub server_name: Option<Name>,
    /// Treatment of `x-forwarded-client-cert`.
    pub forward_client_cert: ForwardClientCert,
    /// Trusts only the peer's address, not `x-forwarded-for`: the edge of the mesh.
    pub use_remote_address: bool,
    /// Trusted proxies in front of this one.
    pub xff_trusted_hops: u32,
    /// Does not add the peer to `x-forwarded-for`.
    pub skip_xff_append: bool,
    /// Upgrades that are passed on, e.g. `websocket`.
    pub upgrades: Vec<Name>,
    /// Tracing.
    pub tracing: Option<Tracing>,
    /// Logs.
    pub access_log: Vec<AccessLog>,
    /// Cluster of an Envoy access log service to report to. Our proxies report to mixer on a stream of their own instead.
    pub log_service: Option<Name>,
    /// Longest silence of a stream. Envoy: 5 min; zero for never.
    pub stream_idle_timeout: Duration,
    /// Longest time a request may take to arrive; zero for no limit.
    pub request_timeout: Duration,
    /// Longest time a head may take; zero for the proxy's own limit.
    pub headers_timeout: Duration,
    /// An idle connection is closed after this. Envoy: 1 h.
    pub idle_timeout: Duration,
    /// Size of a head in KiB. Default 60.
    pub max_head_kib: u32,
    /// Resolves `.` and `..` and percent-encoded unreserved letters before anything looks at the path. Istio: on.
    pub normalize_path: bool,
    /// Merges `//`.
    pub merge_slashes: bool,
    /// Way of its traffic, for spans and telemetry.
    pub direction: Direction,
}

impl Default for HttpManager {
    fn default() -> Self {
        Self {
            stat_prefix: Name::default(),
            codec: Codec::Auto,
            routes: RouteSource::Inline(Arc::default()),
            filters: Vec::new(),
            server_name: None,
            forward_client_cert: ForwardClientCert::Sanitize,
            use_remote_address: false,
            xff_trusted_hops: 0,
            skip_xff_append: false,
            upgrades: Vec::new(),
            tracing: None,
            access_log: Vec::new(),
            log_service: None,
            stream_idle_timeout: Duration::from_secs(300),
            request_timeout: Duration::ZERO,
            headers_timeout: Duration::ZERO,
            idle_timeout: Duration::from_secs(3600),
            max_head_kib: 60,
            normalize_path: true,
            merge_slashes: false,
            direction: Direction::Outbound,
        }
    }
}

/// Which requests are traced when the client did not decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tracing {
    /// Of a million requests.
    pub per_million: u32,
}

/// An access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLog {
    /// File; `/dev/stdout` for the process's output.
    pub path: Name,
    /// The line.
    pub format: LogFormat,
}

/// Form of a log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogFormat {
    /// Text with `%COMMAND%`s.
    Text(Name),
    /// A JSON object: field → text with commands, in order.
    Json(Vec<(Name, Name)>),
}

/// Istio's default access log line.
pub const ISTIO_LOG_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
\"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% \
%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// What is known of a connection when its chain is chosen.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionFacts<'a> {
    /// Where it was sent.
    pub destination: SocketAddr,
    /// Who sent it.
    pub source: SocketAddr,
    /// TLS or not.
    pub transport: Transport,
    /// Server name, lower case; empty for none.
    pub server_name: &'a str,
    /// ALPN protocols offered, or what HTTP inspection found.
    pub protocols: &'a [&'a str],
}

impl Listener {
    /// The chain for a connection. As in Envoy, criteria are weighed in a fixed order (port, destination, server name,
    /// transport, protocol, source); at each, the most specific value that matches wins, and there is no way back.
    #[must_use]
    pub fn chain_for(&self, facts: &ConnectionFacts<'_>) -> Option<&Arc<FilterChain>> {
        let mut left: Vec<&Arc<FilterChain>> = self.chains.iter().collect();
        let ranks: [Rank<'_>; 6] = [
            &|m| rank(m.port.is_none(), m.port == Some(facts.destination.port()), 1),
            &|m| longest(&m.destinations, facts.destination.ip()),
            &|m| server_name(&m.server_names, facts.server_name),
            &|m| rank(m.transport.is_none(), m.transport == Some(facts.transport), 1),
            // The client's own order decides among the protocols that it offers.
            &|m| {
                let wanted = |offered: &&str| m.protocols.iter().any(|p| &**p == *offered);
                let first = facts.protocols.iter().position(wanted);
                let score = first.map(|place| facts.protocols.len() - place);
                if m.protocols.is_empty() { Some(0) } else { score }
            },
            &|m| longest(&m.sources, facts.source.ip()),
        ];
        for rank in ranks {
            let best = left.iter().filter_map(|chain| rank(&chain.matcher)).max()?;
            left.retain(|chain| rank(&chain.matcher) == Some(best));
        }
        left.first().copied()
    }

    /// [`Self::chain_for`], or the default chain.
    #[must_use]
    pub fn chain_or_default(&self, facts: &ConnectionFacts<'_>) -> Option<&Arc<FilterChain>> {
        self.chain_for(facts).or(self.default_chain.as_ref())
    }

    /// Every HTTP manager of the listener, for whoever needs to know which resources it refers to.
    pub fn managers(&self) -> impl Iterator<Item = &Arc<HttpManager>> {
        self.all_chains().filter_map(|chain| match &chain.terminal {
            Terminal::Http(manager) => Some(manager),
            Terminal::Tcp(_) => None,
        })
    }

    /// Every chain, the default one last.
    pub fn all_chains(&self) -> impl Iterator<Item = &Arc<FilterChain>> {
        self.chains.iter().chain(&self.default_chain)
    }
}

/// How specifically a criterion matches: `None` when it does not, 0 when there is none.
type Rank<'a> = &'a dyn Fn(&ChainMatch) -> Option<usize>;

fn rank(absent: bool, hit: bool, value: usize) -> Option<usize> {
    if absent { Some(0) } else { hit.then_some(value) }
}

fn longest(blocks: &[Cidr], address: IpAddr) -> Option<usize> {
    let best = blocks
        .iter()
        .filter(|block| block.contains(address))
        .map(|block| usize::from(block.length) + 1)
        .max();
    if blocks.is_empty() { Some(0) } else { best }
}

fn server_name(names: &[Name], wanted: &str) -> Option<usize> {
    if names.is_empty() {
        return Some(0);
    }
    let score = |name: &Name| match name.strip_prefix('*') {
        Some(suffix) => (wanted.len() > suffix.len() && wanted.ends_with(suffix)).then_some(suffix.len() + 1),
        None => (&**name == wanted).then_some(usize::MAX),
    };
    names.iter().filter_map(score).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(name: &str, matcher: ChainMatch) -> Arc<FilterChain> {
        let target = Target::Cluster("c".into());
        let tcp = TcpProxy {
            stat_prefix: "t".into(),
            target,
            idle_timeout: Duration::ZERO,
            access_log: Vec::new(),
            log_service: None,
        };
        let terminal = Terminal::Tcp(Arc::new(tcp));
        Arc::new(FilterChain {
            name: name.into(),
            matcher,
            tls: None,
            rbac: Vec::new(),
            terminal,
            source: None,
        })
    }

    #[test]
    fn chains_are_chosen_by_the_most_specific_value_of_each_criterion_in_order() {
        let listener = Listener {
            name: "l".into(),
            address: ([127, 0, 0, 1], 80).into(),
            additional: Vec::new(),
            bind: true,
            use_original_dst: false,
            direction: Direction::Inbound,
            inspect: Inspect::default(),
            chains: vec![
                chain("tls", ChainMatch { transport: Some(Transport::Tls), ..ChainMatch::default() }),
                chain("raw", ChainMatch { transport: Some(Transport::Raw), ..ChainMatch::default() }),
                chain("port", ChainMatch { port: Some(81), ..ChainMatch::default() }),
                chain("sni", ChainMatch { server_names: vec!["a.example".into()], ..ChainMatch::default() }),
                chain("wild", ChainMatch { server_names: vec!["*.example".into()], ..ChainMatch::default() }),
            ],
            default_chain: None,
            access_log: Vec::new(),
        };
        for (port, transport, sni, want) in [
            (80, Transport::Tls, "", "tls"),
            (80, Transport::Raw, "", "raw"),
            (81, Transport::Tls, "", "port"),
            (80, Transport::Tls, "a.example", "sni"),
            (80, Transport::Tls, "b.example", "wild"),
        ] {
            let facts = ConnectionFacts {
                destination: ([10, 0, 0, 1], port).into(),
                source: ([10, 0, 0, 2], 9).into(),
                transport,
                server_name: sni,
                protocols: &[],
            };
            let name = listener.chain_for(&facts).map(|chain| chain.name.to_string());
            assert_eq!(name.as_deref(), Some(want), "{port} {transport:?} {sni:?}");
        }
    }

    #[test]
    fn among_protocols_the_clients_order_decides() {
        let speaks = |protocols: &[&str]| ChainMatch {
            protocols: protocols.iter().map(|p| Name::from(*p)).collect(),
            ..ChainMatch::default()
        };
        let listener = Listener {
            name: "l".into(),
            address: ([127, 0, 0, 1], 80).into(),
            additional: Vec::new(),
            bind: true,
            use_original_dst: false,
            direction: Direction::Inbound,
            inspect: Inspect::default(),
            chains: vec![chain("h1", speaks(&["http/1.1", "http/1.0"])), chain("h2", speaks(&["h2"]))],
            default_chain: Some(chain("default", ChainMatch::default())),
            access_log: Vec::new(),
        };
        for (offered, want) in [
            (&["h2", "http/1.1"][..], "h2"),
            (&["http/1.1", "h2"], "h1"),
            (&["x", "http/1.0", "h2"], "h1"),
            (&["x"], "default"),
            (&[], "default"),
        ] {
            let facts = ConnectionFacts {
                destination: ([10, 0, 0, 1], 80).into(),
                source: ([10, 0, 0, 2], 9).into(),
                transport: Transport::Tls,
                server_name: "",
                protocols: offered,
            };
            let name = listener.chain_or_default(&facts).map(|chain| chain.name.to_string());
            assert_eq!(name.as_deref(), Some(want), "{offered:?}");
        }
    }

    #[test]
    fn blocks_contain_their_addresses_only() {
        for (block, address, want) in [
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("0.0.0.0/0", "::1", false),
            ("::1", "::1", true),
            ("10.0.0.1", "10.0.0.2", false),
        ] {
            let block = Cidr::parse(block).expect("a block");
            assert_eq!(block.contains(address.parse().expect("an address")), want, "{block:?} {address}");
        }
        assert!(Cidr::parse("10.0.0.0/33").is_err());
    }
}
