//! The sample author's own files, unchanged: each reads without an error and means what its author meant.

use mesh_config::kinds::MutualTlsMode;
use mesh_config::{Diagnostic, Snapshot};
use std::path::PathBuf;

/// The sample lives beside the workspace, not in it; without it these tests have nothing to read.
fn sample(path: &str) -> Option<Snapshot> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/espresso-shop");
    let file = root.join(path);
    if !root.is_dir() {
        eprintln!("ignored: no {} here", root.display());
        return None;
    }
    Some(Snapshot::load(&[file]).expect("the sample has this file"))
}

#[test]
fn every_file_reads_without_an_error() {
    let Some(all) = sample("") else { return };
    let findings = all.diagnostics();
    let errors: Vec<_> = findings.iter().filter(|d| d.is_error()).map(Diagnostic::to_string).collect();
    assert_eq!(errors, Vec::<String>::new());
    assert_eq!(all.services.len(), 3);
    assert_eq!(all.virtual_services.len(), 4);
    assert_eq!(all.destination_rules.len(), 3);
    assert!(all.other.get("default", "Deployment.apps/espresso-shop-reviews-v2").is_some());
    for d in &findings {
        eprintln!("{d:#}");
    }
}

#[test]
fn fault_and_delay_keep_their_whole_percent() {
    let Some(snap) = sample("istio/fault.yaml") else { return };
    let vs = snap.virtual_services.get("default", "espresso-shop-reviews").expect("is there");
    let abort = vs.spec.http[0].fault.as_ref().and_then(|f| f.abort.as_ref()).expect("has an abort");
    assert_eq!((abort.share(), abort.http_status), (100.0, Some(500)));
    let Some(snap) = sample("istio/delay.yaml") else { return };
    let vs = snap.virtual_services.get("default", "espresso-shop-reviews").expect("is there");
    let delay = vs.spec.http[0].fault.as_ref().and_then(|f| f.delay.as_ref()).expect("has a delay");
    assert_eq!((delay.share(), delay.fixed_delay.map(|d| d.as_secs())), (100.0, Some(10)));
}

#[test]
fn the_circuit_breaker_counts_gateway_errors() {
    let Some(snap) = sample("istio/circuit-breaker.yaml") else { return };
    let rule = snap.destination_rules.get("default", "espresso-shop-reviews").expect("is there");
    let policy = rule.spec.traffic_policy.as_ref().expect("has a policy");
    let outlier = policy.outlier_detection.as_ref().expect("has outlier detection");
    assert_eq!(outlier.consecutive_errors, Some(2));
    assert_eq!(outlier.base_ejection_time.map(|d| d.to_string()), Some("3m0s".to_owned()));
    let warned =
        snap.diagnostics().iter().any(|d| d.field == "spec.trafficPolicy.outlierDetection.consecutiveErrors");
    assert!(warned, "a legacy field is reported");
}

#[test]
fn the_legacy_policy_is_permissive() {
    let Some(snap) = sample("istio/security/tls-migration.yaml") else { return };
    let policy = snap.policies.get("default", "example-espresso-shop-permissive").expect("is there");
    assert_eq!(policy.spec.transport(), MutualTlsMode::Permissive);
    assert_eq!(policy.spec.targets[0].name, "espresso-shop-product-catalog-svc");
}

#[test]
fn a_null_match_is_no_match_and_a_null_spec_is_empty() {
    let Some(snap) = sample("istio/gateway.yaml") else { return };
    let vs = snap.virtual_services.get("default", "espresso-shop").expect("is there");
    assert!(vs.spec.http[0].r#match.is_empty());
    let Some(snap) = sample("istio/policy/mixer-rule-deny-label.yaml") else { return };
    let nothing = snap.mixer.get("default", "deny-reviews-v2-request.checknothing").expect("is there");
    assert_eq!(nothing.spec.spec, serde_json::json!({}));
    assert_eq!(snap.mixer.get("default", "deny-reviews.rule").expect("is there").spec.kind, "rule");
}
