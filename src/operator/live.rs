//! A look past the caches: one object's children, from the API server's newest state (`docs/decisions/0003-live-looks.md`).

use std::fmt::Debug;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::ListParams;
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use nestling_core::api::{KindCluster, labels};
use nestling_core::plan::names::Identity;
use nestling_core::plan::observed::{Children, only_attempt};
use serde::de::DeserializeOwned;

use super::call::{CallError, call};

/// The children of this object.
///
/// Each is asked for by the name that it has: that costs the API server one key, where a list by label goes through everything of its kind (`ListPredicate`
/// in `k8s.io/apiserver`, `pkg/registry/generic/registry/store.go`). Pods are listed by label as soon as [there may be several](only_attempt).
pub async fn children(client: &Client, namespace: &str, cluster: &KindCluster, identity: &Identity) -> Result<Children, CallError> {
    let ours = format!("{}={}", labels::CLUSTER_UID, identity.uid);
    let (keys, registries, name, claim) = (identity.keys(), identity.registries(), identity.child(), identity.volume_claim());
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let pods_of = only_attempt(cluster).map_or_else(|| ListParams::default().labels(&ours), |attempt| named(&ours, &identity.pod(attempt)));
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let (keys_of, registries_of) = (named(&ours, &keys), named(&ours, &registries));
    let (pods, services, policies, keys, registries, claims) = tokio::try_join!(
        call("list the cluster's pods", pods.list(&pods_of)),
        one::<Service>("look for the cluster's Service", client, namespace, named(&ours, &name)),
        one::<NetworkPolicy>("look for the cluster's network policy", client, namespace, named(&ours, &name)),
        call("look for the cluster's keys", secrets.list_metadata(&keys_of)),
        call("look for what the cluster's registries want to see", secrets.list_metadata(&registries_of)),
        one::<PersistentVolumeClaim>("look for the claim on the cluster's volume", client, namespace, named(&ours, &claim)),
    )?;
    let keys = keys.items.into_iter().chain(registries.items).map(|secret| secret.metadata).collect();
    Ok(Children { live: true, pods: pods.items, services, policies, keys, claims })
}

fn named(labels: &str, name: &str) -> ListParams {
    ListParams::default().labels(labels).fields(&format!("metadata.name={name}"))
}

async fn one<K>(what: &'static str, client: &Client, namespace: &str, params: ListParams) -> Result<Vec<K>, CallError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let api = Api::<K>::namespaced(client.clone(), namespace);
    Ok(call(what, api.list(&params)).await?.items)
}
