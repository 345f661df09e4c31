//! Checks of one DestinationRule.
//!
//! In: [`DestinationRule`]. Out: findings. Kept true: a limit that would refuse all traffic is never accepted.
//! Not here: whether the host exists (`set`).

use super::Findings;
use super::routes::{export_to, header_name};
use crate::kinds::*;

pub(super) fn check(rule: &DestinationRule, f: &mut Findings<'_>) {
    f.host(&rule.host, "spec.host");
    export_to(&rule.export_to, "spec.exportTo", f);
    if let Some(policy) = &rule.traffic_policy {
        traffic_policy(policy, "spec.trafficPolicy", f);
    }
    super::security::labels(rule.workload_selector.as_ref(), "spec.workloadSelector.matchLabels", f);
    f.most(rule.subsets.len(), 1024, "spec.subsets");
    for (i, subset) in rule.subsets.iter().enumerate() {
        let at = format!("spec.subsets[{i}]");
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
        if subset.name.is_empty() {
            f.error(format!("{at}.name"), "is empty: give the subset a name");
        } else if !subset.name.chars().all(plain) {
            f.error(
                format!("{at}.name"),
                format!("{:?} is no subset name: use letters, digits, '-' and '.'", subset.name),
            );
        }
        if rule.subsets[..i].iter().any(|s| s.name == subset.name) {
            f.error(
                format!("{at}.name"),
                format!("subset {:?} is there twice: rename or remove one", subset.name),
            );
        }
        if subset.labels.is_empty() && subset.traffic_policy.is_none() {
            f.warn(&at, "has no labels, so it means every endpoint of the host: write labels");
        }
        if let Some(policy) = &subset.traffic_policy {
            traffic_policy(policy, &format!("{at}.trafficPolicy"), f);
        }
    }
}

fn traffic_policy(policy: &TrafficPolicy, field: &str, f: &mut Findings<'_>) {
    let TrafficPolicy { load_balancer, connection_pool, outlier_detection, tls, .. } = policy;
    blocks(
        load_balancer.as_ref(),
        connection_pool.as_ref(),
        outlier_detection.as_ref(),
        tls.as_ref(),
        field,
        f,
    );
    f.unsupported(policy.tunnel.is_some(), format!("{field}.tunnel"));
    f.unsupported(policy.proxy_protocol.is_some(), format!("{field}.proxyProtocol"));
    f.unsupported(policy.retry_budget.is_some(), format!("{field}.retryBudget"));
    f.most(policy.port_level_settings.len(), 256, format!("{field}.portLevelSettings"));
    for (i, port) in policy.port_level_settings.iter().enumerate() {
        let at = format!("{field}.portLevelSettings[{i}]");
        match port.port.number {
            Some(number) => f.port(number, format!("{at}.port.number")),
            None => f.error(format!("{at}.port"), "has no number: write port.number"),
        }
        let PortTrafficPolicy { load_balancer, connection_pool, outlier_detection, tls, .. } = port;
        blocks(
            load_balancer.as_ref(),
            connection_pool.as_ref(),
            outlier_detection.as_ref(),
            tls.as_ref(),
            &at,
            f,
        );
    }
}

fn blocks(
    lb: Option<&LoadBalancer>,
    pool: Option<&ConnectionPool>,
    outlier: Option<&OutlierDetection>,
    tls: Option<&ClientTls>,
    field: &str,
    f: &mut Findings<'_>,
) {
    if let Some(lb) = lb {
        load_balancer(lb, &format!("{field}.loadBalancer"), f);
    }
    if let Some(pool) = pool {
        connection_pool(pool, &format!("{field}.connectionPool"), f);
    }
    if let Some(outlier) = outlier {
        outlier_detection(outlier, &format!("{field}.outlierDetection"), f);
    }
    if let Some(tls) = tls {
        client_tls(tls, &format!("{field}.tls"), f);
    }
}

fn load_balancer(lb: &LoadBalancer, field: &str, f: &mut Findings<'_>) {
    f.at_most_one(
        field,
        &[("simple", lb.simple.is_some()), ("consistentHash", lb.consistent_hash.is_some())],
    );
    f.legacy(lb.simple == Some(SimpleLb::LeastConn), format!("{field}.simple"), "write LEAST_REQUEST");
    f.unsupported(lb.zone_aware_lb_setting.is_some(), format!("{field}.zoneAwareLbSetting"));
    f.unsupported(lb.warmup.is_some(), format!("{field}.warmup"));
    f.unsupported(lb.warmup_duration_secs.is_some(), format!("{field}.warmupDurationSecs"));
    if let Some(hash) = &lb.consistent_hash {
        let at = format!("{field}.consistentHash");
        let keys = [
            ("httpHeaderName", hash.http_header_name.is_some()),
            ("httpCookie", hash.http_cookie.is_some()),
            ("useSourceIp", hash.use_source_ip.is_some()),
            ("httpQueryParameterName", hash.http_query_parameter_name.is_some()),
        ];
        f.at_most_one(&at, &keys);
        if keys.iter().all(|(_, there)| !there) {
            f.error(
                &at,
                "has no key: write httpHeaderName, httpCookie, useSourceIp or httpQueryParameterName",
            );
        }
        f.at_most_one(&at, &[("ringHash", hash.ring_hash.is_some()), ("maglev", hash.maglev.is_some())]);
        if let Some(name) = &hash.http_header_name {
            header_name(name, &format!("{at}.httpHeaderName"), f);
        }
        if hash.http_cookie.as_ref().is_some_and(|c| c.name.is_empty()) {
            f.error(format!("{at}.httpCookie.name"), "is empty: name the cookie");
        }
        f.legacy(
            hash.minimum_ring_size.is_some(),
            format!("{at}.minimumRingSize"),
            "write ringHash.minimumRingSize",
        );
    }
    if let Some(locality) = &lb.locality_lb_setting {
        locality_lb(locality, &format!("{field}.localityLbSetting"), f);
    }
}

