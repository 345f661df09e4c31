//! HTTP filters that the proxy carries out, and what a route may change about them.
//!
//! In: pilot or xDS. Out: settings, compiled. Kept true: percentages are millionths, so no float decides.
//! Not here: RBAC's conditions (`rbac`), running a filter (`proxy`).

use std::{sync::Arc, time::Duration};

use crate::{matchers::HeaderMatch, names::Name, rbac::Rbac};

/// One filter of a listener, in request order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpFilter {
    /// Name, e.g. `envoy.filters.http.fault`.
    pub name: Name,
    /// What it does.
    pub config: FilterConfig,
}

/// What a filter does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilterConfig {
    /// Sends the request on. Always last.
    Router,
    /// Delays and aborts on purpose.
    Fault(Fault),
    /// Checks who may do what.
    Rbac(Arc<Rbac>),
    /// Asks a service whether the request may pass.
    ExtAuthz(Arc<ExtAuthz>),
    /// Answers cross-origin preflights; its rules are in the route.
    Cors,
    /// Something that this proxy does natively, or that was marked optional: accepted and passed over.
    Ignored {
        /// Type URL of its configuration.
        type_url: Name,
    },
}

/// Faults of a listener or route.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fault {
    /// Waits before anything else.
    pub delay: Option<Delay>,
    /// Answers instead of the upstream, after the delay.
    pub abort: Option<Abort>,
    /// Only requests that meet all of these.
    pub headers: Vec<HeaderMatch>,
}

/// A delay for some requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delay {
    /// How long.
    pub fixed: Duration,
    /// For how many of a million requests.
    pub per_million: u32,
}

/// An abort of some requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abort {
    /// What is answered.
    pub with: AbortWith,
    /// For how many of a million requests.
    pub per_million: u32,
}

/// The answer of an [`Abort`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortWith {
    /// An HTTP status.
    Http(u16),
    /// A gRPC status, as a trailers-only response.
    Grpc(u16),
}

impl Fault {
    /// The delay, if the draw (uniform over `u32`) falls into its share.
    #[must_use]
    pub fn delay_for(&self, draw: u32) -> Option<Duration> {
        self.delay.filter(|delay| draw % MILLION < delay.per_million).map(|delay| delay.fixed)
    }

    /// The abort, if the draw falls into its share.
    #[must_use]
    pub fn abort_for(&self, draw: u32) -> Option<AbortWith> {
        self.abort.filter(|abort| draw % MILLION < abort.per_million).map(|abort| abort.with)
    }
}

/// The denominator of every share in the model.
pub const MILLION: u32 = 1_000_000;

/// A question to an authorization service (Envoy's ext_authz over gRPC).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtAuthz {
    /// The cluster to ask.
    pub cluster: Name,
    /// How long to wait. Default 200 ms in Envoy; pilot sends its own.
    pub timeout: Duration,
    /// Lets requests pass when there is no answer.
    pub fail_open: bool,
    /// Status when there is no answer and `fail_open` is off. 403 in Envoy; pilot sends 503.
    pub status_on_error: u16,
    /// Sends the peer's certificate principal (Envoy's `include_peer_certificate` sends the certificate itself).
    pub include_peer_certificate: bool,
    /// Only these request headers are sent; empty for all.
    pub allowed_headers: Vec<crate::matchers::StringMatch>,
}

impl Default for ExtAuthz {
    fn default() -> Self {
        Self {
            cluster: Name::default(),
            timeout: Duration::from_millis(200),
            fail_open: false,
            status_on_error: 403,
            include_peer_certificate: false,
            allowed_headers: Vec::new(),
        }
    }
}

/// What a virtual host or route changes about the listener's filters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PerRoute {
    /// Takes the place of the listener's fault settings.
    pub fault: Option<Arc<Fault>>,
    /// Settings for the authorization question.
    pub ext_authz: Option<ExtAuthzPerRoute>,
    /// Takes the place of the listener's RBAC; `Some(None)` switches it off.
    pub rbac: Option<Option<Arc<Rbac>>>,
}

impl PerRoute {
    /// True when nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A route's word on the authorization question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExtAuthzPerRoute {
    /// Not asked here.
    Disabled,
    /// Asked, with these facts added (`context_extensions`), sorted by name.
    Context(Vec<(Name, Name)>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_hits_exactly_its_share_of_draws() {
        for (per_million, want) in [(0, 0), (500_000, 50), (1_000_000, 100)] {
            let abort = Some(Abort { with: AbortWith::Http(500), per_million });
            let fault = Fault { abort, ..Fault::default() };
            let hits = (0..100_u32).filter(|n| fault.abort_for(n * 10_000).is_some()).count();
            assert_eq!(hits, want, "{per_million} of a million");
        }
    }
}
