use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::{capture::CaptureArgs, cli::Cli};

fn args(flags: &[&str]) -> CaptureArgs {
    use clap::Parser;
    let cli = Cli::try_parse_from(["proxy", "capture"].iter().chain(flags)).expect("known flags");
    let crate::cli::Verb::Capture(args) = cli.verb else { panic!("another verb") };
    *args
}

fn plan(flags: &[&str]) -> Plan {
    args(flags).plan().expect("good flags")
}

/// A TCP connection as the kernel sees its first packet.
#[derive(Clone, Copy)]
struct Packet {
    hook: Hook,
    interface: &'static str,
    from: IpAddr,
    to: SocketAddr,
    user: u32,
    group: u32,
    tcp: bool,
}

fn out(to: &str) -> Packet {
    let to: SocketAddr = to.parse().expect("an address");
    let from = Ipv4Addr::new(10, 0, 0, 5).into();
    Packet { hook: Hook::Output, interface: "eth0", from, to, user: 0, group: 0, tcp: true }
}

fn proxy(to: &str) -> Packet {
    Packet { user: 1337, group: 1337, ..out(to) }
}

fn on(interface: &'static str, packet: Packet) -> Packet {
    Packet { interface, ..packet }
}

fn from(source: &str, packet: Packet) -> Packet {
    Packet { from: source.parse().expect("an address"), ..packet }
}

fn arrives(port: u16) -> Packet {
    Packet { hook: Hook::Prerouting, ..out(&format!("10.0.0.5:{port}")) }
}

/// Runs the chains as the kernel does: the port that the packet is sent to instead, if any.
fn judge(table: &Table, packet: &Packet) -> Option<u16> {
    let chain = table.chains.iter().find(|chain| chain.hook == Some(packet.hook)).expect("a chain");
    walk(table, chain, packet)
}

fn walk(table: &Table, chain: &Chain, packet: &Packet) -> Option<u16> {
    let called = |name| table.chains.iter().find(|chain| chain.name == name).expect("a chain");
    for rule in &chain.rules {
        if !rule.when.iter().all(|condition| holds(condition, packet)) {
            continue;
        }
        match rule.then {
            Then::Return => return None,
            Then::Goto(name) => return walk(table, called(name), packet),
            Then::Redirect(port) => return Some(port),
            Then::Jump(name) => match walk(table, called(name), packet) {
                Some(port) => return Some(port),
                None => continue,
            },
        }
    }
    None
}

fn holds(condition: &Match, packet: &Packet) -> bool {
    match condition {
        Match::NotTcp => !packet.tcp,
        Match::In(name) => packet.hook == Hook::Prerouting && packet.interface == name,
        Match::Out(name) => packet.hook == Hook::Output && packet.interface == name,
        Match::User(id) => packet.user == *id,
        Match::Group(id) => packet.group == *id,
        Match::Port(port) => packet.to.port() == *port,
        Match::NotPort(port) => packet.to.port() != *port,
        Match::From(range) => range.contains(packet.from),
        Match::To(range) => range.contains(packet.to.ip()),
        Match::NotTo(range) => {
            packet.to.is_ipv4() == range.address.is_ipv4() && !range.contains(packet.to.ip())
        }
    }
}

