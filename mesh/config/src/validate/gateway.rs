//! Checks of one Gateway, ServiceEntry, Sidecar or WorkloadEntry.
//!
//! In: their specs. Out: findings. Kept true: a port that cannot be opened as written is refused.
//! Not here: pods, secrets and routes behind them (`set`).

use super::routes::{cidr, export_to};
use super::{Findings, entry, nth};
use crate::kinds::*;
use std::collections::BTreeSet;

const PROTOCOLS: &[&str] = &[
    "HTTP",
    "HTTPS",
    "HTTP2",
    "GRPC",
    "GRPC-WEB",
    "TCP",
    "TLS",
    "MONGO",
    "REDIS",
    "MYSQL",
    "UDP",
    "HTTP_PROXY",
    "AUTO",
];

fn port(port: &Port, field: &str, f: &mut Findings<'_>) {
    f.port(port.number, format!("{field}.number"));
    let upper = port.protocol.to_ascii_uppercase();
    if upper.is_empty() {
        f.error(format!("{field}.protocol"), "is empty: write e.g. HTTP, HTTPS or TCP");
    } else if !PROTOCOLS.contains(&upper.as_str()) {
        f.error(
            format!("{field}.protocol"),
            format!("{:?} is no protocol: write e.g. HTTP, HTTPS or TCP", port.protocol),
        );
    }
    if let Some(target) = port.target_port {
        f.port(target, format!("{field}.targetPort"));
    }
}

pub(super) fn gateway(gateway: &Gateway, f: &mut Findings<'_>) {
    if gateway.servers.is_empty() {
        f.error("spec.servers", "is empty: write at least one server");
    }
    if gateway.selector.is_empty() {
        f.warn("spec.selector", "is empty, so every gateway pod serves it: write e.g. istio: ingressgateway");
    }
    let mut names = BTreeSet::new();
    for (i, server) in gateway.servers.iter().enumerate() {
        let at = nth("spec.servers", i);
        port(&server.port, &format!("{at}.port"), f);
        if server.port.name.is_empty() {
            f.error(format!("{at}.port.name"), "is empty: give the port a name");
        } else if !names.insert(&server.port.name) {
            f.error(
                format!("{at}.port.name"),
                format!("{:?} is the name of two ports: rename one", server.port.name),
            );
        }
        if server.hosts.is_empty() {
            f.error(format!("{at}.hosts"), "is empty: name the hosts it serves, or \"*\"");
        }
        for (j, host) in server.hosts.iter().enumerate() {
            let (namespace, name) = host.split_once('/').unwrap_or(("*", host));
            let at = format!("{at}.hosts[{j}]");
            if namespace.is_empty() {
                f.error(
                    &at,
                    format!(
                        "{host:?} has an empty namespace: write namespace/host, \"./host\" or \"*/host\""
                    ),
                );
            }
            f.host(name, at);
        }
        let secure = matches!(server.port.protocol.to_ascii_uppercase().as_str(), "HTTPS" | "TLS");
        match &server.tls {
            None if secure => {
                let why = format!("is missing: protocol {} needs it", server.port.protocol);
                f.error(format!("{at}.tls"), why);
            }
            Some(tls) => server_tls(tls, secure, &format!("{at}.tls"), f),
            None => {}
        }
        f.unsupported(server.default_endpoint.is_some(), format!("{at}.defaultEndpoint"));
    }
}

