//! The sample author's own files, unchanged: each reads without an error and means what its author meant.
//!
//! The sample lives beside the workspace, not in it; without it these tests show as ignored.

use libtest_mimic::{Arguments, Failed, Trial};
use mesh_config::kinds::{Abort, Delay, MutualTlsMode, VirtualService};
use mesh_config::{Diagnostic, Snapshot};
use std::path::{Path, PathBuf};

const FILES: [&str; 13] = [
    "kubernetes/espresso-shop.yaml",
    "istio/80-20.yaml",
    "istio/all-destination-rules.yaml",
    "istio/all-virtual-services.yaml",
    "istio/browser-based-routing.yaml",
    "istio/circuit-breaker.yaml",
    "istio/delay.yaml",
    "istio/fault.yaml",
    "istio/gateway.yaml",
    "istio/policy/mixer-rule-deny-label.yaml",
    "istio/security/tls-migration.yaml",
    "istio/timeout.yaml",
    "istio/user-based-routing.yaml",
];

type Check = fn(&Path) -> Result<(), Failed>;

fn main() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/espresso-shop");
    let absent = !root.is_dir();
    let tests: [(&str, Check); 6] = [
        ("every_file_reads_without_an_error", every_file_reads_without_an_error),
        ("fault_and_delay_keep_their_whole_percent", fault_and_delay_keep_their_whole_percent),
        ("the_circuit_breaker_counts_gateway_errors", the_circuit_breaker_counts_gateway_errors),
        ("the_legacy_policy_is_permissive", the_legacy_policy_is_permissive),
        ("a_null_match_is_no_match_and_a_null_spec_is_empty", nulls),
        ("the_rest_of_the_routes_read_as_written", the_rest_of_the_routes_read_as_written),
    ];
    let trials = tests.into_iter().map(|(name, test)| {
        let root = root.clone();
        let name = if absent {
            format!("{name} (ignored: no sample beside the workspace)")
        } else {
            name.to_owned()
        };
        Trial::test(name, move || test(&root)).with_ignored_flag(absent)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

fn read(root: &Path, file: &str) -> Result<Snapshot, Failed> {
    Ok(Snapshot::load(&[root.join(file)])?)
}

fn route(root: &Path, file: &str) -> Result<VirtualService, Failed> {
    let snap = read(root, file)?;
    let vs = snap.virtual_services.get("default", "espresso-shop-reviews");
    Ok(vs.ok_or("no VirtualService espresso-shop-reviews")?.spec.clone())
}

fn every_file_reads_without_an_error(root: &Path) -> Result<(), Failed> {
    for file in FILES.into_iter().chain([""]) {
        let findings = read(root, file)?.diagnostics();
        let errors: Vec<_> = findings.iter().filter(|d| d.is_error()).map(Diagnostic::to_string).collect();
        assert_eq!(errors, Vec::<String>::new(), "{file}");
        let odd: Vec<_> =
            findings.iter().filter(|d| d.why.contains("unknown")).map(Diagnostic::to_string).collect();
        assert_eq!(odd, Vec::<String>::new(), "{file}");
    }
    let all = read(root, "")?;
    assert_eq!((all.services.len(), all.virtual_services.len(), all.destination_rules.len()), (3, 4, 3));
    assert!(all.other.get("default", "Deployment.apps/espresso-shop-reviews-v2").is_some());
    Ok(())
}

fn fault_and_delay_keep_their_whole_percent(root: &Path) -> Result<(), Failed> {
    let fault = route(root, "istio/fault.yaml")?.http[0].fault.clone().unwrap_or_default();
    let abort: Abort = fault.abort.ok_or("no abort")?;
    assert_eq!((abort.share(), abort.http_status), (100.0, Some(500)));
    let fault = route(root, "istio/delay.yaml")?.http[0].fault.clone().unwrap_or_default();
    let delay: Delay = fault.delay.ok_or("no delay")?;
    assert_eq!((delay.share(), delay.fixed_delay.map(|d| d.as_secs())), (100.0, Some(10)));
    Ok(())
}

fn the_circuit_breaker_counts_gateway_errors(root: &Path) -> Result<(), Failed> {
    let snap = read(root, "istio/circuit-breaker.yaml")?;
    let rule = snap.destination_rules.get("default", "espresso-shop-reviews").ok_or("no rule")?;
    let policy = rule.spec.traffic_policy.as_ref().ok_or("no policy")?;
    let outlier = policy.outlier_detection.as_ref().ok_or("no outlier detection")?;
    assert_eq!(outlier.consecutive_errors, Some(2));
    assert_eq!(outlier.base_ejection_time.map(|d| d.to_string()), Some("3m0s".to_owned()));
    let http = policy.connection_pool.as_ref().and_then(|p| p.http.as_ref()).ok_or("no http pool")?;
    assert_eq!((http.http1_max_pending_requests, http.max_requests_per_connection), (Some(1), Some(1)));
    let field = "spec.trafficPolicy.outlierDetection.consecutiveErrors";
    assert!(snap.diagnostics().iter().any(|d| d.field == field), "a legacy field is reported");
    Ok(())
}

fn the_legacy_policy_is_permissive(root: &Path) -> Result<(), Failed> {
    let snap = read(root, "istio/security/tls-migration.yaml")?;
    let policy = snap.policies.get("default", "example-espresso-shop-permissive").ok_or("no policy")?;
    assert_eq!(policy.spec.transport(), MutualTlsMode::Permissive);
    assert_eq!(policy.spec.targets[0].name, "espresso-shop-product-catalog-svc");
    Ok(())
}

fn nulls(root: &Path) -> Result<(), Failed> {
    let snap = read(root, "istio/gateway.yaml")?;
    let vs = snap.virtual_services.get("default", "espresso-shop").ok_or("no VirtualService")?;
    assert!(vs.spec.http[0].r#match.is_empty());
    let snap = read(root, "istio/policy/mixer-rule-deny-label.yaml")?;
    let nothing =
        snap.mixer.get("default", "deny-reviews-v2-request.checknothing").ok_or("no checknothing")?;
    assert_eq!(nothing.spec.spec, serde_json::json!({}));
    assert_eq!(snap.mixer.get("default", "deny-reviews.rule").ok_or("no rule")?.spec.kind, "rule");
    Ok(())
}

fn the_rest_of_the_routes_read_as_written(root: &Path) -> Result<(), Failed> {
    let split = route(root, "istio/80-20.yaml")?;
    assert_eq!(split.http[0].route.iter().map(|r| r.weight).collect::<Vec<_>>(), [Some(80), Some(20)]);
    let timeout = route(root, "istio/timeout.yaml")?.http[0].timeout;
    assert_eq!(timeout.map(|d| d.as_millis()), Some(500));
    for (file, header) in [("browser-based-routing", "User-Agent"), ("user-based-routing", "UserRole")] {
        let vs = route(root, &format!("istio/{file}.yaml"))?;
        assert!(vs.http[0].r#match[0].headers.contains_key(header), "{file}");
        assert_eq!(vs.http[1].route[0].destination.subset.as_deref(), Some("v1"), "{file}");
    }
    Ok(())
}
