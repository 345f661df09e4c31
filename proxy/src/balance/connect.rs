//! One new connection to an endpoint: dialled from the pod's address, secured as the cluster says, its server's identity checked.
//!
//! In: an endpoint, the cluster, what will be spoken. Out: [`Link`], a byte stream and what is known of its other end. Kept true:
//! within the connect timeout; nothing is sent before the handshake has proved the peer. Not here: reuse (`pool`).

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use mesh_identity::{
    Credentials, SpiffeId, TrustBundle,
    tls::{ClientTls, Expected, MinTls, Names, OriginTls, client as tls_client},
};
use mesh_traffic::{
    Cluster, Snapshot,
    matchers::StringMatch,
    names::Name,
    tls::{Certificate, Roots, Secret, UpstreamTls, Version, WORKLOAD_CERTIFICATE},
};
use tokio::net::{TcpSocket, TcpStream};

use super::failure::{Failure, Kind};
use crate::{
    capture::rules::{INBOUND_SOURCE, INBOUND_SOURCE_V6},
    codec::Io,
    worker::{Shared, View},
};

/// What will be spoken over a connection: it decides the protocols offered in TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Spoken {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// HTTP/2 if TLS agrees on it, else HTTP/1.1.
    Either,
    /// Bytes.
    Tcp,
}

/// An open connection.
pub struct Link {
    /// The application's bytes.
    pub io: Box<dyn Io>,
    /// What is known of it.
    pub ends: Ends,
}

/// What is known of an open connection.
#[derive(Debug, Clone)]
pub struct Ends {
    /// Our end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Verified identity of the server, without its scheme.
    pub principal: Option<Name>,
    /// The connection is mutual TLS of the mesh.
    pub mutual: bool,
    /// TLS agreed on HTTP/2.
    pub http2: bool,
}

/// Opens a connection. Dropping the future closes the socket.
///
/// # Errors
/// Why there is none, in Envoy's words where it has some.
pub async fn open(
    shared: &Shared,
    view: &View,
    cluster: &Cluster,
    address: SocketAddr,
    tls: Option<&Arc<UpstreamTls>>,
    spoken: Spoken,
) -> Result<Link, Failure> {
    let opening = async {
        let stream = dial(shared, cluster, address).await.map_err(|error| {
            let why = format!("delayed connect error: {}", os_words(&error));
            Failure::new(Kind::Connect, why)
        })?;
        let ends = Ends {
            local: stream.local_addr().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0))),
            remote: address,
            principal: None,
            mutual: false,
            http2: false,
        };
        match tls {
            None => Ok(Link { io: Box::new(stream), ends }),
            Some(tls) => secure(shared, &view.snapshot, tls, spoken, stream, ends).await.map_err(|why| {
                Failure::new(Kind::Connect, format!("TLS_error: cluster {}: {why}", cluster.name))
            }),
        }
    };
    match tokio::time::timeout(cluster.connect_timeout, opening).await {
        Ok(result) => result,
        Err(_) => Err(Failure::new(
            Kind::ConnectTimeout,
            format!("no connection to {address} within {:?}", cluster.connect_timeout),
        )),
    }
}

/// The operating system's words without our language's number behind them.
fn os_words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

