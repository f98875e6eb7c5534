//! A client of the cluster's API server, with the credentials of the control-plane node itself.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, NodeCondition, Secret};
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleRef, Subject};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::config::{AuthInfo, Cluster, Context, KubeConfigOptions, Kubeconfig, KubeconfigError, NamedAuthInfo, NamedCluster, NamedContext};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Client, Config, ResourceExt};
use nestling_core::plan::kind_config::KIND_API_PORT;
use nestling_core::plan::wire::{ADMIN_GROUP, NodeReport, USER_PREFIX, is_control_plane};
use tokio::time::timeout;

use super::node_files;
use super::report::Report;

/// Where kubeadm leaves the node's own credentials.
const ADMIN_CONF: &str = "/etc/kubernetes/admin.conf";

/// Time for one request to a server on the same machine.
const LIMIT: Duration = Duration::from_secs(5);

/// Most nodes in a report, which has a limit.
const NODES: usize = 64;

/// Why the API server could not be asked, or what it answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not a whole kubeconfig, perhaps not yet.
    #[error("the node's admin.conf is incomplete")]
    Incomplete,
    /// The file is no kubeconfig.
    #[error("the node's admin.conf cannot be used")]
    Config(#[source] Box<KubeconfigError>),
    /// The API server's answer, or none.
    #[error("the API server: {0}")]
    Api(#[from] Box<kube::Error>),
    /// It took too long.
    #[error("the API server did not answer within {} s", LIMIT.as_secs())]
    TimedOut,
}

/// What the cluster says of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    /// UID of the `kube-system` namespace.
    pub uid: Option<String>,
    /// Version of the API server.
    pub version: String,
}

/// A client of the cluster.
#[derive(Clone)]
pub struct Nested {
    client: Client,
}

/// Makes a client as soon as the node has credentials; remembers it as long as they stay the same.
#[derive(Default)]
pub struct Connector {
    last: Option<(String, Nested)>,
}

impl Connector {
    /// The client, if the node whose first process is `pid` has credentials by now.
    pub async fn connect(&mut self, pid: u32) -> Option<Nested> {
        let text = node_files::read(pid, ADMIN_CONF).ok()?;
        if let Some((last, nested)) = &self.last
            && *last == text
        {
            return Some(nested.clone());
        }
        // Half a file is no error: kubeadm is writing it.
        let nested = Nested::connect(&text).await.ok()?;
        self.last = Some((text, nested.clone()));
        Some(nested)
    }
}

/// A kubeconfig for the pod's own loopback with no more than the certificates of the node's: a kubeconfig can also name programs
/// to run and files to read, and this one comes out of a container that is not ours.
fn local_kubeconfig(admin_conf: &str) -> Result<Kubeconfig, Error> {
    let found = Kubeconfig::from_yaml(admin_conf).map_err(|error| Error::Config(Box::new(error)))?;
    let cluster = found.clusters.into_iter().next().and_then(|named| named.cluster).ok_or(Error::Incomplete)?;
    let user = found.auth_infos.into_iter().next().and_then(|named| named.auth_info).ok_or(Error::Incomplete)?;
    let (Some(authority), Some(certificate), Some(key)) = (cluster.certificate_authority_data, user.client_certificate_data, user.client_key_data) else {
        return Err(Error::Incomplete);
    };
    let name = "nested".to_owned();
    let cluster = Cluster {
        // kind puts the address into the certificate (`apiServerAddress`).
        server: Some(format!("https://127.0.0.1:{KIND_API_PORT}")),
        certificate_authority_data: Some(authority),
        ..Cluster::default()
    };
    let user = AuthInfo { client_certificate_data: Some(certificate), client_key_data: Some(key), ..AuthInfo::default() };
    let context = Context { cluster: name.clone(), user: Some(name.clone()), ..Context::default() };
    Ok(Kubeconfig {
        clusters: vec![NamedCluster { name: name.clone(), cluster: Some(cluster), ..NamedCluster::default() }],
        auth_infos: vec![NamedAuthInfo { name: name.clone(), auth_info: Some(user), ..NamedAuthInfo::default() }],
        contexts: vec![NamedContext { name: name.clone(), context: Some(context), ..NamedContext::default() }],
        current_context: Some(name),
        ..Kubeconfig::default()
    })
}

async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    Ok(timeout(LIMIT, request).await.map_err(|_| Error::TimedOut)?.map_err(Box::new)?)
}

/// An answer of this code is as good as success.
fn unless(code: u16, done: Result<(), Error>) -> Result<(), Error> {
    match done {
        Err(Error::Api(error)) if matches!(&*error, kube::Error::Api(status) if status.code == code) => Ok(()),
        done => done,
    }
}

