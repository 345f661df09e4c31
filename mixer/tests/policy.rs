//! Policy from configuration to answer, over ext_authz and over `istio.mixer.v1`.
//!
//! In: YAML as people apply it. Out: verdicts. Kept true: the denier sample answers exactly as Istio's.
//! Not here: the proxy's side of it (`e2e`).

mod common;

use std::collections::HashMap;

use common::{POLICY, authz_request, mixer, pods};
use envoy_types::pb::envoy::service::auth::v3::{
    CheckResponse, authorization_server::Authorization, check_response::HttpResponse,
};
use mixer::{core::Mixer, ingest::authz::AuthzService, ingest::mixer::MixerService};
use mixer_api::{
    codec::{self, Attributes, WireValue},
    v1::{CheckRequest, mixer_server::Mixer as _},
};
use std::sync::Arc;
use tonic::Request;

const WEB: &str = "10.0.0.1";
const TEST: &str = "10.0.0.2";
const PRINCIPAL: &str = "spiffe://cluster.local/ns/default/sa/default";

async fn ask(mixer: &Arc<Mixer>, ip: &str, principal: &str, headers: &[(&str, &str)]) -> CheckResponse {
    let extensions =
        [("destination.uid", "kubernetes://reviews-v2-1.default"), ("context.reporter.kind", "inbound")];
    let request = authz_request(ip, principal, headers, &extensions);
    AuthzService(mixer.clone()).check(Request::new(request)).await.expect("an answer").into_inner()
}

fn outcome(response: &CheckResponse) -> (i32, i32, &str) {
    let code = response.status.as_ref().map_or(-1, |status| status.code);
    match &response.http_response {
        Some(HttpResponse::DeniedResponse(denied)) => {
            (code, denied.status.as_ref().map_or(0, |status| status.code), &denied.body)
        }
        _ => (code, 200, ""),
    }
}

#[tokio::test]
async fn the_denier_sample_refuses_web_to_reviews_v2_with_istios_code_and_body() {
    let mixer = mixer(&[&pods(), POLICY]);
    let denied = ask(&mixer, WEB, PRINCIPAL, &[]).await;
    let body = "PERMISSION_DENIED:deny-reviews-v2-handler.denier.default:Not allowed";
    assert_eq!(outcome(&denied), (7, 403, body));
    let status = denied.status.expect("a status");
    assert_eq!(status.message, "deny-reviews-v2-handler.denier.default:Not allowed");
    let metadata = denied.dynamic_metadata.expect("how long the verdict holds");
    assert!(metadata.fields.contains_key("valid_seconds"), "{metadata:?}");
}

#[tokio::test]
async fn any_other_caller_passes() {
    let mixer = mixer(&[&pods(), POLICY]);
    for (ip, principal, headers, why) in [
        (TEST, PRINCIPAL, vec![], "a second pod with the same service account and other labels"),
        (
            TEST,
            PRINCIPAL,
            vec![("x-istio-attributes", "source.labels=app:espresso-shop-web")],
            "a forged header",
        ),
        (WEB, "spiffe://cluster.local/ns/default/sa/other", vec![], "web's address with another identity"),
        (WEB, "", vec![], "web's address without identity"),
        ("10.9.9.9", PRINCIPAL, vec![], "an address that no pod has"),
    ] {
        let answer = ask(&mixer, ip, principal, &headers).await;
        assert_eq!(outcome(&answer), (0, 200, ""), "{why}");
    }
}

#[tokio::test]
async fn a_rule_of_another_namespace_does_not_apply_and_one_of_istio_system_does() {
    let elsewhere = POLICY.replace("metadata:\n", "metadata:\n  namespace: other\n");
    assert_eq!(outcome(&ask(&mixer(&[&pods(), &elsewhere]), WEB, PRINCIPAL, &[]).await), (0, 200, ""));
    let global = POLICY.replace("metadata:\n", "metadata:\n  namespace: istio-system\n");
    let body = "PERMISSION_DENIED:deny-reviews-v2-handler.denier.istio-system:Not allowed";
    assert_eq!(outcome(&ask(&mixer(&[&pods(), &global]), WEB, PRINCIPAL, &[]).await), (7, 403, body));
}

