//! The claim on the volume that a persistent cluster lives on.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements};

use super::metadata;
use crate::api::KindCluster;
use crate::plan::desired::Desired;
use crate::plan::quantity;
use crate::plan::settings::Settings;

/// The access mode. With it the host's scheduler and kubelets keep the next attempt waiting until the last one's pod is gone, also on the same node, where
/// `ReadWriteOnce` would let both in.
const ONE_POD: &str = "ReadWriteOncePod";

/// The claim; `None` for a cluster that lives and dies with its pod.
pub fn volume_claim(cluster: &KindCluster, desired: &Desired, settings: &Settings) -> Option<PersistentVolumeClaim> {
    desired.agent.persistent.then(|| PersistentVolumeClaim {
        metadata: metadata(desired.identity.volume_claim(), &desired.identity, settings),
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec![ONE_POD.to_owned()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), quantity::bytes(desired.agent.limits.storage_bytes))])),
                ..VolumeResourceRequirements::default()
            }),
            storage_class_name: cluster.spec.storage.as_ref().and_then(|storage| storage.storage_class_name.clone()),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::desired::desire;
    use crate::plan::testing;

    fn made(spec: &str) -> Option<PersistentVolumeClaim> {
        let cluster = testing::cluster(spec);
        let desired = desire(&cluster, &testing::identity(&cluster), &testing::settings()).unwrap();
        volume_claim(&cluster, &desired, &testing::settings())
    }

    #[test]
    fn the_claim() {
        insta::assert_yaml_snapshot!(made("storage: {type: Persistent, size: 20480Mi, storageClassName: fast}"));
    }

    #[test]
    fn the_hosts_default_class_is_the_hosts_to_choose() {
        assert_eq!(made("storage: {type: Persistent}").unwrap().spec.unwrap().storage_class_name, None);
        assert_eq!(made("{}"), None);
    }
}
