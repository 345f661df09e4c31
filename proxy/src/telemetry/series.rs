//! The identifying facts of what happened, and the cumulative numbers kept for each combination of them.
//!
//! In: ended requests and connections. Out: [`Table`]. Kept true: finding a known combination does not allocate; numbers only rise.
//! Not here: single events (`local`), the stream (`uplink`).

use std::{net::IpAddr, sync::Arc, time::Duration};

use ahash::AHashMap;
use mesh_traffic::{
    ResponseFlags,
    cluster::Service,
    names::{Direction, Name},
};
use telemetry_api::bounds;

/// Most combinations that one worker tells apart; beyond it, requests are counted without the facts that vary most.
pub const MAX_SERIES: usize = 20_000;

/// Facts that tell one series from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Facts {
    /// Seen from the pod.
    pub direction: Direction,
    /// `http`, `http2`, `grpc` or `tcp`.
    pub protocol: &'static str,
    /// Inbound: the peer; outbound: the pod.
    pub source_ip: Option<IpAddr>,
    /// Verified identity of the client without its scheme.
    pub source_principal: Option<Name>,
    /// Inbound: the pod; outbound: the endpoint.
    pub destination_ip: Option<IpAddr>,
    /// Port of the destination.
    pub destination_port: u16,
    /// Verified identity of the server.
    pub destination_principal: Option<Name>,
    /// The service asked for.
    pub service: Option<Service>,
    /// HTTP status; 0 when there was no answer or no HTTP.
    pub code: u16,
    /// Response flags.
    pub flags: ResponseFlags,
    /// gRPC status.
    pub grpc: Option<u16>,
    /// Over mutual TLS of the mesh.
    pub mutual: bool,
    /// Upstream cluster.
    pub cluster: Name,
}

/// A histogram over fixed bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Histogram<const N: usize> {
    /// Per bucket; the last takes everything above.
    pub counts: [u64; N],
    /// Of all values.
    pub sum: f64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self { counts: [0; N], sum: 0.0 }
    }
}

impl<const N: usize> Histogram<N> {
    fn add(&mut self, bounds: &[f64], value: f64) {
        let index = bounds::index(bounds, value).min(N - 1);
        self.counts[index] += 1;
        self.sum += value;
    }

    /// As the stream carries it.
    #[must_use]
    pub fn to_wire(&self) -> telemetry_api::Histogram {
        telemetry_api::Histogram { counts: self.counts.to_vec(), sum: self.sum }
    }
}

/// Numbers of one series.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Numbers {
    /// Requests ended.
    pub requests: u64,
    /// Durations in milliseconds.
    pub duration: Histogram<21>,
    /// Sizes of requests.
    pub request_bytes: Histogram<10>,
    /// Sizes of responses.
    pub response_bytes: Histogram<10>,
    /// TCP connections opened.
    pub opened: u64,
    /// TCP connections closed.
    pub closed: u64,
    /// TCP bytes from the client.
    pub received: u64,
    /// TCP bytes to the client.
    pub sent: u64,
}

impl Numbers {
    /// Counts a request.
    pub fn request(&mut self, duration: Duration, received: u64, sent: u64) {
        self.requests += 1;
        self.duration.add(&bounds::DURATION_MS, duration.as_secs_f64() * 1e3);
        self.request_bytes.add(&bounds::BYTES, float(received));
        self.response_bytes.add(&bounds::BYTES, float(sent));
    }
}

#[allow(clippy::cast_precision_loss, reason = "sizes above 2^53 bytes do not occur")]
fn float(size: u64) -> f64 {
    size as f64
}

/// All series of one worker.
#[derive(Debug, Default)]
pub struct Table {
    index: AHashMap<Facts, u32>,
    series: Vec<(Arc<Facts>, Numbers, bool)>,
    changed: Vec<u32>,
}

impl Table {
    /// The series of these facts, made if it is new. Gives its number.
    pub fn update(&mut self, facts: Facts, change: impl FnOnce(&mut Numbers)) -> u32 {
        let number = match self.index.get(&facts) {
            Some(number) => *number,
            None => self.insert(facts),
        };
        if let Some((_, numbers, changed)) = usize::try_from(number).ok().and_then(|n| self.series.get_mut(n))
        {
            change(numbers);
            if !*changed {
                *changed = true;
                self.changed.push(number);
            }
        }
        number
    }

    fn insert(&mut self, mut facts: Facts) -> u32 {
        if self.series.len() >= MAX_SERIES {
            (facts.source_ip, facts.source_principal, facts.destination_ip) = (None, None, None);
            if let Some(number) = self.index.get(&facts) {
                return *number;
            }
        }
        let number = u32::try_from(self.series.len()).unwrap_or(u32::MAX);
        self.series.push((Arc::new(facts.clone()), Numbers::default(), false));
        self.index.insert(facts, number);
        number
    }

    /// The facts of a series.
    #[must_use]
    pub fn facts(&self, number: u32) -> Option<&Arc<Facts>> {
        usize::try_from(number).ok().and_then(|n| self.series.get(n)).map(|(facts, ..)| facts)
    }

    /// What changed since the last call.
    pub fn take_changed(&mut self) -> Vec<(u32, Arc<Facts>, Numbers)> {
        let changed = std::mem::take(&mut self.changed);
        let mut out = Vec::with_capacity(changed.len());
        for number in changed {
            if let Some((facts, numbers, flag)) =
                usize::try_from(number).ok().and_then(|n| self.series.get_mut(n))
            {
                *flag = false;
                out.push((number, Arc::clone(facts), numbers.clone()));
            }
        }
        out
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn facts(code: u16) -> Facts {
        Facts {
            direction: Direction::Outbound,
            protocol: "http",
            source_ip: None,
            source_principal: None,
            destination_ip: None,
            destination_port: 80,
            destination_principal: None,
            service: None,
            code,
            flags: ResponseFlags::NONE,
            grpc: None,
            mutual: false,
            cluster: "c".into(),
        }
    }

    #[test]
    fn numbers_accumulate_per_combination_and_only_changes_are_told() {
        let mut table = Table::default();
        let ms = Duration::from_millis;
        let a = table.update(facts(200), |n| n.request(ms(3), 10, 1000));
        assert_eq!(table.update(facts(200), |n| n.request(ms(7), 0, 0)), a);
        let b = table.update(facts(503), |n| n.request(ms(1), 0, 0));
        assert_ne!(a, b);
        let changed = table.take_changed();
        assert_eq!(changed.len(), 2);
        let (_, _, numbers) = &changed[0];
        assert_eq!((numbers.requests, numbers.duration.sum), (2, 10.0));
        assert_eq!(numbers.duration.counts[2] + numbers.duration.counts[3], 2);
        assert!(table.take_changed().is_empty());
        table.update(facts(200), |n| n.request(ms(3), 10, 1000));
        assert_eq!(table.take_changed()[0].2.requests, 3, "cumulative");
    }
}
