//! Objects for tests. Names differ from the product's own, so that a mix-up shows.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::desired::desire;
use super::names::Identity;
use super::objects;
use super::observed::{Children, Logs, Observed, Turn};
use super::policy::Policy;
use super::settings::{Cleanup, HostFacts, Proxy, Settings};
use crate::api::{FINALIZER, KindCluster};

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
        service_account: "reed-nestling".into(),
        clusters_namespace: "clusters".into(),
        pod_image: "registry.example/node:1".into(),
        pod_images: BTreeMap::new(),
        pod_image_pull_policy: "IfNotPresent".into(),
        relay_image: "registry.example/operator:1".into(),
        node_images: BTreeMap::from([("v1.34.4".to_owned(), "kindest/node:v1.34.4@sha256:aa".to_owned())]),
        node_image_repository: "kindest/node".into(),
        default_version: "v1.34.4".into(),
        allow_cgroup_v1: false,
        allow_freeze_on_cgroup_v1: false,
        mount_modules: true,
        proxy: Proxy::default(),
        egress_guard: true,
        egress_allowed: vec!["10.96.7.7/32".parse().unwrap()],
        cleanup: Cleanup::default(),
        policy: Policy::default(),
        deletion_protection: true,
        host: HostFacts {
            ranges: ["10.244.0.0/16", "10.96.0.0/16", "172.18.0.2/32"].map(|net| net.parse().unwrap()).to_vec(),
            node_addresses: vec!["172.18.0.2".into()],
            api: Some("10.96.0.1:443".parse().unwrap()),
        },
    }
}

/// What a pass sees of this cluster, finalizer set, nothing made yet.
pub fn observed(cluster: KindCluster) -> Observed {
    let mut cluster = cluster;
    cluster.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
    Observed {
        identity: identity(&cluster),
        cluster,
        settings: Arc::new(settings()),
        children: Children { live: true, ..Children::default() },
        report: None,
        logs: Logs::default(),
        host_node: None,
        turn: Turn::Granted,
    }
}

/// The same with the pod of attempt 1, made from the present spec and `seconds` old at [`NOW`].
pub fn with_pod(mut seen: Observed, seconds: i64) -> Observed {
    let desired = desire(&seen.cluster, &seen.identity, &seen.settings).unwrap();
    let mut pod = objects::pod(&seen.cluster, &desired, &seen.settings, 1);
    pod.metadata.uid = Some("pod-uid".into());
    pod.metadata.creation_timestamp = Some(Time(Timestamp::from_second(NOW - seconds).unwrap()));
    seen.children.pods.push(pod);
    let mut service = objects::service(&seen.cluster, &seen.identity, &seen.settings, 1);
    for (number, port) in (31000..).zip(service.spec.iter_mut().flat_map(|spec| spec.ports.iter_mut().flatten())) {
        port.node_port.get_or_insert(number);
    }
    seen.children.services.push(service);
    seen.children.policies.push(objects::network_policy(&seen.cluster, &seen.identity, &seen.settings));
    seen.children.claims.extend(objects::volume_claim(&seen.cluster, &desired, &seen.settings).map(|mut claim| {
        claim.metadata.uid = Some("claim-uid".into());
        claim
    }));
    if desired.agent.registries.iter().any(|registry| registry.credentials || registry.authority) {
        seen.children.keys.push(registries_read(&seen, NOW - seconds));
    }
    seen.children.keys.push(ObjectMeta { name: Some(seen.identity.keys()), uid: Some("keys-uid".into()), ..ObjectMeta::default() });
    seen
}

/// The Secret with what registries want to see, as read at this second.
pub fn registries_read(seen: &Observed, second: i64) -> ObjectMeta {
    let plan = super::registries::plan(Timestamp::from_second(second).unwrap(), &seen.cluster, &seen.identity, &seen.settings);
    let secret = super::registries::secret(&plan, BTreeMap::new());
    ObjectMeta { uid: Some("registries-uid".into()), ..secret.metadata }
}

/// The present of all tables, in seconds.
pub const NOW: i64 = 1_800_000_000;
