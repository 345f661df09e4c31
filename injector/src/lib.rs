//! The injector: puts the proxy into pods, as a webhook of Kubernetes and as a filter on files.
//!
//! In: pods, alone or within workloads, lists and files. Out: the same with the proxy, or the patch that makes it so.
//! Kept true: webhook and filter run the same pure function ([`pod::inject`]). Not here: what the proxy does once it is there.

pub mod annotations;
pub mod cluster;
pub mod command;
pub mod decide;
pub mod file;
pub mod overlay;
pub mod patch;
pub mod pod;
pub mod probes;
pub mod serve;
pub mod settings;
pub mod template;
pub mod webhook;
pub mod workload;
pub mod yaml;

/// Why a pod cannot be injected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// An annotation asks for what cannot be done.
    #[error("annotation {name} is {value:?}: must be {want}")]
    Annotation {
        /// The annotation.
        name: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        want: String,
    },
    /// A template that nobody wrote.
    #[error("annotation inject.istio.io/templates names {name:?}: there are only {known}")]
    Template {
        /// The name asked for.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// It is not a pod that Kubernetes would take.
    #[error("not a pod: {0}")]
    NotAPod(String),
    /// Text that is not YAML.
    #[error("{at}: {why}")]
    Yaml {
        /// File and line.
        at: String,
        /// The parser's words.
        why: String,
    },
    /// One of these, in an object or a file.
    #[error("{object}: {why}")]
    In {
        /// Which one.
        object: String,
        /// What is wrong with it; not called `source`, since the text above says it already.
        why: Box<InjectError>,
    },
}
