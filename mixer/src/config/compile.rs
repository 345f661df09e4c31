//! Compiling objects into a generation.
//!
//! In: the snapshot's mixer objects and Pods, over the built-in ones. Out: [`Generation`].
//! Kept true: references resolve as in Mixer (`name.kind[.namespace]`, own namespace first); unchanged handlers are
//! carried over. Not here: templates (`template`), adapters' settings (`adapters`).

use std::{collections::BTreeMap, sync::Arc};

use mesh_config::{Diagnostic, Kind, Meta, Object, ObjectKey, Snapshot, kinds::MixerObject};
use serde_json::Value as Json;

use super::{
    Action, Fields, Generation, HeaderChange, HeaderOperation, Instance, Problems, Quotas, Rule, Template,
    Variety, builtin, outputs, template::expression,
};
use crate::{
    adapters::{self, Handler, Shared},
    attributes::{Text, ValueType, Vocabulary},
    series,
    workload::{Workload, Workloads},
};

/// What a generation is compiled for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether the built-in standard metrics are in force where the user has no object of the same name.
    pub default_metrics: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { default_metrics: true }
    }
}

type Objects<'a> = BTreeMap<(Text, Text), &'a Arc<Object<MixerObject>>>;
type ByName<T> = BTreeMap<(Text, Text, Text), T>;

/// Compiles `snapshot`. Needs a runtime, since handlers start here.
#[must_use]
pub fn compile(
    snapshot: &Snapshot,
    options: &Options,
    shared: &Shared,
    before: Option<&Generation>,
) -> Generation {
    let mut out = Compiler { diagnostics: Vec::new(), root: snapshot.root_namespace().into() };
    let built_in = builtin::objects(options);
    let mut objects = Objects::new();
    for object in built_in.iter().chain(snapshot.mixer.iter()) {
        let table_name = format!("{}.{}", object.name(), object.spec.kind);
        objects.insert((object.namespace().into(), table_name.into()), object);
    }
    let vocabulary = Arc::new(out.vocabulary(&objects));
    // Compiled expressions hold attribute ids, so they survive only a vocabulary that keeps those.
    let good = before.filter(|before| vocabulary.extends(&before.vocabulary));
    let instances = out.instances(&objects, &vocabulary, good);
    let handlers = out.handlers(&objects, shared, before);
    let rules = out.rules(&objects, &vocabulary, &instances, &handlers, good);
    let quotas = out.quotas(&objects);
    Generation {
        number: before.map_or(1, |before| before.number + 1),
        outputs: Arc::new(outputs::vocabulary(&vocabulary)),
        vocabulary,
        workloads: Arc::new(workloads(snapshot, before)),
        wants_records: rules
            .iter()
            .flat_map(|rule| &rule.actions)
            .any(|action| action.instance.template.variety() == Variety::Report && action.series.is_none()),
        rules,
        instances: instances.into_values().flatten().collect(),
        quotas: Arc::new(quotas),
        handlers: handlers.into_values().flatten().collect(),
        diagnostics: out.diagnostics,
    }
}

/// The same configuration with other Pods. Costs no compilation.
#[must_use]
pub fn rejoin(snapshot: &Snapshot, before: &Generation) -> Generation {
    Generation {
        number: before.number + 1,
        vocabulary: before.vocabulary.clone(),
        outputs: before.outputs.clone(),
        workloads: Arc::new(workloads(snapshot, Some(before))),
        rules: before.rules.clone(),
        instances: before.instances.clone(),
        wants_records: before.wants_records,
        quotas: before.quotas.clone(),
        handlers: before.handlers.clone(),
        diagnostics: before.diagnostics.clone(),
    }
}

fn workloads(snapshot: &Snapshot, before: Option<&Generation>) -> Workloads {
    let pods = snapshot.pods.iter().map(|pod| {
        let mut workload = Workload::from_pod(pod.namespace(), pod.name(), &pod.spec);
        for service in snapshot.services.in_namespace(pod.namespace()) {
            workload.serves(service.name(), &service.spec);
        }
        workload
    });
    let workloads = Workloads::new(pods);
    match before {
        Some(before) => workloads.remembering(&before.workloads),
        None => workloads,
    }
}

