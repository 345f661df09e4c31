//! The virtual hosts of one route configuration that came as resources of their own.
//!
//! In: hosts, one at a time. Out: all of them in order, or whose domain stands in two. Kept true: every domain has one owner, and
//! finding it does not look at the other hosts. Not here: building the table (`store`).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use mesh_traffic::{VirtualHost, names::Name};

/// Virtual hosts by full name, and who owns each domain.
#[derive(Debug, Default)]
pub struct Hosts {
    hosts: BTreeMap<Name, Arc<VirtualHost>>,
    owners: HashMap<Name, Name>,
}

impl Hosts {
    /// Takes a host in place of the one of its name.
    ///
    /// # Errors
    /// The domain that belongs to another host; then nothing has changed.
    pub fn put(&mut self, name: &Name, host: Arc<VirtualHost>) -> Result<(), Name> {
        let foreign = |domain: &&Name| self.owners.get(*domain).is_some_and(|owner| owner != name);
        if let Some(taken) = host.domains.iter().find(foreign) {
            return Err(taken.clone());
        }
        self.remove(name);
        self.owners.extend(host.domains.iter().map(|domain| (domain.clone(), name.clone())));
        self.hosts.insert(name.clone(), host);
        Ok(())
    }

    /// Drops a host, and with it its domains.
    pub fn remove(&mut self, name: &str) {
        if let Some(host) = self.hosts.remove(name) {
            host.domains.iter().for_each(|domain| drop(self.owners.remove(domain)));
        }
    }

    /// Every host, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<VirtualHost>> {
        self.hosts.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(domains: &[&str]) -> Arc<VirtualHost> {
        let domains = domains.iter().map(|domain| Name::from(*domain)).collect();
        Arc::new(VirtualHost { domains, ..VirtualHost::default() })
    }

    #[test]
    fn a_domain_has_one_owner_until_that_lets_it_go() {
        let (a, b) = (Name::from("t/a"), Name::from("t/b"));
        let mut hosts = Hosts::default();
        assert_eq!(hosts.put(&a, host(&["x", "y"])), Ok(()));
        assert_eq!(hosts.put(&b, host(&["z", "y"])), Err("y".into()));
        assert_eq!(hosts.put(&b, host(&["z"])), Ok(()), "a refused host has taken nothing");
        assert_eq!(hosts.put(&a, host(&["x"])), Ok(()), "its own domain is no other's");
        assert_eq!(hosts.put(&b, host(&["y", "z"])), Ok(()), "which the first has given up");
        hosts.remove(&a);
        assert_eq!(hosts.put(&b, host(&["x"])), Ok(()));
        assert_eq!(hosts.iter().count(), 1);
    }
}
