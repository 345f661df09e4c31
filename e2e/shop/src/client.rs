//! The web service's HTTP client: direct, or through an HTTP proxy as a sidecar without traffic capture offers it.
//!
//! In: a URL and headers. Out: status, headers and body. Kept true: through a proxy every request line carries the whole URL;
//! a body above [`MOST`] or an answer later than [`PATIENCE`] is an error. Not here: which headers are passed on (`web`).

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Uri, uri::Authority};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::{
        Client as Pooled,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo},
};
use tokio::net::TcpStream;

/// Largest body taken from a backend, in bytes.
pub const MOST: usize = 1 << 20;
/// How long a backend may take: longer than any delay that a demonstration injects.
pub const PATIENCE: Duration = Duration::from_secs(100);

/// What a backend said.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its whole body.
    pub body: Bytes,
}

/// Pools connections; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client(Pooled<Connector, Empty<Bytes>>);

impl Client {
    /// A client that goes through `proxy` (`http://host:port`), or straight when that is empty.
    ///
    /// # Errors
    /// When `proxy` is not such a URL.
    pub fn new(proxy: &str) -> anyhow::Result<Self> {
        let proxy = match proxy.trim() {
            "" => None,
            url => {
                let uri: Uri = url.parse().with_context(|| format!("HTTP_PROXY {url:?} is not a URL"))?;
                ensure!(uri.scheme_str() == Some("http"), "HTTP_PROXY {url:?} must begin with http://");
                Some(uri.into_parts().authority.context("HTTP_PROXY names no host")?)
            }
        };
        let connector = Connector { proxy: proxy.map(Arc::new) };
        Ok(Self(Pooled::builder(TokioExecutor::new()).build(connector)))
    }

    /// One GET.
    ///
    /// # Errors
    /// When nobody answers in time, or the body is too large. A refusing status is an answer, not an error.
    pub async fn get(&self, url: Uri, headers: HeaderMap) -> anyhow::Result<Answer> {
        let mut request = Request::get(url).body(Empty::new())?;
        *request.headers_mut() = headers;
        let exchange = async {
            let response = self.0.request(request).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MOST).collect().await.map_err(anyhow::Error::from_boxed)?;
            Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
        };
        tokio::time::timeout(PATIENCE, exchange).await.context("no answer in time")?
    }
}

/// Opens TCP connections, to the proxy if there is one.
#[derive(Debug, Clone)]
struct Connector {
    proxy: Option<Arc<Authority>>,
}

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, std::io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let proxy = self.proxy.clone();
        Box::pin(async move {
            let authority = proxy.as_deref().or(uri.authority());
            let host = authority.map(Authority::host).unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let port = authority.and_then(Authority::port_u16).unwrap_or(80);
            let tcp = TcpStream::connect((host, port)).await?;
            tcp.set_nodelay(true)?;
            Ok(Stream { io: TokioIo::new(tcp), proxied: proxy.is_some() })
        })
    }
}

/// A connection that knows whether a proxy is at its other end: hyper then writes absolute-form request lines.
struct Stream {
    io: TokioIo<TcpStream>,
    proxied: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.proxied)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn request_line_seen(proxied: bool) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let here = listener.local_addr().expect("an address");
        let server = tokio::spawn(async move {
            let (mut peer, _) = listener.accept().await.expect("a connection");
            let mut seen = vec![0; 4096];
            let n = peer.read(&mut seen).await.expect("a request");
            peer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.expect("an answer");
            String::from_utf8_lossy(&seen[..n]).lines().next().unwrap_or_default().to_owned()
        });
        let proxy = if proxied { format!("http://{here}") } else { String::new() };
        let url = if proxied { "http://reviews:8092/api".to_owned() } else { format!("http://{here}/api") };
        let client = Client::new(&proxy).expect("a client");
        let answer = client.get(url.parse().expect("a URL"), HeaderMap::new()).await.expect("an answer");
        assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b"ok"[..]));
        server.await.expect("the server ends")
    }

    #[tokio::test]
    async fn through_a_proxy_the_request_line_carries_the_whole_url() {
        assert_eq!(request_line_seen(true).await, "GET http://reviews:8092/api HTTP/1.1");
        assert_eq!(request_line_seen(false).await, "GET /api HTTP/1.1");
    }

    #[test]
    fn a_proxy_that_is_no_http_url_is_refused() {
        for bad in ["https://127.0.0.1:1", "127.0.0.1:1", "http://", "nonsense://x"] {
            assert!(Client::new(bad).is_err(), "{bad}");
        }
    }
}
