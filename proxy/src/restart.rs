//! Restart in place: a successor takes the listening sockets over, so that no connection in their queues is lost.
//!
//! In: a unix socket that both processes are told of. Out: the predecessor's listening sockets, and its drain once the successor serves.
//! Kept true: both serve the same queues until the successor is ready; a successor that dies before leaves the predecessor as
//! it was. Not here: connections under way (they end where they are, by the drain).

use std::{
    collections::HashMap,
    fs, io,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rustix::{
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketType, bind, connect, listen, recvmsg, sendmsg,
        socket, sockopt,
    },
    process::{Signal, getpid, getuid, kill_process},
};

/// Sockets per message.
const PER_MESSAGE: usize = 64;
/// A message with sockets; more follow.
const SOCKETS: &[u8] = b"sockets";
/// The last message of a hand-over.
const END: &[u8] = b"end";
/// What the successor says once it serves.
const READY: &[u8] = b"ready";

/// Listening sockets of this process: those that it got from a predecessor, and those that it would hand on.
#[derive(Debug, Default)]
pub struct Sockets {
    inherited: Mutex<HashMap<SocketAddr, Vec<Vec<TcpListener>>>>,
    held: Mutex<HashMap<u64, TcpListener>>,
    next: AtomicU64,
    handed_over: AtomicBool,
}

/// Hands a socket on for as long as it is kept.
#[derive(Debug)]
pub struct Offer {
    sockets: Arc<Sockets>,
    id: u64,
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.sockets.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl Sockets {
    /// Spreads inherited sockets over `workers`: each queue must be served by somebody.
    fn inherit(&self, listeners: Vec<TcpListener>, workers: usize) {
        let workers = workers.max(1);
        let mut inherited = self.inherited.lock().unwrap_or_else(PoisonError::into_inner);
        for listener in listeners {
            let Ok(address) = listener.local_addr() else { continue };
            let shares =
                inherited.entry(address).or_insert_with(|| (0..workers).map(|_| Vec::new()).collect());
            if let Some(share) = shares.iter_mut().min_by_key(|share| share.len()) {
                share.push(listener);
            }
        }
    }

    /// A worker's share of the inherited sockets of an address. Given once.
    #[must_use]
    pub fn take(&self, address: SocketAddr, worker: usize) -> Vec<TcpListener> {
        let mut inherited = self.inherited.lock().unwrap_or_else(PoisonError::into_inner);
        let share = inherited.get_mut(&address).and_then(|shares| shares.get_mut(worker));
        share.map(std::mem::take).unwrap_or_default()
    }

    /// True once a successor serves the queues of these sockets.
    #[must_use]
    pub fn handed_over(&self) -> bool {
        self.handed_over.load(Ordering::Acquire)
    }

    /// Closes what nobody has taken: addresses that the configuration no longer has.
    pub fn drop_rest(&self) {
        self.inherited.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Offers a socket to a successor until the answer is dropped.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn offer(self: &Arc<Self>, socket: BorrowedFd<'_>) -> io::Result<Offer> {
        let copy = TcpListener::from(socket.try_clone_to_owned()?);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(id, copy);
        Ok(Offer { sockets: Arc::clone(self), id })
    }
}

/// The successor's end of a hand-over.
#[derive(Debug)]
pub struct Takeover(OwnedFd);

impl Takeover {
    /// Takes the sockets of a predecessor at `path`. `None` when there is none. Blocks for as long as the predecessor takes to answer.
    ///
    /// # Errors
    /// When something answers there that does not speak as we do.
    pub fn begin(path: &Path, sockets: &Sockets, workers: usize) -> io::Result<Option<Self>> {
        let connection = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
        if connect(&connection, &SocketAddrUnix::new(path)?).is_err() {
            return Ok(None);
        }
        let mut listeners = Vec::new();
        loop {
            let (message, sockets) = receive(&connection)?;
            listeners.extend(sockets.into_iter().map(TcpListener::from));
            match message.as_slice() {
                SOCKETS => {}
                END => break,
                _ => return Err(io::Error::other("the predecessor's answer was cut short")),
            }
        }
        tracing::info!(sockets = listeners.len(), "took the listening sockets of the predecessor");
        sockets.inherit(listeners, workers);
        Ok(Some(Self(connection)))
    }

    /// Tells the predecessor that it may drain.
    ///
    /// # Errors
    /// When it has gone already.
    pub fn ready(self) -> io::Result<()> {
        send(&self.0, READY, &[])
    }
}

/// Serves successors on a thread of its own, until one has taken over; then this process gets SIGTERM, which drains it.
///
/// # Errors
/// When the path cannot be bound.
pub fn serve(path: &Path, sockets: Arc<Sockets>) -> io::Result<()> {
    // What lies there is ours from before: nobody answers at it, or we would have taken over.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
    bind(&listener, &SocketAddrUnix::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listen(&listener, 4)?;
    std::thread::Builder::new().name("restart".to_owned()).spawn(move || {
        loop {
            match rustix::net::accept(&listener)
                .map_err(io::Error::from)
                .and_then(|c| hand_over(&c, &sockets))
            {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "a successor did not take over: serving on");
                    #[allow(
                        clippy::disallowed_methods,
                        reason = "a thread of its own, with no runtime to wait on"
                    )]
                    std::thread::sleep(std::time::Duration::from_millis(100));
                }
            }
        }
        tracing::info!("the successor serves: draining");
        let _ = kill_process(getpid(), Signal::TERM);
    })?;
    Ok(())
}

