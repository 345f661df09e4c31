//! `listchecker`: lets pass what is on a list, or what is not.
//!
//! In: `listentry` instances. Out: OK, NOT_FOUND (not on the white list), PERMISSION_DENIED (on the black list).
//! Kept true: a list that could not be fetched within its `ttl` refuses, it never waves through.
//! Not here: fetching over HTTP (`http`).

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Uri};
use regex::RegexSet;
use tokio::time::Instant;

use super::{
    Adapter, AdapterKind, http as client,
    item::{CheckInstance, CheckResult},
};
use crate::{
    attributes::Value,
    config::{Fields, Template},
};

pub(super) const KIND: AdapterKind =
    AdapterKind { name: "listchecker", templates: &[Template::ListEntry], build };

const INVALID_ARGUMENT: i32 = 3;
const NOT_FOUND: i32 = 5;
const PERMISSION_DENIED: i32 = 7;
const UNAVAILABLE: i32 = 14;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EntryType {
    Strings,
    CaseInsensitive,
    IpAddresses,
    Regex,
}

enum List {
    Strings(ahash::AHashSet<String>),
    /// Networks as address and prefix length.
    Networks(Vec<(IpAddr, u8)>),
    Patterns(RegexSet),
}

struct ListChecker {
    kind: EntryType,
    black: bool,
    overrides: Vec<String>,
    ttl: Duration,
    valid: (Duration, i32),
    /// The list and when it was fetched; for a list without provider it never ages.
    list: Mutex<(Option<List>, Option<Instant>)>,
}

fn build(fields: &Fields<'_>, _: &super::Shared) -> Option<Arc<dyn Adapter>> {
    let kind = match fields.text("entry_type").unwrap_or("STRINGS") {
        "STRINGS" => EntryType::Strings,
        "CASE_INSENSITIVE_STRINGS" => EntryType::CaseInsensitive,
        "IP_ADDRESSES" => EntryType::IpAddresses,
        "REGEX" => EntryType::Regex,
        other => {
            let why =
                format!("must be STRINGS, CASE_INSENSITIVE_STRINGS, IP_ADDRESSES or REGEX, not \"{other}\"");
            fields.problems().error(fields.at("entry_type"), why);
            return None;
        }
    };
    let overrides: Vec<String> = fields.texts("overrides").into_iter().map(str::to_owned).collect();
    let duration = |name, seconds| {
        fields.duration(name).filter(|value| !value.is_zero()).unwrap_or(Duration::from_secs(seconds))
    };
    let refresh = duration("refresh_interval", 60);
    let ttl = duration("ttl", 300);
    let uses = fields
        .int("caching_use_count")
        .and_then(|n| i32::try_from(n).ok())
        .filter(|n| *n > 0)
        .unwrap_or(10_000);
    let valid = (duration("caching_interval", 300), uses);
    let black = fields.boolean("blacklist").unwrap_or(false);
    let provider =
        match fields.text("provider_url").filter(|url| !url.is_empty()).map(client::check_url).transpose() {
            Ok(provider) => provider,
            Err(why) => {
                fields.problems().error(fields.at("provider_url"), why);
                return None;
            }
        };
    let first = match parse(kind, &overrides) {
        Ok(list) => provider.is_none().then_some(list),
        Err(why) => {
            fields.problems().error(fields.at("overrides"), why);
            return None;
        }
    };
    let checker =
        Arc::new(ListChecker { kind, black, overrides, ttl, valid, list: Mutex::new((first, None)) });
    if let Some(url) = provider {
        tokio::spawn(follow(Arc::downgrade(&checker), url, refresh));
    }
    Some(checker)
}

