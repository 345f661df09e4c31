//! Events on objects, as `kubectl describe` shows them.
//!
//! In: what happened to which object. Out: an Event at the API server. Kept true: nothing waits for it; the same event again
//! within minutes counts up instead of adding one. Not here: logs.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

/// Writes events in the name of one component. Clones share what was written.
#[derive(Clone)]
pub struct Events(Recorder);

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

/// Longest text of an event that an API server takes, in bytes.
const LONGEST: usize = 1024;

impl Events {
    /// Events of a component such as `crema-injector`.
    pub fn new(client: Client, component: &str) -> Self {
        let reporter = Reporter { controller: component.to_owned(), instance: Some(crate::identity()) };
        Self(Recorder::new(client, reporter))
    }

    /// A warning on an object. `reason` and `action` are words in CamelCase, `why` is for people.
    pub async fn warn(&self, object: &ObjectReference, reason: &str, action: &str, why: &str) {
        self.write(EventType::Warning, object, reason, action, why).await;
    }

    /// A note on an object.
    pub async fn note(&self, object: &ObjectReference, reason: &str, action: &str, why: &str) {
        self.write(EventType::Normal, object, reason, action, why).await;
    }

    async fn write(&self, type_: EventType, object: &ObjectReference, reason: &str, action: &str, why: &str) {
        let mut end = why.len().min(LONGEST);
        while !why.is_char_boundary(end) {
            end -= 1;
        }
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(why[..end].to_owned()),
            action: action.to_owned(),
            secondary: None,
        };
        if let Err(error) = self.0.publish(&event, object).await {
            tracing::debug!(%error, reason, "event not written");
        }
    }
}
