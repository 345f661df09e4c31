//! Which attributes exist, and of what type.
//!
//! In: Istio's built-in manifests and the user's `attributemanifest` objects. Out: [`Vocabulary`], an index by name.
//! Kept true: built-in attributes have the same id in every vocabulary. Not here: values (`value`, `bag`).

use std::sync::Arc;

use ahash::AHashMap;

use super::{Text, ValueType};

/// An attribute's place in a [`super::Bag`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttributeId(pub(super) u16);

impl AttributeId {
    /// Index into per-attribute tables.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

macro_rules! builtin {
    ($($variant:ident = $name:literal: $kind:ident,)*) => {
        /// The attributes of Istio 1.1's manifests `istioproxy` and `kubernetes`, and a few of Crema's own:
        /// `{source,destination}.cluster.id`, `{request,response}.messages`, `source.port`, `route.name`,
        /// `response.code_details`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        #[allow(missing_docs, reason = "each is named after its attribute")]
        pub enum Builtin { $($variant,)* }

        impl Builtin {
            /// Every one, in id order.
            pub const ALL: &[(&str, ValueType)] = &[$(($name, ValueType::$kind),)*];
        }
    };
}

builtin! {
    ApiOperation = "api.operation": String,
    ApiProtocol = "api.protocol": String,
    ApiService = "api.service": String,
    ApiVersion = "api.version": String,
    CheckCacheHit = "check.cache_hit": Bool,
    CheckErrorCode = "check.error_code": Int64,
    CheckErrorMessage = "check.error_message": String,
    ConnectionDuration = "connection.duration": Duration,
    ConnectionEvent = "connection.event": String,
    ConnectionId = "connection.id": String,
    ConnectionMtls = "connection.mtls": Bool,
    ConnectionReceivedBytes = "connection.received.bytes": Int64,
    ConnectionReceivedBytesTotal = "connection.received.bytes_total": Int64,
    ConnectionRequestedServerName = "connection.requested_server_name": String,
    ConnectionSentBytes = "connection.sent.bytes": Int64,
    ConnectionSentBytesTotal = "connection.sent.bytes_total": Int64,
    ContextProtocol = "context.protocol": String,
    ContextProxyErrorCode = "context.proxy_error_code": String,
    ContextProxyVersion = "context.proxy_version": String,
    ContextReporterKind = "context.reporter.kind": String,
    ContextReporterLocal = "context.reporter.local": Bool,
    ContextReporterUid = "context.reporter.uid": String,
    ContextTime = "context.time": Timestamp,
    ContextTimestamp = "context.timestamp": Timestamp,
    DestinationClusterId = "destination.cluster.id": String,
    DestinationContainerName = "destination.container.name": String,
    DestinationIp = "destination.ip": IpAddress,
    DestinationLabels = "destination.labels": StringMap,
    DestinationMetadata = "destination.metadata": StringMap,
    DestinationName = "destination.name": String,
    DestinationNamespace = "destination.namespace": String,
    DestinationOwner = "destination.owner": String,
    DestinationPort = "destination.port": Int64,
    DestinationPrincipal = "destination.principal": String,
    DestinationServiceHost = "destination.service.host": String,
    DestinationServiceName = "destination.service.name": String,
    DestinationServiceNamespace = "destination.service.namespace": String,
    DestinationServiceUid = "destination.service.uid": String,
    DestinationServiceAccount = "destination.serviceAccount": String,
    DestinationUid = "destination.uid": String,
    DestinationWorkloadName = "destination.workload.name": String,
    DestinationWorkloadNamespace = "destination.workload.namespace": String,
    DestinationWorkloadUid = "destination.workload.uid": String,
    OriginIp = "origin.ip": IpAddress,
    OriginUid = "origin.uid": String,
    OriginUser = "origin.user": String,
    QuotaCacheHit = "quota.cache_hit": Bool,
    RbacPermissiveEffectivePolicyId = "rbac.permissive.effective_policy_id": String,
    RbacPermissiveResponseCode = "rbac.permissive.response_code": String,
    RequestApiKey = "request.api_key": String,
    RequestAuthAudiences = "request.auth.audiences": String,
    RequestAuthClaims = "request.auth.claims": StringMap,
    RequestAuthPresenter = "request.auth.presenter": String,
    RequestAuthPrincipal = "request.auth.principal": String,
    RequestAuthRawClaims = "request.auth.raw_claims": String,
    RequestHeaders = "request.headers": StringMap,
    RequestHost = "request.host": String,
    RequestId = "request.id": String,
    RequestMessages = "request.messages": Int64,
    RequestMethod = "request.method": String,
    RequestPath = "request.path": String,
    RequestQueryParams = "request.query_params": StringMap,
    RequestReason = "request.reason": String,
    RequestReferer = "request.referer": String,
    RequestScheme = "request.scheme": String,
    RequestSize = "request.size": Int64,
    RequestTime = "request.time": Timestamp,
    RequestTotalSize = "request.total_size": Int64,
    RequestUrlPath = "request.url_path": String,
    RequestUseragent = "request.useragent": String,
    ResponseCode = "response.code": Int64,
    ResponseCodeDetails = "response.code_details": String,
    ResponseDuration = "response.duration": Duration,
    ResponseGrpcMessage = "response.grpc_message": String,
    ResponseGrpcStatus = "response.grpc_status": String,
    ResponseHeaders = "response.headers": StringMap,
    ResponseMessages = "response.messages": Int64,
    ResponseSize = "response.size": Int64,
    ResponseTime = "response.time": Timestamp,
    ResponseTotalSize = "response.total_size": Int64,
    RouteName = "route.name": String,
    SourceClusterId = "source.cluster.id": String,
    SourceIp = "source.ip": IpAddress,
    SourceLabels = "source.labels": StringMap,
    SourceMetadata = "source.metadata": StringMap,
    SourceName = "source.name": String,
    SourceNamespace = "source.namespace": String,
    SourceOwner = "source.owner": String,
    SourcePort = "source.port": Int64,
    SourcePrincipal = "source.principal": String,
    SourceServiceAccount = "source.serviceAccount": String,
    SourceServices = "source.services": String,
    SourceUid = "source.uid": String,
    SourceUser = "source.user": String,
    SourceWorkloadName = "source.workload.name": String,
    SourceWorkloadNamespace = "source.workload.namespace": String,
    SourceWorkloadUid = "source.workload.uid": String,
}

impl From<Builtin> for AttributeId {
    fn from(builtin: Builtin) -> Self {
        Self(builtin as u16)
    }
}

/// Attribute names and types. Immutable; one per configuration generation.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    names: Vec<(Text, ValueType)>,
    index: AHashMap<Text, AttributeId>,
}

