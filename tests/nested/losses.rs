//! What becomes of a cluster whose creator is killed, whose daemon hangs, whose pod somebody takes away.

use std::time::Duration;

use crate::failures::logs;
use crate::support::operator::CLUSTERS_NAMESPACE;
use crate::support::real::{CREATED, Host, spec};
use crate::support::seed;
use crate::support::wait::{condition, describe, until};
use kube::ResourceExt;
use kube::api::EvictParams;
use nestling_core::api::KindClusterStatus;
use nestling_core::api::conditions::{READY, STALLED, is_true};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

const NAMESPACE: &str = "t-losses";
const SOON: Duration = Duration::from_mins(1);

/// kind takes longer than this, so that it is killed at work.
const AT_WORK: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread")]
async fn losses_are_named_and_replaced_or_mourned() {
    let host = Host::find().await;
    host.namespace(NAMESPACE).await;
    host.create(NAMESPACE, "phoenix", spec("{access: {service: {type: NodePort}}}")).await;
    host.create(NAMESPACE, "dodo", json!({"lifecycle": {"podLossPolicy": "Fail"}})).await;
    let mourned = async {
        a_daemon_hangs(&host).await;
        the_mourned_is_replaced_after_all(&host).await;
        host.delete(NAMESPACE, "dodo").await;
    };
    let replaced = async {
        kind_is_killed_at_work(&host).await;
        a_pod_is_evicted(&host).await;
        host.delete(NAMESPACE, "phoenix").await;
    };
    tokio::join!(mourned, replaced);
    host.delete_namespace(NAMESPACE).await;
}

async fn status(host: &Host, name: &str) -> KindClusterStatus {
    host.clusters(NAMESPACE).get(name).await.unwrap().status.unwrap_or_default()
}

/// Whether something was there to be sent the signal.
fn signal(host: &Host, pod: &str, signal: &str, what: &[&str]) -> bool {
    let arguments = [&["exec", "-n", CLUSTERS_NAMESPACE, pod, "--", "pkill", signal], what].concat();
    host.cluster.kubectl().args(arguments).output().unwrap().status.success()
}

/// The attempt fails with what can be known of it, and the next one is not held up by what was left.
async fn kind_is_killed_at_work(host: &Host) {
    const KIND: [&str; 2] = ["-f", "^kind create cluster"];
    let pod = until("kind to be at work", CREATED, async || {
        let pod = status(host, "phoenix").await.pod_ref.ok_or("no pod")?.name;
        // Signal 0 only asks.
        if signal(host, &pod, "-0", &KIND) { Ok(pod) } else { Err("no kind".to_owned()) }
    })
    .await;
    let pause = Duration::from_millis(StdRng::seed_from_u64(seed()).random_range(0..u64::try_from(AT_WORK.as_millis()).unwrap()));
    tokio::time::sleep(pause).await;
    assert!(signal(host, &pod, "-KILL", &KIND), "kind had ended {pause:?} after it was seen");
    println!("kind killed {pause:?} after it was seen");
    let failure = until("the failure on record", SOON * 2, async || status(host, "phoenix").await.last_failure.ok_or(String::new())).await;
    println!("{}: {}", failure.reason, failure.message);
    assert_eq!(failure.attempt, 1);
    assert!(failure.reason == "KindFailed" && failure.log_tail.is_some_and(|tail| !tail.is_empty()), "{}", failure.reason);
    let status = host.ready(NAMESPACE, "phoenix").await.status.unwrap();
    assert_eq!(status.attempt, Some(2));
}

