//! What goes out comes back: model → xDS → model, for every root; and equal models give equal bytes.

mod dice;

use dice::Dice;
use proptest::prelude::*;

use super::*;
use crate::{
    cluster::Cluster,
    listener::{Inspect, Listener, Transport},
    matchers::StringMatch,
    names::Direction,
    rbac::{Effect, Policy, Rbac, Rule},
    tls::Secret,
    wire,
};

/// Encodes, reads back, and encodes once more.
fn there_and_back<T, M>(
    model: &T,
    encode: impl Fn(&T) -> M,
    decode: impl Fn(M) -> wire::Decoded<T>,
) -> Result<(), TestCaseError>
where
    T: PartialEq + std::fmt::Debug,
    M: Resource + Default,
{
    let sent = bytes(&encode(model));
    let received = M::decode(&*sent).map_err(|e| TestCaseError::fail(e.to_string()))?;
    let back = decode(received).map_err(|e| TestCaseError::fail(e.to_string()))?;
    prop_assert_eq!(&back, model);
    prop_assert_eq!(bytes(&encode(&back)), sent, "equal models give equal bytes");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn listeners_come_back_as_they_went(entropy in prop::collection::vec(any::<u8>(), 0..600)) {
        there_and_back(&Dice::new(entropy).listener(), listener, wire::listener)?;
    }

    #[test]
    fn routes_come_back_as_they_went(entropy in prop::collection::vec(any::<u8>(), 0..600)) {
        there_and_back(&Dice::new(entropy).routes(), route_configuration, wire::route_configuration)?;
    }

    #[test]
    fn virtual_hosts_come_back_as_they_went(entropy in prop::collection::vec(any::<u8>(), 0..400)) {
        there_and_back(&Dice::new(entropy).host(), virtual_host, wire::virtual_host)?;
    }

    #[test]
    fn clusters_come_back_as_they_went(entropy in prop::collection::vec(any::<u8>(), 0..300)) {
        there_and_back(&Dice::new(entropy).cluster(), cluster, wire::cluster)?;
    }

    #[test]
    fn endpoints_come_back_as_they_went(entropy in prop::collection::vec(any::<u8>(), 0..200)) {
        there_and_back(&Dice::new(entropy).endpoints(), endpoints, wire::endpoints)?;
    }

    #[test]
    fn secrets_come_back_as_they_went(entropy in prop::collection::vec(any::<u8>(), 0..60)) {
        there_and_back(&Dice::new(entropy).secret(), |from: &Secret| secret("name", from), wire::secret)?;
    }
}

/// Bytes that were a resource before some of them were changed.
fn damaged(mut bytes: Vec<u8>, damage: &[(u16, u8)]) -> Vec<u8> {
    for (at, value) in damage {
        if let Some(byte) = usize::from(*at).checked_rem(bytes.len()).and_then(|at| bytes.get_mut(at)) {
            *byte = *value;
        }
    }
    bytes
}

