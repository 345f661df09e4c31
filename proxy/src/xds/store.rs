//! What has been accepted, what of it may be used already, and what must be asked for next.
//!
//! In: [`Resource`]s and removals. Out: a [`Snapshot`] and the names to subscribe to. Kept true: a listener is used only with its
//! routes, a cluster only with its endpoints and secrets; until then the last complete form stays. Not here: the stream (`delta`, `sotw`).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use mesh_traffic::{
    Cluster, Endpoints, Listener, RouteConfiguration, RouteTable, Snapshot,
    cluster::Discovery,
    listener::RouteSource,
    names::Name,
    snapshot::inline_key,
    tls::{Certificate, Roots, Secret, UpstreamTls, WORKLOAD_CERTIFICATE, WORKLOAD_ROOTS},
};

use super::{
    hosts::Hosts,
    resource::{Body, Kind, Resource},
};

/// What was received of a resource, for resuming a stream and for dumps.
#[derive(Debug, Clone)]
struct Received {
    version: String,
    raw: bytes::Bytes,
    fixed: bool,
}

/// Everything accepted. Owned by one task.
#[derive(Debug, Default)]
pub struct Store {
    received: BTreeMap<(Kind, Name), Received>,
    listeners: BTreeMap<Name, Arc<Listener>>,
    clusters: BTreeMap<Name, Arc<Cluster>>,
    endpoints: HashMap<Name, Arc<Endpoints>>,
    secrets: HashMap<Name, Arc<Secret>>,
    routes: HashMap<Name, Arc<RouteConfiguration>>,
    /// Virtual hosts that came as resources of their own, by route configuration and full name.
    hosts: HashMap<Name, Hosts>,
    tables: HashMap<Name, Arc<RouteTable>>,
    stale_tables: HashSet<Name>,
    /// The first answer with virtual hosts has come, so that tables built of them are complete.
    hosts_complete: bool,
    /// Waiting has taken too long: incomplete clusters are used as they are.
    impatient: bool,
    /// Secrets that have not come in time; whoever names them goes on without.
    given_up: BTreeSet<Name>,
    active: Snapshot,
}

