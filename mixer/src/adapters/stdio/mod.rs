//! `stdio`: log entries and metrics as lines, on standard output or error or in files.
//!
//! In: `logentry`, `metric`. Out: one line each, JSON or text; files rotate by size and age.
//! Kept true: writing happens on the handler's own task; a line is never cut in two by rotation.
//! Not here: which fields there are (instances).

mod file;

use std::{
    io::{self, Write as _},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::{Map, Value as Json};

use super::{
    Adapter, AdapterKind, BoxFuture, ExportError, QueueLimits,
    item::{Item, LogEntry, Metric, Sample},
};
use crate::{
    attributes::{Timestamp, Value},
    config::{Fields, Template},
};

pub(super) const KIND: AdapterKind =
    AdapterKind { name: "stdio", templates: &[Template::LogEntry, Template::Metric], build };

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Debug,
    Info,
    Warning,
    Error,
}

impl Level {
    fn named(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "debug" => Self::Debug,
            "info" | "default" | "notice" | "" => Self::Info,
            "warn" | "warning" => Self::Warning,
            "error" | "critical" | "alert" | "emergency" => Self::Error,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warn",
            Self::Error => "error",
        }
    }
}

#[derive(Clone)]
enum Output {
    Stdout,
    Stderr,
    File(Arc<Mutex<file::Rotating>>),
}

impl Output {
    fn write(&self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => io::stdout().write_all(lines),
            Self::Stderr => io::stderr().write_all(lines),
            Self::File(file) => file.lock().unwrap_or_else(PoisonError::into_inner).write(lines),
        }
    }
}

struct Stdio {
    output: Output,
    json: bool,
    floor: Level,
    metric_level: Level,
    /// The user's severities, by name.
    severities: Vec<(String, Level)>,
    /// Whether a write is under way. One that hangs must not be joined by others.
    busy: Arc<AtomicBool>,
}

fn build(fields: &Fields<'_>, _: &super::Shared) -> Option<Arc<dyn Adapter>> {
    let level = |name: &str, otherwise: Level| match fields.text(name).map(Level::named) {
        None => Some(otherwise),
        Some(Some(level)) => Some(level),
        Some(None) => {
            fields.problems().error(fields.at(name), "must be DEBUG, INFO, WARNING or ERROR");
            None
        }
    };
    let floor = level("output_level", Level::Info)?;
    let metric_level = level("metric_level", Level::Info)?;
    let number =
        |name: &str, otherwise: i64| u64::try_from(fields.int(name).unwrap_or(otherwise)).unwrap_or(0);
    let megabytes = number("max_megabytes_before_rotation", 100);
    let days = number("max_days_before_rotation", 30);
    let files = usize::try_from(number("max_rotated_files", 1_000)).unwrap_or(1_000);
    let path = fields.text("output_path").unwrap_or_default();
    let stream = fields.text("log_stream").unwrap_or("STDOUT");
    let output = match (stream, path) {
        ("STDOUT", "") => Output::Stdout,
        ("STDERR", "") => Output::Stderr,
        ("FILE" | "ROTATED_FILE" | "STDOUT" | "STDERR", path) if !path.is_empty() => {
            let bytes = if stream == "ROTATED_FILE" { megabytes.saturating_mul(1 << 20) } else { 0 };
            Output::File(Arc::new(Mutex::new(file::Rotating::new(path.into(), bytes, days, files))))
        }
        ("FILE" | "ROTATED_FILE", _) => {
            fields.problems().error(fields.at("output_path"), "is missing; a file needs a path");
            return None;
        }
        (other, _) => {
            let why = format!("must be STDOUT, STDERR, FILE or ROTATED_FILE, not \"{other}\"");
            fields.problems().error(fields.at("log_stream"), why);
            return None;
        }
    };
    let mut severities = Vec::new();
    for (name, json, at) in fields.entries("severity_levels") {
        let level = match json {
            Json::String(text) => Level::named(text),
            other => match other.as_i64() {
                Some(0) => Some(Level::Info),
                Some(1) => Some(Level::Warning),
                Some(2) => Some(Level::Error),
                _ => None,
            },
        };
        match level {
            Some(level) => severities.push((name.to_owned(), level)),
            None => fields.problems().error(at, "must be INFO, WARNING or ERROR"),
        }
    }
    let json = fields.boolean("output_as_json").unwrap_or(false);
    Some(Arc::new(Stdio { output, json, floor, metric_level, severities, busy: Arc::default() }))
}

impl Stdio {
    fn line(&self, item: &Item) -> Option<String> {
        match item {
            Item::Log(entry) => self.entry(entry),
            Item::Metric(metric) => self.metric(metric),
            _ => None,
        }
    }

