//! Metrics of this process in the Prometheus text exposition.
//!
//! In: metrics registered by the parts of a binary. Out: one text per scrape of `/metrics`.
//! Kept true: what cannot be encoded is left out of the scrape and logged, never a panic.
//! Not here: `istio_*` request metrics (mixer), and the proxy's hot-path series (they come in as a text source).

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{
        MetricType,
        counter::ConstCounter,
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::{Metric, Registry},
};

/// Content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type TextSource = dyn Fn(&mut String) + Send + Sync;

/// The registry of a process. Clones share it.
#[derive(Clone, Default)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    sources: Arc<Mutex<Vec<Box<TextSource>>>>,
}

impl Metrics {
    /// Empty: nothing but what is registered.
    pub fn new() -> Self {
        Self::default()
    }

    /// With the process's own figures (memory, CPU, file descriptors, start) and `crema_build_info`.
    pub fn for_process(component: &str) -> Self {
        let this = Self::new();
        let build = Family::<[(&'static str, String); 2], Gauge>::default();
        build
            .get_or_create(&[("component", component.into()), ("version", crate::cli::VERSION.into())])
            .set(1);
        this.register("crema_build_info", "Which program and version this is", build);
        this.lock().register_collector(Box::new(Process));
        this
    }

    /// Registers a metric and hands it back, so that one expression makes and registers it.
    ///
    /// `name` is the full name without `_total`, which the exposition adds to counters.
    pub fn register<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        self.lock().register(name, help, metric.clone());
        metric
    }

    /// Registers something that computes its metrics at each scrape.
    pub fn register_collector(&self, collector: Box<dyn Collector>) {
        self.lock().register_collector(collector);
    }

    /// Adds a source of ready text, complete lines with their `# TYPE`, appended to every scrape.
    pub fn add_text(&self, source: impl Fn(&mut String) + Send + Sync + 'static) {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(source));
    }

    /// The exposition of everything registered.
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(4096);
        if let Err(error) = text::encode_registry(&mut out, &self.lock()) {
            tracing::warn!(%error, "a metric could not be encoded; the scrape is incomplete");
        }
        for source in self.sources.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            source(&mut out);
        }
        out.push_str("# EOF\n");
        out
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// `process_*` figures from `/proc/self`; where that is missing, so are they.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(figures) = ProcessFigures::read() else { return Ok(()) };
        let cpu = ConstCounter::new(figures.cpu_seconds);
        let of = encoder.encode_descriptor(
            "process_cpu_seconds",
            "User and system CPU time used",
            None,
            MetricType::Counter,
        )?;
        cpu.encode(of)?;
        for (name, help, value) in [
            ("process_resident_memory_bytes", "Resident memory", Some(figures.resident_bytes)),
            ("process_open_fds", "Open file descriptors", figures.open_fds),
            ("process_threads", "Threads", Some(figures.threads)),
        ] {
            let Some(value) = value else { continue };
            let of = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(of)?;
        }
        Ok(())
    }
}

struct ProcessFigures {
    cpu_seconds: f64,
    resident_bytes: i64,
    /// Missing where the process may not read it (see `secrets::protect_memory`).
    open_fds: Option<i64>,
    threads: i64,
}

impl ProcessFigures {
    /// Reads the kernel's text files (proc(5)): CPU in 1/100 s, memory in kB.
    fn read() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The second field is the program's name in brackets and may hold spaces: count from the last bracket.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let ticks = |i: usize| fields.get(i)?.parse::<u32>().ok().map(f64::from);
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
        let kilobytes: i64 = resident.split_ascii_whitespace().next()?.parse().ok()?;
        let open = std::fs::read_dir("/proc/self/fd").ok().map(|dir| dir.count());
        Some(Self {
            cpu_seconds: (ticks(11)? + ticks(12)?) / 100.0,
            resident_bytes: kilobytes.saturating_mul(1024),
            open_fds: open.and_then(|n| i64::try_from(n).ok()),
            threads: fields.get(17)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn a_scrape_holds_registered_metrics_process_figures_and_text_sources() {
        let metrics = Metrics::for_process("test");
        let issued: Counter = metrics.register("citadel_issued", "Certificates issued", Counter::default());
        issued.inc_by(3);
        metrics.add_text(|out| out.push_str("# TYPE own gauge\nown 1\n"));
        let text = metrics.encode();
        for part in [
            "citadel_issued_total 3",
            "process_resident_memory_bytes ",
            "process_cpu_seconds_total ",
            "crema_build_info{component=\"test\"",
            "own 1\n# EOF\n",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }
}
