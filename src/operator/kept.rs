//! A `KindCluster` as the cache keeps it.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use kube::runtime::watcher::Event;
use nestling_core::api::KindCluster;

use super::metrics::Said;
use super::packed::{Packed, Packer};

/// A `KindCluster`, or the metadata of one that cannot be read, as a watch delivers it.
pub type Guarded = DeserializeGuard<KindCluster>;

/// A `KindCluster` as the cache keeps it.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Namespace, name, UID, generation and version; no more.
    meta: ObjectMeta,
    /// All of it, or why it cannot be read.
    object: Result<Packed, String>,
    /// What is counted of it.
    said: Option<Said>,
    /// Whether it has a status.
    heard_of: bool,
}

impl Kept {
    /// Packs what a watch has delivered.
    pub fn new(packer: &Packer, delivered: Guarded) -> Self {
        let full = delivered.meta();
        let meta = ObjectMeta {
            namespace: full.namespace.clone(),
            name: full.name.clone(),
            uid: full.uid.clone(),
            generation: full.generation,
            resource_version: full.resource_version.clone(),
            ..ObjectMeta::default()
        };
        let (object, said, heard_of) = match delivered.0 {
            Ok(cluster) => (packer.pack(&cluster).map_err(|error| error.to_string()), Some(Said::of(&cluster)), cluster.status.is_some()),
            Err(invalid) => (Err(invalid.error), None, true),
        };
        Self { meta, object, said, heard_of }
    }

    /// The object.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn cluster(&self) -> Result<KindCluster, String> {
        self.object.as_ref().map_err(Clone::clone)?.unpack().map_err(|error| error.to_string())
    }

    /// Whether its user was not told anything yet.
    pub fn is_new(&self) -> bool {
        !self.heard_of
    }

    /// What is counted of it; `None` if it cannot be read.
    pub fn said(&self) -> Option<&Said> {
        self.said.as_ref()
    }
}

/// Packs what a watch tells.
pub fn kept(packer: &Packer, event: Event<Guarded>) -> Event<Kept> {
    match event {
        Event::Apply(delivered) => Event::Apply(Kept::new(packer, delivered)),
        Event::Delete(delivered) => Event::Delete(Kept::new(packer, delivered)),
        Event::Init => Event::Init,
        Event::InitApply(delivered) => Event::InitApply(Kept::new(packer, delivered)),
        Event::InitDone => Event::InitDone,
    }
}

impl Resource for Kept {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        KindCluster::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        KindCluster::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        KindCluster::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        KindCluster::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn delivered(spec: &Value) -> Guarded {
        serde_json::from_value(json!({
            "apiVersion": "nestling.dev/v1alpha1", "kind": "KindCluster",
            "metadata": {"name": "crane", "namespace": "marsh", "uid": "u", "generation": 3, "resourceVersion": "7", "annotations": {"note": "x"}, "finalizers": ["nestling.dev/cluster"]},
            "spec": spec,
        }))
        .unwrap()
    }

    #[test]
    fn it_is_new_until_it_has_a_status() {
        let spec = json!({"nodes": {"controlPlanes": 1}});
        assert!(Kept::new(&Packer::default(), delivered(&spec)).is_new());
        let mut told = delivered(&spec);
        told.0.as_mut().unwrap().status = Some(nestling_core::api::KindClusterStatus::default());
        assert!(!Kept::new(&Packer::default(), told).is_new());
        let unreadable = delivered(&json!({"nodes": 3}));
        assert!(!Kept::new(&Packer::default(), unreadable).is_new(), "its status cannot be read either");
    }

    #[test]
    fn it_comes_back_whole() {
        let spec = json!({"nodes": {"controlPlanes": 1, "workers": 2}, "config": {"kubeadmConfigPatches": ["a: b"], "unheard": {"of": [1, 2.5]}}});
        let kept = Kept::new(&Packer::default(), delivered(&spec));
        let whole = delivered(&spec).0.unwrap();
        assert_eq!(kept.cluster().unwrap(), whole);
        assert_eq!((kept.meta.name, kept.meta.namespace, kept.meta.generation), (whole.metadata.name, whole.metadata.namespace, Some(3)));
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let kept = Kept::new(&Packer::default(), delivered(&json!({"nodes": "many"})));
        assert!(kept.cluster().unwrap_err().contains("many") && kept.said().is_none());
        assert_eq!(kept.meta.uid.as_deref(), Some("u"));
    }
}
