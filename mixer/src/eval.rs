//! `mixer eval`: one expression against one set of attributes, for people who write rules.
//!
//! In: an `attributemanifest` document, a JSON object of attributes, an expression. Out: type, value and references as
//! JSON, or the error a rule would have. Kept true: the same compiler and interpreter as in `serve`.
//! Not here: the language (`lang`).

use std::{fs, path::PathBuf, sync::Arc};

use serde_json::{Value as Json, json};

use crate::{
    attributes::{Bag, Value, Vocabulary},
    config::{Fields, Problems},
    lang::{Expression, References},
};

/// What to evaluate.
#[derive(Debug, clap::Args)]
pub struct EvalArgs {
    /// Attribute names and types: a YAML file with one or more attributemanifest documents.
    #[arg(long, value_name = "M.yaml")]
    pub manifest: PathBuf,
    /// Attribute values: a JSON object from name to value. Timestamps are RFC 3339, durations Go strings such as
    /// "19ms", IP addresses text, string maps objects. Names that the manifest lacks are ignored.
    #[arg(long, value_name = "A.json")]
    pub attributes: PathBuf,
    /// The expression, such as 'source.labels["app"] == "web"'.
    #[arg(value_name = "EXPR", allow_hyphen_values = true)]
    pub expression: String,
}

/// Evaluates; the error is the text to show.
pub fn eval(args: &EvalArgs) -> Result<Json, String> {
    let read =
        |path: &PathBuf| fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()));
    evaluate(
        &read(&args.manifest)?,
        &args.manifest.display().to_string(),
        &read(&args.attributes)?,
        &args.expression,
    )
}

/// The same on texts; `file` names the manifest in errors.
pub fn evaluate(manifest: &str, file: &str, attributes: &str, expression: &str) -> Result<Json, String> {
    let vocabulary = Arc::new(vocabulary(manifest, file)?);
    let values: Json = serde_json::from_str(attributes).map_err(|error| format!("attributes: {error}"))?;
    let values = values.as_object().ok_or("attributes: must be a JSON object from name to value")?;
    let mut bag = Bag::new(&vocabulary);
    for (name, json) in values.iter().filter(|(_, json)| !json.is_null()) {
        if let Some(id) = vocabulary.id(name) {
            let value = Value::from_json(vocabulary.kind(id), json);
            bag.set(id, value.map_err(|error| format!("attributes: {name}: {error}"))?);
        }
    }
    let expression = Expression::compile(expression, &vocabulary).map_err(|error| error.to_string())?;
    let mut references = References::default();
    let value = expression.eval_tracked(&bag, &mut references).map_err(|error| error.to_string())?;
    Ok(json!({
        "type": expression.kind().to_string(),
        "value": value.json(),
        "referenced": references.text(&vocabulary),
    }))
}

fn vocabulary(manifest: &str, file: &str) -> Result<Vocabulary, String> {
    let snapshot = mesh_config::Snapshot::from_texts(&[(file, manifest)]);
    if let Some(error) = snapshot.diagnostics().into_iter().find(mesh_config::Diagnostic::is_error) {
        return Err(error.to_string());
    }
    let mut vocabulary = Vocabulary::empty();
    let mut found = false;
    for object in snapshot.mixer.iter().filter(|object| object.spec.kind == "attributemanifest") {
        found = true;
        let problems = Problems::default();
        let declared = crate::config::manifest(&Fields::new(&object.spec.spec, "spec", &problems));
        if let Some(problem) = problems.take().into_iter().find(|problem| problem.fatal) {
            return Err(format!("{}: {}: {}", object.meta.origin, problem.field, problem.why));
        }
        for (name, kind) in declared {
            vocabulary.declare(&name, kind).map_err(|error| format!("{}: {error}", object.meta.origin))?;
        }
    }
    if found { Ok(vocabulary) } else { Err(format!("{file}: holds no attributemanifest")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"
apiVersion: config.istio.io/v1alpha2
kind: attributemanifest
metadata: {name: test}
spec:
  attributes:
    as: {valueType: STRING, description: text}
    ar: {value_type: STRING_MAP}
    adur: {valueType: DURATION}
    absent: {valueType: STRING}
"#;

    #[test]
    fn prints_type_value_and_references() {
        let attributes = r#"{"as": "x", "ar": {"key": "v"}, "adur": "19ms", "unknown": 1}"#;
        let run = |expression: &str| evaluate(MANIFEST, "m.yaml", attributes, expression);
        let got = run(r#"(absent | as) + ar["key"]"#).expect("evaluates");
        assert_eq!(
            got.to_string(),
            r#"{"type":"STRING","value":"xv","referenced":["-absent","as","ar[key]"]}"#
        );
        assert_eq!(run("adur").expect("evaluates")["value"], "19ms");
        assert_eq!(run("absent"), Err("lookup failed: 'absent'".to_owned()));
        assert_eq!(run("nope"), Err("unknown attribute nope".to_owned()));
        assert_eq!(run("-1"), Err("unknown function: SUB".to_owned()));
    }

    #[test]
    fn says_what_is_wrong_with_its_files() {
        let error = |manifest: &str, attributes: &str| {
            evaluate(manifest, "m.yaml", attributes, "as").expect_err("wrong")
        };
        assert_eq!(error("", "{}"), "m.yaml: holds no attributemanifest");
        assert_eq!(error(MANIFEST, "[]"), "attributes: must be a JSON object from name to value");
        assert_eq!(error(MANIFEST, r#"{"as": 1}"#), "attributes: as: expected text for STRING, got 1");
        let broken = MANIFEST.replace("DURATION", "SOON");
        assert!(error(&broken, "{}").contains("spec.attributes.adur.valueType: must be one of STRING"));
    }
}
