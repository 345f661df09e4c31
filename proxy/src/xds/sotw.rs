//! One state-of-the-world stream: every answer of listeners or clusters holds all of them.
//!
//! In: DiscoveryResponses. Out: requests to send and changes of the [`Store`]. Kept true: a refused resource keeps its last good form even
//! though its answer is NACKed as a whole. Not here: sockets and reconnecting (`client`).

use std::collections::{BTreeSet, HashMap};

use mesh_traffic::names::Name;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use xds::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient as Client;
use xds::discovery::{DiscoveryRequest, DiscoveryResponse, Node};

use super::{
    client::Protocol,
    delta::refusal,
    resource::{Kind, Resource},
    store::Store,
};

/// What was last said of one kind.
#[derive(Debug, Default, Clone)]
struct Said {
    version: String,
    nonce: String,
    names: BTreeSet<Name>,
}

/// The state of one stream.
#[derive(Debug, Default)]
pub(super) struct Stream {
    said: HashMap<Kind, Said>,
}

impl Protocol for Stream {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn type_url(response: &DiscoveryResponse) -> &str {
        &response.type_url
    }

    async fn call(
        mut client: Client<Channel>,
        requests: tonic::Request<ReceiverStream<DiscoveryRequest>>,
    ) -> Result<tonic::Streaming<DiscoveryResponse>, tonic::Status> {
        client.stream_aggregated_resources(requests).await.map(tonic::Response::into_inner)
    }

    fn open(&mut self, node: &Node, store: &Store) -> Vec<DiscoveryRequest> {
        let mut requests = Vec::new();
        for kind in [Kind::Cluster, Kind::Endpoints, Kind::Secret, Kind::Listener, Kind::Route] {
            let names = store.wanted(kind);
            if kind.is_wildcard() || !names.is_empty() {
                self.said.insert(kind, Said { names, ..Said::default() });
                requests.push(DiscoveryRequest {
                    node: requests.is_empty().then(|| node.clone()),
                    ..self.request(kind)
                });
            }
        }
        requests
    }

    fn take(&mut self, response: DiscoveryResponse, store: &mut Store) -> Vec<DiscoveryRequest> {
        let DiscoveryResponse { version_info, resources, type_url, nonce } = response;
        let Some(kind) = Kind::of(&type_url) else {
            let refused = [format!("resources of type {type_url} were not asked for")];
            let error_detail = refusal(&refused);
            return vec![DiscoveryRequest {
                type_url,
                response_nonce: nonce,
                error_detail,
                ..Default::default()
            }];
        };
        let (mut refused, mut present) = (Vec::new(), BTreeSet::new());
        for any in resources {
            match Resource::decode(kind, "", &version_info, any.value.clone()) {
                Ok(resource) => {
                    let name = resource.name.clone();
                    if let Err(why) = store.apply(resource) {
                        refused.push(format!("{name}: {why}"));
                    }
                    present.insert(name);
                }
                Err(reject) => {
                    let name = name_of(kind, &any.value).unwrap_or_default();
                    refused.push(format!("{name}: {reject}"));
                    present.insert(name.into());
                }
            }
        }
        if kind.is_wildcard() {
            let gone: Vec<Name> =
                store.names(kind).filter(|name| !present.contains(*name)).cloned().collect();
            for name in gone {
                store.remove(kind, &name);
            }
        }
        store.refresh();
        let said = self.said.entry(kind).or_default();
        said.nonce = nonce;
        if refused.is_empty() {
            said.version = version_info;
        }
        let mut requests = vec![DiscoveryRequest { error_detail: refusal(&refused), ..self.request(kind) }];
        requests.extend(self.subscriptions(store));
        requests
    }
}

impl Stream {
    /// The kinds whose names have changed.
    fn subscriptions(&mut self, store: &Store) -> Vec<DiscoveryRequest> {
        let mut requests = Vec::new();
        for kind in [Kind::Endpoints, Kind::Secret, Kind::Route] {
            let wanted = store.wanted(kind);
            if self.said.get(&kind).map(|said| &said.names).unwrap_or(&BTreeSet::new()) != &wanted {
                self.said.entry(kind).or_default().names = wanted;
                requests.push(self.request(kind));
            }
        }
        requests
    }

    fn request(&self, kind: Kind) -> DiscoveryRequest {
        let said = self.said.get(&kind).cloned().unwrap_or_default();
        DiscoveryRequest {
            version_info: said.version,
            resource_names: said.names.iter().map(ToString::to_string).collect(),
            type_url: kind.url().to_owned(),
            response_nonce: said.nonce,
            ..DiscoveryRequest::default()
        }
    }
}

/// The name inside a resource that was refused: field 1 in every kind but listeners and secrets too.
fn name_of(kind: Kind, raw: &[u8]) -> Option<String> {
    let json = xds::reflect::to_json(kind.url(), raw).ok()?;
    let name = json.get("name").or_else(|| json.get("cluster_name"))?;
    name.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use xds::{
        discovery::Packed,
        envoy::config::{cluster::v3 as cluster, core::v3::HealthCheck},
    };

    fn answer(version: &str, clusters: &[cluster::Cluster]) -> DiscoveryResponse {
        let pack = |one: &cluster::Cluster| Packed {
            type_url: Kind::Cluster.url().to_owned(),
            value: one.encode_to_vec().into(),
        };
        DiscoveryResponse {
            version_info: version.to_owned(),
            resources: clusters.iter().map(pack).collect(),
            type_url: Kind::Cluster.url().to_owned(),
            nonce: format!("n{version}"),
        }
    }

    fn named(name: &str) -> cluster::Cluster {
        cluster::Cluster { name: name.to_owned(), ..Default::default() }
    }

    #[test]
    fn clusters_that_are_missing_from_an_answer_are_gone() {
        let (mut stream, mut store) = (Stream::default(), Store::default());
        stream.open(&Node::default(), &store);
        stream.take(answer("1", &[named("a"), named("b")]), &mut store);
        stream.take(answer("2", &[named("b")]), &mut store);
        assert_eq!(store.names(Kind::Cluster).map(|n| &**n).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_refusal_keeps_the_accepted_version_and_the_last_good_form() {
        let (mut stream, mut store) = (Stream::default(), Store::default());
        stream.open(&Node::default(), &store);
        stream.take(answer("1", &[named("a")]), &mut store);
        let bad = cluster::Cluster { health_checks: vec![HealthCheck::default()], ..named("a") };
        let requests = stream.take(answer("2", &[bad]), &mut store);
        assert_eq!((requests[0].version_info.as_str(), requests[0].response_nonce.as_str()), ("1", "n2"));
        let detail = requests[0].error_detail.as_ref().expect("a NACK");
        assert!(detail.message.starts_with("a: health_checks"), "{}", detail.message);
        assert_eq!(store.names(Kind::Cluster).count(), 1);
    }
}
