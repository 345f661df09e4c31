//! The work matrix: what is measured, against whom, and what was aimed at.
//!
//! In: nothing. Out: [`all`]. Kept true: ids are unique; rows with the same mesh stand together, so that it is started once.
//! Not here: measuring (`measure`).

use super::{
    generate::Work,
    world::{Setup, Who},
};

/// One row of the matrix.
#[derive(Debug, Clone)]
pub struct Row {
    /// For `--only`.
    pub id: &'static str,
    /// As it stands in tables.
    pub title: &'static str,
    /// The mesh.
    pub setup: Setup,
    /// What is measured.
    pub kind: Kind,
    /// Through client and server sidecar, else through one proxy.
    pub pair: bool,
    /// The competitors.
    pub who: &'static [Who],
    /// What was aimed at.
    pub targets: Vec<Target>,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// CPU time per good answer, in microseconds, at saturation.
    CpuPerRequest(Work),
    /// CPU time per MiB that the generator read, in microseconds, at saturation.
    CpuPerMib(Work),
    /// Latency in microseconds at a fixed rate, from the moment a request was due.
    Latency {
        /// Requests per second.
        rate: u32,
        /// Which quantile, e.g. 0.99.
        quantile: f64,
    },
    /// Resident memory without load, in MB (10⁶ bytes).
    Idle,
    /// Resident memory per idle connection, in KB (10³ bytes).
    PerConnection {
        /// HTTP/2 connections instead of HTTP/1.1.
        http2: bool,
    },
    /// p99 with endpoints changing all the time, as a multiple of p99 without, one after the other.
    Churn {
        /// Requests per second.
        rate: u32,
    },
    /// Finding the route of a request among so many services, in nanoseconds: `mesh-traffic`'s example `lookup`.
    Lookup(u16),
    /// System calls per good answer, counted by strace.
    Syscalls(Work),
}

/// A bound on our figure: absolute, or as part of a competitor's.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Whose figure ours is divided by; absolute without.
    pub over: Option<Who>,
    /// The largest value that meets the target.
    pub at_most: f64,
}

const fn over(who: Who, at_most: f64) -> Target {
    Target { over: Some(who), at_most }
}

const fn absolute(at_most: f64) -> Target {
    Target { over: None, at_most }
}

const PROXIES: &[Who] = &[Who::Crema, Who::Envoy, Who::Haproxy, Who::Nginx, Who::HaproxyTcp];
const MESH: &[Who] = &[Who::Crema, Who::Envoy];
const H2: &[Who] = &[Who::Crema, Who::Envoy, Who::Haproxy];
const OURS: &[Who] = &[Who::Crema];

/// Small answers over 32 connections that stay.
const SMALL: Work = Work::Http1 { path: "/1k", connections: 32, close: false };

const fn http1(path: &'static str, connections: u16) -> Work {
    Work::Http1 { path, connections, close: false }
}

const PLAIN: Setup = Setup { telemetry: false, ..Setup::FULL };
const MTLS: Setup = Setup { mtls: true, rbac: 10, ..Setup::FULL };

const HANDSHAKES: &str = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: one, namespace: \
                          default}\nspec: {host: '*.default.svc.cluster.local', trafficPolicy: {connectionPool: {http: \
                          {maxRequestsPerConnection: 1}}}}\n";
const REGEX: &str = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: TARGET, namespace: \
                     default}\nspec:\n  hosts: [TARGET]\n  http:\n  - match:\n    - headers: {user-agent: {regex: \
                     '.*Firefox.*'}}\n    - headers: {cookie: {regex: '^(.*?; )?(user=tester)(;.*)?$'}}\n    - uri: {regex: \
                     '/api/v[0-9]+/.*'}\n    route: [{destination: {host: s0}}]\n  - timeout: 15s\n    route: [{destination: {host: TARGET}}]\n";
const NO_FAULT: &str = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: TARGET, namespace: \
                        default}\nspec:\n  hosts: [TARGET]\n  http:\n  - fault: {delay: {fixedDelay: 1s, percentage: {value: 0}}, abort: {httpStatus: 500, percentage: {value: 0}}}\n    timeout: 15s\n    route: [{destination: {host: TARGET}}]\n";

