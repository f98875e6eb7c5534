//! A cluster that survives its pod: taken away by force, in order, and by a drain of its node, after which its volume is on another one.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, nodes_offer_what_the_pod_has};
use crate::support::operator::CLUSTERS_NAMESPACE;
use crate::support::real::{Host, TOOLS, spec};
use crate::support::wait::{describe, until};
use crate::volume::Volume;
use kube::api::{DeleteParams, EvictParams};
use nestling_core::api::KindClusterStatus;
use nestling_core::api::conditions::{READY, is_true};
use serde_json::json;

/// Also the name of the class and of the volume.
const NAMESPACE: &str = "t-resume";
const NAME: &str = "newt";
const SOON: Duration = Duration::from_mins(1);

/// On an idle machine a cluster with two nodes is back within one; here others are created on the same two cores.
const BACK: Duration = Duration::from_mins(6);

/// What is in the nested cluster: a word, and a program that runs on each node.
fn content() -> String {
    let marker = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "marker"}, "data": {"word": "newts-regrow-their-limbs"}});
    let container = json!({"name": "sleeper", "image": TOOLS, "imagePullPolicy": "Never", "command": ["sleep", "infinity"]});
    let spread = json!({"requiredDuringSchedulingIgnoredDuringExecution":
        [{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "sleeper"}}}]});
    let workload = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "sleeper"},
        "spec": {
            "replicas": 2, "selector": {"matchLabels": {"app": "sleeper"}},
            "template": {
                "metadata": {"labels": {"app": "sleeper"}},
                "spec": {
                    "terminationGracePeriodSeconds": 0, "containers": [container], "affinity": {"podAntiAffinity": spread},
                    "tolerations": [{"operator": "Exists"}],
                },
            },
        },
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [marker, workload]}).to_string()
}

/// The host's node takes pods again, however the test ends.
struct Cordon<'a>(&'a Host, String);

impl Drop for Cordon<'_> {
    fn drop(&mut self) {
        let _ = self.0.cluster.kubectl().args(["uncordon", &self.1]).output();
    }
}

/// What is to be the same after each loss.
#[derive(Debug, Eq, PartialEq)]
struct State {
    cluster_uid: Option<String>,
    /// Of the marker, the workload and the nodes; the nodes with their addresses.
    objects: String,
}

