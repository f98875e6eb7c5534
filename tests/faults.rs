//! Faults on real clusters, one after the other, in random order: after each the cluster is as its policy promises, and at the end nothing is left that was
//! not there before. `--soak` injects at least forty; CI takes a few. Alone on the machine, like `tests/solo.rs`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may end so")]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use kube::api::DeleteParams;
use nestling_core::api::KindClusterStatus;
use nestling_core::api::conditions::{HOST_READY, READY, is_true};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use support::operator::{CLUSTERS_NAMESPACE, OPERATOR_NAMESPACE};
use support::real::{CREATED, DELETED, Host};
use support::wait::{condition, describe, gone, until};

const NAMESPACE: &str = "t-faults";
const MARKER: &str = "marker";

/// Time for a fault to show in the status.
const NOTICED: Duration = Duration::from_secs(3);

/// The longest time without a leader: a lease of fifteen seconds, and the next one's start.
const NEXT_LEADER: Duration = Duration::from_mins(1);

/// What a cluster is doing when the fault comes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum When {
    Creating,
    Ready,
    Deleting,
}

/// What holds afterwards.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Promise {
    /// The same cluster is ready, with all that is in it. Under creation: its first attempt succeeds.
    Kept,
    /// Another takes its place, and says so (`podLossPolicy: Recreate`).
    Replaced,
    /// A further attempt may be needed; it is ready in the end.
    Ready,
    /// The object goes, and all that belonged to it.
    Gone,
}

/// The cluster that suffers.
struct Victim<'a> {
    host: &'a Host,
    name: String,
    pod: String,
    uid: String,
}

/// A kind of fault. A further one is a further entry in [`FAULTS`].
struct Fault {
    name: &'static str,
    /// When it may come, and what is promised then.
    promises: &'static [(When, Promise)],
    /// Back to normal within this.
    within: Duration,
    /// Too slow for CI.
    slow: bool,
    /// Injects it; `false` if there was nothing (yet, or any more) to be hit.
    inject: fn(&Victim<'_>) -> bool,
}

const ANYTHING_KEEPS: &[(When, Promise)] = &[(When::Creating, Promise::Kept), (When::Ready, Promise::Kept), (When::Deleting, Promise::Gone)];
const ANYTHING_LOSES: &[(When, Promise)] = &[(When::Creating, Promise::Ready), (When::Ready, Promise::Replaced), (When::Deleting, Promise::Gone)];

const FAULTS: &[Fault] = &[
    Fault { name: "operator: SIGKILL of every replica", promises: ANYTHING_KEEPS, within: CREATED, slow: false, inject: kill_operators },
    Fault { name: "operator: the leader's pod deleted by force", promises: ANYTHING_KEEPS, within: CREATED, slow: false, inject: delete_the_leader },
    Fault { name: "agent: SIGKILL", promises: ANYTHING_LOSES, within: CREATED, slow: false, inject: kill_agent },
    Fault {
        name: "dockerd: SIGKILL",
        promises: &[(When::Creating, Promise::Ready), (When::Ready, Promise::Replaced)],
        within: CREATED,
        slow: false,
        inject: |victim| victim.signal("-KILL", &["-x", "dockerd"]),
    },
    Fault {
        name: "dockerd: SIGSTOP",
        promises: &[(When::Ready, Promise::Replaced)],
        within: Duration::from_mins(12),
        slow: true,
        inject: |victim| victim.signal("-STOP", &["-x", "dockerd"]),
    },
    Fault {
        name: "kind: SIGKILL",
        promises: &[(When::Creating, Promise::Ready)],
        within: CREATED,
        slow: false,
        inject: |victim| victim.signal("-KILL", &["-f", "^kind create cluster"]),
    },
    Fault {
        name: "etcd in the node: SIGKILL",
        promises: &[(When::Creating, Promise::Ready), (When::Ready, Promise::Kept)],
        within: CREATED,
        slow: false,
        inject: |victim| victim.in_pod(&format!("docker exec {}-control-plane pkill -KILL -x etcd", victim.name)),
    },
    Fault {
        name: "pod: deleted with its grace period",
        promises: ANYTHING_LOSES,
        within: CREATED,
        slow: false,
        inject: |victim| victim.kubectl(&["delete", "pod", "-n", CLUSTERS_NAMESPACE, &victim.pod, "--wait=false"]),
    },
    Fault { name: "pod: deleted by force", promises: ANYTHING_LOSES, within: CREATED, slow: false, inject: delete_by_force },
    Fault {
        name: "pod: deleted by force, its nodes frozen",
        promises: ANYTHING_LOSES,
        within: CREATED,
        slow: false,
        inject: |victim| victim.in_pod("docker ps -q | xargs docker pause") && delete_by_force(victim),
    },
    Fault {
        name: "pod: deleted by force, the cluster Frozen",
        promises: &[(When::Ready, Promise::Replaced)],
        within: CREATED,
        slow: false,
        inject: |victim| victim.power("Frozen") && victim.sleeps() && delete_by_force(victim) && victim.power("Running"),
    },
    Fault {
        name: "operator: the leader lost while a cluster freezes, and while it thaws",
        promises: &[(When::Ready, Promise::Kept)],
        within: CREATED,
        slow: false,
        inject: |victim| victim.power("Frozen") && delete_the_leader(victim) && victim.sleeps() && victim.power("Running") && delete_the_leader(victim),
    },
    Fault {
        name: "node: drained",
        promises: &[(When::Creating, Promise::Ready), (When::Ready, Promise::Replaced)],
        within: CREATED,
        slow: false,
        inject: drain,
    },
    Fault {
        name: "data volume: full",
        promises: &[(When::Ready, Promise::Replaced)],
        within: Duration::from_mins(12),
        slow: true,
        // An emptyDir has a limit, and the host's kubelet evicts who exceeds it.
        inject: |victim| victim.in_pod("fallocate -l 7G /var/lib/docker/glutton"),
    },
];

impl Victim<'_> {
    fn kubectl(&self, arguments: &[&str]) -> bool {
        self.host.cluster.kubectl().args(arguments).output().unwrap().status.success()
    }

