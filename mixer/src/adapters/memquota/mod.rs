//! `memquota`: counts quotas in memory.
//!
//! In: `quota` instances. Out: how much is granted.
//! Kept true: within a window no more than `max_amount` per dimensions is granted; memory is bounded by `MOST_CELLS`.
//! Not here: sharing among replicas; each mixer counts for itself.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ahash::AHashMap;
use tokio::time::Instant;

use super::{
    Adapter, AdapterKind,
    item::{QuotaInstance, QuotaResult},
};
use crate::config::{Fields, Template};

pub(super) const KIND: AdapterKind = AdapterKind { name: "memquota", templates: &[Template::Quota], build };

const RESOURCE_EXHAUSTED: i32 = 8;
/// A quota without `valid_duration` never refills.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// Most combinations of dimensions that are counted; beyond them the oldest is forgotten.
const MOST_CELLS: usize = 100_000;
/// A window is this many steps, so that a rolling window needs no list of requests.
const STEPS: u32 = 10;

struct Limit {
    max: i64,
    window: Duration,
}

struct Quota {
    name: String,
    limit: Limit,
    overrides: Vec<(Vec<(String, String)>, Limit)>,
}

/// Grants of the current window, by step.
struct Cell {
    steps: VecDeque<(Instant, i64)>,
    used: i64,
}

#[derive(Default)]
struct State {
    cells: AHashMap<String, Cell>,
    order: VecDeque<String>,
    seen: AHashMap<String, (Instant, QuotaResult)>,
    seen_order: VecDeque<(Instant, String)>,
}

struct MemQuota {
    quotas: Vec<Quota>,
    remember: Duration,
    state: Mutex<State>,
}

fn limit(fields: &Fields<'_>, window: Option<Duration>) -> Option<Limit> {
    let max = fields.int("max_amount").unwrap_or(0);
    if max < 0 {
        fields.problems().error(fields.at("max_amount"), "must not be negative");
        return None;
    }
    let window =
        fields.duration("valid_duration").filter(|window| !window.is_zero()).or(window).unwrap_or(NEVER);
    Some(Limit { max, window })
}

fn build(fields: &Fields<'_>, _: &super::Shared) -> Option<Arc<dyn Adapter>> {
    let mut quotas = Vec::new();
    for quota in fields.objects("quotas") {
        let Some(name) = quota.text("name") else {
            quota.problems().error(quota.at("name"), "is missing; give the full name of a quota instance");
            return None;
        };
        let limit_here = limit(&quota, None)?;
        let mut overrides = Vec::new();
        for other in quota.objects("overrides") {
            let dimensions = other.entries("dimensions").into_iter().map(|(key, value, _)| {
                (key.to_owned(), value.as_str().map_or_else(|| value.to_string(), str::to_owned))
            });
            overrides.push((dimensions.collect(), limit(&other, Some(limit_here.window))?));
        }
        quotas.push(Quota { name: name.to_owned(), limit: limit_here, overrides });
    }
    let remember = fields.duration("min_deduplication_duration").unwrap_or(Duration::from_secs(1));
    Some(Arc::new(MemQuota { quotas, remember, state: Mutex::default() }))
}

impl Quota {
    /// The first override whose dimensions all agree, else the quota's own limit.
    fn limit(&self, instance: &QuotaInstance) -> &Limit {
        let agrees = |(name, wanted): &(String, String)| {
            instance.labels.iter().any(|(label, value)| **label == **name && value.to_string() == *wanted)
        };
        self.overrides
            .iter()
            .find(|(wanted, _)| wanted.iter().all(agrees))
            .map_or(&self.limit, |(_, limit)| limit)
    }
}

