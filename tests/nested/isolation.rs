//! What a nested cluster can reach and who reaches its pod: the egress guard and the NetworkPolicy, each with the other one out of the way.

use std::time::Duration;

use crate::support::operator::CLUSTERS_NAMESPACE;
use crate::support::real::{Host, TOOLS, privileged_pod, spec};
use crate::support::wait::{condition, until};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use nestling_core::api::conditions::{HOST_READY, NETWORK_POLICY_ENFORCED, PAUSED, READY};
use nestling_core::api::{KindCluster, conditions};
use serde_json::json;

const SOON: Duration = Duration::from_mins(1);

/// Addresses that this test gives to a node of the host: metadata as clouds have it, and two of the host's Service range, of which the chart's
/// `egress.allowedCIDRs` names the first (`xtask/src/test.rs`).
const ADDRESSES: [&str; 3] = [METADATA, EXCEPTION, UNNAMED];
const METADATA: &str = "169.254.169.254";
const EXCEPTION: &str = "10.96.77.77";
const UNNAMED: &str = "10.96.77.78";

/// Ports of the pod that may be open to others: the front door, the agent, its health.
const DOORS: [&str; 3] = ["6443", "7443", "7480"];

/// Ends with `yes` or `no`.
pub fn attempt(address: &str, port: u16) -> String {
    format!("timeout 4 bash -c '</dev/tcp/{address}/{port}' 2>/dev/null && echo yes || echo no")
}

/// The servers that nested workloads must not reach, or may. The host's node holds the addresses as long as this lives.
struct Servers<'a> {
    host: &'a Host,
    node: String,
}

impl<'a> Servers<'a> {
    async fn start(host: &'a Host, namespace: &str) -> Self {
        let servers = Self { host, node: host.nodes()[0].clone() };
        for address in ADDRESSES {
            servers.address("replace", address).unwrap();
        }
        let serve = ADDRESSES.map(|address| format!("busybox httpd -p {address}:80 -h /tmp")).join(" && ");
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "servers"},
            "spec": {
                "hostNetwork": true, "nodeName": servers.node, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
                "containers": [{
                    "name": "servers", "image": TOOLS, "imagePullPolicy": "Never",
                    "command": ["bash", "-ec", format!("{serve} && exec sleep infinity")],
                }],
            },
        }))
        .unwrap();
        // Refused until the new namespace has its service account.
        let pods = host.pods(namespace);
        until("the servers' pod", SOON, async || pods.create(&PostParams::default(), &pod).await.map(drop).map_err(|error| error.to_string())).await;
        servers
    }

    fn address(&self, verb: &str, address: &str) -> anyhow::Result<String> {
        self.host.cluster.docker().run(&["exec", &self.node, "ip", "address", verb, &format!("{address}/32"), "dev", "lo"])
    }
}

impl Drop for Servers<'_> {
    fn drop(&mut self) {
        for address in ADDRESSES {
            let _ = self.address("delete", address);
        }
    }
}

/// Two pods that a nested administrator may start: a privileged one, and one in the network of its node.
fn nested_pods(kubeconfig: &str, host: &Host) {
    let pod = |name: &str, host_network: bool| privileged_pod(name, host_network, "sleep infinity");
    host.apply_outside(kubeconfig, &json!({"apiVersion": "v1", "kind": "List", "items": [pod("inside", false), pod("on-node", true)]}).to_string());
    host.kubectl_outside(kubeconfig, &["wait", "pod", "inside", "on-node", "--for=condition=Ready", "--timeout=120s"]).unwrap();
}

/// One cluster of the test.
struct Subject {
    pod: Pod,
    service: Service,
}

impl Subject {
    async fn of(host: &Host, cluster: &KindCluster) -> Self {
        let pod = host.pods(CLUSTERS_NAMESPACE).get(&cluster.status.as_ref().unwrap().pod_ref.as_ref().unwrap().name).await.unwrap();
        let services: Api<Service> = Api::namespaced(host.client.clone(), CLUSTERS_NAMESPACE);
        let labelled = format!("nestling.dev/cluster-uid={}", cluster.uid().unwrap());
        let service = services.list(&ListParams::default().labels(&labelled)).await.unwrap().items.remove(0);
        Self { pod, service }
    }

