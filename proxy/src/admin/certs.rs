//! `/certs`: the certificate of this workload and the roots it trusts, in Envoy's shape.
//!
//! In: the certificate store. Out: JSON. Kept true: no key is in it. Not here: certificates in files and secrets of gateways (`dump`).

use std::time::SystemTime;

use axum::{Json, Router, routing::get};
use mesh_identity::{CertStore, credentials::LeafFacts, store::Identity};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The page.
pub fn routes(store: CertStore) -> Router {
    let page = async move || Json(certificates(store.current().as_ref(), SystemTime::now()));
    Router::new().route("/certs", get(page))
}

/// `{"certificates": [{"ca_cert": […], "cert_chain": […]}]}`; the list is empty before the first certificate.
fn certificates(identity: Option<&Identity>, now: SystemTime) -> Value {
    let list = |all: &[CertificateDer<'_>]| all.iter().map(|der| one(der, now)).collect::<Vec<_>>();
    let all = identity.map(|identity| {
        json!({
            "ca_cert": list(identity.bundle.roots()),
            "cert_chain": list(identity.credentials.chain()),
        })
    });
    json!({ "certificates": Vec::from_iter(all) })
}

fn one(der: &CertificateDer<'_>, now: SystemTime) -> Value {
    let facts = match LeafFacts::of("certificate", der) {
        Ok(facts) => facts,
        Err(error) => return json!({ "error": error.to_string() }),
    };
    const DAY: u64 = 24 * 3600;
    let at = |time: SystemTime| OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default();
    let names: Vec<_> = facts.id.iter().map(|id| json!({ "uri": id.to_string() })).collect();
    json!({
        "path": "<inline>",
        "serial_number": facts.serial,
        "subject_alt_names": names,
        // Numbers of 64 bits are texts in JSON of protobuf.
        "days_until_expiration": (facts.remaining(now).as_secs() / DAY).to_string(),
        "valid_from": at(facts.not_before),
        "expiration_time": at(facts.not_after),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_identity::testkit::TestCa;

    #[test]
    fn a_workloads_certificate_is_shown_with_its_roots_and_without_its_key() {
        assert_eq!(certificates(None, SystemTime::now()), json!({ "certificates": [] }));
        let web = "spiffe://cluster.local/ns/shop/sa/web";
        let identity = TestCa::new("root").store(web).current().expect("published");
        let all = certificates(Some(&identity), SystemTime::now());
        let shown = &all["certificates"][0];
        assert_eq!(shown["cert_chain"][0]["subject_alt_names"], json!([{ "uri": web }]));
        assert_eq!(shown["cert_chain"][0]["days_until_expiration"], "0", "valid for an hour");
        assert_eq!(shown["cert_chain"][0]["serial_number"], *identity.credentials.facts().serial);
        assert_eq!(shown["ca_cert"].as_array().map(Vec::len), Some(1));
        assert!(!all.to_string().to_lowercase().contains("key"), "{all}");
    }
}
