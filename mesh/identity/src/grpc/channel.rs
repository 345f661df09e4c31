//! The connecting side of gRPC: a lazy channel that dials, checks the server's identity, and dials again when lost.
//!
//! In: `host:port`, a [`Target`], options. Out: a tonic [`Channel`].
//! Kept true: each new connection uses the certificates in force at that moment.
//! Not here: waiting between attempts (callers use `mesh_runtime::Backoff`) and timeouts of single calls.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::{
    bundle::TrustBundle,
    spiffe::{SpiffeId, TrustDomain},
    store::CertStore,
    tls::{
        ClientTls, Connected, Expected, MinTls, Names, OriginTls, TlsError,
        client::{self, Roots},
    },
};

/// How long a connection waits for the process's first certificate.
const FIRST: Duration = Duration::from_secs(3);

/// How a channel secures its connections.
#[derive(Clone, Debug)]
pub enum Target {
    /// Not at all.
    Plaintext,
    /// Mutual TLS with our certificate, to a server of the mesh.
    Mesh(CertStore, ClientTls),
    /// TLS without a certificate of ours, to a server checked against roots in a file (read at each connection):
    /// how a workload reaches the certificate authority before it has a certificate.
    Pinned {
        /// PEM file with the roots.
        roots: PathBuf,
        /// Who must answer.
        server: ServerCheck,
    },
}

/// What the certificate of a pinned server must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerCheck {
    /// A SPIFFE identity: Crema's control plane.
    Id(SpiffeId),
    /// A DNS name: other certificate authorities.
    Dns(String),
}

impl std::str::FromStr for ServerCheck {
    type Err = String;

    /// `spiffe://…` or a DNS name.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains("://") {
            return text.parse().map(Self::Id).map_err(|e: crate::spiffe::BadId| e.to_string());
        }
        match rustls_pki_types::DnsName::try_from(text) {
            Ok(_) => Ok(Self::Dns(text.into())),
            Err(_) => Err(format!("`{text}` is neither a SPIFFE identity nor a DNS name")),
        }
    }
}

/// Details of a channel's connections.
#[derive(Clone, Debug)]
pub struct ChannelOptions {
    /// Address to connect from; a pod's own in the local environment.
    pub local: Option<IpAddr>,
    /// How long dialling plus handshake may take.
    pub connect_timeout: Duration,
    /// Ping an idle connection this often, to notice a lost server.
    pub keepalive: Duration,
    /// How long a ping may stay unanswered.
    pub keepalive_timeout: Duration,
}

impl Default for ChannelOptions {
    /// Any address, 5 s to connect, pings every 30 s, 10 s to answer them.
    fn default() -> Self {
        Self {
            local: None,
            connect_timeout: Duration::from_secs(5),
            keepalive: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

/// Makes a channel to `host:port`. It connects at the first call, and again whenever the connection was lost.
///
/// # Errors
/// When `address` is not `host:port`.
pub fn channel(address: &str, target: Target, options: &ChannelOptions) -> Result<Channel, String> {
    let bad = || format!("`{address}` is not HOST:PORT");
    let uri: Uri = format!("http://{address}").parse().map_err(|_| bad())?;
    if uri.port_u16().is_none() || uri.path() != "/" {
        return Err(bad());
    }
    let endpoint = Endpoint::from(uri)
        .connect_timeout(options.connect_timeout)
        .http2_keep_alive_interval(options.keepalive)
        .keep_alive_timeout(options.keepalive_timeout)
        .keep_alive_while_idle(true);
    let local = options.local;
    let connector = tower::service_fn(move |uri: Uri| {
        let target = target.clone();
        async move { dial(&uri, local, &target).await.map(TokioIo::new) }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
}

async fn dial(uri: &Uri, local: Option<IpAddr>, target: &Target) -> Result<Io, io::Error> {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or_default();
    if let Target::Mesh(store, _) = target {
        // Everything of a process starts at once; what needs its certificate is not lost for coming first.
        let first = tokio::time::timeout(FIRST, store.first()).await;
        first.map_err(|_| io::Error::other(TlsError::NoCredentials))?;
    }
    let stream = dial_tcp(host, port, local).await?;
    let tls = match target {
        Target::Plaintext => return Ok(Io::Plain(stream)),
        Target::Mesh(store, tls) => store.connect(tls, dns(host), stream).await,
        Target::Pinned { roots, server } => connect_pinned(roots, server, host, stream).await,
    };
    tls.map(|connected| Io::Tls(Box::new(connected.stream))).map_err(io::Error::other)
}

fn dns(host: &str) -> Option<&str> {
    host.parse::<IpAddr>().is_err().then_some(host)
}

async fn connect_pinned(
    roots: &std::path::Path,
    server: &ServerCheck,
    host: &str,
    stream: TcpStream,
) -> Result<Connected<TcpStream>, TlsError> {
    let settings = |e: crate::pem::PemError| TlsError::Settings(e.to_string());
    let bundle = TrustBundle::from_file(roots).map_err(settings)?;
    let alpn = vec![b"h2".to_vec()];
    match server {
        ServerCheck::Id(id) => {
            let domains: [TrustDomain; 1] = [id.trust_domain().clone()];
            let tls = ClientTls { expected: Expected::one(id.clone()), alpn, min: MinTls::V13 };
            let config = client::mesh_config(&tls, None, &bundle, domains.to_vec().into())?;
            client::connect(config, &domains, dns(host), stream).await
        }
        ServerCheck::Dns(name) => {
            let tls = OriginTls {
                roots: Some(Roots::Bundle(bundle)),
                names: Names::OneOf(vec![name.clone()]),
                credentials: None,
                alpn,
                min: MinTls::V12,
            };
            client::connect(tls.config()?, &[], Some(name), stream).await
        }
    }
}

/// Tries each address of a name in turn.
async fn dial_tcp(host: &str, port: u16, local: Option<IpAddr>) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    let addresses = tokio::net::lookup_host((host, port))
        .await
        .map_err(|e| io::Error::new(e.kind(), format!("cannot resolve {host}: {e}")))?;
    for address in addresses {
        match dial_one(address, local).await {
            Ok(stream) => return Ok(stream),
            Err(e) => last = io::Error::new(e.kind(), format!("cannot connect to {address}: {e}")),
        }
    }
    Err(last)
}

async fn dial_one(address: SocketAddr, local: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(local) = local.filter(|l| l.is_ipv4() == address.is_ipv4()) {
        socket.bind((local, 0).into())?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