pub(super) fn locality_lb(setting: &LocalityLb, field: &str, f: &mut Findings<'_>) {
    let failover = !setting.failover.is_empty() || !setting.failover_priority.is_empty();
    f.at_most_one(field, &[("distribute", !setting.distribute.is_empty()), ("failover", failover)]);
    for (i, d) in setting.distribute.iter().enumerate() {
        let sum: u64 = d.to.values().map(|v| u64::from(*v)).sum();
        if sum != 100 {
            f.error(format!("{field}.distribute[{i}].to"), format!("sums to {sum}: make it 100"));
        }
    }
    for (i, rule) in setting.failover.iter().enumerate() {
        if rule.from == rule.to {
            f.error(format!("{field}.failover[{i}].to"), "is the region that failed: name another one");
        }
    }
}

fn connection_pool(pool: &ConnectionPool, field: &str, f: &mut Findings<'_>) {
    if let Some(tcp) = &pool.tcp {
        let at = format!("{field}.tcp");
        f.count(tcp.max_connections, format!("{at}.maxConnections"));
        f.at_least_1ms(tcp.connect_timeout, format!("{at}.connectTimeout"));
        f.at_least_1ms(tcp.max_connection_duration, format!("{at}.maxConnectionDuration"));
        f.zero_or_1ms(tcp.idle_timeout, format!("{at}.idleTimeout"));
    }
    if let Some(http) = &pool.http {
        let at = format!("{field}.http");
        for (part, count) in [
            ("http1MaxPendingRequests", http.http1_max_pending_requests),
            ("http2MaxRequests", http.http2_max_requests),
            ("maxRequestsPerConnection", http.max_requests_per_connection),
            ("maxRetries", http.max_retries),
            ("maxConcurrentStreams", http.max_concurrent_streams),
        ] {
            f.count(count, format!("{at}.{part}"));
        }
        f.zero_or_1ms(http.idle_timeout, format!("{at}.idleTimeout"));
        f.unsupported(http.http2_keep_alive.is_some(), format!("{at}.http2KeepAlive"));
        if http.use_client_protocol == Some(true) && http.h2_upgrade_policy == Some(H2Upgrade::Upgrade) {
            f.error(&at, "has useClientProtocol and h2UpgradePolicy: UPGRADE at once: keep one of them");
        }
    }
}

fn outlier_detection(o: &OutlierDetection, field: &str, f: &mut Findings<'_>) {
    if let Some(n) = o.consecutive_errors {
        let at = format!("{field}.consecutiveErrors");
        f.count(Some(n), &at);
        f.legacy(
            n >= 0,
            at,
            &format!("counts 502, 503, 504 and connect failures, write consecutiveGatewayErrors: {n}"),
        );
    }
    f.at_least_1ms(o.interval, format!("{field}.interval"));
    f.at_least_1ms(o.base_ejection_time, format!("{field}.baseEjectionTime"));
    for (part, percent) in
        [("maxEjectionPercent", o.max_ejection_percent), ("minHealthPercent", o.min_health_percent)]
    {
        if let Some(percent) = percent {
            f.percent(percent, format!("{field}.{part}"));
        }
    }
    f.unsupported(
        o.outlier_detection_http_error_codes.is_some(),
        format!("{field}.outlierDetectionHttpErrorCodes"),
    );
    if o.consecutive_local_origin_failures.is_some() && o.split_external_local_origin_errors != Some(true) {
        let why = "has no effect without splitExternalLocalOriginErrors: true";
        f.warn(format!("{field}.consecutiveLocalOriginFailures"), why);
    }
}

fn client_tls(tls: &ClientTls, field: &str, f: &mut Findings<'_>) {
    let own = [
        ("clientCertificate", tls.client_certificate.is_some()),
        ("privateKey", tls.private_key.is_some()),
        ("caCertificates", tls.ca_certificates.is_some()),
        ("credentialName", tls.credential_name.is_some()),
    ];
    match tls.mode {
        ClientTlsMode::IstioMutual => {
            for (part, _) in own.iter().filter(|(_, there)| *there) {
                let why =
                    "must be absent with ISTIO_MUTUAL, which uses the mesh's own certificates: remove it";
                f.error(format!("{field}.{part}"), why);
            }
        }
        ClientTlsMode::Mutual if tls.credential_name.is_none() => {
            for (part, there) in &own[..2] {
                if !there {
                    f.error(format!("{field}.{part}"), "is missing: MUTUAL needs it, or credentialName");
                }
            }
        }
        ClientTlsMode::Mutual => {
            for (part, _) in own[..3].iter().filter(|(_, there)| *there) {
                f.error(format!("{field}.{part}"), "cannot stand beside credentialName: remove one of them");
            }
        }
        ClientTlsMode::Disable | ClientTlsMode::Simple => {}
    }
    f.unsupported(tls.ca_crl.is_some(), format!("{field}.caCrl"));
}