/// Reads damaged bytes as a resource: refusing is as good as taking, and what is taken can be sent on.
fn survives<T, M>(
    sent: Vec<u8>,
    damage: &[(u16, u8)],
    decode: impl Fn(M) -> wire::Decoded<T>,
    encode: impl Fn(&T) -> M,
) where
    M: Resource + Default,
{
    if let Ok(Ok(model)) = M::decode(&*damaged(sent, damage)).map(decode) {
        let _ = bytes(&encode(&model));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn damaged_resources_are_taken_or_refused_but_never_end_the_process(
        entropy in prop::collection::vec(any::<u8>(), 0..400),
        damage in prop::collection::vec(any::<(u16, u8)>(), 1..6),
    ) {
        let dice = || Dice::new(entropy.clone());
        survives(bytes(&listener(&dice().listener())), &damage, wire::listener, listener);
        let routes = dice().routes();
        survives(bytes(&route_configuration(&routes)), &damage, wire::route_configuration, route_configuration);
        survives(bytes(&cluster(&dice().cluster())), &damage, wire::cluster, cluster);
        survives(bytes(&endpoints(&dice().endpoints())), &damage, wire::endpoints, endpoints);
        let named = |from: &Secret| secret("name", from);
        survives(bytes(&named(&dice().secret())), &damage, wire::secret, named);
    }
}

fn is_set(name: &str) -> Rule {
    Rule::Path { matcher: StringMatch::Exact(name.into()), ignore_case: false }
}

#[test]
fn a_policy_without_a_form_in_envoys_words_fails_closed() {
    // An identity is no permission, and a port is no principal.
    let odd = [
        Policy {
            name: "p".into(),
            permissions: vec![Rule::Authenticated(None)],
            principals: vec![Rule::Any],
        },
        Policy {
            name: "p".into(),
            permissions: vec![Rule::Any],
            principals: vec![Rule::Not(Box::new(Rule::DestinationPort(80)))],
        },
    ];
    for policy in odd {
        for (action, left) in [(Effect::Allow, 0), (Effect::Deny, 1), (Effect::Log, 0)] {
            let rules = Rbac { action, policies: vec![policy.clone()], shadow: false };
            let rules = rbac::http(&rules).rules.expect("rules");
            assert_eq!(rules.policies.len(), left, "{action:?} {policy:?}");
            let everything = rules.policies.get("p").is_none_or(|p| {
                p.permissions[0].rule == Some(xds::envoy::config::rbac::v3::permission::Rule::Any(true))
            });
            assert!(everything, "what denies denies everything: {action:?}");
        }
    }
}

#[test]
fn policies_that_never_match_are_left_out_since_envoy_refuses_them() {
    let never = Policy { name: "p".into(), permissions: Vec::new(), principals: vec![Rule::Any] };
    let deny = Rbac { action: Effect::Deny, policies: vec![never], shadow: false };
    assert_eq!(rbac::http(&deny).rules.map(|r| r.policies.len()), Some(0));
    let nested = Policy {
        name: "p".into(),
        permissions: vec![Rule::OneOf(Vec::new()), Rule::All(Vec::new()), is_set("/a")],
        principals: vec![Rule::Any],
    };
    let deny = Rbac { action: Effect::Deny, policies: vec![nested], shadow: true };
    let wire = rbac::http(&deny);
    assert_eq!((wire.rules, wire.shadow_rules.map(|r| r.policies["p"].permissions.len())), (None, Some(3)));
}

#[test]
fn a_client_that_waits_for_the_server_is_held_up_for_a_short_while_only() {
    let mut dice = Dice::new(Vec::new());
    let inspect = Inspect { tls: true, http: false, original_dst: false, timeout: None };
    let mut one = Listener { inspect, direction: Direction::Inbound, ..dice.listener() };
    one.chains = vec![dice.chain(Direction::Inbound).into()];
    let wire = listener(&one);
    let short = super::duration(std::time::Duration::from_millis(100));
    assert_eq!(
        (wire.listener_filters_timeout, wire.continue_on_listener_filters_timeout),
        (Some(short), true)
    );
    let mut chain = dice.chain(Direction::Inbound);
    chain.matcher.transport = Some(Transport::Tls);
    one.chains = vec![chain.into()];
    one.default_chain = None;
    assert_eq!(listener(&one).listener_filters_timeout, None, "Envoy's 15 s when only TLS is taken");
}

#[test]
fn limits_are_always_said_since_envoys_own_are_low() {
    let wire = cluster(&Cluster::eds("outbound|80||a.b"));
    let threshold = &wire.circuit_breakers.expect("said").thresholds[0];
    assert_eq!(threshold.max_connections.map(|v| v.value), Some(u32::MAX));
    assert_eq!(threshold.max_retries.map(|v| v.value), Some(u32::MAX));
}
