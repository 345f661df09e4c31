//! Checks of objects against each other: references to nothing, and two objects that want the same.
//!
//! In: a [`Snapshot`]. Out: findings. Nothing here refuses an object: the rest of it stays in force.
//! Kept true: a reference to nothing is an error where the set holds services at all, and only a warning where it
//! holds none, since it is then a part of a configuration. Not here: single objects.

use super::{Findings, covers_any};
use crate::diagnostic::{Diagnostic, Severity};
use crate::hosts::{SERVICE_DOMAIN, covers, overlap, resolve};
use crate::kinds::*;
use crate::object::Object;
use crate::resource::Kind;
use crate::snapshot::Snapshot;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Checks objects against each other.
pub fn set(snapshot: &Snapshot) -> Vec<Diagnostic> {
    let known = Known::of(snapshot);
    let mut out = Vec::new();
    for vs in snapshot.virtual_services.iter() {
        let mut f = Findings::of(Kind::VirtualService, &vs.meta);
        virtual_service(vs, snapshot, &known, &mut f);
        out.append(&mut f.found);
    }
    for rule in snapshot.destination_rules.iter() {
        let mut f = Findings::of(Kind::DestinationRule, &rule.meta);
        let host = resolve(&rule.spec.host, rule.namespace());
        if !known.has(&host) {
            f.warn("spec.host", unknown_host(&rule.spec.host, &host, "the rule has no effect"));
        }
        out.append(&mut f.found);
    }
    for gateway in snapshot.gateways.iter() {
        let mut f = Findings::of(Kind::Gateway, &gateway.meta);
        secrets(&gateway.spec, snapshot, &known, &mut f);
        out.append(&mut f.found);
    }
    for policy in snapshot.policies.iter() {
        let mut f = Findings::of(Kind::Policy, &policy.meta);
        for (i, target) in policy.spec.targets.iter().enumerate() {
            if snapshot.services.get(policy.namespace(), &target.name).is_none() {
                let why = format!(
                    "no Service {}/{}, so the policy has no effect: check the name",
                    policy.namespace(),
                    target.name
                );
                f.add(known.missing(), &format!("spec.targets[{i}].name"), why);
            }
        }
        out.append(&mut f.found);
    }
    for policy in snapshot.authorization_policies.iter() {
        let mut f = Findings::of(Kind::AuthorizationPolicy, &policy.meta);
        if let Some(provider) = &policy.spec.provider
            && !known.providers.contains(provider.name.as_str())
        {
            let why = format!(
                "{:?} is not among mesh config's extensionProviders, so every request is denied: add it there",
                provider.name
            );
            f.error("spec.provider.name", why);
        }
        out.append(&mut f.found);
    }
    telemetry(snapshot, &known, &mut out);
    rules(snapshot, &known, &mut out);
    hosts_twice(snapshot, &mut out);
    subsets_twice(snapshot, &mut out);
    sidecars_twice(snapshot, &mut out);
    peers_twice(snapshot, &mut out);
    out
}

/// What there is to refer to.
struct Known<'a> {
    hosts: BTreeSet<String>,
    wild: Vec<String>,
    subsets: BTreeMap<String, BTreeSet<&'a str>>,
    providers: BTreeSet<&'a str>,
}

impl<'a> Known<'a> {
    fn of(snapshot: &'a Snapshot) -> Self {
        let mut hosts: BTreeSet<_> = snapshot
            .services
            .iter()
            .map(|s| format!("{}.{}.{SERVICE_DOMAIN}", s.name(), s.namespace()))
            .collect();
        let mut wild = Vec::new();
        for host in snapshot.service_entries.iter().flat_map(|e| e.spec.hosts.iter()) {
            if host.contains('*') {
                wild.push(host.clone());
            } else {
                hosts.insert(host.to_ascii_lowercase());
            }
        }
        let mut subsets: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for rule in snapshot.destination_rules.iter() {
            let names = subsets.entry(resolve(&rule.spec.host, rule.namespace())).or_default();
            names.extend(rule.spec.subsets.iter().map(|s| s.name.as_str()));
        }
        let providers =
            snapshot.mesh.extension_providers.iter().filter_map(|p| p.get("name")?.as_str()).collect();
        Self { hosts, wild, subsets, providers }
    }

    fn has(&self, host: &str) -> bool {
        self.hosts.contains(host) || covers_any(&self.wild, host) || host.contains('*')
    }

    /// How bad a reference to nothing is: a set without any service is only a part of a configuration.
    fn missing(&self) -> Severity {
        if self.hosts.is_empty() && self.wild.is_empty() { Severity::Warning } else { Severity::Error }
    }

    fn subset(&self, host: &str, subset: &str) -> bool {
        self.subsets.iter().any(|(pattern, names)| covers(pattern, host) && names.contains(subset))
    }
}

