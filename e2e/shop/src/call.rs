//! One HTTP request as a scenario needs it: from an address of choice, straight or through a proxy.
//!
//! In: a [`Call`]. Out: a [`Reply`], or why there is none. Kept true: one connection per call, so nothing of an earlier call lingers.
//! Not here: load (`load`), what an answer should be (the scenarios).

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpSocket;

/// A request to send.
#[derive(Debug, Clone)]
pub struct Call {
    /// GET unless set.
    pub method: Method,
    /// `http://host[:port]/path`.
    pub url: String,
    /// More headers; `host` here wins over the URL's.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
    /// An HTTP proxy to send the absolute form to.
    pub proxy: Option<SocketAddr>,
    /// Address to connect to instead of the URL's.
    pub to: Option<SocketAddr>,
    /// Address to connect from.
    pub from: Option<IpAddr>,
    /// How long to wait for the whole answer.
    pub patience: Duration,
    /// Who sends it; this process unless set.
    pub via: Option<Arc<dyn Via>>,
}

/// Sends calls from somewhere else, e.g. from inside a pod.
pub trait Via: fmt::Debug + Send + Sync {
    /// Sends `call` and waits for its answer.
    ///
    /// # Errors
    /// As [`Call::send`], and when the place cannot be reached.
    fn send<'a>(&'a self, call: &'a Call)
    -> Pin<Box<dyn Future<Output = anyhow::Result<Reply>> + Send + 'a>>;
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, as text.
    pub body: String,
    /// From before the connection was made until the last byte.
    pub took: Duration,
}

impl Reply {
    /// A header's value, or an empty text.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }
}

impl Call {
    /// A GET of `url`.
    #[must_use]
    pub fn get(url: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            url: url.into(),
            headers: Vec::new(),
            body: String::new(),
            proxy: None,
            to: None,
            from: None,
            patience: Duration::from_secs(30),
            via: None,
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends it.
    ///
    /// # Errors
    /// When no whole answer comes in time; a refusing status is an answer.
    pub async fn send(&self) -> anyhow::Result<Reply> {
        if let Some(via) = &self.via {
            return via.send(self).await;
        }
        let started = Instant::now();
        let exchange = tokio::time::timeout(self.patience, self.exchange());
        let (status, headers, body) = exchange
            .await
            .with_context(|| format!("{}: no answer within {:?}", self.url, self.patience))??;
        Ok(Reply { status, headers, body, took: started.elapsed() })
    }

    async fn exchange(&self) -> anyhow::Result<(u16, HeaderMap, String)> {
        let url: Uri = self.url.parse().with_context(|| format!("{} is not a URL", self.url))?;
        let authority = url.authority().with_context(|| format!("{} names no host", self.url))?;
        let to = match self.proxy.or(self.to) {
            Some(to) => to,
            None => {
                let port = authority.port_u16().unwrap_or(80);
                let found = tokio::net::lookup_host((authority.host(), port)).await?.next();
                found.with_context(|| format!("{authority} has no address"))?
            }
        };
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(from) = self.from {
            socket.bind((from, 0).into())?;
        }
        let stream = socket.connect(to).await.with_context(|| format!("connecting to {to}"))?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let target = match self.proxy {
            Some(_) => url.clone(),
            None => url.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string).parse()?,
        };
        let mut request = Request::builder().method(&self.method).uri(target);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request = request.header("host", authority.as_str());
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let response = sender.send_request(request.body(Full::new(Bytes::from(self.body.clone())))?).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        driver.abort();
        Ok((head.status.as_u16(), head.headers, String::from_utf8_lossy(&body).into_owned()))
    }
}
