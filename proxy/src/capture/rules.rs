//! What is captured: the rules, as data.
//!
//! In: [`Plan`], the flags understood. Out: [`Table`], chains of rules that print as `nft` would show them. Kept true: pure; the order of
//! rules is the order of decisions. Not here: the kernel's encoding (`nft`).
//!
//! The decisions are those of Istio's iptables rules, so that its annotations mean what people know: the proxy's own connections leave
//! untouched, except those to an address of the pod itself, which are inbound; connections of the application to itself stay its own;
//! what the proxy hands to the application comes from 127.0.0.6 (::6) and is let through.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// Name of the table.
pub const TABLE: &str = "crema";

/// Where the proxy's connections to its own application come from.
pub const INBOUND_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

/// The same for IPv6; `proxy capture` adds it to the loopback interface.
pub const INBOUND_SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// Lowest address: no bit is set behind the prefix.
    pub address: IpAddr,
    /// Leading bits that must be equal.
    pub prefix: u8,
}

impl Cidr {
    const fn v4(address: Ipv4Addr, prefix: u8) -> Self {
        Self { address: IpAddr::V4(address), prefix }
    }

    const fn v6(address: Ipv6Addr, prefix: u8) -> Self {
        Self { address: IpAddr::V6(address), prefix }
    }

    /// True when the range holds `ip`.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.address.is_ipv4() && masked(ip, self.prefix) == self.address
    }
}

fn masked(ip: IpAddr, prefix: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() & mask))
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & mask))
        }
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a range of addresses, such as 10.0.0.0/8 or fd00::/8");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(most), str::parse).map_err(|_| wrong())?;
        if prefix > most {
            return Err(wrong());
        }
        Ok(Self { address: masked(address, prefix), prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// All addresses, or some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cidrs {
    /// `*`.
    All,
    /// A list, possibly empty.
    These(Vec<Cidr>),
}

/// All ports, or some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ports {
    /// `*`.
    All,
    /// A list, possibly empty.
    These(Vec<u16>),
}

/// What is to be captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Destinations that are captured.
    pub include_outbound: Cidrs,
    /// Destinations that are not: stronger.
    pub exclude_outbound: Vec<Cidr>,
    /// Ports of the pod that are captured.
    pub include_inbound: Ports,
    /// Ports of the pod that are not: stronger.
    pub exclude_inbound_ports: Vec<u16>,
    /// Destination ports that are captured whatever the address.
    pub include_outbound_ports: Vec<u16>,
    /// Destination ports that are not captured: strongest.
    pub exclude_outbound_ports: Vec<u16>,
    /// Interfaces without capture.
    pub exclude_interfaces: Vec<String>,
    /// Interfaces whose incoming traffic counts as outbound.
    pub virtual_interfaces: Vec<String>,
    /// The proxy's user.
    pub uid: u32,
    /// The proxy's group.
    pub gid: u32,
    /// Where outbound connections go.
    pub outbound_port: u16,
    /// Where inbound connections go.
    pub inbound_port: u16,
}

/// One condition. All of a rule must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// Not TCP.
    NotTcp,
    /// Came in at.
    In(String),
    /// Leaves by.
    Out(String),
    /// Of the user.
    User(u32),
    /// Of the group.
    Group(u32),
    /// Destination port.
    Port(u16),
    /// Not this destination port.
    NotPort(u16),
    /// Source address.
    From(Cidr),
    /// Destination address.
    To(Cidr),
    /// IPv4 or IPv6 (true), to another address.
    NotTo(Cidr),
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Leaves the chain; at the top, the packet goes its way.
    Return,
    /// Goes through another chain, then on.
    Jump(&'static str),
    /// Goes through another chain instead of what follows.
    Goto(&'static str),
    /// To this port of the host.
    Redirect(u16),
}

/// Conditions and what follows from them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// All must hold; none is always.
    pub when: Vec<Match>,
    /// Then.
    pub then: Then,
}

