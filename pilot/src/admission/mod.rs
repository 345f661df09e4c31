//! The validating webhook: may this object be stored, and what should its author know?
//!
//! In: an AdmissionReview with one of our kinds. Out: the review's answer: errors refuse, everything else is a warning.
//! Kept true: nothing is refused that `pilot validate` accepts; an object that is left as it was or is going away
//! always passes. Not here: TLS and HTTP (`server`), what makes an error (`mesh_config::validate`).

pub mod register;
pub mod server;

#[cfg(test)]
mod tests;

use mesh_config::{Diagnostic, parse};
use serde_json::{Value, json};

/// Longest warning, in bytes: Kubernetes cuts longer ones where it likes.
const WARNING_BYTES: usize = 256;
/// Most bytes of all warnings; what is beyond would be dropped without a word.
const WARNINGS_BYTES: usize = 4096;

/// What is said about one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Why it cannot be meant, with the fields; empty when it may be stored.
    pub errors: Vec<Finding>,
    /// What its author should know.
    pub warnings: Vec<String>,
}

/// One reason of a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Path of the field, empty for the whole object.
    pub field: String,
    /// What is wrong and how to mend it.
    pub why: String,
}

/// Answers one AdmissionReview.
///
/// # Errors
/// When it is no AdmissionReview with a request; the text says what is missing.
pub fn answer(review: &Value) -> Result<Value, String> {
    let text = |path: &str| review.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let version = text("/apiVersion");
    if text("/kind") != "AdmissionReview" || !version.starts_with("admission.k8s.io/") {
        return Err("the body is not an admission.k8s.io AdmissionReview\n".to_owned());
    }
    let uid = text("/request/uid");
    if uid.is_empty() {
        return Err("the review has no request.uid\n".to_owned());
    }
    let verdict = judge(&review["request"]);
    let mut response = json!({ "uid": uid, "allowed": verdict.errors.is_empty() });
    if !verdict.errors.is_empty() {
        let message: Vec<_> = verdict.errors.iter().map(Finding::line).collect();
        let cause =
            |f: &Finding| json!({ "reason": "FieldValueInvalid", "field": f.field, "message": f.why });
        // With kind, name and causes kubectl writes it as it writes the refusals of schemas.
        response["status"] = json!({
            "code": 422, "reason": "Invalid", "message": message.join("; "),
            "details": {
                "group": text("/request/kind/group"), "kind": text("/request/kind/kind"),
                "name": text("/request/name"),
                "causes": verdict.errors.iter().map(cause).collect::<Vec<_>>(),
            },
        });
    }
    if !verdict.warnings.is_empty() {
        response["warnings"] = json!(verdict.warnings);
    }
    Ok(json!({ "apiVersion": version, "kind": "AdmissionReview", "response": response }))
}

/// Judges the object of a review's request.
pub fn judge(request: &Value) -> Verdict {
    let operation = request.get("operation").and_then(Value::as_str).unwrap_or_default();
    let part_of_it = request.get("subResource").and_then(Value::as_str).is_some_and(|s| !s.is_empty());
    let Some(object) = request.get("object").filter(|o| o.is_object()) else { return Verdict::default() };
    if !matches!(operation, "CREATE" | "UPDATE") || part_of_it {
        return Verdict::default();
    }
    let found = findings(object, request.get("namespace").and_then(Value::as_str));
    let (errors, warnings): (Vec<_>, Vec<_>) = found.into_iter().partition(Diagnostic::is_error);
    let mut warnings: Vec<_> = warnings.iter().map(line).collect();
    // Whoever stored a bad object before we were asked must still be able to label it, and to let it go.
    let leaving = object.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null());
    let old = request.get("oldObject").filter(|o| o.is_object());
    let same = old.is_some_and(|old| old.get("spec") == object.get("spec"));
    let errors: Vec<_> = errors.into_iter().map(|d| Finding { field: d.field, why: d.why }).collect();
    if operation == "UPDATE" && (leaving || same) {
        warnings.extend(errors.iter().map(|e| format!("already stored, but not in force: {}", e.line())));
        return Verdict { errors: Vec::new(), warnings: fitting(warnings) };
    }
    Verdict { errors, warnings: fitting(warnings) }
}

fn findings(object: &Value, namespace: Option<&str>) -> Vec<Diagnostic> {
    let mut object = object.clone();
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        if let (None, Some(namespace)) = (meta.get("namespace"), namespace.filter(|n| !n.is_empty())) {
            meta.insert("namespace".to_owned(), json!(namespace));
        }
        // The API server gives the name after admission.
        let prefix = meta.get("generateName").and_then(Value::as_str).map(str::to_owned);
        if let (None, Some(prefix)) = (meta.get("name"), prefix) {
            meta.insert("name".to_owned(), json!(format!("{prefix}x")));
        }
    }
    parse::parse_json("review", &object).diagnostics
}

impl Finding {
    fn line(&self) -> String {
        if self.field.is_empty() { self.why.clone() } else { format!("{}: {}", self.field, self.why) }
    }
}

fn line(d: &Diagnostic) -> String {
    if d.field.is_empty() { d.why.clone() } else { format!("{}: {}", d.field, d.why) }
}

/// Warnings as far as the API server passes them on; the last one says that there are more.
fn fitting(warnings: Vec<String>) -> Vec<String> {
    let (mut kept, mut bytes, count) = (Vec::new(), 0, warnings.len());
    for mut warning in warnings {
        if warning.len() > WARNING_BYTES {
            let cut = (0..=WARNING_BYTES - 3).rev().find(|at| warning.is_char_boundary(*at)).unwrap_or(0);
            warning.truncate(cut);
            warning.push('…');
        }
        if bytes + warning.len() > WARNINGS_BYTES - WARNING_BYTES {
            kept.push(format!("and {} more warning(s): run pilot validate", count - kept.len()));
            break;
        }
        bytes += warning.len();
        kept.push(warning);
    }
    kept
}