/// Fetches the list again and again, as long as the handler lives.
async fn follow(checker: Weak<ListChecker>, url: Uri, refresh: Duration) {
    let mut outage = mesh_runtime::Outage::new(format!("list at {url}"));
    while checker.strong_count() > 0 {
        let fetched =
            tokio::time::timeout(Duration::from_secs(10), client::send(Method::GET, &url, &[], Bytes::new()))
                .await
                .unwrap_or_else(|_| Err("no answer within 10 s".to_owned()))
                .and_then(
                    |(status, body)| {
                        if status.is_success() { Ok(body) } else { Err(format!("answered {status}")) }
                    },
                );
        let Some(checker) = checker.upgrade() else { return };
        let parsed = fetched.and_then(|body| {
            let text = String::from_utf8_lossy(&body);
            let mut entries: Vec<String> =
                text.lines().map(entry).filter(|entry| !entry.is_empty()).collect();
            entries.extend(checker.overrides.iter().cloned());
            parse(checker.kind, &entries)
        });
        match parsed {
            Ok(list) => {
                outage.recovered();
                *checker.list.lock().unwrap_or_else(PoisonError::into_inner) =
                    (Some(list), Some(Instant::now()));
            }
            Err(why) => drop(outage.failed(&why)),
        }
        drop(checker);
        tokio::time::sleep(refresh).await;
    }
}