/// Where the kernel enters a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that arrive.
    Prerouting,
    /// Packets that the host sends.
    Output,
}

/// Rules in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name.
    pub name: &'static str,
    /// Entered by the kernel there, or only from other chains.
    pub hook: Option<Hook>,
    /// In order.
    pub rules: Vec<Rule>,
}

/// All chains; those that others go to come first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// In the order in which they must be made.
    pub chains: Vec<Chain>,
}

const LOOPBACKS: [Cidr; 2] = [Cidr::v4(Ipv4Addr::new(127, 0, 0, 0), 8), Cidr::v6(Ipv6Addr::LOCALHOST, 128)];
const INBOUND_SOURCES: [Cidr; 2] = [Cidr::v4(INBOUND_SOURCE, 32), Cidr::v6(INBOUND_SOURCE_V6, 128)];
const LO: &str = "lo";
/// Names are asked at port 53 of the pod by nobody but a DNS server that is part of it.
const DNS: u16 = 53;

fn rule(when: impl Into<Vec<Match>>, then: Then) -> Rule {
    Rule { when: when.into(), then }
}

impl Plan {
    /// The rules.
    #[must_use]
    pub fn table(&self) -> Table {
        let chain = |name, hook, rules| Chain { name, hook, rules };
        Table {
            chains: vec![
                chain("inbound", None, self.inbound()),
                chain("outbound", None, self.outbound()),
                chain("prerouting", Some(Hook::Prerouting), self.prerouting()),
                chain("output", Some(Hook::Output), self.output()),
            ],
        }
    }

    fn inbound(&self) -> Vec<Rule> {
        let mut rules: Vec<Rule> =
            self.exclude_inbound_ports.iter().map(|p| rule([Match::Port(*p)], Then::Return)).collect();
        let to_proxy = Then::Redirect(self.inbound_port);
        match &self.include_inbound {
            Ports::All => rules.push(rule([], to_proxy)),
            Ports::These(ports) => rules.extend(ports.iter().map(|p| rule([Match::Port(*p)], to_proxy))),
        }
        rules
    }

    fn outbound(&self) -> Vec<Rule> {
        let mut rules: Vec<Rule> =
            self.exclude_outbound_ports.iter().map(|p| rule([Match::Port(*p)], Then::Return)).collect();
        rules.extend(self.exclude_outbound.iter().map(|c| rule([Match::To(*c)], Then::Return)));
        let to_proxy = Then::Redirect(self.outbound_port);
        rules.extend(self.include_outbound_ports.iter().map(|p| rule([Match::Port(*p)], to_proxy)));
        match &self.include_outbound {
            Cidrs::All => rules.push(rule([], to_proxy)),
            Cidrs::These(ranges) => rules.extend(ranges.iter().map(|c| rule([Match::To(*c)], to_proxy))),
        }
        rules
    }

    fn prerouting(&self) -> Vec<Rule> {
        let mut rules = vec![rule([Match::NotTcp], Then::Return)];
        let left = self.exclude_interfaces.iter().map(|name| rule([Match::In(name.clone())], Then::Return));
        rules.extend(left);
        let machines = self.virtual_interfaces.iter();
        rules.extend(machines.map(|name| rule([Match::In(name.clone())], Then::Goto("outbound"))));
        // What the pod sends to itself has been judged in `output`.
        rules.push(rule([Match::In(LO.to_owned())], Then::Return));
        rules.push(rule([], Then::Jump("inbound")));
        rules
    }

