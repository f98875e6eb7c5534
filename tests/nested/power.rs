//! Clusters that sleep: frozen, stopped, back again with all that they held, and deleted in their sleep.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, what_has_no_service_is_refused};
use crate::serves_by_name;
use crate::support::operator::CLUSTERS_NAMESPACE;
use crate::support::real::{CREATED, Host, spec};
use crate::support::wait::{condition, describe, gone, until};
use crate::support::{self, plane};
use crate::volume::Volume;
use nestling_core::api::conditions::{READY, SUSPENDED};
use nestling_core::api::{KindCluster, PowerState};
use serde_json::json;

const NAMESPACE: &str = "t-power";
const SOON: Duration = Duration::from_mins(1);

/// Workers and control plane have twenty seconds each to stop, and the machine is not theirs alone.
const STOPPED: Duration = Duration::from_mins(3);

/// For as long as this a frozen cluster is watched.
const WATCHED: Duration = Duration::from_secs(30);

/// Most CPU that its nodes may use meanwhile: less than one of their processes needs to be asked anything.
const NOTHING: Duration = Duration::from_millis(1);

/// C71.
#[tokio::test(flavor = "multi_thread")]
async fn clusters_sleep_and_come_back_with_all_they_held() {
    let host = Host::find().await;
    host.namespace(NAMESPACE).await;
    let large = async {
        host.create(NAMESPACE, "swan", spec("{nodes: {workers: 2}, access: {service: {type: NodePort}}}")).await;
        host.ready(NAMESPACE, "swan").await;
        let external = host.kubeconfig(NAMESPACE, "swan", "external").await;
        host.apply_outside(&external, &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "marker"}}).to_string());
        serves_by_name(&host, &external, None);
        frozen_and_back(&host, &external).await;
        stopped_and_back(&host, &external).await;
        power(&host, "swan", PowerState::Frozen).await;
        host.delete(NAMESPACE, "swan").await;
    };
    let small = async {
        // Stopped from its first hour, and ready before.
        host.create(NAMESPACE, "wren", json!({"powerState": "Stopped"})).await;
        let asleep = condition(&host.clusters(NAMESPACE), "wren", SUSPENDED, "True", Some("Stopped"), CREATED + STOPPED).await;
        assert!(asleep.status.unwrap().ready_time.is_some());
        let start = Instant::now();
        host.patch(NAMESPACE, "wren", json!({"spec": {"powerState": "Running"}})).await;
        host.kubectl(&["wait", "kindcluster/wren", "-n", NAMESPACE, "--for=condition=Ready", "--timeout=5m"]);
        println!("a stopped cluster of one node is Ready after {:.1} s", start.elapsed().as_secs_f64());
        // On a machine that also does other things; twenty on one that does not.
        assert!(start.elapsed() < Duration::from_mins(1));
        power(&host, "wren", PowerState::Stopped).await;
        host.delete(NAMESPACE, "wren").await;
        without_a_pod(&host).await;
    };
    tokio::join!(large, small);
    host.delete_namespace(NAMESPACE).await;
}

/// On a volume from which a cluster comes back, it sleeps without a pod.
async fn without_a_pod(host: &Host) {
    let volume = Volume::attach(host, NAMESPACE);
    let storage = json!({"type": "Persistent", "storageClassName": NAMESPACE});
    host.create(NAMESPACE, "teal", json!({"storage": storage, "lifecycle": {"podLossPolicy": "Resume"}, "access": {"service": {"type": "NodePort"}}})).await;
    let before = host.ready(NAMESPACE, "teal").await;
    let external = host.kubeconfig(NAMESPACE, "teal", "external").await;
    host.apply_outside(&external, &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "marker"}}).to_string());
    power(host, "teal", PowerState::Stopped).await;
    gone(&host.pods(CLUSTERS_NAMESPACE), &pod_of(&before), STOPPED).await;
    let asleep = condition(&host.clusters(NAMESPACE), "teal", SUSPENDED, "True", Some("Stopped"), SOON).await.status.unwrap();
    assert!(asleep.pod_ref.is_none() && asleep.last_failure.is_none(), "{asleep:?}");
    let start = Instant::now();
    host.patch(NAMESPACE, "teal", json!({"spec": {"powerState": "Running"}})).await;
    let after = condition(&host.clusters(NAMESPACE), "teal", READY, "True", None, CREATED).await.status.unwrap();
    println!("a cluster without a pod is Ready after {:.1} s", start.elapsed().as_secs_f64());
    assert_eq!((after.cluster_uid, after.attempt), (before.status.unwrap().cluster_uid, Some(2)));
    host.kubectl_outside(&external, &["get", "configmap", "marker"]).unwrap();
    host.delete(NAMESPACE, "teal").await;
    drop(volume);
}

/// Orders a state that suspends, and waits until it is there.
async fn power(host: &Host, name: &str, state: PowerState) -> KindCluster {
    let start = Instant::now();
    host.patch(NAMESPACE, name, json!({"spec": {"powerState": state}})).await;
    let cluster = condition(&host.clusters(NAMESPACE), name, SUSPENDED, "True", Some(&state.to_string()), STOPPED).await;
    println!("{name}: {state} after {:.1} s", start.elapsed().as_secs_f64());
    cluster
}

