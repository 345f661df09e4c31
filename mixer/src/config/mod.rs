//! Mixer's configuration: from objects to an immutable generation of rules and running handlers.
//!
//! In: a `mesh-config` snapshot. Out: [`Generation`], and a diagnostic for whatever it leaves out.
//! Kept true: a broken object takes nothing else down, and its last good form stays; an unchanged handler keeps
//! running, queue and all.
//! Not here: reading files (`mesh-config`), evaluating rules (`dispatch`).

mod builtin;
mod compile;
mod fields;
pub mod outputs;
mod quotas;
mod template;

use std::sync::Arc;

pub(crate) use compile::manifest;
pub use compile::{Options, compile, rejoin};
pub use fields::{Fields, Problem, Problems};
use mesh_config::Diagnostic;
pub use quotas::Quotas;
pub use template::{Instance, Template, Variety};

use crate::{
    adapters::Handler,
    attributes::{Text, Vocabulary},
    lang::Expression,
    series::Measure,
    workload::Workloads,
};

/// Everything that answering and reporting need, at one moment. Replaced as a whole, never changed.
#[derive(Debug)]
pub struct Generation {
    /// Rises with each generation of a process.
    pub number: u64,
    /// The attributes that rules may speak of.
    pub vocabulary: Arc<Vocabulary>,
    /// The vocabulary of attribute bindings.
    pub outputs: Arc<Vocabulary>,
    /// Who is behind which address.
    pub workloads: Arc<Workloads>,
    /// Rules, by namespace and name.
    pub rules: Vec<Arc<Rule>>,
    /// Instances, for the next generation to fall back on.
    pub(crate) instances: Vec<Arc<Instance>>,
    pub(crate) wants_records: bool,
    /// What requests are charged.
    pub quotas: Arc<Quotas>,
    /// Running handlers, by full name.
    pub handlers: Vec<Arc<Handler>>,
    /// What is wrong with the configuration.
    pub diagnostics: Vec<Diagnostic>,
}

/// A compiled rule.
#[derive(Debug)]
pub struct Rule {
    /// Name.
    pub name: Text,
    /// Namespace it was written in.
    pub namespace: Text,
    /// Whether it applies to every namespace, because it was written in the root namespace.
    pub global: bool,
    /// When it applies; always if absent.
    pub matcher: Option<Expression>,
    /// What it does.
    pub actions: Vec<Action>,
    /// Changes to request headers, where policy is asked.
    pub request_headers: Vec<HeaderOperation>,
    /// Changes to response headers, where policy is asked.
    pub response_headers: Vec<HeaderOperation>,
}

/// What a rule does for one handler and one instance.
#[derive(Debug)]
pub struct Action {
    /// Who is given the instance.
    pub handler: Arc<Handler>,
    /// What is given.
    pub instance: Arc<Instance>,
    /// What of a series the instance's value is, if it can be fed from series at all.
    pub series: Option<Measure>,
}

/// How a header changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderChange {
    /// Set it to the value.
    Replace,
    /// Remove it.
    Remove,
    /// Add another value.
    Append,
}

/// A change of a header.
#[derive(Debug)]
pub struct HeaderOperation {
    /// Lower-case name.
    pub name: String,
    /// Text expressions.
    pub values: Vec<Expression>,
    /// What to do with them.
    pub change: HeaderChange,
}

impl Generation {
    /// Whether any rule makes report instances from records; if not, a record need not become a bag.
    #[must_use]
    pub fn wants_records(&self) -> bool {
        self.wants_records
    }

    /// Whether any rule could ever refuse a request.
    #[must_use]
    pub fn has_policy(&self) -> bool {
        let policy =
            |action: &Action| matches!(action.instance.template.variety(), Variety::Check | Variety::Quota);
        self.rules.iter().any(|rule| rule.actions.iter().any(policy))
    }

    /// The handlers that some rule gives instances of `template` to.
    #[must_use]
    pub fn handlers_of(&self, template: Template) -> Vec<Arc<Handler>> {
        let mut found: Vec<Arc<Handler>> = Vec::new();
        let actions = self.rules.iter().flat_map(|rule| &rule.actions);
        for action in actions.filter(|action| action.instance.template == template) {
            if !found.iter().any(|known| Arc::ptr_eq(known, &action.handler)) {
                found.push(action.handler.clone());
            }
        }
        found
    }
}
