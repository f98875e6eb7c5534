//! Several control planes, and containers of nodes that die: what goes on meanwhile, and how they come back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::real::{CREATED, Host, spec};
use crate::support::wait::{condition, describe, until};
use nestling_core::api::KindClusterStatus;
use nestling_core::api::conditions::{READY, is_true};
use serde_json::json;

const SOON: Duration = Duration::from_mins(1);

/// Longest time without an answer while one of three control planes dies: kind's load balancer finds out by two checks 2 s apart, and meanwhile sends each third
/// connection to the dead; a question that hangs is given up after [`PATIENCE`], and the machine that tests is busy.
const GAP: Duration = Duration::from_secs(20);

/// Questions go on for this long after the last sign of what was broken.
const AFTERWARDS: Duration = Duration::from_secs(10);

/// Time for one question.
const PATIENCE: &str = "--request-timeout=5s";

/// Time for a node that died to be `Ready` again, its pods included.
const BACK: Duration = Duration::from_mins(4);

async fn status(host: &Host, namespace: &str, name: &str) -> KindClusterStatus {
    host.clusters(namespace).get(name).await.unwrap().status.unwrap_or_default()
}

/// Asks a nested API server again and again, through a published kubeconfig; ends with the longest time without an answer.
struct Asking {
    stop: Arc<AtomicBool>,
    work: tokio::task::JoinHandle<(usize, usize, Duration)>,
}

impl Asking {
    async fn start(external: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, external) = (stop.clone(), external.to_owned());
        // A host of its own, because what asks must not wait for what kills.
        let host = Host::find().await;
        let work = tokio::task::spawn_blocking(move || {
            let (mut answers, mut failures, mut longest, mut last) = (0, 0, Duration::ZERO, Instant::now());
            while !flag.load(Ordering::Relaxed) {
                match host.kubectl_outside(&external, &["get", "configmap", "marker", "-o", "name", PATIENCE]) {
                    Ok(_) => {
                        answers += 1;
                        longest = longest.max(last.elapsed());
                        last = Instant::now();
                    }
                    Err(error) => {
                        failures += 1;
                        println!("no answer for {:.1} s: {}", last.elapsed().as_secs_f64(), error.lines().last().unwrap_or_default());
                    }
                }
                std::thread::sleep(Duration::from_millis(200));
            }
            (answers, failures, longest.max(last.elapsed()))
        });
        Self { stop, work }
    }

    /// Asserts that answers kept coming, also in the seconds after all seemed to be well again.
    async fn end(self, what: &str) {
        tokio::time::sleep(AFTERWARDS).await;
        self.stop.store(true, Ordering::Relaxed);
        let (answers, failures, longest) = self.work.await.unwrap();
        println!("{what}: {answers} answers, {failures} failures, the longest gap was {:.1} s", longest.as_secs_f64());
        assert!(answers > 10 && longest <= GAP, "{what}");
    }
}

/// How each container of the cluster stands: its state, when it was started, its address.
fn containers(host: &Host, pod: &str) -> BTreeMap<String, (String, String, String)> {
    let format = "{{.Name}} {{.State.Status}} {{.State.StartedAt}} {{.NetworkSettings.Networks.kind.IPAddress}}";
    let listed = host.in_pod(pod, &format!("docker inspect --format '{format}' $(docker ps --all --quiet)"));
    let line = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        let name = words.next().unwrap().trim_start_matches('/').to_owned();
        (name, (words.next().unwrap(), words.next().unwrap(), words.next().unwrap_or_default()))
    };
    listed.lines().map(line).collect()
}

/// Names of the members of etcd that have started, as this node's etcd knows them; none while it does not answer.
fn members(host: &Host, pod: &str, node: &str) -> Vec<String> {
    // etcd's own client is not in the node; its gateway speaks JSON.
    let script = "cd /etc/kubernetes/pki/etcd && curl -sS --max-time 5 --cacert ca.crt --cert healthcheck-client.crt --key healthcheck-client.key \
                  -X POST -d '{}' https://127.0.0.1:2379/v3/cluster/member/list || true";
    let listed: serde_json::Value = serde_json::from_str(&host.in_node(pod, node, script)).unwrap_or_default();
    // One that has not started yet has no name.
    let mut names: Vec<String> = listed["members"].as_array().into_iter().flatten().filter_map(|member| Some(member["name"].as_str()?.to_owned())).collect();
    names.sort();
    names
}

