//! What operator and agent say to each other. Additive only: either side may be one release older.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddrV4;

use ipnet::Ipv4Net;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::certificates::NodeCertificates;
use crate::api::kind_config::KindConfig;
use crate::api::reasons::Reason;
use crate::api::{PowerState, Readiness};

/// Version of these types. A higher one is refused by neither side: fields are only ever added.
pub const SCHEMA: u32 = 1;

/// Largest report that the operator reads, in bytes. Reports come out of a pod in which users are root.
pub const REPORT_LIMIT: usize = 64 * 1024;

/// Port of the front door: the cluster's API server.
pub const API_PORT: i32 = 6443;

/// Port of the agent's own server (mTLS): status.
pub const AGENT_PORT: i32 = 7443;

/// Port of the agent's plain `/livez` and `/readyz`, for the kubelet.
pub const HEALTH_PORT: i32 = 7480;

/// Path of the report: `GET /v1/status?after=<revision>&wait=<seconds>` answers when there is a newer revision or the
/// time is over.
pub const STATUS_PATH: &str = "/v1/status";

/// Path of the orders: `PUT /v1/orders` with [`Orders`] as JSON. Answers with the report as it is afterwards.
pub const ORDERS_PATH: &str = "/v1/orders";

/// Largest orders that the agent reads, in bytes.
pub const ORDERS_LIMIT: usize = 32 * 1024;

/// Path of the contents: `PUT /v1/contents` with [`Contents`] as JSON. Answers with the report as it is afterwards.
pub const CONTENTS_PATH: &str = "/v1/contents";

/// Largest contents that the agent reads, in bytes of JSON.
pub const CONTENTS_LIMIT: usize = 4 * 1024 * 1024;

/// Path of the logs: `GET /v1/bundle` gathers them and answers with a gzipped tar archive of at most [`BUNDLE_LIMIT`] bytes.
pub const BUNDLE_PATH: &str = "/v1/bundle";

/// Largest archive of logs, in bytes. The operator takes no more: it comes out of a pod in which users are root.
pub const BUNDLE_LIMIT: usize = 512 * 1024;

/// Longest time that the agent takes to gather logs, in seconds.
pub const BUNDLE_SECONDS: u64 = 20;

/// Longest time that the agent lets a status request wait, in seconds.
pub const MAX_WAIT_SECONDS: u64 = 30;

/// Where the agent finds its settings (the pod's annotation, through the downward API).
pub const SETTINGS_FILE: &str = "/etc/nestling/settings/settings.json";

/// Where the agent finds the cluster's keys and its own (a Secret volume).
pub const KEYS_DIRECTORY: &str = "/etc/nestling/keys";

/// Where the agent finds what registries want to see (a Secret volume), where any of them does.
pub const REGISTRIES_DIRECTORY: &str = "/etc/nestling/registries";

/// Docker's data-root, a volume of its own.
pub const DATA_ROOT: &str = "/var/lib/docker";

/// Where a pod image carries node images, as a part of a Docker data-root. `references.json` maps pinned references to their names there.
pub const STORE_DIRECTORY: &str = "/opt/nestling/store";

/// Where the container leaves its failure for the kubelet, so that it outlives the agent ([`AgentFailure`] as JSON).
pub const TERMINATION_LOG: &str = "/dev/termination-log";

/// Group that a published kubeconfig's user is in. Bound to `cluster-admin` inside the cluster by the agent; unlike
/// `system:masters` the binding can be taken away.
pub const ADMIN_GROUP: &str = "nestling:cluster-admins";

/// What the common names of further users begin with, and the bindings of their ClusterRoles inside of the cluster.
pub const USER_PREFIX: &str = "nestling:user:";

/// Common name that the operator's client certificate must have.
pub const OPERATOR_NAME: &str = "operator.nestling";

