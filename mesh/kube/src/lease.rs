//! Leader election by Lease: one of several replicas does what must not be done twice.
//!
//! In: a name, and who we are. Out: [`Leader`], true while this process leads. Kept true: a leader that cannot renew stops
//! leading before anyone else may start; a clean end gives the lease back at once. Not here: the work done by a leader.

use anyhow::Context as _;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use mesh_runtime::backoff::Outage;
use std::{future::Future, pin::pin, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

/// How long a lease holds without renewal. As in Kubernetes' own components.
pub const DURATION: Duration = Duration::from_secs(15);
/// How long a leader goes on without having renewed; the rest of [`DURATION`] is for clocks and slow requests.
const RENEW_WITHIN: Duration = Duration::from_secs(10);
/// How often a lease is looked at.
const EVERY: Duration = Duration::from_secs(2);

/// Whether this process leads.
#[derive(Clone, Debug)]
pub struct Leader(watch::Receiver<bool>);

impl Leader {
    /// Whether this process leads now.
    pub fn is_leader(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until this process leads. Never ready once the election has ended without it. Cancel safe.
    pub async fn elected(&mut self) {
        if self.0.wait_for(|leads| *leads).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until this process leads no more. Cancel safe.
    pub async fn deposed(&mut self) {
        // An election that has ended is lost.
        let _ = self.0.wait_for(|leads| !*leads).await;
    }
}

/// Takes part in the election for the lease `name` of `namespace` as `identity`, until `shutdown` is ready. Spawn the future;
/// it gives the lease back when it ends by `shutdown`. `owner` is noted on a lease that is made here.
pub fn lead<S: Future<Output = ()> + Send>(
    client: Client,
    namespace: &str,
    name: &str,
    identity: &str,
    owner: Option<OwnerReference>,
    shutdown: S,
) -> (Leader, impl Future<Output = ()> + Send + use<S>) {
    let (tx, rx) = watch::channel(false);
    let candidate = Candidate {
        api: Api::namespaced(client, namespace),
        name: name.to_owned(),
        identity: identity.to_owned(),
        owner,
        tx,
        seen: None,
        renewed: None,
        outage: Outage::new(format!("lease {namespace}/{name}")),
    };
    (Leader(rx), candidate.run(shutdown))
}

struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
    owner: Option<OwnerReference>,
    tx: watch::Sender<bool>,
    /// Version of the lease and when it was first seen here: clocks of other nodes are not believed.
    seen: Option<(String, Instant)>,
    renewed: Option<Instant>,
    outage: Outage,
}

/// What a look at the lease leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    /// It is ours: say so again.
    Renew,
    /// It is nobody's, or its holder is gone.
    Take,
    /// It is held by another.
    Wait,
}

/// `unchanged_for`: how long the lease has stood as it is, by our own clock.
fn decide(spec: Option<&LeaseSpec>, identity: &str, unchanged_for: Duration) -> Move {
    let holder = spec.and_then(|s| s.holder_identity.as_deref()).unwrap_or_default();
    let seconds = spec.and_then(|s| s.lease_duration_seconds).and_then(|s| u64::try_from(s).ok());
    let holds = seconds.map_or(DURATION, Duration::from_secs);
    match holder {
        "" => Move::Take,
        holder if holder == identity => Move::Renew,
        _ if unchanged_for >= holds => Move::Take,
        _ => Move::Wait,
    }
}

impl Candidate {
    async fn run(mut self, shutdown: impl Future<Output = ()> + Send) {
        let mut shutdown = pin!(shutdown);
        loop {
            let round = timeout(RENEW_WITHIN / 2, self.round());
            let ended = tokio::select! {
                () = &mut shutdown => true,
                result = round => {
                    let result = result.unwrap_or_else(|_| Err(anyhow::anyhow!("the API server does not answer in time")));
                    self.settle(result);
                    false
                }
            };
            if ended {
                break;
            }
            tokio::select! {
                () = &mut shutdown => break,
                () = sleep(EVERY) => {}
            }
        }
        let led = self.tx.send_replace(false);
        if led && let Err(error) = timeout(Duration::from_secs(2), self.release()).await {
            tracing::debug!(%error, lease = self.name, "lease not given back: others wait until it ends");
        }
    }

    fn settle(&mut self, result: anyhow::Result<bool>) {
        match result {
            Ok(leads) => {
                self.outage.recovered();
                if leads {
                    self.renewed = Some(Instant::now());
                }
                self.say(leads);
            }
            Err(error) => {
                self.outage.failed(&format_args!("{error:#}"));
                if self.renewed.is_none_or(|at| at.elapsed() >= RENEW_WITHIN) {
                    self.say(false);
                }
            }
        }
    }

    fn say(&self, leads: bool) {
        let changed = self.tx.send_if_modified(|was| std::mem::replace(was, leads) != leads);
        if changed {
            tracing::info!(lease = self.name, leads, "leadership");
        }
    }

    /// One look, and one write if it is ours or free. Whether we lead.
    async fn round(&mut self) -> anyhow::Result<bool> {
        let Some(mut lease) = self.api.get_opt(&self.name).await.context("it cannot be read")? else {
            let mut lease = Lease { spec: Some(self.spec(None, 0)), ..Lease::default() };
            lease.metadata.name = Some(self.name.clone());
            lease.metadata.owner_references = self.owner.clone().map(|owner| vec![owner]);
            return self.written(self.api.create(&PostParams::default(), &lease).await);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != version) {
            self.seen = Some((version, Instant::now()));
        }
        let unchanged = self.seen.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
        let spec = lease.spec.take();
        let transitions = spec.as_ref().and_then(|s| s.lease_transitions).unwrap_or(0);
        lease.spec = Some(match decide(spec.as_ref(), &self.identity, unchanged) {
            Move::Wait => return Ok(false),
            Move::Renew => self.spec(spec.and_then(|s| s.acquire_time), transitions),
            Move::Take => self.spec(None, transitions.saturating_add(1)),
        });
        // The version read goes along: of two that take at once, one is refused.
        let written = self.api.replace(&self.name, &PostParams::default(), &lease).await;
        self.written(written)
    }

    fn written(&mut self, result: kube::Result<Lease>) -> anyhow::Result<bool> {
        match result {
            Ok(lease) => {
                self.seen = lease.metadata.resource_version.map(|version| (version, Instant::now()));
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error).context("it cannot be written"),
        }
    }

    fn spec(&self, acquired: Option<MicroTime>, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: acquired.or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    async fn release(&self) -> kube::Result<()> {
        let mut lease = self.api.get(&self.name).await?;
        if let Some(spec) = &mut lease.spec
            && spec.holder_identity.as_deref() == Some(&self.identity)
        {
            spec.holder_identity = Some(String::new());
            self.api.replace(&self.name, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_only_from_nobody_or_from_a_holder_that_is_gone() {
        let held = |by: &str, seconds| LeaseSpec {
            holder_identity: Some(by.to_owned()),
            lease_duration_seconds: seconds,
            ..LeaseSpec::default()
        };
        let s = Duration::from_secs;
        for (spec, unchanged, expected) in [
            (None, s(0), Move::Take),
            (Some(held("", Some(15))), s(0), Move::Take),
            (Some(held("me", Some(15))), s(0), Move::Renew),
            (Some(held("me", Some(15))), s(60), Move::Renew),
            (Some(held("other", Some(15))), s(14), Move::Wait),
            (Some(held("other", Some(15))), s(15), Move::Take),
            (Some(held("other", Some(60))), s(30), Move::Wait),
            (Some(held("other", None)), s(15), Move::Take),
            (Some(held("other", Some(-1))), s(14), Move::Wait),
        ] {
            assert_eq!(decide(spec.as_ref(), "me", unchanged), expected, "{spec:?} {unchanged:?}");
        }
    }
}
