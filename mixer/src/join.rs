//! Joining what a reporter cannot know: labels, workload, owner and service account of both ends of a request.
//!
//! In: a bag with addresses, uids and verified principals. Out: the same bag, its workload attributes filled in.
//! Kept true: the far end is a workload only if its identity says so, and a forged label never survives. With no pod
//! known at all, mixer has nothing to go by and leaves what the reporter said. Not here: the look-up (`workload`).

use std::sync::Arc;

use crate::{
    attributes::{AttributeId, Bag, Builtin, Value},
    config::{Generation, Template, outputs},
    workload::{Workload, Workloads},
};

/// The two ends, as far as they are known.
#[derive(Clone, Debug, Default)]
pub struct Ends {
    /// The client.
    pub source: Option<Arc<Workload>>,
    /// The server.
    pub destination: Option<Arc<Workload>>,
}

struct Side {
    ip: Builtin,
    uid: Builtin,
    principal: Builtin,
    name: Builtin,
    namespace: Builtin,
    labels: Builtin,
    metadata: Builtin,
    owner: Builtin,
    service_account: Builtin,
    workload_name: Builtin,
    workload_namespace: Builtin,
    workload_uid: Builtin,
    cluster: Builtin,
}

const SOURCE: Side = Side {
    ip: Builtin::SourceIp,
    uid: Builtin::SourceUid,
    principal: Builtin::SourcePrincipal,
    name: Builtin::SourceName,
    namespace: Builtin::SourceNamespace,
    labels: Builtin::SourceLabels,
    metadata: Builtin::SourceMetadata,
    owner: Builtin::SourceOwner,
    service_account: Builtin::SourceServiceAccount,
    workload_name: Builtin::SourceWorkloadName,
    workload_namespace: Builtin::SourceWorkloadNamespace,
    workload_uid: Builtin::SourceWorkloadUid,
    cluster: Builtin::SourceClusterId,
};

const DESTINATION: Side = Side {
    ip: Builtin::DestinationIp,
    uid: Builtin::DestinationUid,
    principal: Builtin::DestinationPrincipal,
    name: Builtin::DestinationName,
    namespace: Builtin::DestinationNamespace,
    labels: Builtin::DestinationLabels,
    metadata: Builtin::DestinationMetadata,
    owner: Builtin::DestinationOwner,
    service_account: Builtin::DestinationServiceAccount,
    workload_name: Builtin::DestinationWorkloadName,
    workload_namespace: Builtin::DestinationWorkloadNamespace,
    workload_uid: Builtin::DestinationWorkloadUid,
    cluster: Builtin::DestinationClusterId,
};

/// Name of the one cluster, as `ISTIO_META_CLUSTER_ID` has it by default.
const CLUSTER: &str = "Kubernetes";

/// Whether the reporter is the client's side.
#[must_use]
pub fn outbound(bag: &Bag) -> bool {
    bag.text(Builtin::ContextReporterKind).is_some_and(|kind| &**kind == "outbound")
}

/// Fills in both ends.
pub fn join(bag: &mut Bag, workloads: &Workloads) -> Ends {
    if workloads.is_empty() {
        return Ends::default();
    }
    let (near, far) = if outbound(bag) { (&SOURCE, &DESTINATION) } else { (&DESTINATION, &SOURCE) };
    let near_pod = reporter(bag, near, workloads);
    let far_pod = peer(bag, far, workloads, outbound(bag));
    fill(bag, near, near_pod.as_deref());
    fill(bag, far, far_pod.as_deref());
    if let Some(pod) = near_pod.as_deref().filter(|_| !outbound(bag)) {
        fill_service(bag, pod);
    }
    let (source, destination) = if outbound(bag) { (near_pod, far_pod) } else { (far_pod, near_pod) };
    Ends { source, destination }
}

/// The reporter's own end: it says who it is, and the caller has made sure of that.
fn reporter(bag: &Bag, side: &Side, workloads: &Workloads) -> Option<Arc<Workload>> {
    let by_uid = bag.text(side.uid).and_then(|uid| workloads.by_uid(uid));
    by_uid.or_else(|| address(bag, side).and_then(|ip| workloads.by_ip(ip))).cloned()
}

/// The end the reporter talked to: the pod of that address, if it is also the pod of that identity. A server that the
/// client reached without TLS has shown no identity; the address the client itself chose then stands alone.
fn peer(bag: &Bag, side: &Side, workloads: &Workloads, server: bool) -> Option<Arc<Workload>> {
    let principal = bag.text(side.principal).map(|text| &**text);
    let pod = match address(bag, side) {
        Some(ip) if server && principal.is_none() => workloads.by_ip(ip),
        Some(ip) => workloads.peer(ip, principal),
        // A client's uid without an address: Istio's proxies send both, so the identity alone must do.
        None => bag
            .text(side.uid)
            .and_then(|uid| workloads.by_uid(uid))
            .filter(|pod| principal.is_some_and(|principal| pod.is(principal))),
    };
    pod.cloned()
}

fn address(bag: &Bag, side: &Side) -> Option<std::net::IpAddr> {
    match bag.get(side.ip) {
        Some(Value::Ip(ip)) => Some(*ip),
        _ => None,
    }
}

