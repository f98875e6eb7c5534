//! A real host cluster with Nestling installed from its chart. `cargo xtask test` brings it up and says where it is.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::{Api, Client, ResourceExt};
use nestling_core::api::KindCluster;
use nestling_core::api::conditions::READY;
use nestling_lab::accounting::Snapshot;
use nestling_lab::{HostCluster, Lab, LabPart, LabPaths};
use serde_json::{Value, json};

use super::operator::CLUSTERS_NAMESPACE;
use super::wait::{condition, gone, until};

/// The image with a shell, kubectl and curl that every node of the lab carries.
pub const TOOLS: &str = "docker.io/nestling-lab/tools:1";

/// A real cluster comes up within this, also while two others do on two cores.
pub const CREATED: Duration = Duration::from_mins(6);

/// The lab's own registry, without TLS and open to all: its container on the hosts' network.
pub const REGISTRY: &str = "nestling-lab-registry";

/// A real cluster is gone within this.
pub const DELETED: Duration = Duration::from_mins(3);

/// The host cluster.
pub struct Host {
    /// All rights on it.
    pub client: Client,
    /// Its Docker and kubeconfig.
    pub cluster: HostCluster,
    /// The lab's programs.
    pub paths: LabPaths,
}

impl Host {
    /// Finds it.
    ///
    /// # Panics
    /// If it is not up; `cargo xtask test` brings it up.
    pub async fn find() -> Self {
        let name = std::env::var("NESTLING_TEST_HOST").expect("run these tests with ./dev test, which brings a host cluster up");
        let (paths, cluster) = tokio::task::spawn_blocking(move || {
            let paths = Lab::open().unwrap().paths(LabPart::All).unwrap();
            let cluster = HostCluster::find(&paths, &name).unwrap();
            (paths, cluster)
        })
        .await
        .unwrap();
        let client = super::plane::client(&std::fs::read_to_string(cluster.kubeconfig()).unwrap()).await;
        Self { client, cluster, paths }
    }

