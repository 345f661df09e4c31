//! From attributes to handlers: which rules apply, which instances they make, who gets them.
//!
//! In: a joined bag. Out: items in handlers' hands, or a verdict.
//! Kept true: nothing here waits. A condition that fails to evaluate does not match; a field that fails drops its
//! instance only. Not here: compiling (`config`), queues (`adapters`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    adapters::item::{
        CheckInstance, DEFAULT_VALIDITY, Item, Labels, LogEntry, Metric, QuotaInstance, QuotaResult, Sample,
        Span,
    },
    attributes::{Bag, Builtin, Text, Timestamp, Value},
    config::{Action, Generation, HeaderChange, HeaderOperation, Instance, Rule, Template, Variety},
    join,
    lang::{EvalError, References, Track},
    recorder::Recorder,
};

/// What is counted while dispatching.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bags reported.
    pub reports: AtomicU64,
    /// Bags checked.
    pub checks: AtomicU64,
    /// Checks that refused.
    pub denials: AtomicU64,
    /// Rules whose condition could not be evaluated.
    pub condition_errors: AtomicU64,
    /// Instances that were dropped because a field could not be evaluated.
    pub instance_errors: AtomicU64,
}

/// Which actions of a report are to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
    /// All.
    All,
    /// Those that are not fed from series: the reporter sends those as series too.
    Records,
}

/// The namespace whose rules apply: the reporter's own.
fn identity_namespace<'a>(bag: &'a Bag, refs: &mut impl Track) -> Option<&'a Text> {
    let kind = bag.text(Builtin::ContextReporterKind);
    refs.saw(Builtin::ContextReporterKind.into(), None, kind.is_some());
    let attribute =
        if join::outbound(bag) { Builtin::SourceNamespace } else { Builtin::DestinationNamespace };
    let namespace = bag.text(attribute);
    refs.saw(attribute.into(), None, namespace.is_some());
    namespace
}

/// Whether `rule` applies to `bag`.
pub(crate) fn applies(
    rule: &Rule,
    namespace: Option<&Text>,
    bag: &Bag,
    refs: &mut impl Track,
    counters: &Counters,
) -> bool {
    if !rule.global && namespace != Some(&rule.namespace) {
        return false;
    }
    match rule.matcher.as_ref().map(|matcher| matcher.eval_bool(bag, refs)) {
        None => true,
        Some(Ok(matched)) => matched,
        Some(Err(error)) => {
            counters.condition_errors.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(
                rule = &*rule.name,
                namespace = &*rule.namespace,
                "condition: {error}; taken as no match"
            );
            false
        }
    }
}

/// Hands out a report. `false` if an instance had to be dropped.
pub fn report(
    generation: &Generation,
    bag: &Bag,
    feed: Feed,
    counters: &Counters,
    recorder: &Recorder,
) -> bool {
    counters.reports.fetch_add(1, Ordering::Relaxed);
    let namespace = identity_namespace(bag, &mut ());
    let mut sound = true;
    for rule in &generation.rules {
        let wanted = |action: &&Action| {
            action.instance.template.variety() == Variety::Report
                && !(feed == Feed::Records && action.series.is_some())
        };
        let mut actions = rule.actions.iter().filter(wanted).peekable();
        if actions.peek().is_none() || !applies(rule, namespace, bag, &mut (), counters) {
            continue;
        }
        for action in actions {
            match item(&action.instance, bag) {
                Ok(item) => {
                    if let Item::Log(entry) = &item {
                        recorder.log(entry.clone());
                    }
                    action.handler.push(item);
                }
                Err(error) => {
                    sound = false;
                    counters.instance_errors.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(instance = &*action.instance.name, "{error}; this instance is left out");
                }
            }
        }
    }
    sound
}

