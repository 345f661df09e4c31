//! Field names: the well-known ones are a number, so looking them up is an integer compare.
//! In: names as received or as configured. Out: [`Known`], [`Name`] (borrowed), [`FieldName`] (prepared once).
//! Kept true: a name is a lower-case token; a known name never travels as text inside the codec.
//! Not here: where values live (`fields`).

use std::fmt;

macro_rules! known_names {
    ($($variant:ident = $text:literal,)+) => {
        /// A field name that the proxy itself reads, writes or counts. The variant is the name in camel case.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
        #[repr(u8)]
        #[allow(missing_docs, reason = "the variants are the names")]
        pub enum Known { $($variant,)+ }

        impl Known {
            /// Every known name, in the order of their numbers.
            pub const ALL: &'static [Known] = &[$(Known::$variant,)+];

            /// The name on the wire, lower-case.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Known::$variant => const {
                        match std::str::from_utf8($text) {
                            Ok(text) => text,
                            Err(_) => panic!("a field name is ASCII"),
                        }
                    },)+
                }
            }

            /// The known name that these lower-case bytes spell.
            pub fn from_lower(name: &[u8]) -> Option<Known> {
                match name {
                    $($text => Some(Known::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

known_names! {
    Host = b"host",
    ContentLength = b"content-length",
    ContentType = b"content-type",
    ContentEncoding = b"content-encoding",
    TransferEncoding = b"transfer-encoding",
    Connection = b"connection",
    KeepAlive = b"keep-alive",
    ProxyConnection = b"proxy-connection",
    ProxyAuthenticate = b"proxy-authenticate",
    ProxyAuthorization = b"proxy-authorization",
    Te = b"te",
    Trailer = b"trailer",
    Upgrade = b"upgrade",
    Http2Settings = b"http2-settings",
    Expect = b"expect",
    Accept = b"accept",
    AcceptEncoding = b"accept-encoding",
    AcceptLanguage = b"accept-language",
    UserAgent = b"user-agent",
    Cookie = b"cookie",
    SetCookie = b"set-cookie",
    Authorization = b"authorization",
    WwwAuthenticate = b"www-authenticate",
    Date = b"date",
    Server = b"server",
    Location = b"location",
    Referer = b"referer",
    Origin = b"origin",
    Via = b"via",
    Vary = b"vary",
    Range = b"range",
    Etag = b"etag",
    LastModified = b"last-modified",
    IfNoneMatch = b"if-none-match",
    CacheControl = b"cache-control",
    RetryAfter = b"retry-after",
    AltSvc = b"alt-svc",
    Forwarded = b"forwarded",
    AccessControlRequestMethod = b"access-control-request-method",
    AccessControlRequestHeaders = b"access-control-request-headers",
    AccessControlAllowOrigin = b"access-control-allow-origin",
    AccessControlAllowMethods = b"access-control-allow-methods",
    AccessControlAllowHeaders = b"access-control-allow-headers",
    AccessControlAllowCredentials = b"access-control-allow-credentials",
    AccessControlExposeHeaders = b"access-control-expose-headers",
    AccessControlMaxAge = b"access-control-max-age",
    XRequestId = b"x-request-id",
    B3 = b"b3",
    XB3TraceId = b"x-b3-traceid",
    XB3SpanId = b"x-b3-spanid",
    XB3ParentSpanId = b"x-b3-parentspanid",
    XB3Sampled = b"x-b3-sampled",
    XB3Flags = b"x-b3-flags",
    XOtSpanContext = b"x-ot-span-context",
    Traceparent = b"traceparent",
    Tracestate = b"tracestate",
    Baggage = b"baggage",
    XRealIp = b"x-real-ip",
    XForwardedFor = b"x-forwarded-for",
    XForwardedHost = b"x-forwarded-host",
    XForwardedPort = b"x-forwarded-port",
    XForwardedProto = b"x-forwarded-proto",
    XForwardedClientCert = b"x-forwarded-client-cert",
    XIstioAttributes = b"x-istio-attributes",
    XEnvoyAttemptCount = b"x-envoy-attempt-count",
    XEnvoyDecoratorOperation = b"x-envoy-decorator-operation",
    XEnvoyDegraded = b"x-envoy-degraded",
    XEnvoyDownstreamServiceCluster = b"x-envoy-downstream-service-cluster",
    XEnvoyDownstreamServiceNode = b"x-envoy-downstream-service-node",
    XEnvoyExpectedRqTimeoutMs = b"x-envoy-expected-rq-timeout-ms",
    XEnvoyExternalAddress = b"x-envoy-external-address",
    XEnvoyForceTrace = b"x-envoy-force-trace",
    XEnvoyHedgeOnPerTryTimeout = b"x-envoy-hedge-on-per-try-timeout",
    XEnvoyImmediateHealthCheckFail = b"x-envoy-immediate-health-check-fail",
    XEnvoyInternal = b"x-envoy-internal",
    XEnvoyIpTags = b"x-envoy-ip-tags",
    XEnvoyIsTimeoutRetry = b"x-envoy-is-timeout-retry",
    XEnvoyLocalOverloaded = b"x-envoy-local-overloaded",
    XEnvoyMaxRetries = b"x-envoy-max-retries",
    XEnvoyOriginalDstHost = b"x-envoy-original-dst-host",
    XEnvoyOriginalHost = b"x-envoy-original-host",
    XEnvoyOriginalMethod = b"x-envoy-original-method",
    XEnvoyOriginalPath = b"x-envoy-original-path",
    XEnvoyOriginalUrl = b"x-envoy-original-url",
    XEnvoyOverloaded = b"x-envoy-overloaded",
    XEnvoyPeerMetadata = b"x-envoy-peer-metadata",
    XEnvoyPeerMetadataId = b"x-envoy-peer-metadata-id",
    XEnvoyRateLimited = b"x-envoy-ratelimited",
    XEnvoyRetriableHeaderNames = b"x-envoy-retriable-header-names",
    XEnvoyRetriableStatusCodes = b"x-envoy-retriable-status-codes",
    XEnvoyRetryGrpcOn = b"x-envoy-retry-grpc-on",
    XEnvoyRetryOn = b"x-envoy-retry-on",
    XEnvoyUpstreamAltStatName = b"x-envoy-upstream-alt-stat-name",
    XEnvoyUpstreamCanary = b"x-envoy-upstream-canary",
    XEnvoyUpstreamHealthcheckedCluster = b"x-envoy-upstream-healthchecked-cluster",
    XEnvoyUpstreamRqPerTryTimeoutMs = b"x-envoy-upstream-rq-per-try-timeout-ms",
    XEnvoyUpstreamRqTimeoutAltResponse = b"x-envoy-upstream-rq-timeout-alt-response",
    XEnvoyUpstreamRqTimeoutMs = b"x-envoy-upstream-rq-timeout-ms",
    XEnvoyUpstreamServiceTime = b"x-envoy-upstream-service-time",
    XEnvoyUpstreamStreamDurationMs = b"x-envoy-upstream-stream-duration-ms",
    GrpcStatus = b"grpc-status",
    GrpcMessage = b"grpc-message",
    GrpcStatusDetailsBin = b"grpc-status-details-bin",
    GrpcTimeout = b"grpc-timeout",
    GrpcEncoding = b"grpc-encoding",
    GrpcAcceptEncoding = b"grpc-accept-encoding",
}

impl Known {
    /// Names that speak of one connection: the codec writes them itself and never copies them.
    /// `te: trailers` and `upgrade` are let through by the codec where they mean something.
    pub const fn is_hop_by_hop(self) -> bool {
        matches!(
            self,
            Known::Connection
                | Known::KeepAlive
                | Known::ProxyConnection
                | Known::TransferEncoding
                | Known::Te
                | Known::Trailer
                | Known::Upgrade
                | Known::Http2Settings
        )
    }

    /// Names that a trailer section may not bring: framing, routing, credentials and identity (RFC 9110 §6.5.1).
    pub const fn is_forbidden_in_trailers(self) -> bool {
        self.is_hop_by_hop()
            || matches!(
                self,
                Known::Host
                    | Known::ContentLength
                    | Known::ContentType
                    | Known::ContentEncoding
                    | Known::Expect
                    | Known::Cookie
                    | Known::SetCookie
                    | Known::Authorization
                    | Known::ProxyAuthenticate
                    | Known::ProxyAuthorization
                    | Known::WwwAuthenticate
                    | Known::Range
                    | Known::CacheControl
                    | Known::Location
                    | Known::Forwarded
                    | Known::XRealIp
                    | Known::XForwardedFor
                    | Known::XForwardedHost
                    | Known::XForwardedPort
                    | Known::XForwardedProto
                    | Known::XForwardedClientCert
                    | Known::XRequestId
                    | Known::XIstioAttributes
                    | Known::XEnvoyPeerMetadata
                    | Known::XEnvoyPeerMetadataId
                    | Known::XEnvoyInternal
                    | Known::XEnvoyExternalAddress
                    | Known::XEnvoyOriginalDstHost
            )
    }
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A borrowed name to look up or write: a known one, or text in any case.
#[derive(Clone, Copy, Debug)]
pub enum Name<'a> {
    /// A well-known name.
    Known(Known),
    /// Any other name. Compared without regard to case.
    Text(&'a str),
}

impl<'a> Name<'a> {
    /// The name as text; lower-case if it is known.
    pub fn as_str(&self) -> &'a str {
        match self {
            Name::Known(known) => known.as_str(),
            Name::Text(text) => text,
        }
    }
}

impl From<Known> for Name<'_> {
    fn from(known: Known) -> Self {
        Name::Known(known)
    }
}

impl<'a> From<&'a str> for Name<'a> {
    fn from(text: &'a str) -> Self {
        match known_in_any_case(text.as_bytes()) {
            Some(known) => Name::Known(known),
            None => Name::Text(text),
        }
    }
}

impl<'a> From<&'a String> for Name<'a> {
    fn from(text: &'a String) -> Self {
        Name::from(text.as_str())
    }
}

impl<'a> From<&'a FieldName> for Name<'a> {
    fn from(name: &'a FieldName) -> Self {
        match name.known {
            Some(known) => Name::Known(known),
            None => Name::Text(&name.text),
        }
    }
}