/// CPU time that a cluster's node containers have used, by their control groups.
fn used(host: &Host, pod: &str) -> Duration {
    let sum = host.in_pod(
        pod,
        "for id in $(docker ps --quiet --no-trunc); do
           find /sys/fs/cgroup -type d -name \"*$id*\" -prune | while read -r group; do
             if [ -f $group/cpuacct.usage ]; then cat $group/cpuacct.usage; break; fi
             if grep -q usage_usec $group/cpu.stat 2>/dev/null; then awk '/usage_usec/ { print $2 * 1000 }' $group/cpu.stat; break; fi
           done
         done | awk '{ count += 1; sum += $1 } END { if (count == 3) printf \"%.0f\", sum }'",
    );
    Duration::from_nanos(sum.parse().unwrap_or_else(|_| panic!("not every node's control group was found: {sum:?}")))
}

fn pod_of(cluster: &KindCluster) -> String {
    cluster.status.as_ref().unwrap().pod_ref.as_ref().unwrap().name.clone()
}

/// Names, restarts and addresses of the workload's pods.
fn workload(host: &Host, kubeconfig: &str, of_each: &str) -> String {
    let path = format!("jsonpath={{range .items[*]}}{{.metadata.uid}} {of_each}\n{{end}}");
    host.kubectl_outside(kubeconfig, &["get", "pods", "-l", "app=web", "-o", &path]).unwrap()
}

/// Whether the marker is there and the workload still serves what it has on its disk.
fn all_is_there(host: &Host, external: &str) {
    host.kubectl_outside(external, &["get", "configmap", "marker"]).unwrap();
    serves_by_name(host, external, None);
}

/// Ready again, and since when the agent says that the cluster runs.
async fn resumed(host: &Host, external: &str) -> KindCluster {
    let client = plane::client(external).await;
    let start = Instant::now();
    host.patch(NAMESPACE, "swan", json!({"spec": {"powerState": "Running"}})).await;
    until("the agent to say that it runs", CREATED, async || {
        let cluster = host.clusters(NAMESPACE).get("swan").await.map_err(|error| error.to_string())?;
        if cluster.status.as_ref().unwrap().power_state == Some(PowerState::Running) { Ok(()) } else { Err(describe(&cluster)) }
    })
    .await;
    let told = start.elapsed();
    while client.apiserver_version().await.is_err() {
        assert!(start.elapsed() < told + SOON);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let later = start.elapsed().saturating_sub(told);
    println!("swan: Running after {:.2} s, the API answers {:.2} s later", told.as_secs_f64(), later.as_secs_f64());
    // No bound but the one above: other tests run beside this one, and the machine may have no CPU to give.
    support::record("power", &json!({"running_seconds": told.as_secs_f64(), "api_answers_later_seconds": later.as_secs_f64()}));
    let cluster = condition(&host.clusters(NAMESPACE), "swan", READY, "True", None, CREATED).await;
    println!("swan: Ready after {:.1} s", start.elapsed().as_secs_f64());
    assert_eq!(cluster.status.as_ref().unwrap().nodes_ready.as_deref(), Some("3/3"));
    cluster
}

async fn frozen_and_back(host: &Host, external: &str) {
    let restarts = "{.status.containerStatuses[*].restartCount}";
    let before = workload(host, external, restarts);
    let cluster = power(host, "swan", PowerState::Frozen).await;
    let pod = pod_of(&cluster);
    let start = Instant::now();
    let refused = host.kubectl_outside(external, &["get", "--raw", "/readyz"]).unwrap_err();
    assert!(refused.contains("refused") && start.elapsed() < Duration::from_secs(5), "after {:?}: {refused}", start.elapsed());

    let at_first = used(host, &pod);
    tokio::time::sleep(WATCHED).await;
    let meanwhile = used(host, &pod).checked_sub(at_first).unwrap();
    println!("swan: frozen nodes used {meanwhile:?} of CPU in {WATCHED:?}");
    assert!(meanwhile <= NOTHING, "{meanwhile:?}");
    let cluster = host.clusters(NAMESPACE).get("swan").await.unwrap();
    assert!(cluster.status.as_ref().unwrap().last_failure.is_none(), "{}", describe(&cluster));

    let cluster = resumed(host, external).await;
    assert!(used(host, &pod) > at_first + NOTHING, "what was measured is not their CPU");
    assert_eq!(pod_of(&cluster), pod);
    assert_eq!(workload(host, external, restarts), before, "what was in memory is still there");
    all_is_there(host, external);
}

async fn stopped_and_back(host: &Host, external: &str) {
    let before = workload(host, external, "");
    let pod = pod_of(&power(host, "swan", PowerState::Stopped).await);
    assert_eq!(host.in_pod(&pod, "docker ps --quiet"), "");
    let refused = host.kubectl_outside(external, &["get", "--raw", "/readyz"]).unwrap_err();
    assert!(refused.contains("refused"), "{refused}");
    let cluster = resumed(host, external).await;
    assert_eq!(pod_of(&cluster), pod);
    let running = host.pods(CLUSTERS_NAMESPACE).get(&pod).await.unwrap();
    assert_eq!(running.status.unwrap().container_statuses.unwrap()[0].restart_count, 0);
    assert_eq!(workload(host, external, ""), before, "the pods are the same");
    all_is_there(host, external);
    what_has_no_service_is_refused(&Cluster::of(host, CLUSTERS_NAMESPACE, &pod).await, external, "swan-worker");
}