fn fill(bag: &mut Bag, side: &Side, pod: Option<&Workload>) {
    let own: [Builtin; 11] = [
        side.uid,
        side.name,
        side.namespace,
        side.labels,
        side.metadata,
        side.owner,
        side.service_account,
        side.workload_name,
        side.workload_namespace,
        side.workload_uid,
        side.cluster,
    ];
    for attribute in own {
        bag.clear(attribute);
    }
    let Some(pod) = pod else {
        // A verified identity still names a namespace and a service account.
        let principal = bag.text(side.principal).cloned().unwrap_or_else(|| "".into());
        let mut parts = principal.split('/').skip(1);
        if let (Some("ns"), Some(namespace), Some("sa"), Some(account), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        {
            bag.set_text(side.namespace, namespace);
            bag.set_text(side.service_account, account);
        }
        return;
    };
    let texts = [
        (side.uid, &pod.uid),
        (side.name, &pod.name),
        (side.namespace, &pod.namespace),
        (side.owner, &pod.owner),
        (side.service_account, &pod.service_account),
        (side.workload_name, &pod.workload),
        (side.workload_namespace, &pod.namespace),
        (side.workload_uid, &pod.workload_uid),
    ];
    for (attribute, text) in texts {
        if !text.is_empty() {
            bag.set(attribute, Value::String(text.clone()));
        }
    }
    bag.set(side.labels, Value::StringMap(pod.labels.clone()));
    bag.set(side.metadata, Value::StringMap(pod.annotations.clone()));
    bag.set_text(side.cluster, CLUSTER);
}

/// The service a server was reached by, if its reporter does not say: inbound clusters of today's Istio carry no host.
fn fill_service(bag: &mut Bag, pod: &Workload) {
    if bag.get(Builtin::DestinationServiceHost).is_some() {
        return;
    }
    let port = match bag.get(Builtin::DestinationPort) {
        Some(Value::Int64(port)) => Some(*port),
        _ => None,
    };
    let Some(name) = pod.service(port) else { return };
    let namespace = &pod.namespace;
    bag.set_text(Builtin::DestinationServiceHost, format!("{name}.{namespace}.svc.cluster.local"));
    bag.set_text(Builtin::DestinationServiceUid, format!("istio://{namespace}/services/{name}"));
    bag.set(Builtin::DestinationServiceName, Value::String(name.clone()));
    bag.set(Builtin::DestinationServiceNamespace, Value::String(namespace.clone()));
}

/// Runs the user's attribute generators: instances of template `kubernetes` with their bindings.
pub fn generate(generation: &Generation, bag: &mut Bag, ends: &Ends) {
    for rule in &generation.rules {
        let mut actions =
            rule.actions.iter().filter(|action| action.instance.template == Template::Kubernetes);
        let Some(first) = actions.next() else { continue };
        if !rule.matcher.as_ref().is_none_or(|matcher| matcher.eval_bool(bag, &mut ()).unwrap_or(false)) {
            continue;
        }
        let port = match bag.get(Builtin::DestinationPort) {
            Some(Value::Int64(port)) => Some(*port),
            _ => None,
        };
        let (source, destination) = (ends.source.as_deref(), ends.destination.as_deref());
        let inputs = outputs::bag(bag, &generation.outputs, source, destination, port);
        for action in std::iter::once(first).chain(actions) {
            for (attribute, expression) in &action.instance.bindings {
                if let Ok(value) = expression.eval(&inputs) {
                    bag.set(*attribute, value);
                }
            }
        }
    }
}

/// Attributes that hold for every request of one connection and one response code: what a series can know.
#[must_use]
pub fn series_attribute(id: AttributeId) -> bool {
    const KNOWN: &[Builtin] = &[
        Builtin::SourceIp,
        Builtin::SourceUid,
        Builtin::SourcePrincipal,
        Builtin::SourceName,
        Builtin::SourceNamespace,
        Builtin::SourceLabels,
        Builtin::SourceMetadata,
        Builtin::SourceOwner,
        Builtin::SourceServiceAccount,
        Builtin::SourceWorkloadName,
        Builtin::SourceWorkloadNamespace,
        Builtin::SourceWorkloadUid,
        Builtin::SourceClusterId,
        Builtin::SourceUser,
        Builtin::DestinationIp,
        Builtin::DestinationPort,
        Builtin::DestinationUid,
        Builtin::DestinationPrincipal,
        Builtin::DestinationName,
        Builtin::DestinationNamespace,
        Builtin::DestinationLabels,
        Builtin::DestinationMetadata,
        Builtin::DestinationOwner,
        Builtin::DestinationServiceAccount,
        Builtin::DestinationWorkloadName,
        Builtin::DestinationWorkloadNamespace,
        Builtin::DestinationWorkloadUid,
        Builtin::DestinationClusterId,
        Builtin::DestinationServiceHost,
        Builtin::DestinationServiceName,
        Builtin::DestinationServiceNamespace,
        Builtin::DestinationServiceUid,
        Builtin::ContextProtocol,
        Builtin::ContextProxyErrorCode,
        Builtin::ContextReporterKind,
        Builtin::ContextReporterUid,
        Builtin::ContextReporterLocal,
        Builtin::ConnectionMtls,
        Builtin::ConnectionEvent,
        Builtin::ResponseCode,
        Builtin::ResponseGrpcStatus,
        // Never known from our proxies, so absent in records and series alike.
        Builtin::ApiProtocol,
        Builtin::RbacPermissiveResponseCode,
        Builtin::RbacPermissiveEffectivePolicyId,
    ];
    KNOWN.iter().any(|known| AttributeId::from(*known) == id)
}
