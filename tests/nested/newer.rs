//! A node image of a newer Kubernetes than the pod image carries: kubeadm's newer format, a kubelet that refuses cgroup v1 by itself, programs that can
//! be told of the pod's CPU limit. Each patch of ours is looked for where kind, kubeadm and the kubelet should have left it.

use crate::support::operator::CLUSTERS_NAMESPACE;
use crate::support::real::{CREATED, Host, spec};
use crate::support::soak;
use crate::support::wait::condition;
use nestling_core::api::conditions::CONTROL_PLANE_READY;
use nestling_core::api::kind_config::KindConfig;
use nestling_core::plan::kind_config::verify;
use nestling_lab::machine::Machine;
use nestling_lab::release::NEWER;
use nestling_lab::{Lab, LabPart};
use serde_json::{Value, json};

const NAMESPACE: &str = "t-newer";
/// Of the cluster whose pod carries the node image.
const CARRIED: &str = "t-newer-carried";
const NAME: &str = "swift";
const NODES: [&str; 2] = ["swift-control-plane", "swift-worker"];
/// The group of kubeadm's objects in the format that kind uses from v1.36 on.
const V1BETA4: &str = "kubeadm.k8s.io/v1beta4";

fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    documents.iter().find(|document| document["kind"] == kind).unwrap_or_else(|| panic!("no {kind} in {documents:?}"))
}

