//! Templates: what an instance of each kind is made of.
//!
//! In: an instance's settings. Out: [`Instance`], its expressions compiled and typed.
//! Kept true: a required field is there and has the template's type. Not here: evaluation (`dispatch`).

use serde_json::Value as Json;

use super::{Fields, Problems};
use crate::{
    attributes::{AttributeId, Text, ValueType, Vocabulary},
    lang::Expression,
};

/// The templates of Istio 1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Template {
    /// An API key to be checked.
    ApiKey,
    /// A subject and an action to be authorized.
    Authorization,
    /// A check without arguments.
    CheckNothing,
    /// An edge of the service graph.
    Edge,
    /// Both ends of a request, to be looked up in the cluster.
    Kubernetes,
    /// A value to be looked up in a list.
    ListEntry,
    /// A log entry.
    LogEntry,
    /// A metric.
    Metric,
    /// A quota.
    Quota,
    /// A report without arguments.
    ReportNothing,
    /// A span.
    TraceSpan,
}

/// When instances of a template are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variety {
    /// Before a request, to let it pass or not.
    Check,
    /// Before a request, to count it.
    Quota,
    /// After a request.
    Report,
    /// Before everything else, to add attributes.
    AttributeGenerator,
}

enum Shape {
    /// One expression, of a type or of any, required or not.
    One(Option<ValueType>, bool),
    /// Expressions by the user's own names.
    Map,
}

use Shape::{Map, One};
const STRING: Shape = One(Some(ValueType::String), false);
const INT64: Shape = One(Some(ValueType::Int64), false);
const TIME: Shape = One(Some(ValueType::Timestamp), false);
const BOOL: Shape = One(Some(ValueType::Bool), false);
const IP: Shape = One(Some(ValueType::IpAddress), false);

impl Template {
    /// Every template.
    pub const ALL: &'static [Self] = &[
        Self::ApiKey,
        Self::Authorization,
        Self::CheckNothing,
        Self::Edge,
        Self::Kubernetes,
        Self::ListEntry,
        Self::LogEntry,
        Self::Metric,
        Self::Quota,
        Self::ReportNothing,
        Self::TraceSpan,
    ];

    /// Name in `compiledTemplate`, and the legacy kind.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ApiKey => "apikey",
            Self::Authorization => "authorization",
            Self::CheckNothing => "checknothing",
            Self::Edge => "edge",
            Self::Kubernetes => "kubernetes",
            Self::ListEntry => "listentry",
            Self::LogEntry => "logentry",
            Self::Metric => "metric",
            Self::Quota => "quota",
            Self::ReportNothing => "reportnothing",
            Self::TraceSpan => "tracespan",
        }
    }

    /// The template called `name`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|template| template.name().eq_ignore_ascii_case(name))
    }

    /// When instances are made.
    #[must_use]
    pub fn variety(self) -> Variety {
        match self {
            Self::ApiKey | Self::Authorization | Self::CheckNothing | Self::ListEntry => Variety::Check,
            Self::Quota => Variety::Quota,
            Self::Edge | Self::LogEntry | Self::Metric | Self::ReportNothing | Self::TraceSpan => {
                Variety::Report
            }
            Self::Kubernetes => Variety::AttributeGenerator,
        }
    }

    fn shape(self) -> &'static [(&'static str, Shape)] {
        match self {
            Self::CheckNothing | Self::ReportNothing | Self::ApiKey | Self::Authorization | Self::Edge => &[],
            Self::ListEntry => &[("value", One(None, true))],
            Self::Quota => &[("dimensions", Map)],
            Self::Metric => &[
                ("value", One(None, true)),
                ("dimensions", Map),
                ("monitored_resource_type", STRING),
                ("monitored_resource_dimensions", Map),
            ],
            Self::LogEntry => &[
                ("variables", Map),
                ("timestamp", TIME),
                ("severity", STRING),
                ("monitored_resource_type", STRING),
                ("monitored_resource_dimensions", Map),
            ],
            Self::TraceSpan => &[
                ("trace_id", One(Some(ValueType::String), true)),
                ("span_id", STRING),
                ("parent_span_id", STRING),
                ("span_name", STRING),
                ("start_time", TIME),
                ("end_time", TIME),
                ("span_tags", Map),
                ("http_status_code", INT64),
                ("client_span", BOOL),
                ("rewrite_client_span_id", BOOL),
                ("source_name", STRING),
                ("source_ip", IP),
                ("destination_name", STRING),
                ("destination_ip", IP),
                ("request_size", INT64),
                ("request_total_size", INT64),
                ("response_size", INT64),
                ("response_total_size", INT64),
                ("api_protocol", STRING),
            ],
            Self::Kubernetes => &[
                ("source_uid", STRING),
                ("source_ip", IP),
                ("destination_uid", STRING),
                ("destination_ip", IP),
                ("destination_port", INT64),
            ],
        }
    }
}