fn server_tls(tls: &ServerTls, secure: bool, field: &str, f: &mut Findings<'_>) {
    use ServerTlsMode as Mode;
    if !secure {
        if *tls != (ServerTls { https_redirect: tls.https_redirect, ..ServerTls::default() }) {
            f.error(
                field,
                "cannot stand on a plaintext port, except for httpsRedirect: use protocol HTTPS or TLS",
            );
        }
        return;
    }
    let secret = tls.credential_name.is_some() || !tls.credential_names.is_empty();
    let files = tls.server_certificate.is_some() || tls.private_key.is_some();
    if matches!(tls.mode, Mode::Simple | Mode::Mutual | Mode::OptionalMutual)
        && !secret
        && tls.tls_certificates.is_empty()
    {
        for (part, there) in [
            ("serverCertificate", tls.server_certificate.is_some()),
            ("privateKey", tls.private_key.is_some()),
        ] {
            if !there {
                f.error(format!("{field}.{part}"), "is missing: write it, or credentialName");
            }
        }
        if tls.mode != Mode::Simple && tls.ca_certificates.is_none() {
            f.error(
                format!("{field}.caCertificates"),
                "is missing: client certificates are checked against it",
            );
        }
    }
    if tls.mode == Mode::IstioMutual && (secret || files) {
        f.error(field, "ISTIO_MUTUAL uses the mesh's own certificates: remove credentialName and files");
    }
    if tls.https_redirect == Some(true) {
        f.error(
            format!("{field}.httpsRedirect"),
            "belongs to a plaintext port: move it to the server on port 80",
        );
    }
    for (part, version) in
        [("minProtocolVersion", tls.min_protocol_version), ("maxProtocolVersion", tls.max_protocol_version)]
    {
        if matches!(version, Some(TlsVersion::V1_0 | TlsVersion::V1_1)) {
            f.warn(format!("{field}.{part}"), "TLS below 1.2 is not supported: 1.2 is used");
        }
    }
    f.unsupported(!tls.tls_certificates.is_empty(), format!("{field}.tlsCertificates"));
    f.unsupported(tls.ca_crl.is_some(), format!("{field}.caCrl"));
    f.unsupported(!tls.verify_certificate_spki.is_empty(), format!("{field}.verifyCertificateSpki"));
    f.unsupported(!tls.verify_certificate_hash.is_empty(), format!("{field}.verifyCertificateHash"));
}

pub(super) fn service_entry(entry_: &ServiceEntry, f: &mut Findings<'_>) {
    if entry_.hosts.is_empty() {
        f.error("spec.hosts", "is empty: name at least one host");
    }
    for (part, count, most) in [
        ("hosts", entry_.hosts.len(), 256),
        ("addresses", entry_.addresses.len(), 256),
        ("ports", entry_.ports.len(), 256),
        ("endpoints", entry_.endpoints.len(), 4096),
    ] {
        f.most(count, most, format!("spec.{part}"));
    }
    for (i, host) in entry_.hosts.iter().enumerate() {
        f.host(host, nth("spec.hosts", i));
        if host == "*" {
            f.error(nth("spec.hosts", i), "\"*\" would take every host: name the hosts");
        }
    }
    for (i, address) in entry_.addresses.iter().enumerate() {
        cidr(address, &nth("spec.addresses", i), f);
    }
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (i, p) in entry_.ports.iter().enumerate() {
        let at = nth("spec.ports", i);
        port(p, &at, f);
        if p.name.is_empty() {
            f.error(format!("{at}.name"), "is empty: give the port a name");
        } else if !names.insert(&p.name) {
            f.error(format!("{at}.name"), format!("{:?} is the name of two ports: rename one", p.name));
        }
        if !numbers.insert(p.number) {
            f.error(format!("{at}.number"), format!("port {} is there twice: remove one", p.number));
        }
    }
    export_to(&entry_.export_to, "spec.exportTo", f);
    if !entry_.endpoints.is_empty() && entry_.workload_selector.is_some() {
        f.error("spec.workloadSelector", "cannot stand beside endpoints: remove one of them");
    }
    let wild = entry_.hosts.iter().any(|h| h.contains('*'));
    match entry_.resolution {
        Resolution::None if !entry_.endpoints.is_empty() => {
            f.error(
                "spec.resolution",
                "NONE goes to the address asked for, so endpoints have no use: write STATIC or DNS",
            );
        }
        Resolution::Static if entry_.endpoints.is_empty() && entry_.workload_selector.is_none() => {
            f.warn(
                "spec.resolution",
                "STATIC without endpoints reaches nothing: write endpoints or workloadSelector",
            );
        }
        Resolution::Dns | Resolution::DnsRoundRobin if wild && entry_.endpoints.is_empty() => {
            f.error("spec.resolution", "a wildcard host cannot be looked up: name endpoints, or write NONE");
        }
        Resolution::DynamicDns => f.unsupported(true, "spec.resolution"),
        _ => {}
    }
    for (i, endpoint) in entry_.endpoints.iter().enumerate() {
        let at = nth("spec.endpoints", i);
        workload_entry(endpoint, &at, f);
        let by_name =
            endpoint.address.parse::<std::net::IpAddr>().is_err() && !endpoint.address.starts_with("unix://");
        if entry_.resolution == Resolution::Static && by_name && !endpoint.address.is_empty() {
            f.error(
                format!("{at}.address"),
                format!("{:?} is no address: STATIC needs one, or write resolution: DNS", endpoint.address),
            );
        }
        for name in endpoint.ports.keys().filter(|name| !entry_.ports.iter().any(|p| p.name == **name)) {
            f.error(entry(&format!("{at}.ports"), name), format!("spec.ports has no port called {name:?}"));
        }
    }
}

