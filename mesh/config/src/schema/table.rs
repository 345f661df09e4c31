//! Which custom kinds there are: names, versions, columns.
//!
//! In: nothing. Out: [`definitions`], one row per kind of Istio, of today and of 1.1.
//! Kept true: every kind of our own that `resource` and `kinds::mixer` know has a row; plurals are those of Istio.
//! Not here: fields (`kinds`), rules about them (`rules`).

use super::structural::{Style, structural};
use crate::kinds::{self, AuthenticationPolicy, HANDLER_KINDS, INSTANCE_KINDS, OTHER_MIXER_KINDS};
use schemars::{JsonSchema, Schema, generate::SchemaSettings};
use serde_json::{Value, json};

/// Columns of `kubectl get`: title, JSON path, words about it.
pub type Columns = &'static [(&'static str, &'static str, &'static str)];

/// One kind.
#[derive(Clone)]
pub struct Definition {
    /// API group.
    pub group: &'static str,
    /// Kind as written, lower case for mixer's.
    pub kind: &'static str,
    /// Plural, as in URLs.
    pub plural: String,
    /// Short names for `kubectl`.
    pub short: &'static [&'static str],
    /// Categories for `kubectl get`.
    pub categories: &'static [&'static str],
    /// Whether it has no namespace.
    pub cluster_scoped: bool,
    /// Versions served, the stored one first.
    pub versions: &'static [&'static str],
    /// Columns beside name and age.
    pub columns: Columns,
    /// What it is for, one sentence.
    pub about: String,
    /// CEL rules on the whole object, with what is said when they fail.
    pub(super) rules: &'static [(&'static str, &'static str)],
    body: Body,
}

/// What is known of a spec.
#[derive(Clone, Copy)]
enum Body {
    /// All fields.
    Closed(fn() -> Schema),
    /// All fields, and others are kept: Istio 1.1 had no schemas.
    Open(fn() -> Schema),
    /// Nothing: adapters and templates define it.
    Free,
}

impl Definition {
    /// The structural schema of the spec.
    pub fn spec(&self, described: bool) -> Value {
        match self.body {
            Body::Closed(schema) => structural(&schema(), Style { described, open: false }),
            Body::Open(schema) => structural(&schema(), Style { described, open: true }),
            Body::Free => json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true }),
        }
    }

    /// The schema as derived from the struct of the spec, if it has one.
    #[cfg(test)]
    pub(super) fn derived(&self) -> Option<Schema> {
        match self.body {
            Body::Closed(schema) | Body::Open(schema) => Some(schema()),
            Body::Free => None,
        }
    }

    /// Whether fields nobody knows are refused by strict validation.
    pub fn is_closed(&self) -> bool {
        matches!(self.body, Body::Closed(_))
    }
}

fn schema<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12().for_deserialize().into_generator().into_root_schema_for::<T>()
}

const ISTIO: &[&str] = &["istio-io", "networking-istio-io"];
const SECURITY: &[&str] = &["istio-io", "security-istio-io"];
const TELEMETRY: &[&str] = &["istio-io", "telemetry-istio-io"];
const EXTENSIONS: &[&str] = &["istio-io", "extensions-istio-io"];
const AUTHENTICATION: &[&str] = &["istio-io", "authentication-istio-io"];
const RBAC: &[&str] = &["istio-io", "rbac-istio-io"];
const POLICY: &[&str] = &["istio-io", "policy-istio-io"];
const APIM: &[&str] = &["istio-io", "apim-istio-io"];

const NETWORKING_VERSIONS: &[&str] = &["v1", "v1beta1", "v1alpha3"];

/// All kinds, by group in a fixed order.
pub fn definitions() -> Vec<Definition> {
    let mut all = networking();
    all.extend(security());
    all.extend(extensions());
    all.extend(legacy());
    all.extend(mixer());
    all
}

