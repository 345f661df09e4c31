//! `proxy capture` in a pod's network: what is led to the proxy, what is left alone, and the proxy behind it.
//!
//! In: the binary, two network namespaces per trial. Out: who answered each connection. Kept true: nothing outside those namespaces is
//! touched; without root the trials show as ignored with the reason. Not here: the rules alone (`capture::rules`).

mod running;
mod world;

use std::net::{IpAddr, SocketAddr, UdpSocket};

use libtest_mimic::{Arguments, Failed, Trial};
use world::{OUTSIDE, PATIENCE, POD, World};

/// The user and group that are not captured.
const PROXY: u32 = 1337;
/// The application's.
const APP: u32 = 1000;

type Body = fn(&World) -> Result<(), Failed>;

const TRIALS: [(&str, Body); 10] = [
    ("connections of the application come to the outbound port", outbound),
    ("connections to the pod come to the inbound port", inbound),
    ("the proxy's own connections are let through, except those to its own pod", own),
    ("annotations leave destinations and ports out", exclusions),
    ("datagrams are left alone", datagrams),
    ("applying again replaces, removing restores", again),
    ("a check proves capture, and says so when there is none", checks),
    ("the proxy passes captured connections on, both ways", running::passes_on),
    ("a connection to the proxy's own ports never circles", running::never_circles),
    ("the kubelet is answered, and only the pod itself ends its proxy", running::pages),
];

fn main() {
    let arguments = Arguments::from_args();
    let possible = World::new().map(drop);
    let trials = TRIALS
        .map(|(name, body)| match &possible {
            Ok(()) => Trial::test(name, move || body(&World::new()?)),
            Err(why) => Trial::test(format!("{name} ({why})"), || Ok(())).with_ignored_flag(true),
        })
        .into();
    libtest_mimic::run(&arguments, trials).exit();
}

/// A pod with the proxy's ports and an application, and servers outside; the rules of `flags` are in force.
fn captured<'a>(world: &'a World, flags: &[&str]) -> Result<&'a World, Failed> {
    for (port, name) in
        [(15001, "outbound"), (15006, "inbound"), (15021, "health"), (8080, "app"), (9090, "more")]
    {
        world.pod.serve(port, name);
    }
    for port in [80, 5432] {
        world.outside.serve(port, "outside");
    }
    apply(world, flags)?;
    Ok(world)
}

fn apply(world: &World, flags: &[&str]) -> Result<(), Failed> {
    let output = world.pod.proxy(&[&["capture"], flags].concat());
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
    }
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// Asks as `user` (its group has the same number) and compares who answered, and for which address.
fn expect(place: &world::Place, user: u32, to: SocketAddr, want: &str) -> Result<(), Failed> {
    expect_from(place, user, None, to, want)
}

fn expect_from(
    place: &world::Place,
    user: u32,
    source: Option<&str>,
    to: SocketAddr,
    want: &str,
) -> Result<(), Failed> {
    let ip: Option<IpAddr> = source.map(|text| text.parse().expect("an address"));
    let got = place.ask(user, user, ip, to);
    match got.starts_with(&format!("{want} {to} ")) {
        true => Ok(()),
        false => Err(format!("user {user} → {to}: got `{got}`, want `{want}`").into()),
    }
}

fn outbound(world: &World) -> Result<(), Failed> {
    captured(world, &[])?;
    for ip in OUTSIDE.into_iter().chain(["192.0.2.7", "2001:db8::7"]) {
        for port in [80, 443, 53, 15001, 15006] {
            expect(&world.pod, APP, at(ip, port), "outbound")?;
            expect(&world.pod, 0, at(ip, port), "outbound")?;
        }
    }
    Ok(())
}

fn inbound(world: &World) -> Result<(), Failed> {
    captured(world, &[])?;
    for ip in POD {
        // Nobody listens at 7777, and nobody outside may reach 15000 or 15001.
        for port in [8080, 22, 7777, 15000, 15001] {
            expect(&world.outside, APP, at(ip, port), "inbound")?;
        }
        expect(&world.outside, APP, at(ip, 15021), "health")?;
    }
    Ok(())
}

fn own(world: &World) -> Result<(), Failed> {
    captured(world, &[])?;
    for (outside, (pod, (loopback, source))) in
        OUTSIDE.into_iter().zip(POD.into_iter().zip([("127.0.0.1", "127.0.0.6"), ("::1", "::6")]))
    {
        expect(&world.pod, PROXY, at(outside, 80), "outside")?;
        expect(&world.pod, PROXY, at(loopback, 8080), "app")?;
        expect(&world.pod, PROXY, at(pod, 8080), "inbound")?;
        expect_from(&world.pod, PROXY, Some(source), at(pod, 8080), "app")?;
        for own in [pod, loopback] {
            expect(&world.pod, APP, at(own, 8080), "app")?;
        }
    }
    // Either number will do.
    for (user, group) in [(PROXY, APP), (APP, PROXY)] {
        let got = world.pod.ask(user, group, None, at(OUTSIDE[0], 80));
        assert!(got.starts_with("outside"), "{user}:{group} got {got}");
    }
    Ok(())
}