#[tokio::test]
async fn both_config_styles_give_the_same_verdict() {
    let new_style = r#"
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: deny}
spec: {compiledAdapter: denier, params: {status: {code: 16, message: who are you}}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {name: nothing}
spec: {compiledTemplate: checknothing}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: deny}
spec:
  match: source.labels["app"] == "espresso-shop-web"
  actions: [{handler: deny, instances: [nothing]}]
"#;
    let mixer = mixer(&[&pods(), new_style]);
    assert_eq!(mixer.generation().diagnostics, []);
    let answer = ask(&mixer, WEB, PRINCIPAL, &[]).await;
    assert_eq!(outcome(&answer), (16, 401, "UNAUTHENTICATED:deny.handler.default:who are you"));
}

#[tokio::test]
async fn the_first_refusal_gives_the_code_and_all_give_their_words() {
    let two = r#"
apiVersion: config.istio.io/v1alpha2
kind: denier
metadata: {name: a}
spec: {status: {code: 5, message: first}}
---
apiVersion: config.istio.io/v1alpha2
kind: denier
metadata: {name: b}
---
apiVersion: config.istio.io/v1alpha2
kind: checknothing
metadata: {name: c}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: deny}
spec:
  actions:
  - {handler: a.denier, instances: [c.checknothing]}
  - {handler: b.denier.default, instances: [c.checknothing.default]}
"#;
    let answer = ask(&mixer(&[&pods(), two]), WEB, PRINCIPAL, &[]).await;
    assert_eq!(outcome(&answer), (5, 404, "NOT_FOUND:a.denier.default:first, b.denier.default:"));
}

fn attributes(ip: [u8; 4], principal: &str) -> Attributes {
    Attributes::from([
        ("context.reporter.kind".to_owned(), "inbound".into()),
        ("source.ip".to_owned(), WireValue::ip(ip.into())),
        ("source.principal".to_owned(), principal.into()),
        ("destination.uid".to_owned(), "kubernetes://reviews-v2-1.default".into()),
        ("request.path".to_owned(), "/api/reviews/1".into()),
    ])
}

async fn check(mixer: &Arc<Mixer>, attributes: &Attributes) -> (i32, String, i32, Vec<String>) {
    let request = CheckRequest {
        attributes: Some(codec::encode(attributes)),
        global_word_count: 200,
        deduplication_id: String::new(),
        quotas: HashMap::new(),
    };
    let answer =
        MixerService(mixer.clone()).check(Request::new(request)).await.expect("an answer").into_inner();
    let result = answer.precondition.expect("a precondition");
    let status = result.status.expect("a status");
    let references = result.referenced_attributes.expect("references");
    let word = |index: i32| match usize::try_from(-i64::from(index) - 1) {
        Ok(at) => references.words[at].clone(),
        Err(_) => mixer_api::dictionary::word(index).expect("a global word").to_owned(),
    };
    let names = references.attribute_matches.iter().map(|found| {
        format!(
            "{}[{}]{}",
            word(found.name),
            word(found.map_key),
            if found.condition == 1 { "-" } else { "" }
        )
    });
    (status.code, status.message, result.valid_use_count, names.collect())
}

#[tokio::test]
async fn check_over_istio_mixer_v1_gives_code_validity_and_references() {
    let mixer = mixer(&[&pods(), POLICY]);
    let principal = "cluster.local/ns/default/sa/default";
    let (code, message, uses, names) = check(&mixer, &attributes([10, 0, 0, 1], principal)).await;
    assert_eq!(
        (code, message.as_str(), uses),
        (7, "deny-reviews-v2-handler.denier.default:Not allowed", 1_000)
    );
    assert!(names.contains(&"source.labels[app]".to_owned()), "{names:?}");
    let mut forged = attributes([10, 0, 0, 2], principal);
    let label = WireValue::StringMap([("app".to_owned(), "espresso-shop-web".to_owned())].into());
    forged.insert("source.labels".to_owned(), label);
    let (code, _, uses, _) = check(&mixer, &forged).await;
    assert_eq!((code, uses), (0, 10_000), "labels come from the pod, not from the wire");
}