fn row(
    group: &'static str,
    kind: &'static str,
    versions: &'static [&'static str],
    body: Body,
    about: &str,
) -> Definition {
    Definition {
        group,
        kind,
        plural: plural(kind),
        short: &[],
        categories: ISTIO,
        cluster_scoped: false,
        versions,
        columns: &[],
        about: about.to_owned(),
        rules: &[],
        body,
    }
}

fn networking() -> Vec<Definition> {
    let group = "networking.istio.io";
    let v = NETWORKING_VERSIONS;
    let of = |kind, body, about| row(group, kind, v, Body::Closed(body), about);
    vec![
        Definition {
            short: &["vs"],
            columns: &[
                ("Gateways", ".spec.gateways", "Gateways the routes are bound to."),
                ("Hosts", ".spec.hosts", "Hosts the routes are for."),
            ],
            ..of(
                "VirtualService",
                schema::<kinds::VirtualService>,
                "Says where requests to a host go, and what happens to them on the way.",
            )
        },
        Definition {
            short: &["dr"],
            columns: &[("Host", ".spec.host", "Host the policy is for.")],
            ..of(
                "DestinationRule",
                schema::<kinds::DestinationRule>,
                "Says how traffic reaches the endpoints of a host, and names groups of them.",
            )
        },
        Definition {
            short: &["gw"],
            ..of("Gateway", schema::<kinds::Gateway>, "Opens ports at the edge of the mesh.")
        },
        Definition {
            short: &["se"],
            columns: &[
                ("Hosts", ".spec.hosts", "Names of the service."),
                ("Location", ".spec.location", "Inside or outside the mesh."),
                ("Resolution", ".spec.resolution", "How its endpoints are found."),
            ],
            ..of(
                "ServiceEntry",
                schema::<kinds::ServiceEntry>,
                "Adds a service that Kubernetes does not know.",
            )
        },
        of(
            "Sidecar",
            schema::<kinds::Sidecar>,
            "Limits what a workload's proxy sees, and sets the ports it opens.",
        ),
        Definition {
            short: &["we"],
            columns: &[("Address", ".spec.address", "Where the workload is reached.")],
            ..of("WorkloadEntry", schema::<kinds::WorkloadEntry>, "Adds an endpoint outside the cluster.")
        },
        Definition {
            short: &["wg"],
            ..of(
                "WorkloadGroup",
                schema::<kinds::WorkloadGroup>,
                "Describes workloads on virtual machines; without effect here.",
            )
        },
        row(
            group,
            "ProxyConfig",
            &["v1beta1"],
            Body::Closed(schema::<kinds::ProxyConfigObject>),
            "Settings of proxies; without effect here, the annotation proxy.istio.io/config works.",
        ),
        row(
            group,
            "EnvoyFilter",
            &["v1alpha3"],
            Body::Open(schema::<kinds::EnvoyFilter>),
            "Raw patches of an Envoy's configuration; without effect here.",
        ),
    ]
}

fn security() -> Vec<Definition> {
    let group = "security.istio.io";
    let of = |kind, body, about| Definition {
        categories: SECURITY,
        ..row(group, kind, &["v1", "v1beta1"], Body::Closed(body), about)
    };
    vec![
        Definition {
            short: &["pa"],
            columns: &[("Mode", ".spec.mtls.mode", "Transport accepted.")],
            ..of(
                "PeerAuthentication",
                schema::<kinds::PeerAuthentication>,
                "Says whether workloads take plaintext, mutual TLS or both.",
            )
        },
        Definition {
            short: &["ap"],
            columns: &[("Action", ".spec.action", "What a match means.")],
            ..of(
                "AuthorizationPolicy",
                schema::<kinds::AuthorizationPolicy>,
                "Says who may call a workload, and how.",
            )
        },
        Definition {
            short: &["ra"],
            ..of(
                "RequestAuthentication",
                schema::<kinds::RequestAuthentication>,
                "Says which tokens of end users are taken.",
            )
        },
        Definition {
            categories: TELEMETRY,
            ..row(
                "telemetry.istio.io",
                "Telemetry",
                &["v1", "v1alpha1"],
                Body::Closed(schema::<kinds::Telemetry>),
                "Says which traces, metrics and access logs are written.",
            )
        },
    ]
}