impl Store {
    /// Takes a static resource.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn add_fixed(&mut self, resource: Resource) -> Result<(), String> {
        let key = (resource.kind(), resource.name.clone());
        self.apply(resource)?;
        if let Some(received) = self.received.get_mut(&key) {
            received.fixed = true;
        }
        self.refresh();
        Ok(())
    }

    /// Takes a resource in place of the one of its name. Call [`Self::refresh`] after a batch.
    ///
    /// # Errors
    /// Why it cannot be used beside the others; the last good form stays.
    pub fn apply(&mut self, resource: Resource) -> Result<(), String> {
        let Resource { name, version, raw, body } = resource;
        let kind = match body {
            Body::Cluster(cluster) => {
                self.clusters.insert(name.clone(), cluster);
                Kind::Cluster
            }
            Body::Endpoints(endpoints) => {
                self.endpoints.insert(name.clone(), endpoints);
                Kind::Endpoints
            }
            Body::Secret(secret) => {
                self.secrets.insert(name.clone(), secret);
                Kind::Secret
            }
            Body::Listener(listener) => {
                for manager in listener.managers() {
                    if let RouteSource::Inline(routes) = &manager.routes {
                        let table = RouteTable::new(RouteConfiguration::clone(routes))?;
                        self.tables.insert(inline_key(routes).into(), Arc::new(table));
                    }
                }
                self.listeners.insert(name.clone(), listener);
                Kind::Listener
            }
            Body::Route(routes) => {
                // Built here only to refuse it early; the table in force also holds the hosts of VHDS.
                RouteTable::new(RouteConfiguration::clone(&routes))?;
                self.routes.insert(name.clone(), routes);
                self.stale_tables.insert(name.clone());
                Kind::Route
            }
            Body::VirtualHost(host) => {
                let table = host_table(&name).ok_or("the name must be `route configuration/virtual host`")?;
                let hosts = self.hosts.entry(table.into()).or_default();
                hosts
                    .put(&name, host)
                    .map_err(|domain| format!("domain {domain:?} belongs to another virtual host"))?;
                self.stale_tables.insert(table.into());
                Kind::VirtualHost
            }
        };
        self.received.insert((kind, name), Received { version, raw, fixed: false });
        Ok(())
    }

    /// Drops a resource. Static ones stay.
    pub fn remove(&mut self, kind: Kind, name: &str) {
        let key = (kind, Name::from(name));
        if self.received.get(&key).is_some_and(|received| received.fixed) {
            return;
        }
        self.received.remove(&key);
        match kind {
            Kind::Cluster => drop(self.clusters.remove(name)),
            Kind::Endpoints => drop(self.endpoints.remove(name)),
            Kind::Secret => drop(self.secrets.remove(name)),
            Kind::Listener => drop(self.listeners.remove(name)),
            Kind::Route => {
                self.routes.remove(name);
                self.stale_tables.insert(name.into());
            }
            Kind::VirtualHost => {
                if let Some(table) = host_table(name) {
                    if let Some(hosts) = self.hosts.get_mut(table) {
                        hosts.remove(name);
                    }
                    self.stale_tables.insert(table.into());
                }
            }
        }
    }

    /// The first complete answer with virtual hosts has been applied.
    pub fn complete_hosts(&mut self) {
        self.hosts_complete = true;
    }

    /// From now on, clusters whose endpoints never came are used without any, and listeners without the secrets that have not come
    /// until now: connections that would need one of those are refused at their handshake, the others are served.
    pub fn stop_waiting(&mut self) {
        self.impatient = true;
        let missing = self.listeners.values().flat_map(|listener| listener_secrets(listener));
        self.given_up = missing.filter(|name| !self.secrets.contains_key(name)).collect();
    }

    /// Names of a kind that are held, without static ones.
    pub fn names(&self, kind: Kind) -> impl Iterator<Item = &Name> {
        self.received.iter().filter(move |((k, _), r)| *k == kind && !r.fixed).map(|((_, name), _)| name)
    }

    /// Versions held, to resume a delta stream without sending everything again.
    #[must_use]
    pub fn versions(&self, kind: Kind) -> HashMap<String, String> {
        let of_kind = self.received.iter().filter(|((k, _), r)| *k == kind && !r.fixed);
        of_kind.map(|((_, name), received)| (name.to_string(), received.version.clone())).collect()
    }

    /// What the accepted resources refer to and must therefore be subscribed to by name.
    #[must_use]
    pub fn wanted(&self, kind: Kind) -> BTreeSet<Name> {
        match kind {
            Kind::Endpoints => {
                self.clusters.values().filter_map(|cluster| eds_name(cluster).cloned()).collect()
            }
            Kind::Route => self.listeners.values().flat_map(|listener| rds_names(listener)).collect(),
            Kind::Secret => {
                let clusters = self.clusters.values().flat_map(|cluster| cluster_secrets(cluster));
                clusters
                    .chain(self.listeners.values().flat_map(|listener| listener_secrets(listener)))
                    .collect()
            }
            Kind::Cluster | Kind::Listener | Kind::VirtualHost => BTreeSet::new(),
        }
    }

    /// What is accepted but not in force yet, and what each waits for: for logs and `/init_dump`.
    #[must_use]
    pub fn waiting(&self) -> Vec<String> {
        let clusters = self.clusters.iter().filter(|(name, _)| !self.active.clusters.contains_key(*name));
        let clusters = clusters.map(|(name, _)| format!("cluster {name} waits for endpoints or secrets"));
        let behind = |(name, listener): &(&Name, &Arc<Listener>)| {
            self.active.listeners.get(*name).is_none_or(|active| !Arc::ptr_eq(active, listener))
        };
        let listeners = self.listeners.iter().filter(behind);
        clusters
            .chain(listeners.map(|(name, _)| format!("listener {name} waits for routes or secrets")))
            .collect()
    }

    /// Brings into force what has become complete. True when anything changed.
    pub fn refresh(&mut self) -> bool {
        self.rebuild_tables();
        let mut next = Snapshot { version: self.active.version, ..Snapshot::default() };
        for (name, cluster) in &self.clusters {
            match self.cluster_is_complete(cluster) {
                true => drop(next.clusters.insert(name.clone(), Arc::clone(cluster))),
                false => {
                    // The older form, if there is one, serves until the new one is complete.
                    if let Some(old) = self.active.clusters.get(name) {
                        next.clusters.insert(name.clone(), Arc::clone(old));
                    }
                }
            }
        }
        next.endpoints.clone_from(&self.endpoints);
        next.secrets.clone_from(&self.secrets);
        next.routes.clone_from(&self.tables);
        for (name, listener) in &self.listeners {
            let complete = self.listener_is_complete(listener);
            let old = self.active.listeners.get(name);
            if let Some(listener) = if complete { Some(listener) } else { old } {
                next.listeners.insert(name.clone(), Arc::clone(listener));
                self.keep_inline_tables(listener, &mut next);
            }
        }
        let changed = !same(&next, &self.active);
        if changed {
            next.version += 1;
            self.active = next;
        }
        changed
    }

    /// The configuration in force.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::new(self.active.clone())
    }

    /// Every resource held: kind, name, version, bytes, and whether it is static.
    pub fn dump(&self) -> impl Iterator<Item = (Kind, &Name, &str, &bytes::Bytes, bool)> {
        self.received.iter().map(|((kind, name), r)| (*kind, name, r.version.as_str(), &r.raw, r.fixed))
    }

    fn rebuild_tables(&mut self) {
        for name in std::mem::take(&mut self.stale_tables) {
            let Some(routes) = self.routes.get(&name) else {
                self.tables.remove(&name);
                continue;
            };
            let mut whole = RouteConfiguration::clone(routes);
            if let Some(hosts) = self.hosts.get(&name) {
                whole.virtual_hosts.extend(hosts.iter().cloned());
            }
            match RouteTable::new(whole) {
                Ok(table) => drop(self.tables.insert(name, Arc::new(table))),
                Err(why) => tracing::warn!(routes = %name, %why, "routes keep their last good form"),
            }
        }
        let inline: HashSet<Name> = self
            .listeners
            .values()
            .chain(self.active.listeners.values())
            .flat_map(|listener| {
                listener.managers().filter_map(|m| inline_name(&m.routes)).collect::<Vec<_>>()
            })
            .collect();
        self.tables.retain(|name, _| !name.starts_with("inline\n") || inline.contains(name));
    }

    fn keep_inline_tables(&self, listener: &Listener, next: &mut Snapshot) {
        for key in listener.managers().filter_map(|manager| inline_name(&manager.routes)) {
            if let Some(table) = self.active.routes.get(&key).or_else(|| self.tables.get(&key)) {
                next.routes.insert(key, Arc::clone(table));
            }
        }
    }

    fn cluster_is_complete(&self, cluster: &Cluster) -> bool {
        let endpoints =
            eds_name(cluster).is_none_or(|name| self.impatient || self.endpoints.contains_key(name));
        endpoints && cluster_secrets(cluster).iter().all(|name| self.secrets.contains_key(name))
    }

    fn listener_is_complete(&self, listener: &Listener) -> bool {
        let ready = |name: &Name| match self.routes.get(name) {
            Some(routes) => !routes.vhds || self.hosts_complete,
            None => false,
        };
        rds_names(listener).iter().all(ready)
            && listener_secrets(listener)
                .iter()
                .all(|name| self.secrets.contains_key(name) || self.given_up.contains(name))
    }
}

