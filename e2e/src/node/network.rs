//! Addresses of one local mesh: a 127.N.0.0/16 of its own, and ports on 127.0.0.1 that belong to it.
//!
//! In: a wish for N, or none. Out: [`Network`]. Kept true: two nodes never share a network; the holder of one can be asked who it is.
//! Not here: which pod gets which address (`mod`).

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context, bail};

/// Networks that nodes use; others of 127.0.0.0/8 are left to other harnesses.
const RANGE: std::ops::RangeInclusive<u8> = 64..=127;
/// Port whose owner owns the network, on its last address.
const LOCK_PORT: u16 = 15999;
/// Ports on 127.0.0.1 for each network, below the kernel's ephemeral range.
const PORTS: u16 = 300;
const FIRST_PORT: u16 = 11_000;

/// A network that belongs to this process until dropped.
#[derive(Debug)]
pub struct Network {
    n: u8,
    lock: TcpListener,
    pods: AtomicU16,
    ports: AtomicU16,
    services: AtomicU16,
}

impl Network {
    /// Takes 127.N.0.0/16 for the wished N, or the first free one.
    ///
    /// # Errors
    /// When the wished one, or every one, is taken: says by whom.
    pub fn take(wish: Option<u8>) -> anyhow::Result<Self> {
        // From the top, so that the one which `up` wants by default stays free.
        let candidates: Vec<u8> = wish.map_or_else(|| RANGE.rev().collect(), |n| vec![n]);
        for n in &candidates {
            if let Ok(lock) = TcpListener::bind(lock_address(*n)) {
                return Ok(Self {
                    n: *n,
                    lock,
                    pods: AtomicU16::new(1),
                    ports: AtomicU16::new(0),
                    services: AtomicU16::new(1),
                });
            }
        }
        match wish {
            Some(n) => bail!(
                "127.{n}.0.0/16 is taken by {}: stop that one, or choose another network with --net",
                holder(n)
            ),
            None => bail!("every network from 127.{} to 127.{} is taken", RANGE.start(), RANGE.end()),
        }
    }

    /// Tells everybody who asks that `who` holds this network, for as long as the process lives.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn announce(&self, who: String) -> anyhow::Result<()> {
        let lock = self.lock.try_clone().context("the network's lock")?;
        let answer = move || {
            for mut peer in lock.incoming().flatten() {
                // Nobody waits for the answer of a peer that is gone.
                let _said = writeln!(peer, "{who}");
            }
        };
        std::thread::Builder::new().name("network-lock".into()).spawn(answer)?;
        Ok(())
    }

    /// N of 127.N.0.0/16.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.n
    }

    /// An address for a control plane process: 127.N.0.`host`.
    #[must_use]
    pub fn control(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.n, 0, host)
    }

    /// The next pod's address, from 127.N.1.1.
    #[must_use]
    pub fn next_pod(&self) -> Ipv4Addr {
        let [high, low] = self.pods.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        // Neither .0 nor .255, as people expect of addresses.
        if low == 0 || low == 255 {
            return self.next_pod();
        }
        Ipv4Addr::new(127, self.n, high + 1, low)
    }

    /// The next Service's virtual address; nothing listens there, it only tells Services apart.
    #[must_use]
    pub fn next_service(&self) -> Ipv4Addr {
        let [high, low] = self.services.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        Ipv4Addr::new(10, 96, high, low)
    }

    /// A port on 127.0.0.1 that no other node uses and that is free now.
    ///
    /// # Errors
    /// When all ports of this network were given out or are taken.
    pub fn next_port(&self) -> anyhow::Result<u16> {
        loop {
            let index = self.ports.fetch_add(1, Ordering::Relaxed);
            if index >= PORTS {
                bail!("all {PORTS} application ports of 127.{}.0.0/16 are used up", self.n);
            }
            let port = FIRST_PORT + u16::from(self.n - RANGE.start()) * PORTS + index;
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(port);
            }
        }
    }
}

fn lock_address(n: u8) -> SocketAddr {
    SocketAddr::from(([127, n, 255, 254], LOCK_PORT))
}

/// Who holds a network, by its own word.
fn holder(n: u8) -> String {
    let ask = || {
        let mut peer = TcpStream::connect_timeout(&lock_address(n), Duration::from_secs(1)).ok()?;
        peer.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        let mut said = String::new();
        peer.read_to_string(&mut said).ok()?;
        Some(said.trim().to_owned()).filter(|s| !s.is_empty())
    };
    ask().unwrap_or_else(|| "another process".to_owned())
}

/// The port that a container port is bound to on the pod's address: privileged ports are moved up by 10000.
#[must_use]
pub fn bound_port(container_port: u16) -> u16 {
    if container_port < 1024 { 10_000 + container_port } else { container_port }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_one_owner_and_the_second_learns_who_it_is() {
        let first = Network::take(None).expect("a free network");
        first.announce("the test (pid 1)".into()).expect("a thread");
        let error = Network::take(Some(first.number())).expect_err("taken").to_string();
        assert!(error.contains("the test (pid 1)") && error.contains("--net"), "{error}");
        let second = Network::take(None).expect("another network");
        assert_ne!(first.number(), second.number());
        assert_ne!(first.next_port().expect("a port"), second.next_port().expect("a port"));
    }

    #[test]
    fn pods_get_distinct_addresses_that_are_not_a_networks_ends() {
        let network = Network::take(None).expect("a free network");
        let pods: std::collections::BTreeSet<_> = (0..600).map(|_| network.next_pod()).collect();
        assert_eq!(pods.len(), 600);
        assert!(pods.iter().all(|ip| ip.octets()[2] > 0 && !matches!(ip.octets()[3], 0 | 255)));
    }

    #[test]
    fn privileged_ports_move_up() {
        for (port, want) in [(80, 10_080), (1023, 11_023), (1024, 1024), (8080, 8080)] {
            assert_eq!(bound_port(port), want);
        }
    }
}
