//! A service that says what it received, and waits or fails when the query asks for it.
//!
//! In: any request; query `delay=1500ms`, `status=503`, `fail=2&of=3[&key=K]` (the first 2 of every 3 requests with that key
//! fail, with `status` or 503). Out: JSON. Kept true: without a query it answers at once. Not here: anything random.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Query, Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use serde::Serialize;

/// Largest request body that is counted before the answer is written, in bytes.
const MOST: usize = 16 << 20;

/// What came in.
#[derive(Debug, Serialize)]
struct Received {
    version: Option<String>,
    method: String,
    path: String,
    headers: HashMap<String, Vec<String>>,
    body_bytes: usize,
    /// How many requests with the same `key` came before this one.
    before: u64,
}

#[derive(Debug)]
struct Echo {
    version: Option<String>,
    status: u16,
    seen: Mutex<HashMap<String, u64>>,
}

/// The service's routes: every path and method. `status` is used where the query does not say otherwise.
pub fn router(version: Option<String>, status: u16) -> Router {
    let echo = Arc::new(Echo { version, status, seen: Mutex::default() });
    Router::new().fallback(answer).with_state(echo)
}

async fn answer(
    State(echo): State<Arc<Echo>>,
    Query(wish): Query<HashMap<String, String>>,
    request: Request,
) -> Response {
    let key = wish.get("key").cloned().unwrap_or_else(|| request.uri().path().to_owned());
    let before = {
        let mut seen = echo.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let count = seen.entry(key).or_default();
        *count += 1;
        *count - 1
    };
    if let Some(delay) = wish.get("delay").and_then(|d| duration(d)) {
        tokio::time::sleep(delay).await;
    }
    let code = match status(&wish, before, echo.status) {
        Ok(code) => code,
        Err(why) => return (StatusCode::BAD_REQUEST, why).into_response(),
    };
    let (head, body) = request.into_parts();
    let body_bytes = axum::body::to_bytes(body, MOST).await.map_or(0, |b| b.len());
    let received = Received {
        version: echo.version.clone(),
        method: head.method.to_string(),
        path: head.uri.to_string(),
        headers: listed(&head.headers),
        body_bytes,
        before,
    };
    (code, Json(received)).into_response()
}

fn listed(headers: &HeaderMap) -> HashMap<String, Vec<String>> {
    let mut all: HashMap<String, Vec<String>> = HashMap::new();
    for (name, value) in headers {
        let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
        all.entry(name.to_string()).or_default().push(text);
    }
    all
}

fn status(wish: &HashMap<String, String>, before: u64, usual: u16) -> Result<StatusCode, String> {
    let number = |name: &str| match wish.get(name) {
        None => Ok(None),
        Some(text) => text.parse::<u64>().map(Some).map_err(|_| format!("{name}={text} is not a number")),
    };
    let asked = match number("status")? {
        None => None,
        Some(n) => {
            let code = u16::try_from(n).ok().and_then(|n| StatusCode::from_u16(n).ok());
            Some(code.ok_or_else(|| format!("status={n} is not an HTTP status"))?)
        }
    };
    let usual = StatusCode::from_u16(usual).unwrap_or(StatusCode::OK);
    match number("fail")? {
        None => Ok(asked.unwrap_or(usual)),
        Some(fail) => {
            let of = number("of")?.unwrap_or(u64::MAX).max(1);
            let fails = before % of < fail;
            Ok(if fails { asked.unwrap_or(StatusCode::SERVICE_UNAVAILABLE) } else { usual })
        }
    }
}

/// `250ms` or `2s` or `1.5s`.
fn duration(text: &str) -> Option<Duration> {
    let (number, scale) = match text.strip_suffix("ms") {
        Some(number) => (number, 0.001),
        None => (text.strip_suffix('s')?, 1.0),
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * scale).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_n_of_every_m_fail() {
        let wish = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        type Case<'a> = (&'a [(&'a str, &'a str)], [u16; 5]);
        let cases: [Case<'_>; 4] = [
            (&[], [200; 5]),
            (&[("status", "404")], [404; 5]),
            (&[("fail", "2")], [503, 503, 200, 200, 200]),
            (&[("fail", "1"), ("of", "2"), ("status", "500")], [500, 200, 500, 200, 500]),
        ];
        for (query, want) in cases {
            let got = [0, 1, 2, 3, 4].map(|n| status(&wish(query), n, 200).expect("a status").as_u16());
            assert_eq!(got, want, "{query:?}");
        }
        assert!(status(&wish(&[("status", "9999")]), 0, 200).is_err());
    }

    #[test]
    fn durations_have_a_unit() {
        let cases =
            [("250ms", Some(250)), ("2s", Some(2000)), ("1.5s", Some(1500)), ("2", None), ("-1s", None)];
        for (text, want) in cases {
            assert_eq!(duration(text).map(|d| d.as_millis()), want, "{text}");
        }
    }
}
