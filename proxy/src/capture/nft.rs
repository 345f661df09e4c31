//! Rules in the kernel's own words: tables, chains and expressions of nftables.
//!
//! In: a [`Table`]. Out: [`Messages`] for one batch. Kept true: the batch makes, removes and makes the table again, so that it ends the same
//! whatever was there before, and in one step. Not here: the socket (`netlink`); why the rules are what they are (`rules`).
//!
//! Numbers are those of `linux/netfilter/nf_tables.h` and `nfnetlink.h`, which never change.

use std::net::IpAddr;

use super::{
    netlink::{Attributes, Messages},
    rules::{Chain, Cidr, Hook, Match, Rule, TABLE, Table, Then},
};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = (SUBSYSTEM << 8) | 2;
const NEW_CHAIN: u16 = (SUBSYSTEM << 8) | 3;
const NEW_RULE: u16 = (SUBSYSTEM << 8) | 6;
/// Family, version, resource: the family is `inet`, IPv4 and IPv6 together.
const HEAD: [u8; 4] = [1, 0, 0, 0];
/// NF_INET_PRE_ROUTING, NF_INET_LOCAL_OUT.
const HOOKS: [(Hook, u32); 2] = [(Hook::Prerouting, 0), (Hook::Output, 3)];
/// Before other translation of destinations would see it.
const PRIORITY: i32 = -100;
/// The register that values pass through.
const REGISTER: u32 = 1;
/// The register that holds the verdict.
const VERDICT: u32 = 0;

/// Replaces the table, whatever it was.
#[must_use]
pub fn replacement(table: &Table) -> Messages {
    batch(|messages| {
        name_table(messages, NEW_TABLE, true);
        name_table(messages, DELETE_TABLE, false);
        name_table(messages, NEW_TABLE, true);
        for chain in &table.chains {
            new_chain(messages, chain);
        }
        for chain in &table.chains {
            for (number, rule) in chain.rules.iter().enumerate() {
                let what = format!("rule {} of chain {} ({rule})", number + 1, chain.name);
                messages.add(NEW_RULE, true, &HEAD, what, |attributes| {
                    attributes.text(1, TABLE);
                    attributes.text(2, chain.name);
                    attributes.nest(4, |list| expressions(list, rule));
                });
            }
        }
    })
}

/// Removes the table, if it is there.
#[must_use]
pub fn removal() -> Messages {
    batch(|messages| {
        name_table(messages, NEW_TABLE, true);
        name_table(messages, DELETE_TABLE, false);
    })
}

fn batch(fill: impl FnOnce(&mut Messages)) -> Messages {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    let mut messages = Messages::default();
    messages.mark(BATCH_BEGIN, &[0, 0, high, low]);
    fill(&mut messages);
    messages.mark(BATCH_END, &[0, 0, high, low]);
    messages
}

fn name_table(messages: &mut Messages, kind: u16, create: bool) {
    messages.add(kind, create, &HEAD, format!("table inet {TABLE}"), |a| a.text(1, TABLE));
}

fn new_chain(messages: &mut Messages, chain: &Chain) {
    let what = format!("chain {}", chain.name);
    messages.add(NEW_CHAIN, true, &HEAD, what, |attributes| {
        attributes.text(1, TABLE);
        attributes.text(3, chain.name);
        if let Some((_, number)) = HOOKS.iter().find(|(hook, _)| Some(*hook) == chain.hook) {
            attributes.nest(4, |hook| {
                hook.number(1, *number);
                hook.bytes(2, &PRIORITY.to_be_bytes());
            });
            attributes.text(7, "nat");
        }
    });
}

fn expressions(list: &mut Attributes<'_>, rule: &Rule) {
    for condition in &rule.when {
        test(list, condition);
    }
    match rule.then {
        Then::Return => verdict(list, -5, None),
        Then::Jump(chain) => verdict(list, -3, Some(chain)),
        Then::Goto(chain) => verdict(list, -4, Some(chain)),
        Then::Redirect(port) => {
            expression(list, "immediate", |a| {
                a.number(1, REGISTER);
                a.nest(2, |data| data.bytes(1, &port.to_be_bytes()));
            });
            expression(list, "redir", |a| a.number(1, REGISTER));
        }
    }
}