/// Keys in the Secret that holds a cluster's keys, and the names of the files in [`KEYS_DIRECTORY`].
pub mod keys {
    /// Files that the cluster takes over, as `(key in the Secret, path below /etc/kubernetes/pki)`.
    pub const CLUSTER: [(&str, &str); 8] = [
        ("ca.crt", "ca.crt"),
        ("ca.key", "ca.key"),
        ("front-proxy-ca.crt", "front-proxy-ca.crt"),
        ("front-proxy-ca.key", "front-proxy-ca.key"),
        ("etcd-ca.crt", "etcd/ca.crt"),
        ("etcd-ca.key", "etcd/ca.key"),
        ("sa.key", "sa.key"),
        ("sa.pub", "sa.pub"),
    ];
    /// The random token with which nodes join; outlives only the creation.
    pub const BOOTSTRAP_TOKEN: &str = "bootstrap-token";
    /// Certificate of the agent's server.
    pub const AGENT_CERTIFICATE: &str = "agent.crt";
    /// Key of the agent's server.
    pub const AGENT_KEY: &str = "agent.key";
    /// Authority that the operator's client certificate must come from.
    pub const AGENT_AUTHORITY: &str = "agent-ca.crt";
}

/// What the agent is to do; fixed for the life of a pod.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct AgentSettings {
    /// [`SCHEMA`] of the writer.
    pub schema: u32,
    /// UID of the `KindCluster`.
    pub cluster_uid: String,
    /// Name of the `KindCluster`, and of the kind cluster.
    pub cluster_name: String,
    /// Number of this attempt.
    pub attempt: i64,
    /// Node image.
    pub image: String,
    /// The user's kind configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<KindConfig>,
    /// Number of control-plane nodes, where the configuration lists no nodes.
    pub control_planes: i32,
    /// Number of worker nodes, where the configuration lists no nodes.
    pub workers: i32,
    /// Address ranges.
    pub network: NetworkPlan,
    /// Further names in the API server's certificate.
    pub cert_sans: Vec<String>,
    /// What the pod may use.
    pub limits: PodLimits,
    /// Whether a host with cgroup v1 will do.
    pub allow_cgroup_v1: bool,
    /// Registries that need something said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub registries: Vec<RegistrySettings>,
    /// Images that are to be in every node before the cluster is served.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preload: Vec<String>,
    /// What nested traffic may reach.
    #[serde(default)]
    pub egress: EgressPlan,
    /// Whether the data-root is a volume that outlives the pod.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub persistent: bool,
    /// Whether the cluster on the volume is to be brought back. Never a new one instead.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resume: bool,
    /// Whether the cluster stays on the volume when the pod ends, unless [`Orders::keep`] says otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
}

/// A registry that needs something said. What it wants to see is not here but in [`REGISTRIES_DIRECTORY`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistrySettings {
    /// As image references name it.
    pub host: String,
    /// URLs to ask before the registry itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// Whether it wants credentials.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub credentials: bool,
    /// Whether it has an authority of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub authority: bool,
}

/// What nested traffic may reach, beside the world that is not the host.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EgressPlan {
    /// Whether the agent guards it ([`egress`](super::egress)).
    pub guard: bool,
    /// Ranges that are let through although they are the host's.
    pub allowed: Vec<Ipv4Net>,
    /// The host's API server as pods see it: what a pod must not reach, and so the proof of its NetworkPolicy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_api: Option<SocketAddrV4>,
}

impl Default for EgressPlan {
    /// What an operator that does not know of it means.
    fn default() -> Self {
        Self { guard: true, allowed: vec![], host_api: None }
    }
}

/// Address ranges of one cluster.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPlan {
    /// Pods of the cluster.
    pub pods: Ipv4Net,
    /// Services of the cluster.
    pub services: Ipv4Net,
    /// Node containers: Docker's network `kind`.
    pub nodes: Ipv4Net,
    /// Docker's default bridge.
    pub bridge: Ipv4Net,
    /// The host's ranges, which all of these must be clear of.
    pub host: Vec<Ipv4Net>,
}

/// What the pod may use.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodLimits {
    /// Memory limit of the pod in bytes.
    pub memory_bytes: i64,
    /// CPU limit of the pod in thousandths of a core; `None` is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<i64>,
    /// Size limit of the data-root in bytes; of a persistent one, the size that was requested.
    pub storage_bytes: i64,
}

