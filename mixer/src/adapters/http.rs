//! A small HTTP client for adapters: one request, one connection.
//!
//! In: a URL and a body. Out: status and a bounded body.
//! Kept true: https verifies the server against the public roots; no answer is read beyond its limit.
//! Not here: deadlines and retries (`queue`).

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use mesh_identity::tls::{self, MinTls, Names, OriginTls, client::Roots};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// Most bytes of an answer.
const MOST_BYTES: usize = 16 << 20;

/// Whether `url` is one that [`send`] can use.
pub(super) fn check_url(url: &str) -> Result<Uri, String> {
    let uri: Uri = url.parse().map_err(|error| format!("\"{url}\" is no URL: {error}"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(_)) => Ok(uri),
        _ => Err(format!("\"{url}\" must start with http:// or https:// and name a host")),
    }
}

/// Sends one request. Dropping the future drops the connection; the server may have acted on the request.
pub(super) async fn send(
    method: Method,
    uri: &Uri,
    headers: &[(String, String)],
    body: Bytes,
) -> Result<(StatusCode, Bytes), String> {
    let host = uri.host().ok_or("the URL names no host")?;
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((bare, port)).await.map_err(|error| format!("{host}:{port}: {error}"))?;
    let mut request = Request::builder()
        .method(method)
        .uri(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, uri.authority().map_or(host, |authority| authority.as_str()))
        .header(header::USER_AGENT, concat!("crema-mixer/", env!("CARGO_PKG_VERSION")));
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(body)).map_err(|error| error.to_string())?;
    if secure {
        let config = OriginTls {
            roots: Some(Roots::Public),
            names: Names::Asked,
            credentials: None,
            alpn: vec![b"http/1.1".to_vec()],
            min: MinTls::V12,
        }
        .config()
        .map_err(|error| error.to_string())?;
        let connected =
            tls::client::connect(config, &[], Some(bare), stream).await.map_err(|error| error.to_string())?;
        exchange(connected.stream, request).await
    } else {
        exchange(stream, request).await
    }
}

async fn exchange(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|error| error.to_string())?;
    let running = tokio::spawn(connection);
    let result = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MOST_BYTES)
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        Ok((status, body.to_bytes()))
    }
    .await;
    running.abort();
    result
}
