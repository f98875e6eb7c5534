//! JSON patches whose first operations test what was read.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, TestOperation};
use k8s_openapi::api::core::v1::Secret;
use kube::api::Patch as KubePatch;
use nestling_core::api::{FINALIZER, KindCluster, labels};
use serde_json::{Value, json};

/// Adds our finalizer, if the object is still what was read.
pub fn add_finalizer(cluster: &KindCluster) -> KubePatch<()> {
    let meta = &cluster.metadata;
    let mut operations = vec![test(["metadata", "uid"], json!(meta.uid)), test(["metadata", "resourceVersion"], json!(meta.resource_version))];
    operations.push(match meta.finalizers.as_deref() {
        None | Some([]) => add(["metadata", "finalizers"], json!([FINALIZER])),
        Some(_) => add(["metadata", "finalizers", "-"], json!(FINALIZER)),
    });
    finished(operations)
}

/// Removes our finalizer and no other. `None` if it is not there.
pub fn remove_finalizer(cluster: &KindCluster) -> Option<KubePatch<()>> {
    let meta = &cluster.metadata;
    let index = meta.finalizers.iter().flatten().position(|finalizer| finalizer == FINALIZER)?.to_string();
    let place = ["metadata", "finalizers", index.as_str()];
    let remove = PatchOperation::Remove(RemoveOperation { path: PointerBuf::from_tokens(place) });
    Some(finished(vec![test(["metadata", "uid"], json!(meta.uid)), test(place, json!(FINALIZER)), remove]))
}

/// Changes nothing, and only works on an object that carries this cluster's UID.
pub fn only_if_ours(uid: &str) -> KubePatch<()> {
    finished(vec![test_owner(uid)])
}

/// Writes a published kubeconfig anew, if the Secret is this cluster's. The Secret's type cannot change and is left out; labels that others
/// have put on it stay,
/// unless `owns_labels`.
pub fn republish(uid: &str, secret: &Secret, owns_labels: bool) -> KubePatch<()> {
    let mut operations =
        vec![test_owner(uid), add(["data"], json!(secret.data)), add(["metadata", "ownerReferences"], json!(secret.metadata.owner_references))];
    if owns_labels {
        operations.push(add(["metadata", "labels"], json!(secret.metadata.labels)));
    } else {
        for (label, value) in secret.metadata.labels.iter().flatten() {
            operations.push(add(["metadata", "labels", label.as_str()], json!(value)));
        }
    }
    finished(operations)
}

fn test_owner(uid: &str) -> PatchOperation {
    test(["metadata", "labels", labels::CLUSTER_UID], json!(uid))
}

fn test<const N: usize>(path: [&str; N], value: Value) -> PatchOperation {
    PatchOperation::Test(TestOperation { path: PointerBuf::from_tokens(path), value })
}

fn add<const N: usize>(path: [&str; N], value: Value) -> PatchOperation {
    PatchOperation::Add(AddOperation { path: PointerBuf::from_tokens(path), value })
}

fn finished(operations: Vec<PatchOperation>) -> KubePatch<()> {
    KubePatch::Json(Patch(operations))
}