fn inline_name(source: &RouteSource) -> Option<Name> {
    match source {
        RouteSource::Inline(routes) => Some(inline_key(routes).into()),
        RouteSource::Rds(_) => None,
    }
}

/// `8080` of `8080/reviews.default.svc.cluster.local:8080`. Names of route configurations have no slash.
fn host_table(name: &str) -> Option<&str> {
    name.split_once('/').map(|(table, _)| table)
}

fn eds_name(cluster: &Cluster) -> Option<&Name> {
    match &cluster.discovery {
        Discovery::Eds { service } => Some(service),
        _ => None,
    }
}

fn rds_names(listener: &Listener) -> BTreeSet<Name> {
    let names = listener.managers().filter_map(|manager| match &manager.routes {
        RouteSource::Rds(name) => Some(name.clone()),
        RouteSource::Inline(_) => None,
    });
    names.collect()
}

/// The workload's own certificate and roots come from the proxy itself, never over xDS.
fn is_own(name: &str) -> bool {
    name == WORKLOAD_CERTIFICATE || name == WORKLOAD_ROOTS
}

fn secret_names<'a>(
    certificates: impl IntoIterator<Item = &'a Certificate>,
    roots: Option<&'a Roots>,
) -> impl Iterator<Item = Name> {
    let certificates = certificates.into_iter().filter_map(|certificate| match certificate {
        Certificate::Sds(name) => Some(name.clone()),
        Certificate::Files { .. } | Certificate::Inline(_) => None,
    });
    let roots = roots.and_then(|roots| match roots {
        Roots::Sds(name) => Some(name.clone()),
        Roots::File(_) | Roots::Inline(_) | Roots::System => None,
    });
    certificates.chain(roots).filter(|name| !is_own(name))
}

fn cluster_secrets(cluster: &Cluster) -> BTreeSet<Name> {
    let contexts =
        cluster.tls.default.iter().chain(cluster.tls.matches.iter().filter_map(|m| m.tls.as_ref()));
    let of = |tls: &Arc<UpstreamTls>| -> Vec<Name> {
        secret_names(&tls.certificate, tls.validation.roots.as_ref()).collect()
    };
    contexts.flat_map(of).collect()
}

fn listener_secrets(listener: &Listener) -> BTreeSet<Name> {
    let contexts = listener.all_chains().filter_map(|chain| chain.tls.as_ref());
    let of = |tls: &mesh_traffic::tls::DownstreamTls| -> Vec<Name> {
        let roots = tls.validation.as_ref().and_then(|v| v.roots.as_ref());
        secret_names(&tls.certificates, roots).collect()
    };
    contexts.flat_map(of).collect()
}

/// Equal by pointers: a resource that was sent again as it was counts as changed, which is harmless.
fn same(a: &Snapshot, b: &Snapshot) -> bool {
    fn maps<T>(a: &HashMap<Name, Arc<T>>, b: &HashMap<Name, Arc<T>>) -> bool {
        a.len() == b.len()
            && a.iter().all(|(name, one)| b.get(name).is_some_and(|other| Arc::ptr_eq(one, other)))
    }
    let listeners = a.listeners.len() == b.listeners.len()
        && a.listeners
            .iter()
            .all(|(name, one)| b.listeners.get(name).is_some_and(|other| Arc::ptr_eq(one, other)));
    listeners
        && maps(&a.routes, &b.routes)
        && maps(&a.clusters, &b.clusters)
        && maps(&a.endpoints, &b.endpoints)
        && maps(&a.secrets, &b.secrets)
}

#[cfg(test)]
mod tests;