impl Nested {
    async fn connect(admin_conf: &str) -> Result<Self, Error> {
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(local_kubeconfig(admin_conf)?, &options).await;
        let mut config = config.map_err(|error| Error::Config(Box::new(error)))?;
        config.connect_timeout = Some(LIMIT);
        // The pod's proxy is not on the way to its own loopback.
        config.proxy_url = None;
        Ok(Self { client: Client::try_from(config).map_err(Box::new)? })
    }

    /// The client itself.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Whether the API server says that it is ready.
    pub async fn ready(&self) -> bool {
        let Ok(request) = axum::http::Request::get("/readyz").body(Vec::new()) else { return false };
        within(self.client.request_text(request)).await.is_ok()
    }

    /// Binds [`ADMIN_GROUP`] to `cluster-admin`.
    ///
    /// # Errors
    /// The API server's; a binding that is there already is none.
    pub async fn bind_admins(&self) -> Result<(), Error> {
        let binding = ClusterRoleBinding {
            metadata: ObjectMeta { name: Some(ADMIN_GROUP.to_owned()), ..ObjectMeta::default() },
            role_ref: RoleRef { api_group: "rbac.authorization.k8s.io".into(), kind: "ClusterRole".into(), name: "cluster-admin".into() },
            subjects: Some(vec![Subject {
                api_group: Some("rbac.authorization.k8s.io".into()),
                kind: "Group".into(),
                name: ADMIN_GROUP.to_owned(),
                namespace: None,
            }]),
        };
        self.bind(&binding).await
    }

    /// Makes a binding.
    ///
    /// # Errors
    /// The API server's; a binding of that name that is there already is none.
    pub async fn bind(&self, binding: &ClusterRoleBinding) -> Result<(), Error> {
        unless(409, within(self.bindings().create(&PostParams::default(), binding)).await.map(drop))
    }

    /// Takes a binding away.
    ///
    /// # Errors
    /// The API server's; a binding that is not there is none.
    pub async fn unbind(&self, name: &str) -> Result<(), Error> {
        unless(404, within(self.bindings().delete(name, &DeleteParams::default())).await.map(drop))
    }

    /// The bindings whose names are those of further users, whoever made them.
    ///
    /// # Errors
    /// The API server's.
    pub async fn user_bindings(&self) -> Result<Vec<ClusterRoleBinding>, Error> {
        let all = within(self.bindings().list(&ListParams::default())).await?;
        Ok(all.into_iter().filter(|binding| binding.name_any().starts_with(USER_PREFIX)).collect())
    }

    fn bindings(&self) -> Api<ClusterRoleBinding> {
        Api::all(self.client.clone())
    }

    /// What the cluster says of itself.
    ///
    /// # Errors
    /// The API server's.
    pub async fn identity(&self) -> Result<Identity, Error> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let system = within(namespaces.get("kube-system")).await?;
        let version = within(self.client.apiserver_version()).await?;
        Ok(Identity { uid: system.metadata.uid, version: version.git_version })
    }

    /// Whether a node is there whose kubelet has reported `since`, ready or not.
    ///
    /// # Errors
    /// The API server's.
    pub async fn has_spoken(&self, node: &str, since: Timestamp) -> Result<bool, Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        Ok(within(nodes.get_opt(node)).await?.is_some_and(|node| ready_condition(&node).is_some_and(|ready| said(ready, since))))
    }

    /// Deletes the tokens with which nodes joined.
    ///
    /// # Errors
    /// The API server's; some may be deleted then.
    pub async fn delete_bootstrap_tokens(&self) -> Result<(), Error> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), "kube-system");
        // The type is the API server's own index for these.
        let tokens = ListParams::default().fields("type=bootstrap.kubernetes.io/token");
        for token in within(secrets.list(&tokens)).await? {
            if let Some(name) = token.metadata.name {
                within(secrets.delete(&name, &DeleteParams::default())).await?;
            }
        }
        Ok(())
    }

    /// Keeps the report's nodes as the API server lists them, until dropped. Watches anew when the connection breaks. A node that was ready before a cluster came
    /// back still looks so for most of a minute: it counts when it has said so `since`.
    pub async fn follow_nodes(&self, report: &Report, since: Timestamp) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let mut events = std::pin::pin!(watcher::watcher(nodes, watcher::Config::default()).default_backoff().into_stream());
        let mut known = Nodes { since, ..Nodes::default() };
        while let Some(event) = events.next().await {
            // After an error the watcher tries again; what is wrong shows in `/readyz`.
            if let Ok(event) = event {
                known.apply(event);
                report.update(|report| report.nodes = known.report());
            }
        }
    }
}