fn unknown_host(written: &str, host: &str, so: &str) -> String {
    let hint = match host.split('.').collect::<Vec<_>>()[..] {
        [name, namespace] | [name, namespace, "svc"] => {
            format!("write {name}.{namespace}.{SERVICE_DOMAIN} if it is a Service")
        }
        _ => "check the name, or add a Service or ServiceEntry".to_owned(),
    };
    if written == host {
        format!("no service has the host {host}, so {so}: {hint}")
    } else {
        format!("no service has the host {host} (from {written:?}), so {so}: {hint}")
    }
}

fn virtual_service(
    vs: &Object<VirtualService>,
    snapshot: &Snapshot,
    known: &Known<'_>,
    f: &mut Findings<'_>,
) {
    let namespace = vs.namespace();
    for (i, name) in vs.spec.gateways.iter().enumerate().filter(|(_, g)| *g != "mesh") {
        let (ns, name) = name.split_once('/').unwrap_or((namespace, name));
        let field = format!("spec.gateways[{i}]");
        let Some(gateway) = snapshot.gateways.get(ns, name) else {
            f.add(
                known.missing(),
                &field,
                format!("no Gateway {ns}/{name}, so nothing reaches these rules there: check the name"),
            );
            continue;
        };
        let serves = |host: &String| {
            gateway.spec.servers.iter().flat_map(|s| s.hosts.iter()).any(|pattern| {
                let (from, pattern) = pattern.split_once('/').unwrap_or(("*", pattern));
                let from = if from == "." { gateway.namespace() } else { from };
                (from == "*" || from == namespace) && overlap(pattern, &resolve(host, namespace))
            })
        };
        if !vs.spec.hosts.iter().any(serves) {
            f.warn(
                &field,
                format!("no server of Gateway {ns}/{name} takes any of spec.hosts: add one to the Gateway"),
            );
        }
    }
    let on_mesh = vs.spec.gateways.is_empty() || vs.spec.gateways.iter().any(|g| g == "mesh");
    for (i, host) in vs.spec.hosts.iter().enumerate().filter(|_| on_mesh) {
        let full = resolve(host, namespace);
        if !known.has(&full) {
            f.warn(
                format!("spec.hosts[{i}]"),
                unknown_host(host, &full, "only requests on port 80 are routed by it"),
            );
        }
    }
    for (field, to) in destinations(&vs.spec) {
        let host = resolve(&to.host, namespace);
        if !known.has(&host) {
            let why = unknown_host(&to.host, &host, "requests routed there get 503");
            f.add(known.missing(), &format!("{field}.host"), why);
        } else if let Some(port) = to.port.as_ref().and_then(|p| p.number)
            && let Some(service) = service(snapshot, &host)
            && !service.iter().any(|p| *p == i64::from(port))
        {
            let ports = service.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
            let why =
                format!("{host} has no port {port}, so requests routed there get 503: its ports are {ports}");
            f.error(format!("{field}.port.number"), why);
        }
        if let Some(subset) = to.subset.as_deref()
            && !known.subset(&host, subset)
        {
            let rules = known.subsets.iter().any(|(pattern, _)| covers(pattern, &host));
            let severity = if rules { Severity::Error } else { known.missing() };
            let why = format!(
                "no DestinationRule for {host} has the subset {subset:?}, so requests routed there get 503: add it there"
            );
            f.add(severity, &format!("{field}.subset"), why);
        }
    }
}

fn service(snapshot: &Snapshot, host: &str) -> Option<Vec<i64>> {
    let (name, rest) = host.split_once('.')?;
    let namespace = rest.strip_suffix(SERVICE_DOMAIN)?.strip_suffix('.')?;
    let spec = snapshot.services.get(namespace, name)?.spec.spec.as_ref()?;
    Some(spec.ports.iter().flatten().map(|p| i64::from(p.port)).collect())
}

fn destinations(vs: &VirtualService) -> Vec<(String, &Destination)> {
    let mut out = Vec::new();
    for (i, route) in vs.http.iter().enumerate() {
        for (j, arm) in route.route.iter().enumerate() {
            out.push((format!("spec.http[{i}].route[{j}].destination"), &arm.destination));
        }
        out.extend(route.mirror.iter().map(|to| (format!("spec.http[{i}].mirror"), to)));
        for (j, mirror) in route.mirrors.iter().enumerate() {
            out.extend(
                mirror.destination.iter().map(|to| (format!("spec.http[{i}].mirrors[{j}].destination"), to)),
            );
        }
    }
    for (i, route) in vs.tls.iter().enumerate() {
        for (j, arm) in route.route.iter().enumerate() {
            out.push((format!("spec.tls[{i}].route[{j}].destination"), &arm.destination));
        }
    }
    for (i, route) in vs.tcp.iter().enumerate() {
        for (j, arm) in route.route.iter().enumerate() {
            out.push((format!("spec.tcp[{i}].route[{j}].destination"), &arm.destination));
        }
    }
    out
}

