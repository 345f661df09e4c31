//! Checks of Kubernetes' own kinds, as far as an API server would refuse them and traffic depends on it.
//!
//! In: Service, EndpointSlice. Out: findings. Kept true: files are held to what a cluster would hold them to.
//! Not here: everything about them that is not about traffic.

use super::Findings;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

pub(super) fn service(service: &Service, f: &mut Findings<'_>) {
    let Some(spec) = &service.spec else { return };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let external = spec.type_.as_deref() == Some("ExternalName");
    if external && spec.external_name.as_deref().is_none_or(str::is_empty) {
        f.error("spec.externalName", "is missing: type ExternalName needs the name it stands for");
    }
    let mut names = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{i}]");
        number(port.port, &format!("{at}.port"), f);
        let name = port.name.as_deref().unwrap_or_default();
        if name.is_empty() && ports.len() > 1 {
            f.error(format!("{at}.name"), "is missing: a Service with several ports names each of them");
        } else if !names.insert(name) {
            f.error(format!("{at}.name"), format!("{name:?} is the name of two ports: rename one"));
        }
    }
}

pub(super) fn endpoint_slice(slice: &EndpointSlice, f: &mut Findings<'_>) {
    for (i, endpoint) in slice.endpoints.iter().enumerate() {
        for (j, address) in endpoint.addresses.iter().enumerate() {
            let good = match slice.address_type.as_str() {
                "IPv4" => address.parse::<Ipv4Addr>().is_ok(),
                "IPv6" => address.parse::<Ipv6Addr>().is_ok(),
                "FQDN" => true,
                _ => break,
            };
            if !good {
                let why = format!("{address:?} is no {} address", slice.address_type);
                f.error(format!("endpoints[{i}].addresses[{j}]"), why);
            }
        }
    }
    if !["IPv4", "IPv6", "FQDN"].contains(&slice.address_type.as_str()) {
        f.error(
            "addressType",
            format!("{:?} is no address type: write IPv4, IPv6 or FQDN", slice.address_type),
        );
    }
    for (i, port) in slice.ports.iter().flatten().enumerate() {
        if let Some(port) = port.port {
            number(port, &format!("ports[{i}].port"), f);
        }
    }
}

fn number(port: i32, field: &str, f: &mut Findings<'_>) {
    if !(1..=65535).contains(&port) {
        f.error(field, format!("{port} is no port: write a number from 1 to 65535"));
    }
}
