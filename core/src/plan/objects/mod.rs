//! The objects that a cluster is made of in the host cluster, one file per kind.

mod doctor_pod;
mod kubeconfig;
mod logs;
mod network_policy;
mod node_pod;
mod pod;
mod relay_pod;
mod service;
mod volume_claim;

pub use doctor_pod::{DOCTOR_LABEL, Examination, doctor_pod};
pub use kubeconfig::{Credentials, kubeconfig_secret, owns_labels};
pub use logs::{LOGS_KEY, logs_secret};
pub use network_policy::network_policy;
pub use node_pod::{NODE_POD_LABEL, NODE_POD_NAMESPACE, image_on, in_node, node_pod};
pub use pod::{attempt_of, changed_since, digests_of, pod, resumes};
pub use relay_pod::{RELAY_LABEL, RELAY_PORT, RelayOrder, relay_pod};
pub use service::{before_another_class, service};
pub use volume_claim::volume_claim;

use k8s_openapi::api::core::v1::LocalObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube_core::Resource;
use serde::Serialize;
use serde_json::Value;

use super::names::Identity;
use super::settings::Settings;
use crate::api::KindCluster;

/// Metadata of a child in the clusters namespace.
pub(super) fn metadata(name: String, identity: &Identity, settings: &Settings) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(settings.clusters_namespace.clone()),
        labels: Some(identity.labels(&settings.install)),
        ..ObjectMeta::default()
    }
}

/// What makes an object in the user's namespace go with its `KindCluster`.
fn owner(identity: &Identity) -> OwnerReference {
    OwnerReference {
        api_version: KindCluster::api_version(&()).into_owned(),
        kind: KindCluster::kind(&()).into_owned(),
        name: identity.name.clone(),
        uid: identity.uid.clone(),
        controller: Some(true),
        // Deletion in the foreground would otherwise need a right on finalizers.
        block_owner_deletion: None,
    }
}

/// The Secrets with which an image is pulled, as a pod names them.
fn pull_secrets(names: &[String]) -> Option<Vec<LocalObjectReference>> {
    (!names.is_empty()).then(|| names.iter().map(|name| LocalObjectReference { name: name.clone() }).collect())
}

/// Whether `seen` says all that `wanted` says. The API server fills in defaults, so it may say more; but not in lists, where an entry too many
/// is a difference.
pub fn matches<T: Serialize>(wanted: &T, seen: &T) -> bool {
    match (serde_json::to_value(wanted), serde_json::to_value(seen)) {
        (Ok(wanted), Ok(seen)) => covers(&wanted, &seen),
        _ => false,
    }
}

fn covers(wanted: &Value, seen: &Value) -> bool {
    match (wanted, seen) {
        (Value::Object(wanted), Value::Object(seen)) => wanted.iter().all(|(key, value)| seen.get(key).is_some_and(|seen| covers(value, seen))),
        (Value::Array(wanted), Value::Array(seen)) => wanted.len() == seen.len() && wanted.iter().zip(seen).all(|(wanted, seen)| covers(wanted, seen)),
        _ => wanted == seen,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_are_no_difference_but_changes_are() {
        assert!(matches(&json!({"a": 1, "l": [{"p": 1}]}), &json!({"a": 1, "b": 2, "l": [{"p": 1, "protocol": "TCP"}]})));
        assert!(!matches(&json!({"a": 1}), &json!({"a": 2})));
        assert!(!matches(&json!({"l": [1]}), &json!({"l": [1, 2]})));
        assert!(!matches(&json!({"a": {"b": 1}}), &json!({})));
    }
}