fn secrets(gateway: &Gateway, snapshot: &Snapshot, known: &Known<'_>, f: &mut Findings<'_>) {
    for (i, tls) in gateway.servers.iter().enumerate().filter_map(|(i, s)| Some((i, s.tls.as_ref()?))) {
        for name in tls.credential_name.iter().chain(&tls.credential_names) {
            // Which namespace the gateway's pods run in is not known here; any will do.
            if !snapshot.secrets.iter().any(|s| s.name() == name) {
                let why = format!(
                    "no Secret is called {name:?}, so the port cannot serve TLS: create it beside the gateway's pods"
                );
                f.add(known.missing(), &format!("spec.servers[{i}].tls.credentialName"), why);
            }
        }
    }
}

fn telemetry(snapshot: &Snapshot, known: &Known<'_>, out: &mut Vec<Diagnostic>) {
    const BUILT_IN: [&str; 5] = ["prometheus", "envoy", "zipkin", "otel", "stackdriver"];
    for t in snapshot.telemetries.iter() {
        let mut f = Findings::of(Kind::Telemetry, &t.meta);
        let named = (t.spec.tracing.iter().enumerate().map(|(i, s)| ("tracing", i, &s.providers)))
            .chain(t.spec.metrics.iter().enumerate().map(|(i, s)| ("metrics", i, &s.providers)))
            .chain(t.spec.access_logging.iter().enumerate().map(|(i, s)| ("accessLogging", i, &s.providers)));
        for (section, i, providers) in named {
            for (j, provider) in providers.iter().enumerate() {
                let name = provider.name.as_str();
                if !known.providers.contains(name) && !BUILT_IN.contains(&name) {
                    let why = format!("{name:?} is not among mesh config's extensionProviders: add it there");
                    f.warn(format!("spec.{section}[{i}].providers[{j}].name"), why);
                }
            }
        }
        out.append(&mut f.found);
    }
}

fn rules(snapshot: &Snapshot, known: &Known<'_>, out: &mut Vec<Diagnostic>) {
    for rule in snapshot.mixer.iter().filter(|o| o.spec.kind == "rule") {
        let mut f = Findings::of(Kind::Mixer, &rule.meta);
        let actions = rule.spec.spec.get("actions").and_then(Value::as_array);
        for (i, action) in actions.into_iter().flatten().enumerate() {
            let at = format!("spec.actions[{i}]");
            if let Some(handler) = action.get("handler").and_then(Value::as_str)
                && find_mixer(snapshot, rule.namespace(), handler, "handler", HANDLER_KINDS).is_none()
            {
                let why = format!(
                    "no handler {handler:?}, so the action does nothing: write name.kind, or name.kind.namespace"
                );
                f.add(known.missing(), &format!("{at}.handler"), why);
            }
            let instances = action.get("instances").and_then(Value::as_array);
            for (j, instance) in instances.into_iter().flatten().enumerate() {
                if let Some(instance) = instance.as_str()
                    && find_mixer(snapshot, rule.namespace(), instance, "instance", INSTANCE_KINDS).is_none()
                {
                    let why = format!(
                        "no instance {instance:?}, so the action does nothing: write name.kind, or name.kind.namespace"
                    );
                    f.add(known.missing(), &format!("{at}.instances[{j}]"), why);
                }
            }
        }
        out.append(&mut f.found);
    }
}

/// The object a rule's action names: `name.kind[.namespace]`, or `name[.namespace]` of the general kind.
/// Without a namespace the rule's own is meant, then the root namespace.
pub fn find_mixer<'a>(
    snapshot: &'a Snapshot,
    namespace: &str,
    reference: &str,
    general: &str,
    kinds: &[&str],
) -> Option<&'a std::sync::Arc<Object<MixerObject>>> {
    let fits = |o: &&std::sync::Arc<Object<MixerObject>>| kinds.contains(&o.spec.kind.as_str());
    let within = |ns: &str, reference: &str| {
        let exact = snapshot.mixer.get(ns, reference).filter(fits);
        exact.or_else(|| snapshot.mixer.get(ns, &format!("{reference}.{general}")))
    };
    let qualified = || reference.rsplit_once('.').and_then(|(name, ns)| within(ns, name));
    within(namespace, reference).or_else(qualified).or_else(|| within(snapshot.root_namespace(), reference))
}

