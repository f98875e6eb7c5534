//! Who reads the published Secrets: further users, with the rights that they were given and no others; Flux, Cluster API and Argo CD, by their own code in a
//! pod of the host; the Python client, from outside. One real cluster for all of them.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::real::{CREATED, Host, TOOLS, spec};
use crate::support::soak;
use crate::support::wait::{condition, gone, until};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, LogParams, PostParams};
use kube::{Api, ResourceExt};
use nestling_core::api::conditions::{KUBECONFIG_PUBLISHED, READY};
use nestling_lab::apt::{self, Need};
use nestling_lab::{Lab, LabPart, LabPaths};
use serde_json::{Value, json};

const NAMESPACE: &str = "t-clients";
const NAME: &str = "weaver";
const NODE: &str = "weaver-control-plane";

/// Until a change of users has arrived, on a machine that does other things as well.
const SOON: Duration = Duration::from_mins(1);

/// Where the programs are on the host's node.
const PROGRAMS: &str = "/opt/nestling-consumers";

/// Prints the names of the nodes, as a script of anybody's would.
const PYTHON: &str = "import sys, yaml
from kubernetes import client, config
config.load_kube_config_from_dict(yaml.safe_load(sys.stdin.read()))
for node in client.CoreV1Api().list_node().items:
    print(node.metadata.name)
";

/// What the tools may do in the host cluster: read the Secrets of one namespace.
const RIGHTS: &str = r"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: consumers}
rules: [{apiGroups: [''], resources: [secrets], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: consumers}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: consumers}
subjects: [{kind: ServiceAccount, name: default, namespace: t-clients}]
";

struct Clients<'a> {
    host: &'a Host,
}

