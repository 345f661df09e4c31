//! Encoded parts: what `translate` made, as bytes by type and name.
//!
//! In: a [`Part`], and the same part of the push before. Out: [`Encoded`]. Kept true: an equal resource keeps its bytes and
//! version, an equal set its pointer. Not here: which proxy gets which part (`push`).

use crate::{
    ads::catalog::{self, Resources, Type},
    translate::{Made, Part},
};
use mesh_traffic::{
    RouteConfiguration, VirtualHost,
    names::Name,
    wire::encode::{self, Resource},
};
use std::{collections::BTreeMap, sync::Arc};

/// Resources of one part by type.
#[derive(Debug, Default)]
pub struct Encoded([Arc<Resources>; 6]);

impl Encoded {
    /// Encodes a part. With `vhds`, virtual hosts are resources of their own and tables come without them.
    pub fn of(part: Part, vhds: bool, before: Option<&Arc<Encoded>>) -> Arc<Encoded> {
        let old = |kind: Type| before.map(|b| b.of_type(kind));
        let clusters = each(&part.clusters, old(Type::Cluster), |_, c| encode::cluster(c));
        let endpoints = each(&part.endpoints, old(Type::Endpoints), |_, e| encode::endpoints(e));
        let listeners = each(&part.listeners, old(Type::Listener), |_, l| encode::listener(l));
        let secrets = each(&part.secrets, old(Type::Secret), |name, s| encode::secret(name, s));
        let (tables, hosts) = if vhds { split(&part.routes) } else { (part.routes, BTreeMap::new()) };
        let routes = each(&tables, old(Type::Routes), |_, r| encode::route_configuration(r));
        let virtual_hosts = each(&hosts, old(Type::VirtualHost), |_, h| encode::virtual_host(h));
        let mut all = [const { None }; 6];
        for (kind, set) in [
            (Type::Cluster, clusters),
            (Type::Endpoints, endpoints),
            (Type::Listener, listeners),
            (Type::Routes, routes),
            (Type::VirtualHost, virtual_hosts),
            (Type::Secret, secrets),
        ] {
            all[kind.index()] = Some(set);
        }
        Arc::new(Encoded(all.map(Option::unwrap_or_default)))
    }

    /// Resources of one type.
    pub fn of_type(&self, kind: Type) -> &Arc<Resources> {
        &self.0[kind.index()]
    }
}

fn each<T, M>(
    made: &BTreeMap<Name, Made<T>>,
    before: Option<&Arc<Resources>>,
    message: impl Fn(&Name, &T) -> M,
) -> Arc<Resources>
where
    M: Resource,
{
    let one = |(name, made): (&Name, &Made<T>)| {
        let old = before.and_then(|b| b.get(name));
        let bytes = encode::bytes(&message(name, &made.value)).into();
        (name.clone(), catalog::Encoded::of(bytes, made.sources.clone(), old))
    };
    let now: Resources = made.iter().map(one).collect();
    match before {
        Some(old)
            if old.len() == now.len()
                && old.iter().zip(&now).all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(a.1, b.1)) =>
        {
            old.clone()
        }
        _ => Arc::new(now),
    }
}

type Tables = BTreeMap<Name, Made<RouteConfiguration>>;
type Hosts = BTreeMap<Name, Made<VirtualHost>>;

/// Takes the virtual hosts out of their tables; each is named `table/host`.
fn split(tables: &Tables) -> (Tables, Hosts) {
    let mut bare = Tables::new();
    let mut hosts = Hosts::new();
    for (name, made) in tables {
        for host in &made.value.virtual_hosts {
            let mut sources: Vec<_> = host.routes.iter().filter_map(|r| label(r)).collect();
            sources.dedup();
            hosts.insert(
                format!("{name}/{}", host.name).into(),
                Made::from(VirtualHost::clone(host), sources),
            );
        }
        let table = RouteConfiguration { virtual_hosts: Vec::new(), vhds: true, ..made.value.clone() };
        bare.insert(name.clone(), Made::from(table, Vec::new()));
    }
    (bare, hosts)
}

fn label(route: &mesh_traffic::Route) -> Option<Arc<str>> {
    let source = route.source.as_ref()?;
    let kind: String = source
        .kind
        .split('-')
        .map(|word| {
            let mut letters = word.chars();
            letters.next().map_or(String::new(), |c| c.to_ascii_uppercase().to_string() + letters.as_str())
        })
        .collect();
    Some(format!("{kind} {}/{}", source.namespace, source.name).into())
}
