//! A watched directory as source of configuration.
//!
//! In: a directory with `*.yaml`, `*.yml` and `*.json`, at any depth. Out: a [`Reader`].
//! Kept true: the file system's events only shorten the wait; without them a rescan finds every change.
//! Not here: which file may be read when (`files`), which object wins (`store`).

use super::files::Scanner;
use super::store::{Reader, Store};
use crate::{Diagnostic, Snapshot};
use notify::{RecursiveMode, Watcher};
use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Notify;

/// How a directory is watched.
#[derive(Clone, Copy, Debug)]
pub struct DirOptions {
    /// How long a file must stand unchanged before it is read; default 100 ms.
    pub settle: Duration,
    /// How often the directory is looked through when no event came; default 1 s.
    pub rescan: Duration,
}

impl Default for DirOptions {
    fn default() -> Self {
        Self { settle: Duration::from_millis(100), rescan: Duration::from_secs(1) }
    }
}

/// Least time between two scans, so that a storm of events costs little.
const COALESCE: Duration = Duration::from_millis(10);

/// Watches a directory until `shutdown` is ready. Spawn the returned future; the reader is synced once every
/// file there was at the start has been read. A directory that does not exist yet is waited for.
///
/// Dropping the future ends the watch at once; readers keep the last snapshot.
pub fn watch_dir(
    dir: PathBuf,
    options: DirOptions,
    shutdown: impl Future<Output = ()> + Send,
) -> (Reader, impl Future<Output = ()> + Send) {
    let store = Store::new();
    let reader = store.reader();
    (reader, run(dir, options, store, shutdown))
}

/// Scanner and store travel to a blocking thread and back, so that neither is shared.
struct State {
    scanner: Scanner,
    store: Store,
    /// Errors that have been logged and still stand.
    said: BTreeSet<Diagnostic>,
}

async fn run(dir: PathBuf, options: DirOptions, store: Store, shutdown: impl Future<Output = ()> + Send) {
    let events = Arc::new(Notify::new());
    let mut watcher = None;
    let mut complained = false;
    let mut state =
        State { scanner: Scanner::new(dir.clone(), options.settle), store, said: BTreeSet::new() };
    let mut shutdown = pin!(shutdown);
    loop {
        if watcher.is_none() {
            watcher = watch(&dir, &events);
        }
        let scanned = tokio::task::spawn_blocking(move || {
            let wait = step(&mut state);
            (state, wait)
        })
        .await;
        let wait;
        (state, wait) = match scanned {
            Ok(done) => done,
            // Only a runtime that is going down, or a panic in the parser, ends up here: readers keep what they have.
            Err(e) => {
                return tracing::error!(dir = %dir.display(), error = %e, "configuration is no longer watched");
            }
        };
        let wait = match wait {
            Ok(wait) => {
                complained = false;
                wait.map_or(options.rescan, |wait| wait.clamp(COALESCE, options.rescan))
            }
            Err(e) => {
                watcher = None;
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(dir = %dir.display(), error = %e,
                        "configuration directory cannot be read, waiting for it; what was read before stays in force");
                }
                options.rescan
            }
        };
        tokio::select! {
            () = &mut shutdown => return,
            () = tokio::time::sleep(wait) => {}
            () = async {
                events.notified().await;
                tokio::time::sleep(COALESCE).await;
            } => {}
        }
    }
}

/// One scan, taken over into the store. Returns how long until the next file has settled.
fn step(state: &mut State) -> std::io::Result<Option<Duration>> {
    let scan = state.scanner.scan(Instant::now(), SystemTime::now())?;
    let store = &mut state.store;
    for file in &scan.taken {
        let path = file.path.to_string_lossy();
        match &file.text {
            Ok(text) => store.set_file(&path, file.modified, text),
            Err(why) => store.set_unreadable(&path, why),
        }
    }
    for path in &scan.removed {
        store.remove_file(&path.to_string_lossy());
    }
    if scan.complete {
        store.set_synced();
    }
    store.publish();
    // Before everything has been read, objects may seem to miss what stands in the next file.
    if scan.complete && (!scan.taken.is_empty() || !scan.removed.is_empty()) {
        say(&state.store.reader().now(), &mut state.said);
    }
    Ok(scan.wait)
}

/// Logs each error once, when it appears: what cannot be read is in force in its last good form, or not at all.
fn say(snapshot: &Snapshot, said: &mut BTreeSet<Diagnostic>) {
    let errors: BTreeSet<_> = snapshot.diagnostics().into_iter().filter(Diagnostic::is_error).collect();
    for error in errors.difference(said) {
        tracing::warn!("{error:#}");
    }
    *said = errors;
}

fn watch(dir: &std::path::Path, events: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let events = Arc::clone(events);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading files is an event too; acting on it would never end.
        if !matches!(event, Ok(e) if e.kind.is_access()) {
            events.notify_one();
        }
    })
    .inspect_err(|e| tracing::debug!(error = %e, "no file events, rescanning only"))
    .ok()?;
    watcher.watch(dir, RecursiveMode::Recursive).ok()?;
    Some(watcher)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_said_when_it_appears_and_again_only_after_it_was_gone() {
        let reader = |text: &str| {
            let mut store = Store::new();
            store.set_file("x.yaml", SystemTime::UNIX_EPOCH, text);
            store.set_synced();
            store.publish();
            store.reader().now()
        };
        let broken =
            reader("apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: no}\nspec: {}\n");
        let mended = reader("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n");
        let mut said = BTreeSet::new();
        for (snapshot, standing) in [(&broken, 1), (&broken, 1), (&mended, 0), (&broken, 1)] {
            say(snapshot, &mut said);
            assert_eq!(said.len(), standing, "{said:?}");
        }
        assert!(said.iter().any(|error| format!("{error:#}").contains("x.yaml:3")), "{said:?}");
    }
}