/// What the operator wants of a running agent, beyond its [`AgentSettings`]: the whole wish at once, which may be said any number of times. A
/// field that is missing means what an operator meant that did not know of it; one that is not known is ignored, and then is missing from
/// [`OrdersReport::received`].
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Orders {
    /// Whether the cluster runs.
    pub power: PowerState,
    /// Whether the cluster stays on its volume when the pod ends; `None`: as the pod's settings say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<bool>,
    /// All names in the API server's certificate; `None`: those of [`AgentSettings::cert_sans`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_sans: Option<Vec<String>>,
    /// All images that are to be in every node; `None`: those of [`AgentSettings::preload`]. As carried out, `None` is the word of an agent that serves no
    /// cluster yet, or cannot bring images into one that it serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preload: Option<Vec<String>>,
    /// NodePorts of the cluster that the pod relays, at ports of its own under the same numbers. While the cluster is suspended none of them is open.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub ports: BTreeSet<u16>,
    /// Further users and the ClusterRoles that are to be bound to them. What is bound to others under [`USER_PREFIX`] goes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<BoundUser>,
}

/// A further user and its ClusterRole.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BoundUser {
    /// Name in `spec.kubeconfig.users`, without [`USER_PREFIX`].
    pub name: String,
    /// The ClusterRole.
    pub cluster_role: String,
}

/// What has become of the orders.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OrdersReport {
    /// The newest orders that have arrived; those of a new agent are [`Orders::default`].
    pub received: Orders,
    /// How the cluster is, in the same terms: other than `received` for as long as something is being carried out.
    pub carried_out: Orders,
    /// What could not be carried out and is tried again; at most one for each reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<AgentFailure>,
}

impl OrdersReport {
    /// What hinders orders that fail for this reason.
    pub fn failure(&self, reason: Reason) -> Option<&AgentFailure> {
        self.failures.iter().find(|failure| failure.reason == reason)
    }

    /// Says what hinders orders for this reason, or that nothing does any more.
    pub fn set_failure(&mut self, reason: Reason, failure: Option<AgentFailure>) {
        self.failures.retain(|have| have.reason != reason);
        self.failures.extend(failure);
    }
}

/// What is to be in the cluster: the whole wish at once, which may be said any number of times. May hold secrets.
#[derive(Clone, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Contents {
    /// Which wish this is; the agent repeats it in its report.
    pub edition: Edition,
    /// With another value than before, all manifests are applied anew.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reapply: String,
    /// What is to be applied, in this order.
    pub manifests: Vec<ManifestText>,
    /// What else is to be so.
    pub readiness: Readiness,
}

impl fmt::Debug for Contents {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Contents").field("edition", &self.edition).finish_non_exhaustive()
    }
}

/// Which wish for contents it is.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Edition {
    /// Digest of what the object itself says; empty if it says nothing.
    pub list: String,
    /// When that was read which the object refers to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_at: Option<Timestamp>,
}

/// A manifest.
#[derive(Clone, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ManifestText {
    /// Its name in the spec.
    pub name: String,
    /// The objects, as `kubectl apply` takes them.
    pub text: String,
    /// Whether nothing of it may be repeated.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub secret: bool,
}

/// What has become of the contents.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContentsReport {
    /// The newest contents that have arrived.
    pub received: Edition,
    /// Their manifests, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<ManifestReport>,
    /// What else is to be so, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<GateReport>,
}

/// What has become of a manifest.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ManifestReport {
    /// Its name.
    pub name: String,
    /// How far it is.
    pub state: ManifestState,
    /// What the last try failed of; may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// How far a manifest is.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum ManifestState {
    /// All of it is applied.
    Applied,
    /// It was tried for long enough.
    Failed,
    /// It is being applied, or something that this side does not know.
    #[default]
    #[serde(other)]
    Applying,
}