#[tokio::test]
async fn a_client_with_a_longer_dictionary_is_told_so() {
    let request = CheckRequest { global_word_count: 100_000, ..Default::default() };
    let error = MixerService(mixer(&[])).check(Request::new(request)).await.expect_err("refused");
    assert_eq!(error.code(), tonic::Code::Internal);
    assert!(error.message().starts_with("inconsistent global dictionary versions"));
}

#[tokio::test]
async fn a_broken_rule_is_named_and_takes_nothing_else_down() {
    let broken = r#"
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: broken}
spec:
  match: source.nope == 2
  actions: [{handler: nobody, instances: [nothing.checknothing]}]
---
apiVersion: config.istio.io/v1alpha2
kind: fluentd
metadata: {name: logs}
"#;
    let mixer = mixer(&[&pods(), POLICY, broken]);
    let said: Vec<String> = mixer.generation().diagnostics.iter().map(ToString::to_string).collect();
    for part in [
        "rule default/broken: spec.match: unknown attribute source.nope",
        "rule default/broken: spec.actions[0].handler: no handler \"nobody\"",
        "fluentd default/logs: kind: no adapter \"fluentd\" in this mixer",
    ] {
        assert!(said.iter().any(|line| line.contains(part)), "{part}\nis not in\n{said:#?}");
    }
    assert_eq!(outcome(&ask(&mixer, WEB, PRINCIPAL, &[]).await).1, 403);
}

const QUOTA: &str = r#"
apiVersion: config.istio.io/v1alpha2
kind: memquota
metadata: {name: handler}
spec: {quotas: [{name: calls.quota.default, maxAmount: 2, validDuration: 60s}]}
---
apiVersion: config.istio.io/v1alpha2
kind: quota
metadata: {name: calls}
spec: {dimensions: {source: 'source.labels["app"] | "unknown"'}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: quota}
spec: {actions: [{handler: handler.memquota, instances: [calls.quota]}]}
---
apiVersion: config.istio.io/v1alpha2
kind: QuotaSpec
metadata: {name: calls}
spec: {rules: [{quotas: [{charge: 1, quota: calls}]}]}
---
apiVersion: config.istio.io/v1alpha2
kind: QuotaSpecBinding
metadata: {name: calls}
spec: {quotaSpecs: [{name: calls, namespace: default}], services: [{service: '*'}]}
"#;

#[tokio::test]
async fn a_bound_quota_refuses_over_ext_authz_when_it_is_used_up() {
    let mixer = mixer(&[&pods(), QUOTA]);
    assert_eq!(mixer.generation().diagnostics, []);
    for want in [200, 200, 429, 429] {
        assert_eq!(outcome(&ask(&mixer, WEB, PRINCIPAL, &[]).await).1, want);
    }
    let answer = ask(&mixer, WEB, PRINCIPAL, &[]).await;
    assert!(outcome(&answer).2.starts_with("RESOURCE_EXHAUSTED:handler.memquota.default:Quota is exhausted"));
    assert_eq!(outcome(&ask(&mixer, TEST, PRINCIPAL, &[]).await).1, 200, "another client has its own count");
}

