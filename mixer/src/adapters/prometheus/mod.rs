//! `prometheus`: metrics that a Prometheus server scrapes.
//!
//! In: `metric` instances. Out: the families of [`Registry`], as text.
//! Kept true: a series that nobody updates expires; a change of configuration keeps the counts of unchanged families.
//! Not here: the HTTP server (`serve`).

mod registry;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

pub use registry::Registry;
use registry::{Family, FamilyKind};

use super::{
    Adapter, AdapterKind, Shared,
    item::{Item, Unit},
};
use crate::config::{Fields, Template};

pub(super) const KIND: AdapterKind =
    AdapterKind { name: "prometheus", templates: &[Template::Metric], build };

/// How long a series lives without an update unless the settings say else.
const EXPIRY: Duration = Duration::from_secs(600);

struct Prometheus {
    /// Families by the instance that feeds them.
    families: BTreeMap<String, Vec<Arc<Family>>>,
}

fn build(fields: &Fields<'_>, shared: &Shared) -> Option<Arc<dyn Adapter>> {
    let policy = fields.object("metrics_expiration_policy");
    let expiry =
        policy.duration("metrics_expiry_duration").filter(|expiry| !expiry.is_zero()).unwrap_or(EXPIRY);
    policy.raw("expiry_check_interval_duration");
    let mut families: BTreeMap<String, Vec<Arc<Family>>> = BTreeMap::new();
    for metric in fields.objects("metrics") {
        let (Some(name), Some(instance)) = (metric.text("name"), metric.text("instance_name")) else {
            fields.problems().error(metric.at("name"), "name and instance_name are both needed");
            return None;
        };
        let namespace = metric.text("namespace").unwrap_or("istio");
        let full = if namespace.is_empty() { name.to_owned() } else { format!("{namespace}_{name}") };
        let full: String =
            full.chars().map(|c| if c.is_ascii_alphanumeric() || c == ':' { c } else { '_' }).collect();
        let kind = match metric.text("kind").unwrap_or_default() {
            "COUNTER" => FamilyKind::Counter,
            "GAUGE" => FamilyKind::Gauge,
            "DISTRIBUTION" => FamilyKind::Distribution(bounds(&metric.object("buckets"))?),
            other => {
                let why = format!("must be COUNTER, GAUGE or DISTRIBUTION, not \"{other}\"");
                metric.problems().error(metric.at("kind"), why);
                return None;
            }
        };
        if !matches!(kind, FamilyKind::Distribution(_)) {
            metric.object("buckets").ignore_rest();
        }
        let milliseconds = match metric.text("duration_unit").unwrap_or("SECONDS") {
            "SECONDS" => false,
            "MILLISECONDS" => true,
            other => {
                let why = format!("must be SECONDS or MILLISECONDS, not \"{other}\"");
                metric.problems().error(metric.at("duration_unit"), why);
                return None;
            }
        };
        let family = Family {
            name: full,
            help: metric.text("description").unwrap_or_default().to_owned(),
            kind,
            labels: metric.texts("label_names").into_iter().map(str::to_owned).collect(),
            milliseconds,
            expiry,
            ..Family::default()
        };
        families.entry(instance.to_owned()).or_default().push(shared.prometheus.register(family));
    }
    Some(Arc::new(Prometheus { families }))
}

fn bounds(fields: &Fields<'_>) -> Option<Vec<f64>> {
    let explicit = fields.object("explicit_buckets");
    let linear = fields.object("linear_buckets");
    let exponential = fields.object("exponential_buckets");
    let mut bounds = explicit.numbers("bounds");
    let count = |fields: &Fields<'_>| fields.int("num_finite_buckets").unwrap_or(0).clamp(0, 1_000);
    let finite = count(&linear);
    if finite > 0 {
        let (width, offset) = (linear.number("width").unwrap_or(1.0), linear.number("offset").unwrap_or(0.0));
        let mut bound = offset;
        for _ in 0..=finite {
            bounds.push(bound);
            bound += width;
        }
    }
    let finite = count(&exponential);
    if finite > 0 {
        let growth = exponential.number("growth_factor").unwrap_or(2.0);
        let mut bound = exponential.number("scale").unwrap_or(1.0);
        for _ in 0..=finite {
            bounds.push(bound);
            bound *= growth;
        }
    }
    if bounds.is_empty() {
        bounds = vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
    }
    if bounds.windows(2).all(|pair| pair[0] < pair[1]) {
        return Some(bounds);
    }
    fields.problems().error(fields.at("explicit_buckets.bounds"), "bounds must rise");
    None
}

impl Adapter for Prometheus {
    fn take(&self, item: Item) {
        let Item::Metric(metric) = item else { return };
        for family in self.families.get(&*metric.instance).into_iter().flatten() {
            family.update(&metric.labels, &metric.sample);
        }
    }

