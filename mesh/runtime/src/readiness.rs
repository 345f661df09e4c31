//! Readiness: named conditions that must all hold before others may send work here.
//!
//! In: tasks that mark their condition. Out: ready or the sorted list of what is missing and why.
//! Kept true: a condition is missing from the moment it is named until someone marks it.
//! Not here: liveness (the admin server answering is liveness), and the HTTP side (`admin`).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

/// All conditions of a process. Clones share them.
#[derive(Clone, Debug)]
pub struct Readiness {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    missing: Mutex<BTreeMap<String, String>>,
    ready: watch::Sender<bool>,
}

/// One named condition. Dropping it leaves its last state in place.
#[derive(Clone, Debug)]
pub struct Condition {
    name: String,
    of: Readiness,
}

impl Readiness {
    /// No conditions yet, hence ready as soon as the admin server answers.
    pub fn new() -> Self {
        Self { inner: Arc::new(Inner { missing: Mutex::default(), ready: watch::Sender::new(true) }) }
    }

    /// Adds a condition that is missing until [`Condition::met`]; `waiting_for` says what it waits for.
    pub fn condition(&self, name: impl Into<String>, waiting_for: impl Into<String>) -> Condition {
        let condition = Condition { name: name.into(), of: self.clone() };
        condition.missing(waiting_for);
        condition
    }

    /// True when every condition is met.
    pub fn is_ready(&self) -> bool {
        *self.inner.ready.borrow()
    }

    /// What is missing: `(condition, why)`, sorted by name.
    pub fn missing(&self) -> Vec<(String, String)> {
        let missing = self.inner.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.iter().map(|(name, why)| (name.clone(), why.clone())).collect()
    }

    /// Resolves once every condition is met. Cancel safe.
    pub async fn wait(&self) {
        let _ = self.inner.ready.subscribe().wait_for(|ready| *ready).await;
    }

    fn change(&self, edit: impl FnOnce(&mut BTreeMap<String, String>)) {
        let mut missing = self.inner.missing.lock().unwrap_or_else(PoisonError::into_inner);
        edit(&mut missing);
        let ready = missing.is_empty();
        self.inner.ready.send_if_modified(|was| std::mem::replace(was, ready) != ready);
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Condition {
    /// The condition holds.
    pub fn met(&self) {
        self.of.change(|missing| {
            missing.remove(&self.name);
        });
    }

    /// The condition does not hold (any more), and why.
    pub fn missing(&self, why: impl Into<String>) {
        let why = why.into();
        self.of.change(|missing| {
            missing.insert(self.name.clone(), why);
        });
    }

    /// [`Self::met`] or [`Self::missing`], by a flag.
    pub fn set(&self, holds: bool, otherwise: &str) {
        if holds { self.met() } else { self.missing(otherwise) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ready_only_while_every_condition_is_met() {
        let readiness = Readiness::new();
        assert!(readiness.is_ready());
        let cert = readiness.condition("certificate", "citadel has not answered yet");
        let config = readiness.condition("config", "no configuration from pilot yet");
        cert.met();
        assert_eq!(readiness.missing(), [("config".into(), "no configuration from pilot yet".into())]);
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.wait().await }
        });
        config.met();
        waiting.await.unwrap();
        cert.missing("expired");
        assert!(!readiness.is_ready());
    }
}
