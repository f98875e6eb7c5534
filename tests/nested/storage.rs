//! A cluster on a volume of its own: a file system in a file, which a node of the host has mounted for the time of the test.

use std::time::Duration;

use crate::job;
use crate::support::operator::CLUSTERS_NAMESPACE;
use crate::support::real::{CREATED, Host, spec};
use crate::support::wait::{condition, describe, until};
use crate::volume::Volume;
use kube::api::DeleteParams;
use nestling_core::api::KindClusterStatus;
use nestling_core::api::conditions::{DISK_PRESSURE, READY, is_true};
use serde_json::json;

/// Also the name of the class and of the volume.
const NAMESPACE: &str = "t-storage";
const NAME: &str = "stork";
const NODE: &str = "stork-control-plane";
const SOON: Duration = Duration::from_mins(1);

/// In a Secret of the nested cluster, and nowhere else on the machine.
const MARKER: &str = "stork-stands-on-one-leg-2290";

async fn status(host: &Host) -> KindClusterStatus {
    host.clusters(NAMESPACE).get(NAME).await.unwrap().status.unwrap_or_default()
}

async fn pressure(host: &Host, status: &str) {
    condition(&host.clusters(NAMESPACE), NAME, DISK_PRESSURE, status, None, Duration::from_mins(4)).await;
}

/// Files on the volume in which the nested cluster's own Secret can be read.
fn files_with_the_marker(volume: &Volume<'_>) -> String {
    volume.run(&format!("find {} -path '*/etcd/member/*' -type f -exec grep -l {MARKER} {{}} + 2>/dev/null || true", volume.directory()))
}

