//! Which groups, versions and kinds are known, and what is said about the others.
//!
//! In: group, version and kind of a document. Out: findings on it.
//! Kept true: a kind that has no effect here is always said to have none.
//! Not here: typed kinds (`resource`).

use super::{Draft, UNKNOWN_FIELD};
use crate::kinds;
use crate::object::Gvk;
use crate::resource::Kind;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Groups whose kinds we type, and the versions of them that are served.
const VERSIONS: &[(&str, &[&str])] = &[
    ("networking.istio.io", &["v1", "v1beta1", "v1alpha3"]),
    ("security.istio.io", &["v1", "v1beta1"]),
    ("telemetry.istio.io", &["v1", "v1alpha1"]),
    ("authentication.istio.io", &["v1alpha1"]),
    ("config.istio.io", &["v1alpha2"]),
    ("discovery.k8s.io", &["v1"]),
    ("", &["v1"]),
];

/// Kinds that Istio has and Crema does not honour, with what to use instead.
const NOT_HONOURED: &[(&str, &str, &str)] = &[
    (
        "networking.istio.io",
        "EnvoyFilter",
        "raw proxy patches are not supported: use the fields of the other kinds",
    ),
    ("networking.istio.io", "ProxyConfig", "set the annotation proxy.istio.io/config instead"),
    ("networking.istio.io", "WorkloadGroup", "virtual machines are not supported yet"),
    ("extensions.istio.io", "WasmPlugin", "extensions are not supported yet"),
    ("extensions.istio.io", "TrafficExtension", "extensions are not supported yet"),
    ("rbac.istio.io", "RbacConfig", "use AuthorizationPolicy instead"),
    ("rbac.istio.io", "ClusterRbacConfig", "use AuthorizationPolicy instead"),
    ("rbac.istio.io", "ServiceRole", "use AuthorizationPolicy instead"),
    ("rbac.istio.io", "ServiceRoleBinding", "use AuthorizationPolicy instead"),
];

/// Kinds we type, to suggest the right spelling.
const TYPED: &[(&str, &[&str])] = &[
    (
        "networking.istio.io",
        &["VirtualService", "DestinationRule", "Gateway", "ServiceEntry", "Sidecar", "WorkloadEntry"],
    ),
    ("security.istio.io", &["PeerAuthentication", "AuthorizationPolicy", "RequestAuthentication"]),
    ("telemetry.istio.io", &["Telemetry"]),
    ("authentication.istio.io", &["Policy", "MeshPolicy"]),
    ("discovery.k8s.io", &["EndpointSlice"]),
    ("", &["Service", "Pod", "Namespace", "ServiceAccount", "Secret", "ConfigMap"]),
];

/// Kinds of Kubernetes that are carried along without a word: workloads, and what is not about traffic.
const CARRIED: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "Endpoints",
            "Event",
            "LimitRange",
            "Node",
            "PersistentVolume",
            "PersistentVolumeClaim",
            "PodTemplate",
            "ReplicationController",
            "ResourceQuota",
        ],
    ),
    ("apps", &["ControllerRevision", "DaemonSet", "Deployment", "ReplicaSet", "StatefulSet"]),
    ("batch", &["CronJob", "Job"]),
    ("extensions", &["DaemonSet", "Deployment", "Ingress", "ReplicaSet"]),
    ("autoscaling", &["HorizontalPodAutoscaler"]),
    ("policy", &["PodDisruptionBudget"]),
    ("rbac.authorization.k8s.io", &["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"]),
    ("networking.k8s.io", &["Ingress", "IngressClass", "NetworkPolicy", "IPAddress", "ServiceCIDR"]),
    ("apiextensions.k8s.io", &["CustomResourceDefinition"]),
    (
        "admissionregistration.k8s.io",
        &[
            "MutatingWebhookConfiguration",
            "ValidatingWebhookConfiguration",
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
        ],
    ),
    ("coordination.k8s.io", &["Lease"]),
    ("storage.k8s.io", &["StorageClass", "CSIDriver", "CSINode", "VolumeAttachment"]),
    ("scheduling.k8s.io", &["PriorityClass"]),
    ("apps.openshift.io", &["DeploymentConfig"]),
];

/// Kinds without effect are held to their shape all the same, as an API server holds them. Those that take anything
/// (raw patches, scripts) and those of 1.1 have none.
fn check_shape(name: &str, draft: &mut Draft<'_>) {
    let spec = draft.json.get("spec").cloned().unwrap_or_else(|| serde_json::json!({}));
    let (unknown, wrong) = match name {
        "ProxyConfig" => shape::<kinds::ProxyConfigObject>(spec),
        "WorkloadGroup" => shape::<kinds::WorkloadGroup>(spec),
        "WasmPlugin" => shape::<kinds::WasmPlugin>(spec),
        _ => return,
    };
    for field in unknown {
        draft.warn(&field, UNKNOWN_FIELD);
    }
    if let Some((field, why)) = wrong {
        draft.error(&field, why);
    }
}

fn shape<T: DeserializeOwned>(spec: Value) -> (Vec<String>, Option<(String, String)>) {
    let typed = super::typed::<T>("spec", spec);
    (typed.unknown, typed.body.err())
}

/// Says what is odd about the group, version and kind of an object.
pub(super) fn check(kind: Kind, gvk: &Gvk, draft: &mut Draft<'_>) {
    let (group, name) = (&*gvk.group, &*gvk.kind);
    if kind != Kind::Other
        && let Some((_, served)) = VERSIONS.iter().find(|(g, _)| *g == group)
        && !served.contains(&&*gvk.version)
    {
        let version = if group.is_empty() { served[0].to_owned() } else { format!("{group}/{}", served[0]) };
        draft.error("apiVersion", format!("{} has no kind {name}: write {version}", gvk.api_version()));
    }
    if kind != Kind::Other {
        return;
    }
    if let Some((_, _, instead)) = NOT_HONOURED.iter().find(|(g, k, _)| *g == group && *k == name) {
        draft.warn("kind", format!("{name} has no effect here: {instead}"));
        check_shape(name, draft);
        return;
    }
    let carried = CARRIED.iter().any(|(g, kinds)| *g == group && kinds.contains(&name));
    if carried {
        return;
    }
    let near = TYPED
        .iter()
        .flat_map(|(g, kinds)| kinds.iter().map(move |k| (*g, *k)))
        .find(|(g, k)| k.eq_ignore_ascii_case(name) && (*g == group || *k != "Gateway" && *k != "Policy"));
    draft.warn(
        "kind",
        match near {
            Some((g, k)) if g == group => format!("unknown kind {name}, it has no effect: write {k}"),
            Some((g, k)) => {
                format!("unknown kind {name} of group {group:?}, it has no effect: {k} belongs to {g:?}")
            }
            None => format!(
                "unknown kind {name} of {}, it has no effect: check kind and apiVersion",
                gvk.api_version()
            ),
        },
    );
}