/// Evaluates the fields of a map.
pub(crate) fn labels(
    instance: &Instance,
    field: &str,
    bag: &Bag,
    refs: &mut impl Track,
) -> Result<Labels, EvalError> {
    let entries = instance.map(field).iter();
    entries.map(|(name, expression)| Ok((name.clone(), expression.eval_tracked(bag, refs)?))).collect()
}

fn item(instance: &Instance, bag: &Bag) -> Result<Item, EvalError> {
    let field = |name: &str| instance.field(name).map(|expression| expression.eval(bag)).transpose();
    let text = |name: &str| match field(name) {
        Ok(Some(Value::String(text))) => Ok(text),
        Ok(_) => Ok(Text::from("")),
        Err(error) => Err(error),
    };
    let time = |name: &str| match field(name) {
        Ok(Some(Value::Timestamp(time))) => Ok(Some(time)),
        Ok(_) => Ok(None),
        Err(error) => Err(error),
    };
    Ok(match instance.template {
        Template::Metric => {
            let value = field("value")?.unwrap_or(Value::Int64(0));
            let labels = labels(instance, "dimensions", bag, &mut ())?;
            Item::Metric(Metric { instance: instance.name.clone(), labels, sample: Sample::One(value) })
        }
        Template::LogEntry => Item::Log(Arc::new(LogEntry {
            instance: instance.name.clone(),
            timestamp: time("timestamp")?.unwrap_or_else(Timestamp::now),
            severity: text("severity")?,
            variables: labels(instance, "variables", bag, &mut ())?,
        })),
        Template::TraceSpan => {
            let start = time("start_time")?.unwrap_or_else(Timestamp::now);
            let mut tags: Vec<(Text, Value)> = labels(instance, "span_tags", bag, &mut ())?.to_vec();
            for name in ["source_ip", "destination_ip", "request_size", "response_size", "api_protocol"] {
                if let Some(value) = field(name)? {
                    tags.push((name.into(), value));
                }
            }
            let client = matches!(field("client_span")?, Some(Value::Bool(true)));
            let (source, destination) = (text("source_name")?, text("destination_name")?);
            let (service, peer) = if client { (source, destination) } else { (destination, source) };
            Item::Span(Arc::new(Span {
                trace_id: text("trace_id")?,
                id: text("span_id")?,
                parent_id: text("parent_span_id")?,
                name: text("span_name")?,
                start,
                end: time("end_time")?.unwrap_or(start),
                client,
                status: match field("http_status_code")? {
                    Some(Value::Int64(code)) => code,
                    _ => 0,
                },
                service,
                peer,
                tags: tags.into(),
            }))
        }
        _ => Item::Nothing,
    })
}

/// The answer to a check.
#[derive(Debug)]
pub struct Verdict {
    /// Canonical gRPC code; 0 lets the request pass.
    pub code: i32,
    /// `handler:message`, joined by `, `.
    pub message: String,
    /// How long the verdict holds.
    pub valid_for: Duration,
    /// For how many requests it holds.
    pub valid_uses: i32,
    /// What it depends on.
    pub references: References,
    /// Changes to request headers.
    pub request_headers: Vec<(String, HeaderChange, Text)>,
    /// Changes to response headers.
    pub response_headers: Vec<(String, HeaderChange, Text)>,
}

const INTERNAL: i32 = 13;

