//! Who may talk to a cluster's pod, and whom it may talk to.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::metadata;
use crate::api::{KindCluster, labels};
use crate::plan::egress::LINK_LOCAL;
use crate::plan::exposure::relayed;
use crate::plan::names::Identity;
use crate::plan::settings::Settings;
use crate::plan::wire::{AGENT_PORT, API_PORT};

/// The policy of one cluster: the API server (it asks for credentials itself) and the published ports for everybody, the agent for the operator; outwards DNS and
/// the internet, but not the host's own ranges beside what the operator's owner allows. Everything nested leaves through the pod, so this binds
/// nested pods as well.
pub fn network_policy(cluster: &KindCluster, identity: &Identity, settings: &Settings) -> NetworkPolicy {
    let port = |protocol: &str, number: i32| NetworkPolicyPort {
        protocol: Some(protocol.to_owned()),
        port: Some(IntOrString::Int(number)),
        ..NetworkPolicyPort::default()
    };
    let operator = NetworkPolicyPeer {
        namespace_selector: Some(LabelSelector {
            match_labels: Some(BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), settings.operator_namespace.clone())])),
            ..LabelSelector::default()
        }),
        ..NetworkPolicyPeer::default()
    };
    let mut except: Vec<String> = settings.host.ranges.iter().map(ToString::to_string).collect();
    except.push(LINK_LOCAL.to_string());
    except.sort();
    except.dedup();
    let block = |cidr: String, except: Option<Vec<String>>| NetworkPolicyPeer { ip_block: Some(IPBlock { cidr, except }), ..NetworkPolicyPeer::default() };
    let mut reachable = vec![block("0.0.0.0/0".to_owned(), Some(except))];
    reachable.extend(settings.egress_allowed.iter().map(|net| block(net.trunc().to_string(), None)));
    let open: Vec<NetworkPolicyPort> = std::iter::once(API_PORT).chain(relayed(cluster).into_iter().map(i32::from)).map(|number| port("TCP", number)).collect();
    NetworkPolicy {
        metadata: metadata(identity.child(), identity, settings),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                match_labels: Some(BTreeMap::from([(labels::CLUSTER_UID.to_owned(), identity.uid.clone())])),
                ..LabelSelector::default()
            }),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(vec![
                NetworkPolicyIngressRule { ports: Some(open), ..NetworkPolicyIngressRule::default() },
                NetworkPolicyIngressRule { from: Some(vec![operator]), ports: Some(vec![port("TCP", AGENT_PORT)]) },
            ]),
            egress: Some(vec![
                NetworkPolicyEgressRule { ports: Some(vec![port("UDP", 53), port("TCP", 53)]), ..NetworkPolicyEgressRule::default() },
                NetworkPolicyEgressRule { to: Some(reachable), ..NetworkPolicyEgressRule::default() },
            ]),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::testing;
    use ipnet::Ipv4Net;
    use rstest::rstest;
    use std::net::Ipv4Addr;

    fn made(spec: &str) -> NetworkPolicy {
        let cluster = testing::cluster(spec);
        network_policy(&cluster, &testing::identity(&cluster), &testing::settings())
    }

    /// Whether a rule without ports lets an address be reached.
    fn reachable(policy: &NetworkPolicy, address: Ipv4Addr) -> bool {
        let holds = |text: &str| text.parse::<Ipv4Net>().unwrap().contains(&address);
        let rules = policy.spec.as_ref().unwrap().egress.as_ref().unwrap().iter().filter(|rule| rule.ports.is_none());
        let mut blocks = rules.flat_map(|rule| rule.to.as_ref().unwrap()).filter_map(|peer| peer.ip_block.as_ref());
        blocks.any(|block| holds(&block.cidr) && !block.except.iter().flatten().any(|range| holds(range)))
    }

    #[rstest]
    #[case("10.96.0.1", false)]
    #[case("10.244.3.4", false)]
    #[case("172.18.0.2", false)]
    #[case("169.254.169.254", false)]
    #[case("10.96.7.7", true)]
    #[case("172.18.0.3", true)]
    #[case("203.0.113.7", true)]
    fn the_world_without_the_host_but_with_exceptions(#[case] address: &str, #[case] expected: bool) {
        let policy = made("{}");
        assert_eq!(reachable(&policy, address.parse().unwrap()), expected);
    }

    #[test]
    fn the_policy() {
        insta::assert_yaml_snapshot!(made("{}"));
    }

    #[test]
    fn published_ports_are_let_in() {
        let ports =
            "{ports: [{name: a, port: 80, targetNodePort: 30080}, {name: b, port: 81, targetNodePort: 30080}, {name: c, port: 82, targetNodePort: 30081}]}";
        let rule = made(ports).spec.unwrap().ingress.unwrap().remove(0);
        let open: Vec<_> = rule.ports.unwrap().into_iter().map(|port| port.port.unwrap()).collect();
        assert_eq!((rule.from, open), (None, [6443, 30080, 30081].map(IntOrString::Int).to_vec()));
    }
}
