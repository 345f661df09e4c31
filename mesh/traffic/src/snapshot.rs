//! One consistent view of everything that the proxy obeys.
//!
//! In: accepted resources. Out: [`Snapshot`], shared by `Arc`. Kept true: a request sees one snapshot from its first byte to its last.
//! Not here: accepting and warming (`proxy`).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::{
    cluster::{Cluster, Discovery},
    endpoint::Endpoints,
    listener::{HttpManager, Listener, RouteSource},
    names::Name,
    route::RouteConfiguration,
    table::RouteTable,
    tls::Secret,
};

/// Everything that the proxy obeys at one moment. Cloning it copies maps of pointers.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Rises with every change.
    pub version: u64,
    /// By name.
    pub listeners: BTreeMap<Name, Arc<Listener>>,
    /// By name of the route configuration.
    pub routes: HashMap<Name, Arc<RouteTable>>,
    /// By name.
    pub clusters: HashMap<Name, Arc<Cluster>>,
    /// By name of the EDS resource.
    pub endpoints: HashMap<Name, Arc<Endpoints>>,
    /// By name.
    pub secrets: HashMap<Name, Arc<Secret>>,
}

impl Snapshot {
    /// The routes of a manager. Inline routes are indexed under the manager's own key (see [`inline_key`]).
    #[must_use]
    pub fn routes_of(&self, manager: &HttpManager) -> Option<&Arc<RouteTable>> {
        match &manager.routes {
            RouteSource::Rds(name) => self.routes.get(name),
            RouteSource::Inline(routes) => self.routes.get(inline_key(routes).as_str()),
        }
    }

    /// The endpoints of a cluster; `None` until they have arrived, and for original destinations.
    #[must_use]
    pub fn endpoints_of<'s>(&'s self, cluster: &'s Cluster) -> Option<&'s Arc<Endpoints>> {
        match &cluster.discovery {
            Discovery::Eds { service } => self.endpoints.get(service),
            Discovery::Static(endpoints)
            | Discovery::StrictDns(endpoints)
            | Discovery::LogicalDns(endpoints) => Some(endpoints),
            Discovery::OriginalDst => None,
        }
    }

    /// Adds a listener and indexes its inline routes.
    ///
    /// # Errors
    /// When a domain of inline routes stands in two virtual hosts.
    pub fn add_listener(&mut self, listener: Listener) -> Result<(), String> {
        for manager in listener.managers() {
            if let RouteSource::Inline(routes) = &manager.routes {
                let table = RouteTable::new(RouteConfiguration::clone(routes))?;
                self.routes.insert(inline_key(routes).into(), Arc::new(table));
            }
        }
        self.listeners.insert(listener.name.clone(), Arc::new(listener));
        Ok(())
    }

    /// Adds a route configuration.
    ///
    /// # Errors
    /// When a domain stands in two virtual hosts.
    pub fn add_routes(&mut self, routes: RouteConfiguration) -> Result<(), String> {
        let name = routes.name.clone();
        self.routes.insert(name, Arc::new(RouteTable::new(routes)?));
        Ok(())
    }

    /// Adds a cluster.
    pub fn add_cluster(&mut self, cluster: Cluster) {
        self.clusters.insert(cluster.name.clone(), Arc::new(cluster));
    }

    /// Adds endpoints.
    pub fn add_endpoints(&mut self, endpoints: Endpoints) {
        self.endpoints.insert(endpoints.name.clone(), Arc::new(endpoints));
    }
}

/// Key of inline routes in [`Snapshot::routes`]: no RDS resource can have it, since names have no line break.
#[must_use]
pub fn inline_key(routes: &Arc<RouteConfiguration>) -> String {
    format!("inline\n{:p}", Arc::as_ptr(routes))
}