    /// What there is on the machine and on the host's nodes, to be compared.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::take(Some(self.cluster.docker()), &self.nodes()).unwrap()
    }

    /// KindClusters of a namespace.
    pub fn clusters(&self, namespace: &str) -> Api<KindCluster> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Pods of a namespace.
    pub fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// A namespace; one that is left over from an earlier run goes first.
    pub async fn namespace(&self, name: &str) {
        self.delete_namespace(name).await;
        let namespace = Namespace { metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() }, ..Namespace::default() };
        Api::all(self.client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
    }

    /// Deletes a namespace and waits until it is gone.
    pub async fn delete_namespace(&self, name: &str) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        if namespaces.delete(name, &DeleteParams::default()).await.is_ok() {
            gone(&namespaces, name, DELETED).await;
        }
    }

    /// Creates a `KindCluster`. It asks for little CPU, because the machine that tests has little.
    pub async fn create(&self, namespace: &str, name: &str, spec: Value) -> KindCluster {
        let mut object = json!({"apiVersion": "nestling.dev/v1alpha1", "kind": "KindCluster", "metadata": {"name": name}, "spec": spec});
        object["spec"]["resources"]["requests"]["cpu"] = json!("100m");
        object["spec"]["storage"]["size"] = json!("6Gi");
        let cluster: KindCluster = serde_json::from_value(object).unwrap();
        self.clusters(namespace).create(&PostParams::default(), &cluster).await.unwrap()
    }

    /// Waits until it is ready, and prints how the time was spent.
    pub async fn ready(&self, namespace: &str, name: &str) -> KindCluster {
        let cluster = condition(&self.clusters(namespace), name, READY, "True", None, CREATED).await;
        let status = cluster.status.as_ref().unwrap();
        let stages: Vec<String> = status.stages.iter().map(|stage| format!("{} {:.1}", stage.name, as_seconds(stage.milliseconds))).collect();
        println!("{namespace}/{name}: ready {:.1} s after its creation: {}", seconds_to_ready(&cluster), stages.join(", "));
        cluster
    }

    /// Changes a `KindCluster`.
    pub async fn patch(&self, namespace: &str, name: &str, patch: Value) {
        self.clusters(namespace).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    /// Deletes a `KindCluster` and waits until it and its pods are gone.
    pub async fn delete(&self, namespace: &str, name: &str) {
        let start = Instant::now();
        let uid = self.clusters(namespace).get(name).await.unwrap().uid().unwrap();
        self.clusters(namespace).delete(name, &DeleteParams::default()).await.unwrap();
        gone(&self.clusters(namespace), name, DELETED).await;
        println!("{namespace}/{name}: gone after {:.1} s", start.elapsed().as_secs_f64());
        assert_eq!(self.children(&uid), Vec::<String>::new());
    }

    /// What is in the clusters namespace for this UID.
    pub fn children(&self, uid: &str) -> Vec<String> {
        let list = self.kubectl(&[
            "get",
            "pods,services,networkpolicies,secrets,persistentvolumeclaims",
            "-n",
            CLUSTERS_NAMESPACE,
            "-l",
            &format!("nestling.dev/cluster-uid={uid}"),
            "-o",
            "name",
        ]);
        list.lines().map(str::to_owned).collect()
    }

    /// The published kubeconfig.
    pub async fn kubeconfig(&self, namespace: &str, name: &str, key: &str) -> String {
        let secret: Secret = Api::namespaced(self.client.clone(), namespace).get(&format!("{name}-kubeconfig")).await.unwrap();
        String::from_utf8(secret.data.unwrap()[key].0.clone()).unwrap()
    }

    /// Runs kubectl on the host cluster, as an administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.cluster.kubectl().args(arguments).output().unwrap();
        assert!(output.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Applies manifests to the host cluster.
    pub fn apply(&self, manifests: &str) {
        feed(self.cluster.kubectl().args(["apply", "-f", "-"]), manifests);
    }

    /// Runs kubectl from this machine, outside the host cluster, with a published kubeconfig's `external` key.
    pub fn kubectl_outside(&self, kubeconfig: &str, arguments: &[&str]) -> Result<String, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(kubeconfig.as_bytes()).unwrap();
        let output = Command::new(self.paths.bin("kubectl").unwrap()).arg("--kubeconfig").arg(file.path()).args(arguments).output().unwrap();
        if output.status.success() { Ok(String::from_utf8(output.stdout).unwrap()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    /// Applies manifests to a nested cluster from outside.
    pub fn apply_outside(&self, kubeconfig: &str, manifests: &str) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(kubeconfig.as_bytes()).unwrap();
        feed(Command::new(self.paths.bin("kubectl").unwrap()).arg("--kubeconfig").arg(file.path()).args(["apply", "-f", "-"]), manifests);
    }

    /// Runs a script in a cluster's own pod, beside the agent.
    pub fn in_pod(&self, pod: &str, script: &str) -> String {
        self.in_pod_of(CLUSTERS_NAMESPACE, pod, script)
    }

    /// Runs a script in a cluster's own pod, in whichever namespace that is.
    pub fn in_pod_of(&self, namespace: &str, pod: &str, script: &str) -> String {
        self.kubectl(&["exec", "-n", namespace, pod, "--", "bash", "-c", script]).trim().to_owned()
    }

    /// Runs a script in a node of a cluster.
    pub fn in_node(&self, pod: &str, node: &str, script: &str) -> String {
        self.in_node_of(CLUSTERS_NAMESPACE, pod, node, script)
    }

    /// Runs a script in a node of a cluster, in whichever namespace its pod is.
    pub fn in_node_of(&self, namespace: &str, pod: &str, node: &str, script: &str) -> String {
        self.kubectl(&["exec", "-n", namespace, pod, "--", "docker", "exec", node, "bash", "-c", script]).trim().to_owned()
    }

    /// Runs a script on a node of the host itself.
    pub fn on_node(&self, node: &str, script: &str) -> String {
        self.cluster.docker().run(&["exec", node, "bash", "-c", script]).unwrap().trim().to_owned()
    }

    /// The address of the host's own API Service.
    pub fn api_address(&self) -> String {
        self.kubectl(&["get", "service", "kubernetes", "-n", "default", "-o", "jsonpath={.spec.clusterIP}"])
    }

    /// Runs a command in a pod of a nested cluster, on this node (any, if `None`), to its end; what it has said.
    pub fn run_nested(&self, kubeconfig: &str, node: Option<&str>, command: &[&str]) -> String {
        let image = format!("--image={TOOLS}");
        let overrides = format!("--overrides={}", json!({"spec": node.map_or_else(|| json!({}), |node| json!({"nodeName": node}))}));
        let run = ["run", "probe", &image, &overrides, "--image-pull-policy=Never", "--restart=Never", "--command", "--"];
        self.kubectl_outside(kubeconfig, &[&run[..], command].concat()).unwrap();
        // Not attached: what a pod says before somebody listens would be lost.
        let ended = self.kubectl_outside(kubeconfig, &["wait", "pod/probe", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s"]);
        let said = self.kubectl_outside(kubeconfig, &["logs", "probe"]).unwrap();
        ended.unwrap_or_else(|error| panic!("{error}; the probe said: {said}"));
        self.kubectl_outside(kubeconfig, &["delete", "pod", "probe", "--now"]).unwrap();
        said
    }

    /// Runs a script in a pod of the host cluster that has nothing but this Secret: no token, no rights. Its own namespace may be any that holds
    /// a copy of the Secret.
    pub async fn visit(&self, namespace: &str, secret: &str, script: &str) -> Result<String, String> {
        let name = format!("visitor-{:x}", rand::random::<u32>());
        let pod = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never", "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
                "volumes": [{"name": "kubeconfig", "secret": {"secretName": secret}}],
                "containers": [{
                    "name": "visitor", "image": TOOLS, "imagePullPolicy": "Never", "command": ["bash", "-ec", script],
                    "env": [{"name": "KUBECONFIG", "value": "/kubeconfig/value"}],
                    "volumeMounts": [{"name": "kubeconfig", "mountPath": "/kubeconfig"}],
                }],
            },
        }))
        .unwrap();
        let pods = self.pods(namespace);
        pods.create(&PostParams::default(), &pod).await.unwrap();
        let phase = until("the visitor to end", Duration::from_mins(4), async || {
            let phase = pods.get(&name).await.map_err(|error| error.to_string())?.status.and_then(|status| status.phase).unwrap_or_default();
            if ["Succeeded", "Failed"].contains(&phase.as_str()) { Ok(phase) } else { Err(phase) }
        })
        .await;
        let said = pods.logs(&name, &kube::api::LogParams::default()).await.unwrap();
        pods.delete(&name, &DeleteParams::default()).await.unwrap();
        if phase == "Succeeded" { Ok(said) } else { Err(said) }
    }

    /// Deletes an object with everything it owns, in the background.
    pub async fn delete_owner<K>(&self, api: &Api<K>, name: &str)
    where
        K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        api.delete(name, &DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() }).await.unwrap();
    }

    /// The address of the lab's registry for pods, which serves on port 5000.
    pub fn registry_address(&self) -> String {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        self.cluster.docker().run(&["inspect", "--format", format, REGISTRY]).unwrap().trim().to_owned()
    }

    /// The nodes of the host cluster, as Docker names them.
    pub fn nodes(&self) -> Vec<String> {
        self.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"]).split_whitespace().map(str::to_owned).collect()
    }

    /// Kills the operator's processes on all nodes; the kubelet starts new ones.
    pub fn kill_operator(&self) {
        for node in self.nodes() {
            let _ = self.cluster.docker().run(&["exec", &node, "pkill", "-KILL", "-f", "^/usr/local/bin/nestling operator"]);
        }
    }
}