/// Fills the disk that a nested pod sees to this many percent.
fn fill(percent: u32) -> String {
    format!("read -r size used < <(df -B1M --output=size,used /data | tail -n 1); fallocate -l $((size * {percent} / 100 - used))M /data/file; sleep 600")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_bounds_the_cluster_begins_empty_and_goes_with_it() {
    let host = Host::find().await;
    host.namespace(NAMESPACE).await;
    let volume = Volume::attach(&host, NAMESPACE);
    host.create(NAMESPACE, NAME, spec(&format!("{{storage: {{type: Persistent, storageClassName: {NAMESPACE}}}, access: {{service: {{type: NodePort}}}}}}")))
        .await;
    let first = host.ready(NAMESPACE, NAME).await.status.unwrap().pod_ref.unwrap().name;
    let external = host.kubeconfig(NAMESPACE, NAME, "external").await;

    nodes_see_the_volume(&volume, &first);
    a_full_disk_is_told_and_cleaned_inside(&host, &external).await;
    hides_its_marker(&volume, &external).await;
    a_new_attempt_finds_nothing_of_the_last_one(&volume, &first).await;

    until("the old kubeconfig to serve", SOON, async || host.kubectl_outside(&external, &["get", "nodes"]).map(drop)).await;
    hides_its_marker(&volume, &external).await;
    host.delete(NAMESPACE, NAME).await;
    until("the claim to let go of the volume", SOON, async || {
        let phase = host.kubectl(&["get", "persistentvolume", NAMESPACE, "-o", "jsonpath={.status.phase}"]);
        if phase == "Released" { Ok(()) } else { Err(phase) }
    })
    .await;
    // Retained, as its class wants; but a cluster that ends in order leaves nothing of its nodes.
    assert_eq!(files_with_the_marker(&volume), "");
    let directory = volume.directory();
    assert!(volume.run(&format!("ls -A {directory}/volumes {directory}/containers")).lines().all(|line| line.len() < 64));
    host.delete_namespace(NAMESPACE).await;
}

fn nodes_see_the_volume(volume: &Volume<'_>, pod: &str) {
    let size = |path: &str| format!("df -B1 --output=size {path} | tail -n 1");
    assert_eq!(volume.host().in_node(pod, NODE, &size("/var")), volume.run(&size(&volume.directory())));
    let threshold = volume.host().in_node(pod, NODE, "grep -c 'nodefs.available: 10%' /var/lib/kubelet/config.yaml");
    assert_eq!(threshold, "1");
    // What is not on the volume is still bounded.
    let limit = ["get", "pod", "-n", CLUSTERS_NAMESPACE, pod, "-o", "jsonpath={.spec.containers[0].resources.limits.ephemeral-storage}"];
    assert_eq!(volume.host().kubectl(&limit), "1Gi");
}

/// Nobody takes the cluster's pod away for it.
async fn a_full_disk_is_told_and_cleaned_inside(host: &Host, external: &str) {
    let before = status(host).await.pod_ref;
    let inside = |arguments: &[&str]| host.kubectl_outside(external, arguments).unwrap();
    pressure(host, "False").await;
    host.apply_outside(external, &job("filler", "16Mi", &fill(84)));
    pressure(host, "True").await;
    assert_eq!(inside(&["get", "pod", "filler", "-o", "jsonpath={.status.phase}"]), "Running", "there was room");
    inside(&["delete", "pod", "filler", "--now"]);
    pressure(host, "False").await;

    // Beyond that the nested kubelet helps itself, before the API server has no room for its own data.
    host.apply_outside(external, &job("glutton", "16Mi", &fill(96)));
    until("the glutton to be evicted", SOON * 3, async || {
        let ended = host.kubectl_outside(external, &["get", "pod", "glutton", "-o", "jsonpath={.status.phase} {.status.reason}"])?;
        if ended == "Failed Evicted" { Ok(()) } else { Err(ended) }
    })
    .await;
    inside(&["delete", "pod", "glutton", "--now"]);
    pressure(host, "False").await;

    let after = status(host).await.pod_ref;
    assert_eq!(after, before, "the cluster's pod was replaced");
    let restarts = ["get", "pod", "-n", CLUSTERS_NAMESPACE, &after.unwrap().name, "-o", "jsonpath={.status.containerStatuses[0].restartCount}"];
    assert_eq!(host.kubectl(&restarts), "0");
}

/// etcd keeps it in plain text: that it is found now is what makes its absence later worth something.
async fn hides_its_marker(volume: &Volume<'_>, external: &str) {
    volume.host().kubectl_outside(external, &["create", "secret", "generic", "marker", &format!("--from-literal=marker={MARKER}")]).unwrap();
    until("the marker to reach the volume", SOON, async || if files_with_the_marker(volume).is_empty() { Err("not there".to_owned()) } else { Ok(()) }).await;
}

async fn a_new_attempt_finds_nothing_of_the_last_one(volume: &Volume<'_>, first: &str) {
    let host = volume.host();
    let claim = || {
        host.kubectl(&[
            "get",
            "persistentvolumeclaims",
            "-n",
            CLUSTERS_NAMESPACE,
            "-l",
            "nestling.dev/cluster-name=stork",
            "-o",
            "jsonpath={.items[*].metadata.uid}",
        ])
    };
    let before = claim();
    assert!(!before.is_empty());
    host.in_pod(first, "touch /var/lib/docker/left-behind");
    host.pods(CLUSTERS_NAMESPACE).delete(first, &DeleteParams::default()).await.unwrap();
    until("a cluster in its place", CREATED, async || {
        let cluster = host.clusters(NAMESPACE).get(NAME).await.map_err(|error| error.to_string())?;
        let status = cluster.status.clone().unwrap_or_default();
        if status.attempt == Some(2) && is_true(&status.conditions, READY) { Ok(()) } else { Err(describe(&cluster)) }
    })
    .await;
    assert_eq!(claim(), before, "the volume is the same");
    let directory = volume.directory();
    let owner: serde_json::Value = serde_json::from_str(&volume.run(&format!("cat {directory}/nestling-owner.json"))).unwrap();
    assert_eq!(owner["attempt"], json!(2));
    assert_eq!(volume.run(&format!("ls {directory}/left-behind 2>/dev/null || true")), "");
    assert_eq!(files_with_the_marker(volume), "");
}
