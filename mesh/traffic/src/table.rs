//! Finding the virtual host of a request, in Envoy's order and without allocation.
//!
//! In: a [`RouteConfiguration`]. Out: [`RouteTable`]. Kept true: exact names beat suffix wildcards, which beat prefix wildcards,
//! which beat `*`; among wildcards the longest wins. Not here: routes within a host (`plan`).

use std::sync::Arc;

use ahash::AHashMap;

use crate::{
    names::Name,
    route::{RouteConfiguration, VirtualHost},
};

/// A route configuration with its domains indexed.
#[derive(Debug, Clone, Default)]
pub struct RouteTable {
    configuration: RouteConfiguration,
    exact: AHashMap<Name, u32>,
    /// `*.suffix` by suffix, and the lengths that occur, longest first.
    suffixes: AHashMap<Name, u32>,
    suffix_lengths: Vec<usize>,
    /// `prefix.*` by prefix, likewise.
    prefixes: AHashMap<Name, u32>,
    prefix_lengths: Vec<usize>,
    any: Option<u32>,
}

impl PartialEq for RouteTable {
    fn eq(&self, other: &Self) -> bool {
        self.configuration == other.configuration
    }
}

impl RouteTable {
    /// Indexes a configuration.
    ///
    /// # Errors
    /// The domain that stands in two virtual hosts (or twice in one), as Envoy refuses it.
    pub fn new(configuration: RouteConfiguration) -> Result<Self, String> {
        let mut table = Self { configuration, ..Self::default() };
        for (index, host) in table.configuration.virtual_hosts.iter().enumerate() {
            let index = u32::try_from(index).map_err(|_| "too many virtual hosts".to_owned())?;
            for domain in &host.domains {
                // Shared with the virtual host where it is written as it is looked up.
                let lower =
                    domain.bytes().any(|byte| byte.is_ascii_uppercase()).then(|| domain.to_ascii_lowercase());
                let domain: Name = lower.map_or_else(|| domain.clone(), Name::from);
                let earlier = if &*domain == "*" {
                    table.any.replace(index)
                } else if let Some(suffix) = domain.strip_prefix('*') {
                    table.suffixes.insert(suffix.into(), index)
                } else if let Some(prefix) = domain.strip_suffix('*') {
                    table.prefixes.insert(prefix.into(), index)
                } else {
                    table.exact.insert(domain.clone(), index)
                };
                if earlier.is_some() {
                    return Err(format!("domain {domain:?} of virtual host {:?} is taken", host.name));
                }
            }
        }
        table.suffix_lengths = lengths(&table.suffixes);
        table.prefix_lengths = lengths(&table.prefixes);
        Ok(table)
    }

    /// What it was made from.
    #[must_use]
    pub fn configuration(&self) -> &RouteConfiguration {
        &self.configuration
    }

    /// The virtual host for an authority as received.
    #[must_use]
    pub fn find(&self, authority: &str) -> Option<&Arc<VirtualHost>> {
        let authority = if self.configuration.ignore_port { without_port(authority) } else { authority };
        let index = if authority.bytes().any(|byte| byte.is_ascii_uppercase()) {
            self.index_of(&authority.to_ascii_lowercase())
        } else {
            self.index_of(authority)
        };
        index.and_then(|index| self.configuration.virtual_hosts.get(usize::try_from(index).ok()?))
    }

    fn index_of(&self, authority: &str) -> Option<u32> {
        if let Some(index) = self.exact.get(authority) {
            return Some(*index);
        }
        // A wildcard stands for at least one character.
        for length in self.suffix_lengths.iter().filter(|length| **length < authority.len()) {
            let start = authority.len() - length;
            if let Some(index) = authority.get(start..).and_then(|suffix| self.suffixes.get(suffix)) {
                return Some(*index);
            }
        }
        for length in self.prefix_lengths.iter().filter(|length| **length < authority.len()) {
            if let Some(index) = authority.get(..*length).and_then(|prefix| self.prefixes.get(prefix)) {
                return Some(*index);
            }
        }
        self.any
    }
}

fn lengths(of: &AHashMap<Name, u32>) -> Vec<usize> {
    let mut lengths: Vec<usize> = of.keys().map(|key| key.len()).collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    lengths.dedup();
    lengths
}

/// `host` of `host:port`; IPv6 literals keep their brackets.
fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port))
            if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && !host.ends_with(':') =>
        {
            host
        }
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(hosts: &[(&str, &[&str])]) -> Result<RouteTable, String> {
        let virtual_hosts = hosts.iter().map(|(name, domains)| {
            let domains = domains.iter().map(|d| Name::from(*d)).collect();
            Arc::new(VirtualHost { name: (*name).into(), domains, ..VirtualHost::default() })
        });
        RouteTable::new(RouteConfiguration {
            virtual_hosts: virtual_hosts.collect(),
            ..RouteConfiguration::default()
        })
    }

    #[test]
    fn the_most_specific_domain_wins() {
        let table = table(&[
            ("any", &["*"]),
            ("exact", &["foo.example.com", "Foo.example.com:8080"]),
            ("suffix", &["*.example.com"]),
            ("longer", &["*.bar.example.com", "*-bar.example.com"]),
            ("prefix", &["foo.*"]),
            ("longer prefix", &["foo.exa*"]),
        ])
        .expect("distinct");
        for (authority, want) in [
            ("foo.example.com", "exact"),
            ("FOO.example.com", "exact"),
            ("foo.example.com:8080", "exact"),
            ("x.example.com", "suffix"),
            ("example.com", "any"),
            ("x.bar.example.com", "longer"),
            ("baz-bar.example.com", "longer"),
            ("foo.net", "prefix"),
            ("foo.examples", "longer prefix"),
            ("else", "any"),
            ("", "any"),
        ] {
            assert_eq!(table.find(authority).map(|host| &*host.name), Some(want), "{authority}");
        }
    }

    #[test]
    fn a_domain_may_stand_in_one_host_only() {
        let refused = table(&[("a", &["x", "y"]), ("b", &["X"])]);
        assert_eq!(refused.err().as_deref(), Some("domain \"x\" of virtual host \"b\" is taken"));
    }

    #[test]
    fn the_port_is_ignored_only_when_asked() {
        for (authority, want) in [("a:80", "a"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("a", "a")] {
            assert_eq!(without_port(authority), want);
        }
    }
}
