//! The Secret with the logs of a failed attempt.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::api::labels;
use crate::plan::evidence::LogsPlan;

/// Its only key.
pub const LOGS_KEY: &str = "logs.tar.gz";

/// The Secret. Nobody has looked into the archive: it comes out of a pod in which users are root.
pub fn logs_secret(plan: &LogsPlan, archive: Vec<u8>) -> Secret {
    let mut all_labels = plan.identity.labels(&plan.install);
    all_labels.insert(labels::ATTEMPT.to_owned(), plan.attempt.to_string());
    Secret {
        metadata: ObjectMeta {
            name: Some(plan.secret.clone()),
            namespace: Some(plan.identity.namespace.clone()),
            labels: Some(all_labels),
            owner_references: Some(vec![super::owner(&plan.identity)]),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some(BTreeMap::from([(LOGS_KEY.to_owned(), ByteString(archive))])),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::testing;

    #[test]
    fn the_secret_is_the_clusters_and_goes_with_it() {
        let identity = testing::identity(&testing::cluster("{}"));
        let plan = LogsPlan { secret: "crane-logs".into(), attempt: 3, install: "reed".into(), identity: identity.clone() };
        let secret = logs_secret(&plan, b"archive".to_vec());
        let labels = secret.metadata.labels.unwrap();
        assert_eq!((labels[labels::CLUSTER_UID].as_str(), labels[labels::ATTEMPT].as_str()), (identity.uid.as_str(), "3"));
        assert_eq!(secret.metadata.owner_references.unwrap()[0].uid, identity.uid);
        assert_eq!(secret.data.unwrap()["logs.tar.gz"].0, b"archive");
    }
}
