//! The webhook's HTTPS server, with a certificate from files that may be replaced while it runs.
//!
//! In: connections of the API server. Out: the webhook's answers. Kept true: a replaced certificate is used from the next handshake on; a
//! broken one leaves the last good one in place and is said once. Not here: what is answered (`webhook`).

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::Context;
use axum::Router;
use mesh_runtime::{drain::Watch, listen};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// A certificate chain and its key, as files in PEM.
#[derive(Debug, Clone)]
pub struct Files {
    /// The chain, leaf first.
    pub cert: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// What the files held when they were last good.
#[derive(Debug)]
pub struct Certificate {
    files: Files,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// When one cannot be read or is not PEM, or the key is not the certificate's; the error names the file.
    pub fn read(files: Files) -> anyhow::Result<Arc<Self>> {
        let current = RwLock::new(Arc::new(load(&files)?));
        Ok(Arc::new(Self { files, current }))
    }

    /// Looks at the files again and again; never returns.
    pub async fn follow(&self) {
        let mut told = String::new();
        loop {
            tokio::time::sleep(LOOK).await;
            match load(&self.files) {
                Ok(fresh) => {
                    told.clear();
                    let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
                    if current.cert != fresh.cert {
                        tracing::info!(file = %self.files.cert.display(), "webhook certificate replaced");
                        *current = Arc::new(fresh);
                    }
                }
                Err(error) => {
                    let text = format!("{error:#}");
                    if told != text {
                        tracing::warn!("keeping the last good webhook certificate: {text}");
                        told = text;
                    }
                }
            }
        }
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn load(files: &Files) -> anyhow::Result<CertifiedKey> {
    let name = |path: &Path| path.display().to_string();
    let chain = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("certificate file {}", name(&files.cert)))?;
    anyhow::ensure!(!chain.is_empty(), "certificate file {} holds no certificate", name(&files.cert));
    let key =
        PrivateKeyDer::from_pem_file(&files.key).with_context(|| format!("key file {}", name(&files.key)))?;
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
        .with_context(|| format!("{} does not fit {}", name(&files.key), name(&files.cert)))
}

/// Serves `router` over TLS until the drain.
///
/// # Errors
/// When TLS cannot be set up at all.
pub async fn serve_tls(
    listener: TcpListener,
    certificate: Arc<Certificate>,
    router: Router,
    drain: Watch,
) -> anyhow::Result<()> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    while let Some((stream, peer)) = drain.until_drain(listen::accept(&listener)).await {
        let (acceptor, router, drain) = (acceptor.clone(), router.clone(), drain.clone());
        tokio::spawn(async move {
            let end = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(tls)) => listen::serve_connection(tls, router, drain).await,
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("the handshake took too long".to_owned()),
            };
            if let Err(error) = end {
                tracing::debug!(%peer, error, "webhook connection ended");
            }
        });
    }
    Ok(())
}
