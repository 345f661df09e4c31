//! Citadel's own server certificate, signed by its own authority.
//!
//! In: the authority in force. Out: a [`CertStore`] that always holds a certificate of it.
//! Kept true: a new authority is shown by the server at once, so that clients with the new roots get in.
//! Not here: certificates of others (`service`).

use std::time::{Duration, SystemTime};

use mesh_identity::{CertStore, SpiffeId};
use mesh_runtime::{Condition, Outage, drain::Watch};

use super::Clock;
use crate::ca::{AuthorityError, source::Current};

const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How often the remaining life is compared.
const CHECK: Duration = Duration::from_secs(60);

/// Issues and publishes one.
pub(super) fn issue(
    current: &Current,
    store: &CertStore,
    id: &SpiffeId,
    now: SystemTime,
) -> Result<(), AuthorityError> {
    let authority = current.now();
    let credentials = authority.credentials(id, LIFETIME, now)?;
    store.publish(credentials, authority.bundle().clone());
    Ok(())
}

/// Also the proof that the authority can sign, for readiness. Renews at half-life and whenever the authority is replaced, until the drain.
pub(super) async fn keep(
    current: Current,
    store: CertStore,
    id: SpiffeId,
    clock: Clock,
    signing: Condition,
    drain: Watch,
) {
    let mut changes = current.subscribe();
    let mut outage = Outage::new("own certificate");
    signing.met();
    loop {
        let next = async {
            tokio::select! {
                _ = changes.changed() => true,
                () = tokio::time::sleep(CHECK) => false,
            }
        };
        let Some(replaced) = drain.until_drain(next).await else { return };
        let now = clock();
        let left = store.current().map(|i| i.credentials.facts().remaining(now)).unwrap_or_default();
        if !replaced && left > LIFETIME / 2 {
            continue;
        }
        match issue(&current, &store, &id, now) {
            Ok(()) => {
                outage.recovered();
                signing.met();
            }
            Err(error) => {
                outage.failed(&error);
                signing.missing(error.to_string());
            }
        }
    }
}
