//! `citadel agent`: gives an Envoy beside it a mesh identity, over SDS on a unix socket.
//!
//! In: a CA to ask (as every workload does), a socket path. Out: secrets `default` and `ROOTCA`, pushed at each rotation.
//! Kept true: the private key is made here and leaves only through the socket, which only its owner may open.
//! Not here: the renewal itself (`mesh_identity::workload`).

pub mod sds;

use std::{
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use mesh_runtime::drain::Watch;
use tokio::net::{UnixListener, UnixStream};
use xds::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer;

use sds::Sds;

/// The socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error("{}: another agent listens on this socket", .0.display())]
    InUse(PathBuf),
    /// There is a file of another kind.
    #[error("{}: is there and not a socket; remove it or choose another --socket", .0.display())]
    NotASocket(PathBuf),
    /// Anything else.
    #[error("{}: {source}", .path.display())]
    Io {
        /// Which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Listens on a unix socket. A socket that an earlier agent left behind is replaced, one that answers is not.
///
/// # Errors
/// [`SocketError`] names the path.
pub async fn bind(path: &Path, mode: u32) -> Result<UnixListener, SocketError> {
    let failed = |source| SocketError::Io { path: path.into(), source };
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty() && !d.exists()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(failed)?;
    }
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket(path.into())),
        Ok(_) if UnixStream::connect(path).await.is_ok() => return Err(SocketError::InUse(path.into())),
        Ok(_) => std::fs::remove_file(path).map_err(failed)?,
    }
    // Made under another name and closed to others before it can be found.
    let hidden = path.with_extension(format!("{}.tmp", std::process::id()));
    let _ = std::fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden).map_err(failed)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
    std::fs::rename(&hidden, path).map_err(failed)?;
    Ok(listener)
}

/// Serves SDS until the drain.
///
/// # Errors
/// When the HTTP/2 server cannot start.
pub async fn serve(listener: UnixListener, sds: Sds, drain: Watch) -> Result<(), tonic::transport::Error> {
    let incoming = futures::stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok::<_, io::Error>(stream), listener)),
                Err(error) => {
                    tracing::warn!(%error, "accept failed; pausing");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    });
    tonic::transport::Server::builder()
        .add_service(SecretDiscoveryServiceServer::new(sds))
        .serve_with_incoming_shutdown(incoming, async move { drain.signaled().await })
        .await
}

#[cfg(test)]
mod tests;
