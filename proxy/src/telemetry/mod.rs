//! What happened: series, records, counters, access logs.
//!
//! In: ended requests and connections. Out: a stream to mixer, Prometheus text, log lines. Kept true: nothing remote on the request
//! path; every queue is bounded and every loss counted. Not here: attributes and adapters (`mixer`).

pub mod access_log;
pub mod format;
pub mod local;
pub mod series;
pub mod stats;
pub mod uplink;
