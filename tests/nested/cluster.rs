//! One cluster, looked at from its pod, its nodes and the host's node. Each check fails where what it is about is not prevented: `inside.rs` expects that none does,
//! `preventions.rs` that those fail whose prevention is left out.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use nestling_core::api::annotations;
use nestling_core::plan::quantity::units;
use nestling_core::plan::wire::AgentSettings;
use serde_json::json;

use crate::secrets::WELL_KNOWN;
use crate::support::real::Host;
use crate::support::wait::until;

const SOON: Duration = Duration::from_mins(1);

/// Docker's bound on the log of a node.
const LOG_FILES: (usize, u64) = (3, 10_000_000);

/// The cluster of one pod.
pub struct Cluster<'a> {
    /// The host that it is on.
    pub host: &'a Host,
    /// Its pod.
    pub pod: Pod,
    /// What the pod was told.
    pub settings: AgentSettings,
    /// Its nodes, the control plane first.
    pub nodes: Vec<String>,
}

impl<'a> Cluster<'a> {
    /// The cluster of this pod.
    pub async fn of(host: &'a Host, namespace: &str, pod: &str) -> Self {
        let pod = host.pods(namespace).get(pod).await.unwrap();
        let settings: AgentSettings = serde_json::from_str(&pod.annotations()[annotations::SETTINGS]).unwrap();
        let mut cluster = Self { host, pod, settings, nodes: Vec::new() };
        let listed = cluster.pod("docker ps --all --format '{{.Names}}'");
        cluster.nodes = listed.lines().map(str::to_owned).collect();
        cluster.nodes.sort();
        cluster
    }

    /// Runs a script in the pod, beside the agent.
    pub fn pod(&self, script: &str) -> String {
        self.host.in_pod_of(&self.pod.namespace().unwrap(), &self.pod.name_any(), script)
    }

    /// Runs a script in a node.
    pub fn node(&self, node: &str, script: &str) -> String {
        self.host.in_node_of(&self.pod.namespace().unwrap(), &self.pod.name_any(), node, script)
    }

    /// Runs kubectl in the control plane's node, as kubeadm's administrator.
    pub fn kubectl(&self, arguments: &str) -> String {
        self.node(&self.nodes[0], &format!("kubectl --kubeconfig /etc/kubernetes/admin.conf {arguments}"))
    }

    /// Runs a script on the host's node that the pod is on.
    pub fn on_the_hosts_node(&self, script: &str) -> String {
        let node = self.pod.spec.as_ref().unwrap().node_name.clone().unwrap();
        self.host.on_node(&node, script)
    }
}

/// All nodes together offer no more memory than the pod may use.
pub fn nodes_offer_what_the_pod_has(cluster: &Cluster<'_>) {
    let allocatable = cluster.kubectl("get nodes -o jsonpath='{.items[*].status.allocatable.memory}'");
    let sum: i64 = allocatable.split_whitespace().map(|text| units(&Quantity(text.to_owned())).unwrap()).sum();
    assert!(sum > 0 && sum < cluster.settings.limits.memory_bytes, "{allocatable}");
}

/// A pod that asks for all that the cluster's own pod may use finds no node, however much memory the machine has.
pub async fn a_pod_as_large_as_the_cluster_stays_pending(cluster: &Cluster<'_>) {
    let container = json!({"name": "large", "image": "none", "imagePullPolicy": "Never",
        "resources": {"requests": {"memory": cluster.settings.limits.memory_bytes.to_string()}}});
    let overrides = json!({"spec": {"containers": [container]}});
    // Without it the API server takes no pods.
    cluster.kubectl("wait --for=create serviceaccount/default --timeout=60s");
    cluster.kubectl(&format!("run large --image=none --overrides='{overrides}'"));
    let scheduled = until("the scheduler to have looked at it", SOON, async || {
        let status = cluster.kubectl("get pod large -o jsonpath='{.status.conditions[?(@.type==\"PodScheduled\")].status}'");
        if status.is_empty() { Err(status) } else { Ok(status) }
    })
    .await;
    cluster.kubectl("delete pod large --now");
    assert_eq!(scheduled, "False");
}

/// Docker loads no profile into the machine's kernel.
pub fn profiles_of_the_host_are_left_alone(cluster: &Cluster<'_>) {
    assert_eq!(cluster.pod("tr '\\0' '\\n' < /proc/$(pgrep -x dockerd)/environ | grep ^container="), "container=docker");
    assert_eq!(cluster.pod("grep -c securityfs /proc/self/mountinfo || true"), "0");
    let context = cluster.pod.spec.as_ref().unwrap().containers[0].security_context.clone().unwrap();
    assert_eq!(context.app_armor_profile.unwrap().type_, "Unconfined");
}