impl State {
    fn of(host: &Host, external: &str, status: &KindClusterStatus) -> Self {
        let look = |arguments: &[&str]| host.kubectl_outside(external, arguments).unwrap();
        let marker = look(&["get", "configmap", "marker", "-o", "jsonpath={.metadata.uid} {.data.word}"]);
        let workload = look(&["get", "deployment", "sleeper", "-o", "jsonpath={.metadata.uid}"]);
        let nodes = "jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.status.addresses[?(@.type==\"InternalIP\")].address}{\"\\n\"}{end}";
        Self { cluster_uid: status.cluster_uid.clone(), objects: [marker, workload, look(&["get", "nodes", "-o", nodes])].join("\n") }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_to_survive_comes_back_with_all_it_held() {
    let host = Host::find().await;
    host.namespace(NAMESPACE).await;
    let mut volume = Volume::movable(&host, NAMESPACE);
    let wanted = format!(
        "{{nodes: {{workers: 1}}, storage: {{type: Persistent, storageClassName: {NAMESPACE}}}, lifecycle: {{podLossPolicy: Resume}}, \
         access: {{service: {{type: NodePort}}}}, resources: {{limits: {{memory: 3Gi}}}}, \
         pod: {{tolerations: [{{key: node-role.kubernetes.io/control-plane, operator: Exists}}]}}}}"
    );
    // No affinity binds the volume to its node: that would be in the way of the drain.
    let cordon = elsewhere(&host, &volume).map(|other| cordoned(&host, &other));
    host.create(NAMESPACE, NAME, spec(&wanted)).await;
    let status = host.ready(NAMESPACE, NAME).await.status.unwrap();
    let external = host.kubeconfig(NAMESPACE, NAME, "external").await;
    host.apply_outside(&external, &content());
    workload_runs(&host, &external).await;
    let before = State::of(&host, &external, &status);

    let pods = host.pods(CLUSTERS_NAMESPACE);
    let pod = pod_of(&status);
    pods.delete(&pod, &DeleteParams::default().grace_period(0)).await.unwrap();
    let pod = is_back(&host, &external, "its pod was removed by force", 2, &before).await;

    // The next pod has another size, which its nodes have to know before they start.
    host.patch(NAMESPACE, NAME, json!({"spec": {"resources": {"limits": {"memory": "3328Mi"}}}})).await;
    pods.delete(&pod, &DeleteParams::default()).await.unwrap();
    let pod = is_back(&host, &external, "its pod was deleted", 3, &before).await;
    let cluster = Cluster::of(&host, CLUSTERS_NAMESPACE, &pod).await;
    assert_eq!(cluster.settings.limits.memory_bytes, 3328 << 20);
    nodes_offer_what_the_pod_has(&cluster);

    // As a drain does it. On a host with one node it can only come back to that.
    drop(cordon);
    let other = elsewhere(&host, &volume);
    let cordon = other.as_ref().map(|_| cordoned(&host, volume.node()));
    pods.evict(&pod, &EvictParams::default()).await.unwrap();
    if let Some(other) = &other {
        volume.move_to(other).await;
    }
    let after = if other.is_some() { "its node was drained" } else { "its pod was evicted (the host has one node)" };
    let pod = is_back(&host, &external, after, 4, &before).await;
    assert_eq!(pods.get(&pod).await.unwrap().spec.unwrap().node_name.as_deref(), Some(volume.node()));
    drop(cordon);

    let events = host.kubectl(&["get", "events", "-n", NAMESPACE, "-o", "jsonpath={.items[*].reason}"]);
    assert!(events.contains("ClusterResumed") && !events.contains("ClusterReplaced"), "{events}");
    host.delete(NAMESPACE, NAME).await;
    host.delete_namespace(NAMESPACE).await;
}

/// Another node of the host than the one that has the volume, if there is one.
fn elsewhere(host: &Host, volume: &Volume<'_>) -> Option<String> {
    host.nodes().into_iter().find(|node| node != volume.node())
}

fn cordoned<'a>(host: &'a Host, node: &str) -> Cordon<'a> {
    host.kubectl(&["cordon", node]);
    Cordon(host, node.to_owned())
}

fn pod_of(status: &KindClusterStatus) -> String {
    status.pod_ref.as_ref().unwrap().name.clone()
}

async fn workload_runs(host: &Host, external: &str) {
    until("the workload to run", SOON * 3, async || host.kubectl_outside(external, &["rollout", "status", "deployment/sleeper", "--timeout=10s"]).map(drop))
        .await;
}

/// The cluster is the same again: its identity, what it held, its nodes at their addresses, the kubeconfig that was published first. The name of its pod.
async fn is_back(host: &Host, external: &str, after: &str, attempt: i64, before: &State) -> String {
    let start = Instant::now();
    let status = until("the cluster to be back", BACK, async || {
        let cluster = host.clusters(NAMESPACE).get(NAME).await.map_err(|error| error.to_string())?;
        let status = cluster.status.clone().unwrap_or_default();
        if status.attempt == Some(attempt) && is_true(&status.conditions, READY) { Ok(status) } else { Err(describe(&cluster)) }
    })
    .await;
    println!("{NAMESPACE}/{NAME}: back {:.1} s after {after}", start.elapsed().as_secs_f64());
    until("the old kubeconfig to serve", SOON, async || host.kubectl_outside(external, &["get", "nodes"]).map(drop)).await;
    assert_eq!(State::of(host, external, &status), *before, "after {after}");
    assert_eq!(status.nodes_ready.as_deref(), Some("2/2"));
    workload_runs(host, external).await;
    println!("{NAMESPACE}/{NAME}: its workload runs {:.1} s after {after}", start.elapsed().as_secs_f64());
    pod_of(&status)
}
