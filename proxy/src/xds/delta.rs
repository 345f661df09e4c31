//! One incremental stream: what to send first, how an answer is applied, what to ask for next.
//!
//! In: DeltaDiscoveryResponses. Out: requests to send and changes of the [`Store`]. Kept true: every answer is acknowledged or refused, once.
//! Not here: sockets and reconnecting (`client`).

use std::collections::{BTreeSet, HashMap};

use mesh_traffic::names::Name;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use xds::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient as Client;
use xds::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource as Sent, Status};

use super::{
    client::Protocol,
    resource::{Kind, Resource},
    store::Store,
};

/// The state of one stream.
#[derive(Debug, Default)]
pub(super) struct Stream {
    subscribed: HashMap<Kind, BTreeSet<Name>>,
    virtual_hosts: bool,
}

impl Stream {
    pub(super) fn new(virtual_hosts: bool) -> Self {
        Self { subscribed: HashMap::new(), virtual_hosts }
    }

    /// The changes of subscriptions that the accepted resources ask for.
    fn subscriptions(&mut self, store: &Store) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = Vec::new();
        for kind in [Kind::Endpoints, Kind::Secret, Kind::Route] {
            let wanted = store.wanted(kind);
            let have = self.subscribed.entry(kind).or_default();
            if wanted == *have {
                continue;
            }
            requests.push(DeltaDiscoveryRequest {
                type_url: kind.url().to_owned(),
                resource_names_subscribe: wanted.difference(have).map(ToString::to_string).collect(),
                resource_names_unsubscribe: have.difference(&wanted).map(ToString::to_string).collect(),
                ..DeltaDiscoveryRequest::default()
            });
            *have = wanted;
        }
        requests
    }

    /// Drops resources that are no longer subscribed to: the server will not remove them.
    fn forget(store: &mut Store) {
        for kind in [Kind::Endpoints, Kind::Secret, Kind::Route] {
            let wanted = store.wanted(kind);
            let stale: Vec<Name> =
                store.names(kind).filter(|name| !wanted.contains(*name)).cloned().collect();
            for name in stale {
                store.remove(kind, &name);
            }
        }
    }
}

impl Protocol for Stream {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn type_url(response: &DeltaDiscoveryResponse) -> &str {
        &response.type_url
    }

    async fn call(
        mut client: Client<Channel>,
        requests: tonic::Request<ReceiverStream<DeltaDiscoveryRequest>>,
    ) -> Result<tonic::Streaming<DeltaDiscoveryResponse>, tonic::Status> {
        client.delta_aggregated_resources(requests).await.map(tonic::Response::into_inner)
    }

    /// Versions we hold spare the server from sending them again.
    fn open(&mut self, node: &Node, store: &Store) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = Vec::new();
        for kind in Kind::ALL {
            let names = store.wanted(kind);
            let wildcard = match kind {
                Kind::Cluster | Kind::Listener => true,
                Kind::VirtualHost => self.virtual_hosts,
                Kind::Endpoints | Kind::Secret | Kind::Route => false,
            };
            if !wildcard && names.is_empty() {
                continue;
            }
            let subscribe = if wildcard { vec!["*".to_owned()] } else { texts(&names) };
            requests.push(DeltaDiscoveryRequest {
                // Only the first request of a stream needs to say who we are.
                node: requests.is_empty().then(|| node.clone()),
                type_url: kind.url().to_owned(),
                resource_names_subscribe: subscribe,
                initial_resource_versions: store.versions(kind),
                ..DeltaDiscoveryRequest::default()
            });
            self.subscribed.insert(kind, names);
        }
        requests
    }

    fn take(&mut self, response: DeltaDiscoveryResponse, store: &mut Store) -> Vec<DeltaDiscoveryRequest> {
        let DeltaDiscoveryResponse { type_url, nonce, resources, removed_resources, .. } = response;
        let mut refused = Vec::new();
        match Kind::of(&type_url) {
            None => refused.push(format!("resources of type {type_url} were not asked for")),
            Some(kind) => {
                // One answer is one change: what takes a domain over may stand before the virtual host that gives it up.
                for name in removed_resources {
                    store.remove(kind, &name);
                }
                let mut apply = |one: &Sent| {
                    let raw = one.resource.as_ref().map(|any| any.value.clone()).unwrap_or_default();
                    Resource::decode(kind, &one.name, &one.version, raw)
                        .map_err(|reject| reject.to_string())
                        .and_then(|resource| store.apply(resource))
                };
                let failed: Vec<_> = resources.iter().filter(|one| apply(one).is_err()).collect();
                for one in failed {
                    if let Err(why) = apply(one) {
                        refused.push(format!("{}: {why}", one.name));
                    }
                }
                if kind == Kind::VirtualHost {
                    store.complete_hosts();
                }
            }
        }
        let mut requests = vec![acknowledge(type_url, nonce, &refused)];
        requests.extend(self.subscriptions(store));
        Self::forget(store);
        store.refresh();
        requests
    }
}

fn texts(names: &BTreeSet<Name>) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

/// Code of a NACK: `INVALID_ARGUMENT`.
const INVALID_ARGUMENT: i32 = 3;

fn acknowledge(type_url: String, nonce: String, refused: &[String]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url,
        response_nonce: nonce,
        error_detail: refusal(refused),
        ..DeltaDiscoveryRequest::default()
    }
}