    fn output(&self) -> Vec<Rule> {
        let lo = || Match::Out(LO.to_owned());
        let mut rules = vec![rule([Match::NotTcp], Then::Return)];
        let left = self.exclude_interfaces.iter().map(|name| rule([Match::Out(name.clone())], Then::Return));
        rules.extend(left);
        // From the proxy to the application: it has been inbound already.
        rules.extend(INBOUND_SOURCES.map(|source| rule([lo(), Match::From(source)], Then::Return)));
        // From the proxy to an address of the pod: the application calls its own service, and what comes is inbound like any other.
        rules.extend(LOOPBACKS.map(|own| {
            let when = [lo(), Match::User(self.uid), Match::NotTo(own), Match::NotPort(DNS)];
            rule(when, Then::Jump("inbound"))
        }));
        rules.push(rule([Match::User(self.uid)], Then::Return));
        rules.push(rule([Match::Group(self.gid)], Then::Return));
        // The application talks to itself.
        rules.push(rule([lo()], Then::Return));
        rules.extend(LOOPBACKS.map(|own| rule([Match::To(own)], Then::Return)));
        rules.push(rule([], Then::Jump("outbound")));
        rules
    }

    /// An address that the rules must capture from a process that is not the proxy; `None` when they capture nothing of that family.
    #[must_use]
    pub fn sample(&self, v6: bool) -> Option<SocketAddr> {
        let documented = || -> IpAddr {
            if v6 {
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()
            } else {
                Ipv4Addr::new(192, 0, 2, 1).into()
            }
        };
        let free = |ip: &IpAddr| {
            ip.is_ipv6() == v6
                && !ip.is_loopback()
                && !ip.is_unspecified()
                && !self.exclude_outbound.iter().any(|range| range.contains(*ip))
        };
        let port = || (1..=u16::MAX).rev().find(|port| !self.exclude_outbound_ports.contains(port));
        if let Some(port) = self.include_outbound_ports.first()
            && free(&documented())
        {
            return Some(SocketAddr::new(documented(), *port));
        }
        let candidates: Vec<IpAddr> = match &self.include_outbound {
            Cidrs::All => vec![documented()],
            Cidrs::These(ranges) => ranges.iter().flat_map(|range| [after(range), range.address]).collect(),
        };
        Some(SocketAddr::new(candidates.into_iter().find(free)?, port()?))
    }
}

/// The second address of a range, or its only one.
fn after(range: &Cidr) -> IpAddr {
    match range.address {
        IpAddr::V4(ip) if range.prefix < 32 => Ipv4Addr::from_bits(ip.to_bits() | 1).into(),
        IpAddr::V6(ip) if range.prefix < 128 => Ipv6Addr::from_bits(ip.to_bits() | 1).into(),
        only => only,
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = |cidr: &Cidr| if cidr.address.is_ipv4() { "ip" } else { "ip6" };
        match self {
            Self::NotTcp => f.write_str("meta l4proto != tcp"),
            Self::In(name) => write!(f, "iifname \"{name}\""),
            Self::Out(name) => write!(f, "oifname \"{name}\""),
            Self::User(id) => write!(f, "meta skuid {id}"),
            Self::Group(id) => write!(f, "meta skgid {id}"),
            Self::Port(port) => write!(f, "tcp dport {port}"),
            Self::NotPort(port) => write!(f, "tcp dport != {port}"),
            Self::From(range) => write!(f, "{} saddr {range}", family(range)),
            Self::To(range) => write!(f, "{} daddr {range}", family(range)),
            Self::NotTo(range) => write!(f, "{} daddr != {range}", family(range)),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.when {
            write!(f, "{condition} ")?;
        }
        match self.then {
            Then::Return => f.write_str("return"),
            Then::Jump(chain) => write!(f, "jump {chain}"),
            Then::Goto(chain) => write!(f, "goto {chain}"),
            Then::Redirect(port) => write!(f, "redirect to :{port}"),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {TABLE} {{")?;
        for chain in &self.chains {
            writeln!(f, "\tchain {} {{", chain.name)?;
            match chain.hook {
                Some(Hook::Prerouting) => writeln!(f, "\t\ttype nat hook prerouting priority -100;")?,
                Some(Hook::Output) => writeln!(f, "\t\ttype nat hook output priority -100;")?,
                None => {}
            }
            for rule in &chain.rules {
                writeln!(f, "\t\t{rule}")?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
