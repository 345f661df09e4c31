//! The list of kinds: which there are, how each is named, and the one enum that holds any object.
//!
//! In: group and kind as written. Out: [`Kind`]; around bodies, [`Resource`].
//! Kept true: this table is the only place a kind is declared; indexes and parsing follow from it.
//! Not here: the bodies (`kinds`), decoding (`parse`), indexes (`snapshot`).

use crate::kinds::{self, MixerObject};
use crate::object::{Meta, Object, ObjectKey};
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde_json::Value;
use std::sync::Arc;

/// Whether objects of a kind live in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In a namespace; `default` when none is written.
    Namespaced,
    /// In the cluster as a whole.
    Cluster,
}

/// Calls `$m!` with the table of kinds that have a typed body: variant, body, index, group, kind, scope,
/// and `spec` (the body is the document's spec) or `whole` (the body is the whole document).
macro_rules! for_each_kind {
    ($m:ident) => {
        $m! {
            VirtualService, kinds::VirtualService, virtual_services, "networking.istio.io", "VirtualService", Namespaced, spec;
            DestinationRule, kinds::DestinationRule, destination_rules, "networking.istio.io", "DestinationRule", Namespaced, spec;
            Gateway, kinds::Gateway, gateways, "networking.istio.io", "Gateway", Namespaced, spec;
            ServiceEntry, kinds::ServiceEntry, service_entries, "networking.istio.io", "ServiceEntry", Namespaced, spec;
            Sidecar, kinds::Sidecar, sidecars, "networking.istio.io", "Sidecar", Namespaced, spec;
            WorkloadEntry, kinds::WorkloadEntry, workload_entries, "networking.istio.io", "WorkloadEntry", Namespaced, spec;
            PeerAuthentication, kinds::PeerAuthentication, peer_authentications, "security.istio.io", "PeerAuthentication", Namespaced, spec;
            AuthorizationPolicy, kinds::AuthorizationPolicy, authorization_policies, "security.istio.io", "AuthorizationPolicy", Namespaced, spec;
            RequestAuthentication, kinds::RequestAuthentication, request_authentications, "security.istio.io", "RequestAuthentication", Namespaced, spec;
            Telemetry, kinds::Telemetry, telemetries, "telemetry.istio.io", "Telemetry", Namespaced, spec;
            Policy, kinds::AuthenticationPolicy, policies, "authentication.istio.io", "Policy", Namespaced, spec;
            MeshPolicy, kinds::AuthenticationPolicy, mesh_policies, "authentication.istio.io", "MeshPolicy", Cluster, spec;
            Service, core::Service, services, "", "Service", Namespaced, whole;
            EndpointSlice, discovery::EndpointSlice, endpoint_slices, "discovery.k8s.io", "EndpointSlice", Namespaced, whole;
            Pod, core::Pod, pods, "", "Pod", Namespaced, whole;
            Namespace, core::Namespace, namespaces, "", "Namespace", Cluster, whole;
            ServiceAccount, core::ServiceAccount, service_accounts, "", "ServiceAccount", Namespaced, whole;
            Secret, core::Secret, secrets, "", "Secret", Namespaced, whole;
            ConfigMap, core::ConfigMap, config_maps, "", "ConfigMap", Namespaced, whole;
        }
    };
}
pub(crate) use for_each_kind;

macro_rules! declare {
    ($($variant:ident, $body:ty, $index:ident, $group:literal, $kind:literal, $scope:ident, $shape:ident;)*) => {
        /// Every kind this crate types, plus [`Kind::Mixer`] and [`Kind::Other`] for families of kinds.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind {
            $(#[doc = concat!("`", $group, "` ", $kind, ".")] $variant,)*
            /// Any kind of `config.istio.io`; told apart by the kind as written.
            Mixer,
            /// Any other kind, carried as JSON: workloads, CRDs, kinds not honoured.
            Other,
        }

        impl Kind {
            /// The kind of a group and kind as written; case counts, as in Kubernetes.
            pub fn of(group: &str, kind: &str) -> Kind {
                match (group, kind) {
                    $(($group, $kind) => Kind::$variant,)*
                    ("config.istio.io", _) => Kind::Mixer,
                    _ => Kind::Other,
                }
            }
        }

        /// Any object, shared.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Resource {
            $(#[doc = concat!("A ", $kind, ".")] $variant(Arc<Object<$body>>),)*
            /// An object of `config.istio.io`.
            Mixer(Arc<Object<MixerObject>>),
            /// An object of any other kind; the body is the whole document.
            Other(Arc<Object<Value>>),
        }

        impl Resource {
            /// Metadata.
            pub fn meta(&self) -> &Meta {
                match self {
                    $(Resource::$variant(o) => &o.meta,)*
                    Resource::Mixer(o) => &o.meta,
                    Resource::Other(o) => &o.meta,
                }
            }

            /// Metadata, to change; copies the object if it is shared.
            pub fn meta_mut(&mut self) -> &mut Meta {
                match self {
                    $(Resource::$variant(o) => &mut Arc::make_mut(o).meta,)*
                    Resource::Mixer(o) => &mut Arc::make_mut(o).meta,
                    Resource::Other(o) => &mut Arc::make_mut(o).meta,
                }
            }

            /// Kind.
            pub fn kind(&self) -> Kind {
                match self {
                    $(Resource::$variant(_) => Kind::$variant,)*
                    Resource::Mixer(_) => Kind::Mixer,
                    Resource::Other(_) => Kind::Other,
                }
            }
        }
    };
}
for_each_kind!(declare);

impl Resource {
    /// The key that names this object.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::of(self.kind(), self.meta())
    }
}

/// Kinds without a namespace among those carried as JSON.
const CLUSTER_SCOPED: &[&str] = &[
    "APIService",
    "CertificateSigningRequest",
    "ClusterRbacConfig",
    "ClusterRole",
    "ClusterRoleBinding",
    "ClusterTrustBundle",
    "CustomResourceDefinition",
    "FlowSchema",
    "GatewayClass",
    "IngressClass",
    "MutatingWebhookConfiguration",
    "Node",
    "PersistentVolume",
    "PriorityClass",
    "PriorityLevelConfiguration",
    "RuntimeClass",
    "StorageClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
    "VolumeAttachment",
];

impl Kind {
    /// Whether objects of this kind live in a namespace; `kind_name` is the kind as written.
    pub fn scope(self, kind_name: &str) -> Scope {
        match self {
            Kind::MeshPolicy | Kind::Namespace => Scope::Cluster,
            Kind::Other if CLUSTER_SCOPED.contains(&kind_name) => Scope::Cluster,
            _ => Scope::Namespaced,
        }
    }
}
