//! Who has rights in one namespace only reaches the clusters there: `connect`, `shell` and `logs` as the real program, on a real API server. There is no node, so a relay pod is admitted
//! and waits; `tests/nested/verbs.rs` goes through one that runs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, ResourceQuota, Secret};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use nestling_core::api::{KindCluster, KindClusterSpec};
use nestling_core::plan::objects::RELAY_LABEL;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::support::operator::{CLUSTERS_NAMESPACE, OPERATOR_NAMESPACE};
use crate::support::plane::{Plane, lab};
use crate::support::wait::until;
use crate::{may, rights_of_the_chart};

const NAMESPACE: &str = "team";
const USER: &str = "heron";
const SOON: Duration = Duration::from_secs(20);
const IMAGE: &str = "registry.example/operator:1";

/// A namespace that takes nothing but `restricted` pods, a user of it, and a KindCluster `crane` that no operator looks after.
struct Stage {
    plane: Plane,
    directory: tempfile::TempDir,
}

impl Stage {
    async fn set() -> Self {
        let plane = Plane::start().await;
        for namespace in [CLUSTERS_NAMESPACE, OPERATOR_NAMESPACE] {
            plane.namespace(namespace).await;
        }
        plane.apply(
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})
                .to_string(),
        );
        plane.apply(&rights_of_the_chart());
        let stage = Self { plane, directory: tempfile::tempdir().unwrap() };
        std::fs::write(stage.kubeconfig(), stage.plane.control_plane.kubeconfig_for(USER, None).unwrap()).unwrap();
        stage.bind("kindcluster-view");
        let crane = stage.clusters().create(&PostParams::default(), &KindCluster::new("crane", KindClusterSpec::default())).await.unwrap();
        let ready = json!({"type": "ControlPlaneReady", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        stage.tell(json!({"conditions": [ready], "relayImage": IMAGE, "kubeconfigSecretRef": {"name": "crane-kubeconfig"}})).await;
        let internal = stage.published().replace(stage.plane.control_plane.url(), "https://c-crane.nestling-clusters.svc.invalid:6443");
        stage.secret(&crane, "crane-kubeconfig", &[("value", internal.as_bytes())]).await;
        // Pods want one.
        until("the namespace's service account", SOON, async || {
            let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(stage.plane.client.clone(), NAMESPACE);
            accounts.get("default").await.map(drop).map_err(|error| error.to_string())
        })
        .await;
        stage
    }

    fn bind(&self, role: &str) {
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": role, "namespace": NAMESPACE},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USER}]});
        self.plane.apply(&binding.to_string());
    }

    fn clusters(&self) -> Api<KindCluster> {
        Api::namespaced(self.plane.client.clone(), NAMESPACE)
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.plane.client.clone(), NAMESPACE)
    }

    async fn tell(&self, status: Value) {
        self.clusters().patch_status("crane", &PatchParams::default(), &Patch::Merge(json!({"status": status}))).await.unwrap();
    }

    /// A kubeconfig that leads to something that answers: this very plane.
    fn published(&self) -> String {
        self.plane.control_plane.kubeconfig_for("nested", None).unwrap()
    }

    async fn secret(&self, owner: &KindCluster, name: &str, data: &[(&str, &[u8])]) {
        let secrets: Api<Secret> = Api::namespaced(self.plane.client.clone(), NAMESPACE);
        let mut secret: Secret = serde_json::from_value(json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": name, "labels": {"nestling.dev/cluster-uid": owner.uid()}}}))
        .unwrap();
        secret.data = Some(data.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.to_vec()))).collect());
        secrets.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(&secret)).await.unwrap();
    }

    fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("host.kubeconfig")
    }

    fn nestling(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nestling"));
        command.args(["-n", NAMESPACE]).args(arguments);
        command.env("KUBECONFIG", self.kubeconfig()).env("XDG_RUNTIME_DIR", self.directory.path()).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let Output { status, stdout, stderr } = timeout(SOON * 2, self.nestling(arguments).output()).await.expect("it ends").unwrap();
        (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    }

    /// Files that are left beside the user's own kubeconfig.
    fn left(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.directory.path()).unwrap().map(|file| file.unwrap().path());
        files.filter(|path| *path != self.kubeconfig()).collect()
    }

    async fn relays(&self) -> Vec<Pod> {
        let (label, value) = RELAY_LABEL;
        self.pods().list(&ListParams::default().labels(&format!("{label}={value}"))).await.unwrap().items
    }
}

