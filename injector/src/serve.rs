//! The webhook's HTTPS server, with a certificate from files that may be replaced while it runs.
//!
//! In: connections of the API server. Out: the webhook's answers. Kept true: a replaced certificate is used from the next handshake on; a
//! broken one leaves the last good one in place and is said once. Not here: what is answered (`webhook`), TLS itself (`mesh-identity`).

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use axum::Router;
use mesh_identity::{
    Credentials,
    tls::{MinTls, server},
};
use mesh_runtime::{drain::Watch, listen};
use rustls::ServerConfig;
use tokio::net::TcpListener;

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
    current: RwLock<Loaded>,
}

#[derive(Debug, Clone)]
struct Loaded {
    chain: Vec<Vec<u8>>,
    config: Arc<ServerConfig>,
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// When one cannot be read or is not PEM, or the key is not the certificate's; the error names the file.
    pub fn read(files: Files) -> anyhow::Result<Arc<Self>> {
        let current = RwLock::new(load(&files)?);
        Ok(Arc::new(Self { files, current }))
    }

    /// Looks at the files again and again; never returns.
    pub async fn follow(&self) {
        let mut told = String::new();
        loop {
            tokio::time::sleep(LOOK).await;
            if let Err(error) = self.refresh() {
                let text = format!("{error:#}");
                if told != text {
                    tracing::warn!("keeping the last good webhook certificate: {text}");
                    told = text;
                }
            } else {
                told.clear();
            }
        }
    }

    /// Takes over what the files hold now.
    ///
    /// # Errors
    /// As [`Certificate::read`]; what was good before stays.
    pub fn refresh(&self) -> anyhow::Result<()> {
        let fresh = load(&self.files)?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.chain != fresh.chain {
            tracing::info!(file = %self.files.cert.display(), "webhook certificate replaced");
            *current = fresh;
        }
        Ok(())
    }

    fn config(&self) -> Arc<ServerConfig> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).config.clone()
    }
}

fn load(files: &Files) -> anyhow::Result<Loaded> {
    let credentials = Credentials::from_files(&files.cert, &files.key)?;
    let alpn = [b"h2".to_vec(), b"http/1.1".to_vec()];
    let config = server::file_config(&credentials, None, &alpn, MinTls::V12)?;
    Ok(Loaded { chain: credentials.chain().iter().map(|c| c.as_ref().to_vec()).collect(), config })
}

/// Serves `router` over TLS until the drain.
pub async fn serve_tls(listener: TcpListener, certificate: Arc<Certificate>, router: Router, drain: Watch) {
    while let Some((stream, peer)) = drain.until_drain(listen::accept(&listener)).await {
        let (config, router, drain) = (certificate.config(), router.clone(), drain.clone());
        tokio::spawn(async move {
            let end = match server::accept(config, &[], stream).await {
                Ok(accepted) => listen::serve_connection(accepted.stream, router, drain).await,
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = end {
                tracing::debug!(%peer, error, "webhook connection ended");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(files: &Files, name: &str) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
        std::fs::write(&files.cert, made.cert.pem()).expect("written");
        std::fs::write(&files.key, made.signing_key.serialize_pem()).expect("written");
    }

    #[test]
    fn a_replaced_certificate_is_taken_and_a_broken_one_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = Files { cert: dir.path().join("c"), key: dir.path().join("k") };
        assert!(Certificate::read(files.clone()).expect_err("missing").to_string().contains("c"));
        write(&files, "one");
        let certificate = Certificate::read(files.clone()).expect("good");
        let chain = || certificate.current.read().expect("unpoisoned").chain.clone();
        let first = chain();
        std::fs::write(&files.cert, "nonsense").expect("written");
        assert!(certificate.refresh().is_err());
        assert_eq!(chain(), first);
        write(&files, "two");
        certificate.refresh().expect("good again");
        assert_ne!(chain(), first);
    }
}
