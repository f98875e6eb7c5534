//! Who may talk to a cluster's pod, and whom it may talk to.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::metadata;
use crate::api::labels;
use crate::plan::names::Identity;
use crate::plan::settings::Settings;
use crate::plan::wire::{AGENT_PORT, API_PORT};

/// Cloud metadata services listen here.
const LINK_LOCAL: &str = "169.254.0.0/16";

/// The policy of one cluster: the API server for everybody (it asks for credentials itself), the agent for the operator; outwards DNS and
/// the internet, but not the host's own ranges. Everything nested leaves through the pod, so this binds nested pods as well.
pub fn network_policy(identity: &Identity, settings: &Settings) -> NetworkPolicy {
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
    except.push(LINK_LOCAL.to_owned());
    except.sort();
    except.dedup();
    NetworkPolicy {
        metadata: metadata(identity.child(), identity, settings),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                match_labels: Some(BTreeMap::from([(labels::CLUSTER_UID.to_owned(), identity.uid.clone())])),
                ..LabelSelector::default()
            }),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(vec![
                NetworkPolicyIngressRule { ports: Some(vec![port("TCP", API_PORT)]), ..NetworkPolicyIngressRule::default() },
                NetworkPolicyIngressRule { from: Some(vec![operator]), ports: Some(vec![port("TCP", AGENT_PORT)]) },
            ]),
            egress: Some(vec![
                NetworkPolicyEgressRule { ports: Some(vec![port("UDP", 53), port("TCP", 53)]), ..NetworkPolicyEgressRule::default() },
                NetworkPolicyEgressRule {
                    to: Some(vec![NetworkPolicyPeer {
                        ip_block: Some(IPBlock { cidr: "0.0.0.0/0".to_owned(), except: Some(except) }),
                        ..NetworkPolicyPeer::default()
                    }]),
                    ..NetworkPolicyEgressRule::default()
                },
            ]),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::testing;

    #[test]
    fn the_policy() {
        insta::assert_yaml_snapshot!(network_policy(&testing::identity(&testing::cluster("{}")), &testing::settings()));
    }
}
