//! Whether a cluster may begin with the golden state of its node image: what an API server writes when it first starts, written once when the pod image was built.

use super::kind_config::control_planes;
use crate::api::kind_config::{KindConfig, KindNode};

/// Whether these nodes with this configuration of the user's have an API server that would write what every other does. It looks at what it finds in any case and adds
/// what it misses, but takes nothing away; so whoever turns features on or off, or patches the control plane, begins with nothing. So do several control planes, whose
/// etcds have to find each other.
pub fn fits(config: Option<&KindConfig>, nodes: &[KindNode]) -> bool {
    let plain = config.is_none_or(|config| {
        config.feature_gates.is_empty()
            && config.runtime_config.is_empty()
            && config.kubeadm_config_patches.is_empty()
            && config.kubeadm_config_patches_json6902.is_empty()
    });
    let unpatched = |node: &KindNode| node.kubeadm_config_patches.is_empty() && node.kubeadm_config_patches_json6902.is_empty();
    plain && control_planes(nodes) == 1 && nodes.iter().all(unpatched)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::kind_config::nodes;
    use rstest::rstest;

    fn config(yaml: &str) -> KindConfig {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[rstest]
    #[case::nothing_said("{}", true)]
    #[case::networks_and_ports(
        "{networking: {podSubnet: 10.0.0.0/16}, nodes: [{role: control-plane, extraPortMappings: [{containerPort: 80}]}, {role: worker}]}",
        true
    )]
    #[case::feature_gates("{featureGates: {A: true}}", false)]
    #[case::runtime_config("{runtimeConfig: {api/all: 'true'}}", false)]
    #[case::a_patch("{kubeadmConfigPatches: ['kind: ClusterConfiguration']}", false)]
    #[case::a_patch_of_a_node("{nodes: [{role: control-plane, kubeadmConfigPatches: ['kind: InitConfiguration']}]}", false)]
    #[case::two_control_planes("{nodes: [{role: control-plane}, {role: control-plane}]}", false)]
    fn plain_control_planes_begin_with_it(#[case] yaml: &str, #[case] expected: bool) {
        let config = config(yaml);
        assert_eq!(fits(Some(&config), &nodes(Some(&config), 1, 0)), expected);
    }

    #[test]
    fn so_do_those_without_a_configuration() {
        assert!(fits(None, &nodes(None, 1, 2)));
        assert!(!fits(None, &nodes(None, 3, 0)));
    }
}