/// May this request pass?
pub fn check(generation: &Generation, bag: &Bag, counters: &Counters) -> Verdict {
    counters.checks.fetch_add(1, Ordering::Relaxed);
    let (valid_for, valid_uses) = DEFAULT_VALIDITY;
    let mut verdict = Verdict {
        code: 0,
        message: String::new(),
        valid_for,
        valid_uses,
        references: References::default(),
        request_headers: Vec::new(),
        response_headers: Vec::new(),
    };
    let mut refs = References::default();
    let namespace = identity_namespace(bag, &mut refs);
    for rule in &generation.rules {
        let wanted = |action: &&Action| action.instance.template.variety() == Variety::Check;
        let mut actions = rule.actions.iter().filter(wanted).peekable();
        let headers = !rule.request_headers.is_empty() || !rule.response_headers.is_empty();
        if (actions.peek().is_none() && !headers) || !applies(rule, namespace, bag, &mut refs, counters) {
            continue;
        }
        for action in actions {
            let (code, message) = match check_instance(&action.instance, bag, &mut refs) {
                Ok(instance) => {
                    let result = action.handler.check(&instance);
                    verdict.valid_for = verdict.valid_for.min(result.valid_for);
                    verdict.valid_uses = verdict.valid_uses.min(result.valid_uses);
                    (result.code, result.message)
                }
                Err(error) => {
                    counters.instance_errors.fetch_add(1, Ordering::Relaxed);
                    (INTERNAL, format!("instance {}: {error}", action.instance.name))
                }
            };
            if code != 0 {
                if verdict.code == 0 {
                    verdict.code = code;
                } else {
                    verdict.message.push_str(", ");
                }
                verdict.message.push_str(&format!("{}:{message}", action.handler.name));
            }
        }
        change_headers(&rule.request_headers, bag, &mut refs, &mut verdict.request_headers);
        change_headers(&rule.response_headers, bag, &mut refs, &mut verdict.response_headers);
    }
    if verdict.code != 0 {
        counters.denials.fetch_add(1, Ordering::Relaxed);
    }
    verdict.references = refs;
    verdict
}

fn check_instance(instance: &Instance, bag: &Bag, refs: &mut impl Track) -> Result<CheckInstance, EvalError> {
    match instance.field("value") {
        Some(expression) => Ok(CheckInstance::ListEntry(expression.eval_tracked(bag, refs)?)),
        None => Ok(CheckInstance::Nothing),
    }
}

fn change_headers(
    operations: &[HeaderOperation],
    bag: &Bag,
    refs: &mut impl Track,
    out: &mut Vec<(String, HeaderChange, Text)>,
) {
    for operation in operations {
        if operation.change == HeaderChange::Remove {
            out.push((operation.name.clone(), HeaderChange::Remove, "".into()));
        }
        for value in &operation.values {
            if let Ok(Value::String(text)) = value.eval_tracked(bag, refs) {
                out.push((operation.name.clone(), operation.change, text));
            }
        }
    }
}

/// How much of quota `name` is granted? A quota that no rule makes is granted in full, for a minute.
pub fn quota(
    generation: &Generation,
    bag: &Bag,
    name: &str,
    amount: i64,
    best_effort: bool,
    deduplication_id: &str,
    counters: &Counters,
) -> (QuotaResult, References) {
    let mut refs = References::default();
    let namespace = identity_namespace(bag, &mut refs);
    for rule in &generation.rules {
        let named = |action: &&Action| {
            let full = &*action.instance.name;
            action.instance.template == Template::Quota
                && (full == name || full.split('.').next() == Some(name))
        };
        let Some(action) = rule.actions.iter().find(named) else { continue };
        if !applies(rule, namespace, bag, &mut refs, counters) {
            continue;
        }
        let result = match labels(&action.instance, "dimensions", bag, &mut refs) {
            Ok(labels) => {
                let name = action.instance.name.clone();
                let deduplication_id = deduplication_id.into();
                let mut result = action.handler.quota(&QuotaInstance {
                    name,
                    labels,
                    amount,
                    best_effort,
                    deduplication_id,
                });
                if result.code != 0 {
                    result.message = format!("{}:{}", action.handler.name, result.message);
                }
                result
            }
            Err(error) => {
                counters.instance_errors.fetch_add(1, Ordering::Relaxed);
                let message = format!("instance {}: {error}", action.instance.name);
                QuotaResult { code: INTERNAL, message, granted: 0, valid_for: Duration::ZERO }
            }
        };
        return (result, refs);
    }
    let granted =
        QuotaResult { code: 0, message: String::new(), granted: amount, valid_for: DEFAULT_VALIDITY.0 };
    (granted, refs)
}