    fn pod_address(&self) -> String {
        self.pod.status.as_ref().unwrap().pod_ip.clone().unwrap()
    }

    fn service_address(&self) -> String {
        self.service.spec.as_ref().unwrap().cluster_ip.clone().unwrap()
    }

    /// Runs a script in the pod itself, beside the agent.
    fn beside_the_agent(&self, host: &Host, script: &str) -> String {
        host.in_pod(&self.pod.name_any(), script)
    }
}

/// Who can be reached from a nested pod.
fn reached(host: &Host, kubeconfig: &str, from: &str, address: &str, port: u16) -> bool {
    host.kubectl_outside(kubeconfig, &["exec", from, "--", "bash", "-c", &attempt(address, port)]).unwrap().trim() == "yes"
}

#[tokio::test(flavor = "multi_thread")]
async fn nested_workloads_do_not_reach_the_host() {
    let host = Host::find().await;
    host.namespace("t-isolation").await;
    let servers = Servers::start(&host, "t-isolation").await;
    for name in ["subject", "other"] {
        host.create("t-isolation", name, spec("{access: {service: {type: NodePort}}}")).await;
    }
    let cluster = host.ready("t-isolation", "subject").await;
    let subject = Subject::of(&host, &cluster).await;
    let other = Subject::of(&host, &host.ready("t-isolation", "other").await).await;
    let external = host.kubeconfig("t-isolation", "subject", "external").await;
    nested_pods(&external, &host);

    let api = host.api_address();
    let node = host.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].status.addresses[?(@.type=='InternalIP')].address}"]);
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let registry = host.cluster.docker().run(&["inspect", "--format", format, "nestling-lab-registry"]).unwrap().trim().to_owned();
    let (other_pod, other_service) = (other.pod_address(), other.service_address());
    let forbidden: [(&str, u16); 7] = [(&api, 443), (&node, 6443), (&node, 10250), (&other_pod, 6443), (&other_service, 6443), (METADATA, 80), (UNNAMED, 80)];

    // All of it is there: a pod of the host that no policy binds reaches it.
    let script: Vec<String> = forbidden.iter().chain(&[(EXCEPTION, 80)]).map(|(address, port)| attempt(address, *port)).collect();
    until("the servers to serve", SOON, async || {
        let seen = host.visit("t-isolation", "subject-kubeconfig", &script.join("; ")).await?;
        if seen.contains("no") { Err(seen) } else { Ok(()) }
    })
    .await;

    // Neither a privileged pod nor one in its node's network does; names, exceptions and the world are open to both.
    for from in ["inside", "on-node"] {
        for (address, port) in forbidden {
            assert!(!reached(&host, &external, from, address, port), "{from} reaches {address}:{port}");
        }
        for (address, port) in [(EXCEPTION, 80), (registry.as_str(), 5000)] {
            assert!(reached(&host, &external, from, address, port), "{from} does not reach {address}:{port}");
        }
    }
    let name = format!("{}.{CLUSTERS_NAMESPACE}.svc.cluster.local", other.service.name_any());
    let found = host.kubectl_outside(&external, &["exec", "on-node", "--", "getent", "hosts", &name]).unwrap();
    assert!(found.contains(&other_service), "the host's names are not resolved: {found}");

    // Nobody but the agent listens to others, least of all Docker.
    let listening = subject.beside_the_agent(&host, "ss -Hltn");
    let local = listening.lines().filter_map(|line| line.split_whitespace().nth(3));
    let doors: Vec<&str> = local.filter(|local| !local.starts_with("127.")).filter_map(|local| local.rsplit(':').next()).collect();
    assert!(!doors.is_empty() && doors.iter().all(|port| DOORS.contains(port)), "{listening}");
    let visit = [2375, 2376].map(|port| attempt(&subject.pod_address(), port)).join("; ");
    assert!(!host.visit("t-isolation", "subject-kubeconfig", &visit).await.unwrap().contains("yes"));

    let ready = conditions::get(&cluster.status.as_ref().unwrap().conditions, HOST_READY).unwrap().clone();
    assert!(!ready.message.contains("guard"), "{}", ready.message);

    layers(&host, &subject, &external, &api).await;

    drop(servers);
    let deletions = ["subject", "other"].map(|name| host.delete("t-isolation", name));
    futures::future::join_all(deletions).await;
    host.delete_namespace("t-isolation").await;
}

