//! The client of `istio.v1.auth`: sends requests to citadel, or to any CA that speaks the same.
//!
//! In: address, root file, expected server, token file. Out: [`Signer`].
//! Kept true: the token is read anew for every request (kubelet replaces it) and never logged.
//! Not here: keys, renewal (`workload`).

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use istio_auth::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient};
use tonic::{Code, Request, Status, metadata::MetadataValue, transport::Channel};

use super::{SignError, Signer};
use crate::grpc::{ChannelOptions, ServerCheck, Target, channel, reason};

/// How long one request may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest token file in bytes.
const MAX_TOKEN: u64 = 64 * 1024;

/// A connection to the CA, made when needed.
#[derive(Clone, Debug)]
pub struct CaClient {
    client: IstioCertificateServiceClient<Channel>,
    token_file: PathBuf,
}

impl CaClient {
    /// Prepares a channel; nothing is sent yet.
    ///
    /// # Errors
    /// When `address` is not `host:port`.
    pub fn new(
        address: &str,
        roots: &Path,
        server: ServerCheck,
        token_file: &Path,
        options: &ChannelOptions,
    ) -> Result<Self, String> {
        let channel = channel(address, Target::Pinned { roots: roots.into(), server }, options)?;
        let client = IstioCertificateServiceClient::new(channel).max_decoding_message_size(4 * 1024 * 1024);
        Ok(Self { client, token_file: token_file.into() })
    }

    async fn bearer(&self) -> Result<MetadataValue<tonic::metadata::Ascii>, SignError> {
        let bad = |why: String| SignError::Token { path: self.token_file.clone(), why };
        let size = tokio::fs::metadata(&self.token_file).await.map_err(|e| bad(e.to_string()))?.len();
        if size > MAX_TOKEN {
            return Err(bad(format!("{size} bytes are too many for a token")));
        }
        let text = tokio::fs::read_to_string(&self.token_file).await.map_err(|e| bad(e.to_string()))?;
        let token = text.trim();
        if token.is_empty() {
            return Err(bad("it is empty".into()));
        }
        let mut value: MetadataValue<_> =
            format!("Bearer {token}").parse().map_err(|_| bad("it is not a token".into()))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl Signer for CaClient {
    async fn sign(&self, csr: String, ttl: Duration) -> Result<Vec<String>, SignError> {
        let validity_duration = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let mut request = Request::new(IstioCertificateRequest { csr, validity_duration, metadata: None });
        request.metadata_mut().insert("authorization", self.bearer().await?);
        request.set_timeout(CALL_TIMEOUT);
        // The deadline in the header is the server's to keep; ours is here.
        let answer = tokio::time::timeout(CALL_TIMEOUT, self.client.clone().create_certificate(request))
            .await
            .map_err(|_| SignError::Unreachable(format!("no answer in {} s", CALL_TIMEOUT.as_secs())))?
            .map_err(|status| from_status(&status))?;
        Ok(answer.into_inner().cert_chain)
    }
}

fn from_status(status: &Status) -> SignError {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
            SignError::Unreachable(reason(status))
        }
        code => SignError::Refused(format!("{} ({code:?})", status.message())),
    }
}
