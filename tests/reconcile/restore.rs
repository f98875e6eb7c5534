//! Objects that a backup brings back without their pods, as Velero does: with another UID, with or without their status and our finalizer, with or
//! without children of their former selves.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use nestling_core::api::KindCluster;
use nestling_core::api::conditions::{KUBECONFIG_PUBLISHED, READY, STALLED};
use serde_json::json;

use super::support::operator::CLUSTERS_NAMESPACE;
use super::support::wait::{COLLECTED, condition, gone};
use super::{SOON, Stage};

/// The operator asks again every half minute where something is in the way, and the host's garbage collector takes its time, too.
const CLEARED: Duration = Duration::from_mins(2);

/// What a backup holds, and what of the former cluster is still there when it is restored.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is there or not")]
struct Backup {
    status: bool,
    finalizer: bool,
    /// The Secret in the user's namespace, with the owner that it had.
    kubeconfig: bool,
    /// Keys, Service and NetworkPolicy in the clusters namespace, and a pod that nobody runs.
    children: bool,
}

impl Stage {
    fn of<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.plane.client.clone(), CLUSTERS_NAMESPACE)
    }

    /// Loses everything of a cluster, as a disaster does, and restores what the backup has. No operator runs meanwhile.
    async fn restore(&self, name: &str, backup: Backup) -> KindCluster {
        let saved = self.clusters.get(name).await.unwrap();
        let secret = self.secrets().get(&format!("{name}-kubeconfig")).await.unwrap();
        let ours = ListParams::default().labels(&format!("nestling.dev/cluster-name={name}"));
        let pod = self.of::<Pod>().list(&ours).await.unwrap().items.remove(0);
        let none = DeleteParams::default().grace_period(0);
        self.of::<Pod>().delete_collection(&none, &ours).await.unwrap();
        gone(&self.of::<Pod>(), &pod.name_any(), SOON).await;
        if !backup.children {
            self.of::<Secret>().delete_collection(&none, &ours).await.unwrap();
            self.of::<NetworkPolicy>().delete_collection(&none, &ours).await.unwrap();
            for service in self.of::<Service>().list(&ours).await.unwrap() {
                self.of::<Service>().delete(&service.name_any(), &none).await.unwrap();
            }
        }
        self.patch(name, json!({"metadata": {"finalizers": null}})).await;
        self.clusters.delete(name, &none).await.unwrap();
        gone(&self.clusters, name, SOON).await;
        gone(&self.secrets(), &secret.name_any(), COLLECTED).await;

        if backup.children {
            let mut pod = Pod { status: None, ..pod };
            (pod.metadata.uid, pod.metadata.resource_version, pod.spec.as_mut().unwrap().node_name) = (None, None, None);
            self.of::<Pod>().create(&PostParams::default(), &pod).await.unwrap();
        }
        if backup.kubeconfig {
            let mut secret = secret;
            (secret.metadata.uid, secret.metadata.resource_version) = (None, None);
            self.secrets().create(&PostParams::default(), &secret).await.unwrap();
        }
        let mut object = KindCluster::new(name, saved.spec.clone());
        object.metadata.labels.clone_from(&saved.metadata.labels);
        object.metadata.finalizers = saved.metadata.finalizers.clone().filter(|_| backup.finalizer);
        let restored = self.clusters.create(&PostParams::default(), &object).await.unwrap();
        assert_ne!(restored.uid(), saved.uid());
        if backup.status {
            let status = Patch::Merge(json!({"status": saved.status}));
            self.clusters.patch_status(name, &PatchParams::default(), &status).await.unwrap();
        }
        restored
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backup_brings_back_without_its_pod_becomes_ready() {
    let stage = Stage::set().await;
    let mut operator = stage.operator();
    let all = [
        Backup { status: false, finalizer: false, kubeconfig: false, children: false },
        Backup { status: false, finalizer: true, kubeconfig: false, children: false },
        Backup { status: true, finalizer: false, kubeconfig: false, children: false },
        Backup { status: true, finalizer: true, kubeconfig: true, children: false },
        Backup { status: false, finalizer: true, kubeconfig: false, children: true },
        Backup { status: true, finalizer: true, kubeconfig: true, children: true },
    ];
    let name = |index: usize| format!("crane-{index}");
    for index in 0..all.len() {
        stage.create(&name(index), json!({})).await;
    }
    for index in 0..all.len() {
        condition(&stage.clusters, &name(index), READY, "True", None, SOON).await;
    }
    operator.kill();
    let mut restored = Vec::new();
    for (index, backup) in all.iter().enumerate() {
        restored.push(stage.restore(&name(index), *backup).await);
    }
    let _operator = stage.operator();
    for (index, backup) in all.iter().enumerate() {
        let cluster = condition_of_the_new_one(&stage, &name(index), restored[index].uid()).await;
        let status = cluster.status.unwrap();
        // What was running is known to be lost only where the backup says that it was.
        assert_eq!(status.last_failure.map(|failure| failure.reason), backup.status.then(|| "PodLost".to_owned()), "{backup:?}");
        assert_eq!(status.attempt, Some(if backup.status { 2 } else { 1 }), "{backup:?}");
        let secret = stage.secrets().get(&format!("{}-kubeconfig", name(index))).await.unwrap();
        assert_eq!(Some(&secret.labels()["nestling.dev/cluster-uid"]), restored[index].uid().as_ref(), "{backup:?}");
    }
    for index in 0..all.len() {
        stage.delete(&name(index)).await;
    }
    // A pod of the former self that was in nobody's way is the sweeper's, which takes its time.
    let left = stage.children().await;
    assert!(left.len() == 1 && left[0].starts_with(&format!("Pod c-{}-", name(5))), "{left:?}");
}

/// Ready, with a kubeconfig of its own.
async fn condition_of_the_new_one(stage: &Stage, name: &str, uid: Option<String>) -> KindCluster {
    super::until("the restored cluster to be ready", CLEARED, async || {
        let cluster = stage.clusters.get(name).await.map_err(|error| error.to_string())?;
        let status = cluster.status.clone().unwrap_or_default();
        let pod = status.pod_ref.as_ref().map(|pod| pod.name.clone()).unwrap_or_default();
        let pod = stage.of::<Pod>().get_opt(&pod).await.map_err(|error| error.to_string())?;
        let its_own = pod.is_some_and(|pod| pod.labels().get("nestling.dev/cluster-uid") == uid.as_ref());
        let ready = nestling_core::api::conditions::is_true(&status.conditions, READY);
        if ready && its_own { Ok(cluster) } else { Err(super::support::wait::describe(&cluster)) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backup_brings_back_is_not_made_anew_where_the_spec_forbids_it() {
    let stage = Stage::set().await;
    let mut operator = stage.operator();
    stage.create("dodo", json!({"lifecycle": {"podLossPolicy": "Fail"}})).await;
    condition(&stage.clusters, "dodo", READY, "True", None, SOON).await;
    operator.kill();
    stage.restore("dodo", Backup { status: true, finalizer: true, kubeconfig: false, children: false }).await;
    let _operator = stage.operator();
    condition(&stage.clusters, "dodo", STALLED, "True", Some("PodLost"), SOON).await;
    stage.delete("dodo").await;
    assert_eq!(stage.children().await, Vec::<String>::new());
}

/// Without an owner nothing says that it may go: its user is told, and decides.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_kubeconfig_without_an_owner_is_named() {
    let stage = Stage::set().await;
    let mut operator = stage.operator();
    stage.create("crane", json!({})).await;
    condition(&stage.clusters, "crane", READY, "True", None, SOON).await;
    operator.kill();
    let mut secret = stage.secrets().get("crane-kubeconfig").await.unwrap();
    stage.restore("crane", Backup { status: false, finalizer: false, kubeconfig: false, children: false }).await;
    (secret.metadata.uid, secret.metadata.resource_version, secret.metadata.owner_references) = (None, None, None);
    stage.secrets().create(&PostParams::default(), &secret).await.unwrap();
    let _operator = stage.operator();
    condition(&stage.clusters, "crane", KUBECONFIG_PUBLISHED, "False", Some("KubeconfigSecretConflict"), SOON).await;
    stage.secrets().delete("crane-kubeconfig", &DeleteParams::default()).await.unwrap();
    condition(&stage.clusters, "crane", READY, "True", None, CLEARED).await;
    stage.delete("crane").await;
}
