//! `nestling kubeconfig`.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use nestling_core::api::conditions::{self, CONTROL_PLANE_READY, KUBECONFIG_PUBLISHED};
use nestling_core::api::{KindCluster, labels};

use super::failure::{Failure, command};
use super::host::{connect, explain};
use super::select::get;
use super::{HostArgs, KubeconfigArgs};

/// Prints or writes the published kubeconfig.
pub async fn run(host: HostArgs, args: KubeconfigArgs) -> Result<()> {
    let host = connect(host).await?;
    let (namespace, name) = (&host.namespace, &args.name);
    let cluster = get(&host, name).await?;
    let secret_name = secret_name(&cluster)?;
    let secret = Api::<Secret>::namespaced(host.client, namespace)
        .get_opt(&secret_name)
        .await
        .map_err(|error| explain(error, &format!("read Secret {namespace}/{secret_name}, which holds the kubeconfig")))?
        .ok_or_else(|| Failure::new(format!("Secret {namespace}/{secret_name} is gone"), "The operator writes it again; try again in a moment."))?;
    let text = choose(&cluster, &secret, args.external)?;
    match &args.output {
        Some(path) => write(path, &text).with_context(|| format!("cannot write {}", path.display())),
        None => Ok(std::io::stdout().write_all(&text)?),
    }
}

/// Name of the published Secret, or why there is none.
pub(super) fn secret_name(cluster: &KindCluster) -> Result<String> {
    let status = cluster.status.clone().unwrap_or_default();
    if let Some(secret) = status.kubeconfig_secret_ref {
        return Ok(secret.name);
    }
    // Whichever of the two is not yet true is what is being waited for.
    let why = [CONTROL_PLANE_READY, KUBECONFIG_PUBLISHED]
        .into_iter()
        .filter_map(|type_| conditions::get(&status.conditions, type_))
        .find(|condition| condition.status != "True")
        .map_or_else(
            || "the operator has not looked at it yet".to_owned(),
            |condition| {
                let said = format!("{} is {}: {}", condition.type_, condition.status, condition.reason);
                if condition.message.is_empty() { said } else { format!("{said}: {}", condition.message) }
            },
        );
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    let next = format!("Wait for it: `{}`.", command(&format!("wait {name} --for ControlPlaneReady")));
    Err(Failure::new(format!("the kubeconfig is not published yet; {why}"), next).into())
}

/// The wanted kubeconfig in a Secret.
pub(super) fn choose(cluster: &KindCluster, secret: &Secret, external: bool) -> Result<Vec<u8>> {
    // A Secret of that name may belong to somebody else, such as Cluster API; theirs leads into another cluster.
    let owner = secret.metadata.labels.as_ref().and_then(|all| all.get(labels::CLUSTER_UID));
    if owner != cluster.metadata.uid.as_ref() {
        let next = "Set spec.kubeconfig.secretName to a name that is free; the condition KubeconfigPublished says more.";
        return Err(Failure::new("the Secret does not belong to this KindCluster", next).into());
    }
    let data = secret.data.as_ref();
    let key = if external { "external" } else { "value" };
    match data.and_then(|data| data.get(key)) {
        Some(text) => Ok(text.0.clone()),
        None if external => {
            let next = "Set spec.access.service.type to NodePort, or use `kubectl nestling connect`.";
            Err(Failure::new("the cluster has no endpoint outside of the host cluster", next).into())
        }
        None => Err(Failure::new(format!("the Secret has no key {key}"), "The operator writes it again; try again in a moment.").into()),
    }
}

/// Writes a file that only its owner can read, whole or not at all.
pub(super) fn write(path: &Path, text: &[u8]) -> Result<()> {
    let mut name = path.file_name().context("not a file name")?.to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let fresh = path.with_file_name(name);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)
        .and_then(|mut file| file.write_all(text).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&fresh, path));
    if written.is_err() {
        // What failed is told below; a left-over would hold credentials.
        let _ = fs::remove_file(&fresh);
    }
    Ok(written?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;

    fn cluster(status: &serde_json::Value) -> KindCluster {
        let value =
            json!({"apiVersion": "nestling.dev/v1alpha1", "kind": "KindCluster", "metadata": {"name": "crane", "uid": "u"}, "spec": {}, "status": status});
        serde_json::from_value(value).unwrap()
    }

    fn secret(uid: &str, key: &str) -> Secret {
        let mut secret = Secret { data: Some([(key.to_owned(), ByteString(b"config".to_vec()))].into()), ..Secret::default() };
        secret.metadata.labels = Some([(labels::CLUSTER_UID.to_owned(), uid.to_owned())].into());
        secret
    }

    #[test]
    fn what_is_not_published_is_explained() {
        let waiting = json!({"conditions": [
            {"type": "ControlPlaneReady", "status": "False", "reason": "StartingControlPlane", "message": "kind is at work", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "KubeconfigPublished", "status": "False", "reason": "Pending", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        for (status, message) in [
            (json!({}), "the kubeconfig is not published yet; the operator has not looked at it yet"),
            (waiting, "the kubeconfig is not published yet; ControlPlaneReady is False: StartingControlPlane: kind is at work"),
        ] {
            assert_eq!(secret_name(&cluster(&status)).unwrap_err().to_string(), message);
        }
        assert_eq!(secret_name(&cluster(&json!({"kubeconfigSecretRef": {"name": "s"}}))).unwrap(), "s");
    }

    #[test]
    fn the_wanted_key_of_our_own_secret() {
        let cluster = cluster(&json!({}));
        assert_eq!(choose(&cluster, &secret("u", "value"), false).unwrap(), b"config");
        assert!(choose(&cluster, &secret("u", "value"), true).unwrap_err().to_string().contains("NodePort"));
        assert!(choose(&cluster, &secret("other", "value"), false).unwrap_err().to_string().contains("does not belong"));
    }

    #[test]
    fn a_written_file_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        fs::write(&path, "old").unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(write(&directory.path().join("none/config"), b"").is_err());
    }
}
