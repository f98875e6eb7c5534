//! Keeping the caches: one watch per kind, each telling which `KindCluster`s to look at again.

use std::collections::HashSet;
use std::pin::pin;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PartialObjectMeta;
use kube::runtime::reflector::Store;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Resource};
use nestling_core::api::labels;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tracing::warn;

use super::children::{ChildWriter, child_cache};
use super::kept::{Guarded, Kept, kept};
use super::key::{Key, Triggers};
use super::observe::Caches;
use super::packed::Packer;

/// Objects per page of a list: what is read at a time is in memory unpacked.
const PAGE: u32 = 100;

/// The same for kinds whose objects are small. A page costs the API server the more, the more objects come after it.
const PAGE_OF_SMALL: u32 = 500;

/// The writing ends of [`Caches`].
pub struct Writers {
    clusters: Writer<Kept>,
    pods: ChildWriter<Pod>,
    services: ChildWriter<Service>,
    policies: ChildWriter<NetworkPolicy>,
    keys: ChildWriter<PartialObjectMeta<Secret>>,
    claims: ChildWriter<PersistentVolumeClaim>,
}

#[cfg(test)]
impl Writers {
    /// That of the `KindCluster`s.
    pub fn clusters(&mut self) -> &mut Writer<Kept> {
        &mut self.clusters
    }

    /// That of the pods.
    pub fn pods(&mut self) -> &mut ChildWriter<Pod> {
        &mut self.pods
    }
}

/// Empty caches.
pub fn caches() -> (Caches, Writers) {
    let clusters = Writer::new(());
    let ((pods, pods_end), (services, services_end), (policies, policies_end)) = (child_cache(), child_cache(), child_cache());
    let ((keys, keys_end), (claims, claims_end)) = (child_cache(), child_cache());
    let caches = Caches { clusters: clusters.as_reader(), pods, services, policies, keys, claims };
    let writers = Writers { clusters, pods: pods_end, services: services_end, policies: policies_end, keys: keys_end, claims: claims_end };
    (caches, writers)
}

/// Fills the caches and keeps them, until the returned set is dropped. `gone` is told of each `KindCluster` that has gone.
pub fn start(
    client: &Client,
    (namespace, install): (&str, &str),
    caches: &Caches,
    writers: Writers,
    triggers: &Triggers,
    gone: impl Fn(&Key) + Send + 'static,
) -> JoinSet<()> {
    let all = watcher::Config::default().page_size(PAGE);
    let ours = all.clone().labels(&format!("{}={install}", labels::INSTALL));
    let small = ours.clone().page_size(PAGE_OF_SMALL);
    let mut tasks = JoinSet::new();
    let clusters = watch(Api::<Guarded>::all(client.clone()), all);
    tasks.spawn(keep_clusters(clusters, writers.clusters, main_events(caches.clusters.clone(), triggers.clone(), gone)));
    let child = || child_events(triggers.clone(), caches.clusters.clone());
    let pods = watch(Api::namespaced(client.clone(), namespace), ours).modify(without_managed_fields);
    tasks.spawn(keep("pods", pods, writers.pods, child()));
    // Whose a field of a Service is decides whether it can be applied (`core/src/plan/objects/service.rs`).
    tasks.spawn(keep("Services", watch(Api::namespaced(client.clone(), namespace), small.clone()), writers.services, child()));
    let policies = watch(Api::namespaced(client.clone(), namespace), small.clone()).modify(without_managed_fields);
    tasks.spawn(keep("network policies", policies, writers.policies, child()));
    let keys = watch(Api::namespaced(client.clone(), namespace), small.clone()).modify(without_managed_fields);
    tasks.spawn(keep("Secrets", keys, writers.keys, child()));
    let claims = watch(Api::namespaced(client.clone(), namespace), small).modify(without_managed_fields);
    tasks.spawn(keep("claims on volumes", claims, writers.claims, child()));
    tasks
}

/// Runs the watch of the `KindCluster`s for ever; failures are repeated with the client's own pauses.
async fn keep_clusters(
    events: impl Stream<Item = watcher::Result<Event<Guarded>>> + Send + 'static,
    mut writer: Writer<Kept>,
    mut on: impl FnMut(&Event<Kept>) + Send + 'static,
) {
    let packer = Packer::default();
    let mut events = pin!(events.modify(without_managed_fields).default_backoff());
    while let Some(event) = events.next().await {
        match event.map(|event| kept(&packer, event)) {
            Ok(event) => {
                writer.apply_watcher_event(&event);
                on(&event);
            }
            Err(error) => warn!(what = "KindClusters", %error, "cannot watch"),
        }
    }
}

/// The same for children.
async fn keep<K>(
    what: &'static str,
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    mut writer: ChildWriter<K>,
    mut on: impl FnMut(Told<'_>) + Send + 'static,
) where
    K: Resource + Serialize + DeserializeOwned + Send + 'static,
{
    let mut events = pin!(events.default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                writer.follow(&event);
                match &event {
                    Event::Apply(child) | Event::Delete(child) => on(Told::Child(child.meta())),
                    Event::InitDone => on(Told::All),
                    Event::Init | Event::InitApply(_) => {}
                }
            }
            Err(error) => warn!(what, %error, "cannot watch"),
        }
    }
}

/// Who manages which field is a large part of an object, and most often nobody here asks.
fn without_managed_fields<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// Each change of a `KindCluster` asks for a pass over it; after a new list, so do all of them.
fn main_events(store: Store<Kept>, triggers: Triggers, gone: impl Fn(&Key) + Send + 'static) -> impl FnMut(&Event<Kept>) + Send {
    let mut known: HashSet<Key> = HashSet::new();
    move |event| match event {
        Event::Apply(object) => {
            if let Some(key) = Key::of(object.meta()) {
                known.insert(key.clone());
                triggers.fire(key);
            }
        }
        Event::Delete(object) => {
            if let Some(key) = Key::of(object.meta()) {
                known.remove(&key);
                gone(&key);
            }
        }
        Event::InitDone => {
            let now: HashSet<Key> = store.state().iter().filter_map(|object| Key::of(object.meta())).collect();
            for key in known.difference(&now) {
                gone(key);
            }
            for key in &now {
                triggers.fire(key.clone());
            }
            known = now;
        }
        Event::Init | Event::InitApply(_) => {}
    }
}

/// What a watch of children has told.
#[derive(Clone, Copy, Debug)]
enum Told<'a> {
    /// Of this one.
    Child(&'a ObjectMeta),
    /// Of all, by a list.
    All,
}

/// Each change of a child asks for a pass over its owner. After a new list all owners are looked at: it does not tell what has gone meanwhile. After the
/// first one there is no need: no pass is done before all caches are complete, and then there is one over each owner.
fn child_events(triggers: Triggers, owners: Store<Kept>) -> impl FnMut(Told<'_>) + Send {
    let mut listed = false;
    move |told| match told {
        Told::Child(child) => {
            if let Some(key) = Key::of_owner(child) {
                triggers.fire(key);
            }
        }
        Told::All => {
            if std::mem::replace(&mut listed, true) {
                for key in owners.state().iter().filter_map(|owner| Key::of(owner.meta())) {
                    triggers.fire(key);
                }
            }
        }
    }
}
