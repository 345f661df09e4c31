//! Counters of the proxy in Envoy's names, as its users' dashboards expect them.
//!
//! In: increments from any worker. Out: Prometheus text. Kept true: one relaxed add per event; labels are names from the
//! configuration, never from requests. Not here: `istio_*` metrics (mixer).

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use mesh_traffic::names::Name;

/// Counters of one cluster.
#[derive(Debug, Default)]
pub struct ClusterStats {
    /// Connections made.
    pub connections_total: AtomicU64,
    /// Connections open now.
    pub connections_active: AtomicU64,
    /// Connections that could not be made.
    pub connect_failures: AtomicU64,
    /// Requests sent.
    pub requests: AtomicU64,
    /// Retries sent.
    pub retries: AtomicU64,
    /// Retries not made because the body was too large to keep.
    pub retry_body_too_large: AtomicU64,
    /// Requests refused because a limit was reached.
    pub overflows: AtomicU64,
    /// Requests that ran out of time.
    pub timeouts: AtomicU64,
    /// Endpoints ejected.
    pub ejections: AtomicU64,
}

/// Counters of one listener.
#[derive(Debug, Default)]
pub struct ListenerStats {
    /// Connections accepted.
    pub connections_total: AtomicU64,
    /// Connections open now.
    pub connections_active: AtomicU64,
    /// Connections closed because there were too many.
    pub overflows: AtomicU64,
    /// Connections that no chain took.
    pub no_chain: AtomicU64,
    /// TLS handshakes that failed.
    pub tls_errors: AtomicU64,
    /// Accepting failed, for example for want of file descriptors.
    pub accept_errors: AtomicU64,
    /// What came was not HTTP and was refused.
    pub protocol_errors: AtomicU64,
    /// Requests, by class of their status: 1xx to 5xx, and none.
    pub responses: [AtomicU64; 6],
}

/// All counters.
#[derive(Debug, Default)]
pub struct Stats {
    clusters: Mutex<BTreeMap<Name, Arc<ClusterStats>>>,
    listeners: Mutex<BTreeMap<Name, Arc<ListenerStats>>>,
    /// Log lines that did not fit in the writer's queue.
    pub log_lines_lost: Arc<AtomicU64>,
}

impl Stats {
    /// The counters of a cluster. They outlive changes of its settings.
    #[must_use]
    pub fn cluster(&self, name: &Name) -> Arc<ClusterStats> {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(clusters.entry(name.clone()).or_default())
    }

    /// The counters of a listener.
    #[must_use]
    pub fn listener(&self, name: &Name) -> Arc<ListenerStats> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(listeners.entry(name.clone()).or_default())
    }

    /// Writes Prometheus text.
    pub fn write(&self, out: &mut String) {
        let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clone();
        type ClusterColumn = (&'static str, &'static str, fn(&ClusterStats) -> &AtomicU64);
        let columns: [ClusterColumn; 9] = [
            ("envoy_cluster_upstream_cx_total", "counter", |s| &s.connections_total),
            ("envoy_cluster_upstream_cx_active", "gauge", |s| &s.connections_active),
            ("envoy_cluster_upstream_cx_connect_fail", "counter", |s| &s.connect_failures),
            ("envoy_cluster_upstream_rq_total", "counter", |s| &s.requests),
            ("envoy_cluster_upstream_rq_retry", "counter", |s| &s.retries),
            ("envoy_cluster_retry_or_shadow_abandoned", "counter", |s| &s.retry_body_too_large),
            ("envoy_cluster_upstream_rq_pending_overflow", "counter", |s| &s.overflows),
            ("envoy_cluster_upstream_rq_timeout", "counter", |s| &s.timeouts),
            ("envoy_cluster_outlier_detection_ejections_enforced_total", "counter", |s| &s.ejections),
        ];
        for (name, kind, column) in columns {
            let _ = writeln!(out, "# TYPE {name} {kind}");
            for (cluster, stats) in &clusters {
                let value = column(stats).load(Ordering::Relaxed);
                let _ = writeln!(out, "{name}{{envoy_cluster_name=\"{}\"}} {value}", escape(cluster));
            }
        }
        type ListenerColumn = (&'static str, &'static str, fn(&ListenerStats) -> &AtomicU64);
        let columns: [ListenerColumn; 7] = [
            ("envoy_listener_downstream_cx_total", "counter", |s| &s.connections_total),
            ("envoy_listener_downstream_cx_active", "gauge", |s| &s.connections_active),
            ("envoy_listener_downstream_cx_overflow", "counter", |s| &s.overflows),
            ("envoy_listener_no_filter_chain_match", "counter", |s| &s.no_chain),
            ("envoy_listener_ssl_connection_error", "counter", |s| &s.tls_errors),
            ("envoy_listener_accept_errors", "counter", |s| &s.accept_errors),
            ("envoy_http_downstream_cx_protocol_error", "counter", |s| &s.protocol_errors),
        ];
        for (name, kind, column) in columns {
            let _ = writeln!(out, "# TYPE {name} {kind}");
            for (listener, stats) in &listeners {
                let value = column(stats).load(Ordering::Relaxed);
                let _ = writeln!(out, "{name}{{listener=\"{}\"}} {value}", escape(listener));
            }
        }
        let _ = writeln!(out, "# TYPE envoy_http_downstream_rq_xx counter");
        for (listener, stats) in &listeners {
            for (class, counter) in stats.responses.iter().enumerate() {
                let value = counter.load(Ordering::Relaxed);
                let _ = writeln!(
                    out,
                    "envoy_http_downstream_rq_xx{{listener=\"{}\",envoy_response_code_class=\"{class}\"}} {value}",
                    escape(listener)
                );
            }
        }
        let lost = self.log_lines_lost.load(Ordering::Relaxed);
        let _ =
            writeln!(out, "# TYPE crema_access_log_lines_lost counter\ncrema_access_log_lines_lost {lost}");
    }
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_print_in_envoys_names_with_safe_labels() {
        let stats = Stats::default();
        stats.cluster(&"outbound|80||a\"b".into()).requests.fetch_add(3, Ordering::Relaxed);
        stats.listener(&"0.0.0.0_80".into()).responses[5].fetch_add(1, Ordering::Relaxed);
        let mut text = String::new();
        stats.write(&mut text);
        assert!(
            text.contains("envoy_cluster_upstream_rq_total{envoy_cluster_name=\"outbound|80||a\\\"b\"} 3")
        );
        assert!(text.contains("{listener=\"0.0.0.0_80\",envoy_response_code_class=\"5\"} 1"));
    }
}
