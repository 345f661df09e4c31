//! Services of type LoadBalancer: a port on localhost whose connections go to a ready endpoint.
//!
//! In: TCP connections from outside the mesh, ready endpoints. Out: the same bytes. Kept true: it knows nothing of HTTP or of routes, so what
//! comes in sees no VirtualService (as on Kubernetes). Not here: which endpoints are ready (`mod`).

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::Context;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// A port on localhost; closed when dropped.
#[derive(Debug)]
pub struct Forwarder {
    /// Where it listens.
    pub address: SocketAddr,
    targets: watch::Sender<Vec<SocketAddr>>,
    task: JoinHandle<()>,
}

impl Forwarder {
    /// Listens on 127.0.0.1: on `wish`, moved up by 8000 when privileged, else on the next free port of `others`.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(wish: u16, others: impl Fn() -> anyhow::Result<u16>) -> anyhow::Result<Self> {
        let wish = if wish < 1024 { 8000 + wish } else { wish };
        let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, wish)).await {
            Ok(listener) => listener,
            Err(_) => {
                TcpListener::bind((Ipv4Addr::LOCALHOST, others()?)).await.context("no port for a Service")?
            }
        };
        let address = listener.local_addr()?;
        let (targets, seen) = watch::channel(Vec::new());
        let task = tokio::spawn(accept(listener, seen));
        Ok(Self { address, targets, task })
    }

    /// Where new connections go, in turn.
    pub fn set(&self, targets: Vec<SocketAddr>) {
        self.targets.send_replace(targets);
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, targets: watch::Receiver<Vec<SocketAddr>>) {
    let turn = AtomicUsize::new(0);
    loop {
        let (mut outside, _) = mesh_runtime::listen::accept(&listener).await;
        let target = {
            let targets = targets.borrow();
            let next = turn.fetch_add(1, Ordering::Relaxed);
            targets.get(next.checked_rem(targets.len()).unwrap_or_default()).copied()
        };
        // Without an endpoint the connection is closed, as a load balancer without members does.
        let Some(target) = target else { continue };
        tokio::spawn(async move {
            if let Ok(mut inside) = TcpStream::connect(target).await {
                // Either end may go at any time; there is nobody to tell.
                let _ended = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn connections_go_to_the_endpoints_in_turn() {
        let mut targets = Vec::new();
        for word in ["one", "two"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            targets.push(listener.local_addr().expect("an address"));
            tokio::spawn(async move {
                while let Ok((mut peer, _)) = listener.accept().await {
                    peer.write_all(word.as_bytes()).await.expect("written");
                }
            });
        }
        let forwarder = Forwarder::start(0, || Ok(0)).await.expect("a forwarder");
        let ask = || async {
            let mut peer = TcpStream::connect(forwarder.address).await.expect("a connection");
            let mut said = String::new();
            peer.read_to_string(&mut said).await.expect("an answer");
            said
        };
        assert_eq!(ask().await, "", "no endpoint yet");
        forwarder.set(targets);
        let mut said = [ask().await, ask().await];
        said.sort();
        assert_eq!(said, ["one", "two"]);
    }
}