/// Whether something is so that is waited for.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GateReport {
    /// What it is.
    pub gate: String,
    /// Whether it has been so since it was asked for.
    pub met: bool,
    /// What it was found to be last; may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// What the agent has done and sees.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentReport {
    /// [`SCHEMA`] of the writer.
    #[serde(default)]
    pub schema: u32,
    /// Grows with every change.
    pub revision: u64,
    /// UID of the `KindCluster` that the agent works for.
    pub cluster_uid: String,
    /// The attempt that the agent is.
    pub attempt: i64,
    /// Where it stands.
    pub stage: Stage,
    /// Time spent in each stage so far, in order, as `(stage, milliseconds)`.
    #[serde(default)]
    pub stages: Vec<StageDuration>,
    /// Why it failed; set with [`Stage::Failed`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<AgentFailure>,
    /// Whether the API server answers `/readyz` and the admin group is bound.
    #[serde(default)]
    pub control_plane_ready: bool,
    /// The nodes as the API server lists them.
    #[serde(default)]
    pub nodes: Vec<NodeReport>,
    /// Containers of the cluster that have died and are not back for good yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dead_containers: Vec<DeadContainer>,
    /// UID of the `kube-system` namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nested_uid: Option<String>,
    /// Version that the API server reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_version: Option<String>,
    /// Version of kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind_version: Option<String>,
    /// Addresses of kind's network that load balancers inside the cluster may give to Services; `None` where Docker might give them to nodes.
    #[serde(default, rename = "loadBalancerCIDR", skip_serializing_if = "Option::is_none")]
    pub load_balancer_cidr: Option<Ipv4Net>,
    /// Set while the volume is about to be full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_pressure: Option<StoragePressure>,
    /// The certificates on the control plane's nodes; `None` until they have been looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates: Option<NodeCertificates>,
    /// Facts about the host that are fit to run but worth knowing.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What the pod's own connections say about its NetworkPolicy.
    #[serde(default)]
    pub policy_probe: PolicyProbe,
    /// Parts of the spec that the cluster was not made with, where the pod has taken it over from an earlier one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outdated: Vec<String>,
    /// Whether the host has cgroup v1; `None` from an agent that does not say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_v1: Option<bool>,
    /// What has become of the orders; `None` from an agent that takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orders: Option<OrdersReport>,
    /// Which of [`Orders::ports`] take connections at the moment; `None` from an agent that publishes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_ports: Option<BTreeSet<u16>>,
    /// What has become of the contents; `None` from an agent that takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contents: Option<ContentsReport>,
}

/// What came of a connection from the pod to the host's API server, which its NetworkPolicy forbids.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum PolicyProbe {
    /// The pod still tries: a CNI needs a moment to learn of it.
    Pending,
    /// None came about, while another one that is allowed did.
    Blocked,
    /// It came about.
    Open,
    /// Nothing that proves anything, or something that this side does not know. What is said where nothing is tried.
    #[default]
    #[serde(other)]
    Unknown,
}

/// The volume of the cluster is about to be full.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StoragePressure {
    /// Bytes that it held when this was seen first.
    pub used_bytes: i64,
    /// Bytes that it can hold.
    pub limit_bytes: i64,
}

/// Time spent in a stage.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StageDuration {
    /// The stage.
    pub stage: Stage,
    /// Milliseconds.
    pub milliseconds: i64,
}

/// Why an attempt failed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentFailure {
    /// The reason.
    pub reason: Reason,
    /// What happened, without the remedy.
    pub message: String,
    /// The last lines of evidence; may be empty.
    #[serde(default)]
    pub log_tail: String,
}

/// A node as the cluster's API server lists it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// Name of the node.
    pub name: String,
    /// Whether it carries the control-plane label.
    pub control_plane: bool,
    /// Whether its condition `Ready` is true.
    pub ready: bool,
}

/// A container of the cluster, a node's or the load balancer's, that has died although it was meant to run.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadContainer {
    /// Its name, which is also the node's.
    pub name: String,
    /// How its first process ended: 137 is SIGKILL.
    #[serde(default)]
    pub exit_code: i64,
    /// How often it was started again without lasting.
    #[serde(default)]
    pub starts: u32,
}