#[test]
fn connections_go_where_istio_would_send_them() {
    let inbound = Some(15006);
    let outbound = Some(15001);
    let udp = |packet: Packet| Packet { tcp: false, ..packet };
    for (flags, packet, want) in [
        // Everything, by default, both families.
        (&[][..], out("10.96.0.10:80"), outbound),
        (&[], out("[fd00::1]:80"), outbound),
        (&[], out("10.96.0.10:53"), outbound),
        (&[], udp(out("10.96.0.10:53")), None),
        (&[], arrives(8080), inbound),
        (&[], arrives(22), inbound),
        (&[], udp(arrives(53)), None),
        // The proxy's pages, and the proxy itself.
        (&[], arrives(15020), None),
        (&[], arrives(15021), None),
        (&[], arrives(15090), None),
        (&[], proxy("10.96.0.10:80"), None),
        (&[], Packet { user: 5, ..proxy("10.96.0.10:80") }, None),
        (&["--proxy-uid=7", "--proxy-gid=7"], proxy("10.96.0.10:80"), outbound),
        // The application to itself, the proxy to the application, the pod to its own service.
        (&[], on("lo", out("10.0.0.5:8080")), None),
        (&[], on("lo", out("127.0.0.1:8080")), None),
        (&[], out("127.0.0.1:8080"), None),
        (&[], on("lo", out("[::1]:8080")), None),
        (&[], on("lo", from("127.0.0.6", proxy("10.0.0.5:8080"))), None),
        (&[], on("lo", from("::6", proxy("[fd00::5]:8080"))), None),
        (&[], on("lo", proxy("10.0.0.5:8080")), inbound),
        (&[], on("lo", proxy("[fd00::5]:8080")), inbound),
        (&[], on("lo", proxy("10.0.0.5:53")), None),
        (&[], on("lo", proxy("127.0.0.1:8080")), None),
        (&[], on("lo", Packet { hook: Hook::Prerouting, ..out("10.0.0.5:8080") }), None),
        // What annotations change.
        (&["--exclude-outbound-cidrs=10.96.0.0/16,fd00::/8"], out("10.96.3.4:80"), None),
        (&["--exclude-outbound-cidrs=10.96.0.0/16,fd00::/8"], out("[fd12::4]:80"), None),
        (&["--exclude-outbound-cidrs=10.96.0.0/16"], out("10.97.3.4:80"), outbound),
        (&["--include-outbound-cidrs=10.96.0.0/12"], out("10.97.3.4:80"), outbound),
        (&["--include-outbound-cidrs=10.96.0.0/12"], out("93.184.216.34:80"), None),
        (&["--include-outbound-cidrs=10.96.0.0/12"], out("[fd12::4]:80"), None),
        (&["--include-outbound-cidrs="], out("10.97.3.4:80"), None),
        (&["--include-outbound-cidrs=", "--include-outbound-ports=443"], out("93.184.216.34:443"), outbound),
        (&["--include-outbound-cidrs=", "--include-outbound-ports=443"], out("93.184.216.34:80"), None),
        (&["--exclude-outbound-ports=3306, 5432"], out("10.97.3.4:5432"), None),
        (&["--exclude-outbound-ports=3306"], out("10.97.3.4:5432"), outbound),
        (&["--include-inbound-ports=80,8080"], arrives(8080), inbound),
        (&["--include-inbound-ports=80,8080"], arrives(9090), None),
        (&["--include-inbound-ports="], arrives(9090), None),
        (&["--exclude-inbound-ports=9090"], arrives(9090), None),
        (&["--exclude-inbound-ports=9090"], on("lo", proxy("10.0.0.5:9090")), None),
        (&["--exclude-interfaces=eth1"], on("eth1", out("10.97.3.4:80")), None),
        (&["--exclude-interfaces=eth1"], on("eth1", arrives(80)), None),
        (
            &["--kubevirt-interfaces=k6t0"],
            on("k6t0", Packet { to: out("10.97.3.4:80").to, ..arrives(80) }),
            outbound,
        ),
    ] {
        let table = plan(flags).table();
        let Packet { hook, interface, from, to, user, .. } = packet;
        assert_eq!(judge(&table, &packet), want, "{flags:?} {hook:?} {interface} {from} → {to}, user {user}");
    }
}

#[test]
fn what_cannot_be_meant_is_refused_with_its_flag() {
    for (flag, want) in [
        ("--include-outbound-cidrs=10.0.0.0/33", "--include-outbound-cidrs: `10.0.0.0/33` is not a range"),
        ("--exclude-outbound-cidrs=ten", "--exclude-outbound-cidrs: `ten`"),
        ("--exclude-inbound-ports=0", "--exclude-inbound-ports: `0` is not a port"),
        ("--include-inbound-ports=80-90", "--include-inbound-ports: `80-90`"),
        ("--exclude-interfaces=a-name-that-is-too-long", "--exclude-interfaces: "),
        ("--inbound-port=15001", "--inbound-port: 15001 is --outbound-port too"),
    ] {
        let error = args(&[flag]).plan().expect_err("refused").to_string();
        assert!(error.starts_with(want), "{error}");
    }
}

#[test]
fn a_check_connects_to_what_is_captured() {
    for (flags, v6, want) in [
        (&[][..], false, Some("192.0.2.1:65535")),
        (&[], true, Some("[2001:db8::1]:65535")),
        (&["--exclude-outbound-ports=65535"], false, Some("192.0.2.1:65534")),
        (&["--include-outbound-cidrs=10.96.0.0/12"], false, Some("10.96.0.1:65535")),
        (&["--include-outbound-cidrs=10.96.0.0/12"], true, None),
        (&["--include-outbound-cidrs=", "--include-outbound-ports=443"], false, Some("192.0.2.1:443")),
        (&["--include-outbound-cidrs="], false, None),
    ] {
        let plan = plan(flags);
        let sample = plan.sample(v6);
        assert_eq!(sample.map(|at| at.to_string()).as_deref(), want, "{flags:?} v6 {v6}");
        if let Some(sample) = sample {
            assert_eq!(judge(&plan.table(), &out(&sample.to_string())), Some(15001), "{flags:?}");
        }
    }
}

#[test]
fn ranges_are_cut_to_their_prefix() {
    for (text, want) in [
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("10.1.2.3", "10.1.2.3/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("fd12:3456::1/16", "fd12::/16"),
        ("::/0", "::/0"),
    ] {
        assert_eq!(text.parse::<Cidr>().expect("a range").to_string(), want);
    }
}