async fn dial(shared: &Shared, cluster: &Cluster, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(ip) = source(cluster.source_address, shared.local_ip, address.ip()) {
        socket.bind(SocketAddr::new(ip, 0))?;
    }
    if let Some(keepalive) = cluster.keepalive {
        let seconds = |s: u32| std::time::Duration::from_secs(u64::from(s));
        let mut probe = socket2::TcpKeepalive::new();
        if let Some(time) = keepalive.time {
            probe = probe.with_time(seconds(time));
        }
        if let Some(interval) = keepalive.interval {
            probe = probe.with_interval(seconds(interval));
        }
        if let Some(probes) = keepalive.probes {
            probe = probe.with_retries(probes);
        }
        socket2::SockRef::from(&socket).set_tcp_keepalive(&probe)?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The address that a connection leaves from; `None` leaves it to the kernel.
///
/// From the captured pod's proxy to its application that is 127.0.0.6, or ::6: from any other address the connection would be captured
/// again, for ever. Another loopback address cannot be the source of a packet that leaves the host.
fn source(cluster: Option<IpAddr>, own: Option<IpAddr>, target: IpAddr) -> Option<IpAddr> {
    if cluster == Some(INBOUND_SOURCE.into()) {
        return Some(if target.is_ipv4() { INBOUND_SOURCE.into() } else { INBOUND_SOURCE_V6.into() });
    }
    let reaches = |source: IpAddr| !source.is_loopback() || target.is_loopback();
    cluster.or(own).filter(|ip| ip.is_ipv4() == target.is_ipv4() && reaches(*ip))
}

async fn secure(
    shared: &Shared,
    snapshot: &Snapshot,
    tls: &UpstreamTls,
    spoken: Spoken,
    stream: TcpStream,
    mut ends: Ends,
) -> Result<Link, String> {
    let mesh = matches!(&tls.certificate, Some(Certificate::Sds(name)) if &**name == WORKLOAD_CERTIFICATE);
    let connected = if mesh {
        let settings = ClientTls {
            expected: expected(&tls.validation.names)?,
            alpn: mesh_alpn(tls, spoken),
            min: MinTls::V13,
        };
        let sni = tls.sni.as_deref().map(str::to_ascii_lowercase);
        shared.identity.connect(&settings, sni.as_deref(), stream).await
    } else {
        let settings = origin(snapshot, tls, spoken)?;
        let config = settings.config().map_err(|e| e.to_string())?;
        tls_client::connect(config, &[], tls.sni.as_deref(), stream).await
    };
    let connected = connected.map_err(|error| error.to_string())?;
    ends.mutual = mesh;
    ends.principal = connected.peer.as_ref().map(|peer| peer.id().principal().into());
    ends.http2 = matches!(connected.alpn.as_deref(), Some(b"h2" | b"istio-h2"));
    Ok(Link { io: Box::new(connected.stream), ends })
}

/// Who may answer: the identities that the cluster names, or anyone of the mesh when it names none.
fn expected(names: &[StringMatch]) -> Result<Expected, String> {
    if names.is_empty() {
        return Ok(Expected::AnyInMesh);
    }
    let mut ids = BTreeSet::<SpiffeId>::new();
    for name in names {
        // A name that is no identity can never be the peer's: it is left out, which refuses rather than allows.
        if let StringMatch::Exact(name) = name
            && let Ok(id) = name.parse()
        {
            ids.insert(id);
        }
    }
    if ids.is_empty() {
        return Err("the cluster expects names that no mesh identity can have".to_owned());
    }
    Ok(Expected::OneOf(ids))
}

/// What Istio's ALPN filter offers between sidecars, so that a permissive listener on the other side knows HTTP from TCP. Bytes never go
/// by a name of HTTP, though the cluster may have some for a port of unknown protocol: the other side would wait for a request.
fn mesh_alpn(tls: &UpstreamTls, spoken: Spoken) -> Vec<Vec<u8>> {
    let names: &[&str] = match spoken {
        Spoken::Http1 => &["istio-http/1.1", "istio", "http/1.1"],
        Spoken::Http2 => &["istio-h2", "istio", "h2"],
        Spoken::Either => &["istio-h2", "istio-http/1.1", "istio", "h2", "http/1.1"],
        Spoken::Tcp => {
            let http = |name: &str| ["istio-h", "http/", "h2"].iter().any(|start| name.starts_with(start));
            let bytes: Vec<_> = tls.alpn.iter().filter(|name| !http(name)).collect();
            if !bytes.is_empty() {
                return bytes.into_iter().map(|name| name.as_bytes().to_vec()).collect();
            }
            &["istio-peer-exchange", "istio"]
        }
    };
    names.iter().map(|name| name.as_bytes().to_vec()).collect()
}

fn origin(snapshot: &Snapshot, tls: &UpstreamTls, spoken: Spoken) -> Result<OriginTls, String> {
    use mesh_identity::tls::client::Roots as Trusted;
    let bundle = |pem: &[u8], place: &str| {
        TrustBundle::from_pem(place, pem).map(Trusted::Bundle).map_err(|e| e.to_string())
    };
    let roots = match &tls.validation.roots {
        None => None,
        Some(Roots::System) => Some(Trusted::Public),
        Some(Roots::File(path)) => Some(Trusted::Bundle(
            TrustBundle::from_file(std::path::Path::new(&**path)).map_err(|e| e.to_string())?,
        )),
        Some(Roots::Inline(pem)) => Some(bundle(pem, "inline roots")?),
        Some(Roots::Sds(name)) => match snapshot.secrets.get(name).map(|secret| &**secret) {
            Some(Secret::Roots(pem)) => Some(bundle(pem, name)?),
            Some(Secret::Certificate(_)) => return Err(format!("secret {name} holds no roots")),
            None => return Err(format!("secret {name} has not arrived")),
        },
    };
    let names: Vec<String> = tls
        .validation
        .names
        .iter()
        .filter_map(|name| match name {
            StringMatch::Exact(name) => Some(name.to_string()),
            _ => None,
        })
        .collect();
    if names.len() != tls.validation.names.len() {
        return Err("only exact names of servers are understood".to_owned());
    }
    let names = match (names.is_empty(), &tls.sni, &roots) {
        (false, _, _) => Names::OneOf(names),
        (true, _, None) | (true, None, _) => Names::Any,
        (true, Some(_), Some(_)) => Names::Asked,
    };
    let alpn: Vec<Vec<u8>> = match (tls.alpn.is_empty(), spoken) {
        (false, _) => tls.alpn.iter().map(|name| name.as_bytes().to_vec()).collect(),
        (true, Spoken::Http2) => vec![b"h2".to_vec()],
        (true, Spoken::Http1) => vec![b"http/1.1".to_vec()],
        (true, Spoken::Either) => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        (true, Spoken::Tcp) => Vec::new(),
    };
    let min = if tls.versions.min == Version::Tls13 { MinTls::V13 } else { MinTls::V12 };
    let credentials = tls.certificate.as_ref().map(|c| credentials(snapshot, c)).transpose()?;
    Ok(OriginTls { roots, names, credentials, alpn, min })
}

/// A certificate with its key, from wherever it is.
///
/// # Errors
/// Why it cannot be used, naming it.
pub fn credentials(snapshot: &Snapshot, certificate: &Certificate) -> Result<Credentials, String> {
    let pair = match certificate {
        Certificate::Files { chain, key } => {
            return Credentials::from_files(std::path::Path::new(&**chain), std::path::Path::new(&**key))
                .map_err(|e| e.to_string());
        }
        Certificate::Inline(pair) => (pair, "inline certificate"),
        Certificate::Sds(name) => match snapshot.secrets.get(name).map(|secret| &**secret) {
            Some(Secret::Certificate(pair)) => (pair, &**name),
            Some(Secret::Roots(_)) => return Err(format!("secret {name} holds no certificate")),
            None => return Err(format!("secret {name} has not arrived")),
        },
    };
    Credentials::from_pem(pair.1, &pair.0.chain, &pair.0.key).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_never_go_by_a_name_of_http() {
        for (alpn, want) in [
            (&[][..], &["istio-peer-exchange", "istio"][..]),
            (&["istio"], &["istio"]),
            (&["istio-http/1.1", "http/1.1"], &["istio-peer-exchange", "istio"]),
            (&["istio-h2", "h2"], &["istio-peer-exchange", "istio"]),
        ] {
            let alpn = alpn.iter().map(|name| (*name).into()).collect();
            let tls = UpstreamTls { alpn, ..UpstreamTls::default() };
            let got: Vec<_> = mesh_alpn(&tls, Spoken::Tcp).into_iter().map(String::from_utf8).collect();
            let got: Vec<_> = got.into_iter().map(|name| name.expect("text")).collect();
            assert_eq!(got, want);
        }
    }

    #[test]
    fn connections_leave_from_an_address_that_can_reach() {
        let ip = |text: &str| -> IpAddr { text.parse().expect("an address") };
        for (cluster, own, target, want) in [
            (None, None, "10.0.0.9", None),
            (None, Some("10.0.0.5"), "10.0.0.9", Some("10.0.0.5")),
            (None, Some("10.0.0.5"), "fd00::9", None),
            (None, Some("127.64.1.3"), "10.0.0.9", None),
            (None, Some("127.64.1.3"), "127.64.1.4", Some("127.64.1.3")),
            (Some("127.64.1.9"), Some("127.64.1.3"), "127.64.1.4", Some("127.64.1.9")),
            (Some("127.0.0.6"), Some("10.0.0.5"), "10.0.0.5", Some("127.0.0.6")),
            (Some("127.0.0.6"), Some("10.0.0.5"), "fd00::5", Some("::6")),
        ] {
            let got = source(cluster.map(ip), own.map(ip), ip(target));
            assert_eq!(got, want.map(ip), "{cluster:?} {own:?} → {target}");
        }
    }
}
