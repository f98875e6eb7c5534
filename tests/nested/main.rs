//! The product: real nested clusters in a real host cluster, with the operator under its own service account. These run side by side; what must be alone
//! on the machine is in `solo.rs`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may end so")]

mod balancers;
mod changes;
mod clients;
mod cluster;
mod contents;
mod failures;
mod golden;
mod high_availability;
mod images;
mod inside;
mod isolation;
mod losses;
mod newer;
mod ports;
mod power;
mod preventions;
mod registries;
mod resume;
mod secrets;
mod storage;
#[path = "../support/mod.rs"]
mod support;
mod verbs;
mod volume;

use std::time::Duration;

use cluster::{Cluster, nodes_offer_what_the_pod_has, what_has_no_service_is_refused};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use nestling_core::api::conditions::{CONTROL_PLANE_READY, DISK_PRESSURE, EXPIRING, KUBECONFIG_PUBLISHED, PAUSED, READY, STALLED};
use serde_json::json;
use support::operator::CLUSTERS_NAMESPACE;
use support::real::{CREATED, DELETED, Host, TOOLS, spec};
use support::wait::{condition, gone, until};

const SOON: Duration = Duration::from_mins(1);

/// A web server with a claim on the default StorageClass, and a Service in front.
fn workload() -> String {
    format!(
        r"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: page}}
spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 10Mi}}}}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 0
      volumes: [{{name: page, persistentVolumeClaim: {{claimName: page}}}}]
      containers:
      - name: web
        image: {TOOLS}
        imagePullPolicy: Never
        command: [bash, -ec, 'echo served-from-a-claim > /page/index.html; exec busybox httpd -f -p 8080 -h /page']
        readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
        volumeMounts: [{{name: page, mountPath: /page}}]
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
"
    )
}