/// Takes one layer away, then the other, and looks at what each of them holds back alone.
async fn layers(host: &Host, subject: &Subject, external: &str, api: &str) {
    let clusters = host.clusters("t-isolation");
    let policies: Api<NetworkPolicy> = Api::namespaced(host.client.clone(), CLUSTERS_NAMESPACE);
    let agent_reaches_the_api = || subject.beside_the_agent(host, &attempt(api, 443)) == "yes";
    let visit = async |port: u16| host.visit("t-isolation", "subject-kubeconfig", &attempt(&subject.pod_address(), port)).await.unwrap().trim().to_owned();

    // The policy, seen from the pod itself, which the guard does not bind; and towards the pod.
    condition(&clusters, "subject", NETWORK_POLICY_ENFORCED, "True", Some("ProbeBlocked"), Duration::from_mins(3)).await;
    assert!(!agent_reaches_the_api(), "the policy does not hold the pod back");
    assert_eq!((visit(6443).await.as_str(), visit(7443).await.as_str()), ("yes", "no"), "who may talk to the pod");

    // Without its own policy the default of the namespace cuts the pod off.
    host.patch("t-isolation", "subject", json!({"spec": {"paused": true}})).await;
    condition(&clusters, "subject", PAUSED, "True", None, SOON).await;
    let own = subject.service.name_any();
    policies.delete(&own, &DeleteParams::default()).await.unwrap();
    until("the front door to close", SOON, async || if visit(6443).await == "no" { Ok(()) } else { Err("open".into()) }).await;

    // Without any policy the pod reaches the host's API, and nested pods still do not: that is the guard alone.
    let mut default = policies.get("default-deny").await.unwrap();
    policies.delete("default-deny", &DeleteParams::default()).await.unwrap();
    until("the pod to reach the host's API", SOON, async || if agent_reaches_the_api() { Ok(()) } else { Err("blocked".into()) }).await;
    assert_eq!(visit(7443).await, "yes");
    let nested_reach = || ["inside", "on-node"].map(|from| reached(host, external, from, api, 443));
    let with_the_guard = nested_reach();

    // Without the guard as well nothing holds them: the proof that it did.
    subject.beside_the_agent(host, "/run/nestling/bin/iptables --wait -t mangle -F NESTLING-EGRESS");
    let with_nothing = nested_reach();

    // Restored before anything is judged: other tests share the namespace.
    default.metadata = kube::api::ObjectMeta {
        name: default.metadata.name,
        labels: default.metadata.labels,
        annotations: default.metadata.annotations,
        ..kube::api::ObjectMeta::default()
    };
    policies.create(&PostParams::default(), &default).await.unwrap();
    host.patch("t-isolation", "subject", json!({"spec": {"paused": false}})).await;
    assert_eq!((with_the_guard, with_nothing), ([false, false], [true, true]), "(with the guard, without it)");
    until("the policy to come back", SOON, async || policies.get_opt(&own).await.map_err(|error| error.to_string())?.map(drop).ok_or_else(String::new)).await;
    condition(&clusters, "subject", READY, "True", None, SOON).await;
    until("the policy to hold the pod back again", SOON, async || if agent_reaches_the_api() { Err("open".into()) } else { Ok(()) }).await;
}
