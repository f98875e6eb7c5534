//! The command line, as the real program, for a user whose only rights are in a namespace of its own that takes nothing but `restricted` pods. Every verb that needs a running cluster has
//! its function here, and its place in the one test.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::operator::CLUSTERS_NAMESPACE;
use crate::support::real::Host;
use crate::support::wait::until;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::config::Kubeconfig;
use kube::{Api, ResourceExt};
use nestling_core::plan::objects::RELAY_LABEL;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

const NAMESPACE: &str = "t-verbs";
const SOON: Duration = Duration::from_mins(1);

/// A service account of a namespace, bound to the roles that users get.
pub struct User<'a> {
    /// The host that it is on.
    pub host: &'a Host,
    /// Its only namespace.
    pub namespace: String,
    directory: tempfile::TempDir,
}

/// What a command has said.
#[derive(Debug)]
pub struct Said {
    /// Its exit code.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl<'a> User<'a> {
    /// Makes the namespace and the account.
    pub async fn new(host: &'a Host, namespace: &str) -> Self {
        host.namespace(namespace).await;
        host.kubectl(&["label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted"]);
        let accounts: Api<ServiceAccount> = Api::namespaced(host.client.clone(), namespace);
        let account = ServiceAccount { metadata: ObjectMeta { name: Some("heron".into()), ..ObjectMeta::default() }, ..ServiceAccount::default() };
        accounts.create(&PostParams::default(), &account).await.unwrap();
        for role in ["kindcluster-edit", "kindcluster-connect"] {
            host.kubectl(&["create", "rolebinding", role, "-n", namespace, &format!("--clusterrole={role}"), &format!("--serviceaccount={namespace}:heron")]);
        }
        let wanted = TokenRequest { spec: TokenRequestSpec { expiration_seconds: Some(3600), ..TokenRequestSpec::default() }, ..TokenRequest::default() };
        let token = accounts.create_token_request("heron", &PostParams::default(), &wanted).await.unwrap().status.unwrap().token;

        let administrator = Kubeconfig::from_yaml(&std::fs::read_to_string(host.cluster.kubeconfig()).unwrap()).unwrap();
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "host",
            "clusters": [{"name": "host", "cluster": administrator.clusters[0].cluster}],
            "users": [{"name": "heron", "user": {"token": token}}],
            "contexts": [{"name": "host", "context": {"cluster": "host", "user": "heron", "namespace": namespace}}]});
        let user = Self { host, namespace: namespace.to_owned(), directory: tempfile::tempdir().unwrap() };
        std::fs::write(user.kubeconfig(), config.to_string()).unwrap();
        user
    }

    fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("host.kubeconfig")
    }

    /// This program with the user's rights, and with kubectl in its path.
    pub fn nestling(&self, arguments: &[&str]) -> Command {
        let tools = self.host.paths.bin("kubectl").unwrap().parent().unwrap().to_owned();
        let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(env!("CARGO_BIN_EXE_nestling"));
        command.args(arguments).env("KUBECONFIG", self.kubeconfig()).env("PATH", path).env("XDG_RUNTIME_DIR", self.directory.path()).stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub fn run(&self, arguments: &[&str]) -> Said {
        let output = self.nestling(arguments).output().unwrap();
        let said = Said {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        println!("nestling {}: {:?}\n{}{}", arguments.join(" "), said.code, said.out, said.err);
        said
    }

    /// Runs it to a good end; what it has said.
    pub fn done(&self, arguments: &[&str]) -> String {
        let said = self.run(arguments);
        assert_eq!(said.code, Some(0), "nestling {arguments:?}: {said:?}");
        said.out
    }

    /// Relay pods that are there.
    pub async fn relays(&self) -> Vec<String> {
        let (label, value) = RELAY_LABEL;
        let pods: Api<Pod> = self.host.pods(&self.namespace);
        pods.list(&ListParams::default().labels(&format!("{label}={value}"))).await.unwrap().iter().map(ResourceExt::name_any).collect()
    }

    /// Nothing is left of a way to a cluster: no pod, no file.
    pub async fn nothing_is_left(&self) {
        until("relay pods to be gone", SOON, async || {
            let left = self.relays().await;
            if left.is_empty() { Ok(()) } else { Err(left.join(", ")) }
        })
        .await;
        let files = std::fs::read_dir(self.directory.path()).unwrap().map(|file| file.unwrap().path());
        assert_eq!(files.filter(|path| *path != self.kubeconfig()).collect::<Vec<_>>(), Vec::<PathBuf>::new());
    }

    /// The user has no right where the clusters run.
    fn may_do_nothing_there(&self) {
        for (verb, resource) in
            [("get", "pods"), ("list", "pods"), ("create", "pods/portforward"), ("create", "pods/exec"), ("get", "services"), ("get", "secrets")]
        {
            let account = format!("--as=system:serviceaccount:{}:heron", self.namespace);
            let asked = self.host.cluster.kubectl().args(["auth", "can-i", verb, resource, "-n", CLUSTERS_NAMESPACE, &account]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&asked.stdout).trim(), "no", "{verb} {resource}");
        }
    }
}

