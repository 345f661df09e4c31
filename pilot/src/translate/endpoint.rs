//! Endpoints of clusters: the addresses behind a service port or subset.
//!
//! In: a service, a port, a subset. Out: [`Endpoints`] by locality. Kept true: an endpoint is marked for mutual TLS only if
//! its proxy takes it and no policy has switched it off at that port. Not here: health (the proxy's own ejection).

use super::{Made, Translator, tls::TLS_MODE};
use crate::model::{
    auth::{self, Mode, ServerPort},
    service::{Endpoint, Service},
    workload::selects,
};
use mesh_traffic::{
    endpoint::{self, Address, Endpoints, Health, Locality},
    names::Name,
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

impl Translator {
    /// The endpoints of a service port that have all of `labels`, under the cluster's name.
    pub fn assignment(
        &self,
        name: &str,
        service: &Service,
        port: u16,
        labels: &BTreeMap<String, String>,
    ) -> Made<Endpoints> {
        let mut places: BTreeMap<Arc<str>, Vec<Arc<endpoint::Endpoint>>> = BTreeMap::new();
        for one in service.at(port).filter(|e| selects(labels, &e.labels)) {
            places.entry(one.locality.clone()).or_default().push(Arc::new(self.endpoint(service, one)));
        }
        let localities = places
            .into_iter()
            .map(|(name, endpoints)| Locality { name, priority: 0, weight: None, endpoints })
            .collect();
        Made::from(Endpoints { name: name.into(), localities }, vec![service.source.clone()])
    }

    /// One endpoint.
    pub fn endpoint(&self, service: &Service, from: &Endpoint) -> endpoint::Endpoint {
        let address = match from.address.parse::<IpAddr>() {
            Ok(ip) => Address::Ip(SocketAddr::new(ip, from.port)),
            Err(_) => match from.address.strip_prefix("unix://") {
                Some(path) => Address::Pipe(path.into()),
                None => Address::Dns(from.address.clone(), from.port),
            },
        };
        let mtls = from.takes_mtls && self.server_mode(service, from).mode != Mode::Disable;
        let tls_labels = if mtls { vec![(TLS_MODE.0.into(), TLS_MODE.1.into())] } else { Vec::new() };
        let workload: Name = from
            .workload
            .as_ref()
            .map(|(namespace, pod)| {
                let label = |key: &str| from.labels.get(key).map(String::as_str).unwrap_or_default();
                let canonical = match label("service.istio.io/canonical-name") {
                    "" => label("app"),
                    name => name,
                };
                let revision = match label("service.istio.io/canonical-revision") {
                    "" => label("version"),
                    revision => revision,
                };
                format!("{};{namespace};{canonical};{revision};Kubernetes", workload_name(pod))
            })
            .unwrap_or_default()
            .into();
        endpoint::Endpoint { address, health: Health::Healthy, weight: from.weight, tls_labels, workload }
    }

    /// The mutual TLS mode in force at an endpoint's port.
    pub fn server_mode(&self, service: &Service, at: &Endpoint) -> auth::Effective {
        let namespace = at.workload.as_ref().map_or(&*service.namespace, |(ns, _)| ns);
        let port_name = service.port(at.service_port).map(|p| &*p.name).unwrap_or_default();
        let server = ServerPort {
            namespace,
            labels: &at.labels,
            port: at.port,
            services: vec![(&service.name, at.service_port, port_name)],
        };
        auth::effective(&self.model, &server)
    }
}

/// `reviews-v1` of pod `reviews-v1-5f6d8c7b9-x2x7p`: what its Deployment is called, judged by the form of the name.
fn workload_name(pod: &str) -> &str {
    let generated = |part: &str, lengths: std::ops::RangeInclusive<usize>| {
        lengths.contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
    };
    let Some((rest, suffix)) = pod.rsplit_once('-') else { return pod };
    if !generated(suffix, 5..=5) {
        return pod;
    }
    match rest.rsplit_once('-') {
        Some((deployment, hash)) if generated(hash, 6..=10) && hash.bytes().any(|b| b.is_ascii_digit()) => {
            deployment
        }
        _ => rest,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_deployment_is_read_from_the_pods_name() {
        for (pod, want) in [
            ("reviews-v1-5f6d8c7b9-x2x7p", "reviews-v1"),
            ("ds-x2x7p", "ds"),
            ("db-0", "db-0"),
            ("plain", "plain"),
        ] {
            assert_eq!(super::workload_name(pod), want);
        }
    }
}
