//! Children of an earlier object of the same name that are in the way: what a restore from a backup, or a finalizer removed by force, leaves behind.
//!
//! The sweeper would take them away as well, but it takes its time because it must guess that an owner is gone. Here it is known: as long as an object
//! of this name lives with another UID, the one that they belonged to is gone for good.

use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource};
use nestling_core::api::{KindCluster, labels};
use nestling_core::plan::observed::Observed;
use serde::de::DeserializeOwned;
use tracing::info;

use super::act::delete_exactly;
use super::call::{CallError, call};
use super::key::Key;

/// What became of a child that was in the way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cleared {
    /// It is being deleted, or what was seen is out of date: look again.
    Soon,
    /// Somebody has deleted it, and something keeps it.
    Lingers,
    /// It is nobody's that we know.
    Foreign,
}

/// Deletes this child, if it belonged to an earlier object of the same name.
pub async fn clear<K>(client: &Client, seen: &Observed, child: &ObjectMeta) -> Result<Cleared, CallError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let identity = &seen.identity;
    let install = child.labels.as_ref().and_then(|labels| labels.get(labels::INSTALL));
    let earlier = Key::of_owner(child).is_some_and(|owner| owner.namespace == identity.namespace && owner.name == identity.name);
    let (true, Some(name), Some(uid)) = (earlier && install == Some(&seen.settings.install), &child.name, &child.uid) else { return Ok(Cleared::Foreign) };
    if child.deletion_timestamp.is_some() {
        return Ok(Cleared::Lingers);
    }
    // A pass on an old cache could take the child of a later object for that of an earlier one.
    let owners: Api<KindCluster> = Api::namespaced(client.clone(), &identity.namespace);
    let owner = call("read the KindCluster", owners.get_metadata_opt(&identity.name)).await?;
    if owner.and_then(|owner| owner.metadata.uid).as_ref() != Some(&identity.uid) {
        return Ok(Cleared::Soon);
    }
    info!(kind = %K::kind(&()), name, "deleting what an earlier KindCluster of this name has left");
    let children: Api<K> = Api::namespaced(client.clone(), &seen.settings.clusters_namespace);
    delete_exactly::<K>("delete what an earlier KindCluster of this name has left", &children, name, uid).await?;
    Ok(Cleared::Soon)
}