/// A compiled instance.
#[derive(Debug)]
pub struct Instance {
    /// Full name, `name.kind.namespace`.
    pub name: Text,
    /// What it is an instance of.
    pub template: Template,
    fields: Vec<(&'static str, Expression)>,
    maps: Vec<(&'static str, Vec<(Text, Expression)>)>,
    /// Attributes that an attribute generator sets, from its outputs.
    pub bindings: Vec<(AttributeId, Expression)>,
}

impl Instance {
    /// Compiles an instance. `params` are its settings, `bindings` the `attribute_bindings` beside them.
    #[must_use]
    pub fn compile(
        name: Text,
        template: Template,
        params: &Fields<'_>,
        bindings: Vec<(&str, &Json, String)>,
        vocabulary: &Vocabulary,
    ) -> Option<Self> {
        let problems = params.problems().clone();
        let (mut fields, mut maps) = (Vec::new(), Vec::new());
        let mut sound = true;
        for (field, shape) in template.shape() {
            match shape {
                One(kind, required) => match params.raw(field) {
                    Some(json) => {
                        let at = params.at(field);
                        match expression(json, &at, *kind, vocabulary, &problems) {
                            Some(expression) => fields.push((*field, expression)),
                            None => sound = false,
                        }
                    }
                    None if *required => {
                        problems.error(params.at(field), format!("is missing; {} needs it", template.name()));
                        sound = false;
                    }
                    None => {}
                },
                Map => {
                    let mut map = Vec::new();
                    for (key, json, at) in params.entries(field) {
                        match expression(json, &at, None, vocabulary, &problems) {
                            Some(expression) => map.push((Text::from(key), expression)),
                            None => sound = false,
                        }
                    }
                    maps.push((*field, map));
                }
            }
        }
        if template.shape().is_empty() {
            params.ignore_rest();
        }
        let mut bound = Vec::new();
        if !bindings.is_empty() {
            let outputs = super::outputs::vocabulary(vocabulary);
            for (attribute, json, at) in bindings {
                let Some(id) = vocabulary.id(attribute) else {
                    problems.error(
                        at,
                        format!("unknown attribute {attribute}; declare it in an attributemanifest"),
                    );
                    sound = false;
                    continue;
                };
                // `$out` is no identifier of the language.
                let source = Json::from(json.as_str().unwrap_or_default().replace("$out.", "output."));
                match expression(&source, &at, Some(vocabulary.kind(id)), &outputs, &problems) {
                    Some(expression) => bound.push((id, expression)),
                    None => sound = false,
                }
            }
        }
        sound.then_some(Self { name, template, fields, maps, bindings: bound })
    }

    /// The expression of a field of one value.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Expression> {
        self.fields.iter().find(|(field, _)| *field == name).map(|(_, expression)| expression)
    }

    /// The expressions of a field of many values.
    #[must_use]
    pub fn map(&self, name: &str) -> &[(Text, Expression)] {
        self.maps.iter().find(|(field, _)| *field == name).map_or(&[], |(_, map)| map)
    }

    /// All expressions.
    pub fn expressions(&self) -> impl Iterator<Item = &Expression> {
        let maps = self.maps.iter().flat_map(|(_, map)| map.iter().map(|(_, expression)| expression));
        self.fields.iter().map(|(_, expression)| expression).chain(maps)
    }
}

/// Compiles one expression; numbers and truths may be written without quotes.
pub(super) fn expression(
    json: &Json,
    at: &str,
    kind: Option<ValueType>,
    vocabulary: &Vocabulary,
    problems: &Problems,
) -> Option<Expression> {
    let source = match json {
        Json::String(text) => text.clone(),
        Json::Number(_) | Json::Bool(_) => json.to_string(),
        other => {
            problems.error(at, format!("must be an expression, not {other}"));
            return None;
        }
    };
    match Expression::compile(&source, vocabulary) {
        Err(error) => {
            problems.error(at, error.to_string());
            None
        }
        Ok(expression) => match kind {
            Some(kind) if kind != expression.kind() => {
                let why = format!("expression '{source}' is of type {}, expected {kind}", expression.kind());
                problems.error(at, why);
                None
            }
            _ => Some(expression),
        },
    }
}
