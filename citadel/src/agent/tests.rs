//! The agent as an Envoy sees it: SDS over a unix socket, both protocol variants.

use std::{os::unix::fs::PermissionsExt, time::Duration};

use hyper_util::rt::TokioIo;
use mesh_identity::{CertStore, Credentials, TrustBundle, TrustDomain, testkit::TestCa};
use mesh_runtime::drain;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use xds::{
    envoy::{
        config::core::v3::data_source::Specifier,
        extensions::transport_sockets::tls::v3::{Secret, secret::Type},
        service::{
            discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse},
            secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
        },
    },
    google::{protobuf::Any, rpc},
};

use super::*;
use sds::{CERTIFICATE, ROOTS, SECRET_TYPE};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

struct Bench {
    store: CertStore,
    client: SecretDiscoveryServiceClient<Channel>,
    dir: tempfile::TempDir,
    _trigger: drain::Trigger,
}

async fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sub/socket");
    let (trigger, watch) = drain::new();
    let store = CertStore::new(TrustDomain::default(), []);
    let listener = bind(&path, 0o600).await.unwrap();
    tokio::spawn(serve(listener, Sds::new(store.clone(), watch.clone()), watch));
    let channel =
        Endpoint::from_static("http://agent").connect_with_connector_lazy(tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }));
    Bench { store, client: SecretDiscoveryServiceClient::new(channel), dir, _trigger: trigger }
}

fn ask(names: &[&str], last: Option<&DiscoveryResponse>) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(|n| (*n).to_owned()).collect(),
        type_url: SECRET_TYPE.into(),
        version_info: last.map(|r| r.version_info.clone()).unwrap_or_default(),
        response_nonce: last.map(|r| r.nonce.clone()).unwrap_or_default(),
        ..Default::default()
    }
}

fn inline(source: Option<xds::envoy::config::core::v3::DataSource>) -> Vec<u8> {
    match source.and_then(|s| s.specifier) {
        Some(Specifier::InlineBytes(bytes)) => bytes,
        other => panic!("not inline: {other:?}"),
    }
}

/// Certificates, key and roots out of resources, put together as an Envoy would.
fn read(resources: &[Any]) -> (Option<Credentials>, Option<TrustBundle>) {
    let (mut credentials, mut bundle) = (None, None);
    for any in resources {
        assert_eq!(any.type_url, SECRET_TYPE);
        match Secret::decode(&*any.value).unwrap().r#type.unwrap() {
            Type::TlsCertificate(tls) => {
                let (chain, key) = (inline(tls.certificate_chain), inline(tls.private_key));
                credentials = Some(Credentials::from_pem("sds", &chain, &key).unwrap());
            }
            Type::ValidationContext(context) => {
                bundle = Some(TrustBundle::from_pem("sds", &inline(context.trusted_ca)).unwrap());
            }
            other => panic!("{other:?}"),
        }
    }
    (credentials, bundle)
}

#[tokio::test]
async fn an_envoy_gets_its_secrets_when_they_are_there_and_at_each_rotation() {
    let mut bench = bench().await;
    let ca = TestCa::new("root");
    let (requests, outgoing) = mpsc::channel(4);
    requests.send(ask(&[CERTIFICATE, ROOTS], None)).await.unwrap();
    let mut answers = bench.client.stream_secrets(ReceiverStream::new(outgoing)).await.unwrap().into_inner();

    bench.store.publish(ca.issue(WEB), ca.bundle());
    let first = answers.message().await.unwrap().unwrap();
    let (credentials, bundle) = read(&first.resources);
    assert_eq!(credentials.unwrap().id().unwrap().as_str(), WEB);
    assert_eq!(bundle.unwrap(), ca.bundle());

    requests.send(ask(&[CERTIFICATE, ROOTS], Some(&first))).await.unwrap();
    let new = ca.issue(WEB);
    let serial = new.facts().serial.clone();
    bench.store.publish(new, ca.bundle());
    let second = answers.message().await.unwrap().unwrap();
    assert_ne!((&second.nonce, &second.version_info), (&first.nonce, &first.version_info));
    assert_eq!(read(&second.resources).0.unwrap().facts().serial, serial);

    let refuse = DiscoveryRequest {
        error_detail: Some(rpc::Status { message: "no".into(), ..Default::default() }),
        ..ask(&[CERTIFICATE, ROOTS], Some(&second))
    };
    requests.send(refuse).await.unwrap();
    let quiet = tokio::time::timeout(Duration::from_millis(100), answers.message()).await;
    assert!(quiet.is_err(), "a refused secret is not sent again unchanged");

    requests.send(ask(&[ROOTS, "unknown"], Some(&second))).await.unwrap();
    let third = answers.message().await.unwrap().unwrap();
    let (credentials, bundle) = read(&third.resources);
    assert!(credentials.is_none() && bundle.is_some(), "only what was asked for");
}

