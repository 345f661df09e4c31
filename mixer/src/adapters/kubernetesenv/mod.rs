//! `kubernetesenv`: fills in what only the cluster knows about the two ends of a request.
//!
//! In: instances of template `kubernetes`. Out: attributes bound by the instance's `attribute_bindings`.
//! Kept true: works from the Pods that mixer's own configuration source delivers; a peer counts only with its verified
//! identity. Not here: the look-up itself (`workload`), the bindings (`join`), which `dispatch` runs before all rules.

use std::sync::Arc;

use super::{Adapter, AdapterKind};
use crate::config::Template;

pub(super) const KIND: AdapterKind = AdapterKind {
    name: "kubernetesenv",
    templates: &[Template::Kubernetes],
    build: |fields, _| {
        // Istio's settings about reaching an API server have nothing to say here: Pods come with the configuration.
        for name in ["kubeconfig_path", "cache_refresh_duration", "cluster_registries_namespace"] {
            fields.raw(name);
        }
        Some(Arc::new(KubernetesEnv))
    },
};

struct KubernetesEnv;

impl Adapter for KubernetesEnv {}