    /// Runs a script in the cluster's own pod, beside the agent.
    fn in_pod(&self, script: &str) -> bool {
        self.kubectl(&["exec", "-n", CLUSTERS_NAMESPACE, &self.pod, "--", "bash", "-ec", script])
    }

    /// Sends a signal in the pod; `false` if there is no such process.
    fn signal(&self, signal: &str, what: &[&str]) -> bool {
        self.kubectl(&[&["exec", "-n", CLUSTERS_NAMESPACE, &self.pod, "--", "pkill", signal], what].concat())
    }

    /// Asks for a power state.
    fn power(&self, state: &str) -> bool {
        self.kubectl(&["patch", "kindcluster", "-n", NAMESPACE, &self.name, "--type=merge", "-p", &json!({"spec": {"powerState": state}}).to_string()])
    }

    /// Waits until it is suspended.
    fn sleeps(&self) -> bool {
        self.kubectl(&["wait", "kindcluster", "-n", NAMESPACE, &self.name, "--for=condition=Suspended", "--timeout=120s"])
    }

    /// The node of the host that the pod runs on.
    fn node(&self) -> Option<String> {
        Some(self.of_the_pod("{.spec.nodeName}")).filter(|node| !node.is_empty())
    }

    /// A field of the pod; empty if there is none.
    fn of_the_pod(&self, path: &str) -> String {
        let get = ["get", "pod", "-n", CLUSTERS_NAMESPACE, &self.pod, "-o", &format!("jsonpath={path}")];
        String::from_utf8_lossy(&self.host.cluster.kubectl().args(get).output().unwrap().stdout).into_owned()
    }
}

fn kill_operators(victim: &Victim<'_>) -> bool {
    victim.host.kill_operator();
    true
}

/// Takes the leader's pod. One that was taken a moment ago holds the lease until the next leader does: that one is waited for.
fn delete_the_leader(victim: &Victim<'_>) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < NEXT_LEADER {
        let leader = victim.host.kubectl(&["get", "lease", "-n", OPERATOR_NAMESPACE, "nestling", "-o", "jsonpath={.spec.holderIdentity}"]);
        if victim.kubectl(&["delete", "pod", "-n", OPERATOR_NAMESPACE, &leader, "--force", "--grace-period=0"]) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    false
}

fn delete_by_force(victim: &Victim<'_>) -> bool {
    victim.kubectl(&["delete", "pod", "-n", CLUSTERS_NAMESPACE, &victim.pod, "--force", "--grace-period=0"])
}

/// PID 1 of the pod takes no SIGKILL from inside: from the host's node, where the volumes in a process's mounts tell its pod.
fn kill_agent(victim: &Victim<'_>) -> bool {
    let Some(node) = victim.node() else { return false };
    let uid = victim.of_the_pod("{.metadata.uid}");
    let script =
        format!("for pid in $(pgrep -f '^/usr/local/bin/nestling agent'); do grep -q {uid} /proc/$pid/mountinfo && kill -KILL $pid && exit; done; exit 1");
    !uid.is_empty() && victim.host.cluster.docker().run(&["exec", &node, "bash", "-c", &script]).is_ok()
}

