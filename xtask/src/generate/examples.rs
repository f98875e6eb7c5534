//! `examples/`, made from the API's own types so that they cannot rot.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use nestling_core::api::kind_config::{KindConfig, KindNetworking, KindNode, KindRole};
use nestling_core::api::{
    Access, AccessService, DeploymentReference, KindCluster, KindClusterSpec, Kubeconfig, KubeconfigUser, Lifecycle, LocalReference, Manifest, Nodes,
    PodLossPolicy, PowerState, Preload, PublishedPort, Readiness, Registry, ServiceType, Storage, StorageType,
};
use serde::Serialize;
use serde_json::{Value, json};

/// The version that every example names.
const VERSION: &str = "v1.34.4";

/// Every example, as `(name, text)`.
pub fn all() -> Result<Vec<(&'static str, String)>> {
    Ok(vec![
        ("kindcluster", one("The least: one node.", "demo", spec())?),
        ("three-nodes", one("One control plane and two workers, all in one pod.", "three-nodes", three_nodes())?),
        (
            "high-availability",
            one(
                "Three control planes: the cluster outlives the death of any one of them. Its pods run on the worker.",
                "high-availability",
                three_control_planes(),
            )?,
        ),
        ("node-port", one("Reachable from outside through a port of the host's nodes; see the Secret's key `external`.", "node-port", node_port())?),
        (
            "load-balancer",
            one(
                "Reachable from outside through the host's load balancer, once it has given an address (condition EndpointsReady).",
                "load-balancer",
                load_balancer(),
            )?,
        ),
        (
            "published-ports",
            one(
                "NodePorts of the cluster, such as those of an Ingress controller, reachable as its API server is; see status.ports.",
                "published-ports",
                published_ports(),
            )?,
        ),
        ("config", one("A kind configuration, as one would give to `kind create cluster --config`.", "config", config())?),
        ("no-cni", one("Without a CNI: Ready needs only the control plane, and its user installs a CNI.", "no-cni", no_cni())?),
        ("registries", one("A mirror of Docker Hub, and a registry that wants a login and has an authority of its own.", "registries", registries())?),
        ("preload", one("Images that are in every node before Ready. Pods use them if their imagePullPolicy is not Always.", "preload", preload())?),
        (
            "contents",
            one("Ready with something in it: manifests that are applied as soon as the API server answers, and what is waited for.", "contents", contents())?,
        ),
        (
            "persistent",
            one(
                "On a volume of its own, which goes with the object. When the pod is lost, the next one brings the cluster back from it.",
                "persistent",
                persistent(),
            )?,
        ),
        (
            "users",
            one(
                "Further users with kubeconfigs of their own: one that only looks, one for CI whose credentials are short-lived, and one in a group.",
                "users",
                users(),
            )?,
        ),
        ("stopped", one("Becomes ready, then stops and keeps its disks until powerState is Running.", "stopped", stopped())?),
        ("job-owned", job_owned()?),
    ])
}

fn spec() -> KindClusterSpec {
    KindClusterSpec { version: Some(VERSION.to_owned()), ..KindClusterSpec::default() }
}

fn three_nodes() -> KindClusterSpec {
    KindClusterSpec { nodes: Some(Nodes { control_planes: 1, workers: 2 }), ..spec() }
}

fn users() -> KindClusterSpec {
    let user =
        |name: &str, role: Option<&str>| KubeconfigUser { name: name.to_owned(), cluster_role: role.map(ToOwned::to_owned), ..KubeconfigUser::default() };
    let users = vec![
        user("viewer", Some("view")),
        KubeconfigUser { lifetime: Some(Duration::from_mins(10).into()), ..user("ci", Some("edit")) },
        KubeconfigUser { groups: vec!["developers".to_owned()], ..user("dev", None) },
    ];
    KindClusterSpec { kubeconfig: Some(Kubeconfig { users, ..Kubeconfig::default() }), ..spec() }
}

fn stopped() -> KindClusterSpec {
    KindClusterSpec { power_state: Some(PowerState::Stopped), ..spec() }
}

fn three_control_planes() -> KindClusterSpec {
    KindClusterSpec { nodes: Some(Nodes { control_planes: 3, workers: 1 }), ..spec() }
}

fn node_port() -> KindClusterSpec {
    let service = AccessService { type_: ServiceType::NodePort, ..AccessService::default() };
    KindClusterSpec { access: Some(Access { service: Some(service), ..Access::default() }), ..spec() }
}

fn load_balancer() -> KindClusterSpec {
    let service = AccessService { type_: ServiceType::LoadBalancer, ..AccessService::default() };
    KindClusterSpec { access: Some(Access { service: Some(service), ..Access::default() }), ..spec() }
}

fn published_ports() -> KindClusterSpec {
    let port = |name: &str, port, target_node_port| PublishedPort { name: name.to_owned(), port, target_node_port, ..PublishedPort::default() };
    KindClusterSpec { ports: vec![port("http", 80, 30080), port("https", 443, 30443)], ..node_port() }
}

fn config() -> KindClusterSpec {
    let worker = KindNode { role: Some(KindRole::Worker), labels: [("example.com/tier".to_owned(), "backend".to_owned())].into(), ..KindNode::default() };
    let patch = "kind: ClusterConfiguration\napiServer:\n  extraArgs:\n    v: \"2\"\n";
    KindClusterSpec {
        config: Some(KindConfig {
            kind: Some("Cluster".to_owned()),
            api_version: Some("kind.x-k8s.io/v1alpha4".to_owned()),
            nodes: Some(vec![KindNode { role: Some(KindRole::ControlPlane), ..KindNode::default() }, worker]),
            feature_gates: [("UserNamespacesSupport".to_owned(), true)].into(),
            kubeadm_config_patches: vec![patch.to_owned()],
            ..KindConfig::default()
        }),
        ..spec()
    }
}