/// Every row.
#[must_use]
pub fn all() -> Vec<Row> {
    let row =
        |id, title, setup, kind| Row { id, title, setup, kind, pair: false, who: PROXIES, targets: vec![] };
    let cpu = Kind::CpuPerRequest;
    let mut rows = vec![
        Row {
            who: MESH,
            targets: vec![absolute(12.0)],
            ..row("rss-200", "resident memory idle, 200 services", Setup::FULL, Kind::Idle)
        },
        Row {
            targets: vec![over(Who::Envoy, 1.0 / 3.0), over(Who::Haproxy, 1.15), over(Who::HaproxyTcp, 1.1)],
            ..row("hop", "HTTP/1.1 hop, 1 KiB, 32 connections", Setup::FULL, cpu(SMALL))
        },
        row("hop-empty", "HTTP/1.1 hop, empty body, 32 connections", Setup::FULL, cpu(http1("/0", 32))),
        row("hop-1", "HTTP/1.1 hop, 1 KiB, 1 connection", Setup::FULL, cpu(http1("/1k", 1))),
        row("hop-1000", "HTTP/1.1 hop, 1 KiB, 1,000 connections", Setup::FULL, cpu(http1("/1k", 1000))),
        row(
            "hop-new",
            "HTTP/1.1 hop, a new connection for each request",
            Setup::FULL,
            cpu(Work::Http1 { path: "/1k", connections: 8, close: true }),
        ),
        Row {
            who: &[Who::Crema, Who::Envoy, Who::Haproxy],
            ..row("hop-syscalls", "HTTP/1.1 hop, system calls", Setup::FULL, Kind::Syscalls(SMALL))
        },
        Row {
            who: &[Who::Crema, Who::Envoy, Who::Haproxy, Who::Nginx],
            ..row(
                "hop-p99",
                "HTTP/1.1 hop, p99 at 2,000 requests per second",
                Setup::FULL,
                Kind::Latency { rate: 2000, quantile: 0.99 },
            )
        },
        Row {
            who: MESH,
            targets: vec![absolute(1.2)],
            ..row(
                "churn",
                "p99 during 1,000 endpoint changes per second, at 500 requests per second",
                Setup::FULL,
                Kind::Churn { rate: 500 },
            )
        },
        Row {
            who: MESH,
            pair: true,
            ..row("pair", "sidecar pair, plaintext, 1 KiB, 32 connections", Setup::FULL, cpu(SMALL))
        },
    ];
    for (id, title, services) in [
        ("lookup-1", "route lookup, 1 service", 1),
        ("lookup-200", "route lookup, 200 services", 200),
        ("lookup-5000", "route lookup, 5,000 services", 5000),
    ] {
        let target = vec![absolute(200.0)];
        rows.push(Row { who: OURS, targets: target, ..row(id, title, Setup::FULL, Kind::Lookup(services)) });
    }
    rows.extend(bodies_and_streams());
    rows.extend(memory());
    rows.extend(mutual_tls());
    rows.extend(features());
    rows
}

fn bodies_and_streams() -> Vec<Row> {
    let row = |id, title, kind| Row {
        id,
        title,
        setup: Setup::FULL,
        kind,
        pair: false,
        who: PROXIES,
        targets: vec![],
    };
    let unary = Work::Http2 { path: "/bench.Echo/Unary", connections: 4, streams: 8, grpc: true };
    let get = Work::Http2 { path: "/1k", connections: 4, streams: 8, grpc: false };
    let stream = Work::Http2 { path: "/bench.Echo/Stream", connections: 4, streams: 2, grpc: true };
    let bytes = vec![over(Who::Envoy, 1.0), over(Who::Haproxy, 1.2)];
    vec![
        Row {
            who: H2,
            targets: vec![over(Who::Envoy, 1.0 / 3.0)],
            ..row("h2", "HTTP/2 hop, 1 KiB, 4 connections × 8 streams", Kind::CpuPerRequest(get))
        },
        Row {
            who: H2,
            targets: vec![over(Who::Envoy, 1.0 / 3.0)],
            ..row("grpc", "gRPC unary hop, 4 connections × 8 streams", Kind::CpuPerRequest(unary))
        },
        Row {
            who: H2,
            targets: vec![over(Who::Envoy, 0.5)],
            ..row("grpc-stream", "gRPC, messages of 1 MiB", Kind::CpuPerMib(stream))
        },
        Row {
            targets: bytes.clone(),
            ..row("body-64k", "HTTP/1.1 hop, 64 KiB bodies", Kind::CpuPerMib(http1("/64k", 16)))
        },
        Row {
            targets: bytes,
            ..row("body-10m", "HTTP/1.1 hop, 10 MiB bodies", Kind::CpuPerMib(http1("/10m", 4)))
        },
        Row {
            who: &[Who::Crema, Who::Envoy, Who::HaproxyTcp],
            targets: vec![over(Who::Envoy, 1.0), over(Who::HaproxyTcp, 1.2)],
            ..row("tcp", "TCP stream", Kind::CpuPerMib(http1("/10m", 4)))
        },
    ]
}

