//! gRPC over loopback TLS: the peer's identity reaches the service, bad clients do not reach it.

use std::time::Duration;

use istio_auth::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_client::IstioCertificateServiceClient,
    istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
};
use mesh_runtime::{drain, listen};
use tokio::io::AsyncWriteExt;
use tonic::{Request, Response, Status};

use super::*;
use crate::{
    CertStore,
    testkit::TestCa,
    tls::{ClientAuth, ClientTls, ServerTls},
};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

/// Answers with the identity of the caller.
struct WhoAmI;

#[tonic::async_trait]
impl IstioCertificateService for WhoAmI {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let info = request.extensions().get::<ConnInfo>().expect("every connection has it");
        let peer = info.peer.as_ref().map_or("nobody".to_owned(), |p| p.id().to_string());
        Ok(Response::new(IstioCertificateResponse { cert_chain: vec![peer] }))
    }
}

fn serve(store: Option<CertStore>, client_auth: ClientAuth, limits: Limits) -> (String, drain::Trigger) {
    let (trigger, watch) = drain::new();
    let listener = listen::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let incoming = match store {
        Some(store) => incoming(listener, store, ServerTls::grpc(client_auth), limits, watch.clone()),
        None => incoming_plain(listener, limits, watch.clone()),
    };
    tokio::spawn(async move {
        tonic::transport::Server::builder()
            .add_service(IstioCertificateServiceServer::new(WhoAmI))
            .serve_with_incoming_shutdown(incoming, async move { watch.signaled().await })
            .await
            .unwrap();
    });
    (addr, trigger)
}

async fn ask(addr: &str, target: Target) -> Result<String, Status> {
    let channel = channel(addr, target, &ChannelOptions::default()).unwrap();
    let answer = IstioCertificateServiceClient::new(channel)
        .create_certificate(IstioCertificateRequest::default())
        .await?;
    Ok(answer.into_inner().cert_chain.concat())
}

#[tokio::test]
async fn a_service_sees_the_verified_identity_of_its_caller() {
    let ca = TestCa::new("root");
    let (addr, _trigger) = serve(Some(ca.store(CART)), ClientAuth::Required, Limits::default());
    let target = Target::Mesh(ca.store(WEB), ClientTls::grpc(CART.parse().unwrap()));
    assert_eq!(ask(&addr, target).await.unwrap(), WEB);
}

#[tokio::test]
async fn a_call_that_comes_before_the_first_certificate_waits_for_it() {
    let ca = TestCa::new("root");
    let (addr, _trigger) = serve(Some(ca.store(CART)), ClientAuth::Required, Limits::default());
    let store = CertStore::new(crate::testkit::domain(), []);
    let target = Target::Mesh(store.clone(), ClientTls::grpc(CART.parse().unwrap()));
    let asked = tokio::spawn(async move { ask(&addr, target).await });
    tokio::task::yield_now().await;
    store.publish(ca.issue(WEB), ca.bundle());
    assert_eq!(asked.await.unwrap().unwrap(), WEB);
}

#[tokio::test]
async fn plaintext_callers_are_nobody() {
    let (addr, _trigger) = serve(None, ClientAuth::None, Limits::default());
    assert_eq!(ask(&addr, Target::Plaintext).await.unwrap(), "nobody");
}

#[tokio::test]
async fn a_pinned_server_is_checked_against_the_root_file_and_its_identity() {
    let (ca, other) = (TestCa::new("root"), TestCa::new("root"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), ca.bundle().to_pem()).unwrap();
    let (addr, _t1) = serve(Some(ca.store(CART)), ClientAuth::Optional, Limits::default());
    let (impostor, _t2) = serve(Some(other.store(CART)), ClientAuth::Optional, Limits::default());
    let pinned = |id: &str| Target::Pinned { roots: file.path().into(), server: id.parse().unwrap() };
    assert_eq!(ask(&addr, pinned(CART)).await.unwrap(), "nobody");
    for (addr, id, part) in [
        (&addr, WEB, "expected"),
        (&impostor, CART, "no root of this mesh"),
        (&addr, "cart.shop.svc", "expected cart.shop.svc"),
    ] {
        let error = reason(&ask(addr, pinned(id)).await.unwrap_err());
        assert!(error.contains(part), "{id}: {error}");
    }
}