/// One line of a list: plain, or an item of a YAML list under any key; comments and blank lines say nothing.
fn entry(line: &str) -> String {
    let line = line.trim();
    let line = line.strip_prefix("- ").unwrap_or(line).trim();
    if line.starts_with('#') || line == "---" || line == "whitelist:" || line == "blacklist:" {
        return String::new();
    }
    let quoted = line.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let quoted = quoted.or_else(|| line.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')));
    quoted.unwrap_or(line).to_owned()
}

fn parse(kind: EntryType, entries: &[String]) -> Result<List, String> {
    Ok(match kind {
        EntryType::Strings => List::Strings(entries.iter().cloned().collect()),
        EntryType::CaseInsensitive => {
            List::Strings(entries.iter().map(|entry| entry.to_uppercase()).collect())
        }
        EntryType::Regex => List::Patterns(RegexSet::new(entries).map_err(|error| error.to_string())?),
        EntryType::IpAddresses => List::Networks(
            entries
                .iter()
                .map(|entry| {
                    let wrong = || format!("\"{entry}\" is no IP address or network such as 10.0.0.0/8");
                    let (address, length) = match entry.split_once('/') {
                        Some((address, length)) => {
                            (address, Some(length.parse::<u8>().map_err(|_| wrong())?))
                        }
                        None => (entry.as_str(), None),
                    };
                    let address: IpAddr = address.parse().map_err(|_| wrong())?;
                    let most = if address.is_ipv4() { 32 } else { 128 };
                    match length.unwrap_or(most) {
                        length if length <= most => Ok((address, length)),
                        _ => Err(wrong()),
                    }
                })
                .collect::<Result<_, _>>()?,
        ),
    })
}

fn inside(address: IpAddr, (network, length): (IpAddr, u8)) -> bool {
    match (address.to_canonical(), network) {
        (IpAddr::V4(a), IpAddr::V4(n)) => {
            let shift = 32 - u32::from(length);
            a.to_bits().checked_shr(shift) == n.to_bits().checked_shr(shift)
        }
        (IpAddr::V6(a), IpAddr::V6(n)) => {
            let shift = 128 - u32::from(length);
            a.to_bits().checked_shr(shift) == n.to_bits().checked_shr(shift)
        }
        _ => false,
    }
}

impl ListChecker {
    fn answer(&self, code: i32, message: String) -> CheckResult {
        CheckResult { code, message, valid_for: self.valid.0, valid_uses: self.valid.1 }
    }
}

impl Adapter for ListChecker {
    fn check(&self, instance: &CheckInstance) -> CheckResult {
        let CheckInstance::ListEntry(value) = instance else { return CheckResult::pass() };
        let text = value.to_string();
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = list.1.is_none_or(|fetched| fetched.elapsed() < self.ttl);
        let found = match list.0.as_ref().filter(|_| fresh) {
            None => {
                let mut answer = self.answer(UNAVAILABLE, "the list could not be fetched".to_owned());
                answer.valid_for = answer.valid_for.min(Duration::from_secs(1));
                return answer;
            }
            Some(List::Strings(entries)) if self.kind == EntryType::CaseInsensitive => {
                entries.contains(&text.to_uppercase())
            }
            Some(List::Strings(entries)) => entries.contains(&text),
            Some(List::Patterns(patterns)) => patterns.is_match(&text),
            Some(List::Networks(networks)) => {
                let address = match value {
                    Value::Ip(address) => Some(*address),
                    _ => text.parse().ok(),
                };
                let Some(address) = address else {
                    return self.answer(INVALID_ARGUMENT, format!("{text} is not a valid IP address"));
                };
                networks.iter().any(|network| inside(address, *network))
            }
        };
        match (found, self.black) {
            (true, true) => self.answer(PERMISSION_DENIED, format!("{text} is blacklisted")),
            (false, false) => self.answer(NOT_FOUND, format!("{text} is not whitelisted")),
            _ => self.answer(0, String::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Problems;

    fn checker(json: &serde_json::Value) -> Arc<dyn Adapter> {
        let problems = Problems::default();
        build(&Fields::new(json, "params", &problems), &super::super::Shared::default())
            .expect("valid settings")
    }

    #[test]
    fn lists_of_every_type_decide_white_and_black() {
        for (entry_type, overrides, value, on_list) in [
            ("STRINGS", vec!["v1", "v2"], "v1", true),
            ("STRINGS", vec!["v1"], "V1", false),
            ("CASE_INSENSITIVE_STRINGS", vec!["v1"], "V1", true),
            ("IP_ADDRESSES", vec!["10.57.0.0/16"], "10.57.3.4", true),
            ("IP_ADDRESSES", vec!["10.57.0.0/16"], "10.58.3.4", false),
            ("IP_ADDRESSES", vec!["0.0.0.0/0"], "1.2.3.4", true),
            ("IP_ADDRESSES", vec!["2001:db8::/32"], "2001:db8::1", true),
            ("IP_ADDRESSES", vec!["10.0.0.1"], "10.0.0.1", true),
            ("REGEX", vec!["^a+$"], "aaa", true),
            ("REGEX", vec!["^a+$"], "ab", false),
        ] {
            for black in [false, true] {
                let json =
                    serde_json::json!({"entryType": entry_type, "overrides": overrides, "blacklist": black});
                let result = checker(&json).check(&CheckInstance::ListEntry(Value::text(value)));
                let want = match (on_list, black) {
                    (true, true) => (PERMISSION_DENIED, format!("{value} is blacklisted")),
                    (false, false) => (NOT_FOUND, format!("{value} is not whitelisted")),
                    _ => (0, String::new()),
                };
                assert_eq!((result.code, result.message), want, "{entry_type} {value} black {black}");
            }
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let json = serde_json::json!({"entry_type": "IP_ADDRESSES", "overrides": ["10.0.0.0/8"]});
        let result = checker(&json).check(&CheckInstance::ListEntry(Value::text("me")));
        assert_eq!(result.code, INVALID_ARGUMENT);
        let problems = Problems::default();
        let json = serde_json::json!({"entry_type": "IP_ADDRESSES", "overrides": ["10.0.0.0/33"]});
        assert!(build(&Fields::new(&json, "params", &problems), &super::super::Shared::default()).is_none());
        assert!(problems.take()[0].why.contains("10.0.0.0/33"));
    }

    #[tokio::test]
    async fn a_list_is_fetched_and_until_it_is_nothing_passes() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/list", listener.local_addr().expect("an address"));
        let checker = checker(&serde_json::json!({"provider_url": url}));
        let ask = || checker.check(&CheckInstance::ListEntry(Value::text("b"))).code;
        assert_eq!(ask(), UNAVAILABLE);
        let router = axum::Router::new()
            .route("/list", axum::routing::get(async || "whitelist:\n# words\n- a\n- \"b\"\n"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        while ask() == UNAVAILABLE {
            tokio::task::yield_now().await;
        }
        assert_eq!(ask(), 0);
    }
}
