//! What is shown for every pair of server mode and client rule.

use super::*;
use crate::model::tests::{model, pod, service};

#[test]
fn every_server_mode_against_every_client_rule() {
    let base = service("web", "{name: http, port: 80}")
        + &pod("web-1", "web", "v1", "10.1.0.1")
        + &pod("c", "c", "v1", "10.1.0.2");
    for (mode, rule, status, server, client) in [
        ("PERMISSIVE", None, "OK", "HTTP+mTLS", "mTLS"),
        ("PERMISSIVE", Some("ISTIO_MUTUAL"), "OK", "HTTP+mTLS", "mTLS"),
        ("PERMISSIVE", Some("DISABLE"), "OK", "HTTP+mTLS", "HTTP"),
        ("STRICT", None, "OK", "mTLS", "mTLS"),
        ("STRICT", Some("ISTIO_MUTUAL"), "OK", "mTLS", "mTLS"),
        ("STRICT", Some("DISABLE"), "CONFLICT", "mTLS", "HTTP"),
        ("DISABLE", None, "OK", "HTTP", "HTTP"),
        ("DISABLE", Some("ISTIO_MUTUAL"), "CONFLICT", "HTTP", "mTLS"),
        ("DISABLE", Some("DISABLE"), "OK", "HTTP", "HTTP"),
    ] {
        let mut yaml = base.clone()
            + &format!(
                "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: pa}}\nspec: {{mtls: \
                 {{mode: {mode}}}}}\n"
            );
        if let Some(tls) = rule {
            yaml += &format!(
                "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: dr}}\nspec: {{host: \
                 web, trafficPolicy: {{tls: {{mode: {tls}}}}}}}\n"
            );
        }
        let translator = Translator::new(model(&yaml));
        for client_pod in [None, Some("c"), Some("c.default")] {
            let rows = check(&translator, client_pod, Some("web.default.svc.cluster.local")).expect("known");
            let want = Row {
                host: "web.default.svc.cluster.local:80".to_owned(),
                status: status.to_owned(),
                server: server.to_owned(),
                client: client.to_owned(),
                authn_policy: "pa/default".to_owned(),
                destination_rule: if rule.is_some() { "dr/default" } else { "-" }.to_owned(),
            };
            assert_eq!(rows, [want], "{mode} {rule:?} {client_pod:?}");
        }
    }
}

#[test]
fn unknown_pods_and_services_are_named() {
    let translator = Translator::new(model(""));
    assert_eq!(check(&translator, Some("ghost"), None), Err("no pod ghost is known".to_owned()));
    let gone = check(&translator, None, Some("x.default.svc.cluster.local"));
    assert_eq!(gone, Err("no service x.default.svc.cluster.local is known".to_owned()));
}