fn memory() -> Vec<Row> {
    let row =
        |id, title, setup, kind, targets| Row { id, title, setup, kind, pair: false, who: MESH, targets };
    let many = Setup { services: 5000, ..Setup::FULL };
    vec![
        row(
            "idle-h1",
            "per idle HTTP/1.1 connection",
            PLAIN,
            Kind::PerConnection { http2: false },
            vec![absolute(10.0)],
        ),
        row(
            "idle-h2",
            "per idle HTTP/2 connection",
            PLAIN,
            Kind::PerConnection { http2: true },
            vec![absolute(16.0)],
        ),
        row(
            "rss-5000",
            "resident memory idle, 5,000 services",
            many.clone(),
            Kind::Idle,
            vec![absolute(40.0)],
        ),
        row(
            "hop-5000",
            "HTTP/1.1 hop, 5,000 services",
            many,
            Kind::CpuPerRequest(SMALL),
            vec![over(Who::Envoy, 1.0 / 3.0)],
        ),
    ]
}

fn mutual_tls() -> Vec<Row> {
    let row =
        |id, title, setup, kind, targets| Row { id, title, setup, kind, pair: true, who: MESH, targets };
    let one = Setup { yaml: HANDSHAKES, telemetry: false, ..MTLS };
    vec![
        row(
            "pair-mtls",
            "sidecar pair, mTLS, RBAC, telemetry",
            MTLS,
            Kind::CpuPerRequest(SMALL),
            vec![over(Who::Envoy, 0.25)],
        ),
        row(
            "pair-mtls-p99",
            "sidecar pair, mTLS: p99 at 1,000 requests per second",
            MTLS,
            Kind::Latency { rate: 1000, quantile: 0.99 },
            vec![over(Who::Envoy, 0.5)],
        ),
        row(
            "pair-mtls-64k",
            "sidecar pair, mTLS, 64 KiB bodies",
            MTLS,
            Kind::CpuPerMib(http1("/64k", 16)),
            vec![],
        ),
        row(
            "handshakes",
            "sidecar pair, a new mTLS connection for each request",
            one,
            Kind::CpuPerRequest(Work::Http1 { path: "/0", connections: 8, close: false }),
            vec![over(Who::Envoy, 1.0 / 1.5)],
        ),
    ]
}

/// The HTTP/1.1 hop with one thing more, or one less, than `feature-none`.
fn features() -> Vec<Row> {
    let row = |id, title, setup| Row {
        id,
        title,
        setup,
        kind: Kind::CpuPerRequest(SMALL),
        pair: false,
        who: MESH,
        targets: vec![],
    };
    let few = Setup { services: 1, ..PLAIN };
    let pair = |row: Row| Row { pair: true, ..row };
    vec![
        row("feature-none", "HTTP/1.1 hop without telemetry", PLAIN),
        row("feature-few", "… with 1 service instead of 200", few),
        row("feature-regex", "… and three regex matches that do not match", Setup { yaml: REGEX, ..PLAIN }),
        row("feature-fault", "… and a fault filter at 0 %", Setup { yaml: NO_FAULT, ..PLAIN }),
        row("feature-log", "… and an access log", Setup { access_log: true, ..PLAIN }),
        Row {
            who: OURS,
            ..row("feature-trace-1", "telemetry, tracing at 1 %", Setup { sampling: 1.0, ..Setup::FULL })
        },
        Row {
            who: OURS,
            ..row(
                "feature-trace-100",
                "telemetry, tracing at 100 %",
                Setup { sampling: 100.0, ..Setup::FULL },
            )
        },
        pair(row("feature-pair", "pair, mTLS, without RBAC and telemetry", Setup { mtls: true, ..PLAIN })),
        pair(row(
            "feature-rbac",
            "pair, mTLS, and RBAC with 50 rules",
            Setup { mtls: true, rbac: 50, ..PLAIN },
        )),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_are_unique() {
        let rows = super::all();
        let ids: std::collections::BTreeSet<_> = rows.iter().map(|r| r.id).collect();
        assert_eq!(ids.len(), rows.len());
    }
}