/// A name prepared at configuration time: checked, lower-cased and looked up once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FieldName {
    known: Option<Known>,
    text: Box<str>,
}

impl FieldName {
    /// Takes a name in any case. Fails if it is empty, longer than 256 bytes or not an HTTP token (RFC 9110 §5.1).
    pub fn new(text: &str) -> Result<FieldName, BadName> {
        if text.is_empty() || text.len() > MAX_NAME || !text.bytes().all(is_token) {
            return Err(BadName(text.chars().take(64).collect()));
        }
        let text = text.to_ascii_lowercase().into_boxed_str();
        Ok(FieldName { known: Known::from_lower(text.as_bytes()), text })
    }

    /// The name, lower-case.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its number, if it is well known.
    pub fn known(&self) -> Option<Known> {
        self.known
    }
}

impl fmt::Display for FieldName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A header name that HTTP cannot carry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("header name {0:?} is not an http token: use letters, digits and any of !#$%&'*+-.^_`|~")]
pub struct BadName(String);

/// Longest name that is taken, in bytes.
pub(crate) const MAX_NAME: usize = 256;

/// Whether a byte may stand in a token: field names, methods (RFC 9110 §5.6.2).
pub(crate) const fn is_token(byte: u8) -> bool {
    TOKEN[byte as usize]
}