/// A privileged pod that a nested administrator may start: runs a script, with a volume of its own at `/data`.
pub fn privileged_pod(name: &str, host_network: bool, script: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "hostNetwork": host_network, "terminationGracePeriodSeconds": 0, "volumes": [{"name": "data", "emptyDir": {}}],
            "containers": [{
                "name": "shell", "image": TOOLS, "imagePullPolicy": "Never", "command": ["bash", "-ec", script], "securityContext": {"privileged": true},
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }],
        },
    })
}

/// Seconds from the object's creation to `readyTime` (whole seconds, as the API counts).
pub fn seconds_to_ready(cluster: &KindCluster) -> f64 {
    let ready = cluster.status.as_ref().unwrap().ready_time.as_ref().unwrap().0;
    ready.duration_since(cluster.metadata.creation_timestamp.as_ref().unwrap().0).as_secs_f64()
}

/// Seconds, for people.
pub fn as_seconds(milliseconds: i64) -> f64 {
    Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0)).as_secs_f64()
}

/// Seconds that bare kind took in this run, if the runner has measured it.
pub fn bare_seconds() -> Option<f64> {
    std::env::var("NESTLING_TEST_BARE_SECONDS").ok()?.parse().ok()
}

fn feed(command: &mut Command, input: &str) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "kubectl: {}\n{input}", String::from_utf8_lossy(&output.stderr));
}

/// A spec from YAML.
pub fn spec(yaml: &str) -> Value {
    serde_saphyr::from_str(yaml).unwrap()
}
