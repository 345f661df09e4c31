//! The accepting side: settings, and one handshake.
//!
//! In: [`ServerTls`] and a byte stream. Out: [`Accepted`]: the TLS stream, the verified peer, ALPN and SNI.
//! Kept true: with [`ClientAuth::Required`] no byte of the application is read from an unverified client.
//! Not here: sockets and accept loops (`grpc::incoming`, the proxy's listeners).

use std::{sync::Arc, time::Duration};

use rustls::{
    ServerConfig,
    server::{Acceptor, ClientHello, NoClientAuth},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use super::{MinTls, TlsError, server_config, verify};
use crate::{
    bundle::TrustBundle,
    credentials::Credentials,
    spiffe::TrustDomain,
    tls::{HANDSHAKE_DEADLINE, Peer},
};

/// What a server asks of its clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ClientAuth {
    /// A verified mesh certificate, or the handshake fails.
    #[default]
    Required,
    /// A mesh certificate if the client has one; one that does not verify still fails the handshake.
    Optional,
    /// Not asked for.
    None,
}

/// Settings of an accepting side. Cheap to clone, usable as a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServerTls {
    /// What clients must show.
    pub client_auth: ClientAuth,
    /// Protocols offered, in order of preference, such as `h2` and `http/1.1`; empty for no ALPN.
    pub alpn: Vec<Vec<u8>>,
    /// Oldest version.
    pub min: MinTls,
}

impl ServerTls {
    /// gRPC with verified clients.
    pub fn grpc(client_auth: ClientAuth) -> Self {
        Self { client_auth, alpn: vec![b"h2".to_vec()], min: MinTls::V13 }
    }
}

/// A finished handshake.
#[derive(Debug)]
pub struct Accepted<IO> {
    /// The stream of the application's bytes.
    pub stream: TlsStream<IO>,
    /// Who is at the other end; `None` if it showed no certificate (or none was asked for).
    pub peer: Option<Peer>,
    /// The protocol agreed on.
    pub alpn: Option<Vec<u8>>,
    /// The server name that the client asked for.
    pub sni: Option<String>,
}

/// Builds a configuration for certificates of the mesh. [`crate::CertStore`] does this and keeps it until they change.
///
/// # Errors
/// When the settings and certificates do not fit together.
pub fn mesh_config(
    tls: &ServerTls,
    credentials: &Credentials,
    bundle: &TrustBundle,
    domains: Arc<[TrustDomain]>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier: Arc<dyn rustls::server::danger::ClientCertVerifier> = match tls.client_auth {
        ClientAuth::None => Arc::new(NoClientAuth),
        ClientAuth::Optional => Arc::new(verify::MeshClients::new(bundle, domains, false)?),
        ClientAuth::Required => Arc::new(verify::MeshClients::new(bundle, domains, true)?),
    };
    server_config(tls.min, verifier, credentials.certified(), &tls.alpn).map(Arc::new)
}

/// Builds a configuration from files of the operator, for gateways: `SIMPLE`, or `MUTUAL` when `clients` is given.
/// Clients of `MUTUAL` need a chain to those roots and may have any name.
///
/// # Errors
/// When the settings and certificates do not fit together.
pub fn file_config(
    credentials: &Credentials,
    clients: Option<&TrustBundle>,
    alpn: &[Vec<u8>],
    min: MinTls,
) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier: Arc<dyn rustls::server::danger::ClientCertVerifier> = match clients {
        None => Arc::new(NoClientAuth),
        Some(bundle) => verify::chain_verifier(bundle, true)?,
    };
    server_config(min, verifier, credentials.certified(), alpn).map(Arc::new)
}

/// Runs one handshake, within the deadline. `domains` are the trust domains whose identities count;
/// empty means that certificates of clients are not identities (configurations of [`file_config`]).
///
/// Dropping the future closes the connection.
///
/// # Errors
/// When the handshake fails, takes too long, or the client's certificate is refused.
pub async fn accept<IO>(
    config: Arc<ServerConfig>,
    domains: &[TrustDomain],
    io: IO,
) -> Result<Accepted<IO>, TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    accept_within(config, domains, io, HANDSHAKE_DEADLINE).await
}

/// As [`accept`], with another deadline.
///
/// # Errors
/// As [`accept`].
pub async fn accept_within<IO>(
    config: Arc<ServerConfig>,
    domains: &[TrustDomain],
    io: IO,
    deadline: Duration,
) -> Result<Accepted<IO>, TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = async {
        let start = LazyConfigAcceptor::new(Acceptor::default(), io).await?;
        let config = with_agreeable_alpn(config, &start.client_hello());
        start.into_stream(config).await
    };
    let stream = tokio::time::timeout(deadline, handshake)
        .await
        .map_err(|_| TlsError::Deadline)?
        .map_err(TlsError::of_handshake)?;
    let connection = stream.get_ref().1;
    let alpn = connection.alpn_protocol().map(<[u8]>::to_vec);
    let sni = connection.server_name().map(str::to_owned);
    let peer = match connection.peer_certificates() {
        Some(chain) if !domains.is_empty() => Some(verify::peer_of_handshake(Some(chain), domains)?),
        _ => None,
    };
    Ok(Accepted { stream, peer, alpn, sni })
}

/// rustls refuses a client whose ALPN offers have nothing in common with ours; Envoy goes on without ALPN, and clients
/// of the mesh (such as `istio-peer-exchange` to a server of HTTP) count on that.
fn with_agreeable_alpn(config: Arc<ServerConfig>, hello: &ClientHello<'_>) -> Arc<ServerConfig> {
    let ours = &config.alpn_protocols;
    let nothing_in_common =
        hello.alpn().is_some_and(|mut offers| !offers.any(|offer| ours.iter().any(|our| our == offer)));
    if ours.is_empty() || !nothing_in_common {
        return config;
    }
    let mut without = (*config).clone();
    without.alpn_protocols = Vec::new();
    Arc::new(without)
}