#[tokio::test]
async fn delta_clients_get_only_what_they_lack() {
    let mut bench = bench().await;
    let ca = TestCa::new("root");
    bench.store.publish(ca.issue(WEB), ca.bundle());
    let subscribe = |names: &[&str]| DeltaDiscoveryRequest {
        type_url: SECRET_TYPE.into(),
        resource_names_subscribe: names.iter().map(|n| (*n).to_owned()).collect(),
        ..Default::default()
    };
    let (requests, outgoing) = mpsc::channel(4);
    requests.send(subscribe(&[CERTIFICATE, ROOTS, "unknown"])).await.unwrap();
    let mut answers = bench.client.delta_secrets(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    let first = answers.message().await.unwrap().unwrap();
    let names: Vec<&str> = first.resources.iter().map(|r| r.name.as_str()).collect();
    assert_eq!((names, first.removed_resources), (vec![ROOTS, CERTIFICATE], vec!["unknown".to_owned()]));

    bench.store.publish(ca.issue(WEB), ca.bundle());
    let second = answers.message().await.unwrap().unwrap();
    let names: Vec<&str> = second.resources.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, [CERTIFICATE], "the roots have not changed");

    let (requests, outgoing) = mpsc::channel(4);
    let mut back = subscribe(&[CERTIFICATE, ROOTS]);
    back.initial_resource_versions = first
        .resources
        .iter()
        .chain(&second.resources)
        .map(|r| (r.name.clone(), r.version.clone()))
        .collect();
    requests.send(back).await.unwrap();
    let mut answers = bench.client.delta_secrets(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    let quiet = tokio::time::timeout(Duration::from_millis(100), answers.message()).await;
    assert!(quiet.is_err(), "a client that returns with everything gets nothing");
}

#[tokio::test]
async fn other_types_are_refused_and_early_fetches_told_to_wait() {
    let mut bench = bench().await;
    let early = bench.client.fetch_secrets(ask(&[CERTIFICATE], None)).await.unwrap_err();
    assert_eq!(early.code(), tonic::Code::Unavailable);
    let other = DiscoveryRequest { type_url: "type.googleapis.com/x".into(), ..ask(&[CERTIFICATE], None) };
    let refused = bench.client.fetch_secrets(other).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    let ca = TestCa::new("root");
    bench.store.publish(ca.issue(WEB), ca.bundle());
    let now = bench.client.fetch_secrets(ask(&[CERTIFICATE], None)).await.unwrap().into_inner();
    assert_eq!(now.resources.len(), 1);
}

#[tokio::test]
async fn the_socket_is_private_and_taken_over_only_from_the_dead() {
    let bench = bench().await;
    let path = bench.dir.path().join("sub/socket");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(matches!(bind(&path, 0o600).await, Err(SocketError::InUse(_))));

    let dead = bench.dir.path().join("dead");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    assert!(bind(&dead, 0o600).await.is_ok());

    let file = bench.dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(bind(&file, 0o600).await, Err(SocketError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}