/// Waits until this cluster is as it was before: the same attempt, `Ready`, and `Ready` in its own eyes.
async fn back(host: &Host, namespace: &str, name: &str, external: &str, before: &KindClusterStatus) {
    let start = Instant::now();
    until("every node to be back", BACK, async || {
        let cluster = host.clusters(namespace).get(name).await.map_err(|error| error.to_string())?;
        let now = cluster.status.clone().unwrap_or_default();
        assert_eq!((now.attempt, &now.cluster_uid), (before.attempt, &before.cluster_uid), "the cluster was replaced: {}", describe(&cluster));
        let nodes = host.kubectl_outside(external, &["get", "nodes", "--no-headers", PATIENCE])?;
        let ready = nodes.lines().filter(|line| line.split_whitespace().nth(1) == Some("Ready")).count();
        if is_true(&now.conditions, READY) && ready == nodes.lines().count() { Ok(()) } else { Err(format!("{}\n{nodes}", describe(&cluster))) }
    })
    .await;
    println!("{name}: all nodes back {:.1} s after they were missed", start.elapsed().as_secs_f64());
}

fn mark(host: &Host, external: &str) {
    host.apply_outside(external, &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "marker"}, "data": {"kept": "yes"}}).to_string());
}

fn marked(host: &Host, external: &str) {
    assert_eq!(host.kubectl_outside(external, &["get", "configmap", "marker", "-o", "jsonpath={.data.kept}"]).unwrap(), "yes");
}