/// A command in a shell: as the user would type it, with its exit code.
async fn shell(user: &User<'_>) {
    let nodes = user.done(&["shell", "demo", "--", "kubectl", "get", "nodes"]);
    assert!(nodes.contains("demo-control-plane") && nodes.contains(" Ready "), "{nodes}");
    assert_eq!(user.run(&["shell", "demo", "--", "sh", "-c", "kubectl get --raw /readyz && exit 9"]).code, Some(9));
    user.nothing_is_left().await;
}

/// A way that is held open: for several at once, for much data, and for longer than its pod lives.
async fn connect(user: &User<'_>) {
    let mut connect = user.nestling(&["connect", "demo"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(connect.stdout.take().unwrap()).lines();
    let line = tokio::task::spawn_blocking(move || lines.next().unwrap().unwrap()).await.unwrap();
    let kubeconfig = std::fs::read_to_string(line.strip_prefix("export KUBECONFIG=").unwrap()).unwrap();
    let inside = |arguments: &[&str]| user.host.kubectl_outside(&kubeconfig, arguments);
    // As many as a browser would open, each with some megabytes.
    let schemas: Vec<usize> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..6).map(|_| scope.spawn(|| inside(&["get", "--raw", "/openapi/v2"]).unwrap().len())).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert!(schemas[0] > 1_000_000 && schemas.iter().all(|length| *length == schemas[0]), "{schemas:?}");
    // A connection that changes its protocol on the way.
    assert!(inside(&["exec", "-n", "kube-system", "etcd-demo-control-plane", "--", "etcd", "--version"]).unwrap().contains("etcd Version"));

    let before = user.relays().await;
    assert_eq!(before.len(), 1, "{before:?}");
    user.host.pods(&user.namespace).delete(&before[0], &DeleteParams::default()).await.unwrap();
    until("the way to be open again", SOON, async || inside(&["get", "--raw", "/readyz"]).map(drop)).await;
    let after = user.relays().await;
    assert!(after.iter().any(|name| !before.contains(name)), "{before:?} {after:?}");

    kill(Pid::from_raw(i32::try_from(connect.id()).unwrap()), Signal::SIGINT).unwrap();
    let ended = tokio::task::spawn_blocking(move || connect.wait().unwrap()).await.unwrap();
    assert_eq!(ended.code(), Some(130));
    assert!(inside(&["get", "--raw", "/readyz"]).is_err(), "the way is still open");
    user.nothing_is_left().await;
}

/// Nothing has failed, so there are none; `failures.rs` has some.
fn logs(user: &User<'_>) {
    let said = user.run(&["logs", "demo"]);
    assert!(said.code == Some(4) && said.err.contains("there are no logs of demo"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_in_one_namespace_are_enough_for_every_verb() {
    let host = Host::find().await;
    let user = User::new(&host, NAMESPACE).await;
    user.may_do_nothing_there();
    user.done(&["create", "demo", "--wait", "--no-kubeconfig"]);
    shell(&user).await;
    connect(&user).await;
    logs(&user);
    user.done(&["delete", "demo", "--wait"]);
    assert_eq!(host.kubectl(&["get", "kindclusters,pods", "-n", NAMESPACE, "-o", "name"]), "");
    host.delete_namespace(NAMESPACE).await;
}