impl Clients<'_> {
    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.host.client.clone(), NAMESPACE)
    }

    async fn kubeconfig(&self, secret: &str) -> String {
        let secret = self.secrets().get(secret).await.unwrap();
        String::from_utf8(secret.data.unwrap()["external"].0.clone()).unwrap()
    }

    fn as_user(&self, kubeconfig: &str, arguments: &[&str]) -> Result<String, String> {
        self.host.kubectl_outside(kubeconfig, arguments)
    }

    async fn edit(&self, kubeconfig: Value) {
        self.host.patch(NAMESPACE, NAME, json!({"spec": {"kubeconfig": kubeconfig}})).await;
    }

    /// Runs one of the tools' programs in a pod of the host, to its end.
    async fn consume(&self, command: &[&str]) -> Result<String, String> {
        let name = format!("consumer-{:x}", rand::random::<u32>());
        let pod = json!({
            "metadata": {"name": name},
            "spec": {
                "nodeName": self.host.nodes()[0], "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
                "volumes": [{"name": "programs", "hostPath": {"path": PROGRAMS}}],
                "containers": [{
                    "name": "consumer", "image": TOOLS, "imagePullPolicy": "Never", "command": command,
                    "volumeMounts": [{"name": "programs", "mountPath": PROGRAMS, "readOnly": true}],
                }],
            },
        });
        let pods = self.host.pods(NAMESPACE);
        pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        let phase = until("the consumer to end", Duration::from_mins(3), async || {
            let phase = pods.get(&name).await.map_err(|error| error.to_string())?.status.and_then(|status| status.phase).unwrap_or_default();
            if ["Succeeded", "Failed"].contains(&phase.as_str()) { Ok(phase) } else { Err(phase) }
        })
        .await;
        let said = pods.logs(&name, &LogParams::default()).await.unwrap().trim().to_owned();
        pods.delete(&name, &DeleteParams::default()).await.unwrap();
        if phase == "Succeeded" { Ok(said) } else { Err(said) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_gets_in_with_the_rights_it_was_given() {
    let host = Host::find().await;
    let addresses = host.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].status.addresses[?(@.type==\"InternalIP\")].address}"]);
    let names: Vec<&str> = addresses.split_whitespace().collect();
    host.namespace(NAMESPACE).await;
    let mut wish = spec("{access: {service: {type: NodePort}}}");
    // For clients that do not know of tls-server-name.
    wish["access"]["certSANs"] = json!(names);
    wish["kubeconfig"] = json!({
        "users": [{"name": "viewer", "clusterRole": "view", "lifetime": "10m"}, {"name": "dev", "groups": ["developers", "testers"]}],
        "argoCD": {"labels": {"env": "test"}},
    });
    host.create(NAMESPACE, NAME, wish).await;
    host.ready(NAMESPACE, NAME).await;
    let clients = Clients { host: &host };

    let viewer = clients.kubeconfig("weaver-kubeconfig-viewer").await;
    let minted = Instant::now();
    a_viewer_reads_and_cannot_write(&clients, &viewer);
    the_cluster_says_what_a_group_may_do(&clients).await;
    the_tools_get_in_by_their_own_code(&clients).await;
    the_python_client_gets_in(&clients).await;
    if soak() {
        a_certificate_ends_and_its_successor_is_there(&clients, &viewer, minted).await;
    }
    users_change_and_go(&clients).await;

    // Argo CD's goes first of all, and so before the pod.
    let uid = host.clusters(NAMESPACE).get(NAME).await.unwrap().uid().unwrap();
    host.clusters(NAMESPACE).delete(NAME, &DeleteParams::default()).await.unwrap();
    gone(&clients.secrets(), "weaver-argocd", SOON).await;
    assert!(host.children(&uid).iter().any(|child| child.starts_with("pod/")), "Argo CD saw the cluster go");
    gone(&host.clusters(NAMESPACE), NAME, crate::support::real::DELETED).await;
    host.delete_namespace(NAMESPACE).await;
}

fn a_viewer_reads_and_cannot_write(clients: &Clients<'_>, viewer: &str) {
    let as_viewer = |arguments: &[&str]| clients.as_user(viewer, arguments);
    let who = as_viewer(&["auth", "whoami"]).unwrap();
    assert!(who.contains("nestling:user:viewer") && !who.contains("nestling:cluster-admins"), "{who}");
    assert!(as_viewer(&["get", "pods", "-A"]).unwrap().contains("kube-apiserver"));
    for write in [
        &["create", "namespace", "mine"][..],
        &["create", "configmap", "mine", "--from-literal=a=b"],
        &["delete", "pod", "-n", "kube-system", "--all"],
        &["create", "clusterrolebinding", "me", "--clusterrole=cluster-admin", "--user=nestling:user:viewer"],
        &["get", "secrets", "-A"],
    ] {
        let refused = as_viewer(write).unwrap_err();
        assert!(refused.contains("orbidden"), "{write:?}: {refused}");
    }
}

async fn the_cluster_says_what_a_group_may_do(clients: &Clients<'_>) {
    let admin = clients.kubeconfig("weaver-kubeconfig").await;
    let dev = clients.kubeconfig("weaver-kubeconfig-dev").await;
    let who = clients.as_user(&dev, &["auth", "whoami"]).unwrap();
    assert!(["nestling:user:dev", "developers", "testers"].iter().all(|word| who.contains(word)), "{who}");
    assert!(clients.as_user(&dev, &["get", "pods"]).unwrap_err().contains("orbidden"));
    clients.as_user(&admin, &["create", "clusterrolebinding", "testers", "--clusterrole=view", "--group=testers"]).unwrap();
    until("the binding to be known", SOON, async || clients.as_user(&dev, &["get", "pods"])).await;
}

/// In a pod of the host, where they run, and on what they find there.
async fn the_tools_get_in_by_their_own_code(clients: &Clients<'_>) {
    let host = clients.host;
    // Built only here.
    let paths: LabPaths = tokio::task::spawn_blocking(|| Lab::open().unwrap().build(LabPart::Consumers).unwrap()).await.unwrap();
    let node = host.nodes().remove(0);
    host.on_node(&node, &format!("mkdir -p {PROGRAMS}"));
    for program in ["consumers", "argocd-consumer"] {
        let from = paths.bin(program).unwrap().display().to_string();
        host.cluster.docker().run(&["cp", &from, &format!("{node}:{PROGRAMS}/{program}")]).unwrap();
    }
    let mut child = host.cluster.kubectl().args(["apply", "-n", NAMESPACE, "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(RIGHTS.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());

    let (consumers, argo_cd) = (format!("{PROGRAMS}/consumers"), format!("{PROGRAMS}/argocd-consumer"));
    for command in [
        &[&consumers[..], "cluster-api", NAMESPACE, NAME][..],
        &[&consumers, "flux", NAMESPACE, "weaver-kubeconfig"],
        &[&consumers, "flux", NAMESPACE, "weaver-kubeconfig", "external"],
    ] {
        assert_eq!(clients.consume(command).await.as_deref(), Ok(NODE), "{command:?}");
    }
    // One that may not list nodes gets in as well, and no further.
    let refused = clients.consume(&[&consumers, "flux", NAMESPACE, "weaver-kubeconfig-viewer"]).await.unwrap_err();
    assert!(refused.contains("nestling:user:viewer") && refused.contains("forbidden"), "{refused}");
    let said = clients.consume(&[&argo_cd, "nodes", NAMESPACE, "weaver-argocd"]).await.unwrap();
    let (cluster, nodes) = said.split_once('\n').unwrap();
    assert!(cluster.starts_with("weaver https://c-weaver-"), "{cluster}");
    assert_eq!(nodes, NODE);
    host.on_node(&node, &format!("rm -r {PROGRAMS}"));
    health_is_judged(&paths, &host.clusters(NAMESPACE).get(NAME).await.unwrap());
}

/// By the script that the project ships, in Argo CD's own machine for such scripts.
fn health_is_judged(paths: &LabPaths, cluster: &nestling_core::api::KindCluster) {
    let judge = |object: &Value| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(object.to_string().as_bytes()).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/argocd/health.lua");
        let output = Command::new(paths.bin("argocd-consumer").unwrap()).args(["health", script]).arg(file.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let mut object = serde_json::to_value(cluster).unwrap();
    assert_eq!(judge(&object), "Healthy: all nodes are ready");
    let generation = object["metadata"]["generation"].as_i64().unwrap();
    object["metadata"]["generation"] = json!(generation + 1);
    assert_eq!(judge(&object), "Progressing: the operator has not seen the newest change yet");
    object["metadata"]["generation"] = json!(generation);
    let judged = |conditions: Value| {
        judge(&json!({
            "apiVersion": "nestling.dev/v1alpha1", "kind": "KindCluster", "metadata": {"name": NAME, "generation": 1},
            "status": {"observedGeneration": 1, "conditions": conditions},
        }))
    };
    for (conditions, verdict) in [
        (json!([]), "Progressing: waiting for the operator"),
        (json!([{"type": "Ready", "status": "False", "reason": "InstallingCNI", "message": "m"}]), "Progressing: InstallingCNI: m"),
        (
            json!([{"type": "Ready", "status": "False", "reason": "QuotaExceeded", "message": "m"},
                {"type": "Stalled", "status": "True", "reason": "QuotaExceeded", "message": "too many"}]),
            "Degraded: QuotaExceeded: too many",
        ),
        (
            json!([{"type": "Ready", "status": "False", "reason": "Frozen", "message": "m"},
                {"type": "Suspended", "status": "True", "reason": "Frozen", "message": "frozen"}]),
            "Suspended: Frozen: frozen",
        ),
        (
            json!([{"type": "Ready", "status": "False", "reason": "Paused", "message": "m"},
                {"type": "Paused", "status": "True", "reason": "Paused", "message": "paused"}]),
            "Suspended: Paused: paused",
        ),
        (
            json!([{"type": "Ready", "status": "False", "reason": "NodeContainerDead", "message": "m"},
                {"type": "Stalled", "status": "False", "reason": "NotStalled", "message": ""}]),
            "Progressing: NodeContainerDead: m",
        ),
    ] {
        assert_eq!(judged(conditions.clone()), verdict, "{conditions}");
    }
    object["status"] = Value::Null;
    assert_eq!(judge(&object), "Progressing: waiting for the operator");
}

/// From outside the host cluster. The release in Debian 12 does not know of `tls-server-name`: the address is one of `certSANs`.
async fn the_python_client_gets_in(clients: &Clients<'_>) {
    tokio::task::spawn_blocking(|| apt::ensure(&[Need::PythonClient]).unwrap()).await.unwrap();
    let text = clients.kubeconfig("weaver-kubeconfig").await;
    let mut python = Command::new("/usr/bin/python3").args(["-c", PYTHON]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    python.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), NODE);
}

/// Ten minutes of real time, `minted` being when they began at the latest.
async fn a_certificate_ends_and_its_successor_is_there(clients: &Clients<'_>, viewer: &str, minted: Instant) {
    let lifetime = Duration::from_mins(10);
    let successor = until("the successor", lifetime, async || {
        let now = clients.kubeconfig("weaver-kubeconfig-viewer").await;
        if now == viewer { Err("the same".to_owned()) } else { Ok(now) }
    })
    .await;
    println!("the successor was there {:.0} s after the first was seen", minted.elapsed().as_secs_f64());
    clients.as_user(viewer, &["get", "pods", "-A"]).expect("the first one holds to its end");
    clients.as_user(&successor, &["get", "pods", "-A"]).unwrap();
    let refused = until("the first one to end", lifetime, async || match clients.as_user(viewer, &["get", "pods", "-A"]) {
        Ok(_) => Err("it still works".to_owned()),
        Err(refused) => Ok(refused),
    })
    .await;
    println!("the first one ended {:.0} s after it was seen: {refused}", minted.elapsed().as_secs_f64());
    assert!(refused.contains("Unauthorized") || refused.contains("must be logged in") || refused.contains("certificate"), "{refused}");
    clients.as_user(&successor, &["get", "pods", "-A"]).unwrap();
}

async fn users_change_and_go(clients: &Clients<'_>) {
    let host = clients.host;
    let viewer = clients.kubeconfig("weaver-kubeconfig-viewer").await;
    clients.edit(json!({"users": [{"name": "viewer", "clusterRole": "edit", "lifetime": "10m"}]})).await;
    let write = ["create", "configmap", "written", "--from-literal=a=b"];
    until("the same credentials to be worth more", SOON, async || clients.as_user(&viewer, &write)).await;
    gone(&clients.secrets(), "weaver-kubeconfig-dev", SOON).await;
    condition(&host.clusters(NAMESPACE), NAME, KUBECONFIG_PUBLISHED, "True", None, SOON).await;

    clients.edit(json!({"users": null})).await;
    gone(&clients.secrets(), "weaver-kubeconfig-viewer", SOON).await;
    until("the credentials to be worth nothing", SOON, async || match clients.as_user(&viewer, &["get", "pods"]) {
        Err(refused) if refused.contains("orbidden") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let admin = clients.kubeconfig("weaver-kubeconfig").await;
    let bindings = clients.as_user(&admin, &["get", "clusterrolebindings", "-o", "name"]).unwrap();
    assert!(!bindings.contains("nestling:user:") && bindings.contains("nestling:cluster-admins"), "{bindings}");
    condition(&host.clusters(NAMESPACE), NAME, READY, "True", None, CREATED).await;
}
