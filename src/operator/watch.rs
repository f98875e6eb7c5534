//! Keeping the caches: one watch per kind, each telling which `KindCluster`s to look at again.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::pin::pin;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::PartialObjectMeta;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{Store, reflector};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Resource};
use nestling_core::api::labels;
use tokio::task::JoinSet;
use tracing::warn;

use super::key::{Guarded, Key, Triggers};
use super::observe::Caches;

/// The writing ends of [`Caches`].
pub struct Writers {
    clusters: Writer<Guarded>,
    pods: Writer<Pod>,
    services: Writer<Service>,
    policies: Writer<NetworkPolicy>,
    keys: Writer<PartialObjectMeta<Secret>>,
    claims: Writer<PersistentVolumeClaim>,
}

/// Empty caches.
pub fn caches() -> (Caches, Writers) {
    let writers = Writers {
        clusters: Writer::new(()),
        pods: Writer::new(()),
        services: Writer::new(()),
        policies: Writer::new(()),
        keys: Writer::new(()),
        claims: Writer::new(()),
    };
    let caches = Caches {
        clusters: writers.clusters.as_reader(),
        pods: writers.pods.as_reader(),
        services: writers.services.as_reader(),
        policies: writers.policies.as_reader(),
        keys: writers.keys.as_reader(),
        claims: writers.claims.as_reader(),
    };
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
    let ours = watcher::Config::default().labels(&format!("{}={install}", labels::INSTALL));
    let mut tasks = JoinSet::new();
    let clusters: Api<Guarded> = Api::all(client.clone());
    let main = main_events(caches.clusters.clone(), triggers.clone(), gone);
    tasks.spawn(keep("KindClusters", watch(clusters, watcher::Config::default()), writers.clusters, main));
    let child = || (triggers.clone(), caches.clusters.clone());
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    tasks.spawn(keep("pods", watch(pods, ours.clone()), writers.pods, child_events(child())));
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    tasks.spawn(keep("Services", watch(services, ours.clone()), writers.services, child_events(child())));
    let policies: Api<NetworkPolicy> = Api::namespaced(client.clone(), namespace);
    tasks.spawn(keep("network policies", watch(policies, ours.clone()), writers.policies, child_events(child())));
    let keys: Api<PartialObjectMeta<Secret>> = Api::namespaced(client.clone(), namespace);
    tasks.spawn(keep("Secrets", watch(keys, ours.clone()), writers.keys, child_events(child())));
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    tasks.spawn(keep("claims on volumes", watch(claims, ours), writers.claims, child_events(child())));
    tasks
}

/// Runs one watch for ever; failures are repeated with the client's own pauses.
async fn keep<K>(
    what: &'static str,
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    writer: Writer<K>,
    mut on: impl FnMut(&Event<K>) + Send + 'static,
) where
    K: Resource + Clone + Send + Sync + 'static,
    K::DynamicType: Clone + Eq + Hash + Send + Sync,
{
    let mut events = pin!(reflector(writer, events).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => on(&event),
            Err(error) => warn!(what, %error, "cannot watch"),
        }
    }
}

/// Each change of a `KindCluster` asks for a pass over it; after a new list, so do all of them.
fn main_events(store: Store<Guarded>, triggers: Triggers, gone: impl Fn(&Key) + Send + 'static) -> impl FnMut(&Event<Guarded>) + Send {
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

/// Each change of a child asks for a pass over its owner. After a new list all owners are looked at: it does not tell what has gone meanwhile.
fn child_events<K>((triggers, owners): (Triggers, Store<Guarded>)) -> impl FnMut(&Event<K>) + Send
where
    K: Resource + Debug,
{
    move |event| match event {
        Event::Apply(child) | Event::Delete(child) => {
            if let Some(key) = Key::of_owner(child.meta()) {
                triggers.fire(key);
            }
        }
        Event::InitDone => {
            for key in owners.state().iter().filter_map(|owner| Key::of(owner.meta())) {
                triggers.fire(key);
            }
        }
        Event::Init | Event::InitApply(_) => {}
    }
}
