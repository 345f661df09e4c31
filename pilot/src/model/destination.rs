//! DestinationRules: which one a client uses for a host, and the policy of each port and subset.
//!
//! In: client namespace and labels, a service. Out: [`Rule`], merged. Kept true: client namespace, then the service's, then
//! the root namespace; within one, the narrowest host; rules for one host in one namespace add their subsets.
//! Not here: the wire (`translate::cluster`).

use super::{Model, hosts, label_of, service::Service, workload::selects};
use mesh_config::Object;
use mesh_config::kinds::{
    ClientTls, ConnectionPool, DestinationRule, LoadBalancer, OutlierDetection, Subset, TrafficPolicy,
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// The DestinationRules of one host, as one.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    /// Subsets, each once, in order of age and file.
    pub subsets: Vec<Subset>,
    /// Policy of the whole host.
    pub policy: Option<TrafficPolicy>,
    /// Objects it was merged from, oldest first.
    pub objects: Vec<Arc<Object<DestinationRule>>>,
}

/// The blocks in force for one port of one subset. Blocks override each other whole, never field by field.
#[derive(Clone, Debug, Default)]
pub struct Blocks {
    /// Load balancing.
    pub balancer: Option<LoadBalancer>,
    /// Limits and timeouts of connections.
    pub pool: Option<ConnectionPool>,
    /// Ejection of failing endpoints.
    pub outlier: Option<OutlierDetection>,
    /// TLS to the server; `None` means automatic.
    pub tls: Option<ClientTls>,
}

impl Rule {
    /// Labels of the objects, for blame and metadata.
    pub fn sources(&self) -> Vec<Arc<str>> {
        self.objects.iter().map(|o| label_of(o)).collect()
    }

    /// A subset by name.
    pub fn subset(&self, name: &str) -> Option<&Subset> {
        self.subsets.iter().find(|s| s.name == name)
    }

    /// The blocks for a port of a service port name, for a subset or (with `None`) the whole host.
    pub fn blocks(&self, subset: Option<&Subset>, port: u16, port_name: &str) -> Blocks {
        let whole = at_port(self.policy.as_ref(), port, port_name);
        let Some(own) = subset.and_then(|s| s.traffic_policy.as_ref()) else { return whole };
        let narrow = at_port(Some(own), port, port_name);
        Blocks {
            balancer: narrow.balancer.or(whole.balancer),
            pool: narrow.pool.or(whole.pool),
            outlier: narrow.outlier.or(whole.outlier),
            tls: narrow.tls.or(whole.tls),
        }
    }
}

/// A port's own entry replaces all blocks: what it leaves out is default, not inherited.
fn at_port(policy: Option<&TrafficPolicy>, port: u16, port_name: &str) -> Blocks {
    let Some(policy) = policy else { return Blocks::default() };
    let own = policy.port_level_settings.iter().find(|p| match p.port.number {
        Some(number) => number == u32::from(port),
        None => p.port.name.as_deref().is_some_and(|n| n == port_name),
    });
    match own {
        Some(p) => Blocks {
            balancer: p.load_balancer.clone(),
            pool: p.connection_pool.clone(),
            outlier: p.outlier_detection.clone(),
            tls: p.tls.clone(),
        },
        None => Blocks {
            balancer: policy.load_balancer.clone(),
            pool: policy.connection_pool.clone(),
            outlier: policy.outlier_detection.clone(),
            tls: policy.tls.clone(),
        },
    }
}

/// The rules of one namespace, oldest first: by plain host, and those for wildcards.
#[derive(Debug, Default)]
struct Shelf {
    plain: HashMap<Arc<str>, Vec<Arc<Object<DestinationRule>>>>,
    wild: Vec<(Arc<str>, Arc<Object<DestinationRule>>)>,
}

/// DestinationRules by the namespace they stand in, for many questions about one snapshot.
#[derive(Debug, Default)]
pub struct Rules {
    by_namespace: BTreeMap<Arc<str>, Shelf>,
}

impl Rules {
    /// Indexes all rules of a model, oldest first.
    pub fn of(model: &Model) -> Self {
        let mut by_namespace: BTreeMap<Arc<str>, Shelf> = BTreeMap::new();
        for object in model.snapshot.destination_rules.by_age() {
            let host = hosts::full(&object.spec.host, object.namespace());
            let shelf = by_namespace.entry(object.meta.namespace.clone()).or_default();
            if host.starts_with('*') {
                shelf.wild.push((host, object.clone()));
            } else {
                shelf.plain.entry(host).or_default().push(object.clone());
            }
        }
        Self { by_namespace }
    }

    /// The rule a client in `namespace` with `labels` uses for `service`; empty if there is none.
    pub fn lookup(
        &self,
        model: &Model,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        service: &Service,
    ) -> Rule {
        let root = model.snapshot.root_namespace();
        let mut places = vec![namespace];
        for place in [&*service.namespace, root] {
            if !places.contains(&place) {
                places.push(place);
            }
        }
        let default = &model.mesh().default_destination_rule_export_to;
        for place in places {
            let Some(shelf) = self.by_namespace.get(place) else { continue };
            let usable = |object: &Arc<Object<DestinationRule>>| {
                let selector = object.spec.workload_selector.as_ref();
                hosts::exported(&object.spec.export_to, default, place, namespace)
                    && selector.is_none_or(|s| place == namespace && selects(&s.match_labels, labels))
            };
            let plain = shelf.plain.get(&service.host).map(Vec::as_slice).unwrap_or_default();
            let mut chosen: Vec<_> = plain.iter().filter(|o| usable(o)).collect();
            if chosen.is_empty() {
                let fits =
                    |(host, object): &&(Arc<str>, _)| hosts::covers(host, &service.host) && usable(object);
                let wild: Vec<_> = shelf.wild.iter().filter(fits).collect();
                let Some(best) = wild.iter().map(|(host, _)| host).max_by_key(|h| hosts::narrowness(h))
                else {
                    continue;
                };
                chosen = wild.iter().filter(|(host, _)| host == best).map(|(_, object)| object).collect();
            }
            return merge(chosen.into_iter());
        }
        Rule::default()
    }
}

fn merge<'a>(objects: impl Iterator<Item = &'a Arc<Object<DestinationRule>>>) -> Rule {
    let mut rule = Rule::default();
    for object in objects {
        for subset in &object.spec.subsets {
            if rule.subset(&subset.name).is_none() {
                rule.subsets.push(subset.clone());
            }
        }
        if rule.policy.is_none() {
            rule.policy.clone_from(&object.spec.traffic_policy);
        }
        rule.objects.push(object.clone());
    }
    rule
}