struct Compiler {
    diagnostics: Vec<Diagnostic>,
    root: Text,
}

fn key(meta: &Meta) -> ObjectKey {
    ObjectKey {
        kind: Kind::Mixer,
        group: meta.gvk.group.clone(),
        kind_name: meta.gvk.kind.clone(),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
    }
}

impl Compiler {
    /// Turns the findings of one object into diagnostics; whether the object can be used.
    fn close(&mut self, object: &Object<MixerObject>, problems: &Problems) -> bool {
        let usable = !problems.fatal();
        for problem in problems.take() {
            let (origin, key) = (object.meta.origin.clone(), Some(key(&object.meta)));
            self.diagnostics.push(if problem.fatal {
                Diagnostic::error(origin, key, &problem.field, problem.why)
            } else {
                Diagnostic::warning(origin, key, &problem.field, problem.why)
            });
        }
        usable
    }

    fn vocabulary(&mut self, objects: &Objects<'_>) -> Vocabulary {
        let mut vocabulary = Vocabulary::builtin();
        for object in objects.values().filter(|object| object.spec.kind == "attributemanifest") {
            let problems = Problems::default();
            {
                let spec = Fields::new(&object.spec.spec, "spec", &problems);
                spec.raw("revision");
                spec.raw("name");
                for (name, kind) in manifest(&spec) {
                    if let Err(error) = vocabulary.declare(&name, kind) {
                        problems.error(format!("spec.attributes.{name}"), error.to_string());
                    }
                }
            }
            self.close(object, &problems);
        }
        vocabulary
    }

    fn instances(
        &mut self,
        objects: &Objects<'_>,
        vocabulary: &Vocabulary,
        good: Option<&Generation>,
    ) -> ByName<Option<Arc<Instance>>> {
        let mut out = ByName::new();
        for object in objects.values() {
            let kind = object.spec.kind.as_str();
            let new_style = kind == "instance";
            if !new_style && Template::named(kind).is_none() {
                continue;
            }
            let problems = Problems::default();
            let name = full_name(object);
            let last_good = good.and_then(|good| good.instances.iter().find(|old| old.name == name));
            let compiled = {
                let spec = Fields::new(&object.spec.spec, "spec", &problems);
                let template = if new_style { spec.text("compiled_template") } else { Some(kind) };
                match template.map(|name| (name, Template::named(name))) {
                    Some((_, Some(template))) => {
                        let bindings = spec.entries("attribute_bindings");
                        if new_style {
                            Instance::compile(name, template, &spec.object("params"), bindings, vocabulary)
                        } else {
                            Instance::compile(name, template, &spec, bindings, vocabulary)
                        }
                    }
                    Some((name, None)) => {
                        spec.problems()
                            .error("spec.compiledTemplate", format!("unknown template \"{name}\""));
                        spec.ignore_rest();
                        None
                    }
                    None => {
                        let why = "is missing; out-of-process templates are not supported";
                        spec.problems().error("spec.compiledTemplate", why);
                        spec.ignore_rest();
                        None
                    }
                }
            };
            let usable = self.close(object, &problems);
            let compiled = compiled.filter(|_| usable).map(Arc::new);
            out.insert(place(object), compiled.or_else(|| last_good.cloned()));
        }
        out
    }