macro_rules! stages {
    ($($(#[doc = $doc:literal])+ $name:ident => $reason:ident,)+) => {
        /// Where an agent stands. The middle ones are kind's own printed steps.
        #[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
        pub enum Stage {
            $($(#[doc = $doc])+ $name,)+
            /// A stage that this side does not know.
            #[default]
            #[serde(other)]
            Unknown,
        }

        impl Stage {
            /// Every stage, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The reason that the conditions give while an agent is here.
            pub const fn reason(self) -> Reason {
                match self { Self::Unknown => Reason::Progressing, $(Self::$name => Reason::$reason,)+ }
            }
        }
    };
}

stages! {
    /// Checks of the host.
    Preflight => Preflight,
    /// Control groups of the pod.
    Cgroups => PreparingCgroups,
    /// Addresses and iptables.
    Network => PreparingNetwork,
    /// The Docker daemon.
    Dockerd => StartingDocker,
    /// The nodes of a cluster that was there before start again.
    Resuming => Resuming,
    /// Node image present in Docker.
    NodeImage => LoadingNodeImage,
    /// kind: Ensuring node image.
    EnsuringNodeImage => EnsuringNodeImage,
    /// kind: Preparing nodes.
    PreparingNodes => PreparingNodes,
    /// kind: Writing configuration.
    WritingConfiguration => WritingConfiguration,
    /// kind: Starting control-plane.
    StartingControlPlane => StartingControlPlane,
    /// kind: Installing CNI.
    InstallingCNI => InstallingCNI,
    /// kind: Installing StorageClass.
    InstallingStorageClass => InstallingStorageClass,
    /// kind: Joining more control-plane nodes.
    JoiningControlPlaneNodes => JoiningControlPlaneNodes,
    /// kind: Joining worker nodes.
    JoiningWorkerNodes => JoiningWorkerNodes,
    /// `/readyz` of the API server.
    WaitingForControlPlane => WaitingForControlPlane,
    /// The images that the spec wants in every node are put there; they are pulled while kind works.
    PreloadingImages => PreloadingImages,
    /// The relay is open; nodes may still be on their way.
    Serving => ClusterReady,
    /// The attempt is over.
    Failed => KindFailed,
    /// The pod is being stopped.
    Terminating => DeletingCluster,
}

impl Stage {
    /// The stage that a line printed by `kind create cluster` begins, if it does. kind 0.33 prints ` • Preparing nodes 📦  ...` without a
    /// terminal (`pkg/internal/cli/status.go`) and `✓` or `✗` when the step has ended.
    pub fn from_kind_line(line: &str) -> Option<Self> {
        let text = line.trim_start();
        let text = text.strip_prefix('•').unwrap_or(text).trim_start();
        let steps = [
            ("Ensuring node image", Self::EnsuringNodeImage),
            ("Preparing nodes", Self::PreparingNodes),
            ("Writing configuration", Self::WritingConfiguration),
            ("Starting control-plane", Self::StartingControlPlane),
            ("Installing CNI", Self::InstallingCNI),
            ("Installing StorageClass", Self::InstallingStorageClass),
            ("Joining more control-plane nodes", Self::JoiningControlPlaneNodes),
            ("Joining worker nodes", Self::JoiningWorkerNodes),
        ];
        steps.into_iter().find(|(prefix, _)| text.starts_with(prefix)).map(|(_, stage)| stage)
    }
}

/// Labels of a node that mark it as a control plane (kubeadm's own).
pub fn is_control_plane(labels: &BTreeMap<String, String>) -> bool {
    labels.contains_key("node-role.kubernetes.io/control-plane")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_side_is_understood() {
        let report: AgentReport = serde_json::from_str(
            r#"{"schema":9,"revision":3,"clusterUid":"u","attempt":1,"stage":"Teleporting","new":{},
                "failure":{"reason":"NeverHeardOf","message":"m"}}"#,
        )
        .unwrap();
        assert_eq!(report.stage, Stage::Unknown);
        assert_eq!(report.failure.unwrap().reason, Reason::KindFailed);
    }

    #[test]
    fn orders_of_another_release_are_understood() {
        let orders: Orders = serde_json::from_str(r#"{"schema":9,"power":"Frozen","new":{}}"#).unwrap();
        assert_eq!(orders, Orders { power: PowerState::Frozen, ..Orders::default() });
        assert_eq!(serde_json::from_str::<Orders>("{}").unwrap(), Orders::default());
        assert!(serde_json::from_str::<Orders>(r#"{"power":"Dreaming"}"#).is_err(), "a wish that is not understood is refused");
        let older: AgentReport = serde_json::from_str(r#"{"revision":3,"clusterUid":"u","attempt":1,"stage":"Serving"}"#).unwrap();
        assert_eq!(older.orders, None);
    }

    #[test]
    fn kind_lines_name_stages() {
        assert_eq!(Stage::from_kind_line(" • Preparing nodes 📦   ..."), Some(Stage::PreparingNodes));
        assert_eq!(Stage::from_kind_line(" • Ensuring node image (kindest/node:v1) 🖼 ..."), Some(Stage::EnsuringNodeImage));
        assert_eq!(Stage::from_kind_line(" • Joining more control-plane nodes 🎮 ..."), Some(Stage::JoiningControlPlaneNodes));
        assert_eq!(Stage::from_kind_line(" ✓ Preparing nodes 📦 "), None);
        assert_eq!(Stage::from_kind_line("ERROR: failed"), None);
    }
}