pub(super) fn workload_entry(workload: &WorkloadEntry, field: &str, f: &mut Findings<'_>) {
    if workload.address.is_empty() {
        f.error(format!("{field}.address"), "is empty: write an address or a DNS name");
    } else if !workload.address.starts_with("unix://") {
        f.host(&workload.address, format!("{field}.address"));
    }
    for (name, number) in &workload.ports {
        f.port(*number, entry(&format!("{field}.ports"), name));
    }
}

pub(super) fn sidecar(sidecar: &Sidecar, f: &mut Findings<'_>) {
    let mut numbers = BTreeSet::new();
    for (i, listener) in sidecar.ingress.iter().enumerate() {
        let at = nth("spec.ingress", i);
        port(&listener.port, &format!("{at}.port"), f);
        if !numbers.insert((listener.port.number, listener.bind.as_deref())) {
            f.error(
                format!("{at}.port.number"),
                format!("port {} is there twice: remove one", listener.port.number),
            );
        }
        bind(listener.bind.as_deref(), &at, f);
        if let Some(endpoint) = listener.default_endpoint.as_deref() {
            let tail =
                ["127.0.0.1:", "0.0.0.0:", "[::1]:", "[::]:"].iter().find_map(|p| endpoint.strip_prefix(p));
            let good =
                endpoint.starts_with("unix:") || tail.is_some_and(|p| p.parse::<u16>().is_ok_and(|p| p > 0));
            if !good {
                let why = format!(
                    "{endpoint:?} is not an app's address: write 127.0.0.1:PORT, 0.0.0.0:PORT or unix:///PATH"
                );
                f.error(format!("{at}.defaultEndpoint"), why);
            }
        }
    }
    let mut open = false;
    for (i, listener) in sidecar.egress.iter().enumerate() {
        let at = nth("spec.egress", i);
        if let Some(p) = &listener.port {
            port(p, &format!("{at}.port"), f);
        } else if std::mem::replace(&mut open, true) {
            f.error(&at, "is a second listener without port: merge their hosts");
        }
        bind(listener.bind.as_deref(), &at, f);
        if listener.hosts.is_empty() {
            f.error(format!("{at}.hosts"), "is empty: write e.g. \"./*\", or \"~/*\" for none");
        }
        for (j, host) in listener.hosts.iter().enumerate() {
            let at = format!("{at}.hosts[{j}]");
            match host.split_once('/') {
                None => f.error(at, format!("{host:?} lacks its namespace: write ./{host} or */{host}")),
                Some((namespace, name)) => {
                    if namespace.is_empty() {
                        f.error(&at, format!("{host:?} lacks its namespace: write ./{name} or */{name}"));
                    }
                    f.host(name, at);
                }
            }
        }
    }
    if let Some(policy) = &sidecar.outbound_traffic_policy {
        f.unsupported(policy.egress_proxy.is_some(), "spec.outboundTrafficPolicy.egressProxy");
    }
}

fn bind(bind: Option<&str>, field: &str, f: &mut Findings<'_>) {
    if let Some(bind) = bind.filter(|b| !b.starts_with("unix:"))
        && bind.parse::<std::net::IpAddr>().is_err()
    {
        f.error(
            format!("{field}.bind"),
            format!("{bind:?} is no address: write an IP address or unix:///PATH"),
        );
    }
}