/// As a drain does it. A new, empty cluster takes the old one's place, and who has its kubeconfig can go on with it.
async fn a_pod_is_evicted(host: &Host) {
    let before = status(host, "phoenix").await;
    let external = host.kubeconfig(NAMESPACE, "phoenix", "external").await;

    host.apply_outside(&external, &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "marker"}}).to_string());
    let pod = before.pod_ref.unwrap().name;
    let pods = host.pods(CLUSTERS_NAMESPACE);
    assert_eq!(pods.get(&pod).await.unwrap().annotations()["cluster-autoscaler.kubernetes.io/safe-to-evict"], "false");
    pods.evict(&pod, &EvictParams::default()).await.unwrap();
    let after = until("a cluster in its place", CREATED, async || {
        let cluster = host.clusters(NAMESPACE).get("phoenix").await.map_err(|error| error.to_string())?;
        let status = cluster.status.clone().unwrap_or_default();
        if status.attempt == Some(3) && is_true(&status.conditions, READY) { Ok(status) } else { Err(describe(&cluster)) }
    })
    .await;
    let failure = after.last_failure.unwrap();
    assert_eq!((failure.attempt, &*failure.reason), (2, "PodLost"), "{}", failure.message);
    assert!(after.cluster_uid.is_some() && after.cluster_uid != before.cluster_uid);
    for reason in ["PodLost", "ClusterReplaced"] {
        until(&format!("the event {reason}"), SOON, async || {
            let events = host.kubectl(&["get", "events", "-n", NAMESPACE, "-o", "jsonpath={.items[*].reason}"]);
            if events.split_whitespace().any(|seen| seen == reason) { Ok(()) } else { Err(events) }
        })
        .await;
    }
    until("the old kubeconfig to serve", SOON, async || host.kubectl_outside(&external, &["get", "nodes"]).map(drop)).await;
    let maps = host.kubectl_outside(&external, &["get", "configmaps", "-o", "name"]).unwrap();
    assert!(maps.contains("kube-root-ca.crt") && !maps.contains("marker"), "{maps}");
}

/// It lives and answers nobody. Found out, and with `podLossPolicy: Fail` left at that.
async fn a_daemon_hangs(host: &Host) {
    let before = host.ready(NAMESPACE, "dodo").await.status.unwrap();
    let pod = before.pod_ref.unwrap().name;
    assert!(signal(host, &pod, "-STOP", &["-x", "dockerd"]));
    let start = std::time::Instant::now();
    let cluster = condition(&host.clusters(NAMESPACE), "dodo", STALLED, "True", Some("DockerUnresponsive"), Duration::from_mins(6)).await;
    println!("a daemon that hangs is found out and mourned after {:.0} s", start.elapsed().as_secs_f64());
    assert!(describe(&cluster).contains("does not answer any more"), "{}", describe(&cluster));
    assert_eq!(cluster.status.unwrap().attempt, before.attempt);

    // Its pod has ended as it should, and its logs show a daemon that was stopped.
    let (files, _) = logs(host, NAMESPACE, "dodo").await;
    assert!(files["processes.txt"].lines().any(|line| line.ends_with("dockerd") && line.split_whitespace().nth(2).is_some_and(|state| state.starts_with('T'))));
    assert!(files["nodes.txt"].contains("does not answer") && files["agent.log"].contains("does not answer any more"));
    until("the pod to end within its grace period", Duration::from_secs(135), async || {
        let pods = host.pods(CLUSTERS_NAMESPACE).get_opt(&pod).await.map_err(|error| error.to_string())?;
        if pods.is_none() { Ok(()) } else { Err("it is still there".to_owned()) }
    })
    .await;
    println!("its pod has ended {:.0} s after the daemon was stopped", start.elapsed().as_secs_f64());
}

/// The policy may be changed afterwards.
async fn the_mourned_is_replaced_after_all(host: &Host) {
    let before = status(host, "dodo").await;
    host.patch(NAMESPACE, "dodo", json!({"spec": {"lifecycle": {"podLossPolicy": "Recreate"}}})).await;
    let after = host.ready(NAMESPACE, "dodo").await.status.unwrap();
    assert_eq!(after.attempt, before.attempt.map(|attempt| attempt + 1));
    assert!(after.cluster_uid.is_some() && after.cluster_uid != before.cluster_uid);
    until("the event ClusterReplaced", SOON, async || {
        let events = host.kubectl(&["get", "events", "-n", NAMESPACE, "--field-selector", "involvedObject.name=dodo", "-o", "jsonpath={.items[*].reason}"]);
        if events.split_whitespace().any(|seen| seen == "ClusterReplaced") { Ok(()) } else { Err(events) }
    })
    .await;
}
