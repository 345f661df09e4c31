//! The command line that all binaries share, and settings files that say the same as flags.
//!
//! In: arguments, environment, `--settings FILE.yaml`. Out: the binary's own clap struct.
//! Kept true: flags win over environment, environment over the settings file, the file over defaults; an unknown key is an error.
//! Not here: mesh configuration (Istio's YAML), which is watched while running (`mesh-config`).

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::{ArgAction, Args, Command, Parser};
use serde_json::Value;

use crate::logs::{self, Format, LogLevel};

/// The version of all Crema binaries.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Flags of every long-running command; use with `#[command(flatten)]`.
#[derive(Args, Clone, Debug)]
pub struct CommonArgs {
    /// YAML file with more settings: the keys are the names of these flags. Flags and environment win over it
    #[arg(long, env = "SETTINGS", value_name = "FILE", help_heading = "Common")]
    pub settings: Option<PathBuf>,
    /// What to log: off, error, warn, info, debug, trace, or target=level,…
    #[arg(long, env = "LOG_LEVEL", default_value = "info", value_name = "LEVEL", help_heading = "Common")]
    pub log_level: String,
    /// How log lines look
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t, help_heading = "Common")]
    pub log_format: Format,
    /// Where the admin server listens (health, readiness, metrics, log level)
    #[arg(long, env = "ADMIN", value_name = "IP:PORT", help_heading = "Common")]
    pub admin: Option<SocketAddr>,
    /// How long open work may take to finish after SIGTERM, in seconds
    #[arg(
        long,
        env = "DRAIN_SECONDS",
        default_value_t = 30,
        value_name = "SECONDS",
        help_heading = "Common"
    )]
    pub drain_seconds: u64,
}

impl CommonArgs {
    /// Starts logging as asked.
    ///
    /// # Errors
    /// When `--log-level` does not parse or logging runs already.
    pub fn init_logs(&self) -> Result<LogLevel, logs::InitError> {
        logs::init(&self.log_level, self.log_format)
    }

    /// The admin address, or the binary's usual port on loopback.
    pub fn admin_or_loopback(&self, port: u16) -> SocketAddr {
        self.admin.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// How long a drain may take.
    pub fn grace(&self) -> std::time::Duration {
        std::time::Duration::from_secs(self.drain_seconds)
    }
}

/// How a workload gets its certificate; used by everything that speaks mutual TLS.
#[derive(Args, Clone, Debug)]
pub struct CaClientArgs {
    /// Certificate authority (citadel) to send certificate requests to, as host:port
    #[arg(long, env = "CA_ADDR", value_name = "HOST:PORT", help_heading = "Identity")]
    pub ca_addr: Option<String>,
    /// File with the service account token; read again for every request
    #[arg(
        long,
        env = "TOKEN_FILE",
        default_value = "/var/run/secrets/tokens/istio-token",
        value_name = "FILE",
        help_heading = "Identity"
    )]
    pub token_file: PathBuf,
    /// File with the root certificates that the certificate authority is checked against
    #[arg(
        long,
        env = "ROOT_CERT_FILE",
        default_value = "/var/run/secrets/istio/root-cert.pem",
        value_name = "FILE",
        help_heading = "Identity"
    )]
    pub root_cert_file: PathBuf,
    /// Name that the certificate authority's own certificate must carry: a SPIFFE identity or a DNS name
    /// [default: spiffe://TRUST_DOMAIN/ns/istio-system/sa/citadel]
    #[arg(long, env = "CA_SAN", value_name = "NAME", help_heading = "Identity")]
    pub ca_san: Option<String>,
    /// Trust domain of this mesh, the host part of its SPIFFE identities
    #[arg(
        long,
        env = "TRUST_DOMAIN",
        default_value = "cluster.local",
        value_name = "NAME",
        help_heading = "Identity"
    )]
    pub trust_domain: String,
    /// Further trust domains whose identities are accepted when their chain verifies
    #[arg(
        long,
        env = "TRUST_DOMAIN_ALIASES",
        value_delimiter = ',',
        value_name = "NAME,…",
        help_heading = "Identity"
    )]
    pub trust_domain_aliases: Vec<String>,
}

/// A settings file was refused.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("settings file {}: {source}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not YAML, or not a map of settings.
    #[error("settings file {}: {why}", .path.display())]
    Shape {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A key that is no flag.
    #[error("settings file {}: unknown setting `{key}`{}", .path.display(), suggestion(.near))]
    Unknown {
        /// Which file.
        path: PathBuf,
        /// The key.
        key: String,
        /// A flag of a similar name.
        near: Option<String>,
    },
}

fn suggestion(flag: &Option<String>) -> String {
    flag.as_ref().map_or_else(
        || "; the keys are the long flags without `--`".into(),
        |f| format!("; did you mean `{f}`?"),
    )
}

/// Parses the command line of this process over its settings file; prints help or the error and exits where clap would.
pub fn parse<T: Parser>() -> T {
    let args: Vec<OsString> = std::env::args_os().collect();
    match try_parse_from(&args, std::env::var_os("SETTINGS").map(PathBuf::from)) {
        Ok(parsed) => parsed,
        Err(error) => error.exit(),
    }
}

/// As [`parse`], from given arguments (the first is the program's name); `settings` is used when they hold no `--settings`.
///
/// # Errors
/// Clap's error, which also carries help and version texts.
pub fn try_parse_from<T: Parser>(args: &[OsString], settings: Option<PathBuf>) -> Result<T, clap::Error> {
    let mut command = T::command();
    if let Some(path) = settings_flag(args).or(settings) {
        command = read_settings(&path)
            .and_then(|values| apply(command, &path, &values))
            .map_err(|e| T::command().error(clap::error::ErrorKind::Io, e))?;
    }
    let mut matches = command.try_get_matches_from(args)?;
    T::from_arg_matches_mut(&mut matches).map_err(|e| e.format(&mut T::command()))
}

