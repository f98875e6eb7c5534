//! A cluster's pod without an operator: the very object that the operator would create, for tests that change it or start it elsewhere.

use k8s_openapi::api::core::v1::Pod;
use nestling_core::api::KindCluster;
use nestling_core::plan::desired::desire;
use nestling_core::plan::names::Identity;
use nestling_core::plan::objects;
use nestling_core::plan::settings::Settings;
use serde_json::Value;

/// The pod of a cluster's first attempt.
pub fn node_pod(identity: &Identity, spec: Value, settings: &Settings) -> Pod {
    let mut cluster = KindCluster::new(&identity.name, serde_json::from_value(spec).unwrap());
    cluster.metadata.namespace = Some(identity.namespace.clone());
    cluster.metadata.uid = Some(identity.uid.clone());
    let desired = desire(&cluster, identity, settings).unwrap();
    objects::pod(&cluster, &desired, settings, 1)
}
