//! Logs: one line per event on stderr, as text or JSON, with a level that can be changed while running.
//!
//! In: `tracing` events. Out: stderr (stdout belongs to commands that print results), and a [`LogLevel`] handle.
//! Kept true: a bad directive changes nothing and says which part is wrong.
//! Not here: access logs of requests (the proxy's own), and redaction (types that hold secrets redact themselves).

use std::{
    fmt,
    io::IsTerminal,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, reload, util::SubscriberInitExt};

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// `TIME LEVEL target: message key=value`, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// A directive was refused.
#[derive(Debug, thiserror::Error)]
#[error("log level `{given}`: {why}; use off, error, warn, info, debug, trace or target=level,…")]
pub struct BadLevel {
    given: String,
    why: String,
}

/// Logging could not be started.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The level given is not a directive.
    #[error(transparent)]
    Level(#[from] BadLevel),
    /// Something else in this process already logs.
    #[error("logging is already set up in this process")]
    AlreadySet,
}

type Apply = dyn Fn(EnvFilter) -> bool + Send + Sync;

/// Changes the level of a running process. Clones change the same level.
#[derive(Clone)]
pub struct LogLevel {
    apply: Arc<Apply>,
    initial: Arc<str>,
    current: Arc<Mutex<String>>,
}

impl LogLevel {
    /// A handle that only remembers, for tests and for commands that do not log.
    pub fn detached(level: &str) -> Self {
        Self::with(level, |_| true)
    }

    fn with(level: &str, apply: impl Fn(EnvFilter) -> bool + Send + Sync + 'static) -> Self {
        Self { apply: Arc::new(apply), initial: level.into(), current: Arc::new(Mutex::new(level.into())) }
    }

    /// Sets a directive such as `debug` or `info,mesh_identity=trace`; `reset` goes back to the one of the start.
    ///
    /// # Errors
    /// When the directive does not parse; the level stays.
    pub fn set(&self, directive: &str) -> Result<(), BadLevel> {
        let directive = if directive == "reset" { &*self.initial } else { directive };
        let filter = parse(directive)?;
        if !(self.apply)(filter) {
            return Err(BadLevel { given: directive.into(), why: "the logger is gone".into() });
        }
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = directive.into();
        Ok(())
    }

    /// The directive in force.
    pub fn current(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogLevel").field(&self.current()).finish()
    }
}

/// Starts logging for the whole process. Call once, first thing in main.
///
/// # Errors
/// When `level` does not parse, or logging was started before.
pub fn init(level: &str, format: Format) -> Result<LogLevel, InitError> {
    let (filter, handle) = reload::Layer::new(parse(level)?);
    let lines = match format {
        Format::Text => {
            let colours = std::io::stderr().is_terminal();
            tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(std::io::stderr).boxed()
        }
        Format::Json => {
            tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed()
        }
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|_| InitError::AlreadySet)?;
    Ok(LogLevel::with(level, move |filter| handle.reload(filter).is_ok()))
}

/// Libraries stay at `warn` unless they are named: their info lines are not ours to promise.
fn parse(directive: &str) -> Result<EnvFilter, BadLevel> {
    let bad = |why: String| BadLevel { given: directive.into(), why };
    if directive.trim().is_empty() || directive.len() > 1024 {
        return Err(bad("empty or longer than 1024 bytes".into()));
    }
    for part in directive.split(',') {
        // EnvFilter reads a bare word as a target name, so that `inof` would silently switch everything off.
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level).trim();
        tracing_subscriber::filter::LevelFilter::from_str(level)
            .map_err(|_| bad(format!("`{level}` is not a level")))?;
    }
    let quiet = ["h2", "hyper", "hyper_util", "rustls", "tokio_util", "tower", "tonic", "axum"];
    let mut full = String::new();
    for library in quiet {
        if !directive.contains(library) && !directive.contains("trace") {
            full.push_str(library);
            full.push_str("=warn,");
        }
    }
    // What these say of a server that is away, `mesh-kube` says once, with what it means.
    if !directive.contains("kube") {
        full.push_str("kube_client=off,kube_runtime=off,");
    }
    full.push_str(directive);
    EnvFilter::try_new(&full).map_err(|e| bad(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_parse_and_bad_ones_leave_the_old_in_place() {
        let level = LogLevel::detached("info");
        for (directive, ok) in [
            ("debug", true),
            ("info,mesh_identity=trace", true),
            ("off", true),
            ("inof", false),
            ("mesh_identity=loud", false),
            ("", false),
        ] {
            let before = level.current();
            assert_eq!(level.set(directive).is_ok(), ok, "{directive}");
            assert_eq!(level.current(), if ok { directive.into() } else { before }, "{directive}");
        }
        level.set("reset").unwrap();
        assert_eq!(level.current(), "info");
    }
}
