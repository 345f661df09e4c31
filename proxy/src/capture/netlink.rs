//! Talking to the kernel: netlink messages, their answers, and what its refusals mean.
//!
//! In: messages. Out: done, or which message the kernel refused and what the operator can do. Kept true: a batch is all or nothing.
//! Not here: what the messages of nftables hold (`nft`).

use std::{net::Ipv6Addr, os::fd::OwnedFd};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
        netlink::{self, SocketAddrNetlink},
        recv, send, socket_with, sockopt,
    },
};
use thiserror::Error;

use super::rules::INBOUND_SOURCE_V6;

/// Why the kernel did not do it.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// No such socket.
    #[error(
        "this kernel has no nf_tables ({0}): traffic cannot be captured; load the modules nf_tables and nft_redir on the node, or set sidecar.istio.io/interceptionMode: NONE"
    )]
    NoNetfilter(#[source] Errno),
    /// Not allowed.
    #[error(
        "{what}: not allowed: the container needs the capability NET_ADMIN and user 0 (securityContext.capabilities.add, runAsUser)"
    )]
    NotAllowed {
        /// What was refused.
        what: String,
    },
    /// A part of nftables is missing.
    #[error(
        "{what}: this kernel cannot do that ({why}): load the modules nft_chain_nat and nft_redir on the node (Linux 5.2 or newer)"
    )]
    Unsupported {
        /// What was refused.
        what: String,
        /// The kernel's word.
        why: Errno,
    },
    /// Anything else.
    #[error("{what}: {why}")]
    Refused {
        /// What was refused.
        what: String,
        /// The kernel's word.
        why: Errno,
    },
    /// The kernel went silent.
    #[error("the kernel did not answer for {what}")]
    Silent {
        /// What was asked.
        what: String,
    },
}

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const REPLACE: u16 = 0x100;
const CREATE: u16 = 0x400;
/// Behind what is there: without it, each rule would become the first of its chain.
const APPEND: u16 = 0x800;
/// `NLMSG_ERROR`: an error or, with number 0, an acknowledgement.
const ANSWER: u16 = 2;
const NESTED: u16 = 0x8000;
/// Bytes that the kernel may hold for us: some thousands of rules and their answers.
const ROOM: usize = 4 << 20;

/// Messages to send at once, and what each is for.
#[derive(Debug, Default)]
pub struct Messages {
    bytes: Vec<u8>,
    what: Vec<String>,
}

impl Messages {
    /// Adds a message with its fixed head; attributes come from `fill`. `what` names it in errors.
    pub fn add(
        &mut self,
        kind: u16,
        create: bool,
        head: &[u8],
        what: String,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        let sequence = u32::try_from(self.what.len()).unwrap_or(u32::MAX);
        let flags = REQUEST | ACK | if create { CREATE | APPEND } else { 0 };
        self.raw(kind, flags, sequence, head, fill);
        debug_assert!(self.bytes.len() > start, "a message has a head");
        self.what.push(what);
    }

    /// Adds a message that the kernel does not answer.
    pub fn mark(&mut self, kind: u16, head: &[u8]) {
        self.raw(kind, REQUEST, u32::MAX, head, |_| {});
    }

    fn raw(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        head: &[u8],
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend(head);
        fill(&mut Attributes(&mut self.bytes));
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }
}