#[tokio::test]
async fn istios_own_attribute_generator_rule_works_unchanged() {
    let generator = r#"
apiVersion: config.istio.io/v1alpha2
kind: handler
metadata: {name: kubernetesenv, namespace: istio-system}
spec: {compiledAdapter: kubernetesenv, params: {}}
---
apiVersion: config.istio.io/v1alpha2
kind: instance
metadata: {name: attributes, namespace: istio-system}
spec:
  compiledTemplate: kubernetes
  params:
    source_uid: source.uid | ""
    source_ip: source.ip | ip("0.0.0.0")
    destination_uid: destination.uid | ""
    destination_port: destination.port | 0
  attributeBindings:
    source.labels: $out.source_labels | emptyStringMap()
    source.workload.name: $out.source_workload_name | "unknown"
    destination.labels: $out.destination_labels | emptyStringMap()
    destination.owner: $out.destination_owner | "nobody"
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: kubeattrgenrulerule, namespace: istio-system}
spec: {actions: [{handler: kubernetesenv, instances: [attributes]}]}
---
apiVersion: config.istio.io/v1alpha2
kind: denier
metadata: {name: unknown-clients}
---
apiVersion: config.istio.io/v1alpha2
kind: checknothing
metadata: {name: nothing}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: unknown-clients}
spec:
  match: source.workload.name == "unknown" && destination.owner == "kubernetes://apis/apps/v1/namespaces/default/deployments/espresso-shop-reviews-v2"
  actions: [{handler: unknown-clients.denier, instances: [nothing.checknothing]}]
"#;
    let mixer = mixer(&[&pods(), generator]);
    assert_eq!(mixer.generation().diagnostics, []);
    assert_eq!(outcome(&ask(&mixer, WEB, PRINCIPAL, &[]).await).1, 200);
    assert_eq!(outcome(&ask(&mixer, "10.9.9.9", PRINCIPAL, &[]).await).1, 412);
}

#[tokio::test]
async fn a_rule_may_change_headers() {
    let rule = r#"
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: headers}
spec:
  match: request.method == "GET"
  requestHeaderOperations:
  - {name: X-Source, values: ['source.labels["app"]'], operation: REPLACE}
  - {name: x-secret, operation: REMOVE}
  responseHeaderOperations:
  - {name: x-mixer, values: ['"was here"'], operation: APPEND}
"#;
    let mixer = mixer(&[&pods(), rule]);
    assert_eq!(mixer.generation().diagnostics, []);
    let answer = ask(&mixer, WEB, PRINCIPAL, &[]).await;
    let Some(HttpResponse::OkResponse(ok)) = answer.http_response else { panic!("passes") };
    let header = ok.headers[0].header.as_ref().expect("a header");
    assert_eq!((header.key.as_str(), header.value.as_str()), ("x-source", "espresso-shop-web"));
    assert_eq!(ok.headers_to_remove, ["x-secret"]);
    assert_eq!(ok.response_headers_to_add.len(), 1);
}

#[tokio::test]
async fn a_rule_that_is_edited_into_a_broken_one_stays_as_it_was_and_ends_when_it_is_removed() {
    let mixer = mixer(&[&pods(), POLICY]);
    for (good, bad) in [
        ("== \"espresso-shop-reviews\"", "== 2"),
        ("code: 7", "code: 99"),
        ("source.labels[\"app\"]==", "source.nothing["),
    ] {
        mixer.replace(&common::snapshot(&[&pods(), &POLICY.replace(good, bad)]));
        assert!(mixer.generation().diagnostics.iter().any(mesh_config::Diagnostic::is_error), "{bad}");
        assert_eq!(outcome(&ask(&mixer, WEB, PRINCIPAL, &[]).await).1, 403, "{bad}");
    }
    let handler_gone = POLICY.replace("name: deny-reviews-v2-handler", "name: renamed");
    mixer.replace(&common::snapshot(&[&pods(), &handler_gone]));
    assert_eq!(
        outcome(&ask(&mixer, WEB, PRINCIPAL, &[]).await).1,
        200,
        "a handler that is gone denies no more"
    );
    mixer.replace(&common::snapshot(&[&pods()]));
    assert_eq!(mixer.generation().diagnostics, []);
    assert_eq!(outcome(&ask(&mixer, WEB, PRINCIPAL, &[]).await).1, 200);
}
