//! What one pass has seen.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::names::Identity;
use super::objects::attempt_of;
use super::settings::Settings;
use super::wire::AgentReport;
use crate::api::{FINALIZER, KindCluster, KindClusterStatus};

/// What one pass has seen. Caches may be behind; only [`Children::live`] proves that something is gone.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The object itself.
    pub cluster: KindCluster,
    /// Its identity.
    pub identity: Identity,
    /// The operator's settings.
    pub settings: Arc<Settings>,
    /// Its children.
    pub children: Children,
    /// The newest report of the agent in the newest pod.
    pub report: Option<AgentReport>,
    /// Whether the logs of the newest pod are to be had, once its attempt has failed.
    pub logs: Logs,
    /// The host's node under the newest pod, where it was looked at ([`needs_node`]).
    pub host_node: Option<HostNode>,
    /// Whether it is this cluster's turn to be created.
    pub turn: Turn,
}

/// Whether the logs of a failed attempt are to be had.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Logs {
    /// The agent has not answered yet, or was not asked.
    #[default]
    Awaited,
    /// They are here.
    Held,
    /// There are none.
    Unavailable,
}

/// A node of the host cluster, as its control plane sees it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HostNode {
    /// Its kubelet reports that it is ready.
    Ready,
    /// It does not, since then.
    NotReady {
        /// When that was seen first.
        since: Timestamp,
    },
    /// There is no such node any more.
    Gone,
}

/// What one `KindCluster` is made of in the clusters namespace; it carries the object's UID.
#[derive(Clone, Debug, Default)]
pub struct Children {
    /// Whether this, and the object itself, was read from the API server rather than from a cache.
    pub live: bool,
    /// Pods, of all attempts.
    pub pods: Vec<Pod>,
    /// Services.
    pub services: Vec<Service>,
    /// Network policies.
    pub policies: Vec<NetworkPolicy>,
    /// Secrets with keys, metadata only.
    pub keys: Vec<ObjectMeta>,
    /// Claims on the cluster's volume.
    pub claims: Vec<PersistentVolumeClaim>,
}

impl Children {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.services.is_empty() && self.policies.is_empty() && self.keys.is_empty() && self.claims.is_empty()
    }

    /// The newest pod that nobody has deleted.
    pub fn current_pod(&self) -> Option<&Pod> {
        self.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).max_by_key(|pod| attempt_of(pod))
    }

    /// The highest attempt among all pods, also those on their way out.
    pub fn newest_attempt(&self) -> i64 {
        self.pods.iter().map(attempt_of).max().unwrap_or(0)
    }
}

/// Whether it is a cluster's turn to be created.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Turn {
    /// It may be created.
    Granted,
    /// It waits; so many are before it.
    Queued {
        /// Number of clusters that come first.
        before: usize,
    },
}

impl Observed {
    /// The status that was written last.
    pub fn status(&self) -> KindClusterStatus {
        self.cluster.status.clone().unwrap_or_default()
    }

    /// Generation of the spec.
    pub fn generation(&self) -> i64 {
        self.cluster.metadata.generation.unwrap_or(0)
    }
}

/// Whether the caches are not enough: no pod is there, and what follows from that (a new pod, the end of the volume and of the finalizer) must not follow from
/// a cache that is only behind. The object itself and its children are then read from the API server.
pub fn needs_live(cluster: &KindCluster, children: &Children) -> bool {
    let ours = cluster.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER);
    let deleting = cluster.metadata.deletion_timestamp.is_some();
    ours && !cluster.spec.paused && if deleting { children.pods.is_empty() } else { children.current_pod().is_none() }
}

/// The attempt whose pod is the only one that there can be; `None` where there may be others. The second attempt is made when the first is on record.
pub fn only_attempt(cluster: &KindCluster) -> Option<i64> {
    let begun = cluster.status.as_ref().is_some_and(|status| status.attempt.is_some());
    (!begun && cluster.metadata.deletion_timestamp.is_none()).then_some(1)
}

/// The node that has to be looked at: that of a cluster whose pod is not ready, which is the first that is heard of a node that is lost.
pub fn needs_node<'a>(cluster: &KindCluster, children: &'a Children) -> Option<&'a str> {
    let pod = children.current_pod()?;
    let established = cluster.status.as_ref().is_some_and(|status| status.cluster_attempt == Some(attempt_of(pod)));
    pod.spec.as_ref()?.node_name.as_deref().filter(|_| established && !is_ready(pod))
}

/// Whether the kubelet finds a pod ready.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The identity of an object that the API server has accepted; `None` for one that it has not seen.
pub fn identity(cluster: &KindCluster) -> Option<Identity> {
    let meta = &cluster.metadata;
    Some(Identity { namespace: meta.namespace.clone()?, name: meta.name.clone()?, uid: meta.uid.clone()? })
}

/// When a pod was created; the epoch for one that is not created yet.
pub fn created_at(meta: &ObjectMeta) -> Timestamp {
    meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}
