//! Writing the status of a `KindCluster`.

use kube::api::PostParams;
use kube::{Api, Client};
use nestling_core::api::{FIELD_MANAGER, KindCluster, KindClusterStatus};

use super::call::{CallError, call};

/// Writes a status over the one in `base`, on condition that the object is still in the version that `base` has: a status that follows from an
/// older one must not undo a newer one. `None`: the object is gone.
pub async fn write(client: &Client, mut base: KindCluster, status: KindClusterStatus) -> Result<Option<KindCluster>, CallError> {
    let namespace = base.metadata.namespace.clone().unwrap_or_default();
    let name = base.metadata.name.clone().unwrap_or_default();
    let api: Api<KindCluster> = Api::namespaced(client.clone(), &namespace);
    // Whose fields are whose is kept by the API server.
    base.metadata.managed_fields = None;
    base.status = Some(status);
    let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    match call("write the status of the KindCluster", api.replace_status(&name, &params, &base)).await {
        Ok(written) => Ok(Some(written)),
        Err(error) if error.is_gone() => Ok(None),
        Err(error) => Err(error),
    }
}
