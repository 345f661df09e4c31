//! What a proxy's configuration is made of: which shared parts it needs, and what is its own.
//!
//! In: a proxy. Out: [`Outline`], whose keys say which other proxies get the very same parts.
//! Kept true: a part depends on its key and the model, on nothing else. Not here: keeping parts (`push`).

use super::{Part, Translator};
use crate::model::scope::{Capture, Egress, Proxy, Role, View, ViewKey, egress_of, sidecar_of, view_key};
use mesh_config::{Object, kinds};
use std::{net::IpAddr, sync::Arc};

/// Clusters and endpoints: who sees what, and where connections leave from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterKey {
    /// What is seen.
    pub view: ViewKey,
    /// Where connections leave from.
    pub source: Option<IpAddr>,
}

/// Outbound listeners and routes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey {
    /// What is seen in all.
    pub view: ViewKey,
    egress: Vec<Egress>,
    captured: bool,
    allow_any: bool,
    own: Vec<IpAddr>,
}

/// A proxy's configuration, before anything is made.
#[derive(Debug)]
pub struct Outline {
    /// The Sidecar that applies.
    pub sidecar: Option<Arc<Object<kinds::Sidecar>>>,
    /// Its egress listeners.
    pub egress: Vec<Egress>,
    /// Key of the clusters.
    pub clusters: ClusterKey,
    /// Key of the outbound part.
    pub routes: RouteKey,
    policy: kinds::OutboundMode,
}

impl Translator {
    /// The outline of a proxy.
    pub fn outline(&self, proxy: &Proxy) -> Outline {
        let sidecar = sidecar_of(&self.model, proxy);
        let spec = sidecar.as_ref().map(|s| &s.spec);
        let egress = egress_of(proxy, spec);
        let view = view_key(&self.model, proxy, &egress);
        let policy = spec
            .and_then(|s| s.outbound_traffic_policy.as_ref())
            .map_or(self.model.mesh().outbound_traffic_policy.mode, |p| p.mode);
        let source = (proxy.capture == Capture::None).then(|| proxy.address());
        let routes = RouteKey {
            view: view.clone(),
            egress: egress.clone(),
            captured: proxy.capture == Capture::Redirect,
            allow_any: policy == kinds::OutboundMode::AllowAny,
            own: if self.model.headless { proxy.addresses.clone() } else { Vec::new() },
        };
        Outline { sidecar, egress, clusters: ClusterKey { view, source }, routes, policy }
    }

    /// The shared clusters and endpoints.
    pub fn cluster_part(&self, outline: &Outline) -> Part {
        let view = View::of(&self.model, &outline.clusters.view);
        self.outbound_clusters(&view, outline.clusters.source)
    }

    /// The outbound listeners and routes of a sidecar, shared by proxies with the same key.
    pub fn route_part(&self, proxy: &Proxy, outline: &Outline) -> Part {
        if proxy.role == Role::Router {
            return Part::default();
        }
        let view = Arc::new(View::of(&self.model, &outline.clusters.view));
        let pairs: Vec<_> = outline.egress.iter().map(|e| (e.clone(), view.clone())).collect();
        self.outbound(proxy, &pairs, outline.policy)
    }

    /// What no other proxy has: inbound listeners of a sidecar, everything a gateway listens on.
    pub fn own_part(&self, proxy: &Proxy, outline: &Outline) -> Part {
        match proxy.role {
            Role::Router => self.gateway(proxy, &View::of(&self.model, &outline.clusters.view)),
            Role::Sidecar => self.inbound(proxy, outline.sidecar.as_ref().map(|s| &s.spec)),
        }
    }

    /// Everything of one proxy, as the traffic model has it.
    pub fn whole(&self, proxy: &Proxy) -> Part {
        let outline = self.outline(proxy);
        let mut all = self.cluster_part(&outline);
        for part in [self.route_part(proxy, &outline), self.own_part(proxy, &outline)] {
            all.listeners.extend(part.listeners);
            all.routes.extend(part.routes);
            all.clusters.extend(part.clusters);
            all.endpoints.extend(part.endpoints);
            all.secrets.extend(part.secrets);
        }
        all
    }
}
