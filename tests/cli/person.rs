//! Somebody with a home directory, a kubeconfig and rights in one namespace.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use nestling_core::api::KindCluster;
use nestling_core::api::labels::CLUSTER_UID;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::plane::{Plane, lab};
use crate::support::wait::until;

/// No call may take longer.
const LIMIT: Duration = Duration::from_mins(1);

pub struct Person<'a> {
    pub plane: &'a Plane,
    pub namespace: &'static str,
    home: tempfile::TempDir,
}

/// What a call came to.
#[derive(Debug)]
pub struct Call {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Call {
    /// It must have gone well. Returns what it printed.
    pub fn good(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// It must have failed with this code, must say this, and what to do next.
    pub fn bad(self, code: i32, says: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.err.starts_with("error: ") && self.err.contains(says) && self.err.contains("\n→ "), "{says:?} in {self:?}");
    }
}

impl Call {
    /// The command line itself must have been refused.
    pub fn usage(self) {
        assert_eq!(self.code, 1, "{self:?}");
        assert!(self.err.starts_with("error: ") && self.err.contains("try '--help'"), "{self:?}");
    }
}

impl<'a> Person<'a> {
    /// A service account of this namespace, with what README asks for: KindClusters, reading Secrets by name, and listing events.
    pub async fn new(plane: &'a Plane, namespace: &'static str) -> Self {
        plane.namespace(namespace).await;
        let rules = json!([
            {"apiGroups": ["nestling.dev"], "resources": ["kindclusters"], "verbs": ["get", "list", "watch", "create", "patch", "delete"]},
            {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
        ]);
        let rbac = "rbac.authorization.k8s.io";
        let metadata = json!({"name": "ada", "namespace": namespace});
        let role = json!({"apiVersion": format!("{rbac}/v1"), "kind": "Role", "metadata": metadata, "rules": rules});
        let subject = json!([{"kind": "ServiceAccount", "name": "ada", "namespace": namespace}]);
        let reference = json!({"apiGroup": rbac, "kind": "Role", "name": "ada"});
        let binding = json!({"apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding", "metadata": metadata, "roleRef": reference, "subjects": subject});
        plane.apply(&format!("{role}\n---\n{binding}\n"));
        let person = Self { plane, namespace, home: tempfile::tempdir().unwrap() };
        let text = plane.control_plane.kubeconfig_for(&format!("system:serviceaccount:{namespace}:ada"), None).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config["contexts"][0]["context"]["namespace"] = namespace.into();
        std::fs::create_dir(person.home.path().join(".kube")).unwrap();
        std::fs::write(person.kubeconfig(), serde_json::to_string_pretty(&config).unwrap()).unwrap();
        person
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.home.path().join(".kube/config")
    }

    pub fn home(&self) -> PathBuf {
        self.home.path().to_owned()
    }

    /// The kubeconfig as it is.
    pub fn config(&self) -> Value {
        serde_saphyr::from_str(&std::fs::read_to_string(self.kubeconfig()).unwrap()).unwrap()
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("HOME", self.home.path()).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Calls the program.
    pub async fn call(&self, words: &str) -> Call {
        self.call_with(&words.split_whitespace().collect::<Vec<_>>()).await
    }

    pub async fn call_with(&self, words: &[&str]) -> Call {
        ended(self.command(env!("CARGO_BIN_EXE_nestling")).args(words)).await
    }

    /// Calls kubectl as the same person.
    pub async fn kubectl(&self, words: &str) -> Call {
        let kubectl = lab().bin("kubectl").unwrap();
        ended(self.command(&kubectl.display().to_string()).args(words.split_whitespace())).await
    }

    pub fn clusters(&self) -> Api<KindCluster> {
        Api::namespaced(self.plane.client.clone(), self.namespace)
    }

    /// Plays the operator: writes a status with these conditions `(type, status, reason)` about the newest spec, and whatever else.
    pub async fn status(&self, name: &str, conditions: &[(&str, &str, &str)], mut more: Value) {
        let cluster = self.clusters().get(name).await.unwrap();
        let generation = cluster.metadata.generation;
        let conditions = conditions.iter().map(|(type_, status, reason)| {
            json!({"type": type_, "status": status, "reason": reason, "message": "", "observedGeneration": generation, "lastTransitionTime": "2026-01-01T00:00:00Z"})
        });
        more["conditions"] = conditions.collect();
        more["observedGeneration"] = generation.into();
        self.clusters().patch_status(name, &PatchParams::default(), &Patch::Merge(json!({"status": more}))).await.unwrap();
    }

    /// Plays the operator: publishes a kubeconfig with these keys, and makes the cluster ready.
    pub async fn publish(&self, name: &str, keys: &[&str]) {
        let uid = self.clusters().get(name).await.unwrap().uid().unwrap();
        let context = format!("kind-{name}");
        let config = |server: &str| {
            json!({"apiVersion": "v1", "kind": "Config", "current-context": context,
                "clusters": [{"name": context, "cluster": {"server": server, "certificate-authority-data": "QQ=="}}],
                "users": [{"name": context, "user": {"token": format!("token-of-{name}")}}],
                "contexts": [{"name": context, "context": {"cluster": context, "user": context}}]})
        };
        let data = keys.iter().map(|key| ((*key).to_owned(), ByteString(config(&format!("https://{key}.{name}.example")).to_string().into_bytes()))).collect();
        let mut secret = Secret { data: Some(data), ..Secret::default() };
        secret.metadata.name = Some(format!("{name}-kubeconfig"));
        secret.metadata.labels = Some([(CLUSTER_UID.to_owned(), uid)].into());
        Api::<Secret>::namespaced(self.plane.client.clone(), self.namespace).create(&PostParams::default(), &secret).await.unwrap();
        let more = json!({"kubeconfigSecretRef": {"name": format!("{name}-kubeconfig")}});
        self.status(name, &[("Ready", "True", "ClusterReady"), ("KubeconfigPublished", "True", "Published")], more).await;
    }

    /// Waits until the object is there.
    pub async fn appears(&self, name: &str) {
        until(&format!("{name} to be created"), LIMIT, async || match self.clusters().get_opt(name).await {
            Ok(Some(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }
}

async fn ended(command: &mut Command) -> Call {
    let output = timeout(LIMIT, command.output()).await.unwrap_or_else(|_| panic!("{command:?} has not ended in {LIMIT:?}")).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Call { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// What the chart installs for `lifecycle.deletionProtection`.
pub fn deletion_protection() -> String {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/nestling");
    let output = std::process::Command::new(lab().bin("helm").unwrap())
        .args(["template", "nestling", chart, "--kube-version", "1.34.4", "--show-only", "templates/deletion-protection.yaml"])
        .args(["--api-versions", "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
