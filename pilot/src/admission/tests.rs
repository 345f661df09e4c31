//! What the webhook answers.

use super::*;

fn review(operation: &str, object: &Value, old: &Value) -> Value {
    answer(&json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": { "uid": "u-1", "operation": operation, "namespace": "shop", "object": object, "oldObject": old },
    }))
    .expect("it is a review")
}

fn gateway(spec: &Value) -> Value {
    json!({ "apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": { "name": "edge" }, "spec": spec })
}

#[test]
fn an_error_refuses_with_its_field_and_a_warning_is_passed_on() {
    let answer = review("CREATE", &gateway(&json!({ "servers": [] })), &Value::Null);
    assert_eq!(answer["response"]["uid"], "u-1");
    assert_eq!(answer["response"]["allowed"], false);
    assert_eq!(answer["response"]["status"]["code"], 422);
    let message = answer["response"]["status"]["message"].as_str().expect("a message");
    assert_eq!(message, "spec.servers: is empty: write at least one server");
    assert_eq!(answer["response"]["status"]["details"]["causes"][0]["field"], "spec.servers");
    let warning = answer["response"]["warnings"][0].as_str().expect("a warning");
    assert!(warning.starts_with("spec.selector: is empty"), "{warning}");
}

#[test]
fn what_is_gone_or_unchanged_or_only_a_status_passes() {
    let bad = gateway(&json!({ "servers": [] }));
    let mut leaving = bad.clone();
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let mut other = bad.clone();
    other["spec"]["selector"] = json!({ "a": "b" });
    for (operation, object, old, allowed) in [
        ("UPDATE", &bad, &bad, true),
        ("UPDATE", &leaving, &other, true),
        ("UPDATE", &bad, &other, false),
        ("CREATE", &bad, &Value::Null, false),
        ("DELETE", &Value::Null, &bad, true),
        ("CONNECT", &bad, &Value::Null, true),
    ] {
        let answer = review(operation, object, old);
        assert_eq!(answer["response"]["allowed"], allowed, "{operation} {object}");
    }
    let mut request =
        json!({ "operation": "UPDATE", "subResource": "status", "object": bad, "oldObject": other });
    assert!(judge(&request).errors.is_empty());
    request["subResource"] = json!("");
    assert!(!judge(&request).errors.is_empty());
}

#[test]
fn an_unchanged_bad_object_is_told_that_it_is_not_in_force() {
    let bad = gateway(&json!({ "servers": [], "selector": { "a": "b" } }));
    let answer = review("UPDATE", &bad, &bad);
    assert_eq!(
        answer["response"]["warnings"],
        json!(["already stored, but not in force: spec.servers: is empty: write at least one server"])
    );
}

#[test]
fn generated_names_and_the_requests_namespace_are_filled_in() {
    let object = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": { "generateName": "r-" },
        "spec": { "hosts": ["r"], "http": [{ "route": [{ "destination": { "host": "r" } }] }] },
    });
    assert_eq!(review("CREATE", &object, &Value::Null)["response"], json!({ "uid": "u-1", "allowed": true }));
}

#[test]
fn what_is_no_review_is_refused_with_the_reason() {
    for (body, want) in [
        (json!({}), "not an admission.k8s.io AdmissionReview"),
        (json!({ "kind": "AdmissionReview", "apiVersion": "v1" }), "not an admission.k8s.io AdmissionReview"),
        (
            json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": {} }),
            "no request.uid",
        ),
    ] {
        assert!(answer(&body).expect_err("no review").contains(want), "{body}");
    }
}

#[test]
fn warnings_stay_within_what_the_api_server_passes_on() {
    let long = vec!["ä".repeat(400); 40];
    let kept = fitting(long);
    assert!(kept.iter().all(|w| w.len() <= WARNING_BYTES), "{:?}", kept.iter().map(String::len).max());
    assert!(kept.iter().map(String::len).sum::<usize>() <= WARNINGS_BYTES);
    assert!(kept.last().is_some_and(|w| w.starts_with("and ") && w.contains("more warning")), "{kept:?}");
}
