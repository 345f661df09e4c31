//! Istio's objects as traffic: listeners, routes, clusters and endpoints of one proxy.
//!
//! In: a [`Model`] and the proxy to serve. Out: [`Part`]s of the traffic model, each resource with the objects it
//! was made from. Kept true: names are Istio's; equal views give equal parts, so that parts are shared between proxies.
//! Not here: encoding and sending (`push`, `ads`), the decision per request (`mesh_traffic::plan`).

pub mod authz;
pub mod cluster;
pub mod endpoint;
pub mod gateway;
pub mod http;
pub mod inbound;
pub mod matching;
pub mod outbound;
pub mod outline;
pub mod route;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod virtual_host;

use crate::model::{Model, destination::Rules, scope::View};
use mesh_traffic::{
    Cluster, Endpoints, Listener, RouteConfiguration,
    names::{Name, SourceObject},
    tls::Secret,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

/// A resource and the objects it was made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Made<T> {
    /// The resource.
    pub value: T,
    /// `Kind namespace/name` of each object.
    pub sources: Vec<Arc<str>>,
}

impl<T> Made<T> {
    /// A resource made from these objects; repeated ones count once.
    pub fn from(value: T, mut sources: Vec<Arc<str>>) -> Self {
        let mut seen = BTreeSet::new();
        sources.retain(|s| seen.insert(s.clone()));
        Self { value, sources }
    }
}

/// Resources by name.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Listeners.
    pub listeners: BTreeMap<Name, Made<Listener>>,
    /// Route tables.
    pub routes: BTreeMap<Name, Made<RouteConfiguration>>,
    /// Clusters.
    pub clusters: BTreeMap<Name, Made<Cluster>>,
    /// Endpoints.
    pub endpoints: BTreeMap<Name, Made<Endpoints>>,
    /// Secrets.
    pub secrets: BTreeMap<Name, Made<Secret>>,
}

impl Part {
    /// Adds a listener; the first of a name stays.
    pub fn listener(&mut self, made: Made<Listener>) {
        self.listeners.entry(made.value.name.clone()).or_insert(made);
    }

    /// Adds a route table; the first of a name stays.
    pub fn table(&mut self, made: Made<RouteConfiguration>) {
        self.routes.entry(made.value.name.clone()).or_insert(made);
    }

    /// Adds a cluster; the first of a name stays.
    pub fn cluster(&mut self, made: Made<Cluster>) {
        self.clusters.entry(made.value.name.clone()).or_insert(made);
    }

    /// Adds endpoints; the first of a name stays.
    pub fn assignment(&mut self, made: Made<Endpoints>) {
        self.endpoints.entry(made.value.name.clone()).or_insert(made);
    }
}

/// Something in an object that cannot be honoured as written, found while translating.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Problem {
    /// `Kind namespace/name`.
    pub object: Arc<str>,
    /// Field path.
    pub field: String,
    /// What is wrong and what happens instead.
    pub why: String,
}

/// One model, with what translation looks up again and again.
#[derive(Debug)]
pub struct Translator {
    /// The mesh.
    pub model: Arc<Model>,
    /// DestinationRules by namespace.
    pub rules: Rules,
    problems: Mutex<BTreeSet<Problem>>,
}

impl Translator {
    /// Prepares a model.
    pub fn new(model: Arc<Model>) -> Self {
        let rules = Rules::of(&model);
        Self { model, rules, problems: Mutex::default() }
    }

    /// Notes a problem; the same one counts once.
    pub fn problem(&self, object: &Arc<str>, field: impl Into<String>, why: impl Into<String>) {
        let problem = Problem { object: object.clone(), field: field.into(), why: why.into() };
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).insert(problem);
    }

    /// All problems noted so far.
    pub fn problems(&self) -> Vec<Problem> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// The DestinationRule that clients with this view use for a service.
    pub fn rule(
        &self,
        view: &View,
        service: &crate::model::service::Service,
    ) -> crate::model::destination::Rule {
        self.rules.lookup(&self.model, &view.key.namespace, &view.labels(), service)
    }
}

/// The path of an object in `istio.config`, from its label.
pub(crate) fn source_of<T>(object: &mesh_config::Object<T>) -> SourceObject {
    let kind: String = object.meta.gvk.kind.chars().fold(String::new(), |mut out, c| {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('-');
        }
        out.push(c.to_ascii_lowercase());
        out
    });
    SourceObject {
        kind: kind.into(),
        namespace: object.meta.namespace.clone(),
        name: object.meta.name.clone(),
    }
}
