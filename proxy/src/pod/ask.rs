//! Asking the application in the kubelet's place, and asking pages of this proxy.
//!
//! In: a [`Probe`]. Out: status and text for the kubelet. Kept true: every wait is bounded; of an answer, no more than the kubelet would
//! show is read. Not here: which probes there are (`probers`).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use mesh_identity::{
    grpc,
    tls::{MinTls, Names, OriginTls},
};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::TlsConnector;

use super::probers::{Probe, Question};
use crate::capture::rules::{INBOUND_SOURCE, INBOUND_SOURCE_V6};

/// Bytes of an answer that are passed on: the kubelet shows no more.
const SHOWN: usize = 10 * 1024;
/// Redirects that are followed, as the kubelet does.
const REDIRECTS: usize = 10;

/// An answer for the kubelet.
pub type Answer = (StatusCode, Bytes);

/// Asks the application at `ip`. `heard` are the headers of the kubelet's own request, whose `user-agent` and `accept` are passed on.
///
/// Dropping the future closes the connection.
pub async fn ask(probe: &Probe, ip: IpAddr, heard: &HeaderMap) -> Answer {
    let asked = async {
        match &probe.question {
            Question::Tcp { port } => {
                connect(SocketAddr::new(ip, *port)).await.map_err(|error| error.to_string())?;
                Ok((StatusCode::OK, Bytes::from_static(b"connected\n")))
            }
            Question::Grpc { port, service } => healthy(SocketAddr::new(ip, *port), service).await,
            Question::Http { port, path, tls, headers } => {
                get(SocketAddr::new(ip, *port), path, *tls, headers, heard).await
            }
        }
    };
    match tokio::time::timeout(probe.patience, asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(why)) => failed(&why),
        Err(_) => failed(&format!("no answer within {} s", probe.patience.as_secs())),
    }
}

/// An answer that the kubelet takes for a failure, with the reason for its event.
#[must_use]
pub fn failed(why: &str) -> Answer {
    (StatusCode::INTERNAL_SERVER_ERROR, Bytes::from(format!("{why}\n")))
}

/// A connection to the pod's own application, from the address that capture lets through.
async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(source) = source(address) {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    socket.connect(address).await
}

/// The address that capture lets through; `None` for IPv6 where nothing is captured, so that nobody has added it, and none is needed.
fn source(address: SocketAddr) -> Option<IpAddr> {
    let source = if address.is_ipv4() { IpAddr::V4(INBOUND_SOURCE) } else { IpAddr::V6(INBOUND_SOURCE_V6) };
    UdpSocket::bind((source, 0)).is_ok().then_some(source)
}

/// A GET as the kubelet sends it, redirects to the same host followed.
async fn get(
    address: SocketAddr,
    path: &str,
    tls: bool,
    headers: &[(http::HeaderName, HeaderValue)],
    heard: &HeaderMap,
) -> Result<Answer, String> {
    let (mut address, mut path, mut tls) = (address, path.to_owned(), tls);
    for _ in 0..=REDIRECTS {
        let mut request = Request::builder().method(Method::GET).uri(&path);
        request = request.header(header::HOST, address.to_string()).header(header::CONNECTION, "close");
        for name in [header::USER_AGENT, header::ACCEPT] {
            if let Some(value) = heard.get(&name) {
                request = request.header(name, value);
            }
        }
        let mut request = request.body(Empty::new()).map_err(|error| format!("path {path}: {error}"))?;
        for (name, value) in headers {
            request.headers_mut().insert(name, value.clone());
        }
        let host = request.headers().get(header::HOST).cloned();
        let stream = connect(address).await.map_err(|error| format!("{address}: {error}"))?;
        let response = match tls {
            false => send(stream, request).await?,
            true => send(handshake(stream, host.as_ref(), address).await?, request).await?,
        };
        match redirect(response.headers(), host.as_ref(), address, tls) {
            Some(next) if response.status().is_redirection() => (address, path, tls) = next,
            _ => return Ok((response.status(), text(response.into_body()).await)),
        }
    }
    Err(format!("stopped after {REDIRECTS} redirects"))
}

