//! Which `KindCluster` is meant, and the way to have it looked at again.

use std::fmt;

use futures::channel::mpsc;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::reflector::ObjectRef;
use nestling_core::api::labels;

use super::kept::Kept;

/// Namespace and name of a `KindCluster`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// Of the object itself.
    pub fn of(meta: &ObjectMeta) -> Option<Self> {
        Some(Self { namespace: meta.namespace.clone()?, name: meta.name.clone()? })
    }

    /// Of a child's owner, by the child's labels.
    pub fn of_owner(child: &ObjectMeta) -> Option<Self> {
        let have = child.labels.as_ref()?;
        Some(Self { namespace: have.get(labels::CLUSTER_NAMESPACE)?.clone(), name: have.get(labels::CLUSTER_NAME)?.clone() })
    }

    /// As the caches name it.
    pub fn reference(&self) -> ObjectRef<Kept> {
        ObjectRef::new(&self.name).within(&self.namespace)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}

/// Asks for passes. Unbounded, because the queue behind it holds each key at most once.
#[derive(Clone, Debug)]
pub struct Triggers(mpsc::UnboundedSender<Key>);

impl Triggers {
    /// A trigger and the stream of keys that it asks for.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Key>) {
        let (sender, receiver) = mpsc::unbounded();
        (Self(sender), receiver)
    }

    /// Asks for a pass. Without effect during shutdown.
    pub fn fire(&self, key: Key) {
        let _ = self.0.unbounded_send(key);
    }
}
