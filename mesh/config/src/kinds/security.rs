//! Security kinds: PeerAuthentication, AuthorizationPolicy, RequestAuthentication, and legacy Policy/MeshPolicy.
//!
//! In: their `spec`s, any version. Out: one struct per kind.
//! Kept true: absent and empty `rules` stay distinguishable from `rules: [{}]` (deny all against allow all).
//! Not here: inheritance between scopes and evaluation (`pilot`, `mesh-traffic`).

use super::common::{MatchSelector, StringMatch, TargetRef};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which transport a workload accepts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerAuthentication {
    /// Workloads; absent: the namespace, or the mesh in the root namespace.
    pub selector: Option<MatchSelector>,
    /// Mode for all ports.
    pub mtls: Option<MutualTls>,
    /// Mode per workload port, by number; needs a selector.
    pub port_level_mtls: BTreeMap<u32, MutualTls>,
}

/// A mutual-TLS mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MutualTls {
    /// Absent: UNSET.
    pub mode: MutualTlsMode,
}

/// Transport accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MutualTlsMode {
    /// Inherited; PERMISSIVE if nobody says.
    #[default]
    Unset,
    /// Plaintext only.
    Disable,
    /// Both on the same port.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

/// Who may do what to a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationPolicy {
    /// Workloads; absent: the namespace, or the mesh in the root namespace.
    pub selector: Option<MatchSelector>,
    /// Resources it is attached to instead of `selector`.
    pub target_refs: Vec<TargetRef>,
    /// Resource it is attached to (older single form).
    pub target_ref: Option<TargetRef>,
    /// Rules, any of which may match. None: never matches, so ALLOW denies all.
    pub rules: Vec<AuthorizationRule>,
    /// What a match means.
    pub action: AuthorizationAction,
    /// The external authorizer of CUSTOM.
    pub provider: Option<ProviderRef>,
}

/// What a matching rule means. Order of evaluation: CUSTOM, DENY, ALLOW.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AuthorizationAction {
    /// Allow; anything no ALLOW rule matches is then denied.
    #[default]
    Allow,
    /// Deny.
    Deny,
    /// Only record.
    Audit,
    /// Ask an external authorizer.
    Custom,
}

/// An external authorizer or telemetry provider named in mesh config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ProviderRef {
    /// Name in `meshConfig.extensionProviders`.
    pub name: String,
}

/// One rule: some `from`, some `to`, and all `when`. An empty rule matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationRule {
    /// Alternatives of the peer.
    pub from: Vec<RuleFrom>,
    /// Alternatives of the request.
    pub to: Vec<RuleTo>,
    /// Conditions, all of them.
    pub when: Vec<Condition>,
}

/// Wrapper as in YAML.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RuleFrom {
    /// The peer.
    pub source: AuthorizationSource,
}

/// Wrapper as in YAML.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RuleTo {
    /// The request.
    pub operation: Operation,
}

/// Conditions on the peer; all given lists must match, each by one of its values.
/// Values: exact, `prefix*`, `*suffix`, or `*` for "not empty".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationSource {
    /// Peer identities without `spiffe://`.
    pub principals: Vec<String>,
    /// None of these.
    pub not_principals: Vec<String>,
    /// `issuer/subject` of a verified token.
    pub request_principals: Vec<String>,
    /// None of these.
    pub not_request_principals: Vec<String>,
    /// Namespaces of the peer's identity.
    pub namespaces: Vec<String>,
    /// None of these.
    pub not_namespaces: Vec<String>,
    /// Service accounts, `name` or `ns/name`.
    pub service_accounts: Vec<String>,
    /// None of these.
    pub not_service_accounts: Vec<String>,
    /// Trust domains of the peer's identity.
    pub trust_domains: Vec<String>,
    /// None of these.
    pub not_trust_domains: Vec<String>,
    /// Addresses or CIDRs of the connection's peer.
    pub ip_blocks: Vec<String>,
    /// None of these.
    pub not_ip_blocks: Vec<String>,
    /// Addresses or CIDRs of the original client (x-forwarded-for).
    pub remote_ip_blocks: Vec<String>,
    /// None of these.
    pub not_remote_ip_blocks: Vec<String>,
}