fn tell_to_end(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()), signal).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exposed_cluster_is_reached_directly() {
    let stage = Stage::set().await;
    let crane = stage.clusters().get("crane").await.unwrap();

    // The right to see the object is not the right to its credentials.
    let (code, _, said) = stage.run(&["shell", "crane", "--", "true"]).await;
    assert!(code == Some(1) && said.contains("read Secret team/crane-kubeconfig") && said.contains('→'), "{code:?} {said}");
    stage.bind("kindcluster-connect");
    let published = stage.published();
    stage
        .secret(
            &crane,
            "crane-kubeconfig",
            &[("value", published.replace("127.0.0.1", "c-crane.nestling-clusters.svc.invalid").as_bytes()), ("external", published.as_bytes())],
        )
        .await;
    let kubectl = lab().bin("kubectl").unwrap().display().to_string();
    until("the rights to hold, and the way to be open", SOON, async || match stage.run(&["shell", "crane", "--", "true"]).await {
        (Some(0), _, _) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;

    let script = format!("{kubectl} get --raw /version && stat -c %a $KUBECONFIG && echo $NESTLING_NAMESPACE/$NESTLING_CLUSTER && exit 7");
    let (code, said, errors) = stage.run(&["shell", "crane", "--", "sh", "-c", &script]).await;
    assert_eq!(code, Some(7), "{said} {errors}");
    assert!(said.contains("gitVersion") && said.ends_with("600\nteam/crane\n"), "{said}");
    assert_eq!(stage.left(), Vec::<PathBuf>::new());
    let (code, _, said) = stage.run(&["shell", "crane", "--", "no-such-command"]).await;
    assert!(code == Some(127) && said.contains("no-such-command"), "{code:?} {said}");

    // A port of its own, strict TLS on it, and nothing left at the end.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let file = stage.directory.path().join("crane.kubeconfig");
    let mut connect =
        stage.nestling(&["connect", "crane", "--port", &port.to_string(), "--file", file.to_str().unwrap()]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(connect.stdout.take().unwrap()).lines();
    let line = timeout(SOON, lines.next_line()).await.expect("it says where").unwrap().unwrap();
    assert_eq!(line, format!("export KUBECONFIG={}", file.display()));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(std::fs::read_to_string(&file).unwrap().contains(&format!("https://127.0.0.1:{port}")));
    assert!(version(&kubectl, &file, &[]).await.contains("gitVersion"));
    let refused = version(&kubectl, &file, &["--tls-server-name=elsewhere.example"]).await;
    assert!(refused.contains("certificate"), "{refused}");
    tell_to_end(&connect, Signal::SIGINT);
    assert_eq!(timeout(SOON, connect.wait()).await.expect("it ends").unwrap().code(), Some(130));
    assert_eq!(stage.left(), Vec::<PathBuf>::new());
    assert!(stage.relays().await.is_empty(), "a relay pod was used");
}

async fn version(kubectl: &str, kubeconfig: &Path, more: &[&str]) -> String {
    let output = Command::new(kubectl).arg("--kubeconfig").arg(kubeconfig).args(["get", "--raw", "/version"]).args(more).output().await.unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_pod_is_admitted_where_all_else_is_refused_and_never_stays() {
    let stage = Stage::set().await;
    stage.bind("kindcluster-connect");
    let user = stage.plane.client_for(USER).await;
    until("the rights to hold", SOON, async || if may(&user, "create", "", "pods", Some(NAMESPACE)).await { Ok(()) } else { Err(String::new()) }).await;
    // Enforced: what is not restricted is refused.
    let plain = serde_json::from_value(json!({"metadata": {"name": "plain"}, "spec": {"containers": [{"name": "a", "image": "a"}]}})).unwrap();
    let refused = stage.pods().create(&PostParams::default(), &plain).await.unwrap_err().to_string();
    assert!(refused.contains("violates PodSecurity"), "{refused}");

    // Ended while it waits.
    let mut shell = stage.nestling(&["shell", "crane", "--", "true"]).stderr(Stdio::null()).spawn().unwrap();
    let relay = until("a relay pod", SOON, async || stage.relays().await.pop().ok_or("none yet".to_owned())).await;
    let container = &relay.spec.as_ref().unwrap().containers[0];
    assert_eq!(container.image.as_deref(), Some(IMAGE));
    assert!(container.args.as_ref().unwrap().contains(&"--target=c-crane.nestling-clusters.svc.invalid:6443".to_owned()), "{container:?}");
    assert_eq!(Some(&relay.owner_references()[0].uid), stage.clusters().get("crane").await.unwrap().metadata.uid.as_ref());
    tell_to_end(&shell, Signal::SIGTERM);
    assert_eq!(timeout(SOON, shell.wait()).await.expect("it ends").unwrap().code(), Some(143));
    assert!(stage.relays().await.is_empty());

    // Never run, in the time that it has.
    let (code, _, said) = stage.run(&["shell", "crane", "--relay-timeout", "1s", "--relay-image", "mine:2", "--", "true"]).await;
    assert!(code == Some(3) && said.contains("does not run after 1 s") && said.contains("→ Give it longer with --relay-timeout"), "{code:?} {said}");
    assert!(stage.relays().await.is_empty() && stage.left().is_empty());

    // Not let in.
    let quotas: Api<ResourceQuota> = Api::namespaced(stage.plane.client.clone(), NAMESPACE);
    let none = serde_json::from_value(json!({"metadata": {"name": "no-pods"}, "spec": {"hard": {"pods": "0"}}})).unwrap();
    quotas.create(&PostParams::default(), &none).await.unwrap();
    until("the quota to be counted", SOON, async || {
        let counted = quotas.get("no-pods").await.unwrap().status.and_then(|status| status.used).is_some();
        if counted { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    let (code, _, said) = stage.run(&["shell", "crane", "--", "true"]).await;
    assert!(code == Some(1) && said.contains("exceeded quota: no-pods") && said.contains("→ Free what the quota counts"), "{code:?} {said}");

    // Not there at the moment.
    stage.clusters().patch("crane", &PatchParams::default(), &Patch::Merge(json!({"spec": {"powerState": "Stopped"}}))).await.unwrap();
    let (code, _, said) = stage.run(&["connect", "crane"]).await;
    assert!(code == Some(1) && said.contains("crane is stopped") && said.contains("nestling start -n team crane"), "{code:?} {said}");
    let (code, _, said) = stage.run(&["connect", "owl"]).await;
    assert!(code == Some(4) && said.contains("there is no KindCluster team/owl"), "{code:?} {said}");

    // No further than that.
    for (verb, resource, namespace) in [
        ("list", "secrets", NAMESPACE),
        ("create", "secrets", NAMESPACE),
        ("create", "pods/exec", NAMESPACE),
        ("patch", "pods", NAMESPACE),
        ("get", "pods", CLUSTERS_NAMESPACE),
        ("create", "pods/portforward", CLUSTERS_NAMESPACE),
        ("get", "secrets", CLUSTERS_NAMESPACE),
        ("get", "services", CLUSTERS_NAMESPACE),
    ] {
        assert!(!may(&user, verb, "", resource, Some(namespace)).await, "{verb} {resource} in {namespace} is allowed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_of_a_failed_attempt_are_read_by_their_user() {
    let stage = Stage::set().await;
    stage.bind("kindcluster-connect");
    let (code, _, said) = stage.run(&["logs", "crane"]).await;
    assert!(code == Some(4) && said.contains("there are no logs of crane") && said.contains('→'), "{code:?} {said}");

    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for (path, text) in [("attempt-1/agent.log", "kind has failed\n"), ("attempt-1/crane-control-plane/kubelet.log", "no such flag\n")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    let archive = tar.into_inner().unwrap().finish().unwrap();
    let crane = stage.clusters().get("crane").await.unwrap();
    stage.secret(&crane, "crane-logs", &[("logs.tar.gz", &archive)]).await;
    let failure = json!({"reason": "KindFailed", "message": "kind has failed.", "time": "2026-01-01T00:00:00Z", "attempt": 1, "bundleRef": {"name": "crane-logs", "attempt": 1}});
    stage.tell(json!({"lastFailure": failure})).await;
    let read = until("the rights to hold", SOON, async || match stage.run(&["logs", "crane"]).await {
        (Some(0), said, errors) => Ok((said, errors)),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(read.0, "kind has failed\n");
    assert!(read.1.contains("KindFailed"), "{}", read.1);
    assert_eq!(stage.run(&["logs", "crane", "--list"]).await.1, "       16  agent.log\n       13  crane-control-plane/kubelet.log\n");
    assert_eq!(stage.run(&["logs", "crane", "crane-control-plane/kubelet.log"]).await.1, "no such flag\n");
    let directory = stage.directory.path().join("logs");
    assert_eq!(stage.run(&["logs", "crane", "--extract", directory.to_str().unwrap()]).await.0, Some(0));
    assert_eq!(std::fs::read_to_string(directory.join("crane-control-plane/kubelet.log")).unwrap(), "no such flag\n");
}