/// Where a redirect leads, if it is to the same host: elsewhere the kubelet does not follow, and counts it as success.
fn redirect(
    answer: &HeaderMap,
    host: Option<&HeaderValue>,
    address: SocketAddr,
    tls: bool,
) -> Option<(SocketAddr, String, bool)> {
    let location: Uri = answer.get(header::LOCATION)?.to_str().ok()?.parse().ok()?;
    let path = location.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let Some(there) = location.host() else { return Some((address, path, tls)) };
    let there = there.trim_matches(['[', ']']);
    let own = address.ip().to_string();
    let asked = host.and_then(|host| host.to_str().ok()).and_then(|host| host.parse::<Uri>().ok());
    if there != own && asked.as_ref().and_then(Uri::host) != Some(there) {
        return None;
    }
    let tls = location.scheme_str() == Some("https");
    let port = location.port_u16().unwrap_or(if tls { 443 } else { 80 });
    Some((SocketAddr::new(address.ip(), port), path, tls))
}

async fn handshake(
    stream: TcpStream,
    host: Option<&HeaderValue>,
    address: SocketAddr,
) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static, String> {
    let anyone = OriginTls {
        roots: None,
        names: Names::Any,
        credentials: None,
        alpn: vec![b"http/1.1".to_vec()],
        min: MinTls::V12,
    };
    let config = anyone.config().map_err(|error| error.to_string())?;
    let named = host.and_then(|host| host.to_str().ok()).and_then(|host| host.parse::<Uri>().ok());
    let named =
        named.as_ref().and_then(Uri::host).and_then(|host| ServerName::try_from(host.to_owned()).ok());
    let name = named.unwrap_or_else(|| ServerName::IpAddress(address.ip().into()));
    let stream = TlsConnector::from(Arc::clone(&config)).connect(name, stream).await;
    stream.map_err(|error| format!("{address}: TLS: {error}"))
}

/// One request on a connection of its own.
async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    // Ends with the answer: the request asks for that, and dropping the sender does.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(|error| error.to_string())
}

/// The first bytes of a body; what follows, or does not come, changes nothing.
async fn text(mut body: Incoming) -> Bytes {
    let mut text = Vec::new();
    while text.len() < SHOWN
        && let Some(Ok(frame)) = body.frame().await
    {
        text.extend(frame.into_data().unwrap_or_default());
    }
    text.truncate(SHOWN);
    text.into()
}

/// `POST` or `GET` of a page of this proxy's own.
///
/// # Errors
/// When there was no answer.
pub async fn page(method: Method, address: SocketAddr, path: &str) -> Result<Answer, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("{address}: {error}"))?;
    let request = Request::builder().method(method).uri(path).header(header::HOST, address.to_string());
    let request =
        request.header(header::CONNECTION, "close").body(Empty::new()).map_err(|e| e.to_string())?;
    let response = send(stream, request).await?;
    Ok((response.status(), text(response.into_body()).await))
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`; 1 is `SERVING`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

async fn healthy(address: SocketAddr, service: &str) -> Result<Answer, String> {
    let options = grpc::ChannelOptions { local: source(address), ..grpc::ChannelOptions::default() };
    let channel = grpc::channel(&address.to_string(), grpc::Target::Plaintext, &options)?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| format!("{address}: {error}"))?;
    let request = tonic::Request::new(HealthCheckRequest { service: service.to_owned() });
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let answer = client.unary(request, path, codec).await;
    match answer.map_err(|status| format!("{address}: {status}"))?.into_inner().status {
        SERVING => Ok((StatusCode::OK, Bytes::from_static(b"SERVING\n"))),
        other => Err(format!("{address}: status {other} of service `{service}`, not SERVING")),
    }
}

/// Where pages of this proxy answer for a caller in the same pod.
#[must_use]
pub fn own_page(instance: Option<IpAddr>, port: u16) -> SocketAddr {
    let ip = instance.filter(IpAddr::is_loopback).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    SocketAddr::new(ip, port)
}

#[cfg(test)]
#[path = "ask_tests.rs"]
mod tests;