/// True when the successor serves.
fn hand_over(connection: &OwnedFd, sockets: &Sockets) -> io::Result<bool> {
    if sockopt::socket_peercred(connection)?.uid != getuid() {
        return Err(io::Error::other("refused: another user's process asked for the sockets"));
    }
    let copies: Vec<TcpListener> = {
        let held = sockets.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.values().map(TcpListener::try_clone).collect::<io::Result<_>>()?
    };
    for part in copies.chunks(PER_MESSAGE) {
        let part: Vec<BorrowedFd<'_>> = part.iter().map(AsFd::as_fd).collect();
        send(connection, SOCKETS, &part)?;
    }
    send(connection, END, &[])?;
    drop(copies);
    let (message, _) = receive(connection)?;
    let ready = message == READY;
    sockets.handed_over.store(ready, Ordering::Release);
    Ok(ready)
}

fn send(connection: &OwnedFd, message: &[u8], sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PER_MESSAGE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() && !control.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::other("too many sockets in one message"));
    }
    sendmsg(connection, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(connection: &OwnedFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut text = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PER_MESSAGE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(connection, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            sockets.extend(fds);
        }
    }
    Ok((text[..got.bytes].to_vec(), sockets))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn pair() -> (OwnedFd, OwnedFd) {
        rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .expect("a pair")
    }

    #[test]
    fn a_connection_in_the_queue_survives_its_first_listener() {
        let ours = Arc::new(Sockets::default());
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let offer = ours.offer(listener.as_fd()).expect("a descriptor");
        let mut client = std::net::TcpStream::connect(address).expect("queued");
        let (near, far) = pair();
        let giving = Arc::clone(&ours);
        let old = std::thread::spawn(move || {
            let taken = hand_over(&near, &giving).expect("handed over");
            drop((listener, offer));
            taken
        });
        let theirs = Sockets::default();
        let mut got = Vec::new();
        while let (message, sockets) = receive(&far).expect("a message")
            && message == SOCKETS
        {
            got.extend(sockets.into_iter().map(TcpListener::from));
        }
        theirs.inherit(got, 2);
        send(&far, READY, &[]).expect("still there");
        assert!(old.join().expect("no panic"), "the old one has been told");
        let mut shares = [theirs.take(address, 0), theirs.take(address, 1)].concat_all();
        let (mut accepted, _) = shares.remove(0).accept().expect("the queue is alive");
        client.write_all(b"x").expect("open");
        let mut byte = [0];
        accepted.read_exact(&mut byte).expect("open");
        assert!(ours.held.lock().expect("no panic").is_empty(), "nothing is offered any more");
    }

    trait ConcatAll {
        fn concat_all(self) -> Vec<TcpListener>;
    }

    impl<const N: usize> ConcatAll for [Vec<TcpListener>; N] {
        fn concat_all(self) -> Vec<TcpListener> {
            self.into_iter().flatten().collect()
        }
    }

    #[test]
    fn every_inherited_socket_has_a_worker() {
        for (given, workers) in [(1, 2), (4, 2), (3, 2), (2, 1)] {
            let first = TcpListener::bind("127.0.0.1:0").expect("a port");
            let address = first.local_addr().expect("bound");
            let sockets = Sockets::default();
            let copies = (0..given).map(|_| first.try_clone().expect("a descriptor")).collect();
            sockets.inherit(copies, workers);
            let taken: usize = (0..workers).map(|worker| sockets.take(address, worker).len()).sum();
            assert_eq!(taken, given, "{given} over {workers}");
            assert!(sockets.take(address, 0).is_empty(), "given once");
        }
    }

    #[test]
    fn a_successor_that_dies_changes_nothing() {
        let (near, far) = pair();
        let ours = Sockets::default();
        let old = std::thread::spawn(move || hand_over(&near, &ours));
        receive(&far).expect("the end");
        drop(far);
        assert!(!old.join().expect("no panic").unwrap_or(false));
    }
}