const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut at = 0;
    while at < 256 {
        // `at` is below 256, so the cast keeps its value.
        let byte = at as u8;
        table[at] = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        at += 1;
    }
    table
};

/// Looks a name up whatever its case; long names cannot be known ones.
fn known_in_any_case(name: &[u8]) -> Option<Known> {
    let mut lower = [0u8; 48];
    let lower = lower.get_mut(..name.len())?;
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    Known::from_lower(lower)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_name_is_a_lower_case_token_that_finds_itself() {
        for (number, known) in Known::ALL.iter().enumerate() {
            let text = known.as_str();
            assert!(FieldName::new(text).is_ok_and(|name| name.as_str() == text), "{text}");
            assert_eq!(Known::from_lower(text.as_bytes()), Some(*known));
            assert_eq!(known_in_any_case(text.to_uppercase().as_bytes()), Some(*known), "{text}");
            assert_eq!(usize::from(*known as u8), number);
        }
        assert!(Known::ALL.len() < 255, "255 stands for names that are not known");
    }

    #[test]
    fn configured_names_are_tokens() {
        for bad in ["", "a b", "a:b", "ä", "a\n", &"x".repeat(257)] {
            assert!(FieldName::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(FieldName::new("End-User").map(|n| n.to_string()), Ok("end-user".to_owned()));
    }
}
