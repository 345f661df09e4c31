//! Listeners: bound as the configuration says, replaced without losing a connection.
//!
//! In: snapshots. Out: accepted connections, each served by its filter chain. Kept true: a changed listener keeps its socket; a removed one
//! drains; every worker has a socket of its own. Not here: one connection's way ([`accept`]).

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::{Ipv6Addr, SocketAddr},
    rc::Rc,
    sync::{Arc, LazyLock, PoisonError, atomic::Ordering},
    time::Duration,
};

use mesh_traffic::{Listener, Snapshot, names::Name};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
};

pub mod accept;
mod downstream;
pub mod inspect;
mod rewound;
mod tls;

pub use downstream::Downstream;
pub use rewound::Rewound;

use crate::worker::Worker;

/// Connections that may wait to be accepted, per worker.
const BACKLOG: i32 = 4096;

/// A listener at work: what it is now, and how to end it.
pub struct Active {
    /// Its settings now. New connections see changes.
    pub now: RefCell<Arc<Listener>>,
    /// Told when it is removed.
    pub removed: Notify,
    /// Set when it is removed.
    gone: std::cell::Cell<bool>,
}

impl Active {
    /// Resolves once the listener has been removed.
    pub async fn until_removed(&self) {
        while !self.gone.get() {
            self.removed.notified().await;
        }
    }
}

/// The listeners of one worker.
pub struct Listeners {
    worker: Rc<Worker>,
    active: RefCell<HashMap<(Name, SocketAddr), Rc<Active>>>,
}

impl Listeners {
    /// None yet.
    #[must_use]
    pub fn new(worker: Rc<Worker>) -> Self {
        Self { worker, active: RefCell::default() }
    }

    /// Follows snapshots until the proxy drains; then every socket is closed, and connections end by themselves.
    pub async fn run(&self, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
        let drain = self.worker.shared.drain.clone();
        let mut leaving = self.worker.shared.leaving.subscribe();
        loop {
            let snapshot = snapshots.borrow_and_update().clone();
            // The view first: a connection must find what its listener refers to.
            if !Arc::ptr_eq(&self.worker.view().snapshot, &snapshot) {
                self.worker.adopt(snapshot.clone());
            }
            let complete = self.update(&snapshot).await;
            tokio::select! {
                () = drain.signaled() => break,
                told = leaving.wait_for(|told| *told), if !self.worker.draining.get() => {
                    drop(told);
                    self.worker.draining.set(true);
                }
                changed = snapshots.changed() => if changed.is_err() {
                    drain.signaled().await;
                    break;
                },
                () = tokio::time::sleep(Duration::from_secs(1)), if !complete => {}
            }
        }
        self.worker.draining.set(true);
        let active: Vec<_> = self.active.borrow_mut().drain().collect();
        for (_, active) in active {
            end(&active);
        }
    }

    /// True when everything that should be bound is.
    async fn update(&self, snapshot: &Snapshot) -> bool {
        let mut wanted: HashMap<(Name, SocketAddr), Arc<Listener>> = HashMap::new();
        for listener in snapshot.listeners.values().filter(|listener| listener.bind) {
            for address in addresses(listener) {
                wanted.insert((listener.name.clone(), address), Arc::clone(listener));
            }
        }
        let gone: Vec<_> =
            self.active.borrow_mut().extract_if(|key, _| !wanted.contains_key(key)).map(|(_, a)| a).collect();
        gone.iter().for_each(|active| end(active));
        self.worker.shared.listening.fetch_sub(gone.len(), Ordering::AcqRel);
        let mut complete = true;
        for ((name, address), listener) in wanted {
            let key = (name.clone(), address);
            if let Some(active) = self.active.borrow().get(&key) {
                *active.now.borrow_mut() = listener;
                continue;
            }
            let companion = address.is_ipv6() && listener.address.is_ipv4();
            match self.bind(&name, address, companion).await {
                Ok(sockets) => {
                    let active = Rc::new(Active {
                        now: RefCell::new(listener),
                        removed: Notify::new(),
                        gone: std::cell::Cell::new(false),
                    });
                    self.active.borrow_mut().insert(key, Rc::clone(&active));
                    self.worker.shared.listening.fetch_add(1, Ordering::AcqRel);
                    for socket in sockets {
                        self.worker.spawn(accept::run(Rc::clone(&self.worker), Rc::clone(&active), socket));
                    }
                }
                Err(error) => {
                    complete = false;
                    tracing::error!(
                        listener = %name, %address, %error,
                        "cannot listen: free the port or change the listener's address; trying again every second"
                    );
                }
            }
        }
        complete
    }

    /// This worker's sockets: its share of a predecessor's, else one of its own.
    async fn bind(
        &self,
        name: &Name,
        mut address: SocketAddr,
        six_only: bool,
    ) -> io::Result<Vec<TcpListener>> {
        let bound = &self.worker.shared.bound;
        if address.port() == 0 && self.worker.id > 0 {
            // The first worker draws the port.
            while self.worker.shared.address_of(name).is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            address = self.worker.shared.address_of(name).unwrap_or(address);
        }
        let inherited = self.worker.shared.sockets.take(address, self.worker.id);
        let mut sockets: Vec<TcpListener> = inherited
            .into_iter()
            .map(|socket| socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket)))
            .collect::<io::Result<_>>()?;
        if sockets.is_empty() {
            sockets.push(listening_socket(address, six_only)?);
        }
        if !six_only {
            let actual = sockets[0].local_addr()?;
            bound.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), actual);
        }
        Ok(sockets)
    }
}

/// Where a listener is bound: as it says; and one for captured traffic on 0.0.0.0 takes captured IPv6 too, where this host has it.
pub fn addresses(listener: &Listener) -> impl Iterator<Item = SocketAddr> {
    static SIX: LazyLock<bool> =
        LazyLock::new(|| std::fs::read("/proc/net/if_inet6").is_ok_and(|list| !list.is_empty()));
    let captured = listener.inspect.original_dst || listener.use_original_dst;
    let all = |address: &SocketAddr| address.ip().is_unspecified();
    let six = Some(&listener.address)
        .filter(|address| captured && address.is_ipv4() && all(address) && *SIX)
        .map(|address| SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port())))
        .filter(|six| !listener.additional.contains(six));
    std::iter::once(listener.address).chain(listener.additional.clone()).chain(six)
}

fn end(active: &Active) {
    active.gone.set(true);
    active.removed.notify_waiters();
}

/// A listening socket that shares its port with the other workers' sockets.
fn listening_socket(address: SocketAddr, six_only: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(six_only)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