/// The pod's share of a drain. Where the host has one node, that takes the next pod when it is given back.
fn drain(victim: &Victim<'_>) -> bool {
    let Some(node) = victim.node() else { return false };
    let selector = format!("--pod-selector=nestling.dev/cluster-uid={}", victim.uid);
    let drained = victim.kubectl(&["drain", &node, &selector, "--force", "--delete-emptydir-data", "--ignore-daemonsets", "--timeout=180s"]);
    victim.host.kubectl(&["uncordon", &node]);
    drained
}

/// One injected fault, as the report has it.
#[derive(Debug)]
struct Record {
    fault: &'static str,
    when: When,
    promise: Promise,
    seconds: f64,
}

struct Suite<'a> {
    host: &'a Host,
    random: StdRng,
    records: Vec<Record>,
    /// What is still to come, by state; begun anew when it is used up.
    decks: BTreeMap<When, Vec<&'static Fault>>,
}

impl<'a> Suite<'a> {
    /// The next fault for this state.
    fn draw(&mut self, when: When) -> &'static Fault {
        let deck = self.decks.entry(when).or_default();
        if deck.is_empty() {
            deck.extend(FAULTS.iter().filter(|fault| support::soak() || !fault.slow).filter(|fault| fault.promise(when).is_some()));
            deck.shuffle(&mut self.random);
        }
        deck.pop().unwrap()
    }

    async fn status(&self, name: &str) -> KindClusterStatus {
        self.host.clusters(NAMESPACE).get(name).await.unwrap().status.unwrap_or_default()
    }

    async fn victim(&self, name: &str) -> Victim<'a> {
        let cluster = self.host.clusters(NAMESPACE).get(name).await.unwrap();
        let pod = cluster.status.as_ref().and_then(|status| status.pod_ref.clone()).map(|pod| pod.name).unwrap_or_default();
        Victim { host: self.host, name: name.to_owned(), pod, uid: cluster.uid().unwrap() }
    }

    fn record(&mut self, fault: &'static Fault, when: When, begun: Instant) {
        let record = Record { fault: fault.name, when, promise: fault.promise(when).unwrap(), seconds: begun.elapsed().as_secs_f64() };
        println!("fault {}: {} while {when:?}: {:?} after {:.1} s", self.records.len() + 1, record.fault, record.promise, record.seconds);
        self.records.push(record);
    }

    /// Hits a cluster that is being created.
    async fn while_creating(&mut self, name: &str) {
        let fault = self.draw(When::Creating);
        condition(&self.host.clusters(NAMESPACE), name, HOST_READY, "True", None, CREATED).await;
        tokio::time::sleep(Duration::from_millis(self.random.random_range(0..8000))).await;
        let begun = Instant::now();
        while !(fault.inject)(&self.victim(name).await) {
            if is_true(&self.status(name).await.conditions, READY) {
                println!("{} found nothing to hit before the cluster was ready", fault.name);
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        // It may have become ready while it was hit: what was said before the fault proves nothing.
        tokio::time::sleep(NOTICED).await;
        let cluster = condition(&self.host.clusters(NAMESPACE), name, READY, "True", None, fault.within).await;
        if fault.promise(When::Creating) == Some(Promise::Kept) {
            assert_eq!(cluster.status.as_ref().unwrap().attempt, Some(1), "{}: {}", fault.name, describe(&cluster));
        }
        self.record(fault, When::Creating, begun);
    }

    /// Hits a cluster that is ready.
    async fn while_ready(&mut self, name: &str) {
        let fault = self.draw(When::Ready);
        self.host.ready(NAMESPACE, name).await;
        let before = self.status(name).await;
        let external = self.host.kubeconfig(NAMESPACE, name, "external").await;
        self.host.apply_outside(&external, &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": MARKER}}).to_string());
        let begun = Instant::now();
        assert!((fault.inject)(&self.victim(name).await), "{} found nothing to hit", fault.name);
        let kept = fault.promise(When::Ready) == Some(Promise::Kept);
        if kept {
            // What was said before the fault proves nothing.
            tokio::time::sleep(NOTICED).await;
        }
        until(&format!("{}: {name} to be back", fault.name), fault.within, async || {
            let cluster = self.host.clusters(NAMESPACE).get(name).await.map_err(|error| error.to_string())?;
            let status = cluster.status.clone().unwrap_or_default();
            let same = status.attempt == before.attempt && status.cluster_uid == before.cluster_uid;
            if !is_true(&status.conditions, READY) || same != kept {
                return Err(describe(&cluster));
            }
            let external = self.host.kubeconfig(NAMESPACE, name, "external").await;
            let maps = self.host.kubectl_outside(&external, &["get", "configmaps", "-o", "name", "--request-timeout=5s"])?;
            if maps.contains(MARKER) == kept { Ok(()) } else { Err(maps) }
        })
        .await;
        self.record(fault, When::Ready, begun);
    }

    /// Hits a cluster that is being deleted.
    async fn while_deleting(&mut self, name: &str) {
        let fault = self.draw(When::Deleting);
        let victim = self.victim(name).await;
        let uid = victim.uid.clone();
        let begun = Instant::now();
        self.host.clusters(NAMESPACE).delete(name, &DeleteParams::default()).await.unwrap();
        let pause = Duration::from_millis(self.random.random_range(0..3000));
        tokio::time::sleep(pause).await;
        let hit = (fault.inject)(&victim);
        gone(&self.host.clusters(NAMESPACE), name, fault.within.max(DELETED)).await;
        assert_eq!(self.host.children(&uid), Vec::<String>::new(), "{}", fault.name);
        if hit {
            self.record(fault, When::Deleting, begun);
        } else {
            println!("{} found nothing to hit before the cluster was gone", fault.name);
        }
    }
}

impl Fault {
    fn promise(&self, when: When) -> Option<Promise> {
        self.promises.iter().find(|(at, _)| *at == when).map(|(_, promise)| *promise)
    }
}

/// Has so many operators run, and no other.
async fn operators(host: &Host, replicas: usize) {
    host.kubectl(&["scale", "deployment", "nestling", "-n", OPERATOR_NAMESPACE, &format!("--replicas={replicas}")]);
    host.kubectl(&["rollout", "status", "deployment", "nestling", "-n", OPERATOR_NAMESPACE, "--timeout=120s"]);
    until(&format!("{replicas} operators"), Duration::from_mins(1), async || {
        let pods = host.kubectl(&["get", "pods", "-n", OPERATOR_NAMESPACE, "-l", "app.kubernetes.io/name=nestling", "-o", "name"]);
        if pods.lines().count() == replicas { Ok(()) } else { Err(pods) }
    })
    .await;
    if replicas == 0 {
        // A node's firewall learns a moment later than its pods are gone that nobody answers for a Service any more.
        until("the nodes to know of no operator", Duration::from_mins(1), async || {
            let rules = |node: &String| host.on_node(node, "iptables-save -t nat | grep ' -j DNAT ' | grep -F nestling-system/nestling || true");
            let known: String = host.nodes().iter().map(rules).collect();
            if known.is_empty() { Ok(()) } else { Err(known) }
        })
        .await;
    }
}

/// Gives the host its one operator back, also after a failure.
struct OneOperator<'a>(&'a Host);

impl Drop for OneOperator<'_> {
    fn drop(&mut self) {
        let _ = self.0.cluster.kubectl().args(["scale", "deployment", "nestling", "-n", OPERATOR_NAMESPACE, "--replicas=1"]).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_survived_and_leave_nothing() {
    let seed = support::seed();
    println!("seed {seed}");
    let host = Host::find().await;
    host.namespace(NAMESPACE).await;
    // What a host makes once and keeps is there after a first cluster. In a whole run there have been many.
    if std::env::var_os("NESTLING_TEST_WARM").is_none() {
        host.create(NAMESPACE, "first", json!({})).await;
        host.ready(NAMESPACE, "first").await;
        host.delete(NAMESPACE, "first").await;
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    // Some faults take the operator's own pods, and what comes in their place has other names.
    let _afterwards = OneOperator(&host);
    operators(&host, 0).await;
    let before = host.snapshot();
    operators(&host, 2).await;

    let mut suite = Suite { host: &host, random: StdRng::seed_from_u64(seed), records: Vec::new(), decks: BTreeMap::new() };
    let (wanted, ready_faults) = if support::soak() { (40, 3) } else { (3, 1) };
    let mut round = 0;
    while suite.records.len() < wanted && round < wanted {
        let name = format!("f{round}");
        host.create(NAMESPACE, &name, json!({"access": {"service": {"type": "NodePort"}}})).await;
        suite.while_creating(&name).await;
        for _ in 0..ready_faults {
            suite.while_ready(&name).await;
        }
        suite.while_deleting(&name).await;
        round += 1;
    }
    let records = std::mem::take(&mut suite.records);
    let faults: Vec<Value> = records
        .iter()
        .map(|record| {
            json!({"fault": record.fault, "when": format!("{:?}", record.when), "promise": format!("{:?}", record.promise), "seconds": record.seconds})
        })
        .collect();
    support::record("faults", &json!({"clusters": round, "faults": faults}));

    operators(&host, 0).await;
    until("the machine to be as before", Duration::from_mins(3), async || {
        let left = host.snapshot().difference(&before);
        if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
    })
    .await;
    operators(&host, 1).await;
    host.delete_namespace(NAMESPACE).await;
    assert!(records.len() >= wanted, "only {} faults were injected", records.len());
}
