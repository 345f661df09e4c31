//! SIGTERM and SIGINT as a future.
//!
//! In: the process's signals. Out: which one came first, to start the drain with.
//! Kept true: a second signal while draining ends the wait too, so that Ctrl-C twice always works.
//! Not here: the drain itself (`drain`).

use std::{fmt, io, time::Duration};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::drain::{Drained, Trigger};

/// Why the process is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// SIGTERM: what an orchestrator sends.
    Terminate,
    /// SIGINT: Ctrl-C.
    Interrupt,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        })
    }
}

/// Both signals, listened to from the moment this is made.
#[derive(Debug)]
pub struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    /// Registers for SIGTERM and SIGINT; from now on they no longer end the process by themselves.
    ///
    /// # Errors
    /// When the handlers cannot be installed. Must be called inside a tokio runtime.
    pub fn new() -> io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next of the two. Cancel safe.
    pub async fn recv(&mut self) -> Cause {
        tokio::select! {
            _ = self.term.recv() => Cause::Terminate,
            _ = self.int.recv() => Cause::Interrupt,
        }
    }

    /// The usual end of a main: waits for a signal, then drains for at most `grace`; a second signal cuts the drain short.
    pub async fn drain_on_signal(mut self, trigger: Trigger, grace: Duration) -> Drained {
        let cause = self.recv().await;
        tracing::info!(%cause, "told to end");
        self.drain(trigger, grace).await
    }

    /// Drains for at most `grace`, for mains that had more to do after the first signal; a further signal cuts the drain short.
    pub async fn drain(mut self, trigger: Trigger, grace: Duration) -> Drained {
        tracing::info!(grace_s = grace.as_secs(), "draining");
        let end = tokio::select! {
            end = trigger.drain(grace) => end,
            again = self.recv() => {
                tracing::warn!(cause = %again, "second signal: not waiting any longer");
                Drained::Forced { left: 1 }
            }
        };
        match end {
            Drained::Clean => tracing::info!("drained"),
            Drained::Forced { left } => tracing::warn!(left, "stopped before everything had drained"),
        }
        end
    }
}
