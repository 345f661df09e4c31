//! A pod in a network namespace of its own, and a neighbour outside it, joined by one wire.
//!
//! In: root's rights and `ip`. Out: [`World`], whose parts run code where they are. Kept true: every wait is bounded; the namespaces are
//! gone when the world is dropped. Not here: what is expected (`main`).

use std::{
    fs::File,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use rustix::{
    process::{Gid, Uid},
    thread::{
        LinkNameSpaceType, move_into_link_name_space, set_thread_groups, set_thread_res_gid,
        set_thread_res_uid,
    },
};
use socket2::{Domain, SockRef, Socket, Type};

/// Addresses of the pod.
pub const POD: [&str; 2] = ["10.77.0.2", "fd77::2"];
/// Addresses of the neighbour, which is the pod's way to everywhere else.
pub const OUTSIDE: [&str; 2] = ["10.77.0.1", "fd77::1"];
/// How long anything here may take.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A network namespace, removed when dropped.
#[derive(Debug)]
pub struct Place(pub String);

impl Place {
    fn new(name: String) -> Result<Self, String> {
        ip(&["netns", "add", &name])?;
        let place = Self(name);
        place.ip(&["link", "set", "lo", "up"])?;
        Ok(place)
    }

    fn ip(&self, args: &[&str]) -> Result<(), String> {
        ip(&[&["-n", &self.0], args].concat())
    }

    /// Runs `work` here, on a thread of its own that belongs to `user` and `group`.
    pub fn run<T: Send + 'static>(
        &self,
        user: u32,
        group: u32,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        self.start(user, group, work).join().expect("no panic there")
    }

    /// Like [`Self::run`], without waiting.
    pub fn start<T: Send + 'static>(
        &self,
        user: u32,
        group: u32,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let space = File::open(format!("/run/netns/{}", self.0)).expect("the namespace is there");
        thread::spawn(move || {
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may");
            if group != 0 {
                let group = Gid::from_raw(group);
                set_thread_groups(&[]).expect("root may");
                set_thread_res_gid(group, group, group).expect("root may");
            }
            if user != 0 {
                let user = Uid::from_raw(user);
                set_thread_res_uid(user, user, user).expect("root may");
            }
            work()
        })
    }

    /// Runs the proxy's binary here as root, with nothing in its environment.
    pub fn proxy(&self, args: &[&str]) -> Output {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        self.run(0, 0, move || {
            Command::new(env!("CARGO_BIN_EXE_proxy"))
                .env_clear()
                .args(args)
                .output()
                .expect("the binary starts")
        })
    }

    /// Status and body of a page, asked for from here; status 0 when there was no answer.
    pub fn http(&self, method: &'static str, to: SocketAddr, path: &'static str) -> (u16, String) {
        self.run(0, 0, move || {
            let asked = || -> std::io::Result<String> {
                let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                write!(
                    stream,
                    "{method} {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                )?;
                let mut text = String::new();
                stream.read_to_string(&mut text)?;
                Ok(text)
            };
            let text = asked().unwrap_or_default();
            let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
            (status.unwrap_or_default(), body.to_owned())
        })
    }

    /// Answers every TCP connection to `port`, both families, with a name and what the server saw.
    pub fn serve(&self, port: u16, name: &'static str) {
        let sockets = self.run(0, 0, move || [listener(Domain::IPV4, port), listener(Domain::IPV6, port)]);
        for socket in sockets {
            thread::spawn(move || {
                for stream in socket.incoming().flatten() {
                    let _ = answer(stream, name);
                }
            });
        }
    }

    /// Sends datagrams back.
    pub fn echo(&self, address: SocketAddr) {
        let socket = self.run(0, 0, move || UdpSocket::bind(address).expect("free"));
        thread::spawn(move || {
            let mut bytes = [0; 64];
            while let Ok((size, from)) = socket.recv_from(&mut bytes) {
                let _ = socket.send_to(&bytes[..size], from);
            }
        });
    }

    /// What answers at `to`: the text of [`Self::serve`], or the kind of error. A source address is optional.
    pub fn ask(&self, user: u32, group: u32, source: Option<IpAddr>, to: SocketAddr) -> String {
        self.run(user, group, move || {
            let asked = || -> std::io::Result<String> {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
                if let Some(source) = source {
                    socket.bind(&SocketAddr::new(source, 0).into())?;
                }
                socket.connect_timeout(&to.into(), PATIENCE)?;
                let mut stream = TcpStream::from(socket);
                stream.set_read_timeout(Some(PATIENCE))?;
                let mut text = String::new();
                stream.write_all(b"?")?;
                stream.read_to_string(&mut text)?;
                Ok(text)
            };
            asked().unwrap_or_else(|error| format!("{:?}", error.kind()))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.0]);
    }
}

fn listener(domain: Domain, port: u16) -> TcpListener {
    let socket = Socket::new(domain, Type::STREAM, None).expect("a socket");
    let ip: IpAddr = if domain == Domain::IPV4 { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    if domain == Domain::IPV6 {
        socket.set_only_v6(true).expect("an option of Linux");
    }
    socket.bind(&SocketAddr::new(ip, port).into()).expect("free");
    socket.listen(64).expect("bound");
    socket.into()
}

/// `name`, where the connection was sent to before capture, and where it comes from.
fn answer(mut stream: TcpStream, name: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut sign = [0];
    stream.read_exact(&mut sign)?;
    let socket = SockRef::from(&stream);
    let original = socket.original_dst_v4().or_else(|_| socket.original_dst_v6());
    let meant = match original {
        Ok(address) => address.as_socket(),
        Err(_) => stream.local_addr().ok(),
    };
    let from = stream.peer_addr()?.ip();
    write!(stream, "{name} {} from {from}", meant.map(|address| address.to_string()).unwrap_or_default())
}

/// The pod and its neighbour.
#[derive(Debug)]
pub struct World {
    /// Where rules are applied.
    pub pod: Place,
    /// Where nothing is captured.
    pub outside: Place,
}

impl World {
    /// Makes both, or says why that is not possible here.
    pub fn new() -> Result<Self, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            return Err("needs root for a network namespace of its own".to_owned());
        }
        let id = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let pod = Place::new(format!("crema-pod-{id}"))?;
        let outside = Place::new(format!("crema-out-{id}"))?;
        let wire = ["link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &outside.0];
        pod.ip(&wire)?;
        for (place, addresses) in [(&pod, POD), (&outside, OUTSIDE)] {
            place.ip(&["addr", "add", &format!("{}/24", addresses[0]), "dev", "eth0"])?;
            place.ip(&["addr", "add", &format!("{}/64", addresses[1]), "dev", "eth0", "nodad"])?;
            place.ip(&["link", "set", "eth0", "up"])?;
        }
        for (family, gateway) in ["-4", "-6"].into_iter().zip(OUTSIDE) {
            ip(&[family, "-n", &pod.0, "route", "add", "default", "via", gateway])?;
        }
        Ok(Self { pod, outside })
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output =
        Command::new("ip").args(args).output().map_err(|error| format!("needs the program ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}