/// What of a patch is not there, by `place`. Arguments are maps in our patches and lists of names and values in the newer format.
fn not_seen(patch: &Value, written: &Value, place: &str) -> Vec<String> {
    match (patch, written) {
        (Value::Object(fields), Value::Array(arguments)) if place.ends_with("/extraArgs") => {
            let given = |name: &String, value: &Value| arguments.contains(&json!({"name": name, "value": value}));
            fields.iter().filter(|(name, value)| !given(name, value)).map(|(name, _)| format!("{place}/{name}")).collect()
        }
        (Value::Object(fields), Value::Object(written)) => {
            let field = |name: &String| written.get(name).unwrap_or(&Value::Null);
            fields.iter().flat_map(|(name, value)| not_seen(value, field(name), &format!("{place}/{name}"))).collect()
        }
        (Value::Array(items), Value::Array(written)) => {
            let there = |item: &Value| written.iter().any(|have| not_seen(item, have, place).is_empty());
            items.iter().filter(|item| !there(item)).map(|item| format!("{place}: {item}")).collect()
        }
        _ if patch == written => vec![],
        _ => vec![format!("{place}: {patch} is {written}")],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_kubernetes_has_all_patches() {
    if !soak() {
        println!("a newer Kubernetes is tried by ./dev test --soak only");
        return;
    }
    let host = Host::find().await;
    let newer = tokio::task::spawn_blocking(|| Lab::open().unwrap().paths(LabPart::Newer).unwrap()).await.unwrap();
    let pushed = host.cluster.push(&newer.load(host.cluster.docker(), NEWER.image).unwrap()).unwrap();
    let (_, image) = pushed.split_once('/').unwrap();
    host.namespace(NAMESPACE).await;
    let mut wish = spec("{nodes: {workers: 1}, access: {service: {type: NodePort}}, resources: {limits: {cpu: '1'}}}");
    wish["image"] = json!(format!("lab.test/{image}"));
    wish["registries"] = json!([{"host": "lab.test", "endpoints": [format!("http://{}:5000", host.registry_address())]}]);
    host.create(NAMESPACE, NAME, wish).await;
    // The image has to be pulled, so that it may take longer than others.
    condition(&host.clusters(NAMESPACE), NAME, CONTROL_PLANE_READY, "True", None, CREATED).await;
    let cluster = host.ready(NAMESPACE, NAME).await;
    let pod = cluster.status.unwrap().pod_ref.unwrap().name;
    let external = host.kubeconfig(NAMESPACE, NAME, "external").await;
    let nested = |arguments: &[&str]| host.kubectl_outside(&external, arguments).unwrap();

    let version = NEWER.version().unwrap();
    let served: Value = serde_json::from_str(&nested(&["get", "--raw", "/version"])).unwrap();
    assert_eq!(served["gitVersion"], version.as_str());
    let kubelets = nested(&["get", "nodes", "-o", "jsonpath={.items[*].status.nodeInfo.kubeletVersion}"]);
    assert_eq!(kubelets.split_whitespace().collect::<Vec<_>>(), [version.as_str(); 2]);

    let told: KindConfig = serde_saphyr::from_str(&host.in_pod(&pod, "cat /run/nestling/kind.yaml")).unwrap();
    let patches: Vec<Value> = told.nodes.as_ref().unwrap()[0].kubeadm_config_patches.iter().map(|patch| serde_json::from_str(patch).unwrap()).collect();
    // What must be among them, whatever else is.
    let cgroup_v1 = Machine::look().unwrap().cgroup_v1;
    let kubelet = of_kind(&patches, "KubeletConfiguration");
    let only_on_v1 = |value: Value| cgroup_v1.then_some(value);
    assert_eq!(kubelet.get("failCgroupV1").cloned(), only_on_v1(json!(false)));
    assert_eq!(kubelet.get("cgroupDriver").cloned(), only_on_v1(json!("cgroupfs")));
    assert!(kubelet["systemReserved"]["memory"].is_string(), "{kubelet}");
    let own = of_kind(&patches, "ClusterConfiguration");
    assert_eq!(own["encryptionAlgorithm"], "ECDSA-P256");
    assert!(own["apiServer"]["certSANs"].as_array().is_some_and(|names| names.iter().any(|name| name.as_str().unwrap().contains(CLUSTERS_NAMESPACE))));
    assert!(own["etcd"]["local"]["extraArgs"]["unsafe-no-fsync"].is_string(), "{own}");

    for node in NODES {
        let conf = host.in_node(&pod, node, "cat /kind/kubeadm.conf");
        verify(&conf, &told).unwrap();
        let written = documents(&conf);
        for kind in ["ClusterConfiguration", "InitConfiguration", "JoinConfiguration"] {
            assert_eq!(of_kind(&written, kind)["apiVersion"], V1BETA4, "{node}: {kind}");
        }
        for patch in &patches {
            let kind = patch["kind"].as_str().unwrap();
            assert_eq!(not_seen(patch, of_kind(&written, kind), &format!("{node}: {kind}")), Vec::<String>::new());
        }
        let running = documents(&host.in_node(&pod, node, "cat /var/lib/kubelet/config.yaml"));
        assert_eq!(not_seen(kubelet, &running[0], &format!("{node}: kubelet")), Vec::<String>::new());
    }

    // What came of them.
    let first = |script: &str| host.in_node(&pod, NODES[0], script);
    for (program, argument) in
        [("etcd", "--unsafe-no-fsync=true"), ("kube-controller-manager", "--leader-elect=false"), ("kube-scheduler", "--leader-elect=false")]
    {
        assert!(first(&format!("tr '\\0' '\\n' < /proc/$(pgrep -f '^{program} ')/cmdline")).lines().any(|have| have == argument), "{program} {argument}");
    }
    assert!(first("head -n 1 /etc/kubernetes/pki/apiserver.key").contains("BEGIN EC PRIVATE KEY"));
    let threads = nested(&["get", "--raw", "/metrics"]);
    let threads = threads.lines().find_map(|line| line.strip_prefix("go_sched_gomaxprocs_threads ")).map(str::to_owned);
    assert_eq!(threads.as_deref(), Some("1"), "the API server does not count on the pod's processors");

    super::serves_by_name(&host, &external, Some(NODES[1]));
    host.delete(NAMESPACE, NAME).await;
    host.delete_namespace(NAMESPACE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_kubernetes_comes_with_its_pod() {
    if !soak() {
        println!("the pods' image for a newer Kubernetes is made by ./dev test --soak only");
        return;
    }
    let (host, version) = (Host::find().await, NEWER.version().unwrap());
    host.namespace(CARRIED).await;
    let mut wish = spec("{access: {service: {type: NodePort}}}");
    wish["version"] = json!(version);
    host.create(CARRIED, NAME, wish).await;
    let pod = host.ready(CARRIED, NAME).await.status.unwrap().pod_ref.unwrap().name;
    let external = host.kubeconfig(CARRIED, NAME, "external").await;
    let kubelet = host.kubectl_outside(&external, &["get", "nodes", "-o", "jsonpath={.items[*].status.nodeInfo.kubeletVersion}"]).unwrap();
    assert_eq!(kubelet, version);
    // No registry has an image of this name; and what is in the node was unpacked before, like that of the usual release.
    host.in_node(&pod, NODES[0], "test -d /opt/nestling/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots");
    host.delete(CARRIED, NAME).await;
    host.delete_namespace(CARRIED).await;
}
