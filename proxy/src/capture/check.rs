//! Proves that capture works: connects somewhere else, and answers itself.
//!
//! In: the plan in force. Out: what was proven, or why it was not. Kept true: nothing leaves the pod when capture works; every wait is
//! bounded. Not here: the inbound direction, which only a client outside the pod can prove.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

use super::rules::Plan;

/// How long a connection inside a pod may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a check has shown.
#[derive(Debug)]
pub enum Found {
    /// Connections were captured, or none are to be.
    Proven(String),
    /// This pod has no route to anywhere that is to be captured.
    NoWay(String),
}

/// Connects to an address that must be captured, for each IP family that has a route, and answers in the proxy's place.
///
/// # Errors
/// When a connection was not captured, or the proxy's port is taken.
pub async fn run(plan: &Plan) -> anyhow::Result<Found> {
    let mut proven = Vec::new();
    let mut untried = Vec::new();
    for (family, v6) in [("IPv4", false), ("IPv6", true)] {
        let Some(target) = plan.sample(v6) else {
            untried.push(format!("{family}: nothing outbound is to be captured"));
            continue;
        };
        match one(plan, target).await? {
            Some(()) => proven.push(format!("{family}: a connection to {target} came to the proxy's port")),
            None => untried.push(format!("{family}: no route")),
        }
    }
    let nothing_to_do = plan.sample(false).is_none() && plan.sample(true).is_none();
    if proven.is_empty() && !nothing_to_do {
        return Ok(Found::NoWay(untried.join("; ")));
    }
    proven.append(&mut untried);
    Ok(Found::Proven(proven.join("; ")))
}

/// `None` when this host has no way to the target.
async fn one(plan: &Plan, target: SocketAddr) -> anyhow::Result<Option<()>> {
    let own: IpAddr = if target.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    let listener = match TcpListener::bind((own, plan.outbound_port)).await {
        Ok(listener) => listener,
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| {
                format!("port {} is taken: run the check before the proxy starts", plan.outbound_port)
            });
        }
    };
    if !has_route(target).await {
        return Ok(None);
    }
    let sign: u64 = rand::random();
    let calling = async {
        let mut stream = TcpStream::connect(target).await?;
        stream.read_u64().await
    };
    let answering = async {
        loop {
            let (mut stream, _) = listener.accept().await?;
            if crate::listen::accept::original_destination(&stream) == Some(target) {
                stream.write_u64(sign).await?;
                return io::Result::Ok(stream);
            }
        }
    };
    let both = async {
        tokio::select! {
            answer = calling => answer,
            // Only an error ends this side first: the caller reads what was written.
            error = async { match answering.await { Ok(_open) => std::future::pending().await, Err(error) => error } } => Err(error),
        }
    };
    match tokio::time::timeout(PATIENCE, both).await {
        Ok(Ok(answer)) if answer == sign => Ok(Some(())),
        Ok(Ok(_)) => bail!("something else answered at {target}: the connection was not captured"),
        Ok(Err(error)) => bail!("the connection to {target} was not captured: {error}"),
        Err(_) => bail!("the connection to {target} was not captured within {} s", PATIENCE.as_secs()),
    }
}

/// Whether this host knows a way there: what an answer from afar says of it is no proof of either.
async fn has_route(target: SocketAddr) -> bool {
    let any: IpAddr =
        if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    match UdpSocket::bind((any, 0)).await {
        // Sends nothing.
        Ok(socket) => socket.connect(target).await.is_ok(),
        Err(_) => false,
    }
}
