//! Children whose `KindCluster` is gone though its finalizer should have seen to them: somebody removed it by force.
//!
//! Slow on purpose. A child goes only if it carries this installation's label, is older than ten minutes, and its owner was found missing (by a
//! live read; what a cache does not show is only a reason for one) twice, ten minutes apart.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client, Resource};
use nestling_core::api::KindCluster;
use nestling_core::plan::decide::ChildKind;
use nestling_core::plan::observed::created_at;
use serde::de::DeserializeOwned;
use tokio::time::sleep;
use tracing::{info, warn};

use super::act::delete_exactly;
use super::call::{CallError, call};
use super::children::ChildCache;
use super::key::Key;
use super::observe::{Caches, owner_uid};

/// Least age of a child, and least time between two sightings, of which there is one at the start and one each time this is over.
const PATIENCE: Duration = Duration::from_mins(10);

/// When children were first seen without an owner, by their UID.
type Suspects = HashMap<String, Timestamp>;

/// A child, as far as it matters here.
struct Found {
    kind: ChildKind,
    meta: ObjectMeta,
}

/// What to do about a child without an owner. Pure.
fn is_due(now: Timestamp, child: &ObjectMeta, suspects: &Suspects) -> bool {
    let past = |time: Timestamp| Duration::try_from(now.duration_since(time)).is_ok_and(|age| age >= PATIENCE);
    let seen_before = child.uid.as_ref().and_then(|uid| suspects.get(uid)).is_some_and(|first| past(*first));
    seen_before && past(created_at(child)) && child.deletion_timestamp.is_none()
}

/// Sweeps for ever. The caches have to be complete.
pub async fn run(client: Client, namespace: String, caches: Caches) {
    let mut suspects = Suspects::new();
    loop {
        if let Err(error) = sweep(&client, &namespace, orphans(&caches), Timestamp::now(), &mut suspects).await {
            warn!(%error, "cannot look for children without an owner");
        }
        sleep(PATIENCE).await;
    }
}

/// Children whose owner the caches do not show: those that are worth a question. Most often there are none, and nobody is asked anything.
fn orphans(caches: &Caches) -> Vec<Found> {
    let clusters = caches.clusters.state();
    let there: HashSet<&str> = clusters.iter().filter_map(|cluster| cluster.meta().uid.as_deref()).collect();
    let mut found = without(&there, ChildKind::Pod, &caches.pods);
    found.extend(without(&there, ChildKind::Service, &caches.services));
    found.extend(without(&there, ChildKind::NetworkPolicy, &caches.policies));
    found.extend(without(&there, ChildKind::Keys, &caches.keys));
    found.extend(without(&there, ChildKind::VolumeClaim, &caches.claims));
    found
}

fn without<K: Resource + DeserializeOwned>(there: &HashSet<&str>, kind: ChildKind, cache: &ChildCache<K>) -> Vec<Found> {
    let gone = cache.owners().into_iter().filter(|owner| !there.contains(&**owner));
    gone.flat_map(|owner| cache.of(&owner)).map(|child| Found { kind, meta: child.meta().clone() }).collect()
}

/// One look at these children.
async fn sweep(client: &Client, namespace: &str, children: Vec<Found>, now: Timestamp, suspects: &mut Suspects) -> Result<(), CallError> {
    let mut owners: HashMap<Key, Option<String>> = HashMap::new();
    let mut still = Suspects::new();
    for child in children {
        // Without these labels it is not something that we made.
        let (Some(key), Some(wanted), Some(uid)) = (Key::of_owner(&child.meta), owner_uid(&child.meta), child.meta.uid.clone()) else { continue };
        if !owners.contains_key(&key) {
            owners.insert(key.clone(), owner(client, &key).await?);
        }
        if owners.get(&key).and_then(Option::as_deref) == Some(wanted) {
            continue;
        }
        still.insert(uid.clone(), suspects.get(&uid).copied().unwrap_or(now));
        if is_due(now, &child.meta, suspects) {
            let name = child.meta.name.clone().unwrap_or_default();
            info!(kind = ?child.kind, name, %key, "deleting a child whose KindCluster is gone");
            delete(client, namespace, child.kind, &name, &uid).await?;
        }
    }
    *suspects = still;
    Ok(())
}

/// UID of the `KindCluster` of this name, if there is one.
async fn owner(client: &Client, key: &Key) -> Result<Option<String>, CallError> {
    let api: Api<KindCluster> = Api::namespaced(client.clone(), &key.namespace);
    let owner = call("read the owner of a child", api.get_metadata_opt(&key.name)).await?;
    Ok(owner.and_then(|owner| owner.metadata.uid))
}