    fn handlers(
        &mut self,
        objects: &Objects<'_>,
        shared: &Shared,
        before: Option<&Generation>,
    ) -> ByName<Option<Arc<Handler>>> {
        let mut out = ByName::new();
        for object in objects.values() {
            let kind = object.spec.kind.as_str();
            let new_style = kind == "handler";
            if !mesh_config::kinds::HANDLER_KINDS.contains(&kind) || kind == "adapter" {
                continue;
            }
            let problems = Problems::default();
            let name = full_name(object);
            let last_good = before.and_then(|before| before.handlers.iter().find(|old| old.name == name));
            let handler = {
                let spec = Fields::new(&object.spec.spec, "spec", &problems);
                let adapter_name = if new_style { spec.text("compiled_adapter") } else { Some(kind) };
                let params =
                    if new_style { spec.raw("params").unwrap_or(&Json::Null) } else { &object.spec.spec };
                let settings = params.to_string();
                match adapter_name.and_then(adapters::named) {
                    Some(adapter) => {
                        if !new_style {
                            spec.ignore_rest();
                        }
                        let old = before.and_then(|before| {
                            let same = |old: &&Arc<Handler>| {
                                old.name == name && old.kind.name == adapter.name && old.settings == settings
                            };
                            before.handlers.iter().find(same).cloned()
                        });
                        old.or_else(|| {
                            let fields = Fields::new(
                                params,
                                if new_style { "spec.params" } else { "spec" },
                                &problems,
                            );
                            let built = (adapter.build)(&fields, shared);
                            drop(fields);
                            built
                                .filter(|_| !problems.fatal())
                                .map(|built| Handler::start(name, adapter, settings, built, &shared.totals))
                        })
                    }
                    None => {
                        spec.ignore_rest();
                        let why = match adapter_name {
                            Some(name) => format!(
                                "no adapter \"{name}\" in this mixer, so actions of this handler are left out; for most \
                                 backends, \"otlp\" to an OpenTelemetry collector does the same"
                            ),
                            None => "is missing; out-of-process adapters are not supported".to_owned(),
                        };
                        spec.problems().error(if new_style { "spec.compiledAdapter" } else { "kind" }, why);
                        None
                    }
                }
            };
            self.close(object, &problems);
            out.insert(place(object), handler.or_else(|| last_good.cloned()));
        }
        out
    }

    fn quotas(&mut self, objects: &Objects<'_>) -> Quotas {
        let mut out = Quotas::default();
        for object in objects.values().filter(|object| object.spec.kind == "QuotaSpecBinding") {
            let problems = Problems::default();
            let spec = |namespace: &str, name: &str| {
                let found = objects.get(&(namespace.into(), format!("{name}.QuotaSpec").into()));
                found.map(|object| &***object)
            };
            out.bind(object, spec, &problems);
            self.close(object, &problems);
        }
        out
    }

    fn rules(
        &mut self,
        objects: &Objects<'_>,
        vocabulary: &Vocabulary,
        instances: &ByName<Option<Arc<Instance>>>,
        handlers: &ByName<Option<Arc<Handler>>>,
        good: Option<&Generation>,
    ) -> Vec<Arc<Rule>> {
        let mut out = Vec::new();
        for object in objects.values().filter(|object| object.spec.kind == "rule") {
            let problems = Problems::default();
            let rule = {
                let spec = Fields::new(&object.spec.spec, "spec", &problems);
                let matcher = spec
                    .raw("match")
                    .filter(|json| json.as_str().is_none_or(|text| !text.trim().is_empty()))
                    .map(|json| expression(json, "spec.match", Some(ValueType::Bool), vocabulary, &problems));
                let mut actions = Vec::new();
                for action in spec.objects("actions") {
                    action.raw("name");
                    let Some(reference) = action.text("handler") else {
                        problems.error(action.at("handler"), "is missing; name a handler");
                        continue;
                    };
                    let handler = find(reference, "handler", object.namespace(), handlers);
                    if handler.is_none() {
                        let why =
                            format!("no handler \"{reference}\"; names are name.kind or name.kind.namespace");
                        problems.warning(action.at("handler"), why);
                    }
                    for (at, reference) in action.list("instances") {
                        let Some(reference) = reference.as_str() else {
                            problems.error(at, "must be the name of an instance");
                            continue;
                        };
                        let instance = find(reference, "instance", object.namespace(), instances);
                        match (handler, instance) {
                            (_, None) => problems.warning(
                                at,
                                format!(
                                    "no instance \"{reference}\"; names are name.kind or name.kind.namespace"
                                ),
                            ),
                            (Some(Some(handler)), Some(Some(instance))) => {
                                if handler.kind.templates.contains(&instance.template) {
                                    let series = series::measure(
                                        matcher.as_ref().and_then(Option::as_ref),
                                        instance,
                                        handler,
                                    );
                                    actions.push(Action {
                                        handler: handler.clone(),
                                        instance: instance.clone(),
                                        series,
                                    });
                                } else {
                                    let (adapter, template) = (handler.kind.name, instance.template.name());
                                    problems.error(
                                        at,
                                        format!("adapter {adapter} does not take template {template}"),
                                    );
                                }
                            }
                            // The handler's or instance's own diagnostic says why it is not there.
                            _ => problems
                                .warning(at, "action left out, because its handler or instance is broken"),
                        }
                    }
                }
                spec.raw("sampling");
                let request_headers = headers(&spec, "request_header_operations", vocabulary);
                let response_headers = headers(&spec, "response_header_operations", vocabulary);
                match matcher {
                    // A rule whose condition is unknown must neither apply always nor never in silence.
                    Some(None) => None,
                    matcher => Some(Arc::new(Rule {
                        name: object.name().into(),
                        namespace: object.namespace().into(),
                        global: object.namespace() == &*self.root,
                        matcher: matcher.flatten(),
                        actions,
                        request_headers,
                        response_headers,
                    })),
                }
            };
            self.close(object, &problems);
            let last_good = || {
                let same =
                    |old: &&Arc<Rule>| *old.name == *object.name() && *old.namespace == *object.namespace();
                good.and_then(|good| good.rules.iter().find(same)).cloned()
            };
            out.extend(rule.or_else(last_good));
        }
        out
    }
}

