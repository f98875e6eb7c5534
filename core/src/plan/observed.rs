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
    /// Everything in the clusters namespace that carries this object's UID.
    pub children: Children,
    /// The newest report of the agent in the newest pod.
    pub report: Option<AgentReport>,
    /// Whether it is this cluster's turn to be created.
    pub turn: Turn,
}

/// Everything in the clusters namespace that carries one `KindCluster`'s UID.
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

/// The identity of an object that the API server has accepted; `None` for one that it has not seen.
pub fn identity(cluster: &KindCluster) -> Option<Identity> {
    let meta = &cluster.metadata;
    Some(Identity { namespace: meta.namespace.clone()?, name: meta.name.clone()?, uid: meta.uid.clone()? })
}

/// When a pod was created; the epoch for one that is not created yet.
pub fn created_at(meta: &ObjectMeta) -> Timestamp {
    meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}