/// The detail of a NACK, and its line in our own log.
pub(super) fn refusal(refused: &[String]) -> Option<Status> {
    if refused.is_empty() {
        return None;
    }
    for why in refused {
        tracing::warn!(%why, "refused a resource; its last good form stays in force");
    }
    Some(Status { code: INVALID_ARGUMENT, message: refused.join("\n") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use xds::{
        discovery::Packed,
        envoy::config::{cluster::v3 as cluster, core::v3::HealthCheck, endpoint::v3 as endpoint},
    };

    fn sent(kind: Kind, name: &str, message: &impl Message) -> Sent {
        let resource = Packed { type_url: kind.url().to_owned(), value: message.encode_to_vec().into() };
        Sent { name: name.to_owned(), version: "7".to_owned(), resource: Some(resource), ..Sent::default() }
    }

    fn eds(name: &str) -> cluster::Cluster {
        let eds = cluster::cluster::ClusterDiscoveryType::Type(3);
        cluster::Cluster { name: name.to_owned(), cluster_discovery_type: Some(eds), ..Default::default() }
    }

    fn answer(kind: Kind, resources: Vec<Sent>) -> DeltaDiscoveryResponse {
        let (type_url, nonce) = (kind.url().to_owned(), "n1".to_owned());
        DeltaDiscoveryResponse { type_url, nonce, resources, ..Default::default() }
    }

    #[test]
    fn a_good_resource_is_taken_beside_a_bad_one_and_the_bad_one_is_named() {
        let (mut stream, mut store) = (Stream::new(false), Store::default());
        let opening = stream.open(&Node::default(), &store);
        assert_eq!(opening.len(), 2, "clusters and listeners");
        let bad = cluster::Cluster { health_checks: vec![HealthCheck::default()], ..eds("bad") };
        let resources = vec![sent(Kind::Cluster, "good", &eds("good")), sent(Kind::Cluster, "bad", &bad)];
        let requests = stream.take(answer(Kind::Cluster, resources), &mut store);
        let detail = requests[0].error_detail.as_ref().expect("a NACK");
        assert_eq!(detail.message, "bad: health_checks: this proxy does not honour this field");
        assert_eq!(requests[0].response_nonce, "n1");
        assert_eq!(requests[1].type_url, Kind::Endpoints.url());
        assert_eq!(requests[1].resource_names_subscribe, ["good"]);
        assert_eq!(store.versions(Kind::Cluster), HashMap::from([("good".to_owned(), "7".to_owned())]));
    }

    #[test]
    fn a_domain_may_change_hands_within_one_answer() {
        use xds::envoy::config::route::v3::VirtualHost;
        let host = |name: &str, domains: &[&str]| {
            let domains = domains.iter().map(|domain| (*domain).to_owned()).collect();
            let host = VirtualHost { name: name.to_owned(), domains, ..VirtualHost::default() };
            sent(Kind::VirtualHost, &format!("80/{name}"), &host)
        };
        let (mut stream, mut store) = (Stream::new(true), Store::default());
        let first = vec![host("allow_any", &["*"]), host("a", &["x", "y"])];
        stream.take(answer(Kind::VirtualHost, first), &mut store);
        let next = DeltaDiscoveryResponse {
            removed_resources: vec!["80/allow_any".to_owned()],
            ..answer(Kind::VirtualHost, vec![host("block_all", &["*"]), host("b", &["y"]), host("a", &["x"])])
        };
        let requests = stream.take(next, &mut store);
        assert_eq!(requests[0].error_detail, None);
        let mut names: Vec<_> = store.names(Kind::VirtualHost).map(ToString::to_string).collect();
        names.sort();
        assert_eq!(names, ["80/a", "80/b", "80/block_all"]);
    }

    #[test]
    fn a_reconnect_tells_which_versions_are_held_and_asks_only_for_what_is_used() {
        let (mut stream, mut store) = (Stream::new(true), Store::default());
        stream.take(answer(Kind::Cluster, vec![sent(Kind::Cluster, "c", &eds("c"))]), &mut store);
        let load = endpoint::ClusterLoadAssignment { cluster_name: "c".to_owned(), ..Default::default() };
        stream.take(answer(Kind::Endpoints, vec![sent(Kind::Endpoints, "c", &load)]), &mut store);
        let opening = Stream::new(true).open(&Node::default(), &store);
        let kinds: Vec<_> = opening.iter().filter_map(|r| Kind::of(&r.type_url)).collect();
        assert_eq!(kinds, [Kind::Cluster, Kind::Endpoints, Kind::Listener, Kind::VirtualHost]);
        assert_eq!(opening[1].initial_resource_versions.get("c").map(String::as_str), Some("7"));
        assert!(opening[0].node.is_some() && opening[1].node.is_none());
    }

    #[test]
    fn what_nobody_refers_to_any_more_is_unsubscribed_and_forgotten() {
        let (mut stream, mut store) = (Stream::new(false), Store::default());
        stream.take(answer(Kind::Cluster, vec![sent(Kind::Cluster, "c", &eds("c"))]), &mut store);
        let load = endpoint::ClusterLoadAssignment { cluster_name: "c".to_owned(), ..Default::default() };
        stream.take(answer(Kind::Endpoints, vec![sent(Kind::Endpoints, "c", &load)]), &mut store);
        let removal = DeltaDiscoveryResponse {
            removed_resources: vec!["c".to_owned()],
            ..answer(Kind::Cluster, Vec::new())
        };
        let requests = stream.take(removal, &mut store);
        assert_eq!(requests[1].resource_names_unsubscribe, ["c"]);
        assert!(store.versions(Kind::Endpoints).is_empty());
    }
}