/// Attributes of a message: type, length, value, padded to four bytes.
#[derive(Debug)]
pub struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    /// Bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.wrap(kind, |into| into.0.extend(value));
    }

    /// Text, with the zero that C expects.
    pub fn text(&mut self, kind: u16, value: &str) {
        self.wrap(kind, |into| {
            into.0.extend(value.as_bytes());
            into.0.push(0);
        });
    }

    /// A number in network order, as nftables has them.
    pub fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Attributes in an attribute.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.wrap(kind | NESTED, |into| fill(&mut Attributes(into.0)));
    }

    fn wrap(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.0.len();
        self.0.extend(0u16.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        fill(&mut Attributes(self.0));
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// A socket to the kernel's packet filter.
#[derive(Debug)]
pub struct Netfilter(OwnedFd);

impl Netfilter {
    /// Opens it.
    ///
    /// # Errors
    /// Without nf_tables in the kernel.
    pub fn open() -> Result<Self, NetlinkError> {
        open(Some(netlink::NETFILTER)).map(Self).map_err(NetlinkError::NoNetfilter)
    }

    /// Sends a batch: all of it is done, or nothing.
    ///
    /// # Errors
    /// What was refused first.
    pub fn send(&self, messages: &Messages) -> Result<(), NetlinkError> {
        exchange(&self.0, messages)
    }
}

fn open(protocol: Option<rustix::net::Protocol>) -> Result<OwnedFd, Errno> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    // Each message is answered by itself, all before we read. Refused only where the rules will be refused too.
    let _ = sockopt::set_socket_recv_buffer_size_force(&socket, ROOM);
    let _ = sockopt::set_socket_send_buffer_size_force(&socket, ROOM);
    Ok(socket)
}

/// The kernel does its work within `send`: when that returns, every answer lies in the socket.
fn exchange(socket: &OwnedFd, messages: &Messages) -> Result<(), NetlinkError> {
    let all = || "the rules".to_owned();
    send(socket, &messages.bytes, SendFlags::empty()).map_err(|why| refusal(all(), why))?;
    let mut answers = vec![0; 256 * 1024];
    let mut done = vec![false; messages.what.len()];
    loop {
        let length = match recv(socket, &mut answers[..], RecvFlags::DONTWAIT) {
            Ok((_, length)) => length.min(answers.len()),
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => continue,
            Err(why) => return Err(refusal(all(), why)),
        };
        for (sequence, code) in read(&answers[..length]) {
            let what = usize::try_from(sequence).ok().and_then(|at| messages.what.get(at));
            if code != 0 {
                return Err(refusal(what.cloned().unwrap_or_else(all), Errno::from_raw_os_error(code)));
            }
            if let Some(one) = usize::try_from(sequence).ok().and_then(|at| done.get_mut(at)) {
                *one = true;
            }
        }
    }
    match done.iter().zip(&messages.what).find(|(done, _)| !**done) {
        Some((_, what)) => Err(NetlinkError::Silent { what: what.clone() }),
        None => Ok(()),
    }
}

/// Answers in a datagram: sequence number and error number, 0 for an acknowledgement.
fn read(mut bytes: &[u8]) -> Vec<(u32, i32)> {
    let mut answers = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<16>() {
        let [a, b, c, d, e, f, _, _, g, h, i, j, ..] = *head;
        let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if u16::from_ne_bytes([e, f]) == ANSWER
            && let Some(code) = rest.first_chunk::<4>()
        {
            answers.push((u32::from_ne_bytes([g, h, i, j]), i32::from_ne_bytes(*code).saturating_neg()));
        }
        match bytes.get(length.next_multiple_of(4).max(16)..) {
            Some(next) => bytes = next,
            None => break,
        }
    }
    answers
}

fn refusal(what: String, why: Errno) -> NetlinkError {
    match why {
        Errno::PERM | Errno::ACCESS => NetlinkError::NotAllowed { what },
        Errno::OPNOTSUPP | Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT | Errno::NOENT => {
            NetlinkError::Unsupported { what, why }
        }
        _ => NetlinkError::Refused { what, why },
    }
}

/// Gives the loopback interface the IPv6 address that the proxy's connections to the application come from; IPv4 has 127.0.0.6 anyway.
/// False where the pod has no IPv6 address: there is nothing to capture then, and one on loopback would only make resolvers ask for more.
///
/// # Errors
/// When the kernel refuses.
pub fn add_inbound_source() -> Result<bool, NetlinkError> {
    if !std::fs::read_to_string("/proc/self/net/if_inet6").is_ok_and(|list| reachable_by_six(&list)) {
        return Ok(false);
    }
    const NEW_ADDRESS: u16 = 20;
    const LOCAL: u16 = 2;
    const ADDRESS: u16 = 1;
    /// The address needs no detection of duplicates: it never leaves the host.
    const NO_DETECTION: u8 = 2;
    const HOST_SCOPE: u8 = 254;
    /// AF_INET6.
    const FAMILY: u8 = 10;
    let what = "the address ::6 on the interface lo".to_owned();
    let socket = open(None).map_err(|why| refusal(what.clone(), why))?;
    let address: Ipv6Addr = INBOUND_SOURCE_V6;
    let mut head = vec![FAMILY, 128, NO_DETECTION, HOST_SCOPE];
    // The loopback interface is the first of every network namespace.
    head.extend(1u32.to_ne_bytes());
    let mut messages = Messages::default();
    let flags = REQUEST | ACK | CREATE | REPLACE;
    messages.raw(NEW_ADDRESS, flags, 0, &head, |attributes| {
        attributes.bytes(LOCAL, &address.octets());
        attributes.bytes(ADDRESS, &address.octets());
    });
    messages.what.push(what);
    exchange(&socket, &messages)?;
    Ok(true)
}

/// Whether the kernel's list of IPv6 addresses has one that others can send to: not of loopback, not of the link alone.
fn reachable_by_six(list: &str) -> bool {
    const GLOBAL: &str = "00";
    list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|columns| {
        matches!(columns[..], [_, _, _, scope, _, interface] if scope == GLOBAL && interface != "lo")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_with_link_local_addresses_alone_has_no_ipv6() {
        let own = "00000000000000000000000000000001 01 80 10 80       lo\n";
        let link = "fe80000000000000183a3cfffe5b1d2a 02 40 20 80     eth0\n";
        let global = "fd770000000000000000000000000002 02 40 00 82     eth0\n";
        let before = "00000000000000000000000000000006 01 80 00 82       lo\n";
        for (list, want) in [
            (String::new(), false),
            ([own, link].concat(), false),
            ([own, link, before].concat(), false),
            ([own, link, global].concat(), true),
            ("x".to_owned(), false),
        ] {
            assert_eq!(reachable_by_six(&list), want, "{list}");
        }
    }

    #[test]
    fn attributes_are_padded_and_their_lengths_are_not() {
        let mut messages = Messages::default();
        messages.add(7, true, &[1, 2, 3, 4], "x".to_owned(), |a| {
            a.text(1, "ab");
            a.nest(2, |a| a.number(3, 5));
        });
        let bytes = &messages.bytes;
        assert_eq!(bytes.len(), 16 + 4 + 8 + 12);
        assert_eq!(bytes[0..4], 40u32.to_ne_bytes());
        assert_eq!(bytes[20..28], [&7u16.to_ne_bytes()[..], &1u16.to_ne_bytes(), b"ab\0\0"].concat()[..]);
        assert_eq!(bytes[28..30], 12u16.to_ne_bytes(), "a nest counts what is in it");
        assert_eq!(bytes[36..40], [0, 0, 0, 5]);
    }

    #[test]
    fn answers_are_read_whatever_the_kernel_sends() {
        let answer = |sequence: u32, code: i32| {
            let mut bytes = 36u32.to_ne_bytes().to_vec();
            bytes.extend(ANSWER.to_ne_bytes());
            bytes.extend([0; 2]);
            bytes.extend(sequence.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend(code.to_ne_bytes());
            bytes.resize(36, 0);
            bytes
        };
        let two = [answer(3, 0), answer(4, -1)].concat();
        assert_eq!(read(&two), [(3, 0), (4, 1)]);
        for cut in 0..two.len() {
            let _ = read(&two[..cut]);
        }
        assert_eq!(read(&[0; 64]).len(), 0);
    }

    #[test]
    fn refusals_name_what_to_do() {
        for (why, want) in [
            (Errno::PERM, "NET_ADMIN"),
            (Errno::OPNOTSUPP, "nft_redir"),
            (Errno::INVAL, "rule 3 of chain output: Invalid argument"),
        ] {
            let text = refusal("rule 3 of chain output".to_owned(), why).to_string();
            assert!(text.contains(want), "{text}");
        }
    }
}