fn registries() -> KindClusterSpec {
    let named = |name: &str| Some(LocalReference { name: name.to_owned() });
    let mirrored = Registry { host: "docker.io".to_owned(), endpoints: vec!["https://mirror.example".to_owned()], ..Registry::default() };
    let private = Registry {
        host: "registry.example:5000".to_owned(),
        credentials_secret_ref: named("registry-login"),
        ca_config_map_ref: named("registry-ca"),
        ..Registry::default()
    };
    KindClusterSpec { registries: vec![mirrored, private], ..spec() }
}

fn preload() -> KindClusterSpec {
    KindClusterSpec { preload: Some(Preload { images: vec!["nginx:1.29".to_owned()] }), ..spec() }
}

fn contents() -> KindClusterSpec {
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: team\n";
    let inline = Manifest { name: "namespace".to_owned(), inline: Some(namespace.to_owned()), ..Manifest::default() };
    let reference = Some(LocalReference { name: "app-manifests".to_owned() });
    let app = Manifest { name: "app".to_owned(), config_map_ref: reference, ..Manifest::default() };
    let deployments = vec![DeploymentReference { namespace: "team".to_owned(), name: "app".to_owned() }];
    KindClusterSpec { manifests: vec![inline, app], readiness: Some(Readiness { dns: true, deployments }), ..spec() }
}

fn no_cni() -> KindClusterSpec {
    let networking = KindNetworking { disable_default_cni: Some(true), ..KindNetworking::default() };
    KindClusterSpec { config: Some(KindConfig { networking: Some(networking), ..KindConfig::default() }), ..spec() }
}

fn persistent() -> KindClusterSpec {
    let storage = Storage { type_: StorageType::Persistent, size: Some("20Gi".to_owned()), ..Storage::default() };
    let lifecycle = Lifecycle { pod_loss_policy: Some(PodLossPolicy::Resume), ..Lifecycle::default() };
    KindClusterSpec { storage: Some(storage), lifecycle: Some(lifecycle), ..spec() }
}

fn one(about: &str, name: &str, spec: KindClusterSpec) -> Result<String> {
    Ok(format!("# {about}\n{}", document(&KindCluster::new(name, spec))?))
}

/// A Job that makes a cluster for itself: the cluster is owned by the Job and goes when the Job goes, however it ends.
fn job_owned() -> Result<String> {
    let mut cluster = serde_json::to_value(KindCluster::new("ci", spec()))?;
    cluster["metadata"] = json!({
        "name": "$(JOB_NAME)",
        "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "$(JOB_NAME)", "uid": "$(JOB_UID)"}],
    });
    let script = "set -eu\n\
        echo \"$KIND_CLUSTER\" | kubectl apply -f -\n\
        kubectl wait --for=condition=Ready --timeout=15m \"kindcluster/$JOB_NAME\"\n\
        kubectl get secret \"$JOB_NAME-kubeconfig\" -o jsonpath='{.data.value}' | base64 -d > /tmp/kubeconfig\n\
        # Your tests go here.\n\
        kubectl --kubeconfig /tmp/kubeconfig get nodes\n";
    // Kubernetes puts a Job's name and UID on its pods.
    let from_label = |name: &str, label: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": format!("metadata.labels['{label}']")}}});
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "ci"}}))?;
    let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": "ci", "namespace": "ci"}}))?;
    let role: Role = serde_json::from_value(json!({
        "metadata": {"name": "ci", "namespace": "ci"},
        "rules": [
            {"apiGroups": ["nestling.dev"], "resources": ["kindclusters"], "verbs": ["get", "list", "watch", "create", "patch"]},
            {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["ci-run-kubeconfig"], "verbs": ["get"]},
        ],
    }))?;
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": {"name": "ci", "namespace": "ci"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "ci"},
        "subjects": [{"kind": "ServiceAccount", "name": "ci", "namespace": "ci"}],
    }))?;
    let job: Job = serde_json::from_value(json!({
        "metadata": {"name": "ci-run", "namespace": "ci"},
        "spec": {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": 60,
            "template": {"spec": {
                "restartPolicy": "Never",
                "serviceAccountName": "ci",
                "containers": [{
                    "name": "test",
                    "image": "alpine/k8s:1.34.1",
                    "command": ["sh", "-c", script],
                    "env": [
                        from_label("JOB_NAME", "batch.kubernetes.io/job-name"),
                        from_label("JOB_UID", "batch.kubernetes.io/controller-uid"),
                        {"name": "KIND_CLUSTER", "value": serde_json::to_string(&cluster)?},
                    ],
                }],
            }},
        },
    }))?;
    let documents = [document(&namespace)?, document(&account)?, document(&role)?, document(&binding)?, document(&job)?];
    Ok(format!(
        "# A Job that makes a cluster for itself. The cluster is owned by the Job: when the Job is deleted, here a minute after its end, the\n\
         # cluster goes as well. The image is any one with a shell and kubectl.\n{}",
        documents.join("---\n")
    ))
}

/// A YAML document, without the empty fields that serialization leaves.
fn document<T: Serialize>(object: &T) -> Result<String> {
    let mut value = serde_json::to_value(object)?;
    prune(&mut value);
    Ok(serde_saphyr::to_string(&value)?)
}

fn prune(value: &mut Value) {
    let Value::Object(fields) = value else { return };
    fields.retain(|_, field| !field.is_null());
    fields.values_mut().for_each(prune);
}
