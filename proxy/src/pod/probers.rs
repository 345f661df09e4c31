//! The application's probes, which the kubelet sends to the proxy: under strict mutual TLS it could not ask the application itself.
//!
//! In: `ISTIO_KUBE_APP_PROBERS`, JSON as the injector writes it, by path. Out: [`Probers`]. Kept true: a probe that cannot be meant fails
//! alone, with its reason; the others work. Not here: asking the application (`ask`); the routes (`pages`).

use std::{collections::HashMap, time::Duration};

use anyhow::Context;
use http::{HeaderName, HeaderValue};
use serde::Deserialize;

/// How long the application may take when the probe does not say: what the kubelet allows then.
const PROBE: Duration = Duration::from_secs(1);
/// The same for hooks of its life cycle, which the kubelet ends at the pod's grace time only.
const HOOK: Duration = Duration::from_secs(60);
/// Start of the paths of hooks.
const HOOKS: &str = "/app-lifecycle/";

/// What to ask, by path on the proxy's status ports.
#[derive(Debug, Default)]
pub struct Probers(HashMap<String, Result<Probe, String>>);

/// One probe or hook.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// What to ask.
    pub question: Question,
    /// How long the answer may take.
    pub patience: Duration,
}

/// What to ask of a port of the pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Question {
    /// A GET, whose status is passed on.
    Http {
        /// Port of the application.
        port: u16,
        /// Path and query.
        path: String,
        /// With TLS, whatever certificate is shown, as the kubelet does.
        tls: bool,
        /// Further headers; `host` replaces the address.
        headers: Vec<(HeaderName, HeaderValue)>,
    },
    /// Whether it takes connections.
    Tcp {
        /// Port of the application.
        port: u16,
    },
    /// `grpc.health.v1.Health/Check`, in plaintext.
    Grpc {
        /// Port of the application.
        port: u16,
        /// Name of the service; empty for the whole server.
        service: String,
    },
}

/// A probe as Kubernetes writes it; what else it holds was left with the kubelet.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    grpc: Option<Grpc>,
    timeout_seconds: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpGet {
    port: Port,
    #[serde(default)]
    path: String,
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    http_headers: Vec<Header>,
}

#[derive(Debug, Deserialize)]
struct Header {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Debug, Deserialize)]
struct TcpSocket {
    port: Port,
}

#[derive(Debug, Deserialize)]
struct Grpc {
    port: Port,
    service: Option<String>,
}

/// A number, or the name of a port that the injector did not find.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Port {
    Number(u16),
    Name(String),
}

impl Port {
    fn number(self) -> Result<u16, String> {
        match self {
            Self::Number(port) if port != 0 => Ok(port),
            Self::Number(_) => Err("port 0 is not a port".to_owned()),
            Self::Name(name) => name.parse().map_err(|_| {
                format!(
                    "no container port is named `{name}`: name one in the pod, or give the probe a number"
                )
            }),
        }
    }
}

impl Probers {
    /// Reads what the injector wrote.
    ///
    /// # Errors
    /// When the text is not a JSON object of probes.
    pub fn read(text: &str) -> anyhow::Result<Self> {
        let written: HashMap<String, Written> =
            serde_json::from_str(text).context("ISTIO_KUBE_APP_PROBERS: not probes by path, in JSON")?;
        let probes = written.into_iter().map(|(path, written)| {
            let patience = if path.starts_with(HOOKS) { HOOK } else { PROBE };
            (path, probe(written, patience))
        });
        Ok(Self(probes.collect()))
    }

    /// What to ask for a path, or why that cannot be; `None` where there is no such probe.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Result<Probe, String>> {
        self.0.get(path)
    }
}

