//! What a pass gets to see: caches, and the API server itself where a cache is not enough.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ListParams, PartialObjectMeta};
use kube::runtime::reflector::Store;
use kube::{Api, Client};
use nestling_core::api::{KindCluster, labels};
use nestling_core::plan::observed::{Children, HostNode, Logs, Observed, Turn, identity, needs_live, needs_node};
use nestling_core::plan::settings::Settings;
use tokio::sync::watch;
use tracing::warn;

use super::call::{CallError, call, list_all};
use super::children::ChildCache;
use super::kept::Kept;
use super::key::Key;
use super::live;
use super::logs::LogStore;
use super::reports::Reports;

/// The caches. All but the first hold only objects of this installation, in the clusters namespace.
#[derive(Clone)]
pub struct Caches {
    /// `KindCluster`s of all namespaces.
    pub clusters: Store<Kept>,
    /// Pods.
    pub pods: ChildCache<Pod>,
    /// Services.
    pub services: ChildCache<Service>,
    /// Network policies.
    pub policies: ChildCache<NetworkPolicy>,
    /// Secrets with keys, metadata only: keys are never cached.
    pub keys: ChildCache<PartialObjectMeta<Secret>>,
    /// Claims on volumes.
    pub claims: ChildCache<PersistentVolumeClaim>,
}

/// Why nothing was seen.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The API server.
    #[error(transparent)]
    Call(#[from] CallError),
    /// An object without name, namespace or UID: not from an API server.
    #[error("the object has no identity")]
    NoIdentity,
}

impl ObserveError {
    /// Label for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Call(error) => error.reason(),
            Self::NoIdentity => "NoIdentity",
        }
    }
}

/// Reads only.
pub struct Observer {
    /// Towards the host cluster.
    pub client: Client,
    /// The caches.
    pub caches: Caches,
    /// The settings, which change with the host cluster.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// What the agents say.
    pub reports: Arc<Reports>,
    /// What failed attempts have left.
    pub logs: Arc<LogStore>,
}

impl Observer {
    /// Everything that a pass over this object needs. `None`: the object is gone.
    pub async fn observe(&self, cached: KindCluster) -> Result<Option<Observed>, ObserveError> {
        let identity = identity(&cached).ok_or(ObserveError::NoIdentity)?;
        let settings = Arc::clone(&self.settings.borrow());
        let mut cluster = cached;
        let mut children = self.caches.children(&identity.uid);
        if needs_live(&cluster, &children) {
            let api: Api<KindCluster> = Api::namespaced(self.client.clone(), &identity.namespace);
            let live = call("read the KindCluster", api.get_opt(&identity.name)).await?;
            let Some(live) = live.filter(|live| live.metadata.uid.as_ref() == Some(&identity.uid)) else { return Ok(None) };
            cluster = live;
            children = Box::pin(live::children(&self.client, &settings.clusters_namespace, &cluster, &identity)).await?;
        }
        let key = Key { namespace: identity.namespace.clone(), name: identity.name.clone() };
        let report = children.current_pod().and_then(|pod| self.reports.newest(&key, pod));
        let logs = children.current_pod().map_or(Logs::default(), |pod| self.logs.of(&key, pod));
        let host_node = match needs_node(&cluster, &children) {
            Some(node) => self.host_node(node).await,
            None => None,
        };
        Ok(Some(Observed { cluster, identity, settings, children, report, logs, host_node, turn: Turn::Granted }))
    }
}

impl Observer {
    /// A node of the host. `None` if that cannot be found out: a look that fails says nothing of the node.
    async fn host_node(&self, name: &str) -> Option<HostNode> {
        let params = ListParams::default().fields(&format!("metadata.name={name}"));
        match list_all("look at the host's node", &Api::<Node>::all(self.client.clone()), params).await {
            Ok(found) => Some(found.first().map_or(HostNode::Gone, state_of)),
            Err(error) => {
                warn!(%error, node = name, "cannot look at the host's node");
                None
            }
        }
    }
}

/// Whether a node's kubelet still reports. One that reports trouble is there and takes care of its pods itself.
fn state_of(node: &Node) -> HostNode {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let silent = conditions.into_iter().find(|condition| condition.type_ == "Ready" && condition.status == "Unknown");
    match silent.and_then(|condition| condition.last_transition_time.as_ref()) {
        Some(since) => HostNode::NotReady { since: since.0 },
        None => HostNode::Ready,
    }
}

impl Caches {
    /// The children of this object that the caches show.
    pub fn children(&self, uid: &str) -> Children {
        Children {
            live: false,
            pods: self.pods.of(uid),
            services: self.services.of(uid),
            policies: self.policies.of(uid),
            keys: self.keys.of(uid).into_iter().map(|keys| keys.metadata).collect(),
            claims: self.claims.of(uid),
        }
    }
}

/// UID of the `KindCluster` that a child belongs to.
pub fn owner_uid(child: &ObjectMeta) -> Option<&str> {
    child.labels.as_ref()?.get(labels::CLUSTER_UID).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_is_lost_when_its_kubelet_is_silent() {
        let node = |ready: &str| -> Node {
            serde_json::from_value(json!({"status": {"conditions": [
                {"type": "MemoryPressure", "status": "Unknown", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                {"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-02T00:00:00Z"},
            ]}}))
            .unwrap()
        };
        assert_eq!(state_of(&node("Unknown")), HostNode::NotReady { since: "2026-01-02T00:00:00Z".parse().unwrap() });
        assert_eq!((state_of(&node("False")), state_of(&node("True"))), (HostNode::Ready, HostNode::Ready));
    }
}