/// Conditions on the request; all given lists must match, each by one of its values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Operation {
    /// Hosts, compared without case.
    pub hosts: Vec<String>,
    /// None of these.
    pub not_hosts: Vec<String>,
    /// Destination ports, as text.
    pub ports: Vec<String>,
    /// None of these.
    pub not_ports: Vec<String>,
    /// Methods.
    pub methods: Vec<String>,
    /// None of these.
    pub not_methods: Vec<String>,
    /// Paths; also `{*}` for one segment and `{**}` for any number.
    pub paths: Vec<String>,
    /// None of these.
    pub not_paths: Vec<String>,
}

/// A condition on an attribute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// Attribute, e.g. `request.headers[version]` or `source.ip`.
    pub key: String,
    /// One of these.
    pub values: Vec<String>,
    /// None of these.
    pub not_values: Vec<String>,
}

/// Which tokens a workload accepts. A missing token passes, an invalid one is answered with 401.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestAuthentication {
    /// Workloads; absent: the namespace, or the mesh in the root namespace.
    pub selector: Option<MatchSelector>,
    /// Resources it is attached to instead of `selector`.
    pub target_refs: Vec<TargetRef>,
    /// Resource it is attached to (older single form).
    pub target_ref: Option<TargetRef>,
    /// Issuers accepted.
    pub jwt_rules: Vec<JwtRule>,
}

/// One token issuer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct JwtRule {
    /// `iss` claim.
    pub issuer: String,
    /// Accepted `aud` claims; empty: any.
    pub audiences: Vec<String>,
    /// Where the keys are fetched; excludes `jwks`.
    pub jwks_uri: Option<String>,
    /// The keys themselves, JSON.
    pub jwks: Option<String>,
    /// Headers that carry the token; default `Authorization: Bearer`.
    pub from_headers: Vec<JwtHeader>,
    /// Query parameters that carry the token.
    pub from_params: Vec<String>,
    /// Cookies that carry the token.
    pub from_cookies: Vec<String>,
    /// Header that receives the token's payload.
    pub output_payload_to_header: Option<String>,
    /// Headers that receive single claims.
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    /// Whether the token is passed on.
    pub forward_original_token: Option<bool>,
    /// Deadline for fetching keys; default 5s.
    pub timeout: Option<crate::duration::GoDuration>,
    /// Claims kept as space-separated lists (T3).
    pub space_delimited_claims: Vec<String>,
}

/// A header that carries a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct JwtHeader {
    /// Header name.
    pub name: String,
    /// Text before the token, e.g. `Bearer `.
    pub prefix: Option<String>,
}

/// A claim copied into a header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimToHeader {
    /// Header name.
    pub header: String,
    /// Claim name; nested claims with dots.
    pub claim: String,
}

/// Legacy `authentication.istio.io` Policy and MeshPolicy: which transport services accept.
///
/// Service policies beat the namespace's (`default`, no targets), which beats MeshPolicy `default`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthenticationPolicy {
    /// Services of the namespace; empty: all, and the object must be called `default`.
    pub targets: Vec<PolicyTarget>,
    /// Accepted peers; empty: plaintext.
    pub peers: Vec<PeerMethod>,
    /// Accepted end-user tokens (T3).
    pub origins: Vec<OriginMethod>,
    /// Whether peers are optional (T3).
    pub peer_is_optional: Option<bool>,
    /// Whether tokens are optional (T3).
    pub origin_is_optional: Option<bool>,
    /// USE_PEER or USE_ORIGIN (T3).
    pub principal_binding: Option<String>,
}