fn headers(spec: &Fields<'_>, field: &str, vocabulary: &Vocabulary) -> Vec<HeaderOperation> {
    let mut out = Vec::new();
    for operation in spec.objects(field) {
        let change = match operation.text("operation").unwrap_or("REPLACE") {
            "REPLACE" => HeaderChange::Replace,
            "REMOVE" => HeaderChange::Remove,
            "APPEND" => HeaderChange::Append,
            other => {
                let why = format!("must be REPLACE, REMOVE or APPEND, not \"{other}\"");
                operation.problems().error(operation.at("operation"), why);
                continue;
            }
        };
        let compile = |(at, json): (String, _)| {
            expression(json, &at, Some(ValueType::String), vocabulary, operation.problems())
        };
        let values = operation.list("values").into_iter().filter_map(compile).collect();
        let name = operation.text("name").unwrap_or_default().to_lowercase();
        out.push(HeaderOperation { name, values, change });
    }
    out
}

/// Names and types of an `attributemanifest`.
pub(crate) fn manifest(spec: &Fields<'_>) -> Vec<(String, ValueType)> {
    let mut out = Vec::new();
    for (name, json, at) in spec.entries("attributes") {
        let attribute = Fields::new(json, at, spec.problems());
        attribute.raw("description");
        let written = attribute.raw("value_type");
        match written.map(|json| serde_json::from_value::<ValueType>(json.clone())) {
            Some(Ok(kind)) => out.push((name.to_owned(), kind)),
            Some(Err(_)) => {
                let why = "must be one of STRING, INT64, DOUBLE, BOOL, TIMESTAMP, IP_ADDRESS, EMAIL_ADDRESS, URI, \
                           DNS_NAME, DURATION, STRING_MAP";
                spec.problems().error(attribute.at("valueType"), why);
            }
            None => spec.problems().error(attribute.at("valueType"), "is missing"),
        }
    }
    out
}

fn full_name(object: &Object<MixerObject>) -> Text {
    format!("{}.{}.{}", object.name(), object.spec.kind, object.namespace()).into()
}

fn place(object: &Object<MixerObject>) -> (Text, Text, Text) {
    (object.namespace().into(), object.spec.kind.as_str().into(), object.name().into())
}

/// Resolves `name`, `name.kind`, `name.kind.namespace` or `name.namespace`; names may hold dots themselves.
fn find<'a, T>(reference: &str, kind: &str, namespace: &str, all: &'a ByName<T>) -> Option<&'a T> {
    let get =
        |namespace: &str, kind: &str, name: &str| all.get(&(namespace.into(), kind.into(), name.into()));
    if let Some(found) = get(namespace, kind, reference) {
        return Some(found);
    }
    let (rest, last) = reference.rsplit_once('.')?;
    let by_kind = get(namespace, last, rest);
    let elsewhere = || rest.rsplit_once('.').and_then(|(name, kind)| get(last, kind, name));
    by_kind.or_else(elsewhere).or_else(|| get(last, kind, rest))
}
