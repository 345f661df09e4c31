//! Sends requests on behalf of a test, from inside a pod: `kubectl exec -i POD -- /espresso-shop agent`.
//!
//! In: one question per line, JSON. Out: one answer per line, in the order in which they are ready. Kept true: questions run at once;
//! every question is answered once; the end of the input is the end. Not here: what an answer should be.

use std::{collections::BTreeMap, io::Write, net::SocketAddr, time::Duration};

use anyhow::{Context, bail};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::{
    call::{Call, Reply},
    load::{self, Load, Report},
};

/// A line of the input.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Question {
    /// Comes back with the answer.
    pub id: u64,
    /// What to do.
    #[serde(flatten)]
    pub what: What,
}

/// What to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum What {
    /// Send one request.
    Call(CallSpec),
    /// Send many, at a fixed rate.
    Load(LoadSpec),
}

/// One request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CallSpec {
    /// GET unless set.
    #[serde(default)]
    pub method: Option<String>,
    /// `http://host[:port]/path`.
    pub url: String,
    /// More headers.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// The body.
    #[serde(default)]
    pub body: String,
    /// How long to wait for the whole answer, in milliseconds. Default 30,000.
    #[serde(default)]
    pub patience_ms: Option<u64>,
}

/// Many requests.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadSpec {
    /// `http://host[:port]/path`.
    pub url: String,
    /// Requests per second.
    pub rate: u32,
    /// For how long.
    pub seconds: u64,
    /// Every n-th request has a connection of its own; 0 for never.
    pub fresh_every: u32,
    /// The status that counts as success.
    pub expect: u16,
}

/// A line of the output: one of the three besides `id` is there.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Answer {
    /// Of the question.
    pub id: u64,
    /// What a call brought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<ReplySpec>,
    /// What a load brought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadReport>,
    /// Why there is neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a call brought.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplySpec {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: Vec<(String, String)>,
    /// Its body, as text.
    pub body: String,
    /// From before the connection was made until the last byte, in microseconds.
    pub took_us: u64,
}

/// What a load brought.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadReport {
    /// Requests sent.
    pub sent: u64,
    /// Answers with the expected status.
    pub good: u64,
    /// Everything else, by reason.
    pub failed: BTreeMap<String, u64>,
    /// Median, 99th percentile and maximum of the latency, in microseconds, from the moment a request was due.
    pub latency_us: [u64; 3],
}

impl LoadReport {
    /// Requests that failed.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }
}

impl std::fmt::Display for LoadReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [p50, p99, max] = self.latency_us.map(Duration::from_micros);
        write!(f, "{} sent, {} failed, p50 {p50:?}, p99 {p99:?}, max {max:?}", self.sent, self.failures())?;
        self.failed.iter().try_for_each(|(why, times)| write!(f, "; {times} × {why}"))
    }
}

impl From<&Report> for LoadReport {
    fn from(report: &Report) -> Self {
        let at = |quantile| report.latency.value_at_quantile(quantile);
        Self {
            sent: report.sent,
            good: report.good,
            failed: report.failed.clone(),
            latency_us: [at(0.5), at(0.99), report.latency.max()],
        }
    }
}

impl CallSpec {
    /// What of `call` can be sent from elsewhere.
    #[must_use]
    pub fn of(call: &Call) -> Self {
        Self {
            method: Some(call.method.to_string()),
            url: call.url.clone(),
            headers: call.headers.clone(),
            body: call.body.clone(),
            patience_ms: u64::try_from(call.patience.as_millis()).ok(),
        }
    }

    fn call(self) -> anyhow::Result<Call> {
        let mut call = Call::get(self.url);
        if let Some(method) = self.method {
            call.method = Method::from_bytes(method.as_bytes())?;
        }
        call.headers = self.headers;
        call.body = self.body;
        call.patience = self.patience_ms.map_or(call.patience, Duration::from_millis);
        Ok(call)
    }
}

