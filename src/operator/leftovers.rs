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

#[cfg(test)]
mod tests {

    use super::*;
    use crate::operator::mock::{self, Answer, Mock};
    use k8s_openapi::api::core::v1::Secret;
    use rstest::rstest;
    use serde_json::{Value, json};

    const OWNER: &str = "/apis/nestling.dev/v1alpha1/namespaces/marsh/kindclusters/crane";

    fn seen() -> Observed {
        mock::seen(json!({"metadata": {"name": "crane", "namespace": "marsh", "uid": "new"}, "spec": {}}))
    }

    fn child(name: &str, install: &str, deleted: &Value) -> ObjectMeta {
        serde_json::from_value(json!({"name": "c-crane-x", "uid": "child", "deletionTimestamp": deleted, "labels": {"nestling.dev/install": install,
            "nestling.dev/cluster-namespace": "marsh", "nestling.dev/cluster-name": name, "nestling.dev/cluster-uid": "old"}}))
        .unwrap()
    }

    #[rstest]
    #[case::of_another_cluster("heron", "reed", Value::Null, Cleared::Foreign)]
    #[case::of_another_installation("crane", "rush", Value::Null, Cleared::Foreign)]
    #[case::on_its_way("crane", "reed", json!("2026-01-01T00:00:00Z"), Cleared::Lingers)]
    #[tokio::test]
    async fn stays(#[case] name: &str, #[case] install: &str, #[case] deleted: Value, #[case] expected: Cleared) {
        let (client, mock) = Mock::new();
        assert_eq!(clear::<Secret>(&client, &seen(), &child(name, install, &deleted)).await.unwrap(), expected);
        mock.done().await;
    }

    #[rstest]
    #[case::ours("new", true)]
    #[case::a_later_one("later", false)]
    #[tokio::test]
    async fn goes_only_if_the_object_of_this_name_is_the_one_that_was_seen(#[case] owner: &'static str, #[case] goes: bool) {
        let (client, mut mock) = Mock::new();
        let server = tokio::spawn(async move {
            mock.expect("GET", OWNER, Answer::ok(json!({"metadata": {"name": "crane", "namespace": "marsh", "uid": owner}}))).await;
            if goes {
                let sent = mock.expect("DELETE", "/api/v1/namespaces/clusters/secrets/c-crane-x", Answer::missing()).await;
                assert_eq!(sent["preconditions"]["uid"], "child");
            }
            mock.done().await;
        });
        assert_eq!(clear::<Secret>(&client, &seen(), &child("crane", "reed", &Value::Null)).await.unwrap(), Cleared::Soon);
        server.await.unwrap();
    }
}