fn exclusions(world: &World) -> Result<(), Failed> {
    captured(
        world,
        &[
            "--exclude-outbound-ports=5432",
            "--exclude-outbound-cidrs=10.77.0.0/24",
            "--exclude-inbound-ports=9090",
        ],
    )?;
    expect(&world.pod, APP, at(OUTSIDE[0], 80), "outside")?;
    expect(&world.pod, APP, at(OUTSIDE[1], 80), "outbound")?;
    expect(&world.pod, APP, at(OUTSIDE[1], 5432), "outside")?;
    expect(&world.outside, APP, at(POD[0], 9090), "more")?;
    expect(&world.outside, APP, at(POD[1], 8080), "inbound")?;
    apply(world, &["--include-outbound-cidrs=192.0.2.0/24,fd77::/64", "--include-inbound-ports=9090"])?;
    expect(&world.pod, APP, at("192.0.2.9", 80), "outbound")?;
    expect(&world.pod, APP, at(OUTSIDE[0], 80), "outside")?;
    expect(&world.pod, APP, at(OUTSIDE[1], 80), "outbound")?;
    expect(&world.outside, APP, at(POD[0], 8080), "app")?;
    expect(&world.outside, APP, at(POD[0], 9090), "inbound")?;
    apply(world, &["--exclude-interfaces=eth0"])?;
    expect(&world.pod, APP, at(OUTSIDE[0], 80), "outside")?;
    expect(&world.outside, APP, at(POD[0], 8080), "app")
}

fn datagrams(world: &World) -> Result<(), Failed> {
    captured(world, &[])?;
    for (from, to) in [(&world.pod, OUTSIDE), (&world.outside, POD)] {
        for ip in to {
            let there = if to == POD { &world.pod } else { &world.outside };
            let address = at(ip, 5353);
            there.echo(address);
            let answered = from.run(APP, APP, move || -> std::io::Result<bool> {
                let own: IpAddr = if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
                let socket = UdpSocket::bind((own, 0))?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.send_to(b"name?", address)?;
                let mut bytes = [0; 16];
                let (size, by) = socket.recv_from(&mut bytes)?;
                Ok(&bytes[..size] == b"name?" && by == address)
            });
            assert!(answered?, "{address}");
        }
    }
    Ok(())
}

fn again(world: &World) -> Result<(), Failed> {
    captured(world, &[])?;
    for _ in 0..3 {
        apply(world, &[])?;
    }
    expect(&world.pod, APP, at(OUTSIDE[0], 80), "outbound")?;
    // A list that fills more than one page of memory is still one step.
    let many: Vec<String> = (1000..1600).map(|port: u16| port.to_string()).collect();
    apply(world, &[&format!("--exclude-outbound-ports=80,{}", many.join(","))])?;
    expect(&world.pod, APP, at(OUTSIDE[0], 80), "outside")?;
    expect(&world.pod, APP, at(OUTSIDE[0], 81), "outbound")?;
    for _ in 0..2 {
        apply(world, &["--remove"])?;
    }
    expect(&world.pod, APP, at(OUTSIDE[0], 80), "outside")?;
    expect(&world.outside, APP, at(POD[0], 8080), "app")
}

fn checks(world: &World) -> Result<(), Failed> {
    let run = |args: &[&str]| {
        let output = world.pod.proxy(args);
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    };
    let (fine, text) = run(&["capture", "--check-only"]);
    assert!(!fine && text.contains("not captured"), "{text}");
    let (fine, text) = run(&["capture", "--check"]);
    assert!(fine && text.contains("IPv4: a connection to 192.0.2.1:65535 came"), "{text}");
    assert!(text.contains("IPv6: a connection to [2001:db8::1]:65535 came"), "{text}");
    let (fine, text) = run(&["capture", "--check-only", "--include-outbound-cidrs=10.77.0.0/24"]);
    assert!(fine && text.contains("IPv4: a connection to 10.77.0.1:65535 came"), "{text}");
    // The rules of before are still in force: asking does not change them.
    let (fine, text) = run(&["capture", "--dry-run", "--include-outbound-cidrs="]);
    assert!(fine && text.starts_with("table inet crema {"), "{text}");
    assert!(run(&["capture", "--check-only"]).0);
    let taken = world.pod.run(0, 0, || std::net::TcpListener::bind("127.0.0.1:15001"))?;
    let (fine, text) = run(&["capture", "--check-only"]);
    assert!(!fine && text.contains("port 15001 is taken"), "{text}");
    drop(taken);
    Ok(())
}
