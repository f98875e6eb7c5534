//! The custom resources, one file per kind, and every name that is written into the host cluster.

pub mod conditions;
pub mod crds;
pub mod kind_config;
pub mod kindcluster;
mod power;
mod published_port;
pub mod reasons;
mod status;

pub use kindcluster::*;
pub use power::*;
pub use published_port::*;
pub use status::*;

/// API group of all kinds.
pub const GROUP: &str = "nestling.dev";

/// Version of all kinds.
pub const VERSION: &str = "v1alpha1";

/// Finalizer on a [`KindCluster`]; goes last, when a live list shows that nothing of the cluster is left.
pub const FINALIZER: &str = "nestling.dev/cluster";

/// Field manager of every server-side apply and status write.
pub const FIELD_MANAGER: &str = "nestling.dev/kindcluster";

/// Labels on everything that Nestling creates.
pub mod labels {
    /// Namespace of the [`KindCluster`](super::KindCluster) that an object belongs to.
    pub const CLUSTER_NAMESPACE: &str = "nestling.dev/cluster-namespace";
    /// Name of the [`KindCluster`](super::KindCluster) that an object belongs to.
    pub const CLUSTER_NAME: &str = "nestling.dev/cluster-name";
    /// UID of the [`KindCluster`](super::KindCluster); nothing is adopted or deleted unless it matches.
    pub const CLUSTER_UID: &str = "nestling.dev/cluster-uid";
    /// The installation (Helm release) that made an object; another one's objects are left alone.
    pub const INSTALL: &str = "nestling.dev/install";
    /// Number of the attempt that a pod is.
    pub const ATTEMPT: &str = "nestling.dev/attempt";
    /// The recommended label that names the managing tool.
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// Value of [`MANAGED_BY`].
    pub const MANAGED_BY_NESTLING: &str = "nestling";
    /// The user of `spec.kubeconfig.users` whose credentials a Secret holds; the user that a ClusterRoleBinding inside of a cluster is for.
    pub const USER: &str = "nestling.dev/user";
    /// Cluster API's label on a kubeconfig Secret.
    pub const CAPI_CLUSTER_NAME: &str = "cluster.x-k8s.io/cluster-name";
    /// Argo CD's label on the Secrets that it knows clusters from.
    pub const ARGO_CD_SECRET_TYPE: &str = "argocd.argoproj.io/secret-type";
}

/// Annotations on the objects that Nestling creates, and one that it reads.
pub mod annotations {
    /// What the agent is to do ([`AgentSettings`](crate::plan::wire::AgentSettings) as JSON), on the pod.
    pub const SETTINGS: &str = "nestling.dev/settings";
    /// Digest of the part of the spec that only a new attempt can take over, on the pod; of the list of registries, on the Secret with what they
    /// want to see.
    pub const SETTINGS_DIGEST: &str = "nestling.dev/settings-digest";
    /// When what the spec refers to was read last, on the Secret that holds the copy.
    pub const READ_AT: &str = "nestling.dev/read-at";
    /// Digests of the single fields behind [`SETTINGS_DIGEST`], for people: they name what has changed since. On the pod.
    pub const SETTINGS_DETAIL: &str = "nestling.dev/settings-detail";
    /// When the keys of the channel to the agent are made anew, on the Secret that holds them.
    pub const RENEW_AT: &str = "nestling.dev/renew-at";
    /// Digest of what was applied, on the Service: comparing alone does not show what the spec does not ask for any more.
    pub const APPLIED_DIGEST: &str = "nestling.dev/applied-digest";
    /// On a [`KindCluster`](super::KindCluster), by its user: another value than the one on record replaces the cluster by a new, empty one.
    pub const RECREATE: &str = "nestling.dev/recreate";
    /// On a [`KindCluster`](super::KindCluster), by its user: with another value than before, what `spec.manifests` refers to is read at once, and all of it
    /// is applied anew.
    pub const REAPPLY: &str = "nestling.dev/reapply";
    /// Tells the cluster autoscaler to leave the pod's node alone.
    pub const SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";
}