fn probe(written: Written, patience: Duration) -> Result<Probe, String> {
    let question = match (written.http_get, written.tcp_socket, written.grpc) {
        (Some(get), ..) => Question::Http {
            port: get.port.number()?,
            path: match get.path.as_str() {
                path if path.starts_with('/') => path.to_owned(),
                path => format!("/{path}"),
            },
            tls: get.scheme.eq_ignore_ascii_case("https"),
            headers: get.http_headers.iter().map(header).collect::<Result<_, _>>()?,
        },
        (None, Some(tcp), _) => Question::Tcp { port: tcp.port.number()? },
        (None, None, Some(grpc)) => {
            Question::Grpc { port: grpc.port.number()?, service: grpc.service.unwrap_or_default() }
        }
        (None, None, None) => return Err("neither httpGet nor tcpSocket nor grpc".to_owned()),
    };
    let patience = written.timeout_seconds.filter(|s| *s > 0).map_or(patience, Duration::from_secs);
    Ok(Probe { question, patience })
}

fn header(written: &Header) -> Result<(HeaderName, HeaderValue), String> {
    let wrong = || format!("httpHeaders: `{}` is not a header", written.name);
    let name = HeaderName::try_from(&written.name).map_err(|_| wrong())?;
    let value = HeaderValue::try_from(&written.value).map_err(|_| wrong())?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_read_as_the_injector_writes_them() {
        let text = r#"{
            "/app-health/app/readyz": {"httpGet": {"path": "/ready?x=1", "port": 8080, "scheme": "HTTPS",
                "httpHeaders": [{"name": "Host", "value": "shop"}]}, "timeoutSeconds": 2},
            "/app-health/app/livez": {"tcpSocket": {"port": 8080}},
            "/app-health/app/startupz": {"grpc": {"port": 9000, "service": "s"}},
            "/app-health/other/livez": {"grpc": {"port": 9000, "service": null}},
            "/app-lifecycle/app/prestopz": {"httpGet": {"port": "81"}}
        }"#;
        let probers = Probers::read(text).expect("probes");
        let s = Duration::from_secs;
        let host = (HeaderName::from_static("host"), HeaderValue::from_static("shop"));
        let http =
            |port, path: &str, tls, headers| Question::Http { port, path: path.to_owned(), tls, headers };
        for (path, question, patience) in [
            ("/app-health/app/readyz", http(8080, "/ready?x=1", true, vec![host]), s(2)),
            ("/app-health/app/livez", Question::Tcp { port: 8080 }, s(1)),
            ("/app-health/app/startupz", Question::Grpc { port: 9000, service: "s".to_owned() }, s(1)),
            ("/app-health/other/livez", Question::Grpc { port: 9000, service: String::new() }, s(1)),
            ("/app-lifecycle/app/prestopz", http(81, "/", false, Vec::new()), s(60)),
        ] {
            assert_eq!(probers.get(path), Some(&Ok(Probe { question, patience })), "{path}");
        }
        assert_eq!(probers.get("/app-health/app/other"), None);
    }

    #[test]
    fn a_probe_that_cannot_be_meant_fails_alone() {
        let text = r#"{
            "/a": {"httpGet": {"port": "web"}}, "/b": {"tcpSocket": {"port": 0}}, "/c": {},
            "/d": {"httpGet": {"port": 80, "httpHeaders": [{"name": "a b"}]}}, "/e": {"tcpSocket": {"port": 1}}
        }"#;
        let probers = Probers::read(text).expect("probes");
        for (path, want) in [
            ("/a", "no container port is named `web`"),
            ("/b", "port 0"),
            ("/c", "neither httpGet"),
            ("/d", "`a b` is not a header"),
        ] {
            let got = probers.get(path).expect("there");
            assert!(got.as_ref().is_err_and(|why| why.contains(want)), "{path}: {got:?}");
        }
        assert!(probers.get("/e").is_some_and(Result::is_ok));
        let error = format!("{:#}", Probers::read("[]").expect_err("not an object"));
        assert!(error.starts_with("ISTIO_KUBE_APP_PROBERS: "), "{error}");
    }
}