fn extensions() -> Vec<Definition> {
    let of = |kind, body, about| Definition {
        categories: EXTENSIONS,
        ..row("extensions.istio.io", kind, &["v1alpha1"], body, about)
    };
    vec![
        of(
            "WasmPlugin",
            Body::Closed(schema::<kinds::WasmPlugin>),
            "A WebAssembly extension of proxies; without effect here.",
        ),
        of(
            "TrafficExtension",
            Body::Open(schema::<kinds::TrafficExtension>),
            "An extension of proxies; without effect here.",
        ),
    ]
}

fn legacy() -> Vec<Definition> {
    let policy = Body::Open(schema::<AuthenticationPolicy>);
    let of = |group, kind, categories, body, about| Definition {
        categories,
        ..row(group, kind, &["v1alpha1"], body, about)
    };
    let (authn, rbac) = ("authentication.istio.io", "rbac.istio.io");
    vec![
        of(
            authn,
            "Policy",
            AUTHENTICATION,
            policy,
            "Istio 1.1: which transport services take. PeerAuthentication is today's form.",
        ),
        Definition {
            cluster_scoped: true,
            rules: &[(
                "self.metadata.name == 'default'",
                "a MeshPolicy is for the whole mesh and must be called default",
            )],
            ..of(
                authn,
                "MeshPolicy",
                AUTHENTICATION,
                policy,
                "Istio 1.1: which transport the mesh takes. PeerAuthentication is today's form.",
            )
        },
        Definition {
            cluster_scoped: true,
            ..of(
                rbac,
                "ClusterRbacConfig",
                RBAC,
                Body::Free,
                "Istio 1.1: where access is controlled; without effect here, use AuthorizationPolicy.",
            )
        },
        of(
            rbac,
            "RbacConfig",
            RBAC,
            Body::Free,
            "Istio 1.1: where access is controlled; without effect here, use AuthorizationPolicy.",
        ),
        of(
            rbac,
            "ServiceRole",
            RBAC,
            Body::Free,
            "Istio 1.1: what may be done to a service; without effect here, use AuthorizationPolicy.",
        ),
        of(
            rbac,
            "ServiceRoleBinding",
            RBAC,
            Body::Free,
            "Istio 1.1: who has a ServiceRole; without effect here, use AuthorizationPolicy.",
        ),
    ]
}

fn mixer() -> Vec<Definition> {
    let families = [
        (HANDLER_KINDS, "an adapter with its settings, to which rules send instances"),
        (INSTANCE_KINDS, "a template filled from request attributes"),
        (OTHER_MIXER_KINDS, "a part of mixer's configuration"),
    ];
    let mut all: Vec<Definition> = Vec::new();
    for (kinds, about) in families {
        for kind in kinds {
            let categories = if kind.starts_with(char::is_uppercase) { APIM } else { POLICY };
            let columns: Columns =
                if *kind == "rule" { &[("Match", ".spec.match", "Requests it is for.")] } else { &[] };
            let about = format!("Mixer's {kind}: {about}.");
            let row = row("config.istio.io", kind, &["v1alpha2"], Body::Free, &about);
            all.push(Definition { categories, columns, ..row });
        }
    }
    all
}

/// The plural Istio gives a kind.
fn plural(kind: &str) -> String {
    let name = kind.to_ascii_lowercase();
    let consonant_y = name.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'o', 'u']));
    match consonant_y {
        Some(stem) => format!("{stem}ies"),
        None if name.ends_with('s') || name.ends_with("ch") => format!("{name}es"),
        None => format!("{name}s"),
    }
}