async fn told(host: &Host, namespace: &str) {
    until("the event NodeContainerDead", SOON, async || {
        let events = host.kubectl(&["get", "events", "-n", namespace, "-o", "jsonpath={.items[*].reason}"]);
        if events.split_whitespace().any(|seen| seen == "NodeContainerDead") { Ok(()) } else { Err(events) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_outlives_a_control_plane() {
    const NAMESPACE: &str = "t-ha";
    const NODES: [&str; 3] = ["trinity-control-plane", "trinity-control-plane2", "trinity-control-plane3"];
    const BALANCER: &str = "trinity-external-load-balancer";
    let host = Host::find().await;
    host.namespace(NAMESPACE).await;
    // Control planes join one after the other, which takes longer than other clusters do.
    host.create(NAMESPACE, "trinity", spec("{nodes: {controlPlanes: 3}, access: {service: {type: NodePort}}}")).await;
    condition(&host.clusters(NAMESPACE), "trinity", READY, "True", None, CREATED * 2).await;
    let before = host.ready(NAMESPACE, "trinity").await.status.unwrap();
    assert_eq!((before.nodes_ready.as_deref(), before.control_planes.unwrap().total, before.workers.unwrap().total), (Some("3/3"), 3, 0));
    let pod = before.pod_ref.clone().unwrap().name;
    let external = host.kubeconfig(NAMESPACE, "trinity", "external").await;
    mark(&host, &external);

    // Each of them is told the same, and leaders are elected.
    for node in NODES {
        let arguments = host.in_node(&pod, node, "tr '\\0' '\\n' < /proc/$(pgrep -x kube-scheduler)/cmdline");
        assert!(arguments.contains("--leader-elect=true"), "{node}: {arguments}");
        assert!(host.in_node(&pod, node, "cat /kind/kubeadm.conf").contains("systemReserved"), "{node}");
    }
    assert_eq!(members(&host, &pod, NODES[1]), NODES);
    let first = containers(&host, &pod);
    assert_eq!(first.len(), 4, "{first:?}");

    // The first one, with whose credentials the agent works.
    let asking = Asking::start(&external).await;
    host.in_pod(&pod, &format!("docker kill {}", NODES[0]));
    told(&host, NAMESPACE).await;
    until("its container to run again", SOON, async || {
        let now = containers(&host, &pod);
        if now[NODES[0]].0 == "running" { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    back(&host, NAMESPACE, "trinity", &external, &before).await;
    asking.end("the first control plane was killed").await;
    let now = containers(&host, &pod);
    assert_ne!(now[NODES[0]].1, first[NODES[0]].1, "it was never dead");
    for (name, (_, _, address)) in &first {
        assert_eq!(now[name].2, *address, "{name} has another address");
    }
    until("three members of etcd", SOON, async || {
        let have = NODES.map(|node| members(&host, &pod, node));
        if have.iter().all(|have| *have == NODES) { Ok(()) } else { Err(format!("{have:?}")) }
    })
    .await;
    marked(&host, &external);

    // etcd itself, in another one: its kubelet starts it again.
    let asking = Asking::start(&external).await;
    let etcd = host.in_node(&pod, NODES[2], "pgrep -x etcd");
    host.in_node(&pod, NODES[2], "pkill -KILL -x etcd");
    until("another etcd that answers", BACK, async || {
        let (now, have) = (host.in_node(&pod, NODES[2], "pgrep -x etcd || true"), members(&host, &pod, NODES[2]));
        if now != etcd && have == NODES { Ok(()) } else { Err(format!("{now} {have:?}")) }
    })
    .await;
    asking.end("etcd was killed").await;

    // What stands before all of them. Without it nothing answers for a moment, so that only its return counts.
    host.in_pod(&pod, &format!("docker kill {BALANCER}"));
    until("the load balancer to run again", SOON, async || {
        let now = containers(&host, &pod);
        if now[BALANCER].0 == "running" && now[BALANCER].1 != first[BALANCER].1 { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    back(&host, NAMESPACE, "trinity", &external, &before).await;
    marked(&host, &external);
    host.delete(NAMESPACE, "trinity").await;
    host.delete_namespace(NAMESPACE).await;
}

/// The only control plane, and a worker: by Docker, and as the kernel does it when memory is short.
#[tokio::test(flavor = "multi_thread")]
async fn dead_nodes_come_back_with_what_they_held() {
    const NAMESPACE: &str = "t-dead";
    const NODES: [&str; 2] = ["lazarus-control-plane", "lazarus-worker"];
    let host = Host::find().await;
    host.namespace(NAMESPACE).await;
    host.create(NAMESPACE, "lazarus", spec("{nodes: {workers: 1}, access: {service: {type: NodePort}}}")).await;
    let before = host.ready(NAMESPACE, "lazarus").await.status.unwrap();
    let pod = before.pod_ref.clone().unwrap().name;
    let external = host.kubeconfig(NAMESPACE, "lazarus", "external").await;
    mark(&host, &external);
    let first = containers(&host, &pod);

    host.in_pod(&pod, &format!("docker kill {}", NODES[1]));
    told(&host, NAMESPACE).await;
    condition(&host.clusters(NAMESPACE), "lazarus", READY, "True", None, BACK).await;
    back(&host, NAMESPACE, "lazarus", &external, &before).await;

    // Both at once, from outside of Docker.
    let start = Instant::now();
    host.in_pod(&pod, &format!("kill -KILL $(docker inspect --format '{{{{.State.Pid}}}}' {} {})", NODES[0], NODES[1]));
    until("nobody to answer", SOON, async || match host.kubectl_outside(&external, &["get", "nodes", PATIENCE]) {
        Ok(nodes) => Err(nodes),
        Err(_) => Ok(()),
    })
    .await;
    back(&host, NAMESPACE, "lazarus", &external, &before).await;
    println!("a control plane and its worker that were killed serve again after {:.1} s", start.elapsed().as_secs_f64());
    marked(&host, &external);
    let now = containers(&host, &pod);
    for node in NODES {
        assert_eq!((now[node].0.as_str(), &now[node].2), ("running", &first[node].2), "{node}");
        assert_ne!(now[node].1, first[node].1, "{node}");
    }
    assert_eq!(status(&host, NAMESPACE, "lazarus").await.last_failure, None);
    host.delete(NAMESPACE, "lazarus").await;
    host.delete_namespace(NAMESPACE).await;
}