    fn takes_buckets(&self, instance: &str, unit: Unit) -> bool {
        self.families.get(instance).into_iter().flatten().all(|family| family.takes_buckets(unit))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::item::*, *};
    use crate::{attributes::Value, config::Problems};

    fn adapter(shared: &Shared, json: &serde_json::Value) -> Arc<dyn Adapter> {
        let problems = Problems::default();
        let adapter = build(&Fields::new(json, "params", &problems), shared).expect("valid settings");
        assert_eq!(problems.take(), []);
        adapter
    }

    fn settings() -> serde_json::Value {
        serde_json::json!({"metrics": [
            {"name": "requests_total", "instance_name": "requestcount", "kind": "COUNTER", "label_names": ["code", "app"]},
            {"name": "request_duration_seconds", "instance_name": "duration", "kind": "DISTRIBUTION", "label_names": ["app"],
             "buckets": {"explicit_buckets": {"bounds": [0.005, 0.01, 0.5]}}},
            {"name": "request_duration_milliseconds", "instance_name": "duration", "kind": "DISTRIBUTION", "label_names": ["app"],
             "duration_unit": "MILLISECONDS", "buckets": {"explicit_buckets": {"bounds": [5, 10, 500]}}},
            {"name": "request_bytes", "instance_name": "size", "kind": "DISTRIBUTION", "label_names": [],
             "buckets": {"exponential_buckets": {"num_finite_buckets": 8, "scale": 1, "growth_factor": 10}}},
        ]})
    }

    fn metric(instance: &str, sample: Sample) -> Item {
        let labels = vec![("app".into(), Value::text("a\"b\\c\nd")), ("code".into(), Value::Int64(200))];
        Item::Metric(Metric { instance: instance.into(), labels: labels.into(), sample })
    }

    #[tokio::test(start_paused = true)]
    async fn the_text_is_what_prometheus_reads() {
        let shared = Shared::default();
        let adapter = adapter(&shared, &settings());
        adapter.take(metric("requestcount", Sample::One(Value::Int64(1))));
        adapter.take(metric("requestcount", Sample::Count(2)));
        adapter.take(metric("duration", Sample::One(Value::Duration(7_000_000))));
        let mut counts = vec![0; Unit::Milliseconds.bounds().len() + 1];
        (counts[3], counts[8]) = (1, 2);
        let sample = Sample::Many(Arc::new(Observations { unit: Unit::Milliseconds, counts, sum: 809.0 }));
        adapter.take(metric("duration", sample));
        let text = shared.prometheus.text();
        for line in [
            "# TYPE istio_requests_total counter",
            r#"istio_requests_total{code="200",app="a\"b\\c\nd"} 3"#,
            r#"istio_request_duration_seconds_bucket{app="a\"b\\c\nd",le="0.005"} 0"#,
            r#"istio_request_duration_seconds_bucket{app="a\"b\\c\nd",le="0.01"} 2"#,
            r#"istio_request_duration_seconds_bucket{app="a\"b\\c\nd",le="0.5"} 4"#,
            r#"istio_request_duration_seconds_bucket{app="a\"b\\c\nd",le="+Inf"} 4"#,
            r#"istio_request_duration_milliseconds_bucket{app="a\"b\\c\nd",le="10"} 2"#,
            r#"istio_request_duration_milliseconds_sum{app="a\"b\\c\nd"} 816"#,
            r#"istio_request_duration_milliseconds_count{app="a\"b\\c\nd"} 4"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_series_expires_ten_minutes_after_its_last_update() {
        let shared = Shared::default();
        let adapter = adapter(&shared, &settings());
        adapter.take(metric("requestcount", Sample::Count(1)));
        tokio::time::advance(Duration::from_secs(599)).await;
        assert!(shared.prometheus.text().contains("istio_requests_total{"));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!shared.prometheus.text().contains("istio_requests_total{"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_that_is_made_anew_goes_on_counting() {
        let shared = Shared::default();
        let before = adapter(&shared, &settings());
        before.take(metric("requestcount", Sample::Count(1)));
        let after = adapter(&shared, &settings());
        drop(before);
        after.take(metric("requestcount", Sample::Count(1)));
        assert!(shared.prometheus.text().contains("app=\"a\\\"b\\\\c\\nd\"} 2"));
        drop(after);
        assert!(
            !shared.prometheus.text().contains("istio_requests_total"),
            "a family without a handler is gone"
        );
    }

    #[test]
    fn buckets_are_taken_only_where_no_precision_is_lost() {
        let shared = Shared::default();
        let adapter = adapter(&shared, &settings());
        assert!(adapter.takes_buckets("duration", Unit::Milliseconds));
        assert!(adapter.takes_buckets("size", Unit::Bytes));
        assert!(!adapter.takes_buckets("duration", Unit::Bytes));
        assert!(adapter.takes_buckets("requestcount", Unit::Bytes));
    }
}