impl Adapter for MemQuota {
    fn quota(&self, instance: &QuotaInstance) -> QuotaResult {
        let grant = |granted, valid_for| QuotaResult { code: 0, message: String::new(), granted, valid_for };
        let short = instance.name.split('.').next().unwrap_or_default();
        let Some(quota) =
            self.quotas.iter().find(|quota| quota.name == *instance.name || quota.name == short)
        else {
            return grant(instance.amount, Duration::from_secs(60));
        };
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { cells, order, seen, seen_order } = &mut *state;
        while seen_order.front().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, id)) = seen_order.pop_front() {
                seen.remove(&id);
            }
        }
        let id = format!("{}/{}", instance.name, instance.deduplication_id);
        if let Some((_, answer)) = seen.get(&id).filter(|_| !instance.deduplication_id.is_empty()) {
            return answer.clone();
        }
        let limit = quota.limit(instance);
        let mut key = instance.name.to_string();
        for (name, value) in &*instance.labels {
            key.push_str(&format!(";{name}={value}"));
        }
        if !cells.contains_key(&key) {
            if let Some(oldest) = (cells.len() >= MOST_CELLS).then(|| order.pop_front()).flatten() {
                cells.remove(&oldest);
            }
            order.push_back(key.clone());
            cells.insert(key.clone(), Cell { steps: VecDeque::new(), used: 0 });
        }
        let Some(cell) = cells.get_mut(&key) else { return grant(0, Duration::ZERO) };
        while cell.steps.front().is_some_and(|(at, _)| now.duration_since(*at) >= limit.window) {
            cell.used -= cell.steps.pop_front().map_or(0, |(_, amount)| amount);
        }
        let left = (limit.max - cell.used).max(0);
        let granted = match instance.amount {
            amount if amount <= left => amount.max(0),
            _ if instance.best_effort => left,
            _ => 0,
        };
        if granted > 0 {
            cell.used += granted;
            match cell.steps.back_mut() {
                Some((at, amount)) if now.duration_since(*at) < limit.window / STEPS => *amount += granted,
                _ => cell.steps.push_back((now, granted)),
            }
        }
        let mut answer = grant(granted, limit.window.min(Duration::from_secs(3_600)));
        if granted == 0 && instance.amount > 0 {
            answer.code = RESOURCE_EXHAUSTED;
            "Quota is exhausted for: ".clone_into(&mut answer.message);
            answer.message.push_str(short);
        }
        if !instance.deduplication_id.is_empty() {
            seen.insert(id.clone(), (now, answer.clone()));
            seen_order.push_back((now + self.remember, id));
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{attributes::Value, config::Problems};

    fn quota(json: &serde_json::Value) -> Arc<dyn Adapter> {
        let problems = Problems::default();
        build(&Fields::new(json, "params", &problems), &super::super::Shared::default())
            .expect("valid settings")
    }

    fn ask(adapter: &Arc<dyn Adapter>, user: &str, amount: i64, best_effort: bool, id: &str) -> i64 {
        let labels = Arc::from(vec![("user".into(), Value::text(user))]);
        let name = "calls.quota.default".into();
        adapter
            .quota(&QuotaInstance { name, labels, amount, best_effort, deduplication_id: id.into() })
            .granted
    }

    #[tokio::test(start_paused = true)]
    async fn grants_up_to_the_limit_per_user_and_refills_as_the_window_rolls() {
        let adapter = quota(&serde_json::json!({"quotas": [{
            "name": "calls.quota.default", "maxAmount": 5, "validDuration": "10s",
            "overrides": [{"dimensions": {"user": "vip"}, "maxAmount": 100}],
        }]}));
        assert_eq!(ask(&adapter, "a", 3, false, ""), 3);
        assert_eq!(ask(&adapter, "a", 3, false, ""), 0, "only two are left");
        assert_eq!(ask(&adapter, "a", 3, true, ""), 2, "best effort takes what is left");
        assert_eq!(ask(&adapter, "b", 5, false, ""), 5, "each user has its own count");
        assert_eq!(ask(&adapter, "vip", 50, false, ""), 50);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(ask(&adapter, "a", 5, false, ""), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_repeated_request_is_not_charged_twice() {
        let adapter = quota(&serde_json::json!({"quotas": [{"name": "calls", "max_amount": 2}]}));
        assert_eq!(ask(&adapter, "a", 1, false, "id-1"), 1);
        assert_eq!(ask(&adapter, "a", 1, false, "id-1"), 1);
        assert_eq!(ask(&adapter, "a", 1, false, "id-2"), 1);
        assert_eq!(ask(&adapter, "a", 1, false, "id-3"), 0);
    }
}