fn settings_flag(args: &[OsString]) -> Option<PathBuf> {
    let mut args = args.iter().map(|a| a.to_string_lossy()).take_while(|a| a != "--");
    while let Some(arg) = args.next() {
        if arg == "--settings" {
            return args.next().map(|file| PathBuf::from(file.as_ref()));
        }
        if let Some(file) = arg.strip_prefix("--settings=") {
            return Some(PathBuf::from(file));
        }
    }
    None
}

type Settings = BTreeMap<String, Vec<String>>;

fn read_settings(path: &Path) -> Result<Settings, SettingsError> {
    let shape = |why: String| SettingsError::Shape { path: path.into(), why };
    let text =
        std::fs::read_to_string(path).map_err(|source| SettingsError::Read { path: path.into(), source })?;
    if text.trim().is_empty() {
        return Ok(Settings::new());
    }
    let value: Value = serde_saphyr::from_str(&text).map_err(|e| shape(e.to_string()))?;
    let map = match value {
        Value::Null => return Ok(Settings::new()),
        Value::Object(map) => map,
        other => return Err(shape(format!("expected `flag: value` lines, found {other}"))),
    };
    let mut settings = Settings::new();
    for (key, value) in map {
        let values = match value {
            Value::Null => continue,
            Value::Array(items) => items.iter().map(scalar).collect::<Option<Vec<_>>>(),
            single => scalar(&single).map(|text| vec![text]),
        };
        let values = values.ok_or_else(|| shape(format!("`{key}` must be a value or a list of values")))?;
        settings.insert(key, values);
    }
    Ok(settings)
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Settings become the defaults of the flags, in this command and all below it: exactly the rank they should have.
fn apply(command: Command, path: &Path, settings: &Settings) -> Result<Command, SettingsError> {
    let mut flags = Vec::new();
    collect_flags(&command, &mut flags);
    if let Some(key) = settings.keys().find(|key| !flags.contains(key)) {
        let near = flags.iter().find(|flag| loosely(flag) == loosely(key)).cloned();
        return Err(SettingsError::Unknown { path: path.into(), key: key.clone(), near });
    }
    Ok(with_defaults(command, settings))
}

fn loosely(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

fn collect_flags(command: &Command, into: &mut Vec<String>) {
    into.extend(
        command.get_arguments().filter_map(|a| a.get_long()).filter(|l| *l != "settings").map(String::from),
    );
    for sub in command.get_subcommands() {
        collect_flags(sub, into);
    }
}

fn with_defaults(command: Command, settings: &Settings) -> Command {
    command
        .mut_args(|arg| {
            let Some(values) = arg.get_long().and_then(|long| settings.get(long)) else { return arg };
            match arg.get_action() {
                ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version => arg,
                _ => arg.required(false).default_values(values.clone()),
            }
        })
        .mut_subcommands(|sub| with_defaults(sub, settings))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[derive(Parser, Debug)]
    #[command(name = "demo", version)]
    struct Demo {
        #[command(subcommand)]
        verb: Verb,
    }

    #[derive(clap::Subcommand, Debug)]
    enum Verb {
        Serve {
            #[command(flatten)]
            common: CommonArgs,
            #[arg(long)]
            listen: SocketAddr,
            #[arg(long, env = "CREMA_TEST_FROM_ENV", default_value = "default")]
            word: String,
            #[arg(long)]
            verbose: bool,
            #[arg(long)]
            item: Vec<String>,
        },
    }

    fn run(settings: &str, args: &[&str]) -> Result<Demo, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(settings.as_bytes()).unwrap();
        let path = file.path().to_string_lossy().into_owned();
        let all =
            ["demo", "serve", "--settings", &path].iter().chain(args).map(OsString::from).collect::<Vec<_>>();
        try_parse_from::<Demo>(&all, None).map_err(|e| e.to_string())
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = "listen: 127.0.0.1:1\nword: file\nverbose: true\nitem: [a, b]\nadmin: 127.0.0.1:9\nlog-format: json\n";
        let Verb::Serve { common, listen, word, verbose, item } =
            run(file, &["--word", "flag"]).unwrap().verb;
        assert_eq!(
            (listen.port(), word.as_str(), verbose, item),
            (1, "flag", true, vec!["a".into(), "b".into()])
        );
        assert_eq!(common.admin_or_loopback(5).port(), 9);
        assert_eq!(common.log_format, Format::Json);
        let Verb::Serve { word, item, .. } = run(file, &["--item", "c"]).unwrap().verb;
        assert_eq!((word.as_str(), item), ("file", vec!["c".to_string()]));
    }

    #[test]
    fn bad_settings_are_named() {
        for (file, part) in [
            ("lissten: 1\n", "unknown setting `lissten`"),
            ("LogLevel: debug\nlisten: 127.0.0.1:1\n", "did you mean `log-level`?"),
            ("listen: {a: 1}\n", "`listen` must be a value or a list"),
            ("listen: nowhere\n", "--listen"),
            ("- a\n", "expected `flag: value` lines"),
            ("a: [\n", "settings file"),
            ("", "--listen"),
        ] {
            let text = run(file, &[]).unwrap_err();
            assert!(text.contains(part), "{file:?}: {text}");
        }
        let missing = ["demo", "serve", "--settings=/nowhere.yaml"].map(OsString::from);
        let text = try_parse_from::<Demo>(&missing, None).unwrap_err().to_string();
        assert!(text.contains("/nowhere.yaml"), "{text}");
    }
}