    fn entry(&self, entry: &LogEntry) -> Option<String> {
        let own = self.severities.iter().find(|(name, _)| **name == *entry.severity);
        let level =
            own.map_or_else(|| Level::named(&entry.severity).unwrap_or(Level::Info), |(_, level)| *level);
        let fields = entry.variables.iter().map(|(name, value)| (name.to_string(), value));
        (level >= self.floor).then(|| self.render(level, entry.timestamp, &entry.instance, fields))
    }

    fn metric(&self, metric: &Metric) -> Option<String> {
        let value = match &metric.sample {
            Sample::One(value) => value.clone(),
            Sample::Count(count) => Value::Int64(i64::try_from(*count).unwrap_or(i64::MAX)),
            Sample::Many(observations) => Value::Double(observations.sum),
        };
        let fields = metric.labels.iter().map(|(name, value)| (name.to_string(), value));
        let fields = std::iter::once(("value".to_owned(), &value)).chain(fields);
        (self.metric_level >= self.floor)
            .then(|| self.render(self.metric_level, Timestamp::now(), &metric.instance, fields))
    }

    fn render<'a>(
        &self,
        level: Level,
        time: Timestamp,
        instance: &str,
        fields: impl Iterator<Item = (String, &'a Value)>,
    ) -> String {
        if self.json {
            let mut object = Map::new();
            object.insert("level".into(), level.name().into());
            object.insert("time".into(), time.to_string().into());
            object.insert("instance".into(), instance.into());
            object.extend(fields.map(|(name, value)| (name, value.json())));
            return Json::Object(object).to_string();
        }
        let fields: Vec<String> =
            fields.map(|(name, value)| format!("{name}={}", Json::from(value.to_string()))).collect();
        format!("{time}\t{}\t{instance}\t{}", level.name(), fields.join(" "))
    }
}

impl Adapter for Stdio {
    fn queue(&self) -> Option<QueueLimits> {
        Some(QueueLimits { linger: std::time::Duration::from_millis(50), ..QueueLimits::default() })
    }

    fn export<'a>(&'a self, batch: &'a [Item]) -> BoxFuture<'a, Result<(), ExportError>> {
        Box::pin(async move {
            let mut text = String::new();
            for line in batch.iter().filter_map(|item| self.line(item)) {
                text.push_str(&line);
                text.push('\n');
            }
            if self.busy.swap(true, Ordering::AcqRel) {
                return Err(ExportError::retry("the write before this one still hangs"));
            }
            let (output, busy) = (self.output.clone(), self.busy.clone());
            // A pipe that nobody reads blocks this thread and this handler only.
            let written = tokio::task::spawn_blocking(move || {
                let written = output.write(text.as_bytes());
                busy.store(false, Ordering::Release);
                written
            })
            .await;
            match written {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(ExportError::retry(error)),
                Err(error) => Err(ExportError::fatal(error)),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Problems;

    async fn lines(settings: &Json, items: &[Item]) -> Vec<String> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut settings = settings.clone();
        settings["output_path"] = path.to_string_lossy().into();
        settings["log_stream"] = "FILE".into();
        let problems = Problems::default();
        let adapter = build(&Fields::new(&settings, "params", &problems), &super::super::Shared::default())
            .expect("valid");
        adapter.export(items).await.expect("written");
        std::fs::read_to_string(path).expect("a file").lines().map(str::to_owned).collect()
    }

    fn entry(severity: &str) -> Item {
        Item::Log(Arc::new(LogEntry {
            instance: "accesslog".into(),
            timestamp: Timestamp(0),
            severity: severity.into(),
            variables: vec![("code".into(), Value::Int64(200)), ("url".into(), Value::text("/a \"b\""))]
                .into(),
        }))
    }

    #[tokio::test]
    async fn an_entry_is_one_line_of_json_or_text() {
        let json = lines(&serde_json::json!({"outputAsJson": true}), &[entry("Info")]).await;
        let want = r#"{"level":"info","time":"1970-01-01T00:00:00Z","instance":"accesslog","code":200,"url":"/a \"b\""}"#;
        assert_eq!(json, [want]);
        let text = lines(&serde_json::json!({}), &[entry("Info")]).await;
        assert_eq!(text, ["1970-01-01T00:00:00Z\tinfo\taccesslog\tcode=\"200\" url=\"/a \\\"b\\\"\""]);
    }

    #[tokio::test]
    async fn entries_below_the_output_level_are_left_out() {
        let settings = serde_json::json!({"output_level": "WARNING", "severity_levels": {"loud": "ERROR"}});
        assert_eq!(lines(&settings, &[entry("Info"), entry("loud"), entry("warn")]).await.len(), 2);
    }
}