/// Two VirtualServices for one host inside the mesh: they are not merged, the older is in force.
fn hosts_twice(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    let mut owners: BTreeMap<String, &Object<VirtualService>> = BTreeMap::new();
    for vs in snapshot.virtual_services.by_age() {
        let on_mesh = vs.spec.gateways.is_empty() || vs.spec.gateways.iter().any(|g| g == "mesh");
        for (i, host) in vs.spec.hosts.iter().enumerate().filter(|_| on_mesh) {
            let host = resolve(host, vs.namespace());
            match owners.get(&host) {
                None => drop(owners.insert(host, vs)),
                Some(owner) if std::ptr::eq(*owner, &**vs) || !same_audience(owner, vs) => {}
                Some(owner) => {
                    let mut f = Findings::of(Kind::VirtualService, &vs.meta);
                    let why = format!(
                        "{host} already belongs to VirtualService {}/{} ({}), which is older; these rules are not in force for it inside the mesh: merge the two",
                        owner.namespace(),
                        owner.name(),
                        owner.meta.origin
                    );
                    f.warn(format!("spec.hosts[{i}]"), why);
                    out.append(&mut f.found);
                }
            }
        }
    }
}

/// Whether any client may see both objects.
fn same_audience(a: &Object<VirtualService>, b: &Object<VirtualService>) -> bool {
    let private = |vs: &Object<VirtualService>| vs.spec.export_to == ["."];
    !(private(a) && private(b) && a.namespace() != b.namespace())
}

/// DestinationRules of one namespace for one host are merged: subsets add up, the first of a name counts.
fn subsets_twice(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    let mut seen: BTreeMap<(String, &str), Vec<&Object<DestinationRule>>> = BTreeMap::new();
    for rule in snapshot.destination_rules.by_age() {
        if rule.spec.workload_selector.is_some() {
            continue;
        }
        let others = seen.entry((resolve(&rule.spec.host, rule.namespace()), rule.namespace())).or_default();
        let mut f = Findings::of(Kind::DestinationRule, &rule.meta);
        for older in others.iter() {
            for (i, subset) in rule.spec.subsets.iter().enumerate() {
                if older.spec.subsets.iter().any(|s| s.name == subset.name) {
                    let why = format!(
                        "subset {:?} is already in DestinationRule {} ({}), which is older and in force: remove one",
                        subset.name,
                        older.name(),
                        older.meta.origin
                    );
                    f.warn(format!("spec.subsets[{i}].name"), why);
                }
            }
            if older.spec.traffic_policy.is_some() && rule.spec.traffic_policy.is_some() {
                let why = format!(
                    "DestinationRule {} ({}) has a policy for the same host, is older and in force: merge the two",
                    older.name(),
                    older.meta.origin
                );
                f.warn("spec.trafficPolicy", why);
            }
        }
        others.push(rule);
        out.append(&mut f.found);
    }
}

fn sidecars_twice(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    let mut first: BTreeMap<&str, &Object<Sidecar>> = BTreeMap::new();
    let whole = |s: &Sidecar| s.workload_selector.as_ref().is_none_or(|w| w.labels.is_empty());
    for sidecar in snapshot.sidecars.by_age().into_iter().filter(|s| whole(&s.spec)) {
        match first.get(sidecar.namespace()) {
            None => drop(first.insert(sidecar.namespace(), sidecar)),
            Some(older) => {
                let mut f = Findings::of(Kind::Sidecar, &sidecar.meta);
                let why = format!(
                    "Sidecar {} ({}) is for the whole namespace as well, is older and in force: remove one, or select workloads",
                    older.name(),
                    older.meta.origin
                );
                f.error("spec.workloadSelector", why);
                out.append(&mut f.found);
            }
        }
    }
}

fn peers_twice(snapshot: &Snapshot, out: &mut Vec<Diagnostic>) {
    let mut first: BTreeMap<(&str, &BTreeMap<String, String>), &Object<PeerAuthentication>> = BTreeMap::new();
    let none = BTreeMap::new();
    for pa in snapshot.peer_authentications.by_age() {
        let labels = pa.spec.selector.as_ref().map_or(&none, |s| &s.match_labels);
        let mut f = Findings::of(Kind::PeerAuthentication, &pa.meta);
        if !labels.is_empty() && pa.namespace() == snapshot.root_namespace() {
            f.warn("spec.selector", "is for workloads of the root namespace only, not for the mesh: move it to the workloads' namespace");
        }
        match first.get(&(pa.namespace(), labels)) {
            None => drop(first.insert((pa.namespace(), labels), pa)),
            Some(older) => {
                let why = format!(
                    "PeerAuthentication {} ({}) is for the same workloads, is older and in force: remove one",
                    older.name(),
                    older.meta.origin
                );
                f.warn("", why);
            }
        }
        out.append(&mut f.found);
    }
}