impl From<Reply> for ReplySpec {
    fn from(reply: Reply) -> Self {
        let header = |(name, value): (&HeaderName, &HeaderValue)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        Self {
            status: reply.status,
            headers: reply.headers.iter().map(header).collect(),
            body: reply.body,
            took_us: u64::try_from(reply.took.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

impl ReplySpec {
    /// The reply that this was.
    ///
    /// # Errors
    /// When a header is none.
    pub fn reply(self) -> anyhow::Result<Reply> {
        let mut headers = HeaderMap::new();
        for (name, value) in self.headers {
            headers.append(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(&value)?);
        }
        Ok(Reply { status: self.status, headers, body: self.body, took: Duration::from_micros(self.took_us) })
    }
}

/// Answers until the input ends.
///
/// # Errors
/// When a line is no question: whoever asks is of another version.
pub async fn run() -> anyhow::Result<()> {
    let (answers, mut ready) = mpsc::channel::<Answer>(64);
    let writer = std::thread::Builder::new().name("stdout".into()).spawn(move || {
        let mut out = std::io::stdout().lock();
        while let Some(answer) = ready.blocking_recv() {
            serde_json::to_writer(&mut out, &answer)?;
            out.write_all(b"\n")?;
            out.flush()?;
        }
        anyhow::Ok(())
    })?;
    let (lines, mut questions) = mpsc::channel(64);
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        // An unreadable input ends like an empty one.
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                break;
            }
        }
    })?;
    while let Some(line) = questions.recv().await {
        let question: Question =
            serde_json::from_str(&line).with_context(|| format!("no question: {line}"))?;
        let answers = answers.clone();
        tokio::spawn(async move {
            // Nobody is left to read it when this fails.
            let _unread = answers.send(answer(question).await).await;
        });
    }
    drop(answers);
    let written = tokio::task::spawn_blocking(move || writer.join()).await?;
    written.unwrap_or_else(|_| bail!("writing the answers panicked"))
}

async fn answer(question: Question) -> Answer {
    let mut answer = Answer { id: question.id, ..Answer::default() };
    let done = async {
        match question.what {
            What::Call(spec) => answer.reply = Some(spec.call()?.send().await?.into()),
            What::Load(spec) => answer.load = Some(send_load(spec).await?),
        }
        anyhow::Ok(())
    };
    if let Err(error) = done.await {
        answer.error = Some(format!("{error:#}"));
    }
    answer
}

/// Sends a load from here; how it went is known at its end.
///
/// # Errors
/// When the URL names nobody.
pub async fn send_load(spec: LoadSpec) -> anyhow::Result<LoadReport> {
    Ok((&load::run_in_pod(target(spec).await?).await?).into())
}

async fn target(spec: LoadSpec) -> anyhow::Result<Load> {
    let url: Uri = spec.url.parse().with_context(|| format!("{} is not a URL", spec.url))?;
    let Some(authority) = url.authority() else { bail!("{} names no host", spec.url) };
    let port = authority.port_u16().unwrap_or(80);
    let found: Option<SocketAddr> = tokio::net::lookup_host((authority.host(), port)).await?.next();
    Ok(Load {
        to: found.with_context(|| format!("{authority} has no address"))?,
        from: None,
        target: url.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
        host: authority.to_string(),
        headers: Vec::new(),
        rate: spec.rate,
        lasting: Duration::from_secs(spec.seconds),
        fresh_every: spec.fresh_every,
        expect: spec.expect,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Router, routing::post};

    async fn server() -> SocketAddr {
        let echo = post(|headers: HeaderMap, body: String| async move {
            let said = headers.get("x-a").map_or("", |v| v.to_str().unwrap_or_default()).to_owned();
            ([("x-b", said)], body)
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/", echo)).await });
        address
    }

    #[tokio::test]
    async fn a_call_comes_back_with_status_headers_body_and_id() {
        let url = format!("http://{}/", server().await);
        let line = format!(
            r#"{{"id":7,"call":{{"method":"POST","url":"{url}","headers":[["x-a","b"]],"body":"hello"}}}}"#
        );
        let question: Question = serde_json::from_str(&line).expect("a question");
        let text = serde_json::to_string(&answer(question).await).expect("JSON");
        let answer: Answer = serde_json::from_str(&text).expect("an answer");
        let reply = answer.reply.expect("a reply").reply().expect("headers");
        assert_eq!(
            (answer.id, reply.status, reply.body.as_str(), reply.header("x-b")),
            (7, 200, "hello", "b")
        );
    }

    #[tokio::test]
    async fn what_cannot_be_done_is_an_answer_too() {
        for what in [
            r#"{"id":1,"call":{"url":"http://127.0.0.1:1/"}}"#,
            r#"{"id":1,"call":{"url":"nonsense"}}"#,
            r#"{"id":1,"load":{"url":"/","rate":1,"seconds":1,"freshEvery":0,"expect":200}}"#,
        ] {
            let question: Question = serde_json::from_str(what).expect("a question");
            let answer = answer(question).await;
            assert!(answer.error.is_some() && answer.reply.is_none() && answer.load.is_none(), "{what}");
        }
    }

    #[tokio::test]
    async fn a_load_is_counted() {
        let url = format!("http://{}/", server().await);
        let spec = LoadSpec { url, rate: 20, seconds: 1, fresh_every: 4, expect: 405 };
        let answer = answer(Question { id: 1, what: What::Load(spec) }).await;
        let report = answer.load.expect("a report");
        assert_eq!((report.sent, report.good, report.failures()), (20, 20, 0), "{report}");
    }
}
