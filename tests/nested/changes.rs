//! What changes in a cluster that runs: the names in its API server's certificate, all certificates, and at last the cluster itself. One real cluster for all
//! three, with the kubeconfig that was published first in use to the end.

use std::time::{Duration, Instant};

use crate::support::operator::CLUSTERS_NAMESPACE;
use crate::support::real::{CREATED, Host, spec};
use crate::support::wait::{condition, until};
use nestling_core::api::KindClusterStatus;
use nestling_core::api::conditions::{CERTIFICATES_VALID, READY, UP_TO_DATE, get};
use serde_json::json;

const NAMESPACE: &str = "t-changes";
const NAME: &str = "chameleon";
const NODE: &str = "chameleon-control-plane";
const NEW_NAME: &str = "api.chameleon.example";

/// Longest that the API may be away for whoever asks again every second.
const GAP: Duration = Duration::from_secs(20);

/// Longest until a change of the names is carried out, on a machine that does other things as well.
const NAMED: Duration = Duration::from_mins(1);

/// Longest until everything is renewed.
const RENEWED: Duration = Duration::from_mins(3);

struct Changes<'a> {
    host: &'a Host,
    pod: String,
    /// The kubeconfig as it was published first.
    external: String,
}

impl Changes<'_> {
    async fn status(&self) -> KindClusterStatus {
        self.host.clusters(NAMESPACE).get(NAME).await.unwrap().status.unwrap_or_default()
    }

    fn in_node(&self, script: &str) -> String {
        self.host.in_node(&self.pod, NODE, script)
    }

    /// Asks the API under a name, with strict TLS.
    fn ask_as(&self, name: &str) -> Result<String, String> {
        let lines: Vec<String> = self
            .external
            .lines()
            .map(|line| match line.split_once("tls-server-name:") {
                Some((before, _)) => format!("{before}tls-server-name: {name}"),
                None => line.to_owned(),
            })
            .collect();
        let kubeconfig = lines.join("\n");
        assert!(kubeconfig.contains(name));
        self.host.kubectl_outside(&kubeconfig, &["get", "--raw", "/readyz"]).map(|said| said.trim().to_owned())
    }

    /// The serial number of the certificate that the API server shows at this moment.
    fn shown(&self) -> String {
        self.in_node("openssl s_client -connect 127.0.0.1:6443 </dev/null 2>/dev/null | openssl x509 -noout -serial")
    }

    /// Serial numbers and names of all certificates in the files, one per line.
    fn files(&self) -> Vec<String> {
        let script = "cd /etc/kubernetes; for file in pki/apiserver.crt pki/apiserver-kubelet-client.crt pki/front-proxy-client.crt pki/apiserver-etcd-client.crt \
            pki/etcd/server.crt pki/etcd/peer.crt pki/etcd/healthcheck-client.crt; do echo $file $(openssl x509 -noout -serial -in $file); done; \
            for file in admin.conf controller-manager.conf scheduler.conf; do \
            echo $file $(grep client-certificate-data $file | cut -d: -f2 | tr -d ' ' | base64 -d | openssl x509 -noout -serial); done";
        self.in_node(script).lines().map(str::to_owned).collect()
    }

    /// How often containers of the control plane were started.
    fn restarts(&self, component: &str) -> String {
        let path = format!("jsonpath={{.items[?(@.metadata.labels.component==\"{component}\")].status.containerStatuses[0].restartCount}}");
        self.host.kubectl_outside(&self.external, &["get", "pods", "-n", "kube-system", "-o", &path]).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_certificates_and_at_last_the_cluster_itself_change() {
    let host = Host::find().await;
    host.namespace(NAMESPACE).await;
    host.create(NAMESPACE, NAME, spec("{access: {service: {type: NodePort}, certSANs: [first.example, 192.0.2.7]}}")).await;
    let before = host.ready(NAMESPACE, NAME).await.status.unwrap();
    let changes = Changes { host: &host, pod: before.pod_ref.clone().unwrap().name, external: host.kubeconfig(NAMESPACE, NAME, "external").await };
    for name in ["first.example", "192.0.2.7"] {
        assert_eq!(changes.ask_as(name).unwrap(), "ok", "{name}");
    }

    a_name_comes_and_another_goes(&changes).await;
    everything_is_renewed(&changes).await;
    assert_eq!(changes.status().await.pod_ref, before.pod_ref, "the pod was replaced");
    the_cluster_is_replaced(&changes, &before).await;

    host.delete(NAMESPACE, NAME).await;
    host.delete_namespace(NAMESPACE).await;
}

/// Within seconds, without a restart, and so that a node that repairs itself does not undo it.
async fn a_name_comes_and_another_goes(changes: &Changes<'_>) {
    let refused = changes.ask_as(NEW_NAME).unwrap_err();
    assert!(refused.contains("certificate"), "{refused}");
    let (restarts, started) = (changes.restarts("kube-apiserver"), Instant::now());
    changes.host.patch(NAMESPACE, NAME, json!({"spec": {"access": {"certSANs": [NEW_NAME, "192.0.2.7"]}}})).await;
    until("the new name to verify", NAMED, async || changes.ask_as(NEW_NAME)).await;
    println!("a new name verified after {:.1} s", started.elapsed().as_secs_f64());
    let api = changes.host.clusters(NAMESPACE);
    until("the status to say so", NAMED, async || {
        let cluster = api.get(NAME).await.unwrap();
        let condition = get(&cluster.status.unwrap_or_default().conditions, UP_TO_DATE).cloned().unwrap();
        if condition.status == "True" && condition.observed_generation == cluster.metadata.generation { Ok(()) } else { Err(format!("{condition:?}")) }
    })
    .await;
    assert!(changes.ask_as("first.example").unwrap_err().contains("certificate"), "a name that was taken away is still there");
    assert_eq!(changes.ask_as("192.0.2.7").unwrap(), "ok");
    let configuration = changes.in_node("cat /kind/kubeadm.conf");
    assert!(configuration.contains(NEW_NAME) && !configuration.contains("first.example"), "{configuration}");
    assert_eq!(changes.restarts("kube-apiserver"), restarts, "the API server was started anew for a name");
}

/// All files and what the API server shows; who holds the kubeconfig hardly notices.
async fn everything_is_renewed(changes: &Changes<'_>) {
    let (files, shown, started) = (changes.files(), changes.shown(), Instant::now());
    let restarts = |components: [&str; 2]| components.map(|component| changes.restarts(component));
    let components = ["kube-scheduler", "kube-controller-manager"];
    let restarted = restarts(components);
    assert!(files.len() == 10 && files.iter().all(|line| line.contains(" serial=")), "{files:?}");
    changes.host.in_pod(&changes.pod, "touch /run/nestling/renew-certificates");
    let (mut away, mut longest) = (None, Duration::ZERO);
    until("everything to be renewed", RENEWED, async || {
        match changes.host.kubectl_outside(&changes.external, &["get", "--raw", "/readyz"]) {
            Ok(_) => away = None,
            Err(_) => longest = longest.max(away.get_or_insert_with(Instant::now).elapsed()),
        }
        let left: Vec<String> = changes.files().into_iter().filter(|line| files.contains(line)).collect();
        let now = changes.shown();
        if left.is_empty() && now != shown && !now.is_empty() { Ok(()) } else { Err(format!("{left:?} {now}")) }
    })
    .await;
    println!("all certificates were renewed after {:.1} s; the API was away for {:.1} s at most", started.elapsed().as_secs_f64(), longest.as_secs_f64());
    assert!(longest < GAP, "the API did not answer for {longest:?}");
    assert_eq!(changes.ask_as(NEW_NAME).unwrap(), "ok", "a renewed certificate keeps its names");
    let nodes = until("the node to be ready", RENEWED, async || {
        let nodes = changes.host.kubectl_outside(&changes.external, &["get", "nodes", "--no-headers"])?;
        if nodes.contains(" Ready ") { Ok(nodes) } else { Err(nodes) }
    })
    .await;
    assert!(nodes.contains(NODE));
    until("the components to be started anew", RENEWED, async || {
        let now = restarts(components);
        if (0..2).all(|index| now[index] != restarted[index]) { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    // Both work with their new credentials: a Deployment gets a pod, and the pod a node.
    let outside = |arguments: &[&str]| changes.host.kubectl_outside(&changes.external, arguments);
    outside(&["create", "deployment", "renewed", "--image=none"]).unwrap();
    until("the pod to be scheduled", RENEWED, async || {
        let on = outside(&["get", "pods", "-l", "app=renewed", "-o", "jsonpath={.items[*].spec.nodeName}"])?;
        if on == NODE { Ok(()) } else { Err(on) }
    })
    .await;
    outside(&["delete", "deployment", "renewed"]).unwrap();
    condition(&changes.host.clusters(NAMESPACE), NAME, CERTIFICATES_VALID, "True", Some("CertificatesInTime"), RENEWED).await;
}

/// Another cluster under the same address; as its keys are the same, the kubeconfig goes on working.
async fn the_cluster_is_replaced(changes: &Changes<'_>, before: &KindClusterStatus) {
    changes.host.kubectl_outside(&changes.external, &["create", "configmap", "marker"]).unwrap();
    changes.host.patch(NAMESPACE, NAME, json!({"metadata": {"annotations": {"nestling.dev/recreate": "now"}}})).await;
    let after = until("the new cluster", CREATED, async || {
        let status = changes.status().await;
        let ready = get(&status.conditions, READY).is_some_and(|ready| ready.status == "True");
        if ready && status.cluster_uid != before.cluster_uid { Ok(status) } else { Err(format!("{:?}", status.conditions)) }
    })
    .await;
    assert_eq!((after.endpoints, after.attempt, after.last_failure), (before.endpoints.clone(), before.attempt.map(|attempt| attempt + 1), None));
    assert_ne!(after.pod_ref.map(|pod| pod.name), Some(changes.pod.clone()));
    let marker = changes.host.kubectl_outside(&changes.external, &["get", "configmap", "marker"]).unwrap_err();
    assert!(marker.contains("NotFound"), "{marker}");
    let events = changes.host.kubectl(&["get", "events", "-n", NAMESPACE, "-o", "jsonpath={.items[*].reason}"]);
    assert!(events.contains("Recreating") && events.contains("ClusterReplaced"), "{events}");
    let left = changes.host.kubectl(&["get", "pods", "-n", CLUSTERS_NAMESPACE, "-l", "nestling.dev/cluster-name=chameleon", "-o", "name"]);
    assert!(left.lines().count() <= 2, "{left}");
}
