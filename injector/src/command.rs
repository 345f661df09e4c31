//! The command line of the injector: what both verbs share, and the filter on files.
//!
//! In: flags, environment, a configuration file of injection. Out: [`Settings`] and [`Templates`]; injected text.
//! Kept true: a flag wins over the file. Not here: the webhook's server (`serve`).

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{ArgAction, Args};
use serde_json::json;

use crate::{
    file::inject_text,
    settings::{InterceptionMode, Settings},
    template::{NAMES, Templates},
    workload::Context,
};

/// What is injected; the same for webhook and files.
#[derive(Debug, Clone, Args)]
pub struct InjectArgs {
    /// YAML file with the settings of injection (policy, selectors, proxyConfig, resources, …); the flags below win over it
    #[arg(long, env = "INJECT_CONFIG", value_name = "FILE")]
    pub inject_config: Option<PathBuf>,
    /// YAML file with templates, in place of those built in
    #[arg(long, env = "TEMPLATE", value_name = "FILE")]
    pub template: Option<PathBuf>,
    /// Image of the proxy
    #[arg(long, env = "PROXY_IMAGE", value_name = "IMAGE")]
    pub image: Option<String>,
    /// Where the proxy finds pilot
    #[arg(long, env = "DISCOVERY_ADDRESS", value_name = "HOST:PORT")]
    pub discovery_address: Option<String>,
    /// Where the proxy gets its certificate
    #[arg(long, env = "INJECT_CA_ADDR", value_name = "HOST:PORT")]
    pub ca_addr: Option<String>,
    /// Where the proxy reports to
    #[arg(long, env = "INJECT_TELEMETRY_ADDR", value_name = "HOST:PORT")]
    pub telemetry_addr: Option<String>,
    /// Run the proxy as an init container that restarts (Kubernetes 1.29 and later)
    #[arg(long, env = "NATIVE_SIDECARS", value_name = "BOOL", action = ArgAction::Set)]
    pub native_sidecars: Option<bool>,
    /// How long applications without a preStop hook serve on after their pod was told to end, in seconds (Kubernetes 1.30 and later)
    #[arg(long, env = "APP_PRE_STOP_SECONDS", value_name = "SECONDS")]
    pub app_pre_stop_seconds: Option<u32>,
    /// How traffic reaches the proxy: redirect (captured) or none (applications use it as HTTP proxy)
    #[arg(long, env = "INTERCEPTION_MODE", value_enum, value_name = "MODE")]
    pub interception_mode: Option<Mode>,
}

/// [`InterceptionMode`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// The node's packet filter sends traffic to the proxy.
    #[value(alias = "REDIRECT")]
    Redirect,
    /// The application sends traffic to the proxy.
    #[value(alias = "NONE")]
    None,
}

impl InjectArgs {
    /// Reads the files and lays the flags over them.
    ///
    /// # Errors
    /// When a file cannot be read or does not hold what it should; the error names it.
    pub fn load(&self) -> anyhow::Result<(Settings, Templates)> {
        let mut settings = match &self.inject_config {
            None => Settings::default(),
            Some(path) => Settings::read(&text_of(path)?)
                .map_err(anyhow::Error::msg)
                .with_context(|| format!("injection settings {}", path.display()))?,
        };
        let templates = match &self.template {
            None => Templates::default(),
            Some(path) => Templates::read(&text_of(path)?)
                .map_err(anyhow::Error::msg)
                .with_context(|| format!("templates {}", path.display()))?,
        };
        let set = |slot: &mut String, flag: &Option<String>| flag.iter().for_each(|f| slot.clone_from(f));
        set(&mut settings.image, &self.image);
        set(&mut settings.ca_addr, &self.ca_addr);
        set(&mut settings.telemetry_addr, &self.telemetry_addr);
        if let Some(address) = &self.discovery_address {
            settings.proxy_config.insert("discoveryAddress".to_owned(), json!(address));
        }
        settings.native_sidecars = self.native_sidecars.unwrap_or(settings.native_sidecars);
        settings.app_pre_stop_seconds = self.app_pre_stop_seconds.unwrap_or(settings.app_pre_stop_seconds);
        settings.interception_mode = match self.interception_mode {
            Some(Mode::Redirect) => InterceptionMode::Redirect,
            Some(Mode::None) => InterceptionMode::None,
            None => settings.interception_mode,
        };
        Ok((settings, templates))
    }
}

/// Adds the proxy to the pods of YAML files; every other byte stays as it is.
///
/// Istio's `istioctl kube-inject` for Crema: `injector inject -f shop.yaml | kubectl apply -f -`.
#[derive(Debug, Clone, Args)]
#[command(after_help = format!("Names that templates may use: {}.", NAMES.join(", ")))]
pub struct FileArgs {
    /// File of Kubernetes objects, `-` for standard input; several are put out one after the other
    #[arg(short, long = "filename", alias = "file", value_name = "FILE", required = true)]
    pub filename: Vec<PathBuf>,
    /// Where to write; standard output unless given
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Namespace of objects that name none
    #[arg(short, long, env = "NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// What is injected.
    #[command(flatten)]
    pub inject: InjectArgs,
}

impl FileArgs {
    /// Does it: nothing is written unless every file is good. Notices go to standard error.
    ///
    /// # Errors
    /// The first thing that is wrong, with file, line, object and field.
    pub fn run(&self) -> anyhow::Result<()> {
        let (settings, templates) = self.inject.load()?;
        let context = Context { settings: &settings, templates: &templates, namespace: &self.namespace };
        let mut out = String::new();
        for path in &self.filename {
            let (text, name) = match path.as_os_str() == "-" {
                true => {
                    let mut text = String::new();
                    std::io::stdin().read_to_string(&mut text).context("standard input")?;
                    (text, "stdin".to_owned())
                }
                false => (text_of(path)?, path.display().to_string()),
            };
            let (injected, notices) = inject_text(&text, &name, &context)?;
            notices.iter().for_each(|notice| eprintln!("{notice}"));
            if !out.is_empty() {
                out.push_str(if out.ends_with('\n') { "---\n" } else { "\n---\n" });
            }
            out.push_str(&injected);
        }
        match &self.output {
            Some(path) => fs::write(path, out).with_context(|| format!("cannot write {}", path.display())),
            None => match std::io::stdout().write_all(out.as_bytes()) {
                // Whoever reads has seen enough.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
                done => done.context("standard output"),
            },
        }
    }
}

fn text_of(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
