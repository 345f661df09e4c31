//! The root bundle in a file, for those who mount or copy it to workloads.
//!
//! In: the authority in force. Out: `--root-out FILE`, replaced in one step whenever the roots change.
//! Kept true: the file is written before readiness is reported, and again if somebody removes it.
//! Not here: the same bundle over HTTP (`/root-cert.pem`) and at the end of every answer.

use std::{path::PathBuf, time::Duration};

use mesh_runtime::{Condition, Outage, drain::Watch};

use crate::{
    ca::source::Current,
    files::{self, Readers},
};

pub(super) async fn keep(
    file: Option<PathBuf>,
    poll: Duration,
    current: Current,
    written: Condition,
    drain: Watch,
) {
    let Some(file) = file else { return written.met() };
    let mut changes = current.subscribe();
    let mut outage = Outage::new(format!("root bundle {}", file.display()));
    loop {
        let bundle = current.now().bundle().to_pem();
        if std::fs::read_to_string(&file).ok().as_deref() == Some(&bundle) {
            written.met();
        } else {
            match files::replace(&file, bundle.as_bytes(), Readers::All) {
                Ok(()) => {
                    outage.recovered();
                    written.met();
                    tracing::info!(file = %file.display(), "root bundle written");
                }
                Err(error) => {
                    outage.failed(&error);
                    written.missing(format!("cannot write {}: {error}", file.display()));
                }
            }
        }
        let next = async {
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(poll) => {}
            }
        };
        if drain.until_drain(next).await.is_none() {
            return;
        }
    }
}