/// TL-09: garbage, half handshakes and strangers cost one task each and nothing else.
#[tokio::test]
async fn bad_clients_do_not_end_the_server_nor_block_it() {
    let ca = TestCa::new("root");
    let (addr, _trigger) = serve(Some(ca.store(CART)), ClientAuth::Required, Limits::default());
    let mut half_open = Vec::new();
    for i in 0..100 {
        let mut stream = tokio::net::TcpStream::connect(&addr).await.unwrap();
        match i % 3 {
            0 => stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap(),
            1 => stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0]).await.unwrap(),
            _ => {}
        }
        half_open.push(stream);
    }
    let target = || Target::Mesh(ca.store(WEB), ClientTls::grpc(CART.parse().unwrap()));
    assert_eq!(ask(&addr, target()).await.unwrap(), WEB);
    assert!(ask(&addr, Target::Plaintext).await.is_err());
    drop(half_open);
    assert_eq!(ask(&addr, target()).await.unwrap(), WEB);
}

/// TL-09: thousands of open handshakes of one address keep nobody else out.
#[tokio::test]
async fn open_handshakes_of_one_address_do_not_keep_others_out() {
    let ca = TestCa::new("root");
    let limits = Limits { handshakes: 64, handshakes_per_address: 16, connections: 1024 };
    let (addr, _trigger) = serve(Some(ca.store(CART)), ClientAuth::Required, limits);
    let mut open = Vec::new();
    for _ in 0..500 {
        open.push(tokio::net::TcpStream::connect(&addr).await.unwrap());
    }
    let options = ChannelOptions { local: Some("127.0.0.2".parse().unwrap()), ..ChannelOptions::default() };
    let target = Target::Mesh(ca.store(WEB), ClientTls::grpc(CART.parse().unwrap()));
    let channel = channel(&addr, target, &options).unwrap();
    let answer = IstioCertificateServiceClient::new(channel)
        .create_certificate(IstioCertificateRequest::default())
        .await
        .unwrap();
    assert_eq!(answer.into_inner().cert_chain.concat(), WEB);
}

/// TL-05: a live connection ends when its root is taken away, and stays when only our certificate is renewed.
#[tokio::test]
async fn live_connections_end_when_their_root_is_removed() {
    let (old, new) = (TestCa::new("old"), TestCa::new("new"));
    let store = old.store(CART);
    let (addr, _trigger) = serve(Some(store.clone()), ClientAuth::Required, Limits::default());
    let target = Target::Mesh(old.store(WEB), ClientTls::grpc(CART.parse().unwrap()));
    let channel = channel(&addr, target, &ChannelOptions::default()).unwrap();
    let mut client = IstioCertificateServiceClient::new(channel);
    let mut ask = async || client.create_certificate(IstioCertificateRequest::default()).await.map(|_| ());
    ask().await.unwrap();
    store.publish(old.issue(CART), old.bundle());
    ask().await.expect("renewal does not disturb");
    // The server shows a certificate of the old root still, so that only its view of clients has changed.
    store.publish(old.issue(CART), new.bundle());
    let refused = async {
        while ask().await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), refused).await.expect("the connection is cut");
}

#[tokio::test]
async fn a_drained_server_takes_no_more_connections() {
    let (addr, trigger) = serve(None, ClientAuth::None, Limits::default());
    assert!(ask(&addr, Target::Plaintext).await.is_ok());
    assert!(trigger.drain(Duration::from_secs(30)).await.is_clean());
    assert!(ask(&addr, Target::Plaintext).await.is_err());
}

#[test]
fn addresses_and_server_names_are_checked() {
    for bad in ["", "host", "host:port", "host:80/path", "http://host:80"] {
        let made = channel(bad, Target::Plaintext, &ChannelOptions::default());
        assert!(made.is_err(), "{bad}");
    }
    for (text, ok) in [(WEB, true), ("istiod.istio-system.svc", true), ("spiffe://x", false), ("a b", false)]
    {
        assert_eq!(text.parse::<ServerCheck>().is_ok(), ok, "{text}");
    }
}
