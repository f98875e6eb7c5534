//! Objects for tests. Names differ from the product's own, so that a mix-up shows.

use std::collections::BTreeMap;

use super::names::Identity;
use super::settings::{HostFacts, Settings};
use crate::api::KindCluster;

/// A `KindCluster` with this spec (YAML), as the API server would return it.
pub fn cluster(spec: &str) -> KindCluster {
    let mut cluster = KindCluster::new("crane", serde_saphyr::from_str(spec).unwrap());
    cluster.metadata.namespace = Some("marsh".into());
    cluster.metadata.uid = Some("0b5c5c4e-0000-4000-8000-000000000001".into());
    cluster.metadata.generation = Some(1);
    cluster
}

/// Its identity.
pub fn identity(cluster: &KindCluster) -> Identity {
    super::observed::identity(cluster).unwrap()
}

/// Settings of an operator on a host that kind itself made.
pub fn settings() -> Settings {
    Settings {
        install: "reed".into(),
        operator_namespace: "operators".into(),
        clusters_namespace: "clusters".into(),
        pod_image: "registry.example/node:1".into(),
        pod_image_pull_policy: "IfNotPresent".into(),
        node_images: BTreeMap::from([("v1.34.4".to_owned(), "kindest/node:v1.34.4@sha256:aa".to_owned())]),
        node_image_repository: "kindest/node".into(),
        default_version: "v1.34.4".into(),
        allow_cgroup_v1: false,
        mount_modules: true,
        host: HostFacts {
            ranges: ["10.244.0.0/16", "10.96.0.0/16", "172.18.0.2/32"].map(|net| net.parse().unwrap()).to_vec(),
            node_addresses: vec!["172.18.0.2".into()],
        },
    }
}