/// The nodes that were seen, and those of a list that is still being read.
#[derive(Debug, Default)]
struct Nodes {
    since: Timestamp,
    known: BTreeMap<String, NodeReport>,
    listed: BTreeMap<String, NodeReport>,
}

impl Nodes {
    /// Takes an event over. A list counts only when it is complete.
    fn apply(&mut self, event: Event<Node>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(node) => self.listed.extend(describe(node, self.since)),
            Event::InitDone => self.known = std::mem::take(&mut self.listed),
            Event::Apply(node) => self.known.extend(describe(node, self.since)),
            Event::Delete(node) => {
                self.known.remove(&node.metadata.name.unwrap_or_default());
            }
        }
    }

    fn report(&self) -> Vec<NodeReport> {
        self.known.values().take(NODES).cloned().collect()
    }
}

/// A node by its name, ready if it has said so `since`; `None` for one without.
fn describe(node: Node, since: Timestamp) -> Option<(String, NodeReport)> {
    let ready = ready_condition(&node).is_some_and(|ready| ready.status == "True" && said(ready, since));
    let name = node.metadata.name?;
    let control_plane = is_control_plane(&node.metadata.labels.unwrap_or_default());
    Some((name.clone(), NodeReport { name, control_plane, ready }))
}

fn ready_condition(node: &Node) -> Option<&NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == "Ready")
}

/// Whether the kubelet has said this `since`. The API knows whole seconds.
fn said(condition: &NodeCondition, since: Timestamp) -> bool {
    condition.last_heartbeat_time.as_ref().is_some_and(|time| time.0.as_second() >= since.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const ADMIN: &str = r"
apiVersion: v1
kind: Config
current-context: x
clusters: [{name: demo, cluster: {server: 'https://demo-control-plane:6443', certificate-authority-data: QQ==, proxy-url: 'http://evil'}}]
contexts: [{name: x, context: {cluster: demo, user: admin}}]
users:
- name: admin
  user: {client-certificate-data: Qg==, client-key-data: Qw==, exec: {command: evil, apiVersion: v1}, token: t}
";

    #[test]
    fn only_certificates_are_taken_over() {
        let kubeconfig = local_kubeconfig(ADMIN).unwrap();
        let cluster = kubeconfig.clusters[0].cluster.as_ref().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://127.0.0.1:16443"));
        assert_eq!((cluster.certificate_authority_data.as_deref(), &cluster.proxy_url), (Some("QQ=="), &None));
        let user = kubeconfig.auth_infos[0].auth_info.as_ref().unwrap();
        assert!(user.exec.is_none() && user.token.is_none() && user.client_certificate_data.is_some());
    }

    #[rstest]
    #[case("")]
    #[case("clusters: []")]
    #[case("users: [{name: a, user: {token: t}}]\nclusters: [{name: a, cluster: {server: s}}]")]
    fn half_a_file_is_no_kubeconfig(#[case] text: &str) {
        assert!(matches!(local_kubeconfig(text), Err(Error::Incomplete)));
    }

    fn node(name: &str, ready: &str) -> Node {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "labels": {"node-role.kubernetes.io/control-plane": ""}},
            "status": {"conditions": [{"type": "Ready", "status": ready, "lastHeartbeatTime": "2026-01-01T00:00:10Z"}]},
        }))
        .unwrap()
    }

    #[rstest]
    #[case("2026-01-01T00:00:10.9Z", true)]
    #[case("2026-01-01T00:00:11Z", false)]
    fn a_node_that_came_back_has_to_say_that_it_is_ready(#[case] since: Timestamp, #[case] ready: bool) {
        let mut nodes = Nodes { since, ..Nodes::default() };
        nodes.apply(Event::Apply(node("a", "True")));
        assert_eq!(nodes.report()[0].ready, ready);
    }

    #[test]
    fn nodes_follow_events() {
        let mut nodes = Nodes::default();
        nodes.apply(Event::InitApply(node("b", "False")));
        assert!(nodes.report().is_empty());
        nodes.apply(Event::InitApply(node("a", "True")));
        nodes.apply(Event::InitDone);
        nodes.apply(Event::Apply(node("b", "True")));
        assert_eq!(nodes.report().iter().map(|node| (node.name.as_str(), node.ready)).collect::<Vec<_>>(), [("a", true), ("b", true)]);
        nodes.apply(Event::Delete(node("a", "True")));
        assert_eq!(nodes.report().len(), 1);
        // A list after a lost connection replaces everything.
        for event in [Event::Init, Event::InitApply(node("c", "Unknown")), Event::InitDone] {
            nodes.apply(event);
        }
        assert_eq!(nodes.report(), [NodeReport { name: "c".into(), control_plane: true, ready: false }]);
    }
}