async fn delete(client: &Client, namespace: &str, kind: ChildKind, name: &str, uid: &str) -> Result<(), CallError> {
    let what = "delete a child whose KindCluster is gone";
    match kind {
        ChildKind::Pod => delete_exactly::<Pod>(what, &Api::namespaced(client.clone(), namespace), name, uid).await,
        ChildKind::Service => delete_exactly::<Service>(what, &Api::namespaced(client.clone(), namespace), name, uid).await,
        ChildKind::NetworkPolicy => delete_exactly::<NetworkPolicy>(what, &Api::namespaced(client.clone(), namespace), name, uid).await,
        ChildKind::Keys => delete_exactly::<Secret>(what, &Api::namespaced(client.clone(), namespace), name, uid).await,
        ChildKind::VolumeClaim => delete_exactly::<PersistentVolumeClaim>(what, &Api::namespaced(client.clone(), namespace), name, uid).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::kept::Kept;
    use crate::operator::mock::{Answer, Mock};
    use crate::operator::packed::Packer;
    use crate::operator::watch::caches;
    use kube::runtime::watcher::Event;
    use serde_json::{Value, json};

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + minute * 60).unwrap()
    }

    fn child() -> Value {
        json!({"metadata": {
            "name": "c-crane-x-1", "namespace": "clusters", "uid": "pod-uid", "creationTimestamp": at(-1).to_string(),
            "labels": {"nestling.dev/cluster-namespace": "marsh", "nestling.dev/cluster-name": "crane", "nestling.dev/cluster-uid": "gone"},
        }})
    }

    fn found() -> Vec<Found> {
        let pod: Pod = serde_json::from_value(child()).unwrap();
        vec![Found { kind: ChildKind::Pod, meta: pod.metadata }]
    }

    #[test]
    fn only_whose_owner_is_not_in_sight_is_asked_about() {
        let (caches, mut writers) = caches();
        writers.pods().follow(&Event::Apply(serde_json::from_value(child()).unwrap()));
        let names = |found: Vec<Found>| found.into_iter().filter_map(|found| found.meta.name).collect::<Vec<_>>();
        assert_eq!(names(orphans(&caches)), ["c-crane-x-1"]);
        let owner = |uid: &str| serde_json::from_value(json!({"metadata": {"name": "crane", "namespace": "marsh", "uid": uid}, "spec": {}})).unwrap();
        writers.clusters().apply_watcher_event(&Event::Apply(Kept::new(&Packer::default(), owner("another"))));
        assert_eq!(names(orphans(&caches)), ["c-crane-x-1"]);
        writers.clusters().apply_watcher_event(&Event::Apply(Kept::new(&Packer::default(), owner("gone"))));
        assert!(orphans(&caches).is_empty());
    }

    async fn look(minute: i64, suspects: &mut Suspects, owner: Answer, deleted: bool) {
        let (client, mut mock) = Mock::new();
        let server = tokio::spawn(async move {
            mock.expect("GET", "/apis/nestling.dev/v1alpha1/namespaces/marsh/kindclusters/crane", owner).await;
            if deleted {
                let sent = mock.expect("DELETE", "/api/v1/namespaces/clusters/pods/c-crane-x-1", Answer::missing()).await;
                assert_eq!(sent["preconditions"]["uid"], "pod-uid");
            }
            mock.done().await;
        });
        sweep(&client, "clusters", found(), at(minute), suspects).await.unwrap();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_child_goes_at_the_second_sighting_ten_minutes_later() {
        let mut suspects = Suspects::new();
        let another = || Answer::ok(json!({"metadata": {"name": "crane", "namespace": "marsh", "uid": "another"}}));
        look(0, &mut suspects, Answer::missing(), false).await;
        look(9, &mut suspects, another(), false).await;
        look(10, &mut suspects, Answer::missing(), true).await;
    }

    #[tokio::test]
    async fn a_child_whose_owner_is_back_in_sight_is_no_suspect_any_more() {
        let mut suspects = Suspects::new();
        look(0, &mut suspects, Answer::missing(), false).await;
        look(9, &mut suspects, Answer::ok(json!({"metadata": {"name": "crane", "uid": "gone"}})), false).await;
        assert!(suspects.is_empty());
        look(10, &mut suspects, Answer::missing(), false).await;
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_not_gone() {
        let mut suspects = Suspects::from([("pod-uid".to_owned(), at(-60))]);
        let (client, mut mock) = Mock::new();
        let server = tokio::spawn(async move {
            mock.expect("GET", "/apis/nestling.dev/v1alpha1/namespaces/marsh/kindclusters/crane", Answer::refused(403, "Forbidden", "no")).await;
            mock.done().await;
        });
        assert!(sweep(&client, "clusters", found(), at(10), &mut suspects).await.is_err());
        assert_eq!(suspects.len(), 1);
        server.await.unwrap();
    }
}