/// An fsync would protect what lives and dies with the pod.
pub fn etcd_does_not_wait_for_the_disk(cluster: &Cluster<'_>) {
    assert!(cluster.node(&cluster.nodes[0], "tr '\\0' '\\n' < /proc/$(pgrep -x etcd)/cmdline").lines().any(|argument| argument == "--unsafe-no-fsync=true"));
}

/// A pod that asks where no Service is (any more, or yet: kube-proxy begins when pods do) hears so at once.
pub fn what_has_no_service_is_refused(cluster: &Cluster<'_>, kubeconfig: &str, node: &str) {
    let address = cluster.settings.network.services.broadcast();
    let script = format!("curl -sS --connect-timeout 10 http://{address}/ 2>&1 || true");
    let said = cluster.host.run_nested(kubeconfig, Some(node), &["bash", "-c", &script]);
    // Not (28), its time is over.
    assert!(said.contains("curl: (7) "), "{said}");
}

/// The log of a node turns over.
pub async fn logs_are_bounded(cluster: &Cluster<'_>) {
    let node = cluster.nodes.last().unwrap();
    // More than all files together may hold, by way of the node's console.
    cluster.node(node, "yes \"$(printf '%0999d' 7)\" | head -c 45000000 > /dev/console");
    until("the log to have turned over", SOON, async || {
        let sizes = cluster.pod(&format!("stat -c %s $(docker inspect --format '{{{{.LogPath}}}}' {node})*"));
        let sizes: Vec<u64> = sizes.lines().map(|size| size.parse().unwrap()).collect();
        assert!(sizes.len() <= LOG_FILES.0 && sizes.iter().all(|size| *size < LOG_FILES.1 + 100_000), "{sizes:?}");
        if sizes.len() == LOG_FILES.0 { Ok(()) } else { Err(format!("{sizes:?}")) }
    })
    .await;
}

/// Nodes look names up as they are.
pub fn no_name_is_looked_up_in_the_hosts_domains(cluster: &Cluster<'_>) {
    let search = |text: &str| text.lines().find_map(|line| line.strip_prefix("search ")).unwrap_or_default().trim_matches('.').to_owned();
    assert!(search(&cluster.pod("cat /etc/resolv.conf")).contains(&cluster.pod.namespace().unwrap()), "the pod itself looks there");
    for node in &cluster.nodes {
        assert_eq!(search(&cluster.node(node, "cat /etc/resolv.conf")), "", "{node}");
    }
}

/// Docker makes no network of its own choice.
pub fn a_further_network_is_refused(cluster: &Cluster<'_>) {
    assert!(cluster.pod("docker network create further 2>&1 && docker network rm further || true").contains("non-overlapping"));
}

/// The token that nodes join with is not the one that everybody knows.
pub fn the_token_is_not_kinds(cluster: &Cluster<'_>) {
    let written = cluster.node(&cluster.nodes[0], "cat /kind/kubeadm.conf");
    assert!(written.contains("bootstrapTokens") && !written.contains(WELL_KNOWN));
}

/// Once all nodes have joined there is no token that a further one could join with.
pub async fn no_token_is_left(cluster: &Cluster<'_>) {
    until("the bootstrap token to be gone", SOON, async || {
        let left = cluster.kubectl("get secrets -n kube-system --field-selector type=bootstrap.kubernetes.io/token -o name");
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

/// The agent does not know where the host's API is.
pub fn the_agent_knows_of_no_api(cluster: &Cluster<'_>) {
    let environment = cluster.pod("tr '\\0' '\\n' < /proc/$(pgrep -P 1 -f 'agent --supervised')/environ");
    assert!(environment.contains("PATH=") && !environment.contains("KUBERNETES_"), "{environment}");
}

/// A process whose parent has ended leaves nothing when it ends itself.
pub async fn orphans_leave_no_zombies(cluster: &Cluster<'_>) {
    cluster.pod("(sleep 0.5 &) && sleep 1");
    until("zombies to go", Duration::from_secs(10), async || {
        let zombies = cluster.pod("cat /proc/[0-9]*/stat 2>/dev/null | grep -E '^[0-9]+ \\(sleep\\) Z ' || true");
        if zombies.is_empty() { Ok(()) } else { Err(zombies) }
    })
    .await;
}