/// Loads what a condition looks at, and compares it.
fn test(list: &mut Attributes<'_>, condition: &Match) {
    const IPPROTO_TCP: u8 = 6;
    match condition {
        Match::NotTcp => {
            meta(list, Meta::Protocol);
            compare(list, false, &[IPPROTO_TCP]);
        }
        Match::In(name) => {
            meta(list, Meta::InputName);
            compare(list, true, &padded(name));
        }
        Match::Out(name) => {
            meta(list, Meta::OutputName);
            compare(list, true, &padded(name));
        }
        // The kernel keeps numbers of users in its own byte order.
        Match::User(id) => {
            meta(list, Meta::User);
            compare(list, true, &id.to_ne_bytes());
        }
        Match::Group(id) => {
            meta(list, Meta::Group);
            compare(list, true, &id.to_ne_bytes());
        }
        // Whatever is not TCP left the chain before any rule that looks at ports.
        Match::Port(port) => {
            payload(list, Base::Transport, 2, 2);
            compare(list, true, &port.to_be_bytes());
        }
        Match::NotPort(port) => {
            payload(list, Base::Transport, 2, 2);
            compare(list, false, &port.to_be_bytes());
        }
        Match::From(range) => address(list, range, (12, 8), true),
        Match::To(range) => address(list, range, (16, 24), true),
        Match::NotTo(range) => address(list, range, (16, 24), false),
    }
}

/// The family must be the range's; then the address at the offset (of IPv4's head, of IPv6's) is in the range, or is not.
fn address(list: &mut Attributes<'_>, range: &Cidr, offsets: (u32, u32), within: bool) {
    const NFPROTO_IPV4: u8 = 2;
    const NFPROTO_IPV6: u8 = 10;
    let (family, offset, value) = match range.address {
        IpAddr::V4(ip) => (NFPROTO_IPV4, offsets.0, ip.octets().to_vec()),
        IpAddr::V6(ip) => (NFPROTO_IPV6, offsets.1, ip.octets().to_vec()),
    };
    meta(list, Meta::Family);
    compare(list, true, &[family]);
    let length = if family == NFPROTO_IPV4 { 4u8 } else { 16 };
    payload(list, Base::Network, offset, length.into());
    if range.prefix < length * 8 {
        let mask: Vec<u8> = (0..length)
            .map(|byte| {
                let ones = range.prefix.saturating_sub(byte * 8).min(8);
                u8::MAX.checked_shl(u32::from(8 - ones)).unwrap_or(0)
            })
            .collect();
        expression(list, "bitwise", |a| {
            a.number(1, REGISTER);
            a.number(2, REGISTER);
            a.number(3, length.into());
            a.nest(4, |data| data.bytes(1, &mask));
            a.nest(5, |data| data.bytes(1, &vec![0; mask.len()]));
        });
    }
    compare(list, within, &value);
}

/// Names of interfaces are compared whole: sixteen bytes.
fn padded(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (slot, byte) in bytes.iter_mut().zip(name.bytes().take(15)) {
        *slot = byte;
    }
    bytes
}

#[derive(Clone, Copy)]
enum Meta {
    InputName,
    OutputName,
    User,
    Group,
    Family,
    Protocol,
}

fn meta(list: &mut Attributes<'_>, what: Meta) {
    let key = match what {
        Meta::InputName => 6,
        Meta::OutputName => 7,
        Meta::User => 10,
        Meta::Group => 11,
        Meta::Family => 15,
        Meta::Protocol => 16,
    };
    expression(list, "meta", |a| {
        a.number(1, REGISTER);
        a.number(2, key);
    });
}

#[derive(Clone, Copy)]
enum Base {
    Network,
    Transport,
}

fn payload(list: &mut Attributes<'_>, base: Base, offset: u32, length: u32) {
    expression(list, "payload", |a| {
        a.number(1, REGISTER);
        a.number(2, if matches!(base, Base::Network) { 1 } else { 2 });
        a.number(3, offset);
        a.number(4, length);
    });
}

fn compare(list: &mut Attributes<'_>, equal: bool, value: &[u8]) {
    expression(list, "cmp", |a| {
        a.number(1, REGISTER);
        a.number(2, if equal { 0 } else { 1 });
        a.nest(3, |data| data.bytes(1, value));
    });
}

fn verdict(list: &mut Attributes<'_>, code: i32, chain: Option<&str>) {
    expression(list, "immediate", |a| {
        a.number(1, VERDICT);
        a.nest(2, |data| {
            data.nest(2, |verdict| {
                verdict.bytes(1, &code.to_be_bytes());
                if let Some(chain) = chain {
                    verdict.text(2, chain);
                }
            });
        });
    });
}

fn expression(list: &mut Attributes<'_>, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) {
    list.nest(1, |element| {
        element.text(1, name);
        element.nest(2, fill);
    });
}