impl AuthenticationPolicy {
    /// The transport this policy asks for: no `mtls` peer means plaintext only, a mode left out means STRICT.
    pub fn transport(&self) -> MutualTlsMode {
        match self.peers.iter().find_map(|p| p.mtls) {
            None => MutualTlsMode::Disable,
            Some(PeerMtls { mode: LegacyMtlsMode::Strict, .. }) => MutualTlsMode::Strict,
            Some(PeerMtls { mode: LegacyMtlsMode::Permissive, .. }) => MutualTlsMode::Permissive,
        }
    }
}

/// A service a legacy policy is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyTarget {
    /// Short service name in the policy's namespace.
    pub name: String,
    /// Service ports; empty: all.
    pub ports: Vec<PolicyPort>,
    /// Subset labels (never in force in Istio).
    pub labels: BTreeMap<String, String>,
}

/// A port by number or name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyPort {
    /// Number.
    pub number: Option<u32>,
    /// Name.
    pub name: Option<String>,
}

/// One accepted way of peer authentication.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, from = "PeerMethodFields")]
pub struct PeerMethod {
    /// Mutual TLS; `mtls:` with nothing behind it means STRICT.
    pub mtls: Option<PeerMtls>,
    /// Tokens of peers (T3).
    pub jwt: Option<serde_json::Value>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct PeerMethodFields {
    mtls: Option<PeerMtls>,
    jwt: Option<serde_json::Value>,
}

impl From<PeerMethodFields> for PeerMethod {
    /// `- mtls:` and `- {}` reach this place as an empty object, because nulls are absent: the only peer
    /// method of the kind that takes no settings is mutual TLS, so that is what they mean.
    fn from(f: PeerMethodFields) -> Self {
        let mtls = if f.jwt.is_none() { f.mtls.or_else(|| Some(PeerMtls::default())) } else { f.mtls };
        Self { mtls, jwt: f.jwt }
    }
}

/// Mutual TLS of a legacy policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerMtls {
    /// Absent: STRICT.
    pub mode: LegacyMtlsMode,
    /// Accept TLS without a client certificate (never in force in Istio).
    pub allow_tls: Option<bool>,
}

/// Mode of a legacy policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum LegacyMtlsMode {
    /// Mutual TLS only.
    #[default]
    Strict,
    /// Both on the same port.
    Permissive,
}

/// An end-user authentication method of a legacy policy (T3).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OriginMethod {
    /// The token issuer.
    pub jwt: Option<LegacyJwt>,
}

/// A token issuer of a legacy policy (T3).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LegacyJwt {
    /// `iss` claim.
    pub issuer: String,
    /// Accepted `aud` claims.
    pub audiences: Vec<String>,
    /// Where the keys are fetched.
    pub jwks_uri: Option<String>,
    /// The keys themselves.
    pub jwks: Option<String>,
    /// Headers that carry the token.
    pub jwt_headers: Vec<String>,
    /// Query parameters that carry the token.
    pub jwt_params: Vec<String>,
    /// Paths that need a token.
    pub trigger_rules: Vec<TriggerRule>,
}

/// Paths on which a token is looked for (T3).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TriggerRule {
    /// Paths without token.
    pub excluded_paths: Vec<LegacyStringMatch>,
    /// Paths with token.
    pub included_paths: Vec<LegacyStringMatch>,
}

/// A string match with the legacy `suffix` form.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LegacyStringMatch {
    /// Equal.
    pub exact: Option<String>,
    /// Starts with.
    pub prefix: Option<String>,
    /// Ends with.
    pub suffix: Option<String>,
    /// Whole match.
    pub regex: Option<String>,
}

impl LegacyStringMatch {
    /// The modern form, if there is one (`suffix` becomes an escaped expression).
    pub fn to_match(&self) -> StringMatch {
        let regex = |s: &String| StringMatch::Regex(format!(".*{}", regex::escape(s)));
        self.exact
            .clone()
            .map(StringMatch::Exact)
            .or_else(|| self.prefix.clone().map(StringMatch::Prefix))
            .or_else(|| self.suffix.as_ref().map(regex))
            .or_else(|| self.regex.clone().map(StringMatch::Regex))
            .unwrap_or_default()
    }
}