/// Runs the workload, and asks for its page by the Service's name, from a pod on this node (any, if `None`).
fn serves_by_name(host: &Host, kubeconfig: &str, node: Option<&str>) {
    host.apply_outside(kubeconfig, &workload());
    host.kubectl_outside(kubeconfig, &["rollout", "status", "deployment/web", "--timeout=120s"]).unwrap();
    // Short tries: one that asks a name server which has gone would wait longer and longer for it, minutes in all.
    let patience = ["-sS", "--max-time", "5", "--retry", "40", "--retry-delay", "1", "--retry-max-time", "110", "--retry-all-errors"];
    let page = host.run_nested(kubeconfig, node, &[&["curl"], &patience[..], &["http://web.default.svc.cluster.local/"]].concat());
    assert!(page.contains("served-from-a-claim"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_serves_workloads_and_is_reached_from_inside_and_outside() {
    let host = Host::find().await;
    host.namespace("t-one").await;
    host.namespace("t-one-visitor").await;
    let wish = spec(
        r"
access: {service: {type: NodePort}}
config:
  kind: Cluster
  apiVersion: kind.x-k8s.io/v1alpha4
  name: pasted
  featureGates: {InPlacePodVerticalScalingAllocatedStatus: true}
  nodes:
  - role: control-plane
    labels: {tier: gold}
",
    );
    host.create("t-one", "crane", wish).await;
    let cluster = host.ready("t-one", "crane").await;

    // From outside the host cluster, over the NodePort, with strict TLS.
    let external = host.kubeconfig("t-one", "crane", "external").await;
    assert!(external.contains("kind-crane"), "the context is named as kind names it");
    let nodes = host.kubectl_outside(&external, &["get", "nodes", "-L", "tier", "--no-headers"]).unwrap();
    assert!(nodes.contains(" Ready ") && nodes.contains("gold"), "{nodes}");
    let metrics = host.kubectl_outside(&external, &["get", "--raw", "/metrics"]).unwrap();
    assert!(
        metrics.lines().any(|line| line.starts_with("kubernetes_feature_enabled{name=\"InPlacePodVerticalScalingAllocatedStatus\"") && line.ends_with(" 1")),
        "the feature gate of config is not seen"
    );
    let wrong_name = external.replace("tls-server-name: c-", "tls-server-name: x-");
    assert_ne!(wrong_name, external);
    let refused = host.kubectl_outside(&wrong_name, &["get", "nodes"]).unwrap_err();
    assert!(refused.contains("certificate"), "{refused}");
    assert!(host.kubectl_outside(&external, &["auth", "whoami"]).unwrap().contains("nestling:cluster-admins"));

    serves_by_name(&host, &external, None);

    // From a pod of another namespace that has nothing but the Secret.
    let secret: Secret = Api::namespaced(host.client.clone(), "t-one").get("crane-kubeconfig").await.unwrap();
    assert_eq!(secret.type_.as_deref(), Some("cluster.x-k8s.io/secret"));
    assert_eq!(secret.metadata.labels.as_ref().unwrap()["cluster.x-k8s.io/cluster-name"], "crane");
    let copy = Secret { metadata: kube::api::ObjectMeta { name: Some("copied".into()), ..Default::default() }, data: secret.data, ..Secret::default() };
    Api::<Secret>::namespaced(host.client.clone(), "t-one-visitor").create(&PostParams::default(), &copy).await.unwrap();
    let seen = host.visit("t-one-visitor", "copied", "kubectl get nodes --no-headers; kubectl get --raw /readyz").await.unwrap();
    assert!(seen.contains("crane-control-plane") && seen.contains("ok"), "{seen}");

    // No credential of the host in the pod, and nothing in its logs that should not be there.
    let pod = cluster.status.unwrap().pod_ref.unwrap().name;
    let inside = host.in_pod(&pod, "ls /var/run/secrets/kubernetes.io 2>&1; env | grep ^KUBERNETES_");
    assert!(inside.contains("No such file"), "{inside}");
    assert!(
        inside
            .lines()
            .filter(|line| line.starts_with("KUBERNETES_SERVICE_"))
            .filter(|line| line.contains("HOST=") || line.contains("PORT="))
            .all(|line| line.ends_with('=')),
        "{inside}"
    );
    let logs = host.kubectl(&["logs", "-n", CLUSTERS_NAMESPACE, &pod]);
    assert!(!logs.contains("PRIVATE KEY") && !logs.contains("client-key-data"), "secrets in the logs");

    host.delete("t-one", "crane").await;
    for namespace in ["t-one", "t-one-visitor"] {
        host.delete_namespace(namespace).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_become_ready() {
    let host = Host::find().await;
    host.namespace("t-three").await;
    host.create("t-three", "trio", spec("{nodes: {workers: 2}, access: {service: {type: NodePort}}}")).await;
    let cluster = host.ready("t-three", "trio").await;
    let status = cluster.status.unwrap();
    assert_eq!(status.nodes_ready.as_deref(), Some("3/3"));
    assert_eq!((status.control_planes.unwrap().total, status.workers.unwrap().total), (1, 2));
    let external = host.kubeconfig("t-three", "trio", "external").await;
    // A pod of each worker hears the Service, wherever it is served.
    for node in ["trio-worker", "trio-worker2"] {
        serves_by_name(&host, &external, Some(node));
    }
    let trio = Cluster::of(&host, CLUSTERS_NAMESPACE, &status.pod_ref.unwrap().name).await;
    nodes_offer_what_the_pod_has(&trio);
    what_has_no_service_is_refused(&trio, &external, "trio-worker");
    host.delete("t-three", "trio").await;
    host.delete_namespace("t-three").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_do_not_collide_and_a_foreign_secret_survives() {
    let host = Host::find().await;
    host.namespace("a").await;
    host.namespace("a--b").await;
    let foreign: Secret = serde_json::from_value(json!({"metadata": {"name": "c-kubeconfig"}, "stringData": {"value": "theirs"}})).unwrap();
    let secrets: Api<Secret> = Api::namespaced(host.client.clone(), "a");
    secrets.create(&PostParams::default(), &foreign).await.unwrap();

    // The same name in two namespaces, and two that a careless separator would make one.
    let all = [("a", "b--c"), ("a--b", "c"), ("a", "c")];
    for (namespace, name) in all {
        host.create(namespace, name, json!({})).await;
    }
    condition(&host.clusters("a"), "c", KUBECONFIG_PUBLISHED, "False", Some("KubeconfigSecretConflict"), CREATED).await;
    condition(&host.clusters("a"), "c", READY, "False", Some("KubeconfigSecretConflict"), SOON).await;
    assert_eq!(secrets.get("c-kubeconfig").await.unwrap().data.unwrap()["value"].0, b"theirs");
    secrets.delete("c-kubeconfig", &DeleteParams::default()).await.unwrap();
    for (namespace, name) in all {
        host.ready(namespace, name).await;
        let seen = host.visit(namespace, &format!("{name}-kubeconfig"), "kubectl get nodes --no-headers").await.unwrap();
        assert!(seen.contains(&format!("{name}-control-plane")), "{seen}");
    }
    let deletions = all.map(|(namespace, name)| host.delete(namespace, name));
    futures::future::join_all(deletions).await;
    for namespace in ["a", "a--b"] {
        host.delete_namespace(namespace).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cni_the_control_plane_is_ready_first() {
    let host = Host::find().await;
    host.namespace("t-cni").await;
    host.create("t-cni", "bare", spec("{config: {networking: {disableDefaultCNI: true, podSubnet: 10.200.0.0/16}}, access: {service: {type: NodePort}}}"))
        .await;
    let api = host.clusters("t-cni");
    condition(&api, "bare", CONTROL_PLANE_READY, "True", None, CREATED).await;
    condition(&api, "bare", READY, "False", Some("WaitingForNodes"), SOON).await;
    condition(&api, "bare", KUBECONFIG_PUBLISHED, "True", None, SOON).await;
    // The user brings a CNI: here the one that kind would have installed, from the node image.
    let external = host.kubeconfig("t-cni", "bare", "external").await;
    let manifest = host.cluster.docker().run(&["exec", &host.nodes()[0], "cat", "/kind/manifests/default-cni.yaml"]).unwrap();
    host.apply_outside(&external, &manifest.replace("{{ .PodSubnet }}", "10.200.0.0/16"));
    host.ready("t-cni", "bare").await;
    host.delete("t-cni", "bare").await;
    host.delete_namespace("t-cni").await;
}

/// A pod of a nested cluster that runs a script and leaves what it wrote behind in a volume of its own.
fn job(name: &str, memory: &str, script: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "volumes": [{"name": "data", "emptyDir": {}}],
            "containers": [{
                "name": "job", "image": TOOLS, "imagePullPolicy": "Never", "command": ["bash", "-ec", script],
                "resources": {"requests": {"memory": memory}}, "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }],
        },
    })
    .to_string()
}

/// What the cluster's own pod may have is what its nodes offer; who takes more ends alone, and a disk that fills up is told before the host acts.
#[tokio::test(flavor = "multi_thread")]
async fn limits_of_the_pod_hold_inside() {
    let host = Host::find().await;
    host.namespace("t-limits").await;
    host.create("t-limits", "bounded", json!({"access": {"service": {"type": "NodePort"}}})).await;
    let cluster = host.ready("t-limits", "bounded").await;
    let external = host.kubeconfig("t-limits", "bounded", "external").await;
    let inside = |arguments: &[&str]| host.kubectl_outside(&external, arguments).unwrap();

    // The machine has the memory, the cluster has not.
    host.apply_outside(&external, &job("large", "1900Mi", "true"));
    host.apply_outside(&external, &job("hog", "16Mi", "tail /dev/zero"));
    until("the large pod to be refused", SOON, async || {
        let condition = inside(&["get", "pod", "large", "-o", "jsonpath={.status.conditions[?(@.type=='PodScheduled')].message}"]);
        if condition.contains("Insufficient memory") { Ok(()) } else { Err(condition) }
    })
    .await;

    until("the hog to be killed", SOON * 2, async || {
        let ended = inside(&["get", "pod", "hog", "-o", "jsonpath={.status.containerStatuses[0].state.terminated.reason} {.status.phase}"]);
        if ended.contains("OOMKilled") || ended.contains("Failed") { Ok(()) } else { Err(ended) }
    })
    .await;

    // Four fifths of the six GiB that `create` asks for are the threshold, and the nodes themselves take nearly nothing.
    let pressure = async |status: &str| {
        condition(&host.clusters("t-limits"), "bounded", DISK_PRESSURE, status, None, Duration::from_mins(4)).await;
    };
    pressure("False").await;
    host.apply_outside(&external, &job("filler", "16Mi", "fallocate -l 5000M /data/file; sleep 600"));
    pressure("True").await;
    inside(&["delete", "pod", "filler", "--now"]);
    pressure("False").await;

    let after = host.clusters("t-limits").get("bounded").await.unwrap().status.unwrap();
    assert_eq!(after.pod_ref, cluster.status.unwrap().pod_ref, "the cluster's pod was replaced");
    let pod = after.pod_ref.unwrap().name;
    assert_eq!(host.kubectl(&["get", "pod", "-n", CLUSTERS_NAMESPACE, &pod, "-o", "jsonpath={.status.containerStatuses[0].restartCount}"]), "0");
    assert!(inside(&["get", "nodes", "--no-headers"]).contains(" Ready "));
    host.delete("t-limits", "bounded").await;
    host.delete_namespace("t-limits").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_makes_nothing() {
    let host = Host::find().await;
    host.namespace("t-paused").await;
    let cluster = host.create("t-paused", "sleepy", json!({"paused": true})).await;
    condition(&host.clusters("t-paused"), "sleepy", PAUSED, "True", None, SOON).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(host.children(&cluster.metadata.uid.unwrap()), Vec::<String>::new());
    host.patch("t-paused", "sleepy", json!({"spec": {"paused": false, "config": {"networking": {"apiServerPort": 1}}}})).await;
    condition(&host.clusters("t-paused"), "sleepy", STALLED, "True", Some("ConfigFieldOwned"), SOON).await;
    host.delete("t-paused", "sleepy").await;
    host.delete_namespace("t-paused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ttl_ends_a_cluster_with_its_secret() {
    let host = Host::find().await;
    host.namespace("t-ttl").await;
    host.create("t-ttl", "mayfly", json!({"lifecycle": {"ttl": "8h"}})).await;
    let cluster = host.ready("t-ttl", "mayfly").await;
    let (api, secrets) = (host.clusters("t-ttl"), Api::<Secret>::namespaced(host.client.clone(), "t-ttl"));
    condition(&api, "mayfly", EXPIRING, "False", Some("NotExpiring"), SOON).await;
    secrets.get("mayfly-kubeconfig").await.unwrap();

    // Two minutes from here; they count from the object's creation, and nobody knows how long the machine took until now.
    let age = Timestamp::now().duration_since(cluster.metadata.creation_timestamp.as_ref().unwrap().0).as_secs();
    host.patch("t-ttl", "mayfly", json!({"spec": {"lifecycle": {"ttl": format!("{}s", age + 120)}}})).await;
    let warned = condition(&api, "mayfly", EXPIRING, "True", Some("ExpiresSoon"), 3 * SOON).await;
    assert!(warned.metadata.deletion_timestamp.is_none());
    let end = warned.status.unwrap().expiration_time.unwrap().0;
    gone(&api, "mayfly", 2 * SOON + DELETED).await;
    assert!(Timestamp::now() >= end, "it was gone before its time");
    gone(&secrets, "mayfly-kubeconfig", SOON).await;
    assert_eq!(host.children(&cluster.metadata.uid.unwrap()), Vec::<String>::new());
    host.delete_namespace("t-ttl").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_have_reasons_and_are_mended() {
    let host = Host::find().await;
    host.namespace("t-fail").await;
    let api = host.clusters("t-fail");
    // An image that nobody has.
    host.create("t-fail", "image", spec("{image: 'localhost:1/no/such-node:v1.34.4', lifecycle: {backoffLimit: 0}}")).await;
    // A patch that kubeadm refuses.
    host.create(
        "t-fail",
        "kubeadm",
        spec("{config: {kubeadmConfigPatches: ['{kind: ClusterConfiguration, kubernetesVersion: nonsense}']}, lifecycle: {backoffLimit: 0}}"),
    )
    .await;
    // A range of the host.
    host.create("t-fail", "overlap", spec("{networking: {serviceCIDRs: [10.96.0.0/16]}}")).await;

    condition(&api, "overlap", STALLED, "True", Some("CIDROverlap"), SOON).await;
    let cluster = condition(&api, "image", STALLED, "True", Some("NodeImagePullFailed"), CREATED).await;
    let failure = cluster.status.unwrap().last_failure.unwrap();
    assert!(failure.message.contains("localhost:1/no/such-node"), "{}", failure.message);
    let cluster = condition(&api, "kubeadm", STALLED, "True", Some("KubeadmInitFailed"), CREATED).await;
    let failure = cluster.status.unwrap().last_failure.unwrap();
    assert!(failure.log_tail.as_deref().unwrap_or_default().contains("nonsense"), "{failure:?}");
    until("the failed pods to go", Duration::from_mins(3), async || {
        let pods = host.pods(CLUSTERS_NAMESPACE).list(&ListParams::default().labels("nestling.dev/cluster-namespace=t-fail")).await.unwrap();
        if pods.items.is_empty() { Ok(()) } else { Err(format!("{} left", pods.items.len())) }
    })
    .await;

    host.patch("t-fail", "kubeadm", json!({"spec": {"config": null}})).await;
    host.ready("t-fail", "kubeadm").await;
    for name in ["image", "kubeadm", "overlap"] {
        host.delete("t-fail", name).await;
    }
    host.delete_namespace("t-fail").await;
}