/// A name was declared twice with different types.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VocabularyError {
    /// The second declaration differs.
    #[error(
        "attribute {name} is declared as {new}, but it already is {old}; rename it or give it the same type"
    )]
    Conflict {
        /// The attribute.
        name: String,
        /// Its type so far.
        old: ValueType,
        /// Its type in the new declaration.
        new: ValueType,
    },
    /// More attributes than ids.
    #[error("more than 65535 attributes are declared; remove manifests that are not used")]
    Full,
}

impl Default for Vocabulary {
    fn default() -> Self {
        Self::builtin()
    }
}

impl Vocabulary {
    /// A vocabulary without any attribute.
    #[must_use]
    pub fn empty() -> Self {
        Self { names: Vec::new(), index: AHashMap::new() }
    }

    /// Istio's own attributes.
    #[must_use]
    pub fn builtin() -> Self {
        let mut vocabulary = Self::empty();
        for (name, kind) in Builtin::ALL {
            vocabulary.declare(name, *kind).expect("built-in names are distinct");
        }
        vocabulary
    }

    /// Adds an attribute. Declaring one again with the same type changes nothing.
    pub fn declare(&mut self, name: &str, kind: ValueType) -> Result<AttributeId, VocabularyError> {
        if let Some(id) = self.id(name) {
            let old = self.kind(id);
            return if old == kind {
                Ok(id)
            } else {
                Err(VocabularyError::Conflict { name: name.to_owned(), old, new: kind })
            };
        }
        let id = AttributeId(u16::try_from(self.names.len()).map_err(|_| VocabularyError::Full)?);
        let name: Text = Arc::from(name);
        self.names.push((name.clone(), kind));
        self.index.insert(name, id);
        Ok(id)
    }

    /// The id of `name`.
    #[must_use]
    pub fn id(&self, name: &str) -> Option<AttributeId> {
        self.index.get(name).copied()
    }

    /// The name of `id`, which must come from this vocabulary.
    #[must_use]
    pub fn name(&self, id: AttributeId) -> &Text {
        &self.names[id.index()].0
    }

    /// The type of `id`, which must come from this vocabulary.
    #[must_use]
    pub fn kind(&self, id: AttributeId) -> ValueType {
        self.names[id.index()].1
    }

    /// Whether every id of `other` means the same attribute here.
    #[must_use]
    pub fn extends(&self, other: &Self) -> bool {
        self.names.starts_with(&other.names)
    }

    /// How many attributes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no attribute.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_attributes_keep_their_ids_in_every_vocabulary() {
        let mut vocabulary = Vocabulary::builtin();
        vocabulary.declare("my.own", ValueType::Double).expect("new name");
        let id = AttributeId::from(Builtin::ResponseCode);
        assert_eq!((&**vocabulary.name(id), vocabulary.kind(id)), ("response.code", ValueType::Int64));
    }

    #[test]
    fn an_attribute_cannot_change_its_type() {
        let error = Vocabulary::builtin().declare("response.code", ValueType::String).expect_err("conflict");
        assert!(
            error
                .to_string()
                .starts_with("attribute response.code is declared as STRING, but it already is INT64")
        );
    }
}
