//! Crema's native telemetry stream, from proxy to mixer.
//!
//! In: `telemetry.proto`. Out: prost messages, tonic client and server, the fixed histogram bounds.
//! Kept true: bounds never change within `v1`. Not here: aggregation (proxy) and attributes (mixer).

#[allow(missing_docs, clippy::all)]
mod generated {
    tonic::include_proto!("crema.telemetry.v1");
}
pub use generated::*;

/// Bucket bounds that every [`Histogram`] of the stream uses.
pub mod bounds {
    /// Upper bounds of `duration_ms`, in milliseconds: the buckets that Envoy and Istio's dashboards know.
    pub const DURATION_MS: [f64; 20] = [
        0.5,
        1.0,
        5.0,
        10.0,
        25.0,
        50.0,
        100.0,
        250.0,
        500.0,
        1_000.0,
        2_500.0,
        5_000.0,
        10_000.0,
        30_000.0,
        60_000.0,
        300_000.0,
        600_000.0,
        1_800_000.0,
        3_600_000.0,
        36_000_000.0,
    ];
    /// Upper bounds of `request_bytes` and `response_bytes`, in bytes: powers of ten up to 100 MB.
    pub const BYTES: [f64; 9] =
        [1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0, 1_000_000.0, 10_000_000.0, 100_000_000.0];

    /// Index of the bucket that takes `value`: the first bound not below it, else the overflow bucket.
    #[must_use]
    pub fn index(bounds: &[f64], value: f64) -> usize {
        bounds.partition_point(|bound| *bound < value)
    }
}

#[cfg(test)]
mod tests {
    use super::bounds;

    #[test]
    fn a_value_falls_in_the_first_bucket_that_is_not_below_it() {
        for (value, want) in [(0.0, 0), (0.5, 0), (0.6, 1), (36_000_000.0, 19), (f64::MAX, 20)] {
            assert_eq!(bounds::index(&bounds::DURATION_MS, value), want, "value {value}");
        }
    }
}
