//! What counts as the same answer from both proxies, and the short list of intended differences.
//!
//! In: what was [`Seen`] of one probe on each side. Out: [`Difference`]s. Kept true: every exception stands in [`INTENDED`], with its reason.
//! Not here: sending (`send`).

use std::{collections::BTreeMap, fmt};

use super::{Case, upstream::Echo};

/// Everything seen of one request.
#[derive(Debug, Clone)]
pub struct Seen {
    /// HTTP status.
    pub status: u16,
    /// Response flags as logged, `-` for none.
    pub flags: String,
    /// The pod that answered; `None` when the proxy answered itself.
    pub pod: Option<String>,
    /// Value of `x-envoy-overloaded`.
    pub overloaded: Option<String>,
    /// Value of `location`.
    pub location: Option<String>,
    /// Body as text.
    pub body: String,
    /// The pod's answer, parsed.
    pub echo: Option<Echo>,
}

/// One disagreement.
#[derive(Debug, Clone)]
pub struct Difference {
    /// Case and the index of its probe.
    pub at: String,
    /// What differs.
    pub what: &'static str,
    /// Seen on Envoy.
    pub envoy: String,
    /// Seen on ours.
    pub crema: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: envoy {:?}, crema {:?}", self.at, self.what, self.envoy, self.crema)
    }
}

/// Request headers that may differ upstream, each with the reason.
pub const INTENDED: [(&str, &str); 9] = [
    ("x-b3-traceid", "drawn at random by each proxy"),
    ("x-b3-spanid", "drawn at random by each proxy"),
    ("x-b3-parentspanid", "drawn at random by each proxy"),
    ("x-b3-sampled", "each proxy draws its own sample"),
    ("x-request-id", "differs between any two requests"),
    ("traceparent", "drawn at random by each proxy"),
    ("x-envoy-expected-rq-timeout-ms", "only Envoy's own servers read it; we do not disclose timeouts"),
    (
        "x-envoy-peer-metadata",
        "Istio's filter for Envoy; our proxies identify pods by address and certificate",
    ),
    ("x-envoy-peer-metadata-id", "as x-envoy-peer-metadata"),
];

/// Compares one probe's answers: each field when it was sent once, shares when it was repeated.
#[must_use]
pub fn compare(case: &Case, probe: usize, envoy: &[Seen], crema: &[Seen]) -> Vec<Difference> {
    let at =
        format!("{} probe {probe} ({} {})", case.name, case.probes[probe].method, case.probes[probe].path);
    let mut found = Vec::new();
    if let ([envoy], [crema]) = (envoy, crema) {
        if sent_once_more(&case.probes[probe], envoy, crema) {
            return found;
        }
        for (what, view) in VIEWS {
            let (envoy, crema) = (view(envoy), view(crema));
            if envoy != crema {
                found.push(Difference { at: at.clone(), what, envoy, crema });
            }
        }
        if case.pods_differ_by_version() {
            let (envoy, crema) = (version(envoy), version(crema));
            if envoy != crema {
                found.push(Difference { at, what: "upstream", envoy, crema });
            }
        }
        return found;
    }
    let (left, right) = (shares(envoy), shares(crema));
    for key in left.keys().chain(right.keys().filter(|k| !left.contains_key(*k))) {
        let (a, b) = (*left.get(key).unwrap_or(&0), *right.get(key).unwrap_or(&0));
        if !alike(a, envoy.len(), b, crema.len()) {
            let (envoy, crema) = (format!("{key} × {a}"), format!("{key} × {b}"));
            found.push(Difference { at: at.clone(), what: "distribution", envoy, crema });
        }
    }
    found
}

/// Intended: an idempotent request whose reused connection ended without a byte of an answer is sent once more on a new one, whatever
/// the retry policy says (RFC 9110 §9.2.2); Envoy answers 503 UC, or counts it among the policy's retries.
fn sent_once_more(probe: &super::Probe, envoy: &Seen, crema: &Seen) -> bool {
    let second = crema.echo.as_ref().is_some_and(|echo| echo.attempt == 2);
    let other = envoy.flags == "UC" || envoy.echo.as_ref().is_some_and(|echo| echo.attempt == 2);
    probe.path.starts_with("/reset/") && probe.method == "GET" && crema.status == 200 && second && other
}

/// Flags as a set: Envoy prints them in the order in which they happened.
fn flags(seen: &Seen) -> String {
    let mut flags: Vec<&str> = seen.flags.split(',').collect();
    flags.sort_unstable();
    flags.join(",")
}

type View = fn(&Seen) -> String;

const VIEWS: [(&str, View); 6] = [
    ("status", |s| s.status.to_string()),
    ("flags", flags),
    ("body", body_class),
    ("x-envoy-overloaded", |s| s.overloaded.clone().unwrap_or_default()),
    ("location", |s| s.location.clone().unwrap_or_default()),
    ("request sent upstream", |s| s.echo.as_ref().map(upstream_request).unwrap_or_default()),
];

impl Case {
    /// With one request, the choice between equal replicas is chance; between versions it is configuration.
    fn pods_differ_by_version(&self) -> bool {
        self.yaml.contains("subset")
    }
}

fn version(seen: &Seen) -> String {
    seen.pod.as_deref().unwrap_or("none").split('-').next().unwrap_or_default().to_owned()
}

/// A pod's own answer, or the proxy's text without the operating system's words for why a connection failed.
fn body_class(seen: &Seen) -> String {
    match &seen.pod {
        Some(_) => "the pod's".to_owned(),
        None => seen.body.split(", transport failure reason").next().unwrap_or_default().to_owned(),
    }
}

/// The request as the pod got it: everything that configuration decides, sorted, without [`INTENDED`].
fn upstream_request(echo: &Echo) -> String {
    let mut headers: Vec<_> = echo
        .headers
        .iter()
        .filter(|(name, _)| INTENDED.iter().all(|(intended, _)| intended != name))
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    headers.sort();
    format!("{} {} attempt {} [{}]", echo.method, echo.path, echo.attempt, headers.join("; "))
}

fn shares(seen: &[Seen]) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for one in seen {
        *shares.entry(format!("{} {} {}", one.status, flags(one), version(one))).or_default() += 1;
    }
    shares
}

/// True when two counts may come from the same probability: within five standard deviations of their difference.
fn alike(a: usize, of_a: usize, b: usize, of_b: usize) -> bool {
    let to = |n: usize| u32::try_from(n).map(f64::from).unwrap_or(f64::MAX);
    let (a, n, b, m) = (to(a), to(of_a), to(b), to(of_b));
    let pooled = (a + b) / (n + m);
    let sigma = (pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m)).sqrt();
    (a / n - b / m).abs() <= 5.0 * sigma + 1e-9
}

#[cfg(test)]
mod tests {
    use super::alike;

    #[test]
    fn a_share_of_eighty_is_not_a_share_of_fifty() {
        for (a, b, want) in [(80, 78, true), (160, 100, false), (200, 200, true), (0, 200, false)] {
            assert_eq!(alike(a, 200, b, 200), want, "{a} and {b} of 200");
        }
    }
}
