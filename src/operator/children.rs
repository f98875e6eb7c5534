//! Cache of one kind of children, by the `KindCluster` that they belong to: a pass looks at its own only, however many there are.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kube::Resource;
use kube::runtime::watcher::Event;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::error;

use super::observe::owner_uid;
use super::packed::{Packed, Packer};

/// Everything of one kind in one namespace.
#[derive(Debug, Default)]
struct Kept {
    /// By the UID of the owner; each child with its name.
    of: HashMap<Arc<str>, Vec<(Box<str>, Packed)>>,
    /// Owner of each child, by its name.
    owners: HashMap<Box<str>, Arc<str>>,
}

impl Kept {
    fn put(&mut self, owner: &str, name: &str, packed: Packed) {
        self.take(name, Some(owner));
        let owner = self.of.get_key_value(owner).map_or_else(|| Arc::from(owner), |(owner, _)| Arc::clone(owner));
        self.owners.insert(name.into(), Arc::clone(&owner));
        let siblings = self.of.entry(owner).or_default();
        if let Some((_, old)) = siblings.iter_mut().find(|(sibling, _)| &**sibling == name) {
            *old = packed;
        } else {
            // Mostly there is no other.
            siblings.reserve_exact(1);
            siblings.push((name.into(), packed));
        }
    }

    /// Removes a child, unless it stays with this owner.
    fn take(&mut self, name: &str, stays_with: Option<&str>) {
        if self.owners.get(name).is_none_or(|owner| Some(&**owner) == stays_with) {
            return;
        }
        let Some(owner) = self.owners.remove(name) else { return };
        if let Some(siblings) = self.of.get_mut(&owner) {
            siblings.retain(|(sibling, _)| &**sibling != name);
            if siblings.is_empty() {
                self.of.remove(&owner);
            }
        }
    }
}

/// The reading end.
pub struct ChildCache<K> {
    kept: Arc<RwLock<Kept>>,
    complete: watch::Receiver<bool>,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for ChildCache<K> {
    fn clone(&self) -> Self {
        Self { kept: Arc::clone(&self.kept), complete: self.complete.clone(), kind: PhantomData }
    }
}

/// The writing end.
pub struct ChildWriter<K> {
    kept: Arc<RwLock<Kept>>,
    complete: watch::Sender<bool>,
    packer: Packer,
    /// A new list, until it is complete.
    listed: Kept,
    kind: PhantomData<fn(K)>,
}

/// An empty cache.
pub fn child_cache<K>() -> (ChildCache<K>, ChildWriter<K>) {
    let kept = Arc::<RwLock<Kept>>::default();
    let (sender, complete) = watch::channel(false);
    let writer = ChildWriter { kept: Arc::clone(&kept), complete: sender, packer: Packer::default(), listed: Kept::default(), kind: PhantomData };
    (ChildCache { kept, complete, kind: PhantomData }, writer)
}

impl<K> ChildCache<K> {
    /// Waits until it is complete for the first time.
    ///
    /// # Errors
    /// If nobody fills it any more.
    pub async fn wait_until_ready(&self) -> Result<(), watch::error::RecvError> {
        self.complete.clone().wait_for(|complete| *complete).await.map(|_| ())
    }

    /// The UIDs of all owners.
    pub fn owners(&self) -> Vec<Arc<str>> {
        self.read().of.keys().cloned().collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Kept> {
        self.kept.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: DeserializeOwned> ChildCache<K> {
    /// The children of the owner of this UID.
    pub fn of(&self, owner: &str) -> Vec<K> {
        let packed: Vec<Packed> = self.read().of.get(owner).into_iter().flatten().map(|(_, packed)| packed.clone()).collect();
        // What is left out here is looked for at the API server, before anything follows from its absence.
        packed.iter().filter_map(|packed| packed.unpack().inspect_err(|error| error!(%error, "a child is left out")).ok()).collect()
    }
}

impl<K: Resource + Serialize> ChildWriter<K> {
    /// Follows a watch.
    pub fn follow(&mut self, event: &Event<K>) {
        match event {
            Event::Apply(child) => {
                let packed = self.pack(child);
                put(&mut self.write(), child, packed);
            }
            Event::Delete(child) => self.write().take(child.meta().name.as_deref().unwrap_or_default(), None),
            Event::Init => self.listed = Kept::default(),
            Event::InitApply(child) => {
                let packed = self.pack(child);
                put(&mut self.listed, child, packed);
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                *self.write() = listed;
                self.complete.send_replace(true);
            }
        }
    }

    fn pack(&self, child: &K) -> Option<Packed> {
        self.packer.pack(child).inspect_err(|error| error!(%error, "a child cannot be cached")).ok()
    }

    fn write(&self) -> RwLockWriteGuard<'_, Kept> {
        self.kept.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn put<K: Resource>(kept: &mut Kept, child: &K, packed: Option<Packed>) {
    let name = child.meta().name.as_deref().unwrap_or_default();
    match owner_uid(child.meta()).zip(packed) {
        Some((owner, packed)) => kept.put(owner, name, packed),
        // Nobody's, or nobody's any more.
        None => kept.take(name, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Service;
    use serde_json::json;

    fn service(name: &str, owner: &str, address: &str) -> Service {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {"nestling.dev/cluster-uid": owner}}, "spec": {"clusterIP": address}})).unwrap()
    }

    fn names(cache: &ChildCache<Service>, owner: &str) -> Vec<String> {
        cache.of(owner).into_iter().filter_map(|service| service.metadata.name).collect()
    }

    #[tokio::test]
    async fn each_owner_has_its_own() {
        let (cache, mut writer) = child_cache::<Service>();
        writer.follow(&Event::Apply(service("a1", "a", "10.0.0.1")));
        writer.follow(&Event::Apply(service("a2", "a", "10.0.0.2")));
        writer.follow(&Event::Apply(service("b1", "b", "10.0.0.3")));
        writer.follow(&Event::Apply(service("a1", "a", "10.0.0.9")));
        assert_eq!(cache.of("a"), [service("a1", "a", "10.0.0.9"), service("a2", "a", "10.0.0.2")]);
        writer.follow(&Event::Delete(service("a1", "a", "10.0.0.9")));
        assert_eq!((names(&cache, "a"), names(&cache, "b"), names(&cache, "c")), (vec!["a2".to_owned()], vec!["b1".to_owned()], vec![]));
        writer.follow(&Event::Apply(service("a2", "b", "10.0.0.2")));
        assert_eq!((names(&cache, "a").len(), names(&cache, "b").len()), (0, 2), "who changes the owner is not seen twice");
        assert_eq!(cache.owners(), ["b".into()]);
        let mut nobodys = service("a2", "b", "10.0.0.2");
        nobodys.metadata.labels = None;
        writer.follow(&Event::Apply(nobodys));
        assert_eq!(names(&cache, "b"), ["b1"]);
    }

    #[tokio::test]
    async fn a_new_list_counts_when_it_is_complete() {
        let (cache, mut writer) = child_cache::<Service>();
        writer.follow(&Event::Apply(service("old", "a", "")));
        writer.follow(&Event::Init);
        writer.follow(&Event::InitApply(service("new", "a", "")));
        assert_eq!((names(&cache, "a"), *cache.complete.borrow()), (vec!["old".to_owned()], false));
        writer.follow(&Event::InitDone);
        cache.wait_until_ready().await.unwrap();
        assert_eq!(names(&cache, "a"), ["new"]);
        let waiting = child_cache::<Service>().0;
        assert!(waiting.wait_until_ready().await.is_err(), "nobody fills it");
    }
}
