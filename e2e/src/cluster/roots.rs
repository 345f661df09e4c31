//! A new root for the mesh, by the three steps that operators are told.
//!
//! In: the Secret that citadel made. Out: a mesh under another root. Kept true: each step waits until every proxy has renewed because of it,
//! seen by its own counter. Not here: the load meanwhile (`disturb`).

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};

use super::{Cluster, SYSTEM};
use crate::{node::until, scenarios::shop::Metrics};

/// How long pods may take to see a changed ConfigMap and renew: the kubelet's period and jitter, the proxy's look, and room.
const RENEWED: Duration = Duration::from_secs(150);

/// Rotates.
///
/// # Errors
/// When a step is not taken up by every proxy.
pub async fn rotate(cluster: &Cluster) -> anyhow::Result<()> {
    let own = cluster.kubectl().get(&["-n", SYSTEM, "secret", "istio-ca-secret"]).await?;
    let part = |name: &str| -> anyhow::Result<String> {
        let text = own["data"][name].as_str().with_context(|| format!("istio-ca-secret has no {name}"))?;
        Ok(String::from_utf8(STANDARD.decode(text)?)?)
    };
    let (old, old_key) = (part("ca-cert.pem")?, part("ca-key.pem")?);
    let (new, new_key) = another_root()?;
    // The other order is another bundle: everybody renews at once, and not half a life later.
    let (both, turned) = (format!("{old}{new}"), format!("{new}{old}"));
    let steps = [(&old, &old_key, &both), (&new, &new_key, &turned), (&new, &new_key, &new)];
    for (number, (cert, key, roots)) in (1..).zip(steps) {
        let before = renewals(cluster).await?;
        let data =
            json!({ "ca-cert.pem": cert, "ca-key.pem": key, "cert-chain.pem": "", "root-cert.pem": roots });
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "cacerts", "namespace": SYSTEM },
            "type": "Opaque", "stringData": data,
        });
        cluster.kubectl().apply(&secret.to_string()).await?;
        let all = || async {
            let now = renewals(cluster).await.unwrap_or_default();
            !before.is_empty() && before.iter().all(|(pod, n)| now.get(pod).is_some_and(|m| m > n))
        };
        until(RENEWED, all, || format!("step {number}: not every proxy has renewed")).await?;
    }
    Ok(())
}

/// How often each proxy of namespace `default` has renewed, by pod.
async fn renewals(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut all = BTreeMap::new();
    for pod in cluster.kubectl().list(&["-n", "default", "pods"]).await? {
        let at = |path: &str| pod.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (name, ip) = (at("/metadata/name"), at("/status/podIP"));
        if ip.is_empty() || pod.pointer("/metadata/deletionTimestamp").is_some() {
            continue;
        }
        let text = cluster.outside().get(&format!("http://{ip}:15090/stats/prometheus")).send().await?.body;
        let count = Metrics::read(&text).sum("crema_certificate_renewals_total", &[]);
        // A counter of a few.
        all.insert(name, format!("{count:.0}").parse().unwrap_or(0));
    }
    Ok(all)
}

fn another_root() -> anyhow::Result<(String, String)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "another root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}
