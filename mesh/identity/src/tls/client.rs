//! The connecting side: whom to expect, and one handshake.
//!
//! In: [`ClientTls`] for peers of the mesh, [`OriginTls`] for servers outside it, and a byte stream. Out: [`Connected`].
//! Kept true: a mesh server is known by its SPIFFE identity, never by a DNS name.
//! Not here: dialling, pools and load balancing.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, LazyLock},
};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{HANDSHAKE_DEADLINE, MinTls, Peer, TlsError, client_config, verify};
use crate::{
    bundle::TrustBundle,
    credentials::Credentials,
    spiffe::{SpiffeId, TrustDomain},
};

/// Which identities a mesh server may have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expected {
    /// Any identity of an accepted trust domain.
    AnyInMesh,
    /// One of these; the empty set allows nobody.
    OneOf(BTreeSet<SpiffeId>),
}

impl Expected {
    /// Exactly this one.
    pub fn one(id: SpiffeId) -> Self {
        Self::OneOf(BTreeSet::from([id]))
    }

    /// Whether a verified identity is one of them.
    pub fn allows(&self, id: &SpiffeId) -> bool {
        match self {
            Self::AnyInMesh => true,
            Self::OneOf(ids) => ids.contains(id),
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AnyInMesh => f.write_str("any identity of the mesh"),
            Self::OneOf(ids) => {
                let shown: Vec<String> = ids.iter().take(5).map(|id| format!("`{id}`")).collect();
                f.write_str(&shown.join(" or "))?;
                if ids.len() > 5 { write!(f, " or {} more", ids.len() - 5) } else { Ok(()) }
            }
        }
    }
}

/// Settings for connecting to a peer of the mesh with our certificate. Cheap to clone, usable as a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientTls {
    /// Who may answer.
    pub expected: Expected,
    /// Protocols offered, in order of preference.
    pub alpn: Vec<Vec<u8>>,
    /// Oldest version.
    pub min: MinTls,
}

impl ClientTls {
    /// gRPC to a server of this identity.
    pub fn grpc(server: SpiffeId) -> Self {
        Self { expected: Expected::one(server), alpn: vec![b"h2".to_vec()], min: MinTls::V13 }
    }
}

/// Roots for servers outside the mesh.
#[derive(Clone, Debug)]
pub enum Roots {
    /// The public web's (Mozilla's list, compiled in).
    Public,
    /// Those of a file.
    Bundle(TrustBundle),
}

/// Which names a server outside the mesh must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    /// The name it is asked for (SNI).
    Asked,
    /// One of these: DNS names, IP addresses or URIs (`subjectAltNames`).
    OneOf(Vec<String>),
    /// Whatever: the chain is enough.
    Any,
}

/// Settings for connecting to a server outside the mesh (`SIMPLE` and `MUTUAL` of a DestinationRule), or to a
/// certificate authority before we have a certificate.
#[derive(Clone, Debug)]
pub struct OriginTls {
    /// Whom to trust; `None` trusts anyone (`insecureSkipVerify`).
    pub roots: Option<Roots>,
    /// Names the server must have.
    pub names: Names,
    /// Our certificate, for `MUTUAL`.
    pub credentials: Option<Credentials>,
    /// Protocols offered, in order of preference.
    pub alpn: Vec<Vec<u8>>,
    /// Oldest version; servers outside often still need 1.2.
    pub min: MinTls,
}

impl OriginTls {
    /// Builds the configuration; keep it as long as the settings stand.
    ///
    /// # Errors
    /// When settings and certificates do not fit together.
    pub fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let servers = match &self.roots {
            None => verify::Servers::Anyone,
            Some(roots) => {
                let roots = match roots {
                    Roots::Public => public_roots(),
                    Roots::Bundle(bundle) => bundle.anchors(),
                };
                verify::Servers::Names { roots, names: self.names.clone() }
            }
        };
        let certificate = self.credentials.as_ref().map(Credentials::certified);
        client_config(self.min, Arc::new(servers), certificate, &self.alpn).map(Arc::new)
    }
}

fn public_roots() -> Arc<RootCertStore> {
    static ROOTS: LazyLock<Arc<RootCertStore>> =
        LazyLock::new(|| Arc::new(webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect()));
    ROOTS.clone()
}

/// Builds a configuration for a mesh server; without `credentials` no certificate is shown.
/// [`crate::CertStore`] does this and keeps it until the certificates change.
///
/// # Errors
/// When settings and certificates do not fit together.
pub fn mesh_config(
    tls: &ClientTls,
    credentials: Option<&Credentials>,
    bundle: &TrustBundle,
    domains: Arc<[TrustDomain]>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let servers = verify::Servers::Mesh { bundle: bundle.clone(), domains, expected: tls.expected.clone() };
    client_config(tls.min, Arc::new(servers), credentials.map(Credentials::certified), &tls.alpn)
        .map(Arc::new)
}

/// A finished handshake.
#[derive(Debug)]
pub struct Connected<IO> {
    /// The stream of the application's bytes.
    pub stream: TlsStream<IO>,
    /// The verified server; `None` for servers outside the mesh.
    pub peer: Option<Peer>,
    /// The protocol agreed on.
    pub alpn: Option<Vec<u8>>,
}

/// Runs one handshake, within the deadline. `sni` is sent if it is a DNS name; `domains` are the trust domains whose
/// identities count, empty for servers outside the mesh. Dropping the future closes the connection.
///
/// # Errors
/// When the handshake fails, takes too long, or the server is not who was expected.
pub async fn connect<IO>(
    config: Arc<ClientConfig>,
    domains: &[TrustDomain],
    sni: Option<&str>,
    io: IO,
) -> Result<Connected<IO>, TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    // An IP address as the name means that rustls sends no SNI.
    let nameless = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
    let name = match sni {
        None => nameless,
        Some(name) => ServerName::try_from(name.to_owned())
            .map_err(|_| TlsError::Settings(format!("`{name}` is not a server name")))?,
    };
    let handshake = TlsConnector::from(config).connect(name, io);
    let stream = tokio::time::timeout(HANDSHAKE_DEADLINE, handshake)
        .await
        .map_err(|_| TlsError::Deadline)?
        .map_err(TlsError::of_handshake)?;
    let connection = stream.get_ref().1;
    let alpn = connection.alpn_protocol().map(<[u8]>::to_vec);
    let peer = if domains.is_empty() {
        None
    } else {
        Some(verify::peer_of_handshake(connection.peer_certificates(), domains)?)
    };
    Ok(Connected { stream, peer, alpn })
}
